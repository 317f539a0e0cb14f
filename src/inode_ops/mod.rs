//! Operations on inodes by descriptor: finding directories, making files, giving them what they are to have,
//! and removing trees.
//!
//! No call here takes a path that somebody else could lead astray. An inode is reached by its name in an open
//! directory, never through a symbolic link, or by a descriptor of its own: what was found is what is used,
//! whatever has come to its path since. In a mount it matters twice, as a link may lead into the mount itself,
//! and a server that followed it would wait for itself.
//!
//! | file | idea |
//! | --- | --- |
//! | `address` | where an inode is reached, and the calls on it there |
//! | `make` | new files, directories, links and special files; bytes into a file |
//! | `attributes` | owner, extended attributes, permissions and times of a new inode, in the one order that holds |
//! | `directory` | directories that users name, found once |
//! | `list` | what is in a directory |
//! | `removal` | removing a tree whole, and nothing else |
//!
//! **Interrupted calls** (`EINTR`, which file systems in user space and on the network give) are made again.
//! **Refused calls**: what an ordinary user may not give an inode (`EPERM`) is no failure where `Privilege`
//! says that one is at work. Who asked is told what was refused, and knows whether to note it, count it or do
//! without.

mod address;
mod attributes;
mod copy;
mod directory;
mod list;
mod make;
mod removal;

use std::path::PathBuf;

use rustix::fd::{AsFd, AsRawFd};
use rustix::io::Errno;

pub(crate) use address::{Address, stat_at, stat_fd, times_of};
pub(crate) use attributes::{Privilege, begin, give_owner};
pub(crate) use copy::copy_data;
pub(crate) use directory::{Directory, DirectoryId, Location};
pub(crate) use list::{list, list_at, list_with, open_directory};
pub(crate) use make::{make_directory, make_file, make_special, make_symlink, set_size, write_all};
pub(crate) use removal::{remove_tree, remove_tree_at};

/// A system call that failed.
#[derive(Debug, thiserror::Error)]
#[error("{call} of {what}: {errno}")]
pub(crate) struct Error {
    /// The call.
    pub(crate) call: &'static str,
    /// What it was made on: a name relative to its directory, or a description.
    pub(crate) what: Box<str>,
    /// What the kernel answered.
    pub(crate) errno: Errno,
}

/// The room's result.
type Result<T, E = Error> = std::result::Result<T, E>;

/// Makes `call` on `what`, again if it is interrupted.
fn call<T>(
    name: &'static str,
    what: impl FnOnce() -> String,
    call: impl FnMut() -> Result<T, Errno>,
) -> Result<T> {
    rustix::io::retry_on_intr(call).map_err(|errno| Error {
        call: name,
        what: what().into(),
        errno,
    })
}

/// The path by which the kernel reaches what `fd` has open, for calls that take no descriptor. Not a link that
/// could be followed further: the kernel jumps straight to the inode, be it a symbolic link itself. Of this
/// process alone, and for as long as `fd` is open.
pub(crate) fn proc_path(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}
