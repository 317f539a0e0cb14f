//! The only code that sends requests for a blob, and that lands what comes.
//!
//! | file | idea |
//! | --- | --- |
//! | `opening` | what is learnt and fetched before there is a blob |
//! | `state` | what is in memory and on its way, under one lock; booking runs of chunks |
//! | `run` | a run of chunks on its way, which any number of threads can wait for |
//! | `failures`, `patience` | what was waited for in vain; how long anything is waited for |
//!
//! Whoever wants chunks books them under the lock, has the runs launched without it, and waits for them.
//! A [`Landing`] is the work on one run; whatever becomes of it, those who wait are woken.

mod failures;
mod opening;
mod patience;
mod run;
mod state;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tracing::{Instrument, Span};

pub use opening::{Current, OpenOptions};

pub(super) use run::Run;
pub(super) use state::State;

use super::assemble::copy_out;
use super::blob::Error;
use super::disk::Disk;
use super::grid::Grid;
use super::prefetch::{Outcome, Wanted};
use super::waiting::unless_stopped;
use crate::store::{self, ETag, GetRange, Ranged, ReadRanges};
use opening::Opening;
use patience::Patience;
use run::Origin;

/// Brings the chunks of one object. Requests on their way keep it alive.
pub(super) struct Fetcher {
    pub(super) object: Arc<dyn ReadRanges>,
    pub(super) etag: Option<ETag>,
    /// Where in the object the blob begins.
    pub(super) offset: u64,
    pub(super) grid: Grid,
    /// Bytes that may be in memory and on their way.
    pub(super) budget: u64,
    pub(super) runtime: Handle,
    pub(super) disk: Option<Arc<Disk>>,
    pub(super) state: Mutex<State>,
}

impl Fetcher {
    /// Opens an object. What that brings is in memory afterwards.
    pub(super) fn open(
        object: Arc<dyn ReadRanges>,
        runtime: Handle,
        options: &OpenOptions,
    ) -> Result<Self, Error> {
        let chunk = options.chunk_size.max(512);
        // The end is not aligned to chunks; one more keeps the whole of it after alignment.
        let tail_len = options.tail_bytes.saturating_add(chunk);
        let Opening { etag, size, brought, disk } =
            opening::open(&object, &runtime, options, chunk, tail_len)?;
        let (offset, disk) = (options.offset, disk.map(Arc::new));
        let grid = Grid { chunk, size: size.saturating_sub(offset) };
        let budget = options.memory_bytes.max(tail_len + 2 * chunk);
        let state = Mutex::new(State::new(grid, budget, disk.clone()));
        let fetcher = Self { object, etag, offset, grid, budget, runtime, disk, state };
        for ranged in &brought {
            fetcher.seed(ranged);
        }
        Ok(fetcher)
    }

    /// Puts what opening brought into memory, whole chunks only.
    fn seed(&self, ranged: &Ranged) {
        let Some(start) = ranged.range.start.checked_sub(self.offset).or_else(|| {
            // The object's end reaches back before the archive.
            (ranged.range.end > self.offset).then_some(0)
        }) else {
            return;
        };
        let skipped = (start + self.offset) - ranged.range.start;
        let mut state = self.state.lock();
        for chunk in start.div_ceil(self.grid.chunk)..self.grid.count() {
            let bytes = self.grid.bytes(&(chunk..chunk + 1));
            let at = skipped + (bytes.start - start)..skipped + (bytes.end - start);
            let Some(copied) = copy_out(&ranged.pieces, at) else { break };
            state.counters.fetched_bytes += copied.len() as u64;
            // The two may overlap. Memory and disk are to have the same copy of it.
            if state.memory.contains(chunk) {
                continue;
            }
            if let Some(disk) = &self.disk {
                disk.keep(chunk, &copied);
            }
            state.memory.insert(chunk, copied, false);
        }
    }

    /// Sends the requests of runs that are booked, and reads here what somebody waits for and is on disk:
    /// requests are on the wire by then.
    pub(super) fn launch(self: &Arc<Self>, booked: Vec<Arc<Run>>) {
        let mut here = Vec::new();
        for run in booked {
            let landing = Landing { fetcher: Arc::clone(self), run };
            if landing.run.wanted == Wanted::OnDisk {
                landing.send_to_disk();
                continue;
            }
            match (landing.origin(), landing.run.wanted) {
                (Origin::Store, _) => landing.send(),
                (Origin::Disk, Wanted::Now) => here.push(landing),
                (Origin::Disk, _) => {
                    let span = Span::current();
                    self.runtime.spawn_blocking(move || span.in_scope(|| landing.read()));
                }
            }
        }
        for landing in here {
            landing.read();
        }
    }

    /// Waits for chunks on behalf of somebody who asked for them at `asked`.
    pub(super) fn wait(
        &self,
        coming: &[(u64, Arc<Run>)],
        asked: Instant,
    ) -> Result<Vec<(u64, Bytes)>, Error> {
        Patience { object: &*self.object, state: &self.state, asked }.wait(coming)
    }

    /// Fetches chunks from the store whatever is here, and drops that.
    pub(super) fn fetch_again(
        self: &Arc<Self>,
        chunks: Range<u64>,
    ) -> Result<Vec<(u64, Bytes)>, Error> {
        self.forget_on_disk(chunks.clone());
        let found = self.state.lock().book_again(chunks);
        for run in found.booked {
            // Not by way of the disk, where another process may just have put the same.
            Landing { fetcher: Arc::clone(self), run }.send();
        }
        self.wait(&found.coming, Instant::now())
    }

    /// Drops chunks from the disk.
    pub(super) fn forget_on_disk(&self, chunks: Range<u64>) {
        if let Some(disk) = &self.disk {
            chunks.for_each(|chunk| disk.forget(chunk));
        }
    }

    /// Of sorted chunks, the runs to request for the disk.
    pub(super) fn missing_on_disk(&self, chunks: &[u64]) -> Vec<Range<u64>> {
        let runs = self.state.lock().runs(chunks);
        let is_missing = |(origin, run)| (origin == Origin::Store).then_some(run);
        runs.into_iter().filter_map(is_missing).collect()
    }

    /// Fetches what of a run is still neither on disk nor on its way, and writes it to disk, on this
    /// thread; ends early once `stop` is set. Says how many bytes that were.
    pub(super) fn bring_to_disk(
        self: &Arc<Self>,
        mut chunks: Range<u64>,
        stop: &AtomicBool,
    ) -> Result<u64, Error> {
        let Some(disk) = &self.disk else { return Ok(0) };
        let mut bytes = 0;
        loop {
            let Some(run) = self.state.lock().book_for_disk(&chunks) else { return Ok(bytes) };
            chunks.start = run.chunks.end;
            // Whatever happens, those who join it are woken.
            let landing = Landing { fetcher: Arc::clone(self), run };
            let run = &landing.run;
            let request = unless_stopped(stop, self.request(&run.chunks));
            let result = self.runtime.block_on(request).unwrap_or_else(|| Err(self.shut_down()));
            let failed = result.as_ref().err().cloned();
            let written = self.land_on_disk(disk, run, result);
            failed.map_or(Ok(()), Err)?;
            written.map_err(|error| Error::Io(Arc::new(error)))?;
            bytes += self.grid.len(&run.chunks);
        }
    }

    async fn request(&self, chunks: &Range<u64>) -> Result<Vec<Bytes>, Error> {
        let bytes = self.grid.bytes(chunks);
        let range = GetRange::Between(bytes.start + self.offset..bytes.end + self.offset);
        let piece = usize::try_from(self.grid.chunk).unwrap_or(usize::MAX);
        let ranged = self.object.get_range(range, self.etag.as_ref(), piece).await;
        let ranged = ranged.map_err(Arc::new)?;
        if ranged.size != self.offset + self.grid.size {
            return Err(Arc::new(store::Error::Changed { object: self.object.name() }).into());
        }
        Ok(ranged.pieces)
    }

    /// Writes to disk what a run from the store brought, and then ends it: from then on readers look
    /// there.
    fn land_on_disk(
        &self,
        disk: &Disk,
        run: &Run,
        result: Result<Vec<Bytes>, Error>,
    ) -> std::io::Result<()> {
        let mut brought = run.chunks.clone().zip(result.iter().flatten());
        let written = brought.try_for_each(|(chunk, bytes)| disk.write(chunk, bytes));
        self.land(run, Origin::Store, result);
        written
    }

    /// Ends a run: keeps what it brought, and wakes those who wait.
    fn land(&self, run: &Run, from: Origin, result: Result<Vec<Bytes>, Error>) {
        {
            let mut state = self.state.lock();
            state.land(run, from, result.as_deref());
            // What is refused at once is no question of time.
            let deadline = self.object.pace().deadline;
            if let (Err(error), Some(deadline)) = (&result, deadline)
                && run.began.elapsed() >= deadline / 2
            {
                state.failures.note(run.chunks.clone(), error);
            }
        }
        if let (Some(disk), Origin::Store, Ok(brought)) = (&self.disk, from, &result) {
            for (chunk, bytes) in run.chunks.clone().zip(brought) {
                disk.keep(chunk, bytes);
            }
        }
        run.land(result);
    }

    fn learn(&self, outcome: Outcome) {
        self.state.lock().prefetcher.learn(outcome);
    }

    /// Why a run is not brought any more.
    fn shut_down(&self) -> Error {
        Arc::new(store::Error::ShutDown { object: self.object.name() }).into()
    }
}

/// The work on a run. Ends it when the work is dropped with the runtime, so that nobody waits for ever.
struct Landing {
    fetcher: Arc<Fetcher>,
    run: Arc<Run>,
}

impl Landing {
    /// Where the chunks are by now: another process may have brought them to disk since it was
    /// planned to fetch them.
    fn origin(&self) -> Origin {
        match (&self.fetcher.disk, self.run.origin) {
            (Some(disk), Origin::Store) if disk.refresh(&self.run.chunks) => Origin::Disk,
            (_, origin) => origin,
        }
    }

    /// Reads the chunks from disk, or fetches them if they are not there after all.
    fn read(self) {
        let disk = self.fetcher.disk.as_ref();
        match disk.and_then(|disk| disk.read(&self.run.chunks)) {
            Some(chunks) => self.fetcher.land(&self.run, Origin::Disk, Ok(chunks)),
            None => self.send(),
        }
    }

    /// Sends the request, and leaves the rest to the runtime.
    fn send(self) {
        let runtime = self.fetcher.runtime.clone();
        let work = async move {
            let started = Instant::now();
            let result = self.fetcher.request(&self.run.chunks).await;
            if self.run.wanted == Wanted::Now && result.is_ok() {
                self.fetcher.learn(Outcome::Awaited(started.elapsed()));
            }
            self.fetcher.land(&self.run, Origin::Store, result);
        };
        runtime.spawn(work.in_current_span());
    }

    /// Sends the request, and leaves it to the runtime to write to disk what it brings.
    fn send_to_disk(self) {
        let runtime = self.fetcher.runtime.clone();
        let work = async move {
            let started = Instant::now();
            let result = self.fetcher.request(&self.run.chunks).await;
            let took = started.elapsed();
            let outcome = result.as_ref().map_or(Outcome::Failed, |_| Outcome::ForDisk(took));
            self.fetcher.learn(outcome);
            tokio::task::spawn_blocking(move || self.write(result));
        };
        runtime.spawn(work.in_current_span());
    }

    fn write(self, result: Result<Vec<Bytes>, Error>) {
        let Some(disk) = &self.fetcher.disk else { return };
        if let Err(error) = self.fetcher.land_on_disk(disk, &self.run, result) {
            tracing::debug!("nothing more is brought around what is read: {error}");
            self.fetcher.learn(Outcome::DiskFull);
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if !self.run.has_landed() {
            self.fetcher.land(&self.run, Origin::Store, Err(self.fetcher.shut_down()));
        }
    }
}
