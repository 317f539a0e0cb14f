//! `mount --rebase`: what an earlier mount has changed, over a backup of that.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::checkpoints_onto::{assert_as_whole, published, rearrange};
use crate::checkpoints_publish::{Live, change, noise, ok};
use crate::support::mount::can_mount;
use crate::support::place::Place;
use crate::support::surrounding::Surrounding;
use crate::support::trees::assert_same;
use crate::support::words::{eventually, said, text};

/// A mount with an upper of its own, which can be mounted again.
struct Again {
    live: Live,
    upper: PathBuf,
}

impl Again {
    fn new(place: Place) -> Self {
        let tree = place.bench.directory("tree");
        fs::write(tree.join("large"), noise(1, 1 << 20)).unwrap();
        for n in 0..40 {
            let dir = tree.join(format!("dir-{}", n % 5));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(format!("small-{n}")), format!("{n}").repeat(500)).unwrap();
        }
        fs::write(tree.join("one-name"), "of two").unwrap();
        fs::hard_link(tree.join("one-name"), tree.join("dir-4/other-name")).unwrap();
        let id = ok(&place, &["create", text(&tree)])["id"].as_str().unwrap().to_owned();
        let dir = place.bench.directory("live");
        let upper = place.bench.plain_directory("changes").join("upper");
        let again = Self { live: Live { place, dir, id }, upper };
        assert_eq!(again.mount(&again.source(&again.live.id), &[]).0, 0);
        again
    }

    fn source(&self, id: &str) -> String {
        format!("{}/backups/{id}/data.sqsh", self.live.place.url)
    }

    /// Exit code, the answer, and what was said.
    fn mount(&self, source: &str, more: &[&str]) -> (i32, Value, String) {
        let words = ["mount", "--json", "--upper", text(&self.upper), source, text(&self.live.dir)];
        let output = self.live.place.run(&[&words[..], more].concat());
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let said = format!("{}{answer}", said(&output));
        (output.status.code().unwrap(), answer, said)
    }

    fn rebased(&self) -> (Value, String) {
        let (status, answer, said) = self.mount(&self.source(&self.live.id), &["--rebase"]);
        assert_eq!(status, 0, "{said}");
        (answer, said)
    }

    fn layers(&self) -> Value {
        ok(&self.live.place, &["status", text(&self.live.dir)])[0]["layers"].clone()
    }

    /// Files in the upper and its work directory.
    fn files(&self) -> usize {
        let all = walkdir::WalkDir::new(self.upper.parent().unwrap()).into_iter();
        all.flatten().filter(|entry| entry.file_type().is_file()).count()
    }
}

fn number(path: &Path) -> u64 {
    path.symlink_metadata().unwrap().ino()
}

#[test]
fn what_is_put_onto_a_backup_shows_the_same_and_its_layers_are_freed() {
    if !can_mount("what_is_put_onto_a_backup_shows_the_same_and_its_layers_are_freed") {
        return;
    }
    for place in Place::both() {
        let again = Again::new(place);
        let live = &again.live;
        rearrange(&live.dir, 0);
        published(live);
        rearrange(&live.dir, 1);
        fs::write(live.dir.join("by-the-way"), "x").unwrap();
        let copy = live.copy("published");
        let (base, _) = published(live);
        rearrange(&live.dir, 2);
        live.checkpoint(&["--local", "--name", "later"]);
        let later = live.copy("later");
        rearrange(&live.dir, 3);
        // What the live upper has of the archive, by each sort of record.
        fs::write(live.dir.join("one-name"), "written by one name").unwrap();
        fs::rename(live.dir.join("dir-4"), live.dir.join("renamed-4")).unwrap();
        fs::set_permissions(live.dir.join("by-the-way"), PermissionsExt::from_mode(0o611)).unwrap();
        fs::remove_file(live.dir.join("dir-2/small-7")).unwrap();
        fs::set_permissions(&live.dir, PermissionsExt::from_mode(0o731)).unwrap();
        let now = live.copy("now");
        let files = again.files();
        live.unmount(&[]);

        let (answer, said) = again.rebased();
        assert!(answer["source"].as_str().unwrap().contains(&base), "{answer}");
        assert!(said.contains(&format!("lies on backup {base}")), "{said}");
        assert_same(&live.dir, &now, "rebased");
        let (_, told) = live.place.json(&["diff", text(&live.dir)]);
        for (path, status) in [
            ("large", "attributes"),
            ("by-the-way", "attributes"),
            ("dir-0/small-10", "modified"),
            ("dir-2/small-7", "removed"),
            ("renamed-4", "renamed"),
        ] {
            let of_path: Vec<_> = told.iter().filter(|entry| entry["path"] == path).collect();
            assert_eq!(of_path.len(), 1, "{path}: {told:?}");
            assert_eq!(of_path[0]["status"], status, "{path}");
        }
        eventually("layers are removed", || again.files() < files);
        assert_eq!(fs::read_dir(&again.upper).unwrap().count(), 0, "layer 0");
        let layers = again.layers();
        assert_eq!((&layers["layers"], &layers["checkpoints"]), (&2.into(), &1.into()), "{layers}");
        // Names of one file are that still, and have one number, which no other file has.
        fs::write(live.dir.join("renamed-4/other-name"), "by the other").unwrap();
        assert_eq!(fs::read_to_string(live.dir.join("one-name")).unwrap(), "by the other");
        let mut numbers = std::collections::HashMap::new();
        for entry in walkdir::WalkDir::new(&live.dir).into_iter().flatten() {
            let names: &mut Vec<_> = numbers.entry(number(entry.path())).or_default();
            names.push(entry.path().to_owned());
            let links = entry.metadata().unwrap().nlink();
            assert!(entry.file_type().is_dir() || names.len() as u64 <= links, "{names:?}");
        }
        let number_of_one = number(&live.dir.join("one-name"));
        assert_eq!(numbers[&number_of_one].len(), 2);

        // All goes on from there.
        fs::write(live.dir.join("dir-0/small-0"), "once more").unwrap();
        fs::hard_link(live.dir.join("by-the-way"), live.dir.join("dir-0/by-the-way")).unwrap();
        fs::rename(live.dir.join("renamed-4"), live.dir.join("side/renamed-4")).unwrap();
        let (next, made) = published(live);
        assert_eq!(made["base"], base.as_str(), "{made}");
        assert_as_whole(live, &next);
        let changed = live.copy("changed");
        live.does("rollback", &["later"]);
        assert_same(&live.dir, &later, "rolled back");
        live.does("rollback", &["--to-archive"]);
        assert_same(&live.dir, &copy, "what it was put onto");
        live.does("rollback", &["--discard", &next]);
        assert_same(&live.dir, &changed, "and back");
        let numbers = |names: &[&str]| -> Vec<u64> {
            names.iter().map(|name| number(&live.dir.join(name))).collect()
        };
        let before = numbers(&["one-name", "by-the-way", "large", "side/renamed-4"]);
        live.unmount(&[]);

        // It does not go with what it was made over any more, which is said.
        let (status, _, said) = again.mount(&again.source(&live.id), &[]);
        assert_eq!(status, 11, "{said}");
        assert!(said.contains("another archive") && said.contains(&base), "{said}");
        assert_eq!(again.mount(&again.source(&base), &[]).0, 0);
        assert_same(&live.dir, &changed, "as it was left");
        assert_eq!(numbers(&["one-name", "by-the-way", "large", "side/renamed-4"]), before);
        live.does("forget", &["later"]);
        live.unmount(&[]);
        // Once more, by what it was mounted with first.
        let (answer, _) = again.rebased();
        assert!(answer["source"].as_str().unwrap().contains(&next), "{answer}");
        assert_same(&live.dir, &changed, "twice");
        ok(&live.place, &["delete", &base]);
        live.unmount(&[]);
        let (answer, said) = again.rebased();
        assert!(answer["source"].as_str().unwrap().contains(&next), "{answer}: {said}");
        assert_same(&live.dir, &changed, "nothing newer");
        live.unmount(&[]);
    }
}

#[test]
fn a_rebase_that_would_lose_something_is_refused_and_changes_nothing() {
    if !can_mount("a_rebase_that_would_lose_something_is_refused_and_changes_nothing") {
        return;
    }
    let again = Again::new(Place::local());
    let live = &again.live;
    let source = again.source(&live.id);
    let refused = |status: i32, words: &[&str]| {
        let before = fs::read(again.upper.with_file_name(".upper.work").join("stack.json")).ok();
        let (code, _, said) = again.mount(&source, &["--rebase"]);
        assert_eq!(code, status, "{said}");
        for word in words {
            assert!(said.contains(word), "{said}");
        }
        let after = fs::read(again.upper.with_file_name(".upper.work").join("stack.json")).ok();
        assert_eq!(before, after);
    };
    let go_on = || assert_eq!(again.mount(&source, &[]).0, 0);
    change(&live.dir, 0);
    let local = live.checkpoint(&["--local"]);
    let copy = live.copy("copy");
    live.unmount(&[]);
    refused(3, &["nothing that", "is in the bucket"]);
    go_on();
    assert_same(&live.dir, &copy, "as it was");
    let (first, _) = published(live);
    live.unmount(&[]);
    refused(13, &[&local, "would be lost"]);
    go_on();
    live.does("forget", &[&local]);
    live.checkpoint(&["--local", "--name", "above"]);
    live.does("rollback", &["--to-archive"]);
    live.unmount(&[]);
    // Not on the line of what is live.
    refused(3, &["nothing that"]);
    go_on();
    live.does("rollback", &[&first]);
    live.unmount(&[]);
    // What was rolled away is an upper of nothing, which nobody has asked to lose.
    refused(13, &["would be lost"]);
    go_on();
    live.does("rollback", &["--discard", &first]);
    // A fork keeps its changes in the state directory, where marks are of another kind there.
    if Surrounding::current() != Surrounding::Overlayfs {
        refuse_forks(&again, &refused);
    } else {
        live.unmount(&[]);
    }
    for (more, code) in [(&["--read-only"][..], 2), (&["--keep-upper"], 2), (&[], 2)] {
        let words = [&["mount", "--rebase", &source, text(&live.dir)][..], more].concat();
        assert_eq!(live.place.json(&words).0, code, "{more:?}");
    }
}

/// Neither what others lie on nor what lies on another's.
fn refuse_forks(again: &Again, refused: &dyn Fn(i32, &[&str])) {
    let live = &again.live;
    let source = again.source(&live.id);
    let fork = live.place.bench.path("fork");
    live.does("fork", &["--keep-upper", "--quiet", text(&fork)]);
    live.unmount(&[]);
    refused(13, &["forked from it", text(&fork)]);
    let status = ok(&live.place, &["status", text(&fork)]);
    let own = status[0]["upper"].as_str().unwrap().to_owned();
    live.place.bench.ok(&["unmount", text(&fork)]);
    let work = Path::new(&own).with_file_name("work");
    let words = ["mount", "--rebase", "--upper", &own, "--workdir", text(&work), &source];
    let (status, lines) = live.place.json(&[&words[..], &[text(&live.dir)]].concat());
    assert_eq!(status, 13, "{lines:?}");
    assert!(lines[0]["message"].as_str().unwrap().contains("is a fork of"), "{lines:?}");
}
