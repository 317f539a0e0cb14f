//! How long a chunk is waited for, and what could lately not be had.
//!
//! A kernel asks twice for a page: once when it reads ahead and, where that failed, for the page alone. And
//! whoever waited for the same chunk may ask for it anew. The time that a store is given counts once for a
//! chunk, so those who ask again soon after it was up get the same answer, unless the chunk comes at once.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Error;
use super::remote::Inner;
use super::run::Run;
use crate::store;

/// How long whoever asks again for what was waited for in vain waits for it: for the first byte from slow
/// storage, or a fifth of the deadline if that is less.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// How much longer a reader waits than a request has, so that it is told why that failed.
const SLACK: Duration = Duration::from_millis(250);

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
    fn has(&self, chunk: u64, asked: Instant, deadline: Duration) -> bool {
        let lasts = LASTS.max(deadline / 4);
        self.0.get(&chunk).is_some_and(|(at, _)| asked.saturating_duration_since(*at) < lasts)
    }

    /// Why the last chunk was, a moment ago.
    fn any(&self) -> Option<Error> {
        let young = self.0.values().filter(|(at, _)| at.elapsed() < LASTS);
        young.max_by_key(|(at, _)| *at).map(|(_, error)| error.clone())
    }
}

impl Inner {
    /// Waits for chunks of flights on behalf of somebody who asked for them at `asked`, as long as the store
    /// has, counted from its last sign of life.
    pub(super) fn wait(
        &self,
        flights: &[(u64, Arc<Run>)],
        asked: Instant,
    ) -> Result<Vec<(u64, Bytes)>, Error> {
        let mut found = Vec::with_capacity(flights.len());
        for (chunk, flight) in flights {
            match self.wait_for_one(flight, *chunk, asked) {
                Some(Ok(bytes)) => found.push((*chunk, bytes)),
                Some(Err(error)) => return Err(self.give_up(flights, asked, Some(error))),
                None => return Err(self.give_up(flights, asked, None)),
            }
        }
        Ok(found)
    }

    /// The chunk, or why it cannot be had; `None` when time is up.
    fn wait_for_one(
        &self,
        flight: &Run,
        chunk: u64,
        asked: Instant,
    ) -> Option<Result<Bytes, Error>> {
        let deadline = self.deadline();
        let again = !flight.has_landed() && self.state.lock().failures.has(chunk, asked, deadline);
        loop {
            let pace = self.object.pace();
            let end = pace.deadline.map(|deadline| match again {
                true => asked + SECOND_LOOK.min(deadline / 5),
                false => asked.max(pace.progress.unwrap_or(asked)) + deadline + SLACK,
            });
            let result = flight.wait(chunk, end);
            if result.is_some() || again || self.object.pace().progress == pace.progress {
                return result;
            }
        }
    }

    /// Ends waiting with the error of one of `flights`, or because time is up. What of the others is still on
    /// its way was waited for in vain then, too.
    fn give_up(&self, flights: &[(u64, Arc<Run>)], asked: Instant, error: Option<Error>) -> Error {
        let deadline = self.deadline();
        let mut state = self.state.lock();
        let error = error.or_else(|| state.failures.any()).unwrap_or_else(|| {
            let (object, after) = (self.object.name(), asked.elapsed());
            let last = Box::new(store::Error::Stalled { object: object.clone(), after });
            Arc::new(store::Error::Timeout { object, after, last }).into()
        });
        // What is refused at once is no question of time.
        if asked.elapsed() < deadline / 2 {
            return error;
        }
        state.counters.timeouts += 1;
        for (chunk, flight) in flights {
            // Once: who goes on asking gets all of the time again after a while.
            if !flight.has_landed() && !state.failures.has(*chunk, asked, deadline) {
                state.failures.note(*chunk..*chunk + 1, &error);
            }
        }
        error
    }

    /// How long the store has; for ever where nobody said.
    fn deadline(&self) -> Duration {
        self.object.pace().deadline.unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
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
