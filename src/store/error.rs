//! What can go wrong between us and an object. What the user can do about it is for [`crate::failure`] to say.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::Refusal;
use super::redirect::Refused;

/// Result of a store operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an object could not be read or written.
///
/// Every message is one line that names the object, bucket, host or path, and never a credential:
/// `object` fields hold names such as `s3://bucket/key` or `https://host/path` without a query.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bucket (or server, or directory) is there, the object is not.
    #[error("{object} does not exist{}", words(.refusal.as_deref()))]
    NotFound {
        /// The object.
        object: String,
        /// What a server said; none for a file.
        refusal: Option<Box<Refusal>>,
    },
    /// The bucket itself does not exist at this endpoint.
    #[error("bucket {bucket} does not exist at {host}{}", words(Some(refusal)))]
    NoSuchBucket {
        /// The bucket's name.
        bucket: String,
        /// Host of the endpoint that was asked.
        host: String,
        /// What the server said.
        refusal: Box<Refusal>,
    },
    /// The credentials are good but may not do this.
    #[error("access to {object} was denied{}", words(Some(refusal)))]
    AccessDenied {
        /// The object.
        object: String,
        /// What the server said.
        refusal: Box<Refusal>,
    },
    /// There are no credentials, or none that can be used.
    #[error("credentials for {object} are no good: {reason}")]
    BadCredentials {
        /// The object, or the bucket.
        object: String,
        /// What is missing or wrong.
        reason: String,
    },
    /// The server does not accept the credentials.
    #[error("credentials for {object} are no good: {refusal}")]
    RefusedCredentials {
        /// The object.
        object: String,
        /// What the server said.
        refusal: Box<Refusal>,
    },
    /// The credentials (or the presigned URL) were good once, and there are no newer ones.
    #[error("credentials for {object} have expired")]
    ExpiredCredentials {
        /// The object.
        object: String,
    },
    /// A range was asked and something else came.
    #[error("{object}: asked for a range of bytes, the server answered with {answer}")]
    RangeIgnored {
        /// The object.
        object: String,
        /// What came instead.
        answer: String,
    },
    /// The object is not the one that was opened: its ETag or size differs.
    #[error("{object} changed while it was in use")]
    Changed {
        /// The object.
        object: String,
    },
    /// The object holds no byte of the range that was asked.
    #[error("{object} has no bytes at {range}")]
    OutOfRange {
        /// The object.
        object: String,
        /// The range as asked.
        range: String,
    },
    /// The object is larger than the caller is prepared to hold in memory.
    #[error("{object} is larger than {limit} bytes")]
    TooLarge {
        /// The object.
        object: String,
        /// Largest acceptable size in bytes.
        limit: u64,
    },
    /// Retrying did not help before the deadline.
    #[error("{object}: gave up after {:.1} s: {last}", .after.as_secs_f64())]
    Timeout {
        /// The object.
        object: String,
        /// How long it was tried.
        after: Duration,
        /// The last failure.
        last: Box<Error>,
    },
    /// A body ended before all the bytes that were promised.
    #[error("{object}: the answer ended after {got} of {expected} bytes")]
    Truncated {
        /// The object.
        object: String,
        /// Bytes that arrived.
        got: u64,
        /// Bytes that were promised.
        expected: u64,
    },
    /// Nothing arrived for too long.
    #[error("{object}: the server sent nothing for {:.1} s", .after.as_secs_f64())]
    Stalled {
        /// The object.
        object: String,
        /// How long nothing came.
        after: Duration,
    },
    /// Bytes came all the while, but too slowly.
    #[error("{object}: {got} of {expected} bytes came in {:.1} s", .after.as_secs_f64())]
    Slow {
        /// The object.
        object: String,
        /// Bytes that arrived.
        got: u64,
        /// Bytes that were asked for.
        expected: u64,
        /// How long they took.
        after: Duration,
    },
    /// The server redirects to where it must not.
    #[error("{object}: the server redirects to {refused}")]
    BadRedirect {
        /// The object.
        object: String,
        /// Where to, and why not there.
        refused: Refused,
    },
    /// No connection could be made, or it broke.
    #[error("cannot talk to {host}: {reason}")]
    Connect {
        /// Host and port.
        host: String,
        /// The innermost cause.
        reason: String,
    },
    /// The server is overloaded or broken at the moment (429 or 5xx).
    #[error("{object}: the server answered {}", answered(refusal))]
    Unavailable {
        /// The object.
        object: String,
        /// What the server said.
        refusal: Box<Refusal>,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// The bucket lives elsewhere: another region or endpoint.
    #[error("{object}: the server sends us elsewhere{}: {}", detail(.to), answered(refusal))]
    WrongEndpoint {
        /// The object.
        object: String,
        /// Region or location the server named, empty if none.
        to: String,
        /// What the server said.
        refusal: Box<Refusal>,
    },
    /// The server refused the request for a reason not listed above.
    #[error("{object}: the server refused: {}", refused(refusal))]
    Refused {
        /// The object.
        object: String,
        /// What the server said.
        refusal: Box<Refusal>,
    },
    /// The answer cannot be understood.
    #[error("{object}: the server's answer makes no sense: {reason}")]
    BadAnswer {
        /// The object.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The place can be read only (a plain URL).
    #[error("{place} can only be read")]
    ReadOnly {
        /// The place.
        place: String,
    },
    /// The place does not copy what it has.
    #[error("{place} cannot be made of what is there already")]
    CannotCopy {
        /// The object that was to be.
        place: String,
    },
    /// The string does not name a place we can open.
    #[error("cannot use {source_text} as a source: {reason}")]
    UnsupportedSource {
        /// The source, redacted.
        source_text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A backup of a kind that cannot be read in place.
    #[error("{object} is a tar archive, which has to be unpacked as a whole")]
    UnsupportedFormat {
        /// The object.
        object: String,
    },
    /// An option or environment variable, or a file named by one, cannot be used.
    #[error("{what}: {reason}")]
    BadOption {
        /// The option, variable or file.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A profile wants its credentials by a way that we do not know.
    #[error("profile {profile}: {setting} is not supported")]
    UnsupportedProfile {
        /// The profile's name.
        profile: String,
        /// The setting that wants it.
        setting: &'static str,
    },
    /// A system call on a local file failed.
    #[error("{call} {}: {error}", .path.display())]
    Io {
        /// The system call, or the function nearest to it.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The async runtime that does the requests has shut down.
    #[error("{object}: abandoned, the process is shutting down")]
    ShutDown {
        /// The object.
        object: String,
    },
}

impl Error {
    /// How long the server asks to be left alone.
    pub(super) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the same request may succeed a moment later.
    pub(super) const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Truncated { .. }
                | Self::Stalled { .. }
                | Self::Connect { .. }
                | Self::Unavailable { .. }
        )
    }
}

/// ` (CODE)` and what else a server said, if one said anything.
fn words(refusal: Option<&Refusal>) -> String {
    refusal.map_or_else(String::new, |it| format!(" ({}){}", it.code, it.details()))
}

/// Status, code and what else a server said.
fn answered(refusal: &Refusal) -> String {
    let Refusal { status, code, .. } = refusal;
    // Without a code of its own that is the status, in words.
    let says_status = code.starts_with(&status.to_string());
    let code = if says_status { code.clone() } else { format!("{status} ({code})") };
    code + &refusal.details()
}

/// The same with the status, for codes that we know nothing of.
fn refused(refusal: &Refusal) -> String {
    let Refusal { status, code, message, asked, .. } = refusal;
    let said = [code.as_str(), message.as_str()].join(" ");
    let asked = if asked.is_empty() { String::new() } else { format!(" ({asked})") };
    format!("{status} ({}){asked}", said.trim())
}

/// ` (text)`, or nothing for an empty text.
fn detail(text: &str) -> impl fmt::Display + '_ {
    struct Detail<'a>(&'a str);
    impl fmt::Display for Detail<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            if self.0.is_empty() { Ok(()) } else { write!(f, " ({})", self.0) }
        }
    }
    Detail(text)
}

/// The innermost cause of an error, which for HTTP libraries is the only line that helps.
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
