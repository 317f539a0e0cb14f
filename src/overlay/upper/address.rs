//! Where one inode of the upper is reached, and the calls made on it there.
//!
//! Never an absolute path and never through a symbolic link: a link may point into our own mount,
//! and a call that followed it would wait for ourselves.

use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Statx, StatxFlags, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::super::error::{Error, Result};

/// What every `statx` asks: the classic fields and the birth time, which tells generations apart.
const STATX_FIELDS: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// Most values are a few bytes; larger ones cost a second call.
const SMALL_VALUE: usize = 256;

/// Where an inode of the upper is reached.
#[derive(Clone, Debug)]
pub(in super::super) enum Address {
    /// By its name in a directory.
    Name(Arc<OwnedFd>, OsString),
    /// By a descriptor (`O_PATH` will do), for inodes that have no name we know.
    Pinned(Arc<OwnedFd>),
    /// By a descriptor open for reading or writing, which takes the shortest way.
    Open(Arc<OwnedFd>),
}

impl Address {
    /// `name` in `dir`.
    pub(in super::super) fn at(dir: &Arc<OwnedFd>, name: &OsStr) -> Self {
        Self::Name(Arc::clone(dir), name.to_owned())
    }

    /// For messages.
    pub(in super::super) fn label(&self) -> String {
        match self {
            Self::Name(_, name) => name.to_string_lossy().into_owned(),
            Self::Pinned(_) | Self::Open(_) => "an unnamed inode".to_owned(),
        }
    }

    pub(in super::super) fn stat(&self) -> Result<Statx> {
        match self {
            Self::Name(dir, name) => stat_at(dir, name),
            Self::Pinned(fd) | Self::Open(fd) => stat_fd(fd),
        }
        .map_err(Error::sys("statx", self.label()))
    }

    /// Opens the inode. With a name, `O_NOFOLLOW` is added.
    pub(in super::super) fn open(&self, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        match self {
            Self::Name(dir, name) => {
                rustix::fs::openat(dir, name.as_os_str(), flags | OFlags::NOFOLLOW, Mode::empty())
            }
            Self::Pinned(fd) | Self::Open(fd) => {
                rustix::fs::open(proc_path(fd).as_slice(), flags, Mode::empty())
            }
        }
        .map_err(Error::sys("open", self.label()))
    }

    /// A descriptor that reaches the inode when its name is gone.
    pub(in super::super) fn pin(&self) -> Result<Arc<OwnedFd>> {
        match self {
            Self::Name(..) => self.open(OFlags::PATH).map(Arc::new),
            Self::Pinned(fd) | Self::Open(fd) => Ok(Arc::clone(fd)),
        }
    }

    /// Sets the permission bits. Not for symbolic links, which have none.
    pub(in super::super) fn chmod(&self, mode: u32) -> Result<()> {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        match self {
            Self::Open(fd) => rustix::fs::fchmod(fd, mode),
            // fchmodat would follow a link that has taken the name's place; a descriptor cannot.
            Self::Name(..) | Self::Pinned(_) => {
                rustix::fs::chmod(proc_path(&*self.pin()?).as_slice(), mode)
            }
        }
        .map_err(Error::sys("chmod", self.label()))
    }

    pub(in super::super) fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        match self {
            Self::Name(dir, name) => {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::chownat(dir, name.as_os_str(), uid, gid, flags)
            }
            Self::Pinned(fd) | Self::Open(fd) => {
                rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH)
            }
        }
        .map_err(Error::sys("chown", self.label()))
    }

    pub(in super::super) fn set_times(&self, times: &Timestamps) -> Result<()> {
        match self {
            Self::Name(dir, name) => {
                rustix::fs::utimensat(dir, name.as_os_str(), times, AtFlags::SYMLINK_NOFOLLOW)
            }
            Self::Pinned(fd) => rustix::fs::utimensat(
                rustix::fs::CWD,
                proc_path(fd).as_slice(),
                times,
                AtFlags::empty(),
            ),
            Self::Open(fd) => rustix::fs::futimens(fd, times),
        }
        .map_err(Error::sys("utimensat", self.label()))
    }

    /// Where a symbolic link points.
    pub(in super::super) fn read_link(&self) -> Result<Vec<u8>> {
        match self {
            Self::Name(dir, name) => rustix::fs::readlinkat(dir, name.as_os_str(), Vec::new()),
            Self::Pinned(fd) | Self::Open(fd) => rustix::fs::readlinkat(fd, c"", Vec::new()),
        }
        .map(|target| target.into_bytes())
        .map_err(Error::sys("readlink", self.label()))
    }

    /// Gives the inode one more name, `name` in `dir`.
    pub(in super::super) fn link_to(&self, dir: &OwnedFd, name: &OsStr) -> Result<()> {
        match self {
            Self::Name(from, old) => {
                rustix::fs::linkat(from, old.as_os_str(), dir, name, AtFlags::empty())
            }
            Self::Pinned(fd) | Self::Open(fd) => rustix::fs::linkat(
                rustix::fs::CWD,
                proc_path(fd).as_slice(),
                dir,
                name,
                AtFlags::SYMLINK_FOLLOW,
            ),
        }
        .map_err(Error::sys("link", name.to_string_lossy()))
    }

    /// The value of an extended attribute. `ENODATA` is the caller's business.
    pub(in super::super) fn get_xattr(&self, name: &CStr) -> Result<Vec<u8>, Errno> {
        let mut value = Vec::with_capacity(SMALL_VALUE);
        match self.get_xattr_into(name, &mut value) {
            Err(Errno::RANGE) => {}
            other => return other.map(|()| value),
        }
        // The largest value Linux knows is 64 KiB.
        value.reserve(1 << 16);
        self.get_xattr_into(name, &mut value).map(|()| value)
    }

    fn get_xattr_into(&self, name: &CStr, value: &mut Vec<u8>) -> Result<(), Errno> {
        match self {
            Self::Name(dir, file) => {
                rustix::fs::lgetxattr(proc_child(dir, file).as_slice(), name, spare_capacity(value))
            }
            Self::Pinned(fd) => {
                rustix::fs::getxattr(proc_path(fd).as_slice(), name, spare_capacity(value))
            }
            Self::Open(fd) => rustix::fs::fgetxattr(fd, name, spare_capacity(value)),
        }
        .map(drop)
    }

    /// The names of all extended attributes, each ended by a NUL.
    pub(in super::super) fn list_xattrs(&self) -> Result<Vec<u8>, Errno> {
        let mut names = Vec::with_capacity(SMALL_VALUE);
        loop {
            let answer = match self {
                Self::Name(dir, file) => rustix::fs::llistxattr(
                    proc_child(dir, file).as_slice(),
                    spare_capacity(&mut names),
                ),
                Self::Pinned(fd) => {
                    rustix::fs::listxattr(proc_path(fd).as_slice(), spare_capacity(&mut names))
                }
                Self::Open(fd) => rustix::fs::flistxattr(fd, spare_capacity(&mut names)),
            };
            match answer {
                Err(Errno::RANGE) if names.capacity() < 1 << 16 => names.reserve(1 << 16),
                other => return other.map(|_| names),
            }
        }
    }

    pub(in super::super) fn set_xattr(
        &self,
        name: &CStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<(), Errno> {
        match self {
            Self::Name(dir, file) => {
                rustix::fs::lsetxattr(proc_child(dir, file).as_slice(), name, value, flags)
            }
            Self::Pinned(fd) => rustix::fs::setxattr(proc_path(fd).as_slice(), name, value, flags),
            Self::Open(fd) => rustix::fs::fsetxattr(fd, name, value, flags),
        }
    }

    pub(in super::super) fn remove_xattr(&self, name: &CStr) -> Result<(), Errno> {
        match self {
            Self::Name(dir, file) => {
                rustix::fs::lremovexattr(proc_child(dir, file).as_slice(), name)
            }
            Self::Pinned(fd) => rustix::fs::removexattr(proc_path(fd).as_slice(), name),
            Self::Open(fd) => rustix::fs::fremovexattr(fd, name),
        }
    }
}

/// `statx` of `name` in `dir`, not following it.
pub(in super::super) fn stat_at(dir: &OwnedFd, name: &OsStr) -> Result<Statx, Errno> {
    rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, STATX_FIELDS)
}

/// `statx` of an open inode.
pub(in super::super) fn stat_fd(fd: &OwnedFd) -> Result<Statx, Errno> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, STATX_FIELDS)
}

/// The path by which the kernel reaches what `fd` has open. Not a link that could be followed
/// further: the kernel jumps straight to the inode, be it a symbolic link itself.
pub(super) fn proc_path(fd: &OwnedFd) -> Vec<u8> {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes()
}

/// The path of `name` in the directory `dir`. Before Linux 6.13 no xattr call takes a directory.
fn proc_child(dir: &OwnedFd, name: &OsStr) -> Vec<u8> {
    let mut path = proc_path(dir);
    path.push(b'/');
    path.extend_from_slice(name.as_bytes());
    path
}
