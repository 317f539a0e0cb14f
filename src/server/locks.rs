//! Locks on files and directories that last as long as whoever holds them, on one machine.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use twox_hash::XxHash3_64;

/// A lock that lasts as long as the value.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
    /// Removed with the lock, while it is still held: whoever gets it on a removed file asks again.
    path: Option<PathBuf>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // One that stays is found by whoever clears up.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Lock {
    /// Locks the file `path`, made where it is missing; `None` where it is locked already. The file stays
    /// when the lock goes.
    pub(super) fn on_file(path: &Path) -> io::Result<Option<Self>> {
        let file = open_or_make(path)?;
        // Whoever had it before may have removed it.
        Ok((try_lock(&file)? && is_at(&file, path)).then_some(Self { _file: file, path: None }))
    }

    /// Locks the directory `path` unless it is locked or a symlink. `None` as well where something else
    /// is there by the time it is locked.
    pub(super) fn on_directory(path: &Path) -> io::Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        Ok((try_lock(&file)? && is_at(&file, path)).then_some(Self { _file: file, path: None }))
    }

    /// Has the file go with the lock.
    pub(super) fn and_remove(mut self, path: &Path) -> Self {
        self.path = Some(path.to_owned());
        self
    }
}

fn open_or_make(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

fn try_lock(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether `path` is still the file that is open.
fn is_at(file: &File, path: &Path) -> bool {
    let same = |open: std::fs::Metadata| {
        let there = std::fs::symlink_metadata(path)?;
        Ok::<_, io::Error>((open.dev(), open.ino()) == (there.dev(), there.ino()))
    };
    file.metadata().and_then(same).unwrap_or(false)
}

/// The name of a lock or note for `path`, whatever its length: the same for every build of the program, or two of
/// them would not wait for each other.
pub(super) fn hash_of(path: &Path) -> String {
    format!("{:016x}", XxHash3_64::oneshot(path.as_os_str().as_bytes()))
}

/// Locks the file `path`, and waits for it where somebody else has it locked; calls `waiting` once if that
/// takes more than a moment. The file goes with the lock.
pub(super) fn wait_for(path: &Path, waiting: impl FnOnce()) -> io::Result<Lock> {
    let mut waiting = Some(waiting);
    let asked = Instant::now();
    loop {
        let file = open_or_make(path)?;
        while !try_lock(&file)? {
            if asked.elapsed() > Duration::from_millis(250)
                && let Some(waiting) = waiting.take()
            {
                waiting();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // Whoever had it has removed the file, and somebody may have made another one.
        if is_at(&file, path) {
            return Ok(Lock { _file: file, path: Some(path.to_owned()) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_in_every_build() {
        // By XXH3 of 64 bits, as its reference has it.
        assert_eq!(hash_of(Path::new("")), "2d06800538d394c2");
        assert_eq!(hash_of(Path::new("/mnt")), "1000291d1cc55464");
        assert_ne!(hash_of(Path::new("/mnt/")), "1000291d1cc55464");
    }

    #[test]
    fn a_lock_is_held_by_one_at_a_time_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = wait_for(&path, || ()).unwrap();
        assert!(Lock::on_file(&path).unwrap().is_none());
        let (said, heard) = crossbeam_channel::bounded(2);
        let other = std::thread::spawn({
            let path = path.clone();
            move || {
                let lock = wait_for(&path, || said.send("waits").unwrap());
                said.send("has it").unwrap();
                drop(lock);
            }
        });
        assert_eq!(heard.recv().unwrap(), "waits");
        assert!(heard.try_recv().is_err());
        drop(first);
        assert_eq!(heard.recv().unwrap(), "has it");
        other.join().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn many_take_turns_on_a_file_that_comes_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let inside = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        let _lock = wait_for(&path, || ()).unwrap();
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_is_locked_once_and_never_through_a_symlink() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("d"), dir.path().join("link"));
        std::fs::create_dir(&path).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let lock = Lock::on_directory(&path).unwrap();
        assert!(lock.is_some());
        assert!(Lock::on_directory(&path).unwrap().is_none());
        assert!(Lock::on_directory(&link).is_err());
        drop(lock);
        assert!(Lock::on_directory(&path).unwrap().is_some());
    }
}
