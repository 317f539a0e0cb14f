//! What servers and commands leave when they are killed: finding it, and removing it under its lock.
//!
//! Whatever somebody still has is locked: a server's record by the server, an upper and its work directory by
//! whoever has them mounted, a staging directory by the command that unpacks into it. After a restart of the
//! machine nothing is locked.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::checkpoints::Held;
use super::dead::{
    dead_mount, dead_mount_at, is_free, lock_upper, remove_dead, remove_locked_upper,
};
use super::group;
use super::layers::read_forks;
use super::mounted_from::mounted_from;
use super::state::{Lock, Note, Record, StateDir, read_origin};
use super::unmount::{Manner, lives_inside, unmount_locked};
use crate::failure::{Code, Failure};
use crate::inode_ops::remove_tree_at;
use crate::inode_ops::{Directory, DirectoryId};
use crate::names;

/// What something is that belongs to no live mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// The record of a server that was killed, and its mount where it is still there.
    Record,
    /// An upper in the state directory.
    Upper,
    /// A work directory beside an upper that is gone.
    Work,
    /// What an archive was being unpacked into.
    Staging,
    /// The file of a lock that nobody holds.
    Lock,
    /// An empty control group.
    Group,
}

/// Something that belongs to no live mount.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Leftover {
    /// What it is.
    pub(crate) kind: Kind,
    /// Where it is.
    #[serde(flatten, with = "names::path")]
    pub(crate) path: PathBuf,
    /// Room that it takes on the disk, in bytes.
    pub(crate) bytes: u64,
    /// Seconds since the epoch when it was mounted, or else last changed.
    pub(crate) since: Option<u64>,
    /// Where it was mounted.
    #[serde(flatten, with = "names::mountpoint")]
    pub(crate) mountpoint: Option<PathBuf>,
    /// What was mounted there.
    pub(crate) source: Option<String>,
    /// How many checkpoints go with it.
    pub(crate) checkpoints: usize,
    /// Whether the user asked to keep it, a checkpoint in it has a name, or nothing is known of it.
    pub(crate) kept: bool,
    /// Whether it is there for forks of its mount alone, which has ended.
    pub(crate) ended: bool,
    /// Why it is left, whoever asks: somebody has something of it.
    pub(crate) because: Option<String>,
}

impl Leftover {
    fn new(kind: Kind, path: PathBuf) -> Self {
        let since = path.symlink_metadata().ok().and_then(|meta| meta.mtime().try_into().ok());
        let (mountpoint, source) = (None, None);
        let (bytes, checkpoints, kept, ended) = (0, 0, false, false);
        let because = None;
        Self { kind, path, bytes, since, mountpoint, source, checkpoints, kept, ended, because }
    }

    /// With the checkpoints that the work directory at `work` has.
    fn with_checkpoints(mut self, work: &Path) -> Self {
        let held = Held::at(work);
        self.checkpoints = held.count();
        self.kept |= held.keeps();
        self
    }

    fn with_size(mut self) -> Self {
        self.bytes = disk_usage(&self.path);
        self
    }

    /// Looks who has something of it: what lives inside of a dead mount would go with that, and what is
    /// mounted of a directory knows no lock of ours.
    fn look(&mut self, state: &StateDir) {
        let because = match self.kind {
            Kind::Record => dead_mount_at(state, &self.path).map_or(Ok(None), |mount| {
                let living = lives_inside(state, &mount)?;
                Ok(living.map(|living| format!("{living} is mounted inside its dead mount")))
            }),
            Kind::Upper => mounted_from(&self.path).map(|held| held.or(self.lain_on("work"))),
            Kind::Work => mounted_from(&self.path).map(|held| held.or(self.lain_on(""))),
            Kind::Staging => mounted_from(&self.path),
            Kind::Lock | Kind::Group => Ok(None),
        };
        self.because = because.unwrap_or_else(|error: io::Error| {
            let is_gone = error.kind() == io::ErrorKind::NotFound;
            (!is_gone).then(|| format!("who has it mounted cannot be told: {error}"))
        });
    }

    /// Which forks lie on it, by its work directory, in words.
    fn lain_on(&self, work: &str) -> Option<String> {
        let forks = read_forks(&self.path.join(work), false).ok()?;
        let fork = forks.first()?.mountpoint.display();
        Some(match forks.len() {
            1 => format!("the fork on {fork} lies on it"),
            count => format!("{count} forks lie on it, one on {fork}"),
        })
    }

    /// Removes it. `false` where somebody has it by now.
    ///
    /// # Errors
    /// When it cannot be removed whole.
    pub(crate) fn remove(&mut self, state: &StateDir) -> Result<bool, Failure> {
        self.look(state);
        if self.because.is_some() {
            return Ok(false);
        }
        // What went with another thing that was removed is removed, too.
        Ok(self.remove_unused(state)? || is_missing(&self.path))
    }

    fn remove_unused(&self, state: &StateDir) -> Result<bool, Failure> {
        let removed = match self.kind {
            Kind::Record => return self.remove_record(state),
            Kind::Upper => remove_locked_upper(&self.path),
            Kind::Work => remove_work(&self.path),
            Kind::Staging => remove_noted(state, &self.path),
            Kind::Lock => Lock::on_file(&self.path)
                .map(|lock| lock.map(|lock| drop(lock.and_remove(&self.path))).is_some()),
            Kind::Group => Ok(group::remove_empty(&self.path)),
        };
        removed.map_err(|error| Failure::io("remove", &self.path, &error))
    }

    /// A dead mount goes first: nobody would know it for ours without its record.
    fn remove_record(&self, state: &StateDir) -> Result<bool, Failure> {
        let failed = |error: io::Error| Failure::io("remove", &self.path, &error);
        let Some(dir) =
            state.mount_dirs().map_err(failed)?.into_iter().find(|dir| dir.path() == self.path)
        else {
            return Ok(false);
        };
        if let Some(record) = dir.read_record()
            && let Some(mount) = dead_mount(state, &record)
        {
            let _lock = state.lock_mountpoint(&mount.mountpoint, || ()).map_err(failed)?;
            match unmount_locked(&mount.mountpoint, Manner::Dead) {
                // It is another one, which has nothing to do with this record.
                Err(failure) if matches!(failure.code, Code::Busy | Code::NotMounted) => {}
                done => done?,
            }
            // Something came to be inside of it.
            if dead_mount(state, &record).is_some() {
                return Ok(false);
            }
        }
        remove_dead(&dir).map_err(failed)
    }
}

/// Everything that belongs to no live mount, in the order in which it is to be removed.
///
/// # Errors
/// When the state directory exists but cannot be read.
pub(crate) fn find(state: &StateDir) -> io::Result<Vec<Leftover>> {
    let mut found = Vec::new();
    for dir in state.mount_dirs()? {
        if dir.is_alive() || !is_free(dir.claim())? {
            continue;
        }
        let record = dir.read_record();
        found.push(Leftover {
            since: record.as_ref().map(|record| record.since),
            source: record.as_ref().map(|record| record.source.clone()),
            mountpoint: record.map(|record| record.mountpoint),
            ..Leftover::new(Kind::Record, dir.path().to_owned()).with_size()
        });
    }
    found.extend(find_uppers(state)?);
    for note in state.notes()? {
        let kind = match &note {
            Note::Staging { path, id, .. } if is_staging(path, *id) => Kind::Staging,
            Note::Work { path, upper } if is_work(path) && is_missing(upper) => Kind::Work,
            _ => continue,
        };
        if is_free(Lock::on_directory(note.path()))? {
            let leftover = Leftover::new(kind, note.path().to_owned()).with_size();
            found.push(match kind {
                Kind::Work => leftover.with_checkpoints(note.path()),
                _ => leftover,
            });
        }
    }
    for path in state.lock_files()? {
        if is_free(Lock::on_file(&path))? {
            found.push(Leftover::new(Kind::Lock, path));
        }
    }
    found.extend(group::find_empty().into_iter().map(|path| Leftover::new(Kind::Group, path)));
    found.iter_mut().for_each(|leftover| leftover.look(state));
    Ok(found)
}

/// Uppers in the state directory that no live mount has.
///
/// # Errors
/// When the state directory exists but cannot be read.
pub(crate) fn find_uppers(state: &StateDir) -> io::Result<Vec<Leftover>> {
    let mut found = Vec::new();
    for (base, mount) in state.uppers()? {
        if mount.is_alive() || !is_free(lock_upper(&base))? {
            continue;
        }
        let origin = read_origin(&base);
        let work = base.join("work");
        let holds_some = base.join("upper").exists();
        let upper = Leftover::new(Kind::Upper, base).with_size();
        let upper = match origin {
            Some(origin) => Leftover {
                since: Some(origin.since),
                mountpoint: Some(origin.mountpoint),
                source: Some(origin.source),
                kept: origin.kept,
                ended: origin.ended,
                ..upper
            },
            // Whoever made it was killed before there was anything to keep.
            None => Leftover { kept: holds_some, ..upper },
        };
        found.push(upper.with_checkpoints(&work));
    }
    Ok(found)
}

/// Forgets notes of what is gone.
pub(crate) fn forget_gone(state: &StateDir) {
    for note in state.notes().unwrap_or_default() {
        if is_missing(note.path()) {
            state.forget(&note);
        }
    }
}

/// What lives inside of the mount that a server which was killed has left, and would be lost with it, in
/// words.
pub(crate) fn living_inside(state: &StateDir, record: &Record) -> Option<String> {
    lives_inside(state, &dead_mount(state, record)?).ok()?
}

fn remove_work(path: &Path) -> io::Result<bool> {
    let Some(_lock) = Lock::on_directory(path)?.filter(|_| is_work(path)) else { return Ok(false) };
    for name in IN_WORK {
        remove_tree_at(&path.join(name))?;
    }
    std::fs::remove_dir(path)?;
    Ok(true)
}

/// What is in a work directory.
const IN_WORK: [&str; 8] =
    ["index", "work", "layers", "forks", "stack.new", "stack.later", "stack.spare", "stack.json"];

/// Whether at `path` is a directory with nothing in it but what a work directory has.
fn is_work(path: &Path) -> bool {
    let ours = |entry: io::Result<std::fs::DirEntry>| {
        entry.is_ok_and(|entry| IN_WORK.iter().any(|name| entry.file_name() == *name))
    };
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.all(ours))
}

/// Removes what commands that were killed have left of unpacking to `target`.
pub(crate) fn clear_staging(state: &StateDir, target: &Path) {
    for note in state.notes().unwrap_or_default() {
        if let Note::Staging { path, target: of, .. } = &note
            && of == target
        {
            match remove_noted(state, path) {
                Ok(true) => {}
                Ok(false) => tracing::debug!("{} is in use, or somebody else's", path.display()),
                Err(error) => tracing::warn!("cannot remove {}: {error}", path.display()),
            }
        }
    }
}

/// Removes what a command that was killed has unpacked into, as it is noted.
fn remove_noted(state: &StateDir, path: &Path) -> io::Result<bool> {
    let noted = state.notes()?.into_iter().find(|note| note.path() == path);
    let Some(Note::Staging { id, .. }) = noted else { return Ok(false) };
    let lock = match Lock::on_directory(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        lock => lock?,
    };
    let Some(_lock) = lock.filter(|_| is_staging(path, id)) else { return Ok(false) };
    match id {
        Some(_) => remove_tree_at(path)?,
        None => std::fs::remove_dir(path)?,
    }
    Ok(true)
}

/// Whether the directory at `path` is the one that was noted, or one that was not filled yet.
fn is_staging(path: &Path, id: Option<DirectoryId>) -> bool {
    let Ok(directory) = Directory::open_again(path, id) else { return false };
    id.is_some() || directory.has_entries().is_ok_and(|some| !some)
}

/// Whether there is certainly nothing at `path`, rather than nothing that can be seen.
fn is_missing(path: &Path) -> bool {
    matches!(path.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// Room that a tree takes, as du(1) counts it. What cannot be read is left out.
pub(super) fn disk_usage(path: &Path) -> u64 {
    let mut seen = HashSet::new();
    let mut bytes = 0;
    let mut paths = vec![path.to_owned()];
    while let Some(path) = paths.pop() {
        let Ok(meta) = path.symlink_metadata() else { continue };
        if meta.is_dir() {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            paths.extend(entries.map(|entry| entry.path()));
        } else if meta.nlink() > 1 && !seen.insert((meta.dev(), meta.ino())) {
            continue;
        }
        bytes += meta.blocks() * 512;
    }
    bytes
}
