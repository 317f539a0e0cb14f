//! Which stored blocks answer a read. Pure: no I/O happens here, and none is needed to test it.
//!
//! A file is a run of blocks, of which each but the last decodes to exactly the block size, and
//! maybe a tail that shares a fragment block with the tails of others. A block of size zero is
//! sparse: nothing is stored for it.

use std::ops::Range;

use super::error::Error;
use super::format::BLOCK_STORED;
use super::metadata::MetaPosition;
use crate::types::{ArchiveOffset, ByteRange, FileOffset};

/// Where a file's bytes are.
#[derive(Clone, Debug)]
pub(super) struct FileLayout {
    /// Start of its first stored block.
    pub(super) start: ArchiveOffset,
    /// Size in bytes.
    pub(super) size: u64,
    /// Start of its block list.
    pub(super) list: MetaPosition,
    /// The first entry of the block list, if there is one and it can be read.
    pub(super) first: Option<u32>,
    /// Where its tail is, if not in a block of its own.
    pub(super) fragment: Option<Fragment>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Fragment {
    /// Its number among all fragments.
    pub(super) index: u32,
    pub(super) block: StoredBlock,
    /// Where the tail starts in the decoded fragment block.
    pub(super) offset: u32,
}

/// A data or fragment block as stored. Its whole identity: two inodes that describe the bytes at
/// one place differently mean two blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct StoredBlock {
    at: ArchiveOffset,
    word: u32,
}

impl StoredBlock {
    /// From its position and its size word; `None` where bits are set that mean nothing.
    pub(super) fn new(at: ArchiveOffset, word: u32) -> Option<Self> {
        (word < BLOCK_STORED << 1).then_some(Self { at, word })
    }

    /// Whether its bytes need decoding.
    pub(super) fn is_compressed(self) -> bool {
        self.word & BLOCK_STORED == 0
    }

    /// Stored size in bytes.
    pub(super) fn len(self) -> u32 {
        stored_len(self.word)
    }

    /// The bytes it takes up; an error where no block can be that long, or the archive ends
    /// before them.
    pub(super) fn range(self, block_size: u32, end: ArchiveOffset) -> Result<ByteRange, Error> {
        let len = self.len();
        if len == 0 || len > block_size {
            return Err(self.corrupt(format!("it is {len} bytes long")));
        }
        ByteRange::new(self.at, len.into())
            .filter(|range| range.end() <= end)
            .ok_or_else(|| self.corrupt(format!("its {len} bytes reach past the archive's end")))
    }

    /// Where it starts.
    pub(super) fn at(self) -> ArchiveOffset {
        self.at
    }

    pub(super) fn corrupt(self, detail: impl Into<std::borrow::Cow<'static, str>>) -> Error {
        Error::corrupt("data block", self.at, detail)
    }
}

/// Bytes that a size word says are stored.
pub(super) fn stored_len(word: u32) -> u32 {
    word & !BLOCK_STORED
}

/// A stretch of a read that one source answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// `None` for a hole.
    pub(super) source: Option<StoredBlock>,
    /// Bytes to pass over in the decoded source.
    pub(super) skip: usize,
    /// Bytes to take.
    pub(super) len: usize,
    /// Bytes the decoded source must have, or the archive is corrupt.
    pub(super) needs: usize,
}

impl FileLayout {
    /// Entries of the block list.
    pub(super) fn block_count(&self, block_size: u32) -> u64 {
        match self.fragment {
            Some(_) => self.size / u64::from(block_size),
            None => self.size.div_ceil(block_size.into()),
        }
    }

    /// The part of a read that is inside the file.
    pub(super) fn clamp(&self, at: FileOffset, len: usize) -> Range<u64> {
        let start = at.0.min(self.size);
        start..start + (len as u64).min(self.size - start)
    }

    /// The blocks (a fragment isn't one) that a read of `bytes` touches.
    pub(super) fn blocks(&self, block_size: u32, bytes: &Range<u64>) -> Range<u64> {
        let size = u64::from(block_size);
        let count = self.block_count(block_size);
        let first = (bytes.start / size).min(count);
        first..bytes.end.div_ceil(size).clamp(first, count)
    }

    /// Splits a read of `bytes`, which are inside the file, by what answers it. `blocks` are those
    /// that [`FileLayout::blocks`] asked for; `None` is a hole.
    pub(super) fn extents(
        &self,
        block_size: u32,
        bytes: Range<u64>,
        blocks: impl IntoIterator<Item = Option<StoredBlock>>,
    ) -> Vec<Extent> {
        let size = u64::from(block_size);
        let mut extents = Vec::new();
        let mut at = bytes.start;
        let fragment = self.fragment.map(|fragment| (Some(fragment.block), fragment.offset));
        let sources = blocks.into_iter().map(|block| (block, 0)).chain(fragment);
        for (source, offset) in sources {
            if at >= bytes.end {
                break;
            }
            let block_start = at - at % size;
            let block_end = (block_start + size).min(self.size);
            let end = bytes.end.min(block_end);
            // All of these are at most a block's size plus a 32-bit offset.
            let inside = |position: u64| (position - block_start + u64::from(offset)) as usize;
            extents.push(Extent {
                source,
                skip: inside(at),
                len: (end - at) as usize,
                needs: inside(block_end),
            });
            at = end;
        }
        extents
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u32 = 4096;

    fn block(at: u64) -> StoredBlock {
        StoredBlock::new(ArchiveOffset(at), 100).unwrap()
    }

    fn file(size: u64, fragment: Option<u32>) -> FileLayout {
        FileLayout {
            start: ArchiveOffset(96),
            size,
            list: MetaPosition { block: ArchiveOffset(0), offset: 0 },
            first: None,
            fragment: fragment.map(|offset| Fragment { index: 7, block: block(7), offset }),
        }
    }

    /// (source, skip, len, needs), with sources by their position and 0 for a hole.
    fn plan(file: &FileLayout, at: u64, len: usize) -> Vec<(u64, usize, usize, usize)> {
        let bytes = file.clamp(FileOffset(at), len);
        let blocks = file.blocks(SIZE, &bytes);
        // Block 2 is a hole, block n lies at 1000 + n.
        let sources = blocks.map(|n| (n != 2).then(|| block(1000 + n)));
        file.extents(SIZE, bytes, sources)
            .iter()
            .map(|extent| {
                let at = extent.source.map_or(0, |block| block.at.0);
                (at, extent.skip, extent.len, extent.needs)
            })
            .collect()
    }

    #[test]
    fn a_read_is_split_at_block_boundaries() {
        let whole = file(4 * 4096, None);
        let tail = file(3 * 4096 + 10, None);
        let fragment = file(3 * 4096 + 10, Some(50));
        let small = file(10, Some(50));
        let no_tail = file(4096, Some(50));
        type Plan = &'static [(u64, usize, usize, usize)];
        let cases: &[(&FileLayout, u64, usize, Plan)] = &[
            (&whole, 0, 1, &[(1000, 0, 1, 4096)]),
            (&whole, 4095, 2, &[(1000, 4095, 1, 4096), (1001, 0, 1, 4096)]),
            (&whole, 8192, 8192, &[(0, 0, 4096, 4096), (1003, 0, 4096, 4096)]),
            (&whole, 4 * 4096, 1, &[]),
            (&whole, u64::MAX, usize::MAX, &[]),
            (&whole, 5, 0, &[]),
            (&tail, 3 * 4096, 4096, &[(1003, 0, 10, 10)]),
            (&fragment, 3 * 4096 + 4, 4096, &[(7, 54, 6, 60)]),
            (&fragment, 12_280, 100, &[(0, 4088, 8, 4096), (7, 50, 10, 60)]),
            (&small, 0, 100, &[(7, 50, 10, 60)]),
            (&small, 9, 1, &[(7, 59, 1, 60)]),
            (&no_tail, 0, 9000, &[(1000, 0, 4096, 4096)]),
        ];
        for (file, at, len, expected) in cases {
            assert_eq!(plan(file, *at, *len), *expected, "{len} bytes from {at} of {file:?}");
        }
    }

    #[test]
    fn a_block_no_archive_holds_is_refused() {
        let end = ArchiveOffset(5000);
        let range = |at, word| {
            StoredBlock::new(ArchiveOffset(at), word).map(|b| b.range(SIZE, end).is_ok())
        };
        assert_eq!(range(904, 4096), Some(true));
        assert_eq!(range(905, 4096), Some(false));
        assert_eq!(range(0, 4097 | BLOCK_STORED), Some(false));
        assert_eq!(range(0, BLOCK_STORED), Some(false));
        assert_eq!(range(u64::MAX, 1), Some(false));
        assert_eq!(range(0, BLOCK_STORED << 1), None);
    }
}
