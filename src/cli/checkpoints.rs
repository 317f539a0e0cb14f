//! `thawfs checkpoint`, `checkpoints`, `rollback` and `forget`.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use chrono::{DateTime, SecondsFormat};
use clap::{Args, ValueHint};
use serde::Serialize;
use serde_json::Value;

use super::output::{Output, human_bytes, human_time, say};
use super::published::{self, NotPublished, outcome_as_json};
use super::values::parse_seconds;
use crate::backup::{BackupId, Metadata};
use crate::failure::{Code, Failure};
use crate::names::printable;
use crate::server::Mounted;
use crate::server::checkpoints::{
    CheckpointRequest, ForgetRequest, Forgotten, FuzzyFile, ListRequest, Listed, ListedPoint, Made,
    Outcome, PublishAsked, Publishing, RollbackRequest, RolledBack, Target,
};
use crate::server::questions::Question;

#[derive(Debug, Args)]
#[command(after_help = "\
Prints the checkpoint's id. It takes a moment, whatever the size of the tree, and programs in the
mount go on: what they had written before is in it, what they write afterwards is not. Of files
that are open for writing meanwhile that holds file by file, and of all at one moment with
-o checkpoints=exact.
  thawfs checkpoint ~/work --name before-upgrade
  thawfs rollback ~/work before-upgrade            everything in ~/work is as it was then
  thawfs checkpoints ~/work                        which there are
A checkpoint is there until it is forgotten. The mount's end is the end of those without a name; one
with a name keeps the mount's changes, as --keep-upper does. Without a name, the last 64 are kept
(--keep).
Of a mount of a backup, the server makes a backup of the same id of it meanwhile, in the same bucket:
  thawfs checkpoint ~/work --wait                  prints the id once it can be restored elsewhere
  thawfs checkpoint ~/work --local                 sends nothing
It sends what was changed since the last one that was published. What is not published yet stays until
it is, and goes on with the next mount of the same changes.")]
pub(crate) struct CheckpointArgs {
    /// A mount.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,

    /// What to call it; what has a name is kept until it is forgotten.
    #[arg(long, short, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// How long the backup of it may be restored: 30d, 12h, or seconds [default: 3d].
    #[arg(long, value_name = "DURATION", value_parser = parse_seconds)]
    pub(crate) ttl: Option<u64>,

    /// Keep it on this machine: make no backup of it.
    #[arg(long, conflicts_with_all = ["ttl", "wait"])]
    pub(crate) local: bool,

    /// Return only when the backup of it is in the bucket. What could not be published before is tried
    /// again, too.
    #[arg(long)]
    pub(crate) wait: bool,

    /// Return only when the disk has it: it outlives a power failure then.
    #[arg(long)]
    pub(crate) sync: bool,

    /// How many checkpoints without a name to keep of this mount, from now on; the oldest go first
    /// [default: 64].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) keep: Option<u32>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The one marked with * is where thawfs rollback DIR goes. What the last rollback has rolled away is the
last line, until the next rollback: rolling back to its id takes the rollback back.")]
pub(crate) struct CheckpointsArgs {
    /// A mount.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The mount stays, and so do programs in it. What they have open and is not as it was stays what it is
for them, as a file that was removed does. What is rolled away is kept until the next rollback, and
can be had back by the id that is printed.")]
pub(crate) struct RollbackArgs {
    /// A mount.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,

    /// To which checkpoint: its id, the first eight digits of that or more, or its name [default: the last].
    #[arg(value_name = "ID|NAME")]
    pub(crate) checkpoint: Option<String>,

    /// To what was mounted, without any change.
    #[arg(long, conflicts_with = "checkpoint")]
    pub(crate) to_archive: bool,

    /// Throw away what is rolled away, and what was before.
    #[arg(long)]
    pub(crate) discard: bool,

    /// Refuse while a program has a file open for writing, and say which.
    #[arg(long)]
    pub(crate) strict: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ForgetArgs {
    /// A mount.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,

    /// Which checkpoint: its id, the first eight digits of that or more, or its name.
    #[arg(value_name = "ID|NAME", required_unless_present = "keep")]
    pub(crate) checkpoint: Option<String>,

    /// All without a name but the last N, now and from now on.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) keep: Option<u32>,
}

/// A checkpoint, as it is printed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    id: &'a BackupId,
    dir: &'a str,
    name: Option<&'a str>,
    created_at: String,
    durable: bool,
    bytes: Option<u64>,
    fuzzy: &'a [FuzzyFile],
    rolled_away: bool,
    last: bool,
    published: Value,
    forks: &'a [PathBuf],
}

pub(super) fn checkpoint(args: &CheckpointArgs, output: &Output) -> Result<(), Failure> {
    let asked = Mounted::at(&args.dir)?;
    asked.write_back();
    let CheckpointArgs { name, sync, keep, ttl, local, wait, .. } = args;
    let publish = PublishAsked {
        ttl: ttl.unwrap_or(Metadata::DEFAULT_TTL),
        name: None,
        whole: false,
        passing: false,
        required: *wait,
    };
    let publish = (!local).then_some(publish);
    let request = CheckpointRequest { name: name.clone(), sync: *sync, keep: *keep, publish };
    let made: Made = asked.ask(&Question::Checkpoint(request))?;
    let published = match (wait, made.publishes) {
        (true, true) => Some(wait_for(&asked, &made.id, output)?),
        (true, false) => {
            let message = "the server is of a version of thawfs that publishes no checkpoints";
            return Err(Failure::new(Code::Unsupported, message)
                .hint(format!("checkpoint {} is kept on this machine", made.id)));
        }
        (false, _) => None,
    };
    if output.json {
        let Made { id, fuzzy, durable, publishes, local_because } = &made;
        let dir = &asked.shown;
        let published = match &published {
            Some(outcome) => outcome_as_json(outcome),
            None => {
                let queued = Publishing::Queued { why: None };
                published::as_json(publishes.then_some(&queued))
            }
        };
        let value = serde_json::json!({
            "id": id, "dir": dir, "fuzzy": fuzzy, "durable": durable, "published": published,
            "localBecause": local_because
        });
        return output.print_json_line(&value);
    }
    if let Some(because) = &made.local_because {
        output.warn(&format!("kept on this machine only: {because}"));
    }
    for warning in published.iter().flat_map(|outcome| &outcome.warnings) {
        output.warn(warning);
    }
    if let Some(reason) = published.as_ref().and_then(|it| it.whole_because.as_ref()) {
        output.warn(&format!("all was packed: {reason}"));
    }
    made.fuzzy_in_words().for_each(|words| output.warn(&words));
    output.print_line(made.id.as_str())
}

impl Made {
    /// What is to be known of files that are of no one moment.
    pub(super) fn fuzzy_in_words(&self) -> impl Iterator<Item = String> {
        self.fuzzy.iter().map(|file| {
            let path = printable(file.path.to_string_lossy().as_bytes());
            format!("{path} was written to all the while: it may be of no one moment")
        })
    }
}

/// Waits for the backup of a new checkpoint.
fn wait_for(asked: &Mounted, id: &BackupId, output: &Output) -> Result<Outcome, Failure> {
    let never = AtomicBool::new(false);
    published::wait(&asked.control, (id, true), &never, output).map_err(|not| {
        let failure = match not {
            NotPublished::Failed(failure) | NotPublished::Unknown(failure) => failure,
            NotPublished::Interrupted => Failure::new(Code::Failed, "interrupted"),
        };
        let shown = &asked.shown;
        let message = format!("checkpoint {id} of {shown} is not in the bucket");
        let message = format!("{message}: {}", failure.message);
        Failure { code: Code::BackupCreateFailed, message, ..failure }
    })
}

pub(super) fn checkpoints(args: &CheckpointsArgs, output: &Output) -> Result<(), Failure> {
    let asked = Mounted::at(&args.dir)?;
    let listed: Listed = asked.ask(&Question::Checkpoints(ListRequest::default()))?;
    for (count, point) in listed.checkpoints.iter().enumerate() {
        if output.json {
            output.print_json_line(&shown(point, &asked.shown))?;
            continue;
        }
        if count == 0 && !output.quiet {
            let columns = ["ID", "SIZE", "CREATED", "STATE", "BUCKET", "NAME"];
            output.print_line(&row(" ", columns.map(str::to_owned)))?;
        }
        output.print_line(&point_row(point))?;
        if let Some(words) = published::in_words(point.published.as_ref()) {
            output.print_line(&format!("    {words}"))?;
        }
    }
    if listed.checkpoints.is_empty() && !output.json && !output.quiet {
        say(&format!("thawfs: no checkpoints of {}", asked.shown));
    }
    Ok(())
}

fn shown<'a>(point: &'a ListedPoint, dir: &'a str) -> Shown<'a> {
    let ListedPoint { id, name, created_ms, durable, bytes, fuzzy, rolled_away, last, .. } = point;
    let (published, forks) = (&point.published, &point.forks);
    let created = i64::try_from(*created_ms).ok().and_then(DateTime::from_timestamp_millis);
    Shown {
        id,
        dir,
        name: name.as_deref(),
        created_at: created.unwrap_or_default().to_rfc3339_opts(SecondsFormat::Millis, true),
        durable: *durable,
        bytes: *bytes,
        fuzzy,
        rolled_away: *rolled_away,
        last: *last,
        published: published::as_json(published.as_ref()),
        forks,
    }
}

fn row(mark: &str, [id, size, created, state, bucket, name]: [String; 6]) -> String {
    let line =
        format!("{mark} {id:<36}  {size:>9}  {created:<16}  {state:<11}  {bucket:<10}  {name}");
    line.trim_end().to_owned()
}

fn point_row(point: &ListedPoint) -> String {
    let state = match (point.rolled_away, point.durable) {
        (true, _) => "rolled away",
        (false, true) => "durable",
        (false, false) => "not synced",
    };
    let mut name = point.name.clone().unwrap_or_default();
    if !point.forks.is_empty() {
        let forks = point.forks.iter().map(|fork| printable(fork.to_string_lossy().as_bytes()));
        let forks = forks.collect::<Vec<_>>().join(", ");
        name = format!("{name} (forked: {forks})").trim_start().to_owned();
    }
    let columns = [
        point.id.to_string(),
        point.bytes.map_or_else(|| "-".to_owned(), human_bytes),
        human_time(i64::try_from(point.created_ms / 1000).unwrap_or(i64::MAX)),
        state.to_owned(),
        published::in_a_word(point.published.as_ref()).to_owned(),
        name,
    ];
    row(if point.last { "*" } else { " " }, columns)
}

pub(super) fn rollback(args: &RollbackArgs, output: &Output) -> Result<(), Failure> {
    let asked = Mounted::at(&args.dir)?;
    let to = match (&args.checkpoint, args.to_archive) {
        (_, true) => Target::Archive,
        (Some(which), false) => Target::Point(which.clone()),
        (None, false) => Target::Last,
    };
    let request = RollbackRequest { to, discard: args.discard, strict: args.strict };
    let done = asked.roll_back_as(request)?;
    let RolledBack { id, name, names, rolled_away, .. } = &done;
    if output.json {
        let dir = &asked.shown;
        return output.print_json_line(&serde_json::json!({
            "id": id, "dir": dir, "name": name, "names": names, "rolledAway": rolled_away
        }));
    }
    let to = match (id, name) {
        (None, _) => "what was mounted".to_owned(),
        (Some(id), None) => id.to_string(),
        (Some(id), Some(name)) => format!("{id} ({name})"),
    };
    output.print_line(&format!("{} is {to} again: {names} names changed", asked.shown))?;
    if let Some(away) = rolled_away.as_ref().filter(|_| !output.quiet) {
        output.print_line(&format!("thawfs rollback {} {away} takes this back", asked.shown))?;
    }
    Ok(())
}

pub(super) fn forget(args: &ForgetArgs, output: &Output) -> Result<(), Failure> {
    let asked = Mounted::at(&args.dir)?;
    let request = ForgetRequest { which: args.checkpoint.clone(), keep: args.keep };
    let done: Forgotten = asked.ask(&Question::Forget(request))?;
    if output.json {
        let Forgotten { forgotten, keep } = &done;
        let dir = &asked.shown;
        let value = serde_json::json!({ "dir": dir, "forgotten": forgotten, "keep": keep });
        return output.print_json_line(&value);
    }
    done.forgotten.iter().try_for_each(|id| output.print_line(&format!("forgot {id}")))
}
