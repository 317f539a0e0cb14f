//! Metadata blocks: inodes, listings and tables, packed into blocks of 8 KiB.
//!
//! Of most archives all of it is held in memory as it is stored, some 32 bytes an inode, so that a walk of the
//! whole tree asks for nothing. The first who needs a block that is not here fetches it all, as a program that goes
//! through a tree needs the rest, too; others meanwhile fetch their own block. Where an archive has more than is to
//! be kept, each block is fetched when it is asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use zerocopy::{FromBytes, IntoBytes};

use super::codec::Codec;
use super::decoded::{CacheCounters, DecodedCache, Weigh};
use super::error::Error;
use super::format::{METADATA_HEADER_LEN, METADATA_LEN, METADATA_STORED};
use crate::cache::{Blob, may_wait};
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
pub(super) struct MetadataBlocks {
    blob: Arc<dyn Blob>,
    codec: Codec,
    /// One past the archive's last byte.
    end: ArchiveOffset,
    held: Option<Held>,
    decoded: DecodedCache<ArchiveOffset, MetaBlock>,
    /// How often some of it turned out to be other than it had come.
    generation: AtomicU64,
}

/// All stored metadata, kept in memory once it is there. Where an archive has more of it than is to
/// be kept, there is no such thing, and each block is fetched when asked for.
struct Held {
    range: ByteRange,
    /// Empty until they are here.
    bytes: RwLock<Bytes>,
    /// Held by who fetches all of it.
    fetching: Mutex<()>,
}

impl Held {
    fn is_here(&self) -> bool {
        !self.bytes.read().is_empty()
    }

    fn get(&self, range: ByteRange) -> Option<Bytes> {
        if !self.range.contains(range) {
            return None;
        }
        let start = usize::try_from(range.start().0 - self.range.start().0).ok()?;
        let end = start.checked_add(usize::try_from(range.len()).ok()?)?;
        let bytes = self.bytes.read();
        (end <= bytes.len()).then(|| bytes.slice(start..end))
    }
}

impl MetadataBlocks {
    /// The metadata up to `end`. All that is stored in `range` will be held in memory, and is from now on
    /// if the blob has it at hand; `budget` is for what is decoded, in bytes.
    pub(super) fn new(
        blob: Arc<dyn Blob>,
        codec: Codec,
        end: ArchiveOffset,
        range: Option<ByteRange>,
        budget: usize,
    ) -> Self {
        let held = range.map(|range| {
            let bytes = RwLock::new(blob.get(range).unwrap_or_default());
            Held { range, bytes, fetching: Mutex::new(()) }
        });
        let generation = AtomicU64::new(0);
        Self { blob, codec, end, held, decoded: DecodedCache::new(budget), generation }
    }

    pub(super) fn is_resident(&self) -> bool {
        self.held.as_ref().is_some_and(Held::is_here)
    }

    /// Fetches all that is to be held, if that has not happened.
    pub(super) fn hold(&self) -> Result<(), Error> {
        match &self.held {
            Some(held) => {
                let _turn = held.fetching.lock();
                self.fetch_all(held)
            }
            None => Ok(()),
        }
    }

    /// Called with `fetching` held.
    fn fetch_all(&self, held: &Held) -> Result<(), Error> {
        if !held.is_here()
            && let Some(bytes) = self.blob.fetch(&[held.range])?.pop()
        {
            *held.bytes.write() = bytes;
        }
        Ok(())
    }

    pub(super) fn counters(&self) -> CacheCounters {
        self.decoded.counters()
    }

    /// The stored bytes of `ranges`, which the caller has checked to be inside the archive.
    pub(super) fn stored(&self, ranges: &[ByteRange]) -> Result<Vec<Bytes>, Error> {
        let here = |&range: &ByteRange| self.held.as_ref()?.get(range);
        match ranges.iter().map(here).collect() {
            Some(bytes) => Ok(bytes),
            None => Ok(self.blob.fetch(ranges)?),
        }
    }

    /// The stored bytes around one block. The first of which any has to be fetched brings all that is
    /// to be held, since a program that goes through a tree needs the rest, too.
    fn stored_block(&self, range: ByteRange) -> Result<Bytes, Error> {
        if let Some(held) = &self.held
            && held.range.contains(range)
        {
            if let Some(bytes) = held.get(range).or_else(|| self.blob.get(range)) {
                return Ok(bytes);
            }
            // Others wait for no more than their block, which may well be on its way, and so does who
            // must not wait for all.
            if may_wait()
                && let Some(_turn) = held.fetching.try_lock()
            {
                self.fetch_all(held)?;
            }
        }
        Ok(self.stored(&[range])?.pop().unwrap_or_default())
    }

    /// Starts reading `structure` (which errors name) at `position`.
    pub(super) fn reader(&self, structure: &'static str, position: MetaPosition) -> MetaReader<'_> {
        let generation = self.generation();
        MetaReader { metadata: self, structure, position, block: None, before: None, generation }
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

    /// What a block at `at` may take: one request brings its header and all that it can announce.
    fn range(&self, at: ArchiveOffset) -> Option<ByteRange> {
        let most = METADATA_HEADER_LEN + METADATA_LEN as u64;
        ByteRange::new(at, self.end.0.checked_sub(at.0)?.min(most))
    }

    fn load(&self, structure: &'static str, at: ArchiveOffset) -> Result<MetaBlock, Error> {
        let range = self.range(at).ok_or_else(|| self.past_end(structure, at))?;
        let generation = self.generation();
        let parsed = self.parse(structure, at, &self.stored_block(range)?);
        match parsed {
            // It may have come damaged.
            Err(Error::Corrupt { .. }) if self.is_renewed_since(generation, at)? => {
                self.parse(structure, at, &self.stored_block(range)?)
            }
            _ => parsed,
        }
    }

    /// Changes whenever what was read of metadata may have been other than it is.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Says whether what made no sense around `at` is worth another look: because it is other than it was
    /// at `generation`, or is now that it has been fetched once more. What is held is fetched as a whole,
    /// since what makes no sense in one place may have been damaged in another.
    pub(super) fn is_renewed_since(
        &self,
        generation: u64,
        at: ArchiveOffset,
    ) -> Result<bool, Error> {
        if self.generation() != generation {
            return Ok(true);
        }
        let held = self.held.as_ref().filter(|held| held.is_here());
        let (range, came) = match held {
            Some(held) => (held.range, held.bytes.read().clone()),
            None => match self.range(at).filter(|range| !range.is_empty()) {
                Some(range) => (range, self.stored_block(range)?),
                None => return Ok(false),
            },
        };
        let Some(again) = self.blob.fetch_again(range, &came)? else { return Ok(false) };
        if let Some(held) = held {
            *held.bytes.write() = again;
        }
        self.generation.fetch_add(1, Ordering::Release);
        self.decoded.clear();
        Ok(true)
    }

    fn past_end(&self, structure: &'static str, at: ArchiveOffset) -> Error {
        let end = self.end;
        let detail = format!("its metadata block reaches past the archive's end, byte {end}");
        Error::corrupt(structure, at, detail)
    }

    fn parse(
        &self,
        structure: &'static str,
        at: ArchiveOffset,
        bytes: &[u8],
    ) -> Result<MetaBlock, Error> {
        let corrupt = |detail: String| Error::corrupt(structure, at, detail);
        let past_end = || self.past_end(structure, at);
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
            decoded.map_err(|reason| Error::corrupt(structure, at, reason))?
        };
        let next = ArchiveOffset(at.0 + METADATA_HEADER_LEN + len as u64);
        Ok(MetaBlock { bytes: decoded, next })
    }
}

/// Reads through packed metadata, block after block.
#[derive(Clone)]
pub(super) struct MetaReader<'a> {
    metadata: &'a MetadataBlocks,
    structure: &'static str,
    position: MetaPosition,
    /// The block at `position`, once read from.
    block: Option<MetaBlock>,
    /// Where the block before it starts, which said where it does, and how many bytes that had.
    before: Option<(ArchiveOffset, usize)>,
    generation: u64,
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

    /// The block at `position`. Where there is none, the one before may have been damaged where it says
    /// how long it is.
    fn load(&mut self) -> Result<MetaBlock, Error> {
        let Self { metadata, structure, .. } = *self;
        let found = metadata.block(structure, self.position.block);
        let (Err(Error::Corrupt { .. }), Some((before, read))) = (&found, self.before) else {
            return found;
        };
        if !metadata.is_renewed_since(self.generation, before)? {
            return found;
        }
        let block = metadata.block(structure, before)?;
        match block.bytes.len().cmp(&read) {
            // What was read of it was more than there is.
            std::cmp::Ordering::Less => found,
            std::cmp::Ordering::Equal => {
                self.position.block = block.next;
                metadata.block(structure, block.next)
            }
            std::cmp::Ordering::Greater => {
                self.position = MetaPosition { block: before, offset: read };
                Ok(block)
            }
        }
    }

    /// Hands `take` between one and `most` bytes of the current block and moves behind them.
    fn consume(&mut self, most: usize, take: impl FnOnce(&[u8])) -> Result<(), Error> {
        let block = match self.block.take() {
            Some(block) => block,
            None => self.load()?,
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
            self.before = Some((self.position.block, block.bytes.len()));
            self.position = MetaPosition { block: block.next, offset: 0 };
        } else {
            self.block = Some(block);
        }
        Ok(())
    }
}
