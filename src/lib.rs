//! Mounts a frozen backup, a squashfs archive in an S3 or R2 bucket, as a live directory.
//!
//! A request goes down one staircase and its answer comes up the same one; each module imports only
//! from those below it.
//!
//! ```text
//! cli                    the command line: wires everything, owns no logic
//! server                 the process behind a mount: its start, its state, its end
//! bench                  what a bucket and its archives cost from here
//! files                  files and what changes in them, over HTTP
//! fuse        backup     adapters: the kernel's protocol | life of a backup in a bucket
//! failure                what a user is told when something fails
//! overlay                the merged tree: lower + upper, copy-up, whiteouts
//! watch                  what changes in a tree: an ordered log, and its readers
//! squashfs               the archive format
//! cache                  chunks of a remote object: memory, disk, prefetch
//! store       inode_ops  object stores behind three small traits | inodes by descriptor: found, made, removed
//! types       buffers    numbers with units, no I/O | large buffers that are used again
//! single_flight          what several threads want at once is made by one of them
//! environment names      the variables that the program looks at | names and words of others, shown
//! ```
//!
//! For programs that use the library, from bottom to top: [`environment`], [`types`], [`store`], [`cache`], [`squashfs`],
//! [`watch`], [`overlay`], [`failure`], [`backup`], [`mod@bench`], [`fuse`], [`server`], [`cli`]. The rest serves these.
//!
//! | to | begin with | an example |
//! | --- | --- | --- |
//! | mount a backup | [`server::restore()`], [`server::unmount()`] | `examples/restore.rs` |
//! | checkpoint a mount, roll it back and fork it | [`server::Mounted`] | `examples/checkpoints.rs` |
//! | make, list, check and delete backups | [`backup::Backups`] | [`backup::CreateRequest`] |
//! | back a merged tree up without a mount | [`backup::Backups::publish`] | `examples/publish.rs` |
//! | read an archive without a mount | [`squashfs::Archive`] | `examples/read_archive.rs` |
//! | make one | [`squashfs::write::archive`] | its own |
//! | read it from a place of your own | [`store::ReadRanges`] | `examples/custom_store.rs` |
//! | have a merged tree without a kernel | [`overlay::Overlay`] | its own |
//!
//! Everything from the cache upward is ordinary blocking code. Only the stores are asynchronous, the calls on
//! [`backup::Backups`], which are many small requests to them, and [`server::restore()`], which begins with one.
//! There is no unsafe code. `docs/ARCHITECTURE.md` walks a read and a write through these modules.

#![deny(clippy::disallowed_methods)]

pub mod backup;
pub mod bench;
mod buffers;
pub mod cache;
pub mod cli;
pub mod environment;
pub mod failure;
mod files;
pub mod fuse;
mod inode_ops;
mod names;
pub mod overlay;
pub mod server;
mod single_flight;
pub mod squashfs;
pub mod store;
pub mod types;
pub mod watch;
