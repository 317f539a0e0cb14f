//! One name on the way: what the backup has there, and what the view.

use std::ffi::OsStr;
use std::path::PathBuf;

use rustix::fs::Statx;

use super::super::Overlay;
use super::super::dirs::os_str;
use super::super::error::Result;
use super::super::index::Entry;
use super::super::lookup::Held;
use super::super::lower::Child;
use super::super::node::{Data, UpperState};
use super::super::stack::Below;
use super::entry::{DifferenceEntry, Status};
use crate::inode_ops::{Address, stat_at};
use crate::types::{FileKind, Ino, InodeRef, Timestamp};

/// What the view has under a name.
pub(super) enum Here<'o> {
    /// Nothing, and no whiteout: a directory of the upper hides what the backup has.
    Nothing,
    /// A whiteout, which was last changed then.
    Whiteout(Timestamp),
    /// What the backup has, of which nothing is in the upper.
    Lower(Held<'o>),
    /// Something in the upper.
    Upper(Box<InUpper<'o>>),
}

/// An inode in the upper.
pub(super) struct InUpper<'o> {
    pub(super) ino: Ino,
    pub(super) kind: FileKind,
    pub(super) state: UpperState,
    pub(super) stat: Statx,
    /// Where it is reached, whatever happens to its name; of what has nothing in the backup to be compared with none.
    pub(super) inode: Option<Address>,
    /// The lower inode that it is: which it was copied from, or merges with.
    pub(super) lower: Option<InodeRef>,
    /// Whether a redirect says where that is. What has been renamed has one, and keeps it.
    pub(super) redirected: bool,
    /// Of a directory that merges with another than the backup has under its name: the path of that.
    pub(super) lower_path: Option<Vec<u8>>,
    /// Keeps it known.
    pub(super) _held: Option<Held<'o>>,
}

impl<'o> InUpper<'o> {
    /// The inode that the index keeps as `entry`. Called with `names` held.
    pub(super) fn indexed(overlay: &'o Overlay, entry: &Entry) -> Result<Option<Self>> {
        // What was born in a layer has nothing in the backup.
        let Some(lower) = entry.lower else { return Ok(None) };
        let ino = overlay.lower.ino(lower)?;
        if overlay.index.get(ino).is_none() {
            return Ok(None);
        }
        let inode = Address::Pinned(overlay.index_address(ino)?.pin()?);
        let stat = inode.stat()?;
        let state = overlay.read_marks_of_copy(&inode, &stat, entry)?;
        let (kind, lower, inode) = (state.kind, state.below.archive, Some(inode));
        let (redirected, lower_path, _held) = (false, None, None);
        Ok(Some(Self { ino, kind, state, stat, inode, lower, redirected, lower_path, _held }))
    }

    /// What is told of it under `path`, being `from` in the backup.
    pub(super) fn entry(
        &self,
        status: Status,
        path: &[u8],
        from: Option<&[u8]>,
    ) -> DifferenceEntry {
        let (kind, from) = (self.kind, from.filter(|from| *from != path).map(as_path));
        let size = match kind {
            FileKind::Regular | FileKind::Symlink => self.stat.stx_size,
            _ => 0,
        };
        let is_new = matches!(status, Status::Added | Status::Modified);
        let bytes = match (kind, &self.state.data) {
            (FileKind::Regular, Data::Upper) if is_new => size,
            _ => 0,
        };
        let nlink = match kind {
            FileKind::Directory => 1,
            _ => i64::from(self.stat.stx_nlink) + self.state.extra_links,
        };
        let (ino, nlink) = (self.ino.0, u32::try_from(nlink).unwrap_or(0));
        DifferenceEntry { status, kind, path: as_path(path), from, size, bytes, ino, nlink }
    }
}

/// One name.
pub(super) struct Step<'a, 'o> {
    /// Its path in the view, without a slash in front; empty for the root.
    pub(super) path: &'a [u8],
    /// The path in the backup of what `child` is.
    pub(super) backup_path: &'a [u8],
    /// What the backup has under the name.
    pub(super) child: Option<Child>,
    pub(super) here: Here<'o>,
    /// The `st_ctime` that the directory above shows, if it is in the upper.
    pub(super) above: Option<Timestamp>,
}

impl Step<'_, '_> {
    /// What the backup has under the name, if the view has it no more.
    pub(super) fn hidden(&self) -> Option<Child> {
        match &self.here {
            Here::Lower(_) => None,
            Here::Upper(upper) if upper.lower == self.child.map(|child| child.inode) => None,
            Here::Nothing | Here::Whiteout(_) | Here::Upper(_) => self.child,
        }
    }

    /// The lower inode that is here and was elsewhere, or is there still.
    pub(super) fn arrived(&self) -> Option<InodeRef> {
        match &self.here {
            Here::Upper(upper) if upper.lower != self.child.map(|child| child.inode) => upper.lower,
            _ => None,
        }
    }
}

/// Appends a name to a path.
pub(super) fn join(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

pub(super) fn ctime_of(stat: &Statx) -> Timestamp {
    Timestamp { seconds: stat.stx_ctime.tv_sec, nanos: stat.stx_ctime.tv_nsec }
}

/// A path as it is told, that of the root being `.`.
pub(super) fn as_path(path: &[u8]) -> PathBuf {
    match path {
        b"" => ".".into(),
        path => os_str(path).into(),
    }
}

impl Overlay {
    /// What hides a name that no layer of `below` shows: a whiteout, if there is one.
    pub(super) fn whiteout_in<'o>(&self, below: &Below, name: &OsStr) -> Result<Here<'o>> {
        for part in below.parts() {
            if let Ok(stat) = stat_at(&*self.part_fds.get(part)?, name) {
                return Ok(Here::Whiteout(ctime_of(&stat)));
            }
        }
        Ok(Here::Nothing)
    }
}
