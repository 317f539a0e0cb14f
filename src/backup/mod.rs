//! The life of a backup in a bucket, and archives without a mount.
//!
//! [`Backups`] is a bucket; a backup in it has a [`BackupId`], an archive and [`Metadata`], whose keys
//! [`layout`] says. A new one goes to a [`Destination`]. An archive is opened through a
//! [`SourceRequest`], and unpacked by [`extract()`] or read through by [`verify()`].
//!
//! A backup is found by its keys alone: there is no index that could be wrong or would have to be locked.
//! So the archive is written first and its size checked, and the metadata, which makes it a backup, last;
//! deletion goes the other way round.
//!
//! | file | idea |
//! | --- | --- |
//! | `bucket`, `config`, [`layout`] | the place of backups, its name in a file, what lies where in it |
//! | `id`, `meta`, `fields` | what names a backup, and what is known of it |
//! | `create`, `select/`, `destination` | making one: what is left out, where it goes |
//! | `publish`, `tree` | making one of a merged tree, without a mount |
//! | `send`, `upload`, `base` | packed and sent at once, onto an archive that the store has already |
//! | `earlier` | which of those that were made before another may begin with |
//! | `list`, `contents` | what there is, and in what state |
//! | `restore`, `open`, `memory` | whether one may be restored; from a source to an open archive |
//! | `extract`, `staging` | ordinary files, complete or not at all |
//! | `verify/`, `warm` | reading all of an archive: to check it, or into the disk cache |
//! | `delete`, `prune` | deleting one, or by rule |

mod base;
mod bucket;
mod config;
mod contents;
mod create;
mod delete;
mod destination;
mod earlier;
mod extract;
mod fields;
mod id;
pub mod layout;
mod list;
mod memory;
mod meta;
mod open;
mod prune;
mod publish;
mod restore;
mod select;
mod send;
mod staging;
mod tree;
mod upload;
mod verify;
mod warm;

pub use bucket::{Backups, BucketRequest};
pub use config::Config;
pub use create::{CreateProgress, CreateRequest, Created};
pub use delete::{Deleted, Deletion};
pub use destination::{Destination, Presigned};
pub(crate) use extract::extract_staged;
pub use extract::{ExtractOptions, ExtractProgress, LeftOut, extract, find};
pub use id::{BackupId, Handle};
pub use list::{BackupEntry, BackupState};
pub(crate) use memory::default_cache_memory;
pub use meta::Metadata;
pub(crate) use meta::{check_name, check_name_length};
pub use open::{OpenArchive, SourceRequest};
pub(crate) use open::{Requests, start_runtime};
pub use prune::{PruneRules, PruneSummary, Pruned};
pub use publish::PublishRequest;
pub use select::Selection;
pub(crate) use staging::{Staging, staging_path};
pub use verify::{Verified, VerifyProgress, verify};
pub use warm::Warmed;
