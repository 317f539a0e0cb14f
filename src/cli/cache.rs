//! `thawfs cache`.

use std::path::PathBuf;

use serde::Serialize;

use super::groups::DiskArgs;
use super::output::{Output, human_bytes, human_time, say};
use super::values::parse_duration;
use crate::cache::{CacheDir, Cleared, DiskLimit, Usage};
use crate::failure::{Code, Failure};
use crate::names;
use clap::{Args, Subcommand};
use std::time::Duration;

#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    #[command(subcommand)]
    pub(crate) command: CacheCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Show what is cached, and how much room it takes.
    Status(DiskArgs),
    /// Remove what no mount has in use.
    Clear {
        /// Only what was not used for so long: 12h, 30d.
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        older_than: Option<Duration>,
    },
}

pub(super) fn cache(command: &CacheCommand, output: &Output) -> Result<(), Failure> {
    let path = CacheDir::locate().ok_or_else(|| {
        Failure::new(Code::Failed, "there is no directory for a disk cache")
            .hint("set HOME, XDG_CACHE_HOME or THAWFS_CACHE_DIR")
    })?;
    match command {
        CacheCommand::Status(disk) => {
            let limit = disk.limit()?;
            let usage = match open(&path, limit)? {
                Some(dir) => dir.usage().map_err(|error| Failure::io("read", &path, &error))?,
                None => Usage { bytes: 0, limit: 0, archives: Vec::new() },
            };
            show(path, &usage, output)
        }
        CacheCommand::Clear { older_than } => {
            let cleared = match open(&path, DiskLimit::Auto)? {
                Some(dir) => dir
                    .clear(older_than.unwrap_or_default())
                    .map_err(|error| Failure::io("clear", &path, &error))?,
                None => Cleared::default(),
            };
            tell(cleared, output)
        }
    }
}

fn open(path: &std::path::Path, limit: DiskLimit) -> Result<Option<CacheDir>, Failure> {
    CacheDir::open(path, limit).map_err(|error| Failure::io("open", path, &error))
}

fn show(path: PathBuf, usage: &Usage, output: &Output) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Shown<'a> {
        #[serde(flatten, with = "names::path")]
        path: PathBuf,
        #[serde(flatten)]
        usage: &'a Usage,
    }
    if output.json {
        return output.print_json(&Shown { path, usage });
    }
    for archive in &usage.archives {
        let name = archive.name.as_deref().unwrap_or("(damaged)");
        let used = human_time(i64::try_from(archive.last_used).unwrap_or(i64::MAX));
        let used = if archive.in_use { "in use" } else { &used };
        output.print_line(&format!("{:>9}  {used:<16}  {name}", human_bytes(archive.bytes)))?;
    }
    let [held, limit] = [usage.bytes, usage.limit].map(human_bytes);
    output.print_line(&format!("{held} of {limit} in {}", path.display()))
}

fn tell(cleared: Cleared, output: &Output) -> Result<(), Failure> {
    if output.json {
        return output.print_json(&cleared);
    }
    let Cleared { archives, bytes, in_use } = cleared;
    if in_use > 0 && !output.quiet {
        say(&format!("thawfs: {in_use} archives are in use, and stay until they are unmounted"));
    }
    output.print_line(&format!("{archives} archives removed, {}", human_bytes(bytes)))
}
