//! Packs trees with our writer, and compares what other readers make of the archive with the tree.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{lgetxattr, llistxattr};
use thawfs::squashfs::write::{self, Compression, Error, Options, Progress, Sink, Summary};

/// An archive in a file of its own.
pub(crate) struct Written {
    dir: tempfile::TempDir,
    pub(crate) summary: Summary,
}

impl Written {
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("data.sqsh")
    }
}

/// Takes an archive's bytes and keeps none but in a file.
pub(crate) struct FileSink(pub(crate) File);

impl Sink for FileSink {
    fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        self.0.write_all(&bytes)
    }
}

/// Options of tests: a fixed time, so that archives can be compared.
pub(crate) fn options(compression: Compression) -> Options {
    Options { compression, mkfs_time: Some(1_700_000_000), ..Options::default() }
}

/// Packs `tree` into a file, superblock and all.
pub(crate) fn write_to(tree: &Path, options: &Options, archive: &Path) -> Result<Summary, Error> {
    let mut file = File::create(archive).unwrap();
    file.write_all(&vec![0; options.data_start as usize]).unwrap();
    let mut sink = FileSink(file);
    let progress = Progress::default();
    let summary = write::archive(tree, options, &|_, _| false, &mut sink, &progress)?;
    sink.0.write_all_at(&summary.superblock, 0).unwrap();
    assert_eq!(sink.0.metadata().unwrap().len(), summary.size);
    assert_eq!(progress.bytes_written(), summary.size - options.data_start);
    Ok(summary)
}

/// A directory in memory, where the machine has that: a busy disk would make tests wait.
pub(crate) fn memory_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

pub(crate) fn pack(tree: &Path, options: &Options) -> Written {
    let dir = memory_dir();
    let summary = write_to(tree, options, &dir.path().join("data.sqsh")).unwrap();
    Written { dir, summary }
}

/// What is compared of an entry, by name so that differences can be read.
type Facts = BTreeMap<&'static str, String>;

/// How much is compared.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Compare {
    Everything,
    /// What holds when an archive was extracted again.
    Extracted,
}

/// Checks that `copy` holds what `tree` does, entry by entry. Returns how many there are.
pub(crate) fn assert_same_trees(tree: &Path, copy: &Path, compare: Compare) -> usize {
    let (ours, theirs) = (entries(tree), entries(copy));
    assert_eq!(
        ours.keys().collect::<Vec<_>>(),
        theirs.keys().collect::<Vec<_>>(),
        "names in {copy:?}"
    );
    for (path, facts) in &ours {
        let mut copied = theirs[path].clone();
        if compare == Compare::Extracted {
            // An extracted hole may be stored, and a directory's own size is its file system's.
            copied.insert("holes", facts["holes"].clone());
        }
        assert_eq!(*facts, copied, "{path:?} in {copy:?}");
        let (a, b) = (tree.join(path), copy.join(path));
        if fs::symlink_metadata(&a).unwrap().is_file() {
            assert_same_bytes(&a, &b);
        }
    }
    ours.len()
}

fn assert_same_bytes(a: &Path, b: &Path) {
    let (a_file, b_file) = (File::open(a).unwrap(), File::open(b).unwrap());
    let len = a_file.metadata().unwrap().len();
    let (mut ours, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    while at < len {
        // Holes of both are passed over.
        let data =
            |file: &File| rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)).unwrap_or(len);
        at = data(&a_file).min(data(&b_file));
        let piece = (len - at).min(1 << 20) as usize;
        a_file.read_exact_at(&mut ours[..piece], at).unwrap();
        b_file.read_exact_at(&mut theirs[..piece], at).unwrap();
        assert!(ours[..piece] == theirs[..piece], "{a:?} and {b:?} differ from byte {at} on");
        at += piece as u64;
    }
}

fn entries(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut first_names = HashMap::new();
    walkdir::WalkDir::new(root)
        .sort_by_file_name()
        .into_iter()
        .map(|entry| {
            let entry = entry.unwrap();
            let relative = entry.path().strip_prefix(root).unwrap().to_owned();
            let meta = fs::symlink_metadata(entry.path()).unwrap();
            let first = first_names.entry(meta.ino()).or_insert_with(|| relative.clone());
            let facts = facts(entry.path(), &meta, first);
            (relative, facts)
        })
        .collect()
}

fn facts(path: &Path, meta: &fs::Metadata, first_name: &Path) -> Facts {
    let kind = meta.file_type();
    let mut facts = Facts::new();
    facts.insert("mode", format!("{:o}", meta.mode()));
    facts.insert("owner", format!("{}:{}", meta.uid(), meta.gid()));
    facts.insert("mtime", meta.mtime().clamp(0, u32::MAX.into()).to_string());
    // ext4 counts no more than 65,000 directories in one, and says 1 then.
    if !kind.is_dir() || (2..=65_000).contains(&meta.nlink()) {
        facts.insert("nlink", meta.nlink().to_string());
    }
    facts.insert("xattrs", format!("{:?}", xattrs(path)));
    facts.insert("holes", String::new());
    if !kind.is_dir() {
        facts.insert("first name", format!("{first_name:?}"));
        facts.insert("size", meta.size().to_string());
    }
    if kind.is_file() {
        // Both of whole blocks at least, which is all that an archive keeps.
        let has_holes = meta.blocks() * 512 + (1 << 20) < meta.size();
        facts.insert("holes", has_holes.to_string());
    }
    if kind.is_block_device() || kind.is_char_device() {
        facts.insert("device", meta.rdev().to_string());
    }
    if kind.is_symlink() {
        facts.insert("target", format!("{:?}", fs::read_link(path).unwrap()));
    }
    facts
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut list = Vec::with_capacity(1 << 16);
    if llistxattr(path, rustix::buffer::spare_capacity(&mut list)).is_err() {
        return BTreeMap::new();
    }
    list.split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = Vec::with_capacity(1 << 16);
            lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value)).unwrap();
            (std::ffi::OsStr::from_bytes(name).to_string_lossy().into_owned(), value)
        })
        .collect()
}
