//! What reading costs the blob below: how often it is asked, and for what.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::corpus::pack;
use bytes::Bytes;
use parking_lot::Mutex;
use thawfs::cache::{Blob, Error as BlobError, MemoryBlob};
use thawfs::squashfs::{Archive, DirCursor, Error, Inode, OpenOptions};
use thawfs::types::{ByteRange, FileKind, FileOffset};

const OPTIONS: OpenOptions =
    OpenOptions { decoded_bytes: 4 << 20, metadata_bytes: 1 << 20, resident_bytes: 1 << 20 };

/// A blob that has only its end in memory, counts what it is asked for, and fails on demand.
struct Remote {
    bytes: MemoryBlob,
    /// How much of the end is in memory.
    tail: u64,
    fetches: Mutex<Vec<Vec<ByteRange>>>,
    failing: AtomicBool,
}

impl Remote {
    fn new(archive: Vec<u8>) -> Arc<Self> {
        Self::with_tail(archive, 0)
    }

    fn with_tail(archive: Vec<u8>, tail: u64) -> Arc<Self> {
        Arc::new(Self {
            bytes: MemoryBlob(archive.into()),
            tail,
            fetches: Mutex::new(Vec::new()),
            failing: AtomicBool::new(false),
        })
    }

    fn taken(&self) -> Vec<Vec<ByteRange>> {
        std::mem::take(&mut self.fetches.lock())
    }
}

impl Blob for Remote {
    fn size(&self) -> u64 {
        self.bytes.size()
    }

    fn get(&self, range: ByteRange) -> Option<Bytes> {
        (range.start().0 + self.tail >= self.size()).then(|| self.bytes.get(range)).flatten()
    }

    fn fetch(&self, ranges: &[ByteRange]) -> Result<Vec<Bytes>, BlobError> {
        self.fetches.lock().push(ranges.to_vec());
        std::thread::sleep(Duration::from_millis(5));
        if self.failing.load(Ordering::Relaxed) {
            return Err(BlobError::Io(Arc::new(std::io::Error::other("on purpose"))));
        }
        self.bytes.fetch(ranges)
    }

    fn prefetch(&self, _: ByteRange) {}
}

/// An archive of a file of 20 blocks of 4 KiB and a tail, whose contents come with it, and of small
/// files.
fn packed() -> (Arc<Remote>, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    // Text, so that every block is worth compressing: blocks stored as they are belong to the blob.
    let text: String = (0..30_000).map(|number| format!("line {number}\n")).collect();
    let contents = text.as_bytes()[..20 * 4096 + 1000].to_vec();
    fs::write(dir.path().join("large"), &contents).unwrap();
    for file in 0..100 {
        fs::write(dir.path().join(format!("small-{file:02}")), &contents[file..file + 30]).unwrap();
    }
    let packed = pack(dir.path(), &["-comp", "lz4", "-b", "4K", "-always-use-fragments"]);
    (Remote::new(fs::read(packed.path()).unwrap()), contents)
}

fn find(archive: &Archive, name: &str) -> Inode {
    let root = archive.inode(archive.root()).unwrap();
    let entry = archive.lookup(&root, name.as_bytes()).unwrap().expect("it was packed");
    archive.inode(entry.inode).unwrap()
}

#[test]
fn with_all_metadata_at_hand_opening_fetches_what_comes_first_and_then_none() {
    let (remote, _) = packed();
    let remote = Remote::with_tail(remote.bytes.0.to_vec(), 8 << 10);
    let archive = Archive::open(remote.clone(), OPTIONS).unwrap();
    assert_eq!(remote.taken().len(), 2, "the superblock, and lz4's options behind it");
    assert!(archive.metadata_resident());
    for entry in archive.walk() {
        let inode = entry.unwrap().inode;
        archive.xattrs(&inode).unwrap();
        archive.inode_by_number(inode.number).unwrap();
        if inode.kind == FileKind::Directory {
            assert_eq!(archive.read_dir(&inode, DirCursor::START).unwrap().count(), 101);
        }
    }
    assert_eq!(remote.taken(), Vec::<Vec<ByteRange>>::new());
}

/// An archive of 10,000 files, whose metadata is some 340 KB.
fn packed_many() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    for file in 0..10_000 {
        fs::write(dir.path().join(format!("{file}")), format!("{file}")).unwrap();
    }
    let packed = pack(dir.path(), &["-comp", "lz4", "-noI"]);
    fs::read(packed.path()).unwrap()
}

#[test]
fn metadata_that_is_not_at_hand_is_fetched_once_and_whole() {
    let bytes = packed_many();
    // All but the start of the inode table.
    let remote = Remote::with_tail(bytes, 270 << 10);
    let archive = Archive::open(remote.clone(), OPTIONS).unwrap();
    assert!(!archive.metadata_resident());
    let root = archive.inode(archive.root()).unwrap();
    assert_eq!(archive.read_dir(&root, DirCursor::START).unwrap().count(), 10_000);
    let opening = remote.taken();
    assert!(!archive.metadata_resident(), "listing the root needs none of what is missing");

    remote.failing.store(true, Ordering::Relaxed);
    assert!(archive.hold_metadata().is_err());
    assert!(archive.walk().any(|entry| entry.is_err()));
    remote.failing.store(false, Ordering::Relaxed);
    remote.taken();

    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(archive.walk().filter(Result::is_ok).count(), 10_001));
        }
    });
    assert!(archive.metadata_resident());
    let whole = |range: &ByteRange| range.len() > 270 << 10;
    let fetched: Vec<ByteRange> = remote.taken().into_iter().flatten().collect();
    assert_eq!(fetched.iter().filter(|range| whole(range)).count(), 1, "{fetched:?}");
    assert!(!opening.iter().flatten().any(whole), "{opening:?}");
    archive.hold_metadata().unwrap();
    assert_eq!(archive.walk().filter(Result::is_ok).count(), 10_001);
    assert_eq!(remote.taken(), Vec::<Vec<ByteRange>>::new());
}

#[test]
fn metadata_that_is_not_resident_is_fetched_by_the_block_and_kept() {
    let (remote, _) = packed();
    let archive =
        Archive::open(remote.clone(), OpenOptions { resident_bytes: 0, ..OPTIONS }).unwrap();
    assert!(!archive.metadata_resident());
    remote.taken();
    let blocks = archive.counters().metadata.decodes;
    assert_eq!(archive.walk().filter(Result::is_ok).count(), 102);
    let fetched = remote.taken().len() as u64;
    assert!(fetched > 0);
    assert_eq!(fetched, archive.counters().metadata.decodes - blocks);
    assert_eq!(archive.walk().filter(Result::is_ok).count(), 102);
    assert_eq!(remote.taken(), Vec::<Vec<ByteRange>>::new());
}

#[test]
fn an_archive_is_shared_between_threads() {
    fn assert_shared<T: Send + Sync>() {}
    assert_shared::<Archive>();
}

#[test]
fn a_read_fetches_all_it_lacks_at_once_and_nothing_twice() {
    let (remote, contents) = packed();
    let archive = Archive::open(remote.clone(), OPTIONS).unwrap();
    let large = find(&archive, "large");
    remote.taken();

    assert_eq!(archive.get(&large, FileOffset(5 * 4096), 1), None);
    assert_eq!(
        archive.read(&large, FileOffset(5 * 4096 + 7), 10).unwrap(),
        contents[20_487..20_497]
    );
    let fetches = remote.taken();
    assert_eq!(fetches.len(), 1);
    assert_eq!(fetches[0].len(), 1, "one block for ten bytes: {fetches:?}");

    assert_eq!(archive.read(&large, FileOffset(0), contents.len()).unwrap(), contents);
    let fetches = remote.taken();
    assert_eq!(fetches.len(), 1);
    assert_eq!(fetches[0].len(), 20, "19 more blocks and the fragment: {fetches:?}");

    assert_eq!(archive.get(&large, FileOffset(0), contents.len()).unwrap(), contents);
    assert_eq!(archive.read(&large, FileOffset(0), contents.len()).unwrap(), contents);
    assert_eq!(remote.taken(), Vec::<Vec<ByteRange>>::new());
}

#[test]
fn small_files_of_one_fragment_cost_one_fetch() {
    let (remote, _) = packed();
    let archive = Archive::open(remote.clone(), OPTIONS).unwrap();
    archive.read(&find(&archive, "small-00"), FileOffset(0), 30).unwrap();
    remote.taken();
    for file in 1..100 {
        let small = find(&archive, &format!("small-{file:02}"));
        assert_eq!(archive.get(&small, FileOffset(0), 100).unwrap().len(), 30);
    }
    assert_eq!(remote.taken(), Vec::<Vec<ByteRange>>::new());
}

#[test]
fn readers_of_one_block_share_its_fetch_and_its_decode() {
    let (remote, contents) = packed();
    let archive = Archive::open(remote.clone(), OPTIONS).unwrap();
    let large = find(&archive, "large");
    remote.taken();
    let before = archive.counters().data;
    std::thread::scope(|scope| {
        for reader in 0..16 {
            let (archive, large, contents) = (&archive, &large, &contents);
            scope.spawn(move || {
                // Overlapping stretches, some from either end: nobody may wait in a circle.
                let start = reader % 4 * 4096;
                let end = contents.len() - reader / 4 * 4096;
                let read = archive.read(large, FileOffset(start as u64), end - start).unwrap();
                assert!(read == contents[start..end]);
            });
        }
    });
    let after = archive.counters().data;
    assert_eq!(after.decodes - before.decodes, 21, "each block once");
    let fetched: usize = remote.taken().iter().map(Vec::len).sum();
    assert_eq!(fetched, 21, "each block once");
}

#[test]
fn a_failed_fetch_is_reported_as_such_and_not_remembered() {
    let (remote, contents) = packed();
    let archive = Archive::open(remote.clone(), OPTIONS).unwrap();
    let large = find(&archive, "large");
    remote.failing.store(true, Ordering::Relaxed);
    let error = archive.read(&large, FileOffset(0), contents.len()).unwrap_err();
    assert!(matches!(error, Error::Blob(_)), "{error}");
    remote.failing.store(false, Ordering::Relaxed);
    assert_eq!(archive.read(&large, FileOffset(0), contents.len()).unwrap(), contents);
}

#[test]
fn a_slice_of_one_block_is_not_copied() {
    let (remote, _) = packed();
    let archive = Archive::open(remote, OPTIONS).unwrap();
    let large = find(&archive, "large");
    let first = archive.read(&large, FileOffset(10), 100).unwrap();
    let again = archive.get(&large, FileOffset(20), 100).unwrap();
    assert_eq!(again.as_ptr() as usize - first.as_ptr() as usize, 10);
}
