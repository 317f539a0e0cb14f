//! The command line, as clap understands it. Help, completions and man page come from here.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueHint};

use super::backup_args::{DeleteArgs, ListArgs, PruneArgs, ShowArgs, VerifyArgs, WarmArgs};
use super::life_args::{CreateArgs, RestoreArgs};
use super::spans::{parse_duration, parse_seconds};
use crate::backup::default_cache_memory;
use crate::cache::DiskLimit;
use crate::environment::Environment;
use crate::failure::{Code, Failure};
use crate::store::parse_host;

/// What `-h` ends with.
const EXAMPLES: &str = "\
Examples:
  thawfs mount s3://bucket/backups/ID ~/work      a writable view, ready in one round trip
  thawfs mount ./data.sqsh /mnt --read-only       an archive on this machine
  thawfs status                                   what is mounted, and what it has fetched
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
    /// Show or clear the disk cache of archives in buckets.
    Cache(CacheArgs),
    /// Print shell completions.
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page (roff; read it with `thawfs man | man -l -`).
    Man,
    /// Serve a mount described on standard input. Started by `mount`.
    #[command(name = crate::server::SERVE_COMMAND, hide = true)]
    Serve {
        /// Shown in process lists only.
        mountpoint: PathBuf,
    },
}

/// Where an archive comes from, and how to get at it.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// s3://BUCKET/KEY, https://…, file:///… or a path. A prefix means data.sqsh below it.
    #[arg(value_name = "SOURCE")]
    pub(crate) source: String,

    #[command(flatten)]
    pub(crate) store: StoreArgs,

    #[command(flatten)]
    pub(crate) reading: ReadingArgs,

    #[command(flatten)]
    pub(crate) disk: DiskArgs,
}

/// How to reach a store.
#[derive(Debug, Args)]
#[command(next_help_heading = "Store")]
pub(crate) struct StoreArgs {
    /// The S3 endpoint, for R2 <https://ACCOUNT.r2.cloudflarestorage.com> [env: AWS_ENDPOINT_URL_S3,
    /// AWS_ENDPOINT_URL] [default: the profile's, else AWS].
    // Variables are for the store to read, which weighs them against all else there is.
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: Option<String>,

    /// The region [env: AWS_REGION, AWS_DEFAULT_REGION] [default: the profile's, else "auto" for R2 and
    /// us-east-1 elsewhere].
    #[arg(long, value_name = "NAME")]
    pub(crate) region: Option<String>,

    /// The profile in ~/.aws/config and ~/.aws/credentials; goes before keys in the environment, as
    /// AWS_PROFILE does not [env: AWS_PROFILE].
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,

    /// Send no credentials, for public buckets.
    #[arg(long)]
    pub(crate) anonymous: bool,

    /// Put the bucket into the host name rather than the path.
    #[arg(long)]
    pub(crate) virtual_host_style: bool,

    /// Give a read up after this time, retries included: seconds, or 90s, 5m, 1h.
    #[arg(long, value_name = "TIME", default_value_t = 30, value_parser = parse_seconds)]
    pub(crate) timeout: u64,

    /// Follow redirects from an http(s) source to this host, too; can be given several times.
    #[arg(long, value_name = "HOST", value_parser = parse_host)]
    pub(crate) allow_redirects_to: Vec<String>,
}

/// How to read an archive.
#[derive(Debug, Args)]
#[command(next_help_heading = "Store")]
pub(crate) struct ReadingArgs {
    /// Where the archive starts within the object, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub(crate) offset: u64,

    /// Memory for cached data; suffixes K, M, G [default: 24M, or a tenth of what there is].
    #[arg(long, value_name = "BYTES", default_value_t = default_cache_memory(),
          hide_default_value = true, value_parser = parse_bytes)]
    pub(crate) cache_memory: u64,
}

/// How much to keep on disk.
#[derive(Debug, Args)]
#[command(next_help_heading = "Store")]
pub(crate) struct DiskArgs {
    /// Most that the disk cache may hold, or off; suffixes K, M, G [env: THAWFS_DISK_CACHE] [default:
    /// 10% of the file system, at most 10G].
    #[arg(long = "disk-cache", value_name = "BYTES|off", value_parser = parse_disk_limit)]
    limit: Option<DiskLimit>,
}

impl DiskArgs {
    /// What the option says, or else the environment.
    pub(crate) fn limit(&self) -> Result<DiskLimit, Failure> {
        self.limit.map_or_else(disk_limit_of_environment, Ok)
    }
}

/// What `THAWFS_DISK_CACHE` says of the disk cache.
pub(crate) fn disk_limit_of_environment() -> Result<DiskLimit, Failure> {
    const NAME: &str = "THAWFS_DISK_CACHE";
    let environment = Environment::of_process();
    let Some(text) = environment.get(NAME) else { return Ok(DiskLimit::default()) };
    parse_disk_limit(text).map_err(|error| Failure::new(Code::Usage, format!("{NAME}: {error}")))
}

/// What to fetch before it is asked for. Needs the disk cache.
#[derive(Debug, Args)]
#[command(next_help_heading = "Store")]
pub(crate) struct AheadArgs {
    /// Put the order in which programs read into the bucket, so that the next mount fetches ahead on
    /// any machine [default: on this machine alone].
    #[arg(long)]
    pub(crate) share_trace: bool,

    /// Fetch all of the archive meanwhile, at so many bytes per second; suffixes K, M, G [default
    /// rate: what there can be].
    #[arg(long, value_name = "RATE", num_args = 0..=1, require_equals = true,
          default_missing_value = "0", value_parser = parse_bytes)]
    pub(crate) fill: Option<u64>,
}

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

#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,

    #[command(flatten)]
    pub(crate) ahead: AheadArgs,

    /// Where to mount.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) mountpoint: PathBuf,

    /// Keep changes in this directory (overlayfs format) [default: one that is removed at unmount].
    #[arg(long, value_name = "DIR", help_heading = "Changes", value_hint = ValueHint::DirPath)]
    pub(crate) upper: Option<PathBuf>,

    /// A directory on the same file system as the upper, for work in progress [default: .NAME.work
    /// beside the upper].
    #[arg(long, value_name = "DIR", help_heading = "Changes", requires = "upper",
          value_hint = ValueHint::DirPath)]
    pub(crate) workdir: Option<PathBuf>,

    /// Do not remove the upper that was made for this mount.
    #[arg(long, help_heading = "Changes", conflicts_with_all = ["upper", "read_only"])]
    pub(crate) keep_upper: bool,

    /// Allow no changes; there is no upper then.
    #[arg(long, visible_alias = "ro", help_heading = "Changes",
          conflicts_with_all = ["upper", "workdir"])]
    pub(crate) read_only: bool,

    /// The source to show in /proc/mounts [default: SOURCE without its query].
    #[arg(long, value_name = "NAME", help_heading = "Mount")]
    pub(crate) fsname: Option<String>,

    /// Stay attached until unmounted; log to standard error.
    #[arg(long, short, help_heading = "Mount")]
    pub(crate) foreground: bool,

    /// Options as mount(8) writes them: ro, allow_other, suid, dev, noexec, noatime, upper=DIR,
    /// workdir=DIR, uid=N, gid=N, squash_to_root, uidmapping=RANGES, gidmapping=RANGES,
    /// entry_ttl=TIME, attr_ttl=TIME, max_nodes=N, no_passthrough, …
    ///
    /// Without suid, no program of the mount gets the rights of its owner; without dev, no device in
    /// it can be opened.
    #[arg(short = 'o', value_name = "OPTIONS", help_heading = "Mount", action = clap::ArgAction::Append)]
    pub(crate) options: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct UnmountArgs {
    /// What to unmount.
    #[arg(value_name = "DIR", required = true, value_hint = ValueHint::DirPath)]
    pub(crate) mountpoints: Vec<PathBuf>,

    /// Detach now, end when the last file in it is closed.
    #[arg(long, short = 'z')]
    pub(crate) lazy: bool,

    /// Only if its server was killed; a mount that lives is left alone.
    #[arg(long, conflicts_with = "lazy")]
    pub(crate) dead: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Only this mount.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) mountpoint: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// Remove what is listed, changes that were never backed up included.
    #[arg(long, short)]
    pub(crate) yes: bool,

    /// Uppers that were kept by --keep-upper as well.
    #[arg(long)]
    pub(crate) kept: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,

    /// A path inside the archive.
    #[arg(value_name = "PATH", default_value = "/")]
    pub(crate) path: OsString,

    /// Type, mode, owner, size and time of each file.
    #[arg(long, short)]
    pub(crate) long: bool,

    /// Directories below as well, with whole paths.
    #[arg(long, short = 'R')]
    pub(crate) recursive: bool,

    /// End each line with a NUL instead, and write names as they are; a terminal is else spared what it
    /// would obey.
    #[arg(long, short = '0')]
    pub(crate) null: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CatArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,

    /// Paths of regular files inside the archive.
    #[arg(value_name = "PATH", required = true)]
    pub(crate) paths: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct ExtractArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,

    /// Where to unpack; made if missing, must be empty otherwise.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) into: PathBuf,

    /// Only this path inside the archive and what lies below it.
    #[arg(long, value_name = "PATH", default_value = "/")]
    pub(crate) path: OsString,

    /// How many files to fetch at a time.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) jobs: u16,

    /// Unpack setuid and setgid bits of files, capabilities and devices, too; they are left out
    /// otherwise, and counted.
    #[arg(long)]
    pub(crate) preserve_privileged: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,

    /// How long to measure, about.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) seconds: u64,
}

/// Least limit of the disk cache in bytes; below, there would hardly be room for an archive's metadata.
const LEAST_DISK_LIMIT: u64 = 16 << 20;

/// A limit of the disk cache: a number of bytes, or `off`.
pub(crate) fn parse_disk_limit(text: &str) -> Result<DiskLimit, String> {
    match text {
        "off" => Ok(DiskLimit::Off),
        "auto" => Ok(DiskLimit::Auto),
        text => match parse_bytes(text)? {
            0 => Ok(DiskLimit::Off),
            bytes if bytes < LEAST_DISK_LIMIT => {
                Err(format!("{text} is too little for a disk cache; give 16M or more, or off"))
            }
            bytes => Ok(DiskLimit::Bytes(bytes)),
        },
    }
}

/// A number of bytes with an optional binary suffix: `65536`, `64K`, `16M`, `1G`, `16MiB`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix.to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("{suffix:?} is no unit; K, M, G and T are")),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no number of bytes"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn bytes_take_suffixes() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("64k", Some(65536)),
            ("24M", Some(24 << 20)),
            ("1GiB", Some(1 << 30)),
            ("2TB", Some(2 << 40)),
            ("", None),
            ("K", None),
            ("1X", None),
            ("99999999999T", None),
        ] {
            assert_eq!(parse_bytes(text).ok(), bytes, "{text}");
        }
    }
}
