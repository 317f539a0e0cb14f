//! Whether a backup may be restored, and what it means if that fails.

use chrono::Utc;

use super::bucket::Backups;
use super::id::BackupId;
use super::meta::Metadata;
use crate::failure::{Code, Failure};

impl Backups {
    /// Fetches the metadata of a backup that is to be restored now: one GET.
    ///
    /// # Errors
    /// As [`Self::metadata`], and [`Code::BackupExpired`].
    pub async fn restorable(&self, id: &BackupId) -> Result<Metadata, Failure> {
        let metadata = self.metadata(id).await?;
        if !metadata.is_expired(Utc::now()) {
            return Ok(metadata);
        }
        let message = match metadata.expires_at() {
            Some(end) => format!("backup {id} expired at {}", end.format("%Y-%m-%d %H:%M:%S UTC")),
            None => format!("backup {id} has expired"),
        };
        Err(Failure::new(Code::BackupExpired, message).hint(
            "its archive may still be there: thawfs mount takes its key; give new backups a longer \
             --ttl",
        ))
    }

    /// What the user is told when restoring backup `id` came to `failure`: an archive that is missing
    /// is [`Code::BackupNotFound`], most else [`Code::BackupRestoreFailed`].
    pub async fn restore_failed(&self, id: &BackupId, failure: Failure) -> Failure {
        match failure.code {
            Code::NotFound => match self.contents(id).await {
                Ok(contents) if contents.archive.is_none() => contents.missing(self),
                Ok(_) | Err(_) => wrapped(id, failure),
            },
            Code::BackupNotFound
            | Code::BackupExpired
            | Code::InvalidBackupConfig
            | Code::Unsupported
            | Code::Usage => failure,
            _ => wrapped(id, failure),
        }
    }
}

fn wrapped(id: &BackupId, failure: Failure) -> Failure {
    Failure {
        code: Code::BackupRestoreFailed,
        message: format!("cannot restore backup {id}: {}", failure.message),
        ..failure
    }
}
