//! Restoring a backup: a fresh mount of it in place of what is mounted there.
//!
//! ```text
//! fetch the metadata | open the archive       at the same time, in two processes
//! lock the directory                          whoever else restores it waits
//! take down what is mounted on it or in it
//! mount, with a fresh upper
//! ```
//!
//! Nothing is taken down before the backup is known to be there and within its lifetime, and its
//! archive to be one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::checkpoints::{self, ListRequest, Listed, ListedPoint, Publishing};
use super::program::ServerProgram;
use super::questions::Question;
use super::state::{Lock, StateDir, check_outside_state, lock_directory};
use super::unchosen::check_unchosen;
use super::unmount::{clear, lies_in_a_dead_mount, resolve_mountpoint};
use super::{Found, MountRequest, Ready, Starting, serve};
use crate::backup::{BackupId, Backups, Metadata, SourceRequest};
use crate::failure::{Code, Failure};
use crate::inode_ops::Directory;

/// Told, one line each, what a user would want to know meanwhile.
pub type Notice = Arc<dyn Fn(&str) + Send + Sync>;

/// Where to restore to, and how.
#[derive(Clone)]
pub struct RestoreRequest {
    /// Where to. Made if it does not exist. `None`: where the backup was made, unless that is a directory
    /// of the system: `/usr`, `/root/.ssh` and the like are named, or refused.
    pub dir: Option<PathBuf>,
    /// Where its handle says that the backup was made; `None`: what its metadata say counts.
    pub made_in: Option<PathBuf>,
    /// How to mount. Source, mountpoint and upper are set by the restore; of the source, the memory for
    /// caches counts.
    pub mount: MountRequest,
    /// What is to serve it; `None`: this program, if it can ([`ServerProgram::this`]).
    pub program: Option<ServerProgram>,
    /// Gets what a user would want to know meanwhile.
    pub notice: Notice,
}

impl Default for RestoreRequest {
    /// Writable, where the backup was made.
    fn default() -> Self {
        let mount = MountRequest::new(SourceRequest::new(""), PathBuf::new());
        Self { dir: None, made_in: None, mount, program: None, notice: Arc::new(|_| ()) }
    }
}

impl RestoreRequest {
    /// Where to, once the metadata are known.
    fn target(&self, metadata: &Metadata) -> Result<PathBuf, Failure> {
        match (&self.dir, &self.made_in) {
            (Some(chosen), _) => Ok(chosen.clone()),
            (None, Some(made_in)) => check_unchosen(made_in),
            (None, None) => check_unchosen(Path::new(&metadata.dir)),
        }
    }
}

/// A backup that is mounted.
#[derive(Clone, Debug)]
pub struct Restored {
    /// What is known of it.
    pub metadata: Metadata,
    /// How it is mounted.
    pub ready: Ready,
}

/// Restores backup `id`. Returns when its files can be used, served by a process of its own.
///
/// # Errors
/// [`Code::Usage`] where there is no program that could serve them;
/// [`Code::BackupNotFound`], which says what is missing, [`Code::BackupExpired`], or
/// [`Code::BackupRestoreFailed`]. Nothing is mounted then, and a directory that was made for it is
/// removed.
///
/// ```no_run
/// use thawfs::backup::{BackupId, Backups, BucketRequest};
/// use thawfs::server::{RestoreRequest, restore};
///
/// # async fn example() -> Result<(), thawfs::failure::Failure> {
/// let backups = Backups::open(&BucketRequest::new("s3://my-bucket")).await?;
/// let id: BackupId = "0b7a5c1e-6f0d-4c43-9d0c-2f1f8f1a9e77".parse()?;
/// let request = RestoreRequest { dir: Some("/workspace".into()), ..RestoreRequest::default() };
/// let restored = restore(&backups, &id, request).await?;
/// println!("served by process {}", restored.ready.pid);
/// # Ok(()) }
/// ```
///
/// A program that does this has to call [`serve_if_asked`](super::serve_if_asked) first of all, since the server
/// is the program itself, unless it names another.
pub async fn restore(
    backups: &Backups,
    id: &BackupId,
    request: RestoreRequest,
) -> Result<Restored, Failure> {
    let source = source_of(backups, id, &request)?;
    let shown = request.dir.clone().unwrap_or_else(|| id.as_str().into());
    let program = server_program(&request)?;
    let opening = spawn_blocking(move || open_server(&program, &source, &shown));
    // Where this fails, the server is dropped, and ends.
    let metadata = restorable(backups, id).await?;
    let dir = request.target(&metadata)?;
    let restored = async {
        let server = opening.await.map_err(|error| ended(&error))??;
        let mount = move || mount_in_place(server, request, &dir);
        spawn_blocking(mount).await.map_err(|error| ended(&error))?
    };
    match restored.await {
        Ok(ready) => Ok(Restored { metadata, ready }),
        Err(failure) => Err(backups.restore_failed(id, failure).await),
    }
}

/// As [`restore`], served by this process: returns when the mount is gone. `ready` is called when the
/// files can be used.
///
/// # Errors
/// As [`restore`].
pub async fn restore_here(
    backups: &Backups,
    id: &BackupId,
    request: RestoreRequest,
    ready: impl FnOnce(Restored) + Send + 'static,
) -> Result<(), Failure> {
    let source = source_of(backups, id, &request)?;
    let metadata = restorable(backups, id).await?;
    let dir = request.target(&metadata)?;
    let work = move || {
        let opened = source.open()?;
        let place = ReservedDir::take(request, &dir)?;
        let mount = place.request.clone();
        serve(&mount, opened, |mounted, _log| {
            place.keep();
            ready(Restored { metadata, ready: mounted });
            Ok(())
        })
    };
    match spawn_blocking(work).await.map_err(|error| ended(&error))? {
        Ok(()) => Ok(()),
        Err(failure) => Err(backups.restore_failed(id, failure).await),
    }
}

/// Restores an archive of which only a URL is known, such as a presigned one, into `dir`. Its lifetime
/// is for whoever gave the URL to know.
///
/// # Errors
/// What keeps the archive from being opened, or the directory from being mounted on.
pub fn restore_archive(
    source: &SourceRequest,
    dir: &Path,
    mut request: RestoreRequest,
) -> Result<Ready, Failure> {
    request.dir = Some(dir.to_owned());
    let server = open_server(&server_program(&request)?, source, dir)?;
    mount_in_place(server, request, dir)
}

fn server_program(request: &RestoreRequest) -> Result<ServerProgram, Failure> {
    request.program.clone().map_or_else(ServerProgram::this, Ok)
}

async fn restorable(backups: &Backups, id: &BackupId) -> Result<Metadata, Failure> {
    match backups.restorable(id).await {
        Err(failure) => Err(still_here(id, backups.restore_failed(id, failure).await)),
        metadata => metadata,
    }
}

/// What is said instead of `failure` of a backup that is not there, where it is a checkpoint of a mount on this machine.
pub(crate) fn still_here(id: &BackupId, failure: Failure) -> Failure {
    if failure.code != Code::BackupNotFound {
        return failure;
    }
    let Some((mountpoint, point)) = find_point(id) else { return failure };
    let shown = mountpoint.display();
    let message = match point.published {
        Some(Publishing::Queued { why: None } | Publishing::Begun { .. }) => {
            format!("backup {id} is still being published by the mount on {shown}")
        }
        Some(Publishing::Queued { why: Some(why) } | Publishing::Failed { why }) => {
            format!("backup {id} is not published yet by the mount on {shown}: {why}")
        }
        None => format!("{id} is a checkpoint of the mount on {shown}, and no backup"),
        // It was, and somebody has deleted it.
        Some(Publishing::Published { .. }) => return failure,
    };
    Failure::new(failure.code, message).hint(format!(
        "thawfs checkpoints {shown} shows how far it is; there it can be rolled back to"
    ))
}

/// The checkpoint of this id, and where the mount is that has it.
pub(crate) fn find_point(id: &BackupId) -> Option<(PathBuf, ListedPoint)> {
    let mounts = StateDir::locate().read_mounts().ok()?;
    mounts.into_iter().filter(|(server, _)| server.is_alive()).find_map(|(server, record)| {
        let question = Question::Checkpoints(ListRequest::default());
        let listed: Listed = checkpoints::ask(&server.control_path(), &question).ok()?;
        let point = listed.checkpoints.into_iter().find(|point| point.id == *id)?;
        Some((record.mountpoint, point))
    })
}

fn source_of(
    backups: &Backups,
    id: &BackupId,
    request: &RestoreRequest,
) -> Result<SourceRequest, Failure> {
    let mut source = backups.archive(id)?;
    source.cache_memory = request.mount.source.cache_memory;
    source.disk_cache = request.mount.source.disk_cache;
    Ok(source)
}

/// Starts a server, and waits until it can read the archive.
fn open_server(
    program: &ServerProgram,
    source: &SourceRequest,
    shown: &Path,
) -> Result<Starting, Failure> {
    let mut server = Starting::new(program, source, shown)?;
    server.wait_opened()?;
    Ok(server)
}

fn mount_in_place(server: Starting, request: RestoreRequest, dir: &Path) -> Result<Ready, Failure> {
    let place = ReservedDir::take(request, dir)?;
    match server.mount(&place.request) {
        Ok(ready) => {
            place.keep();
            Ok(ready)
        }
        Err(failure) => {
            // A server that did not get to say why it ended may have left a dead mount.
            if let Err(error) = clear(&place.request.mountpoint) {
                tracing::warn!("cleaning up: {error}");
            }
            Err(failure)
        }
    }
}

/// A directory that is ours to mount on, until this is dropped.
struct ReservedDir {
    request: MountRequest,
    made: MadeDirs,
    /// Open, so that no other gets its number.
    _directory: Directory,
    _lock: Lock,
}

impl ReservedDir {
    /// Makes room in `dir`.
    fn take(request: RestoreRequest, dir: &Path) -> Result<Self, Failure> {
        let RestoreRequest { dir: chosen, mut mount, notice, .. } = request;
        mount.check()?;
        let mut made = MadeDirs::default();
        made.make(dir)?;
        let mountpoint = resolve_mountpoint(dir)?;
        if chosen.is_none() && mountpoint != dir {
            let message = format!("{} leads elsewhere since it was looked at", dir.display());
            return Err(Failure::new(Code::Mountpoint, message));
        }
        check_outside_state(&mountpoint)?;
        let shown = mountpoint.display();
        let lock = lock_directory(&mountpoint, || {
            notice(&format!("waiting for another thawfs that is busy with {shown}"));
        })?;
        // Whoever had it locked may have made it, failed, and removed it.
        made.make(&mountpoint)?;
        for cleared in clear(&mountpoint)? {
            notice(&match cleared == mountpoint {
                true => format!("the mount on {shown} is replaced"),
                false => format!("{} was mounted inside {shown}, and is gone", cleared.display()),
            });
        }
        let directory = check_directory(&mountpoint)?;
        if directory.has_entries().unwrap_or(false) {
            notice(&format!("{shown} is not empty; what is in it is hidden until the unmount"));
        }
        mount.found = Found { mountpoint: directory.id().ok(), ..Found::default() };
        mount.mountpoint = mountpoint;
        Ok(Self { request: mount, made, _directory: directory, _lock: lock })
    }

    /// The mount has come to be: others may have their turn.
    fn keep(self) {
        self.made.keep();
    }
}

/// That it can be mounted on, now that nothing of ours is on it.
fn check_directory(mountpoint: &Path) -> Result<Directory, Failure> {
    let shown = mountpoint.display();
    let failure = |message: String| Failure::new(Code::Mountpoint, message);
    // Its number is what a dead mount cannot tell.
    let opened = Directory::open_again(mountpoint, None).and_then(|dir| dir.id().map(|_| dir));
    match opened {
        Ok(directory) => Ok(directory),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            Err(failure(format!("{shown} is not a directory")))
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            Err(lies_in_a_dead_mount(Code::Mountpoint, mountpoint))
        }
        Err(error) => Err(failure(format!("{shown}: {error}"))),
    }
}

/// Directories made for a mount, removed again unless it comes to be.
#[derive(Default)]
struct MadeDirs(Vec<PathBuf>);

impl MadeDirs {
    /// Makes `dir`, and those above it, as far as they are missing.
    fn make(&mut self, dir: &Path) -> Result<(), Failure> {
        let missing = dir.ancestors().take_while(|dir| {
            !dir.as_os_str().is_empty()
                && matches!(dir.symlink_metadata(), Err(e) if e.kind() == std::io::ErrorKind::NotFound)
        });
        let missing: Vec<_> = missing.collect();
        for dir in missing.into_iter().rev() {
            match std::fs::create_dir(dir) {
                Ok(()) => self.0.push(dir.to_owned()),
                // By somebody who restores it, too.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Failure::io("make", dir, &error)),
            }
        }
        Ok(())
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for MadeDirs {
    fn drop(&mut self) {
        for dir in self.0.iter().rev() {
            // One that somebody uses by now stays.
            let _ = std::fs::remove_dir(dir);
        }
    }
}

fn ended(error: &tokio::task::JoinError) -> Failure {
    Failure::new(Code::Failed, format!("a thread ended early: {error}"))
}
