//! Forks: what they lie on is there after every step at which the server of either may be killed.

use super::*;
use crate::server::layers::forks::FORKS;

fn open(path: &Path) -> Directory {
    Directory::open(path).unwrap()
}

/// A fork of `layers` at `top`.
fn fork(layers: &mut Layers, top: u32) -> Scratch {
    let fork = Scratch::new();
    let (of, new) = (Path::new("/of"), Path::new("/new"));
    let (stack, json) = layers.forking(LayerSerial(top), of, new).unwrap();
    plant(&open(&fork.upper), &open(&fork.work), &json).unwrap();
    let mut own = fork.open();
    own.note_bases(new).unwrap();
    layers.has_forked(&stack).unwrap();
    fork
}

/// A stack of layers 0, 1 and 2, the last of which is live, and a fork of it at layer 1.
fn forked() -> (Scratch, Layers, Scratch) {
    let origin = Scratch::new();
    let mut layers = origin.open();
    origin.write(0, "bottom");
    freeze(&mut layers, Some("a")).unwrap();
    freeze(&mut layers, None).unwrap();
    let fork = fork(&mut layers, 1);
    (origin, layers, fork)
}

/// Checks that the fork is whole.
fn check(fork: &Scratch) -> Layers {
    let layers = fork.open();
    assert_eq!(layers.open_below().unwrap().len(), 2);
    let has = |serial, name| layers.disk.layer_path(LayerSerial(serial)).join(name).exists();
    assert!(has(0, "bottom") && has(1, "written"));
    layers
}

fn all_points(layers: &Layers) -> Vec<BackupId> {
    layers.manifest().points().iter().map(|point| point.id.clone()).collect()
}

/// What a server may be killed in.
type Act = fn(&mut Layers) -> Result<(), Failure>;

const ACTS: [(&str, Act); 6] = [
    ("freeze", |layers| freeze(layers, None).map(drop)),
    ("forget all", |layers| layers.forget(&all_points(layers))),
    ("roll back to the archive", |layers| {
        let change = layers.rolling_back(None, None);
        finish(layers, change)
    }),
    ("keep one", |layers| {
        freeze(layers, None)?;
        freeze(layers, None)?;
        layers.keep(1).map(drop)
    }),
    ("forget all, and roll back", |layers| {
        layers.forget(&all_points(layers))?;
        let change = layers.rolling_back(None, None);
        finish(layers, change)?;
        flush(layers, Facts::default())
    }),
    ("leave all to forks", |layers| layers.leave_to_forks()),
];

#[test]
fn a_fork_is_whole_after_every_step_at_which_what_it_lies_on_may_be_left() {
    for (name, act) in ACTS {
        for steps in 0.. {
            assert!(steps < 200, "{name} does not end");
            let (origin, mut layers, fork) = forked();
            layers.disk.steps.store(steps, Ordering::Relaxed);
            let done = act(&mut layers).is_ok() && layers.remover().remove().is_ok();
            drop(layers);
            drop(check(&fork));
            let layers = origin.open();
            assert_eq!(layers.manifest().forks().len(), 1, "{name}, {steps}");
            assert!(layers.manifest().has(LayerSerial(1)), "{name}, {steps}");
            drop((layers, check(&fork)));
            if done {
                break;
            }
        }
    }
}

#[test]
fn a_fork_has_points_and_layers_of_what_it_lies_on_and_greater_numbers() {
    let (_origin, mut layers, fork) = forked();
    let mut own = check(&fork);
    let tree = [(0, None), (1, Some(0)), (2, Some(1))];
    assert_eq!(shape(own.manifest()), (tree.into(), vec![0, 1], 2));
    assert_eq!(all_points(&own), all_points(&layers));
    // The live layer of each is another directory, by the same number.
    assert_ne!(own.live_dir(), layers.live_dir());
    freeze(&mut own, Some("b")).unwrap();
    freeze(&mut layers, Some("c")).unwrap();
    assert_eq!(fork.names().iter().filter(|name| name.ends_with("written")).count(), 1);
    let a = own.manifest().find("a").unwrap().id.clone();
    roll_back(&mut own, &a, true).unwrap();
    own.forget(&all_points(&own)).unwrap();
    // Nothing of the origin's goes with that.
    own.remover().remove().unwrap();
    drop(own);
    assert_eq!(layers.open_below().unwrap().len(), 3);
    let own = fork.open();
    assert_eq!(own.open_below().unwrap().len(), 1);

    // A fork of the fork: each of the two it lies on has a note.
    let (_origin, mut layers, first) = forked();
    let mut own = check(&first);
    freeze(&mut own, None).unwrap();
    let second = super::forks::fork(&mut own, 2);
    layers.see_forks().unwrap();
    assert_eq!((layers.manifest().forks().len(), own.manifest().forks().len()), (2, 1));
    let deep = second.open();
    let bases = deep.manifest().bases();
    assert_eq!(bases.iter().map(|base| base.layers.len()).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(deep.open_below().unwrap().len(), 3);
}

#[test]
fn a_note_is_worth_what_it_says_and_one_of_no_fork_goes() {
    let (origin, mut layers, fork) = forked();
    let notes = origin.work.join(FORKS);
    let note = || std::fs::read_dir(&notes).unwrap().next().unwrap().unwrap().path();
    // One that is just being written, and one that was cut off.
    for name in ["x.new", "y"] {
        std::fs::write(notes.join(name), "{").unwrap();
    }
    layers.see_forks().unwrap();
    assert_eq!(layers.manifest().forks().len(), 1);
    for name in ["x.new", "y"] {
        std::fs::remove_file(notes.join(name)).unwrap();
    }
    // It is written again where it is missing.
    std::fs::remove_file(note()).unwrap();
    fork.open().note_bases(Path::new("/elsewhere")).unwrap();
    layers.see_forks().unwrap();
    let at: Vec<_> = layers.manifest().forked_at(LayerSerial(1)).collect();
    assert_eq!(at, [Path::new("/elsewhere")]);
    // The fork goes, and with the note what only that needed.
    let all = all_points(&layers);
    layers.forget(&all).unwrap();
    let change = layers.rolling_back(None, None);
    finish(&mut layers, change).unwrap();
    assert!(layers.manifest().has(LayerSerial(1)));
    std::fs::remove_dir_all(&fork.work).unwrap();
    layers.see_forks().unwrap();
    assert!(layers.manifest().forks().is_empty() && !layers.manifest().has(LayerSerial(1)));
    assert!(!notes.exists() || std::fs::read_dir(&notes).unwrap().next().is_none());
    layers.remover().remove().unwrap();
    assert_eq!(origin.names().iter().filter(|name| name.ends_with("written")).count(), 1);
}

#[test]
fn without_what_it_lies_on_a_fork_is_refused_by_where_it_was_forked() {
    let damages: [fn(&Scratch); 3] = [
        |origin| std::fs::remove_dir_all(&origin.work).unwrap(),
        |origin| std::fs::remove_dir_all(&origin.upper).unwrap(),
        |origin| std::fs::remove_file(origin.work.join("stack.json")).unwrap(),
    ];
    for damage in damages {
        let (origin, layers, fork) = forked();
        drop(layers);
        damage(&origin);
        let failure = match fork.try_open() {
            Err(failure) => failure,
            Ok(mut own) => own.note_bases(Path::new("/new")).unwrap_err(),
        };
        assert_eq!(failure.code, Code::Upper);
        assert!(failure.message.contains("/of"), "{failure}");
    }
}
