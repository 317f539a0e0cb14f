//! A tree as somebody has it who is told what changes in another, and looks there at nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};
use serde_json::Value;

/// What a file is: its kind and mode, and of what is no directory its size, time and contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    what: (FileType, u16),
    contents: Option<(u64, i64, u32, u32, Vec<u8>)>,
}

/// By path from the root, which is empty.
pub(crate) type Tree = BTreeMap<PathBuf, Seen>;

/// What there is at `root` and below it. Paths may be longer than any call takes.
pub(crate) fn look(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let above: OwnedFd = File::open(root).unwrap().into();
    look_at(&above, OsStr::new("."), PathBuf::new(), &mut tree);
    tree
}

fn look_at(above: &OwnedFd, name: &OsStr, path: PathBuf, tree: &mut Tree) {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let stat = rustix::fs::statx(above, name, flags, StatxFlags::BASIC_STATS).unwrap();
    let kind = FileType::from_raw_mode(stat.stx_mode.into());
    let open =
        |flags| rustix::fs::openat(above, name, flags | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let mut data = Vec::new();
    match kind {
        FileType::Directory => {
            let here = open(OFlags::DIRECTORY);
            let entries = rustix::fs::Dir::read_from(&here).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().to_owned());
            for name in names.filter(|name| !matches!(name.to_bytes(), b"." | b"..")) {
                let name = OsStr::from_bytes(name.to_bytes());
                look_at(&here, name, path.join(name), tree);
            }
        }
        FileType::RegularFile => {
            File::from(open(OFlags::RDONLY)).read_to_end(&mut data).unwrap();
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(above, name, Vec::new()).unwrap();
            data = target.into_bytes();
        }
        _ => {}
    }
    let mtime = stat.stx_mtime;
    let contents = (kind != FileType::Directory).then_some((
        stat.stx_size,
        mtime.tv_sec,
        mtime.tv_nsec,
        stat.stx_nlink,
        data,
    ));
    tree.insert(path, Seen { what: (kind, stat.stx_mode), contents });
}

/// How two trees differ.
pub(crate) fn differences(expected: &Tree, found: &Tree) -> Option<String> {
    let paths: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let lines = paths.into_iter().filter_map(|path| {
        let (expected, found) = (expected.get(path), found.get(path));
        let end = path.to_str().map_or("", |path| &path[path.len().saturating_sub(40)..]);
        (expected != found).then(|| format!("{end}: expected {expected:?}\n found {found:?}"))
    });
    let lines: Vec<_> = lines.collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// What somebody has of a tree.
pub(crate) struct Replica {
    tree: Tree,
    /// Of which it has been told that they are other than it knows.
    changed: BTreeSet<PathBuf>,
}

impl Replica {
    pub(crate) fn new(tree: Tree) -> Self {
        Self { tree, changed: BTreeSet::new() }
    }

    /// Does what a line says. `there` is the tree as it is then, for where the line says to look at it.
    pub(crate) fn apply(&mut self, told: &Value, there: &Tree) {
        let path = |key: &str| {
            assert!(told[format!("{key}Base64")].is_null());
            let path = told[key].as_str().map(PathBuf::from);
            path.map(|path| if path == Path::new(".") { PathBuf::new() } else { path })
        };
        let event = told["event"].as_str().unwrap();
        if matches!(event, "start" | "missed" | "caught-up") {
            return;
        }
        let at = path("path").unwrap();
        match (event, told["status"].as_str()) {
            ("create" | "write" | "attributes", _)
            | ("changed", Some("modified" | "attributes")) => {
                self.changed.insert(at);
            }
            ("remove", _) | ("changed", Some("removed")) => drop(self.take(&at)),
            ("rename", _) => {
                let (moved, to) = (self.take(&at), path("to").unwrap());
                drop(self.take(&to));
                self.put(&to, moved);
            }
            ("exchange", _) => {
                let to = path("to").unwrap();
                let (one, other) = (self.take(&at), self.take(&to));
                self.put(&to, one);
                self.put(&at, other);
            }
            ("changed", Some("added")) => {
                drop(self.take(&at));
                self.changed.insert(at);
            }
            ("changed", Some("listing")) => {
                let is_gone =
                    |known: &&PathBuf| known.parent() == Some(&at) && !there.contains_key(*known);
                let known = self.tree.keys().chain(&self.changed);
                let gone: BTreeSet<_> = known.filter(is_gone).cloned().collect();
                gone.iter().for_each(|gone| drop(self.take(gone)));
                self.changed.insert(at);
            }
            // Of a directory all is to be looked at.
            ("changed", Some("renamed" | "subtree")) => {
                drop(self.take(&at));
                let below = there.keys().filter(|path| path.starts_with(&at));
                self.changed.extend(below.cloned());
                self.changed.insert(at);
            }
            _ => panic!("{told}"),
        }
    }

    /// Takes what it has at `path` and below, by the rest of the path: whether it is known, or is to be looked at.
    fn take(&mut self, path: &Path) -> Vec<(PathBuf, Option<Seen>)> {
        let below = |known: &&PathBuf| known.starts_with(path);
        let paths: BTreeSet<_> =
            self.tree.keys().chain(&self.changed).filter(below).cloned().collect();
        let take = |known: PathBuf| {
            let rest = known.strip_prefix(path).unwrap().to_owned();
            let (seen, is_changed) = (self.tree.remove(&known), self.changed.remove(&known));
            (rest, seen.filter(|_| !is_changed))
        };
        paths.into_iter().map(take).collect()
    }

    fn put(&mut self, path: &Path, taken: Vec<(PathBuf, Option<Seen>)>) {
        for (rest, seen) in taken {
            let at = if rest.as_os_str().is_empty() { path.to_owned() } else { path.join(rest) };
            match seen {
                Some(seen) => drop(self.tree.insert(at, seen)),
                None => drop(self.changed.insert(at)),
            }
        }
    }

    /// Looks at what is to be looked at, in a tree that nobody changes any more.
    pub(crate) fn finish(mut self, there: &Tree) -> Tree {
        for path in self.changed {
            // What it has is there, or it would have been told.
            let seen = there.get(&path).unwrap_or_else(|| panic!("{path:?} is not there"));
            self.tree.insert(path, seen.clone());
        }
        self.tree
    }
}
