//! Opening and creating files: who does their I/O from then on, the kernel or this program.

use std::ffi::OsString;

use fuser::{FileHandle, FopenFlags, Generation, INodeNo, ReplyCreate, ReplyOpen};

use super::adapter::Adapter;
use super::attr::file_attr;
use super::callers::Sender;
use super::context::UPPER_FLAGS;
use super::errno::errno;
use super::io_mode::IoMode;
use crate::overlay::Caller;
use crate::types::Ino;

/// Whether a handle opened with `flags` may write.
pub(super) fn writes(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

impl Adapter {
    /// `sender` is who opens, root or not.
    pub(super) fn open_file(
        &self,
        sender: Sender,
        is_root: bool,
        ino: Ino,
        flags: i32,
        reply: ReplyOpen,
    ) {
        let flags = flags & UPPER_FLAGS;
        let writes = writes(flags);
        self.attempt(
            self.looking(INodeNo(ino.0)),
            move |context| {
                if writes && context.overlay.drop_lent(ino, &sender)? {
                    context.forget_attributes(ino);
                }
                context.overlay.open(ino, flags)
            },
            move |context, result| {
                let opened = match result {
                    Ok(opened) => opened,
                    Err(error) => return reply.error(context.failed(&error)),
                };
                let decided =
                    context.io_mode(ino, &opened, writes, is_root, |fd| reply.open_backing(fd));
                let (mode, cache) = match decided {
                    Ok(decided) => decided,
                    Err(error) => return reply.error(errno(&error)),
                };
                if context.modes.written(ino).is_some() {
                    context.forget_attributes(ino);
                }
                let fh = FileHandle(opened.handle.0);
                let direct = FopenFlags::empty();
                match mode {
                    IoMode::Cached => reply.opened(fh, cache),
                    IoMode::Passthrough(id) => {
                        context.given_to_kernel(opened.handle, flags);
                        reply.opened_passthrough(fh, direct, &id);
                    }
                }
            },
        );
    }

    pub(super) fn create_file(
        &self,
        caller: Caller,
        parent: Ino,
        name: OsString,
        mode: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (flags, writes) = (flags & UPPER_FLAGS, writes(flags));
        let is_root = caller.uid == 0;
        self.attempt(
            self.changing([INodeNo(parent.0)]),
            move |context| context.overlay.create(&caller, parent, &name, mode, flags),
            move |context, created| {
                let (attr, opened) = match created {
                    Ok(created) => created,
                    Err(error) => return reply.error(context.failed(&error)),
                };
                // What the kernel remembers of it does no harm: before a new file can be mapped it has to
                // grow, and then the kernel asks again.
                let decided = context
                    .io_mode(attr.ino, &opened, writes, is_root, |fd| reply.open_backing(fd));
                let (mode, cache) = match decided {
                    Ok(decided) => decided,
                    Err(error) => {
                        context.overlay.forget(attr.ino, 1);
                        return reply.error(errno(&error));
                    }
                };
                let fh = FileHandle(opened.handle.0);
                let generation = Generation(attr.generation);
                let (attr, ttl) = match attr.size {
                    0 if attr.number == attr.ino => (file_attr(&attr), context.attr_ttl),
                    _ => context.told_of_entry(&attr),
                };
                let ttl = &context.entry_ttl.min(ttl);
                let direct = FopenFlags::empty();
                match mode {
                    IoMode::Cached => reply.created(ttl, &attr, generation, fh, cache),
                    IoMode::Passthrough(id) => {
                        context.given_to_kernel(opened.handle, flags);
                        reply.created_passthrough(ttl, &attr, generation, fh, direct, &id);
                    }
                }
            },
        );
    }
}
