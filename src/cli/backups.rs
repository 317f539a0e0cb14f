//! `thawfs list`, `show`, `delete` and `prune`: the backups of a bucket.

use std::pin::pin;

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use serde::Serialize;
use tokio::runtime::Runtime;

use super::archive::{describe_json, describe_lines};
use super::groups::BucketArgs;
use super::output::{Output, human_bytes, human_time, say};
use super::progress::At;
use super::values::parse_duration;
use crate::backup::{
    BackupEntry, BackupId, Backups, Deleted, Deletion, PruneRules, Pruned, start_runtime,
};
use crate::failure::Failure;
use clap::Args;
use std::num::NonZeroU32;
use std::time::Duration;

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only backups of this directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<String>,

    #[command(flatten)]
    pub(crate) bucket: BucketArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The backup's id.
    #[arg(value_name = "ID")]
    pub(crate) id: String,

    #[command(flatten)]
    pub(crate) bucket: BucketArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// Ids of backups, in full.
    #[arg(value_name = "ID", required = true)]
    pub(crate) ids: Vec<String>,

    /// Only say what would be deleted.
    #[arg(long, short = 'n')]
    pub(crate) dry_run: bool,

    #[command(flatten)]
    pub(crate) bucket: BucketArgs,
}

/// `--expired` and `--older-than` add up; `--keep-last` protects from both, and alone selects all
/// that it does not keep.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("rules").required(true).multiple(true))]
pub(crate) struct PruneArgs {
    /// Delete backups that are past their lifetime.
    #[arg(long, group = "rules", help_heading = "What goes")]
    pub(crate) expired: bool,

    /// Delete backups made longer ago than this: 30d, 12h, 90m, 2w, 45s.
    #[arg(long, value_name = "DURATION", group = "rules", help_heading = "What goes",
          value_parser = parse_duration)]
    pub(crate) older_than: Option<Duration>,

    /// Keep this many backups of each directory, the youngest; delete the others that are selected
    /// (all others, where neither of the above selects).
    #[arg(long, value_name = "N", group = "rules", help_heading = "What goes")]
    pub(crate) keep_last: Option<NonZeroU32>,

    /// Delete archives without metadata and metadata without an archive, once a day old.
    #[arg(long, group = "rules", help_heading = "What goes")]
    pub(crate) orphans: bool,

    /// Abort unfinished uploads, once a day old.
    #[arg(long, group = "rules", help_heading = "What goes")]
    pub(crate) uploads: bool,

    /// Only say what would go.
    #[arg(long, short = 'n')]
    pub(crate) dry_run: bool,

    #[command(flatten)]
    pub(crate) bucket: BucketArgs,
}

/// A bucket, and what runs its requests.
pub(super) struct OpenBucket {
    pub(super) runtime: Runtime,
    pub(super) backups: Backups,
}

impl OpenBucket {
    pub(super) fn open(args: &BucketArgs) -> Result<Self, Failure> {
        let request = args.request().or_configured()?;
        let runtime = start_runtime()?;
        let backups = runtime.block_on(Backups::open(&request))?;
        Ok(Self { runtime, backups })
    }
}

pub(super) fn list(args: &ListArgs, output: &Output) -> Result<(), Failure> {
    let OpenBucket { runtime, backups } = OpenBucket::open(&args.bucket)?;
    let wanted = args.dir.as_deref().map(without_slash);
    let is_wanted = |entry: &BackupEntry| {
        let dir = entry.metadata.as_ref().map(|metadata| without_slash(&metadata.dir));
        wanted.is_none() || dir == wanted
    };
    runtime.block_on(async {
        let now = std::time::SystemTime::now().into();
        let mut entries = pin!(backups.list());
        let mut any = false;
        while let Some(entry) = entries.try_next().await? {
            if !is_wanted(&entry) {
                continue;
            }
            if output.json {
                output.print_json_line(&entry)?;
                continue;
            }
            if !any && !output.quiet {
                let columns = ["ID", "SIZE", "CREATED", "EXPIRES", "STATE", "DIR", "NAME"];
                output.print_line(&row(columns.map(str::to_owned)))?;
            }
            any = true;
            output.print_line(&entry_row(&entry, now))?;
        }
        if !any && !output.json && !output.quiet {
            say(&format!("thawfs: no backups in {}", backups.name()));
        }
        Ok(())
    })
}

/// `/` stays as it is.
fn without_slash(dir: &str) -> &str {
    match dir.trim_end_matches('/') {
        "" => dir,
        trimmed => trimmed,
    }
}

/// One line of the table. The widths are fixed: lines are shown before the last one is known.
fn row([id, size, created, expires, state, dir, name]: [String; 7]) -> String {
    let line =
        format!("{id:<36}  {size:>9}  {created:<16}  {expires:<9}  {state:<16}  {dir}  {name}");
    line.trim_end().to_owned()
}

fn entry_row(entry: &BackupEntry, now: DateTime<Utc>) -> String {
    let none = || "-".to_owned();
    let metadata = entry.metadata.as_ref();
    row([
        entry.id.to_string(),
        entry.archive_bytes.map_or_else(none, human_bytes),
        metadata.map_or_else(none, |metadata| human_time(metadata.created_at.timestamp())),
        metadata.map_or_else(none, |metadata| expiry(metadata.expires_at(), now)),
        entry.state.name().to_owned(),
        metadata.map_or_else(none, |metadata| metadata.dir.clone()),
        metadata.and_then(|metadata| metadata.name.clone()).unwrap_or_default(),
    ])
}

/// A time from now in the largest unit that fits: `in 3 d`, `5 h ago`.
fn expiry(at: Option<DateTime<Utc>>, now: DateTime<Utc>) -> String {
    let Some(at) = at else { return "never".to_owned() };
    let seconds = (at - now).num_seconds();
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let amount = |(length, unit): (i64, &str)| format!("{} {unit}", seconds.abs() / length);
    let fitting = units.into_iter().find(|(length, _)| seconds.abs() >= *length);
    let span = amount(fitting.unwrap_or((1, "s")));
    if seconds >= 0 { format!("in {span}") } else { format!("{span} ago") }
}

pub(super) fn show(args: &ShowArgs, output: &Output) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Shown<'a> {
        #[serde(flatten)]
        entry: &'a BackupEntry,
        archive: Option<serde_json::Value>,
    }
    let id: BackupId = args.id.parse()?;
    let OpenBucket { runtime, backups } = OpenBucket::open(&args.bucket)?;
    let mut entry = runtime.block_on(backups.show(&id))?;
    let mut opened = None;
    if entry.archive_bytes.is_some() {
        match backups.archive(&id)?.open() {
            Ok(archive) => opened = Some(archive),
            // That the archive is no good is a finding, as all that is shown here.
            Err(failure) => {
                entry.problem.get_or_insert(failure.message);
            }
        }
    }
    if output.json {
        let archive = opened.as_ref().map(describe_json);
        return output.print_json(&Shown { entry: &entry, archive });
    }
    let line = |name: &str, value: &str| output.print_line(&format!("{name:<18}{value}"));
    line("id", id.as_str())?;
    line("state", entry.state.name())?;
    if let Some(problem) = &entry.problem {
        line("problem", problem)?;
    }
    if let Some(metadata) = &entry.metadata {
        let now = std::time::SystemTime::now().into();
        line("dir", &metadata.dir)?;
        line("name", metadata.name.as_deref().unwrap_or("-"))?;
        line("backed up", &human_time(metadata.created_at.timestamp()))?;
        line("expires", &expiry(metadata.expires_at(), now))?;
    }
    line("all objects", &human_bytes(entry.total_bytes))?;
    opened.map_or(Ok(()), |archive| describe_lines(&archive, output))
}

/// Deletes each, and fails with the last failure once all were tried.
pub(super) fn delete(args: &DeleteArgs, output: &Output) -> Result<(), Failure> {
    let ids: Vec<BackupId> =
        args.ids.iter().map(|id| id.parse()).collect::<Result<_, Failure>>()?;
    let OpenBucket { runtime, backups } = OpenBucket::open(&args.bucket)?;
    let mut failed: Option<Failure> = None;
    for id in &ids {
        match runtime.block_on(backups.delete(id, deletion(args.dry_run))) {
            Ok(deleted) => tell_deleted(&deleted, args.dry_run, output)?,
            Err(failure) => {
                if let Some(earlier) = failed.replace(failure) {
                    output.fail(&earlier);
                }
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

fn deletion(dry_run: bool) -> Deletion {
    if dry_run { Deletion::DryRun } else { Deletion::Real }
}

fn tell_deleted(deleted: &Deleted, dry_run: bool, output: &Output) -> Result<(), Failure> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Told<'a> {
        #[serde(flatten)]
        deleted: &'a Deleted,
        dry_run: bool,
    }
    if output.json {
        return output.print_json_line(&Told { deleted, dry_run });
    }
    if output.quiet {
        return Ok(());
    }
    let Deleted { id, objects, bytes } = deleted;
    let verb = if dry_run { "would delete" } else { "deleted" };
    output.print_line(&format!("{verb} {id}, {objects} objects, {}", human_bytes(*bytes)))
}

pub(super) fn prune(args: &PruneArgs, output: &Output) -> Result<(), Failure> {
    let rules = PruneRules {
        expired: args.expired,
        older_than: args.older_than,
        keep_last: args.keep_last,
        orphans: args.orphans,
        uploads: args.uploads,
    };
    let OpenBucket { runtime, backups } = OpenBucket::open(&args.bucket)?;
    let shown = output.progress(|| At::unknown("pruning"));
    let line = shown.line();
    let told = |pruned: &Pruned| line.suspend(|| tell_pruned(pruned, args.dry_run, output));
    let summary = runtime.block_on(backups.prune(&rules, deletion(args.dry_run), told));
    drop(shown);
    let summary = summary?;
    if output.json {
        let mut summary = serde_json::json!(summary);
        if let Some(summary) = summary.as_object_mut() {
            summary.insert("dryRun".into(), args.dry_run.into());
        }
        return output.print_json_line(&summary);
    }
    if output.quiet {
        return Ok(());
    }
    let (freed, aborted) = match args.dry_run {
        true => ("would be freed", "would be aborted"),
        false => ("freed", "aborted"),
    };
    let bytes = human_bytes(summary.bytes);
    let mut line = format!("{} backups, {bytes} {freed}", summary.backups);
    if rules.uploads {
        line.push_str(&format!("; {} unfinished uploads {aborted}", summary.uploads));
    }
    output.print_line(&line)
}

fn tell_pruned(pruned: &Pruned, dry_run: bool, output: &Output) -> Result<(), Failure> {
    if output.json {
        return output.print_json_line(pruned);
    }
    if output.quiet {
        return Ok(());
    }
    match pruned {
        Pruned::Backup { entry, .. } => {
            let verb = if dry_run { "would delete" } else { "deleted" };
            let dir = entry.metadata.as_ref().map_or("-", |it| &it.dir);
            let (id, state) = (&entry.id, entry.state.name());
            let bytes = human_bytes(entry.total_bytes);
            output.print_line(&format!("{verb} {id}, {state}, {bytes}, {dir}"))
        }
        Pruned::Upload { upload } => {
            let verb = if dry_run { "would abort" } else { "aborted" };
            output.print_line(&format!("{verb} the unfinished upload of {upload}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_from_now_in_the_largest_unit() {
        let now = DateTime::from_timestamp(1_000_000, 0).unwrap();
        for (seconds, text) in [
            (0, "in 0 s"),
            (59, "in 59 s"),
            (-60, "1 min ago"),
            (7199, "in 1 h"),
            (259_200, "in 3 d"),
            (-172_799, "1 d ago"),
        ] {
            assert_eq!(expiry(DateTime::from_timestamp(1_000_000 + seconds, 0), now), text);
        }
        assert_eq!(expiry(None, now), "never");
    }
}
