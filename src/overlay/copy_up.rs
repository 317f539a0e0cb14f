//! Bringing a lower inode into the upper.
//!
//! A copy is built in the work directory, without a lock, and renamed into place under `names`. One thread copies
//! an inode, and others wait for it (single flight).
//!
//! A write has the data copied. A change that needs no data has not: the file is then a metacopy, a hole of the
//! right size whose data is still read from the archive, until it is first written.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, OFlags, RenameFlags};
use rustix::io::Errno;

use super::Overlay;
use super::build::{Built, FrozenInode, Original};
use super::ctime::KeptCtime;
use super::dirs::{DirView, os_str};
use super::error::{Error, Result};
use super::index::{Entry, nlink_mark};
use super::node::{Data, Dentry, InLayer, Snapshot, UpperState, Want};
use super::stack::Below;
use super::upper::{Mark, Namespace, Whiteouts};
use crate::cache::may_wait;
use crate::inode_ops::{Address, set_size, stat_at, stat_fd, times_of};
use crate::single_flight::{Claim, Lead, Waited};
use crate::types::{FileKind, Ino};

impl Overlay {
    /// Begins to copy `ino`, once nobody else does: one thread copies, others wait for it.
    ///
    /// # Errors
    /// [`Error::WouldCopy`] on a thread that must not wait for the one that copies.
    pub(super) fn start_copy(&self, ino: Ino) -> Result<Lead<'_, Ino, ()>> {
        loop {
            match self.copies.claim(ino, may_wait()) {
                Claim::Lead(lead) => return Ok(lead),
                Claim::Join(flight) => match flight.wait(None, may_wait(), |()| ()) {
                    Waited::WouldWait => return Err(Error::WouldCopy),
                    Waited::Landed(()) | Waited::Abandoned | Waited::Late => {}
                },
            }
        }
    }

    /// Makes sure that `ino` and every directory above it is in the upper, with as much of it as
    /// `want` says.
    ///
    /// # Errors
    /// `EROFS` without an upper, or what reading the archive or writing the upper says. A copy that
    /// failed leaves nothing behind.
    pub(super) fn copy_up(&self, ino: Ino, want: Want) -> Result<()> {
        self.upper()?;
        if self.is_up(&self.nodes.get(ino)?, want) {
            return Ok(());
        }
        // A file with several names may be looked up by another while it is copied, and then belongs below
        // other directories.
        loop {
            while let Some(above) = self.topmost_below_upper(ino)? {
                self.copy_one(above, Want::Attributes)?;
            }
            if self.copy_one(ino, want)? {
                return Ok(());
            }
        }
    }

    fn is_up(&self, node: &Snapshot, want: Want) -> bool {
        node.upper.as_ref().is_some_and(|upper| {
            self.may_change(upper) && (want == Want::Attributes || upper.data.is_here())
        })
    }

    /// The highest directory above `ino` that is not in the upper yet.
    fn topmost_below_upper(&self, ino: Ino) -> Result<Option<Ino>> {
        let mut topmost = None;
        let mut at = ino;
        while let Dentry::Name(parent, _) = self.nodes.get(at)?.dentry {
            if self.nodes.upper(parent)?.is_some_and(|upper| self.is_live(&upper)) {
                break;
            }
            topmost = Some(parent);
            at = parent;
        }
        Ok(topmost)
    }

    /// Copies one inode, and says whether it is there: not where the directory above is not in the upper.
    fn copy_one(&self, ino: Ino, want: Want) -> Result<bool> {
        let _lead = self.start_copy(ino)?;
        let node = self.nodes.get(ino)?;
        if self.is_up(&node, want) {
            return Ok(true);
        }
        match node.upper {
            Some(state) if self.may_change(&state) => {
                self.copy_data(ino, &state, want).map(|()| true)
            }
            Some(state)
                if node.dentry == Dentry::Nowhere && self.has_another_name(ino, &state)? =>
            {
                Ok(false)
            }
            // One without a name cannot be taken up by it; the kernel goes on reading the same data.
            Some(state)
                if self.is_read_by_kernel(ino)
                    && (want != Want::Attributes || node.dentry != Dentry::Nowhere) =>
            {
                self.take_up(ino, &self.in_frozen(ino, state)?)
            }
            Some(state) => {
                self.copy_inode(ino, Original::Layer(Box::new(self.in_frozen(ino, state)?)), want)
            }
            None => {
                let inode = self.lower.inode(self.lower.place_of(ino)?)?;
                self.copy_inode(ino, Original::Archive(inode), want)
            }
        }
    }

    /// Whether file `ino` of a frozen layer, of which a name went that it was known by, has another: it is known by that
    /// then.
    fn has_another_name(&self, ino: Ino, state: &UpperState) -> Result<bool> {
        let Some(pin) = state.pin.as_ref().filter(|_| state.kind != FileKind::Directory) else {
            return Ok(false);
        };
        let stat = stat_fd(pin).map_err(Error::sys("statx", "an open file"))?;
        if stat.stx_nlink == 0 || self.nodes.meant(self.number(ino)).is_none() {
            return Ok(false);
        }
        match self.hold_again(self.number(ino)) {
            Ok(held) => Ok(held.ino == ino),
            Err(error) if error.is(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Inode `ino` of a frozen layer, of which `state` is known.
    pub(super) fn in_frozen(&self, ino: Ino, state: UpperState) -> Result<FrozenInode> {
        let _names = self.names.read();
        let merges = self.stack.merges();
        let whole = match state.kind {
            FileKind::Directory => self.lower_half(ino)?,
            _ => Below::default(),
        };
        let place = match self.nodes.get(ino)?.dentry {
            Dentry::Name(parent, name) if state.pin.is_none() => {
                Some(InLayer { dir: self.part_of(parent, state.layer)?, name })
            }
            _ => None,
        };
        let (address, now) = self.address(ino)?;
        if (now.layer, now.st_ino) != (state.layer, state.st_ino) {
            return Err(Error::Frozen);
        }
        // Where its data is, may be said otherwise by now.
        let state = now;
        let address = Address::Pinned(address.pin()?);
        let stat = self.numbers.identify(&address, address.stat()?)?;
        Ok(FrozenInode { address, stat, state, whole, place, merges })
    }

    /// Copies a lower inode that has nothing in the upper yet. Says whether it has now, as [`Self::copy_one`].
    fn copy_inode(&self, ino: Ino, original: Original, want: Want) -> Result<bool> {
        let built = self.build(ino, &original, want)?;
        let copy = built.fd.clone();
        let kind = original.kind();
        let kept_ctime = match (&original, kind) {
            (Original::Archive(inode), FileKind::Directory) => {
                Some(KeptCtime::of_lower(inode.mtime))
            }
            (Original::Layer(frozen), FileKind::Directory) => {
                let attr = self.attr_of_upper(ino, &frozen.state, &frozen.stat)?;
                Some(KeptCtime { ctime: attr.ctime, mtime: attr.mtime })
            }
            _ => None,
        };
        if let Some(kept) = kept_ctime {
            self.mark_ctime(&built.draft.address(), kept)?;
        }
        let _names = self.names.write();
        let node = self.nodes.get(ino)?;
        if let Dentry::Name(parent, _) = node.dentry
            && !self.nodes.upper(parent)?.is_some_and(|upper| self.is_live(&upper))
        {
            return Ok(false);
        }
        if !original.is_what(node.upper.as_ref(), self.stack.merges()) {
            return Ok(false);
        }
        let mut state = UpperState {
            data: built.data.clone(),
            null_device: built.null_device,
            owner: built.owner,
            kept_ctime,
            ..UpperState::new(
                (self.live(), built.st_ino),
                kind,
                original.generation(),
                original.below(),
            )
        };
        if kind == FileKind::Directory && node.dentry == Dentry::Nowhere {
            // A removed directory merges with nothing.
            state.below = Below::default();
            state.kept_ctime = None;
        }
        match &node.dentry {
            Dentry::Name(parent, name) => {
                let name = os_str(name);
                let dir = self.dir_fd(*parent)?;
                let stat = stat_fd(&dir).map_err(Error::sys("statx", "a directory"))?;
                self.keep_ctime(*parent, &dir, &stat)?;
                self.set_impure(*parent, &dir)?;
                let entry = original.index_entry(self.number(ino), built.st_ino);
                if kind != FileKind::Directory
                    && entry.lower_nlink > 1
                    && self.is_unindexed(&entry)?
                    && self.can_be_counted(&built, kind)?
                {
                    self.place_in_index(ino, entry, built, &mut state, (&dir, name))?;
                } else {
                    built.draft.place(&dir, name, RenameFlags::NOREPLACE)?;
                }
                // Copying up is no change of the directory that a program may see.
                Address::at(&dir, OsStr::new(".")).set_times(&times_of(&stat))?;
            }
            Dentry::Index | Dentry::Nowhere => {
                // Unlinked, though still in use: the copy is as nameless. The draft's name goes
                // when it is dropped.
                state.pin = Some(built.draft.address().pin()?);
                drop(built);
            }
        }
        self.changed();
        self.nodes.publish(ino, state);
        if let Some(copy) = copy {
            self.handles.moved(ino, self.live(), &copy);
        }
        Ok(true)
    }

    /// Whether the index has no other inode of this number, as a damaged archive may have it.
    fn is_unindexed(&self, entry: &Entry) -> Result<bool> {
        match stat_at(&self.upper()?.index, &entry.name) {
            Ok(_) => Ok(false),
            Err(Errno::NOENT) => Ok(true),
            Err(errno) => Err(Error::sys("statx", "an index entry")(errno)),
        }
    }

    /// Whether the names of `built` can be counted, by a mark on it: an ordinary user's links and special
    /// files have none. Such a copy has one name, and the others stay what they were.
    fn can_be_counted(&self, built: &Built<'_>, kind: FileKind) -> Result<bool> {
        let marks = self.upper()?.marks;
        let draft = built.draft.address();
        match marks.for_kind(kind).set(&draft, Mark::Nlink, &nlink_mark(b'L', 0)) {
            Err(error) if marks == Namespace::User && error.is(Errno::PERM) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Puts the copy of a lower inode that has several names into the index, and gives it the name
    /// it is copied up through.
    fn place_in_index(
        &self,
        ino: Ino,
        entry: Entry,
        built: Built<'_>,
        state: &mut UpperState,
        (dir, name): (&OwnedFd, &OsStr),
    ) -> Result<()> {
        let upper = self.upper()?;
        built.draft.place(&upper.index, &entry.name, RenameFlags::NOREPLACE)?;
        let address = Address::at(&upper.index, &entry.name);
        if let Err(error) = address.link_to(dir, name) {
            rustix::fs::unlinkat(&upper.index, entry.name.as_os_str(), AtFlags::empty())
                .map_err(Error::sys("unlink", "an index entry"))?;
            return Err(error.into());
        }
        // Two links are there now: the index's and the name's.
        state.extra_links = i64::from(entry.lower_nlink) - 2;
        let marks = upper.marks.for_kind(state.kind);
        marks.set(&address, Mark::Nlink, &nlink_mark(b'U', state.extra_links))?;
        self.index.add(ino, entry);
        self.nodes.move_to(ino, Dentry::Index);
        Ok(())
    }

    /// Fills a metacopy with its data.
    fn copy_data(&self, ino: Ino, state: &UpperState, want: Want) -> Result<()> {
        if state.data.is_here() {
            return Ok(());
        }
        // A name may go to another file while data is copied; the descriptor does not.
        let fd = {
            let _names = self.names.read();
            Arc::new(self.address(ino)?.0.open(OFlags::RDWR)?)
        };
        let pinned = Address::Pinned(Arc::clone(&fd));
        let times = times_of(&pinned.stat()?);
        let capability = pinned.get_xattr(CAPABILITY).ok();
        match want {
            Want::Truncated => set_size(&fd, 0)?,
            Want::Attributes | Want::Data => {
                self.write_data(&state.data, &fd)?;
                rustix::fs::fsync(&fd).map_err(Error::sys("fsync", "a copy"))?;
            }
        }
        // Writing drops file capabilities and moves the times; copying up does neither.
        if let Some(value) = capability {
            pinned
                .set_xattr(CAPABILITY, &value, rustix::fs::XattrFlags::empty())
                .map_err(Error::sys("setxattr", "a copy"))?;
        }
        pinned.set_times(&times)?;
        let _names = self.names.write();
        self.upper()?.marks.clear(&pinned, Mark::Metacopy)?;
        self.changed();
        // Also of one that was frozen meanwhile: it holds what it did.
        self.nodes.update(ino, |upper| upper.data = Data::Upper);
        self.handles.moved(ino, state.layer, &fd);
        Ok(())
    }

    /// Whether the upper half of `dir` may hold inodes that keep a number of the lower, or of another layer: then they
    /// have to be asked. Called with `names` held, unless it is of a frozen layer.
    pub(super) fn is_impure(&self, dir: &DirView) -> Result<bool> {
        let known = match &dir.part {
            Some(part) => part.is_impure(),
            None => self.nodes.upper(dir.ino)?.and_then(|upper| upper.impure),
        };
        if let Some(impure) = known {
            return Ok(impure);
        }
        let address = Address::at(dir.fd()?, OsStr::new("."));
        let impure = self.marks.get(&address, Mark::Impure)?.is_some();
        match &dir.part {
            Some(part) => part.set_impure(impure),
            None => self.nodes.update(dir.ino, |upper| upper.impure = Some(impure)),
        }
        Ok(impure)
    }

    /// Marks directory `ino` as holding inodes that keep a lower number, so that a listing looks
    /// for them.
    pub(super) fn set_impure(&self, ino: Ino, dir: &Arc<OwnedFd>) -> Result<()> {
        if self.nodes.upper(ino)?.is_some_and(|upper| upper.impure != Some(true)) {
            let address = Address::at(dir, OsStr::new("."));
            self.upper()?.marks.set(&address, Mark::Impure, b"y")?;
            self.nodes.update(ino, |upper| upper.impure = Some(true));
        }
        Ok(())
    }
}

impl Overlay {
    /// Prepares directory `ino`, which merges with a lower one and whose upper half is `dir`, for
    /// whiteouts.
    pub(super) fn set_whiteouts(&self, ino: Ino, dir: &Arc<OwnedFd>) -> Result<()> {
        let upper = self.upper()?;
        if upper.whiteouts == Whiteouts::Files
            && self.nodes.upper(ino)?.is_some_and(|upper| !upper.whiteouts)
        {
            upper.mark_whiteouts(dir)?;
            self.nodes.update(ino, |upper| upper.whiteouts = true);
        }
        Ok(())
    }
}

/// The one attribute that a write removes.
const CAPABILITY: &std::ffi::CStr = c"security.capability";
