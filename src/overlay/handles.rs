//! Open files.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Mutex, RwLock};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::error::Result;
use crate::squashfs::Inode;
use crate::types::Ino;

/// Names one open file until it is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(pub u64);

/// Where the data of an open file was when it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// In the archive. The file may be copied up while it is open, at the latest when it is written;
    /// reads then see the copy.
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
    pub(super) ino: Ino,
    pub(super) inode: Inode,
    /// The copy in the upper, open for reading and writing, once there is one.
    moved: OnceLock<Arc<OwnedFd>>,
}

impl LowerOpen {
    pub(super) fn moved(&self) -> Option<&Arc<OwnedFd>> {
        self.moved.get()
    }
}

impl Open {
    /// Which file it is.
    pub(super) fn ino(&self) -> Ino {
        match self {
            Self::Upper { ino, .. } => *ino,
            Self::Lower { file, .. } => file.ino,
        }
    }
}

/// What a handle stands for.
#[derive(Debug)]
pub(super) enum Open {
    Upper { ino: Ino, fd: Arc<OwnedFd> },
    Lower { file: Arc<LowerOpen>, writes: bool },
}

/// All open files.
#[derive(Debug, Default)]
pub(super) struct Handles {
    next: AtomicU64,
    open: RwLock<HashMap<Handle, Arc<Open>>>,
    lowers: Mutex<HashMap<Ino, Weak<LowerOpen>>>,
    /// Whether reading an upper file through a handle leaves its `st_atime` as it is.
    no_atime: bool,
}

impl Handles {
    pub(super) fn new(no_atime: bool) -> Self {
        Self { no_atime, ..Self::default() }
    }

    pub(super) fn add(&self, open: Open) -> Handle {
        if let Open::Upper { fd, .. } = &open {
            self.prepare(fd);
        }
        // 0 is what FUSE shows where there is no handle.
        let handle = Handle(self.next.fetch_add(1, Ordering::Relaxed) + 1);
        self.open.write().insert(handle, Arc::new(open));
        handle
    }

    /// Makes ready a descriptor that is read through handles.
    fn prepare(&self, fd: &OwnedFd) {
        if self.no_atime {
            let set = rustix::fs::fcntl_getfl(fd)
                .and_then(|flags| rustix::fs::fcntl_setfl(fd, flags | OFlags::NOATIME));
            // It is for a file's owner and root; in a user's upper all files are the user's.
            if let Err(errno) = set {
                tracing::warn!("reading a file of the upper moves its st_atime: {errno}");
            }
        }
    }

    pub(super) fn get(&self, handle: Handle) -> Result<Arc<Open>> {
        Ok(self.open.read().get(&handle).cloned().ok_or(Errno::BADF)?)
    }

    pub(super) fn remove(&self, handle: Handle) -> Option<Arc<Open>> {
        // Descriptors are closed outside the lock.
        self.open.write().remove(&handle)
    }

    /// Opens lower file `ino`, for writing or not. Called with the overlay's `names` held, which keeps
    /// a copy-up from being published before its handles are known here.
    pub(super) fn add_lower(&self, ino: Ino, inode: Inode, writes: bool) -> Handle {
        let file = {
            let mut lowers = self.lowers.lock();
            match lowers.get(&ino).and_then(Weak::upgrade) {
                Some(shared) => shared,
                None => {
                    let shared = Arc::new(LowerOpen { ino, inode, moved: OnceLock::new() });
                    lowers.retain(|_, weak| weak.strong_count() > 0);
                    lowers.insert(ino, Arc::downgrade(&shared));
                    shared
                }
            }
        };
        self.add(Open::Lower { file, writes })
    }

    /// Whether `ino` is open on the archive.
    pub(super) fn has_lower(&self, ino: Ino) -> bool {
        self.lowers.lock().get(&ino).is_some_and(|weak| weak.strong_count() > 0)
    }

    /// Whether somebody may write to `ino`, which is open on the archive.
    pub(super) fn has_lower_writer(&self, ino: Ino) -> bool {
        let writes = |open: &Arc<Open>| match &**open {
            Open::Lower { file, writes } => *writes && file.ino == ino,
            Open::Upper { .. } => false,
        };
        // Few are open at all, of those that are asked about.
        self.has_lower(ino) && self.open.read().values().any(writes)
    }

    /// Leads the handles of lower file `ino` to its copy, open for reading and writing. Called with
    /// `names` held exclusively.
    pub(super) fn moved(&self, ino: Ino, copy: Arc<OwnedFd>) {
        let shared = self.lowers.lock().remove(&ino).and_then(|weak| weak.upgrade());
        if let Some(shared) = shared {
            self.prepare(&copy);
            // A file is copied up once, so the cell was empty.
            let _ = shared.moved.set(copy);
        }
    }
}
