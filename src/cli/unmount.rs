//! `thawfs unmount`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::args::UnmountArgs;
use super::output::Output;
use crate::failure::{Code, Failure};
use crate::fuse;
use crate::server::mounts::read_mount_at;
use crate::server::state::{EndWatch, MountDir, StateDir};

/// How long a server may take to remove its upper and end. A tree of a million files on a slow disk
/// takes about that long.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) fn unmount(args: &UnmountArgs, output: &Output) -> Result<(), Failure> {
    for mountpoint in &args.mountpoints {
        unmount_one(&resolve(mountpoint)?, args.lazy, output)?;
    }
    Ok(())
}

fn unmount_one(mountpoint: &Path, lazy: bool, output: &Output) -> Result<(), Failure> {
    let shown = mountpoint.display();
    let state = StateDir::locate();
    let failed =
        |error: io::Error| Failure::new(Code::Failed, format!("cannot unmount {shown}: {error}"));
    let _lock = state
        .lock_mountpoint(mountpoint, || {
            output.warn(&format!("waiting for another thawfs that is busy with {shown}"));
        })
        .map_err(failed)?;
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

/// The mountpoint without symlinks. A dead mount cannot be looked at, only its parent.
fn resolve(path: &Path) -> Result<PathBuf, Failure> {
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
