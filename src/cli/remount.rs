//! `mount -o remount,… DIR`: what the kernel changes, and what only another mount can have.

use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

use super::options::MountOption;
use super::output::say;
use crate::backup::SourceRequest;
use crate::failure::{Code, Failure};
use crate::fuse;
use crate::inode_ops::{Directory, Location};
use crate::server::MountRequest;
use crate::server::mounts::{MountInfo, read_mount_at};
use crate::server::state::StateDir;

/// The kernel holds `ro` and its like, the server need not know; what it does know, as it keeps it itself,
/// stays, and whoever names it otherwise is refused. To the kernel a flag that is not named is one to take
/// away; to whoever remounts, it is none of the matter.
pub(super) fn remount(
    mountpoint: &Path,
    options: &[MountOption],
    sloppy: bool,
) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(Code::Fuse, format!("cannot remount {}: {error}", mountpoint.display()))
    };
    options.iter().try_for_each(MountOption::check_kept)?;
    let directory = Directory::open(mountpoint).map_err(failed)?;
    let mounted = read_mount_at(directory.path()).map_err(failed)?.filter(MountInfo::is_ours);
    let held = mounted.as_ref().and_then(options_of);
    // What the kernel says of a mount, mount(8) hands on.
    let is_shown = |option: &MountOption| {
        let shown = option.shown();
        mounted.as_ref().is_some_and(|mounted| mounted.has_option(&shown))
    };
    let named = options.iter().filter(|option| !option.is("remount") && !is_shown(option));
    check_same(mountpoint, held.as_ref(), &named.collect::<Vec<_>>(), sloppy)?;

    let now = rustix::fs::fstatvfs(&directory).map_err(|errno| failed(errno.into()))?.f_flag;
    // The numbers that statvfs(2) says are those that mount(2) takes.
    let now = MountFlags::from_bits_truncate(u32::try_from(now.bits()).unwrap_or_default());
    let mut asked = fuse::MountFlags::of(now);
    let mut read_only = now.contains(MountFlags::RDONLY);
    for option in options {
        match option.name() {
            "ro" => read_only = true,
            "rw" => read_only = false,
            _ => {
                // What else is named, the mount has already.
                option.apply_flag(&mut asked);
            }
        }
    }
    let mut flags = asked.bits();
    flags.set(MountFlags::RDONLY, read_only);
    // Without an upper, there is nowhere to write to.
    let keeps_read_only = held.as_ref().is_some_and(|held| held.read_only);
    for (flag, on, off, keeps) in [
        (MountFlags::RDONLY, "ro", "rw", keeps_read_only),
        (MountFlags::NOATIME, "noatime", "atime", true),
        (MountFlags::NODIRATIME, "nodiratime", "diratime", true),
    ] {
        if keeps && flags.contains(flag) != now.contains(flag) {
            return Err(refused(if flags.contains(flag) { on } else { off }, mountpoint));
        }
    }
    if !flags.contains(MountFlags::NOATIME) {
        // Here alone, nothing means what was.
        flags.insert(MountFlags::RELATIME);
    }
    rustix::mount::mount_remount(directory.proc_path(), flags, c"")
        .map_err(|errno| failed(errno.into()))
}

/// What `mounted` was asked for with, as far as it is on record here.
fn options_of(mounted: &MountInfo) -> Option<MountRequest> {
    let recorded = StateDir::locate().read_mount_of(mounted);
    recorded
        .unwrap_or_else(|error| {
            tracing::debug!("the record of {}: {error}", mounted.mountpoint.display());
            None
        })?
        .0
        .read_options()
}

/// Refuses options that nobody knows, and those that a remount cannot change and the mount has otherwise.
fn check_same(
    mountpoint: &Path,
    held: Option<&MountRequest>,
    options: &[&MountOption],
    sloppy: bool,
) -> Result<(), Failure> {
    let default = MountRequest::new(SourceRequest::new(""), mountpoint.to_owned());
    let mut asked = held.unwrap_or(&default).clone();
    let before = fixed(&asked);
    let changes = |asked: &MountRequest| fixed(asked) != before;
    let mut changing = None;
    for option in options {
        let mut alone = held.unwrap_or(&default).clone();
        match option.apply(&mut asked).and_then(|()| option.apply(&mut alone)) {
            Err(failure) if sloppy => tracing::debug!("{failure}"),
            applied => applied?,
        }
        if changes(&alone) {
            changing = Some(option);
        }
    }
    // Of options that are named twice, the last counts.
    let Some(option) = changing.filter(|_| changes(&asked)) else { return Ok(()) };
    if held.is_some() {
        return Err(refused(option.name(), mountpoint));
    }
    say(&format!(
        "thawfs: warning: a remount does not change {}, and what the mount has is not on record",
        option.name()
    ));
    Ok(())
}

/// What of `request` a remount cannot change, each thing in one form.
fn fixed(request: &MountRequest) -> MountRequest {
    let mut fixed = MountRequest { read_only: false, ..request.clone() };
    // The others are flags that the kernel has for itself.
    fixed.flags = fuse::MountFlags::of(fixed.flags.bits() & MountFlags::DIRSYNC);
    fixed.source.access.allow_redirects_to.sort();
    fixed.source.access.allow_redirects_to.dedup();
    let real = |path: PathBuf| Location::find(&path).map_or(path, |found| found.path());
    fixed.upper = fixed.upper.map(real);
    fixed.workdir = fixed.workdir.map(real);
    fixed
}

fn refused(name: &str, mountpoint: &Path) -> Failure {
    let message = format!("{name} cannot be set while {} is mounted", mountpoint.display());
    Failure::new(Code::Usage, message).hint("unmount it, and mount it with that")
}
