//! What of a change may take its time, without anybody waiting for it.

use std::io;
use std::sync::Arc;

use super::super::leftovers;
use super::disk::{Disk, When};
use super::manifest::{LayerDir, Manifest};
use super::readers::Readers;
use super::spare::Room;
use super::{Facts, failed};
use crate::failure::Failure;
use crate::types::LayerSerial;

/// A manifest that is to be written while there may be other changes.
#[derive(Debug)]
pub(in super::super) struct Flush {
    pub(super) disk: Arc<Disk>,
    pub(super) manifest: Manifest,
    pub(super) bytes: Vec<u8>,
    pub(super) facts: Facts,
    pub(super) written: u64,
    pub(super) room: Room,
}

impl Flush {
    /// Writes it, by one at a time. It is to be on disk before it is put in its place.
    ///
    /// # Errors
    /// [`crate::failure::Code::Upper`]: what the disk says.
    pub(in super::super) fn write(&self) -> Result<(), Failure> {
        let staged = self.disk.stage(&self.bytes, When::Later, self.room);
        staged.map_err(|error| {
            let _ = self.disk.unstage(When::Later);
            failed("write", &self.disk.manifest_path(), &error)
        })
    }
}

/// Removes what was put aside.
#[derive(Debug)]
pub(in super::super) struct Remover {
    pub(super) disk: Arc<Disk>,
    pub(super) readers: Readers,
    /// Whether that is all in the upper as well.
    pub(super) upper: bool,
}

impl Remover {
    /// # Errors
    /// When something cannot be removed; the rest is, and that is tried again when the stack is opened next.
    pub(in super::super) fn remove(&self) -> io::Result<()> {
        let is_free = |layer| !self.readers.has(layer);
        let emptied = match self.upper && is_free(LayerSerial::default()) {
            true => self.disk.empty_upper(),
            false => Ok(()),
        };
        self.disk.remove_discarded(&is_free).and(emptied)
    }
}

/// Has a layer on disk.
#[derive(Debug)]
pub(in super::super) struct Syncer {
    pub(super) disk: Arc<Disk>,
}

impl Syncer {
    /// # Errors
    /// What syncfs(2) says.
    pub(in super::super) fn sync(&self) -> io::Result<()> {
        self.disk.sync()
    }

    /// As [`Self::sync`], of the names of what is in the work directory alone.
    ///
    /// # Errors
    /// What fsync(2) says.
    pub(in super::super) fn sync_names(&self) -> io::Result<()> {
        self.disk.sync_names()
    }

    /// Room that a layer takes, in bytes.
    pub(in super::super) fn usage(&self, dir: LayerDir) -> u64 {
        leftovers::disk_usage(&self.disk.layer_path(dir))
    }
}
