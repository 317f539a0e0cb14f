//! Chunks on their way, and those who wait for them.

use std::ops::Range;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::Error;

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
pub(super) struct Flight {
    pub(super) chunks: Range<u64>,
    /// Where they are to come from.
    pub(super) origin: Origin,
    /// Whether somebody waited from the beginning.
    pub(super) awaited: bool,
    /// Since when they are on their way.
    pub(super) began: Instant,
    landed: Mutex<Option<Result<Vec<Bytes>, Error>>>,
    arrival: Condvar,
}

impl Flight {
    pub(super) fn new(chunks: Range<u64>, origin: Origin, awaited: bool) -> Self {
        let (landed, arrival) = (Mutex::new(None), Condvar::new());
        Self { chunks, origin, awaited, began: Instant::now(), landed, arrival }
    }

    /// Ends the flight, once.
    pub(super) fn land(&self, result: Result<Vec<Bytes>, Error>) {
        self.landed.lock().get_or_insert(result);
        self.arrival.notify_all();
    }

    /// Whether the flight has ended.
    pub(super) fn has_landed(&self) -> bool {
        self.landed.lock().is_some()
    }

    /// Blocks until the flight has ended, and returns one of its chunks; `None` if that is not by `end`.
    pub(super) fn wait(&self, chunk: u64, end: Option<Instant>) -> Option<Result<Bytes, Error>> {
        let mut landed = self.landed.lock();
        loop {
            match (&*landed, end) {
                (None, None) => self.arrival.wait(&mut landed),
                (None, Some(end)) if Instant::now() >= end => return None,
                (None, Some(end)) => drop(self.arrival.wait_until(&mut landed, end)),
                (Some(Err(error)), _) => return Some(Err(error.clone())),
                (Some(Ok(chunks)), _) => {
                    let index = usize::try_from(chunk.wrapping_sub(self.chunks.start));
                    let found = index.ok().and_then(|index| chunks.get(index));
                    // Land checks the number of chunks, and only chunks of the run are waited for.
                    return Some(Ok(found.cloned().unwrap_or_default()));
                }
            }
        }
    }
}
