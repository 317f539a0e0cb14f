//! The upper directory and its work directory, in kernel overlayfs's on-disk format.

mod form;
mod marks;
mod numbers;
mod open;
mod origin;
mod probe;
mod renaming;
mod work;

pub use open::Upper;
pub(super) use open::unusable;

pub(super) use form::Whiteouts;
pub(super) use marks::{Mark, Namespace};
pub(super) use numbers::Numbers;
pub(super) use origin::{Record, handle_of, index_name, parse_handle, parse_index_name};
pub(super) use work::Draft;
