//! What the view has that the backup has not: from the upper, without a walk of the archive.
//!
//! Everything that was changed is in the upper, so the upper is walked, and of the archive only those names are asked for
//! that it has, too. Names are told in the order of paths, a directory before what is in it, and nothing is kept
//! of them; only of what has another name than in the backup it has to be known before what the backup calls it.
//!
//! | file | idea |
//! | --- | --- |
//! | `entry` | what a difference is told in |
//! | `step`, `walk` | one name of the upper, and the way through all |
//! | `guide`, `moves` | which files of the backup have other names |
//! | `compare` | whether an inode is as the backup has it |
//! | `against` | the difference from the backup |
//! | `since` | the difference from a moment |
//! | `points/` | the difference between two points of a stack |
//!
//! The tree may change meanwhile. Each name is then told as it was at one moment, and what stays as it was is told
//! right: no lock is held for longer than one name takes.
//!
//! It was weighed to answer from a log of changes alone. That would have to be kept from the first change on; the upper
//! is there anyway, and outlives servers and machines.

mod against;
mod compare;
mod entry;
mod guide;
mod moves;
mod points;
mod since;
mod step;
mod walk;

use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::io::Errno;

pub use entry::{DifferenceEntry, Status};

use super::Overlay;
use super::error::Result;
use crate::types::Timestamp;

/// Gets the entries of a difference until it breaks.
type Sink<'a> = dyn FnMut(DifferenceEntry) -> ControlFlow<()> + 'a;

impl Overlay {
    /// Gives `sink` what differs between the backup and the view, or `since` a moment, until it breaks: of `below`, a
    /// path from the root, and what is below it. Without an upper that is nothing.
    ///
    /// The difference from a moment may name what has not changed, but leaves out nothing that has. What was removed
    /// and was never in the backup leaves no trace but in its directory, which is told then ([`Status::Listing`]).
    /// It holds for moments of the clock by which the upper's file system stamps its files.
    ///
    /// # Errors
    /// `EINVAL` where `below` leads upwards, or what reading either half says; entries before it have been given.
    pub fn difference(
        &self,
        since: Option<Timestamp>,
        below: &Path,
        sink: &mut dyn FnMut(DifferenceEntry) -> ControlFlow<()>,
    ) -> Result<()> {
        let names = names_of(below)?;
        if self.upper.is_none() {
            return Ok(());
        }
        match since {
            None => against::tell(self, &names, sink),
            Some(since) => since::tell(self, since, &names, sink),
        }
    }
}

/// The names of a path from the root.
fn names_of(path: &Path) -> Result<Vec<Box<[u8]>>> {
    let mut names: Vec<Box<[u8]>> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.as_bytes().into()),
            Component::CurDir => {}
            _ => return Err(Errno::INVAL.into()),
        }
    }
    Ok(names)
}
