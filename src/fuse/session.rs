//! Mounting: from an [`Overlay`] to a directory that answers, and its end.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{Config, Session, SessionACL};

use super::adapter::Adapter;
use super::context::Context;
use super::faults::Faults;
use super::mount::{detach, mount, unmount};
use super::options::MountOptions;
use super::refresh::Kernel;
use crate::inode_ops::Directory;
use crate::overlay::Overlay;

/// FUSE threads. They answer from memory or the upper's page cache only, so a few more than the
/// cores suffice; four is the least, so that a slow upper disk does not stop everything.
fn fuse_threads() -> usize {
    std::thread::available_parallelism().map_or(4, |cores| cores.get().clamp(4, 16))
}

/// How often the kernel is asked for what it holds back, while somebody watches.
const WRITE_BACK_EVERY: Duration = Duration::from_secs(2);

/// A mounted overlay that is not served yet. Dropping it unmounts.
pub(crate) struct Mount {
    session: Session<Adapter>,
    overlay: Arc<Overlay>,
    context: Arc<Context>,
}

/// Takes a mount away from another thread.
#[derive(Clone, Debug)]
pub(crate) struct Unmounter {
    mountpoint: PathBuf,
}

impl Mount {
    /// Mounts `overlay` at `mountpoint`; what goes wrong below it is told to `faults`. Calls to the mount wait until [`Mount::serve`] runs.
    ///
    /// # Errors
    /// What mount(2) or fusermount3 said.
    pub(crate) fn new(
        overlay: Arc<Overlay>,
        mountpoint: &Directory,
        options: &MountOptions,
        faults: Arc<Faults>,
    ) -> io::Result<Self> {
        let acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
        let mut config = Config::default();
        config.acl = acl;
        config.n_threads = Some(fuse_threads());
        config.clone_fd = true;
        let device = mount(mountpoint, options)?;
        let served = Arc::clone(&overlay);
        let session = device.try_clone().and_then(|same| {
            let adapter = Adapter::new(overlay, options, same, faults);
            let context = Arc::clone(&adapter.context);
            Session::from_fd(adapter, device, acl, config).map(|session| (session, context))
        });
        let (session, context) = session.inspect_err(|_| {
            // The failure to tell is the session's; the mount is dead already.
            let _ = detach(mountpoint.path());
        })?;
        // Set once, before the first request is served.
        let _ = context.notifier.set(session.notifier());
        Ok(Self { session, overlay: served, context })
    }

    /// The kernel, to tell it what it does not know.
    pub(crate) fn kernel(&self) -> Kernel {
        Kernel::new(&self.context)
    }

    /// A handle that unmounts, for signal handlers.
    pub(crate) fn unmounter(&self, mountpoint: &Path) -> Unmounter {
        Unmounter { mountpoint: mountpoint.to_owned() }
    }

    /// Answers requests until the mount is gone, then returns. While somebody watches, `write_back` is called from
    /// time to time, to have the kernel write what it holds back of files that programs have mapped. It must
    /// not wait for the mount.
    ///
    /// # Errors
    /// When the FUSE device fails in another way than by an unmount.
    pub(crate) fn serve(self, write_back: impl Fn() + Send + 'static) -> io::Result<()> {
        let (overlay, context) = (Arc::clone(&self.overlay), Arc::clone(&self.context));
        let mut last = Instant::now();
        let meanwhile = move || {
            if last.elapsed() >= WRITE_BACK_EVERY && context.modes.may_hold_back() {
                write_back();
                last = Instant::now();
            }
        };
        let looking = std::thread::Builder::new()
            .name("thawfs-watch".into())
            .spawn(move || overlay.look_for_writes(meanwhile))?;
        let ended = self.session.run();
        self.overlay.change_log().close("it was unmounted");
        if looking.join().is_err() {
            tracing::error!("the thread that looks for writes panicked; please report this");
        }
        ended
    }
}

impl Unmounter {
    /// Detaches the mount: at once where nobody uses it, else as soon as the last file in it is
    /// closed.
    ///
    /// # Errors
    /// When neither umount(2) nor fusermount3 does it.
    pub(crate) fn unmount(&self) -> io::Result<()> {
        match unmount(&self.mountpoint) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => detach(&self.mountpoint),
            done => done,
        }
    }
}
