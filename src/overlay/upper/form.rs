//! The form of an upper: which attributes its marks are, and what its whiteouts are.
//!
//! It is chosen when the upper is new, by what its file system can do, and kept: an upper may be opened by
//! another user or carried elsewhere, and what it says must be found where it was said.

#[cfg(doc)]
use super::marks::Mark;
use super::marks::Namespace;

/// What hides a name of the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Whiteouts {
    /// A 0/0 character device.
    Devices,
    /// An empty file with [`Mark::Whiteout`], in a directory with [`Mark::Opaque`] `x`. They are for file
    /// systems that have no such devices, as overlayfs, to which these are whiteouts of its own. The kernel
    /// (since 6.8) reads them in lower layers, not in an upper one.
    Files,
}

/// The form of one upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) marks: Namespace,
    pub(super) whiteouts: Whiteouts,
    /// Whether a rename can leave a whiteout behind in the same step (`RENAME_WHITEOUT`).
    pub(super) in_one_step: bool,
    /// Whether attributes that only root of the machine may write can be written.
    pub(super) by_root: bool,
}
