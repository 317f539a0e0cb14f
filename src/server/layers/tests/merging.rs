//! Which layers become one.

use super::*;

#[test]
fn layers_are_merged_that_nothing_comes_between_and_that_are_worth_it() {
    // What each layer lies on and how large it is, in MiB; the live one is the last. Which have points; what was rolled
    // away; which may go; how many at least; and what is to be one.
    type Layer = (u32, Option<u32>, u64);
    type Case =
        (&'static [Layer], &'static [u32], Option<u32>, &'static [u32], usize, &'static [u32]);
    const LINE: &[Layer] =
        &[(0, None, 9), (1, Some(0), 1), (2, Some(1), 1), (3, Some(2), 1), (4, Some(3), 0)];
    const BRANCHED: &[Layer] =
        &[(0, None, 1), (1, Some(0), 1), (2, Some(1), 1), (3, Some(1), 1), (4, Some(3), 0)];
    const LARGE: &[Layer] =
        &[(0, None, 40), (1, Some(0), 13), (2, Some(1), 4), (5, Some(2), 1), (6, Some(5), 0)];
    const ALL: &[u32] = &[0, 1, 2, 3, 4, 5];
    let cases: [Case; 11] = [
        (LINE, &[], None, ALL, 2, &[1, 2, 3]),
        (LINE, &[3], None, ALL, 2, &[1, 2, 3]),
        (LINE, &[3], None, ALL, 4, &[]),
        (LINE, &[2], None, ALL, 2, &[1, 2]),
        (LINE, &[], Some(2), ALL, 2, &[1, 2]),
        (LINE, &[1, 2, 3], None, ALL, 2, &[]),
        (LINE, &[], None, &[0, 1, 3], 2, &[]),
        (LINE, &[], None, &[0, 2, 3], 2, &[2, 3]),
        // What lies on one of them as well is a point between them.
        (BRANCHED, &[2], None, ALL, 2, &[0, 1]),
        // None is as large as those above it.
        (LARGE, &[], None, ALL, 2, &[]),
        (&[(7, None, 0)], &[], None, ALL, 2, &[]),
    ];
    for (number, (tree, points, away, may_go, fewest, expected)) in cases.into_iter().enumerate() {
        let mut manifest = Manifest::new().unwrap();
        let info = |(_, parent, mib): &Layer| {
            let parent = parent.map(LayerSerial);
            LayerInfo { parent, from: None, bytes: Some(mib << 20) }
        };
        manifest.layers = tree.iter().map(|it| (LayerSerial(it.0), info(it))).collect();
        manifest.live = *manifest.layers.last_key_value().unwrap().0;
        manifest.next = LayerSerial(manifest.live.0 + 1);
        let point = |serial: &u32| Point { serial: LayerSerial(*serial), ..point_at_zero() };
        manifest.points = points.iter().map(point).collect();
        manifest.rolled_away = away.as_ref().map(point);
        let may_go = |layer: LayerSerial| may_go.contains(&layer.0);
        let which = Which { may_go: &may_go, fewest, most: usize::MAX, room: u64::MAX };
        let run = manifest.to_merge(&which).unwrap_or_default();
        assert_eq!(run.iter().map(|it| it.0).collect::<Vec<_>>(), expected, "{number}");
        if let Some(top) = run.last() {
            let merged = manifest.merged(&run).unwrap();
            assert_eq!(merged.dir_of(*top).name(), format!("{}-{}", run[0].0, top.0));
            assert_eq!(merged.layers[top].parent, manifest.layers[&run[0]].parent);
            assert_eq!(merged.layers.len(), manifest.layers.len() + 1 - run.len());
            // It can be written down, and is what it was then.
            let again = Manifest::parse(&merged.to_json().unwrap()).unwrap();
            assert_eq!(again, merged);
        }
    }
}

#[test]
fn where_less_room_is_left_than_layers_take_none_waits_for_others() {
    let mut manifest = Manifest::new().unwrap();
    let sizes = [40_u64, 13, 4, 1, 0];
    let info = |(serial, mib): (usize, &u64)| {
        let serial = u32::try_from(serial).unwrap();
        let parent = serial.checked_sub(1).map(LayerSerial);
        (LayerSerial(serial), LayerInfo { parent, from: None, bytes: Some(mib << 20) })
    };
    manifest.layers = sizes.iter().enumerate().map(info).collect();
    (manifest.live, manifest.next) = (LayerSerial(4), LayerSerial(5));
    let run = |room: u64, most| {
        let which = Which { may_go: &|_| true, fewest: 4, most, room };
        let run = manifest.to_merge(&which).unwrap_or_default();
        run.iter().map(|it| it.0).collect::<Vec<_>>()
    };
    let all = 58 << 20;
    assert_eq!(run(all + 1, usize::MAX), [0; 0]);
    assert_eq!(run(all, usize::MAX), [0; 0]);
    assert_eq!(run(all - 1, usize::MAX), [0, 1, 2, 3]);
    assert_eq!(run(0, 3), [1, 2, 3]);
    assert_eq!(run(0, 1), [2, 3], "one alone is as it is");
}

#[test]
fn what_was_published_last_stays_apart_for_the_next_and_the_rest_is_no_base_any_more() {
    let mut manifest = Manifest::new().unwrap();
    let parent = |serial: u32| serial.checked_sub(1).map(LayerSerial);
    let info = |serial| LayerInfo { parent: parent(serial), from: None, bytes: Some(0) };
    manifest.layers = (0..=6).map(|serial| (LayerSerial(serial), info(serial))).collect();
    (manifest.live, manifest.next) = (LayerSerial(6), LayerSerial(7));
    let sent =
        |serial| Sent { id: BackupId::random().unwrap(), serial: LayerSerial(serial), bytes: 1 };
    manifest.sent = [1, 3].map(sent).to_vec();
    let which = Which { may_go: &|_| true, fewest: 2, most: usize::MAX, room: u64::MAX };
    let mut runs = Vec::new();
    while let Some(run) = manifest.to_merge(&which) {
        manifest = manifest.merged(&run).unwrap();
        Manifest::parse(&manifest.to_json().unwrap()).unwrap();
        runs.push(run.iter().map(|layer| layer.0).collect::<Vec<_>>());
    }
    assert_eq!(runs, [vec![4, 5], vec![0, 1, 2, 3]]);
    assert_eq!(manifest.sent.iter().map(|sent| sent.serial.0).collect::<Vec<_>>(), [3]);
}

#[test]
fn layers_that_something_comes_between_are_never_one() {
    let scratch = Scratch::new();
    let mut layers = scratch.open();
    for _ in 0..4 {
        freeze(&mut layers, None).unwrap();
    }
    let manifest = layers.manifest();
    for run in [&[][..], &[1], &[0, 1], &[1, 3], &[3, 4], &[2, 1], &[8, 9]] {
        let run: Vec<_> = run.iter().copied().map(LayerSerial).collect();
        assert_eq!(manifest.merged(&run), None, "{run:?}");
    }
}

#[test]
fn layers_that_somebody_reads_are_not_merged() {
    let scratch = Scratch::new();
    let mut layers = scratch.open();
    for _ in 0..5 {
        freeze(&mut layers, None).unwrap();
    }
    layers.keep(1).unwrap();
    let (_, reading) = layers.read_chain(Some(LayerSerial(4))).unwrap();
    assert!(layers.merging(&|_| true, (2, usize::MAX), u64::MAX).unwrap().is_none());
    drop(reading);
    let mut merging = built(&layers).unwrap();
    // Who comes while it is built is in time.
    let (_, reading) = layers.read_chain(Some(LayerSerial(4))).unwrap();
    assert!(layers.stage_merge(&mut merging).unwrap());
    assert!(!layers.confirm_merge(&mut merging).unwrap());
    assert!(!layers.settle_merge(merging));
    drop(reading);
    merge(&mut layers).unwrap();
    assert_eq!(layers.manifest().dir_of(LayerSerial(4)).name(), "0-4");
}
