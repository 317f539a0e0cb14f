//! Fetching an archive, or what is below some of its paths, into the disk cache.

use serde::Serialize;

use super::extract::find;
use super::open::OpenArchive;
use crate::cache::{Warm, Warming};
use crate::failure::{Code, Failure};
use crate::squashfs::{Error, Inode};
use crate::types::{ByteRange, FileKind};

/// What warming did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Warmed {
    /// Bytes that are on disk now, whole chunks.
    pub bytes: u64,
    /// Of these, fetched just now.
    pub fetched_bytes: u64,
}

impl OpenArchive {
    /// Brings the stored blocks of everything at and below `paths` into the disk cache; without paths
    /// the whole archive. Metadata is there from opening it.
    ///
    /// # Errors
    /// [`Code::Usage`] for an archive that is not remote or has no disk cache, [`Code::NotFound`] for
    /// a path that is not in the archive, or why it cannot be fetched or written.
    pub fn warm(&self, paths: &[Vec<u8>], warming: &Warming) -> Result<Warmed, Failure> {
        let name = &self.name;
        let Some(remote) = self.remote.as_ref().filter(|remote| remote.has_disk()) else {
            let message = format!("there is no disk cache for {name}");
            return Err(Failure::new(Code::Usage, message).hint(
                "it is for archives in stores that tell versions apart, unless --disk-cache is off",
            ));
        };
        let what = match paths {
            [] => Warm::All,
            paths => Warm::Ranges(self.blocks_below(paths)?),
        };
        remote.warm(&what, warming)?;
        let [bytes, fetched_bytes] = [&warming.done, &warming.fetched]
            .map(|count| count.load(std::sync::atomic::Ordering::Relaxed));
        Ok(Warmed { bytes, fetched_bytes })
    }

    fn blocks_below(&self, paths: &[Vec<u8>]) -> Result<Vec<ByteRange>, Failure> {
        let archive = &self.archive;
        let mut blocks = Vec::new();
        let mut add = |inode: &Inode| -> Result<(), Error> {
            if inode.kind != FileKind::Regular {
                return Ok(());
            }
            archive.data_blocks(inode, |block| {
                blocks.extend(ByteRange::new(block.at(), block.stored_len().into()));
            })
        };
        for path in paths {
            let inode = find(archive, path)?;
            if inode.kind == FileKind::Directory {
                for entry in archive.walk_from(&inode) {
                    add(&entry?.inode)?;
                }
            } else {
                add(&inode)?;
            }
        }
        Ok(blocks)
    }
}
