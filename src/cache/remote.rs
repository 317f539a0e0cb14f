//! A blob in an object store, through a cache of chunks.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tracing::Span;

use super::again::Damage;
use super::disk::Disk;
use super::failures::Failures;
use super::joint::{Joint, copy_out};
use super::landing::Landing;
use super::memory::Memory;
use super::nearby::Nearby;
use super::opening::{self, OpenOptions, Opening};
use super::plan::{Grid, runs, spans};
use super::readahead::{Readahead, SKIP};
use super::run::{Origin, Run};
use super::state::{State, Wanted};
use super::surroundings::Surroundings;
use super::trace::{Recorder, Trace};
use super::waiting::{may_wait, take_asked};
use super::{Blob, Counters, Error};
use crate::store::{self, ETag, GetRange, Ranged, ReadRanges};
use crate::types::ByteRange;

/// Longest request for chunks in bytes. Longer reads become several that run in parallel: one
/// connection to S3 or R2 gives 50 to 100 MB/s, which a request of this size takes 10 to 20 ms
/// of, about as long as its first byte.
pub(super) const LONGEST_REQUEST: u64 = 1 << 20;

/// Largest window of readahead in bytes: 16 requests on their way, which at 20 ms and 100 MB/s a
/// connection make 550 MB/s.
const LARGEST_WINDOW: u64 = 16 << 20;

/// Most chunks of a read that may be one of many small ones.
const FEW: usize = 4;

/// What of a budget may wait for its reader or be on its way to it; the rest belongs to what readers
/// asked for.
fn most_ahead(budget: u64) -> u64 {
    budget / 4 * 3
}

/// An object, or what follows an offset in it, that is read through a cache of chunks.
///
/// Its methods block the calling thread, which must not be one of the async runtime's.
pub struct RemoteBlob {
    pub(super) inner: Arc<Inner>,
}

/// What requests share with the blob that they are for.
pub(super) struct Inner {
    pub(super) object: Arc<dyn ReadRanges>,
    etag: Option<ETag>,
    /// Where in the object the blob begins.
    offset: u64,
    pub(super) grid: Grid,
    pub(super) budget: u64,
    pub(super) runtime: Handle,
    pub(super) disk: Option<Disk>,
    pub(super) state: Mutex<State>,
}

impl RemoteBlob {
    /// Opens an object with two parallel requests, for its first chunk and for its end. What they
    /// bring is in memory afterwards. If both are on disk, a short request finds out whether that is
    /// still the object's version.
    ///
    /// # Errors
    /// [`store::Error::Changed`] if the two saw different objects, [`store::Error::OutOfRange`] if
    /// the object is empty or ends before the offset.
    pub fn open(
        object: Arc<dyn ReadRanges>,
        runtime: Handle,
        options: OpenOptions,
    ) -> Result<Self, Error> {
        let chunk = options.chunk_size.max(512);
        // The end is not aligned to chunks; one more keeps the whole of it after alignment.
        let tail_len = options.tail_bytes.saturating_add(chunk);
        let Opening { etag, size, brought, disk } =
            opening::open(&object, &runtime, &options, chunk, tail_len)?;
        let grid = Grid { chunk, size: size.saturating_sub(options.offset) };
        let budget = options.memory_bytes.max(tail_len + 2 * chunk);
        let window = LARGEST_WINDOW.min(most_ahead(budget));
        let on_disk = disk.is_some();
        let recorder = on_disk.then(Recorder::new);
        let inner = Inner {
            object,
            etag,
            offset: options.offset,
            grid,
            budget,
            runtime,
            disk,
            state: Mutex::new(State {
                memory: Memory::new(budget, on_disk),
                flights: HashMap::new(),
                awaited: 0,
                nearby: Nearby::new(chunk),
                surroundings: Surroundings::new(chunk),
                readahead: Readahead::new(window, LONGEST_REQUEST, chunk, grid.size),
                damage: Damage::new(),
                failures: Failures::default(),
                counters: Counters::default(),
                recorder,
            }),
        };
        for ranged in &brought {
            inner.seed(ranged);
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Version of the object, which every later request insists on.
    pub fn etag(&self) -> Option<&ETag> {
        self.inner.etag.as_ref()
    }

    /// Runs a request of its store, and waits for it.
    pub fn wait_for<T>(&self, request: impl Future<Output = T>) -> T {
        self.inner.runtime.block_on(request)
    }

    /// The object this reads from.
    pub fn object(&self) -> &Arc<dyn ReadRanges> {
        &self.inner.object
    }

    /// What has been read first since it was opened; `None` without a disk cache, or if nothing was.
    pub fn trace(&self) -> Option<Trace> {
        let about = self.inner.disk.as_ref()?.about();
        let runs = self.inner.state.lock().recorder.as_ref()?.runs();
        let (etag, size, offset, chunk) =
            (about.etag.clone(), about.size, about.offset, about.chunk);
        (!runs.is_empty()).then_some(Trace { etag, size, offset, chunk, runs })
    }

    /// The trace that was kept of an earlier time.
    pub fn kept_trace(&self) -> Option<Trace> {
        self.inner.disk.as_ref()?.load_trace()
    }

    /// Keeps a trace for the next time; without a disk cache, nowhere.
    ///
    /// # Errors
    /// What writing it says.
    pub fn keep_trace(&self, trace: &Trace) -> std::io::Result<()> {
        self.inner.disk.as_ref().map_or(Ok(()), |disk| disk.save_trace(trace))
    }

    /// What the cache has done so far.
    pub fn counters(&self) -> Counters {
        let disk = self.inner.disk.as_ref().map(Disk::counters).unwrap_or_default();
        let state = self.inner.state.lock();
        Counters {
            prefetched_wasted_bytes: state.memory.wasted(),
            memory_bytes: state.memory.total(),
            disk_hits: disk.hits,
            disk_bytes: disk.bytes,
            disk_written_bytes: disk.written_bytes,
            disk_damaged: disk.damaged,
            disk_dropped: disk.dropped,
            ..state.counters
        }
    }
}

impl Drop for RemoteBlob {
    /// Writes to disk what waits for it. Requests on their way can keep the rest alive for longer.
    fn drop(&mut self) {
        if let Some(disk) = &self.inner.disk {
            disk.finish();
        }
    }
}

impl Blob for RemoteBlob {
    fn size(&self) -> u64 {
        self.inner.grid.size
    }

    fn get(&self, range: ByteRange) -> Option<Bytes> {
        if range.end().0 > self.inner.grid.size {
            return None;
        }
        let mut launches = Vec::new();
        let found = {
            let mut state = self.inner.state.lock();
            let chunks = self.inner.grid.chunks(range);
            if !chunks.clone().all(|chunk| state.memory.contains(chunk)) {
                return None;
            }
            let mut found = Vec::new();
            for chunk in chunks {
                state.note(chunk);
                found.push((chunk, state.take(chunk)?));
            }
            let read = range.start().0..range.end().0;
            self.inner.look_ahead(&mut state, &read, false, &mut launches);
            found
        };
        self.inner.launch(launches);
        let mut joint = Joint::new(range);
        for (chunk, bytes) in found {
            joint.add(self.inner.grid, chunk, &bytes);
        }
        Some(joint.finish())
    }

    fn fetch(&self, ranges: &[ByteRange]) -> Result<Vec<Bytes>, Error> {
        let inner = &self.inner;
        let grid = inner.grid;
        if let Some(range) = ranges.iter().find(|range| range.end().0 > grid.size) {
            return Err(Error::PastEnd { range: *range, size: grid.size });
        }
        let wanted: BTreeSet<u64> = ranges.iter().flat_map(|range| grid.chunks(*range)).collect();
        let wanted: Vec<u64> = wanted.into_iter().collect();
        if !may_wait() && !inner.are_here(&wanted) {
            return Err(Error::WouldWait);
        }
        // More than the budget is fetched bit by bit, so that only the result itself is large.
        let batch = usize::try_from((inner.budget / 2 / grid.chunk).max(1)).unwrap_or(usize::MAX);
        let mut joints: Vec<Joint> = ranges.iter().map(|range| Joint::new(*range)).collect();
        // Neighbours in one call are one read: they do not prove that more will follow.
        let reads = spans(ranges, SKIP);
        for (nth, batch) in wanted.chunks(batch).enumerate() {
            let reads = if nth == 0 { reads.as_slice() } else { &[] };
            for (chunk, bytes) in inner.obtain(batch, reads)? {
                for joint in &mut joints {
                    joint.add(grid, chunk, &bytes);
                }
            }
        }
        Ok(joints.into_iter().map(Joint::finish).collect())
    }

    fn prefetch(&self, range: ByteRange) {
        let grid = self.inner.grid;
        let chunks = grid.chunks(range);
        let chunks = chunks.start..chunks.end.min(grid.size.div_ceil(grid.chunk));
        let mut launches = Vec::new();
        {
            let mut state = self.inner.state.lock();
            let most = usize::try_from(self.inner.allowed_ahead(&state) / grid.chunk);
            self.inner.plan_ahead(&mut state, chunks, most.unwrap_or(usize::MAX), &mut launches);
        }
        self.inner.launch(launches);
    }

    fn fetch_again(&self, range: ByteRange, damaged: &[u8]) -> Result<Option<Bytes>, Error> {
        self.inner.fetch_again(range, damaged, self.get(range))
    }

    fn note_small_file(&self, range: ByteRange) {
        if range.end().0 <= self.inner.grid.size {
            self.inner.bring_surroundings(range);
        }
    }
}

impl Inner {
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
        for chunk in start.div_ceil(self.grid.chunk)..self.grid.size.div_ceil(self.grid.chunk) {
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

    /// The chunks of a batch, in any order, after fetching those that are missing.
    fn obtain(
        self: &Arc<Self>,
        batch: &[u64],
        reads: &[Range<u64>],
    ) -> Result<Vec<(u64, Bytes)>, Error> {
        let mut found = Vec::with_capacity(batch.len());
        let mut waiting: Vec<(u64, Arc<Run>)> = Vec::new();
        let asked = take_asked();
        let mut launches = Vec::new();
        {
            let mut state = self.state.lock();
            let mut missing = Vec::new();
            for &chunk in batch {
                state.note(chunk);
                if let Some(bytes) = state.take(chunk) {
                    found.push((chunk, bytes));
                } else if let Some(flight) = state.join(chunk, self.grid) {
                    waiting.push((chunk, flight));
                } else {
                    missing.push(chunk);
                }
            }
            let missed = !missing.is_empty();
            for (origin, run) in self.runs(&state, &missing) {
                let wanted = |chunk| match missing.contains(&chunk) {
                    true => Wanted::Now,
                    false => Wanted::Ahead,
                };
                let flight = state.book(self.grid, Run::new(run, origin, true), wanted);
                waiting.extend(
                    missing
                        .iter()
                        .filter(|chunk| flight.chunks.contains(chunk))
                        .map(|chunk| (*chunk, flight.clone())),
                );
                launches.push(flight);
            }
            for read in reads {
                self.look_ahead(&mut state, read, missed, &mut launches);
            }
            if batch.len() <= FEW {
                self.look_around(&mut state, batch, &missing, &mut launches);
            }
        }
        // Readers' requests come first in the list, and so on the wire; what is on disk is read
        // here, while they are on their way.
        self.launch(launches);
        found.extend(self.wait(&waiting, asked)?);
        found.sort_by_key(|(chunk, _)| *chunk);
        Ok(found)
    }

    /// Notes a read, and plans what it makes worth fetching ahead.
    fn look_ahead(
        &self,
        state: &mut State,
        read: &Range<u64>,
        missed: bool,
        launches: &mut Vec<Arc<Run>>,
    ) {
        let allowed = self.allowed_ahead(state);
        if let Some(ahead) = state.readahead.access(read, missed, allowed) {
            let chunks = ahead.start / self.grid.chunk..ahead.end.div_ceil(self.grid.chunk);
            // What readahead says is within what is allowed; it counts on all of it.
            self.plan_ahead(state, chunks, usize::MAX, launches);
        }
    }

    /// Plans to fetch what lies around a read of few chunks, where that is worth it. `missing` are those
    /// of them that nobody had in memory.
    fn look_around(
        &self,
        state: &mut State,
        read: &[u64],
        missing: &[u64],
        launches: &mut Vec<Arc<Run>>,
    ) {
        let count = self.grid.size.div_ceil(self.grid.chunk);
        let is_miss = |chunk: &&u64| missing.contains(*chunk) && !self.is_on_disk(**chunk);
        let Some(chunk) = read.iter().find(is_miss).or(read.first()) else { return };
        let missed = is_miss(&chunk);
        let Some(region) = state.nearby.access(*chunk, missed) else { return };
        let absent: Vec<u64> = (region.start..region.end.min(count))
            .filter(|chunk| state.is_absent(*chunk) && !self.is_on_disk(*chunk))
            .collect();
        // What readers wait for is not pushed out of memory by what they may never want.
        let flying = (state.flights.len() + absent.len()) as u64 * self.grid.chunk;
        if flying > self.budget / 2 {
            return;
        }
        for (origin, run) in self.runs(state, &absent) {
            let flight = Run::new(run, origin, false);
            launches.push(state.book(self.grid, flight, |_| Wanted::Nearby));
        }
    }

    fn is_on_disk(&self, chunk: u64) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.holds(chunk))
    }

    /// Whether all of `chunks` are in memory or on disk, or are being read from there.
    fn are_here(&self, chunks: &[u64]) -> bool {
        let state = self.state.lock();
        chunks.iter().all(|chunk| {
            state.memory.contains(*chunk)
                || match state.flights.get(chunk) {
                    Some(flying) => flying.flight.origin == Origin::Disk,
                    None => self.is_on_disk(*chunk),
                }
        })
    }

    /// Plans requests for what is missing of `chunks`, for `most` of them.
    fn plan_ahead(
        &self,
        state: &mut State,
        chunks: Range<u64>,
        most: usize,
        launches: &mut Vec<Arc<Run>>,
    ) {
        let missing: Vec<u64> = chunks.filter(|chunk| state.is_absent(*chunk)).take(most).collect();
        for (origin, run) in self.runs(state, &missing) {
            let flight = Run::new(run, origin, false);
            launches.push(state.book(self.grid, flight, |_| Wanted::Ahead));
        }
    }

    /// Bytes that may be fetched ahead now. All that is on its way counts, whoever wants it: when it
    /// comes, it needs room.
    fn allowed_ahead(&self, state: &State) -> u64 {
        most_ahead(self.budget).saturating_sub(state.memory.unused() + state.memory.reserved())
    }

    /// Groups missing chunks, which are sorted, by where they come from, and into runs.
    pub(super) fn runs(&self, state: &State, missing: &[u64]) -> Vec<(Origin, Range<u64>)> {
        let longest = (LONGEST_REQUEST / self.grid.chunk).max(1);
        let on_disk = |chunk: u64| self.is_on_disk(chunk);
        let (kept, missing): (Vec<u64>, Vec<u64>) =
            missing.iter().partition(|chunk| on_disk(**chunk));
        let is_absent = |chunk| state.is_absent(chunk) && !on_disk(chunk);
        let fetched = runs(&missing, longest, is_absent).into_iter();
        let read = runs(&kept, longest, |_| false).into_iter();
        let fetched = fetched.map(|run| (Origin::Store, run));
        fetched.chain(read.map(|run| (Origin::Disk, run))).collect()
    }

    /// Sends the requests of flights that are entered, and reads here what somebody waits for and is
    /// on disk.
    fn launch(self: &Arc<Self>, flights: Vec<Arc<Run>>) {
        let mut here = Vec::new();
        for flight in flights {
            let landing = Landing { inner: self.clone(), flight };
            match (landing.origin(), landing.flight.awaited) {
                (Origin::Store, _) => landing.send(),
                (Origin::Disk, true) => here.push(landing),
                (Origin::Disk, false) => {
                    let span = Span::current();
                    self.runtime.spawn_blocking(move || span.in_scope(|| landing.read()));
                }
            }
        }
        for landing in here {
            landing.read();
        }
    }

    pub(super) async fn request(&self, chunks: &Range<u64>) -> Result<Vec<Bytes>, Error> {
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

    /// Writes to disk what a flight from the store brought, and then ends it: from then on readers look
    /// there.
    pub(super) fn land_on_disk(
        &self,
        disk: &Disk,
        flight: &Run,
        result: Result<Vec<Bytes>, Error>,
    ) -> std::io::Result<()> {
        let mut brought = flight.chunks.clone().zip(result.iter().flatten());
        let written = brought.try_for_each(|(chunk, bytes)| disk.write(chunk, bytes));
        self.land(flight, Origin::Store, result);
        written
    }

    /// Ends a flight: keeps what it brought, and wakes those who wait.
    pub(super) fn land(&self, flight: &Run, from: Origin, result: Result<Vec<Bytes>, Error>) {
        {
            let mut state = self.state.lock();
            state.land(self.grid, flight, from, result.as_deref());
            // What is refused at once is no question of time.
            let deadline = self.object.pace().deadline;
            if let (Err(error), Some(deadline)) = (&result, deadline)
                && flight.began.elapsed() >= deadline / 2
            {
                state.failures.note(flight.chunks.clone(), error);
            }
        }
        if let (Some(disk), Origin::Store, Ok(brought)) = (&self.disk, from, &result) {
            for (chunk, bytes) in flight.chunks.clone().zip(brought) {
                disk.keep(chunk, bytes);
            }
        }
        flight.land(result);
    }
}
