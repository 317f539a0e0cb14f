//! What a policy is told, and what it answers.

use std::ops::Range;

use crate::cache::grid::Grid;

/// A read of a blob, as policies are told of it.
#[derive(Clone, Debug)]
pub(in crate::cache) enum Read<'a> {
    /// These bytes were in memory, in these chunks.
    Hit { bytes: Range<u64>, chunks: Range<u64> },
    /// Not all of it was.
    Miss {
        /// The bytes. Ranges that lie close together are one.
        spans: &'a [Range<u64>],
        /// Their chunks, sorted.
        chunks: &'a [u64],
        /// Whether anything was neither in memory nor on its way.
        missed: bool,
        /// The chunks that were nowhere on this machine: a request is sent for them.
        requested: &'a [u64],
    },
    /// A small file is about to be read, which begins in these chunks.
    SmallFile(Range<u64>),
    /// Somebody knows that these chunks will be read soon.
    Announced(Range<u64>),
}

/// Whom a chunk on its way is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cache) enum Wanted {
    /// Somebody who waits for it. No policy says so.
    Now,
    /// Readers, soon.
    Ahead,
    /// Readers, perhaps: it lies where they have read.
    Nearby,
    /// The disk.
    OnDisk,
}

/// Chunks that would be worth having, sorted, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cache) struct Wish {
    pub(in crate::cache) chunks: Vec<u64>,
    pub(in crate::cache) wanted: Wanted,
}

/// Where a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cache) enum Where {
    /// In memory, or on its way.
    Here,
    /// On disk.
    OnDisk,
    /// In the store alone.
    Nowhere,
}

/// What a cache has, and has room for. A read's own chunks are on their way by the time it is seen.
pub(in crate::cache) struct Here<'a> {
    pub(in crate::cache) grid: Grid,
    /// Bytes that may be in memory and on their way.
    pub(in crate::cache) budget: u64,
    /// Bytes in memory that wait for their reader.
    pub(in crate::cache) unread: u64,
    /// Bytes on their way, whoever wants them.
    pub(in crate::cache) flying: u64,
    /// Where a chunk is.
    pub(in crate::cache) place: &'a dyn Fn(u64) -> Where,
}

impl Here<'_> {
    /// Bytes that may be fetched ahead of readers now: three quarters of the budget may wait for its reader
    /// or be on its way, and the rest belongs to what readers asked for. All that is on its way counts,
    /// since it needs room when it comes.
    pub(super) fn room_ahead(&self) -> u64 {
        most_ahead(self.budget).saturating_sub(self.unread + self.flying)
    }

    /// Bytes that may be fetched now though nobody may ever read them: what readers wait for is not pushed
    /// out of memory by those.
    pub(super) fn room_beside(&self) -> u64 {
        (self.budget / 2).saturating_sub(self.flying)
    }

    /// Whether a chunk is neither in memory nor on its way.
    pub(super) fn is_absent(&self, chunk: u64) -> bool {
        (self.place)(chunk) != Where::Here
    }

    /// Whether a chunk is in the store alone.
    pub(super) fn is_nowhere(&self, chunk: u64) -> bool {
        (self.place)(chunk) == Where::Nowhere
    }
}

/// What of a budget may be ahead of readers, in bytes.
pub(super) fn most_ahead(budget: u64) -> u64 {
    budget / 4 * 3
}

/// Recognizes one way of reading.
pub(super) trait Policy {
    /// Notes a read, and says what would be worth having, the most urgent first. The cache may lack room
    /// for it.
    fn observe(&mut self, read: &Read<'_>, here: &Here<'_>) -> Vec<Wish>;
}
