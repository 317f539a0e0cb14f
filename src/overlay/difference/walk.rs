//! The way through the upper, in the order of paths: each name that it has, beside what the backup has there.
//!
//! The archive is asked for single names. Its directories are listed only where a directory of the upper hides one:
//! what that had is gone then.

use std::ffi::OsStr;
use std::ops::ControlFlow;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::super::Overlay;
use super::super::attr::kind_of;
use super::super::dirs::os_str;
use super::super::error::{Error, Result};
use super::super::lookup::Physical;
use super::super::lower::{Beneath, Child, LowerEntry};
use super::super::node::Data;
use super::super::upper::{Mark, parse_handle};
use super::guide::Guide;
use super::step::{Here, InUpper, Step, ctime_of, join};
use crate::inode_ops::{Address, list_with, stat_at};
use crate::squashfs::DirCursor;
use crate::types::{FileKind, Ino, InodeNumber, InodeRef, Timestamp};

/// Most directories that one of the archive's is looked for below.
const MAX_DEPTH: usize = 1 << 12;

/// A directory on the way.
struct Frame<'o> {
    ino: Ino,
    /// The lower directory that it merges with, or that it hides.
    lower: Option<InodeRef>,
    /// The path of that in the backup.
    backup_path: Vec<u8>,
    ctime: Option<Timestamp>,
    /// Names yet to come.
    names: std::vec::IntoIter<Box<[u8]>>,
    /// How long its path is.
    len: usize,
    _keep: Here<'o>,
}

/// Where to go.
pub(super) struct Walk<'o, 'w> {
    pub(super) overlay: &'o Overlay,
    pub(super) guide: &'w Guide,
    /// Names of directories from the root: only what is below the last is visited, and it itself.
    pub(super) below: &'w [Box<[u8]>],
    /// Whether what was made in the place of a directory of the backup is compared with that.
    pub(super) looks_below_hidden: bool,
    /// Whether files are passed over where none can be of the backup.
    pub(super) passes_over_new: bool,
}

impl<'o> Walk<'o, '_> {
    /// Gives `visit` all names until it breaks.
    pub(super) fn run(
        &self,
        visit: &mut dyn FnMut(&Step<'_, 'o>) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let Some(root) = self.root()? else { return Ok(()) };
        let root = Step {
            path: b"",
            backup_path: b"",
            child: Some(self.root_child()),
            here: root,
            above: None,
        };
        if self.below.is_empty() && visit(&root)?.is_break() {
            return Ok(());
        }
        let mut path = Vec::new();
        let mut frames = Vec::new();
        frames.extend(self.enter(root, 0)?);
        loop {
            let depth = frames.len();
            let Some(frame) = frames.last_mut() else { return Ok(()) };
            path.truncate(frame.len);
            let Some(name) = frame.names.next() else {
                frames.pop();
                continue;
            };
            join(&mut path, &name);
            let mut backup_path = frame.backup_path.clone();
            join(&mut backup_path, &name);
            let Some((child, here)) = unless_gone(self.look(frame, &name))? else { continue };
            let step =
                Step { path: &path, backup_path: &backup_path, child, here, above: frame.ctime };
            if depth >= self.below.len() && visit(&step)?.is_break() {
                return Ok(());
            }
            frames.extend(unless_gone(self.enter(step, depth))?.flatten());
        }
    }

    fn root_child(&self) -> Child {
        Child { inode: self.overlay.lower.archive().root(), kind: FileKind::Directory }
    }

    fn root(&self) -> Result<Option<Here<'o>>> {
        let (ino, kind) = (Ino::ROOT, FileKind::Directory);
        if self.overlay.nodes.upper(ino)?.is_none() {
            return Ok(None);
        }
        let (inode, state) = {
            let _names = self.overlay.names.read();
            self.overlay.address(ino)?
        };
        let stat = self.overlay.numbers.identify(&inode, inode.stat()?)?;
        let (lower, inode) = (state.below.archive, Some(inode));
        let (redirected, lower_path, _held) = (false, None, None);
        Ok(Some(Here::Upper(Box::new(InUpper {
            ino,
            kind,
            state,
            stat,
            inode,
            lower,
            redirected,
            lower_path,
            _held,
        }))))
    }

    /// Finds what both have under `name`.
    fn look(&self, frame: &Frame<'o>, name: &[u8]) -> Result<(Option<Child>, Here<'o>)> {
        let overlay = self.overlay;
        let child = match frame.lower {
            Some(directory) => overlay.lower.child(directory, name)?,
            None => None,
        };
        let seen = overlay.across_freezes(|| {
            let (stack, below) = {
                let _names = overlay.names.read();
                (overlay.stack.version(), overlay.lower_half(frame.ino)?)
            };
            // The archive alone was asked already.
            let beneath = match !below.has_parts() && below.archive == frame.lower {
                true => Beneath { stack, entry: child.map(LowerEntry::Archive) },
                false => overlay.lower_child(frame.ino, os_str(name))?,
            };
            let _names = overlay.names.read();
            self.look_in_upper(frame.ino, os_str(name), &beneath, child.is_some())
        })?;
        let (mut upper, redirect, origin) = match seen {
            Seen::Upper(upper, redirect, origin) => (upper, redirect, origin),
            Seen::Other(here) => return Ok((child, here)),
        };
        if let Some(number) = origin {
            upper.lower = overlay.lower.archive().inode_by_number(number)?;
        }
        if let Some(lower) = upper.lower
            && upper.kind == FileKind::Directory
            && child.map(|child| child.inode) != Some(lower)
        {
            upper.lower_path = self.lower_path(lower, redirect.as_deref(), frame)?;
        }
        Ok((child, Here::Upper(upper)))
    }

    /// What is under `name` in `directory`. Called with `names` held.
    fn look_in_upper(
        &self,
        directory: Ino,
        name: &OsStr,
        beneath: &Beneath,
        is_compared: bool,
    ) -> Result<Seen<'o>> {
        let overlay = self.overlay;
        let view = overlay.dir_view(directory)?;
        let slot = overlay.slot(&view, name, beneath)?;
        let Some(found) = slot.found else {
            return Ok(Seen::Other(match slot.physical {
                Physical::Absent => overlay.whiteout_in(&view.below, name)?,
                Physical::Whiteout | Physical::Entry => Here::Whiteout(ctime_of(
                    &stat_at(view.fd()?, name).map_err(Error::sys("statx", name.display()))?,
                )),
            }));
        };
        let held = overlay.enter(directory, name, found)?;
        let ino = held.ino;
        if overlay.nodes.upper(ino)?.is_none() {
            return Ok(Seen::Other(Here::Lower(held)));
        }
        let (inode, state) = overlay.address(ino)?;
        let stat = overlay.numbers.identify(&inode, inode.stat()?)?;
        let (kind, marks) = (kind_of(&stat)?, overlay.marks);
        let is_directory = kind == FileKind::Directory;
        let lower = state.below.archive;
        let redirect = match state.data {
            Data::Upper if !is_directory || lower.is_none() => None,
            _ => marks.get(&inode, Mark::Redirect)?,
        };
        let mut origin = None;
        if lower.is_none()
            && !is_directory
            && (view.below.is_some() || (view.fd.is_some() && overlay.is_impure(&view)?))
        {
            origin = match overlay.is_over_another(state.layer) {
                true => None,
                false => self.origin(&inode, kind)?,
            };
        }
        let is_compared = is_compared || lower.is_some() || origin.is_some();
        let inode = if is_compared { Some(Address::Pinned(inode.pin()?)) } else { None };
        let redirected = redirect.is_some();
        let (lower_path, _held) = (None, Some(held));
        let upper = InUpper { ino, kind, state, stat, inode, lower, redirected, lower_path, _held };
        Ok(Seen::Upper(Box::new(upper), redirect, origin))
    }

    /// The number of the lower inode that kernel overlayfs has copied `inode` from. Where we have, our own record
    /// says so, and if that is another inode's this one is a copy that somebody else has made.
    fn origin(&self, inode: &Address, kind: FileKind) -> Result<Option<InodeNumber>> {
        let marks = self.overlay.marks.for_kind(kind);
        let Some(handle) = marks.get(inode, Mark::Origin)? else { return Ok(None) };
        match marks.get(inode, Mark::Record)? {
            Some(_) => Ok(None),
            None => Ok(parse_handle(&handle)),
        }
    }

    /// The path of lower directory `lower`, which a redirect says; else it is looked for from the root down.
    fn lower_path(
        &self,
        lower: InodeRef,
        redirect: Option<&[u8]>,
        frame: &Frame<'o>,
    ) -> Result<Option<Vec<u8>>> {
        let archive = &self.overlay.lower;
        let is_there = |child: Option<Child>| child.is_some_and(|child| child.inode == lower);
        match (redirect, frame.lower) {
            (Some([b'/', path @ ..]), _)
                if is_there(archive.resolve(archive.archive().root(), path)?) =>
            {
                return Ok(Some(path.to_owned()));
            }
            (Some(name), Some(beside)) if is_there(archive.child(beside, name)?) => {
                let mut path = frame.backup_path.clone();
                join(&mut path, name);
                return Ok(Some(path));
            }
            _ => {}
        }
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut at = lower;
        while at != archive.archive().root() {
            let parent = archive.inode(at)?.parent();
            let parent =
                parent.map(|number| archive.archive().inode_by_number(number)).transpose()?;
            let Some(parent) = parent.flatten().filter(|_| names.len() < MAX_DEPTH) else {
                return Ok(None);
            };
            let parent = archive.directory(parent)?;
            let mut name = None;
            for entry in archive.archive().read_dir(&parent, DirCursor::START)? {
                let entry = entry?;
                if entry.inode == at {
                    name = Some(entry.name);
                    break;
                }
            }
            let Some(name) = name else { return Ok(None) };
            names.push(name);
            at = parent.reference;
        }
        names.reverse();
        Ok(Some(names.join(&b'/')))
    }

    /// Goes into a directory, if there is anything to be seen in it.
    fn enter(&self, step: Step<'_, 'o>, depth: usize) -> Result<Option<Frame<'o>>> {
        let here_path = || step.backup_path.to_vec();
        let (ino, lower, hides, backup_path) = match (&step.here, step.child) {
            (Here::Lower(held), Some(child)) if self.guide.has_names_in(child.inode) => {
                (held.ino, Some(child.inode), false, here_path())
            }
            (Here::Upper(upper), child) if upper.kind == FileKind::Directory => {
                let is_own = upper.lower == child.map(|child| child.inode);
                match (upper.lower, child) {
                    (Some(lower), _) if is_own => (upper.ino, Some(lower), false, here_path()),
                    (Some(lower), _) => {
                        let path = upper.lower_path.clone().unwrap_or_default();
                        (upper.ino, Some(lower), false, path)
                    }
                    (None, Some(child))
                        if self.looks_below_hidden
                            && child.kind == FileKind::Directory
                            && !self.guide.has_moved(child.inode) =>
                    {
                        (upper.ino, Some(child.inode), true, here_path())
                    }
                    (None, _) => (upper.ino, None, false, Vec::new()),
                }
            }
            _ => return Ok(None),
        };
        let (fd, below, ctime, may_be_old) = {
            let overlay = self.overlay;
            let _names = overlay.names.read();
            let view = overlay.dir_view(ino)?;
            match overlay.nodes.upper(ino)? {
                None => (None, view.below, None, false),
                Some(_) => {
                    let (inode, state) = overlay.address(ino)?;
                    let stat = overlay.numbers.identify(&inode, inode.stat()?)?;
                    let ctime = overlay.attr_of_upper(ino, &state, &stat)?.ctime;
                    let may_be_old = lower.is_some()
                        || view.below.has_parts()
                        || (view.fd.is_some() && overlay.is_impure(&view)?);
                    (view.fd, view.below, Some(ctime), may_be_old)
                }
            }
        };
        let parts = below.parts().iter().map(|part| self.overlay.part_fds.get(part));
        let fds = fd.into_iter().map(Ok).chain(parts).collect::<Result<Vec<_>>>()?;
        let mut names: Vec<Box<[u8]>> = Vec::new();
        for fd in fds {
            for (name, _, kind) in list_with(&fd, OFlags::NOATIME)? {
                let is_directory = matches!(kind, FileType::Directory | FileType::Unknown);
                if may_be_old || is_directory || !self.passes_over_new {
                    names.push(name.as_encoded_bytes().into());
                }
            }
        }
        if let Some(lower) = lower {
            if hides {
                let directory = self.overlay.lower.directory(lower)?;
                let archive = self.overlay.lower.archive();
                for entry in archive.read_dir(&directory, DirCursor::START)? {
                    names.push(entry?.name.into());
                }
            } else {
                names.extend(self.guide.names_in(lower).map(Box::from));
            }
        }
        if let Some(only) = self.below.get(depth) {
            names.retain(|name| name == only);
        }
        names.sort_unstable();
        names.dedup();
        let (names, len, _keep) = (names.into_iter(), step.path.len(), step.here);
        Ok(Some(Frame { ino, lower, backup_path, ctime, names, len, _keep }))
    }
}

/// What a look at the upper says, with what the archive has yet to be asked for.
enum Seen<'o> {
    Other(Here<'o>),
    Upper(Box<InUpper<'o>>, Option<Vec<u8>>, Option<InodeNumber>),
}

/// Nothing, of what was removed while it was looked at.
fn unless_gone<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(error) if error.is(Errno::NOENT) || error.is(Errno::STALE) => Ok(None),
        other => other.map(Some),
    }
}
