//! What this project uses of parking_lot, over shuttle's locks.

use std::time::Instant;

use shuttle::sync;
pub use shuttle_parking_lot::*;

/// A lock that shuttle schedules.
#[derive(Debug, Default)]
pub struct Mutex<T>(shuttle_parking_lot::Mutex<T>);

impl<T> Mutex<T> {
    /// Guards `value`.
    pub const fn new(value: T) -> Self {
        Self(shuttle_parking_lot::Mutex::new(value))
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock()
    }

    /// The lock, if nobody holds it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock()
    }

    /// Waits for the lock, however long that takes.
    pub fn try_lock_until(&self, _end: Instant) -> Option<MutexGuard<'_, T>> {
        Some(self.0.lock())
    }

    /// What it guarded.
    pub fn into_inner(self) -> T {
        self.0.into_inner()
    }

    /// What it guards, which nobody else can have.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }
}

/// A condition that shuttle schedules.
#[derive(Debug, Default)]
pub struct Condvar {
    /// How often it was notified. Who waits looks at it, so that nobody is woken for nothing.
    notified: sync::Mutex<u64>,
    changed: sync::Condvar,
}

/// Whether a wait ended for want of time, which it never does here.
#[derive(Debug)]
pub struct WaitTimeoutResult;

impl WaitTimeoutResult {
    /// Shuttle knows no time.
    pub fn timed_out(&self) -> bool {
        false
    }
}

impl Condvar {
    /// Nobody waits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits until it is notified.
    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        // Taken before the lock is given up: no notification goes between.
        let mut notified = self.notified.lock().expect("no model panics with it held");
        let before = *notified;
        MutexGuard::unlocked(guard, || {
            while *notified == before {
                notified = self.changed.wait(notified).expect("no model panics with it held");
            }
            drop(notified);
        });
    }

    /// Waits until it is notified, however long that takes.
    pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _end: Instant) -> WaitTimeoutResult {
        self.wait(guard);
        WaitTimeoutResult
    }

    /// Wakes one who waits.
    pub fn notify_one(&self) {
        *self.notified.lock().expect("no model panics with it held") += 1;
        self.changed.notify_one();
    }

    /// Wakes all who wait.
    pub fn notify_all(&self) {
        *self.notified.lock().expect("no model panics with it held") += 1;
        self.changed.notify_all();
    }
}
