//! An earlier backup of a tree, which another may begin with in the place of what the tree is made over.

use chrono::Utc;

use super::bucket::Backups;
use super::id::BackupId;
use super::memory::default_cache_memory;
use super::open::SourceRequest;
use crate::cache::DiskLimit;
use crate::failure::{Code, Failure};

/// Memory for its caches: of its archive the metadata is read, and what the copy of the rest leaves over.
const MAX_CACHE_MEMORY: u64 = 16 << 20;

impl Backups {
    /// How to open the archive of a backup of this id that was made with `bytes` bytes, if it is there and has not expired.
    /// Or why not, in words that go on after its id.
    ///
    /// # Errors
    /// What the store says that may be otherwise the next time.
    pub(crate) async fn earlier(
        &self,
        id: &BackupId,
        bytes: u64,
        disk_cache: DiskLimit,
    ) -> Result<Result<SourceRequest, String>, Failure> {
        let metadata = match self.metadata(id).await {
            Ok(metadata) => metadata,
            Err(failure) if failure.passes => return Err(failure),
            Err(failure) if failure.code == Code::BackupNotFound => {
                return Ok(Err("is not in the bucket any more".into()));
            }
            Err(failure) => return Ok(Err(format!("cannot be read: {}", failure.message))),
        };
        if metadata.is_expired(Utc::now()) {
            return Ok(Err("has expired".into()));
        }
        if metadata.size_bytes != bytes {
            return Ok(Err("is another than the one that was made".into()));
        }
        let cache_memory = default_cache_memory().min(MAX_CACHE_MEMORY);
        Ok(Ok(SourceRequest { cache_memory, disk_cache, ..self.archive(id)? }))
    }

    /// Whether a backup of `dir` leaves something out of it, which is the bucket itself.
    pub(crate) fn is_inside(&self, dir: &std::path::Path) -> bool {
        super::tree::own(self.local_root().as_deref(), dir).is_some()
    }
}
