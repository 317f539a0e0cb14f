//! Numbers that carry their unit, and nothing that does I/O.
//!
//! Three kinds of inode number exist side by side and never mix: [`Ino`] is what the kernel knows
//! a merged file by, [`InodeNumber`] is the archive's own 32-bit number, and [`InodeRef`] is where
//! in the archive's inode table an inode lies. Offsets are likewise two: [`ArchiveOffset`] counts
//! bytes from the start of the archive, [`FileOffset`] bytes from the start of one file in it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A FUSE node id, and so the `st_ino` of a file in the merged tree. `1` is the root.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

impl Ino {
    /// The root of the mount, a number the FUSE protocol fixes.
    pub const ROOT: Self = Self(1);
}

/// The number of a layer in a mount's stack: 0 for the upper that it began with, greater for each newer one, and never
/// used again.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct LayerSerial(pub u32);

/// The number an archive gives one of its inodes. Untrusted: a damaged archive can repeat one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeNumber(pub u32);

/// Where an inode lies: the position of its metadata block below the inode table's start, and the
/// inode's offset in that block once decoded. Unlike [`InodeNumber`] it is unique by construction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeRef(u64);

impl InodeRef {
    /// Packs a block position (48 bits are kept by the format) and an offset into that block.
    pub const fn new(block: u64, offset: u16) -> Self {
        Self((block << 16) | offset as u64)
    }

    /// From the packed form that superblock, export table and origin records hold.
    pub const fn from_packed(packed: u64) -> Self {
        Self(packed)
    }

    /// The packed form: `block << 16 | offset`.
    pub const fn packed(self) -> u64 {
        self.0
    }

    /// Byte position of the metadata block, counted from the inode table's start.
    pub const fn block(self) -> u64 {
        self.0 >> 16
    }

    /// Byte offset of the inode in its decoded metadata block.
    pub const fn offset(self) -> u16 {
        (self.0 & 0xffff) as u16
    }
}

/// A position in the archive, in bytes from its first byte (an `--offset` is already added).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ArchiveOffset(pub u64);

impl ArchiveOffset {
    /// This position moved forward, or `None` where that leaves 64 bits.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}

/// A position in one file, in bytes from its start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileOffset(pub u64);

/// A run of bytes of an archive. It may be empty; its end never overflows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// `len` bytes from `start`, or `None` where the end leaves 64 bits.
    pub const fn new(start: ArchiveOffset, len: u64) -> Option<Self> {
        match start.0.checked_add(len) {
            Some(end) => Some(Self { start: start.0, end }),
            None => None,
        }
    }

    /// The bytes from `start` up to but excluding `end`; `None` where `end` comes first.
    pub const fn between(start: ArchiveOffset, end: ArchiveOffset) -> Option<Self> {
        if start.0 <= end.0 { Some(Self { start: start.0, end: end.0 }) } else { None }
    }

    /// First byte.
    pub const fn start(self) -> ArchiveOffset {
        ArchiveOffset(self.start)
    }

    /// One past the last byte.
    pub const fn end(self) -> ArchiveOffset {
        ArchiveOffset(self.end)
    }

    /// Length in bytes.
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether it holds no byte.
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Whether every byte of `other` is also in this range.
    pub const fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

/// The seven kinds of file a Unix tree holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular,
    /// A symbolic link.
    Symlink,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
    /// A named pipe.
    Fifo,
    /// A Unix-domain socket.
    Socket,
}

impl FileKind {
    /// The `S_IFMT` bits of a mode.
    pub const fn mode_bits(self) -> u32 {
        match self {
            Self::Directory => libc::S_IFDIR,
            Self::Regular => libc::S_IFREG,
            Self::Symlink => libc::S_IFLNK,
            Self::BlockDevice => libc::S_IFBLK,
            Self::CharDevice => libc::S_IFCHR,
            Self::Fifo => libc::S_IFIFO,
            Self::Socket => libc::S_IFSOCK,
        }
    }

    /// From the `S_IFMT` bits of `mode`; `None` for a combination no file has.
    pub const fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & libc::S_IFMT {
            libc::S_IFDIR => Self::Directory,
            libc::S_IFREG => Self::Regular,
            libc::S_IFLNK => Self::Symlink,
            libc::S_IFBLK => Self::BlockDevice,
            libc::S_IFCHR => Self::CharDevice,
            libc::S_IFIFO => Self::Fifo,
            libc::S_IFSOCK => Self::Socket,
            _ => return None,
        })
    }

    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Directory,
        Self::Regular,
        Self::Symlink,
        Self::BlockDevice,
        Self::CharDevice,
        Self::Fifo,
        Self::Socket,
    ];

    /// The word for it, in results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Regular => "file",
            Self::Symlink => "symlink",
            Self::BlockDevice => "block device",
            Self::CharDevice => "character device",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
        }
    }

    /// The kind that a word of [`Self::name`] means.
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == word)
    }
}

/// A moment, as `struct timespec` has it: seconds since 1970 (negative before) and nanoseconds
/// (0..=999,999,999).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp {
    /// Whole seconds since the epoch.
    pub seconds: i64,
    /// Nanoseconds within the second.
    pub nanos: u32,
}

/// Who a file belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Owner {
    /// The attribute by which a mount that shows other owners than it has stored tells the stored one, as
    /// `UID:GID`. It is listed nowhere, and found in no other mount.
    pub const STORED: &str = "system.thawfs.owner";

    /// As `UID:GID`.
    pub fn to_text(self) -> Vec<u8> {
        format!("{}:{}", self.uid, self.gid).into_bytes()
    }

    /// What [`Self::to_text`] has written.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (uid, gid) = std::str::from_utf8(text).ok()?.split_once(':')?;
        Some(Self { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
    }
}

macro_rules! plain_number {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    )*};
}
plain_number!(Ino, InodeNumber, ArchiveOffset, FileOffset);

impl fmt::Debug for InodeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InodeRef({})", self)
    }
}

impl fmt::Display for InodeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.block(), self.offset())
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_ref_keeps_both_halves() {
        let inode = InodeRef::new(0xffff_ffff_ffff, 0x1fff);
        assert_eq!((inode.block(), inode.offset()), (0xffff_ffff_ffff, 0x1fff));
        assert_eq!(InodeRef::from_packed(inode.packed()), inode);
    }

    #[test]
    fn an_owner_is_read_as_it_was_written_and_nonsense_is_not() {
        let owner = Owner { uid: u32::MAX - 1, gid: 0 };
        assert_eq!(Owner::parse(&owner.to_text()), Some(owner));
        for bad in [&b""[..], b"1", b"1:", b"-1:2", b"1:2:3", b"4294967296:0", b"\xff:1"] {
            assert_eq!(Owner::parse(bad), None);
        }
    }

    #[test]
    fn a_range_past_64_bits_is_refused() {
        assert!(ByteRange::new(ArchiveOffset(u64::MAX), 1).is_none());
        assert!(ByteRange::between(ArchiveOffset(2), ArchiveOffset(1)).is_none());
        assert_eq!(ByteRange::new(ArchiveOffset(u64::MAX), 0).map(ByteRange::len), Some(0));
    }

    #[test]
    fn every_kind_survives_its_mode_bits() {
        for kind in FileKind::ALL {
            assert_eq!(FileKind::from_mode(kind.mode_bits() | 0o7777), Some(kind));
            assert_eq!(FileKind::named(kind.name()), Some(kind));
        }
        assert_eq!(FileKind::from_mode(0), None);
    }
}
