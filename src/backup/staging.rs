//! The directory beside a target in which that is made, to take its place in one step.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::failure::{Code, Failure};

/// The directory beside `target` in which it is unpacked by this process. Locked meanwhile; whoever finds
/// it unlocked may remove it.
///
/// # Errors
/// Where the working directory is gone, from which a relative path counts.
pub fn staging_path(target: &Path) -> io::Result<PathBuf> {
    let target = std::path::absolute(target)?;
    Ok(target.with_file_name(staging_name(&target, &std::process::id().to_string())))
}

/// `.NAME.PID.thawfs`.
fn staging_name(target: &Path, pid: &str) -> OsString {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".{pid}.thawfs"));
    name
}

/// The directory that becomes the target; removed again unless it does.
pub(super) struct Staging {
    path: PathBuf,
    published: bool,
    _lock: OwnedFd,
}

impl Staging {
    pub(super) fn create(target: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::io("unpack into", target, &error);
        let path = staging_path(target).map_err(failed)?;
        let target = std::path::absolute(target).map_err(failed)?;
        let is_empty = match std::fs::read_dir(&target) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(failed(error)),
        };
        if !is_empty {
            return Err(Failure::new(Code::Failed, format!("{} is not empty", target.display()))
                .hint("name a directory that is empty or does not exist"));
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
            remove_abandoned(parent, &target);
        }
        let make = || rustix::fs::mkdir(&path, Mode::RWXU).map_err(|errno| failed(errno.into()));
        make()?;
        loop {
            match lock_staging(&path) {
                Ok(Some(lock)) => return Ok(Self { path, published: false, _lock: lock }),
                // Somebody looks whether it is abandoned.
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                // It was taken for that before it was locked.
                Err(error) if error.kind() == io::ErrorKind::NotFound => make()?,
                Err(error) => return Err(failed(error)),
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Renames over the target, which at most is an empty directory.
    pub(super) fn publish(mut self, target: &Path) -> Result<(), Failure> {
        std::fs::rename(&self.path, target)
            .map_err(|error| Failure::io("put in place", target, &error))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            log::error!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Locks a staging directory; `None` where it is locked, or another one by the time it is.
fn lock_staging(path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty())?;
    match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(None),
        locked => locked?,
    }
    let (open, there) = (rustix::fs::fstat(&dir)?, rustix::fs::lstat(path)?);
    Ok(((open.st_dev, open.st_ino) == (there.st_dev, there.st_ino)).then_some(dir))
}

/// Removes what extracts to `target` have left in `parent` that were killed.
fn remove_abandoned(parent: &Path, target: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_suffix(".thawfs")?.rsplit('.').next());
        let Some(pid) = pid.filter(|pid| pid.parse::<u32>().is_ok()) else { continue };
        if name != staging_name(target, pid) {
            continue;
        }
        let path = entry.path();
        if let Ok(Some(_lock)) = lock_staging(&path)
            && let Err(error) = std::fs::remove_dir_all(&path)
        {
            log::warn!("cannot remove {}: {error}", path.display());
        }
    }
}
