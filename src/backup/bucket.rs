//! The place that backups are kept in, and what lies where in it.
//!
//! The calls on [`Backups`] are asynchronous, unlike the rest of the crate above the stores: they
//! are made of many small requests that a listing or a clean-up has in flight together, and
//! programs that keep backups (orchestrators of sandboxes) are asynchronous themselves. They need a
//! tokio runtime with I/O and timers; what blocks (reading an archive to verify it) goes to threads
//! of its own.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::config::Config;
use super::id::BackupId;
use super::layout;
use super::meta::Metadata;
use super::open::SourceRequest;
use crate::environment::Environment;
use crate::failure::{Code, Failure};
use crate::store::{self, Folder, Object, ReadRanges, Source, StoreDefaults, StoreOptions};

/// Where an R2 bucket's data must stay. It has its own host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Jurisdiction {
    /// Anywhere.
    #[default]
    Default,
    /// The European Union.
    Eu,
    /// Under FedRAMP.
    Fedramp,
}

impl FromStr for Jurisdiction {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        match text {
            "default" => Ok(Self::Default),
            "eu" => Ok(Self::Eu),
            "fedramp" => Ok(Self::Fedramp),
            _ => Err(Failure::new(
                Code::InvalidBackupConfig,
                format!("{text:?} is not one of default, eu and fedramp"),
            )),
        }
    }
}

impl Jurisdiction {
    /// The endpoint of an account's buckets.
    fn endpoint(self, account_id: &str) -> Result<String, Failure> {
        if account_id.is_empty() || !account_id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            let message = format!("{account_id:?} is not the id of a Cloudflare account");
            return Err(Failure::new(Code::InvalidBackupConfig, message)
                .hint("it is 32 hexadecimal digits, shown on the dashboard's R2 page"));
        }
        let place = match self {
            Self::Default => "",
            Self::Eu => ".eu",
            Self::Fedramp => ".fedramp",
        };
        Ok(format!("https://{account_id}{place}.r2.cloudflarestorage.com"))
    }
}

/// Which bucket, and how to reach it.
#[derive(Clone, Debug)]
pub struct BucketRequest {
    /// `s3://BUCKET[/PREFIX]`, `file:///PATH`, or a path with a slash in it.
    pub bucket: Option<String>,
    /// Nobody named the bucket. A directory that is not made yet is an empty one then, and one that does
    /// not exist otherwise.
    pub is_default: bool,
    /// See [`StoreOptions::endpoint`]. Without, it follows from `account_id`.
    pub endpoint: Option<String>,
    /// See [`StoreOptions::region`].
    pub region: Option<String>,
    /// See [`StoreOptions::profile`].
    pub profile: Option<String>,
    /// The Cloudflare account of an R2 bucket.
    pub account_id: Option<String>,
    /// The jurisdiction of an R2 bucket; means something with `account_id` only.
    pub jurisdiction: Option<Jurisdiction>,
    /// See [`StoreOptions::defaults`].
    pub defaults: StoreDefaults,
    /// See [`StoreOptions::anonymous`].
    pub anonymous: bool,
    /// See [`StoreOptions::virtual_host_style`].
    pub virtual_host_style: bool,
    /// See [`StoreOptions::deadline`].
    pub deadline: Duration,
}

impl BucketRequest {
    /// `bucket` with everything else default.
    pub fn new(bucket: impl Into<String>) -> Self {
        Self {
            bucket: Some(bucket.into()),
            is_default: false,
            endpoint: None,
            region: None,
            profile: None,
            account_id: None,
            jurisdiction: None,
            defaults: StoreDefaults::default(),
            anonymous: false,
            virtual_host_style: false,
            deadline: StoreOptions::DEFAULT_DEADLINE,
        }
    }

    /// Takes the bucket from `THAWFS_BUCKET` where it is not said here, then from the configuration
    /// file, and from that also how to reach it; what neither says has its default, the bucket a local
    /// directory, `$XDG_DATA_HOME/thawfs` (`~/.local/share`). What the AWS variables say goes before the
    /// file.
    ///
    /// # Errors
    /// [`Code::InvalidBackupConfig`] for a file that cannot be read or has a wrong key or value,
    /// and where no bucket is named and there is no home directory.
    pub fn or_configured(mut self) -> Result<Self, Failure> {
        let environment = Environment::of_process();
        self.bucket = self.bucket.or_else(|| environment.get("THAWFS_BUCKET").map(str::to_owned));
        let mut request = self.or(Config::read(&environment)?)?;
        if request.bucket.is_none() {
            let directory = environment.base_directory("XDG_DATA_HOME", ".local/share");
            let path = directory.map(|directory| directory.join("thawfs"));
            let text = path.and_then(|path| path.into_os_string().into_string().ok());
            request.bucket = Some(text.ok_or_else(no_bucket)?);
            request.is_default = true;
        }
        Ok(request)
    }

    fn or(self, config: Config) -> Result<Self, Failure> {
        let jurisdiction = self.jurisdiction.or(config.jurisdiction);
        let endpoint = match config.account_id {
            // The file's does not matter then, right or wrong.
            _ if self.endpoint.is_some() || self.account_id.is_some() => None,
            Some(account) => Some(jurisdiction.unwrap_or_default().endpoint(&account)?),
            None => config.endpoint,
        };
        Ok(Self {
            bucket: self.bucket.or(config.bucket),
            jurisdiction,
            defaults: StoreDefaults { endpoint, region: config.region, profile: config.profile },
            anonymous: self.anonymous || config.anonymous,
            virtual_host_style: self.virtual_host_style || config.virtual_host_style,
            ..self
        })
    }

    /// The endpoint, if it is not for the environment to say. An account goes before an endpoint.
    fn find_endpoint(&self) -> Result<Option<String>, Failure> {
        match &self.account_id {
            Some(account) => self.jurisdiction.unwrap_or_default().endpoint(account).map(Some),
            None => Ok(self.endpoint.clone()),
        }
    }

    fn source(&self) -> Result<Source, Failure> {
        let text = self.bucket.as_deref().ok_or_else(no_bucket)?;
        let invalid = |failure: Failure| Failure { code: Code::InvalidBackupConfig, ..failure };
        if !text.contains([':', '/']) {
            // As a path it would quietly be a directory here.
            let message = format!("{text:?} is not how a bucket is named");
            return Err(Failure::new(Code::InvalidBackupConfig, message)
                .hint(format!("write s3://{text} for a bucket, ./{text} for a directory")));
        }
        match text.parse::<Source>().map_err(|error| invalid(error.into()))? {
            Source::Local(path) => {
                let absolute = std::path::absolute(&path);
                Ok(Source::Local(absolute.map_err(|e| Failure::io("find", &path, &e))?))
            }
            source => Ok(source),
        }
    }
}

fn no_bucket() -> Failure {
    Failure::new(Code::InvalidBackupConfig, "no bucket is named")
        .hint("use --bucket, THAWFS_BUCKET or the configuration file")
}

/// The backups of one bucket. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Backups {
    pub(super) folder: Folder,
    source: Source,
    options: StoreOptions,
    /// See [`BucketRequest::is_default`].
    is_default: bool,
}

impl Backups {
    /// Opens a bucket. Finds credentials, which may ask a metadata service; the bucket itself is
    /// not asked anything. A local directory need not exist to back up into.
    ///
    /// # Errors
    /// [`Code::InvalidBackupConfig`] where the request names no bucket or makes no sense, and what
    /// opening a store brings.
    pub async fn open(request: &BucketRequest) -> Result<Self, Failure> {
        let source = request.source()?;
        let options = StoreOptions {
            endpoint: request.find_endpoint()?,
            region: request.region.clone(),
            profile: request.profile.clone(),
            defaults: request.defaults.clone(),
            anonymous: request.anonymous,
            virtual_host_style: request.virtual_host_style,
            deadline: request.deadline,
            ..StoreOptions::default()
        };
        let folder = source.folder(&options).await?;
        Ok(Self { folder, source, options, is_default: request.is_default })
    }

    /// The bucket as messages show it.
    pub fn name(&self) -> String {
        self.source.to_string()
    }

    /// Checks that a directory that was named as the bucket is there, before it passes for an empty one.
    ///
    /// # Errors
    /// [`Code::NotFound`] if not.
    pub(super) fn check_exists(&self) -> Result<(), Failure> {
        let Source::Local(root) = &self.source else { return Ok(()) };
        let problem = match std::fs::metadata(root) {
            _ if self.is_default => return Ok(()),
            Ok(found) if !found.is_dir() => "is not a directory",
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => "does not exist",
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => "does not exist",
            // What else is wrong with it is said by who reads it.
            _ => return Ok(()),
        };
        Err(Failure::new(Code::NotFound, format!("the bucket {} {problem}", root.display()))
            .hint("check how it is written; thawfs create makes one that does not exist"))
    }

    /// The directory that is the bucket, without symbolic links, if it is one of this machine.
    pub(super) fn local_root(&self) -> Option<std::path::PathBuf> {
        match &self.source {
            Source::Local(root) => root.canonicalize().ok(),
            Source::S3 { .. } | Source::Http(_) => None,
        }
    }

    /// An object of a backup, called as in [`layout`].
    pub fn object(&self, id: &BackupId, name: &str) -> Object {
        self.folder.object(&layout::key(id, name))
    }

    /// How to open a backup's archive.
    ///
    /// # Errors
    /// [`Code::InvalidBackupConfig`] for a local directory whose path is not UTF-8.
    pub fn archive(&self, id: &BackupId) -> Result<SourceRequest, Failure> {
        let object = self.object(id, layout::ARCHIVE);
        let source = match &self.source {
            Source::S3 { bucket, .. } => format!("s3://{bucket}/{}", object.key),
            Source::Http(_) => object.name(),
            Source::Local(root) => {
                let path = root.join(&object.key).into_os_string().into_string();
                path.map_err(|path| {
                    let message = format!("{} is not UTF-8", path.display());
                    Failure::new(Code::InvalidBackupConfig, message)
                })?
            }
        };
        let options = self.options.clone();
        Ok(SourceRequest {
            endpoint: options.endpoint,
            region: options.region,
            profile: options.profile,
            defaults: options.defaults,
            anonymous: options.anonymous,
            virtual_host_style: options.virtual_host_style,
            deadline: options.deadline,
            ..SourceRequest::new(source)
        })
    }

    /// Fetches a backup's metadata: one GET.
    ///
    /// # Errors
    /// [`Code::BackupNotFound`], which says what is missing; [`Code::Unsupported`] for a backup of
    /// the newer kind; [`Code::Corrupt`] for metadata that cannot be read.
    pub async fn metadata(&self, id: &BackupId) -> Result<Metadata, Failure> {
        let object = self.object(id, layout::METADATA);
        match object.get_whole(Metadata::MAX_BYTES).await {
            Ok(json) => Metadata::parse(&json, id).map_err(|reason| {
                Failure::new(Code::Corrupt, format!("{}: {reason}", object.name()))
                    .hint("the archive beside it may be whole: mount it by its key")
            }),
            Err(store::Error::NotFound { .. }) => Err(self.contents(id).await?.missing(self)),
            Err(error @ store::Error::TooLarge { .. }) => {
                Err(Failure { code: Code::Corrupt, ..error.into() })
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_and_its_jurisdiction_are_an_endpoint() {
        for (jurisdiction, endpoint) in [
            (Jurisdiction::Default, "https://abc123.r2.cloudflarestorage.com"),
            (Jurisdiction::Eu, "https://abc123.eu.r2.cloudflarestorage.com"),
            (Jurisdiction::Fedramp, "https://abc123.fedramp.r2.cloudflarestorage.com"),
        ] {
            assert_eq!(jurisdiction.endpoint("abc123").unwrap(), endpoint);
        }
        for account in ["", "evil.example/", "a b"] {
            let failure = Jurisdiction::Eu.endpoint(account).unwrap_err();
            assert_eq!(failure.code, Code::InvalidBackupConfig, "{account:?}");
        }
    }

    #[test]
    fn the_file_fills_in_what_was_not_said() {
        let config = Config {
            bucket: Some("s3://file".into()),
            region: Some("file".into()),
            profile: Some("file".into()),
            account_id: Some("file".into()),
            jurisdiction: Some(Jurisdiction::Eu),
            ..Config::default()
        };
        let empty = BucketRequest { bucket: None, ..BucketRequest::new("") };
        let filled = empty.or(config.clone()).unwrap();
        assert_eq!(filled.bucket.as_deref(), Some("s3://file"));
        // For the store to weigh against what the environment says.
        assert_eq!((filled.region, filled.profile), (None, None));
        assert_eq!(filled.defaults.region.as_deref(), Some("file"));
        assert_eq!(filled.defaults.profile.as_deref(), Some("file"));
        let r2 = "https://file.eu.r2.cloudflarestorage.com";
        assert_eq!(filled.defaults.endpoint.as_deref(), Some(r2));

        let said = BucketRequest {
            endpoint: Some("http://e".into()),
            region: Some("r".into()),
            ..BucketRequest::new("s3://said")
        };
        let filled = said.or(config).unwrap();
        assert_eq!(filled.bucket.as_deref(), Some("s3://said"));
        assert_eq!(filled.region.as_deref(), Some("r"));
        // The account of the file does not displace an endpoint that was said.
        assert_eq!(filled.find_endpoint().unwrap().as_deref(), Some("http://e"));
        assert_eq!(filled.defaults.endpoint, None);
    }

    #[tokio::test]
    async fn a_bucket_is_named_by_url_or_path() {
        let id: BackupId = "0b7a5c1e-6f0d-4c43-9d0c-2f1f8f1a9e77".parse().unwrap();
        for (text, archive) in [
            ("s3://b", format!("s3://b/backups/{id}/data.sqsh")),
            ("s3://b/p/q/", format!("s3://b/p/q/backups/{id}/data.sqsh")),
            ("file:///no/such", format!("/no/such/backups/{id}/data.sqsh")),
            ("/no/such", format!("/no/such/backups/{id}/data.sqsh")),
        ] {
            let request = BucketRequest { anonymous: true, ..BucketRequest::new(text) };
            let backups = Backups::open(&request).await.unwrap();
            assert_eq!(backups.archive(&id).unwrap().source, archive, "{text}");
            assert_eq!(backups.object(&id, layout::ARCHIVE).name(), archive, "{text}");
        }
        for (text, reason) in [
            ("bucket", "not how a bucket is named"),
            ("gs://b/", "scheme"),
            ("s3://b/../c", "segment"),
        ] {
            let failure = Backups::open(&BucketRequest::new(text)).await.unwrap_err();
            assert_eq!(failure.code, Code::InvalidBackupConfig, "{text}");
            assert!(failure.message.contains(reason), "{}", failure.message);
        }
    }
}
