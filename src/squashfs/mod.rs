//! The archive format: reads a squashfs 4.0 archive wherever its bytes are.
//!
//! [`Archive::open`] checks the superblock and the tables' indexes as the kernel does at mount;
//! everything else is read when asked for. Metadata (inodes, listings, attributes) and data are
//! decoded by the block, and recently decoded blocks are kept within a budget. All calls take
//! `&self` and may come from many threads at once.
//!
//! What an archive says is not trusted: damage is an [`Error::Corrupt`] that names the structure
//! and its offset, and nothing read from an archive sizes an allocation beyond the limits of the
//! format. Where the kernel is lenient (blocks longer than needed, an index that ends early), so
//! is this.
//!
//! | file | idea |
//! | --- | --- |
//! | `superblock`, `tables` | what is read when an archive is opened: its head, and where its tables are |
//! | `dir`, `dir_index`, `inode`, `xattr` | what metadata says: listings, inodes, attributes |
//! | `metadata` | blocks of metadata, fetched and decoded |
//! | `blocks`, `plan`, `data` | a read of a file: where its blocks are, which of them answer, fetched and decoded |
//! | `decoded` | recent blocks of both sorts, each decoded once however many want it |
//! | `walk`, `pieces`, `check` | all of a tree, of a file, of an archive |
//! | `format`, `codec` | the structures as they lie in an archive, the decompressors |
//! | [`mounted`] | what a mount of an archive says of it |
//!
//! [`mod@write`] makes archives. It shares `format` with the reader, and uses it where a new archive begins with the data of
//! another. Why both are our own is in
//! `docs/decisions/own-reader-and-writer.md`.

mod blocks;
mod check;
mod codec;
mod data;
mod decoded;
mod dir;
mod dir_index;
mod error;
mod format;
mod inode;
mod metadata;
pub mod mounted;
mod pieces;
mod plan;
mod superblock;
mod tables;
mod walk;
pub mod write;
mod xattr;

use std::sync::Arc;

use bytes::Bytes;

pub use check::DataBlock;
pub use decoded::CacheCounters;
pub use dir::{DirCursor, DirEntry, DirReader};
pub use error::Error;
pub use inode::Inode;
pub use superblock::{Compressor, Superblock};
pub use walk::{Walk, WalkEntry};
pub use xattr::Xattr;

use crate::cache::Blob;
use crate::types::{ArchiveOffset, ByteRange, FileKind, FileOffset, InodeNumber, InodeRef};
use blocks::BlockIndex;
use codec::Codec;
use data::DataBlocks;
use dir_index::DirIndexes;
use format::{METADATA_LEN, SUPERBLOCK_LEN};
use inode::InodeParser;
use metadata::MetadataBlocks;
use tables::Tables;
use xattr::XattrReader;

/// Most bytes that one [`Archive::read`] or [`Archive::get`] answers: 16 MiB.
pub const MAX_READ: usize = 16 << 20;

/// Size up to which a file counts as one of many small ones, in bytes. A larger one that is read here
/// and there says nothing about its neighbours.
const SMALL_FILE: u64 = 1 << 20;

/// How much memory an archive may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Bytes of decoded data and fragment blocks to keep. One block always is.
    pub decoded_bytes: usize,
    /// Bytes of decoded metadata blocks to keep. One block always is.
    pub metadata_bytes: usize,
    /// Most bytes of stored metadata to hold in memory. Where there is more, none is held, and
    /// metadata too is fetched when asked for.
    pub resident_bytes: usize,
}

impl Default for OpenOptions {
    /// 16 MiB of data, 6 MiB of metadata, and 8 MiB of stored metadata: at 32 bytes an inode,
    /// that of a quarter of a million.
    fn default() -> Self {
        Self { decoded_bytes: 16 << 20, metadata_bytes: 6 << 20, resident_bytes: 8 << 20 }
    }
}

/// What the decoded-block caches did since the archive was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Data and fragment blocks. Blocks stored as they are need no decoding and don't count.
    pub data: CacheCounters,
    /// Metadata blocks, whether compressed or not.
    pub metadata: CacheCounters,
}

/// An open archive.
///
/// ```no_run
/// use std::sync::Arc;
/// use thawfs::cache::FileBlob;
/// use thawfs::squashfs::{Archive, OpenOptions};
/// use thawfs::types::FileOffset;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let blob = Arc::new(FileBlob::open("data.sqsh", 0)?);
/// let archive = Archive::open(blob, OpenOptions::default())?;
/// let root = archive.inode(archive.root())?;
/// if let Some(entry) = archive.lookup(&root, b"README.md")? {
///     let readme = archive.inode(entry.inode)?;
///     let beginning = archive.read(&readme, FileOffset(0), 1000)?;
/// }
/// # Ok(()) }
/// ```
pub struct Archive {
    superblock: Superblock,
    metadata: MetadataBlocks,
    tables: Tables,
    indexes: DirIndexes,
    blocks: BlockIndex,
    data: DataBlocks,
}

impl Archive {
    /// Opens the archive that is `blob`, from its first byte on. Fetches the superblock, the
    /// compressor's options, if any, the indexes of the tables, and the root's inode: the archive's
    /// two ends. Metadata that is to be held and that the blob has at hand is held from now on, and the
    /// rest when the first of it is asked for, or by [`Archive::hold_metadata`].
    ///
    /// What makes no sense there is fetched once more before that is an error.
    pub fn open(blob: Arc<dyn Blob>, options: OpenOptions) -> Result<Self, Error> {
        match Self::open_once(Arc::clone(&blob), options) {
            Err(Error::Blob(error)) => Err(Error::Blob(error)),
            Err(error) if fetch_ends_again(&*blob, &error)? => Self::open_once(blob, options),
            opened => opened,
        }
    }

    fn open_once(blob: Arc<dyn Blob>, options: OpenOptions) -> Result<Self, Error> {
        let size = blob.size();
        let head = ByteRange::between(ArchiveOffset(0), ArchiveOffset(size.min(SUPERBLOCK_LEN)));
        let head = blob.fetch(head.as_slice())?.pop().unwrap_or_default();
        let superblock = Superblock::parse(&head, size)?;
        let end = superblock.end();

        let compressor_options = superblock.compressor_options();
        let fetched = match compressor_options {
            Some(range) => blob.fetch(&[range])?.pop(),
            None => None,
        };
        let codec = Codec::new(&superblock, fetched)?;
        let all_metadata = ByteRange::between(superblock.inode_table, end)
            .filter(|metadata| metadata.len() <= options.resident_bytes as u64);
        let metadata = MetadataBlocks::new(
            Arc::clone(&blob),
            codec,
            end,
            all_metadata,
            options.metadata_bytes,
        );
        let tables = Tables::open(&superblock, &metadata)?;
        let block_size = superblock.block_size;
        let archive = Self {
            indexes: DirIndexes::new(),
            blocks: BlockIndex::new(block_size),
            data: DataBlocks::new(blob, codec, block_size, end, options.decoded_bytes),
            superblock,
            metadata,
            tables,
        };
        let root = archive.inode(archive.root())?;
        if root.kind != FileKind::Directory {
            let detail = format!("the root is a {:?}", root.kind);
            return Err(Error::corrupt("inode", archive.superblock.inode_table, detail));
        }
        Ok(archive)
    }

    /// The superblock.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Fetches what is missing of the metadata that is to be held in memory. Nobody has to: but who
    /// calls it in time has nobody wait for it.
    ///
    /// # Errors
    /// What fetching says. What needs metadata tries again.
    pub fn hold_metadata(&self) -> Result<(), Error> {
        self.metadata.hold()
    }

    /// Whether all metadata is in memory, so that only [`Archive::read`] needs the blob. (An
    /// archive that keeps some outside the usual place, which no known tool writes, excepted.)
    pub fn metadata_resident(&self) -> bool {
        self.metadata.is_resident()
    }

    /// The root directory.
    pub fn root(&self) -> InodeRef {
        self.superblock.root
    }

    /// Reads an inode.
    pub fn inode(&self, reference: InodeRef) -> Result<Inode, Error> {
        let Self { superblock, metadata, tables, .. } = self;
        self.twice(|| InodeParser { superblock, metadata, tables }.parse(reference))
    }

    /// Reads metadata, and where it contradicts itself, once more after it was fetched again.
    fn twice<T>(&self, read: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
        let generation = self.metadata.generation();
        match read() {
            Err(Error::Corrupt { at, .. }) if self.metadata.is_renewed_since(generation, at)? => {
                read()
            }
            result => result,
        }
    }

    /// Finds the inode with a number. `None` where the archive has no such number, or was made
    /// without the table that says.
    pub fn inode_by_number(&self, number: InodeNumber) -> Result<Option<InodeRef>, Error> {
        self.twice(|| self.tables.inode(&self.metadata, number))
    }

    /// The numbers of all owners, users and groups alike.
    pub fn owners(&self) -> Result<Vec<u32>, Error> {
        let ids = (0..self.superblock.ids)
            .map_while(|index| self.tables.id(&self.metadata, index).transpose());
        ids.collect()
    }

    /// Finds `name` in a directory.
    pub fn lookup(&self, directory: &Inode, name: &[u8]) -> Result<Option<DirEntry>, Error> {
        let index = self.indexes.of(&self.metadata, directory)?;
        let table = self.superblock.directory_table;
        self.twice(|| dir::lookup(&self.metadata, table, directory, &index, name))
    }

    /// Lists a directory from `from` on: [`DirCursor::START`], or an entry's `next`.
    pub fn read_dir(&self, directory: &Inode, from: DirCursor) -> Result<DirReader<'_>, Error> {
        // The start needs no finding.
        let index = match from {
            DirCursor::START => Arc::default(),
            _ => self.indexes.of(&self.metadata, directory)?,
        };
        DirReader::new(&self.metadata, self.superblock.directory_table, directory, &index, from)
    }

    /// All files from the root down.
    pub fn walk(&self) -> Walk<'_> {
        Walk::new(self, self.root())
    }

    /// All files from `directory` down, with paths relative to it.
    pub fn walk_from(&self, directory: &Inode) -> Walk<'_> {
        Walk::new(self, directory.reference)
    }

    /// The target of a symbolic link: 4095 bytes at most and without NUL, which is where the
    /// kernel ends it.
    pub fn read_link(&self, inode: &Inode) -> Result<Vec<u8>, Error> {
        let position = inode.symlink()?;
        let len = usize::try_from(inode.size).unwrap_or(usize::MAX).min(4095);
        let mut target = self.twice(|| self.metadata.reader("symlink", position).read_vec(len))?;
        if let Some(nul) = target.iter().position(|&byte| byte == 0) {
            target.truncate(nul);
        }
        Ok(target)
    }

    /// The names of an inode's extended attributes, prefixes included.
    pub fn xattr_names(&self, inode: &Inode) -> Result<Vec<Vec<u8>>, Error> {
        self.twice(|| self.xattr_reader(inode)?.map_or(Ok(Vec::new()), XattrReader::names))
    }

    /// The value of the extended attribute with this full name, if there is one.
    pub fn xattr(&self, inode: &Inode, name: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        self.twice(|| self.xattr_reader(inode)?.map_or(Ok(None), |reader| reader.value(name)))
    }

    /// All extended attributes of an inode. More than 16 MiB of values are an error: ask for them
    /// one by one.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>, Error> {
        self.twice(|| self.xattr_reader(inode)?.map_or(Ok(Vec::new()), XattrReader::all))
    }

    fn xattr_reader(&self, inode: &Inode) -> Result<Option<XattrReader<'_>>, Error> {
        XattrReader::new(&self.metadata, &self.tables, inode)
    }

    /// Like [`Archive::read`], from memory alone: `None` where a block would have to be decoded or
    /// fetched, or `file` cannot be read.
    pub fn get(&self, file: &Inode, at: FileOffset, len: usize) -> Option<Bytes> {
        let extents = self.plan(None, file, at, len).ok()??;
        self.data.get(&extents)
    }

    /// The bytes of a file from `at` on: `len` of them, fewer at its end, and never more than
    /// [`MAX_READ`]. May fetch, and may wait for a block that another thread decodes.
    pub fn read(&self, file: &Inode, at: FileOffset, len: usize) -> Result<Bytes, Error> {
        match self.plan(Some(&self.metadata), file, at, len)? {
            Some(extents) => self.data.read(&extents, at.0 == 0 && file.size <= SMALL_FILE),
            None => Ok(Bytes::new()),
        }
    }

    fn plan(
        &self,
        metadata: Option<&MetadataBlocks>,
        file: &Inode,
        at: FileOffset,
        len: usize,
    ) -> Result<Option<Vec<plan::Extent>>, Error> {
        let layout = file.file()?;
        let block_size = self.superblock.block_size;
        let bytes = layout.clamp(at, len.min(MAX_READ));
        let blocks = layout.blocks(block_size, &bytes);
        let found =
            self.twice(|| self.blocks.locate(metadata, file.reference, layout, blocks.clone()))?;
        Ok(found.map(|blocks| layout.extents(block_size, bytes, blocks)))
    }

    /// The first byte from `at` on that is stored, like `lseek` with `SEEK_DATA`: `None` where
    /// there is none.
    pub fn seek_data(&self, file: &Inode, at: FileOffset) -> Result<Option<FileOffset>, Error> {
        let layout = file.file()?;
        if at.0 >= layout.size {
            return Ok(None);
        }
        let tail = layout.fragment.map(|_| layout.block_count(self.superblock.block_size));
        Ok(self
            .seek(file, at, false)?
            .or(tail.map(|block| self.later(at, block)))
            .filter(|found| found.0 < layout.size))
    }

    /// The first byte from `at` on that is in a hole, like `lseek` with `SEEK_HOLE`: the end of
    /// the file is one, and `None` stands for an `at` that isn't in the file.
    pub fn seek_hole(&self, file: &Inode, at: FileOffset) -> Result<Option<FileOffset>, Error> {
        let layout = file.file()?;
        if at.0 >= layout.size {
            return Ok(None);
        }
        Ok(Some(self.seek(file, at, true)?.unwrap_or(FileOffset(layout.size))))
    }

    fn seek(&self, file: &Inode, at: FileOffset, hole: bool) -> Result<Option<FileOffset>, Error> {
        let from = at.0 / u64::from(self.superblock.block_size);
        let found = self.blocks.seek(&self.metadata, file, file.file()?, from, hole)?;
        Ok(found.map(|block| self.later(at, block)))
    }

    /// The later of a place in a file and the start of a block of it.
    fn later(&self, at: FileOffset, block: u64) -> FileOffset {
        at.max(FileOffset(block.saturating_mul(self.superblock.block_size.into())))
    }

    /// What the caches did so far.
    pub fn counters(&self) -> Counters {
        Counters { data: self.data.counters(), metadata: self.metadata.counters() }
    }
}

/// Fetches once more what an archive that cannot be opened was judged by: its first bytes, and those
/// around where `error` found it wrong. Says whether anything is other than it was.
fn fetch_ends_again(blob: &dyn Blob, error: &Error) -> Result<bool, Error> {
    let wrong = match error {
        Error::Corrupt { at, .. } => *at,
        _ => ArchiveOffset(0),
    };
    let size = blob.size();
    let around = |at: u64, len: u64| {
        let end = ArchiveOffset(at.saturating_add(len).min(size));
        ByteRange::between(ArchiveOffset(at), end).filter(|range| !range.is_empty())
    };
    let ends = [around(0, SUPERBLOCK_LEN), around(wrong.0, METADATA_LEN as u64)];
    let mut is_new = false;
    for range in ends.into_iter().flatten() {
        let came = blob.fetch(&[range])?.pop().unwrap_or_default();
        is_new |= blob.fetch_again(range, &came)?.is_some();
    }
    Ok(is_new)
}
