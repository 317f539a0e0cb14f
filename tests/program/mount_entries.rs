//! One entry that cannot be described takes nothing else with it: its directory is listed, its neighbours
//! are what they are, and the reason is told.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::mount::{Bench, can_mount};
use crate::support::surrounding::{Need, cannot_run, has};
use rustix::fs::XattrFlags;
use thawfs::cache::FileBlob;
use thawfs::squashfs::{Archive, OpenOptions};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn names(dir: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn status(bench: &Bench, mountpoint: &Path) -> serde_json::Value {
    let said = bench.ok(&["status", text(mountpoint), "--json"]);
    serde_json::from_str::<serde_json::Value>(&said).unwrap()[0].take()
}

/// Insists that `status` and the log of the one mount say that something failed, and why.
fn assert_told(bench: &Bench, mountpoint: &Path, reason: &str) {
    let faults = status(bench, mountpoint)["faults"].take();
    assert!(faults["count"].as_u64().unwrap() > 0, "{faults}");
    assert!(faults["last"].as_str().unwrap().contains(reason), "{faults}");
    let log = fs::read_dir(bench.state_dir().join("mounts")).unwrap().next().unwrap().unwrap();
    let log = fs::read_to_string(log.path().join("log")).unwrap();
    assert!(log.contains(reason), "the log says: {log}");
}

fn assert_eio<T>(result: std::io::Result<T>) {
    assert_eq!(result.err().and_then(|error| error.raw_os_error()), Some(libc::EIO));
}

/// A metacopy whose data is nowhere, in either form of upper; the one of root is for root to write.
fn damage(file: &Path) {
    rustix::fs::setxattr(file, "user.overlay.metacopy", b"", XattrFlags::empty()).unwrap();
    let roots = rustix::fs::setxattr(file, "trusted.overlay.metacopy", b"", XattrFlags::empty());
    assert!(roots.is_ok() || !has(Need::Root), "{roots:?}");
}

#[test]
fn a_bad_file_of_the_upper_is_listed_and_alone_fails() {
    if !can_mount("a_bad_file_of_the_upper_is_listed_and_alone_fails") {
        return;
    }
    let bench = Bench::new();
    let tree = bench.directory("tree");
    fs::create_dir(tree.join("d")).unwrap();
    fs::write(tree.join("d/old"), "hi").unwrap();
    fs::write(tree.join("small"), "hi").unwrap();
    let archive = bench.archive(&tree, "data.sqsh", &[]);
    let (mountpoint, upper) = (bench.directory("mnt"), bench.directory("up"));
    let arguments =
        ["mount", text(&archive), text(&mountpoint), "--upper", text(&upper)].map(str::to_owned);
    bench.ok(&arguments);
    for name in ["d/new", "d/zfine", "bad"] {
        fs::write(mountpoint.join(name), "new").unwrap();
    }
    fs::write(mountpoint.join("d/old"), "changed").unwrap();
    bench.ok(&["unmount", text(&mountpoint)]);
    for name in ["d/new", "bad"] {
        damage(&upper.join(name));
    }

    // One in the root is no reason not to mount.
    bench.ok(&arguments);
    assert_eq!(names(&mountpoint), set(&["bad", "d", "small"]));
    for _ in 0..2 {
        // Listed with attributes, and a second time maybe from what the kernel remembers.
        assert_eq!(names(&mountpoint.join("d")), set(&["new", "old", "zfine"]));
    }
    let listed = fs::read_dir(mountpoint.join("d")).unwrap().map(Result::unwrap);
    assert!(listed.into_iter().all(|entry| entry.file_type().unwrap().is_file()));
    for (name, contents) in [("d/old", "changed"), ("d/zfine", "new"), ("small", "hi")] {
        assert_eq!(fs::read_to_string(mountpoint.join(name)).unwrap(), contents);
    }
    for name in ["d/new", "bad"] {
        assert_eio(fs::symlink_metadata(mountpoint.join(name)));
        assert_eio(fs::read(mountpoint.join(name)));
        assert_told(&bench, &mountpoint, "has its data in no file below it");
    }
    // ls(1) shows the others, too.
    let ls = Command::new("ls").arg("-l").arg(mountpoint.join("d")).output().unwrap();
    let shown = String::from_utf8_lossy(&ls.stdout).into_owned();
    assert!(!ls.status.success() && shown.contains("zfine") && shown.contains("old"), "{shown}");
    // And our own command says which file it was that kept it.
    let created = bench.run(&[
        "create",
        text(&mountpoint),
        "--bucket",
        &format!("file://{}", bench.directory("box").display()),
    ]);
    let said = String::from_utf8_lossy(&created.stderr).into_owned();
    assert!(!created.status.success(), "a backup without a file that is there");
    assert!(said.contains("bad") || said.contains("d/new"), "{said}");
    bench.ok(&["unmount", text(&mountpoint)]);
    bench.assert_nothing_left();
}

/// Where the inode of `path` lies in an archive whose inodes are not compressed.
fn place_of(archive: &Path, path: &str) -> u64 {
    let blob = std::sync::Arc::new(FileBlob::open(archive, 0).unwrap());
    let opened = Archive::open(blob, OpenOptions::default()).unwrap();
    let mut inode = opened.inode(opened.root()).unwrap();
    for name in path.split('/') {
        let entry = opened.lookup(&inode, name.as_bytes()).unwrap().unwrap();
        inode = opened.inode(entry.inode).unwrap();
    }
    let reference = inode.reference;
    opened.superblock().inode_table.0 + reference.block() + 2 + u64::from(reference.offset())
}

/// An archive in which one file's inode, `d/bad`, is damaged.
fn archive_with_a_bad_inode(bench: &Bench) -> PathBuf {
    let tree = bench.directory("tree");
    fs::create_dir(tree.join("d")).unwrap();
    for name in ["d/a", "d/bad", "d/z"] {
        fs::write(tree.join(name), name).unwrap();
    }
    let archive = bench.archive(&tree, "data.sqsh", &["-noI"]);
    let mut bytes = fs::read(&archive).unwrap();
    // The inode's type: there are 14.
    bytes[usize::try_from(place_of(&archive, "d/bad")).unwrap()] = 0x7f;
    fs::write(&archive, bytes).unwrap();
    archive
}

#[test]
fn a_damaged_inode_is_listed_and_alone_fails() {
    if !can_mount("a_damaged_inode_is_listed_and_alone_fails") {
        return;
    }
    let bench = Bench::new();
    let archive = archive_with_a_bad_inode(&bench);
    let expected = set(&["a", "bad", "z"]);
    if !cannot_run("what the kernel makes of a damaged inode", &[Need::Root]) {
        let kernel = bench.directory("kernel");
        let mount =
            Command::new("mount").args(["-o", "loop,ro"]).arg(&archive).arg(&kernel).status();
        assert!(mount.unwrap().success());
        assert_eq!(names(&kernel.join("d")), expected, "what the kernel makes of it");
        assert!(Command::new("umount").arg(&kernel).status().unwrap().success());
    }

    let mountpoint = bench.directory("mnt");
    for read_only in [true, false] {
        let mut arguments = vec!["mount", text(&archive), text(&mountpoint)];
        arguments.extend(read_only.then_some("--read-only"));
        bench.ok(&arguments);
        assert_eq!(names(&mountpoint.join("d")), expected);
        for name in ["a", "z"] {
            let path = mountpoint.join("d").join(name);
            assert_eq!(fs::read_to_string(path).unwrap(), format!("d/{name}"));
        }
        assert_eio(fs::symlink_metadata(mountpoint.join("d/bad")));
        assert_told(&bench, &mountpoint, "corrupt archive: inode");
        if !read_only {
            // The directory can be worked in, whatever the kind of half.
            fs::write(mountpoint.join("d/new"), "new").unwrap();
            fs::rename(mountpoint.join("d/a"), mountpoint.join("d/b")).unwrap();
            assert_eq!(names(&mountpoint.join("d")), set(&["b", "bad", "new", "z"]));
        }
        bench.ok(&["unmount", text(&mountpoint)]);
    }
    bench.assert_nothing_left();
}

#[test]
fn commands_on_an_archive_with_a_damaged_inode_name_it() {
    let bench = Bench::new();
    let archive = archive_with_a_bad_inode(&bench);
    let archive = text(&archive);
    for (arguments, shown) in [
        (vec!["ls", archive, "/d"], "a\nbad\nz\n"),
        (vec!["ls", archive, "-R"], "d\nd/a\nd/bad\nd/z\n"),
    ] {
        let output = bench.run(&arguments);
        assert_eq!(String::from_utf8_lossy(&output.stdout), shown, "{arguments:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(6), "{arguments:?}: {said}");
        assert!(said.contains("bad: corrupt archive: inode at byte"), "{said}");
    }
    let long = bench.run(&["ls", "-l", archive, "/d"]);
    let lines: Vec<_> =
        String::from_utf8(long.stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[1].starts_with("??????????") && lines[1].ends_with(" bad"), "{lines:?}");
    let json = bench.run(&["ls", "--json", archive, "/d"]);
    let listed: serde_json::Value =
        serde_json::Deserializer::from_slice(&json.stdout).into_iter().next().unwrap().unwrap();
    assert_eq!(listed[2]["path"], "z");
    assert_eq!(listed[1]["path"], "bad");
    assert!(listed[1]["error"].as_str().unwrap().contains("inode at byte"), "{listed}");

    // Half a tree would pass for a whole one.
    let into = bench.path("out");
    let extracted = bench.run(&["extract", archive, text(&into)]);
    let said = String::from_utf8_lossy(&extracted.stderr).into_owned();
    assert!(!extracted.status.success() && said.contains("d/bad"), "{said}");
    assert!(!into.exists());
}

#[test]
fn listing_what_cannot_be_described_leaks_no_lookup() {
    if !can_mount("listing_what_cannot_be_described_leaks_no_lookup") {
        return;
    }
    let bench = Bench::new();
    let archive = archive_with_a_bad_inode(&bench);
    let mountpoint = bench.directory("mnt");
    bench.ok(&["mount", text(&archive), text(&mountpoint)]);
    let dir = mountpoint.join("d");
    let mut known = Vec::new();
    for _ in 0..20 {
        // A change, so that the kernel lists anew.
        fs::write(dir.join("new"), "").unwrap();
        assert_eq!(names(&dir), set(&["a", "bad", "new", "z"]));
        fs::remove_file(dir.join("new")).unwrap();
        known.push(status(&bench, &mountpoint)["nodes"].as_u64().unwrap());
    }
    // The root, the directory, and two files. The kernel gives lookups back when it has time to.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while status(&bench, &mountpoint)["nodes"] != 4 {
        assert!(std::time::Instant::now() < deadline, "known: {known:?}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(fs::metadata(&dir).unwrap().is_dir() && !dir.metadata().unwrap().file_type().is_fifo());
    bench.ok(&["unmount", text(&mountpoint)]);
    bench.assert_nothing_left();
}

#[test]
fn a_listing_that_breaks_off_gives_what_comes_before() {
    if !can_mount("a_listing_that_breaks_off_gives_what_comes_before") {
        return;
    }
    let bench = Bench::new();
    let tree = bench.directory("tree/d");
    for n in 0..300 {
        fs::write(tree.join(format!("file{n:03}")), "").unwrap();
    }
    let archive = bench.archive(&bench.path("tree"), "data.sqsh", &["-noI"]);
    let mut bytes = fs::read(&archive).unwrap();
    // A name's length and type come before it; there is no type 9.
    let name = b"file250";
    let found = bytes.windows(name.len()).position(|window| window == name).unwrap();
    bytes[found - 4] = 9;
    fs::write(&archive, bytes).unwrap();
    let mountpoint = bench.directory("mnt");
    bench.ok(&["mount", text(&archive), text(&mountpoint)]);
    let (mut listed, mut errors) = (0, 0);
    for entry in fs::read_dir(mountpoint.join("d")).unwrap() {
        match entry {
            Ok(entry) => {
                let name = format!("file{listed:03}");
                assert_eq!(entry.file_name().to_str(), Some(&*name));
                listed += 1;
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO));
                errors += 1;
                break;
            }
        }
    }
    assert_eq!((listed, errors), (250, 1));
    assert_told(&bench, &mountpoint, "an entry of type 9");
    assert_eq!(fs::read_to_string(mountpoint.join("d/file249")).unwrap(), "");
    bench.ok(&["unmount", text(&mountpoint)]);
    bench.assert_nothing_left();
}

#[test]
fn what_is_replaced_behind_the_mount_is_stale_and_says_so() {
    if !can_mount("what_is_replaced_behind_the_mount_is_stale_and_says_so") {
        return;
    }
    let bench = Bench::new();
    let tree = bench.directory("tree");
    fs::write(tree.join("small"), "hi").unwrap();
    let archive = bench.archive(&tree, "data.sqsh", &[]);
    let (mountpoint, upper) = (bench.directory("mnt"), bench.directory("up"));
    let upper_option = ["--upper", text(&upper), "-o", "attr_ttl=0"];
    bench.ok(&[&["mount", text(&archive), text(&mountpoint)], &upper_option[..]].concat());
    fs::write(mountpoint.join("new"), "new").unwrap();
    let open = fs::File::open(mountpoint.join("new")).unwrap();
    fs::write(upper.join("other"), "other").unwrap();
    fs::rename(upper.join("other"), upper.join("new")).unwrap();
    let error = open.metadata().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{error}");
    assert_told(&bench, &mountpoint, "was replaced by another program");
    drop(open);
    bench.ok(&["unmount", text(&mountpoint)]);
    bench.assert_nothing_left();
}

#[test]
fn a_directory_that_its_owner_may_not_search_is_listed() {
    if !can_mount("a_directory_that_its_owner_may_not_search_is_listed") {
        return;
    }
    let bench = Bench::new();
    let tree = bench.directory("tree");
    fs::create_dir(tree.join("d")).unwrap();
    fs::write(tree.join("d/old"), "old").unwrap();
    let archive = bench.archive(&tree, "data.sqsh", &[]);
    let mountpoint = bench.directory("mnt");
    bench.ok(&["mount", text(&archive), text(&mountpoint)]);
    let dir = mountpoint.join("d");
    fs::write(dir.join("new"), "new").unwrap();
    fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(names(&dir), set(&["new", "old"]));
    // Root of a user namespace may search what belongs to its one user.
    if !rustix::process::geteuid().is_root() {
        let shut = fs::symlink_metadata(dir.join("new")).unwrap_err();
        assert_eq!(shut.raw_os_error(), Some(libc::EACCES));
    }
    bench.ok(&["unmount", text(&mountpoint)]);
    bench.assert_nothing_left();
}
