//! Object stores behind one narrow trait.
//!
//! A [`Source`] is what a user types; it opens as an [`Object`], a key in a [`Store`]. There are
//! three stores: S3 and everything that speaks its protocol, one object behind an HTTP(S) URL, and
//! a local directory. All of it is async, as little else in the crate is; callers
//! bring a tokio runtime with I/O and timers.
//!
//! The rules every store keeps, because backups must survive proxies and half-working servers:
//! the size of an object comes from `Content-Range`, never from HEAD; a 200 where 206 was asked is
//! [`Error::RangeIgnored`]; a request that names an [`ETag`] fails with [`Error::Changed`] if the
//! object is another one by now; truncated, stalled and failed requests are tried again until
//! [`StoreOptions::deadline`]. Bytes damaged on the way pass unnoticed: checksums are above.

mod counters;
mod credentials;
mod error;
mod exchange;
mod hedge;
mod helper;
mod http_store;
mod local;
mod multipart;
mod options;
mod pages;
mod pieces;
mod presigned;
mod profile;
mod ranged;
mod redirect;
mod refusal;
mod renewal;
mod s3;
mod s3_wire;
mod source;
mod tls;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};

pub use counters::Counters;
pub(crate) use credentials::has_credential_process;
pub use error::{Error, Result};
pub use hedge::Hedged;
pub use options::{StoreDefaults, StoreOptions};
pub use pages::Pages;
pub use presigned::PresignedUrls;
pub use redirect::Refused;
pub use redirect::parse_host;
pub use refusal::{Refusal, Right};
pub use source::Source;

/// Smallest multipart part S3 and R2 accept, in bytes; the last part may be smaller.
pub const MIN_PART_SIZE: u64 = 5 << 20;
/// Largest multipart part, in bytes.
pub const MAX_PART_SIZE: u64 = 5 << 30;
/// Most parts one upload can have.
pub const MAX_PARTS: u32 = 10_000;

/// Identifies one version of one object, opaque beyond equality. Quotes are part of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ETag(pub String);

impl ETag {
    /// Whether two objects of this tag may differ in bytes. `If-Match` never matches such a tag.
    pub fn is_weak(&self) -> bool {
        self.0.starts_with("W/")
    }
}

/// Which bytes of an object to get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GetRange {
    /// From `start` up to but excluding `end`; cut at the object's end. Not empty.
    Between(Range<u64>),
    /// The last bytes, or the whole object if it has fewer. Not 0.
    Last(u64),
}

impl fmt::Display for GetRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Between(range) => {
                write!(f, "bytes={}-{}", range.start, range.end.saturating_sub(1))
            }
            Self::Last(count) => write!(f, "bytes=-{count}"),
        }
    }
}

/// Bytes of an object, and what the answer said about the whole of it.
#[derive(Clone, Debug)]
pub struct Ranged {
    /// The bytes, each piece in an allocation of its own and of the size that was asked; only the
    /// last is shorter.
    pub pieces: Vec<Bytes>,
    /// Where in the object the bytes lie.
    pub range: Range<u64>,
    /// Size of the whole object in bytes.
    pub size: u64,
    /// The object's version, if the store knows versions.
    pub etag: Option<ETag>,
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
    /// Give this to [`Store::list`] for the next page; `None` on the last. See [`Pages`].
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
    id: String,
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
    /// Give this to [`Store::list_uploads`] for the next page; `None` on the last. See [`Pages`].
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

/// A part that was uploaded.
#[derive(Clone, Debug)]
pub struct Part {
    /// Position among the parts, from 0.
    pub index: u32,
    /// Size in bytes.
    pub size: u64,
    tag: String,
}

/// A place that keeps objects under keys. Keys have `/` between segments and none at the start.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync {
    /// The object's full name for messages, such as `s3://bucket/key`; holds no secret.
    fn name(&self, key: &str) -> String;

    /// The same, told apart from an object of that name on another server.
    fn place(&self, key: &str) -> String {
        self.name(key)
    }

    /// Gets bytes of an object, in pieces of `piece` bytes (not 0). With `expect`, only of that
    /// version.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if the range starts past the end, [`Error::Changed`] if the version
    /// is not the expected one, and what the network has to offer.
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

    /// Writes a whole object, replacing what was there.
    async fn put(&self, key: &str, body: Bytes) -> Result<()>;

    /// Starts an upload in parts. R2 insists that all parts but the last have one size.
    async fn start_upload(&self, key: &str, part_size: u64) -> Result<Upload>;

    /// Uploads one part; parts may be sent in any order and at the same time.
    ///
    /// # Errors
    /// [`Error::BadOption`] if the body is empty or larger than the upload's part size.
    async fn put_part(&self, upload: &Upload, index: u32, body: Bytes) -> Result<Part>;

    /// Makes the object out of its parts. Where an answer was lost and the request repeated, it
    /// can only be guessed that the upload is complete: verify the object's size afterwards.
    ///
    /// # Errors
    /// [`Error::BadOption`] if a part is missing, or shorter than the rest without being the last.
    async fn complete_upload(&self, upload: &Upload, parts: &[Part]) -> Result<()>;

    /// Gives up an upload and frees its parts. An upload that is gone already is no error.
    async fn abort_upload(&self, upload: &Upload) -> Result<()>;

    /// Lists unfinished uploads whose key starts with `prefix`, one page a call, from `page` on.
    async fn list_uploads(&self, prefix: &str, page: Option<&str>) -> Result<UnfinishedPage>;

    /// Lists objects whose key starts with `prefix`, one page a call, from `page` on.
    async fn list(&self, prefix: &str, depth: Depth, page: Option<&str>) -> Result<Page>;

    /// Deletes an object; that it does not exist is no error.
    async fn delete(&self, key: &str) -> Result<()>;

    /// What this store has done so far.
    fn counters(&self) -> Counters;

    /// How it answers at the moment; by default, as one that is never waited for.
    fn pace(&self) -> Pace {
        Pace::default()
    }
}

/// How a store answers at the moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// How long a read may go on without progress, if there is such a bound.
    pub deadline: Option<Duration>,
    /// When bytes last came, whoever asked for them.
    pub progress: Option<Instant>,
    /// Whether it has asked to be left alone for a while.
    pub holds_off: bool,
}

/// A key in a store.
#[derive(Clone, Debug)]
pub struct Object {
    /// Where it is kept.
    pub store: Arc<dyn Store>,
    /// Its key there.
    pub key: String,
}

impl Object {
    /// Full name for messages; holds no secret.
    pub fn name(&self) -> String {
        self.store.name(&self.key)
    }
}

/// A prefix in a store, below which objects can be written.
#[derive(Clone, Debug)]
pub struct Folder {
    /// Where it is kept.
    pub store: Arc<dyn Store>,
    /// What every key starts with: empty, or ending in `/`.
    pub prefix: String,
}

impl Folder {
    /// The object at `path` below this folder.
    pub fn object(&self, path: &str) -> Object {
        Object { store: self.store.clone(), key: format!("{}{path}", self.prefix) }
    }
}

/// Checks that `parts` are all of an upload: numbered without a gap, all of one size but the
/// last. Returns them in order.
fn check_parts<'a>(upload: &Upload, parts: &'a [Part]) -> Result<Vec<&'a Part>> {
    let bad = |reason: String| Error::BadOption { what: upload.key.clone(), reason };
    let mut sorted: Vec<&Part> = parts.iter().collect();
    sorted.sort_by_key(|part| part.index);
    let Some(last) = sorted.last() else { return Err(bad("an upload of no parts".into())) };
    for (expected, part) in (0..).zip(&sorted) {
        if part.index != expected {
            return Err(bad(format!("part {expected} is missing or doubled")));
        }
        if part.size != upload.part_size && part.index != last.index {
            return Err(bad(format!("part {expected} has {} bytes", part.size)));
        }
    }
    Ok(sorted)
}

/// Checks the body of one part against the rules of its upload.
fn check_part(upload: &Upload, index: u32, body: &Bytes) -> Result<()> {
    let size = body.len() as u64;
    if size == 0 || size > upload.part_size || index >= MAX_PARTS {
        return Err(Error::BadOption {
            what: upload.key.clone(),
            reason: format!("part {index} of {size} bytes where {} are due", upload.part_size),
        });
    }
    Ok(())
}
