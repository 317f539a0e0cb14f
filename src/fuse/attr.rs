//! Conversions between what the overlay says and what fuser's structs want.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use crate::overlay::{Attr, SetTime};
use crate::types::{FileKind, Ino, Timestamp};

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Directory => FileType::Directory,
        FileKind::Regular => FileType::RegularFile,
        FileKind::Symlink => FileType::Symlink,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.number.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: kernel_device(attr.rdev),
        blksize: attr.block_size,
        flags: 0,
    }
}

/// An entry the kernel keeps as "there is no such name": node id 0.
pub(super) fn negative_entry() -> FileAttr {
    bare(Ino(0), FileKind::Regular)
}

/// Number and kind alone, for `.` and `..` in a listing: the kernel shows these two of them and
/// remembers nothing.
pub(super) fn bare(ino: Ino, kind: FileKind) -> FileAttr {
    file_attr(&Attr {
        ino,
        number: ino,
        generation: 0,
        kind,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        atime: Timestamp::default(),
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        block_size: 0,
    })
}

/// What the kernel is told of a name that cannot be described. It lists the name with this number and
/// kind, and refuses the rest: no file has such a size (`fuse_invalid_attr`, since Linux 5.5 and in its
/// stable series). It then makes no inode, and gives back the lookup that was counted. A node id of 0
/// would say the same, but to the library the number in the listing is the same as that.
pub(super) fn undescribed(ino: Ino, kind: FileKind) -> FileAttr {
    FileAttr { size: u64::MAX, ..bare(ino, kind) }
}

/// The protocol carries devices in the kernel's 32-bit form: 12 bits of major, 20 of minor.
fn kernel_device(device: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The reverse of [`kernel_device`]: `st_rdev` of a device number as the protocol carries it.
pub(super) fn user_device(device: u32) -> u64 {
    let major = (device & 0xf_ff00) >> 8;
    let minor = (device & 0xff) | ((device >> 12) & 0xf_ff00);
    rustix::fs::makedev(major, minor)
}

fn system_time(time: Timestamp) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds < 0 {
        UNIX_EPOCH.checked_sub(seconds)
    } else {
        UNIX_EPOCH.checked_add(seconds)
    };
    whole.and_then(|whole| whole.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// A time that a request carries, as fuser 0.18 gives it: of one before 1970 it takes the nanoseconds,
/// which count forward from the second, for ones that count back.
fn requested(time: SystemTime) -> Timestamp {
    let (seconds, nanos) = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
        Err(error) => {
            let before = error.duration();
            (0i64.saturating_sub_unsigned(before.as_secs()), before.subsec_nanos())
        }
    };
    Timestamp { seconds, nanos }
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(requested(time)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_requests_are_read_as_fuser_gives_them() {
        for (seconds, nanos) in
            [(0, 0), (1, 999_999_999), (-1, 0), (-1, 1), (-2_147_483_648, 5), (0xffff_ffff, 7)]
        {
            let distance = Duration::new(i64::unsigned_abs(seconds), nanos);
            let given = if seconds < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance };
            assert_eq!(requested(given), Timestamp { seconds, nanos });
        }
    }

    #[test]
    fn times_are_given_as_they_are() {
        for (seconds, nanos, expected) in [
            (1, 999_999_999, UNIX_EPOCH + Duration::from_nanos(1_999_999_999)),
            (-1, 1, UNIX_EPOCH - Duration::from_nanos(999_999_999)),
        ] {
            assert_eq!(system_time(Timestamp { seconds, nanos }), expected);
        }
    }

    #[test]
    fn devices_survive_both_ways() {
        for (major, minor) in [(0, 0), (1, 3), (8, 255), (8, 256), (0xfff, 0xf_ffff)] {
            let device = rustix::fs::makedev(major, minor);
            assert_eq!(user_device(kernel_device(device)), device);
        }
    }
}
