//! The tree and the tables of an archive, gone through without reading any contents.

use std::collections::HashSet;

use super::blocks::{Claim, Claims};
use super::{First, Owner};
use crate::squashfs::{Archive, DirCursor, DirEntry, DirReader, Error, Inode};
use crate::types::{FileKind, InodeNumber, InodeRef};

/// Names found between two doublings of the distance of names that are looked up. It keeps the
/// number of look-ups small where a long directory has no index to find them with.
const LOOKUPS: u64 = 64;

/// What was come across so far. Memory grows with inodes and blocks, some 40 bytes for each.
pub(super) struct Survey<'a> {
    archive: &'a Archive,
    first: &'a mut First,
    seen: HashSet<InodeRef>,
    numbers: Vec<(InodeNumber, InodeRef)>,
    claims: Claims,
}

/// A directory that is being read.
struct Level<'a> {
    inode: Inode,
    entries: DirReader<'a>,
    path_len: usize,
    last: Option<DirEntry>,
    count: u64,
    /// Every so many entries, one is looked up by its name.
    stride: u64,
}

impl<'a> Survey<'a> {
    /// Goes through all of it.
    ///
    /// # Errors
    /// What is no damage. Damage goes to `first`, and what can be read behind it is.
    pub(super) fn of(archive: &'a Archive, first: &'a mut First) -> Result<Self, Error> {
        let claims = Claims::new(archive.superblock().bytes_used);
        let (seen, numbers) = (HashSet::new(), Vec::new());
        let mut survey = Self { archive, first, seen, numbers, claims };
        survey.tree()?;
        survey.inode_numbers()?;
        for block in archive.fragment_blocks() {
            match block {
                Ok(block) => survey.claims.add(Claim { block, owner: None }),
                Err(error) => survey.first.note(error, Owner::Nobody)?,
            }
        }
        for error in archive.check_tables() {
            survey.first.note(error, Owner::Xattrs)?;
        }
        Ok(survey)
    }

    /// How many inodes there are.
    pub(super) fn inodes(&self) -> u64 {
        self.seen.len() as u64
    }

    /// The blocks to be read, in the order they lie in; none where they overlap.
    ///
    /// # Errors
    /// What is no damage.
    pub(super) fn into_claims(self) -> Result<Vec<Claim>, Error> {
        match self.claims.into_sorted() {
            Ok(claims) => Ok(claims),
            Err(error) => self.first.note(error, Owner::Nobody).map(|()| Vec::new()),
        }
    }

    fn tree(&mut self) -> Result<(), Error> {
        let root = self.archive.inode(self.archive.root())?;
        self.see(&root);
        let mut path = Vec::new();
        let mut levels = Vec::new();
        levels.extend(self.enter(root, &path)?);
        while let Some(level) = levels.last_mut() {
            path.truncate(level.path_len);
            let entry = match level.entries.next() {
                Some(Ok(entry)) => entry,
                Some(Err(error)) => {
                    self.first.note(error, Owner::Path(path.clone()))?;
                    continue;
                }
                None => {
                    if let Some(last) = &level.last {
                        find_again(self.archive, &level.inode, last, self.first, &path)?;
                    }
                    levels.pop();
                    continue;
                }
            };
            if let Err(error) = level.check_order(self.archive, &entry) {
                self.first.note(error, Owner::Path(path.clone()))?;
            } else if level.count.is_multiple_of(level.stride) {
                find_again(self.archive, &level.inode, &entry, self.first, &path)?;
            }
            let parent = level.inode.number;
            level.pass(entry.clone());
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&entry.name);
            match self.visit(&entry, parent) {
                Ok(Some(directory)) => levels.extend(self.enter(directory, &path)?),
                Ok(None) => {}
                Err(error) => self.first.note(error, Owner::Path(path.clone()))?,
            }
        }
        Ok(())
    }

    fn enter(&mut self, inode: Inode, path: &[u8]) -> Result<Option<Level<'a>>, Error> {
        match self.archive.read_dir(&inode, DirCursor::START) {
            Ok(entries) => {
                let path_len = path.len();
                Ok(Some(Level { inode, entries, path_len, last: None, count: 0, stride: 1 }))
            }
            Err(error) => self.first.note(error, Owner::Path(path.to_vec())).map(|()| None),
        }
    }

    /// Reads what an entry names, all but contents. Gives a directory to be entered.
    fn visit(&mut self, entry: &DirEntry, parent: InodeNumber) -> Result<Option<Inode>, Error> {
        let inode = self.archive.inode(entry.inode)?;
        let superblock = self.archive.superblock();
        if (inode.number, inode.kind) != (entry.number, entry.kind) {
            let InodeNumber(found) = inode.number;
            let InodeNumber(expected) = entry.number;
            let detail = format!(
                "an entry is of {:?} {expected}, its inode is {:?} {found}",
                entry.kind, inode.kind
            );
            return Err(Error::corrupt("directory", superblock.directory_table, detail));
        }
        let is_new = self.see(&inode);
        if inode.kind == FileKind::Directory {
            let at = superblock.directory_table;
            if !is_new {
                let detail = format!("inode {} is a directory with a second name", inode.reference);
                return Err(Error::corrupt("directory", at, detail));
            }
            if inode.parent() != Some(parent) {
                let detail =
                    format!("inode {} is in another directory than it says", inode.reference);
                return Err(Error::corrupt("directory", at, detail));
            }
        }
        if !is_new {
            return Ok(None);
        }
        match inode.kind {
            FileKind::Regular => {
                let owner = Some(inode.reference);
                self.archive
                    .data_blocks(&inode, |block| self.claims.add(Claim { block, owner }))?;
            }
            FileKind::Symlink => {
                let target = self.archive.read_link(&inode)?;
                if target.is_empty() {
                    let at = superblock.inode_table;
                    return Err(Error::corrupt("symlink", at, "its target is empty"));
                }
            }
            _ => {}
        }
        Ok((inode.kind == FileKind::Directory).then_some(inode))
    }

    /// Counts an inode. Says whether it is met for the first time.
    fn see(&mut self, inode: &Inode) -> bool {
        let is_new = self.seen.insert(inode.reference);
        if is_new {
            self.numbers.push((inode.number, inode.reference));
        }
        is_new
    }

    /// Every number is that of one inode, the inodes are as many as the superblock says, and the
    /// table of their numbers, if there is one, leads to each.
    fn inode_numbers(&mut self) -> Result<(), Error> {
        let Self { archive, first, numbers, .. } = self;
        let superblock = archive.superblock();
        numbers.sort_unstable();
        for pair in numbers.array_windows() {
            let [(number, one), (next, other)] = pair;
            if number == next {
                let detail = format!("number {} is that of {one} and of {other}", number.0);
                let error = Error::corrupt("inode", superblock.inode_table, detail);
                first.note(error, Owner::Inode(*other))?;
            }
        }
        // Where something could not be read, the count would only repeat that.
        let found = numbers.len();
        if first.0.is_none() && found as u64 != u64::from(superblock.inodes) {
            let detail = format!("{} inodes where {found} are in the tree", superblock.inodes);
            let error = Error::corrupt("superblock", crate::types::ArchiveOffset(0), detail);
            first.note(error, Owner::Nobody)?;
        }
        let Some(table) = superblock.export_table else { return Ok(()) };
        for &(number, reference) in numbers.iter() {
            let checked = archive.inode_by_number(number).and_then(|found| {
                if found == Some(reference) {
                    return Ok(());
                }
                let shown = found.map_or("nothing".to_owned(), |found| found.to_string());
                let detail = format!("number {} leads to {shown}, not to {reference}", number.0);
                Err(Error::corrupt("export table", table, detail))
            });
            if let Err(error) = checked {
                first.note(error, Owner::Inode(reference))?;
            }
        }
        Ok(())
    }
}

impl Level<'_> {
    /// Names ascend, or they could not be found by halves.
    fn check_order(&self, archive: &Archive, entry: &DirEntry) -> Result<(), Error> {
        match &self.last {
            Some(last) if last.name >= entry.name => {
                let shown = entry.name.escape_ascii();
                let detail = format!("the name \"{shown}\" comes too late, or twice");
                Err(Error::corrupt("directory", archive.superblock().directory_table, detail))
            }
            _ => Ok(()),
        }
    }

    /// Moves on behind an entry.
    fn pass(&mut self, entry: DirEntry) {
        self.last = Some(entry);
        self.count += 1;
        if self.count == self.stride * LOOKUPS {
            self.stride *= 2;
        }
    }
}

/// Looks an entry up by its name, which goes through the directory's index.
fn find_again(
    archive: &Archive,
    directory: &Inode,
    entry: &DirEntry,
    first: &mut First,
    path: &[u8],
) -> Result<(), Error> {
    let found = archive.lookup(directory, &entry.name).and_then(|found| {
        if found.is_some_and(|found| found.inode == entry.inode) {
            return Ok(());
        }
        let detail = format!("the name \"{}\" cannot be found", entry.name.escape_ascii());
        Err(Error::corrupt("directory", archive.superblock().directory_table, detail))
    });
    match found {
        Ok(()) => Ok(()),
        Err(error) => first.note(error, Owner::Path(path.to_vec())),
    }
}
