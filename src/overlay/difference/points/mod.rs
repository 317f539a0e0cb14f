//! What one point of a stack has that another has not: from the layers alone.
//!
//! Two points have the layers below the first one that only one of them has, and the archive, in common. So nothing can
//! differ but what has a name in one of the others, and only those are walked: each name is looked up in both trees, and
//! what is there compared. A directory that only one of the trees has is listed as a whole.
//!
//! | file | idea |
//! | --- | --- |
//! | `trees` | the two trees, and what has names in a directory of both |
//! | `directories` | first: which directories have moved |
//! | `walk` | with that: each name that may differ, in the order of paths |
//! | `files` | second: which files have moved |
//! | `tell` | third: what is told |
//! | `facts` | what an inode is, and whether another is the same |
//!
//! A file is the same in both if it has the same number there.

mod directories;
mod facts;
mod files;
mod tell;
mod trees;
mod walk;

use std::ops::ControlFlow;
use std::path::Path;

use super::super::Overlay;
use super::super::error::Result;
use super::entry::DifferenceEntry;
use super::names_of;
use trees::Trees;
use walk::Walk;

impl Overlay {
    /// Gives `sink` what differs between `from`, another tree of the same layers and archive, and this one, until it
    /// breaks: of `below`, a path from the root, and what is below it. `from` does not change meanwhile; of this one each
    /// name is told as it was at one moment.
    ///
    /// # Errors
    /// `EINVAL` where `below` leads upwards, or what reading either tree says; entries before it have been given.
    pub fn difference_from(
        &self,
        from: &Overlay,
        below: &Path,
        sink: &mut dyn FnMut(DifferenceEntry) -> ControlFlow<()>,
    ) -> Result<()> {
        let below = names_of(below)?;
        let trees = Trees::new(from, self)?;
        let moved = trees.moved_directories()?;
        let files = Walk { trees: &trees, moved: &moved, below: &[] }.moved_files()?;
        Walk { trees: &trees, moved: &moved, below: &below }.tell(&files, sink)
    }
}
