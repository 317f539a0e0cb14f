//! Backups where something is in the way: of the directory, the network, the user's patience.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::mount::{can_mount_with, write_tree};
use crate::support::place::Place;
use crate::support::presigned::presign;
use crate::support::s3::Fault;
use crate::support::surrounding::{Need, cannot_run};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Exit codes, as docs/CONFIGURATION.md lists them.
const USAGE: i32 = 2;
const CORRUPT: i32 = 6;
const INVALID_CONFIG: i32 = 15;
const CREATE_FAILED: i32 = 18;
const RESTORE_FAILED: i32 = 19;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Backs up a small tree and gives the backup's id.
fn create(place: &Place) -> String {
    let tree = place.bench.directory("tree");
    write_tree(&tree);
    let (code, handle) = place.json(&["create", text(&tree)]);
    assert_eq!(code, 0, "{handle:?}");
    handle[0]["id"].as_str().unwrap().to_owned()
}

/// The failure that a command prints, after checking its exit code.
fn failure(place: &Place, arguments: &[&str], code: i32) -> Value {
    let (exit, mut documents) = place.json(arguments);
    assert_eq!((exit, documents.len()), (code, 1), "{arguments:?}: {documents:?}");
    documents.remove(0)
}

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
}

/// Restores, and kills the server.
fn restore_and_kill(place: &Place, arguments: &[&str]) {
    let (code, restored) = place.json(&[&["-q", "restore"], arguments].concat());
    assert_eq!(code, 0, "{restored:?}");
    let pid = u32::try_from(restored[0]["pid"].as_u64().unwrap()).unwrap();
    kill(pid, Signal::KILL);
    let mountpoint = restored[0]["mountpoint"].as_str().unwrap();
    while fs::read_dir(mountpoint).is_ok() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_is_in_the_way_of_a_mount_is_said() {
    if !can_mount_with("what_is_in_the_way_of_a_mount_is_said", &[Need::Processes]) {
        return;
    }
    let place = Place::local();
    let id = create(&place);
    let file = place.bench.path("file");
    fs::write(&file, "").unwrap();
    let dangling = place.bench.path("dangling");
    symlink("/nowhere/at/all", &dangling).unwrap();
    let dead = place.bench.path("dead");
    restore_and_kill(&place, &[&id, text(&dead)]);
    let above = place.bench.path("");
    for (target, reason) in [
        (file.clone(), "is not a directory"),
        (file.join("below"), "Not a directory"),
        (dangling, "No such file or directory"),
        (dead.join("below"), "whose server is dead"),
        (above, "would hide the state directory"),
        (place.bench.state_dir().join("mounts/.."), "would hide the state directory"),
    ] {
        let target = text(&target);
        let failure = failure(&place, &["-q", "restore", &id, target], RESTORE_FAILED);
        let said = failure.to_string();
        assert!(said.contains(reason) && !said.contains("CAP_SYS_ADMIN"), "{target}: {said}");
    }
    let said = failure(&place, &["create", text(&dead)], INVALID_CONFIG).to_string();
    assert!(said.contains("not connected"), "{said}");
    place.bench.ok(&["unmount", text(&dead)]);
}

#[test]
fn replacing_a_dead_mount_removes_its_upper_unless_that_was_to_be_kept() {
    let test = "replacing_a_dead_mount_removes_its_upper_unless_that_was_to_be_kept";
    if !can_mount_with(test, &[Need::Processes]) {
        return;
    }
    let place = Place::local();
    let id = create(&place);
    let target = place.bench.path("target");
    let uppers = || fs::read_dir(place.bench.path("state/uppers")).unwrap().count();
    for (more, left) in [(&[][..], 1), (&["--keep-upper"][..], 2)] {
        restore_and_kill(&place, &[&[id.as_str(), text(&target)], more].concat());
        place.bench.ok(&["-q", "unmount", text(&target)]);
        restore_and_kill(&place, &[&[id.as_str(), text(&target)], more].concat());
        let before = uppers();
        let (code, _) = place.json(&["-q", "restore", &id, text(&target)]);
        assert_eq!((code, uppers()), (0, before - 1 + left), "{more:?}");
        place.bench.ok(&["unmount", text(&target)]);
    }
}

#[test]
fn a_restore_takes_no_options_that_it_would_not_follow() {
    let place = Place::local();
    let id = create(&place);
    for option in
        ["upper=/tmp/u", "workdir=/tmp/w", "endpoint=http://x", "offset=7", "ro,timeout=9"]
    {
        let target = place.bench.path("target");
        let failure = failure(&place, &["restore", &id, text(&target), "-o", option], USAGE);
        assert!(failure["message"].as_str().unwrap().contains("not for a restore"), "{failure}");
        assert!(!target.exists());
    }
}

#[test]
fn metadata_that_cannot_be_had_fails_a_restore_as_an_archive_does() {
    let place = Place::s3();
    let id = create(&place);
    let target = place.bench.path("target");
    let server = place.server.as_ref().unwrap();
    let restores = [
        vec!["restore", &id, text(&target)],
        vec!["restore", "--foreground", &id, text(&target)],
        vec!["restore", "--extract", &id, text(&target)],
    ];
    for arguments in &restores {
        server.inject(Fault::Refuse(403, "AccessDenied"), usize::MAX);
        let failure = failure(&place, arguments, RESTORE_FAILED);
        server.heal();
        assert!(failure["message"].as_str().unwrap().contains("denied"), "{failure}");
    }
    let meta = place.object(&format!("{id}/meta.json"));
    fs::write(&meta, [b' '; 70_000]).unwrap();
    for arguments in &restores {
        let failure = failure(&place, arguments, RESTORE_FAILED);
        assert!(failure["message"].as_str().unwrap().contains("larger than"), "{failure}");
    }
    failure(&place, &["verify", &id], CORRUPT);
    assert!(!target.exists());
}

#[test]
fn an_upload_through_presigned_urls_that_fails_is_aborted() {
    let place = Place::s3();
    let server = place.server.as_ref().unwrap();
    let tree = place.bench.directory("tree");
    write_tree(&tree);
    // Nothing was sent, or one part; the archive has one part only.
    for (number, fault) in [(1, Fault::Refuse(400, "BadDigest")), (2, Fault::Refuse(403, "No"))] {
        let id = format!("0000000{number}-1111-4222-8333-444444444444");
        let file = place.bench.path("urls.json");
        fs::write(&file, presign(&place, &id, 2, 5 << 20).to_string()).unwrap();
        server.inject(fault, 1);
        let arguments = ["create", text(&tree), "--presigned", text(&file)];
        let failure = failure(&place, &arguments, CREATE_FAILED);
        assert!(!failure.to_string().contains("prune"), "nothing is left: {failure}");
        assert_eq!(fs::read_dir(place.bench.path("buckets/.uploads")).unwrap().count(), 0);
        assert_eq!(place.keys(), Vec::<String>::new());
    }
}

#[test]
fn a_backup_whose_handle_cannot_be_printed_is_named() {
    let place = Place::local();
    let tree = place.bench.directory("tree");
    for more in [&[][..], &["--json"][..]] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = place.thawfs();
        let output = command.args(["-q", "create", text(&tree)]).args(more).stdout(full);
        let output = output.stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        let keys = place.keys();
        let named = keys.iter().filter_map(|key| key.split('/').next()).any(|id| said.contains(id));
        assert!(named, "{said} {keys:?}");
    }
}

#[test]
fn a_create_that_waits_for_its_turn_ends_at_the_first_signal() {
    let place = Place::s3();
    let tree = place.bench.directory("tree");
    let create = || {
        let mut command = place.thawfs();
        command.args(["create", text(&tree)]).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    place.server.as_ref().unwrap().inject(Fault::Delay(Duration::from_secs(2)), 1);
    let mut first = create();
    std::thread::sleep(Duration::from_millis(300));
    let mut waiting = create();
    let mut said = String::new();
    BufReader::new(waiting.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("waiting for another"), "{said}");
    kill(waiting.id(), Signal::TERM);
    assert_eq!(waiting.wait().unwrap().signal(), Some(libc::SIGTERM));
    assert!(first.try_wait().unwrap().is_none(), "the first one is done already");
    assert!(first.wait().unwrap().success());
}

#[test]
fn a_signal_does_not_hang_up_on_the_request_that_makes_the_object() {
    let test = "a_signal_does_not_hang_up_on_the_request_that_makes_the_object";
    if cannot_run(test, &[Need::Processes]) {
        return;
    }
    let place = Place::s3();
    let server = place.server.as_ref().unwrap();
    let tree = place.bench.directory("tree");
    server.inject(Fault::Delay(Duration::from_millis(700)), 1);
    let mut command = place.thawfs();
    let mut creating = command.args(["-q", "create", text(&tree)]).stderr(Stdio::null()).spawn();
    let creating = creating.as_mut().unwrap();
    while server.log().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(creating.id(), Signal::INT);
    assert_eq!(creating.wait().unwrap().code(), Some(CREATE_FAILED));
    let log = server.log();
    let deleted = log.iter().filter(|seen| seen.method == "DELETE").count();
    assert_eq!((log[0].method.as_str(), log[0].status, deleted), ("PUT", 200, 2));
    assert_eq!(place.keys(), Vec::<String>::new());
}

#[test]
fn a_hangup_that_was_ignored_from_the_start_interrupts_nothing() {
    let place = Place::s3();
    let server = place.server.as_ref().unwrap();
    let tree = place.bench.directory("tree");
    server.inject(Fault::Delay(Duration::from_millis(700)), 1);
    let mut command = Command::new("sh");
    // As nohup(1) does, but with the output where it is.
    command.args(["-c", "trap '' HUP && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_thawfs")]);
    command.args(["-q", "create", text(&tree)]);
    for (name, value) in place.thawfs().get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut creating = command.stdout(Stdio::null()).spawn().unwrap();
    while server.log().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(creating.id(), Signal::HUP);
    assert!(creating.wait().unwrap().success());
    assert_eq!(place.keys().len(), 2);
}

#[test]
fn a_state_directory_in_the_hands_of_another_user_is_not_used() {
    let test = "a_state_directory_in_the_hands_of_another_user_is_not_used";
    if cannot_run(test, &[Need::Root, Need::Processes]) {
        return;
    }
    let place = Place::local();
    let tree = place.bench.directory("tree");
    let state = place.bench.directory("state");
    for directory in [&state, &place.root] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o1777)).unwrap();
    }
    for (owner, user, used) in [(65534, 12345, false), (65534, 65534, true), (0, 12345, true)] {
        chown(&state, Some(owner), Some(owner)).unwrap();
        for child in [&state, &place.root].into_iter().flat_map(|dir| fs::read_dir(dir).unwrap()) {
            fs::remove_dir_all(child.unwrap().path()).unwrap();
        }
        let mut command = place.thawfs();
        let output = command.args(["create", text(&tree)]).uid(user).gid(user).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.success(), used, "{owner} {user}: {said}");
        assert_eq!(said.contains("belongs to another user"), !used, "{owner} {user}: {said}");
    }
}
