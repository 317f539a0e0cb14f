//! Checkpoints that the server of a mount makes backups of, in the bucket that its own is in.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::corpus::Numbers;
use crate::support::mount::{can_mount, can_mount_with};
use crate::support::place::Place;
use crate::support::s3::{Fault, Seen};
use crate::support::surrounding::{Need, has};
use crate::support::trees::assert_same;
use crate::support::words::{eventually, said, text};

/// Bytes that do not compress; others for another seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    Numbers(seed).noise(len)
}

/// A mount of a backup in a bucket.
pub(crate) struct Live {
    pub(crate) place: Place,
    pub(crate) dir: PathBuf,
    /// The backup.
    pub(crate) id: String,
}

impl Live {
    pub(crate) fn new(place: Place) -> Self {
        // Of several parts of an upload.
        Self::of(place, 20 << 20, &[])
    }

    /// Of a tree with small files and a large one.
    pub(crate) fn of(place: Place, large: usize, more: &[&str]) -> Self {
        let tree = place.bench.directory("tree");
        fs::write(tree.join("large"), noise(1, large)).unwrap();
        for n in 0..40 {
            let dir = tree.join(format!("dir-{}", n % 5));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(format!("small-{n}")), noise(100 + n, 5_000)).unwrap();
        }
        let id = ok(&place, &["create", text(&tree)])["id"].as_str().unwrap().to_owned();
        let dir = place.bench.directory("live");
        ok(&place, &[&["restore", &id, text(&dir)][..], more].concat());
        Self { place, dir, id }
    }

    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        fs::write(self.dir.join(name), contents).unwrap();
    }

    /// What a command about the mount answers.
    pub(crate) fn does(&self, command: &str, more: &[&str]) -> Value {
        ok(&self.place, &[&[command, text(&self.dir)][..], more].concat())
    }

    /// The id of a new checkpoint.
    pub(crate) fn checkpoint(&self, more: &[&str]) -> String {
        self.does("checkpoint", more)["id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn fails(&self, command: &str, more: &[&str]) -> (i32, Value) {
        let (status, mut lines) =
            self.place.json(&[&[command, text(&self.dir)][..], more].concat());
        (status, lines.pop().unwrap())
    }

    pub(crate) fn points(&self) -> Vec<Value> {
        let (status, points) = self.place.json(&["checkpoints", text(&self.dir)]);
        assert_eq!(status, 0);
        points
    }

    /// How far the publishing of a checkpoint is.
    pub(crate) fn state(&self, id: &str) -> String {
        let points = self.points();
        let point = points.iter().find(|point| point["id"] == id);
        point.map_or("gone", |point| point["published"]["state"].as_str().unwrap()).to_owned()
    }

    pub(crate) fn until(&self, id: &str, state: &str) {
        eventually(&format!("{id} is {state}"), || self.state(id) == state);
    }

    /// A copy of the tree as it is now.
    pub(crate) fn copy(&self, name: &str) -> PathBuf {
        let to = self.place.bench.plain_directory("copies").join(name);
        let from = self.dir.join(".");
        let copied = Command::new("cp").args(["-a", text(&from), text(&to)]).status().unwrap();
        assert!(copied.success());
        to
    }

    /// A backup, unpacked.
    pub(crate) fn extracted(&self, id: &str) -> PathBuf {
        let to = self.place.bench.plain_directory(&format!("extracted-{id}")).join("tree");
        ok(&self.place, &["restore", "--extract", "--preserve-privileged", id, text(&to)]);
        to
    }

    pub(crate) fn kill(&self) {
        let pid = Pid::from_raw(self.place.bench.servers()[0] as i32).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        eventually("the server has ended", || self.place.bench.servers().is_empty());
    }

    pub(crate) fn unmount(&self, more: &[&str]) -> Output {
        let output = self.place.run(&[&["unmount", text(&self.dir)][..], more].concat());
        assert!(output.status.success(), "{}", said(&output));
        output
    }

    /// That the bucket has these backups, whole, and nothing else.
    pub(crate) fn assert_in_bucket(&self, ids: &[&str]) {
        let mut due: Vec<_> = ids
            .iter()
            .flat_map(|id| [format!("{id}/data.sqsh"), format!("{id}/meta.json")])
            .collect();
        due.sort();
        let mut keys = self.place.keys();
        keys.retain(|key| !key.ends_with("trace.json"));
        assert_eq!(keys, due, "{}", self.place.name);
        let uploads = self.place.bench.path("buckets/.uploads");
        let unfinished = fs::read_dir(uploads).into_iter().flatten().count();
        assert_eq!(unfinished, 0, "{}", self.place.name);
    }
}

/// The answer of a command that succeeds.
pub(crate) fn ok(place: &Place, arguments: &[&str]) -> Value {
    let (status, mut lines) = place.json(arguments);
    assert_eq!(status, 0, "{}: {arguments:?}: {lines:?}", place.name);
    lines.pop().unwrap_or_default()
}

/// A little of everything.
pub(crate) fn change(root: &Path, round: u64) {
    let at = |name: &str| root.join(name);
    fs::write(at(&format!("new-{round}")), noise(round, 30_000)).unwrap();
    let mut appended = File::options().append(true).open(at("dir-0/small-0")).unwrap();
    appended.write_all(b"more").unwrap();
    fs::create_dir(at(&format!("made-{round}"))).unwrap();
    fs::rename(at(&format!("dir-1/small-{}", 1 + 5 * round)), at(&format!("made-{round}/moved")))
        .unwrap();
    fs::remove_file(at(&format!("dir-2/small-{}", 2 + 5 * round))).unwrap();
    fs::set_permissions(at("dir-3/small-3"), fs::Permissions::from_mode(0o600 + round as u32 % 8))
        .unwrap();
    fs::hard_link(at("dir-4/small-4"), at(&format!("linked-{round}"))).unwrap();
    // Of a file that a layer has, attributes alone are in the next.
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_234_567_890 + round);
    if let Some(before) = round.checked_sub(1) {
        let touched = File::open(at(&format!("new-{before}"))).unwrap();
        touched.set_modified(then).unwrap();
    }
}

/// Writes to the tree on and on until it is told to stop.
fn storm(root: &Path, stop: &AtomicBool) {
    for round in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let name = format!("storm-{}", round % 7);
        fs::write(root.join(&name), noise(round, 3000)).unwrap();
        let mut file = File::options().append(true).open(root.join("dir-0/small-0")).unwrap();
        file.write_all(b"storm").unwrap();
        let mut file = File::options().append(true).open(root.join("new-0")).unwrap();
        file.write_all(b"storm").unwrap();
        let _ = fs::remove_file(root.join(format!("dir-4/small-{}", 4 + 5 * (round % 8))));
        let _ = fs::rename(root.join(&name), root.join(format!("dir-1/storm-{}", round % 3)));
    }
}

#[test]
fn a_published_checkpoint_is_the_tree_of_that_moment_whatever_is_written_meanwhile() {
    if !can_mount("a_published_checkpoint_is_the_tree_of_that_moment_whatever_is_written_meanwhile")
    {
        return;
    }
    for place in Place::both() {
        let live = Live::new(place);
        let name = live.place.name;
        change(&live.dir, 0);
        let copy = live.copy("first");
        let made = live.does("checkpoint", &["--name", "first", "--ttl", "1h"]);
        assert_eq!(made["published"]["state"], "queued", "{name}: {made}");
        let first = made["id"].as_str().unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| storm(&live.dir, &stop));
            live.until(first, "published");
            stop.store(true, Ordering::Relaxed);
        });
        assert_same(&live.extracted(first), &copy, name);

        // All that is done to backups is done to it.
        let shown = ok(&live.place, &["show", first]);
        assert_eq!((&shown["name"], &shown["dir"]), (&"first".into(), &text(&live.dir).into()));
        let meta = fs::read(live.place.object(&format!("{first}/meta.json"))).unwrap();
        let meta: Value = serde_json::from_slice(&meta).unwrap();
        assert_eq!((&meta["ttl"], &meta["name"]), (&3600.into(), &"first".into()), "{name}");
        ok(&live.place, &["verify", first]);
        let (_, listed) = live.place.json(&["list"]);
        assert!(listed.iter().any(|backup| backup["id"] == first), "{listed:?}");
        let point = &live.points()[0];
        let size = fs::metadata(live.place.object(&format!("{first}/data.sqsh"))).unwrap().len();
        assert_eq!(point["published"]["sizeBytes"], size, "{point}");

        // One that is waited for is there then.
        let copy = live.copy("second");
        let second = live.does("checkpoint", &["--wait"]);
        assert_eq!(second["published"]["base"], first, "{second}");
        assert_eq!(second["published"]["state"], "published", "{second}");
        let second = second["id"].as_str().unwrap();
        assert_same(&live.extracted(second), &copy, name);
        live.assert_in_bucket(&[&live.id, first, second]);

        // Who deletes the backup keeps the checkpoint.
        ok(&live.place, &["delete", first]);
        live.does("rollback", &["first"]);
        live.unmount(&[]);
    }
}

#[test]
fn a_local_checkpoint_sends_nothing() {
    if !can_mount("a_local_checkpoint_sends_nothing") {
        return;
    }
    let live = Live::new(Place::s3());
    change(&live.dir, 0);
    live.place.server.as_ref().unwrap().clear_log();
    let made = live.does("checkpoint", &["--local"]);
    assert_eq!((&made["published"], &made["localBecause"]), (&Value::Null, &Value::Null));
    assert_eq!(live.points()[0]["published"], Value::Null);
    let log = live.place.server.as_ref().unwrap().log();
    assert!(log.iter().all(|seen| seen.method == "GET"), "{log:?}");
    live.unmount(&[]);
    live.assert_in_bucket(&[&live.id]);
}

#[test]
fn what_is_no_backup_in_a_bucket_has_local_checkpoints_and_says_so() {
    if !can_mount("what_is_no_backup_in_a_bucket_has_local_checkpoints_and_says_so") {
        return;
    }
    let place = Place::local();
    let tree = place.bench.directory("tree");
    fs::write(tree.join("file"), "x").unwrap();
    let archive = place.bench.archive(&tree, "plain.sqsh", &[]);
    let dir = place.bench.directory("live");
    ok(&place, &["mount", text(&archive), text(&dir)]);
    let made = ok(&place, &["checkpoint", text(&dir)]);
    assert_eq!(made["published"], Value::Null);
    let because = made["localBecause"].as_str().unwrap();
    assert!(because.contains("plain.sqsh, which is no backup in a bucket"), "{because}");
    let (status, lines) = place.json(&["checkpoint", text(&dir), "--wait"]);
    assert_eq!((status, lines[0]["code"].as_str().unwrap()), (15, "INVALID_BACKUP_CONFIG"));
    // None was made that could not be published.
    let (_, points) = place.json(&["checkpoints", text(&dir)]);
    assert_eq!(points.len(), 1);
    for (more, due, message) in [
        (&["--wait", "--local"][..], 2, "--wait"),
        (&["--ttl", "1h", "--local"], 2, "--ttl"),
        (&["--ttl", "0"], 15, "lifetime"),
    ] {
        let (status, lines) = place.json(&[&["checkpoint", text(&dir)][..], more].concat());
        assert_eq!(status, due, "{more:?}: {lines:?}");
        assert!(lines[0]["message"].as_str().unwrap().contains(message), "{lines:?}");
    }
    place.bench.ok(&["unmount", text(&dir)]);
}

#[test]
fn checkpoints_are_published_one_after_the_other_each_as_it_was() {
    if !can_mount("checkpoints_are_published_one_after_the_other_each_as_it_was") {
        return;
    }
    // What was read is there while nothing comes.
    let live = Live::of(Place::s3(), 1 << 20, &[]);
    live.copy("warm");
    let server = live.place.server.as_ref().unwrap();
    server.hold();
    let mut made = Vec::new();
    for round in 0..5 {
        change(&live.dir, round);
        let copy = live.copy(&format!("copy-{round}"));
        made.push((live.checkpoint(&[]), copy));
    }
    let states: Vec<_> = made.iter().map(|(id, _)| live.state(id)).collect();
    assert_eq!(states, ["publishing", "queued", "queued", "queued", "queued"]);
    let now = &live.points()[0]["published"];
    // Nobody counts what is in the archive.
    assert!(now["packedBytes"].is_u64() && now["totalBytes"].is_null(), "{now}");
    let status = ok(&live.place, &["status", text(&live.dir)]);
    let publishing = &status[0]["layers"]["publishing"];
    assert_eq!(
        (&publishing["queued"], &publishing["now"]),
        (&5.into(), &made[0].0.as_str().into())
    );
    server.release();
    let ids: Vec<_> = made.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids.len(), 5);
    made.iter().for_each(|(id, _)| live.until(id, "published"));
    live.assert_in_bucket(&[&[live.id.as_str()], &ids[..]].concat());
    for (id, copy) in &made {
        assert_same(&live.extracted(id), copy, id);
    }
    live.unmount(&[]);
}

pub(crate) fn is_part(seen: &Seen) -> bool {
    seen.query.contains("partNumber")
}

#[test]
fn a_server_that_is_killed_while_it_publishes_leaves_it_to_the_next() {
    if !can_mount("a_server_that_is_killed_while_it_publishes_leaves_it_to_the_next") {
        return;
    }
    let place = Place::s3();
    let upper = place.bench.plain_directory("changes").join("upper");
    let tree = place.bench.directory("tree");
    fs::write(tree.join("large"), noise(1, 20 << 20)).unwrap();
    let id = ok(&place, &["create", text(&tree)])["id"].as_str().unwrap().to_owned();
    let dir = place.bench.directory("live");
    let source = format!("s3://box/pre/backups/{id}/data.sqsh");
    let live = Live { place, dir, id };
    let mount = || {
        ok(&live.place, &["mount", "--upper", text(&upper), &source, text(&live.dir)]);
    };
    mount();
    live.write("new", noise(7, 30 << 20));
    let copy = live.copy("copy");
    let server = live.place.server.as_ref().unwrap();
    // Parts are there, and the object is not.
    server.inject_always(is_part, Fault::Silence);
    let point = live.checkpoint(&["--sync"]);
    eventually("parts are sent", || server.log().iter().any(is_part));
    live.kill();
    server.heal();
    live.place.bench.ok(&["unmount", "--dead", text(&live.dir)]);
    mount();
    live.until(&point, "published");
    assert_same(&live.extracted(&point), &copy, "after the kill");
    live.assert_in_bucket(&[&live.id, &point]);
    live.unmount(&[]);
}

#[test]
fn what_a_deleted_backup_had_is_packed_anew() {
    if !can_mount("what_a_deleted_backup_had_is_packed_anew") {
        return;
    }
    for place in Place::both() {
        let live = Live::of(place, 3 << 20, &[]);
        // What was read is there still.
        let whole = live.copy("whole");
        change(&live.dir, 0);
        let copy = live.copy("copy");
        let before = live.checkpoint(&["--wait"]);
        ok(&live.place, &["delete", &live.id]);
        ok(&live.place, &["delete", &before]);
        let after = live.does("checkpoint", &["--wait"]);
        let because = after["published"]["wholeBecause"].as_str().unwrap();
        assert!(because.contains("cannot be read"), "{after}");
        let warning = after["published"]["warnings"][0].as_str().unwrap();
        assert!(warning.contains(&before) && warning.contains("not in the bucket"), "{warning}");
        let after = after["id"].as_str().unwrap();
        live.assert_in_bucket(&[after]);
        assert_same(&live.extracted(after), &copy, live.place.name);
        live.does("rollback", &["--to-archive"]);
        assert_same(&live.dir, &whole, live.place.name);
        live.unmount(&[]);
    }
}

pub(crate) fn is_write(seen: &Seen) -> bool {
    seen.method != "GET"
}

#[test]
fn a_store_that_fails_in_the_middle_is_tried_again() {
    if !can_mount("a_store_that_fails_in_the_middle_is_tried_again") {
        return;
    }
    let live = Live::of(Place::s3(), 20 << 20, &["--timeout", "2s"]);
    let server = live.place.server.as_ref().unwrap();
    change(&live.dir, 0);
    let copy = live.copy("copy");
    // All parts are there by then.
    let completes = |seen: &Seen| seen.method == "POST" && seen.query.contains("uploadId");
    server.inject_always(completes, Fault::Refuse(503, "SlowDown"));
    let point = live.checkpoint(&[]);
    let why = || live.points()[0]["published"]["why"].as_str().map(str::to_owned);
    eventually("it has failed once", || why().is_some());
    assert_eq!(live.state(&point), "queued");
    let status = ok(&live.place, &["status", text(&live.dir)]);
    let said = status[0]["layers"]["publishing"]["last"].as_str().unwrap().to_owned();
    assert_eq!(said, why().unwrap());
    // Nothing of it is left meanwhile.
    live.assert_in_bucket(&[&live.id]);
    server.heal();
    live.until(&point, "published");
    live.assert_in_bucket(&[&live.id, &point]);
    assert_same(&live.extracted(&point), &copy, "after the failure");
    live.unmount(&[]);
}

#[test]
fn a_bucket_that_refuses_leaves_checkpoints_local_until_somebody_waits() {
    if !can_mount("a_bucket_that_refuses_leaves_checkpoints_local_until_somebody_waits") {
        return;
    }
    let live = Live::new(Place::s3());
    let server = live.place.server.as_ref().unwrap();
    server.inject_always(is_write, Fault::Refuse(403, "AccessDenied"));
    change(&live.dir, 0);
    let first = live.checkpoint(&[]);
    live.until(&first, "failed");
    let points = live.points();
    let why = points[0]["published"]["why"].as_str().unwrap();
    assert!(why.contains("denied"), "{why}");
    let (status, failure) = live.fails("checkpoint", &["--wait"]);
    assert_eq!((status, failure["code"].as_str().unwrap()), (18, "BACKUP_CREATE_FAILED"));
    let message = failure["message"].as_str().unwrap();
    assert!(message.contains("is not in the bucket") && message.contains("denied"), "{message}");
    // It was made all the same, and can be rolled back to.
    let ids: Vec<_> =
        live.points().iter().map(|it| it["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 2);
    assert!(message.contains(&ids[1]), "{message}");
    live.write("later", "x");
    live.does("rollback", &[&ids[1]]);
    assert!(!live.dir.join("later").exists());
    live.assert_in_bucket(&[&live.id]);
    // Elsewhere, it is said why there is no such backup.
    let (status, lines) = live.place.json(&["restore", &first, text(&live.place.bench.path("to"))]);
    let message = lines[0]["message"].as_str().unwrap();
    assert_eq!(status, 16, "{message}");
    assert!(message.contains("is not published yet") && message.contains("denied"), "{message}");

    server.heal();
    let third = live.checkpoint(&["--wait"]);
    ids.iter().for_each(|id| live.until(id, "published"));
    live.assert_in_bucket(&[&live.id, &ids[0], &ids[1], &third]);
    live.unmount(&[]);
}

#[test]
fn what_a_bucket_refuses_in_the_middle_is_published_once_it_takes_something() {
    if !can_mount("what_a_bucket_refuses_in_the_middle_is_published_once_it_takes_something") {
        return;
    }
    let live = Live::new(Place::s3());
    let server = live.place.server.as_ref().unwrap();
    change(&live.dir, 0);
    live.write("more", noise(3, 20 << 20));
    let copy = live.copy("copy");
    // Keys that have expired may be others the next time.
    server.inject_always(is_part, Fault::Refuse(403, "ExpiredToken"));
    let first = live.checkpoint(&[]);
    let why = || live.points()[0]["published"]["why"].as_str().unwrap_or_default().to_owned();
    eventually("the keys have expired", || why().contains("expired"));
    assert_eq!(live.state(&first), "queued");
    live.assert_in_bucket(&[&live.id]);
    // Who tidies leaves it alone.
    ok(&live.place, &["gc", "--yes"]);
    // Rights that were taken away are somebody's to give back.
    server.inject_always(is_part, Fault::Refuse(403, "AccessDenied"));
    live.until(&first, "failed");
    assert!(why().contains("denied"), "{}", why());
    let status = ok(&live.place, &["status", text(&live.dir)]);
    assert_eq!(status[0]["layers"]["publishing"]["last"], why().as_str());
    live.assert_in_bucket(&[&live.id]);
    server.heal();
    change(&live.dir, 1);
    let second = live.checkpoint(&[]);
    live.until(&second, "published");
    live.until(&first, "published");
    live.assert_in_bucket(&[&live.id, &first, &second]);
    assert_same(&live.extracted(&first), &copy, "after the refusals");
    live.unmount(&[]);
}

#[test]
fn what_is_forgotten_while_it_is_published_is_not_in_the_bucket() {
    if !can_mount("what_is_forgotten_while_it_is_published_is_not_in_the_bucket") {
        return;
    }
    let live = Live::new(Place::s3());
    let server = live.place.server.as_ref().unwrap();
    change(&live.dir, 0);
    live.write("more", noise(3, 20 << 20));
    server.inject_always(is_part, Fault::Delay(Duration::from_secs(3)));
    let [first, second] = [live.checkpoint(&[]), live.checkpoint(&[])];
    eventually("parts are sent", || server.log().iter().any(is_part));
    let other = live.place.bench.path("to");
    for id in [&first, &second] {
        let (status, lines) = live.place.json(&["restore", id, text(&other)]);
        let message = lines[0]["message"].as_str().unwrap();
        assert_eq!(status, 16, "{message}");
        assert!(message.contains("still being published by the mount on"), "{message}");
    }
    live.does("forget", &[&first]);
    assert_eq!(live.state(&first), "gone");
    server.heal();
    live.until(&second, "published");
    live.assert_in_bucket(&[&live.id, &second]);
    live.unmount(&[]);
}

#[test]
fn an_unmount_says_what_is_not_published() {
    if !can_mount("an_unmount_says_what_is_not_published") {
        return;
    }
    // Whether the changes stay, and what is said then.
    for (more, stays) in [(&[][..], false), (&["--keep-upper"][..], true)] {
        let live = Live::of(Place::s3(), 20 << 20, more);
        let server = live.place.server.as_ref().unwrap();
        change(&live.dir, 0);
        server.inject_always(is_part, Fault::Silence);
        let point = live.checkpoint(&[]);
        eventually("parts are sent", || server.log().iter().any(is_part));
        let upper = ok(&live.place, &["status", text(&live.dir)])[0]["upper"].clone();
        let unmounting = Instant::now();
        let said = said(&live.unmount(&[]));
        assert!(unmounting.elapsed().as_secs() < 10, "{:?}", unmounting.elapsed());
        let words = match stays {
            true => "not in the bucket until the same changes are mounted again",
            false => "not in the bucket, and will not be",
        };
        assert!(said.contains(&point) && said.contains(words), "{said}");
        live.assert_in_bucket(&[&live.id]);
        server.heal();
        if !stays {
            continue;
        }
        let source = format!("s3://box/pre/backups/{}/data.sqsh", live.id);
        let upper = upper.as_str().unwrap();
        let work = Path::new(upper).with_file_name("work");
        let mount = ["mount", "--upper", upper, "--workdir", text(&work), &source, text(&live.dir)];
        ok(&live.place, &mount);
        let said = self::said(&live.unmount(&["--wait-published"]));
        assert!(!said.contains(&point), "{said}");
        live.assert_in_bucket(&[&live.id, &point]);
    }
}

#[test]
fn a_backup_of_a_whole_mount_is_made_by_its_server() {
    if !can_mount("a_backup_of_a_whole_mount_is_made_by_its_server") {
        return;
    }
    for place in Place::both() {
        let live = Live::new(place);
        let name = live.place.name;
        change(&live.dir, 0);
        let local = live.checkpoint(&["--local"]);
        change(&live.dir, 1);
        let copy = live.copy("copy");
        let large = &fs::metadata(live.dir.join("large")).unwrap().len();
        let mut made = vec![live.id.clone()];
        // Options, whether the server makes it, and whether it begins with the backup of the mount.
        for (more, by_server, onto) in [
            (&["--name", "whole mount", "--ttl", "1h"][..], true, true),
            (&["--full"], true, false),
            (&["--exclude", "no-such-file"], false, true),
            (&["--compression", "zstd:5"], false, true),
            (&["--threads", "1"], false, true),
        ] {
            let created = live.does("create", more);
            assert_eq!(created["byServer"], by_server, "{name}: {more:?}: {created}");
            let base = if onto { live.id.as_str().into() } else { Value::Null };
            assert_eq!(created["base"], base, "{name}: {more:?}: {created}");
            assert!(created["bytes"].as_u64().unwrap() > *large, "{name}: {more:?}: {created}");
            let id = created["id"].as_str().unwrap().to_owned();
            let size = fs::metadata(live.place.object(&format!("{id}/data.sqsh"))).unwrap().len();
            assert_eq!(created["sizeBytes"], size, "{name}: {more:?}");
            assert_same(&live.extracted(&id), &copy, &format!("{name}: {more:?}"));
            made.push(id);
        }
        let shown = ok(&live.place, &["show", &made[1]]);
        assert_eq!(
            (&shown["name"], &shown["dir"]),
            (&"whole mount".into(), &text(&live.dir).into())
        );
        // A part of it is for the command alone, what is being written to, and what is wrong from the start.
        let writer = File::options().append(true).open(live.dir.join("new-0")).unwrap();
        let created = live.does("create", &[]);
        // Who writes in another pid namespace is not seen.
        assert_eq!(created["byServer"], !has(Need::Processes), "{created}");
        made.push(created["id"].as_str().unwrap().to_owned());
        drop(writer);
        let part = ok(&live.place, &["create", text(&live.dir.join("dir-0"))]);
        assert_eq!(part["byServer"], false, "{part}");
        made.push(part["id"].as_str().unwrap().to_owned());
        let (status, failure) = live.fails("create", &["--name", "a\nb"]);
        assert_eq!(status, 15, "{failure}");
        // Nothing is left of what was a checkpoint for that alone, and no rollback goes there.
        let points = live.points();
        assert_eq!(points.len(), 1, "{points:?}");
        live.does("rollback", &[]);
        assert_eq!(live.points()[0]["id"], local.as_str());
        assert!(!live.dir.join("new-1").exists());
        let made: Vec<_> = made.iter().map(String::as_str).collect();
        live.assert_in_bucket(&made);
        live.unmount(&[]);
    }
}

#[test]
fn what_is_mounted_inside_is_in_a_backup_that_the_command_makes() {
    let test = "what_is_mounted_inside_is_in_a_backup_that_the_command_makes";
    // An ordinary user may not mount in a mount.
    if !can_mount_with(test, &[Need::Root]) {
        return;
    }
    let live = Live::of(Place::local(), 1 << 20, &[]);
    let inside = live.dir.join("inside");
    fs::create_dir(&inside).unwrap();
    ok(&live.place, &["restore", &live.id, text(&inside)]);
    let created = live.does("create", &[]);
    assert_eq!(created["byServer"], false, "{created}");
    let to = live.extracted(created["id"].as_str().unwrap());
    assert!(to.join("inside/large").exists());
    live.place.bench.ok(&["unmount", text(&inside)]);
    live.unmount(&[]);
}

#[test]
fn a_backup_that_cannot_be_made_by_the_server_leaves_no_checkpoint() {
    if !can_mount("a_backup_that_cannot_be_made_by_the_server_leaves_no_checkpoint") {
        return;
    }
    let live = Live::of(Place::s3(), 1 << 20, &["--timeout", "2s"]);
    let server = live.place.server.as_ref().unwrap();
    change(&live.dir, 0);
    for (fault, message) in [
        (Fault::Refuse(503, "SlowDown"), "cannot back up"),
        (Fault::Refuse(403, "AccessDenied"), "denied"),
    ] {
        server.inject_always(is_write, fault);
        let (status, failure) = live.fails("create", &[]);
        let said = failure["message"].as_str().unwrap();
        assert_eq!(status, 18, "{failure}");
        assert!(said.contains(message), "{failure}");
        assert_eq!(live.points(), Vec::<Value>::new());
        server.heal();
        live.assert_in_bucket(&[&live.id]);
    }
    live.unmount(&[]);
}

#[test]
fn to_restore_a_checkpoint_onto_its_mount_is_to_roll_back() {
    if !can_mount("to_restore_a_checkpoint_onto_its_mount_is_to_roll_back") {
        return;
    }
    if std::env::var("THAWFS_TEST_SURROUNDING").as_deref() == Ok("no-passthrough") {
        eprintln!("SKIPPED: each restore has an option there, and is no rollback by that");
        return;
    }
    let live = Live::of(Place::s3(), 1 << 20, &[]);
    change(&live.dir, 0);
    let copy = live.copy("copy");
    let published = live.does("checkpoint", &["--wait"]);
    let published = published["id"].as_str().unwrap();
    let handle = serde_json::json!({ "id": published, "dir": text(&live.dir) }).to_string();
    let local = live.checkpoint(&["--local"]);
    let status = ok(&live.place, &["status", text(&live.dir)]);
    for words in [
        &[published, text(&live.dir)][..],
        &[published],
        &[&handle],
        &[&local, text(&live.dir)],
        &[&local],
    ] {
        change(&live.dir, 1);
        let restored = ok(&live.place, &[&["restore"][..], words].concat());
        assert_eq!((&restored["rolledBack"], &restored["id"]), (&true.into(), &words_id(words)));
        assert_eq!(restored["mountpoint"], text(&live.dir), "{words:?}");
        assert_eq!(restored["pid"], status[0]["pid"], "{words:?}");
        assert_same(&live.dir, &copy, &format!("{words:?}"));
    }
    // Elsewhere, and where something else is asked for, it is a backup like others.
    let other = live.place.bench.directory("other");
    let restored = ok(&live.place, &["restore", published, text(&other)]);
    assert_eq!(restored["rolledBack"], Value::Null);
    assert_same(&other, &copy, "elsewhere");
    live.place.bench.ok(&["unmount", text(&other)]);
    let restored = ok(&live.place, &["restore", "--read-only", published, text(&live.dir)]);
    assert_eq!(restored["rolledBack"], Value::Null);
    assert_same(&live.dir, &copy, "in its place");
    live.unmount(&[]);
}

/// The id in what is typed to restore it.
fn words_id(words: &[&str]) -> Value {
    let handle = serde_json::from_str::<Value>(words[0]);
    handle.map_or_else(|_| words[0].into(), |handle| handle["id"].clone())
}
