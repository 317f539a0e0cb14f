//! What an inode of the merged tree is as it is stored, at one moment.

use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, StatxTimestamp};
use rustix::io::Errno;

use super::super::Overlay;
use super::super::attr::Attr;
use super::super::error::{Error, Result, changed_behind};
use super::super::node::{Data, Dentry};
use super::super::xattr::stored_xattrs;
use super::walk::Entry;
use crate::inode_ops::{Address, stat_fd};
use crate::squashfs::write::Attributes;
use crate::types::{FileKind, Ino, InodeRef, Owner, Timestamp};

/// How often what is replaced meanwhile is looked at.
const ATTEMPTS: usize = 5;

/// An inode as it is stored, at one moment.
pub(super) struct Look {
    pub(super) attributes: Attributes,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) content: Content,
}

/// What an inode holds.
pub(super) enum Content {
    /// What this file of the archive does.
    Archived(InodeRef),
    /// What this descriptor reads.
    File(OwnedFd),
    /// The same, of what nobody is to write to since its data was modified then.
    Frozen(OwnedFd, Timestamp),
    /// Where a symbolic link leads.
    Target(Vec<u8>),
    /// Names, or nothing.
    Nothing,
}

impl Overlay {
    /// As [`Self::look`], of what has a name. Programs replace a file by renaming another over it: then what has the
    /// name now is looked at.
    pub(super) fn look_at(&self, entry: &Entry<'_>) -> Result<Option<Look>> {
        let mut instead = None;
        for _ in 0..ATTEMPTS {
            let held = instead.as_ref().unwrap_or(&entry.held);
            match self.look(held.ino) {
                Ok(None) => {}
                Err(error) if error.is(Errno::STALE) || error.is(Errno::NOENT) => {}
                look => return look,
            }
            match self.hold_if_there(entry.directory, &entry.name)? {
                None => return Ok(None),
                // It comes too late for its place in the order.
                Some(held) if held.kind == FileKind::Directory => break,
                held => instead = held,
            }
        }
        Err(changed_behind(entry.name.display()))
    }

    /// Looks at an inode. `None` where it has no name any more.
    pub(super) fn look(&self, ino: Ino) -> Result<Option<Look>> {
        let node = self.nodes.get(ino)?;
        if node.upper.is_some() {
            return self.across_freezes(|| self.look_in_upper(ino));
        }
        if node.dentry == Dentry::Nowhere && ino != Ino::ROOT {
            return Ok(None);
        }
        let archive = self.lower.archive();
        let place = self.lower.place_of(ino)?;
        let inode = self.lower.inode(place)?;
        let mut xattrs = Vec::new();
        if inode.has_xattrs() {
            for name in archive.xattr_names(&inode)? {
                let value = archive.xattr(&inode, &name)?;
                xattrs.extend(value.map(|value| (name, value)));
            }
        }
        let content = match inode.kind {
            FileKind::Regular => Content::Archived(place),
            FileKind::Symlink => Content::Target(archive.read_link(&inode)?),
            _ => Content::Nothing,
        };
        let owner = Owner { uid: inode.uid, gid: inode.gid };
        let attributes = attributes(&self.lower.attr(ino, &inode), owner);
        Ok(Some(Look { attributes, xattrs, content }))
    }

    fn look_in_upper(&self, ino: Ino) -> Result<Option<Look>> {
        let _names = self.names.read();
        let (inode, state) = self.address(ino)?;
        let stat = self.numbers.identify(&inode, inode.stat()?)?;
        let attr = self.attr_of_upper(ino, &state, &stat)?;
        if attr.nlink == 0 {
            return Ok(None);
        }
        let xattrs = stored_xattrs(&inode, self.marks)?;
        let content = match (attr.kind, &state.data) {
            (FileKind::Regular, Data::Lower(place)) => Content::Archived(*place),
            (FileKind::Regular, Data::Layer(place)) => {
                // Attributes alone are above that: its times are not the data's.
                let fd = open(&self.in_layer(place)?)?;
                let stat = stat_fd(&fd).map_err(Error::sys("statx", "a file of a layer"))?;
                let StatxTimestamp { tv_sec: seconds, tv_nsec: nanos, .. } = stat.stx_mtime;
                Content::Frozen(fd, Timestamp { seconds, nanos })
            }
            // The live upper of the same layers may take it over, and have programs write to it.
            (FileKind::Regular, Data::Upper) if self.upper.is_none() => {
                Content::Frozen(open(&inode)?, attr.mtime)
            }
            (FileKind::Regular, Data::Upper) => Content::File(open(&inode)?),
            (FileKind::Symlink, _) => Content::Target(inode.read_link()?),
            _ => Content::Nothing,
        };
        let attributes = attributes(&attr, self.owner_stored(&state, &stat));
        Ok(Some(Look { attributes, xattrs, content }))
    }
}

/// Opens a regular file of the upper to read it, its `st_atime` left as it is where we may.
fn open(inode: &Address) -> Result<OwnedFd> {
    // Were it replaced by a pipe behind our back, opening it would wait for a writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    match inode.open(flags | OFlags::NOATIME) {
        Err(error) if error.errno == Errno::PERM => Ok(inode.open(flags)?),
        opened => Ok(opened?),
    }
}

fn attributes(attr: &Attr, owner: Owner) -> Attributes {
    Attributes {
        kind: attr.kind,
        permissions: attr.perm,
        uid: owner.uid,
        gid: owner.gid,
        nlink: attr.nlink,
        number: attr.number.0,
        rdev: attr.rdev,
        mtime: attr.mtime,
    }
}
