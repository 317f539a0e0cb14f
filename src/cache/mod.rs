//! Random access to the bytes of one immutable object, wherever they are.
//!
//! [`Blob`] is the seam between the archive reader above and the bytes below it. Its verbs tell
//! their cost: [`Blob::get`] looks in memory and never blocks, [`Blob::fetch`] may go to the
//! disk and to the network. A [`CacheDir`] keeps what was fetched beyond this process.
//!
//! | file | idea |
//! | --- | --- |
//! | `blob` | what the reader above sees, and why it fails |
//! | `file` | blobs that need no cache: a file on this machine, bytes in memory |
//! | `remote` | a blob in a store: its reads, assembled from chunks |
//! | `fetcher/` | the only code that sends requests and lands what comes; what is in memory and on its way, under one lock |
//! | `prefetch/` | what to bring before anybody asks: four policies, and who weighs their wishes |
//! | `memory` | chunks in memory, within a budget |
//! | `disk/` | chunks on this machine's disk, between mounts and shared by them |
//! | `warm` | bringing everything, or what the last mount read, to the disk |
//! | `grid`, `assemble` | arithmetic: which chunks a range is in, which requests bring them; cutting and joining bytes |
//! | `damage` | what came, made no sense, and came alike once more |
//! | `waiting` | whether a thread may wait for the store, and since when it does |
//!
//! `remote` and `warm` use the fetcher; that uses the prefetcher, memory and the disk, which know nothing
//! of one another, and nothing of the store.
//!
//! **What is kept where.** A chunk is an aligned slice of the object, 64 KiB unless told otherwise, at the same
//! number in memory, on disk and in a trace. Memory holds what was read lately and what is ahead of readers;
//! the disk holds whatever came, as long as there is room. Decoded blocks are the reader's own, above.
//!
//! **The life of a chunk.** *Absent*, it is booked with its neighbours as a run, which takes room in memory in
//! advance. *On its way*, from the store or from disk, whoever asks joins the run (single flight). It *lands*
//! in memory, wakes those who wait, and is given to the disk's thread to be written. In memory it is *ahead*
//! until it is read for the first time, and then among the *read*, which go first where room is needed. One
//! that does not decode is dropped from everywhere and fetched once more.
//!
//! **Fetching ahead.** The prefetcher observes every read and answers with a plan. Each policy in it
//! recognizes one way of reading: `sequential` says the next bytes, `cluster` the region around a read,
//! `scatter` regions farther off, for the disk alone, and `trace` notes what is read first, for the next
//! mount. What of their wishes is not here and has room is decided in one place, `prefetch/mod.rs`; then the
//! fetcher books it and sends it. `warm` comes from elsewhere: on a thread of its own, with few requests at a
//! time, fewer while a reader waits.
//!
//! **Backpressure.** Everything on its way counts against the budget of memory, whoever wants it, and three
//! quarters of that are the most that may be ahead; what nobody may ever read is not fetched while half of
//! it is on its way. The disk's queue is bounded, and what does not fit is not written. Readers are never
//! held back: what they wait for is sent at once, first on the wire, and may exceed the budget.
//!
//! **Waiting.** A run can be waited for by any number of threads, as long as the store has for an answer; the
//! time counts once for a chunk, whoever asks again (`fetcher/patience`). Threads that must not wait for the
//! store are told so before anything is sent (`waiting`).

mod assemble;
mod blob;
mod counters;
mod damage;
mod disk;
mod fetcher;
mod file;
mod grid;
mod memory;
mod prefetch;
mod remote;
mod waiting;
mod warm;

pub use blob::{Blob, Error};
pub use counters::Counters;
pub use disk::{CacheDir, CachedArchive, Cleared, DiskLimit, Usage};
pub use fetcher::OpenOptions;
pub use file::{FileBlob, MemoryBlob};
pub use prefetch::{Trace, Warm};
pub use remote::RemoteBlob;
pub use waiting::{asked, asked_at, may_wait, without_waiting};
pub use warm::Warming;
