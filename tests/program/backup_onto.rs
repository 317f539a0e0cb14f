//! A backup of what another was restored to: only what was changed is packed and sent, and what comes of it is the same
//! as if all were.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::mount::{Bench, can_mount, can_mount_with};
use crate::support::place::Place;
use crate::support::s3::Seen;
use crate::support::surrounding::Need;
use crate::support::trees::{assert_same, seen};

/// Size of the parts of an upload.
const PART: u64 = 8 << 20;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Bytes that do not compress; others for another seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(len)
    .collect()
}

/// A tree of several parts, with large files and small ones.
fn large_tree(bench: &Bench) -> PathBuf {
    let tree = bench.directory("tree");
    for n in 0..6 {
        fs::write(tree.join(format!("large-{n}")), noise(n, 6 << 20)).unwrap();
    }
    for n in 0..120 {
        let dir = tree.join(format!("dir-{}", n / 10));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("small-{n}")), noise(100 + n, 10_000)).unwrap();
    }
    fs::write(tree.join("config"), "before\n".repeat(1000)).unwrap();
    fs::write(tree.join("linked-1"), "of several names").unwrap();
    fs::hard_link(tree.join("linked-1"), tree.join("dir-0/linked-2")).unwrap();
    fs::write(tree.join("empty"), "").unwrap();
    File::create(tree.join("holes")).unwrap().write_all_at(b"end", 3 << 20).unwrap();
    std::os::unix::fs::symlink("config", tree.join("link")).unwrap();
    tree
}

/// The answer of a command that succeeds.
fn ok(place: &Place, arguments: &[&str]) -> Value {
    let (status, mut lines) = place.json(arguments);
    assert_eq!(status, 0, "{}: {arguments:?}: {lines:?}", place.name);
    lines.pop().unwrap()
}

fn id(created: &Value) -> &str {
    created["id"].as_str().unwrap()
}

/// Changes a little of everything.
fn change(root: &Path) {
    let at = |name: &str| root.join(name);
    File::options().append(true).open(at("config")).unwrap().write_all(b"after\n").unwrap();
    File::options().write(true).open(at("large-1")).unwrap().write_all_at(b"changed", 5).unwrap();
    fs::write(at("dir-1/new"), "new").unwrap();
    fs::create_dir(at("dir-1/made")).unwrap();
    fs::write(at("dir-1/made/in"), noise(77, 200_000)).unwrap();
    fs::remove_file(at("dir-2/small-20")).unwrap();
    fs::remove_dir_all(at("dir-3")).unwrap();
    fs::rename(at("dir-4"), at("dir-1/renamed")).unwrap();
    fs::rename(at("large-2"), at("large-moved")).unwrap();
    fs::set_permissions(at("dir-5/small-50"), fs::Permissions::from_mode(0o600)).unwrap();
    let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_234_567_890);
    File::options().write(true).open(at("dir-5/small-51")).unwrap().set_modified(then).unwrap();
    fs::hard_link(at("dir-6/small-60"), at("another-60")).unwrap();
    fs::remove_file(at("linked-1")).unwrap();
    fs::write(at("dir-7/small-70"), noise(170, 10_000)).unwrap();
    File::options().write(true).open(at("dir-7/small-71")).unwrap().set_len(3000).unwrap();
    // Written again as it was, which is a change all the same.
    let same = fs::read(at("dir-8/small-80")).unwrap();
    fs::write(at("dir-8/small-80"), same).unwrap();
}

/// Unpacks a backup beside what is there.
fn extracted(place: &Place, id: &str) -> PathBuf {
    let to = place.bench.plain_directory(&format!("extracted-{id}"));
    ok(place, &["restore", "--extract", "--preserve-privileged", id, text(&to.join("tree"))]);
    to.join("tree")
}

fn unmount(place: &Place, mountpoint: &Path) {
    place.bench.ok(&["unmount", text(mountpoint)]);
}

#[test]
fn a_backup_of_a_mount_sends_what_was_changed_and_holds_everything() {
    if !can_mount("a_backup_of_a_mount_sends_what_was_changed_and_holds_everything") {
        return;
    }
    for place in Place::both() {
        let tree = large_tree(&place.bench);
        let first = ok(&place, &["create", text(&tree)]);
        assert_eq!((&first["base"], &first["bytesKept"]), (&Value::Null, &0.into()));
        let mut parent = id(&first).to_owned();
        let target = place.bench.path("mnt");
        ok(&place, &["restore", &parent, text(&target)]);
        change(&target);
        if let Some(server) = &place.server {
            server.clear_log();
        }
        let second = ok(&place, &["create", text(&target)]);
        assert_eq!(second["base"], parent.as_str(), "{second}");
        let size = second["sizeBytes"].as_u64().unwrap();
        if let Some(server) = &place.server {
            let log = server.log();
            let length = |seen: &Seen| {
                let length = seen.headers.get("content-length");
                length.map_or(0, |len| len.to_str().unwrap().parse::<u64>().unwrap())
            };
            let sent: u64 = log.iter().map(length).sum();
            let is_copy = |seen: &&Seen| seen.headers.contains_key("x-amz-copy-source");
            let copies = log.iter().filter(is_copy).count() as u64;
            // A changed file is sent whole; the two parts, and tables besides.
            assert!(sent < (6 << 20) + 2 * PART + (1 << 20), "{sent} bytes sent of {size}");
            assert!(copies >= 2, "{copies}");
            // What these two parts have of the old archive, and its ends.
            assert!(server.get_bytes() < 2 * PART + (5 << 20), "{}", server.get_bytes());
        }
        let kept = second["bytesKept"].as_u64().unwrap();
        let all = second["bytes"].as_u64().unwrap();
        assert!(kept > 30 << 20 && all - kept < 8 << 20, "{kept} of {all}");
        // As if all were packed.
        let full = ok(&place, &["create", "--full", text(&target)]);
        assert_eq!((&full["base"], &full["bytes"]), (&Value::Null, &second["bytes"]), "{full}");
        // Once its parent is gone it is whole all the same.
        place.bench.ok(&["unmount", text(&target)]);
        ok(&place, &["delete", &parent]);
        ok(&place, &["verify", id(&second)]);
        let (second_tree, full_tree) =
            (extracted(&place, id(&second)), extracted(&place, id(&full)));
        assert_same(&second_tree, &full_tree, place.name);
        // And a third one onto that, of a mount in which nothing was changed but names.
        parent = id(&second).to_owned();
        ok(&place, &["restore", &parent, text(&target)]);
        assert_same(&target, &second_tree, "mounted");
        fs::rename(target.join("large-0"), target.join("dir-1/large")).unwrap();
        let third = ok(&place, &["create", text(&target)]);
        assert_eq!(
            (&third["base"], &third["bytesKept"]),
            (&parent.as_str().into(), &third["bytes"])
        );
        assert_same(&target, &extracted(&place, id(&third)), "the third");
        unmount(&place, &target);
        place.bench.assert_nothing_left();
    }
}

/// Maps a file, changes a byte of it, and waits for its standard input to end with the mapping in place.
const MAPPER: &str = r#"
import mmap, sys
file = open(sys.argv[1], "r+b")
mapped = mmap.mmap(file.fileno(), 0)
mapped[3] = 0x21
print(".", flush=True)
sys.stdin.read()
"#;

#[test]
fn what_no_server_has_been_told_of_yet_is_in_the_backup() {
    if !can_mount_with("what_no_server_has_been_told_of_yet_is_in_the_backup", &[Need::Processes]) {
        return;
    }
    for options in [&["-o", "rw"], &["-o", "no_passthrough"]] {
        let place = Place::local();
        let tree = place.bench.directory("tree");
        for name in ["written", "mapped", "as-old", "other"] {
            fs::write(tree.join(name), noise(3, 50_000)).unwrap();
        }
        let first = ok(&place, &["create", text(&tree)]);
        let target = place.bench.path("mnt");
        ok(&place, &[&["restore"], &options[..], &[id(&first), text(&target)]].concat());
        let at = |name: &str| target.join(name);
        // An ordinary user's is held back by the kernel: written and not closed, with its time as it was.
        let written = File::options().write(true).open(at("written")).unwrap();
        written.write_all_at(b"!", 3).unwrap();
        let as_old = File::options().write(true).open(at("as-old")).unwrap();
        let modified = as_old.metadata().unwrap().modified().unwrap();
        as_old.write_all_at(b"!", 3).unwrap();
        as_old.set_modified(modified).unwrap();
        let mut mapper = Command::new("python3")
            .args(["-c", MAPPER, text(&at("mapped"))])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut dot = [0];
        std::io::Read::read_exact(mapper.stdout.as_mut().unwrap(), &mut dot).unwrap();
        let second = ok(&place, &["create", text(&target)]);
        assert_eq!(second["base"], first["id"], "{second}");
        assert_eq!(second["bytesKept"], 50_000, "{second}");
        let copy = extracted(&place, id(&second));
        for name in ["written", "mapped", "as-old"] {
            assert_eq!(fs::read(copy.join(name)).unwrap()[3], b'!', "{options:?}: {name}");
        }
        drop(mapper.stdin.take());
        mapper.wait().unwrap();
        drop((written, as_old));
        unmount(&place, &target);
    }
}

#[test]
fn where_it_cannot_begin_with_another_it_says_why_and_packs_everything() {
    if !can_mount("where_it_cannot_begin_with_another_it_says_why_and_packs_everything") {
        return;
    }
    let place = Place::s3_as(|config| config.copies = false);
    let tree = large_tree(&place.bench);
    let first = ok(&place, &["create", text(&tree)]);
    let target = place.bench.path("mnt");
    ok(&place, &["restore", id(&first), text(&target)]);
    let whole = |arguments: &[&str], reason: &str| {
        let made = ok(&place, &[&["create", text(&target)], arguments].concat());
        let because = made["wholeBecause"].as_str().unwrap_or_default();
        assert!(because.contains(reason) && made["base"].is_null(), "{arguments:?}: {made}");
        assert_eq!((&made["bytes"], &made["bytesKept"]), (&first["bytes"], &0.into()), "{made}");
        assert_same(&target, &extracted(&place, id(&made)), reason);
    };
    whole(&[], "the store does not copy it");
    whole(&["--compression", "lz4"], "of zstd, and not of lz4");
    let other = place.bench.path("elsewhere");
    let made =
        ok(&place, &["create", text(&target), "--bucket", &format!("file://{}", text(&other))]);
    let because = made["wholeBecause"].as_str().unwrap_or_default();
    assert!(because.contains("no backup in this bucket"), "{made}");
    // What is asked for needs no reason, and what is no mount neither.
    let full = ok(&place, &["create", "--full", text(&target)]);
    assert_eq!((&full["base"], &full["wholeBecause"]), (&Value::Null, &Value::Null));
    let plain = ok(&place, &["create", text(&tree)]);
    assert_eq!((&plain["base"], &plain["wholeBecause"]), (&Value::Null, &Value::Null));
    let said = place.run(&["create", text(&target)]);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("all was packed: the store does not copy it"), "{said}");
    unmount(&place, &target);
    // A backup is deleted under its mount, of which all is in memory.
    let small = place.bench.directory("small");
    fs::write(small.join("file"), "data").unwrap();
    let first = ok(&place, &["create", text(&small)]);
    ok(&place, &["restore", id(&first), text(&target)]);
    assert_eq!(fs::read(target.join("file")).unwrap(), b"data");
    ok(&place, &["delete", id(&first)]);
    let made = ok(&place, &["create", text(&target)]);
    let because = made["wholeBecause"].as_str().unwrap_or_default();
    assert!(because.contains("cannot be read"), "{made}");
    assert_same(&target, &extracted(&place, id(&made)), "of a backup that is gone");
    unmount(&place, &target);
    place.bench.assert_nothing_left();
}

#[test]
fn an_archive_of_which_most_would_be_dead_is_packed_anew() {
    if !can_mount("an_archive_of_which_most_would_be_dead_is_packed_anew") {
        return;
    }
    let place = Place::s3();
    let tree = large_tree(&place.bench);
    let first = ok(&place, &["create", text(&tree)]);
    let target = place.bench.path("mnt");
    ok(&place, &["restore", id(&first), text(&target)]);
    for n in 0..3 {
        fs::remove_file(target.join(format!("large-{n}"))).unwrap();
    }
    let half = ok(&place, &["create", text(&target)]);
    assert_eq!(half["base"], first["id"], "18 of 37 MiB: {half}");
    fs::remove_file(target.join("large-3")).unwrap();
    let most = ok(&place, &["create", text(&target)]);
    let because = most["wholeBecause"].as_str().unwrap_or_default();
    assert!(because.contains("more than half"), "{most}");
    assert!(most["sizeBytes"].as_u64().unwrap() < 15 << 20, "{most}");
    assert_same(&target, &extracted(&place, id(&most)), "the rest");
    unmount(&place, &target);
    // What was begun is not left in the bucket.
    assert!(
        place.keys().iter().all(|key| key.contains(id(&first))
            || key.contains(id(&half))
            || key.contains(id(&most)))
    );
}

#[test]
fn a_directory_of_a_mount_and_what_is_left_out_are_told_alike() {
    if !can_mount("a_directory_of_a_mount_and_what_is_left_out_are_told_alike") {
        return;
    }
    let place = Place::local();
    let tree = large_tree(&place.bench);
    let first = ok(&place, &["create", text(&tree)]);
    let target = place.bench.path("mnt");
    ok(&place, &["restore", id(&first), text(&target)]);
    change(&target);
    let arguments = ["create", text(&target), "--exclude", "large-[4-4]", "--exclude", "dir-8"];
    let made = ok(&place, &arguments);
    assert_eq!(made["base"], first["id"], "{made}");
    let full = ok(&place, &[&arguments[..], &["--full"]].concat());
    let (made_tree, full_tree) = (extracted(&place, id(&made)), extracted(&place, id(&full)));
    assert_same(&made_tree, &full_tree, "with exclusions");
    assert!(!made_tree.join("dir-8").exists() && !made_tree.join("large-4").exists());
    // All of a directory is as old as the rest of its mount, which is no reason to have that along.
    let part = ok(&place, &["create", text(&target.join("dir-9"))]);
    assert!(part["wholeBecause"].as_str().unwrap().contains("more than half"), "{part}");
    assert_same(&target.join("dir-9"), &extracted(&place, id(&part)), "a directory");
    unmount(&place, &target);
}

#[test]
fn another_mount_inside_is_of_another_archive() {
    // fusermount3, which is root's, sees nothing of an ordinary user's mount.
    if !can_mount_with("another_mount_inside_is_of_another_archive", &[Need::Root]) {
        return;
    }
    let place = Place::local();
    let tree = large_tree(&place.bench);
    let first = ok(&place, &["create", text(&tree)]);
    let target = place.bench.path("mnt");
    ok(&place, &["restore", id(&first), text(&target)]);
    let inner = ok(&place, &["create", text(&tree.join("dir-9"))]);
    let inside = target.join("dir-9");
    ok(&place, &["restore", id(&inner), text(&inside)]);
    fs::write(inside.join("small-90"), "inner").unwrap();
    let made = ok(&place, &["create", text(&target)]);
    assert_eq!(made["base"], first["id"], "{made}");
    let full = ok(&place, &["create", "--full", text(&target)]);
    let (made_tree, full_tree) = (extracted(&place, id(&made)), extracted(&place, id(&full)));
    assert_same(&made_tree, &full_tree, "with a mount inside");
    assert_eq!(fs::read(made_tree.join("dir-9/small-90")).unwrap(), b"inner");
    place.bench.ok(&["unmount", text(&inside)]);
    unmount(&place, &target);
}

/// A tree whose archive has the same layout whatever the seed is, and the same times.
fn alike_tree(bench: &Bench, name: &str, seed: u64) -> PathBuf {
    let tree = bench.directory(name);
    let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_600_000_000);
    for n in 0..30 {
        let path = tree.join(format!("{n}"));
        fs::write(&path, noise(seed + n, 700_000)).unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(then).unwrap();
    }
    File::open(&tree).unwrap().set_modified(then).unwrap();
    tree
}

#[test]
fn an_archive_that_is_another_by_now_is_none_to_begin_with() {
    if !can_mount("an_archive_that_is_another_by_now_is_none_to_begin_with") {
        return;
    }
    for place in Place::both() {
        let create = |tree: &Path| {
            let words = ["create", "--json", text(tree)];
            let made = place.thawfs().env("SOURCE_DATE_EPOCH", "100").args(words).output().unwrap();
            serde_json::from_slice::<Value>(&made.stdout).unwrap()
        };
        let one = create(&alike_tree(&place.bench, "one", 1));
        let two = create(&alike_tree(&place.bench, "two", 1000));
        let archive = |made: &Value| place.object(&format!("{}/data.sqsh", id(made)));
        let [ours, theirs] = [&one, &two].map(|made| fs::read(archive(made)).unwrap());
        assert_eq!(ours[..96], theirs[..96], "their superblocks are the same");
        let target = place.bench.path("mnt");
        ok(&place, &["restore", id(&one), text(&target)]);
        let before = seen(&target);
        fs::write(target.join("new"), "new").unwrap();
        let aside = archive(&one).with_extension("aside");
        fs::write(&aside, &theirs).unwrap();
        fs::rename(&aside, archive(&one)).unwrap();
        // All has been read by now, and is in the kernel's cache, or in a file that is open.
        let (status, mut lines) = place.json(&["create", text(&target)]);
        if status == 0 {
            let made = lines.pop().unwrap();
            let because = made["wholeBecause"].as_str().unwrap_or_default();
            assert!(because.contains("another than the mount's"), "{}: {made}", place.name);
            let copy = extracted(&place, id(&made));
            fs::remove_file(copy.join("new")).unwrap();
            let data = |tree: &[(PathBuf, String, Vec<u8>)]| -> Vec<Vec<u8>> {
                tree.iter().map(|(.., data)| data.clone()).collect()
            };
            assert!(data(&seen(&copy)) == data(&before), "{}", place.name);
        } else {
            // What is read of a mount whose archive has changed fails.
            assert_eq!(place.name, "s3", "{lines:?}");
        }
        unmount(&place, &target);
    }
}

#[test]
fn a_bucket_is_the_same_by_whatever_path() {
    if !can_mount("a_bucket_is_the_same_by_whatever_path") {
        return;
    }
    let place = Place::local();
    let tree = large_tree(&place.bench);
    let first = ok(&place, &["create", text(&tree)]);
    let link = place.bench.path("link");
    std::os::unix::fs::symlink(&place.root, &link).unwrap();
    let target = place.bench.directory("mnt");
    let source = link.join(format!("backups/{}/data.sqsh", id(&first)));
    place.bench.ok(&["mount", text(&source), text(&target)]);
    let made = ok(&place, &["create", text(&target)]);
    assert_eq!(made["base"], first["id"], "{made}");
    unmount(&place, &target);
}
