//! Renames that leave a whiteout behind, where the file system below does not do both in one step.
//!
//! What is renamed is noted before and the note removed after: a server that finds one makes the whiteout
//! that its predecessor did not get to. The note is a symbolic link, which is made with its contents or
//! not at all; where it leads is the path, from the root of the upper, of the name that is to be hidden.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;

use super::super::error::{Error, Result};
use super::open::Upper;
use crate::inode_ops::{Address, stat_at};

/// The note. Renames are made one at a time.
pub(super) const NOTE: &str = "renaming";

impl Upper {
    /// Notes that the name at `path` is about to be renamed and hidden.
    ///
    /// # Errors
    /// `EXDEV` where the path is too long for a note: who renames copies then.
    pub(in super::super) fn note_renaming(&self, path: &[u8]) -> Result<()> {
        let note = || rustix::fs::symlinkat(OsStr::from_bytes(path), &self.work, NOTE);
        let noted = match note() {
            // One that could not be acted on, or not removed.
            Err(Errno::EXIST) => self.finish_renaming().map(|()| note())?,
            noted => noted,
        };
        match noted {
            Err(Errno::NAMETOOLONG) => Err(Errno::XDEV.into()),
            noted => noted.map_err(Error::sys("symlink", "a note of a rename")),
        }
    }

    /// Removes the note.
    pub(in super::super) fn renamed(&self) {
        if let Err(errno) = rustix::fs::unlinkat(&self.work, NOTE, AtFlags::empty()) {
            // Found again, it says of a name that is not there any more that it is hidden, which is so.
            tracing::warn!("a note of a rename stays: {errno}");
        }
    }

    /// Does what is left of a rename that a server before this one was killed over.
    pub(super) fn finish_renaming(&self) -> Result<()> {
        let path = match rustix::fs::readlinkat(&self.work, NOTE, Vec::new()) {
            Ok(path) => path.into_bytes(),
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(Error::sys("readlink", "a note of a rename")(errno)),
        };
        let mut names: Vec<_> = path.split(|byte| *byte == b'/').map(OsStr::from_bytes).collect();
        if let (Some(name), Some(dir)) = (names.pop(), self.find(&names)?)
            && stat_at(&dir, name).err() == Some(Errno::NOENT)
        {
            self.mark_whiteouts(&dir)?;
            self.link_whiteout(&dir, name)?;
        }
        self.renamed();
        Ok(())
    }

    fn find(&self, names: &[&OsStr]) -> Result<Option<Arc<OwnedFd>>> {
        let mut dir = self.root();
        for name in names {
            match Address::at(&dir, name).open(OFlags::PATH | OFlags::DIRECTORY) {
                Ok(below) => dir = Arc::new(below),
                Err(error) if error.errno == Errno::NOENT => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(dir))
    }
}
