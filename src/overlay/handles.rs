//! Open files and directories.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;

use super::error::Result;
use super::readdir::Listing;
use crate::squashfs::Inode;
use crate::types::Ino;

/// Names one open file or directory until it is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(pub u64);

/// Where the data of an open file was when it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// In the archive. The file may be copied up while it is open; reads then see the copy.
    Lower,
    /// In the upper: [`super::Overlay::upper_fd`] has the descriptor.
    Upper,
}

/// An opened file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// For reads, writes and the release.
    pub handle: Handle,
    /// Where its data is.
    pub backing: Backing,
}

/// A lower file that is open, shared by all its handles.
#[derive(Debug)]
pub(super) struct LowerOpen {
    pub(super) inode: Inode,
    /// The copy in the upper, once there is one.
    moved: OnceLock<Arc<OwnedFd>>,
}

impl LowerOpen {
    pub(super) fn moved(&self) -> Option<&Arc<OwnedFd>> {
        self.moved.get()
    }
}

/// What a handle stands for.
#[derive(Debug)]
pub(super) enum Open {
    Upper { fd: Arc<OwnedFd> },
    Lower(Arc<LowerOpen>),
    Directory { ino: Ino, listing: Mutex<Listing> },
}

/// All open files and directories.
#[derive(Debug, Default)]
pub(super) struct Handles {
    next: AtomicU64,
    open: RwLock<HashMap<Handle, Arc<Open>>>,
    lowers: Mutex<HashMap<Ino, Weak<LowerOpen>>>,
}

impl Handles {
    pub(super) fn add(&self, open: Open) -> Handle {
        // 0 is what FUSE shows where there is no handle.
        let handle = Handle(self.next.fetch_add(1, Ordering::Relaxed) + 1);
        self.open.write().insert(handle, Arc::new(open));
        handle
    }

    pub(super) fn get(&self, handle: Handle) -> Result<Arc<Open>> {
        Ok(self.open.read().get(&handle).cloned().ok_or(Errno::BADF)?)
    }

    pub(super) fn remove(&self, handle: Handle) {
        // Descriptors are closed outside the lock.
        let _closed = self.open.write().remove(&handle);
    }

    /// Opens lower file `ino`. Called with the overlay's `names` held, which keeps a copy-up from
    /// being published before its handles are known here.
    pub(super) fn add_lower(&self, ino: Ino, inode: Inode) -> Handle {
        let shared = {
            let mut lowers = self.lowers.lock();
            match lowers.get(&ino).and_then(Weak::upgrade) {
                Some(shared) => shared,
                None => {
                    let shared = Arc::new(LowerOpen { inode, moved: OnceLock::new() });
                    lowers.retain(|_, weak| weak.strong_count() > 0);
                    lowers.insert(ino, Arc::downgrade(&shared));
                    shared
                }
            }
        };
        self.add(Open::Lower(shared))
    }

    /// Leads the handles of lower file `ino` to the copy that `open` opens for reading. Called with
    /// `names` held exclusively.
    pub(super) fn moved(&self, ino: Ino, open: impl FnOnce() -> Result<OwnedFd>) -> Result<()> {
        let shared = self.lowers.lock().remove(&ino).and_then(|weak| weak.upgrade());
        if let Some(shared) = shared {
            let fd = Arc::new(open()?);
            // A file is copied up once, so the cell was empty.
            let _ = shared.moved.set(fd);
        }
        Ok(())
    }
}
