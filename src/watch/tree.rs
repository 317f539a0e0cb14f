//! A tree of directories that inotify watches, one by one, and the log of what changes in it.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};

use self::nodes::Nodes;
use self::work::{Scope, Work};
use super::inotify::{Event, Hub, Receiver};
use super::log::{ChangeLog, Limits, Reader};

mod events;
mod nodes;
mod reading;
mod renames;
mod settle;
mod work;

/// Many trees may be watched, so each keeps less than a mount does.
const LIMITS: Limits = Limits { memory: 256 << 10, segment: 128 << 10, segments: 512 };

/// How many events may wait, some 100 bytes each, before it is as if the kernel had no room for more.
const MOST_WAITING: usize = 1 << 18;

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
                is_over: AtomicBool::new(false),
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
        // What has come meanwhile waits for this.
        hub.call(tree.receiver());
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
        !self.scope.is_over.load(Ordering::Acquire)
            && identity(dir).is_ok_and(|id| id == self.scope.id)
    }
}

impl Receiver for Tree {
    fn push(&self, event: Event) {
        let mut inbox = self.inbox.lock();
        if inbox.len() < MOST_WAITING {
            inbox.push_back(event);
        } else {
            inbox.clear();
            inbox.push_back(event.overflow());
        }
    }

    fn pump(self: Arc<Self>, hub: &Hub) -> Option<Instant> {
        // Whoever is at it since the tree began has this called again.
        let nodes = self.nodes.try_lock()?;
        let delivered = hub.delivered();
        let receiver = self.receiver();
        let mut work = self.work(hub, &receiver, nodes);
        let pair = work.run();
        let doubts = work.settle(pair.is_none().then_some(delivered));
        [pair, doubts].into_iter().flatten().min()
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
