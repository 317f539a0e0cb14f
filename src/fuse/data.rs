//! Requests for a file's data: read, written, allocated, sought and copied within the server.

use std::borrow::Cow;

use fuser::{Errno, INodeNo, ReplyData, ReplyEmpty, ReplyLseek, ReplyWrite, WriteFlags};

use super::adapter::Adapter;
use super::callers::Sender;
use super::context::Context;
use super::io_mode::Written;
use super::parked::Parked;
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
        let overlay = &self.context.overlay;
        if let Some(data) = overlay.get(from, offset, size) {
            tracing::debug!("answered from memory");
            return reply.data(&data);
        }
        if overlay.is_in_upper(from) {
            return guarded(&self.context, || {
                match overlay.read(from, offset, size) {
                    Ok(data) => reply.data(&data),
                    Err(error) => reply.error(self.context.failed(&error)),
                }
                tracing::debug!("answered");
            });
        }
        self.pools.attempt(
            Work::Local,
            Work::Data,
            &self.context,
            // It has its turn until it is answered.
            move |context| {
                let pass = context.enter(size);
                Ok((context.overlay.read(from, offset, size)?, pass))
            },
            move |context, result| match result {
                Ok((data, _pass)) => reply.data(&data),
                Err(error) => reply.error(context.failed(&error)),
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
        let write = move |context: &Context, data: overlay::Result<Cow<'_, [u8]>>| {
            let result = data.and_then(|data| match held_back {
                true => context.overlay.write_all(to.handle, offset, &data),
                false => context.overlay.write(to.handle, offset, &data),
            });
            if drops_setid {
                context.drop_setid(to.ino, sender);
            }
            context.reply_written(result, reply);
        };
        if self.context.overlay.is_in_upper(to.handle) {
            // The data lies in this thread's request buffer.
            guarded(&self.context, || {
                write(&self.context, Ok(data.into()));
                tracing::debug!("answered");
            });
        } else {
            let overlay = &self.context.overlay;
            let parked = match Parked::new(data, &self.context.parked, overlay) {
                Ok(parked) => parked,
                Err(error) => return write(&self.context, Err(error)),
            };
            self.run(Work::Data, move |context| {
                let ready = context.overlay.ready_to_write(to.handle);
                write(context, ready.and_then(|()| parked.data()));
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
        let is_up = self.context.overlay.is_in_upper(target.handle);
        self.run(if is_up { Work::Local } else { Work::Data }, move |context| {
            let result = context.overlay.fallocate(target.handle, mode, offset, length);
            context.drop_setid(target.ino, sender);
            context.reply_empty(result, reply);
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
        let answer = move |context: &Context, result: overlay::Result<u64>| match result {
            Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            Err(error) => reply.error(context.failed(&error)),
        };
        if self.context.modes.written(target.ino) == Some(Written::Later) {
            self.run(Work::AfterOthers, move |context| {
                answer(context, context.lseek_written(target.ino, target.handle, to));
            });
        } else {
            let seek = move |context: &Context| context.overlay.lseek(target.handle, to);
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
        let overlay = &self.context.overlay;
        let are_up = overlay.is_in_upper(from) && overlay.is_in_upper(to.handle);
        self.run(if are_up { Work::Local } else { Work::Data }, move |context| {
            let result = context.overlay.copy_file_range(from, from_at, to.handle, to_at, len);
            context.drop_setid(to.ino, sender);
            context.reply_written(result, reply);
        });
    }
}
