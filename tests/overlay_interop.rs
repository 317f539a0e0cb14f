//! The upper is in kernel overlayfs's format: the kernel shows the tree that we left, and we show
//! the tree that the kernel left.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests may fail")]

mod overlay_support;

use std::ffi::OsStr;
use std::path::Path;

use overlay_support::surrounding::{Need, cannot_run};
use overlay_support::{
    KernelMount, Merged, Plain, Seen, Side, Tree, bytes, open_overlay, run, source,
};
use rustix::fs::RenameFlags;
use thawfs::overlay::Options;
use thawfs::types::FileKind;

/// A little of everything that leaves marks in the upper.
fn change(side: &mut dyn Side) {
    let path = Path::new;
    let none = RenameFlags::empty();
    let create = libc::O_CREAT | libc::O_WRONLY;
    side.write(path("new"), 0, &bytes(9, 10_000), create).unwrap();
    side.chmod(path("a/b/a"), 0o4711).unwrap();
    side.rename(path("a/b/a"), path("renamed"), none).unwrap();
    side.rename(path("c/c"), path("a/moved"), none).unwrap();
    side.write(path("a/moved/a"), 2, b"written", libc::O_WRONLY).unwrap();
    side.unlink(path("a/moved/c")).unwrap();
    side.chmod(path("a/moved/b"), 0o640).unwrap();
    side.rename(path("c"), path("first"), none).unwrap();
    side.rename(path("first"), path("second"), none).unwrap();
    side.mkdir(path("c"), 0o700).unwrap();
    side.write(path("c/only"), 0, b"opaque", create).unwrap();
    side.rmdir(path("second/a")).unwrap();
    side.write(path("second/a"), 0, b"a file now", create).unwrap();
    side.unlink(path("a/b/c")).unwrap();
    side.rmdir(path("a/b/b")).unwrap();
    side.set_xattr(path("a/b"), "user.new", b"set").unwrap();
    side.set_xattr(path("a/b"), "trusted.overlay.opaque", b"y").unwrap();
    side.rename(path("a/b"), path("a/moved"), RenameFlags::EXCHANGE).unwrap();
    side.link(path("renamed"), path("a/again")).unwrap();
    side.symlink(path("a/link"), OsStr::new("nowhere/new")).unwrap();
}

/// What both must agree on. Kernel overlayfs without an index breaks hard links of the lower when
/// one is copied up, and shows directories and copies with other numbers, by design.
fn comparable(tree: Tree) -> Tree {
    let plain = |seen: Seen| Seen {
        ino: 0,
        // Written on both sides within the test, one after the other.
        mtime: match seen.mtime.seconds {
            1_000_000_000 => seen.mtime,
            _ => Default::default(),
        },
        ..seen
    };
    tree.into_iter().map(|(path, seen)| (path, plain(seen))).collect()
}

fn assert_same(left: Tree, right: Tree, what: &str) {
    let (left, right) = (comparable(left), comparable(right));
    let names = |tree: &Tree| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&left), names(&right), "{what}: names");
    for (path, seen) in &left {
        let other = &right[path];
        assert!(seen.contents == other.contents, "{what}: contents of {path:?}");
        let without = |seen: &Seen| Seen { contents: Vec::new(), ..seen.clone() };
        assert_eq!(without(seen), without(other), "{what}: {path:?}");
    }
}

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
