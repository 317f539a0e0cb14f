//! Places that keep objects under keys. Keys have `/` between segments and none at the start.
//!
//! [`WriteObjects`] is what it takes to make objects, which presigned URLs can do as well; a
//! [`Bucket`] can also be read, listed and cleaned. An [`Object`] of it is read as any other is.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::{Counters, ETag, Error, GetRange, Pace, Pages, Ranged, ReadRanges, Result};

/// Smallest multipart part S3 and R2 accept, in bytes; the last part may be smaller.
pub const MIN_PART_SIZE: u64 = 5 << 20;
/// Largest multipart part, in bytes.
pub const MAX_PART_SIZE: u64 = 5 << 30;
/// Most parts one upload can have.
pub const MAX_PARTS: u32 = 10_000;

/// A place that objects can be put into.
#[async_trait]
pub trait WriteObjects: fmt::Debug + Send + Sync {
    /// The object's full name for messages, such as `s3://bucket/key`; holds no secret.
    fn name(&self, key: &str) -> String;

    /// Writes a whole object, replacing what was there.
    async fn put(&self, key: &str, body: Bytes) -> Result<()>;

    /// Starts an upload in parts. R2 insists that all parts but the last have one size.
    async fn start_upload(&self, key: &str, part_size: u64) -> Result<Upload>;

    /// Uploads one part; parts may be sent in any order and at the same time.
    ///
    /// # Errors
    /// [`Error::BadOption`] if the body is empty or larger than the upload's part size.
    async fn put_part(&self, upload: &Upload, index: u32, body: Bytes) -> Result<Part>;

    /// Has the store fill one part with bytes of an object that it has already: nothing of them passes here.
    ///
    /// # Errors
    /// [`Error::Changed`] where the object is no longer the version that is asked for, [`Error::BadOption`] if the
    /// range is empty or larger than the upload's part size, [`Error::CannotCopy`] where the place does no such
    /// thing, and [`Error::Refused`] where the server says so.
    async fn copy_part(&self, upload: &Upload, index: u32, from: &Copied) -> Result<Part> {
        let _ = (index, from);
        Err(Error::CannotCopy { place: self.name(&upload.key) })
    }

    /// Makes the object out of its parts. Where an answer was lost and the request repeated, it
    /// can only be guessed that the upload is complete: verify the object's size afterwards.
    ///
    /// # Errors
    /// [`Error::BadOption`] if a part is missing, or shorter than the rest without being the last.
    async fn complete_upload(&self, upload: &Upload, parts: &[Part]) -> Result<()>;

    /// Gives up an upload and frees its parts. An upload that is gone already is no error.
    async fn abort_upload(&self, upload: &Upload) -> Result<()>;

    /// Deletes an object, or what there is of it so far; that there is nothing is no error.
    async fn delete(&self, key: &str) -> Result<()>;
}

/// A place that keeps objects.
#[async_trait]
pub trait Bucket: WriteObjects {
    /// As [`ReadRanges::place`] of the object.
    fn place(&self, key: &str) -> String {
        self.name(key)
    }

    /// As [`ReadRanges::get_range`] of the object.
    async fn get_range(
        &self,
        key: &str,
        range: GetRange,
        expect: Option<&ETag>,
        piece: usize,
    ) -> Result<Ranged>;

    /// Gets a whole small object.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if it has more than `limit` bytes.
    async fn get_whole(&self, key: &str, limit: u64) -> Result<Bytes>;

    /// Lists objects whose key starts with `prefix`, one page a call, from `page` on.
    async fn list(&self, prefix: &str, depth: Depth, page: Option<&str>) -> Result<Page>;

    /// Lists unfinished uploads whose key starts with `prefix`, one page a call, from `page` on.
    async fn list_uploads(&self, prefix: &str, page: Option<&str>) -> Result<UnfinishedPage>;

    /// What has been asked of it so far.
    fn counters(&self) -> Counters;

    /// How it answers at the moment; by default, as one that is never waited for.
    fn pace(&self) -> Pace {
        Pace::default()
    }
}

/// A key in a bucket.
#[derive(Clone, Debug)]
pub struct Object {
    /// Where it is kept.
    pub bucket: Arc<dyn Bucket>,
    /// Its key there.
    pub key: String,
}

impl Object {
    /// Gets all of it, which must be small: see [`Bucket::get_whole`].
    ///
    /// # Errors
    /// As there.
    pub async fn get_whole(&self, limit: u64) -> Result<Bytes> {
        self.bucket.get_whole(&self.key, limit).await
    }

    /// Writes all of it: see [`WriteObjects::put`].
    ///
    /// # Errors
    /// As there.
    pub async fn put(&self, body: Bytes) -> Result<()> {
        self.bucket.put(&self.key, body).await
    }
}

#[async_trait]
impl ReadRanges for Object {
    fn name(&self) -> String {
        self.bucket.name(&self.key)
    }

    fn place(&self) -> String {
        self.bucket.place(&self.key)
    }

    async fn get_range(
        &self,
        range: GetRange,
        expect: Option<&ETag>,
        piece: usize,
    ) -> Result<Ranged> {
        self.bucket.get_range(&self.key, range, expect, piece).await
    }

    fn counters(&self) -> Counters {
        self.bucket.counters()
    }

    fn pace(&self) -> Pace {
        self.bucket.pace()
    }
}

/// A prefix in a bucket, below which objects are kept.
#[derive(Clone, Debug)]
pub struct Folder {
    /// The bucket.
    pub bucket: Arc<dyn Bucket>,
    /// What every key starts with: empty, or ending in `/`.
    pub prefix: String,
}

impl Folder {
    /// The object at `path` below this folder.
    pub fn object(&self, path: &str) -> Object {
        Object { bucket: Arc::clone(&self.bucket), key: format!("{}{path}", self.prefix) }
    }
}

/// One object as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Full key.
    pub key: String,
    /// Size in bytes.
    pub size: u64,
    /// When it was last written, if the store says so.
    pub modified: Option<DateTime<Utc>>,
}

/// One page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Objects, sorted by key.
    pub objects: Vec<Listed>,
    /// With [`Depth::Children`]: key prefixes below, each with its trailing `/`.
    pub prefixes: Vec<String>,
    /// Give this to [`Bucket::list`] for the next page; `None` on the last. See [`Pages`].
    pub next: Option<String>,
}

impl Page {
    /// Turns to the next page of the listing of `object`.
    ///
    /// # Errors
    /// As [`Pages::turn`].
    pub fn turn(&self, pages: &mut Pages, object: &str) -> Result<()> {
        let keys = self.objects.iter().map(|listed| listed.key.as_str());
        let names = keys.chain(self.prefixes.iter().map(String::as_str));
        pages.turn(object, names, self.next.clone())
    }
}

/// How far below its prefix a listing goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Every object whose key starts with the prefix.
    All,
    /// Objects up to the next `/`; what lies deeper shows as a prefix.
    Children,
}

/// A multipart upload in progress. It costs storage until completed or aborted.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Key of the object to be.
    pub key: String,
    /// Size of every part but the last, in bytes.
    pub part_size: u64,
    pub(super) id: String,
}

impl Upload {
    fn bad(&self, reason: String) -> Error {
        Error::BadOption { what: self.key.clone(), reason }
    }

    /// Checks the size of one part against the rules of the upload.
    pub(super) fn check_part(&self, index: u32, size: u64) -> Result<()> {
        if size == 0 || size > self.part_size || index >= MAX_PARTS {
            let due = self.part_size;
            return Err(self.bad(format!("part {index} of {size} bytes where {due} are due")));
        }
        Ok(())
    }

    /// Checks that `parts` are all there are: numbered without a gap, all of one size but the last.
    /// Returns them in order.
    pub(super) fn check_parts<'a>(&self, parts: &'a [Part]) -> Result<Vec<&'a Part>> {
        let mut sorted: Vec<&Part> = parts.iter().collect();
        sorted.sort_by_key(|part| part.index);
        let Some(last) = sorted.last() else {
            return Err(self.bad("an upload of no parts".into()));
        };
        for (expected, part) in (0..).zip(&sorted) {
            if part.index != expected {
                return Err(self.bad(format!("part {expected} is missing or doubled")));
            }
            if part.size != self.part_size && part.index != last.index {
                return Err(self.bad(format!("part {expected} has {} bytes", part.size)));
            }
        }
        Ok(sorted)
    }
}

/// An upload that was started, and neither completed nor aborted yet.
#[derive(Clone, Debug)]
pub struct Unfinished {
    /// The upload. Its part size is not known any more: it can only be aborted.
    pub upload: Upload,
    /// When it was started or (in a directory) last written to, if the store says so.
    pub since: Option<DateTime<Utc>>,
}

/// One page of unfinished uploads.
#[derive(Clone, Debug, Default)]
pub struct UnfinishedPage {
    /// The uploads, sorted by key.
    pub uploads: Vec<Unfinished>,
    /// Give this to [`Bucket::list_uploads`] for the next page; `None` on the last. See [`Pages`].
    pub next: Option<String>,
}

impl UnfinishedPage {
    /// Turns to the next page of the listing of `object`.
    ///
    /// # Errors
    /// As [`Pages::turn`].
    pub fn turn(&self, pages: &mut Pages, object: &str) -> Result<()> {
        let first = self.uploads.first().map(|first| &first.upload);
        let first = first.map(|upload| (upload.key.as_str(), upload.id.as_str()));
        pages.turn_uploads(object, first, self.next.clone())
    }
}

/// What is copied to a part of an upload.
#[derive(Clone, Debug)]
pub struct Copied {
    /// The key of the object in the same bucket.
    pub key: String,
    /// Which of its bytes.
    pub range: Range<u64>,
    /// The version that it has to be.
    pub version: Option<ETag>,
}

/// A part that was uploaded.
#[derive(Clone, Debug)]
pub struct Part {
    /// Position among the parts, from 0.
    pub index: u32,
    /// Size in bytes.
    pub size: u64,
    pub(super) tag: String,
}
