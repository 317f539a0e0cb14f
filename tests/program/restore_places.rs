//! Where a backup is restored to, and what is not hidden or made because a bucket or a handle says so.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::mount::{can_mount, can_mount_with, write_tree};
use crate::support::place::Place;
use crate::support::surrounding::Need;
use serde_json::{Value, json};

/// Exit status of `MOUNTPOINT`.
const MOUNTPOINT: i32 = 10;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A backup of a small tree, and where that is.
fn backed_up(place: &Place) -> (String, PathBuf) {
    let tree = place.bench.directory("tree");
    write_tree(&tree);
    let output = place.run(&["create", text(&tree)]);
    assert!(output.status.success(), "{}", said(&output));
    let handle: Value = serde_json::from_slice(&output.stdout).unwrap();
    (handle["id"].as_str().unwrap().to_owned(), tree)
}

/// Has the metadata of backup `id` say that it was made in `dir`.
fn made_in(place: &Place, id: &str, dir: &str) {
    let path = place.object(&format!("{id}/meta.json"));
    let mut metadata: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    metadata["dir"] = dir.into();
    fs::write(&path, metadata.to_string()).unwrap();
}

/// What is mounted, but for what other tests mount meanwhile among temporary files.
fn mounts_of_the_system() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let temporary = std::env::temp_dir();
    let below = |line: &str| {
        line.split(' ')
            .nth(1)
            .is_some_and(|at| Path::new(at).starts_with(&temporary) && Path::new(at) != temporary)
    };
    mounts.lines().filter(|line| !below(line)).map(str::to_owned).collect()
}

#[test]
fn a_bucket_chooses_no_directory_of_the_system() {
    for place in Place::both() {
        let (id, _) = backed_up(&place);
        symlink("/etc", place.bench.path("link")).unwrap();
        let mounts = mounts_of_the_system();
        let below_link = place.bench.path("link/thawfs-no-such");
        let dirs = [
            "/",
            "/etc",
            "/etc/thawfs-no-such",
            "/usr",
            "/usr/lib/thawfs-no-such",
            "/tmp",
            "/home",
            "/var/run/thawfs-no-such",
            "/bin/../srv",
            text(&below_link),
        ];
        for dir in dirs {
            if !dir.contains("..") {
                made_in(&place, &id, dir);
            }
            let handle = json!({"id": id, "dir": dir}).to_string();
            let ways: [&[&str]; 6] = [
                &["restore", &id],
                &["restore", &handle],
                &["restore", &id, "--extract"],
                &["restore", &handle, "--extract"],
                &["restore", &id, "--foreground"],
                &["restore", &id, "-o", "suid"],
            ];
            for way in ways {
                if dir.contains("..") && !way.contains(&handle.as_str()) {
                    continue;
                }
                let (status, failure) = place.json(way);
                if dir.contains("..") {
                    // No directory that a backup can have been made in.
                    assert_eq!(failure[0]["code"], "INVALID_BACKUP_CONFIG", "{way:?}");
                    continue;
                }
                assert_eq!(status, MOUNTPOINT, "{dir}: {way:?}: {failure:?}");
                assert_eq!(failure[0]["code"], "MOUNTPOINT", "{dir}: {way:?}");
                assert!(failure[0]["hint"].as_str().unwrap().contains(" DIR"), "{failure:?}");
                assert!(failure[0]["message"].as_str().unwrap().contains(dir), "{failure:?}");
            }
            assert!(!dir.contains("no-such") || !Path::new(dir).exists(), "{dir}");
        }
        assert_eq!(mounts_of_the_system(), mounts);
        place.bench.assert_nothing_left();
    }
}

#[test]
fn other_directories_and_those_that_are_named_are_restored_to() {
    let test = "other_directories_and_those_that_are_named_are_restored_to";
    if !can_mount_with(test, &[Need::Root, Need::Processes]) {
        return;
    }
    let place = Place::local();
    let (id, _) = backed_up(&place);
    // In a mount namespace, where nothing of the machine is hidden for others. What the metadata say,
    // and what is named besides.
    for (dir, named) in [("/srv", ""), ("/root", ""), ("/media", ""), ("/etc", "/boot")] {
        made_in(&place, &id, dir);
        let script = format!(
            "set -e; {0} restore {id} {named}; cat {1}/hello; {0} unmount {1}",
            env!("CARGO_BIN_EXE_thawfs"),
            if named.is_empty() { dir } else { named },
        );
        let mut inside = Command::new("unshare");
        inside
            .args(["--mount", "sh", "-c", &script])
            .envs(place.thawfs().get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = inside.output().unwrap();
        assert!(output.status.success(), "{dir} {named}: {}", said(&output));
        assert!(output.stdout.ends_with(b"hello from the archive\n"), "{dir} {named}");
    }
    // A way through a link to where others may be.
    place.bench.directory("real");
    symlink("real", place.bench.path("link")).unwrap();
    let through = place.bench.path("link/new");
    made_in(&place, &id, text(&through));
    let (status, restored) = place.json(&["restore", &id]);
    assert_eq!(status, 0, "{restored:?}");
    assert_eq!(restored[0]["mountpoint"], text(&place.bench.path("real/new")));
    place.bench.ok(&["unmount", text(&through)]);
    place.bench.assert_nothing_left();
}

#[test]
fn files_that_are_hidden_are_told_of() {
    if !can_mount("files_that_are_hidden_are_told_of") {
        return;
    }
    let place = Place::local();
    let (id, tree) = backed_up(&place);
    let empty = place.bench.directory("empty");
    let archive = place.object(&format!("{id}/data.sqsh"));
    for (arguments, hides) in [
        (vec!["restore", &id], true),
        (vec!["restore", &id, text(&empty)], false),
        (vec!["mount", text(&archive), text(&tree)], true),
        (vec!["mount", text(&archive), text(&empty)], false),
    ] {
        let output = place.run(&[&arguments[..], &["--json"]].concat());
        assert!(output.status.success(), "{}", said(&output));
        let ready: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(ready["hidesFiles"], hides, "{arguments:?}");
        assert_eq!(said(&output).contains("not empty"), hides, "{arguments:?}: {}", said(&output));
        assert_eq!(said(&output).lines().count(), usize::from(hides), "{}", said(&output));
        place.bench.ok(&["unmount", ready["mountpoint"].as_str().unwrap()]);
    }
    assert!(tree.join("hello").exists());
    place.bench.assert_nothing_left();
}

#[test]
fn a_restore_that_unpacks_gives_nobody_rights_unless_asked() {
    let place = Place::local();
    let (_, tree) = backed_up(&place);
    fs::set_permissions(tree.join("script"), PermissionsExt::from_mode(0o4755)).unwrap();
    let output = place.run(&["create", text(&tree)]);
    let handle: Value = serde_json::from_slice(&output.stdout).unwrap();
    let id = handle["id"].as_str().unwrap();
    for (more, mode, count) in [(&[][..], 0o755, 1), (&["--preserve-privileged"], 0o4755, 0)] {
        let target = place.bench.path(&format!("target-{count}"));
        let (status, done) =
            place.json(&[&["restore", id, text(&target), "--extract"], more].concat());
        assert_eq!(status, 0);
        assert_eq!(done[0]["leftOut"], json!({"setIds": count, "capabilities": 0, "devices": 0}));
        let script = fs::metadata(target.join("script")).unwrap();
        assert_eq!(script.permissions().mode() & 0o7777, mode);
    }
    // It is of no use to a mount, which has options of its own.
    for more in [&[][..], &["-o", "suid"], &["--read-only"], &["--keep-upper"], &["--foreground"]] {
        let refused = place.run(&[&["restore", id, "--preserve-privileged"], more].concat());
        assert_eq!(refused.status.code(), Some(2), "{more:?}: {}", said(&refused));
    }
}
