//! Going through a whole archive once, to find out whether all of it can be read.

use super::Archive;
use super::error::Error;
use super::inode::Inode;
use super::plan::StoredBlock;
use super::superblock::Superblock;
use super::xattr::XattrReader;
use crate::types::ArchiveOffset;

/// Blocks of a file that are looked up at a time: one read of its block list.
const BLOCKS: u64 = 1024;

/// One stored block of data or of fragments, as a file (or the fragment table) describes it. Sorts
/// by where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DataBlock {
    block: StoredBlock,
    needs: u32,
}

impl DataBlock {
    /// Where it starts.
    pub fn at(self) -> ArchiveOffset {
        self.block.at()
    }

    /// Stored size in bytes, as its size word says.
    pub fn stored_len(self) -> u32 {
        self.block.len()
    }

    /// Whether both are the same stored bytes, read the same way.
    pub fn is_same(self, other: Self) -> bool {
        self.block == other.block
    }

    /// The same block, wanted by someone who needs so much of it as `other` does, too.
    #[must_use]
    pub fn for_both(self, other: Self) -> Self {
        Self { needs: self.needs.max(other.needs), ..self }
    }
}

impl Archive {
    /// Shows every stored block that a file's contents are in, its fragment among them and holes
    /// left out. Reads metadata only.
    ///
    /// # Errors
    /// [`Error::WrongKind`] for what is no file, [`Error::Corrupt`] for a block list that cannot be
    /// read.
    pub fn data_blocks(&self, file: &Inode, mut see: impl FnMut(DataBlock)) -> Result<(), Error> {
        let layout = file.file()?;
        let block_size = self.superblock.block_size;
        let count = layout.block_count(block_size);
        let mut start = 0;
        while start < count {
            let end = count.min(start + BLOCKS);
            let found =
                self.blocks.locate(Some(&self.metadata), file.reference, layout, start..end)?;
            for (number, block) in (start..end).zip(found.unwrap_or_default()) {
                let Some(block) = block else { continue };
                let left = layout.size - number * u64::from(block_size);
                // At most a block's size.
                let needs = left.min(block_size.into()) as u32;
                see(DataBlock { block, needs });
            }
            start = end;
        }
        if let Some(fragment) = layout.fragment {
            let tail = (layout.size % u64::from(block_size)) as u32;
            if tail > 0 {
                let needs = fragment.offset.saturating_add(tail);
                see(DataBlock { block: fragment.block, needs });
            }
        }
        Ok(())
    }

    /// Every fragment block that the fragment table has, whether a file has its tail in it or not.
    /// Goes on behind one whose entry cannot be read.
    pub fn fragment_blocks(&self) -> impl Iterator<Item = Result<DataBlock, Error>> + '_ {
        let Self { superblock, metadata, tables, .. } = self;
        (0..superblock.fragments).filter_map(move |index| {
            let (at, word) = match tables.fragment(metadata, index) {
                Ok(entry) => entry?,
                Err(error) => return Some(Err(error)),
            };
            let block = StoredBlock::new(at, word).ok_or_else(|| {
                let detail = format!("fragment {index} of size word {word:#x}");
                Error::corrupt("fragment table", superblock.fragment_table, detail)
            });
            Some(block.map(|block| DataBlock { block, needs: 0 }))
        })
    }

    /// Fetches blocks together and decodes each. What was decoded is not kept.
    ///
    /// # Errors
    /// The first of the blocks that does not decode, or to less than is needed of it.
    pub fn check_blocks(&self, blocks: &[DataBlock]) -> Result<(), Error> {
        let blocks: Vec<_> = blocks.iter().map(|block| (block.block, block.needs)).collect();
        self.data.check(&blocks)
    }

    /// Reads every block of metadata and every list of extended attributes, whether an inode leads
    /// there or not. Gives what cannot be read, or is not where it should end.
    pub fn check_tables(&self) -> impl Iterator<Item = Error> + '_ {
        let Self { superblock, metadata, tables, .. } = self;
        let Superblock { inode_table, directory_table, .. } = *superblock;
        let runs = [
            Some(("inode", inode_table, directory_table)),
            Some(("directory", directory_table, tables.directories_end())),
            tables.xattr_range().map(|(start, end)| ("xattr", start, end)),
        ];
        let runs = runs.into_iter().flatten();
        let misfits =
            runs.filter_map(|(structure, start, end)| self.check_run(structure, start, end).err());
        let lists = (0..tables.xattr_lists()).filter_map(|index| {
            let list = tables.xattrs(metadata, index);
            let checked = list.and_then(|list| match list {
                Some(list) => XattrReader::of_list(metadata, tables, list)?.check(),
                None => Ok(()),
            });
            checked.err()
        });
        misfits.chain(tables.check(metadata)).chain(lists)
    }

    /// Reads the metadata blocks from `start` on, the last of which must end at `end`.
    fn check_run(
        &self,
        structure: &'static str,
        start: ArchiveOffset,
        end: ArchiveOffset,
    ) -> Result<(), Error> {
        let mut at = start;
        while at < end {
            let (_, next) = self.metadata.extent(structure, at)?;
            if next > end {
                let detail = format!("its metadata block reaches to {next}, past {end}");
                return Err(Error::corrupt(structure, at, detail));
            }
            at = next;
        }
        Ok(())
    }
}
