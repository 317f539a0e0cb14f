//! What of a blob is in memory and on its way.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::Counters;
use super::again::Damage;
use super::failures::Failures;
use super::memory::Memory;
use super::nearby::Nearby;
use super::plan::Grid;
use super::readahead::Readahead;
use super::run::{Origin, Run};
use super::surroundings::Surroundings;
use super::trace::Recorder;

/// What changes of a blob, under one lock.
pub(super) struct State {
    pub(super) memory: Memory,
    /// Chunks on their way.
    pub(super) flights: HashMap<u64, Flying>,
    /// Requests that somebody waits for.
    pub(super) awaited: usize,
    pub(super) readahead: Readahead,
    pub(super) nearby: Nearby,
    pub(super) surroundings: Surroundings,
    /// What the object has that makes no sense.
    pub(super) damage: Damage,
    pub(super) failures: Failures,
    pub(super) counters: Counters,
    /// Notes what is read, if there is a place to keep that.
    pub(super) recorder: Option<Recorder>,
}

/// Whom a chunk on its way is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Somebody who waits for it.
    Now,
    /// Readers, soon.
    Ahead,
    /// Readers, perhaps: it lies where they have read.
    Nearby,
    /// The disk.
    OnDisk,
}

/// One chunk of a flight.
pub(super) struct Flying {
    pub(super) flight: Arc<Run>,
    pub(super) wanted: Wanted,
}

impl State {
    /// A chunk in memory, for a reader.
    pub(super) fn take(&mut self, chunk: u64) -> Option<Bytes> {
        let (bytes, first_use) = self.memory.get(chunk)?;
        self.counters.hits += 1;
        if first_use {
            self.counters.prefetched_used_bytes += bytes.len() as u64;
        }
        Some(bytes)
    }

    /// The flight that brings a chunk, for a reader.
    pub(super) fn join(&mut self, chunk: u64, grid: Grid) -> Option<Arc<Run>> {
        let flying = self.flights.get_mut(&chunk)?;
        self.counters.joined += 1;
        if std::mem::replace(&mut flying.wanted, Wanted::Now) == Wanted::Ahead {
            self.counters.prefetched_used_bytes += grid.len(&(chunk..chunk + 1));
        }
        Some(flying.flight.clone())
    }

    pub(super) fn is_absent(&self, chunk: u64) -> bool {
        !self.memory.contains(chunk) && !self.flights.contains_key(&chunk)
    }

    /// Notes that a chunk is read.
    pub(super) fn note(&mut self, chunk: u64) {
        if let Some(recorder) = &mut self.recorder {
            recorder.note(chunk);
        }
    }

    /// Enters a run of chunks as on its way, for whom `wanted` says.
    pub(super) fn book(
        &mut self,
        grid: Grid,
        flight: Run,
        wanted: impl Fn(u64) -> Wanted,
    ) -> Arc<Run> {
        let flight = Arc::new(flight);
        self.memory.reserve(grid.len(&flight.chunks));
        if flight.awaited && flight.origin == Origin::Store {
            self.awaited += 1;
        }
        for chunk in flight.chunks.clone() {
            let wanted = wanted(chunk);
            match wanted {
                Wanted::Ahead | Wanted::Nearby => {
                    self.counters.prefetched_bytes += grid.len(&(chunk..chunk + 1));
                }
                Wanted::Now if flight.origin == Origin::Store => self.counters.misses += 1,
                Wanted::Now | Wanted::OnDisk => {}
            }
            self.flights.insert(chunk, Flying { flight: flight.clone(), wanted });
        }
        flight
    }

    /// Ends a flight with what it brought from `from`; what was for the disk alone stays out of memory, as
    /// does what another flight was sent for since.
    pub(super) fn land(
        &mut self,
        grid: Grid,
        flight: &Run,
        from: Origin,
        result: Result<&[Bytes], &super::Error>,
    ) {
        self.memory.release(grid.len(&flight.chunks));
        if flight.awaited && flight.origin == Origin::Store {
            self.awaited -= 1;
        }
        if result.is_err() {
            self.counters.failures += 1;
        }
        let mut brought = result.unwrap_or_default().iter();
        for chunk in flight.chunks.clone() {
            let is_current = |flying: &Flying| std::ptr::eq(Arc::as_ptr(&flying.flight), flight);
            if !self.flights.get(&chunk).is_some_and(is_current) {
                brought.next();
                continue;
            }
            let flying = self.flights.remove(&chunk);
            let wanted = flying.map_or(Wanted::Now, |flying| flying.wanted);
            if let Some(bytes) = brought.next() {
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
