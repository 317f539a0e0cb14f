//! What becomes of that which is known, in the stack that comes.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use super::super::super::dirs::os_str;
use super::super::super::handles::Source;
use super::super::super::lower::LowerEntry;
use super::super::super::node::{Dentry, UpperState};
use super::lost::Lost;
use super::{RolledBack, Switch};
use crate::types::{Ino, LayerSerial};

impl Switch<'_> {
    /// What is known in directories that vanish, beside what is found in the layers.
    fn lost(&self) -> Lost {
        let (overlay, nodes) = (self.overlay, &self.overlay.nodes);
        let id = |number: &Ino| overlay.ids.id_of(*number);
        let vanished = self.vanished.iter().map(|(ino, _)| id(ino));
        let vanished = vanished.filter(|ino| nodes.is_known(*ino)).collect();
        let moved = self.moved.iter().map(|(ino, _)| id(ino)).collect();
        let files = self.files.keys().map(id).collect();
        Lost::find(overlay, &vanished, &moved, &files)
    }

    /// Changes what is known. Nothing of it can fail.
    pub(super) fn apply(mut self, live: LayerSerial) -> RolledBack {
        let (nodes, ids) = (&self.overlay.nodes, &self.overlay.ids);
        // What was removed and is open does not stand for its number in the other stack, which may have that again.
        for ino in nodes.nameless(|ino| !self.overlay.handles.of(ino).is_empty()) {
            self.files.entry(ids.number_of(ino)).or_insert(None);
        }
        // First, as it is found out of what is known of the directories.
        for (number, place) in &mut self.files {
            if place.is_none() {
                *place = self.overlay.place_in_layer(ids.id_of(*number));
            }
        }
        // A layer may be removed while a file of it is open.
        let mut held = HashMap::new();
        for (number, place) in &self.files {
            let is_open = || !self.overlay.handles.of(ids.id_of(*number)).is_empty();
            if let Some(place) = place.as_ref().filter(|_| is_open()) {
                match self.overlay.in_layer(place).and_then(|inode| Ok(inode.pin()?)) {
                    Ok(inode) => drop(held.insert(*number, inode)),
                    Err(error) => tracing::warn!("an open file may be lost: {error}"),
                }
            }
        }
        let lost = self.lost();
        let state = |entry: &LowerEntry| match entry {
            LowerEntry::Archive(_) => None,
            LowerEntry::Layer(found, _) => found.upper.clone(),
        };
        let mut done = RolledBack { changed: self.names.len() as u64, ..RolledBack::default() };
        done.directories.push(Ino::ROOT);
        for (number, then) in &self.kept {
            // One that was gone for a while, and that somebody was in all the time, is back.
            let is_back = nodes.meant(*number).is_none();
            let ino = nodes.living(*number);
            let place = self.places.get(number).filter(|_| is_back && nodes.is_known(ino));
            let dentry = place.map(|(parent, name, _)| {
                Dentry::Name(self.make_known(*parent, &state), name.clone())
            });
            if nodes.restate(ino, state(then), dentry) {
                done.directories.push(ino);
            }
        }
        let mut moved = Vec::new();
        for (number, (parent, name, then)) in &self.moved {
            let ino = nodes.living(*number);
            if nodes.is_known(ino) {
                let dentry = Dentry::Name(self.make_known(*parent, &state), name.clone());
                nodes.restate(ino, state(then), Some(dentry));
                done.directories.push(ino);
                moved.push(ino);
            }
        }
        for (number, now) in &self.vanished {
            let place = match now {
                LowerEntry::Layer(_, place) => Some(place.clone()),
                LowerEntry::Archive(_) => None,
            };
            // What is open in it is still found through it, but nothing else.
            nodes.orphan(ids.id_of(*number), |upper| {
                (upper.place, upper.whole) = (place, Some(now.whole()));
            });
        }
        // Only now all are where they belong: of two that were within each other, one after the other has moved.
        let paths = moved.iter().filter_map(|ino| nodes.paths(*ino).into_iter().next());
        done.moved.extend(paths.map(|path| PathBuf::from(os_str(&path))));
        lost.forget(nodes);
        nodes.end_apart(|ino, layer| self.come.contains(&layer) && !self.cut_off.contains(&ino));
        let names =
            self.names.into_iter().map(|(dir, name, is_file)| (ids.id_of(dir), name, is_file));
        let names = names.filter(|(dir, ..)| nodes.is_known(*dir));
        let names: Vec<((Ino, OsString), bool)> =
            names.map(|(dir, name, is_file)| ((dir, os_string(&name)), is_file)).collect();
        let seen: HashSet<&(Ino, OsString)> = names.iter().map(|(name, _)| name).collect();
        for (number, place) in self.files {
            let id = self.overlay.ids.id_of(number);
            // Also names that no layer has, in a directory that comes back with all that the kernel remembers of it.
            let known_by = nodes.names(id);
            let is_open = !self.overlay.handles.of(id).is_empty();
            let is_orphan = nodes.orphan(id, |upper| {
                upper.is_apart |= upper.layer == live;
                if upper.pin.is_none() {
                    (upper.place, upper.held) = (place, held.remove(&number));
                }
            });
            if !is_orphan {
                continue;
            }
            if is_open {
                done.files.push(id);
            }
            let known_by = known_by.into_iter().map(|(dir, name)| (dir, os_string(&name)));
            done.names.extend(known_by.filter(|name| !seen.contains(name)));
            for open in self.overlay.handles.of(id) {
                if matches!(open.source(), Source::File(layer, _) if layer == live) {
                    open.set_apart();
                }
            }
        }
        for (name, is_file) in names {
            if is_file { done.replaced.push(name) } else { done.names.push(name) }
        }
        // Last: with a directory the kernel lets go of what nobody uses in it.
        done.names.extend(lost.names.iter().map(|(dir, name)| (*dir, os_string(name))));
        // What they had in them, which is nothing, counts no more once they are back.
        done.directories.extend(nodes.orphaned_directories());
        done
    }

    /// Makes sure that directory `number`, which others are in now, is known; gives its node.
    fn make_known(&self, number: Ino, state: &impl Fn(&LowerEntry) -> Option<UpperState>) -> Ino {
        let nodes = &self.overlay.nodes;
        let mut way = Vec::new();
        let mut at = number;
        while !nodes.is_known(nodes.living(at)) {
            let Some((parent, name, entry)) = self.places.get(&at) else { break };
            way.push((at, *parent, name, entry));
            at = *parent;
        }
        for (number, parent, name, entry) in way.into_iter().rev() {
            let dentry = Dentry::Name(nodes.living(parent), name.clone());
            nodes.make_known(nodes.living(number), dentry, state(entry));
        }
        nodes.living(number)
    }
}

fn os_string(name: &[u8]) -> OsString {
    let name: &OsStr = os_str(name);
    name.to_owned()
}
