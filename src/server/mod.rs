//! The process behind a mount: from a request to a directory that answers, and its tidy end.
//!
//! [`serve()`] is that process's whole life. [`start_detached`] runs it in a process of its own.
//!
//! | file | idea |
//! | --- | --- |
//! | `request`, `owners` | what is asked for, and whose files are to be shown |
//! | `detach`, `program` | starting a server, and which program that is |
//! | `inherited`, `privileges`, `group`, `heap` | what it leaves behind, gives up, or sets for itself |
//! | `serve`, `directories`, `traces` | its life: the mount, its directories, what is fetched ahead |
//! | `layers/` | the layers of its upper on disk, and the points between them |
//! | `rebase` | a backup of them takes the place of the lower ones |
//! | `control`, [`report`], `questions`, `difference`, `changes` | what it says when asked |
//! | `checkpoints/` | checkpoints, and rolling back to them |
//! | `silence` | why it says nothing |
//! | `file_service` | files of the machine over HTTP |
//! | `state`, `mount_dir`, `record`, `locks` | what is written down of it, and locked |
//! | [`mounts`], `mounted_from` | what is mounted, as the kernel says |
//! | `mounted` | a mount that is there, and what its server does when asked |
//! | `restore`, `unchosen` | a backup in place of what is mounted; where nobody chose the place |
//! | `write_back` | what the kernel holds back of a mount, written for those who watch it |
//! | `unmount` | the end of a mount, whoever serves it |
//! | `dead`, `leftovers` | servers and commands that were killed, and what they left |

mod changes;
pub(crate) mod checkpoints;
mod control;
mod dead;
mod detach;
mod difference;
mod directories;
mod file_service;
mod files_worker;
pub(crate) mod group;
mod heap;
mod inherited;
mod layers;
pub(crate) mod leftovers;
mod locks;
mod mount_dir;
mod mounted;
mod mounted_feeds;
mod mounted_from;
pub mod mounts;
mod owners;
mod privileges;
mod program;
pub(crate) mod questions;
mod rebase;
mod record;
pub mod report;
mod request;
mod restore;
mod serve;
mod silence;
pub(crate) mod state;
mod traces;
mod unchosen;
mod unmount;
mod write_back;

pub(crate) use changes::{ChangesRequest, Following, Line, Told};
pub use control::fetch_report;
pub(crate) use dead::dead_mount;
pub(crate) use detach::run_detached;
pub use detach::{Starting, serve_if_asked, start_detached};
pub(crate) use difference::{DifferenceRequest, fetch_difference};
pub(crate) use file_service::{FileService, serve_files};
pub(crate) use files_worker::run_files_worker;
pub use group::Group;
pub(crate) use heap::restart_limited;
pub(crate) use mounted::find_around;
pub use mounted::{Checkpoint, Mounted, NewCheckpoint, RollBackTo};
pub use owners::OwnerOptions;
pub(crate) use privileges::restrict;
pub use program::ServerProgram;
pub(crate) use program::{FILES_COMMAND, SERVE_COMMAND, passes_through};
pub use request::{Found, MountRequest, Ready};
pub use restore::{Notice, RestoreRequest, Restored, restore, restore_archive, restore_here};
pub(crate) use restore::{find_point, still_here};
pub use serve::serve;
pub(crate) use unchosen::check_unchosen;
pub use unmount::{Manner, unmount};
pub(crate) use unmount::{
    check_free, held_on, resolve_mountpoint, unmount_locked, unpublished_in_words, unpublished_on,
};
