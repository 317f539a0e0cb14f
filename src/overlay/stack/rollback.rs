//! The rollback: other layers take the place of some of the stack, in the mount as it is.
//!
//! What differs is what one of these layers has a name for. Those names are looked up in both stacks, directory by
//! directory. A directory that both have, by its number, is one and the same node, wherever it is in each; so whoever is in
//! it stays there. A file of which either has another inode is an orphan: what is open goes on with what it was, as
//! after unlink(2), and whoever looks the name up gets what it is now.
//!
//! All of that is found out before anything changes, as it takes calls that may fail. The kernel is told afterwards.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, FlockOperation, OFlags};
use rustix::io::Errno;

use super::super::Overlay;
use super::super::build::{FrozenInode, Original};
use super::super::dirs::os_str;
#[cfg(doc)]
use super::super::error::Error;
use super::super::error::Result;
use super::super::handles::Source;
use super::super::lower::LowerEntry;
use super::super::name::Name;
use super::super::node::{Dentry, InLayer, UpperState};
use super::super::upper::{Mark, unusable};
use super::freeze::Next;
use super::lost::Lost;
use super::{Below, Layer, Part, check};
use crate::inode_ops::list_with;
use crate::types::{FileKind, Ino, LayerSerial};

/// How often names of hard links are seen to that come while others are.
const ATTEMPTS: usize = 8;

/// What a rollback has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RolledBack {
    /// Names that mean something else than before, or nothing, each in a directory that somebody may have looked it up in.
    pub names: Vec<(Ino, OsString)>,
    /// Directories of which names or attributes are others.
    pub directories: Vec<Ino>,
    /// Files that are others.
    pub files: Vec<Ino>,
    /// The paths that directories have come to which somebody knows by other ones. The kernel finds out when it looks
    /// them up.
    pub moved: Vec<PathBuf>,
    /// How many names mean something else than before, whoever knows of them.
    pub changed: u64,
}

/// Where a directory is in one of the stacks.
type Place = (Ino, Name, LowerEntry);

/// What is to be compared: a directory's number, what it is in the stack that is left, and what in the one that comes.
type Pair = (Ino, Below, Option<Below>);

/// One stack in the place of another.
struct Switch<'a> {
    overlay: &'a Overlay,
    /// The root in each.
    from: Below,
    to: Below,
    /// The layers that only one has.
    gone: HashSet<LayerSerial>,
    come: HashSet<LayerSerial>,
    names: Vec<(Ino, Name)>,
    /// Directories that both have, by the same names.
    kept: Vec<(Ino, LowerEntry)>,
    /// Directories that both have, by different names: where they come to be.
    moved: Vec<(Ino, Place)>,
    /// Directories that the one that comes has not.
    vanished: Vec<(Ino, LowerEntry)>,
    /// Files that are others, and where they were.
    files: HashMap<Ino, Option<InLayer>>,
    /// Directories that were met under a name in one of the stacks, and not yet in the other.
    left: HashMap<Ino, Place>,
    right: HashMap<Ino, Place>,
    /// Files that were rolled away and are written to, of which the stack that comes has copies.
    cut_off: HashSet<Ino>,
    /// Those that are found in both: each is met under two names.
    matched: HashSet<Ino>,
    /// Those of the latter that were looked into.
    seen: HashSet<Ino>,
    /// Where directories are in the stack that comes.
    places: HashMap<Ino, Place>,
}

impl Overlay {
    /// Makes `layers`, the bottom one first, the frozen ones of the stack, and the empty directory `next` the live upper, as
    /// [`Self::freeze`]. What is open stays what it was. At the paths `mounted` something is mounted: there nothing may
    /// change.
    ///
    /// # Errors
    /// As [`Self::freeze`], and [`Error::Unusable`] where one of `mounted` would be something else.
    pub fn roll_back(
        &self,
        layers: Vec<Layer>,
        next: &Path,
        serial: LayerSerial,
        mounted: &[PathBuf],
        commit: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<RolledBack> {
        self.upper()?;
        let _one_at_a_time = self.stack.freezing.lock();
        if serial <= self.live() || layers.iter().any(|layer| layer.serial >= serial) {
            return Err(Errno::INVAL.into());
        }
        if !layers.is_empty() && check(&layers, &self.lower, None)? != self.marks {
            return Err(unusable(next, "the layers' marks are of another kind"));
        }
        let root = self.open_next(next)?;
        for _ in 0..ATTEMPTS {
            self.settle_index()?;
            let _names = self.names.write();
            if self.index.is_empty() {
                let mut next = Next::new(self, serial, root);
                let done = self.switch(layers, &mut next, mounted, commit);
                if done.is_err() {
                    self.stack.consider(Vec::new());
                    next.give_up();
                }
                return done;
            }
        }
        Err(Errno::BUSY.into())
    }

    /// Called with `names` held exclusively.
    fn switch<'a>(
        &'a self,
        layers: Vec<Layer>,
        next: &mut Next<'a>,
        mounted: &[PathBuf],
        commit: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<RolledBack> {
        let upper = self.upper()?;
        let (live, archive) = (self.live(), self.lower.archive().root());
        let old_root = upper.root();
        let now = self.stack.roots_below(live);
        let then: Vec<Arc<Part>> =
            layers.iter().rev().map(|layer| self.stack.root_of(layer)).collect();
        let serials =
            |parts: &[Arc<Part>]| parts.iter().map(|part| part.layer).collect::<HashSet<_>>();
        let (mut gone, mut come) = (serials(&now), serials(&then));
        gone.insert(live);
        let both: Vec<LayerSerial> = gone.intersection(&come).copied().collect();
        for layer in both {
            gone.remove(&layer);
            come.remove(&layer);
        }
        let from = Below::new(now, Some(archive)).with_top(Part::root(live, Arc::clone(&old_root)));
        let to = Below::new(then.clone(), Some(archive));
        // What a redirect of a layer that comes means is to be found below that.
        self.stack.consider(then.clone());
        let mut switch = Switch {
            overlay: self,
            from,
            to: to.clone(),
            gone,
            come,
            names: Vec::new(),
            kept: Vec::new(),
            moved: Vec::new(),
            vanished: Vec::new(),
            files: HashMap::new(),
            left: HashMap::new(),
            right: HashMap::new(),
            cut_off: HashSet::new(),
            matched: HashSet::new(),
            seen: HashSet::new(),
            places: HashMap::new(),
        };
        switch.check_mounted(mounted)?;
        switch.cut_off = self.cut_off(&switch.come)?;
        switch.compare_all()?;
        next.dress_root_as(&self.root_of(&to)?)?;
        let changing = self.changing.write();
        next.commit(commit)?;
        upper.replace_root(Arc::clone(next.root()));
        self.stack.replace(then, next.serial());
        self.dirs.clear();
        let root = next.root_state(to)?;
        self.nodes.restate(Ino::ROOT, Some(root), None);
        let rolled_back = switch.apply(live);
        drop(changing);
        // Who has it as a layer of another stack may lock it.
        if let Err(errno) = rustix::fs::flock(&old_root, FlockOperation::Unlock) {
            tracing::warn!("a layer that was rolled away stays locked: {errno}");
        }
        *self._layers.lock() = layers;
        self.listings.clear();
        self.changed();
        // Who reads what changes finds out by a comparison.
        self.log.lose();
        Ok(rolled_back)
    }

    /// The root directory of the stack `whole`.
    pub(in super::super) fn root_of(&self, whole: &Below) -> Result<Original> {
        let Some(top) = whole.parts().first() else {
            let root = self.lower.archive().root();
            return Ok(Original::Archive(self.lower.inode(root)?));
        };
        let address = top.address()?;
        let stat = self.numbers.identify(&address, address.stat()?)?;
        let mut state =
            UpperState::new((top.layer, stat.stx_ino), FileKind::Directory, 0, whole.after(1));
        state.owner = self.recorded_owner(&address)?;
        state.kept_ctime = self.kept_ctime(&address)?;
        let (whole, place) = (whole.clone(), None);
        Ok(Original::Layer(Box::new(FrozenInode { address, stat, state, whole, place })))
    }
}

impl Switch<'_> {
    /// Checks that what is mounted inside stays where it is.
    fn check_mounted(&self, mounted: &[PathBuf]) -> Result<()> {
        for path in mounted {
            let (mut a, mut b) = (self.from.clone(), self.to.clone());
            for name in path {
                let name = name.as_bytes();
                let [now, then] = [&a, &b].map(|dir| self.overlay.find_entry(dir, name));
                let (now, then) = (now?, then?);
                if !self.are_same(now.as_ref(), then.as_ref())? {
                    return Err(unusable(path, "something is mounted there, which would be gone"));
                }
                let whole =
                    |entry: Option<LowerEntry>| entry.map(|e| e.whole()).unwrap_or_default();
                (a, b) = (whole(now), whole(then));
            }
        }
        Ok(())
    }

    /// Whether both are the same directory, or one and the same inode, or nothing.
    fn are_same(&self, now: Option<&LowerEntry>, then: Option<&LowerEntry>) -> Result<bool> {
        let (Some(now), Some(then)) = (now, then) else {
            return Ok(now.is_none() && then.is_none());
        };
        if is_directory(now) && is_directory(then) {
            return Ok(now.ino(self.overlay)? == then.ino(self.overlay)?);
        }
        Ok(match (now, then) {
            (LowerEntry::Archive(now), LowerEntry::Archive(then)) => now == then,
            (LowerEntry::Layer(now, _), LowerEntry::Layer(then, _)) => {
                let inode = |upper: &Option<UpperState>| {
                    upper.as_ref().map(|upper| (upper.layer, upper.st_ino))
                };
                inode(&now.upper) == inode(&then.upper)
            }
            _ => false,
        })
    }

    fn compare_all(&mut self) -> Result<()> {
        let mut pairs: Vec<Pair> = vec![(Ino::ROOT, self.from.clone(), Some(self.to.clone()))];
        loop {
            while let Some(pair) = pairs.pop() {
                self.compare(&pair, &mut pairs)?;
            }
            let both: Vec<Ino> =
                self.left.keys().filter(|ino| self.right.contains_key(ino)).copied().collect();
            for ino in both {
                if let (Some((.., now)), Some(then)) =
                    (self.left.remove(&ino), self.right.remove(&ino))
                {
                    self.has_moved(ino, &now.whole(), then, &mut pairs);
                }
            }
            if !pairs.is_empty() || self.look_further()? {
                continue;
            }
            for (ino, (_, _, now)) in std::mem::take(&mut self.left) {
                match self.find_by_redirect(ino, &now)? {
                    Some(then) => self.has_moved(ino, &now.whole(), then, &mut pairs),
                    None => {
                        pairs.push((ino, now.whole(), None));
                        self.vanished.push((ino, now));
                    }
                }
            }
            if pairs.is_empty() {
                self.find_known(&mut pairs)?;
            }
            if pairs.is_empty() {
                return Ok(());
            }
        }
    }

    /// Looks for directories in those that only the stack that comes has. Says whether there were any.
    fn look_further(&mut self) -> Result<bool> {
        let overlay = self.overlay;
        let new = self.right.iter().filter(|(ino, _)| !self.seen.contains(ino));
        let new: Vec<(Ino, Place)> = new.map(|(ino, place)| (*ino, place.clone())).collect();
        for (dir, place) in &new {
            let whole = place.2.whole();
            self.seen.insert(*dir);
            self.places.insert(*dir, place.clone());
            for part in whole.parts().iter().filter(|part| self.come.contains(&part.layer)) {
                for (name, _, kind) in list_with(&*overlay.part_fds.get(part)?, OFlags::NOATIME)? {
                    if kind == FileType::Directory
                        && let Some(then) = overlay.find_entry(&whole, name.as_bytes())?
                        && is_directory(&then)
                    {
                        let ino = then.ino(overlay)?;
                        if !self.matched.contains(&ino) {
                            self.right.insert(ino, (*dir, name.as_bytes().into(), then));
                        }
                    }
                }
            }
        }
        Ok(!new.is_empty())
    }

    /// Looks among directories that no layer of the stack that is left has for those that somebody knows: where it has
    /// them is as the archive has it, or a layer that both have.
    fn find_known(&mut self, pairs: &mut Vec<Pair>) -> Result<()> {
        let (nodes, ids) = (&self.overlay.nodes, &self.overlay.ids);
        for (ino, then) in std::mem::take(&mut self.right) {
            if nodes.meant(ino).is_some() {
                let now = self.overlay.lower_half(ids.id_of(ino))?;
                self.has_moved(ino, &now, then, pairs);
            } else if nodes.is_known(ids.id_of(ino)) {
                // It is back. Nothing that was in it is known any more.
                self.moved.push((ino, then));
            }
        }
        Ok(())
    }

    fn has_moved(&mut self, ino: Ino, now: &Below, then: Place, pairs: &mut Vec<Pair>) {
        pairs.push((ino, now.clone(), Some(then.2.whole())));
        self.matched.insert(ino);
        self.places.insert(ino, then.clone());
        self.moved.push((ino, then));
    }

    /// Compares what is in one directory, as far as it is of a layer that only one stack has.
    fn compare(&mut self, (dir, a, b): &Pair, pairs: &mut Vec<Pair>) -> Result<()> {
        let overlay = self.overlay;
        let of_gone = a.parts().iter().filter(|part| self.gone.contains(&part.layer));
        let of_come =
            b.iter().flat_map(Below::parts).filter(|part| self.come.contains(&part.layer));
        let mut names: BTreeSet<Box<[u8]>> = BTreeSet::new();
        for part in of_gone.chain(of_come) {
            let listed = list_with(&*overlay.part_fds.get(part)?, OFlags::NOATIME)?;
            names.extend(listed.into_iter().map(|(name, ..)| name.as_bytes().into()));
        }
        for name in names {
            let now = overlay.find_entry(a, &name)?;
            let then = match b {
                Some(b) => overlay.find_entry(b, &name)?,
                None => None,
            };
            if self.are_same(now.as_ref(), then.as_ref())? {
                if let (Some(now), Some(then)) = (now, then)
                    && is_directory(&now)
                {
                    let ino = now.ino(overlay)?;
                    pairs.push((ino, now.whole(), Some(then.whole())));
                    self.places.insert(ino, (*dir, (&*name).into(), then.clone()));
                    self.kept.push((ino, then));
                }
                continue;
            }
            let name: Name = (&*name).into();
            if let Some(now) = now {
                let ino = now.ino(overlay)?;
                match (is_directory(&now), now) {
                    (true, _) if self.matched.contains(&ino) => {}
                    (true, now) => drop(self.left.insert(ino, (*dir, name.clone(), now))),
                    (false, LowerEntry::Layer(_, place)) => {
                        drop(self.files.insert(ino, Some(place)))
                    }
                    (false, LowerEntry::Archive(_)) => drop(self.files.entry(ino).or_insert(None)),
                }
            }
            if let Some(then) = then {
                let ino = then.ino(overlay)?;
                match is_directory(&then) {
                    true if self.matched.contains(&ino) => {}
                    true => drop(self.right.insert(ino, (*dir, name.clone(), then))),
                    false => drop(self.files.entry(ino).or_insert(None)),
                }
            }
            self.names.push((*dir, name));
        }
        Ok(())
    }

    /// Where directory `ino` is in the stack that comes, if a redirect says so: what it was in may be gone from the one
    /// that is left.
    fn find_by_redirect(&mut self, ino: Ino, now: &LowerEntry) -> Result<Option<Place>> {
        let LowerEntry::Layer(_, place) = now else { return Ok(None) };
        let overlay = self.overlay;
        let redirect = overlay.marks.get(&overlay.in_layer(place)?, Mark::Redirect)?;
        let Some(path) = redirect.as_deref().and_then(|path| path.strip_prefix(b"/")) else {
            return Ok(None);
        };
        let (mut dir, mut whole) = (Ino::ROOT, self.to.clone());
        let mut found = None;
        for name in path.split(|byte| *byte == b'/') {
            if let Some(above) = found.take() {
                let (_, _, entry): &Place = &above;
                (dir, whole) = (entry.ino(overlay)?, entry.whole());
                self.places.entry(dir).or_insert(above);
            }
            let entry = overlay.find_entry(&whole, name)?.filter(is_directory);
            let Some(entry) = entry else { return Ok(None) };
            found = Some((dir, name.into(), entry));
        }
        match found {
            Some(place) if place.2.ino(overlay)? == ino => Ok(Some(place)),
            _ => Ok(None),
        }
    }

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
    fn apply(mut self, live: LayerSerial) -> RolledBack {
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
        for (number, place) in self.files {
            let id = self.overlay.ids.id_of(number);
            // Also names that no layer has, in a directory that comes back with all that the kernel remembers of it.
            let known_by = nodes.names(id);
            let is_orphan = nodes.orphan(id, |upper| {
                upper.is_apart |= upper.layer == live;
                if upper.pin.is_none() {
                    (upper.place, upper.held) = (place, held.remove(&number));
                }
            });
            if !is_orphan {
                continue;
            }
            done.files.push(id);
            done.names.extend(known_by.iter().map(|(dir, name)| (*dir, os_string(name))));
            for open in self.overlay.handles.of(id) {
                if matches!(open.source(), Source::File(layer, _) if layer == live) {
                    open.set_apart();
                }
            }
        }
        let known = self.names.into_iter().map(|(dir, name)| (ids.id_of(dir), name));
        let known = known.filter(|(dir, _)| nodes.is_known(*dir));
        done.names.extend(known.map(|(dir, name)| (dir, os_string(&name))));
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

fn is_directory(entry: &LowerEntry) -> bool {
    entry.kind() == FileKind::Directory
}

fn os_string(name: &[u8]) -> OsString {
    let name: &OsStr = os_str(name);
    name.to_owned()
}
