//! Open files.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::RwLock;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::error::Result;
use crate::inode_ops::Address;
use crate::squashfs::Inode;
use crate::types::{Ino, LayerSerial};

/// Names one open file until it is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(pub u64);

/// Where the data of an open file was when it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// In the archive. The file may be copied up while it is open, at the latest when it is written; reads then see
    /// the copy.
    Lower,
    /// In a frozen layer, from which it may be copied up, too.
    Layer {
        /// Whether it was there when it was last opened, too. Else somebody may have cached what it was before.
        was_there: bool,
    },
    /// In the upper: [`super::Overlay::upper_fd`] has the descriptor.
    Upper,
}

/// An opened file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// For reads, writes and the release.
    pub handle: Handle,
    /// Where its data is.
    pub backing: Backing,
}

/// Where the data of an open file is.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// In this inode of the archive.
    Archive(Arc<Inode>),
    /// In the file behind this descriptor, which is of that layer: the live one, or a frozen one.
    File(LayerSerial, Arc<OwnedFd>),
}

/// What a handle stands for.
#[derive(Debug)]
pub(super) struct Open {
    /// Which file it is.
    pub(super) ino: Ino,
    /// What it was opened with, as far as its descriptor has that.
    flags: OFlags,
    source: RwLock<Source>,
    /// Whether the kernel was given the descriptor, to read or write by itself.
    is_kernel_s: AtomicBool,
    /// Whether it is of a live upper that was rolled away: what is written goes there.
    is_apart: AtomicBool,
    /// Whether layers were merged since it was opened, and another inode is in the place of this.
    is_left_to_us: AtomicBool,
}

impl Open {
    pub(super) fn new(ino: Ino, flags: OFlags, source: Source) -> Self {
        let [is_kernel_s, is_apart, is_left_to_us] = [(); 3].map(|()| AtomicBool::new(false));
        Self { ino, flags, source: RwLock::new(source), is_kernel_s, is_apart, is_left_to_us }
    }

    /// Where its data is now.
    pub(super) fn source(&self) -> Source {
        self.source.read().clone()
    }

    /// Whether it may be written through.
    pub(super) fn writes(&self) -> bool {
        self.flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC)
    }

    /// Whether the kernel reads or writes it by itself.
    pub(super) fn is_kernel_s(&self) -> bool {
        self.is_kernel_s.load(Ordering::Acquire)
    }

    /// Its file has another inode by now, so that the kernel is not to read this one by itself.
    pub(super) fn leave_to_us(&self) {
        self.is_left_to_us.store(true, Ordering::Release);
    }

    pub(super) fn is_left_to_us(&self) -> bool {
        self.is_left_to_us.load(Ordering::Acquire)
    }

    /// The kernel is about to read or write it by itself.
    pub(super) fn give_to_kernel(&self) {
        self.is_kernel_s.store(true, Ordering::Release);
    }

    /// Whether it is of a live upper that was rolled away.
    pub(super) fn is_apart(&self) -> bool {
        self.is_apart.load(Ordering::Acquire)
    }

    pub(super) fn set_apart(&self) {
        self.is_apart.store(true, Ordering::Release);
    }

    /// The same file is of layer `layer` now.
    pub(super) fn carried_to(&self, layer: LayerSerial) {
        if let Source::File(of, _) = &mut *self.source.write() {
            *of = layer;
        }
    }
}

/// All open files.
#[derive(Debug, Default)]
pub(super) struct Handles {
    next: AtomicU64,
    open: RwLock<Table>,
    /// Whether reading an upper file through a handle leaves its `st_atime` as it is.
    no_atime: bool,
}

#[derive(Debug, Default)]
struct Table {
    handles: HashMap<Handle, Arc<Open>>,
    /// The handles of each file.
    of: HashMap<Ino, Vec<Handle>>,
}

impl Handles {
    pub(super) fn new(no_atime: bool) -> Self {
        Self { no_atime, ..Self::default() }
    }

    /// Called with the overlay's `names` held, which keeps a copy-up from being published before its handles are known
    /// here.
    pub(super) fn add(&self, open: Open) -> Handle {
        if let Source::File(_, fd) = open.source() {
            self.prepare(&fd);
        }
        // 0 is what FUSE shows where there is no handle.
        let handle = Handle(self.next.fetch_add(1, Ordering::Relaxed) + 1);
        let mut table = self.open.write();
        table.of.entry(open.ino).or_default().push(handle);
        table.handles.insert(handle, Arc::new(open));
        handle
    }

    /// Makes ready a descriptor that is read through handles.
    fn prepare(&self, fd: &OwnedFd) {
        if self.no_atime {
            let set = rustix::fs::fcntl_getfl(fd)
                .and_then(|flags| rustix::fs::fcntl_setfl(fd, flags | OFlags::NOATIME));
            // It is for a file's owner and root; in a user's upper all files are the user's.
            if let Err(errno) = set {
                tracing::warn!("reading a file of the upper moves its st_atime: {errno}");
            }
        }
    }

    pub(super) fn get(&self, handle: Handle) -> Result<Arc<Open>> {
        Ok(self.open.read().handles.get(&handle).cloned().ok_or(Errno::BADF)?)
    }

    pub(super) fn remove(&self, handle: Handle) -> Option<Arc<Open>> {
        let mut table = self.open.write();
        let open = table.handles.remove(&handle)?;
        if let Some(others) = table.of.get_mut(&open.ino) {
            others.retain(|other| *other != handle);
            if others.is_empty() {
                table.of.remove(&open.ino);
            }
        }
        drop(table);
        // Descriptors are closed outside the lock.
        Some(open)
    }

    /// What is open of `ino`.
    pub(super) fn of(&self, ino: Ino) -> Vec<Arc<Open>> {
        let table = self.open.read();
        let handles = table.of.get(&ino).map(Vec::as_slice).unwrap_or_default();
        handles.iter().filter_map(|handle| table.handles.get(handle).cloned()).collect()
    }

    /// All files that are open.
    pub(super) fn all(&self) -> Vec<Arc<Open>> {
        self.open.read().handles.values().cloned().collect()
    }

    /// Whether `ino` is open where it is to be copied up from: in the archive, or in a layer that is not `live`.
    pub(super) fn has_lower(&self, ino: Ino, live: LayerSerial) -> bool {
        self.of(ino).iter().any(|open| match open.source() {
            Source::Archive(_) => true,
            Source::File(layer, _) => layer != live,
        })
    }

    /// Whether somebody may write to `ino`, which is open on the archive.
    pub(super) fn has_archive_writer(&self, ino: Ino) -> bool {
        let is_writer =
            |open: &Arc<Open>| open.writes() && matches!(open.source(), Source::Archive(_));
        self.of(ino).iter().any(is_writer)
    }

    /// Leads the handles of `ino` to its copy in layer `layer`, open for reading and writing. Called with
    /// `names` held exclusively.
    pub(super) fn moved(&self, ino: Ino, layer: LayerSerial, copy: &Arc<OwnedFd>) {
        for open in self.of(ino) {
            let fd = match open.flags.intersects(OFlags::SYNC | OFlags::DSYNC) {
                true => reopened(copy, open.flags),
                false => Arc::clone(copy),
            };
            self.prepare(&fd);
            *open.source.write() = Source::File(layer, fd);
            open.is_left_to_us.store(false, Ordering::Release);
        }
    }
}

/// Another descriptor of the same file, for writes that wait for the disk; where there can be none, the same.
fn reopened(copy: &Arc<OwnedFd>, flags: OFlags) -> Arc<OwnedFd> {
    let flags = flags.difference(OFlags::TRUNC);
    match Address::Pinned(Arc::clone(copy)).open(flags) {
        Ok(fd) => Arc::new(fd),
        Err(error) => {
            tracing::warn!("writes to an open file do not wait for the disk any more: {error}");
            Arc::clone(copy)
        }
    }
}
