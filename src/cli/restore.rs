//! `thawfs restore`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::ProgressBar;
use serde::Serialize;

use super::backups::OpenBucket;
use super::extract::extract_opened;
use super::groups::{AheadArgs, BucketArgs, DiskArgs};
use super::mount::{check_not_source, is_squashfs, show as show_ready};
use super::options;
use super::output::{Output, say};
use super::progress::At;
use super::values::parse_bytes;
use crate::backup::default_cache_memory;
use crate::backup::{BackupId, BucketRequest, ExtractOptions, Handle, Metadata, SourceRequest};
use crate::failure::{Code, Failure};
use crate::names;
use crate::server::checkpoints::{ListRequest, Listed, RollbackRequest, RolledBack, Target};
use crate::server::questions::Question;
use crate::server::{self, Mounted, RestoreRequest, Restored, fetch_report, restart_limited};
use crate::store::Source;
use clap::{ArgAction, Args, ValueHint};
use std::ffi::OsString;

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// What create printed ({"id": …}), a file that holds it, - for standard input, an id, or a
    /// presigned URL of an archive.
    #[arg(value_name = "BACKUP")]
    pub(crate) backup: String,

    /// Where to; made if it does not exist [default: where the backup was made, unless that belongs to
    /// the system, as /etc does].
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: Option<PathBuf>,

    /// Unpack into ordinary files, for machines without /dev/fuse. DIR must be empty or missing.
    #[arg(long, conflicts_with_all = ["read_only", "keep_upper", "foreground", "options"])]
    pub(crate) extract: bool,

    /// Unpack setuid and setgid bits of files, capabilities and devices, too; they are left out
    /// otherwise, and counted.
    // What conflicts with --extract is said again: clap requires nothing that cannot be given.
    #[arg(long, requires = "extract",
          conflicts_with_all = ["read_only", "keep_upper", "foreground", "options"])]
    pub(crate) preserve_privileged: bool,

    /// Allow no changes; there is no upper then.
    #[arg(long, visible_alias = "ro", help_heading = "Changes", conflicts_with = "keep_upper")]
    pub(crate) read_only: bool,

    /// Do not remove the upper that is made for this mount.
    #[arg(long, help_heading = "Changes")]
    pub(crate) keep_upper: bool,

    /// Stay attached until unmounted; log to standard error.
    #[arg(long, short, help_heading = "Mount")]
    pub(crate) foreground: bool,

    /// Options as mount(8) writes them; see thawfs mount --help.
    #[arg(short = 'o', value_name = "OPTIONS", help_heading = "Mount", action = ArgAction::Append)]
    pub(crate) options: Vec<OsString>,

    /// Memory for cached data; suffixes K, M, G [default: 24M, or a tenth of what there is].
    #[arg(long, value_name = "BYTES", default_value_t = default_cache_memory(),
          hide_default_value = true, help_heading = "Mount", value_parser = parse_bytes)]
    pub(crate) cache_memory: u64,

    #[command(flatten)]
    pub(crate) disk: DiskArgs,

    #[command(flatten)]
    pub(crate) ahead: AheadArgs,

    #[command(flatten)]
    pub(crate) bucket: BucketArgs,
}

/// Most bytes of a handle; the directory in it has 4 KiB at most.
const MAX_HANDLE: u64 = 64 << 10;

pub(super) fn restore(args: RestoreArgs, output: &Output) -> Result<(), Failure> {
    if args.foreground {
        if args.backup == "-" {
            let message = "in the foreground, the handle cannot come through standard input";
            return Err(Failure::new(Code::Usage, message).hint("name a file, or give the id"));
        }
        // This process is the server.
        restart_limited();
    }
    if args.backup.starts_with("https://") || args.backup.starts_with("http://") {
        return restore_url(args, output);
    }
    if let Some(dir) = &args.dir {
        check_not_backup(dir)?;
    }
    let Given { id, dir: made_in } = read_backup(&args.backup)?;
    if let Some(asked) = has_checkpoint(&args, &id, made_in.as_deref()) {
        return roll_back_to(&asked, &id, output);
    }
    if args.foreground {
        let BucketRequest { bucket, access, .. } = args.bucket.request().or_configured()?;
        let source = SourceRequest::new(bucket.unwrap_or_default());
        // Before the bucket has threads.
        server::restrict(&SourceRequest { access, ..source });
    }
    let OpenBucket { runtime, backups } = OpenBucket::open(&args.bucket)?;
    if args.extract {
        let failed = |failure| {
            server::still_here(&id, runtime.block_on(backups.restore_failed(&id, failure)))
        };
        let metadata = runtime.block_on(backups.restorable(&id)).map_err(failed)?;
        let dir = match (&args.dir, made_in) {
            (Some(chosen), _) => chosen.clone(),
            (None, Some(made_in)) => server::check_unchosen(&made_in)?,
            (None, None) => server::check_unchosen(Path::new(&metadata.dir))?,
        };
        let extract = || {
            let mut source = backups.archive(&id)?;
            source.disk_cache = args.disk.limit()?;
            extract_opened(&source.open()?, &dir, &extract_options(&args), output)
        };
        return extract().map_err(failed);
    }
    // In the foreground, it lasts for as long as the mount does.
    let shown = output.progress(|| At::unknown("restoring"));
    let mut request = restore_request(&args, output, shown.line())?;
    request.made_in = made_in;
    if args.foreground {
        drop(shown);
        let output = *output;
        return runtime.block_on(server::restore_here(&backups, &id, request, move |restored| {
            // A reader who has gone away does not end the mount.
            let _ = show(&restored, &output);
        }));
    }
    let restored = runtime.block_on(server::restore(&backups, &id, request));
    drop(shown);
    show(&restored?, output)
}

/// The mount that is where the backup is to be restored to, if that is a checkpoint of it, and it is not to be mounted
/// otherwise than it is.
fn has_checkpoint(args: &RestoreArgs, id: &BackupId, made_in: Option<&Path>) -> Option<Mounted> {
    let is_otherwise = args.extract || args.foreground || args.read_only || args.keep_upper;
    if is_otherwise || !args.options.is_empty() {
        return None;
    }
    match args.dir.as_deref().or(made_in) {
        None => Mounted::at(&server::find_point(id)?.0).ok(),
        Some(dir) => {
            let asked = Mounted::at(dir).ok()?;
            let question = Question::Checkpoints(ListRequest::default());
            let listed: Listed = asked.ask(&question).ok()?;
            listed.checkpoints.iter().any(|point| point.id == *id).then_some(asked)
        }
    }
}

/// Restores what a mount has as a checkpoint: in place, as `rollback` does.
fn roll_back_to(asked: &Mounted, id: &BackupId, output: &Output) -> Result<(), Failure> {
    let to = Target::Point(id.to_string());
    let done = asked.roll_back_as(RollbackRequest { to, discard: false, strict: false })?;
    let RolledBack { name, names, rolled_away, .. } = &done;
    let dir = &asked.shown;
    if output.json {
        let report = fetch_report(&asked.control).ok();
        return output.print_json_line(&serde_json::json!({
            "id": id, "dir": dir, "name": name, "mountpoint": dir,
            "upper": report.as_ref().and_then(|report| report.upper.clone()),
            "pid": report.map(|report| report.pid), "hidesFiles": false,
            "rolledBack": true, "rolledAway": rolled_away
        }));
    }
    if output.quiet {
        return Ok(());
    }
    let how = "a checkpoint of the mount that is there, which is rolled back to it";
    output.print_line(&format!("{id} is {how}: {names} names changed in {dir}"))?;
    match rolled_away {
        Some(away) => output.print_line(&format!("thawfs rollback {dir} {away} takes this back")),
        None => Ok(()),
    }
}

/// Restores through a URL, of which nothing else is known.
fn restore_url(args: RestoreArgs, output: &Output) -> Result<(), Failure> {
    let Some(dir) = &args.dir else {
        return Err(Failure::new(Code::Usage, "a URL does not say where to restore to")
            .hint("name the directory behind it"));
    };
    if args.foreground {
        return Err(Failure::new(Code::Usage, "a URL is not restored in the foreground")
            .hint("use thawfs mount --foreground"));
    }
    let source = SourceRequest {
        access: args.bucket.store.access(),
        cache_memory: args.cache_memory,
        disk_cache: args.disk.limit()?,
        ..SourceRequest::new(args.backup.clone())
    };
    if args.extract {
        return extract_opened(&source.open()?, dir, &extract_options(&args), output);
    }
    let shown = output.progress(|| At::unknown("restoring"));
    let request = restore_request(&args, output, shown.line())?;
    let dir = request.dir.clone().unwrap_or_default();
    let ready = server::restore_archive(&source, &dir, request);
    drop(shown);
    show_ready(&ready?, output)
}

fn extract_options(args: &RestoreArgs) -> ExtractOptions {
    ExtractOptions { preserve_privileged: args.preserve_privileged, ..ExtractOptions::default() }
}

/// `line` is what shows how far it is.
fn restore_request(
    args: &RestoreArgs,
    output: &Output,
    line: ProgressBar,
) -> Result<RestoreRequest, Failure> {
    let quiet = output.quiet;
    let mut request = RestoreRequest {
        dir: args.dir.as_ref().map(|dir| std::path::absolute(dir).unwrap_or(dir.clone())),
        notice: Arc::new(move |notice| {
            if !quiet {
                line.suspend(|| say(&format!("thawfs: {notice}")));
            }
        }),
        ..RestoreRequest::default()
    };
    request.mount.read_only = args.read_only;
    request.mount.keep_upper = args.keep_upper;
    request.mount.source.cache_memory = args.cache_memory;
    request.mount.source.disk_cache = args.disk.limit()?;
    request.mount.share_trace = args.ahead.share_trace;
    request.mount.fill = args.ahead.fill;
    for option in args.options.iter().flat_map(|text| options::split(text)) {
        option.check_restorable()?;
        option.apply(&mut request.mount)?;
    }
    Ok(request)
}

fn show(restored: &Restored, output: &Output) -> Result<(), Failure> {
    let Restored { metadata, ready } = restored;
    ready.warnings.iter().for_each(|warning| output.warn(warning));
    let Metadata { id, dir, name, .. } = metadata;
    if output.json {
        #[derive(Serialize)]
        struct Shown<'a> {
            id: &'a BackupId,
            dir: &'a str,
            name: Option<&'a str>,
            #[serde(flatten, with = "names::mountpoint")]
            mountpoint: PathBuf,
            #[serde(flatten, with = "names::upper")]
            upper: Option<PathBuf>,
            pid: u32,
            #[serde(rename = "hidesFiles")]
            hides_files: bool,
        }
        return output.print_json_line(&Shown {
            id,
            dir,
            name: name.as_deref(),
            mountpoint: ready.mountpoint.clone(),
            upper: ready.upper.clone(),
            pid: ready.pid,
            hides_files: ready.hides_files,
        });
    }
    if output.quiet {
        return Ok(());
    }
    output.print_line(&format!("backup {id} of {dir} on {}", ready.mountpoint.display()))
}

/// What the user typed: which backup, and where it was made, if that is told.
struct Given {
    id: BackupId,
    dir: Option<PathBuf>,
}

/// Reads an id, a handle, or where one of them is.
fn read_backup(text: &str) -> Result<Given, Failure> {
    if text.trim_start().starts_with('{') {
        return parse_handle(text, "the handle");
    }
    if text == "-" {
        let mut handle = Vec::new();
        let read = std::io::stdin().lock().take(MAX_HANDLE).read_to_end(&mut handle);
        read.map_err(|error| unreadable("standard input", &error.to_string()))?;
        return parse_handle(&as_text(handle, "standard input")?, "standard input");
    }
    match text.parse() {
        Ok(id) => Ok(Given { id, dir: None }),
        Err(_) if text.contains("://") || text.ends_with(".sqsh") && !Path::new(text).exists() => {
            Err(is_archive(&text.parse::<Source>()?.to_string()))
        }
        Err(failure) if !Path::new(text).exists() => Err(failure),
        Err(_) if Path::new(text).is_dir() => {
            let message = format!("{text} is a directory, where a backup is due");
            Err(Failure::new(Code::InvalidBackupConfig, message)
                .hint("the backup comes first, the directory behind it: thawfs restore ID DIR"))
        }
        Err(_) => {
            let mut handle = Vec::new();
            let file = std::fs::File::open(text);
            file.and_then(|file| file.take(MAX_HANDLE).read_to_end(&mut handle))
                .map_err(|error| unreadable(text, &error.to_string()))?;
            parse_handle(&as_text(handle, text)?, text)
        }
    }
}

/// The text of what should be a handle, and may be an archive.
fn as_text(bytes: Vec<u8>, place: &str) -> Result<String, Failure> {
    if is_squashfs(&bytes) {
        return Err(is_archive(place));
    }
    String::from_utf8(bytes).map_err(|_| unreadable(place, "it is not text"))
}

fn is_archive(place: &str) -> Failure {
    Failure::new(
        Code::InvalidBackupConfig,
        format!("{place} is an archive, where the handle of a backup is due"),
    )
    .hint(
        "thawfs mount SOURCE DIR mounts an archive, thawfs extract SOURCE DIR unpacks it; a backup \
             is restored by its id, from the bucket that --bucket names",
    )
}

/// Refuses an id or a handle where a directory is due: the two are easily swapped.
fn check_not_backup(dir: &Path) -> Result<(), Failure> {
    check_not_source(dir, Code::InvalidBackupConfig)?;
    let text = dir.to_string_lossy();
    if text.parse::<BackupId>().is_err() && !text.starts_with('{') || dir.is_dir() {
        return Ok(());
    }
    Err(Failure::new(
        Code::InvalidBackupConfig,
        format!("{text} is a backup, where a directory is due"),
    )
    .hint("the backup comes first, the directory behind it: thawfs restore ID DIR"))
}

/// A handle, or a bare id as people keep it in a file.
fn parse_handle(text: &str, place: &str) -> Result<Given, Failure> {
    let text = text.trim();
    if let Ok(id) = text.parse() {
        return Ok(Given { id, dir: None });
    }
    let handle: Result<Handle, _> = serde_json::from_str(text);
    let handle = handle.map_err(|error| unreadable(place, &error.to_string()))?;
    handle.check()?;
    Ok(Given { id: handle.id, dir: Some(handle.dir.into()) })
}

fn unreadable(place: &str, reason: &str) -> Failure {
    Failure::new(Code::InvalidBackupConfig, format!("no handle of a backup in {place}: {reason}"))
        .hint("it is what create prints: {\"id\": …, \"dir\": …}")
}
