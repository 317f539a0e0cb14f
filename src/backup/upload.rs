//! Sends an archive to a store while it is still being written.
//!
//! Stores take parts in any order. So the first part is held back while the others go: it has the superblock, which
//! is known last. An archive of one part is sent as one object once it is whole. Where a large one was expected,
//! a multipart upload has begun by then, and goes on with one part.
//!
//! An archive may begin as another does that the store has already ([`Beginning`]). The store copies the parts that
//! are the same in both. Two it cannot: the first, for the superblock in it, and that in which the new bytes begin.
//! What these have of the other archive is fetched.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::Receiver;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::failure::{Code, Failure};
use crate::squashfs::write::Sink;
use crate::store::{
    self, Copied, ETag, GetRange, MAX_PARTS, MIN_PART_SIZE, Object, Part, ReadRanges, Upload,
    WriteObjects,
};

/// Smallest size of parts, in bytes: at 100 MB/s, the time to the first byte of an answer is about a tenth of
/// what sending a part takes.
const PART_SIZE: u64 = 8 << 20;

/// Most bytes of parts on their way; one part always may be. With the part that is being filled and the
/// one that is held back, this is half of the 128 MiB that creating a backup may take.
const IN_FLIGHT: u64 = 48 << 20;

/// Of the parts that an upload may have, how many are kept for what the estimate of its size missed.
const SPARE_PARTS: u64 = 500;

/// Parts that the store is asked to copy at a time: each takes a round trip and the store's own time.
const COPIES: usize = 16;

/// How often whoever waits looks whether the upload was cancelled.
const LOOK: Duration = Duration::from_millis(100);

/// How long the request that makes the object may go on after the upload was cancelled.
const GRACE: Duration = Duration::from_secs(5);

/// What is known of an archive before it is packed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    /// About how many bytes it has at most.
    pub(super) bytes: u64,
    /// Size of its parts in bytes.
    pub(super) part_size: u64,
}

impl Expected {
    /// An archive of about `bytes` bytes at most, in parts of the size that it takes.
    pub(super) fn new(bytes: u64) -> Self {
        let needed = bytes.div_ceil(u64::from(MAX_PARTS) - SPARE_PARTS);
        Self { bytes, part_size: needed.max(PART_SIZE).next_multiple_of(1 << 20) }
    }

    /// Whether it has several parts, most likely.
    fn is_large(self) -> bool {
        self.bytes / 8 > self.part_size
    }
}

/// What an archive begins with: the first `len` bytes of an object in the same store, but for the superblock.
#[derive(Clone, Debug)]
pub(super) struct Beginning {
    pub(super) object: Object,
    pub(super) version: Option<ETag>,
    pub(super) len: u64,
}

impl Beginning {
    async fn fetch(self, range: Range<u64>) -> store::Result<Vec<u8>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let piece = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let range = GetRange::Between(range);
        let fetched = self.object.get_range(range, self.version.as_ref(), piece).await?;
        Ok(fetched.pieces.concat())
    }
}

/// Bytes on their way from the store.
type Fetching = JoinHandle<store::Result<Vec<u8>>>;

/// An archive on its way to a store. For one thread that may block, outside the runtime.
pub(super) struct Uploader<'a> {
    store: Arc<dyn WriteObjects>,
    /// Of the object that the archive becomes.
    key: String,
    runtime: Handle,
    /// Tells what to expect, once.
    expected: Receiver<Expected>,
    /// Bytes that fit into a part of any size. For more of them, what to expect has to be known.
    least: usize,
    /// 0 until it has been told.
    part_size: usize,
    in_flight: Arc<Semaphore>,
    cancel: &'a AtomicBool,
    sent: Arc<AtomicU64>,
    /// The first part; the superblock's place is empty.
    first: Vec<u8>,
    /// All of the first part, where it is of another archive.
    fetching_first: Option<Fetching>,
    /// What the first new byte follows in its part.
    fetching_seam: Option<Fetching>,
    /// What is yet to be copied.
    beginning: Option<Beginning>,
    /// Whether there was more than an upload has parts for.
    is_too_long: bool,
    /// Why the store did not copy a part, if that was so.
    not_copied: Arc<Mutex<Option<String>>>,
    /// The part after those that were sent, once the first is full.
    current: Vec<u8>,
    index: u32,
    upload: Option<Arc<Upload>>,
    /// An upload that was started before it is needed.
    starting: Option<JoinHandle<store::Result<Upload>>>,
    sending: JoinSet<store::Result<Part>>,
    parts: Vec<Part>,
    failure: Option<Failure>,
}

impl<'a> Uploader<'a> {
    /// For an archive that becomes the object of this store and key. Its first `held_back` bytes are known last. What
    /// to expect is asked for once the first part has as many bytes as the smallest part may have. `sent` counts
    /// bytes that have arrived; `cancel` calls the upload off.
    pub(super) fn new(
        (store, key): (Arc<dyn WriteObjects>, String),
        runtime: Handle,
        (expected, held_back): (Receiver<Expected>, u64),
        cancel: &'a AtomicBool,
        sent: Arc<AtomicU64>,
    ) -> Self {
        Self {
            store,
            key,
            runtime,
            expected,
            least: MIN_PART_SIZE as usize,
            part_size: 0,
            in_flight: Arc::new(Semaphore::new(0)),
            cancel,
            sent,
            first: vec![0; usize::try_from(held_back).unwrap_or(0)],
            fetching_first: None,
            fetching_seam: None,
            beginning: None,
            is_too_long: false,
            not_copied: Arc::default(),
            current: Vec::new(),
            index: 1,
            upload: None,
            starting: None,
            sending: JoinSet::new(),
            parts: Vec::new(),
            failure: None,
        }
    }

    /// For an archive that begins with `beginning`, in parts of `part_size` bytes. What is written comes behind that.
    /// [`Self::copy`] comes next.
    pub(super) fn onto(
        (store, key): (Arc<dyn WriteObjects>, String),
        runtime: Handle,
        (beginning, part_size): (Beginning, u64),
        cancel: &'a AtomicBool,
        sent: Arc<AtomicU64>,
    ) -> Self {
        let (tell, expected) = crossbeam_channel::bounded(1);
        // There is room.
        let _ = tell.send(Expected { bytes: beginning.len, part_size });
        let mut uploader = Self::new((store, key), runtime, (expected, 0), cancel, sent);
        uploader.least = 0;
        uploader.room();
        let fetch = |range| uploader.runtime.spawn(beginning.clone().fetch(range));
        let whole = beginning.len / part_size;
        let seam = fetch(whole * part_size..beginning.len);
        let first = (whole > 0).then(|| fetch(0..part_size));
        (uploader.fetching_seam, uploader.fetching_first) = (Some(seam), first);
        if whole > 0 {
            // Parts that are filled follow those that are copied.
            uploader.index = u32::try_from(whole).unwrap_or(u32::MAX);
            uploader.beginning = Some(beginning);
        }
        uploader
    }

    /// Has the store copy all parts but the first that are the same in what the archive begins with.
    ///
    /// # Errors
    /// Where the upload cannot be started, or is called off.
    pub(super) fn copy(&mut self) -> Result<(), Failure> {
        let Some(beginning) = self.beginning.take() else { return Ok(()) };
        let part_size = self.part_size as u64;
        let runtime = self.runtime.clone();
        let upload = runtime.block_on(self.upload())?;
        let places = Arc::new(Semaphore::new(COPIES));
        for index in 1..self.index {
            let start = u64::from(index) * part_size;
            let Beginning { object, version, .. } = beginning.clone();
            let from = Copied { key: object.key, range: start..start + part_size, version };
            let (store, upload) = (Arc::clone(&self.store), Arc::clone(&upload));
            let (places, not_copied) = (Arc::clone(&places), Arc::clone(&self.not_copied));
            let copy = async move {
                // It is never closed.
                let _place = places.acquire().await;
                let copied = store.copy_part(&upload, index, &from).await;
                if let Err(error) = &copied {
                    *not_copied.lock() = Some(error.to_string());
                }
                copied
            };
            self.sending.spawn_on(copy, &runtime);
        }
        Ok(())
    }

    /// Whether there was more than an upload has parts for.
    pub(super) fn is_too_long(&self) -> bool {
        self.is_too_long
    }

    /// Why the store did not copy what it has, if it did not.
    pub(super) fn not_copied(&self) -> Option<String> {
        self.not_copied.lock().clone()
    }

    /// Waits for what comes before the first new byte in its part.
    fn begin(&mut self) -> Result<(), Failure> {
        let Some(seam) = self.fetching_seam.take() else { return Ok(()) };
        let runtime = self.runtime.clone();
        let fetched = runtime.block_on(cancellable(self.cancel, seam))?;
        let fetched = fetched.map_err(|error| ended(&error))??;
        match self.fetching_first {
            Some(_) => self.current = fetched,
            None => self.first = fetched,
        }
        Ok(())
    }

    /// Sends what is left, the first part with `start` in the place that was held back, and makes the
    /// object of the parts. Returns its size in bytes.
    pub(super) fn finish(&mut self, start: &[u8]) -> Result<u64, Failure> {
        self.begin()?;
        if let Some(first) = self.fetching_first.take() {
            let first = self.runtime.block_on(cancellable(self.cancel, first))?;
            self.first = first.map_err(|error| ended(&error))??;
        }
        for (to, from) in self.first.iter_mut().zip(start) {
            *to = *from;
        }
        let first = Bytes::from(std::mem::take(&mut self.first));
        let is_started = self.upload.is_some() || self.starting.is_some();
        if !is_started && self.current.is_empty() {
            let size = first.len() as u64;
            let put = self.store.put(&self.key, first);
            self.runtime.block_on(last_request(self.cancel, put))??;
            self.sent.fetch_add(size, Ordering::Relaxed);
            return Ok(size);
        }
        self.send(0, first)?;
        if !self.current.is_empty() {
            let last = Bytes::from(std::mem::take(&mut self.current));
            self.send(self.index, last)?;
        }
        let runtime = self.runtime.clone();
        runtime.block_on(async {
            let upload = self.upload().await?;
            while let Some(done) = cancellable(self.cancel, self.sending.join_next()).await? {
                self.parts.push(arrived(done)?);
            }
            let complete = self.store.complete_upload(&upload, &self.parts);
            last_request(self.cancel, complete).await??;
            Ok(self.parts.iter().map(|part| part.size).sum())
        })
    }

    /// Why [`Sink::write`] failed, if it did.
    pub(super) fn take_failure(&mut self) -> Option<Failure> {
        self.failure.take()
    }

    /// Gives up: stops sending and frees the parts in the store.
    pub(super) fn abort(mut self) -> Result<(), Failure> {
        let runtime = self.runtime.clone();
        runtime.block_on(async {
            self.sending.shutdown().await;
            let upload = match (self.upload.take(), self.starting.take()) {
                (Some(upload), _) => upload,
                // One that cannot be started needs no end.
                (None, Some(starting)) => match starting.await {
                    Ok(Ok(upload)) => Arc::new(upload),
                    Ok(Err(_)) | Err(_) => return Ok(()),
                },
                (None, None) => return Ok(()),
            };
            Ok(self.store.abort_upload(&upload).await?)
        })
    }

    /// How many bytes the part that is being filled can have.
    fn room(&mut self) -> usize {
        if self.part_size == 0 {
            if self.first.len() < self.least {
                return self.least;
            }
            // Whoever measures the tree never ends without telling.
            let expected = self.expected.recv().unwrap_or(Expected::new(0));
            self.part_size = usize::try_from(expected.part_size).unwrap_or(usize::MAX);
            let in_flight = usize::try_from(IN_FLIGHT / expected.part_size).unwrap_or(1).max(1);
            self.in_flight.add_permits(in_flight);
            if expected.is_large() {
                self.starting = Some(self.start(expected.part_size));
            }
        }
        self.part_size
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        self.begin()?;
        while !bytes.is_empty() {
            let room = self.room();
            let part = match self.fetching_first.is_none() && self.first.len() < room {
                true => &mut self.first,
                false => &mut self.current,
            };
            if part.len() + bytes.len() > part.capacity() && part.capacity() < room {
                // Grown by doubling at first, so that a small archive takes little.
                let more = part.capacity().max(1 << 20).min(room - part.len());
                part.reserve_exact(more);
            }
            let (now, later) = bytes.split_at(bytes.len().min(room - part.len()));
            part.extend_from_slice(now);
            bytes = later;
            if self.current.len() == room {
                let full = Bytes::from(std::mem::take(&mut self.current));
                self.send(self.index, full)?;
                self.index += 1;
            }
        }
        Ok(())
    }

    /// Starts the upload, and goes on.
    fn start(&self, part_size: u64) -> JoinHandle<store::Result<Upload>> {
        let (store, key) = (Arc::clone(&self.store), self.key.clone());
        self.runtime.spawn(async move { store.start_upload(&key, part_size).await })
    }

    /// The upload, started now if it was not before.
    async fn upload(&mut self) -> Result<Arc<Upload>, Failure> {
        if let Some(upload) = &self.upload {
            return Ok(Arc::clone(upload));
        }
        let starting = match self.starting.as_mut() {
            Some(starting) => starting,
            None => {
                let starting = self.start(self.part_size as u64);
                self.starting.insert(starting)
            }
        };
        let started = cancellable(self.cancel, starting).await?;
        self.starting = None;
        let upload = Arc::new(started.map_err(|error| ended(&error))??);
        Ok(Arc::clone(self.upload.insert(upload)))
    }

    /// Waits for room among the parts in flight, and sends one more.
    fn send(&mut self, index: u32, body: Bytes) -> Result<(), Failure> {
        if index >= MAX_PARTS {
            self.is_too_long = true;
            let message = format!("{} grew far beyond its estimate", self.store.name(&self.key));
            return Err(Failure::new(Code::BackupCreateFailed, message)
                .hint("something is being written to the directory; try again when it is not"));
        }
        let runtime = self.runtime.clone();
        runtime.block_on(async {
            let upload = self.upload().await?;
            let room = Arc::clone(&self.in_flight).acquire_owned();
            let room = cancellable(self.cancel, room).await?;
            let (store, sent) = (Arc::clone(&self.store), Arc::clone(&self.sent));
            self.sending.spawn(async move {
                let part = store.put_part(&upload, index, body).await?;
                sent.fetch_add(part.size, Ordering::Relaxed);
                drop(room);
                Ok(part)
            });
            while let Some(done) = self.sending.try_join_next() {
                self.parts.push(arrived(done)?);
            }
            Ok(())
        })
    }
}

impl Sink for Uploader<'_> {
    fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        let taken = self.check_cancelled().and_then(|()| self.take(&bytes));
        taken.map_err(|failure| {
            let error = io::Error::other(failure.message.clone());
            self.failure = Some(failure);
            error
        })
    }
}

impl Uploader<'_> {
    fn check_cancelled(&self) -> Result<(), Failure> {
        match self.cancel.load(Ordering::Relaxed) {
            true => Err(cancelled()),
            false => Ok(()),
        }
    }
}

fn arrived(done: Result<store::Result<Part>, JoinError>) -> Result<Part, Failure> {
    Ok(done.map_err(|error| ended(&error))??)
}

fn ended(error: &JoinError) -> Failure {
    Failure::new(Code::BackupCreateFailed, format!("a request ended early: {error}"))
}

/// Waits for `work` until it is done or called off.
async fn cancellable<T>(cancel: &AtomicBool, work: impl Future<Output = T>) -> Result<T, Failure> {
    let mut work = std::pin::pin!(work);
    loop {
        if cancel.load(Ordering::Relaxed) {
            return Err(cancelled());
        }
        if let Ok(done) = timeout(LOOK, &mut work).await {
            return Ok(done);
        }
    }
}

/// Waits for the request that makes the object. Where we hang up, the store may make the object all the same, and
/// later than we delete it. So it gets a while to answer before that.
async fn last_request<T>(cancel: &AtomicBool, work: impl Future<Output = T>) -> Result<T, Failure> {
    let mut work = std::pin::pin!(work);
    let done = cancellable(cancel, &mut work).await;
    if done.is_err() {
        // Whatever becomes of it, it is cleaned up.
        let _ = timeout(GRACE, work).await;
    }
    done
}

fn cancelled() -> Failure {
    Failure::new(Code::BackupCreateFailed, "interrupted")
}

#[cfg(test)]
#[path = "../../tests/support/s3/mod.rs"]
mod s3;

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use proptest::prelude::*;

    use super::s3::{ACCESS_KEY, Config, S3Server, SECRET_KEY};
    use super::*;
    use crate::environment::Environment;
    use crate::store::{Access, Folder, PresignedUpload, PresignedUrls, Source};

    #[test]
    fn ten_thousand_parts_hold_what_was_estimated() {
        for estimate in [0, 1, 80 << 30, 1 << 40, 40 << 40] {
            let size = Expected::new(estimate).part_size;
            assert!((store::MIN_PART_SIZE..=store::MAX_PART_SIZE).contains(&size), "{estimate}");
            assert!(size * (u64::from(MAX_PARTS) - SPARE_PARTS) >= estimate, "{estimate}");
        }
        assert_eq!(Expected::new(70 << 30).part_size, PART_SIZE);
    }

    /// Size of parts in the tests below, in bytes: what matters about sizes is how they lie to it.
    const PART: u64 = 4096;
    /// What a superblock is held back for, in bytes.
    const HELD_BACK: u64 = 96;
    /// More parts than any archive of the tests takes.
    const URLS: u16 = 5;
    /// Where the test's server keeps what was not completed.
    const UPLOADS: &str = "buckets/.uploads";

    /// The places an archive can go to, and where its file is then.
    struct Places {
        local: Folder,
        bucket: Folder,
        runtime: tokio::runtime::Runtime,
        dir: tempfile::TempDir,
        server: S3Server,
    }

    fn options(server: &S3Server) -> Access {
        let keys = [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)];
        let environment: Environment = keys.into_iter().collect();
        Access { endpoint: Some(server.url()), environment, ..Default::default() }
    }

    impl Places {
        fn new() -> Self {
            Self::with(|config| config)
        }

        fn with(change: impl FnOnce(Config) -> Config) -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(dir.path().join("buckets/box")).unwrap();
            let config = Config { min_part: 1, ..Config::new(dir.path().join("buckets")) };
            let server = S3Server::start(change(config)).unwrap();
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let open = |url: &str| {
                let source: Source = url.parse().unwrap();
                runtime.block_on(source.folder(&options(&server))).unwrap()
            };
            let local = open(&format!("file://{}", dir.path().join("local").display()));
            Self { local, bucket: open("s3://box/"), runtime, dir, server }
        }

        /// URLs of an upload that was started by somebody with credentials.
        fn presigned(&self) -> PresignedUpload {
            use rusty_s3::S3Action;
            use rusty_s3::actions::AbortMultipartUpload;
            let object = self.bucket.object("presigned");
            self.runtime.block_on(object.bucket.start_upload(&object.key, PART)).unwrap();
            let mut started = std::fs::read_dir(self.dir.path().join(UPLOADS)).unwrap();
            let id = started.next().unwrap().unwrap().file_name().into_string().unwrap();
            let id = id.as_str();
            let (style, hour) = (rusty_s3::UrlStyle::Path, Duration::from_secs(3600));
            let endpoint = self.server.url().parse().unwrap();
            let bucket = rusty_s3::Bucket::new(endpoint, style, "box", "auto").unwrap();
            let keys = rusty_s3::Credentials::new(ACCESS_KEY, SECRET_KEY);
            let (keys, key) = (Some(&keys), object.key.as_str());
            let parts = (1..=URLS).map(|n| bucket.upload_part(keys, key, n, id).sign(hour));
            let urls = PresignedUrls {
                part_size: PART,
                parts: parts.collect(),
                complete: bucket
                    .complete_multipart_upload(keys, key, id, [].into_iter())
                    .sign(hour),
                abort: AbortMultipartUpload::new(&bucket, keys, key, id).sign(hour),
                archive: bucket.get_object(keys, key).sign(hour),
                metadata: bucket.put_object(keys, "metadata").sign(hour),
            };
            urls.open_unchecked(key.into(), "metadata".into(), &options(&self.server)).unwrap()
        }

        /// The object to make in one of the places, and the file that it is then.
        fn object(&self, place: &str) -> (Arc<dyn WriteObjects>, PathBuf) {
            let path = |name: &str| self.dir.path().join(name);
            match place {
                "file" => (self.local.bucket.clone(), path("local/file")),
                "s3" => (self.bucket.bucket.clone(), path("buckets/box/s3")),
                _ => (Arc::new(self.presigned()), path("buckets/box/presigned")),
            }
        }

        /// What is left of uploads that were started.
        fn unfinished(&self) -> usize {
            let count = |path: &Path, keep: fn(&str) -> bool| {
                let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
                entries.filter(|entry| keep(&entry.file_name().to_string_lossy())).count()
            };
            count(&self.dir.path().join(UPLOADS), |_| true)
                + count(&self.dir.path().join("local"), |name| !matches!(name, "file" | "earlier"))
        }

        /// Sends `content` as an archive that comes in `pieces`.
        fn send(
            &self,
            object: (Arc<dyn WriteObjects>, String),
            content: &[u8],
            pieces: usize,
            expected: Expected,
        ) -> Result<u64, Failure> {
            let (tell, told) = crossbeam_channel::bounded(1);
            tell.send(expected).unwrap();
            let cancel = AtomicBool::new(false);
            let sent = Arc::new(AtomicU64::new(0));
            let runtime = self.runtime.handle().clone();
            let parts = (told, HELD_BACK);
            let mut uploader = Uploader::new(object, runtime, parts, &cancel, Arc::clone(&sent));
            // As much smaller than a part as the smallest is than those of a large archive.
            uploader.least = PART as usize * 5 / 8;
            let (start, rest) = content.split_at(HELD_BACK as usize);
            for piece in rest.chunks(pieces) {
                uploader.write(Bytes::copy_from_slice(piece)).unwrap();
            }
            let size = uploader.finish(start)?;
            assert_eq!(sent.load(Ordering::Relaxed), size);
            Ok(size)
        }
    }

    /// Around a multiple of a part's size, up to three of them.
    fn sizes() -> impl Strategy<Value = u64> {
        (0..=3u64, -100..=100i64)
            .prop_map(|(parts, off)| (parts * PART).saturating_add_signed(off).max(HELD_BACK))
    }

    #[test]
    fn every_byte_arrives_whatever_was_expected() {
        let places = Places::new();
        let check = |size: u64, pieces: usize| {
            let content: Vec<u8> = (0..size as usize).map(|n| (n / 7 + n) as u8).collect();
            // As it is, none, just below and just at what is called large, and far too much.
            for bytes in [size, 0, 8 * PART, 8 * PART + 8, 1 << 30] {
                for place in ["file", "s3", "presigned"] {
                    let (store, path) = places.object(place);
                    let case = format!("{place}: {size} bytes in {pieces}s, {bytes} expected");
                    let expected = Expected { bytes, part_size: PART };
                    let sent =
                        places.send((store, place.into()), &content, pieces, expected).unwrap();
                    assert_eq!(sent, size, "{case}");
                    assert!(std::fs::read(&path).unwrap() == content, "{case}");
                    assert_eq!(places.unfinished(), 0, "{case}");
                    std::fs::remove_file(path).unwrap();
                }
            }
        };
        // Each seam, whatever chance has in store for the rest.
        for parts in 0..=3 {
            for off in [-1, 0, 1] {
                check((parts * PART).saturating_add_signed(off).max(HELD_BACK), 1000);
            }
        }
        let config = ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() };
        proptest!(config, |(size in sizes(), pieces in 1..3 * PART as usize)| {
            check(size, pieces);
        });
    }

    /// What each byte of an object is that another begins as.
    fn earlier(len: u64) -> Vec<u8> {
        (0..len as usize).map(|n| (n / 5 + 3 * n) as u8 | 1).collect()
    }

    impl Places {
        /// Sends `new` behind the first `len` bytes of what is there already, with `start` instead of as many of
        /// them. Gives the bytes that were sent.
        fn send_onto(
            &self,
            place: &str,
            (start, len): (&[u8], u64),
            new: &[u8],
        ) -> (Result<u64, Failure>, u64, Option<String>) {
            let folder = if place == "file" { &self.local } else { &self.bucket };
            let object = folder.object("earlier");
            let earlier = earlier(len + 10);
            self.runtime.block_on(object.put(earlier.into())).unwrap();
            let last = self.runtime.block_on(object.get_range(GetRange::Last(1), None, 1)).unwrap();
            let beginning = Beginning { object, version: last.etag, len };
            let (cancel, sent) = (AtomicBool::new(false), Arc::new(AtomicU64::new(0)));
            let (store, _) = self.object(place);
            let (target, runtime) = ((store, place.to_owned()), self.runtime.handle().clone());
            let from = (beginning, PART);
            let mut uploader = Uploader::onto(target, runtime, from, &cancel, Arc::clone(&sent));
            uploader.copy().unwrap();
            let written =
                new.chunks(700).try_for_each(|piece| uploader.write(Bytes::copy_from_slice(piece)));
            let finished = match written {
                Ok(()) => uploader.finish(start),
                Err(error) => Err(uploader.take_failure().unwrap_or_else(|| panic!("{error}"))),
            };
            let not_copied = uploader.not_copied();
            if finished.is_err() {
                uploader.abort().unwrap();
            }
            (finished, sent.load(Ordering::Relaxed), not_copied)
        }
    }

    #[test]
    fn what_the_store_has_already_is_not_sent_again() {
        let places = Places::new();
        let start = [b's'; HELD_BACK as usize];
        let seams = |parts: u64| [-1, 0, 1].map(|off| (parts * PART).saturating_add_signed(off));
        let lens = (1..4).flat_map(seams).chain([HELD_BACK, HELD_BACK + 1, 5 * PART / 2]);
        for len in lens {
            let to_seam = len.next_multiple_of(PART) - len;
            for more in [1, to_seam.max(2) - 1, to_seam.max(1), to_seam + 1, 2 * PART + 3] {
                let new: Vec<u8> = (0..more as usize).map(|n| (n % 251) as u8).collect();
                for place in ["file", "s3"] {
                    let case = format!("{place}: {more} bytes onto {len}");
                    places.server.clear_log();
                    let (size, sent, _) = places.send_onto(place, (&start, len), &new);
                    assert_eq!(size.unwrap(), len + more, "{case}");
                    let (_, path) = places.object(place);
                    let made = std::fs::read(&path).unwrap();
                    let mut due = earlier(len);
                    due[..start.len()].copy_from_slice(&start);
                    due.extend(&new);
                    assert!(made == due, "{case}");
                    assert_eq!(places.unfinished(), 0, "{case}");
                    let copied = (len / PART).saturating_sub(1);
                    assert_eq!(sent, len + more - copied * PART, "{case}");
                    let copies = places.server.log();
                    let copies =
                        copies.iter().filter(|it| it.headers.contains_key("x-amz-copy-source"));
                    if place == "s3" {
                        assert_eq!(copies.count() as u64, copied, "{case}");
                    }
                    std::fs::remove_file(path).unwrap();
                }
            }
        }
    }

    #[test]
    fn a_store_that_copies_nothing_is_told_apart_and_has_nothing_left() {
        let places = Places::with(|config| Config { copies: false, ..config });
        let start = [b's'; HELD_BACK as usize];
        let (failed, _, reason) = places.send_onto("s3", (&start, 3 * PART), &[7; 100]);
        assert!(failed.is_err());
        let reason = reason.unwrap();
        assert!(reason.contains("NotImplemented"), "{reason}");
        assert_eq!(places.unfinished(), 0);
        // With nothing to copy it does as well as any.
        let (size, _, reason) = places.send_onto("s3", (&start, 2 * PART - 1), &[7; 100]);
        assert_eq!((size.unwrap(), reason), (2 * PART + 99, None));
    }
}
