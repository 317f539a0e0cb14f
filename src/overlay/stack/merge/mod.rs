//! Several layers become one: what nobody can roll back to any more is not kept apart.
//!
//! A **run** is layers of which each is the only one on the one before, with no point on any but the topmost. All that is
//! ever seen of them is what they show together, over what is below. So one layer that shows the same can take their place.
//!
//! That layer is built anew, beside them: each inode is a copy, with the number and the times of the one that it is in place
//! of. The layers that are merged are not written to, and one that was not finished is as if it had not been begun. Nor are
//! inodes shared with them by links: that would be seen, by a count of links and by `st_ctime`.
//!
//! | file | idea |
//! | --- | --- |
//! | `build` | the copy of each inode, directory by directory |
//! | `below` | by which path something is reached in what is below the run |
//! | `check` | what was built shows what the run shows, or it is not used |
//! | `switch` | the mount goes over to it |
//!
//! What cannot be merged is left as it is: nothing is lost by that but room.

mod below;
mod build;
mod check;
mod switch;

pub(in super::super) use self::switch::Becomes;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;

use super::super::Overlay;
use super::super::ctime::KeptCtime;
use super::super::error::{Error, Result};
use super::super::node::InLayer;
use super::super::upper::{Mark, unusable};
use super::{Below, Layer, Part};
use crate::inode_ops::{Directory, list};
use crate::types::{InodeRef, LayerSerial};

/// Layers that are to be one.
#[derive(Debug)]
pub(super) struct Run {
    /// Their roots, the topmost first.
    parts: Vec<Arc<Part>>,
    /// The root directory from the topmost of them downwards, and below them all.
    whole: Below,
    below: Below,
}

impl Run {
    fn has(&self, layer: LayerSerial) -> bool {
        self.parts.iter().any(|part| part.layer == layer)
    }

    fn top(&self) -> LayerSerial {
        self.parts.first().map_or_else(LayerSerial::default, |part| part.layer)
    }

    /// How many of the layers that `whole` is in are of the run; the first are.
    fn count(&self, whole: &Below) -> usize {
        whole.parts().iter().take_while(|part| self.has(part.layer)).count()
    }
}

/// What has taken the place of an inode.
#[derive(Clone, Debug)]
struct Stand {
    st_ino: u64,
    kept_ctime: KeptCtime,
    /// Of a directory: where it is.
    part: Option<Arc<Part>>,
    /// Whether a file has its data, which may have been in another inode of the run.
    has_data: bool,
}

/// An inode of the run, by its layer and its number there; and a place in a layer, by its path.
type Inode = (LayerSerial, u64);
type Place = (LayerSerial, Vec<u8>);

/// One layer that was made of several, and is not in use yet.
#[derive(Debug)]
pub struct MergedLayer {
    run: Run,
    layer: Layer,
    root: Arc<Part>,
    /// What each inode of the run that is seen has become.
    stands: HashMap<Inode, Stand>,
    /// The same of each directory, whichever layer it is looked for in.
    directories: HashMap<Place, Arc<Part>>,
    /// Where the data of a file that had it in a layer of the run is.
    data: HashMap<Place, InLayer>,
    /// How often something had been put into frozen layers when it was begun.
    touched: u64,
}

impl Overlay {
    /// Builds one layer of the frozen layers `run`, the bottom one first, in the empty directory `into`, which is beside
    /// them. It is for [`Self::go_over`] to take their place. Takes its time, and nobody waits for it, and no more than `room`
    /// bytes of files that are copied. `goes_on` is asked now and then; once it says no, that ends it.
    ///
    /// # Errors
    /// [`Error::Unusable`] where these layers cannot be merged, or not now; and what the upper's file system says. What is
    /// in `into` then is of no use.
    pub fn merge(
        &self,
        run: &[LayerSerial],
        into: &Path,
        room: u64,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<MergedLayer> {
        let upper = self.upper()?;
        let (run, touched) = {
            // A freeze is not over before its layer has all its copies.
            let _nobody_freezes = self.stack.freezing.lock();
            if self.marks.get(&upper.root_address(), Mark::Carrying)?.is_some() {
                return Err(unusable(into, "a layer has not got all its copies yet"));
            }
            (self.run_of(run, into)?, self.stack.touched())
        };
        let opened = Directory::open(into).and_then(|dir| dir.open_to_read());
        let root = opened.map_err(|error| unusable(into, error.to_string()))?;
        rustix::fs::flock(&root, FlockOperation::NonBlockingLockShared)
            .map_err(|errno| unusable(into, format!("cannot be locked: {errno}")))?;
        let root = Arc::new(root);
        let layer = Layer::locked(run.top(), Arc::clone(&root), into.to_owned());
        if !list(&root)?.is_empty() {
            return Err(unusable(into, "is not empty"));
        }
        let root = Part::root(run.top(), root);
        let merged = build::build(self, (run, touched), (layer, root), room, goes_on)?;
        check::check(self, &merged, goes_on)?;
        Ok(merged)
    }

    /// The layers `run`, if they are in the stack one upon the other.
    fn run_of(&self, run: &[LayerSerial], into: &Path) -> Result<Run> {
        let top = run.last().copied().unwrap_or_default();
        let archive = self.lower.archive().root();
        let whole = self.stack.root_from(top, archive);
        let parts: Vec<Arc<Part>> = whole.parts().iter().take(run.len()).cloned().collect();
        let is_it = parts.iter().map(|part| part.layer).eq(run.iter().rev().copied());
        if run.len() < 2 || !is_it {
            return Err(unusable(into, "the layers are not in the stack one upon the other"));
        }
        if parts.iter().any(|part| self.is_over_another(part.layer)) {
            return Err(unusable(into, "a layer was made over another archive"));
        }
        let below = whole.after(parts.len());
        Ok(Run { parts, whole, below })
    }
}

/// Why a run is left as it is.
fn unmerged(problem: impl Into<String>) -> Error {
    unusable(&PathBuf::from("layers that would be one"), problem)
}

/// Whether both are of the same directories.
fn are_same(a: &Below, b: &Below) -> bool {
    let is_same = |(one, other): (&Arc<Part>, &Arc<Part>)| {
        Arc::ptr_eq(one, other) || (one.layer == other.layer && one.path() == other.path())
    };
    a.archive == b.archive
        && a.parts().len() == b.parts().len()
        && a.parts().iter().zip(b.parts()).all(is_same)
}

/// The data of a file, wherever it is, in a form to compare.
#[derive(Debug, PartialEq, Eq)]
enum DataAt {
    Archive(InodeRef),
    Layer(Place),
}

impl DataAt {
    fn of(place: &InLayer) -> Self {
        Self::Layer(place_of(place))
    }
}

/// The place of `name` in `dir`.
fn place_of(place: &InLayer) -> Place {
    (place.dir.layer, [&place.dir.path(), &b"/"[..], &place.name].concat())
}
