//! What is mounted, as `/proc/self/mountinfo` tells it.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One line of mountinfo, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// Its number, while it is there.
    pub id: u64,
    /// The number of the mount that it is in, or on.
    pub parent: u64,
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
    /// Options of the file system, as the kernel escapes them.
    pub options: OsString,
}

impl MountInfo {
    /// Whether the mount is one of this program.
    pub fn is_ours(&self) -> bool {
        self.fs_type == "fuse.thawfs"
    }

    /// Whether the file system has the plain option `name`.
    pub fn has_option(&self, name: &str) -> bool {
        self.options.as_bytes().split(|byte| *byte == b',').any(|option| option == name.as_bytes())
    }

    /// The directories that an overlay is made of, as they were named when it was mounted; which may be both
    /// with and without backslashes.
    pub(super) fn layers(&self) -> Vec<PathBuf> {
        let mut layers: Vec<Vec<u8>> = Vec::new();
        if self.fs_type != "overlay" {
            return Vec::new();
        }
        for option in self.options.as_bytes().split(|byte| *byte == b',') {
            let mut parts = option.splitn(2, |byte| *byte == b'=');
            let (Some(name), Some(value)) = (parts.next(), parts.next()) else { continue };
            let value = unescape(value);
            match name {
                b"upperdir" | b"workdir" | b"lowerdir+" | b"datadir+" => {
                    layers.push(value.clone());
                    layers.extend(split_layers(&value));
                }
                b"lowerdir" => layers.extend(split_layers(&value)),
                _ => {}
            }
        }
        layers.retain(|layer| !layer.is_empty());
        layers.into_iter().map(|layer| PathBuf::from(OsString::from_vec(layer))).collect()
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

/// What of `mounts` is inside of the mount with number `id`: whatever goes with it when it is detached.
/// The innermost are the last.
pub(crate) fn mounted_inside(mounts: &[MountInfo], id: u64) -> Vec<&MountInfo> {
    let mut found: Vec<&MountInfo> = Vec::new();
    let mut around = vec![id];
    while !around.is_empty() {
        let next = mounts.iter().filter(|mount| around.contains(&mount.parent));
        let next: Vec<_> = next.filter(|mount| mount.parent != mount.id).collect();
        around = next.iter().map(|mount| mount.id).collect();
        found.extend(next);
    }
    found
}

/// Mounts in words: where each is, and of what kind.
pub(super) fn in_words<'a>(mounts: impl IntoIterator<Item = &'a MountInfo>) -> String {
    let words = mounts
        .into_iter()
        .map(|mount| format!("{} ({})", mount.mountpoint.display(), mount.fs_type));
    words.collect::<Vec<_>>().join(", ")
}

/// `36 35 98:0 /root /mountpoint rw,noatime shared:1 - type source options`, see proc(5). The
/// number of fields before the dash varies.
fn parse_line(line: &[u8]) -> Option<MountInfo> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
    let (id, parent) = (number()?, number()?);
    let device = String::from_utf8_lossy(fields.next()?).into_owned();
    let root = unescape(fields.next()?);
    let mountpoint = unescape(fields.next()?);
    let mut after_dash = fields.skip_while(|field| field != b"-").skip(1);
    let fs_type = String::from_utf8_lossy(after_dash.next()?).into_owned();
    let source = String::from_utf8_lossy(&unescape(after_dash.next()?)).into_owned();
    let options = OsString::from_vec(after_dash.next().unwrap_or_default().to_vec());
    let path = |bytes| PathBuf::from(OsString::from_vec(bytes));
    let (root, mountpoint) = (path(root), path(mountpoint));
    Some(MountInfo { id, parent, device, root, mountpoint, fs_type, source, options })
}

/// Splits at colons; a backslash keeps the next byte as it is.
fn split_layers(value: &[u8]) -> Vec<Vec<u8>> {
    let mut layers = vec![Vec::new()];
    let mut bytes = value.iter();
    while let Some(byte) = bytes.next() {
        let kept = if *byte == b'\\' { bytes.next() } else { None };
        match (kept, layers.last_mut()) {
            (None, _) if *byte == b':' => layers.push(Vec::new()),
            (kept, Some(layer)) => layer.push(*kept.unwrap_or(byte)),
            (_, None) => {}
        }
    }
    layers
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
            assert_eq!((mount.id, mount.parent), (1, 2));
            assert_eq!(mount.device, "0:40");
            assert_eq!(mount.root, Path::new("/"));
            assert!(mount.is_ours());
        }
    }

    #[test]
    fn what_is_inside_is_told_by_numbers_and_not_by_names() {
        let lines = [
            "1 1 0:1 / / rw - rootfs none rw",
            "2 1 0:2 / /m/hidden rw - tmpfs none rw",
            "3 1 0:3 / /m rw - fuse.thawfs a rw",
            "6 4 0:6 / /m/a/b rw - tmpfs none rw",
            "4 3 0:4 / /m/a rw - tmpfs none rw",
            "5 1 0:5 / /mm rw - tmpfs none rw",
            "7 3 0:7 / /m rw - tmpfs none rw",
        ];
        let mounts = lines.map(|line| parse_line(line.as_bytes()).unwrap());
        let inside = mounted_inside(&mounts, 3);
        assert_eq!(in_words(inside), "/m/a (tmpfs), /m (tmpfs), /m/a/b (tmpfs)");
        assert_eq!(mounted_inside(&mounts, 5), Vec::<&MountInfo>::new());
        assert_eq!(mounted_inside(&mounts, 1).len(), 6);
    }

    #[test]
    fn an_overlay_is_made_of_what_its_options_name() {
        for (options, layers) in [
            ("rw,lowerdir=/a,upperdir=/b,workdir=/c", &["/a", "/b", "/b", "/c", "/c"][..]),
            ("rw,lowerdir=/a\\134:b:/c::/d\\054e", &["/a:b", "/c", "/d,e"]),
            ("rw,lowerdir+=/a,datadir+=/b", &["/a", "/a", "/b", "/b"]),
            ("rw,upperdir=/a\\134\\134b", &["/a\\\\b", "/a\\b"]),
            ("rw,index=on", &[]),
        ] {
            let line = format!("1 2 0:4 / /m rw - overlay none {options}");
            let mount = parse_line(line.as_bytes()).unwrap();
            let expected: Vec<PathBuf> = layers.iter().map(PathBuf::from).collect();
            assert_eq!(mount.layers(), expected, "{options}");
        }
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(read_mount_at(Path::new("/")).unwrap().is_some());
    }
}
