//! What changes in a tree: an ordered log of changes, for any number of readers.
//!
//! Whoever changes a tree writes each [`Change`] down in a [`ChangeLog`], in the order in which they take effect, and
//! each [`Reader`] gets those that are made after it came. Nothing is written down while nobody reads.
//!
//! ```text
//! changes → ring in memory → journal on disk → forgotten; a reader who is there still is told which it missed
//! ```
//!
//! The ring always holds the last changes, so that a reader who comes back with a [`Cursor`] goes on where it
//! was. The journal takes those that the ring has no room for, if a reader has yet to get them: a mount's is a file
//! without a name beside its upper. Both are bounded.
//!
//! | file | idea |
//! | --- | --- |
//! | `change` | one change |
//! | `cursor` | a place in the log, as text |
//! | `log` | the log and its readers |
//! | `journal` | the part of it on disk |
//! | `inotify` | what the kernel tells of directories, and whom |
//! | `tree` | a log of what changes in a directory anywhere, made of that |
//!
//! A log lives from its first reader until [`LINGER`] after its last has gone, and what changes after that is nowhere
//! written down. So a cursor names the life that it is of, and one of another life is answered by
//! [`Start::Reset`], with the moment from which on all that changed has to be found otherwise.

mod change;
mod cursor;
mod inotify;
mod journal;
mod log;
mod tree;

pub use change::{Change, What};
pub use cursor::{Cursor, NotACursor};
pub use log::{ChangeLog, Item, Kept, LINGER, Limits, Reader, Start};
pub(crate) use tree::watch as watch_directory;
