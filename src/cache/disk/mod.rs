//! Chunks on this machine's disk, shared by all mounts of a user and kept between them.
//!
//! A [`CacheDir`] holds archives, each one version of one object. Nothing in it is trusted: a chunk is
//! returned if it has the checksum that its record says, and else fetched again. That makes everything
//! else simple. Writes are not synced. Processes share no more than a lock that keeps archives in use from
//! being removed. What is lost to a crash or a race costs a request. The checksums are no defence against
//! attackers; the directory's mode, 0700, is.
//!
//! | file | idea |
//! | --- | --- |
//! | `dir` | the directory of archives, and how much may be in it |
//! | `entry` | one archive: its files, open and locked against removal |
//! | `index`, `records` | which chunks are there, and in what order they come and go; the index as a file |
//! | `writer`, `room` | the thread that writes; how much it may before room is measured again |
//! | `evict` | what is cached, and what has to leave |
//! | `traces` | what was read first, kept beside the archives |
//!
//! A reader waits for what is read here, so that happens on its own thread. Chunks that were fetched for
//! readers are written by a thread of their own, which nobody waits for; those that were fetched for the disk
//! alone, by whoever fetched them. Whoever writes evicts where there is no room.

mod dir;
mod entry;
mod evict;
mod index;
mod records;
mod room;
mod traces;
mod writer;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

pub use dir::{CacheDir, DiskLimit};
pub use evict::{CachedArchive, Cleared, Usage};

pub(super) use entry::{About, Entry};

use super::prefetch::Trace;
use index::Damaged;
use traces::Traces;
use writer::Writer;

/// What a disk cache has done for one blob.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DiskCounters {
    /// Chunks read from disk.
    pub(super) hits: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Bytes of chunks written.
    pub(super) written_bytes: u64,
    /// Chunks that were not what had been written.
    pub(super) damaged: u64,
    /// Chunks that were fetched but could not be written.
    pub(super) dropped: u64,
}

/// The disk cache of one blob.
#[derive(Debug)]
pub(super) struct Disk {
    dir: CacheDir,
    entry: Arc<Entry>,
    writer: Writer,
    hits: AtomicU64,
    bytes: AtomicU64,
    damaged: AtomicU64,
}

impl Disk {
    /// Reads and writes `entry` of `dir`.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(super) fn start(dir: CacheDir, entry: Entry) -> io::Result<Self> {
        let entry = Arc::new(entry);
        let writer = Writer::start(dir.clone(), Arc::clone(&entry))?;
        let (hits, bytes, damaged) = Default::default();
        Ok(Self { dir, entry, writer, hits, bytes, damaged })
    }

    /// Whether a chunk is believed to be on disk. No system call.
    pub(super) fn holds(&self, chunk: u64) -> bool {
        self.entry.holds(chunk)
    }

    /// Whether all of `chunks` have come to be on disk, through another process. One system call.
    pub(super) fn refresh(&self, chunks: &Range<u64>) -> bool {
        self.entry.refresh(chunks)
    }

    /// All of `chunks`, or nothing if one of them is not there any more or damaged. Each is looked at
    /// even so: only what is known to be damaged is written again once it was fetched.
    pub(super) fn read(&self, chunks: &Range<u64>) -> Option<Vec<Bytes>> {
        let mut found = Vec::new();
        let mut damaged = 0;
        for chunk in chunks.clone() {
            match self.entry.read(chunk) {
                Ok(bytes) => found.extend(bytes),
                Err(Damaged) => damaged += 1,
            }
        }
        if damaged > 0 {
            self.damaged.fetch_add(damaged, Ordering::Relaxed);
            let name = &self.entry.about().name;
            tracing::info!("{damaged} chunks of {name} are damaged on disk, and fetched again");
        }
        if found.len() as u64 != chunks.end - chunks.start {
            return None;
        }
        let bytes: usize = found.iter().map(Bytes::len).sum();
        self.hits.fetch_add(found.len() as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Some(found)
    }

    /// Has a chunk written, unless it is there. Never blocks.
    pub(super) fn keep(&self, chunk: u64, bytes: &Bytes) {
        if !self.entry.holds(chunk) {
            self.writer.keep(chunk, bytes.clone());
        }
    }

    /// Forgets a chunk, and what of it still waits to be written. Never blocks on the disk's thread.
    pub(super) fn forget(&self, chunk: u64) {
        self.entry.forget(chunk);
        self.writer.forget(chunk);
    }

    /// Writes a chunk on this thread.
    ///
    /// # Errors
    /// When there is no room, or the disk fails.
    pub(super) fn write(&self, chunk: u64, bytes: &Bytes) -> io::Result<()> {
        self.writer.write(chunk, bytes)
    }

    /// What is cached here.
    pub(super) fn about(&self) -> &About {
        self.entry.about()
    }

    /// What was read first the last time, if that is known.
    pub(super) fn load_trace(&self) -> Option<Trace> {
        Traces::beside(&self.dir).load(self.entry.stem())
    }

    /// Keeps a trace for the next time.
    pub(super) fn save_trace(&self, trace: &Trace) -> io::Result<()> {
        Traces::beside(&self.dir).save(self.entry.stem(), trace)
    }

    /// Waits until everything is written, and writes nothing any more.
    pub(super) fn finish(&self) {
        self.writer.finish();
    }

    /// What it has done so far.
    pub(super) fn counters(&self) -> DiskCounters {
        DiskCounters {
            hits: self.hits.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            written_bytes: self.writer.outcome().written.load(Ordering::Relaxed),
            dropped: self.writer.outcome().dropped.load(Ordering::Relaxed),
            damaged: self.damaged.load(Ordering::Relaxed),
        }
    }
}
