//! Metadata blocks: inodes, listings and tables, packed into blocks of 8 KiB.

use std::sync::Arc;

use bytes::Bytes;
use zerocopy::{FromBytes, IntoBytes};

use super::Error;
use super::codec::Codec;
use super::decoded::{CacheCounters, DecodedCache, Weigh};
use super::format::{METADATA_HEADER_LEN, METADATA_LEN, METADATA_STORED};
use crate::cache::Blob;
use crate::types::{ArchiveOffset, ByteRange};

/// Where something starts in packed metadata: a metadata block, and the offset in it once decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MetaPosition {
    pub(super) block: ArchiveOffset,
    pub(super) offset: usize,
}

impl MetaPosition {
    /// From a block position relative to the start of a table. Saturating is as good as failing:
    /// no archive reaches that far, so reading there is refused.
    pub(super) fn in_table(table: ArchiveOffset, block: u32, offset: u16) -> Self {
        Self { block: ArchiveOffset(table.0.saturating_add(block.into())), offset: offset.into() }
    }

    /// From a packed reference: 32 bits of block position, 16 of offset. The kernel ignores what
    /// is above them.
    pub(super) fn from_packed(table: ArchiveOffset, packed: u64) -> Self {
        Self::in_table(table, (packed >> 16) as u32, packed as u16)
    }
}

/// A decoded metadata block.
#[derive(Clone)]
struct MetaBlock {
    bytes: Bytes,
    /// Where the block behind it starts.
    next: ArchiveOffset,
}

impl Weigh for MetaBlock {
    fn weight(&self) -> usize {
        self.bytes.len()
    }
}

/// The archive's bytes outside its data, decoded on demand.
pub(super) struct Metadata {
    blob: Arc<dyn Blob>,
    codec: Codec,
    /// One past the archive's last byte.
    end: ArchiveOffset,
    /// The stored bytes of all metadata, where they are few enough to keep.
    resident: Option<Resident>,
    decoded: DecodedCache<ArchiveOffset, MetaBlock>,
}

/// A run of the archive kept in memory.
pub(super) struct Resident {
    pub(super) range: ByteRange,
    pub(super) bytes: Bytes,
}

impl Resident {
    fn get(&self, range: ByteRange) -> Option<Bytes> {
        if !self.range.contains(range) {
            return None;
        }
        let start = usize::try_from(range.start().0 - self.range.start().0).ok()?;
        let end = start.checked_add(usize::try_from(range.len()).ok()?)?;
        (end <= self.bytes.len()).then(|| self.bytes.slice(start..end))
    }
}

impl Metadata {
    pub(super) fn new(
        blob: Arc<dyn Blob>,
        codec: Codec,
        end: ArchiveOffset,
        resident: Option<Resident>,
        budget: usize,
    ) -> Self {
        Self { blob, codec, end, resident, decoded: DecodedCache::new(budget) }
    }

    pub(super) fn is_resident(&self) -> bool {
        self.resident.is_some()
    }

    pub(super) fn counters(&self) -> CacheCounters {
        self.decoded.counters()
    }

    /// The stored bytes of `ranges`, which the caller has checked to be inside the archive.
    pub(super) fn stored(&self, ranges: &[ByteRange]) -> Result<Vec<Bytes>, Error> {
        let here = |&range: &ByteRange| self.resident.as_ref()?.get(range);
        match ranges.iter().map(here).collect() {
            Some(bytes) => Ok(bytes),
            None => Ok(self.blob.fetch(ranges)?),
        }
    }

    /// Starts reading `structure` (which errors name) at `position`.
    pub(super) fn reader(&self, structure: &'static str, position: MetaPosition) -> MetaReader<'_> {
        MetaReader { metadata: self, structure, position, block: None }
    }

    /// How many bytes the metadata block at `at` decodes to, and where the one behind it starts.
    pub(super) fn extent(
        &self,
        structure: &'static str,
        at: ArchiveOffset,
    ) -> Result<(usize, ArchiveOffset), Error> {
        self.block(structure, at).map(|block| (block.bytes.len(), block.next))
    }

    fn block(&self, structure: &'static str, at: ArchiveOffset) -> Result<MetaBlock, Error> {
        self.decoded.get_or_load(at, || self.load(structure, at))
    }

    fn load(&self, structure: &'static str, at: ArchiveOffset) -> Result<MetaBlock, Error> {
        let corrupt = |detail: String| Error::corrupt(structure, at, detail);
        let past_end = || {
            corrupt(format!("its metadata block reaches past the archive's end, byte {}", self.end))
        };
        // One request brings the header and all that it can announce.
        let most = METADATA_HEADER_LEN + METADATA_LEN as u64;
        let left = self.end.0.checked_sub(at.0).ok_or_else(past_end)?;
        let range = ByteRange::new(at, left.min(most)).ok_or_else(past_end)?;
        let bytes = self.stored(&[range])?.pop().unwrap_or_default();
        let Some((&[low, high], _)) = bytes.split_first_chunk() else { return Err(past_end()) };
        let header = u16::from_le_bytes([low, high]);
        // The kernel reads a length of zero as 32,768, which is then too long.
        let len = match usize::from(header & !METADATA_STORED) {
            0 => usize::from(METADATA_STORED),
            len => len,
        };
        if len > METADATA_LEN {
            return Err(corrupt(format!("its metadata block is {len} bytes long")));
        }
        let stored_start = METADATA_HEADER_LEN as usize;
        let stored = bytes.get(stored_start..stored_start + len).ok_or_else(past_end)?;
        let decoded = if header & METADATA_STORED != 0 {
            // A copy, since a slice could keep a whole chunk of the cache below alive.
            Bytes::copy_from_slice(stored)
        } else {
            let decoded = self.codec.decode(stored, METADATA_LEN);
            Bytes::from(decoded.map_err(|reason| Error::corrupt(structure, at, reason))?)
        };
        let next = ArchiveOffset(at.0 + METADATA_HEADER_LEN + len as u64);
        Ok(MetaBlock { bytes: decoded, next })
    }
}

/// Reads through packed metadata, block after block.
#[derive(Clone)]
pub(super) struct MetaReader<'a> {
    metadata: &'a Metadata,
    structure: &'static str,
    position: MetaPosition,
    /// The block at `position`, once read from.
    block: Option<MetaBlock>,
}

impl MetaReader<'_> {
    /// Where the next byte is read.
    pub(super) fn position(&self) -> MetaPosition {
        self.position
    }

    /// An error about what is being read.
    pub(super) fn corrupt(&self, detail: String) -> Error {
        Error::corrupt(self.structure, self.position.block, detail)
    }

    /// Reads one on-disk struct.
    pub(super) fn read<T: FromBytes + IntoBytes>(&mut self) -> Result<T, Error> {
        let mut value = T::new_zeroed();
        self.read_exact(value.as_mut_bytes())?;
        Ok(value)
    }

    /// Fills `out`.
    pub(super) fn read_exact(&mut self, mut out: &mut [u8]) -> Result<(), Error> {
        while !out.is_empty() {
            self.consume(out.len(), |bytes| {
                let (filled, rest) = std::mem::take(&mut out).split_at_mut(bytes.len());
                filled.copy_from_slice(bytes);
                out = rest;
            })?;
        }
        Ok(())
    }

    /// Reads `len` bytes; the caller bounds it.
    pub(super) fn read_vec(&mut self, len: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; len];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Passes over `len` bytes.
    pub(super) fn skip(&mut self, mut len: usize) -> Result<(), Error> {
        while len > 0 {
            self.consume(len, |bytes| len -= bytes.len())?;
        }
        Ok(())
    }

    /// Hands `take` between one and `most` bytes of the current block and moves behind them.
    fn consume(&mut self, most: usize, take: impl FnOnce(&[u8])) -> Result<(), Error> {
        let block = match self.block.take() {
            Some(block) => block,
            None => self.metadata.block(self.structure, self.position.block)?,
        };
        let rest = block.bytes.get(self.position.offset..).unwrap_or_default();
        let taken = rest.get(..most).unwrap_or(rest);
        if taken.is_empty() {
            let (offset, len) = (self.position.offset, block.bytes.len());
            return Err(self.corrupt(format!("offset {offset} in a metadata block of {len} bytes")));
        }
        take(taken);
        self.position.offset += taken.len();
        if self.position.offset == block.bytes.len() {
            self.position = MetaPosition { block: block.next, offset: 0 };
        } else {
            self.block = Some(block);
        }
        Ok(())
    }
}
