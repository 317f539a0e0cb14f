//! Files that the kernel reads or writes by itself (passthrough), and so will not have exchanged for another.
//!
//! Elsewhere a layer keeps the inode and the live upper gets a copy. Of these the live upper gets the inode, and the
//! layer a copy: at the freeze if the kernel writes to it, else when it is first changed.
//!
//! A copy is made while the kernel may write, so it is of no one moment unless the file stood still meanwhile, or its
//! file system shares blocks.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{FileType, OFlags, RenameFlags};
use rustix::io::Errno;

use super::super::Overlay;
use super::super::build::{Built, FrozenInode, Original};
use super::super::dirs::os_str;
use super::super::error::{Error, Result};
use super::super::handles::Source;
use super::super::index::nlink_mark;
use super::super::lookup::Held;
use super::super::node::{Data, Dentry, InLayer, UpperState};
use super::super::upper::{Mark, Record};
use super::names::LayerName;
use super::{Below, Part};
use crate::cache::may_wait;
use crate::inode_ops::{Address, copy_data, list, stat_at, stat_fd, times_of};
use crate::types::{FileKind, Ino, LayerSerial};

/// How often a file is copied again that has changed meanwhile.
const ATTEMPTS: usize = 3;

/// A copy for a layer, of a file as it was when it was last changed before.
pub(super) struct LayerCopy<'a> {
    pub(super) built: Built<'a>,
    /// The `st_ctime` of the file, seconds and nanoseconds, when the copying began.
    pub(super) of: (i64, u32),
    /// Whether it has changed until that was done.
    pub(super) is_fuzzy: bool,
}

impl Overlay {
    /// Makes a copy of regular file `ino`, `frozen`, which is to take its place in a layer.
    pub(super) fn copy_for_layer(
        &self,
        ino: Ino,
        frozen: &FrozenInode,
        attempts: usize,
    ) -> Result<LayerCopy<'_>> {
        let upper = self.upper()?;
        let from = frozen.address.open(OFlags::RDONLY)?;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let of = changed_at(&from)?;
            let (draft, fd) = upper.draft_file(OFlags::RDWR, 0o600)?;
            copy_data(&from, &fd)?;
            let fd = Arc::new(fd);
            let copy = Address::Open(Arc::clone(&fd));
            let stat = frozen.address.stat()?;
            let frozen = FrozenInode { stat, ..frozen.clone() };
            let (st_ino, owner) = self.dress(&copy, ino, &Original::Layer(Box::new(frozen)))?;
            let is_fuzzy = changed_at(&from)? != of;
            if !is_fuzzy || attempt >= attempts {
                let (fd, data) = (Some(fd), Data::Upper);
                let built = Built { draft, fd, st_ino, owner, data, null_device: false };
                return Ok(LayerCopy { built, of, is_fuzzy });
            }
        }
    }

    /// Takes frozen file `ino`, which the kernel reads by itself, into the live upper, and leaves a copy in the layer.
    /// Says whether it is there: not where the directory above is not in the upper.
    pub(in super::super) fn take_up(&self, ino: Ino, frozen: &FrozenInode) -> Result<bool> {
        if !may_wait() {
            return Err(Error::WouldCopy);
        }
        let copy = self.copy_for_layer(ino, frozen, ATTEMPTS)?;
        let layer = frozen.state.layer;
        let in_layer = match (&frozen.place, frozen.stat.stx_nlink) {
            (None, _) => Vec::new(),
            (Some(place), 1) => vec![LayerName { dir: Ino::ROOT, place: place.clone() }],
            (Some(_), _) => self.names_in_layer(self.number(ino), layer)?,
        };
        let upper = self.upper()?;
        let _names = self.names.write();
        let node = self.nodes.get(ino)?;
        let Dentry::Name(parent, name) = node.dentry else { return Err(Error::Frozen) };
        let is_live = self.nodes.upper(parent)?.is_some_and(|state| self.is_live(&state));
        let is_same = node.upper.is_some_and(|now| {
            (now.layer, now.st_ino) == (layer, frozen.state.st_ino) && now.pin.is_none()
        }) && self.stack.merges() == frozen.merges;
        if !is_live || !is_same {
            return Ok(false);
        }
        let dir = self.dir_fd(parent)?;
        let stat = stat_fd(&dir).map_err(Error::sys("statx", "a directory"))?;
        self.keep_ctime(parent, &dir, &stat)?;
        self.set_impure(parent, &dir)?;
        let inode = &frozen.address;
        let st_ino = frozen.state.st_ino;
        self.record(ino, inode, &frozen.state)?;
        if frozen.state.kept_ctime.is_some() {
            self.marks.clear(inode, Mark::Ctime)?;
        }
        let mut state = UpperState {
            owner: frozen.state.owner,
            ..UpperState::new(
                (self.live(), st_ino),
                FileKind::Regular,
                frozen.state.generation,
                Below::archive(frozen.state.below.archive),
            )
        };
        // First the layer, which holds the same then; the other way round a write would be in both.
        let (own, ()) = upper.draft(|work, draft| inode.link_to(work, draft))?;
        for name in &in_layer {
            self.put_in_layer(&copy.built, name)?;
        }
        own.place(&dir, os_str(&name), RenameFlags::NOREPLACE)?;
        if frozen.stat.stx_nlink > 1 {
            let entry =
                Original::Layer(Box::new(frozen.clone())).index_entry(self.number(ino), st_ino);
            inode.link_to(&upper.index, &entry.name)?;
            state.extra_links = i64::from(entry.lower_nlink) - 2;
            self.marks.set(inode, Mark::Nlink, &nlink_mark(b'U', state.extra_links))?;
            self.index.add(ino, entry);
            self.nodes.move_to(ino, Dentry::Index);
            self.nodes.note_alias(ino, parent, os_str(&name));
        }
        Address::at(&dir, OsStr::new(".")).set_times(&times_of(&stat))?;
        self.changed();
        self.nodes.publish(ino, state);
        for open in self.handles.of(ino) {
            open.carried_to(self.live());
        }
        Ok(true)
    }

    /// Gives layers that are to be of the stack again copies of the files in them that somebody writes to since they
    /// were rolled away: who does goes on with the file itself, as after unlink(2). Called with `names` held exclusively.
    /// Gives the nodes of these.
    pub(super) fn cut_off(&self, come: &HashSet<LayerSerial>) -> Result<HashSet<Ino>> {
        let (mut done, mut nodes) = (HashSet::new(), HashSet::new());
        for open in self.handles.all().iter().filter(|open| open.writes()) {
            let Source::File(layer, fd) = open.source() else { continue };
            let Some(state) = self.nodes.find(open.ino).and_then(|node| node.upper) else {
                continue;
            };
            let is_apart = open.is_apart() || state.is_apart;
            if !come.contains(&layer) || !is_apart || !state.data.is_here() {
                continue;
            }
            nodes.insert(open.ino);
            let stat = stat_fd(&fd).map_err(Error::sys("statx", "an open file"))?;
            if stat.stx_nlink == 0 || !done.insert(stat.stx_ino) {
                continue;
            }
            let address = Address::Open(fd);
            let (whole, place, merges) = (Below::default(), None, self.stack.merges());
            let frozen = FrozenInode { address, stat, state, whole, place, merges };
            let names = self.names_of_inode(layer, stat.stx_ino)?;
            let copy = self.copy_for_layer(open.ino, &frozen, ATTEMPTS)?;
            for name in &names {
                self.put_in_layer(&copy.built, name)?;
            }
        }
        Ok(nodes)
    }

    /// The names of inode `st_ino` in `layer`, which may be of no stack yet.
    fn names_of_inode(&self, layer: LayerSerial, st_ino: u64) -> Result<Vec<LayerName>> {
        let mut pending: Vec<Arc<Part>> = self.stack.root_in(layer).into_iter().collect();
        let mut names = Vec::new();
        while let Some(dir) = pending.pop() {
            let fd = self.part_fds.get(&dir)?;
            for (name, _, kind) in list(&fd)? {
                let bytes = name.as_bytes();
                if kind == FileType::Directory {
                    pending.push(Part::child(&dir, bytes));
                } else if stat_at(&fd, &name)?.stx_ino == st_ino {
                    let place = InLayer { dir: Arc::clone(&dir), name: bytes.into() };
                    names.push(LayerName { dir: Ino::ROOT, place });
                }
            }
        }
        Ok(names)
    }

    /// Gives the topmost layer copies of the files that a server before this one was killed over carrying from it.
    pub(in super::super) fn finish_carrying(&self) -> Result<()> {
        let root = self.upper()?.root_address();
        if self.marks.get(&root, Mark::Carrying)?.is_none() {
            return Ok(());
        }
        let mut pending: Vec<Held<'_>> = self.hold_known(Ino::ROOT)?.into_iter().collect();
        while let Some(dir) = pending.pop() {
            let view = self.dir_view(dir.ino)?;
            // What came from there is in directories that it has, too.
            let (fd, Some(part)) = (view.fd()?, view.below.parts().first()) else { continue };
            let part_fd = self.part_fds.get(part)?;
            for (name, _, kind) in list(fd)? {
                if kind == FileType::Directory {
                    pending.push(self.hold(dir.ino, &name)?);
                } else if kind == FileType::RegularFile && are_same(fd, &part_fd, &name)? {
                    let held = self.hold(dir.ino, &name)?;
                    let Some(frozen) = self.in_upper_now(held.ino)? else { continue };
                    let copy = self.copy_for_layer(held.ino, &frozen, ATTEMPTS)?;
                    self.put_in_place(&copy.built, &part_fd, &name)?;
                    part.set_impure(true);
                }
            }
        }
        self.marks.clear(&root, Mark::Carrying)
    }

    /// Gives an inode of the upper that came from a layer the record of its number.
    pub(super) fn record(&self, ino: Ino, inode: &Address, state: &UpperState) -> Result<()> {
        let number = Record::Number(self.number(ino), state.generation);
        let record = state.below.archive.map_or(number, Record::Archive);
        self.marks.set(inode, Mark::Record, &record.to_bytes(state.st_ino))
    }

    /// Puts a copy under `name` of a layer, in the place of what is there.
    fn put_in_layer(&self, copy: &Built<'_>, name: &LayerName) -> Result<()> {
        let dir = self.part_fds.get(&name.place.dir)?;
        self.stack.touch();
        self.put_in_place(copy, &dir, os_str(&name.place.name))?;
        name.place.dir.set_impure(true);
        Ok(())
    }

    /// Puts a copy under `name` in directory `dir`, in the place of what is there, with no change of the directory
    /// that shows.
    pub(super) fn put_in_place(
        &self,
        copy: &Built<'_>,
        dir: &Arc<OwnedFd>,
        name: &OsStr,
    ) -> Result<()> {
        let upper = self.upper()?;
        let stat = stat_fd(dir).map_err(Error::sys("statx", "a directory"))?;
        let here = Address::at(dir, OsStr::new("."));
        self.marks.set(&here, Mark::Impure, b"y")?;
        let address = copy.draft.address();
        let (draft, ()) = upper.draft(|work, draft| address.link_to(work, draft))?;
        draft.place(dir, name, RenameFlags::empty())?;
        Ok(here.set_times(&times_of(&stat))?)
    }
}

/// Whether `name` is one inode in both directories.
fn are_same(one: &OwnedFd, other: &OwnedFd, name: &OsStr) -> Result<bool> {
    let inode = |dir| match stat_at(dir, name) {
        Ok(stat) => Ok(Some(stat.stx_ino)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(Error::sys("statx", name.display())(errno)),
    };
    Ok(inode(one)? == inode(other)?)
}

/// When the file behind `fd` was last changed.
pub(super) fn changed_at(fd: &OwnedFd) -> Result<(i64, u32)> {
    let stat = stat_fd(fd).map_err(Error::sys("statx", "an open file"))?;
    Ok((stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec))
}

/// Of a file that is to be carried to the next upper and has more names than are known.
pub(super) fn unknown_names() -> Error {
    Errno::BUSY.into()
}
