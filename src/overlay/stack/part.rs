//! Directories of frozen layers, and what is below a directory of one: the same directory in layers further down, and
//! in the archive.

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::OFlags;

use super::super::dirs::os_str;
use super::super::error::Result;
use super::super::name::Name;
use crate::inode_ops::Address;
use crate::types::{InodeRef, LayerSerial};

/// A directory of a frozen layer. It is where it is for as long as the layer lives.
#[derive(Debug)]
pub(in super::super) struct Part {
    pub(in super::super) layer: LayerSerial,
    place: Place,
    /// Whether it may hold inodes that keep another number than their own, once that is known.
    impure: AtomicU8,
}

#[derive(Debug)]
enum Place {
    Root(Arc<OwnedFd>),
    In(Arc<Part>, Name),
    /// It is being dropped.
    Nowhere,
}

/// Of [`Part::impure`].
const UNKNOWN: u8 = 0;
const PURE: u8 = 1;
const IMPURE: u8 = 2;

impl Part {
    /// Whether it may hold inodes that keep another number than their own, if that is known.
    pub(in super::super) fn is_impure(&self) -> Option<bool> {
        match self.impure.load(Ordering::Acquire) {
            UNKNOWN => None,
            known => Some(known == IMPURE),
        }
    }

    pub(in super::super) fn set_impure(&self, impure: bool) {
        self.impure.store(if impure { IMPURE } else { PURE }, Ordering::Release);
    }

    /// The root of layer `layer`.
    pub(in super::super) fn root(layer: LayerSerial, root: Arc<OwnedFd>) -> Arc<Self> {
        Arc::new(Self { layer, place: Place::Root(root), impure: AtomicU8::new(UNKNOWN) })
    }

    /// The attributes of the root of a layer.
    ///
    /// # Errors
    /// `ESTALE` of what is none.
    pub(in super::super) fn address(&self) -> Result<Address> {
        match &self.place {
            Place::Root(root) => Ok(Address::at(root, std::ffi::OsStr::new("."))),
            Place::In(..) | Place::Nowhere => Err(rustix::io::Errno::STALE.into()),
        }
    }

    /// What it is in, and its name there; `None` of the root of a layer.
    pub(in super::super) fn above(&self) -> Option<(&Arc<Self>, &[u8])> {
        match &self.place {
            Place::In(above, name) => Some((above, name)),
            Place::Root(_) | Place::Nowhere => None,
        }
    }

    /// Its path from the root of its layer, with a slash before each name.
    pub(in super::super) fn path(&self) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = self;
        while let Some((above, name)) = at.above() {
            names.push(name);
            at = above;
        }
        names.iter().rev().flat_map(|name| [b"/", *name].concat()).collect()
    }

    /// The directory `name` in `above`.
    pub(in super::super) fn child(above: &Arc<Self>, name: &[u8]) -> Arc<Self> {
        let place = Place::In(Arc::clone(above), name.into());
        Arc::new(Self { layer: above.layer, place, impure: AtomicU8::new(UNKNOWN) })
    }
}

/// Not one within the other: trees may be deeper than a thread's stack.
impl Drop for Part {
    fn drop(&mut self) {
        let mut place = std::mem::replace(&mut self.place, Place::Nowhere);
        while let Place::In(above, _) = place {
            match Arc::into_inner(above) {
                Some(mut above) => place = std::mem::replace(&mut above.place, Place::Nowhere),
                None => return,
            }
        }
    }
}

/// `O_PATH` descriptors of [`Part`]s, the most recently used ones.
pub(in super::super) struct PartFds(Mutex<LruCache<usize, OpenPart>>);

pub(in super::super) type OpenPart = (Arc<Part>, Arc<OwnedFd>);

impl PartFds {
    pub(in super::super) fn new(capacity: usize) -> Self {
        let capacity = NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN);
        Self(Mutex::new(LruCache::new(capacity)))
    }

    /// Closes all.
    pub(in super::super) fn clear(&self) {
        let mut fds = self.0.lock();
        let empty = LruCache::new(fds.cap());
        let closed = std::mem::replace(&mut *fds, empty);
        drop(fds);
        drop(closed);
    }

    /// A descriptor of `part`.
    pub(in super::super) fn get(&self, part: &Arc<Part>) -> Result<Arc<OwnedFd>> {
        let mut down = Vec::new();
        let mut at = part;
        let mut fd = loop {
            match &at.place {
                Place::Root(root) => break Arc::clone(root),
                Place::In(above, name) => {
                    if let Some((_, fd)) = self.0.lock().get(&key(at)) {
                        break Arc::clone(fd);
                    }
                    down.push((at, name));
                    at = above;
                }
                Place::Nowhere => return Err(rustix::io::Errno::STALE.into()),
            }
        };
        for (part, name) in down.into_iter().rev() {
            let next = Address::at(&fd, os_str(name)).open(OFlags::PATH | OFlags::DIRECTORY)?;
            fd = Arc::new(next);
            // The evicted descriptor is closed outside the lock.
            let _evicted = self.0.lock().push(key(part), (Arc::clone(part), Arc::clone(&fd)));
        }
        Ok(fd)
    }

    /// Gives up those of layers that are not `of` the stack any more: they may be removed, and what is open would keep
    /// them. Closed when what is given is dropped.
    pub(in super::super) fn retain(&self, of: impl Fn(LayerSerial) -> bool) -> Vec<OpenPart> {
        let mut open = self.0.lock();
        let others = open.iter().filter(|(_, (part, _))| !of(part.layer)).map(|(key, _)| *key);
        let others: Vec<usize> = others.collect();
        others.iter().filter_map(|key| open.pop(key)).collect()
    }
}

/// What is held in the cache keeps its place in memory to itself.
fn key(part: &Arc<Part>) -> usize {
    Arc::as_ptr(part).addr()
}

/// What is below a directory of some layer, or below nothing: the whole of a lower directory.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Below {
    parts: Option<Arc<[Arc<Part>]>>,
    /// How many of `parts` are above it.
    from: usize,
    /// The directory of the archive. Of what is no directory: the inode that it is a copy of.
    pub(in super::super) archive: Option<InodeRef>,
}

impl Below {
    /// The archive alone.
    pub(in super::super) fn archive(archive: Option<InodeRef>) -> Self {
        Self { archive, ..Self::default() }
    }

    /// `parts`, the topmost first, and `archive`.
    pub(in super::super) fn new(parts: Vec<Arc<Part>>, archive: Option<InodeRef>) -> Self {
        let parts = (!parts.is_empty()).then(|| parts.into());
        Self { parts, from: 0, archive }
    }

    /// Whether there is anything.
    pub(in super::super) fn is_some(&self) -> bool {
        self.archive.is_some() || self.has_parts()
    }

    pub(in super::super) fn has_parts(&self) -> bool {
        !self.parts().is_empty()
    }

    /// The directory in frozen layers, the topmost first.
    pub(in super::super) fn parts(&self) -> &[Arc<Part>] {
        self.parts.as_deref().and_then(|parts| parts.get(self.from..)).unwrap_or_default()
    }

    /// The directory in `layer`.
    pub(in super::super) fn part_in(&self, layer: LayerSerial) -> Option<&Arc<Part>> {
        self.parts().iter().find(|part| part.layer == layer)
    }

    /// What is below the first `count` of the parts.
    pub(in super::super) fn after(&self, count: usize) -> Self {
        Self { from: self.from + count, ..self.clone() }
    }

    /// `top`, and this below it.
    pub(in super::super) fn with_top(&self, top: Arc<Part>) -> Self {
        let parts = std::iter::once(top).chain(self.parts().iter().cloned()).collect();
        Self { parts: Some(parts), from: 0, archive: self.archive }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_as_deep_as_can_be_made_is_dropped_without_a_stack_as_deep() {
        let root = Arc::new(std::fs::File::open("/").unwrap().into());
        let mut part = Part::root(LayerSerial(1), root);
        for _ in 0..1_000_000 {
            part = Part::child(&part, b"d");
        }
        drop(part);
    }

    #[test]
    fn descriptors_of_layers_that_are_gone_are_given_up_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Arc::new(OwnedFd::from(std::fs::File::open(dir.path()).unwrap()));
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        let fds = PartFds::new(16);
        let parts = [1, 2].map(|layer| {
            let above = Part::child(&Part::root(LayerSerial(layer), open()), b"a");
            Part::child(&above, b"b")
        });
        let known = parts.each_ref().map(|part| fds.get(part).unwrap());
        let gone = fds.retain(|layer| layer == LayerSerial(2));
        assert_eq!(gone.len(), 2);
        assert!(gone.iter().all(|(part, _)| part.layer == LayerSerial(1)));
        assert!(Arc::ptr_eq(&fds.get(&parts[1]).unwrap(), &known[1]));
        // Who still has it can have it opened.
        assert!(!Arc::ptr_eq(&fds.get(&parts[0]).unwrap(), &known[0]));
    }

    #[test]
    fn parts_are_taken_off_and_put_on_at_the_top() {
        let root: Arc<OwnedFd> = Arc::new(std::fs::File::open("/").unwrap().into());
        let part = |serial| Part::root(LayerSerial(serial), Arc::clone(&root));
        let layers = |below: &Below| below.parts().iter().map(|p| p.layer.0).collect::<Vec<_>>();
        let below = Below::new(vec![part(3), part(1)], None);
        assert_eq!(layers(&below), [3, 1]);
        assert_eq!(layers(&below.after(1)), [1]);
        assert!(!below.after(2).is_some() && below.is_some());
        assert_eq!(layers(&below.after(1).with_top(part(7))), [7, 1]);
        assert_eq!(layers(&Below::default().with_top(part(7))), [7]);
        assert_eq!(below.after(1).part_in(LayerSerial(3)).map(|part| part.layer), None);
        assert_eq!(below.part_in(LayerSerial(3)).unwrap().layer, LayerSerial(3));
    }
}
