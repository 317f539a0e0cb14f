//! What the user is told when a command fails: a stable code, one line, and what to do about it.

mod store;

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use self::store::advice;
use crate::store::{Error as StoreError, r2};
use crate::{cache, overlay, squashfs};

/// The kinds of failure a script can tell apart. Each has a name for `--json` and an exit code;
/// both are part of the command line's contract and listed in `docs/CONFIGURATION.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    /// Anything without a code of its own, such as an I/O error on a local file.
    Failed,
    /// The command line or an option's value makes no sense.
    Usage,
    /// No such bucket, key, file or path inside the archive.
    NotFound,
    /// Credentials missing, wrong or expired, or not allowed to read the object.
    AccessDenied,
    /// The object is no squashfs archive.
    NotAnArchive,
    /// The archive is damaged.
    Corrupt,
    /// A squashfs archive, or a backup format, that this program does not read.
    Unsupported,
    /// The store could not be reached, or did not answer in time or not as a store does.
    Network,
    /// The object was replaced while it was being read.
    Changed,
    /// The mountpoint cannot be used: missing, no directory, already mounted.
    Mountpoint,
    /// The upper or work directory cannot be used.
    Upper,
    /// `/dev/fuse` is missing or mounting is not permitted.
    Fuse,
    /// Files below the mountpoint are in use.
    Busy,
    /// Nothing of ours is mounted there.
    NotMounted,
    /// A backup's id, directory, name or lifetime, or the bucket's configuration, makes no sense.
    InvalidBackupConfig,
    /// There is no such backup, or its metadata or its archive is missing; the message says which.
    BackupNotFound,
    /// The backup is past its lifetime.
    BackupExpired,
    /// A backup could not be made; nothing of it is left in the bucket.
    BackupCreateFailed,
    /// A backup could not be restored; nothing is mounted.
    BackupRestoreFailed,
}

impl Code {
    /// The exit status of a command that fails this way.
    pub const fn exit_status(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::AccessDenied => 4,
            Self::NotAnArchive => 5,
            Self::Corrupt => 6,
            Self::Unsupported => 7,
            Self::Network => 8,
            Self::Changed => 9,
            Self::Mountpoint => 10,
            Self::Upper => 11,
            Self::Fuse => 12,
            Self::Busy => 13,
            Self::NotMounted => 14,
            Self::InvalidBackupConfig => 15,
            Self::BackupNotFound => 16,
            Self::BackupExpired => 17,
            Self::BackupCreateFailed => 18,
            Self::BackupRestoreFailed => 19,
        }
    }
}

/// One failure, ready to be shown or sent as JSON: `{"code", "message", "hint"}`, and `"list"` where there is
/// one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind it is.
    pub code: Code,
    /// One line that names the thing.
    pub message: String,
    /// What to do about it, where we know.
    pub hint: Option<String>,
    /// What all it concerns, where that is more than one line can name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub list: Vec<String>,
    /// Whether it is of the network, or of keys that have run out: the same may go well later.
    #[serde(skip)]
    pub passes: bool,
}

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.list.is_empty() {
            write!(f, ": {}", self.list.join(", "))?;
        }
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl Failure {
    /// A failure without a hint.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, list: Vec::new(), passes: false }
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A failed system call on `path`.
    pub fn io(doing: &str, path: &Path, error: &std::io::Error) -> Self {
        Self::new(Code::Failed, format!("cannot {doing} {}: {error}", path.display()))
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::from(&error)
    }
}

impl From<&StoreError> for Failure {
    fn from(error: &StoreError) -> Self {
        use StoreError as E;
        let code = match error {
            E::NotFound { .. } | E::NoSuchBucket { .. } => Code::NotFound,
            E::AccessDenied { .. }
            | E::BadCredentials { .. }
            | E::RefusedCredentials { .. }
            | E::ExpiredCredentials { .. } => Code::AccessDenied,
            // An archived object, or a clock that makes every signature a stranger's.
            E::Refused { refusal, .. } if refusal.status == 403 => Code::AccessDenied,
            E::Changed { .. } => Code::Changed,
            // The first bytes of an archive exist: what is too short to have them is none.
            E::OutOfRange { .. } => Code::NotAnArchive,
            E::Timeout { .. }
            | E::Truncated { .. }
            | E::Stalled { .. }
            | E::Slow { .. }
            | E::BadRedirect { .. }
            | E::Connect { .. }
            | E::Unavailable { .. }
            | E::WrongEndpoint { .. }
            | E::Refused { .. }
            | E::RangeIgnored { .. }
            | E::BadAnswer { .. } => Code::Network,
            E::UnsupportedSource { .. } | E::UnsupportedProfile { .. } | E::BadOption { .. } => {
                Code::Usage
            }
            E::UnsupportedFormat { .. } => Code::Unsupported,
            E::TooLarge { .. }
            | E::ReadOnly { .. }
            | E::CannotCopy { .. }
            | E::Io { .. }
            | E::ShutDown { .. } => Code::Failed,
        };
        let passes = matches!(
            error,
            E::ExpiredCredentials { .. }
                | E::Timeout { .. }
                | E::Truncated { .. }
                | E::Stalled { .. }
                | E::Slow { .. }
                | E::Connect { .. }
                | E::Unavailable { .. }
        );
        Self { hint: advice(error), passes, ..Self::new(code, error.to_string()) }
    }
}

impl From<r2::Error> for Failure {
    fn from(error: r2::Error) -> Self {
        let failure = Self::new(Code::InvalidBackupConfig, error.to_string());
        match error {
            r2::Error::Account(_) => {
                failure.hint("it is 32 hexadecimal digits, shown on the dashboard's R2 page")
            }
            r2::Error::Jurisdiction(_) => failure,
        }
    }
}

impl From<cache::Error> for Failure {
    fn from(error: cache::Error) -> Self {
        match &error {
            cache::Error::Store(store) => Self::from(&**store),
            cache::Error::PastEnd { .. } => Self::new(Code::Corrupt, error.to_string()),
            cache::Error::Io(_) | cache::Error::WouldWait => {
                Self::new(Code::Failed, error.to_string())
            }
        }
    }
}

impl From<squashfs::Error> for Failure {
    fn from(error: squashfs::Error) -> Self {
        use squashfs::Error as E;
        match error {
            E::NotSquashfs { .. } => Self::new(Code::NotAnArchive, error.to_string())
                .hint("an archive within a larger file needs --offset"),
            E::Unsupported { .. } => Self::new(Code::Unsupported, error.to_string())
                .hint("pack it again with mksquashfs -comp zstd"),
            E::Corrupt { .. } => Self::new(Code::Corrupt, error.to_string())
                .hint("the archive is damaged or incomplete; take another backup"),
            E::WrongKind { .. } => Self::new(Code::Failed, error.to_string()),
            E::Blob(error) => Self::from(error),
        }
    }
}

impl From<squashfs::write::Error> for Failure {
    fn from(error: squashfs::write::Error) -> Self {
        use squashfs::write::Error as E;
        let code = match &error {
            E::Options(_) => Code::Usage,
            _ => Code::BackupCreateFailed,
        };
        let hint = error.hint();
        let (message, list) = match &error {
            E::Unreadable { paths } => {
                let list = paths.iter().map(|path| path.display().to_string()).collect();
                ("permission denied".to_owned(), list)
            }
            error => (error.to_string(), Vec::new()),
        };
        Self { hint, list, ..Self::new(code, message) }
    }
}

impl From<overlay::Error> for Failure {
    fn from(error: overlay::Error) -> Self {
        match error {
            overlay::Error::Lower(error) => Self::from(error),
            error => Self::new(Code::Upper, error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_three_keys_in_json() {
        let failure = Failure::new(Code::NotAnArchive, "x is no archive").hint("look again");
        assert_eq!(
            serde_json::to_value(&failure).unwrap(),
            serde_json::json!({
                "code": "NOT_AN_ARCHIVE", "message": "x is no archive", "hint": "look again"
            })
        );
        assert_eq!(failure.to_string(), "x is no archive; look again");
    }

    #[test]
    fn what_a_failure_lists_is_an_array_in_json() {
        let mut failure = Failure::new(Code::Failed, "no").hint("look");
        failure.list = vec!["a".into(), "b".into()];
        let json = serde_json::to_value(&failure).unwrap();
        assert_eq!(json["list"], serde_json::json!(["a", "b"]));
        assert_eq!(serde_json::from_value::<Failure>(json).unwrap(), failure);
        assert_eq!(failure.to_string(), "no: a, b; look");
    }
}
