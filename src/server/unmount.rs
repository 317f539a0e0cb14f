//! Taking a mount down, whoever serves it and whether or not that still lives.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::checkpoints::{self, Held, ListRequest, Listed, ListedPoint, Publishing};
use super::dead::{clear_records, remove_upper};
use super::mounts::{
    MountInfo, in_words, mounted_inside, read_mount_at, read_mounts, read_mounts_of,
};
use super::questions::Question;
use super::state::{EndWatch, MountDir, Record, StateDir, lock_directory};
use crate::backup::BackupId;
use crate::failure::{Code, Failure};
use crate::fuse;
use crate::inode_ops::Location;

/// How long a server takes that has nothing more to do.
const AT_ONCE: Duration = Duration::from_secs(2);

/// How long a server may take to remove its upper and end. A tree of a million files on a slow disk
/// takes about that long.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long the users of a mount that is to be replaced get to leave it.
const DRAIN: Duration = Duration::from_secs(1);

/// How a mount is taken down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As umount(8) would, unless it is in use.
    Whole,
    /// Detached now, to end with its last user.
    Lazy,
    /// Only if its server was killed.
    Dead,
}

/// Unmounts `dir`, and waits until its server has removed what was its own and ended, unless it is detached
/// to end later. What is mounted inside of it never goes with it, unless that is dead, too, and it is dead
/// itself. Clears what servers of that directory have on record that were killed; their uppers stay, as
/// changes are never thrown away by guess. Waits for others who mount or unmount there.
///
/// # Errors
/// [`Code::NotMounted`], [`Code::Busy`], [`Code::Fuse`] where it is not permitted, or what the system
/// says.
pub fn unmount(dir: &Path, manner: Manner) -> Result<(), Failure> {
    let mountpoint = resolve_mountpoint(dir)?;
    let _lock = lock_directory(&mountpoint, || ())?;
    unmount_locked(&mountpoint, manner)
}

/// As [`unmount`], for who has resolved and locked the mountpoint ([`StateDir::lock_mountpoint`]).
pub(crate) fn unmount_locked(mountpoint: &Path, manner: Manner) -> Result<(), Failure> {
    let shown = mountpoint.display();
    let state = StateDir::locate();
    let failed =
        |error: io::Error| Failure::new(Code::Failed, format!("cannot unmount {shown}: {error}"));
    let mounts = read_mounts().map_err(failed)?;
    let mut here = mounts.iter().rev().filter(|mount| mount.mountpoint == mountpoint);
    let top = here.next();
    let Some(mounted) = top.filter(|mount| mount.is_ours()) else {
        if let Some(cover) = top.filter(|_| here.any(MountInfo::is_ours)) {
            let kind = &cover.fs_type;
            let message =
                format!("another file system ({kind}) is mounted over thawfs's on {shown}");
            return Err(Failure::new(Code::Busy, message).hint("that one has to go first"));
        }
        // A server that was killed, after which somebody unmounted.
        return match clear_records(&state, mountpoint).map_err(failed)? {
            0 => Err(Failure::new(Code::NotMounted, format!("nothing of thawfs is on {shown}"))
                .hint("thawfs status shows what is mounted")),
            _ => Ok(()),
        };
    };
    let recorded = state.read_mount_of(mounted).map_err(failed)?;
    let watch = recorded.as_ref().and_then(|(mount, _)| mount.watch());
    let alive = watch.as_ref().is_some_and(EndWatch::is_alive);
    if manner == Manner::Dead && (alive || !is_dead(mountpoint)) {
        return Err(Failure::new(Code::Busy, format!("the server of {shown} lives"))
            .hint("thawfs status shows what is mounted"));
    }
    let dead_inside = match manner {
        Manner::Whole if alive => fuse::unmount(mountpoint).map(|()| Vec::new()),
        // The kernel sees to it that nothing is inside, nor comes to be there meanwhile.
        _ => match fuse::unmount(mountpoint) {
            // In use, and whether its server lives is not on record here.
            Err(error) if manner == Manner::Whole && recorded.is_none() && !is_dead(mountpoint) => {
                Err(error)
            }
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                let inside = check_inside(&state, mounted, alive)?;
                fuse::detach(mountpoint).map(|()| inside)
            }
            done => done.map(|()| Vec::new()),
        },
    };
    let dead_inside = dead_inside.map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => {
            check_inside(&state, mounted, alive).err().unwrap_or_else(|| {
                let hint = format!(
                    "end what uses it (fuser -vm {shown} shows it), or detach it with --lazy"
                );
                Failure::new(Code::Busy, format!("{shown} is in use")).hint(hint)
            })
        }
        io::ErrorKind::PermissionDenied => {
            Failure::new(Code::Fuse, format!("not permitted to unmount {shown}"))
                .hint("only root and whoever mounted it may")
        }
        _ => failed(error),
    })?;
    for inside in dead_inside {
        clear_records(&state, &inside).map_err(failed)?;
    }
    match watch {
        // Detached lazily, it ends when the last user is gone: not ours to wait for.
        Some(_) if manner == Manner::Lazy && alive => return Ok(()),
        Some(watch) if alive && !watch.wait(AT_ONCE) => {
            if let Some(place) = elsewhere(mounted) {
                let message = format!("{shown} is unmounted, but the same is mounted {place}, too");
                let hint = "its server ends with the last of them";
                return Err(Failure::new(Code::Busy, message).hint(hint));
            }
            if !watch.wait(PATIENCE) {
                let message = format!("{shown} is unmounted, but its server has not ended yet");
                return Err(Failure::new(Code::Failed, message).hint("see thawfs status"));
            }
        }
        _ => {}
    }
    // There is nothing, unless the server was killed: before, or while it was waited for.
    clear_records(&state, mountpoint).map_err(failed)?;
    Ok(())
}

/// The upper that goes with the mount on `mountpoint`, and the checkpoints that go with it, or keep it;
/// `None` where the upper stays in any case, or there is none.
pub(crate) fn held_on(mountpoint: &Path) -> Option<(PathBuf, Held)> {
    let mounted = read_mount_at(mountpoint).ok()?.filter(MountInfo::is_ours)?;
    let (server, record) = StateDir::locate().read_mount_of(&mounted).ok()??;
    let upper = record.upper.filter(|_| record.upper_is_ours && server.is_alive())?;
    let held = Held::at(&upper.with_file_name("work"));
    Some((upper, held))
}

/// What the server of the mount on `mountpoint` has yet to publish, and its socket; `None` where it does not say, and
/// where there is nothing.
pub(crate) fn unpublished_on(mountpoint: &Path) -> Option<(PathBuf, Vec<BackupId>)> {
    let mounted = read_mount_at(mountpoint).ok()?.filter(MountInfo::is_ours)?;
    let (server, _) = StateDir::locate().read_mount_of(&mounted).ok()??;
    let control = server.control_path();
    let question = Question::Checkpoints(ListRequest::default());
    let listed: Listed = checkpoints::ask(&control, &question).ok()?;
    let is_pending = |point: &ListedPoint| {
        matches!(point.published, Some(Publishing::Queued { .. } | Publishing::Begun { .. }))
    };
    let pending = listed.checkpoints.into_iter().filter(is_pending);
    let pending: Vec<_> = pending.map(|point| point.id).collect();
    (!pending.is_empty()).then_some((control, pending))
}

/// What becomes of checkpoints that are not published yet with the mount that they are of; `held` is what goes with that.
pub(crate) fn unpublished_in_words(
    unpublished: &[BackupId],
    held: Option<&(PathBuf, Held)>,
) -> String {
    let ids: Vec<_> = unpublished.iter().map(BackupId::as_str).collect();
    let subject = match unpublished.len() {
        1 => format!("checkpoint {} is", ids.join("")),
        count => format!("{count} checkpoints ({}) are", ids.join(", ")),
    };
    match held.filter(|(_, held)| !held.keeps()) {
        Some(_) => format!("{subject} not in the bucket, and will not be"),
        None => format!("{subject} not in the bucket until the same changes are mounted again"),
    }
}

/// What would go with `mounted` although somebody may need it, in words; `None` where nothing would.
pub(super) fn lives_inside(state: &StateDir, mounted: &MountInfo) -> io::Result<Option<String>> {
    let mounts = read_mounts()?;
    let mut living = mounted_inside(&mounts, mounted.id);
    let mut failed = None;
    living.retain(|inside| match is_dead_inside(state, mounted, inside) {
        Ok(dead) => !dead,
        Err(error) => {
            failed = Some(error);
            true
        }
    });
    failed.map_or(Ok((!living.is_empty()).then(|| in_words(living))), Err)
}

/// Whether what is mounted inside of a dead mount is as dead: the same file system, or a mount whose server
/// was killed, too. What is not on record here is not for us to judge: below a dead mount, all looks dead.
fn is_dead_inside(state: &StateDir, mounted: &MountInfo, inside: &MountInfo) -> io::Result<bool> {
    if inside.device == mounted.device {
        return Ok(true);
    }
    if !inside.is_ours() {
        return Ok(false);
    }
    let recorded = state.read_mount_of(inside)?;
    Ok(recorded.is_some_and(|(dir, _)| !dir.is_alive()))
}

/// Refuses to take down what somebody may need with the mount that it is in. Gives where the dead ones are
/// that go with it.
fn check_inside(
    state: &StateDir,
    mounted: &MountInfo,
    alive: bool,
) -> Result<Vec<PathBuf>, Failure> {
    let shown = mounted.mountpoint.display();
    let failed =
        |error: io::Error| Failure::io("read what is mounted in", &mounted.mountpoint, &error);
    let mounts = read_mounts().map_err(failed)?;
    let inside = mounted_inside(&mounts, mounted.id);
    let living = match alive {
        true => (!inside.is_empty()).then(|| in_words(inside.iter().copied())),
        false => lives_inside(state, mounted).map_err(failed)?,
    };
    match living {
        None => Ok(inside.into_iter().map(|mount| mount.mountpoint.clone()).collect()),
        Some(living) => {
            let message = format!("{living} is mounted inside {shown}, and would go with it");
            Err(Failure::new(Code::Busy, message).hint("what is inside has to be unmounted first"))
        }
    }
}

/// Where else the file system of a mount that is gone is still mounted: here by another name, or in a mount
/// namespace that was made meanwhile, as a container's is. In words.
fn elsewhere(mount: &MountInfo) -> Option<String> {
    // The kernel may have given the number of a file system that is gone to another one by now.
    let is_it = |other: &MountInfo| {
        (&other.device, &other.source) == (&mount.device, &mount.source) && other.is_ours()
    };
    if let Some(other) = read_mounts().ok()?.into_iter().find(is_it) {
        return Some(format!("on {}", other.mountpoint.display()));
    }
    let processes = std::fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut pids = processes.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    pids.find_map(|pid| {
        read_mounts_of(&pid).ok()?.iter().any(is_it).then(|| format!("where process {pid} sees it"))
    })
}

/// Whether nobody serves what is mounted there. Waits for a server that is alive and does not answer.
fn is_dead(mountpoint: &Path) -> bool {
    rustix::fs::statfs(mountpoint).err() == Some(rustix::io::Errno::NOTCONN)
}

/// Makes room at `mountpoint`: takes down our mounts on it and below it, lazily where they stay in
/// use. Says which there were. To be called with the mountpoint locked.
///
/// # Errors
/// [`Code::Mountpoint`] where something else is mounted there, before anything is taken down; or as
/// [`unmount`].
pub(super) fn clear(mountpoint: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |error: io::Error| Failure::io("read the mounts below", mountpoint, &error);
    let mut mounts = read_mounts().map_err(failed)?;
    mounts.retain(|mount| mount.mountpoint.starts_with(mountpoint));
    if let Some(other) = mounts.iter().find(|mount| !mount.is_ours()) {
        let message = format!("{} is mounted there, and not by thawfs", other.mountpoint.display());
        return Err(Failure::new(Code::Mountpoint, message)
            .hint("only mounts of thawfs are replaced; name another directory"));
    }
    let state = StateDir::locate();
    // The last mount is on top of those before, unless one was moved into it.
    mounts.reverse();
    mounts.sort_by_key(|mount| std::cmp::Reverse(mount.mountpoint.components().count()));
    let mut cleared = Vec::new();
    for mount in &mounts {
        let recorded = state.read_mount_of(mount).map_err(failed)?;
        let (held, unpublished) = (held_on(&mount.mountpoint), unpublished_on(&mount.mountpoint));
        take_down(&mount.mountpoint)?;
        if let Some((_, unpublished)) = unpublished {
            let shown = mount.mountpoint.display();
            tracing::warn!("{shown}: {}", unpublished_in_words(&unpublished, held.as_ref()));
        }
        if let Some(said) = held.and_then(|(upper, held)| held.in_words(&upper)) {
            tracing::warn!("{}: {said}", mount.mountpoint.display());
        }
        // To replace a mount is to throw its changes away, which a server that was killed has left.
        if let Some((ended, Record { upper_is_ours: true, .. })) = &recorded
            && !ended.is_alive()
            && let Err(error) = remove_upper(&state, ended)
        {
            tracing::warn!("the upper of a dead mount was not removed whole: {error}");
        }
        cleared.push(mount.mountpoint.clone());
    }
    // Of servers that were killed, whose mounts are gone: their uppers stay.
    clear_records(&state, mountpoint).map_err(failed)?;
    Ok(cleared)
}

/// Unmounts once nobody uses it, or lazily where it stays in use.
fn take_down(mountpoint: &Path) -> Result<(), Failure> {
    let busy_until = Instant::now() + DRAIN;
    let mut manner = Manner::Whole;
    loop {
        match unmount_locked(mountpoint, manner) {
            Err(failure) if failure.code == Code::Busy && manner == Manner::Whole => {
                match Instant::now() < busy_until {
                    true => std::thread::sleep(Duration::from_millis(20)),
                    false => manner = Manner::Lazy,
                }
            }
            // Somebody else was faster.
            Err(failure) if failure.code == Code::NotMounted => return Ok(()),
            done => return done,
        }
    }
}

/// Refuses a mountpoint that a mount of ours is on already, and clears what servers that were killed have
/// on record for it. To be called with the mountpoint locked.
///
/// # Errors
/// [`Code::Mountpoint`] if so.
pub(crate) fn check_free(mountpoint: &Path) -> Result<(), Failure> {
    let shown = mountpoint.display();
    let failed = |error: io::Error| Failure::io("read what is mounted on", mountpoint, &error);
    let state = StateDir::locate();
    let Some(mount) = read_mount_at(mountpoint).map_err(failed)?.filter(MountInfo::is_ours) else {
        if let Err(error) = clear_records(&state, mountpoint) {
            tracing::debug!("{}: {error}", state.path().display());
        }
        return Ok(());
    };
    let recorded = state.read_mount_of(&mount).map_err(failed)?;
    let dead = recorded.as_ref().is_some_and(|(dir, _): &(MountDir, Record)| !dir.is_alive());
    let message = format!("{shown} is mounted already, from {}", mount.source);
    Err(Failure::new(Code::Mountpoint, message).hint(match dead {
        true => format!("its server was killed: clear it with thawfs unmount --dead {shown}"),
        // Not how to unmount it: that would throw its changes away.
        false => format!("name another directory; thawfs status {shown} shows what is there"),
    }))
}

/// The mountpoint without symlinks, whether it is there or not.
///
/// # Errors
/// [`Code::Mountpoint`] for a symlink of another user, [`Code::NotMounted`] where there is not even a
/// directory that it could be in.
pub(crate) fn resolve_mountpoint(path: &Path) -> Result<PathBuf, Failure> {
    match Location::find(path) {
        Ok(location) => Ok(location.path()),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok("/".into()),
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            Err(lies_in_a_dead_mount(Code::NotMounted, path))
        }
        Err(error) => {
            let is_refused = error.kind() == io::ErrorKind::PermissionDenied;
            let code = if is_refused { Code::Mountpoint } else { Code::NotMounted };
            Err(Failure::new(code, format!("{}: {error}", path.display())))
        }
    }
}

/// Nothing is found below a mountpoint whose server is gone.
pub(super) fn lies_in_a_dead_mount(code: Code, path: &Path) -> Failure {
    Failure::new(code, format!("{} lies in a mount whose server is dead", path.display()))
        .hint("thawfs status shows which; thawfs unmount --dead takes it down")
}
