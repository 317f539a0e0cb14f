//! The directory of cached archives, and how much may be in it.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::entry::{About, ENDINGS, Entry, open_file, place_stem};
use crate::environment::Environment;

/// What [`DiskLimit::Auto`] takes at most, in bytes.
const AUTO_MOST: u64 = 10 << 30;

/// What stays free at most, in bytes.
const FLOOR_MOST: u64 = 1 << 30;

/// `f_type` of FUSE file systems.
const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;

/// How much a disk cache may hold. Whatever it is, 5 % of the file system or 1 GiB, the smaller of
/// both, stay free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskLimit {
    /// 10 % of the file system, and at most 10 GiB.
    #[default]
    Auto,
    /// Nothing: there is no disk cache.
    Off,
    /// So many bytes.
    Bytes(u64),
}

/// A directory of cached archives. Clones are the same directory.
#[derive(Clone, Debug)]
pub struct CacheDir(Arc<Directory>);

#[derive(Debug)]
struct Directory {
    /// For messages: what is done is done through `dir`, which stays the same directory when
    /// something is mounted over it.
    path: PathBuf,
    dir: OwnedFd,
    limit: u64,
    floor: u64,
}

impl CacheDir {
    /// `THAWFS_CACHE_DIR`, or `/var/cache/thawfs` for root, or `$XDG_CACHE_HOME/thawfs` (by default
    /// `~/.cache/thawfs`). `None` for a user without a home.
    pub fn locate() -> Option<PathBuf> {
        let environment = Environment::of_process();
        let path = if let Some(path) = environment.path("THAWFS_CACHE_DIR") {
            path.to_owned()
        } else if rustix::process::geteuid().is_root() {
            PathBuf::from("/var/cache/thawfs")
        } else {
            environment.base_directory("XDG_CACHE_HOME", ".cache")?.join("thawfs")
        };
        std::path::absolute(path).ok()
    }

    /// Opens the cache in the directory `path`, made if it does not exist. `None` where there shall
    /// be no cache, or can be none: on a FUSE file system, which may be a mount that waits for
    /// this very process, or be kept from ending by it.
    ///
    /// # Errors
    /// When the directory cannot be made or opened, or is open to others than this user.
    pub fn open(path: &Path, limit: DiskLimit) -> io::Result<Option<Self>> {
        if matches!(limit, DiskLimit::Off | DiskLimit::Bytes(0)) {
            return Ok(None);
        }
        let path = path.join("archives");
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&path, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&dir)?;
        if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
            let message = format!("{} is not this user's alone", path.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        if rustix::fs::fstatfs(&dir)?.f_type as i64 == FUSE_SUPER_MAGIC {
            return Ok(None);
        }
        let space = rustix::fs::fstatvfs(&dir)?;
        let size = space.f_blocks.saturating_mul(space.f_frsize);
        let limit = match limit {
            DiskLimit::Bytes(bytes) => bytes,
            DiskLimit::Auto | DiskLimit::Off => (size / 10).min(AUTO_MOST),
        };
        let floor = (size / 20).min(FLOOR_MOST);
        Ok(Some(Self(Arc::new(Directory { path, dir, limit, floor }))))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Most bytes that it may hold.
    pub(super) fn limit(&self) -> u64 {
        self.0.limit
    }

    /// Bytes of the file system that others could still write before it is as full as it may be.
    pub(super) fn free(&self) -> io::Result<u64> {
        let space = rustix::fs::fstatvfs(&self.0.dir)?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize).saturating_sub(self.0.floor))
    }

    pub(super) fn dir(&self) -> &OwnedFd {
        &self.0.dir
    }

    /// Opens what is cached of a version of an object, made if there is nothing. `place` tells
    /// objects of one name on different servers apart.
    ///
    /// # Errors
    /// When its files cannot be opened or written.
    pub(in crate::cache) fn open_entry(&self, place: &str, about: About) -> io::Result<Entry> {
        Entry::open(self.dir(), place, about)
    }

    /// Opens what is cached of the version of an object that was used last.
    pub(in crate::cache) fn open_latest(
        &self,
        place: &str,
        offset: u64,
        chunk: u64,
    ) -> Option<Entry> {
        let start = place_stem(place, offset, chunk);
        let of_place = self.stems().ok()?.into_iter().filter(|stem| stem.starts_with(&start));
        let (_, about) = of_place
            .filter_map(|stem| {
                let file = open_file(self.dir(), &stem, "about", false).ok()?;
                let used = file.metadata().and_then(|stat| stat.modified());
                Some((used.unwrap_or(SystemTime::UNIX_EPOCH), About::read(&file)?))
            })
            .max_by_key(|(used, _)| *used)?;
        self.open_entry(place, about).ok()
    }

    /// Stems of all files here, sorted. Files that are not ours are left alone.
    pub(super) fn stems(&self) -> io::Result<Vec<String>> {
        let mut stems = Vec::new();
        for entry in rustix::fs::Dir::read_from(self.dir())? {
            let entry = entry?;
            let name = Path::new(OsStr::from_bytes(entry.file_name().to_bytes()));
            let ending = name.extension().and_then(OsStr::to_str).unwrap_or_default();
            let stem = name.file_stem().and_then(OsStr::to_str).unwrap_or_default();
            let is_stem = stem.len() == 65
                && stem.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
            if is_stem && ENDINGS.contains(&ending) {
                stems.push(stem.to_owned());
            }
        }
        stems.sort_unstable();
        stems.dedup();
        Ok(stems)
    }
}
