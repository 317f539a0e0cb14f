//! Opening and releasing files.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Overlay;
use super::error::Result;
use super::handles::{Backing, Handle, Open, Opened};
use super::node::{Data, Want};
use crate::types::{FileKind, Ino};

/// Of the flags of an `open`, those that the upper's descriptor keeps. Appending is left to the
/// kernel, which knows the offset when it sends a write, and direct I/O to FUSE's own direct mode:
/// our buffers are not aligned.
const KEPT_FLAGS: OFlags = OFlags::RDWR
    .union(OFlags::WRONLY)
    .union(OFlags::TRUNC)
    .union(OFlags::SYNC)
    .union(OFlags::DSYNC);

pub(super) fn kept_flags(flags: i32) -> OFlags {
    OFlags::from_bits_retain(flags as u32) & KEPT_FLAGS
}

impl Overlay {
    /// Opens regular file `ino` with the flags of `open(2)`. A lower file is copied up when it is first
    /// written, since many that are opened for writing are truncated next and need no data; with
    /// `O_SYNC`, `O_DSYNC` or `O_DIRECT` at once.
    ///
    /// # Errors
    /// `EISDIR`, `EROFS`, or what copying up or opening says.
    pub fn open(&self, ino: Ino, flags: i32) -> Result<Opened> {
        let opened = self.open_file(ino, flags)?;
        if kept_flags(flags).contains(OFlags::TRUNC) {
            self.tell_writes_of(ino);
        }
        Ok(opened)
    }

    fn open_file(&self, ino: Ino, flags: i32) -> Result<Opened> {
        let direct = flags & libc::O_DIRECT != 0;
        let flags = kept_flags(flags);
        let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC);
        if writes {
            self.upper()?;
        }
        if flags.contains(OFlags::TRUNC) {
            self.copy_up(ino, Want::Truncated)?;
        } else if writes && (direct || flags.intersects(OFlags::SYNC | OFlags::DSYNC)) {
            // Synchronous writes need a descriptor of their own, and direct ones the disk's rules.
            self.copy_up(ino, Want::Data)?;
        }
        loop {
            let lower = match self.nodes.upper(ino)? {
                Some(state) => match (state.kind, state.data) {
                    (FileKind::Regular, Data::Upper) => None,
                    (FileKind::Regular, Data::Lower(lower)) => Some(lower),
                    (FileKind::Directory, _) => return Err(Errno::ISDIR.into()),
                    _ => return Err(Errno::NXIO.into()),
                },
                None => Some(self.lower.place_of(ino)?),
            };
            // Read before `names` is taken, as it may touch the network.
            let inode = lower.map(|lower| self.lower.inode(lower)).transpose()?;
            match inode.as_ref().map(|inode| inode.kind) {
                None | Some(FileKind::Regular) => {}
                Some(FileKind::Directory) => return Err(Errno::ISDIR.into()),
                Some(_) => return Err(Errno::NXIO.into()),
            }
            let _names = self.names.read();
            match (self.nodes.upper(ino)?, inode) {
                (Some(state), _) if state.data == Data::Upper => {
                    let fd = Arc::new(self.address(ino)?.0.open(flags)?);
                    let handle = self.handles.add(Open::Upper { ino, fd });
                    return Ok(Opened { handle, backing: Backing::Upper });
                }
                (_, Some(inode)) => {
                    let handle = self.handles.add_lower(ino, inode, writes);
                    return Ok(Opened { handle, backing: Backing::Lower });
                }
                // The file was truncated and replaced meanwhile; look again.
                (_, None) => {}
            }
        }
    }

    /// The upper's descriptor behind `handle`: what a passthrough open hands to the kernel. `None`
    /// where the handle was opened on the archive.
    pub fn upper_fd(&self, handle: Handle) -> Option<Arc<OwnedFd>> {
        match &*self.handles.get(handle).ok()? {
            Open::Upper { fd, .. } => Some(Arc::clone(fd)),
            Open::Lower { .. } => None,
        }
    }

    /// Whether the data of an open file is in the upper: then reading or writing it waits for nothing
    /// but the disk.
    pub fn is_in_upper(&self, handle: Handle) -> bool {
        self.handles.get(handle).is_ok_and(|open| match &*open {
            Open::Upper { .. } => true,
            Open::Lower { file, .. } => file.moved().is_some(),
        })
    }

    /// The kernel is about to write through `handle` by itself. `may_be_mapped` is whether it can read through it,
    /// too.
    pub fn written_by_kernel(&self, handle: Handle, may_be_mapped: bool) {
        if let Ok(open) = self.handles.get(handle)
            && let Open::Upper { ino, fd } = &*open
        {
            // Else what it is like when it is opened would look like a write later on.
            self.begin_to_look();
            self.kernel_writes.opened(*ino, handle, Arc::clone(fd), may_be_mapped);
        }
    }

    /// Ends `handle`.
    pub fn release(&self, handle: Handle) {
        let Some(open) = self.handles.remove(handle) else { return };
        let ino = open.ino();
        self.begin_to_look();
        let is_upper = matches!(*open, Open::Upper { .. });
        // Taken before it is found out that something is to be told: then nobody renames it in between.
        let _names = self.names.read();
        self.tell_found(ino, || is_upper && self.kernel_writes.closed(ino, handle));
    }
}
