//! The state directory: which servers run, for which mountpoint, and where their upper lies.
//!
//! ```text
//! STATE/mounts/ID/mount.json   what is mounted where (a [`Record`])
//!                 lock         held exclusively by the server for as long as it lives
//!                 control      its socket
//!                 log          what it had to say
//! STATE/uppers/ID/{upper,work} the upper of a mount that was given none
//! STATE/locks/HASH             taken while a mountpoint is being mounted or unmounted
//! ```

use std::fs::{File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::IFlags;
use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::failure::{Code, Failure};
use crate::names;

/// What a running server wrote down about itself. Holds no secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Where it is mounted, absolute and without symlinks.
    #[serde(flatten, with = "names::mountpoint")]
    pub mountpoint: PathBuf,
    /// The source, with query string and user info left out.
    pub source: String,
    /// The server's process id.
    pub pid: u32,
    /// The upper directory; none for a read-only mount.
    #[serde(flatten, with = "names::upper")]
    pub upper: Option<PathBuf>,
    /// Whether the upper was made for this mount and goes with it.
    pub upper_is_ours: bool,
    /// Seconds since the epoch when it was mounted.
    pub since: u64,
}

/// The state directory of this user.
#[derive(Clone, Debug)]
pub struct StateDir {
    root: PathBuf,
}

/// The directory of one mount below the state directory.
#[derive(Clone, Debug)]
pub struct MountDir {
    path: PathBuf,
}

/// A lock that lasts as long as the value. The file is left in place: removing it would let two
/// holders in.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl StateDir {
    /// `THAWFS_STATE_DIR`, or `/var/lib/thawfs` for root, or `$XDG_STATE_HOME/thawfs` (by default
    /// `~/.local/state/thawfs`, without a home `/tmp/thawfs-UID`). It holds uppers, so it is not in a
    /// directory that lives in memory.
    pub fn locate() -> Self {
        let environment = Environment::of_process();
        let root = if let Some(path) = environment.path("THAWFS_STATE_DIR") {
            path.to_owned()
        } else if rustix::process::geteuid().is_root() {
            PathBuf::from("/var/lib/thawfs")
        } else if let Some(path) = environment.base_directory("XDG_STATE_HOME", ".local/state") {
            path.join("thawfs")
        } else {
            // Others cannot rename what lies in /tmp itself.
            PathBuf::from(format!("/tmp/thawfs-{}", rustix::process::geteuid().as_raw()))
        };
        // A server changes its working directory, so a relative path would not last.
        Self { root: std::path::absolute(&root).unwrap_or(root) }
    }

    /// Where the state lies.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Makes the directory of a new mount, and takes its lock.
    ///
    /// # Errors
    /// When the state directory cannot be written.
    pub fn create_mount(&self) -> io::Result<(MountDir, Lock)> {
        let mounts = self.make("mounts")?;
        let nanos = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64);
        let mount = MountDir { path: mounts.join(format!("{}-{nanos:x}", std::process::id())) };
        std::fs::DirBuilder::new().mode(0o700).create(&mount.path)?;
        let lock = lock_file(&mount.path.join("lock"))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        Ok((mount, Lock { _file: lock }))
    }

    /// Makes an upper and a work directory for `mount`.
    ///
    /// # Errors
    /// When the state directory cannot be written.
    pub fn create_upper(&self, mount: &MountDir) -> io::Result<(PathBuf, PathBuf)> {
        let uppers = self.make("uppers")?;
        spread(&uppers);
        let base = self.upper_base(mount);
        make_private(&base)?;
        let (upper, work) = (base.join("upper"), base.join("work"));
        // Their modes show only below a directory that is private already.
        std::fs::create_dir(&upper)?;
        std::fs::create_dir(&work)?;
        Ok((upper, work))
    }

    /// Removes what [`StateDir::create_upper`] made, with all that was written into it.
    ///
    /// # Errors
    /// When something in it cannot be removed.
    pub fn remove_upper(&self, mount: &MountDir) -> io::Result<()> {
        match std::fs::remove_dir_all(self.upper_base(mount)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Makes the directory `name` below the state directory, which must not be in the hands of another
    /// user: who can swap an upper can see and change what is mounted.
    fn make(&self, name: &str) -> io::Result<PathBuf> {
        make_private(&self.root)?;
        let owner = std::fs::metadata(&self.root)?.uid();
        let user = rustix::process::geteuid();
        if owner != 0 && owner != user.as_raw() && !user.is_root() {
            return Err(io::Error::other("it belongs to another user"));
        }
        let path = self.root.join(name);
        make_private(&path)?;
        Ok(path)
    }

    fn upper_base(&self, mount: &MountDir) -> PathBuf {
        self.root.join("uppers").join(mount.path.file_name().unwrap_or_default())
    }

    /// Every mount on record, oldest first; unreadable records (a server that is just starting or
    /// ending) are left out.
    ///
    /// # Errors
    /// When the state directory exists but cannot be read.
    pub fn read_mounts(&self) -> io::Result<Vec<(MountDir, Record)>> {
        let entries = match std::fs::read_dir(self.root.join("mounts")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut mounts: Vec<_> = entries
            .filter_map(|entry| {
                let mount = MountDir { path: entry.ok()?.path() };
                let record = mount.read_record()?;
                Some((mount, record))
            })
            .collect();
        mounts.sort_by_key(|(_, record)| (record.since, record.pid));
        Ok(mounts)
    }

    /// The newest mount on record for `mountpoint`.
    ///
    /// # Errors
    /// When the state directory exists but cannot be read.
    pub fn read_mount_of(&self, mountpoint: &Path) -> io::Result<Option<(MountDir, Record)>> {
        let mounts = self.read_mounts()?;
        Ok(mounts.into_iter().rev().find(|(_, record)| record.mountpoint == mountpoint))
    }

    /// Waits until no other process mounts or unmounts `mountpoint`; calls `waiting` once if that
    /// takes more than a moment.
    ///
    /// # Errors
    /// When the state directory cannot be written.
    pub fn lock_mountpoint(&self, mountpoint: &Path, waiting: impl FnOnce()) -> io::Result<Lock> {
        let locks = self.make("locks")?;
        let mut hasher = std::hash::DefaultHasher::new();
        mountpoint.as_os_str().as_bytes().hash(&mut hasher);
        let file = lock_file(&locks.join(format!("{:016x}", hasher.finish())))?;
        let mut waiting = Some(waiting);
        let asked = Instant::now();
        loop {
            match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(error) => return Err(error.into()),
            }
            if asked.elapsed() > Duration::from_millis(250)
                && let Some(waiting) = waiting.take()
            {
                waiting();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl MountDir {
    /// Publishes `record`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_record(&self, record: &Record) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(record)?;
        let new = self.path.join("mount.json.new");
        std::fs::write(&new, text)?;
        std::fs::rename(new, self.path.join("mount.json"))
    }

    fn read_record(&self) -> Option<Record> {
        serde_json::from_slice(&std::fs::read(self.path.join("mount.json")).ok()?).ok()
    }

    /// Where the server's socket lies.
    pub fn control_path(&self) -> PathBuf {
        self.path.join("control")
    }

    /// Where the server logs to once it is detached.
    pub fn log_path(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Whether the server that wrote the record still runs.
    pub fn is_alive(&self) -> bool {
        self.watch().is_some_and(|watch| watch.is_alive())
    }

    /// Something to wait for the server's end with. To be made before the server is told to end: it
    /// removes its record first and ends then.
    pub fn watch(&self) -> Option<EndWatch> {
        File::open(self.path.join("lock")).ok().map(|lock| EndWatch { lock })
    }

    /// Removes the record and everything beside it.
    ///
    /// # Errors
    /// When something in it cannot be removed.
    pub fn remove(&self) -> io::Result<()> {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

/// The lock of a running server, seen from outside.
#[derive(Debug)]
pub struct EndWatch {
    lock: File,
}

impl EndWatch {
    /// Whether the server's process still has its lock.
    pub fn is_alive(&self) -> bool {
        use rustix::fs::FlockOperation::{NonBlockingLockShared, Unlock};
        match rustix::fs::flock(&self.lock, NonBlockingLockShared) {
            Err(errno) => errno == rustix::io::Errno::WOULDBLOCK,
            // Cannot fail on a lock just taken.
            Ok(()) => rustix::fs::flock(&self.lock, Unlock).is_err(),
        }
    }

    /// Waits until the server has cleaned up and ended; says whether it did in time.
    pub fn wait(&self, patience: Duration) -> bool {
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

/// Locks `dir` in the state directory of this user, as [`StateDir::lock_mountpoint`] does.
///
/// # Errors
/// [`FAILED`](Code::Failed) where the state directory cannot be written.
pub fn lock_directory(dir: &Path, waiting: impl FnOnce()) -> Result<Lock, Failure> {
    let state = StateDir::locate();
    state.lock_mountpoint(dir, waiting).map_err(|error| {
        Failure::io("write the state directory", state.path(), &error)
            .hint("set THAWFS_STATE_DIR to a directory of yours")
    })
}

/// Refuses to mount over the state directory: what is recorded of the mount would be hidden by it.
///
/// # Errors
/// [`MOUNTPOINT`](Code::Mountpoint) if `mountpoint` is the state directory or above it.
pub(super) fn check_outside_state(mountpoint: &Path) -> Result<(), Failure> {
    let state = StateDir::locate();
    // It may not have been made yet, but what is above it has.
    let real = state.path().ancestors().find_map(|path| path.canonicalize().ok());
    if !real.is_some_and(|real| real.starts_with(mountpoint))
        && !state.path().starts_with(mountpoint)
    {
        return Ok(());
    }
    let (mountpoint, state) = (mountpoint.display(), state.path().display());
    let message = format!("a mount on {mountpoint} would hide the state directory, {state}");
    Err(Failure::new(Code::Mountpoint, message)
        .hint("set THAWFS_STATE_DIR to a directory outside of it"))
}

/// Has ext4 place each directory in `path` in another part of the disk, as it does at the top of a file
/// system. It gives inodes that were deleted in the last minutes to no new file, and passes over them
/// one by one: an upper where another has just been thrown away takes ten times as long to write to.
fn spread(path: &Path) {
    let spread = File::open(path).and_then(|dir| {
        let flags = rustix::fs::ioctl_getflags(&dir)?;
        if !flags.contains(IFlags::TOPDIR) {
            rustix::fs::ioctl_setflags(&dir, flags | IFlags::TOPDIR)?;
        }
        Ok(())
    });
    if let Err(error) = spread {
        log::debug!("{} is not spread over the disk: {error}", path.display());
    }
}

fn make_private(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn lock_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> (tempfile::TempDir, StateDir) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir { root: dir.path().join("state") };
        (dir, state)
    }

    #[test]
    fn a_record_lives_and_dies_with_its_lock() {
        let (_dir, state) = state();
        let (mount, lock) = state.create_mount().unwrap();
        let record = Record {
            mountpoint: "/mnt/x".into(),
            source: "s3://b/k".into(),
            pid: 7,
            upper: None,
            upper_is_ours: false,
            since: 1,
        };
        mount.write_record(&record).unwrap();
        let (found, read) = state.read_mount_of(Path::new("/mnt/x")).unwrap().unwrap();
        assert_eq!(read.pid, 7);
        assert!(found.is_alive());
        drop(lock);
        assert!(!found.is_alive());
        found.remove().unwrap();
        assert!(state.read_mounts().unwrap().is_empty());
    }

    #[test]
    fn uppers_are_spread_over_the_disk_where_it_can_be_told() {
        let (_dir, state) = state();
        let (mount, _lock) = state.create_mount().unwrap();
        let (upper, _) = state.create_upper(&mount).unwrap();
        let uppers = File::open(upper.parent().unwrap().parent().unwrap()).unwrap();
        let Ok(flags) = rustix::fs::ioctl_getflags(&uppers) else {
            eprintln!("SKIPPED: the temporary directory's file system has no such flags");
            return;
        };
        let can_be_told = rustix::fs::ioctl_setflags(&uppers, flags | IFlags::TOPDIR).is_ok();
        assert!(flags.contains(IFlags::TOPDIR) || !can_be_told);
    }

    #[test]
    fn a_mountpoint_is_locked_by_one_at_a_time() {
        let (_dir, state) = state();
        let first = state.lock_mountpoint(Path::new("/m"), || ()).unwrap();
        let (said, heard) = crossbeam_channel::bounded(2);
        let other = std::thread::spawn({
            let state = state.clone();
            move || {
                let lock = state.lock_mountpoint(Path::new("/m"), || said.send("waits").unwrap());
                said.send("has it").unwrap();
                drop(lock);
            }
        });
        assert_eq!(heard.recv().unwrap(), "waits");
        assert!(heard.try_recv().is_err());
        drop(first);
        assert_eq!(heard.recv().unwrap(), "has it");
        other.join().unwrap();
    }
}
