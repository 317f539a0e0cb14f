//! One checkpoint made a backup: the changed layers packed onto the archive of what was published before it.
//!
//! That archive shows what the layers up to its own show over the archive of the mount. So of the layers only those above
//! are put on it, and only what they hold is sent. Where it is gone, the one before that does as well, and in the end the
//! archive of the mount.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::runtime::Handle;

use super::super::layers::{Point, Sent};
use super::background::Background;
use super::published::Outcome;
use crate::backup::{Backups, BucketRequest, CreateProgress, OpenArchive, PublishRequest};
use crate::cache::DiskLimit;
use crate::failure::{Code, Failure};
use crate::overlay::{self, ArchiveIdentity, Layer, Overlay};
use crate::squashfs::Archive;
use crate::squashfs::mounted::MountedArchive;

/// What checkpoints are published over, and where to.
pub(in super::super) struct Target {
    archive: Arc<Archive>,
    mounted: Option<MountedArchive>,
    disk_cache: DiskLimit,
    pub(super) bucket: BucketRequest,
    /// Does the requests of the archive, if it is elsewhere.
    pub(super) runtime: Option<Handle>,
}

impl Target {
    /// That of a mount of `opened`, whose requests `runtime` does.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub(in super::super) fn of(
        opened: &OpenArchive,
        runtime: Option<Handle>,
    ) -> Result<Self, String> {
        let Some(bucket) = opened.bucket.clone() else {
            return Err(format!("the mount is of {}, which is no backup in a bucket", opened.name));
        };
        let (archive, mounted) = (Arc::clone(&opened.archive), opened.as_mounted());
        Ok(Self { archive, mounted, disk_cache: opened.source.disk_cache, bucket, runtime })
    }
}

/// A checkpoint on its way into the bucket.
pub(super) struct Making<'a> {
    pub(super) background: &'a Background,
    pub(super) target: &'a Target,
    pub(super) runtime: &'a Handle,
    pub(super) backups: &'a Backups,
    pub(super) point: &'a Point,
    pub(super) request: PublishRequest,
    pub(super) progress: Arc<CreateProgress>,
}

/// What has become of one way to make it: else why another is to be tried, in words that go on after the id.
type Tried = Result<Outcome, String>;

impl Making<'_> {
    /// Makes it, onto the newest backup that will do.
    pub(super) fn make(&self) -> Result<Outcome, Failure> {
        let mut passed_over = Vec::new();
        for sent in self.earlier()? {
            match self.make_onto(&sent)? {
                Ok(outcome) => return Ok(outcome.after(passed_over)),
                Err(why) => {
                    let id = &sent.id;
                    let line = format!("it does not begin with backup {id}, which {why}");
                    tracing::warn!("checkpoint {}: {line}", self.point.id);
                    passed_over.push(line);
                    if let Some(mut layers) = self.background.layers() {
                        layers.forget_sent(id);
                    }
                }
            }
        }
        let (layers, _are_read) = self.layers(|layers, top| layers.read_chain(Some(top)))?;
        let Target { archive, mounted, .. } = self.target;
        Ok(self.send(archive, layers, mounted.clone())?.after(passed_over))
    }

    /// What was published of what it lies on, the newest first.
    fn earlier(&self) -> Result<Vec<Sent>, Failure> {
        // What is left out of a backup is not to be found in it.
        if self.request.whole || self.backups.is_inside(&self.request.dir) {
            return Ok(Vec::new());
        }
        self.layers(|layers, top| {
            Ok(layers.manifest().sent_below(top).into_iter().cloned().collect())
        })
    }

    /// Asks the layers, where the point is still there.
    fn layers<T>(
        &self,
        ask: impl FnOnce(&super::Layers, crate::types::LayerSerial) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let gone = || Failure::new(Code::NotFound, "it was forgotten meanwhile");
        let layers = self.background.layers().ok_or_else(gone)?;
        let serial = layers.manifest().point(&self.point.id).ok_or_else(gone)?.serial;
        ask(&layers, serial)
    }

    fn make_onto(&self, sent: &Sent) -> Result<Tried, Failure> {
        let is_there = || {
            let asked = self.backups.earlier(&sent.id, sent.bytes, self.target.disk_cache);
            self.runtime.block_on(asked)
        };
        let source = match is_there()? {
            Ok(source) => source,
            Err(why) => return Ok(Err(why)),
        };
        let cannot_be_read = |failure: Failure| format!("cannot be read: {}", failure.message);
        let opened = match source.open() {
            Ok(opened) => opened,
            Err(failure) if failure.passes => return Err(failure),
            Err(failure) => return Ok(Err(cannot_be_read(failure))),
        };
        let mounted = ArchiveIdentity::of(&self.target.archive);
        let read = self.layers(|layers, top| layers.read_above(top, sent.serial, mounted))?;
        let Some((layers, _are_read)) = read else {
            return Ok(Err("is of layers that are one with later ones by now".into()));
        };
        let failure = match self.send(&opened.archive, layers, opened.as_mounted()) {
            Ok(outcome) => return Ok(Ok(outcome)),
            Err(failure) => failure,
        };
        if self.progress.cancel().load(Ordering::Relaxed) {
            return Err(failure);
        }
        // It may have been deleted in the middle of it.
        let why = match is_there() {
            Ok(Err(why)) => why,
            _ if matches!(failure.code, Code::NotFound | Code::Changed | Code::Corrupt) => {
                cannot_be_read(failure)
            }
            _ => return Err(failure),
        };
        self.progress.begin_again();
        Ok(Err(why))
    }

    fn send(
        &self,
        archive: &Arc<Archive>,
        layers: Vec<Layer>,
        name: Option<MountedArchive>,
    ) -> Result<Outcome, Failure> {
        let options = overlay::Options::default();
        let tree = Overlay::stacked(Arc::clone(archive), layers, None, options)?.named(name);
        let (tree, progress) = (Arc::new(tree), Arc::clone(&self.progress));
        let sent = self.backups.try_publish(&tree, &self.request, progress);
        Ok(Outcome::of(self.runtime.block_on(sent)?))
    }
}
