//! `thawfs status`.

use std::path::Path;

use serde::Serialize;

use super::gc;
use super::output::{Output, human_age, human_bytes};
use crate::failure::{Code, Failure};
use crate::server::dead_mount;
use crate::server::fetch_report;
use crate::server::leftovers::{self, Leftover};
use crate::server::report::{PublishingReport, Report};
use crate::server::state::{MountDir, Record, StateDir};
use clap::{Args, ValueHint};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Only this mount.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) mountpoint: Option<PathBuf>,
}

/// One mount on record, with what its server says if it still does.
#[derive(Serialize)]
#[serde(rename_all = "lowercase", tag = "state")]
enum Mounted {
    /// The server answers.
    Live(Box<Report>),
    /// The server runs but says nothing.
    Silent(Record),
    /// The server was killed.
    Dead {
        #[serde(flatten)]
        record: Record,
        /// Whether its mount is still there, and answers nothing.
        mounted: bool,
        /// What lives inside of that, in words.
        inside: Option<String>,
    },
    /// No mount at all: an upper that no live mount has.
    Upper(Leftover),
}

pub(super) fn status(args: &StatusArgs, output: &Output) -> Result<(), Failure> {
    let state = StateDir::locate();
    let failed = |error| Failure::io("read", state.path(), &error);
    let wanted = |mountpoint: &Path| match &args.mountpoint {
        Some(wanted) => is_same(mountpoint, wanted),
        None => true,
    };
    let mut shown = state
        .read_mounts()
        .map_err(failed)?
        .into_iter()
        .filter(|(_, record)| wanted(&record.mountpoint))
        .map(|(mount, record)| look(&state, &mount, record))
        .collect::<Vec<_>>();
    if let (Some(wanted), true) = (&args.mountpoint, shown.is_empty()) {
        return Err(Failure::new(
            Code::NotMounted,
            format!("nothing of thawfs is on {}", wanted.display()),
        ));
    }
    let mounts = shown.len();
    let mut uppers = leftovers::find_uppers(&state).map_err(failed)?;
    uppers.retain(|upper| upper.mountpoint.as_deref().is_none_or(wanted));
    shown.extend(uppers.into_iter().map(Mounted::Upper));
    if output.json {
        return output.print_json(&shown);
    }
    if mounts == 0 {
        output.print_line("nothing is mounted")?;
    }
    for mount in &shown {
        describe(mount).iter().try_for_each(|line| output.print_line(line))?;
    }
    Ok(())
}

/// Compares without touching the mountpoint, which may be dead.
fn is_same(mountpoint: &Path, wanted: &Path) -> bool {
    std::path::absolute(wanted).is_ok_and(|wanted| wanted == mountpoint)
        || wanted.canonicalize().is_ok_and(|wanted| wanted == mountpoint)
}

fn look(state: &StateDir, mount: &MountDir, record: Record) -> Mounted {
    match fetch_report(&mount.control_path()) {
        Ok(report) => Mounted::Live(Box::new(report)),
        Err(_) if mount.is_alive() => Mounted::Silent(record),
        Err(_) => {
            let mounted = dead_mount(state, &record).is_some();
            let inside = leftovers::living_inside(state, &record);
            Mounted::Dead { record, mounted, inside }
        }
    }
}

/// A mount in lines for people.
fn describe(mount: &Mounted) -> Vec<String> {
    let report = match mount {
        Mounted::Live(report) => report,
        Mounted::Silent(record) => {
            let Record { source, mountpoint, pid, .. } = record;
            return vec![
                format!("{source} on {}", mountpoint.display()),
                format!("  server {pid} runs but does not answer"),
            ];
        }
        Mounted::Dead { record, mounted, inside } => {
            let Record { source, mountpoint, pid, .. } = record;
            let mountpoint = mountpoint.display();
            // No advice here may take down what lives, whatever is mounted there by the time it is taken.
            let advice = match (mounted, inside) {
                (true, Some(inside)) => {
                    format!(
                        "{inside} is mounted inside, and has to go before thawfs unmount --dead"
                    )
                }
                (true, None) => format!("clear it with: thawfs unmount --dead {mountpoint}"),
                (false, _) => "its mount is gone; thawfs gc shows what it left".to_owned(),
            };
            return vec![
                format!("{source} on {mountpoint}"),
                format!("  server {pid} was killed; {advice}"),
            ];
        }
        Mounted::Upper(upper) => {
            let kept = match (upper.kept, upper.ended) {
                (true, _) => "kept",
                (false, true) => "left for what was forked from it",
                (false, false) => "left by a server that was killed",
            };
            let advice = format!("  {kept}; thawfs gc shows what can be removed");
            return vec![gc::describe(upper), advice];
        }
    };
    let mut lines = vec![format!("{} on {}", report.source, report.mountpoint.display())];
    let mut line = |name: &str, value: String| lines.push(format!("  {name:<9} {value}"));
    let archive = &report.archive;
    line(
        "archive",
        format!(
            "{}, {} inodes, {}, blocks of {}",
            human_bytes(archive.bytes),
            archive.inodes,
            archive.compressor,
            human_bytes(archive.block_size.into())
        ),
    );
    match &report.upper {
        Some(upper) => line("upper", upper.display().to_string()),
        None => line("upper", "none (read-only)".into()),
    }
    let layers = &report.layers;
    if layers.layers > 0 {
        let bytes = human_bytes(layers.bytes);
        let synced = match layers.checkpoints - layers.durable.min(layers.checkpoints) {
            0 => String::new(),
            count => format!(", {count} not on disk yet"),
        };
        line("layers", format!("{} frozen, {bytes}", layers.layers));
        let (count, named) = (layers.checkpoints, layers.named);
        let away = if layers.rolled_away { "; the last rollback can be taken back" } else { "" };
        line("points", format!("{count} checkpoints, {named} with a name{synced}{away}"));
    }
    let publishing = &report.layers.publishing;
    let PublishingReport { queued, published, failed, bytes_sent, .. } = *publishing;
    if queued + published + failed > 0 {
        let now = match &publishing.now {
            Some(id) => format!("; {id} now, {} sent", human_bytes(bytes_sent)),
            None => String::new(),
        };
        let last = publishing.last.as_ref().map(|last| format!("; the last failure: {last}"));
        let last = last.unwrap_or_default();
        let counts = format!("{published} in the bucket, {queued} to come, {failed} failed");
        line("publish", format!("{counts}{now}{last}"));
    }
    if let Some(origin) = &layers.forked_from {
        line("fork", format!("of what {} was", origin.display()));
    }
    if !layers.forks.is_empty() {
        let forks = layers.forks.iter().map(|fork| fork.display().to_string());
        line("forks", forks.collect::<Vec<_>>().join(", "));
    }
    line("fetched", format!("{} in {} GETs", human_bytes(report.store.bytes), report.store.gets));
    line(
        "cache",
        format!(
            "chunks {} hits, {} misses, {} held; blocks {} hits, {} decoded",
            report.chunks.hits,
            report.chunks.misses,
            human_bytes(report.chunks.resident_bytes),
            report.blocks.hits,
            report.blocks.decoded
        ),
    );
    let disk = &report.disk;
    if (disk.bytes, disk.written_bytes) != (0, 0) {
        let [read, written] = [disk.bytes, disk.written_bytes].map(human_bytes);
        let (damaged, dropped) = (disk.damaged, disk.dropped);
        let troubles = format!("{damaged} chunks damaged, {dropped} not written");
        line("disk", format!("{read} read, {written} written, {troubles}"));
    }
    line(
        "server",
        format!(
            "pid {}, {} resident, {} files known, up {}",
            report.pid,
            human_bytes(report.resident_bytes),
            report.nodes,
            human_age(report.since)
        ),
    );
    let changes = &report.changes;
    if changes.readers > 0 {
        let [memory, journal] = [changes.memory_bytes, changes.journal_bytes].map(human_bytes);
        let held = format!("{memory} in memory, {journal} on disk");
        line("watched", format!("by {}, {} changes, {held}", changes.readers, changes.written));
    }
    for group in &report.groups {
        let path = group.path.display();
        line(
            "group",
            match &group.because {
                None => format!("{path}, its own"),
                Some(because) => format!("{path}, its caller's: {because}"),
            },
        );
    }
    if report.store.hedges > 0 {
        let store = &report.store;
        line("slow", format!("{} GETs asked again, {} sooner so", store.hedges, store.hedges_won));
    }
    if report.store.retries > 0 || report.store.errors > 0 {
        let store = &report.store;
        line("network", format!("{} retries, {} failures", store.retries, store.errors));
    }
    match &report.faults.last {
        Some(last) => line("errors", format!("{}, the last: {last}", report.faults.count)),
        None => line("errors", "none".into()),
    }
    lines
}
