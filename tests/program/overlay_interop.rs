//! The upper is in kernel overlayfs's format: the kernel shows the tree that we left, and we show
//! the tree that the kernel left.

use std::ffi::OsStr;
use std::path::Path;

use crate::overlay_support::{
    KernelMount, Merged, Plain, Side, Tree, assert_same, change, open_overlay, run, source,
};
use crate::support::surrounding::{Need, cannot_run};
use thawfs::overlay::Options;
use thawfs::types::FileKind;

fn merged(dir: &Path) -> Merged {
    Merged { overlay: open_overlay(dir, &source().archive, Options::default()), plus: false }
}

/// The upper on a tmpfs or wherever `TMPDIR` is, and what the plain directory makes of the changes.
fn expected(dir: &Path) -> Tree {
    let plain = dir.join("plain");
    run("cp", &[OsStr::new("-a"), source().tree.as_os_str(), plain.as_os_str()]);
    let mut plain = Plain(plain);
    change(&mut plain);
    plain.tree()
}

fn skipped() -> bool {
    cannot_run("mounting kernel overlayfs", &[Need::KernelUpper])
}

#[test]
fn the_kernel_shows_the_tree_that_we_left() {
    if skipped() {
        return;
    }
    for index in ["off", "on"] {
        let dir = tempfile::tempdir().unwrap();
        let mut ours = merged(dir.path());
        change(&mut ours);
        let seen = ours.tree();
        drop(ours);
        let expected = expected(dir.path());
        assert_same(seen, expected.clone(), "ours and a plain directory");
        let kernel = KernelMount::new(dir.path(), index);
        assert_same(kernel.plain().tree(), expected, &format!("kernel, index={index}, and plain"));
    }
}

#[test]
fn we_show_the_tree_that_the_kernel_left() {
    if skipped() {
        return;
    }
    for index in ["off", "on"] {
        let dir = tempfile::tempdir().unwrap();
        for name in ["upper", "work"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let kernel = KernelMount::new(dir.path(), index);
        change(&mut kernel.plain());
        drop(kernel);
        let mut expected = expected(dir.path());
        let mut seen = merged(dir.path()).tree();
        // The root is the upper directory itself, which the kernel was given as it was.
        for tree in [&mut expected, &mut seen] {
            tree.remove(Path::new(""));
        }
        assert_same(
            seen,
            expected,
            &format!("ours and plain, after the kernel with index={index}"),
        );
    }
}

#[test]
fn a_hard_link_of_the_lower_stays_one_through_both() {
    if skipped() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let names = ["a/c", "b", "c/b"].map(Path::new);
    let mut ours = merged(dir.path());
    ours.write(names[1], 10, b"through one name", libc::O_WRONLY).unwrap();
    ours.unlink(names[2]).unwrap();
    let expected = ours.tree();
    drop(ours);
    let kernel = KernelMount::new(dir.path(), "on");
    let mut plain = kernel.plain();
    let seen = plain.tree();
    for name in &names[..2] {
        assert_eq!(seen[*name].contents, expected[*name].contents, "{name:?} under the kernel");
        assert_eq!(seen[*name].nlink, 2, "{name:?} under the kernel");
    }
    plain.write(names[0], 0, b"through another", libc::O_WRONLY).unwrap();
    plain.link(names[0], Path::new("fourth")).unwrap();
    drop(kernel);
    let seen = merged(dir.path()).tree();
    let inos: Vec<_> = [names[0], names[1], Path::new("fourth")]
        .into_iter()
        .map(|name| {
            let seen = &seen[name];
            assert_eq!(seen.kind, FileKind::Regular);
            assert!(seen.contents.starts_with(b"through another"), "{name:?}");
            assert_eq!(seen.nlink, 3, "{name:?}");
            seen.ino
        })
        .collect();
    assert!(inos.iter().all(|ino| *ino == inos[0]), "one inode: {inos:?}");
}
