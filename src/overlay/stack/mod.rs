//! The stack of a mount: the archive, the frozen layers over it, and the live upper.
//!
//! A layer is an upper that was frozen. What a node knows of its inode in the upper says which layer that is in; once
//! the upper is frozen, its number is no more that of the live one, and with that all that is in it has become lower.
//! So a freeze changes nothing that is known of files.
//!
//! | file | idea |
//! | --- | --- |
//! | `layer` | one frozen layer, opened |
//! | `part` | a directory of a frozen layer, and what is below it |
//! | `find` | what is under a name in it |
//! | `contents` | which layers have a name in a directory |
//! | `names` | where the other names of a file are |
//! | `freeze` | how an upper becomes a layer |
//! | `settle` | before that: the index is emptied |
//! | `carry` | at that: what the kernel writes to goes on in the next upper |
//! | `rollback/` | how other layers take the place of some |
//! | `share` | layers that others have, too |
//! | `others` | layers that were made over another archive |
//! | `merge/` | how several layers become one |

mod carry;
mod contents;
mod find;
mod freeze;
mod layer;
mod merge;
mod names;
mod others;
mod part;
mod rollback;
mod settle;
mod share;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

pub use layer::Layer;
pub(super) use merge::Becomes;
pub use merge::MergedLayer;
pub(super) use part::{Below, Part, PartFds};
pub use rollback::RolledBack;

use self::contents::Contents;
use self::names::Names;
use self::others::Others;
use super::Overlay;
use super::error::{Error, Result};
use super::lower::Lower;
use super::node::UpperState;
use super::upper::{Mark, Namespace, Numbers, Upper, unusable};
use crate::types::{FileKind, InodeRef, LayerSerial};

/// The number of no layer: what is live where there is no upper.
const NONE: u32 = u32::MAX;

/// How often an operation begins again because of freezes. There is no end of them only where something is wrong.
const ATTEMPTS: usize = 1000;

/// Which state of a stack something was found out in: what is known of its layers holds in no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version {
    live: LayerSerial,
    merges: u64,
}

/// The frozen layers of a stack, and which upper is over them.
#[derive(Debug)]
pub(super) struct Stack {
    live: AtomicU32,
    roots: RwLock<Roots>,
    names: Names,
    contents: Contents,
    others: Others,
    /// Held by who freezes, rolls back, or goes over to a merged layer.
    freezing: Mutex<()>,
    /// How often a merged layer has taken the place of others.
    merges: AtomicU64,
    /// How often something was put into a frozen layer.
    touched: AtomicU64,
    /// Roots of layers that a merged one has taken the place of, until nobody is in the middle of using them.
    retired: Mutex<Vec<Arc<Part>>>,
}

/// The roots of frozen layers.
#[derive(Debug, Default)]
struct Roots {
    /// Those of the stack, the bottom one first.
    own: Vec<Arc<Part>>,
    /// Those of the stack that may come next, the topmost first.
    considered: Vec<Arc<Part>>,
}

impl Stack {
    /// `layers`, the bottom one first, and over them an upper, if there is one.
    pub(super) fn new(layers: &[Layer], live: Option<LayerSerial>, others: Others) -> Self {
        let root = |layer: &Layer| Part::root(layer.serial, Arc::clone(&layer.root));
        Self {
            live: AtomicU32::new(live.map_or(NONE, |live| live.0)),
            roots: RwLock::new(Roots {
                own: layers.iter().map(root).collect(),
                considered: Vec::new(),
            }),
            names: Names::default(),
            contents: Contents::default(),
            others,
            freezing: Mutex::new(()),
            merges: AtomicU64::new(0),
            touched: AtomicU64::new(0),
            retired: Mutex::default(),
        }
    }

    /// The state that it is in.
    pub(super) fn version(&self) -> Version {
        Version { live: self.live(), merges: self.merges() }
    }

    /// How often layers were merged: what is known of layers by their numbers is of others then.
    pub(super) fn merges(&self) -> u64 {
        self.merges.load(Ordering::Acquire)
    }

    /// How often something was.
    fn touched(&self) -> u64 {
        self.touched.load(Ordering::Acquire)
    }

    /// Something is put into a frozen layer. Called with `names` held exclusively.
    pub(super) fn touch(&self) {
        self.touched.fetch_add(1, Ordering::AcqRel);
    }

    /// What is known of the root directory: of the upper, or of the topmost layer. None where there is only the archive.
    pub(super) fn root(
        &self,
        upper: Option<&Upper>,
        numbers: &Numbers,
        archive: InodeRef,
    ) -> Result<Option<UpperState>> {
        let live = self.live();
        let below = self.root_below(live, archive);
        let top = below.parts().first().cloned();
        let (address, layer, below) = match (upper, top) {
            (Some(upper), _) => (upper.root_address(), live, below),
            (None, Some(top)) => (top.address()?, top.layer, below),
            (None, None) => return Ok(None),
        };
        let stat = numbers.identify(&address, address.stat()?)?;
        let mut state = UpperState::new((layer, stat.stx_ino), FileKind::Directory, 0, below);
        if upper.is_none() {
            state.whole = Some(state.below.clone());
            state.below = state.below.after(1);
        }
        Ok(Some(state))
    }

    /// Puts the layer whose root is `root` on top of the others; `live` is over it from now on.
    fn push(&self, layer: LayerSerial, root: Arc<OwnedFd>, live: LayerSerial) {
        self.roots.write().own.push(Part::root(layer, root));
        self.live.store(live.0, Ordering::Release);
    }

    pub(super) fn live(&self) -> LayerSerial {
        LayerSerial(self.live.load(Ordering::Acquire))
    }

    /// The numbers of all layers, the bottom one first, the live one last.
    pub(super) fn serials(&self) -> Vec<LayerSerial> {
        let live = Some(self.live()).filter(|live| live.0 != NONE);
        self.roots.read().own.iter().map(|part| part.layer).chain(live).collect()
    }

    /// Whether there are frozen layers.
    pub(super) fn has_layers(&self) -> bool {
        let roots = self.roots.read();
        !roots.own.is_empty() || !roots.considered.is_empty()
    }

    /// Whether there are some below `layer`.
    pub(super) fn has_layers_below(&self, layer: LayerSerial) -> bool {
        !self.roots_below(layer).is_empty()
    }

    /// The roots of the frozen layers below `layer`, the topmost first.
    pub(super) fn roots_below(&self, layer: LayerSerial) -> Vec<Arc<Part>> {
        let roots = self.roots.read();
        let is_it = |part: &Arc<Part>| part.layer == layer;
        let is_below = |part: &&Arc<Part>| part.layer < layer;
        match roots.considered.iter().any(is_it) && !roots.own.iter().any(is_it) {
            true => roots.considered.iter().filter(is_below).cloned().collect(),
            false => roots.own.iter().rev().filter(is_below).cloned().collect(),
        }
    }

    /// The root of `layer`: that of the stack, if it is of it.
    fn root_of(&self, layer: &Layer) -> Arc<Part> {
        let roots = self.roots.read();
        let own = roots.own.iter().find(|part| part.layer == layer.serial).cloned();
        own.unwrap_or_else(|| Part::root(layer.serial, Arc::clone(&layer.root)))
    }

    /// The root of layer `layer`, of the stack or of that which may come next.
    fn root_in(&self, layer: LayerSerial) -> Option<Arc<Part>> {
        let roots = self.roots.read();
        let mut all = roots.own.iter().chain(&roots.considered);
        all.find(|part| part.layer == layer).cloned()
    }

    /// Looks at layers whose roots are `roots`, the topmost first, as well, each below those above it.
    fn consider(&self, roots: Vec<Arc<Part>>) {
        self.roots.write().considered = roots;
    }

    /// Makes `roots`, the topmost first, those of the stack, and `live` what is over them.
    fn replace(&self, roots: Vec<Arc<Part>>, live: LayerSerial) {
        let own: Vec<Arc<Part>> = roots.into_iter().rev().collect();
        self.names.retain(|layer| own.iter().any(|part| part.layer == layer));
        *self.roots.write() = Roots { own, considered: Vec::new() };
        self.live.store(live.0, Ordering::Release);
    }

    /// Whether `run`, roots of layers, the topmost first, are those of the stack, one upon the other.
    fn has_run(&self, run: &[Arc<Part>]) -> bool {
        let roots = self.roots.read();
        let own: Vec<&Arc<Part>> = roots.own.iter().rev().collect();
        own.windows(run.len().max(1))
            .any(|own| own.iter().zip(run).all(|(one, other)| Arc::ptr_eq(one, other)))
    }

    /// Makes `merged` the root in the place of `run`, which are those of the stack. Called while no node is looked at.
    fn replace_run(&self, run: &[Arc<Part>], merged: Arc<Part>) {
        let mut roots = self.roots.write();
        let is_of_run = |part: &Arc<Part>| run.iter().any(|other| Arc::ptr_eq(part, other));
        let at = roots.own.iter().position(is_of_run).unwrap_or_default();
        roots.own.retain(|part| !is_of_run(part));
        roots.own.insert(at, merged);
        // What is found out from now on is of the merged layer, and what was before is known to be old.
        self.merges.fetch_add(1, Ordering::AcqRel);
        self.retired.lock().extend(run.iter().cloned());
    }

    /// The root directory from `layer` downwards.
    pub(super) fn root_from(&self, layer: LayerSerial, archive: InodeRef) -> Below {
        Below::new(self.roots_below(LayerSerial(layer.0 + 1)), Some(archive))
    }

    /// The root directory below `layer`, that of the archive being `archive`.
    pub(super) fn root_below(&self, layer: LayerSerial, archive: InodeRef) -> Below {
        Below::new(self.roots_below(layer), Some(archive))
    }
}

/// Checks that `layers` are of the archive `lower`, or of one that they may have been made over, and that their marks are
/// of one kind with those of `upper`; gives that kind, and which are of another archive.
pub(super) fn check(
    layers: &[Layer],
    lower: &Lower,
    upper: Option<&Upper>,
) -> Result<(Namespace, Others)> {
    let others = Others::default();
    let mut marks = upper.map(|upper| upper.marks);
    let mut above = upper.map(|upper| upper.serial);
    for layer in layers.iter().rev() {
        let unusable = |problem: &str| unusable(&layer.path, problem);
        if above.is_some_and(|above| above <= layer.serial) {
            return Err(unusable("is a layer out of order"));
        }
        above = Some(layer.serial);
        let root = layer.root_address();
        if let Some(of) = Namespace::of(&root)? {
            if *marks.get_or_insert(of) != of {
                return Err(unusable("has marks of another kind than the layers above it"));
            }
            let archive = of.get(&root, Mark::Archive)?;
            if let Some(other) = others::made_over(layer, archive.as_deref()) {
                others.add(layer.serial, other);
            } else if archive.is_some_and(|archive| archive != lower.identity()) {
                return Err(unusable("belongs to another archive"));
            }
        }
    }
    Ok((marks.unwrap_or(Namespace::Trusted), others))
}

/// What a freeze has made of the live upper: a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frozen {
    /// Files that somebody wrote to while they were copied into the layer, by their paths from the root: what the layer
    /// has of them is of no one moment.
    pub fuzzy: Vec<PathBuf>,
}

impl Overlay {
    /// The number of the live layer.
    pub(super) fn live(&self) -> LayerSerial {
        self.stack.live()
    }

    /// Does `operation`, and begins again where the upper was frozen in the middle of it: what it has found out of the
    /// lower is not true any more then.
    pub(super) fn across_freezes<T>(&self, operation: impl Fn() -> Result<T>) -> Result<T> {
        for _ in 0..ATTEMPTS {
            match operation() {
                // Who freezes holds them until what is known is of one stack again.
                Err(Error::Frozen) => drop(self.names.read()),
                done => return done,
            }
        }
        Err(Error::stale("the layers of the mount are not what they should be"))
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::io;
    use std::path::Path;
    use std::time::Duration;

    use bytes::Bytes;

    use super::super::{Caller, Options, Upper};
    use super::*;
    use crate::cache::MemoryBlob;
    use crate::squashfs::write::{self, Progress, Sink};
    use crate::squashfs::{Archive, OpenOptions};
    use crate::types::Ino;

    struct Memory(Vec<u8>);

    impl Sink for Memory {
        fn write(&mut self, bytes: Bytes) -> io::Result<()> {
            self.0.extend_from_slice(&bytes);
            Ok(())
        }
    }

    /// An empty archive, and an upper in `dir`.
    fn merged(dir: &Path) -> Overlay {
        let [tree, upper, work] = ["tree", "upper", "work"].map(|name| dir.join(name));
        for dir in [&tree, &upper, &work] {
            std::fs::create_dir(dir).unwrap();
        }
        let mut sink = Memory(vec![0; 96]);
        let options = write::Options::default();
        let made = write::archive(&tree, &options, &|_, _| false, &mut sink, &Progress::default());
        sink.0[..96].copy_from_slice(&made.unwrap().superblock);
        let blob = Arc::new(MemoryBlob(sink.0.into()));
        let archive = Arc::new(Archive::open(blob, OpenOptions::default()).unwrap());
        let upper = Upper::open(&upper, &work).unwrap();
        Overlay::new(archive, Some(upper), Options::default()).unwrap()
    }

    #[test]
    fn who_asks_in_the_middle_of_a_freeze_waits_for_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let overlay = merged(dir.path());
        let caller = Caller { uid: 0, gid: 0, umask: 0 };
        let make =
            |above, name: &str| overlay.mkdir(&caller, above, OsStr::new(name), 0o755).unwrap().ino;
        let above = make(make(Ino::ROOT, "a"), "b");
        let made = make(above, "c");
        std::thread::scope(|scope| {
            let names = overlay.names.write();
            // There is a new live upper, and of no directory is it known yet what is in that.
            overlay.stack.live.store(1, Ordering::Release);
            let asks = [
                scope.spawn(|| overlay.lookup(above, OsStr::new("c")).map(|found| found.ino)),
                scope.spawn(|| overlay.getattr(made, None).map(|found| found.ino)),
            ];
            std::thread::sleep(Duration::from_millis(100));
            assert!(asks.iter().all(|ask| !ask.is_finished()));
            overlay.stack.live.store(0, Ordering::Release);
            drop(names);
            for ask in asks {
                assert_eq!(ask.join().unwrap().unwrap(), made);
            }
        });
    }
}
