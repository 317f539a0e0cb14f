//! Opening a blob: its size and version are learnt, its first chunk and its end fetched, in parallel. Both would be
//! wanted at once: an archive begins with its superblock and ends with its metadata.

use std::sync::{Arc, mpsc};

use bytes::Bytes;
use futures::future::try_join;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::cache::blob::Error;
use crate::cache::disk::{About, CacheDir, Disk, Entry};
use crate::store::{self, ETag, GetRange, Ranged, ReadRanges};

/// Length of the request that asks no more than which version there is, in bytes. It brings the
/// superblock of an archive, which has to be that of the one on disk.
const PROBE: u64 = 96;

/// How to open a [`RemoteBlob`](crate::cache::RemoteBlob).
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Where in the object the archive begins, in bytes.
    pub offset: u64,
    /// Budget for chunks in memory and on their way, in bytes. Raised to what opening brings.
    pub memory_bytes: u64,
    /// Size of a chunk in bytes, at least 512.
    pub chunk_size: u64,
    /// How much of the object's end is fetched on opening, in bytes: an archive's metadata is
    /// there.
    pub tail_bytes: u64,
    /// Where chunks are kept on disk. What has no version, or only a weak one, is not.
    pub disk: Option<CacheDir>,
    /// Which version somebody has just read: if that is on disk, the store is not asked whether it still has it.
    pub current: Option<Current>,
}

/// A version of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Current {
    /// By what the store tells it from others.
    pub etag: String,
    /// Size of the object in bytes.
    pub size: u64,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            offset: 0,
            memory_bytes: 24 << 20,
            // A block of 128 KiB, compressed to half, touches two of these; a larger chunk moves
            // bytes nobody asked for, a smaller one costs more requests where it is on its own.
            chunk_size: 64 << 10,
            // Holds the metadata of 60,000 inodes (32 bytes each).
            tail_bytes: 2 << 20,
            disk: None,
            current: None,
        }
    }
}

/// What is known of an object once it is open.
pub(super) struct Opening {
    pub(super) etag: Option<ETag>,
    /// Size of the object in bytes.
    pub(super) size: u64,
    /// What was fetched on the way.
    pub(super) brought: Vec<Ranged>,
    pub(super) disk: Option<Disk>,
}

/// Opens an object: with a short request if both its ends are on disk, in chunks of `chunk` bytes,
/// and else with two parallel requests, for its first chunk and for its last `tail_len` bytes.
pub(super) fn open(
    object: &Arc<dyn ReadRanges>,
    runtime: &Handle,
    options: &OpenOptions,
    chunk: u64,
    tail_len: u64,
) -> Result<Opening, Error> {
    let place = object.place();
    if let Some(dir) = &options.disk
        && let Some(entry) = dir.open_latest(&place, options.offset, chunk)
        && holds_ends(&entry, tail_len)
        && (is_known(&entry, options) || is_current(&entry, object, runtime)?)
        && let about = entry.about()
        && let (etag, size) = (Some(ETag(about.etag.clone())), about.size)
        && let Ok(disk) = Disk::start(dir.clone(), entry)
    {
        return Ok(Opening { etag, size, brought: Vec::new(), disk: Some(disk) });
    }
    let asked = Arc::clone(object);
    let (offset, piece) = (options.offset, usize::try_from(chunk).unwrap_or(usize::MAX));
    let (head, tail) = wait(object, runtime, async move {
        let head = GetRange::Between(offset..offset.saturating_add(chunk));
        let head = asked.get_range(head, None, piece);
        // One piece: it is cut at chunk boundaries once the size is known.
        let tail = asked.get_range(GetRange::Last(tail_len), None, usize::MAX);
        try_join(head, tail).await
    })?;
    if head.etag != tail.etag || head.size != tail.size {
        return Err(Arc::new(store::Error::Changed { object: object.name() }).into());
    }
    let (etag, size) = (head.etag.clone(), head.size);
    let disk = options.disk.as_ref().zip(etag.as_ref().filter(|etag| !etag.is_weak()));
    let disk = disk.and_then(|(dir, etag)| {
        let (name, etag, offset) = (object.name(), etag.0.clone(), options.offset);
        let start = start_of(&head.pieces);
        open_disk(dir, &place, About { name, etag, size, offset, chunk, start })
    });
    Ok(Opening { etag, size, brought: vec![head, tail], disk })
}

/// The disk cache of one version. That there is none is no reason not to read.
fn open_disk(dir: &CacheDir, place: &str, about: About) -> Option<Disk> {
    let entry = dir.open_entry(place, about);
    match entry.and_then(|entry| Disk::start(dir.clone(), entry)) {
        Ok(disk) => Some(disk),
        Err(error) => {
            tracing::warn!("no disk cache in {}: {error}", dir.path().display());
            None
        }
    }
}

/// Whether the chunks are on disk that opening would fetch.
fn holds_ends(entry: &Entry, tail_len: u64) -> bool {
    let Some(grid) = entry.about().grid() else { return false };
    let count = grid.size.div_ceil(grid.chunk);
    let tail = grid.size.saturating_sub(tail_len).div_ceil(grid.chunk)..count;
    count > 0 && entry.holds(0) && tail.into_iter().all(|chunk| entry.holds(chunk))
}

/// Whether what is on disk is what somebody has just read.
fn is_known(entry: &Entry, options: &OpenOptions) -> bool {
    let about = entry.about();
    let is_it = |current: &Current| current.etag == about.etag && current.size == about.size;
    options.current.as_ref().is_some_and(is_it)
}

/// Whether the store still has the version that is on disk.
fn is_current(
    entry: &Entry,
    object: &Arc<dyn ReadRanges>,
    runtime: &Handle,
) -> Result<bool, Error> {
    let about = entry.about();
    let asked = Arc::clone(object);
    let probe = GetRange::Between(about.offset..about.offset.saturating_add(PROBE));
    let fetched =
        wait(object, runtime, async move { asked.get_range(probe, None, usize::MAX).await })?;
    let same = fetched.etag.is_some_and(|etag| etag.0 == about.etag) && fetched.size == about.size;
    Ok(same && start_of(&fetched.pieces) == about.start)
}

/// The first bytes of a blob, in hexadecimal.
fn start_of(pieces: &[Bytes]) -> String {
    let bytes = pieces.iter().flatten().take(PROBE as usize);
    bytes.fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Runs a request, and waits for it on this thread, which is not the runtime's.
fn wait<T: Send + 'static>(
    object: &Arc<dyn ReadRanges>,
    runtime: &Handle,
    request: impl Future<Output = store::Result<T>> + Send + 'static,
) -> Result<T, Error> {
    let (sender, receiver) = mpsc::channel();
    runtime.spawn(async move {
        // Nobody listens only if the opener is gone.
        let _ = sender.send(request.await);
    });
    let answer =
        receiver.recv().unwrap_or_else(|_| Err(store::Error::ShutDown { object: object.name() }));
    Ok(answer.map_err(Arc::new)?)
}
