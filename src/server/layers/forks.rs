//! Forks: mounts that lie on layers of another one.
//!
//! A fork's manifest names whose layers they are ([`Base`]), and in the work directory that they are in is a note of the
//! fork, `WORK/forks/STACK`, for as long as the fork's own work directory is there. As long as there is a note, what
//! the fork lies on is needed as what a point lies on is.
//!
//! ```text
//! a fork comes to be   its manifest | a note of it with each base | its layers are opened
//! a fork ends          its work directory goes | the notes of it
//! ```
//!
//! In between the mount that is forked keeps the layers by itself. So a note without a fork is one of a fork that has ended,
//! and a fork without a note one that has not come to be; both are left by who was killed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::dead::remove_locked_upper;
use super::super::record::write_json;
use super::super::state::read_origin;
use super::disk::{self, Disk, MANIFEST};
use super::manifest::{Manifest, Publish, PublishState, StackId};
use super::spare::Room;
use super::{Layers, Serials, failed};
use crate::failure::{Code, Failure};
use crate::inode_ops::Directory;
use crate::names;
use crate::types::LayerSerial;

/// The directory of notes, in a work directory.
pub(in super::super) const FORKS: &str = "forks";

/// How old a note is that will not be finished any more.
const UNFINISHED: Duration = Duration::from_mins(10);

/// Layers of a manifest that are another mount's, which it was forked from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Base {
    /// By what that mount's upper knows its manifest.
    pub(super) stack: StackId,
    /// The layers.
    pub(super) layers: Vec<LayerSerial>,
    /// Where it was mounted.
    #[serde(flatten, with = "names::mountpoint")]
    pub(in super::super) mountpoint: PathBuf,
    /// Where layer 0 is.
    #[serde(flatten, with = "names::upper")]
    pub(super) upper: PathBuf,
    /// Where the others are.
    #[serde(flatten, with = "names::workdir")]
    pub(in super::super) work: PathBuf,
}

/// A mount that lies on layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Fork {
    /// By what its upper knows its manifest.
    pub(super) stack: StackId,
    /// The topmost layer of those.
    pub(super) top: LayerSerial,
    /// Where it was mounted.
    #[serde(flatten, with = "names::mountpoint")]
    pub(in super::super) mountpoint: PathBuf,
    /// Its work directory; none of one that is yet to come.
    #[serde(flatten, with = "names::workdir")]
    pub(super) work: Option<PathBuf>,
}

impl Fork {
    /// Whether it has ended, as far as can be told.
    fn is_gone(&self) -> bool {
        let Some(work) = &self.work else { return false };
        match disk::read_file(&work.join(MANIFEST)) {
            Ok(None) => true,
            Ok(Some(bytes)) => {
                Manifest::parse(&bytes).is_ok_and(|manifest| *manifest.stack() != self.stack)
            }
            // It may be where nobody can look at the moment.
            Err(_) => false,
        }
    }
}

/// The forks that lie on layers of the work directory at `work`. Notes of those that have ended are removed, if asked to
/// `clear`.
///
/// # Errors
/// Where the notes cannot be read.
pub(in super::super) fn read_forks(work: &Path, clear: bool) -> io::Result<Vec<Fork>> {
    let entries = match std::fs::read_dir(work.join(FORKS)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut forks = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let Some(bytes) = disk::read_file(&path)? else { continue };
        let Ok(fork) = serde_json::from_slice::<Fork>(&bytes) else {
            // It is just being written, unless whoever did was killed.
            if clear && is_old(&path) {
                let _ = std::fs::remove_file(&path);
            }
            continue;
        };
        match fork.is_gone() {
            false => forks.push(fork),
            true if clear => drop(std::fs::remove_file(&path)),
            true => {}
        }
    }
    forks.sort_by(|one, other| one.mountpoint.cmp(&other.mountpoint));
    Ok(forks)
}

/// Whether nobody can still be writing what is at `path`.
fn is_old(path: &Path) -> bool {
    let written = path.symlink_metadata().and_then(|meta| meta.modified()).ok();
    written.and_then(|at| at.elapsed().ok()).is_some_and(|age| age > UNFINISHED)
}

impl Base {
    fn failed(&self, problem: &str) -> Failure {
        let message = format!(
            "the layers that {} had when it was forked {problem}: {}",
            self.mountpoint.display(),
            self.work.display()
        );
        Failure::new(Code::Upper, message)
    }

    /// Notes that `fork` lies on it.
    fn note(&self, fork: &Fork) -> Result<(), Failure> {
        let fail = |error: io::Error| self.failed(&format!("cannot be had: {error}"));
        let read = disk::read_file(&self.work.join(MANIFEST)).map_err(fail)?;
        let manifest = read.and_then(|bytes| Manifest::parse(&bytes).ok());
        if manifest.is_none_or(|manifest| *manifest.stack() != self.stack) {
            return Err(self.failed("are gone"));
        }
        let forks = self.work.join(FORKS);
        let noted = disk::read_file(&forks.join(fork.stack.to_string())).ok().flatten();
        let noted = noted.and_then(|bytes| serde_json::from_slice::<Fork>(&bytes).ok());
        if noted.is_some_and(|noted| noted == *fork) {
            // There may be no room for it once more.
            return Ok(());
        }
        let fail = |error: io::Error| failed("note a fork in", &self.work, &error);
        let note = forks.join(fork.stack.to_string());
        let write = || {
            match std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
                .create(&forks)
            {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            write_json(&note, fork)
        };
        match write() {
            // The last fork there was has ended in between, and taken the directory away.
            Err(error) if error.kind() == io::ErrorKind::NotFound => write(),
            written => written,
        }
        .map_err(|error| {
            // It stays while there are others.
            let _ = std::fs::remove_dir(&forks);
            fail(error)
        })
    }

    /// Takes the note of a fork away.
    fn leave(&self, stack: &StackId) -> io::Result<()> {
        let forks = self.work.join(FORKS);
        match std::fs::remove_file(forks.join(stack.to_string())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // It stays while there are others.
        let _ = std::fs::remove_dir(forks);
        Ok(())
    }
}

/// Makes an upper and its work directory, both empty, those of a fork, whose manifest is `json`.
///
/// # Errors
/// [`Code::Upper`] for what is no manifest of a fork, where the layers that it lies on are gone, or what the disk says.
pub(in super::super) fn plant(
    upper: &Directory,
    work: &Directory,
    json: &str,
) -> Result<(), Failure> {
    let disk = Disk::open(upper, work).map_err(|error| failed("open", work.path(), &error))?;
    let manifest = Manifest::parse(json.as_bytes()).map_err(|problem| {
        Failure::new(Code::Upper, format!("the manifest of the fork {problem}"))
    })?;
    disk.begin(&manifest).map_err(|error| failed("write", work.path(), &error))
}

impl Manifest {
    /// That of a fork at layer `top`, whose stack is to be `stack`. `own` is what this is itself, of no layers yet. `None`
    /// where there are no numbers left.
    pub(super) fn forked(&self, stack: StackId, top: LayerSerial, own: Base) -> Option<Self> {
        let chain = self.chain(Some(top));
        let mut bases: Vec<Base> = self.bases.clone();
        let others = self.shared();
        let mine = chain.iter().copied().filter(|layer| !others.contains(layer)).collect();
        bases.push(Base { layers: mine, ..own });
        bases.iter_mut().for_each(|base| base.layers.retain(|layer| chain.contains(layer)));
        bases.retain(|base| !base.layers.is_empty());
        let live = LayerSerial(top.0.checked_add(1)?);
        let next = LayerSerial(live.0.checked_add(1)?);
        let mut forked = Self { stack, live, next, bases, ..self.clone() };
        forked.forks.clear();
        forked.layers.retain(|layer, _| chain.contains(layer));
        forked.put_live(live, Some(top));
        forked.sent.retain(|sent| chain.contains(&sent.serial));
        forked.points.extend(forked.rolled_away.take());
        forked.points.retain(|point| chain.contains(&point.serial));
        // What is yet to be published is so from where it was made.
        for point in &mut forked.points {
            let is_done = |it: &Publish| matches!(it.state, PublishState::Published { .. });
            point.publish = point.publish.take().filter(is_done);
        }
        Some(forked)
    }

    /// Layers that are other mounts'.
    pub(crate) fn shared(&self) -> Serials {
        self.bases.iter().flat_map(|base| base.layers.iter().copied()).collect()
    }

    /// Where the mounts were that it was forked from, the nearest last.
    pub(in super::super) fn bases(&self) -> &[Base] {
        &self.bases
    }

    /// What was forked from it.
    pub(in super::super) fn forks(&self) -> &[Fork] {
        &self.forks
    }

    /// Where forks are that lie on layer `serial` first of all.
    pub(crate) fn forked_at(&self, serial: LayerSerial) -> impl Iterator<Item = &Path> {
        let forks = self.forks.iter().filter(move |fork| fork.top == serial);
        forks.map(|fork| &*fork.mountpoint)
    }

    pub(super) fn with_forks(&self, forks: Vec<Fork>) -> Self {
        let mut after = Self { forks, ..self.clone() };
        after.prune();
        after
    }

    /// Nothing but what forks need, below an empty live upper. `None` where there are no numbers left.
    pub(super) fn for_forks_alone(&self) -> Option<Self> {
        let mut after = Self { points: Vec::new(), ..self.clone() };
        after = after.rolled_back(None, None)?;
        Some(after)
    }
}

impl Layers {
    /// Notes with the mounts that it was forked from that it is mounted on `mountpoint`; as of a new fork, the disk is to
    /// have it, too.
    ///
    /// # Errors
    /// [`Code::Upper`] where their layers are gone.
    pub(in super::super) fn note_bases(&mut self, mountpoint: &Path) -> Result<(), Failure> {
        if self.manifest.bases.is_empty() {
            return Ok(());
        }
        self.noted = true;
        note_all(&self.manifest, self.disk.work_path(), mountpoint)
    }

    /// Keeps layer `top` and those below it for a fork that is to be mounted on `new`, until [`Self::has_forked`]. Gives what
    /// that is known by, and its manifest. `mountpoint` is where this is mounted.
    ///
    /// # Errors
    /// [`Code::Upper`] where there are no numbers left.
    pub(in super::super) fn forking(
        &mut self,
        top: LayerSerial,
        mountpoint: &Path,
        new: &Path,
    ) -> Result<(StackId, String), Failure> {
        let own = Base {
            stack: self.manifest.stack().clone(),
            layers: Vec::new(),
            mountpoint: mountpoint.to_owned(),
            upper: self.disk.upper_path().to_owned(),
            work: self.disk.work_path().to_owned(),
        };
        let stack = StackId::random()?;
        let path = self.disk.manifest_path();
        let forked = self.manifest.forked(stack.clone(), top, own).ok_or_else(|| {
            Failure::new(Code::Upper, format!("{} has no number left", path.display()))
        })?;
        let json = forked.on_boot(&self.boot).to_json().map_err(|e| failed("write", &path, &e))?;
        let (mountpoint, work) = (new.to_owned(), None);
        self.coming.push(Fork { stack: stack.clone(), top, mountpoint, work });
        self.see_forks()?;
        Ok((stack, String::from_utf8_lossy(&json).into_owned()))
    }

    /// A fork that was to come is there by now, or will not come.
    ///
    /// # Errors
    /// [`Code::Upper`]: what the disk says.
    pub(in super::super) fn has_forked(&mut self, stack: &StackId) -> Result<(), Failure> {
        self.coming.retain(|fork| fork.stack != *stack);
        self.see_forks()
    }

    /// Looks which forks there are, and needs no more what is needed by none any more.
    ///
    /// # Errors
    /// [`Code::Upper`]: what the disk says.
    pub(in super::super) fn see_forks(&mut self) -> Result<(), Failure> {
        let work = self.disk.work_proc_path();
        let read = read_forks(&work, true);
        let mut forks = read.map_err(|error| failed("read", &work.join(FORKS), &error))?;
        let is_there = |fork: &&Fork| forks.iter().any(|it| it.stack == fork.stack);
        let coming: Vec<_> = self.coming.iter().filter(|fork| !is_there(fork)).cloned().collect();
        forks.extend(coming);
        if *forks == *self.manifest.forks {
            return Ok(());
        }
        let manifest = self.manifest.with_forks(forks);
        match manifest.layers == self.manifest.layers {
            true => self.adopt(manifest),
            false => self.write(manifest, Room::Kept)?,
        }
        Ok(())
    }

    /// Throws everything away but what forks need.
    ///
    /// # Errors
    /// [`Code::Upper`]: what the disk says.
    pub(in super::super) fn leave_to_forks(&mut self) -> Result<(), Failure> {
        self.prepare_in(Room::Kept)?;
        self.prepared = false;
        match self.manifest.for_forks_alone() {
            Some(manifest) => self.write(manifest, Room::Kept),
            None => Ok(()),
        }
    }
}

/// Notes that the fork in the work directory at `work` lies on the layers of others, wherever it is not noted yet.
///
/// # Errors
/// [`Code::Upper`] where these are gone.
fn note_all(manifest: &Manifest, work: &Path, mountpoint: &Path) -> Result<(), Failure> {
    for base in &manifest.bases {
        let top = base.layers.iter().max().copied().unwrap_or_default();
        let (stack, mountpoint) = (manifest.stack.clone(), mountpoint.to_owned());
        base.note(&Fork { stack, top, mountpoint, work: Some(work.to_owned()) })?;
    }
    Ok(())
}

/// What a fork lies on that has ended.
#[derive(Debug, Default)]
pub(in super::super) struct LiesOn {
    stack: StackId,
    bases: Vec<Base>,
}

impl Manifest {
    pub(in super::super) fn lies_on(self) -> LiesOn {
        LiesOn { stack: self.stack, bases: self.bases }
    }
}

impl LiesOn {
    /// Takes the notes of it away. What is there for it alone goes, too.
    pub(in super::super) fn leave(&self) {
        for base in &self.bases {
            let left = base.leave(&self.stack).and_then(|()| match base.work.parent() {
                Some(dir) if read_origin(dir).is_some_and(|origin| origin.ended) => {
                    remove_locked_upper(dir).map(drop)
                }
                _ => Ok(()),
            });
            if let Err(error) = left {
                let shown = base.work.display();
                tracing::warn!("{shown}, which a fork lay on, stays until thawfs gc: {error}");
            }
        }
    }
}
