//! The directories of a watched tree as they have been told, and what is not sure of that.
//!
//! Who replays what was told has these directories at these places, always: they are changed when something is told,
//! and in no other way. Files are not remembered, but for those that are new or in doubt.

use std::collections::{BTreeMap, HashMap, HashSet};

use slab::Slab;

/// The directories, and what is known of some names in them.
#[derive(Default)]
pub(super) struct Nodes {
    pub(super) slab: Slab<Node>,
    pub(super) root: Option<usize>,
    /// The directories of a watch: more than one where an inode is mounted twice.
    pub(super) watches: HashMap<i32, Vec<usize>>,
    /// What was found in directories that were read lately.
    pub(super) seen: BTreeMap<usize, Seen>,
    /// Names of which what was told is to be compared with what is there.
    pub(super) doubts: BTreeMap<usize, BTreeMap<Vec<u8>, Doubt>>,
    /// Where directories have been found that are known by another name, by their watches. An event may say that they
    /// were moved.
    pub(super) found: HashMap<i32, (usize, Vec<u8>)>,
    /// Since when the root is not to be found, as a place behind the events of what happened by then.
    pub(super) root_lost: Option<u64>,
}

pub(super) struct Node {
    pub(super) parent: Option<usize>,
    pub(super) name: Vec<u8>,
    pub(super) watch: Watch,
    pub(super) children: BTreeMap<Vec<u8>, usize>,
}

/// How a directory is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watch {
    /// Not yet, or it may not be. Nothing has been told of what is in it.
    Not,
    /// By this watch, and it has been read since.
    By(i32),
    /// Not any more.
    Lost,
}

/// What has been told of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Nothing,
    File,
    Directory,
}

impl Told {
    /// Of what is there.
    pub(super) fn something(is_dir: bool) -> Self {
        if is_dir { Self::Directory } else { Self::File }
    }
}

/// What was found in a directory when it was read, and what events have made of that since.
pub(super) struct Seen {
    /// What is there, as told.
    pub(super) names: HashMap<Vec<u8>, Told>,
    /// Of these, what was found; its own event may come yet.
    pub(super) found: HashSet<Vec<u8>>,
    /// The place behind the last event that may be of what was found.
    pub(super) until: u64,
}

/// A name of which what was told is to be compared with what is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubt {
    pub(super) told: Told,
    /// What was found when it was looked at, if that was.
    pub(super) looked: Option<Looked>,
    /// Whether nobody could look, for want of rights.
    pub(super) is_shut: bool,
}

/// What was found when a name was looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Looked {
    pub(super) is_as_told: bool,
    /// The place behind the last event of what had happened by then.
    pub(super) until: u64,
}

impl Doubt {
    pub(super) fn of(told: Told) -> Self {
        Self { told, looked: None, is_shut: false }
    }
}

impl Nodes {
    /// A directory that is not watched yet.
    pub(super) fn insert(&mut self, parent: Option<usize>, name: &[u8]) -> usize {
        let (name, children) = (name.to_vec(), BTreeMap::new());
        let node = Node { parent, name: name.clone(), watch: Watch::Not, children };
        let node = self.slab.insert(node);
        if let Some(parent) = parent.and_then(|parent| self.slab.get_mut(parent)) {
            parent.children.insert(name, node);
        }
        node
    }

    /// A directory is watched from now on.
    pub(super) fn bind(&mut self, node: usize, watch: i32) {
        if let Some(it) = self.slab.get_mut(node) {
            it.watch = Watch::By(watch);
            self.watches.entry(watch).or_default().push(node);
        }
    }

    /// A directory is not watched any more. Gives its watch, if nobody needs it then.
    pub(super) fn unbind(&mut self, node: usize, then: Watch) -> Option<i32> {
        let Watch::By(watch) = std::mem::replace(&mut self.slab.get_mut(node)?.watch, then) else {
            return None;
        };
        self.leave(node, watch)
    }

    fn leave(&mut self, node: usize, watch: i32) -> Option<i32> {
        let nodes = self.watches.get_mut(&watch)?;
        nodes.retain(|other| *other != node);
        let is_unused = nodes.is_empty();
        is_unused.then(|| {
            self.watches.remove(&watch);
            self.found.remove(&watch);
            watch
        })
    }

    /// The directories of a watch.
    pub(super) fn of(&self, watch: Option<i32>) -> Vec<usize> {
        watch.and_then(|watch| self.watches.get(&watch)).cloned().unwrap_or_default()
    }

    /// The watch of a directory.
    pub(super) fn watch_of(&self, node: usize) -> Option<i32> {
        match self.slab.get(node)?.watch {
            Watch::By(watch) => Some(watch),
            Watch::Not | Watch::Lost => None,
        }
    }

    pub(super) fn child(&self, node: usize, name: &[u8]) -> Option<usize> {
        self.slab.get(node)?.children.get(name).copied()
    }

    /// Where a directory is: in which one, and by which name; none for the root.
    pub(super) fn place(&self, node: usize) -> Option<(usize, Vec<u8>)> {
        let node = self.slab.get(node)?;
        Some((node.parent?, node.name.clone()))
    }

    /// The path of a directory from the root.
    pub(super) fn path(&self, node: usize) -> Vec<u8> {
        let mut names = Vec::new();
        let mut here = self.slab.get(node);
        while let Some(node) = here {
            let Some(parent) = node.parent else { break };
            names.push(node.name.as_slice());
            here = self.slab.get(parent);
        }
        names.reverse();
        names.join(&b'/')
    }

    /// The path of what is called `name` in a directory.
    pub(super) fn path_of(&self, node: usize, name: &[u8]) -> Vec<u8> {
        let path = self.path(node);
        if path.is_empty() { name.to_vec() } else { [path.as_slice(), name].join(&b'/') }
    }

    /// Whether a directory is another one, or below it.
    pub(super) fn is_within(&self, node: usize, above: usize) -> bool {
        let up = |node: &usize| self.slab.get(*node)?.parent;
        std::iter::successors(Some(node), up).any(|node| node == above)
    }

    /// Puts a directory elsewhere, which must not be within it.
    pub(super) fn rename(&mut self, node: usize, to: usize, name: &[u8]) {
        self.detach(node);
        if let Some(it) = self.slab.get_mut(node) {
            (it.parent, it.name) = (Some(to), name.to_vec());
        }
        if let Some(parent) = self.slab.get_mut(to) {
            parent.children.insert(name.to_vec(), node);
        }
    }

    fn detach(&mut self, node: usize) -> Option<()> {
        let it = self.slab.get(node)?;
        let (parent, name) = (it.parent?, it.name.clone());
        let children = &mut self.slab.get_mut(parent)?.children;
        if children.get(&name) == Some(&node) {
            children.remove(&name);
        }
        Some(())
    }

    /// Has what is at two places change them, where neither is within the other.
    pub(super) fn exchange(&mut self, (a, name_a): (usize, &[u8]), (b, name_b): (usize, &[u8])) {
        let (from_a, from_b) = (self.child(a, name_a), self.child(b, name_b));
        for node in [from_a, from_b].into_iter().flatten() {
            self.detach(node);
        }
        if let Some(node) = from_a {
            self.rename(node, b, name_b);
        }
        if let Some(node) = from_b {
            self.rename(node, a, name_a);
        }
    }

    /// Takes a directory out with all below it; gives the watches that nobody needs then.
    pub(super) fn remove(&mut self, node: usize) -> Vec<i32> {
        self.detach(node);
        let mut unused = Vec::new();
        let mut left = vec![node];
        while let Some(node) = left.pop() {
            let Some(it) = self.slab.try_remove(node) else { continue };
            left.extend(it.children.into_values());
            self.seen.remove(&node);
            self.doubts.remove(&node);
            if let Watch::By(watch) = it.watch {
                unused.extend(self.leave(node, watch));
            }
        }
        unused
    }

    /// What has been told of a name, where that is known: without doubts it is what the last event said.
    pub(super) fn told(&self, node: usize, name: &[u8]) -> Option<Told> {
        if self.child(node, name).is_some() {
            return Some(Told::Directory);
        }
        if let Some(doubt) = self.doubts.get(&node).and_then(|names| names.get(name)) {
            return Some(doubt.told);
        }
        let seen = self.seen.get(&node)?;
        Some(seen.names.get(name).copied().unwrap_or(Told::Nothing))
    }

    /// Something has been told of a name. If it is in doubt, what is there will be looked at.
    pub(super) fn note(&mut self, node: usize, name: &[u8], told: Told, is_in_doubt: bool) {
        if !self.slab.contains(node) {
            return;
        }
        if let Some(seen) = self.seen.get_mut(&node) {
            seen.found.remove(name);
            match told {
                Told::Nothing => seen.names.remove(name),
                told => seen.names.insert(name.to_vec(), told),
            };
        }
        if is_in_doubt {
            self.doubts.entry(node).or_default().insert(name.to_vec(), Doubt::of(told));
        } else if let Some(it) = self.doubts.get_mut(&node).and_then(|names| names.get_mut(name)) {
            *it = Doubt::of(told);
        }
    }

    /// A name is to be looked at, unless that is known.
    pub(super) fn doubt(&mut self, node: usize, name: &[u8], doubt: Doubt) {
        let names = self.doubts.entry(node).or_default();
        names.entry(name.to_vec()).or_insert(doubt);
    }

    /// Whether a directory is to be looked at where it is. That of the root is another matter.
    pub(super) fn doubt_place(&mut self, node: usize) {
        if let Some((parent, name)) = self.place(node) {
            self.doubt(parent, &name, Doubt::of(Told::Directory));
        }
    }

    /// Whether something was told as it was found, so that its own event need not be.
    pub(super) fn is_found(&self, node: usize, name: &[u8], is_dir: bool) -> bool {
        let is_it = |seen: &Seen| {
            let told = seen.names.get(name).copied();
            seen.found.contains(name) && told == Some(Told::something(is_dir))
        };
        self.seen.get(&node).is_some_and(is_it)
    }
}
