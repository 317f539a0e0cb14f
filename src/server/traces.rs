//! Traces of a mount: what programs read first in the last one is fetched ahead, and what they read first in this
//! one is kept for the next. With `--fill` the rest of the archive follows.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::backup::OpenArchive;
use crate::cache::{RemoteBlob, Trace, Warm, Warming};
use crate::store::{GetRange, Object, ReadRanges};

/// When a trace is kept the first time, should the server not live to see the unmount.
const KEPT_AFTER: Duration = Duration::from_secs(60);

/// How long an unmount may wait for a trace to reach the bucket.
const SHARED_WITHIN: Duration = Duration::from_secs(5);

/// The thread that does it.
pub(super) struct Traces {
    warming: Arc<Warming>,
    end: Sender<()>,
    thread: JoinHandle<()>,
}

/// What the thread works on.
struct Work {
    remote: Arc<RemoteBlob>,
    /// Where the archive's trace is in the bucket, if it can be there.
    shared: Option<Object>,
    /// Whether to put it there.
    share: bool,
    warming: Arc<Warming>,
    fill: Option<u64>,
}

/// The best trace there is.
struct Known {
    trace: Option<Trace>,
    /// Whether the bucket has it.
    in_bucket: bool,
}

impl Traces {
    /// Starts fetching what was read first the last time, and then, if `fill` says how many bytes per
    /// second (0 for any), all the rest. With `share`, what is recorded goes into the bucket, too.
    /// `None` where there is no disk cache to fetch to.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(super) fn start(
        opened: &OpenArchive,
        share: bool,
        fill: Option<u64>,
    ) -> io::Result<Option<Self>> {
        let Some(remote) = opened.remote.clone().filter(|remote| remote.has_disk()) else {
            return Ok(None);
        };
        let warming = Arc::new(Warming::default());
        let shared = opened.trace.clone();
        let work = Work { remote, shared, share, warming: Arc::clone(&warming), fill };
        let (end, ended) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("thawfs-traces".into())
            .spawn(move || work.run(&ended))?;
        Ok(Some(Self { warming, end, thread }))
    }

    /// Stops fetching, and keeps what was recorded.
    pub(super) fn finish(self) {
        self.warming.stop.store(true, Ordering::Relaxed);
        drop(self.end);
        // It has nothing to say, and does not panic.
        let _ = self.thread.join();
    }
}

impl Work {
    fn run(&self, ended: &Receiver<()>) {
        let started = Instant::now();
        let mut known = Known { trace: self.remote.kept_trace(), in_bucket: false };
        if known.trace.is_none()
            && let Some(trace) = self.shared.as_ref().and_then(|object| self.download(object))
        {
            // For a mount that will not reach the bucket.
            self.keep(&trace);
            known = Known { trace: Some(trace), in_bucket: true };
        }
        if let Some(trace) = &known.trace {
            self.warm(&Warm::Trace(trace.clone()), "what was read first the last time", 0);
        }
        std::thread::scope(|scope| {
            if let Some(rate) = self.fill {
                let fill = move || self.warm(&Warm::All, "the rest of the archive", rate);
                if let Err(error) = std::thread::Builder::new().spawn_scoped(scope, fill) {
                    tracing::warn!("the rest of the archive is not fetched ahead: {error}");
                }
            }
            let left = KEPT_AFTER.saturating_sub(started.elapsed());
            if ended.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
                self.save(&mut known);
                // Nothing is sent: this ends when the sender is dropped.
                let _ = ended.recv();
            }
            self.save(&mut known);
        });
    }

    fn warm(&self, what: &Warm, shown: &str, rate: u64) {
        self.warming.bytes_per_second.store(rate, Ordering::Relaxed);
        let before = self.warming.fetched.load(Ordering::Relaxed);
        let result = self.remote.warm(what, &self.warming);
        let bytes = self.warming.fetched.load(Ordering::Relaxed) - before;
        match result {
            Ok(()) => tracing::info!("fetched ahead: {shown}, {bytes} bytes"),
            Err(_) if self.warming.stop.load(Ordering::Relaxed) => {}
            Err(error) => tracing::warn!("cannot fetch ahead {shown}: {error}"),
        }
    }

    /// Keeps what was read so far, unless it says less than what is known: a mount that only looked at
    /// a file or two is not what the next one will be like.
    fn save(&self, known: &mut Known) {
        let seen = self.remote.trace().filter(|seen| match &known.trace {
            Some(known) => known != seen && seen.chunks().saturating_mul(2) >= known.chunks(),
            None => true,
        });
        if let Some(seen) = seen {
            self.keep(&seen);
            *known = Known { trace: Some(seen), in_bucket: false };
        }
        if self.share
            && !known.in_bucket
            && let (Some(object), Some(trace)) = (&self.shared, &known.trace)
        {
            self.upload(object, trace);
            known.in_bucket = true;
        }
    }

    fn keep(&self, trace: &Trace) {
        if let Err(error) = self.remote.keep_trace(trace) {
            tracing::warn!("the trace is not kept: {error}");
        }
    }

    fn download(&self, object: &Object) -> Option<Trace> {
        let request = object.get_whole(Trace::LIMIT);
        match self.remote.wait_for(self.warming.unless_stopped(request))? {
            Ok(json) => Trace::from_json(&json),
            Err(error) => {
                tracing::debug!("there is no trace in the bucket: {error}");
                None
            }
        }
    }

    fn upload(&self, object: &Object, trace: &Trace) {
        let archive = self.remote.object();
        let share = async {
            // A backup that was deleted meanwhile shall not come back as a trace of it.
            let first = GetRange::Between(0..1);
            archive.get_range(first, self.remote.etag(), 1).await?;
            let json = serde_json::to_vec(trace).unwrap_or_default();
            object.put(Bytes::from(json)).await
        };
        let shared =
            self.remote.wait_for(async { tokio::time::timeout(SHARED_WITHIN, share).await });
        match shared {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!("the trace is not shared as {}: {error}", object.name())
            }
            Err(_) => tracing::warn!("the trace is not shared as {}: no answer", object.name()),
        }
    }
}
