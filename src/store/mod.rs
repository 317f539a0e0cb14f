//! Object stores behind three small traits.
//!
//! A [`Source`] is what a user types. What it opens as can do no more than the place can:
//!
//! | | [`ReadRanges`], one object | [`WriteObjects`] | [`Bucket`] |
//! | --- | --- | --- | --- |
//! | S3 and what speaks its protocol | each [`Object`] of it | yes | yes |
//! | a local directory | each [`Object`] of it | yes | yes |
//! | an HTTP(S) URL | yes | | |
//! | presigned URLs of one upload | the archive | the archive, its metadata | |
//!
//! The way of one request, from what is asked to the wire and back:
//!
//! | file | idea |
//! | --- | --- |
//! | `source`, `access`, `r2` | what a user types, and how its store is reached |
//! | `read`, `bucket` | the traits, and what their calls take and give |
//! | `hedge` | asks once more for what takes longer than usual |
//! | `s3`, `http_object`, `presigned`, `local` | the stores: where an object is, and what is asked for it |
//! | `ranged`, `multipart`, `pages` | what takes several requests: a body cut short, an upload, a listing |
//! | `exchange` | signs, sends, and tries again within the deadline |
//! | `tls`, `redirect` | the HTTP client, and where a server may send it |
//! | `classify`, `refusal` | what an answer that is no success means |
//! | `credentials`, `profile`, `helper`, `renewal` | keys: where they come from, and when they are read again |
//!
//! Why requests and keys are our own is in `docs/decisions/own-multipart-upload.md` and
//! `docs/decisions/credentials.md`.
//!
//! All of it is async, as little else in the crate is. Callers bring a tokio runtime with I/O and timers.
//!
//! All stores keep the same rules, because backups must survive proxies and half-working servers:
//!
//! - The size of an object comes from `Content-Range`, never from HEAD.
//! - A 200 where 206 was asked for is [`Error::RangeIgnored`].
//! - A request that names an [`ETag`] fails with [`Error::Changed`] if the object is another one by now.
//! - Truncated, stalled and failed requests are tried again until [`Access::deadline`].
//!
//! Bytes that were damaged on the way pass unnoticed: checksums are above.

mod access;
mod bucket;
mod classify;
mod counters;
mod credentials;
mod error;
mod exchange;
mod hedge;
mod helper;
mod http_object;
mod local;
mod multipart;
mod pages;
mod pieces;
mod presigned;
mod profile;
mod provider;
pub mod r2;
mod ranged;
mod read;
mod redirect;
mod refusal;
mod renewal;
mod s3;
mod s3_wire;
mod shown;
mod source;
mod tls;

pub use access::{Access, AccessDefaults};
pub use bucket::{
    Bucket, Copied, Depth, Folder, Listed, MAX_PART_SIZE, MAX_PARTS, MIN_PART_SIZE, Object, Page,
    Part, Unfinished, UnfinishedPage, Upload, WriteObjects,
};
pub use counters::Counters;
pub(crate) use credentials::has_credential_process;
pub use error::{Error, Result};
pub use hedge::Hedged;
pub use pages::Pages;
pub use presigned::{PresignedUpload, PresignedUrls};
pub use read::{ETag, GetRange, Pace, Ranged, ReadRanges};
pub use redirect::Refused;
pub use redirect::parse_host;
pub use refusal::{Refusal, Right};
pub use source::Source;
