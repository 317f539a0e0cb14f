//! A tree of directories that inotify watches, one by one, and the log of what changes in it.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};

use super::inotify::{Event, Hub, Pumped, Receiver};
use super::log::{ChangeLog, Limits, Reader};
use super::nodes::Nodes;
use super::work::{Scope, Work};

/// Many trees may be watched, so each keeps less than a mount does.
const LIMITS: Limits = Limits { memory: 256 << 10, segment: 128 << 10, segments: 512 };

/// Watches `dir`, with all that is in it if it is `recursive`, for as long as the first of what it gives is held.
///
/// # Errors
/// Where there is no such directory, or the kernel grants no more watches.
pub(crate) fn watch(dir: &Path, recursive: bool) -> io::Result<(Arc<Tree>, Reader)> {
    static TREES: Mutex<BTreeMap<(PathBuf, bool), Weak<Tree>>> = Mutex::new(BTreeMap::new());
    let key = (dir.to_owned(), recursive);
    let known = TREES.lock().get(&key).and_then(Weak::upgrade);
    if let Some(tree) = known.filter(|tree| tree.is_at(dir)) {
        let reader = tree.subscribe()?;
        return Ok((tree, reader));
    }
    let (tree, reader) = Tree::start(&Hub::get()?, dir, recursive)?;
    let mut trees = TREES.lock();
    trees.retain(|_, tree| tree.strong_count() > 0);
    trees.insert(key, Arc::downgrade(&tree));
    Ok((tree, reader))
}

/// A watched tree.
pub(crate) struct Tree {
    scope: Scope,
    hub: Weak<Hub>,
    /// Events that are yet to be looked at.
    inbox: Mutex<VecDeque<Event>>,
    nodes: Mutex<Nodes>,
}

impl Tree {
    /// Watches `dir` from now on.
    fn start(hub: &Arc<Hub>, dir: &Path, recursive: bool) -> io::Result<(Arc<Self>, Reader)> {
        let tree = Arc::new(Self {
            scope: Scope {
                dir: dir.to_owned(),
                id: identity(dir)?,
                recursive,
                log: Arc::new(ChangeLog::new(LIMITS, Some(tempfile::tempfile))),
            },
            hub: Arc::downgrade(hub),
            inbox: Mutex::default(),
            nodes: Mutex::default(),
        });
        hub.join(tree.receiver());
        let reader = {
            let receiver = tree.receiver();
            let mut work = tree.work(hub, &receiver, tree.nodes.lock());
            work.begin()?;
            tree.subscribe()?
        };
        while let Some(when) = Arc::clone(&tree).pump(hub).again_at {
            std::thread::sleep(when.saturating_duration_since(Instant::now()));
        }
        Ok((tree, reader))
    }

    fn receiver(self: &Arc<Self>) -> Weak<dyn Receiver> {
        let weak: Weak<Self> = Arc::downgrade(self);
        weak
    }

    fn work<'a>(
        &'a self,
        hub: &'a Hub,
        receiver: &'a Weak<dyn Receiver>,
        nodes: MutexGuard<'a, Nodes>,
    ) -> Work<'a> {
        Work { scope: &self.scope, inbox: &self.inbox, receiver, hub, nodes }
    }

    fn subscribe(&self) -> io::Result<Reader> {
        Ok(self.scope.log.subscribe(None)?.0)
    }

    /// Whether it is still a tree of what is at `dir`, and is watched.
    fn is_at(&self, dir: &Path) -> bool {
        self.nodes.lock().root.is_some() && identity(dir).is_ok_and(|id| id == self.scope.id)
    }
}

impl Receiver for Tree {
    fn push(&self, event: Event) {
        self.inbox.lock().push_back(event);
    }

    fn pump(self: Arc<Self>, hub: &Hub) -> Pumped {
        loop {
            let Some(nodes) = self.nodes.try_lock() else {
                return Pumped { is_waiting: false, again_at: None };
            };
            let delivered = hub.delivered();
            let receiver = self.receiver();
            let mut work = self.work(hub, &receiver, nodes);
            let again_at = work.run();
            if again_at.is_none() {
                work.forget_seen(delivered);
            }
            let is_waiting = again_at.is_some() || !work.nodes.seen.is_empty();
            drop(work);
            if again_at.is_some() || self.inbox.lock().is_empty() {
                return Pumped { is_waiting, again_at };
            }
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let Some(hub) = self.hub.upgrade() else { return };
        let nodes = std::mem::take(self.nodes.get_mut());
        let gone: Weak<dyn Receiver> = Weak::<Self>::new();
        for watch in nodes.watches.into_keys() {
            hub.remove(&gone, watch);
        }
    }
}

fn identity(dir: &Path) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::stat(dir)?;
    Ok((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests;
