//! A plain directory, which answers one call after the other.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::calls::{Answer, CONTENTS, Call, DIRS, Entry, FILES, Tree, runs};

pub(crate) struct Plain {
    place: tempfile::TempDir,
    dirs: Vec<File>,
    files: Vec<File>,
}

/// Makes the tree that everything begins with.
pub(crate) fn make(at: &Path) {
    rustix::process::umask(Mode::empty());
    for dir in DIRS {
        let path = at.join(dir);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    for file in [FILES[0], FILES[2]] {
        std::fs::write(at.join(file), CONTENTS).unwrap();
        std::fs::set_permissions(at.join(file), PermissionsExt::from_mode(0o644)).unwrap();
    }
    std::fs::hard_link(at.join(FILES[0]), at.join(FILES[1])).unwrap();
}

impl Plain {
    pub(crate) fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        make(place.path());
        let dirs = DIRS.iter().map(|dir| File::open(place.path().join(dir)).unwrap()).collect();
        let open = |file| File::options().read(true).write(true).open(place.path().join(file));
        let files = FILES.iter().map(|file| open(file).unwrap()).collect();
        Self { place, dirs, files }
    }

    pub(crate) fn answer(&self, call: &Call) -> Answer {
        self.try_to(call).into()
    }

    fn try_to(&self, call: &Call) -> Result<Answer, Errno> {
        let done = |()| Answer::Done;
        let (dirs, files) = (&self.dirs, &self.files);
        match *call {
            Call::Create(dir, name) => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
                rustix::fs::openat(&dirs[dir], name, flags, Mode::from(0o640)).map(|_| Answer::Done)
            }
            Call::Mkdir(dir, name) => {
                rustix::fs::mkdirat(&dirs[dir], name, Mode::from(0o750)).map(done)
            }
            Call::Unlink(dir, name) => {
                rustix::fs::unlinkat(&dirs[dir], name, AtFlags::empty()).map(done)
            }
            Call::Rmdir(dir, name) => {
                rustix::fs::unlinkat(&dirs[dir], name, AtFlags::REMOVEDIR).map(done)
            }
            Call::Rename(from, name, to, new_name) => {
                rustix::fs::renameat(&dirs[from], name, &dirs[to], new_name).map(done)
            }
            Call::Link(file, dir, name) => {
                let open = format!("/proc/self/fd/{}", files[file].as_raw_fd());
                rustix::fs::linkat(CWD, open, &dirs[dir], name, AtFlags::SYMLINK_FOLLOW).map(done)
            }
            Call::Write(file, at, byte) => {
                files[file].write_all_at(&[byte], at).unwrap();
                Ok(Answer::Done)
            }
            Call::Truncate(file, len) => rustix::fs::ftruncate(&files[file], len).map(done),
            Call::Chmod(file, mode) => {
                rustix::fs::fchmod(&files[file], Mode::from_raw_mode(mode)).map(done)
            }
            Call::Read(file) => {
                let mut contents = vec![0; 8192];
                let len = files[file].read_at(&mut contents, 0).unwrap();
                contents.truncate(len);
                Ok(Answer::Bytes(contents))
            }
            Call::Lookup(dir, name) => {
                let stat = rustix::fs::statat(&dirs[dir], name, AtFlags::SYMLINK_NOFOLLOW)?;
                Ok(Answer::Found(stat.st_mode & libc::S_IFMT == libc::S_IFDIR))
            }
            Call::List(dir) => {
                let mut names: Vec<String> = rustix::fs::Dir::read_from(&dirs[dir])?
                    .map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned())
                    .filter(|name| name != "." && name != "..")
                    .collect();
                names.sort();
                Ok(Answer::Names(names))
            }
        }
    }

    pub(crate) fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        see(self.place.path(), "", &mut tree);
        tree
    }
}

fn see(root: &Path, path: &str, tree: &mut Tree) {
    let meta = root.join(path).symlink_metadata().unwrap();
    let mode = meta.mode() & 0o7777;
    if !meta.is_dir() {
        let contents = runs(&std::fs::read(root.join(path)).unwrap());
        tree.insert(path.to_owned(), Entry::File { mode, names: meta.nlink(), contents });
        return;
    }
    tree.insert(path.to_owned(), Entry::Dir { mode });
    for entry in std::fs::read_dir(root.join(path)).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        see(root, format!("{path}/{name}").trim_start_matches('/'), tree);
    }
}
