//! Who looks at what has come: the parts that all of that needs.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::nodes::{Nodes, Watch};
use crate::types::FileKind;
use crate::watch::change::What;
use crate::watch::inotify::{Event, Hub, Receiver};
use crate::watch::log::ChangeLog;

/// What is watched, and where it is told.
pub(super) struct Scope {
    /// Where the tree was when it began.
    pub(super) dir: PathBuf,
    /// Which directory that was.
    pub(super) id: (u64, u64),
    pub(super) recursive: bool,
    pub(super) log: Arc<ChangeLog>,
    /// Whether nothing is watched any more.
    pub(super) is_over: AtomicBool,
}

/// Who looks at events, and has the nodes meanwhile.
pub(super) struct Work<'a> {
    pub(super) scope: &'a Scope,
    pub(super) inbox: &'a Mutex<VecDeque<Event>>,
    pub(super) receiver: &'a Weak<dyn Receiver>,
    pub(super) hub: &'a Hub,
    pub(super) nodes: MutexGuard<'a, Nodes>,
}

/// What there is where a directory is known to be.
pub(super) enum Opened {
    /// That directory.
    It(OwnedFd),
    /// Another one, or none.
    Not,
    /// Something that may not be looked at.
    Shut,
    /// Not even the root is where it was.
    NoRoot,
}

impl Work<'_> {
    pub(super) fn tell(&self, what: What, kind: FileKind, ino: u64, path: Vec<u8>) {
        self.scope.log.write(what, kind, ino, path);
    }

    /// Watches nothing any more.
    pub(super) fn stop(&mut self) {
        self.scope.is_over.store(true, Ordering::Release);
        let nodes = std::mem::take(&mut *self.nodes);
        for watch in nodes.watches.into_keys() {
            self.hub.remove(self.receiver, watch);
        }
    }

    /// Says that what changes cannot be told from here on, and why.
    pub(super) fn end(&mut self, why: String) {
        self.scope.log.close(why);
        self.stop();
    }

    /// The same, where something could not be watched.
    pub(super) fn fail(&mut self, error: &io::Error) {
        self.end(format!("{} is no longer watched whole: {error}", self.scope.dir.display()));
    }

    pub(super) fn open_root(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let root = rustix::fs::open(&self.scope.dir, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&root)?;
        match (stat.st_dev, stat.st_ino) == self.scope.id {
            true => Ok(root),
            false => Err(io::Error::other("another directory has its name now")),
        }
    }

    /// Opens a directory where it is known to be.
    ///
    /// # Errors
    /// Where the kernel does not answer, as it has no more descriptors or watches.
    pub(super) fn open(&mut self, node: usize) -> io::Result<Opened> {
        let root = match self.open_root() {
            Ok(root) => root,
            Err(error) => {
                let may_pass = |errno| is_gone(errno) || is_shut(errno);
                return match Errno::from_io_error(&error).is_none_or(may_pass) {
                    true => Ok(Opened::NoRoot),
                    false => Err(error),
                };
            }
        };
        let Some(Watch::By(watch)) = self.nodes.slab.get(node).map(|it| it.watch) else {
            return Ok(Opened::Not);
        };
        let dir = match open_below(root, &self.nodes.path(node)) {
            Ok(dir) => dir,
            Err(errno) if is_gone(errno) => return Ok(Opened::Not),
            Err(errno) if is_shut(errno) => return Ok(Opened::Shut),
            Err(errno) => return Err(errno.into()),
        };
        Ok(match self.watch(&dir)? {
            Some(found) if found == watch => Opened::It(dir),
            Some(found) => {
                self.release(found);
                Opened::Not
            }
            // Whoever may not read it has no watch that could be compared.
            None => Opened::Shut,
        })
    }

    /// Watches a directory, which tells which one it is; none if it may not be.
    pub(super) fn watch(&self, dir: &OwnedFd) -> io::Result<Option<i32>> {
        match self.hub.add(self.receiver, dir) {
            Ok(watch) => Ok(Some(watch)),
            Err(error) if Errno::from_io_error(&error).is_some_and(is_shut) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes a watch, if no directory has it.
    pub(super) fn release(&self, watch: i32) {
        if !self.nodes.watches.contains_key(&watch) {
            self.hub.remove(self.receiver, watch);
        }
    }

    /// Forgets a directory and those below it.
    pub(super) fn drop_node(&mut self, node: usize) {
        for watch in self.nodes.remove(node) {
            self.hub.remove(self.receiver, watch);
        }
    }

    /// What is at `path` of the tree.
    pub(super) fn look(&self, path: &[u8]) -> Option<(FileKind, u64)> {
        let path = self.scope.dir.join(shown(path));
        let stat = rustix::fs::statat(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some((FileKind::from_mode(stat.st_mode)?, stat.st_ino))
    }

    pub(super) fn warn_of(&self, node: usize, name: &[u8]) {
        let path = self.scope.dir.join(shown(&self.nodes.path_of(node, name)));
        tracing::warn!("{} may not be read, and is not watched", path.display());
    }
}

/// Opens the directory at `path` from another, in which no symlink is followed.
fn open_below(mut here: OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    /// As many bytes of a path as the kernel takes at once, at least.
    const MOST: usize = 2048;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let mut rest = path;
    while !rest.is_empty() {
        let cut = match rest.len() <= MOST {
            true => rest.len(),
            // A name is shorter than this.
            false => rest.iter().take(MOST).rposition(|byte| *byte == b'/').unwrap_or(MOST),
        };
        let (first, more) = rest.split_at(cut);
        here = openat2(&here, OsStr::from_bytes(first), flags, Mode::empty(), resolve)?;
        rest = more.strip_prefix(b"/").unwrap_or(more);
    }
    Ok(here)
}

fn shown(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

/// What is answered where a directory was, once it is gone, or is moved while it is looked for.
pub(super) fn is_gone(errno: Errno) -> bool {
    use Errno as E;
    matches!(errno, E::NOENT | E::NOTDIR | E::LOOP | E::STALE | E::XDEV | E::AGAIN)
}

/// What is answered to who may not look.
pub(super) fn is_shut(errno: Errno) -> bool {
    matches!(errno, Errno::ACCESS | Errno::PERM)
}
