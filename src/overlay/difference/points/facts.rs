//! What an inode of one of the trees is.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{OFlags, Statx};

use super::super::super::Overlay;
use super::super::super::error::{Error, Result};
use super::super::super::lookup::Held;
use super::super::super::node::Data;
use super::super::super::xattr::stored_xattrs;
use super::super::compare::{Change, LABEL};
use crate::inode_ops::Address;
use crate::types::{FileKind, InodeRef, Owner, Timestamp};

/// Bytes that are compared at a time.
const CHUNK: usize = 1 << 17;

/// An inode as it is stored, whatever owners are shown.
pub(super) struct Facts {
    kind: FileKind,
    permissions: u16,
    owner: Owner,
    rdev: u64,
    mtime: Timestamp,
    size: u64,
    pub(super) nlink: u32,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    content: Content,
}

/// Where the data of a file are, or what a link says.
enum Content {
    Archived(InodeRef),
    /// In this inode of a layer or the upper, known by its device and number.
    Stored(Address, (u32, u32, u64)),
    Target(Vec<u8>),
    Nothing,
}

impl Facts {
    pub(super) fn of(tree: &Overlay, held: &Held<'_>) -> Result<Self> {
        tree.across_freezes(|| {
            let mut facts = match tree.nodes.upper(held.ino)? {
                Some(_) => Self::of_stored(tree, held)?,
                None => Self::of_archived(tree, held)?,
            };
            facts.xattrs.sort_unstable();
            Ok(facts)
        })
    }

    fn of_archived(tree: &Overlay, held: &Held<'_>) -> Result<Self> {
        let archive = tree.lower.archive();
        let place = tree.lower.place_of(held.ino)?;
        let inode = tree.lower.inode(place)?;
        let xattrs = archive.xattrs(&inode)?;
        Ok(Self {
            kind: inode.kind,
            permissions: inode.permissions,
            owner: Owner { uid: inode.uid, gid: inode.gid },
            rdev: inode.rdev,
            mtime: inode.mtime,
            size: inode.size,
            nlink: inode.nlink,
            xattrs: xattrs.into_iter().map(|xattr| (xattr.name, xattr.value)).collect(),
            content: match inode.kind {
                FileKind::Regular => Content::Archived(place),
                FileKind::Symlink => Content::Target(archive.read_link(&inode)?),
                _ => Content::Nothing,
            },
        })
    }

    fn of_stored(tree: &Overlay, held: &Held<'_>) -> Result<Self> {
        let _names = tree.names.read();
        let (inode, state) = tree.address(held.ino)?;
        let raw = inode.stat()?;
        let stat = tree.numbers.identify(&inode, raw)?;
        let attr = tree.attr_of_upper(held.ino, &state, &stat)?;
        let stored = |address: &Address, stat: &Statx| -> Result<Content> {
            let id = (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
            Ok(Content::Stored(Address::Pinned(address.pin()?), id))
        };
        let content = match (attr.kind, &state.data) {
            (FileKind::Regular, Data::Lower(place)) => Content::Archived(*place),
            (FileKind::Regular, Data::Layer(place)) => {
                let address = tree.in_layer(place)?;
                stored(&address, &address.stat()?)?
            }
            (FileKind::Regular, Data::Upper) => stored(&inode, &raw)?,
            (FileKind::Symlink, _) => Content::Target(inode.read_link()?),
            _ => Content::Nothing,
        };
        Ok(Self {
            kind: attr.kind,
            permissions: attr.perm,
            owner: tree.owner_stored(&state, &stat),
            rdev: attr.rdev,
            mtime: attr.mtime,
            size: attr.size,
            nlink: attr.nlink,
            xattrs: stored_xattrs(&inode, tree.marks)?,
            content,
        })
    }

    /// Its size as it is told.
    pub(super) fn shown_size(&self) -> u64 {
        match self.kind {
            FileKind::Regular | FileKind::Symlink => self.size,
            _ => 0,
        }
    }

    /// How many bytes of it are in layers.
    pub(super) fn bytes(&self) -> u64 {
        match self.content {
            Content::Stored(..) => self.size,
            _ => 0,
        }
    }

    /// How `after` differs, which is the same file, or has its place.
    pub(super) fn compare(&self, after: &Self, are_same: bool) -> Result<Change> {
        if self.has_other_data(after, are_same)? {
            return Ok(Change::Data);
        }
        // Links have no permissions, and a directory's time moves with each name in it.
        let is_link = self.kind == FileKind::Symlink;
        let has_time = self.kind != FileKind::Directory;
        let is_other = (!is_link && self.permissions != after.permissions)
            || self.owner != after.owner
            || (has_time && self.mtime != after.mtime)
            || self.has_other_xattrs(after);
        Ok(if is_other { Change::Attributes } else { Change::None })
    }

    fn has_other_data(&self, after: &Self, are_same: bool) -> Result<bool> {
        Ok(match (&self.content, &after.content) {
            (Content::Target(before), Content::Target(after)) => before != after,
            (Content::Archived(before), Content::Archived(after)) if before == after => false,
            (Content::Stored(_, before), Content::Stored(_, after)) if before == after => false,
            (Content::Nothing, Content::Nothing) => self.rdev != after.rdev,
            _ if self.size == 0 && after.size == 0 => false,
            _ if !are_same || (self.size, self.mtime) != (after.size, after.mtime) => true,
            // A clock of few ticks a second: what is written and frozen within one has one time.
            (Content::Stored(before, _), Content::Stored(after, _)) => {
                !have_same_bytes(before, after)?
            }
            _ => matches!(
                (&self.content, &after.content),
                (Content::Archived(_), Content::Archived(_))
            ),
        })
    }

    fn has_other_xattrs(&self, after: &Self) -> bool {
        let is_labelled = self.xattrs.iter().any(|(name, _)| name == LABEL);
        let after = after.xattrs.iter().filter(|(name, _)| is_labelled || name != LABEL);
        !self.xattrs.iter().eq(after)
    }
}

fn have_same_bytes(one: &Address, other: &Address) -> Result<bool> {
    let [one, other] = [one, other].map(|address| address.open(OFlags::RDONLY));
    let (one, other) = (one?, other?);
    let read = |fd: &OwnedFd, at| -> Result<Vec<u8>> {
        let mut bytes = vec![0; CHUNK];
        let mut len = 0;
        while let Some(room) = bytes.get_mut(len..).filter(|room| !room.is_empty()) {
            let read = rustix::io::pread(fd.as_fd(), room, at + len as u64);
            match read.map_err(Error::sys("pread", "a file"))? {
                0 => break,
                more => len += more,
            }
        }
        bytes.truncate(len);
        Ok(bytes)
    };
    let mut at = 0;
    loop {
        let bytes = read(&one, at)?;
        if bytes != read(&other, at)? {
            return Ok(false);
        }
        if bytes.len() < CHUNK {
            return Ok(true);
        }
        at += bytes.len() as u64;
    }
}
