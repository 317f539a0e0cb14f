//! Random operations on a merged tree and on a plain directory that began with the same files: after
//! each, both answer the same errno and look the same, whatever was copied up, hidden, renamed,
//! linked or remounted on the way.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::overlay_support::{
    KernelMount, Merged, Others, Plain, Replica, Seen, Side, Stack, Tree, bytes, errno, freeze,
    merge, open_archive, open_layers, open_layers_over, open_overlay, open_stack_over, roll_back,
    run, source,
};
use crate::support::surrounding::{Need, Surrounding, cannot_run};
use proptest::prelude::*;
use rustix::fs::RenameFlags;
use rustix::io::Errno;
use thawfs::overlay::{ArchiveIdentity, Attr, Handle, Options, Overlay, Upper};
use thawfs::squashfs::Archive;
use thawfs::types::{FileKind, Ino, LayerSerial};

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Write {
        path: PathBuf,
        at: u64,
        len: usize,
        seed: u8,
        flags: i32,
    },
    Mkdir(PathBuf, u32),
    Symlink(PathBuf),
    Mkfifo(PathBuf),
    Link(PathBuf, PathBuf),
    Unlink(PathBuf),
    Rmdir(PathBuf),
    RemoveAll(PathBuf),
    Rename(PathBuf, PathBuf, RenameFlags),
    Truncate(PathBuf, u64),
    Chmod(PathBuf, u32),
    Chown(PathBuf, u32),
    Utime(PathBuf, i64),
    SetXattr(PathBuf, &'static str, u8),
    RemoveXattr(PathBuf, &'static str),
    /// Opens a file and keeps it open, and the kernel's reference to it.
    Hold(PathBuf),
    /// Writes through one of the files that are open.
    WriteHeld(usize, u64, usize, u8),
    Remount,
    Freeze,
    /// To one of the points.
    RollBack(usize),
    /// A second tree over the same layers.
    Fork,
    /// One of the others in one of those.
    InFork(usize, Box<Op>),
    /// Makes one of some layers, which is of so many from one on.
    Merge(usize, usize),
}

fn path() -> impl Strategy<Value = PathBuf> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..=3)
        .prop_map(|names| names.iter().collect())
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    let flags = prop::sample::select(vec![
        libc::O_RDWR,
        libc::O_WRONLY | libc::O_CREAT,
        libc::O_RDWR | libc::O_CREAT | libc::O_EXCL,
        libc::O_WRONLY | libc::O_TRUNC,
        libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC,
    ]);
    let rename = prop::sample::select(vec![
        RenameFlags::empty(),
        RenameFlags::empty(),
        RenameFlags::NOREPLACE,
        RenameFlags::EXCHANGE,
    ]);
    let xattr = || prop::sample::select(vec!["user.one", "user.dir", "trusted.overlay.opaque"]);
    prop_oneof![
        4 => (path(), 0_u64..400_000, 0_usize..9000, any::<u8>(), flags)
            .prop_map(|(path, at, len, seed, flags)| Op::Write { path, at, len, seed, flags }),
        3 => (path(), 0_u32..0o1000).prop_map(|(path, mode)| Op::Mkdir(path, mode)),
        1 => path().prop_map(Op::Symlink),
        1 => path().prop_map(Op::Mkfifo),
        3 => (path(), path()).prop_map(|(from, to)| Op::Link(from, to)),
        3 => path().prop_map(Op::Unlink),
        2 => path().prop_map(Op::Rmdir),
        1 => path().prop_map(Op::RemoveAll),
        8 => (path(), path(), rename).prop_map(|(from, to, flags)| Op::Rename(from, to, flags)),
        2 => (path(), prop_oneof![Just(0), 1_u64..500_000]).prop_map(|(p, n)| Op::Truncate(p, n)),
        2 => (path(), 0_u32..0o10000).prop_map(|(path, mode)| Op::Chmod(path, mode)),
        1 => (path(), 0_u32..70_000).prop_map(|(path, id)| Op::Chown(path, id)),
        1 => (path(), 0_i64..1_500_000_000).prop_map(|(path, time)| Op::Utime(path, time)),
        2 => (path(), xattr(), any::<u8>()).prop_map(|(p, name, v)| Op::SetXattr(p, name, v)),
        1 => (path(), xattr()).prop_map(|(path, name)| Op::RemoveXattr(path, name)),
        2 => path().prop_map(Op::Hold),
        2 => (any::<usize>(), 0_u64..400_000, 0_usize..9000, any::<u8>())
            .prop_map(|(which, at, len, seed)| Op::WriteHeld(which, at, len, seed)),
        2 => Just(Op::Remount),
    ]
}

/// The same, with freezes.
pub(crate) fn op_in_layers() -> impl Strategy<Value = Op> {
    prop_oneof![6 => op(), 1 => Just(Op::Freeze)]
}

/// The same, with merges.
fn op_with_merges() -> impl Strategy<Value = Op> {
    let merge = (any::<usize>(), any::<usize>()).prop_map(|(from, count)| Op::Merge(from, count));
    prop_oneof![10 => op(), 3 => Just(Op::Freeze), 2 => merge]
}

/// The same, with both.
fn op_with_all() -> impl Strategy<Value = Op> {
    prop_oneof![16 => op_with_merges(), 1 => any::<usize>().prop_map(Op::RollBack)]
}

/// The same, with rollbacks.
pub(crate) fn op_with_rollbacks() -> impl Strategy<Value = Op> {
    prop_oneof![8 => op_in_layers(), 1 => any::<usize>().prop_map(Op::RollBack)]
}

/// The same, with forks.
fn op_with_forks() -> impl Strategy<Value = Op> {
    let in_fork = (any::<usize>(), op()).prop_map(|(which, op)| Op::InFork(which, Box::new(op)));
    prop_oneof![12 => op_with_rollbacks(), 1 => Just(Op::Fork), 6 => in_fork]
}

/// An open file, on both sides.
struct Open {
    ino: Ino,
    handle: Handle,
    plain: std::fs::File,
    /// Whether a rollback has taken its names.
    is_apart: bool,
}

/// What the tree was when its topmost layer was frozen.
struct Point {
    layers: Vec<u32>,
    tree: Tree,
    /// A copy of the plain directory.
    plain: PathBuf,
}

/// A tree over layers of another, and a plain directory.
struct Forked {
    merged: Merged,
    plain: Plain,
    _dir: tempfile::TempDir,
}

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) merged: Merged,
    plain: Plain,
    held: Vec<Open>,
    replica: Replica,
    /// Plain identity (inode number and birth) → merged number, for as long as the file lives.
    numbers: HashMap<(u64, u128), (u64, u64)>,
    options: Options,
    started: i64,
    stack: Stack,
    points: Vec<Point>,
    /// The last serial that was given.
    serial: u32,
    forks: Vec<Forked>,
    has_rolled_back: bool,
    /// Another archive than that of the source, if it was put onto one.
    onto: Option<Arc<Archive>>,
    /// What it was before.
    others: Others,
}

impl World {
    pub(crate) fn new(options: Options) -> Self {
        // As the server runs.
        rustix::process::umask(rustix::fs::Mode::empty());
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        run("cp", &[OsStr::new("-a"), source().tree.as_os_str(), plain.as_os_str()]);
        let overlay = open_overlay(dir.path(), &source().archive, options);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let mut merged = Merged { overlay, plus: false };
        let tree = merged.tree();
        World {
            replica: Replica::new(&merged.overlay, tree),
            dir,
            merged,
            plain: Plain(plain),
            held: Vec::new(),
            numbers: HashMap::new(),
            options,
            // The clock that files are stamped with lags behind this one by a tick.
            started: now.as_secs() as i64 - 1,
            stack: Stack::default(),
            points: Vec::new(),
            serial: 0,
            forks: Vec::new(),
            has_rolled_back: false,
            onto: None,
            others: Others::default(),
        }
    }

    fn both<T: PartialEq + std::fmt::Debug>(&mut self, op: impl Fn(&mut dyn Side) -> T) {
        let plain = op(&mut self.plain);
        let merged = op(&mut self.merged);
        assert_eq!(merged, plain, "merged tree (left) and plain directory (right) disagree");
    }

    pub(crate) fn apply(&mut self, op: &Op) {
        match op {
            Op::Write { path, at, len, seed, flags } => {
                let data = bytes(*seed, *len);
                self.both(|side| side.write(path, *at, &data, *flags));
            }
            Op::Mkdir(path, mode) => self.both(|side| side.mkdir(path, *mode)),
            Op::Symlink(path) => self.both(|side| side.symlink(path, OsStr::new("nowhere/upper"))),
            Op::Mkfifo(path) => self.both(|side| side.mkfifo(path)),
            Op::Link(from, to) => self.both(|side| side.link(from, to)),
            Op::Unlink(path) => self.both(|side| side.unlink(path)),
            Op::Rmdir(path) => self.both(|side| side.rmdir(path)),
            Op::RemoveAll(path) => {
                let tree = self.plain.tree();
                let mut below: Vec<_> = tree.iter().filter(|(p, _)| p.starts_with(path)).collect();
                below.reverse();
                for (path, seen) in below {
                    self.both(|side| match seen.kind {
                        FileKind::Directory => side.rmdir(path),
                        _ => side.unlink(path),
                    });
                }
            }
            Op::Rename(from, to, flags) => {
                // The VFS answers for a directory and what is below it, before any file system.
                if (from != to || flags.contains(RenameFlags::NOREPLACE))
                    && (from.starts_with(to) || to.starts_with(from))
                {
                    return;
                }
                self.both(|side| side.rename(from, to, *flags));
            }
            Op::Truncate(path, size) => self.both(|side| side.truncate(path, *size)),
            Op::Chmod(path, mode) => self.both(|side| side.chmod(path, *mode)),
            Op::Chown(path, id) => self.both(|side| side.chown(path, *id, id + 1)),
            Op::Utime(path, time) => self.both(|side| side.utime(path, *time)),
            Op::SetXattr(path, name, value) => {
                self.both(|side| side.set_xattr(path, name, &[*value]));
            }
            Op::RemoveXattr(path, name) => self.both(|side| side.remove_xattr(path, name)),
            Op::Hold(path) => {
                let Ok(mut chain) = self.merged.resolve(path) else { return };
                if chain.kind() == FileKind::Regular {
                    let mut plain = std::fs::OpenOptions::new();
                    let plain = plain.read(true).write(true).open(self.plain.0.join(path)).unwrap();
                    let ino = chain.last();
                    let handle = self.merged.overlay.open(ino, libc::O_RDWR).unwrap().handle;
                    // The reference moves from the chain to the held file.
                    chain.attrs.pop();
                    self.held.push(Open { ino, handle, plain, is_apart: false });
                }
            }
            Op::WriteHeld(which, at, len, seed) => {
                // What is written to what was rolled away is kept with that, and not in the points here.
                let open = self.held.get(which % self.held.len().max(1));
                if let Some(open) = open.filter(|open| !open.is_apart) {
                    let data = bytes(*seed, *len);
                    std::os::unix::fs::FileExt::write_all_at(&open.plain, &data, *at).unwrap();
                    let written = self.merged.overlay.write(open.handle, *at, &data).unwrap();
                    assert_eq!(written, *len);
                }
            }
            Op::Remount => self.remount(),
            Op::Freeze => self.freeze(),
            Op::RollBack(which) => {
                if !self.points.is_empty() {
                    self.roll_back(which % self.points.len());
                }
            }
            Op::Fork => self.fork(),
            Op::InFork(which, op) => {
                let is_plain = !matches!(&**op, Op::Hold(_) | Op::WriteHeld(..) | Op::Remount);
                if is_plain && !self.forks.is_empty() {
                    let which = which % self.forks.len();
                    self.swap(which);
                    self.apply(op);
                    self.swap(which);
                    self.check_fork(which);
                }
            }
            Op::Merge(from, count) => {
                if let Some(last) =
                    self.stack.frozen().len().checked_sub(1).filter(|last| *last > 0)
                {
                    let from = from % last;
                    self.merge(from, from + 1 + count % (last - from));
                }
            }
        }
    }

    /// At what is now, in a directory of its own.
    fn fork(&mut self) {
        self.freeze();
        let below = self.stack.frozen().to_vec();
        let serials: Vec<_> = below.iter().copied().map(LayerSerial).collect();
        match self.merged.overlay.share(&serials) {
            Err(error) if errno(&error) == Errno::TXTBSY => {
                assert!(self.held.iter().any(|open| open.is_apart), "{error}");
                return;
            }
            done => done.unwrap(),
        }
        let dir = tempfile::tempdir().unwrap();
        let [upper, work, plain] = ["upper", "work", "plain"].map(|name| dir.path().join(name));
        for dir in [&upper, &work] {
            std::fs::create_dir(dir).unwrap();
        }
        run("cp", &[OsStr::new("-a"), self.plain.0.as_os_str(), plain.as_os_str()]);
        // The numbers are each one's own.
        let live = LayerSerial(below.last().unwrap() + 1);
        let upper = Upper::open(&upper, &work).unwrap().with_serial(live);
        let layers = open_layers(self.dir.path(), &below);
        let archive = open_archive(&source().archive);
        let overlay = Overlay::stacked(archive, layers, Some(upper), self.options).unwrap();
        let mut merged = Merged { overlay, plus: false };
        compare(&merged.tree(), &self.merged.tree());
        self.forks.push(Forked { merged, plain: Plain(plain), _dir: dir });
    }

    /// Has what is said of the tree said of a fork, or of the tree again.
    fn swap(&mut self, which: usize) {
        let fork = &mut self.forks[which];
        std::mem::swap(&mut self.merged, &mut fork.merged);
        std::mem::swap(&mut self.plain, &mut fork.plain);
    }

    fn check_fork(&mut self, which: usize) {
        let fork = &mut self.forks[which];
        let (merged, plain) = (fork.merged.tree(), fork.plain.tree());
        assert_eq!(partition(&merged), partition(&plain), "names of one inode in a fork");
        compare_since(merged, plain, self.started);
        assert_eq!(fork.merged.overlay.node_count(), 1, "nodes of a fork are left");
    }

    fn check_forks(&mut self) {
        (0..self.forks.len()).for_each(|which| self.check_fork(which));
    }

    fn freeze(&mut self) {
        let tree = self.merged.tree();
        let layers = self.stack.0.clone();
        self.serial += 1;
        freeze(&self.merged.overlay, self.dir.path(), &mut self.stack, self.serial);
        // A freeze is not seen.
        compare(&self.merged.tree(), &tree);
        let plain = self.dir.path().join(format!("point-{}", self.serial));
        run("cp", &[OsStr::new("-a"), self.plain.0.as_os_str(), plain.as_os_str()]);
        self.points.push(Point { layers, tree, plain });
    }

    /// What is rolled away is a point, too, and can be taken back.
    fn roll_back(&mut self, which: usize) {
        self.has_rolled_back = true;
        let before = self.merged.tree();
        let away = self.dir.path().join(format!("away-{}", self.serial));
        let layers = self.stack.0.clone();
        self.serial += 1;
        let Point { layers: to, tree, plain } = &self.points[which];
        let done = roll_back(&self.merged.overlay, self.dir.path(), to, self.serial);
        self.stack.0 = to.iter().copied().chain([self.serial]).collect();
        compare(&self.merged.tree(), tree);
        std::fs::rename(&self.plain.0, &away).unwrap();
        run("cp", &[OsStr::new("-a"), plain.as_os_str(), self.plain.0.as_os_str()]);
        // What is open and was changed is another file than what has its names now.
        let (apart, others): (Vec<Open>, Vec<Open>) =
            self.held.drain(..).partition(|open| open.is_apart || done.files.contains(&open.ino));
        self.held = apart.into_iter().map(|open| Open { is_apart: true, ..open }).collect();
        for open in others {
            self.merged.overlay.release(open.handle);
            self.merged.overlay.forget(open.ino, 1);
        }
        self.points.push(Point { layers, tree: before, plain: away });
        self.numbers.clear();
        let tree = self.merged.tree();
        self.replica = Replica::new(&self.merged.overlay, tree);
    }

    /// Makes one layer of those of the stack from `first` to `last`. Points between them are forgotten.
    fn merge(&mut self, first: usize, last: usize) {
        let run = self.stack.frozen()[first..=last].to_vec();
        self.points.retain(|point| {
            let has = |serial: &&u32| point.layers.contains(serial);
            let count = run.iter().filter(has).count();
            count == 0 || count == run.len()
        });
        let (tree, attrs) = (self.merged.tree(), self.attrs());
        let merged = merge(&self.merged.overlay, self.dir.path(), &run);
        compare(&self.merged.tree(), &tree);
        let after = self.attrs();
        for (path, attr) in &attrs {
            assert_eq!(after.get(path), Some(attr), "{path:?} was seen to be merged");
        }
        let has_to_be = Surrounding::can_mark_all() && !self.has_rolled_back;
        assert!(merged || !has_to_be, "{run:?} were not merged");
        if merged {
            let top = run.last().unwrap();
            let stacks = self.points.iter_mut().map(|point| &mut point.layers);
            for layers in stacks.chain([&mut self.stack.0]) {
                layers.retain(|layer| layer == top || !run.contains(layer));
            }
        }
    }

    /// What stat(2) shows, but for when it was read, and the sizes of directories.
    fn attrs(&mut self) -> BTreeMap<PathBuf, Attr> {
        let tree = self.merged.tree();
        let attr = |path: &PathBuf| {
            let chain = self.merged.resolve(path).unwrap();
            let mut attr = *chain.attrs.last().unwrap();
            // A node may have another id each time it is looked up, if a rollback has taken its number.
            (attr.ino, attr.atime, attr.blocks) = (attr.number, attr.mtime, 0);
            if attr.kind == FileKind::Directory {
                // One that merges with others has one link, which is not promised.
                (attr.size, attr.nlink) = (0, 1);
            }
            (path.clone(), attr)
        };
        tree.keys().filter(|path| !path.as_os_str().is_empty()).map(attr).collect()
    }

    /// Each layer still shows, over those below it, what the tree was when it was frozen.
    fn check_points(&self) {
        for (index, point) in self.points.iter().enumerate() {
            let layers = open_layers(self.dir.path(), &point.layers);
            let archive = open_archive(&source().archive);
            let overlay = Overlay::stacked(archive, layers, None, self.options).unwrap();
            let mut then = Merged { overlay, plus: index % 2 == 0 };
            compare(&then.tree(), &point.tree);
            assert_eq!(then.overlay.node_count(), 1);
        }
    }

    /// The points, each opened, with what the tree was.
    pub(crate) fn open_points(&self) -> Vec<(Merged, Tree)> {
        let open = |point: &Point| {
            let layers = open_layers(self.dir.path(), &point.layers);
            let archive = open_archive(&source().archive);
            let overlay = Overlay::stacked(archive, layers, None, self.options).unwrap();
            (Merged { overlay, plus: false }, point.tree.clone())
        };
        self.points.iter().map(open).collect()
    }

    fn archive(&self) -> Arc<Archive> {
        self.onto.clone().unwrap_or_else(|| open_archive(&source().archive))
    }

    /// The frozen layers below the live upper.
    pub(crate) fn frozen(&self) -> &[u32] {
        self.stack.frozen()
    }

    /// Takes `archive`, which shows what the lowest `count` layers show, for these, as `mount --rebase` does.
    pub(crate) fn rebase(&mut self, archive: Arc<Archive>, count: usize) {
        self.freeze();
        self.unmount();
        self.others.archives.push(ArchiveIdentity::of(&self.archive()));
        self.onto = Some(archive);
        self.serial += 1;
        // What was made over the old archive is not what is live now.
        self.stack.0.drain(..count);
        *self.stack.0.last_mut().unwrap() = self.serial;
        self.others.since = self.serial;
        self.points.clear();
        self.numbers.clear();
        self.remount();
        self.check(0);
    }

    /// What the lowest `count` layers show.
    pub(crate) fn point_of(&self, count: usize) -> Overlay {
        let layers = open_layers_over(self.dir.path(), &self.frozen()[..count], &self.others);
        Overlay::stacked(self.archive(), layers, None, self.options).unwrap()
    }

    /// Does `op`, and checks all.
    pub(crate) fn does(&mut self, op: &Op, step: usize) {
        self.apply(op);
        self.check(step);
    }

    /// The layers of each point, the bottom one first.
    pub(crate) fn point_layers(&self) -> Vec<Vec<u32>> {
        self.points.iter().map(|point| point.layers.clone()).collect()
    }

    fn let_go(&mut self) {
        for open in self.held.drain(..) {
            self.merged.overlay.release(open.handle);
            self.merged.overlay.forget(open.ino, 1);
        }
        assert_eq!(self.merged.overlay.node_count(), 1, "nodes are left that nobody refers to");
    }

    /// Puts another tree in the place of this one, which gives up its lock on the upper.
    pub(crate) fn unmount(&mut self) {
        self.let_go();
        let nothing = tempfile::tempdir().unwrap();
        self.merged.overlay = open_overlay(nothing.path(), &source().archive, self.options);
    }

    pub(crate) fn remount(&mut self) {
        self.unmount();
        let over = (self.archive(), &self.others);
        self.merged.overlay = open_stack_over(self.dir.path(), over, &self.stack, self.options);
        let tree = self.merged.tree();
        self.replica = Replica::new(&self.merged.overlay, tree);
    }

    /// Applies `op` to the plain directory and the kernel's mount, where the answers may differ:
    /// what the kernel's overlay refuses is done to neither.
    pub(crate) fn apply_to_kernel(&mut self, kernel: &mut Plain, op: &Op) {
        let mut once = |op: &dyn Fn(&mut dyn Side) -> Result<(), rustix::io::Errno>| {
            if op(kernel).is_ok() {
                op(&mut self.plain).unwrap();
            }
        };
        match op {
            Op::Write { path, at, len, seed, flags } => {
                let data = bytes(*seed, *len);
                once(&|side| side.write(path, *at, &data, *flags));
            }
            Op::Mkdir(path, mode) => once(&|side| side.mkdir(path, *mode)),
            Op::Symlink(path) => once(&|side| side.symlink(path, OsStr::new("nowhere/kernel"))),
            Op::Link(from, to) => once(&|side| side.link(from, to)),
            Op::Unlink(path) => once(&|side| side.unlink(path)),
            Op::Rmdir(path) => once(&|side| side.rmdir(path)),
            Op::Rename(from, to, flags) => once(&|side| side.rename(from, to, *flags)),
            Op::Chmod(path, mode) => once(&|side| side.chmod(path, *mode)),
            Op::Truncate(path, size) => once(&|side| side.truncate(path, *size)),
            _ => {}
        }
    }

    fn check_kernel(&mut self, kernel: &mut Plain) {
        let (mut seen, mut plain) = (kernel.tree(), self.plain.tree());
        for tree in [&mut seen, &mut plain] {
            for seen in tree.values_mut() {
                (seen.ino, seen.mtime) = Default::default();
            }
        }
        compare(&seen, &plain);
    }

    /// Gives the plain files the times that the kernel shows of its own: where it refuses to rename, it has
    /// copied up before, and so has changed a directory. We are to show what it shows.
    fn take_times(&mut self, kernel: &mut Plain) {
        for (path, seen) in kernel.tree() {
            let time = rustix::fs::Timespec {
                tv_sec: seen.mtime.seconds,
                tv_nsec: seen.mtime.nanos.into(),
            };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            let path = self.plain.0.join(path);
            let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).unwrap();
        }
    }

    fn check(&mut self, step: usize) {
        self.merged.plus = step.is_multiple_of(2);
        let (mut merged, mut plain) = (self.merged.tree(), self.plain.tree());
        self.replica.check(&merged);
        self.check_numbers(&merged, &plain);
        for open in &self.held {
            use std::os::unix::fs::{FileExt, MetadataExt};
            let meta = open.plain.metadata().unwrap();
            let mut expected = vec![0; meta.len() as usize];
            open.plain.read_exact_at(&mut expected, 0).unwrap();
            let read = self.merged.overlay.read(open.handle, 0, 1 << 21).unwrap();
            assert!(read == expected, "an open file of {} bytes reads otherwise", expected.len());
            let attr = self.merged.overlay.getattr(open.ino, Some(open.handle)).unwrap();
            assert_eq!(attr.size, meta.len(), "open file");
            assert!(open.is_apart || u64::from(attr.nlink) == meta.nlink(), "open file");
        }
        if self.onto.is_some() {
            for tree in [&mut merged, &mut plain] {
                // An archive has whole seconds.
                tree.values_mut().for_each(|seen| seen.mtime.nanos = 0);
            }
        }
        compare_since(merged, plain, self.started);
    }

    /// Hard links share a number, others do not, and a file keeps its number while it lives.
    fn check_numbers(&mut self, merged: &Tree, plain: &Tree) {
        assert_eq!(partition(merged), partition(plain), "names of one inode");
        let mut alive = HashMap::new();
        for (path, seen) in plain {
            let Some(in_merged) = merged.get(path) else { continue };
            let chain = self.merged.resolve(path).unwrap();
            let now = (in_merged.ino, chain.attrs.last().map_or(0, |attr| attr.generation));
            let path = self.plain.0.join(path);
            let born = path.symlink_metadata().unwrap().created().unwrap();
            let born = born.duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
            let identity = (seen.ino, born);
            if let Some(before) = self.numbers.get(&identity) {
                assert_eq!(now, *before, "{path:?} has changed its number");
            }
            alive.insert(identity, now);
        }
        self.numbers = alive;
    }
}

fn partition(tree: &Tree) -> BTreeSet<BTreeSet<&Path>> {
    let mut by_ino: BTreeMap<u64, BTreeSet<&Path>> = BTreeMap::new();
    for (path, seen) in tree {
        by_ino.entry(seen.ino).or_default().insert(path);
    }
    by_ino.into_values().collect()
}

/// What was changed since `started` was changed on both sides, one after the other.
fn compare_since(mut merged: Tree, mut plain: Tree, started: i64) {
    for (path, seen) in &mut merged {
        let other = plain.get_mut(path);
        if let Some(other) = other
            && other.mtime.seconds >= started
        {
            assert!(seen.mtime.seconds >= started, "{path:?} was changed: {seen:?}");
            seen.mtime = other.mtime;
        }
    }
    for tree in [&mut merged, &mut plain] {
        for seen in tree.values_mut() {
            seen.ino = 0;
        }
    }
    compare(&merged, &plain);
}

fn compare(merged: &Tree, plain: &Tree) {
    let names = |tree: &Tree| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(merged), names(plain), "names in the merged tree (left)");
    for (path, expected) in plain {
        let seen = &merged[path];
        assert!(seen.contents == expected.contents, "contents of {path:?} differ");
        let without = |seen: &Seen| Seen { contents: Vec::new(), ..seen.clone() };
        assert_eq!(without(seen), without(expected), "{path:?} in the merged tree (left)");
    }
}

/// Checks after every operation, and after a last remount.
fn play(ops: &[Op], options: Options) {
    let mut world = World::new(options);
    world.check(0);
    for (step, op) in ops.iter().enumerate() {
        world.apply(op);
        world.check(step);
    }
    world.remount();
    world.check(1);
}

/// As [`play`], with a look at what each layer has at the end, and the kernel's.
fn play_in_layers(ops: &[Op], options: Options) {
    let mut world = World::new(options);
    for (step, op) in ops.iter().enumerate() {
        world.apply(op);
        world.check(step);
    }
    world.check_points();
    world.check_forks();
    world.remount();
    world.check(1);
    world.check_points();
    world.check_forks();
    // What the index keeps is for an upper; layers have no other names than their own.
    world.freeze();
    world.unmount();
    let kernel = KernelMount::stacked(world.dir.path(), &world.stack, "off");
    world.check_kernel(&mut kernel.plain());
}

/// Then hands the upper to the kernel, goes on there, and takes it back.
fn play_with_kernel(ops: &[Op], later: &[Op], options: Options) {
    let mut world = World::new(options);
    for op in ops {
        world.apply(op);
    }
    world.unmount();
    let kernel = KernelMount::new(world.dir.path(), "on");
    let mut seen = kernel.plain();
    world.check_kernel(&mut seen);
    for op in later {
        world.apply_to_kernel(&mut seen, op);
    }
    world.check_kernel(&mut seen);
    world.take_times(&mut seen);
    drop((seen, kernel));
    world.remount();
    // The kernel numbers its copies otherwise.
    world.numbers.clear();
    world.check(1);
}

/// `PROPTEST_CASES` asks for more.
pub(crate) fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    ProptestConfig { cases, max_shrink_iters: 2000, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_merged_tree_behaves_as_a_plain_directory(
        ops in prop::collection::vec(op(), 1..60),
        metacopy in any::<bool>(),
    ) {
        play(&ops, Options { metacopy, ..Options::default() });
    }

    #[test]
    fn an_upper_goes_to_the_kernel_and_comes_back(
        ops in prop::collection::vec(op(), 1..40),
        later in prop::collection::vec(op(), 0..20),
    ) {
        if !cannot_run("an_upper_goes_to_the_kernel_and_comes_back", &[Need::KernelUpper]) {
            play_with_kernel(&ops, &later, Options::default());
        }
    }
}

/// Fewer: each looks at all layers, and at a kernel's mount.
fn config_in_layers() -> ProptestConfig {
    let config = config();
    ProptestConfig { cases: (config.cases * 2).div_ceil(5), ..config }
}

proptest! {
    #![proptest_config(config_in_layers())]

    #[test]
    fn frozen_layers_hold_what_was_and_the_live_upper_what_is(
        ops in prop::collection::vec(op_in_layers(), 1..60),
        metacopy in any::<bool>(),
    ) {
        if !cannot_run("frozen_layers_hold_what_was", &[Need::KernelUpper]) {
            play_in_layers(&ops, Options { metacopy, ..Options::default() });
        }
    }

    #[test]
    fn a_rollback_brings_back_what_was_and_what_is_open_stays(
        ops in prop::collection::vec(op_with_rollbacks(), 1..60),
        metacopy in any::<bool>(),
    ) {
        if !cannot_run("a_rollback_brings_back_what_was", &[Need::KernelUpper]) {
            play_in_layers(&ops, Options { metacopy, ..Options::default() });
        }
    }

    #[test]
    fn layers_that_become_one_show_what_they_showed(
        ops in prop::collection::vec(op_with_merges(), 1..60),
        metacopy in any::<bool>(),
    ) {
        if !cannot_run("layers_that_become_one", &[Need::KernelUpper]) {
            play_in_layers(&ops, Options { metacopy, ..Options::default() });
        }
    }

    #[test]
    fn layers_become_one_between_rollbacks(
        ops in prop::collection::vec(op_with_all(), 1..60),
        metacopy in any::<bool>(),
    ) {
        if !cannot_run("layers_become_one_between_rollbacks", &[Need::KernelUpper]) {
            play_in_layers(&ops, Options { metacopy, ..Options::default() });
        }
    }
}

/// Fewer still: each looks at forks, too.
fn config_with_forks() -> ProptestConfig {
    let config = config();
    ProptestConfig { cases: config.cases.div_ceil(5), ..config }
}

proptest! {
    #![proptest_config(config_with_forks())]

    #[test]
    fn a_fork_and_what_it_was_forked_from_go_each_its_own_way(
        ops in prop::collection::vec(op_with_forks(), 1..60),
        metacopy in any::<bool>(),
    ) {
        if !cannot_run("a_fork_and_what_it_was_forked_from", &[Need::KernelUpper]) {
            play_in_layers(&ops, Options { metacopy, ..Options::default() });
        }
    }
}

/// What random operations have found.
#[test]
fn what_was_wrong_once_stays_right() {
    let path = PathBuf::from;
    let none = RenameFlags::empty();
    for ops in [
        // The data of a metacopy whose new directory is of no other layer.
        vec![Op::Truncate(path("b"), 1), Op::Freeze, Op::Rename(path("b"), path("c/a/a"), none)],
        // A file of several names, one of which is open and was rolled away.
        vec![
            Op::Freeze,
            Op::Hold(path("b")),
            Op::Unlink(path("b")),
            Op::RollBack(0),
            Op::Chmod(path("b"), 0),
            Op::RollBack(0),
        ],
    ] {
        if !cannot_run("what_was_wrong_once_stays_right", &[Need::KernelUpper]) {
            play_in_layers(&ops, Options::default());
        }
    }
}

/// Far more layers than random operations make: what each has is known by then, and has to stay right with new ones, and
/// with others after a rollback.
#[test]
fn a_directory_of_many_layers_has_what_the_topmost_with_a_name_says() {
    if cannot_run("a_directory_of_many_layers", &[Need::KernelUpper]) {
        return;
    }
    let path = |path: &str| PathBuf::from(path);
    let mut world = World::new(Options::default());
    let mut step = 0;
    let mut change = |world: &mut World, n: usize| {
        let name = |n: usize| path(&format!("many/{}", n % 13));
        let write = |path, n: usize| Op::Write {
            path,
            at: 0,
            len: n * 100,
            seed: n as u8,
            flags: libc::O_WRONLY | libc::O_CREAT,
        };
        let none = RenameFlags::empty();
        let ops = [
            write(name(n), n),
            Op::Chmod(name(n * 5), 0o600 + n as u32),
            Op::Unlink(name(n * 3 + 1)),
            Op::Rename(name(n * 7), name(n * 7 + 6), none),
            Op::Mkdir(path(&format!("many/dir-{}", n % 5)), 0o700),
            write(path(&format!("many/dir-{}/{n}", n % 5)), 1),
            Op::Rename(path(&format!("many/dir-{}", n % 5)), path("many/dir-moved"), none),
            Op::RemoveAll(path(&format!("many/dir-{}", (n + 3) % 5))),
            write(path(&format!("top-{}", n % 9)), n),
        ];
        for op in &ops {
            world.apply(op);
        }
        step += 1;
        world.check(step);
        world.freeze();
    };
    world.apply(&Op::Mkdir(path("many"), 0o755));
    (0..48).for_each(|n| change(&mut world, n));
    for to in [20, 47, 3, 30] {
        world.roll_back(to);
        (50..56).for_each(|n| change(&mut world, n));
    }
    world.remount();
    world.check(0);
    world.check_points();
}
