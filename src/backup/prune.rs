//! Deleting backups by rule, and what interrupted work left behind.
//!
//! An archive without metadata may be a backup that is just being made, and an upload one that still goes on. So of
//! these, what is less than a day old stays. Backups are judged as they are listed, and only those that stay are
//! remembered.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::pin::pin;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::stream::{StreamExt, TryStreamExt};
use serde::Serialize;

use super::bucket::Backups;
use super::delete::{Deleted, Deletion};
use super::id::BackupId;
use super::layout;
use super::list::{BackupEntry, BackupState, now};
use crate::failure::{Code, Failure};
use crate::store::{Pages, Unfinished};

/// How many backups are deleted at a time.
const IN_FLIGHT: usize = 8;

/// An archive without metadata may be a backup that is being made; making one never takes as long as this.
const BEING_MADE: TimeDelta = TimeDelta::hours(24);

/// Which backups go. A backup goes if `expired` or `older_than` says so, unless `keep_last` keeps
/// it; with `keep_last` alone, all go but those it keeps. Whatever the rules, a backup whose
/// metadata cannot be read stays, and so does one of the SDK's newer kind.
#[derive(Clone, Debug, Default)]
pub struct PruneRules {
    /// Those past their lifetime.
    pub expired: bool,
    /// Those made longer ago than this.
    pub older_than: Option<Duration>,
    /// Keeps this many of each directory, the youngest. Only backups whose archive and metadata are
    /// there and fit each other count; expired ones do.
    pub keep_last: Option<NonZeroU32>,
    /// Archives without metadata and metadata without an archive, once they are a day old.
    pub orphans: bool,
    /// Unfinished uploads, once they are a day old.
    pub uploads: bool,
}

impl PruneRules {
    /// Whether the rules speak of backups, and not just of leavings.
    fn select_backups(&self) -> bool {
        self.expired || self.older_than.is_some() || self.keep_last.is_some()
    }

    /// Whether a backup is to go, kept ones aside.
    fn select(&self, entry: &BackupEntry, now: DateTime<Utc>) -> bool {
        let Some(metadata) = &entry.metadata else { return false };
        let is_older = |age: Duration| {
            let age = TimeDelta::from_std(age).ok();
            let limit = age.and_then(|age| now.checked_sub_signed(age));
            limit.is_some_and(|limit| metadata.created_at < limit)
        };
        (self.expired && metadata.is_expired(now))
            || self.older_than.is_some_and(is_older)
            || (!self.expired && self.older_than.is_none() && self.keep_last.is_some())
    }
}

/// One thing that was pruned, or would have been.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Pruned {
    /// A backup, or what there was of one.
    Backup {
        /// As it was listed.
        #[serde(flatten)]
        entry: BackupEntry,
        /// How many objects it had.
        objects: u64,
    },
    /// An unfinished upload.
    Upload {
        /// The key it was for; in a directory, the unfinished file.
        upload: String,
    },
}

/// What a pruning came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PruneSummary {
    /// Backups deleted, orphans included.
    pub backups: u64,
    /// Bytes of all their objects. What unfinished uploads held is not known.
    pub bytes: u64,
    /// Uploads aborted.
    pub uploads: u64,
}

/// Chooses which backups go, one after the other as they are listed. It remembers only those that stay.
struct Selector<'a> {
    rules: &'a PruneRules,
    now: DateTime<Utc>,
    /// The youngest of each directory.
    kept: HashMap<String, BTreeMap<(DateTime<Utc>, BackupId), BackupEntry>>,
}

impl Selector<'_> {
    /// Considers the next backup. Returns which has to go now: this one, or an older one that `keep_last`
    /// no longer keeps.
    fn take(&mut self, entry: BackupEntry) -> Option<BackupEntry> {
        let Self { rules, now, kept } = self;
        if entry.state == BackupState::Unsupported {
            return None;
        }
        let candidate = match (entry.state, &entry.metadata, rules.keep_last) {
            (BackupState::OrphanArchive | BackupState::OrphanMetadata, ..) => {
                let is_old = entry.modified.is_some_and(|at| *now - at > BEING_MADE);
                return (rules.orphans && is_old).then_some(entry);
            }
            (BackupState::Ok | BackupState::Expired, Some(metadata), Some(count)) => {
                let youngest = kept.entry(metadata.dir.clone()).or_default();
                youngest.insert((metadata.created_at, entry.id.clone()), entry);
                if youngest.len() <= usize::try_from(count.get()).unwrap_or(usize::MAX) {
                    return None;
                }
                youngest.pop_first()?.1
            }
            // A rule that only says how many to keep does not count damaged ones, and so leaves them.
            (BackupState::DamagedArchive, _, Some(_))
                if !rules.expired && rules.older_than.is_none() =>
            {
                return None;
            }
            _ => entry,
        };
        rules.select(&candidate, *now).then_some(candidate)
    }
}

impl Backups {
    /// Deletes what the rules select, and calls `told` for each. What somebody else has deleted meanwhile is
    /// passed over. An orphan stays if what it lacked has come meanwhile.
    ///
    /// # Errors
    /// What the store has to offer; what was told until then is done.
    pub async fn prune(
        &self,
        rules: &PruneRules,
        deletion: Deletion,
        mut told: impl FnMut(&Pruned) -> Result<(), Failure>,
    ) -> Result<PruneSummary, Failure> {
        let mut summary = PruneSummary::default();
        if rules.select_backups() || rules.orphans {
            let mut selector = Selector { rules, now: now(), kept: HashMap::new() };
            let gone = self
                .list()
                .try_filter_map(|entry| std::future::ready(Ok(selector.take(entry))))
                .map(|entry| async { self.prune_backup(entry?, deletion).await })
                .buffered(IN_FLIGHT)
                .try_filter_map(|gone| std::future::ready(Ok(gone)));
            let mut gone = pin!(gone);
            while let Some((entry, deleted)) = gone.try_next().await? {
                summary.backups += 1;
                summary.bytes = summary.bytes.saturating_add(deleted.bytes);
                told(&Pruned::Backup { entry, objects: deleted.objects })?;
            }
        }
        if rules.uploads {
            self.prune_uploads(deletion, &mut summary, &mut told).await?;
        }
        Ok(summary)
    }

    async fn prune_backup(
        &self,
        entry: BackupEntry,
        deletion: Deletion,
    ) -> Result<Option<(BackupEntry, Deleted)>, Failure> {
        let deleted = match entry.state {
            BackupState::OrphanArchive | BackupState::OrphanMetadata => {
                let contents = self.contents(&entry.id).await?;
                let is_whole = contents.has_metadata && contents.archive.is_some();
                if is_whole || contents.objects == 0 {
                    return Ok(None);
                }
                self.delete_contents(contents, deletion).await
            }
            _ => self.delete(&entry.id, deletion).await,
        };
        match deleted {
            Ok(deleted) => Ok(Some((entry, deleted))),
            Err(failure) if failure.code == Code::BackupNotFound => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    async fn prune_uploads(
        &self,
        deletion: Deletion,
        summary: &mut PruneSummary,
        told: &mut impl FnMut(&Pruned) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.check_exists()?;
        let bucket = &self.folder.bucket;
        let prefix = self.folder.prefix.clone() + &layout::starting_with("");
        let mut pages = Pages::default();
        while let Some(token) = pages.next() {
            let page = bucket.list_uploads(&prefix, token).await?;
            page.turn(&mut pages, &bucket.name(&prefix))?;
            for Unfinished { upload, since } in page.uploads {
                if since.is_none_or(|since| now() - since <= BEING_MADE) {
                    continue;
                }
                if deletion == Deletion::Real {
                    bucket.abort_upload(&upload).await?;
                }
                summary.uploads += 1;
                told(&Pruned::Upload { upload: bucket.name(&upload.key) })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::meta::Metadata;
    use super::*;

    const NOW: &str = "2026-06-10T00:00:00Z";

    /// A backup of directory `dir`, made at midnight of day `day` of June for `ttl` days.
    fn entry(number: u8, dir: &str, day: u8, ttl: u64, state: BackupState) -> BackupEntry {
        let id: BackupId =
            format!("00000000-0000-4000-8000-0000000000{number:02}").parse().unwrap();
        let created = format!("2026-06-{day:02}T00:00:00Z").parse().unwrap();
        let metadata = Metadata::new(id.clone(), dir, None, 1, ttl * 86_400, created).unwrap();
        let has_metadata =
            !matches!(state, BackupState::OrphanArchive | BackupState::DamagedMetadata);
        BackupEntry {
            id,
            state,
            metadata: has_metadata.then_some(metadata),
            archive_bytes: Some(1),
            total_bytes: 2,
            modified: Some(created),
            problem: None,
        }
    }

    #[test]
    fn the_rules_combine_as_they_say() {
        use BackupState::{
            DamagedArchive, DamagedMetadata, Expired, Ok, OrphanArchive, OrphanMetadata,
            Unsupported,
        };
        // It is June 10th.
        let backups = [
            entry(1, "/a", 1, 3, Expired),
            entry(2, "/a", 5, 30, Ok),
            entry(3, "/a", 8, 1, Expired),
            entry(4, "/a", 9, 30, Ok),
            entry(5, "/b", 2, 30, Ok),
            entry(6, "/b", 3, 1, DamagedArchive),
            entry(7, "/b", 1, 30, OrphanArchive),
            entry(8, "/b", 9, 30, OrphanArchive),
            entry(9, "/b", 1, 1, OrphanMetadata),
            entry(10, "/b", 1, 1, DamagedMetadata),
            entry(11, "/b", 1, 1, Unsupported),
        ];
        let days = |days: u64| Some(Duration::from_secs(days * 86_400));
        let rules = |expired, older_than, keep_last| PruneRules {
            expired,
            older_than,
            keep_last: NonZeroU32::new(keep_last),
            ..PruneRules::default()
        };
        let orphans = PruneRules { orphans: true, ..PruneRules::default() };
        for (rules, gone) in [
            (PruneRules::default(), &[][..]),
            (rules(true, None, 0), &[1, 3, 6]),
            (rules(false, days(4), 0), &[1, 2, 5, 6]),
            (rules(true, days(4), 0), &[1, 2, 3, 5, 6]),
            (rules(false, None, 1), &[1, 2, 3]),
            (rules(false, None, 3), &[1]),
            (rules(true, None, 2), &[1, 6]),
            (rules(false, days(4), 1), &[1, 2, 6]),
            (rules(false, Some(Duration::MAX), 1), &[]),
            (orphans, &[7, 9]),
        ] {
            // In any order of the listing.
            for shift in 0..backups.len() {
                let mut selector =
                    Selector { rules: &rules, now: NOW.parse().unwrap(), kept: HashMap::new() };
                let mut order = backups.to_vec();
                order.rotate_left(shift);
                let mut found: Vec<u8> = order
                    .into_iter()
                    .filter_map(|entry| selector.take(entry))
                    .map(|entry| entry.id.as_str()[34..].parse().unwrap())
                    .collect();
                found.sort_unstable();
                assert_eq!(found, gone, "{rules:?}");
            }
        }
    }
}
