//! Packs a directory into an archive, in one pass.
//!
//! ```text
//! walk      what is in the tree, in order           one thread
//! load      reads entries ahead of their turn       several
//! pack      decides where each file's bytes go      one
//! output    compresses blocks                       all cores
//!           writes them in order                    the caller's
//! tables    inodes, listings, tables, superblock    the caller's, when all data is written
//! ```
//!
//! Between these stand queues of bounded length. What must be known of every file until the end
//! (`catalog`) is kept in a temporary file once it is long (`spool`), and so are finished tables:
//! memory does not grow with the tree, but for eight bytes an inode (some forty for a file that
//! stays in a base), one table of hashes of bounded size, the inodes with several names, and the
//! largest directory's names.
//!
//! [`archive_onto`] packs onto the data of another archive, in which what has not changed stays where it is (`base`).
//! [`told()`] packs a tree that is told instead of walked, whose files may be those of an archive (`told`, `source`).
//!
//! The same tree makes the same bytes, however many threads there are. Archives are read by the
//! kernel, squashfuse, unsquashfs, and ours.

mod base;
mod catalog;
mod compress;
mod duplicates;
mod error;
mod inode;
mod large;
mod listing;
mod load;
mod metadata;
mod options;
mod output;
mod pack;
mod pool;
mod source;
mod spool;
mod stat;
mod tables;
mod tail;
mod told;
mod walk;
mod xattrs;

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::{self, Scope};
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Sender, bounded};
use rustix::fs::{Mode, OFlags, openat};

pub use base::Base;
pub use compress::Compression;
pub use error::Error;
pub use options::{Exclude, Options, Progress, Reopen, Sink};
pub use pack::DroppedXattrs;
pub use told::{Attributes, Body, Entries};

use super::format::{METADATA_STORED, SUPERBLOCK_LEN};
use catalog::Catalog;
use compress::Compressor;
use duplicates::Duplicates;
use load::Loader;
use output::Placement;
use pack::{Fragment, Packed, Packer, Stop};
use pool::Pool;
use tail::Tail;
use walk::{Event, LoadPool, Walk};
use xattrs::XattrTable;

/// Bytes of files read ahead, at most: so many blocks are.
const READ_AHEAD: usize = 16 << 20;
/// Threads that read ahead. More than there are cores, since they wait for the disk.
const LOADERS: usize = 4;

/// A finished archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Its first 96 bytes. Until these are in place there is no archive.
    pub superblock: [u8; SUPERBLOCK_LEN as usize],
    /// Its size in bytes, padding apart.
    pub bytes_used: u64,
    /// Its size in bytes, a multiple of 4096 where `data_start` and all before it belong to it.
    pub size: u64,
    /// How many inodes it has.
    pub inodes: u32,
    /// The extended attributes that it lacks, if there were such.
    pub dropped_xattrs: Option<DroppedXattrs>,
}

/// Packs the directory `root`. The sink is given all bytes of the archive from `data_start` on,
/// in order; the superblock, which comes before them, is in the summary.
///
/// Symbolic links are packed and not followed, but for `root` itself. File systems mounted below
/// are packed like directories. Files that vanish after their directory was read are left out;
/// those that change while they are read are read again, and files that grow all the time are taken
/// at the length they had. Times are kept to the second, and those
/// before 1970 or after 2106 become the nearest that the format has. Extended attributes of other
/// prefixes than `user.`, `trusted.` and `security.` are left out and counted in the summary.
///
/// Fails, having searched all of the tree, with [`Error::Unreadable`] where there is something
/// that may not be read, and with [`Error::Changed`] where a file's bytes or an entry's kind change
/// too often for a consistent copy.
///
/// ```
/// use std::io;
/// use std::sync::Arc;
/// use bytes::Bytes;
/// use thawfs::cache::MemoryBlob;
/// use thawfs::squashfs::write::{self, Options, Progress, Sink};
/// use thawfs::squashfs::{Archive, OpenOptions};
///
/// struct Memory(Vec<u8>);
///
/// impl Sink for Memory {
///     fn write(&mut self, bytes: Bytes) -> io::Result<()> {
///         self.0.extend_from_slice(&bytes);
///         Ok(())
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let tree = tempfile::tempdir()?;
/// # let root = tree.path();
/// std::fs::write(root.join("hello"), "world")?;
/// // Room for the superblock, which is known when all else is written.
/// let mut sink = Memory(vec![0; 96]);
/// let nothing_left_out = |_: &std::path::Path, _| false;
/// let summary =
///     write::archive(root, &Options::default(), &nothing_left_out, &mut sink, &Progress::default())?;
/// sink.0[..96].copy_from_slice(&summary.superblock);
///
/// let blob = Arc::new(MemoryBlob(sink.0.into()));
/// let archive = Archive::open(blob, OpenOptions::default())?;
/// assert_eq!(archive.walk().count(), 2);
/// # Ok(()) }
/// ```
pub fn archive(
    root: &Path,
    options: &Options,
    exclude: &Exclude<'_>,
    sink: &mut dyn Sink,
    progress: &Progress,
) -> Result<Summary, Error> {
    walk(root, (options, None), exclude, sink, progress)
}

/// As [`archive`], of a directory in a mount of the archive `base`, onto its data: see [`Base::mounted_as`]. The new
/// archive begins with what is before [`Base::data_end`], but for the superblock, and the sink is given all behind that.
/// The options are those of [`Base::options`].
pub fn archive_onto(
    base: &Base<'_>,
    root: &Path,
    options: &Options,
    exclude: &Exclude<'_>,
    sink: &mut dyn Sink,
    progress: &Progress,
) -> Result<Summary, Error> {
    walk(root, (options, Some(base)), exclude, sink, progress)
}

fn walk(
    root: &Path,
    (options, base): (&Options, Option<&Base<'_>>),
    exclude: &Exclude<'_>,
    sink: &mut dyn Sink,
    progress: &Progress,
) -> Result<Summary, Error> {
    options.check()?;
    let mkfs_time = options.mkfs_time.unwrap_or_else(now);
    let mut tail = begin(options, sink, progress)?;
    let root_fd = Walk::open_root(root)?;
    let walk_fd: OwnedFd = root_fd.try_clone().map_err(|source| Error::Io {
        path: root.to_owned(),
        call: "fcntl",
        source,
    })?;
    let reopen = |path: &Path| {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        openat(&root_fd, path, flags, Mode::empty()).ok()
    };
    let walk = move |loads, events| Walk { root, exclude, loads, events }.run(walk_fd);
    let data = write_data(options, (&reopen, base), &mut tail, progress, walk)?;
    finish(data, (options, base), mkfs_time, &mut tail)
}

/// As [`archive`], or with a base as [`archive_onto`], of a tree that `tell` tells. Fails as these do, and as `tell`.
///
/// Open files are compared with each other as far as `reopen` opens them, and files of an archive with no others.
pub fn told(
    (options, base): (&Options, Option<&Base<'_>>),
    reopen: &Reopen<'_>,
    sink: &mut dyn Sink,
    progress: &Progress,
    tell: impl FnOnce(&mut Entries<'_>) -> Result<(), Error> + Send,
) -> Result<Summary, Error> {
    options.check()?;
    let mkfs_time = options.mkfs_time.unwrap_or_else(now);
    let mut tail = begin(options, sink, progress)?;
    let told = move |loads, events| {
        let mut entries = Entries { base, loads, events, within: Vec::new() };
        let told = tell(&mut entries);
        while told.is_ok() && !entries.within.is_empty() && entries.leave().is_ok() {}
        if let Err(error) = told {
            entries.fail(error);
        }
    };
    let data = write_data(options, (reopen, base), &mut tail, progress, told)?;
    finish(data, (options, base), mkfs_time, &mut tail)
}

/// Writes what comes before the data, where nothing else does.
fn begin<'a>(
    options: &Options,
    sink: &'a mut dyn Sink,
    progress: &'a Progress,
) -> Result<Tail<'a>, Error> {
    let mut tail = Tail::new(sink, options.data_start, progress);
    if options.data_start == SUPERBLOCK_LEN
        && let Some(bytes) = options.compressor_options()
    {
        let header = bytes.len() as u16 | METADATA_STORED;
        tail.write([&header.to_le_bytes(), bytes.as_slice()].concat())?;
    }
    Ok(tail)
}

fn finish(
    (packed, placement): (Packed, Placement),
    how: (&Options, Option<&Base<'_>>),
    mkfs_time: u32,
    tail: &mut Tail<'_>,
) -> Result<Summary, Error> {
    let Packed { catalog, xattrs, dropped: dropped_xattrs } = packed;
    let inodes = catalog.inodes();
    let superblock = tables::write(&catalog, xattrs, &placement, how, mkfs_time, tail)?;
    let size = tail.position();
    let bytes_used = tables::bytes_used(&superblock);
    Ok(Summary { superblock, bytes_used, size, inodes, dropped_xattrs })
}

/// Writes all data of what `tell` sends, and returns what the tables are made of. Files that `reopen` opens are compared
/// with each other.
fn write_data(
    options: &Options,
    (reopen, base): (&Reopen<'_>, Option<&Base<'_>>),
    tail: &mut Tail<'_>,
    progress: &Progress,
    tell: impl FnOnce(LoadPool, Sender<Event>) + Send,
) -> Result<(Packed, Placement), Error> {
    let block_size = options.block_size;
    let threads = match options.threads {
        Some(threads) => threads.get(),
        None => thread::available_parallelism().map_or(1, NonZeroUsize::get),
    };
    let compressor = || Compressor::new(options.compression, block_size);
    let ahead = (READ_AHEAD / block_size as usize).clamp(4, 128);
    let (loads, load_jobs) = Pool::new(ahead);
    let (events_in, events) = bounded(ahead);
    let (blocks, block_jobs) = Pool::new(threads);
    let (output, next) = bounded(threads * 2);
    let check_only = Arc::new(AtomicBool::new(false));
    let loader = Loader { block_size, base, check_only: check_only.clone() };
    let packer = Packer {
        block_size,
        pack_tails: options.pack_tails,
        catalog: Catalog::new(),
        xattrs: XattrTable::new(compressor()?),
        duplicates: Duplicates::new(reopen, block_size),
        blocks,
        output,
        progress,
        check_only,
        fragment: Fragment::behind(base.map_or(0, Base::fragment_count)),
        next_block: 0,
        denied: Vec::new(),
        dropped: None,
    };
    thread::scope(|scope| {
        for _ in 0..threads {
            let (jobs, compressor) = (block_jobs.clone(), compressor()?);
            start(scope, "compress", move || output::compress(jobs, compressor))?;
        }
        drop(block_jobs);
        for _ in 0..LOADERS {
            let (jobs, loader) = (load_jobs.clone(), loader.clone());
            start(scope, "load", move || jobs.work(|job| loader.load(job)))?;
        }
        drop(load_jobs);
        start(scope, "walk", move || tell(loads, events_in))?;
        let packing = start(scope, "pack", move || packer.run(events))?;
        // What failed here made the packer stop: it is the reason to tell.
        let placement = output::write(next, tail)?;
        match packing.join() {
            Ok(Ok(packed)) => Ok((packed, placement)),
            Ok(Err(Stop::Failed(error))) => Err(error),
            Ok(Err(Stop::Gone)) | Err(_) => Err(Error::Compress("a thread ended early".into())),
        }
    })
}

fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    run: impl FnOnce() -> T + Send + 'scope,
) -> Result<thread::ScopedJoinHandle<'scope, T>, Error> {
    let builder = thread::Builder::new().name(name.into());
    builder
        .spawn_scoped(scope, run)
        .map_err(|error| Error::Compress(format!("cannot start a thread: {error}")))
}

fn now() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}
