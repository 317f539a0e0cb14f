//! Mounting: from an [`Overlay`] to a directory that answers, and its end.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fuser::{Config, Session, SessionACL};

use super::faults::Faults;
use super::filesystem::Adapter;
use super::mount::{detach, mount, unmount};
use crate::overlay::Overlay;

/// FUSE threads. They answer from memory or the upper's page cache only, so a few more than the
/// cores suffice; four is the least, so that a slow upper disk does not stop everything.
fn fuse_threads() -> usize {
    std::thread::available_parallelism().map_or(4, |cores| cores.get().clamp(4, 16))
}

/// What the kernel is told about a mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// The source shown in `/proc/mounts`.
    pub fsname: String,
    /// Refuse every change, in the kernel already.
    pub read_only: bool,
    /// Let users other than the one who mounts in. Root's mounts always do.
    pub allow_other: bool,
    /// Generic mount flags from `-o`: `nosuid`, `nodev`, `noexec`, `noatime`, `sync`, `dirsync`
    /// and their opposites; the last one counts.
    pub flags: Vec<String>,
    /// How many stacked file systems (an overlayfs, say) lie below the upper directory, for the
    /// kernel to do the upper's I/O by itself; `None` where it shall not, or has no right to.
    pub upper_stack_depth: Option<u32>,
    /// How long the kernel may remember that a name leads to a file, or to none.
    pub entry_ttl: Duration,
    /// How long the kernel may remember a file's attributes.
    pub attr_ttl: Duration,
}

impl MountOptions {
    /// A year: for the kernel to forget, it must need the memory. All changes to the tree pass
    /// through the mount, so what it remembers is never stale.
    pub const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

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
        }
    }

    /// Whether option `name` was given, and not taken back later by `opposite`.
    pub(super) fn has(&self, name: &str, opposite: &str) -> bool {
        let last = self.flags.iter().rev().find(|flag| *flag == name || *flag == opposite);
        last.is_some_and(|flag| flag == name)
    }
}

/// A mounted overlay that is not served yet. Dropping it unmounts.
pub struct Mount {
    session: Session<Adapter>,
}

/// Takes a mount away from another thread.
#[derive(Clone, Debug)]
pub struct Unmounter {
    mountpoint: PathBuf,
}

impl Mount {
    /// Mounts `overlay` at `mountpoint`; what goes wrong below it is told to `faults`. Calls to the mount wait until [`Mount::serve`] runs.
    ///
    /// # Errors
    /// What mount(2) or fusermount3 said.
    pub fn new(
        overlay: Arc<Overlay>,
        mountpoint: &Path,
        options: &MountOptions,
        faults: Arc<Faults>,
    ) -> io::Result<Self> {
        let adapter = Adapter::new(
            overlay,
            options.entry_ttl,
            options.attr_ttl,
            options.upper_stack_depth,
            faults,
        );
        let notifier = adapter.notifier();
        let acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
        let mut config = Config::default();
        config.acl = acl;
        config.n_threads = Some(fuse_threads());
        config.clone_fd = true;
        let device = mount(mountpoint, options)?;
        let session = Session::from_fd(adapter, device, acl, config).inspect_err(|_| {
            // The failure to tell is the session's; the mount is dead already.
            let _ = detach(mountpoint);
        })?;
        // Set once, before the first request is served.
        let _ = notifier.set(session.notifier());
        Ok(Self { session })
    }

    /// A handle that unmounts, for signal handlers.
    pub fn unmounter(&self, mountpoint: &Path) -> Unmounter {
        Unmounter { mountpoint: mountpoint.to_owned() }
    }

    /// Answers requests until the mount is gone, then returns.
    ///
    /// # Errors
    /// When the FUSE device fails in another way than by an unmount.
    pub fn serve(self) -> io::Result<()> {
        self.session.run()
    }
}

impl Unmounter {
    /// Detaches the mount: at once where nobody uses it, else as soon as the last file in it is
    /// closed.
    ///
    /// # Errors
    /// When neither umount(2) nor fusermount3 does it.
    pub fn unmount(&self) -> io::Result<()> {
        match unmount(&self.mountpoint) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => detach(&self.mountpoint),
            done => done,
        }
    }
}
