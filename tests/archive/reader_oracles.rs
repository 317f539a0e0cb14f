//! Two more readers must agree with us: backhand on what it knows of a tree, and unsquashfs on
//! contents where the kernel may lack a compressor.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::support::corpus::{Numbers, pack};
use backhand::{FilesystemReader, InnerNode};
use thawfs::cache::FileBlob;
use thawfs::squashfs::{Archive, OpenOptions};
use thawfs::types::{FileKind, FileOffset};

/// Files and links; no root needed.
fn plain_tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut numbers = Numbers(21);
    for len in [0, 1, 4095, 4096, 131_072, 131_073, 300_000] {
        fs::write(dir.path().join(format!("file-{len}")), numbers.bytes(len)).unwrap();
    }
    fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
    for file in 0..300 {
        fs::write(dir.path().join(format!("a/b/{file}")), numbers.bytes(file)).unwrap();
    }
    std::os::unix::fs::symlink("../file-1", dir.path().join("a/link")).unwrap();
    dir
}

fn open(path: &Path) -> Archive {
    Archive::open(Arc::new(FileBlob::open(path, 0).unwrap()), OpenOptions::default()).unwrap()
}

/// (kind, permissions, mtime, contents or target) by path.
type Tree = BTreeMap<Vec<u8>, (FileKind, u16, i64, Vec<u8>)>;

fn our_tree(archive: &Archive) -> Tree {
    archive
        .walk()
        .map(|entry| {
            let entry = entry.unwrap();
            let inode = &entry.inode;
            let contents = match inode.kind {
                FileKind::Regular => {
                    archive.read(inode, FileOffset(0), inode.size as usize).unwrap().to_vec()
                }
                FileKind::Symlink => archive.read_link(inode).unwrap(),
                _ => Vec::new(),
            };
            (entry.path, (inode.kind, inode.permissions, inode.mtime.seconds, contents))
        })
        .collect()
}

#[test]
fn backhand_reads_the_same_tree() {
    let tree = plain_tree();
    for compressor in ["gzip", "xz", "zstd", "lz4"] {
        let packed = pack(tree.path(), &["-comp", compressor]);
        let file = BufReader::new(File::open(packed.path()).unwrap());
        let reader = FilesystemReader::from_reader(file).unwrap();
        let theirs: Tree = reader
            .files()
            .map(|node| {
                let path = node.fullpath.as_os_str().as_bytes();
                let (kind, contents) = match &node.inner {
                    InnerNode::File(file) => {
                        let mut bytes = Vec::new();
                        reader.file(file).reader().read_to_end(&mut bytes).unwrap();
                        (FileKind::Regular, bytes)
                    }
                    InnerNode::Symlink(link) => {
                        (FileKind::Symlink, link.link.as_os_str().as_bytes().to_vec())
                    }
                    _ => (FileKind::Directory, Vec::new()),
                };
                let header = node.header;
                let path = path.strip_prefix(b"/").unwrap_or(path).to_vec();
                (path, (kind, header.permissions, i64::from(header.mtime), contents))
            })
            .collect();
        let ours = our_tree(&open(&packed.path()));
        assert_eq!(ours.len(), 312);
        assert!(ours == theirs, "{compressor}");
    }
}

#[test]
fn unsquashfs_extracts_the_same_contents() {
    let tree = plain_tree();
    for compressor in ["gzip", "lzo", "xz", "zstd", "lz4"] {
        let packed = pack(tree.path(), &["-comp", compressor]);
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("tree");
        let output = Command::new("unsquashfs")
            .args(["-no-progress", "-quiet", "-dest"])
            .args([&target, &packed.path()])
            .output()
            .expect("unsquashfs is installed");
        assert!(output.status.success(), "{output:?}");
        for (path, (kind, _, _, contents)) in our_tree(&open(&packed.path())) {
            let path = target.join(OsStr::from_bytes(&path));
            match kind {
                FileKind::Regular => assert!(fs::read(&path).unwrap() == contents, "{path:?}"),
                FileKind::Symlink => {
                    assert_eq!(fs::read_link(&path).unwrap().as_os_str().as_bytes(), contents);
                }
                _ => assert!(path.is_dir(), "{path:?}"),
            }
        }
    }
}
