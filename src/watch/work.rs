//! What events make of a watched tree, and what is told of it.
//!
//! What is made in a new directory before that is watched comes with no event. So the directory is read once it is
//! watched, and what is found is told. Events of the same are on their way then, or are not, and what has been found
//! is remembered until all have come that were made by then ([`Seen`]). Then it is read once more: what events have not
//! led to is told.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::inotify::ReadFlags;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::change::What;
use super::inotify::{Event, Hub, Receiver};
use super::log::ChangeLog;
use super::nodes::{Nodes, Seen, join};
use crate::inode_ops::list;
use crate::types::FileKind;

/// What is watched, and where it is told.
pub(super) struct Scope {
    /// Where the tree was when it began.
    pub(super) dir: PathBuf,
    /// Which directory that was.
    pub(super) id: (u64, u64),
    pub(super) recursive: bool,
    pub(super) log: Arc<ChangeLog>,
}

/// How long the second half of a rename is waited for. It is made right after the first.
const PAIR_PATIENCE: Duration = Duration::from_millis(10);

/// What is told of a directory that is to be watched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tell {
    /// Nothing: the tree is only being found.
    Nothing,
    /// What is in it.
    Below,
    /// Itself, too.
    All,
}

/// What has become of a directory that is to be watched.
enum Adopted {
    /// It is watched, and to be read.
    New(usize, OwnedFd),
    /// It has been before, by another name.
    Known(i32),
    /// It is gone, or cannot be.
    Not,
}

/// What has become of what was moved from somewhere.
enum Moved {
    /// That is not known yet.
    Later,
    /// It is outside, or where nobody watched yet.
    Out,
    /// The same, but the directory that is known by that name is one that came after it.
    OtherOut,
    To {
        to: Event,
        /// Whether the directory that is known by its old name is one that came after it.
        is_other: bool,
        /// Whether what was there has come in its place.
        back: bool,
    },
}

/// Who looks at events, and has the nodes meanwhile.
pub(super) struct Work<'a> {
    pub(super) scope: &'a Scope,
    pub(super) inbox: &'a Mutex<VecDeque<Event>>,
    pub(super) receiver: &'a Weak<dyn Receiver>,
    pub(super) hub: &'a Hub,
    pub(super) nodes: MutexGuard<'a, Nodes>,
}

impl Work<'_> {
    /// Watches everything that is there, and tells nothing of it.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        let dir = self.open(b"")?;
        let watch = self.hub.add(self.receiver, &dir)?;
        let root = self.nodes.insert(None, Vec::new(), watch);
        self.nodes.root = Some(root);
        if self.scope.recursive { self.read(root, &dir, false) } else { Ok(()) }
    }

    /// Watches everything anew: nobody knows what has changed.
    fn begin_again(&mut self) {
        self.stop();
        self.scope.log.lose();
        if let Err(error) = self.begin() {
            self.scope
                .log
                .close(format!("{} cannot be watched: {error}", self.scope.dir.display()));
        }
    }

    fn tell(&self, what: What, kind: FileKind, ino: u64, path: Vec<u8>) {
        self.scope.log.write(what, kind, ino, path);
    }

    fn stop(&mut self) {
        let nodes = std::mem::take(&mut *self.nodes);
        for watch in nodes.watches.into_keys() {
            self.hub.remove(self.receiver, watch);
        }
    }

    /// Opens the directory at `path` of the tree, in which no symlink is followed.
    fn open(&self, path: &[u8]) -> io::Result<OwnedFd> {
        /// As many bytes of a path as the kernel takes at once, at least.
        const MOST: usize = 2048;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut here = rustix::fs::open(&self.scope.dir, flags | OFlags::NOFOLLOW, Mode::empty())?;
        let stat = rustix::fs::fstat(&here)?;
        if (stat.st_dev, stat.st_ino) != self.scope.id {
            return Err(io::Error::other("another directory has its name now"));
        }
        let mut rest = path;
        while !rest.is_empty() {
            let cut = match rest.len() <= MOST {
                true => rest.len(),
                // A name is shorter than this.
                false => rest.iter().take(MOST).rposition(|byte| *byte == b'/').unwrap_or(MOST),
            };
            let (first, more) = rest.split_at(cut);
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            here = openat2(&here, OsStr::from_bytes(first), flags, Mode::empty(), resolve)?;
            rest = more.strip_prefix(b"/").unwrap_or(more);
        }
        Ok(here)
    }

    /// Whether the directory at `path` is the one that `stat` is of.
    fn is_same(&self, path: &[u8], stat: &rustix::fs::Stat) -> bool {
        let there = self.open(path).and_then(|dir| Ok(rustix::fs::fstat(dir)?));
        there.is_ok_and(|there| (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino))
    }

    /// Reads the directory `top`, which is watched and open, and all below it that is new. If it is to be `told`,
    /// whatever is found is told as made.
    fn read(&mut self, top: usize, dir: &OwnedFd, told: bool) -> io::Result<()> {
        let mut below = self.read_one(top, dir, told)?;
        while let Some((parent, name)) = below.pop() {
            match self.adopt(parent, &name, if told { Tell::All } else { Tell::Nothing })? {
                Adopted::New(node, dir) => below.extend(self.read_one(node, &dir, told)?),
                Adopted::Known(watch) => {
                    // Here it is as if it had yet to come.
                    self.nodes.disappears(parent, &name);
                    self.nodes.moved.insert(watch, (parent, name, self.hub.now()));
                }
                Adopted::Not => {}
            }
        }
        Ok(())
    }

    /// Reads one directory; gives the directories in it that are yet to be adopted.
    fn read_one(
        &mut self,
        node: usize,
        dir: &OwnedFd,
        told: bool,
    ) -> io::Result<Vec<(usize, Vec<u8>)>> {
        let entries = match list(dir) {
            Ok(entries) => entries,
            Err(error) if is_gone(error.errno) => Vec::new(),
            Err(error) => return Err(error.errno.into()),
        };
        let path = self.nodes.path(node);
        let mut below = Vec::new();
        let mut names = HashMap::new();
        for (name, ino, kind) in entries {
            let name = name.as_bytes().to_vec();
            let kind = match kind {
                FileType::Unknown => self.look(&join(&path, &name)).map(|(kind, _)| kind),
                kind => FileKind::from_mode(kind.as_raw_mode()),
            };
            let is_dir = kind == Some(FileKind::Directory);
            if told {
                names.insert(name.clone(), is_dir);
                if !is_dir || !self.scope.recursive {
                    let kind = kind.unwrap_or(FileKind::Regular);
                    self.tell(What::Create, kind, ino, join(&path, &name));
                }
            }
            if is_dir && self.scope.recursive {
                below.push((node, name));
            }
        }
        let until = self.hub.now();
        if told && let Some(it) = self.nodes.slab.get_mut(node) {
            it.seen = Some(Seen { found: names.keys().cloned().collect(), names, until });
            self.nodes.seen.push(node);
        }
        Ok(below)
    }

    /// Watches the directory `name` in `parent`. It is told as made, if it is to be told, unless it is known by another
    /// name: an event will say that it was moved.
    fn adopt(&mut self, parent: usize, name: &[u8], tell: Tell) -> io::Result<Adopted> {
        let told = tell == Tell::All;
        if self.nodes.child(parent, name).is_some() {
            return Ok(Adopted::Not);
        }
        let path = join(&self.nodes.path(parent), name);
        let opened = self.open(&path);
        let watched = opened.and_then(|dir| {
            let stat = rustix::fs::fstat(&dir)?;
            let watch = self.hub.add(self.receiver, &dir)?;
            // Moved away before it was watched, nothing would tell so.
            if tell != Tell::Nothing
                && !self.is_same(&path, &stat)
                && !self.nodes.watches.contains_key(&watch)
            {
                self.hub.remove(self.receiver, watch);
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok((watch, stat, dir))
        });
        let (watch, stat, dir) = match watched {
            Ok(watched) => watched,
            Err(error) if may_pass(&error) => {
                if error.kind() == io::ErrorKind::PermissionDenied {
                    tracing::warn!(
                        "{} is not watched: {error}",
                        self.scope.dir.join(shown(&path)).display()
                    );
                }
                if told {
                    self.tell(What::Create, FileKind::Directory, 0, path);
                }
                return Ok(Adopted::Not);
            }
            Err(error) => return Err(error),
        };
        let known = self.nodes.watches.get(&watch).and_then(|nodes| nodes.first()).copied();
        if let Some(known) = known.filter(|_| tell != Tell::Nothing) {
            // What is mounted twice is there twice. What is not there any more has been moved.
            if !self.is_same(&self.nodes.path(known), &stat) {
                return Ok(Adopted::Known(watch));
            }
        }
        if told {
            self.tell(What::Create, FileKind::Directory, stat.st_ino, path);
        }
        Ok(Adopted::New(self.nodes.insert(Some(parent), name.to_vec(), watch), dir))
    }

    /// Watches a directory that has just come, and tells of all in it; of itself, too, unless that `is_told`.
    fn bring(&mut self, parent: usize, name: &[u8], is_told: bool) {
        if let Some(child) = self.nodes.child(parent, name) {
            // It was replaced.
            let path = self.nodes.path(child);
            self.drop_node(child);
            if !is_told {
                self.tell(What::Remove, FileKind::Directory, 0, path);
            }
        }
        let brought = self
            .adopt(parent, name, if is_told { Tell::Below } else { Tell::All })
            .and_then(|adopted| match adopted {
                Adopted::New(node, dir) => self.read(node, &dir, true),
                Adopted::Known(_) => {
                    // What has come is not there any more, but what was moved there since.
                    if !is_told {
                        let path = join(&self.nodes.path(parent), name);
                        self.tell(What::Create, FileKind::Directory, 0, path);
                    }
                    Ok(())
                }
                Adopted::Not => Ok(()),
            });
        if let Err(error) = brought {
            self.stop();
            let dir = self.scope.dir.display();
            self.scope.log.close(format!("{dir} is no longer watched whole: {error}"));
        }
    }

    /// What is at `path`.
    fn look(&self, path: &[u8]) -> Option<(FileKind, u64)> {
        let path = self.scope.dir.join(shown(path));
        let stat = rustix::fs::statat(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some((FileKind::from_mode(stat.st_mode)?, stat.st_ino))
    }

    /// Looks at what has come. Says when to look again, if half a rename has to be waited for.
    pub(super) fn run(&mut self) -> Option<Instant> {
        loop {
            let mut inbox = self.inbox.lock();
            let event = inbox.pop_front()?;
            if !event.mask.contains(ReadFlags::MOVED_FROM) {
                drop(inbox);
                self.look_at(&event);
                continue;
            }
            let moved = self.moved(&mut inbox, &event);
            if let Moved::Later = moved {
                let until = event.read_at + PAIR_PATIENCE;
                inbox.push_front(event);
                return Some(until);
            }
            drop(inbox);
            match moved {
                Moved::To { to, is_other: false, back } => self.rename(&event, &to, back),
                Moved::To { to, .. } => [&event, &to].into_iter().for_each(|it| self.look_at(it)),
                Moved::OtherOut | Moved::Later => self.look_at(&event),
                Moved::Out => match self.moved_to(&event) {
                    Some(to) => self.rename(&event, &to, false),
                    None => self.look_at(&event),
                },
            }
        }
    }

    /// What has become of what was moved from somewhere. The kernel tells from where, to where, and the directory itself,
    /// one right after the other, and for an exchange the same of the way back.
    fn moved(&self, inbox: &mut VecDeque<Event>, from: &Event) -> Moved {
        let is_recent = Instant::now() < from.read_at + PAIR_PATIENCE;
        let is_from = |event: &Event| event.mask.contains(ReadFlags::MOVED_FROM);
        let is_to = |event: &Event| event.mask.contains(ReadFlags::MOVED_TO);
        let to = inbox.iter().position(|it| is_to(it) && it.cookie == from.cookie);
        let own = self.child_at(from).and_then(|child| {
            let watch = Some(self.nodes.slab.get(child)?.watch);
            let again = inbox.iter().position(|it| is_from(it) && is_at(it, from));
            let mut before = inbox.iter().take(again.unwrap_or(inbox.len()));
            Some(before.any(|it| it.watch == watch && it.mask.contains(ReadFlags::MOVE_SELF)))
        });
        let Some(at) = to else {
            return match own {
                Some(true) => Moved::Out,
                _ if is_recent => Moved::Later,
                Some(false) => Moved::OtherOut,
                None => Moved::Out,
            };
        };
        // What comes next may be the way back.
        let root = self.nodes.root.and_then(|root| self.nodes.slab.get(root)).map(|it| it.watch);
        let is_self = |it: &Event| it.watch != root && it.mask.contains(ReadFlags::MOVE_SELF);
        let next = {
            let mut next =
                inbox.iter().enumerate().filter(|(place, it)| *place != at && !is_self(it));
            [next.next(), next.next()].map(|it| it.map(|(place, it)| (place, it.clone())))
        };
        let Some(to) = inbox.get(at).cloned() else { return Moved::Out };
        let concerns_directories =
            from.mask.contains(ReadFlags::ISDIR) || self.child_at(&to).is_some();
        if is_recent && (own == Some(false) || concerns_directories && next[0].is_none()) {
            return Moved::Later;
        }
        let mut done = vec![at];
        if let [Some((first_at, first)), Some((second_at, second))] = &next
            && is_from(first)
            && is_to(second)
            && first.cookie == second.cookie
            && is_at(first, &to)
            && is_at(second, from)
            && [from, &to].iter().all(|it| self.is_there(it))
        {
            done.extend([*first_at, *second_at]);
        }
        done.sort_unstable();
        for place in done.iter().rev() {
            inbox.remove(*place);
        }
        Moved::To { to, is_other: own == Some(false), back: done.len() == 3 }
    }

    /// The directory that is known where an event is of.
    fn child_at(&self, event: &Event) -> Option<usize> {
        let parent = *self.nodes.watches.get(&event.watch?)?.first()?;
        self.nodes.child(parent, &event.name)
    }

    /// Whether something is where an event is of.
    fn is_there(&self, event: &Event) -> bool {
        let nodes = event.watch.and_then(|watch| self.nodes.watches.get(&watch));
        let node = nodes.and_then(|nodes| nodes.first());
        node.is_some_and(|node| self.look(&join(&self.nodes.path(*node), &event.name)).is_some())
    }

    /// The other half of a rename into a directory that was not watched yet, where what was moved has been found.
    fn moved_to(&mut self, from: &Event) -> Option<Event> {
        let watch = self.nodes.slab.get(self.child_at(from)?)?.watch;
        let (to, name, _) = self.nodes.moved.remove(&watch)?;
        let watch = Some(self.nodes.slab.get(to)?.watch);
        Some(Event { watch, name, ..from.clone() })
    }

    fn look_at(&mut self, event: &Event) {
        let Some(watch) = event.watch else { return self.begin_again() };
        if event.mask.contains(ReadFlags::IGNORED) {
            for node in self.nodes.watches.remove(&watch).unwrap_or_default() {
                self.drop_node(node);
            }
            return;
        }
        for node in self.nodes.watches.get(&watch).cloned().unwrap_or_default() {
            match event.name.is_empty() {
                true => self.of_itself(node, event.mask),
                false => self.of_entry(node, event),
            }
        }
    }

    /// What happened to a directory itself. But for the root, its parent is told, too.
    fn of_itself(&mut self, node: usize, mask: ReadFlags) {
        if self.nodes.root != Some(node) {
            return;
        }
        let log = &self.scope.log;
        let tell = |what| log.write(what, FileKind::Directory, self.scope.id.1, Vec::new());
        if mask.intersects(ReadFlags::ATTRIB | ReadFlags::MODIFY) {
            tell(What::Attributes);
        }
        if mask.contains(ReadFlags::DELETE_SELF) {
            tell(What::Remove);
        }
        if mask.contains(ReadFlags::UNMOUNT) {
            log.close(format!("{} was unmounted", self.scope.dir.display()));
        }
        if mask.contains(ReadFlags::MOVE_SELF) {
            // To where is not said, so new directories in it would not be found.
            tell(What::Rename { to: Vec::new() });
            self.stop();
        }
    }

    fn of_entry(&mut self, node: usize, event: &Event) {
        let Event { mask, name, .. } = event;
        let is_dir = mask.contains(ReadFlags::ISDIR);
        let path = join(&self.nodes.path(node), name);
        let kind = if is_dir { FileKind::Directory } else { FileKind::Regular };
        if mask.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            if self.nodes.appears(node, name, is_dir) {
                self.of_new_entry(node, event);
            }
        } else if mask.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
            if let Some(child) = self.nodes.child(node, name) {
                self.drop_node(child);
            }
            if self.nodes.disappears(node, name) {
                self.tell(What::Remove, kind, 0, path);
            }
        } else if self.nodes.is_told(node, name) {
            // A directory is modified where its time is set and no other.
            let what = match mask.contains(ReadFlags::MODIFY) && !is_dir {
                true => What::Write,
                false => What::Attributes,
            };
            self.tell(what, kind, 0, path);
        }
    }

    /// Both halves of a rename, and those of its way back where two entries have changed places.
    fn rename(&mut self, from: &Event, to: &Event, back: bool) {
        let of = |event: &Event| {
            let nodes = event.watch.and_then(|watch| self.nodes.watches.get(&watch));
            nodes.cloned().unwrap_or_default()
        };
        let (sources, targets) = (of(from), of(to));
        // Out of what is watched no longer, or into it.
        if sources.is_empty() || targets.is_empty() {
            return [from, to].into_iter().for_each(|event| self.look_at(event));
        }
        for (old, new) in sources.into_iter().zip(targets) {
            let was_told = self.nodes.disappears(old, &from.name);
            let is_dir = from.mask.contains(ReadFlags::ISDIR);
            let is_new = self.nodes.appears(new, &to.name, is_dir);
            if !was_told {
                // Nobody knows of it by its old name.
                if is_new {
                    self.of_new_entry(new, to);
                }
                continue;
            }
            let path = join(&self.nodes.path(old), &from.name);
            let other = join(&self.nodes.path(new), &to.name);
            let kind = if is_dir { FileKind::Directory } else { FileKind::Regular };
            let child = self.nodes.child(old, &from.name);
            let there = self.nodes.child(new, &to.name);
            let nests = |node: Option<usize>, into| {
                node.is_some_and(|node| self.nodes.is_within(into, node))
            };
            if back && !nests(child, new) && !nests(there, old) {
                self.nodes.appears(old, &from.name, is_dir);
                self.nodes.exchange((old, &from.name), (new, &to.name));
                self.tell(What::Exchange { with: other }, kind, 0, path);
                for (node, name) in [(old, &from.name), (new, &to.name)] {
                    // One that was not there yet when it was looked for.
                    if is_dir && self.scope.recursive && self.nodes.child(node, name).is_none() {
                        self.bring(node, name, true);
                    }
                }
                continue;
            }
            if !is_new {
                // Found by its new name already.
                self.tell(What::Remove, kind, 0, path);
                if let Some(child) = child {
                    self.drop_node(child);
                }
                continue;
            }
            if let Some(there) = there {
                self.drop_node(there);
            }
            self.tell(What::Rename { to: other }, kind, 0, path);
            match child {
                // Nothing is moved into itself: what is known by its name must be another one.
                Some(child) if self.nodes.is_within(new, child) => {
                    self.drop_node(child);
                    self.bring(new, &to.name, true);
                }
                Some(child) => self.nodes.rename(child, new, &to.name),
                // It could not be watched by its old name.
                None if is_dir && self.scope.recursive => self.bring(new, &to.name, true),
                None => {}
            }
        }
    }

    fn of_new_entry(&mut self, node: usize, event: &Event) {
        let is_dir = event.mask.contains(ReadFlags::ISDIR);
        if is_dir && self.scope.recursive {
            return self.bring(node, &event.name, false);
        }
        let path = join(&self.nodes.path(node), &event.name);
        // Something else may be there by now.
        let found = self.look(&path).filter(|(kind, _)| (*kind == FileKind::Directory) == is_dir);
        let kind = if is_dir { FileKind::Directory } else { FileKind::Regular };
        let (kind, ino) = found.unwrap_or((kind, 0));
        self.tell(What::Create, kind, ino, path);
    }

    /// Forgets a directory and those below it. One that has been found elsewhere is new there.
    fn drop_node(&mut self, node: usize) {
        let mut found = Vec::new();
        for watch in self.nodes.remove(node) {
            self.hub.remove(self.receiver, watch);
            found.extend(self.nodes.moved.remove(&watch));
        }
        for (parent, name, _) in found {
            if self.nodes.appears(parent, &name, true) {
                self.bring(parent, &name, false);
            }
        }
    }

    /// Looks once more at directories of which all events have come that may be of what was found in them, and forgets
    /// what that was.
    pub(super) fn forget_seen(&mut self, delivered: u64) {
        self.nodes.moved.retain(|_, (_, _, until)| *until > delivered);
        let mut seen = std::mem::take(&mut self.nodes.seen);
        seen.retain(|node| {
            let Some(it) = self.nodes.slab.get(*node) else { return false };
            let Some(seen) = &it.seen else { return false };
            seen.until > delivered || self.differs(*node)
        });
        self.nodes.seen.append(&mut seen);
    }

    /// Whether a directory is other than has been told. What it is then is told now, and events of that are expected.
    fn differs(&mut self, node: usize) -> bool {
        let path = self.nodes.path(node);
        let Ok(dir) = self.open(&path) else { return self.forget(node) };
        let watch = self.hub.add(self.receiver, &dir);
        let Some(it) = self.nodes.slab.get(node) else { return false };
        if watch.as_ref().is_ok_and(|watch| *watch != it.watch) {
            let Some(parent) = it.parent else { return false };
            let name = it.name.clone();
            self.bring(parent, &name, false);
            return false;
        }
        let Ok(entries) = list(&dir) else { return self.forget(node) };
        let there: HashMap<Vec<u8>, bool> = entries
            .into_iter()
            .map(|(name, _, kind)| (name.as_bytes().to_vec(), kind == FileType::Directory))
            .collect();
        let told = it.seen.as_ref().map(|seen| seen.names.clone()).unwrap_or_default();
        let mut differs = false;
        for (name, is_dir) in &told {
            if there.get(name) != Some(is_dir) {
                differs = true;
                if let Some(child) = self.nodes.child(node, name) {
                    self.drop_node(child);
                }
                self.nodes.disappears(node, name);
                let kind = if *is_dir { FileKind::Directory } else { FileKind::Regular };
                self.tell(What::Remove, kind, 0, join(&path, name));
            }
        }
        for (name, is_dir) in &there {
            let is_told = told.get(name) == Some(is_dir);
            let is_dir = *is_dir && self.scope.recursive;
            if is_told && !(is_dir && self.nodes.child(node, name).is_none()) {
                continue;
            }
            if !is_told
                && let Some(seen) = self.nodes.slab.get_mut(node).and_then(|it| it.seen.as_mut())
            {
                seen.names.insert(name.clone(), is_dir);
                seen.found.insert(name.clone());
            }
            if is_dir {
                self.bring(node, name, is_told);
                // One that cannot be watched stays as it is.
                differs |= !is_told || self.nodes.child(node, name).is_some();
            } else {
                differs = true;
                let path = join(&path, name);
                let (kind, ino) = self.look(&path).unwrap_or((FileKind::Regular, 0));
                self.tell(What::Create, kind, ino, path);
            }
        }
        let until = self.hub.now();
        match self.nodes.slab.get_mut(node).and_then(|it| it.seen.as_mut()) {
            Some(seen) if differs => seen.until = until,
            _ => return self.forget(node),
        }
        true
    }

    fn forget(&mut self, node: usize) -> bool {
        if let Some(it) = self.nodes.slab.get_mut(node) {
            it.seen = None;
        }
        false
    }
}

/// Whether an event is of the same name in the same directory as another.
fn is_at(event: &Event, other: &Event) -> bool {
    (event.watch, &event.name) == (other.watch, &other.name)
}

fn shown(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE)
}

/// What a directory that cannot be watched may answer: it is gone, or nobody may read it.
fn may_pass(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || Errno::from_io_error(error)
            .is_some_and(|errno| is_gone(errno) || matches!(errno, Errno::ACCESS | Errno::PERM))
}
