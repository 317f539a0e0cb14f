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
use super::node::{Dentry, InLayer, UpperState};
use super::stack::{Below, Part};
use crate::inode_ops::{Address, stat_fd};
use crate::types::{FileKind, Ino, LayerSerial};

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

    /// Closes all.
    pub(super) fn clear(&self) {
        let mut fds = self.0.lock();
        let empty = LruCache::new(fds.cap());
        let closed = std::mem::replace(&mut *fds, empty);
        drop(fds);
        drop(closed);
    }
}

/// A directory of the merged tree, or of what is below some layer: its two halves.
#[derive(Clone, Debug)]
pub(super) struct DirView {
    /// Which it is; of one of a frozen layer that does not count.
    pub(super) ino: Ino,
    /// The half in the upper, or in the layer that is looked at.
    pub(super) fd: Option<Arc<OwnedFd>>,
    /// The layer of that half.
    pub(super) layer: LayerSerial,
    /// That half, if it is of a frozen layer.
    pub(super) part: Option<Arc<Part>>,
    /// The half in the lower.
    pub(super) below: Below,
    /// Whether it was in the upper when that was frozen.
    is_frozen: bool,
}

impl DirView {
    /// The upper half, which [`Overlay::copy_up`] has made sure of.
    pub(super) fn fd(&self) -> Result<&Arc<OwnedFd>> {
        match &self.fd {
            Some(fd) => Ok(fd),
            None if self.is_frozen => Err(Error::Frozen),
            // Only a directory that was removed meanwhile has none.
            None => Err(Errno::NOENT.into()),
        }
    }
}

impl Overlay {
    /// The lower half of directory `ino`.
    pub(super) fn lower_half(&self, ino: Ino) -> Result<Below> {
        match self.nodes.upper(ino)? {
            Some(state) if self.is_live(&state) => Ok(state.below),
            Some(state) => self.whole(ino, state),
            None => Ok(Below::archive(self.lower.inode_ref(ino))),
        }
    }

    /// Whether what `state` is of is in the live upper.
    pub(super) fn is_live(&self, state: &UpperState) -> bool {
        state.layer == self.live()
    }

    /// Whether what `state` is of may be changed where it is: in the live upper, or where no layer has a name for it.
    pub(super) fn may_change(&self, state: &UpperState) -> bool {
        let is_nameless = |pin: &Arc<OwnedFd>| {
            state.kind == FileKind::Directory || stat_fd(pin).is_ok_and(|stat| stat.stx_nlink == 0)
        };
        self.is_live(state) || state.is_apart || state.pin.as_ref().is_some_and(is_nameless)
    }

    /// Both halves of directory `ino`. Called with `names` held.
    pub(super) fn dir_view(&self, ino: Ino) -> Result<DirView> {
        let layer = self.live();
        let (fd, below, is_frozen) = match self.nodes.get(ino)?.upper {
            Some(state) if state.layer == layer => (Some(self.dir_fd(ino)?), state.below, false),
            Some(state) => (None, self.whole(ino, state)?, true),
            None => (None, Below::archive(self.lower.inode_ref(ino)), false),
        };
        Ok(DirView { ino, fd, layer, part: None, below, is_frozen })
    }

    /// The first of the parts of `below` as the upper half, over the others.
    pub(super) fn part_view(&self, part: &Arc<Part>, rest: Below) -> Result<DirView> {
        let fd = Some(self.part_fds.get(part)?);
        let (layer, part) = (part.layer, Some(Arc::clone(part)));
        Ok(DirView { ino: Ino::ROOT, fd, layer, part, below: rest, is_frozen: true })
    }

    /// Directory `ino` of a frozen layer, of which `state` is known, and what is below it.
    fn whole(&self, ino: Ino, state: UpperState) -> Result<Below> {
        match state.whole {
            // One that was removed has nothing in it.
            _ if state.pin.is_some() || state.place.is_some() => Ok(Below::default()),
            Some(whole) => Ok(whole),
            None => self.part_of(ino, state.layer).map(|top| state.below.with_top(top)),
        }
    }

    /// Directory `ino` as frozen layer `layer` has it. While it was not copied up again it is where it was when the layer
    /// was frozen.
    pub(super) fn part_of(&self, ino: Ino, layer: LayerSerial) -> Result<Arc<Part>> {
        let merges = self.stack.merges();
        let mut way = Vec::new();
        let mut at = ino;
        let mut part = loop {
            let node = self.nodes.get(at)?;
            let state = node.upper.ok_or(Errno::NOENT)?;
            let known = match state.layer == layer {
                true => state.whole.as_ref(),
                false => Some(state.whole.as_ref().unwrap_or(&state.below)),
            };
            if let Some(below) = known {
                break Arc::clone(below.part_in(layer).ok_or(Error::Frozen)?);
            }
            match node.dentry {
                Dentry::Name(parent, name) if way.len() < MAX_DEPTH => {
                    way.push((at, name, state.below));
                    at = parent;
                }
                Dentry::Name(..) => return Err(Errno::LOOP.into()),
                Dentry::Index | Dentry::Nowhere => return Err(Error::Frozen),
            }
        };
        for (ino, name, below) in way.into_iter().rev() {
            part = Part::child(&part, &name);
            let whole = below.with_top(Arc::clone(&part));
            self.nodes.update(ino, |state| {
                // Of the same number, a layer is another once others were merged into it.
                if state.layer == layer && self.stack.merges() == merges {
                    state.whole = Some(whole);
                }
            });
        }
        Ok(part)
    }

    /// Where file `ino` is in a frozen layer, if it is known to be in one.
    pub(super) fn place_in_layer(&self, ino: Ino) -> Option<InLayer> {
        let node = self.nodes.find(ino)?;
        let (Some(state), Dentry::Name(parent, name)) = (node.upper, node.dentry) else {
            return None;
        };
        Some(InLayer { dir: self.part_of(parent, state.layer).ok()?, name })
    }

    /// An `O_PATH` descriptor of the upper half of directory `ino`. Called with `names` held.
    pub(super) fn dir_fd(&self, ino: Ino) -> Result<Arc<OwnedFd>> {
        let upper = self.upper()?;
        let mut down = Vec::new();
        let mut at = ino;
        let mut fd = loop {
            if at == Ino::ROOT {
                break upper.root();
            }
            if let Some(fd) = self.dirs.get(at) {
                break fd;
            }
            let node = self.nodes.get(at)?;
            let state = node.upper.ok_or(Errno::NOENT)?;
            if !self.is_live(&state) {
                return Err(Error::Frozen);
            }
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
            let stat = self.numbers.identify(&Address::Pinned(Arc::clone(&next)), stat)?;
            if stat.stx_ino != st_ino {
                return Err(changed_behind(name.display()));
            }
            fd = next;
            self.dirs.put(ino, Arc::clone(&fd));
        }
        Ok(fd)
    }

    /// Where the inode of `ino` in the upper, or in a layer, is reached, and what is known of it. Called with
    /// `names` held, and good only for as long: an address may be a name.
    pub(super) fn address(&self, ino: Ino) -> Result<(Address, UpperState)> {
        let node = self.nodes.get(ino)?;
        let state = node.upper.ok_or_else(|| not_copied(ino))?;
        let is_live = self.is_live(&state);
        let address = match (&state.pin, node.dentry) {
            (Some(pin), _) => Address::Pinned(Arc::clone(pin)),
            (None, Dentry::Nowhere) if let Some(held) = &state.held => {
                Address::Pinned(Arc::clone(held))
            }
            (None, Dentry::Nowhere) if let Some(place) = &state.place => self.in_layer(place)?,
            (None, Dentry::Name(parent, name)) if is_live => {
                Address::at(&self.dir_fd(parent)?, os_str(&name))
            }
            (None, Dentry::Name(parent, name)) => {
                let dir = self.part_of(parent, state.layer)?;
                Address::at(&self.part_fds.get(&dir)?, os_str(&name))
            }
            (None, Dentry::Index) => self.index_address(ino)?,
            (None, Dentry::Nowhere) if ino == Ino::ROOT && is_live => self.upper()?.root_address(),
            (None, Dentry::Nowhere) if ino == Ino::ROOT => self.root_of_layers(&state)?,
            (None, Dentry::Nowhere) => return Err(not_copied(ino)),
        };
        Ok((address, state))
    }

    /// As [`Self::address`], of what is to be changed.
    ///
    /// # Errors
    /// [`Error::Frozen`] where it is not in the live upper (any more).
    pub(super) fn live_address(&self, ino: Ino) -> Result<(Address, UpperState)> {
        let (address, state) = self.address(ino)?;
        match self.may_change(&state) {
            true => Ok((address, state)),
            false => Err(Error::Frozen),
        }
    }

    /// The root of a tree without an upper.
    fn root_of_layers(&self, state: &UpperState) -> Result<Address> {
        let parts = state.whole.as_ref().map(Below::parts).unwrap_or_default();
        let top = parts.first().ok_or_else(|| not_copied(Ino::ROOT))?;
        Ok(Address::at(&self.part_fds.get(top)?, std::ffi::OsStr::new(".")))
    }
}

pub(super) fn os_str(name: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(name)
}
