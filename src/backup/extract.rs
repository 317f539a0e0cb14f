//! Unpacking an archive into ordinary files.
//!
//! One thread walks the archive and makes directories, links and special files; several copy the
//! contents of regular files. All of it happens in a directory beside the target that takes the
//! target's place at the end, so the target is complete or as it was.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};

use super::staging::Staging;
use crate::failure::{Code, Failure};
use crate::squashfs::{Archive, DirCursor, DirReader, Inode, Xattr};
use crate::types::{FileKind, FileOffset, InodeRef};

/// How much of a file is read and written at a time.
const COPY_BYTES: usize = 1 << 20;

/// What to unpack, and how.
#[derive(Clone, Debug)]
pub struct ExtractOptions {
    /// The path inside the archive; a directory's contents, or one file.
    pub path: Vec<u8>,
    /// Files copied at a time.
    pub jobs: u16,
    /// Also unpack what gives rights to whoever uses it: see [`LeftOut`].
    pub preserve_privileged: bool,
}

impl Default for ExtractOptions {
    /// All of it, by eight threads: they wait for the network more than they work.
    fn default() -> Self {
        Self { path: b"/".to_vec(), jobs: 8, preserve_privileged: false }
    }
}

/// What was unpacked so far; read it from another thread while it goes on.
#[derive(Debug, Default)]
pub struct ExtractProgress {
    /// Bytes of file contents.
    pub bytes: AtomicU64,
    /// Files of all kinds.
    pub files: AtomicU64,
    /// Owners, devices and attributes that an ordinary user may not set, and were left out.
    pub withheld: AtomicU64,
    /// What was left out because it was not asked for.
    pub left_out: LeftOut,
}

/// What is not unpacked unless [`ExtractOptions::preserve_privileged`] asks for it: whoever made the
/// archive is not to give anybody rights on this machine.
#[derive(Debug, Default)]
pub struct LeftOut {
    /// Regular files that were to have a setuid or setgid bit, and are without. On directories, setgid
    /// only says whose the files in them are: there it stays.
    pub set_ids: AtomicU64,
    /// Files that were to have capabilities (`security.capability`), and have none.
    pub capabilities: AtomicU64,
    /// Names of block and character devices, which are not there.
    pub devices: AtomicU64,
}

/// Unpacks a part of `archive` into `target`, which must not exist or be empty.
///
/// # Errors
/// When something cannot be read or written. The target is then as it was.
pub fn extract(
    archive: &Archive,
    target: &Path,
    options: &ExtractOptions,
    progress: &ExtractProgress,
) -> Result<(), Failure> {
    // What is not there leaves no directory behind.
    find(archive, &options.path)?;
    extract_staged(archive, Staging::create(target)?, options, progress)
}

/// As [`extract`], by way of a directory that is there already.
///
/// # Errors
/// As [`extract`].
pub fn extract_staged(
    archive: &Archive,
    staging: Staging,
    options: &ExtractOptions,
    progress: &ExtractProgress,
) -> Result<(), Failure> {
    let start = find(archive, &options.path)?;
    let tree = Tree {
        archive,
        progress,
        root: Arc::new(staging.directory()?),
        prefix: match start.kind {
            FileKind::Directory => options.path.len(),
            _ => options.path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1),
        },
        privileged: rustix::process::geteuid().is_root(),
        preserve_privileged: options.preserve_privileged,
        failed: AtomicBool::new(false),
        failure: Mutex::new(None),
    };
    let (sender, jobs) = crossbeam_channel::bounded::<Job>(4 * usize::from(options.jobs));
    std::thread::scope(|scope| {
        for _ in 0..options.jobs {
            let jobs = jobs.clone();
            let tree = &tree;
            scope.spawn(move || {
                for job in jobs {
                    if !tree.failed.load(Ordering::Relaxed) {
                        tree.note(&job.path, tree.fill(&job));
                    }
                }
            });
        }
        drop(jobs);
        tree.make_all(start, &options.path, &sender);
        drop(sender);
    });
    match tree.failure.into_inner() {
        Some(failure) => Err(failure),
        None => staging.publish(),
    }
}

/// Finds `path` in the archive, without following symlinks.
///
/// # Errors
/// [`Code::NotFound`] where there is nothing by that name.
pub fn find(archive: &Archive, path: &[u8]) -> Result<Inode, Failure> {
    let mut inode = archive.inode(archive.root())?;
    for name in path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")) {
        let entry = match inode.kind {
            FileKind::Directory => archive.lookup(&inode, name)?,
            _ => None,
        };
        let Some(entry) = entry else {
            let shown = String::from_utf8_lossy(path);
            return Err(Failure::new(Code::NotFound, format!("{shown} is not in the archive")));
        };
        inode = archive.inode(entry.inode)?;
    }
    Ok(inode)
}

/// A regular file to be filled.
struct Job {
    inode: Inode,
    file: OwnedFd,
    /// For messages.
    path: Vec<u8>,
}

/// A directory that is being unpacked.
struct Level<'a> {
    entries: DirReader<'a>,
    directory: Arc<OwnedFd>,
    inode: Inode,
    path: Vec<u8>,
}

struct Tree<'a> {
    archive: &'a Archive,
    progress: &'a ExtractProgress,
    /// The directory all of it goes into.
    root: Arc<OwnedFd>,
    /// How much of a path inside the archive is not part of the path below `root`.
    prefix: usize,
    /// Whether this process may set owners and all that.
    privileged: bool,
    /// See [`ExtractOptions::preserve_privileged`].
    preserve_privileged: bool,
    failed: AtomicBool,
    failure: Mutex<Option<Failure>>,
}

/// A step that failed, before it is known at which path.
enum Problem {
    Archive(crate::squashfs::Error),
    System(&'static str, rustix::io::Errno),
}

impl From<crate::squashfs::Error> for Problem {
    fn from(error: crate::squashfs::Error) -> Self {
        Self::Archive(error)
    }
}

fn sys(call: &'static str) -> impl FnOnce(rustix::io::Errno) -> Problem {
    move |errno| Problem::System(call, errno)
}

impl Tree<'_> {
    /// Keeps the first failure and stops the others.
    fn note(&self, path: &[u8], result: Result<(), Problem>) {
        let Err(problem) = result else { return };
        self.failed.store(true, Ordering::Relaxed);
        let shown = String::from_utf8_lossy(path).into_owned();
        let failure = match problem {
            Problem::Archive(error) => {
                let mut failure = Failure::from(error);
                failure.message = format!("{shown}: {}", failure.message);
                failure
            }
            Problem::System(call, errno) => {
                Failure::new(Code::Failed, format!("{call} {shown}: {errno}"))
            }
        };
        self.failure.lock().get_or_insert(failure);
    }

    fn make_all(&self, start: Inode, path: &[u8], jobs: &crossbeam_channel::Sender<Job>) {
        let root = Arc::clone(&self.root);
        let mut links = HashMap::new();
        if start.kind != FileKind::Directory {
            let name = path.rsplit(|byte| *byte == b'/').find(|name| !name.is_empty());
            let made = self.make(&start, &root, name.unwrap_or_default(), path, &mut links, jobs);
            return self.note(path, made.map(|_| ()));
        }
        let level = |inode: Inode, directory, path| {
            let entries = self.archive.read_dir(&inode, DirCursor::START)?;
            Ok::<_, Problem>(Level { entries, directory, inode, path })
        };
        let mut levels = Vec::new();
        match level(start, root, path.to_vec()) {
            Ok(level) => levels.push(level),
            Err(problem) => self.note(path, Err(problem)),
        }
        while let Some(top) = levels.last_mut() {
            if self.failed.load(Ordering::Relaxed) {
                return;
            }
            let Some(entry) = top.entries.next() else {
                // Last, because whatever is made in a directory changes its times.
                let finished = self.finish(&top.inode, top.directory.as_fd());
                self.note(&top.path, finished);
                levels.pop();
                continue;
            };
            let mut path = top.path.clone();
            let made = entry.map_err(Problem::from).and_then(|entry| {
                if path.last() != Some(&b'/') && !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(&entry.name);
                let inode = self.archive.inode(entry.inode)?;
                let made =
                    self.make(&inode, &top.directory, &entry.name, &path, &mut links, jobs)?;
                made.map(|directory| level(inode, Arc::new(directory), path.clone())).transpose()
            });
            match made {
                Ok(Some(level)) if levels.len() < MAX_DEPTH => levels.push(level),
                Ok(Some(_)) => {
                    let error = Problem::System("descend into", rustix::io::Errno::LOOP);
                    self.note(&path, Err(error));
                }
                Ok(None) => {}
                Err(problem) => self.note(&path, Err(problem)),
            }
        }
    }

    /// Makes one file. A directory is opened for what is to go into it; a regular file is left to
    /// the copying threads.
    fn make(
        &self,
        inode: &Inode,
        directory: &Arc<OwnedFd>,
        name: &[u8],
        path: &[u8],
        links: &mut HashMap<InodeRef, Vec<u8>>,
        jobs: &crossbeam_channel::Sender<Job>,
    ) -> Result<Option<OwnedFd>, Problem> {
        if matches!(inode.kind, FileKind::BlockDevice | FileKind::CharDevice)
            && !self.preserve_privileged
        {
            self.progress.left_out.devices.fetch_add(1, Ordering::Relaxed);
            return Ok(None);
        }
        self.progress.files.fetch_add(1, Ordering::Relaxed);
        let at = directory.as_fd();
        if inode.kind != FileKind::Directory && inode.nlink > 1 {
            let below_root = path.get(self.prefix..).unwrap_or_default();
            let below_root = below_root.strip_prefix(b"/").unwrap_or(below_root);
            if let Some(first) = links.get(&inode.reference) {
                rustix::fs::linkat(&self.root, first.as_slice(), at, name, AtFlags::empty())
                    .map_err(sys("link"))?;
                return Ok(None);
            }
            links.insert(inode.reference, below_root.to_vec());
        }
        match inode.kind {
            FileKind::Directory => {
                rustix::fs::mkdirat(at, name, Mode::RWXU).map_err(sys("mkdir"))?;
                return Ok(Some(open_directory(at, name).map_err(sys("open"))?));
            }
            FileKind::Regular => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let file = rustix::fs::openat(at, name, flags, Mode::RUSR | Mode::WUSR)
                    .map_err(sys("create"))?;
                let job = Job { inode: inode.clone(), file, path: path.to_vec() };
                // Fails only where every copying thread has panicked, which the scope reports.
                let _ = jobs.send(job);
                return Ok(None);
            }
            FileKind::Symlink => {
                let target = self.archive.read_link(inode)?;
                rustix::fs::symlinkat(target.as_slice(), at, name).map_err(sys("symlink"))?;
            }
            FileKind::BlockDevice | FileKind::CharDevice | FileKind::Fifo | FileKind::Socket => {
                let kind = FileType::from_raw_mode(inode.kind.mode_bits());
                let made = rustix::fs::mknodat(at, name, kind, Mode::RUSR | Mode::WUSR, inode.rdev);
                if !self.allowed(made, "mknod")? {
                    // Its other names are no links to it.
                    links.remove(&inode.reference);
                    return Ok(None);
                }
            }
        }
        self.finish_named(inode, directory, name)?;
        Ok(None)
    }

    /// Copies a regular file's contents, holes left out.
    fn fill(&self, job: &Job) -> Result<(), Problem> {
        let Job { inode, file, .. } = job;
        let mut at = FileOffset(0);
        while let Some(data) = self.archive.seek_data(inode, at)? {
            at = data;
            let end = self.archive.seek_hole(inode, at)?.map_or(inode.size, |hole| hole.0);
            while at.0 < end {
                let len = (end - at.0).min(COPY_BYTES as u64) as usize;
                let bytes = self.archive.read(inode, at, len)?;
                if bytes.is_empty() {
                    break;
                }
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let written = rustix::io::pwrite(file, rest, at.0).map_err(sys("write"))?;
                    rest = rest.get(written..).unwrap_or_default();
                    at.0 += written as u64;
                    self.progress.bytes.fetch_add(written as u64, Ordering::Relaxed);
                }
            }
        }
        rustix::fs::ftruncate(file, inode.size).map_err(sys("truncate"))?;
        self.finish(inode, file.as_fd())
    }

    /// Owner, mode, attributes and times of a file or directory that is open. In this order: a new
    /// owner clears set-user-id bits and capabilities.
    fn finish(&self, inode: &Inode, file: rustix::fd::BorrowedFd<'_>) -> Result<(), Problem> {
        let (uid, gid) = owner(inode);
        let owned = self.allowed(rustix::fs::fchown(file, uid, gid), "chown")?;
        rustix::fs::fchmod(file, self.mode(inode, owned)).map_err(sys("chmod"))?;
        if inode.has_xattrs() {
            for xattr in self.archive.xattrs(inode)? {
                if self.leaves_out(&xattr) {
                    continue;
                }
                let set =
                    rustix::fs::fsetxattr(file, &*xattr.name, &xattr.value, XattrFlags::empty());
                self.allowed(set, "setxattr")?;
            }
        }
        rustix::fs::futimens(file, &times(inode)).map_err(sys("utimens"))
    }

    /// The same for what cannot be opened: links and special files.
    fn finish_named(
        &self,
        inode: &Inode,
        directory: &Arc<OwnedFd>,
        name: &[u8],
    ) -> Result<(), Problem> {
        let at = directory.as_fd();
        let (uid, gid) = owner(inode);
        let chowned = rustix::fs::chownat(at, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
        self.allowed(chowned, "chown")?;
        if inode.kind != FileKind::Symlink {
            // It was made a moment ago in a directory nobody else can enter: it is no symlink.
            let mode = Mode::from_raw_mode(inode.permissions.into());
            rustix::fs::chmodat(at, name, mode, AtFlags::empty()).map_err(sys("chmod"))?;
        }
        if inode.has_xattrs() {
            let mut path = format!("/proc/self/fd/{}/", at.as_raw_fd()).into_bytes();
            path.extend_from_slice(name);
            let path = CString::new(path).unwrap_or_default();
            for xattr in self.archive.xattrs(inode)? {
                if self.leaves_out(&xattr) {
                    continue;
                }
                let set =
                    rustix::fs::lsetxattr(&path, &*xattr.name, &xattr.value, XattrFlags::empty());
                self.allowed(set, "setxattr")?;
            }
        }
        rustix::fs::utimensat(at, name, &times(inode), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(sys("utimens"))
    }

    /// The mode of a file or directory, `owned` by whom the archive says or not.
    fn mode(&self, inode: &Inode, owned: bool) -> Mode {
        let mode = Mode::from_raw_mode(inode.permissions.into());
        let set_ids = Mode::SUID | Mode::SGID;
        if inode.kind != FileKind::Regular || !mode.intersects(set_ids) {
            return mode;
        }
        if !self.preserve_privileged {
            self.progress.left_out.set_ids.fetch_add(1, Ordering::Relaxed);
        } else if owned {
            return mode;
        } else {
            // It would lend the rights of whoever unpacks, which nobody had in mind.
            self.progress.withheld.fetch_add(1, Ordering::Relaxed);
        }
        mode - set_ids
    }

    /// Whether `xattr` is left out; if so it is counted.
    fn leaves_out(&self, xattr: &Xattr) -> bool {
        let left_out = !self.preserve_privileged && xattr.name == b"security.capability";
        if left_out {
            self.progress.left_out.capabilities.fetch_add(1, Ordering::Relaxed);
        }
        left_out
    }

    /// Lets an ordinary user go without what only root may do; says whether it was done.
    fn allowed(&self, result: rustix::io::Result<()>, call: &'static str) -> Result<bool, Problem> {
        match result {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::PERM | rustix::io::Errno::OPNOTSUPP) if !self.privileged => {
                self.progress.withheld.fetch_add(1, Ordering::Relaxed);
                Ok(false)
            }
            Err(errno) => Err(Problem::System(call, errno)),
        }
    }
}

/// Directories open at a time, and so how deep a tree may be. A damaged archive can have cycles.
const MAX_DEPTH: usize = 4096;

fn open_directory(at: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, OsStr::from_bytes(name), flags, Mode::empty())
}

fn owner(inode: &Inode) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(inode.uid)), Some(Gid::from_raw(inode.gid)))
}

fn times(inode: &Inode) -> Timestamps {
    let time = Timespec { tv_sec: inode.mtime.seconds, tv_nsec: inode.mtime.nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}
