//! Reading files: plan, fetch what is missing at once, decode, slice.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::codec::Codec;
use super::decoded::{CacheCounters, Claim, DecodedCache, Weigh, join};
use super::error::Error;
use super::plan::{Extent, StoredBlock};
use crate::buffers;
use crate::cache::{Blob, may_wait};
use crate::types::{ArchiveOffset, ByteRange};

/// Decoded data and fragment blocks of an archive.
pub(super) struct DataBlocks {
    blob: Arc<dyn Blob>,
    codec: Codec,
    block_size: u32,
    /// One past the archive's last byte.
    end: ArchiveOffset,
    decoded: DecodedCache<StoredBlock, Bytes>,
}

impl Weigh for Bytes {
    fn weight(&self) -> usize {
        self.len()
    }
}

impl DataBlocks {
    pub(super) fn new(
        blob: Arc<dyn Blob>,
        codec: Codec,
        block_size: u32,
        end: ArchiveOffset,
        budget: usize,
    ) -> Self {
        Self { blob, codec, block_size, end, decoded: DecodedCache::new(budget) }
    }

    pub(super) fn counters(&self) -> CacheCounters {
        self.decoded.counters()
    }

    /// The bytes of `extents` where all are decoded, holes, or stored as they are and in memory.
    pub(super) fn get(&self, extents: &[Extent]) -> Option<Bytes> {
        let mut parts = Vec::with_capacity(extents.len());
        for extent in extents {
            parts.push(match extent.source {
                None => None,
                Some(block) if block.is_compressed() => Some(self.decoded.get(block)?),
                Some(block) => Some(self.blob.get(block.range(self.block_size, self.end).ok()?)?),
            });
        }
        assemble(extents, parts).ok()
    }

    /// The bytes of `extents`: one fetch for all that are missing, then one decode each, shared
    /// with whoever wants the same block meanwhile. `begins_small` says that they are the first of a
    /// small file.
    pub(super) fn read(&self, extents: &[Extent], begins_small: bool) -> Result<Bytes, Error> {
        let mut parts: Vec<Option<Bytes>> = vec![None; extents.len()];
        let mut wanted: Vec<ByteRange> = Vec::new();
        // Indexes into `parts`, of blocks to use as they come and of blocks to decode.
        let mut plain = Vec::new();
        let mut leads = Vec::new();
        let mut flights = Vec::new();
        for (index, extent) in extents.iter().enumerate() {
            let Some(block) = extent.source else { continue };
            let range = block.range(self.block_size, self.end)?;
            // Blocks stored as they are stay below: caching slices of the blob's chunks here would
            // keep whole chunks alive.
            if !block.is_compressed() {
                plain.push((index, wanted.len()));
                wanted.push(range);
                continue;
            }
            match self.decoded.claim(block) {
                Claim::Ready(bytes) => set(&mut parts, index, bytes),
                Claim::Lead(lead) => {
                    leads.push((index, wanted.len(), (block, extent.needs), lead));
                    wanted.push(range);
                }
                Claim::Join(flight) => flights.push((index, block, flight)),
            }
        }
        let begins = wanted.first().filter(|_| begins_small);
        let note = || begins.into_iter().for_each(|first| self.blob.note_small_file(*first));
        // Once for a read, however often it is tried: what fails here because it would wait comes again.
        let waits = may_wait();
        if waits {
            note();
        }
        let fetched = if wanted.is_empty() { Ok(Vec::new()) } else { self.blob.fetch(&wanted) };
        if !waits && fetched.is_ok() {
            note();
        }
        let stored = |position: usize| match &fetched {
            Ok(fetched) => Ok(fetched.get(position).cloned().unwrap_or_default()),
            Err(error) => Err(Error::Blob(error.clone())),
        };
        // Every flight that is led here lands before the first error returns or anyone is waited
        // for.
        let mut failure = None;
        for (index, position, (block, needs), lead) in leads {
            match lead.land(stored(position).and_then(|bytes| self.decode(block, needs, &bytes))) {
                Ok(bytes) => set(&mut parts, index, bytes),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        for (index, position) in plain {
            set(&mut parts, index, stored(position)?);
        }
        for (index, block, flight) in flights {
            let bytes = match join(&flight) {
                Some(outcome) => outcome?,
                None => self.load(block, extents.get(index).map_or(0, |extent| extent.needs))?,
            };
            set(&mut parts, index, bytes);
        }
        // Enough for who had it decoded is not enough for everybody.
        for (extent, part) in extents.iter().zip(&mut parts) {
            if let (Some(block), Some(bytes)) = (extent.source, &part)
                && block.is_compressed()
                && bytes.len() < extent.needs
            {
                self.decoded.forget(block);
                *part = Some(self.load(block, extent.needs)?);
            }
        }
        assemble(extents, parts)
    }

    /// Fetches blocks with one request and decodes each, which must give as many bytes as are named
    /// beside it. Neither takes from the decoded blocks nor adds to them: this is for going through
    /// an archive once.
    pub(super) fn check(&self, blocks: &[(StoredBlock, u32)]) -> Result<(), Error> {
        let ranges = blocks
            .iter()
            .map(|(block, _)| block.range(self.block_size, self.end))
            .collect::<Result<Vec<_>, _>>()?;
        let fetched = self.blob.fetch(&ranges)?;
        for (&(block, needs), stored) in blocks.iter().zip(&fetched) {
            let found = match block.is_compressed() {
                true => self.decode(block, needs as usize, stored)?.len(),
                false => stored.len(),
            };
            check_len(block, found, needs as usize)?;
        }
        Ok(())
    }

    /// The block from the decoded ones, or fetched and decoded by who comes first.
    fn load(&self, block: StoredBlock, needs: usize) -> Result<Bytes, Error> {
        self.decoded.get_or_load(block, || {
            let range = block.range(self.block_size, self.end)?;
            let stored = self.blob.fetch(&[range])?.pop().unwrap_or_default();
            self.decode(block, needs, &stored)
        })
    }

    /// Decodes a block. One that does not decode, or to less than is needed of it, may have come damaged:
    /// it is fetched once more before that is an error.
    fn decode(&self, block: StoredBlock, needs: usize, stored: &[u8]) -> Result<Bytes, Error> {
        let decode = |stored: &[u8]| {
            let decoded = self.codec.decode(stored, self.block_size as usize);
            decoded.map_err(|reason| block.corrupt(reason))
        };
        let decoded = decode(stored);
        if decoded.as_ref().is_ok_and(|bytes| bytes.len() >= needs) {
            return decoded;
        }
        match self.blob.fetch_again(block.range(self.block_size, self.end)?, stored)? {
            Some(stored) => decode(&stored),
            None => decoded,
        }
    }
}

fn set(parts: &mut [Option<Bytes>], index: usize, bytes: Bytes) {
    if let Some(part) = parts.get_mut(index) {
        *part = Some(bytes);
    }
}

/// The bytes that `extents` take from their decoded sources, which `parts` holds. One extent is a
/// slice, more are copied together.
fn assemble(extents: &[Extent], parts: Vec<Option<Bytes>>) -> Result<Bytes, Error> {
    if let ([extent], [Some(part)]) = (extents, parts.as_slice())
        && let Some(block) = extent.source
    {
        return Ok(part.slice(taken(block, extent, part)?));
    }
    let mut joined = buffers::take(extents.iter().map(|extent| extent.len).sum());
    for (extent, part) in extents.iter().zip(&parts) {
        let end = joined.len() + extent.len;
        if let (Some(block), Some(part)) = (extent.source, part) {
            let source = taken(block, extent, part)?;
            joined.extend_from_slice(part.get(source).unwrap_or_default());
        }
        // A hole.
        joined.resize(end, 0);
    }
    Ok(buffers::share(joined))
}

/// Where in its decoded source an extent is. A source that is too short is an error even if it
/// covers this extent, as it would be when the rest is read; one that is too long isn't, as in
/// the kernel.
fn taken(block: StoredBlock, extent: &Extent, part: &Bytes) -> Result<Range<usize>, Error> {
    check_len(block, part.len(), extent.needs)?;
    Ok(extent.skip..extent.skip + extent.len)
}

fn check_len(block: StoredBlock, found: usize, needs: usize) -> Result<(), Error> {
    if found < needs {
        return Err(block.corrupt(format!("{found} bytes where {needs} are needed")));
    }
    Ok(())
}
