//! What servers and commands write down in the state directory.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::mounts::MountInfo;
use crate::inode_ops::DirectoryId;
use crate::names;

/// What a running server wrote down about itself. Holds no secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Where it is mounted, absolute and without symlinks.
    #[serde(flatten, with = "names::mountpoint")]
    pub mountpoint: PathBuf,
    /// The source, with query string and user info left out.
    pub source: String,
    /// The server's process id.
    pub pid: u32,
    /// The upper directory; none for a read-only mount.
    #[serde(flatten, with = "names::upper")]
    pub upper: Option<PathBuf>,
    /// Whether the upper was made for this mount and goes with it.
    pub upper_is_ours: bool,
    /// Seconds since the epoch when it was mounted.
    pub since: u64,
    /// The mount's device number, as `major:minor`: what tells it from another one on the same directory.
    #[serde(default)]
    pub device: Option<String>,
    /// Where paths and numbers of this record mean something.
    #[serde(default)]
    pub place: Option<HostId>,
    /// Control groups of the server's own.
    #[serde(default)]
    pub groups: Vec<PathBuf>,
}

/// A run of this machine, and what is mounted in it for some of its processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostId {
    /// The kernel's name for the time since it was started.
    pub boot: String,
    /// The mount namespace.
    pub mounts: PathBuf,
}

/// Whose upper an upper in the state directory is, written down beside it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// Where it was mounted.
    #[serde(flatten, with = "names::mountpoint")]
    pub mountpoint: PathBuf,
    /// The source, as in [`Record`].
    pub source: String,
    /// Seconds since the epoch when it was mounted.
    pub since: u64,
    /// Whether the user asked to keep it.
    pub kept: bool,
    /// Whether its mount has ended, and it is there for forks of that alone.
    #[serde(default)]
    pub ended: bool,
}

/// A directory outside of the state directory that is removed by whoever made it, unless that is killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Note {
    /// What an archive is unpacked into; locked meanwhile.
    Staging {
        /// The directory.
        #[serde(flatten, with = "names::path")]
        path: PathBuf,
        /// What is to be unpacked, whose place it takes at the end.
        #[serde(flatten, with = "names::target")]
        target: PathBuf,
        /// Which directory that is; none until it is made. Another one by its name is somebody else's.
        id: Option<DirectoryId>,
    },
    /// The work directory beside an upper; of no use without that.
    Work {
        /// The directory.
        #[serde(flatten, with = "names::path")]
        path: PathBuf,
        /// The upper.
        #[serde(flatten, with = "names::upper")]
        upper: PathBuf,
    },
}

impl HostId {
    /// That of this process; `None` without `/proc`.
    pub(crate) fn here() -> Option<Self> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let mounts = std::fs::read_link("/proc/self/ns/mnt").ok()?;
        Some(Self { boot: boot.trim().to_owned(), mounts })
    }
}

impl Record {
    /// Whether `mount` is what this record is of, as far as can be told from numbers that the kernel gives
    /// anew once a mount is gone: certain only while the server lives.
    pub(crate) fn is_of(&self, mount: &MountInfo) -> bool {
        let same_boot = match (&self.place, HostId::here()) {
            (Some(place), Some(here)) => place.boot == here.boot,
            _ => true,
        };
        same_boot
            && match &self.device {
                Some(device) => *device == mount.device,
                None => self.mountpoint == mount.mountpoint,
            }
    }

    /// Whether its mountpoint means the same directory to this process.
    pub(crate) fn is_here(&self) -> bool {
        self.place.is_none() || self.place == HostId::here()
    }
}

impl Note {
    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Staging { path, .. } | Self::Work { path, .. } => path,
        }
    }
}

/// Replaces the file at `path` in one step. What is not finished has a name that is used again, so that killed
/// programs leave no heap of them.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&new)?;
    // Removed unless it is finished.
    let unfinished = tempfile::TempPath::try_from_path(&new)?;
    file.write_all(&serde_json::to_vec_pretty(value)?)?;
    unfinished.persist(path).map_err(|failed| failed.error)
}
