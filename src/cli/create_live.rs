//! A backup of a whole mount, which its server makes: it has the archive open, and knows what lies in which layer. All
//! that is in it is of one moment.

use std::path::Path;

use chrono::Utc;
use tokio::runtime::Runtime;

use super::output::Output;
use super::published::{self, NotPublished};
use crate::backup::{BackupId, Backups, CreateProgress, CreateRequest, Created, Metadata};
use crate::failure::{Code, Failure};
use crate::server::Mounted;
use crate::server::checkpoints::{
    CheckpointRequest, ForgetRequest, Forgotten, Made, Outcome, PublishAsked, check_nobody_writes,
};
use crate::server::fetch_report;
use crate::server::mounts::{mounted_inside, read_mounts};
use crate::server::questions::Question;

/// A mount, whose server is to make a backup of it.
pub(super) struct LiveMount {
    asked: Mounted,
    dir: String,
}

impl LiveMount {
    /// What `request` is of, where the server can make just what it asks for, in the bucket that it has.
    pub(super) fn find(
        request: &CreateRequest,
        backups: &Backups,
        runtime: &Runtime,
    ) -> Option<Self> {
        let CreateRequest { exclude, gitignore, compression, threads, mkfs_time, .. } = request;
        let is_plain = exclude.is_empty() && !gitignore && compression.is_none();
        if !is_plain || threads.is_some() || mkfs_time.is_some() {
            return None;
        }
        let dir = request.dir.canonicalize().ok()?;
        let asked = Mounted::at(&dir).ok()?;
        // It knows itself by one path, and nothing of what is mounted inside.
        let is_known = fetch_report(&asked.control).ok()?.mountpoint == dir;
        let mounts = read_mounts().ok()?;
        if !is_known || !mounted_inside(&mounts, asked.info.id).is_empty() {
            return None;
        }
        // What the kernel holds back of a file that is open is in what is read through the mount alone.
        check_nobody_writes(&asked.info).ok()?;
        let dir = dir.into_os_string().into_string().ok()?;
        let has_it = runtime.block_on(backups.has_mounted(Path::new(&dir)));
        has_it.then_some(Self { asked, dir })
    }

    /// Has it made. `None` where the server cannot, and another way is to be tried.
    pub(super) fn create(
        &self,
        request: &CreateRequest,
        progress: &CreateProgress,
        output: &Output,
    ) -> Result<Option<Created>, Failure> {
        let name = request.name.as_deref();
        let metadata = |id: BackupId, size: u64| {
            Metadata::new(id, &self.dir, name, size, request.ttl, Utc::now())
        };
        // Before anything is asked for.
        metadata(BackupId::random()?, 0)?;
        self.asked.write_back();
        let publish = PublishAsked {
            ttl: request.ttl,
            name: request.name.clone().filter(|name| !name.is_empty()),
            whole: request.whole,
            passing: true,
            required: true,
        };
        let publish = Some(publish);
        let question = CheckpointRequest { publish, ..CheckpointRequest::default() };
        let made: Made = match self.asked.ask(&Question::Checkpoint(question)) {
            Ok(made) => made,
            Err(failure) => {
                tracing::debug!("the server makes no backup: {failure}");
                return Ok(None);
            }
        };
        let id = &made.id;
        if !made.publishes {
            self.forget(id);
            return Ok(None);
        }
        let waited = published::wait(&self.asked.control, (id, false), progress.cancel(), output);
        let outcome = match waited {
            Ok(outcome) => outcome,
            Err(NotPublished::Interrupted) => {
                self.forget(id);
                return Err(self.failed(Failure::new(Code::BackupCreateFailed, "interrupted")));
            }
            // It has keys of its own, which may be for reading alone.
            Err(NotPublished::Failed(failure)) if failure.code == Code::AccessDenied => {
                output
                    .warn(&format!("the server of the mount cannot make it: {}", failure.message));
                return Ok(None);
            }
            Err(NotPublished::Failed(failure) | NotPublished::Unknown(failure)) => {
                return Err(self.failed(failure));
            }
        };
        let Outcome { size_bytes, files, bytes, base, bytes_kept, whole_because, mut warnings } =
            outcome;
        warnings.extend(made.fuzzy_in_words());
        Ok(Some(Created {
            metadata: metadata(id.clone(), size_bytes)?,
            inodes: files,
            bytes,
            base,
            bytes_kept,
            whole_because,
            warnings,
        }))
    }

    /// Has nothing left of it.
    fn forget(&self, id: &BackupId) {
        let which = Some(id.to_string());
        let question = Question::Forget(ForgetRequest { which, keep: None });
        if let Err(failure) = self.asked.ask::<Forgotten>(&question) {
            tracing::warn!("checkpoint {id} is left: {failure}");
        }
    }

    fn failed(&self, failure: Failure) -> Failure {
        let message = format!("cannot back up {}: {}", self.dir, failure.message);
        Failure { code: Code::BackupCreateFailed, message, ..failure }
    }
}
