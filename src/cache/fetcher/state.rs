//! What of a blob is in memory and on its way.
//!
//! Nothing in here sends or waits: what is booked is handed back as runs, for the fetcher to launch once it
//! has let go of the lock.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::failures::Failures;
use super::run::{Origin, Run};
use crate::cache::blob::Error;
use crate::cache::counters::Counters;
use crate::cache::disk::Disk;
use crate::cache::grid::{Grid, runs};
use crate::cache::memory::Memory;
use crate::cache::prefetch::{Here, Prefetcher, Read, Wanted, Where};

/// What changes of a blob, under one lock.
pub(in crate::cache) struct State {
    grid: Grid,
    /// Bytes that may be in memory and on their way.
    budget: u64,
    disk: Option<Arc<Disk>>,
    pub(super) memory: Memory,
    /// Chunks on their way.
    flying: HashMap<u64, Flying>,
    /// Requests that somebody waits for.
    awaited: usize,
    pub(in crate::cache) prefetcher: Prefetcher,
    pub(super) failures: Failures,
    pub(super) counters: Counters,
}

/// One chunk of a run.
struct Flying {
    run: Arc<Run>,
    wanted: Wanted,
}

/// What a reader finds.
#[derive(Default)]
pub(in crate::cache) struct Found {
    /// Chunks in memory.
    pub(in crate::cache) here: Vec<(u64, Bytes)>,
    /// Chunks on their way, now if not before.
    pub(in crate::cache) coming: Vec<(u64, Arc<Run>)>,
    /// Runs to launch: the reader's own, and then what is fetched ahead.
    pub(in crate::cache) booked: Vec<Arc<Run>>,
}

impl State {
    pub(super) fn new(grid: Grid, budget: u64, disk: Option<Arc<Disk>>) -> Self {
        Self {
            grid,
            budget,
            memory: Memory::new(budget, disk.is_some()),
            flying: HashMap::new(),
            awaited: 0,
            prefetcher: Prefetcher::new(grid, budget, disk.is_some()),
            failures: Failures::default(),
            counters: Counters::default(),
            disk,
        }
    }

    /// Chunks for a reader, if all of them are in memory.
    pub(in crate::cache) fn take_all(&mut self, chunks: Range<u64>) -> Option<Vec<(u64, Bytes)>> {
        if !chunks.clone().all(|chunk| self.memory.contains(chunk)) {
            return None;
        }
        chunks.map(|chunk| Some((chunk, self.take(chunk)?))).collect()
    }

    /// Chunks for a reader of `spans`, after booking those that are missing and what it makes worth
    /// fetching ahead.
    pub(in crate::cache) fn take_or_book(&mut self, chunks: &[u64], spans: &[Range<u64>]) -> Found {
        let mut found = Found::default();
        let mut missing = Vec::new();
        for &chunk in chunks {
            if let Some(bytes) = self.take(chunk) {
                found.here.push((chunk, bytes));
            } else if let Some(run) = self.join(chunk) {
                found.coming.push((chunk, run));
            } else {
                missing.push(chunk);
            }
        }
        let requested: Vec<u64> =
            missing.iter().copied().filter(|chunk| !self.is_on_disk(*chunk)).collect();
        for (origin, run) in self.runs(&missing) {
            let wanted = |chunk| match missing.contains(&chunk) {
                true => Wanted::Now,
                false => Wanted::Ahead,
            };
            let run = self.book(Run::new(run, origin, Wanted::Now), wanted);
            let its = missing.iter().filter(|chunk| run.chunks.contains(chunk));
            found.coming.extend(its.map(|chunk| (*chunk, Arc::clone(&run))));
            found.booked.push(run);
        }
        let missed = !missing.is_empty();
        let read = Read::Miss { spans, chunks, missed, requested: &requested };
        found.booked.extend(self.observe(&read));
        found
    }

    /// Has a read observed, and books what is worth fetching because of it.
    pub(in crate::cache) fn observe(&mut self, read: &Read<'_>) -> Vec<Arc<Run>> {
        let Self { grid, budget, disk, memory, flying, prefetcher, .. } = self;
        let is_on_disk = |chunk| disk.as_ref().is_some_and(|disk| disk.holds(chunk));
        let place = |chunk| {
            if memory.contains(chunk) || flying.contains_key(&chunk) {
                Where::Here
            } else if is_on_disk(chunk) {
                Where::OnDisk
            } else {
                Where::Nowhere
            }
        };
        let (unread, on_their_way) = (memory.unused(), memory.reserved());
        let plan = prefetcher.observe(
            read,
            &Here { grid: *grid, budget: *budget, unread, flying: on_their_way, place: &place },
        );
        let mut booked = Vec::new();
        for wish in plan {
            // All that is worth having is in the plan: nothing is fetched along with it.
            let (kept, missing): (Vec<u64>, Vec<u64>) =
                wish.chunks.iter().partition(|chunk| self.is_on_disk(**chunk));
            for (origin, chunks) in [(Origin::Store, missing), (Origin::Disk, kept)] {
                for run in runs(&chunks, self.grid.longest(), |_| false) {
                    booked.push(self.book(Run::new(run, origin, wish.wanted), |_| wish.wanted));
                }
            }
        }
        booked
    }

    /// Drops chunks from memory and books them from the store, even where they are on their way from disk.
    pub(in crate::cache) fn book_again(&mut self, chunks: Range<u64>) -> Found {
        let mut found = Found::default();
        let mut missing = Vec::new();
        for chunk in chunks {
            self.memory.remove(chunk);
            let flying = self.flying.get(&chunk).map(|flying| &flying.run);
            match flying.filter(|run| run.origin == Origin::Store) {
                Some(run) => found.coming.push((chunk, Arc::clone(run))),
                None => missing.push(chunk),
            }
        }
        self.counters.fetched_again += missing.len() as u64;
        for run in runs(&missing, self.grid.longest(), |_| false) {
            let run = self.book(Run::new(run, Origin::Store, Wanted::Now), |_| Wanted::Now);
            found.coming.extend(run.chunks.clone().map(|chunk| (chunk, Arc::clone(&run))));
            found.booked.push(run);
        }
        found.coming.sort_by_key(|(chunk, _)| *chunk);
        found
    }

    /// Books, for the disk, the first part of a run that is neither there nor on its way.
    pub(super) fn book_for_disk(&mut self, chunks: &Range<u64>) -> Option<Arc<Run>> {
        let missing: Vec<u64> = chunks
            .clone()
            .filter(|chunk| !self.flying.contains_key(chunk) && !self.is_on_disk(*chunk))
            .collect();
        let (origin, run) = self.runs(&missing).into_iter().next()?;
        Some(self.book(Run::new(run, origin, Wanted::OnDisk), |_| Wanted::OnDisk))
    }

    /// Groups missing chunks, which are sorted, by where they come from, and into runs.
    pub(super) fn runs(&self, missing: &[u64]) -> Vec<(Origin, Range<u64>)> {
        let (kept, missing): (Vec<u64>, Vec<u64>) =
            missing.iter().partition(|chunk| self.is_on_disk(**chunk));
        let is_nowhere = |chunk| self.is_absent(chunk) && !self.is_on_disk(chunk);
        let fetched = runs(&missing, self.grid.longest(), is_nowhere).into_iter();
        let read = runs(&kept, self.grid.longest(), |_| false).into_iter();
        let fetched = fetched.map(|run| (Origin::Store, run));
        fetched.chain(read.map(|run| (Origin::Disk, run))).collect()
    }

    /// Whether all of `chunks` are in memory or on disk, or are being read from there.
    pub(in crate::cache) fn are_here(&self, chunks: &[u64]) -> bool {
        chunks.iter().all(|chunk| {
            self.memory.contains(*chunk)
                || match self.flying.get(chunk) {
                    Some(flying) => flying.run.origin == Origin::Disk,
                    None => self.is_on_disk(*chunk),
                }
        })
    }

    /// Whether a reader waits for a request of its own.
    pub(in crate::cache) fn is_awaited(&self) -> bool {
        self.awaited > 0
    }

    /// What was done so far, but for the disk's part.
    pub(in crate::cache) fn counters(&self) -> Counters {
        Counters {
            prefetched_wasted_bytes: self.memory.wasted(),
            memory_bytes: self.memory.total(),
            ..self.counters
        }
    }

    /// A chunk in memory, for a reader.
    fn take(&mut self, chunk: u64) -> Option<Bytes> {
        let (bytes, first_use) = self.memory.get(chunk)?;
        self.counters.hits += 1;
        if first_use {
            self.counters.prefetched_used_bytes += bytes.len() as u64;
        }
        Some(bytes)
    }

    /// The run that brings a chunk, for a reader.
    fn join(&mut self, chunk: u64) -> Option<Arc<Run>> {
        let flying = self.flying.get_mut(&chunk)?;
        self.counters.joined += 1;
        if std::mem::replace(&mut flying.wanted, Wanted::Now) == Wanted::Ahead {
            self.counters.prefetched_used_bytes += self.grid.len(&(chunk..chunk + 1));
        }
        Some(flying.run.clone())
    }

    fn is_absent(&self, chunk: u64) -> bool {
        !self.memory.contains(chunk) && !self.flying.contains_key(&chunk)
    }

    fn is_on_disk(&self, chunk: u64) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.holds(chunk))
    }

    /// Enters a run of chunks as on its way, for whom `wanted` says.
    fn book(&mut self, run: Run, wanted: impl Fn(u64) -> Wanted) -> Arc<Run> {
        let run = Arc::new(run);
        self.memory.reserve(self.grid.len(&run.chunks));
        if run.is_awaited() {
            self.awaited += 1;
        }
        for chunk in run.chunks.clone() {
            let wanted = wanted(chunk);
            match wanted {
                Wanted::Ahead | Wanted::Nearby => {
                    self.counters.prefetched_bytes += self.grid.len(&(chunk..chunk + 1));
                }
                Wanted::Now if run.origin == Origin::Store => self.counters.misses += 1,
                Wanted::Now | Wanted::OnDisk => {}
            }
            self.flying.insert(chunk, Flying { run: run.clone(), wanted });
        }
        run
    }

    /// Ends a run with what it brought from `from`; what was for the disk alone stays out of memory, as
    /// does what another run was sent for since.
    pub(super) fn land(&mut self, run: &Run, from: Origin, result: Result<&[Bytes], &Error>) {
        self.memory.release(self.grid.len(&run.chunks));
        if run.is_awaited() {
            self.awaited -= 1;
        }
        if result.is_err() {
            self.counters.failures += 1;
        }
        let mut brought = result.unwrap_or_default().iter();
        for chunk in run.chunks.clone() {
            let bytes = brought.next();
            let is_current = |flying: &Flying| std::ptr::eq(Arc::as_ptr(&flying.run), run);
            if !self.flying.get(&chunk).is_some_and(is_current) {
                continue;
            }
            let flying = self.flying.remove(&chunk);
            let wanted = flying.map_or(Wanted::Now, |flying| flying.wanted);
            if let Some(bytes) = bytes {
                self.failures.clear(chunk);
                if from == Origin::Store {
                    self.counters.fetched_bytes += bytes.len() as u64;
                }
                if wanted != Wanted::OnDisk {
                    self.memory.insert(chunk, bytes.clone(), wanted == Wanted::Ahead);
                }
            }
        }
    }
}
