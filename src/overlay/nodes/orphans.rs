//! Nodes that do not stand for their numbers any more, and what a rollback makes of the others.
//!
//! A file that a rollback changes is another inode under the same number. Who has it open, and what the kernel remembers of
//! its data, stays what it was: its node is an orphan, and another stands for the number. So is a directory that is gone;
//! but should that come back, it is the same node again, as somebody may be in it all the time. Only in one that was
//! removed, not rolled away, the kernel finds nothing for ever.

use std::collections::{HashMap, HashSet};

use super::super::name::Name;
use super::super::node::{Dentry, Snapshot, UpperState};
use super::{Node, Nodes};
use crate::types::{FileKind, Ino, LayerSerial};

/// What is known in some directories, and in those in them.
#[derive(Debug)]
pub(in super::super) struct Inside {
    /// These directories, and what is reached through them.
    pub(in super::super) nodes: HashSet<Ino>,
    /// The names there, each with the node and the directory.
    pub(in super::super) names: Vec<(Ino, Ino, Name)>,
}

impl Nodes {
    /// The node that stands for number `number`, if there is one that does.
    pub(in super::super) fn meant(&self, number: Ino) -> Option<Snapshot> {
        let id = self.ids.id_of(number);
        self.table.lock().nodes.get(id).filter(|node| !node.is_orphan).map(Node::snapshot)
    }

    /// Whether number `number` stands for inode `st_ino` of layer `layer`, as somebody knows.
    pub(in super::super) fn is_known_as(
        &self,
        number: Ino,
        layer: LayerSerial,
        st_ino: u64,
    ) -> bool {
        let known = self.meant(number).and_then(|node| node.upper);
        known.is_some_and(|upper| (upper.layer, upper.st_ino) == (layer, st_ino))
    }

    /// The node that is to stand for number `number` from now on, if it is found. That of a directory may be the one that it
    /// was, unless `is_open` says that somebody has that open, and so has to keep it. Of a file the kernel remembers what
    /// that was.
    pub(in super::super) fn stand_in(
        &self,
        number: Ino,
        is_directory: bool,
        is_open: impl Fn(Ino) -> bool,
    ) -> Ino {
        let id = self.ids.id_of(number);
        let orphan = {
            let mut table = self.table.lock();
            match table.nodes.get_mut(id).filter(|node| node.is_orphan) {
                None => return id,
                Some(node) if node.is_dead || !is_directory => {
                    drop(table);
                    return self.ids.split(number, id);
                }
                // In this order: who opens it looks once more at what it is when it is known to be open.
                Some(node) => {
                    node.is_orphan = false;
                    node.upper.take()
                }
            }
        };
        if !is_open(id) {
            return id;
        }
        let mut table = self.table.lock();
        if let Some(node) = table.nodes.get_mut(id) {
            (node.is_orphan, node.upper) = (true, orphan);
        }
        self.ids.split(number, id)
    }

    /// Has `id` stand for nothing any more, unless it is a directory and found again. `change` changes what is known of it in
    /// a layer. Says whether it is known.
    pub(in super::super) fn orphan(&self, id: Ino, change: impl FnOnce(&mut UpperState)) -> bool {
        let mut dropped = Vec::new();
        let mut table = self.table.lock();
        let Some(node) = table.nodes.get_mut(id).filter(|node| !node.is_orphan) else {
            return false;
        };
        node.is_orphan = true;
        if let Some(upper) = &mut node.upper {
            change(upper);
        }
        let upper = node.upper.clone();
        table.forget_copied(id, upper.as_deref());
        self.ids.take(id);
        let old = table.move_to(id, Dentry::Nowhere);
        table.aliases.forget(id);
        if let Some(parent) = old {
            table.collect(parent, &mut dropped);
        }
        true
    }

    /// Has directory `ino` stand for nothing any more: it was removed. Should a rollback bring it back, that is another
    /// node.
    pub(in super::super) fn bury(&self, ino: Ino) {
        let mut table = self.table.lock();
        if let Some(node) = table.nodes.get_mut(ino) {
            (node.is_orphan, node.is_dead) = (true, true);
            let upper = node.upper.clone();
            table.forget_copied(ino, upper.as_deref());
            self.ids.take(ino);
        }
    }

    /// The node that is to stand for directory `number` in a tree that has it: not one that was removed.
    pub(in super::super) fn living(&self, number: Ino) -> Ino {
        let id = self.ids.id_of(number);
        match self.table.lock().nodes.get(id).is_some_and(|node| node.is_dead) {
            true => self.ids.split(number, id),
            false => id,
        }
    }

    /// Has directory `ino`, if it is known, be what `upper` says, at `dentry` if that is another.
    pub(in super::super) fn restate(
        &self,
        ino: Ino,
        upper: Option<UpperState>,
        dentry: Option<Dentry>,
    ) -> bool {
        let mut dropped = Vec::new();
        let mut table = self.table.lock();
        let Some(node) = table.nodes.get_mut(ino) else { return false };
        node.is_orphan = false;
        let before = std::mem::replace(&mut node.upper, upper.map(Box::new));
        table.forget_copied(ino, before.as_deref());
        table.note_copied(ino);
        if let Some(dentry) = dentry
            && let Some(parent) = table.move_to(ino, dentry)
        {
            table.collect(parent, &mut dropped);
        }
        true
    }

    /// Makes a node for directory `ino` at `dentry`, if there is none, which stays for as long as another is in it.
    pub(in super::super) fn make_known(&self, ino: Ino, dentry: Dentry, upper: Option<UpperState>) {
        let mut table = self.table.lock();
        if table.nodes.contains(ino) {
            return;
        }
        let above = dentry.parent();
        if table.nodes.insert(ino, Node::new(dentry, upper)).is_ok()
            && let Some(parent) = above.and_then(|parent| table.nodes.get_mut(parent))
        {
            parent.children += 1;
        }
        table.note_copied(ino);
    }

    /// What is in the directories `tops`, and in those in them, and so on, but for what is in `others`.
    pub(in super::super) fn inside(&self, tops: &HashSet<Ino>, others: &HashSet<Ino>) -> Inside {
        let table = self.table.lock();
        let judged = |dirs: &HashSet<Ino>, is_in| dirs.iter().map(|dir| (*dir, is_in)).collect();
        let mut is_in: HashMap<Ino, bool> = judged(tops, true);
        is_in.extend(judged(others, false));
        let mut names = Vec::new();
        for (ino, _) in table.nodes.iter() {
            let mut way = Vec::new();
            let mut at = Some(ino);
            let found = loop {
                let Some(here) = at else { break false };
                if let Some(known) = is_in.get(&here) {
                    break *known;
                }
                way.push(here);
                at = table.nodes.get(here).and_then(|node| node.dentry.parent());
            };
            is_in.extend(way.into_iter().map(|ino| (ino, found)));
        }
        is_in.retain(|_, is_in| *is_in);
        for ino in is_in.keys().filter(|ino| !tops.contains(ino)) {
            if let Some(Dentry::Name(dir, name)) = table.nodes.get(*ino).map(|node| &node.dentry) {
                names.push((*ino, *dir, name.clone()));
            }
        }
        let others = table.aliases.iter().filter(|(_, dir, _)| is_in.contains_key(dir));
        names.extend(others.map(|(ino, dir, name)| (ino, dir, name.clone())));
        Inside { nodes: is_in.into_keys().collect(), names }
    }

    /// What was rolled away with a layer is somebody else's, too, where that layer `is_back`.
    pub(in super::super) fn end_apart(&self, is_back: impl Fn(Ino, LayerSerial) -> bool) {
        let mut table = self.table.lock();
        let apart = |(ino, node): (Ino, &Node)| {
            let upper = node.upper.as_ref().filter(|upper| upper.is_apart)?;
            is_back(ino, upper.layer).then_some(ino)
        };
        let back: Vec<Ino> = table.nodes.iter().filter_map(apart).collect();
        for ino in back {
            if let Some(upper) = table.nodes.get_mut(ino).and_then(|node| node.upper.as_mut()) {
                upper.is_apart = false;
            }
        }
    }

    /// Nodes that no name leads to, but that stand for their numbers: what was removed, of that of the archive what `is_open`.
    pub(in super::super) fn nameless(&self, is_open: impl Fn(Ino) -> bool) -> Vec<Ino> {
        let table = self.table.lock();
        let is_one = |(ino, node): &(Ino, &Node)| {
            let is_named = node.dentry != Dentry::Nowhere || *ino == Ino::ROOT;
            !is_named && !node.is_orphan && (node.upper.is_some() || is_open(*ino))
        };
        table.nodes.iter().filter(is_one).map(|(ino, _)| ino).collect()
    }

    /// The nodes that stand for nothing any more and may be directories.
    pub(in super::super) fn orphaned_directories(&self) -> Vec<Ino> {
        let is_one = |node: &Node| {
            let is_file = |upper: &UpperState| upper.kind != FileKind::Directory;
            node.is_orphan && !node.is_dead && !node.upper.as_deref().is_some_and(is_file)
        };
        let table = self.table.lock();
        table.nodes.iter().filter(|(_, node)| is_one(node)).map(|(ino, _)| ino).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::sync::Arc;

    use super::*;
    use crate::overlay::ids::Ids;
    use crate::overlay::stack::Below;

    #[test]
    fn a_file_is_another_node_when_it_is_found_again_and_known_by_its_inode_for_as_long() {
        let ids = Arc::new(Ids::default());
        let nodes = Nodes::new(None, Arc::clone(&ids));
        let number = Ino(7);
        let find = |id| {
            let state = ((LayerSerial(1), 50), FileKind::Regular, 0, Below::default());
            let state = UpperState::new(state.0, state.1, state.2, state.3);
            nodes.enter(id, Dentry::named(Ino::ROOT, OsStr::new("f")), Some(state)).unwrap();
        };
        find(number);
        assert_eq!(nodes.copied_as(50), Some(number));
        assert!(nodes.orphan(number, |_| {}));
        assert!(!nodes.orphan(number, |_| {}), "it is one");
        assert_eq!((nodes.copied_as(50), nodes.meant(number).is_some()), (None, false));
        let again = nodes.stand_in(number, false, |_| false);
        assert_ne!(again, number, "the kernel remembers data of the former");
        find(again);
        assert_eq!((nodes.copied_as(50), ids.id_of(number)), (Some(number), again));
        nodes.forget(number, 1);
        assert!(!nodes.is_known(number));
        assert_eq!((nodes.copied_as(50), ids.id_of(number)), (Some(number), again));
        nodes.forget(again, 1);
        // Whoever has just asked for the node asks again, as the number is another by now.
        let state = UpperState::new((LayerSerial(1), 50), FileKind::Regular, 0, Below::default());
        assert!(
            !nodes.enter(again, Dentry::named(Ino::ROOT, OsStr::new("f")), Some(state)).unwrap()
        );
        assert!(!nodes.is_known(again));
        assert_eq!((nodes.copied_as(50), nodes.stand_in(number, false, |_| false)), (None, number));
    }
}
