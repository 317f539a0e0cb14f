//! What follows a change of layers, on a thread of its own, which there is once it is needed.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::super::layers::{Facts, Layers, Manifest};
use super::merger::Merger;
use crate::failure::{Code, Failure};
use crate::overlay::Overlay;

/// How long what was put aside is left where it is in use.
const IN_USE: Duration = Duration::from_secs(1);

/// The layers of one mount, and who tidies them.
pub(super) struct Background {
    /// What is mounted.
    pub(super) tree: Weak<Overlay>,
    pub(super) layers: Mutex<Layers>,
    /// What there was after the last change, for who does not wait for the next.
    seen: Mutex<Arc<Manifest>>,
    state: Mutex<State>,
    wake: Condvar,
    /// Taken by who writes the manifest without the layers.
    pub(super) flushing: Mutex<()>,
    /// Held by those who want the file system at rest for a moment.
    resting: Arc<()>,
    pub(super) merger: Mutex<Merger>,
    /// Whether somebody has forgotten checkpoints since layers were last merged.
    wants_room: AtomicBool,
}

/// What is left to tidy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Nothing,
    /// Something that can be done at once.
    More,
    /// Something that somebody is in the middle of using.
    InUse,
    /// Something for which there was no room.
    NoRoom,
}

/// How long until that is tried again for which there was no room: at first, and at most.
const AGAIN: Duration = Duration::from_secs(5);
const AT_LAST: Duration = Duration::from_mins(5);

/// How long a sync waits for those at most, and how often it looks.
const REST: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(5);

#[derive(Default)]
struct State {
    /// There is something to do.
    wanted: bool,
    ended: bool,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    pub(super) fn new(layers: Layers, tree: Weak<Overlay>) -> Self {
        let seen = Mutex::new(Arc::clone(layers.manifest()));
        let (layers, state) = (Mutex::new(layers), Mutex::default());
        Self {
            tree,
            layers,
            seen,
            state,
            wake: Condvar::new(),
            flushing: Mutex::default(),
            resting: Arc::default(),
            merger: Mutex::default(),
            wants_room: AtomicBool::new(false),
        }
    }

    /// Begins with what an earlier server has left to do.
    pub(super) fn begin(self: &Arc<Self>) {
        let layers = self.layers.lock();
        if layers.is_begun() || layers.has_discarded() {
            self.changed(&layers);
        }
    }

    /// The layers, once nobody else has them; `None` after the end.
    pub(super) fn layers(&self) -> Option<MutexGuard<'_, Layers>> {
        let layers = self.layers.lock();
        (!self.state.lock().ended).then_some(layers)
    }

    /// What there was after the last change, with the forks that there are now, if nothing is being changed.
    pub(super) fn seen(self: &Arc<Self>) -> Arc<Manifest> {
        let seen = Arc::clone(&self.seen.lock());
        if seen.forks().is_empty() {
            return seen;
        }
        if let Some(mut layers) = self.layers.try_lock()
            && !self.state.lock().ended
        {
            self.see_forks(&mut layers);
        }
        Arc::clone(&self.seen.lock())
    }

    /// Looks which forks there are.
    pub(super) fn see_forks(self: &Arc<Self>, layers: &mut Layers) {
        let before = Arc::clone(layers.manifest());
        if let Err(failure) = layers.see_forks() {
            tracing::warn!("which forks there are is not known: {failure}");
        }
        match before.forks() == layers.manifest().forks() {
            // They may have been looked at since this was last shown.
            true => self.show(layers),
            false => self.changed(layers),
        }
    }

    /// As long as it is held, nothing is synced that nobody waits for; but not for long.
    pub(super) fn rest(&self) -> Arc<()> {
        Arc::clone(&self.resting)
    }

    /// What there is has changed, in a way that leaves nothing to tidy.
    pub(super) fn show(&self, layers: &Layers) {
        *self.seen.lock() = Arc::clone(layers.manifest());
    }

    /// Whether nothing is to be begun any more.
    pub(super) fn is_ending(&self) -> bool {
        self.state.lock().ended
    }

    /// Says that there is something to tidy.
    pub(super) fn changed(self: &Arc<Self>, layers: &Layers) {
        *self.seen.lock() = Arc::clone(layers.manifest());
        let mut state = self.state.lock();
        if state.ended {
            return;
        }
        state.wanted = true;
        self.wake.notify_one();
        if state.thread.is_none() {
            let this = Arc::clone(self);
            let thread = std::thread::Builder::new().name("thawfs-layers".into());
            match thread.spawn(move || this.run()) {
                Ok(thread) => state.thread = Some(thread),
                // The next change tries again.
                Err(error) => tracing::warn!("layers are not tidied yet: {error}"),
            }
        }
    }

    /// Says that checkpoints were forgotten: what could not be merged may be now.
    pub(super) fn forgotten(self: &Arc<Self>, layers: &Layers) {
        self.wants_room.store(true, Ordering::Release);
        self.changed(layers);
    }

    /// Tidies again, where something was put aside that could not be removed then, or there are layers, which may be to be
    /// merged.
    pub(super) fn tidy_later(self: &Arc<Self>) {
        let layers = self.layers.lock();
        if layers.has_discarded() || layers.manifest().frozen_layers().next().is_some() {
            self.changed(&layers);
        }
    }

    fn run(&self) {
        let (mut next, mut without_room) = (Next::Nothing, AGAIN);
        loop {
            let after = match next {
                Next::Nothing => None,
                Next::More => Some(Duration::ZERO),
                Next::InUse => Some(IN_USE),
                Next::NoRoom => Some(without_room),
            };
            without_room = match next {
                Next::NoRoom => (without_room * 2).min(AT_LAST),
                _ => AGAIN,
            };
            if !self.wait(after) {
                return;
            }
            next = self.tidy();
        }
    }

    /// Waits until there is something to tidy, or for `after`. Says whether there is: not at the end.
    fn wait(&self, after: Option<Duration>) -> bool {
        let again = after.map(|after| Instant::now() + after);
        let mut state = self.state.lock();
        while !state.wanted && !state.ended {
            let merge = self.merger.lock().again();
            match again.into_iter().chain(merge).min() {
                None => self.wake.wait(&mut state),
                Some(at) => {
                    let waited = self.wake.wait_until(&mut state, at);
                    state.wanted |= waited.timed_out() && !state.ended;
                }
            }
        }
        std::mem::take(&mut state.wanted)
    }

    fn tidy(&self) -> Next {
        match self.wants_room.swap(false, Ordering::AcqRel) {
            true => self.merger.lock().begin_again(),
            false => self.merger.lock().look_again_in_time(),
        }
        if let Some(mut layers) = self.layers() {
            if let Err(failure) = layers.see_forks() {
                tracing::warn!("which forks there are is not known: {failure}");
            }
            self.show(&layers);
        }
        let prepared = self.prepare();
        let until = Instant::now() + REST;
        while Arc::strong_count(&self.resting) > 1 && Instant::now() < until {
            std::thread::sleep(LOOK);
        }
        let durable = self.make_durable(true);
        let more = self.merge();
        let in_use = self.is_in_use();
        if !in_use {
            let remover = self.layers.lock().remover();
            if let Err(error) = remover.remove() {
                tracing::warn!("layers that nothing needs are not removed whole: {error}");
            }
        }
        // What was removed may have made the room for it.
        let durable = durable.or_else(|_| self.make_durable(true));
        let prepared = prepared.or_else(|_| self.prepare());
        if let Err(failure) = &durable {
            tracing::warn!("checkpoints are not known to be on disk yet: {failure}");
        }
        if let Err(failure) = &prepared {
            tracing::warn!("the next checkpoint takes longer: {failure}");
        }
        match (in_use, durable.is_ok() && prepared.is_ok()) {
            (true, _) => Next::InUse,
            (false, false) => Next::NoRoom,
            (false, true) if more => Next::More,
            (false, true) => Next::Nothing,
        }
    }

    /// Whether what was put aside is not to be removed yet.
    fn is_in_use(&self) -> bool {
        self.tree.upgrade().is_some_and(|tree| tree.has_retired_layers())
    }

    fn prepare(&self) -> Result<(), Failure> {
        match self.layers() {
            Some(mut layers) if layers.is_begun() => {
                layers.prepare().and_then(|()| layers.fill_spare())
            }
            _ => Ok(()),
        }
    }

    /// Has the disk have all points that there are, and writes down that it does; and, if asked to `measure`, how much
    /// room layers take.
    pub(super) fn make_durable(&self, measure: bool) -> Result<(), Failure> {
        let failed = |error: io::Error| {
            Failure::new(Code::Upper, format!("the upper's file system cannot be synced: {error}"))
        };
        let _one_at_a_time = self.flushing.lock();
        loop {
            let (synced, layers, syncer) = {
                let layers = self.layers.lock();
                let manifest = layers.manifest();
                let frozen = manifest.frozen_layers();
                let unknown = frozen.filter(|it| measure && manifest.bytes_of(*it).is_none());
                let unknown = unknown.map(|it| manifest.dir_of(it));
                (manifest.undurable(), unknown.collect::<Vec<_>>(), layers.syncer())
            };
            let bytes = layers.into_iter().map(|dir| (dir.serial, syncer.usage(dir))).collect();
            let Some(flush) = self.layers.lock().flushing(Facts { synced, bytes })? else {
                return Ok(());
            };
            // Nobody waits for this. What is written says of the points that the disk has them, so it has first.
            flush.write()?;
            syncer.sync().map_err(failed)?;
            if self.layers.lock().flushed(flush)? {
                syncer.sync_names().map_err(failed)?;
                *self.seen.lock() = Arc::clone(self.layers.lock().manifest());
                return Ok(());
            }
        }
    }

    /// See [`super::Checkpoints::end`].
    pub(super) fn end(&self, keep: bool) {
        // Who has them is not interrupted; who waits for them is told.
        let layers = self.layers.lock();
        let thread = {
            let mut state = self.state.lock();
            state.ended = true;
            state.wanted = false;
            self.wake.notify_one();
            state.thread.take()
        };
        drop(layers);
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the thread that tidies layers panicked");
        }
        if keep && let Err(failure) = self.make_durable(true) {
            tracing::warn!("checkpoints are not known to be on disk: {failure}");
        }
        let mut layers = self.layers.lock();
        let forks = layers.see_forks().map(|()| !layers.manifest().forks().is_empty());
        let is_forked = forks.unwrap_or_else(|failure| {
            tracing::warn!("which forks there are is not known: {failure}");
            true
        });
        if is_forked
            && !keep
            && let Err(failure) = layers.leave_to_forks()
        {
            tracing::warn!("more than what forks need is left: {failure}");
        }
        let removed = match (keep || is_forked) && !self.is_in_use() {
            true => layers.remover().remove(),
            false => Ok(()),
        };
        if let Err(error) = layers.finish().and(removed) {
            tracing::warn!("layers that nothing needs are not removed whole: {error}");
        }
    }
}
