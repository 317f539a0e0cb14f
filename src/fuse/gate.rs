//! Backpressure: a bound on the bytes of reads that are worked on at a time.
//!
//! A read costs memory until it is answered, and the kernel sends thousands at once. So each enters with its
//! length, and waits until there is room for that. After a while it goes on even so: those inside may wait for
//! a network that is down, and its own bytes may be on the disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Admits reads in the order in which they come, while those inside have fewer bytes than the limit.
#[derive(Debug)]
pub(super) struct Gate {
    limit: usize,
    patience: Duration,
    /// Held by the read that waits for room. The others wait for this lock, which keeps the order.
    turn: Mutex<()>,
    inside: Mutex<usize>,
    left: Condvar,
}

/// A read that was admitted: it is inside until this is dropped.
#[derive(Debug)]
pub(super) struct Pass {
    gate: Arc<Gate>,
    bytes: usize,
}

impl Gate {
    pub(super) fn new(limit: usize, patience: Duration) -> Self {
        let (turn, inside, left) = (Mutex::new(()), Mutex::new(0), Condvar::new());
        Self { limit, patience, turn, inside, left }
    }

    /// Waits for room for `bytes`. A read that is larger than the limit enters when nobody is inside.
    pub(super) fn enter(self: &Arc<Self>, bytes: usize) -> Pass {
        let until = Instant::now() + self.patience;
        let _turn = self.turn.try_lock_until(until);
        let mut inside = self.inside.lock();
        while *inside > 0 && inside.saturating_add(bytes) > self.limit {
            if self.left.wait_until(&mut inside, until).timed_out() {
                break;
            }
        }
        *inside += bytes;
        Pass { gate: Arc::clone(self), bytes }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        *self.gate.inside.lock() -= self.bytes;
        self.gate.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn those_inside_never_want_more_than_the_limit_and_all_get_in() {
        let gate = Arc::new(Gate::new(100, Duration::from_secs(60)));
        let (inside, most, entered) =
            (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (gate, inside, most, entered) = (&gate, &inside, &most, &entered);
                scope.spawn(move || {
                    for n in 0..200 {
                        let bytes = (thread * 31 + n * 7) % 60;
                        let pass = gate.enter(bytes);
                        let now = inside.fetch_add(bytes, Ordering::SeqCst) + bytes;
                        most.fetch_max(now, Ordering::SeqCst);
                        std::thread::yield_now();
                        inside.fetch_sub(bytes, Ordering::SeqCst);
                        drop(pass);
                        entered.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(entered.into_inner(), 1600);
        let most = most.into_inner();
        assert!((60..=100).contains(&most), "{most} at once");
        assert_eq!(*gate.inside.lock(), 0);
    }

    #[test]
    fn who_wants_too_much_goes_in_alone() {
        let gate = Arc::new(Gate::new(10, Duration::from_secs(60)));
        let first = gate.enter(1000);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| gate.enter(1));
            std::thread::sleep(Duration::from_millis(50));
            assert!(!second.is_finished(), "two are in");
            drop(first);
            drop(second.join().unwrap());
        });
        assert_eq!(*gate.inside.lock(), 0);
    }

    #[test]
    fn nobody_waits_for_more_than_a_while() {
        let gate = Arc::new(Gate::new(10, Duration::from_secs(1)));
        let stuck = gate.enter(10);
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..60 {
                scope.spawn(|| drop(gate.enter(5)));
            }
        });
        // One after the other it would be a minute.
        let took = started.elapsed().as_secs();
        assert!((1..30).contains(&took), "{took} s");
        drop(stuck);
        assert_eq!(*gate.inside.lock(), 0);
    }
}
