//! Packing a directory and sending the archive meanwhile: all of it, or onto an archive that the store has.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::Handle as Runtime;

use super::base::BaseBackup;
use super::create::{CreateProgress, CreateRequest, left_behind};
use super::id::BackupId;
use super::select::Selection;
use super::upload::{Expected, Uploader};
use crate::failure::{Code, Failure};
use crate::squashfs::write::{self, Compression};
use crate::store::WriteObjects;

/// A directory to pack, and where it goes. For a thread that may block, outside the runtime.
pub(super) struct Sending {
    /// The store, and the key of the archive to be.
    pub(super) target: (Arc<dyn WriteObjects>, String),
    /// Size of the archive's parts in bytes, where that is not for us to choose.
    pub(super) part_size: Option<u64>,
    /// What of the directory is the bucket itself.
    pub(super) own: Option<PathBuf>,
    pub(super) runtime: Runtime,
    pub(super) root: PathBuf,
    pub(super) selection: Selection,
    pub(super) compression: Option<Compression>,
    pub(super) threads: Option<NonZeroUsize>,
    pub(super) mkfs_time: Option<u32>,
    pub(super) progress: Arc<CreateProgress>,
}

/// An archive that has been sent.
pub(super) struct Sent {
    pub(super) summary: write::Summary,
    pub(super) bytes: u64,
    /// The backup that it begins with, and how many bytes of files are in that.
    pub(super) base: Option<BackupId>,
    pub(super) bytes_kept: u64,
    /// Why it begins with none, where there might have been one.
    pub(super) whole_because: Option<String>,
    pub(super) warnings: Vec<String>,
}

/// Why an archive was not sent.
enum NotSent {
    /// It cannot be made of the one that it was to begin with.
    OfBase(String),
    Failed(Failure),
}

impl From<Failure> for NotSent {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Sending {
    /// Sends the archive, onto `base` if there is one that will do.
    pub(super) fn send(&self, base: Option<Result<BaseBackup, String>>) -> Result<Sent, Failure> {
        let because = match base {
            None => None,
            Some(Err(reason)) => Some(reason),
            Some(Ok(base)) => match self.send_onto(&base) {
                Ok(sent) => return Ok(sent),
                Err(NotSent::Failed(failure)) => return Err(failure),
                Err(NotSent::OfBase(reason)) => Some(reason),
            },
        };
        let sent = self.send_whole()?;
        Ok(Sent { whole_because: because, ..sent })
    }

    fn is_cancelled(&self) -> bool {
        self.progress.cancel().load(Ordering::Relaxed)
    }

    /// Whether a path is left out. Called off, it need not go through the rest: the next write to the store fails.
    fn excludes(&self, path: &Path, is_dir: bool) -> bool {
        self.is_cancelled()
            || self.own.as_deref().is_some_and(|own| own == path)
            || self.selection.excludes(path, is_dir)
    }

    /// Packs and sends everything.
    fn send_whole(&self) -> Result<Sent, Failure> {
        let options = write::Options {
            compression: self.compression.unwrap_or(CreateRequest::DEFAULT_COMPRESSION),
            threads: self.threads,
            mkfs_time: self.mkfs_time,
            ..write::Options::default()
        };
        let exclude = |path: &Path, is_dir: bool| self.excludes(path, is_dir);
        let progress = &self.progress;
        let sent = Arc::clone(&progress.sent);
        let (expect, expected) = crossbeam_channel::bounded(1);
        let parts = (expected, options.data_start);
        let (target, runtime) = (self.target.clone(), self.runtime.clone());
        let mut upload = Uploader::new(target, runtime, parts, progress.cancel(), sent);
        let done = AtomicBool::new(false);
        let packed = std::thread::scope(|scope| {
            // Meanwhile, since the first part has to be full before this needs to be known.
            scope.spawn(|| {
                let over = || done.load(Ordering::Relaxed) || self.is_cancelled();
                let tree = measure(&self.root, &exclude, over);
                progress.total.store(tree.bytes, Ordering::Relaxed);
                let expected = match self.part_size {
                    Some(part_size) => Expected { bytes: tree.estimate, part_size },
                    None => Expected::new(tree.estimate),
                };
                // Nobody waits for it if the archive is small.
                let _ = expect.send(expected);
            });
            let packed =
                write::archive(&self.root, &options, &exclude, &mut upload, &progress.packed);
            done.store(packed.is_err(), Ordering::Relaxed);
            packed
        });
        let finished = match packed {
            Ok(summary) => upload.finish(&summary.superblock).map(|_| summary),
            Err(error) => Err(upload.take_failure().unwrap_or_else(|| error.into())),
        };
        match finished {
            Ok(summary) => Ok(self.sent(summary, None)),
            Err(failure) => Err(give_up(upload, failure)),
        }
    }

    /// Packs and sends what the archive of `base` does not hold.
    fn send_onto(&self, base: &BaseBackup) -> Result<Sent, NotSent> {
        let of_base = |reason: String| NotSent::OfBase(reason);
        let opened = base.source.open().map_err(|failure| of_base(failure.message))?;
        let (archive, options) = base.of(&opened, self.compression).map_err(NotSent::OfBase)?;
        let options =
            write::Options { threads: self.threads, mkfs_time: self.mkfs_time, ..options };
        let beginning = base.beginning(archive.data_end());
        // Twice as large at least, whatever was added.
        let part_size = Expected::new(beginning.len.saturating_mul(2)).part_size;
        let (target, runtime) = (self.target.clone(), self.runtime.clone());
        let (progress, from) = (&self.progress, (beginning, part_size));
        let sent = Arc::clone(&progress.sent);
        let mut upload = Uploader::onto(target, runtime, from, progress.cancel(), sent);
        if let Err(failure) = upload.copy() {
            return Err(give_up(upload, failure).into());
        }
        let exclude = |path: &Path, is_dir: bool| self.excludes(path, is_dir);
        let packed = write::archive_onto(
            &archive,
            &self.root,
            &options,
            &exclude,
            &mut upload,
            &progress.packed,
        );
        let finished = match packed {
            Ok(summary) if archive.dead_bytes() > summary.bytes_used / 2 => {
                Err(of_base("more than half of the archive would be of no use any more".into()))
            }
            Ok(summary) => match upload.finish(&summary.superblock) {
                Ok(_) => Ok(summary),
                Err(failure) => Err(self.not_sent(&upload, failure)),
            },
            Err(write::Error::Base(error)) => Err(of_base(error.to_string())),
            Err(error) => {
                let failure = upload.take_failure().unwrap_or_else(|| error.into());
                Err(self.not_sent(&upload, failure))
            }
        };
        match finished {
            Ok(summary) => Ok(self.sent(summary, Some(base.id.clone()))),
            Err(NotSent::Failed(failure)) => Err(give_up(upload, failure).into()),
            Err(NotSent::OfBase(reason)) => {
                // All is packed instead. What cannot be freed costs room in the bucket, and no backup.
                if let Err(error) = upload.abort() {
                    tracing::warn!("parts may be left in the bucket: {error}");
                }
                progress.packed.begin_again();
                progress.sent.store(0, Ordering::Relaxed);
                Err(NotSent::OfBase(reason))
            }
        }
    }

    /// Whether what failed might not have failed without the base.
    fn not_sent(&self, upload: &Uploader<'_>, failure: Failure) -> NotSent {
        if self.is_cancelled() {
            return failure.into();
        }
        if upload.is_too_long() {
            return NotSent::OfBase("more was added than its parts have room for".into());
        }
        match upload.not_copied() {
            Some(reason) => NotSent::OfBase(format!("the store does not copy it: {reason}")),
            // It is deleted, or another by now.
            None if matches!(failure.code, Code::NotFound | Code::Changed) => {
                NotSent::OfBase(failure.message)
            }
            None => failure.into(),
        }
    }

    fn sent(&self, summary: write::Summary, base: Option<BackupId>) -> Sent {
        let mut warnings = self.selection.warnings().to_vec();
        warnings.extend(self.own.iter().map(|own| {
            format!("{} is the bucket itself, and left out", self.root.join(own).display())
        }));
        warnings.extend(summary.dropped_xattrs.as_ref().map(|dropped| {
            format!(
                "{} files have attributes that squashfs does not keep, such as {} of {}",
                dropped.inodes,
                dropped.name,
                dropped.path.display()
            )
        }));
        let (bytes, bytes_kept) =
            (self.progress.packed.bytes_read(), self.progress.packed.bytes_kept());
        Sent { summary, bytes, base, bytes_kept, whole_because: None, warnings }
    }
}

/// Frees what was sent.
fn give_up(upload: Uploader<'_>, failure: Failure) -> Failure {
    match upload.abort() {
        Ok(()) => failure,
        Err(error) => left_behind(failure, &error),
    }
}

/// What there is to pack.
#[derive(Default)]
struct Tree {
    /// Bytes of files, each inode once.
    bytes: u64,
    /// The same without most of the holes, about: no archive of them is much larger.
    estimate: u64,
}

/// Adds up the files below `root`, until it is `over`. What cannot be read is for the packing to
/// report.
fn measure(root: &Path, exclude: &write::Exclude<'_>, over: impl Fn() -> bool) -> Tree {
    let mut tree = Tree::default();
    let mut several_names = HashSet::new();
    let mut left = vec![PathBuf::new()];
    while let Some(dir) = left.pop()
        && !over()
    {
        let Ok(entries) = std::fs::read_dir(root.join(&dir)) else { continue };
        for entry in entries.flatten() {
            let path = dir.join(entry.file_name());
            let Ok(meta) = entry.metadata() else { continue };
            if exclude(&path, meta.is_dir()) {
                continue;
            }
            if meta.is_dir() {
                left.push(path);
            } else if meta.is_file()
                && (meta.nlink() == 1 || several_names.insert((meta.dev(), meta.ino())))
            {
                tree.bytes += meta.len();
                // A file system may compress, but hardly better than fourfold.
                tree.estimate += meta.len().min(meta.blocks() * 4 * 512 + (1 << 20));
            }
        }
    }
    tree
}
