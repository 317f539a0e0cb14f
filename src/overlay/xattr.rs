//! Extended attributes.
//!
//! The upper's marks share a namespace with attributes that programs in the mount may set. As in
//! kernel overlayfs (since 6.7), such a program's `trusted.overlay.x` is stored as
//! `trusted.overlay.overlay.x`, and marks are not shown. In the archive nothing is a mark.

use std::borrow::Cow;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;

use parking_lot::RwLockReadGuard;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::Overlay;
use super::attr::Caller;
use super::error::{Error, Result, not_copied};
use super::node::{Data, UpperState, Want};
use super::upper::Namespace;
use crate::inode_ops::Address;
use crate::squashfs::mounted::{self, DataInArchive, MountedArchive};
use crate::types::{FileKind, Ino, Owner};
use crate::watch::What;

/// What stands between the marks' prefix and the rest of a name that is not a mark.
const ESCAPE: &[u8] = b"overlay.";

/// The name under which the upper stores attribute `name` of a program.
pub(super) fn stored_name(name: &[u8], marks: Namespace) -> Cow<'_, [u8]> {
    match split(name, marks) {
        None => Cow::Borrowed(name),
        Some((prefix, rest)) => Cow::Owned([prefix, ESCAPE, rest].concat()),
    }
}

/// The two parts of a name that begins as marks do.
fn split(name: &[u8], marks: Namespace) -> Option<(&'static [u8], &[u8])> {
    let mut prefixes = marks.reserved().iter();
    prefixes.find_map(|prefix| name.strip_prefix(*prefix).map(|rest| (*prefix, rest)))
}

/// The name that a program sees of an attribute in the upper; `None` for a mark.
fn shown_name(stored: &[u8], marks: Namespace) -> Option<Cow<'_, [u8]>> {
    match split(stored, marks) {
        None => Some(Cow::Borrowed(stored)),
        Some((prefix, rest)) => {
            let rest = rest.strip_prefix(ESCAPE)?;
            Some(Cow::Owned([prefix, rest].concat()))
        }
    }
}

/// The attributes of an inode in the upper that are no marks, as a program has named them.
pub(super) fn stored_xattrs(inode: &Address, marks: Namespace) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let stored = match inode.list_xattrs() {
        Err(Errno::OPNOTSUPP) => Vec::new(),
        other => other.map_err(Error::sys("listxattr", inode.label()))?,
    };
    let mut xattrs = Vec::new();
    for stored in stored.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let Some(name) = shown_name(stored, marks) else { continue };
        let value = inode.get_xattr(&CString::new(stored).map_err(|_| Errno::INVAL)?);
        match value {
            Ok(value) => xattrs.push((name.into_owned(), value)),
            // Removed meanwhile.
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(Error::sys("getxattr", inode.label())(errno)),
        }
    }
    Ok(xattrs)
}

/// An inode in the upper, and the names of its marks.
struct InUpper<'a> {
    inode: Address,
    state: UpperState,
    marks: Namespace,
    _names: RwLockReadGuard<'a, ()>,
}

impl Overlay {
    /// The value of attribute `name`.
    ///
    /// # Errors
    /// `ENODATA` where it has none, also for ACLs on a file system without them; or what reading
    /// either half says.
    pub fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        self.across_freezes(|| self.value_of(ino, name))
    }

    fn value_of(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        if name == mounted::DATA_XATTR {
            return Ok(self.data_in_archive(ino)?.to_text());
        }
        if name == mounted::ARCHIVE_XATTR {
            let source = self.source.as_ref().map(MountedArchive::to_text);
            return Ok(source.ok_or(Errno::NODATA)?);
        }
        if name == Owner::STORED {
            return match self.identity.is_plain() {
                true => Err(Errno::NODATA.into()),
                false => Ok(self.stored_owner(ino)?.to_text()),
            };
        }
        let Some(InUpper { inode, marks, _names, .. }) = self.in_upper(ino)? else {
            let lower = self.lower.place_of(ino)?;
            let value = self.lower.archive().xattr(&self.lower.inode(lower)?, name.as_bytes())?;
            return Ok(value.ok_or(Errno::NODATA)?);
        };
        match inode.get_xattr(&c_name(name, marks)?) {
            Ok(value) if is_acl(name) && !self.identity.is_plain() => {
                Ok(self.identity.shown_acl(value))
            }
            Ok(value) => Ok(value),
            Err(Errno::OPNOTSUPP) if is_acl(name) => Err(Errno::NODATA.into()),
            // The usual answer, to a question asked of every file: no message is made for it.
            Err(Errno::NODATA) => Err(Errno::NODATA.into()),
            Err(errno) => Err(Error::sys("getxattr", inode.label())(errno)),
        }
    }

    /// The inode of the archive that has all data of regular file `ino`. `ENODATA` also while somebody may write to it:
    /// the kernel may hold back what was written already.
    fn data_in_archive(&self, ino: Ino) -> Result<DataInArchive> {
        if self.handles.has_archive_writer(ino) {
            return Err(Errno::NODATA.into());
        }
        let node = self.nodes.get(ino)?;
        let inode = match node.upper {
            None => self.lower.place_of(ino)?,
            Some(UpperState { data: Data::Lower(inode), .. }) => {
                return Ok(DataInArchive { inode, has_xattrs: false });
            }
            Some(_) => return Err(Errno::NODATA.into()),
        };
        match self.lower.inode(inode)?.kind {
            FileKind::Regular => Ok(DataInArchive { inode, has_xattrs: true }),
            _ => Err(Errno::NODATA.into()),
        }
    }

    /// The names of all attributes that `caller` may see, each ended by a NUL: Linux leaves it to file
    /// systems to hide `trusted.` ones from users without privilege. Which privileges a caller has
    /// FUSE does not say, so user 0 stands for all.
    ///
    /// # Errors
    /// What reading either half says.
    pub fn listxattr(&self, caller: &Caller, ino: Ino) -> Result<Vec<u8>> {
        self.across_freezes(|| self.xattr_names_of(caller, ino))
    }

    fn xattr_names_of(&self, caller: &Caller, ino: Ino) -> Result<Vec<u8>> {
        let mut shown = Vec::new();
        let mut show = |name: &[u8]| {
            if caller.uid == 0 || !name.starts_with(b"trusted.") {
                shown.extend_from_slice(name);
                shown.push(0);
            }
        };
        match self.in_upper(ino)? {
            None => {
                let lower = self.lower.place_of(ino)?;
                for name in self.lower.archive().xattr_names(&self.lower.inode(lower)?)? {
                    show(&name);
                }
            }
            Some(InUpper { inode, marks, _names, .. }) => {
                let stored = match inode.list_xattrs() {
                    Err(Errno::OPNOTSUPP) => Vec::new(),
                    other => other.map_err(Error::sys("listxattr", inode.label()))?,
                };
                for name in stored.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                    if let Some(name) = shown_name(name, marks) {
                        show(&name);
                    }
                }
            }
        }
        Ok(shown)
    }

    /// Sets attribute `name`.
    ///
    /// # Errors
    /// `EEXIST` or `ENODATA` as `flags` ask, `EROFS`, or what the upper says.
    pub fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], flags: XattrFlags) -> Result<()> {
        self.across_freezes(|| self.set_value(ino, name, value, flags))
    }

    fn set_value(&self, ino: Ino, name: &OsStr, value: &[u8], flags: XattrFlags) -> Result<()> {
        self.copy_up(ino, Want::Attributes)?;
        let InUpper { inode, mut state, marks, _names } = self.expect_in_upper(ino)?;
        let stored = c_name(name, marks)?;
        let value = match is_acl(name) && !self.identity.is_plain() {
            true => {
                let current = inode.get_xattr(&stored).unwrap_or_default();
                Cow::Owned(self.identity.stored_acl(&current, value)?)
            }
            false => Cow::Borrowed(value),
        };
        self.let_ctime_move(ino, &inode, &mut state.kept_ctime)?;
        inode.set_xattr(&stored, &value, flags).map_err(Error::sys("setxattr", inode.label()))?;
        self.tell_write_before(ino);
        self.tell_inode(What::Attributes, ino, &state);
        Ok(())
    }

    /// Removes attribute `name`. An ACL that is not there is as good as removed.
    ///
    /// # Errors
    /// `ENODATA` where it has none, `EROFS`, or what the upper says.
    pub fn removexattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        self.upper()?;
        // A file that does not have it is not copied up to find that out.
        match self.getxattr(ino, name) {
            Err(error) if error.is(Errno::NODATA) && is_acl(name) => return Ok(()),
            other => other?,
        };
        self.across_freezes(|| self.remove_value(ino, name))
    }

    fn remove_value(&self, ino: Ino, name: &OsStr) -> Result<()> {
        self.copy_up(ino, Want::Attributes)?;
        let InUpper { inode, mut state, marks, _names } = self.expect_in_upper(ino)?;
        self.let_ctime_move(ino, &inode, &mut state.kept_ctime)?;
        inode
            .remove_xattr(&c_name(name, marks)?)
            .map_err(Error::sys("removexattr", inode.label()))?;
        self.tell_write_before(ino);
        self.tell_inode(What::Attributes, ino, &state);
        Ok(())
    }

    /// As [`Self::in_upper`], after a copy-up.
    fn expect_in_upper(&self, ino: Ino) -> Result<InUpper<'_>> {
        let found = self.in_upper(ino)?.ok_or_else(|| not_copied(ino))?;
        match self.may_change(&found.state) {
            true => Ok(found),
            false => Err(Error::Frozen),
        }
    }

    /// Where `ino` is reached in the upper or in a layer, if it is there. The lock keeps it so.
    fn in_upper(&self, ino: Ino) -> Result<Option<InUpper<'_>>> {
        if self.nodes.upper(ino)?.is_none() {
            return Ok(None);
        }
        let names = self.names.read();
        let (inode, state) = self.address(ino)?;
        Ok(Some(InUpper { inode, state, marks: self.marks, _names: names }))
    }
}

fn is_acl(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b"system.posix_acl_")
}

fn c_name(name: &OsStr, marks: Namespace) -> Result<CString> {
    Ok(CString::new(stored_name(name.as_bytes(), marks).into_owned()).map_err(|_| Errno::INVAL)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_programs_survive_storing_and_marks_are_not_shown() {
        for name in [
            "user.a",
            "trusted.overlay.opaque",
            "trusted.overlay.overlay.opaque",
            "trusted.overlays",
            "security.capability",
        ] {
            for marks in [Namespace::Trusted, Namespace::User] {
                let stored = stored_name(name.as_bytes(), marks);
                assert_eq!(&*shown_name(&stored, marks).unwrap(), name.as_bytes());
            }
        }
        assert_eq!(
            &*stored_name(b"trusted.overlay.opaque", Namespace::Trusted),
            b"trusted.overlay.overlay.opaque"
        );
        assert_eq!(shown_name(b"trusted.overlay.opaque", Namespace::Trusted), None);
        assert!(shown_name(b"user.overlay.opaque", Namespace::Trusted).is_some());
        // Root's own on what can have none of a user's.
        assert_eq!(shown_name(b"trusted.overlay.thawfs.origin", Namespace::User), None);
    }
}
