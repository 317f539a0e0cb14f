//! The blocks that hold files' contents, read once each and in the order they lie in.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::{First, Owner, VerifyProgress};
use crate::squashfs::{Archive, DataBlock, Error};
use crate::types::{ArchiveOffset, InodeRef};

/// Stored bytes that are fetched together. Several of these are under way at a time, and the chunk
/// cache below has room for 12 MiB by default.
const BATCH_BYTES: u64 = 1 << 20;
/// Blocks that are fetched together at most.
const BATCH_BLOCKS: usize = 256;
/// Claims collected before they are first sorted out.
const FEW: usize = 1 << 16;

/// A block, and one of the files that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    pub(super) block: DataBlock,
    pub(super) owner: Option<InodeRef>,
}

/// Blocks as they are found: many files can share one.
pub(super) struct Claims {
    claims: Vec<Claim>,
    /// Sort out once there are so many.
    limit: usize,
    /// Size of the archive, which blocks cannot exceed together.
    archive_bytes: u64,
    /// The first block that does.
    excess: Option<ArchiveOffset>,
}

impl Claims {
    pub(super) fn new(archive_bytes: u64) -> Self {
        Self { claims: Vec::new(), limit: FEW, archive_bytes, excess: None }
    }

    pub(super) fn add(&mut self, claim: Claim) {
        if self.claims.len() >= self.limit {
            self.merge();
            self.limit = FEW.max(self.claims.len() * 2);
        }
        self.claims.push(claim);
    }

    /// Keeps each block once, with an owner if it has any.
    fn merge(&mut self) {
        self.claims.sort_unstable();
        self.claims.dedup_by(|next, kept| {
            let is_same = next.block.is_same(kept.block);
            if is_same {
                kept.block = kept.block.for_both(next.block);
                kept.owner = kept.owner.or(next.owner);
            }
            is_same
        });
        // Blocks of an honest archive do not overlap. Without this, a small archive that makes them
        // could fill any memory.
        let mut left = self.archive_bytes;
        for (index, claim) in self.claims.iter().enumerate() {
            match left.checked_sub(claim.block.stored_len().max(1).into()) {
                Some(rest) => left = rest,
                None => {
                    self.excess = Some(claim.block.at());
                    self.claims.truncate(index);
                    break;
                }
            }
        }
    }

    /// All blocks, in the order they lie in.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where all of them together are longer than the archive.
    pub(super) fn into_sorted(mut self) -> Result<Vec<Claim>, Error> {
        self.merge();
        match self.excess {
            None => Ok(self.claims),
            Some(at) => {
                let detail = "blocks up to it are longer together than the archive: they overlap";
                Err(Error::corrupt("data block", at, detail))
            }
        }
    }
}

/// Stored bytes of all blocks.
pub(super) fn total_bytes(claims: &[Claim]) -> u64 {
    claims.iter().map(|claim| u64::from(claim.block.stored_len())).sum()
}

/// Splits blocks, in their order, into those that are fetched together.
fn batches(claims: &[Claim]) -> Vec<&[Claim]> {
    let mut batches = Vec::new();
    let mut rest = claims;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |claim: &&Claim| {
            let first = bytes == 0;
            bytes += u64::from(claim.block.stored_len().max(1));
            first || bytes <= BATCH_BYTES
        };
        let count = rest.iter().take(BATCH_BLOCKS).take_while(fits).count().max(1);
        let Some((batch, behind)) = rest.split_at_checked(count) else { break };
        batches.push(batch);
        rest = behind;
    }
    batches
}

/// Reads all blocks with `jobs` threads. Damage ends it: batches are taken in their order, so that
/// none that lies before is left out.
///
/// # Errors
/// What is no damage.
pub(super) fn check(
    archive: &Archive,
    claims: &[Claim],
    jobs: u16,
    progress: &VerifyProgress,
    first: &mut First,
) -> Result<(), Error> {
    progress.total.store(total_bytes(claims), Ordering::Relaxed);
    let batches = batches(claims);
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let found = Mutex::new((first, Ok(())));
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) else {
                        break;
                    };
                    let Err((error, owner)) = check_batch(archive, batch) else {
                        progress.bytes.fetch_add(total_bytes(batch), Ordering::Relaxed);
                        continue;
                    };
                    failed.store(true, Ordering::Relaxed);
                    let (first, other) = &mut *found.lock();
                    if let Err(error) = first.note(error, Owner::from(owner)) {
                        *other = Err(error);
                    }
                }
            });
        }
    });
    found.into_inner().1
}

/// Reads blocks together, or where one is damaged one by one to see which is the first.
fn check_batch(archive: &Archive, batch: &[Claim]) -> Result<(), (Error, Option<InodeRef>)> {
    let blocks: Vec<DataBlock> = batch.iter().map(|claim| claim.block).collect();
    let Err(error) = archive.check_blocks(&blocks) else { return Ok(()) };
    if matches!(error, Error::Corrupt { .. }) {
        for claim in batch {
            archive.check_blocks(&[claim.block]).map_err(|error| (error, claim.owner))?;
        }
    }
    Err((error, None))
}
