//! Which way the kernel does an inode's I/O: through its page cache, or straight to the upper file.
//!
//! The kernel refuses to mix the two on one inode (open fails with EIO), and wants every
//! passthrough open of an inode to name the same backing file. Releases reach us after the kernel
//! has counted them, so what is recorded here errs on the safe side: a mode is kept for a moment
//! longer than the kernel needs it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::Arc;

use fuser::BackingId;
use parking_lot::Mutex;

use crate::types::Ino;

/// How one open file does its I/O.
pub(crate) enum IoMode {
    /// Reads and writes reach us, through the kernel's page cache.
    Cached,
    /// The kernel goes to the backing file by itself.
    Passthrough(Arc<BackingId>),
}

/// What becomes of data that is written through a shared mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// It is in the upper file at once, but the kernel's FUSE side does not notice that the times change.
    Unseen,
    /// The kernel holds it in its page cache for a while: the upper has older data.
    Later,
}

/// The mode of an inode with open handles, and how many they are.
struct Open {
    backing: Option<Arc<BackingId>>,
    handles: usize,
    /// How many of the handles may write.
    writers: usize,
}

/// The modes of all inodes that are open.
#[derive(Default)]
pub(crate) struct IoModes {
    open: Mutex<HashMap<Ino, Open>>,
}

impl IoModes {
    /// Records one more open of `ino`, for writing or not, and says its mode. `register` makes the
    /// backing id of the upper file; it is called only where this is the inode's first handle. Where
    /// it fails, or is `None`, the inode is cached for as long as it stays open.
    pub(crate) fn opened(
        &self,
        ino: Ino,
        writes: bool,
        register: Option<impl FnOnce() -> io::Result<BackingId>>,
    ) -> IoMode {
        let mut open = self.open.lock();
        let state = match open.entry(ino) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let backing = register.and_then(|register| match register() {
                    Ok(id) => Some(Arc::new(id)),
                    Err(error) => {
                        tracing::debug!("no passthrough for inode {ino}: {error}");
                        None
                    }
                });
                entry.insert(Open { backing, handles: 0, writers: 0 })
            }
        };
        state.handles += 1;
        state.writers += usize::from(writes);
        match &state.backing {
            Some(id) => IoMode::Passthrough(Arc::clone(id)),
            None => IoMode::Cached,
        }
    }

    /// Takes back one [`IoModes::opened`] with the same `writes`.
    pub(crate) fn released(&self, ino: Ino, writes: bool) {
        let mut open = self.open.lock();
        let Entry::Occupied(mut entry) = open.entry(ino) else { return };
        let state = entry.get_mut();
        state.handles = state.handles.saturating_sub(1);
        state.writers = state.writers.saturating_sub(usize::from(writes));
        if state.handles == 0 {
            entry.remove();
        }
    }

    /// Whether some file is open for writing of which the kernel may hold back what is stored through a mapping.
    pub(crate) fn may_hold_back(&self) -> bool {
        self.open.lock().values().any(|state| state.writers > 0 && state.backing.is_none())
    }

    /// How `ino` may be written to just now, if it is open for that. A mapping counts as long as it
    /// lives, and what is written through it is on its way to us by the time it is gone.
    pub(crate) fn written(&self, ino: Ino) -> Option<Written> {
        let open = self.open.lock();
        let state = open.get(&ino).filter(|state| state.writers > 0)?;
        Some(match state.backing {
            Some(_) => Written::Unseen,
            None => Written::Later,
        })
    }
}
