//! What the system says of a file, and the system calls that fetch it.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, fgetxattr, flistxattr, fstat, lgetxattr, llistxattr, statat};
use rustix::io::Errno;

use super::error::Error;
use super::xattrs::Xattr;
use crate::types::{FileKind, Owner, Timestamp};

/// The longest that Linux lets a value, or a list of names, be.
const MAX_XATTR: usize = 64 << 10;

/// An open directory of the tree.
pub(super) struct Directory {
    pub(super) fd: OwnedFd,
    /// Below the root of the tree: empty for the root.
    pub(super) relative: PathBuf,
    /// As errors name it.
    pub(super) path: Arc<Path>,
    /// Whether it lies in a mount that shows other owners than it stores, and says those when asked.
    pub(super) has_stored_owners: bool,
}

impl Directory {
    /// One that is not known to have other owners than it shows.
    pub(super) fn new(fd: OwnedFd, relative: PathBuf, path: PathBuf) -> Self {
        Self { fd, relative, path: path.into(), has_stored_owners: false }
    }

    /// As [`child`] of its path.
    pub(super) fn child(&self, name: &[u8]) -> PathBuf {
        child(&self.path, name)
    }

    /// Puts the path and the call to what the system said.
    pub(super) fn error(&self, name: &[u8], call: &'static str) -> impl FnOnce(Errno) -> Failure {
        failed(self.child(name), call)
    }

    /// A path to something in it that the calls without an `at` variant take. Leads nowhere where
    /// `/proc` is not mounted.
    pub(super) fn proc_path(&self, name: &[u8]) -> Vec<u8> {
        let mut path = format!("/proc/self/fd/{}/", self.fd.as_raw_fd()).into_bytes();
        path.extend(name);
        path
    }
}

/// The path of an entry of `directory`, as errors name it; without a name its own.
pub(super) fn child(directory: &Path, name: &[u8]) -> PathBuf {
    if name.is_empty() {
        return directory.to_owned();
    }
    directory.join(OsStr::from_bytes(name))
}

/// Puts a path and a call to what the system said.
pub(super) fn failed(path: PathBuf, call: &'static str) -> impl FnOnce(Errno) -> Failure {
    move |errno| match errno {
        Errno::ACCESS | Errno::PERM => Failure::Denied(path),
        Errno::NOENT => Failure::Vanished,
        _ => Failure::Fatal(Error::io(&path, call, errno)),
    }
}

/// Why something of the tree is not packed.
pub(super) enum Failure {
    /// It is not ours to read.
    Denied(PathBuf),
    /// It was deleted since it was listed: as if it had been before.
    Vanished,
    /// Nothing can be packed any more.
    Fatal(Error),
}

/// The attributes of a file, a directory or whatever it is.
#[derive(Clone, Debug)]
pub(super) struct Stat {
    pub(super) kind: FileKind,
    /// Lower twelve bits of the mode.
    pub(super) permissions: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) nlink: u64,
    /// Device and inode number.
    pub(super) identity: (u64, u64),
    pub(super) rdev: u64,
    pub(super) version: Version,
}

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) size: u64,
    pub(super) mtime: Timestamp,
    pub(super) ctime: Timestamp,
}

impl Version {
    /// Whether the file has only become longer by `after`, as logs do all the time. What was read of
    /// it meanwhile is what it was at one time if it reads the same once more.
    pub(super) fn only_grew(&self, after: &Self) -> bool {
        after.size > self.size
    }
}

impl Stat {
    pub(super) fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        Self::new(&fstat(fd)?)
    }

    /// Of `name` itself, if it is a symbolic link.
    pub(super) fn at(directory: &Directory, name: &[u8]) -> Result<Self, Errno> {
        Self::new(&statat(&directory.fd, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// With the owner that is stored, for something in a mount that shows another.
    pub(super) fn owned_by(mut self, stored: Option<Owner>) -> Self {
        if let Some(owner) = stored {
            (self.uid, self.gid) = (owner.uid, owner.gid);
        }
        self
    }

    // The types of these fields differ between architectures.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
    fn new(stat: &rustix::fs::Stat) -> Result<Self, Errno> {
        let mode = u32::from(stat.st_mode);
        Ok(Self {
            kind: FileKind::from_mode(mode).ok_or(Errno::INVAL)?,
            permissions: (mode & 0o7777) as u16,
            uid: stat.st_uid,
            gid: stat.st_gid,
            nlink: stat.st_nlink as u64,
            identity: (stat.st_dev as u64, stat.st_ino as u64),
            rdev: stat.st_rdev as u64,
            version: Version {
                size: stat.st_size as u64,
                mtime: Timestamp {
                    seconds: stat.st_mtime as i64,
                    nanos: stat.st_mtime_nsec as u32,
                },
                ctime: Timestamp {
                    seconds: stat.st_ctime as i64,
                    nanos: stat.st_ctime_nsec as u32,
                },
            },
        })
    }
}

/// The extended attributes of a file.
#[derive(Default)]
pub(super) struct Xattrs {
    /// Those that the format can hold.
    pub(super) kept: Vec<Xattr>,
    /// The name of the first that it cannot.
    pub(super) dropped: Option<Vec<u8>>,
}

/// The attributes of an open file or directory.
pub(super) fn fd_xattrs(fd: BorrowedFd<'_>) -> Result<Xattrs, Errno> {
    xattrs(
        |out| flistxattr(fd, spare_capacity(out)),
        |name, out| fgetxattr(fd, name, spare_capacity(out)),
    )
}

impl Xattrs {
    /// Those with these names and values.
    pub(super) fn of(xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        let mut found = Self::default();
        for (name, value) in xattrs {
            match Xattr::new(&name, value) {
                Some(xattr) => found.kept.push(xattr),
                None => {
                    found.dropped.get_or_insert(name);
                }
            }
        }
        found
    }
}

/// The stored owner of a directory in a mount that shows another.
pub(super) fn fd_stored_owner(fd: BorrowedFd<'_>) -> Option<Owner> {
    let owner = fitting(|out| fgetxattr(fd, Owner::STORED, spare_capacity(out))).ok()?;
    Owner::parse(&owner)
}

/// One attribute of what `directory` has as `name`; `None` where there is none that can be had.
pub(super) fn name_xattr(directory: &Directory, name: &[u8], xattr: &str) -> Option<Vec<u8>> {
    let path = directory.proc_path(name);
    fitting(|out| lgetxattr(path.as_slice(), xattr, spare_capacity(out))).ok()
}

/// The stored owner of what `directory` has as `name`, where it has been found to have such.
pub(super) fn name_stored_owner(
    directory: &Directory,
    name: &[u8],
) -> Result<Option<Owner>, Errno> {
    if !directory.has_stored_owners {
        return Ok(None);
    }
    let path = directory.proc_path(name);
    match fitting(|out| lgetxattr(path.as_slice(), Owner::STORED, spare_capacity(out))) {
        Ok(owner) => Ok(Owner::parse(&owner)),
        // Another file system is mounted on it.
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The attributes of something that cannot be opened, or not without effects.
pub(super) fn name_xattrs(directory: &Directory, name: &[u8]) -> Result<Xattrs, Errno> {
    let path = directory.proc_path(name);
    let path = path.as_slice();
    xattrs(
        |out| llistxattr(path, spare_capacity(out)),
        |name, out| lgetxattr(path, name, spare_capacity(out)),
    )
}

fn xattrs(
    list: impl Fn(&mut Vec<u8>) -> Result<usize, Errno>,
    get: impl Fn(&[u8], &mut Vec<u8>) -> Result<usize, Errno>,
) -> Result<Xattrs, Errno> {
    let mut found = Xattrs::default();
    let names = match fitting(&list) {
        Err(Errno::OPNOTSUPP) => return Ok(found),
        names => names?,
    };
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if !Xattr::is_storable(name) {
            found.dropped.get_or_insert_with(|| name.to_vec());
            continue;
        }
        match fitting(|out| get(name, out)) {
            Ok(value) => found.kept.extend(Xattr::new(name, value)),
            // It was removed meanwhile.
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(found)
}

/// Calls again with more room where little is not enough.
fn fitting(call: impl Fn(&mut Vec<u8>) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut out = Vec::with_capacity(256);
    match call(&mut out) {
        Err(Errno::RANGE) => {
            out = Vec::with_capacity(MAX_XATTR);
            call(&mut out)?;
        }
        result => {
            result?;
        }
    }
    Ok(out)
}
