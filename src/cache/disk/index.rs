//! Which chunks of an archive are on disk, and in what order a chunk and its record come and go.
//!
//! Any number of threads and processes use the same files without a lock. That is safe because nothing is
//! trusted: a chunk is returned if it has the checksum that its record says. It is cheap because of three
//! orders:
//!
//! - A chunk is written first, then its record, then the bit that says so: who believes the bit finds the
//!   record, and who finds the record finds the chunk.
//! - A chunk that leaves loses its record before its bytes: no record stands for a hole, even if the
//!   process is killed in between.
//! - Bits of one word are set by one atomic operation each, so that neighbours do not undo each other.
//!
//! `tests/loom` goes through all interleavings of a few threads.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;

// The standard library's, or loom's where that goes through interleavings.
use super::AtomicU64;

/// The files of an archive. Others may come between any two calls.
pub(super) trait Files {
    /// What is known of a chunk that is there.
    type Record;
    /// The bytes of a chunk.
    type Chunk;

    /// Whether each of `chunks` has a record.
    fn are_present(&self, chunks: Range<u64>) -> io::Result<Vec<bool>>;

    /// The record of a chunk that is there.
    fn record(&self, chunk: u64) -> Option<Self::Record>;

    /// Writes a record; without one, that the chunk is not there.
    fn set_record(&self, chunk: u64, record: Option<Self::Record>) -> io::Result<()>;

    /// The bytes of a chunk if they are what its record says.
    fn chunk(&self, chunk: u64, record: &Self::Record) -> Option<Self::Chunk>;

    /// Writes the bytes of a chunk, and gives the record that they are to have.
    fn set_chunk(&self, chunk: u64, bytes: &[u8]) -> io::Result<Self::Record>;

    /// Frees the bytes of a chunk.
    fn punch(&self, chunk: u64) -> io::Result<()>;
}

/// A chunk on disk was not what had been written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Damaged;

/// The chunks in an archive's files.
#[derive(Debug)]
pub(super) struct Index<F> {
    files: F,
    presence: Presence,
}

impl<F: Files> Index<F> {
    /// Of an archive of `count` chunks, those in `present` of which are there.
    pub(super) fn new(files: F, count: u64, present: impl IntoIterator<Item = u64>) -> Self {
        let presence = Presence::new(count);
        present.into_iter().for_each(|chunk| presence.set(chunk, true));
        Self { files, presence }
    }

    /// Whether a chunk is believed to be there. No system call.
    pub(super) fn holds(&self, chunk: u64) -> bool {
        self.presence.holds(chunk)
    }

    /// Looks whether others have brought all of `chunks` meanwhile: one system call, which costs
    /// little beside the request that it can save.
    pub(super) fn refresh(&self, chunks: &Range<u64>) -> bool {
        let Ok(present) = self.files.are_present(chunks.clone()) else { return false };
        // What is not there may just be written: that its bit is wrong, a reader finds out.
        for (chunk, _) in chunks.clone().zip(&present).filter(|(_, is_present)| **is_present) {
            self.presence.set(chunk, true);
        }
        present.len() as u64 == chunks.end - chunks.start && present.iter().all(|there| *there)
    }

    /// A chunk, if it is there and as it was written. What is damaged is forgotten, and the error
    /// says so.
    pub(super) fn read(&self, chunk: u64) -> Result<Option<F::Chunk>, Damaged> {
        let Some(record) = self.files.record(chunk) else {
            self.presence.set(chunk, false);
            return Ok(None);
        };
        let bytes = self.files.chunk(chunk, &record);
        if bytes.is_none() {
            self.forget(chunk);
        }
        bytes.map(Some).ok_or(Damaged)
    }

    /// Forgets a chunk, which is damaged.
    pub(super) fn forget(&self, chunk: u64) {
        self.presence.set(chunk, false);
        // If that fails, the next reader finds the damage again.
        let _ = self.files.set_record(chunk, None);
    }

    /// Writes a chunk, and then its record.
    pub(super) fn write(&self, chunk: u64, bytes: &[u8]) -> io::Result<()> {
        let record = self.files.set_chunk(chunk, bytes)?;
        self.files.set_record(chunk, Some(record))?;
        self.presence.set(chunk, true);
        Ok(())
    }
}

/// Takes a chunk out of files that others use. They find out when they read it: no record or, where they
/// had that before, bytes that are not what it says.
pub(super) fn evict(files: &impl Files, chunk: u64) -> io::Result<()> {
    files.set_record(chunk, None)?;
    files.punch(chunk)
}

/// Which chunks are believed to be on disk: a bit for each, so that planning costs no system call.
/// Belief may be wrong either way, as other processes write and evict, too.
#[derive(Debug)]
struct Presence(Vec<AtomicU64>);

impl Presence {
    /// For `count` chunks, none of them there.
    fn new(count: u64) -> Self {
        let words = usize::try_from(count.div_ceil(64)).unwrap_or(0);
        Self(std::iter::repeat_with(|| AtomicU64::new(0)).take(words).collect())
    }

    fn word(&self, chunk: u64) -> Option<(&AtomicU64, u64)> {
        let word = self.0.get(usize::try_from(chunk / 64).ok()?)?;
        Some((word, 1 << (chunk % 64)))
    }

    /// A bit orders nothing: the record is read again before the chunk is.
    fn holds(&self, chunk: u64) -> bool {
        self.word(chunk).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    fn set(&self, chunk: u64, there: bool) {
        let Some((word, bit)) = self.word(chunk) else { return };
        if there {
            word.fetch_or(bit, Ordering::Relaxed);
        } else {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }
}
