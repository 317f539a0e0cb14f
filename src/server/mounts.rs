//! What is mounted, as `/proc/self/mountinfo` tells it.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of mountinfo, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// Its device number, as `major:minor`.
    pub device: String,
    /// Which directory of the file system is mounted, `/` for all of it.
    pub root: PathBuf,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The type with its subtype, `fuse.thawfs` for ours.
    pub fs_type: String,
    /// The source as `/proc/mounts` shows it.
    pub source: String,
    /// Options of the file system.
    pub options: String,
}

impl MountInfo {
    /// Whether the mount is one of this program.
    pub fn is_ours(&self) -> bool {
        self.fs_type == "fuse.thawfs"
    }
}

/// Everything mounted in this mount namespace, in mount order.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn read_mounts() -> io::Result<Vec<MountInfo>> {
    read_mounts_of("self")
}

/// Everything mounted in the mount namespace of process `pid`.
///
/// # Errors
/// Where the process is gone, or is not to be looked at.
pub fn read_mounts_of(pid: &str) -> io::Result<Vec<MountInfo>> {
    let text = std::fs::read(format!("/proc/{pid}/mountinfo"))?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse_line).collect())
}

/// The topmost mount at exactly `mountpoint` (an absolute path without symlinks).
///
/// # Errors
/// When `/proc` is not mounted.
pub fn read_mount_at(mountpoint: &Path) -> io::Result<Option<MountInfo>> {
    Ok(read_mounts()?.into_iter().rev().find(|mount| mount.mountpoint == mountpoint))
}

/// `36 35 98:0 /root /mountpoint rw,noatime shared:1 - type source options`, see proc(5). The
/// number of fields before the dash varies.
fn parse_line(line: &[u8]) -> Option<MountInfo> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = String::from_utf8_lossy(fields.nth(2)?).into_owned();
    let root = unescape(fields.next()?);
    let mountpoint = unescape(fields.next()?);
    let mut after_dash = fields.skip_while(|field| field != b"-").skip(1);
    let fs_type = String::from_utf8_lossy(after_dash.next()?).into_owned();
    let source = String::from_utf8_lossy(&unescape(after_dash.next()?)).into_owned();
    let options = String::from_utf8_lossy(after_dash.next().unwrap_or_default()).into_owned();
    let path = |bytes| PathBuf::from(OsString::from_vec(bytes));
    let (root, mountpoint) = (path(root), path(mountpoint));
    Some(MountInfo { device, root, mountpoint, fs_type, source, options })
}

/// Undoes the kernel's `\ooo` for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [byte, tail @ ..] = rest {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                plain.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                rest = tail;
            }
            _ => {
                plain.push(*byte);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_whatever_the_optional_fields() {
        for (line, mountpoint, source) in [
            ("1 2 0:40 / /a\\040b rw - fuse.thawfs s3://b/k rw,user_id=0", "/a b", "s3://b/k"),
            ("1 2 0:40 / /m rw,noatime shared:7 master:2 - fuse.thawfs x\\134y rw", "/m", "x\\y"),
        ] {
            let mount = parse_line(line.as_bytes()).unwrap();
            assert_eq!((mount.mountpoint.to_str(), &*mount.source), (Some(mountpoint), source));
            assert_eq!(mount.device, "0:40");
            assert_eq!(mount.root, Path::new("/"));
            assert!(mount.is_ours());
        }
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(read_mount_at(Path::new("/")).unwrap().is_some());
    }
}
