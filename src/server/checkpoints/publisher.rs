//! Who makes backups of checkpoints: one after the other, on a thread that there is once there is one to make.
//!
//! The queue is the manifest's: what is to be published is written there with the checkpoint, so that the server may be
//! killed, and the next one goes on. A checkpoint is published as the tree that its layers are, over what of that is in the
//! bucket already. No other has to be published before. What fails is tried again after pauses that grow, unless it will
//! fail until somebody does something.

use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::layers::{Layers, Manifest, Point, Publish, PublishState};
use super::background::Background;
use super::making::{Making, Target};
use super::published::{Outcome, Publishing, PublishingReport, Waited};
use super::since_epoch_ms;
use crate::backup::{BackupId, Backups, CreateProgress, PublishRequest, start_runtime};
use crate::failure::{Code, Failure};
use parking_lot::{Condvar, Mutex, MutexGuard};

/// The first pause after a failure; each is twice as long as that before.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// How often that is tried of which it is not known whether it passes.
const TRIES: u32 = 4;

/// How long who asks for a backup waits until he is told how far it is.
const TELL_AFTER: Duration = Duration::from_millis(200);

/// How long a backup that is called off has to remove what was sent of it.
const CALL_OFF: Duration = Duration::from_secs(10);

/// How many backups that were made, or not, are remembered for those who wait for them.
const REMEMBERED: usize = 64;

/// Publishes the checkpoints of one mount.
pub(super) struct Publisher {
    background: Arc<Background>,
    target: Target,
    state: Mutex<State>,
    /// For the thread: there may be something to do.
    wake: Condvar,
    /// For who waits: something was done.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    current: Option<Current>,
    /// Of these, an earlier server may have left something in the bucket.
    left: HashSet<BackupId>,
    /// These are not to be begun, as somebody is about to forget them.
    held: HashSet<BackupId>,
    tries: HashMap<BackupId, Tries>,
    /// Failures in a row.
    failures: u32,
    not_before: Option<Instant>,
    /// What was made last, or failed for good.
    done: VecDeque<(BackupId, Result<Outcome, Failure>)>,
    ended: bool,
    thread: Option<JoinHandle<()>>,
}

struct Current {
    id: BackupId,
    progress: Arc<CreateProgress>,
}

/// What failed so far.
struct Tries {
    count: u32,
    why: String,
}

impl Publisher {
    pub(super) fn new(background: Arc<Background>, target: Target) -> Arc<Self> {
        let pending = pending(&background.seen()).map(|point| point.id.clone()).collect();
        let state = Mutex::new(State { left: pending, ..State::default() });
        let (wake, changed) = (Condvar::new(), Condvar::new());
        let this = Arc::new(Self { background, target, state, wake, changed });
        this.again();
        this
    }

    /// Says that there is something to publish.
    pub(super) fn wake(self: &Arc<Self>) {
        if pending(&self.background.seen()).next().is_none() {
            return;
        }
        let mut state = self.state.lock();
        self.wake.notify_one();
        if state.thread.is_some() || state.ended {
            return;
        }
        let this = Arc::clone(self);
        let thread = std::thread::Builder::new().name("thawfs-publish".into());
        match thread.spawn(move || this.run()) {
            Ok(thread) => state.thread = Some(thread),
            // The next one tries again.
            Err(error) => tracing::warn!("checkpoints are not published yet: {error}"),
        }
    }

    /// Tries again at once what has failed.
    pub(super) fn again(self: &Arc<Self>) {
        if self.background.seen().points().iter().any(has_failed)
            && let Some(mut layers) = self.background.layers()
        {
            self.queue_failed(&mut layers);
            self.background.changed(&layers);
        }
        self.wake();
    }

    fn queue_failed(&self, layers: &mut Layers) {
        let manifest = Arc::clone(layers.manifest());
        for point in manifest.points().iter().filter(|point| has_failed(point)) {
            layers.set_publish(&point.id, PublishState::Pending);
        }
        self.state.lock().done.retain(|(_, done)| done.is_ok());
    }

    fn run(&self) {
        while let Some((point, publish, progress)) = self.take() {
            let id = point.id.clone();
            let work = || self.publish(&point, &publish, Arc::clone(&progress));
            let done = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
                Err(Failure::new(Code::Failed, "publishing panicked; please report this"))
            });
            let is_off = progress.cancel().load(Ordering::Relaxed);
            self.settle(id, &publish, done, is_off);
        }
    }

    /// The next one to publish, once it is time; `None` at the end.
    fn take(&self) -> Option<(Point, Publish, Arc<CreateProgress>)> {
        let mut state = self.state.lock();
        loop {
            if state.ended {
                return None;
            }
            let seen = self.background.seen();
            let open = pending(&seen).filter(|point| !state.held.contains(&point.id));
            // Somebody waits for what is there for that alone. What has failed is no others' business.
            let next = open.min_by_key(|point| {
                let is_passing = point.publish.as_ref().is_some_and(|publish| publish.passing);
                (state.tries.get(&point.id).map_or(0, |tries| tries.count), !is_passing)
            });
            let Some(point) = next else {
                self.wake.wait(&mut state);
                continue;
            };
            if let Some(time) = state.not_before.filter(|time| *time > Instant::now()) {
                self.wake.wait_until(&mut state, time);
                continue;
            }
            let Some(publish) = point.publish.clone() else { continue };
            let progress = Arc::new(CreateProgress::default());
            state.current = Some(Current { id: point.id.clone(), progress: Arc::clone(&progress) });
            return Some((point.clone(), publish, progress));
        }
    }

    fn publish(
        &self,
        point: &Point,
        publish: &Publish,
        progress: Arc<CreateProgress>,
    ) -> Result<Outcome, Failure> {
        let id = &point.id;
        let Target { bucket, runtime, .. } = &self.target;
        // What is in a directory needs no requests, but somebody who waits.
        let own = if runtime.is_none() { Some(start_runtime()?) } else { None };
        let runtime = own.as_ref().map(|own| own.handle()).or(runtime.as_ref());
        let runtime = runtime.ok_or_else(|| Failure::new(Code::Failed, "the mount is ending"))?;
        // Anew each time: keys may be others by now.
        let backups = &runtime.block_on(Backups::open(bucket))?;
        if self.state.lock().left.contains(id) {
            if let Some(metadata) = runtime.block_on(backups.resume(id))? {
                return Ok(Outcome::found(&metadata));
            }
            self.state.lock().left.remove(id);
            if publish.passing {
                // Who wanted it was told that it failed.
                return Err(Failure::new(Code::BackupCreateFailed, "the server was ended"));
            }
        }
        let request = PublishRequest {
            id: Some(id.clone()),
            name: publish.name.clone().or_else(|| point.name.clone()),
            ttl: publish.ttl,
            whole: publish.whole,
            ..PublishRequest::new(&publish.dir)
        };
        let (background, target) = (&self.background, &self.target);
        Making { background, target, runtime, backups, point, request, progress }.make()
    }

    /// Takes over what has become of one.
    fn settle(
        &self,
        id: BackupId,
        publish: &Publish,
        done: Result<Outcome, Failure>,
        is_off: bool,
    ) {
        let next = match &done {
            Ok(outcome) => {
                tracing::info!("checkpoint {id} is in the bucket");
                let (at_ms, bytes) = (since_epoch_ms(), outcome.size_bytes);
                Some(PublishState::Published { at_ms, bytes })
            }
            Err(_) if is_off => None,
            Err(failure) => {
                let tried = self.state.lock().tries.get(&id).map_or(0, |tries| tries.count) + 1;
                let is_final = publish.passing || !may_pass(failure, tried);
                let again = if is_final { "" } else { ", and is tried again" };
                tracing::warn!("checkpoint {id} is not in the bucket{again}: {failure}");
                is_final.then(|| PublishState::Failed { why: failure.to_string() })
            }
        };
        let is_final = next.is_some();
        // After the end, what is written down stays as it is.
        if let Some(next) = next
            && let Some(mut layers) = self.background.layers()
        {
            layers.set_publish(&id, next);
            if done.is_ok() {
                // The bucket takes what it has refused, it may be, or keys are others by now.
                self.queue_failed(&mut layers);
            }
            self.background.changed(&layers);
        }
        // What was kept for us may be of no use any more.
        self.background.tidy_later();
        let mut state = self.state.lock();
        state.current = None;
        match done {
            Err(failure) if !is_off && !is_final => {
                let pause = FIRST_PAUSE.saturating_mul(1 << state.failures.min(16));
                state.failures += 1;
                state.not_before = Some(Instant::now() + pause.min(LONGEST_PAUSE));
                let tries = state.tries.entry(id).or_insert(Tries { count: 0, why: String::new() });
                (tries.count, tries.why) = (tries.count + 1, failure.to_string());
            }
            done => {
                state.tries.remove(&id);
                if done.is_ok() {
                    (state.failures, state.not_before) = (0, None);
                }
                if is_final {
                    state.done.push_back((id, done));
                    if state.done.len() > REMEMBERED {
                        state.done.pop_front();
                    }
                }
            }
        }
        self.changed.notify_all();
    }

    /// Has nothing more published of this, if it is not in the bucket already, until [`Self::release`].
    ///
    /// # Errors
    /// [`Code::Busy`] where what was sent cannot be removed in time.
    pub(super) fn hold(&self, id: &BackupId) -> Result<(), Failure> {
        let mut state = self.state.lock();
        state.held.insert(id.clone());
        match self.call_off(&mut state, Some(id)) {
            true => Ok(()),
            false => {
                state.held.remove(id);
                let message = format!("{id} is being published, which does not end at once");
                Err(Failure::new(Code::Busy, message).hint("try again"))
            }
        }
    }

    pub(super) fn release(&self, id: &BackupId) {
        let mut state = self.state.lock();
        state.held.remove(id);
        self.wake.notify_one();
        // Who waits for it is told that it is gone.
        self.changed.notify_all();
    }

    /// Calls off what is published, if that is `which` or may be any. Says whether it has ended.
    fn call_off(&self, state: &mut MutexGuard<'_, State>, which: Option<&BackupId>) -> bool {
        let until = Instant::now() + CALL_OFF;
        loop {
            let current = state.current.as_ref();
            let meant = current.filter(|it| which.is_none_or(|which| it.id == *which));
            let Some(current) = meant else { return true };
            current.progress.cancel().store(true, Ordering::Relaxed);
            if self.changed.wait_until(state, until).timed_out() {
                return false;
            }
        }
    }

    /// What has become of a point, or how far it is after a moment.
    pub(super) fn wait(&self, id: &BackupId) -> Waited {
        let until = Instant::now() + TELL_AFTER;
        let mut state = self.state.lock();
        loop {
            if let Some((_, done)) = state.done.iter().rev().find(|(done, _)| done == id) {
                return match done.clone() {
                    Ok(outcome) => Waited::Done(outcome),
                    Err(failure) => Waited::Failed(failure),
                };
            }
            let seen = self.background.seen();
            let point = seen.point(id);
            let is_current = state.current.as_ref().is_some_and(|current| current.id == *id);
            match point.and_then(|point| point.publish.as_ref()).map(|it| &it.state) {
                // One that is there for its backup alone goes just before it is told that that is made.
                None if is_current => {}
                None => return Waited::Gone,
                Some(PublishState::Published { bytes, .. }) => {
                    return Waited::Done(Outcome { size_bytes: *bytes, ..Outcome::default() });
                }
                Some(PublishState::Failed { why }) => {
                    return Waited::Failed(Failure::new(Code::BackupCreateFailed, why));
                }
                Some(PublishState::Pending) if state.ended => return Waited::Gone,
                Some(PublishState::Pending) => {}
            }
            if self.changed.wait_until(&mut state, until).timed_out() {
                return Waited::Waiting(state.of_pending(id));
            }
        }
    }

    /// How far the publishing of a point is.
    pub(super) fn told(&self, point: &Point) -> Option<Publishing> {
        told(point, |id| self.state.lock().of_pending(id))
    }

    /// For `status`.
    pub(super) fn report(&self) -> PublishingReport {
        let seen = self.background.seen();
        let mut report = PublishingReport::of(&seen);
        let state = self.state.lock();
        report.now = state.current.as_ref().map(|current| current.id.clone());
        report.bytes_sent = state.current.as_ref().map_or(0, |it| it.progress.bytes_sent());
        let tries = state.tries.values().max_by_key(|tries| tries.count);
        report.last = tries.map(|tries| tries.why.clone()).or(report.last);
        report
    }

    /// Publishes nothing more. What is being published is called off, and is for the next server to begin again.
    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        self.wake.notify_one();
        self.changed.notify_all();
        let has_ended = self.call_off(&mut state, None);
        let thread = state.thread.take();
        drop(state);
        match thread {
            Some(thread) if has_ended => {
                // It catches its own panics.
                let _ = thread.join();
            }
            Some(_) => tracing::warn!("what was sent of a checkpoint is still in the bucket"),
            None => {}
        }
    }
}

impl State {
    /// How far it is with a point that is yet to be published.
    fn of_pending(&self, id: &BackupId) -> Publishing {
        match self.current.as_ref().filter(|current| current.id == *id) {
            Some(Current { progress, .. }) => Publishing::Begun {
                packed_bytes: progress.bytes_packed(),
                total_bytes: progress.bytes_total(),
                sent_bytes: progress.bytes_sent(),
            },
            None => Publishing::Queued { why: self.tries.get(id).map(|tries| tries.why.clone()) },
        }
    }
}

/// How far the publishing of a point is; `of_pending` knows of those that are yet to be published.
pub(super) fn told(
    point: &Point,
    of_pending: impl FnOnce(&BackupId) -> Publishing,
) -> Option<Publishing> {
    Some(match &point.publish.as_ref()?.state {
        PublishState::Pending => of_pending(&point.id),
        PublishState::Published { at_ms, bytes } => {
            Publishing::Published { at_ms: *at_ms, size_bytes: *bytes }
        }
        PublishState::Failed { why } => Publishing::Failed { why: why.clone() },
    })
}

fn has_failed(point: &Point) -> bool {
    let state = point.publish.as_ref().map(|publish| &publish.state);
    matches!(state, Some(PublishState::Failed { .. }))
}

/// The oldest first.
fn pending(manifest: &Manifest) -> impl Iterator<Item = &Point> {
    manifest.points().iter().filter(|point| point.is_pending())
}

/// Whether what has failed so many times may go well the next time.
fn may_pass(failure: &Failure, tried: u32) -> bool {
    let lasts = matches!(
        failure.code,
        Code::AccessDenied
            | Code::NotFound
            | Code::InvalidBackupConfig
            | Code::Unsupported
            | Code::Usage
    );
    failure.passes || !lasts && tried < TRIES
}
