//! Servers that were killed: what they have on record, their mounts and their uppers.

use std::io;
use std::path::Path;

use super::checkpoints::Held;
use super::group;
use super::layers;
use super::mounted_from::mounted_from;
use super::mounts::{MountInfo, read_mount_at};
use super::state::{HostId, Lock, MountDir, Record, StateDir};
use crate::inode_ops::remove_tree_at;

/// Removes what servers of `mountpoint` have on record that were killed and whose mount is gone, and
/// directories of servers that did not get as far as to write a record. Gives the number of records.
pub(super) fn clear_records(state: &StateDir, mountpoint: &Path) -> io::Result<usize> {
    let mut cleared = 0;
    for dir in state.mount_dirs()? {
        let record = dir.read_record();
        if record.as_ref().is_some_and(|record| {
            record.mountpoint != mountpoint
                || is_elsewhere(record)
                || dead_mount(state, record).is_some()
        }) {
            continue;
        }
        if remove_dead(&dir)? && record.is_some() {
            cleared += 1;
        }
    }
    Ok(cleared)
}

/// Whether a record is of another mount namespace of this machine, in which its mount may still be.
fn is_elsewhere(record: &Record) -> bool {
    let (Some(place), Some(here)) = (&record.place, HostId::here()) else { return false };
    place.boot == here.boot && place.mounts != here.mounts
}

/// The mount that a server which was killed has left, if it is still there.
pub(crate) fn dead_mount(state: &StateDir, record: &Record) -> Option<MountInfo> {
    if !record.is_here() {
        return None;
    }
    let mount = read_mount_at(&record.mountpoint).ok()??;
    if !mount.is_ours() || !record.is_of(&mount) {
        return None;
    }
    // The kernel gives the number of a mount that is gone to another one.
    let (served, _) = state.read_mount_of(&mount).ok()??;
    (!served.is_alive()).then_some(mount)
}

/// The dead mount that the record in `path` is of.
pub(super) fn dead_mount_at(state: &StateDir, path: &Path) -> Option<MountInfo> {
    let dirs = state.mount_dirs().ok()?;
    dead_mount(state, &dirs.iter().find(|dir| dir.path() == path)?.read_record()?)
}

/// Removes the record of a server that is no more, and its control groups. `false` where it lives.
pub(super) fn remove_dead(dir: &MountDir) -> io::Result<bool> {
    let lock = match dir.claim() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        claimed => claimed?,
    };
    let Some(_lock) = lock else { return Ok(false) };
    for group in dir.read_record().map(|record| record.groups).unwrap_or_default() {
        group::remove_empty(&group);
    }
    dir.remove()?;
    Ok(true)
}

/// Removes the upper that a server which was killed had made, unless somebody has it, or a checkpoint in it
/// has a name.
pub(super) fn remove_upper(state: &StateDir, mount: &MountDir) -> io::Result<bool> {
    let uppers = state.uppers()?;
    match uppers.into_iter().find(|(_, of)| of.path() == mount.path()) {
        Some((base, _)) => {
            let (upper, held) = (base.join("upper"), Held::at(&base.join("work")));
            if held.keeps() {
                state.keep_named(&upper);
                if let Some(said) = held.in_words(&upper) {
                    tracing::warn!("{said}");
                }
                return Ok(false);
            }
            if !held.forks.is_empty() {
                state.leave_to_forks(&base);
            }
            remove_locked_upper(&base)
        }
        None => Ok(false),
    }
}

/// Removes an upper and its work directory that nobody has and nothing lies on. With a fork goes what it was forked from, if
/// that is there for it alone.
pub(super) fn remove_locked_upper(base: &Path) -> io::Result<bool> {
    if base.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(false);
    }
    let Some(_locks) = lock_upper(base)? else { return Ok(false) };
    if mounted_from(base)?.is_some() || !layers::read_forks(&base.join("work"), true)?.is_empty() {
        return Ok(false);
    }
    let left = lies_on(base);
    remove_tree_at(base)?;
    left.leave();
    Ok(true)
}

/// Removes the upper that was made for a mount which ends, but for what forks of it lie on.
pub(super) fn remove_own_upper(state: &StateDir, mount: &MountDir) -> io::Result<()> {
    let base = state.upper_base(mount);
    if !layers::read_forks(&base.join("work"), true)?.is_empty() {
        state.leave_to_forks(&base);
        return Ok(());
    }
    let left = lies_on(&base);
    remove_tree_at(&base)?;
    left.leave();
    Ok(())
}

/// What the upper in `base` lies on that is another mount's.
fn lies_on(base: &Path) -> layers::LiesOn {
    // Damaged, it is found to be gone by who it lay on.
    layers::read(&base.join("work")).ok().flatten().map(|it| it.lies_on()).unwrap_or_default()
}

/// Locks an upper as a mount would. What of it is not there cannot be in use.
pub(super) fn lock_upper(base: &Path) -> io::Result<Option<Vec<Lock>>> {
    let mut locks = Vec::new();
    for name in ["upper", "work"] {
        match Lock::on_directory(&base.join(name)) {
            Ok(Some(lock)) => locks.push(lock),
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(locks))
}

/// Whether a lock could be taken. What is gone meanwhile is nobody's to take.
pub(super) fn is_free<T>(lock: io::Result<Option<T>>) -> io::Result<bool> {
    match lock {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        lock => Ok(lock?.is_some()),
    }
}
