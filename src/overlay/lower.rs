//! The lower, as the merged tree sees it: an archive whose inodes have merged numbers.

use std::collections::HashMap;
use std::sync::Arc;

use rustix::io::Errno;

use super::Overlay;
use super::attr::Attr;
use super::describe::Found;
use super::error::{Error, Result};
use super::ids::Ids;
use super::ino;
use super::node::InLayer;
use super::stack::{Below, Version};
use crate::squashfs::{Archive, DirCursor, Inode};
use crate::types::{FileKind, Ino, InodeRef};

/// Longest name that Linux knows, in bytes.
pub(super) const NAME_MAX: usize = 255;

/// An entry of a lower directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Child {
    pub(super) inode: InodeRef,
    pub(super) kind: FileKind,
}

/// What the lower half of a directory has under a name, and in which state of the stack: a freeze changes that, and so does
/// a merge of layers.
#[derive(Clone, Debug)]
pub(super) struct Beneath {
    pub(super) stack: Version,
    pub(super) entry: Option<LowerEntry>,
}

/// An entry of a lower directory, whichever layer has it.
#[derive(Clone, Debug)]
pub(super) enum LowerEntry {
    /// The archive has it.
    Archive(Child),
    /// A frozen layer has it, by this name.
    Layer(Box<Found>, InLayer),
}

impl Beneath {
    pub(super) fn is_some(&self) -> bool {
        self.entry.is_some()
    }
}

impl LowerEntry {
    pub(super) fn kind(&self) -> FileKind {
        match self {
            Self::Archive(child) => child.kind,
            Self::Layer(found, _) => found.kind,
        }
    }

    /// The number of what it names.
    pub(super) fn ino(&self, overlay: &Overlay) -> Result<Ino> {
        match self {
            Self::Archive(child) => overlay.lower.ino(child.inode),
            Self::Layer(found, _) => Ok(found.ino),
        }
    }

    /// Of a directory: itself, and what is below it.
    pub(super) fn whole(&self) -> Below {
        match self {
            Self::Archive(child) => Below::archive(Some(child.inode)),
            Self::Layer(found, _) => {
                found.upper.as_ref().and_then(|upper| upper.whole.clone()).unwrap_or_default()
            }
        }
    }
}

/// What tells an archive from others: an upper that was made over it says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveIdentity(pub(super) Vec<u8>);

impl ArchiveIdentity {
    /// That of `archive`.
    pub fn of(archive: &Archive) -> Self {
        let superblock = archive.superblock();
        let mut identity = Vec::with_capacity(28);
        identity.extend_from_slice(&superblock.bytes_used.to_le_bytes());
        identity.extend_from_slice(&superblock.created.seconds.to_le_bytes());
        identity.extend_from_slice(&superblock.inodes.to_le_bytes());
        identity.extend_from_slice(&superblock.root.packed().to_le_bytes());
        Self(identity)
    }

    /// In hexadecimal.
    pub fn to_text(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What [`Self::to_text`] has written.
    pub fn parse(text: &str) -> Option<Self> {
        let (digits, []) = text.as_bytes().as_chunks::<2>() else { return None };
        let byte = |digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
        Some(Self(digits.iter().map(|pair| byte(pair)).collect::<Option<_>>()?))
    }
}

/// The archive below the merged tree.
pub(super) struct Lower {
    archive: Arc<Archive>,
    ids: Arc<Ids>,
}

impl Lower {
    pub(super) fn new(archive: Arc<Archive>, ids: Arc<Ids>) -> Self {
        Self { archive, ids }
    }

    pub(super) fn archive(&self) -> &Archive {
        &self.archive
    }

    pub(super) fn shared(&self) -> &Arc<Archive> {
        &self.archive
    }

    /// As [`ArchiveIdentity::of`].
    pub(super) fn identity(&self) -> Vec<u8> {
        ArchiveIdentity::of(&self.archive).0
    }

    /// The merged number of a lower inode.
    pub(super) fn ino(&self, inode: InodeRef) -> Result<Ino> {
        ino::of_lower(inode, self.archive.root())
            .ok_or_else(|| Error::damaged(format_args!("the archive has no inode at {inode}")))
    }

    /// The lower inode behind a merged number, if it is not of the upper.
    pub(super) fn inode_ref(&self, ino: Ino) -> Option<InodeRef> {
        ino::to_lower(self.ids.number_of(ino), self.archive.root())
    }

    /// The lower inode behind a merged number that nothing in the upper stands for.
    pub(super) fn place_of(&self, ino: Ino) -> Result<InodeRef> {
        let gone = || Error::stale(format_args!("inode {ino} is not in the upper any more"));
        self.inode_ref(ino).ok_or_else(gone)
    }

    pub(super) fn inode(&self, inode: InodeRef) -> Result<Inode> {
        Ok(self.archive.inode(inode)?)
    }

    /// What `dir` holds under `name`.
    ///
    /// # Errors
    /// `ENOTDIR` where `dir` is not a directory.
    pub(super) fn child(&self, dir: InodeRef, name: &[u8]) -> Result<Option<Child>> {
        if name.len() > NAME_MAX {
            return Ok(None);
        }
        let dir = self.directory(dir)?;
        let entry = self.archive.lookup(&dir, name)?;
        Ok(entry.map(|entry| Child { inode: entry.inode, kind: entry.kind }))
    }

    /// What `dir` holds, by name, where it is no dearer to find out than to look `count` names up. The length of a
    /// directory is in bytes; a name is looked up in a block of it.
    ///
    /// # Errors
    /// As [`Self::child`].
    pub(super) fn children(
        &self,
        dir: InodeRef,
        count: usize,
    ) -> Result<Option<HashMap<Box<[u8]>, Child>>> {
        const BLOCK: u64 = 4096;
        let dir = self.directory(dir)?;
        if count < 2 || dir.size / BLOCK >= count as u64 {
            return Ok(None);
        }
        let mut children = HashMap::new();
        for entry in self.archive.read_dir(&dir, DirCursor::START)? {
            let entry = entry?;
            let child = Child { inode: entry.inode, kind: entry.kind };
            // Of a name that is there twice, which no program writes, the first is found.
            children.entry(entry.name.into()).or_insert(child);
        }
        Ok(Some(children))
    }

    /// The inode of a directory.
    pub(super) fn directory(&self, dir: InodeRef) -> Result<Inode> {
        let dir = self.inode(dir)?;
        if dir.kind != FileKind::Directory {
            return Err(Errno::NOTDIR.into());
        }
        Ok(dir)
    }

    /// What lies at `path`, whose names are separated by `/`, counted from `from`. Symbolic links
    /// are not followed: redirects are made of directories.
    pub(super) fn resolve(&self, from: InodeRef, path: &[u8]) -> Result<Option<Child>> {
        let mut at = Child { inode: from, kind: FileKind::Directory };
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            if at.kind != FileKind::Directory || name == b"." || name == b".." {
                return Ok(None);
            }
            match self.child(at.inode, name)? {
                Some(child) => at = child,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// The attributes of a lower inode under number `ino`.
    pub(super) fn attr(&self, ino: Ino, inode: &Inode) -> Attr {
        Attr {
            ino,
            number: self.ids.number_of(ino),
            generation: 0,
            kind: inode.kind,
            perm: inode.permissions,
            nlink: inode.nlink,
            uid: inode.uid,
            gid: inode.gid,
            rdev: inode.rdev,
            size: inode.size,
            blocks: inode.blocks,
            atime: inode.mtime,
            mtime: inode.mtime,
            ctime: inode.mtime,
            block_size: self.archive.superblock().block_size,
        }
    }
}
