//! The node table: one node for every inode that the kernel holds a reference to.
//!
//! A node is kept while the kernel counts lookups of it, or while another node has its name in it. So the way
//! from any node up to the root is always known. A node of the archive alone costs 65 bytes, and more where
//! its name is long: everything else about it follows from its number.

mod orphans;

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::ffi::{OsStr, OsString};
use std::hash::BuildHasher;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};
use rustix::io::Errno;

pub(super) use self::orphans::Inside;
use super::aliases::Aliases;
use super::dense::Dense;
use super::error::{Error, Result};
use super::ids::Ids;
use super::name::Name;
use super::node::{Dentry, Snapshot, UpperState};
use super::parents::UpperParents;
use super::stack::Becomes;
use crate::types::Ino;

/// Siblings are picked together if their numbers differ in no more than these low bits. In the archive they then
/// lie within 8 KiB of compressed inodes, some 2,000 to 4,000 of them.
const SIBLING_BITS: u32 = 26;

#[derive(Debug)]
struct Node {
    /// As the kernel counts them.
    lookups: u32,
    /// Nodes that have their dentry in this one.
    children: u32,
    /// Whether it does not stand for its number any more: what has that is something else since a rollback.
    is_orphan: bool,
    /// Whether it is a directory that was removed. The kernel finds nothing in it any more, whatever it is told.
    is_dead: bool,
    dentry: Dentry,
    upper: Option<Box<UpperState>>,
}

/// The node table.
#[derive(Debug)]
pub(super) struct Nodes {
    table: Mutex<Table>,
    ids: Arc<Ids>,
}

#[derive(Debug)]
struct Table {
    nodes: Dense<Node>,
    /// Inode number in the upper → node, for nodes that keep a lower number.
    copied: HashMap<u64, Ino>,
    /// Where files in the upper are that have no node, once somebody asked.
    upper_parents: Option<UpperParents>,
    aliases: Aliases,
    ids: Arc<Ids>,
}

impl Nodes {
    /// A table with only the root, which stays.
    pub(super) fn new(root: Option<UpperState>, ids: Arc<Ids>) -> Self {
        let root = Node { lookups: 1, ..Node::new(Dentry::Nowhere, root) };
        let mut nodes = Dense::new();
        // There is room for the first.
        let _ = nodes.insert(Ino::ROOT, root);
        let (copied, aliases) = (HashMap::new(), Aliases::default());
        let same = Arc::clone(&ids);
        let table = Table { nodes, copied, upper_parents: None, aliases, ids: same };
        Self { table: Mutex::new(table), ids }
    }

    /// Whether there is a node of `ino`.
    pub(super) fn is_known(&self, ino: Ino) -> bool {
        self.table.lock().nodes.contains(ino)
    }

    /// The node of `ino`, if there is one.
    pub(super) fn find(&self, ino: Ino) -> Option<Snapshot> {
        self.table.lock().nodes.get(ino).map(Node::snapshot)
    }

    /// The node of `ino`, which the kernel must have looked up.
    pub(super) fn get(&self, ino: Ino) -> Result<Snapshot> {
        self.find(ino).ok_or_else(|| unknown(ino))
    }

    /// Only the inode in the upper; cheaper than [`Self::get`] as no name is copied.
    pub(super) fn upper(&self, ino: Ino) -> Result<Option<UpperState>> {
        let table = self.table.lock();
        Ok(table.nodes.get(ino).ok_or_else(|| unknown(ino))?.upper.as_deref().cloned())
    }

    /// The number that is kept over inode `st_ino` of the upper, or of a layer.
    pub(super) fn copied_as(&self, st_ino: u64) -> Option<Ino> {
        self.table.lock().copied.get(&st_ino).copied()
    }

    /// Has what is known of each inode become what `becomes` says, once `commit` has done what makes that so. Says whether:
    /// not where one of them stays what it is.
    pub(super) fn change_all(
        &self,
        becomes: impl Fn(&UpperState) -> Becomes,
        commit: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
        let mut table = self.table.lock();
        let mut others = Vec::new();
        for (ino, node) in table.nodes.iter() {
            match node.upper.as_deref().map_or(Becomes::Same, &becomes) {
                Becomes::Same => {}
                Becomes::Other(state) => others.push((ino, state)),
                Becomes::Stays => return Ok(false),
            }
        }
        commit()?;
        for (ino, state) in others {
            let Some(node) = table.nodes.get_mut(ino) else { continue };
            let before = node.upper.replace(state);
            table.forget_copied(ino, before.as_deref());
            table.note_copied(ino);
        }
        Ok(true)
    }

    /// Shows what is known of each inode in the upper, or in a layer.
    pub(super) fn each_upper(&self, mut show: impl FnMut(&UpperState)) {
        let table = self.table.lock();
        table.nodes.iter().filter_map(|(_, node)| node.upper.as_deref()).for_each(&mut show);
    }

    /// Counts a lookup of `ino`, found at `dentry` as `upper`, and makes its node if there is none. A node
    /// that is there keeps what it knows of its inode in the upper. Says whether it has: not where the kernel has forgotten
    /// the node since it was asked for, and with it which number it stood for.
    ///
    /// # Errors
    /// `ELOOP` where `dentry` is below `ino` itself, as only a damaged archive has it.
    pub(super) fn enter(
        &self,
        ino: Ino,
        dentry: Dentry,
        upper: Option<UpperState>,
    ) -> Result<bool> {
        let mut dropped = Vec::new();
        let mut table = self.table.lock();
        if !self.ids.has(ino) {
            return Ok(false);
        }
        if let Some(parent) = dentry.parent() {
            if !table.nodes.contains(parent) {
                return Err(unknown(parent));
            }
            if table.nodes.get(ino).is_some_and(|node| node.children > 0 && node.dentry != dentry)
                && table.is_at_or_above(ino, parent)
            {
                return Err(Errno::LOOP.into());
            }
        }
        match table.nodes.get_mut(ino) {
            Some(node) => {
                node.lookups = node.lookups.saturating_add(1);
                let state = node.upper.take().or(upper.map(Box::new));
                node.upper = state;
                if ino != Ino::ROOT {
                    table.note_alias(ino, &dentry);
                    let old = table.move_to(ino, dentry);
                    table.unpin_if_named(ino);
                    if let Some(parent) = old {
                        table.collect(parent, &mut dropped);
                    }
                }
            }
            None => {
                let above = dentry.parent();
                let node = Node { lookups: 1, ..Node::new(dentry, upper) };
                table.nodes.insert(ino, node).map_err(|_| Errno::NOMEM)?;
                if let Some(parent) = above.and_then(|p| table.nodes.get_mut(p)) {
                    parent.children += 1;
                }
            }
        }
        table.note_copied(ino);
        Ok(true)
    }

    /// Counts a lookup of `ino`, of which nothing is known but its number: it was listed, and the kernel
    /// gives it back at once.
    pub(super) fn count(&self, ino: Ino) -> Result<()> {
        let mut table = self.table.lock();
        if let Some(node) = table.nodes.get_mut(ino) {
            node.lookups = node.lookups.saturating_add(1);
            return Ok(());
        }
        let node = Node { lookups: 1, ..Node::new(Dentry::Nowhere, None) };
        Ok(table.nodes.insert(ino, node).map_err(|_| Errno::NOMEM)?)
    }

    /// Counts a lookup of `ino` where it is, if it has a node with a dentry.
    pub(super) fn enter_known(&self, ino: Ino) -> bool {
        let mut table = self.table.lock();
        let Some(node) = table.nodes.get_mut(ino) else { return false };
        let is_known = ino == Ino::ROOT || node.dentry != Dentry::Nowhere;
        if is_known {
            node.lookups = node.lookups.saturating_add(1);
        }
        is_known
    }

    /// Notes that `ino`, which is reached otherwise, was looked up by `name` in `parent`.
    pub(super) fn note_alias(&self, ino: Ino, parent: Ino, name: &OsStr) {
        self.table.lock().aliases.note(ino, parent, name.as_bytes().into());
    }

    /// Notes that `ino` has no longer `name` in `parent`.
    pub(super) fn alias_gone(&self, ino: Ino, parent: Ino, name: &OsStr) {
        self.table.lock().aliases.gone(ino, parent, name.as_bytes());
    }

    /// The paths of `ino` from the root, without a slash before them, as far as its names are known: the one used last
    /// is first.
    pub(super) fn paths(&self, ino: Ino) -> Vec<Vec<u8>> {
        let table = self.table.lock();
        let others = table.aliases.of(ino).filter_map(|(parent, name)| table.path_in(parent, name));
        table.path(ino).into_iter().chain(others).collect()
    }

    /// The names of `ino`, as far as they are known, each with its directory: the one used last is first.
    pub(super) fn names(&self, ino: Ino) -> Vec<(Ino, Name)> {
        let table = self.table.lock();
        let own = table.nodes.get(ino).and_then(|node| match &node.dentry {
            Dentry::Name(parent, name) => Some((*parent, name.clone())),
            Dentry::Index | Dentry::Nowhere => None,
        });
        let others = table.aliases.of(ino).map(|(parent, name)| (parent, name.into()));
        own.into_iter().chain(others).filter(|(dir, _)| table.nodes.contains(*dir)).collect()
    }

    /// The path of `name` in directory `parent`, as [`Self::paths`].
    pub(super) fn path_in(&self, parent: Ino, name: &OsStr) -> Option<Vec<u8>> {
        self.table.lock().path_in(parent, name.as_bytes())
    }

    /// Where files in the upper are that have no node.
    pub(super) fn upper_parents(&self) -> MappedMutexGuard<'_, Option<UpperParents>> {
        MutexGuard::map(self.table.lock(), |table| &mut table.upper_parents)
    }

    /// Takes back `count` lookups of `ino`.
    pub(super) fn forget(&self, ino: Ino, count: u64) {
        let mut dropped = Vec::new();
        {
            let mut table = self.table.lock();
            if let Some(node) = table.nodes.get_mut(ino) {
                node.lookups =
                    node.lookups.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
            }
            table.collect(ino, &mut dropped);
        }
        // Pinned descriptors are closed here, outside the lock.
        drop(dropped);
    }

    /// Moves `ino` to `dentry`.
    pub(super) fn move_to(&self, ino: Ino, dentry: Dentry) {
        let mut dropped = Vec::new();
        let mut table = self.table.lock();
        if dentry != Dentry::Nowhere {
            table.note_alias(ino, &dentry);
        }
        let old = table.move_to(ino, dentry);
        if let Some(parent) = old {
            table.collect(parent, &mut dropped);
        }
    }

    /// Changes what is known of `ino`'s inode in the upper.
    pub(super) fn update(&self, ino: Ino, change: impl FnOnce(&mut UpperState)) {
        if let Some(upper) = self.table.lock().nodes.get_mut(ino).and_then(|n| n.upper.as_mut()) {
            change(upper);
        }
    }

    /// Publishes that `ino` is in the upper from now on.
    pub(super) fn publish(&self, ino: Ino, upper: UpperState) {
        let mut table = self.table.lock();
        if let Some(node) = table.nodes.get_mut(ino) {
            let before = node.upper.replace(Box::new(upper));
            table.forget_copied(ino, before.as_deref());
        }
        table.note_copied(ino);
    }

    /// Whether `name` in `parent` is where `ino` is reached.
    pub(super) fn is_at(&self, ino: Ino, parent: Ino, name: &OsStr) -> bool {
        self.table.lock().nodes.get(ino).is_some_and(|node| node.dentry.is(parent, name))
    }

    /// The directory and name of `ino`, or `None` where it has no name or is the root.
    pub(super) fn name_of(&self, ino: Ino) -> Result<Option<(Ino, OsString)>> {
        Ok(match self.get(ino)?.dentry {
            Dentry::Name(parent, name) => Some((parent, OsStr::from_bytes(&name).to_owned())),
            Dentry::Index | Dentry::Nowhere => None,
        })
    }

    /// About `count` nodes that could be dropped if the kernel forgot them. Which is left to chance: trees
    /// are walked in order again and again, and then the oldest are those that are wanted next. But
    /// siblings go together, as a directory is listed faster than its files are looked up.
    pub(super) fn pick(&self, count: usize) -> Vec<Ino> {
        let table = self.table.lock();
        let free = table.nodes.iter().filter(|(ino, node)| *ino != Ino::ROOT && node.is_free());
        let free: Vec<(Ino, Option<Ino>)> =
            free.map(|(ino, node)| (ino, node.dentry.parent())).collect();
        drop(table);
        // A fresh RandomState is seeded differently each time.
        let (chance, seed) = (count as f64 / free.len() as f64, RandomState::new());
        let below = (chance * u64::MAX as f64) as u64;
        let is_picked = |(ino, parent): &(Ino, Option<Ino>)| {
            let siblings = (parent, ino.0 >> SIBLING_BITS);
            count > 0 && seed.hash_one(siblings) <= below
        };
        free.into_iter().filter(is_picked).map(|(ino, _)| ino).collect()
    }

    /// How many nodes there are.
    pub(super) fn len(&self) -> usize {
        self.table.lock().nodes.len()
    }
}

/// The kernel asks for what it was never told of, or has forgotten.
fn unknown(ino: Ino) -> Error {
    Error::stale(format_args!("inode {ino} is not known"))
}

impl Node {
    fn new(dentry: Dentry, upper: Option<UpperState>) -> Self {
        let upper = upper.map(Box::new);
        Self { lookups: 0, children: 0, is_orphan: false, is_dead: false, dentry, upper }
    }

    /// Whether nothing but the kernel's memory of it keeps it.
    fn is_free(&self) -> bool {
        let pinned = self.upper.as_ref().is_some_and(|upper| upper.pin.is_some());
        // What a rollback took from its name the kernel may remember by that, until it is next used.
        let is_named = self.dentry != Dentry::Nowhere || self.is_orphan;
        self.children == 0 && is_named && !pinned
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot { dentry: self.dentry.clone(), upper: self.upper.as_deref().cloned() }
    }
}

impl Table {
    /// Gives `ino` another dentry; the parent it had before may now be unneeded.
    fn move_to(&mut self, ino: Ino, dentry: Dentry) -> Option<Ino> {
        let node = self.nodes.get_mut(ino)?;
        if node.dentry == dentry {
            return None;
        }
        let new = dentry.parent();
        let old = std::mem::replace(&mut node.dentry, dentry).parent();
        if new == old {
            return None;
        }
        if let Some(parent) = new.and_then(|p| self.nodes.get_mut(p)) {
            parent.children += 1;
        }
        let parent = self.nodes.get_mut(old?)?;
        parent.children = parent.children.saturating_sub(1);
        old
    }

    /// The name that `ino` has now is another than `dentry`, if it goes there without being moved.
    fn note_alias(&mut self, ino: Ino, dentry: &Dentry) {
        // The name where it goes counts as that, not once more as another.
        if let Dentry::Name(parent, name) = dentry {
            self.aliases.gone(ino, *parent, name);
        }
        if let Some(Dentry::Name(parent, name)) = self.nodes.get(ino).map(|node| &node.dentry)
            && !matches!(dentry, Dentry::Name(dir, own) if (dir, own) == (parent, name))
        {
            self.aliases.note(ino, *parent, name.clone());
        }
    }

    fn path(&self, ino: Ino) -> Option<Vec<u8>> {
        match &self.nodes.get(ino)?.dentry {
            _ if ino == Ino::ROOT => Some(Vec::new()),
            Dentry::Name(parent, name) => self.path_in(*parent, name),
            Dentry::Index | Dentry::Nowhere => None,
        }
    }

    fn path_in(&self, parent: Ino, name: &[u8]) -> Option<Vec<u8>> {
        let mut names = vec![name];
        let mut at = parent;
        while at != Ino::ROOT {
            let Dentry::Name(parent, name) = &self.nodes.get(at)?.dentry else { return None };
            names.push(name);
            at = *parent;
        }
        names.reverse();
        Some(names.join(&b'/'))
    }

    /// A node that has a name again needs no descriptor.
    fn unpin_if_named(&mut self, ino: Ino) {
        if let Some(node) = self.nodes.get_mut(ino)
            && node.dentry != Dentry::Nowhere
            && let Some(upper) = &mut node.upper
        {
            upper.pin = None;
        }
    }

    fn note_copied(&mut self, ino: Ino) {
        if ino != Ino::ROOT
            && let Some(node) = self.nodes.get(ino).filter(|node| !node.is_orphan)
            && let Some(upper) = &node.upper
            && super::ino::of_birth(upper.layer, upper.st_ino) != ino
        {
            self.copied.insert(upper.st_ino, self.ids.number_of(ino));
        }
    }

    fn forget_copied(&mut self, ino: Ino, upper: Option<&UpperState>) {
        if let Some(upper) = upper
            && self.copied.get(&upper.st_ino) == Some(&self.ids.number_of(ino))
        {
            self.copied.remove(&upper.st_ino);
        }
    }

    /// Whether `ino` is `below` or on the way from it to the root.
    fn is_at_or_above(&self, ino: Ino, below: Ino) -> bool {
        let mut at = Some(below);
        // The places form a tree, as `enter` keeps it; this bound is for the day they do not.
        for _ in 0..=self.nodes.len() {
            match at {
                None => return false,
                Some(here) if here == ino => return true,
                Some(here) => at = self.nodes.get(here).and_then(|node| node.dentry.parent()),
            }
        }
        true
    }

    /// Drops `ino` if nothing needs it, then its parent, and so on.
    fn collect(&mut self, ino: Ino, dropped: &mut Vec<Node>) {
        let mut next = Some(ino);
        while let Some(ino) = next.filter(|ino| *ino != Ino::ROOT) {
            next = None;
            if self.nodes.get(ino).is_none_or(|node| node.lookups > 0 || node.children > 0) {
                return;
            }
            if let Some(node) = self.nodes.remove(ino) {
                self.aliases.forget(ino);
                // That of an orphan is what it was before, which another may be again.
                if !node.is_orphan {
                    self.forget_copied(ino, node.upper.as_deref());
                }
                let number = self.ids.number_of(ino);
                self.ids.forget(ino);
                if let Some(parent) = node.dentry.parent() {
                    if let (Some(parents), Some(_)) = (&mut self.upper_parents, &node.upper) {
                        parents.note(number, self.ids.number_of(parent));
                    }
                    if let Some(parent) = self.nodes.get_mut(parent) {
                        parent.children = parent.children.saturating_sub(1);
                    }
                    next = Some(parent);
                }
                dropped.push(node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(parent: u64, name: &str) -> Dentry {
        Dentry::named(Ino(parent), OsStr::new(name))
    }

    fn tree() -> Nodes {
        let nodes = Nodes::new(None, Arc::default());
        nodes.enter(Ino(10), at(1, "a"), None).unwrap();
        nodes.enter(Ino(11), at(10, "b"), None).unwrap();
        nodes.enter(Ino(12), at(11, "c"), None).unwrap();
        nodes
    }

    #[test]
    fn a_parent_stays_while_something_is_placed_below_it() {
        let nodes = tree();
        nodes.forget(Ino(10), 1);
        nodes.forget(Ino(11), 1);
        assert_eq!(nodes.len(), 4);
        nodes.forget(Ino(12), 1);
        assert_eq!(nodes.len(), 1, "the root alone is left");
    }

    #[test]
    fn forget_takes_back_as_many_lookups_as_it_says() {
        let nodes = tree();
        nodes.enter(Ino(12), at(11, "c"), None).unwrap();
        nodes.forget(Ino(12), 1);
        assert!(nodes.find(Ino(12)).is_some());
        nodes.forget(Ino(12), 1);
        assert!(nodes.find(Ino(12)).is_none());
        nodes.forget(Ino(12), u64::MAX);
        nodes.forget(Ino::ROOT, u64::MAX);
        assert!(nodes.find(Ino::ROOT).is_some());
    }

    #[test]
    fn only_nodes_that_nothing_needs_are_picked() {
        let nodes = tree();
        nodes.enter(Ino(13), at(10, "d"), None).unwrap();
        nodes.enter(Ino(14), at(10, "gone"), None).unwrap();
        nodes.move_to(Ino(14), Dentry::Nowhere);
        let mut picked = nodes.pick(10);
        picked.sort_unstable();
        assert_eq!(picked, [Ino(12), Ino(13)]);
        assert!(nodes.pick(0).is_empty());
    }

    #[test]
    fn siblings_are_picked_together_and_directories_by_chance() {
        let nodes = Nodes::new(None, Arc::default());
        for dir in 100..1100 {
            nodes.enter(Ino(dir), at(1, &dir.to_string()), None).unwrap();
            for file in 0..10 {
                let ino = Ino(dir * 1000 + file);
                nodes.enter(ino, at(dir, &file.to_string()), None).unwrap();
            }
        }
        let mut picked = HashMap::<u64, usize>::new();
        for ino in nodes.pick(2500) {
            *picked.entry(ino.0 / 1000).or_default() += 1;
        }
        // Of 1,000 directories with a chance of a quarter each, give or take six standard deviations.
        assert!((168..332).contains(&picked.len()), "{} directories", picked.len());
        assert!(picked.values().all(|files| *files == 10), "{picked:?}");
        assert_eq!(nodes.pick(20_000).len(), 10_000, "the directories have files below them");
    }

    #[test]
    fn a_directory_cannot_come_to_lie_below_itself() {
        let nodes = tree();
        let error = nodes.enter(Ino(10), at(12, "again"), None).unwrap_err();
        assert!(error.is(Errno::LOOP), "{error}");
        assert_eq!(nodes.get(Ino(10)).unwrap().dentry, at(1, "a"));
    }

    #[test]
    fn moving_a_node_frees_the_parent_it_had() {
        let nodes = tree();
        nodes.forget(Ino(11), 1);
        nodes.move_to(Ino(12), at(1, "c"));
        assert!(nodes.find(Ino(11)).is_none());
        assert!(nodes.find(Ino(10)).is_some(), "still looked up");
        nodes.forget(Ino(10), 1);
        assert!(nodes.find(Ino(10)).is_none());
        assert_eq!(nodes.name_of(Ino(12)).unwrap(), Some((Ino::ROOT, "c".into())));
    }
}
