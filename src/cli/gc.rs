//! `thawfs gc`.

use serde::Serialize;

use super::output::{Output, human_age, human_bytes};
use crate::failure::Failure;
use crate::server::leftovers::{self, Kind, Leftover};
use crate::server::state::StateDir;
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// Remove what is listed, changes that were never backed up included.
    #[arg(long, short)]
    pub(crate) yes: bool,

    /// Uppers that were kept by --keep-upper as well, or for a checkpoint with a name.
    #[arg(long)]
    pub(crate) kept: bool,
}

#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    leftover: &'a Leftover,
    removed: bool,
}

/// Lists what belongs to no live mount, or removes it. What cannot be removed keeps nothing else from it.
pub(super) fn gc(args: &GcArgs, output: &Output) -> Result<(), Failure> {
    let state = StateDir::locate();
    let mut found =
        leftovers::find(&state).map_err(|error| Failure::io("read", state.path(), &error))?;
    let (mut count, mut bytes) = (0u64, 0u64);
    let mut failed: Option<Failure> = None;
    for leftover in &mut found {
        let spared = leftover.kept && !args.kept;
        let removed = match args.yes && !spared {
            true => leftover.remove(&state),
            false => Ok(false),
        };
        let removed = removed.unwrap_or_else(|failure| {
            if let Some(earlier) = failed.replace(failure) {
                output.fail(&earlier);
            }
            false
        });
        let (bytes_of_it, is_held) = (leftover.bytes, leftover.because.is_some());
        if removed || (!args.yes && !spared && !is_held) {
            count += 1;
            bytes += bytes_of_it;
        }
        if output.json {
            output.print_json_line(&Told { leftover, removed })?;
        } else if !output.quiet {
            let verb = match (removed, args.yes || is_held, spared) {
                (true, ..) => "removed",
                (false, _, true) => "kept",
                (false, true, false) => "left",
                (false, false, false) => "would remove",
            };
            output.print_line(&format!("{verb} {}", describe(leftover)))?;
        }
    }
    if args.yes {
        leftovers::forget_gone(&state);
    }
    if output.json {
        let summary = serde_json::json!({ "count": count, "bytes": bytes, "dryRun": !args.yes });
        output.print_json_line(&summary)?;
    } else if !output.quiet {
        let freed = if args.yes { "freed" } else { "would be freed by thawfs gc --yes" };
        output.print_line(&format!("{count} leftovers, {} {freed}", human_bytes(bytes)))?;
    }
    failed.map_or(Ok(()), Err)
}

/// What it is, where, how large and how old, and what it was.
pub(super) fn describe(leftover: &Leftover) -> String {
    let what = match leftover.kind {
        Kind::Record => "the record",
        Kind::Upper => "the upper",
        Kind::Work => "the work directory",
        Kind::Staging => "the unfinished extract",
        Kind::Lock => "the lock",
        Kind::Group => "the control group",
    };
    let mut text = format!("{what} {}", leftover.path.display());
    if !matches!(leftover.kind, Kind::Lock | Kind::Group) {
        text.push_str(&format!(": {}", human_bytes(leftover.bytes)));
        if let Some(since) = leftover.since {
            text.push_str(&format!(", {} old", human_age(since)));
        }
    }
    if let (Some(source), Some(mountpoint)) = (&leftover.source, &leftover.mountpoint) {
        text.push_str(&format!(", of {source} on {}", mountpoint.display()));
    }
    match leftover.checkpoints {
        0 => {}
        1 => text.push_str(", with a checkpoint"),
        count => text.push_str(&format!(", with {count} checkpoints")),
    }
    if let Some(because) = &leftover.because {
        text.push_str(&format!("; {because}"));
    }
    text
}
