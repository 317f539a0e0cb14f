//! Unpacking an archive into ordinary files.
//!
//! One thread walks the archive and makes directories, links and special files; several copy the
//! contents of regular files. All of it happens in a directory beside the target that takes the
//! target's place at the end, so the target is complete or as it was.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::staging::Staging;
use crate::failure::{Code, Failure};
use crate::inode_ops::{self, Address, Privilege};
use crate::squashfs::{Archive, DirCursor, DirReader, Inode, Xattr};
use crate::types::{FileKind, InodeRef, Owner};

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
pub(crate) fn extract_staged(
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
        privilege: Privilege::of_process(),
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
    file: Arc<OwnedFd>,
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
    privilege: Privilege,
    /// See [`ExtractOptions::preserve_privileged`].
    preserve_privileged: bool,
    failed: AtomicBool,
    failure: Mutex<Option<Failure>>,
}

/// A step that failed, before it is known at which path.
enum Problem {
    Archive(crate::squashfs::Error),
    System(&'static str, Errno),
}

impl From<crate::squashfs::Error> for Problem {
    fn from(error: crate::squashfs::Error) -> Self {
        Self::Archive(error)
    }
}

impl From<inode_ops::Error> for Problem {
    fn from(error: inode_ops::Error) -> Self {
        Self::System(error.call, error.errno)
    }
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
                let made = Address::Open(Arc::clone(&top.directory));
                let finished = self.finish(&top.inode, &made);
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
                    let error = Problem::System("descend into", Errno::LOOP);
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
        let name = OsStr::from_bytes(name);
        if inode.kind != FileKind::Directory && inode.nlink > 1 {
            let below_root = path.get(self.prefix..).unwrap_or_default();
            let below_root = below_root.strip_prefix(b"/").unwrap_or(below_root);
            if let Some(first) = links.get(&inode.reference) {
                Address::at(&self.root, OsStr::from_bytes(first)).link_to(directory, name)?;
                return Ok(None);
            }
            links.insert(inode.reference, below_root.to_vec());
        }
        match inode.kind {
            FileKind::Directory => {
                inode_ops::make_directory(directory, name, 0o700)?;
                return Ok(Some(inode_ops::open_directory(directory, name)?));
            }
            FileKind::Regular => {
                let file = inode_ops::make_file(directory, name, OFlags::WRONLY, 0o600)?;
                let job = Job { inode: inode.clone(), file: Arc::new(file), path: path.to_vec() };
                // Fails only where every copying thread has panicked, which the scope reports.
                let _ = jobs.send(job);
                return Ok(None);
            }
            FileKind::Symlink => {
                let target = self.archive.read_link(inode)?;
                inode_ops::make_symlink(directory, name, OsStr::from_bytes(&target))?;
            }
            kind => match inode_ops::make_special(directory, name, kind, 0o600, inode.rdev) {
                Err(error) if self.privilege.lacks(error.errno) => {
                    self.progress.withheld.fetch_add(1, Ordering::Relaxed);
                    // Its other names are no links to it.
                    links.remove(&inode.reference);
                    return Ok(None);
                }
                made => made?,
            },
        }
        self.finish(inode, &Address::at(directory, name))?;
        Ok(None)
    }

    /// Copies a regular file's contents, holes left out.
    fn fill(&self, job: &Job) -> Result<(), Problem> {
        for piece in self.archive.pieces(&job.inode) {
            let (at, data) = piece?;
            inode_ops::write_all(&job.file, &data, at.0)?;
            self.progress.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        inode_ops::set_size(&job.file, job.inode.size)?;
        self.finish(&job.inode, &Address::Open(Arc::clone(&job.file)))
    }

    /// Gives what was made its owner, attributes, permissions and times, as far as it may have them.
    fn finish(&self, inode: &Inode, made: &Address) -> Result<(), Problem> {
        let mut xattrs = Vec::new();
        for Xattr { name, value } in self.archive.xattrs(inode)? {
            if !self.leaves_out(&name) {
                let nul = |_| Problem::System("setxattr", Errno::INVAL);
                xattrs.push((CString::new(name).map_err(nul)?, value));
            }
        }
        let owner = Owner { uid: inode.uid, gid: inode.gid };
        let stat = made.stat()?;
        let begun = inode_ops::begin(made, &stat, owner, xattrs, self.privilege)?;
        let withheld = u64::from(begun.refused.owner) + begun.refused.xattrs.len() as u64;
        self.progress.withheld.fetch_add(withheld, Ordering::Relaxed);
        let permissions = self.permissions(inode, !begun.refused.owner);
        Ok(begun.finish(permissions, inode.mtime)?)
    }

    /// The permissions of a file or directory, `owned` by whom the archive says or not.
    fn permissions(&self, inode: &Inode, owned: bool) -> u16 {
        let set_ids = SETID_BITS & inode.permissions;
        if inode.kind != FileKind::Regular || set_ids == 0 {
            return inode.permissions;
        }
        if !self.preserve_privileged {
            self.progress.left_out.set_ids.fetch_add(1, Ordering::Relaxed);
        } else if owned {
            return inode.permissions;
        } else {
            // It would lend the rights of whoever unpacks, which nobody had in mind.
            self.progress.withheld.fetch_add(1, Ordering::Relaxed);
        }
        inode.permissions & !set_ids
    }

    /// Whether attribute `name` is left out; if so it is counted.
    fn leaves_out(&self, name: &[u8]) -> bool {
        let left_out = !self.preserve_privileged && name == b"security.capability";
        if left_out {
            self.progress.left_out.capabilities.fetch_add(1, Ordering::Relaxed);
        }
        left_out
    }
}

/// The set-user-id and set-group-id bits.
const SETID_BITS: u16 = (libc::S_ISUID | libc::S_ISGID) as u16;

/// Directories open at a time, and so how deep a tree may be. A damaged archive can have cycles.
const MAX_DEPTH: usize = 4096;
