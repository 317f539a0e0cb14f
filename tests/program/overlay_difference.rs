//! The difference between backup and view, as the merged tree tells it, beside what two whole walks find.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use rustix::fs::RenameFlags;
use thawfs::overlay::{DifferenceEntry, Options, Overlay, Status, Upper};
use thawfs::types::{FileKind, Ino, Timestamp};

use crate::overlay_model::{World, config, op};
use crate::overlay_support::{
    KernelMount, Merged, ROOT, Seen, Side, Tree, change, open_archive, open_overlay, source,
};
use crate::support::corpus::{Packed, pack};
use crate::support::surrounding::{Need, cannot_run};

/// All entries of a difference.
pub(crate) fn difference(
    overlay: &Overlay,
    since: Option<Timestamp>,
    below: &str,
) -> Vec<DifferenceEntry> {
    let mut entries = Vec::new();
    let mut keep = |entry| {
        entries.push(entry);
        ControlFlow::Continue(())
    };
    overlay.difference(since, Path::new(below), &mut keep).unwrap();
    entries
}

/// As the command prints them, and where something was.
pub(crate) fn in_words(entries: &[DifferenceEntry]) -> Vec<String> {
    entries
        .iter()
        .map(|entry| {
            let letter = match entry.status {
                Status::Added => 'A',
                Status::Modified => 'M',
                Status::Attributes => 'T',
                Status::Removed => 'D',
                Status::Renamed => 'R',
                Status::Listing => 'L',
                Status::Subtree => 'S',
            };
            let slash = if entry.kind == FileKind::Directory { "/" } else { "" };
            let mut line = format!("{letter} {}{slash}", entry.path.display());
            if let Some(from) = &entry.from {
                line += &format!(" < {}", from.display());
            }
            line
        })
        .collect()
}

/// All that differs between `from` and `to`.
pub(crate) fn difference_from(from: &Overlay, to: &Overlay, below: &str) -> Vec<DifferenceEntry> {
    let mut entries = Vec::new();
    let mut keep = |entry| {
        entries.push(entry);
        ControlFlow::Continue(())
    };
    to.difference_from(from, Path::new(below), &mut keep).unwrap();
    entries
}

/// The backup, as a view without an upper shows it: with the numbers that its files keep.
fn backup() -> Tree {
    let overlay = Overlay::new(open_archive(&source().archive), None, Options::default()).unwrap();
    Merged { overlay, plus: false }.tree()
}

/// How much of a file is another, by all that can be seen of it.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Differs {
    Not,
    Attributes,
    Data,
}

fn compare(before: &Seen, after: &Seen) -> Differs {
    let of = |seen: &Seen| (seen.mode, seen.owner, seen.xattrs.clone());
    if (&before.contents, before.rdev) != (&after.contents, after.rdev) {
        return Differs::Data;
    }
    let is_directory = before.kind == FileKind::Directory;
    let has_other = of(before) != of(after) || (!is_directory && before.mtime != after.mtime);
    if has_other { Differs::Attributes } else { Differs::Not }
}

/// One entry that is expected: its letter, where `?` may also be no entry or M, and `t` T or M.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Expected {
    path: PathBuf,
    letter: char,
    from: Option<PathBuf>,
}

/// What two walks say: names of the backup that are hidden, and names of the view that the backup has not, are
/// brought together by the numbers of what they name.
struct Brute<'a> {
    before: &'a Tree,
    after: &'a Tree,
    /// Directories of the view → the directory of the backup whose names are expected in it.
    homes: BTreeMap<PathBuf, PathBuf>,
    expected: Vec<Expected>,
}

impl Brute<'_> {
    fn home(&self, path: &Path) -> Option<PathBuf> {
        match path.parent() {
            None => Some(PathBuf::new()),
            Some(parent) => Some(self.homes.get(parent)?.join(path.file_name().unwrap())),
        }
    }

    fn expect(&mut self, letter: char, path: &Path, from: &Path) {
        let from = (from != path).then(|| from.to_owned());
        self.expected.push(Expected { path: path.to_owned(), letter, from });
    }

    fn expect_change(&mut self, path: &Path, from: &Path, is_same_inode: bool) {
        let (before, after) = (&self.before[from], &self.after[path]);
        let is_regular = before.kind == FileKind::Regular;
        let is_empty = before.size == 0 && after.size == 0;
        let may_be_data =
            is_regular && !is_empty && (!is_same_inode || before.mtime != after.mtime);
        match compare(before, after) {
            Differs::Data => self.expect('M', path, from),
            Differs::Attributes if may_be_data => self.expect('t', path, from),
            Differs::Attributes => self.expect('T', path, from),
            Differs::Not if may_be_data => self.expect('?', path, from),
            Differs::Not => {}
        }
    }

    fn run(&mut self) {
        let (before, after) = (self.before, self.after);
        let lower: HashMap<u64, &Path> =
            before.iter().map(|(path, seen)| (seen.ino, &**path)).collect();
        let view: HashSet<u64> = after.values().map(|seen| seen.ino).collect();
        // Parents come first.
        for (path, seen) in after.iter().filter(|(_, seen)| seen.kind == FileKind::Directory) {
            if let Some(from) = lower.get(&seen.ino) {
                self.homes.insert(path.clone(), from.to_path_buf());
            } else if let Some(home) = self.home(path)
                && let Some(replaced) = before.get(&home)
                && replaced.kind == FileKind::Directory
                && !view.contains(&replaced.ino)
            {
                self.homes.insert(path.clone(), home);
            }
        }
        let views: HashMap<&Path, &Path> =
            self.homes.iter().map(|(view, home)| (&**home, &**view)).collect();
        let own: HashSet<PathBuf> = after
            .iter()
            .filter_map(|(path, seen)| {
                let home = self.home(path)?;
                (before.get(&home)?.ino == seen.ino).then_some(home)
            })
            .collect();
        // Names of the backup that are hidden, where they would be in the view; those in directories that are gone last.
        let mut hidden: Vec<(bool, PathBuf, &Path)> = Vec::new();
        for path in before.keys().filter(|path| !own.contains(*path)) {
            let parent = path.parent().unwrap();
            match views.get(parent) {
                Some(view) => hidden.push((false, view.join(path.file_name().unwrap()), path)),
                None => hidden.push((
                    true,
                    self.view_of_gone(&views, parent).join("~").join(path),
                    path,
                )),
            }
        }
        hidden.sort();
        let mut sources: HashMap<u64, Vec<(bool, &Path)>> = HashMap::new();
        for (is_below_gone, _, path) in &hidden {
            sources.entry(before[*path].ino).or_default().push((*is_below_gone, path));
        }
        let arrivals: Vec<&PathBuf> = after
            .iter()
            .filter(|(path, seen)| {
                let is_own = self
                    .home(path)
                    .is_some_and(|home| own.contains(&home) && before[&home].ino == seen.ino);
                lower.contains_key(&seen.ino) && !is_own
            })
            .map(|(path, _)| path)
            .collect();
        let mut told = HashSet::new();
        for path in &arrivals {
            let ino = after[*path].ino;
            let from = match sources.get_mut(&ino) {
                Some(sources) if !sources.is_empty() => sources.remove(0).1,
                _ => {
                    self.expect('A', path, path);
                    continue;
                }
            };
            told.insert(from);
            self.expect('R', path, from);
            self.expect_change(path, from, true);
        }
        for (is_below_gone, path, from) in &hidden {
            let replaced = after.get(path).filter(|seen| !lower.contains_key(&seen.ino));
            match replaced {
                _ if *is_below_gone || told.contains(from) => {}
                Some(seen) if seen.kind == before[*from].kind => {
                    self.expect_change(path, from, false)
                }
                _ => self.expect('D', path, from),
            }
        }
        for (path, seen) in after {
            let home = self.home(path);
            if let Some(home) = home.as_ref().filter(|home| own.contains(*home)) {
                self.expect_change(path, home, true);
            } else if !lower.contains_key(&seen.ino) {
                let replaces = |home: &PathBuf| {
                    before
                        .get(home)
                        .is_some_and(|old| old.kind == seen.kind && !told.contains(&**home))
                };
                if !home.as_ref().is_some_and(replaces) {
                    self.expect('A', path, path);
                }
            }
        }
    }

    /// Where the highest directory above `path` that is gone would be.
    fn view_of_gone(&self, views: &HashMap<&Path, &Path>, path: &Path) -> PathBuf {
        match views.get(path) {
            Some(view) => view.to_path_buf(),
            None => {
                self.view_of_gone(views, path.parent().unwrap()).join(path.file_name().unwrap())
            }
        }
    }
}

fn check_difference(merged: &mut Merged) {
    let entries = difference(&merged.overlay, None, "");
    check_told(&entries, &backup(), &merged.tree());
}

/// Checks that `entries` is what two walks say.
pub(crate) fn check_told(entries: &[DifferenceEntry], before: &Tree, after: &Tree) {
    let mut brute = Brute { before, after, homes: BTreeMap::new(), expected: Vec::new() };
    brute.run();
    let mut expected = brute.expected;
    let root = |path: &Path| if path == Path::new(".") { PathBuf::new() } else { path.to_owned() };
    let order: Vec<_> = entries.iter().map(|entry| root(&entry.path)).collect();
    assert!(order.is_sorted(), "{order:?}");
    for entry in entries {
        let path = root(&entry.path);
        let letter = match entry.status {
            Status::Added => "A",
            Status::Modified => "M?t",
            Status::Attributes => "Tt",
            Status::Removed => "D",
            Status::Renamed => "R",
            Status::Listing | Status::Subtree => "",
        };
        let place = expected.iter().position(|expected| {
            (&expected.path, &expected.from) == (&path, &entry.from)
                && letter.contains(expected.letter)
        });
        match place {
            Some(place) => drop(expected.remove(place)),
            None => panic!(
                "{entry:?} is not expected; these are:\n{expected:#?}\nof {:#?}",
                in_words(entries)
            ),
        }
        if entry.status != Status::Removed {
            let seen = &after[&path];
            let size = match seen.kind {
                FileKind::Regular | FileKind::Symlink => seen.size,
                _ => 0,
            };
            assert_eq!(
                (entry.kind, entry.size, entry.ino),
                (seen.kind, size, seen.ino),
                "{entry:?}"
            );
            assert!(
                seen.kind == FileKind::Directory || seen.nlink == entry.nlink,
                "{entry:?}: {seen:?}"
            );
        }
    }
    expected.retain(|expected| expected.letter != '?');
    assert!(expected.is_empty(), "not told: {expected:#?}\nbut {:#?}", in_words(entries));
}

/// A copy of a tree, brought up to date by what a difference since a moment says.
fn catch_up(copy: &mut Tree, now: &Tree, entries: &[DifferenceEntry]) {
    for entry in entries {
        let path = if entry.path == Path::new(".") { Path::new("") } else { &*entry.path };
        let is_directory = entry.kind == FileKind::Directory;
        let is_whole = matches!(entry.status, Status::Renamed | Status::Subtree) && is_directory;
        let below =
            |tree: &Tree| tree.keys().filter(|p| p.starts_with(path)).cloned().collect::<Vec<_>>();
        if entry.status == Status::Listing {
            for known in below(copy) {
                let is_child = known.parent() == Some(path);
                if is_child && !now.contains_key(&known) {
                    copy.retain(|p, _| !p.starts_with(&known));
                }
            }
        } else {
            for known in below(copy) {
                copy.remove(&known);
            }
        }
        if entry.status != Status::Removed {
            copy.insert(path.to_owned(), now[path].clone());
        }
        if is_whole {
            for below in below(now) {
                copy.insert(below.clone(), now[&below].clone());
            }
        }
    }
}

/// The time by the clock that cursors have.
fn now() -> Timestamp {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp { seconds: now.as_secs() as i64, nanos: now.subsec_nanos() }
}

/// A moment that nothing before it can be taken for.
fn pause() -> Timestamp {
    std::thread::sleep(std::time::Duration::from_millis(45));
    now()
}

/// What a copy has to have.
#[derive(PartialEq)]
enum What {
    All,
    /// The kernel leaves the time that we keep for a directory as it is.
    AllButAttributesOfDirectories,
}

fn check_catch_up(merged: &mut Merged, mut copy: Tree, since: Timestamp, what: What) {
    let mut now = merged.tree();
    let entries = difference(&merged.overlay, Some(since), "");
    catch_up(&mut copy, &now, &entries);
    if what == What::AllButAttributesOfDirectories {
        for tree in [&mut copy, &mut now] {
            for seen in tree.values_mut().filter(|seen| seen.kind == FileKind::Directory) {
                let (owner, mtime, xattrs) = Default::default();
                *seen = Seen { mode: 0, owner, mtime, xattrs, ..seen.clone() };
            }
        }
    }
    let names = |tree: &Tree| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&copy), names(&now), "after {:#?}", in_words(&entries));
    for (path, seen) in &now {
        assert!(copy[path] == *seen, "{path:?} is not as it is, after {:#?}", in_words(&entries));
    }
}

fn path(path: &str) -> &Path {
    Path::new(path)
}

const CREATE: i32 = libc::O_CREAT | libc::O_WRONLY;

/// What a case does.
pub(crate) struct Do<'a>(pub(crate) &'a mut Merged);

impl Do<'_> {
    fn write(&mut self, to: &str, data: &[u8]) {
        self.0.write(path(to), 0, data, libc::O_WRONLY).unwrap();
    }

    fn create(&mut self, name: &str) {
        self.0.write(path(name), 0, b"new", CREATE).unwrap();
    }

    fn rename(&mut self, from: &str, to: &str) {
        self.0.rename(path(from), path(to), RenameFlags::empty()).unwrap();
    }

    fn exchange(&mut self, from: &str, to: &str) {
        self.0.rename(path(from), path(to), RenameFlags::EXCHANGE).unwrap();
    }

    fn remove(&mut self, name: &str) {
        let tree = self.0.tree();
        for (path, seen) in tree.iter().rev().filter(|(path, _)| path.starts_with(name)) {
            match seen.kind {
                FileKind::Directory => self.0.rmdir(path).unwrap(),
                _ => self.0.unlink(path).unwrap(),
            }
        }
    }

    fn mkdir(&mut self, name: &str) {
        self.0.mkdir(path(name), 0o755).unwrap();
    }

    /// Removes a directory and makes it again, with the permissions that it had.
    fn make_again(&mut self, names: &[&str]) {
        let tree = self.0.tree();
        self.remove(names[0]);
        names.iter().for_each(|name| self.0.mkdir(path(name), tree[path(name)].mode).unwrap());
    }

    fn chmod(&mut self, name: &str, mode: u32) {
        self.0.chmod(path(name), mode).unwrap();
    }
}

/// A case: what is done, and what is told, each entry as a line.
pub(crate) type Case = (&'static str, fn(&mut Do<'_>), &'static [&'static str]);

pub(crate) const CASES: &[Case] = &[
    ("nothing", |_| {}, &[]),
    ("a file is made", |case| case.create("new"), &["A new"]),
    (
        "directories are made, and files in them",
        |case| {
            case.mkdir("c/new");
            case.mkdir("c/new/deeper");
            case.create("c/new/deeper/file");
        },
        &["A c/new/", "A c/new/deeper/", "A c/new/deeper/file"],
    ),
    ("a file is written to", |case| case.write("c/c/a", b"SMA"), &["M c/c/a"]),
    ("an empty file is written to", |case| case.write("a/a", b"1"), &["M a/a"]),
    ("a file gets other permissions", |case| case.chmod("a/b/a", 0o600), &["T a/b/a"]),
    ("a directory gets other permissions", |case| case.chmod("a/b", 0o700), &["T a/b/"]),
    ("the root gets other permissions", |case| case.chmod("", 0o700), &["T ./"]),
    (
        "permissions are set to what they are",
        |case| {
            case.chmod("a/b/a", 0o755);
            case.chmod("c", 0o751);
        },
        &[],
    ),
    (
        "permissions are set to others and back",
        |case| {
            case.chmod("a/b/a", 0o700);
            case.chmod("a/b/a", 0o755);
        },
        &[],
    ),
    ("a file is touched", |case| case.0.utime(path("a/b/a"), 5).unwrap(), &["T a/b/a"]),
    ("an empty file is touched", |case| case.0.utime(path("a/a"), 5).unwrap(), &["T a/a"]),
    ("a directory is touched", |case| case.0.utime(path("c/a"), 5).unwrap(), &[]),
    (
        "a file is opened for writing, and nothing written",
        |case| {
            for flags in [libc::O_RDWR, libc::O_RDWR | libc::O_SYNC, libc::O_RDWR | libc::O_APPEND]
            {
                case.0.write(path("c/c/a"), 0, b"", flags).unwrap();
            }
        },
        &[],
    ),
    ("a file is truncated", |case| case.0.truncate(path("a/b/a"), 0).unwrap(), &["M a/b/a"]),
    (
        "an attribute is set",
        |case| case.0.set_xattr(path("a/b/a"), "user.new", b"1").unwrap(),
        &["T a/b/a"],
    ),
    (
        "an attribute is set to another value",
        |case| case.0.set_xattr(path("a/b"), "user.dir", b"other").unwrap(),
        &["T a/b/"],
    ),
    (
        "an attribute is set to the value it has",
        |case| case.0.set_xattr(path("a/b"), "user.dir", b"value").unwrap(),
        &[],
    ),
    (
        "an attribute is set and removed",
        |case| {
            case.0.set_xattr(path("a/b/a"), "user.new", b"1").unwrap();
            case.0.remove_xattr(path("a/b/a"), "user.new").unwrap();
        },
        &[],
    ),
    (
        "an attribute is removed",
        |case| case.0.remove_xattr(path("a/b"), "user.dir").unwrap(),
        &["T a/b/"],
    ),
    ("a file is removed", |case| case.remove("c/c/a"), &["D c/c/a"]),
    ("a pipe is removed", |case| case.remove("c/c/c"), &["D c/c/c"]),
    ("a directory is removed with all in it", |case| case.remove("a/b"), &["D a/b/"]),
    (
        "everything is removed",
        |case| {
            case.remove("a");
            case.remove("b");
            case.remove("c");
        },
        &["D a/", "D b", "D c/"],
    ),
    (
        "what was made is removed",
        |case| {
            case.mkdir("c/new");
            case.create("c/new/file");
            case.remove("c/new");
        },
        &[],
    ),
    (
        "a file is removed and made again",
        |case| {
            case.remove("c/c/a");
            case.create("c/c/a");
        },
        &["M c/c/a"],
    ),
    (
        "another file is renamed over one, as editors save",
        |case| {
            case.create("c/c/.a.swp");
            case.rename("c/c/.a.swp", "c/c/a");
        },
        &["M c/c/a"],
    ),
    (
        "a directory is removed and made again, empty",
        |case| {
            case.make_again(&["c/a"]);
            case.chmod("c", 0o751);
        },
        &[],
    ),
    (
        "a directory is removed and made again, with some of what it had",
        |case| {
            case.make_again(&["a", "a/b"]);
            case.create("a/b/a");
            case.create("a/b/n");
        },
        &["D a/a", "T a/b/", "M a/b/a", "D a/b/b/", "D a/b/c", "A a/b/n", "D a/c"],
    ),
    (
        "a file becomes a directory",
        |case| {
            case.remove("c/c/a");
            case.mkdir("c/c/a");
            case.create("c/c/a/in");
        },
        &["D c/c/a", "A c/c/a/", "A c/c/a/in"],
    ),
    (
        "a directory becomes a file",
        |case| {
            case.remove("a/b");
            case.create("a/b");
        },
        &["D a/b/", "A a/b"],
    ),
    (
        "a link leads elsewhere",
        |case| {
            case.remove("a/b/c");
            case.0.symlink(path("a/b/c"), OsStr::new("elsewhere")).unwrap();
        },
        &["M a/b/c"],
    ),
    (
        "a file becomes a link",
        |case| {
            case.remove("a/b/a");
            case.0.symlink(path("a/b/a"), OsStr::new("elsewhere")).unwrap();
        },
        &["D a/b/a", "A a/b/a"],
    ),
    ("a file is renamed", |case| case.rename("c/c/a", "d"), &["R d < c/c/a"]),
    (
        "a file is renamed and written to",
        |case| {
            case.rename("c/c/a", "d");
            case.write("d", b"more than it was");
        },
        &["R d < c/c/a", "M d < c/c/a"],
    ),
    (
        "a file is written to, renamed, and renamed back",
        |case| {
            case.write("c/c/a", b"other");
            case.rename("c/c/a", "d");
            case.rename("d", "c/c/a");
        },
        &["M c/c/a"],
    ),
    (
        "a file is renamed over another",
        |case| case.rename("c/c/a", "a/b/a"),
        &["D a/b/a", "R a/b/a < c/c/a"],
    ),
    (
        "a file is renamed, and another made in its place",
        |case| {
            case.rename("c/c/a", "d");
            case.create("c/c/a");
        },
        &["A c/c/a", "R d < c/c/a"],
    ),
    ("a directory is renamed", |case| case.rename("a/b", "moved"), &["R moved/ < a/b"]),
    (
        "a directory is renamed, and changed",
        |case| {
            case.rename("a/b", "moved");
            case.write("moved/a", b"data");
            case.remove("moved/c");
            case.create("moved/n");
            case.chmod("moved", 0o700);
        },
        &[
            "R moved/ < a/b",
            "T moved/ < a/b",
            "M moved/a < a/b/a",
            "D moved/c < a/b/c",
            "A moved/n",
        ],
    ),
    (
        "a directory is renamed within one that is renamed, and out of it again",
        |case| {
            case.rename("a", "x");
            case.rename("x/b", "x/y");
            case.rename("x/y/b", "z");
        },
        &["R x/ < a", "R x/y/ < a/b", "R z/ < a/b/b"],
    ),
    (
        "a directory is renamed, and another made in its place",
        |case| {
            case.rename("c", "d");
            case.mkdir("c");
            case.mkdir("c/c");
            case.create("c/c/a");
            case.remove("d/c/a");
        },
        &["A c/", "A c/c/", "A c/c/a", "R d/ < c", "D d/c/a < c/c/a"],
    ),
    (
        "a directory is renamed over an empty one",
        |case| case.rename("c/c", "c/a"),
        &["D c/a/", "R c/a/ < c/c"],
    ),
    (
        "files change places",
        |case| case.exchange("a/a", "c/c/a"),
        &["R a/a < c/c/a", "R c/c/a < a/a"],
    ),
    (
        "directories change places",
        |case| case.exchange("a/b", "c/c"),
        &["R a/b/ < c/c", "R c/c/ < a/b"],
    ),
    (
        "directories change places twice",
        |case| {
            case.exchange("a/b", "c/c");
            case.exchange("a/b", "c/c");
        },
        &[],
    ),
    (
        "a file and a directory change places",
        |case| case.exchange("c/c/a", "a/b"),
        &["R a/b < c/c/a", "R c/c/a/ < a/b"],
    ),
    (
        "a file leaves a directory, which is removed then",
        |case| {
            case.rename("a/b/a", "kept");
            case.remove("a");
        },
        &["D a/", "R kept < a/b/a"],
    ),
    (
        "a file is written to and leaves a directory, which is removed and made again",
        |case| {
            case.write("a/b/a", b"data");
            case.rename("a/b/a", "kept");
            case.make_again(&["a"]);
        },
        &["D a/a", "D a/b/", "D a/c", "R kept < a/b/a", "M kept < a/b/a"],
    ),
    (
        "a directory leaves a directory, which is removed then",
        |case| {
            case.rename("a/b", "kept");
            case.remove("a");
            case.rename("kept/a", "too");
        },
        &["D a/", "R kept/ < a/b", "R too < a/b/a"],
    ),
    (
        "a file with several names is written to",
        |case| case.write("a/c", b"data"),
        &["M a/c", "M b", "M c/b"],
    ),
    (
        "a file with several names is written to, in directories with others",
        |case| {
            case.rename("c", "d");
            case.remove("a");
            case.write("b", b"data");
        },
        &["D a/", "M b", "R d/ < c", "M d/b < c/b"],
    ),
    ("one name of several is removed", |case| case.remove("b"), &["D b"]),
    ("one name of several is renamed", |case| case.rename("b", "z"), &["R z < b"]),
    (
        "one name of several is removed, and one made",
        |case| {
            case.remove("b");
            case.0.link(path("a/c"), path("z")).unwrap();
        },
        &["R z < b"],
    ),
    ("a file gets one more name", |case| case.0.link(path("a/b/a"), path("z")).unwrap(), &["A z"]),
    (
        "a file is renamed, and gets one more name",
        |case| {
            case.rename("a/b/a", "y");
            case.0.link(path("y"), path("z")).unwrap();
        },
        &["R y < a/b/a", "A z"],
    ),
    (
        "names that are not UTF-8, and others",
        |case| {
            for name in [&b"\xff"[..], b"new\nline", b".wh.b", &[b'n'; 255]] {
                case.0.write(Path::new(OsStr::from_bytes(name)), 0, b"", CREATE).unwrap();
            }
        },
        &[
            "A .wh.b",
            "A new\nline",
            "A nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\
             nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\
             nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn",
            "A \u{fffd}",
        ],
    ),
    (
        "pipes, and what else has no data",
        |case| {
            case.0.mkfifo(path("pipe")).unwrap();
            case.chmod("c/c/c", 0o600);
        },
        &["T c/c/c", "A pipe"],
    ),
];

/// Cases that root alone can do.
pub(crate) const CASES_OF_ROOT: &[Case] = &[
    (
        "an attribute by the name of a mark is set",
        |case| case.0.set_xattr(path("c/a"), "trusted.overlay.opaque", b"y").unwrap(),
        &["T c/a/"],
    ),
    // No user's link has a record of where it is from.
    ("a link is renamed", |case| case.rename("a/b/c", "d"), &["R d < a/b/c"]),
    ("a file gets another owner", |case| case.0.chown(path("a/b/a"), 7, 8).unwrap(), &["T a/b/a"]),
    (
        "a null device is made, and one in the place of a pipe",
        |case| {
            case.remove("c/c/c");
            for (dir, name) in [("", "null"), ("c/c", "c")] {
                let chain = case.0.resolve(path(dir)).unwrap();
                let overlay = &case.0.overlay;
                let made = overlay.mknod(&ROOT, chain.last(), OsStr::new(name), libc::S_IFCHR, 0);
                overlay.forget(made.unwrap().ino, 1);
            }
        },
        &["D c/c/c", "A c/c/c", "A null"],
    ),
];

fn check_cases(cases: &[Case]) {
    rustix::process::umask(rustix::fs::Mode::empty());
    for metacopy in [true, false] {
        let options = Options { metacopy, ..Options::default() };
        for (name, act, expected) in cases {
            let dir = tempfile::tempdir().unwrap();
            let overlay = open_overlay(dir.path(), &source().archive, options);
            let mut merged = Merged { overlay, plus: false };
            act(&mut Do(&mut merged));
            let copied = ["M a/b/a"];
            // A copy with other times may have other data.
            let may_be_data = !metacopy && *name == "a file is touched";
            let expected = if may_be_data { &copied } else { *expected };
            assert_eq!(in_words(&difference(&merged.overlay, None, "")), expected, "{name}");
            assert_eq!(merged.overlay.node_count(), 1, "{name}: nodes are left");
            check_difference(&mut merged);
            // What was known of it is gone.
            drop(merged);
            let overlay = open_overlay(dir.path(), &source().archive, options);
            assert_eq!(in_words(&difference(&overlay, None, "")), expected, "{name}, again");
        }
    }
}

#[test]
fn each_change_is_told_as_what_it_is() {
    check_cases(CASES);
}

#[test]
fn changes_by_root_are_told_as_what_they_are() {
    if !cannot_run("other owners and devices", &[Need::Root]) {
        check_cases(CASES_OF_ROOT);
    }
}

#[test]
fn what_is_below_a_directory_is_told_alone_with_paths_from_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let overlay = open_overlay(dir.path(), &source().archive, Options::default());
    let mut merged = Merged { overlay, plus: false };
    let mut case = Do(&mut merged);
    case.create("new");
    case.rename("c/c", "a/moved");
    case.write("a/moved/a", b"data");
    case.write("a/c", b"data");
    case.chmod("c", 0o700);
    let all = ["R a/moved/ < c/c", "M a/moved/a < c/c/a"];
    for (below, expected) in [
        (".", &["M a/c", all[0], all[1], "M b", "T c/", "M c/b", "A new"][..]),
        ("a", &["M a/c", all[0], all[1]]),
        ("./a/moved/", &all),
        ("a/moved/a", &all[1..]),
        ("c", &["T c/", "M c/b"]),
        ("a/b", &[]),
        ("none/such", &[]),
    ] {
        assert_eq!(in_words(&difference(&merged.overlay, None, below)), expected, "{below}");
    }
    let error = merged.overlay.difference(None, path("a/../b"), &mut |_| ControlFlow::Continue(()));
    assert!(error.is_err());
}

#[test]
fn who_has_enough_is_given_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let overlay = open_overlay(dir.path(), &source().archive, Options::default());
    let mut merged = Merged { overlay, plus: false };
    Do(&mut merged).remove("b");
    Do(&mut merged).create("new");
    for (wanted, since) in [(1, None), (1, Some(Timestamp::default()))] {
        let mut seen = 0;
        let mut count = |_| {
            seen += 1;
            if seen < wanted { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        merged.overlay.difference(since, path(""), &mut count).unwrap();
        assert_eq!(seen, wanted);
    }
}

#[test]
fn what_stays_is_told_right_while_others_change_the_tree() {
    let dir = tempfile::tempdir().unwrap();
    let overlay = open_overlay(dir.path(), &source().archive, Options::default());
    let mut merged = Merged { overlay, plus: false };
    let mut case = Do(&mut merged);
    case.create("kept");
    case.write("c/c/a", b"other");
    case.rename("a/b", "moved");
    let (overlay, is_over) = (&merged.overlay, AtomicBool::new(false));
    let root = |name: &str| OsStr::new(name).to_owned();
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (is_over, name) = (&is_over, root(&format!("busy{thread}")));
            let (other, inside) = (root(&format!("other{thread}")), root("inside"));
            scope.spawn(move || {
                let caller = ROOT;
                while !is_over.load(Ordering::Relaxed) {
                    let made = overlay.mkdir(&caller, Ino::ROOT, &name, 0o755).unwrap();
                    let (file, opened) =
                        overlay.create(&caller, made.ino, &inside, 0o644, CREATE).unwrap();
                    overlay.release(opened.handle);
                    let flags = RenameFlags::empty();
                    overlay.rename(&caller, Ino::ROOT, &name, Ino::ROOT, &other, flags).unwrap();
                    overlay.unlink(made.ino, &inside).unwrap();
                    overlay.rmdir(Ino::ROOT, &other).unwrap();
                    // One of the backup's comes, goes and is written to as well, by another name.
                    let lower = overlay.lookup(Ino::ROOT, OsStr::new("b")).unwrap();
                    let link = overlay.link(lower.ino, Ino::ROOT, &name).unwrap();
                    overlay.unlink(Ino::ROOT, &name).unwrap();
                    for ino in [made.ino, file.ino, lower.ino, link.ino] {
                        overlay.forget(ino, 1);
                    }
                }
            });
        }
        for round in 0..300 {
            let since = (round % 2 == 1).then(Timestamp::default);
            let mut told = in_words(&difference(overlay, since, ""));
            let is_busy = |line: &String| line.contains("busy") || line.contains("other");
            told.retain(|line| !is_busy(line));
            let expected: &[&str] = match since {
                None => &["M c/c/a", "A kept", "R moved/ < a/b"],
                Some(_) => continue,
            };
            assert_eq!(told, expected, "round {round}");
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!(merged.overlay.node_count(), 1, "nodes are left");
}

#[test]
fn without_an_upper_nothing_differs() {
    let overlay = Overlay::new(open_archive(&source().archive), None, Options::default()).unwrap();
    assert!(difference(&overlay, None, "").is_empty());
    assert!(difference(&overlay, Some(Timestamp::default()), "").is_empty());
}

#[test]
fn a_little_of_everything_is_told_alike_whether_we_or_the_kernel_have_written_it() {
    if cannot_run("mounting kernel overlayfs", &[Need::KernelUpper]) {
        return;
    }
    rustix::process::umask(rustix::fs::Mode::empty());
    let dir = tempfile::tempdir().unwrap();
    let overlay = open_overlay(dir.path(), &source().archive, Options::default());
    let mut ours = Merged { overlay, plus: false };
    change(&mut ours);
    let expected = in_words(&difference(&ours.overlay, None, ""));
    check_difference(&mut ours);
    for index in ["off", "on"] {
        let dir = tempfile::tempdir().unwrap();
        for name in ["upper", "work"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let kernel = KernelMount::new(dir.path(), index);
        change(&mut kernel.plain());
        drop(kernel);
        let overlay = open_overlay(dir.path(), &source().archive, Options::default());
        assert_eq!(in_words(&difference(&overlay, None, "")), expected, "index={index}");
    }
}

/// An archive of `directories` times 250 files.
fn large(directories: usize) -> Packed {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..directories {
        let below = dir.path().join(format!("d{:02}/d{number:04}", number % 20));
        std::fs::create_dir_all(&below).unwrap();
        for file in 0..250 {
            std::fs::write(below.join(format!("file-{file}")), [b'x'; 10]).unwrap();
        }
    }
    pack(dir.path(), &["-comp", "lz4"])
}

#[test]
fn it_costs_what_was_changed_whatever_the_archive() {
    let mut costs = Vec::new();
    for directories in [20, 200] {
        let (archive, dir) = (large(directories), tempfile::tempdir().unwrap());
        for name in ["upper", "work"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let lower = open_archive(&archive.path());
        let upper = Upper::open(&dir.path().join("upper"), &dir.path().join("work")).unwrap();
        let overlay = Overlay::new(lower.clone(), Some(upper), Options::default()).unwrap();
        let mut merged = Merged { overlay, plus: false };
        let mut case = Do(&mut merged);
        let mut expected = Vec::new();
        for number in 0..5 {
            let below = format!("d{number:02}/d{number:04}");
            case.write(&format!("{below}/file-7"), b"other");
            case.0.unlink(path(&format!("{below}/file-8"))).unwrap();
            expected.extend([format!("M {below}/file-7"), format!("D {below}/file-8")]);
        }
        case.rename("d09/d0009", "moved");
        expected.push("R moved/ < d09/d0009".into());
        let before = lower.counters();
        assert_eq!(in_words(&difference(&merged.overlay, None, "")), expected);
        let after = lower.counters();
        assert_eq!(after.data, before.data, "data was read");
        let reads = |of: thawfs::squashfs::Counters| of.metadata.hits + of.metadata.decodes;
        costs.push(reads(after) - reads(before));
    }
    // A walk of the second would read each of its directories, 220, and the inodes of 50,000 files.
    assert!(
        costs[1] < 400 && costs[1] <= costs[0] + 20,
        "{costs:?} blocks of metadata were looked at"
    );
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_difference_is_what_two_walks_find(
        ops in prop::collection::vec(op(), 1..40),
        metacopy in any::<bool>(),
    ) {
        let mut world = World::new(Options { metacopy, ..Options::default() });
        for op in &ops {
            world.apply(op);
        }
        check_difference(&mut world.merged);
        world.remount();
        check_difference(&mut world.merged);
    }

    #[test]
    fn what_changed_since_brings_a_copy_up_to_date(
        earlier in prop::collection::vec(op(), 0..30),
        later in prop::collection::vec(op(), 1..30),
        metacopy in any::<bool>(),
    ) {
        let mut world = World::new(Options { metacopy, ..Options::default() });
        for op in &earlier {
            world.apply(op);
        }
        let copy = world.merged.tree();
        let since = pause();
        for op in &later {
            world.apply(op);
        }
        check_catch_up(&mut world.merged, copy, since, What::All);
    }

    #[test]
    fn what_the_kernel_changed_since_brings_a_copy_up_to_date(
        earlier in prop::collection::vec(op(), 0..30),
        later in prop::collection::vec(op(), 1..20),
    ) {
        if cannot_run("what_the_kernel_changed_since", &[Need::KernelUpper]) {
            return Ok(());
        }
        let mut world = World::new(Options::default());
        for op in &earlier {
            world.apply(op);
        }
        let copy = world.merged.tree();
        let since = pause();
        world.unmount();
        let kernel = KernelMount::new(world.dir.path(), "on");
        let mut seen = kernel.plain();
        for op in &later {
            world.apply_to_kernel(&mut seen, op);
        }
        drop((seen, kernel));
        world.remount();
        check_catch_up(&mut world.merged, copy, since, What::AllButAttributesOfDirectories);
    }
}
