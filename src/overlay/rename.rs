//! Renaming.
//!
//! A lower file is copied up without its data, a lower directory alone: a redirect on the copy says
//! where in the lower its contents are. The old name gets its whiteout from the same system call
//! that renames (`RENAME_WHITEOUT`), as kernel overlayfs has it, or a moment later: then a note in the
//! work directory sees to it that it does.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::Overlay;
use super::attr::{Caller, owner_of};
use super::dirs::DirView;
use super::error::{Error, Result, not_copied};
use super::ino;
use super::lookup::{Held, Physical};
use super::lower::Beneath;
use super::node::{Dentry, Want};
use super::upper::{Draft, Mark};
use crate::inode_ops::{self, Address, make_directory};
use crate::types::{FileKind, Ino};
use crate::watch::What;

/// One end of a rename: a name, what it means, and what the lower has there.
struct End<'a> {
    parent: Ino,
    name: &'a OsStr,
    held: Option<Held<'a>>,
    beneath: Beneath,
    /// Of a directory that merges with a lower one: the path of that.
    redirect: Option<Vec<u8>>,
}

impl Overlay {
    /// Renames `name` in `parent` to `new_name` in `new_parent`. With `EXCHANGE` the two change
    /// places; with `WHITEOUT` a 0/0 character device of `caller`'s is left behind, a moment later.
    ///
    /// # Errors
    /// `ENOENT`, `EEXIST` (with `NOREPLACE`), `EISDIR`, `ENOTDIR`, `ENOTEMPTY`, `EXDEV` (a
    /// directory whose path in the archive is too long to record), `EINVAL`, `EROFS`, or what the
    /// upper says.
    pub fn rename(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        flags: RenameFlags,
    ) -> Result<()> {
        self.upper()?;
        self.across_freezes(|| self.try_to_rename((parent, name), (new_parent, new_name), flags))?;
        if flags.contains(RenameFlags::WHITEOUT) {
            let made = self.mknod(caller, parent, name, libc::S_IFCHR, 0)?;
            self.forget(made.ino, 1);
        }
        Ok(())
    }

    fn try_to_rename(
        &self,
        (parent, name): (Ino, &OsStr),
        (new_parent, new_name): (Ino, &OsStr),
        flags: RenameFlags,
    ) -> Result<()> {
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        if exchange && flags.intersects(RenameFlags::NOREPLACE | RenameFlags::WHITEOUT) {
            return Err(Errno::INVAL.into());
        }
        let mut from = self.end(parent, name)?;
        let mut to = self.end(new_parent, new_name)?;
        let Some(source) = &from.held else { return Err(Errno::NOENT.into()) };
        match &to.held {
            None if exchange => return Err(Errno::NOENT.into()),
            Some(_) if flags.contains(RenameFlags::NOREPLACE) => return Err(Errno::EXIST.into()),
            Some(target) if target.ino == source.ino => return Ok(()),
            Some(target) if !exchange => self.check_replaceable(source, target)?,
            None | Some(_) => {}
        }
        self.copy_up(parent, Want::Attributes)?;
        self.copy_up(new_parent, Want::Attributes)?;
        self.prepare_move(&mut from)?;
        match &to.held {
            Some(_) if exchange => self.prepare_move(&mut to)?,
            Some(target) => self.prepare_removal(new_parent, target, &to.beneath)?,
            None => {}
        }
        // Declared first, so dropped last: whiteouts are removed when others may go on.
        let mut replaced = None;
        let _names = self.names.write();
        for moved in [&from, &to].into_iter().filter_map(|end| end.held.as_ref()) {
            self.tell_write_before(moved.ino);
        }
        match exchange {
            true => self.exchange(&from, &to)?,
            false => self.replace(&from, &to, &mut replaced)?,
        }
        self.changed();
        Ok(())
    }

    /// Called with `names` held.
    fn tell_renamed(&self, from: &End<'_>, to: &End<'_>, exchange: bool) {
        if self.log.is_watched()
            && let Some(other) = self.nodes.path_in(to.parent, to.name)
            && let Some(source) = &from.held
        {
            let what = match exchange {
                true => What::Exchange { with: other },
                false => What::Rename { to: other },
            };
            self.tell_name(what, (source.ino, source.kind), from.parent, from.name);
        }
    }

    fn end<'a>(&'a self, parent: Ino, name: &'a OsStr) -> Result<End<'a>> {
        let held = match self.hold(parent, name) {
            Ok(held) => Some(held),
            Err(error) if error.is(Errno::NOENT) => None,
            Err(error) => return Err(error),
        };
        let beneath = self.lower_child(parent, name)?;
        Ok(End { parent, name, held, beneath, redirect: None })
    }

    fn check_replaceable(&self, source: &Held<'_>, target: &Held<'_>) -> Result<()> {
        match (source.kind == FileKind::Directory, target.kind == FileKind::Directory) {
            (true, true) => self.check_lower_hidden(target.ino),
            (true, false) => Err(Errno::NOTDIR.into()),
            (false, true) => Err(Errno::ISDIR.into()),
            (false, false) => Ok(()),
        }
    }

    /// Brings what is to be moved into the upper, and finds what a redirect on it has to say.
    fn prepare_move(&self, end: &mut End<'_>) -> Result<()> {
        let Some(held) = &end.held else { return Ok(()) };
        self.copy_up(held.ino, Want::Attributes)?;
        match held.kind {
            FileKind::Directory if self.merges(held.ino)? => {
                end.redirect = Some(self.lower_path(held.ino)?);
                Ok(())
            }
            FileKind::Regular => self.keep_data_found(held.ino),
            _ => Ok(()),
        }
    }

    /// Whether directory `ino`, which is in the upper, merges with something below.
    fn merges(&self, ino: Ino) -> Result<bool> {
        Ok(self.nodes.upper(ino)?.is_some_and(|state| state.below.is_some()))
    }

    /// Renames over what is at `to`. A directory of whiteouts that was there ends up in `replaced`.
    fn replace<'a>(
        &'a self,
        from: &End<'_>,
        to: &End<'_>,
        replaced: &mut Option<Draft<'a>>,
    ) -> Result<()> {
        let (from_dir, source) = self.movable(from)?;
        let to_dir = self.dir_view(to.parent)?;
        let slot = self.slot(&to_dir, to.name, &to.beneath)?;
        let target = to.held.as_ref();
        if slot.found.map(|found| found.ino) != target.map(|target| self.number(target.ino)) {
            return Err(Errno::NOENT.into());
        }
        let (from_fd, to_fd) = (from_dir.fd()?, to_dir.fd()?);
        let is_directory = source.kind == FileKind::Directory;
        self.mark_moved(from, source, &from_dir, &to_dir)?;
        if let Some(target) = target {
            self.link_alias(target.ino, &to_dir, to.name, slot.physical)?;
            if is_directory {
                self.check_upper_empty(target.ino)?;
            }
            self.unplace(target.ino, to.parent, to.name)?;
            if is_directory && slot.physical == Physical::Entry {
                *replaced =
                    Some(self.clear_whiteouts(&Address::at(to_fd, to.name), &to_dir, to.name)?);
            }
        }
        // A directory cannot replace a whiteout, but it can change places with it.
        let swap = is_directory && slot.physical == Physical::Whiteout;
        let renamed = match (swap, from.beneath.is_some()) {
            (true, _) => self.swap_with_whiteout(from, &from_dir, to, to_fd),
            (false, true) => self.leave_whiteout(from, &from_dir, to, to_fd),
            (false, false) => rustix::fs::renameat(from_fd, from.name, to_fd, to.name)
                .map_err(Error::sys("rename", to.name.display())),
        };
        if let Err(error) = renamed {
            if let Some(target) = target {
                self.nodes.move_to(target.ino, Dentry::named(to.parent, to.name));
            }
            return Err(error);
        }
        self.moved(source.ino, from, to);
        self.tell_renamed(from, to, false);
        match target {
            Some(target) if is_directory => self.directory_gone(target.ino),
            Some(target) => self.name_gone(target.ino)?,
            None => {}
        }
        Ok(())
    }

    /// Renames over a whiteout at `to`, which comes to hide what the lower has at `from`, or goes.
    fn swap_with_whiteout(
        &self,
        from: &End<'_>,
        from_dir: &DirView,
        to: &End<'_>,
        to_fd: &OwnedFd,
    ) -> Result<()> {
        let from_fd = from_dir.fd()?;
        match from.beneath.is_some() {
            true => self.set_whiteouts(from.parent, from_fd)?,
            // Should the server be killed before it goes, it is looked for.
            false => self.set_impure(from.parent, from_fd)?,
        }
        let flags = RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(from_fd, from.name, to_fd, to.name, flags)
            .map_err(Error::sys("rename", to.name.display()))?;
        if !from.beneath.is_some()
            && let Err(errno) = rustix::fs::unlinkat(from_fd, from.name, AtFlags::empty())
        {
            // Renamed it is, and what is left shows nothing.
            tracing::warn!("a whiteout stays at {}: {errno}", from.name.display());
        }
        Ok(())
    }

    /// Renames, and hides what the lower has at `from`.
    fn leave_whiteout(
        &self,
        from: &End<'_>,
        from_dir: &DirView,
        to: &End<'_>,
        to_fd: &OwnedFd,
    ) -> Result<()> {
        let upper = self.upper()?;
        let from_fd = from_dir.fd()?;
        self.set_whiteouts(from.parent, from_fd)?;
        let rename = |flags| {
            rustix::fs::renameat_with(from_fd, from.name, to_fd, to.name, flags)
                .map_err(Error::sys("rename", to.name.display()))
        };
        if upper.whiteout_in_one_step {
            return rename(RenameFlags::WHITEOUT);
        }
        let whiteout = upper.draft_whiteout()?;
        upper.note_renaming(&self.upper_path(from.parent, from.name)?)?;
        if let Err(error) = rename(RenameFlags::empty()) {
            upper.renamed();
            return Err(error);
        }
        match whiteout.place(from_fd, from.name, RenameFlags::NOREPLACE) {
            Ok(_) => upper.renamed(),
            // It cannot be taken back if it replaced something. The note stays for the next mount.
            Err(error) => {
                tracing::error!("{} comes back until the next mount: {error}", from.name.display())
            }
        }
        Ok(())
    }

    /// The path of `name` in `dir` from the root of the upper. Called with `names` held.
    fn upper_path(&self, dir: Ino, name: &OsStr) -> Result<Vec<u8>> {
        let mut names = vec![name.as_bytes().to_vec()];
        let mut at = dir;
        while let Some((parent, name)) = self.nodes.name_of(at)? {
            names.push(name.into_encoded_bytes());
            at = parent;
        }
        names.reverse();
        Ok(names.join(&b'/'))
    }

    fn exchange(&self, from: &End<'_>, to: &End<'_>) -> Result<()> {
        let (from_dir, one) = self.movable(from)?;
        let (to_dir, other) = self.movable(to)?;
        self.mark_moved(from, one, &from_dir, &to_dir)?;
        self.mark_moved(to, other, &to_dir, &from_dir)?;
        rustix::fs::renameat_with(
            &**from_dir.fd()?,
            from.name,
            &**to_dir.fd()?,
            to.name,
            RenameFlags::EXCHANGE,
        )
        .map_err(Error::sys("rename", to.name.display()))?;
        self.moved(one.ino, from, to);
        self.moved(other.ino, to, from);
        self.tell_renamed(from, to, true);
        Ok(())
    }

    /// Checks that `end` still means what it did, and that the upper has it by that name.
    fn movable<'a>(&self, end: &'a End<'_>) -> Result<(DirView, &'a Held<'a>)> {
        let held = end.held.as_ref().ok_or(Errno::NOENT)?;
        let (dir, physical) = self.recheck(end.parent, end.name, &end.beneath, held.ino)?;
        self.link_alias(held.ino, &dir, end.name, physical)?;
        Ok((dir, held))
    }

    /// Marks what is about to move so that it merges with the right lower directory, or none, in
    /// its new place. Until it has moved, the marks say what was so already.
    fn mark_moved(
        &self,
        end: &End<'_>,
        held: &Held<'_>,
        from: &DirView,
        to: &DirView,
    ) -> Result<()> {
        let marks = self.upper()?.marks;
        let mut state = self.nodes.upper(held.ino)?.ok_or_else(|| not_copied(held.ino))?;
        if !self.is_live(&state) {
            return Err(Error::Frozen);
        }
        if self.number(held.ino) != ino::of_birth(state.layer, state.st_ino) {
            self.set_impure(to.ino, to.fd()?)?;
        }
        if held.kind != FileKind::Directory {
            return Ok(());
        }
        let inode = Address::at(from.fd()?, end.name);
        self.let_ctime_move(held.ino, &inode, &mut state.kept_ctime)?;
        match &end.redirect {
            Some(path) => match marks.set(&inode, Mark::Redirect, path) {
                Err(error)
                    if [Errno::NOSPC, Errno::RANGE, Errno::TOOBIG]
                        .iter()
                        .any(|errno| error.is(*errno)) =>
                {
                    Err(Errno::XDEV.into())
                }
                other => other,
            },
            None if to.below.is_some() => marks.set(&inode, Mark::Opaque, b"y"),
            None => Ok(()),
        }
    }

    fn moved(&self, ino: Ino, from: &End<'_>, to: &End<'_>) {
        match self.index.get(ino) {
            Some(_) => self.nodes.note_alias(ino, to.parent, to.name),
            None => self.nodes.move_to(ino, Dentry::named(to.parent, to.name)),
        }
        self.nodes.alias_gone(ino, from.parent, from.name);
    }

    /// Puts an empty directory in the place of one that holds only whiteouts, which a rename could
    /// not replace. It is opaque, so that the lower does not show through meanwhile.
    fn clear_whiteouts(&self, old: &Address, dir: &DirView, name: &OsStr) -> Result<Draft<'_>> {
        let upper = self.upper()?;
        let stat = old.stat()?;
        let (draft, ()) = upper.draft(|work, draft| make_directory(work, draft, 0o700))?;
        let new = draft.address();
        upper.marks.set(&new, Mark::Opaque, b"y")?;
        inode_ops::give_owner(&new, &new.stat()?, owner_of(&stat), upper.privilege())?;
        new.chmod(stat.stx_mode.into())?;
        draft.place(dir.fd()?, name, RenameFlags::EXCHANGE)
    }
}
