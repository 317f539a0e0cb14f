//! `thawfs create`.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::backups::OpenBucket;
use super::create_live::LiveMount;
use super::groups::BucketArgs;
use super::mount::lock;
use super::output::{Output, human_bytes, say};
use super::progress::At;
use super::values::{parse_compression, parse_seconds};
use crate::backup::{
    Backups, CreateProgress, CreateRequest, Created, Destination, Metadata, Presigned,
    start_runtime,
};
use crate::environment::Environment;
use crate::failure::{Code, Failure};
use crate::squashfs::write::Compression;
use clap::{ArgAction, Args, ValueHint};
use std::num::NonZeroUsize;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The directory to back up.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,

    /// What to call the backup.
    #[arg(long, value_name = "TEXT", help_heading = "Backup")]
    pub(crate) name: Option<String>,

    /// How long it may be restored: 30d, 12h, or seconds [default: 3d].
    #[arg(long, value_name = "DURATION", help_heading = "Backup", value_parser = parse_seconds)]
    pub(crate) ttl: Option<u64>,

    /// Leave out what matches, from the top of DIR or at any depth, as mksquashfs's wildcards do.
    #[arg(long, value_name = "PATTERN", help_heading = "Contents", action = ArgAction::Append)]
    pub(crate) exclude: Vec<String>,

    /// Leave out what git ignores, if DIR is in a work tree.
    #[arg(long, help_heading = "Contents")]
    pub(crate) gitignore: bool,

    /// lz4, zstd[:1-22], gzip[:1-9] or xz.
    /// [default: zstd:3, or as the archive of the mount that DIR is in].
    #[arg(long, value_name = "NAME[:LEVEL]", help_heading = "Archive",
          value_parser = parse_compression)]
    pub(crate) compression: Option<Compression>,

    /// Pack everything anew, also what a mount that DIR is in has unchanged from its archive.
    #[arg(long, help_heading = "Archive")]
    pub(crate) full: bool,

    /// How many threads compress [default: one for each core].
    #[arg(long, value_name = "N", help_heading = "Archive")]
    pub(crate) threads: Option<NonZeroUsize>,

    /// Send to the presigned URLs in this file (- for standard input) rather than to a bucket, even
    /// where one is named.
    #[arg(long, value_name = "FILE", conflicts_with = "account_id", value_hint = ValueHint::FilePath)]
    pub(crate) presigned: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) bucket: BucketArgs,
}

/// Most bytes of a file of presigned URLs: 10,000 of them of a few hundred bytes each, and room.
const MAX_PRESIGNED: u64 = 64 << 20;

/// Where a backup goes.
enum Place {
    Bucket(Box<Backups>),
    Presigned(Destination),
}

pub(super) fn create(args: CreateArgs, output: &Output) -> Result<(), Failure> {
    if args.dir.to_string_lossy().contains("://") {
        let message = "what is backed up is a directory, and no URL";
        return Err(Failure::new(Code::InvalidBackupConfig, message)
            .hint("where the backup goes is said by --bucket: thawfs create DIR --bucket URL"));
    }
    let (runtime, place) = match &args.presigned {
        Some(file) => {
            let access = args.bucket.store.access();
            let destination = read_presigned(file)?.destination(&access)?;
            (start_runtime()?, Place::Presigned(destination))
        }
        None => {
            let OpenBucket { runtime, backups } = OpenBucket::open(&args.bucket)?;
            (runtime, Place::Bucket(Box::new(backups)))
        }
    };
    let request = CreateRequest {
        dir: args.dir,
        name: args.name,
        ttl: args.ttl.unwrap_or(Metadata::DEFAULT_TTL),
        exclude: args.exclude,
        gitignore: args.gitignore,
        compression: args.compression,
        whole: args.full,
        threads: args.threads,
        mkfs_time: source_date_epoch()?,
    };
    let progress = Arc::new(CreateProgress::default());
    // Whoever restores this directory replaces what is being read here, so one waits for the other. A
    // directory that does not exist is reported below.
    let _lock = match request.dir.canonicalize() {
        Ok(dir) => Some(lock(&dir, output)?),
        Err(_) => None,
    };
    // Until here a signal ends the program as usual: there is nothing to clean up.
    cancel_on_signal(&progress)?;
    let started = Instant::now();
    if let Place::Bucket(backups) = &place
        && let Some(live) = LiveMount::find(&request, backups, &runtime)
        && let Some(created) = live.create(&request, &progress, output)?
    {
        return tell(&created, true, started, output);
    }
    let shown = output.progress({
        let progress = Arc::clone(&progress);
        move || {
            let (done, total) = (progress.bytes_packed(), progress.bytes_total());
            At::bytes(if done < total || total == 0 { "packing" } else { "sending" }, done, total)
        }
    });
    let created = runtime.block_on(async {
        match place {
            Place::Bucket(backups) => backups.create(&request, progress).await,
            Place::Presigned(destination) => destination.create(&request, progress).await,
        }
    });
    drop(shown);
    tell(&created?, false, started, output)
}

fn tell(
    created: &Created,
    by_server: bool,
    started: Instant,
    output: &Output,
) -> Result<(), Failure> {
    for warning in &created.warnings {
        output.warn(warning);
    }
    show(created, by_server, started.elapsed(), output).map_err(|failure| {
        let Metadata { id, dir, .. } = &created.metadata;
        let message = format!("backup {id} of {dir} was made, but {}", failure.message);
        Failure { message, ..failure }
    })
}

/// The handle goes to standard output, for `restore`; what people like to know to standard error.
fn show(
    created: &Created,
    by_server: bool,
    took: Duration,
    output: &Output,
) -> Result<(), Failure> {
    let Created { metadata, inodes, bytes, base, bytes_kept, whole_because, .. } = created;
    if output.json {
        return output.print_json_line(&serde_json::json!({
            "id": metadata.id,
            "dir": metadata.dir,
            "name": metadata.name,
            "sizeBytes": metadata.size_bytes,
            "ttl": metadata.ttl,
            "files": inodes,
            "bytes": bytes,
            "base": base,
            "bytesKept": bytes_kept,
            "wholeBecause": whole_because,
            "byServer": by_server,
            "seconds": took.as_secs_f64(),
        }));
    }
    if !output.quiet {
        say(&format!(
            "{inodes} files, {} in an archive of {}, in {:.1} s",
            human_bytes(*bytes),
            human_bytes(metadata.size_bytes),
            took.as_secs_f64()
        ));
        if by_server {
            say("made by the server of the mount, of the moment at which it was asked");
        }
        if let Some(base) = base {
            let (kept, new) = (human_bytes(*bytes_kept), human_bytes(bytes - bytes_kept));
            say(&format!("{new} packed; {kept} unchanged since {base}, copied within the bucket"));
        }
        if let Some(reason) = whole_because {
            say(&format!("all was packed: {reason}"));
        }
    }
    output.print_json_line(&metadata.handle())
}

/// The first signal calls the backup off, which removes what was sent; a second one ends the program.
/// A hangup that is ignored stays so: that is what nohup(1) does for its command.
fn cancel_on_signal(progress: &CreateProgress) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(Code::Failed, format!("cannot handle signals: {error}"))
    };
    let hangup = (!is_ignored(SIGHUP)).then_some(SIGHUP);
    for signal in [SIGINT, SIGTERM].into_iter().chain(hangup) {
        let cancel = progress.cancel();
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(cancel))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(cancel)))
            .map_err(failed)?;
    }
    Ok(())
}

/// Whether this program was started with a signal ignored.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

fn read_presigned(file: &Path) -> Result<Presigned, Failure> {
    let unusable = |reason: String| {
        let message = format!("the presigned URLs in {}: {reason}", file.display());
        Failure::new(Code::InvalidBackupConfig, message)
            .hint("docs/CONFIGURATION.md shows what such a file holds")
    };
    let mut text = String::new();
    let read = match file.as_os_str() == "-" {
        true => std::io::stdin().lock().take(MAX_PRESIGNED).read_to_string(&mut text),
        false => std::fs::File::open(file)
            .and_then(|file| file.take(MAX_PRESIGNED).read_to_string(&mut text)),
    };
    read.map_err(|error| unusable(error.to_string()))?;
    // What serde says of a wrong value may repeat it, and URLs are secrets.
    serde_json::from_str(&text).map_err(|error| {
        let reason = match error.classify() {
            serde_json::error::Category::Data => "a key is missing, or a value of the wrong kind",
            _ => "it is not JSON",
        };
        unusable(format!("line {}: {reason}", error.line()))
    })
}

/// `SOURCE_DATE_EPOCH`, by which two archives of one tree are alike.
fn source_date_epoch() -> Result<Option<u32>, Failure> {
    const NAME: &str = "SOURCE_DATE_EPOCH";
    let environment = Environment::of_process();
    let Some(text) = environment.get(NAME) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| {
        Failure::new(Code::Usage, format!("{NAME}={text:?} is no number of seconds since 1970"))
    })
}
