//! Making what is not there yet. A name that is taken is `EEXIST`, whatever has it.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;

use rustix::fd::AsFd;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{Result, call};
use crate::types::FileKind;

fn label(name: &OsStr) -> impl FnOnce() -> String {
    || name.to_string_lossy().into_owned()
}

/// Makes a regular file, open with `flags`.
pub(crate) fn make_file(dir: impl AsFd, name: &OsStr, flags: OFlags, mode: u32) -> Result<OwnedFd> {
    let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(mode);
    call("open", label(name), || rustix::fs::openat(&dir, name, flags, mode))
}

/// Makes a directory.
pub(crate) fn make_directory(dir: impl AsFd, name: &OsStr, mode: u32) -> Result<()> {
    let mode = Mode::from_raw_mode(mode);
    call("mkdir", label(name), || rustix::fs::mkdirat(&dir, name, mode))
}

/// Makes a symbolic link to `target`.
pub(crate) fn make_symlink(dir: impl AsFd, name: &OsStr, target: &OsStr) -> Result<()> {
    call("symlink", label(name), || rustix::fs::symlinkat(target, &dir, name))
}

/// Makes a device, pipe or socket. `rdev` is in `makedev` form.
pub(crate) fn make_special(
    dir: impl AsFd,
    name: &OsStr,
    kind: FileKind,
    mode: u32,
    rdev: u64,
) -> Result<()> {
    let kind = FileType::from_raw_mode(kind.mode_bits());
    let mode = Mode::from_raw_mode(mode);
    call("mknod", label(name), || rustix::fs::mknodat(&dir, name, kind, mode, rdev))
}

/// Makes a file as long as `size`, with holes where nothing was.
pub(crate) fn set_size(file: impl AsFd, size: u64) -> Result<()> {
    call("ftruncate", || "a file".to_owned(), || rustix::fs::ftruncate(&file, size))
}

/// Writes all of `data` to `file`, from byte `at` on.
pub(crate) fn write_all(file: impl AsFd, mut data: &[u8], mut at: u64) -> Result<()> {
    while !data.is_empty() {
        let written = call(
            "pwrite",
            || "a file".to_owned(),
            || {
                match rustix::io::pwrite(&file, data, at)? {
                    // What no file system has to say of a write that is not empty.
                    0 => Err(Errno::IO),
                    written => Ok(written),
                }
            },
        )?;
        data = data.get(written..).unwrap_or_default();
        at += written as u64;
    }
    Ok(())
}
