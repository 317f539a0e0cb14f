//! Backups are made and restored: one test, run against a real S3 server and a local directory.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::corpus::Numbers;
use crate::support::mount::{can_mount, can_mount_with, write_tree};
use crate::support::place::Place;
use crate::support::presigned::presign;
use crate::support::s3::Fault;
use crate::support::surrounding::{Need, cannot_run};
use serde_json::{Value, json};

/// Exit codes, as docs/CONFIGURATION.md lists them.
const INVALID_CONFIG: i32 = 15;
const NOT_FOUND: i32 = 16;
const EXPIRED: i32 = 17;
const CREATE_FAILED: i32 = 18;
const RESTORE_FAILED: i32 = 19;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    Numbers(1).noise(len)
}

/// The small tree, to be backed up.
fn small_tree(place: &Place) -> PathBuf {
    let tree = place.bench.directory("tree");
    write_tree(&tree);
    tree
}

/// Backs `tree` up and gives its handle.
fn create(place: &Place, tree: &Path, more: &[&str]) -> Value {
    let arguments = [&["create", text(tree)], more].concat();
    let output = place.run(&arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", place.name);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn id(handle: &Value) -> &str {
    handle["id"].as_str().unwrap()
}

/// The only line of JSON that a command prints, after checking its exit code.
fn answer(place: &Place, arguments: &[&str], code: i32) -> Value {
    let (status, mut lines) = place.json(arguments);
    assert_eq!(status, code, "{}: {arguments:?}: {lines:?}", place.name);
    lines.pop().unwrap_or_default()
}

fn same_tree(left: &Path, right: &Path) {
    let compared =
        Command::new("diff").arg("-r").arg("--no-dereference").args([left, right]).output();
    let compared = compared.unwrap();
    assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stdout));
}

fn metadata(place: &Place, id: &str) -> Value {
    serde_json::from_slice(&fs::read(place.object(&format!("{id}/meta.json"))).unwrap()).unwrap()
}

fn write_metadata(place: &Place, id: &str, change: impl FnOnce(&mut Value)) {
    let mut value = metadata(place, id);
    change(&mut value);
    place.put(&format!("{id}/meta.json"), value.to_string());
}

#[test]
fn a_backup_is_what_the_contract_says_and_restores_to_the_same_tree() {
    if !can_mount("a_backup_is_what_the_contract_says_and_restores_to_the_same_tree") {
        return;
    }
    for place in Place::both() {
        let tree = small_tree(&place);
        let handle = create(&place, &tree, &["--name", "first", "--ttl", "2h"]);
        assert_eq!(handle, json!({ "id": id(&handle), "dir": text(&tree) }));

        let id = id(&handle);
        let archive = place.object(&format!("{id}/data.sqsh"));
        let mut known = metadata(&place, id);
        let created = known["createdAt"].take();
        let created = created.as_str().unwrap();
        assert!(created.len() == 24 && created.ends_with('Z'), "{created}");
        assert_eq!(
            known,
            json!({
                "id": id, "dir": text(&tree), "name": "first", "createdAt": null, "ttl": 7200,
                "sizeBytes": fs::metadata(&archive).unwrap().len(),
            })
        );
        assert_eq!(place.keys().len(), 2, "{}: nothing else is in the bucket", place.name);

        let target = place.bench.path("new/target");
        let restored = answer(&place, &["restore", id, text(&target)], 0);
        assert_eq!(restored["mountpoint"], text(&target));
        same_tree(&tree, &target);
        assert!(Command::new("umount").arg(&target).status().unwrap().success());
        while !place.bench.servers().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        place.bench.assert_nothing_left();
    }
}

#[test]
fn a_handle_is_taken_in_every_form() {
    if !can_mount("a_handle_is_taken_in_every_form") {
        return;
    }
    let place = Place::local();
    let tree = small_tree(&place);
    let handle = create(&place, &tree, &[]);
    let (id, line) = (id(&handle).to_owned(), handle.to_string());
    let file = place.bench.path("handle.json");
    fs::write(&file, &line).unwrap();
    for given in [&id, &id.to_uppercase(), &line, text(&file), "-"] {
        let mut restore = place.thawfs();
        let mut restore = restore
            .args(["restore", given])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Those that do not read it may have gone.
        let _ = restore.stdin.take().unwrap().write_all(line.as_bytes());
        assert!(restore.wait().unwrap().success(), "{given}");
        assert_eq!(place.bench.mounted(), [tree.as_path()], "{given}");
        assert_eq!(fs::read(tree.join("hello")).unwrap(), b"hello from the archive\n");
    }
    place.bench.ok(&["unmount", text(&tree)]);
    // Where the handle says, and not where the backup was made.
    let elsewhere = place.bench.directory("elsewhere");
    let moved = json!({ "id": id, "dir": text(&elsewhere) }).to_string();
    answer(&place, &["restore", &moved], 0);
    assert_eq!(place.bench.mounted(), [elsewhere.as_path()]);
    place.bench.ok(&["unmount", text(&elsewhere)]);
    let climbing = json!({ "id": id, "dir": "/tmp/../etc" }).to_string();
    for given in ["nonsense", "{}", "{\"id\": 1}", &climbing] {
        let failure = answer(&place, &["restore", given], INVALID_CONFIG);
        assert_eq!(failure["code"], "INVALID_BACKUP_CONFIG", "{given}");
    }
    place.bench.assert_nothing_left();
}

#[test]
fn restoring_again_throws_changes_away_and_other_directories_are_forks() {
    if !can_mount("restoring_again_throws_changes_away_and_other_directories_are_forks") {
        return;
    }
    for place in Place::both() {
        let tree = small_tree(&place);
        let handle = create(&place, &tree, &[]).to_string();
        let forks: Vec<PathBuf> = (0..4).map(|n| place.bench.path(&format!("fork{n}"))).collect();
        let restores: Vec<Child> = forks
            .iter()
            .map(|fork| {
                let mut restore = place.thawfs();
                restore.args(["-q", "restore", &handle, text(fork)]).spawn().unwrap()
            })
            .collect();
        for mut restore in restores {
            assert!(restore.wait().unwrap().success());
        }
        for (n, fork) in forks.iter().enumerate() {
            fs::write(fork.join("hello"), n.to_string()).unwrap();
        }
        for (n, fork) in forks.iter().enumerate() {
            assert_eq!(fs::read_to_string(fork.join("hello")).unwrap(), n.to_string());
        }
        // Someone still in it does not keep a mount from being replaced.
        let held = fs::File::open(forks[0].join("sub/data")).unwrap();
        let again = place.run(&["restore", &handle, text(&forks[0])]);
        let said = String::from_utf8_lossy(&again.stderr).into_owned();
        assert!(again.status.success() && said.contains("is replaced"), "{said}");
        assert_eq!(fs::read(forks[0].join("hello")).unwrap(), b"hello from the archive\n");
        assert_eq!(fs::read_to_string(forks[1].join("hello")).unwrap(), "1");
        drop(held);

        let forks = forks.iter().map(|fork| text(fork));
        place.bench.ok(&["unmount"].into_iter().chain(forks).collect::<Vec<_>>());
        while !place.bench.servers().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        place.bench.assert_nothing_left();
    }
}

#[test]
fn restoring_a_parent_replaces_the_mounts_inside_it_and_says_so() {
    if !can_mount("restoring_a_parent_replaces_the_mounts_inside_it_and_says_so") {
        return;
    }
    let place = Place::local();
    let tree = small_tree(&place);
    let handle = create(&place, &tree, &[]).to_string();
    let (outer, inner) = (place.bench.directory("outer"), place.bench.directory("outer/inner"));
    answer(&place, &["restore", &handle, text(&inner)], 0);
    let output = place.run(&["restore", &handle, text(&outer)]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains(&format!("{} was mounted inside", inner.display())), "{said}");
    assert_eq!(place.bench.mounted(), [outer.as_path()]);
    assert_eq!(place.bench.servers().len(), 1);
    place.bench.ok(&["unmount", text(&outer)]);

    // What is not ours is not taken down. This one an ordinary user can mount, too.
    let archive = place.bench.archive(&tree, "others.sqsh", &[]);
    let others = Command::new("squashfuse").arg(&archive).arg(&inner).status();
    assert!(others.expect("squashfuse is installed").success());
    let failure = answer(&place, &["restore", &handle, text(&outer)], RESTORE_FAILED);
    assert!(Command::new("fusermount3").arg("-u").arg(&inner).status().unwrap().success());
    assert!(failure["message"].as_str().unwrap().contains("not by thawfs"), "{failure}");
    place.bench.assert_nothing_left();
}

#[test]
fn a_backup_that_cannot_be_restored_leaves_things_as_they_were() {
    if !can_mount("a_backup_that_cannot_be_restored_leaves_things_as_they_were") {
        return;
    }
    for place in Place::both() {
        let tree = small_tree(&place);
        let good = create(&place, &tree, &[]);
        let target = place.bench.path("target");
        answer(&place, &["restore", id(&good), text(&target)], 0);
        fs::write(target.join("hello"), "changed").unwrap();

        type Damage = fn(&Place, &str);
        let cases: [(&str, i32, &str, Damage); 5] = [
            ("expired", EXPIRED, "expired", |place, id| {
                write_metadata(place, id, |meta| meta["ttl"] = json!(59));
            }),
            ("no archive", NOT_FOUND, "the archive of backup", |place, id| {
                fs::remove_file(place.object(&format!("{id}/data.sqsh"))).unwrap();
            }),
            ("no metadata", NOT_FOUND, "the metadata of backup", |place, id| {
                fs::remove_file(place.object(&format!("{id}/meta.json"))).unwrap();
            }),
            ("nothing", NOT_FOUND, "there is no backup", |place, id| {
                fs::remove_dir_all(place.object(id)).unwrap();
            }),
            ("no squashfs", RESTORE_FAILED, "squashfs", |place, id| {
                fs::write(place.object(&format!("{id}/data.sqsh")), [7; 5000]).unwrap();
            }),
        ];
        for (what, code, reason, damage) in cases {
            let bad = create(&place, &tree, &[]);
            damage(&place, id(&bad));
            let missing = place.bench.path("not/there");
            for target in [&target, &missing] {
                let failure = answer(&place, &["restore", id(&bad), text(target)], code);
                let message = failure["message"].as_str().unwrap();
                assert!(message.contains(reason), "{}: {what}: {message}", place.name);
            }
            assert!(!place.bench.path("not").exists(), "{what}: a directory was made");
            assert_eq!(fs::read_to_string(target.join("hello")).unwrap(), "changed", "{what}");
        }
        place.bench.ok(&["unmount", text(&target)]);
        place.bench.assert_nothing_left();
    }
}

#[test]
fn restores_of_one_directory_take_turns() {
    if !can_mount("restores_of_one_directory_take_turns") {
        return;
    }
    let place = Place::local();
    let tree = small_tree(&place);
    let handle = create(&place, &tree, &[]).to_string();
    let target = place.bench.directory("target");
    let spawn = || {
        let mut restore = place.thawfs();
        restore.args(["restore", &handle, text(&target)]).stdout(Stdio::null());
        restore.stderr(Stdio::piped()).spawn().unwrap()
    };
    let restores: Vec<Child> = (0..6).map(|_| spawn()).collect();
    // There while one of them has the directory locked.
    let locks = place.bench.state_dir().join("locks");
    let lock = loop {
        if let Some(lock) = fs::read_dir(&locks).into_iter().flatten().flatten().next() {
            break lock.path();
        }
        std::thread::yield_now();
    };
    for restore in restores {
        let output = restore.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(place.bench.mounted(), [target.as_path()]);
    assert_eq!(place.bench.servers().len(), 1);

    // One that has to wait says so.
    assert!(!lock.exists());
    let held = fs::File::create(&lock).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut waiting = spawn();
    let mut said = String::new();
    BufReader::new(waiting.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("waiting for another thawfs"), "{said}");
    assert!(waiting.try_wait().unwrap().is_none());
    drop(held);
    assert!(waiting.wait().unwrap().success());
    place.bench.ok(&["unmount", text(&target)]);
    place.bench.assert_nothing_left();
}

#[test]
fn extracting_gives_ordinary_files_or_nothing() {
    for place in Place::both() {
        let tree = small_tree(&place);
        let handle = create(&place, &tree, &[]);
        let target = place.bench.path("target");
        answer(&place, &["restore", "--extract", id(&handle), text(&target)], 0);
        same_tree(&tree, &target);
        assert_eq!(place.bench.mounted(), Vec::<PathBuf>::new());

        fs::write(target.join("mine"), "precious").unwrap();
        let arguments = ["restore", "--extract", id(&handle), text(&target)];
        let failure = answer(&place, &arguments, RESTORE_FAILED);
        assert!(failure["message"].as_str().unwrap().contains("not empty"), "{failure}");
        assert_eq!(fs::read_to_string(target.join("mine")).unwrap(), "precious");

        // A block in the middle of the archive is damaged: there is nothing rather than a part.
        fs::write(tree.join("noise"), noise(1 << 20)).unwrap();
        let damaged = create(&place, &tree, &["--compression", "zstd"]);
        let archive = place.object(&format!("{}/data.sqsh", id(&damaged)));
        let mut bytes = fs::read(&archive).unwrap();
        let middle = bytes.len() - (64 << 10);
        bytes[middle..middle + (60 << 10)].fill(0);
        fs::write(&archive, bytes).unwrap();
        let other = place.bench.path("other");
        answer(&place, &["restore", "--extract", id(&damaged), text(&other)], RESTORE_FAILED);
        assert!(!other.exists());
    }
}

#[test]
fn files_that_may_not_be_read_are_all_named_and_nothing_is_left() {
    let test = "files_that_may_not_be_read_are_all_named_and_nothing_is_left";
    if cannot_run(test, &[Need::Root, Need::Processes]) {
        return;
    }
    let place = Place::local();
    let tree = small_tree(&place);
    for secret in ["hello", "sub/deeper"] {
        fs::set_permissions(tree.join(secret), fs::Permissions::from_mode(0o000)).unwrap();
    }
    for path in [place.bench.path(""), place.root.clone(), place.bench.directory("state")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let thawfs = place.thawfs();
    let mut nobody = Command::new("setpriv");
    nobody
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(thawfs.get_program())
        .args(["create", text(&tree), "--json"]);
    for (name, value) in thawfs.get_envs() {
        match value {
            Some(value) => nobody.env(name, value),
            None => nobody.env_remove(name),
        };
    }
    let output = nobody.output().unwrap();
    assert_eq!(output.status.code(), Some(CREATE_FAILED));
    let failure: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(failure["code"], "BACKUP_CREATE_FAILED");
    let secrets =
        ["hello", "sub/deeper", "sub/hello-too"].map(|name| text(&tree.join(name)).to_owned());
    assert_eq!(failure["list"], serde_json::json!(secrets), "{failure}");
    assert!(failure["hint"].as_str().unwrap().contains("chmod -R a+rX"), "{failure}");
    assert_eq!(place.keys(), Vec::<String>::new());
}

#[test]
fn what_a_backup_cannot_be_is_refused_before_anything_is_sent() {
    let place = Place::s3();
    let tree = small_tree(&place);
    let long = "x".repeat(257);
    for (arguments, code) in [
        (vec!["create", "/no/such/directory"], INVALID_CONFIG),
        (vec!["create", "/dev/null"], INVALID_CONFIG),
        (vec!["create", text(&tree), "--name", "a\nb"], INVALID_CONFIG),
        (vec!["create", text(&tree), "--name", &long], INVALID_CONFIG),
        (vec!["create", text(&tree), "--ttl", "0"], INVALID_CONFIG),
        (vec!["create", text(&tree), "--ttl", "soon"], 2),
        (vec!["create", text(&tree), "--compression", "zstd:99"], 2),
        (vec!["create", text(&tree), "--exclude", "/etc"], 2),
        (vec!["create", text(&tree), "--presigned", "/no/such/file"], INVALID_CONFIG),
    ] {
        let failure = answer(&place, &arguments, code);
        assert!(!failure["message"].as_str().unwrap().contains('\n'), "{failure}");
    }
    assert_eq!(place.server.as_ref().unwrap().log().len(), 0);
}

/// A tree whose archive has three parts.
fn write_large(tree: &Path) {
    for n in 0..5 {
        let mut bytes = noise(4 << 20);
        bytes[..8].copy_from_slice(&[n; 8]);
        for chunk in bytes.chunks_mut(4096) {
            chunk[0] = n;
        }
        fs::write(tree.join(format!("noise{n}")), bytes).unwrap();
    }
}

#[test]
fn a_large_archive_goes_in_equal_parts_the_first_one_last() {
    let place = Place::s3();
    let tree = small_tree(&place);
    write_large(&tree);
    let handle = create(&place, &tree, &[]);
    let log = place.server.as_ref().unwrap().log();
    let lengths: Vec<(String, u64)> = log
        .iter()
        .filter(|seen| seen.query.contains("partNumber="))
        .map(|seen| {
            let length = seen.headers["content-length"].to_str().unwrap().parse().unwrap();
            (seen.query.clone(), length)
        })
        .collect();
    assert_eq!(lengths.len(), 3, "{lengths:?}");
    let number =
        |at: usize| lengths[at].0.split('&').find(|pair| pair.starts_with("partNumber")).unwrap();
    assert_eq!(number(0), "partNumber=2");
    assert!(lengths.iter().filter(|(_, length)| *length == 8 << 20).count() == 2, "{lengths:?}");
    for (name, value) in log.iter().flat_map(|seen| &seen.headers) {
        assert!(name != "expect" && value != "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER");
    }
    let target = place.bench.path("target");
    answer(&place, &["restore", "--extract", id(&handle), text(&target)], 0);
    same_tree(&tree, &target);
}

#[test]
fn a_network_that_fails_for_a_while_fails_no_backup() {
    let place = Place::s3();
    let server = place.server.as_ref().unwrap();
    let tree = place.bench.directory("tree");
    write_large(&tree);
    for fault in
        [Fault::Refuse(503, "SlowDown"), Fault::Refuse(500, "InternalError"), Fault::Truncate(0)]
    {
        server.inject(fault, 3);
        let handle = create(&place, &tree, &[]);
        server.heal();
        let (code, lines) = place.json(&["verify", id(&handle)]);
        assert_eq!(code, 0, "{lines:?}");
    }
}

#[test]
fn a_store_that_refuses_leaves_no_backup() {
    let place = Place::s3();
    let server = place.server.as_ref().unwrap();
    let tree = place.bench.directory("tree");
    write_large(&tree);
    server.inject(Fault::Refuse(403, "AccessDenied"), usize::MAX);
    let failure = answer(&place, &["create", text(&tree)], CREATE_FAILED);
    assert!(failure["hint"].as_str().unwrap().contains("prune"), "cleaning up failed: {failure}");
    server.heal();
    assert_eq!(place.keys(), Vec::<String>::new());
}

/// Waits until the server has seen a part arrive.
fn wait_for_a_part(place: &Place) {
    let started = Instant::now();
    let sent = || {
        let log = place.server.as_ref().unwrap().log();
        log.iter().any(|seen| seen.query.contains("partNumber="))
    };
    while !sent() {
        assert!(started.elapsed() < Duration::from_secs(20), "no part was sent");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn uploads(place: &Place) -> usize {
    fs::read_dir(place.bench.path("buckets/.uploads")).map_or(0, Iterator::count)
}

#[test]
fn an_interrupted_backup_is_not_there() {
    use rustix::process::{Pid, Signal, kill_process};
    if cannot_run("an_interrupted_backup_is_not_there", &[Need::Processes]) {
        return;
    }
    let place = Place::s3();
    let tree = place.bench.directory("tree");
    write_large(&tree);
    let gentle = [Signal::INT, Signal::TERM, Signal::HUP].map(|signal| (signal, 0));
    for (signal, left) in gentle.into_iter().chain([(Signal::KILL, 1)]) {
        let server = place.server.as_ref().unwrap();
        server.clear_log();
        // Every answer takes its time, so that the signal comes in between.
        server.inject(Fault::Delay(Duration::from_millis(700)), usize::MAX);
        let mut creating = place
            .thawfs()
            .args(["-q", "create", text(&tree)])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for_a_part(&place);
        kill_process(Pid::from_raw(creating.id() as i32).unwrap(), signal).unwrap();
        let status = creating.wait().unwrap();
        assert!(!status.success());
        if signal != Signal::KILL {
            assert_eq!(status.code(), Some(CREATE_FAILED), "{signal:?}");
        }
        server.heal();
        assert_eq!(place.keys(), Vec::<String>::new(), "{signal:?}");
        assert_eq!(uploads(&place), left, "{signal:?}");
    }
    // The upload of the killed one is a day old before it is nobody's.
    let (code, _) = place.json(&["prune", "--uploads"]);
    assert_eq!((code, uploads(&place)), (0, 1));
    for upload in fs::read_dir(place.bench.path("buckets/.uploads")).unwrap() {
        let target = upload.unwrap().path().join("target");
        Place::age(&target, Duration::from_secs(25 * 3600));
        Place::age(target.parent().unwrap(), Duration::from_secs(25 * 3600));
    }
    let (code, lines) = place.json(&["prune", "--uploads"]);
    assert_eq!((code, uploads(&place)), (0, 0), "{lines:?}");
}

#[test]
fn a_full_disk_leaves_no_backup() {
    if cannot_run("a_full_disk_leaves_no_backup", &[Need::Root]) {
        return;
    }
    let place = Place::local();
    let tree = place.bench.directory("tree");
    write_large(&tree);
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=9m", "none"])
        .arg(&place.root)
        .status()
        .unwrap();
    assert!(mounted.success());
    let failure = answer(&place, &["create", text(&tree)], CREATE_FAILED);
    let left = walkdir::WalkDir::new(&place.root).into_iter().flatten();
    let left: Vec<_> = left.filter(|entry| entry.file_type().is_file()).collect();
    assert!(Command::new("umount").arg(&place.root).status().unwrap().success());
    assert!(failure["message"].as_str().unwrap().contains("No space left"), "{failure}");
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_machine_without_credentials_makes_and_restores_through_presigned_urls() {
    if !can_mount("a_machine_without_credentials_makes_and_restores_through_presigned_urls") {
        return;
    }
    let place = Place::s3();
    for (number, large) in [(1, false), (2, true)] {
        let tree = place.bench.directory(&format!("tree{number}"));
        write_tree(&tree);
        if large {
            write_large(&tree);
        }
        let id = format!("0000000{number}-1111-4222-8333-444444444444");
        let urls = presign(&place, &id, 8, 5 << 20);
        let file = place.bench.path("urls.json");
        fs::write(&file, urls.to_string()).unwrap();
        let output = place
            .bench
            .thawfs()
            .args(["create", text(&tree), "--presigned", text(&file)])
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        assert!(!errors.contains("X-Amz-Signature"), "{errors}");
        let handle: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(handle, json!({ "id": id, "dir": text(&tree) }));
        assert_eq!(metadata(&place, &id)["sizeBytes"], {
            fs::metadata(place.object(&format!("{id}/data.sqsh"))).unwrap().len()
        });
        assert_eq!(uploads(&place), 0);

        let target = place.bench.path("target");
        let url = urls["archive"].as_str().unwrap();
        place.bench.ok(&["-q", "restore", url, text(&target)]);
        same_tree(&tree, &target);
        place.bench.ok(&["unmount", text(&target)]);
        place.bench.assert_nothing_left();
    }

    // Too few parts: the upload is aborted, and there is no backup.
    let id = "00000003-1111-4222-8333-444444444444";
    let file = place.bench.path("urls.json");
    fs::write(&file, presign(&place, id, 1, 5 << 20).to_string()).unwrap();
    let tree = place.bench.path("tree2");
    let output = place.bench.run(&["create", text(&tree), "--presigned", text(&file), "--json"]);
    assert_eq!(output.status.code(), Some(CREATE_FAILED));
    let failure: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(failure["message"].as_str().unwrap().contains("larger than its 1 parts"), "{failure}");
    assert_eq!(uploads(&place), 0);
    assert!(!place.object(id).exists());
}

#[test]
fn a_backup_as_the_sdk_makes_it_is_restored() {
    if !can_mount("a_backup_as_the_sdk_makes_it_is_restored") {
        return;
    }
    let place = Place::s3();
    let tree = small_tree(&place);
    for (number, compressor) in [(1, "zstd"), (2, "lz4")] {
        let id = format!("0000000{number}-1111-4222-8333-444444444444");
        place.bench.directory(&format!("buckets/box/pre/backups/{id}"));
        let key = format!("buckets/box/pre/backups/{id}/data.sqsh");
        let archive = place.bench.archive(&tree, &key, &["-comp", compressor]);
        place.put(
            &format!("{id}/meta.json"),
            json!({
                "id": id, "dir": "/workspace", "name": null,
                "sizeBytes": fs::metadata(archive).unwrap().len(), "ttl": 259_200,
                "createdAt": chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
            })
            .to_string(),
        );
        let target = place.bench.path("target");
        let restored = answer(&place, &["restore", &id, text(&target)], 0);
        assert_eq!(restored["dir"], "/workspace");
        same_tree(&tree, &target);
        place.bench.ok(&["unmount", text(&target)]);
    }
    place.bench.assert_nothing_left();
}

#[test]
fn a_restore_that_is_killed_leaves_a_mount_that_works_or_none() {
    use rustix::process::{Pid, Signal, kill_process};
    let test = "a_restore_that_is_killed_leaves_a_mount_that_works_or_none";
    if !can_mount_with(test, &[Need::Processes]) {
        return;
    }
    let place = Place::s3();
    let tree = small_tree(&place);
    let handle = create(&place, &tree, &[]).to_string();
    let target = place.bench.directory("target");
    let (mut mounted, mut cut_short) = (0, 0);
    for delay in 0..24 {
        let mut restore = place.thawfs();
        let mut restore = restore
            .args(["-q", "restore", &handle, text(&target)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(delay * 2));
        kill_process(Pid::from_raw(restore.id() as i32).unwrap(), Signal::KILL).unwrap();
        cut_short += u32::from(!restore.wait().unwrap().success());
        // A server without its command either mounts, or ends by itself.
        let started = Instant::now();
        while place.bench.mounted().is_empty() && !place.bench.servers().is_empty() {
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "a server neither mounts nor ends"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        if !place.bench.mounted().is_empty() {
            mounted += 1;
            // Nobody was told of it, so that it may be on its way down.
            match fs::read(target.join("hello")) {
                Ok(hello) => assert_eq!(hello, b"hello from the archive\n"),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}"),
            }
        }
    }
    // Whatever there is now, a restore replaces.
    answer(&place, &["restore", &handle, text(&target)], 0);
    same_tree(&tree, &target);
    place.bench.ok(&["unmount", text(&target)]);
    place.bench.assert_nothing_left();
    assert!(cut_short > 0, "each of 24 restores was done before it could be killed");
    eprintln!("of 24, {cut_short} were killed before their end, and {mounted} were mounted");
}

#[test]
fn the_library_has_the_same_verbs() {
    use std::sync::Arc;

    use futures::TryStreamExt;
    use thawfs::backup::{
        BackupState, Backups, BucketRequest, CreateProgress, CreateRequest, Deletion,
        VerifyProgress,
    };
    use thawfs::failure::Code;
    use thawfs::squashfs::write::Compression;

    let place = Place::local();
    let tree = small_tree(&place);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let backups = Backups::open(&BucketRequest::new(&place.url)).await.unwrap();
        let request = CreateRequest {
            name: Some("from Rust".into()),
            compression: Some(Compression::Lz4),
            exclude: vec!["script".into()],
            ..CreateRequest::new(&tree)
        };
        let progress = Arc::new(CreateProgress::default());
        let created = backups.create(&request, Arc::clone(&progress)).await.unwrap();
        let id = &created.metadata.id;
        assert_eq!(progress.bytes_packed(), progress.bytes_total());
        assert_eq!(progress.bytes_sent(), created.metadata.size_bytes);
        // hello, sub, data, deeper, empty, link and the root; hello-too is hello, script is left out.
        assert_eq!(created.inodes, 7);

        let listed: Vec<_> = backups.list().try_collect().await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].state, BackupState::Ok);
        assert_eq!(backups.restorable(id).await.unwrap(), created.metadata);
        backups.verify(id, 2, Arc::new(VerifyProgress::default())).await.unwrap();

        let progress = Arc::new(CreateProgress::default());
        progress.cancel().store(true, std::sync::atomic::Ordering::Relaxed);
        let failure = backups.create(&request, progress).await.unwrap_err();
        assert_eq!(failure.code, Code::BackupCreateFailed);

        backups.delete(id, Deletion::Real).await.unwrap();
        let failure = backups.restorable(id).await.unwrap_err();
        assert_eq!(failure.code, Code::BackupNotFound);
    });
    assert_eq!(place.keys(), Vec::<String>::new());
}

#[test]
fn a_server_that_is_killed_while_it_mounts_holds_nothing_up() {
    use rustix::process::{Pid, Signal, kill_process};
    if !can_mount("a_server_that_is_killed_while_it_mounts_holds_nothing_up") {
        return;
    }
    let place = Place::local();
    let tree = small_tree(&place);
    let handle = create(&place, &tree, &[]).to_string();
    let target = place.bench.directory("target");
    for _ in 0..10 {
        let mut restore = place.thawfs();
        let mut restore = restore
            .args(["-q", "restore", &handle, text(&target)])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        let soon = |what: &str| assert!(started.elapsed() < Duration::from_secs(20), "{what}");
        while place.bench.mounted().is_empty() {
            soon("nothing is mounted");
        }
        loop {
            let servers = place.bench.servers();
            for server in &servers {
                // It may have ended by now.
                let _ = kill_process(Pid::from_raw(*server as i32).unwrap(), Signal::KILL);
            }
            if restore.try_wait().unwrap().is_some() && servers.is_empty() {
                break;
            }
            soon("the restore or its server does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
        // What is left is a dead mount, or none.
        place.bench.run(&["unmount", text(&target)]);
        assert_eq!(place.bench.mounted(), Vec::<PathBuf>::new());
    }
    answer(&place, &["restore", &handle, text(&target)], 0);
    same_tree(&tree, &target);
    place.bench.ok(&["unmount", text(&target)]);
    assert_eq!(place.bench.mounted(), Vec::<PathBuf>::new());
    assert_eq!(place.bench.servers(), Vec::<u32>::new());
}
