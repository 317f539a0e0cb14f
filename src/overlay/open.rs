//! Opening and releasing files.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::RwLockReadGuard;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Overlay;
use super::dirs::os_str;
use super::error::Result;
use super::handles::{Backing, Handle, Open, Opened, Source};
use super::node::{Data, InLayer, UpperState, Want};
use crate::inode_ops::Address;
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
        self.across_freezes(|| {
            if flags.contains(OFlags::TRUNC) {
                self.copy_up(ino, Want::Truncated)?;
            } else if writes && (direct || flags.intersects(OFlags::SYNC | OFlags::DSYNC)) {
                // Synchronous writes need a descriptor of their own, and direct ones the disk's rules.
                self.copy_up(ino, Want::Data)?;
            } else if writes && self.is_read_by_kernel(ino) {
                // The kernel reads one file by itself, and writes to none but that.
                self.copy_up(ino, Want::Data)?;
            }
            self.open_where_it_is(ino, flags)
        })
    }

    fn open_where_it_is(&self, ino: Ino, flags: OFlags) -> Result<Opened> {
        loop {
            let lower = match self.nodes.upper(ino)? {
                Some(state) => match (state.kind, state.data) {
                    (FileKind::Regular, Data::Upper | Data::Layer(_)) => None,
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
            let (source, backing) = match (self.nodes.upper(ino)?, inode) {
                (Some(UpperState { data: Data::Upper, .. }), _) => {
                    let (address, state) = self.address(ino)?;
                    let may_change = self.may_change(&state);
                    // What is frozen is not written to.
                    let flags = if may_change { flags } else { OFlags::RDONLY };
                    let source = Source::File(state.layer, Arc::new(address.open(flags)?));
                    let was_there = state.was_opened;
                    (source, if may_change { Backing::Upper } else { Backing::Layer { was_there } })
                }
                (Some(UpperState { data: Data::Layer(place), was_opened, .. }), _) => {
                    let fd = Arc::new(self.in_layer(&place)?.open(OFlags::RDONLY)?);
                    let backing = Backing::Layer { was_there: was_opened };
                    (Source::File(place.dir.layer, fd), backing)
                }
                (_, Some(inode)) => (Source::Archive(Arc::new(inode)), Backing::Lower),
                // The file was truncated and replaced meanwhile; look again.
                (_, None) => continue,
            };
            if let Backing::Layer { was_there: false } = backing {
                self.nodes.update(ino, |state| state.was_opened = true);
            }
            let of = self.nodes.upper(ino)?.map(|state| (state.layer, state.st_ino));
            let handle = self.handles.add(Open::new(ino, flags, source));
            // Who finds it under its name after a rollback may have taken it for another, until it was known to be open.
            if self.nodes.upper(ino)?.map(|state| (state.layer, state.st_ino)) == of {
                return Ok(Opened { handle, backing });
            }
            self.handles.remove(handle);
        }
    }

    /// Where an inode of a frozen layer is reached.
    pub(super) fn in_layer(&self, place: &InLayer) -> Result<Address> {
        Ok(Address::at(&self.part_fds.get(&place.dir)?, os_str(&place.name)))
    }

    /// Whether the kernel reads frozen file `ino` by itself.
    pub(super) fn is_read_by_kernel(&self, ino: Ino) -> bool {
        self.handles.of(ino).iter().any(|open| open.is_kernel_s())
    }

    /// The upper's descriptor behind `handle`: what a passthrough open hands to the kernel. `None`
    /// where its data is not in the upper.
    pub fn upper_fd(&self, handle: Handle) -> Option<Arc<OwnedFd>> {
        match self.handles.get(handle).ok()?.source() {
            Source::File(layer, fd) if layer == self.live() => Some(fd),
            Source::File(..) | Source::Archive(_) => None,
        }
    }

    /// Whether the data of an open file is in the upper: then reading or writing it waits for nothing
    /// but the disk.
    pub fn is_in_upper(&self, handle: Handle) -> bool {
        self.upper_fd(handle).is_some()
    }

    /// Keeps the upper from being frozen while somebody decides what the kernel may do by itself.
    pub fn at_rest(&self) -> RwLockReadGuard<'_, ()> {
        self.names.read()
    }

    /// The kernel is about to read through `handle` by itself, and to write if that was opened for it. Called with
    /// [`Self::at_rest`] held. Says whether it may: nothing that is frozen is written to.
    pub fn give_to_kernel(&self, handle: Handle) -> bool {
        let Ok(open) = self.handles.get(handle) else { return false };
        let may = !open.is_left_to_us() && (!open.writes() || self.is_in_upper(handle));
        if may {
            open.give_to_kernel();
        }
        may
    }

    /// The kernel is about to write through `handle` by itself. `may_be_mapped` is whether it can read through it,
    /// too.
    pub fn written_by_kernel(&self, handle: Handle, may_be_mapped: bool) {
        if let Ok(open) = self.handles.get(handle)
            && let Source::File(_, fd) = open.source()
        {
            // Else what it is like when it is opened would look like a write later on.
            self.begin_to_look();
            self.kernel_writes.opened(open.ino, handle, fd, may_be_mapped);
        }
    }

    /// Ends `handle`.
    pub fn release(&self, handle: Handle) {
        let Some(open) = self.handles.remove(handle) else { return };
        let ino = open.ino;
        self.begin_to_look();
        let is_upper = matches!(open.source(), Source::File(..));
        // Taken before it is found out that something is to be told: then nobody renames it in between.
        let _names = self.names.read();
        self.tell_found(ino, || is_upper && self.kernel_writes.closed(ino, handle));
    }
}
