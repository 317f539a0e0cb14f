//! What can go wrong when a directory is packed.

use std::io;
use std::path::{Path, PathBuf};

/// Why a directory could not be packed. Whatever the sink was given by then is no archive.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Files or directories that we may not read. All of them: the tree was searched to its end.
    #[error("permission denied: {}", list(.paths))]
    Unreadable {
        /// Each one's path, the packed directory's own in front.
        paths: Vec<PathBuf>,
    },
    /// A file that changed each time it was read, so that no consistent copy could be had.
    #[error("{} keeps changing while it is read", .path.display())]
    Changed {
        /// Its path.
        path: PathBuf,
    },
    /// A system call on something in the tree failed.
    #[error("{call} {}: {source}", .path.display())]
    Io {
        /// What it was about.
        path: PathBuf,
        /// The system call.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The tree is larger than the format can say.
    #[error("squashfs cannot hold {what}")]
    Limit {
        /// What there is too much of, and how much fits.
        what: String,
    },
    /// The archive that this one begins with cannot be read.
    #[error("reading the archive that it is made from: {0}")]
    Base(#[from] super::super::Error),
    /// Whoever tells what a tree holds has failed.
    #[error("{0}")]
    Told(Box<dyn std::error::Error + Send + Sync>),
    /// The options contradict the format.
    #[error("{0}")]
    Options(String),
    /// The sink took no more bytes.
    #[error("writing the archive: {0}")]
    Sink(#[source] io::Error),
    /// Notes about the tree could not be kept in a temporary file.
    #[error("keeping notes in {}: {source}", std::env::temp_dir().display())]
    Scratch {
        /// What the system said.
        source: io::Error,
    },
    /// A compressor failed, or a thread could not be started.
    #[error("compressing: {0}")]
    Compress(String),
}

impl Error {
    /// What the user can do about it, if anything in general.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreadable { .. } => {
                Some("make them readable with `chmod -R a+rX`, run as root, or exclude them".into())
            }
            Self::Changed { .. } => Some("stop what writes to it, or exclude it".into()),
            Self::Scratch { .. } => Some("point TMPDIR to a directory with room".into()),
            _ => None,
        }
    }

    pub(super) fn io(path: &Path, call: &'static str, errno: rustix::io::Errno) -> Self {
        Self::Io { path: path.to_owned(), call, source: errno.into() }
    }

    pub(super) fn limit(what: impl Into<String>) -> Self {
        Self::Limit { what: what.into() }
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
