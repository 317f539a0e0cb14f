//! Telling the log what has changed in the merged tree.
//!
//! A change of names is told under the lock that it was made under, so the log has them in the order in which they
//! took effect. Attributes and data are told once they are changed, with `names` held shared, which keeps the path
//! true.
//!
//! Data is told at the first write, and after that once for all writes of the next [`WINDOW`]: the log then has a
//! change that comes after the last of them. What is done to a name or to attributes next, and the end of an open file,
//! do not wait for that.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::OFlags;

use super::Overlay;
use super::node::UpperState;
use crate::types::{FileKind, Ino};
use crate::watch::{ChangeLog, What};

/// How long writes to one file are taken together.
pub(super) const WINDOW: Duration = Duration::from_millis(20);

/// How often writes are looked for that nobody tells.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Files that were written to just now.
#[derive(Debug, Default)]
pub(super) struct Writes {
    files: Mutex<HashMap<Ino, Written>>,
    /// Held from when it is found out that a write is yet to be told until it is: else whoever finds that there is
    /// none may tell what came behind it before.
    telling: Mutex<()>,
}

#[derive(Debug)]
struct Written {
    since: Instant,
    /// How often it was written to since, and how many of these writes are told.
    noted: u64,
    told: u64,
}

impl Written {
    fn is_told(&self) -> bool {
        self.told == self.noted
    }
}

impl Writes {
    /// Notes a write to `ino`. Its number, if it is to be told now rather than with those that follow.
    fn note(&self, ino: Ino) -> Option<u64> {
        let mut all = self.files.lock();
        let fresh = || Written { since: Instant::now(), noted: 0, told: 0 };
        let written = all.entry(ino).or_insert_with(fresh);
        written.noted += 1;
        if written.noted > 1 && written.since.elapsed() < WINDOW {
            return None;
        }
        written.since = Instant::now();
        Some(written.noted)
    }

    /// Write `number` of `ino`, and those before it, are told.
    fn told(&self, ino: Ino, number: u64) {
        if let Some(written) = self.files.lock().get_mut(&ino) {
            written.told = written.told.max(number);
        }
    }

    /// Takes what is noted of `ino`, and says whether a write is yet to be told.
    fn take(&self, ino: Ino) -> bool {
        self.files.lock().remove(&ino).is_some_and(|written| !written.is_told())
    }

    fn clear(&self) {
        self.files.lock().clear();
    }

    /// The files of which a write is yet to be told, that was noted [`WINDOW`] ago or earlier. Forgets those of which
    /// all is told.
    fn due(&self) -> Vec<Ino> {
        let mut due = Vec::new();
        self.files.lock().retain(|ino, written| {
            if written.since.elapsed() < WINDOW {
                return true;
            }
            if !written.is_told() {
                due.push(*ino);
                written.since = Instant::now();
                return true;
            }
            false
        });
        due
    }

    /// Whether a write to `ino` is yet to be told; whoever asks tells it.
    fn take_due(&self, ino: Ino) -> bool {
        let mut files = self.files.lock();
        let Some(written) = files.get_mut(&ino).filter(|written| !written.is_told()) else {
            return false;
        };
        written.told = written.noted;
        true
    }
}

impl Overlay {
    /// The log of what changes in the merged tree. To read it is to have it written; what
    /// [`Self::look_for_writes`] finds is in it only while that runs.
    pub fn change_log(&self) -> &Arc<ChangeLog> {
        &self.log
    }

    /// Tells of `what` happened to `name` in `parent`, which is or was `ino`. Called with `names` held.
    pub(super) fn tell_name(
        &self,
        what: What,
        (ino, kind): (Ino, FileKind),
        parent: Ino,
        name: &OsStr,
    ) {
        if self.log.is_watched()
            && let Some(path) = self.nodes.path_in(parent, name)
        {
            self.log.write(what, kind, self.number(ino).0, path);
        }
    }

    /// Tells that what `ino` is in the upper has changed. Called with `names` held. What has no name any
    /// more is in no tree.
    pub(super) fn tell_inode(&self, what: What, ino: Ino, state: &UpperState) {
        if self.log.is_watched() {
            self.tell_file(&what, ino, state.kind);
        }
    }

    /// Tells of `what` happened to `ino` by each of its names that is known: who watches one directory hears of no
    /// others. Where it has some and none is known, all who read miss something. Called with `names` held.
    fn tell_file(&self, what: &What, ino: Ino, kind: FileKind) {
        let paths = self.nodes.paths(ino);
        if paths.is_empty() && self.has_names(ino) {
            self.log.lose();
        }
        for path in paths {
            self.log.write(what.clone(), kind, self.number(ino).0, path);
        }
    }

    /// Whether `ino`, no name of which is known, is in the tree all the same, as a file may be that has many. Called
    /// with `names` held.
    fn has_names(&self, ino: Ino) -> bool {
        // One that is forgotten was told of before.
        if self.nodes.get(ino).is_err() {
            return false;
        }
        let links = self.address(ino).and_then(|(inode, state)| {
            let links = i64::from(inode.stat()?.stx_nlink) + state.extra_links;
            Ok(if state.kind == FileKind::Directory { 0 } else { links })
        });
        // Rather too often than not at all.
        links.map_or(true, |links| links > 0)
    }

    /// Tells that regular file `ino` was written to, now or a moment later. Called without `names`.
    pub(super) fn tell_write(&self, ino: Ino) {
        if self.log.is_watched()
            && let Some(number) = self.writes.note(ino)
        {
            let _names = self.names.read();
            let _telling = self.writes.telling.lock();
            self.kernel_writes.is_ours(ino);
            self.tell_data(ino);
            self.writes.told(ino, number);
        }
    }

    /// Tells of writes to `ino` that are yet to be told, before something else is. Called with `names` held.
    pub(super) fn tell_write_before(&self, ino: Ino) {
        if self.log.is_watched() {
            self.begin_to_look();
            let _telling = self.writes.telling.lock();
            let unseen = self.kernel_writes.check(ino);
            if self.writes.take(ino) || unseen {
                self.tell_data(ino);
            }
        }
    }

    /// Tells that `ino` was written to, and with that of writes that are yet to be told. Called without `names`.
    pub(super) fn tell_writes_of(&self, ino: Ino) {
        if self.log.is_watched() {
            let _names = self.names.read();
            let _telling = self.writes.telling.lock();
            self.kernel_writes.is_ours(ino);
            self.writes.take(ino);
            self.tell_data(ino);
        }
    }

    /// Tells of writes to `ino` that are yet to be told, those that `find` has found among them. Called with `names`
    /// held.
    pub(super) fn tell_found(&self, ino: Ino, find: impl FnOnce() -> bool) {
        let _telling = self.writes.telling.lock();
        let unseen = find();
        if self.log.is_watched() && (self.writes.take(ino) || unseen) {
            self.tell_data(ino);
        }
    }

    /// Called with `names` held.
    pub(super) fn tell_data(&self, ino: Ino) {
        self.tell_file(&What::Write, ino, FileKind::Regular);
    }

    /// Begins to look for writes that the kernel makes by itself, if somebody has just begun to watch and the thread that
    /// looks has yet to wake.
    pub(super) fn begin_to_look(&self) {
        if self.log.is_watched() {
            self.kernel_writes.begin(|| self.log.began());
        }
    }

    /// Tells what is known only by looking for it, the writes that the kernel makes by itself, and the last of
    /// several writes. For a thread of its own: lasts until the log is closed. `meanwhile` is called each time.
    pub fn look_for_writes(&self, mut meanwhile: impl FnMut()) {
        while let Some(began) = self.log.wait_for_reader() {
            self.kernel_writes.begin(|| Some(began));
            self.kernel_writes.open_closed(|ino| {
                let _names = self.names.read();
                // What is mapped has a node.
                self.address(ino).ok().and_then(|(inode, _)| inode.open(OFlags::RDONLY).ok())
            });
            while self.log.is_alive() {
                self.look_once();
                meanwhile();
                std::thread::sleep(LOOK_EVERY);
            }
            self.kernel_writes.end(!self.log.is_closed());
            self.writes.clear();
        }
    }

    fn look_once(&self) {
        for ino in self.kernel_writes.look() {
            let _names = self.names.read();
            let _telling = self.writes.telling.lock();
            if self.kernel_writes.check(ino) {
                self.tell_data(ino);
            }
        }
        for ino in self.writes.due() {
            let _names = self.names.read();
            let _telling = self.writes.telling.lock();
            if self.writes.take_due(ino) {
                self.tell_data(ino);
            }
        }
    }
}
