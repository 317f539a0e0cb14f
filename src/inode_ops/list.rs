//! What is in a directory that is open.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fd::AsFd;
use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{Error, Result, call, proc_path};

/// Opens the directory `name` in `dir`, to read it and to reach what is in it.
pub(crate) fn open_directory(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let label = || name.to_string_lossy().into_owned();
    call("open", label, || rustix::fs::openat(&dir, name, flags, Mode::empty()))
}

/// The names in a directory with their inode numbers and types, except `.` and `..`.
pub(crate) fn list(dir: &OwnedFd) -> Result<Vec<(OsString, u64, FileType)>> {
    list_with(dir, OFlags::empty())
}

/// The same, with more flags to open the directory with.
pub(crate) fn list_with(dir: &OwnedFd, flags: OFlags) -> Result<Vec<(OsString, u64, FileType)>> {
    // Opened anew, as the descriptor at hand may be O_PATH.
    let opened =
        open_with(flags, |flags| match rustix::fs::openat(dir, c".", flags, Mode::empty()) {
            // To be read it need not be searched, which finding its `.` takes.
            Err(Errno::ACCESS) => rustix::fs::open(proc_path(dir), flags, Mode::empty()),
            opened => opened,
        })?;
    read_all(opened)
}

/// The same of the directory `name` in `dir`.
pub(crate) fn list_at(
    dir: &OwnedFd,
    name: &OsStr,
    flags: OFlags,
) -> Result<Vec<(OsString, u64, FileType)>> {
    let flags = OFlags::NOFOLLOW | flags;
    read_all(open_with(flags, |flags| rustix::fs::openat(dir, name, flags, Mode::empty()))?)
}

fn open_with(
    flags: OFlags,
    open: impl Fn(OFlags) -> rustix::io::Result<OwnedFd>,
) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | flags;
    call(
        "open",
        || "a directory".to_owned(),
        || match open(flags) {
            // O_NOATIME is for the owner and root.
            Err(Errno::PERM) => open(flags - OFlags::NOATIME),
            opened => opened,
        },
    )
}

fn read_all(opened: OwnedFd) -> Result<Vec<(OsString, u64, FileType)>> {
    let mut names = Vec::new();
    let fail = |errno| Error { call: "getdents", what: "a directory".into(), errno };
    for entry in Dir::new(opened).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push((name.to_owned(), entry.ino(), entry.file_type()));
        }
    }
    Ok(names)
}
