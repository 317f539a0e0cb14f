//! Trees that are to be the same.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What is to be seen of each file of a tree.
pub(crate) fn seen(root: &Path) -> Vec<(PathBuf, String, Vec<u8>)> {
    let entries = walkdir::WalkDir::new(root).sort_by_file_name().into_iter().map(Result::unwrap);
    let of = |entry: walkdir::DirEntry| {
        let meta = entry.path().symlink_metadata().unwrap();
        let links = if meta.is_dir() { 0 } else { meta.nlink() };
        let facts = format!(
            "{:o} {}:{} {links} {}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            if entry.depth() == 0 { 0 } else { meta.mtime() }
        );
        let data = match (meta.is_file(), meta.is_symlink()) {
            (true, _) => fs::read(entry.path()).unwrap(),
            (_, true) => fs::read_link(entry.path()).unwrap().as_os_str().as_bytes().to_vec(),
            _ => Vec::new(),
        };
        (entry.path().strip_prefix(root).unwrap().to_owned(), facts, data)
    };
    entries.map(of).collect()
}

/// Compares all but the times of the two roots, which are made for the comparison.
pub(crate) fn assert_same(left: &Path, right: &Path, what: &str) {
    let (left, right) = (seen(left), seen(right));
    let names = |tree: &[(PathBuf, String, Vec<u8>)]| -> Vec<PathBuf> {
        tree.iter().map(|(path, ..)| path.clone()).collect()
    };
    assert_eq!(names(&left), names(&right), "{what}");
    for ((path, facts, data), (_, others, theirs)) in left.iter().zip(&right) {
        assert_eq!(facts, others, "{what}: {path:?}");
        assert!(data == theirs, "{what}: the contents of {path:?}");
    }
}
