//! Reads what a directory's entries are, ahead of their turn and on several threads.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Access, AtFlags, Mode, OFlags, accessat, openat, readlinkat};
use rustix::io::{Errno, pread};
use twox_hash::XxHash3_64;

use super::super::{Archive, Inode};
use super::base::{Base, Kept, LayoutKey};
use super::error::Error;
use super::source::{Frozen, Source};
use super::stat::{
    Directory, Failure, Stat, Xattrs, failed, fd_xattrs, name_stored_owner, name_xattrs,
};
use crate::types::{FileKind, FileOffset, Timestamp};

/// How often a file is read that changes meanwhile.
pub(super) const ATTEMPTS: usize = 5;

/// What is to be read.
pub(super) enum Job {
    /// What a directory has by a name.
    Name(Entry),
    /// A file that is open.
    Open(OpenFile),
    /// A file of an archive.
    Archived(ArchivedFile),
}

/// A file of an archive to read, of which all is known but its bytes.
pub(super) struct ArchivedFile {
    pub(super) archive: Arc<Archive>,
    pub(super) inode: Box<Inode>,
    pub(super) stat: Stat,
    pub(super) xattrs: Xattrs,
    pub(super) layout: LayoutKey,
}

/// A file to read, of which all is known but its bytes.
pub(super) struct OpenFile {
    pub(super) fd: OwnedFd,
    /// As errors name it.
    pub(super) path: PathBuf,
    /// Its size and times are those that the descriptor has when it is read.
    pub(super) stat: Stat,
    pub(super) xattrs: Xattrs,
    /// When its data was last modified, where that is to be so still; then its own time is as told.
    pub(super) frozen: Option<Timestamp>,
}

/// An entry to read; anything but a directory.
pub(super) struct Entry {
    pub(super) directory: Arc<Directory>,
    pub(super) name: Vec<u8>,
    pub(super) kind: FileKind,
}

/// An entry, read.
pub(super) struct Leaf {
    pub(super) stat: Stat,
    pub(super) xattrs: Xattrs,
    pub(super) content: Content,
    /// Where its bytes are in an archive that they are read from.
    pub(super) layout: Option<LayoutKey>,
}

/// What an entry holds.
pub(super) enum Content {
    /// All bytes of a file of at most one block, and their hash.
    Small(Vec<u8>, u64),
    /// A larger file, to be read in turn.
    Large(Source),
    /// Where a symbolic link leads.
    Target(Vec<u8>),
    /// The data of a file of the base.
    Kept(Kept),
    /// Nothing: it is a special file, or only its being readable was asked for.
    Nothing,
}

/// Reads entries.
#[derive(Clone)]
pub(super) struct Loader<'a> {
    pub(super) block_size: u32,
    /// The archive of which files may be.
    pub(super) base: Option<&'a Base<'a>>,
    /// Set once something proved unreadable: from then on only the likes of it are looked for.
    pub(super) check_only: Arc<AtomicBool>,
}

impl Loader<'_> {
    pub(super) fn load(&self, job: Job) -> Result<Leaf, Failure> {
        match job {
            Job::Name(entry) => self.load_entry(&entry),
            Job::Open(file) => self.load_told(file),
            Job::Archived(file) => self.load_archived(file),
        }
    }

    fn load_told(&self, file: OpenFile) -> Result<Leaf, Failure> {
        let OpenFile { fd, path, stat, xattrs, frozen } = file;
        let failed = |call| failed(path.clone(), call);
        let leaf = self.load_open(fd, failed, |_| Ok(Xattrs::default()))?;
        let is_meant = |leaf: &Leaf| frozen.is_none_or(|it| it == leaf.stat.version.mtime);
        let Some(leaf) = leaf.filter(is_meant) else {
            return Err(Failure::Fatal(Error::Changed { path }));
        };
        let mut version = leaf.stat.version;
        let mut content = leaf.content;
        if let Some(modified) = frozen {
            let told = stat.version.mtime;
            version.mtime = told;
            content = match content {
                Content::Large(Source::File(fd)) => {
                    Content::Large(Source::Frozen(Frozen { fd, modified, told }))
                }
                content => content,
            };
        }
        Ok(Leaf { stat: Stat { version, ..stat }, xattrs, content, layout: None })
    }

    fn load_archived(&self, file: ArchivedFile) -> Result<Leaf, Failure> {
        let ArchivedFile { archive, inode, stat, xattrs, layout } = file;
        let layout = Some(layout);
        let content = if self.check_only.load(Ordering::Relaxed) {
            Content::Nothing
        } else if inode.size > self.block_size.into() {
            Content::Large(Source::Archived(archive, inode, stat.version))
        } else {
            let bytes = archive.read(&inode, FileOffset(0), self.block_size as usize);
            let bytes = bytes.map_err(|error| Failure::Fatal(error.into()))?;
            let hash = XxHash3_64::oneshot(&bytes);
            Content::Small(bytes.into(), hash)
        };
        Ok(Leaf { stat, xattrs, content, layout })
    }

    /// Reads an entry, of whatever kind it is by now: a file may have given way to a link since its
    /// directory was listed. Only a directory comes too late, for its place in the order.
    fn load_entry(&self, entry: &Entry) -> Result<Leaf, Failure> {
        let mut kind = entry.kind;
        for _ in 0..ATTEMPTS {
            let leaf = match kind {
                FileKind::Directory => break,
                FileKind::Regular => match self.load_kept(entry)? {
                    Some(leaf) => Some(leaf),
                    None => self.load_file(entry)?,
                },
                kind => load_other(entry, kind)?,
            };
            if let Some(mut leaf) = leaf {
                let stored = name_stored_owner(&entry.directory, &entry.name);
                let failed = entry.directory.error(&entry.name, "lgetxattr");
                leaf.stat = leaf.stat.owned_by(stored.map_err(failed)?);
                return Ok(leaf);
            }
            let stat = Stat::at(&entry.directory, &entry.name);
            kind = stat.map_err(entry.directory.error(&entry.name, "stat"))?.kind;
        }
        Err(Failure::Fatal(Error::Changed { path: entry.directory.child(&entry.name) }))
    }

    /// `None` where it is to be read, as its data is not known to be in the base.
    fn load_kept(&self, entry: &Entry) -> Result<Option<Leaf>, Failure> {
        let Some(base) = self.base.filter(|_| !self.check_only.load(Ordering::Relaxed)) else {
            return Ok(None);
        };
        let look = || {
            let stat = Stat::at(&entry.directory, &entry.name);
            stat.map_err(entry.directory.error(&entry.name, "stat"))
        };
        let stat = look()?;
        // It need not be opened, but is not for everybody.
        let may_read =
            accessat(&entry.directory.fd, entry.name.as_slice(), Access::READ_OK, AtFlags::EACCESS);
        if may_read == Err(Errno::ACCESS) {
            return Ok(None);
        }
        let Some((kept, xattrs)) = base.find(&entry.directory, &entry.name, &stat)? else {
            return Ok(None);
        };
        let after = look()?;
        let is_same = (after.identity, after.version) == (stat.identity, stat.version);
        Ok(is_same.then_some(Leaf { stat, xattrs, content: Content::Kept(kept), layout: None }))
    }

    /// `None` where it is no regular file, or changes too often while it is read.
    fn load_file(&self, entry: &Entry) -> Result<Option<Leaf>, Failure> {
        let failed = |call| entry.directory.error(&entry.name, call);
        // Were it replaced by a pipe since, opening it would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = openat(&entry.directory.fd, entry.name.as_slice(), flags, Mode::empty());
        let fd = match opened {
            Err(Errno::LOOP | Errno::NXIO) => return Ok(None),
            opened => opened.map_err(failed("open"))?,
        };
        self.load_open(fd, failed, fd_xattrs)
    }

    /// `None` where it is no regular file, or changes too often while it is read.
    fn load_open<F: FnOnce(Errno) -> Failure>(
        &self,
        fd: OwnedFd,
        failed: impl Fn(&'static str) -> F,
        xattrs_of: impl Fn(BorrowedFd<'_>) -> Result<Xattrs, Errno>,
    ) -> Result<Option<Leaf>, Failure> {
        for attempt in 1..=ATTEMPTS {
            let stat = Stat::of(fd.as_fd()).map_err(failed("fstat"))?;
            if stat.kind != FileKind::Regular {
                return Ok(None);
            }
            let xattrs = xattrs_of(fd.as_fd()).map_err(failed("fgetxattr"))?;
            if self.check_only.load(Ordering::Relaxed) {
                return Ok(Some(Leaf { stat, xattrs, content: Content::Nothing, layout: None }));
            }
            if stat.version.size > self.block_size.into() {
                let content = Content::Large(Source::File(fd));
                return Ok(Some(Leaf { stat, xattrs, content, layout: None }));
            }
            // At most a block.
            let mut bytes = vec![0; stat.version.size as usize];
            let len = read_full(&fd, &mut bytes, 0).map_err(failed("read"))?;
            let after = Stat::of(fd.as_fd()).map_err(failed("fstat"))?;
            let at_rest = stat.version == after.version
                || attempt == ATTEMPTS
                    && stat.version.only_grew(&after.version)
                    && reads_as(&fd, &bytes).map_err(failed("read"))?;
            if at_rest && len == bytes.len() {
                let hash = XxHash3_64::oneshot(&bytes);
                let content = Content::Small(bytes, hash);
                return Ok(Some(Leaf { stat, xattrs, content, layout: None }));
            }
        }
        Ok(None)
    }
}

/// `None` where it is not of that kind.
fn load_other(entry: &Entry, kind: FileKind) -> Result<Option<Leaf>, Failure> {
    let failed = |call| entry.directory.error(&entry.name, call);
    let stat = Stat::at(&entry.directory, &entry.name).map_err(failed("stat"))?;
    if stat.kind != kind {
        return Ok(None);
    }
    let xattrs = match name_xattrs(&entry.directory, &entry.name) {
        // Without /proc every such entry would seem to have vanished.
        Err(Errno::NOENT) if Stat::at(&entry.directory, &entry.name).is_ok() => {
            let path = entry.directory.proc_path(&entry.name);
            let path = Path::new(OsStr::from_bytes(&path));
            return Err(Failure::Fatal(Error::io(path, "llistxattr", Errno::NOENT)));
        }
        xattrs => xattrs.map_err(failed("lgetxattr"))?,
    };
    let content = match kind {
        FileKind::Symlink => {
            let name = entry.name.as_slice();
            match readlinkat(&entry.directory.fd, name, Vec::new()) {
                Err(Errno::INVAL) => return Ok(None),
                target => Content::Target(target.map_err(failed("readlink"))?.into_bytes()),
            }
        }
        _ => Content::Nothing,
    };
    Ok(Some(Leaf { stat, xattrs, content, layout: None }))
}

/// Whether a file still begins with `bytes`.
fn reads_as(fd: &OwnedFd, bytes: &[u8]) -> Result<bool, Errno> {
    let mut again = vec![0; bytes.len()];
    Ok(read_full(fd, &mut again, 0)? == bytes.len() && again == bytes)
}

/// Fills `out` from `at` on, as far as the file goes.
pub(super) fn read_full(fd: &OwnedFd, out: &mut [u8], at: u64) -> Result<usize, Errno> {
    let mut len = 0;
    while let Some(rest @ [_, ..]) = out.get_mut(len..) {
        match pread(fd, rest, at + len as u64) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(len)
}
