//! Listing directories.
//!
//! There are no open directories: a position in a listing, its cookie, says all there is to know, and stays right
//! whatever changes meanwhile. Names that the lower half has are streamed from the archive and keep their place
//! there, even if the upper has something else under them, or nothing. Names of the upper alone are sorted by
//! their hash. So a copy-up moves no name from one half to the other, a removal shifts nothing behind it, and
//! whoever reads on sees each name that was there all the while, once.
//!
//! A name is listed even if what it names cannot be described: it then comes without attributes, and whoever
//! looks at it gets the error.
//!
//! The upper half is listed when reading begins, and kept until the end is reached or another directory needs
//! the room. So a listing costs memory by what the upper holds.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Overlay;
use super::attr::Attr;
use super::dirs::{DirView, os_str};
use super::error::{Error, Result};
use super::halves::{Halves, LOWER_HALF, UPPER_HALF, UpperName};
use super::ino;
use super::lookup::Held;
use super::lower::{Child, LowerEntry};
use super::node::Dentry;
use super::stack::Below;
use crate::inode_ops::{Address, list_with};
use crate::squashfs::DirCursor;
use crate::types::{FileKind, Ino};

/// One name in a directory.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// The `st_ino` of what it names.
    pub ino: Ino,
    /// The name.
    pub name: &'a OsStr,
    /// The kind of what it names.
    pub kind: FileKind,
    /// Where to read on behind it.
    pub next_cookie: u64,
    /// Its attributes, if they were asked for; never of `.` and `..`.
    pub attr: Option<Attr>,
    /// Why it has no attributes, though they were asked for; but what waits for a store that does not
    /// answer is told once.
    pub problem: Option<&'a Error>,
}

type Sink<'a> = dyn FnMut(&DirEntry<'_>) -> ControlFlow<()> + 'a;

/// One call's reading of a directory.
struct Reading<'a, 'b> {
    dir: Ino,
    from: u64,
    /// Whether attributes were asked for.
    plus: bool,
    /// Whether some could not be had from the store. Then this call waits for no others.
    unreachable: bool,
    /// Whether the sink was given anything.
    given: bool,
    sink: &'a mut Sink<'b>,
}

impl Reading<'_, '_> {
    fn give(&mut self, entry: &DirEntry<'_>) -> ControlFlow<()> {
        self.given = true;
        (self.sink)(entry)
    }
}

impl Overlay {
    /// Gives `sink` the entries from cookie `from` on (0 begins anew) until it breaks, `.` and `..`
    /// among them. With `plus` entries come with attributes, where there are any, and a lookup is
    /// counted of each that `sink` accepts by continuing, `.` and `..` apart.
    ///
    /// # Errors
    /// What reading either half says; entries before it have been given.
    pub fn readdir(
        &self,
        ino: Ino,
        from: u64,
        plus: bool,
        sink: &mut dyn FnMut(&DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let known = if from == 0 { None } else { self.listings.get(ino) };
        let halves = match known {
            Some(halves) => halves,
            None => {
                let halves = Arc::new(self.across_freezes(|| self.list_halves(ino))?);
                self.listings.put(ino, &halves);
                halves
            }
        };
        let mut reading = Reading { dir: ino, from, plus, unreachable: false, given: false, sink };
        if self.give(&halves, &mut reading)?.is_continue() && !reading.given {
            // The reader is told that it has reached the end.
            self.listings.remove(ino);
        }
        Ok(())
    }

    fn give(&self, halves: &Halves, reading: &mut Reading<'_, '_>) -> Result<ControlFlow<()>> {
        let from = reading.from;
        if from < UPPER_HALF && self.give_dots(reading)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        if from < LOWER_HALF && self.give_added(halves, reading)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        self.give_lower(halves, reading)
    }

    /// Brings the names in directory `ino` to the disk.
    ///
    /// # Errors
    /// What `fsync` says.
    pub fn fsyncdir(&self, ino: Ino, datasync: bool) -> Result<()> {
        let fd = {
            let _names = self.names.read();
            self.dir_view(ino)?.fd
        };
        let Some(fd) = fd else { return Ok(()) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&fd, c".", flags, Mode::empty())
            .map_err(Error::sys("open", "a directory"))?;
        match datasync {
            true => rustix::fs::fdatasync(&fd),
            false => rustix::fs::fsync(&fd),
        }
        .map_err(Error::sys("fsync", "a directory"))
    }

    /// Both halves of directory `ino` as they are now.
    pub(super) fn halves(&self, ino: Ino) -> Result<Arc<Halves>> {
        let changes = self.changes.load(Ordering::Acquire);
        if let Some(halves) = self.listings.get(ino).filter(|halves| halves.changes == changes) {
            return Ok(halves);
        }
        let halves = Arc::new(self.across_freezes(|| self.list_halves(ino))?);
        self.listings.put(ino, &halves);
        Ok(halves)
    }

    fn list_halves(&self, ino: Ino) -> Result<Halves> {
        let changes = self.changes.load(Ordering::Acquire);
        let node = self.nodes.get(ino)?;
        if node.upper.is_none() && node.dentry == Dentry::Nowhere && ino != Ino::ROOT {
            // A removed directory.
            return Ok(Halves::new(changes, None, Vec::new(), Vec::new()));
        }
        let dir = {
            let _names = self.names.read();
            self.dir_view(ino)?
        };
        let flags = match self.options.no_dir_atime {
            true => OFlags::NOATIME,
            false => OFlags::empty(),
        };
        let mut names: Vec<(Box<[u8]>, Option<Shown>)> = Vec::new();
        if let Some(fd) = &dir.fd {
            let mixed = dir.below.is_some() || self.is_impure(&dir)?;
            for (name, st_ino, kind) in list_with(fd, flags)? {
                let shown = self
                    .name_in_upper(&dir, &name, (st_ino, kind), mixed)
                    .unwrap_or_else(|error| self.shown_anyway(&error, &dir, &name, st_ino, kind));
                names.push((name.as_bytes().into(), shown));
            }
        }
        if dir.below.has_parts() {
            let hidden: HashSet<Box<[u8]>> = names.iter().map(|(name, _)| name.clone()).collect();
            let in_parts = self.names_in_parts(&dir.below)?.into_iter();
            names.extend(in_parts.filter(|(name, _)| !hidden.contains(name)));
        }
        let (mut added, mut covering) = (Vec::new(), Vec::new());
        for (name, shown) in names {
            let covers = match dir.below.archive {
                Some(lower) => self.lower.child(lower, &name)?.is_some(),
                None => false,
            };
            let entry = UpperName { name, shown };
            if covers { &mut covering } else { &mut added }.push(entry);
        }
        Ok(Halves::new(changes, dir.below.archive, added, covering))
    }

    /// What the frozen layers of `below` have, by name, and what it shows; `None` for a whiteout.
    pub(super) fn names_in_parts(
        &self,
        below: &Below,
    ) -> Result<BTreeMap<Box<[u8]>, Option<Shown>>> {
        let mut names: BTreeMap<Box<[u8]>, Option<Shown>> = BTreeMap::new();
        for (index, part) in below.parts().iter().enumerate() {
            let view = self.part_view(part, below.after(index + 1))?;
            let mixed = view.below.is_some() || self.is_impure(&view)?;
            for (name, st_ino, kind) in list_with(view.fd()?, OFlags::NOATIME)? {
                let Entry::Vacant(vacant) = names.entry(name.as_bytes().into()) else { continue };
                let shown = self
                    .name_in_upper(&view, &name, (st_ino, kind), mixed)
                    .unwrap_or_else(|error| self.shown_anyway(&error, &view, &name, st_ino, kind));
                vacant.insert(shown);
            }
        }
        Ok(names)
    }

    /// What a name in the upper half of `dir` shows; `None` for a whiteout. `mixed` says that it may be an
    /// inode that keeps another number.
    fn name_in_upper(
        &self,
        dir: &DirView,
        name: &OsStr,
        (st_ino, file_type): (u64, FileType),
        mixed: bool,
    ) -> Result<Option<Shown>> {
        let fd = dir.fd()?;
        let kind = FileKind::from_mode(file_type.as_raw_mode());
        if file_type == FileType::CharacterDevice && self.is_whiteout(fd, name, file_type)? {
            return Ok(None);
        }
        let numbered = self.numbers.are_listed(file_type);
        let known = self.nodes.copied_as(st_ino).or_else(|| self.index.ino_of(st_ino));
        if let (Some(ino), Some(kind), true) = (known, kind, numbered) {
            return Ok(Some((ino, kind)));
        }
        let born_here = ino::of_birth(dir.layer, st_ino);
        let is_known = || self.nodes.is_known_as(born_here, dir.layer, st_ino);
        let has_own = numbered && (!mixed || is_known());
        if let (true, Some(kind)) = (has_own, kind) {
            return Ok(Some((born_here, kind)));
        }
        if dir.part.is_some() {
            let below = dir.below.clone();
            let address = Address::at(fd, name);
            let stat = self.numbers.identify(&address, address.stat()?)?;
            let mut beneath = || self.find_entry(&below, name.as_bytes());
            let found = self.describe(dir, &address, &stat, &mut beneath)?;
            return Ok(found.map(|found| (found.ino, found.kind)));
        }
        self.across_freezes(|| {
            let beneath = self.lower_child(dir.ino, name)?;
            let _names = self.names.read();
            let found = self.slot(&self.dir_view(dir.ino)?, name, &beneath)?.found;
            Ok(found.map(|found| (found.ino, found.kind)))
        })
    }

    /// What is listed for a name that `dir` has, but that cannot be told what it is: what the file system
    /// below says, without an inode behind it. `None` where it is gone.
    fn shown_anyway(
        &self,
        error: &Error,
        dir: &DirView,
        name: &OsStr,
        st_ino: u64,
        file_type: FileType,
    ) -> Option<Shown> {
        if error.is(Errno::NOENT) {
            return None;
        }
        tracing::debug!("{} is listed, but cannot be described: {error}", name.display());
        let kind = FileKind::from_mode(file_type.as_raw_mode()).unwrap_or(FileKind::Regular);
        Some((ino::of_birth(dir.layer, st_ino), kind))
    }

    fn give_dots(&self, reading: &mut Reading<'_, '_>) -> Result<ControlFlow<()>> {
        let parent = self.nodes.name_of(reading.dir)?.map_or(Ino::ROOT, |(parent, _)| parent);
        for (position, (name, ino)) in [(".", reading.dir), ("..", parent)].into_iter().enumerate()
        {
            let position = position as u64;
            let entry = DirEntry {
                ino,
                name: OsStr::new(name),
                kind: FileKind::Directory,
                next_cookie: position + 1,
                attr: None,
                problem: None,
            };
            if position >= reading.from && reading.give(&entry).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn give_added(
        &self,
        halves: &Halves,
        reading: &mut Reading<'_, '_>,
    ) -> Result<ControlFlow<()>> {
        let start = halves.added.partition_point(|(position, _)| *position < reading.from);
        for (position, entry) in halves.added.iter().skip(start) {
            let Some(shown) = entry.shown else { continue };
            let name = os_str(&entry.name);
            let held = |dir| self.across_freezes(|| self.hold(dir, name));
            if self.give_one(name, shown, position + 1, held, reading)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn give_lower(
        &self,
        halves: &Halves,
        reading: &mut Reading<'_, '_>,
    ) -> Result<ControlFlow<()>> {
        let Some(lower) = halves.lower() else { return Ok(ControlFlow::Continue(())) };
        let directory = self.lower.directory(lower)?;
        let from = DirCursor(reading.from.max(LOWER_HALF) - LOWER_HALF);
        for entry in self.lower.archive().read_dir(&directory, from)? {
            let entry = entry?;
            let name = os_str(&entry.name);
            let next_cookie = LOWER_HALF + entry.next.0;
            let child = Child { inode: entry.inode, kind: entry.kind };
            let flow = match halves.covers(&entry.name) {
                Some(UpperName { shown: None, .. }) => continue,
                Some(UpperName { shown: Some(shown), .. }) => {
                    let held = |dir| self.across_freezes(|| self.hold(dir, name));
                    self.give_one(name, *shown, next_cookie, held, reading)?
                }
                None => {
                    let ino = self.lower.ino(child.inode).unwrap_or(ino::of_nothing(child.inode));
                    let held = |dir| self.hold_lower(dir, halves, name, child);
                    self.give_one(name, (ino, child.kind), next_cookie, held, reading)?
                }
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// As [`Self::hold`], for a name known from listing the lower half: while nothing has changed,
    /// the upper need not be asked about it again.
    fn hold_lower(
        &self,
        dir: Ino,
        halves: &Halves,
        name: &OsStr,
        child: Child,
    ) -> Result<Held<'_>> {
        {
            let _names = self.names.read();
            if self.changes.load(Ordering::Acquire) == halves.changes {
                let found = self.describe_lower(&LowerEntry::Archive(child))?;
                return self.enter(dir, name, found);
            }
        }
        self.across_freezes(|| self.hold(dir, name))
    }

    /// Gives one name, listed as `(ino, kind)`. If attributes are asked for, `held` finds what it names,
    /// and the lookup is left counted if the name is accepted. A name that was removed since reading
    /// began is passed over.
    fn give_one<'a>(
        &'a self,
        name: &OsStr,
        (ino, kind): (Ino, FileKind),
        next_cookie: u64,
        held: impl FnOnce(Ino) -> Result<Held<'a>>,
        reading: &mut Reading<'_, '_>,
    ) -> Result<ControlFlow<()>> {
        let bare = DirEntry { ino, name, kind, next_cookie, attr: None, problem: None };
        if !reading.plus {
            return Ok(reading.give(&bare));
        }
        let described = match reading.unreachable {
            true => None,
            false => {
                let held = held(reading.dir);
                Some(held.and_then(|held| self.getattr(held.ino, None).map(|attr| (held, attr))))
            }
        };
        let (held, entry) = match &described {
            Some(Ok((held, attr))) if attr.number == held.ino => {
                let (ino, kind) = (held.ino, held.kind);
                (None, DirEntry { ino, kind, attr: Some(*attr), ..bare })
            }
            // What is listed with attributes has one number for both.
            Some(Ok(_)) => (Some(self.count(ino, kind)?), bare),
            Some(Err(error)) if error.is(Errno::NOENT) => return Ok(ControlFlow::Continue(())),
            Some(Err(error)) => {
                reading.unreachable = error.is_of_the_store();
                (Some(self.count(ino, kind)?), DirEntry { problem: Some(error), ..bare })
            }
            None => (Some(self.count(ino, kind)?), bare),
        };
        let (flow, has_attr) = (reading.give(&entry), entry.attr.is_some());
        if flow.is_continue() {
            std::mem::forget(held);
            if let Some(Ok((held, _))) = described
                && has_attr
            {
                std::mem::forget(held);
            }
        }
        Ok(flow)
    }
}

/// What a name in a listing shows: the number of what it names, and of what kind that is.
pub(super) type Shown = (Ino, FileKind);
