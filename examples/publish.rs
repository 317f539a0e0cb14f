//! Backs up what an upper makes of a backup, without a mount: only what was changed is packed and sent.
//!
//! ```text
//! cargo run --example publish -- BUCKET ID UPPER WORK DIR
//! ```
//!
//! The new backup is onto the archive of the one that ID names; DIR is the directory that it records. Nobody may have
//! UPPER mounted.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use thawfs::backup::{Backups, BucketRequest, PublishRequest};
use thawfs::overlay::{Options, Overlay, Upper};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bucket, id, upper, work, dir] = arguments.as_slice() else {
        eprintln!("usage: publish BUCKET ID UPPER WORK DIR");
        return ExitCode::from(2);
    };
    match publish((bucket, id), (upper.as_ref(), work.as_ref()), dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("publish: {error}");
            ExitCode::FAILURE
        }
    }
}

fn publish(
    (bucket, id): (&str, &str),
    (upper, work): (&Path, &Path),
    dir: &str,
) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Runtime::new()?;
    let backups = runtime.block_on(Backups::open(&BucketRequest::new(bucket)))?;
    let opened = backups.archive(&id.parse()?)?.open()?;
    let upper = Upper::open(upper, work)?;
    let tree = Overlay::new(Arc::clone(&opened.archive), Some(upper), Options::default())?;
    let tree = Arc::new(tree.named(opened.as_mounted()));
    // Who serves the tree has it open already.
    let began = Instant::now();
    let request = PublishRequest::new(dir);
    let created = runtime.block_on(backups.publish(&tree, &request, Arc::default()))?;
    println!(
        "{} of {} bytes, {} of them packed, in {:.2} s",
        created.metadata.id,
        created.metadata.size_bytes,
        created.bytes - created.bytes_kept,
        began.elapsed().as_secs_f64()
    );
    if let Some(reason) = created.whole_because {
        println!("all was packed: {reason}");
    }
    Ok(())
}
