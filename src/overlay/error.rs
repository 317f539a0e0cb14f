//! What an operation on the merged tree can fail with.

use std::fmt;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::types::Ino;
use crate::{inode_ops, squashfs};

/// Why the merged tree did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tree itself says no, as ext4 would: `ENOENT`, `EEXIST`, `ENOTEMPTY`, `EROFS` and so on.
    #[error("{0}")]
    Refused(Errno),
    /// A system call on the upper failed; the caller gets this errno unchanged.
    #[error("{call} of {what} in the upper: {errno}")]
    Sys {
        /// The system call.
        call: &'static str,
        /// The name it was asked about, relative to its directory.
        what: Box<str>,
        /// What the kernel answered.
        errno: Errno,
    },
    /// What should be there is not, or is something else: damage, or a change behind our back. The
    /// caller gets `EIO`.
    #[error("{0}")]
    Damaged(Box<str>),
    /// The inode that was asked about is no more, or another one. The caller gets `ESTALE`.
    #[error("{0}")]
    Stale(Box<str>),
    /// The archive could not be read.
    #[error(transparent)]
    Lower(#[from] squashfs::Error),
    /// A lower file's data would have to be copied, which this thread must not wait for
    /// ([`crate::cache::without_waiting`]).
    #[error("this would copy data")]
    WouldCopy,
    /// The live upper was frozen in the middle of an operation, which begins again: no caller gets this.
    #[error("the upper was frozen")]
    Frozen,
    /// The upper or work directory cannot serve as one; only [`super::Upper::open`] and
    /// [`super::Overlay::new`] say this.
    #[error("{}: {problem}", path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it and what to do.
        problem: String,
    },
}

impl Error {
    /// For `map_err` on a system call about `what`.
    pub(super) fn sys(call: &'static str, what: impl fmt::Display) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Sys { call, what: what.to_string().into(), errno }
    }

    /// An [`Error::Damaged`].
    pub(super) fn damaged(what: impl fmt::Display) -> Self {
        Self::Damaged(what.to_string().into())
    }

    /// An [`Error::Stale`].
    pub(super) fn stale(what: impl fmt::Display) -> Self {
        Self::Stale(what.to_string().into())
    }

    /// Whether the archive's bytes could not be had, which says nothing of what they are.
    pub(super) fn is_of_the_store(&self) -> bool {
        matches!(self, Self::Lower(squashfs::Error::Blob(_)))
    }

    /// Whether there is no room, or a quota leaves none.
    pub(crate) fn is_no_room(&self) -> bool {
        self.is(Errno::NOSPC) || self.is(Errno::DQUOT)
    }

    /// Whether this is the upper's or the tree's own `errno`.
    pub(super) fn is(&self, wanted: Errno) -> bool {
        match self {
            Self::Refused(errno) | Self::Sys { errno, .. } => *errno == wanted,
            Self::Damaged(_) => wanted == Errno::IO,
            Self::Stale(_) => wanted == Errno::STALE,
            Self::Lower(_) | Self::WouldCopy | Self::Frozen | Self::Unusable { .. } => false,
        }
    }

    /// Whether this says only that the thread must not wait.
    pub fn is_would_wait(&self) -> bool {
        match self {
            Self::WouldCopy => true,
            Self::Lower(error) => error.is_would_wait(),
            Self::Refused(_)
            | Self::Sys { .. }
            | Self::Damaged(_)
            | Self::Stale(_)
            | Self::Frozen
            | Self::Unusable { .. } => false,
        }
    }
}

/// What was copied up is not in the upper, as it was looked at a moment later.
pub(super) fn not_copied(ino: Ino) -> Error {
    Error::stale(format_args!("the copy of inode {ino} in the upper is gone"))
}

/// Somebody else has put another inode in the place of one that we know.
pub(super) fn changed_behind(what: impl fmt::Display) -> Error {
    Error::stale(format_args!("{what} in the upper was replaced by another program"))
}

impl From<inode_ops::Error> for Error {
    fn from(error: inode_ops::Error) -> Self {
        let inode_ops::Error { call, what, errno } = error;
        Self::Sys { call, what, errno }
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

/// The overlay's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
