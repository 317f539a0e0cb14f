//! Writes chunks to disk: those of readers on a thread of each blob's, in nobody's way, and what is for the disk
//! alone on the caller's.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::dir::CacheDir;
use super::entry::Entry;
use super::room::Room;

/// Chunks that wait to be written; more are dropped, and fetched again one day. With 64 KiB each
/// that is 6 MiB, most of which the memory cache holds as well. 128 were tried: up to 2 MiB more at the peak.
const QUEUE: usize = 96;

/// What a chunk may take beyond its bytes: a page of the index.
const OVERHEAD: u64 = 4096;

/// What came of the chunks that were to be written.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Bytes written.
    pub(super) written: AtomicU64,
    /// Chunks that were not: too many waited, there was no room, or the disk had failed.
    pub(super) dropped: AtomicU64,
}

/// Where chunks go.
#[derive(Debug)]
struct Shelf {
    dir: CacheDir,
    entry: Arc<Entry>,
    room: Room,
    outcome: Outcome,
}

/// The thread, and the way to it. Dropped, it writes what waits and ends.
#[derive(Debug)]
pub(super) struct Writer {
    running: Mutex<Option<Running>>,
    shelf: Arc<Shelf>,
}

/// What to do with a chunk: they are done in the order in which they were given.
#[derive(Debug)]
enum Order {
    Keep(u64, Bytes),
    Forget(u64),
}

#[derive(Debug)]
struct Running {
    queue: Sender<Order>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Starts a thread that writes to `entry` and makes room in `dir`.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(super) fn start(dir: CacheDir, entry: Arc<Entry>) -> io::Result<Self> {
        let (room, outcome) = (Room::new(), Outcome::default());
        let shelf = Arc::new(Shelf { dir, entry, room, outcome });
        let (queue, waiting) = bounded(QUEUE);
        let to = Arc::clone(&shelf);
        let thread = std::thread::Builder::new()
            .name("thawfs-disk".into())
            .spawn(move || write_all(&to, &waiting))?;
        Ok(Self { running: Mutex::new(Some(Running { queue, thread })), shelf })
    }

    /// What came of it so far.
    pub(super) fn outcome(&self) -> &Outcome {
        &self.shelf.outcome
    }

    /// Writes a chunk on this thread.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] when there is no room, or what the disk says.
    pub(super) fn write(&self, chunk: u64, bytes: &Bytes) -> io::Result<()> {
        match self.shelf.put(chunk, bytes)? {
            true => Ok(()),
            false => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    /// Has a chunk written, unless too many wait or writing has failed before. Never blocks.
    pub(super) fn keep(&self, chunk: u64, bytes: Bytes) {
        if !self.order(Order::Keep(chunk, bytes)) {
            self.shelf.outcome.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Undoes what is still to be written of a chunk. Where too many wait for that, who reads it next
    /// finds out what is wrong with it.
    pub(super) fn forget(&self, chunk: u64) {
        self.order(Order::Forget(chunk));
    }

    /// Whether the thread is going to do it.
    fn order(&self, order: Order) -> bool {
        let running = self.running.lock();
        running.as_ref().is_some_and(|running| running.queue.try_send(order).is_ok())
    }

    /// Waits until everything is written, and ends; what comes later is dropped.
    pub(super) fn finish(&self) {
        let running = self.running.lock().take();
        if let Some(Running { queue, thread }) = running {
            drop(queue);
            // It does not panic, and a cache has nothing to say at the end.
            let _ = thread.join();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Shelf {
    /// Writes a chunk if there is room for it, or it is there already; says whether it is there now.
    fn put(&self, chunk: u64, bytes: &Bytes) -> io::Result<bool> {
        if self.entry.holds(chunk) {
            return Ok(true);
        }
        let cost = bytes.len() as u64 + OVERHEAD;
        let make_room = || {
            let bytes = self.dir.make_room()?;
            self.entry.touch();
            Ok(bytes)
        };
        if !self.room.take(cost, make_room)? {
            return Ok(false);
        }
        self.entry.write(chunk, bytes)?;
        self.outcome.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(true)
    }
}

/// Writes what comes until nothing can any more, or the disk fails.
fn write_all(shelf: &Shelf, waiting: &Receiver<Order>) {
    shelf.entry.touch();
    for order in waiting {
        let put = match order {
            Order::Keep(chunk, bytes) => shelf.put(chunk, &bytes),
            Order::Forget(chunk) => {
                shelf.entry.forget(chunk);
                continue;
            }
        };
        match put {
            Ok(true) => {}
            Ok(false) => {
                shelf.outcome.dropped.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                shelf.outcome.dropped.fetch_add(1 + waiting.len() as u64, Ordering::Relaxed);
                let path = shelf.dir.path().display();
                tracing::warn!("nothing more is written to the disk cache in {path}: {error}");
                return;
            }
        }
    }
    shelf.entry.touch();
}
