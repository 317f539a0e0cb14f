//! Single flight: what several threads want at once is made by one of them, for all.
//!
//! A [`Flight`] is one thing that is being made: somebody lands it, and any number of threads wait for it.
//! [`Flights`] knows them by key: the first who asks leads, the others join. Blocks that are decoded and inodes
//! that are copied up have keys. Chunks on their way are flights without, as one request brings several.
//!
//! Who leads may have to wait for the store. A thread that must not is told so, rather than made to wait for
//! one that does.
//!
//! `tests/loom` goes through all interleavings of a few threads.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// Something that is being made. It ends once.
#[derive(Debug)]
pub(crate) struct Flight<T> {
    outcome: Mutex<Outcome<T>>,
    ended: Condvar,
    /// Whether whoever leads it may wait for the store.
    may_wait: bool,
}

#[derive(Debug)]
enum Outcome<T> {
    Pending,
    Landed(T),
    Abandoned,
}

/// What came of waiting.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Waited<T> {
    /// What was made.
    Landed(T),
    /// Whoever led it ended without making anything: it is anybody's again.
    Abandoned,
    /// Nothing, in the time that there was.
    Late,
    /// This thread must not wait, and whoever leads may have to.
    WouldWait,
}

impl<T> Flight<T> {
    /// Led by a thread that may wait for the store or, as `may_wait` says, must not.
    pub(crate) fn new(may_wait: bool) -> Self {
        let (outcome, ended) = (Mutex::new(Outcome::Pending), Condvar::new());
        Self { outcome, ended, may_wait }
    }

    /// Ends it with what was made.
    pub(crate) fn land(&self, made: T) {
        self.end(Outcome::Landed(made));
    }

    fn end(&self, outcome: Outcome<T>) {
        let mut ended = self.outcome.lock();
        if matches!(*ended, Outcome::Pending) {
            *ended = outcome;
            self.ended.notify_all();
        }
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        !matches!(*self.outcome.lock(), Outcome::Pending)
    }

    /// Blocks until it has ended, at most until `end`, and takes what is wanted of it. `may_wait` is
    /// whether this thread may wait for the store.
    pub(crate) fn wait<U>(
        &self,
        end: Option<Instant>,
        may_wait: bool,
        take: impl FnOnce(&T) -> U,
    ) -> Waited<U> {
        let mut outcome = self.outcome.lock();
        loop {
            match (&*outcome, end) {
                (Outcome::Landed(made), _) => return Waited::Landed(take(made)),
                (Outcome::Abandoned, _) => return Waited::Abandoned,
                (Outcome::Pending, _) if self.may_wait && !may_wait => return Waited::WouldWait,
                (Outcome::Pending, None) => self.ended.wait(&mut outcome),
                (Outcome::Pending, Some(end)) if Instant::now() >= end => return Waited::Late,
                (Outcome::Pending, Some(end)) => {
                    self.ended.wait_until(&mut outcome, end);
                }
            }
        }
    }
}

/// What is being made, by key.
#[derive(Debug)]
pub(crate) struct Flights<K, T>(Mutex<HashMap<K, Arc<Flight<T>>>>);

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

/// Whose turn it is.
pub(crate) enum Claim<'a, K: Hash + Eq + Copy, T> {
    /// The caller's.
    Lead(Lead<'a, K, T>),
    /// Somebody is at it.
    Join(Arc<Flight<T>>),
}

/// The duty to end a flight. Dropped, it is abandoned, unless it has landed.
pub(crate) struct Lead<'a, K: Hash + Eq + Copy, T> {
    flights: &'a Flights<K, T>,
    key: K,
    flight: Arc<Flight<T>>,
}

impl<K: Hash + Eq + Copy, T> Flights<K, T> {
    /// Whose turn it is to make `key`; `may_wait` is whether this thread may wait for the store.
    pub(crate) fn claim(&self, key: K, may_wait: bool) -> Claim<'_, K, T> {
        let mut flights = self.0.lock();
        if let Some(flight) = flights.get(&key) {
            return Claim::Join(Arc::clone(flight));
        }
        let flight = Arc::new(Flight::new(may_wait));
        flights.insert(key, Arc::clone(&flight));
        Claim::Lead(Lead { flights: self, key, flight })
    }
}

impl<K: Hash + Eq + Copy, T> Lead<'_, K, T> {
    /// Hands what was made to all who joined. It has to be where later callers look first: they find no
    /// flight any more.
    pub(crate) fn land(self, made: T) {
        self.leave();
        self.flight.land(made);
    }

    /// Those who come from now on join no more.
    fn leave(&self) {
        let mut flights = self.flights.0.lock();
        if flights.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            flights.remove(&self.key);
        }
    }
}

impl<K: Hash + Eq + Copy, T> Drop for Lead<'_, K, T> {
    fn drop(&mut self) {
        if !self.flight.has_ended() {
            self.leave();
            self.flight.end(Outcome::Abandoned);
        }
    }
}
