//! What a store has done so far, for `status`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use parking_lot::Mutex;

/// A snapshot of a store's traffic since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// GET requests sent, each attempt counted.
    pub gets: u64,
    /// PUT, POST and DELETE requests sent, each attempt counted.
    pub writes: u64,
    /// Bytes of object bodies received.
    pub bytes_in: u64,
    /// Bytes of object bodies sent, each attempt counted.
    pub bytes_out: u64,
    /// Attempts that failed and were tried again.
    pub retries: u64,
    /// Operations that failed for good.
    pub errors: u64,
    /// GETs that were sent a second time because the first took long.
    pub hedges: u64,
    /// Those of them that were answered first.
    pub hedges_won: u64,
}

/// The live side of [`Counters`].
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) gets: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) bytes_in: AtomicU64,
    pub(super) bytes_out: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) errors: AtomicU64,
    /// When bytes last arrived.
    progress: Mutex<Option<Instant>>,
    /// Requests that wait because the server asked for it.
    holding_off: AtomicU64,
}

/// A pause that the server asked for.
pub(super) struct HoldOff<'a>(&'a AtomicU64);

impl Drop for HoldOff<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Tally {
    /// Notes bytes of a body.
    pub(super) fn arrived(&self, bytes: u64) {
        add(&self.bytes_in, bytes);
        *self.progress.lock() = Some(Instant::now());
    }

    pub(super) fn progress(&self) -> Option<Instant> {
        *self.progress.lock()
    }

    /// Begins a pause that the server asked for.
    pub(super) fn hold_off(&self) -> HoldOff<'_> {
        add(&self.holding_off, 1);
        HoldOff(&self.holding_off)
    }

    pub(super) fn holding_off(&self) -> bool {
        self.holding_off.load(Relaxed) > 0
    }

    pub(super) fn snapshot(&self) -> Counters {
        Counters {
            gets: self.gets.load(Relaxed),
            writes: self.writes.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            retries: self.retries.load(Relaxed),
            errors: self.errors.load(Relaxed),
            ..Counters::default()
        }
    }
}

/// Adds to one of the counters.
pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}
