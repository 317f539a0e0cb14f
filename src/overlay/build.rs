//! Making copies of lower inodes in the work directory: data, owner, attributes, permissions, times, and the record of
//! where each came from. Nobody sees a copy before it has all of these.

use std::ffi::{CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{OFlags, Statx};
use rustix::io::Errno;

use super::Overlay;
use super::error::{Error, Result};
use super::index::{Entry, layer_index_name};
use super::name::Name;
use super::node::{Data, Dentry, InLayer, UpperState, Want};
use super::stack::Below;
use super::upper::{Draft, Mark, Record, handle_of, index_name};
use super::xattr::{stored_name, stored_xattrs};
use crate::cache::may_wait;
use crate::inode_ops::{self, Address, make_directory, make_special, make_symlink, times_of};
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

/// What is copied up.
pub(super) enum Original {
    /// An inode of the archive.
    Archive(Inode),
    /// An inode of a frozen layer.
    Layer(Box<FrozenInode>),
}

/// An inode of a frozen layer.
#[derive(Clone)]
pub(super) struct FrozenInode {
    pub(super) address: Address,
    pub(super) stat: Statx,
    pub(super) state: UpperState,
    /// Of a directory: itself, and what is below it.
    pub(super) whole: Below,
    /// Its name there, if it still has one in the merged tree.
    pub(super) place: Option<InLayer>,
    /// [`super::stack::Stack::merges`] when that was found out.
    pub(super) merges: u64,
}

impl Original {
    pub(super) fn kind(&self) -> FileKind {
        match self {
            Self::Archive(inode) => inode.kind,
            Self::Layer(frozen) => frozen.state.kind,
        }
    }

    fn permissions(&self) -> u16 {
        match self {
            Self::Archive(inode) => inode.permissions,
            Self::Layer(frozen) => frozen.stat.stx_mode & 0o7777,
        }
    }

    pub(super) fn generation(&self) -> u64 {
        match self {
            Self::Archive(_) => 0,
            Self::Layer(frozen) => frozen.state.generation,
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::Archive(inode) => inode.size,
            Self::Layer(frozen) => frozen.stat.stx_size,
        }
    }

    fn nlink(&self) -> u32 {
        match self {
            Self::Archive(inode) => inode.nlink,
            Self::Layer(frozen) => frozen.stat.stx_nlink,
        }
    }

    /// The device that stands for it in the upper.
    fn stored_rdev(&self) -> u64 {
        match self {
            Self::Archive(inode) if self.is_null_device() => {
                debug_assert_eq!(inode.rdev, 0);
                stand_in()
            }
            Self::Archive(inode) => inode.rdev,
            Self::Layer(frozen) => {
                rustix::fs::makedev(frozen.stat.stx_rdev_major, frozen.stat.stx_rdev_minor)
            }
        }
    }

    fn is_null_device(&self) -> bool {
        match self {
            Self::Archive(inode) => inode.kind == FileKind::CharDevice && inode.rdev == 0,
            Self::Layer(frozen) => frozen.state.null_device,
        }
    }

    /// The inode of the archive that it is, or is a copy of.
    fn archive(&self) -> Option<InodeRef> {
        match self {
            Self::Archive(inode) => Some(inode.reference),
            Self::Layer(frozen) => frozen.state.below.archive,
        }
    }

    /// What its copy is over.
    pub(super) fn below(&self) -> Below {
        match self {
            Self::Layer(frozen) if frozen.state.kind == FileKind::Directory => frozen.whole.clone(),
            Self::Archive(_) | Self::Layer(_) => Below::archive(self.archive()),
        }
    }

    /// Whether that is still what is known of its node's inode in a layer, layers having been merged so often by now.
    pub(super) fn is_what(&self, known: Option<&UpperState>, merges: u64) -> bool {
        match (self, known) {
            (Self::Archive(_), None) => true,
            (Self::Layer(frozen), Some(known)) => {
                let id = |state: &UpperState| (state.layer, state.st_ino);
                id(&frozen.state) == id(known) && frozen.merges == merges
            }
            _ => false,
        }
    }

    /// The entry of the index for a copy of it, `ino`, that is `st_ino` in the upper.
    pub(super) fn index_entry(&self, ino: Ino, st_ino: u64) -> Entry {
        let name = match self {
            Self::Archive(inode) => index_name(inode.number),
            Self::Layer(_) => layer_index_name(ino, self.nlink()),
        };
        Entry { name: name.into(), st_ino, lower: self.archive(), lower_nlink: self.nlink() }
    }
}

impl Overlay {
    /// Copies a lower inode into the work directory, with as much of its data as `want` says.
    pub(super) fn build(&self, ino: Ino, original: &Original, want: Want) -> Result<Built<'_>> {
        let upper = self.upper()?;
        let null_device = original.is_null_device();
        // As they will be, so that they need not be changed. Without privilege, attributes can only be
        // set on what is writable.
        let permissions = |open: u32| match upper.privileged {
            true => u32::from(original.permissions()) & 0o777,
            false => open,
        };
        let draft = match original.kind() {
            FileKind::Regular => {
                return self.build_file(ino, original, want, permissions(0o600));
            }
            FileKind::Directory => {
                upper.draft(|dir, name| make_directory(dir, name, permissions(0o700)))?
            }
            FileKind::Symlink => {
                let target = match original {
                    Original::Archive(inode) => self.lower.archive().read_link(inode)?,
                    Original::Layer(frozen) => frozen.address.read_link()?,
                };
                upper.draft(|dir, name| make_symlink(dir, name, OsStr::from_bytes(&target)))?
            }
            kind => upper.draft(|dir, name| {
                make_special(dir, name, kind, permissions(0o600), original.stored_rdev())
            })?,
        }
        .0;
        let address = draft.address();
        let (st_ino, owner) = self.dress(&address, ino, original)?;
        if null_device {
            upper.marks.for_kind(original.kind()).set(&address, Mark::NullDevice, b"")?;
        }
        Ok(Built { draft, fd: None, st_ino, owner, data: Data::Upper, null_device })
    }

    fn build_file(
        &self,
        ino: Ino,
        original: &Original,
        want: Want,
        permissions: u32,
    ) -> Result<Built<'_>> {
        let upper = self.upper()?;
        let (draft, fd) = upper.draft_file(OFlags::RDWR, permissions)?;
        let fd = Arc::new(fd);
        let copy = Address::Open(Arc::clone(&fd));
        let below = self.data_of_original(original);
        let data = match (want, below) {
            (Want::Truncated, _) => Data::Upper,
            (Want::Attributes, Some(data)) if self.may_be_metacopy(ino, original, &copy) => data,
            (Want::Attributes | Want::Data, Some(data)) => {
                self.write_data(&data, &fd)?;
                Data::Upper
            }
            // It has no name that would lead there.
            (Want::Attributes | Want::Data, None) => {
                self.write_own_data(original, &fd)?;
                Data::Upper
            }
        };
        if !data.is_here() {
            inode_ops::set_size(&fd, original.size())?;
        }
        let (st_ino, owner) = self.dress(&copy, ino, original)?;
        // Last: where the file's own attributes leave no room for the mark, the data is copied.
        if !data.is_here() && upper.marks.set(&copy, Mark::Metacopy, b"").is_err() {
            return self.build_file(ino, original, Want::Data, permissions);
        }
        if data.is_here() && original.size() > 0 && want != Want::Truncated {
            // Otherwise the rename may reach the disk before the data does. Attributes and names need
            // no fsync: the journal keeps them in order.
            rustix::fs::fsync(&fd).map_err(Error::sys("fsync", "a copy"))?;
        }
        let fd = data.is_here().then_some(fd);
        Ok(Built { draft, fd, st_ino, owner, data, null_device: false })
    }

    /// Where the data of a regular file is from the view of a copy of it; `None` where no name leads there.
    fn data_of_original(&self, original: &Original) -> Option<Data> {
        match original {
            Original::Archive(inode) => Some(Data::Lower(inode.reference)),
            Original::Layer(frozen) => match &frozen.state.data {
                Data::Upper => frozen.place.clone().map(Data::Layer),
                data => Some(data.clone()),
            },
        }
    }

    fn write_own_data(&self, original: &Original, to: &OwnedFd) -> Result<()> {
        let Original::Layer(frozen) = original else { return Err(Errno::INVAL.into()) };
        if !may_wait() {
            return Err(Error::WouldCopy);
        }
        let from = frozen.address.open(OFlags::RDONLY)?;
        Ok(inode_ops::copy_data(&from, to)?)
    }

    /// Whether the data of a copy can stay in the lower. The copy's name says where that is, as it is the lower's
    /// name in a directory that merges with the lower's. So the copy gets a redirect only when its name changes
    /// ([`Self::keep_data_found`]), or at once if it comes into the index, where other names lead to it.
    fn may_be_metacopy(&self, ino: Ino, original: &Original, copy: &Address) -> bool {
        original.size() > 0
            && self.options.metacopy
            && (original.nlink() == 1 || self.redirect_to_data(ino, copy).is_ok())
    }

    fn redirect_to_data(&self, ino: Ino, copy: &Address) -> Result<()> {
        self.upper()?.marks.set(copy, Mark::Redirect, &self.lower_path(ino)?)
    }

    /// Prepares for a metacopy to get another name: a redirect says where its data is, if none does yet.
    /// Where that cannot be said, the data is copied.
    pub(super) fn keep_data_found(&self, ino: Ino) -> Result<()> {
        let is_metacopy = |state: UpperState| !state.data.is_here();
        if !self.nodes.upper(ino)?.is_some_and(is_metacopy) || self.index.get(ino).is_some() {
            return Ok(());
        }
        let address = {
            let _names = self.names.read();
            Address::Pinned(self.live_address(ino)?.0.pin()?)
        };
        match self.redirect_to_data(ino, &address) {
            Ok(()) => Ok(()),
            Err(_) => self.copy_up(ino, Want::Data),
        }
    }

    /// Gives a copy the owner, attributes, permissions and times of its original, and the record
    /// that says where it came from. Returns its number in the upper, and its owner if that had to be
    /// recorded.
    pub(super) fn dress(
        &self,
        copy: &Address,
        ino: Ino,
        original: &Original,
    ) -> Result<(u64, Option<Owner>)> {
        let upper = self.upper()?;
        let stat = self.numbers.identify(copy, copy.stat()?)?;
        let (owner, shown) = match original {
            Original::Archive(inode) => {
                let xattrs = self.lower.archive().xattrs(inode)?.into_iter();
                let xattrs: Vec<_> = xattrs.map(|xattr| (xattr.name, xattr.value)).collect();
                (Owner { uid: inode.uid, gid: inode.gid }, xattrs)
            }
            Original::Layer(frozen) => (
                self.owner_stored(&frozen.state, &frozen.stat),
                stored_xattrs(&frozen.address, upper.marks)?,
            ),
        };
        let mut xattrs = Vec::new();
        for (name, value) in shown {
            let name = CString::new(stored_name(&name, upper.marks).into_owned())
                .map_err(|_| Error::damaged("the archive has an attribute with NUL in its name"))?;
            xattrs.push((name, value));
        }
        let begun = inode_ops::begin(copy, &stat, owner, xattrs, upper.privilege())?;
        for (name, errno) in &begun.refused.xattrs {
            tracing::debug!("copy-up: {} is not kept: {errno}", name.to_string_lossy());
        }
        // After the file's own, as these can be done without if there is no room for all.
        let recorded = if begun.refused.owner { self.record_owner(copy, owner)? } else { None };
        let kind = original.kind();
        let number = Record::Number(self.number(ino), original.generation());
        let record = original.archive().map_or(number, Record::Archive);
        upper.marks.try_set(copy, kind, Mark::Record, &record.to_bytes(stat.stx_ino))?;
        match original {
            Original::Archive(inode) => {
                upper.marks.try_set(copy, kind, Mark::Origin, &handle_of(inode.number))?;
                begun.finish(inode.permissions, inode.mtime)?;
            }
            Original::Layer(frozen) => {
                let marks = upper.marks.for_kind(kind);
                // It is a number in the archive.
                if !self.is_over_another(frozen.state.layer)
                    && let Some(origin) = marks.get(&frozen.address, Mark::Origin)?
                {
                    upper.marks.try_set(copy, kind, Mark::Origin, &origin)?;
                }
                begun.finish_with_times(original.permissions(), &times_of(&frozen.stat))?;
            }
        }
        Ok((stat.stx_ino, recorded))
    }

    /// Copies the data of a lower file, which is `data`, into an empty or all-hole file, leaving its holes.
    ///
    /// # Errors
    /// [`Error::WouldCopy`] on a thread that must not wait, or what reading and writing say.
    pub(super) fn write_data(&self, data: &Data, to: &OwnedFd) -> Result<()> {
        if !may_wait() {
            return Err(Error::WouldCopy);
        }
        match data {
            Data::Upper => Ok(()),
            Data::Lower(lower) => {
                let inode = self.lower.inode(*lower)?;
                for piece in self.lower.archive().pieces(&inode) {
                    let (at, data) = piece?;
                    inode_ops::write_all(to, &data, at.0)?;
                }
                Ok(inode_ops::set_size(to, inode.size)?)
            }
            Data::Layer(place) => {
                let from = self.in_layer(place)?.open(OFlags::RDONLY)?;
                Ok(inode_ops::copy_data(&from, to)?)
            }
        }
    }

    /// The path of `ino`'s lower inode in what is below the upper, from its root: what a redirect to it says.
    pub(super) fn lower_path(&self, ino: Ino) -> Result<Vec<u8>> {
        let marks = self.upper()?.marks;
        let mut names: Vec<Name> = Vec::new();
        let mut at = ino;
        while at != Ino::ROOT {
            let node = self.nodes.get(at)?;
            let Dentry::Name(parent, name) = node.dentry else { return Err(Errno::NOENT.into()) };
            let redirect = match &node.upper {
                Some(state) if self.is_live(state) => {
                    let _names = self.names.read();
                    marks.get(&self.address(at)?.0, Mark::Redirect)?
                }
                Some(_) | None => None,
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
