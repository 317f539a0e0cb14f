//! The data of open files.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use super::Overlay;
use super::error::{Error, Result, not_copied};
use super::handles::{Handle, Open, Source};
use super::node::Want;
use crate::inode_ops::write_all;
use crate::squashfs::Inode;
use crate::types::FileOffset;

/// The most that one `copy_file_range` from a lower file copies, in bytes; the caller asks again.
const COPY_AT_ONCE: usize = 1 << 20;

impl Overlay {
    /// `len` bytes at `at` of an open file if they are at hand in memory: decoded blocks of a lower
    /// file. `None` means [`Self::read`], on a thread that may wait.
    pub fn get(&self, handle: Handle, at: u64, len: usize) -> Option<Bytes> {
        match self.handles.get(handle).ok()?.source() {
            Source::Archive(inode) => self.lower.archive().get(&inode, FileOffset(at), len),
            Source::File(..) => None,
        }
    }

    /// `len` bytes at `at` of an open file; fewer at its end.
    ///
    /// # Errors
    /// What reading the archive or the upper says.
    pub fn read(&self, handle: Handle, at: u64, len: usize) -> Result<Bytes> {
        match self.handles.get(handle)?.source() {
            Source::File(_, fd) => read_fd(&fd, at, len),
            Source::Archive(inode) => Ok(self.lower.archive().read(&inode, FileOffset(at), len)?),
        }
    }

    /// Does `change` to an open file, through a descriptor of it in the upper. A file that is elsewhere is copied up now.
    pub(super) fn with_writable<T>(
        &self,
        open: &Open,
        mut change: impl FnMut(&Arc<OwnedFd>) -> Result<T>,
    ) -> Result<T> {
        if !open.writes() {
            return Err(Errno::BADF.into());
        }
        loop {
            {
                // No freeze comes between the look at where it is and the change.
                let _changing = self.changing.read();
                match open.source() {
                    Source::File(layer, fd) if layer == self.live() || open.is_apart() => {
                        return change(&fd);
                    }
                    Source::File(..) | Source::Archive(_) => {}
                }
            }
            self.bring_up(open)?;
        }
    }

    /// Makes sure that the data of an open file is in the upper, and the handle leads there.
    fn bring_up(&self, open: &Open) -> Result<()> {
        let ino = open.ino;
        self.across_freezes(|| self.copy_up(ino, Want::Data))?;
        // Who has put the copy in place leads the handles to it before it lets go of this.
        let _names = self.names.read();
        let state = self.nodes.upper(ino)?.ok_or_else(|| not_copied(ino))?;
        if let Source::File(layer, _) = open.source()
            && layer != self.live()
            && !self.is_live(&state)
            && self.may_change(&state)
        {
            // Its last name went before the freeze.
            open.carried_to(self.live());
        }
        match open.source() {
            Source::File(layer, _) if layer == self.live() || !self.is_live(&state) => Ok(()),
            _ => Err(not_copied(ino)),
        }
    }

    /// Writes `data` at `at` and says how many bytes were written.
    ///
    /// # Errors
    /// `EBADF` where the handle is not for writing, or what copying up or `pwrite` says.
    pub fn write(&self, handle: Handle, at: u64, data: &[u8]) -> Result<usize> {
        let open = self.handles.get(handle)?;
        let written = self.with_writable(&open, |fd| {
            rustix::io::pwrite(fd, data, at).map_err(Error::sys("pwrite", "an open file"))
        })?;
        self.tell_write(open.ino);
        Ok(written)
    }

    /// As [`Overlay::write`], all of `data` or an error: for what the kernel has held back, of which it
    /// takes a part for the whole.
    ///
    /// # Errors
    /// As [`Overlay::write`], also after a part was written.
    pub fn write_all(&self, handle: Handle, at: u64, data: &[u8]) -> Result<usize> {
        let mut written = 0;
        while let Some(rest) = data.get(written..).filter(|rest| !rest.is_empty()) {
            match self.write(handle, at + written as u64, rest)? {
                0 => return Err(Error::sys("pwrite", "an open file")(rustix::io::Errno::IO)),
                more => written += more,
            }
        }
        Ok(written)
    }

    /// Makes sure that an open file can be written without waiting for more than the disk.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn ready_to_write(&self, handle: Handle) -> Result<()> {
        self.with_writable(&*self.handles.get(handle)?, |_| Ok(()))
    }

    /// Keeps `data` in a file of the work directory without a name.
    ///
    /// # Errors
    /// `EROFS` without an upper, or what the upper's file system says.
    pub fn scratch(&self, data: &[u8]) -> Result<OwnedFd> {
        let (_unlinked, fd) = self.upper()?.draft_file(OFlags::RDWR, 0o600)?;
        write_all(&fd, data, 0)?;
        Ok(fd)
    }

    /// What [`Self::scratch`] has kept, which are `len` bytes.
    ///
    /// # Errors
    /// What `pread` says.
    pub fn read_scratch(fd: &OwnedFd, len: usize) -> Result<Bytes> {
        read_fd(fd, 0, len)
    }

    /// Brings an open file's data to the disk, and its attributes unless `datasync`.
    ///
    /// # Errors
    /// What `fsync` says.
    pub fn fsync(&self, handle: Handle, datasync: bool) -> Result<()> {
        let Source::File(_, fd) = self.handles.get(handle)?.source() else { return Ok(()) };
        match datasync {
            true => rustix::fs::fdatasync(fd),
            false => rustix::fs::fsync(fd),
        }
        .map_err(Error::sys("fsync", "an open file"))
    }

    /// `fallocate(2)` on an open file.
    ///
    /// # Errors
    /// `EBADF` where the handle is not for writing, or what copying up or `fallocate` says.
    pub fn fallocate(&self, handle: Handle, mode: FallocateFlags, at: u64, len: u64) -> Result<()> {
        let open = self.handles.get(handle)?;
        self.with_writable(&open, |fd| {
            rustix::fs::fallocate(fd, mode, at, len)
                .map_err(Error::sys("fallocate", "an open file"))
        })?;
        self.tell_write(open.ino);
        Ok(())
    }

    /// `lseek(2)` with `SEEK_DATA` or `SEEK_HOLE`: the new position.
    ///
    /// # Errors
    /// `ENXIO` past the end or where no data follows; `EINVAL` for other kinds of seek, which the
    /// kernel answers itself.
    pub fn lseek(&self, handle: Handle, to: SeekFrom) -> Result<u64> {
        if !matches!(to, SeekFrom::Data(_) | SeekFrom::Hole(_)) {
            return Err(Errno::INVAL.into());
        }
        // No reader or writer uses the descriptor's own position, so moving it disturbs nobody.
        let seek =
            |fd: &OwnedFd| rustix::fs::seek(fd, to).map_err(Error::sys("lseek", "an open file"));
        match self.handles.get(handle)?.source() {
            Source::File(_, fd) => seek(&fd),
            Source::Archive(inode) => self.seek_lower(&inode, to),
        }
    }

    fn seek_lower(&self, inode: &Inode, to: SeekFrom) -> Result<u64> {
        let archive = self.lower.archive();
        let found = match to {
            SeekFrom::Data(at) => archive.seek_data(inode, FileOffset(at))?,
            SeekFrom::Hole(at) => archive.seek_hole(inode, FileOffset(at))?,
            _ => None,
        };
        Ok(found.ok_or(Errno::NXIO)?.0)
    }

    /// Copies up to `len` bytes between two open files, sharing blocks where the upper's file
    /// system can, and says how many.
    ///
    /// # Errors
    /// `EBADF` where `to` is not for writing, or what reading, writing or `copy_file_range` says.
    pub fn copy_file_range(
        &self,
        from: Handle,
        mut from_at: u64,
        to: Handle,
        mut to_at: u64,
        len: usize,
    ) -> Result<usize> {
        let target = self.handles.get(to)?;
        self.with_writable(&target, |_| Ok(()))?;
        let from = self.handles.get(from)?.source();
        // Read before others are kept from freezing, as it may touch the network.
        let data = match &from {
            Source::File(..) => None,
            Source::Archive(inode) => {
                let len = len.min(COPY_AT_ONCE);
                Some(self.lower.archive().read(inode, FileOffset(from_at), len)?)
            }
        };
        let copied = self.with_writable(&target, |to| match (&from, &data) {
            (Source::File(_, from), _) => {
                rustix::fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), len)
                    .map_err(Error::sys("copy_file_range", "an open file"))
            }
            (Source::Archive(_), data) => {
                let data = data.as_deref().unwrap_or_default();
                rustix::io::pwrite(to, data, to_at).map_err(Error::sys("pwrite", "an open file"))
            }
        })?;
        self.tell_write(target.ino);
        Ok(copied)
    }
}

fn read_fd(fd: &OwnedFd, at: u64, len: usize) -> Result<Bytes> {
    let mut data = Vec::with_capacity(len);
    while data.len() < len {
        let from = at.saturating_add(data.len() as u64);
        match rustix::io::pread(fd, spare_capacity(&mut data), from) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::sys("pread", "an open file")(errno)),
        }
    }
    data.truncate(len);
    Ok(data.into())
}
