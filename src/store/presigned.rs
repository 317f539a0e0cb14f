//! A backup's objects behind presigned URLs, for a machine that holds no credentials.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use url::Url;

use super::exchange::{Auth, Call, Exchange};
use super::shown::redacted;
use super::{
    Access, Counters, ETag, Error, GetRange, MAX_PARTS, MIN_PART_SIZE, Pace, Part, Ranged,
    ReadRanges, Result, Upload, WriteObjects, multipart, ranged, tls,
};

/// The URLs for one archive, sent as a multipart upload that was started already, and its metadata.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PresignedUrls {
    /// Size of every part but the last, in bytes.
    pub part_size: u64,
    /// `PUT` of each part, in order. There may be more than are needed.
    pub parts: Vec<Url>,
    /// `POST` that completes the upload.
    pub complete: Url,
    /// `DELETE` that aborts the upload.
    pub abort: Url,
    /// `GET` of the finished archive, by which its size is checked.
    pub archive: Url,
    /// `PUT` of the metadata.
    pub metadata: Url,
}

impl PresignedUrls {
    /// How many bytes an archive may have.
    pub fn capacity(&self) -> u64 {
        self.part_size.saturating_mul(self.parts.len() as u64)
    }

    /// Opens them, as a place where an archive and metadata of those keys can be put.
    ///
    /// # Errors
    /// [`Error::BadOption`] where a size or a URL will not do.
    pub fn open(
        self,
        archive: String,
        metadata: String,
        access: &Access,
    ) -> Result<PresignedUpload> {
        self.check()?;
        self.open_unchecked(archive, metadata, access)
    }

    /// The same, whatever the size of the parts is.
    pub(crate) fn open_unchecked(
        self,
        archive: String,
        metadata: String,
        access: &Access,
    ) -> Result<PresignedUpload> {
        let exchange = Exchange::new(tls::client(access, None)?, Auth::None, None, access.clone());
        let (completed, described) = Default::default();
        Ok(PresignedUpload { exchange, urls: self, archive, metadata, completed, described })
    }

    fn check(&self) -> Result<()> {
        let bad = |reason: String| Err(PresignedUpload::bad(reason));
        if self.part_size < MIN_PART_SIZE {
            return bad(format!("partSize is below {MIN_PART_SIZE}"));
        }
        if self.parts.is_empty() || self.parts.len() > MAX_PARTS as usize {
            return bad(format!("it has {} parts, not 1 to {MAX_PARTS}", self.parts.len()));
        }
        let mut urls =
            self.parts.iter().chain([&self.complete, &self.abort, &self.archive, &self.metadata]);
        match urls.find(|url| !matches!(url.scheme(), "http" | "https")) {
            Some(url) => bad(format!("{} is not an HTTP URL", redacted(url))),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for PresignedUrls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PresignedUrls({}, {} parts)", redacted(&self.complete), self.parts.len())
    }
}

/// A place where an archive and its metadata can be put once, by [`PresignedUrls`]. It reads as the archive.
pub struct PresignedUpload {
    exchange: Exchange,
    urls: PresignedUrls,
    /// The keys.
    archive: String,
    metadata: String,
    /// Whether there may be an archive by now, and metadata.
    completed: AtomicBool,
    described: AtomicBool,
}

impl PresignedUpload {
    fn upload(&self) -> Upload {
        Upload { key: self.archive.clone(), part_size: self.urls.part_size, id: String::new() }
    }

    fn call(&self, method: Method, url: &Url) -> Call {
        Call::new(method, url.clone(), redacted(url))
    }

    fn bad(reason: String) -> Error {
        Error::BadOption { what: "the presigned upload".into(), reason }
    }
}

#[async_trait]
impl ReadRanges for PresignedUpload {
    fn name(&self) -> String {
        redacted(&self.urls.complete)
    }

    async fn get_range(
        &self,
        range: GetRange,
        expect: Option<&ETag>,
        piece: usize,
    ) -> Result<Ranged> {
        let name = redacted(&self.urls.complete);
        ranged::get_range(&self.exchange, &self.urls.archive, name, range, expect, piece).await
    }

    fn counters(&self) -> Counters {
        self.exchange.tally.snapshot()
    }

    fn pace(&self) -> Pace {
        self.exchange.pace()
    }
}

#[async_trait]
impl WriteObjects for PresignedUpload {
    fn name(&self, key: &str) -> String {
        match key == self.metadata {
            true => redacted(&self.urls.metadata),
            false => redacted(&self.urls.complete),
        }
    }

    /// The archive is put as an upload of one part.
    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        if key == self.archive {
            let upload = self.upload();
            let part = self.put_part(&upload, 0, body).await?;
            return self.complete_upload(&upload, &[part]).await;
        }
        self.described.store(true, Ordering::Relaxed);
        let mut call = self.call(Method::PUT, &self.urls.metadata);
        call.body = body;
        self.exchange.send(&call).await.map(drop)
    }

    async fn start_upload(&self, _: &str, part_size: u64) -> Result<Upload> {
        match part_size == self.urls.part_size {
            true => Ok(self.upload()),
            false => Err(Self::bad(format!("its parts have {} bytes", self.urls.part_size))),
        }
    }

    async fn put_part(&self, upload: &Upload, index: u32, body: Bytes) -> Result<Part> {
        upload.check_part(index, body.len() as u64)?;
        let Some(url) = self.urls.parts.get(index as usize) else {
            let (count, size) = (self.urls.parts.len(), self.urls.part_size);
            let reason = format!("the archive is larger than its {count} parts of {size} bytes");
            return Err(Self::bad(reason));
        };
        multipart::put_part(&self.exchange, self.call(Method::PUT, url), index, body).await
    }

    async fn complete_upload(&self, upload: &Upload, parts: &[Part]) -> Result<()> {
        self.completed.store(true, Ordering::Relaxed);
        let call = self.call(Method::POST, &self.urls.complete);
        multipart::complete(&self.exchange, call, upload, parts).await
    }

    async fn abort_upload(&self, _: &Upload) -> Result<()> {
        match self.exchange.send(&self.call(Method::DELETE, &self.urls.abort)).await {
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Of an archive that is not complete, all there is are the parts, and aborting frees those. No URL
    /// deletes what is complete.
    async fn delete(&self, key: &str) -> Result<()> {
        let exists = match key == self.archive {
            true => {
                self.abort_upload(&self.upload()).await?;
                &self.completed
            }
            false => &self.described,
        };
        if !exists.load(Ordering::Relaxed) {
            return Ok(());
        }
        let what = format!("deleting {}", WriteObjects::name(self, key));
        Err(Error::BadOption { what, reason: "there is no presigned URL for that".into() })
    }
}

impl fmt::Debug for PresignedUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PresignedUpload({:?})", self.urls)
    }
}
