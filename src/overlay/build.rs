//! Making copies of lower inodes in the workdir.

use std::ffi::{CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::Overlay;
use super::copy_up::Want;
use super::error::{Error, Result};
use super::nodes::{Data, Place};
use super::upper::{Address, Draft, Mark, handle_of, record};
use super::xattr::stored_name;
use crate::squashfs::Inode;
use crate::types::{FileKind, FileOffset, Ino, InodeRef};

/// How much is read from the archive at a time while copying, in bytes: eight blocks of the usual
/// 128 KiB, enough for one request to the store to pay.
const COPY_SIZE: usize = 1 << 20;

/// The device that stands in the upper for a 0/0 character device, which would be a whiteout.
/// Linux gives no driver major number 0.
pub(super) const NULL_DEVICE_STAND_IN: (u32, u32) = (0, 0xfffff);

/// A copy in the workdir.
pub(super) struct Built<'a> {
    pub(super) draft: Draft<'a>,
    pub(super) data: Data,
    pub(super) null_device: bool,
}

impl Overlay {
    /// Copies lower inode `lower` into the workdir, with as much of its data as `want` says.
    pub(super) fn build(
        &self,
        ino: Ino,
        lower: InodeRef,
        inode: &Inode,
        want: Want,
    ) -> Result<Built<'_>> {
        let upper = self.upper()?;
        let null_device = inode.kind == FileKind::CharDevice && inode.rdev == 0;
        let mut data = Data::Upper;
        let draft = match inode.kind {
            FileKind::Regular => {
                let (draft, fd) = upper.draft_file(OFlags::RDWR, 0o600)?;
                let redirect = match want {
                    Want::Attributes if inode.size > 0 && self.options.metacopy => {
                        self.lower_path(ino).ok()
                    }
                    Want::Attributes | Want::Data | Want::Truncated => None,
                };
                match (redirect, want) {
                    (_, Want::Truncated) => {}
                    (Some(path), _) if self.mark_metacopy(&draft.address(), &path) => {
                        rustix::fs::ftruncate(&fd, inode.size)
                            .map_err(Error::sys("ftruncate", "a copy"))?;
                        data = Data::Lower(lower);
                    }
                    _ => self.write_data(inode, &fd)?,
                }
                self.dress(&draft.address(), lower, inode, null_device)?;
                if data == Data::Upper && inode.size > 0 && want != Want::Truncated {
                    // Otherwise the rename may reach the disk before the data does. Attributes and
                    // names need no fsync: the journal keeps them in order.
                    rustix::fs::fsync(&fd).map_err(Error::sys("fsync", "a copy"))?;
                }
                return Ok(Built { draft, data, null_device });
            }
            FileKind::Directory => upper.draft(|dir, name| {
                rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o700))
                    .map_err(Error::sys("mkdir", "a copy"))
            })?,
            FileKind::Symlink => {
                let target = self.lower.archive().read_link(inode)?;
                upper.draft(|dir, name| {
                    rustix::fs::symlinkat(OsStr::from_bytes(&target), dir, name)
                        .map_err(Error::sys("symlink", "a copy"))
                })?
            }
            kind => upper.draft(|dir, name| {
                let device = if null_device { stand_in() } else { inode.rdev };
                make_special(dir, name, kind, 0o600, device)
            })?,
        }
        .0;
        self.dress(&draft.address(), lower, inode, null_device)?;
        Ok(Built { draft, data, null_device })
    }

    /// Marks a copy as one whose data is at `path` in the lower. `false` where the path is too long
    /// for an attribute: then the data is copied.
    fn mark_metacopy(&self, copy: &Address, path: &[u8]) -> bool {
        let Ok(upper) = self.upper() else { return false };
        upper.marks.set(copy, Mark::Redirect, path).is_ok()
            && upper.marks.set(copy, Mark::Metacopy, b"").is_ok()
    }

    /// Gives a copy the owner, attributes, permissions and times of its lower inode, and the records
    /// that say where it came from.
    pub(super) fn dress(
        &self,
        copy: &Address,
        lower: InodeRef,
        inode: &Inode,
        null_device: bool,
    ) -> Result<()> {
        let upper = self.upper()?;
        match copy.chown(Some(inode.uid), Some(inode.gid)) {
            Err(error) if !upper.privileged && error.is(Errno::PERM) => {}
            other => other?,
        }
        for xattr in self.lower.archive().xattrs(inode)? {
            let name = CString::new(stored_name(&xattr.name, upper.marks).into_owned())
                .map_err(|_| Errno::IO)?;
            match copy.set_xattr(&name, &xattr.value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(errno @ (Errno::PERM | Errno::OPNOTSUPP)) if !upper.privileged => {
                    log::debug!("copy-up: {} is not kept: {errno}", name.to_string_lossy());
                }
                Err(errno) => return Err(Error::sys("setxattr", name.to_string_lossy())(errno)),
            }
        }
        let st_ino = copy.stat()?.stx_ino;
        upper.marks.try_set(copy, Mark::Record, &record(lower, st_ino))?;
        upper.marks.try_set(copy, Mark::Origin, &handle_of(inode.number))?;
        if null_device {
            upper.marks.set(copy, Mark::NullDevice, b"")?;
        }
        if inode.kind != FileKind::Symlink {
            copy.chmod(inode.permissions.into())?;
        }
        let time = Timespec { tv_sec: inode.mtime.seconds, tv_nsec: inode.mtime.nanos.into() };
        copy.set_times(&Timestamps { last_access: time, last_modification: time })
    }

    /// Copies a lower file's data into an empty or all-hole file, leaving its holes.
    pub(super) fn write_data(&self, inode: &Inode, to: &OwnedFd) -> Result<()> {
        let archive = self.lower.archive();
        let mut at = 0;
        while at < inode.size {
            let Some(start) = archive.seek_data(inode, FileOffset(at))? else { break };
            let end = archive.seek_hole(inode, start)?.map_or(inode.size, |end| end.0);
            at = start.0.max(at);
            while at < end {
                let len = usize::try_from(end - at).unwrap_or(COPY_SIZE).min(COPY_SIZE);
                let data = archive.read(inode, FileOffset(at), len)?;
                if data.is_empty() {
                    // The archive says less than the inode promised.
                    return Err(Errno::IO.into());
                }
                write_all(to, &data, at)?;
                at += data.len() as u64;
            }
        }
        rustix::fs::ftruncate(to, inode.size).map_err(Error::sys("ftruncate", "a copy"))
    }

    /// The path of `ino`'s lower inode in the archive, from its root: what a redirect to it says.
    pub(super) fn lower_path(&self, ino: Ino) -> Result<Vec<u8>> {
        let marks = self.upper()?.marks;
        let mut names: Vec<Box<[u8]>> = Vec::new();
        let mut at = ino;
        while at != Ino::ROOT {
            let node = self.nodes.get(at)?;
            let Place::Name(parent, name) = node.place else { return Err(Errno::NOENT.into()) };
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
                Some(path) => names.push(path.into()),
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

/// Makes a device, pipe or socket.
pub(super) fn make_special(
    dir: &OwnedFd,
    name: &OsStr,
    kind: FileKind,
    mode: u32,
    rdev: u64,
) -> Result<()> {
    let kind = FileType::from_raw_mode(kind.mode_bits());
    rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(mode), rdev)
        .map_err(Error::sys("mknod", name.display()))
}

fn write_all(fd: &OwnedFd, mut data: &[u8], mut at: u64) -> Result<()> {
    while !data.is_empty() {
        match rustix::io::pwrite(fd, data, at) {
            Ok(0) => return Err(Errno::IO.into()),
            Ok(written) => {
                data = data.get(written..).unwrap_or_default();
                at += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::sys("pwrite", "a copy")(errno)),
        }
    }
    Ok(())
}
