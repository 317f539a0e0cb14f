//! Mounting: from an [`Overlay`] to a directory that answers, and its end.

use std::ffi::CString;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fuser::{Config, MountOption, Session, SessionACL};
use rustix::fd::OwnedFd;
use rustix::mount::MountFlags;

use super::faults::Faults;
use super::filesystem::Adapter;
use crate::overlay::Overlay;

/// The part of the file system's type behind `fuse.`.
const SUBTYPE: &str = "thawfs";

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
    fn has(&self, name: &str, opposite: &str) -> bool {
        let last = self.flags.iter().rev().find(|flag| *flag == name || *flag == opposite);
        last.is_some_and(|flag| flag == name)
    }

    fn session_config(&self) -> Config {
        let mut config = Config::default();
        config.acl = if self.allow_other { SessionACL::All } else { SessionACL::Owner };
        config.n_threads = Some(fuse_threads());
        config.clone_fd = true;
        config
    }

    /// The same for fusermount3, which knows what an ordinary user may ask for.
    fn fusermount_config(&self) -> Config {
        let mut config = self.session_config();
        config.mount_options = vec![
            MountOption::FSName(self.fsname.clone()),
            MountOption::Subtype(SUBTYPE.into()),
            MountOption::DefaultPermissions,
        ];
        if self.read_only {
            config.mount_options.push(MountOption::RO);
        }
        for (name, opposite, option) in [
            ("noexec", "exec", MountOption::NoExec),
            ("noatime", "atime", MountOption::NoAtime),
            ("sync", "async", MountOption::Sync),
        ] {
            if self.has(name, opposite) {
                config.mount_options.push(option);
            }
        }
        config
    }

    /// Flags for mount(2). Unlike fusermount3's mounts, root's may have devices and set-user-id
    /// programs: they are to be like a local disk.
    fn mount_flags(&self) -> MountFlags {
        let mut flags = MountFlags::empty();
        for (name, opposite, flag) in [
            ("nosuid", "suid", MountFlags::NOSUID),
            ("nodev", "dev", MountFlags::NODEV),
            ("noexec", "exec", MountFlags::NOEXEC),
            ("noatime", "atime", MountFlags::NOATIME),
            ("sync", "async", MountFlags::SYNCHRONOUS),
            ("dirsync", "nodirsync", MountFlags::DIRSYNC),
        ] {
            flags.set(flag, self.has(name, opposite));
        }
        flags.set(MountFlags::RDONLY, self.read_only);
        flags
    }
}

/// mount(2) by ourselves, so that the kernel shows our subtype; fuser passes it to fusermount3
/// alone.
fn mount_directly(mountpoint: &Path, options: &MountOptions) -> rustix::io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let device =
        rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).map_err(|_| rustix::io::Errno::INVAL)?;
    let kind = format!("fuse.{SUBTYPE}");
    rustix::mount::mount(&*options.fsname, mountpoint, kind, options.mount_flags(), &*data)?;
    Ok(device)
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
        let session = match mount_directly(mountpoint, options) {
            Ok(device) => {
                let config = options.session_config();
                let acl = config.acl;
                Session::from_fd(adapter, device, acl, config).inspect_err(|_| {
                    // The failure to tell is the session's; the mount is dead already.
                    let _ = detach(mountpoint);
                })?
            }
            Err(rustix::io::Errno::PERM) => {
                Session::new(adapter, mountpoint, &options.fusermount_config())?
            }
            Err(error) => return Err(error.into()),
        };
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
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => detach(&self.mountpoint),
            done => done,
        }
    }
}

/// Lazily detaches whatever is mounted at `mountpoint`.
///
/// # Errors
/// When neither umount(2) nor fusermount3 does it.
pub fn detach(mountpoint: &Path) -> io::Result<()> {
    unmount_with(mountpoint, rustix::mount::UnmountFlags::DETACH, &["-u", "-z"])
}

/// Unmounts `mountpoint`, as umount(8) would: refused with EBUSY while something uses it.
///
/// # Errors
/// When neither umount(2) nor fusermount3 does it.
pub fn unmount(mountpoint: &Path) -> io::Result<()> {
    unmount_with(mountpoint, rustix::mount::UnmountFlags::empty(), &["-u"])
}

/// umount(2) where that is allowed, the set-user-id fusermount3 where it isn't.
fn unmount_with(
    mountpoint: &Path,
    flags: rustix::mount::UnmountFlags,
    fusermount_args: &[&str],
) -> io::Result<()> {
    let flags = flags | rustix::mount::UnmountFlags::NOFOLLOW;
    match rustix::mount::unmount(mountpoint, flags) {
        Err(rustix::io::Errno::PERM) => {}
        done => return done.map_err(Into::into),
    }
    let output = std::process::Command::new("fusermount3")
        .args(fusermount_args)
        .arg("--")
        .arg(mountpoint)
        .stdin(std::process::Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if said.contains("busy") {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    Err(io::Error::other(said))
}
