//! The rollback: other layers take the place of some of the stack, in the mount as it is.
//!
//! What differs is what one of these layers has a name for. Those names are looked up in both stacks, directory by
//! directory. A directory that both have, by its number, is one and the same node, wherever it is in each; so whoever is in
//! it stays there. A file of which either has another inode is an orphan: what is open goes on with what it was, as
//! after unlink(2), and whoever looks the name up gets what it is now.
//!
//! All of that is found out before anything changes, as it takes calls that may fail. The kernel is told afterwards.
//!
//! | file | idea |
//! | --- | --- |
//! | `compare` | what differs |
//! | `listed` | what a name means, as far as it is known |
//! | `apply` | what becomes of that which is known |
//! | `lost` | what is known in directories that go |

mod apply;
mod compare;
mod listed;
mod lost;

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::super::Overlay;
use super::super::build::{FrozenInode, Original};
#[cfg(doc)]
use super::super::error::Error;
use super::super::error::Result;
use super::super::lower::LowerEntry;
use super::super::name::Name;
use super::super::node::{InLayer, UpperState};
use super::super::upper::unusable;
use super::freeze::{Next, commit_by};
use super::{Below, Layer, Part, check};
use crate::types::{FileKind, Ino, LayerSerial};

/// How often names of hard links are seen to that come while others are.
const ATTEMPTS: usize = 8;

/// What a rollback has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RolledBack {
    /// Names under which another file is than before, or one where nothing was, each in a directory that somebody may have
    /// looked it up in.
    pub replaced: Vec<(Ino, OsString)>,
    /// Other names that mean something else than before, or nothing: directories, and what is gone.
    pub names: Vec<(Ino, OsString)>,
    /// Directories of which names or attributes are others.
    pub directories: Vec<Ino>,
    /// Files that are others, and that somebody has open.
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
    /// What means something else, and whether it is a file, and no directory was there.
    names: Vec<(Ino, Name, bool)>,
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
        if !layers.is_empty() {
            let (marks, others) = check(&layers, &self.lower, None)?;
            if marks != self.marks {
                return Err(unusable(next, "the layers' marks are of another kind"));
            }
            self.stack.others.extend(others);
        }
        let root = self.open_next(next)?;
        self.take_along();
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

    /// Has files of layers that are open for writing be in the live upper: what is written to them after it was rolled away is
    /// of what was. Where there is no room for that, they are written to as after unlink(2).
    fn take_along(&self) {
        for open in self.handles.all() {
            if open.writes()
                && !open.is_apart()
                && let Err(error) = self.with_writable(&open, |_| Ok(()))
            {
                tracing::warn!("what is written to an open file from now on is not kept: {error}");
            }
        }
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
        commit_by(commit)?;
        upper.replace_root(Arc::clone(next.root()));
        self.stack.replace(then, next.serial());
        self.dirs.clear();
        let root = next.root_state(to)?;
        self.nodes.restate(Ino::ROOT, Some(root), None);
        let rolled_back = switch.apply(live);
        let closed = self.part_fds.retain(|layer| layers.iter().any(|it| it.serial == layer));
        drop(changing);
        drop(closed);
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
        let merges = self.stack.merges();
        Ok(Original::Layer(Box::new(FrozenInode { address, stat, state, whole, place, merges })))
    }
}
