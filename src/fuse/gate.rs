//! A bound on what is read at a time, in bytes.

use parking_lot::{Condvar, Mutex};

/// Lets readers in, in turn, as long as those inside together want no more than a limit of bytes.
#[derive(Debug)]
pub(super) struct Gate {
    limit: usize,
    /// Held by the one who waits for room; the others wait for it.
    turn: Mutex<()>,
    inside: Mutex<usize>,
    left: Condvar,
}

/// Being inside, until it is dropped.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    gate: &'a Gate,
    bytes: usize,
}

impl Gate {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, turn: Mutex::new(()), inside: Mutex::new(0), left: Condvar::new() }
    }

    /// Waits for room for `bytes`. Who wants more than there can be goes in alone.
    pub(super) fn enter(&self, bytes: usize) -> Pass<'_> {
        let _turn = self.turn.lock();
        let mut inside = self.inside.lock();
        while *inside > 0 && inside.saturating_add(bytes) > self.limit {
            self.left.wait(&mut inside);
        }
        *inside += bytes;
        Pass { gate: self, bytes }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        *self.gate.inside.lock() -= self.bytes;
        self.gate.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn those_inside_never_want_more_than_the_limit_and_all_get_in() {
        let gate = Gate::new(100);
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
        let gate = Gate::new(10);
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
}
