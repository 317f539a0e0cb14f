//! Directory listings, in groups of entries whose inodes share a metadata block, with an index of
//! those that take several metadata blocks themselves.

use zerocopy::IntoBytes;

use super::super::format::{DIR_GROUP_LEN, METADATA_LEN, RawDirEntry, RawDirHeader, RawDirIndex};
use super::catalog::kind_code;
use super::error::Error;
use super::metadata::{MetaWriter, Position};
use crate::types::FileKind;

/// The inode that a name leads to.
#[derive(Clone, Copy)]
pub(super) struct Inode {
    pub(super) position: Position,
    pub(super) number: u32,
    pub(super) kind: FileKind,
}

/// The entries of one directory while they are gathered.
#[derive(Default)]
pub(super) struct Entries {
    names: Vec<u8>,
    /// Where each name starts and how long it is, and its inode.
    entries: Vec<(usize, u16, Inode)>,
}

/// A listing that is written, and what its inode has to say of it.
pub(super) struct Listing {
    pub(super) position: Position,
    /// Its bytes, decoded.
    pub(super) len: u32,
    /// The index as it follows the inode.
    pub(super) index: Vec<u8>,
    pub(super) index_count: u16,
}

/// Entries that share a header.
#[derive(Default)]
struct Group {
    bytes: Vec<u8>,
    count: u32,
    inode_block: u64,
    first_number: u32,
    first_name: Vec<u8>,
}

impl Entries {
    pub(super) fn push(&mut self, name: &[u8], inode: Inode) {
        self.entries.push((self.names.len(), name.len() as u16, inode));
        self.names.extend_from_slice(name);
    }

    /// Writes the entries, by name. Names are unique and 1 to 256 bytes long, as the walk sees to.
    pub(super) fn write(mut self, to: &mut MetaWriter) -> Result<Listing, Error> {
        let names = &self.names;
        let name = |&(start, len, _): &(usize, u16, Inode)| {
            names.get(start..).and_then(|rest| rest.get(..len.into())).unwrap_or_default()
        };
        self.entries.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        let mut writer = ListingWriter {
            listing: Listing { position: to.position(), len: 0, index: Vec::new(), index_count: 0 },
            indexed_block: to.position().block,
            to,
            group: Group::default(),
        };
        for entry in &self.entries {
            writer.push(name(entry), entry.2)?;
        }
        writer.flush()?;
        let mut listing = writer.listing;
        if listing.len as usize <= METADATA_LEN {
            // It only straddles two blocks, and is sooner read than its index.
            (listing.index, listing.index_count) = (Vec::new(), 0);
        }
        Ok(listing)
    }
}

struct ListingWriter<'a> {
    to: &'a mut MetaWriter,
    listing: Listing,
    group: Group,
    /// The last metadata block that the index, or the listing's start, leads to.
    indexed_block: u64,
}

impl ListingWriter<'_> {
    fn push(&mut self, name: &[u8], inode: Inode) -> Result<(), Error> {
        let delta = i64::from(inode.number) - i64::from(self.group.first_number);
        let filled = usize::from(self.to.position().offset)
            + size_of::<RawDirHeader>()
            + self.group.bytes.len();
        let fits = self.group.count < DIR_GROUP_LEN
            && inode.position.block == self.group.inode_block
            && i16::try_from(delta).is_ok()
            // Each metadata block gets a header of its own for the index to lead to.
            && filled < METADATA_LEN;
        if self.group.count == 0 || !fits {
            self.flush()?;
            self.group.inode_block = inode.position.block;
            self.group.first_number = inode.number;
            self.group.first_name = name.to_vec();
        }
        let delta = i64::from(inode.number) - i64::from(self.group.first_number);
        let raw = RawDirEntry {
            inode_offset: inode.position.offset.into(),
            // Checked above, or zero.
            inode_number_delta: (delta as i16).into(),
            kind: kind_code(inode.kind).into(),
            size: (name.len().saturating_sub(1) as u16).into(),
        };
        self.group.bytes.extend_from_slice(raw.as_bytes());
        self.group.bytes.extend_from_slice(name);
        self.group.count += 1;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        let group = std::mem::take(&mut self.group);
        let Some(last) = group.count.checked_sub(1) else { return Ok(()) };
        let limit = |_| Error::limit("listings or inodes of more than 4 GiB");
        let block = self.to.position().block;
        if block != self.indexed_block {
            self.indexed_block = block;
            let block = u32::try_from(block).map_err(limit)?;
            self.index(block, &group.first_name);
        }
        let header = RawDirHeader {
            count: last.into(),
            inode_block: u32::try_from(group.inode_block).map_err(limit)?.into(),
            inode_number: group.first_number.into(),
        };
        self.to.write_struct(&header)?;
        self.to.write(&group.bytes)?;
        let len = size_of::<RawDirHeader>() + group.bytes.len();
        // A group is some 70 KB long at most.
        self.listing.len = (self.listing.len.checked_add(len as u32))
            .ok_or_else(|| Error::limit("a directory whose listing takes more than 4 GiB"))?;
        Ok(())
    }

    /// Adds to the index that the group now written begins at `block`. An index that is full
    /// ends early: what it doesn't lead to is found all the same.
    fn index(&mut self, block: u32, name: &[u8]) {
        let Some(count) = self.listing.index_count.checked_add(1) else { return };
        self.listing.index_count = count;
        let raw = RawDirIndex {
            position: self.listing.len.into(),
            block: block.into(),
            size: (name.len().saturating_sub(1) as u32).into(),
        };
        self.listing.index.extend_from_slice(raw.as_bytes());
        self.listing.index.extend_from_slice(name);
    }
}
