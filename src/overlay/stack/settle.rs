//! The index before a freeze: each name of what it keeps is made a name of the upper itself, so that a layer says of
//! itself all there is to know, and needs no index.

use std::ffi::OsStr;
use std::sync::Arc;

use rustix::io::Errno;

use super::super::Overlay;
use super::super::dirs::os_str;
use super::super::error::{Error, Result};
use super::super::lookup::Physical;
use super::super::node::{Dentry, Want};
use super::super::upper::Mark;
use crate::inode_ops::{Address, stat_fd, times_of};
use crate::types::Ino;

impl Overlay {
    /// Makes the index empty.
    pub(super) fn settle_index(&self) -> Result<()> {
        for (number, entry) in self.index.all_by_ino() {
            // Its node is needed while its names are made.
            let Some(held) = self.hold_known(number)? else { continue };
            let ino = held.ino;
            for (dir, name) in self.lower_names(number, &entry)? {
                let dir = match self.hold_again(dir) {
                    Ok(dir) => dir,
                    // It was removed, with all in it.
                    Err(error) if error.is(Errno::NOENT) => continue,
                    Err(error) => return Err(error),
                };
                let link = || self.link_if_hidden_by_none(ino, dir.ino, os_str(&name));
                match self.across_freezes(link) {
                    Err(error) if error.is(Errno::NOENT) && self.is_gone(dir.ino) => {}
                    linked => linked?,
                }
            }
            self.take_from_index(ino)?;
        }
        Ok(())
    }

    /// Makes `name` in `dir` a name of the upper, if it is one of the lower that leads to `ino`.
    fn link_if_hidden_by_none(&self, ino: Ino, dir: Ino, name: &OsStr) -> Result<()> {
        let beneath = self.lower_child(dir, name)?;
        if !beneath.is_some() {
            return Ok(());
        }
        self.copy_up(dir, Want::Attributes)?;
        let _names = self.names.write();
        let view = self.dir_view(dir)?;
        let slot = self.slot(&view, name, &beneath)?;
        // Nobody keeps the directory from being removed meanwhile.
        if self.is_gone(dir)
            || slot.physical != Physical::Absent
            || slot.found.is_none_or(|found| found.ino != self.number(ino))
            || self.index.get(ino).is_none()
        {
            return Ok(());
        }
        let fd = view.fd()?;
        let stat = stat_fd(fd).map_err(Error::sys("statx", "a directory"))?;
        self.keep_ctime(dir, fd, &stat)?;
        self.link_alias(ino, &view, name, slot.physical)?;
        self.nodes.note_alias(ino, dir, name);
        // It is no change of the directory that a program may see.
        Address::at(fd, OsStr::new(".")).set_times(&times_of(&stat))?;
        self.changed();
        Ok(())
    }

    /// Takes `ino`, all names of which are in the upper now, from the index.
    fn take_from_index(&self, ino: Ino) -> Result<()> {
        let _names = self.names.write();
        if self.index.get(ino).is_none() {
            return Ok(());
        }
        let address = self.index_address(ino)?;
        if self.nodes.find(ino).is_some_and(|node| node.upper.is_some()) {
            let state = self.nodes.upper(ino)?.ok_or(Errno::NOENT)?;
            match self.other_name(ino, &state)? {
                Some(name) => self.nodes.move_to(ino, name),
                None => {
                    // It is found by its number again, or has no name any more.
                    let pin = address.pin()?;
                    self.nodes.update(ino, |state| state.pin = Some(Arc::clone(&pin)));
                    self.nodes.move_to(ino, Dentry::Nowhere);
                }
            }
            self.nodes.update(ino, |state| state.extra_links = 0);
        }
        let marks = self.marks.for_kind(super::super::attr::kind_of(&address.stat()?)?);
        marks.clear(&address, Mark::Nlink)?;
        self.unindex(ino)
    }
}
