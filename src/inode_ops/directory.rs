//! Directories that somebody names, found once and then used by descriptor.
//!
//! A path says where something is at the moment it is looked at, and others may write to the directories
//! that it leads through. So a last component that is a symlink is followed only where it is this user's
//! or root's: one of anybody else leads where that person wants. And what was found is what is used,
//! whatever is at its path by then.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::proc_path;

/// As many symlinks as the kernel follows for one path.
const MAX_LINKS: usize = 40;

/// An open directory, and where it was found.
#[derive(Debug)]
pub(crate) struct Directory {
    file: OwnedFd,
    path: PathBuf,
}

/// Which directory one is, so that another process can tell whether it found the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DirectoryId {
    device: u64,
    inode: u64,
    /// When it was made, in seconds and nanoseconds, where its file system knows: numbers are used again.
    born: Option<(i64, u32)>,
}

/// A name in an open directory, where there may be something or not; no symlink when it was found.
#[derive(Debug)]
pub(crate) struct Location {
    above: Directory,
    name: OsString,
}

impl Directory {
    /// Opens what `path` leads to.
    ///
    /// # Errors
    /// `PermissionDenied` where the last component is a symlink of another user, and what the kernel
    /// says.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        match Location::find(path) {
            Ok(location) => location.open(),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Self::from(CWD, "/"),
            Err(error) => Err(error),
        }
    }

    /// Opens the directory at `path`, which [`Directory::path`] of an earlier one gave, and insists that
    /// it is the same still.
    ///
    /// # Errors
    /// `StaleNetworkFileHandle` where it is not, and what the kernel says.
    pub(crate) fn open_again(path: &Path, id: Option<DirectoryId>) -> io::Result<Self> {
        let again = Self::from(CWD, path)?;
        // A symlink put anywhere into the path makes it lead elsewhere.
        let same = match id {
            Some(id) => again.id()? == id,
            None => true,
        };
        if again.path != path || !same {
            let message = "something else was put in its place meanwhile";
            return Err(io::Error::new(io::ErrorKind::StaleNetworkFileHandle, message));
        }
        Ok(again)
    }

    fn from(at: impl AsFd, path: impl AsRef<Path>) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self::of(rustix::fs::openat(at, path.as_ref(), flags, Mode::empty())?)
    }

    fn of(file: OwnedFd) -> io::Result<Self> {
        let link = rustix::fs::readlink(proc_path(&file), Vec::new())?;
        let path = PathBuf::from(OsString::from_vec(link.into_bytes()));
        Ok(Self { file, path })
    }

    /// Where it was when it was opened, without symlinks.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A path to it that stays right, for calls that take no descriptor. Of this process alone, and for
    /// as long as this is not dropped.
    pub(crate) fn proc_path(&self) -> PathBuf {
        proc_path(&self.file)
    }

    /// Which one it is.
    ///
    /// # Errors
    /// Where its file system does not answer.
    pub(crate) fn id(&self) -> io::Result<DirectoryId> {
        DirectoryId::of(&self.file)
    }

    /// Whether nobody but this user and root could have made it.
    ///
    /// # Errors
    /// Where its file system does not answer.
    pub(crate) fn is_trusted(&self) -> io::Result<bool> {
        Ok(is_trusted(rustix::fs::fstat(&self.file)?.st_uid))
    }

    /// Opens it for reading.
    ///
    /// # Errors
    /// Where it may not be read.
    pub(crate) fn open_to_read(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.file, ".", flags, Mode::empty())?)
    }

    /// Whether something is in it.
    ///
    /// # Errors
    /// Where it may not be read.
    pub(crate) fn has_entries(&self) -> io::Result<bool> {
        for entry in rustix::fs::Dir::new(self.open_to_read()?)? {
            if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The place `name` in it, where there must be no symlink.
    pub(crate) fn into_location(self, name: impl Into<OsString>) -> Location {
        Location { above: self, name: name.into() }
    }
}

impl DirectoryId {
    /// That of an open directory.
    ///
    /// # Errors
    /// Where its file system does not answer.
    pub(crate) fn of(directory: impl AsFd) -> io::Result<Self> {
        let stat = rustix::fs::statx(directory, c"", AtFlags::EMPTY_PATH, StatxFlags::BTIME)?;
        let born = stat.stx_btime;
        let knows = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
        Ok(Self {
            device: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            born: knows.then_some((born.tv_sec, born.tv_nsec)),
        })
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Location {
    /// Finds where `path` leads. What is above must be there.
    ///
    /// # Errors
    /// `PermissionDenied` where the last component is a symlink of another user, `InvalidInput` for the
    /// root, which lies nowhere, and what the kernel says.
    pub(crate) fn find(path: &Path) -> io::Result<Self> {
        let mut found = Self::split(CWD, &std::path::absolute(path)?)?;
        for _ in 0..MAX_LINKS {
            let Some(target) = found.read_trusted_link()? else { return Ok(found) };
            found = Self::split(&found.above, &target)?;
        }
        Err(Errno::LOOP.into())
    }

    /// As [`Self::find`], with what is above made where it is missing.
    ///
    /// # Errors
    /// As [`Self::find`], and where it cannot be made.
    pub(crate) fn find_or_make_above(path: &Path) -> io::Result<Self> {
        if let Some(above) = std::path::absolute(path)?.parent() {
            std::fs::create_dir_all(above)?;
        }
        Self::find(path)
    }

    /// The last component of `path` on its own, the others followed.
    fn split(at: impl AsFd, path: &Path) -> io::Result<Self> {
        let (above, name) = match (path.parent(), path.file_name()) {
            (Some(above), Some(name)) => {
                let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
                (Directory::from(at, above)?, name.to_owned())
            }
            // It ends in `..` or is the root: no symlink, but what is it called?
            _ => {
                let real = Directory::from(at, path)?.path;
                let (Some(above), Some(name)) = (real.parent(), real.file_name()) else {
                    let message = "it is the root directory";
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
                };
                (Directory::from(CWD, above)?, name.to_owned())
            }
        };
        Ok(Self { above, name })
    }

    /// What the symlink here says, if there is one.
    fn read_trusted_link(&self) -> io::Result<Option<PathBuf>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |flags| rustix::fs::openat(&self.above, &self.name, flags, Mode::empty());
        // A directory first: one of a dead mount can be opened, but tells nothing about itself.
        match open(flags | OFlags::DIRECTORY) {
            Ok(_) | Err(Errno::NOENT) => return Ok(None),
            Err(Errno::NOTDIR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let link = open(flags)?;
        let stat = rustix::fs::fstat(&link)?;
        if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_symlink() {
            return Ok(None);
        }
        if !is_trusted(stat.st_uid) {
            let message = "it is a symlink of another user; name what it leads to";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        let target = rustix::fs::readlinkat(&link, c"", Vec::new())?;
        Ok(Some(OsString::from_vec(target.into_bytes()).into()))
    }

    /// The directory that it is in.
    pub(crate) fn above(&self) -> &Directory {
        &self.above
    }

    /// What it is called there.
    pub(crate) fn name(&self) -> &OsStr {
        &self.name
    }

    /// Where it is, without symlinks.
    pub(crate) fn path(&self) -> PathBuf {
        self.above.path.join(&self.name)
    }

    /// A path to it that stays right, as [`Directory::proc_path`].
    pub(crate) fn proc_path(&self) -> PathBuf {
        self.above.proc_path().join(&self.name)
    }

    /// Opens the directory that is here.
    ///
    /// # Errors
    /// What the kernel says, `NotADirectory` for a symlink that has come here since.
    pub(crate) fn open(&self) -> io::Result<Directory> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Directory::of(rustix::fs::openat(&self.above, &self.name, flags, Mode::empty())?)
    }

    /// Opens the directory that is here, made with `mode` if there is none.
    ///
    /// # Errors
    /// As [`Self::open`], and where it cannot be made.
    pub(crate) fn open_or_make(&self, mode: u32) -> io::Result<Directory> {
        match rustix::fs::mkdirat(&self.above, &self.name, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(Errno::EXIST) => self.open(),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Whether what belongs to user `uid` may be followed. Root needs no links to have its way.
fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        (dir, real)
    }

    #[test]
    fn own_links_are_followed_and_others_are_not() {
        let (_dir, at) = scratch();
        std::fs::create_dir_all(at.join("real/inner")).unwrap();
        symlink("real", at.join("one")).unwrap();
        symlink(at.join("one"), at.join("two")).unwrap();
        symlink("real/inner/..", at.join("dots")).unwrap();
        symlink("nowhere", at.join("dangling")).unwrap();
        symlink("round", at.join("round")).unwrap();
        for name in ["real", "real/", "one", "one/.", "two//", "dots", "real/inner/.."] {
            assert_eq!(Directory::open(&at.join(name)).unwrap().path(), at.join("real"), "{name}");
        }
        assert_eq!(Location::find(&at.join("dangling")).unwrap().path(), at.join("nowhere"));
        assert_eq!(Directory::open(Path::new("/")).unwrap().path(), Path::new("/"));
        let error = |name: &str| Directory::open(&at.join(name)).unwrap_err().raw_os_error();
        assert_eq!(error("round"), Some(libc::ELOOP));
        assert_eq!(error("missing/below"), Some(libc::ENOENT));
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED the rest: it needs root to become somebody else");
            return;
        }
        std::os::unix::fs::lchown(at.join("one"), Some(7), None).unwrap();
        for name in ["one", "one/", "one/.", "two"] {
            let error = Location::find(&at.join(name)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{name}");
        }
        // Not its last component.
        assert!(Directory::open(&at.join("one/inner")).is_ok());
    }

    #[test]
    fn another_directory_in_its_place_is_noticed() {
        let (_dir, at) = scratch();
        std::fs::create_dir_all(at.join("above/it")).unwrap();
        let it = Directory::open(&at.join("above/it")).unwrap();
        let id = it.id().unwrap();
        assert!(Directory::open_again(it.path(), Some(id)).is_ok());
        let swapped = || Directory::open_again(it.path(), Some(id)).unwrap_err().kind();
        std::fs::rename(at.join("above/it"), at.join("above/was")).unwrap();
        std::fs::create_dir(at.join("above/it")).unwrap();
        assert_eq!(swapped(), io::ErrorKind::StaleNetworkFileHandle);
        // The right one, through a link.
        std::fs::remove_dir(at.join("above/it")).unwrap();
        symlink("was", at.join("above/it")).unwrap();
        assert_eq!(swapped(), io::ErrorKind::StaleNetworkFileHandle);
        std::fs::remove_file(at.join("above/it")).unwrap();
        std::fs::rename(at.join("above/was"), at.join("above/it")).unwrap();
        assert!(Directory::open_again(it.path(), Some(id)).is_ok());
        std::fs::rename(at.join("above"), at.join("moved")).unwrap();
        symlink("moved", at.join("above")).unwrap();
        assert_eq!(swapped(), io::ErrorKind::StaleNetworkFileHandle);
    }
}
