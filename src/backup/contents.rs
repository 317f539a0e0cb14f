//! What a bucket holds of one backup, as far as a listing of keys tells.

use chrono::{DateTime, Utc};
use futures::stream::{self, Stream};

use super::bucket::Backups;
use super::id::BackupId;
use super::layout;
use crate::failure::{Code, Failure};
use crate::store::{Depth, Listed, Pages};

/// The objects of one backup, summed up.
#[derive(Clone, Debug)]
pub(super) struct Contents {
    pub(super) id: BackupId,
    /// Size of the archive in bytes, if there is one.
    pub(super) archive: Option<u64>,
    pub(super) has_metadata: bool,
    /// Key of a tar archive, as the SDK's newer versions write.
    pub(super) tar: Option<String>,
    /// How many objects there are below the backup's own prefix.
    pub(super) objects: u64,
    /// Bytes of all of them.
    pub(super) bytes: u64,
    /// When the youngest was written, if the store says so of all.
    pub(super) modified: Option<DateTime<Utc>>,
}

impl Contents {
    fn new(id: BackupId) -> Self {
        Self {
            id,
            archive: None,
            has_metadata: false,
            tar: None,
            objects: 0,
            bytes: 0,
            modified: Some(DateTime::UNIX_EPOCH),
        }
    }

    /// Counts an object in; `rest` is its key behind the id.
    fn add(&mut self, rest: &str, object: &Listed) {
        if rest.ends_with(".tar.zst") {
            self.tar = Some(object.key.clone());
        }
        let Some(name) = rest.strip_prefix('/') else { return };
        self.objects += 1;
        self.bytes = self.bytes.saturating_add(object.size);
        self.modified = self.modified.zip(object.modified).map(|(a, b)| a.max(b));
        match name {
            layout::ARCHIVE => self.archive = Some(object.size),
            layout::METADATA => self.has_metadata = true,
            _ => {}
        }
    }

    /// Why this is no backup that can be used, if its metadata or its archive is not there.
    pub(super) fn missing(&self, backups: &Backups) -> Failure {
        let Self { id, archive, has_metadata, tar, .. } = self;
        let not_found = |message: String| Failure::new(Code::BackupNotFound, message);
        match (archive, has_metadata, tar) {
            (None, false, None) => {
                not_found(format!("there is no backup {id} in {}", backups.name()))
                    .hint("thawfs list shows those there are")
            }
            (None, _, Some(key)) => {
                let message = format!("{} is a tar archive", backups.folder.bucket.name(key));
                Failure::new(Code::Unsupported, message)
                    .hint("backups of this newer kind cannot be read in place; use the SDK")
            }
            (None, true, None) => {
                not_found(format!("the archive of backup {id} is missing, its metadata is there"))
                    .hint("nothing of it can be restored; thawfs delete removes what is left")
            }
            (Some(_), ..) => {
                not_found(format!("the metadata of backup {id} is missing, its archive is there"))
                    .hint("it is being made right now, or that was interrupted")
            }
        }
    }
}

/// Walks a listing page by page. Keys of one backup lie together in it: nothing sorts between
/// `backups/ID.tar.zst` and `backups/ID/…` but what starts with the same id.
struct Walk<'a> {
    backups: &'a Backups,
    prefix: String,
    page: std::vec::IntoIter<Listed>,
    pages: Pages,
    current: Option<Contents>,
}

impl Walk<'_> {
    /// The next backup that is listed wholly.
    async fn next(&mut self) -> Result<Option<Contents>, Failure> {
        let Self { backups, .. } = self;
        let folder = &backups.folder;
        loop {
            for object in self.page.by_ref() {
                let key = object.key.strip_prefix(&folder.prefix).unwrap_or_default();
                let Some((id, rest)) = layout::split(key) else { continue };
                let done = self.current.take_if(|current| current.id != id);
                self.current.get_or_insert_with(|| Contents::new(id)).add(rest, &object);
                if done.is_some() {
                    return Ok(done);
                }
            }
            let Some(token) = self.pages.next() else { return Ok(self.current.take()) };
            let page = folder.bucket.list(&self.prefix, Depth::All, token).await?;
            page.turn(&mut self.pages, &folder.bucket.name(&self.prefix))?;
            self.page = page.objects.into_iter();
        }
    }
}

impl Backups {
    /// The contents of every backup whose id starts with `start`, in the order of the listing.
    pub(super) fn walk(&self, start: &str) -> impl Stream<Item = Result<Contents, Failure>> + Send {
        let walk = Walk {
            backups: self,
            prefix: self.folder.prefix.clone() + &layout::starting_with(start),
            page: Vec::new().into_iter(),
            pages: Pages::default(),
            current: None,
        };
        stream::try_unfold(walk, |mut walk| async move {
            Ok(walk.next().await?.map(|contents| (contents, walk)))
        })
    }

    /// The contents of one backup; empty where there is no such backup.
    pub(super) async fn contents(&self, id: &BackupId) -> Result<Contents, Failure> {
        self.check_exists()?;
        let mut found = std::pin::pin!(self.walk(id.as_str()));
        let first = futures::StreamExt::next(&mut found).await.transpose()?;
        Ok(first.unwrap_or_else(|| Contents::new(id.clone())))
    }
}
