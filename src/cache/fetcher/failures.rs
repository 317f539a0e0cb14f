//! What could lately not be had.
//!
//! A kernel asks twice for a page: when it reads ahead and, where that failed, for the page alone. Others who
//! waited for the same chunk may ask again, too. A store has its time once for each chunk: who asks again soon
//! after it was up gets the same error, unless the chunk comes at once.

use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::cache::blob::Error;

/// Whoever asks so soon after a failure asks again, or within a quarter of the deadline if that is more. The
/// kernel does in no time, but on a machine that is busy with other things it may take seconds.
const LASTS: Duration = Duration::from_secs(2);

/// How long failures are known to those who ask in time and get their turn late.
const KEPT: Duration = Duration::from_secs(60);

/// How many chunks are remembered.
const MOST: usize = 4096;

/// Chunks for which the time was up, and why.
#[derive(Debug, Default)]
pub(super) struct Failures(HashMap<u64, (Instant, Error)>);

impl Failures {
    /// Notes that `chunks` were waited for in vain.
    pub(super) fn note(&mut self, chunks: Range<u64>, error: &Error) {
        let now = Instant::now();
        self.0.retain(|_, (at, _)| now.duration_since(*at) < KEPT);
        if self.0.len() > MOST {
            self.0.clear();
        }
        self.0.extend(chunks.map(|chunk| (chunk, (now, error.clone()))));
    }

    /// Notes that a chunk came after all.
    pub(super) fn clear(&mut self, chunk: u64) {
        self.0.remove(&chunk);
    }

    /// Whether `chunk` was waited for in vain, as long as `deadline`, until a moment before somebody asked
    /// at `asked`.
    pub(super) fn has(&self, chunk: u64, asked: Instant, deadline: Duration) -> bool {
        let lasts = LASTS.max(deadline / 4);
        self.0.get(&chunk).is_some_and(|(at, _)| asked.saturating_duration_since(*at) < lasts)
    }

    /// Why the last chunk was, a moment ago.
    pub(super) fn any(&self) -> Option<Error> {
        let young = self.0.values().filter(|(at, _)| at.elapsed() < LASTS);
        young.max_by_key(|(at, _)| *at).map(|(_, error)| error.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_failure_stands_for_those_who_ask_soon_and_until_the_chunk_comes() {
        let error = Error::Io(Arc::new(std::io::ErrorKind::Other.into()));
        let mut failures = Failures::default();
        let before = Instant::now();
        failures.note(3..5, &error);
        let after = Instant::now();
        for chunk in 3..5 {
            // One less than the boundary, and the boundary; with a deadline that gives more, too.
            for (deadline, lasts) in
                [(Duration::ZERO, LASTS), (LASTS * 4, LASTS), (LASTS * 8, LASTS * 2)]
            {
                let last = lasts - Duration::from_millis(1);
                assert!(failures.has(chunk, before, deadline));
                assert!(failures.has(chunk, before + last, deadline));
                assert!(!failures.has(chunk, after + lasts, deadline));
            }
        }
        assert!(!failures.has(2, after, LASTS) && !failures.has(5, after, LASTS));
        assert!(failures.any().is_some());
        failures.clear(3);
        assert!(!failures.has(3, after, LASTS) && failures.has(4, after, LASTS));
        (0..100).for_each(|n| failures.note(n * 100..n * 100 + 100, &error));
        assert!(failures.0.len() <= MOST + 100, "{}", failures.0.len());
    }
}
