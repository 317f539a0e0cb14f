//! Whether somebody has mounted what lies in a directory, other than by this program: as a layer of the
//! kernel's overlayfs, which takes an upper of ours for its own, or by another name.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, fstat, openat};

use super::mounts::{MountInfo, in_words, read_mounts, read_mounts_of};

/// A directory, as it is known whatever it is called.
struct KnownDirectory {
    /// Without symlinks.
    path: PathBuf,
    id: (u64, u64),
    /// The number of its file system, and its path there: the same in every mount namespace.
    device: String,
    root: PathBuf,
}

/// Who has mounted something that lies in `directory`, in words: in this mount namespace, or in those of
/// processes that this one may look at.
///
/// # Errors
/// When it is gone, or `/proc` is not mounted.
pub(super) fn mounted_from(directory: &Path) -> io::Result<Option<String>> {
    let mounts = read_mounts()?;
    let place = KnownDirectory::of(directory, &mounts)?;
    if let Some(mount) = mounts.iter().find(|mount| place.is_mounted_by(mount, "self")) {
        return Ok(Some(format!("it is mounted on {}", in_words([mount]))));
    }
    let mut seen: HashSet<_> = std::fs::read_link("/proc/self/ns/mnt").into_iter().collect();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().into_string() else { continue };
        if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let Ok(namespace) = std::fs::read_link(format!("/proc/{pid}/ns/mnt")) else { continue };
        if !seen.insert(namespace) {
            continue;
        }
        let mounts = read_mounts_of(&pid).unwrap_or_default();
        if let Some(mount) = mounts.iter().find(|mount| place.is_mounted_by(mount, &pid)) {
            let words = in_words([mount]);
            return Ok(Some(format!("it is mounted on {words} where process {pid} sees it")));
        }
    }
    Ok(None)
}

impl KnownDirectory {
    fn of(directory: &Path, mounts: &[MountInfo]) -> io::Result<Self> {
        let path = directory.canonicalize()?;
        let meta = path.metadata()?;
        // The last is on top of those before.
        let around = mounts.iter().filter(|mount| path.starts_with(&mount.mountpoint));
        let around = around.max_by_key(|mount| mount.mountpoint.components().count());
        let around = around.ok_or(io::ErrorKind::NotFound)?;
        let below = path.strip_prefix(&around.mountpoint).unwrap_or(&path);
        let (device, root) = (around.device.clone(), around.root.join(below));
        Ok(Self { id: (meta.dev(), meta.ino()), device, root, path })
    }

    /// Whether `mount`, as process `pid` sees it, is of something that lies here.
    fn is_mounted_by(&self, mount: &MountInfo, pid: &str) -> bool {
        let by_name = mount.device == self.device && mount.root.starts_with(&self.root);
        by_name || mount.layers().iter().any(|layer| self.holds(layer, pid))
    }

    fn holds(&self, layer: &Path, pid: &str) -> bool {
        match layer.strip_prefix("/") {
            Ok(below) => self.is_above(&Path::new("/proc").join(pid).join("root").join(below)),
            // Nobody knows any more from where that counts: each that it could be is taken for it.
            Err(_) => {
                let named = |part: &Component<'_>| matches!(part, Component::Normal(_));
                let layer: PathBuf = layer.components().filter(named).collect();
                let mut starts = layer.ancestors().filter(|start| !start.as_os_str().is_empty());
                let ends = ["", "upper", "work"].map(|name| self.path.join(name));
                starts.any(|start| ends.iter().any(|end| end.ends_with(start)))
            }
        }
    }

    /// Whether the directory `path` is this one, or lies in it.
    fn is_above(&self, path: &Path) -> bool {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(mut at) = openat(CWD, path, flags, Mode::empty()) else { return false };
        let mut last = None;
        loop {
            let Ok(stat) = fstat(&at) else { return false };
            let id = (stat.st_dev, stat.st_ino);
            if id == self.id {
                return true;
            }
            // The top is above itself.
            if last == Some(id) {
                return false;
            }
            last = Some(id);
            let Ok(above) = openat(&at, "..", flags, Mode::empty()) else { return false };
            at = above;
        }
    }
}
