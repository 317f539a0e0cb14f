//! Where an inode is reached, and the calls on it there.

use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Statx, StatxFlags, StatxTimestamp, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::{Errno, retry_on_intr};

use super::{Result, call, proc_path};

/// What every `statx` asks: the classic fields and the birth time, which tells generations apart.
const STATX_FIELDS: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// Most values are a few bytes; larger ones cost a second call.
const SMALL_VALUE: usize = 256;

/// The largest value, or list of names, of extended attributes that Linux knows.
const LARGEST_VALUE: usize = 1 << 16;

/// Where an inode is reached.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    /// By its name in a directory.
    Name(Arc<OwnedFd>, OsString),
    /// By a descriptor (`O_PATH` will do), for inodes that have no name we know.
    Pinned(Arc<OwnedFd>),
    /// By a descriptor open for reading or writing, which takes the shortest way.
    Open(Arc<OwnedFd>),
}

impl Address {
    /// `name` in `dir`.
    pub(crate) fn at(dir: &Arc<OwnedFd>, name: &OsStr) -> Self {
        Self::Name(Arc::clone(dir), name.to_owned())
    }

    /// For messages.
    pub(crate) fn label(&self) -> String {
        match self {
            Self::Name(_, name) => name.to_string_lossy().into_owned(),
            Self::Pinned(_) | Self::Open(_) => "an unnamed inode".to_owned(),
        }
    }

    fn call<T>(&self, name: &'static str, make: impl FnMut() -> Result<T, Errno>) -> Result<T> {
        call(name, || self.label(), make)
    }

    pub(crate) fn stat(&self) -> Result<Statx> {
        self.call("statx", || match self {
            Self::Name(dir, name) => stat_at(dir, name),
            Self::Pinned(fd) | Self::Open(fd) => stat_fd(fd),
        })
    }

    /// Opens the inode. With a name, `O_NOFOLLOW` is added.
    pub(crate) fn open(&self, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        self.call("open", || match self {
            Self::Name(dir, name) => {
                rustix::fs::openat(dir, name.as_os_str(), flags | OFlags::NOFOLLOW, Mode::empty())
            }
            Self::Pinned(fd) | Self::Open(fd) => {
                rustix::fs::open(proc_path(fd), flags, Mode::empty())
            }
        })
    }

    /// A descriptor that reaches the inode when its name is gone.
    pub(crate) fn pin(&self) -> Result<Arc<OwnedFd>> {
        match self {
            Self::Name(..) => self.open(OFlags::PATH).map(Arc::new),
            Self::Pinned(fd) | Self::Open(fd) => Ok(Arc::clone(fd)),
        }
    }

    /// Sets the permission bits. Not for symbolic links, which have none.
    pub(crate) fn chmod(&self, mode: u32) -> Result<()> {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        match self {
            Self::Open(fd) => self.call("chmod", || rustix::fs::fchmod(fd, mode)),
            // fchmodat would follow a link that has taken the name's place; a descriptor cannot.
            Self::Name(..) | Self::Pinned(_) => {
                let pin = self.pin()?;
                self.call("chmod", || rustix::fs::chmod(proc_path(&*pin), mode))
            }
        }
    }

    pub(crate) fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        self.call("chown", || match self {
            Self::Name(dir, name) => {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::chownat(dir, name.as_os_str(), uid, gid, flags)
            }
            Self::Pinned(fd) | Self::Open(fd) => {
                rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH)
            }
        })
    }

    pub(crate) fn set_times(&self, times: &Timestamps) -> Result<()> {
        self.call("utimensat", || match self {
            Self::Name(dir, name) => {
                rustix::fs::utimensat(dir, name.as_os_str(), times, AtFlags::SYMLINK_NOFOLLOW)
            }
            Self::Pinned(fd) => rustix::fs::utimensat(CWD, proc_path(fd), times, AtFlags::empty()),
            Self::Open(fd) => rustix::fs::futimens(fd, times),
        })
    }

    /// Where a symbolic link points.
    pub(crate) fn read_link(&self) -> Result<Vec<u8>> {
        self.call("readlink", || match self {
            Self::Name(dir, name) => rustix::fs::readlinkat(dir, name.as_os_str(), Vec::new()),
            Self::Pinned(fd) | Self::Open(fd) => rustix::fs::readlinkat(fd, c"", Vec::new()),
        })
        .map(|target| target.into_bytes())
    }

    /// Gives the inode one more name, `name` in `dir`.
    pub(crate) fn link_to(&self, dir: &OwnedFd, name: &OsStr) -> Result<()> {
        call(
            "link",
            || name.to_string_lossy().into_owned(),
            || match self {
                Self::Name(from, old) => {
                    rustix::fs::linkat(from, old.as_os_str(), dir, name, AtFlags::empty())
                }
                Self::Pinned(fd) | Self::Open(fd) => {
                    rustix::fs::linkat(CWD, proc_path(fd), dir, name, AtFlags::SYMLINK_FOLLOW)
                }
            },
        )
    }

    /// The value of an extended attribute. `ENODATA` is the caller's business.
    pub(crate) fn get_xattr(&self, name: &CStr) -> Result<Vec<u8>, Errno> {
        self.read_sized(|value| match self {
            Self::Name(dir, file) => {
                rustix::fs::lgetxattr(proc_child(dir, file), name, spare_capacity(value))
            }
            Self::Pinned(fd) => rustix::fs::getxattr(proc_path(fd), name, spare_capacity(value)),
            Self::Open(fd) => rustix::fs::fgetxattr(fd, name, spare_capacity(value)),
        })
    }

    /// The names of all extended attributes, each ended by a NUL.
    pub(crate) fn list_xattrs(&self) -> Result<Vec<u8>, Errno> {
        self.read_sized(|names| match self {
            Self::Name(dir, file) => {
                rustix::fs::llistxattr(proc_child(dir, file), spare_capacity(names))
            }
            Self::Pinned(fd) => rustix::fs::listxattr(proc_path(fd), spare_capacity(names)),
            Self::Open(fd) => rustix::fs::flistxattr(fd, spare_capacity(names)),
        })
    }

    /// What `read` puts into a small buffer or, if that does not do, into the largest.
    fn read_sized(
        &self,
        read: impl Fn(&mut Vec<u8>) -> Result<usize, Errno>,
    ) -> Result<Vec<u8>, Errno> {
        let mut buffer = Vec::with_capacity(SMALL_VALUE);
        match retry_on_intr(|| read(&mut buffer)) {
            Err(Errno::RANGE) => {}
            other => return other.map(|_| buffer),
        }
        buffer.reserve(LARGEST_VALUE);
        retry_on_intr(|| read(&mut buffer)).map(|_| buffer)
    }

    pub(crate) fn set_xattr(
        &self,
        name: &CStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<(), Errno> {
        retry_on_intr(|| match self {
            Self::Name(dir, file) => {
                rustix::fs::lsetxattr(proc_child(dir, file), name, value, flags)
            }
            Self::Pinned(fd) => rustix::fs::setxattr(proc_path(fd), name, value, flags),
            Self::Open(fd) => rustix::fs::fsetxattr(fd, name, value, flags),
        })
    }

    pub(crate) fn remove_xattr(&self, name: &CStr) -> Result<(), Errno> {
        retry_on_intr(|| match self {
            Self::Name(dir, file) => rustix::fs::lremovexattr(proc_child(dir, file), name),
            Self::Pinned(fd) => rustix::fs::removexattr(proc_path(fd), name),
            Self::Open(fd) => rustix::fs::fremovexattr(fd, name),
        })
    }
}

/// `statx` of `name` in `dir`, not following it.
pub(crate) fn stat_at(dir: &OwnedFd, name: &OsStr) -> Result<Statx, Errno> {
    rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, STATX_FIELDS)
}

/// `statx` of an open inode.
pub(crate) fn stat_fd(fd: &OwnedFd) -> Result<Statx, Errno> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, STATX_FIELDS)
}

/// The times of an inode, to set them again.
pub(crate) fn times_of(stat: &Statx) -> Timestamps {
    let time = |t: StatxTimestamp| Timespec { tv_sec: t.tv_sec, tv_nsec: t.tv_nsec.into() };
    Timestamps { last_access: time(stat.stx_atime), last_modification: time(stat.stx_mtime) }
}

/// The path of `name` in the directory `dir`. Before Linux 6.13 no call on attributes takes a directory.
fn proc_child(dir: &OwnedFd, name: &OsStr) -> PathBuf {
    proc_path(dir).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_whole_by_any_way_to_the_inode() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), b"").unwrap();
        let above: Arc<OwnedFd> = Arc::new(std::fs::File::open(dir.path()).unwrap().into());
        let named = Address::at(&above, OsStr::new("file"));
        let pinned = Address::Pinned(named.pin().unwrap());
        let open = std::fs::File::open(dir.path().join("file")).unwrap();
        let open = Address::Open(Arc::new(open.into()));
        for len in [0, 1, SMALL_VALUE - 1, SMALL_VALUE, SMALL_VALUE + 1, 1000, 3000] {
            let value: Vec<u8> = (0..len).map(|n| n as u8).collect();
            named.set_xattr(c"user.value", &value, XattrFlags::empty()).unwrap();
            for address in [&named, &pinned, &open] {
                assert_eq!(address.get_xattr(c"user.value").unwrap(), value, "{len}");
            }
        }
    }
}
