//! The layers of a mount on disk, and the points between them: a tree that grows with each checkpoint and
//! rollback.
//!
//! Everything is in the mount's work directory, but layer 0, which is the upper itself, wherever that is:
//!
//! ```text
//! WORK/stack.json   the manifest: which layers there are, what each lies on, which is live, the points
//!      stack.new, stack.later   the next one, until it is renamed
//!      layers/N     layer N
//!      layers/M-N   layer N, with those from M on that were merged into it
//!      layers/N.on  a note that it is live now, on what
//!      layers/N.json  the manifest from then on
//!      layers/#N    one that nothing needs any more, until it is removed
//!      stack.spare/ room for what makes room
//!      forks/STACK  a note of a mount that lies on some of them
//! ```
//!
//! Without a manifest there is one layer, 0, which is live. What the manifest does not name is not there: a
//! directory made ahead, or one that is on its way out. So every change is one rename, and whatever was
//! prepared for one that did not come to be, or is left after one that did, goes when the stack is opened
//! next.
//!
//! | file | idea |
//! | --- | --- |
//! | `manifest` | what is in it, as it is written and read |
//! | `tree` | what each change makes of it; no I/O |
//! | `disk` | the single steps on disk, each of which may be the last |
//! | `load` | what is on disk |
//! | `forks` | mounts that lie on layers of another one |
//! | `later` | what nobody waits for |
//! | `merging` | which layers become one, and how |
//! | `readers` | who reads layers besides |
//! | `spare` | room that is kept for when there is none |
//! | `rebase` | a backup takes the place of the lower ones |
//!
//! It belongs to the server, above the overlay, which knows layers that it is given, and below nobody: a
//! layer's number and directory is all that the two have in common. Who holds the lock of the work
//! directory has the stack.

mod disk;
mod forks;
mod later;
mod load;
mod manifest;
mod merging;
mod readers;
mod rebase;
mod spare;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::disk::{Disk, Note, When};
use self::forks::Fork;
pub(super) use self::forks::{LiesOn, plant, read_forks};
pub(super) use self::later::{Flush, Remover, Syncer};
use self::load::{Paired, read_paired};
pub(super) use self::load::{are_in, read};
pub(crate) use self::manifest::FuzzyFile;
pub(super) use self::manifest::{LayerDir, Manifest, Point, Publish, PublishState, Sent};
pub(super) use self::merging::Merging;
use self::readers::Readers;
pub(super) use self::readers::Reading;
pub(super) use self::rebase::Freed;
use self::spare::{Room, is_no_room};
pub(super) use self::tree::no_such;
use crate::backup::BackupId;
use crate::failure::{Code, Failure};
use crate::inode_ops::Directory;
use crate::overlay::{ArchiveIdentity, Layer};
use crate::types::LayerSerial;

/// The stack of one upper and work directory.
#[derive(Debug)]
pub(super) struct Layers {
    disk: Arc<Disk>,
    manifest: Arc<Manifest>,
    /// Whether the manifest is on disk, and the upper knows that it has one.
    begun: bool,
    /// The directory that was made for the next live upper.
    prepared: bool,
    /// Whether notes say more than the manifest on disk.
    noted: bool,
    /// Whether the manifest on disk does not say yet what has become of points in the bucket.
    unsaid: bool,
    /// Layers that nothing needs any more, once the manifest on disk says so.
    gone: Vec<LayerDir>,
    /// How often the manifest on disk was replaced.
    written: u64,
    readers: Readers,
    /// Forks that are yet to come.
    coming: Vec<Fork>,
    boot: String,
}

/// A change that is written, and takes one step to be.
#[derive(Debug)]
pub(super) struct Change {
    disk: Arc<Disk>,
    manifest: Manifest,
    kept: bool,
    committed: bool,
    room: Room,
    /// The directory that is to be the live upper.
    pub(super) next: PathBuf,
    /// Its number.
    pub(super) serial: LayerSerial,
}

impl Change {
    /// Makes the change. Nothing is waited for.
    ///
    /// # Errors
    /// What the kernel says; nothing has changed then.
    pub(super) fn commit(&mut self) -> io::Result<()> {
        let (serial, parent) = (self.serial, self.manifest.parent_of_live());
        self.disk.note(Note { serial, parent, kept: self.kept }, self.room)?;
        self.committed = true;
        Ok(())
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        if !self.committed {
            // One that stays is written over, or removed when the stack is opened.
            let _ = self.disk.unstage_noted(self.serial);
        }
    }
}

impl Layers {
    /// The stack that `upper` and `work` have, of which nothing is changed. `boot` tells this run of the
    /// machine from others.
    ///
    /// # Errors
    /// [`Code::Upper`] where the manifest is damaged, or the two do not belong together.
    pub(super) fn open(upper: &Directory, work: &Directory, boot: String) -> Result<Self, Failure> {
        let disk = Arc::new(Disk::open(upper, work).map_err(|e| failed("open", work.path(), &e))?);
        let Paired { begun, noted, manifest } = read_paired(&disk)?;
        let (manifest, gone) = (Arc::new(manifest), Vec::new());
        disk.open_bases(&manifest.bases).map_err(|error| {
            let shown = manifest.bases.last().map(|base| base.mountpoint.display().to_string());
            let of = shown.unwrap_or_default();
            failed("open the layers of what it was forked from,", Path::new(&of), &error)
        })?;
        Ok(Self {
            disk,
            manifest,
            begun,
            noted,
            unsaid: false,
            gone,
            written: 0,
            readers: Readers::default(),
            coming: Vec::new(),
            prepared: false,
            boot,
        })
    }

    /// What there is, now that nobody else can change it: to be called once the work directory is locked,
    /// and before anything else. Points that were not on disk yet when the machine stopped are as if they
    /// had not been. What no change needs is put aside, for [`Self::remover`].
    ///
    /// # Errors
    /// [`Code::Upper`] where somebody has changed the stack since it was opened, and what the disk says.
    pub(super) fn recover(&mut self) -> Result<(), Failure> {
        let Paired { begun, noted, manifest } = read_paired(&self.disk)?;
        // What notes alone say has ids by chance.
        let same = |manifest: &Manifest| manifest.live() == self.manifest.live();
        if begun != self.begun || (begun && !same(&manifest)) {
            let message = format!("{} has changed meanwhile", self.disk.manifest_path().display());
            return Err(Failure::new(Code::Upper, message).hint("try again"));
        }
        (self.manifest, self.noted) = (Arc::new(manifest), noted);
        let disk = Arc::clone(&self.disk);
        let fail = |error| failed("clear", disk.work_path(), &error);
        disk.unstage(When::Now).and_then(|()| disk.unstage(When::Later)).map_err(fail)?;
        let lost_power = self.begun && self.manifest.boot() != self.boot;
        if lost_power && self.manifest.has_undurable() {
            self.write(self.manifest.without_undurable(), Room::Kept)?;
        } else if self.noted {
            self.write(self.manifest.as_ref().clone(), Room::Kept)?;
        }
        disk.remove_notes(None).map_err(fail)?;
        let listed: Vec<LayerDir> = self.manifest.dirs().collect();
        disk.discard_unlisted(&listed).map_err(fail)
    }

    /// What there is.
    pub(super) fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Whether there was ever more than an upper.
    pub(super) fn is_begun(&self) -> bool {
        self.begun
    }

    /// Whether there is something for [`Self::remover`].
    pub(super) fn has_discarded(&self) -> bool {
        self.disk.has_discarded()
    }

    /// The directory of the live upper.
    pub(super) fn live_dir(&self) -> PathBuf {
        self.disk.layer_path(self.manifest.live())
    }

    /// The frozen layers below the live upper, the bottom one first.
    ///
    /// # Errors
    /// [`Code::Upper`] where one cannot be opened.
    pub(super) fn open_below(&self) -> Result<Vec<Layer>, Failure> {
        self.open_chain(self.manifest.parent_of_live())
    }

    /// The layers up to `top`, the bottom one first.
    ///
    /// # Errors
    /// [`Code::Upper`] where one cannot be opened.
    pub(super) fn open_chain(&self, top: Option<LayerSerial>) -> Result<Vec<Layer>, Failure> {
        let (before, none) = (self.manifest.made_over(), Arc::default());
        let others = |serial| match self.manifest.is_of_before(serial) {
            true => &before,
            false => &none,
        };
        self.open_over(self.manifest.chain(top), &others)
    }

    /// The layers of `chain`, each of which may have been made over the `others` of it.
    fn open_over<'a>(
        &self,
        chain: Vec<LayerSerial>,
        others: &dyn Fn(LayerSerial) -> &'a Arc<[ArchiveIdentity]>,
    ) -> Result<Vec<Layer>, Failure> {
        let path = |serial| self.disk.layer_path(self.manifest.dir_of(serial));
        let open = |serial| Layer::open(&path(serial), serial);
        let layers = chain.into_iter().map(|it| Ok(open(it)?.made_over(Arc::clone(others(it)))));
        layers.collect()
    }

    /// As [`Self::open_chain`], for who reads them besides the mount: as long as it does, none is removed.
    ///
    /// # Errors
    /// As [`Self::open_chain`].
    pub(super) fn read_chain(
        &self,
        top: Option<LayerSerial>,
    ) -> Result<(Vec<Layer>, Reading), Failure> {
        Ok((self.open_chain(top)?, self.readers.read(self.manifest.chain(top))))
    }

    /// As [`Self::read_chain`], of those above layer `below`: over an archive that shows what that one and all below it
    /// show together over `archive`. `None` where that one is not apart from later ones any more.
    ///
    /// # Errors
    /// As [`Self::open_chain`].
    pub(super) fn read_above(
        &self,
        top: LayerSerial,
        below: LayerSerial,
        archive: ArchiveIdentity,
    ) -> Result<Option<(Vec<Layer>, Reading)>, Failure> {
        let before = self.manifest.made_over();
        let others: Arc<[_]> = before.iter().cloned().chain([archive]).collect();
        let chain = self.manifest.chain(Some(top));
        if !chain.contains(&below) {
            return Ok(None);
        }
        let above = chain.iter().copied().filter(|serial| *serial > below).collect();
        Ok(Some((self.open_over(above, &|_| &others)?, self.readers.read(chain))))
    }

    /// Makes the directory of the next live upper, if it is not made yet.
    ///
    /// # Errors
    /// [`Code::Upper`]: what the disk says.
    pub(super) fn prepare(&mut self) -> Result<(), Failure> {
        self.prepare_in(Room::Free)
    }

    fn prepare_in(&mut self, room: Room) -> Result<(), Failure> {
        if !self.begun {
            // In this order: a manifest that says nothing belongs to nobody, but an upper that has one
            // elsewhere is not mounted without it.
            self.write(self.manifest.as_ref().clone(), Room::Free)?;
            let marked = self.disk.set_mark(self.manifest.stack());
            marked.map_err(|error| failed("mark", self.disk.upper_path(), &error))?;
            self.begun = true;
        }
        if !self.prepared {
            let next = self.manifest.next();
            let made = self.disk.make_layer(next, room);
            made.map_err(|error| failed("make", &self.disk.layer_path(next), &error))?;
            self.prepared = true;
        }
        Ok(())
    }

    /// Writes down a checkpoint of the live upper, which becomes a layer. It is for [`Change::commit`] to
    /// happen, and for [`Self::settle`] to end.
    ///
    /// # Errors
    /// [`Code::Upper`]: what the disk says.
    pub(super) fn freezing(
        &mut self,
        point: NewPoint,
        keep: Option<u32>,
    ) -> Result<Change, Failure> {
        self.changing(Room::Free, |manifest| {
            let manifest = keep.map_or_else(|| manifest.clone(), |keep| manifest.keeping(keep));
            manifest.frozen(point)
        })
    }

    /// Writes down that the stack is that up to `top` again, with a new live upper. The one that there is
    /// becomes a layer, kept as `away`, or is not needed any more. As [`Self::freezing`].
    ///
    /// # Errors
    /// As [`Self::freezing`].
    pub(super) fn rolling_back(
        &mut self,
        top: Option<LayerSerial>,
        away: Option<NewPoint>,
    ) -> Result<Change, Failure> {
        self.changing(Room::Kept, |manifest| manifest.rolled_back(top, away))
    }

    fn changing(
        &mut self,
        room: Room,
        change: impl FnOnce(&Manifest) -> Option<Manifest>,
    ) -> Result<Change, Failure> {
        self.prepare_in(room)?;
        let serial = self.manifest.next();
        let manifest = change(&self.manifest).ok_or_else(|| {
            let message = format!("{} has had all layers it can", self.disk.work_path().display());
            Failure::new(Code::Upper, message).hint("back the directory up, and restore it")
        })?;
        let manifest = manifest.on_boot(&self.boot);
        let (disk, next) = (Arc::clone(&self.disk), self.disk.layer_path(serial));
        let away = manifest.rolled_away();
        let kept = away.is_some() && away != self.manifest.rolled_away();
        let change = Change { disk, manifest, kept, committed: false, room, next, serial };
        let staged = change.manifest.to_json();
        let staged = staged.and_then(|bytes| self.disk.stage_noted(serial, &bytes, room));
        staged.map_err(|error| failed("write", &self.disk.manifest_path(), &error))?;
        Ok(change)
    }

    /// Takes over a change that was tried, and says whether it came to be. If not, the directory that was
    /// prepared for it is given up, as it may not be empty any more.
    pub(super) fn settle(&mut self, mut change: Change) -> bool {
        self.prepared = false;
        if change.committed {
            let manifest = std::mem::take(&mut change.manifest);
            self.noted = true;
            self.adopt(manifest);
        } else {
            self.put_aside(vec![change.serial.into()]);
        }
        change.committed
    }

    /// Writes down files of a point that are of no one moment.
    ///
    /// # Errors
    /// [`Code::Upper`]: what the disk says.
    pub(super) fn set_fuzzy(&mut self, id: &BackupId, files: Vec<PathBuf>) -> Result<(), Failure> {
        self.write(self.manifest.with_fuzzy(id, files), Room::Free)
    }

    /// Takes note of what has become of a point in the bucket. It is for [`Self::flushing`] to be written down: who
    /// does not find it there finds it in the bucket.
    pub(super) fn set_publish(&mut self, id: &BackupId, state: PublishState) {
        let manifest = self.manifest.with_publish(id, state);
        if manifest != *self.manifest {
            self.unsaid = true;
            self.adopt(manifest);
        }
    }

    /// Forgets a backup that is not to be had any more. It is written down with what comes next.
    pub(super) fn forget_sent(&mut self, id: &BackupId) {
        let mut manifest = self.manifest.as_ref().clone();
        manifest.sent.retain(|sent| sent.id != *id);
        self.adopt(manifest);
    }

    /// What writes down that all points of `synced` are on disk, and how much room layers take, with all
    /// that notes say; `None` where that is written already. It may take its time, and other changes may
    /// come meanwhile.
    ///
    /// # Errors
    /// [`Code::Upper`] where it would be too much.
    pub(super) fn flushing(&self, facts: Facts) -> Result<Option<Flush>, Failure> {
        let manifest = self.manifest.with_facts(&facts);
        let is_said = !self.noted && !self.unsaid;
        if !self.begun || (manifest == *self.manifest && is_said) {
            return Ok(None);
        }
        let manifest = manifest.on_boot(&self.boot);
        let path = self.disk.manifest_path();
        let bytes = manifest.to_json().map_err(|error| failed("write", &path, &error))?;
        let (disk, written) = (Arc::clone(&self.disk), self.written);
        let room = if self.gone.is_empty() { Room::Free } else { Room::Kept };
        Ok(Some(Flush { disk, manifest, bytes, facts, written, room }))
    }

    /// Puts in its place what was flushed; `false` where something else was put there meanwhile, and it has
    /// to be done again.
    ///
    /// # Errors
    /// [`Code::Upper`]: what the disk says.
    pub(super) fn flushed(&mut self, flush: Flush) -> Result<bool, Failure> {
        let is_current = flush.written == self.written;
        let placed = match is_current {
            true => self.disk.commit(When::Later),
            false => self.disk.unstage(When::Later),
        };
        placed.map_err(|error| failed("write", &self.disk.manifest_path(), &error))?;
        if is_current {
            // There may be notes of later changes.
            self.adopt(self.manifest.with_facts(&flush.facts));
            self.is_written(&flush.manifest);
        }
        Ok(is_current)
    }

    /// Forgets points, and layers that nothing needs then.
    ///
    /// # Errors
    /// [`Code::Upper`]: what the disk says.
    pub(super) fn forget(&mut self, ids: &[BackupId]) -> Result<(), Failure> {
        self.write(self.manifest.without(ids), Room::Kept)
    }

    /// Keeps `count` points without a name from now on; gives what this forgets.
    ///
    /// # Errors
    /// [`Code::Upper`]: what the disk says.
    pub(super) fn keep(&mut self, count: u32) -> Result<Vec<BackupId>, Failure> {
        let (before, manifest) = (Arc::clone(&self.manifest), self.manifest.keeping(count));
        if manifest != *before {
            if !self.begun {
                self.prepare()?;
            }
            self.write(manifest, Room::Kept)?;
        }
        let gone = before.points().iter().filter(|point| self.manifest.point(&point.id).is_none());
        Ok(gone.map(|point| point.id.clone()).collect())
    }

    /// Writes the manifest, and waits until the disk has it.
    fn write(&mut self, manifest: Manifest, room: Room) -> Result<(), Failure> {
        let manifest = manifest.on_boot(&self.boot);
        let path = self.disk.manifest_path();
        let staged = manifest.to_json().and_then(|bytes| self.disk.stage(&bytes, When::Now, room));
        let written = staged.and_then(|()| self.disk.commit(When::Now)).map_err(|error| {
            let _ = self.disk.unstage(When::Now);
            failed("write", &path, &error)
        });
        written?;
        self.adopt(manifest);
        self.is_written(&Arc::clone(&self.manifest));
        Ok(())
    }

    /// The manifest on disk is `manifest`, or that with what later notes say.
    fn is_written(&mut self, manifest: &Manifest) {
        self.written += 1;
        if self.noted
            && let Err(error) = self.disk.remove_notes(Some(manifest.next()))
        {
            tracing::debug!("notes in {} are old: {error}", self.disk.work_path().display());
        }
        self.noted &= manifest.live() != self.manifest.live();
        self.unsaid &= manifest.publishes() != self.manifest.publishes();
        let gone = std::mem::take(&mut self.gone);
        let (later, gone) = gone.into_iter().partition(|dir| manifest.has_dir(*dir));
        self.gone = later;
        self.put_aside(gone);
    }

    fn adopt(&mut self, manifest: Manifest) {
        let before = std::mem::replace(&mut self.manifest, Arc::new(manifest));
        self.gone.extend(before.dirs().filter(|dir| !self.manifest.has_dir(*dir)));
    }

    /// What cannot be put aside is, when the stack is opened next.
    fn put_aside(&self, dirs: Vec<LayerDir>) {
        let upper = LayerDir::from(LayerSerial::default());
        for dir in dirs.into_iter().filter(|dir| *dir != upper) {
            if let Err(error) = self.disk.discard(dir) {
                let path = self.disk.layer_path(dir);
                tracing::warn!("{} is not put aside yet: {error}", path.display());
            }
        }
    }

    /// Keeps room for what makes room, as much as is not kept yet.
    ///
    /// # Errors
    /// [`Code::Upper`]: what the disk says.
    pub(super) fn fill_spare(&self) -> Result<(), Failure> {
        if !self.begun {
            return Ok(());
        }
        let path = self.disk.manifest_path();
        let filled = self.manifest.to_json().and_then(|it| self.disk.spare().fill(it.len() as u64));
        filled.map_err(|error| failed("keep room for", &path, &error))
    }

    /// Makes a bit of room with what is kept for that. `false` where there is nothing.
    pub(super) fn give_up_spare(&self) -> bool {
        self.disk.spare().give_up()
    }

    /// What removes all that was put aside, which may take its time, and needs nothing of this.
    pub(super) fn remover(&self) -> Remover {
        let upper = self.begun && !self.noted && !self.manifest.has(LayerSerial::default());
        Remover { disk: Arc::clone(&self.disk), readers: self.readers.clone(), upper }
    }

    /// What asks the disk to have all that it was given, as [`Self::remover`].
    pub(super) fn syncer(&self) -> Syncer {
        Syncer { disk: Arc::clone(&self.disk) }
    }

    /// Leaves nothing that is not needed: the directory that was prepared, and where there is no layer but
    /// the upper and no point, the manifest.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.prepared) {
            self.disk.unmake_layer(self.manifest.next())?;
        }
        if self.begun && self.manifest.is_trivial() {
            self.disk.clear_mark()?;
            self.disk.remove_manifest()?;
            self.disk.remove_spare()?;
            self.begun = false;
        }
        self.disk.unmake_layers()
    }
}

/// What was found out of what there is.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// Points that the disk has.
    pub(super) synced: Vec<BackupId>,
    /// How much room layers take, in bytes.
    pub(super) bytes: Vec<(LayerSerial, u64)>,
}

/// What a point is made of.
#[derive(Clone, Debug)]
pub(super) struct NewPoint {
    pub(super) id: BackupId,
    pub(super) name: Option<String>,
    /// Milliseconds since the epoch.
    pub(super) created_ms: u64,
    /// What it is to be in the bucket.
    pub(super) publish: Option<Publish>,
    /// Whether a fork is to lie on it. Then it is not one more of those that are kept.
    pub(super) for_fork: bool,
}

fn failed(doing: &str, path: &Path, error: &io::Error) -> Failure {
    let failure = Failure::io(doing, path, error);
    let failure = Failure { code: Code::Upper, ..failure };
    match is_no_room(error) {
        true => failure.hint("nothing was changed; make room on its file system"),
        false => failure,
    }
}

/// Numbers of layers.
type Serials = BTreeSet<LayerSerial>;
