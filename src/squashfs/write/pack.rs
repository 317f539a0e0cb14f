//! Decides, in the order of the walk, where the bytes of each file go: to blocks of its own, to
//! a fragment that small files share, or nowhere, since they are in the archive already.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender};
use rustix::io::Errno;

use super::catalog::{Again, Catalog, Data};
use super::duplicates::Duplicates;
use super::error::Error;
use super::large::{Block, BlockHash, BlockReader, is_zero};
use super::load::{ATTEMPTS, Content, Leaf};
use super::options::Progress;
use super::output::{BlockPool, Next};
use super::pool::Gone;
use super::source::{Source, Unread};
use super::stat::{Failure, Version, Xattrs, child};
use super::walk::Event;
use super::xattrs::XattrTable;

/// Extended attributes that an archive cannot hold and lacks, as it would if mksquashfs had made
/// it. The format knows those of `user.`, `trusted.` and `security.`; most often it is POSIX ACLs,
/// `system.posix_acl_access` and `system.posix_acl_default`, that are left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DroppedXattrs {
    /// How many inodes had any.
    pub inodes: u64,
    /// The first of these, the packed directory's own path in front.
    pub path: PathBuf,
    /// The name of its first.
    pub name: String,
}

/// Why packing ended early.
pub(super) enum Stop {
    /// Another thread went, and says why.
    Gone,
    /// This is why.
    Failed(Error),
}

impl From<Gone> for Stop {
    fn from(Gone: Gone) -> Self {
        Self::Gone
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Packs the files of one tree.
pub(super) struct Packer<'a> {
    pub(super) block_size: u32,
    pub(super) pack_tails: bool,
    pub(super) catalog: Catalog,
    pub(super) xattrs: XattrTable,
    pub(super) duplicates: Duplicates<'a>,
    pub(super) blocks: BlockPool,
    pub(super) output: Sender<Next>,
    pub(super) progress: &'a Progress,
    /// Set when nothing will come of this archive, and only what else is unreadable matters.
    pub(super) check_only: Arc<AtomicBool>,
    pub(super) fragment: Fragment,
    pub(super) next_block: u64,
    pub(super) denied: Vec<PathBuf>,
    pub(super) dropped: Option<DroppedXattrs>,
}

/// What the tables are made of, when all data is packed.
pub(super) struct Packed {
    pub(super) catalog: Catalog,
    pub(super) xattrs: XattrTable,
    pub(super) dropped: Option<DroppedXattrs>,
}

/// The fragment that is being filled.
pub(super) struct Fragment {
    bytes: Vec<u8>,
    number: u32,
}

impl Fragment {
    /// The first behind so many that are there.
    pub(super) fn behind(number: u32) -> Self {
        Self { bytes: Vec::new(), number }
    }
}

impl Packer<'_> {
    /// Packs all that the walk comes by.
    pub(super) fn run(mut self, events: Receiver<Event>) -> Result<Packed, Stop> {
        for event in events {
            match event {
                Event::Enter { name, path, stat, xattrs } => {
                    self.note_dropped(&xattrs, || path.to_path_buf());
                    let xattrs = self.xattrs.add(xattrs.kept)?;
                    let node = self.catalog.node(&stat, xattrs)?;
                    self.catalog.enter(&name, &node)?;
                    self.progress.entry();
                }
                Event::Leave => self.catalog.leave()?,
                Event::Leaf { directory, name, leaf } => match leaf.wait()? {
                    Ok(leaf) => self.leaf(&directory, &name, leaf)?,
                    Err(failure) => self.failed(failure)?,
                },
                Event::Failed(failure) => self.failed(failure)?,
            }
        }
        if !self.denied.is_empty() {
            self.denied.sort_unstable();
            return Err(Stop::Failed(Error::Unreadable { paths: self.denied }));
        }
        self.flush_fragment()?;
        Ok(Packed { catalog: self.catalog, xattrs: self.xattrs, dropped: self.dropped })
    }

    /// Counts an inode of which not all attributes can be kept.
    fn note_dropped(&mut self, xattrs: &Xattrs, path: impl FnOnce() -> PathBuf) {
        let Some(name) = &xattrs.dropped else { return };
        let dropped = self.dropped.get_or_insert_with(|| DroppedXattrs {
            inodes: 0,
            path: path(),
            name: String::from_utf8_lossy(name).into_owned(),
        });
        dropped.inodes += 1;
    }

    fn failed(&mut self, failure: Failure) -> Result<(), Stop> {
        match failure {
            Failure::Vanished => {}
            Failure::Fatal(error) => return Err(error.into()),
            Failure::Denied(path) => {
                self.check_only.store(true, Ordering::Relaxed);
                self.denied.push(path);
            }
        }
        Ok(())
    }

    fn leaf(&mut self, directory: &Path, name: &[u8], leaf: Leaf) -> Result<(), Stop> {
        self.progress.entry();
        if !self.denied.is_empty() {
            return Ok(());
        }
        let link = match self.catalog.again(name, &leaf.stat)? {
            Again::Yes => return Ok(()),
            Again::No(link) => link,
        };
        self.note_dropped(&leaf.xattrs, || child(directory, name));
        let xattrs = self.xattrs.add(leaf.xattrs.kept)?;
        let mut node = self.catalog.node(&leaf.stat, xattrs)?;
        node.link = link;
        let known = match leaf.layout {
            Some(layout) => self.duplicates.find_layout(&self.catalog, layout)?,
            None => None,
        };
        let new = match leaf.content {
            Content::Nothing => None,
            _ if let Some(data) = known => {
                self.progress.read(node.version.size);
                node.data = data;
                None
            }
            Content::Target(target) => {
                node.version.size = target.len() as u64;
                node.target = target;
                None
            }
            Content::Kept(kept) => {
                self.progress.kept(kept.size);
                node.version.size = kept.size;
                node.data = kept.data();
                None
            }
            Content::Small(bytes, _) if bytes.is_empty() => None,
            Content::Small(bytes, hash) => {
                self.progress.read(bytes.len() as u64);
                let found = self.duplicates.find_small(&self.catalog, hash, &bytes)?;
                node.data = match found {
                    Some(data) => data,
                    None => self.small(bytes)?,
                };
                found.is_none().then_some(hash)
            }
            Content::Large(source) => {
                let large = self.large(&source, &child(directory, name))?;
                node.version = large.version;
                node.data = large.data;
                large.new_hash
            }
        };
        let at = self.catalog.leaf(name, &node)?;
        match (leaf.layout, new) {
            (Some(layout), _) => self.duplicates.remember_layout(layout, at),
            (None, Some(hash)) => self.duplicates.remember(hash, node.version.size, at),
            (None, None) => {}
        }
        Ok(())
    }

    /// Packs a file of a block or less.
    fn small(&mut self, bytes: Vec<u8>) -> Result<Data, Stop> {
        if bytes.len() < self.block_size as usize {
            let fragment = Some(self.tail(&bytes)?);
            return Ok(Data { fragment, ..Data::NONE });
        }
        let (first_block, sparse) = if is_zero(&bytes) {
            (self.holes(1)?, bytes.len() as u64)
        } else {
            (self.block(bytes)?, 0)
        };
        Ok(Data { first_block, sparse, ..Data::NONE })
    }

    /// Packs a file of more than a block. If it changes meanwhile it is packed again; what was
    /// written of it before stays in the archive, unused.
    fn large(&mut self, source: &Source, path: &Path) -> Result<Large, Stop> {
        let failed = |call| move |errno: Errno| Error::io(path, call, errno);
        for attempt in 1..=ATTEMPTS {
            let version = source.version().map_err(failed("fstat"))?;
            let size = version.size;
            let mut found = None;
            if self.duplicates.has_size(size) {
                let hash = self.hash(source, size).map_err(Unread::of(path, "read"))?;
                let data = self.duplicates.find_large(&self.catalog, hash, source, size)?;
                found = data.map(|data| (data, hash));
            }
            let is_new = found.is_none();
            let packed = match found {
                Some(found) => Some(found),
                None => self.large_once(source, size, path)?,
            };
            let Some((data, hash)) = packed else { continue };
            let after = source.version().map_err(failed("fstat"))?;
            let at_rest = version == after
                || attempt == ATTEMPTS
                    && version.only_grew(&after)
                    && self.hash(source, size).map_err(Unread::of(path, "read"))? == hash;
            if at_rest {
                self.progress.read(size);
                return Ok(Large { version, data, new_hash: is_new.then_some(hash) });
            }
        }
        Err(Error::Changed { path: path.to_owned() }.into())
    }

    fn hash(&self, source: &Source, size: u64) -> Result<u64, Unread> {
        let mut reader = BlockReader::new(source, size, self.block_size);
        let mut hash = BlockHash::new();
        while let Some(block) = reader.next()? {
            hash.update(&block);
        }
        Ok(hash.finish())
    }

    /// Packs a file as it is now, and hashes it. `None` where it has fewer than `size` bytes.
    fn large_once(
        &mut self,
        source: &Source,
        size: u64,
        path: &Path,
    ) -> Result<Option<(Data, u64)>, Stop> {
        let mut reader = BlockReader::new(source, size, self.block_size);
        let mut hash = BlockHash::new();
        let mut data = Data { first_block: self.next_block, ..Data::NONE };
        let mut holes = 0;
        let next = |reader: &mut BlockReader<'_>,
                    take: &mut dyn FnMut(Block<'_>) -> Result<(), Stop>| {
            match reader.next().map_err(Unread::of(path, "read"))? {
                Some(block) => take(block).map(|()| true),
                None => Ok(false),
            }
        };
        while next(&mut reader, &mut |block| {
            hash.update(&block);
            match block {
                Block::Zeros(len) => {
                    holes += 1;
                    data.sparse += len as u64;
                }
                Block::Data(bytes) => {
                    self.holes(std::mem::take(&mut holes))?;
                    if bytes.len() < self.block_size as usize && self.pack_tails {
                        data.fragment = Some(self.tail(bytes)?);
                    } else {
                        self.block(bytes.to_vec())?;
                    }
                }
            }
            Ok(())
        })? {}
        self.holes(holes)?;
        Ok(reader.is_complete().then(|| (data, hash.finish())))
    }

    /// Gives out a block, and returns its number.
    fn block(&mut self, bytes: Vec<u8>) -> Result<u64, Stop> {
        let block = self.blocks.submit(bytes)?;
        self.send(Next::Block(block))?;
        self.next_block += 1;
        Ok(self.next_block - 1)
    }

    /// Gives out blocks that are holes, and returns the first one's number.
    fn holes(&mut self, count: u64) -> Result<u64, Stop> {
        if count > 0 {
            self.send(Next::Holes(count))?;
        }
        self.next_block += count;
        Ok(self.next_block - count)
    }

    /// Puts the end of a file into a fragment, and says which and where.
    fn tail(&mut self, bytes: &[u8]) -> Result<(u32, u32), Stop> {
        if self.fragment.bytes.len() + bytes.len() > self.block_size as usize {
            self.flush_fragment()?;
        }
        let offset = self.fragment.bytes.len() as u32;
        self.fragment.bytes.extend_from_slice(bytes);
        Ok((self.fragment.number, offset))
    }

    fn flush_fragment(&mut self) -> Result<(), Stop> {
        if self.fragment.bytes.is_empty() {
            return Ok(());
        }
        let room = Vec::with_capacity(self.block_size as usize);
        let bytes = std::mem::replace(&mut self.fragment.bytes, room);
        let block = self.blocks.submit(bytes)?;
        self.send(Next::Fragment(block))?;
        self.fragment.number += 1;
        Ok(())
    }

    fn send(&self, next: Next) -> Result<(), Stop> {
        self.output.send(next).map_err(|_| Stop::Gone)
    }
}

/// A large file, packed.
struct Large {
    version: Version,
    data: Data,
    /// Its hash, where its bytes were not in the archive before.
    new_hash: Option<u64>,
}
