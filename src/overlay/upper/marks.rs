//! The extended attributes by which an overlay remembers things on the upper's inodes.
//!
//! Names and values are those of kernel overlayfs (`Documentation/filesystems/overlayfs.rst`):
//! `trusted.overlay.*`, or `user.overlay.*` where the server may not write `trusted.*`. Some are
//! our own, below `overlay.thawfs.`, where the kernel hides and ignores them.

use std::ffi::CStr;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::super::error::{Error, Result};
use crate::inode_ops::Address;
use crate::types::FileKind;

/// Something remembered on an inode of the upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Mark {
    /// `y` on a directory that hides the lower one; `x` on one that may hold whiteouts that are files,
    /// and on the root of an upper in which such directories may be.
    Opaque,
    /// On a directory or metacopy: the path of its lower, from the root if it begins with `/`.
    Redirect,
    /// The kernel's handle of the lower inode that this one was copied from.
    Origin,
    /// On a regular file whose data is still the lower's.
    Metacopy,
    /// `y` on a directory that may hold inodes with an origin.
    Impure,
    /// On an entry of the index: merged names relative to the upper's (`U+1`) or lower's (`L-1`).
    Nlink,
    /// On an empty regular file that is a whiteout.
    Whiteout,
    /// Ours: which lower inode this one was copied from.
    Record,
    /// Ours: the owner that the inode could not be given, as `UID:GID`.
    Owner,
    /// Ours: a device that a program in the mount made as 0/0, which would be a whiteout.
    NullDevice,
    /// Ours, on a directory: the `st_ctime` to show, and the `st_mtime` with which it holds.
    Ctime,
    /// Ours, on a directory: its number, where the file system below has none that lasts.
    Number,
    /// Ours, on the upper's root: the archive that the upper belongs to.
    Archive,
    /// Ours, on the upper's root and on the index directory: that the two belong together.
    Index,
    /// Ours, on the upper's root while files come to it from the layer below that the kernel writes to: that layer may have
    /// the very inodes, and not yet copies of them.
    Carrying,
}

/// Which attribute names the upper's marks have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Namespace {
    /// `trusted.overlay.`, for root.
    Trusted,
    /// `user.overlay.`, for everyone else.
    User,
}

const TRUSTED: &[u8] = b"trusted.overlay.";
const USER: &[u8] = b"user.overlay.";

impl Namespace {
    pub(super) const ALL: [Self; 2] = [Self::Trusted, Self::User];

    /// That of the marks on `root`, the root of an upper that has been used, by us or by kernel overlayfs.
    pub(in super::super) fn of(root: &Address) -> Result<Option<Self>> {
        for namespace in Self::ALL {
            for mark in [Mark::Archive, Mark::Opaque, Mark::Impure, Mark::Origin] {
                if namespace.get(root, mark)?.is_some() {
                    return Ok(Some(namespace));
                }
            }
        }
        Ok(None)
    }

    /// Where our own marks of a file of `kind` are: no symbolic link or special file can have `user.*`
    /// attributes, but root may give it others. They are none of the kernel's then.
    pub(in super::super) const fn for_kind(self, kind: FileKind) -> Self {
        match kind {
            FileKind::Regular | FileKind::Directory => self,
            _ => Self::Trusted,
        }
    }

    /// Beginnings of names that are not a program's to give.
    pub(in super::super) const fn reserved(self) -> &'static [&'static [u8]] {
        match self {
            Self::Trusted => &[TRUSTED],
            Self::User => &[USER, TRUSTED],
        }
    }

    /// What the names of all marks begin with.
    pub(in super::super) const fn prefix(self) -> &'static [u8] {
        match self {
            Self::Trusted => TRUSTED,
            Self::User => USER,
        }
    }

    const fn name(self, mark: Mark) -> &'static CStr {
        match (self, mark) {
            (Self::Trusted, Mark::Opaque) => c"trusted.overlay.opaque",
            (Self::Trusted, Mark::Redirect) => c"trusted.overlay.redirect",
            (Self::Trusted, Mark::Origin) => c"trusted.overlay.origin",
            (Self::Trusted, Mark::Metacopy) => c"trusted.overlay.metacopy",
            (Self::Trusted, Mark::Impure) => c"trusted.overlay.impure",
            (Self::Trusted, Mark::Nlink) => c"trusted.overlay.nlink",
            (Self::Trusted, Mark::Whiteout) => c"trusted.overlay.whiteout",
            (Self::Trusted, Mark::Record) => c"trusted.overlay.thawfs.origin",
            (Self::Trusted, Mark::Owner) => c"trusted.overlay.thawfs.owner",
            (Self::Trusted, Mark::NullDevice) => c"trusted.overlay.thawfs.null_device",
            (Self::Trusted, Mark::Ctime) => c"trusted.overlay.thawfs.ctime",
            (Self::Trusted, Mark::Number) => c"trusted.overlay.thawfs.number",
            (Self::Trusted, Mark::Archive) => c"trusted.overlay.thawfs.archive",
            (Self::Trusted, Mark::Index) => c"trusted.overlay.thawfs.index",
            (Self::Trusted, Mark::Carrying) => c"trusted.overlay.thawfs.carrying",
            (Self::User, Mark::Opaque) => c"user.overlay.opaque",
            (Self::User, Mark::Redirect) => c"user.overlay.redirect",
            (Self::User, Mark::Origin) => c"user.overlay.origin",
            (Self::User, Mark::Metacopy) => c"user.overlay.metacopy",
            (Self::User, Mark::Impure) => c"user.overlay.impure",
            (Self::User, Mark::Nlink) => c"user.overlay.nlink",
            (Self::User, Mark::Whiteout) => c"user.overlay.whiteout",
            (Self::User, Mark::Record) => c"user.overlay.thawfs.origin",
            (Self::User, Mark::Owner) => c"user.overlay.thawfs.owner",
            (Self::User, Mark::NullDevice) => c"user.overlay.thawfs.null_device",
            (Self::User, Mark::Ctime) => c"user.overlay.thawfs.ctime",
            (Self::User, Mark::Number) => c"user.overlay.thawfs.number",
            (Self::User, Mark::Archive) => c"user.overlay.thawfs.archive",
            (Self::User, Mark::Index) => c"user.overlay.thawfs.index",
            (Self::User, Mark::Carrying) => c"user.overlay.thawfs.carrying",
        }
    }

    /// The value of `mark` on an inode, if it has that mark.
    pub(in super::super) fn get(self, inode: &Address, mark: Mark) -> Result<Option<Vec<u8>>> {
        match with_access(inode, || inode.get_xattr(self.name(mark))) {
            Ok(value) => Ok(Some(value)),
            // Symbolic links and special files cannot have user.* attributes.
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Ok(None),
            Err(errno) => Err(Error::sys("getxattr", inode.label())(errno)),
        }
    }

    pub(in super::super) fn set(self, inode: &Address, mark: Mark, value: &[u8]) -> Result<()> {
        with_access(inode, || inode.set_xattr(self.name(mark), value, XattrFlags::empty()))
            .map_err(Error::sys("setxattr", inode.label()))
    }

    /// As [`Self::set`] on a file of `kind`, for marks that can be done without: where only root could
    /// set them, or where a file has attributes enough and no room for more. It then loses its lower
    /// number with its last reference. Says whether it is set.
    pub(in super::super) fn try_set(
        self,
        inode: &Address,
        kind: FileKind,
        mark: Mark,
        value: &[u8],
    ) -> Result<bool> {
        match self.for_kind(kind).set(inode, mark, value) {
            Ok(()) => Ok(true),
            Err(error) if self == Self::User && error.is(Errno::PERM) => Ok(false),
            Err(error) if error.is_no_room() => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(in super::super) fn clear(self, inode: &Address, mark: Mark) -> Result<()> {
        match with_access(inode, || inode.remove_xattr(self.name(mark))) {
            Ok(()) | Err(Errno::NODATA) => Ok(()),
            Err(errno) => Err(Error::sys("removexattr", inode.label())(errno)),
        }
    }
}

/// Does `call` on an attribute of `inode`. The kernel lets an ordinary user read and write those of files
/// alone that may be read and written, which an owner may change: what a program has closed to everybody
/// stays closed, but for us, for a moment.
fn with_access<T>(inode: &Address, call: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
    match call() {
        Err(Errno::ACCESS) => {}
        other => return other,
    }
    let Ok(stat) = inode.stat() else { return Err(Errno::ACCESS) };
    let mode = u32::from(stat.stx_mode) & 0o7777;
    if mode & 0o600 == 0o600 || inode.chmod(mode | 0o600).is_err() {
        return Err(Errno::ACCESS);
    }
    let result = call();
    if let Err(error) = inode.chmod(mode) {
        tracing::error!("the permissions of {} are not as they were: {error}", inode.label());
    }
    result
}
