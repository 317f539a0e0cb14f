//! The process behind a mount: from a request to a directory that answers, and its tidy end.
//!
//! [`serve()`] is that process's whole life. [`start_detached`] runs it in a process of its own.
//! What a server writes down about itself is in [`state`], what it says when asked in [`report`].

mod control;
mod detach;
mod heap;
mod inherited;
pub mod mounts;
mod owners;
pub mod report;
mod restore;
mod serve;
pub mod state;
mod traces;
mod unchosen;
mod unmount;

pub use control::fetch_report;
pub use detach::{SERVE_COMMAND, Starting, run_detached, start_detached};
pub use heap::restart_limited;
pub use owners::OwnerOptions;
pub use restore::{Notice, RestoreRequest, Restored, restore, restore_archive, restore_here};
pub use serve::{MountRequest, Ready, check_free, serve};
pub use unchosen::check_unchosen;
pub use unmount::{resolve_mountpoint, unmount};
