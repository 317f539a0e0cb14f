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
        Ok(Self { serial, root: Arc::new(root), path: dir.to_owned(), others: Arc::default() })
    }

    /// Says that it may have been made over one of `others`, with layers between: the archive that it is put on now shows
    /// what these have shown together. Its redirects lead to the same there; only the numbers in its records do not, and
    /// are not followed.
    #[must_use]
    pub fn made_over(mut self, others: Arc<[ArchiveIdentity]>) -> Self {
        self.others = others;
        self
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
        if let Err(errno) = rustix::fs::flock(&self.root, FlockOperation::Unlock) {
            tracing::warn!("{}: cannot be unlocked: {errno}", self.path.display());
        }
    }
}
