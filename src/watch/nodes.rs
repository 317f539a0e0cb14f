//! The directories of a watched tree, as they are after the events that have been looked at.
//!
//! Files are not remembered, but for those that were found in a directory when it was read, until all events have
//! come that may be of them.

use std::collections::{BTreeMap, HashMap, HashSet};

use slab::Slab;

/// The directories, as they are after the events that have been looked at.
#[derive(Default)]
pub(super) struct Nodes {
    pub(super) slab: Slab<Node>,
    pub(super) root: Option<usize>,
    /// The directories of a watch: more than one where an inode is mounted twice.
    pub(super) watches: HashMap<i32, Vec<usize>>,
    /// Those that remember what was found in them.
    pub(super) seen: Vec<usize>,
    /// Directories that have been found by another name than they are known by: by their watches, in which directory,
    /// by which name, and the place behind the last event that may be of that.
    pub(super) moved: HashMap<i32, (usize, Vec<u8>, u64)>,
}

pub(super) struct Node {
    pub(super) parent: Option<usize>,
    pub(super) name: Vec<u8>,
    pub(super) watch: i32,
    pub(super) children: BTreeMap<Vec<u8>, usize>,
    pub(super) seen: Option<Seen>,
}

/// What was found in a directory when it was read, and what events have made of that since.
pub(super) struct Seen {
    /// What is there, as told, and whether it is a directory.
    pub(super) names: HashMap<Vec<u8>, bool>,
    /// Of these, what was found; its own event may come yet.
    pub(super) found: HashSet<Vec<u8>>,
    /// The place behind the last event that may be of what was found.
    pub(super) until: u64,
}

impl Nodes {
    pub(super) fn insert(&mut self, parent: Option<usize>, name: Vec<u8>, watch: i32) -> usize {
        let node =
            Node { parent, name: name.clone(), watch, children: BTreeMap::new(), seen: None };
        let node = self.slab.insert(node);
        if let Some(parent) = parent.and_then(|parent| self.slab.get_mut(parent)) {
            parent.children.insert(name, node);
        }
        self.watches.entry(watch).or_default().push(node);
        node
    }

    pub(super) fn child(&self, node: usize, name: &[u8]) -> Option<usize> {
        self.slab.get(node)?.children.get(name).copied()
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
            if let Some(nodes) = self.watches.get_mut(&it.watch) {
                nodes.retain(|other| *other != node);
                if nodes.is_empty() {
                    self.watches.remove(&it.watch);
                    unused.push(it.watch);
                }
            }
            self.moved.retain(|_, (parent, ..)| *parent != node);
            if self.root == Some(node) {
                self.root = None;
            }
        }
        unused
    }

    /// An entry has come; says whether that is to be told.
    pub(super) fn appears(&mut self, node: usize, name: &[u8], is_dir: bool) -> bool {
        let seen = self.slab.get_mut(node).and_then(|node| node.seen.as_mut());
        seen.is_none_or(|seen| {
            let is_told = seen.found.remove(name);
            seen.names.insert(name.to_vec(), is_dir);
            !is_told
        })
    }

    /// An entry has gone; says whether that is to be told.
    pub(super) fn disappears(&mut self, node: usize, name: &[u8]) -> bool {
        let seen = self.slab.get_mut(node).and_then(|node| node.seen.as_mut());
        seen.is_none_or(|seen| {
            seen.found.remove(name);
            seen.names.remove(name).is_some()
        })
    }

    /// Whether an entry has been told of.
    pub(super) fn is_told(&self, node: usize, name: &[u8]) -> bool {
        let seen = self.slab.get(node).and_then(|node| node.seen.as_ref());
        seen.is_none_or(|seen| seen.names.contains_key(name))
    }
}

/// `name` in the directory at `path`.
pub(super) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}
