//! One frozen layer.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;

use super::super::error::Result;
use super::super::lower::ArchiveIdentity;
use super::super::upper::unusable;
use crate::inode_ops::{Address, Directory};
use crate::types::LayerSerial;

/// A frozen upper. Nobody makes it their upper while it is in use.
#[derive(Debug)]
pub struct Layer {
    pub(in super::super) serial: LayerSerial,
    pub(in super::super) root: Arc<OwnedFd>,
    /// For messages only.
    pub(in super::super) path: PathBuf,
    /// See [`Self::made_over`].
    pub(in super::super) others: Arc<[ArchiveIdentity]>,
    /// Whether that is known to others by a lock, which this one has.
    is_locked: bool,
}

impl Layer {
    /// Opens the layer in `dir`, whose number is `serial`.
    ///
    /// # Errors
    /// [`super::super::Error::Unusable`] where it cannot be read, or somebody has it as an upper.
    pub fn open(dir: &Path, serial: LayerSerial) -> Result<Self> {
        let opened = Directory::open(dir).and_then(|dir| dir.open_to_read());
        let root = opened.map_err(|error| unusable(dir, error.to_string()))?;
        rustix::fs::flock(&root, FlockOperation::NonBlockingLockShared)
            .map_err(|errno| unusable(dir, format!("cannot be locked: {errno}")))?;
        Ok(Self::locked(serial, Arc::new(root), dir.to_owned()))
    }

    /// Says that it may have been made over one of `others`, with layers between: the archive that it is put on now shows
    /// what these have shown together. Its redirects lead to the same there; only the numbers in its records do not, and
    /// are not followed.
    #[must_use]
    pub fn made_over(mut self, others: Arc<[ArchiveIdentity]>) -> Self {
        self.others = others;
        self
    }

    /// The layer whose root is `root`, which is locked.
    pub(super) fn locked(serial: LayerSerial, root: Arc<OwnedFd>, path: PathBuf) -> Self {
        Self { serial, root, path, others: Arc::default(), is_locked: true }
    }

    /// The same, of a layer that somebody else keeps locked for as long.
    pub(super) fn borrowed(serial: LayerSerial, root: Arc<OwnedFd>) -> Self {
        Self { serial, root, path: PathBuf::new(), others: Arc::default(), is_locked: false }
    }

    /// The attributes of its root.
    pub(in super::super) fn root_address(&self) -> Address {
        Address::at(&self.root, OsStr::new("."))
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        // Closing would not do: a child that another thread is just starting holds the descriptor until it executes its
        // program.
        if self.is_locked
            && let Err(errno) = rustix::fs::flock(&self.root, FlockOperation::Unlock)
        {
            tracing::warn!("{}: cannot be unlocked: {errno}", self.path.display());
        }
    }
}
