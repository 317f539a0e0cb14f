//! Making copies of lower inodes in the work directory: data, owner, attributes, permissions, times, and the record of
//! where each came from. Nobody sees a copy before it has all of these.

use std::ffi::{CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Overlay;
use super::error::{Error, Result};
use super::name::Name;
use super::node::{Data, Dentry, UpperState, Want};
use super::upper::{Draft, Mark, handle_of, record};
use super::xattr::stored_name;
use crate::cache::may_wait;
use crate::inode_ops::{self, Address, make_directory, make_special, make_symlink};
use crate::squashfs::Inode;
use crate::types::{FileKind, Ino, InodeRef, Owner};

/// The device that stands in the upper for a 0/0 character device, which would be a whiteout.
/// Linux gives no driver major number 0, and XFS takes minor numbers of 18 bits.
pub(super) const NULL_DEVICE_STAND_IN: (u32, u32) = (0, 0x3ffff);

/// A copy in the work directory.
pub(super) struct Built<'a> {
    pub(super) draft: Draft<'a>,
    /// Of a regular file whose data it has: to read and write it.
    pub(super) fd: Option<Arc<OwnedFd>>,
    /// Its number in the upper.
    pub(super) st_ino: u64,
    /// Its owner, if that is recorded.
    pub(super) owner: Option<Owner>,
    pub(super) data: Data,
    pub(super) null_device: bool,
}

impl Overlay {
    /// Copies lower inode `lower` into the work directory, with as much of its data as `want` says.
    pub(super) fn build(
        &self,
        ino: Ino,
        lower: InodeRef,
        inode: &Inode,
        want: Want,
    ) -> Result<Built<'_>> {
        let upper = self.upper()?;
        let null_device = inode.kind == FileKind::CharDevice && inode.rdev == 0;
        // As they will be, so that they need not be changed. Without privilege, attributes can only be
        // set on what is writable.
        let permissions = |open: u32| match upper.privileged {
            true => u32::from(inode.permissions) & 0o777,
            false => open,
        };
        let draft = match inode.kind {
            FileKind::Regular => {
                return self.build_file(ino, lower, inode, want, permissions(0o600));
            }
            FileKind::Directory => {
                upper.draft(|dir, name| make_directory(dir, name, permissions(0o700)))?
            }
            FileKind::Symlink => {
                let target = self.lower.archive().read_link(inode)?;
                upper.draft(|dir, name| make_symlink(dir, name, OsStr::from_bytes(&target)))?
            }
            kind => upper.draft(|dir, name| {
                let device = if null_device { stand_in() } else { inode.rdev };
                make_special(dir, name, kind, permissions(0o600), device)
            })?,
        }
        .0;
        let address = draft.address();
        let (st_ino, owner) = self.dress(&address, lower, inode)?;
        if null_device {
            upper.marks.for_kind(inode.kind).set(&address, Mark::NullDevice, b"")?;
        }
        Ok(Built { draft, fd: None, st_ino, owner, data: Data::Upper, null_device })
    }

    fn build_file(
        &self,
        ino: Ino,
        lower: InodeRef,
        inode: &Inode,
        want: Want,
        permissions: u32,
    ) -> Result<Built<'_>> {
        let upper = self.upper()?;
        let (draft, fd) = upper.draft_file(OFlags::RDWR, permissions)?;
        let fd = Arc::new(fd);
        let copy = Address::Open(Arc::clone(&fd));
        let data = match want {
            Want::Truncated => Data::Upper,
            Want::Attributes if self.may_be_metacopy(ino, inode, &copy) => Data::Lower(lower),
            Want::Attributes | Want::Data => {
                self.write_data(inode, &fd)?;
                Data::Upper
            }
        };
        if data != Data::Upper {
            inode_ops::set_size(&fd, inode.size)?;
        }
        let (st_ino, owner) = self.dress(&copy, lower, inode)?;
        // Last: where the file's own attributes leave no room for the mark, the data is copied.
        if data != Data::Upper && upper.marks.set(&copy, Mark::Metacopy, b"").is_err() {
            return self.build_file(ino, lower, inode, Want::Data, permissions);
        }
        if data == Data::Upper && inode.size > 0 && want != Want::Truncated {
            // Otherwise the rename may reach the disk before the data does. Attributes and names need
            // no fsync: the journal keeps them in order.
            rustix::fs::fsync(&fd).map_err(Error::sys("fsync", "a copy"))?;
        }
        let fd = (data == Data::Upper).then_some(fd);
        Ok(Built { draft, fd, st_ino, owner, data, null_device: false })
    }

    /// Whether the data of a copy can stay in the lower. The copy's name says where that is, as it is the lower's
    /// name in a directory that merges with the lower's. So the copy gets a redirect only when its name changes
    /// ([`Self::keep_data_found`]), or at once if it comes into the index, where other names lead to it.
    fn may_be_metacopy(&self, ino: Ino, inode: &Inode, copy: &Address) -> bool {
        inode.size > 0
            && self.options.metacopy
            && (inode.nlink == 1 || self.redirect_to_data(ino, copy).is_ok())
    }

    fn redirect_to_data(&self, ino: Ino, copy: &Address) -> Result<()> {
        self.upper()?.marks.set(copy, Mark::Redirect, &self.lower_path(ino)?)
    }

    /// Prepares for a metacopy to get another name: a redirect says where its data is, if none does yet.
    /// Where that cannot be said, the data is copied.
    pub(super) fn keep_data_found(&self, ino: Ino) -> Result<()> {
        let is_metacopy = |state: UpperState| state.data != Data::Upper;
        if !self.nodes.upper(ino)?.is_some_and(is_metacopy) || self.index.get(ino).is_some() {
            return Ok(());
        }
        let address = {
            let _names = self.names.read();
            Address::Pinned(self.address(ino)?.0.pin()?)
        };
        match self.redirect_to_data(ino, &address) {
            Ok(()) => Ok(()),
            Err(_) => self.copy_up(ino, Want::Data),
        }
    }

    /// Gives a copy the owner, attributes, permissions and times of its lower inode, and the record
    /// that says where it came from. Returns its number in the upper, and its owner if that had to be
    /// recorded.
    pub(super) fn dress(
        &self,
        copy: &Address,
        lower: InodeRef,
        inode: &Inode,
    ) -> Result<(u64, Option<Owner>)> {
        let upper = self.upper()?;
        let stat = upper.identify(copy, copy.stat()?)?;
        let mut xattrs = Vec::new();
        for xattr in self.lower.archive().xattrs(inode)? {
            let name = CString::new(stored_name(&xattr.name, upper.marks).into_owned())
                .map_err(|_| Error::damaged("the archive has an attribute with NUL in its name"))?;
            xattrs.push((name, xattr.value));
        }
        let owner = Owner { uid: inode.uid, gid: inode.gid };
        let begun = inode_ops::begin(copy, &stat, owner, xattrs, upper.privilege())?;
        for (name, errno) in &begun.refused.xattrs {
            tracing::debug!("copy-up: {} is not kept: {errno}", name.to_string_lossy());
        }
        // After the file's own, as these can be done without if there is no room for all.
        let recorded = if begun.refused.owner { self.record_owner(copy, owner)? } else { None };
        let kind = inode.kind;
        upper.marks.try_set(copy, kind, Mark::Record, &record(lower, stat.stx_ino))?;
        upper.marks.try_set(copy, kind, Mark::Origin, &handle_of(inode.number))?;
        begun.finish(inode.permissions, inode.mtime)?;
        Ok((stat.stx_ino, recorded))
    }

    /// Copies a lower file's data into an empty or all-hole file, leaving its holes.
    ///
    /// # Errors
    /// [`Error::WouldCopy`] on a thread that must not wait, or what reading and writing say.
    pub(super) fn write_data(&self, inode: &Inode, to: &OwnedFd) -> Result<()> {
        if !may_wait() {
            return Err(Error::WouldCopy);
        }
        for piece in self.lower.archive().pieces(inode) {
            let (at, data) = piece?;
            inode_ops::write_all(to, &data, at.0)?;
        }
        Ok(inode_ops::set_size(to, inode.size)?)
    }

    /// The path of `ino`'s lower inode in the archive, from its root: what a redirect to it says.
    pub(super) fn lower_path(&self, ino: Ino) -> Result<Vec<u8>> {
        let marks = self.upper()?.marks;
        let mut names: Vec<Name> = Vec::new();
        let mut at = ino;
        while at != Ino::ROOT {
            let node = self.nodes.get(at)?;
            let Dentry::Name(parent, name) = node.dentry else { return Err(Errno::NOENT.into()) };
            let redirect = match &node.upper {
                Some(_) => {
                    let _names = self.names.read();
                    marks.get(&self.address(at)?.0, Mark::Redirect)?
                }
                None => None,
            };
            match redirect {
                Some(path) if path.first() == Some(&b'/') => {
                    names.push(path.get(1..).unwrap_or_default().into());
                    break;
                }
                Some(path) => names.push((*path).into()),
                None => names.push(name),
            }
            at = parent;
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        Ok(path)
    }
}

/// The device number of [`NULL_DEVICE_STAND_IN`].
pub(super) fn stand_in() -> u64 {
    rustix::fs::makedev(NULL_DEVICE_STAND_IN.0, NULL_DEVICE_STAND_IN.1)
}
