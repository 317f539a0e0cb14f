//! Paths of requests, and what they lead to within the root.
//!
//! A path is taken as the kernel takes it, and the descriptor that it led to is asked where it truly is. All that is
//! done to it after that goes through the descriptor, so nobody can lead it out of the root meanwhile. None is held
//! between two requests, as a mount could not be unmounted then.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::connect::{Code, Error};
use super::users::User;
use crate::inode_ops::proc_path;

/// Where paths lead: the tree that is served.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    /// Without symlinks.
    root: PathBuf,
    /// Whether the root is home to everybody.
    is_home: bool,
}

/// An entry of a directory, by its own name: a symlink is not followed.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The directory that it is in.
    pub(super) above: Arc<OwnedFd>,
    /// What it is called there; `.` for the root.
    pub(super) name: OsString,
}

impl Tree {
    pub(super) fn new(root: PathBuf, is_home: bool) -> Self {
        Self { root, is_home }
    }

    /// Whether all of the machine is served.
    fn is_whole(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Whether all of `directory` is served.
    pub(super) fn holds(&self, directory: &Path) -> bool {
        directory.starts_with(&self.root)
    }

    /// What a path of a request means: absolute, without `.` and `..`, which go by names, as everybody's who calls.
    ///
    /// # Errors
    /// `invalid_argument` where it is outside of the root, or no path.
    pub(super) fn absolute(&self, path: &str, user: &User) -> Result<PathBuf, Error> {
        if path.contains('\0') {
            return Err(Error::new(Code::InvalidArgument, "a path with a NUL in it"));
        }
        let home = match self.is_home || !user.home.starts_with(&self.root) {
            true => &self.root,
            false => &user.home,
        };
        let path = match path.strip_prefix('~') {
            Some("") => home.clone(),
            Some(below) if below.starts_with('/') => home.join(below.trim_start_matches('/')),
            Some(_) => {
                let message = format!("{path}: another user's home is not to be named like this");
                return Err(Error::new(Code::InvalidArgument, message));
            }
            None => home.join(path),
        };
        let mut clean = PathBuf::from("/");
        for component in path.components() {
            match component {
                Component::ParentDir => {
                    clean.pop();
                }
                Component::Normal(name) => clean.push(name),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        match clean.starts_with(&self.root) {
            true => Ok(clean),
            false => Err(outside(&clean)),
        }
    }

    /// Opens the directory at `path`, symlinks followed, and says where it truly is.
    ///
    /// # Errors
    /// `not_found`, `invalid_argument` for what is no directory or outside of the root.
    pub(super) fn directory(&self, path: &Path) -> Result<(OwnedFd, PathBuf), Error> {
        let found = self.find_directory(path).map_err(|error| failed("open", path, &error))?;
        found.ok_or_else(|| outside(path))
    }

    /// The same; `None` if it is outside of the root.
    fn find_directory(&self, path: &Path) -> io::Result<Option<(OwnedFd, PathBuf)>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty())?;
        let real = std::fs::read_link(proc_path(&opened))?;
        let is_inside = self.is_whole() || real.starts_with(&self.root);
        Ok(is_inside.then_some((opened, real)))
    }

    /// The entry at `path`, whether it is there or not; its directory must be.
    ///
    /// # Errors
    /// As [`Tree::directory`].
    pub(super) fn place(&self, path: &Path) -> Result<Place, Error> {
        let (above, name) = self.split(path);
        let (above, _) = self.directory(above)?;
        Ok(Place { above: Arc::new(above), name: name.to_owned() })
    }

    /// The same; `None` if its directory is outside of the root.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn find_place(&self, path: &Path) -> io::Result<Option<Place>> {
        let (above, name) = self.split(path);
        let found = self.find_directory(above)?;
        Ok(found.map(|(above, _)| Place { above: Arc::new(above), name: name.to_owned() }))
    }

    /// The directory that `path` is in, and its name there.
    fn split<'a>(&self, path: &'a Path) -> (&'a Path, &'a OsStr) {
        match (path.parent(), path.file_name()) {
            (Some(above), Some(name)) if path != self.root => (above, name),
            _ => (path, ".".as_ref()),
        }
    }
}

impl Place {
    /// Whether it is the root, which is nobody's to move or remove.
    pub(super) fn is_root(&self) -> bool {
        self.name == "."
    }
}

fn outside(path: &Path) -> Error {
    let message = format!("{} is outside of what is served", path.display());
    Error::new(Code::InvalidArgument, message)
}

/// Whether a call failed because of what was asked for: such as a directory that is to be moved into itself.
fn is_of_the_paths(error: &io::Error) -> bool {
    use libc::{EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOTEMPTY};
    matches!(error.raw_os_error(), Some(EINVAL | EISDIR | ELOOP | ENAMETOOLONG | ENOTEMPTY))
}

/// A failed system call, as clients know it.
pub(super) fn failed(doing: &str, path: &Path, error: &io::Error) -> Error {
    use io::ErrorKind as Kind;
    let path = path.display();
    let (code, message) = match error.kind() {
        Kind::NotFound => (Code::NotFound, format!("path {path} not found")),
        Kind::NotADirectory => (Code::InvalidArgument, format!("path {path} is not a directory")),
        Kind::AlreadyExists => (Code::AlreadyExists, format!("path {path} already exists")),
        _ if is_of_the_paths(error) => (Code::InvalidArgument, format!("path {path}: {error}")),
        _ => (Code::Internal, format!("cannot {doing} {path}: {error}")),
    };
    Error::new(code, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_or_from_home_and_stay_below_the_root() {
        let user = User { uid: 0, gid: 0, home: "/home/a".into() };
        let whole = Tree::new("/".into(), false);
        let home = Tree::new("/home".into(), false);
        let other = Tree::new("/srv/x".into(), false);
        let mount = Tree::new("/home".into(), true);
        for (tree, path, expected) in [
            (&whole, "", Some("/home/a")),
            (&whole, "~", Some("/home/a")),
            (&whole, "~/b//c/", Some("/home/a/b/c")),
            (&whole, "b/./c", Some("/home/a/b/c")),
            (&whole, "/", Some("/")),
            (&whole, "/../../x", Some("/x")),
            (&whole, "../../../../etc", Some("/etc")),
            (&whole, "~root/x", None),
            (&whole, "a\0b", None),
            (&home, "..", Some("/home")),
            (&home, "../..", None),
            (&home, "/homer", None),
            (&home, "/etc/../home/x", Some("/home/x")),
            (&other, "~", Some("/srv/x")),
            (&other, "y", Some("/srv/x/y")),
            (&other, "..", None),
            (&mount, "~", Some("/home")),
            (&mount, "x", Some("/home/x")),
        ] {
            let found = tree.absolute(path, &user).ok();
            assert_eq!(found.as_deref(), expected.map(Path::new), "{path:?} in {tree:?}");
        }
    }

    #[test]
    fn a_link_leads_no_further_than_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let (root, beside) = (base.join("root"), base.join("root-beside"));
        for made in [root.join("in"), beside.join("x")] {
            std::fs::create_dir_all(made).unwrap();
        }
        for (link, to) in [("out", &*beside), ("back", &root.join("in")), ("up", Path::new(".."))] {
            std::os::unix::fs::symlink(to, root.join(link)).unwrap();
        }
        let tree = Tree::new(root.clone(), false);
        for (path, expected) in [
            ("", Ok("")),
            ("in", Ok("in")),
            ("back", Ok("in")),
            ("out", Err(Code::InvalidArgument)),
            ("out/x", Err(Code::InvalidArgument)),
            ("up", Err(Code::InvalidArgument)),
            ("up/root/in", Ok("in")),
            ("none", Err(Code::NotFound)),
        ] {
            let found = tree.directory(&root.join(path)).map(|(_, real)| real);
            let expected = expected.map(|real| root.join(real).components().collect());
            assert_eq!(found.map_err(|error| error.code), expected, "{path}");
        }
        // The link itself is within.
        assert!(tree.place(&root.join("out")).is_ok());
        assert!(tree.place(&root.join("out/x")).is_err());
        assert!(tree.place(&root).unwrap().is_root());
    }
}
