//! Making a backup: one pass over the directory, compressed and sent while it is read.
//!
//! The archive comes first, its size is checked, and the metadata makes it a backup. Until then there
//! is nothing that a restore would find, and if anything fails, what was sent is removed again.

use std::fmt::Display;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use chrono::Utc;
use tokio::runtime::Handle as Runtime;
use tokio::task::spawn_blocking;

use super::base::BaseBackup;
use super::bucket::Backups;
use super::destination::Destination;
use super::id::BackupId;
use super::meta::Metadata;
use super::select::Selection;
use super::send::{Packing, Sending, Sent};
use super::tree::{self, Tree};
use crate::failure::{Code, Failure};
use crate::squashfs::write::{self, Compression};

/// What to back up, and how.
///
/// ```no_run
/// use std::sync::Arc;
/// use thawfs::backup::{Backups, BucketRequest, CreateRequest};
///
/// # async fn example() -> Result<(), thawfs::failure::Failure> {
/// let backups = Backups::open(&BucketRequest::new("s3://my-bucket")).await?;
/// let mut request = CreateRequest::new("/workspace");
/// request.exclude.push("node_modules".into());
/// let created = backups.create(&request, Arc::default()).await?;
/// println!("{}", created.metadata.id);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// The directory. The backup records its absolute path without symbolic links.
    pub dir: PathBuf,
    /// What to call it.
    pub name: Option<String>,
    /// Lifetime in seconds.
    pub ttl: u64,
    /// Patterns of what to leave out; see [`Selection`].
    pub exclude: Vec<String>,
    /// Leave out what git ignores.
    pub gitignore: bool,
    /// How to compress. `None`: as [`Self::DEFAULT_COMPRESSION`] has it, or as in the archive that this one begins
    /// with.
    pub compression: Option<Compression>,
    /// Pack everything, also what is in the archive of the mount that `dir` is in.
    pub whole: bool,
    /// How many threads compress. `None`: one for each core.
    pub threads: Option<NonZeroUsize>,
    /// The archive's own time of creation in seconds since 1970, where two archives of one tree must
    /// be alike. `None`: now.
    pub mkfs_time: Option<u32>,
}

impl CreateRequest {
    /// What compresses if nothing else is asked for: fast enough for two cores to fill a fast network,
    /// and smaller than LZ4 by a third, which every later restore saves.
    pub const DEFAULT_COMPRESSION: Compression = Compression::Zstd(3);

    /// All of `dir`, with everything default.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            name: None,
            ttl: Metadata::DEFAULT_TTL,
            exclude: Vec::new(),
            gitignore: false,
            compression: None,
            whole: false,
            threads: None,
            mkfs_time: None,
        }
    }
}

/// How far the making of a backup is; look at it from elsewhere while it goes on.
#[derive(Debug, Default)]
pub struct CreateProgress {
    pub(super) total: AtomicU64,
    pub(super) packed: write::Progress,
    pub(super) sent: Arc<AtomicU64>,
    cancel: Arc<AtomicBool>,
}

impl CreateProgress {
    /// Bytes of all files to be packed; 0 while that is being found out.
    pub fn bytes_total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Bytes of files packed so far.
    pub fn bytes_packed(&self) -> u64 {
        self.packed.bytes_read()
    }

    /// Bytes of the archive that the store has.
    pub fn bytes_sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// It is all done again, another way.
    pub(crate) fn begin_again(&self) {
        self.packed.begin_again();
        self.sent.store(0, Ordering::Relaxed);
    }

    /// Set this to call it off: soon after, [`Backups::create`] has removed what was sent and fails.
    pub fn cancel(&self) -> &Arc<AtomicBool> {
        &self.cancel
    }
}

/// A new backup.
#[derive(Clone, Debug)]
pub struct Created {
    /// What is known of it.
    pub metadata: Metadata,
    /// How many files of all kinds it holds.
    pub inodes: u32,
    /// Bytes of their contents.
    pub bytes: u64,
    /// The backup whose archive this one begins with.
    pub base: Option<BackupId>,
    /// Of the contents, the bytes that are in that.
    pub bytes_kept: u64,
    /// Why there is none, although the directory is in a mount.
    pub whole_because: Option<String>,
    /// What its maker should know, one line each.
    pub warnings: Vec<String>,
}

impl Backups {
    /// Backs a directory up to a new [`Destination`] in this bucket. Where it is in a mount of a backup of this bucket,
    /// the new archive begins with the data of that one, which the store copies, and only what was changed in the
    /// mount is packed and sent; see [`CreateRequest::whole`].
    ///
    /// # Errors
    /// As [`Destination::create`].
    pub async fn create(
        &self,
        request: &CreateRequest,
        progress: Arc<CreateProgress>,
    ) -> Result<Created, Failure> {
        let base = match request.whole {
            true => None,
            false => self.base_of(&request.dir).await,
        };
        self.destination()?.create_onto(base, request, progress).await
    }
}

impl Destination {
    /// Backs a directory up. Returns when the backup can be restored.
    ///
    /// Dropping the future does not stop the work; [`CreateProgress::cancel`] does.
    ///
    /// # Errors
    /// [`Code::InvalidBackupConfig`] where the directory, name or lifetime will not do,
    /// [`Code::Usage`] for a pattern that makes no sense, and [`Code::BackupCreateFailed`] for all that
    /// goes wrong later. Nothing of the backup is left in the bucket, or the hint says what may be.
    pub async fn create(
        self,
        request: &CreateRequest,
        progress: Arc<CreateProgress>,
    ) -> Result<Created, Failure> {
        self.create_onto(None, request, progress).await
    }

    /// As [`Self::create`], onto the archive of another backup, or all of it for a reason.
    async fn create_onto(
        self,
        base: Option<Result<BaseBackup, String>>,
        request: &CreateRequest,
        progress: Arc<CreateProgress>,
    ) -> Result<Created, Failure> {
        let root = find_root(&request.dir)?;
        let dir = root.to_str().ok_or_else(|| {
            let message = format!("the path of {} is not UTF-8", root.display());
            Failure::new(Code::InvalidBackupConfig, message)
        })?;
        let backup = New { dir, name: request.name.as_deref(), ttl: request.ttl };
        // Before anything is walked.
        self.metadata(&backup, 0)?;
        let selection = {
            let (root, patterns) = (root.clone(), request.exclude.clone());
            let gitignore = request.gitignore;
            spawn_blocking(move || Selection::new(&root, &patterns, gitignore)).await
        };
        let selection = selection.map_err(|error| ended(&error))??;
        let CreateRequest { compression, threads, mkfs_time, .. } = *request;
        let own = tree::own(self.local_root.as_deref(), &root);
        let tree = Box::new(tree::Directory { root: root.clone(), selection, own });
        let packing = Packing { compression, threads, mkfs_time };
        let made = self.make(backup, tree, packing, base, progress).await;
        made.map_err(|failure| not_made(&root.display(), failure))
    }

    fn metadata(&self, backup: &New<'_>, size: u64) -> Result<Metadata, Failure> {
        let New { dir, name, ttl } = *backup;
        Metadata::new(self.id.clone(), dir, name, size, ttl, Utc::now())
    }

    /// Makes a backup of `tree`. A failure is told as what it is.
    pub(super) async fn make(
        self,
        backup: New<'_>,
        tree: Box<dyn Tree>,
        packing: Packing,
        base: Option<Result<BaseBackup, String>>,
        progress: Arc<CreateProgress>,
    ) -> Result<Created, Failure> {
        self.metadata(&backup, 0)?;
        let made = async {
            let sent = self.send(tree, packing, base, progress).await?;
            self.check_size(sent.summary.size).await?;
            let metadata = self.metadata(&backup, sent.summary.size)?;
            self.describe(metadata.to_json()?).await?;
            Ok::<_, Failure>(Created {
                metadata,
                inodes: sent.summary.inodes,
                bytes: sent.bytes,
                base: sent.base,
                bytes_kept: sent.bytes_kept,
                whole_because: sent.whole_because,
                warnings: sent.warnings,
            })
        };
        match made.await {
            Ok(created) => Ok(created),
            Err(failure) => {
                let left = self.discard().await;
                Err(left.into_iter().fold(failure, |it, error| left_behind(it, &error.into())))
            }
        }
    }

    /// Packs and sends the archive, on a thread of its own; onto `base` if there is one that will do.
    async fn send(
        &self,
        tree: Box<dyn Tree>,
        packing: Packing,
        base: Option<Result<BaseBackup, String>>,
        progress: Arc<CreateProgress>,
    ) -> Result<Sent, Failure> {
        let target = (Arc::clone(&self.store), self.archive_key.clone());
        let (part_size, runtime) = (self.part_size, Runtime::current());
        let sending = Sending { target, part_size, runtime, tree, packing, progress };
        spawn_blocking(move || sending.send(base)).await.map_err(|error| ended(&error))?
    }
}

/// What a new backup is to say of itself.
#[derive(Clone, Copy)]
pub(super) struct New<'a> {
    pub(super) dir: &'a str,
    pub(super) name: Option<&'a str>,
    pub(super) ttl: u64,
}

/// What is told of a backup of `dir` that came to `failure`, unless nothing was begun.
pub(super) fn not_made(dir: &dyn Display, failure: Failure) -> Failure {
    if failure.code == Code::InvalidBackupConfig {
        return failure;
    }
    let message = format!("cannot back up {dir}: {}", failure.message);
    Failure { code: Code::BackupCreateFailed, message, ..failure }
}

/// Adds to `failure` that cleaning up failed, too.
pub(super) fn left_behind(failure: Failure, error: &Failure) -> Failure {
    const HINT: &str =
        "parts of it may be left in the bucket: thawfs prune --orphans --uploads removes them";
    tracing::warn!("cleaning up: {error}");
    let hint = match &failure.hint {
        Some(hint) if hint.contains(HINT) => hint.clone(),
        Some(hint) => format!("{hint}; {HINT}"),
        None => HINT.to_owned(),
    };
    failure.hint(hint)
}

fn ended(error: &tokio::task::JoinError) -> Failure {
    Failure::new(Code::BackupCreateFailed, format!("a thread ended early: {error}"))
}

/// The directory's absolute path without symbolic links.
fn find_root(dir: &Path) -> Result<PathBuf, Failure> {
    let unusable = |reason: String| {
        Failure::new(
            Code::InvalidBackupConfig,
            format!("cannot back up {}: {reason}", dir.display()),
        )
        .hint("name an existing directory")
    };
    let found = dir.canonicalize().and_then(|root| Ok((root.metadata()?.is_dir(), root)));
    match found.map_err(|error| unusable(error.to_string()))? {
        (true, root) => Ok(root),
        (false, _) => Err(unusable("it is not a directory".into())),
    }
}
