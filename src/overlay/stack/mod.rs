//! The stack of a mount: the archive, the frozen layers over it, and the live upper.

mod layer;

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

pub use layer::Layer;

use super::Overlay;
use super::error::Result;
use crate::types::LayerSerial;

/// What a freeze has made of the live upper: a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frozen {
    /// Files that somebody wrote to while they were copied into the layer, by their paths from the root: what the layer
    /// has of them is of no one moment.
    pub fuzzy: Vec<PathBuf>,
}

/// What a rollback has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RolledBack {
    /// How many names mean something else than before, or nothing.
    pub names: u64,
}

impl Overlay {
    /// Makes the live upper a layer, and the empty directory `next` the live upper, whose number is `serial`. `commit` is
    /// called once, when nothing else can fail; the tree is at rest then, so it is to be quick.
    ///
    /// # Errors
    /// `EROFS` without an upper, what the upper's file system says, or what `commit` does. Nothing has changed then.
    pub fn freeze(
        &self,
        _next: &Path,
        _serial: LayerSerial,
        _commit: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<Frozen> {
        self.upper()?;
        Err(Errno::NOSYS.into())
    }

    /// Makes `layers`, the bottom one first, the frozen ones of the stack, and the empty directory `next` the live upper,
    /// as [`Self::freeze`]. What is open stays what it was.
    ///
    /// # Errors
    /// As [`Self::freeze`].
    pub fn roll_back(
        &self,
        _layers: Vec<Layer>,
        _next: &Path,
        _serial: LayerSerial,
        _commit: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<RolledBack> {
        self.upper()?;
        Err(Errno::NOSYS.into())
    }
}
