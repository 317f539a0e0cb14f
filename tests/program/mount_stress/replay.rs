//! The stream of changes, replayed onto a copy of the tree that it began with.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use rustix::fs::{CWD, RenameFlags, Timespec, Timestamps, XattrFlags};
use serde_json::Value;

/// A copy of a tree, and which file of the original each of its names is.
pub(crate) struct Replay<'a> {
    original: &'a Path,
    copy: &'a Path,
    numbers: BTreeMap<PathBuf, u64>,
    touched: BTreeSet<u64>,
    /// Sequence number of the last change.
    last: Option<u64>,
}

impl<'a> Replay<'a> {
    /// Copies `original`, which nobody changes meanwhile, to `copy`.
    pub(crate) fn new(original: &'a Path, copy: &'a Path) -> Self {
        run("cp", &["-a", "--"], &[&original.join("."), copy]);
        let mut numbers = BTreeMap::new();
        for entry in walkdir::WalkDir::new(original).min_depth(1) {
            let entry = entry.unwrap();
            let path = entry.path().strip_prefix(original).unwrap().to_owned();
            numbers.insert(path, entry.path().symlink_metadata().unwrap().ino());
        }
        Self { original, copy, numbers, touched: BTreeSet::new(), last: None }
    }

    /// Does to the copy what a line of `thawfs watch --json` tells.
    pub(crate) fn apply(&mut self, told: &Value) {
        let line = &told.to_string();
        let sequence = told["sequence"].as_u64().expect(line);
        assert!(self.last.is_none_or(|last| sequence == last + 1), "after {:?}: {line}", self.last);
        self.last = Some(sequence);
        let (path, ino) = (path(told, "path").unwrap(), told["ino"].as_u64().unwrap());
        self.touched.insert(ino);
        let at = self.copy.join(&path);
        match told["event"].as_str().unwrap() {
            "create" => {
                assert!(at.symlink_metadata().is_err(), "{line}");
                let other = self.numbers.iter().find(|(_, number)| **number == ino);
                match (told["kind"].as_str().unwrap(), other) {
                    ("directory", _) => fs::create_dir(&at).unwrap(),
                    (_, Some((other, _))) => fs::hard_link(self.copy.join(other), &at).unwrap(),
                    // What it really is follows at the end.
                    (_, None) => fs::write(&at, "").unwrap(),
                }
                self.numbers.insert(path, ino);
            }
            "remove" => {
                assert_eq!(self.numbers.remove(&path), Some(ino), "{line}");
                match at.symlink_metadata().unwrap().is_dir() {
                    true => fs::remove_dir(at).unwrap(),
                    false => fs::remove_file(at).unwrap(),
                }
            }
            "rename" | "exchange" => {
                assert_eq!(self.numbers.get(&path), Some(&ino), "{line}");
                let exchange = told["event"] == "exchange";
                let other = self::path(told, "to").unwrap();
                let flags = if exchange { RenameFlags::EXCHANGE } else { RenameFlags::empty() };
                let to = self.copy.join(&other);
                rustix::fs::renameat_with(CWD, &at, CWD, to, flags).expect(line);
                let (moved, replaced) = (self.take(&path), self.take(&other));
                self.put(&other, moved);
                if exchange {
                    self.put(&path, replaced);
                }
            }
            "write" | "attributes" if path == Path::new(".") => {}
            "write" | "attributes" => assert_eq!(self.numbers.get(&path), Some(&ino), "{line}"),
            other => panic!("{other}: {line}"),
        }
    }

    fn take(&mut self, path: &Path) -> Vec<(PathBuf, u64)> {
        let below: Vec<_> = self.numbers.keys().filter(|p| p.starts_with(path)).cloned().collect();
        let take = |p: PathBuf| {
            let number = self.numbers.remove(&p).unwrap();
            (p.strip_prefix(path).unwrap().to_owned(), number)
        };
        below.into_iter().map(take).collect()
    }

    fn put(&mut self, path: &Path, numbers: Vec<(PathBuf, u64)>) {
        for (below, number) in numbers {
            // Joined with nothing, a path ends in a slash.
            let at = if below.as_os_str().is_empty() { path.to_owned() } else { path.join(below) };
            self.numbers.insert(at, number);
        }
    }

    /// Fetches what was told of from the original, which nobody changes any more: of nothing else.
    pub(crate) fn finish(self) {
        let mut files: BTreeMap<u64, Vec<&Path>> = BTreeMap::new();
        for (path, number) in self.numbers.iter().filter(|(_, ino)| self.touched.contains(ino)) {
            files.entry(*number).or_default().push(path);
        }
        // Fetching changes directories, which is no change that was told of.
        let mut times = Vec::new();
        for entry in walkdir::WalkDir::new(self.copy) {
            let entry = entry.unwrap();
            if entry.file_type().is_dir() {
                times.push((entry.path().to_owned(), times_of(entry.path())));
            }
        }
        let mut directories = Vec::new();
        for names in files.values() {
            let [first, others @ ..] = &**names else { unreachable!() };
            let (from, to) = (self.original.join(first), self.copy.join(first));
            if from.symlink_metadata().unwrap().is_dir() {
                directories.push((from, to));
                continue;
            }
            for name in names {
                fs::remove_file(self.copy.join(name)).unwrap();
            }
            run("cp", &["-a", "--"], &[&from, &to]);
            for other in others {
                fs::hard_link(&to, self.copy.join(other)).unwrap();
            }
        }
        for (path, times) in times.iter().rev() {
            set_times(path, times);
        }
        directories.sort();
        for (from, to) in directories.iter().rev() {
            copy_attributes(from, to);
        }
    }
}

/// A path in a JSON object, by its bytes where they are given.
fn path(told: &Value, key: &str) -> Option<PathBuf> {
    if let Some(bytes) = told[format!("{key}Base64")].as_str() {
        let bytes = base64::prelude::BASE64_STANDARD.decode(bytes).unwrap();
        return Some(OsString::from_vec(bytes).into());
    }
    told[key].as_str().map(PathBuf::from)
}

fn run(program: &str, words: &[&str], paths: &[&Path]) {
    let output = Command::new(program).args(words).args(paths).output().unwrap();
    assert!(output.status.success(), "{program} {paths:?}: {output:?}");
}

/// Mode, owner, attributes and times of a directory.
fn copy_attributes(from: &Path, to: &Path) {
    let stat = from.symlink_metadata().unwrap();
    chown(to, Some(stat.uid()), Some(stat.gid())).unwrap();
    fs::set_permissions(to, PermissionsExt::from_mode(stat.mode() & 0o7777)).unwrap();
    let names = |path: &Path| {
        let mut names = vec![0; 4096];
        let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
        let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
        names.map(<[u8]>::to_vec).collect::<BTreeSet<_>>()
    };
    for name in names(to).difference(&names(from)) {
        rustix::fs::lremovexattr(to, &**name).unwrap();
    }
    for name in names(from) {
        let mut value = vec![0; 4096];
        let len = rustix::fs::lgetxattr(from, &*name, &mut value[..]).unwrap();
        rustix::fs::lsetxattr(to, &*name, &value[..len], XattrFlags::empty()).unwrap();
    }
    set_times(to, &times_of(from));
}

fn times_of(path: &Path) -> Timestamps {
    let stat = path.symlink_metadata().unwrap();
    Timestamps {
        last_access: Timespec { tv_sec: stat.atime(), tv_nsec: stat.atime_nsec() as _ },
        last_modification: Timespec { tv_sec: stat.mtime(), tv_nsec: stat.mtime_nsec() as _ },
    }
}

fn set_times(path: &Path, times: &Timestamps) {
    rustix::fs::utimensat(CWD, path, times, rustix::fs::AtFlags::empty()).unwrap();
}
