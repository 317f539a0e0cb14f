//! On which thread an operation runs.
//!
//! What is on this machine and what is in the store never share a queue: readers who wait for a store
//! that does not answer take all the threads there are for that, and everything else goes on. Whether an
//! operation needs the store is often known only on the way. So it is tried on a thread that must not
//! wait for that ([`without_waiting`]), and repeated on one that may if it comes to that.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tracing::Span;

use super::pool::Pool;
use super::shared::Shared;
use crate::cache::{asked, asked_at, without_waiting};
use crate::overlay::{Error, Result};

/// Threads for what may take long on this machine: fsync, copying within the upper, decoding.
const LOCAL_THREADS: usize = 32;

/// Requests to the store on behalf of metadata at a time. Most archives' metadata is in memory.
const METADATA_THREADS: usize = 32;

/// Reads and copy-ups at a time that wait for the store. Each waits for a GET, so this bounds the
/// requests in flight, not the work: 64 keeps a 600 ms store busy and costs little memory.
const DATA_THREADS: usize = 64;

/// Jobs at a time that wait for the kernel.
const AFTER_OTHERS_THREADS: usize = 64;

/// Where an operation is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// On the thread that read the request: it is done in no time.
    Here,
    /// On a thread that may wait for the disk.
    Local,
    /// On one that may wait for metadata from the store.
    Metadata,
    /// On one that may wait for data from the store.
    Data,
    /// On one that may wait until the kernel has had other requests answered.
    AfterOthers,
}

/// The threads that requests run on, but for those that read them.
pub(super) struct Pools {
    local: Pool,
    metadata: Pool,
    data: Pool,
    after_others: Pool,
}

impl Pools {
    pub(super) fn new() -> Self {
        Self {
            local: Pool::new("thawfs-local", LOCAL_THREADS),
            metadata: Pool::new("thawfs-meta", METADATA_THREADS),
            data: Pool::new("thawfs-data", DATA_THREADS),
            after_others: Pool::new("thawfs-after", AFTER_OTHERS_THREADS),
        }
    }

    /// Runs `job`, once, where `work` says.
    pub(super) fn run(
        &self,
        work: Work,
        shared: &Arc<Shared>,
        job: impl FnOnce(&Shared) + Send + 'static,
    ) {
        let pool = match work {
            Work::Here => return guarded(shared, || job(shared)),
            Work::Local => &self.local,
            Work::Metadata => &self.metadata,
            Work::Data => &self.data,
            Work::AfterOthers => &self.after_others,
        };
        let (shared, asked, span) = (Arc::clone(shared), asked(), Span::current());
        pool.spawn(move || {
            span.in_scope(|| guarded(&shared, || asked_at(asked, || job(&shared))));
        });
    }

    /// Runs `operation` where `work` says and, if it would have to wait there for the store, again where
    /// it may: where `store` says, or with the data if a file has to be copied. Then has it answered.
    pub(super) fn attempt<T>(
        self: &Arc<Self>,
        work: Work,
        store: Work,
        shared: &Arc<Shared>,
        operation: impl Fn(&Shared) -> Result<T> + Send + 'static,
        answer: impl FnOnce(&Shared, Result<T>) + Send + 'static,
    ) {
        let answer = move |shared: &Shared, result| {
            answer(shared, result);
            tracing::debug!("answered");
        };
        if !matches!(work, Work::Here | Work::Local) {
            return self.run(work, shared, move |shared| answer(shared, operation(shared)));
        }
        let pools = Arc::clone(self);
        let same = Arc::clone(shared);
        self.run(work, shared, move |shared| {
            let result = without_waiting(|| operation(shared));
            let elsewhere = match &result {
                Err(Error::WouldCopy) => Work::Data,
                Err(error) if error.is_would_wait() => store,
                _ => return answer(shared, result),
            };
            tracing::debug!("waits for the store");
            pools.run(elsewhere, &same, move |shared| answer(shared, operation(shared)));
        });
    }
}

/// Runs `job`. A panic ends the request (its reply, dropped, tells the kernel EIO), not the mount.
pub(super) fn guarded(shared: &Shared, job: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(job)).is_err() {
        shared.faults.record(&"a request failed on a bug of ours and was answered EIO");
    }
}
