//! The command line of what works on a bucket of backups.

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::time::Duration;

use clap::Args;

use super::args::{DiskArgs, ReadingArgs, StoreArgs, parse_bytes};
use super::spans::parse_duration;
use crate::backup::{BucketRequest, Jurisdiction};
use crate::store::StoreDefaults;

/// Which bucket, and how to get at it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Bucket")]
pub(crate) struct BucketArgs {
    /// s3://BUCKET[/PREFIX] or file:///DIR [env: THAWFS_BUCKET] [default: the configuration file's, else
    /// ~/.local/share/thawfs].
    #[arg(long, value_name = "URL")]
    pub(crate) bucket: Option<String>,

    /// The Cloudflare account of an R2 bucket; stands for its --endpoint, and goes before it.
    #[arg(long, value_name = "ID")]
    pub(crate) account_id: Option<String>,

    /// Where an R2 bucket's data must stay: default, eu or fedramp.
    #[arg(long, value_name = "NAME")]
    pub(crate) jurisdiction: Option<Jurisdiction>,

    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

impl BucketArgs {
    /// What to open, before the configuration file is heard.
    pub(crate) fn request(&self) -> BucketRequest {
        BucketRequest {
            bucket: self.bucket.clone(),
            is_default: false,
            endpoint: self.store.endpoint.clone(),
            region: self.store.region.clone(),
            profile: self.store.profile.clone(),
            account_id: self.account_id.clone(),
            jurisdiction: self.jurisdiction,
            defaults: StoreDefaults::default(),
            anonymous: self.store.anonymous,
            virtual_host_style: self.store.virtual_host_style,
            deadline: Duration::from_secs(self.store.timeout),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only backups of this directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<String>,

    #[command(flatten)]
    pub(crate) bucket: BucketArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The backup's id.
    #[arg(value_name = "ID")]
    pub(crate) id: String,

    #[command(flatten)]
    pub(crate) bucket: BucketArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// Ids of backups, in full.
    #[arg(value_name = "ID", required = true)]
    pub(crate) ids: Vec<String>,

    /// Only say what would be deleted.
    #[arg(long, short = 'n')]
    pub(crate) dry_run: bool,

    #[command(flatten)]
    pub(crate) bucket: BucketArgs,
}

/// `--expired` and `--older-than` add up; `--keep-last` protects from both, and alone selects all
/// that it does not keep.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("rules").required(true).multiple(true))]
pub(crate) struct PruneArgs {
    /// Delete backups that are past their lifetime.
    #[arg(long, group = "rules", help_heading = "What goes")]
    pub(crate) expired: bool,

    /// Delete backups made longer ago than this: 30d, 12h, 90m, 2w, 45s.
    #[arg(long, value_name = "DURATION", group = "rules", help_heading = "What goes",
          value_parser = parse_duration)]
    pub(crate) older_than: Option<Duration>,

    /// Keep this many backups of each directory, the youngest; delete the others that are selected
    /// (all others, where neither of the above selects).
    #[arg(long, value_name = "N", group = "rules", help_heading = "What goes")]
    pub(crate) keep_last: Option<NonZeroU32>,

    /// Delete archives without metadata and metadata without an archive, once a day old.
    #[arg(long, group = "rules", help_heading = "What goes")]
    pub(crate) orphans: bool,

    /// Abort unfinished uploads, once a day old.
    #[arg(long, group = "rules", help_heading = "What goes")]
    pub(crate) uploads: bool,

    /// Only say what would go.
    #[arg(long, short = 'n')]
    pub(crate) dry_run: bool,

    #[command(flatten)]
    pub(crate) bucket: BucketArgs,
}

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
