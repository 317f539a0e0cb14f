//! Changing attributes, and reading symbolic links.

use rustix::fs::{OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

use super::Overlay;
use super::attr::{Attr, Rights, SetAttr, SetTime};
use super::error::{Error, Result};
use super::handles::Handle;
use super::node::{UpperState, Want};
use crate::inode_ops::{Address, set_size};
use crate::types::{FileKind, Ino, Owner};
use crate::watch::What;

/// Those of a file's mode bits that lend its owner's or group's rights to whoever executes it.
pub const SETID_BITS: u32 = libc::S_ISUID | libc::S_ISGID;

/// Whether a change by `who` takes the setgid bit from a file of `mode` and `group`, as the kernel
/// decides it: where the group may not execute, the bit lends nothing, and its members may leave it.
fn loses_setgid(mode: u32, group: u32, who: &dyn Rights) -> bool {
    mode & libc::S_ISGID != 0
        && (mode & libc::S_IXGRP != 0 || !(who.is_of(group) || who.keeps_setid()))
}

impl Overlay {
    /// Changes attributes and shows the new ones. A lower file is copied up, with its data only if
    /// its size is set to other than 0. Whether the caller may is checked by the kernel. A change of
    /// size drops set-id bits as [`Self::drop_setid`] says; a change of owner drops them in the upper's
    /// own `chown`, but for what hangs on the caller's groups, and both drop capabilities there.
    ///
    /// # Errors
    /// `EROFS`, `EISDIR` or `EINVAL` for the size of what has none, or what the upper says.
    pub fn setattr(
        &self,
        who: &dyn Rights,
        ino: Ino,
        handle: Option<Handle>,
        change: &SetAttr,
    ) -> Result<Attr> {
        if *change == SetAttr::default() {
            return self.getattr(ino, handle);
        }
        self.across_freezes(|| self.try_to_setattr(who, ino, handle, change))
    }

    fn try_to_setattr(
        &self,
        who: &dyn Rights,
        ino: Ino,
        handle: Option<Handle>,
        change: &SetAttr,
    ) -> Result<Attr> {
        let want = match change.size {
            Some(0) => Want::Truncated,
            Some(_) => Want::Data,
            // The copy has to be written through handles that are open, and must not refuse us then.
            None if self.locks_us_out(change) && self.handles.has_lower(ino, self.live()) => {
                Want::Data
            }
            None => Want::Attributes,
        };
        self.copy_up(ino, want)?;
        let metacopy = |state: &UpperState| !state.data.is_here();
        // While its data is being copied, times that are set would be put back.
        let _lead = match self.nodes.upper(ino)? {
            Some(state) if metacopy(&state) => Some(self.start_copy(ino)?),
            Some(_) | None => None,
        };
        if let Some(size) = change.size {
            self.truncate(ino, handle, size)?;
            self.tell_writes_of(ino);
            self.drop_setid(ino, who)?;
        }
        let _names = self.names.read();
        // Times that are set hide when it was written to.
        self.tell_write_before(ino);
        let (inode, mut state) = self.live_address(ino)?;
        let done = self.change_attributes(who, ino, &inode, &mut state, change);
        // That the time has moved is no write if it was set.
        self.tell_found(ino, || match change.mtime {
            Some(_) => self.kernel_writes.check_times_set(ino),
            None => self.kernel_writes.check(ino),
        });
        if change.is_of_attributes() {
            // One of several may have been changed before another failed.
            self.tell_inode(What::Attributes, ino, &state);
        }
        done?;
        let stat = self.numbers.identify(&inode, inode.stat()?)?;
        self.attr_of_upper(ino, &state, &stat)
    }

    /// Changes the attributes of `inode`, but for its size. Called with `names` held.
    fn change_attributes(
        &self,
        who: &dyn Rights,
        ino: Ino,
        inode: &Address,
        state: &mut UpperState,
        change: &SetAttr,
    ) -> Result<()> {
        self.let_ctime_move(ino, inode, &mut state.kept_ctime)?;
        if change.uid.is_some() || change.gid.is_some() {
            let before = inode.stat()?;
            let group = self.shown_group(state, &before);
            self.change_owner(ino, inode, state, change)?;
            let mode = u32::from(before.stx_mode);
            if state.kind != FileKind::Directory && loses_setgid(mode, group, who) {
                inode.chmod(u32::from(inode.stat()?.stx_mode) & 0o7777 & !libc::S_ISGID)?;
            }
        }
        if let Some(mode) = change.mode {
            if state.kind == FileKind::Symlink {
                return Err(Errno::OPNOTSUPP.into());
            }
            let stored = self.owner_stored(state, &inode.stat()?);
            let lent = match state.kind {
                FileKind::Directory => 0,
                _ => self.lent(stored, mode, who),
            };
            inode.chmod(mode & !lent)?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            let mut times = Timestamps {
                last_access: timespec(change.atime),
                last_modification: timespec(change.mtime),
            };
            // The kernel tells a mark of the time of the last write, set by itself, as of a write; of both times it
            // does not.
            if change.atime.is_none() && self.kernel_writes.is_marked(ino) {
                let atime = inode.stat()?.stx_atime;
                times.last_access =
                    Timespec { tv_sec: atime.tv_sec, tv_nsec: atime.tv_nsec.into() };
            }
            inode.set_times(&times)?;
        }
        Ok(())
    }

    /// Takes the set-id bits from a regular file that `who` has written to without `CAP_FSETID`; the
    /// setgid bit stays where the group may not execute and `who` is of it. (The upper's file system
    /// would see us write, who have that right; it drops capabilities all the same.) Says whether there
    /// was such a bit.
    ///
    /// # Errors
    /// What `stat` or `chmod` of the upper file says.
    pub fn drop_setid(&self, ino: Ino, who: &dyn Rights) -> Result<bool> {
        self.across_freezes(|| self.try_to_drop_setid(ino, who))
    }

    fn try_to_drop_setid(&self, ino: Ino, who: &dyn Rights) -> Result<bool> {
        if self.nodes.upper(ino)?.is_none() {
            return Ok(false);
        }
        let names = self.names.read();
        let (inode, state) = self.address(ino)?;
        let stat = inode.stat()?;
        let mode = u32::from(stat.stx_mode);
        if state.kind != FileKind::Regular || mode & SETID_BITS == 0 || who.keeps_setid() {
            return Ok(false);
        }
        let setgid =
            loses_setgid(mode, self.shown_group(&state, &stat), who).then_some(libc::S_ISGID);
        let bits = mode & libc::S_ISUID | setgid.unwrap_or(0);
        if bits == 0 {
            return Ok(false);
        }
        if !self.may_change(&state) {
            // What was written is in the layer as it was then, with its bits.
            drop(names);
            self.copy_up(ino, Want::Attributes)?;
            return Err(Error::Frozen);
        }
        inode.chmod(mode & 0o7777 & !bits)?;
        self.tell_inode(What::Attributes, ino, &state);
        Ok(true)
    }

    /// Of a file's `mode`, the set-id bits that `who` may not give it, because they would lend the rights of
    /// its stored owner to what somebody else has written who is shown as the owner: on the upper's own
    /// file system, and in a backup of the mount.
    pub(super) fn lent(&self, stored: Owner, mode: u32, who: &dyn Rights) -> u32 {
        let shown = self.identity.shown(stored);
        let uid = if shown.uid == stored.uid { 0 } else { mode & libc::S_ISUID };
        let gid = if shown.gid == stored.gid { 0 } else { mode & libc::S_ISGID };
        if uid | gid != 0 && who.keeps_setid() { 0 } else { uid | gid }
    }

    /// Takes such set-id bits from a regular file that `who` is about to open for writing. What is stored
    /// through a mapping takes none away, and nobody can say whose it was. Says whether there were any.
    ///
    /// # Errors
    /// `EROFS`, or what copying up the attributes or the upper says.
    pub fn drop_lent(&self, ino: Ino, who: &dyn Rights) -> Result<bool> {
        let bits = |attr: &Attr| u32::from(attr.perm) & SETID_BITS;
        if self.identity.is_plain() || bits(&self.getattr(ino, None)?) == 0 || who.keeps_setid() {
            return Ok(false);
        }
        self.across_freezes(|| self.try_to_drop_lent(ino, who))
    }

    fn try_to_drop_lent(&self, ino: Ino, who: &dyn Rights) -> Result<bool> {
        self.copy_up(ino, Want::Attributes)?;
        let _names = self.names.read();
        let (inode, state) = self.live_address(ino)?;
        let stat = inode.stat()?;
        let mode = u32::from(stat.stx_mode) & 0o7777;
        let lent = self.lent(self.owner_stored(&state, &stat), mode, who);
        if state.kind != FileKind::Regular || lent == 0 {
            return Ok(false);
        }
        inode.chmod(mode & !lent)?;
        self.tell_inode(What::Attributes, ino, &state);
        Ok(true)
    }

    /// Takes the setgid bit from `ino`, whose ACL has been set, unless `who` is of its group: chmod(2)
    /// does the same, but there the kernel sees to it.
    ///
    /// # Errors
    /// What `stat` or `chmod` of the upper file says.
    pub fn drop_setgid(&self, ino: Ino, who: &dyn Rights) -> Result<()> {
        self.across_freezes(|| self.try_to_drop_setgid(ino, who))
    }

    fn try_to_drop_setgid(&self, ino: Ino, who: &dyn Rights) -> Result<()> {
        self.copy_up(ino, Want::Attributes)?;
        let _names = self.names.read();
        let (inode, state) = self.live_address(ino)?;
        let stat = inode.stat()?;
        let mode = u32::from(stat.stx_mode) & 0o7777;
        if mode & libc::S_ISGID == 0
            || who.is_of(self.shown_group(&state, &stat))
            || who.keeps_setid()
        {
            return Ok(());
        }
        Ok(inode.chmod(mode & !libc::S_ISGID)?)
    }

    /// The target of symbolic link `ino`.
    ///
    /// # Errors
    /// `EINVAL` for other kinds, or what reading either half says.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        self.across_freezes(|| self.target_of(ino))
    }

    fn target_of(&self, ino: Ino) -> Result<Vec<u8>> {
        match self.nodes.upper(ino)? {
            Some(state) if state.kind == FileKind::Symlink => {
                let _names = self.names.read();
                Ok(self.address(ino)?.0.read_link()?)
            }
            Some(_) => Err(Errno::INVAL.into()),
            None => {
                let lower = self.lower.place_of(ino)?;
                let inode = self.lower.inode(lower)?;
                if inode.kind != FileKind::Symlink {
                    return Err(Errno::INVAL.into());
                }
                Ok(self.lower.archive().read_link(&inode)?)
            }
        }
    }

    fn truncate(&self, ino: Ino, handle: Option<Handle>, size: u64) -> Result<()> {
        // The caller's own descriptor may write where the permissions no longer allow to open one.
        if let Some(handle) = handle {
            let open = self.handles.get(handle)?;
            return self.with_writable(&open, |fd| Ok(set_size(fd, size)?));
        }
        let (fd, state) = {
            let _names = self.names.read();
            let (inode, state) = self.live_address(ino)?;
            match state.kind {
                FileKind::Regular => (inode.open(OFlags::WRONLY)?, state),
                FileKind::Directory => return Err(Errno::ISDIR.into()),
                _ => return Err(Errno::INVAL.into()),
            }
        };
        let _changing = self.changing.read();
        match self.may_change(&state) {
            true => Ok(set_size(&fd, size)?),
            false => Err(Error::Frozen),
        }
    }

    /// Whether a server without privilege could not open a file for writing after `change`.
    fn locks_us_out(&self, change: &SetAttr) -> bool {
        let privileged = self.upper().is_ok_and(|upper| upper.privileged);
        !privileged && change.mode.is_some_and(|mode| mode & 0o600 != 0o600)
    }
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(SetTime::At(time)) => Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.into() },
    }
}
