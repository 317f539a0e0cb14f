//! From what a user typed to an open archive.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::runtime::{self, Handle, Runtime};

use super::bucket::BucketRequest;
use super::layout;
use super::memory::default_cache_memory;
use crate::cache::{self, Blob, CacheDir, Current, DiskLimit, FileBlob, RemoteBlob};
use crate::environment::Environment;
use crate::failure::{Code, Failure};
use crate::squashfs::mounted::MountedArchive;
use crate::squashfs::{self, Archive};
use crate::store::{self, Access, ETag, Hedged, Object, ReadRanges, Source};

/// Variables that let whoever reads them in.
const SECRET_VARIABLES: [&str; 3] =
    ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN"];

/// Where an archive is, how to reach it, and what memory its caches may take. Serialised only
/// through a pipe: a presigned URL is a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRequest {
    /// As [`Source`] reads it.
    pub source: String,
    /// How to reach it.
    #[serde(flatten)]
    pub access: Access,
    /// Where in the object the archive starts, in bytes.
    pub offset: u64,
    /// Memory for compressed chunks and decoded blocks together, in bytes.
    pub cache_memory: u64,
    /// How much the disk cache may hold, which all archives of this user share.
    pub disk_cache: DiskLimit,
    /// Which version of the object is known to be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<Current>,
}

/// An open archive, with what it takes to keep it open.
pub struct OpenArchive {
    /// The archive.
    pub archive: Arc<Archive>,
    /// The source as it may be shown: no query string, no user info.
    pub name: String,
    /// Which version of its object it is, if that can be told.
    pub version: Option<ETag>,
    /// The chunk cache; none for a file on this machine.
    pub remote: Option<Arc<RemoteBlob>>,
    /// Where in the bucket its trace is, if it is the archive of a backup.
    pub trace: Option<Object>,
    /// The bucket that it is a backup in, reached as it was; `None` where it is none, or only a URL is known of it.
    pub bucket: Option<BucketRequest>,
    /// What was asked for; with the version that was found, so that it can be opened again as that.
    pub(crate) source: SourceRequest,
    /// Does the requests of `remote`; they end with it.
    requests: Option<Requests>,
}

/// Ends requests when it is dropped, and helpers with them, without waiting for a name that is still being
/// looked up.
pub(crate) struct Requests(Option<Runtime>);

impl Requests {
    /// What else may be done by those who do them.
    pub(crate) fn handle(&self) -> Option<Handle> {
        self.0.as_ref().map(|runtime| runtime.handle().clone())
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_timeout(SHUTDOWN);
        }
    }
}

/// How long threads have to write to the disk cache what they are about to.
const SHUTDOWN: Duration = Duration::from_secs(1);

impl SourceRequest {
    /// `source` with everything else default.
    pub fn new(source: impl Into<String>) -> Self {
        Self {
            source: source.into(),
            access: Access::default(),
            offset: 0,
            cache_memory: default_cache_memory(),
            disk_cache: DiskLimit::Auto,
            current: None,
        }
    }

    /// Makes a relative path absolute, for a process that will have another working directory.
    pub fn make_absolute(&mut self) {
        if let Ok(Source::Local(path)) = self.source.parse()
            && let Ok(absolute) = std::path::absolute(path)
            && let Some(text) = absolute.to_str()
        {
            text.clone_into(&mut self.source);
        }
    }

    /// Opens the archive. From a store that takes two GETs, sent in parallel; a short one if what
    /// they would bring is in the disk cache. Metadata that they did not bring is then fetched without
    /// anyone waiting for it.
    ///
    /// # Errors
    /// When the object cannot be read, or is no archive that can be.
    pub fn open(&self) -> Result<OpenArchive, Failure> {
        let source: Source = self.source.parse()?;
        let mut trace = None;
        let (archive, name, version, remote, runtime) = match &source {
            Source::Local(path) => {
                let (blob, name) = open_file(path, self.offset)?;
                let version = blob.metadata().ok().map(|meta| ETag::of_file(&meta));
                (self.open_blob(Arc::new(blob), &name)?, name, version, None, None)
            }
            Source::S3 { .. } | Source::Http(_) => {
                let runtime = start_runtime()?;
                let object = runtime.block_on(self.find(&source, &mut trace))?;
                let name = object.name();
                let blob = Arc::new(self.open_remote(object, &runtime)?);
                let version = blob.etag().cloned();
                let archive = self.open_blob(Arc::clone(&blob) as Arc<dyn Blob>, &name)?;
                (archive, name, version, Some(blob), Some(runtime))
            }
        };
        let archive = Arc::new(archive);
        if !archive.metadata_resident() {
            hold_metadata(Arc::clone(&archive));
        }
        let requests = runtime.map(|runtime| Requests(Some(runtime)));
        let bucket = self.bucket(&source, &name);
        let asked =
            Self { current: remote.as_ref().and_then(|blob| blob.current()), ..self.clone() };
        Ok(OpenArchive { archive, name, version, remote, trace, bucket, source: asked, requests })
    }

    /// The bucket of the backup whose archive this is, which is called `name`.
    fn bucket(&self, source: &Source, name: &str) -> Option<BucketRequest> {
        let folder = layout::folder_of_archive(name).filter(|_| self.offset == 0)?;
        let bucket = match source {
            Source::S3 { .. } => folder.to_owned(),
            Source::Local(path) if path.is_absolute() => format!("{folder}/"),
            Source::Local(_) | Source::Http(_) => return None,
        };
        Some(BucketRequest { access: self.access.clone(), ..BucketRequest::new(bucket) })
    }

    /// Whether opening or reading it may run a program that the user chose (`credential_process`).
    pub(crate) fn runs_programs(&self) -> bool {
        matches!(self.source.parse(), Ok(Source::S3 { .. }))
            && store::has_credential_process(&self.access)
    }

    /// Whether whoever reads it has something to hide: keys, or a URL that is one.
    pub(crate) fn holds_secrets(&self) -> bool {
        let is_secret = match self.source.parse() {
            Ok(Source::S3 { .. }) => !self.access.anonymous,
            // A plain one may lead to one that is signed.
            Ok(Source::Http(_)) => true,
            Ok(Source::Local(_)) | Err(_) => false,
        };
        let environment = Environment::of_process();
        is_secret || SECRET_VARIABLES.iter().any(|name| environment.get(name).is_some())
    }

    /// Opens an archive that is elsewhere, and finds where its trace is, if it has one.
    async fn find(
        &self,
        source: &Source,
        trace: &mut Option<Object>,
    ) -> store::Result<Arc<dyn ReadRanges>> {
        if matches!(source, Source::Http(_)) {
            return source.archive(&self.access).await;
        }
        let object = source.object(&self.access).await?;
        *trace = trace_of(&object);
        Ok(Arc::new(object))
    }

    /// Two thirds of the memory go to compressed chunks: they bound what can be on its way at a time, and
    /// so the throughput of a distant store.
    fn open_remote(
        &self,
        object: Arc<dyn ReadRanges>,
        runtime: &Runtime,
    ) -> Result<RemoteBlob, Failure> {
        let options = cache::OpenOptions {
            offset: self.offset,
            memory_bytes: self.cache_memory / 3 * 2,
            disk: open_cache(self.disk_cache),
            current: self.current.clone(),
            ..cache::OpenOptions::default()
        };
        let hedged = Arc::new(Hedged::new(object));
        Ok(RemoteBlob::open(hedged, runtime.handle().clone(), options)?)
    }

    /// The rest keeps what is decoded, a third of it metadata, up to 6 MiB: a walk of 200,000 files.
    fn open_blob(&self, blob: Arc<dyn Blob>, name: &str) -> Result<Archive, Failure> {
        let memory = usize::try_from(self.cache_memory / 3).unwrap_or(usize::MAX);
        let metadata_bytes = (memory / 3).min(6 << 20);
        let options = squashfs::OpenOptions {
            decoded_bytes: memory - metadata_bytes,
            metadata_bytes,
            ..squashfs::OpenOptions::default()
        };
        Archive::open(blob, options).map_err(|error| {
            let mut failure = Failure::from(error);
            failure.message = format!("{name}: {}", failure.message);
            failure
        })
    }
}

/// Fetches what metadata opening did not bring, while whoever opened goes on.
fn hold_metadata(archive: Arc<Archive>) {
    let hold = move || {
        if let Err(error) = archive.hold_metadata() {
            // Who needs it fails with the same. A command that has ended needs it no more.
            tracing::debug!("metadata could not be fetched ahead: {error}");
        }
    };
    // Without a thread, the first who needs it fetches it.
    if let Err(error) = thread::Builder::new().name("thawfs-metadata".into()).spawn(hold) {
        tracing::debug!("no thread to fetch metadata: {error}");
    }
}

/// The object beside the archive of a backup that says what was read of it first.
fn trace_of(archive: &Object) -> Option<Object> {
    let key = layout::trace_beside(&archive.key)?;
    Some(Object { bucket: Arc::clone(&archive.bucket), key })
}

/// The disk cache. Archives are read without one where it cannot be had.
fn open_cache(limit: DiskLimit) -> Option<CacheDir> {
    let path = CacheDir::locate()?;
    CacheDir::open(&path, limit).unwrap_or_else(|error| {
        tracing::warn!("no disk cache in {}: {error}", path.display());
        None
    })
}

/// Opens a file, or `data.sqsh` in a directory; gives its name, too.
fn open_file(asked: &Path, offset: u64) -> Result<(FileBlob, String), Failure> {
    let is_directory = asked.is_dir();
    let path = if is_directory { asked.join(layout::ARCHIVE) } else { asked.to_owned() };
    let name = path.display().to_string();
    match FileBlob::open(&path, offset) {
        Ok(blob) => Ok((blob, name)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && is_directory => {
            let message = format!("{name} does not exist, and a directory is no source without it");
            Err(Failure::new(Code::NotFound, message)
                .hint("a source is an archive; thawfs create backs a directory up as one"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(Failure::new(Code::NotFound, format!("{name} does not exist"))
                .hint("check the path; a key in a bucket is written s3://BUCKET/KEY"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(Failure::new(Code::AccessDenied, format!("cannot open {name}: {error}")))
        }
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
            Err(Failure::new(Code::NotAnArchive, format!("{name}: {error}")))
        }
        Err(error) => Err(Failure::io("open", &path, &error)),
    }
}

/// Two threads: requests wait more than they work.
pub(crate) fn start_runtime() -> Result<Runtime, Failure> {
    runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("thawfs-net")
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Code::Failed, format!("cannot start threads: {error}")))
}

impl OpenArchive {
    /// What ends the requests, for who outlives them. Later ones fail then.
    pub(crate) fn take_requests(&mut self) -> Option<Requests> {
        self.requests.take()
    }

    /// As a mount of it tells who asks, for [`crate::overlay::Overlay::named`]; `None` where it cannot be told from
    /// another version.
    pub fn as_mounted(&self) -> Option<MountedArchive> {
        let version = self.version.as_ref()?.0.clone();
        let is_told = !version.is_empty() && !version.contains(char::is_whitespace);
        is_told.then(|| MountedArchive { version, name: self.name.clone() })
    }

    /// What the store's connection has done; zero for a file on this machine.
    pub fn store_counters(&self) -> store::Counters {
        self.remote.as_ref().map(|blob| blob.object().counters()).unwrap_or_default()
    }

    /// What the chunk cache has done; zero for a file on this machine.
    pub fn chunk_counters(&self) -> cache::Counters {
        self.remote.as_ref().map(|blob| blob.counters()).unwrap_or_default()
    }
}
