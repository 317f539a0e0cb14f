//! A merged tree, called as the kernel's VFS calls a file system: with what a call gives or takes names from
//! locked, and not at all where a directory is gone.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};

use rustix::fs::RenameFlags;
use rustix::io::Errno;
use shuttle::sync::{Mutex, RwLock};
use thawfs::cache::FileBlob;
use thawfs::overlay::{Attr, Caller, Error, Options, Overlay, SetAttr, Upper};
use thawfs::squashfs::{Archive, OpenOptions};
use thawfs::types::{FileKind, Ino};

use crate::calls::{Answer, Call, DIRS, Entry, FILES, Tree, runs};

const ROOT: Caller = Caller { uid: 0, gid: 0, umask: 0 };

pub(crate) struct Merged {
    place: tempfile::TempDir,
    overlay: Overlay,
    /// With the kernel's lock on each, and whether it is gone.
    dirs: Vec<(Ino, RwLock<bool>)>,
    /// With the kernel's lock on each, which it takes while a name is given or taken away.
    files: Vec<(Ino, Arc<Mutex<()>>)>,
    /// What the kernel holds while a name moves from one directory to another.
    rename: Mutex<()>,
}

/// The tree that everything begins with, as an archive. Made once.
fn archive() -> &'static Path {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    static PATH: OnceLock<std::path::PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let made = MADE.get_or_init(|| tempfile::tempdir().unwrap()).path();
        crate::plain::make(&made.join("tree"));
        let archive = made.join("archive.sqsh");
        let packed = Command::new("mksquashfs")
            .args([made.join("tree"), archive.clone()])
            .args(["-quiet", "-no-progress", "-comp", "lz4"])
            .status();
        assert!(packed.expect("mksquashfs").success());
        archive
    })
}

fn open(place: &Path) -> Overlay {
    let blob = Arc::new(FileBlob::open(archive(), 0).unwrap());
    let lower = Arc::new(Archive::open(blob, OpenOptions::default()).unwrap());
    let upper = Upper::open(&place.join("upper"), &place.join("work")).unwrap();
    Overlay::new(lower, Some(upper), Options::default()).unwrap()
}

fn refusal(error: Error) -> Errno {
    match error {
        Error::Refused(errno) | Error::Sys { errno, .. } => errno,
        other => panic!("{other}"),
    }
}

impl Merged {
    pub(crate) fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        for dir in ["upper", "work"] {
            std::fs::create_dir(place.path().join(dir)).unwrap();
        }
        let overlay = open(place.path());
        let dirs = DIRS.iter().map(|dir| (walk_to(&overlay, dir), RwLock::new(false))).collect();
        let mut files: Vec<(Ino, Arc<Mutex<()>>)> = Vec::new();
        for file in FILES {
            let ino = walk_to(&overlay, file);
            let same = files.iter().find(|(known, _)| *known == ino);
            let lock = same.map_or_else(Arc::default, |(_, lock)| Arc::clone(lock));
            files.push((ino, lock));
        }
        Self { place, overlay, dirs, files, rename: Mutex::new(()) }
    }

    pub(crate) fn answer(&self, call: &Call) -> Answer {
        self.try_to(call).into()
    }

    /// Calls with the directory locked for a change of its names.
    fn change<T>(
        &self,
        dir: usize,
        call: impl FnOnce(Ino) -> thawfs::overlay::Result<T>,
    ) -> Result<T, Errno> {
        let (ino, lock) = &self.dirs[dir];
        let gone = lock.write().unwrap();
        if *gone { Err(Errno::NOENT) } else { call(*ino).map_err(refusal) }
    }

    fn made(&self, attr: Attr) -> Answer {
        self.overlay.forget(attr.ino, 1);
        Answer::Done
    }

    fn try_to(&self, call: &Call) -> Result<Answer, Errno> {
        let overlay = &self.overlay;
        match *call {
            Call::Create(dir, name) => {
                let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
                let make = |dir| overlay.create(&ROOT, dir, OsStr::new(name), 0o640, flags);
                let (attr, opened) = self.change(dir, make)?;
                overlay.release(opened.handle);
                Ok(self.made(attr))
            }
            Call::Mkdir(dir, name) => self
                .change(dir, |dir| overlay.mkdir(&ROOT, dir, OsStr::new(name), 0o750))
                .map(|attr| self.made(attr)),
            Call::Unlink(dir, name) => self.change(dir, |dir| {
                let attr = overlay.lookup(dir, OsStr::new(name))?;
                overlay.forget(attr.ino, 1);
                let lock = self.file(attr.ino);
                let _lock = lock.map(|lock| lock.lock().unwrap());
                overlay.unlink(dir, OsStr::new(name)).map(|()| Answer::Done)
            }),
            Call::Rmdir(dir, name) => self.rmdir(dir, OsStr::new(name)),
            Call::Rename(from, name, to, new_name) => {
                self.rename(from, OsStr::new(name), to, OsStr::new(new_name))
            }
            Call::Link(file, dir, name) => {
                let (file, lock) = &self.files[file];
                let link = |dir| {
                    let _lock = lock.lock().unwrap();
                    overlay.link(*file, dir, OsStr::new(name))
                };
                self.change(dir, link).map(|attr| self.made(attr))
            }
            Call::Write(file, at, byte) => {
                let opened = overlay.open(self.files[file].0, libc::O_WRONLY).map_err(refusal)?;
                assert_eq!(overlay.write(opened.handle, at, &[byte]).map_err(refusal)?, 1);
                overlay.release(opened.handle);
                Ok(Answer::Done)
            }
            Call::Truncate(file, size) => {
                self.set(file, SetAttr { size: Some(size), ..SetAttr::default() })
            }
            Call::Chmod(file, mode) => {
                self.set(file, SetAttr { mode: Some(mode), ..SetAttr::default() })
            }
            Call::Read(file) => Ok(Answer::Bytes(contents(overlay, self.files[file].0))),
            Call::Lookup(dir, name) => {
                let (ino, lock) = &self.dirs[dir];
                let gone = lock.read().unwrap();
                if *gone {
                    return Err(Errno::NOENT);
                }
                let attr = overlay.lookup(*ino, OsStr::new(name)).map_err(refusal)?;
                overlay.forget(attr.ino, 1);
                Ok(Answer::Found(attr.kind == FileKind::Directory))
            }
            Call::List(dir) => {
                let (ino, lock) = &self.dirs[dir];
                let gone = lock.read().unwrap();
                if *gone {
                    return Err(Errno::NOENT);
                }
                let mut names: Vec<_> = list(overlay, *ino).into_iter().collect();
                names.sort();
                Ok(Answer::Names(names))
            }
        }
    }

    fn set(&self, file: usize, change: SetAttr) -> Result<Answer, Errno> {
        self.overlay
            .setattr(&ROOT, self.files[file].0, None, &change)
            .map(|_| Answer::Done)
            .map_err(refusal)
    }

    /// The number in [`DIRS`] of a directory, if it has one.
    fn known(&self, ino: Ino) -> Option<usize> {
        self.dirs.iter().position(|(known, _)| *known == ino)
    }

    /// The kernel's lock on a file.
    fn file(&self, ino: Ino) -> Option<&Mutex<()>> {
        let file = self.files.iter().find(|(known, _)| *known == ino);
        file.map(|(_, lock)| &**lock)
    }

    fn rmdir(&self, dir: usize, name: &OsStr) -> Result<Answer, Errno> {
        self.change(dir, |dir| {
            let attr = self.overlay.lookup(dir, name)?;
            self.overlay.forget(attr.ino, 1);
            let mut gone = self.known(attr.ino).map(|dir| self.dirs[dir].1.write().unwrap());
            self.overlay.rmdir(dir, name)?;
            if let Some(gone) = &mut gone {
                **gone = true;
            }
            Ok(Answer::Done)
        })
    }

    fn rename(&self, from: usize, name: &OsStr, to: usize, new: &OsStr) -> Result<Answer, Errno> {
        let _rename = (from != to).then(|| self.rename.lock().unwrap());
        // Those further up first.
        let first = self.dirs[from.min(to)].1.write().unwrap();
        let second = (from != to).then(|| self.dirs[from.max(to)].1.write().unwrap());
        if *first || second.as_deref().is_some_and(|gone| *gone) {
            return Err(Errno::NOENT);
        }
        let (from, to) = (self.dirs[from].0, self.dirs[to].0);
        let look = |dir, name| {
            let found = self.overlay.lookup(dir, name).ok()?;
            self.overlay.forget(found.ino, 1);
            Some(found.ino)
        };
        let (source, target) = (look(from, name), look(to, new));
        // What is replaced is locked, too.
        let replaced = target.filter(|target| Some(*target) != source);
        let mut gone = replaced.and_then(|ino| self.known(ino)).map(|n| self.dirs[n].1.write());
        let mut locked: Vec<Ino> = source.into_iter().chain(replaced).collect();
        // By their addresses, as the kernel does.
        locked.sort();
        let _locked: Vec<_> =
            locked.iter().filter_map(|ino| self.file(*ino)).map(Mutex::lock).collect();
        let flags = RenameFlags::empty();
        self.overlay.rename(&ROOT, from, name, to, new, flags).map_err(refusal)?;
        if let Some(Ok(gone)) = &mut gone {
            **gone = true;
        }
        Ok(Answer::Done)
    }

    /// The tree as it is, and as the next mount of the same upper shows it.
    pub(crate) fn end(self) -> (Tree, Tree) {
        let Self { place, overlay, dirs, files, .. } = self;
        let now = tree(&overlay);
        let known = dirs.iter().map(|(ino, _)| *ino).chain(files.iter().map(|(ino, _)| *ino));
        for (path, ino) in DIRS.iter().chain(&FILES).zip(known) {
            if !path.is_empty() {
                overlay.forget(ino, 1);
            }
        }
        assert_eq!(overlay.node_count(), 1, "more than the root is known after all was forgotten");
        drop(overlay);
        (now, tree(&open(place.path())))
    }
}

/// Looks up a path, of which the last is not forgotten.
fn walk_to(overlay: &Overlay, path: &str) -> Ino {
    let mut at = Ino::ROOT;
    for name in Path::new(path) {
        let found = overlay.lookup(at, name).unwrap().ino;
        if at != Ino::ROOT {
            overlay.forget(at, 1);
        }
        at = found;
    }
    at
}

fn contents(overlay: &Overlay, file: Ino) -> Vec<u8> {
    let opened = overlay.open(file, libc::O_RDONLY).unwrap();
    let contents = overlay.read(opened.handle, 0, 8192).unwrap().to_vec();
    overlay.release(opened.handle);
    contents
}

fn list(overlay: &Overlay, dir: Ino) -> Vec<String> {
    let mut names = Vec::new();
    let mut take = |entry: &thawfs::overlay::DirEntry<'_>| {
        names.push(entry.name.to_str().unwrap().to_owned());
        ControlFlow::Continue(())
    };
    overlay.readdir(dir, 0, false, &mut take).unwrap();
    names.retain(|name| name != "." && name != "..");
    names
}

fn tree(overlay: &Overlay) -> Tree {
    let mut tree = Tree::new();
    see(overlay, Ino::ROOT, "", &mut tree);
    tree
}

fn see(overlay: &Overlay, ino: Ino, path: &str, tree: &mut Tree) {
    let attr = overlay.getattr(ino, None).unwrap();
    let mode = u32::from(attr.perm);
    if attr.kind != FileKind::Directory {
        let contents = runs(&contents(overlay, ino));
        tree.insert(path.to_owned(), Entry::File { mode, names: attr.nlink.into(), contents });
        return;
    }
    tree.insert(path.to_owned(), Entry::Dir { mode });
    for name in list(overlay, ino) {
        let found = overlay.lookup(ino, OsStr::new(&name)).unwrap().ino;
        see(overlay, found, format!("{path}/{name}").trim_start_matches('/'), tree);
        overlay.forget(found, 1);
    }
}
