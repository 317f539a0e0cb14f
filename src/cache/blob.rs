//! What the archive reader above sees: one object, read by ranges, and why that fails.

use std::sync::Arc;

use bytes::Bytes;

use crate::store;
use crate::types::ByteRange;

/// Why the bytes of a blob could not be had. Cheap to clone: every waiter of one fetch gets it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The range reaches past the end of the object.
    #[error("bytes {range:?} are past the end of the object ({size} bytes)")]
    PastEnd {
        /// What was asked.
        range: ByteRange,
        /// The object's size in bytes.
        size: u64,
    },
    /// The object store said no, or nothing in time.
    #[error(transparent)]
    Store(#[from] Arc<store::Error>),
    /// Reading a local file failed.
    #[error("{0}")]
    Io(Arc<std::io::Error>),
    /// The store would have to be waited for, which this thread must not
    /// ([`without_waiting`](super::without_waiting)).
    #[error("this would wait for the store")]
    WouldWait,
}

impl Error {
    /// Whether this says only that the thread must not wait.
    pub fn is_would_wait(&self) -> bool {
        matches!(self, Self::WouldWait)
    }
}

/// One immutable object, read by ranges. Blocking, for threads outside the async runtime.
pub trait Blob: Send + Sync {
    /// Size of the object in bytes.
    fn size(&self) -> u64;

    /// The bytes of `range` if all of them are in memory. Never blocks, never fetches.
    fn get(&self, range: ByteRange) -> Option<Bytes>;

    /// The bytes of every range, in order. What is missing is fetched at once, in as few requests
    /// as sensible, and shared with anyone else who asks for it meanwhile.
    fn fetch(&self, ranges: &[ByteRange]) -> Result<Vec<Bytes>, Error>;

    /// Says that `range` will be wanted soon. Does not block; failures show when it is fetched.
    fn prefetch(&self, range: ByteRange);

    /// Fetches `range` once more, because the bytes that came of it, `damaged`, make no sense. What is
    /// kept of it in memory and on disk is dropped first. `None` where the object has just these bytes,
    /// as far as anybody can tell; asking again soon costs nothing then.
    ///
    /// # Errors
    /// As [`Blob::fetch`].
    fn fetch_again(&self, _range: ByteRange, _damaged: &[u8]) -> Result<Option<Bytes>, Error> {
        Ok(None)
    }

    /// Says that a small file is about to be read, whose first bytes are `range`. Others beside it may
    /// be next. Does not block.
    fn note_small_file(&self, _range: ByteRange) {}
}
