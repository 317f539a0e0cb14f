//! What a server says about itself when asked: the answer of `thawfs status`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use super::checkpoints::PublishingReport;
use super::group::Group;
use crate::names;

/// One mount, now.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Where it is mounted.
    #[serde(flatten, with = "names::mountpoint")]
    pub mountpoint: PathBuf,
    /// The source, with query string and user info left out.
    pub source: String,
    /// The server's process id.
    pub pid: u32,
    /// Seconds since the epoch when it was mounted.
    pub since: u64,
    /// The upper directory; none for a read-only mount.
    #[serde(flatten, with = "names::upper")]
    pub upper: Option<PathBuf>,
    /// The server's control groups, in hierarchies in which it makes its own.
    #[serde(default)]
    pub groups: Vec<Group>,
    /// The archive.
    pub archive: ArchiveReport,
    /// Traffic with the store; all zero for an archive on this machine.
    pub store: StoreReport,
    /// The cache of compressed chunks; all zero for an archive on this machine.
    pub chunks: ChunkReport,
    /// The disk cache of compressed chunks; all zero where there is none.
    pub disk: DiskReport,
    /// The cache of decoded blocks.
    pub blocks: BlockReport,
    /// The log of what changes; all zero while nobody watches.
    #[serde(default)]
    pub changes: ChangesReport,
    /// Frozen layers below the upper, and the checkpoints that they are kept for; all zero where there is
    /// none.
    #[serde(default)]
    pub layers: LayersReport,
    /// Files and directories that the kernel remembers.
    #[serde(default)]
    pub nodes: u64,
    /// Requests that failed for want of the archive or the network.
    pub faults: FaultReport,
    /// Resident memory of the server in bytes.
    pub resident_bytes: u64,
}

/// The archive below a mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArchiveReport {
    /// Size in bytes, without padding.
    pub bytes: u64,
    /// Inodes in it.
    pub inodes: u32,
    /// Its compressor's name.
    pub compressor: String,
    /// Largest data block in bytes.
    pub block_size: u32,
}

/// Traffic with the store.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreReport {
    /// GET requests, every attempt counted.
    pub gets: u64,
    /// Bytes of bodies received.
    pub bytes: u64,
    /// Attempts that failed and were made again.
    pub retries: u64,
    /// Requests that failed for good.
    pub errors: u64,
    /// GETs that were sent a second time because the first took long.
    pub hedges: u64,
    /// Those of them that were answered first.
    pub hedges_won: u64,
}

/// The cache of compressed chunks.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChunkReport {
    /// Chunks found in memory.
    pub hits: u64,
    /// Chunks that had to be fetched.
    pub misses: u64,
    /// Chunks that were on their way already for somebody else.
    pub joined: u64,
    /// Chunks fetched once more, because what had come of them made no sense.
    #[serde(default)]
    pub fetched_again: u64,
    /// Reads that waited for chunks in vain, as long as the store has.
    #[serde(default)]
    pub timeouts: u64,
    /// Bytes held now.
    pub resident_bytes: u64,
    /// Bytes brought ahead of demand, from the store or from disk.
    pub prefetched_bytes: u64,
    /// Of these, what was read later.
    pub prefetched_used_bytes: u64,
}

/// The disk cache of compressed chunks.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskReport {
    /// Chunks read from it.
    pub hits: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of chunks written to it.
    pub written_bytes: u64,
    /// Chunks that were not what had been written, and were fetched again.
    pub damaged: u64,
    /// Chunks that were fetched but not written.
    #[serde(default)]
    pub dropped: u64,
}

/// The cache of decoded blocks.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockReport {
    /// Blocks found decoded.
    pub hits: u64,
    /// Blocks decoded.
    pub decoded: u64,
}

/// The log of what changes in a mount.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangesReport {
    /// Those who read it: each `watch`, and all watchers of one file service together.
    pub readers: u64,
    /// Changes that were written down since somebody watches.
    pub written: u64,
    /// Bytes of those that are held in memory.
    pub memory_bytes: u64,
    /// Bytes on disk of those that wait for a slow reader.
    pub journal_bytes: u64,
}

/// Layers below the upper.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayersReport {
    /// How many are frozen.
    pub layers: u64,
    /// Room that they take on disk, as far as it is known yet.
    pub bytes: u64,
    /// Checkpoints, without what was rolled away.
    pub checkpoints: u64,
    /// Those of them that have a name.
    pub named: u64,
    /// Those of them that the disk is known to have.
    pub durable: u64,
    /// Whether the last rollback can be taken back.
    pub rolled_away: bool,
    /// Those that are to be backups, or are.
    #[serde(default)]
    pub publishing: PublishingReport,
    /// Where mounts are, or were, that lie on some of its layers.
    #[serde(default)]
    pub forks: Vec<PathBuf>,
    /// Where the mount was that it was forked from.
    #[serde(default)]
    pub forked_from: Option<PathBuf>,
}

/// Requests that failed below the overlay.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FaultReport {
    /// How many.
    pub count: u64,
    /// Why the last one did.
    pub last: Option<String>,
    /// Seconds since the epoch when it did.
    pub last_at: Option<u64>,
}
