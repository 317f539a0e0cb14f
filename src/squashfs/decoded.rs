//! Decoded blocks in memory: a byte budget, and one decode however many readers wait for it.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::Mutex;

use super::error::Error;
use crate::cache::may_wait;
use crate::single_flight::{self, Flight, Flights, Waited};

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
    blocks: Mutex<Blocks<K, V>>,
    decoding: Flights<K, Result<V, Error>>,
    budget: usize,
    hits: AtomicU64,
    decodes: AtomicU64,
    waits: AtomicU64,
}

struct Blocks<K: Hash + Eq, V> {
    recent: LruCache<K, V>,
    weight: usize,
}

/// What [`DecodedCache::claim`] found.
pub(super) enum Claim<'a, K: Hash + Eq + Copy, V> {
    /// It is in memory.
    Ready(V),
    /// Nobody has it: the caller decodes it, and says so to the others.
    Lead(Lead<'a, K, V>),
    /// Someone else is at it: see [`join`].
    Join(Arc<Flight<Result<V, Error>>>),
}

/// The duty to decode a block. Dropped without that, it lets its waiters try for themselves.
pub(super) struct Lead<'a, K: Hash + Eq + Copy, V> {
    cache: &'a DecodedCache<K, V>,
    key: K,
    lead: single_flight::Lead<'a, K, Result<V, Error>>,
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
        Self {
            blocks: Mutex::new(Blocks { recent: LruCache::unbounded(), weight: 0 }),
            decoding: Flights::default(),
            budget,
            hits: AtomicU64::new(0),
            decodes: AtomicU64::new(0),
            waits: AtomicU64::new(0),
        }
    }

    /// The block if it is decoded. Never waits for a decode.
    pub(super) fn get(&self, key: K) -> Option<V> {
        let found = self.blocks.lock().recent.get(&key).cloned();
        if found.is_some() {
            self.hits.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    /// The block, or whose turn it is to decode it. Whoever claims several leads them all home
    /// before waiting for any, or two readers could wait for each other.
    pub(super) fn claim(&self, key: K) -> Claim<'_, K, V> {
        if let Some(value) = self.get(key) {
            return Claim::Ready(value);
        }
        match self.decoding.claim(key, may_wait()) {
            single_flight::Claim::Join(flight) => {
                self.waits.fetch_add(1, Ordering::Relaxed);
                Claim::Join(flight)
            }
            // Another may have landed since it was looked for.
            single_flight::Claim::Lead(lead) => match self.get(key) {
                Some(value) => {
                    lead.land(Ok(value.clone()));
                    Claim::Ready(value)
                }
                None => Claim::Lead(Lead { cache: self, key, lead }),
            },
        }
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
                Claim::Join(flight) => {
                    if let Some(outcome) = join(&flight) {
                        return outcome;
                    }
                }
            }
        }
    }

    /// Drops a block, which did not decode to what it should.
    pub(super) fn forget(&self, key: K) {
        let mut blocks = self.blocks.lock();
        if let Some(old) = blocks.recent.pop(&key) {
            blocks.weight -= cost(&old);
        }
    }

    /// Drops all blocks.
    pub(super) fn clear(&self) {
        let mut blocks = self.blocks.lock();
        blocks.recent.clear();
        blocks.weight = 0;
    }

    pub(super) fn counters(&self) -> CacheCounters {
        CacheCounters {
            hits: self.hits.load(Ordering::Relaxed),
            decodes: self.decodes.load(Ordering::Relaxed),
            waits: self.waits.load(Ordering::Relaxed),
        }
    }
}

/// What came of a decode that another leads; `None` where nothing did and the caller may claim the block
/// again.
pub(super) fn join<V: Clone>(flight: &Flight<Result<V, Error>>) -> Option<Result<V, Error>> {
    match flight.wait(None, may_wait(), Result::clone) {
        Waited::Landed(outcome) => Some(outcome),
        Waited::WouldWait => Some(Err(Error::would_wait())),
        Waited::Abandoned | Waited::Late => None,
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
        if let Ok(value) = &result {
            let mut blocks = self.cache.blocks.lock();
            blocks.weight += cost(value);
            if let Some((_, old)) = blocks.recent.push(self.key, value.clone()) {
                blocks.weight -= cost(&old);
            }
            while blocks.weight > self.cache.budget && blocks.recent.len() > 1 {
                let Some((_, old)) = blocks.recent.pop_lru() else { break };
                blocks.weight -= cost(&old);
                evicted.push(old);
            }
        }
        // Freeing whole blocks can take longer than all of the above.
        drop(evicted);
        self.lead.land(result.clone());
        result
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
        let Claim::Join(flight) = cache.claim(0) else { panic!("two lead") };
        lead.land(Err(failure())).unwrap_err();
        assert!(matches!(join(&flight), Some(Err(Error::Corrupt { .. }))));
        assert_eq!(cache.get_or_load(0, || Ok(Weight(1))).unwrap(), Weight(1));
    }

    #[test]
    fn an_abandoned_flight_lets_its_waiters_go() {
        let cache: DecodedCache<u8, Weight> = DecodedCache::new(10);
        let Claim::Lead(lead) = cache.claim(0) else { panic!("someone leads already") };
        let Claim::Join(flight) = cache.claim(0) else { panic!("two lead") };
        drop(lead);
        assert!(join(&flight).is_none());
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
