//! Trees that change, or that we may not read, and trees so large that memory must not follow.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

#[path = "support/corpus.rs"]
#[allow(dead_code)]
mod corpus;
mod writer_support;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use corpus::is_root;
use thawfs::cache::FileBlob;
use thawfs::squashfs::write::{self, Compression, Error, Options, Progress, Sink};
use thawfs::squashfs::{Archive, OpenOptions};
use thawfs::types::FileOffset;
use writer_support::{options, write_to};

/// Names the tree that a test, run again as an ordinary user, packs.
const AS_USER: &str = "THAWFS_TEST_UNREADABLE_TREE";

#[test]
fn everything_unreadable_is_listed() {
    const TEST: &str = "everything_unreadable_is_listed";
    if let Some(tree) = std::env::var_os(AS_USER) {
        return pack_unreadable(Path::new(&tree));
    }
    if !is_root(TEST) {
        return;
    }
    let tree = tempfile::tempdir().unwrap();
    let root = tree.path();
    for file in ["a/1", "a/2", "b/closed/hidden", "c/3", "z"] {
        fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
        fs::write(root.join(file), vec![7; 300_000]).unwrap();
    }
    for (path, mode) in [("", 0o755), ("a/2", 0), ("b/closed", 0), ("c", 0o744), ("z", 0o200)] {
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    // The program must be where that user can run it.
    let program = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    fs::set_permissions(program.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = program.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"])
        .arg(&copy)
        .args(["--exact", TEST, "--nocapture"])
        .env(AS_USER, root)
        .output()
        .expect("setpriv is installed");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "{said}");
}

fn pack_unreadable(tree: &Path) {
    struct Nowhere;
    impl Sink for Nowhere {
        fn write(&mut self, _: Bytes) -> io::Result<()> {
            Ok(())
        }
    }
    let options = options(Compression::Lz4);
    let result = write::archive(tree, &options, &|_, _| false, &mut Nowhere, &Progress::default());
    let error = result.unwrap_err();
    let Error::Unreadable { paths } = &error else { panic!("{error}") };
    let expected: Vec<PathBuf> =
        ["a/2", "b/closed", "c/3", "z"].iter().map(|path| tree.join(path)).collect();
    assert_eq!(*paths, expected);
    assert!(error.hint().unwrap().contains("chmod -R a+rX"));
}

/// Reads the archive's file of this name.
fn read(archive: &Path, name: &[u8]) -> Vec<u8> {
    let blob = Arc::new(FileBlob::open(archive, 0).unwrap());
    let archive = Archive::open(blob, OpenOptions::default()).unwrap();
    let entry = archive.walk().map(Result::unwrap).find(|entry| entry.path == name).unwrap();
    let size = entry.inode.size;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < size {
        let at = FileOffset(bytes.len() as u64);
        bytes.extend(archive.read(&entry.inode, at, 1 << 20).unwrap());
    }
    bytes
}

/// Appends to a file of the tree while that is read, which is longer than all queues.
struct Growing {
    log: File,
    times: u32,
    archive: writer_support::FileSink,
}

impl Sink for Growing {
    fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        if self.archive.0.metadata()?.len() > 100_000
            && let Some(times) = self.times.checked_sub(1)
        {
            self.times = times;
            self.log.write_all(b"line\n")?;
        }
        self.archive.write(bytes)
    }
}

#[test]
fn a_file_that_grows_is_packed_whole_or_refused() {
    const LEN: usize = 32 << 20;
    let tree = tempfile::tempdir().unwrap();
    let path = tree.path().join("log");
    let archive = tempfile::NamedTempFile::new().unwrap();
    let before = corpus::Numbers(2).bytes(LEN);
    for (times, packed) in [(0, true), (1, true), (u32::MAX, false)] {
        fs::write(&path, &before).unwrap();
        let log = File::options().append(true).open(&path).unwrap();
        let mut file = File::create(archive.path()).unwrap();
        file.write_all(&[0; 96]).unwrap();
        let mut sink = Growing { log, times, archive: writer_support::FileSink(file) };
        let options = options(Compression::Lz4);
        let progress = Progress::default();
        let result = write::archive(tree.path(), &options, &|_, _| false, &mut sink, &progress);
        if packed {
            let superblock = result.unwrap().superblock;
            sink.archive.0.write_all_at(&superblock, 0).unwrap();
            let bytes = read(archive.path(), b"log");
            assert_eq!(bytes.len(), LEN + 5 * times as usize);
            assert!(bytes == fs::read(&path).unwrap(), "{times} lines");
        } else {
            let error = result.unwrap_err();
            assert!(matches!(&error, Error::Changed { path: it } if *it == path), "{error}");
        }
    }
}

#[test]
fn a_sink_that_fails_ends_the_packing_with_its_error() {
    struct Full(usize);
    impl Sink for Full {
        fn write(&mut self, bytes: Bytes) -> io::Result<()> {
            match self.0.checked_sub(bytes.len()) {
                Some(left) => self.0 = left,
                None => return Err(io::ErrorKind::StorageFull.into()),
            }
            Ok(())
        }
    }
    let tree = tempfile::tempdir().unwrap();
    let mut numbers = corpus::Numbers(9);
    for file in 0..200 {
        fs::write(tree.path().join(format!("{file}")), numbers.bytes(200_000)).unwrap();
    }
    for room in [0, 5, 1 << 20, 10 << 20] {
        let options = options(Compression::Lz4);
        let progress = Progress::default();
        let result =
            write::archive(tree.path(), &options, &|_, _| false, &mut Full(room), &progress);
        assert!(matches!(result, Err(Error::Sink(_))), "room for {room}: {result:?}");
    }
}

#[test]
fn options_that_contradict_the_format_are_refused() {
    let tree = tempfile::tempdir().unwrap();
    let good = options(Compression::Lz4);
    for bad in [
        Options { block_size: 2048, ..good.clone() },
        Options { block_size: 2 << 20, ..good.clone() },
        Options { block_size: 131_073, ..good.clone() },
        Options { data_start: 95, ..good.clone() },
        Options { compression: Compression::Zstd(23), ..good.clone() },
        Options { compression: Compression::Gzip(0), ..good.clone() },
    ] {
        let archive = tempfile::NamedTempFile::new().unwrap();
        let result = write_to(tree.path(), &bad, archive.path());
        assert!(matches!(result, Err(Error::Options(_))), "{bad:?}: {result:?}");
    }
}

/// Most memory that this process had resident since `clear_refs` last, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn memory_does_not_follow_the_tree() {
    let tree = tempfile::tempdir().unwrap();
    // Beside many files, one directory of many names, and data that fills all queues.
    for directory in 0..100 {
        let directory = tree.path().join(format!("directory-{directory}"));
        fs::create_dir(&directory).unwrap();
        for file in 0..1500 {
            fs::write(directory.join(format!("file-{file}")), format!("{directory:?} {file}"))
                .unwrap();
        }
    }
    for file in 0..50_000 {
        fs::write(tree.path().join(format!("file-with-a-longer-name-{file}")), b"same").unwrap();
    }
    let mut numbers = corpus::Numbers(4);
    for file in 0..100 {
        fs::write(tree.path().join(format!("large-{file}")), numbers.bytes(1 << 20)).unwrap();
    }
    let archive = tempfile::NamedTempFile::new().unwrap();
    for compression in [Compression::Lz4, Compression::Zstd(15)] {
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let summary = write_to(tree.path(), &options(compression), archive.path()).unwrap();
        assert_eq!(summary.inodes, 200_201);
        let peak = peak() >> 10;
        println!("{compression:?}: {peak} MiB");
        assert!(peak <= 128, "{peak} MiB with {compression:?}");
    }
}
