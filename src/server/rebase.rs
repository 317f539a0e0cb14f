//! A mount of what an earlier one has changed, over a backup of that: `--rebase`.
//!
//! The newest backup that was published of what the live upper lies on takes the place of the archive and of the layers up
//! to its own, which are freed. Nothing is mounted meanwhile. The old archive is opened once more, as the upper's own
//! records are of that: they tell what the names of a hard link are.

use chrono::Utc;
use tokio::runtime::Runtime;

use super::MountRequest;
use super::directories::UpperDirectory;
use super::layers::{Freed, Manifest, Point, Sent};
use crate::backup::{BackupId, Backups, OpenArchive, SourceRequest, layout, start_runtime};
use crate::failure::{Code, Failure};
use crate::overlay::{self, ArchiveIdentity, Options, Overlay};

/// What is mounted then.
pub(super) struct Rebased {
    pub(super) opened: OpenArchive,
    pub(super) upper: UpperDirectory,
    /// What there is to say about it.
    pub(super) said: Vec<String>,
}

/// The bucket that has the backups.
struct Bucket {
    runtime: Runtime,
    backups: Backups,
    /// How the archive of the mount is read.
    like: SourceRequest,
}

impl Bucket {
    fn of(opened: &OpenArchive) -> Result<Self, Failure> {
        let request = opened.bucket.as_ref().ok_or_else(|| {
            let message = format!("cannot rebase: {} is no backup in a bucket", opened.name);
            Failure::new(Code::InvalidBackupConfig, message)
                .hint("leave --rebase out, or mount the backup by its key in the bucket")
        })?;
        let runtime = start_runtime()?;
        let backups = runtime.block_on(Backups::open(request))?;
        Ok(Self { runtime, backups, like: opened.source.clone() })
    }

    /// Opens the archive of `id`, which is known to be this stack's.
    fn open(&self, id: &BackupId) -> Result<OpenArchive, Failure> {
        let SourceRequest { cache_memory, disk_cache, .. } = self.like;
        SourceRequest { cache_memory, disk_cache, ..self.backups.archive(id)? }.open()
    }

    /// The newest of `sent` that is there, open. Why others are not is added to what is `said`.
    fn newest(
        &self,
        sent: Vec<&Sent>,
        said: &mut Vec<String>,
    ) -> Result<Option<(Sent, OpenArchive)>, Failure> {
        for sent in sent {
            let id = &sent.id;
            let asked = self.backups.earlier(id, sent.bytes, self.like.disk_cache);
            let why = match self.runtime.block_on(asked)? {
                Err(why) => why,
                Ok(_) => match self.open(id) {
                    Ok(opened) => return Ok(Some((sent.clone(), opened))),
                    Err(failure) if failure.passes => return Err(failure),
                    Err(failure) => format!("cannot be read: {}", failure.message),
                },
            };
            said.push(format!("it is not put onto backup {id}, which {why}"));
        }
        Ok(None)
    }

    fn expiry(&self, id: &BackupId) -> Option<String> {
        let metadata = self.runtime.block_on(self.backups.metadata(id)).ok()?;
        let days = metadata.expires_at()?.signed_duration_since(Utc::now()).num_days();
        (days < 30).then(|| {
            format!("backup {id}, which the mount needs from now on, expires in {days} days")
        })
    }
}

/// Puts what `upper` has onto the newest backup of it. `opened` is what it lies on, or was before.
///
/// # Errors
/// [`Code::NotFound`] where none was published, [`Code::Busy`] where something would be lost, and what opening says. Nothing
/// has changed then, but that there may be one layer more.
pub(super) fn rebase(
    request: &MountRequest,
    opened: OpenArchive,
    mut upper: UpperDirectory,
) -> Result<Rebased, Failure> {
    let bucket = Bucket::of(&opened)?;
    let shown = upper.path.display().to_string();
    upper.layers.see_forks()?;
    let manifest = upper.layers.manifest().clone();
    let onto = manifest.onto();
    let is_before = || manifest.made_over().contains(&ArchiveIdentity::of(&opened.archive));
    let opened = match onto {
        Some(id) if layout::id_of_archive(&opened.name).as_ref() != Some(id) && is_before() => {
            bucket.open(id)?
        }
        _ => opened,
    };
    let top = manifest.parent_of_live();
    let sent = top.map(|top| manifest.sent_below(top)).unwrap_or_default();
    let mut said = Vec::new();
    let newest = bucket.newest(sent, &mut said)?;
    let Some((sent, archive)) = newest else {
        if onto.is_some() {
            return Ok(Rebased { opened, upper, said });
        }
        let message = format!("cannot rebase: nothing that {shown} lies on is in the bucket");
        let failure = Failure::new(Code::NotFound, message).hint(
            "thawfs checkpoint DIR --wait publishes it; without --rebase, it is mounted as it was",
        );
        return Err(Failure { list: said, ..failure });
    };
    check_nothing_is_lost(&manifest, &sent, &shown)?;
    let identity = ArchiveIdentity::of(&opened.archive);
    let (closed, live, below, mut layers) = upper.close();
    let tree = Overlay::stacked(opened.archive.clone(), below, Some(live), Options::default())?;
    let mut change = layers.freezing_alone()?;
    let (next, serial) = (change.next.clone(), change.serial);
    let frozen = tree.freeze(&next, serial, &mut || change.commit());
    if !layers.settle(change) {
        frozen?;
        let message = format!("cannot rebase: {shown} could not be frozen");
        return Err(Failure::new(Code::Upper, message));
    }
    let Freed { layers: freed, points } = layers.put_onto(&sent, &identity)?;
    drop((tree, layers, opened));
    let upper = closed.open(request)?;
    let id = &sent.id;
    said.push(format!("{shown} lies on backup {id} from now on: {freed} layers are freed"));
    said.extend(
        points
            .iter()
            .filter(|point| *point != id)
            .map(|point| format!("checkpoint {point} is forgotten here; it is in the bucket")),
    );
    said.extend(bucket.expiry(id));
    Ok(Rebased { opened: archive, upper, said })
}

/// Refuses what would take away what is nowhere else, or what somebody has named.
fn check_nothing_is_lost(manifest: &Manifest, sent: &Sent, shown: &str) -> Result<(), Failure> {
    let id = &sent.id;
    if let Some(base) = manifest.bases().last() {
        let message =
            format!("cannot rebase {shown}: it is a fork of {}", base.mountpoint.display());
        return Err(Failure::new(Code::Busy, message)
            .hint(format!("restore backup {id}, or leave --rebase out")));
    }
    let forks: Vec<_> =
        manifest.forks().iter().map(|fork| fork.mountpoint.display().to_string()).collect();
    if !forks.is_empty() {
        let message =
            format!("cannot rebase {shown}: mounts that were forked from it lie on its layers");
        return Err(Failure { list: forks, ..Failure::new(Code::Busy, message) }
            .hint("thawfs unmount comes first, or leave --rebase out"));
    }
    let named = |point: &Point| match &point.name {
        Some(name) => format!("{} ({name})", point.id),
        None => point.id.to_string(),
    };
    let lost: Vec<_> = manifest.lost_onto(sent).into_iter().map(named).collect();
    if lost.is_empty() {
        return Ok(());
    }
    let message = format!("cannot rebase {shown} onto backup {id}: checkpoints would be lost");
    Err(Failure { list: lost, ..Failure::new(Code::Busy, message) }.hint(
        "leave --rebase out; once mounted, thawfs forget removes one, and thawfs checkpoint --wait publishes",
    ))
}

/// Why the layers of a stack that was put `onto` a backup do not go with another archive.
pub(super) fn is_elsewhere(error: overlay::Error, onto: Option<&BackupId>) -> Failure {
    let is_of_archive = matches!(error, overlay::Error::Unusable { .. });
    let failure = Failure::from(error);
    match onto.filter(|_| is_of_archive) {
        None => failure,
        Some(id) => failure.hint(format!(
            "it was put onto backup {id} by --rebase: name that one's archive, or say --rebase again"
        )),
    }
}

/// Refuses another backup's archive, which is called `name`, for a stack that was put `onto` one.
pub(super) fn check_is_same(onto: Option<&BackupId>, name: &str) -> Result<(), Failure> {
    match (onto, layout::id_of_archive(name)) {
        (Some(onto), Some(id)) if id != *onto => {
            let problem = "what was changed belongs to another archive".to_owned();
            let error = overlay::Error::Unusable { path: name.into(), problem };
            Err(is_elsewhere(error, Some(onto)))
        }
        _ => Ok(()),
    }
}
