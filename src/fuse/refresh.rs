//! Telling the kernel what a rollback has changed.
//!
//! What it remembers of names, attributes and data is true for as long as nobody else changes them, and a rollback is
//! somebody else. It is told once the tree is at rest no more: to let go of a name it takes the lock of the directory,
//! which a program may hold that waits for us.

use std::sync::{Arc, Weak};

use fuser::INodeNo;

use super::context::Context;
use crate::overlay::RolledBack;

/// The kernel behind a mount.
#[derive(Clone)]
pub(crate) struct Kernel {
    context: Weak<Context>,
}

impl Kernel {
    pub(super) fn new(context: &Arc<Context>) -> Self {
        Self { context: Arc::downgrade(context) }
    }

    /// Has it ask again for what is other than before. Once this returns no program sees what was.
    pub(crate) fn refresh(&self, changes: &RolledBack) {
        let Some(context) = self.context.upgrade() else { return };
        let Some(notifier) = context.notifier.get() else { return };
        // Each fails where the kernel knows nothing of it, which is as good.
        for (directory, name) in &changes.replaced {
            let _ = context.device.expire(*directory, name);
        }
        for (directory, name) in &changes.names {
            let _ = notifier.inval_entry(INodeNo(directory.0), name);
        }
        for ino in changes.directories.iter().chain(&changes.files) {
            let _ = notifier.inval_inode(INodeNo(ino.0), 0, 0);
        }
    }
}
