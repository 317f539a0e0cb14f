//! A tree that is told entry by entry, instead of being walked.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use crossbeam_channel::Sender;

use super::super::format::NAME_LEN;
use super::super::{Archive, Inode};
use super::base::{Base, LayoutKey};
use super::error::Error;
use super::load::{ArchivedFile, Content, Job, Leaf, OpenFile};
use super::pool::{Gone, Pending};
use super::stat::{Failure, Stat, Version, Xattrs};
use super::walk::{Event, LoadPool};
use crate::types::{FileKind, Timestamp};

/// What an archive says of an entry.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    /// What kind of file it is.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: 0 to 0o7777.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// How many names it has.
    pub nlink: u32,
    /// Its number: the same for all its names.
    pub number: u64,
    /// `st_rdev` of a device; else zero.
    pub rdev: u64,
    /// Last modification.
    pub mtime: Timestamp,
}

/// What an entry holds.
pub enum Body<'a> {
    /// The data of this file of the base, which stays where it is.
    Kept(&'a Inode),
    /// What this file of an archive holds, which is read.
    Archived(&'a Arc<Archive>, &'a Inode),
    /// What this descriptor of a regular file reads, whose size and times are the entry's.
    File(OwnedFd),
    /// What this one reads, which nobody is to write to: packing fails where its data was modified at another time than
    /// this. Its size is the entry's.
    Frozen(OwnedFd, Timestamp),
    /// Where a symbolic link leads.
    Target(Vec<u8>),
    /// Nothing, as in special files.
    Nothing,
}

/// Takes what a tree holds: of each directory first all that are no directories, then its directories, each with what
/// is in it before the next.
pub struct Entries<'a> {
    pub(super) base: Option<&'a Base<'a>>,
    pub(super) loads: LoadPool,
    pub(super) events: Sender<Event>,
    /// The directories that are entered, by the paths that errors have.
    pub(super) within: Vec<Arc<Path>>,
}

impl Entries<'_> {
    /// Begins a directory, the root first, of which `name` is the path that errors have.
    ///
    /// # Errors
    /// Where packing has failed meanwhile, or the name is longer than the format has them.
    pub fn enter(
        &mut self,
        name: &[u8],
        attributes: &Attributes,
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<(), Error> {
        let above = self.within.last();
        let path: Arc<Path> = match above {
            Some(above) => self.check(above, name)?.into(),
            None => Path::new(OsStr::from_bytes(name)).into(),
        };
        let name = above.map_or_else(Vec::new, |_| name.to_vec());
        let (stat, xattrs) = (stat(attributes), Xattrs::of(xattrs));
        self.within.push(Arc::clone(&path));
        self.send(Event::Enter { name, path, stat, xattrs })
    }

    /// Ends the directory that was begun last.
    ///
    /// # Errors
    /// Where packing has failed meanwhile.
    pub fn leave(&mut self) -> Result<(), Error> {
        match self.within.pop() {
            Some(_) => self.send(Event::Leave),
            None => Ok(()),
        }
    }

    /// Adds what is no directory. Says whether it did: a file of the base that cannot be kept is to be read, and so is
    /// one where there is no base.
    ///
    /// # Errors
    /// Where packing has failed meanwhile, or the base cannot be read, or a limit of the format is met.
    pub fn leaf(
        &mut self,
        name: &[u8],
        attributes: &Attributes,
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
        body: Body<'_>,
    ) -> Result<bool, Error> {
        let Some(directory) = self.within.last().cloned() else { return Ok(false) };
        let path = self.check(&directory, name)?;
        let (mut stat, xattrs) = (stat(attributes), Xattrs::of(xattrs));
        let content = match body {
            body @ (Body::File(_) | Body::Frozen(..)) => {
                let (fd, frozen) = match body {
                    Body::Frozen(fd, modified) => (fd, Some(modified)),
                    Body::File(fd) => (fd, None),
                    _ => return Ok(false),
                };
                let job = Job::Open(OpenFile { fd, path, stat, xattrs, frozen });
                let leaf = self.loads.submit(job).map_err(gone)?;
                self.send(Event::Leaf { directory, name: name.to_vec(), leaf })?;
                return Ok(true);
            }
            Body::Archived(archive, inode) => {
                stat.version.size = inode.size;
                let layout = LayoutKey::new(archive, inode)?;
                let (archive, inode) = (Arc::clone(archive), Box::new(inode.clone()));
                let job = Job::Archived(ArchivedFile { archive, inode, stat, xattrs, layout });
                let leaf = self.loads.submit(job).map_err(gone)?;
                self.send(Event::Leaf { directory, name: name.to_vec(), leaf })?;
                return Ok(true);
            }
            Body::Kept(inode) => {
                let Some(base) = self.base else { return Ok(false) };
                // Another name of it may be told otherwise.
                let Some(kept) = base.keep(inode)? else { return Ok(false) };
                stat.version.size = kept.size;
                Content::Kept(kept)
            }
            Body::Target(target) => Content::Target(target),
            Body::Nothing => Content::Nothing,
        };
        let leaf = Pending::ready(Ok(Leaf { stat, xattrs, content, layout: None }));
        self.send(Event::Leaf { directory, name: name.to_vec(), leaf })?;
        Ok(true)
    }

    /// Adds what may not be read. Packing fails once all has been told, and names each.
    ///
    /// # Errors
    /// Where packing has failed meanwhile.
    pub fn unreadable(&mut self, name: &[u8]) -> Result<(), Error> {
        let path = match self.within.last() {
            Some(above) => super::stat::child(above, name),
            None => Path::new(OsStr::from_bytes(name)).to_owned(),
        };
        self.send(Event::Failed(Failure::Denied(path)))
    }

    /// Whether there is an archive to begin with, of which files can be [`Body::Kept`].
    pub fn has_base(&self) -> bool {
        self.base.is_some()
    }

    /// The path of an entry.
    fn check(&self, above: &Path, name: &[u8]) -> Result<std::path::PathBuf, Error> {
        let path = super::stat::child(above, name);
        match name.len() > NAME_LEN {
            false => Ok(path),
            true => Err(Error::limit(format!(
                "a name of more than {NAME_LEN} bytes: {}",
                path.display()
            ))),
        }
    }

    /// Has packing fail for this reason.
    pub(super) fn fail(&self, error: Error) {
        // Gone: it has failed for another.
        let _ = self.events.send(Event::Failed(Failure::Fatal(error)));
    }

    fn send(&self, event: Event) -> Result<(), Error> {
        self.events.send(event).map_err(|_| gone(Gone))
    }
}

fn gone(Gone: Gone) -> Error {
    Error::Compress("a thread ended early".into())
}

fn stat(attributes: &Attributes) -> Stat {
    let Attributes { kind, permissions, uid, gid, nlink, number, rdev, mtime } = *attributes;
    let version = Version { size: 0, mtime, ctime: mtime };
    let (nlink, identity) = (nlink.into(), (0, number));
    Stat { kind, permissions, uid, gid, nlink, identity, rdev, version }
}
