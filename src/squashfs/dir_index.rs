//! The index of a long listing: parsed once, kept for a while, searched by halves.
//!
//! On disk an index can only be read from its start. It has an entry for each 8 KiB of a listing, so
//! in a directory of a million names a search from the start would read thousands of them each time.

use std::sync::Arc;

use super::decoded::{DecodedCache, Weigh};
use super::error::Error;
use super::format::{NAME_LEN, RawDirIndex};
use super::inode::{DirectoryLayout, Inode};
use super::metadata::{MetaReader, MetadataBlocks};
use crate::types::InodeRef;

/// Bytes of parsed indexes to keep: those of directories with two million names together.
const BUDGET: usize = 512 << 10;

/// One entry: where in the listing a metadata block starts, and the first name behind it.
#[derive(Clone, Debug)]
struct Mark {
    /// The name or, where the index is out of order, the greatest so far. The kernel looks for the
    /// first name that is too great, and this is where it finds it.
    greatest: Box<[u8]>,
    /// The same for positions.
    farthest: u32,
    /// Bytes of the listing before the block.
    position: u32,
    /// Where the block is, from the start of the directory table.
    block: u32,
}

/// Where to start reading a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// Bytes of the listing that lie before.
    pub(super) position: u32,
    /// The metadata block, from the start of the directory table.
    pub(super) block: u32,
}

/// A parsed index.
#[derive(Debug, Default)]
pub(super) struct DirIndex {
    marks: Vec<Mark>,
}

impl Weigh for Arc<DirIndex> {
    fn weight(&self) -> usize {
        self.marks.iter().map(|mark| size_of::<Mark>() + mark.greatest.len()).sum()
    }
}

impl DirIndex {
    fn parse(metadata: &MetadataBlocks, layout: &DirectoryLayout) -> Result<Self, Error> {
        let mut reader = metadata.reader("directory index", layout.index);
        let mut marks: Vec<Mark> = Vec::new();
        for _ in 0..layout.index_count {
            // Names are found without the index too: damage in it only ends it, as in the kernel.
            let (raw, name) = match read_entry(&mut reader) {
                Ok(entry) => entry,
                Err(Error::Corrupt { .. }) => break,
                Err(error) => return Err(error),
            };
            let position = raw.position.get();
            let (greatest, farthest) = match marks.last() {
                Some(last) => {
                    let greatest =
                        if *last.greatest > *name { last.greatest.clone() } else { name };
                    (greatest, last.farthest.max(position))
                }
                None => (name, position),
            };
            marks.push(Mark { greatest, farthest, position, block: raw.block.get() });
        }
        Ok(Self { marks })
    }

    /// The last start with no name before it that is greater than `name`; `None` for the listing's.
    pub(super) fn before_name(&self, name: &[u8]) -> Option<Start> {
        self.last(self.marks.partition_point(|mark| *mark.greatest <= *name))
    }

    /// The last start that is not behind byte `position` of the listing.
    pub(super) fn before_position(&self, position: u64) -> Option<Start> {
        self.last(self.marks.partition_point(|mark| u64::from(mark.farthest) <= position))
    }

    fn last(&self, count: usize) -> Option<Start> {
        let mark = self.marks.get(count.checked_sub(1)?)?;
        Some(Start { position: mark.position, block: mark.block })
    }
}

/// One entry of the index and its name.
fn read_entry(reader: &mut MetaReader<'_>) -> Result<(RawDirIndex, Box<[u8]>), Error> {
    let index: RawDirIndex = reader.read()?;
    match usize::try_from(index.size.get()) {
        Ok(last) if last < NAME_LEN => Ok((index, reader.read_vec(last + 1)?.into())),
        _ => Err(reader.corrupt(format!("a name of 1 + {} bytes", index.size))),
    }
}

/// The indexes of the directories that were searched last.
pub(super) struct DirIndexes {
    /// By directory, and generation of the metadata.
    parsed: DecodedCache<(InodeRef, u64), Arc<DirIndex>>,
}

impl DirIndexes {
    pub(super) fn new() -> Self {
        Self { parsed: DecodedCache::new(BUDGET) }
    }

    /// The index of `directory`; an empty one where it has none.
    pub(super) fn of(
        &self,
        metadata: &MetadataBlocks,
        directory: &Inode,
    ) -> Result<Arc<DirIndex>, Error> {
        let layout = directory.directory()?;
        if layout.index_count == 0 {
            return Ok(Arc::default());
        }
        let key = (directory.reference, metadata.generation());
        self.parsed.get_or_load(key, || DirIndex::parse(metadata, layout).map(Arc::new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(entries: &[(&str, u32)]) -> DirIndex {
        let mut marks: Vec<Mark> = Vec::new();
        for (block, (name, position)) in entries.iter().enumerate() {
            let name: Box<[u8]> = name.as_bytes().into();
            let last = marks.last();
            let greatest = last.map_or(name.clone(), |last| last.greatest.clone().max(name));
            let farthest = last.map_or(*position, |last| last.farthest.max(*position));
            marks.push(Mark { greatest, farthest, position: *position, block: block as u32 });
        }
        DirIndex { marks }
    }

    /// What the kernel does: from the start, until one is too great.
    fn linear(entries: &[(&str, u32)], before: impl Fn(&(&str, u32)) -> bool) -> Option<Start> {
        let count = entries.iter().take_while(|entry| before(entry)).count();
        let block = count.checked_sub(1)?;
        Some(Start { position: entries[block].1, block: block as u32 })
    }

    #[test]
    fn halves_find_what_a_search_from_the_start_finds() {
        let tables: [&[(&str, u32)]; 4] = [
            &[],
            &[("b", 8192)],
            &[("b", 8192), ("d", 16_384), ("dd", 24_576), ("x", 32_768)],
            // Out of order, as a damaged archive may have it.
            &[("m", 100), ("c", 5000), ("p", 50), ("a", 9000), ("z", 7000)],
        ];
        for entries in tables {
            let index = index(entries);
            for name in ["", "a", "b", "c", "d", "dc", "m", "n", "p", "q", "z", "zz"] {
                let expected = linear(entries, |entry| entry.0 <= name);
                assert_eq!(index.before_name(name.as_bytes()), expected, "{entries:?} {name}");
            }
            for position in [0, 50, 99, 100, 5000, 8192, 9000, 20_000, 1 << 40] {
                let expected = linear(entries, |entry| u64::from(entry.1) <= position);
                assert_eq!(index.before_position(position), expected, "{entries:?} {position}");
            }
        }
    }
}
