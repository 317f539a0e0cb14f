//! Whether a thread may wait for the store, and since when.
//!
//! A mount answers from threads of several kinds. A store that does not answer must never hold up those that
//! everything local goes through. But that an operation needs the store shows only on the way, when a block
//! is neither in memory nor on disk. So such a thread tries. Where it would have to wait, the operation fails
//! with [`Error::WouldWait`](super::Error::WouldWait) before anything is done, and is repeated on a thread that
//! may wait: as `RWF_NOWAIT` has it in the kernel.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// After what time a request notices that it is not wanted any more.
const STOP_WITHIN: Duration = Duration::from_millis(50);

thread_local! {
    static MAY_WAIT: Cell<bool> = const { Cell::new(true) };
    static ASKED: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Runs `work`. What would wait for the store in it, or for somebody who may wait for the store, fails
/// with [`Error::WouldWait`](super::Error::WouldWait).
pub fn without_waiting<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            MAY_WAIT.set(self.0);
        }
    }
    let _restore = Restore(MAY_WAIT.replace(false));
    work()
}

/// Whether this thread may wait for the store now.
pub fn may_wait() -> bool {
    MAY_WAIT.get()
}

/// Runs `work` for somebody who asked for it at `when`, and may have been in a queue since: that counts
/// as waiting for the store.
pub fn asked_at<T>(when: Instant, work: impl FnOnce() -> T) -> T {
    struct Restore(Option<Instant>);
    impl Drop for Restore {
        fn drop(&mut self) {
            ASKED.set(self.0);
        }
    }
    let _restore = Restore(ASKED.replace(Some(when)));
    work()
}

/// When what this thread works on was asked for; now, if nobody said.
pub fn asked() -> Instant {
    ASKED.get().unwrap_or_else(Instant::now)
}

/// The same, for the first who waits: what comes after that has waited for nothing yet.
pub(super) fn take_asked() -> Instant {
    ASKED.take().unwrap_or_else(Instant::now)
}

/// What `request` says, or `None` soon after `stop` is set: nobody waits for a network that does not answer
/// when what it brings is not wanted any more. Belongs on an async runtime.
pub(super) async fn unless_stopped<T>(
    stop: &AtomicBool,
    request: impl Future<Output = T>,
) -> Option<T> {
    let mut request = std::pin::pin!(request);
    loop {
        match tokio::time::timeout(STOP_WITHIN, &mut request).await {
            Ok(said) => return Some(said),
            Err(_) if stop.load(Ordering::Relaxed) => return None,
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_forbidden_inside_alone_however_it_ends() {
        assert!(may_wait());
        without_waiting(|| {
            assert!(!may_wait());
            without_waiting(|| assert!(!may_wait()));
            assert!(!may_wait());
        });
        let panicked = std::panic::catch_unwind(|| without_waiting(|| panic!("as asked")));
        assert!(panicked.is_err() && may_wait());
    }
}
