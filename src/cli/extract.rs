//! `thawfs extract`: an archive as ordinary files.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use clap::{Args, ValueHint};
use serde::Serialize;

use super::groups::SourceArgs;
use super::mount::{check_not_source, source_request};
use super::output::{Output, human_bytes};
use super::progress::At;
use crate::backup::{self, ExtractOptions, ExtractProgress, OpenArchive, Staging, find};
use crate::failure::{Code, Failure};
use crate::server::leftovers;
use crate::server::state::{Note, StateDir};
use crate::squashfs::Archive;
use crate::types::FileKind;

#[derive(Debug, Args)]
pub(crate) struct ExtractArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,

    /// Where to unpack; made if missing, must be empty otherwise.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) into: PathBuf,

    /// Only this path inside the archive and what lies below it.
    #[arg(long, value_name = "PATH", default_value = "/")]
    pub(crate) path: OsString,

    /// How many files to fetch at a time.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) jobs: u16,

    /// Unpack setuid and setgid bits of files, capabilities and devices, too; they are left out
    /// otherwise, and counted.
    #[arg(long)]
    pub(crate) preserve_privileged: bool,
}

pub(super) fn extract(args: &ExtractArgs, output: &Output) -> Result<(), Failure> {
    check_not_source(&args.into, Code::Usage)?;
    let opened = source_request(&args.source)?.open()?;
    let options = ExtractOptions {
        path: args.path.as_bytes().to_vec(),
        jobs: args.jobs,
        preserve_privileged: args.preserve_privileged,
    };
    extract_opened(&opened, &args.into, &options, output)
}

/// Makes the directory in which `target` is unpacked, and writes down which one that is, for the next one or
/// `thawfs gc` to find should this process be killed. Nothing else depends on that.
fn stage(target: &Path, state: &StateDir) -> Result<(Staging, Option<Note>), Failure> {
    let note = |id| {
        let (target, path) = backup::staging_path(target).ok()?;
        leftovers::clear_staging(state, &target);
        let note = Note::Staging { path, target, id };
        let noted = state.note(&note);
        noted.inspect_err(|error| tracing::debug!("the extract is not noted: {error}")).ok()?;
        Some(note)
    };
    let before = note(None);
    let staging = Staging::create(target).inspect_err(|_| {
        before.iter().for_each(|note| state.forget(note));
    })?;
    let id = staging.id().ok();
    Ok((staging, id.and_then(|id| note(Some(id))).or(before)))
}

/// Unpacks into `target`, and shows how far it is and what it came to.
pub(super) fn extract_opened(
    opened: &OpenArchive,
    target: &Path,
    options: &ExtractOptions,
    output: &Output,
) -> Result<(), Failure> {
    /// What was unpacked.
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Extracted {
        files: u64,
        bytes: u64,
        withheld: u64,
        left_out: LeftOut,
    }

    /// What was left out because nobody asked for it.
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct LeftOut {
        set_ids: u64,
        capabilities: u64,
        devices: u64,
    }
    let progress = Arc::new(ExtractProgress::default());
    let total = total_bytes(&opened.archive, &options.path)?;
    let shown = output.progress({
        let progress = Arc::clone(&progress);
        move || At::bytes("unpacking", progress.bytes.load(Ordering::Relaxed), total)
    });
    // What is not in the archive is said before anything is made.
    find(&opened.archive, &options.path)?;
    let state = StateDir::locate();
    let (staging, noted) = stage(target, &state)?;
    let extracted = backup::extract_staged(&opened.archive, staging, options, &progress);
    if let Some(note) = noted {
        state.forget(&note);
    }
    drop(shown);
    extracted?;
    let done = Extracted {
        files: progress.files.load(Ordering::Relaxed),
        bytes: progress.bytes.load(Ordering::Relaxed),
        withheld: progress.withheld.load(Ordering::Relaxed),
        left_out: LeftOut {
            set_ids: progress.left_out.set_ids.load(Ordering::Relaxed),
            capabilities: progress.left_out.capabilities.load(Ordering::Relaxed),
            devices: progress.left_out.devices.load(Ordering::Relaxed),
        },
    };
    let LeftOut { set_ids, capabilities, devices } = done.left_out;
    if set_ids + capabilities + devices > 0 {
        output.warn(&format!(
            "left out: setuid or setgid bits of {set_ids} files, capabilities of {capabilities}, \
             {devices} devices; --preserve-privileged keeps them"
        ));
    }
    if done.withheld > 0 {
        output.warn(&format!(
            "{} owners, devices or attributes that only root may set were left out",
            done.withheld
        ));
    }
    if output.json {
        return output.print_json(&done);
    }
    if output.quiet {
        return Ok(());
    }
    output.print_line(&format!(
        "{} files, {} into {}",
        done.files,
        human_bytes(done.bytes),
        target.display()
    ))
}

/// Bytes of all regular files to be unpacked, each hard link counted once.
fn total_bytes(archive: &Archive, path: &[u8]) -> Result<u64, Failure> {
    let start = find(archive, path)?;
    if start.kind != FileKind::Directory {
        return Ok(start.size);
    }
    let mut seen = HashSet::new();
    let mut total = 0u64;
    // What cannot be read is for the unpacking to say, which knows its path.
    for entry in archive.walk_from(&start).flatten() {
        let inode = entry.inode;
        if inode.kind == FileKind::Regular && (inode.nlink < 2 || seen.insert(inode.reference)) {
            total = total.saturating_add(inode.size);
        }
    }
    Ok(total)
}
