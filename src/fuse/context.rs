//! What all requests share: the overlay, what the kernel was promised, and how it is answered.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuser::{
    BackingId, Errno, FileAttr, FopenFlags, Generation, INodeNo, Notifier, ReplyAttr, ReplyEmpty,
    ReplyEntry, ReplyWrite, ReplyXattr,
};

use super::attr::file_attr;
use super::callers::{Sender, without_fsetid};
use super::errno::errno;
use super::faults::Faults;
use super::gate::{Gate, Pass};
use super::io_mode::{IoMode, IoModes, Written};
use super::notify::Device;
use super::prune::Pruner;
use crate::cache::may_wait;
use crate::overlay::{self, Attr, Backing, Handle, Opened, Overlay, SeekFrom};
use crate::types::Ino;

/// Open flags that mean something to the upper file. The kernel has acted on the others already
/// (`O_APPEND` becomes an offset, `O_TRUNC` a change of size).
pub(super) const UPPER_FLAGS: i32 = libc::O_ACCMODE | libc::O_SYNC | libc::O_DSYNC | libc::O_DIRECT;

/// What a request needs, on whatever thread it runs.
pub(super) struct Context {
    pub(super) overlay: Arc<Overlay>,
    pub(super) modes: IoModes,
    pub(super) entry_ttl: Duration,
    pub(super) attr_ttl: Duration,
    /// Whether the kernel reads and writes upper files by itself.
    pub(super) passthrough: AtomicBool,
    /// Whether the kernel reads directories without opening them.
    pub(super) no_opendir: AtomicBool,
    pub(super) stack_depth: u32,
    pub(super) notifier: Arc<OnceLock<Notifier>>,
    pub(super) device: Arc<Device>,
    pub(super) pruner: Pruner,
    /// For reads of what is on this machine, but not decoded in memory.
    pub(super) local_reads: Arc<Gate>,
    /// For reads of the store.
    pub(super) reads: Arc<Gate>,
    /// Bytes of writes that wait for a copy-up.
    pub(super) parked: Arc<AtomicUsize>,
    pub(super) faults: Arc<Faults>,
}

impl Context {
    /// The errno of `error`. EIO and ESTALE, and whatever comes from the archive or the network, are also
    /// put on record, since the program that gets one cannot say why.
    pub(super) fn failed(&self, error: &overlay::Error) -> Errno {
        let errno = errno(error);
        let is_of_the_archive = matches!(error, overlay::Error::Lower(_));
        if is_of_the_archive || errno == Errno::EIO || errno == Errno::ESTALE {
            self.faults.record(error);
        }
        errno
    }

    /// Waits for its turn to read `bytes`, among those who may wait for the store or those who may not.
    pub(super) fn enter(&self, bytes: usize) -> Pass {
        if may_wait() { self.reads.enter(bytes) } else { self.local_reads.enter(bytes) }
    }

    /// What to tell the kernel of a file, and for how long it may remember that: not at all where it may
    /// change without a request.
    pub(super) fn told(&self, attr: &Attr) -> (FileAttr, Duration) {
        let written = self.modes.written(attr.ino);
        let mut told = file_attr(attr);
        if written == Some(Written::Later) && told.size > 0 {
            // tar(1) takes a file without blocks for one without data.
            told.blocks = told.blocks.max(told.size.min(4096).div_ceil(512));
        }
        (told, if written.is_some() { Duration::ZERO } else { self.attr_ttl })
    }

    /// As [`Self::told`], with the node's id for its number: the library has one for both. Where they are not the same
    /// the kernel is to ask for the attributes, which come with the number.
    pub(super) fn told_of_entry(&self, attr: &Attr) -> (FileAttr, Duration) {
        match attr.number == attr.ino {
            true => self.told(attr),
            false => {
                let (told, _) = self.told(&Attr { number: attr.ino, ..*attr });
                (told, Duration::ZERO)
            }
        }
    }

    pub(super) fn reply_entry(&self, result: overlay::Result<Attr>, reply: ReplyEntry) {
        match result {
            Ok(attr) => {
                let (told, ttl) = self.told_of_entry(&attr);
                let generation = Generation(attr.generation);
                reply.entry_with_ttls(&ttl, &self.entry_ttl, &told, generation);
            }
            Err(error) => reply.error(self.failed(&error)),
        }
    }

    pub(super) fn reply_attr(&self, result: overlay::Result<Attr>, reply: ReplyAttr) {
        match result {
            Ok(attr) => {
                let (told, ttl) = self.told(&attr);
                reply.attr(&ttl, &told);
            }
            Err(error) => reply.error(self.failed(&error)),
        }
    }

    /// Drops set-id bits after a write by `sender`, if they may not leave them, and tells the kernel.
    pub(super) fn drop_setid(&self, ino: Ino, sender: Sender) {
        match self.overlay.drop_setid(ino, &sender) {
            Ok(false) => {}
            Ok(true) => self.forget_attributes(ino),
            // The write is done and cannot be taken back.
            Err(error) => tracing::warn!("set-id bits of inode {ino} stay after a write: {error}"),
        }
    }

    /// Has the kernel ask for the attributes of `ino` again.
    pub(super) fn forget_attributes(&self, ino: Ino) {
        if let Some(notifier) = self.notifier.get() {
            // A negative offset drops the attributes alone. It fails where the kernel has forgotten
            // the inode already, which is as good.
            let _ = notifier.inval_inode(INodeNo(ino.0), -1, 0);
        }
    }

    /// Looks for data or a hole in an open file that is [`Written::Later`]: what is a hole here may be filled
    /// by what the kernel holds, and is taken for one once that is written.
    pub(super) fn lseek_written(
        &self,
        ino: Ino,
        handle: Handle,
        to: SeekFrom,
    ) -> overlay::Result<u64> {
        // `None` is the end of the file.
        let seek = |to| match self.overlay.lseek(handle, to) {
            Err(error) if errno(&error) == Errno::ENXIO => Ok(None),
            found => found.map(Some),
        };
        let mut found = seek(to)?;
        loop {
            let (from, until) = match (to, found) {
                (SeekFrom::Hole(_), Some(hole)) => (hole, seek(SeekFrom::Data(hole))?),
                (SeekFrom::Data(at), data) => (at, data),
                _ => break,
            };
            if until == Some(from) {
                break;
            }
            self.write_back(ino, from, until);
            let before = std::mem::replace(&mut found, seek(to)?);
            if found == before {
                break;
            }
        }
        Ok(found.ok_or(rustix::io::Errno::NXIO)?)
    }

    /// Has the kernel write what it holds of `ino` from byte `from` on, `until` another, and forget it.
    /// It asks us to write meanwhile, and waits for whatever else it asked of these pages.
    fn write_back(&self, ino: Ino, from: u64, until: Option<u64>) {
        let offset = i64::try_from(from).unwrap_or(i64::MAX);
        // A length of 0 means all the rest.
        let len = until.map_or(0, |until| i64::try_from(until - from).unwrap_or(0));
        if let Some(notifier) = self.notifier.get() {
            // It fails where the kernel has forgotten the inode, and then it holds nothing.
            let _ = notifier.inval_inode(INodeNo(ino.0), offset, len);
        }
    }

    /// Decides how the kernel does the I/O of a handle just opened, and with which cache flags.
    /// `privileged` says whether it was opened by who may leave set-id bits on what they write.
    ///
    /// # Errors
    /// `ESTALE` where the upper was frozen since: the kernel opens the file once more then.
    pub(super) fn io_mode(
        &self,
        ino: Ino,
        opened: &Opened,
        writes: bool,
        privileged: bool,
        register: impl FnOnce(&rustix::fd::OwnedFd) -> io::Result<BackingId>,
    ) -> overlay::Result<(IoMode, FopenFlags)> {
        let at_rest = self.overlay.at_rest();
        let upper = match opened.backing {
            Backing::Upper if self.passthrough.load(Ordering::Relaxed) => {
                self.overlay.upper_fd(opened.handle)
            }
            Backing::Upper | Backing::Layer { .. } | Backing::Lower => None,
        };
        // A write that the kernel does by itself drops no set-id bit: these have to reach us.
        let upper = upper.filter(|fd| {
            rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_mode & overlay::SETID_BITS == 0)
        });
        // Nor would it drop one that is set later, if it wrote for an ordinary user as we may.
        let register = upper.map(|fd| {
            move || if privileged { register(&fd) } else { without_fsetid(|| register(&fd)) }
        });
        let mode = self.modes.opened(ino, writes, register);
        if let IoMode::Passthrough(_) = mode
            && !self.overlay.give_to_kernel(opened.handle)
        {
            drop(at_rest);
            self.modes.released(ino, writes);
            self.overlay.release(opened.handle);
            return Err(rustix::io::Errno::STALE.into());
        }
        // Lower data never changes, and without passthrough every change of upper data goes
        // through the page cache. With it, pages from before may be stale.
        let keep = match opened.backing {
            Backing::Lower | Backing::Layer { was_there: true } => true,
            Backing::Upper | Backing::Layer { was_there: false } => {
                !self.passthrough.load(Ordering::Relaxed)
            }
        };
        let flags = if keep { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
        Ok((mode, flags))
    }

    /// The kernel reads and writes an upper file by itself that was opened with `flags`.
    pub(super) fn given_to_kernel(&self, handle: Handle, flags: i32) {
        let access = flags & libc::O_ACCMODE;
        if access != libc::O_RDONLY {
            self.overlay.written_by_kernel(handle, access == libc::O_RDWR);
        }
    }

    pub(super) fn reply_empty(&self, result: overlay::Result<()>, reply: ReplyEmpty) {
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.failed(&error)),
        }
    }

    pub(super) fn reply_written(&self, result: overlay::Result<usize>, reply: ReplyWrite) {
        match result {
            Ok(bytes) => reply.written(u32::try_from(bytes).unwrap_or(u32::MAX)),
            Err(error) => reply.error(self.failed(&error)),
        }
    }

    pub(super) fn reply_xattr(
        &self,
        result: overlay::Result<Vec<u8>>,
        size: u32,
        reply: ReplyXattr,
    ) {
        match result {
            Err(error) => reply.error(self.failed(&error)),
            Ok(value) => match u32::try_from(value.len()) {
                Ok(len) if size == 0 => reply.size(len),
                Ok(len) if len <= size => reply.data(&value),
                _ => reply.error(Errno::ERANGE),
            },
        }
    }
}
