//! The tree that the actors start from, and all that can be seen of what they leave.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{
    DirEntryExt, FileExt, FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink,
};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use super::actor::ACTORS;
use crate::support::surrounding::{Need, has};

/// A number that tells contents apart.
pub(crate) fn digest(data: &[u8]) -> u64 {
    use std::hash::Hasher as _;
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(data);
    hasher.finish()
}

/// The time of modification if a program has set it: those that come from a clock are of no use to
/// compare. That of a pipe does not move on FUSE when it is written through.
pub(crate) fn time_if_set(stat: &fs::Metadata) -> Option<(i64, i64)> {
    (!stat.file_type().is_fifo() && stat.mtime() < 1_500_000_000)
        .then_some((stat.mtime(), stat.mtime_nsec()))
}

/// Writes the start tree: for each actor directories, hard links, holes, attributes, special files,
/// and what they share.
pub(crate) fn write_start(root: &Path) {
    fs::create_dir_all(root.join("shared/many")).unwrap();
    fs::write(root.join("shared/appended"), "").unwrap();
    for name in ["shared/big", "shared/linked"] {
        sparse(&root.join(name), 1 << 20);
    }
    for id in 0..ACTORS {
        let own = root.join(format!("w{id}"));
        let name = |letter: &str| format!("{id}{letter}");
        for (number, dir) in ["", "a", "a/b", "c", "c/c", "d"].iter().enumerate() {
            let path = dir
                .split('/')
                .filter(|part| !part.is_empty())
                .fold(own.clone(), |path, part| path.join(name(part)));
            fs::create_dir_all(&path).unwrap();
            let file = path.join(name("e"));
            match number % 3 {
                0 => fs::write(&file, format!("{number}\n").repeat(2_000 * number)).unwrap(),
                1 => sparse(&file, 250_000),
                _ => fs::write(&file, "short").unwrap(),
            }
            rustix::fs::lsetxattr(&file, "user.1", b"of the archive", XattrFlags::empty()).unwrap();
            fs::hard_link(&file, path.join(name("f"))).unwrap();
        }
        symlink(format!("{}/{}", name("a"), name("e")), own.join(name("b"))).unwrap();
        fs::hard_link(own.join(name("a")).join(name("e")), own.join(name("c")).join(name("a")))
            .unwrap();
        fs::hard_link(root.join("shared/linked"), own.join("linked")).unwrap();
        for (letter, kind, device) in [
            ("a", FileType::Fifo, 0),
            ("c", FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
            ("d", FileType::CharacterDevice, 0),
        ] {
            if kind == FileType::CharacterDevice && !has(Need::Root) {
                continue;
            }
            let path = own.join(name("d")).join(name(letter));
            rustix::fs::mknodat(CWD, &path, kind, Mode::from_raw_mode(0o640), device).unwrap();
            let owned = lchown(&path, Some(1), Some(2));
            assert!(owned.is_ok() || !has(Need::Root), "{owned:?}");
        }
        let crowded = root.join("shared/many").join(name("b"));
        fs::create_dir(&crowded).unwrap();
        for number in 0..400 {
            fs::write(crowded.join(format!("{number}")), "").unwrap();
        }
        fs::set_permissions(&crowded, PermissionsExt::from_mode(0o2775)).unwrap();
    }
    // An archive keeps whole seconds.
    let time = Timespec { tv_sec: 900_000_000, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    for entry in walkdir::WalkDir::new(root).contents_first(true) {
        rustix::fs::utimensat(CWD, entry.unwrap().path(), &times, AtFlags::SYMLINK_NOFOLLOW)
            .unwrap();
    }
}

fn sparse(path: &Path, len: u64) {
    let file = File::create(path).unwrap();
    for at in (0..len).step_by(200_000) {
        file.write_all_at(format!("at {at}").repeat(999).as_bytes(), at).unwrap();
    }
    file.set_len(len).unwrap();
}

/// All that a program can see of one file.
#[derive(Debug, PartialEq)]
pub(crate) struct Seen {
    mode: u32,
    owner: (u32, u32),
    size: u64,
    names: u64,
    device: u64,
    modified: Option<(i64, i64)>,
    contents: Vec<u8>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// The first name of the same inode.
    same_as: PathBuf,
}

impl Seen {
    /// To kernel overlayfs a whiteout, which it hides where it is in a lower layer.
    pub(crate) fn is_null_device(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFCHR && self.device == 0
    }
}

impl Seen {
    /// Whether an ordinary user's upper keeps the number of this: only files and directories can be marked.
    pub(crate) fn keeps_its_number(&self) -> bool {
        has(Need::Root) || [libc::S_IFREG, libc::S_IFDIR].contains(&(self.mode & libc::S_IFMT))
    }
}

pub(crate) type Tree = BTreeMap<PathBuf, Seen>;
pub(crate) type Numbers = BTreeMap<PathBuf, u64>;

/// Looks at all below `root`: what is seen, and each path's `st_ino`. Where `listed`, a listing must
/// give the same numbers and types as stat(2), and all must be one file system.
pub(crate) fn look(root: &Path, listed: bool) -> (Tree, Numbers) {
    let (mut tree, mut numbers, mut first_names) = (Tree::new(), Numbers::new(), BTreeMap::new());
    let device = fs::symlink_metadata(root).unwrap().dev();
    let mut directories = vec![PathBuf::new()];
    let mut paths = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(root.join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let path = directory.join(entry.file_name());
            let stat = match entry.metadata() {
                Ok(stat) => stat,
                // Kernel overlayfs lists a whiteout of a directory that it does not merge.
                Err(error) if !listed && error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => panic!("{path:?} is listed: {error}"),
            };
            if listed {
                assert_eq!(entry.ino(), stat.ino(), "d_ino and st_ino of {path:?}");
                assert_eq!(stat.dev(), device, "st_dev of {path:?}");
            }
            assert_eq!(entry.file_type().unwrap(), stat.file_type(), "d_type of {path:?}");
            if stat.is_dir() {
                directories.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        let full = root.join(&path);
        let stat = fs::symlink_metadata(&full).unwrap();
        numbers.insert(path.clone(), stat.ino());
        let same_as =
            first_names.entry((stat.dev(), stat.ino())).or_insert_with(|| path.clone()).clone();
        tree.insert(path, see(&full, &stat, same_as));
    }
    (tree, numbers)
}

fn see(path: &Path, stat: &fs::Metadata, same_as: PathBuf) -> Seen {
    let kind = stat.file_type();
    let contents = if path.ends_with("shared/appended") {
        // Written by all, in any order.
        let mut records: Vec<_> =
            fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect();
        records.sort();
        records.join("\n").into_bytes()
    } else if kind.is_file() {
        digest(&fs::read(path).unwrap()).to_le_bytes().to_vec()
    } else if kind.is_symlink() {
        fs::read_link(path).unwrap().into_os_string().into_encoded_bytes()
    } else {
        Vec::new()
    };
    let is_device = kind.is_char_device() || kind.is_block_device();
    Seen {
        mode: stat.mode(),
        owner: (stat.uid(), stat.gid()),
        size: if kind.is_dir() { 0 } else { stat.size() },
        names: if kind.is_dir() { 0 } else { stat.nlink() },
        device: if is_device { stat.rdev() } else { 0 },
        modified: time_if_set(stat),
        contents,
        attributes: attributes(path),
        same_as,
    }
}

fn attributes(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let mut attributes: Vec<_> = names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 4096];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..len].to_vec())
        })
        .collect();
    attributes.sort();
    attributes
}

/// What differs, a few lines of it; `None` if nothing does.
pub(crate) fn differences<T: PartialEq + std::fmt::Debug>(
    expected: &BTreeMap<PathBuf, T>,
    seen: &BTreeMap<PathBuf, T>,
) -> Option<String> {
    let mut lines = Vec::new();
    for path in expected.keys().chain(seen.keys().filter(|path| !expected.contains_key(*path))) {
        let (left, right) = (expected.get(path), seen.get(path));
        if left != right {
            lines.push(format!("{}\n  expected {left:?}\n  seen     {right:?}", path.display()));
        }
    }
    (!lines.is_empty()).then(|| {
        format!(
            "{} paths differ\n{}",
            lines.len(),
            lines.into_iter().take(20).collect::<Vec<_>>().join("\n")
        )
    })
}
