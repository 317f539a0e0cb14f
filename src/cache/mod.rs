//! Random access to the bytes of one immutable object, wherever they are.
//!
//! [`Blob`] is the seam between the archive reader above and the bytes below it. Its verbs tell
//! their cost: [`Blob::get`] looks in memory and never blocks, [`Blob::fetch`] may go to the
//! disk and to the network. A [`CacheDir`] keeps what was fetched beyond this process.
//!
//! | file | idea |
//! | --- | --- |
//! | `file` | blobs that need no cache: a file on this machine, bytes in memory |
//! | `remote`, `opening`, `state` | a blob in a store: what it is, how it begins, what changes of it, under one lock |
//! | `plan`, `joint` | arithmetic: which chunks a range is in, which requests bring them; putting ranges together again |
//! | `run`, `landing` | a run of chunks on its way, whom it wakes, and the work that brings it |
//! | `memory` | chunks in memory, within a budget |
//! | `disk/` | chunks on this machine's disk, between mounts and shared by them |
//! | `readahead`, `nearby`, `surroundings` | who reads in sequence, many things that lie together, small files all over |
//! | `trace`, `warm` | what the last mount read first; bringing that, or everything, to the disk |
//! | `again`, `failures` | what came and made no sense; what was waited for in vain |
//! | `waiting` | whether a thread may wait for the store, and since when it does |
//!
//! **What is kept where.** A chunk is an aligned slice of the object, 64 KiB unless told otherwise, at the same
//! number in memory, on disk and in a trace. Memory holds what was read lately and what is ahead of readers;
//! the disk holds whatever came, as long as there is room. Decoded blocks are the reader's own, above.
//!
//! **The life of a chunk.** *Absent*, it is booked with its neighbours as a run, which takes room in memory in
//! advance. *On its way*, from the store or from disk, whoever asks joins the run. It *lands* in memory, wakes
//! those who wait, and is given to the disk's thread to be written. In memory it is *ahead* until it is read
//! for the first time, and then among the *read*, which go first where room is needed. One that does not
//! decode is dropped from everywhere and fetched once more.
//!
//! **Fetching ahead.** Three recognize what a reader does, each by itself, and only say what would be worth it:
//! `readahead` the next bytes of a sequence, `nearby` the region around a read, `surroundings` regions
//! farther off, for the disk alone. `remote` asks all three under its lock when something is read, and
//! books what of their answers is absent and allowed. `warm` comes from elsewhere: on a thread of its own,
//! with few requests at a time, fewer while a reader waits.
//!
//! **Backpressure.** Everything on its way counts against the budget of memory, whoever wants it, and three
//! quarters of that are the most that may be ahead; what nobody may ever read is not fetched while half of
//! it is on its way. The disk's queue is bounded, and what does not fit is not written. Readers are never
//! held back: what they wait for is sent at once, first on the wire, and may exceed the budget.
//!
//! **Waiting.** A run can be waited for by any number of threads, as long as the store has for an answer; the
//! time counts once for a chunk, whoever asks again (`failures`). Threads that must not wait for the store
//! are told so before anything is sent (`waiting`).

mod again;
mod counters;
mod disk;
mod failures;
mod file;
mod joint;
mod landing;
mod memory;
mod nearby;
mod opening;
mod plan;
mod readahead;
mod remote;
mod run;
mod state;
mod surroundings;
mod trace;
mod waiting;
mod warm;

use bytes::Bytes;

pub use counters::Counters;
pub use disk::{CacheDir, CachedArchive, Cleared, DiskLimit, Usage};
pub use file::{FileBlob, MemoryBlob};
pub use opening::OpenOptions;
pub use remote::RemoteBlob;
pub use trace::Trace;
pub use waiting::{asked, asked_at, may_wait, without_waiting};
pub use warm::{Warm, Warming};

use crate::types::ByteRange;

/// Why the bytes of a blob could not be had. Cheap to clone: every waiter of one fetch gets it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The range reaches past the end of the object.
    #[error("bytes {range:?} are past the end of the object ({size} bytes)")]
    PastEnd {
        /// What was asked.
        range: ByteRange,
        /// The object's size in bytes.
        size: u64,
    },
    /// The object store said no, or nothing in time.
    #[error(transparent)]
    Store(#[from] std::sync::Arc<crate::store::Error>),
    /// Reading a local file failed.
    #[error("{0}")]
    Io(std::sync::Arc<std::io::Error>),
    /// The store would have to be waited for, which this thread must not ([`without_waiting`]).
    #[error("this would wait for the store")]
    WouldWait,
}

/// One immutable object, read by ranges. Blocking, for threads outside the async runtime.
pub trait Blob: Send + Sync {
    /// Size of the object in bytes.
    fn size(&self) -> u64;

    /// The bytes of `range` if all of them are in memory. Never blocks, never fetches.
    fn get(&self, range: ByteRange) -> Option<Bytes>;

    /// The bytes of every range, in order. What is missing is fetched at once, in as few requests
    /// as sensible, and shared with anyone else who asks for it meanwhile.
    fn fetch(&self, ranges: &[ByteRange]) -> Result<Vec<Bytes>, Error>;

    /// Says that `range` will be wanted soon. Does not block; failures show when it is fetched.
    fn prefetch(&self, range: ByteRange);

    /// Fetches `range` once more, because the bytes that came of it, `damaged`, make no sense. What is
    /// kept of it in memory and on disk is dropped first. `None` where the object has just these bytes,
    /// as far as anybody can tell; asking again soon costs nothing then.
    ///
    /// # Errors
    /// As [`Blob::fetch`].
    fn fetch_again(&self, _range: ByteRange, _damaged: &[u8]) -> Result<Option<Bytes>, Error> {
        Ok(None)
    }

    /// Says that a small file is about to be read, whose first bytes are `range`. Others beside it may
    /// be next. Does not block.
    fn note_small_file(&self, _range: ByteRange) {}
}
