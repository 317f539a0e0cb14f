//! Directory listings: groups of entries that share a metadata block of inodes, sorted by name,
//! and for long ones an index of where in the listing each metadata block starts.

use super::dir_index::{DirIndex, Start};
use super::error::Error;
use super::format::{
    DIR_GROUP_LEN, DIR_SIZE_BIAS, METADATA_LEN, NAME_LEN, RawDirEntry, RawDirHeader,
};
use super::inode::Inode;
use super::metadata::{MetaPosition, MetaReader, MetadataBlocks};
use crate::types::{ArchiveOffset, FileKind, InodeNumber, InodeRef};

const STRUCTURE: &str = "directory";

/// A place in a listing, to go on from later. It stays valid for as long as the archive does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirCursor(pub u64);

impl DirCursor {
    /// Before the first entry.
    pub const START: Self = Self(0);
}

/// One name in a directory. `.` and `..` are not stored and never among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The name: 1 to 256 bytes, no NUL, no `/`.
    pub name: Vec<u8>,
    /// The inode it names.
    pub inode: InodeRef,
    /// That inode's number, as the directory has it.
    pub number: InodeNumber,
    /// That inode's kind, as the directory has it.
    pub kind: FileKind,
    /// The place behind this entry.
    pub next: DirCursor,
}

/// Reads a listing entry by entry, in the archive's order. After an error it ends.
pub struct DirReader<'a> {
    reader: MetaReader<'a>,
    /// Bytes of the listing that lie behind.
    position: u64,
    end: u64,
    group: RawDirHeader,
    left_in_group: u32,
    /// Entries up to here are passed over.
    from: u64,
    failed: bool,
}

impl<'a> DirReader<'a> {
    /// From `from` on; with an index, little before it is read again.
    pub(super) fn new(
        metadata: &'a MetadataBlocks,
        table: ArchiveOffset,
        directory: &Inode,
        index: &DirIndex,
        from: DirCursor,
    ) -> Result<Self, Error> {
        Self::starting(metadata, table, directory, index.before_position(from.0), from.0)
    }

    fn starting(
        metadata: &'a MetadataBlocks,
        table: ArchiveOffset,
        directory: &Inode,
        start: Option<Start>,
        from: u64,
    ) -> Result<Self, Error> {
        let listing = directory.directory()?.listing;
        let (position, start) = match start {
            None => (0, listing),
            Some(start) => {
                let position = u64::from(start.position);
                let offset = (position + listing.offset as u64) % METADATA_LEN as u64;
                (position, MetaPosition::in_table(table, start.block, offset as u16))
            }
        };
        Ok(Self {
            reader: metadata.reader(STRUCTURE, start),
            position,
            end: directory.size.saturating_sub(DIR_SIZE_BIAS),
            group: RawDirHeader { count: 0.into(), inode_block: 0.into(), inode_number: 0.into() },
            left_in_group: 0,
            from,
            failed: false,
        })
    }

    /// The next entry up to its name, and the name's length.
    fn read_head(&mut self) -> Result<Option<(RawDirEntry, usize)>, Error> {
        loop {
            if self.left_in_group == 0 {
                if self.position >= self.end {
                    return Ok(None);
                }
                self.group = self.reader.read()?;
                self.position += size_of::<RawDirHeader>() as u64;
                let last = self.group.count.get();
                if last >= DIR_GROUP_LEN {
                    return Err(self.reader.corrupt(format!("a group of 1 + {last} entries")));
                }
                self.left_in_group = last + 1;
            }
            self.left_in_group -= 1;
            let raw: RawDirEntry = self.reader.read()?;
            let len = usize::from(raw.size.get()) + 1;
            if len > NAME_LEN {
                return Err(self.reader.corrupt(format!("a name of {len} bytes")));
            }
            self.position += (size_of::<RawDirEntry>() + len) as u64;
            if self.position > self.from {
                return Ok(Some((raw, len)));
            }
            self.reader.skip(len)?;
        }
    }

    fn read(&mut self) -> Result<Option<DirEntry>, Error> {
        let Some((raw, len)) = self.read_head()? else { return Ok(None) };
        let name = self.reader.read_vec(len)?;
        self.entry(&raw, name).map(Some)
    }

    /// The entry of this name, if it comes before the first name that starts with a greater byte,
    /// which is how far the kernel looks.
    fn find(&mut self, name: &[u8]) -> Result<Option<DirEntry>, Error> {
        let mut buffer = NameBuffer::default();
        while let Some((raw, len)) = self.read_head()? {
            let found = buffer.read(&mut self.reader, len)?;
            if found == name {
                return self.entry(&raw, name.to_vec()).map(Some);
            }
            if found.first() > name.first() {
                break;
            }
        }
        Ok(None)
    }

    fn entry(&self, raw: &RawDirEntry, name: Vec<u8>) -> Result<DirEntry, Error> {
        if name == b"." || name == b".." || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            return Err(self
                .reader
                .corrupt(format!("the name {:?}", name.escape_ascii().to_string())));
        }
        let kind = match raw.kind.get() {
            1 => FileKind::Directory,
            2 => FileKind::Regular,
            3 => FileKind::Symlink,
            4 => FileKind::BlockDevice,
            5 => FileKind::CharDevice,
            6 => FileKind::Fifo,
            7 => FileKind::Socket,
            other => return Err(self.reader.corrupt(format!("an entry of type {other}"))),
        };
        let delta = i32::from(raw.inode_number_delta.get());
        let number = self.group.inode_number.get().wrapping_add_signed(delta);
        Ok(DirEntry {
            name,
            inode: InodeRef::new(self.group.inode_block.get().into(), raw.inode_offset.get()),
            number: InodeNumber(number),
            kind,
            next: DirCursor(self.position),
        })
    }
}

impl Iterator for DirReader<'_> {
    type Item = Result<DirEntry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let entry = self.read().transpose();
        self.failed = matches!(entry, Some(Err(_)));
        entry
    }
}

/// Finds `name`, through the index where there is one.
pub(super) fn lookup(
    metadata: &MetadataBlocks,
    table: ArchiveOffset,
    directory: &Inode,
    index: &DirIndex,
    name: &[u8],
) -> Result<Option<DirEntry>, Error> {
    DirReader::starting(metadata, table, directory, index.before_name(name), 0)?.find(name)
}

/// Room for a name, so that looking through many takes no memory for each.
struct NameBuffer([u8; NAME_LEN]);

impl Default for NameBuffer {
    fn default() -> Self {
        Self([0; NAME_LEN])
    }
}

impl NameBuffer {
    /// Reads a name whose length has been checked.
    fn read(&mut self, reader: &mut MetaReader<'_>, len: usize) -> Result<&[u8], Error> {
        let name = self.0.get_mut(..len).unwrap_or_default();
        reader.read_exact(name)?;
        Ok(name)
    }
}
