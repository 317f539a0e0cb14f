//! Files that the kernel has forgotten and asks for by their number: whoever has a file handle, as
//! open_by_handle_at(2) takes it and NFS clients keep it, may come back with it at any time.
//!
//! A number says which inode is meant, but not where in the merged tree it is, nor whether it still is there. So
//! first the directory is found that it was last known in:
//!
//! - of what is in the upper, by a table from one walk of the upper, which is made at the first such question and
//!   kept up to date by what the kernel forgets after that;
//! - of a directory of the archive, by what its inode says;
//! - of a file of the archive, by a table from one walk of the archive.
//!
//! That directory is then searched for the number, so that the answer is true even where a table is not. Before
//! the first question nothing is kept.

use std::collections::HashSet;
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;

use super::Overlay;
use super::attr::Attr;
use super::dirs::os_str;
use super::error::{Error, Result};
use super::lookup::Held;
use super::node::Dentry;
use super::parents::{Parents, UpperParents};
use crate::cache::{self, may_wait};
use crate::squashfs::{self, DirCursor};
use crate::types::{FileKind, Ino};

/// Longest way from a file to the root that is walked.
const MAX_DEPTH: usize = 1 << 16;

/// How often a file is looked for that may have moved meanwhile.
const ATTEMPTS: usize = 3;

/// Held by whoever walks one of the halves, so that all who need it wait for one walk.
#[derive(Default)]
pub(super) struct Walks {
    upper: Mutex<()>,
    /// The directories of the archive's files, by inode number.
    lower: Mutex<Option<Parents>>,
}

/// Gets a directory, and the numbers of all in it.
type Visit<'a> = dyn FnMut(Ino, &mut Vec<u64>) -> ControlFlow<()> + 'a;

/// The directory that a file might be in.
type Guess = fn(&Overlay, Ino) -> Result<Option<Ino>>;

/// Where a file might be, one after the other until it is there.
const GUESSES: [Guess; 5] = [
    Overlay::parent_in_upper,
    Overlay::parent_of_lower_directory,
    Overlay::parent_in_lower,
    Overlay::search_upper,
    Overlay::search_lower,
];

impl Overlay {
    /// Finds `ino`, which the kernel may have forgotten, and counts a lookup of it.
    ///
    /// # Errors
    /// `ENOENT` where there is no such file any more, or what reading either half says.
    pub fn lookup_again(&self, ino: Ino) -> Result<Attr> {
        self.attr_of_held(self.hold_again(ino)?)
    }

    /// Finds the directory that directory `ino` is in, and counts a lookup of it.
    ///
    /// # Errors
    /// `ENOENT` where it has been removed, or what reading either half says.
    pub fn lookup_parent(&self, ino: Ino) -> Result<Attr> {
        let parent = match self.nodes.get(ino)?.dentry {
            Dentry::Name(parent, _) => parent,
            Dentry::Nowhere if ino == Ino::ROOT => Ino::ROOT,
            Dentry::Index | Dentry::Nowhere => return Err(Errno::NOENT.into()),
        };
        self.attr_of_held(self.hold_again(parent)?)
    }

    fn attr_of_held(&self, held: Held<'_>) -> Result<Attr> {
        let attr = self.getattr(held.ino, None)?;
        std::mem::forget(held);
        Ok(attr)
    }

    /// Finds `ino` for the length of an operation.
    pub(super) fn hold_again(&self, ino: Ino) -> Result<Held<'_>> {
        for _ in 0..ATTEMPTS {
            let changes = self.changes.load(Ordering::Acquire);
            if let Some(held) = self.find_again(ino)? {
                return Ok(held);
            }
            let moved = self.changes.load(Ordering::Acquire) != changes;
            // It may have moved while it was looked for, or have a name that we do not know.
            if !self.renew_upper_parents()? && !moved {
                break;
            }
        }
        Err(Errno::NOENT.into())
    }

    /// From the file up to what the kernel knows, and down again.
    fn find_again(&self, ino: Ino) -> Result<Option<Held<'_>>> {
        // Files whose directory is being looked for, with the next guess.
        let mut way = Vec::new();
        let mut asked = HashSet::new();
        let mut next = ino;
        loop {
            let mut found = self.hold_known(next)?;
            if found.is_none() && way.len() < MAX_DEPTH && asked.insert(next) {
                way.push((next, GUESSES.iter()));
            }
            next = loop {
                let Some((wanted, guesses)) = way.last_mut() else { return Ok(found) };
                if let Some(directory) = found.take() {
                    found = self.hold_in(&directory, *wanted)?;
                }
                if found.is_some() {
                    // Its own node keeps those of the directories above it.
                    way.pop();
                    continue;
                }
                match guesses.next().map(|guess| guess(self, *wanted)) {
                    Some(Err(error)) if is_nonsense(&error) => {}
                    Some(guess) => {
                        if let Some(directory) = guess? {
                            break directory;
                        }
                    }
                    None => drop(way.pop()),
                }
            };
        }
    }

    /// Counts a lookup of `ino` if it need not be looked for.
    pub(super) fn hold_known(&self, number: Ino) -> Result<Option<Held<'_>>> {
        let ino = loop {
            let _names = self.names.read();
            let ino = self.ids.id_of(number);
            let is_orphan = self.nodes.is_known(ino) && self.nodes.meant(number).is_none();
            if is_orphan && self.index.get(number).is_none() {
                // It has to be looked for.
                return Ok(None);
            }
            // What is in the index is no directory, and no other is an orphan here.
            let ino = self.node_for(number, false);
            if self.nodes.enter_known(ino) {
                break ino;
            }
            let Some(entry) = self.index.get(number) else { return Ok(None) };
            let address = self.index_address(number)?;
            let upper = self.read_marks_of_copy(&address, &address.stat()?, &entry)?;
            if self.nodes.enter(ino, Dentry::Index, Some(upper))? {
                break ino;
            }
        };
        let mut held = Held::new(self, ino);
        held.kind = match self.nodes.upper(ino)? {
            Some(upper) => upper.kind,
            None => self.lower.inode(self.lower.place_of(ino)?)?.kind,
        };
        Ok(Some(held))
    }

    /// Finds what in `directory` has the number `ino`.
    fn hold_in(&self, directory: &Held<'_>, ino: Ino) -> Result<Option<Held<'_>>> {
        let Some(name) = self.name_in(directory.ino, ino)? else { return Ok(None) };
        match self.across_freezes(|| self.hold(directory.ino, &name)) {
            Ok(held) => Ok(Some(held).filter(|held| self.number(held.ino) == self.number(ino))),
            Err(error) if error.is(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn name_in(&self, directory: Ino, ino: Ino) -> Result<Option<OsString>> {
        let (halves, number) = (self.halves(directory)?, self.number(ino));
        if let Some((name, ..)) = halves.shown_in_upper().find(|(_, shown, _)| *shown == number) {
            return Ok(Some(os_str(name).to_owned()));
        }
        let (Some(lower), Some(wanted)) = (halves.lower(), self.lower.inode_ref(ino)) else {
            return Ok(None);
        };
        for entry in
            self.lower.archive().read_dir(&self.lower.directory(lower)?, DirCursor::START)?
        {
            let entry = entry?;
            if entry.inode == wanted {
                return Ok(Some(os_str(&entry.name).to_owned()));
            }
        }
        Ok(None)
    }

    /// The directory of what is in the upper under number `ino`.
    fn parent_in_upper(&self, ino: Ino) -> Result<Option<Ino>> {
        if self.nodes.upper_parents().is_none() {
            self.renew_upper_parents()?;
        }
        Ok(self.nodes.upper_parents().as_ref().and_then(|parents| parents.get(ino)))
    }

    /// Walks the upper if that may tell of something that is not known. Says whether it did.
    fn renew_upper_parents(&self) -> Result<bool> {
        if self.upper.is_none() && !self.stack.has_layers() {
            return Ok(false);
        }
        let _one_at_a_time = self.walks.upper.lock();
        let begun = {
            let mut parents = self.nodes.upper_parents();
            // From here on it is noted what moves.
            let parents = parents.get_or_insert_default();
            if !parents.is_stale() {
                return Ok(false);
            }
            parents.lost()
        };
        let mut walked = Parents::default();
        self.walk_upper(&mut |directory, files| {
            walked.add(directory.0, files);
            ControlFlow::Continue(())
        })?;
        walked.finish();
        if let Some(parents) = self.nodes.upper_parents().as_mut() {
            parents.take(walked, begun);
        }
        Ok(true)
    }

    /// As [`Self::parent_in_upper`], where the upper has more than the table has room for.
    fn search_upper(&self, ino: Ino) -> Result<Option<Ino>> {
        let is_partial = |parents: &UpperParents| parents.is_partial();
        if !self.nodes.upper_parents().as_ref().is_some_and(is_partial) {
            return Ok(None);
        }
        let mut found = None;
        self.walk_upper(&mut search(ino.0, &mut found))?;
        Ok(found)
    }

    /// The directory that a directory of the archive is in, as that says.
    fn parent_of_lower_directory(&self, ino: Ino) -> Result<Option<Ino>> {
        let Some(reference) = self.lower.inode_ref(ino) else { return Ok(None) };
        let Some(number) = self.lower.inode(reference)?.parent() else { return Ok(None) };
        let parent = self.lower.archive().inode_by_number(number)?;
        parent.map(|parent| self.lower.ino(parent)).transpose()
    }

    /// The directory of the archive that lower inode `ino` is in.
    fn parent_in_lower(&self, ino: Ino) -> Result<Option<Ino>> {
        let Some(reference) = self.lower.inode_ref(ino) else { return Ok(None) };
        let number = self.lower.inode(reference)?.number;
        let mut parents = self.known_lower()?;
        let parents = match &mut *parents {
            Some(parents) => parents,
            none => {
                let mut walked = Parents::default();
                self.walk_lower(&mut |directory, files| {
                    walked.add(directory.0, files);
                    ControlFlow::Continue(())
                })?;
                walked.finish();
                none.insert(walked)
            }
        };
        Ok(parents.get(number.0.into()).map(Ino))
    }

    /// As [`Self::parent_in_lower`], where the archive has more than the table has room for.
    fn search_lower(&self, ino: Ino) -> Result<Option<Ino>> {
        if !self.known_lower()?.as_ref().is_some_and(Parents::is_partial) {
            return Ok(None);
        }
        let Some(reference) = self.lower.inode_ref(ino) else { return Ok(None) };
        let number = self.lower.inode(reference)?.number;
        let mut found = None;
        self.walk_lower(&mut search(number.0.into(), &mut found))?;
        Ok(found)
    }

    /// The directories of the archive's files, as far as they are known. Who finds them out may wait for the store
    /// meanwhile, and so would this thread.
    fn known_lower(&self) -> Result<MutexGuard<'_, Option<Parents>>> {
        match self.walks.lower.try_lock() {
            Some(known) => Ok(known),
            None if may_wait() => Ok(self.walks.lower.lock()),
            None => Err(squashfs::Error::Blob(cache::Error::WouldWait).into()),
        }
    }

    /// Gives `visit` the directories of the archive, and the inode numbers in each.
    fn walk_lower(&self, visit: &mut Visit<'_>) -> Result<()> {
        let archive = self.lower.archive();
        let mut pending = vec![archive.root()];
        // A damaged archive may lead in circles.
        let mut entered = HashSet::new();
        while let Some(directory) = pending.pop() {
            let mut numbers = Vec::new();
            for entry in archive.read_dir(&self.lower.directory(directory)?, DirCursor::START)? {
                let entry = entry?;
                numbers.push(entry.number.0.into());
                if entry.kind == FileKind::Directory && entered.insert(entry.inode) {
                    pending.push(entry.inode);
                }
            }
            if visit(self.lower.ino(directory)?, &mut numbers).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Gives `visit` the directories of the upper, and the numbers that what is in each has in the merged
    /// tree.
    fn walk_upper(&self, visit: &mut Visit<'_>) -> Result<()> {
        let mut pending: Vec<_> = self.hold_known(Ino::ROOT)?.into_iter().collect();
        while let Some(directory) = pending.pop() {
            let halves = match self.halves(directory.ino) {
                Ok(halves) => halves,
                Err(error) => {
                    tracing::debug!("a directory of the upper is passed over: {error}");
                    continue;
                }
            };
            let mut numbers = Vec::new();
            for (name, ino, kind) in halves.shown_in_upper() {
                numbers.push(ino.0);
                // One that was removed meanwhile is no loss.
                if kind == FileKind::Directory
                    && let Ok(held) = self.across_freezes(|| self.hold(directory.ino, os_str(name)))
                {
                    pending.push(held);
                }
            }
            if visit(directory.ino, &mut numbers).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// Ends a walk at the directory that has `number` in it.
fn search(
    number: u64,
    found: &mut Option<Ino>,
) -> impl FnMut(Ino, &mut Vec<u64>) -> ControlFlow<()> {
    move |directory, files| {
        if !files.contains(&number) {
            return ControlFlow::Continue(());
        }
        *found = Some(directory);
        ControlFlow::Break(())
    }
}

/// Whether an error says that a number is none of the archive's, as in a handle that somebody made up.
fn is_nonsense(error: &Error) -> bool {
    let Error::Lower(error) = error else { return false };
    matches!(error, squashfs::Error::Corrupt { .. } | squashfs::Error::WrongKind { .. })
}
