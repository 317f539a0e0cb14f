//! The merged tree: a frozen lower archive and a writable upper directory, seen as one.
//!
//! | file | idea |
//! | --- | --- |
//! | `ino`, `ids` | how merged files get their numbers, and which nodes have others than their ids |
//! | `identity`, `owner` | whose files are shown to be, and what the upper stores of that |
//! | `node`, `nodes`, `dense`, `name` | what the kernel knows: number → dentry and inode in the upper |
//! | `lower` | the archive, with merged numbers |
//! | `upper/` | the upper directory's format: marks, records, whiteouts, work directory |
//! | `dirs` | descriptors of upper directories, and the way to them |
//! | `lookup`, `describe` | which inode a name means, and what the upper says of it |
//! | `stack/` | the frozen layers between the archive and the upper |
//! | `again`, `parents` | where a file is, if only its number is known |
//! | `copy_up`, `build` | bringing a lower inode into the upper, with or without its data |
//! | `index` | lower inodes with several names, once copied up |
//! | `create`, `link`, `remove`, `rename` | changing names |
//! | `setattr`, `xattr` | changing attributes |
//! | `ctime` | the `st_ctime` of directories that nobody has changed |
//! | `handles`, `open`, `io` | open files and their data |
//! | `tell`, `kernel_writes`, `aliases` | what the log of changes is told, and how that is found out |
//! | `readdir`, `halves` | listing |
//! | `difference/` | what the upper changes, for who asks |
//! | `entries/` | all of the tree, for who packs it |
//!
//! **Locks.** `names` is held shared while a name in the upper is resolved and used, and exclusively while one is
//! changed. Only short system calls on the upper are made under it: no request to the store, and no copy of
//! data. So what an operation needs from the lower is found out before. It still holds then, as the lower never
//! changes, and neither does which lower directory a directory merges with. Below `names` is the lock of
//! who tells of writes, and below that are those of the node table, the index, the descriptor cache, the listings and
//! the handles, which are leaves. Above it is that of `again`: whoever walks a half of the tree holds it for the whole
//! walk.
//!
//! **Crashes.** Everything is built in the work directory and put in place by one rename. The upper is
//! correct at any moment; what is left in the work directory is removed at the next mount.
//!
//! What the marks in the upper say, byte by byte, is in `docs/FORMATS.md`.

mod again;
mod aliases;
mod attr;
mod build;
mod copy_up;
mod create;
mod ctime;
mod dense;
mod describe;
mod difference;
mod dirs;
mod entries;
mod error;
mod halves;
mod handles;
mod identity;
mod ids;
mod index;
mod ino;
mod io;
mod kernel_writes;
mod link;
mod lookup;
mod lower;
mod name;
mod node;
mod nodes;
mod open;
mod owner;
mod parents;
mod readdir;
mod remove;
mod rename;
mod setattr;
mod stack;
mod tell;
mod upper;
mod xattr;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use rustix::io::Errno;

pub use attr::{Attr, Caller, Rights, SetAttr, SetTime, StatFs};
pub use difference::{DifferenceEntry, Status};
pub use entries::TreeSize;
pub use error::{Error, Result};
pub use handles::{Backing, Handle, Opened};
pub use identity::{IdNamespace, IdOptions, IdRange, IdView, Identity};
pub use lower::ArchiveIdentity;
pub use readdir::DirEntry;
pub use rustix::fs::{FallocateFlags, RenameFlags, SeekFrom, XattrFlags};
pub use setattr::SETID_BITS;
pub use stack::{Frozen, Layer, MergedLayer, RolledBack};
pub use upper::Upper;

use crate::inode_ops;
use crate::single_flight::Flights;
use crate::squashfs::Archive;
use crate::squashfs::mounted::MountedArchive;
use crate::types::Ino;
use crate::watch::{ChangeLog, Limits};
use build::Original;
use ctime::KeptCtime;
use dirs::Dirs;
use handles::Handles;
use ids::Ids;
use index::Index;
use kernel_writes::KernelWrites;
use lower::Lower;
use nodes::Nodes;
use stack::{PartFds, Stack};
use tell::Writes;
use upper::{Mark, Namespace, Numbers, Whiteouts};

/// How a merged tree behaves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Descriptors of upper directories kept open.
    pub directory_fds: usize,
    /// Whether a change of attributes alone leaves the data in the archive. Kernel overlayfs mounts
    /// such an upper only with `metacopy=on`.
    pub metacopy: bool,
    /// Whether reading a file leaves its `st_atime` as it is.
    pub no_atime: bool,
    /// Whether listing a directory leaves its `st_atime` as it is.
    pub no_dir_atime: bool,
    /// Of how many files of the backup that have other names a difference knows what they were called, beside
    /// directories. Of more it is told that one file was removed and another added.
    pub renames: usize,
    /// How many bytes of these former paths it knows.
    pub former_paths: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            directory_fds: 256,
            metacopy: true,
            no_atime: false,
            no_dir_atime: false,
            renames: 1 << 17,
            former_paths: 8 << 20,
        }
    }
}

/// A merged tree. Calls mean what the kernel's requests to a file system do: of an inode that is known by a lookup, or
/// of a name in one.
///
/// ```no_run
/// use std::ffi::OsStr;
/// use std::path::Path;
/// use std::sync::Arc;
/// use thawfs::cache::FileBlob;
/// use thawfs::overlay::{Options, Overlay, Upper};
/// use thawfs::squashfs::{Archive, OpenOptions};
/// use thawfs::types::Ino;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let lower = Archive::open(Arc::new(FileBlob::open("data.sqsh", 0)?), OpenOptions::default())?;
/// let upper = Upper::open(Path::new("upper"), Path::new("work"))?;
/// let merged = Overlay::new(Arc::new(lower), Some(upper), Options::default())?;
/// let readme = merged.lookup(Ino::ROOT, OsStr::new("README.md"))?;
/// let opened = merged.open(readme.ino, libc::O_WRONLY)?;
/// merged.write(opened.handle, 0, b"copied up by this write")?;
/// merged.release(opened.handle);
/// merged.forget(readme.ino, 1);
/// # Ok(()) }
/// ```
pub struct Overlay {
    lower: Lower,
    /// Where the archive is, if who asks is to be told.
    source: Option<MountedArchive>,
    stack: Stack,
    upper: Option<Upper>,
    /// Of the upper and of all layers.
    marks: Namespace,
    numbers: Arc<Numbers>,
    /// Locked as long as they are in use.
    _layers: Mutex<Vec<Layer>>,
    options: Options,
    identity: Identity,
    nodes: Nodes,
    ids: Arc<Ids>,
    dirs: Dirs,
    part_fds: PartFds,
    index: Index,
    handles: Handles,
    copies: Flights<Ino, ()>,
    walks: again::Walks,
    listings: halves::Listings,
    /// See the module's documentation.
    names: RwLock<()>,
    /// Held shared while data of the upper is changed, and exclusively, below `names`, when that is frozen.
    changing: RwLock<()>,
    /// Counts changes of names and copy-ups, so that a listing knows whether it is still true.
    changes: AtomicU64,
    log: Arc<ChangeLog>,
    writes: Writes,
    kernel_writes: KernelWrites,
}

impl Overlay {
    /// Merges `lower` with `upper`; without one the tree is read-only.
    ///
    /// # Errors
    /// [`Error::Unusable`] where the upper belongs to another archive, or what went wrong reading
    /// either.
    pub fn new(lower: Arc<Archive>, upper: Option<Upper>, options: Options) -> Result<Self> {
        Self::stacked(lower, Vec::new(), upper, options)
    }

    /// As [`Self::new`], with frozen `layers` between the two, the bottom one first.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn stacked(
        lower: Arc<Archive>,
        layers: Vec<Layer>,
        upper: Option<Upper>,
        options: Options,
    ) -> Result<Self> {
        let ids: Arc<Ids> = Arc::default();
        let lower = Lower::new(lower, Arc::clone(&ids));
        let mut index = Index::default();
        let mut fresh = false;
        if let Some(upper) = &upper {
            fresh = claim(upper, &lower)?;
            index::claim(upper, fresh)?;
            index = Index::load(upper, &lower, Arc::clone(&ids))?;
        }
        let (marks, others) = stack::check(&layers, &lower, upper.as_ref())?;
        let numbers = match (&upper, layers.last()) {
            (Some(upper), _) => Arc::clone(&upper.numbers),
            (None, Some(top)) => Arc::new(Numbers::of_layer(&top.root_address(), marks)?),
            (None, None) => Arc::default(),
        };
        let stack = Stack::new(&layers, upper.as_ref().map(|upper| upper.serial), others);
        let root = stack.root(upper.as_ref(), &numbers, lower.archive().root())?;
        let journal = upper.as_ref().map(Upper::scratch_files);
        let overlay = Self {
            lower,
            source: None,
            stack,
            upper,
            marks,
            numbers,
            _layers: Mutex::new(layers),
            options,
            identity: Identity::default(),
            nodes: Nodes::new(root, Arc::clone(&ids)),
            ids,
            dirs: Dirs::new(options.directory_fds),
            part_fds: PartFds::new(options.directory_fds),
            index,
            handles: Handles::new(options.no_atime),
            copies: Flights::default(),
            walks: again::Walks::default(),
            listings: halves::Listings::default(),
            names: RwLock::new(()),
            changing: RwLock::new(()),
            changes: AtomicU64::new(0),
            log: Arc::new(ChangeLog::new(Limits::default(), journal)),
            writes: Writes::default(),
            kernel_writes: KernelWrites::default(),
        };
        if fresh {
            overlay.dress_root()?;
        }
        if overlay.nodes.upper(Ino::ROOT)?.is_some() {
            let (address, _) = overlay.address(Ino::ROOT)?;
            let owner = overlay.recorded_owner(&address)?;
            let kept_ctime = overlay.kept_ctime(&address)?;
            overlay.nodes.update(Ino::ROOT, |root| {
                (root.owner, root.kept_ctime) = (owner, kept_ctime);
            });
        }
        if overlay.upper.is_some() && overlay.stack.has_layers() {
            overlay.finish_carrying()?;
        }
        Ok(overlay)
    }

    /// Gives the root of a new upper the lower root's owner, permissions, attributes and times, as a
    /// restored directory should have them; that of the topmost layer, if there is one.
    fn dress_root(&self) -> Result<()> {
        let upper = self.upper()?;
        let root = upper.root_address();
        let below = self.stack.root_below(self.live(), self.lower.archive().root());
        let original = self.root_of(&below)?;
        self.dress(&root, Ino::ROOT, &original)?;
        if let Original::Layer(frozen) = &original {
            let attr = self.attr_of_upper(Ino::ROOT, &frozen.state, &frozen.stat)?;
            self.mark_ctime(&root, KeptCtime { ctime: attr.ctime, mtime: attr.mtime })?;
        }
        upper.marks.set(&root, Mark::Archive, &self.lower.identity())
    }

    /// Whether an operation on `ino` may wait for the network: then it is for a thread that may.
    /// Opening for writing, and anything that changes a lower file, may copy besides.
    pub fn would_block(&self, ino: Ino) -> bool {
        if self.lower.archive().metadata_resident() {
            return false;
        }
        match self.nodes.upper(ino) {
            Ok(Some(upper)) => upper.below.is_some(),
            Ok(None) | Err(_) => true,
        }
    }

    /// Space and inodes: of the upper's file system, or of the archive where there is no upper.
    ///
    /// # Errors
    /// What `fstatvfs` on the upper says.
    pub fn statfs(&self) -> Result<StatFs> {
        let Some(upper) = &self.upper else {
            let superblock = self.lower.archive().superblock();
            let block = superblock.block_size;
            return Ok(StatFs {
                blocks: superblock.bytes_used.div_ceil(u64::from(block.max(1))),
                blocks_free: 0,
                blocks_available: 0,
                files: u64::from(superblock.inodes),
                files_free: 0,
                block_size: block,
                fragment_size: block,
                name_max: lower::NAME_MAX as u32,
            });
        };
        let stat =
            rustix::fs::fstatvfs(&*upper.root()).map_err(Error::sys("fstatvfs", "the root"))?;
        Ok(StatFs {
            blocks: stat.f_blocks,
            blocks_free: stat.f_bfree,
            blocks_available: stat.f_bavail,
            files: stat.f_files,
            files_free: stat.f_ffree,
            block_size: u32::try_from(stat.f_bsize).unwrap_or(4096),
            fragment_size: u32::try_from(stat.f_frsize).unwrap_or(4096),
            name_max: lower::NAME_MAX as u32,
        })
    }

    /// How many files and directories the kernel holds references to.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// About `count` of the files and directories that the kernel might let go of, left to chance but for
    /// siblings, which go together.
    pub fn pick_nodes(&self, count: usize) -> Vec<Ino> {
        self.nodes.pick(count)
    }

    /// The upper, or `EROFS`.
    fn upper(&self) -> Result<&Upper> {
        Ok(self.upper.as_ref().ok_or(Errno::ROFS)?)
    }

    /// Says that names or their inodes have changed. Called with `names` held exclusively.
    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }
}

/// Whether the upper is new, rather than made over this archive. One made over another is refused:
/// records on its inodes would lead to the wrong files.
fn claim(upper: &Upper, lower: &Lower) -> Result<bool> {
    let root = upper.root_address();
    let is_marked =
        || -> Result<bool> { Ok(upper.marks.get(&root, Mark::Opaque)?.as_deref() == Some(b"x")) };
    if upper.whiteouts == Whiteouts::Files && !is_marked()? {
        // On the root it also says to the kernel, and to the next mount, that there may be some below.
        upper.mark_whiteouts(&upper.root())?;
    }
    match upper.marks.get(&root, Mark::Archive)? {
        Some(found) if found == lower.identity() => Ok(false),
        Some(_) => Err(Error::Unusable {
            path: upper.path.clone(),
            problem: "belongs to another archive; use the one it was made over, or an empty upper"
                .to_owned(),
        }),
        None if inode_ops::list(&upper.root())?.is_empty() => Ok(true),
        // Kernel overlayfs has written it.
        None => upper.marks.set(&root, Mark::Archive, &lower.identity()).map(|()| false),
    }
}
