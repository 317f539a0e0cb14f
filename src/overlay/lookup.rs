//! Which inode a name means: the upper's, else the lower's, unless something hides it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::Statx;
use rustix::io::Errno;

use super::Overlay;
use super::attr::{Attr, from_upper, is_null_device};
use super::ctime::show_ctime;
use super::describe::Found;
use super::dirs::DirView;
use super::error::{Error, Result, changed_behind};
use super::lower::{Beneath, NAME_MAX};
use super::node::{Dentry, UpperState};
use crate::inode_ops::{Address, stat_at};
use crate::types::{FileKind, Ino};

/// What the upper itself has under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Physical {
    /// Nothing.
    Absent,
    /// A whiteout.
    Whiteout,
    /// A file of some kind.
    Entry,
}

/// A name in the merged tree: what the upper has there, and what it means.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) physical: Physical,
    pub(super) found: Option<Found>,
}

/// A counted lookup that is taken back when dropped, for operations by name.
pub(super) struct Held<'a> {
    overlay: &'a Overlay,
    pub(super) ino: Ino,
    pub(super) kind: FileKind,
}

impl<'a> Held<'a> {
    /// For a lookup of regular file `ino` that is counted already.
    pub(super) fn new(overlay: &'a Overlay, ino: Ino) -> Self {
        Self::counted(overlay, ino, FileKind::Regular)
    }

    /// For a lookup of `ino` that is counted already.
    pub(super) fn counted(overlay: &'a Overlay, ino: Ino, kind: FileKind) -> Self {
        Self { overlay, ino, kind }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.overlay.forget(self.ino, 1);
    }
}

impl Overlay {
    /// Finds `name` in directory `parent` and counts a lookup of what it means.
    ///
    /// # Errors
    /// `ENOENT`, `ENAMETOOLONG` (more than 255 bytes), `ENOTDIR`, or what reading either half says.
    pub fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attr> {
        let held = self.across_freezes(|| self.hold(parent, name))?;
        let attr = self.getattr(held.ino, None)?;
        std::mem::forget(held);
        Ok(attr)
    }

    /// Takes back `count` lookups of `ino`.
    pub fn forget(&self, ino: Ino, count: u64) {
        self.nodes.forget(ino, count);
    }

    /// Whether nothing leads to `ino` any more.
    pub fn is_gone(&self, ino: Ino) -> bool {
        ino != Ino::ROOT && self.nodes.find(ino).is_some_and(|it| it.dentry == Dentry::Nowhere)
    }

    /// The attributes of `ino`. `handle` is not needed, as an unlinked file keeps its inode.
    ///
    /// # Errors
    /// `ESTALE` where `ino` is not known, or what reading either half says.
    pub fn getattr(&self, ino: Ino, _handle: Option<super::Handle>) -> Result<Attr> {
        self.across_freezes(|| self.attr_of(ino))
    }

    fn attr_of(&self, ino: Ino) -> Result<Attr> {
        let node = self.nodes.get(ino)?;
        if node.upper.is_none() {
            let lower = self.lower.place_of(ino)?;
            let mut attr = self.lower.attr(ino, &self.lower.inode(lower)?);
            self.show_owner(&mut attr);
            if node.dentry == Dentry::Nowhere && ino != Ino::ROOT {
                attr.nlink = 0;
            }
            return Ok(attr);
        }
        let (state, stat) = {
            let _names = self.names.read();
            let (inode, state) = self.address(ino)?;
            (state, self.numbers.identify(&inode, inode.stat()?)?)
        };
        let mut attr = self.attr_of_upper(ino, &state, &stat)?;
        // The layer has it under the name that went.
        let is_in_layer = !self.is_live(&state) && ino != Ino::ROOT;
        if is_in_layer && node.dentry == Dentry::Nowhere && stat.stx_nlink == 1 {
            attr.nlink = 0;
        }
        Ok(attr)
    }

    /// The attributes of an inode in the upper, whose `stat` is at hand.
    pub(super) fn attr_of_upper(&self, ino: Ino, state: &UpperState, stat: &Statx) -> Result<Attr> {
        if stat.stx_ino != state.st_ino {
            return Err(changed_behind(format_args!("inode {}", state.st_ino)));
        }
        let mut attr = from_upper(ino, state.generation, stat)?;
        attr.number = self.number(ino);
        if let Some(owner) = state.owner {
            (attr.uid, attr.gid) = (owner.uid, owner.gid);
        }
        self.show_owner(&mut attr);
        show_ctime(&mut attr, state.kept_ctime);
        if attr.kind == FileKind::Directory {
            if state.below.is_some() && attr.nlink > 0 {
                attr.nlink = 1;
            }
            return Ok(attr);
        }
        attr.nlink = u32::try_from(i64::from(attr.nlink) + state.extra_links).unwrap_or(0);
        if state.null_device {
            attr.rdev = 0;
        }
        if !state.data.is_here() {
            attr.blocks = attr.size.div_ceil(512);
        }
        Ok(attr)
    }

    /// Finds `name` in `parent` for the length of an operation.
    pub(super) fn hold(&self, parent: Ino, name: &OsStr) -> Result<Held<'_>> {
        let beneath = self.lower_child(parent, name)?;
        let _names = self.names.read();
        let dir = self.dir_view(parent)?;
        let found = self.slot(&dir, name, &beneath)?.found.ok_or(Errno::NOENT)?;
        self.enter(parent, name, found)
    }

    /// The number of node `ino`.
    pub(super) fn number(&self, ino: Ino) -> Ino {
        self.ids.number_of(ino)
    }

    /// The node that stands for `number`, which is a directory or not, from now on.
    pub(super) fn node_for(&self, number: Ino, is_directory: bool) -> Ino {
        self.nodes.stand_in(number, is_directory, |id| !self.handles.of(id).is_empty())
    }

    /// Counts a lookup of `found`. Called with `names` held.
    pub(super) fn enter(&self, parent: Ino, name: &OsStr, found: Found) -> Result<Held<'_>> {
        let Found { ino: number, kind, upper } = found;
        loop {
            let ino = self.node_for(number, kind == FileKind::Directory);
            let dentry = match self.index.get(number) {
                Some(_) => Dentry::Index,
                None => Dentry::named(parent, name),
            };
            let is_indexed = dentry == Dentry::Index;
            if !self.nodes.enter(ino, dentry, upper.clone())? {
                continue;
            }
            if is_indexed {
                self.nodes.note_alias(ino, parent, name);
            }
            return Ok(Held { overlay: self, ino, kind });
        }
    }

    /// Counts a lookup of `ino`, which was listed but cannot be described.
    pub(super) fn count(&self, ino: Ino, kind: FileKind) -> Result<Held<'_>> {
        self.nodes.count(ino)?;
        Ok(Held { overlay: self, ino, kind })
    }

    /// What the lower half of directory `parent` has under `name`. May touch the network, and so is
    /// asked before `names` is taken for what is done with it.
    pub(super) fn lower_child(&self, parent: Ino, name: &OsStr) -> Result<Beneath> {
        if name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        let (stack, half) = {
            // In the middle of a freeze or a rollback what is known of directories is of two stacks.
            let _names = self.names.read();
            let stack = self.stack.version();
            let node = self.nodes.get(parent)?;
            if node.upper.is_none() && node.dentry == Dentry::Nowhere && parent != Ino::ROOT {
                // A removed directory.
                return Ok(Beneath { stack, entry: None });
            }
            (stack, self.lower_half(parent)?)
        };
        let dir = (self.number(parent), stack);
        let having = self.layers_having(dir, &half, name.as_bytes())?;
        let entry = self.find_entry_in(&half, name.as_bytes(), having)?;
        Ok(Beneath { stack, entry })
    }

    /// What `name` in `dir` means, `beneath` being what the lower half has. Called with `names` held.
    ///
    /// # Errors
    /// [`Error::Frozen`] where that was so before a freeze, or a merge of layers.
    pub(super) fn slot(&self, dir: &DirView, name: &OsStr, beneath: &Beneath) -> Result<Slot> {
        if beneath.stack != self.stack.version() {
            return Err(Error::Frozen);
        }
        if let Some(fd) = &dir.fd {
            match stat_at(fd, name) {
                Ok(stat) if is_null_device(&stat) => {
                    return Ok(Slot { physical: Physical::Whiteout, found: None });
                }
                Ok(stat) => {
                    let address = Address::at(fd, name);
                    let stat = self.numbers.identify(&address, stat)?;
                    let mut entry = || Ok(beneath.entry.clone());
                    let found = self.describe(dir, &address, &stat, &mut entry)?;
                    let physical = match found {
                        Some(_) => Physical::Entry,
                        None => Physical::Whiteout,
                    };
                    return Ok(Slot { physical, found });
                }
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(Error::sys("statx", name.display())(errno)),
            }
        }
        let found = beneath.entry.as_ref().map(|entry| self.describe_lower(entry)).transpose()?;
        Ok(Slot { physical: Physical::Absent, found })
    }
}
