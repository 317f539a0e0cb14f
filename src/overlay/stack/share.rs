//! Layers that are another mount's as well, from then on: nothing in them changes any more.
//!
//! A layer changes in one case alone: of a file that the kernel reads by itself, as it was opened while it was in the live
//! upper, the live upper gets the inode when it is first changed, and the layer a copy. Another mount may have that very
//! inode open by then. So these files are taken into the live upper before, whether they are changed later or not. What
//! is opened in a layer is never given to the kernel, so there are no more of them afterwards.

use std::collections::BTreeSet;

use rustix::io::Errno;

use super::super::Overlay;
use super::super::error::Result;
use super::super::handles::Source;
use super::super::node::{Dentry, Want};
use super::super::upper::Mark;
use crate::types::{Ino, LayerSerial};

/// How often files are looked for that were opened meanwhile.
const ATTEMPTS: usize = 8;

impl Overlay {
    /// Makes sure that nothing in `layers` changes from now on, so that others may have them, too.
    ///
    /// # Errors
    /// `ETXTBSY` where a program writes to a file of what was rolled away; `EBUSY` where a freeze has not given a layer
    /// all that it is to have, or what taking a file into the live upper says.
    pub fn share(&self, layers: &[LayerSerial]) -> Result<()> {
        let upper = self.upper()?;
        for _ in 0..ATTEMPTS {
            let files = self.read_by_kernel_in(layers)?;
            if files.is_empty() {
                let root = upper.root_address();
                return match self.marks.get(&root, Mark::Carrying)? {
                    None => Ok(()),
                    Some(_) => Err(Errno::BUSY.into()),
                };
            }
            for ino in files {
                // It may be closed, and forgotten, by now.
                match self.across_freezes(|| self.copy_up(ino, Want::Data)) {
                    Err(error) if error.is(Errno::STALE) || error.is(Errno::NOENT) => {}
                    done => done?,
                }
            }
        }
        Err(Errno::BUSY.into())
    }

    /// Files of `layers` that the kernel reads by itself.
    fn read_by_kernel_in(&self, layers: &[LayerSerial]) -> Result<BTreeSet<Ino>> {
        let mut files = BTreeSet::new();
        for open in self.handles.all() {
            if !matches!(open.source(), Source::File(layer, _) if layers.contains(&layer)) {
                continue;
            }
            if open.is_apart() && open.writes() {
                return Err(Errno::TXTBSY.into());
            }
            // What has no name any more is never changed.
            let has_name =
                |ino| self.nodes.find(ino).is_some_and(|node| node.dentry != Dentry::Nowhere);
            if open.is_kernel_s() && has_name(open.ino) {
                files.insert(open.ino);
            }
        }
        Ok(files)
    }
}
