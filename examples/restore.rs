//! Restores a backup from a program of one's own, which is the server of the mount as well.
//!
//! ```text
//! cargo run --example restore -- BUCKET ID DIR
//! ```

use std::process::ExitCode;

use thawfs::backup::{BackupId, Backups, BucketRequest};
use thawfs::failure::Failure;
use thawfs::server::{RestoreRequest, restore, serve_if_asked};

fn main() -> ExitCode {
    // The mount outlives this program: it is served by the program, started once more. Nothing may come
    // before this line that must not happen in the server, too.
    if let Some(status) = serve_if_asked() {
        return status;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bucket, id, dir] = arguments.as_slice() else {
        eprintln!("usage: restore BUCKET ID DIR");
        return ExitCode::from(2);
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("restore: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(restore_one(bucket, id, dir)) {
        Ok(pid) => {
            println!("{dir} is served by process {pid}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("restore: {failure}");
            ExitCode::from(failure.code.exit_status())
        }
    }
}

/// Mounts the backup on `dir` and gives its server's process id.
async fn restore_one(bucket: &str, id: &str, dir: &str) -> Result<u32, Failure> {
    let backups = Backups::open(&BucketRequest::new(bucket)).await?;
    let id: BackupId = id.parse()?;
    // To have another program serve it, set `program` to `ServerProgram::at("/usr/bin/thawfs")`.
    let request = RestoreRequest { dir: Some(dir.into()), ..RestoreRequest::default() };
    Ok(restore(&backups, &id, request).await?.ready.pid)
}
