//! A directory beside the target, in which an archive is unpacked. It is renamed over the target when it is
//! whole, so that nobody ever sees half of it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::failure::{Code, Failure};
use crate::inode_ops::remove_tree;
use crate::inode_ops::{Directory, DirectoryId, Location};

/// Where `target` is, without symlinks, and the directory beside it in which this process would unpack it.
///
/// # Errors
/// Where the target is a symlink of another user, or what is above it cannot be looked at.
pub(crate) fn staging_path(target: &Path) -> io::Result<(PathBuf, PathBuf)> {
    let place = match Location::find(target) {
        // What is above is still to be made, and no symlink then.
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::path::absolute(target)?,
        place => place?.path(),
    };
    let staging = place.with_file_name(own_name(place.file_name().unwrap_or_default()));
    Ok((place, staging))
}

/// `.NAME.PID.thawfs`.
fn own_name(target: &OsStr) -> OsString {
    let mut name = OsString::from(".");
    name.push(target);
    name.push(format!(".{}.thawfs", std::process::id()));
    name
}

/// The directory that becomes the target. It is locked until then, and removed if it never does. Both are
/// found through the directory above them, which is held open, so that a path that changes leads nowhere else.
#[derive(Debug)]
pub(crate) struct Staging {
    target: Location,
    name: OsString,
    published: bool,
    /// Open, and locked.
    directory: OwnedFd,
}

impl Staging {
    /// Makes the directory for `target`, which must not exist or be empty.
    ///
    /// # Errors
    /// Where the target is something else, or none can be made beside it.
    pub(crate) fn create(target: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::io("unpack into", target, &error);
        let location = Location::find_or_make_above(target).map_err(failed)?;
        let is_empty = match location.open() {
            Ok(directory) => !directory.has_entries().map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(failed(error)),
        };
        if !is_empty {
            return Err(Failure::new(Code::Failed, format!("{} is not empty", target.display()))
                .hint("name a directory that is empty or does not exist"));
        }
        let name = own_name(location.name());
        let make = || {
            rustix::fs::mkdirat(location.above(), &name, Mode::RWXU)
                .map_err(|errno| failed(errno.into()))
        };
        make()?;
        let directory = loop {
            match lock_staging(location.above(), &name) {
                Ok(Some(locked)) => break locked,
                // Somebody looks whether it is abandoned.
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                // It was taken for that before it was locked.
                Err(error) if error.kind() == io::ErrorKind::NotFound => make()?,
                Err(error) => return Err(failed(error)),
            }
        };
        Ok(Self { target: location, name, published: false, directory })
    }

    /// Which directory it is.
    ///
    /// # Errors
    /// Where its file system does not answer.
    pub(crate) fn id(&self) -> io::Result<DirectoryId> {
        DirectoryId::of(&self.directory)
    }

    /// The directory, to be filled.
    pub(super) fn directory(&self) -> Result<OwnedFd, Failure> {
        let failed = |error| Failure::io("open", &self.target.path(), &error);
        self.directory.try_clone().map_err(failed)
    }

    /// Renames over the target, which at most is an empty directory.
    pub(super) fn publish(mut self) -> Result<(), Failure> {
        let above = self.target.above();
        rustix::fs::renameat(above, &self.name, above, self.target.name())
            .map_err(|error| Failure::io("put in place", &self.target.path(), &error.into()))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published {
            remove(self.target.above(), &self.name);
        }
    }
}

fn remove(above: &Directory, name: &OsStr) {
    if let Err(error) = remove_tree(above, name) {
        tracing::error!("cannot remove {}: {error}", above.path().join(name).display());
    }
}

/// Locks a staging directory; `None` where it is locked, or another one by the time it is.
fn lock_staging(above: &Directory, name: &OsStr) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(above, name, flags, Mode::empty())?;
    match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(None),
        locked => locked?,
    }
    let open = rustix::fs::fstat(&dir)?;
    let there = rustix::fs::statat(above, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(((open.st_dev, open.st_ino) == (there.st_dev, there.st_ino)).then_some(dir))
}
