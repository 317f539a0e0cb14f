//! What a cache has done so far, for `status`.

/// A snapshot of a blob's cache since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Chunks that readers found in memory.
    pub hits: u64,
    /// Chunks that readers had to wait for, and that were fetched for them.
    pub misses: u64,
    /// Chunks that readers had to wait for, while somebody else's request was on its way.
    pub joined: u64,
    /// Bytes of chunks fetched, for readers and ahead of them.
    pub fetched_bytes: u64,
    /// Bytes of chunks brought ahead of readers, from the store or from disk.
    pub prefetched_bytes: u64,
    /// Of these, read later.
    pub prefetched_used_bytes: u64,
    /// Of these, dropped before they were read.
    pub prefetched_wasted_bytes: u64,
    /// Bytes in memory now, those on their way included.
    pub memory_bytes: u64,
    /// Chunks read from the disk cache, for readers and ahead of them.
    pub disk_hits: u64,
    /// Their bytes.
    pub disk_bytes: u64,
    /// Bytes of chunks written to the disk cache.
    pub disk_written_bytes: u64,
    /// Chunks in the disk cache that were not what had been written, and were fetched again.
    pub disk_damaged: u64,
    /// Chunks that were fetched but could not be written to the disk cache: they came faster than the
    /// disk takes them, there was no room, or it failed.
    pub disk_dropped: u64,
    /// Chunks fetched once more, because what had come of them made no sense.
    pub fetched_again: u64,
    /// Reads that waited for chunks in vain, as long as the store has.
    pub timeouts: u64,
    /// Requests that failed.
    pub failures: u64,
}
