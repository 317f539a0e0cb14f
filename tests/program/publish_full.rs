//! Checkpoints that are to be backups, where there is no room: in the bucket, and where the mount keeps what it knows.

use std::time::Duration;

use crate::checkpoints_publish::{Live, change};
use crate::stack_full::{KINDS, Small};
use crate::support::mount::can_mount_with;
use crate::support::place::Place;
use crate::support::surrounding::Need;
use crate::support::trees::assert_same;

#[test]
fn a_bucket_without_room_leaves_a_checkpoint_here_and_has_it_once_there_is_some() {
    let test = "a_bucket_without_room_leaves_a_checkpoint_here_and_has_it_once_there_is_some";
    if !can_mount_with(test, &[Need::Root]) {
        return;
    }
    for kind in KINDS {
        let place = Place::local();
        let small = Small::new(&place.bench, kind, "box");
        let live = Live::of(place, 1 << 20, &[]);
        change(&live.dir, 0);
        small.fill();
        let before = live.place.keys();
        let (status, failure) = live.fails("checkpoint", &["--wait"]);
        assert_eq!((status, &failure["code"]), (18, &"BACKUP_CREATE_FAILED".into()), "{failure}");
        assert!(failure["message"].as_str().unwrap().contains("No space left"), "{failure}");
        let points = live.points();
        let told = points[0]["published"].to_string();
        assert!(told.contains("No space left"), "{kind}: {told}");
        assert_eq!(live.place.keys(), before, "nothing is half there");
        let copy = live.copy("then");
        change(&live.dir, 1);
        small.make_room();
        let next = live.checkpoint(&["--wait"]);
        let first = points[0]["id"].as_str().unwrap();
        live.until(first, "published");
        assert_same(&copy, &live.extracted(first), kind);
        assert_same(&live.copy("now"), &live.extracted(&next), kind);
        live.assert_in_bucket(&[&live.id, first, &next]);
        live.unmount(&[]);
    }
}

#[test]
fn a_checkpoint_goes_to_the_bucket_while_there_is_no_room_where_the_mount_is_kept() {
    let test = "a_checkpoint_goes_to_the_bucket_while_there_is_no_room_where_the_mount_is_kept";
    if !can_mount_with(test, &[Need::Root]) {
        return;
    }
    for kind in KINDS {
        // Slow enough for the room to be gone by then.
        let slow = Duration::from_millis(400);
        let place = Place::s3_as(|config| config.latency = slow);
        let small = Small::new(&place.bench, kind, "state");
        let live = Live::of(place, 1 << 20, &[]);
        change(&live.dir, 0);
        let copy = live.copy("then");
        let id = live.checkpoint(&[]);
        small.fill();
        assert_ne!(live.state(&id), "published", "{kind}: the test is too late");
        live.until(&id, "published");
        assert_same(&copy, &live.extracted(&id), kind);
        small.make_room();
        change(&live.dir, 1);
        let next = live.checkpoint(&["--wait"]);
        assert_same(&live.copy("now"), &live.extracted(&next), kind);
        live.assert_in_bucket(&[&live.id, &id, &next]);
        live.unmount(&[]);
    }
}
