//! Requests for a file's data: read, written, allocated, sought and copied within the server.

use std::borrow::Cow;

use fuser::{Errno, INodeNo, ReplyData, ReplyEmpty, ReplyLseek, ReplyWrite, WriteFlags};

use super::adapter::Adapter;
use super::callers::Sender;
use super::io_mode::Written;
use super::parked::Parked;
use super::shared::Shared;
use super::work::{Work, guarded};
use crate::overlay::{self, Handle};
use crate::types::Ino;

/// An open file that a request changes or looks at.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub(super) ino: Ino,
    pub(super) handle: Handle,
}

impl Adapter {
    pub(super) fn read_data(&self, from: Handle, offset: u64, size: usize, reply: ReplyData) {
        let overlay = &self.shared.overlay;
        if let Some(data) = overlay.get(from, offset, size) {
            tracing::debug!("answered from memory");
            return reply.data(&data);
        }
        if overlay.is_in_upper(from) {
            return guarded(&self.shared, || match overlay.read(from, offset, size) {
                Ok(data) => reply.data(&data),
                Err(error) => reply.error(self.shared.failed(&error)),
            });
        }
        self.pools.attempt(
            Work::Local,
            Work::Data,
            &self.shared,
            // It has its turn until it is answered.
            move |shared| {
                let pass = shared.enter(size);
                Ok((shared.overlay.read(from, offset, size)?, pass))
            },
            move |shared, result| match result {
                Ok((data, _pass)) => reply.data(&data),
                Err(error) => reply.error(shared.failed(&error)),
            },
        );
    }

    /// `sender` is who writes, `flags` what the kernel says of the request.
    pub(super) fn write_data(
        &self,
        sender: Sender,
        to: Target,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        reply: ReplyWrite,
    ) {
        // Said of who writes through to us; what the kernel writes back later drops nothing.
        let drops_setid = flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let held_back = flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let write = move |shared: &Shared, data: overlay::Result<Cow<'_, [u8]>>| {
            let result = data.and_then(|data| match held_back {
                true => shared.overlay.write_all(to.handle, offset, &data),
                false => shared.overlay.write(to.handle, offset, &data),
            });
            if drops_setid {
                shared.drop_setid(to.ino, sender);
            }
            shared.reply_written(result, reply);
        };
        if self.shared.overlay.is_in_upper(to.handle) {
            // The data lies in this thread's request buffer.
            guarded(&self.shared, || write(&self.shared, Ok(data.into())));
        } else {
            let overlay = &self.shared.overlay;
            let parked = match Parked::new(data, &self.shared.parked, overlay) {
                Ok(parked) => parked,
                Err(error) => return write(&self.shared, Err(error)),
            };
            self.run(Work::Data, move |shared| {
                let ready = shared.overlay.ready_to_write(to.handle);
                write(shared, ready.and_then(|()| parked.data()));
            });
        }
    }

    pub(super) fn allocate(
        &self,
        sender: Sender,
        target: Target,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = overlay::FallocateFlags::from_bits_retain(mode.cast_unsigned());
        // Else it is copied up.
        let is_up = self.shared.overlay.is_in_upper(target.handle);
        self.run(if is_up { Work::Local } else { Work::Data }, move |shared| {
            let result = shared.overlay.fallocate(target.handle, mode, offset, length);
            shared.drop_setid(target.ino, sender);
            shared.reply_empty(result, reply);
        });
    }

    pub(super) fn seek(&self, target: Target, offset: i64, whence: i32, reply: ReplyLseek) {
        let to = match (u64::try_from(offset), whence) {
            (Ok(offset), libc::SEEK_DATA) => overlay::SeekFrom::Data(offset),
            (Ok(offset), libc::SEEK_HOLE) => overlay::SeekFrom::Hole(offset),
            // The kernel keeps the other kinds to itself.
            (Ok(_), _) => return reply.error(Errno::EINVAL),
            (Err(_), _) => return reply.error(Errno::ENXIO),
        };
        let answer = move |shared: &Shared, result: overlay::Result<u64>| match result {
            Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            Err(error) => reply.error(shared.failed(&error)),
        };
        if self.shared.modes.written(target.ino) == Some(Written::Later) {
            self.run(Work::AfterOthers, move |shared| {
                answer(shared, shared.lseek_written(target.ino, target.handle, to));
            });
        } else {
            let seek = move |shared: &Shared| shared.overlay.lseek(target.handle, to);
            self.attempt(self.looking(INodeNo(target.ino.0)), seek, answer);
        }
    }

    /// `from` is a file and an offset in it.
    pub(super) fn copy_range(
        &self,
        sender: Sender,
        (from, from_at): (Handle, u64),
        to: Target,
        to_at: u64,
        len: u64,
        reply: ReplyWrite,
    ) {
        // The reply counts in 32 bits; a short copy is the caller's to continue.
        let len = usize::try_from(len.min(1 << 30)).unwrap_or(1 << 30);
        let overlay = &self.shared.overlay;
        let are_up = overlay.is_in_upper(from) && overlay.is_in_upper(to.handle);
        self.run(if are_up { Work::Local } else { Work::Data }, move |shared| {
            let result = shared.overlay.copy_file_range(from, from_at, to.handle, to_at, len);
            shared.drop_setid(to.ino, sender);
            shared.reply_written(result, reply);
        });
    }
}
