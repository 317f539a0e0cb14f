//! Asking the kernel to write what it holds back of a mount.
//!
//! The server must not do so itself. The kernel would have it wait for its own answers, and a thread that is killed
//! meanwhile keeps the device open and never ends, nor does the mount. So another program does, coreutils' `sync -f`.

use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::inherited;

/// Has what is held back of one mount written, by one program at a time.
pub(super) struct WriteBack {
    mountpoint: PathBuf,
    runs: Arc<AtomicBool>,
}

impl WriteBack {
    pub(super) fn new(mountpoint: PathBuf) -> Self {
        Self { mountpoint, runs: Arc::default() }
    }

    /// Begins to have it written, unless that goes on already. Does not wait.
    pub(super) fn begin(&self) {
        if self.runs.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Err(error) = self.start() {
            self.runs.store(false, Ordering::Release);
            tracing::debug!("what the kernel holds back is not asked for: {error}");
        }
    }

    fn start(&self) -> io::Result<()> {
        let mut sync = Command::new("sync");
        sync.arg("-f").arg("--").arg(&self.mountpoint).current_dir("/");
        inherited::leave_secrets(&mut sync);
        sync.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = sync.spawn()?;
        let runs = Arc::clone(&self.runs);
        std::thread::Builder::new().name("thawfs-sync".into()).spawn(move || {
            if let Err(error) = child.wait() {
                tracing::debug!("sync(1) cannot be waited for: {error}");
            }
            runs.store(false, Ordering::Release);
        })?;
        Ok(())
    }
}
