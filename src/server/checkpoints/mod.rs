//! Checkpoints of one mount, as its server makes them, rolls back to them and forgets them.
//!
//! | file | idea |
//! | --- | --- |
//! | `asked` | questions and answers, and who asks |
//! | `compared` | what differs between two |
//! | `forked` | a second mount over the same layers |
//! | `merger` | which layers become one, and when |
//! | `background` | what follows a change: the disk has it, what nobody needs goes, the next directory is made |
//! | `publisher`, `making`, `published` | backups of them, each of which is made of those before; what is told of those |
//! | `writers` | who has a file open for writing |
//!
//! One thing at a time: who comes second waits. Nothing of that is waited for by a program in the mount,
//! but for the moment in which the overlay has a new live upper.

mod asked;
mod background;
mod compared;
mod forked;
mod making;
mod merger;
mod published;
mod publisher;
mod writers;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::MutexGuard;
use rustix::io::Errno;

pub(crate) use self::asked::{
    CheckpointRequest, ForgetRequest, Forgotten, HeldBack, HeldBackRequest, ListRequest, Listed,
    ListedPoint, Made, RollbackRequest, RolledBack, Target, ask, write_back,
};
pub(super) use self::asked::{refuse, tell};
use self::background::Background;
pub(crate) use self::compared::PointsRequest;
pub(crate) use self::forked::{ForkRequest, Forked};
pub(super) use self::making::Target as PublishTarget;
pub use self::published::PublishingReport;
pub(crate) use self::published::{Outcome, PublishAsked, Publishing, PublishingRequest, Waited};
use self::publisher::Publisher;
pub(crate) use self::writers::check_nobody_writes;
pub(crate) use super::layers::FuzzyFile;
use super::layers::{Change, Layers, Manifest, NewPoint, Point, Publish, PublishState};
use super::mounts::{MountInfo, in_words, mounted_inside, read_mounts};
use super::report::LayersReport;
use crate::backup::{BackupId, SourceRequest, check_name};
use crate::failure::{Code, Failure};
use crate::fuse::Kernel;
use crate::overlay::{self, Overlay};

/// Checkpoints of one mount.
pub(super) struct Checkpoints {
    tree: Weak<Overlay>,
    kernel: Kernel,
    mountpoint: PathBuf,
    mounted: Option<MountInfo>,
    /// What is mounted.
    source: SourceRequest,
    /// None where nothing is written.
    background: Option<Arc<Background>>,
    /// Or why nothing is published.
    publisher: Result<Arc<Publisher>, String>,
}

impl Checkpoints {
    /// Those of `tree`, whose upper has `layers`.
    pub(super) fn new(
        (tree, kernel): (Weak<Overlay>, Kernel),
        mountpoint: PathBuf,
        mounted: Option<MountInfo>,
        source: SourceRequest,
        layers: Option<Layers>,
        target: Result<PublishTarget, String>,
    ) -> Self {
        let background = layers.map(|layers| Arc::new(Background::new(layers, Weak::clone(&tree))));
        if let Some(background) = &background {
            background.begin();
        }
        let publisher = target.and_then(|target| {
            let background = background.as_ref().ok_or("nothing is written to it")?;
            Ok(Publisher::new(Arc::clone(background), target))
        });
        Self { tree, kernel, mountpoint, mounted, source, background, publisher }
    }

    /// Waits for what is being done, and leaves on disk what has to be there. Nothing is done from then on.
    /// `keep` says that the layers stay.
    pub(super) fn end(&self, keep: bool) {
        if let Ok(publisher) = &self.publisher {
            publisher.end();
        }
        if let Some(background) = &self.background {
            background.end(keep);
        }
    }

    /// For `status`.
    pub(super) fn report(&self) -> LayersReport {
        let Some(background) = &self.background else { return LayersReport::default() };
        let manifest = background.seen();
        let points = manifest.points();
        LayersReport {
            layers: manifest.frozen_layers().count() as u64,
            bytes: manifest.frozen_layers().filter_map(|serial| manifest.bytes_of(serial)).sum(),
            checkpoints: points.len() as u64,
            named: manifest.named() as u64,
            durable: points.iter().filter(|point| point.durable).count() as u64,
            rolled_away: manifest.rolled_away().is_some(),
            publishing: match &self.publisher {
                Ok(publisher) => publisher.report(),
                Err(_) => PublishingReport::of(&manifest),
            },
            forks: manifest.forks().iter().map(|fork| fork.mountpoint.clone()).collect(),
            forked_from: manifest.bases().last().map(|base| base.mountpoint.clone()),
        }
    }

    /// Which files are open for writing, of which the kernel may hold something back.
    fn held_back(&self) -> Result<HeldBack, Failure> {
        let paths = self.tree.upgrade().map(|tree| tree.held_back()).unwrap_or_default();
        Ok(HeldBack { paths })
    }

    fn checkpoint(&self, request: &CheckpointRequest) -> Result<Made, Failure> {
        self.checkpoint_for(request, false)
    }

    /// The same; `for_fork` if a fork is to lie on it.
    fn checkpoint_for(&self, request: &CheckpointRequest, for_fork: bool) -> Result<Made, Failure> {
        let name = request.name.as_deref();
        check_given(name)?;
        let (publish, local_because) = match request.publish.as_ref().map(|it| self.as_publish(it))
        {
            None => (None, None),
            Some(Ok(publish)) => (Some(publish), None),
            Some(Err(failure)) => (None, Some(failure?)),
        };
        let publishes = publish.is_some();
        let (tree, mut layers) = self.begin("checkpoint")?;
        let point = NewPoint { publish, for_fork, ..new_point(name)? };
        let id = point.id.clone();
        let mut change = layers.freezing(point, request.keep)?;
        let (next, serial) = (change.next.clone(), change.serial);
        let frozen = tree.freeze(&next, serial, &mut || change.commit());
        let frozen = self.settle(&mut layers, change, frozen, "checkpoint")?;
        let fuzzy = frozen.map(|frozen| frozen.fuzzy).unwrap_or_default();
        if !fuzzy.is_empty()
            && let Err(failure) = layers.set_fuzzy(&id, fuzzy.clone())
        {
            tracing::warn!("which files of {id} are of no one moment is not on record: {failure}");
        }
        drop(layers);
        if let Some(publisher) = self.publisher.as_ref().ok().filter(|_| publishes) {
            publisher.wake();
        }
        let mut durable = false;
        if request.sync {
            self.background()?.make_durable(false).map_err(|failure| {
                let message = format!("{id} is made, but not yet on disk: {}", failure.message);
                Failure { message, ..failure }
            })?;
            durable = true;
        }
        Ok(Made { id, fuzzy: Manifest::as_fuzzy(fuzzy), durable, publishes, local_because })
    }

    /// What a checkpoint is to become in the bucket.
    ///
    /// # Errors
    /// Why it is to become nothing there, and where it has to, that as a failure.
    fn as_publish(&self, asked: &PublishAsked) -> Result<Publish, Result<String, Failure>> {
        let dir = self.mountpoint.to_str().ok_or("the path of the mount is not UTF-8");
        let dir = match (&self.publisher, dir) {
            // It says so itself.
            (Err(because), _) if self.background.is_some() => Err(because.as_str()),
            (_, dir) => dir,
        };
        let PublishAsked { ttl, name, whole, passing, required } = asked.clone();
        let local = |because: &str| match required {
            false => Ok(because.to_owned()),
            true => {
                let message =
                    format!("a checkpoint of {} cannot be a backup", self.mountpoint.display());
                Err(Failure::new(Code::InvalidBackupConfig, format!("{message}: {because}"))
                    .hint("--local keeps it on this machine; thawfs create names a bucket"))
            }
        };
        if ttl == 0 {
            let message = "the lifetime of a backup is a second at least";
            return Err(Err(Failure::new(Code::InvalidBackupConfig, message)));
        }
        let dir = dir.map_err(local)?.to_owned();
        Ok(Publish { dir, name, ttl, whole, passing, state: PublishState::Pending })
    }

    /// What has become of a checkpoint in the bucket, or how far that is.
    fn publishing(&self, request: &PublishingRequest) -> Result<Waited, Failure> {
        let publisher = self.publisher.as_ref().map_err(|because| {
            Failure::new(Code::InvalidBackupConfig, format!("nothing is published: {because}"))
        })?;
        let waited = publisher.wait(&request.id);
        if request.again && matches!(waited, Waited::Done(_)) {
            publisher.again();
        }
        Ok(waited)
    }

    fn roll_back(&self, request: &RollbackRequest) -> Result<RolledBack, Failure> {
        let (tree, mut layers) = self.begin("roll back")?;
        let manifest = Arc::clone(layers.manifest());
        let to = match &request.to {
            Target::Last => Some(manifest.last()?),
            Target::Point(text) => Some(manifest.find(text)?),
            Target::Archive => None,
        };
        let inside = self.mounted_inside()?;
        if let Some(mounted) = self.mounted.as_ref().filter(|_| request.strict) {
            // Who asks has looked as well, and may look at more.
            check_nobody_writes(mounted)?;
        }
        let top = to.map(|point| point.serial);
        let away = if request.discard { None } else { Some(new_point(None)?) };
        let rolled_away = away.as_ref().map(|point| point.id.clone());
        let paths: Vec<_> = inside.iter().map(|(path, _)| path.clone()).collect();
        let mut is_last = false;
        let (change, rolled) = loop {
            let below = layers.open_chain(top)?;
            let mut change = layers.rolling_back(top, away.clone())?;
            let (next, serial) = (change.next.clone(), change.serial);
            let rolled = tree.roll_back(below, &next, serial, &paths, &mut || change.commit());
            let is_full = rolled.as_ref().is_err_and(overlay::Error::is_no_room);
            if is_last || !is_full || !layers.give_up_spare() {
                break (change, rolled);
            }
            layers.settle(change);
            is_last = true;
        };
        if let Ok(rolled) = &rolled {
            self.kernel.refresh(rolled);
        }
        let in_the_way = |path: &Path| inside.iter().find(|(inside, _)| inside == path);
        if let Err(overlay::Error::Unusable { path, .. }) = &rolled
            && let Some((_, what)) = in_the_way(path)
        {
            layers.settle(change);
            let shown = self.mountpoint.display();
            let message = format!("{what} is mounted inside {shown}, and would go with it");
            return Err(
                Failure::new(Code::Busy, message).hint("what is inside has to be unmounted first")
            );
        }
        let rolled = self.settle(&mut layers, change, rolled, "roll back")?;
        let rolled = rolled.unwrap_or_default();
        let bytes = |path: &PathBuf| path.as_os_str().as_encoded_bytes().to_vec();
        Ok(RolledBack {
            moved: rolled.moved.iter().map(bytes).collect(),
            id: to.map(|point| point.id.clone()),
            name: to.and_then(|point| point.name.clone()),
            names: rolled.changed,
            rolled_away,
        })
    }

    fn forget(&self, request: &ForgetRequest) -> Result<Forgotten, Failure> {
        let held = match (&request.which, &self.publisher, &self.background) {
            (Some(which), Ok(publisher), Some(background)) => {
                let id = background.seen().find(which)?.id.clone();
                publisher.hold(&id)?;
                Some((publisher, id))
            }
            _ => None,
        };
        let forgotten = self.forget_held(request);
        if let Some((publisher, id)) = held {
            publisher.release(&id);
        }
        forgotten
    }

    fn forget_held(&self, request: &ForgetRequest) -> Result<Forgotten, Failure> {
        let (_tree, mut layers) = self.begin("forget checkpoints of")?;
        self.background()?.see_forks(&mut layers);
        let before = Arc::clone(layers.manifest());
        if let Some(which) = &request.which {
            let point = before.find(which)?;
            if let Some(fork) = before.forked_at(point.serial).next() {
                let (id, fork) = (&point.id, fork.display());
                let message = format!("{fork} was forked at {id}, and lies on it");
                return Err(Failure::new(Code::Busy, message)
                    .hint(format!("thawfs unmount {fork} comes first")));
            }
            layers.forget(std::slice::from_ref(&point.id))?;
        }
        if let Some(count) = request.keep {
            layers.keep(count)?;
        }
        self.background()?.forgotten(&layers);
        let after = layers.manifest();
        let all = before.points().iter().chain(before.rolled_away());
        let gone = all.filter(|point| after.point(&point.id).is_none());
        Ok(Forgotten {
            forgotten: gone.map(|point| point.id.clone()).collect(),
            keep: after.keep(),
        })
    }

    fn list(&self) -> Result<Listed, Failure> {
        let manifest = self.background()?.seen();
        let last = manifest.last().ok().map(|point| point.id.clone());
        let listed = |point: &Point, rolled_away| ListedPoint {
            id: point.id.clone(),
            name: point.name.clone(),
            created_ms: point.created_ms,
            durable: point.durable,
            bytes: manifest.bytes_of(point.serial),
            fuzzy: point.fuzzy.clone(),
            rolled_away,
            last: last.as_ref() == Some(&point.id),
            published: match &self.publisher {
                Ok(publisher) => publisher.told(point),
                Err(because) => {
                    publisher::told(point, |_| Publishing::Queued { why: Some(because.clone()) })
                }
            },
            forks: manifest.forked_at(point.serial).map(Path::to_owned).collect(),
        };
        let points = manifest.points().iter().map(|point| listed(point, false));
        let away = manifest.rolled_away().map(|point| listed(point, true));
        Ok(Listed { checkpoints: points.chain(away).collect(), keep: manifest.keep() })
    }

    /// The tree and its layers, for one change.
    fn begin(&self, doing: &str) -> Result<(Arc<Overlay>, MutexGuard<'_, Layers>), Failure> {
        let background = self.background_for(doing)?;
        let ending = || Failure::new(Code::NotMounted, "the mount is ending");
        let tree = self.tree.upgrade().ok_or_else(ending)?;
        let layers = background.layers().ok_or_else(ending)?;
        Ok((tree, layers))
    }

    fn background_for(&self, doing: &str) -> Result<&Arc<Background>, Failure> {
        self.background().map_err(|failure| {
            let message = format!("cannot {doing} {}", self.mountpoint.display());
            Failure { message: format!("{message}: {}", failure.message), ..failure }
        })
    }

    fn background(&self) -> Result<&Arc<Background>, Failure> {
        self.background.as_ref().ok_or_else(|| {
            Failure::new(Code::Upper, "it is mounted without an upper, and nothing in it changes")
                .hint("mount it without --read-only")
        })
    }

    /// Ends a change that the overlay was asked for. What it says besides is `None` where it failed after
    /// the change had come to be.
    fn settle<T>(
        &self,
        layers: &mut Layers,
        change: Change,
        done: overlay::Result<T>,
        doing: &str,
    ) -> Result<Option<T>, Failure> {
        let committed = layers.settle(change);
        self.background()?.changed(layers);
        match (committed, done) {
            (true, Ok(done)) => Ok(Some(done)),
            (true, Err(error)) => {
                tracing::error!("after it had come to be: {doing}: {error}");
                Ok(None)
            }
            (false, done) => {
                let failure = match done {
                    Err(overlay::Error::Refused(Errno::BUSY)) => Failure::new(
                        Code::Busy,
                        "a file is written to of which not all names are known, or they change all the time",
                    ),
                    Err(error) => Failure::from(error),
                    Ok(_) => Failure::new(Code::Failed, "it was not done; please report this"),
                };
                let message =
                    format!("cannot {doing} {}: {}", self.mountpoint.display(), failure.message);
                let hint = match failure.code {
                    Code::Busy => "nothing was changed; try again, or close what is written to",
                    _ => "nothing was changed",
                };
                Err(Failure { message, ..failure }.hint(hint))
            }
        }
    }

    /// What is mounted inside, by its path from the root and in words: the kernel would take it down with the directory
    /// that it is on.
    fn mounted_inside(&self) -> Result<Vec<(PathBuf, String)>, Failure> {
        let Some(mounted) = &self.mounted else { return Ok(Vec::new()) };
        let failed = |error| Failure::io("read what is mounted in", &self.mountpoint, &error);
        let mounts = read_mounts().map_err(failed)?;
        let inside = mounted_inside(&mounts, mounted.id).into_iter().filter_map(|inside| {
            let path = inside.mountpoint.strip_prefix(&mounted.mountpoint).ok()?;
            Some((path.to_owned(), in_words([inside])))
        });
        Ok(inside.collect())
    }
}

/// Checks what a checkpoint is to be called.
pub(super) fn check_given(name: Option<&str>) -> Result<(), Failure> {
    let Some(name) = name else { return Ok(()) };
    if name.is_empty() {
        return Err(Failure::new(Code::Usage, "a checkpoint's name cannot be empty")
            .hint("without --name it has none"));
    }
    check_name(name).map_err(|reason| {
        let shown: String = name.chars().take(100).collect();
        let message = format!("a checkpoint's name {reason}: {shown:?}");
        Failure::new(Code::InvalidBackupConfig, message)
    })
}

fn new_point(name: Option<&str>) -> Result<NewPoint, Failure> {
    let (id, name) = (BackupId::random()?, name.map(str::to_owned));
    let created_ms = since_epoch_ms();
    Ok(NewPoint { id, name, created_ms, publish: None, for_fork: false })
}

/// Now, in milliseconds since the epoch.
fn since_epoch_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis());
    u64::try_from(now).unwrap_or(u64::MAX)
}

/// Points that an upper in the state directory holds, by its work directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Those that keep it: what they are called.
    pub(crate) named: Vec<String>,
    /// How many there are besides, what was rolled away included.
    pub(crate) unnamed: usize,
    /// Whether it cannot be told: it is not thrown away by guess.
    pub(crate) is_damaged: bool,
    /// Where mounts are that lie on its layers.
    pub(crate) forks: Vec<PathBuf>,
}

impl Held {
    /// Those of the work directory at `work`.
    pub(crate) fn at(work: &Path) -> Self {
        match super::layers::read(work) {
            Ok(None) => Self::default(),
            Ok(Some(manifest)) => {
                // Those of what it was forked from are kept there, if at all.
                let others = manifest.shared();
                let own = manifest.points().iter().filter(|point| !others.contains(&point.serial));
                let (named, unnamed): (Vec<_>, Vec<_>) = own.partition(|it| it.name.is_some());
                Self {
                    named: named.into_iter().filter_map(|point| point.name.clone()).collect(),
                    unnamed: unnamed.len() + usize::from(manifest.rolled_away().is_some()),
                    is_damaged: false,
                    forks: manifest.forks().iter().map(|fork| fork.mountpoint.clone()).collect(),
                }
            }
            Err(failure) => {
                tracing::warn!("{failure}");
                Self { is_damaged: true, ..Self::default() }
            }
        }
    }

    /// What becomes of them with the mount whose changes are in `upper`.
    pub(crate) fn in_words(&self, upper: &Path) -> Option<String> {
        let upper = upper.display();
        if self.is_damaged {
            return Some(format!("{upper} is kept, as its checkpoints cannot be read"));
        }
        let named = self.named.join(", ");
        if let ([fork, ..], true) = (&*self.forks, self.named.is_empty()) {
            let others = match self.forks.len() - 1 {
                0 => String::new(),
                1 => " and another".to_owned(),
                more => format!(" and {more} others"),
            };
            let fork = fork.display();
            return Some(format!(
                "what the fork on {fork}{others} lies on is kept, and goes with it"
            ));
        }
        match (self.named.len(), self.unnamed) {
            (0, 0) => None,
            (0, 1) => Some("a checkpoint without a name is thrown away".to_owned()),
            (0, count) => Some(format!("{count} checkpoints without a name are thrown away")),
            (1, _) => Some(format!("{upper} is kept, as a checkpoint in it has a name: {named}")),
            (_, _) => Some(format!("{upper} is kept, as checkpoints in it have names: {named}")),
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.named.len() + self.unnamed
    }

    /// Whether what it is of outlives its mount.
    pub(crate) fn keeps(&self) -> bool {
        self.is_damaged || !self.named.is_empty()
    }
}
