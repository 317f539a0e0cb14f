//! Opening an upper: is it one, is it ours alone, and what can its file system do?

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::RwLock;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use super::super::error::{Error, Result};
use super::form::{Form, Whiteouts};
use super::marks::Namespace;
use super::numbers::Numbers;
use crate::inode_ops::{Address, Directory, Privilege};
use crate::types::LayerSerial;

/// Scratch space below the work directory, as kernel overlayfs names it. Emptied at every mount.
const WORK: &str = "work";
/// Hard links of copied-up lower inodes that have several names, as kernel overlayfs keeps them.
const INDEX: &str = "index";
/// Uppers that are there beside the first, and layers that were: of a mount with checkpoints.
const LAYERS: &str = "layers";

/// An upper directory with its work directory, locked for this process until dropped.
#[derive(Debug)]
pub struct Upper {
    /// For messages only.
    pub(in super::super) path: PathBuf,
    /// Another one after each freeze.
    root: RwLock<Arc<OwnedFd>>,
    pub(in super::super) work: Arc<OwnedFd>,
    pub(in super::super) index: Arc<OwnedFd>,
    pub(in super::super) marks: Namespace,
    pub(in super::super) whiteouts: Whiteouts,
    /// Whether a rename can leave a whiteout behind in the same step.
    pub(in super::super) whiteout_in_one_step: bool,
    /// Whether owners, devices and `trusted.*` can be written as they come.
    pub(in super::super) privileged: bool,
    pub(in super::super) numbers: Arc<Numbers>,
    pub(super) drafts: AtomicU64,
    /// Its number in its stack.
    pub(in super::super) serial: LayerSerial,
    /// The work directory, locked as the root is.
    lock: OwnedFd,
}

impl Upper {
    /// Opens `upper_dir` as an upper with `work_dir` for scratch, both existing directories of one file
    /// system, and empties what an earlier mount left in `work_dir/work`. The upper may be in
    /// `work_dir/layers`.
    ///
    /// # Errors
    /// [`Error::Unusable`] where one lies within the other, they are on different file systems,
    /// another process has either locked, or the file system lacks extended attributes, hard links or
    /// `RENAME_EXCHANGE`.
    pub fn open(upper_dir: &Path, work_dir: &Path) -> Result<Self> {
        let open =
            |path: &Path| Directory::open(path).map_err(|error| unusable(path, error.to_string()));
        Self::open_in(&open(upper_dir)?, &open(work_dir)?)
    }

    /// As [`Self::open`], where the directories have been found already.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn open_in(upper_dir: &Directory, work_dir: &Directory) -> Result<Self> {
        let read = |dir: &Directory| {
            dir.open_to_read().map_err(|error| unusable(dir.path(), error.to_string()))
        };
        let (root, lock) = (read(upper_dir)?, read(work_dir)?);
        let (upper_dir, work_dir) = (upper_dir.path(), work_dir.path());
        let is_layer = upper_dir.parent() == Some(&*work_dir.join(LAYERS));
        if (upper_dir.starts_with(work_dir) && !is_layer) || work_dir.starts_with(upper_dir) {
            return Err(unusable(work_dir, "upper and workdir must not lie within each other"));
        }
        if mount_of(&root, upper_dir)? != mount_of(&lock, work_dir)? {
            let problem = format!("must be on the same mount as {}", upper_dir.display());
            return Err(unusable(work_dir, problem));
        }
        for (dir, path) in [(&root, upper_dir), (&lock, work_dir)] {
            rustix::fs::flock(dir, FlockOperation::NonBlockingLockExclusive).map_err(|errno| {
                let problem = match errno {
                    Errno::WOULDBLOCK => "in use by another mount".to_owned(),
                    other => format!("cannot be locked: {other}"),
                };
                unusable(path, problem)
            })?;
        }
        let below = |name: &str| -> Result<Arc<OwnedFd>> {
            let fail = |errno: Errno| unusable(&work_dir.join(name), errno.to_string());
            match rustix::fs::mkdirat(&lock, name, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(fail(errno)),
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&lock, name, flags, Mode::empty()).map(Arc::new).map_err(fail)
        };
        let mut upper = Self {
            path: upper_dir.to_owned(),
            root: RwLock::new(Arc::new(root)),
            work: below(WORK)?,
            index: below(INDEX)?,
            marks: Namespace::Trusted,
            whiteouts: Whiteouts::Devices,
            whiteout_in_one_step: false,
            privileged: rustix::process::geteuid().is_root(),
            numbers: Arc::default(),
            drafts: AtomicU64::new(0),
            serial: LayerSerial::default(),
            lock,
        };
        upper.clean_work()?;
        let Form { marks, whiteouts, in_one_step, by_root } = upper.probe(work_dir)?;
        upper.marks = marks;
        upper.whiteouts = whiteouts;
        upper.whiteout_in_one_step = in_one_step;
        // The root of a user namespace is root of nothing else.
        upper.privileged &= by_root;
        upper.numbers = Arc::new(Numbers::of(&upper)?);
        upper.finish_renaming()?;
        Ok(upper)
    }

    /// The same, with number `serial` in its stack.
    pub fn with_serial(mut self, serial: LayerSerial) -> Self {
        self.serial = serial;
        self
    }

    /// As whom inodes are made in it. So also where root's file system, an overlayfs, keeps some attributes
    /// for itself.
    pub(in super::super) fn privilege(&self) -> Privilege {
        match self.privileged && self.marks == Namespace::Trusted {
            true => Privilege::Root,
            false => Privilege::Ordinary,
        }
    }

    /// The attributes and name of the upper's own root.
    pub(in super::super) fn root_address(&self) -> Address {
        Address::at(&self.root(), OsStr::new("."))
    }

    /// Makes `root`, which is locked, the upper's own root, and gives the one before, which stays so.
    pub(in super::super) fn replace_root(&self, root: Arc<OwnedFd>) -> Arc<OwnedFd> {
        std::mem::replace(&mut self.root.write(), root)
    }

    /// The upper's own root.
    pub(in super::super) fn root(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.root.read())
    }
}

impl Drop for Upper {
    fn drop(&mut self) {
        // Closing would not do: a child that another thread is just starting holds the descriptors
        // until it executes its program.
        for dir in [&**self.root.read(), &self.lock] {
            if let Err(errno) = rustix::fs::flock(dir, FlockOperation::Unlock) {
                tracing::warn!("{}: cannot be unlocked: {errno}", self.path.display());
            }
        }
    }
}

pub(in super::super) fn unusable(path: &Path, problem: impl Into<String>) -> Error {
    Error::Unusable { path: path.to_owned(), problem: problem.into() }
}

/// Device and mount: a rename needs both to be the same.
fn mount_of(dir: &OwnedFd, path: &Path) -> Result<(u32, u32, u64)> {
    let stat = rustix::fs::statx(dir, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
        .map_err(|errno| unusable(path, errno.to_string()))?;
    Ok((stat.stx_dev_major, stat.stx_dev_minor, stat.stx_mnt_id))
}
