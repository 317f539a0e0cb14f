//! The whole tree, one entry at a time.

use std::collections::HashSet;

use super::Archive;
use super::dir::{DirCursor, DirReader};
use super::error::Error;
use super::inode::Inode;
use crate::types::{FileKind, InodeRef};

/// One file of a walk.
#[derive(Clone, Debug)]
pub struct WalkEntry {
    /// Its path below the root without a leading `/`; empty for the root itself.
    pub path: Vec<u8>,
    /// Its inode.
    pub inode: Inode,
}

/// Walks an archive from its root, parents before children and in the archive's order. What can be
/// read goes on coming after an error: a directory that cannot be listed yields one error.
///
/// A directory is entered once. An archive that has a second name for one, which would allow
/// cycles, gets an error for it. Remembering them takes some 10 bytes for each directory.
pub struct Walk<'a> {
    archive: &'a Archive,
    /// The directories being read, from the root down, with the length of each one's path.
    open: Vec<(DirReader<'a>, usize)>,
    path: Vec<u8>,
    entered: HashSet<InodeRef>,
    root: Option<InodeRef>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(archive: &'a Archive, root: InodeRef) -> Self {
        Self {
            archive,
            open: Vec::new(),
            path: Vec::new(),
            entered: HashSet::new(),
            root: Some(root),
        }
    }

    fn enter(&mut self, inode: Inode) -> Result<WalkEntry, Error> {
        if inode.kind == FileKind::Directory {
            if !self.entered.insert(inode.reference) {
                let detail = format!("inode {} is a directory with a second name", inode.reference);
                let at = self.archive.superblock().directory_table;
                return Err(Error::corrupt("directory", at, detail));
            }
            let reader = self.archive.read_dir(&inode, DirCursor::START)?;
            self.open.push((reader, self.path.len()));
        }
        Ok(WalkEntry { path: self.path.clone(), inode })
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<WalkEntry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(root) = self.root.take() {
            return Some(self.archive.inode(root).and_then(|inode| self.enter(inode)));
        }
        while let Some((reader, path_len)) = self.open.last_mut() {
            let entry = match reader.next() {
                Some(Ok(entry)) => entry,
                Some(Err(error)) => return Some(Err(error)),
                None => {
                    self.open.pop();
                    continue;
                }
            };
            self.path.truncate(*path_len);
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend(&entry.name);
            return Some(self.archive.inode(entry.inode).and_then(|inode| self.enter(inode)));
        }
        None
    }
}
