//! Deleting one backup.

use futures::stream::{self, StreamExt, TryStreamExt};
use serde::Serialize;

use super::bucket::Backups;
use super::contents::Contents;
use super::id::BackupId;
use super::layout;
use crate::failure::Failure;
use crate::store::{Depth, Pages};

/// How many objects are deleted at a time.
const IN_FLIGHT: usize = 16;

/// Whether to do it or only to say what would be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// Do it.
    Real,
    /// Touch nothing.
    DryRun,
}

/// What was deleted, or would have been.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Deleted {
    /// Which backup.
    pub id: BackupId,
    /// How many objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Backups {
    /// Deletes everything below a backup's prefix, its metadata first: what is left if that is
    /// interrupted is an archive that no restore finds. A mount of the backup fails from then on.
    ///
    /// # Errors
    /// [`crate::failure::Code::BackupNotFound`] if there is nothing below the prefix, and
    /// [`crate::failure::Code::Unsupported`] if that is because it is of the newer kind.
    pub async fn delete(&self, id: &BackupId, deletion: Deletion) -> Result<Deleted, Failure> {
        let contents = self.contents(id).await?;
        if contents.objects == 0 {
            return Err(contents.missing(self));
        }
        self.delete_contents(contents, deletion).await
    }

    /// Deletes what a listing found. Counts what was there then.
    pub(super) async fn delete_contents(
        &self,
        contents: Contents,
        deletion: Deletion,
    ) -> Result<Deleted, Failure> {
        let Contents { id, objects, bytes, has_metadata, .. } = contents;
        if deletion == Deletion::Real {
            let bucket = &self.folder.bucket;
            if has_metadata {
                bucket.delete(&self.object(&id, layout::METADATA).key).await?;
            }
            let prefix = self.folder.prefix.clone() + &layout::prefix(&id);
            let mut pages = Pages::default();
            while let Some(token) = pages.next() {
                let page = bucket.list(&prefix, Depth::All, token).await?;
                page.turn(&mut pages, &bucket.name(&prefix))?;
                stream::iter(page.objects)
                    .map(|object| async move { bucket.delete(&object.key).await })
                    .buffer_unordered(IN_FLIGHT)
                    .try_collect::<()>()
                    .await?;
            }
        }
        Ok(Deleted { id, objects, bytes })
    }
}
