//! Checkpoints that are published onto what was published before.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::backup_publish::{self, Library};
use crate::checkpoints_publish::{Live, change, is_part, noise, ok};
use crate::support::mount::can_mount;
use crate::support::place::Place;
use crate::support::s3::{Fault, Seen};
use crate::support::trees::assert_same;
use crate::support::words::{eventually, text};

/// What one megabyte of changes, the tables and two parts of an upload come to at most.
const LITTLE: u64 = 20 << 20;

/// Bytes of bodies that were sent to the server since its log was cleared.
fn received(live: &Live) -> u64 {
    let of = |seen: &Seen| -> u64 {
        seen.headers
            .get("content-length")
            .and_then(|it| it.to_str().ok()?.parse().ok())
            .unwrap_or(0)
    };
    live.place.server.as_ref().unwrap().log().iter().map(of).sum()
}

/// A checkpoint that is waited for: its id, and the backup that it was made of.
pub(crate) fn published(live: &Live) -> (String, Value) {
    let made = live.does("checkpoint", &["--wait"]);
    (made["id"].as_str().unwrap().to_owned(), made["published"].clone())
}

/// That a backup is entry by entry what one is that was packed anew of the same.
pub(crate) fn assert_as_whole(live: &Live, id: &str) {
    let whole = live.does("create", &["--full"])["id"].as_str().unwrap().to_owned();
    let library = Library::new(&live.place);
    let (ours, theirs) = (library.open(id), library.open(&whole));
    backup_publish::assert_same(&ours.archive, &theirs.archive, id);
    ok(&live.place, &["verify", id]);
    ok(&live.place, &["delete", &whole]);
}

/// What layers hold, each sort once more in another layer.
pub(crate) fn rearrange(root: &Path, round: u64) {
    let at = |name: &str| root.join(name);
    match round {
        0 => {
            fs::create_dir_all(at("deep/in/side")).unwrap();
            fs::write(at("deep/in/side/file"), noise(90, 300_000)).unwrap();
            fs::hard_link(at("deep/in/side/file"), at("deep/other-name")).unwrap();
            fs::rename(at("dir-0"), at("deep/renamed")).unwrap();
            fs::remove_dir_all(at("dir-1")).unwrap();
            fs::create_dir(at("dir-1")).unwrap();
            fs::write(at("dir-1/only"), "in an opaque directory").unwrap();
            symlink("deep/in", at("link")).unwrap();
        }
        1 => {
            fs::rename(at("deep"), at("deeper")).unwrap();
            fs::set_permissions(at("deeper/other-name"), PermissionsExt::from_mode(0o640)).unwrap();
            fs::set_permissions(at("deeper/renamed/small-5"), PermissionsExt::from_mode(0o600))
                .unwrap();
            fs::remove_file(at("dir-2/small-2")).unwrap();
            fs::remove_file(at("link")).unwrap();
        }
        2 => {
            fs::rename(at("deeper/in/side"), at("side")).unwrap();
            fs::write(at("deeper/other-name"), "both names").unwrap();
            fs::write(at("deeper/renamed/small-10"), "changed").unwrap();
            fs::remove_dir_all(at("dir-3")).unwrap();
            fs::rename(at("dir-1"), at("dir-3")).unwrap();
        }
        _ => {
            fs::remove_file(at("side/file")).unwrap();
            fs::rename(at("deeper/renamed"), at("dir-0")).unwrap();
            fs::set_permissions(at("large"), PermissionsExt::from_mode(0o604)).unwrap();
        }
    }
}

#[test]
fn what_was_sent_with_one_checkpoint_is_not_sent_with_the_next() {
    if !can_mount("what_was_sent_with_one_checkpoint_is_not_sent_with_the_next") {
        return;
    }
    for place in Place::both() {
        let live = Live::new(place);
        let mut before = live.id.clone();
        live.write("much", noise(5, 24 << 20));
        for round in 0..4 {
            rearrange(&live.dir, round);
            if let Some(server) = &live.place.server {
                server.clear_log();
            }
            let (id, made) = published(&live);
            assert_eq!(made["base"], before.as_str(), "round {round}: {made}");
            // What it was compared with is deleted.
            let warnings = made["warnings"].as_array().unwrap();
            assert_eq!(warnings.len(), usize::from(round > 0), "round {round}: {made}");
            if live.place.server.is_some() {
                let sent = received(&live);
                assert_eq!(sent > 24 << 20, round == 0, "round {round}: {sent}");
                assert!(round == 0 || sent < LITTLE, "round {round}: {sent}");
            }
            assert_as_whole(&live, &id);
            // One of this machine alone is passed over.
            live.checkpoint(&["--local"]);
            before = id;
        }
        live.unmount(&[]);
    }
}

#[test]
fn only_what_a_checkpoint_lies_on_is_what_it_is_made_of() {
    if !can_mount("only_what_a_checkpoint_lies_on_is_what_it_is_made_of") {
        return;
    }
    let live = Live::of(Place::s3(), 1 << 20, &[]);
    change(&live.dir, 0);
    let (first, _) = published(&live);
    change(&live.dir, 1);
    let (second, made) = published(&live);
    assert_eq!(made["base"], first.as_str());
    live.does("rollback", &[&first]);
    rearrange(&live.dir, 0);
    let (third, made) = published(&live);
    assert_eq!(made["base"], first.as_str(), "not {second}");
    assert_as_whole(&live, &third);
    live.does("rollback", &["--to-archive"]);
    change(&live.dir, 0);
    let (fourth, made) = published(&live);
    assert_eq!(made["base"], live.id.as_str());
    assert_as_whole(&live, &fourth);
    // What is forgotten here is still in the bucket.
    live.does("forget", &[&fourth]);
    change(&live.dir, 1);
    let created = live.does("create", &[]);
    assert_eq!((&created["byServer"], &created["base"]), (&true.into(), &fourth.as_str().into()));
    // And so is what was made by a command.
    let (fifth, made) = published(&live);
    assert_eq!(made["base"], created["id"]);
    assert_as_whole(&live, &fifth);
    live.unmount(&[]);
}

#[test]
fn one_that_is_gone_makes_way_for_the_one_before_it() {
    if !can_mount("one_that_is_gone_makes_way_for_the_one_before_it") {
        return;
    }
    for place in Place::both() {
        let live = Live::of(place, 3 << 20, &[]);
        live.copy("warm");
        let mut ids = Vec::new();
        for round in 0..4 {
            change(&live.dir, round);
            ids.push(published(&live).0);
        }
        ok(&live.place, &["delete", &ids[3]]);
        let meta = live.place.object(&format!("{}/meta.json", ids[2]));
        let text = fs::read_to_string(&meta).unwrap();
        let old = made_long_ago(&text);
        fs::write(&meta, old).unwrap();
        fs::write(live.place.object(&format!("{}/data.sqsh", ids[1])), noise(1, 5000)).unwrap();
        let (id, made) = published(&live);
        assert_eq!(made["base"], ids[0].as_str(), "{made}");
        let warnings = made["warnings"].as_array().unwrap();
        let due = ["is not in the bucket any more", "has expired", "cannot be read"];
        assert_eq!(warnings.len(), due.len(), "{made}");
        for ((warning, words), id) in warnings.iter().zip(due).zip(ids.iter().rev()) {
            let warning = warning.as_str().unwrap();
            assert!(warning.contains(words) && warning.contains(id), "{warning}");
        }
        assert_as_whole(&live, &id);
        live.unmount(&[]);
    }
}

/// Metadata of a backup that was made long ago.
fn made_long_ago(meta: &str) -> String {
    let mut meta: Value = serde_json::from_str(meta).unwrap();
    meta["createdAt"] = "2001-01-01T00:00:00.000Z".into();
    meta.to_string()
}

fn is_copy(seen: &Seen) -> bool {
    seen.headers.contains_key("x-amz-copy-source")
}

#[test]
fn one_that_is_deleted_while_another_is_made_of_it_makes_way_as_well() {
    if !can_mount("one_that_is_deleted_while_another_is_made_of_it_makes_way_as_well") {
        return;
    }
    let live = Live::new(Place::s3());
    let server = live.place.server.as_ref().unwrap();
    change(&live.dir, 0);
    live.write("more", noise(4, 20 << 20));
    let (first, _) = published(&live);
    change(&live.dir, 1);
    let copy = live.copy("copy");
    server.clear_log();
    server.inject_always(is_copy, Fault::Delay(Duration::from_secs(2)));
    let second = live.checkpoint(&[]);
    eventually("it is being copied", || server.log().iter().any(is_copy));
    ok(&live.place, &["delete", &first]);
    server.heal();
    live.until(&second, "published");
    live.assert_in_bucket(&[&live.id, &second]);
    assert_same(&live.extracted(&second), &copy, "made of what is left");
    live.unmount(&[]);
}

#[test]
fn a_fork_goes_on_from_what_was_published_before_it() {
    if !can_mount("a_fork_goes_on_from_what_was_published_before_it") {
        return;
    }
    let live = Live::of(Place::s3(), 1 << 20, &[]);
    change(&live.dir, 0);
    let (first, _) = published(&live);
    change(&live.dir, 1);
    let fork = live.place.bench.path("fork");
    live.does("fork", &[text(&fork), "--quiet"]);
    change(&live.dir, 2);
    let (_, made) = published(&live);
    assert_eq!(made["base"], first.as_str());
    let forked = Live { place: live.place, dir: fork, id: live.id };
    change(&forked.dir, 2);
    let (id, made) = published(&forked);
    assert_eq!(made["base"], first.as_str(), "what is of its own line");
    assert_as_whole(&forked, &id);
    rearrange(&forked.dir, 0);
    let (next, made) = published(&forked);
    assert_eq!(made["base"], id.as_str());
    assert_as_whole(&forked, &next);
    forked.unmount(&[]);
    let live = Live { dir: live.dir, ..forked };
    live.unmount(&[]);
}

#[test]
fn who_comes_after_a_death_goes_on_from_what_was_published() {
    if !can_mount("who_comes_after_a_death_goes_on_from_what_was_published") {
        return;
    }
    let live = Live::of(Place::s3(), 1 << 20, &["--keep-upper"]);
    change(&live.dir, 0);
    let (first, _) = published(&live);
    let upper = ok(&live.place, &["status", text(&live.dir)])[0]["upper"].clone();
    let upper = upper.as_str().unwrap();
    let work = Path::new(upper).with_file_name("work");
    let source = format!("s3://box/pre/backups/{}/data.sqsh", live.id);
    let mount = ["mount", "--upper", upper, "--workdir", text(&work), &source, text(&live.dir)];
    // What was published is on disk a moment later, or is found in the bucket.
    live.kill();
    live.place.bench.ok(&["unmount", "--dead", text(&live.dir)]);
    ok(&live.place, &mount);
    live.until(&first, "published");
    change(&live.dir, 1);
    let server = live.place.server.as_ref().unwrap();
    server.inject_always(is_part, Fault::Delay(Duration::from_secs(1)));
    let (second, made) = published(&live);
    assert_eq!(made["base"], first.as_str());
    server.heal();
    assert_as_whole(&live, &second);
    live.unmount(&[]);
}
