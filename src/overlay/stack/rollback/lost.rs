//! What is known in directories that a rollback takes away, and that no layer that goes or comes has a name for. The
//! archive has it, or a layer that both stacks have; but nobody finds it any more. Were it left as it is, it would be found
//! again as it was once the directory is back, whatever it is by then.

use std::collections::HashSet;

use super::super::super::Overlay;
use super::super::super::dirs::os_str;
use super::super::super::name::Name;
use super::super::super::node::{Dentry, InLayer};
use super::super::super::nodes::{Inside, Nodes};
use super::super::Below;
use crate::types::{FileKind, Ino};

/// What is known in directories that vanish.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// The names there, each with its directory.
    pub(super) names: Vec<(Ino, Name)>,
    orphans: Vec<Orphan>,
    /// Files that have a name elsewhere, by which they are reached from now on.
    moved: Vec<(Ino, Dentry)>,
    /// Names of files that have others.
    aliases: Vec<(Ino, Ino, Name)>,
}

/// What nothing leads to any more.
#[derive(Debug)]
struct Orphan {
    ino: Ino,
    /// Where it is in a layer, if it is in one.
    place: Option<InLayer>,
    /// A directory with what is below it.
    whole: Option<Below>,
}

impl Lost {
    /// What is known in the directories `vanished`, but for what is in `others`, and the files `seen_to`.
    pub(super) fn find(
        overlay: &Overlay,
        vanished: &HashSet<Ino>,
        others: &HashSet<Ino>,
        seen_to: &HashSet<Ino>,
    ) -> Self {
        if vanished.is_empty() {
            return Self::default();
        }
        let Inside { nodes, names } = overlay.nodes.inside(vanished, others);
        let mut lost = Self::default();
        for ino in nodes.iter().filter(|ino| !vanished.contains(ino) && !seen_to.contains(ino)) {
            let elsewhere =
                overlay.nodes.names(*ino).into_iter().find(|(dir, _)| !nodes.contains(dir));
            if let Some((dir, name)) = elsewhere {
                lost.moved.push((*ino, Dentry::Name(dir, name)));
                continue;
            }
            let state = overlay.nodes.find(*ino).and_then(|node| node.upper);
            let is_directory = state.is_some_and(|state| state.kind == FileKind::Directory);
            let whole = is_directory.then(|| overlay.lower_half(*ino).unwrap_or_default());
            lost.orphans.push(Orphan { ino: *ino, place: overlay.place_in_layer(*ino), whole });
        }
        lost.names = names.iter().map(|(_, dir, name)| (*dir, name.clone())).collect();
        lost.aliases = names;
        lost
    }

    /// Takes it from where it was.
    pub(super) fn forget(&self, nodes: &Nodes) {
        for Orphan { ino, place, whole } in &self.orphans {
            nodes.orphan(*ino, |upper| {
                if upper.pin.is_none() {
                    (upper.place, upper.whole) = (place.clone(), whole.clone());
                }
            });
        }
        for (ino, dentry) in &self.moved {
            nodes.move_to(*ino, dentry.clone());
        }
        for (ino, dir, name) in &self.aliases {
            nodes.alias_gone(*ino, *dir, os_str(name));
        }
    }
}
