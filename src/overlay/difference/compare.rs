//! Whether an inode in the upper is as the backup has it.

use rustix::fs::Statx;

use super::super::Overlay;
use super::super::error::Result;
use super::super::node::Data;
use super::super::xattr::stored_xattrs;
use super::step::InUpper;
use crate::squashfs::Inode;
use crate::types::{FileKind, InodeRef, Owner, Timestamp};

/// What an access control label of the machine is called. What is made on it gets one.
pub(super) const LABEL: &[u8] = b"security.selinux";

/// How one inode differs from another of the same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    Attributes,
    Data,
}

/// How `upper` differs from lower inode `lower`, which it is or has the place of. Both are taken as stored, whatever
/// owners are shown.
pub(super) fn compare(overlay: &Overlay, lower: InodeRef, upper: &InUpper<'_>) -> Result<Change> {
    let inode = overlay.lower.inode(lower)?;
    if has_other_data(overlay, &inode, upper)? {
        return Ok(Change::Data);
    }
    Ok(match has_other_attributes(overlay, &inode, upper)? {
        true => Change::Attributes,
        false => Change::None,
    })
}

fn has_other_data(overlay: &Overlay, inode: &Inode, upper: &InUpper<'_>) -> Result<bool> {
    let stat = &upper.stat;
    Ok(match upper.kind {
        FileKind::Regular => match &upper.state.data {
            Data::Lower(lower) => *lower != inode.reference,
            Data::Upper | Data::Layer(_) if inode.size == 0 && stat.stx_size == 0 => false,
            Data::Upper | Data::Layer(_) => {
                upper.lower != Some(inode.reference)
                    || stat.stx_size != inode.size
                    || mtime_of(stat) != inode.mtime
            }
        },
        FileKind::Symlink => match &upper.inode {
            Some(address) => address.read_link()? != overlay.lower.archive().read_link(inode)?,
            None => true,
        },
        FileKind::BlockDevice | FileKind::CharDevice => {
            let device = match upper.state.null_device {
                true => 0,
                false => rustix::fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
            };
            device != inode.rdev
        }
        FileKind::Directory | FileKind::Fifo | FileKind::Socket => false,
    })
}

fn has_other_attributes(overlay: &Overlay, inode: &Inode, upper: &InUpper<'_>) -> Result<bool> {
    let stat = &upper.stat;
    // Links have no permissions, and a directory's time moves with each name in it.
    let is_link = upper.kind == FileKind::Symlink;
    let has_time = upper.kind != FileKind::Directory;
    if (!is_link && stat.stx_mode & 0o7777 != inode.permissions)
        || overlay.owner_stored(&upper.state, stat) != (Owner { uid: inode.uid, gid: inode.gid })
        || (has_time && mtime_of(stat) != inode.mtime)
    {
        return Ok(true);
    }
    let Some(address) = &upper.inode else { return Ok(true) };
    let in_upper = stored_xattrs(address, overlay.marks)?;
    let in_lower = overlay.lower.archive().xattrs(inode)?;
    let mut in_lower: Vec<_> =
        in_lower.into_iter().map(|xattr| (xattr.name, xattr.value)).collect();
    let is_labelled = in_lower.iter().any(|(name, _)| name == LABEL);
    let mut in_upper: Vec<_> =
        in_upper.into_iter().filter(|(name, _)| is_labelled || name != LABEL).collect();
    in_lower.sort_unstable();
    in_upper.sort_unstable();
    Ok(in_lower != in_upper)
}

pub(super) fn mtime_of(stat: &Statx) -> Timestamp {
    Timestamp { seconds: stat.stx_mtime.tv_sec, nanos: stat.stx_mtime.tv_nsec }
}
