//! The freeze: the live upper becomes a layer, and an empty directory the live upper.
//!
//! What takes time comes before: names of hard links, copies of what the kernel writes to. Then the tree is at rest for
//! a moment, in which a new root is made, what the kernel writes to is carried over, and the layer's number changes.
//! Nothing is written to the disk for it.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, OFlags, Timestamps};
use rustix::io::Errno;

use super::super::Overlay;
use super::super::build::{FrozenInode, Original};
use super::super::ctime::KeptCtime;
use super::super::dirs::os_str;
use super::super::error::{Error, Result};
use super::super::handles::{Open, Source};
use super::super::name::Name;
use super::super::node::UpperState;
use super::super::upper::{Mark, Whiteouts, unusable};
use super::carry::{LayerCopy, changed_at, unknown_names};
use super::{Below, Frozen, Layer};
use crate::inode_ops::{self, Address, Directory, list, make_directory, stat_at, times_of};
use crate::types::{FileKind, Ino, LayerSerial, Owner};

/// How often names of hard links are seen to that come while others are.
const ATTEMPTS: usize = 8;

/// How often a file is copied anew that is written to meanwhile: before the tree is at rest, and then.
const COPIES: usize = 3;
const COPIES_AT_REST: usize = 2;

/// The largest file that is copied anew while the tree is at rest, in bytes, unless blocks are shared.
const SMALL: u64 = 1 << 20;

/// A directory that was made in the next upper.
struct Made {
    address: Address,
    fd: Arc<OwnedFd>,
    st_ino: u64,
    generation: u64,
    owner: Option<Owner>,
    kept_ctime: KeptCtime,
    times: Timestamps,
}

/// A file that the kernel writes to, which goes to the next upper.
struct Carried<'a> {
    ino: Ino,
    state: UpperState,
    copy: LayerCopy<'a>,
    /// Where it is in the upper that becomes a layer.
    names: Vec<(Arc<OwnedFd>, Name)>,
}

/// The next upper, in the making.
pub(super) struct Next<'a> {
    overlay: &'a Overlay,
    serial: LayerSerial,
    root: Arc<OwnedFd>,
    made: HashMap<Ino, Made>,
    /// Those of `made`, each behind the one that it is in.
    order: Vec<Ino>,
}

impl Overlay {
    /// Makes the live upper a layer, and the empty directory `next` the live upper, whose number is `serial`. `commit` is
    /// called once, when nothing else can fail; the tree is at rest then, so it is to be quick.
    ///
    /// # Errors
    /// `EROFS` without an upper, [`Error::Unusable`] of a directory that cannot be the next, `EBUSY` where somebody writes
    /// to a file by more names than can be found, what the upper's file system says, or what `commit` does. Nothing has
    /// changed then.
    pub fn freeze(
        &self,
        next: &Path,
        serial: LayerSerial,
        commit: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<Frozen> {
        self.upper()?;
        let _one_at_a_time = self.stack.freezing.lock();
        if serial <= self.live() {
            return Err(Errno::INVAL.into());
        }
        let root = self.open_next(next)?;
        for _ in 0..ATTEMPTS {
            self.settle_index()?;
            let mut copies = HashMap::new();
            for ino in self.files_of_kernel() {
                if let Some(copy) = self.copy_written(ino, COPIES)? {
                    copies.insert(ino, copy);
                }
            }
            let _names = self.names.write();
            if self.index.is_empty() {
                let mut next = Next::new(self, serial, root);
                let frozen = next.freeze(copies, commit);
                if frozen.is_err() {
                    next.give_up();
                }
                return frozen;
            }
        }
        Err(Errno::BUSY.into())
    }

    /// Opens a directory that is to be the live upper.
    pub(super) fn open_next(&self, next: &Path) -> Result<Arc<OwnedFd>> {
        let upper = self.upper()?;
        let opened = Directory::open(next).and_then(|dir| dir.open_to_read());
        let root = opened.map_err(|error| unusable(next, error.to_string()))?;
        rustix::fs::flock(&root, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| unusable(next, format!("cannot be locked: {errno}")))?;
        if !list(&root)?.is_empty() {
            return Err(unusable(next, "is not empty"));
        }
        let device = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| stat.st_dev);
        if device(&root).ok() != device(&upper.work).ok() {
            return Err(unusable(next, "must be on the file system of the upper"));
        }
        Ok(Arc::new(root))
    }

    /// The paths from the root of files that are open for writing, of what is written to which the kernel may hand on some
    /// later. Not of those that it writes to by itself.
    pub fn held_back(&self) -> Vec<Vec<u8>> {
        let is_held = |open: &&Arc<Open>| open.writes() && !open.is_kernel_s();
        let open = self.handles.all();
        let files: BTreeSet<Ino> = open.iter().filter(is_held).map(|open| open.ino).collect();
        files.into_iter().filter_map(|ino| self.nodes.paths(ino).into_iter().next()).collect()
    }

    /// The files of the live upper that the kernel writes to by itself.
    fn files_of_kernel(&self) -> Vec<Ino> {
        let live = self.live();
        let mut files: Vec<Ino> = Vec::new();
        for open in self.handles.all() {
            let is_live = matches!(open.source(), Source::File(layer, _) if layer == live);
            if is_live && open.is_kernel_s() && open.writes() {
                files.push(open.ino);
            }
        }
        files.sort_unstable();
        files.dedup();
        files
    }

    /// Copies `ino`, unless it has no name that a layer would have.
    fn copy_written(&self, ino: Ino, attempts: usize) -> Result<Option<LayerCopy<'_>>> {
        let frozen = {
            let _names = self.names.read();
            let Some(frozen) = self.in_upper_now(ino)? else { return Ok(None) };
            frozen
        };
        self.copy_for_layer(ino, &frozen, attempts).map(Some)
    }

    /// What the live upper has of `ino`, if that has a name. Called with `names` held.
    pub(super) fn in_upper_now(&self, ino: Ino) -> Result<Option<FrozenInode>> {
        // The kernel may have forgotten it while its last handle is on the way to be released.
        if !self.nodes.is_known(ino) {
            return Ok(None);
        }
        let (address, state) = self.address(ino)?;
        let address = Address::Pinned(address.pin()?);
        let stat = self.numbers.identify(&address, address.stat()?)?;
        if !self.is_live(&state) || stat.stx_nlink == 0 {
            return Ok(None);
        }
        let (whole, place, merges) = (Below::default(), None, self.stack.merges());
        Ok(Some(FrozenInode { address, stat, state, whole, place, merges }))
    }
}

impl<'a> Next<'a> {
    pub(super) fn new(overlay: &'a Overlay, serial: LayerSerial, root: Arc<OwnedFd>) -> Self {
        Self { overlay, serial, root, made: HashMap::new(), order: Vec::new() }
    }

    pub(super) fn serial(&self) -> LayerSerial {
        self.serial
    }

    pub(super) fn root(&self) -> &Arc<OwnedFd> {
        &self.root
    }

    /// Called with `names` held exclusively.
    fn freeze(
        &mut self,
        mut copies: HashMap<Ino, LayerCopy<'a>>,
        commit: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<Frozen> {
        let overlay = self.overlay;
        let now = overlay.in_upper_now(Ino::ROOT)?.ok_or(Errno::NOENT)?;
        self.dress_root_as(&Original::Layer(Box::new(now)))?;
        let mut carried = Vec::new();
        for ino in overlay.files_of_kernel() {
            carried.extend(self.carry(ino, copies.remove(&ino))?);
        }
        let root = Address::at(&self.root, OsStr::new("."));
        if !carried.is_empty() {
            // Should the server be killed before the layer has its copies, it is given them at the next mount.
            overlay.marks.set(&root, Mark::Carrying, b"y")?;
        }
        self.set_times()?;
        let changing = overlay.changing.write();
        // The point of no return.
        commit_by(commit)?;
        self.flip()?;
        drop(changing);
        let mut frozen = Frozen::default();
        let (is_carried, mut is_left) = (!carried.is_empty(), true);
        for file in carried {
            if let Err(error) = self.leave_copy(&file) {
                tracing::error!("a layer has not got its copy of a file that is open: {error}");
                is_left = false;
                frozen.fuzzy.extend(self.paths(file.ino));
            } else if file.copy.is_fuzzy {
                frozen.fuzzy.extend(self.paths(file.ino));
            }
        }
        if is_carried && is_left {
            overlay.marks.clear(&root, Mark::Carrying)?;
        }
        overlay.changed();
        Ok(frozen)
    }

    /// Makes the root what `original`, the root of another stack, is.
    pub(super) fn dress_root_as(&mut self, original: &Original) -> Result<()> {
        let overlay = self.overlay;
        let upper = overlay.upper()?;
        let root = Address::at(&self.root, OsStr::new("."));
        if upper.whiteouts == Whiteouts::Files {
            upper.mark_whiteouts(&self.root)?;
        }
        upper.marks.set(&root, Mark::Archive, &overlay.lower.identity())?;
        if let Some(id) = upper.marks.get(&upper.root_address(), Mark::Index)? {
            upper.marks.set(&root, Mark::Index, &id)?;
        }
        self.dress(Ino::ROOT, root, original)
    }

    /// Makes the new directory at `address` what directory `ino`, `original`, is.
    fn dress(&mut self, ino: Ino, address: Address, original: &Original) -> Result<()> {
        let overlay = self.overlay;
        let kept_ctime = match original {
            Original::Archive(inode) => KeptCtime::of_lower(inode.mtime),
            Original::Layer(frozen) => {
                let attr = overlay.attr_of_upper(ino, &frozen.state, &frozen.stat)?;
                KeptCtime { ctime: attr.ctime, mtime: attr.mtime }
            }
        };
        let (st_ino, owner) = overlay.dress(&address, ino, original)?;
        let times = times_of(&address.stat()?);
        overlay.mark_ctime(&address, kept_ctime)?;
        let fd = Arc::new(address.open(OFlags::PATH | OFlags::DIRECTORY)?);
        let generation = original.generation();
        self.made.insert(ino, Made { address, fd, st_ino, generation, owner, kept_ctime, times });
        self.order.push(ino);
        Ok(())
    }

    /// The directory of the next upper for directory `ino`, which is made if need be.
    fn directory(&mut self, ino: Ino) -> Result<Arc<OwnedFd>> {
        let mut way = Vec::new();
        let mut at = ino;
        while !self.made.contains_key(&at) {
            let (parent, name) = self.overlay.nodes.name_of(at)?.ok_or(Errno::NOENT)?;
            way.push((at, parent, name));
            at = parent;
        }
        for (ino, parent, name) in way.into_iter().rev() {
            let above = &self.made.get(&parent).ok_or(Errno::NOENT)?;
            self.overlay.marks.set(&above.address, Mark::Impure, b"y")?;
            let above = Arc::clone(&above.fd);
            make_directory(&above, &name, 0o700)?;
            let now = self.overlay.in_upper_now(ino)?.ok_or(Errno::NOENT)?;
            self.dress(ino, Address::at(&above, &name), &Original::Layer(Box::new(now)))?;
        }
        Ok(Arc::clone(&self.made.get(&ino).ok_or(Errno::NOENT)?.fd))
    }

    /// Gives `ino`, which the kernel writes to, its names in the next upper.
    fn carry(&mut self, ino: Ino, copy: Option<LayerCopy<'a>>) -> Result<Option<Carried<'a>>> {
        let overlay = self.overlay;
        let Some(frozen) = overlay.in_upper_now(ino)? else { return Ok(None) };
        let now = frozen.address.open(OFlags::RDONLY).map_err(Error::from);
        let now = now.and_then(|fd| changed_at(&fd))?;
        let is_small = frozen.stat.stx_size <= SMALL;
        let copy = match copy {
            Some(copy) if copy.of == now && !copy.is_fuzzy => copy,
            Some(copy) if !is_small => LayerCopy { is_fuzzy: true, ..copy },
            _ => overlay.copy_for_layer(ino, &frozen, COPIES_AT_REST)?,
        };
        let mut names = Vec::new();
        for (dir, name) in overlay.nodes.names(ino) {
            let is_live = |state: UpperState| overlay.is_live(&state);
            // It may be forgotten any moment.
            if !overlay.nodes.upper(dir).is_ok_and(|state| state.is_some_and(is_live)) {
                continue;
            }
            let fd = overlay.dir_fd(dir)?;
            let is_it = |stat: rustix::fs::Statx| stat.stx_ino == frozen.stat.stx_ino;
            if !stat_at(&fd, os_str(&name)).is_ok_and(is_it) {
                continue;
            }
            let to = self.directory(dir)?;
            frozen.address.link_to(&to, os_str(&name))?;
            names.push((fd, name));
            if let Some(made) = self.made.get(&dir) {
                overlay.marks.set(&made.address, Mark::Impure, b"y")?;
            }
        }
        if names.len() != frozen.stat.stx_nlink as usize {
            let (known, all) = (names.len(), frozen.stat.stx_nlink);
            tracing::warn!("{known} of {all} names are known of a file that is open for writing");
            return Err(unknown_names());
        }
        overlay.record(ino, &frozen.address, &frozen.state)?;
        Ok(Some(Carried { ino, state: frozen.state, copy, names }))
    }

    /// What was made in directories has moved their times.
    fn set_times(&self) -> Result<()> {
        for made in self.order.iter().rev().filter_map(|ino| self.made.get(ino)) {
            made.address.set_times(&made.times)?;
        }
        Ok(())
    }

    /// Makes this the live upper.
    fn flip(&mut self) -> Result<()> {
        let overlay = self.overlay;
        let upper = overlay.upper()?;
        let frozen = upper.replace_root(Arc::clone(&self.root));
        let old = overlay.live();
        // Others may read it from now on.
        if let Err(errno) = rustix::fs::flock(&frozen, FlockOperation::NonBlockingLockShared) {
            tracing::warn!("a frozen layer is kept from others: {errno}");
        }
        overlay.stack.push(old, Arc::clone(&frozen), self.serial);
        let path = upper.path.clone();
        overlay._layers.lock().push(Layer::locked(old, frozen, path));
        overlay.dirs.clear();
        for ino in std::mem::take(&mut self.order) {
            let Some(made) = self.made.get(&ino) else { continue };
            let below = match ino {
                Ino::ROOT => overlay.stack.root_below(self.serial, overlay.lower.archive().root()),
                ino => overlay.lower_half(ino)?,
            };
            overlay.nodes.publish(ino, self.state_of(made, below));
        }
        Ok(())
    }

    /// Puts the copy of a file in its place in what is a layer now, and says that the file itself is not there.
    fn leave_copy(&self, file: &Carried<'_>) -> Result<()> {
        let overlay = self.overlay;
        for (dir, name) in &file.names {
            overlay.put_in_place(&file.copy.built, dir, os_str(name))?;
        }
        overlay.nodes.publish(file.ino, UpperState { layer: self.serial, ..file.state.clone() });
        for open in overlay.handles.of(file.ino) {
            open.carried_to(self.serial);
        }
        Ok(())
    }

    /// What is known of the root, over `below`.
    pub(super) fn root_state(&self, below: Below) -> Result<UpperState> {
        let made = self.made.get(&Ino::ROOT).ok_or(Errno::NOENT)?;
        Ok(self.state_of(made, below))
    }

    fn state_of(&self, made: &Made, below: Below) -> UpperState {
        UpperState {
            owner: made.owner,
            kept_ctime: Some(made.kept_ctime),
            ..UpperState::new(
                (self.serial, made.st_ino),
                FileKind::Directory,
                made.generation,
                below,
            )
        }
    }

    fn paths(&self, ino: Ino) -> Option<PathBuf> {
        let paths = self.overlay.nodes.paths(ino);
        paths.first().map(|path| os_str(path).into())
    }

    /// Empties what was to be the next upper.
    pub(super) fn give_up(&self) {
        let Ok(names) = list(&self.root) else { return };
        for (name, ..) in names {
            if let Err(error) = inode_ops::remove_tree(&self.root, &name) {
                tracing::warn!("the next upper is not empty: {error}");
            }
        }
    }
}

/// Does what makes a change of the stack one that has come to be.
pub(super) fn commit_by(commit: &mut dyn FnMut() -> io::Result<()>) -> Result<()> {
    commit().map_err(|error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        Error::sys("commit", error)(errno)
    })
}
