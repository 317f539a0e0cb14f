//! Trees that change, or that we may not read, and trees so large that memory must not follow.

use std::fs::{self, File};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::support::again::{assert_passed, only};
use crate::support::corpus::{self, is_root};
use crate::writer_support::{self, memory_dir, options, write_to};
use bytes::Bytes;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use thawfs::cache::FileBlob;
use thawfs::squashfs::write::{self, Compression, Error, Options, Progress, Sink};
use thawfs::squashfs::{Archive, OpenOptions};
use thawfs::types::{FileKind, FileOffset};

/// Names the tree that a test packs when it is run again, in other circumstances.
const AGAIN: &str = "THAWFS_TEST_TREE";

/// Takes all bytes and keeps none.
struct Nowhere;

impl Sink for Nowhere {
    fn write(&mut self, _: Bytes) -> io::Result<()> {
        Ok(())
    }
}

/// Packs a tree to nowhere.
fn try_to_pack(tree: &Path, options: &Options) -> Result<write::Summary, Error> {
    write::archive(tree, options, &|_, _| false, &mut Nowhere, &Progress::default())
}

/// Runs the test `test` again by way of a command, with `tree` to pack.
fn run_again(test: &str, command: &[&str], tree: &Path) {
    // The program must be where any user can run it.
    let dir = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let output = Command::new(command[0])
        .args(&command[1..])
        .arg(&program)
        .args(only(module_path!(), test))
        .env(AGAIN, tree)
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert_passed(&output);
}

#[test]
fn everything_unreadable_is_listed() {
    const TEST: &str = "everything_unreadable_is_listed";
    if let Some(tree) = std::env::var_os(AGAIN) {
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
    let as_user =
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
    run_again(TEST, &as_user, root);
}

fn pack_unreadable(tree: &Path) {
    let error = try_to_pack(tree, &options(Compression::Lz4)).unwrap_err();
    let Error::Unreadable { paths } = &error else { panic!("{error}") };
    let expected: Vec<PathBuf> =
        ["a/2", "b/closed", "c/3", "z"].iter().map(|path| tree.join(path)).collect();
    assert_eq!(*paths, expected);
    assert!(error.hint().unwrap().contains("chmod -R a+rX"));
}

#[test]
fn notes_that_find_no_room_are_told_from_a_full_archive() {
    const TEST: &str = "notes_that_find_no_room_are_told_from_a_full_archive";
    // Blocks enough that where they are takes more memory than is taken.
    let small_blocks = Options { block_size: 4096, ..options(Compression::Lz4) };
    if let Some(tree) = std::env::var_os(AGAIN) {
        let error = try_to_pack(Path::new(&tree), &small_blocks).unwrap_err();
        let Error::Scratch { source } = &error else { panic!("{error}") };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().contains("/mnt"), "{error}");
        assert!(error.hint().unwrap().contains("TMPDIR"));
        return;
    }
    if !is_root(TEST) {
        return;
    }
    let tree = tempfile::tempdir().unwrap();
    File::create(tree.path().join("hole")).unwrap().set_len(2 << 30).unwrap();
    assert_eq!(try_to_pack(tree.path(), &small_blocks).unwrap().inodes, 2, "with room");
    let full = "mount -t tmpfs -o size=64k none /mnt && TMPDIR=/mnt exec \"$@\"";
    run_again(TEST, &["unshare", "--mount", "sh", "-c", full, "sh"], tree.path());
}

#[test]
fn links_are_not_lost_where_proc_is_missing() {
    const TEST: &str = "links_are_not_lost_where_proc_is_missing";
    if let Some(tree) = std::env::var_os(AGAIN) {
        let error = try_to_pack(Path::new(&tree), &options(Compression::Lz4)).unwrap_err();
        assert!(error.to_string().starts_with("llistxattr /proc/self/fd/"), "{error}");
        return;
    }
    if !is_root(TEST) {
        return;
    }
    let tree = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("nowhere", tree.path().join("link")).unwrap();
    assert_eq!(try_to_pack(tree.path(), &options(Compression::Lz4)).unwrap().inodes, 2);
    let without = "mount -t tmpfs none /proc && exec \"$@\"";
    run_again(TEST, &["unshare", "--mount", "sh", "-c", without, "sh"], tree.path());
}

/// What an entry is, or turns into after its directory was listed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Is {
    File,
    Link,
    Pipe,
    Directory,
    Gone,
}

impl Is {
    fn make(self, path: &Path) {
        match self {
            Self::File => fs::write(path, b"file").unwrap(),
            Self::Link => std::os::unix::fs::symlink("target", path).unwrap(),
            Self::Pipe => mknodat(CWD, path, FileType::Fifo, Mode::from(0o600), 0).unwrap(),
            Self::Directory => fs::create_dir(path).unwrap(),
            Self::Gone => {}
        }
    }

    fn remove(self, path: &Path) {
        match self {
            Self::Directory => fs::remove_dir(path).unwrap(),
            _ => fs::remove_file(path).unwrap(),
        }
    }
}

#[test]
fn entries_that_are_replaced_while_the_tree_is_walked_are_packed_as_what_they_are() {
    use Is::*;
    for (before, after, packed) in [
        (File, Gone, Some(None)),
        (Link, Gone, Some(None)),
        (Directory, Gone, Some(None)),
        (File, Link, Some(Some(FileKind::Symlink))),
        (File, Pipe, Some(Some(FileKind::Fifo))),
        (Link, File, Some(Some(FileKind::Regular))),
        (Pipe, File, Some(Some(FileKind::Regular))),
        (Pipe, Link, Some(Some(FileKind::Symlink))),
        // What is a directory decides the order of the walk.
        (File, Directory, None),
        (Link, Directory, None),
        (Directory, File, None),
        (Directory, Link, None),
    ] {
        let tree = tempfile::tempdir().unwrap();
        let path = tree.path().join("entry");
        before.make(&path);
        // Asked between the listing of the directory and the reading of its entries.
        let replace = |_: &Path, _: bool| {
            before.remove(&path);
            after.make(&path);
            false
        };
        let archive = tempfile::NamedTempFile::new().unwrap();
        let mut sink = writer_support::FileSink(fs::File::create(archive.path()).unwrap());
        sink.0.write_all(&[0; 96]).unwrap();
        let options = options(Compression::Lz4);
        let progress = Progress::default();
        let result = write::archive(tree.path(), &options, &replace, &mut sink, &progress);
        let Some(packed) = packed else {
            let error = result.unwrap_err();
            assert!(
                matches!(&error, Error::Changed { path: it } if *it == path),
                "{before:?}, then {after:?}: {error}"
            );
            continue;
        };
        sink.0.write_all_at(&result.unwrap().superblock, 0).unwrap();
        let blob = Arc::new(FileBlob::open(archive.path(), 0).unwrap());
        let archive = Archive::open(blob, OpenOptions::default()).unwrap();
        let found = archive.walk().map(Result::unwrap).find(|entry| entry.path == b"entry");
        assert_eq!(found.map(|it| it.inode.kind), packed, "{before:?}, then {after:?}");
    }
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

/// How a file of the tree changes while it is read, which is longer than all queues.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// Five bytes are appended, so many times.
    Append(u32),
    /// Its first bytes are written again, so many times.
    Overwrite(u32),
    /// Both, each time.
    Rewrite,
}

/// Changes a file whenever the archive grows.
struct Changing {
    file: File,
    change: Change,
    archive: writer_support::FileSink,
}

impl Sink for Changing {
    fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        if self.archive.0.metadata()?.len() > 100_000 {
            match &mut self.change {
                Change::Append(0) | Change::Overwrite(0) => {}
                Change::Append(times) => {
                    *times -= 1;
                    self.file.write_all_at(b"line\n", self.file.metadata()?.len())?;
                }
                Change::Overwrite(times) => {
                    *times -= 1;
                    self.file.write_all_at(b"other", 0)?;
                }
                Change::Rewrite => {
                    let len = self.file.metadata()?.len();
                    self.file.write_all_at(&len.to_le_bytes(), 0)?;
                    self.file.write_all_at(b"page", len)?;
                }
            }
        }
        self.archive.write(bytes)
    }
}

#[test]
fn a_file_that_changes_is_packed_as_it_was_at_one_time_or_refused() {
    // Several times what all queues hold of such blocks, with two threads.
    const LEN: usize = 1 << 20;
    let tree = tempfile::tempdir().unwrap();
    let path = tree.path().join("log");
    let archive = tempfile::NamedTempFile::new().unwrap();
    let before = corpus::Numbers(2).bytes(LEN);
    for (change, packed) in [
        (Change::Append(0), true),
        (Change::Append(1), true),
        (Change::Append(u32::MAX), true),
        (Change::Overwrite(1), true),
        (Change::Overwrite(u32::MAX), false),
        (Change::Rewrite, false),
    ] {
        fs::write(&path, &before).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let mut to = File::create(archive.path()).unwrap();
        to.write_all(&[0; 96]).unwrap();
        let mut sink = Changing { file, change, archive: writer_support::FileSink(to) };
        let threads = NonZeroUsize::new(2);
        let options = Options { block_size: 4096, threads, ..options(Compression::Lz4) };
        let progress = Progress::default();
        let result = write::archive(tree.path(), &options, &|_, _| false, &mut sink, &progress);
        if !packed {
            let error = result.unwrap_err();
            assert!(matches!(&error, Error::Changed { path: it } if *it == path), "{error}");
            continue;
        }
        sink.archive.0.write_all_at(&result.unwrap().superblock, 0).unwrap();
        let bytes = read(archive.path(), b"log");
        let after = fs::read(&path).unwrap();
        match change {
            // Some of the lines: the file was never at rest.
            Change::Append(u32::MAX) => {
                assert!((LEN + 5..after.len()).contains(&bytes.len()), "{} bytes", bytes.len());
                assert_eq!((bytes.len() - LEN) % 5, 0);
                assert!(after.starts_with(&bytes));
            }
            _ => assert!(bytes == after, "{change:?}"),
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
    let tree = memory_dir();
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
    // In memory, since it is many files; that does not count as this process's.
    let tree = memory_dir();
    let mut numbers = corpus::Numbers(4);
    for file in 0..16 {
        fs::write(tree.path().join(format!("large-{file}")), numbers.bytes(2 << 20)).unwrap();
    }
    let options = options(Compression::Lz4);
    let archive = tempfile::NamedTempFile::new().unwrap();
    let measure = || {
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let inodes = write_to(tree.path(), &options, archive.path()).unwrap().inodes;
        (peak(), inodes)
    };
    let long = "n".repeat(250);
    let grow = |directories: std::ops::Range<u32>| {
        for directory in directories {
            let directory = tree.path().join(directory.to_string());
            fs::create_dir(&directory).unwrap();
            for file in 0..400 {
                fs::write(directory.join(format!("{long}{file}")), file.to_string()).unwrap();
            }
        }
    };
    grow(0..40);
    let (before, inodes) = measure();
    assert_eq!(inodes, 1 + 16 + 40 * 401);
    grow(40..80);
    let (after, inodes) = measure();
    assert_eq!(inodes, 1 + 16 + 80 * 401);
    // 16,000 more names of 250 bytes, and as many inodes.
    println!("{before} KiB, {after} KiB");
    assert!(after <= 64 << 10, "{after} KiB");
    assert!(after < before + 4096, "{before} KiB became {after} KiB");
}
