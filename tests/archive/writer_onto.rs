//! Archives that begin with another's data: the kernel, unsquashfs and we see in them the tree that was told, whatever
//! the other was made by, and nothing of it is written again that has not changed.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustix::fs::{XattrFlags, lgetxattr, llistxattr, setxattr};
use thawfs::cache::FileBlob;
use thawfs::squashfs::write::{
    self, Attributes, Base, Body, Compression, Entries, Error, Progress, Summary,
};
use thawfs::squashfs::{Archive, Inode, OpenOptions};
use thawfs::types::{FileKind, FileOffset, Timestamp};

use crate::corpus_compare::assert_same;
use crate::support::corpus::{KernelMount, is_root, pack, varied_tree};
use crate::writer_support::{Compare, FileSink, assert_same_trees, options};

/// What a compressor's options take up, at most.
const OPTIONS: u64 = 10;

fn open(archive: &Path) -> Archive {
    Archive::open(Arc::new(FileBlob::open(archive, 0).unwrap()), OpenOptions::default()).unwrap()
}

/// The regular file of `archive` at `path`.
fn find(archive: &Archive, path: &Path) -> Option<Inode> {
    let mut inode = archive.inode(archive.root()).unwrap();
    for name in path {
        if inode.kind != FileKind::Directory {
            return None;
        }
        let entry = archive.lookup(&inode, name.as_bytes()).unwrap()?;
        inode = archive.inode(entry.inode).unwrap();
    }
    (inode.kind == FileKind::Regular).then_some(inode)
}

/// Whether `file` holds what `inode` does.
fn is_same(archive: &Archive, inode: &Inode, file: &File) -> bool {
    let len = file.metadata().unwrap().len();
    let (mut at, mut theirs) = (0, vec![0; 1 << 20]);
    while inode.size == len && at < len {
        let ours = archive.read(inode, FileOffset(at), 1 << 20).unwrap();
        file.read_exact_at(&mut theirs[..ours.len()], at).unwrap();
        if ours != theirs[..ours.len()] {
            return false;
        }
        at += ours.len() as u64;
    }
    inode.size == len
}

fn attributes(meta: &fs::Metadata) -> Attributes {
    Attributes {
        kind: FileKind::from_mode(meta.mode()).unwrap(),
        permissions: (meta.mode() & 0o7777) as u16,
        uid: meta.uid(),
        gid: meta.gid(),
        nlink: meta.nlink() as u32,
        number: meta.ino(),
        rdev: meta.rdev(),
        mtime: Timestamp { seconds: meta.mtime(), nanos: meta.mtime_nsec() as u32 },
    }
}

fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = Vec::with_capacity(1 << 16);
    llistxattr(path, rustix::buffer::spare_capacity(&mut names)).unwrap();
    let names = names.split(|&byte| byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = Vec::with_capacity(1 << 16);
            lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value)).unwrap();
            (name.to_vec(), value)
        })
        .collect()
}

/// Tells what is in `dir` of the tree `root`: what the base has at the same path with the same bytes is kept.
fn tell(
    (base, root): (&Archive, &Path),
    dir: &Path,
    name: &[u8],
    read: &mut u64,
    entries: &mut Entries<'_>,
) -> Result<(), Error> {
    let path = root.join(dir);
    entries.enter(name, &attributes(&fs::metadata(&path).unwrap()), xattrs(&path))?;
    let mut found: Vec<_> = fs::read_dir(&path).unwrap().map(Result::unwrap).collect();
    found.sort_by_key(|entry| entry.file_name());
    for entry in found.iter().filter(|entry| !entry.file_type().unwrap().is_dir()) {
        let (path, name) = (entry.path(), entry.file_name());
        let kind = entry.file_type().unwrap();
        let (attributes, xattrs) = (attributes(&entry.metadata().unwrap()), xattrs(&path));
        let name = name.as_bytes();
        if kind.is_file() {
            let file = File::open(&path).unwrap();
            let kept = find(base, &dir.join(entry.file_name()));
            if let Some(inode) = kept.filter(|inode| is_same(base, inode, &file)) {
                assert!(entries.leaf(name, &attributes, xattrs, Body::Kept(&inode))?, "{path:?}");
                continue;
            }
            *read += file.metadata().unwrap().len();
            entries.leaf(name, &attributes, xattrs, Body::File(file.into()))?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).unwrap();
            let target = Body::Target(target.as_os_str().as_bytes().to_vec());
            entries.leaf(name, &attributes, xattrs, target)?;
        } else {
            entries.leaf(name, &attributes, xattrs, Body::Nothing)?;
        }
    }
    for entry in found.iter().filter(|entry| entry.file_type().unwrap().is_dir()) {
        let dir = dir.join(entry.file_name());
        tell((base, root), &dir, entry.file_name().as_bytes(), read, entries)?;
    }
    entries.leave()
}

/// What came of an archive.
struct Onto {
    summary: Summary,
    /// Bytes that the sink was given, and those of the files that were read.
    written: u64,
    read: u64,
    dead: u64,
}

/// Writes an archive of `tree` onto `base`.
fn write_onto(base_path: &Path, tree: &Path, new: &Path) -> Onto {
    let archive = open(base_path);
    let base = Base::new(&archive);
    let options = write::Options {
        mkfs_time: Some(1_700_000_000),
        ..base.options(Compression::Zstd(3)).unwrap()
    };
    let mut data = fs::read(base_path).unwrap();
    data.truncate(base.data_end() as usize);
    let mut file = File::create(new).unwrap();
    file.write_all(&data).unwrap();
    let mut sink = FileSink(file);
    let progress = Progress::default();
    let read = Cell::new(0);
    let mut bytes = 0;
    let summary =
        write::told((&options, Some(&base)), &|_| None, &mut sink, &progress, |entries| {
            tell((&archive, tree), Path::new(""), tree.as_os_str().as_bytes(), &mut bytes, entries)
        })
        .unwrap();
    read.set(bytes);
    sink.0.write_all_at(&summary.superblock, 0).unwrap();
    assert_eq!(sink.0.metadata().unwrap().len(), summary.size);
    Onto { written: progress.bytes_written(), read: read.get(), dead: base.dead_bytes(), summary }
}

/// Whether the kernel, unsquashfs and we see `tree` in `archive`.
fn check(archive: &Path, tree: &Path, what: &str) {
    println!("{what}");
    let mount = KernelMount::new(archive, 0).unwrap();
    assert_same_trees(tree, mount.path(), Compare::Everything);
    assert_same(&open(archive), mount.path());
    let listing = Command::new("unsquashfs").arg("-lln").arg(archive).output().unwrap();
    assert!(listing.status.success(), "{what}: {}", String::from_utf8_lossy(&listing.stderr));
}

/// The regular files of a tree that have so many bytes.
fn files(tree: &Path, bytes: std::ops::Range<u64>) -> Vec<PathBuf> {
    let entries = walkdir::WalkDir::new(tree).sort_by_file_name().into_iter().map(Result::unwrap);
    let files = entries.filter(|entry| {
        let meta = entry.metadata().unwrap();
        meta.is_file() && bytes.contains(&meta.len())
    });
    files.map(walkdir::DirEntry::into_path).collect()
}

/// Changes some of everything in a tree. Each call changes other files.
fn change(tree: &Path, round: u32) {
    let at = |name: &str| tree.join(name);
    for (number, path) in files(tree, 0..u64::MAX).iter().enumerate() {
        match (number as u32 + 7 * round) % 23 {
            0 => File::options().append(true).open(path).unwrap().write_all(b"more").unwrap(),
            1 => fs::write(path, vec![round as u8; 100_000]).unwrap(),
            2 => fs::write(path, "").unwrap(),
            3 => fs::remove_file(path).unwrap(),
            4 => fs::set_permissions(path, fs::Permissions::from_mode(0o600 + round)).unwrap(),
            5 => fs::rename(path, path.with_extension(format!("renamed-{round}"))).unwrap(),
            6 => setxattr(path, "user.round", &[round as u8], XattrFlags::empty()).unwrap(),
            7 => fs::hard_link(path, path.with_extension(format!("linked-{round}"))).unwrap(),
            8 => File::options().write(true).open(path).unwrap().set_len(300_000).unwrap(),
            _ => {}
        }
    }
    fs::create_dir(at(&format!("new-{round}"))).unwrap();
    for number in 0..40 {
        let data = vec![number as u8; number * 9001];
        fs::write(at(&format!("new-{round}/{number}")), data).unwrap();
    }
    std::os::unix::fs::symlink("nowhere", at(&format!("link-{round}"))).unwrap();
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

#[test]
fn an_archive_onto_any_other_holds_what_was_told() {
    if !is_root("an_archive_onto_any_other_holds_what_was_told") {
        return;
    }
    let original = varied_tree();
    // What is large takes long, and is of the same kinds as the rest.
    for path in files(original.path(), (600 << 10)..u64::MAX) {
        fs::remove_file(path).unwrap();
    }
    for (number, args) in [
        &["-comp", "zstd"][..],
        &["-comp", "zstd", "-Xcompression-level", "1", "-b", "4096"],
        &["-comp", "lz4", "-Xhc"],
        &["-comp", "gzip", "-Xwindow-size", "9", "-b", "1M"],
        &["-comp", "gzip", "-always-use-fragments"],
        &["-comp", "xz", "-Xbcj", "x86", "-b", "65536"],
        &["-comp", "xz", "-Xdict-size", "8192"],
        &["-comp", "zstd", "-no-fragments", "-no-exports"],
        &["-comp", "lz4", "-noI", "-noD", "-noF", "-noX"],
    ]
    .into_iter()
    .enumerate()
    {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        copy(original.path(), &tree);
        let base = pack(&tree, args);
        let mut before = base.path();
        for round in 0..if number == 0 { 3 } else { 1 } {
            let new = dir.path().join(format!("{round}.sqsh"));
            let same = write_onto(&before, &tree, &new);
            check(&new, &tree, &format!("{args:?}, {round}, unchanged"));
            assert_eq!(same.read, 0, "{args:?}: all is kept");
            if round == 0 {
                assert!(same.dead <= OPTIONS, "{args:?}: all is used");
            }
            change(&tree, round);
            let onto = write_onto(&before, &tree, &new);
            check(&new, &tree, &format!("{args:?}, {round}, changed"));
            // Files, and tables as long as they were.
            let most = onto.read + same.written + (64 << 10);
            assert!(onto.read > 0 && onto.written < most, "{args:?}: {}", onto.written);
            // A fragment is of use as long as one file in it is.
            assert!(onto.dead >= same.dead, "{args:?}: {} {}", onto.dead, same.dead);
            assert!(number > 0 || onto.dead > same.dead, "{args:?}: {}", onto.dead);
            assert_eq!(onto.summary.bytes_used.next_multiple_of(4096), onto.summary.size);
            before = new;
        }
    }
}

#[test]
fn an_archive_of_lzo_is_no_base() {
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("file"), "data").unwrap();
    let packed = pack(tree.path(), &["-comp", "lzo"]);
    assert!(Base::new(&open(&packed.path())).options(Compression::Lz4).is_none());
}

#[test]
fn onto_an_archive_of_nothing_and_of_only_small_files() {
    if !is_root("onto_an_archive_of_nothing_and_of_only_small_files") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let base = crate::writer_support::pack(&tree, &options(Compression::Zstd(3)));
    let one = dir.path().join("one.sqsh");
    write_onto(&base.path(), &tree, &one);
    check(&one, &tree, "nothing onto nothing");
    for number in 0..3 {
        fs::write(tree.join(format!("{number}")), format!("{number} of 3").repeat(9)).unwrap();
    }
    let two = dir.path().join("two.sqsh");
    write_onto(&one, &tree, &two);
    check(&two, &tree, "files onto nothing");
    fs::remove_file(tree.join("0")).unwrap();
    let three = dir.path().join("three.sqsh");
    let last = write_onto(&two, &tree, &three);
    check(&three, &tree, "one fewer");
    assert!(last.read == 0 && last.dead <= OPTIONS, "they share a fragment: {}", last.dead);
    for number in 1..3 {
        fs::remove_file(tree.join(format!("{number}"))).unwrap();
    }
    let four = dir.path().join("four.sqsh");
    let last = write_onto(&three, &tree, &four);
    check(&four, &tree, "none");
    assert!(last.dead > OPTIONS);
}

#[test]
fn what_tells_may_fail_and_that_is_said() {
    let tree = tempfile::tempdir().unwrap();
    let packed = pack(tree.path(), &[]);
    let archive = open(&packed.path());
    let base = Base::new(&archive);
    let options = base.options(Compression::Zstd(3)).unwrap();
    let root = attributes(&fs::metadata(tree.path()).unwrap());
    let mut sink = FileSink(tempfile::tempfile().unwrap());
    let failed = write::told(
        (&options, Some(&base)),
        &|_| None,
        &mut sink,
        &Progress::default(),
        |entries| {
            entries.enter(b"tree", &root, Vec::new())?;
            Err(Error::Told("the tree is gone".into()))
        },
    );
    assert_eq!(failed.unwrap_err().to_string(), "the tree is gone");
    let failed = write::told(
        (&options, Some(&base)),
        &|_| None,
        &mut sink,
        &Progress::default(),
        |entries| {
            entries.enter(b"tree", &root, Vec::new())?;
            entries.enter(&[b'x'; 257], &root, Vec::new())
        },
    );
    assert!(matches!(failed.unwrap_err(), Error::Limit { .. }));
    // Who leaves directories open has them ended.
    let left = write::told(
        (&options, Some(&base)),
        &|_| None,
        &mut sink,
        &Progress::default(),
        |entries| {
            entries.enter(b"tree", &root, Vec::new())?;
            entries.enter(b"in", &root, Vec::new())
        },
    );
    assert_eq!(left.unwrap().inodes, 2);
}
