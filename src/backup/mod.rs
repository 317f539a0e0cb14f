//! The life of a backup in a bucket: an archive is opened here, and unpacked.

mod extract;
mod open;
mod select;

pub use extract::{ExtractOptions, ExtractProgress, extract, find};
pub use open::{OpenArchive, SourceRequest};
pub use select::Selection;
