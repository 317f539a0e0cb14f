//! `thawfs warm`: an archive, or part of it, into the disk cache.

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::backups::OpenBucket;
use super::groups::{BucketArgs, DiskArgs, ReadingArgs};
use super::mount::request_for;
use super::output::{Output, human_bytes};
use super::progress::At;
use super::values::parse_bytes;
use crate::backup::{BackupId, Warmed};
use crate::cache::Warming;
use crate::failure::Failure;
use clap::Args;
use std::ffi::OsString;

#[derive(Debug, Args)]
pub(crate) struct WarmArgs {
    /// Id of a backup, or an archive as for mount: s3://BUCKET/KEY or https://….
    #[arg(value_name = "ID|SOURCE")]
    pub(crate) target: String,

    /// What to fetch, with all that is below [default: everything].
    #[arg(value_name = "PATH")]
    pub(crate) paths: Vec<OsString>,

    /// Most bytes per second; suffixes K, M, G [default: what there can be].
    #[arg(long, value_name = "RATE", default_value = "0", hide_default_value = true,
          value_parser = parse_bytes)]
    pub(crate) rate: u64,

    #[command(flatten)]
    pub(crate) bucket: BucketArgs,

    #[command(flatten)]
    pub(crate) reading: ReadingArgs,

    #[command(flatten)]
    pub(crate) disk: DiskArgs,
}

pub(super) fn warm(args: &WarmArgs, output: &Output) -> Result<(), Failure> {
    let mut request = match args.target.parse::<BackupId>() {
        Ok(id) => {
            let OpenBucket { runtime, backups } = OpenBucket::open(&args.bucket)?;
            runtime.block_on(backups.restorable(&id))?;
            backups.archive(&id)?
        }
        Err(_) => request_for(&args.target, &args.bucket.store, &args.reading),
    };
    request.disk_cache = args.disk.limit()?;
    let opened = request.open()?;
    let warming = Arc::new(Warming::default());
    warming.bytes_per_second.store(args.rate, Ordering::Relaxed);
    let shown = output.progress({
        let warming = Arc::clone(&warming);
        move || {
            let (done, total) = (&warming.done, &warming.total);
            At::bytes("warming", done.load(Ordering::Relaxed), total.load(Ordering::Relaxed))
        }
    });
    let paths: Vec<Vec<u8>> = args.paths.iter().map(|path| path.as_bytes().to_vec()).collect();
    let warmed = opened.warm(&paths, &warming);
    drop(shown);
    tell(&opened.name, warmed?, output)
}

fn tell(name: &str, warmed: Warmed, output: &Output) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Told<'a> {
        source: &'a str,
        #[serde(flatten)]
        warmed: Warmed,
    }
    if output.json {
        return output.print_json(&Told { source: name, warmed });
    }
    if output.quiet {
        return Ok(());
    }
    let [bytes, fetched] = [warmed.bytes, warmed.fetched_bytes].map(human_bytes);
    output.print_line(&format!("{name}: {bytes} on disk, {fetched} of it fetched now"))
}
