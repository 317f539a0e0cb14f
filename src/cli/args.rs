//! The command line, as clap understands it. Help, completions and man page come from here; the arguments of
//! a command are beside it, what several share is in [`super::groups`].

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::archive::{CatArgs, InspectArgs};
use super::backups::{DeleteArgs, ListArgs, PruneArgs, ShowArgs};
use super::bench::BenchArgs;
use super::cache::CacheArgs;
use super::checkpoints::{CheckpointArgs, CheckpointsArgs, ForgetArgs, RollbackArgs};
use super::create::CreateArgs;
use super::diff::DiffArgs;
use super::extract::ExtractArgs;
use super::fork::ForkArgs;
use super::gc::GcArgs;
use super::ls::LsArgs;
use super::mount::MountArgs;
use super::restore::RestoreArgs;
use super::serve_files::ServeFilesArgs;
use super::status::StatusArgs;
use super::unmount::UnmountArgs;
use super::verify::VerifyArgs;
use super::warm::WarmArgs;
use super::watch::WatchArgs;

/// What `-h` ends with.
const EXAMPLES: &str = "\
Examples:
  thawfs mount s3://bucket/backups/ID ~/work      a writable view, ready in one round trip
  thawfs mount ./data.sqsh /mnt --read-only       an archive on this machine
  thawfs status                                   what is mounted, and what it has fetched
  thawfs checkpoint ~/work                        and thawfs rollback ~/work: all is as it was
  thawfs unmount ~/work                           throws the changes away (--keep-upper keeps them)
  thawfs cat s3://bucket/backups/ID etc/os-release
  thawfs list --bucket s3://bucket                its backups, and what state each is in

Credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_SESSION_TOKEN) or a profile, never from the command line.";

/// Mounts a frozen backup, a squashfs archive in an S3 or R2 bucket, as a live directory.
#[derive(Debug, Parser)]
#[command(name = "thawfs", version, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Print results and errors as JSON on standard output.
    #[arg(long, global = true, help_heading = "Output")]
    pub(crate) json: bool,

    /// Say less: no warnings, no progress.
    #[arg(long, short, global = true, help_heading = "Output")]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Mount an archive as a writable directory; returns when it is ready.
    Mount(MountArgs),
    /// Unmount a directory and end its server.
    #[command(visible_alias = "umount")]
    Unmount(UnmountArgs),
    /// Show what is mounted, from where, and what it has fetched so far.
    Status(StatusArgs),
    /// Show how a mount differs from its backup, or what has changed in it; with --json one object per line.
    Diff(DiffArgs),
    /// Tell what changes in a mount, as it happens; with --json one object per line.
    Watch(WatchArgs),
    /// Make a checkpoint of a mount, in a moment; prints its id.
    Checkpoint(CheckpointArgs),
    /// List the checkpoints of a mount; with --json one object per line.
    Checkpoints(CheckpointsArgs),
    /// Make a mount what it was at a checkpoint, in place.
    Rollback(RollbackArgs),
    /// Forget checkpoints of a mount, and free what only they needed.
    Forget(ForgetArgs),
    /// Mount what a mount is, or was at a checkpoint, once more, each with its own changes.
    Fork(ForkArgs),
    /// List what belongs to no live mount: uppers and records of servers that were killed; or remove it.
    Gc(GcArgs),
    /// List files of an archive without mounting it.
    Ls(LsArgs),
    /// Write files of an archive to standard output.
    Cat(CatArgs),
    /// Unpack an archive, or a part of it, into a directory.
    Extract(ExtractArgs),
    /// Describe an archive: superblock, compressor, tables, counts.
    Inspect(InspectArgs),
    /// Back a directory up; prints the handle that restore takes.
    Create(CreateArgs),
    /// Mount a backup where it was made, in place of what is mounted there.
    Restore(RestoreArgs),
    /// List the backups of a bucket; with --json one object per line.
    List(ListArgs),
    /// Show a backup: its metadata, its state, its archive.
    Show(ShowArgs),
    /// Delete backups.
    Delete(DeleteArgs),
    /// Delete backups by rule, and what interrupted work left behind.
    Prune(PruneArgs),
    /// Read all of an archive, and say where it is damaged first.
    Verify(VerifyArgs),
    /// Fetch an archive, or part of it, into the disk cache.
    Warm(WarmArgs),
    /// Measure a bucket from here, and what reading an archive in it costs.
    Bench(BenchArgs),
    /// Serve files of this machine, and what changes in them, over HTTP.
    ServeFiles(ServeFilesArgs),
    /// Show or clear the disk cache of archives in buckets.
    Cache(CacheArgs),
    /// Print shell completions.
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page (roff; read it with `thawfs man | man -l -`).
    Man,
    /// Serve the files of a mount over connections that standard input gives. Started by its server.
    #[command(name = crate::server::FILES_COMMAND, hide = true)]
    ServeMountFiles {
        /// Where it is mounted.
        mountpoint: PathBuf,
    },
    /// Serve a mount described on standard input. Started by `mount`.
    #[command(name = crate::server::SERVE_COMMAND, hide = true)]
    Serve {
        /// Shown in process lists only.
        mountpoint: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
