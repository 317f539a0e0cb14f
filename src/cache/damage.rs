//! What came, made no sense, and came alike once more.
//!
//! A bit that flips on the way passes every check below: the chunk is kept in memory and on disk under
//! the checksum of the wrong bytes. Only who decodes it notices, and says so here. The chunks are then
//! dropped from both, and fetched from the store. If they come differently, the reader goes on with
//! those; if they come alike, the object is damaged where it lies, and asking for it again and again
//! would help nobody but whoever counts requests.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;

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
    pub(super) fn is_known(&mut self, range: ByteRange, sum: u128, now: Instant) -> bool {
        self.0.get(&range).is_some_and(|known| known.sum == sum && now < known.until)
    }

    /// Notes that the object has these bytes.
    pub(super) fn note(&mut self, range: ByteRange, sum: u128, now: Instant) {
        let again = self.0.get(&range).filter(|known| known.sum == sum);
        let pause = again.map_or(PAUSE, |known| (known.pause * 2).min(LONGEST_PAUSE));
        self.0.put(range, Verdict { sum, until: now + pause, pause });
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
