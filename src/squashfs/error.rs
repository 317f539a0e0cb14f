//! What can be wrong with an archive, and where.

use std::borrow::Cow;

use crate::cache;
use crate::types::{ArchiveOffset, FileKind};

/// Why an archive cannot be opened, or a part of it not read. Cheap to clone: every waiter of one
/// decode gets it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// There is no squashfs superblock at the start.
    #[error("not a squashfs archive: {found}")]
    NotSquashfs {
        /// What is there instead, as far as its first bytes tell.
        found: Cow<'static, str>,
    },
    /// A squashfs archive of a sort that neither we nor the kernel read.
    #[error("unsupported squashfs archive: {what}")]
    Unsupported {
        /// The version, compressor or option in question.
        what: Cow<'static, str>,
    },
    /// The archive contradicts itself or the format.
    #[error("corrupt archive: {structure} at byte {at}: {detail}")]
    Corrupt {
        /// Which of the format's structures.
        structure: &'static str,
        /// Where it starts or, for packed metadata, where its metadata block does.
        at: ArchiveOffset,
        /// What is wrong with it.
        detail: Cow<'static, str>,
    },
    /// The question does not fit the inode: a listing of a file, the target of a directory.
    #[error("wanted a {wanted:?} and got a {found:?}")]
    WrongKind {
        /// What the call works on.
        wanted: FileKind,
        /// What it was given.
        found: FileKind,
    },
    /// The bytes could not be had. Says nothing about the archive.
    #[error(transparent)]
    Blob(#[from] cache::Error),
}

impl Error {
    /// That the thread must not wait for the store, as it would have to.
    pub(crate) fn would_wait() -> Self {
        Self::Blob(cache::Error::WouldWait)
    }

    /// Whether this says only that the thread must not wait.
    pub fn is_would_wait(&self) -> bool {
        matches!(self, Self::Blob(error) if error.is_would_wait())
    }

    /// An [`Error::Corrupt`].
    pub fn corrupt(
        structure: &'static str,
        at: ArchiveOffset,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::Corrupt { structure, at, detail: detail.into() }
    }
}
