//! Goes through the tree: of each directory first all that are no directories, by name, then its
//! directories, by name. Small files that lie together so come to share fragments.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crossbeam_channel::Sender;
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, openat};
use rustix::io::Errno;

use super::super::format::NAME_LEN;
use super::error::Error;
use super::load::{Entry, Job, Leaf};
use super::options::Exclude;
use super::pool::{Gone, Pending, Pool};
use super::stat::{Directory, Failure, Stat, Xattrs, fd_stored_owner, fd_xattrs};
use crate::types::FileKind;

/// How many of the directories that are being walked stay open. Those above are opened again on
/// the way back, so that a deep tree doesn't use up the descriptors.
const OPEN: usize = 64;

/// What the walk comes by, in order.
pub(super) enum Event {
    /// A directory, whose entries come next. The root has no name.
    Enter { name: Vec<u8>, path: Arc<Path>, stat: Stat, xattrs: Xattrs },
    /// The end of the directory entered last.
    Leave,
    /// An entry that is no directory, of the directory with a path.
    Leaf { directory: Arc<Path>, name: Vec<u8>, leaf: Pending<Result<Leaf, Failure>> },
    /// A directory that could not be read.
    Failed(Failure),
}

pub(super) type LoadPool = Pool<Job, Result<Leaf, Failure>>;

/// A walk of one tree.
pub(super) struct Walk<'a> {
    pub(super) root: &'a Path,
    pub(super) exclude: &'a Exclude<'a>,
    pub(super) loads: LoadPool,
    pub(super) events: Sender<Event>,
}

/// A directory on the way down.
struct Frame {
    /// `None` where it was closed for being far up.
    directory: Option<Arc<Directory>>,
    identity: (u64, u64),
    /// The path below the root, and the one errors have.
    paths: (PathBuf, Arc<Path>),
    has_stored_owners: bool,
    children: Names,
    next: usize,
}

impl Walk<'_> {
    /// Opens the root, which may be reached through a symbolic link, and is known by its own path.
    pub(super) fn open_root(root: &Path) -> Result<OwnedFd, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, root, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::ACCESS => Error::Unreadable { paths: vec![root.to_owned()] },
            _ => Error::io(root, "open", errno),
        })
    }

    /// Sends the events of the whole tree.
    pub(super) fn run(self, root: OwnedFd) {
        // Gone: whoever went has said why.
        let _ = self.walk(root);
    }

    fn walk(&self, root: OwnedFd) -> Result<(), Gone> {
        let root = Directory::new(root, PathBuf::new(), self.root.to_owned());
        let mut stack: Vec<Frame> = match self.enter(root, Vec::new()) {
            Ok(frame) => vec![frame?],
            Err(failure) => return self.send(Event::Failed(failure)),
        };
        while let Some(frame) = stack.last_mut() {
            let Some(name) = frame.children.get(frame.next).map(<[u8]>::to_vec) else {
                self.send(Event::Leave)?;
                let done = stack.pop();
                if let (Some(done), Some(above)) = (done, stack.last_mut())
                    && let Err(error) = reopen(above, &done)
                {
                    return self.send(Event::Failed(Failure::Fatal(error)));
                }
                continue;
            };
            frame.next += 1;
            let Some(directory) = frame.directory.clone() else { continue };
            match open_child(&directory, &name).and_then(|child| self.enter(child, name)) {
                Ok(frame) => stack.push(frame?),
                Err(failure) => self.send(Event::Failed(failure))?,
            }
            let far = stack.len().checked_sub(OPEN + 1).and_then(|far| stack.get_mut(far));
            if let Some(far) = far {
                far.directory = None;
            }
        }
        Ok(())
    }

    /// Announces a directory and all in it but directories.
    fn enter(
        &self,
        mut directory: Directory,
        name: Vec<u8>,
    ) -> Result<Result<Frame, Gone>, Failure> {
        let failed = |call| directory.error(b"", call);
        let stat = Stat::of(directory.fd.as_fd()).map_err(failed("fstat"))?;
        let stored = fd_stored_owner(directory.fd.as_fd());
        let stat = stat.owned_by(stored);
        let xattrs = fd_xattrs(directory.fd.as_fd()).map_err(failed("fgetxattr"))?;
        directory.has_stored_owners = stored.is_some();
        let (files, children) = self.list(&directory)?;
        let identity = stat.identity;
        let enter = Event::Enter { name, path: directory.path.clone(), stat, xattrs };
        Ok(self.announce(Arc::new(directory), files, enter).map(|directory| Frame {
            paths: (directory.relative.clone(), directory.path.clone()),
            has_stored_owners: directory.has_stored_owners,
            directory: Some(directory),
            identity,
            children,
            next: 0,
        }))
    }

    fn announce(
        &self,
        directory: Arc<Directory>,
        files: Names,
        enter: Event,
    ) -> Result<Arc<Directory>, Gone> {
        self.send(enter)?;
        for (name, kind) in files.iter() {
            let name = name.to_vec();
            let entry = Entry { directory: directory.clone(), name: name.clone(), kind };
            let leaf = self.loads.submit(Job::Name(entry))?;
            self.send(Event::Leaf { directory: directory.path.clone(), name, leaf })?;
        }
        Ok(directory)
    }

    /// The names in a directory: those of directories apart from the others.
    fn list(&self, directory: &Directory) -> Result<(Names, Names), Failure> {
        let failed = |call| directory.error(b"", call);
        let (mut files, mut children) = (Names::default(), Names::default());
        // Opening it once more would take the right to search it, too.
        let fd = rustix::io::fcntl_dupfd_cloexec(&directory.fd, 0).map_err(failed("fcntl"))?;
        for entry in Dir::new(fd).map_err(failed("fstat"))? {
            let entry = entry.map_err(failed("getdents"))?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let kind = match kind(entry.file_type()) {
                Some(kind) => kind,
                None => match Stat::at(directory, name).map_err(directory.error(name, "stat")) {
                    Ok(stat) => stat.kind,
                    Err(Failure::Vanished) => continue,
                    Err(failure) => return Err(failure),
                },
            };
            let is_directory = kind == FileKind::Directory;
            if (self.exclude)(&directory.relative.join(OsStr::from_bytes(name)), is_directory) {
                continue;
            }
            if name.len() > NAME_LEN {
                let path = directory.child(name);
                let what = format!("a name of more than {NAME_LEN} bytes: {}", path.display());
                return Err(Failure::Fatal(Error::limit(what)));
            }
            if is_directory { &mut children } else { &mut files }.push(name, kind);
        }
        files.sort();
        children.sort();
        Ok((files, children))
    }

    fn send(&self, event: Event) -> Result<(), Gone> {
        self.events.send(event).map_err(|_| Gone)
    }
}

fn open_child(directory: &Directory, name: &[u8]) -> Result<Directory, Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path = directory.child(name);
    match openat(&directory.fd, name, flags, Mode::empty()) {
        Ok(fd) => Ok(Directory::new(fd, directory.relative.join(OsStr::from_bytes(name)), path)),
        Err(Errno::NOTDIR | Errno::LOOP) => Err(Failure::Fatal(Error::Changed { path })),
        Err(errno) => Err(directory.error(name, "open")(errno)),
    }
}

/// Opens `above` again if it was closed, from the directory in it that was walked last.
fn reopen(above: &mut Frame, done: &Frame) -> Result<(), Error> {
    let (None, Some(below)) = (&above.directory, &done.directory) else { return Ok(()) };
    let (relative, path) = above.paths.clone();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = openat(&below.fd, "..", flags, Mode::empty())
        .map_err(|errno| Error::io(&path, "open", errno))?;
    let stat = Stat::of(fd.as_fd()).map_err(|errno| Error::io(&path, "fstat", errno))?;
    if stat.identity != above.identity {
        return Err(Error::Changed { path: path.to_path_buf() });
    }
    let has_stored_owners = above.has_stored_owners;
    above.directory = Some(Arc::new(Directory { fd, relative, path, has_stored_owners }));
    Ok(())
}

fn kind(file_type: FileType) -> Option<FileKind> {
    Some(match file_type {
        FileType::Directory => FileKind::Directory,
        FileType::RegularFile => FileKind::Regular,
        FileType::Symlink => FileKind::Symlink,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::CharacterDevice => FileKind::CharDevice,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::Unknown => return None,
    })
}

/// Many short names, close together.
#[derive(Default)]
struct Names {
    bytes: Vec<u8>,
    /// Where each starts and ends, and what it names.
    names: Vec<(usize, u16, FileKind)>,
}

impl Names {
    fn push(&mut self, name: &[u8], kind: FileKind) {
        self.names.push((self.bytes.len(), name.len() as u16, kind));
        self.bytes.extend_from_slice(name);
    }

    fn get(&self, index: usize) -> Option<&[u8]> {
        self.names.get(index).and_then(|&(start, len, _)| slice(&self.bytes, start, len))
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], FileKind)> {
        self.names
            .iter()
            .filter_map(|&(start, len, kind)| Some((slice(&self.bytes, start, len)?, kind)))
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        self.names.sort_unstable_by_key(|&(start, len, _)| slice(bytes, start, len));
    }
}

fn slice(bytes: &[u8], start: usize, len: u16) -> Option<&[u8]> {
    bytes.get(start..)?.get(..len.into())
}
