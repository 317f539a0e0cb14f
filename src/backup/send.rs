//! Packing a tree and sending the archive meanwhile: all of it, or onto an archive that the store has.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::Handle as Runtime;

use super::base::BaseBackup;
use super::create::{CreateProgress, CreateRequest, left_behind};
use super::id::BackupId;
use super::tree::Tree;
use super::upload::{Expected, Uploader};
use crate::failure::{Code, Failure};
use crate::squashfs::write::{self, Compression};
use crate::store::WriteObjects;

/// How a tree is packed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Packing {
    /// `None`: as [`CreateRequest::DEFAULT_COMPRESSION`] has it, or as in the archive that comes first.
    pub(super) compression: Option<Compression>,
    pub(super) threads: Option<NonZeroUsize>,
    pub(super) mkfs_time: Option<u32>,
}

/// A tree to pack, and where it goes. For a thread that may block, outside the runtime.
pub(super) struct Sending {
    /// The store, and the key of the archive to be.
    pub(super) target: (Arc<dyn WriteObjects>, String),
    /// Size of the archive's parts in bytes, where that is not for us to choose.
    pub(super) part_size: Option<u64>,
    pub(super) runtime: Runtime,
    pub(super) tree: Box<dyn Tree>,
    pub(super) packing: Packing,
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

    /// Packs and sends everything.
    fn send_whole(&self) -> Result<Sent, Failure> {
        let Packing { compression, threads, mkfs_time } = self.packing;
        let compression = compression.unwrap_or(CreateRequest::DEFAULT_COMPRESSION);
        let options =
            write::Options { compression, threads, mkfs_time, ..write::Options::default() };
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
                let size = self.tree.measure(&over);
                progress.total.store(size.bytes, Ordering::Relaxed);
                let expected = match self.part_size {
                    Some(part_size) => Expected { bytes: size.stored, part_size },
                    None => Expected::new(size.stored),
                };
                // Nobody waits for it if the archive is small.
                let _ = expect.send(expected);
            });
            let over = || self.is_cancelled();
            let packed = self.tree.pack((&options, None), &over, &mut upload, &progress.packed);
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
        let opened = base.open().map_err(NotSent::OfBase)?;
        let Packing { compression, threads, mkfs_time } = self.packing;
        let (archive, options) = opened.begin(compression).map_err(NotSent::OfBase)?;
        let options = write::Options { threads, mkfs_time, ..options };
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
        let (how, over) = ((&options, Some(&archive)), || self.is_cancelled());
        let packed = self.tree.pack(how, &over, &mut upload, &progress.packed);
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
                progress.begin_again();
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
        let mut warnings = self.tree.warnings();
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
