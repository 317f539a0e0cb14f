//! What a backup leaves out is what mksquashfs leaves out for the same patterns, and what git
//! ignores.
mod git;
mod patterns;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use thawfs::backup::Selection;

/// Paths of files. Directories are made as they are needed; a path that ends in / is an empty one.
fn tree<P: AsRef<OsStr>>(paths: impl IntoIterator<Item = P>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for path in paths {
        add(dir.path(), path);
    }
    dir
}

fn add(root: &Path, path: impl AsRef<OsStr>) {
    let file = root.join(path.as_ref());
    if path.as_ref().as_bytes().ends_with(b"/") {
        fs::create_dir_all(file).unwrap();
    } else {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, b"").unwrap();
    }
}

/// What is packed of a tree: paths below it.
fn kept(root: &Path, selection: &Selection) -> BTreeSet<PathBuf> {
    // As the writer of archives takes it.
    let exclude: &(dyn Fn(&Path, bool) -> bool + Sync) =
        &|path, is_dir| selection.excludes(path, is_dir);
    let mut kept = BTreeSet::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(root.join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let path = directory.join(entry.file_name());
            let is_dir = entry.file_type().unwrap().is_dir();
            if !exclude(&path, is_dir) {
                kept.insert(path.clone());
                directories.extend(is_dir.then_some(path));
            }
        }
    }
    kept
}

fn all(root: &Path) -> BTreeSet<PathBuf> {
    kept(root, &Selection::default())
}
