//! The state directory of one machine: which servers run, for which mountpoint, and where their upper lies.
//!
//! ```text
//! STATE/mounts/ID/mount.json   what is mounted where (a [`Record`])
//!                 options.json what it was asked for with, but for the source (a `MountRequest`)
//!                 lock         held exclusively by the server for as long as it lives
//!                 control      its socket
//!                 log          what it had to say
//! STATE/uppers/ID/{upper,work} the upper of a mount that was given none
//!                 origin.json  what it is the upper of (an [`Origin`])
//! STATE/locks/HASH             there while a mountpoint is being mounted or unmounted
//! STATE/notes/HASH             a directory elsewhere that something leaves when it is killed (a [`Note`])
//! ```

use std::fs::File;
use std::io::{self};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::IFlags;

pub(crate) use super::locks::Lock;
use super::locks::{hash_of, wait_for};
pub(crate) use super::mount_dir::{EndWatch, MountDir};
use super::mounts::MountInfo;
use super::record::write_json;
pub(crate) use super::record::{HostId, Note, Origin, Record};
use crate::environment::Environment;
use crate::failure::{Code, Failure};
use crate::inode_ops::Directory;

/// The state directory of this user.
#[derive(Clone, Debug)]
pub(crate) struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// `THAWFS_STATE_DIR`, or `/var/lib/thawfs` for root, or `$XDG_STATE_HOME/thawfs` (by default
    /// `~/.local/state/thawfs`, without a home `/tmp/thawfs-UID`). It holds uppers, so it is not in a
    /// directory that lives in memory.
    pub(crate) fn locate() -> Self {
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
        // A server has another working directory, so a relative path would not last.
        Self { root: std::path::absolute(&root).unwrap_or(root) }
    }

    /// Where the state lies.
    pub(crate) fn path(&self) -> &Path {
        &self.root
    }

    /// Makes the directory of a new mount, and takes its lock.
    ///
    /// # Errors
    /// When the state directory cannot be written.
    pub(crate) fn create_mount(&self) -> io::Result<(MountDir, Lock)> {
        let mounts = self.make("mounts")?;
        loop {
            let nanos = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |since| since.as_nanos() as u64);
            let mount = MountDir { path: mounts.join(format!("{}-{nanos:x}", std::process::id())) };
            std::fs::DirBuilder::new().mode(0o700).create(&mount.path)?;
            if let Some(lock) = Lock::on_file(&mount.lock_path())? {
                return Ok((mount, lock));
            }
            // Somebody looked at it, or took it for left behind, before it was locked.
        }
    }

    /// Makes an upper and a work directory for `mount`, and writes down whose they are.
    ///
    /// # Errors
    /// When the state directory cannot be written.
    pub(crate) fn create_upper(
        &self,
        mount: &MountDir,
        of: &Origin,
    ) -> io::Result<(PathBuf, PathBuf)> {
        let uppers = self.make("uppers")?;
        spread(&uppers);
        let base = self.upper_base(mount);
        make_private(&base)?;
        write_json(&base.join("origin.json"), of)?;
        let (upper, work) = (base.join("upper"), base.join("work"));
        // A fresh upper takes the mode of the archive's root.
        make_private(&upper)?;
        make_private(&work)?;
        Ok((upper, work))
    }

    /// Has an upper of the state directory that a user names again count as one that was to be kept.
    pub(super) fn keep_named(&self, upper: &Path) {
        if let Some(base) = self.base_of(upper) {
            let of = read_origin(base).unwrap_or_default();
            if let Err(error) =
                write_json(&base.join("origin.json"), &Origin { kept: true, ended: false, ..of })
            {
                tracing::warn!("{} is not marked as kept: {error}", upper.display());
            }
        }
    }

    /// Has the upper in `base` go with the last mount that was forked from it.
    pub(super) fn leave_to_forks(&self, base: &Path) {
        let of = read_origin(base).unwrap_or_default();
        if let Err(error) = write_json(&base.join("origin.json"), &Origin { ended: true, ..of }) {
            tracing::warn!("{} stays until thawfs gc: {error}", base.display());
        }
    }

    /// The work directory that [`StateDir::create_upper`] made with `upper`, if it did.
    pub(super) fn work_of(&self, upper: &Path) -> Option<PathBuf> {
        self.base_of(upper).map(|base| base.join("work"))
    }

    fn base_of<'a>(&self, upper: &'a Path) -> Option<&'a Path> {
        let base = upper.parent()?;
        let is_ours = base.parent() == Some(&*self.root.join("uppers"));
        (is_ours && upper.ends_with("upper")).then_some(base)
    }

    /// Every directory of uppers, one for each mount that was given none, with the directory that such a
    /// mount has or had.
    pub(super) fn uppers(&self) -> io::Result<Vec<(PathBuf, MountDir)>> {
        let mounts = self.root.join("mounts");
        let uppers = self.list("uppers")?.into_iter().map(|base| {
            let mount = MountDir { path: mounts.join(base.file_name().unwrap_or_default()) };
            (base, mount)
        });
        Ok(uppers.collect())
    }

    /// Makes the directory `name` below the state directory, which must not be in the hands of another
    /// user: who can swap an upper can see and change what is mounted.
    fn make(&self, name: &str) -> io::Result<PathBuf> {
        make_private(&self.root)?;
        let root = Directory::open(&self.root)?;
        if root.is_trusted()? && root.into_location(name).open_or_make(0o700)?.is_trusted()? {
            return Ok(self.root.join(name));
        }
        Err(others())
    }

    /// Opens the state directory, unless it is in the hands of another user, who could have made it first
    /// where everybody may: what it says is then not to be believed either.
    fn open_trusted(&self) -> io::Result<Directory> {
        let root = Directory::open(&self.root)?;
        check_trusted(&root)?;
        Ok(root)
    }

    /// The paths in the directory `name` below the state directory, sorted; none where there is no such
    /// directory.
    fn list(&self, name: &str) -> io::Result<Vec<PathBuf>> {
        match self.open_trusted().and_then(|root| root.into_location(name).open()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            below => check_trusted(&below?)?,
        }
        let entries = std::fs::read_dir(self.root.join(name))?;
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        Ok(paths)
    }

    /// Where [`StateDir::create_upper`] made those of `mount`.
    pub(super) fn upper_base(&self, mount: &MountDir) -> PathBuf {
        self.root.join("uppers").join(mount.path.file_name().unwrap_or_default())
    }

    /// The directory of every mount, whether it has a record (yet, or still) or not.
    pub(super) fn mount_dirs(&self) -> io::Result<Vec<MountDir>> {
        let paths = self.list("mounts")?;
        Ok(paths.into_iter().map(|path| MountDir { path }).collect())
    }

    /// Every mount on record, oldest first; unreadable records (a server that is just starting or
    /// ending) are left out.
    ///
    /// # Errors
    /// When the state directory exists but cannot be read.
    pub(crate) fn read_mounts(&self) -> io::Result<Vec<(MountDir, Record)>> {
        let with_record = |mount: MountDir| {
            let record = mount.read_record()?;
            Some((mount, record))
        };
        let mut mounts: Vec<_> = self.mount_dirs()?.into_iter().filter_map(with_record).collect();
        mounts.sort_by_key(|(_, record)| (record.since, record.pid));
        Ok(mounts)
    }

    /// The record of the server behind `mount`: of one that lives, or else of one that was killed.
    ///
    /// # Errors
    /// When the state directory exists but cannot be read.
    pub(crate) fn read_mount_of(
        &self,
        mount: &MountInfo,
    ) -> io::Result<Option<(MountDir, Record)>> {
        let mut records = self.read_mounts()?;
        records.retain(|(_, record)| record.is_of(mount));
        let live = records.iter().rposition(|(dir, _)| dir.is_alive());
        // A number of the kernel's that a dead mount had may be another mount's by now.
        let dead = || records.iter().rposition(|(_, it)| it.mountpoint == mount.mountpoint);
        Ok(live.or_else(dead).map(|found| records.swap_remove(found)))
    }

    /// Waits until no other process mounts or unmounts `mountpoint`; calls `waiting` once if that
    /// takes more than a moment.
    ///
    /// # Errors
    /// When the state directory cannot be written.
    pub(crate) fn lock_mountpoint(
        &self,
        mountpoint: &Path,
        waiting: impl FnOnce(),
    ) -> io::Result<Lock> {
        wait_for(&self.make("locks")?.join(hash_of(mountpoint)), waiting)
    }

    /// The files of locks, held or not.
    pub(super) fn lock_files(&self) -> io::Result<Vec<PathBuf>> {
        self.list("locks")
    }

    /// Writes down that a directory has to go some day.
    ///
    /// # Errors
    /// When the state directory cannot be written.
    pub(crate) fn note(&self, note: &Note) -> io::Result<()> {
        write_json(&self.make("notes")?.join(hash_of(note.path())), note)
    }

    /// Takes a note away: the directory is gone.
    pub(crate) fn forget(&self, note: &Note) {
        // A note of what is not there is harmless, and found by whoever clears up.
        let named = std::fs::remove_file(self.root.join("notes").join(hash_of(note.path())));
        if named.is_err() {
            // An earlier program gave it another name.
            let noted = self.noted().unwrap_or_default().into_iter();
            noted.filter(|(_, other)| other == note).for_each(|(path, _)| {
                let _ = std::fs::remove_file(path);
            });
        }
    }

    /// Every note that can be read.
    pub(super) fn notes(&self) -> io::Result<Vec<Note>> {
        Ok(self.noted()?.into_iter().map(|(_, note)| note).collect())
    }

    /// The same with their files.
    fn noted(&self) -> io::Result<Vec<(PathBuf, Note)>> {
        let read = |path: PathBuf| {
            let note = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
            Some((path, note))
        };
        Ok(self.list("notes")?.into_iter().filter_map(read).collect())
    }
}

/// Locks `dir` in the state directory of this user, as [`StateDir::lock_mountpoint`] does.
///
/// # Errors
/// [`FAILED`](Code::Failed) where the state directory cannot be written.
pub(crate) fn lock_directory(dir: &Path, waiting: impl FnOnce()) -> Result<Lock, Failure> {
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

/// What is known of the upper in `base`.
pub(super) fn read_origin(base: &Path) -> Option<Origin> {
    serde_json::from_slice(&std::fs::read(base.join("origin.json")).ok()?).ok()
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
        tracing::debug!("{} is not spread over the disk: {error}", path.display());
    }
}

/// Refuses what belongs to another user; root may look at whose it likes.
fn check_trusted(directory: &Directory) -> io::Result<()> {
    match rustix::process::geteuid().is_root() || directory.is_trusted()? {
        true => Ok(()),
        false => Err(others()),
    }
}

fn others() -> io::Error {
    io::Error::other("it belongs to another user")
}

fn make_private(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn state() -> (tempfile::TempDir, StateDir) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir { root: dir.path().join("state") };
        (dir, state)
    }

    fn record(device: &str, place: Option<HostId>) -> Record {
        Record {
            mountpoint: "/mnt/x".into(),
            source: "s3://b/k".into(),
            pid: 7,
            upper: None,
            upper_is_ours: false,
            since: 1,
            device: Some(device.into()),
            place,
            groups: Vec::new(),
        }
    }

    fn mount(device: &str) -> MountInfo {
        MountInfo {
            id: 2,
            parent: 1,
            device: device.into(),
            root: "/".into(),
            mountpoint: "/mnt/x".into(),
            fs_type: "fuse.thawfs".into(),
            source: "s3://b/k".into(),
            options: Default::default(),
        }
    }

    #[test]
    fn a_record_lives_and_dies_with_its_lock() {
        let (_dir, state) = state();
        let (dir, lock) = state.create_mount().unwrap();
        dir.write_record(&record("0:9", HostId::here())).unwrap();
        let (found, read) = state.read_mount_of(&mount("0:9")).unwrap().unwrap();
        assert_eq!(read.pid, 7);
        assert!(found.is_alive());
        assert!(found.claim().unwrap().is_none());
        drop(lock);
        assert!(!found.is_alive());
        assert!(found.claim().unwrap().is_some());
        found.remove().unwrap();
        assert!(state.read_mounts().unwrap().is_empty());
    }

    #[test]
    fn a_mount_has_the_record_of_its_own_server_whatever_else_is_on_record() {
        let (_dir, state) = state();
        let here = HostId::here().unwrap();
        let before = HostId { boot: "another".into(), ..here.clone() };
        let elsewhere = HostId { mounts: "mnt:[1]".into(), ..here.clone() };
        let mut locks = Vec::new();
        // Whose device and place, and whether its server lives.
        for (device, place, lives) in [
            ("0:1", &here, true),
            ("0:2", &here, false),
            ("0:3", &before, false),
            ("0:4", &elsewhere, true),
            ("0:5", &here, false),
            ("0:5", &here, true),
            ("0:5", &here, false),
        ] {
            let (dir, lock) = state.create_mount().unwrap();
            dir.write_record(&record(device, Some(place.clone()))).unwrap();
            locks.extend(lives.then_some(lock));
        }
        for (device, expected) in [
            ("0:1", Some(true)),
            ("0:2", Some(false)),
            // The number is another mount's since the machine was started.
            ("0:3", None),
            ("0:4", Some(true)),
            ("0:5", Some(true)),
            ("0:6", None),
        ] {
            let found = state.read_mount_of(&mount(device)).unwrap();
            assert_eq!(found.map(|(dir, _)| dir.is_alive()), expected, "{device}");
        }
    }

    #[test]
    fn uppers_are_spread_over_the_disk_where_it_can_be_told() {
        let (_dir, state) = state();
        let (mount, _lock) = state.create_mount().unwrap();
        let (upper, _) = state.create_upper(&mount, &Origin::default()).unwrap();
        let uppers = File::open(upper.parent().unwrap().parent().unwrap()).unwrap();
        let Ok(flags) = rustix::fs::ioctl_getflags(&uppers) else {
            eprintln!("SKIPPED: the temporary directory's file system has no such flags");
            return;
        };
        let can_be_told = rustix::fs::ioctl_setflags(&uppers, flags | IFlags::TOPDIR).is_ok();
        assert!(flags.contains(IFlags::TOPDIR) || !can_be_told);
    }

    #[test]
    fn a_record_replaces_another_and_leaves_nothing_where_it_cannot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mount.json");
        // As a program that was killed has left it.
        std::fs::write(dir.path().join("mount.new"), "{ \"a long unfin").unwrap();
        for value in [1, 2] {
            write_json(&path, &value).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), value.to_string());
        }
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        // A directory is not replaced by a file.
        std::fs::create_dir(dir.path().join("other.json")).unwrap();
        write_json(&dir.path().join("other.json"), &3).unwrap_err();
        std::fs::remove_dir(dir.path().join("other.json")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn notes_are_kept_until_they_are_forgotten() {
        let (_dir, state) = state();
        let note = Note::Work { path: "/x/.up.work".into(), upper: "/x/up".into() };
        state.note(&note).unwrap();
        state.note(&note).unwrap();
        assert_eq!(state.notes().unwrap(), std::slice::from_ref(&note));
        state.forget(&note);
        assert_eq!(state.notes().unwrap(), []);
        // By another program, which had another hash.
        state.note(&note).unwrap();
        let file = state.list("notes").unwrap().remove(0);
        std::fs::rename(&file, file.with_file_name("0123456789abcdef")).unwrap();
        assert_eq!(state.notes().unwrap(), std::slice::from_ref(&note));
        state.forget(&note);
        assert_eq!(state.notes().unwrap(), []);
    }
}
