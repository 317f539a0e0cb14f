//! Fetching again what came and made no sense.
//!
//! A bit that flips on the way passes every check below: the chunk is kept in memory and on disk under
//! the checksum of the wrong bytes. Only who decodes it notices, and says so here. The chunks are then
//! dropped from both, and fetched from the store. If they come differently, the reader goes on with
//! those; if they come alike, the object is damaged where it lies, and asking for it again and again
//! would help nobody but whoever counts requests.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use twox_hash::XxHash3_128;

use super::Error;
use super::joint::Joint;
use super::landing::Landing;
use super::plan::runs;
use super::remote::{Inner, LONGEST_REQUEST};
use super::run::{Origin, Run};
use super::state::Wanted;
use super::waiting::may_wait;
use crate::types::ByteRange;

/// How long what came twice alike is taken for what the object has; doubled each time it comes again, up
/// to the second. It may have been a proxy that keeps answers.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(64);

/// Damaged ranges that are remembered: 100 KiB. A forgotten one costs a request.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// What came twice alike and made no sense.
pub(super) struct Damage(LruCache<ByteRange, Verdict>);

struct Verdict {
    sum: u128,
    until: Instant,
    pause: Duration,
}

impl Damage {
    pub(super) fn new() -> Self {
        Self(LruCache::new(REMEMBERED))
    }

    /// Whether the object is known to have these bytes, of this checksum.
    fn is_known(&mut self, range: ByteRange, sum: u128, now: Instant) -> bool {
        self.0.get(&range).is_some_and(|known| known.sum == sum && now < known.until)
    }

    /// Notes that the object has these bytes.
    fn note(&mut self, range: ByteRange, sum: u128, now: Instant) {
        let again = self.0.get(&range).filter(|known| known.sum == sum);
        let pause = again.map_or(PAUSE, |known| (known.pause * 2).min(LONGEST_PAUSE));
        self.0.put(range, Verdict { sum, until: now + pause, pause });
    }
}

impl Inner {
    /// See [`Blob::fetch_again`](super::Blob::fetch_again); `held` is what of it is in memory.
    pub(super) fn fetch_again(
        self: &Arc<Self>,
        range: ByteRange,
        damaged: &[u8],
        held: Option<Bytes>,
    ) -> Result<Option<Bytes>, Error> {
        // Another reader had it fetched again since this one got its bytes.
        if let Some(held) = held.filter(|held| held != damaged) {
            return Ok(Some(held));
        }
        let sum = XxHash3_128::oneshot(damaged);
        if self.state.lock().damage.is_known(range, sum, Instant::now()) {
            return Ok(None);
        }
        if !may_wait() {
            return Err(Error::WouldWait);
        }
        self.forget_on_disk(range);
        let (mut launches, mut waiting) = (Vec::new(), Vec::new());
        {
            let mut state = self.state.lock();
            let mut missing = Vec::new();
            for chunk in self.grid.chunks(range) {
                state.memory.remove(chunk);
                let flying = state.flights.get(&chunk).map(|flying| &flying.flight);
                match flying.filter(|flight| flight.origin == Origin::Store) {
                    Some(flight) => waiting.push((chunk, Arc::clone(flight))),
                    None => missing.push(chunk),
                }
            }
            state.counters.fetched_again += missing.len() as u64;
            let longest = (LONGEST_REQUEST / self.grid.chunk).max(1);
            for run in runs(&missing, longest, |_| false) {
                let flight = Run::new(run, Origin::Store, true);
                let flight = state.book(self.grid, flight, |_| Wanted::Now);
                waiting.extend(flight.chunks.clone().map(|chunk| (chunk, Arc::clone(&flight))));
                launches.push(flight);
            }
        }
        for flight in launches {
            // Not by way of the disk, where another process may just have put the same.
            Landing { inner: Arc::clone(self), flight }.send();
        }
        waiting.sort_by_key(|(chunk, _)| *chunk);
        let mut joint = Joint::new(range);
        for (chunk, bytes) in self.wait(&waiting, Instant::now())? {
            joint.add(self.grid, chunk, &bytes);
        }
        let again = joint.finish();
        let (name, (start, end)) = (self.object.name(), (range.start(), range.end()));
        if again == damaged {
            self.state.lock().damage.note(range, sum, Instant::now());
            // The next mount is to ask again, too.
            self.forget_on_disk(range);
            // Whoever asked says what makes no sense about it.
            tracing::info!("{name} makes no sense from byte {start} to {end}, fetched twice");
            return Ok(None);
        }
        tracing::warn!("bytes {start} to {end} of {name} came damaged, and were fetched again");
        Ok(Some(again))
    }

    fn forget_on_disk(&self, range: ByteRange) {
        if let Some(disk) = &self.disk {
            self.grid.chunks(range).for_each(|chunk| disk.forget(chunk));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ArchiveOffset;

    #[test]
    fn what_is_known_is_asked_for_less_and_less_often() {
        let range = |start| ByteRange::new(ArchiveOffset(start), 10).unwrap();
        let mut damage = Damage::new();
        let mut now = Instant::now();
        assert!(!damage.is_known(range(0), 7, now));
        for pause in [1, 2, 4, 8, 16, 32, 64, 64] {
            damage.note(range(0), 7, now);
            let until = now + Duration::from_secs(pause);
            assert!(damage.is_known(range(0), 7, until - Duration::from_nanos(1)), "{pause}");
            assert!(!damage.is_known(range(0), 7, until), "{pause}");
            assert!(!damage.is_known(range(0), 8, now), "other bytes");
            assert!(!damage.is_known(range(1), 7, now), "elsewhere");
            now = until;
        }
        damage.note(range(0), 8, now);
        assert!(!damage.is_known(range(0), 8, now + PAUSE), "other bytes start anew");
    }
}
