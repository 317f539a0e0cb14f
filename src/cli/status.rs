//! `thawfs status`.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::args::StatusArgs;
use super::output::{Output, human_bytes};
use crate::failure::{Code, Failure};
use crate::server::fetch_report;
use crate::server::report::Report;
use crate::server::state::{MountDir, Record, StateDir};

/// One mount on record, with what its server says if it still does.
#[derive(Serialize)]
#[serde(rename_all = "lowercase", tag = "state")]
enum Mounted {
    /// The server answers.
    Live(Box<Report>),
    /// The server runs but says nothing.
    Silent(Record),
    /// The server was killed.
    Dead(Record),
}

pub(super) fn status(args: &StatusArgs, output: &Output) -> Result<(), Failure> {
    let state = StateDir::locate();
    let mounts = state
        .read_mounts()
        .map_err(|error| Failure::io("read", state.path(), &error))?
        .into_iter()
        .filter(|(_, record)| match &args.mountpoint {
            Some(wanted) => is_same(&record.mountpoint, wanted),
            None => true,
        })
        .map(|(mount, record)| look(&mount, record))
        .collect::<Vec<_>>();
    if let (Some(wanted), true) = (&args.mountpoint, mounts.is_empty()) {
        return Err(Failure::new(
            Code::NotMounted,
            format!("nothing of thawfs is on {}", wanted.display()),
        ));
    }
    if output.json {
        return output.print_json(&mounts);
    }
    if mounts.is_empty() {
        return output.print_line("nothing is mounted");
    }
    for mount in &mounts {
        describe(mount).iter().try_for_each(|line| output.print_line(line))?;
    }
    Ok(())
}

/// Compares without touching the mountpoint, which may be dead.
fn is_same(mountpoint: &Path, wanted: &Path) -> bool {
    std::path::absolute(wanted).is_ok_and(|wanted| wanted == mountpoint)
        || wanted.canonicalize().is_ok_and(|wanted| wanted == mountpoint)
}

fn look(mount: &MountDir, record: Record) -> Mounted {
    match fetch_report(&mount.control_path()) {
        Ok(report) => Mounted::Live(Box::new(report)),
        Err(_) if mount.is_alive() => Mounted::Silent(record),
        Err(_) => Mounted::Dead(record),
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
        Mounted::Dead(record) => {
            let Record { source, mountpoint, pid, .. } = record;
            let mountpoint = mountpoint.display();
            return vec![
                format!("{source} on {mountpoint}"),
                format!("  server {pid} was killed; clear it with: thawfs unmount {mountpoint}"),
            ];
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

fn human_age(since: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let seconds = now.saturating_sub(since);
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds} s"),
        (0, 0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (days, hours, ..) => format!("{days} d {hours} h"),
    }
}
