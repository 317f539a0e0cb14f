//! [`fuser::Filesystem`] over the overlay: each operation unpacked, run where it belongs, replied to.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::adapter::Adapter;
use super::attr::{negative_entry, set_time, user_device};
use super::callers::Sender;
use super::data::Target;
use super::errno::errno;
use super::opening::writes;
use super::work::Work;
use crate::overlay::{self, Caller, Handle, SetAttr};
use crate::types::Ino;

fn caller(request: &Request, umask: u32) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), umask }
}

fn handle(handle: FileHandle) -> Handle {
    Handle(handle.0)
}

/// Enters the span of a request until the method returns. What is done for it elsewhere takes it along, so that
/// each line of the log says which request of the kernel it is about.
macro_rules! enter {
    ($operation:literal, $request:ident, $ino:ident $($fields:tt)*) => {
        let _entered = tracing::debug_span!(
            $operation, unique = $request.unique().0, ino = $ino.0 $($fields)*
        ).entered();
        tracing::debug!("asked");
    };
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.negotiate(config);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        enter!("lookup", request, parent, name = ?name);
        self.prune();
        let ino = Ino(parent.0);
        if name == "." {
            // It may have to be looked for.
            return self.attempt(
                Work::Local,
                move |context| context.overlay.lookup_again(ino),
                move |context, result| context.reply_entry(result, reply),
            );
        }
        if name == ".." {
            return self.attempt(
                Work::Local,
                move |context| context.overlay.lookup_parent(ino),
                move |context, result| context.reply_entry(result, reply),
            );
        }
        let name = name.to_owned();
        self.attempt(
            self.looking(parent),
            move |context| {
                // What is not in a directory that is gone is not remembered: a rollback may bring it back.
                let is_gone = context.overlay.is_gone(ino);
                match context.overlay.lookup(ino, &name) {
                    Err(error) if errno(&error) == Errno::ENOENT && !is_gone => Ok(None),
                    found => found.map(Some),
                }
            },
            move |context, result| match result.transpose() {
                None => reply.entry_with_ttls(
                    &context.attr_ttl,
                    &context.entry_ttl,
                    &negative_entry(),
                    Generation(0),
                ),
                Some(result) => context.reply_entry(result, reply),
            },
        );
    }

    fn forget(&self, _request: &Request, ino: INodeNo, nlookup: u64) {
        self.context.overlay.forget(Ino(ino.0), nlookup);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        enter!("getattr", request, ino);
        self.attempt(
            self.looking(ino),
            move |context| context.overlay.getattr(Ino(ino.0), fh.map(handle)),
            move |context, result| context.reply_attr(result, reply),
        );
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        enter!("setattr", request, ino);
        let sender = Sender::of(request);
        let change = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
        };
        let work = match self.changing([ino]) {
            Work::Here if size.is_some() => Work::Local,
            work => work,
        };
        self.attempt(
            work,
            move |context| context.overlay.setattr(&sender, Ino(ino.0), fh.map(handle), &change),
            move |context, result| context.reply_attr(result, reply),
        );
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        enter!("readlink", request, ino);
        self.attempt(
            self.looking(ino),
            move |context| context.overlay.readlink(Ino(ino.0)),
            move |context, result| match result {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(context.failed(&error)),
            },
        );
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        enter!("mknod", request, parent, name = ?name);
        let (caller, name) = (caller(request, umask), name.to_owned());
        let device = user_device(rdev);
        self.attempt(
            self.changing([parent]),
            move |context| context.overlay.mknod(&caller, Ino(parent.0), &name, mode, device),
            move |context, result| context.reply_entry(result, reply),
        );
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        enter!("mkdir", request, parent, name = ?name);
        let (caller, name) = (caller(request, umask), name.to_owned());
        self.attempt(
            self.changing([parent]),
            move |context| context.overlay.mkdir(&caller, Ino(parent.0), &name, mode),
            move |context, result| context.reply_entry(result, reply),
        );
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        enter!("unlink", request, parent, name = ?name);
        let name = name.to_owned();
        self.attempt(
            self.changing([parent]),
            move |context| context.overlay.unlink(Ino(parent.0), &name),
            move |context, result| context.reply_empty(result, reply),
        );
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        enter!("rmdir", request, parent, name = ?name);
        let name = name.to_owned();
        self.attempt(
            self.changing([parent]),
            move |context| context.overlay.rmdir(Ino(parent.0), &name),
            move |context, result| context.reply_empty(result, reply),
        );
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        enter!("symlink", request, parent, name = ?name);
        let (caller, name) = (caller(request, 0), name.to_owned());
        let target = target.as_os_str().to_owned();
        self.attempt(
            self.changing([parent]),
            move |context| context.overlay.symlink(&caller, Ino(parent.0), &name, &target),
            move |context, result| context.reply_entry(result, reply),
        );
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        enter!("rename", request, parent, name = ?name, to = newparent.0, newname = ?newname);
        let caller = caller(request, 0);
        let (name, newname) = (name.to_owned(), newname.to_owned());
        let flags = overlay::RenameFlags::from_bits_retain(flags.bits());
        // What is renamed may have to be copied up first.
        let work = match self.changing([parent, newparent]) {
            Work::Here => Work::Local,
            work => work,
        };
        let (parent, newparent) = (Ino(parent.0), Ino(newparent.0));
        self.attempt(
            work,
            move |context| {
                context.overlay.rename(&caller, parent, &name, newparent, &newname, flags)
            },
            move |context, result| context.reply_empty(result, reply),
        );
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        enter!("link", request, ino, to = newparent.0, newname = ?newname);
        let newname = newname.to_owned();
        self.attempt(
            self.changing([ino, newparent]),
            move |context| context.overlay.link(Ino(ino.0), Ino(newparent.0), &newname),
            move |context, result| context.reply_entry(result, reply),
        );
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        enter!("open", request, ino);
        self.open_file(Sender::of(request), request.uid() == 0, Ino(ino.0), flags.0, reply);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        enter!("create", request, parent, name = ?name);
        let caller = caller(request, umask);
        self.create_file(caller, Ino(parent.0), name.to_owned(), mode, flags, reply);
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        enter!("read", request, ino, offset, size);
        self.read_data(handle(fh), offset, size as usize, reply);
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        enter!("write", request, ino, offset, size = data.len());
        let sender = Sender::of(request).without_fsetid();
        let to = Target { ino: Ino(ino.0), handle: handle(fh) };
        self.write_data(sender, to, offset, data, write_flags, reply);
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Nothing is buffered here, and the kernel keeps the locks. Told so once, it stops asking.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        enter!("release", request, ino);
        let ino = Ino(ino.0);
        let written = self.context.modes.written(ino).is_some();
        self.context.modes.released(ino, writes(flags.0));
        self.context.overlay.release(handle(fh));
        reply.ok();
        tracing::debug!("answered");
        if written {
            // An answer from before the last change may only now be given.
            self.context.forget_attributes(ino);
        }
    }

    fn fsync(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        enter!("fsync", request, ino);
        self.run(Work::Local, move |context| {
            context.reply_empty(context.overlay.fsync(handle(fh), datasync), reply);
        });
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.context.no_opendir.load(Ordering::Relaxed) {
            // Listings need no handle. Told so once, the kernel stops asking, and keeps what it lists
            // as if it had been told the flags below.
            return reply.error(Errno::ENOSYS);
        }
        let flags = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
        reply.opened(FileHandle(0), flags);
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        enter!("readdir", request, ino, offset);
        self.list(Ino(ino.0), offset, reply);
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        enter!("readdirplus", request, ino, offset);
        self.prune();
        self.list_described(Ino(ino.0), offset, reply);
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsyncdir(
        &self,
        request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        enter!("fsyncdir", request, ino);
        self.run(Work::Local, move |context| {
            context.reply_empty(context.overlay.fsyncdir(Ino(ino.0), datasync), reply);
        });
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        enter!("statfs", request, ino);
        match self.context.overlay.statfs() {
            Ok(stat) => reply.statfs(
                stat.blocks,
                stat.blocks_free,
                stat.blocks_available,
                stat.files,
                stat.files_free,
                stat.block_size,
                stat.name_max,
                stat.fragment_size,
            ),
            Err(error) => reply.error(self.context.failed(&error)),
        }
        tracing::debug!("answered");
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        enter!("setxattr", request, ino, name = ?name);
        let sender = (name == "system.posix_acl_access").then(|| Sender::of(request));
        let (name, value) = (name.to_owned(), value.to_vec());
        let flags = overlay::XattrFlags::from_bits_retain(flags.cast_unsigned());
        self.attempt(
            self.changing([ino]),
            move |context| {
                let ino = Ino(ino.0);
                context.overlay.setxattr(ino, &name, &value, flags)?;
                match &sender {
                    Some(sender) => context.overlay.drop_setgid(ino, sender),
                    None => Ok(()),
                }
            },
            move |context, result| context.reply_empty(result, reply),
        );
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        enter!("getxattr", request, ino, name = ?name);
        let name = name.to_owned();
        self.attempt(
            self.looking(ino),
            move |context| context.overlay.getxattr(Ino(ino.0), &name),
            move |context, result| context.reply_xattr(result, size, reply),
        );
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        enter!("listxattr", request, ino);
        let caller = caller(request, 0);
        self.attempt(
            self.looking(ino),
            move |context| context.overlay.listxattr(&caller, Ino(ino.0)),
            move |context, result| context.reply_xattr(result, size, reply),
        );
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        enter!("removexattr", request, ino, name = ?name);
        let name = name.to_owned();
        self.attempt(
            self.changing([ino]),
            move |context| context.overlay.removexattr(Ino(ino.0), &name),
            move |context, result| context.reply_empty(result, reply),
        );
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks permissions (default_permissions) and stops asking.
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        enter!("fallocate", request, ino, offset, length);
        let target = Target { ino: Ino(ino.0), handle: handle(fh) };
        self.allocate(Sender::of(request), target, offset, length, mode, reply);
    }

    fn lseek(
        &self,
        request: &Request,
        inode: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        enter!("lseek", request, inode, offset);
        self.seek(Target { ino: Ino(inode.0), handle: handle(fh) }, offset, whence, reply);
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        enter!("copy_file_range", request, ino_in, to = ino_out.0, len);
        let to = Target { ino: Ino(ino_out.0), handle: handle(fh_out) };
        let from = (handle(fh_in), offset_in);
        self.copy_range(Sender::of(request), from, to, offset_out, len, reply);
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // A regular file is always ready; told ENOSYS, the kernel answers so by itself.
        reply.error(Errno::ENOSYS);
    }

    fn bmap(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _block_size: u32,
        _index: u64,
        reply: ReplyBmap,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
