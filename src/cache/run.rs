//! Runs of chunks on their way, and those who wait for them.

use std::ops::Range;
use std::time::Instant;

use bytes::Bytes;

use super::Error;
use crate::single_flight::{Flight, Waited};

/// Where chunks come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// From the store, by a request.
    Store,
    /// From the disk cache.
    Disk,
}

/// A run of chunks that are brought together. Any number of threads can wait for it.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) chunks: Range<u64>,
    /// Where they are to come from.
    pub(super) origin: Origin,
    /// Whether somebody waited from the beginning.
    pub(super) awaited: bool,
    /// Since when they are on their way.
    pub(super) began: Instant,
    flight: Flight<Result<Vec<Bytes>, Error>>,
}

impl Run {
    pub(super) fn new(chunks: Range<u64>, origin: Origin, awaited: bool) -> Self {
        // Who must not wait for the store looks where a run comes from before joining it.
        Self { chunks, origin, awaited, began: Instant::now(), flight: Flight::new(true) }
    }

    /// Ends it, once.
    pub(super) fn land(&self, result: Result<Vec<Bytes>, Error>) {
        self.flight.land(result);
    }

    /// Whether it has ended.
    pub(super) fn has_landed(&self) -> bool {
        self.flight.has_ended()
    }

    /// Blocks until it has ended, and returns one of its chunks; `None` if that is not by `end`.
    pub(super) fn wait(&self, chunk: u64, end: Option<Instant>) -> Option<Result<Bytes, Error>> {
        let take = |result: &Result<Vec<Bytes>, Error>| {
            let index = usize::try_from(chunk.wrapping_sub(self.chunks.start));
            let brought = result.as_ref().map_err(Error::clone)?;
            // Landing checks the number of chunks, and only chunks of the run are waited for.
            Ok(index.ok().and_then(|index| brought.get(index)).cloned().unwrap_or_default())
        };
        match self.flight.wait(end, true, take) {
            Waited::Landed(chunk) => Some(chunk),
            Waited::Late | Waited::Abandoned | Waited::WouldWait => None,
        }
    }
}
