//! The owners of upper inodes. Where the upper's file system does not let us give them, as it lets
//! nobody but root, the owner is recorded in an attribute and shown from there.

use rustix::fs::Statx;
use rustix::io::Errno;

use super::Overlay;
use super::attr::{Attr, Caller, SetAttr, owner_of};
use super::error::Result;
use super::identity::Identity;
use super::node::UpperState;
use super::upper::{Mark, Namespace};
use crate::inode_ops::{self, Address};
use crate::squashfs::mounted::MountedArchive;
use crate::types::{Ino, Owner};

impl Overlay {
    /// Shows owners as `identity` has it.
    #[must_use]
    pub fn showing(self, identity: Identity) -> Self {
        Self { identity, ..self }
    }

    /// Tells who asks where the archive is: see [`crate::squashfs::mounted`].
    #[must_use]
    pub fn named(self, source: Option<MountedArchive>) -> Self {
        Self { source, ..self }
    }

    /// Where the archive is, if that was said.
    pub fn source(&self) -> Option<&MountedArchive> {
        self.source.as_ref()
    }

    /// Puts the owner that is shown in the place of the one that is stored.
    pub(super) fn show_owner(&self, attr: &mut Attr) {
        let shown = self.identity.shown(Owner { uid: attr.uid, gid: attr.gid });
        (attr.uid, attr.gid) = (shown.uid, shown.gid);
    }

    /// The owner that is stored of an upper inode.
    pub(super) fn owner_stored(&self, state: &UpperState, stat: &Statx) -> Owner {
        state.owner.unwrap_or(owner_of(stat))
    }

    /// The group that is shown of an upper inode.
    pub(super) fn shown_group(&self, state: &UpperState, stat: &Statx) -> u32 {
        self.identity.shown(self.owner_stored(state, stat)).gid
    }

    /// The owner stored for an upper inode, where it is not the file system's own.
    pub(super) fn recorded_owner(&self, inode: &Address) -> Result<Option<Owner>> {
        if self.marks == Namespace::Trusted {
            return Ok(None);
        }
        Ok(self.marks.get(inode, Mark::Owner)?.as_deref().and_then(Owner::parse))
    }

    /// Gives a new inode, whose `stat` is at hand, its owner, and says whether that had to be recorded.
    /// What can neither be given nor recorded, as for a symbolic link, stays as it is.
    pub(super) fn give_owner(
        &self,
        inode: &Address,
        stat: &Statx,
        owner: Owner,
    ) -> Result<Option<Owner>> {
        match inode_ops::give_owner(inode, stat, owner, self.upper()?.privilege())? {
            true => Ok(None),
            false => self.record_owner(inode, owner),
        }
    }

    /// Records the owner that a new inode could not be given, and says whether that was possible.
    pub(super) fn record_owner(&self, inode: &Address, owner: Owner) -> Result<Option<Owner>> {
        match self.upper()?.marks.set(inode, Mark::Owner, &owner.to_text()) {
            Ok(()) => Ok(Some(owner)),
            Err(error) if error.is(Errno::PERM) || error.is_no_room() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The owner to store for a new file of `caller`'s, in a directory of whose group it will be if
    /// that is setgid.
    pub(super) fn owner_for_new(
        &self,
        caller: &Caller,
        parent: Ino,
        parent_stat: &Statx,
    ) -> Result<Owner> {
        let mut owner = self.identity.stored(Owner { uid: caller.uid, gid: caller.gid })?;
        if u32::from(parent_stat.stx_mode) & libc::S_ISGID != 0 {
            let recorded = self.nodes.upper(parent)?.and_then(|state| state.owner);
            owner.gid = recorded.unwrap_or(owner_of(parent_stat)).gid;
        }
        Ok(owner)
    }

    /// Does what chown(2) does, on an inode of the upper. `state` gets the owner if it is recorded.
    pub(super) fn change_owner(
        &self,
        ino: Ino,
        inode: &Address,
        state: &mut UpperState,
        change: &SetAttr,
    ) -> Result<()> {
        let upper = self.upper()?;
        let own = owner_of(&inode.stat()?);
        let current = state.owner.unwrap_or(own);
        let wanted = self.identity.changed(current, change.uid, change.gid)?;
        let Some(_) = state.owner else {
            let (uid, gid) = (change.uid.map(|_| wanted.uid), change.gid.map(|_| wanted.gid));
            return match inode.chown(uid, gid) {
                Err(error)
                    if error.errno == Errno::PERM && !upper.privileged && wanted == current =>
                {
                    Ok(())
                }
                done => Ok(done?),
            };
        };
        // This has no other owner than us, but takes setuid bits away as a change of owner has to.
        inode.chown(Some(own.uid), Some(own.gid))?;
        if wanted == own {
            upper.marks.clear(inode, Mark::Owner)?;
            state.owner = None;
        } else {
            upper.marks.set(inode, Mark::Owner, &wanted.to_text())?;
            state.owner = Some(wanted);
        }
        let owner = state.owner;
        self.nodes.update(ino, |upper| upper.owner = owner);
        Ok(())
    }

    /// The owner stored for `ino`, whatever is shown.
    pub(super) fn stored_owner(&self, ino: Ino) -> Result<Owner> {
        if self.nodes.upper(ino)?.is_none() {
            let lower = self.lower.place_of(ino)?;
            let inode = self.lower.inode(lower)?;
            return Ok(Owner { uid: inode.uid, gid: inode.gid });
        }
        let _names = self.names.read();
        let (inode, state) = self.address(ino)?;
        match state.owner {
            Some(owner) => Ok(owner),
            None => Ok(owner_of(&inode.stat()?)),
        }
    }
}
