//! Removing names.
//!
//! A name that the lower has too is replaced by a whiteout in one step, so that the lower never
//! shows through.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, RenameFlags};
use rustix::io::Errno;

use super::Overlay;
use super::attr::is_null_device;
use super::dirs::{DirView, os_str};
use super::error::{Error, Result};
use super::lookup::{Held, Physical};
use super::lower::Beneath;
use super::node::{Dentry, Want};
use super::stack::Below;
use super::upper::{Mark, Namespace};
use crate::inode_ops::{Address, list, stat_at, stat_fd};
use crate::squashfs::DirCursor;
use crate::types::{FileKind, Ino};
use crate::watch::What;

impl Overlay {
    /// Removes the name `name` of a file in `parent`.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`, `EROFS`, or what the upper says.
    pub fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.across_freezes(|| self.try_to_unlink(parent, name))
    }

    fn try_to_unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.upper()?;
        let held = self.hold(parent, name)?;
        if held.kind == FileKind::Directory {
            return Err(Errno::ISDIR.into());
        }
        let beneath = self.lower_child(parent, name)?;
        self.prepare_removal(parent, &held, &beneath)?;
        let _names = self.names.write();
        let (dir, physical) = self.recheck(parent, name, &beneath, held.ino)?;
        let physical = self.link_alias(held.ino, &dir, name, physical)?;
        self.tell_write_before(held.ino);
        self.unplace(held.ino, parent, name)?;
        self.hide(&dir, name, physical, beneath.is_some()).inspect_err(|_| {
            self.nodes.move_to(held.ino, Dentry::named(parent, name));
        })?;
        self.changed();
        self.tell_name(What::Remove, (held.ino, held.kind), parent, name);
        self.name_gone(held.ino)
    }

    /// Removes the empty directory `name` in `parent`.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENOTEMPTY`, `EROFS`, or what the upper says.
    pub fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.across_freezes(|| self.try_to_rmdir(parent, name))
    }

    fn try_to_rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let upper = self.upper()?;
        let held = self.hold(parent, name)?;
        if held.kind != FileKind::Directory {
            return Err(Errno::NOTDIR.into());
        }
        // In this order: what is found out after that is of the same stack, or is not used.
        let beneath = self.lower_child(parent, name)?;
        self.check_lower_hidden(held.ino)?;
        self.prepare_removal(parent, &held, &beneath)?;
        // Declared first, so dropped last: whiteouts are removed when others may go on.
        let _removed;
        let _names = self.names.write();
        let (dir, physical) = self.recheck(parent, name, &beneath, held.ino)?;
        self.check_upper_empty(held.ino)?;
        let fd = dir.fd()?;
        if beneath.is_some() {
            self.set_whiteouts(parent, fd)?;
        }
        self.unplace(held.ino, parent, name)?;
        let removed = match (physical, beneath.is_some()) {
            (Physical::Entry, true) => {
                upper.draft_whiteout()?.place(fd, name, RenameFlags::EXCHANGE).map(Some)
            }
            (Physical::Entry, false) => match rustix::fs::unlinkat(fd, name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => upper.take_away(fd, name).map(Some),
                other => other.map(|()| None).map_err(Error::sys("rmdir", name.display())),
            },
            (Physical::Absent | Physical::Whiteout, _) => {
                upper.link_whiteout(fd, name).map(|()| None)
            }
        };
        _removed =
            removed.inspect_err(|_| self.nodes.move_to(held.ino, Dentry::named(parent, name)))?;
        self.changed();
        self.tell_name(What::Remove, (held.ino, held.kind), parent, name);
        self.directory_gone(held.ino);
        Ok(())
    }

    /// Copies up what removing a name of `held` needs in the upper: the directory if it must hold a
    /// whiteout, and a lower inode that keeps other names, for its count of them.
    pub(super) fn prepare_removal(
        &self,
        parent: Ino,
        held: &Held<'_>,
        beneath: &Beneath,
    ) -> Result<()> {
        if beneath.is_some() {
            self.copy_up(parent, Want::Attributes)?;
        }
        if held.kind != FileKind::Directory
            && self.can_count_names(held.kind)?
            && self.has_other_lower_names(held.ino)?
        {
            self.copy_up(held.ino, Want::Attributes)?;
        }
        Ok(())
    }

    /// Whether a copy of a file of `kind` can have a count of names on it: an ordinary user's links and special files have no
    /// marks.
    fn can_count_names(&self, kind: FileKind) -> Result<bool> {
        Ok(self.upper()?.marks != Namespace::User || kind == FileKind::Regular)
    }

    /// Whether file `ino` is not in the live upper, and has more than one name.
    fn has_other_lower_names(&self, ino: Ino) -> Result<bool> {
        match self.nodes.upper(ino)? {
            Some(state) if self.may_change(&state) => Ok(false),
            Some(_) => {
                let _names = self.names.read();
                Ok(self.address(ino)?.0.stat()?.stx_nlink > 1)
            }
            None => match self.lower.inode_ref(ino) {
                Some(lower) => Ok(self.lower.inode(lower)?.nlink > 1),
                None => Ok(false),
            },
        }
    }

    /// Whether `name` in `parent` still means `ino`. Called with `names` held exclusively.
    pub(super) fn recheck(
        &self,
        parent: Ino,
        name: &OsStr,
        beneath: &Beneath,
        ino: Ino,
    ) -> Result<(DirView, Physical)> {
        let dir = self.dir_view(parent)?;
        let slot = self.slot(&dir, name, beneath)?;
        match slot.found {
            Some(found) if found.ino == self.number(ino) => Ok((dir, slot.physical)),
            Some(_) | None => Err(Errno::NOENT.into()),
        }
    }

    /// Removes a name that is not a directory's from the merged tree.
    fn hide(
        &self,
        dir: &DirView,
        name: &OsStr,
        physical: Physical,
        lower_shows: bool,
    ) -> Result<()> {
        let upper = self.upper()?;
        let fd = dir.fd()?;
        if lower_shows {
            self.set_whiteouts(dir.ino, fd)?;
        }
        match (physical, lower_shows) {
            (Physical::Entry, true) => {
                upper.draft_whiteout()?.place(fd, name, RenameFlags::empty()).map(drop)
            }
            (Physical::Entry, false) => rustix::fs::unlinkat(fd, name, AtFlags::empty())
                .map_err(Error::sys("unlink", name.display())),
            (Physical::Absent | Physical::Whiteout, _) => upper.link_whiteout(fd, name),
        }
    }

    /// Accounts for a name of `ino` that is gone.
    pub(super) fn name_gone(&self, ino: Ino) -> Result<()> {
        if self.index.get(ino).is_none() {
            return self.part_from_others(ino);
        }
        let Some(state) = self.nodes.upper(ino)? else { return Ok(()) };
        let address = self.index_address(ino)?;
        if i64::from(address.stat()?.stx_nlink) + state.extra_links <= 0 {
            let pin = address.pin()?;
            self.nodes.update(ino, |upper| {
                upper.pin = Some(pin);
                // With the index's own link gone, the upper's count is the truth.
                upper.extra_links = 0;
            });
            self.nodes.move_to(ino, Dentry::Nowhere);
            self.unindex(ino)?;
        }
        Ok(())
    }

    /// A copy whose names cannot be counted has one, and is gone with that. The others go on to mean what they meant.
    fn part_from_others(&self, ino: Ino) -> Result<()> {
        let Some(state) = self.nodes.upper(ino)? else { return Ok(()) };
        if let Some(pin) = &state.pin
            && !self.can_count_names(state.kind)?
            && stat_fd(pin).is_ok_and(|stat| stat.stx_nlink == 0)
        {
            self.nodes.orphan(ino, |_| {});
        }
        Ok(())
    }

    /// Accounts for a directory that is gone: nothing is to be found in it any more.
    pub(super) fn directory_gone(&self, ino: Ino) {
        self.dirs.remove(ino);
        self.nodes.bury(ino);
        self.nodes.update(ino, |upper| (upper.below, upper.kept_ctime) = (Below::default(), None));
    }

    /// Checks that every name in the lower half of directory `ino` is hidden by something in its
    /// upper half. What is hidden once stays so. May touch the network.
    pub(super) fn check_lower_hidden(&self, ino: Ino) -> Result<()> {
        let (below, fd) = {
            let _names = self.names.read();
            let view = self.dir_view(ino)?;
            (view.below, view.fd)
        };
        let is_hidden = |name: &OsStr| fd.as_ref().is_some_and(|fd| stat_at(fd, name).is_ok());
        let in_layers = self.names_in_parts(&below)?;
        for (name, entry) in &in_layers {
            if entry.is_some() && !is_hidden(os_str(name)) {
                return Err(Errno::NOTEMPTY.into());
            }
        }
        let Some(lower) = below.archive else { return Ok(()) };
        let directory = self.lower.directory(lower)?;
        for entry in self.lower.archive().read_dir(&directory, DirCursor::START)? {
            let entry = entry?;
            if !in_layers.contains_key(&*entry.name) && !is_hidden(os_str(&entry.name)) {
                return Err(Errno::NOTEMPTY.into());
            }
        }
        Ok(())
    }

    /// Checks that the upper half of directory `ino` holds whiteouts at most. Called with `names`
    /// held exclusively.
    pub(super) fn check_upper_empty(&self, ino: Ino) -> Result<()> {
        let Some(fd) = self.dir_view(ino)?.fd else { return Ok(()) };
        for (name, _, kind) in list(&fd)? {
            if !self.is_whiteout(&fd, &name, kind)? {
                return Err(Errno::NOTEMPTY.into());
            }
        }
        Ok(())
    }

    /// Whether `name` in `dir`, listed as of `kind`, is a whiteout of either form.
    pub(super) fn is_whiteout(
        &self,
        dir: &Arc<OwnedFd>,
        name: &OsStr,
        kind: FileType,
    ) -> Result<bool> {
        match kind {
            FileType::CharacterDevice | FileType::Unknown => {
                let stat = stat_at(dir, name).map_err(Error::sys("statx", name.display()))?;
                Ok(is_null_device(&stat))
            }
            FileType::RegularFile => {
                let address = Address::at(dir, name);
                Ok(self.marks.get(&address, Mark::Whiteout)?.is_some()
                    && address.stat()?.stx_size == 0)
            }
            _ => Ok(false),
        }
    }
}
