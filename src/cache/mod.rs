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
//! `remote` and `warm` use the fetcher; that uses the prefetcher, memory and the disk, which know nothing of
//! the store, and of one another no more than what a trace is.
//!
//! **What is kept where.** A chunk is an aligned slice of the object, 64 KiB unless told otherwise, at the same
//! number in memory, on disk and in a trace. Memory holds what was read lately and what is ahead of readers;
//! the disk holds whatever came, as long as there is room. Decoded blocks are the reader's own, above.
//!
//! **The life of a chunk.** *Absent*, it is booked with its neighbours as a run, which takes room in memory in
//! advance. *On its way*, from the store or from disk, whoever asks joins the run (single flight). It *lands*
//! in memory, wakes those who wait, and waits for the disk's thread to write it. In memory it is *ahead*
//! until it is read for the first time, and then among the *read*, which go first where room is needed. One
//! that does not decode is dropped from everywhere and fetched once more.
//!
//! **Fetching ahead.** The prefetcher observes every read and answers with a plan. Each policy in it
//! recognizes one way of reading: `sequential` says the next bytes, `cluster` the region around a read,
//! `scatter` regions farther off, for the disk alone, and `trace` notes what is read first, for the next
//! mount. Their wishes are weighed in one place, `prefetch/mod.rs`, against what is here and what there is room
//! for; then the fetcher books and sends them. `warm` follows no reader: it has threads of its own, and few
//! requests at a time, fewer while a reader waits.
//!
//! **Backpressure.** Everything on its way counts against the budget of memory, whoever wants it. Three
//! quarters of the budget may be ahead of readers. What nobody may ever read is fetched only while less than
//! half of the budget is on its way. The disk's queue is bounded, and what does not fit is not written.
//! Readers are never held back: what they wait for is sent at once, first on the wire, and may exceed the
//! budget.
//!
//! **Waiting.** Any number of threads can wait for a run, for as long as the store has to answer. Who asks again
//! soon for what did not come gets no second such time (`fetcher/patience`). Threads that must not wait for
//! the store are told so before anything is sent (`waiting`).
//!
//! Why it is so, and what was tried, with figures: `docs/decisions/shape-of-the-cache.md`.

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
pub use fetcher::{Current, OpenOptions};
pub use file::{FileBlob, MemoryBlob};
pub use prefetch::{Trace, Warm};
pub use remote::RemoteBlob;
pub use waiting::{asked, asked_at, may_wait, without_waiting};
pub use warm::Warming;
