//! What a caller says of an archive to be written, takes of it, and sees of its progress.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::super::format::SUPERBLOCK_LEN;
use super::compress::Compression;
use super::error::Error;

/// Says of a path below the packed directory, and whether it is a directory, that it be left out.
pub type Exclude<'a> = dyn Fn(&Path, bool) -> bool + Sync + 'a;

/// Opens a regular file of the tree once more, by its path below the root, to compare another with it. Without it the
/// other is packed, too.
pub type Reopen<'a> = dyn Fn(&Path) -> Option<OwnedFd> + Sync + 'a;

/// How an archive is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Size of a data block in bytes: a power of two, 4 KiB to 1 MiB.
    pub block_size: u32,
    /// What blocks are compressed with.
    pub compression: Compression,
    /// How many threads compress. `None`: one for each core.
    pub threads: Option<NonZeroUsize>,
    /// The time of creation in the superblock, in seconds since 1970. `None`: now.
    pub mkfs_time: Option<u32>,
    /// Whether the ends of files of more than a block go to fragments too. That takes a little
    /// less room, and one more block to read such an end.
    pub pack_tails: bool,
    /// Where in the archive the sink's first byte will lie: 96, right behind the superblock,
    /// unless the data of another archive of the same compression comes first.
    pub data_start: u64,
}

impl Default for Options {
    /// zstd of level 15 in blocks of 128 KiB, as mksquashfs has them, with all cores.
    fn default() -> Self {
        Self {
            block_size: 128 << 10,
            compression: Compression::Zstd(15),
            threads: None,
            mkfs_time: None,
            pack_tails: false,
            data_start: SUPERBLOCK_LEN,
        }
    }
}

impl Options {
    pub(super) fn check(&self) -> Result<(), Error> {
        if !(4096..=1 << 20).contains(&self.block_size) || !self.block_size.is_power_of_two() {
            let detail = "is not a power of two between 4096 and 1048576";
            return Err(Error::Options(format!("block size {} {detail}", self.block_size)));
        }
        if self.data_start < SUPERBLOCK_LEN {
            let at = self.data_start;
            return Err(Error::Options(format!("data at {at}, within the superblock")));
        }
        self.compression.check()
    }

    /// The compressor's options, if the archive has any. Behind other data they are whatever that
    /// archive had, and are claimed only where nothing is read without.
    pub(super) fn compressor_options(&self) -> Option<Vec<u8>> {
        let needed = self.data_start == SUPERBLOCK_LEN || self.compression == Compression::Lz4;
        self.compression.options().filter(|_| needed)
    }
}

/// Where an archive goes, but for its superblock.
pub trait Sink {
    /// Takes the next bytes. Each call's follow the last one's without a gap. May block.
    fn write(&mut self, bytes: Bytes) -> io::Result<()>;
}

/// How far the packing is. May be looked at from other threads meanwhile.
#[derive(Debug, Default)]
pub struct Progress {
    entries: AtomicU64,
    bytes_read: AtomicU64,
    bytes_kept: AtomicU64,
    bytes_written: AtomicU64,
}

impl Progress {
    /// Names found so far, that of the packed directory among them.
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Bytes of files packed so far, holes among them, and each inode once.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Those of them that are where they were in the archive that comes first.
    pub fn bytes_kept(&self) -> u64 {
        self.bytes_kept.load(Ordering::Relaxed)
    }

    /// Bytes that the sink was given so far.
    pub fn bytes_written(&self) -> u64 {
        self.bytes_written.load(Ordering::Relaxed)
    }

    /// Forgets what was packed, as it is packed once more.
    pub(crate) fn begin_again(&self) {
        for count in [&self.entries, &self.bytes_read, &self.bytes_kept, &self.bytes_written] {
            count.store(0, Ordering::Relaxed);
        }
    }

    pub(super) fn entry(&self) {
        self.entries.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self, bytes: u64) {
        self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn kept(&self, bytes: u64) {
        self.read(bytes);
        self.bytes_kept.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn written(&self, bytes: u64) {
        self.bytes_written.fetch_add(bytes, Ordering::Relaxed);
    }
}
