//! On which thread an operation runs.
//!
//! What is on this machine and what is in the store never share a queue. Readers of a store that does not answer
//! may take all threads of the store's pools; everything else goes on. Often it shows only on the way that an
//! operation needs the store. So it is tried on a thread that must not wait for that ([`without_waiting`]),
//! and where it would have to, repeated on one that may.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tracing::Span;

use super::context::Context;
use super::pool::Pool;
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
        context: &Arc<Context>,
        job: impl FnOnce(&Context) + Send + 'static,
    ) {
        let pool = match work {
            Work::Here => return guarded(context, || job(context)),
            Work::Local => &self.local,
            Work::Metadata => &self.metadata,
            Work::Data => &self.data,
            Work::AfterOthers => &self.after_others,
        };
        let (context, asked, span) = (Arc::clone(context), asked(), Span::current());
        pool.spawn(move || {
            span.in_scope(|| guarded(&context, || asked_at(asked, || job(&context))));
        });
    }

    /// Runs `operation` where `work` says and, if it would have to wait there for the store, again where
    /// it may: where `store` says, or with the data if a file has to be copied. Then has it answered.
    pub(super) fn attempt<T>(
        self: &Arc<Self>,
        work: Work,
        store: Work,
        context: &Arc<Context>,
        operation: impl Fn(&Context) -> Result<T> + Send + 'static,
        answer: impl FnOnce(&Context, Result<T>) + Send + 'static,
    ) {
        let answer = move |context: &Context, result| {
            answer(context, result);
            tracing::debug!("answered");
        };
        if !matches!(work, Work::Here | Work::Local) {
            return self.run(work, context, move |context| answer(context, operation(context)));
        }
        let pools = Arc::clone(self);
        let same = Arc::clone(context);
        self.run(work, context, move |context| {
            let result = without_waiting(|| operation(context));
            let elsewhere = match &result {
                Err(Error::WouldCopy) => Work::Data,
                Err(error) if error.is_would_wait() => store,
                _ => return answer(context, result),
            };
            tracing::debug!("waits for the store");
            pools.run(elsewhere, &same, move |context| answer(context, operation(context)));
        });
    }
}

/// Runs `job`. A panic ends the request (its reply, dropped, tells the kernel EIO), not the mount.
pub(super) fn guarded(context: &Context, job: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(job)).is_err() {
        context.faults.record(&"a request failed on a bug of ours and was answered EIO");
    }
}
