//! When layers are merged: after a checkpoint, or what forgets some, on the thread that tidies layers.
//!
//! What cannot be merged, as somebody uses it so or it is of a kind that cannot be, is not tried again and again: first
//! fewer of the layers are, and then those above them alone, until many more have come, or a while has passed: there may be
//! room by then, and nobody who uses it.

use std::time::{Duration, Instant};

use super::super::layers::{Layers, Merging};
use super::background::Background;
use crate::failure::Failure;
use crate::overlay::{MergedLayer, Overlay};
use crate::types::LayerSerial;

/// How many layers are merged at least: what is merged is copied.
const FEWEST: usize = 4;

/// How many layers have to come until what could not be merged is tried again.
const AGAIN_AFTER: u32 = 64;

/// How long what could not be merged is left alone: twice as long each time, up to the longest.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_mins(10);

/// What could not be merged.
#[derive(Debug, Default)]
pub(super) struct Merger {
    /// Not more at once than this.
    most: Option<usize>,
    /// Only layers above this.
    above: Option<LayerSerial>,
    /// All is tried again when this one is live.
    until: LayerSerial,
    /// Or then.
    again: Option<Instant>,
    /// How long it waits for that next.
    pause: Duration,
}

impl Merger {
    /// When something is tried again, whatever comes.
    pub(super) fn again(&self) -> Option<Instant> {
        self.again
    }

    /// Has all be tried, if it is time.
    pub(super) fn look_again_in_time(&mut self) {
        if self.again.is_some_and(|again| again <= Instant::now()) {
            self.look_again();
        }
    }

    /// Has all be tried.
    fn look_again(&mut self) {
        *self = Self { pause: self.pause, ..Self::default() };
    }

    /// Has all be tried as if nothing had failed: somebody wants room.
    pub(super) fn begin_again(&mut self) {
        *self = Self::default();
    }

    fn has_failed(&mut self, run: &[LayerSerial], live: LayerSerial) {
        // Fewer of them are tried at once, and are part of the same trial.
        if self.again.is_none() {
            self.pause = (self.pause * 2).clamp(SHORTEST, LONGEST);
            self.again = Some(Instant::now() + self.pause);
        }
        self.until = LayerSerial(live.0.saturating_add(AGAIN_AFTER));
        if run.len() > FEWEST {
            self.most = Some((run.len() / 2).max(FEWEST));
        } else {
            (self.most, self.above) = (None, run.last().copied());
        }
    }
}

impl Background {
    /// Merges layers, if that is worth it. Says whether there may be more to merge.
    pub(super) fn merge(&self) -> bool {
        let Some(tree) = self.tree.upgrade().filter(|_| !self.is_ending()) else { return false };
        self.merge_once(&tree).unwrap_or_else(|failure| {
            tracing::warn!("layers are not merged yet: {failure}");
            false
        })
    }

    fn merge_once(&self, tree: &Overlay) -> Result<bool, Failure> {
        let mut merger = self.merger.lock();
        let in_use = tree.layers_in_use();
        let Some(layers) = self.layers() else { return Ok(false) };
        let live = layers.manifest().live();
        if live >= merger.until {
            merger.look_again();
        }
        let (above, most) = (merger.above, merger.most.unwrap_or(usize::MAX));
        let may_go = |layer| above.is_none_or(|above| layer > above) && !in_use.contains(&layer);
        let merging = layers.merging(&may_go, (FEWEST, most), room_of(tree)?)?;
        drop(layers);
        let Some(mut merging) = merging else { return Ok(false) };
        let run = merging.run.clone();
        let built = self.build(tree, &merging).unwrap_or_else(|failure| {
            tracing::debug!("layers {run:?} stay apart: {failure}");
            None
        });
        let _nobody_else_writes = self.flushing.lock();
        let written = match &built {
            Some(_) => self.write_down(&mut merging),
            None => Ok(()),
        };
        // Nothing comes between what the disk says, what the mount has, and what is known here.
        let mut layers = self.layers.lock();
        let went_over = match built.filter(|_| written.is_ok() && !self.is_ending()) {
            Some(built) => go_over(tree, &mut layers, built, &mut merging),
            None => written.map(|()| false),
        };
        let committed = layers.settle_merge(merging);
        self.show(&layers);
        drop(layers);
        match went_over {
            Ok(true) if committed => (merger.most, merger.pause) = (None, Duration::ZERO),
            Ok(went_over) if went_over == committed => {
                tracing::debug!("layers {run:?} are not merged");
                merger.has_failed(&run, live);
            }
            Ok(_) => tracing::error!("layers {run:?} are merged in part; please report this"),
            Err(failure) => {
                merger.has_failed(&run, live);
                return Err(failure);
            }
        }
        Ok(true)
    }

    fn build(&self, tree: &Overlay, merging: &Merging) -> Result<Option<MergedLayer>, Failure> {
        let most = room_of(tree)? / 2;
        Ok(Some(tree.merge(&merging.run, &merging.into, most, &|| !self.is_ending())?))
    }

    /// Has the disk have what was built, and what is to be written of it.
    fn write_down(&self, merging: &mut Merging) -> Result<(), Failure> {
        let syncer = {
            let layers = self.layers.lock();
            layers.stage_merge(merging)?;
            layers.syncer()
        };
        syncer.sync().map_err(|error| Failure::io("sync", &merging.into, &error))
    }
}

/// How much room there is for layers, in bytes.
fn room_of(tree: &Overlay) -> Result<u64, Failure> {
    let room = tree.statfs()?;
    Ok(room.blocks_available.saturating_mul(u64::from(room.fragment_size)))
}

/// Says whether what was built is in use now.
fn go_over(
    tree: &Overlay,
    layers: &mut Layers,
    built: MergedLayer,
    merging: &mut Merging,
) -> Result<bool, Failure> {
    if !layers.confirm_merge(merging)? {
        return Ok(false);
    }
    Ok(tree.go_over(built, &mut || merging.commit())?)
}
