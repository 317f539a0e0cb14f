//! Asks the kernel to forget files, so that the node table stays small.
//!
//! The overlay keeps a node for each file that the kernel remembers, and a kernel with free memory forgets nothing.
//! After a walk of a million files the nodes would take 70 MB for good. Since protocol 7.45 (Linux 6.18) the kernel
//! can be asked to forget files that nobody uses. An older one refuses, and is not asked again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::notify::Device;
use crate::overlay::Overlay;

/// Files named in one notification; the kernel is in it for a millisecond or two.
const BATCH: usize = 1024;

/// Decides when the kernel remembers too many files, and asks it to forget some.
#[derive(Debug)]
pub(super) struct Pruner {
    /// Most nodes there should be.
    limit: usize,
    /// How many nodes start the next round: more than the limit if the last round did not help.
    due: AtomicUsize,
    running: AtomicBool,
    device: Arc<Device>,
}

impl Pruner {
    /// For the kernel behind a FUSE device.
    pub(super) fn new(limit: usize, device: Arc<Device>) -> Self {
        Self { limit, due: AtomicUsize::new(limit), running: AtomicBool::new(false), device }
    }

    /// Whether a round is due with so many nodes. Whoever gets `true` has to run it.
    pub(super) fn is_due(&self, nodes: usize) -> bool {
        nodes > self.due.load(Ordering::Relaxed) && !self.running.swap(true, Ordering::AcqRel)
    }

    /// Asks the kernel to forget a quarter of what the limit allows and all that is above it. Waits for
    /// the kernel, which may meanwhile ask for other things.
    pub(super) fn round(&self, overlay: &Overlay) {
        let surplus = overlay.node_count().saturating_sub(self.limit / 4 * 3);
        let nodes = overlay.pick_nodes(surplus);
        let asked = nodes.chunks(BATCH).try_for_each(|batch| self.device.prune(batch));
        let due = match asked {
            // Files in use are kept; there is no point in asking for them again and again.
            Ok(()) => self.limit.max(overlay.node_count() + self.limit / 8),
            Err(error) => {
                tracing::debug!("the kernel cannot be asked to forget files: {error}");
                usize::MAX
            }
        };
        self.due.store(due, Ordering::Relaxed);
        self.running.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_round_at_a_time_and_none_below_the_limit() {
        let pruner = Pruner::new(100, Arc::new(Device::new(tempfile::tempfile().unwrap().into())));
        assert!(!pruner.is_due(100));
        assert!(pruner.is_due(101));
        assert!(!pruner.is_due(101), "it runs already");
    }
}
