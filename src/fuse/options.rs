//! What is asked of the kernel for a mount.

use std::time::Duration;

use super::flags::MountFlags;

/// What the kernel is told about a mount.
#[derive(Clone, Debug)]
pub(crate) struct MountOptions {
    /// The source shown in `/proc/mounts`.
    pub fsname: String,
    /// Refuse every change, in the kernel already.
    pub read_only: bool,
    /// Let users other than the one who mounts in. Root's mounts always do.
    pub allow_other: bool,
    /// Generic mount flags.
    pub flags: MountFlags,
    /// How many stacked file systems (an overlayfs, say) lie below the upper directory, for the
    /// kernel to do the upper's I/O by itself; `None` where it shall not, or has no right to.
    pub upper_stack_depth: Option<u32>,
    /// How long the kernel may remember that a name leads to a file, or to none.
    pub entry_ttl: Duration,
    /// How long the kernel may remember a file's attributes.
    pub attr_ttl: Duration,
    /// How many files the kernel should remember at most; it keeps more while they are in use, and
    /// before Linux 6.18 as many as its memory holds.
    pub max_nodes: usize,
}

impl MountOptions {
    /// A year: for the kernel to forget, it must need the memory. All changes to the tree pass
    /// through the mount, so what it remembers is never stale.
    pub(crate) const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

    /// As many files as cost 12 MiB to know.
    pub(crate) const MAX_NODES: usize = 160 << 10;

    /// Options for a mount shown as `fsname`, all else default.
    pub(crate) fn new(fsname: impl Into<String>) -> Self {
        Self {
            fsname: fsname.into(),
            read_only: false,
            allow_other: rustix::process::geteuid().is_root(),
            flags: MountFlags::default(),
            upper_stack_depth: None,
            entry_ttl: Self::FOREVER,
            attr_ttl: Self::FOREVER,
            max_nodes: Self::MAX_NODES,
        }
    }
}
