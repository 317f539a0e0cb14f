//! `thawfs warm`: an archive, or part of it, into the disk cache.

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::backup_args::WarmArgs;
use super::backups::OpenBucket;
use super::mount::request_for;
use super::output::{Output, Watcher, human_bytes};
use crate::backup::{BackupId, Warmed};
use crate::cache::Warming;
use crate::failure::Failure;

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
    let watcher = Watcher::start(output.progress(0, "warming"), {
        let warming = Arc::clone(&warming);
        move |bar| {
            bar.set_length(warming.total.load(Ordering::Relaxed));
            bar.set_position(warming.done.load(Ordering::Relaxed));
        }
    });
    let paths: Vec<Vec<u8>> = args.paths.iter().map(|path| path.as_bytes().to_vec()).collect();
    let warmed = opened.warm(&paths, &warming);
    drop(watcher);
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
