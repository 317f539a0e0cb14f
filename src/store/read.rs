//! Reading one object by ranges, and which version of it.

use std::fmt;
use std::ops::Range;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Counters, Result};

/// One object that can be read.
#[async_trait]
pub trait ReadRanges: fmt::Debug + Send + Sync {
    /// Its full name for messages, such as `s3://bucket/key`; holds no secret.
    fn name(&self) -> String;

    /// The same, told apart from an object of that name on another server.
    fn place(&self) -> String {
        self.name()
    }

    /// Gets bytes of it, in pieces of `piece` bytes (not 0). With `expect`, only of that version.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](super::Error::OutOfRange) if the range starts past the end,
    /// [`Error::Changed`](super::Error::Changed) if the version is not the expected one, and what
    /// the network has to offer.
    async fn get_range(
        &self,
        range: GetRange,
        expect: Option<&ETag>,
        piece: usize,
    ) -> Result<Ranged>;

    /// What has been asked of its store so far.
    fn counters(&self) -> Counters;

    /// How its store answers at the moment; by default, as one that is never waited for.
    fn pace(&self) -> Pace {
        Pace::default()
    }
}

/// Identifies one version of one object, opaque beyond equality. Quotes are part of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ETag(pub String);

impl ETag {
    /// Of a file on this machine: which one it is, how large, and when it was last written.
    pub(crate) fn of_file(meta: &std::fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        let (number, size, seconds, nanos) =
            (meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec());
        Self(format!("\"{number:x}-{size:x}-{seconds:x}.{nanos:x}\""))
    }

    /// Whether two objects of this tag may differ in bytes. `If-Match` never matches such a tag.
    pub fn is_weak(&self) -> bool {
        self.0.starts_with("W/")
    }
}

/// Which bytes of an object to get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GetRange {
    /// From `start` up to but excluding `end`; cut at the object's end. Not empty.
    Between(Range<u64>),
    /// The last bytes, or the whole object if it has fewer. Not 0.
    Last(u64),
}

impl fmt::Display for GetRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Between(range) => {
                write!(f, "bytes={}-{}", range.start, range.end.saturating_sub(1))
            }
            Self::Last(count) => write!(f, "bytes=-{count}"),
        }
    }
}

/// Bytes of an object, and what the answer said about the whole of it.
#[derive(Clone, Debug)]
pub struct Ranged {
    /// The bytes, each piece in an allocation of its own and of the size that was asked; only the
    /// last is shorter.
    pub pieces: Vec<Bytes>,
    /// Where in the object the bytes lie.
    pub range: Range<u64>,
    /// Size of the whole object in bytes.
    pub size: u64,
    /// The object's version, if the store knows versions.
    pub etag: Option<ETag>,
}

/// How a store answers at the moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// How long a read may go on without progress, if there is such a bound.
    pub deadline: Option<Duration>,
    /// When bytes last came, whoever asked for them.
    pub progress: Option<Instant>,
    /// Whether it has asked to be left alone for a while.
    pub holds_off: bool,
}
