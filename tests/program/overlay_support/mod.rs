//! A small archive, a merged tree over it, and the same operations on both that tree and a plain
//! directory of the host, by path.

mod replica;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use crate::support::surrounding::Surrounding;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;
use thawfs::cache::FileBlob;
use thawfs::overlay::{
    ArchiveIdentity, Attr, Caller, Error, Frozen, Layer, Options, Overlay, RolledBack, SetAttr,
    SetTime, Upper,
};
use thawfs::squashfs::{Archive, OpenOptions};
use thawfs::types::{FileKind, Ino, LayerSerial, Timestamp};

pub(crate) use replica::Replica;

pub(crate) const ROOT: Caller = Caller { uid: 0, gid: 0, umask: 0 };

/// The errno that a caller would get.
pub(crate) fn errno(error: &Error) -> Errno {
    match error {
        Error::Refused(errno) | Error::Sys { errno, .. } => *errno,
        Error::Lower(_) | Error::Damaged(_) => Errno::IO,
        Error::Stale(_) => Errno::STALE,
        Error::WouldCopy | Error::Frozen | Error::Unusable { .. } => Errno::INVAL,
    }
}

pub(crate) fn run(program: &str, args: &[&OsStr]) {
    let output = Command::new(program).args(args).output().expect(program);
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Bytes that differ from offset to offset and from seed to seed.
pub(crate) fn bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed).collect()
}

/// A source tree over the names `a`, `b` and `c`, three deep, and its archive. Made once.
pub(crate) struct Source {
    pub(crate) tree: PathBuf,
    pub(crate) archive: PathBuf,
}

pub(crate) fn source() -> &'static Source {
    static SOURCE: OnceLock<Source> = OnceLock::new();
    SOURCE.get_or_init(|| {
        // Made once and kept below target/: a static is never dropped, and every test is a process
        // of its own. A change of what follows needs a new name.
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("overlay-source-1");
        if kept.exists() {
            return Source { tree: kept.join("tree"), archive: kept.join("archive.sqsh") };
        }
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let tree = dir.path().join("tree");
        let file = |path: &str, data: &[u8]| std::fs::write(tree.join(path), data).unwrap();
        for path in ["", "a", "a/b", "a/b/b", "c", "c/a", "c/c"] {
            std::fs::create_dir(tree.join(path)).unwrap();
        }
        file("a/a", b"");
        file("a/b/a", &bytes(1, 300_000));
        file("a/c", &bytes(2, 5000));
        std::fs::hard_link(tree.join("a/c"), tree.join("b")).unwrap();
        std::fs::hard_link(tree.join("a/c"), tree.join("c/b")).unwrap();
        std::os::unix::fs::symlink("nowhere/lower", tree.join("a/b/c")).unwrap();
        file("c/c/a", b"small");
        let hole = std::fs::File::create(tree.join("c/c/b")).unwrap();
        hole.set_len(1 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&hole, &bytes(3, 4096), 500_000).unwrap();
        rustix::fs::mknodat(CWD, tree.join("c/c/c"), FileType::Fifo, Mode::from(0o620), 0).unwrap();
        for (path, name, value) in [("a/c", "user.one", "1"), ("a/b", "user.dir", "value")] {
            let flags = XattrFlags::empty();
            rustix::fs::setxattr(tree.join(path), name, value.as_bytes(), flags).unwrap();
        }
        for path in ["a/b/a", "a/b", "c"] {
            let mode = Mode::from_raw_mode(if path == "c" { 0o751 } else { 0o755 });
            rustix::fs::chmod(tree.join(path), mode).unwrap();
        }
        // Times that no operation of a test would give, deepest first.
        let script = r#"find "$1" -depth -exec touch -h -d @1000000000 {} +"#;
        run(
            "sh",
            &["-c", script, "sh"]
                .map(OsStr::new)
                .into_iter()
                .chain([tree.as_os_str()])
                .collect::<Vec<_>>(),
        );
        let archive = dir.path().join("archive.sqsh");
        let options = ["-noappend", "-quiet", "-no-progress", "-comp", "zstd", "-b", "128K"];
        let mut args = vec![tree.as_os_str(), archive.as_os_str()];
        args.extend(options.map(OsStr::new));
        run("mksquashfs", &args);
        // Whoever comes first is used by all; a second one is dropped.
        match std::fs::rename(dir.path(), &kept) {
            Ok(()) => drop(dir.keep()),
            Err(error) => assert!(kept.exists(), "{error}"),
        }
        Source { tree: kept.join("tree"), archive: kept.join("archive.sqsh") }
    })
}

pub(crate) fn open_archive(path: &Path) -> Arc<Archive> {
    let blob = Arc::new(FileBlob::open(path, 0).unwrap());
    Arc::new(Archive::open(blob, OpenOptions::default()).unwrap())
}

/// Opens the merged tree over the upper in `dir`.
pub(crate) fn open_overlay(dir: &Path, archive: &Path, options: Options) -> Overlay {
    open_stack(dir, archive, &Stack::default(), options)
}

/// The serials of the layers of a stack, the bottom one first, the live one last.
#[derive(Clone, Debug)]
pub(crate) struct Stack(pub(crate) Vec<u32>);

impl Default for Stack {
    fn default() -> Self {
        Self(vec![0])
    }
}

impl Stack {
    pub(crate) fn live(&self) -> u32 {
        *self.0.last().unwrap()
    }

    pub(crate) fn frozen(&self) -> &[u32] {
        &self.0[..self.0.len() - 1]
    }
}

/// Where a layer is.
pub(crate) fn layer_dir(dir: &Path, serial: u32) -> PathBuf {
    match serial {
        0 => dir.join("upper"),
        serial => dir.join("layers").join(serial.to_string()),
    }
}

pub(crate) fn open_layers(dir: &Path, serials: &[u32]) -> Vec<Layer> {
    let open = |serial: &u32| Layer::open(&layer_dir(dir, *serial), LayerSerial(*serial)).unwrap();
    serials.iter().map(open).collect()
}

/// As [`open_overlay`], of the layers in `dir` that `stack` names.
pub(crate) fn open_stack(dir: &Path, archive: &Path, stack: &Stack, options: Options) -> Overlay {
    open_stack_over(dir, (open_archive(archive), &Others::default()), stack, options)
}

/// Archives that layers may have been made over, and the first layer that was made over the one below.
#[derive(Debug, Default)]
pub(crate) struct Others {
    pub(crate) archives: Vec<ArchiveIdentity>,
    pub(crate) since: u32,
}

pub(crate) fn open_layers_over(dir: &Path, serials: &[u32], others: &Others) -> Vec<Layer> {
    let layers = serials.iter().zip(open_layers(dir, serials));
    let made = |(serial, layer): (&u32, Layer)| match *serial < others.since {
        true => layer.made_over(others.archives[..].into()),
        false => layer,
    };
    layers.map(made).collect()
}

/// As [`open_stack`], of layers that may have been made over other archives.
pub(crate) fn open_stack_over(
    dir: &Path,
    (archive, others): (Arc<Archive>, &Others),
    stack: &Stack,
    options: Options,
) -> Overlay {
    let (upper, work) = (layer_dir(dir, stack.live()), dir.join("work"));
    for dir in [&upper, &work] {
        std::fs::create_dir_all(dir).unwrap();
    }
    let upper = Upper::open(&upper, &work).unwrap().with_serial(LayerSerial(stack.live()));
    let layers = open_layers_over(dir, stack.frozen(), others);
    Overlay::stacked(archive, layers, Some(upper), options).unwrap()
}

/// Freezes the live upper of `overlay`, whose layers are `stack` in `dir`, and makes `next` the live one.
pub(crate) fn freeze(overlay: &Overlay, dir: &Path, stack: &mut Stack, next: u32) {
    std::fs::create_dir_all(layer_dir(dir, next)).unwrap();
    let mut committed = 0;
    let mut commit = || {
        committed += 1;
        Ok(())
    };
    let frozen = overlay.freeze(&layer_dir(dir, next), LayerSerial(next), &mut commit).unwrap();
    assert_eq!((frozen, committed), (Frozen::default(), 1));
    stack.0.push(next);
}

/// Makes one layer of the layers `run` of `overlay`, which are in `dir`. Says whether they could be.
pub(crate) fn merge(overlay: &Overlay, dir: &Path, run: &[u32]) -> bool {
    let into = dir.join("layers/merged");
    let _ = std::fs::remove_dir_all(&into);
    std::fs::create_dir_all(&into).unwrap();
    let serials: Vec<LayerSerial> = run.iter().map(|serial| LayerSerial(*serial)).collect();
    let merged = match overlay.merge(&serials, &into, u64::MAX, &|| true) {
        Ok(merged) => merged,
        Err(_) if !Surrounding::can_mark_all() => return false,
        Err(error) => panic!("{error}"),
    };
    let mut committed = 0;
    let mut commit = || {
        committed += 1;
        Ok(())
    };
    let done = overlay.go_over(merged, &mut commit).unwrap();
    assert_eq!(committed, i32::from(done));
    if done {
        assert!(!overlay.has_retired_layers());
        for serial in run {
            std::fs::remove_dir_all(layer_dir(dir, *serial)).unwrap();
        }
        std::fs::rename(&into, layer_dir(dir, *run.last().unwrap())).unwrap();
    }
    done
}

/// Rolls `overlay`, whose layers are in `dir`, back to `layers`, and makes `next` the live one over them.
pub(crate) fn roll_back(overlay: &Overlay, dir: &Path, layers: &[u32], next: u32) -> RolledBack {
    std::fs::create_dir_all(layer_dir(dir, next)).unwrap();
    let mut committed = 0;
    let mut commit = || {
        committed += 1;
        Ok(())
    };
    let (frozen, next_dir) = (open_layers(dir, layers), layer_dir(dir, next));
    let done = overlay.roll_back(frozen, &next_dir, LayerSerial(next), &[], &mut commit).unwrap();
    assert_eq!(committed, 1);
    done
}

/// What one file of a tree looks like from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) kind: FileKind,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    /// Not of directories, whose count the merged tree does not promise.
    pub(crate) nlink: u32,
    pub(crate) rdev: u64,
    /// Not of directories.
    pub(crate) size: u64,
    pub(crate) mtime: Timestamp,
    pub(crate) contents: Vec<u8>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The file's identity: equal for hard links.
    pub(crate) ino: u64,
}

pub(crate) type Tree = BTreeMap<PathBuf, Seen>;

/// Operations by path. Both sides answer with the errno of the host's file system.
pub(crate) trait Side {
    fn write(&mut self, path: &Path, at: u64, data: &[u8], flags: i32) -> Result<(), Errno>;
    fn mkdir(&mut self, path: &Path, mode: u32) -> Result<(), Errno>;
    fn symlink(&mut self, path: &Path, target: &OsStr) -> Result<(), Errno>;
    fn mkfifo(&mut self, path: &Path) -> Result<(), Errno>;
    fn link(&mut self, from: &Path, to: &Path) -> Result<(), Errno>;
    fn unlink(&mut self, path: &Path) -> Result<(), Errno>;
    fn rmdir(&mut self, path: &Path) -> Result<(), Errno>;
    fn rename(&mut self, from: &Path, to: &Path, flags: RenameFlags) -> Result<(), Errno>;
    fn truncate(&mut self, path: &Path, size: u64) -> Result<(), Errno>;
    fn chmod(&mut self, path: &Path, mode: u32) -> Result<(), Errno>;
    fn chown(&mut self, path: &Path, uid: u32, gid: u32) -> Result<(), Errno>;
    fn utime(&mut self, path: &Path, seconds: i64) -> Result<(), Errno>;
    fn set_xattr(&mut self, path: &Path, name: &str, value: &[u8]) -> Result<(), Errno>;
    fn remove_xattr(&mut self, path: &Path, name: &str) -> Result<(), Errno>;
    fn tree(&mut self) -> Tree;
}

/// A plain directory.
pub(crate) struct Plain(pub(crate) PathBuf);

impl Plain {
    fn file(&self, path: &Path, flags: OFlags) -> Result<std::fs::File, Errno> {
        let meta = self.0.join(path).symlink_metadata();
        if meta.is_ok_and(|meta| std::os::unix::fs::FileTypeExt::is_fifo(&meta.file_type()))
            && !flags.contains(OFlags::EXCL)
        {
            // The VFS opens pipes without asking the file system.
            return Err(Errno::NXIO);
        }
        let flags = flags | OFlags::NOFOLLOW;
        rustix::fs::open(self.0.join(path), flags, Mode::from(0o644)).map(Into::into)
    }
}

impl Side for Plain {
    fn write(&mut self, path: &Path, at: u64, data: &[u8], flags: i32) -> Result<(), Errno> {
        let flags = OFlags::from_bits_retain(flags as u32);
        let file = self.file(path, flags)?;
        std::os::unix::fs::FileExt::write_all_at(&file, data, at).unwrap();
        Ok(())
    }

    fn mkdir(&mut self, path: &Path, mode: u32) -> Result<(), Errno> {
        rustix::fs::mkdir(self.0.join(path), Mode::from_raw_mode(mode))
    }

    fn symlink(&mut self, path: &Path, target: &OsStr) -> Result<(), Errno> {
        rustix::fs::symlink(target, self.0.join(path))
    }

    fn mkfifo(&mut self, path: &Path) -> Result<(), Errno> {
        rustix::fs::mknodat(CWD, self.0.join(path), FileType::Fifo, Mode::from(0o600), 0)
    }

    fn link(&mut self, from: &Path, to: &Path) -> Result<(), Errno> {
        rustix::fs::linkat(CWD, self.0.join(from), CWD, self.0.join(to), AtFlags::empty())
    }

    fn unlink(&mut self, path: &Path) -> Result<(), Errno> {
        rustix::fs::unlink(self.0.join(path))
    }

    fn rmdir(&mut self, path: &Path) -> Result<(), Errno> {
        rustix::fs::rmdir(self.0.join(path))
    }

    fn rename(&mut self, from: &Path, to: &Path, flags: RenameFlags) -> Result<(), Errno> {
        rustix::fs::renameat_with(CWD, self.0.join(from), CWD, self.0.join(to), flags)
    }

    fn truncate(&mut self, path: &Path, size: u64) -> Result<(), Errno> {
        rustix::fs::ftruncate(self.file(path, OFlags::WRONLY)?, size)
    }

    fn chmod(&mut self, path: &Path, mode: u32) -> Result<(), Errno> {
        if self.0.join(path).symlink_metadata().is_ok_and(|m| m.is_symlink()) {
            return Err(Errno::OPNOTSUPP);
        }
        rustix::fs::chmod(self.0.join(path), Mode::from_raw_mode(mode))
    }

    fn chown(&mut self, path: &Path, uid: u32, gid: u32) -> Result<(), Errno> {
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(CWD, self.0.join(path), Some(uid), Some(gid), flags)
    }

    fn utime(&mut self, path: &Path, seconds: i64) -> Result<(), Errno> {
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 5 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, self.0.join(path), &times, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn set_xattr(&mut self, path: &Path, name: &str, value: &[u8]) -> Result<(), Errno> {
        rustix::fs::lsetxattr(self.0.join(path), name, value, XattrFlags::empty())
    }

    fn remove_xattr(&mut self, path: &Path, name: &str) -> Result<(), Errno> {
        rustix::fs::lremovexattr(self.0.join(path), name)
    }

    fn tree(&mut self) -> Tree {
        use std::os::unix::fs::MetadataExt;
        let entries = walkdir::WalkDir::new(&self.0).into_iter().map(Result::unwrap);
        let see = |entry: walkdir::DirEntry| {
            let meta = entry.path().symlink_metadata().unwrap();
            let kind = FileKind::from_mode(meta.mode()).unwrap();
            let directory = kind == FileKind::Directory;
            let contents = match kind {
                FileKind::Regular => std::fs::read(entry.path()).unwrap(),
                FileKind::Symlink => {
                    std::fs::read_link(entry.path()).unwrap().as_os_str().as_bytes().to_vec()
                }
                _ => Vec::new(),
            };
            let mut names = vec![0; 4096];
            let len = rustix::fs::llistxattr(entry.path(), &mut names[..]).unwrap();
            let xattrs = names[..len].split(|b| *b == 0).filter(|name| !name.is_empty());
            let xattrs = xattrs.map(|name| {
                let mut value = vec![0; 4096];
                let len = rustix::fs::lgetxattr(entry.path(), name, &mut value[..]).unwrap();
                value.truncate(len);
                (name.to_vec(), value)
            });
            let seen = Seen {
                kind,
                mode: meta.mode() & 0o7777,
                owner: (meta.uid(), meta.gid()),
                nlink: if directory { 0 } else { meta.nlink() as u32 },
                rdev: meta.rdev(),
                size: if directory { 0 } else { meta.size() },
                mtime: Timestamp { seconds: meta.mtime(), nanos: meta.mtime_nsec() as u32 },
                contents,
                xattrs: xattrs.collect(),
                ino: meta.ino(),
            };
            (entry.path().strip_prefix(&self.0).unwrap().to_owned(), seen)
        };
        entries.map(see).collect()
    }
}

/// The merged tree, driven as the kernel's VFS would drive it.
pub(crate) struct Merged {
    pub(crate) overlay: Overlay,
    /// Whether [`Side::tree`] lists with attributes.
    pub(crate) plus: bool,
}

/// Looked-up inodes, given back when dropped.
pub(crate) struct Chain<'a> {
    overlay: &'a Overlay,
    pub(crate) attrs: Vec<Attr>,
}

impl Drop for Chain<'_> {
    fn drop(&mut self) {
        for attr in self.attrs.iter().rev() {
            self.overlay.forget(attr.ino, 1);
        }
    }
}

impl Chain<'_> {
    pub(crate) fn last(&self) -> Ino {
        self.attrs.last().map_or(Ino::ROOT, |attr| attr.ino)
    }

    pub(crate) fn kind(&self) -> FileKind {
        self.attrs.last().map_or(FileKind::Directory, |attr| attr.kind)
    }
}

impl Merged {
    pub(crate) fn resolve(&self, path: &Path) -> Result<Chain<'_>, Errno> {
        let mut chain = Chain { overlay: &self.overlay, attrs: Vec::new() };
        for name in path {
            match chain.kind() {
                FileKind::Directory => {}
                // All links of these tests lead nowhere.
                FileKind::Symlink => return Err(Errno::NOENT),
                _ => return Err(Errno::NOTDIR),
            }
            let attr = self.overlay.lookup(chain.last(), name).map_err(|e| errno(&e))?;
            chain.attrs.push(attr);
        }
        Ok(chain)
    }

    fn parent<'a>(&self, path: &'a Path) -> Result<(Chain<'_>, &'a OsStr), Errno> {
        let chain = self.resolve(path.parent().unwrap())?;
        match chain.kind() {
            FileKind::Directory => Ok((chain, path.file_name().unwrap())),
            FileKind::Symlink => Err(Errno::NOENT),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// The VFS looks a name up before it makes it.
    fn new_name<'a>(&self, path: &'a Path) -> Result<(Chain<'_>, &'a OsStr), Errno> {
        let (chain, name) = self.parent(path)?;
        match self.resolve(path) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => Ok((chain, name)),
            Err(errno) => Err(errno),
        }
    }

    fn made(&self, made: thawfs::overlay::Result<Attr>) -> Result<(), Errno> {
        let attr = made.map_err(|e| errno(&e))?;
        self.overlay.forget(attr.ino, 1);
        Ok(())
    }

    fn set(&self, path: &Path, change: SetAttr) -> Result<(), Errno> {
        let chain = self.resolve(path)?;
        let attr = self.overlay.setattr(&ROOT, chain.last(), None, &change);
        assert_eq!(attr.as_ref().map_or(chain.last(), |attr| attr.ino), chain.last());
        attr.map(drop).map_err(|e| errno(&e))
    }

    /// The names in a directory with their numbers and kinds, without `.` and `..`.
    pub(crate) fn list(&self, ino: Ino) -> Vec<(OsString, Ino, FileKind)> {
        let mut names = Vec::new();
        let mut from = 0;
        loop {
            let mut room = 3;
            let before = from;
            let mut sink = |entry: &thawfs::overlay::DirEntry<'_>| {
                if room == 0 {
                    return ControlFlow::Break(());
                }
                room -= 1;
                from = entry.next_cookie;
                if let Some(attr) = entry.attr {
                    assert_eq!((attr.ino, attr.number), (entry.ino, entry.ino));
                    self.overlay.forget(attr.ino, 1);
                } else if self.plus && entry.name != "." && entry.name != ".." {
                    // The kernel gives back at once what comes without attributes.
                    self.overlay.forget(entry.ino, 1);
                }
                names.push((entry.name.to_owned(), entry.ino, entry.kind));
                ControlFlow::Continue(())
            };
            self.overlay.readdir(ino, before, self.plus, &mut sink).unwrap();
            if from == before {
                break;
            }
        }
        assert_eq!(names[0].0, ".");
        assert_eq!(names[0].1, ino);
        assert_eq!(names[1].0, "..");
        names.split_off(2)
    }

    pub(crate) fn contents(&self, ino: Ino) -> Vec<u8> {
        let opened = self.overlay.open(ino, libc::O_RDONLY).unwrap();
        let mut data = Vec::new();
        loop {
            let more = self.overlay.read(opened.handle, data.len() as u64, 1 << 17).unwrap();
            if more.is_empty() {
                break;
            }
            data.extend_from_slice(&more);
        }
        self.overlay.release(opened.handle);
        data
    }

    fn see(&self, path: &Path, attr: &Attr, tree: &mut Tree) {
        let directory = attr.kind == FileKind::Directory;
        let overlay = &self.overlay;
        let contents = match attr.kind {
            FileKind::Regular => self.contents(attr.ino),
            FileKind::Symlink => overlay.readlink(attr.ino).unwrap(),
            _ => Vec::new(),
        };
        let names = overlay.listxattr(&ROOT, attr.ino).unwrap();
        let xattrs = names.split(|b| *b == 0).filter(|name| !name.is_empty()).map(|name| {
            let value = overlay.getxattr(attr.ino, OsStr::from_bytes(name)).unwrap();
            (name.to_vec(), value)
        });
        let seen = Seen {
            kind: attr.kind,
            mode: attr.perm.into(),
            owner: (attr.uid, attr.gid),
            nlink: if directory { 0 } else { attr.nlink },
            rdev: attr.rdev,
            size: if directory { 0 } else { attr.size },
            mtime: attr.mtime,
            contents,
            xattrs: xattrs.collect(),
            ino: attr.number.0,
        };
        tree.insert(path.to_owned(), seen);
        if directory {
            for (name, ino, kind) in self.list(attr.ino) {
                let child = overlay.lookup(attr.ino, &name).unwrap();
                let path = path.join(&name);
                assert_eq!((child.number, child.kind), (ino, kind), "d_ino of {path:?}");
                self.see(&path, &child, tree);
                overlay.forget(child.ino, 1);
            }
        }
    }
}

impl Side for Merged {
    fn write(&mut self, path: &Path, at: u64, data: &[u8], flags: i32) -> Result<(), Errno> {
        let overlay = &self.overlay;
        // Looked up until it is released, as by the kernel.
        let found = self.resolve(path);
        let opened = match &found {
            Ok(_) if flags & libc::O_CREAT != 0 && flags & libc::O_EXCL != 0 => {
                return Err(Errno::EXIST);
            }
            Ok(chain) => match chain.kind() {
                FileKind::Symlink => return Err(Errno::LOOP),
                FileKind::Directory => return Err(Errno::ISDIR),
                FileKind::Regular => overlay.open(chain.last(), flags).map_err(|e| errno(&e))?,
                _ => return Err(Errno::NXIO),
            },
            Err(Errno::NOENT) if flags & libc::O_CREAT != 0 => {
                let (parent, name) = self.parent(path)?;
                let (attr, opened) = overlay
                    .create(&ROOT, parent.last(), name, 0o644, flags)
                    .map_err(|e| errno(&e))?;
                overlay.forget(attr.ino, 1);
                opened
            }
            Err(refused) => return Err(*refused),
        };
        let mut done = 0;
        while done < data.len() {
            done += overlay.write(opened.handle, at + done as u64, &data[done..]).unwrap();
        }
        overlay.release(opened.handle);
        Ok(())
    }

    fn mkdir(&mut self, path: &Path, mode: u32) -> Result<(), Errno> {
        let (parent, name) = self.new_name(path)?;
        self.made(self.overlay.mkdir(&ROOT, parent.last(), name, mode))
    }

    fn symlink(&mut self, path: &Path, target: &OsStr) -> Result<(), Errno> {
        let (parent, name) = self.new_name(path)?;
        self.made(self.overlay.symlink(&ROOT, parent.last(), name, target))
    }

    fn mkfifo(&mut self, path: &Path) -> Result<(), Errno> {
        let (parent, name) = self.new_name(path)?;
        self.made(self.overlay.mknod(&ROOT, parent.last(), name, libc::S_IFIFO | 0o600, 0))
    }

    fn link(&mut self, from: &Path, to: &Path) -> Result<(), Errno> {
        let from = self.resolve(from)?;
        let (parent, name) = self.new_name(to)?;
        self.made(self.overlay.link(from.last(), parent.last(), name))
    }

    fn unlink(&mut self, path: &Path) -> Result<(), Errno> {
        let (parent, name) = self.parent(path)?;
        self.overlay.unlink(parent.last(), name).map_err(|e| errno(&e))
    }

    fn rmdir(&mut self, path: &Path) -> Result<(), Errno> {
        let (parent, name) = self.parent(path)?;
        self.overlay.rmdir(parent.last(), name).map_err(|e| errno(&e))
    }

    fn rename(&mut self, from: &Path, to: &Path, flags: RenameFlags) -> Result<(), Errno> {
        let (old, name) = self.parent(from)?;
        let (new, new_name) = self.parent(to)?;
        self.overlay
            .rename(&ROOT, old.last(), name, new.last(), new_name, flags)
            .map_err(|e| errno(&e))
    }

    fn truncate(&mut self, path: &Path, size: u64) -> Result<(), Errno> {
        match self.resolve(path)?.kind() {
            FileKind::Symlink => return Err(Errno::LOOP),
            FileKind::Directory => return Err(Errno::ISDIR),
            FileKind::Regular => {}
            // The plain side opens it first.
            _ => return Err(Errno::NXIO),
        }
        self.set(path, SetAttr { size: Some(size), ..SetAttr::default() })
    }

    fn chmod(&mut self, path: &Path, mode: u32) -> Result<(), Errno> {
        self.set(path, SetAttr { mode: Some(mode), ..SetAttr::default() })
    }

    fn chown(&mut self, path: &Path, uid: u32, gid: u32) -> Result<(), Errno> {
        self.set(path, SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() })
    }

    fn utime(&mut self, path: &Path, seconds: i64) -> Result<(), Errno> {
        let time = Some(SetTime::At(Timestamp { seconds, nanos: 5 }));
        self.set(path, SetAttr { atime: time, mtime: time, ..SetAttr::default() })
    }

    fn set_xattr(&mut self, path: &Path, name: &str, value: &[u8]) -> Result<(), Errno> {
        let chain = self.resolve(path)?;
        if !matches!(chain.kind(), FileKind::Directory | FileKind::Regular)
            && name.starts_with("user.")
        {
            // The VFS says so for any file system.
            return Err(Errno::PERM);
        }
        self.overlay
            .setxattr(chain.last(), OsStr::new(name), value, XattrFlags::empty())
            .map_err(|e| errno(&e))
    }

    fn remove_xattr(&mut self, path: &Path, name: &str) -> Result<(), Errno> {
        let chain = self.resolve(path)?;
        if !matches!(chain.kind(), FileKind::Directory | FileKind::Regular)
            && name.starts_with("user.")
        {
            return Err(Errno::PERM);
        }
        self.overlay.removexattr(chain.last(), OsStr::new(name)).map_err(|e| errno(&e))
    }

    fn tree(&mut self) -> Tree {
        let mut tree = Tree::new();
        let root = self.overlay.getattr(Ino::ROOT, None).unwrap();
        self.see(Path::new(""), &root, &mut tree);
        tree
    }
}

/// Kernel overlayfs over a loop mount of the archive, unmounted when dropped.
pub(crate) struct KernelMount {
    dir: PathBuf,
}

impl KernelMount {
    pub(crate) fn new(dir: &Path, index: &str) -> Self {
        Self::stacked(dir, &Stack::default(), index)
    }

    /// Of the layers in `dir` that `stack` names, the live one as upper.
    pub(crate) fn stacked(dir: &Path, stack: &Stack, index: &str) -> Self {
        for name in ["lower", "merged"] {
            std::fs::create_dir_all(dir.join(name)).unwrap();
        }
        let archive = source().archive.as_os_str();
        run(
            "mount",
            &["-o", "loop,ro"]
                .map(OsStr::new)
                .into_iter()
                .chain([archive, dir.join("lower").as_os_str()])
                .collect::<Vec<_>>(),
        );
        let mut options =
            OsString::from(format!("redirect_dir=on,metacopy=on,index={index},xino=off"));
        let frozen = stack.frozen().iter().rev().map(|serial| layer_dir(dir, *serial));
        let lowers: Vec<_> =
            frozen.chain([dir.join("lower")]).map(PathBuf::into_os_string).collect();
        let upper = layer_dir(dir, stack.live()).into_os_string();
        let work = dir.join("work").into_os_string();
        for (key, value) in
            [("lowerdir", lowers.join(OsStr::new(":"))), ("upperdir", upper), ("workdir", work)]
        {
            options.push(format!(",{key}="));
            options.push(value);
        }
        let mount = Self { dir: dir.to_owned() };
        let args = ["-t", "overlay", "overlay", "-o"].map(OsStr::new);
        let merged = dir.join("merged");
        run("mount", &args.into_iter().chain([&*options, merged.as_os_str()]).collect::<Vec<_>>());
        mount
    }

    pub(crate) fn plain(&self) -> Plain {
        Plain(self.dir.join("merged"))
    }
}

impl Drop for KernelMount {
    fn drop(&mut self) {
        for name in ["merged", "lower"] {
            let path = self.dir.join(name);
            let status = Command::new("umount").arg(&path).status().unwrap();
            if !status.success() {
                eprintln!("cannot unmount {path:?}");
            }
        }
    }
}

/// A little of everything that leaves marks in the upper.
pub(crate) fn change(side: &mut dyn Side) {
    let path = Path::new;
    let none = RenameFlags::empty();
    let create = libc::O_CREAT | libc::O_WRONLY;
    side.write(path("new"), 0, &bytes(9, 10_000), create).unwrap();
    side.chmod(path("a/b/a"), 0o4711).unwrap();
    side.rename(path("a/b/a"), path("renamed"), none).unwrap();
    side.rename(path("c/c"), path("a/moved"), none).unwrap();
    side.write(path("a/moved/a"), 2, b"written", libc::O_WRONLY).unwrap();
    side.unlink(path("a/moved/c")).unwrap();
    side.chmod(path("a/moved/b"), 0o640).unwrap();
    side.rename(path("c"), path("first"), none).unwrap();
    side.rename(path("first"), path("second"), none).unwrap();
    side.mkdir(path("c"), 0o700).unwrap();
    side.write(path("c/only"), 0, b"opaque", create).unwrap();
    side.rmdir(path("second/a")).unwrap();
    side.write(path("second/a"), 0, b"a file now", create).unwrap();
    side.unlink(path("a/b/c")).unwrap();
    side.rmdir(path("a/b/b")).unwrap();
    side.set_xattr(path("a/b"), "user.new", b"set").unwrap();
    side.set_xattr(path("a/b"), "trusted.overlay.opaque", b"y").unwrap();
    side.rename(path("a/b"), path("a/moved"), RenameFlags::EXCHANGE).unwrap();
    side.link(path("renamed"), path("a/again")).unwrap();
    side.symlink(path("a/link"), OsStr::new("nowhere/new")).unwrap();
}

/// What both must agree on. Kernel overlayfs without an index breaks hard links of the lower when
/// one is copied up, and shows directories and copies with other numbers, by design.
fn comparable(tree: Tree) -> Tree {
    let plain = |seen: Seen| Seen {
        ino: 0,
        // Written on both sides within the test, one after the other.
        mtime: match seen.mtime.seconds {
            1_000_000_000 => seen.mtime,
            _ => Default::default(),
        },
        ..seen
    };
    tree.into_iter().map(|(path, seen)| (path, plain(seen))).collect()
}

pub(crate) fn assert_same(left: Tree, right: Tree, what: &str) {
    let (left, right) = (comparable(left), comparable(right));
    let names = |tree: &Tree| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&left), names(&right), "{what}: names");
    for (path, seen) in &left {
        let other = &right[path];
        assert!(seen.contents == other.contents, "{what}: contents of {path:?}");
        let without = |seen: &Seen| Seen { contents: Vec::new(), ..seen.clone() };
        assert_eq!(without(seen), without(other), "{what}: {path:?}");
    }
}
