//! Reading directories, which are watched first.
//!
//! A name that nothing happens to while its directory is read is found, and all others have events. So the listing and
//! the events after it, one by one, come to what is there, as long as what was read is the directory that has the watch.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, openat, statat};

use super::nodes::{Doubt, Seen, Told, Watch};
use super::work::{Opened, Work, is_gone, is_shut};
use crate::inode_ops::list;
use crate::types::FileKind;
use crate::watch::change::What;

/// Directories that are held open until they are read. Others are looked for again.
const MOST_OPEN: usize = 64;

/// After so many directories or names events are taken from the kernel, which has no room for many.
pub(super) const BETWEEN_DELIVERIES: usize = 64;

/// Directories that are watched, and yet to be read.
type Unread = Vec<(usize, Option<OwnedFd>)>;

impl Work<'_> {
    /// Watches everything that is there, and tells nothing of it.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        let dir = self.open_root()?;
        let watch = self.hub.add(self.receiver, &dir)?;
        let root = self.nodes.insert(None, b"");
        self.nodes.root = Some(root);
        self.nodes.bind(root, watch);
        if self.scope.recursive { self.read(root, dir, false) } else { Ok(()) }
    }

    /// Watches a directory that has been told, reads it and tells what is in it.
    pub(super) fn take_in(&mut self, node: usize, dir: OwnedFd) -> io::Result<()> {
        // Once more, as the watch may have been given up when another node of it went.
        let Some(watch) = self.watch(&dir)? else { return Ok(()) };
        self.nodes.bind(node, watch);
        self.read(node, dir, true)
    }

    /// Reads a directory that is watched and open, and all below it, which is watched, too. If it is to be `told`,
    /// whatever is found is told as made.
    fn read(&mut self, top: usize, dir: OwnedFd, told: bool) -> io::Result<()> {
        let mut unread: Unread = vec![(top, Some(dir))];
        let mut count = 0_usize;
        while let Some((node, dir)) = unread.pop() {
            let opened = match dir {
                Some(dir) => Opened::It(dir),
                None => self.open(node)?,
            };
            let is_read = match opened {
                Opened::It(dir) => self.read_one(node, &dir, told, &mut unread)?,
                _ => false,
            };
            if !is_read {
                // It is elsewhere by now, or may not be read any more.
                if let Some(watch) = self.nodes.unbind(node, Watch::Not) {
                    self.hub.remove(self.receiver, watch);
                }
                self.nodes.doubt_place(node);
            }
            count += 1;
            if count.is_multiple_of(BETWEEN_DELIVERIES) {
                self.hub.deliver();
            }
        }
        Ok(())
    }

    /// Reads one directory, and adds those in it to what is yet to be read. Says whether it could be.
    fn read_one(
        &mut self,
        node: usize,
        dir: &OwnedFd,
        told: bool,
        unread: &mut Unread,
    ) -> io::Result<bool> {
        let entries = match list(dir) {
            Ok(entries) => entries,
            Err(error) if is_gone(error.errno) => Vec::new(),
            Err(error) if is_shut(error.errno) => return Ok(false),
            Err(error) => return Err(error.errno.into()),
        };
        let mut names = HashMap::new();
        let mut open = unread.iter().filter(|(_, dir)| dir.is_some()).count();
        for (name, ino, kind) in entries {
            let Some(kind) = kind_of(dir, &name, kind) else { continue };
            let name = name.as_bytes();
            let is_dir = kind == FileKind::Directory;
            if is_dir && self.scope.recursive {
                let Some((child, below)) = self.find(node, dir, name)? else { continue };
                if let Some(below) = below {
                    let keep = open < MOST_OPEN;
                    open += usize::from(keep);
                    unread.push((child, keep.then_some(below)));
                }
            }
            if told {
                names.insert(name.to_vec(), Told::something(is_dir));
                self.tell(What::Create, kind, ino, self.nodes.path_of(node, name));
            }
        }
        if told {
            let found: HashSet<_> = names.keys().cloned().collect();
            self.nodes.seen.insert(node, Seen { names, found, until: self.hub.now() });
        }
        Ok(true)
    }

    /// Watches a directory that was found in another. Gives it, and it opened if it is to be read; none if it is gone,
    /// or known by another name where it is not any more: an event will say that it was moved.
    fn find(
        &mut self,
        parent: usize,
        dir: &OwnedFd,
        name: &[u8],
    ) -> io::Result<Option<(usize, Option<OwnedFd>)>> {
        let below = match open_in(dir, name) {
            Ok(below) => Some(below),
            Err(errno) if is_gone(errno) => return Ok(None),
            // Whoever may read a directory without searching it sees names alone.
            Err(errno) if is_shut(errno) => None,
            Err(errno) => return Err(errno.into()),
        };
        let watch = below.as_ref().map(|below| self.watch(below)).transpose()?.flatten();
        let Some(watch) = watch else {
            self.warn_of(parent, name);
            return Ok(Some((self.nodes.insert(Some(parent), name), None)));
        };
        if !self.misplaced(watch, None)?.is_empty() {
            self.nodes.found.insert(watch, (parent, name.to_vec()));
            self.nodes.doubt(parent, name, Doubt::of(Told::Nothing));
            return Ok(None);
        }
        let child = self.nodes.insert(Some(parent), name);
        self.nodes.bind(child, watch);
        Ok(Some((child, below)))
    }

    /// The directories of a watch, but for one, that are not where they are known to be. What is mounted twice is there
    /// twice.
    pub(super) fn misplaced(&mut self, watch: i32, but: Option<usize>) -> io::Result<Vec<usize>> {
        let mut misplaced = Vec::new();
        for node in self.nodes.of(Some(watch)) {
            if Some(node) != but && matches!(self.open(node)?, Opened::Not) {
                misplaced.push(node);
            }
        }
        Ok(misplaced)
    }
}

/// Opens the directory `name` in another.
pub(super) fn open_in(dir: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, OsStr::from_bytes(name), flags, Mode::empty())
}

/// What an entry is, asked for where the listing does not say.
fn kind_of(dir: &OwnedFd, name: &OsStr, kind: FileType) -> Option<FileKind> {
    match kind {
        FileType::Unknown => {
            let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            FileKind::from_mode(stat.st_mode)
        }
        kind => FileKind::from_mode(kind.as_raw_mode()),
    }
}
