//! What is done to files: `MakeDir`, `Move`, `Remove`.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode};
use rustix::process::{Gid, Uid};

use super::connect::{Code, Error};
use super::entries::stat;
use super::messages::EntryInfo;
use super::places::{Tree, failed};
use super::users::{Owners, User};
use crate::inode_ops::remove_tree;

/// Makes a directory, and those above it that are missing, for `user`.
///
/// # Errors
/// `already_exists`, or `invalid_argument` where something else is there.
pub(super) fn make_directory(tree: &Tree, path: &Path, user: &User) -> Result<EntryInfo, Error> {
    if !make_missing(tree, path, user)? {
        let message = format!("directory {} already exists", path.display());
        return Err(Error::new(Code::AlreadyExists, message));
    }
    stat(tree, path, &mut Owners::default())
}

/// Makes what is missing of the directories on the way to `path`, itself included; says whether it was.
fn make_missing(tree: &Tree, path: &Path, user: &User) -> Result<bool, Error> {
    let mut missing = Vec::new();
    let mut here = path;
    loop {
        match tree.directory(here) {
            Err(error) if error.code == Code::NotFound => missing.push(here),
            found => {
                found?;
                break;
            }
        }
        here = here.parent().unwrap_or(Path::new("/"));
    }
    let is_missing = !missing.is_empty();
    for path in missing.into_iter().rev() {
        let place = tree.place(path)?;
        match make(&place.above, &place.name, user) {
            // Somebody else has made it meanwhile.
            Err(rustix::io::Errno::EXIST) => tree.directory(path).map(drop)?,
            made => made.map_err(|errno| failed("make", path, &errno.into()))?,
        }
    }
    Ok(is_missing)
}

fn make(above: &OwnedFd, name: &OsStr, user: &User) -> rustix::io::Result<()> {
    rustix::fs::mkdirat(above, name, Mode::from_raw_mode(0o755))?;
    if !rustix::process::geteuid().is_root() {
        // It is ours, and can be nobody else's.
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::fs::chownat(above, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

/// Gives what is at `from` the name `to`; what was there is replaced, and directories above it are made.
///
/// # Errors
/// `not_found`, and what the kernel refuses.
pub(super) fn rename(tree: &Tree, from: &Path, to: &Path, user: &User) -> Result<EntryInfo, Error> {
    let old = tree.place(from)?;
    if old.is_root() || to.parent().is_none() {
        return Err(Error::new(Code::InvalidArgument, "the root is not to be moved"));
    }
    let there = rustix::fs::statat(&old.above, &old.name, AtFlags::SYMLINK_NOFOLLOW);
    there.map_err(|errno| failed("move", from, &errno.into()))?;
    make_missing(tree, to.parent().unwrap_or(Path::new("/")), user)?;
    let new = tree.place(to)?;
    let renamed = rustix::fs::renameat(&old.above, &old.name, &new.above, &new.name);
    renamed.map_err(|errno| failed("move", from, &errno.into()))?;
    stat(tree, to, &mut Owners::default())
}

/// Removes what is at `path`, a directory with all in it. Nothing is to be done where there is nothing.
///
/// # Errors
/// What the kernel refuses.
pub(super) fn remove(tree: &Tree, path: &Path) -> Result<(), Error> {
    let place = match tree.place(path) {
        Err(error) if error.code == Code::NotFound => return Ok(()),
        place => place?,
    };
    if place.is_root() {
        return Err(Error::new(Code::InvalidArgument, "the root is not to be removed"));
    }
    match remove_tree(&place.above, &place.name) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|error| failed("remove", path, &error)),
    }
}
