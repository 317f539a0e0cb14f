//! The tables that are found through an index: owners, fragments, inode numbers, xattr ids.
//!
//! A table's entries are packed into metadata blocks; its index, an uncompressed run of positions,
//! tells where each block starts. Indexes are read when the archive is opened, and must lie one
//! before the other as the kernel demands it; entries are read when asked for.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::error::Error;
use super::format::{METADATA_HEADER_LEN, METADATA_LEN, RawFragment, RawXattrId, RawXattrTable};
use super::metadata::{MetaPosition, MetadataBlocks};
use super::superblock::Superblock;
use crate::types::{ArchiveOffset, ByteRange, InodeNumber, InodeRef};

/// Most bytes between the starts of neighbouring metadata blocks.
const MAX_STRIDE: u64 = METADATA_LEN as u64 + METADATA_HEADER_LEN;

/// A table of `count` entries of `entry_len` bytes each, a divisor of a metadata block's size.
struct Table {
    structure: &'static str,
    count: u64,
    entry_len: usize,
    blocks: Vec<ArchiveOffset>,
}

impl Table {
    fn index_len(count: u64, entry_len: usize) -> u64 {
        (count * entry_len as u64).div_ceil(METADATA_LEN as u64) * 8
    }

    /// Parses `index`, which starts at `at` and has the length that `count` calls for.
    fn parse(structure: &'static str, count: u64, entry_len: usize, index: &[u8]) -> Self {
        let blocks = index.as_chunks().0.iter().map(|&b| ArchiveOffset(u64::from_le_bytes(b)));
        Self { structure, count, entry_len, blocks: blocks.collect() }
    }

    /// Checks that the blocks ascend, none further from the next (the last: from the index at
    /// `at`) than a metadata block is long.
    fn check_ascending(&self, at: ArchiveOffset) -> Result<(), Error> {
        let ends = self.blocks.iter().skip(1).copied().chain([at]);
        for (&start, end) in self.blocks.iter().zip(ends) {
            if start >= end || end.0 - start.0 > MAX_STRIDE {
                return Err(Error::corrupt(
                    self.structure,
                    at,
                    format!("a metadata block at {start} is followed by {end}"),
                ));
            }
        }
        Ok(())
    }

    /// Reads every block, each of which must hold as many entries as are left, up to a full one.
    /// Gives those that do not.
    fn check<'a>(&'a self, metadata: &'a MetadataBlocks) -> impl Iterator<Item = Error> + 'a {
        let whole = self.count * self.entry_len as u64;
        let starts = (0..).step_by(METADATA_LEN);
        self.blocks.iter().zip(starts).filter_map(move |(&at, start): (_, u64)| {
            let due = (whole - start.min(whole)).min(METADATA_LEN as u64);
            match metadata.extent(self.structure, at) {
                Ok((found, _)) if found as u64 == due => None,
                Ok((found, _)) => {
                    let detail = format!("{found} bytes of entries where {due} are due");
                    Some(Error::corrupt(self.structure, at, detail))
                }
                Err(error) => Some(error),
            }
        })
    }

    fn first_block(&self) -> Option<ArchiveOffset> {
        self.blocks.first().copied()
    }

    fn read<T: FromBytes + IntoBytes>(
        &self,
        metadata: &MetadataBlocks,
        index: u64,
    ) -> Result<Option<T>, Error> {
        if index >= self.count {
            return Ok(None);
        }
        let per_block = (METADATA_LEN / self.entry_len) as u64;
        let offset = (index % per_block) as usize * self.entry_len;
        let block = usize::try_from(index / per_block).ok().and_then(|i| self.blocks.get(i));
        let Some(&block) = block else { return Ok(None) };
        metadata.reader(self.structure, MetaPosition { block, offset }).read().map(Some)
    }
}

/// Where the xattrs of one inode are.
#[derive(Clone, Copy, Debug)]
pub(super) struct XattrList {
    pub(super) position: MetaPosition,
    pub(super) count: u32,
    /// Bytes they take, which count towards an inode's blocks.
    pub(super) size: u32,
}

/// All indexed tables of an archive.
pub(super) struct Tables {
    ids: Table,
    fragments: Option<Table>,
    export: Option<Table>,
    xattrs: Option<(Table, ArchiveOffset)>,
    /// Where what follows the directory table starts.
    directories_end: ArchiveOffset,
}

/// The parts of the archive that the indexes take up, found from the superblock alone.
struct Plan {
    ids: ByteRange,
    fragments: Option<ByteRange>,
    export: Option<ByteRange>,
    xattrs: Option<ByteRange>,
}

const IDS: &str = "id table";
const FRAGMENTS: &str = "fragment table";
const EXPORT: &str = "export table";
const XATTRS: &str = "xattr id table";

impl Plan {
    fn new(superblock: &Superblock) -> Result<Self, Error> {
        let end = superblock.end();
        let range = |structure, at: ArchiveOffset, len: u64| {
            ByteRange::new(at, len).filter(|range| range.end() <= end).ok_or_else(|| {
                Error::corrupt(structure, at, format!("{len} bytes reach past the archive's end"))
            })
        };
        let index = |structure, at: ArchiveOffset, count: u64, entry_len: usize| {
            if count == 0 {
                return Err(Error::corrupt(structure, at, "it has no entries"));
            }
            range(structure, at, Table::index_len(count, entry_len))
        };
        Ok(Self {
            ids: index(IDS, superblock.id_table, superblock.ids.into(), size_of::<U32>())?,
            fragments: match superblock.fragments {
                0 => None,
                count => Some(index(
                    FRAGMENTS,
                    superblock.fragment_table,
                    count.into(),
                    size_of::<RawFragment>(),
                )?),
            },
            export: match superblock.export_table {
                None => None,
                Some(at) => Some(index(EXPORT, at, superblock.inodes.into(), size_of::<u64>())?),
            },
            // This index reaches to the end of the archive.
            xattrs: match superblock.xattr_id_table {
                None => None,
                Some(at) => Some(range(XATTRS, at, end.0.saturating_sub(at.0))?),
            },
        })
    }

    fn ranges(&self) -> Vec<ByteRange> {
        let optional = [self.fragments, self.export, self.xattrs];
        [self.ids].into_iter().chain(optional.into_iter().flatten()).collect()
    }
}

impl Tables {
    /// Reads and checks all indexes, with one fetch if they aren't in memory.
    pub(super) fn open(superblock: &Superblock, metadata: &MetadataBlocks) -> Result<Self, Error> {
        let plan = Plan::new(superblock)?;
        let mut bytes = metadata.stored(&plan.ranges())?.into_iter();
        let mut next = || bytes.next().unwrap_or_default();

        let ids = Table::parse(IDS, superblock.ids.into(), size_of::<U32>(), &next());
        let fragments = plan.fragments.map(|range| {
            let count = superblock.fragments.into();
            (range, Table::parse(FRAGMENTS, count, size_of::<RawFragment>(), &next()))
        });
        let export = plan.export.map(|range| {
            let count = superblock.inodes.into();
            (range, Table::parse(EXPORT, count, size_of::<u64>(), &next()))
        });
        let xattrs = match plan.xattrs {
            None => None,
            Some(range) => Some(parse_xattrs(range, &next())?),
        };

        // From the archive's end downwards, each index must end at or before what lies above it.
        let mut above = match &xattrs {
            Some((_, start)) => *start,
            None => superblock.end(),
        };
        check_ends_at(IDS, plan.ids, above)?;
        ids.check_ascending(plan.ids.start())?;
        above = ids.first_block().unwrap_or(above);
        if let Some((range, table)) = &export {
            check_ends_at(EXPORT, *range, above)?;
            table.check_ascending(range.start())?;
            above = table.first_block().unwrap_or(above);
        }
        if let Some((range, table)) = &fragments {
            let first = table.first_block().unwrap_or(range.end());
            if range.end() > above || first >= range.start() {
                return Err(Error::corrupt(
                    FRAGMENTS,
                    range.start(),
                    format!("from {first} to {}, and {above} is above it", range.end()),
                ));
            }
            above = first;
        }
        // An archive of one empty directory has no listing: the next table may start right there.
        if superblock.directory_table > above {
            check_below("directory table", superblock.directory_table, above)?;
        }
        check_below("inode table", superblock.inode_table, superblock.directory_table)?;

        Ok(Self {
            ids,
            fragments: fragments.map(|(_, table)| table),
            export: export.map(|(_, table)| table),
            xattrs,
            directories_end: above,
        })
    }

    /// Where what follows the directory table starts.
    pub(super) fn directories_end(&self) -> ArchiveOffset {
        self.directories_end
    }

    /// Where the extended attributes lie, if there are any.
    pub(super) fn xattr_range(&self) -> Option<(ArchiveOffset, ArchiveOffset)> {
        let (table, start) = self.xattrs.as_ref()?;
        Some((*start, table.first_block()?))
    }

    /// Reads every block of every table. Gives what is wrong with them.
    pub(super) fn check<'a>(
        &'a self,
        metadata: &'a MetadataBlocks,
    ) -> impl Iterator<Item = Error> + 'a {
        let xattrs = self.xattrs.as_ref().map(|(table, _)| table);
        let optional = [self.fragments.as_ref(), self.export.as_ref(), xattrs];
        let tables = [&self.ids].into_iter().chain(optional.into_iter().flatten());
        tables.flat_map(move |table| table.check(metadata))
    }

    /// The owner or group with this index.
    pub(super) fn id(&self, metadata: &MetadataBlocks, index: u16) -> Result<Option<u32>, Error> {
        let raw: Option<U32> = self.ids.read(metadata, index.into())?;
        Ok(raw.map(U32::get))
    }

    /// Start and size word of the fragment block with this index.
    pub(super) fn fragment(
        &self,
        metadata: &MetadataBlocks,
        index: u32,
    ) -> Result<Option<(ArchiveOffset, u32)>, Error> {
        let Some(table) = &self.fragments else { return Ok(None) };
        let raw: Option<RawFragment> = table.read(metadata, index.into())?;
        Ok(raw.map(|raw| (ArchiveOffset(raw.start.get()), raw.size.get())))
    }

    /// The inode with this number; numbers start at 1.
    pub(super) fn inode(
        &self,
        metadata: &MetadataBlocks,
        number: InodeNumber,
    ) -> Result<Option<InodeRef>, Error> {
        let (Some(table), Some(index)) = (&self.export, number.0.checked_sub(1)) else {
            return Ok(None);
        };
        let raw: Option<U64> = table.read(metadata, index.into())?;
        Ok(raw.map(|raw| InodeRef::from_packed(raw.get())))
    }

    /// Whether the archive has extended attributes at all; without, inodes' indexes mean nothing.
    pub(super) fn has_xattrs(&self) -> bool {
        self.xattrs.is_some()
    }

    /// How many lists of extended attributes there are.
    pub(super) fn xattr_lists(&self) -> u32 {
        // The count was 32 bits wide on disk.
        self.xattrs.as_ref().map_or(0, |(table, _)| u32::try_from(table.count).unwrap_or(u32::MAX))
    }

    /// Where the extended attributes with this index are.
    pub(super) fn xattrs(
        &self,
        metadata: &MetadataBlocks,
        index: u32,
    ) -> Result<Option<XattrList>, Error> {
        let Some((table, start)) = &self.xattrs else { return Ok(None) };
        let raw: Option<RawXattrId> = table.read(metadata, index.into())?;
        Ok(raw.map(|raw| XattrList {
            position: MetaPosition::from_packed(*start, raw.xattrs.get()),
            count: raw.count.get(),
            size: raw.size.get(),
        }))
    }

    /// Where a value that is stored elsewhere starts, from its packed reference.
    pub(super) fn xattr_value(&self, packed: u64) -> Option<MetaPosition> {
        self.xattrs.as_ref().map(|(_, start)| MetaPosition::from_packed(*start, packed))
    }
}

/// Parses and checks the xattr index, and says where the attributes start.
fn parse_xattrs(range: ByteRange, bytes: &[u8]) -> Result<(Table, ArchiveOffset), Error> {
    let at = range.start();
    let Ok((header, index)) = RawXattrTable::read_from_prefix(bytes) else {
        return Err(Error::corrupt(XATTRS, at, "its header is cut short"));
    };
    let count = u64::from(header.ids.get());
    if count == 0 {
        return Err(Error::corrupt(XATTRS, at, "it has no entries"));
    }
    if Table::index_len(count, size_of::<RawXattrId>()) != index.len() as u64 {
        let detail = format!("{} bytes of index for {count} entries", index.len());
        return Err(Error::corrupt(XATTRS, at, detail));
    }
    let table = Table::parse(XATTRS, count, size_of::<RawXattrId>(), index);
    table.check_ascending(at)?;
    let start = ArchiveOffset(header.xattrs.get());
    check_below("xattr table", start, table.first_block().unwrap_or(at))?;
    Ok((table, start))
}

fn check_ends_at(
    structure: &'static str,
    index: ByteRange,
    above: ArchiveOffset,
) -> Result<(), Error> {
    if index.end() == above {
        return Ok(());
    }
    let detail = format!("its index ends at {}, not at {above}", index.end());
    Err(Error::corrupt(structure, index.start(), detail))
}

fn check_below(
    structure: &'static str,
    at: ArchiveOffset,
    above: ArchiveOffset,
) -> Result<(), Error> {
    if at < above {
        return Ok(());
    }
    Err(Error::corrupt(structure, at, format!("it should start before {above}")))
}
