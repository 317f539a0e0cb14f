//! Making a backup of a merged tree in this process, which no kernel has to have mounted.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use super::bucket::Backups;
use super::create::{CreateProgress, Created, New, not_made};
use super::destination::Destination;
use super::id::BackupId;
use super::layout;
use super::meta::Metadata;
use super::send::Packing;
use super::tree::{self, Merged};
use crate::failure::{Code, Failure};
use crate::overlay::Overlay;
use crate::squashfs::write::Compression;
use crate::store::{Error, GetRange, Pages, ReadRanges, Unfinished};

/// How a merged tree is to be backed up.
///
/// ```no_run
/// use std::sync::Arc;
/// use thawfs::backup::{BackupId, Backups, BucketRequest, PublishRequest};
/// use thawfs::overlay::{Options, Overlay, Upper};
///
/// # async fn example(id: BackupId) -> Result<(), Box<dyn std::error::Error>> {
/// let backups = Backups::open(&BucketRequest::new("s3://my-bucket")).await?;
/// let source = backups.archive(&id)?;
/// // Opening blocks.
/// let opened = tokio::task::spawn_blocking(move || source.open()).await??;
/// let upper = Upper::open("upper".as_ref(), "work".as_ref())?;
/// let tree = Overlay::new(Arc::clone(&opened.archive), Some(upper), Options::default())?;
/// let tree = Arc::new(tree.named(opened.as_mounted()));
/// let request = PublishRequest::new("/workspace");
/// let created = backups.publish(&tree, &request, Arc::default()).await?;
/// println!("{}", created.metadata.id);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct PublishRequest {
    /// The directory that the backup records: an absolute path. Nothing is looked for there.
    pub dir: PathBuf,
    /// The backup's id, of which none is in the bucket; `None`: a new one.
    pub id: Option<BackupId>,
    /// What to call it.
    pub name: Option<String>,
    /// Lifetime in seconds.
    pub ttl: u64,
    /// How to compress. `None`: as in the archive that this one begins with, or as
    /// [`super::CreateRequest::DEFAULT_COMPRESSION`] has it.
    pub compression: Option<Compression>,
    /// Pack everything, also what is in the archive of the tree.
    pub whole: bool,
    /// How many threads compress. `None`: one for each core.
    pub threads: Option<NonZeroUsize>,
    /// The archive's own time of creation in seconds since 1970. `None`: now.
    pub mkfs_time: Option<u32>,
}

impl PublishRequest {
    /// A backup that records `dir`, with everything default.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            id: None,
            name: None,
            ttl: Metadata::DEFAULT_TTL,
            compression: None,
            whole: false,
            threads: None,
            mkfs_time: None,
        }
    }
}

impl Backups {
    /// Backs a merged tree up, as [`Self::create`] does the directory that it is mounted on, without going through a
    /// mount: what cannot be told there is told here, such as owners that are shown otherwise. The tree is the root of
    /// the backup. Where its archive is that of a backup in this bucket ([`Overlay::named`] has said so), the new one
    /// begins with the data of that, which the store copies: then only what the tree holds beside that is packed and
    /// sent, and of the old data nothing is fetched but what the copy leaves over, two parts of an upload at most.
    /// Otherwise [`Created::whole_because`] says why not.
    ///
    /// The tree may be read-only, or live and change meanwhile; see [`Overlay::tell_entries`] for what is then told.
    ///
    /// # Errors
    /// As [`Destination::create`]; and [`Code::InvalidBackupConfig`] where there is a backup of this id.
    pub async fn publish(
        &self,
        tree: &Arc<Overlay>,
        request: &PublishRequest,
        progress: Arc<CreateProgress>,
    ) -> Result<Created, Failure> {
        let published = self.try_publish(tree, request, progress).await;
        published.map_err(|failure| not_made(&request.dir.display(), failure))
    }

    /// As [`Self::publish`], and a failure is told as what it is.
    pub(crate) async fn try_publish(
        &self,
        tree: &Arc<Overlay>,
        request: &PublishRequest,
        progress: Arc<CreateProgress>,
    ) -> Result<Created, Failure> {
        let destination = match &request.id {
            None => self.destination()?,
            Some(id) => self.vacant(id).await?,
        };
        let base = match request.whole {
            true => None,
            false => Some(self.base_of_tree(tree).await),
        };
        let dir = request.dir.to_str().ok_or_else(|| {
            let message = format!("the path of {} is not UTF-8", request.dir.display());
            Failure::new(Code::InvalidBackupConfig, message)
        })?;
        let backup = New { dir, name: request.name.as_deref(), ttl: request.ttl };
        let PublishRequest { compression, threads, mkfs_time, .. } = *request;
        let packing = Packing { compression, threads, mkfs_time };
        let own = tree::own(destination.local_root.as_deref(), &request.dir);
        let merged = Merged { tree: Arc::clone(tree), dir: request.dir.clone(), own };
        destination.make(backup, Box::new(merged), packing, base, progress).await
    }

    /// Removes the parts that a process which was killed has left of publishing the backup of this id. Gives the
    /// metadata instead where it was done by then.
    ///
    /// # Errors
    /// What the store says. Where it does not say what was left, nothing is removed, and that is no error.
    pub(crate) async fn resume(&self, id: &BackupId) -> Result<Option<Metadata>, Failure> {
        let metadata = self.object(id, layout::METADATA);
        match metadata.get_whole(Metadata::MAX_BYTES).await {
            Ok(json) => {
                let parsed = Metadata::parse(&json, id).map_err(|reason| {
                    Failure::new(Code::Corrupt, format!("{}: {reason}", metadata.name()))
                })?;
                return Ok(Some(parsed));
            }
            // Who may not list what is there is told so of what is not.
            Err(Error::NotFound { .. } | Error::AccessDenied { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let prefix = self.folder.object(&layout::prefix(id)).key;
        let bucket = &self.folder.bucket;
        let (mut pages, mut left) = (Pages::default(), Vec::new());
        while let Some(token) = pages.next() {
            let page = match bucket.list_uploads(&prefix, token).await {
                Ok(page) => page,
                Err(error) => {
                    tracing::warn!("parts of {id} may be left in the bucket: {error}");
                    return Ok(None);
                }
            };
            page.turn(&mut pages, &prefix)?;
            left.extend(page.uploads);
        }
        for Unfinished { upload, .. } in left {
            bucket.abort_upload(&upload).await?;
        }
        Ok(None)
    }

    /// A place for a new backup of this id. Were there one already, a failure would remove it.
    async fn vacant(&self, id: &BackupId) -> Result<Destination, Failure> {
        let metadata = self.object(id, layout::METADATA);
        match metadata.get_range(GetRange::Last(1), None, 1).await {
            // Who may not list what is there is told so of what is not.
            Err(
                Error::NotFound { .. } | Error::NoSuchBucket { .. } | Error::AccessDenied { .. },
            ) => Ok(self.destination_of(id.clone())),
            Err(error) => Err(error.into()),
            Ok(_) => {
                let message = format!("there is a backup {id} already");
                Err(Failure::new(Code::InvalidBackupConfig, message))
            }
        }
    }
}
