//! Where one new backup goes: to a place in a bucket, or through presigned URLs.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;

use super::bucket::Backups;
use super::id::BackupId;
use super::layout;
use crate::failure::{Code, Failure};
use crate::store::{
    Access, Error, GetRange, PresignedUpload, PresignedUrls, ReadRanges, Result, WriteObjects,
};

/// A place for one new backup, of which nothing is there yet.
#[derive(Debug)]
pub struct Destination {
    /// The backup's id.
    pub(super) id: BackupId,
    /// Size of the archive's parts in bytes, where that is not for us to choose.
    pub(super) part_size: Option<u64>,
    /// The directory that is the bucket, if it is one of this machine.
    pub(super) local_root: Option<PathBuf>,
    /// Where to write.
    pub(super) store: Arc<dyn WriteObjects>,
    /// Key of the archive there.
    pub(super) archive_key: String,
    metadata_key: String,
    /// The archive, once it is there.
    archive: Arc<dyn ReadRanges>,
}

/// What it takes to make one backup without credentials, as JSON: its id, and the URLs of
/// [`PresignedUrls`] for the objects of that id.
#[derive(Clone, Debug, Deserialize)]
pub struct Presigned {
    /// The backup's id, as the URLs have it.
    pub id: BackupId,
    /// The URLs.
    #[serde(flatten)]
    pub urls: PresignedUrls,
}

impl Presigned {
    /// Opens the URLs, by which one backup can be made without credentials, and nothing else done.
    ///
    /// # Errors
    /// [`Code::InvalidBackupConfig`] where they make no sense.
    pub fn destination(self, access: &Access) -> Result<Destination, Failure> {
        let Self { id, urls } = self;
        let part_size = Some(urls.part_size);
        let archive_key = layout::key(&id, layout::ARCHIVE);
        let metadata_key = layout::key(&id, layout::METADATA);
        let opened = urls.open(archive_key.clone(), metadata_key.clone(), access);
        let invalid = |error: Error| Failure { code: Code::InvalidBackupConfig, ..error.into() };
        let store: Arc<PresignedUpload> = Arc::new(opened.map_err(invalid)?);
        let archive = Arc::clone(&store) as Arc<dyn ReadRanges>;
        Ok(Destination {
            id,
            part_size,
            local_root: None,
            store,
            archive_key,
            metadata_key,
            archive,
        })
    }
}

impl Backups {
    /// A place for a new backup in this bucket, of a new id.
    ///
    /// # Errors
    /// Where the system has no random numbers.
    pub fn destination(&self) -> Result<Destination, Failure> {
        Ok(self.destination_of(BackupId::random()?))
    }

    /// A place for a new backup, of an id that no other has.
    pub(super) fn destination_of(&self, id: BackupId) -> Destination {
        let archive = self.object(&id, layout::ARCHIVE);
        Destination {
            part_size: None,
            local_root: self.local_root(),
            store: Arc::clone(&archive.bucket) as Arc<dyn WriteObjects>,
            archive_key: archive.key.clone(),
            metadata_key: self.object(&id, layout::METADATA).key,
            archive: Arc::new(archive),
            id,
        }
    }
}

impl Destination {
    /// Asks the store how large the archive is that it has. By a GET, since proxies change what HEAD
    /// says.
    pub(super) async fn check_size(&self, size: u64) -> Result<(), Failure> {
        let last = self.archive.get_range(GetRange::Last(1), None, 1).await?;
        if last.size == size {
            return Ok(());
        }
        let message = format!("{} has {} bytes instead of {size}", self.archive.name(), last.size);
        Err(Failure::new(Code::BackupCreateFailed, message).hint("try again"))
    }

    /// Writes the metadata, which makes it a backup.
    pub(super) async fn describe(&self, metadata: Vec<u8>) -> Result<()> {
        self.store.put(&self.metadata_key, metadata.into()).await
    }

    /// Removes what there may be of the backup, and gives each error that came of it.
    pub(super) async fn discard(&self) -> Vec<Error> {
        let mut errors = Vec::new();
        for key in [&self.metadata_key, &self.archive_key] {
            match self.store.delete(key).await {
                // There is nothing that something could be left in.
                Ok(()) | Err(Error::NoSuchBucket { .. }) => {}
                Err(error) => errors.push(error),
            }
        }
        errors
    }
}
