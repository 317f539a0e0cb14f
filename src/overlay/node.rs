//! One node: where it is found, and what is known of its inode in the upper.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::ctime::KeptCtime;
use super::name::Name;
use super::stack::{Below, Part};
use crate::types::{FileKind, Ino, InodeRef, LayerSerial, Owner};

/// Where a node is found: its name in the merged tree, if it has one. Of several names of a hard link, the one
/// last looked up or made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Dentry {
    /// Under a name in a directory of the merged tree.
    Name(Ino, Name),
    /// In the upper's index of lower hard links, whatever its names.
    Index,
    /// Nowhere by name: unlinked, or the name we knew is gone. If it is in the upper, it is pinned.
    Nowhere,
}

impl Dentry {
    pub(super) fn named(parent: Ino, name: &OsStr) -> Self {
        Self::Name(parent, name.as_bytes().into())
    }

    pub(super) fn parent(&self) -> Option<Ino> {
        match self {
            Self::Name(parent, _) => Some(*parent),
            Self::Index | Self::Nowhere => None,
        }
    }

    pub(super) fn is(&self, parent: Ino, name: &OsStr) -> bool {
        matches!(self, Self::Name(dir, own) if *dir == parent && **own == *name.as_bytes())
    }
}

/// Where the data of a regular file in the upper is.
#[derive(Clone, Debug)]
pub(super) enum Data {
    /// In the inode itself. So of everything that is not a regular file.
    Upper,
    /// Still in this inode of the archive (the kernel's metacopy).
    Lower(InodeRef),
    /// Still in this inode of a frozen layer.
    Layer(InLayer),
}

impl Data {
    pub(super) fn is_here(&self) -> bool {
        matches!(self, Self::Upper)
    }
}

/// An inode of a frozen layer, by its name.
#[derive(Clone, Debug)]
pub(super) struct InLayer {
    pub(super) dir: Arc<Part>,
    pub(super) name: Name,
}

/// How much of an inode has to be in the upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// Its attributes and name.
    Attributes,
    /// Its data too.
    Data,
    /// No data: it is about to be truncated.
    Truncated,
}

/// What is known of a node's inode in the upper, or in a layer, which is an upper that was frozen.
#[derive(Clone, Debug)]
pub(super) struct UpperState {
    /// The layer that it is in: the live one, or a frozen one.
    pub(super) layer: LayerSerial,
    /// Its number in the file system of the upper.
    pub(super) st_ino: u64,
    /// [`super::attr::generation_of`] it if born in the upper, else 0.
    pub(super) generation: u64,
    pub(super) kind: FileKind,
    /// Of a directory: what it merges with. Else: the inode of the archive that it was copied from.
    pub(super) below: Below,
    /// Of a directory of a frozen layer, once it is known: itself, and what is below it.
    pub(super) whole: Option<Below>,
    pub(super) data: Data,
    /// Names in the merged tree less links in the upper; nonzero only in the index.
    pub(super) extra_links: i64,
    /// A 0/0 character device, stored as another.
    pub(super) null_device: bool,
    /// Its owner, where the upper could not be given that and has a record of it.
    pub(super) owner: Option<Owner>,
    /// Of a directory that merges with a lower one: see [`super::ctime`].
    pub(super) kept_ctime: Option<KeptCtime>,
    /// Of a file of a frozen layer: whether it was opened there.
    pub(super) was_opened: bool,
    /// Of a directory: whether it has [`super::upper::Mark::Impure`], once that is known.
    pub(super) impure: Option<bool>,
    /// Of a directory: whether it is known to be prepared for whiteouts.
    pub(super) whiteouts: bool,
    /// Where the inode is in a layer, of what a rollback has taken its name from.
    pub(super) place: Option<InLayer>,
    /// The same inode, if it was open then: the layer may be removed.
    pub(super) held: Option<Arc<OwnedFd>>,
    /// Whether it was in the live upper when that was rolled away: then nobody else has it.
    pub(super) is_apart: bool,
    /// Reaches the inode where no name does.
    pub(super) pin: Option<Arc<OwnedFd>>,
}

impl UpperState {
    /// Of an inode in the upper that has nothing special about it.
    pub(super) fn new(
        (layer, st_ino): (LayerSerial, u64),
        kind: FileKind,
        generation: u64,
        below: Below,
    ) -> Self {
        Self {
            layer,
            st_ino,
            generation,
            kind,
            below,
            whole: None,
            data: Data::Upper,
            extra_links: 0,
            null_device: false,
            owner: None,
            kept_ctime: None,
            was_opened: false,
            impure: None,
            whiteouts: false,
            place: None,
            held: None,
            is_apart: false,
            pin: None,
        }
    }
}

/// A copy of what a node was at one moment.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) dentry: Dentry,
    pub(super) upper: Option<UpperState>,
}
