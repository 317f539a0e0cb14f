//! Descriptors of upper directories: a bounded cache, and the way to those not in it.

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Overlay;
use super::error::{Error, Result, changed_behind, not_copied};
use super::node::{Dentry, UpperState};
use crate::inode_ops::{Address, stat_fd};
use crate::types::{Ino, InodeRef};

/// Longest way from a directory to the root that is walked.
const MAX_DEPTH: usize = 1 << 20;

/// `O_PATH` descriptors of directories in the upper, the most recently used ones. A descriptor
/// stays right when its directory is renamed, so only removal ends an entry early.
pub(super) struct Dirs(Mutex<LruCache<Ino, Arc<OwnedFd>>>);

impl Dirs {
    pub(super) fn new(capacity: usize) -> Self {
        let capacity = NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN);
        Self(Mutex::new(LruCache::new(capacity)))
    }

    fn get(&self, ino: Ino) -> Option<Arc<OwnedFd>> {
        self.0.lock().get(&ino).cloned()
    }

    fn put(&self, ino: Ino, fd: Arc<OwnedFd>) {
        // The evicted descriptor is closed outside the lock.
        let _evicted = self.0.lock().push(ino, fd);
    }

    pub(super) fn remove(&self, ino: Ino) {
        let _removed = self.0.lock().pop(&ino);
    }
}

/// A directory of the merged tree: its two halves.
#[derive(Clone, Debug)]
pub(super) struct DirView {
    pub(super) ino: Ino,
    /// The half in the upper.
    pub(super) fd: Option<Arc<OwnedFd>>,
    /// The half in the lower. It is the same for as long as the directory lives.
    pub(super) lower: Option<InodeRef>,
}

impl DirView {
    /// The upper half, which [`Overlay::copy_up`] has made sure of.
    pub(super) fn fd(&self) -> Result<&Arc<OwnedFd>> {
        // Only a directory that was removed meanwhile has none.
        Ok(self.fd.as_ref().ok_or(Errno::NOENT)?)
    }
}

impl Overlay {
    /// The lower half of directory `ino`.
    pub(super) fn lower_half(&self, ino: Ino) -> Result<Option<InodeRef>> {
        Ok(match self.nodes.upper(ino)? {
            Some(upper) => upper.lower,
            None => self.lower.inode_ref(ino),
        })
    }

    /// Both halves of directory `ino`. Called with `names` held.
    pub(super) fn dir_view(&self, ino: Ino) -> Result<DirView> {
        let node = self.nodes.get(ino)?;
        Ok(match node.upper {
            Some(upper) => {
                let fd = Some(self.dir_fd(ino)?);
                DirView { ino, fd, lower: upper.lower }
            }
            None => DirView { ino, fd: None, lower: self.lower.inode_ref(ino) },
        })
    }

    /// An `O_PATH` descriptor of the upper half of directory `ino`. Called with `names` held.
    pub(super) fn dir_fd(&self, ino: Ino) -> Result<Arc<OwnedFd>> {
        let upper = self.upper()?;
        let mut down = Vec::new();
        let mut at = ino;
        let mut fd = loop {
            if at == Ino::ROOT {
                break Arc::clone(&upper.root);
            }
            if let Some(fd) = self.dirs.get(at) {
                break fd;
            }
            let node = self.nodes.get(at)?;
            let state = node.upper.ok_or(Errno::NOENT)?;
            if let Some(pin) = state.pin {
                break pin;
            }
            match node.dentry {
                Dentry::Name(parent, name) if down.len() < MAX_DEPTH => {
                    down.push((at, name, state.st_ino));
                    at = parent;
                }
                Dentry::Name(..) => return Err(Errno::LOOP.into()),
                Dentry::Index | Dentry::Nowhere => return Err(Errno::NOENT.into()),
            }
        };
        for (ino, name, st_ino) in down.into_iter().rev() {
            let name = os_str(&name);
            let next = Arc::new(Address::at(&fd, name).open(OFlags::PATH | OFlags::DIRECTORY)?);
            let stat = stat_fd(&next).map_err(Error::sys("statx", name.display()))?;
            let stat = upper.identify(&Address::Pinned(Arc::clone(&next)), stat)?;
            if stat.stx_ino != st_ino {
                return Err(changed_behind(name.display()));
            }
            fd = next;
            self.dirs.put(ino, Arc::clone(&fd));
        }
        Ok(fd)
    }

    /// Where the inode of `ino` in the upper is reached, and what is known of it. Called with
    /// `names` held, and good only for as long: an address may be a name.
    pub(super) fn address(&self, ino: Ino) -> Result<(Address, UpperState)> {
        let node = self.nodes.get(ino)?;
        let state = node.upper.ok_or_else(|| not_copied(ino))?;
        let address = match (&state.pin, node.dentry) {
            (Some(pin), _) => Address::Pinned(Arc::clone(pin)),
            (None, Dentry::Name(parent, name)) => Address::at(&self.dir_fd(parent)?, os_str(&name)),
            (None, Dentry::Index) => self.index_address(ino)?,
            (None, Dentry::Nowhere) if ino == Ino::ROOT => self.upper()?.root_address(),
            (None, Dentry::Nowhere) => return Err(not_copied(ino)),
        };
        Ok((address, state))
    }
}

pub(super) fn os_str(name: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(name)
}
