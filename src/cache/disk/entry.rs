//! One archive on disk: what it is, and its chunks.
//!
//! An archive has three files: `STEM.about` says in JSON what is cached, is locked by everybody who
//! uses it and was modified when it was last used; `STEM.index` has a record for each chunk;
//! `STEM.data` has the chunks where the archive has them, and holes elsewhere.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

use super::index::{Damaged, Files, Index};
use super::records::{self, Record, checksum};
use crate::buffers;
use crate::cache::grid::Grid;

/// Most chunks of an archive. A larger one (2 TiB) is not cached: its bits would take more memory
/// than 4 MiB.
const MOST_CHUNKS: u64 = 1 << 25;

/// Most bytes of a description.
const ABOUT_LIMIT: u64 = 64 << 10;

/// How often an archive that is just being removed is looked at again, and after what time.
const PATIENCE: (u32, Duration) = (20, Duration::from_millis(5));

/// The endings of an archive's files. The description comes last: it is removed last, so that what
/// is left by a process that was killed still has one.
pub(super) const ENDINGS: [&str; 3] = ["data", "index", "about"];

/// What is cached: one version of one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cache) struct About {
    /// The object's name as it may be shown.
    pub(in crate::cache) name: String,
    /// Its version.
    pub(in crate::cache) etag: String,
    /// Its size in bytes.
    pub(in crate::cache) size: u64,
    /// Where in it the blob begins, in bytes.
    pub(in crate::cache) offset: u64,
    /// Size of a chunk in bytes.
    pub(in crate::cache) chunk: u64,
    /// The first bytes of the blob in hexadecimal, of an archive its superblock: what two URLs that
    /// differ in their query name may have the same version by chance.
    pub(in crate::cache) start: String,
}

impl About {
    /// The description in a file that [`open_file`] opened; `None` for garbage.
    pub(super) fn read(file: &File) -> Option<Self> {
        let mut bytes =
            vec![0; usize::try_from(file.metadata().ok()?.len().min(ABOUT_LIMIT)).ok()?];
        file.read_exact_at(&mut bytes, 0).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// How the blob is cut; `None` if that makes no sense.
    pub(in crate::cache) fn grid(&self) -> Option<Grid> {
        let size = self.size.checked_sub(self.offset)?;
        (self.chunk > 0).then_some(Grid { chunk: self.chunk, size })
    }
}

/// The first half of a stem: the same for every version of what is read at `offset` of an object.
/// `place` tells apart objects of one name on different servers.
pub(super) fn place_stem(place: &str, offset: u64, chunk: u64) -> String {
    let text = format!("{offset} {chunk} {place}");
    format!("{:032x}", XxHash3_128::oneshot(text.as_bytes()))
}

/// Opens one of the files of an archive, never through a symlink.
pub(super) fn open_file(dir: &OwnedFd, stem: &str, ending: &str, make: bool) -> io::Result<File> {
    let name = format!("{stem}.{ending}");
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let flags = if make { flags | OFlags::CREATE } else { flags };
    let file = rustix::fs::openat(dir.as_fd(), name, flags, Mode::RUSR | Mode::WUSR)?;
    Ok(File::from(file))
}

/// The index and the chunks of an archive.
#[derive(Debug)]
pub(super) struct ArchiveFiles {
    pub(super) grid: Grid,
    seed: u64,
    index: File,
    data: File,
}

impl ArchiveFiles {
    /// Opens them, made if there are none and `make` says so.
    pub(super) fn open(dir: &OwnedFd, stem: &str, grid: Grid, make: bool) -> io::Result<Self> {
        let seed = XxHash3_128::oneshot(stem.as_bytes()) as u64;
        let index = open_file(dir, stem, "index", make)?;
        let data = open_file(dir, stem, "data", make)?;
        Ok(Self { grid, seed, index, data })
    }

    /// Goes through the records of chunks that are there.
    pub(super) fn for_each(&self, each: impl FnMut(u64, Record)) -> io::Result<()> {
        records::for_each(&self.index, self.grid.count(), each)
    }
}

impl Files for ArchiveFiles {
    type Record = Record;
    type Chunk = Bytes;

    fn are_present(&self, chunks: Range<u64>) -> io::Result<Vec<bool>> {
        Ok(records::read(&self.index, chunks)?.iter().map(Record::is_present).collect())
    }

    fn record(&self, chunk: u64) -> Option<Record> {
        let records = records::read(&self.index, chunk..chunk + 1).ok()?;
        records.first().copied().filter(Record::is_present)
    }

    fn set_record(&self, chunk: u64, record: Option<Record>) -> io::Result<()> {
        records::write(&self.index, chunk, record)
    }

    fn chunk(&self, chunk: u64, record: &Record) -> Option<Bytes> {
        let at = self.grid.bytes(&(chunk..chunk + 1));
        let len = usize::try_from(at.end - at.start).unwrap_or(0);
        let mut bytes = buffers::take(len);
        bytes.resize(len, 0);
        self.data.read_exact_at(&mut bytes, at.start).ok()?;
        record.fits(checksum(self.seed, chunk, &bytes)).then(|| buffers::share(bytes))
    }

    fn set_chunk(&self, chunk: u64, bytes: &[u8]) -> io::Result<Record> {
        let at = self.grid.bytes(&(chunk..chunk + 1));
        if bytes.len() as u64 != at.end - at.start {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.data.write_all_at(bytes, at.start)?;
        Ok(Record::new(checksum(self.seed, chunk, bytes)))
    }

    fn punch(&self, chunk: u64) -> io::Result<()> {
        let at = self.grid.bytes(&(chunk..chunk + 1));
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.data, hole, at.start, at.end - at.start)?)
    }
}

/// One archive on disk, open and locked against removal.
#[derive(Debug)]
pub(in crate::cache) struct Entry {
    about: About,
    stem: String,
    lock: File,
    index: Index<ArchiveFiles>,
}

impl Entry {
    /// Opens what is cached of `about`, made if there is nothing.
    ///
    /// # Errors
    /// When a file cannot be opened or written, or `about` cannot be cached.
    pub(super) fn open(dir: &OwnedFd, place: &str, about: About) -> io::Result<Self> {
        let grid = about.grid().ok_or(io::ErrorKind::InvalidInput)?;
        if grid.count() > MOST_CHUNKS {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let text = serde_json::to_vec(&about)?;
        let version = XxHash3_128::oneshot(&text);
        let stem = format!("{}-{version:032x}", place_stem(place, about.offset, about.chunk));
        let lock = lock(dir, &stem)?;
        match About::read(&lock) {
            Some(found) if found == about => {}
            // Two archives of one hash, of which there are none.
            Some(_) => return Err(io::ErrorKind::AlreadyExists.into()),
            // Made just now, or garbage. Whoever else is here writes the same.
            None => {
                lock.set_len(text.len() as u64)?;
                lock.write_all_at(&text, 0)?;
            }
        }
        let files = ArchiveFiles::open(dir, &stem, grid, true)?;
        let mut present = Vec::new();
        files.for_each(|chunk, _| present.push(chunk))?;
        let index = Index::new(files, grid.count(), present);
        Ok(Self { about, stem, lock, index })
    }

    /// What is cached here.
    pub(in crate::cache) fn about(&self) -> &About {
        &self.about
    }

    /// What the names of its files begin with.
    pub(super) fn stem(&self) -> &str {
        &self.stem
    }

    /// Whether a chunk is believed to be here.
    pub(in crate::cache) fn holds(&self, chunk: u64) -> bool {
        self.index.holds(chunk)
    }

    /// See [`Index::refresh`].
    pub(super) fn refresh(&self, chunks: &Range<u64>) -> bool {
        self.index.refresh(chunks)
    }

    /// See [`Index::read`].
    pub(super) fn read(&self, chunk: u64) -> Result<Option<Bytes>, Damaged> {
        self.index.read(chunk)
    }

    /// See [`Index::forget`].
    pub(super) fn forget(&self, chunk: u64) {
        self.index.forget(chunk);
    }

    /// See [`Index::write`].
    pub(super) fn write(&self, chunk: u64, bytes: &[u8]) -> io::Result<()> {
        self.index.write(chunk, bytes)
    }

    /// Notes that it is used now.
    pub(super) fn touch(&self) {
        // It would only be evicted a little earlier.
        let _ = self.lock.set_modified(SystemTime::now());
    }
}

/// Opens an archive's description and locks it, so that nobody removes the archive.
fn lock(dir: &OwnedFd, stem: &str) -> io::Result<File> {
    let (tries, pause) = PATIENCE;
    for _ in 0..tries {
        let mut file = open_file(dir, stem, "about", true)?;
        match file.try_lock_shared() {
            // Removed before it was locked: the name may be another file's by now.
            Ok(()) if file.metadata()?.nlink() > 0 => {
                // Reads nothing, and finds out whether this is a file at all.
                let _ = file.read(&mut [])?;
                return Ok(file);
            }
            Ok(()) | Err(std::fs::TryLockError::WouldBlock) => {}
            Err(std::fs::TryLockError::Error(error)) => return Err(error),
        }
        std::thread::sleep(pause);
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

#[cfg(test)]
mod tests {
    use super::super::index::evict;
    use super::*;

    #[test]
    fn what_is_held_is_known_by_the_chunk_here_and_to_who_opens_it_next() {
        let dir = tempfile::tempdir().unwrap();
        let dir = OwnedFd::from(File::open(dir.path()).unwrap());
        let text = String::new;
        let (name, etag, start) = (text(), text(), text());
        let about = About { name, etag, size: 1299, offset: 0, chunk: 10, start };
        let open = || Entry::open(&dir, "place", about.clone()).unwrap();
        let held = |entry: &Entry| -> Vec<u64> { (0..600).filter(|n| entry.holds(*n)).collect() };
        let entry = open();
        for chunk in [63, 64, 100, 129] {
            let len = if chunk == 129 { 9 } else { 10 };
            entry.write(chunk, &vec![7; len]).unwrap();
        }
        assert!(entry.write(129, &[7; 10]).is_err());
        entry.forget(64);
        assert_eq!(held(&entry), [63, 100, 129]);
        let other = open();
        assert_eq!(held(&other), [63, 100, 129]);
        let grid = about.grid().unwrap();
        evict(&ArchiveFiles::open(&dir, entry.stem(), grid, false).unwrap(), 100).unwrap();
        entry.write(64, &[8; 10]).unwrap();
        assert!(other.refresh(&(63..65)) && !other.refresh(&(64..66)));
        assert!(entry.read(100).unwrap().is_none() && other.holds(100));
        assert_eq!((held(&entry), held(&other)), (vec![63, 64, 129], vec![63, 64, 100, 129]));
        assert_eq!(other.read(64).unwrap().unwrap(), [8; 10].as_slice());
    }
}
