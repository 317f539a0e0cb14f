//! What a new backup may begin with: the archive of the backup that its directory is a mount of, or its tree is made
//! over. What was not changed is neither fetched, packed nor sent; the store copies it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::bucket::Backups;
use super::create::CreateRequest;
use super::id::BackupId;
use super::layout;
use super::open::{OpenArchive, SourceRequest};
use super::upload::Beginning;
use crate::overlay::Overlay;
use crate::squashfs::mounted::{ARCHIVE_XATTR, MountedArchive};
use crate::squashfs::write::{self, Base, Compression};
use crate::squashfs::{Archive, Compressor};
use crate::store::{ETag, GetRange, Object, ReadRanges};

/// A backup that another may begin with.
pub(super) struct BaseBackup {
    pub(super) id: BackupId,
    /// Its archive, and the version that the mount has.
    object: Object,
    version: ETag,
    reached: Reached,
}

/// How the archive is read, and what of the tree is known to be in it.
enum Reached {
    /// It is opened once more; what is in the mount of this number says what is in it.
    Mount(Box<SourceRequest>, u64),
    /// It is open, and whoever tells of the tree says what is in it.
    Open(Arc<Archive>),
}

/// An archive that another begins with, open.
pub(super) enum OpenBase {
    /// With what its requests need.
    Own(Box<OpenArchive>, u64),
    /// Somebody else's.
    Shared(Arc<Archive>),
}

/// The archive that `dir` says its mount is of, and the mount's number.
fn mounted_archive(dir: &Path) -> Option<(MountedArchive, u64)> {
    let mut text = Vec::with_capacity(8 << 10);
    let buffer = rustix::buffer::spare_capacity(&mut text);
    rustix::fs::getxattr(dir, ARCHIVE_XATTR, buffer).ok()?;
    let device = std::fs::metadata(dir).ok()?.dev();
    Some((MountedArchive::parse(&text)?, device))
}

impl Backups {
    /// The backup in this bucket that `dir` is in a mount of. `None` where it is in no mount of ours.
    ///
    /// # Errors
    /// Why a new backup cannot begin with it.
    pub(super) async fn base_of(&self, dir: &Path) -> Option<Result<BaseBackup, String>> {
        let dir = dir.to_owned();
        // A mount whose server hangs keeps no one else waiting.
        let mounted = spawn_blocking(move || mounted_archive(&dir)).await;
        let (mounted, device) = mounted.ok().flatten()?;
        let reach = |source| Reached::Mount(Box::new(source), device);
        Some(self.base(mounted, reach).await)
    }

    /// Whether `dir` is in a mount of a backup that this bucket has as the mount has it.
    pub(crate) async fn has_mounted(&self, dir: &Path) -> bool {
        matches!(self.base_of(dir).await, Some(Ok(_)))
    }

    /// The backup in this bucket that `tree` is made over.
    ///
    /// # Errors
    /// Why a new backup cannot begin with it.
    pub(super) async fn base_of_tree(&self, tree: &Overlay) -> Result<BaseBackup, String> {
        let source = tree.source().cloned();
        let source = source.ok_or("it is not known where the archive of the tree is")?;
        let archive = Arc::clone(tree.archive());
        self.base(source, |_| Reached::Open(archive)).await
    }

    async fn base(
        &self,
        mounted: MountedArchive,
        reach: impl FnOnce(SourceRequest) -> Reached,
    ) -> Result<BaseBackup, String> {
        let MountedArchive { version, name } = mounted;
        let elsewhere = || format!("the mount is of {name}, which is no backup in this bucket");
        let id = layout::id_of_archive(&name).ok_or_else(elsewhere)?;
        let object = self.object(&id, layout::ARCHIVE);
        if !self.is_named(&object, &name) {
            return Err(elsewhere());
        }
        let unreadable =
            |reason: String| format!("the archive of the mount cannot be read: {reason}");
        let last = object.get_range(GetRange::Last(1), None, 1).await;
        let last = last.map_err(|error| unreadable(error.to_string()))?;
        let version = ETag(version);
        if last.etag.as_ref() != Some(&version) {
            return Err(is_another());
        }
        let source = self.archive(&id).map_err(|failure| unreadable(failure.message))?;
        Ok(BaseBackup { id, object, version, reached: reach(source) })
    }

    /// Whether `name` is that of `object`. A directory may be reached by several paths.
    fn is_named(&self, object: &Object, name: &str) -> bool {
        let ours = object.name();
        let is_same_file = || {
            let [ours, theirs] = [&*ours, name].map(std::fs::canonicalize);
            matches!((ours, theirs), (Ok(ours), Ok(theirs)) if ours == theirs)
        };
        ours == name || self.is_local() && is_same_file()
    }
}

fn is_another() -> String {
    "the archive in the bucket is another than the mount's".to_owned()
}

impl BaseBackup {
    /// Opens its archive, where it is not open already.
    ///
    /// # Errors
    /// Why it is not what another can begin with.
    pub(super) fn open(&self) -> Result<OpenBase, String> {
        match &self.reached {
            Reached::Open(archive) => Ok(OpenBase::Shared(Arc::clone(archive))),
            Reached::Mount(source, device) => {
                let opened = source.open().map_err(|failure| failure.message)?;
                match opened.version.as_ref() == Some(&self.version) {
                    true => Ok(OpenBase::Own(Box::new(opened), *device)),
                    false => Err(is_another()),
                }
            }
        }
    }
}

impl OpenBase {
    /// What another begins with, and how that is written.
    ///
    /// # Errors
    /// Why none can.
    pub(super) fn begin(
        &self,
        asked: Option<Compression>,
    ) -> Result<(Base<'_>, write::Options), String> {
        let archive = match self {
            Self::Own(opened, _) => &opened.archive,
            Self::Shared(archive) => archive,
        };
        let base = match self {
            Self::Own(_, device) => Base::new(archive).mounted_as(*device),
            Self::Shared(_) => Base::new(archive),
        };
        let options = base.options(asked.unwrap_or(CreateRequest::DEFAULT_COMPRESSION));
        let compressor = archive.superblock().compressor;
        let Some(options) = options else {
            return Err(format!("the archive of the mount is of {compressor}, which is only read"));
        };
        match asked.map(kind_of) {
            Some(asked) if asked != compressor => {
                Err(format!("the archive of the mount is of {compressor}, and not of {asked}"))
            }
            _ => Ok((base, options)),
        }
    }
}

impl BaseBackup {
    /// What the new archive begins with, so many bytes of it.
    pub(super) fn beginning(&self, len: u64) -> Beginning {
        let version = Some(self.version.clone());
        Beginning { object: self.object.clone(), version, len }
    }
}

fn kind_of(compression: Compression) -> Compressor {
    match compression {
        Compression::Lz4 => Compressor::Lz4,
        Compression::Zstd(_) => Compressor::Zstd,
        Compression::Gzip(_) => Compressor::Gzip,
        Compression::Xz => Compressor::Xz,
    }
}
