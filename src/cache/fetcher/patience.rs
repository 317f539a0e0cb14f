//! How long chunks are waited for.
//!
//! As long as the store has for an answer, counted from its last sign of life. Whoever asks again soon for what
//! was waited for in vain gets the same error, unless the chunk comes at once (`failures`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::run::Run;
use super::state::State;
use crate::cache::blob::Error;
use crate::store::{self, ReadRanges};

/// How long whoever asks again for what was waited for in vain waits for it: for the first byte from slow
/// storage, or a fifth of the deadline if that is less.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// How much longer a reader waits than a request has, so that it is told why that failed.
const SLACK: Duration = Duration::from_millis(250);

/// The waiting of somebody who asked for chunks at `asked`.
pub(super) struct Patience<'a> {
    pub(super) object: &'a dyn ReadRanges,
    pub(super) state: &'a Mutex<State>,
    pub(super) asked: Instant,
}

impl Patience<'_> {
    /// Waits for chunks, each of a run that brings it.
    pub(super) fn wait(&self, coming: &[(u64, Arc<Run>)]) -> Result<Vec<(u64, Bytes)>, Error> {
        let mut found = Vec::with_capacity(coming.len());
        for (chunk, run) in coming {
            match self.wait_for_one(run, *chunk) {
                Some(Ok(bytes)) => found.push((*chunk, bytes)),
                Some(Err(error)) => return Err(self.give_up(coming, Some(error))),
                None => return Err(self.give_up(coming, None)),
            }
        }
        Ok(found)
    }

    /// The chunk, or why it cannot be had; `None` when time is up.
    fn wait_for_one(&self, run: &Run, chunk: u64) -> Option<Result<Bytes, Error>> {
        let (asked, deadline) = (self.asked, self.deadline());
        let again = !run.has_landed() && self.state.lock().failures.has(chunk, asked, deadline);
        loop {
            let pace = self.object.pace();
            let end = pace.deadline.map(|deadline| match again {
                true => asked + SECOND_LOOK.min(deadline / 5),
                false => asked.max(pace.progress.unwrap_or(asked)) + deadline + SLACK,
            });
            let result = run.wait(chunk, end);
            if result.is_some() || again || self.object.pace().progress == pace.progress {
                return result;
            }
        }
    }

    /// Ends waiting with the error of one run, or because time is up. What else is still on its way was
    /// waited for in vain then, too.
    fn give_up(&self, coming: &[(u64, Arc<Run>)], error: Option<Error>) -> Error {
        let (asked, deadline) = (self.asked, self.deadline());
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
        for (chunk, run) in coming {
            // Once: who goes on asking gets all of the time again after a while.
            if !run.has_landed() && !state.failures.has(*chunk, asked, deadline) {
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
