//! What the merged tree promises beyond what random operations on it can show.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::ops::AddAssign as _;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use crate::overlay_support::{
    self, Merged, Plain, ROOT, Side, bytes, errno, is_root, open_archive, open_overlay, run, source,
};
use crate::support::again::{assert_passed, only};
use crate::support::surrounding::{Need, cannot_run, skip};
use rustix::fs::{AtFlags, CWD, Mode, RenameFlags, XattrFlags};
use rustix::io::Errno;
use thawfs::cache::{Blob, FileBlob};
use thawfs::overlay::{
    Backing, Caller, Error, FallocateFlags, Handle, Options, Overlay, SeekFrom, SetAttr, Upper,
};
use thawfs::squashfs::{Archive, OpenOptions};
use thawfs::types::{ByteRange, FileKind, Ino};

fn merged(dir: &Path) -> Merged {
    Merged { overlay: open_overlay(dir, &source().archive, Options::default()), plus: false }
}

fn path(path: &str) -> &Path {
    Path::new(path)
}

/// Packs `tree` as it is.
fn pack(tree: &Path, archive: &Path) {
    let options = ["-noappend", "-quiet", "-no-progress"].map(OsStr::new);
    let mut args = vec![tree.as_os_str(), archive.as_os_str()];
    args.extend(options);
    run("mksquashfs", &args);
}

fn needs_root(what: &str) -> bool {
    cannot_run(what, &[Need::Root])
}

#[test]
fn without_an_upper_everything_reads_and_nothing_writes() {
    let overlay = Overlay::new(open_archive(&source().archive), None, Options::default()).unwrap();
    let mut side = Merged { overlay, plus: true };
    let mut plain = Plain(source().tree.clone());
    let names = |tree: overlay_support::Tree| tree.into_keys().collect::<Vec<_>>();
    assert_eq!(names(side.tree()), names(plain.tree()));
    let none = RenameFlags::empty();
    let refused = [
        ("open", side.write(path("b"), 0, b"x", libc::O_WRONLY)),
        ("create", side.write(path("new"), 0, b"x", libc::O_WRONLY | libc::O_CREAT)),
        ("mkdir", side.mkdir(path("new"), 0o755)),
        ("symlink", side.symlink(path("new"), OsStr::new("x"))),
        ("link", side.link(path("b"), path("new"))),
        ("unlink", side.unlink(path("b"))),
        ("rmdir", side.rmdir(path("c/a"))),
        ("rename", side.rename(path("b"), path("new"), none)),
        ("truncate", side.truncate(path("b"), 0)),
        ("chmod", side.chmod(path("b"), 0o600)),
        ("setxattr", side.set_xattr(path("b"), "user.x", b"")),
        ("removexattr", side.remove_xattr(path("b"), "user.one")),
    ];
    for (call, result) in refused {
        assert_eq!(result, Err(Errno::ROFS), "{call}");
    }
    assert_eq!(side.overlay.statfs().unwrap().name_max, 255);
}

#[test]
fn an_upper_serves_one_mount_and_one_archive() {
    let dir = tempfile::tempdir().unwrap();
    let first = merged(dir.path());
    let (upper, work) = (dir.path().join("upper"), dir.path().join("work"));
    let refusal = |result: Result<Upper, Error>| result.unwrap_err().to_string();
    assert!(refusal(Upper::open(&upper, &work)).contains("in use"));
    let other_work = dir.path().join("other");
    std::fs::create_dir(&other_work).unwrap();
    assert!(refusal(Upper::open(&upper, &other_work)).contains("in use"));
    drop(first);
    let inside = upper.join("inside");
    std::fs::create_dir(&inside).unwrap();
    assert!(refusal(Upper::open(&upper, &inside)).contains("within each other"));
    assert!(refusal(Upper::open(&upper, &dir.path().join("missing"))).contains("No such file"));

    let other_archive = dir.path().join("other.sqsh");
    std::fs::write(other_work.join("file"), b"").unwrap();
    pack(&other_work, &other_archive);
    let upper = Upper::open(&upper, &work).unwrap();
    let archive = open_archive(&other_archive);
    let result = Overlay::new(archive, Some(upper), Options::default());
    assert!(result.err().unwrap().to_string().contains("another archive"));
}

#[test]
fn a_new_upper_takes_the_roots_attributes_from_the_archive() {
    if needs_root("giving a directory away") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("inner")).unwrap();
    let mut plain = Plain(tree.clone());
    plain.chown(path(""), 1234, 5678).unwrap();
    plain.chmod(path(""), 0o1750).unwrap();
    plain.utime(path(""), 1_000_000_000).unwrap();
    let archive = dir.path().join("archive");
    pack(&tree, &archive);
    let overlay = open_overlay(dir.path(), &archive, Options::default());
    let attr = overlay.getattr(Ino::ROOT, None).unwrap();
    assert_eq!((attr.uid, attr.gid, attr.perm), (1234, 5678, 0o1750));
    assert_eq!(attr.mtime.seconds, 1_000_000_000);
    let attr = overlay.mkdir(&ROOT, Ino::ROOT, OsStr::new("new"), 0o755).unwrap();
    drop(overlay);
    let overlay = open_overlay(dir.path(), &archive, Options::default());
    assert_eq!(overlay.lookup(Ino::ROOT, OsStr::new("new")).unwrap().ino, attr.ino);
}

#[test]
fn what_a_crash_left_in_the_workdir_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    drop(merged(dir.path()));
    let work = dir.path().join("work/work");
    std::fs::create_dir_all(work.join("#1/deep/er")).unwrap();
    std::fs::write(work.join("#1/deep/er/file"), b"half a copy").unwrap();
    std::fs::write(work.join("#2"), b"half a copy").unwrap();
    let side = merged(dir.path());
    assert_eq!(std::fs::read_dir(&work).unwrap().count(), 0);
    drop(side);
}

#[test]
fn attributes_names_and_truncation_copy_no_data() {
    /// What is done, and whether the file keeps its data.
    type Case = (&'static str, fn(&mut Merged), bool);
    let cases: [Case; 7] = [
        ("chmod", |side| side.chmod(path("a/b/a"), 0o600).unwrap(), true),
        ("utime", |side| side.utime(path("a/b/a"), 5).unwrap(), true),
        ("xattr", |side| side.set_xattr(path("a/b/a"), "user.x", b"1").unwrap(), true),
        ("link", |side| side.link(path("a/b/a"), path("again")).unwrap(), true),
        (
            "rename",
            |side| side.rename(path("a/b"), path("moved"), RenameFlags::empty()).unwrap(),
            true,
        ),
        (
            "O_TRUNC",
            |side| side.write(path("a/b/a"), 0, b"", libc::O_WRONLY | libc::O_TRUNC).unwrap(),
            false,
        ),
        ("truncate", |side| side.truncate(path("a/b/a"), 0).unwrap(), false),
    ];
    for (what, change, keeps_data) in cases {
        let dir = tempfile::tempdir().unwrap();
        let mut side = merged(dir.path());
        change(&mut side);
        let data: u64 = walkdir::WalkDir::new(dir.path().join("upper"))
            .into_iter()
            .map(|entry| entry.unwrap().metadata().unwrap())
            .filter(|meta| meta.is_file())
            .map(|meta| (meta.ino(), meta.blocks() * 512))
            .collect::<BTreeMap<_, _>>()
            .into_values()
            .sum();
        // ext4 may keep attributes in a block of the file's own.
        assert!(data <= 4096, "{what}: {data} bytes in the upper");
        let tree = side.tree();
        let whole = tree.values().filter(|seen| seen.contents == bytes(1, 300_000)).count();
        assert_eq!(whole > 0, keeps_data, "{what}");
    }
}

#[test]
fn a_file_with_all_the_attributes_that_fit_is_copied_up_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("file"), bytes(1, 9000)).unwrap();
    // As much as ext4 has room for in its one block.
    let value = bytes(2, 4016);
    rustix::fs::setxattr(tree.join("file"), "user.x", &value, XattrFlags::empty()).unwrap();
    let archive = dir.path().join("archive.sqsh");
    run("mksquashfs", &[&tree, &archive].map(|path| path.as_os_str()));
    let open = || {
        let overlay = open_overlay(dir.path(), &archive, Options::default());
        Merged { overlay, plus: false }
    };
    let mut side = open();
    side.chmod(path("file"), 0o600).unwrap();
    let seen = side.tree();
    drop(side);
    let seen_again = open().tree();
    for tree in [seen, seen_again] {
        let file = &tree[path("file")];
        assert_eq!(file.mode & 0o777, 0o600);
        assert!(file.contents == bytes(1, 9000));
        assert_eq!(file.xattrs, [("user.x".into(), value.clone())].into());
    }
}

#[test]
fn an_open_file_outlives_its_name() {
    for (name, flags) in [("a/b/a", libc::O_RDONLY), ("c/c/a", libc::O_RDWR)] {
        let dir = tempfile::tempdir().unwrap();
        let mut side = merged(dir.path());
        let mut chain = side.resolve(path(name)).unwrap();
        let ino = chain.attrs.pop().unwrap().ino;
        drop(chain);
        let expected = side.contents(ino);
        let opened = side.overlay.open(ino, flags).unwrap();
        side.unlink(path(name)).unwrap();
        let attr = side.overlay.getattr(ino, Some(opened.handle)).unwrap();
        assert_eq!((attr.nlink, attr.size), (0, expected.len() as u64));
        assert_eq!(side.overlay.read(opened.handle, 0, 1 << 20).unwrap(), expected);
        // A new file of that name is another file.
        side.write(path(name), 0, b"new", libc::O_WRONLY | libc::O_CREAT).unwrap();
        assert_ne!(side.resolve(path(name)).unwrap().last(), ino);
        // Though nameless, it can be changed, opened and written.
        let change = SetAttr { mode: Some(0o604), size: Some(3), ..SetAttr::default() };
        let writable = (flags == libc::O_RDWR).then_some(opened.handle);
        let attr = side.overlay.setattr(&ROOT, ino, writable, &change).unwrap();
        assert_eq!((attr.perm, attr.size, attr.nlink), (0o604, 3, 0));
        let again = side.overlay.open(ino, libc::O_RDWR).unwrap();
        side.overlay.write(again.handle, 3, b"more").unwrap();
        let mut expected = expected[..3].to_vec();
        expected.extend(b"more");
        assert_eq!(side.overlay.read(opened.handle, 0, 100).unwrap(), expected, "{name}");
        assert_eq!(
            side.overlay.link(ino, Ino::ROOT, OsStr::new("back")).map_err(|e| errno(&e)).map(drop),
            Err(Errno::NOENT)
        );
        side.overlay.release(opened.handle);
        side.overlay.release(again.handle);
        side.overlay.forget(ino, 1);
        assert_eq!(side.overlay.node_count(), 1);
        drop(side);
        let work = dir.path().join("work/work");
        let left = std::fs::read_dir(work).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(left.filter(|name| name != "whiteout").count(), 0, "nothing in the workdir");
    }
}

/// Opened for writing, a lower file is copied up by the first change of its data: until then it may
/// have been changed, renamed or removed in any way.
#[test]
fn a_file_opened_for_writing_is_copied_when_it_is_written() {
    type Before = (&'static str, fn(&mut Merged));
    type Change = (&'static str, fn(&Overlay, Ino, Handle, &mut Vec<u8>));
    let before: [Before; 6] = [
        ("nothing", |_| {}),
        ("chmod", |side| side.chmod(path("a/b/a"), 0o400).unwrap()),
        ("rename", |side| side.rename(path("a/b"), path("moved"), RenameFlags::empty()).unwrap()),
        ("link", |side| side.link(path("a/b/a"), path("again")).unwrap()),
        ("unlink", |side| side.unlink(path("a/b/a")).unwrap()),
        ("chmod and unlink", |side| {
            side.chmod(path("a/b/a"), 0o600).unwrap();
            side.unlink(path("a/b/a")).unwrap();
        }),
    ];
    let changes: [Change; 5] = [
        ("write", |overlay, _, handle, expected| {
            assert_eq!(overlay.write(handle, 200_000, b"written").unwrap(), 7);
            expected[200_000..200_007].copy_from_slice(b"written");
        }),
        ("append", |overlay, _, handle, expected| {
            overlay.write(handle, expected.len() as u64, b"appended").unwrap();
            expected.extend(b"appended");
        }),
        ("truncate", |overlay, ino, handle, expected| {
            let change = SetAttr { size: Some(1000), ..SetAttr::default() };
            let attr = overlay.setattr(&ROOT, ino, Some(handle), &change).unwrap();
            assert_eq!(attr.size, 1000);
            expected.truncate(1000);
        }),
        ("allocate", |overlay, _, handle, expected| {
            overlay.fallocate(handle, FallocateFlags::empty(), 300_000, 1000).unwrap();
            expected.resize(301_000, 0);
        }),
        ("copy_file_range", |overlay, ino, handle, expected| {
            let from = overlay.open(ino, libc::O_RDONLY).unwrap().handle;
            assert_eq!(overlay.copy_file_range(from, 0, handle, 100_000, 5000).unwrap(), 5000);
            expected.copy_within(..5000, 100_000);
            overlay.release(from);
        }),
    ];
    for (first, prepare) in before {
        for (what, change) in changes {
            let dir = tempfile::tempdir().unwrap();
            let mut side = merged(dir.path());
            let mut chain = side.resolve(path("a/b/a")).unwrap();
            let ino = chain.attrs.pop().unwrap().ino;
            drop(chain);
            let [reader, writer] = [libc::O_RDONLY, libc::O_RDWR]
                .map(|flags| side.overlay.open(ino, flags).unwrap().handle);
            prepare(&mut side);
            assert!(!side.overlay.is_in_upper(writer), "{first}, {what}: copied too early");
            let mut expected = bytes(1, 300_000);
            change(&side.overlay, ino, writer, &mut expected);
            assert!(side.overlay.is_in_upper(writer), "{first}, {what}: not copied");
            for handle in [reader, writer] {
                let seen = side.overlay.read(handle, 0, 1 << 20).unwrap();
                assert!(seen == expected, "{first}, {what}: other data");
                let size = side.overlay.getattr(ino, Some(handle)).unwrap().size;
                assert_eq!(size, expected.len() as u64, "{first}, {what}");
            }
            let refused = side.overlay.write(reader, 0, b"x").map_err(|e| errno(&e));
            assert_eq!(refused, Err(Errno::BADF), "{first}, {what}");
            side.overlay.release(reader);
            side.overlay.release(writer);
            side.overlay.forget(ino, 1);
            let named = side.tree().values().filter(|seen| seen.contents == expected).count();
            assert_eq!(named > 0, !first.contains("unlink"), "{first}, {what}: by name");
        }
    }
}

#[test]
fn a_removed_directory_in_use_is_empty_and_takes_nothing() {
    for name in ["c/a", "made"] {
        let dir = tempfile::tempdir().unwrap();
        let mut side = merged(dir.path());
        if name == "made" {
            side.mkdir(path(name), 0o755).unwrap();
        }
        let mut chain = side.resolve(path(name)).unwrap();
        let ino = chain.attrs.pop().unwrap().ino;
        drop(chain);
        side.rmdir(path(name)).unwrap();
        assert_eq!(side.overlay.getattr(ino, None).unwrap().nlink, 0, "{name}");
        assert_eq!(side.list(ino), []);
        let made = side.overlay.mkdir(&ROOT, ino, OsStr::new("x"), 0o755);
        assert_eq!(made.map(drop).map_err(|e| errno(&e)), Err(Errno::NOENT), "{name}");
        let attr = side.overlay.setattr(
            &ROOT,
            ino,
            None,
            &SetAttr { mode: Some(0o700), ..SetAttr::default() },
        );
        assert_eq!(attr.unwrap().perm, 0o700);
        side.overlay.forget(ino, 1);
        assert_eq!(side.overlay.node_count(), 1);
    }
}

#[test]
fn a_null_device_is_a_device_and_not_a_whiteout() {
    if needs_root("making devices") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    let archive = dir.path().join("archive");
    // The file system that the test runs on may take such a device for its own whiteout.
    let device = ["-p", "lower c 640 0 0 0 0", "-noappend", "-quiet", "-no-progress"];
    let mut args = vec![tree.as_os_str(), archive.as_os_str()];
    args.extend(device.map(OsStr::new));
    run("mksquashfs", &args);
    let open =
        || Merged { overlay: open_overlay(dir.path(), &archive, Options::default()), plus: false };
    let mut side = open();
    for name in ["made", "left"] {
        if name == "made" {
            let made =
                side.overlay.mknod(&ROOT, Ino::ROOT, OsStr::new(name), libc::S_IFCHR | 0o640, 0);
            side.overlay.forget(made.unwrap().ino, 1);
        } else {
            side.write(path(name), 0, b"x", libc::O_WRONLY | libc::O_CREAT).unwrap();
            side.rename(path(name), path("moved"), RenameFlags::WHITEOUT).unwrap();
        }
    }
    side.chmod(path("lower"), 0o600).unwrap();
    side.rename(path("lower"), path("renamed"), RenameFlags::empty()).unwrap();
    assert!(!side.tree().contains_key(path("lower")));
    drop(side);
    let tree = open().tree();
    for name in ["made", "left", "renamed"] {
        assert_eq!((tree[path(name)].kind, tree[path(name)].rdev), (FileKind::CharDevice, 0));
    }
    let whiteout = dir.path().join("upper/lower").symlink_metadata().unwrap();
    let is_device = whiteout.file_type().is_char_device() && whiteout.rdev() == 0;
    assert!(is_device || whiteout.is_file() && whiteout.len() == 0);
}

#[test]
fn overlay_attributes_of_the_archive_are_ordinary() {
    if needs_root("trusted attributes") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("dir")).unwrap();
    std::fs::write(tree.join("dir/file"), b"seen").unwrap();
    let set = |path: &str, name: &str, value: &str| {
        let flags = XattrFlags::empty();
        rustix::fs::setxattr(tree.join(path), name, value.as_bytes(), flags).unwrap();
    };
    set("dir", "trusted.overlay.opaque", "y");
    set("dir", "trusted.overlay.redirect", "/elsewhere");
    set("dir/file", "trusted.overlay.metacopy", "");
    set("dir/file", "trusted.overlay.whiteout", "y");
    let archive = dir.path().join("archive");
    pack(&tree, &archive);
    let expected = Plain(tree.clone()).tree();
    let open =
        || Merged { overlay: open_overlay(dir.path(), &archive, Options::default()), plus: true };
    let mut side = open();
    for copied_up in [false, true, true] {
        if copied_up {
            side.chmod(path("dir"), 0o755).unwrap();
            side.chmod(path("dir/file"), 0o644).unwrap();
        }
        let seen = side.tree();
        for name in ["dir", "dir/file"] {
            let (seen, expected) = (&seen[path(name)], &expected[path(name)]);
            assert_eq!((&seen.xattrs, &seen.contents), (&expected.xattrs, &expected.contents));
        }
        drop(side);
        side = open();
    }
    // And a program can set and remove its own.
    side.set_xattr(path("dir"), "trusted.overlay.opaque", b"z").unwrap();
    side.remove_xattr(path("dir"), "trusted.overlay.redirect").unwrap();
    let seen = side.tree();
    assert_eq!(seen[path("dir")].xattrs.len(), 1);
    assert!(seen.contains_key(path("dir/file")), "the directory has not become opaque");
}

#[test]
fn new_files_take_owner_and_mode_as_on_ext4() {
    if needs_root("other owners") {
        return;
    }
    rustix::process::umask(Mode::empty());
    let dir = tempfile::tempdir().unwrap();
    let mut side = merged(dir.path());
    side.mkdir(path("plain"), 0o777).unwrap();
    side.mkdir(path("setgid"), 0o777).unwrap();
    side.chown(path("setgid"), 0, 777).unwrap();
    side.chmod(path("setgid"), 0o2777).unwrap();
    side.mkdir(path("acl"), 0o777).unwrap();
    // user::rwx user:5:rwx group::r-x mask::rwx other::---
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in
        [(1, 7, u32::MAX), (2, 7, 5), (4, 5, u32::MAX), (0x10, 7, u32::MAX), (0x20, 0, u32::MAX)]
    {
        acl.extend(u16::to_le_bytes(tag));
        acl.extend(u16::to_le_bytes(perm));
        acl.extend(u32::to_le_bytes(id));
    }
    side.set_xattr(path("acl"), "system.posix_acl_default", &acl).unwrap();
    let caller = Caller { uid: 1000, gid: 2000, umask: 0o027 };
    // (directory, group, mode of a file made 0666, mode of a directory made 0777)
    let cases = [
        ("plain", 2000, 0o640, 0o750),
        ("setgid", 777, 0o640, 0o2750),
        ("acl", 2000, 0o660, 0o770),
    ];
    for (parent, gid, file_mode, dir_mode) in cases {
        // Made in place, then again over the whiteouts of what the lower has; both are the same.
        let chain = side.resolve(path(parent)).unwrap();
        for name in ["first", "second"] {
            let overlay = &side.overlay;
            let name = OsStr::new(name);
            let (file, opened) =
                overlay.create(&caller, chain.last(), name, 0o666, libc::O_RDWR).unwrap();
            overlay.release(opened.handle);
            overlay.forget(file.ino, 1);
            assert_eq!((file.uid, file.gid, file.perm), (1000, gid, file_mode), "{parent}");
            overlay.unlink(chain.last(), name).unwrap();
            let made = overlay.mkdir(&caller, chain.last(), name, 0o777).unwrap();
            overlay.forget(made.ino, 1);
            assert_eq!((made.uid, made.gid, made.perm), (1000, gid, dir_mode), "{parent}");
            overlay.rmdir(chain.last(), name).unwrap();
        }
    }
    // Over a whiteout, in a directory of the lower that has been given the ACL.
    side.set_xattr(path("c/c"), "system.posix_acl_default", &acl).unwrap();
    side.unlink(path("c/c/a")).unwrap();
    let chain = side.resolve(path("c/c")).unwrap();
    let name = OsStr::new("a");
    let made = side.overlay.mkdir(&caller, chain.last(), name, 0o777).unwrap();
    assert_eq!(made.perm, 0o770);
    for acl_name in ["system.posix_acl_default", "system.posix_acl_access"] {
        assert!(side.overlay.getxattr(made.ino, OsStr::new(acl_name)).is_ok(), "{acl_name}");
    }
    side.overlay.forget(made.ino, 1);
}

#[test]
fn an_acl_that_is_not_there_is_no_data() {
    let dir = tempfile::tempdir().unwrap();
    let mut side = merged(dir.path());
    for copied_up in [false, true] {
        if copied_up {
            side.chmod(path("b"), 0o600).unwrap();
        }
        let chain = side.resolve(path("b")).unwrap();
        let acl = side.overlay.getxattr(chain.last(), OsStr::new("system.posix_acl_access"));
        assert_eq!(acl.map_err(|e| errno(&e)), Err(Errno::NODATA));
    }
}

#[test]
fn a_name_of_255_bytes_works_and_a_longer_one_is_too_long() {
    let dir = tempfile::tempdir().unwrap();
    let mut side = merged(dir.path());
    let (fits, long) = (PathBuf::from("n".repeat(255)), PathBuf::from("n".repeat(256)));
    side.mkdir(&fits, 0o755).unwrap();
    let none = RenameFlags::empty();
    for (call, result) in [
        ("lookup", side.resolve(&long).map(drop)),
        ("mkdir", side.mkdir(&long, 0o755)),
        ("create", side.write(&long, 0, b"", libc::O_WRONLY | libc::O_CREAT)),
        ("unlink", side.unlink(&long)),
        ("rename", side.rename(&fits, &long, none)),
        ("link", side.link(path("b"), &long)),
    ] {
        assert_eq!(result, Err(Errno::NAMETOOLONG), "{call}");
    }
}

/// An archive with a directory `many` of so many files.
fn packed_many(dir: &Path, count: usize) -> PathBuf {
    let tree = dir.join("tree");
    std::fs::create_dir_all(tree.join("many")).unwrap();
    for i in 0..count {
        std::fs::write(tree.join(format!("many/lower{i}")), b"").unwrap();
    }
    let archive = dir.join("archive");
    pack(&tree, &archive);
    archive
}

#[test]
fn a_listing_can_be_removed_while_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let archive = packed_many(dir.path(), 500);
    for plus in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let overlay = open_overlay(dir.path(), &archive, Options::default());
        let many = overlay.lookup(Ino::ROOT, OsStr::new("many")).unwrap().ino;
        for i in 0..500 {
            let name = OsString::from(format!("upper{i}"));
            let made = overlay.mknod(&ROOT, many, &name, libc::S_IFREG | 0o644, 0).unwrap();
            overlay.forget(made.ino, 1);
        }
        let (mut from, mut seen) = (0, BTreeSet::new());
        loop {
            let mut names = Vec::new();
            overlay
                .readdir(many, from, plus, &mut |entry| {
                    if names.len() == 7 {
                        return ControlFlow::Break(());
                    }
                    from = entry.next_cookie;
                    names.push(entry.name.to_owned());
                    if let Some(attr) = entry.attr {
                        overlay.forget(attr.ino, 1);
                    }
                    ControlFlow::Continue(())
                })
                .unwrap();
            if names.is_empty() {
                break;
            }
            for name in names.into_iter().filter(|name| name != "." && name != "..") {
                overlay.unlink(many, &name).unwrap();
                assert!(seen.insert(name.clone()), "{name:?} came twice");
            }
        }
        assert_eq!(seen.len(), 1000);
        overlay.rmdir(Ino::ROOT, OsStr::new("many")).unwrap();
        let again = overlay.lookup(Ino::ROOT, OsStr::new("many")).unwrap_err();
        assert_eq!(errno(&again), Errno::NOENT);
    }
}

#[test]
fn whiteouts_in_xattr_form_hide() {
    if needs_root("trusted attributes") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    drop(merged(dir.path()));
    let upper = dir.path().join("upper");
    std::fs::create_dir(upper.join("a")).unwrap();
    std::fs::write(upper.join("a/c"), b"").unwrap();
    for (path, mark, value) in [("a", "opaque", "x"), ("a/c", "whiteout", "y")] {
        for form in ["trusted", "user"] {
            let name = format!("{form}.overlay.{mark}");
            let flags = XattrFlags::empty();
            rustix::fs::setxattr(upper.join(path), &name, value.as_bytes(), flags).unwrap();
        }
    }
    let mut side = merged(dir.path());
    let tree = side.tree();
    assert!(!tree.contains_key(path("a/c")) && tree.contains_key(path("a/a")));
    side.write(path("a/c"), 0, b"back", libc::O_WRONLY | libc::O_CREAT).unwrap();
    assert_eq!(side.tree()[path("a/c")].contents, b"back");
}

#[test]
fn holes_of_lower_files_stay_holes() {
    let dir = tempfile::tempdir().unwrap();
    let mut side = merged(dir.path());
    let name = path("c/c/b");
    let data_starts = |side: &Merged| {
        let chain = side.resolve(name).unwrap();
        let opened = side.overlay.open(chain.last(), libc::O_RDONLY).unwrap();
        let data = side.overlay.lseek(opened.handle, SeekFrom::Data(0)).unwrap();
        let end = side.overlay.lseek(opened.handle, SeekFrom::Data(700_000));
        assert_eq!(end.map_err(|e| errno(&e)), Err(Errno::NXIO));
        assert_eq!(side.overlay.lseek(opened.handle, SeekFrom::Hole(700_000)).unwrap(), 700_000);
        side.overlay.release(opened.handle);
        (opened.backing, data)
    };
    let (backing, lower) = data_starts(&side);
    assert_eq!(backing, Backing::Lower);
    assert!((300_000..=500_000).contains(&lower), "{lower}");
    side.write(name, 500_000, b"x", libc::O_WRONLY).unwrap();
    let (backing, upper) = data_starts(&side);
    assert_eq!(backing, Backing::Upper);
    assert!((300_000..=500_000).contains(&upper), "{upper}");
    let blocks = dir.path().join("upper").join(name).metadata().unwrap().blocks();
    assert!(blocks * 512 < 400_000, "{blocks} blocks");
}

#[test]
fn ranges_are_copied_and_allocated() {
    let dir = tempfile::tempdir().unwrap();
    let mut side = merged(dir.path());
    side.write(path("to"), 0, b"", libc::O_WRONLY | libc::O_CREAT).unwrap();
    let overlay = &side.overlay;
    let (from, to) = (side.resolve(path("a/b/a")).unwrap(), side.resolve(path("to")).unwrap());
    let from = overlay.open(from.last(), libc::O_RDONLY).unwrap().handle;
    let to = overlay.open(to.last(), libc::O_RDWR).unwrap().handle;
    assert_eq!(overlay.copy_file_range(from, 1000, to, 10, 5000).unwrap(), 5000);
    assert_eq!(overlay.copy_file_range(to, 10, to, 10_000, 5000).unwrap(), 5000);
    let expected = &bytes(1, 300_000)[1000..6000];
    for at in [10, 10_000] {
        assert_eq!(overlay.read(to, at, 5000).unwrap(), expected, "at {at}");
    }
    overlay.fallocate(to, FallocateFlags::empty(), 0, 100_000).unwrap();
    assert_eq!(overlay.lseek(to, SeekFrom::Hole(100_000)).map_err(|e| errno(&e)), Err(Errno::NXIO));
    let refused = overlay.fallocate(from, FallocateFlags::empty(), 0, 1);
    assert_eq!(refused.map_err(|e| errno(&e)), Err(Errno::BADF));
    assert!(overlay.upper_fd(to).is_some() && overlay.upper_fd(from).is_none());
    for handle in [from, to] {
        overlay.fsync(handle, true).unwrap();
        overlay.release(handle);
        assert_eq!(overlay.fsync(handle, true).map_err(|e| errno(&e)), Err(Errno::BADF));
    }
}

#[test]
fn many_threads_copy_a_file_up_once_and_lose_no_write() {
    let dir = tempfile::tempdir().unwrap();
    let side = merged(dir.path());
    let overlay = &side.overlay;
    let chain = side.resolve(path("a/b/a")).unwrap();
    let ino = chain.last();
    let reader = overlay.open(ino, libc::O_RDONLY).unwrap().handle;
    let threads = 8;
    let barrier = Barrier::new(threads);
    std::thread::scope(|scope| {
        for i in 0..threads {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                match i % 4 {
                    0 => {
                        let change = SetAttr { mode: Some(0o644), ..SetAttr::default() };
                        overlay.setattr(&ROOT, ino, None, &change).unwrap();
                    }
                    _ => {
                        let opened = overlay.open(ino, libc::O_RDWR).unwrap();
                        overlay.write(opened.handle, i as u64 * 1000, &[i as u8; 100]).unwrap();
                        overlay.release(opened.handle);
                    }
                }
            });
        }
    });
    let mut expected = bytes(1, 300_000);
    for i in (0..threads).filter(|i| i % 4 != 0) {
        expected[i * 1000..i * 1000 + 100].fill(i as u8);
    }
    assert!(overlay.read(reader, 0, 400_000).unwrap() == expected);
    overlay.release(reader);
    assert_eq!(std::fs::read(dir.path().join("upper/a/b/a")).unwrap(), expected);
}

#[test]
fn threads_that_rename_make_and_list_do_not_stop_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let overlay = Arc::new(open_overlay(dir.path(), &source().archive, Options::default()));
    std::thread::scope(|scope| {
        for i in 0..4_u32 {
            let overlay = &overlay;
            scope.spawn(move || {
                let own = OsString::from(format!("own{i}"));
                for round in 0..50 {
                    let made = overlay.mkdir(&ROOT, Ino::ROOT, &own, 0o755).unwrap();
                    let none = RenameFlags::empty();
                    let a = OsStr::new("a");
                    // Whoever has it moves the lower directory into its own, and back.
                    if overlay.rename(&ROOT, Ino::ROOT, a, made.ino, a, none).is_ok() {
                        let moved = overlay.lookup(made.ino, a).unwrap();
                        let inner = overlay.lookup(moved.ino, OsStr::new("c")).unwrap();
                        let change = SetAttr { mode: Some(round), ..SetAttr::default() };
                        overlay.setattr(&ROOT, inner.ino, None, &change).unwrap();
                        overlay.forget(inner.ino, 1);
                        overlay.forget(moved.ino, 1);
                        overlay.rename(&ROOT, made.ino, a, Ino::ROOT, a, none).unwrap();
                    }
                    let mut accept = |entry: &thawfs::overlay::DirEntry<'_>| {
                        if let Some(attr) = entry.attr {
                            overlay.forget(attr.ino, 1);
                        }
                        ControlFlow::Continue(())
                    };
                    overlay.readdir(Ino::ROOT, 0, true, &mut accept).unwrap();
                    overlay.rmdir(Ino::ROOT, &own).unwrap();
                    overlay.forget(made.ino, 1);
                }
            });
        }
    });
    assert_eq!(overlay.node_count(), 1);
    let mut side = Merged { overlay: Arc::into_inner(overlay).unwrap(), plus: true };
    let names = |tree: overlay_support::Tree| tree.into_keys().collect::<Vec<_>>();
    assert_eq!(names(side.tree()), names(Plain(source().tree.clone()).tree()));
}

/// One listing goes on while another begins anew, and names are copied up, made and removed meanwhile.
#[test]
fn a_listing_shows_what_was_there_all_the_while_once() {
    let dir = tempfile::tempdir().unwrap();
    let archive = packed_many(dir.path(), 60);
    for (plus, parts) in [false, true].into_iter().flat_map(|plus| [(plus, 5), (plus, 17)]) {
        let dir = tempfile::tempdir().unwrap();
        let overlay = open_overlay(dir.path(), &archive, Options::default());
        let many = overlay.lookup(Ino::ROOT, OsStr::new("many")).unwrap().ino;
        let make = |name: String| {
            let made = overlay.mknod(&ROOT, many, OsStr::new(&name), libc::S_IFREG | 0o644, 0);
            overlay.forget(made.unwrap().ino, 1);
        };
        (0..30).for_each(|i| make(format!("upper{i}")));
        // A part of the listing: where it ends, and its names.
        let part = |from: u64| {
            let (mut next, mut names) = (from, Vec::new());
            let mut sink = |entry: &thawfs::overlay::DirEntry<'_>| {
                if names.len() == parts {
                    return ControlFlow::Break(());
                }
                next = entry.next_cookie;
                names.push(entry.name.to_str().unwrap().to_owned());
                if let Some(attr) = entry.attr {
                    overlay.forget(attr.ino, 1);
                }
                ControlFlow::Continue(())
            };
            overlay.readdir(many, from, plus, &mut sink).unwrap();
            (next, names)
        };
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let (mut from, mut round) = (0, 0);
        loop {
            let (next, names) = part(from);
            if names.is_empty() {
                break;
            }
            names.into_iter().for_each(|name| *seen.entry(name).or_default() += 1);
            from = next;
            // Copied up, from either end.
            for i in [round, 59 - round] {
                let name = format!("lower{i}");
                // Unless it was removed before.
                let Ok(file) = overlay.lookup(many, OsStr::new(&name)) else { continue };
                let file = file.ino;
                let change = SetAttr { mode: Some(0o600), ..SetAttr::default() };
                overlay.setattr(&ROOT, file, None, &change).unwrap();
                overlay.forget(file, 1);
            }
            make(format!("made{round}"));
            if round % 2 == 0 {
                overlay.unlink(many, OsStr::new(&format!("upper{}", 29 - round))).unwrap();
                overlay.unlink(many, OsStr::new(&format!("lower{}", 30 + round))).unwrap();
            }
            // What another program lists is what the first goes on with.
            part(0);
            round += 1;
        }
        let stays = |kind: &str, i: i32| {
            let gone = kind == "upper" && 29 - i < round && (29 - i) % 2 == 0
                || kind == "lower" && (0..round).any(|at| at % 2 == 0 && i == 30 + at);
            (!gone).then(|| format!("{kind}{i}"))
        };
        let stayed = (0..30)
            .filter_map(|i| stays("upper", i))
            .chain((0..60).filter_map(|i| stays("lower", i)));
        for name in stayed.chain([".".into(), "..".into()]) {
            assert_eq!(seen.get(&name), Some(&1), "{name} after {round} rounds");
        }
        assert!(seen.values().all(|count| *count == 1), "{seen:?}");
    }
}

/// Set in the child that runs as an ordinary user.
const CHILD: &str = "THAWFS_ORDINARY_USER";

/// Runs `test` as an ordinary user where this is root. Says whether it was so, and there is no more to do.
fn ran_as_nobody(test: &str) -> bool {
    use std::os::unix::process::CommandExt;
    if std::env::var_os(CHILD).is_some() || !is_root() {
        return false;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(only(module_path!(), test))
        .env(CHILD, "1")
        .uid(65534)
        .gid(65534)
        .output();
    match output {
        Ok(output) => assert_passed(&output),
        Err(error) => skip(test, &format!("it cannot run as nobody: {error}")),
    }
    true
}

/// What works without any privilege: marks in `user.*`, and owners left as they are.
#[test]
fn an_ordinary_user_can_keep_an_upper() {
    if ran_as_nobody("an_ordinary_user_can_keep_an_upper") {
        return;
    }
    let user = rustix::process::geteuid().as_raw();
    let caller = Caller { uid: user, gid: rustix::process::getegid().as_raw(), umask: 0o022 };
    let dir = tempfile::tempdir().unwrap();
    let mut side = merged(dir.path());
    let none = RenameFlags::empty();
    side.chmod(path("a/b/a"), 0o600).unwrap();
    side.rename(path("a"), path("moved"), none).unwrap();
    side.write(path("moved/c"), 0, b"written", libc::O_WRONLY).unwrap();
    side.unlink(path("moved/b/c")).unwrap();
    side.rmdir(path("c/a")).unwrap();
    side.mkdir(path("a"), 0o700).unwrap();
    side.chown(path("a"), caller.uid, caller.gid).unwrap();
    assert_eq!(side.chown(path("a"), 0, 0), Err(Errno::PERM));
    let made = side.overlay.mkdir(&caller, Ino::ROOT, OsStr::new("made"), 0o777).unwrap();
    assert_eq!((made.uid, made.perm & 0o022), (user, 0));
    side.overlay.forget(made.ino, 1);
    let before = side.tree();
    drop(side);
    let after = merged(dir.path()).tree();
    assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    for (path, seen) in &before {
        assert!(after[path] == *seen, "{path:?} after a remount");
    }
    assert_eq!(after[path("moved/b/a")].contents, bytes(1, 300_000));
    assert!(after[path("b")].contents.starts_with(b"written"), "the other name of moved/c");
}

/// An archive's bytes from a store that can be made to stop answering.
struct Unsteady {
    inner: FileBlob,
    down: AtomicBool,
    waits: AtomicUsize,
}

impl Blob for Unsteady {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn get(&self, _range: ByteRange) -> Option<bytes::Bytes> {
        None
    }

    fn fetch(&self, ranges: &[ByteRange]) -> Result<Vec<bytes::Bytes>, thawfs::cache::Error> {
        if self.down.load(Ordering::Relaxed) {
            self.waits.fetch_add(1, Ordering::Relaxed);
            let error = std::io::Error::from_raw_os_error(libc::EIO);
            return Err(thawfs::cache::Error::Io(Arc::new(error)));
        }
        self.inner.fetch(ranges)
    }

    fn prefetch(&self, _range: ByteRange) {}
}

#[test]
fn a_listing_waits_once_for_a_store_that_does_not_answer() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree/d");
    std::fs::create_dir_all(&tree).unwrap();
    for i in 0..1000 {
        std::fs::write(tree.join(format!("file{i:04}")), b"").unwrap();
    }
    let packed = dir.path().join("archive");
    pack(&dir.path().join("tree"), &packed);
    let blob = Arc::new(Unsteady {
        inner: FileBlob::open(&packed, 0).unwrap(),
        down: AtomicBool::new(false),
        waits: AtomicUsize::new(0),
    });
    // Nothing is held, and one metadata block is kept: the last that was read.
    let none = OpenOptions { decoded_bytes: 0, metadata_bytes: 0, resident_bytes: 0 };
    let archive = Arc::new(Archive::open(Arc::clone(&blob) as Arc<dyn Blob>, none).unwrap());
    let overlay = Overlay::new(archive, None, Options::default()).unwrap();
    let before = overlay.node_count();
    let d = overlay.lookup(Ino::ROOT, OsStr::new("d")).unwrap();
    let (mut from, mut described, mut bare, mut problems) = (0, 0, 0, 0);
    let mut counted = Vec::new();
    let mut calls = 0;
    loop {
        let start = from;
        calls += 1;
        let listed = overlay.readdir(d.ino, start, true, &mut |entry| {
            if counted.len() == 400 && calls == 1 {
                // Down in the midst of a call.
                blob.down.store(true, Ordering::Relaxed);
            }
            from = entry.next_cookie;
            if entry.name != "." && entry.name != ".." {
                counted.push(entry.ino);
                problems += usize::from(entry.problem.is_some());
                if entry.attr.is_some() { &mut described } else { &mut bare }.add_assign(1);
            }
            ControlFlow::Continue(())
        });
        if blob.down.load(Ordering::Relaxed) {
            // The listing itself breaks off where it has to be fetched, and was given up to there.
            let waits = blob.waits.load(Ordering::Relaxed);
            assert!(waits <= 2, "{waits} waits in one call");
            assert_eq!(problems, waits - usize::from(listed.is_err()));
            blob.down.store(false, Ordering::Relaxed);
        } else {
            listed.unwrap();
        }
        if from == start {
            break;
        }
    }
    assert_eq!(described + bare, 1000, "every name came once");
    assert!(described > 400 && problems > 0, "{described} described, {problems} problems");
    for ino in counted {
        overlay.forget(ino, 1);
    }
    overlay.forget(d.ino, 1);
    assert_eq!(overlay.node_count(), before, "every lookup that was counted was given back");
}

/// Attributes of a file that its owner has closed cannot be read, nor written, but by who opens it again.
#[test]
fn an_ordinary_users_closed_files_stay_known() {
    if ran_as_nobody("an_ordinary_users_closed_files_stay_known") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("d")).unwrap();
    for name in ["closed", "read", "d/one"] {
        std::fs::write(tree.join(name), name).unwrap();
    }
    std::fs::hard_link(tree.join("d/one"), tree.join("other")).unwrap();
    std::os::unix::fs::symlink("nowhere", tree.join("link")).unwrap();
    rustix::fs::linkat(CWD, tree.join("link"), CWD, tree.join("link2"), AtFlags::empty()).unwrap();
    let mode = |name: &str, mode: u32| {
        rustix::fs::chmod(tree.join(name), Mode::from_raw_mode(mode)).unwrap();
    };
    mode("read", 0o444);
    mode("d/one", 0o444);
    let archive = dir.path().join("archive");
    pack(&tree, &archive);
    let open =
        || Merged { overlay: open_overlay(dir.path(), &archive, Options::default()), plus: true };
    let none = RenameFlags::empty();
    let mut side = open();
    side.chmod(path("closed"), 0).unwrap();
    side.mkdir(path("dir"), 0o700).unwrap();
    side.chmod(path("dir"), 0).unwrap();
    side.rename(path("read"), path("moved"), none).unwrap();
    // Hard links: of a file that may not be written, and of what can have no attribute of a user's.
    side.rename(path("d/one"), path("d/two"), none).unwrap();
    side.rename(path("link"), path("link3"), none).unwrap();
    side.rename(path("d"), path("e"), none).unwrap();
    let names = |side: &Merged| {
        let list = side.list(Ino::ROOT);
        list.into_iter().map(|(name, ..)| name.into_string().unwrap()).collect::<BTreeSet<_>>()
    };
    let expected = ["closed", "dir", "e", "link2", "link3", "moved", "other"].map(str::to_owned);
    for remounted in [false, true] {
        if remounted {
            drop(side);
            side = open();
        }
        assert_eq!(names(&side), BTreeSet::from(expected.clone()), "remounted: {remounted}");
        for (name, mode, nlink) in [("closed", 0, 1), ("moved", 0o444, 1), ("e/two", 0o444, 2)] {
            let chain = side.resolve(path(name)).unwrap();
            let attr = chain.attrs.last().unwrap();
            assert_eq!((attr.perm, attr.nlink), (mode, nlink), "{name}, remounted: {remounted}");
        }
        assert_eq!(side.resolve(path("dir")).unwrap().attrs[0].perm, 0);
        for (name, contents) in [("moved", "read"), ("e/two", "d/one"), ("other", "d/one")] {
            let chain = side.resolve(path(name)).unwrap();
            assert_eq!(side.contents(chain.last()), contents.as_bytes(), "{name}");
        }
        let link = side.resolve(path("link3")).unwrap();
        assert_eq!(side.overlay.readlink(link.last()).unwrap(), b"nowhere");
    }
    side.chmod(path("closed"), 0o600).unwrap();
    let chain = side.resolve(path("closed")).unwrap();
    assert_eq!(side.contents(chain.last()), b"closed");
}

/// An archive's bytes from a store that can be made to answer nobody until it is opened again.
struct Shut {
    inner: FileBlob,
    /// Held while it is shut.
    door: parking_lot::Mutex<()>,
    waiting: AtomicUsize,
}

impl Blob for Shut {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn get(&self, _range: ByteRange) -> Option<bytes::Bytes> {
        None
    }

    fn fetch(&self, ranges: &[ByteRange]) -> Result<Vec<bytes::Bytes>, thawfs::cache::Error> {
        if self.door.try_lock().is_none() {
            if !thawfs::cache::may_wait() {
                return Err(thawfs::cache::Error::WouldWait);
            }
            self.waiting.fetch_add(1, Ordering::SeqCst);
            drop(self.door.lock());
        }
        self.inner.fetch(ranges)
    }

    fn prefetch(&self, _range: ByteRange) {}
}

#[test]
fn who_must_not_wait_for_the_store_does_not_wait_for_a_walk_of_the_archive_either() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["d/near", "e/far"] {
        let file = dir.path().join("tree").join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, name).unwrap();
    }
    let packed = dir.path().join("archive");
    pack(&dir.path().join("tree"), &packed);
    let known = Overlay::new(open_archive(&packed), None, Options::default()).unwrap();
    let known = Merged { overlay: known, plus: false };
    let numbers = ["d/near", "e/far"].map(|name| known.resolve(path(name)).unwrap().last());

    let blob = Arc::new(Shut {
        inner: FileBlob::open(&packed, 0).unwrap(),
        door: parking_lot::Mutex::new(()),
        waiting: AtomicUsize::new(0),
    });
    let none = OpenOptions { decoded_bytes: 0, metadata_bytes: 0, resident_bytes: 0 };
    let archive = Archive::open(Arc::clone(&blob) as Arc<dyn Blob>, none).unwrap();
    let overlay = Overlay::new(Arc::new(archive), None, Options::default()).unwrap();
    let shut = blob.door.lock();
    std::thread::scope(|scope| {
        // By their numbers alone, as by a file handle.
        let walks = scope.spawn(|| overlay.lookup_again(numbers[0]).map(|attr| attr.ino));
        while blob.waiting.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        let refused = thawfs::cache::without_waiting(|| overlay.lookup_again(numbers[1]));
        assert!(refused.unwrap_err().is_would_wait());
        assert!(!walks.is_finished());
        drop(shut);
        assert_eq!(walks.join().unwrap().unwrap(), numbers[0]);
    });
    assert_eq!(overlay.lookup_again(numbers[1]).unwrap().ino, numbers[1]);
}

#[test]
fn an_upper_takes_no_index_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let [upper, work, moved, moved_work] =
        ["upper", "work", "moved", "moved.work"].map(|name| dir.path().join(name));
    let open = || {
        let upper = Upper::open(&upper, &work)?;
        let archive = open_archive(&source().archive);
        Ok(Merged { overlay: Overlay::new(archive, Some(upper), Options::default())?, plus: false })
    };
    let read = |merged: &Merged, file| merged.contents(merged.resolve(path(file)).unwrap().last());
    let refused = |opened: Result<Merged, Error>, what: &str| {
        let error = opened.err().unwrap_or_else(|| panic!("{what}: it opens"));
        assert!(matches!(error, Error::Unusable { .. }), "{what}: {error}");
        assert!(error.to_string().contains("belongs to another upper"), "{what}: {error}");
    };
    for dir in [&upper, &work] {
        std::fs::create_dir(dir).unwrap();
    }
    // One of three names of a file of the archive; the index has what the others show.
    let mut merged = open().unwrap();
    merged.write(path("b"), 0, b"changed", libc::O_WRONLY).unwrap();
    let changed = read(&merged, "c/b");
    assert!(changed.starts_with(b"changed"));
    drop(merged);

    std::fs::rename(&upper, &moved).unwrap();
    std::fs::create_dir(&upper).unwrap();
    refused(open(), "a new upper");
    assert!(std::fs::read_dir(work.join("index")).unwrap().next().is_some(), "it was removed");
    std::fs::rename(&work, &moved_work).unwrap();
    std::fs::create_dir(&work).unwrap();
    assert_eq!(read(&open().unwrap(), "c/b"), bytes(2, 5000));

    // Both have marks now, each its own.
    for (from, to) in [(&work, "spare.work"), (&moved_work, "work")] {
        std::fs::rename(from, dir.path().join(to)).unwrap();
    }
    refused(open(), "another upper");
    std::fs::rename(&upper, dir.path().join("spare")).unwrap();
    std::fs::rename(&moved, &upper).unwrap();
    assert_eq!(read(&open().unwrap(), "c/b"), changed);

    // Where the other one is gone, nothing of it is left.
    std::fs::rename(&upper, &moved).unwrap();
    std::fs::rename(&work, &moved_work).unwrap();
    for (gone, name) in [("spare", "upper"), ("spare.work", "work")] {
        std::fs::rename(dir.path().join(gone), dir.path().join(name)).unwrap();
    }
    let mut merged = open().unwrap();
    merged.write(path("b"), 0, b"changed", libc::O_WRONLY).unwrap();
    drop(merged);
    std::fs::remove_dir_all(&upper).unwrap();
    std::fs::create_dir(&upper).unwrap();
    assert_eq!(read(&open().unwrap(), "c/b"), bytes(2, 5000));
    for (from, to) in [(&moved, &upper), (&moved_work, &work)] {
        std::fs::remove_dir_all(to).unwrap();
        std::fs::rename(from, to).unwrap();
    }

    // As an older program has left them.
    let prefix = if is_root() { "trusted" } else { "user" };
    for marked in [upper.clone(), work.join("index")] {
        let mark = format!("{prefix}.overlay.thawfs.index");
        if rustix::fs::removexattr(&marked, &*mark).is_err() {
            rustix::fs::removexattr(&marked, "user.overlay.thawfs.index").unwrap();
        }
    }
    assert_eq!(read(&open().unwrap(), "c/b"), changed);
}
