//! The one table from errors to what a program sees in `errno`.

use fuser::Errno;

use crate::overlay::Error;
use crate::{cache, squashfs, store};

/// The errno of `error`.
pub(super) fn errno(error: &Error) -> Errno {
    match error {
        // The upper's own errno, and the refusals of the tree: both are what ext4 would say.
        Error::Refused(errno) | Error::Sys { errno, .. } => Errno::from_i32(errno.raw_os_error()),
        Error::Damaged(_) => Errno::EIO,
        Error::Stale(_) => Errno::ESTALE,
        Error::Lower(error) => lower(error),
        // Said only before there is a mount, and only to those who try again.
        Error::WouldCopy | Error::Frozen | Error::Unusable { .. } => Errno::EIO,
    }
}

fn lower(error: &squashfs::Error) -> Errno {
    match error {
        squashfs::Error::NotSquashfs { .. }
        | squashfs::Error::Unsupported { .. }
        | squashfs::Error::Corrupt { .. }
        // The overlay asks by kind, so a wrong one means that the archive gave two answers.
        | squashfs::Error::WrongKind { .. } => Errno::EIO,
        squashfs::Error::Blob(error) => blob(error),
    }
}

fn blob(error: &cache::Error) -> Errno {
    match error {
        cache::Error::PastEnd { .. } | cache::Error::WouldWait => Errno::EIO,
        cache::Error::Store(error) => match **error {
            // Another object has taken its place: what was read before no longer fits.
            store::Error::Changed { .. } => Errno::ESTALE,
            // A program can do nothing about any of these; `status` has the reason.
            _ => Errno::EIO,
        },
        // A file on this machine: its errno means the same to the caller.
        cache::Error::Io(error) => error.raw_os_error().map_or(Errno::EIO, Errno::from_i32),
    }
}
