//! Layers that become one: see [`crate::overlay`] for what that is, and how the mount goes over to it.
//!
//! The merged layer is built in a directory that no manifest names yet. It is there once a manifest says so, which does not
//! name those that it was made of any more. Whatever is killed in between, it is the one or the other; the rest goes.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::disk::{Disk, When};
use super::manifest::{LayerDir, Manifest};
use super::spare::Room;
use super::tree::Which;
use super::{Layers, Serials, failed};
use crate::failure::Failure;
use crate::types::LayerSerial;

/// Layers that are to be one.
#[derive(Debug)]
pub(in super::super) struct Merging {
    disk: Arc<Disk>,
    dir: LayerDir,
    /// They, the bottom one first.
    pub(in super::super) run: Vec<LayerSerial>,
    /// Where what they are together is to be built.
    pub(in super::super) into: PathBuf,
    /// What is written for it.
    staged: Option<Staged>,
    committed: bool,
}

#[derive(Debug)]
struct Staged {
    /// The manifest that it goes on from, and that which it is.
    before: Arc<Manifest>,
    after: Manifest,
    when: When,
}

impl Merging {
    /// Makes the change. Nothing is waited for.
    ///
    /// # Errors
    /// What the kernel says; nothing has changed then.
    pub(in super::super) fn commit(&mut self) -> io::Result<()> {
        let staged = self.staged.as_ref().ok_or(io::ErrorKind::InvalidInput)?;
        self.disk.commit(staged.when)?;
        self.committed = true;
        Ok(())
    }
}

impl Layers {
    /// Begins to merge layers, if that is worth it: of those for which `may_go` says that they may be merged, between
    /// `fewest` and `most`, with `room` bytes of room.
    ///
    /// # Errors
    /// [`crate::failure::Code::Upper`]: what the disk says.
    pub(in super::super) fn merging(
        &self,
        may_go: &dyn Fn(LayerSerial) -> bool,
        (fewest, most): (usize, usize),
        room: u64,
    ) -> Result<Option<Merging>, Failure> {
        let used = self.used_by_others();
        let may_go = |layer| !used.contains(&layer) && may_go(layer);
        let Some(run) = self.manifest.to_merge(&Which { may_go: &may_go, fewest, most, room })
        else {
            return Ok(None);
        };
        let after = self.manifest.merged(&run);
        let (Some(after), Some(top)) = (after, run.last()) else { return Ok(None) };
        let (disk, dir) = (Arc::clone(&self.disk), after.dir_of(*top));
        let into = disk.layer_path(dir);
        disk.make_layer(dir, Room::Free).map_err(|error| failed("make", &into, &error))?;
        Ok(Some(Merging { disk, dir, run, into, staged: None, committed: false }))
    }

    /// Which layers somebody else uses than the mount that they are of, as far as is known.
    fn used_by_others(&self) -> Serials {
        let forks = self.manifest.forks().iter().filter(|fork| self.manifest.has(fork.top));
        let mut used = self.manifest.shared();
        used.extend(forks.flat_map(|fork| self.manifest.chain(Some(fork.top))));
        let frozen = self.manifest.frozen_layers();
        used.extend(frozen.filter(|layer| self.readers.has(*layer)));
        used
    }

    /// Writes down what there is to be, while there may be other changes: it is for [`Self::confirm_merge`] to see whether
    /// there were. Says whether it is still to be. What is written is to be on disk by then.
    ///
    /// # Errors
    /// [`crate::failure::Code::Upper`]: what the disk says.
    pub(in super::super) fn stage_merge(&self, merging: &mut Merging) -> Result<bool, Failure> {
        self.stage(merging, When::Later)
    }

    /// Makes sure that what is written goes on from what there is now. Says whether it is still to be: then
    /// [`Merging::commit`] is to happen, and [`Self::settle_merge`] to end it.
    ///
    /// # Errors
    /// [`crate::failure::Code::Upper`]: what the disk says.
    pub(in super::super) fn confirm_merge(
        &mut self,
        merging: &mut Merging,
    ) -> Result<bool, Failure> {
        self.see_forks()?;
        let used = self.used_by_others();
        if merging.run.iter().any(|layer| used.contains(layer)) {
            return Ok(false);
        }
        match &merging.staged {
            Some(staged) if Arc::ptr_eq(&staged.before, &self.manifest) => Ok(true),
            _ => self.stage(merging, When::Now),
        }
    }

    fn stage(&self, merging: &mut Merging, when: When) -> Result<bool, Failure> {
        let Some(after) = self.manifest.merged(&merging.run) else { return Ok(false) };
        let after = after.on_boot(&self.boot);
        let staged = after.to_json().and_then(|bytes| self.disk.stage(&bytes, when, Room::Free));
        staged.map_err(|error| {
            let _ = self.disk.unstage(when);
            failed("write", &self.disk.manifest_path(), &error)
        })?;
        merging.staged = Some(Staged { before: Arc::clone(&self.manifest), after, when });
        Ok(true)
    }

    /// Takes over a merge that was tried, or given up, and says whether it came to be. What is not needed any more is put
    /// aside. Who is in the middle of using it may go on.
    pub(in super::super) fn settle_merge(&mut self, merging: Merging) -> bool {
        let Merging { dir, staged, committed, .. } = merging;
        match staged.filter(|_| committed) {
            Some(Staged { after, .. }) => {
                self.adopt(after);
                self.is_written(&Arc::clone(&self.manifest));
            }
            None => {
                let _ = self.disk.unstage(When::Later);
                let _ = self.disk.unstage(When::Now);
                self.put_aside(vec![dir]);
            }
        }
        committed
    }
}
