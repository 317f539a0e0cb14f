//! A blob in an object store, through a cache of chunks.
//!
//! A read finds its chunks, takes those in memory, books the rest under the lock, has them fetched without it, and
//! assembles its bytes from all of them. One of more than half the budget goes so bit by bit: only the result is
//! large then.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use twox_hash::XxHash3_128;

use super::assemble::Assembly;
use super::blob::{Blob, Error};
use super::counters::Counters;
use super::damage::Damage;
use super::disk::Disk;
use super::fetcher::{Current, Fetcher, OpenOptions};
use super::grid::spans;
use super::prefetch::{Read, SKIP, Trace, Warm};
use super::waiting::{may_wait, take_asked};
use super::warm::{self, Warming};
use crate::store::{ETag, ReadRanges};
use crate::types::ByteRange;

/// An object, or what follows an offset in it, that is read through a cache of chunks.
///
/// Its methods block the calling thread, which must not be one of the async runtime's.
pub struct RemoteBlob {
    fetcher: Arc<Fetcher>,
    /// What the object has that makes no sense.
    damage: Mutex<Damage>,
}

impl RemoteBlob {
    /// Opens an object with two parallel requests, for its first chunk and for its end. What they
    /// bring is in memory afterwards. If both are on disk, a short request finds out whether that is
    /// still the object's version.
    ///
    /// # Errors
    /// [`Changed`](crate::store::Error::Changed) if the two saw different objects,
    /// [`OutOfRange`](crate::store::Error::OutOfRange) if the object is empty or ends before the offset.
    pub fn open(
        object: Arc<dyn ReadRanges>,
        runtime: Handle,
        options: OpenOptions,
    ) -> Result<Self, Error> {
        let fetcher = Arc::new(Fetcher::open(object, runtime, &options)?);
        Ok(Self { fetcher, damage: Mutex::new(Damage::new()) })
    }

    /// Version of the object, which every later request insists on.
    pub fn etag(&self) -> Option<&ETag> {
        self.fetcher.etag.as_ref()
    }

    /// The same with its size, for [`OpenOptions::current`]; `None` where it has no version.
    pub fn current(&self) -> Option<Current> {
        let size = self.fetcher.offset + self.fetcher.grid.size;
        Some(Current { etag: self.etag()?.0.clone(), size })
    }

    /// Runs a request of its store, and waits for it.
    pub fn wait_for<T>(&self, request: impl Future<Output = T>) -> T {
        self.fetcher.runtime.block_on(request)
    }

    /// The object this reads from.
    pub fn object(&self) -> &Arc<dyn ReadRanges> {
        &self.fetcher.object
    }

    /// Whether there is a disk cache for it.
    pub fn has_disk(&self) -> bool {
        self.fetcher.disk.is_some()
    }

    /// Brings what is not on disk there, blocking the calling thread; readers' requests go first.
    /// Without a disk cache nothing is done.
    ///
    /// # Errors
    /// What the store says, or that there is no room on disk.
    pub fn warm(&self, what: &Warm, warming: &Warming) -> Result<(), Error> {
        warm::warm(&self.fetcher, what, warming)
    }

    /// What has been read first since it was opened; `None` without a disk cache, or if nothing was.
    pub fn trace(&self) -> Option<Trace> {
        let about = self.fetcher.disk.as_ref()?.about();
        let runs = self.fetcher.state.lock().prefetcher.recorded();
        let (etag, size, offset, chunk) =
            (about.etag.clone(), about.size, about.offset, about.chunk);
        (!runs.is_empty()).then_some(Trace { etag, size, offset, chunk, runs })
    }

    /// The trace that was kept of an earlier time.
    pub fn kept_trace(&self) -> Option<Trace> {
        self.fetcher.disk.as_ref()?.load_trace()
    }

    /// Keeps a trace for the next time; without a disk cache, nowhere.
    ///
    /// # Errors
    /// What writing it says.
    pub fn keep_trace(&self, trace: &Trace) -> std::io::Result<()> {
        self.fetcher.disk.as_ref().map_or(Ok(()), |disk| disk.save_trace(trace))
    }

    /// What the cache has done so far.
    pub fn counters(&self) -> Counters {
        let disk = self.fetcher.disk.as_deref().map(Disk::counters).unwrap_or_default();
        Counters {
            disk_hits: disk.hits,
            disk_bytes: disk.bytes,
            disk_written_bytes: disk.written_bytes,
            disk_damaged: disk.damaged,
            disk_dropped: disk.dropped,
            ..self.fetcher.state.lock().counters()
        }
    }

    /// The chunks of a batch, in order, after fetching those that are missing. `reads` are the bytes that
    /// they are wanted for.
    fn obtain(&self, batch: &[u64], reads: &[Range<u64>]) -> Result<Vec<(u64, Bytes)>, Error> {
        let asked = take_asked();
        let found = self.fetcher.state.lock().take_or_book(batch, reads);
        self.fetcher.launch(found.booked);
        let mut chunks = found.here;
        chunks.extend(self.fetcher.wait(&found.coming, asked)?);
        chunks.sort_by_key(|(chunk, _)| *chunk);
        Ok(chunks)
    }

    /// Has a read observed that wants nothing itself, and fetches what is worth it because of it.
    fn observe(&self, read: &Read<'_>) {
        let booked = self.fetcher.state.lock().observe(read);
        self.fetcher.launch(booked);
    }
}

impl Drop for RemoteBlob {
    /// Writes to disk what waits for it. Requests on their way can keep the rest alive for longer.
    fn drop(&mut self) {
        if let Some(disk) = &self.fetcher.disk {
            disk.finish();
        }
    }
}

impl Blob for RemoteBlob {
    fn size(&self) -> u64 {
        self.fetcher.grid.size
    }

    fn get(&self, range: ByteRange) -> Option<Bytes> {
        let grid = self.fetcher.grid;
        if range.end().0 > grid.size {
            return None;
        }
        let (found, booked) = {
            let (bytes, chunks) = (range.start().0..range.end().0, grid.chunks(range));
            let mut state = self.fetcher.state.lock();
            let found = state.take_all(chunks.clone())?;
            (found, state.observe(&Read::Hit { bytes, chunks }))
        };
        self.fetcher.launch(booked);
        let mut assembly = Assembly::new(range);
        for (chunk, bytes) in found {
            assembly.add(grid, chunk, &bytes);
        }
        Some(assembly.finish())
    }

    fn fetch(&self, ranges: &[ByteRange]) -> Result<Vec<Bytes>, Error> {
        let grid = self.fetcher.grid;
        if let Some(range) = ranges.iter().find(|range| range.end().0 > grid.size) {
            return Err(Error::PastEnd { range: *range, size: grid.size });
        }
        let wanted: BTreeSet<u64> = ranges.iter().flat_map(|range| grid.chunks(*range)).collect();
        let wanted: Vec<u64> = wanted.into_iter().collect();
        if !may_wait() && !self.fetcher.state.lock().are_here(&wanted) {
            return Err(Error::WouldWait);
        }
        // More than the budget is fetched bit by bit, so that only the result itself is large.
        let most = (self.fetcher.budget / 2 / grid.chunk).max(1);
        let batches = wanted.chunks(usize::try_from(most).unwrap_or(usize::MAX));
        let mut assemblies: Vec<_> = ranges.iter().map(|range| Assembly::new(*range)).collect();
        // Neighbours in one call are one read: they do not prove that more will follow.
        let reads = spans(ranges, SKIP);
        for (nth, batch) in batches.enumerate() {
            let reads = if nth == 0 { reads.as_slice() } else { &[] };
            for (chunk, bytes) in self.obtain(batch, reads)? {
                for assembly in &mut assemblies {
                    assembly.add(grid, chunk, &bytes);
                }
            }
        }
        Ok(assemblies.into_iter().map(Assembly::finish).collect())
    }

    fn prefetch(&self, range: ByteRange) {
        self.observe(&Read::Announced(self.fetcher.grid.chunks(range)));
    }

    fn fetch_again(&self, range: ByteRange, damaged: &[u8]) -> Result<Option<Bytes>, Error> {
        // Another reader had it fetched again since this one got its bytes.
        if let Some(held) = self.get(range).filter(|held| held != damaged) {
            return Ok(Some(held));
        }
        let sum = XxHash3_128::oneshot(damaged);
        if self.damage.lock().is_known(range, sum, Instant::now()) {
            return Ok(None);
        }
        if !may_wait() {
            return Err(Error::WouldWait);
        }
        let (grid, chunks) = (self.fetcher.grid, self.fetcher.grid.chunks(range));
        let mut assembly = Assembly::new(range);
        for (chunk, bytes) in self.fetcher.fetch_again(chunks.clone())? {
            assembly.add(grid, chunk, &bytes);
        }
        let again = assembly.finish();
        let (name, (start, end)) = (self.object().name(), (range.start(), range.end()));
        if again == damaged {
            self.damage.lock().note(range, sum, Instant::now());
            // The next mount is to ask again, too.
            self.fetcher.forget_on_disk(chunks);
            // Whoever asked says what makes no sense about it.
            tracing::info!("{name} makes no sense from byte {start} to {end}, fetched twice");
            return Ok(None);
        }
        tracing::warn!("bytes {start} to {end} of {name} came damaged, and were fetched again");
        Ok(Some(again))
    }

    fn note_small_file(&self, range: ByteRange) {
        if self.has_disk() && range.end().0 <= self.fetcher.grid.size {
            self.observe(&Read::SmallFile(self.fetcher.grid.chunks(range)));
        }
    }
}
