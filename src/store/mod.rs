//! Object stores behind two small traits.
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
//! One request passes through `ranged` or `multipart` (what an operation is made of), `exchange` (signs, sends,
//! tries again within the deadline), `tls` (the HTTP client) and, on its way back, `classify` (what an answer
//! that is no success means). `hedge` may send it twice. Keys come from `credentials`, which asks `profile`,
//! `helper` and `renewal`. Why requests and keys are our own is in `docs/decisions/own-multipart-upload.md` and
//! `docs/decisions/credentials.md`.
//!
//! All of it is async, as little else in the crate is; callers bring a tokio runtime with I/O and
//! timers.
//!
//! The rules that all of them keep, because backups must survive proxies and half-working servers:
//! the size of an object comes from `Content-Range`, never from HEAD; a 200 where 206 was asked is
//! [`Error::RangeIgnored`]; a request that names an [`ETag`] fails with [`Error::Changed`] if the
//! object is another one by now; truncated, stalled and failed requests are tried again until
//! [`Access::deadline`]. Bytes damaged on the way pass unnoticed: checksums are above.

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
    Bucket, Depth, Folder, Listed, MAX_PART_SIZE, MAX_PARTS, MIN_PART_SIZE, Object, Page, Part,
    Unfinished, UnfinishedPage, Upload, WriteObjects,
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
