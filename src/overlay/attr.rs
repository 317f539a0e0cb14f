//! Attributes of merged files, and who asks for a change of them.

use rustix::fs::Statx;

use super::error::{Error, Result};
use crate::types::{FileKind, Ino, Owner, Timestamp};

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// The process's umask. Applied unless the parent has a default ACL, as the kernel would;
    /// `0` where the kernel has applied it already.
    pub umask: u32,
}

/// What decides which set-id bits a change by somebody takes away. Asked only where there are such bits.
pub trait Rights {
    /// Whether they may leave set-id bits on what they write to (`CAP_FSETID`).
    fn keeps_setid(&self) -> bool;

    /// Whether they are of `group`.
    fn is_of(&self, group: u32) -> bool;
}

/// Where no more is known of a caller than this, root may keep the bits, and nobody has other groups.
impl Rights for Caller {
    fn keeps_setid(&self) -> bool {
        self.uid == 0
    }

    fn is_of(&self, group: u32) -> bool {
        self.gid == group
    }
}

/// What `stat` shows of a merged file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// FUSE node id, and its `st_ino` unless [`Attr::number`] is another.
    pub ino: Ino,
    /// `st_ino`. It is no node's id of a file that was open when a rollback has changed it.
    pub number: Ino,
    /// Tells apart two files of the upper that had the same inode number one after the other.
    pub generation: u64,
    /// The kind of file.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky (`07777`).
    pub perm: u16,
    /// Names in the merged tree. Of a directory: 2 + subdirectories where it is all lower or all
    /// upper, else 1, which `find` and others read as "not counted".
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number in `makedev` form, as `st_rdev` has it.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Allocated size in units of 512 bytes; for lower files as if they were not compressed.
    pub blocks: u64,
    /// Last access. Of lower files: the last modification.
    pub atime: Timestamp,
    /// Last modification of the contents.
    pub mtime: Timestamp,
    /// Last change of the attributes. Of lower files: the last modification.
    pub ctime: Timestamp,
    /// Preferred size of I/O in bytes.
    pub block_size: u32,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the call.
    Now,
    /// This one.
    At(Timestamp),
}

/// The changes of one `setattr`; `None` leaves a field as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits (`07777`; others are ignored).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last modification.
    pub mtime: Option<SetTime>,
}

impl SetAttr {
    /// Whether a program changes more than the size, and what comes with that.
    pub(super) fn is_of_attributes(&self) -> bool {
        let is_of_times = self.size.is_none() && (self.atime.is_some() || self.mtime.is_some());
        let is_of_owner = self.uid.is_some() || self.gid.is_some();
        self.mode.is_some() || is_of_owner || is_of_times
    }
}

/// What `statfs` shows. Blocks are in units of `fragment_size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// All blocks.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks for users without privilege.
    pub blocks_available: u64,
    /// All inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Preferred size of I/O in bytes.
    pub block_size: u32,
    /// Unit of the block counts in bytes.
    pub fragment_size: u32,
    /// Longest name in bytes.
    pub name_max: u32,
}

/// The kind of the upper inode that `stat` describes.
pub(super) fn kind_of(stat: &Statx) -> Result<FileKind> {
    let mode = u32::from(stat.stx_mode);
    FileKind::from_mode(mode)
        .ok_or_else(|| Error::damaged(format_args!("the upper has a file of mode {mode:o}")))
}

/// The owner of the upper inode that `stat` describes, as its file system has it.
pub(super) fn owner_of(stat: &Statx) -> Owner {
    Owner { uid: stat.stx_uid, gid: stat.stx_gid }
}

/// Whether `stat` is that of a 0/0 character device.
pub(super) fn is_null_device(stat: &Statx) -> bool {
    FileKind::from_mode(stat.stx_mode.into()) == Some(FileKind::CharDevice)
        && stat.stx_rdev_major == 0
        && stat.stx_rdev_minor == 0
}

/// When the upper inode that `stat` describes was born, as a number: it differs between two inodes
/// that have had the same number. 0 where the file system does not know.
pub(super) fn generation_of(stat: &Statx) -> u64 {
    let born = stat.stx_btime;
    let born = ((born.tv_sec as u64) << 30) | u64::from(born.tv_nsec);
    // The kernel keeps 32 bits of it, and the clock by which files are born may have few ticks a second.
    born.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

/// The attributes of an upper inode, under the number it has in the merged tree.
pub(super) fn from_upper(ino: Ino, generation: u64, stat: &Statx) -> Result<Attr> {
    let time = |t: rustix::fs::StatxTimestamp| Timestamp { seconds: t.tv_sec, nanos: t.tv_nsec };
    Ok(Attr {
        ino,
        number: ino,
        generation,
        kind: kind_of(stat)?,
        perm: stat.stx_mode & 0o7777,
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        rdev: rustix::fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        atime: time(stat.stx_atime),
        mtime: time(stat.stx_mtime),
        ctime: time(stat.stx_ctime),
        block_size: stat.stx_blksize,
    })
}
