//! The difference between two points of a stack, beside what two whole walks find.

use std::ops::ControlFlow;
use std::path::Path;

use proptest::prelude::*;
use thawfs::overlay::{Options, Overlay};

use crate::overlay_difference::{
    CASES, CASES_OF_ROOT, Case, Do, check_told, difference_from, in_words,
};
use crate::overlay_model::{Op, World, config, op_with_rollbacks};
use crate::overlay_support::{
    Merged, Side, Stack, Tree, freeze, open_archive, open_layers, open_overlay, source,
};
use crate::support::surrounding::{Need, cannot_run};

/// What the layers of `dir` show.
fn open_point(dir: &Path, layers: &[u32]) -> Merged {
    let (archive, layers) = (open_archive(&source().archive), open_layers(dir, layers));
    let overlay = Overlay::stacked(archive, layers, None, Options::default()).unwrap();
    Merged { overlay, plus: false }
}

/// Checks both ways, as one of them is the undoing of the other.
fn check_between(from: (&Overlay, &Tree), to: (&Overlay, &Tree)) {
    check_told(&difference_from(from.0, to.0, ""), from.1, to.1);
    check_told(&difference_from(to.0, from.0, ""), to.1, from.1);
}

fn check_cases(cases: &[Case]) {
    rustix::process::umask(rustix::fs::Mode::empty());
    for (name, act, expected) in cases {
        let (dir, mut stack) = (tempfile::tempdir().unwrap(), Stack::default());
        let overlay = open_overlay(dir.path(), &source().archive, Options::default());
        let mut live = Merged { overlay, plus: false };
        freeze(&live.overlay, dir.path(), &mut stack, 1);
        let mut first = open_point(dir.path(), &[0]);
        act(&mut Do(&mut live));
        let told = difference_from(&first.overlay, &live.overlay, "");
        assert_eq!(in_words(&told), *expected, "{name}");
        check_told(&told, &first.tree(), &live.tree());
        freeze(&live.overlay, dir.path(), &mut stack, 2);
        let mut second = open_point(dir.path(), &[0, 1]);
        let told = difference_from(&first.overlay, &second.overlay, "");
        assert_eq!(in_words(&told), *expected, "{name}, frozen");
        let trees = (first.tree(), second.tree());
        check_between((&first.overlay, &trees.0), (&second.overlay, &trees.1));
        for view in [&first, &second, &live] {
            assert_eq!(view.overlay.node_count(), 1, "{name}: nodes are left");
            assert_eq!(in_words(&difference_from(&view.overlay, &view.overlay, "")), [""; 0]);
        }
    }
}

#[test]
fn each_change_after_a_point_is_told_as_what_it_is() {
    check_cases(CASES);
}

#[test]
fn changes_by_root_after_a_point_are_told_as_what_they_are() {
    if !cannot_run("other owners and devices", &[Need::Root]) {
        check_cases(CASES_OF_ROOT);
    }
}

#[test]
fn changes_of_what_is_in_a_layer_already_are_told_as_what_they_are() {
    rustix::process::umask(rustix::fs::Mode::empty());
    let (dir, mut stack) = (tempfile::tempdir().unwrap(), Stack::default());
    let overlay = open_overlay(dir.path(), &source().archive, Options::default());
    let mut live = Merged { overlay, plus: false };
    let mut points = vec![(open_point(dir.path(), &[]), live.tree())];
    freeze(&live.overlay, dir.path(), &mut stack, 1);
    for (count, (name, act, _)) in CASES.iter().enumerate() {
        // Not all can be done after others.
        let done =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(&mut Do(&mut live))));
        if done.is_err() {
            continue;
        }
        let next = 2 + count as u32;
        freeze(&live.overlay, dir.path(), &mut stack, next);
        let mut point = open_point(dir.path(), stack.frozen());
        let tree = point.tree();
        for (other, before) in &points {
            println!("{name}");
            check_between((&other.overlay, before), (&point.overlay, &tree));
        }
        points.push((point, tree));
    }
}

#[test]
fn what_is_below_a_directory_is_told_alone() {
    let (dir, mut stack) = (tempfile::tempdir().unwrap(), Stack::default());
    let overlay = open_overlay(dir.path(), &source().archive, Options::default());
    let mut live = Merged { overlay, plus: false };
    freeze(&live.overlay, dir.path(), &mut stack, 1);
    let first = open_point(dir.path(), &[0]);
    let case = Do(&mut live);
    case.0
        .rename(Path::new("c/c"), Path::new("a/moved"), rustix::fs::RenameFlags::empty())
        .unwrap();
    case.0.write(Path::new("a/moved/a"), 0, b"data", libc::O_WRONLY).unwrap();
    case.0.write(Path::new("a/c"), 0, b"data", libc::O_WRONLY).unwrap();
    let all = ["R a/moved/ < c/c", "M a/moved/a < c/c/a"];
    for (below, expected) in [
        (".", &["M a/c", all[0], all[1], "M b", "M c/b"][..]),
        ("a", &["M a/c", all[0], all[1]]),
        ("a/moved", &all),
        ("a/moved/a", &all[1..]),
        ("c", &["M c/b"]),
        ("none/such", &[]),
    ] {
        let told = difference_from(&first.overlay, &live.overlay, below);
        assert_eq!(in_words(&told), expected, "{below}");
    }
    let up = Path::new("a/../b");
    let error =
        live.overlay.difference_from(&first.overlay, up, &mut |_| ControlFlow::Continue(()));
    assert!(error.is_err());
}

fn play(ops: &[Op]) {
    let mut world = World::new(Options::default());
    for op in ops {
        world.apply(op);
    }
    let points = world.open_points();
    for (index, (one, before)) in points.iter().enumerate() {
        for (other, after) in &points[index + 1..] {
            check_between((&one.overlay, before), (&other.overlay, after));
        }
        let live = &mut world.merged;
        let told = difference_from(&one.overlay, &live.overlay, "");
        check_told(&told, before, &live.tree());
    }
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn points_differ_in_what_two_walks_find(ops in prop::collection::vec(op_with_rollbacks(), 1..60)) {
        play(&ops);
    }
}
