//! Attaching a FUSE device to a directory and taking it off again: mount(2) where we may, the
//! set-user-id helper fusermount3 where we may not.
//!
//! fuser would do both, but it keeps the subtype from mount(2), and a failure of either reaches the
//! user as a line of internals.

use std::ffi::{CString, OsString};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::fd::OwnedFd;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use super::options::MountOptions;
use crate::inode_ops::{Directory, Location};

/// The part of the file system's type behind `fuse.`.
const SUBTYPE: &str = "thawfs";

const FUSERMOUNT: &str = "fusermount3";

/// Mounts a new FUSE device at `mountpoint` and returns it.
pub(super) fn mount(mountpoint: &Directory, options: &MountOptions) -> io::Result<OwnedFd> {
    match mount_directly(mountpoint, options) {
        Err(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS)
            if !rustix::process::geteuid().is_root() =>
        {
            mount_through_helper(mountpoint, options)
        }
        done => Ok(done?),
    }
}

fn mount_directly(mountpoint: &Directory, options: &MountOptions) -> rustix::io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).map_err(|_| rustix::io::Errno::INVAL)?;
    let kind = format!("fuse.{SUBTYPE}");
    let mut flags = options.flags.bits();
    flags.set(MountFlags::RDONLY, options.read_only);
    rustix::mount::mount(&*options.fsname, mountpoint.proc_path(), kind, flags, &*data)?;
    Ok(device)
}

/// The helper is told a socket's number in the environment and sends the device through it. It starts in
/// the mountpoint, because it takes no path that leads through `/proc`.
fn mount_through_helper(mountpoint: &Directory, options: &MountOptions) -> io::Result<OwnedFd> {
    let ours_theirs = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        // Inherited by the helper, which is why neither end is close-on-exec.
        SocketFlags::empty(),
        None,
    )?;
    let (ours, theirs) = ours_theirs;
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC)?;
    let helper = Command::new(FUSERMOUNT)
        .arg("-o")
        .arg(helper_options(options))
        .arg("--")
        .arg(".")
        .current_dir(mountpoint.proc_path())
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    drop(theirs);
    let device = receive_descriptor(&ours);
    let output = helper.wait_with_output()?;
    match device? {
        Some(device) => Ok(device),
        None => Err(helper_failed(&output)),
    }
}

fn helper_options(options: &MountOptions) -> OsString {
    let name = options.fsname.replace('\\', "\\\\").replace(',', "\\,");
    let mut text = format!("fsname={name},subtype={SUBTYPE},default_permissions");
    if options.allow_other {
        text.push_str(",allow_other");
    }
    if options.read_only {
        text.push_str(",ro");
    }
    // The others are nothing that it takes, or what it does anyway.
    for (option, flag) in [
        (",noexec", MountFlags::NOEXEC),
        (",noatime", MountFlags::NOATIME),
        (",sync", MountFlags::SYNCHRONOUS),
    ] {
        if options.flags.has(flag) {
            text.push_str(option);
        }
    }
    text.into()
}

/// The descriptor that comes with the next message; `None` where the other end closed instead.
fn receive_descriptor(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8];
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut byte)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    Ok(ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

fn helper_failed(output: &Output) -> io::Error {
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches("fusermount3: ").replace('\n', "; ");
    let kind = if said.contains("user_allow_other") || said.contains("ermi") {
        io::ErrorKind::PermissionDenied
    } else if said.contains("busy") {
        io::ErrorKind::ResourceBusy
    } else {
        io::ErrorKind::Other
    };
    io::Error::new(kind, said)
}

/// Lazily detaches whatever is mounted at `mountpoint`.
///
/// # Errors
/// When neither umount(2) nor fusermount3 does it.
pub fn detach(mountpoint: &Path) -> io::Result<()> {
    unmount_with(mountpoint, UnmountFlags::DETACH, &["-u", "-z"])
}

/// Unmounts `mountpoint`, as umount(8) would.
///
/// # Errors
/// `ResourceBusy` while something uses it; else when neither umount(2) nor fusermount3 does it.
pub fn unmount(mountpoint: &Path) -> io::Result<()> {
    unmount_with(mountpoint, UnmountFlags::empty(), &["-u"])
}

/// Unmounts what is on `mountpoint`, a path without symlinks, by its name in the directory above: were
/// it opened itself, it would be in use.
fn unmount_with(mountpoint: &Path, flags: UnmountFlags, arguments: &[&str]) -> io::Result<()> {
    let location = Location::find(mountpoint)?;
    if location.path() != mountpoint {
        let message = "something else was put in its place meanwhile";
        return Err(io::Error::new(io::ErrorKind::StaleNetworkFileHandle, message));
    }
    let through = location.proc_path();
    match rustix::mount::unmount(&through, flags | UnmountFlags::NOFOLLOW) {
        Err(rustix::io::Errno::PERM) => unmount_through_helper(mountpoint, arguments),
        done => done.map_err(Into::into),
    }
}

fn unmount_through_helper(mountpoint: &Path, arguments: &[&str]) -> io::Result<()> {
    let output = Command::new(FUSERMOUNT)
        .args(arguments)
        .arg("--")
        .arg(mountpoint)
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() { Ok(()) } else { Err(helper_failed(&output)) }
}
