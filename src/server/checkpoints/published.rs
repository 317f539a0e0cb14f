//! What is told of checkpoints that are to be backups.

use serde::{Deserialize, Serialize};

use super::super::layers::{Manifest, PublishState};
use crate::backup::{BackupId, Created, Metadata};
use crate::failure::Failure;

/// How a checkpoint is to be published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PublishAsked {
    /// Lifetime in seconds.
    pub(crate) ttl: u64,
    /// What the backup is called, if not as the checkpoint.
    pub(crate) name: Option<String>,
    /// Pack everything.
    pub(crate) whole: bool,
    /// The checkpoint is there for that alone, and goes then.
    pub(crate) passing: bool,
    /// Make no checkpoint where it cannot be published.
    pub(crate) required: bool,
}

/// Tell what has become of a checkpoint in the bucket, or after a moment how far it is.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PublishingRequest {
    pub(crate) id: BackupId,
    /// Once it is there, try again what had failed for good.
    pub(crate) again: bool,
}

/// How far the publishing of a checkpoint is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub(crate) enum Publishing {
    /// It is yet to be begun.
    Queued {
        /// Why it failed, if it did and is to be tried again.
        why: Option<String>,
    },
    /// It goes on.
    #[serde(rename = "publishing")]
    Begun {
        /// Bytes of files that are packed.
        packed_bytes: u64,
        /// Of so many; 0 while that is not known.
        total_bytes: u64,
        /// Bytes that the store has.
        sent_bytes: u64,
    },
    /// It is in the bucket.
    Published {
        /// Since when, in milliseconds since the epoch.
        at_ms: u64,
        /// Size of its archive.
        size_bytes: u64,
    },
    /// It is not, and will not be until something is done.
    Failed {
        /// In one line.
        why: String,
    },
}

/// What has become of a checkpoint in the bucket.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Waited {
    /// Nothing yet.
    Waiting(Publishing),
    /// It is there.
    Done(Outcome),
    /// It is not.
    Failed(Failure),
    /// It was forgotten, or the mount is ending.
    Gone,
}

/// A checkpoint that is a backup. Of one that another server has published, only the size is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Size of its archive.
    pub(crate) size_bytes: u64,
    /// How many files of all kinds it holds, and bytes of their contents.
    pub(crate) files: u32,
    pub(crate) bytes: u64,
    /// The backup whose archive it begins with, and how many bytes of contents are in that.
    pub(crate) base: Option<BackupId>,
    pub(crate) bytes_kept: u64,
    /// Why there is none.
    pub(crate) whole_because: Option<String>,
    pub(crate) warnings: Vec<String>,
}

impl Outcome {
    pub(super) fn of(created: Created) -> Self {
        let Created { metadata, inodes, bytes, base, bytes_kept, whole_because, warnings } =
            created;
        Self {
            files: inodes,
            bytes,
            base,
            bytes_kept,
            whole_because,
            warnings,
            ..Self::found(&metadata)
        }
    }

    /// With what is to be known of backups that it might have been made of.
    pub(super) fn after(mut self, passed_over: Vec<String>) -> Self {
        self.warnings.splice(0..0, passed_over);
        self
    }

    pub(super) fn found(metadata: &Metadata) -> Self {
        Self { size_bytes: metadata.size_bytes, ..Self::default() }
    }
}

/// Checkpoints and the bucket, all together.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishingReport {
    /// Checkpoints that are yet to be published, that which is being published among them.
    pub queued: u64,
    /// Those that are in the bucket.
    pub published: u64,
    /// Those that could not be published.
    pub failed: u64,
    /// That which is being published.
    pub now: Option<BackupId>,
    /// Bytes of it that the store has.
    pub bytes_sent: u64,
    /// Why one failed the last time, if one did.
    pub last: Option<String>,
}

impl PublishingReport {
    pub(super) fn of(manifest: &Manifest) -> Self {
        let mut report = Self::default();
        for publish in manifest.points().iter().filter_map(|point| point.publish.as_ref()) {
            match &publish.state {
                PublishState::Pending => report.queued += 1,
                PublishState::Published { .. } => report.published += 1,
                PublishState::Failed { why } => {
                    report.failed += 1;
                    report.last = Some(why.clone());
                }
            }
        }
        report
    }
}
