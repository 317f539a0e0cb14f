//! A backup takes the place of the lower layers.

use super::*;

fn identity() -> ArchiveIdentity {
    ArchiveIdentity::parse("00ff10").unwrap()
}

fn sent(serial: u32) -> Sent {
    Sent { id: BackupId::random().unwrap(), serial: LayerSerial(serial), bytes: 1 }
}

/// As a server does it, onto layer 1.
pub(super) fn rebase(layers: &mut Layers) -> Result<(), Failure> {
    let change = layers.freezing_alone();
    finish(layers, change)?;
    layers.put_onto(&sent(1), &identity()).map(drop)
}

#[test]
fn what_lies_on_the_backup_stays_and_all_else_goes() {
    let scratch = Scratch::new();
    let mut layers = scratch.open();
    // 0 and 1 and 2 and 3, with 4 beside 2, and 5 on it live.
    let made: Vec<_> = (0..4).map(|_| freeze(&mut layers, None).unwrap()).collect();
    roll_back(&mut layers, &made[1], false).unwrap();
    let beside = freeze(&mut layers, Some("beside")).unwrap();
    let shape_before = shape(layers.manifest());
    let on_one = [(0, None), (1, Some(0)), (2, Some(1)), (3, Some(2)), (5, Some(1)), (6, Some(5))];
    assert_eq!(shape_before, (on_one.into(), vec![0, 1, 2, 3, 5], 6));
    let change = layers.freezing_alone();
    finish(&mut layers, change).unwrap();
    let freed = layers.put_onto(&sent(1), &identity()).unwrap();
    assert_eq!((freed.layers, &freed.points[..]), (2, &made[..2]));
    let after = [(2, None), (3, Some(2)), (5, None), (6, Some(5)), (8, Some(6))];
    assert_eq!(shape(layers.manifest()), (after.into(), vec![2, 3, 5], 8));
    let onto = layers.manifest().onto().unwrap().clone();
    drop(layers);

    let mut layers = scratch.open();
    assert_eq!(shape(layers.manifest()), (after.into(), vec![2, 3, 5], 8));
    assert_eq!(layers.manifest().onto(), Some(&onto));
    assert_eq!(*layers.manifest().made_over(), [identity()]);
    assert_eq!(scratch.names().iter().filter(|name| *name == "layers/8").count(), 1);
    // And once more: what other branches have goes then.
    let other = ArchiveIdentity::parse("77").unwrap();
    let freed = layers.put_onto(&sent(6), &other).unwrap();
    assert_eq!(freed.points, [&made[2..], std::slice::from_ref(&beside)].concat());
    assert_eq!(shape(layers.manifest()), ([(9, None)].into(), vec![], 9));
    assert_eq!(*layers.manifest().made_over(), [identity(), other]);
}

#[test]
fn what_would_be_lost_is_what_is_nowhere_else_or_has_a_name() {
    let scratch = Scratch::new();
    let mut layers = scratch.open();
    let named = freeze(&mut layers, Some("named")).unwrap();
    let pending = publishing(&mut layers, false);
    let published = publishing(&mut layers, false);
    let local = freeze(&mut layers, None).unwrap();
    layers.set_publish(&published, PublishState::Published { at_ms: 1, bytes: 2 });
    let lost = |layers: &Layers, serial| -> Vec<BackupId> {
        let manifest = layers.manifest();
        manifest.lost_onto(&sent(serial)).iter().map(|point| point.id.clone()).collect()
    };
    assert_eq!(lost(&layers, 0), [] as [BackupId; 0], "what it is put onto is there still");
    assert_eq!(lost(&layers, 1), [&named].map(Clone::clone));
    assert_eq!(lost(&layers, 2), [&named, &pending].map(Clone::clone));
    assert_eq!(lost(&layers, 3), [&named, &pending].map(Clone::clone));
    // What was rolled away is nowhere else.
    roll_back(&mut layers, &pending, true).unwrap();
    let away = layers.manifest().rolled_away().unwrap().id.clone();
    assert_eq!(lost(&layers, 1), std::slice::from_ref(&named));
    assert_eq!(lost(&layers, 3), [&named, &pending].map(Clone::clone));
    roll_back(&mut layers, &named, true).unwrap();
    let second = layers.manifest().rolled_away().unwrap().id.clone();
    assert_ne!(away, second);
    assert_eq!(lost(&layers, 2), [named, pending, second].as_slice());
    let _ = local;
}
