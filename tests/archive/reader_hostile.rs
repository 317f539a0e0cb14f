//! Damaged archives: nothing panics or hangs, and where the kernel gets through we say the same.

use crate::targets;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::support::corpus::{KernelMount, Numbers, is_root, pack};
use bytes::Bytes;
use thawfs::cache::MemoryBlob;
use thawfs::squashfs::{Archive, Error, OpenOptions};
use thawfs::types::{FileKind, FileOffset};

/// A tree small enough that most damage hits something.
fn small_archive(args: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let mut numbers = Numbers(3);
    for len in [0, 10, 5000, 20_000] {
        fs::write(dir.path().join(format!("file-{len}")), numbers.bytes(len)).unwrap();
    }
    let wide = dir.path().join("wide");
    fs::create_dir(&wide).unwrap();
    for entry in 0..100 {
        std::os::unix::fs::symlink("target", wide.join(format!("{entry:03}"))).unwrap();
    }
    fs::read(pack(dir.path(), &[&["-b", "4K"], args].concat()).path()).unwrap()
}

fn archives() -> Vec<Vec<u8>> {
    ["gzip", "lzo", "lz4", "xz", "zstd"]
        .iter()
        .map(|compressor| small_archive(&["-comp", compressor]))
        .chain([small_archive(&["-noI", "-noD", "-noF", "-noX"])])
        .collect()
}

/// Damages up to eight bytes, in metadata, the superblock and its tables more often than in data.
fn damage(archive: &mut Vec<u8>, numbers: &mut Numbers) {
    let used = u64::from_le_bytes(archive[40..48].try_into().unwrap());
    let inode_table = u64::from_le_bytes(archive[64..72].try_into().unwrap());
    for _ in 0..=numbers.below(8) {
        let at = match numbers.below(4) {
            0 => numbers.below(96),
            1 => numbers.below(used),
            _ => inode_table + numbers.below(used - inode_table),
        };
        let byte = &mut archive[at as usize];
        *byte = match numbers.below(3) {
            0 => numbers.next() as u8,
            1 => *byte ^ (1 << numbers.below(8)),
            _ => [0, 0xff][numbers.below(2) as usize],
        };
    }
    if numbers.below(20) == 0 {
        archive.truncate(numbers.below(used) as usize);
    }
}

/// What this thread has had of a processor; on a machine that is busy with other things less than the time.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn damaged_archives_neither_panic_nor_hang() {
    let archives = archives();
    let mut numbers = Numbers(11);
    for round in 0..3000 {
        let mut archive = archives[round % archives.len()].clone();
        damage(&mut archive, &mut numbers);
        let before = processor_time();
        targets::archive(&archive);
        let took = processor_time() - before;
        assert!(took < Duration::from_secs(5), "round {round} took {took:?}");
    }
}

/// The kernel's lz4 takes a match offset of zero, and shows what its buffer held before.
fn is_stricter(error: &Error) -> bool {
    error.to_string().contains("lz4: 0 is not a valid match offset")
}

/// Everything of one file that both sides must agree on. The kernel caches inodes by number, so a
/// damaged number can show it another file's; such are told by their size, kind and number.
fn compare(archive: &Archive, mount: &Path) -> usize {
    let mut compared = 0;
    for entry in archive.walk().flatten() {
        let path = mount.join(OsStr::from_bytes(&entry.path));
        let inode = &entry.inode;
        let Ok(theirs) = fs::symlink_metadata(&path) else { continue };
        let mode = inode.kind.mode_bits() | u32::from(inode.permissions);
        if theirs.ino() != u64::from(inode.number.0) || theirs.mode() != mode {
            continue;
        }
        match inode.kind {
            FileKind::Regular if theirs.len() == inode.size && inode.size < 1 << 20 => {
                if let Ok(theirs) = fs::read(&path) {
                    match archive.read(inode, FileOffset(0), 1 << 20) {
                        Ok(ours) => assert!(ours == theirs, "contents of {path:?}"),
                        Err(error) => assert!(is_stricter(&error), "{path:?}: {error}"),
                    }
                    compared += 1;
                }
            }
            FileKind::Symlink => {
                if let Ok(theirs) = fs::read_link(&path) {
                    let ours = archive.read_link(inode).unwrap();
                    assert_eq!(ours, theirs.as_os_str().as_bytes(), "target of {path:?}");
                    compared += 1;
                }
            }
            _ => {}
        }
    }
    compared
}

#[test]
fn what_the_kernel_makes_of_a_damaged_archive_we_make_too() {
    if !is_root("what_the_kernel_makes_of_a_damaged_archive_we_make_too") {
        return;
    }
    let archives = archives();
    let mut numbers = Numbers(12);
    let (mut mounted, mut refused, mut compared) = (0, 0, 0);
    let dir = tempfile::tempdir().unwrap();
    for round in 0..600 {
        let mut archive = archives[round % archives.len()].clone();
        damage(&mut archive, &mut numbers);
        // A loop device has whole sectors only.
        archive.resize(archive.len().next_multiple_of(512), 0);
        // A file of its own each time, or mount(8) might take a loop device with the last one's
        // bytes for it.
        let path = dir.path().join(format!("data-{round}.sqsh"));
        fs::write(&path, &archive).unwrap();
        let ours =
            Archive::open(Arc::new(MemoryBlob(Bytes::from(archive))), OpenOptions::default());
        match (KernelMount::new(&path, 0), ours) {
            (Ok(mount), Ok(ours)) => {
                mounted += 1;
                compared += compare(&ours, mount.path());
            }
            (Err(_), Err(_)) => refused += 1,
            (Ok(_), Err(error)) if is_stricter(&error) => {}
            (Ok(_), Err(error)) => panic!("round {round}: the kernel mounts it; {error}"),
            (Err(error), Ok(_)) => panic!("round {round}: the kernel refuses it: {error}"),
        }
    }
    println!("{mounted} mounted with {compared} files compared, {refused} refused");
    assert!(mounted > 50 && refused > 50 && compared > 1000);
}

/// Overwrites what is at `at`.
fn patch(archive: &mut [u8], at: u64, bytes: &[u8]) {
    archive[at as usize..][..bytes.len()].copy_from_slice(bytes);
}

#[test]
fn errors_name_the_structure_and_its_offset() {
    let sound = small_archive(&["-noI", "-noD", "-noF", "-noX"]);
    let table = |field: usize| u64::from_le_bytes(sound[field..field + 8].try_into().unwrap());
    let (ids, inodes, listings) = (table(48), table(64), table(72));
    type Case<'a> = (u64, &'a [u8], &'a str, u64);
    let cases: &[Case<'_>] = &[
        (40, &u64::MAX.to_le_bytes(), "superblock", 0),
        (26, &[0, 0], "id table", ids),
        (72, &inodes.to_le_bytes(), "inode table", inodes),
        (48, &(ids + 8).to_le_bytes(), "id table", ids + 8),
        // A metadata block that claims more than 8 KiB.
        (inodes, &8193u16.to_le_bytes(), "inode", inodes),
        // The first group of entries has too many.
        (listings + 2, &256u32.to_le_bytes(), "directory", listings),
    ];
    for (at, bytes, structure, offset) in cases {
        let mut archive = sound.clone();
        patch(&mut archive, *at, bytes);
        let opened = Archive::open(Arc::new(MemoryBlob(archive.into())), OpenOptions::default());
        let error = match opened {
            Ok(archive) => archive.walk().find_map(Result::err).expect("nothing is wrong"),
            Err(error) => error,
        };
        match error {
            Error::Corrupt { structure: named, at, .. } => {
                assert_eq!((named, at.0), (*structure, *offset), "{error}");
            }
            error => panic!("{structure} at {offset}: {error}"),
        }
    }
}

#[test]
fn a_directory_that_contains_itself_does_not_trap_a_walk() {
    let mut archive = small_archive(&["-noI", "-noD", "-noF", "-noX"]);
    let field = |at: usize| u64::from_le_bytes(archive[at..at + 8].try_into().unwrap());
    let (root, listings, fragments) = (field(32), field(72), field(80));
    // The root's entry for "wide" names the root's own inode.
    let table = &archive[listings as usize..fragments as usize];
    let name = table.windows(4).rposition(|bytes| bytes == b"wide").unwrap() as u64;
    let entry = listings + name - 8;
    patch(&mut archive, entry, &(root as u16).to_le_bytes());
    let archive =
        Archive::open(Arc::new(MemoryBlob(archive.into())), OpenOptions::default()).unwrap();
    let errors: Vec<_> = archive.walk().filter_map(Result::err).map(|e| e.to_string()).collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("a directory with a second name"), "{errors:?}");
}
