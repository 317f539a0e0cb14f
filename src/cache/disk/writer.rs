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

/// The thread, and the way to it. Dropped, it writes what waits and ends.
#[derive(Debug)]
pub(super) struct Writer(Mutex<Option<Running>>);

#[derive(Debug)]
struct Running {
    queue: Sender<(u64, Bytes)>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Starts a thread that writes to `entry` and makes room in `dir`; `written` counts its bytes.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(super) fn start(
        dir: CacheDir,
        entry: Arc<Entry>,
        written: Arc<AtomicU64>,
    ) -> io::Result<Self> {
        let (queue, waiting) = bounded(QUEUE);
        let thread = std::thread::Builder::new()
            .name("thawfs-disk".into())
            .spawn(move || write(&dir, &entry, &waiting, &written))?;
        Ok(Self(Mutex::new(Some(Running { queue, thread }))))
    }

    /// Has a chunk written, unless too many wait or writing has failed before. Never blocks.
    pub(super) fn keep(&self, chunk: u64, bytes: Bytes) {
        if let Some(running) = &*self.0.lock() {
            // A chunk that is not kept is fetched again.
            let _ = running.queue.try_send((chunk, bytes));
        }
    }

    /// Waits until everything is written, and ends; what comes later is dropped.
    pub(super) fn finish(&self) {
        let running = self.0.lock().take();
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
fn write(dir: &CacheDir, entry: &Entry, waiting: &Receiver<(u64, Bytes)>, written: &AtomicU64) {
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
                written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            io::Result::Ok(())
        })();
        if let Err(error) = done {
            let path = dir.path().display();
            log::warn!("nothing more is written to the disk cache in {path}: {error}");
            return;
        }
    }
    entry.touch();
}
