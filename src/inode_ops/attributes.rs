//! What a new inode gets once it is made: owner, extended attributes, permissions, times.
//!
//! In this order, in which nothing undoes what came before it:
//!
//! 1. **Owner.** A new one takes away set-id bits and file capabilities.
//! 2. **Extended attributes.** An ordinary user can set them only on what may be read and written, so
//!    permissions that close a file come later; and an ACL changes permissions.
//! 3. **Permissions**, as they were all along: set-id bits and what an ACL has changed included.
//! 4. **Times**, which all the others move.
//!
//! [`begin`] does the first two, [`Begun::finish`] the rest. In between a caller can write attributes of its
//! own, and choose permissions by what was refused.

use std::ffi::CString;

use rustix::fs::{FileType, Statx, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::{Address, Error, Result};
use crate::types::{Owner, Timestamp};

/// As whom inodes are made, and so what may be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// Root: a refusal is a failure.
    Root,
    /// An ordinary user, who goes without what only root may do.
    Ordinary,
}

impl Privilege {
    /// That of this process. The root of a user namespace is root of nothing else.
    pub(crate) fn of_process() -> Self {
        let is_all = |map: String| map.split_whitespace().eq(["0", "0", "4294967295"]);
        let owns_all = || std::fs::read_to_string("/proc/self/uid_map").map_or(true, is_all);
        match rustix::process::geteuid().is_root() && owns_all() {
            true => Self::Root,
            false => Self::Ordinary,
        }
    }

    /// Whether `errno` says no more than that an ordinary user cannot do it, and one is at work.
    pub(crate) fn lacks(self, errno: Errno) -> bool {
        self == Self::Ordinary && matches!(errno, Errno::PERM | Errno::OPNOTSUPP)
    }

    /// The same of a change of owner: `EINVAL` is for a number that the user namespace does not have.
    fn lacks_owner(self, errno: Errno) -> bool {
        self.lacks(errno) || self == Self::Ordinary && errno == Errno::INVAL
    }
}

/// What a new inode could not be given.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    /// Its owner.
    pub(crate) owner: bool,
    /// Extended attributes, and why.
    pub(crate) xattrs: Vec<(CString, Errno)>,
}

/// A new inode that has its owner and extended attributes.
#[must_use]
pub(crate) struct Begun<'a> {
    inode: &'a Address,
    stat: &'a Statx,
    /// What it could not be given.
    pub(crate) refused: Refused,
}

/// Gives `inode`, which `stat` describes as it was made, its owner and extended attributes.
pub(crate) fn begin<'a>(
    inode: &'a Address,
    stat: &'a Statx,
    owner: Owner,
    xattrs: Vec<(CString, Vec<u8>)>,
    privilege: Privilege,
) -> Result<Begun<'a>> {
    let owner = !give_owner(inode, stat, owner, privilege)?;
    let mut refused = Refused { owner, xattrs: Vec::new() };
    for (name, value) in xattrs {
        match inode.set_xattr(&name, &value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(errno) if privilege.lacks(errno) => refused.xattrs.push((name, errno)),
            Err(errno) => {
                let what = name.to_string_lossy().into();
                return Err(Error { call: "setxattr", what, errno });
            }
        }
    }
    Ok(Begun { inode, stat, refused })
}

/// Gives `inode`, which `stat` describes, its owner. Says whether it has that.
pub(crate) fn give_owner(
    inode: &Address,
    stat: &Statx,
    owner: Owner,
    privilege: Privilege,
) -> Result<bool> {
    if (stat.stx_uid, stat.stx_gid) == (owner.uid, owner.gid) {
        return Ok(true);
    }
    match inode.chown(Some(owner.uid), Some(owner.gid)) {
        Err(error) if privilege.lacks_owner(error.errno) => Ok(false),
        done => done.map(|()| true),
    }
}

impl Begun<'_> {
    /// Gives the inode its permissions, unless it is a symbolic link, and its time.
    pub(crate) fn finish(self, permissions: u16, time: Timestamp) -> Result<()> {
        let time = Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        self.finish_with_times(permissions, &times)
    }

    /// As [`Self::finish`], with the one time and the other.
    pub(crate) fn finish_with_times(self, permissions: u16, times: &Timestamps) -> Result<()> {
        let mode = self.stat.stx_mode;
        let is_link = FileType::from_raw_mode(mode.into()).is_symlink();
        if !is_link && mode & 0o7777 != permissions {
            self.inode.chmod(permissions.into())?;
        }
        self.inode.set_times(times)
    }
}
