//! New files.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, OFlags, RenameFlags, Statx};
use rustix::io::Errno;

use super::Overlay;
use super::attr::{Attr, Caller, generation_of, kind_of, owner_of};
use super::build::stand_in;
use super::describe::Found;
use super::error::{Error, Result};
use super::handles::{Backing, Handle, Open, Opened, Source};
use super::ino;
use super::lookup::Physical;
use super::node::{UpperState, Want};
use super::open::kept_flags;
use super::stack::Below;
use super::upper::Mark;
use crate::inode_ops::{Address, make_directory, make_file, make_special, make_symlink, stat_fd};
use crate::types::{FileKind, Ino, Owner};
use crate::watch::What;

/// What is to be made.
#[derive(Clone, Copy, Debug)]
enum New<'a> {
    File { flags: OFlags, is_opened: bool },
    Directory,
    Symlink { target: &'a OsStr },
    Special { kind: FileKind, rdev: u64 },
}

impl New<'_> {
    /// A 0/0 character device: to the upper, a whiteout.
    fn is_null_device(&self) -> bool {
        matches!(self, Self::Special { kind: FileKind::CharDevice, rdev: 0 })
    }
}

impl Overlay {
    /// Makes a regular file, device, pipe or socket, and counts a lookup of it. `mode` holds the
    /// kind too; `rdev` is in `makedev` form.
    ///
    /// # Errors
    /// `EEXIST`, `EROFS`, `EINVAL` for other kinds, or what the upper says.
    pub fn mknod(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        rdev: u64,
    ) -> Result<Attr> {
        let kind = match mode & libc::S_IFMT {
            0 => FileKind::Regular,
            _ => FileKind::from_mode(mode).ok_or(Errno::INVAL)?,
        };
        let new = match kind {
            FileKind::Regular => New::File { flags: OFlags::RDWR, is_opened: false },
            FileKind::Directory | FileKind::Symlink => return Err(Errno::INVAL.into()),
            FileKind::BlockDevice | FileKind::CharDevice => New::Special { kind, rdev },
            FileKind::Fifo | FileKind::Socket => New::Special { kind, rdev: 0 },
        };
        self.make(caller, parent, name, mode, new).map(|(attr, _)| attr)
    }

    /// Makes a directory, and counts a lookup of it.
    ///
    /// # Errors
    /// As [`Self::mknod`].
    pub fn mkdir(&self, caller: &Caller, parent: Ino, name: &OsStr, mode: u32) -> Result<Attr> {
        self.make(caller, parent, name, mode, New::Directory).map(|(attr, _)| attr)
    }

    /// Makes a symbolic link to `target`, and counts a lookup of it.
    ///
    /// # Errors
    /// As [`Self::mknod`].
    pub fn symlink(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &OsStr,
        target: &OsStr,
    ) -> Result<Attr> {
        self.make(caller, parent, name, 0o777, New::Symlink { target }).map(|(attr, _)| attr)
    }

    /// Makes a regular file, counts a lookup of it, and opens it with the flags of `open(2)`.
    /// Without `O_EXCL`, a file that another caller made first is opened.
    ///
    /// # Errors
    /// As [`Self::mknod`] and [`Self::open`].
    pub fn create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        flags: i32,
    ) -> Result<(Attr, Opened)> {
        let new = New::File { flags: kept_flags(flags), is_opened: true };
        match self.make(caller, parent, name, mode, new) {
            Ok((attr, Some(handle))) => Ok((attr, Opened { handle, backing: Backing::Upper })),
            Ok((_, None)) => Err(Error::damaged("a new file has no handle")),
            Err(error) if error.is(Errno::EXIST) && flags & libc::O_EXCL == 0 => {
                let held = self.across_freezes(|| self.hold(parent, name))?;
                let opened = self.open(held.ino, flags)?;
                let attr = self.getattr(held.ino, None).inspect_err(|_| {
                    self.release(opened.handle);
                })?;
                std::mem::forget(held);
                Ok((attr, opened))
            }
            Err(error) => Err(error),
        }
    }

    /// Makes `new` as `name` in `parent`. A regular file that is opened comes with its handle.
    fn make(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        new: New<'_>,
    ) -> Result<(Attr, Option<Handle>)> {
        self.across_freezes(|| self.try_to_make(caller, parent, name, mode, new))
    }

    fn try_to_make(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        new: New<'_>,
    ) -> Result<(Attr, Option<Handle>)> {
        let upper = self.upper()?;
        let beneath = self.lower_child(parent, name)?;
        self.copy_up(parent, Want::Attributes)?;
        let _names = self.names.write();
        let dir = self.dir_view(parent)?;
        let slot = self.slot(&dir, name, &beneath)?;
        if slot.found.is_some() {
            return Err(Errno::EXIST.into());
        }
        let fd = dir.fd()?;
        let parent_stat = stat_fd(fd).map_err(Error::sys("statx", "a directory"))?;
        let in_place = slot.physical == Physical::Absent && !new.is_null_device();
        // Made in place, a file takes over the ACL by itself, and only the umask hangs on it.
        let default_acl = match in_place && mode & caller.umask == 0 {
            true => None,
            false => Address::at(fd, OsStr::new(".")).get_xattr(DEFAULT_ACL).ok(),
        };
        let mode = match default_acl {
            Some(_) => mode,
            None => mode & !caller.umask,
        } & 0o7777;
        let owner = self.owner_for_new(caller, parent, &parent_stat)?;
        let lent = match new {
            New::Directory => 0,
            _ => self.lent(owner, mode, caller),
        };
        let mode = mode & !lent;
        let finish = |dir: &Arc<OwnedFd>, name: &OsStr| {
            let made = Address::at(dir, name);
            let (stat, recorded) = self.own(owner, &parent_stat, &made, mode, new)?;
            self.numbers.identify(&made, stat).map(|stat| (stat, recorded))
        };
        let ((stat, recorded), made) = if in_place {
            let made = make_at(fd, name, mode, new)?;
            let stat = finish(fd, name).inspect_err(|_| {
                let flags = match new {
                    New::Directory => AtFlags::REMOVEDIR,
                    _ => AtFlags::empty(),
                };
                if let Err(errno) = rustix::fs::unlinkat(fd, name, flags) {
                    tracing::warn!("cannot take back {}: {errno}", name.display());
                }
            })?;
            (stat, made)
        } else {
            let (draft, made) = match default_acl {
                Some(acl) => {
                    upper.draft_under_acl(&acl, |dir, name| make_at(dir, name, mode, new))?
                }
                None => upper.draft(|dir, name| make_at(dir, name, mode, new))?,
            };
            let stat = finish(draft.dir(), draft.name())?;
            if new.is_null_device() {
                let marks = upper.marks.for_kind(FileKind::CharDevice);
                marks.set(&draft.address(), Mark::NullDevice, b"")?;
            }
            let flags = match (new, slot.physical) {
                (New::Directory, Physical::Whiteout) => {
                    upper.marks.set(&draft.address(), Mark::Opaque, b"y")?;
                    // A directory cannot replace a whiteout, but it can change places with it.
                    RenameFlags::EXCHANGE
                }
                _ => RenameFlags::empty(),
            };
            draft.place(fd, name, flags)?;
            (stat, made)
        };
        self.changed();
        let layer = self.live();
        let ino = ino::of_birth(layer, stat.stx_ino);
        let state = UpperState {
            null_device: new.is_null_device(),
            owner: recorded,
            impure: Some(false),
            ..UpperState::new(
                (layer, stat.stx_ino),
                kind_of(&stat)?,
                generation_of(&stat),
                Below::default(),
            )
        };
        self.tell_name(What::Create, (ino, state.kind), parent, name);
        let attr = self.attr_of_upper(ino, &state, &stat)?;
        let found = Found { ino, kind: state.kind, upper: Some(state) };
        std::mem::forget(self.enter(parent, name, found)?);
        let handle = match (new, made) {
            (New::File { flags, is_opened: true }, Some(fd)) => {
                let source = Source::File(layer, Arc::new(fd));
                Some(self.handles.add(Open::new(ino, flags, source)))
            }
            _ => None,
        };
        Ok((attr, handle))
    }

    /// Gives a new inode its owner, and the permissions that a change of owner takes away. Returns the
    /// owner if it had to be recorded.
    fn own(
        &self,
        owner: Owner,
        parent: &Statx,
        made: &Address,
        mode: u32,
        new: New<'_>,
    ) -> Result<(Statx, Option<Owner>)> {
        let setgid = u32::from(parent.stx_mode) & libc::S_ISGID != 0;
        let stat = made.stat()?;
        let is_directory = matches!(new, New::Directory);
        // Made in the work directory, a directory has not taken this over by itself.
        let special = mode & (libc::S_ISUID | libc::S_ISGID)
            | if setgid && is_directory { libc::S_ISGID } else { 0 };
        if owner_of(&stat) == owner && u32::from(stat.stx_mode) & special == special {
            return Ok((stat, None));
        }
        let recorded = self.give_owner(made, &stat, owner)?;
        if special != 0 && !matches!(new, New::Symlink { .. }) {
            let now = u32::from(made.stat()?.stx_mode);
            made.chmod(now & 0o7777 | special)?;
        }
        Ok((made.stat()?, recorded))
    }
}

/// The parent's ACL for new files, which replaces the umask.
const DEFAULT_ACL: &std::ffi::CStr = c"system.posix_acl_default";

fn make_at(dir: &OwnedFd, name: &OsStr, mode: u32, new: New<'_>) -> Result<Option<OwnedFd>> {
    match new {
        New::File { flags, .. } => {
            return Ok(Some(make_file(dir, name, flags.difference(OFlags::TRUNC), mode)?));
        }
        New::Directory => make_directory(dir, name, mode),
        New::Symlink { target } => make_symlink(dir, name, target),
        New::Special { kind, rdev } => {
            let rdev = if new.is_null_device() { stand_in() } else { rdev };
            make_special(dir, name, kind, mode, rdev)
        }
    }?;
    Ok(None)
}
