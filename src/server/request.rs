//! What a server is asked for, and what it answers.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::owners::OwnerOptions;
use crate::backup::SourceRequest;
use crate::failure::{Code, Failure};
use crate::inode_ops::DirectoryId;
use crate::{fuse, names};

/// What to mount, where and how. Serialised only through a pipe, as the source can hold
/// a secret, or without it as `on_record`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRequest {
    /// The archive.
    pub source: SourceRequest,
    /// An existing directory, absolute and without symlinks.
    #[serde(flatten, with = "names::mountpoint")]
    pub mountpoint: PathBuf,
    /// What was found there and at the other paths, by whoever looked for them before.
    pub found: Found,
    /// Where changes go; without it the server makes a directory of its own.
    #[serde(flatten, with = "names::upper")]
    pub upper: Option<PathBuf>,
    /// A directory beside the upper for work in progress.
    #[serde(flatten, with = "names::workdir")]
    pub workdir: Option<PathBuf>,
    /// Put what the upper has onto the newest backup of it that its mounts have published, and free the layers that
    /// this takes the place of.
    #[serde(default)]
    pub rebase: bool,
    /// Keep the upper that the server made.
    pub keep_upper: bool,
    /// No changes, no upper.
    pub read_only: bool,
    /// The source shown in `/proc/mounts`.
    pub fsname: Option<String>,
    /// Let users other than the one who mounts in. `None`: if that is root.
    pub allow_other: Option<bool>,
    /// Whose files are shown to be.
    pub owners: OwnerOptions,
    /// Generic mount flags.
    pub flags: fuse::MountFlags,
    /// Let the kernel read and write upper files by itself, where it can.
    pub passthrough: bool,
    /// How long the kernel may remember that a name leads to a file, or to none. `None`: for good.
    pub entry_ttl: Option<Duration>,
    /// How long the kernel may remember a file's attributes. `None`: for good.
    pub attr_ttl: Option<Duration>,
    /// How many files the kernel should remember at most. `None`: as many as cost 12 MiB to know.
    pub max_nodes: Option<usize>,
    /// Put what is read first into the bucket, so that mounts on other machines fetch it ahead.
    pub share_trace: bool,
    /// Fetch all of the archive into the disk cache meanwhile, at so many bytes per second; 0 for as
    /// many as there can be.
    pub fill: Option<u64>,
    /// The manifest of a fork, whose layers are another mount's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork: Option<String>,
}

/// Which directories the paths of a [`MountRequest`] lead to. A server uses no others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// That of [`MountRequest::mountpoint`].
    pub(crate) mountpoint: Option<DirectoryId>,
    /// That of [`MountRequest::upper`].
    pub(crate) upper: Option<DirectoryId>,
    /// That of [`MountRequest::workdir`].
    pub(crate) workdir: Option<DirectoryId>,
}

impl Found {
    /// Of a mountpoint alone.
    pub(crate) fn at(mountpoint: DirectoryId) -> Self {
        Self { mountpoint: Some(mountpoint), ..Self::default() }
    }
}

impl MountRequest {
    /// A writable mount of `source` at `mountpoint` with everything else default.
    pub fn new(source: SourceRequest, mountpoint: PathBuf) -> Self {
        Self {
            source,
            mountpoint,
            found: Found::default(),
            upper: None,
            workdir: None,
            rebase: false,
            keep_upper: false,
            read_only: false,
            fsname: None,
            allow_other: None,
            owners: OwnerOptions::default(),
            flags: fuse::MountFlags::default(),
            passthrough: true,
            entry_ttl: None,
            attr_ttl: None,
            max_nodes: None,
            share_trace: false,
            fill: None,
            fork: None,
        }
    }

    /// What is written down of it once it is a mount of `options`: without the source, which can hold a
    /// secret, and with what was not asked for as it came to be.
    pub(super) fn on_record(&self, options: &fuse::MountOptions) -> Self {
        Self {
            source: SourceRequest { source: String::new(), ..self.source.clone() },
            fsname: Some(options.fsname.clone()),
            allow_other: Some(options.allow_other),
            entry_ttl: Some(options.entry_ttl),
            attr_ttl: Some(options.attr_ttl),
            max_nodes: Some(options.max_nodes),
            fork: None,
            rebase: false,
            ..self.clone()
        }
    }

    /// Refuses what would be refused by the kernel, or left out silently, once other things have been
    /// taken down for this mount.
    ///
    /// # Errors
    /// [`Code::Fuse`], which names the option; [`Code::Usage`] where there is nothing to rebase.
    pub fn check(&self) -> Result<(), Failure> {
        if self.rebase && (self.read_only || self.upper.is_none()) {
            let message = "--rebase is for changes of an earlier mount, which --upper names";
            return Err(Failure::new(Code::Usage, message));
        }
        let Some(option) = self.flags.refused() else { return Ok(()) };
        let message = format!("the mount option {option} is not for ordinary users");
        Err(Failure::new(Code::Fuse, message).hint("leave it out, or mount as root"))
    }
}

/// What a server says once its mount answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Where it is mounted.
    #[serde(flatten, with = "names::mountpoint")]
    pub mountpoint: PathBuf,
    /// The source, with query string and user info left out.
    pub source: String,
    /// The server's process id.
    pub pid: u32,
    /// Where changes go.
    #[serde(flatten, with = "names::upper")]
    pub upper: Option<PathBuf>,
    /// Whether there were files in the directory, which are hidden until the unmount.
    #[serde(rename = "hidesFiles")]
    pub hides_files: bool,
    /// What the user should know besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}
