//! Runs of chunks on their way, and those who wait for them.

use std::ops::Range;
use std::time::Instant;

use bytes::Bytes;

use crate::cache::blob::Error;
use crate::cache::prefetch::Wanted;
use crate::single_flight::{Flight, Waited};

/// Where chunks come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cache) enum Origin {
    /// From the store, by a request.
    Store,
    /// From the disk cache.
    Disk,
}

/// A run of chunks that are brought together. Any number of threads can wait for it.
#[derive(Debug)]
pub(in crate::cache) struct Run {
    pub(in crate::cache) chunks: Range<u64>,
    /// Where they are to come from.
    pub(in crate::cache) origin: Origin,
    /// Whom it was sent for.
    pub(in crate::cache) wanted: Wanted,
    /// Since when they are on their way.
    pub(in crate::cache) began: Instant,
    flight: Flight<Result<Vec<Bytes>, Error>>,
}

impl Run {
    pub(in crate::cache) fn new(chunks: Range<u64>, origin: Origin, wanted: Wanted) -> Self {
        // Who must not wait for the store looks where a run comes from before joining it.
        Self { chunks, origin, wanted, began: Instant::now(), flight: Flight::new(true) }
    }

    /// Whether it is a request that somebody waited for from the beginning.
    pub(in crate::cache) fn is_awaited(&self) -> bool {
        (self.wanted, self.origin) == (Wanted::Now, Origin::Store)
    }

    /// Ends it, once.
    pub(in crate::cache) fn land(&self, result: Result<Vec<Bytes>, Error>) {
        self.flight.land(result);
    }

    /// Whether it has ended.
    pub(in crate::cache) fn has_landed(&self) -> bool {
        self.flight.has_ended()
    }

    /// Blocks until it has ended, and returns one of its chunks; `None` if that is not by `end`.
    pub(in crate::cache) fn wait(
        &self,
        chunk: u64,
        end: Option<Instant>,
    ) -> Option<Result<Bytes, Error>> {
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
