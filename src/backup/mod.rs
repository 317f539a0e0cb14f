//! The life of a backup in a bucket, and archives without a mount.
//!
//! [`Backups`] is a bucket; a backup in it has a [`BackupId`], an archive and [`Metadata`]. An
//! archive is opened through a [`SourceRequest`], and unpacked by [`extract`].

mod bucket;
mod config;
mod contents;
mod create;
mod extract;
mod id;
mod meta;
mod open;
mod restore;
mod select;
mod upload;

pub use bucket::{Backups, BucketRequest, Jurisdiction, Presigned};
pub use config::Config;
pub use create::{CreateProgress, CreateRequest, Created};
pub use extract::{ExtractOptions, ExtractProgress, extract, find};
pub use id::{BackupId, Handle};
pub use meta::Metadata;
pub use open::{OpenArchive, SourceRequest};
pub use select::Selection;
