//! `thawfs verify`: whether all of an archive can be read.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::backups::OpenBucket;
use super::groups::{BucketArgs, ReadingArgs};
use super::mount::request_for;
use super::output::{Output, human_bytes};
use super::progress::At;
use crate::backup::{self, BackupId, Verified, VerifyProgress};
use crate::failure::Failure;
use crate::store::Source;
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Ids of backups, or archives as for mount: s3://BUCKET/KEY, https://…, file:///… or a path.
    #[arg(value_name = "ID|SOURCE", required = true)]
    pub(crate) targets: Vec<String>,

    /// How many blocks to fetch and decode at a time.
    #[arg(long, value_name = "N", default_value_t = 8,
          value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) jobs: u16,

    #[command(flatten)]
    pub(crate) bucket: BucketArgs,

    #[command(flatten)]
    pub(crate) reading: ReadingArgs,
}

/// Verifies each, and fails with the last failure once all were tried.
pub(super) fn verify(args: &VerifyArgs, output: &Output) -> Result<(), Failure> {
    let mut bucket = None;
    let mut failed: Option<Failure> = None;
    for target in &args.targets {
        let progress = Arc::new(VerifyProgress::default());
        let shown = output.progress({
            let progress = Arc::clone(&progress);
            move || {
                let (done, total) = (&progress.bytes, &progress.total);
                At::bytes("verifying", done.load(Ordering::Relaxed), total.load(Ordering::Relaxed))
            }
        });
        let verified = verify_one(target, args, &mut bucket, &progress);
        drop(shown);
        match verified {
            Ok((name, verified)) => tell(&name, verified, output)?,
            Err(failure) => {
                if let Some(earlier) = failed.replace(failure) {
                    output.fail(&earlier);
                }
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Verifies a backup or an archive. Gives the name to show for it, which holds no secret.
fn verify_one(
    target: &str,
    args: &VerifyArgs,
    bucket: &mut Option<OpenBucket>,
    progress: &Arc<VerifyProgress>,
) -> Result<(String, Verified), Failure> {
    let Ok(id) = target.parse::<BackupId>() else {
        let name = target.parse::<Source>()?.to_string();
        let opened = request_for(target, &args.bucket.store, &args.reading).open()?;
        let verified = backup::verify(&opened.archive, args.jobs, progress);
        return match verified {
            Ok(verified) => Ok((name, verified)),
            Err(failure) => Err(named(&name, failure)),
        };
    };
    let OpenBucket { runtime, backups } = match bucket {
        Some(bucket) => bucket,
        None => bucket.insert(OpenBucket::open(&args.bucket)?),
    };
    let verified = runtime.block_on(backups.verify(&id, args.jobs, Arc::clone(progress)))?;
    Ok((id.to_string(), verified))
}

fn named(name: &str, failure: Failure) -> Failure {
    Failure { message: format!("{name}: {}", failure.message), ..failure }
}

fn tell(name: &str, verified: Verified, output: &Output) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Told<'a> {
        target: &'a str,
        #[serde(flatten)]
        verified: Verified,
    }
    if output.json {
        return output.print_json_line(&Told { target: name, verified });
    }
    if output.quiet {
        return Ok(());
    }
    let Verified { inodes, blocks, bytes } = verified;
    let bytes = human_bytes(bytes);
    output.print_line(&format!("{name} is whole: {inodes} inodes, {blocks} blocks, {bytes}"))
}
