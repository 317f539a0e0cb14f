//! The work on a flight: reading its chunks from disk, or fetching them.

use std::sync::Arc;
use std::time::Instant;

use tracing::Instrument;

use super::remote::Inner;
use super::run::{Origin, Run};
use crate::store;

/// A flight that somebody works on. Ends it when the work is dropped with the runtime, so that
/// nobody waits for ever.
pub(super) struct Landing {
    pub(super) inner: Arc<Inner>,
    pub(super) flight: Arc<Run>,
}

impl Landing {
    /// Where the chunks are by now: another process may have brought them to disk since it was
    /// planned to fetch them.
    pub(super) fn origin(&self) -> Origin {
        match (&self.inner.disk, self.flight.origin) {
            (Some(disk), Origin::Store) if disk.refresh(&self.flight.chunks) => Origin::Disk,
            (_, origin) => origin,
        }
    }

    /// Reads the chunks from disk, or fetches them if they are not there after all.
    pub(super) fn read(self) {
        let disk = self.inner.disk.as_ref();
        match disk.and_then(|disk| disk.read(&self.flight.chunks)) {
            Some(chunks) => self.inner.land(&self.flight, Origin::Disk, Ok(chunks)),
            None => self.send(),
        }
    }

    /// Sends the request, and leaves the rest to the runtime.
    pub(super) fn send(self) {
        let runtime = self.inner.runtime.clone();
        let work = async move {
            let started = Instant::now();
            let result = self.inner.request(&self.flight.chunks).await;
            if self.flight.awaited && result.is_ok() {
                self.inner.state.lock().surroundings.waited(started.elapsed());
            }
            self.inner.land(&self.flight, Origin::Store, result);
        };
        runtime.spawn(work.in_current_span());
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if !self.flight.has_landed() {
            let object = self.inner.object.name();
            let error = Arc::new(store::Error::ShutDown { object });
            self.inner.land(&self.flight, Origin::Store, Err(error.into()));
        }
    }
}
