//! Decoded blocks in memory: a byte budget, and one decode however many readers wait for it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::{Condvar, Mutex};

use super::Error;
use crate::cache::may_wait;

/// What a cached value costs.
pub(super) trait Weigh {
    /// Bytes it keeps allocated, roughly.
    fn weight(&self) -> usize;
}

/// What keeping a value costs beside it: entries of map and list, and the count of references. An
/// archive of tiny blocks would else get far more memory than it is granted.
const OVERHEAD: usize = 128;

fn cost(value: &impl Weigh) -> usize {
    value.weight() + OVERHEAD
}

/// The most recently used blocks, within a budget of bytes (but never fewer than one block).
pub(super) struct DecodedCache<K: Hash + Eq + Copy, V> {
    state: Mutex<State<K, V>>,
    budget: usize,
    hits: AtomicU64,
    decodes: AtomicU64,
    waits: AtomicU64,
}

struct State<K: Hash + Eq, V> {
    blocks: LruCache<K, V>,
    weight: usize,
    flights: HashMap<K, Arc<Flight<V>>>,
}

/// One decode under way.
pub(super) struct Flight<V> {
    /// Whether whoever leads it may wait for the store.
    may_wait: bool,
    outcome: Mutex<Outcome<V>>,
    landed: Condvar,
}

enum Outcome<V> {
    Pending,
    Landed(Result<V, Error>),
    /// Whoever led it was unwound by a panic.
    Abandoned,
}

/// What [`DecodedCache::claim`] found.
pub(super) enum Claim<'a, K: Hash + Eq + Copy, V: Clone + Weigh> {
    /// It is in memory.
    Ready(V),
    /// Nobody has it: the caller decodes it, and says so to the others.
    Lead(Lead<'a, K, V>),
    /// Someone else is at it.
    Wait(Arc<Flight<V>>),
}

/// The duty to land a flight. Dropped without that, it lets its waiters try for themselves.
pub(super) struct Lead<'a, K: Hash + Eq + Copy, V: Clone + Weigh> {
    cache: &'a DecodedCache<K, V>,
    key: K,
    flight: Arc<Flight<V>>,
}

/// How often a cache was asked, and what came of it, since the archive was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounters {
    /// Blocks found decoded.
    pub hits: u64,
    /// Blocks decoded, or found not to decode.
    pub decodes: u64,
    /// Times a reader waited for a decode that another had begun.
    pub waits: u64,
}

impl<K: Hash + Eq + Copy, V: Clone + Weigh> DecodedCache<K, V> {
    pub(super) fn new(budget: usize) -> Self {
        let state = State { blocks: LruCache::unbounded(), weight: 0, flights: HashMap::new() };
        Self {
            state: Mutex::new(state),
            budget,
            hits: AtomicU64::new(0),
            decodes: AtomicU64::new(0),
            waits: AtomicU64::new(0),
        }
    }

    /// The block if it is decoded. Never waits for a decode.
    pub(super) fn get(&self, key: K) -> Option<V> {
        let found = self.state.lock().blocks.get(&key).cloned();
        if found.is_some() {
            self.hits.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    /// The block, or whose turn it is to decode it. Whoever claims several leads them all home
    /// before waiting for any, or two readers could wait for each other.
    pub(super) fn claim(&self, key: K) -> Claim<'_, K, V> {
        let mut state = self.state.lock();
        if let Some(value) = state.blocks.get(&key) {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Claim::Ready(value.clone());
        }
        if let Some(flight) = state.flights.get(&key) {
            self.waits.fetch_add(1, Ordering::Relaxed);
            return Claim::Wait(Arc::clone(flight));
        }
        let flight = Arc::new(Flight {
            may_wait: may_wait(),
            outcome: Mutex::new(Outcome::Pending),
            landed: Condvar::new(),
        });
        state.flights.insert(key, Arc::clone(&flight));
        Claim::Lead(Lead { cache: self, key, flight })
    }

    /// The block, decoded by `load` unless it is here or on its way.
    pub(super) fn get_or_load(
        &self,
        key: K,
        load: impl Fn() -> Result<V, Error>,
    ) -> Result<V, Error> {
        loop {
            match self.claim(key) {
                Claim::Ready(value) => return Ok(value),
                Claim::Lead(lead) => return lead.land(load()),
                Claim::Wait(flight) => {
                    if let Some(outcome) = flight.wait() {
                        return outcome;
                    }
                }
            }
        }
    }

    /// Drops a block, which did not decode to what it should.
    pub(super) fn forget(&self, key: K) {
        let mut state = self.state.lock();
        if let Some(old) = state.blocks.pop(&key) {
            state.weight -= cost(&old);
        }
    }

    /// Drops all blocks.
    pub(super) fn clear(&self) {
        let mut state = self.state.lock();
        state.blocks.clear();
        state.weight = 0;
    }

    pub(super) fn counters(&self) -> CacheCounters {
        CacheCounters {
            hits: self.hits.load(Ordering::Relaxed),
            decodes: self.decodes.load(Ordering::Relaxed),
            waits: self.waits.load(Ordering::Relaxed),
        }
    }
}

impl<V: Clone> Flight<V> {
    /// What came of it; `None` where nothing did and the caller may claim the block again. A thread that
    /// must not wait for the store does not wait for one that may, either.
    pub(super) fn wait(&self) -> Option<Result<V, Error>> {
        let mut outcome = self.outcome.lock();
        loop {
            match &*outcome {
                Outcome::Pending if self.may_wait && !may_wait() => {
                    return Some(Err(Error::would_wait()));
                }
                Outcome::Pending => self.landed.wait(&mut outcome),
                Outcome::Landed(result) => return Some(result.clone()),
                Outcome::Abandoned => return None,
            }
        }
    }

    fn land(&self, outcome: Outcome<V>) {
        *self.outcome.lock() = outcome;
        self.landed.notify_all();
    }
}

impl<K: Hash + Eq + Copy, V: Clone + Weigh> Lead<'_, K, V> {
    /// Hands the outcome to everyone who waits, and keeps the block if there is one. Returns what
    /// it was given. That this thread must not wait is no outcome: the others try for themselves.
    pub(super) fn land(self, result: Result<V, Error>) -> Result<V, Error> {
        if result.as_ref().is_err_and(Error::is_would_wait) {
            return result;
        }
        self.cache.decodes.fetch_add(1, Ordering::Relaxed);
        let mut evicted = Vec::new();
        {
            let mut state = self.cache.state.lock();
            state.flights.remove(&self.key);
            if let Ok(value) = &result {
                state.weight += cost(value);
                if let Some((_, old)) = state.blocks.push(self.key, value.clone()) {
                    state.weight -= cost(&old);
                }
                while state.weight > self.cache.budget && state.blocks.len() > 1 {
                    let Some((_, old)) = state.blocks.pop_lru() else { break };
                    state.weight -= cost(&old);
                    evicted.push(old);
                }
            }
        }
        // Freeing whole blocks can take longer than all of the above.
        drop(evicted);
        self.flight.land(Outcome::Landed(result.clone()));
        result
    }
}

impl<K: Hash + Eq + Copy, V: Clone + Weigh> Drop for Lead<'_, K, V> {
    fn drop(&mut self) {
        let mut outcome = self.flight.outcome.lock();
        if matches!(*outcome, Outcome::Pending) {
            *outcome = Outcome::Abandoned;
            drop(outcome);
            self.cache.state.lock().flights.remove(&self.key);
            self.flight.landed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ArchiveOffset;
    use std::sync::Barrier;

    #[derive(Clone, Debug, PartialEq)]
    struct Weight(usize);

    impl Weigh for Weight {
        fn weight(&self) -> usize {
            self.0
        }
    }

    fn failure() -> Error {
        Error::corrupt("data block", ArchiveOffset(7), "on purpose")
    }

    #[test]
    fn the_least_recently_used_goes_first_and_one_always_stays() {
        let cache = DecodedCache::new(2 * (4 + OVERHEAD));
        for key in 0..3 {
            cache.get_or_load(key, || Ok(Weight(4))).unwrap();
            cache.get(0);
        }
        assert_eq!([0, 1, 2].map(|key| cache.get(key).is_some()), [true, false, true]);
        cache.get_or_load(3, || Ok(Weight(1000))).unwrap();
        assert_eq!([0, 2, 3].map(|key| cache.get(key).is_some()), [false, false, true]);
    }

    #[test]
    fn a_failed_decode_reaches_its_waiters_and_is_tried_again() {
        let cache: DecodedCache<u8, Weight> = DecodedCache::new(10);
        let Claim::Lead(lead) = cache.claim(0) else { panic!("someone leads already") };
        let Claim::Wait(flight) = cache.claim(0) else { panic!("two lead") };
        lead.land(Err(failure())).unwrap_err();
        assert!(matches!(flight.wait(), Some(Err(Error::Corrupt { .. }))));
        assert_eq!(cache.get_or_load(0, || Ok(Weight(1))).unwrap(), Weight(1));
    }

    #[test]
    fn an_abandoned_flight_lets_its_waiters_go() {
        let cache: DecodedCache<u8, Weight> = DecodedCache::new(10);
        let Claim::Lead(lead) = cache.claim(0) else { panic!("someone leads already") };
        let Claim::Wait(flight) = cache.claim(0) else { panic!("two lead") };
        drop(lead);
        assert!(flight.wait().is_none());
        assert!(matches!(cache.claim(0), Claim::Lead(_)));
    }

    #[test]
    fn many_readers_of_one_block_decode_it_once() {
        let cache: DecodedCache<u8, Weight> = DecodedCache::new(10);
        let (started, decodes) = (Barrier::new(8), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    started.wait();
                    let value = cache.get_or_load(0, || {
                        decodes.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        Ok(Weight(1))
                    });
                    assert_eq!(value.unwrap(), Weight(1));
                });
            }
        });
        assert_eq!(decodes.into_inner(), 1);
        let counters = cache.counters();
        assert_eq!((counters.decodes, counters.hits + counters.waits), (1, 7));
    }
}
