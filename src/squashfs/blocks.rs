//! Block lists: how many bytes each block of a file takes, and so where each is.
//!
//! A list only holds sizes, and block `n` starts where the sizes before it sum to. Lists are read
//! in segments, of which the recent ones are kept; for files of many segments, marks spread over
//! the file say where the sum stands. Both are bounded in number, whatever size an inode claims.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::Mutex;
use zerocopy::little_endian::U32;

use super::error::Error;
use super::format::BLOCK_STORED;
use super::inode::Inode;
use super::metadata::{MetaPosition, MetadataBlocks};
use super::plan::{FileLayout, StoredBlock, stored_len};
use crate::types::{ArchiveOffset, InodeRef};

/// Blocks in a segment: 4 KiB of list, 128 MiB of file at 128 KiB blocks.
const SEGMENT: u64 = 1024;
/// Segments kept: 1 MiB at most.
const SEGMENTS: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// Marks kept of one file: 24 KiB. In a file of 1 TiB at 128 KiB they are 8 segments apart, four
/// metadata blocks.
const MARKS: u64 = 1024;
/// Files whose marks are kept.
const MARKED_FILES: NonZeroUsize = NonZeroUsize::new(32).expect("not zero");

/// Where a segment starts.
#[derive(Clone, Copy)]
struct Mark {
    list: MetaPosition,
    data: ArchiveOffset,
}

struct Segment {
    data: ArchiveOffset,
    words: Box<[u32]>,
    end: Mark,
}

/// Where in an archive the blocks of its files are.
pub(super) struct BlockIndex {
    block_size: u32,
    /// Of the metadata that the rest was read from.
    generation: AtomicU64,
    segments: Mutex<LruCache<(InodeRef, u64), Arc<Segment>>>,
    /// The marks of a file, from its first segment on at the distance of [`stride`].
    marks: Mutex<LruCache<InodeRef, Vec<Mark>>>,
}

/// Segments between the marks of a file of `segments`.
fn stride(segments: u64) -> u64 {
    segments.div_ceil(MARKS).max(1)
}

impl BlockIndex {
    pub(super) fn new(block_size: u32) -> Self {
        Self {
            block_size,
            generation: AtomicU64::new(0),
            segments: Mutex::new(LruCache::new(SEGMENTS)),
            marks: Mutex::new(LruCache::new(MARKED_FILES)),
        }
    }

    /// The given blocks of a file, in order; `None` is a hole. `blocks` are the file's, as
    /// [`FileLayout::blocks`] has them. Reads metadata where `metadata` is given, else answers
    /// `Ok(None)` when it would have to.
    pub(super) fn locate(
        &self,
        metadata: Option<&MetadataBlocks>,
        inode: InodeRef,
        layout: &FileLayout,
        blocks: Range<u64>,
    ) -> Result<Option<Vec<Option<StoredBlock>>>, Error> {
        if blocks.is_empty() {
            return Ok(Some(Vec::new()));
        }
        self.keep_up(metadata);
        if let Some(word) = layout.first.filter(|_| blocks == (0..1)) {
            return Ok(Some(vec![stored_block(layout.start, word)?]));
        }
        let mut found = Vec::new();
        for number in blocks.start / SEGMENT..blocks.end.div_ceil(SEGMENT) {
            let cached = self.segments.lock().get(&(inode, number)).cloned();
            let segment = match (cached, metadata) {
                (Some(segment), _) => segment,
                (None, Some(metadata)) => self.read(metadata, inode, layout, number)?,
                (None, None) => return Ok(None),
            };
            let mut at = segment.data;
            for (block, &word) in (number * SEGMENT..).zip(&segment.words) {
                if blocks.contains(&block) {
                    found.push(stored_block(at, word)?);
                }
                at = advance(at, word)?;
            }
        }
        Ok(Some(found))
    }

    /// The first block from `from` on that is a hole or, with `hole` false, that isn't; `None`
    /// where the block list ends before there is one.
    pub(super) fn seek(
        &self,
        metadata: &MetadataBlocks,
        inode: &Inode,
        layout: &FileLayout,
        from: u64,
        hole: bool,
    ) -> Result<Option<u64>, Error> {
        self.keep_up(Some(metadata));
        let count = layout.block_count(self.block_size);
        for number in from / SEGMENT..count.div_ceil(SEGMENT) {
            let cached = self.segments.lock().get(&(inode.reference, number)).cloned();
            let segment = match cached {
                Some(segment) => segment,
                None => self.read(metadata, inode.reference, layout, number)?,
            };
            let mut words = (number * SEGMENT..).zip(&segment.words);
            if let Some((block, _)) = words.find(|&(n, &word)| n >= from && (word == 0) == hole) {
                return Ok(Some(block));
            }
        }
        Ok(None)
    }

    /// Forgets what was read of other metadata than there is now.
    fn keep_up(&self, metadata: Option<&MetadataBlocks>) {
        let Some(generation) = metadata.map(MetadataBlocks::generation) else { return };
        if self.generation.swap(generation, Ordering::Relaxed) != generation {
            self.segments.lock().clear();
            self.marks.lock().clear();
        }
    }

    /// Reads a segment, and marks the way to it.
    fn read(
        &self,
        metadata: &MetadataBlocks,
        inode: InodeRef,
        layout: &FileLayout,
        number: u64,
    ) -> Result<Arc<Segment>, Error> {
        let count = layout.block_count(self.block_size);
        let stride = stride(count.div_ceil(SEGMENT));
        let (mut at, mut mark) = self.nearest(inode, layout, number, stride);
        let mut passed = Vec::new();
        let segment = loop {
            let words = (count - at * SEGMENT).min(SEGMENT);
            let segment = read_segment(metadata, mark, words)?;
            if at == number {
                break Arc::new(segment);
            }
            (at, mark) = (at + 1, segment.end);
            if at % stride == 0 {
                passed.push((at / stride, mark));
            }
        };
        self.remember(inode, layout, passed);
        self.segments.lock().put((inode, number), Arc::clone(&segment));
        Ok(segment)
    }

    /// The last segment up to `number` whose start is known, and that start.
    fn nearest(
        &self,
        inode: InodeRef,
        layout: &FileLayout,
        number: u64,
        stride: u64,
    ) -> (u64, Mark) {
        let start = Mark { list: layout.list, data: layout.start };
        let Some(before) = number.checked_sub(1) else { return (0, start) };
        // Sequential reading finds the segment before.
        if let Some(segment) = self.segments.lock().get(&(inode, before)) {
            return (number, segment.end);
        }
        let mut files = self.marks.lock();
        let Some(marks) = files.get(&inode) else { return (0, start) };
        let reachable = usize::try_from(number / stride).unwrap_or(usize::MAX).saturating_add(1);
        let known = marks.get(..reachable).unwrap_or(marks);
        match known.last() {
            Some(&mark) => ((known.len() as u64 - 1) * stride, mark),
            None => (0, start),
        }
    }

    /// Keeps those of the marks `passed` (with their numbers, ascending) that continue what is
    /// known of the file.
    fn remember(&self, inode: InodeRef, layout: &FileLayout, passed: Vec<(u64, Mark)>) {
        if passed.is_empty() {
            return;
        }
        let mut files = self.marks.lock();
        let start = Mark { list: layout.list, data: layout.start };
        let marks = files.get_or_insert_mut(inode, || vec![start]);
        for (number, mark) in passed {
            if number == marks.len() as u64 {
                marks.push(mark);
            }
        }
    }
}

fn read_segment(metadata: &MetadataBlocks, start: Mark, words: u64) -> Result<Segment, Error> {
    let mut reader = metadata.reader("block list", start.list);
    let bytes = reader.read_vec(words as usize * size_of::<U32>())?;
    let words: Box<[u32]> =
        bytes.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect();
    let data = words.iter().try_fold(start.data, |at, &word| advance(at, word))?;
    Ok(Segment { data: start.data, words, end: Mark { list: reader.position(), data } })
}

/// The start of the block behind one at `at`.
fn advance(at: ArchiveOffset, word: u32) -> Result<ArchiveOffset, Error> {
    if word >= BLOCK_STORED << 1 {
        return Err(Error::corrupt("data block", at, format!("its size word is {word:#x}")));
    }
    at.checked_add(stored_len(word).into())
        .ok_or_else(|| Error::corrupt("data block", at, "its end is past all archives"))
}

fn stored_block(at: ArchiveOffset, word: u32) -> Result<Option<StoredBlock>, Error> {
    if word == 0 {
        return Ok(None);
    }
    match StoredBlock::new(at, word) {
        Some(block) => Ok(Some(block)),
        None => Err(Error::corrupt("data block", at, format!("its size word is {word:#x}"))),
    }
}
