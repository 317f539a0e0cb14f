//! A single flight.

#[path = "../../../src/single_flight.rs"]
#[allow(dead_code, reason = "models use a part of it")]
mod single_flight;

use std::sync::atomic::{AtomicU32, Ordering};

use loom::sync::Arc;
use loom::thread;
use parking_lot::Mutex;
use single_flight::{Claim, Flight, Flights, Waited};

/// A cache as those that use flights: what was made is looked for first, and again by who leads.
struct Cache {
    made: Mutex<Option<u32>>,
    flights: Flights<u8, u32>,
    times: AtomicU32,
}

impl Cache {
    fn new() -> Self {
        Self { made: Mutex::new(None), flights: Flights::default(), times: AtomicU32::new(0) }
    }

    /// The value, made by `make`, which may fail to.
    fn get(&self, may_wait: bool, make: impl Fn() -> Option<u32>) -> Option<u32> {
        loop {
            if let Some(made) = *self.made.lock() {
                return Some(made);
            }
            match self.flights.claim(0, may_wait) {
                Claim::Lead(lead) => {
                    if let Some(made) = *self.made.lock() {
                        lead.land(made);
                        return Some(made);
                    }
                    let value = make()?;
                    self.times.fetch_add(1, Ordering::SeqCst);
                    *self.made.lock() = Some(value);
                    lead.land(value);
                    return Some(value);
                }
                Claim::Join(flight) => match flight.wait(None, may_wait, |made| *made) {
                    Waited::Landed(made) => return Some(made),
                    Waited::WouldWait => return None,
                    Waited::Abandoned => {}
                    Waited::Late => unreachable!("there is time"),
                },
            }
        }
    }
}

#[test]
fn what_three_threads_want_is_made_once() {
    let mut builder = loom::model::Builder::new();
    // Without a bound it takes minutes; most faults show with two.
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let cache = Arc::new(Cache::new());
        let others: Vec<_> = (0..2)
            .map(|_| {
                let cache = Arc::clone(&cache);
                thread::spawn(move || cache.get(true, || Some(7)))
            })
            .collect();
        assert_eq!(cache.get(true, || Some(7)), Some(7));
        others.into_iter().for_each(|other| assert_eq!(other.join().unwrap(), Some(7)));
        assert_eq!(cache.times.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn who_joined_one_that_is_abandoned_makes_it_and_nobody_waits_for_ever() {
    loom::model(|| {
        let cache = Arc::new(Cache::new());
        let other = Arc::clone(&cache);
        let other = thread::spawn(move || other.get(true, || None));
        assert_eq!(cache.get(true, || Some(7)), Some(7));
        // It failed by itself, or joined before that.
        assert!(matches!(other.join().unwrap(), None | Some(7)));
        assert_eq!(cache.times.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn who_must_not_wait_waits_for_nobody_who_may() {
    loom::model(|| {
        let cache = Arc::new(Cache::new());
        let other = Arc::clone(&cache);
        let other = thread::spawn(move || other.get(true, || Some(7)));
        let found = cache.get(false, || None);
        assert!(matches!(found, None | Some(7)));
        // Whatever the one who must not wait did, the other has it.
        assert_eq!(other.join().unwrap(), Some(7));
    });
}

#[test]
fn a_flight_ends_once_and_all_see_the_same_end() {
    loom::model(|| {
        let flight = Arc::new(Flight::new(true));
        let others: Vec<_> = (1..3)
            .map(|made| {
                let flight = Arc::clone(&flight);
                thread::spawn(move || {
                    flight.land(made);
                    flight.wait(None, true, |made| *made)
                })
            })
            .collect();
        let first = flight.wait(None, true, |made| *made);
        assert!(matches!(first, Waited::Landed(1 | 2)));
        others.into_iter().for_each(|other| assert_eq!(other.join().unwrap(), first));
    });
}
