//! The data of open files.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use super::Overlay;
use super::error::{Error, Result, not_copied};
use super::handles::{Handle, LowerOpen, Open};
use super::node::Want;
use crate::inode_ops::write_all;
use crate::types::FileOffset;

/// The most that one `copy_file_range` from a lower file copies, in bytes; the caller asks again.
const COPY_AT_ONCE: usize = 1 << 20;

impl Overlay {
    /// `len` bytes at `at` of an open file if they are at hand in memory: decoded blocks of a lower
    /// file. `None` means [`Self::read`], on a thread that may wait.
    pub fn get(&self, handle: Handle, at: u64, len: usize) -> Option<Bytes> {
        match &*self.handles.get(handle).ok()? {
            Open::Lower { file, .. } if file.moved().is_none() => {
                self.lower.archive().get(&file.inode, FileOffset(at), len)
            }
            Open::Lower { .. } | Open::Upper { .. } => None,
        }
    }

    /// `len` bytes at `at` of an open file; fewer at its end.
    ///
    /// # Errors
    /// What reading the archive or the upper says.
    pub fn read(&self, handle: Handle, at: u64, len: usize) -> Result<Bytes> {
        match &*self.handles.get(handle)? {
            Open::Upper { fd, .. } => read_fd(fd, at, len),
            Open::Lower { file, .. } => match file.moved() {
                Some(fd) => read_fd(fd, at, len),
                None => Ok(self.lower.archive().read(&file.inode, FileOffset(at), len)?),
            },
        }
    }

    /// The descriptor to write an open file through. A lower file is copied up now.
    pub(super) fn to_write(&self, open: &Open) -> Result<Arc<OwnedFd>> {
        match open {
            Open::Upper { fd, .. } => Ok(Arc::clone(fd)),
            Open::Lower { file, writes: true } => {
                if file.moved().is_none() {
                    self.copy_up(file.ino, Want::Data)?;
                    // Who has put the copy in place leads the handles to it before it lets go of this.
                    drop(self.names.read());
                }
                Ok(Arc::clone(file.moved().ok_or_else(|| not_copied(file.ino))?))
            }
            Open::Lower { writes: false, .. } => Err(Errno::BADF.into()),
        }
    }

    /// Writes `data` at `at` and says how many bytes were written.
    ///
    /// # Errors
    /// `EBADF` where the handle is not for writing, or what copying up or `pwrite` says.
    pub fn write(&self, handle: Handle, at: u64, data: &[u8]) -> Result<usize> {
        let open = self.handles.get(handle)?;
        let fd = self.to_write(&open)?;
        let written =
            rustix::io::pwrite(fd, data, at).map_err(Error::sys("pwrite", "an open file"))?;
        self.tell_write(open.ino());
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
        self.to_write(&*self.handles.get(handle)?).map(drop)
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
        let open = self.handles.get(handle)?;
        let fd = match &*open {
            Open::Upper { fd, .. } => fd,
            Open::Lower { file, .. } => match file.moved() {
                Some(fd) => fd,
                None => return Ok(()),
            },
        };
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
        let fd = self.to_write(&open)?;
        rustix::fs::fallocate(fd, mode, at, len)
            .map_err(Error::sys("fallocate", "an open file"))?;
        self.tell_write(open.ino());
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
        match &*self.handles.get(handle)? {
            Open::Upper { fd, .. } => seek(fd),
            Open::Lower { file, .. } => match file.moved() {
                Some(fd) => seek(fd),
                None => self.seek_lower(file, to),
            },
        }
    }

    fn seek_lower(&self, file: &LowerOpen, to: SeekFrom) -> Result<u64> {
        let archive = self.lower.archive();
        let found = match to {
            SeekFrom::Data(at) => archive.seek_data(&file.inode, FileOffset(at))?,
            SeekFrom::Hole(at) => archive.seek_hole(&file.inode, FileOffset(at))?,
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
        let to = self.to_write(&target)?;
        let from = self.handles.get(from)?;
        let mut copy = |from: &OwnedFd| {
            rustix::fs::copy_file_range(from, Some(&mut from_at), &to, Some(&mut to_at), len)
                .map_err(Error::sys("copy_file_range", "an open file"))
        };
        let copied = match &*from {
            Open::Upper { fd, .. } => copy(fd)?,
            Open::Lower { file, .. } => match file.moved() {
                Some(fd) => copy(fd)?,
                None => {
                    let len = len.min(COPY_AT_ONCE);
                    let data = self.lower.archive().read(&file.inode, FileOffset(from_at), len)?;
                    rustix::io::pwrite(&to, &data, to_at)
                        .map_err(Error::sys("pwrite", "an open file"))?
                }
            },
        };
        self.tell_write(target.ino());
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
