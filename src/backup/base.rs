//! What a new backup may begin with: the archive of the backup that its directory is a mount of. What was not changed in
//! the mount is neither fetched, packed nor sent; the store copies it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::bucket::Backups;
use super::id::BackupId;
use super::layout;
use super::open::SourceRequest;
use super::upload::Beginning;
use crate::squashfs::mounted::{ARCHIVE_XATTR, MountedArchive, fingerprint};
use crate::squashfs::write::{self, Base, Compression};
use crate::squashfs::{Archive, Compressor};
use crate::store::{GetRange, Object, ReadRanges};

/// A backup that another may begin with.
#[derive(Debug)]
pub(super) struct BaseBackup {
    pub(super) id: BackupId,
    /// How its archive is opened.
    pub(super) source: SourceRequest,
    /// Its archive, the version of which is `version`.
    object: Object,
    version: Option<crate::store::ETag>,
    /// As the mount has it.
    fingerprint: u64,
    /// The mount's number.
    device: u64,
}

/// The archive that a mount says it is of.
fn mounted_archive(dir: &Path) -> Option<MountedArchive> {
    let mut text = Vec::with_capacity(8 << 10);
    let buffer = rustix::buffer::spare_capacity(&mut text);
    rustix::fs::getxattr(dir, ARCHIVE_XATTR, buffer).ok()?;
    MountedArchive::parse(&text)
}

impl Backups {
    /// The backup in this bucket that `dir` is in a mount of. `None` where it is in no mount of ours.
    ///
    /// # Errors
    /// Why a new backup cannot begin with it.
    pub(super) async fn base_of(&self, dir: &Path) -> Option<Result<BaseBackup, String>> {
        let mounted = mounted_archive(dir)?;
        Some(self.base(dir, mounted).await)
    }

    async fn base(&self, dir: &Path, mounted: MountedArchive) -> Result<BaseBackup, String> {
        let MountedArchive { fingerprint, name } = mounted;
        let elsewhere = || format!("the mount is of {name}, which is no backup in this bucket");
        let id = layout::id_of_archive(&name).ok_or_else(elsewhere)?;
        let object = self.object(&id, layout::ARCHIVE);
        if object.name() != name {
            return Err(elsewhere());
        }
        let unreadable =
            |reason: String| format!("the archive of the mount cannot be read: {reason}");
        let last = object.get_range(GetRange::Last(1), None, 1).await;
        let version = last.map_err(|error| unreadable(error.to_string()))?.etag;
        let source = self.archive(&id).map_err(|failure| unreadable(failure.message))?;
        let device = std::fs::metadata(dir).map_err(|error| unreadable(error.to_string()))?.dev();
        Ok(BaseBackup { id, source, object, version, fingerprint, device })
    }
}

impl BaseBackup {
    /// `archive`, which is its own, as what another begins with, and how that is written.
    ///
    /// # Errors
    /// Why it is not.
    pub(super) fn of<'a>(
        &self,
        archive: &'a Archive,
        asked: Option<Compression>,
    ) -> Result<(Base<'a>, write::Options), String> {
        let superblock = archive.superblock();
        if fingerprint(superblock) != self.fingerprint {
            return Err("the archive of the mount is another by now".into());
        }
        let base = Base::new(archive).mounted_as(self.device);
        let options = base.options(asked.unwrap_or(super::CreateRequest::DEFAULT_COMPRESSION));
        let compressor = superblock.compressor;
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

    /// What the new archive begins with, so many bytes of it.
    pub(super) fn beginning(&self, len: u64) -> Beginning {
        Beginning { object: self.object.clone(), version: self.version.clone(), len }
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
