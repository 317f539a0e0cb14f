//! A tree of names that is kept up to date by the stream of changes alone.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Tree;
use thawfs::overlay::Overlay;
use thawfs::types::FileKind;
use thawfs::watch::{Change, Item, Reader, Start, What};

/// What the stream says of the merged tree.
pub(crate) struct Replica {
    reader: Reader,
    /// Number and kind of what is at each path.
    names: BTreeMap<PathBuf, (u64, FileKind)>,
    /// The tree when it was last compared.
    before: Tree,
}

impl Replica {
    /// Begins with `tree`, which is what `overlay` shows now.
    pub(crate) fn new(overlay: &Overlay, tree: Tree) -> Self {
        let (reader, start) = overlay.change_log().subscribe(None).unwrap();
        assert_eq!(start, Start::Exact);
        let names = tree.iter().map(|(path, seen)| (path.clone(), (seen.ino, seen.kind)));
        Self { reader, names: names.collect(), before: tree }
    }

    /// Reads what has changed, and compares with what the merged tree is now: each name is where the stream says,
    /// and what looks otherwise than before was named by it.
    pub(crate) fn check(&mut self, tree: &Tree) {
        let (mut touched, mut changes) = (BTreeSet::new(), Vec::new());
        let mut missed = false;
        loop {
            let items = self.reader.read(100);
            if items.is_empty() {
                break;
            }
            for item in items {
                let Item::Change(change) = item else {
                    // A file was changed of which no name is known.
                    missed = true;
                    continue;
                };
                if missed {
                    continue;
                }
                self.apply(&change);
                touched.insert(change.ino);
                changes.push(change);
            }
        }
        let now = tree.iter().map(|(path, seen)| (path.clone(), (seen.ino, seen.kind)));
        if missed {
            (self.names, self.before) = (now.collect(), tree.clone());
            return;
        }
        assert_eq!(self.names, now.collect(), "names by the stream (left), after {changes:#?}");
        for (path, seen) in tree {
            let Some(before) = self.before.get(path).filter(|before| before.ino == seen.ino) else {
                continue;
            };
            let mut before = before.clone();
            before.nlink = seen.nlink;
            if seen.kind == FileKind::Directory {
                before.mtime = seen.mtime;
            }
            assert!(before == *seen || touched.contains(&seen.ino), "{path:?} {seen:?} {before:?}");
        }
        self.before = tree.clone();
    }

    fn apply(&mut self, change: &Change) {
        let path = Path::new(OsStr::from_bytes(&change.path));
        let other = change.other().map(|other| Path::new(OsStr::from_bytes(other)));
        if change.what != What::Create {
            assert_eq!(self.names.get(path), Some(&(change.ino, change.kind)), "{change:?}");
        }
        match (&change.what, other) {
            (What::Create, _) => {
                let before = self.names.insert(path.to_owned(), (change.ino, change.kind));
                assert_eq!(before, None, "{change:?}");
            }
            (What::Remove, _) => {
                self.names.remove(path);
                assert!(!self.names.keys().any(|name| name.starts_with(path)), "{change:?}");
            }
            (What::Rename { .. }, Some(to)) => {
                self.take(to);
                let moved = self.take(path);
                self.put(to, moved);
            }
            (What::Exchange { .. }, Some(with)) => {
                let (one, two) = (self.take(path), self.take(with));
                assert!(!two.is_empty(), "{change:?}");
                self.put(with, one);
                self.put(path, two);
            }
            _ => {}
        }
    }

    /// Takes what is at and below `path` away, and says what it was, each by its path from there.
    fn take(&mut self, path: &Path) -> Vec<(PathBuf, (u64, FileKind))> {
        let below: Vec<_> = self.names.keys().filter(|p| p.starts_with(path)).cloned().collect();
        let take = |p: PathBuf| {
            let file = self.names.remove(&p).unwrap();
            (p.strip_prefix(path).unwrap().to_owned(), file)
        };
        below.into_iter().map(take).collect()
    }

    fn put(&mut self, path: &Path, files: Vec<(PathBuf, (u64, FileKind))>) {
        for (below, file) in files {
            let at = if below.as_os_str().is_empty() { path.to_owned() } else { path.join(below) };
            self.names.insert(at, file);
        }
    }
}
