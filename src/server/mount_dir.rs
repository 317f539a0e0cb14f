//! The directory of one mount below the state directory, and whether its server lives.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::locks::Lock;
use super::record::{Record, write_json};
use super::request::MountRequest;
use crate::inode_ops::remove_tree_at;

/// The directory of one mount below the state directory.
#[derive(Clone, Debug)]
pub(crate) struct MountDir {
    pub(super) path: PathBuf,
}

impl MountDir {
    /// Publishes `record`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write_record(&self, record: &Record) -> io::Result<()> {
        write_json(&self.path.join("mount.json"), record)
    }

    pub(super) fn read_record(&self) -> Option<Record> {
        serde_json::from_slice(&std::fs::read(self.path.join("mount.json")).ok()?).ok()
    }

    /// Writes down what the mount was asked for with: the answer of [`MountRequest::on_record`].
    pub(super) fn write_options(&self, request: &MountRequest) -> io::Result<()> {
        write_json(&self.path.join("options.json"), request)
    }

    /// What the mount was asked for with, but for its source; `None` where that is not on record, or in
    /// another version's words.
    pub(crate) fn read_options(&self) -> Option<MountRequest> {
        serde_json::from_slice(&std::fs::read(self.path.join("options.json")).ok()?).ok()
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn lock_path(&self) -> PathBuf {
        self.path.join("lock")
    }

    /// Where the server's socket lies.
    pub(crate) fn control_path(&self) -> PathBuf {
        self.path.join("control")
    }

    /// Where the server logs to once it is detached.
    pub(crate) fn log_path(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Whether the server that wrote the record still runs.
    pub(crate) fn is_alive(&self) -> bool {
        self.watch().is_some_and(|watch| watch.is_alive())
    }

    /// Something to wait for the server's end with. To be made before the server is told to end: it
    /// removes its record first and ends then.
    pub(crate) fn watch(&self) -> Option<EndWatch> {
        File::open(self.lock_path()).ok().map(|lock| EndWatch { lock })
    }

    /// The lock of a server that is no more; `None` where it lives, or has not got as far as to lock.
    pub(super) fn claim(&self) -> io::Result<Option<Lock>> {
        /// Between making the directory and locking it, nobody takes longer.
        const STARTED_BY: Duration = Duration::from_secs(60);
        if self.lock_path().symlink_metadata().is_err() {
            let age = self.path.metadata()?.modified()?.elapsed().unwrap_or_default();
            if age < STARTED_BY {
                return Ok(None);
            }
        }
        loop {
            match Lock::on_file(&self.lock_path())? {
                None if self.is_alive() => return Ok(None),
                // Somebody else was looking whether it lives.
                None => std::thread::sleep(Duration::from_millis(1)),
                lock => return Ok(lock),
            }
        }
    }

    /// Removes the record and everything beside it.
    ///
    /// # Errors
    /// When something in it cannot be removed.
    pub(crate) fn remove(&self) -> io::Result<()> {
        remove_tree_at(&self.path)
    }
}

/// The lock of a running server, seen from outside.
#[derive(Debug)]
pub(crate) struct EndWatch {
    lock: File,
}

impl EndWatch {
    /// Whether the server's process still has its lock.
    pub(crate) fn is_alive(&self) -> bool {
        use rustix::fs::FlockOperation::{NonBlockingLockShared, Unlock};
        match rustix::fs::flock(&self.lock, NonBlockingLockShared) {
            Err(errno) => errno == rustix::io::Errno::WOULDBLOCK,
            // Cannot fail on a lock just taken.
            Ok(()) => rustix::fs::flock(&self.lock, Unlock).is_err(),
        }
    }

    /// Waits until the server has cleaned up and ended; says whether it did in time.
    pub(crate) fn wait(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }
}
