//! What the kernel is told that the FUSE library has no call for, by messages written to the device.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use crate::types::Ino;

/// The kernel's number of `FUSE_NOTIFY_INVAL_ENTRY`.
const INVAL_ENTRY: i32 = 3;

/// `FUSE_EXPIRE_ONLY`: the name is asked for again before it is next used, and nothing is let go of now. A kernel before
/// 6.2 does not look at this, and lets go at once, which is right too, only slower.
const EXPIRE_ONLY: u32 = 1;

/// The kernel's number of `FUSE_NOTIFY_PRUNE`.
const PRUNE: i32 = 9;

/// The FUSE device of a mount.
#[derive(Debug)]
pub(super) struct Device(OwnedFd);

impl Device {
    /// The one that the file system is mounted from.
    pub(super) fn new(device: OwnedFd) -> Self {
        Self(device)
    }

    /// Has the kernel ask for `name` in `parent` again before it is next used.
    ///
    /// # Errors
    /// `ENOENT` where it remembers no such name.
    pub(super) fn expire(&self, parent: Ino, name: &OsStr) -> io::Result<()> {
        let name = name.as_bytes();
        let mut message = message(INVAL_ENTRY, 16 + name.len() + 1);
        message.extend_from_slice(&parent.0.to_ne_bytes());
        message.extend_from_slice(&length(name.len()).to_ne_bytes());
        message.extend_from_slice(&EXPIRE_ONLY.to_ne_bytes());
        message.extend_from_slice(name);
        message.push(0);
        self.write(&message)
    }

    /// Asks the kernel to forget `nodes`, as far as nobody uses them. It may ask for other things meanwhile.
    ///
    /// # Errors
    /// `EINVAL` from a kernel before 6.18, which cannot be asked for that.
    pub(super) fn prune(&self, nodes: &[Ino]) -> io::Result<()> {
        let mut message = message(PRUNE, 16 + size_of_val(nodes));
        message.extend_from_slice(&length(nodes.len()).to_ne_bytes());
        message.extend_from_slice(&[0; 12]);
        for node in nodes {
            message.extend_from_slice(&node.0.to_ne_bytes());
        }
        self.write(&message)
    }

    fn write(&self, message: &[u8]) -> io::Result<()> {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(&self.0, message))?;
        if written == message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

/// `struct fuse_out_header` of notification `code`, with room for `len` bytes behind it.
fn message(code: i32, len: usize) -> Vec<u8> {
    const HEADER: usize = 16;
    let mut message = Vec::with_capacity(HEADER + len);
    message.extend_from_slice(&length(HEADER + len).to_ne_bytes());
    message.extend_from_slice(&code.to_ne_bytes());
    // No request is answered by this.
    message.extend_from_slice(&0u64.to_ne_bytes());
    message
}

fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek};

    use super::*;

    /// What `tell` writes.
    fn written(tell: impl FnOnce(&Device)) -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        tell(&Device::new(File::try_clone(&file).unwrap().into()));
        let mut message = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut message).unwrap();
        message
    }

    #[test]
    fn a_message_says_its_length_and_how_many_it_names() {
        let message = written(|device| device.prune(&[Ino(2), Ino(u64::MAX)]).unwrap());
        assert_eq!(message.len(), 48);
        assert_eq!(message[..4], 48u32.to_ne_bytes());
        assert_eq!(message[4..8], PRUNE.to_ne_bytes());
        assert_eq!(message[16..20], 2u32.to_ne_bytes());
        assert_eq!(message[32..40], 2u64.to_ne_bytes());
        assert_eq!(message[40..], u64::MAX.to_ne_bytes());
    }

    #[test]
    fn a_name_that_expires_ends_with_a_nul_that_does_not_count() {
        let message = written(|device| device.expire(Ino(7), OsStr::new("abc")).unwrap());
        assert_eq!(message.len(), 36);
        assert_eq!(message[..4], 36u32.to_ne_bytes());
        assert_eq!(message[4..8], INVAL_ENTRY.to_ne_bytes());
        assert_eq!(message[16..24], 7u64.to_ne_bytes());
        assert_eq!(message[24..28], 3u32.to_ne_bytes());
        assert_eq!(message[28..32], EXPIRE_ONLY.to_ne_bytes());
        assert_eq!(message[32..], *b"abc\0");
    }
}
