//! Writes chunks to disk, one thread for each blob, off everybody's way.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use super::{CacheDir, Entry};

/// Chunks that wait to be written; more are dropped, and fetched again one day. With 64 KiB each
/// that is 8 MiB, most of which the memory cache holds as well.
const QUEUE: usize = 128;

/// What a chunk may take beyond its bytes: a page of the index.
const OVERHEAD: u64 = 4096;

/// How long to wait where there was no room, before looking again.
const PAUSE: Duration = Duration::from_secs(1);

/// What came of the chunks that were to be written.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Bytes written.
    pub(super) written: AtomicU64,
    /// Chunks that were not: too many waited, there was no room, or the disk had failed.
    pub(super) dropped: AtomicU64,
}

/// The thread, and the way to it. Dropped, it writes what waits and ends.
#[derive(Debug)]
pub(super) struct Writer {
    running: Mutex<Option<Running>>,
    outcome: Arc<Outcome>,
}

#[derive(Debug)]
struct Running {
    queue: Sender<(u64, Bytes)>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Starts a thread that writes to `entry` and makes room in `dir`.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(super) fn start(dir: CacheDir, entry: Arc<Entry>) -> io::Result<Self> {
        let outcome = Arc::new(Outcome::default());
        let told = Arc::clone(&outcome);
        let (queue, waiting) = bounded(QUEUE);
        let thread = std::thread::Builder::new()
            .name("thawfs-disk".into())
            .spawn(move || write(&dir, &entry, &waiting, &told))?;
        Ok(Self { running: Mutex::new(Some(Running { queue, thread })), outcome })
    }

    /// What came of it so far.
    pub(super) fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// Has a chunk written, unless too many wait or writing has failed before. Never blocks.
    pub(super) fn keep(&self, chunk: u64, bytes: Bytes) {
        let running = self.running.lock();
        if running.as_ref().is_none_or(|running| running.queue.try_send((chunk, bytes)).is_err()) {
            self.outcome.dropped.fetch_add(1, Ordering::Relaxed);
        }
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

/// Writes what comes until nothing can any more, or the disk fails.
fn write(dir: &CacheDir, entry: &Entry, waiting: &Receiver<(u64, Bytes)>, outcome: &Outcome) {
    entry.touch();
    let mut room = 0;
    let mut look_again = Instant::now();
    for (chunk, bytes) in waiting {
        if entry.holds(chunk) {
            continue;
        }
        let cost = bytes.len() as u64 + OVERHEAD;
        let done = (|| {
            if room < cost && Instant::now() >= look_again {
                room = dir.make_room()?;
                entry.touch();
                look_again = Instant::now() + if room < cost { PAUSE } else { Duration::ZERO };
            }
            if room >= cost {
                entry.write(chunk, &bytes)?;
                room -= cost;
                outcome.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            } else {
                outcome.dropped.fetch_add(1, Ordering::Relaxed);
            }
            io::Result::Ok(())
        })();
        if let Err(error) = done {
            outcome.dropped.fetch_add(1 + waiting.len() as u64, Ordering::Relaxed);
            let path = dir.path().display();
            log::warn!("nothing more is written to the disk cache in {path}: {error}");
            return;
        }
    }
    entry.touch();
}
