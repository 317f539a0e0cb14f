//! Verifying an archive: all of it is read, and what can be checked is.
//!
//! First the tree and the tables, which is metadata only: every inode reachable and counted,
//! every entry what its inode is, every name findable, every symlink, attribute, owner and inode
//! number readable. This also collects the blocks that hold files' contents. They are then read
//! once each, in the order they lie in, by several threads, and must decode to as many bytes as
//! files need of them.
//!
//! The format has no checksums of its own. gzip and xz have, so that damage to what they compressed
//! is always found; with the other compressors, and in blocks that are stored as they are, changed
//! bytes that still decode are not.

mod blocks;
mod survey;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use serde::Serialize;

use super::bucket::Backups;
use super::id::BackupId;
use super::list::BackupState;
use super::open::SourceRequest;
use crate::cache::DiskLimit;
use crate::failure::{Code, Failure};
use crate::squashfs::{self, Archive};
use crate::types::{ArchiveOffset, InodeRef};
use survey::Survey;

/// How far a verification is; read it from another thread while it goes on.
#[derive(Debug, Default)]
pub struct VerifyProgress {
    /// Bytes of stored blocks that were checked.
    pub bytes: AtomicU64,
    /// Bytes there are to check; 0 until it is known.
    pub total: AtomicU64,
}

/// What was found to be whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Files of all kinds, hard links counted once.
    pub inodes: u64,
    /// Data and fragment blocks.
    pub blocks: u64,
    /// Stored bytes of those blocks.
    pub bytes: u64,
}

/// The damage that lies first in the archive.
#[derive(Default)]
struct First(Option<Damage>);

struct Damage {
    at: ArchiveOffset,
    error: squashfs::Error,
    owner: Owner,
}

/// Whom damage concerns.
#[derive(Clone, Debug)]
enum Owner {
    /// The file at this path, relative to the root.
    Path(Vec<u8>),
    /// Whichever file has this inode.
    Inode(InodeRef),
    /// Whichever file's extended attributes cannot be read, if any.
    Xattrs,
    /// None, or none that is known.
    Nobody,
}

impl From<Option<InodeRef>> for Owner {
    fn from(inode: Option<InodeRef>) -> Self {
        inode.map_or(Self::Nobody, Self::Inode)
    }
}

impl First {
    /// Keeps damage that lies before what was found so far.
    ///
    /// # Errors
    /// Gives back what is no damage, such as a failure of the network.
    fn note(&mut self, error: squashfs::Error, owner: Owner) -> Result<(), squashfs::Error> {
        let squashfs::Error::Corrupt { at, .. } = error else { return Err(error) };
        if self.0.as_ref().is_none_or(|first| at < first.at) {
            self.0 = Some(Damage { at, error, owner });
        }
        Ok(())
    }
}

/// Reads all of `archive`, its blocks with `jobs` threads.
///
/// # Errors
/// [`Code::Corrupt`] for the damage that lies first in it, with the structure, its offset and, where
/// there is one, the path of a file that it concerns; else why the archive cannot be read.
pub fn verify(
    archive: &Archive,
    jobs: u16,
    progress: &VerifyProgress,
) -> Result<Verified, Failure> {
    let mut first = First::default();
    let survey = Survey::of(archive, &mut first)?;
    let inodes = survey.inodes();
    let claims = survey.into_claims()?;
    let (blocks, bytes) = (claims.len() as u64, blocks::total_bytes(&claims));
    blocks::check(archive, &claims, jobs, progress, &mut first)?;
    match first.0 {
        None => Ok(Verified { inodes, blocks, bytes }),
        Some(damage) => Err(damage.tell(archive)),
    }
}

impl Damage {
    fn tell(self, archive: &Archive) -> Failure {
        let mut readable = archive.walk().flatten();
        let path = match self.owner {
            Owner::Path(path) => Some(path),
            Owner::Inode(owner) => {
                readable.find(|entry| entry.inode.reference == owner).map(|entry| entry.path)
            }
            Owner::Xattrs => {
                readable.find(|entry| archive.xattrs(&entry.inode).is_err()).map(|entry| entry.path)
            }
            Owner::Nobody => None,
        };
        let mut failure = Failure::from(self.error);
        if let Some(path) = path {
            let path = String::from_utf8_lossy(&path);
            failure.message.push_str(&format!("; this concerns /{path}"));
        }
        failure
    }
}

impl Backups {
    /// Verifies a backup: its metadata, that the archive has the size it says, and the archive as
    /// [`verify()`] does, on a thread that may block. An expired backup is verified like any other.
    ///
    /// # Errors
    /// As [`Backups::metadata`] and [`verify()`]; [`Code::Corrupt`] also for an archive of another
    /// size than the metadata says.
    pub async fn verify(
        &self,
        id: &BackupId,
        jobs: u16,
        progress: Arc<VerifyProgress>,
    ) -> Result<Verified, Failure> {
        let entry = self.show(id).await?;
        match entry.state {
            BackupState::Ok | BackupState::Expired => {}
            BackupState::DamagedArchive => {
                let problem = entry.problem.unwrap_or_default();
                return Err(Failure::new(Code::Corrupt, format!("backup {id}: {problem}"))
                    .hint("it was cut short or replaced; take another backup"));
            }
            BackupState::DamagedMetadata => return self.metadata(id).await.and(Err(gone(id))),
            _ => return Err(self.contents(id).await?.missing(self)),
        }
        // What is verified is what the bucket holds.
        let source = SourceRequest { disk_cache: DiskLimit::Off, ..self.archive(id)? };
        let shown = id.to_string();
        let work = move || {
            let verified = verify(&source.open()?.archive, jobs, &progress);
            verified.map_err(|failure| Failure {
                message: format!("backup {shown}: {}", failure.message),
                ..failure
            })
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|error| Err(Failure::new(Code::Failed, format!("verifying: {error}"))))
    }
}

/// The metadata could not be read, and then it could.
fn gone(id: &BackupId) -> Failure {
    Failure::new(Code::Changed, format!("the metadata of backup {id} was replaced meanwhile"))
}
