//! Options that several commands share, in groups that are flattened into theirs.

use std::time::Duration;

use clap::Args;

use super::values::{parse_bytes, parse_disk_limit, parse_seconds};
use crate::backup::{BucketRequest, default_cache_memory};
use crate::cache::DiskLimit;
use crate::environment::Environment;
use crate::failure::{Code, Failure};
use crate::store::r2::Jurisdiction;
use crate::store::{Access, parse_host};

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
            account_id: self.account_id.clone(),
            jurisdiction: self.jurisdiction,
            access: self.store.access(),
        }
    }
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

impl StoreArgs {
    /// How to reach a store, as these flags and the environment say.
    pub(crate) fn access(&self) -> Access {
        Access {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            profile: self.profile.clone(),
            anonymous: self.anonymous,
            virtual_host_style: self.virtual_host_style,
            deadline: Duration::from_secs(self.timeout),
            allow_redirects_to: self.allow_redirects_to.clone(),
            ..Access::default()
        }
    }
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
