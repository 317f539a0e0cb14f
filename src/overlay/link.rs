//! Hard links.

use std::ffi::OsStr;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::Overlay;
use super::attr::Attr;
use super::describe::Found;
use super::dirs::os_str;
use super::error::Result;
use super::ino;
use super::lookup::Physical;
use super::node::{Dentry, UpperState, Want};
use crate::inode_ops::stat_at;
use crate::types::{FileKind, Ino};
use crate::watch::What;

impl Overlay {
    /// Gives `ino` one more name, `name` in `parent`, and counts a lookup of it.
    ///
    /// # Errors
    /// `EPERM` for a directory, `EEXIST`, `ENOENT` where `ino` has no name left, `EROFS`, or what
    /// the upper says.
    pub fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Attr> {
        self.across_freezes(|| self.try_to_link(ino, parent, name))?;
        self.getattr(ino, None).inspect_err(|_| self.forget(ino, 1))
    }

    fn try_to_link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<()> {
        let upper = self.upper()?;
        let beneath = self.lower_child(parent, name)?;
        self.copy_up(ino, Want::Attributes)?;
        self.keep_data_found(ino)?;
        self.copy_up(parent, Want::Attributes)?;
        let _names = self.names.write();
        let dir = self.dir_view(parent)?;
        let slot = self.slot(&dir, name, &beneath)?;
        if slot.found.is_some() {
            return Err(Errno::EXIST.into());
        }
        let (inode, state) = self.live_address(ino)?;
        if state.kind == FileKind::Directory {
            return Err(Errno::PERM.into());
        }
        let fd = dir.fd()?;
        if self.number(ino) != ino::of_birth(state.layer, state.st_ino) {
            self.set_impure(parent, fd)?;
        }
        if inode.stat()?.stx_nlink == 0 {
            return Err(Errno::NOENT.into());
        }
        match slot.physical {
            Physical::Absent => inode.link_to(fd, name)?,
            Physical::Whiteout | Physical::Entry => {
                let (draft, ()) = upper.draft(|work, draft| inode.link_to(work, draft))?;
                draft.place(fd, name, RenameFlags::empty())?;
            }
        }
        self.changed();
        let kind = state.kind;
        self.tell_write_before(ino);
        self.tell_name(What::Create, (ino, kind), parent, name);
        std::mem::forget(self.enter(parent, name, Found { ino, kind, upper: Some(state) })?);
        Ok(())
    }

    /// Prepares for the name `name` of `ino` in `parent` to go: if it is the one by which we reach
    /// the inode, a descriptor takes its place. Called with `names` held exclusively.
    pub(super) fn unplace(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<()> {
        self.nodes.alias_gone(ino, parent, name);
        if !self.nodes.is_at(ino, parent, name) {
            return Ok(());
        }
        if self.nodes.upper(ino)?.is_some() {
            let (inode, state) = self.address(ino)?;
            if let Some(other) = self.other_name(ino, &state)? {
                self.nodes.move_to(ino, other);
                self.nodes.alias_gone(ino, parent, name);
                return Ok(());
            }
            let asked = self.nodes.upper_parents().is_some();
            let others = state.kind != FileKind::Directory && asked && inode.stat()?.stx_nlink > 1;
            if let Some(parents) = self.nodes.upper_parents().as_mut().filter(|_| others) {
                parents.lose_track();
            }
            let pin = inode.pin()?;
            self.nodes.update(ino, |upper| upper.pin = Some(pin));
        }
        self.nodes.move_to(ino, Dentry::Nowhere);
        Ok(())
    }

    /// Another name by which `ino` was used, and which leads to the same inode. Called with `names` held.
    pub(super) fn other_name(&self, ino: Ino, state: &UpperState) -> Result<Option<Dentry>> {
        if state.kind == FileKind::Directory || !self.is_live(state) {
            return Ok(None);
        }
        for (dir, name) in self.nodes.names(ino) {
            if self.nodes.is_at(ino, dir, os_str(&name)) {
                continue;
            }
            // It may be forgotten any moment.
            let is_live = |state: Option<UpperState>| state.is_some_and(|dir| self.is_live(&dir));
            if !self.nodes.upper(dir).is_ok_and(is_live) {
                continue;
            }
            let is_it = |stat: rustix::fs::Statx| stat.stx_ino == state.st_ino;
            if stat_at(&*self.dir_fd(dir)?, os_str(&name)).is_ok_and(is_it) {
                return Ok(Some(Dentry::Name(dir, name)));
            }
        }
        Ok(None)
    }
}
