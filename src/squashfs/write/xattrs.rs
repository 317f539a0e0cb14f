//! The tables of extended attributes. Inodes with the same attributes share a list, and long values
//! that occur again are stored once.

use std::collections::HashMap;

use super::super::format::{OUT_OF_LINE, RawXattrEntry, RawXattrId, RawXattrTable};
use super::compress::Compressor;
use super::error::Error;
use super::metadata::MetaWriter;
use super::spool::Spool;
use super::tail::Tail;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromZeros, IntoBytes};

/// Values from this length on are looked for among the earlier ones. A reference takes 12 bytes.
const SHARED_VALUE: usize = 32;
/// Bytes of lists, and of values, that are remembered. Those met later are stored again.
const REMEMBERED: usize = 4 << 20;
/// What an inode without attributes has for their index.
pub(super) use super::super::format::NO_XATTRS;

/// The prefixes that the format knows, in the order of their numbers.
const PREFIXES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

/// One attribute of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Xattr {
    /// The number of its prefix.
    kind: u16,
    /// The rest of its name.
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Xattr {
    /// `None` for a name that the format cannot hold, such as those of POSIX ACLs.
    pub(super) fn new(name: &[u8], value: Vec<u8>) -> Option<Self> {
        let found = PREFIXES.iter().zip(0..).find(|(prefix, _)| name.starts_with(prefix));
        let (prefix, kind) = found?;
        Some(Self { kind, name: name.strip_prefix(*prefix)?.to_vec(), value })
    }

    pub(super) fn is_storable(name: &[u8]) -> bool {
        PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    }
}

/// Gathers the attributes of all inodes.
pub(super) struct XattrTable {
    entries: MetaWriter,
    ids: Spool,
    count: u32,
    lists: Memory<u32>,
    values: Memory<u64>,
}

impl XattrTable {
    pub(super) fn new(compressor: Compressor) -> Self {
        Self {
            entries: MetaWriter::new(compressor),
            ids: Spool::default(),
            count: 0,
            lists: Memory::default(),
            values: Memory::default(),
        }
    }

    /// The index of a list of attributes, whose order doesn't matter.
    pub(super) fn add(&mut self, mut list: Vec<Xattr>) -> Result<u32, Error> {
        if list.is_empty() {
            return Ok(NO_XATTRS);
        }
        list.sort_unstable();
        let mut key = Vec::new();
        for Xattr { kind, name, value } in &list {
            key.extend(kind.to_le_bytes());
            key.extend((name.len() as u64).to_le_bytes());
            key.extend(name);
            key.extend((value.len() as u64).to_le_bytes());
            key.extend(value);
        }
        if let Some(index) = self.lists.get(&key) {
            return Ok(index);
        }
        let position = self.entries.position();
        let mut size = 0;
        for xattr in &list {
            size += size_of::<RawXattrEntry>() + xattr.name.len() + 4 + xattr.value.len();
            self.write(xattr)?;
        }
        let too_large = || Error::limit("that many extended attributes on one file");
        // Linux computes with 32 bits of it.
        if u32::try_from(position.block).is_err() {
            return Err(Error::limit("extended attributes of more than 4 GiB"));
        }
        let id = RawXattrId {
            xattrs: position.packed().into(),
            count: u32::try_from(list.len()).map_err(|_| too_large())?.into(),
            size: u32::try_from(size).map_err(|_| too_large())?.into(),
        };
        self.ids.append(id.as_bytes())?;
        let index = self.count;
        self.count += 1;
        self.lists.remember(key, index);
        Ok(index)
    }

    fn write(&mut self, xattr: &Xattr) -> Result<(), Error> {
        let shared = self.values.get(&xattr.value);
        let kind = xattr.kind | if shared.is_some() { OUT_OF_LINE } else { 0 };
        // Linux knows no names beyond 255 bytes and no values beyond 64 KiB.
        let size = xattr.name.len() as u16;
        self.entries.write_struct(&RawXattrEntry { kind: kind.into(), size: size.into() })?;
        self.entries.write(&xattr.name)?;
        if let Some(reference) = shared {
            self.entries.write_struct(&U32::new(size_of::<U64>() as u32))?;
            return self.entries.write_struct(&U64::new(reference));
        }
        let position = self.entries.position();
        self.entries.write_struct(&U32::new(xattr.value.len() as u32))?;
        self.entries.write(&xattr.value)?;
        if xattr.value.len() >= SHARED_VALUE {
            self.values.remember(xattr.value.clone(), position.packed());
        }
        Ok(())
    }

    /// Writes both tables behind each other. Returns where their index starts, if there are any.
    pub(super) fn finish(
        self,
        tail: &mut Tail<'_>,
        compressor: Compressor,
    ) -> Result<Option<u64>, Error> {
        if self.count == 0 {
            return Ok(None);
        }
        let entries = tail.position();
        tail.write_spool(self.entries.finish()?)?;
        let mut ids = super::metadata::TableWriter::new(compressor);
        let mut reader = super::spool::SpoolReader::new(&self.ids);
        while !reader.is_at_end() {
            ids.push(&reader.read::<RawXattrId>()?)?;
        }
        let (blocks, index) = ids.finish(tail.position())?;
        tail.write_spool(blocks)?;
        let at = tail.position();
        let mut header = RawXattrTable::new_zeroed();
        header.xattrs = entries.into();
        header.ids = self.count.into();
        tail.write(header.as_bytes().to_vec())?;
        tail.write(index)?;
        Ok(Some(at))
    }
}

/// Byte strings that occurred, within a bound.
struct Memory<T> {
    known: HashMap<Vec<u8>, T>,
    bytes: usize,
}

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Self { known: HashMap::new(), bytes: 0 }
    }
}

impl<T: Copy> Memory<T> {
    fn get(&self, key: &[u8]) -> Option<T> {
        self.known.get(key).copied()
    }

    fn remember(&mut self, key: Vec<u8>, value: T) {
        let cost = key.len() + size_of::<(Vec<u8>, T)>();
        if self.bytes + cost <= REMEMBERED {
            self.bytes += cost;
            self.known.insert(key, value);
        }
    }
}
