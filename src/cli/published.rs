//! Backups of checkpoints, which their server makes: waited for, and shown.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chrono::{DateTime, SecondsFormat};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::output::{Output, human_bytes};
use super::progress::At;
use crate::backup::BackupId;
use crate::failure::{Code, Failure};
use crate::server::checkpoints::{Outcome, Publishing, PublishingRequest, Waited, ask};
use crate::server::questions::Question;

/// A checkpoint that was to be a backup, and is none.
pub(super) enum NotPublished {
    /// Its server has failed to make it.
    Failed(Failure),
    /// It is not known what becomes of it.
    Unknown(Failure),
    /// It was called off.
    Interrupted,
}

/// Waits until the server whose socket lies at `control` has published checkpoint `id`, and shows how far it is. What
/// fails for now is said, once for each reason, and waited for. `again` has it try again then what had failed for good.
pub(super) fn wait(
    control: &Path,
    (id, again): (&BackupId, bool),
    cancel: &AtomicBool,
    output: &Output,
) -> Result<Outcome, NotPublished> {
    let at = Arc::new(Mutex::new(Publishing::Queued { why: None }));
    let shown = output.progress({
        let at = Arc::clone(&at);
        move || match &*at.lock() {
            Publishing::Begun { packed_bytes, total_bytes, .. } => {
                let (done, total) = (*packed_bytes, *total_bytes);
                let is_packed = done >= total && total > 0;
                At::bytes(if is_packed { "sending" } else { "packing" }, done, total)
            }
            _ => At::unknown("waiting"),
        }
    });
    let mut told = None;
    loop {
        let request = PublishingRequest { id: id.clone(), again };
        let answer = ask(control, &Question::Publishing(request));
        match answer.map_err(NotPublished::Unknown)? {
            Waited::Done(outcome) => return Ok(outcome),
            Waited::Failed(failure) => return Err(NotPublished::Failed(failure)),
            Waited::Gone => {
                let message = format!("checkpoint {id} was forgotten, or its mount has ended");
                let failure = Failure::new(Code::BackupCreateFailed, message);
                return Err(NotPublished::Unknown(failure));
            }
            Waited::Waiting(now) => {
                if let Publishing::Queued { why: Some(why) } = &now
                    && told.as_ref() != Some(why)
                {
                    let line = format!("not in the bucket yet, and tried again: {why}");
                    shown.line().suspend(|| output.warn(&line));
                    told = Some(why.clone());
                }
                *at.lock() = now;
            }
        }
        if cancel.load(Ordering::Relaxed) {
            return Err(NotPublished::Interrupted);
        }
    }
}

/// One word for it.
pub(super) fn in_a_word(published: Option<&Publishing>) -> &'static str {
    match published {
        None => "local",
        Some(Publishing::Queued { .. }) => "queued",
        Some(Publishing::Begun { .. }) => "publishing",
        Some(Publishing::Published { .. }) => "published",
        Some(Publishing::Failed { .. }) => "failed",
    }
}

/// What there is to say about it besides.
pub(super) fn in_words(published: Option<&Publishing>) -> Option<String> {
    match published? {
        Publishing::Queued { why } => {
            why.as_ref().map(|why| format!("not in the bucket yet: {why}"))
        }
        Publishing::Begun { sent_bytes, .. } => {
            Some(format!("{} sent so far", human_bytes(*sent_bytes)))
        }
        Publishing::Published { .. } => None,
        Publishing::Failed { why } => Some(format!("not in the bucket: {why}")),
    }
}

/// As it is printed for scripts.
pub(super) fn as_json(published: Option<&Publishing>) -> Value {
    let state = in_a_word(published);
    match published {
        None => Value::Null,
        Some(Publishing::Queued { why }) => json!({ "state": state, "why": why }),
        Some(Publishing::Begun { packed_bytes, total_bytes, sent_bytes }) => {
            let mut value =
                json!({ "state": state, "packedBytes": packed_bytes, "sentBytes": sent_bytes });
            // Nobody counts where most of it is in the bucket already.
            if let (Some(fields), true) = (value.as_object_mut(), *total_bytes > 0) {
                fields.insert("totalBytes".into(), json!(total_bytes));
            }
            value
        }
        Some(Publishing::Published { at_ms, size_bytes }) => {
            let at = i64::try_from(*at_ms).ok().and_then(DateTime::from_timestamp_millis);
            let at = at.unwrap_or_default().to_rfc3339_opts(SecondsFormat::Millis, true);
            json!({ "state": state, "at": at, "sizeBytes": size_bytes })
        }
        Some(Publishing::Failed { why }) => json!({ "state": state, "why": why }),
    }
}

/// One that was waited for.
pub(super) fn outcome_as_json(outcome: &Outcome) -> Value {
    let Outcome { size_bytes, files, bytes, base, bytes_kept, whole_because, warnings } = outcome;
    json!({
        "state": "published", "sizeBytes": size_bytes, "files": files, "bytes": bytes,
        "base": base, "bytesKept": bytes_kept, "wholeBecause": whole_because,
        "warnings": warnings
    })
}
