//! The work directory: where things are built before one rename puts them in place, and where removed
//! things are taken apart after one rename has put them out of sight.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, OFlags, RenameFlags};
use rustix::io::Errno;

use super::super::error::{Error, Result};
use super::form::Whiteouts;
use super::marks::Mark;
use super::open::Upper;
use super::renaming::NOTE;
use crate::inode_ops::{self, Address, list, make_directory, make_file, make_special};
use crate::types::FileKind;

/// The one whiteout inode that all whiteouts are links of, until the file system's limit of links.
const WHITEOUT: &str = "whiteout";

/// Something in the work directory that is not in place yet. Dropped, it is removed.
#[derive(Debug)]
pub(in super::super) struct Draft<'a> {
    upper: &'a Upper,
    dir: Arc<OwnedFd>,
    name: OsString,
    /// A directory made for this draft alone, to pass on a default ACL.
    nursery: Option<OsString>,
    placed: bool,
}

impl Draft<'_> {
    pub(in super::super) fn address(&self) -> Address {
        Address::at(&self.dir, &self.name)
    }

    pub(in super::super) fn dir(&self) -> &Arc<OwnedFd> {
        &self.dir
    }

    pub(in super::super) fn name(&self) -> &OsStr {
        &self.name
    }

    /// Renames the draft to `name` in `dir`. With [`RenameFlags::EXCHANGE`], what was there becomes
    /// the draft, to be dropped where removing it may take its time.
    pub(in super::super) fn place(
        mut self,
        dir: &OwnedFd,
        name: &OsStr,
        flags: RenameFlags,
    ) -> Result<Self> {
        rustix::fs::renameat_with(&self.dir, self.name.as_os_str(), dir, name, flags)
            .map_err(Error::sys("rename", name.to_string_lossy()))?;
        self.placed = !flags.contains(RenameFlags::EXCHANGE);
        Ok(self)
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.placed {
            remove_tree(&self.dir, &self.name);
        }
        if let Some(nursery) = &self.nursery {
            self.upper.discard(nursery);
        }
    }
}

impl Upper {
    /// A name not yet used in the work directory.
    pub(super) fn draft_name(&self) -> OsString {
        // The kernel's own temporary names begin with '#' too.
        OsString::from(format!("#{:x}", self.drafts.fetch_add(1, Ordering::Relaxed)))
    }

    /// A place for a draft that `make` fills by creating the name it is given.
    pub(in super::super) fn draft<T, E>(
        &self,
        make: impl FnOnce(&OwnedFd, &OsStr) -> Result<T, E>,
    ) -> Result<(Draft<'_>, T), E> {
        let name = self.draft_name();
        let made = make(&self.work, &name)?;
        let dir = Arc::clone(&self.work);
        Ok((Draft { upper: self, dir, name, nursery: None, placed: false }, made))
    }

    /// As [`Self::draft`], below a directory that has `acl` for its default ACL, which the new
    /// inode takes over as if made in its place.
    pub(in super::super) fn draft_under_acl<T>(
        &self,
        acl: &[u8],
        make: impl FnOnce(&OwnedFd, &OsStr) -> Result<T>,
    ) -> Result<(Draft<'_>, T)> {
        let nursery = self.draft_name();
        make_directory(&self.work, &nursery, 0o700)?;
        let open = || -> Result<Arc<OwnedFd>> {
            let address = Address::at(&self.work, &nursery);
            address
                .set_xattr(c"system.posix_acl_default", acl, rustix::fs::XattrFlags::empty())
                .map_err(Error::sys("setxattr", "workdir"))?;
            Ok(Arc::new(address.open(OFlags::PATH | OFlags::DIRECTORY)?))
        };
        let name = OsString::from("draft");
        let made = open().and_then(|dir| make(&dir, &name).map(|made| (dir, made)));
        match made {
            Ok((dir, made)) => {
                let nursery = Some(nursery);
                Ok((Draft { upper: self, dir, name, nursery, placed: false }, made))
            }
            Err(error) => {
                self.discard(&nursery);
                Err(error)
            }
        }
    }

    /// A new empty file in the work directory.
    pub(in super::super) fn draft_file(
        &self,
        flags: OFlags,
        mode: u32,
    ) -> Result<(Draft<'_>, OwnedFd)> {
        Ok(self.draft(|dir, name| make_file(dir, name, flags, mode))?)
    }

    /// What makes files without a name in the work directory.
    pub(in super::super) fn scratch_files(
        &self,
    ) -> impl Fn() -> io::Result<File> + Send + Sync + use<> {
        let work = Arc::clone(&self.work);
        move || tempfile::tempfile_in(format!("/proc/self/fd/{}", work.as_raw_fd()))
    }

    /// A whiteout in the work directory.
    pub(in super::super) fn draft_whiteout(&self) -> Result<Draft<'_>> {
        Ok(self.draft(|dir, name| self.link_whiteout(dir, name))?.0)
    }

    /// Prepares `dir` for whiteouts, before the first is made in it. It must merge with a lower directory.
    pub(in super::super) fn mark_whiteouts(&self, dir: &Arc<OwnedFd>) -> Result<()> {
        match self.whiteouts {
            Whiteouts::Devices => Ok(()),
            Whiteouts::Files => {
                self.marks.set(&Address::at(dir, OsStr::new(".")), Mark::Opaque, b"x")
            }
        }
    }

    /// Makes `name` in `dir`, where nothing is, a whiteout.
    pub(in super::super) fn link_whiteout(&self, dir: &OwnedFd, name: &OsStr) -> Result<()> {
        let link = || rustix::fs::linkat(&self.work, WHITEOUT, dir, name, AtFlags::empty());
        match link() {
            Ok(()) => return Ok(()),
            Err(Errno::NOENT | Errno::MLINK) => {}
            Err(errno) => return Err(Error::sys("link", name.to_string_lossy())(errno)),
        }
        let draft = match self.whiteouts {
            Whiteouts::Devices => {
                self.draft(|dir, name| make_special(dir, name, FileKind::CharDevice, 0, 0))?.0
            }
            Whiteouts::Files => {
                // Readable and writable, since without privilege attributes are only of such files.
                let draft = self.draft_file(OFlags::WRONLY, 0o600)?.0;
                self.marks.set(&draft.address(), Mark::Whiteout, b"y")?;
                draft
            }
        };
        draft.place(&self.work, OsStr::new(WHITEOUT), RenameFlags::empty())?;
        link().map_err(Error::sys("link", name.to_string_lossy()))
    }

    /// Takes `name` out of `dir` in one step. Dropping the draft takes it apart.
    pub(in super::super) fn take_away(&self, dir: &OwnedFd, name: &OsStr) -> Result<Draft<'_>> {
        let (draft, ()) = self.draft(|work, draft| {
            rustix::fs::renameat(dir, name, work, draft)
                .map_err(Error::sys("rename", name.to_string_lossy()))
        })?;
        Ok(draft)
    }

    /// Removes `name` from the work directory, with all below it. What cannot be removed now is removed
    /// when the upper is opened next.
    pub(super) fn discard(&self, name: &OsStr) {
        remove_tree(&self.work, name);
    }

    /// Empties the work directory, but for a note of what is still to be done.
    pub(super) fn clean_work(&self) -> Result<()> {
        for (name, ..) in list(&self.work)? {
            if name != NOTE {
                self.discard(&name);
            }
        }
        Ok(())
    }
}

fn remove_tree(dir: &OwnedFd, name: &OsStr) {
    match inode_ops::remove_tree(dir, name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("workdir: cannot remove {}: {error}", name.display());
        }
        Ok(()) | Err(_) => {}
    }
}
