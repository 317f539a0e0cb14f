//! A mount that is there, and what its server does when it is asked.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use serde::de::DeserializeOwned;

use super::checkpoints::{
    self, CheckpointRequest, ForgetRequest, Forgotten, ForkRequest, Forked, ListRequest, Listed,
    Made, PublishAsked, Publishing, PublishingRequest, RollbackRequest, RolledBack, Target, Waited,
    check_nobody_writes, write_back,
};
use super::control::fetch_report;
use super::mounts::{MountInfo, read_mounts};
use super::questions::Question;
use super::request::{Found, MountRequest, Ready};
use super::silence;
use super::state::{MountDir, StateDir, lock_directory};
use super::unmount::check_free;
use crate::backup::BackupId;
use crate::failure::{Code, Failure};
use crate::inode_ops::Directory;

/// A mount that is there. Its server does what it is asked for here, and may be another program's.
///
/// ```no_run
/// use thawfs::server::{Mounted, NewCheckpoint, RollBackTo};
///
/// # fn example() -> Result<(), thawfs::failure::Failure> {
/// let mount = Mounted::at("/workspace".as_ref())?;
/// let before = mount.checkpoint(&NewCheckpoint { name: Some("before".into()), ..NewCheckpoint::default() })?;
/// std::fs::write("/workspace/file", "changed").expect("it is a directory as others");
/// mount.fork("/elsewhere".as_ref(), None)?;
/// mount.roll_back(RollBackTo::Checkpoint("before"))?;
/// mount.forget(&before.id.to_string())?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Mounted {
    pub(crate) info: MountInfo,
    pub(crate) shown: String,
    pub(crate) server: MountDir,
    pub(crate) control: PathBuf,
}

/// A checkpoint that is to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewCheckpoint {
    /// What to call it; one with a name is kept until it is forgotten.
    pub name: Option<String>,
    /// Publish it as a backup of so many seconds in the bucket that the mount's backup is in. `None`: it stays on
    /// this machine.
    pub publish: Option<u64>,
    /// Return only once the disk has it.
    pub sync: bool,
}

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its id, and that of its backup.
    pub id: BackupId,
    /// What it is called.
    pub name: Option<String>,
    /// Whether the disk is known to have it.
    pub durable: bool,
    /// Files of it that are of no one moment, from the mount's root.
    pub fuzzy: Vec<PathBuf>,
    /// Whether it is a backup in the bucket.
    pub is_published: bool,
    /// Whether it is what the last rollback has rolled away.
    pub is_rolled_away: bool,
}

/// Where to roll back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RollBackTo<'a> {
    /// The last checkpoint.
    Last,
    /// That of this id, or the first eight digits of it or more, or this name.
    Checkpoint(&'a str),
    /// What was mounted.
    Archive,
}

impl Mounted {
    /// The mount on `dir`.
    ///
    /// # Errors
    /// [`Code::NotMounted`] where none of ours is there, [`Code::NotFound`] where nothing is, and [`Code::Failed`] where
    /// its server does not answer.
    pub fn at(dir: &Path) -> Result<Self, Failure> {
        let (info, server, below) = find_around(dir)?;
        let (mountpoint, shown) = (&info.mountpoint, dir.display());
        if !below.as_os_str().is_empty() {
            let whole = mountpoint.display();
            let message =
                format!("{shown} is only a part of a mount: checkpoints are of all of it");
            return Err(Failure::new(Code::NotMounted, message).hint(format!("name {whole}")));
        }
        let shown = mountpoint.to_string_lossy().into_owned();
        Ok(Self { info, shown, control: server.control_path(), server })
    }

    /// Asks the server.
    pub(crate) fn ask<T: DeserializeOwned>(&self, question: &Question) -> Result<T, Failure> {
        checkpoints::ask(&self.control, question).map_err(|failure| {
            match failure.message.contains(&self.shown) {
                true => failure,
                false => {
                    let message = format!("{}: {}", self.shown, failure.message);
                    Failure { message, ..failure }
                }
            }
        })
    }

    /// Has the kernel hand on what it holds back of what was written.
    pub(crate) fn write_back(&self) {
        write_back(&self.info.mountpoint, &self.control);
    }

    /// Makes a checkpoint: what the mount is at one moment. Takes a moment itself, whatever the mount's size.
    ///
    /// # Errors
    /// [`Code::Upper`] where the upper's file system has no room or fails, [`Code::InvalidBackupConfig`] of a name that
    /// there is already or that is none, [`Code::Unsupported`] where the mount has no upper.
    pub fn checkpoint(&self, new: &NewCheckpoint) -> Result<Checkpoint, Failure> {
        self.write_back();
        let publish = new.publish.map(|ttl| PublishAsked {
            ttl,
            name: None,
            whole: false,
            passing: false,
            required: true,
        });
        let (name, sync) = (new.name.clone(), new.sync);
        let request = CheckpointRequest { name: name.clone(), sync, keep: None, publish };
        let made: Made = self.ask(&Question::Checkpoint(request))?;
        Ok(Checkpoint {
            id: made.id,
            name,
            durable: made.durable,
            fuzzy: made.fuzzy.into_iter().map(|file| file.path).collect(),
            is_published: false,
            is_rolled_away: false,
        })
    }

    /// Waits until checkpoint `id` is a backup in the bucket.
    ///
    /// # Errors
    /// What its publishing fails with for good, and [`Code::BackupCreateFailed`] where it is gone.
    pub fn wait_published(&self, id: &BackupId) -> Result<(), Failure> {
        loop {
            let request = PublishingRequest { id: id.clone(), again: false };
            match self.ask(&Question::Publishing(request))? {
                Waited::Waiting(_) => {}
                Waited::Done(_) => return Ok(()),
                Waited::Failed(failure) => return Err(failure),
                Waited::Gone => {
                    let message = format!("checkpoint {id} was forgotten, or its mount has ended");
                    return Err(Failure::new(Code::BackupCreateFailed, message));
                }
            }
        }
    }

    /// The checkpoints of the mount, the oldest first.
    ///
    /// # Errors
    /// Where the server does not answer.
    pub fn checkpoints(&self) -> Result<Vec<Checkpoint>, Failure> {
        let listed: Listed = self.ask(&Question::Checkpoints(ListRequest::default()))?;
        let points = listed.checkpoints.into_iter().map(|point| Checkpoint {
            id: point.id,
            name: point.name,
            durable: point.durable,
            fuzzy: point.fuzzy.into_iter().map(|file| file.path).collect(),
            is_published: matches!(point.published, Some(Publishing::Published { .. })),
            is_rolled_away: point.rolled_away,
        });
        Ok(points.collect())
    }

    /// Makes the mount what it was. What it is until then is kept until the next rollback; gives the id by which that
    /// is had back.
    ///
    /// # Errors
    /// [`Code::NotFound`] where there is no such checkpoint, [`Code::Busy`] where something is mounted in what would go.
    pub fn roll_back(&self, to: RollBackTo<'_>) -> Result<Option<BackupId>, Failure> {
        let to = match to {
            RollBackTo::Last => Target::Last,
            RollBackTo::Checkpoint(which) => Target::Point(which.to_owned()),
            RollBackTo::Archive => Target::Archive,
        };
        let request = RollbackRequest { to, discard: false, strict: false };
        Ok(self.roll_back_as(request)?.rolled_away)
    }

    pub(crate) fn roll_back_as(&self, request: RollbackRequest) -> Result<RolledBack, Failure> {
        self.write_back();
        if request.strict {
            check_nobody_writes(&self.info)?;
        }
        let done: RolledBack = self.ask(&Question::Rollback(request))?;
        // The kernel finds a directory that has moved when it is looked up, and whose working directory it is has a
        // path again then.
        for path in &done.moved {
            let _ = self.info.mountpoint.join(OsStr::from_bytes(path)).symlink_metadata();
        }
        Ok(done)
    }

    /// Forgets the checkpoint of this id or name.
    ///
    /// # Errors
    /// [`Code::NotFound`] where there is none, [`Code::Busy`] while a fork lies on it.
    pub fn forget(&self, which: &str) -> Result<(), Failure> {
        let request = ForgetRequest { which: Some(which.to_owned()), keep: None };
        self.ask::<Forgotten>(&Question::Forget(request))?;
        Ok(())
    }

    /// Mounts what the mount is, or was at checkpoint `at`, once more: on `new`, an empty directory. What is changed in
    /// one of the two is not seen in the other.
    ///
    /// # Errors
    /// [`Code::Mountpoint`] where `new` is no empty directory, or one that the mount is in or that is in it, and as
    /// [`Self::checkpoint`].
    pub fn fork(&self, new: &Path, at: Option<&str>) -> Result<Ready, Failure> {
        let failed = |error: io::Error| {
            Failure::new(Code::Mountpoint, format!("the mountpoint {}: {error}", new.display()))
        };
        let directory = Directory::open(new).map_err(failed)?;
        let id = directory.id().map_err(failed)?;
        let request = ForkRequest {
            at: at.map(str::to_owned),
            mount: self.to_be_forked(directory.path(), Found::at(id))?,
        };
        self.check_fork_place(directory.path())?;
        let _lock = lock_directory(directory.path(), || {})?;
        self.check_fork_free(&directory)?;
        Ok(self.fork_as(request)?.ready)
    }

    /// How a fork is mounted on `new`, if nothing else is asked for: as the mount is.
    pub(crate) fn to_be_forked(&self, new: &Path, found: Found) -> Result<MountRequest, Failure> {
        let Some(held) = self.server.read_options() else {
            let message = format!("how {} is mounted is not on record", self.shown);
            return Err(Failure::new(Code::Failed, message));
        };
        let (mountpoint, keep_upper) = (new.to_owned(), false);
        Ok(MountRequest { mountpoint, found, upper: None, workdir: None, keep_upper, ..held })
    }

    /// Refuses places that hide the mount, or are hidden with it.
    pub(crate) fn check_fork_place(&self, new: &Path) -> Result<(), Failure> {
        let mounted = &self.info.mountpoint;
        if !new.starts_with(mounted) && !mounted.starts_with(new) {
            return Ok(());
        }
        let (new, mounted) = (new.display(), mounted.display());
        let message = format!("{new} and {mounted}, which is to be forked, lie within each other");
        Err(Failure::new(Code::Mountpoint, message).hint("name a directory elsewhere"))
    }

    /// Refuses a directory with something on it or in it.
    pub(crate) fn check_fork_free(&self, new: &Directory) -> Result<(), Failure> {
        check_free(new.path())?;
        if new.has_entries().unwrap_or(false) {
            let message = format!("{} is not empty", new.path().display());
            return Err(Failure::new(Code::Mountpoint, message).hint("name a new directory"));
        }
        Ok(())
    }

    pub(crate) fn fork_as(&self, request: ForkRequest) -> Result<Forked, Failure> {
        self.write_back();
        self.ask(&Question::Fork(Box::new(request)))
    }
}

/// The mount of ours that `dir` is in, its server, and where in it that is.
pub(crate) fn find_around(dir: &Path) -> Result<(MountInfo, MountDir, PathBuf), Failure> {
    let failed = |error: io::Error| {
        let code = match error.kind() {
            io::ErrorKind::NotFound => Code::NotFound,
            _ => Code::Failed,
        };
        Failure { code, ..Failure::io("open", dir, &error) }
    };
    let mounts = read_mounts().map_err(failed)?;
    // A server that does not answer is asked before its mount, where nobody would say so.
    let named = std::path::absolute(dir).map_err(failed)?;
    let around = mounts.iter().filter(|mount| named.starts_with(&mount.mountpoint));
    let innermost = around.max_by_key(|mount| mount.mountpoint.components().count());
    let innermost = innermost.filter(|mount| mount.is_ours());
    innermost.map(server_of).transpose()?;
    let path = match dir.canonicalize() {
        Ok(path) => path,
        Err(error) => {
            // It may have been killed since.
            innermost.map(server_of).transpose()?;
            return Err(failed(error));
        }
    };
    let stat = rustix::fs::statx(CWD, &path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID)
        .map_err(|errno| failed(errno.into()))?;
    let mount = mounts.into_iter().find(|mount| mount.id == stat.stx_mnt_id);
    let Some(mount) = mount.filter(MountInfo::is_ours) else {
        let message = format!("{} is in no mount of thawfs", dir.display());
        return Err(
            Failure::new(Code::NotMounted, message).hint("thawfs status shows what is mounted")
        );
    };
    let server = server_of(&mount)?;
    let inside = path.strip_prefix(&mount.mountpoint).unwrap_or(Path::new(""));
    // Of a bind mount, that is not the root of the tree.
    let root = mount.root.strip_prefix("/").unwrap_or(&mount.root);
    // Without a slash at its end, where nothing is joined.
    let below = root.join(inside).components().collect();
    Ok((mount, server, below))
}

/// The server of `mount`, which answers.
fn server_of(mount: &MountInfo) -> Result<MountDir, Failure> {
    let (shown, state) = (mount.mountpoint.display(), StateDir::locate());
    let recorded =
        state.read_mount_of(mount).map_err(|error| Failure::io("read", state.path(), &error))?;
    let Some((server, _)) = recorded else {
        let place = state.path().display();
        let message = format!("the server of {shown} is not on record in {place}");
        return Err(Failure::new(Code::NotMounted, message)
            .hint("ask as the user who mounted it, with the same THAWFS_STATE_DIR"));
    };
    if !server.is_alive() {
        return Err(silence::killed(&mount.mountpoint));
    }
    fetch_report(&server.control_path()).map_err(|error| {
        silence::ended(&server, &error).unwrap_or_else(|| {
            Failure::new(Code::Failed, format!("the server of {shown} does not answer: {error}"))
                .hint("thawfs status shows which it is; its log may say why")
        })
    })?;
    Ok(server)
}
