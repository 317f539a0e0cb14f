//! Listing directories.
//!
//! The upper half is listed once, when reading begins, and kept sorted; the lower half is streamed
//! from the archive, names that the upper has passed over. So a listing costs memory by what the
//! upper holds, and positions in it stay right until reading begins anew.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Overlay;
use super::attr::Attr;
use super::dirs::os_str;
use super::error::{Error, Result};
use super::handles::{Handle, Open};
use super::ino;
use super::lookup::Held;
use super::lower::Child;
use super::nodes::Place;
use super::upper::list;
use crate::squashfs::DirCursor;
use crate::types::{FileKind, Ino, InodeRef};

/// Positions from here on are in the lower half, the archive's cursor added.
const LOWER_HALF: u64 = 1 << 62;
/// Positions of the upper half: `.` is 0, `..` is 1.
const UPPER_HALF: u64 = 2;

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
}

/// Where the listing of an open directory stands.
#[derive(Debug, Default)]
pub(super) struct Listing(Option<Arc<Halves>>);

/// Both halves of a directory, at the moment reading began.
#[derive(Debug)]
struct Halves {
    /// [`Overlay::changes`] at that moment.
    changes: u64,
    /// Everything in the upper half, whiteouts too, sorted by name.
    upper: Vec<UpperName>,
    lower: Option<InodeRef>,
}

#[derive(Debug)]
struct UpperName {
    name: Box<[u8]>,
    /// `None` for a whiteout.
    shown: Option<(Ino, FileKind)>,
}

impl Halves {
    fn hides(&self, name: &[u8]) -> bool {
        self.upper.binary_search_by(|entry| (*entry.name).cmp(name)).is_ok()
    }
}

type Sink<'a> = dyn FnMut(&DirEntry<'_>) -> ControlFlow<()> + 'a;

impl Overlay {
    /// Opens directory `ino` for listing.
    ///
    /// # Errors
    /// `ESTALE` where `ino` is not known.
    pub fn opendir(&self, ino: Ino) -> Result<Handle> {
        self.nodes.upper(ino)?;
        Ok(self.handles.add(Open::Directory { ino, listing: Mutex::default() }))
    }

    /// Ends `handle`.
    pub fn releasedir(&self, handle: Handle) {
        self.handles.remove(handle);
    }

    /// Gives `sink` the entries from cookie `from` on (0 begins anew) until it breaks, `.` and `..`
    /// among them. With `plus` entries come with attributes, and a lookup is counted of each that
    /// `sink` accepts by continuing, `.` and `..` apart.
    ///
    /// # Errors
    /// What reading either half says; entries before it have been given.
    pub fn readdir(
        &self,
        handle: Handle,
        from: u64,
        plus: bool,
        sink: &mut dyn FnMut(&DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let open = self.handles.get(handle)?;
        let Open::Directory { ino, listing } = &*open else { return Err(Errno::NOTDIR.into()) };
        let known = listing.lock().0.clone();
        let halves = match known {
            Some(halves) if from != 0 => halves,
            Some(_) | None => {
                let halves = Arc::new(self.list_halves(*ino)?);
                listing.lock().0 = Some(Arc::clone(&halves));
                halves
            }
        };
        if from < UPPER_HALF && self.give_dots(*ino, from, sink)?.is_break() {
            return Ok(());
        }
        if from < LOWER_HALF {
            let skip = from.max(UPPER_HALF) - UPPER_HALF;
            if self.give_upper(*ino, &halves, skip, plus, sink)?.is_break() {
                return Ok(());
            }
        }
        self.give_lower(*ino, &halves, from.max(LOWER_HALF) - LOWER_HALF, plus, sink)
    }

    /// Brings the names in an open directory to the disk.
    ///
    /// # Errors
    /// What `fsync` says.
    pub fn fsyncdir(&self, handle: Handle, datasync: bool) -> Result<()> {
        let open = self.handles.get(handle)?;
        let Open::Directory { ino, .. } = &*open else { return Err(Errno::NOTDIR.into()) };
        let fd = {
            let _names = self.names.read();
            self.dir_view(*ino)?.fd
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

    fn list_halves(&self, ino: Ino) -> Result<Halves> {
        let changes = self.changes.load(Ordering::Acquire);
        let node = self.nodes.get(ino)?;
        if node.upper.is_none() && node.place == Place::Nowhere && ino != Ino::ROOT {
            // A removed directory.
            return Ok(Halves { changes, upper: Vec::new(), lower: None });
        }
        let (dir, mixed) = {
            let _names = self.names.read();
            let dir = self.dir_view(ino)?;
            let mixed = match &dir.fd {
                Some(fd) => dir.lower.is_some() || self.is_impure(ino, fd)?,
                None => false,
            };
            (dir, mixed)
        };
        let mut upper = Vec::new();
        if let Some(fd) = &dir.fd {
            for (name, st_ino, kind) in list(fd)? {
                let shown = self.name_in_upper(ino, fd, &name, (st_ino, kind), mixed)?;
                upper.push(UpperName { name: name.as_bytes().into(), shown });
            }
            upper.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        }
        Ok(Halves { changes, upper, lower: dir.lower })
    }

    /// What a name in the upper half shows; `None` for a whiteout. `mixed` says that it may be an
    /// inode that keeps a lower number.
    fn name_in_upper(
        &self,
        dir: Ino,
        fd: &Arc<OwnedFd>,
        name: &OsStr,
        (st_ino, file_type): (u64, FileType),
        mixed: bool,
    ) -> Result<Option<(Ino, FileKind)>> {
        let kind = FileKind::from_mode(file_type.as_raw_mode());
        if file_type == FileType::CharacterDevice && self.is_whiteout(fd, name, file_type)? {
            return Ok(None);
        }
        let known = self.nodes.copied_as(st_ino).or_else(|| self.index.ino_of(st_ino));
        if let (Some(ino), Some(kind)) = (known, kind) {
            return Ok(Some((ino, kind)));
        }
        let upper_born = ino::of_upper(st_ino);
        if let (false, Some(kind)) = (mixed && self.nodes.find(upper_born).is_none(), kind) {
            return Ok(Some((upper_born, kind)));
        }
        let child = self.lower_child(dir, name)?;
        let _names = self.names.read();
        let found = self.slot(&self.dir_view(dir)?, name, child)?.found;
        Ok(found.map(|found| (found.ino, found.kind)))
    }

    fn give_dots(&self, ino: Ino, from: u64, sink: &mut Sink<'_>) -> Result<ControlFlow<()>> {
        let parent = self.nodes.name_of(ino)?.map_or(Ino::ROOT, |(parent, _)| parent);
        for (position, (name, ino)) in [(".", ino), ("..", parent)].into_iter().enumerate() {
            let position = position as u64;
            let entry = DirEntry {
                ino,
                name: OsStr::new(name),
                kind: FileKind::Directory,
                next_cookie: position + 1,
                attr: None,
            };
            if position >= from && sink(&entry).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn give_upper(
        &self,
        dir: Ino,
        halves: &Halves,
        skip: u64,
        plus: bool,
        sink: &mut Sink<'_>,
    ) -> Result<ControlFlow<()>> {
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        for (position, entry) in halves.upper.iter().enumerate().skip(skip) {
            let Some((ino, kind)) = entry.shown else { continue };
            let name = os_str(&entry.name);
            let next_cookie = position as u64 + 1 + UPPER_HALF;
            let flow = match plus {
                false => sink(&DirEntry { ino, name, kind, next_cookie, attr: None }),
                true => match self.hold(dir, name) {
                    Ok(held) => self.give_held(held, name, next_cookie, sink)?,
                    // Removed since reading began.
                    Err(error) if error.is(Errno::NOENT) => continue,
                    Err(error) => return Err(error),
                },
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn give_lower(
        &self,
        dir: Ino,
        halves: &Halves,
        from: u64,
        plus: bool,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let Some(lower) = halves.lower else { return Ok(()) };
        let directory = self.lower.directory(lower)?;
        for entry in self.lower.archive().read_dir(&directory, DirCursor(from))? {
            let entry = entry?;
            if halves.hides(&entry.name) {
                continue;
            }
            let name = os_str(&entry.name);
            let next_cookie = LOWER_HALF + entry.next.0;
            let child = Child { inode: entry.inode, kind: entry.kind };
            let flow = match plus {
                false => {
                    let ino = self.lower.ino(child.inode)?;
                    sink(&DirEntry { ino, name, kind: child.kind, next_cookie, attr: None })
                }
                true => match self.hold_lower(dir, halves, name, child) {
                    Ok(held) => self.give_held(held, name, next_cookie, sink)?,
                    Err(error) if error.is(Errno::NOENT) => continue,
                    Err(error) => return Err(error),
                },
            };
            if flow.is_break() {
                return Ok(());
            }
        }
        Ok(())
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
        let _names = self.names.read();
        let found = if self.changes.load(Ordering::Acquire) == halves.changes {
            self.describe_lower(child)?
        } else {
            self.slot(&self.dir_view(dir)?, name, Some(child))?.found.ok_or(Errno::NOENT)?
        };
        self.enter(dir, name, found)
    }

    fn give_held(
        &self,
        held: Held<'_>,
        name: &OsStr,
        next_cookie: u64,
        sink: &mut Sink<'_>,
    ) -> Result<ControlFlow<()>> {
        let attr = self.getattr(held.ino, None)?;
        let flow =
            sink(&DirEntry { ino: held.ino, name, kind: held.kind, next_cookie, attr: Some(attr) });
        if flow.is_continue() {
            std::mem::forget(held);
        }
        Ok(flow)
    }
}
