//! Inodes, basic and extended, of all seven kinds.

use zerocopy::little_endian::U32;

use super::error::Error;
use super::format::{
    NO_FRAGMENT, NO_XATTRS, RawDevice, RawDirectory, RawExtendedDirectory, RawExtendedFile,
    RawFile, RawInode, RawIpc, RawSymlink,
};
use super::metadata::{MetaPosition, MetaReader, MetadataBlocks};
use super::plan::{FileLayout, Fragment, StoredBlock};
use super::superblock::Superblock;
use super::tables::{Tables, XattrList};
use crate::types::{ArchiveOffset, FileKind, InodeNumber, InodeRef, Timestamp};

const STRUCTURE: &str = "inode";
/// Longest target of a symbolic link in bytes; the kernel refuses the inode of a longer one.
const MAX_TARGET: u32 = 4096;

/// One inode of an archive. Small, and everything a `stat` asks for is in it.
#[derive(Clone, Debug)]
pub struct Inode {
    /// Where it lies; this names it.
    pub reference: InodeRef,
    /// The archive's number for it, never zero.
    pub number: InodeNumber,
    /// What kind of file it is.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: 0 to 0o7777.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification, the only time there is: whole seconds, 1970 to 2106.
    pub mtime: Timestamp,
    /// How many names the archive says it has.
    pub nlink: u32,
    /// Size in bytes as `stat` reports it: of a file's contents, of a link's target, of a
    /// directory's listing; else zero.
    pub size: u64,
    /// Allocated 512-byte units as the kernel counts them: holes and compression apart.
    pub blocks: u64,
    /// `st_rdev` of a device; else zero.
    pub rdev: u64,
    pub(super) xattrs: Option<XattrList>,
    pub(super) layout: Layout,
}

/// Where the rest of it is.
#[derive(Clone, Debug)]
pub(super) enum Layout {
    File(FileLayout),
    Directory(DirectoryLayout),
    Symlink(MetaPosition),
    Special,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct DirectoryLayout {
    pub(super) listing: MetaPosition,
    pub(super) index: MetaPosition,
    pub(super) index_count: u16,
    pub(super) parent: InodeNumber,
}

impl Inode {
    /// Whether it may have extended attributes. Says no only if there are none.
    pub fn has_xattrs(&self) -> bool {
        self.xattrs.is_some_and(|list| list.count > 0)
    }

    /// The number of the directory that a directory is in; the root's means nothing.
    pub fn parent(&self) -> Option<InodeNumber> {
        match &self.layout {
            Layout::Directory(layout) => Some(layout.parent),
            _ => None,
        }
    }

    pub(super) fn directory(&self) -> Result<&DirectoryLayout, Error> {
        match &self.layout {
            Layout::Directory(layout) => Ok(layout),
            _ => Err(self.wrong_kind(FileKind::Directory)),
        }
    }

    pub(super) fn file(&self) -> Result<&FileLayout, Error> {
        match &self.layout {
            Layout::File(layout) => Ok(layout),
            _ => Err(self.wrong_kind(FileKind::Regular)),
        }
    }

    pub(super) fn symlink(&self) -> Result<MetaPosition, Error> {
        match &self.layout {
            Layout::Symlink(position) => Ok(*position),
            _ => Err(self.wrong_kind(FileKind::Symlink)),
        }
    }

    fn wrong_kind(&self, wanted: FileKind) -> Error {
        Error::WrongKind { wanted, found: self.kind }
    }
}

/// What the kinds differ in.
struct Body {
    kind: FileKind,
    nlink: u32,
    size: u64,
    blocks: u64,
    rdev: u64,
    xattr: u32,
    layout: Layout,
}

/// Reads inodes of one archive.
pub(super) struct InodeParser<'a> {
    pub(super) superblock: &'a Superblock,
    pub(super) metadata: &'a MetadataBlocks,
    pub(super) tables: &'a Tables,
}

impl InodeParser<'_> {
    pub(super) fn parse(&self, reference: InodeRef) -> Result<Inode, Error> {
        let table = self.superblock.inode_table;
        let position = MetaPosition::from_packed(table, reference.packed());
        let mut reader = self.metadata.reader(STRUCTURE, position);
        let raw: RawInode = reader.read()?;
        let corrupt = |detail: String| {
            Error::corrupt(STRUCTURE, position.block, format!("{reference}: {detail}"))
        };
        let id = |index: u16| {
            self.tables
                .id(self.metadata, index)?
                .ok_or_else(|| corrupt(format!("owner number {index} of {}", self.superblock.ids)))
        };
        let uid = id(raw.uid_index.get())?;
        // More often than not they are one entry of the table.
        let gid = if raw.gid_index == raw.uid_index { uid } else { id(raw.gid_index.get())? };
        let mode = raw.mode.get();
        if mode & !0o7777 != 0 {
            return Err(corrupt(format!("mode {mode:o}")));
        }
        let number = InodeNumber(raw.number.get());
        if number.0 == 0 {
            return Err(corrupt("number 0".into()));
        }
        let body = self.body(raw.kind.get(), &mut reader, &corrupt)?;
        let xattrs = match body.xattr {
            NO_XATTRS => None,
            _ if !self.tables.has_xattrs() => None,
            index => Some(
                self.tables
                    .xattrs(self.metadata, index)?
                    .ok_or_else(|| corrupt(format!("xattr index {index}")))?,
            ),
        };
        let xattr_blocks = xattrs.map_or(0, |list| u64::from(list.size).div_ceil(512));
        Ok(Inode {
            reference,
            number,
            kind: body.kind,
            permissions: mode,
            uid,
            gid,
            mtime: Timestamp { seconds: raw.mtime.get().into(), nanos: 0 },
            nlink: body.nlink,
            size: body.size,
            blocks: body.blocks + xattr_blocks,
            rdev: body.rdev,
            xattrs,
            layout: body.layout,
        })
    }

    fn body(
        &self,
        kind: u16,
        reader: &mut MetaReader<'_>,
        corrupt: &dyn Fn(String) -> Error,
    ) -> Result<Body, Error> {
        let special = |kind, nlink, rdev, xattr| Body {
            kind,
            nlink,
            size: 0,
            blocks: 0,
            rdev,
            xattr,
            layout: Layout::Special,
        };
        Ok(match kind {
            1 => {
                let raw: RawDirectory = reader.read()?;
                let listing = self.listing(raw.block, raw.offset.get());
                Body {
                    kind: FileKind::Directory,
                    nlink: raw.nlink.get(),
                    size: raw.size.get().into(),
                    blocks: 0,
                    rdev: 0,
                    xattr: NO_XATTRS,
                    layout: Layout::Directory(DirectoryLayout {
                        listing,
                        index: reader.position(),
                        index_count: 0,
                        parent: InodeNumber(raw.parent.get()),
                    }),
                }
            }
            8 => {
                let raw: RawExtendedDirectory = reader.read()?;
                let listing = self.listing(raw.block, raw.offset.get());
                Body {
                    kind: FileKind::Directory,
                    nlink: raw.nlink.get(),
                    size: raw.size.get().into(),
                    blocks: 0,
                    rdev: 0,
                    xattr: raw.xattr.get(),
                    layout: Layout::Directory(DirectoryLayout {
                        listing,
                        index: reader.position(),
                        index_count: raw.index_count.get(),
                        parent: InodeNumber(raw.parent.get()),
                    }),
                }
            }
            2 => {
                let raw: RawFile = reader.read()?;
                let size = raw.size.get().into();
                let start = ArchiveOffset(raw.start.get().into());
                let fragment = (raw.fragment.get(), raw.fragment_offset.get());
                Body {
                    kind: FileKind::Regular,
                    nlink: 1,
                    size,
                    blocks: size.div_ceil(512),
                    rdev: 0,
                    xattr: NO_XATTRS,
                    layout: self.file(reader, start, size, fragment, corrupt)?,
                }
            }
            9 => {
                let raw: RawExtendedFile = reader.read()?;
                let size = raw.size.get();
                if size > i64::MAX as u64 {
                    return Err(corrupt(format!("a file of {size} bytes")));
                }
                let start = ArchiveOffset(raw.start.get());
                let fragment = (raw.fragment.get(), raw.fragment_offset.get());
                Body {
                    kind: FileKind::Regular,
                    nlink: raw.nlink.get(),
                    size,
                    blocks: size.saturating_sub(raw.sparse.get()).div_ceil(512),
                    rdev: 0,
                    xattr: raw.xattr.get(),
                    layout: self.file(reader, start, size, fragment, corrupt)?,
                }
            }
            3 | 10 => {
                let raw: RawSymlink = reader.read()?;
                let size = raw.size.get();
                if size > MAX_TARGET {
                    return Err(corrupt(format!("a link target of {size} bytes")));
                }
                let target = reader.position();
                let xattr = if kind == 10 {
                    reader.skip(size as usize)?;
                    reader.read::<U32>()?.get()
                } else {
                    NO_XATTRS
                };
                Body {
                    kind: FileKind::Symlink,
                    nlink: raw.nlink.get(),
                    size: size.into(),
                    blocks: 0,
                    rdev: 0,
                    xattr,
                    layout: Layout::Symlink(target),
                }
            }
            4 | 5 | 11 | 12 => {
                let raw: RawDevice = reader.read()?;
                let xattr = if kind > 7 { reader.read::<U32>()?.get() } else { NO_XATTRS };
                let kind = match kind {
                    4 | 11 => FileKind::BlockDevice,
                    _ => FileKind::CharDevice,
                };
                special(kind, raw.nlink.get(), device(raw.rdev.get()), xattr)
            }
            6 | 7 | 13 | 14 => {
                let raw: RawIpc = reader.read()?;
                let xattr = if kind > 7 { reader.read::<U32>()?.get() } else { NO_XATTRS };
                let kind = match kind {
                    6 | 13 => FileKind::Fifo,
                    _ => FileKind::Socket,
                };
                special(kind, raw.nlink.get(), 0, xattr)
            }
            other => return Err(corrupt(format!("type {other}"))),
        })
    }

    fn listing(&self, block: U32, offset: u16) -> MetaPosition {
        MetaPosition::in_table(self.superblock.directory_table, block.get(), offset)
    }

    /// Finds the fragment and, while the inode's metadata block is at hand, the first block's
    /// size: with these, reading a small file needs no more metadata.
    fn file(
        &self,
        reader: &mut MetaReader<'_>,
        start: ArchiveOffset,
        size: u64,
        (fragment, offset): (u32, u32),
        corrupt: &dyn Fn(String) -> Error,
    ) -> Result<Layout, Error> {
        let fragment = match fragment {
            NO_FRAGMENT => None,
            index => {
                let (at, word) = self
                    .tables
                    .fragment(self.metadata, index)?
                    .ok_or_else(|| corrupt(format!("fragment {index}")))?;
                let block = StoredBlock::new(at, word)
                    .ok_or_else(|| corrupt(format!("fragment {index} of size word {word:#x}")))?;
                Some(Fragment { index, block, offset })
            }
        };
        let list = reader.position();
        let mut layout = FileLayout { start, size, list, first: None, fragment };
        if layout.block_count(self.superblock.block_size) > 0 {
            layout.first = match reader.read::<U32>() {
                Ok(word) => Some(word.get()),
                // Without its block list a file can be listed, if not read.
                Err(Error::Corrupt { .. }) => None,
                Err(error) => return Err(error),
            };
        }
        Ok(Layout::File(layout))
    }
}

/// `st_rdev` from the form Linux stores device numbers in: minor bits around twelve of major.
fn device(encoded: u32) -> u64 {
    let major = (encoded >> 8) & 0xfff;
    let minor = (encoded & 0xff) | ((encoded >> 12) & 0xf_ff00);
    libc::makedev(major, minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_keep_both_halves() {
        for (encoded, major, minor) in
            [(0x0801, 8, 1), (0xfff0_0000, 0, 0xfff00), (0xfffff, 0xfff, 255)]
        {
            let device = device(encoded);
            assert_eq!((libc::major(device), libc::minor(device)), (major, minor), "{encoded:#x}");
        }
    }
}
