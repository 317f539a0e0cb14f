//! The FUSE adapter: kernel protocol on one side, [`Overlay`](crate::overlay::Overlay) on the other.
//!
//! It is thin on purpose. It decides four things and leaves the rest to the overlay: on which
//! thread a request runs (answers from memory on the thread that read the request, what waits for the disk
//! on one pool and what waits for the store on others, and no more bytes of reads at a time than a gate
//! lets in), how long the kernel
//! may remember an answer, how many files it should remember, and whether it does a file's I/O
//! through its page cache or by itself.

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
mod options;
mod parked;
mod pool;
mod prune;
mod session;
mod work;

pub use faults::Fault;
pub(crate) use faults::Faults;
pub use flags::MountFlags;
pub use mount::{detach, unmount};
pub(crate) use options::MountOptions;
pub(crate) use session::{Mount, Unmounter};
