//! What is asked of the kernel for a mount.

use std::time::Duration;

use rustix::thread::CapabilitySet;

/// What the kernel is told about a mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// The source shown in `/proc/mounts`.
    pub fsname: String,
    /// Refuse every change, in the kernel already.
    pub read_only: bool,
    /// Let users other than the one who mounts in. Root's mounts always do.
    pub allow_other: bool,
    /// Generic mount flags from `-o`: `suid`, `dev`, `noexec`, `noatime`, `nodiratime`, `sync`, `dirsync`
    /// and their opposites; the last one counts. Without any, mounts are `nosuid` and `nodev`.
    pub flags: Vec<String>,
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
    pub const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

    /// As many files as cost 12 MiB to know.
    pub const MAX_NODES: usize = 160 << 10;

    /// Options for a mount shown as `fsname`, all else default.
    pub fn new(fsname: impl Into<String>) -> Self {
        Self {
            fsname: fsname.into(),
            read_only: false,
            allow_other: rustix::process::geteuid().is_root(),
            flags: Vec::new(),
            upper_stack_depth: None,
            entry_ttl: Self::FOREVER,
            attr_ttl: Self::FOREVER,
            max_nodes: Self::MAX_NODES,
        }
    }

    /// Whether reading a file leaves its `st_atime` as it is. The kernel keeps this flag and leaves what
    /// it means to us.
    pub fn no_atime(&self) -> bool {
        self.has("noatime", "atime")
    }

    /// Whether listing a directory leaves its `st_atime` as it is.
    pub fn no_dir_atime(&self) -> bool {
        self.no_atime() || self.has("nodiratime", "diratime")
    }

    /// Whether option `name` was given, and not taken back later by `opposite`.
    pub(super) fn has(&self, name: &str, opposite: &str) -> bool {
        has(&self.flags, name, opposite)
    }
}

/// The first of `flags` that this process may not ask the kernel for. fusermount3, which mounts for
/// those who may not themselves, leaves such options out with a line that nobody would see.
pub fn refused_flag(flags: &[String]) -> Option<&'static str> {
    let may_mount = rustix::thread::capabilities(None)
        .is_ok_and(|own| own.effective.contains(CapabilitySet::SYS_ADMIN));
    let asked = [("suid", "nosuid"), ("dev", "nodev")];
    let refused = asked.into_iter().find(|(name, opposite)| has(flags, name, opposite));
    refused.filter(|_| !may_mount).map(|(name, _)| name)
}

fn has(flags: &[String], name: &str, opposite: &str) -> bool {
    let last = flags.iter().rev().find(|flag| *flag == name || *flag == opposite);
    last.is_some_and(|flag| flag == name)
}
