//! The place that backups are kept in, and what lies where in it.
//!
//! The calls on [`Backups`] are asynchronous, unlike the rest of the crate above the stores: they
//! are made of many small requests that a listing or a clean-up has in flight together, and
//! programs that keep backups (orchestrators of sandboxes) are asynchronous themselves. They need a
//! tokio runtime with I/O and timers; what blocks (reading an archive to verify it) goes to threads
//! of its own.

use super::config::Config;
use super::id::BackupId;
use super::layout;
use super::meta::Metadata;
use super::open::SourceRequest;
use crate::environment::Environment;
use crate::failure::{Code, Failure};
use crate::store::r2::Jurisdiction;
use crate::store::{self, Access, AccessDefaults, Folder, Object, ReadRanges, Source};

/// Which bucket, and how to reach it.
#[derive(Clone, Debug)]
pub struct BucketRequest {
    /// `s3://BUCKET[/PREFIX]`, `file:///PATH`, or a path with a slash in it.
    pub bucket: Option<String>,
    /// Nobody named the bucket. A directory that is not made yet is an empty one then, and one that does
    /// not exist otherwise.
    pub is_default: bool,
    /// The Cloudflare account of an R2 bucket.
    pub account_id: Option<String>,
    /// The jurisdiction of an R2 bucket; means something with `account_id` only.
    pub jurisdiction: Option<Jurisdiction>,
    /// How to reach it. Without an endpoint, that follows from `account_id`.
    pub access: Access,
}

impl BucketRequest {
    /// `bucket` with everything else default.
    pub fn new(bucket: impl Into<String>) -> Self {
        Self {
            bucket: Some(bucket.into()),
            is_default: false,
            account_id: None,
            jurisdiction: None,
            access: Access::default(),
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

    fn or(mut self, config: Config) -> Result<Self, Failure> {
        let jurisdiction = self.jurisdiction.or(config.jurisdiction);
        let endpoint = match config.account_id {
            // The file's does not matter then, right or wrong.
            _ if self.access.endpoint.is_some() || self.account_id.is_some() => None,
            Some(account) => Some(jurisdiction.unwrap_or_default().endpoint(&account)?),
            None => config.endpoint,
        };
        let Config { region, profile, .. } = config;
        self.access.defaults = AccessDefaults { endpoint, region, profile };
        self.access.anonymous |= config.anonymous;
        self.access.virtual_host_style |= config.virtual_host_style;
        Ok(Self { bucket: self.bucket.or(config.bucket), jurisdiction, ..self })
    }

    /// How to reach it, with the endpoint that an account has: that goes before one that is named.
    fn access(&self) -> Result<Access, Failure> {
        let mut access = self.access.clone();
        if let Some(account) = &self.account_id {
            access.endpoint = Some(self.jurisdiction.unwrap_or_default().endpoint(account)?);
        }
        Ok(access)
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
    access: Access,
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
        let access = request.access()?;
        let folder = source.folder(&access).await?;
        Ok(Self { folder, source, access, is_default: request.is_default })
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

    /// Whether it is a directory of this machine.
    pub(super) fn is_local(&self) -> bool {
        matches!(self.source, Source::Local(_))
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
        Ok(SourceRequest { access: self.access.clone(), ..SourceRequest::new(source) })
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
        assert_eq!((&filled.access.region, &filled.access.profile), (&None, &None));
        assert_eq!(filled.access.defaults.region.as_deref(), Some("file"));
        assert_eq!(filled.access.defaults.profile.as_deref(), Some("file"));
        let r2 = "https://file.eu.r2.cloudflarestorage.com";
        assert_eq!(filled.access.defaults.endpoint.as_deref(), Some(r2));

        let said = BucketRequest {
            access: Access {
                endpoint: Some("http://e".into()),
                region: Some("r".into()),
                ..Access::default()
            },
            ..BucketRequest::new("s3://said")
        };
        let filled = said.or(config).unwrap();
        assert_eq!(filled.bucket.as_deref(), Some("s3://said"));
        assert_eq!(filled.access.region.as_deref(), Some("r"));
        // The account of the file does not displace an endpoint that was said.
        assert_eq!(filled.access().unwrap().endpoint.as_deref(), Some("http://e"));
        assert_eq!(filled.access.defaults.endpoint, None);
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
            let access = Access { anonymous: true, ..Access::default() };
            let request = BucketRequest { access, ..BucketRequest::new(text) };
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
