//! Bringing chunks to the disk cache before anybody asks for them, and in nobody's way.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::blob::Error;
use super::fetcher::Fetcher;
use super::prefetch::{Batches, Warm};
use super::waiting::unless_stopped;

/// Requests at a time while no reader waits. Of 1 MiB each, at 20 ms to the first byte and 100 MB/s a
/// connection, they bring 200 MB/s; more would take the memory of what readers use.
const AT_ONCE: usize = 6;

/// Requests at a time while a reader waits for one of its own.
const BESIDE_READERS: usize = 2;

/// How often it is looked whether readers still wait.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How it is done, and how far it has come.
#[derive(Debug, Default)]
pub struct Warming {
    /// Most bytes per second; 0 for as many as there can be.
    pub bytes_per_second: AtomicU64,
    /// Set to have it end before its time.
    pub stop: AtomicBool,
    /// Bytes of what there is to do.
    pub total: AtomicU64,
    /// Bytes looked at: fetched, or on disk before.
    pub done: AtomicU64,
    /// Of these, fetched.
    pub fetched: AtomicU64,
}

impl Warming {
    /// What `request` says, or `None` soon after `stop` is set: an unmount does not wait for a network
    /// that does not answer. Belongs on an async runtime.
    pub async fn unless_stopped<T>(&self, request: impl Future<Output = T>) -> Option<T> {
        unless_stopped(&self.stop, request).await
    }
}

/// What is to be fetched, in order: all threads work on one batch before they go on to the next.
struct Queue {
    batches: Batches,
    /// Runs of the last batch that was looked at, with how many bytes of each are wanted.
    runs: VecDeque<(Range<u64>, u64)>,
}

impl Queue {
    fn next(&mut self, fetcher: &Fetcher, warming: &Warming) -> Option<(Range<u64>, u64)> {
        while self.runs.is_empty() {
            let batch = self.batches.next()?;
            let mut there = fetcher.grid.len_of(&batch);
            for run in fetcher.missing_on_disk(&batch) {
                let wanted = fetcher.grid.len_of(batch.iter().filter(|chunk| run.contains(chunk)));
                there -= wanted;
                self.runs.push_back((run, wanted));
            }
            warming.done.fetch_add(there, Ordering::Relaxed);
        }
        self.runs.pop_front()
    }
}

/// Brings what is not on disk there. See [`RemoteBlob::warm`](super::RemoteBlob::warm).
pub(super) fn warm(fetcher: &Arc<Fetcher>, what: &Warm, warming: &Warming) -> Result<(), Error> {
    let Some(disk) = &fetcher.disk else { return Ok(()) };
    if let Warm::Trace(trace) = what {
        let about = disk.about();
        let is_of_another = (&trace.etag, trace.size, trace.offset, trace.chunk)
            != (&about.etag, about.size, about.offset, about.chunk);
        if is_of_another {
            return Ok(());
        }
    }
    let (total, batches) = what.batches(fetcher.grid);
    warming.total.fetch_add(total, Ordering::Relaxed);
    let queue = Mutex::new(Queue { batches, runs: VecDeque::new() });
    let (requests, fetched, started) = (AtomicUsize::new(0), AtomicU64::new(0), Instant::now());
    let failed = Mutex::new(None);
    let next = || {
        let is_over = warming.stop.load(Ordering::Relaxed) || failed.lock().is_some();
        if is_over { None } else { queue.lock().next(fetcher, warming) }
    };
    let work = || {
        while let Some((run, wanted)) = next() {
            while fetcher.state.lock().is_awaited()
                && requests.load(Ordering::Relaxed) >= BESIDE_READERS
                && !warming.stop.load(Ordering::Relaxed)
            {
                std::thread::sleep(LOOK_AGAIN);
            }
            requests.fetch_add(1, Ordering::Relaxed);
            let result = fetcher.bring_to_disk(run, &warming.stop);
            requests.fetch_sub(1, Ordering::Relaxed);
            match result {
                Ok(bytes) => {
                    warming.done.fetch_add(wanted, Ordering::Relaxed);
                    warming.fetched.fetch_add(bytes, Ordering::Relaxed);
                    let now = fetched.fetch_add(bytes, Ordering::Relaxed) + bytes;
                    keep_pace(warming, now, started);
                }
                Err(error) => {
                    *failed.lock() = Some(error);
                    return;
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..AT_ONCE {
            // With fewer threads it takes longer.
            if std::thread::Builder::new().spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
    failed.into_inner().map_or(Ok(()), Err)
}

/// Sleeps until no more than the allowed bytes per second have been fetched.
fn keep_pace(warming: &Warming, fetched: u64, started: Instant) {
    let rate = warming.bytes_per_second.load(Ordering::Relaxed);
    if rate == 0 {
        return;
    }
    let due = Duration::from_secs_f64(fetched as f64 / rate as f64);
    while let Some(left) = due.checked_sub(started.elapsed())
        && !left.is_zero()
        && !warming.stop.load(Ordering::Relaxed)
    {
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}
