//! Taking a mount down, whoever serves it and whether or not that still lives.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::mounts::{read_mount_at, read_mounts};
use super::state::{EndWatch, MountDir, Record, StateDir};
use crate::failure::{Code, Failure};
use crate::fuse;

/// How long a server may take to remove its upper and end. A tree of a million files on a slow disk
/// takes about that long.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long the users of a mount that is to be replaced get to leave it.
const DRAIN: Duration = Duration::from_secs(1);

/// Unmounts `mountpoint`, and waits until its server has removed what was its own and ended. With
/// `lazy` the mount is detached instead, and ends with its last user. To be called with the
/// mountpoint locked ([`StateDir::lock_mountpoint`]).
///
/// # Errors
/// [`Code::NotMounted`], [`Code::Busy`], [`Code::Fuse`] where it is not permitted, or what the system
/// says.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), Failure> {
    let shown = mountpoint.display();
    let state = StateDir::locate();
    let failed =
        |error: io::Error| Failure::new(Code::Failed, format!("cannot unmount {shown}: {error}"));
    let recorded = state.read_mount_of(mountpoint).map_err(failed)?.map(|(mount, _)| mount);
    let mounted = read_mount_at(mountpoint).map_err(failed)?.is_some_and(|mount| mount.is_ours());
    if !mounted {
        return match recorded {
            // A server that was killed, after which somebody unmounted. Its upper stays: changes
            // are never thrown away by guess.
            Some(dead) if !dead.is_alive() => dead.remove().map_err(failed),
            _ => Err(Failure::new(Code::NotMounted, format!("nothing of thawfs is on {shown}"))
                .hint("thawfs status shows what is mounted")),
        };
    }
    let watch = recorded.as_ref().and_then(MountDir::watch);
    let alive = watch.as_ref().is_some_and(EndWatch::is_alive);
    let done = if lazy || !alive { fuse::detach(mountpoint) } else { fuse::unmount(mountpoint) };
    done.map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => Failure::new(Code::Busy, format!("{shown} is in use")).hint(
            format!("end what uses it (fuser -vm {shown} shows it), or detach it with --lazy"),
        ),
        io::ErrorKind::PermissionDenied => {
            Failure::new(Code::Fuse, format!("not permitted to unmount {shown}"))
                .hint("only root and whoever mounted it may")
        }
        _ => failed(error),
    })?;
    match (recorded, watch) {
        // Detached lazily, it ends when the last user is gone: not ours to wait for.
        (Some(_), _) if lazy && alive => Ok(()),
        (Some(_), Some(watch)) if alive => match watch.wait(PATIENCE) {
            true => Ok(()),
            false => Err(Failure::new(
                Code::Failed,
                format!("{shown} is unmounted, but its server has not ended yet"),
            )
            .hint("see thawfs status")),
        },
        (Some(dead), _) => dead.remove().map_err(failed),
        (None, _) => Ok(()),
    }
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
        return Err(
            Failure::new(Code::Mountpoint, message).hint("unmount it, or name another directory")
        );
    }
    let state = StateDir::locate();
    // The last mount is on top of those before.
    let mut cleared = Vec::new();
    for mount in mounts.iter().rev() {
        let recorded = state.read_mount_of(&mount.mountpoint).map_err(failed)?;
        let mut busy_until = Some(Instant::now() + DRAIN);
        loop {
            match unmount(&mount.mountpoint, busy_until.is_none()) {
                Err(failure) if failure.code == Code::Busy => match busy_until {
                    Some(until) if Instant::now() < until => {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    Some(_) => busy_until = None,
                    None => return Err(failure),
                },
                // Somebody else was faster.
                Err(failure) if failure.code == Code::NotMounted => break,
                other => break other?,
            }
        }
        // To replace a mount is to throw its changes away, which a server that was killed has left.
        if let Some((ended, Record { upper_is_ours: true, .. })) = &recorded
            && !ended.is_alive()
            && let Err(error) = state.remove_upper(ended)
        {
            log::warn!("the upper of a dead mount was not removed whole: {error}");
        }
        cleared.push(mount.mountpoint.clone());
    }
    Ok(cleared)
}

/// The mountpoint without symlinks. A dead mount cannot be looked at, only its parent.
///
/// # Errors
/// [`Code::NotMounted`] where there is nothing by that name.
pub fn resolve_mountpoint(path: &Path) -> Result<PathBuf, Failure> {
    let resolved = path.canonicalize().or_else(|error| {
        let absolute = std::path::absolute(path)?;
        match (absolute.parent(), absolute.file_name()) {
            (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
            _ => Err(error),
        }
    });
    resolved.map_err(|error: io::Error| {
        Failure::new(Code::NotMounted, format!("{}: {error}", path.display()))
    })
}
