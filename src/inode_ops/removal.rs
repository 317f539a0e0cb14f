//! Removing a directory with all in it, and nothing else.
//!
//! What lies below may be as deep as there is room on the disk, be closed to its own owner, and have other
//! file systems mounted in it, whose files are somebody else's: they are not entered.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::path::Arg;

/// Removes what `name` is in directory `above`, a directory with all in it.
///
/// # Errors
/// `ResourceBusy` or `CrossesDevices` where something is mounted below; what is beside it may be gone by
/// then. Else what the kernel says.
pub(crate) fn remove_tree(above: impl AsFd, name: impl Arg) -> io::Result<()> {
    let name = name.into_c_str()?.into_owned();
    if unlink(&above, &name)? {
        return Ok(());
    }
    // The way down: a descriptor for each directory on it would be too many.
    let mut way: Vec<(CString, Id)> = Vec::new();
    let mut here = enter(&above, &name)?;
    loop {
        if let Some(below) = empty(&here)? {
            let next = enter(&here, &below)?;
            way.push((below, id(&here)?));
            here = next;
        } else if let Some((done, came_from)) = way.pop() {
            here = open(&here, c"..")?;
            if id(&here)? != came_from {
                let message = "it was moved while it was being removed";
                return Err(io::Error::new(io::ErrorKind::StaleNetworkFileHandle, message));
            }
            rmdir(&here, &done)?;
        } else {
            return Ok(rmdir(&above, &name)?);
        }
    }
}

/// The same of a path; nothing is to be done where there is nothing.
///
/// # Errors
/// As [`remove_tree`].
pub(crate) fn remove_tree_at(path: &Path) -> io::Result<()> {
    let removed = match (path.parent(), path.file_name()) {
        (Some(above), Some(name)) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
            let above = rustix::fs::openat(CWD, above, flags, Mode::empty());
            above.map_err(io::Error::from).and_then(|above| remove_tree(above, name))
        }
        _ => Err(io::ErrorKind::InvalidInput.into()),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Device and inode.
type Id = (u64, u64);

fn id(directory: &OwnedFd) -> io::Result<Id> {
    let stat = rustix::fs::fstat(directory)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Removes from a directory what can be removed at once; gives the first directory in it that is not empty.
fn empty(directory: &OwnedFd) -> io::Result<Option<CString>> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") || unlink(directory, name)? {
            continue;
        }
        match rmdir(directory, name) {
            Ok(()) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(Some(name.to_owned())),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(None)
}

/// Removes a file; `false` where it is a directory.
fn unlink(directory: &impl AsFd, name: &CStr) -> io::Result<bool> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::ISDIR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn rmdir(directory: &impl AsFd, name: &CStr) -> rustix::io::Result<()> {
    rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR)
}

/// Opens a directory to be emptied, which may be closed to its owner.
fn enter(above: &impl AsFd, name: &CStr) -> io::Result<OwnedFd> {
    let rights = Access::WRITE_OK | Access::EXEC_OK;
    match open(above, name) {
        Ok(directory)
            if rustix::fs::accessat(&directory, c".", rights, AtFlags::EACCESS).is_ok() =>
        {
            return Ok(directory);
        }
        Ok(_) | Err(Errno::ACCESS) => {}
        Err(errno) => return Err(errno.into()),
    }
    rustix::fs::chmodat(above, name, Mode::RWXU, AtFlags::empty())?;
    Ok(open(above, name)?)
}

/// Opens a directory, unless something is mounted there.
fn open(above: &impl AsFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(above, name, flags, Mode::empty(), ResolveFlags::NO_XDEV)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn what_is_mounted_below_is_not_emptied() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("what_is_mounted_below_is_not_emptied skips: it needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (tree, precious) = (dir.path().join("tree"), dir.path().join("precious"));
        let inner = tree.join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::create_dir(&precious).unwrap();
        std::fs::write(precious.join("file"), "mine").unwrap();
        rustix::mount::mount_bind(&precious, &inner).unwrap();
        let error = remove_tree_at(&tree).unwrap_err();
        rustix::mount::unmount(&inner, rustix::mount::UnmountFlags::empty()).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy, "{error}");
        assert_eq!(std::fs::read(precious.join("file")).unwrap(), b"mine");
        remove_tree_at(&tree).unwrap();
        assert!(!tree.exists());
    }

    #[test]
    fn all_of_it_goes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b/c")).unwrap();
        std::fs::create_dir(tree.join("a/empty")).unwrap();
        for n in 0..2000 {
            std::fs::create_dir_all(tree.join(format!("many/{n}/x"))).unwrap();
        }
        std::fs::write(dir.path().join("beside"), "stays").unwrap();
        std::fs::create_dir(dir.path().join("there")).unwrap();
        std::fs::write(dir.path().join("there/file"), "stays").unwrap();
        symlink("../there", tree.join("link")).unwrap();
        std::fs::hard_link(dir.path().join("beside"), tree.join("a/hard")).unwrap();
        for (mode, closed) in [(0, "a/b/c"), (0o500, "a/b"), (0o200, "a"), (0, "many/7")] {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(tree.join(closed), mode).unwrap();
        }
        remove_tree_at(&tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(std::fs::read(dir.path().join("beside")).unwrap(), b"stays");
        assert_eq!(std::fs::read(dir.path().join("there/file")).unwrap(), b"stays");
        // Of nothing, nothing is left; and a file is removed as well.
        remove_tree_at(&tree).unwrap();
        remove_tree_at(&dir.path().join("no/such")).unwrap();
        remove_tree_at(&dir.path().join("beside")).unwrap();
        assert!(!dir.path().join("beside").exists());
        assert!(remove_tree_at(Path::new("/")).is_err());
    }

    #[test]
    fn a_tree_deeper_than_paths_and_descriptors_reach_goes_too() {
        let dir = tempfile::tempdir().unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let mut here = rustix::fs::open(dir.path(), flags, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&here, c"deep", Mode::RWXU).unwrap();
            here = rustix::fs::openat(&here, c"deep", flags, Mode::empty()).unwrap();
        }
        remove_tree_at(&dir.path().join("deep")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
