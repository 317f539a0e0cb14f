//! The command line of `create` and `restore`.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{ArgAction, Args, ValueHint};

use super::args::{AheadArgs, DiskArgs, parse_bytes};
use super::backup_args::BucketArgs;
use super::spans::parse_seconds;
use crate::backup::default_cache_memory;
use crate::squashfs::write::Compression;

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
    #[arg(long, value_name = "NAME[:LEVEL]", help_heading = "Archive", default_value = "zstd:3",
          value_parser = parse_compression)]
    pub(crate) compression: Compression,

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

/// A compressor and its level, as `zstd:19`.
fn parse_compression(text: &str) -> Result<Compression, String> {
    let (name, level) = match text.split_once(':') {
        Some((name, level)) => (name, Some(level)),
        None => (text, None),
    };
    let within = |least: i32, most: i32, default: i32| match level {
        None => Ok(default),
        Some(level) => level
            .parse()
            .ok()
            .filter(|level| (least..=most).contains(level))
            .ok_or_else(|| format!("the level of {name} is a number from {least} to {most}")),
    };
    match (name, level) {
        ("zstd", _) => within(1, 22, 3).map(Compression::Zstd),
        ("gzip", _) => within(1, 9, 9).map(Compression::Gzip),
        ("lz4", None) => Ok(Compression::Lz4),
        ("xz", None) => Ok(Compression::Xz),
        ("lz4" | "xz", Some(_)) => Err(format!("{name} has no levels")),
        _ => Err(format!("{name:?} is none of lz4, zstd, gzip and xz")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressors_take_levels_of_their_own() {
        for (text, expected) in [
            ("zstd", Some(Compression::Zstd(3))),
            ("zstd:19", Some(Compression::Zstd(19))),
            ("gzip:1", Some(Compression::Gzip(1))),
            ("lz4", Some(Compression::Lz4)),
            ("xz", Some(Compression::Xz)),
            ("zstd:23", None),
            ("zstd:", None),
            ("gzip:0", None),
            ("lz4:1", None),
            ("lzo", None),
            ("", None),
        ] {
            assert_eq!(parse_compression(text).ok(), expected, "{text}");
        }
    }
}
