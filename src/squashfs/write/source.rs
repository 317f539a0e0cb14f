//! Where the bytes of a file come from: the file itself, or an archive that has them.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::super::{Archive, Inode};
use super::error::Error;
use super::load::read_full;
use super::stat::{Stat, Version};
use crate::types::{FileOffset, Timestamp};

/// What a file is read from.
pub(super) enum Source {
    /// A regular file that is open.
    File(OwnedFd),
    /// One that nobody is to write to.
    Frozen(Frozen),
    /// A file of an archive, which stays as it is; with the version that it is to have.
    Archived(Arc<Archive>, Box<Inode>, Version),
}

/// A file that has what it had when it was told of, or is none.
pub(super) struct Frozen {
    pub(super) fd: OwnedFd,
    /// When its data was last modified by then.
    pub(super) modified: Timestamp,
    /// When it is to say that it was.
    pub(super) told: Timestamp,
}

/// Why a file cannot be read.
pub(super) enum Unread {
    Sys(Errno),
    Archive(super::super::Error),
}

impl From<Errno> for Unread {
    fn from(errno: Errno) -> Self {
        Self::Sys(errno)
    }
}

impl Unread {
    /// Puts the path and the call to it.
    pub(super) fn of(path: &Path, call: &'static str) -> impl FnOnce(Self) -> Error {
        move |unread| match unread {
            Self::Sys(errno) => Error::io(path, call, errno),
            Self::Archive(error) => error.into(),
        }
    }
}

impl Source {
    /// What changes when the file does.
    pub(super) fn version(&self) -> Result<Version, Errno> {
        match self {
            Self::File(fd) => Stat::of(fd.as_fd()).map(|stat| stat.version),
            Self::Frozen(Frozen { fd, modified, told }) => {
                let version = Stat::of(fd.as_fd())?.version;
                match version.mtime == *modified {
                    true => Ok(Version { mtime: *told, ..version }),
                    false => Err(Errno::STALE),
                }
            }
            Self::Archived(.., version) => Ok(*version),
        }
    }

    /// Where the first byte from `at` on is that may be no zero; the size where there is none.
    pub(super) fn data_from(&self, at: u64, size: u64) -> Result<u64, Unread> {
        match self {
            Self::File(fd) | Self::Frozen(Frozen { fd, .. }) => {
                Ok(match seek(fd, SeekFrom::Data(at)) {
                    Ok(data) => data,
                    // Holes up to the end.
                    Err(Errno::NXIO) => size,
                    // Not every file system knows.
                    Err(_) => at,
                })
            }
            Self::Archived(archive, inode, _) => {
                let found = archive.seek_data(inode, FileOffset(at)).map_err(Unread::Archive)?;
                Ok(found.map_or(size, |found| found.0))
            }
        }
    }

    /// Fills `out` from `at` on, as far as the file goes.
    pub(super) fn read_full(&self, out: &mut [u8], at: u64) -> Result<usize, Unread> {
        match self {
            Self::File(fd) | Self::Frozen(Frozen { fd, .. }) => Ok(read_full(fd, out, at)?),
            Self::Archived(archive, inode, _) => {
                // At most a block, of which one read has all.
                let read = archive.read(inode, FileOffset(at), out.len());
                let read = read.map_err(Unread::Archive)?;
                for (to, from) in out.iter_mut().zip(&read) {
                    *to = *from;
                }
                Ok(read.len())
            }
        }
    }
}
