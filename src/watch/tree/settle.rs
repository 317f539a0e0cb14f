//! Looking at what is in doubt.
//!
//! A directory is where it has been told, or that place is in doubt, or an event of it is yet to come. For it was once
//! found there in a directory that was watched by then, and each event since has put the place in doubt. So once no
//! more events come and no doubts are left, what has been told is what is there.
//!
//! What is other than told is mostly about to be told by an event. Only when all those have been looked at that there
//! were by then, and it is other still, is the difference told: what has gone or has another directory in its place is
//! removed, and what is there is made, with all that is in it. Nor does a doubt end before, as what is as told may be
//! so by chance, with an event on its way that says otherwise.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, statat};

use super::nodes::{Doubt, Looked, Told, Watch};
use super::reading::{BETWEEN_DELIVERIES, open_in};
use super::work::{Opened, Work, is_gone, is_shut};
use crate::inode_ops::list;
use crate::types::FileKind;
use crate::watch::change::What;

/// When to look again at what is in doubt still.
const AGAIN: Duration = Duration::from_millis(2);

/// What there is by a name.
enum There {
    Nothing,
    File(FileKind, u64),
    /// With its watch, if it is to have one and may.
    Directory(u64, Option<(i32, OwnedFd)>),
}

impl There {
    fn told(&self) -> Told {
        match self {
            Self::Nothing => Told::Nothing,
            Self::File(..) => Told::File,
            Self::Directory(..) => Told::Directory,
        }
    }
}

impl Work<'_> {
    /// Looks at what is in doubt. All events up to `done` have been looked at; none where others wait for one. Says
    /// when to look again, if doubts are left.
    pub(super) fn settle(&mut self, done: Option<u64>) -> Option<Instant> {
        let settled = self.settle_all(done);
        if let Err(error) = settled {
            self.fail(&error);
        }
        let are_open = |names: &BTreeMap<_, Doubt>| names.values().any(|doubt| !doubt.is_shut);
        let are_left = self.nodes.doubts.values().any(are_open);
        (are_left || !self.nodes.seen.is_empty()).then(|| Instant::now() + AGAIN)
    }

    fn settle_all(&mut self, done: Option<u64>) -> io::Result<()> {
        self.read_again(done)?;
        let nodes: Vec<_> = self.nodes.doubts.keys().copied().collect();
        let mut count = 0_usize;
        for node in nodes {
            let Some(names) = self.nodes.doubts.remove(&node) else { continue };
            let (dir, is_shut) = match self.open(node)? {
                Opened::It(dir) => (Some(dir), false),
                Opened::Not => (None, false),
                Opened::Shut => (None, true),
                Opened::NoRoot => {
                    self.nodes.doubts.insert(node, names);
                    return self.lost_root(done);
                }
            };
            self.nodes.root_lost = None;
            let Some(dir) = dir else {
                if !is_shut {
                    self.nodes.doubt_place(node);
                }
                let names =
                    names.into_iter().map(|(name, doubt)| (name, Doubt { is_shut, ..doubt }));
                self.nodes.doubts.entry(node).or_default().extend(names);
                continue;
            };
            for (name, doubt) in names {
                // It may have gone with one that was in doubt itself.
                if !self.nodes.slab.contains(node) {
                    break;
                }
                if let Some(doubt) = self.settle_one(node, &dir, &name, doubt, done)? {
                    self.nodes.doubt(node, &name, doubt);
                }
                count += 1;
                if count.is_multiple_of(BETWEEN_DELIVERIES) {
                    self.hub.deliver();
                }
            }
        }
        Ok(())
    }

    /// Looks at one name before others.
    pub(super) fn settle_name(&mut self, node: usize, name: &[u8]) -> io::Result<()> {
        let Opened::It(dir) = self.open(node)? else { return Ok(()) };
        let doubt = self.nodes.doubts.get_mut(&node).and_then(|names| names.remove(name));
        if let Some(doubt) = doubt
            && let Some(left) = self.settle_one(node, &dir, name, doubt, None)?
        {
            self.nodes.doubt(node, name, left);
        }
        Ok(())
    }

    /// The root is not where it was. If no event says why, one above it was moved.
    fn lost_root(&mut self, done: Option<u64>) -> io::Result<()> {
        match self.nodes.root_lost {
            None => self.nodes.root_lost = Some(self.hub.now()),
            Some(until) if done.is_some_and(|done| done >= until) => {
                return Err(io::Error::other("it is not to be found by its path any more"));
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Looks at one name. Gives what is left of the doubt.
    fn settle_one(
        &mut self,
        node: usize,
        dir: &OwnedFd,
        name: &[u8],
        doubt: Doubt,
        done: Option<u64>,
    ) -> io::Result<Option<Doubt>> {
        let Some(there) = self.look_in(dir, name)? else {
            return Ok(Some(Doubt { is_shut: true, ..doubt }));
        };
        let child = self.nodes.child(node, name);
        let watch = child.and_then(|child| self.nodes.slab.get(child)).map(|child| child.watch);
        let (agrees, may_be_read) = match (&there, watch) {
            (There::Directory(_, Some((found, _))), Some(Watch::By(watch))) => {
                (*found == watch, false)
            }
            (There::Directory(_, None), Some(watch)) => (watch == Watch::Not, false),
            (There::Directory(_, Some(_)), Some(Watch::Not)) => (false, true),
            (There::Directory(..), Some(Watch::Lost)) => (false, false),
            (There::Directory(..), None) if self.scope.recursive => (false, false),
            (there, _) => (there.told() == doubt.told, false),
        };
        // What was found before, if that was the same, and whether all events of that time have been looked at.
        let looked = doubt.looked.filter(|looked| looked.is_as_told == agrees);
        let looked = looked.unwrap_or_else(|| Looked { is_as_told: agrees, until: self.hub.now() });
        let is_explained = done.is_some_and(|done| done >= looked.until);
        let left = Doubt { looked: Some(looked), is_shut: false, ..doubt };
        if agrees {
            return Ok((!is_explained).then_some(left));
        }
        let misplaced = match &there {
            There::Directory(_, Some((watch, _))) => {
                let misplaced = self.misplaced(*watch, child)?;
                if !misplaced.is_empty() {
                    self.nodes.found.insert(*watch, (node, name.to_vec()));
                }
                misplaced
            }
            _ => Vec::new(),
        };
        if let (There::Directory(_, Some((_, opened))), Some(child)) = (&there, child)
            && may_be_read
            && misplaced.is_empty()
        {
            self.take_in(child, opened.try_clone()?)?;
            return Ok(None);
        }
        if is_explained && doubt.looked.is_some_and(|looked| !looked.is_as_told) {
            for node in misplaced {
                self.remove_misplaced(node);
            }
            if self.nodes.slab.contains(node) {
                self.set_right(node, name, doubt.told, there)?;
            }
            return Ok(None);
        }
        if let There::Directory(_, Some((watch, _))) = there {
            self.release(watch);
        }
        Ok(Some(left))
    }

    /// What there is by a name; none if nobody may look.
    fn look_in(&self, dir: &OwnedFd, name: &[u8]) -> io::Result<Option<There>> {
        let stat = match statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(errno) if is_gone(errno) => return Ok(Some(There::Nothing)),
            Err(errno) if is_shut(errno) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let kind = FileKind::from_mode(stat.st_mode).unwrap_or(FileKind::Regular);
        if kind != FileKind::Directory {
            return Ok(Some(There::File(kind, stat.st_ino)));
        }
        if !self.scope.recursive {
            return Ok(Some(There::Directory(stat.st_ino, None)));
        }
        let opened = match open_in(dir, name) {
            Ok(opened) => opened,
            Err(errno) if is_gone(errno) => return Ok(Some(There::Nothing)),
            Err(errno) if is_shut(errno) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let watch = self.watch(&opened)?;
        Ok(Some(There::Directory(stat.st_ino, watch.map(|watch| (watch, opened)))))
    }

    /// Has been found elsewhere, and no event has said so.
    fn remove_misplaced(&mut self, node: usize) {
        let Some((parent, name)) = self.nodes.place(node) else { return };
        self.go((parent, &name), true, true);
        self.ahead(parent, &name, Told::Nothing);
    }

    /// Tells of a name what there is, which is not what was told.
    fn set_right(&mut self, node: usize, name: &[u8], told: Told, there: There) -> io::Result<()> {
        if told != Told::Nothing || self.nodes.child(node, name).is_some() {
            // Without a doubt, this is what is known.
            self.nodes.doubt(node, name, Doubt::of(told));
            self.go((node, name), told == Told::Directory, true);
        }
        self.ahead(node, name, there.told());
        let path = self.nodes.path_of(node, name);
        match there {
            There::Nothing => {}
            There::File(kind, ino) => self.tell(What::Create, kind, ino, path),
            There::Directory(ino, opened) => {
                self.tell(What::Create, FileKind::Directory, ino, path);
                if self.scope.recursive {
                    let child = self.nodes.insert(Some(node), name);
                    match opened {
                        Some((_, opened)) => self.take_in(child, opened)?,
                        None => self.warn_of(node, name),
                    }
                }
            }
        }
        Ok(())
    }

    /// A name has been told as it is found, and its events may be of what was before.
    fn ahead(&mut self, node: usize, name: &[u8], told: Told) {
        self.nodes.note(node, name, told, true);
        let looked = Looked { is_as_told: true, until: self.hub.now() };
        let doubt = Doubt { looked: Some(looked), ..Doubt::of(told) };
        self.nodes.doubts.entry(node).or_default().insert(name.to_vec(), doubt);
    }

    /// Reads directories once more of which all events have come that may be of what was found in them. What differs
    /// then is in doubt: no listing is relied on alone.
    fn read_again(&mut self, done: Option<u64>) -> io::Result<()> {
        let is_done = |until: u64| done.is_some_and(|done| done >= until);
        let seen = self.nodes.seen.iter().filter(|(_, seen)| is_done(seen.until));
        for node in seen.map(|(node, _)| *node).collect::<Vec<_>>() {
            let Opened::It(dir) = self.open(node)? else {
                // Its place is in doubt, or is going to be.
                self.nodes.seen.remove(&node);
                continue;
            };
            let entries = match list(&dir) {
                Ok(entries) => entries,
                Err(error) if is_gone(error.errno) || is_shut(error.errno) => continue,
                Err(error) => return Err(error.errno.into()),
            };
            let Some(seen) = self.nodes.seen.remove(&node) else { continue };
            let there = entries.iter().map(|(name, _, kind)| (name.as_bytes(), *kind));
            let there: BTreeMap<&[u8], FileType> = there.collect();
            let differs = |name: &[u8], told: Told| match there.get(name) {
                None => told != Told::Nothing,
                Some(FileType::Unknown) => told == Told::Nothing,
                Some(kind) => told != Told::something(*kind == FileType::Directory),
            };
            for name in there.keys().copied().chain(seen.names.keys().map(Vec::as_slice)) {
                let told = seen.names.get(name).copied().unwrap_or(Told::Nothing);
                if differs(name, told) {
                    self.nodes.doubt(node, name, Doubt::of(told));
                }
            }
        }
        Ok(())
    }
}
