//! Everything behind the data: inodes and listings, from the notes taken on the way, and the
//! tables that say where the rest is. Then the superblock.

use zerocopy::FromZeros;
use zerocopy::little_endian::{U32, U64};

use super::super::format::{
    FLAG_DUPLICATES, FLAG_EXPORT, FLAG_OPTIONS, MAGIC, NO_TABLE, RawFragment, RawSuperblock,
    SUPERBLOCK_LEN,
};
use super::base::Base;
use super::catalog::{Catalog, Node, Note};
use super::compress::Compressor;
use super::error::Error;
use super::inode::InodeBytes;
use super::listing::{Entries, Inode};
use super::metadata::{MetaWriter, TableWriter};
use super::options::Options;
use super::output::Placement;
use super::spool::SpoolReader;
use super::tail::Tail;
use super::xattrs::XattrTable;
use crate::types::{FileKind, InodeRef};

/// Archives end on a multiple of this, so that they can be mounted from a block device.
const PAGE: u64 = 4096;

/// Writes all tables, and returns the superblock.
pub(super) fn write(
    catalog: &Catalog,
    xattrs: XattrTable,
    placement: &Placement,
    (options, base): (&Options, Option<&Base<'_>>),
    mkfs_time: u32,
    tail: &mut Tail<'_>,
) -> Result<[u8; SUPERBLOCK_LEN as usize], Error> {
    let compressor = || Compressor::new(options.compression, options.block_size);
    let table = || compressor().map(TableWriter::new);
    let sources = Sources { catalog, placement, base, block_size: options.block_size };
    let tree = Tree::new(sources, compressor()?, compressor()?).build()?;

    let inode_table = tail.position();
    tail.write_spool(tree.inodes.finish()?)?;
    let directory_table = tail.position();
    tail.write_spool(tree.listings.finish()?)?;

    let mut fragments = table()?;
    let kept_fragments = base.map_or(0, Base::fragment_count);
    for index in 0..kept_fragments {
        if let Some(fragment) = base.map(|base| base.fragment(index)).transpose()?.flatten() {
            fragments.push(&fragment)?;
        }
    }
    let mut reader = SpoolReader::new(placement.fragments());
    while !reader.is_at_end() {
        fragments.push(&reader.read::<RawFragment>()?)?;
    }
    let fragment_table = tail.write_table(fragments)?;
    let mut exports = table()?;
    for packed in tree.exports {
        exports.push(&U64::new(packed))?;
    }
    let export_table = tail.write_table(exports)?;
    let mut ids = table()?;
    for &id in catalog.ids() {
        ids.push(&U32::new(id))?;
    }
    let id_table = tail.write_table(ids)?;

    let mut raw = RawSuperblock::new_zeroed();
    raw.inodes = catalog.inodes().into();
    // At most 65,535, which the catalog sees to.
    raw.ids = (catalog.ids().len() as u16).into();
    let xattr_id_table = xattrs.finish(tail, compressor()?)?;
    let bytes_used = tail.position();
    let padding = bytes_used.next_multiple_of(PAGE) - bytes_used;
    tail.write(vec![0; padding as usize])?;

    let has_options = options.compressor_options().is_some();
    raw.magic = MAGIC.into();
    raw.mkfs_time = mkfs_time.into();
    raw.block_size = options.block_size.into();
    raw.block_log = (options.block_size.trailing_zeros() as u16).into();
    raw.fragments = (kept_fragments + placement.fragment_count).into();
    raw.compressor = options.compression.id().into();
    raw.flags = (FLAG_DUPLICATES | FLAG_EXPORT | if has_options { FLAG_OPTIONS } else { 0 }).into();
    raw.major = 4.into();
    raw.root_inode = tree.root.into();
    raw.bytes_used = bytes_used.into();
    raw.id_table = id_table.into();
    raw.xattr_id_table = xattr_id_table.unwrap_or(NO_TABLE).into();
    raw.inode_table = inode_table.into();
    raw.directory_table = directory_table.into();
    raw.fragment_table = fragment_table.into();
    raw.export_table = export_table.into();
    Ok(zerocopy::transmute!(raw))
}

/// The size that a superblock of ours states.
pub(super) fn bytes_used(superblock: &[u8; SUPERBLOCK_LEN as usize]) -> u64 {
    let raw: RawSuperblock = zerocopy::transmute!(*superblock);
    raw.bytes_used.get()
}

/// What the tables are made of.
#[derive(Clone, Copy)]
struct Sources<'a> {
    catalog: &'a Catalog,
    placement: &'a Placement,
    base: Option<&'a Base<'a>>,
    block_size: u32,
}

/// Inodes and listings in the making. A listing is written once all its inodes are, and the
/// directory's own inode follows.
struct Tree<'a> {
    sources: Sources<'a>,
    inodes: MetaWriter,
    listings: MetaWriter,
    /// Where each inode is, by its number less one.
    exports: Vec<u64>,
    /// The inodes that have several names.
    links: Vec<Option<Inode>>,
    stack: Vec<Level>,
    root: u64,
}

/// A directory on the way down.
struct Level {
    name: Vec<u8>,
    node: Node,
    number: u32,
    entries: Entries,
    subdirectories: u32,
}

impl<'a> Tree<'a> {
    fn new(sources: Sources<'a>, inodes: Compressor, listings: Compressor) -> Self {
        let Sources { catalog, .. } = sources;
        Self {
            sources,
            inodes: MetaWriter::new(inodes),
            listings: MetaWriter::new(listings),
            exports: Vec::with_capacity(catalog.inodes() as usize),
            links: vec![None; catalog.link_count()],
            stack: Vec::new(),
            root: 0,
        }
    }

    fn build(mut self) -> Result<Self, Error> {
        let mut notes = self.sources.catalog.read();
        while let Some(note) = notes.next()? {
            match note {
                Note::Enter { name, node } => {
                    let number = self.number();
                    let entries = Entries::default();
                    self.stack.push(Level { name, node, number, entries, subdirectories: 0 });
                }
                Note::Leave => self.leave()?,
                Note::Leaf { name, node } => {
                    let number = self.number();
                    let inode = self.leaf(&node, number)?;
                    if let Some(place) =
                        node.link.and_then(|link| self.links.get_mut(link as usize))
                    {
                        *place = Some(inode);
                    }
                    self.name(&name, inode);
                }
                Note::Again { name, link } => {
                    if let Some(Some(inode)) = self.links.get(link as usize).copied() {
                        self.name(&name, inode);
                    }
                }
            }
        }
        Ok(self)
    }

    /// The next inode's number.
    fn number(&mut self) -> u32 {
        self.exports.push(0);
        // The catalog counted them in 32 bits.
        self.exports.len() as u32
    }

    fn name(&mut self, name: &[u8], inode: Inode) {
        if let Some(level) = self.stack.last_mut() {
            level.entries.push(name, inode);
        }
    }

    fn leaf(&mut self, node: &Node, number: u32) -> Result<Inode, Error> {
        let nlink = node.link.map_or(1, |link| self.sources.catalog.names_of(link));
        let bytes = InodeBytes::new(node, number);
        let bytes = match node.kind {
            FileKind::Regular => return self.file(node, bytes, nlink, number),
            _ => bytes.other(nlink)?,
        };
        self.inode(&bytes, number, node.kind)
    }

    /// A regular file: its inode and, one by one since they may be many, its blocks' sizes.
    fn file(
        &mut self,
        node: &Node,
        bytes: InodeBytes<'_>,
        nlink: u32,
        number: u32,
    ) -> Result<Inode, Error> {
        let Sources { placement, base, .. } = self.sources;
        if let (Some(kept), Some(base)) = (node.data.kept, base) {
            return self.kept(node, bytes, nlink, number, (base, kept));
        }
        let first = node.data.first_block;
        let count = self.block_count(node);
        let start = if count == 0 { 0 } else { placement.block(first)?.start };
        let inode = self.inode(&bytes.file(nlink, start), number, node.kind)?;
        for block in first..first + count {
            self.inodes.write(&placement.block(block)?.word.to_le_bytes())?;
        }
        Ok(inode)
    }

    /// A regular file with the blocks that an inode of the base has.
    fn kept(
        &mut self,
        node: &Node,
        bytes: InodeBytes<'_>,
        nlink: u32,
        number: u32,
        (base, kept): (&Base<'_>, InodeRef),
    ) -> Result<Inode, Error> {
        let mut list = base.blocks(kept)?;
        let inode = self.inode(&bytes.file(nlink, list.start()), number, node.kind)?;
        while let Some(word) = list.next()? {
            self.inodes.write(&word.to_le_bytes())?;
        }
        Ok(inode)
    }

    /// How many blocks a file has beside what is in a fragment.
    fn block_count(&self, node: &Node) -> u64 {
        let (size, block_size) = (node.version.size, u64::from(self.sources.block_size));
        match node.data.fragment {
            Some(_) => size / block_size,
            None => size.div_ceil(block_size),
        }
    }

    fn leave(&mut self) -> Result<(), Error> {
        let Some(level) = self.stack.pop() else { return Ok(()) };
        let listing = level.entries.write(&mut self.listings)?;
        // The root's is one that no inode has.
        let root = self.sources.catalog.inodes() + 1;
        let parent = self.stack.last().map_or(root, |above| above.number);
        let nlink = level.subdirectories.saturating_add(2);
        let bytes =
            InodeBytes::new(&level.node, level.number).directory(&listing, nlink, parent)?;
        let inode = self.inode(&bytes, level.number, FileKind::Directory)?;
        match self.stack.last_mut() {
            Some(above) => {
                above.subdirectories += 1;
                above.entries.push(&level.name, inode);
            }
            None => self.root = inode.position.packed(),
        }
        Ok(())
    }

    fn inode(&mut self, bytes: &[u8], number: u32, kind: FileKind) -> Result<Inode, Error> {
        let position = self.inodes.position();
        self.inodes.write(bytes)?;
        let export = number.checked_sub(1).and_then(|at| self.exports.get_mut(at as usize));
        if let Some(export) = export {
            *export = position.packed();
        }
        Ok(Inode { position, number, kind })
    }
}
