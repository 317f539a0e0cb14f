//! Bringing chunks to the disk cache before anybody asks for them, and in nobody's way.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Error;
use super::disk::Disk;
use super::landing::Landing;
use super::remote::{Inner, RemoteBlob};
use super::run::{Origin, Run};
use super::state::Wanted;
use super::trace::Trace;
use crate::store;
use crate::types::ByteRange;

/// Requests at a time while no reader waits. Of 1 MiB each, at 20 ms to the first byte and 100 MB/s a
/// connection, they bring 200 MB/s; more would take the memory of what readers use.
const AT_ONCE: usize = 6;

/// Requests at a time while a reader waits for one of its own.
const BESIDE_READERS: usize = 2;

/// How often it is looked whether readers still wait.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// After what time a request notices that it is not wanted any more.
const STOP_WITHIN: Duration = Duration::from_millis(50);

/// How many chunks are looked at together.
const BATCH: u64 = 128;

/// What to bring.
#[derive(Clone, Debug)]
pub enum Warm {
    /// Everything.
    All,
    /// These bytes, in any order.
    Ranges(Vec<ByteRange>),
    /// What a trace has, in its order.
    Trace(Trace),
}

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
        let mut request = std::pin::pin!(request);
        loop {
            match tokio::time::timeout(STOP_WITHIN, &mut request).await {
                Ok(said) => return Some(said),
                Err(_) if self.stop.load(Ordering::Relaxed) => return None,
                Err(_) => {}
            }
        }
    }
}

/// Chunks to look at together, sorted.
type Batches = Box<dyn Iterator<Item = Vec<u64>> + Send>;

/// What is to be fetched, in order: all threads work on one batch before they go on to the next.
struct Queue {
    batches: Batches,
    /// Runs of the last batch that was looked at, with how many bytes of each are wanted.
    runs: VecDeque<(Range<u64>, u64)>,
}

impl Queue {
    fn next(&mut self, inner: &Inner, warming: &Warming) -> Option<(Range<u64>, u64)> {
        while self.runs.is_empty() {
            let batch = self.batches.next()?;
            let bytes_of = |chunks: &mut dyn Iterator<Item = &u64>| -> u64 {
                chunks.map(|chunk| inner.grid.len(&(*chunk..chunk + 1))).sum()
            };
            let mut there = bytes_of(&mut batch.iter());
            for run in inner.missing_on_disk(&batch) {
                let wanted = bytes_of(&mut batch.iter().filter(|chunk| run.contains(chunk)));
                there -= wanted;
                self.runs.push_back((run, wanted));
            }
            warming.done.fetch_add(there, Ordering::Relaxed);
        }
        self.runs.pop_front()
    }
}

impl RemoteBlob {
    /// Whether there is a disk cache for it.
    pub fn has_disk(&self) -> bool {
        self.inner.disk.is_some()
    }

    /// Brings what is not on disk there, blocking the calling thread; readers' requests go first.
    /// Without a disk cache nothing is done.
    ///
    /// # Errors
    /// What the store says, or that there is no room on disk.
    pub fn warm(&self, what: &Warm, warming: &Warming) -> Result<(), Error> {
        let Some((total, batches)) = self.batches(what) else { return Ok(()) };
        warming.total.fetch_add(total, Ordering::Relaxed);
        let queue = Mutex::new(Queue { batches, runs: VecDeque::new() });
        let (requests, fetched, started) = (AtomicUsize::new(0), AtomicU64::new(0), Instant::now());
        let failed = Mutex::new(None);
        let next = || {
            let is_over = warming.stop.load(Ordering::Relaxed) || failed.lock().is_some();
            if is_over { None } else { queue.lock().next(&self.inner, warming) }
        };
        let work = || {
            while let Some((run, wanted)) = next() {
                while self.inner.state.lock().awaited > 0
                    && requests.load(Ordering::Relaxed) >= BESIDE_READERS
                    && !warming.stop.load(Ordering::Relaxed)
                {
                    std::thread::sleep(LOOK_AGAIN);
                }
                requests.fetch_add(1, Ordering::Relaxed);
                let result = self.inner.bring_to_disk(run, warming);
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

    /// The chunks to look at, in batches that are sorted, and how many bytes they have; `None` where
    /// there is nothing to do.
    fn batches(&self, what: &Warm) -> Option<(u64, Batches)> {
        let (about, grid) = (self.inner.disk.as_ref()?.about(), self.inner.grid);
        let count = grid.size.div_ceil(grid.chunk);
        Some(match what {
            Warm::All => {
                let batch = move |start| (start..count.min(start + BATCH)).collect();
                (grid.size, Box::new((0..count).step_by(BATCH as usize).map(batch)))
            }
            Warm::Ranges(ranges) => {
                let within = ranges.iter().filter(|range| range.end().0 <= grid.size);
                let mut chunks: Vec<u64> = within.flat_map(|range| grid.chunks(*range)).collect();
                chunks.sort_unstable();
                chunks.dedup();
                let bytes = chunks.iter().map(|chunk| grid.len(&(*chunk..chunk + 1))).sum();
                let batches: Vec<Vec<u64>> =
                    chunks.chunks(BATCH as usize).map(<[u64]>::to_vec).collect();
                (bytes, Box::new(batches.into_iter()))
            }
            Warm::Trace(trace) => {
                let fits = (&trace.etag, trace.size, trace.offset, trace.chunk)
                    == (&about.etag, about.size, about.offset, about.chunk);
                if !fits {
                    return None;
                }
                (trace.chunks() * trace.chunk, Box::new(trace.batches()))
            }
        })
    }
}

impl Inner {
    /// Of sorted chunks, the runs to request for the disk.
    fn missing_on_disk(&self, chunks: &[u64]) -> Vec<Range<u64>> {
        let runs = self.runs(&self.state.lock(), chunks);
        runs.into_iter()
            .filter(|(origin, _)| *origin == Origin::Store)
            .map(|(_, run)| run)
            .collect()
    }

    /// Fetches what of a run is still neither on disk nor on its way, and writes it to disk. Says how
    /// many bytes that were.
    fn bring_to_disk(self: &Arc<Self>, run: Range<u64>, warming: &Warming) -> Result<u64, Error> {
        let Some(disk) = &self.disk else { return Ok(0) };
        let mut bytes = 0;
        let mut rest = run;
        while let Some(flight) = self.book_for_disk(disk, &rest) {
            rest.start = flight.chunks.end;
            // Whatever happens, those who join it are woken.
            let landing = Landing { inner: Arc::clone(self), flight };
            let flight = &landing.flight;
            let request = warming.unless_stopped(self.request(&flight.chunks));
            let result = self.runtime.block_on(request).unwrap_or_else(|| {
                let object = self.object.name();
                Err(Arc::new(store::Error::ShutDown { object }).into())
            });
            let failed = result.as_ref().err().cloned();
            let written = self.land_on_disk(disk, flight, result);
            failed.map_or(Ok(()), Err)?;
            written.map_err(|error| Error::Io(Arc::new(error)))?;
            bytes += self.grid.len(&flight.chunks);
        }
        Ok(bytes)
    }

    /// Enters the first part of a run that is nowhere yet as on its way.
    fn book_for_disk(&self, disk: &Disk, run: &Range<u64>) -> Option<Arc<Run>> {
        let mut state = self.state.lock();
        let missing: Vec<u64> = run
            .clone()
            .filter(|chunk| !state.flights.contains_key(chunk) && !disk.holds(*chunk))
            .collect();
        let (origin, run) = self.runs(&state, &missing).into_iter().next()?;
        Some(state.book(self.grid, Run::new(run, origin, false), |_| Wanted::OnDisk))
    }
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
