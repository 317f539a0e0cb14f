//! What an operation on the merged tree can fail with.

use std::fmt;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::squashfs;

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
    /// The archive could not be read.
    #[error(transparent)]
    Lower(#[from] squashfs::Error),
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

    /// Whether this is the upper's or the tree's own `errno`.
    pub(super) fn is(&self, wanted: Errno) -> bool {
        match self {
            Self::Refused(errno) | Self::Sys { errno, .. } => *errno == wanted,
            Self::Lower(_) | Self::Unusable { .. } => false,
        }
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno)
    }
}

/// The overlay's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
