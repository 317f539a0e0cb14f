//! Archives of ours must be read by the kernel and our reader, and hold what the tree did.

use crate::corpus_compare;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::support::corpus::{KernelMount, Numbers, huge_tree, is_root, varied_tree};
use crate::writer_support::{self, Compare, Written, assert_same_trees, memory_dir, options, pack};
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};
use thawfs::cache::FileBlob;
use thawfs::squashfs::write::{self, Compression, Options, Progress};
use thawfs::squashfs::{Archive, OpenOptions};

const LZ4: Compression = Compression::Lz4;
const ZSTD: Compression = Compression::Zstd(3);

fn open(path: &Path) -> Archive {
    Archive::open(Arc::new(FileBlob::open(path, 0).unwrap()), OpenOptions::default()).unwrap()
}

/// Mounts the archive with the kernel, and compares it with the tree and with what we read.
fn assert_kernel_agrees(tree: &Path, written: &Written) -> usize {
    let mount = KernelMount::new(&written.path(), 0).unwrap();
    let files = assert_same_trees(tree, mount.path(), Compare::Everything);
    let archive = open(&written.path());
    assert_eq!(corpus_compare::assert_same(&archive, mount.path()), files);
    files
}

#[test]
fn every_kind_of_file_survives_every_compressor_and_block_size() {
    if !is_root("every_kind_of_file_survives_every_compressor_and_block_size") {
        return;
    }
    let tree = varied_tree();
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let program = tree.path().join("program");
    lsetxattr(&program, "security.capability", capability, XattrFlags::empty()).unwrap();
    let cases = [
        (LZ4, 131_072, false),
        (LZ4, 4096, true),
        (ZSTD, 1 << 20, true),
        (Compression::Gzip(9), 131_072, false),
        (Compression::Gzip(1), 65_536, true),
        (Compression::Xz, 131_072, false),
        (Compression::Xz, 4096, false),
    ];
    for (compression, block_size, pack_tails) in cases {
        let written =
            pack(tree.path(), &Options { block_size, pack_tails, ..options(compression) });
        let files = assert_kernel_agrees(tree.path(), &written);
        assert!(files > 800, "{files} files of {compression:?}");
        assert_eq!(written.summary.size % 4096, 0);
        let xattrs = open(&written.path()).superblock().xattr_id_table;
        assert!(xattrs.is_some());
    }
}

#[test]
fn huge_files_are_holes_where_the_tree_has_holes() {
    if !is_root("huge_files_are_holes_where_the_tree_has_holes") {
        return;
    }
    let tree = huge_tree();
    // Past 4 GiB there is data, too: a second file that is the same is stored once.
    let copied = Command::new("cp")
        .arg("--sparse=always")
        .args([tree.path().join("holes"), tree.path().join("same-holes")])
        .status();
    assert!(copied.unwrap().success());
    let written = pack(tree.path(), &options(ZSTD));
    assert_kernel_agrees(tree.path(), &written);
    assert!(written.summary.bytes_used < 100_000, "{} bytes", written.summary.bytes_used);
}

#[test]
fn a_directory_of_70000_directories_has_an_index_that_finds_each() {
    if !is_root("a_directory_of_70000_directories_has_an_index_that_finds_each") {
        return;
    }
    let tree = memory_dir();
    for number in 0..70_000 {
        fs::create_dir(tree.path().join(number.to_string())).unwrap();
    }
    let written = pack(tree.path(), &options(LZ4));
    assert_eq!(written.summary.inodes, 70_001);
    let mount = KernelMount::new(&written.path(), 0).unwrap();
    assert_eq!(fs::metadata(mount.path()).unwrap().nlink(), 70_002);
    assert_eq!(fs::read_dir(mount.path()).unwrap().map(Result::unwrap).count(), 70_000);
    // The kernel takes 0.1 ms for each. The step is prime, so that all parts of the index and of
    // the metadata blocks that it leads to are looked at.
    for number in (0..70_000).step_by(97).chain([69_999]) {
        let meta = fs::symlink_metadata(mount.path().join(number.to_string())).unwrap();
        assert!(meta.is_dir(), "{number}");
    }
    for absent in ["-", "4444x", "70000", "99999x"] {
        let error = fs::symlink_metadata(mount.path().join(absent)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{absent}");
    }
}

#[test]
fn owners_are_kept_up_to_the_limit_and_refused_beyond() {
    if !is_root("owners_are_kept_up_to_the_limit_and_refused_beyond") {
        return;
    }
    let tree = memory_dir();
    let pipe = |number: u32| tree.path().join(number.to_string());
    let owners = |number: u32| (100_000 + number, 200_000 + number);
    let make = |number: u32| {
        mknodat(CWD, pipe(number), FileType::Fifo, Mode::from(0o600), 0).unwrap();
        let (uid, gid) = owners(number);
        std::os::unix::fs::lchown(pipe(number), Some(uid), Some(gid)).unwrap();
    };
    // Two each, and the root's own: 65,535.
    (0..32_767).for_each(make);
    let written = pack(tree.path(), &options(LZ4));
    let mount = KernelMount::new(&written.path(), 0).unwrap();
    for number in (0..32_767).step_by(61).chain([32_766]) {
        let meta = fs::symlink_metadata(mount.path().join(number.to_string())).unwrap();
        assert_eq!((meta.uid(), meta.gid()), owners(number), "owners of {number}");
    }
    drop(mount);
    make(32_767);
    let archive = tempfile::NamedTempFile::new().unwrap();
    let error = writer_support::write_to(tree.path(), &options(LZ4), archive.path()).unwrap_err();
    assert!(error.to_string().contains("more than 65535 distinct owners"), "{error}");
}

#[test]
fn an_inode_keeps_hundreds_of_names_and_times_become_the_nearest() {
    if !is_root("an_inode_keeps_hundreds_of_names_and_times_become_the_nearest") {
        return;
    }
    let tree = tempfile::tempdir().unwrap();
    for file in ["one-name", "many-names", "1960", "2150"] {
        fs::write(tree.path().join(file), file).unwrap();
    }
    mknodat(CWD, tree.path().join("pipe"), FileType::Fifo, Mode::from(0o600), 0).unwrap();
    for number in 0..300 {
        let directory = tree.path().join((number % 7).to_string());
        fs::create_dir_all(&directory).unwrap();
        for name in ["many-names", "pipe"] {
            fs::hard_link(tree.path().join(name), directory.join(format!("{name}-{number}")))
                .unwrap();
        }
    }
    let touch = |file: &str, time: &str| {
        let path = tree.path().join(file);
        let touched = Command::new("touch").args(["-d", time]).arg(&path).status();
        assert!(touched.unwrap().success());
    };
    touch("1960", "1960-01-01 UTC");
    touch("2150", "2150-01-01 UTC");
    let written = pack(tree.path(), &options(LZ4));
    assert_eq!(written.summary.inodes, 1 + 5 + 7);
    assert_kernel_agrees(tree.path(), &written);
    let mount = KernelMount::new(&written.path(), 0).unwrap();
    for (file, time) in [("1960", 0), ("2150", u32::MAX.into())] {
        assert_eq!(fs::metadata(mount.path().join(file)).unwrap().mtime(), time, "{file}");
    }
    for name in ["many-names", "pipe"] {
        assert_eq!(fs::metadata(mount.path().join(name)).unwrap().nlink(), 301, "{name}");
    }
}

#[test]
fn attributes_that_the_format_lacks_are_counted() {
    let tree = memory_dir();
    fs::create_dir(tree.path().join("d")).unwrap();
    for file in ["d/plain", "d/shared", "d/shared-too"] {
        fs::write(tree.path().join(file), b"").unwrap();
    }
    let none = pack(tree.path(), &options(LZ4)).summary.dropped_xattrs;
    assert_eq!(none, None);
    // A list as the system takes it: version 2, and owner, user 1, group, mask, others.
    let entries = [(1u16, 6u16, u32::MAX), (2, 4, 1), (4, 4, u32::MAX), (16, 4, u32::MAX)];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries.into_iter().chain([(32, 0, u32::MAX)]) {
        acl.extend([tag.to_le_bytes(), rights.to_le_bytes()].concat());
        acl.extend(id.to_le_bytes());
    }
    for (file, name) in [
        ("d", "system.posix_acl_access"),
        ("d", "system.posix_acl_default"),
        ("d/shared", "system.posix_acl_access"),
        ("d/shared-too", "system.posix_acl_access"),
    ] {
        lsetxattr(tree.path().join(file), name, &acl, XattrFlags::empty()).unwrap();
    }
    let some = pack(tree.path(), &options(LZ4)).summary.dropped_xattrs.unwrap();
    assert_eq!((some.inodes, some.path), (3, tree.path().join("d")));
    assert!(some.name.starts_with("system.posix_acl_"), "{}", some.name);
}

#[test]
fn the_same_tree_makes_the_same_bytes_with_any_number_of_threads() {
    if !is_root("the_same_tree_makes_the_same_bytes_with_any_number_of_threads") {
        return;
    }
    let tree = varied_tree();
    for compression in [LZ4, ZSTD] {
        let archives = [1, 2, 8].map(|threads| {
            let threads = NonZeroUsize::new(threads);
            let written = pack(tree.path(), &Options { threads, ..options(compression) });
            fs::read(written.path()).unwrap()
        });
        assert!(archives[0] == archives[1] && archives[1] == archives[2], "{compression:?}");
    }
}

#[test]
fn equal_files_are_stored_once() {
    let tree = memory_dir();
    let mut numbers = Numbers(3);
    for len in [100, 131_072, 1 << 20] {
        let bytes = numbers.bytes(len);
        for copy in 0..20 {
            fs::write(tree.path().join(format!("{len}-{copy}")), &bytes).unwrap();
        }
    }
    let all = pack(tree.path(), &options(LZ4)).summary.bytes_used;
    for copy in 1..20 {
        for len in [100, 131_072, 1 << 20] {
            fs::remove_file(tree.path().join(format!("{len}-{copy}"))).unwrap();
        }
    }
    let one = pack(tree.path(), &options(LZ4)).summary.bytes_used;
    assert!(all < one + 3000, "{all} bytes for 20 copies, {one} for one");
}

#[test]
fn a_deep_tree_does_not_use_up_descriptors() {
    let tree = memory_dir();
    let mut deep = tree.path().to_owned();
    for level in 0..700 {
        deep.push("d");
        fs::create_dir(&deep).unwrap();
        fs::write(deep.join("file"), format!("{level}")).unwrap();
        fs::create_dir(deep.join("e")).unwrap();
    }
    let written = pack(tree.path(), &options(LZ4));
    let archive = open(&written.path());
    assert_eq!(archive.walk().map(Result::unwrap).count(), 1 + 700 * 3);
}

#[test]
fn what_is_excluded_is_not_there() {
    let tree = tempfile::tempdir().unwrap();
    fs::create_dir_all(tree.path().join("a/skip/below")).unwrap();
    for file in ["a/keep", "a/skip/below/file", "skip"] {
        fs::write(tree.path().join(file), file).unwrap();
    }
    let archive = tempfile::NamedTempFile::new().unwrap();
    let mut sink = writer_support::FileSink(File::create(archive.path()).unwrap());
    let mut asked = std::sync::Mutex::new(Vec::new());
    let exclude = |path: &Path, is_directory: bool| {
        asked.lock().unwrap().push((path.to_str().unwrap().to_owned(), is_directory));
        path == Path::new("a/skip") && is_directory
    };
    let summary =
        write::archive(tree.path(), &options(LZ4), &exclude, &mut sink, &Progress::default())
            .unwrap();
    asked.get_mut().unwrap().sort();
    let named = |name: &str, is_directory| (name.to_owned(), is_directory);
    let expected =
        vec![named("a", true), named("a/keep", false), named("a/skip", true), named("skip", false)];
    assert_eq!(*asked.get_mut().unwrap(), expected);
    assert_eq!(summary.inodes, 4);
}

#[test]
fn an_archive_may_follow_the_data_of_another() {
    if !is_root("an_archive_may_follow_the_data_of_another") {
        return;
    }
    let tree = varied_tree();
    for compression in [LZ4, ZSTD] {
        let data_start = 1_000_000;
        let written = pack(tree.path(), &Options { data_start, ..options(compression) });
        let file = File::options().write(true).open(written.path()).unwrap();
        // What the kernel needs of lz4's options, which the other archive has there.
        std::os::unix::fs::FileExt::write_all_at(&file, &[8, 0x80, 1, 0, 0, 0, 0, 0, 0, 0], 96)
            .unwrap();
        drop(file);
        assert_kernel_agrees(tree.path(), &written);
    }
}

/// A random tree: what each directory, chosen by the first number, gets.
#[derive(Clone, Debug)]
enum Make {
    Directory,
    File { len: usize, seed: u64 },
    Zeros { len: usize },
    Link,
    HardLink { to: usize },
    Mode(u16),
    Xattr { len: usize, seed: u64 },
}

fn make() -> impl Strategy<Value = (usize, Vec<u8>, Make)> {
    let what = prop_oneof![
        2 => Just(Make::Directory),
        5 => (0..20_000usize, 0..4u64).prop_map(|(len, seed)| Make::File { len, seed }),
        1 => (0..20_000usize).prop_map(|len| Make::Zeros { len }),
        1 => Just(Make::Link),
        1 => (0..100usize).prop_map(|to| Make::HardLink { to }),
        1 => (0..0o7777u16).prop_map(Make::Mode),
        1 => (0..3000usize, 0..3u64).prop_map(|(len, seed)| Make::Xattr { len, seed }),
    ];
    let name = proptest::collection::vec(1u8..=255, 1..40)
        .prop_map(|name| name.into_iter().filter(|&b| b != b'/').chain(*b"x").collect());
    (0..1000usize, name, what)
}

fn grow(root: &Path, makes: Vec<(usize, Vec<u8>, Make)>) {
    let mut directories = vec![root.to_owned()];
    let mut files = Vec::new();
    for (place, name, what) in makes {
        let path = directories[place % directories.len()].join(OsStr::from_bytes(&name));
        if fs::symlink_metadata(&path).is_ok() {
            continue;
        }
        match what {
            Make::Directory => {
                fs::create_dir(&path).unwrap();
                directories.push(path);
            }
            Make::File { len, seed } => {
                fs::write(&path, Numbers(seed).bytes(len)).unwrap();
                files.push(path);
            }
            Make::Zeros { len } => fs::write(&path, vec![0; len]).unwrap(),
            Make::Link => std::os::unix::fs::symlink(OsStr::from_bytes(&name), &path).unwrap(),
            Make::HardLink { to } if !files.is_empty() => {
                fs::hard_link(&files[to % files.len()], &path).unwrap();
            }
            Make::Mode(mode) if !files.is_empty() => {
                let file = &files[place % files.len()];
                fs::set_permissions(file, fs::Permissions::from_mode(mode.into())).unwrap();
            }
            Make::Xattr { len, seed } if !files.is_empty() => {
                let value = Numbers(seed).bytes(len);
                let file = &files[place % files.len()];
                lsetxattr(file, "trusted.x", &value, XattrFlags::empty()).unwrap();
            }
            _ => {}
        }
    }
}

#[test]
fn random_trees_survive() {
    if !is_root("random_trees_survive") {
        return;
    }
    let config = ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() };
    proptest!(config, |(
        makes in proptest::collection::vec(make(), 1..120),
        pack_tails in any::<bool>(),
        log in 12..15u32,
    )| {
        let tree = memory_dir();
        grow(tree.path(), makes);
        let block_size = 1 << log;
        let written = pack(tree.path(), &Options { block_size, pack_tails, ..options(LZ4) });
        if pack_tails {
            // Linux 6.18 answers SEEK_HOLE with EIO in some files whose ends are in fragments, in
            // mksquashfs's archives as in ours: there only the contents are compared.
            let mount = KernelMount::new(&written.path(), 0).unwrap();
            assert_same_trees(tree.path(), mount.path(), Compare::Everything);
        } else {
            assert_kernel_agrees(tree.path(), &written);
        }
    });
}
