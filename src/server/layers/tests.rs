//! Stacks on disk, as they are opened again after every step at which a server may be killed.

mod forks;
mod merging;
mod rebase;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;

use super::forks::Fork;
use super::manifest::{DEFAULT_KEEP, LayerInfo, StackId};
use super::tree::Which;
use super::*;

struct Scratch {
    _dir: tempfile::TempDir,
    upper: PathBuf,
    work: PathBuf,
}

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().canonicalize().unwrap();
        let (upper, work) = (at.join("upper"), at.join("work"));
        for dir in [&upper, &work] {
            std::fs::create_dir(dir).unwrap();
        }
        Self { _dir: dir, upper, work }
    }

    fn try_open(&self) -> Result<Layers, Failure> {
        let open = |path: &Path| Directory::open(path).unwrap();
        let mut layers = Layers::open(&open(&self.upper), &open(&self.work), "boot".into())?;
        layers.recover()?;
        layers.remover().remove().unwrap();
        Ok(layers)
    }

    fn open(&self) -> Layers {
        self.try_open().unwrap()
    }

    /// All there is in the work directory, and files of the upper.
    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for dir in [&self.work, &self.upper] {
            for entry in walkdir::WalkDir::new(dir).min_depth(1).sort_by_file_name() {
                let entry = entry.unwrap();
                names.push(entry.path().strip_prefix(dir).unwrap().display().to_string());
            }
        }
        names
    }

    fn write(&self, serial: u32, name: &str) {
        let dir = match serial {
            0 => self.upper.clone(),
            serial => self.work.join("layers").join(serial.to_string()),
        };
        std::fs::write(dir.join(name), name).unwrap();
    }
}

fn point_at_zero() -> Point {
    Point {
        id: BackupId::random().unwrap(),
        name: None,
        created_ms: 0,
        serial: LayerSerial(0),
        durable: true,
        fuzzy: Vec::new(),
        publish: None,
    }
}

fn point(name: Option<&str>) -> NewPoint {
    let id = BackupId::random().unwrap();
    let name = name.map(str::to_owned);
    NewPoint { id, name, created_ms: 1_700_000_000_123, publish: None, for_fork: false }
}

/// As the overlay does it.
fn finish(layers: &mut Layers, change: Result<Change, Failure>) -> Result<(), Failure> {
    let mut change = change?;
    let committed = change.commit();
    // The live upper is written to as soon as it is that.
    if committed.is_ok() {
        std::fs::write(change.next.join("written"), "").unwrap();
    }
    assert_eq!(layers.settle(change), committed.is_ok());
    committed.map_err(|error| Failure::new(Code::Failed, error.to_string()))
}

fn freeze(layers: &mut Layers, name: Option<&str>) -> Result<BackupId, Failure> {
    let point = point(name);
    let id = point.id.clone();
    let change = layers.freezing(point, None);
    finish(layers, change).map(|()| id)
}

fn roll_back(layers: &mut Layers, to: &BackupId, keep: bool) -> Result<(), Failure> {
    let top = layers.manifest().point(to).unwrap().serial;
    let change = layers.rolling_back(Some(top), keep.then(|| point(None)));
    finish(layers, change)
}

/// As it is done in the background.
fn flush(layers: &mut Layers, facts: Facts) -> Result<(), Failure> {
    if let Some(flush) = layers.flushing(facts)? {
        flush.write()?;
        assert!(layers.flushed(flush)?);
    }
    Ok(())
}

fn make_durable(layers: &mut Layers) {
    let synced = layers.manifest().undurable();
    flush(layers, Facts { synced, ..Facts::default() }).unwrap();
}

/// The tree: what each layer lies on; and the layer of each point.
fn shape(manifest: &Manifest) -> (BTreeMap<u32, Option<u32>>, Vec<u32>, u32) {
    let layers = manifest.layers();
    let tree = layers.map(|(serial, layer)| (serial.0, layer.parent.map(|parent| parent.0)));
    let points = manifest.points().iter().map(|point| point.serial.0).collect();
    (tree.collect(), points, manifest.live().0)
}

#[test]
fn a_stack_grows_and_is_rolled_back_into_a_tree() {
    let scratch = Scratch::new();
    let mut layers = scratch.open();
    assert_eq!(scratch.names(), Vec::<String>::new(), "nothing until it is needed");
    let [a, b] = ["a", "b"].map(|name| freeze(&mut layers, Some(name)).unwrap());
    let on_two = [(0, None), (1, Some(0)), (2, Some(1))];
    assert_eq!(shape(layers.manifest()), (on_two.into(), vec![0, 1], 2));
    let mode = scratch.work.join("layers/2").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);

    roll_back(&mut layers, &a, true).unwrap();
    let rolled = [(0, None), (1, Some(0)), (2, Some(1)), (3, Some(0))];
    assert_eq!(shape(layers.manifest()), (rolled.into(), vec![0, 1], 3));
    let away = layers.manifest().rolled_away().unwrap().clone();
    assert_eq!(away.serial.0, 2);
    assert_eq!(layers.manifest().last().unwrap().id, a);

    // Taken back; what was live meanwhile can be had in turn.
    roll_back(&mut layers, &away.id, true).unwrap();
    let back = [(0, None), (1, Some(0)), (2, Some(1)), (3, Some(0)), (4, Some(2))];
    assert_eq!(shape(layers.manifest()), (back.into(), vec![0, 1], 4));
    assert_eq!(layers.manifest().rolled_away().unwrap().serial.0, 3);
    assert_eq!(layers.manifest().last().unwrap().id, b);

    // The next one forgets what the last rolled away, and this keeps nothing: layer 2 goes with it.
    roll_back(&mut layers, &b, false).unwrap();
    let discarded = [(0, None), (1, Some(0)), (5, Some(1))];
    assert_eq!(shape(layers.manifest()), (discarded.into(), vec![0, 1], 5));
    assert!(layers.manifest().rolled_away().is_none());
    layers.remover().remove().unwrap();
    assert!(scratch.names().contains(&"layers/2".to_owned()), "power may go");
    make_durable(&mut layers);
    layers.remover().remove().unwrap();
    assert!(!scratch.names().iter().any(|name| name.starts_with("layers/2")));

    // To the archive, and forgotten: the upper is empty then, and stays.
    scratch.write(0, "old");
    let change = layers.rolling_back(None, None);
    finish(&mut layers, change).unwrap();
    assert!(layers.manifest().last().is_err());
    layers.forget(&[a, b]).unwrap();
    assert_eq!(shape(layers.manifest()), ([(6, None)].into(), vec![], 6));
    layers.remover().remove().unwrap();
    assert_eq!(scratch.names(), ["layers", "layers/6", "layers/6/written", "stack.json"]);
    // It is what is found again.
    let shown = shape(layers.manifest());
    drop(layers);
    let mut layers = scratch.open();
    assert_eq!(shape(layers.manifest()), shown);
    assert!(layers.live_dir().ends_with("layers/6"));
    layers.finish().unwrap();
    assert_eq!(scratch.names(), ["layers", "layers/6", "layers/6/written", "stack.json"]);
}

#[test]
fn a_stack_of_nothing_but_an_upper_leaves_nothing() {
    let scratch = Scratch::new();
    let mut layers = scratch.open();
    flush(&mut layers, Facts::default()).unwrap();
    layers.finish().unwrap();
    assert_eq!(scratch.names(), Vec::<String>::new());
    layers.prepare().unwrap();
    assert_eq!(scratch.names(), ["layers", "layers/1", "stack.json"]);
    assert!(layers.disk.read_mark().unwrap().is_some());
    layers.finish().unwrap();
    assert_eq!(scratch.names(), Vec::<String>::new());
    assert!(layers.disk.read_mark().unwrap().is_none());
    // And may be begun again.
    freeze(&mut layers, None).unwrap();
    assert_eq!(shape(layers.manifest()).2, 1);
}

type Action = fn(&mut Layers) -> Result<(), Failure>;

/// Layers that are to be one, of which something is built.
fn built(layers: &Layers) -> Result<Merging, Failure> {
    let merging = layers.merging(&|_| true, (2, usize::MAX), u64::MAX)?;
    let merging = merging.ok_or_else(|| Failure::new(Code::Failed, "nothing to merge"))?;
    std::fs::write(merging.into.join("merged"), "").unwrap();
    Ok(merging)
}

/// The end of that, unless there was something `before`.
fn end_merge(
    layers: &mut Layers,
    mut merging: Merging,
    before: Result<(), Failure>,
) -> Result<(), Failure> {
    let done = before.and_then(|()| {
        let is_to_be = layers.confirm_merge(&mut merging)?;
        assert!(is_to_be);
        merging.commit().map_err(|error| Failure::new(Code::Failed, error.to_string()))
    });
    assert_eq!(layers.settle_merge(merging), done.is_ok());
    done
}

/// As the server does it.
fn merge(layers: &mut Layers) -> Result<(), Failure> {
    let mut merging = built(layers)?;
    let staged = layers.stage_merge(&mut merging).map(drop);
    end_merge(layers, merging, staged)
}

/// What there is to do, from which state: how many checkpoints, the first of which is named.
const ACTIONS: &[(&str, u32, Action)] = &[
    ("prepare", 0, |layers| layers.prepare()),
    ("first freeze", 0, |layers| freeze(layers, Some("x")).map(drop)),
    ("freeze", 3, |layers| freeze(layers, None).map(drop)),
    ("freeze that thins", 3, |layers| {
        let change = layers.freezing(point(None), Some(1));
        finish(layers, change)
    }),
    ("rollback", 3, |layers| {
        let first = layers.manifest().points()[0].id.clone();
        roll_back(layers, &first, true)
    }),
    ("rollback that discards", 3, |layers| {
        let first = layers.manifest().points()[0].id.clone();
        roll_back(layers, &first, false)
    }),
    ("rollback to the archive", 1, |layers| {
        let change = layers.rolling_back(None, None);
        finish(layers, change)
    }),
    ("second rollback", 2, |layers| {
        for _ in 0..2 {
            let first = layers.manifest().points()[0].id.clone();
            roll_back(layers, &first, true)?;
        }
        Ok(())
    }),
    ("forget all", 3, |layers| {
        let change = layers.rolling_back(None, None);
        finish(layers, change)?;
        let ids: Vec<_> = layers.manifest().points().iter().map(|point| point.id.clone()).collect();
        layers.forget(&ids)
    }),
    ("keep", 3, |layers| layers.keep(1).map(drop)),
    ("durable", 3, |layers| {
        let synced = layers.manifest().undurable();
        flush(layers, Facts { synced, bytes: vec![(LayerSerial(0), 4096)] })
    }),
    ("remove", 3, |layers| {
        let first = layers.manifest().points()[0].id.clone();
        roll_back(layers, &first, false)?;
        flush(layers, Facts::default())?;
        layers.remover().remove().map_err(|error| Failure::new(Code::Failed, error.to_string()))
    }),
    ("remove the upper", 1, |layers| {
        let change = layers.rolling_back(None, None);
        finish(layers, change)?;
        let ids: Vec<_> = layers.manifest().points().iter().map(|point| point.id.clone()).collect();
        layers.forget(&ids)?;
        layers.remover().remove().map_err(|error| Failure::new(Code::Failed, error.to_string()))
    }),
    ("merge", 5, |layers| {
        layers.keep(1)?;
        merge(layers)
    }),
    ("merge with a checkpoint meanwhile", 5, |layers| {
        layers.keep(1)?;
        let mut merging = built(layers)?;
        let staged = layers.stage_merge(&mut merging);
        let frozen = staged.and_then(|_| freeze(layers, Some("meanwhile")).map(drop));
        end_merge(layers, merging, frozen)
    }),
    ("rebase", 3, rebase::rebase),
    ("finish", 0, |layers| {
        layers.prepare()?;
        layers.finish().map_err(|error| Failure::new(Code::Failed, error.to_string()))
    }),
];

/// What a user could tell apart: layers, points with their names, and what is in each layer. Ids are by
/// chance.
fn visible(scratch: &Scratch, layers: &Layers) -> String {
    let manifest = layers.manifest();
    let point = |point: &Point| format!("{:?} {} {}", point.name, point.serial.0, point.durable);
    let points: Vec<_> = manifest.points().iter().map(point).collect();
    let away = manifest.rolled_away().map(point);
    let mut names = scratch.names();
    // What a next change needs, whenever it is made.
    names.retain(|name| !matches!(&**name, "stack.json" | "layers"));
    let keep = manifest.keep();
    format!("{:?} {points:?} {away:?} {keep} {names:?}", shape(manifest))
}

#[test]
fn a_server_killed_at_any_step_leaves_what_was_or_what_was_to_be() {
    for (name, checkpoints, action) in ACTIONS {
        let prepare = || {
            let scratch = Scratch::new();
            let mut layers = scratch.open();
            scratch.write(0, "first");
            for count in 0..*checkpoints {
                freeze(&mut layers, (count == 0).then_some("named")).unwrap();
            }
            (scratch, layers)
        };
        // The states on the way, each of them whole: before, after, and between where an action is several
        // changes.
        let mut allowed = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        let mut steps = 0;
        loop {
            let (scratch, mut layers) = prepare();
            if allowed.is_empty() {
                allowed.push(visible(&scratch, &scratch.open()));
            }
            layers.disk.steps.store(steps, Ordering::Relaxed);
            let done = action(&mut layers).is_ok() && layers.disk.steps.load(Ordering::Relaxed) > 0;
            let in_memory = shape(layers.manifest());
            drop(layers);
            let mut again = scratch.open();
            let found = visible(&scratch, &again);
            assert_eq!(shape(again.manifest()), in_memory, "{name}, {steps} steps: who was told");
            // Nothing is left that the manifest does not name, and all that it names is there.
            let names = scratch.names();
            let dirs = names.iter().filter_map(|name| name.strip_prefix("layers/"));
            let dirs: std::collections::BTreeSet<String> =
                dirs.filter(|name| !name.contains('/')).map(str::to_owned).collect();
            let listed = again.manifest().dirs().map(LayerDir::name);
            assert_eq!(dirs, listed.filter(|name| name != "0").collect(), "{name}, {steps}");
            assert!(!names.contains(&"stack.new".to_owned()), "{name}, {steps}");
            seen.insert(found.clone());
            // It goes on from there.
            freeze(&mut again, Some("later")).unwrap();
            assert_eq!(again.manifest().points().last().unwrap().name.as_deref(), Some("later"));
            if done {
                allowed.push(found);
                break;
            }
            steps += 1;
            assert!(steps < 200, "{name} does not end");
        }
        let changes = match *name {
            "second rollback" | "forget all" | "remove the upper" | "merge" | "rebase" => 2,
            "merge with a checkpoint meanwhile" => 3,
            _ => 1,
        };
        assert!(seen.len() <= changes + 1, "{name}: {seen:#?}");
        assert!(allowed.iter().all(|state| seen.contains(state)), "{name}: {seen:#?} {allowed:#?}");
        assert!(steps > 1, "{name}");
    }
}

#[test]
fn what_is_written_of_a_manifest_and_then_cut_off_is_never_read() {
    let scratch = Scratch::new();
    let mut layers = scratch.open();
    freeze(&mut layers, None).unwrap();
    drop(layers);
    for left in ["", "{\"version\":1,", "rubbish"] {
        for name in ["stack.new", "stack.later"] {
            std::fs::write(scratch.work.join(name), left).unwrap();
        }
        // Of a change that nobody noted.
        std::fs::write(scratch.work.join("layers/2.json"), left).unwrap();
        let before = shape(scratch.open().manifest());
        assert_eq!(before.2, 1);
        assert_eq!(scratch.names(), ["layers", "layers/1", "layers/1/written", "stack.json"]);
    }
}

#[test]
fn the_disk_is_not_waited_for_and_if_it_had_nothing_the_stack_is_what_it_was() {
    // What was written beside a note is there; in part; as names without data; or not at all.
    let damages: [fn(&Path); 4] = [
        |_| (),
        |path| {
            let whole = std::fs::read(path).unwrap();
            std::fs::write(path, &whole[..whole.len() / 2]).unwrap();
        },
        |path| std::fs::write(path, "").unwrap(),
        |path| std::fs::remove_file(path).unwrap(),
    ];
    for (at, damage) in damages.into_iter().enumerate() {
        let scratch = Scratch::new();
        let mut layers = scratch.open();
        let one = freeze(&mut layers, Some("one")).unwrap();
        make_durable(&mut layers);
        freeze(&mut layers, Some("two")).unwrap();
        freeze(&mut layers, Some("three")).unwrap();
        roll_back(&mut layers, &one, true).unwrap();
        let before = shape(layers.manifest());
        let written = std::fs::read_to_string(scratch.work.join("stack.json")).unwrap();
        assert!(written.contains("one") && !written.contains("two"), "{written}");
        assert_eq!(super::read(&scratch.work).unwrap().unwrap(), **layers.manifest());
        drop(layers);
        for serial in [2, 3, 4] {
            damage(&scratch.work.join(format!("layers/{serial}.json")));
        }
        // Whoever looks, and whoever opens it, at once and again.
        let seen = super::read(&scratch.work).unwrap().unwrap();
        let shapes = [seen, scratch.open().manifest().as_ref().clone()];
        let again = scratch.open();
        for found in shapes.iter().chain([again.manifest().as_ref()]) {
            let names: Vec<_> = found.points().iter().filter_map(|it| it.name.clone()).collect();
            match at {
                0 => assert_eq!(names, ["one", "two", "three"]),
                _ => assert_eq!(names, ["one"]),
            }
            let (tree, _, live) = shape(found);
            assert_eq!((&tree, live), (&before.0, before.2), "{at}");
            // What was rolled away is kept, as it was to be.
            assert_eq!(found.rolled_away().unwrap().serial.0, 3);
        }
        assert_eq!(again.manifest().points()[0].id, one);
        assert!(
            !scratch.names().iter().any(
                |name| name.ends_with(".on") || name.ends_with(".json") && name != "stack.json"
            )
        );
    }
}

#[test]
fn what_is_flushed_meanwhile_takes_nothing_back() {
    let scratch = Scratch::new();
    let mut layers = scratch.open();
    let one = freeze(&mut layers, Some("one")).unwrap();
    let begin = |layers: &Layers| {
        let synced = layers.manifest().undurable();
        let flush = layers.flushing(Facts { synced, ..Facts::default() }).unwrap().unwrap();
        flush.write().unwrap();
        flush
    };
    // A checkpoint comes: it is beside what was flushed.
    let flush = begin(&layers);
    let two = freeze(&mut layers, Some("two")).unwrap();
    assert!(layers.flushed(flush).unwrap());
    let durable = |layers: &Layers| -> Vec<_> {
        layers.manifest().points().iter().map(|point| (point.id.clone(), point.durable)).collect()
    };
    assert_eq!(durable(&layers), [(one.clone(), true), (two.clone(), false)]);
    let read = super::read(&scratch.work).unwrap().unwrap();
    assert_eq!(shape(&read), shape(layers.manifest()));
    assert_eq!(read.points().len(), 2);
    // A point is forgotten: it does not come back.
    let flush = begin(&layers);
    layers.forget(&[one]).unwrap();
    assert!(!layers.flushed(flush).unwrap());
    assert_eq!(durable(&layers), [(two.clone(), false)]);
    make_durable(&mut layers);
    assert_eq!(durable(&layers), [(two.clone(), true)]);
    assert!(layers.flushing(Facts::default()).unwrap().is_none());
    drop(layers);
    assert_eq!(durable(&scratch.open()), [(two, true)]);
    assert!(!scratch.names().iter().any(|name| name == "stack.later"));
}

#[test]
fn a_note_that_makes_no_sense_is_one_error_that_names_the_file() {
    for (name, to) in [("1.on", "7"), ("1.on", "1"), ("3.on", "0"), ("1.on", "x"), ("1.on", "-1")] {
        let scratch = Scratch::new();
        scratch.open().prepare().unwrap();
        std::os::unix::fs::symlink(to, scratch.work.join("layers").join(name)).unwrap();
        let failure = scratch.try_open().unwrap_err();
        assert_eq!(failure.code, Code::Upper, "{name} {to}");
        assert!(failure.message.contains("stack.json"), "{failure}");
    }
}

#[test]
fn points_that_the_disk_did_not_have_when_the_machine_stopped_are_none() {
    let scratch = Scratch::new();
    let mut layers = scratch.open();
    let ids: Vec<_> = (0..3).map(|_| freeze(&mut layers, Some("x")).unwrap()).collect();
    let synced = ids[..1].to_vec();
    flush(&mut layers, Facts { synced, ..Facts::default() }).unwrap();
    drop(layers);
    // A server that was killed loses none.
    assert_eq!(scratch.open().manifest().points().len(), 3);
    let open = |path: &Path| Directory::open(path).unwrap();
    let open_next = || {
        let (upper, work) = (open(&scratch.upper), open(&scratch.work));
        Layers::open(&upper, &work, "the next".into()).unwrap()
    };
    let mut layers = open_next();
    layers.recover().unwrap();
    let left: Vec<_> = layers.manifest().points().iter().map(|point| point.id.clone()).collect();
    assert_eq!(left, ids[..1]);
    // What they held is still below the live upper.
    let all = [(0, None), (1, Some(0)), (2, Some(1)), (3, Some(2))];
    assert_eq!(shape(layers.manifest()), (all.into(), vec![0], 3));
}

#[test]
fn an_upper_and_a_stack_that_do_not_belong_together_are_refused_by_name() {
    let scratch = Scratch::new();
    let mut layers = scratch.open();
    freeze(&mut layers, None).unwrap();
    drop(layers);
    let other = Scratch::new();
    let with = |upper: &Path, work: &Path| {
        let open = |path: &Path| Directory::open(path).unwrap();
        Layers::open(&open(upper), &open(work), "boot".into())
    };
    let fails = |upper: &Path, work: &Path, what: &str| {
        let failure = with(upper, work).unwrap_err();
        assert_eq!(failure.code, Code::Upper);
        assert!(failure.message.contains(what), "{failure}");
        assert!(failure.message.contains(&*upper.to_string_lossy()), "{failure}");
        assert!(failure.message.contains(&*work.to_string_lossy()), "{failure}");
    };
    fails(&other.upper, &scratch.work, "belong to another upper");
    fails(&scratch.upper, &other.work, "is one of several layers");
    let mut layers = other.open();
    freeze(&mut layers, None).unwrap();
    drop(layers);
    fails(&other.upper, &scratch.work, "belong to another upper");
    with(&scratch.upper, &scratch.work).unwrap();
}

#[test]
fn a_damaged_manifest_is_one_error_that_names_the_file() {
    let scratch = Scratch::new();
    let mut layers = scratch.open();
    let id = freeze(&mut layers, Some("named")).unwrap();
    freeze(&mut layers, None).unwrap();
    make_durable(&mut layers);
    drop(layers);
    let path = scratch.work.join("stack.json");
    let whole: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    type Damage = fn(&mut serde_json::Value);
    let cases: &[(&str, Damage)] = &[
        ("EOF", |_| ()),
        ("another version of this program: version 2", |it| it["version"] = 2.into()),
        ("unknown field `more`", |it| it["more"] = 1.into()),
        ("unknown field `more`", |it| it["points"][0]["more"] = 1.into()),
        ("missing field `next`", |it| drop(it.as_object_mut().unwrap().remove("next"))),
        ("the live layer, 7,", |it| it["live"] = 7.into()),
        ("layer 2 is not below the next, 2", |it| it["next"] = 2.into()),
        ("layer 1 cannot lie on 1", |it| it["layers"][1]["parent"] = 1.into()),
        ("layer 1 cannot lie on 9", |it| it["layers"][1]["parent"] = 9.into()),
        ("layer 1 is in it twice", |it| it["layers"][2]["serial"] = 1.into()),
        ("invalid value", |it| it["layers"][1]["serial"] = (-1).into()),
        ("invalid value", |it| it["layers"][1]["serial"] = (1_u64 << 32).into()),
        ("of layer 2, which is none that is frozen", |it| it["points"][0]["serial"] = 2.into()),
        ("of layer 8, which is none that is frozen", |it| it["points"][0]["serial"] = 8.into()),
        ("is in it twice", |it| it["points"][1]["id"] = it["points"][0]["id"].clone()),
        ("is not the id of a backup", |it| it["points"][0]["id"] = "../x".into()),
        ("must have at most 256", |it| it["points"][0]["name"] = "n".repeat(257).into()),
        ("must hold no control", |it| it["points"][0]["name"] = "a\nb".into()),
        ("is empty", |it| it["points"][0]["name"] = "".into()),
        ("is not the id of a stack", |it| it["stack"] = "x".into()),
        ("it keeps no points", |it| it["keep"] = 0.into()),
    ];
    for (problem, damage) in cases {
        let mut value = whole.clone();
        damage(&mut value);
        let mut text = value.to_string();
        if *problem == "EOF" {
            text.truncate(text.len() / 2);
        }
        std::fs::write(&path, text).unwrap();
        let failure = scratch.try_open().unwrap_err();
        assert_eq!(failure.code, Code::Upper, "{problem}");
        assert!(failure.message.contains(&*path.to_string_lossy()), "{failure}");
        assert!(failure.message.contains(problem), "{failure}");
    }
    let text = whole.to_string();
    std::fs::write(&path, &text).unwrap();
    assert_eq!(scratch.open().manifest().find("named").unwrap().id, id);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(scratch.try_open().unwrap_err().message.contains("stack.json"));
}

#[test]
fn points_are_found_by_id_the_first_digits_of_it_or_name() {
    let scratch = Scratch::new();
    let mut layers = scratch.open();
    let ids: Vec<_> = ["one", "two", "two"]
        .map(|name| freeze(&mut layers, Some(name)).unwrap())
        .into_iter()
        .collect();
    let manifest = layers.manifest();
    let first = ids[0].as_str();
    let found = |text: &str| manifest.find(text).map(|point| point.id.clone());
    for text in [first, &first.to_uppercase(), &first[..8], &first[..13], "one"] {
        assert_eq!(found(text).unwrap(), ids[0], "{text}");
    }
    let unknown = BackupId::random().unwrap();
    for (text, code) in [
        (&first[..7], Code::NotFound),
        (unknown.as_str(), Code::NotFound),
        ("three", Code::NotFound),
        ("", Code::NotFound),
        ("two", Code::Usage),
    ] {
        let failure = found(text).unwrap_err();
        assert_eq!(failure.code, code, "{text}");
        assert_eq!(failure.list.len(), if code == Code::Usage { 2 } else { 0 });
    }
}

#[test]
fn names_of_every_length_that_may_be_come_back() {
    let scratch = Scratch::new();
    let mut layers = scratch.open();
    let names = ["n".to_owned(), "n".repeat(256), "😀".repeat(128), "ü: \"ok\"\\".to_owned()];
    for name in &names {
        freeze(&mut layers, Some(name)).unwrap();
    }
    freeze(&mut layers, None).unwrap();
    drop(layers);
    let layers = scratch.open();
    let read: Vec<_> = layers.manifest().points().iter().map(|point| point.name.clone()).collect();
    assert_eq!(read[..4], names.map(Some));
    assert_eq!(read[4], None);
}

#[test]
fn what_is_there_for_a_backup_or_a_fork_alone_takes_no_place_of_what_is_kept() {
    let mut manifest = Manifest { keep: 1, ..Manifest::new().unwrap() };
    let own = point(None);
    let id = own.id.clone();
    let publish = Publish {
        dir: "/dir".into(),
        name: None,
        ttl: 1,
        whole: false,
        passing: true,
        state: PublishState::Pending,
    };
    let kept =
        |manifest: &Manifest| manifest.points().iter().map(|it| it.id.clone()).collect::<Vec<_>>();
    manifest = manifest.frozen(own).unwrap();
    let passing = NewPoint { publish: Some(publish), ..point(None) };
    let passed = passing.id.clone();
    manifest = manifest.frozen(passing).unwrap();
    manifest = manifest.with_publish(&passed, PublishState::Failed { why: "no".into() });
    assert_eq!(kept(&manifest), std::slice::from_ref(&id), "what was for a backup alone");
    let for_fork = NewPoint { for_fork: true, ..point(None) };
    let forked = for_fork.id.clone();
    manifest = manifest.frozen(for_fork).unwrap();
    assert_eq!(kept(&manifest), [id, forked.clone()], "that of a fork that comes");
    let top = manifest.points().last().unwrap().serial;
    let stack = StackId::random().unwrap();
    let fork = Fork { stack, top, mountpoint: "/fork".into(), work: None };
    manifest = manifest.with_forks(vec![fork]);
    let next = point(None);
    let last = next.id.clone();
    manifest = manifest.frozen(next).unwrap();
    assert_eq!(kept(&manifest), [forked, last], "that of a fork that is there");
}

#[test]
fn unnamed_points_beyond_what_is_kept_go_and_named_ones_never() {
    let scratch = Scratch::new();
    let mut layers = scratch.open();
    layers.prepare().unwrap();
    // Without a write for each, which the disk is asked to have.
    let mut manifest = layers.manifest().as_ref().clone();
    for count in 0..1000_u32 {
        let name = (count % 250 == 0).then(|| format!("n{count}"));
        manifest = manifest.frozen(point(name.as_deref())).unwrap();
        let made = layers.disk.make_layer(LayerSerial(count + 1), Room::Free);
        made.or_else(|error| if count == 0 { Ok(()) } else { Err(error) }).unwrap();
    }
    assert_eq!(manifest.named(), 4);
    assert_eq!(manifest.points().len(), 4 + DEFAULT_KEEP as usize);
    // All of them lie below the live upper, so no layer goes with its point.
    assert_eq!(manifest.chain(Some(manifest.live())).len(), 1001);
    assert_eq!(manifest.frozen_layers().count(), 1000);
    assert_eq!(manifest.points().last().unwrap().serial.0, 999);
    layers.write(manifest, Room::Free).unwrap();
    let manifest = Arc::clone(layers.manifest());
    drop(layers);
    let mut layers = scratch.open();
    assert_eq!(*layers.manifest(), manifest);
    assert_eq!(layers.open_below().unwrap().len(), 1000);
    let gone = layers.keep(10).unwrap();
    assert_eq!(gone.len(), 54);
    assert_eq!(layers.manifest().points().len(), 14);
    assert_eq!(layers.manifest().keep(), 10);
    freeze(&mut layers, None).unwrap();
    assert_eq!(layers.manifest().points().len(), 14);
    assert!(layers.keep(10).unwrap().is_empty());
    // Rolled away, layers go with the points that need them.
    let change = layers.rolling_back(None, None);
    finish(&mut layers, change).unwrap();
    let ids: Vec<_> = layers.manifest().points().iter().map(|point| point.id.clone()).collect();
    layers.forget(&ids).unwrap();
    layers.remover().remove().unwrap();
    assert_eq!(std::fs::read_dir(scratch.work.join("layers")).unwrap().count(), 1);
}

/// A point that is to be published.
fn publishing(layers: &mut Layers, passing: bool) -> BackupId {
    let publish = Publish {
        dir: "/a".into(),
        name: None,
        ttl: 60,
        whole: false,
        passing,
        state: PublishState::Pending,
    };
    let point = NewPoint { publish: Some(publish), ..point(None) };
    let id = point.id.clone();
    let change = layers.freezing(point, Some(1));
    finish(layers, change).unwrap();
    id
}

#[test]
fn what_is_yet_to_be_published_stays_until_it_is_and_what_becomes_of_it_comes_back() {
    let scratch = Scratch::new();
    let mut layers = scratch.open();
    let [first, second, third] = [false, false, true].map(|it| publishing(&mut layers, it));
    let ids = |layers: &Layers| -> Vec<BackupId> {
        layers.manifest().points().iter().map(|point| point.id.clone()).collect()
    };
    assert_eq!(ids(&layers), [&first, &second, &third].map(Clone::clone), "though one is kept");
    layers.set_publish(&first, PublishState::Published { at_ms: 1, bytes: 2 });
    assert_eq!(ids(&layers), [&second, &third].map(Clone::clone));
    // One that was there for that alone goes, whatever became of it.
    layers.set_publish(&third, PublishState::Failed { why: "x".into() });
    assert_eq!(ids(&layers), std::slice::from_ref(&second));
    let published = PublishState::Published { at_ms: 3, bytes: 4 };
    layers.set_publish(&second, published.clone());
    flush(&mut layers, Facts::default()).unwrap();
    drop(layers);
    let layers = scratch.open();
    let point = layers.manifest().point(&second).unwrap();
    assert_eq!(point.publish.as_ref().unwrap().state, published);
    assert_eq!(layers.manifest().points().len(), 1);
}

#[test]
fn no_layer_has_a_number_beyond_what_there_are() {
    let scratch = Scratch::new();
    let mut layers = scratch.open();
    freeze(&mut layers, None).unwrap();
    make_durable(&mut layers);
    drop(layers);
    let path = scratch.work.join("stack.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"next\":2", &format!("\"next\":{}", u32::MAX))).unwrap();
    let mut layers = scratch.open();
    let before = shape(layers.manifest());
    let failure = freeze(&mut layers, None).unwrap_err();
    assert!(failure.message.contains("all layers"), "{failure}");
    assert_eq!(shape(layers.manifest()), before);
}

#[test]
fn fuzzy_files_of_any_name_come_back() {
    use std::os::unix::ffi::OsStringExt;
    let scratch = Scratch::new();
    let mut layers = scratch.open();
    let id = freeze(&mut layers, None).unwrap();
    let odd = PathBuf::from(std::ffi::OsString::from_vec(b"a/\xff\n".to_vec()));
    let files = vec![PathBuf::from("b"), odd];
    layers.set_fuzzy(&id, files.clone()).unwrap();
    drop(layers);
    let layers = scratch.open();
    let fuzzy = &layers.manifest().point(&id).unwrap().fuzzy;
    assert_eq!(fuzzy.iter().map(|file| file.path.clone()).collect::<Vec<_>>(), files);
}
