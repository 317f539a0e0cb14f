//! The FUSE adapter: kernel protocol on one side, [`Overlay`](crate::overlay::Overlay) on the other.
//!
//! It is thin on purpose. It decides four things, and leaves the rest to the overlay:
//!
//! - On which thread a request runs. Answers from memory are given on the thread that read the request; what waits
//!   for the disk has a pool, and what waits for the store has others.
//! - How long the kernel may remember an answer.
//! - How many files the kernel should remember.
//! - Whether the kernel does a file's I/O through its page cache or by itself.
//!
//! | file | idea |
//! | --- | --- |
//! | `filesystem` | the requests, unpacked: names and attributes, and the way to the next |
//! | `opening`, `data`, `listing` | requests that open and create files, read and write them, list directories |
//! | `negotiate` | what is agreed upon with the kernel |
//! | `adapter`, `context` | what requests are worked on with, and how they are answered |
//! | `work`, `pool` | on which thread; threads that start when there is work |
//! | `gate`, `parked` | how much is worked on at a time: reads that wait for their turn, writes that wait for a copy |
//! | `io_mode`, `callers` | passthrough: which files the kernel reads and writes by itself, with whose rights |
//! | `notify` | what the kernel is told by messages of our own |
//! | `prune` | how many files the kernel remembers |
//! | `attr`, `errno`, `faults` | answers: attributes, the one table of errors, and why it was EIO |
//! | `session`, `mount`, `options`, `flags` | the mount itself, from mount(2) to its end |
//!
//! Why passthrough, and who takes set-id bits away: `docs/decisions/passthrough.md`, `docs/decisions/killpriv.md`.

mod adapter;
mod attr;
mod callers;
mod context;
mod data;
mod errno;
mod faults;
mod filesystem;
mod flags;
mod gate;
mod io_mode;
mod listing;
mod mount;
mod negotiate;
mod notify;
mod opening;
mod options;
mod parked;
mod pool;
mod prune;
mod refresh;
mod session;
mod work;

pub use faults::Fault;
pub(crate) use faults::Faults;
pub use flags::MountFlags;
pub use mount::{detach, unmount};
pub(crate) use options::MountOptions;
pub(crate) use refresh::Kernel;
pub(crate) use session::{Mount, Unmounter};
