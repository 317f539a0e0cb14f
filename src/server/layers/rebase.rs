//! Putting a stack onto a backup of what its lower layers are, which are not needed then.
//!
//! ```text
//! the live upper becomes a layer, without a point   as at a freeze: its records are of the old archive
//! the manifest says what it lies on from now on     one rename; an empty upper is live
//! the layers that are not needed go                 as others do
//! ```
//!
//! Who is killed after the first has a layer more than before, and nothing else.

use std::sync::Arc;

use super::manifest::{Manifest, Onto, Point, PublishState, Sent};
use super::spare::Room;
use super::{Change, Layers, Serials};
use crate::backup::BackupId;
use crate::failure::{Code, Failure};
use crate::overlay::ArchiveIdentity;
use crate::types::LayerSerial;

/// What went when a stack was put onto a backup.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) struct Freed {
    /// How many layers.
    pub(in super::super) layers: usize,
    /// Points that were there; they are in the bucket.
    pub(in super::super) points: Vec<BackupId>,
}

impl Manifest {
    /// The live upper has become a layer, and the next one is live.
    pub(super) fn frozen_alone(mut self) -> Option<Self> {
        let below = self.live;
        self.push_live(Some(below))?;
        self.prune();
        Some(self)
    }

    /// Layers that lie on `base`.
    fn above(&self, base: LayerSerial) -> Serials {
        let lies_on =
            |serial: &LayerSerial| *serial != base && self.chain(Some(*serial)).contains(&base);
        self.layers.keys().copied().filter(lies_on).collect()
    }

    /// Points that would be lost were it put onto `sent`: those that are not in the bucket, or that somebody has named, but
    /// for what `sent` is itself.
    pub(in super::super) fn lost_onto(&self, sent: &Sent) -> Vec<&Point> {
        let above = self.above(sent.serial);
        let is_lost = |point: &&Point| {
            let publish = point.publish.as_ref();
            let state = publish.map(|publish| &publish.state);
            let is_published = matches!(state, Some(PublishState::Published { .. }));
            let is_passing = publish.is_some_and(|publish| publish.passing);
            let goes = !above.contains(&point.serial) && point.serial != sent.serial;
            goes && !is_passing && (point.name.is_some() || !is_published)
        };
        self.points.iter().chain(&self.rolled_away).filter(is_lost).collect()
    }

    /// Put onto `sent`, with the next upper live on what the live one lies on. The archive was `archive`. `None` where
    /// there are no numbers left.
    pub(super) fn put_onto(&self, sent: &Sent, archive: &ArchiveIdentity) -> Option<Self> {
        let mut after = self.clone();
        after.push_live(self.parent_of_live())?;
        let above = after.above(sent.serial);
        after.layers.retain(|serial, _| above.contains(serial));
        for layer in after.layers.values_mut().filter(|it| it.parent == Some(sent.serial)) {
            layer.parent = None;
        }
        after.points.retain(|point| above.contains(&point.serial));
        after.rolled_away = after.rolled_away.filter(|point| above.contains(&point.serial));
        let mut over = after.onto.take().map(|onto| onto.over).unwrap_or_default();
        let archive = archive.to_text();
        over.retain(|other| *other != archive);
        over.push(archive);
        after.onto = Some(Onto { id: sent.id.clone(), since: after.live, over });
        after.prune();
        Some(after)
    }

    /// Whether `serial` was made over another archive than that which it is over now. What tells archives from others may
    /// be the same for two that were made in one second.
    pub(super) fn is_of_before(&self, serial: LayerSerial) -> bool {
        self.onto.as_ref().is_some_and(|onto| serial < onto.since)
    }

    /// What its layers may have been made over beside the archive.
    pub(in super::super) fn made_over(&self) -> Arc<[ArchiveIdentity]> {
        let over = self.onto.iter().flat_map(|onto| &onto.over);
        over.filter_map(|text| ArchiveIdentity::parse(text)).collect()
    }
}

impl Layers {
    /// Writes down that the live upper becomes a layer, as [`Self::freezing`], without a point.
    ///
    /// # Errors
    /// As [`Self::freezing`].
    pub(in super::super) fn freezing_alone(&mut self) -> Result<Change, Failure> {
        self.changing(Room::Kept, |manifest| manifest.clone().frozen_alone())
    }

    /// Puts the stack onto `sent`, a backup of what it lies on. The archive was `archive`. The live upper, of which
    /// nothing is kept, is another then.
    ///
    /// # Errors
    /// [`Code::Upper`]: what the disk says; nothing has changed then.
    pub(in super::super) fn put_onto(
        &mut self,
        sent: &Sent,
        archive: &ArchiveIdentity,
    ) -> Result<Freed, Failure> {
        self.prepare_in(Room::Kept)?;
        let before = Arc::clone(&self.manifest);
        let manifest = before.put_onto(sent, archive).ok_or_else(|| {
            let message = format!("{} has no number left", self.disk.manifest_path().display());
            Failure::new(Code::Upper, message)
        })?;
        self.write(manifest, Room::Kept)?;
        self.prepared = false;
        let gone = |serial: &LayerSerial| !self.manifest.has(*serial);
        let points = before.points.iter().filter(|point| gone(&point.serial));
        Ok(Freed {
            layers: before.frozen_layers().filter(gone).count(),
            points: points.map(|point| point.id.clone()).collect(),
        })
    }
}
