//! Listing backups: what each is called, and what state it is in.

use chrono::{DateTime, SecondsFormat, Utc};
use futures::stream::{self, Stream, StreamExt, TryStreamExt};
use serde::Serialize;

use super::bucket::Backups;
use super::contents::Contents;
use super::id::BackupId;
use super::layout;
use super::meta::Metadata;
use crate::failure::Failure;
use crate::store;

/// How many `meta.json` are fetched at a time. A page of a listing (1000 keys) then takes about as
/// many round trips to list as to describe.
const IN_FLIGHT: usize = 64;

/// Whether a backup can be restored, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackupState {
    /// It can.
    Ok,
    /// It is past its lifetime, or will be within a minute.
    Expired,
    /// There is an archive and no metadata: it is being made, or that was interrupted.
    OrphanArchive,
    /// There is metadata and no archive.
    OrphanMetadata,
    /// The metadata cannot be read.
    DamagedMetadata,
    /// The archive has not the size that the metadata says.
    DamagedArchive,
    /// A backup of the SDK's newer kind, a tar archive.
    Unsupported,
}

impl BackupState {
    /// As it is shown, and as JSON has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Expired => "expired",
            Self::OrphanArchive => "orphan-archive",
            Self::OrphanMetadata => "orphan-metadata",
            Self::DamagedMetadata => "damaged-metadata",
            Self::DamagedArchive => "damaged-archive",
            Self::Unsupported => "unsupported",
        }
    }
}

/// One backup as a listing shows it. As JSON: `id`, `state`, `dir`, `name`, `archiveBytes`,
/// `totalBytes`, `createdAt`, `expiresAt`, `problem`, the unknown ones null.
#[derive(Clone, Debug)]
pub struct BackupEntry {
    /// Which backup.
    pub id: BackupId,
    /// Whether it can be restored.
    pub state: BackupState,
    /// Its metadata, if it can be read.
    pub metadata: Option<Metadata>,
    /// Size of the archive in bytes, if there is one.
    pub archive_bytes: Option<u64>,
    /// Bytes of all its objects.
    pub total_bytes: u64,
    /// When the youngest of its objects was written, if the store says so.
    pub modified: Option<DateTime<Utc>>,
    /// What is wrong with it, in words.
    pub problem: Option<String>,
}

impl Serialize for BackupEntry {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Shown<'a> {
            id: &'a BackupId,
            state: BackupState,
            dir: Option<&'a str>,
            name: Option<&'a str>,
            archive_bytes: Option<u64>,
            total_bytes: u64,
            created_at: Option<String>,
            expires_at: Option<String>,
            problem: Option<&'a str>,
        }
        let time = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Millis, true);
        let metadata = self.metadata.as_ref();
        let shown = Shown {
            id: &self.id,
            state: self.state,
            dir: metadata.map(|metadata| metadata.dir.as_str()),
            name: metadata.and_then(|metadata| metadata.name.as_deref()),
            archive_bytes: self.archive_bytes,
            total_bytes: self.total_bytes,
            created_at: metadata.map(|metadata| time(metadata.created_at)),
            expires_at: metadata.and_then(Metadata::expires_at).map(time),
            problem: self.problem.as_deref(),
        };
        shown.serialize(to)
    }
}

impl BackupEntry {
    /// Judges a backup by what is in the bucket. `metadata` is its text, where there is one.
    fn new(contents: &Contents, metadata: Option<Result<Metadata, String>>) -> Self {
        let (metadata, unreadable) = match metadata {
            None => (None, None),
            Some(Ok(metadata)) => (Some(metadata), None),
            Some(Err(reason)) => (None, Some(reason)),
        };
        let (state, problem) = match (&contents.archive, &metadata, unreadable) {
            (None, _, _) if contents.tar.is_some() => (BackupState::Unsupported, None),
            (_, _, Some(reason)) => (BackupState::DamagedMetadata, Some(reason)),
            (None, _, None) if !contents.has_metadata => (BackupState::OrphanArchive, None),
            (None, _, None) => (BackupState::OrphanMetadata, None),
            (Some(_), None, None) => (BackupState::OrphanArchive, None),
            (Some(found), Some(metadata), None) if ![*found, 0].contains(&metadata.size_bytes) => {
                let due = metadata.size_bytes;
                let problem = format!("the archive has {found} bytes, not {due}");
                (BackupState::DamagedArchive, Some(problem))
            }
            (Some(_), Some(metadata), None) if metadata.is_expired(now()) => {
                (BackupState::Expired, None)
            }
            (Some(_), Some(_), None) => (BackupState::Ok, None),
        };
        Self {
            id: contents.id.clone(),
            state,
            metadata,
            archive_bytes: contents.archive,
            total_bytes: contents.bytes,
            modified: contents.modified,
            problem,
        }
    }
}

/// The present moment.
pub(super) fn now() -> DateTime<Utc> {
    std::time::SystemTime::now().into()
}

impl Backups {
    /// Lists every backup, in the order of their ids, as the pages of the listing come in: one
    /// request for every thousand objects, and one for each backup's metadata, of which 64 are on
    /// their way at a time. Memory does not grow with the number of backups (a local directory,
    /// whose listing has no pages, excepted).
    ///
    /// # Errors
    /// [`crate::failure::Code::NotFound`] for a directory that was named and is not there, and what the
    /// store has to offer; a backup that is no good is no error.
    pub fn list(&self) -> impl Stream<Item = Result<BackupEntry, Failure>> + Send + '_ {
        stream::iter(self.check_exists().err().map(Err))
            .chain(self.walk(""))
            .map(move |contents| async move { self.describe(contents?).await })
            .buffered(IN_FLIGHT)
            .try_filter_map(|entry| async move { Ok(entry) })
    }

    /// One backup, as [`Backups::list`] shows it. Two requests.
    ///
    /// # Errors
    /// [`crate::failure::Code::BackupNotFound`] if there is nothing of it at all.
    pub async fn show(&self, id: &BackupId) -> Result<BackupEntry, Failure> {
        let contents = self.contents(id).await?;
        let not_found = contents.missing(self);
        if contents.objects == 0 && contents.tar.is_none() {
            return Err(not_found);
        }
        self.describe(contents).await?.ok_or(not_found)
    }

    /// Adds what the metadata says. `None` if it was deleted since it was listed: the rest is about
    /// to follow.
    async fn describe(&self, contents: Contents) -> Result<Option<BackupEntry>, Failure> {
        if !contents.has_metadata {
            return Ok(Some(BackupEntry::new(&contents, None)));
        }
        let object = self.object(&contents.id, layout::METADATA);
        let metadata = match object.get_whole(Metadata::MAX_BYTES).await {
            Ok(json) => Metadata::parse(&json, &contents.id),
            Err(store::Error::NotFound { .. }) => return Ok(None),
            Err(error @ store::Error::TooLarge { .. }) => Err(error.to_string()),
            Err(error) => return Err(error.into()),
        };
        Ok(Some(BackupEntry::new(&contents, Some(metadata))))
    }
}
