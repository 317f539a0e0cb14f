//! Writes compressed blocks in their order, and notes where each went.

use bytes::Bytes;
use crossbeam_channel::Receiver;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::super::format::{BLOCK_STORED, RawFragment};
use super::compress::Compressor;
use super::error::Error;
use super::pool::{Gone, Jobs, Pending, Pool};
use super::spool::Spool;
use super::tail::Tail;

/// A block as it is stored, with its size word.
pub(super) struct Stored {
    bytes: Bytes,
    word: u32,
}

pub(super) type BlockPool = Pool<Vec<u8>, Result<Stored, Error>>;
pub(super) type BlockJobs = Jobs<Vec<u8>, Result<Stored, Error>>;
type PendingBlock = Pending<Result<Stored, Error>>;

/// What comes next in the archive.
pub(super) enum Next {
    /// A file's block.
    Block(PendingBlock),
    /// Blocks of a file that are nothing but zeros: so many of them.
    Holes(u64),
    /// A fragment.
    Fragment(PendingBlock),
}

/// Where a file's block went, and its size word: zero for a hole.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Placed {
    pub(super) start: u64,
    pub(super) word: u32,
    unused: u32,
}

/// Where all data went.
#[derive(Default)]
pub(super) struct Placement {
    blocks: Spool,
    fragments: Spool,
    pub(super) fragment_count: u32,
}

impl Placement {
    /// Where the block `number` went; all blocks of the archive are counted.
    pub(super) fn block(&self, number: u64) -> Result<Placed, Error> {
        self.blocks.read(number * size_of::<Placed>() as u64)
    }

    /// The fragments' table entries.
    pub(super) fn fragments(&self) -> &Spool {
        &self.fragments
    }

    fn place(&mut self, start: u64, word: u32) -> Result<(), Error> {
        self.blocks.append(Placed { start, word, unused: 0 }.as_bytes())
    }
}

/// Compresses blocks until there are no more.
pub(super) fn compress(jobs: BlockJobs, mut compressor: Compressor) {
    jobs.work(|block| {
        let compressed = compressor.compress(&block)?.map(Bytes::copy_from_slice);
        Ok(match compressed {
            // At most a MiB.
            Some(bytes) => Stored { word: bytes.len() as u32, bytes },
            None => Stored { word: block.len() as u32 | BLOCK_STORED, bytes: block.into() },
        })
    });
}

/// Writes what comes until nothing more does.
pub(super) fn write(next: Receiver<Next>, tail: &mut Tail<'_>) -> Result<Placement, Error> {
    let mut placement = Placement::default();
    for next in next {
        let start = tail.position();
        match next {
            Next::Holes(count) => {
                for _ in 0..count {
                    placement.place(start, 0)?;
                }
            }
            Next::Block(block) => {
                let stored = wait(block)?;
                placement.place(start, stored.word)?;
                tail.write_bytes(stored.bytes)?;
            }
            Next::Fragment(block) => {
                let stored = wait(block)?;
                let fragment =
                    RawFragment { start: start.into(), size: stored.word.into(), unused: 0.into() };
                placement.fragments.append(fragment.as_bytes())?;
                placement.fragment_count += 1;
                tail.write_bytes(stored.bytes)?;
            }
        }
    }
    Ok(placement)
}

fn wait(block: PendingBlock) -> Result<Stored, Error> {
    block.wait().unwrap_or_else(|Gone| Err(Error::Compress("a thread ended early".into())))
}
