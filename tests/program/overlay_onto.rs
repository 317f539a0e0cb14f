//! The upper layers of a stack on the archive that a lower point of it was published as: entry by entry what the whole
//! stack is on its own archive.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use thawfs::backup::{Created, OpenArchive, PublishRequest};
use thawfs::overlay::{ArchiveIdentity, Options, Overlay};
use thawfs::squashfs::Archive;

use crate::backup_publish::{Library, assert_same};
use crate::overlay_difference::{CASES, CASES_OF_ROOT, Case, Do};
use crate::overlay_model::{Op, World, op_in_layers, op_with_rollbacks};
use crate::overlay_support::{
    Merged, Stack, freeze, open_archive, open_layers, open_overlay, source,
};
use crate::support::place::Place;
use crate::support::surrounding::{Need, cannot_run};

/// Backups of points of the stack whose layers are in a directory.
struct Line<'a> {
    library: Library,
    place: Place,
    dir: &'a Path,
    archive: Arc<Archive>,
    /// What was published, each with its layers.
    sent: Vec<(Vec<u32>, OpenArchive)>,
}

impl<'a> Line<'a> {
    fn new(dir: &'a Path) -> Self {
        let place = Place::local();
        let (library, archive) = (Library::new(&place), open_archive(&source().archive));
        Self { library, place, dir, archive, sent: Vec::new() }
    }

    fn made(&self, tree: Overlay, whole: bool) -> (Created, OpenArchive) {
        let request = PublishRequest { whole, ..PublishRequest::new("/tree") };
        let created = self.library.publish(&Arc::new(tree), &request);
        let opened = self.library.open(created.metadata.id.as_str());
        (created, opened)
    }

    /// Publishes the point of `layers`, onto each backup of what it lies on.
    fn publish(&mut self, layers: &[u32], what: &str) {
        let whole = open_layers(self.dir, layers);
        let whole = Overlay::stacked(Arc::clone(&self.archive), whole, None, Options::default());
        let (_, whole) = self.made(whole.unwrap(), true);
        let identity = ArchiveIdentity::of(&self.archive);
        for (below, base) in &self.sent {
            let Some(above) = layers.strip_prefix(&below[..]) else { continue };
            let what = format!("{what}: {layers:?} onto {below:?}");
            let above = open_layers(self.dir, above).into_iter();
            let above = above.map(|layer| layer.made_over([identity.clone()].into())).collect();
            let options = Options::default();
            let tree = Overlay::stacked(Arc::clone(&base.archive), above, None, options).unwrap();
            assert_eq!(tree.node_count(), 1);
            let (created, onto) = self.made(tree.named(base.as_mounted()), false);
            if created.whole_because.is_none() {
                assert_eq!(created.base.unwrap().as_str(), id_of(base), "{what}");
            }
            assert_same(&onto.archive, &whole.archive, &what);
        }
        self.sent.push((layers.to_vec(), whole));
    }
}

/// The id of a backup, by the name of its archive.
fn id_of(opened: &OpenArchive) -> &str {
    opened.name.rsplit('/').nth(1).unwrap()
}

fn check_cases(cases: &[Case]) {
    rustix::process::umask(rustix::fs::Mode::empty());
    let (dir, mut stack) = (tempfile::tempdir().unwrap(), Stack::default());
    let overlay = open_overlay(dir.path(), &source().archive, Options::default());
    let mut live = Merged { overlay, plus: false };
    let mut line = Line::new(dir.path());
    freeze(&live.overlay, dir.path(), &mut stack, 1);
    line.publish(stack.frozen(), "nothing");
    for (count, (name, act, _)) in cases.iter().enumerate() {
        // Not all can be done after others.
        let done =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(&mut Do(&mut live))));
        if done.is_err() {
            continue;
        }
        freeze(&live.overlay, dir.path(), &mut stack, 2 + count as u32);
        line.publish(stack.frozen(), name);
        // All onto all would be very many.
        let len = line.sent.len();
        line.sent.drain(1..len.saturating_sub(2).max(1));
    }
    assert!(line.place.keys().len() > 2 * cases.len());
}

#[test]
fn each_change_is_the_same_on_the_archive_of_an_earlier_point() {
    check_cases(CASES);
}

#[test]
fn each_change_by_root_is_the_same_on_the_archive_of_an_earlier_point() {
    if !cannot_run("other owners and devices", &[Need::Root]) {
        check_cases(CASES_OF_ROOT);
    }
}

#[test]
fn a_layer_of_an_archive_that_nobody_has_named_is_refused() {
    let (dir, mut stack) = (tempfile::tempdir().unwrap(), Stack::default());
    let live = open_overlay(dir.path(), &source().archive, Options::default());
    freeze(&live, dir.path(), &mut stack, 1);
    let line = Line::new(dir.path());
    let tree = Overlay::stacked(Arc::clone(&line.archive), Vec::new(), None, Options::default());
    let (_, other) = line.made(tree.unwrap(), true);
    let over_other = |identity: Option<ArchiveIdentity>| {
        let layers = open_layers(dir.path(), &[0]).into_iter();
        let others: Vec<_> = identity.into_iter().collect();
        let layers = layers.map(|layer| layer.made_over(others.clone().into())).collect();
        let archive = Arc::clone(&other.archive);
        Overlay::stacked(archive, layers, None, Options::default()).map(drop)
    };
    for identity in [None, Some(ArchiveIdentity::of(&other.archive))] {
        let error = over_other(identity).unwrap_err().to_string();
        assert!(error.contains("belongs to another archive"), "{error}");
    }
    over_other(Some(ArchiveIdentity::of(&line.archive))).unwrap();
}

fn play(ops: &[Op]) {
    let mut world = World::new(Options::default());
    ops.iter().for_each(|op| world.apply(op));
    let points = world.point_layers();
    let mut line = Line::new(world.dir.path());
    for layers in points.iter().take(6) {
        line.publish(layers, "a point");
    }
    world.remount();
}

/// Goes on over the archive of a point that the live upper lies on, twice.
fn play_rebased(rounds: &[(Vec<Op>, usize)], last: &[Op]) {
    let mut world = World::new(Options::default());
    let place = Place::local();
    let library = Library::new(&place);
    let mut step = 0;
    for (ops, which) in rounds {
        for op in ops.iter().chain([&Op::Freeze]) {
            world.does(op, step);
            step += 1;
        }
        let count = 1 + which % world.frozen().len();
        let tree = world.point_of(count);
        let request = PublishRequest { whole: true, ..PublishRequest::new("/tree") };
        let created = library.publish(&Arc::new(tree), &request);
        let opened = library.open(created.metadata.id.as_str());
        world.rebase(opened.archive, count);
    }
    for op in last {
        world.does(op, step);
        step += 1;
    }
    world.remount();
    world.does(&Op::Remount, step);
}

/// Few: each makes many backups.
fn config() -> ProptestConfig {
    let config = crate::overlay_model::config();
    ProptestConfig { cases: config.cases.div_ceil(10), ..config }
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn a_point_is_the_same_on_the_archive_of_each_one_that_it_lies_on(
        ops in prop::collection::vec(op_with_rollbacks(), 1..60),
    ) {
        play(&ops);
    }

    #[test]
    fn what_was_put_onto_a_point_behaves_as_a_plain_directory(
        rounds in prop::collection::vec(
            (prop::collection::vec(op_in_layers(), 1..30), any::<usize>()),
            1..=2,
        ),
        last in prop::collection::vec(op_in_layers(), 1..40),
    ) {
        play_rebased(&rounds, &last);
    }
}
