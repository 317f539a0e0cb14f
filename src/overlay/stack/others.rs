//! Layers that were made over another archive than the one below. It showed, with layers that are not there any more,
//! what this one shows. So names lead to the same; but the places of inodes, and their numbers, are others.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::super::Overlay;
use super::super::error::Result;
use super::super::ino;
use super::super::lower::ArchiveIdentity;
use super::super::upper::{Mark, Record};
use super::Layer;
use crate::inode_ops::Address;
use crate::types::{FileKind, LayerSerial};

/// Which layers those are, each with what its archive was.
#[derive(Debug, Default)]
pub(in super::super) struct Others {
    are_there: AtomicBool,
    known: RwLock<HashMap<LayerSerial, ArchiveIdentity>>,
}

/// The archive that `layer` was made over, if it may be another than the one below. `marked` is what its mark says; kernel
/// overlayfs leaves none.
pub(super) fn made_over<'a>(
    layer: &'a Layer,
    marked: Option<&[u8]>,
) -> Option<&'a ArchiveIdentity> {
    match marked {
        Some(marked) => layer.others.iter().find(|other| other.0 == marked),
        None => layer.others.first(),
    }
}

impl Others {
    pub(super) fn add(&self, layer: LayerSerial, archive: &ArchiveIdentity) {
        self.known.write().insert(layer, archive.clone());
        self.are_there.store(true, Ordering::Release);
    }

    /// Adds what is in `more`. A number of a layer is never used again.
    pub(super) fn extend(&self, more: Self) {
        for (layer, archive) in more.known.into_inner() {
            self.add(layer, &archive);
        }
    }

    pub(super) fn get(&self, layer: LayerSerial) -> Option<ArchiveIdentity> {
        match self.are_there.load(Ordering::Acquire) {
            true => self.known.read().get(&layer).cloned(),
            false => None,
        }
    }
}

impl Overlay {
    /// Whether the numbers that `layer` has of the archive are of another one.
    pub(in super::super) fn is_over_another(&self, layer: LayerSerial) -> bool {
        self.stack.others.get(layer).is_some()
    }

    /// What the record says of the inode at `address` in `layer`, of number `st_ino` there. Where that was made over another
    /// archive, what it says of that is a number like those of files that no archive has. Of a directory it says nothing
    /// then: its number is that of the directory that its name or a redirect leads to.
    pub(in super::super) fn read_record(
        &self,
        layer: LayerSerial,
        address: &Address,
        kind: FileKind,
        st_ino: u64,
    ) -> Result<Option<Record>> {
        let record = self.marks.for_kind(kind).get(address, Mark::Record)?;
        let record = record.and_then(|record| Record::parse(&record, st_ino));
        let (Some(Record::Archive(inode)), Some(archive)) = (record, self.stack.others.get(layer))
        else {
            return Ok(record);
        };
        Ok(match kind {
            FileKind::Directory => None,
            _ => Some(Record::Number(ino::of_other(&archive.0, inode), 0)),
        })
    }
}
