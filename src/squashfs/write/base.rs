//! An archive whose data a new one begins with. What of that is used again stays where it was, block by block; only
//! inodes and tables are written anew.

use std::collections::HashMap;

use parking_lot::Mutex;
use twox_hash::XxHash3_128;
use zerocopy::little_endian::U32;

use super::super::format::{RawFragment, SUPERBLOCK_LEN};
use super::super::metadata::MetaReader;
use super::super::mounted::{self, DataInArchive};
use super::super::plan::{FileLayout, StoredBlock, stored_len};
use super::super::superblock::Compressor;
use super::super::{Archive, Inode};
use super::catalog::Data;
use super::compress::Compression;
use super::error::Error;
use super::options::Options;
use super::stat::{Directory, Failure, Stat, Xattrs, name_xattr, name_xattrs};
use crate::types::{ArchiveOffset, FileKind, InodeRef};

/// The data of a file that stays where it is.
pub(super) struct Kept {
    inode: InodeRef,
    pub(super) size: u64,
    sparse: u64,
    fragment: Option<(u32, u32)>,
}

impl Kept {
    pub(super) fn data(&self) -> Data {
        let Self { inode, sparse, fragment, .. } = *self;
        Data { kept: Some(inode), sparse, fragment, ..Data::NONE }
    }
}

/// An archive that a new one begins with.
pub struct Base<'a> {
    archive: &'a Archive,
    device: Option<u64>,
    used: Mutex<Used>,
}

/// What of its data is in the new one.
#[derive(Default)]
struct Used {
    /// Bytes of blocks, by where the first of a file lies: several files may be the same.
    blocks: HashMap<u64, u64>,
    fragments: Vec<bool>,
}

impl<'a> Base<'a> {
    /// `archive` as a base.
    pub fn new(archive: &'a Archive) -> Self {
        let fragments = vec![false; archive.superblock().fragments as usize];
        Self { archive, device: None, used: Mutex::new(Used { fragments, ..Used::default() }) }
    }

    /// How an archive is written onto this one: in its block size, by its compressor. `None` where there is none that
    /// can be written, as for LZO. The level is that of `preferred` if that is the same compressor.
    pub fn options(&self, preferred: Compression) -> Option<Options> {
        let superblock = self.archive.superblock();
        let compression = match (superblock.compressor, preferred) {
            (Compressor::Lzo, _) => return None,
            (Compressor::Zstd, Compression::Zstd(_)) | (Compressor::Gzip, Compression::Gzip(_)) => {
                preferred
            }
            (Compressor::Zstd, _) => Compression::Zstd(3),
            (Compressor::Gzip, _) => Compression::Gzip(9),
            (Compressor::Lz4, _) => Compression::Lz4,
            (Compressor::Xz, _) => Compression::Xz,
        };
        let (block_size, data_start) = (superblock.block_size, self.data_end());
        Some(Options { block_size, compression, data_start, ..Options::default() })
    }

    /// Of files on device `device`, which is that of a mount of the archive: what of them is in it stays.
    #[must_use]
    pub fn mounted_as(self, device: u64) -> Self {
        Self { device: Some(device), ..self }
    }

    /// The data of an entry, whose attributes are `stat`, and its extended attributes, if it is a file of a mount of the
    /// archive and nothing was written to it.
    pub(super) fn find(
        &self,
        directory: &Directory,
        name: &[u8],
        stat: &Stat,
    ) -> Result<Option<(Kept, Xattrs)>, Failure> {
        if self.device != Some(stat.identity.0) || stat.kind != FileKind::Regular {
            return Ok(None);
        }
        let told = name_xattr(directory, name, mounted::DATA_XATTR);
        let Some(told) = told.and_then(|text| DataInArchive::parse(&text)) else { return Ok(None) };
        let failed = |error: super::super::Error| Failure::Fatal(error.into());
        let inode = self.archive.inode(told.inode).map_err(failed)?;
        if inode.kind != FileKind::Regular || inode.size != stat.version.size {
            return Ok(None);
        }
        // Which of them are shown, and to whom, the mount says.
        let xattrs = match told.has_xattrs && !inode.has_xattrs() {
            true => Xattrs::default(),
            false => {
                let failed = directory.error(name, "lgetxattr");
                name_xattrs(directory, name).map_err(failed)?
            }
        };
        let kept = self.keep(&inode).map_err(Failure::Fatal)?;
        Ok(kept.map(|kept| (kept, xattrs)))
    }

    /// Where its data ends. All before that, but for the superblock, is the new archive's, too.
    pub fn data_end(&self) -> u64 {
        self.archive.superblock().inode_table.0
    }

    /// Bytes of its data that the new archive has and does not use.
    pub fn dead_bytes(&self) -> u64 {
        let used = self.used.lock();
        let fragments = used.fragments.iter().zip(0..).filter(|(used, _)| **used);
        let fragments = fragments.filter_map(|(_, index)| self.fragment(index).ok().flatten());
        let live = used.blocks.values().sum::<u64>()
            + fragments.map(|raw| u64::from(stored_len(raw.size.get()))).sum::<u64>();
        (self.data_end() - SUPERBLOCK_LEN).saturating_sub(live)
    }

    pub(super) fn fragment_count(&self) -> u32 {
        self.archive.superblock().fragments
    }

    /// Its table entry for a fragment.
    pub(super) fn fragment(&self, index: u32) -> Result<Option<RawFragment>, Error> {
        let archive = self.archive;
        let found = archive.twice(|| archive.tables.fragment(&archive.metadata, index))?;
        Ok(found.map(|(start, word)| RawFragment {
            start: start.0.into(),
            size: word.into(),
            unused: 0.into(),
        }))
    }

    /// Has the data of `file` stay. `None` where it lies elsewhere than data does, as no known tool writes it.
    pub(super) fn keep(&self, file: &Inode) -> Result<Option<Kept>, Error> {
        let layout = file.file()?;
        let block_size = self.archive.superblock().block_size;
        let (mut at, mut sparse, mut left) = (layout.start.0, 0, layout.size);
        let mut fits = true;
        let mut list = self.list(layout);
        while let Some(word) = list.next()? {
            let len = left.min(block_size.into());
            left -= len;
            if stored_len(word) == 0 {
                sparse += len;
            } else {
                fits &= self.holds(at, word);
                at = at.saturating_add(stored_len(word).into());
            }
        }
        let fragment = layout.fragment.as_ref();
        fits &= fragment.is_none_or(|it| self.holds_block(it.block));
        if !fits {
            return Ok(None);
        }
        let mut used = self.used.lock();
        if at > layout.start.0 {
            let bytes = used.blocks.entry(layout.start.0).or_default();
            *bytes = (*bytes).max(at - layout.start.0);
        }
        if let Some(place) = fragment.and_then(|it| used.fragments.get_mut(it.index as usize)) {
            *place = true;
        }
        let fragment = fragment.map(|it| (it.index, it.offset));
        Ok(Some(Kept { inode: file.reference, size: layout.size, sparse, fragment }))
    }

    fn holds(&self, at: u64, word: u32) -> bool {
        StoredBlock::new(ArchiveOffset(at), word).is_some_and(|block| self.holds_block(block))
    }

    fn holds_block(&self, block: StoredBlock) -> bool {
        let end = ArchiveOffset(self.data_end());
        let range = block.range(self.archive.superblock().block_size, end);
        block.at().0 >= SUPERBLOCK_LEN && range.is_ok()
    }

    /// The blocks of a file.
    pub(super) fn blocks(&self, inode: InodeRef) -> Result<BlockList<'_>, Error> {
        Ok(self.list(self.archive.inode(inode)?.file()?))
    }

    fn list(&self, layout: &FileLayout) -> BlockList<'_> {
        list(self.archive, layout)
    }
}

fn list<'a>(archive: &'a Archive, layout: &FileLayout) -> BlockList<'a> {
    BlockList {
        start: layout.start.0,
        left: layout.block_count(archive.superblock().block_size),
        reader: archive.metadata.reader("block list", layout.list),
    }
}

/// Where the bytes of a file are in an archive: two files of it with the same hold the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct LayoutKey(u128);

impl LayoutKey {
    /// Of a regular file of `archive`.
    pub(super) fn new(archive: &Archive, file: &Inode) -> Result<Self, super::super::Error> {
        let layout = file.file()?;
        let mut hash = XxHash3_128::new();
        hash.write(&layout.start.0.to_le_bytes());
        hash.write(&layout.size.to_le_bytes());
        if let Some(fragment) = &layout.fragment {
            hash.write(&fragment.index.to_le_bytes());
            hash.write(&fragment.offset.to_le_bytes());
        }
        // A file of holes alone starts where the next one does.
        let mut list = list(archive, layout);
        while let Some(word) = list.word()? {
            hash.write(&word.to_le_bytes());
        }
        Ok(Self(hash.finish_128()))
    }
}

/// Where the blocks of a file are.
pub(super) struct BlockList<'a> {
    start: u64,
    left: u64,
    reader: MetaReader<'a>,
}

impl BlockList<'_> {
    /// Where the first of them starts.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// The size word of the next one.
    pub(super) fn next(&mut self) -> Result<Option<u32>, Error> {
        Ok(self.word()?)
    }

    fn word(&mut self) -> Result<Option<u32>, super::super::Error> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        Ok(Some(self.reader.read::<U32>()?.get()))
    }
}
