//! The merged tree told to a packer, entry by entry: a backup of it takes no mount.
//!
//! Directories are listed a batch of names at a time, and what a name means is looked up, looked at, told and given back
//! before the next. So what is kept of a tree are the names of the directories that are still to come, of each directory
//! on the way down. The tree may change meanwhile: each entry is told as it was at one moment, and what is gone by then
//! is left out. `names` is held for a look at one inode, and never while something is told, which waits for the packer.

mod look;
mod walk;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use super::Overlay;
use super::error::{Error, Result};
use super::lookup::Held;
use crate::squashfs::write::{self, Body, Entries, Exclude};
use crate::squashfs::{Archive, Inode};
use crate::types::{FileKind, Ino, InodeRef};
use look::{Content, Look};
use walk::{Entry, Visitor};

/// How much a tree holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeSize {
    /// Bytes of files, each inode once.
    pub bytes: u64,
    /// The same without most of the holes, about: no archive of them is much larger.
    pub stored: u64,
}

impl TreeSize {
    /// Adds a file of `len` bytes that takes `blocks` units of 512 bytes.
    pub(crate) fn add(&mut self, len: u64, blocks: u64) {
        self.bytes += len;
        // A file system may compress, but hardly better than fourfold.
        self.stored += len.min(blocks.saturating_mul(4 * 512).saturating_add(1 << 20));
    }
}

impl Overlay {
    /// The archive that the tree is made over.
    pub fn archive(&self) -> &Arc<Archive> {
        self.lower.shared()
    }

    /// Tells `to` what the tree holds, as [`write::told`] has it: owners as they are stored, whatever is shown, and
    /// attributes as a program has set them. Files whose data is in the archive are told as that, be it the base of
    /// what is packed ([`Body::Kept`]) or not ([`Body::Archived`]). What `exclude` says of a path from the root is left
    /// out. `root` is what errors call the root.
    ///
    /// Where the tree has an upper that is written to, entries are of different moments, and what the kernel holds back
    /// of writes is not there. Lookups are counted for as long as a directory is told.
    ///
    /// # Errors
    /// [`write::Error::Told`] with an [`Error`] of ours, where reading either half fails, and what `to` says.
    pub fn tell_entries(
        &self,
        root: &Path,
        exclude: &Exclude<'_>,
        to: &mut Entries<'_>,
    ) -> Result<(), write::Error> {
        self.visit(root, exclude, &mut Teller { overlay: self, root, to })
    }

    /// What [`Self::tell_entries`] would tell, added up until it is `over`.
    ///
    /// # Errors
    /// What reading either half says.
    pub fn measure(
        &self,
        exclude: &Exclude<'_>,
        over: &dyn Fn() -> bool,
    ) -> Result<TreeSize, write::Error> {
        let mut scale = Scale { over, size: TreeSize::default(), several_names: HashSet::new() };
        self.visit(Path::new(""), exclude, &mut scale)?;
        Ok(scale.size)
    }

    /// Opens a regular file of the upper by its path from the root, to read it: what has been told is so found again.
    /// `None` for what is not there, or is in the archive.
    pub fn reopen(&self, path: &Path) -> Option<OwnedFd> {
        let mut at = self.count(Ino::ROOT, FileKind::Directory).ok()?;
        for name in path {
            at = self.hold(at.ino, name).ok()?;
        }
        match self.look(at.ino).ok()??.content {
            Content::File(fd) | Content::Frozen(fd, _) => Some(fd),
            _ => None,
        }
    }
}

/// Tells a packer.
struct Teller<'a, 'e> {
    overlay: &'a Overlay,
    root: &'a Path,
    to: &'a mut Entries<'e>,
}

impl Teller<'_, '_> {
    /// What was seen of `name`. `None` where it is gone, or may not be read, which is told.
    fn seen(
        &mut self,
        name: &[u8],
        look: Result<Option<Look>>,
    ) -> Result<Option<Look>, write::Error> {
        match look {
            Ok(look) => Ok(look),
            Err(error) if error.is(Errno::ACCESS) || error.is(Errno::PERM) => {
                self.to.unreadable(name).map(|()| None)
            }
            Err(error) => Err(told(error)),
        }
    }

    fn archived(&self, place: InodeRef) -> Result<Inode, write::Error> {
        self.overlay.lower.inode(place).map_err(told)
    }
}

impl Visitor for Teller<'_, '_> {
    fn enter(&mut self, name: &OsStr, directory: &Held<'_>) -> Result<bool, write::Error> {
        let name = match name.is_empty() {
            true => self.root.as_os_str().as_bytes(),
            false => name.as_bytes(),
        };
        let look = self.overlay.look(directory.ino);
        let Some(look) = self.seen(name, look)? else { return Ok(false) };
        self.to.enter(name, &look.attributes, look.xattrs).map(|()| true)
    }

    fn leaf(&mut self, entry: &Entry<'_>) -> Result<(), write::Error> {
        let name = entry.name.as_bytes();
        let look = self.overlay.look_at(entry);
        let Some(look) = self.seen(name, look)? else { return Ok(()) };
        let Look { attributes, xattrs, content } = look;
        let body = match content {
            Content::Archived(place) => {
                let inode = self.archived(place)?;
                let kept = Body::Kept(&inode);
                if self.to.has_base() && self.to.leaf(name, &attributes, xattrs.clone(), kept)? {
                    return Ok(());
                }
                let body = Body::Archived(self.overlay.archive(), &inode);
                return self.to.leaf(name, &attributes, xattrs, body).map(drop);
            }
            Content::File(fd) => Body::File(fd),
            Content::Frozen(fd, modified) => Body::Frozen(fd, modified),
            Content::Target(target) => Body::Target(target),
            Content::Nothing => Body::Nothing,
        };
        self.to.leaf(name, &attributes, xattrs, body).map(drop)
    }

    fn leave(&mut self) -> Result<(), write::Error> {
        self.to.leave()
    }
}

/// Adds up.
struct Scale<'a> {
    over: &'a dyn Fn() -> bool,
    size: TreeSize,
    several_names: HashSet<Ino>,
}

impl Visitor for Scale<'_> {
    fn enter(&mut self, _name: &OsStr, _directory: &Held<'_>) -> Result<bool, write::Error> {
        Ok(!(self.over)())
    }

    fn leaf(&mut self, entry: &Entry<'_>) -> Result<(), write::Error> {
        let attr = &entry.attr;
        if attr.kind == FileKind::Regular && (attr.nlink < 2 || self.several_names.insert(attr.ino))
        {
            self.size.add(attr.size, attr.blocks);
        }
        Ok(())
    }

    fn leave(&mut self) -> Result<(), write::Error> {
        Ok(())
    }
}

fn told(error: Error) -> write::Error {
    write::Error::Told(Box::new(error))
}
