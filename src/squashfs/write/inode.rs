//! Inodes as the inode table holds them: basic where that says all, extended otherwise.

use zerocopy::{Immutable, IntoBytes};

use super::super::format::{
    DIR_SIZE_BIAS, NO_FRAGMENT, NO_XATTRS, RawDevice, RawDirectory, RawExtendedDirectory,
    RawExtendedFile, RawFile, RawInode, RawIpc, RawSymlink,
};
use super::catalog::{Node, kind_code};
use super::error::Error;
use super::listing::Listing;
use crate::types::{FileKind, Timestamp};

/// Added to a kind's number in extended inodes.
const EXTENDED: u16 = 7;

/// An inode in the making.
pub(super) struct InodeBytes<'a> {
    node: &'a Node,
    number: u32,
    bytes: Vec<u8>,
}

impl<'a> InodeBytes<'a> {
    pub(super) fn new(node: &'a Node, number: u32) -> Self {
        Self { node, number, bytes: Vec::with_capacity(64) }
    }

    /// A directory; `nlink` counts its own two names and one for each directory in it.
    pub(super) fn directory(
        mut self,
        listing: &Listing,
        nlink: u32,
        parent: u32,
    ) -> Result<Vec<u8>, Error> {
        let size = u64::from(listing.len) + DIR_SIZE_BIAS;
        let block = u32::try_from(listing.position.block)
            .map_err(|_| Error::limit("listings of more than 4 GiB"))?
            .into();
        let offset = listing.position.offset.into();
        if let (Ok(size), NO_XATTRS, 0) =
            (u16::try_from(size), self.node.xattrs, listing.index_count)
        {
            self.head(0);
            let raw = RawDirectory {
                block,
                nlink: nlink.into(),
                size: size.into(),
                offset,
                parent: parent.into(),
            };
            self.push(&raw);
            return Ok(self.bytes);
        }
        let size = u32::try_from(size)
            .map_err(|_| Error::limit("a directory whose listing takes more than 4 GiB"))?;
        self.head(EXTENDED);
        self.push(&RawExtendedDirectory {
            nlink: nlink.into(),
            size: size.into(),
            block,
            parent: parent.into(),
            index_count: listing.index_count.into(),
            offset,
            xattr: self.node.xattrs.into(),
        });
        self.bytes.extend_from_slice(&listing.index);
        Ok(self.bytes)
    }

    /// A file whose blocks lie from `start` on. Their sizes are to follow.
    pub(super) fn file(mut self, nlink: u32, start: u64) -> Vec<u8> {
        let Node { version, data, xattrs, .. } = self.node;
        let (fragment, fragment_offset) = data.fragment.unwrap_or((NO_FRAGMENT, 0));
        let basic = nlink == 1 && *xattrs == NO_XATTRS && data.sparse == 0;
        match (u32::try_from(version.size), u32::try_from(start)) {
            (Ok(size), Ok(start)) if basic => {
                self.head(0);
                self.push(&RawFile {
                    start: start.into(),
                    fragment: fragment.into(),
                    fragment_offset: fragment_offset.into(),
                    size: size.into(),
                });
            }
            _ => {
                self.head(EXTENDED);
                self.push(&RawExtendedFile {
                    start: start.into(),
                    size: version.size.into(),
                    sparse: data.sparse.into(),
                    nlink: nlink.into(),
                    fragment: fragment.into(),
                    fragment_offset: fragment_offset.into(),
                    xattr: (*xattrs).into(),
                });
            }
        }
        self.bytes
    }

    /// Whatever is neither a directory nor a regular file.
    pub(super) fn other(mut self, nlink: u32) -> Result<Vec<u8>, Error> {
        let xattrs = self.node.xattrs;
        self.head(if xattrs == NO_XATTRS { 0 } else { EXTENDED });
        match self.node.kind {
            FileKind::Symlink => {
                let target = &self.node.target;
                // At most 4095, which Linux bounds it by.
                let size = (target.len() as u32).into();
                self.push(&RawSymlink { nlink: nlink.into(), size });
                self.bytes.extend_from_slice(target);
            }
            FileKind::BlockDevice | FileKind::CharDevice => {
                let rdev = encode_device(self.node.rdev)?.into();
                self.push(&RawDevice { nlink: nlink.into(), rdev });
            }
            _ => {
                self.push(&RawIpc { nlink: nlink.into() });
            }
        }
        if xattrs != NO_XATTRS {
            self.bytes.extend(xattrs.to_le_bytes());
        }
        Ok(self.bytes)
    }

    fn head(&mut self, extended: u16) {
        let node = self.node;
        let raw = RawInode {
            kind: (kind_code(node.kind) + extended).into(),
            mode: node.permissions.into(),
            uid_index: node.uid_index.into(),
            gid_index: node.gid_index.into(),
            mtime: seconds(node.version.mtime).into(),
            number: self.number.into(),
        };
        self.push(&raw);
    }

    fn push(&mut self, raw: &(impl IntoBytes + Immutable)) -> &mut Self {
        self.bytes.extend_from_slice(raw.as_bytes());
        self
    }
}

/// The format's times: whole seconds of 1970 to 2106, the nearest where it is none of these.
/// (mksquashfs 4.5 keeps the lower 32 bits: 1960 becomes 2096.)
fn seconds(time: Timestamp) -> u32 {
    time.seconds.clamp(0, u32::MAX.into()) as u32
}

/// A device number as Linux stores it: minor bits around twelve of major.
fn encode_device(rdev: u64) -> Result<u32, Error> {
    let (major, minor) = (libc::major(rdev), libc::minor(rdev));
    if major > 0xfff || minor > 0xf_ffff {
        return Err(Error::limit(format!("device number {major}:{minor}")));
    }
    Ok((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_keep_both_halves() {
        for (major, minor, encoded) in
            [(8, 1, 0x0801), (0, 0xfff00, 0xfff0_0000), (0xfff, 255, 0xfffff)]
        {
            assert_eq!(encode_device(libc::makedev(major, minor)).unwrap(), encoded);
        }
        assert!(encode_device(libc::makedev(0x1000, 0)).is_err());
        assert!(encode_device(libc::makedev(0, 0x10_0000)).is_err());
    }

    #[test]
    fn times_outside_the_format_become_the_nearest_in_it() {
        for (given, stored) in [(-1, 0), (0, 0), (1 << 31, 1 << 31), (1 << 32, u32::MAX)] {
            assert_eq!(seconds(Timestamp { seconds: given, nanos: 0 }), stored);
        }
    }
}
