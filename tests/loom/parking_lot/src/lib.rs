//! What this project uses of parking_lot, over loom's locks.

use std::ops::{Deref, DerefMut};
use std::time::Instant;

/// A lock that loom schedules.
#[derive(Debug)]
pub struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    /// Guards `value`.
    pub fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(Some(self.0.lock().expect("no model panics with it held")))
    }
}

/// A lock that is held. There is none only while [`Condvar::wait`] has it.
#[derive(Debug)]
pub struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is held")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("it is held")
    }
}

/// A condition that loom schedules.
#[derive(Debug)]
pub struct Condvar(loom::sync::Condvar);

impl Condvar {
    /// Nobody waits.
    #[expect(clippy::new_without_default, reason = "as it is used")]
    pub fn new() -> Self {
        Self(loom::sync::Condvar::new())
    }

    /// Waits until it is notified.
    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.0.take().expect("it is held");
        guard.0 = Some(self.0.wait(held).expect("no model panics with it held"));
    }

    /// Loom knows no time.
    pub fn wait_until<T>(&self, _guard: &mut MutexGuard<'_, T>, _end: Instant) {
        unimplemented!("loom knows no time");
    }

    /// Wakes all who wait.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}
