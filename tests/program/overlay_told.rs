//! What the stream says of files whose names are not all known, as those of one that has very many.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use thawfs::overlay::{Options, SetAttr, SetTime};
use thawfs::types::{Ino, Timestamp};
use thawfs::watch::{Item, Reader, What};

use crate::overlay_support::{ROOT, open_overlay, source};

/// Names of a file that are known at a time: the one that it was reached by last, and those before that.
const KNOWN: usize = 33;

fn name(n: usize) -> OsString {
    format!("name-{n}").into()
}

fn read(reader: &mut Reader) -> Vec<Item> {
    let mut all = Vec::new();
    loop {
        let some = reader.read(1000);
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

/// A file of many `names`, made and linked in order, of which the first that are `left` are not removed again: what
/// is told when its mode is changed and when it is written to, by who has it open.
fn told_of(names: usize, left: usize) -> [Vec<Item>; 2] {
    let dir = tempfile::tempdir().unwrap();
    let overlay = open_overlay(dir.path(), &source().archive, Options::default());
    let (mut reader, _) = overlay.change_log().subscribe(None).unwrap();
    let flags = libc::O_RDWR | libc::O_CREAT;
    let (file, opened) = overlay.create(&ROOT, Ino::ROOT, &name(0), 0o644, flags).unwrap();
    for n in 1..names {
        overlay.link(file.ino, Ino::ROOT, &name(n)).unwrap();
    }
    for n in (left..names).rev() {
        overlay.unlink(Ino::ROOT, &name(n)).unwrap();
    }
    read(&mut reader);
    let mode = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    overlay.setattr(&ROOT, file.ino, None, &mode).unwrap();
    let of_mode = read(&mut reader);
    overlay.write(opened.handle, 0, b"more").unwrap();
    let of_write = read(&mut reader);
    overlay.release(opened.handle);
    [of_mode, of_write]
}

#[test]
fn a_file_that_has_names_is_never_changed_in_silence() {
    for names in [1, 2, KNOWN - 1, KNOWN, KNOWN + 1, KNOWN + 2, 2 * KNOWN] {
        for left in [1, 2, names.saturating_sub(KNOWN), names - 1, names] {
            let left = left.clamp(1, names);
            let [of_mode, of_write] = told_of(names, left);
            for (told, what) in [(of_mode, What::Attributes), (of_write, What::Write)] {
                let case = format!("{names} names, {left} left: {told:?}");
                // By each name that is known and is there still.
                let expected: BTreeSet<_> = (names.saturating_sub(KNOWN)..left).map(name).collect();
                // Whoever reads looks what differs.
                if let [Item::Missed { from, to }] = &told[..] {
                    assert!(from == to && expected.is_empty(), "{case}");
                    continue;
                }
                let paths = told.iter().map(|told| match told {
                    Item::Change(change) if change.what == what => {
                        OsString::from_vec(change.path.clone())
                    }
                    _ => panic!("{case}"),
                });
                let paths: Vec<_> = paths.collect();
                assert!(!paths.is_empty() && paths.len() == expected.len(), "{case}");
                assert_eq!(BTreeSet::from_iter(paths), expected, "{case}");
            }
        }
    }
}

#[test]
fn what_has_no_name_any_more_is_told_of_to_nobody() {
    for names in [1, KNOWN, KNOWN + 5] {
        assert_eq!(told_of(names, 0), [vec![], vec![]], "{names} names");
    }
}

#[test]
fn a_name_that_is_used_again_and_again_does_not_drive_out_the_others() {
    for left in 0..KNOWN {
        let dir = tempfile::tempdir().unwrap();
        let overlay = open_overlay(dir.path(), &source().archive, Options::default());
        let (mut reader, _) = overlay.change_log().subscribe(None).unwrap();
        let file = overlay.mknod(&ROOT, Ino::ROOT, &name(0), libc::S_IFREG | 0o644, 0).unwrap();
        for n in 1..KNOWN {
            overlay.link(file.ino, Ino::ROOT, &name(n)).unwrap();
        }
        // The file goes to the name that it is looked up by.
        for n in [0, 1, 0, 1, 0] {
            overlay.lookup(Ino::ROOT, &name(n)).unwrap();
        }
        for n in (0..KNOWN).filter(|n| *n != left) {
            overlay.unlink(Ino::ROOT, &name(n)).unwrap();
        }
        read(&mut reader);
        let mode = SetAttr { mode: Some(0o600), ..SetAttr::default() };
        overlay.setattr(&ROOT, file.ino, None, &mode).unwrap();
        let told = read(&mut reader);
        let [Item::Change(change)] = &told[..] else { panic!("{left} is left: {told:?}") };
        assert_eq!(String::from_utf8(change.path.clone()).unwrap(), format!("name-{left}"));
    }
}

#[test]
fn what_is_made_as_soon_as_somebody_watches_is_not_told_as_written() {
    let dir = tempfile::tempdir().unwrap();
    let overlay = open_overlay(dir.path(), &source().archive, Options::default());
    let (mut reader, _) = overlay.change_log().subscribe(None).unwrap();
    let flags = libc::O_RDWR | libc::O_CREAT;
    let (_, made) = overlay.create(&ROOT, Ino::ROOT, &name(0), 0o644, flags).unwrap();
    overlay.written_by_kernel(made.handle, true);
    overlay.release(made.handle);
    let told = read(&mut reader);
    let [Item::Change(change)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(change.what, What::Create);
}

#[test]
fn what_the_kernel_writes_as_soon_as_somebody_watches_is_told() {
    for renamed in [false, true] {
        for opened_before in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let overlay = open_overlay(dir.path(), &source().archive, Options::default());
            let flags = libc::O_RDWR | libc::O_CREAT;
            let (file, made) = overlay.create(&ROOT, Ino::ROOT, &name(0), 0o644, flags).unwrap();
            let open = || {
                let handle = overlay.open(file.ino, libc::O_RDWR).unwrap().handle;
                overlay.written_by_kernel(handle, true);
                handle
            };
            let before = opened_before.then(open);
            overlay.release(made.handle);
            // The thread that looks for such writes is not there: as if it had yet to wake.
            std::thread::sleep(std::time::Duration::from_millis(50));
            let (mut reader, _) = overlay.change_log().subscribe(None).unwrap();
            let handle = before.unwrap_or_else(open);
            let by_kernel =
                std::fs::File::from(overlay.upper_fd(handle).unwrap().try_clone().unwrap());
            std::os::unix::fs::FileExt::write_all_at(&by_kernel, b"data", 0).unwrap();
            let mut expected = vec![What::Write];
            if renamed {
                let flags = rustix::fs::RenameFlags::empty();
                overlay.rename(&ROOT, Ino::ROOT, &name(0), Ino::ROOT, &name(1), flags).unwrap();
                expected.push(What::Rename { to: b"name-1".to_vec() });
            }
            overlay.release(handle);
            let told = read(&mut reader).into_iter().map(|told| match told {
                Item::Change(change) => change.what.clone(),
                missed => panic!("{missed:?}"),
            });
            let told: Vec<_> = told.collect();
            assert_eq!(told, expected, "renamed {renamed}, opened before {opened_before}");
        }
    }
}

#[test]
fn times_that_are_set_are_no_write() {
    let time = Some(SetTime::At(Timestamp { seconds: 1_000_000_000, nanos: 5 }));
    for atime in [None, time] {
        let dir = tempfile::tempdir().unwrap();
        let overlay = open_overlay(dir.path(), &source().archive, Options::default());
        let (mut reader, _) = overlay.change_log().subscribe(None).unwrap();
        let flags = libc::O_RDWR | libc::O_CREAT;
        let (file, made) = overlay.create(&ROOT, Ino::ROOT, &name(0), 0o644, flags).unwrap();
        overlay.written_by_kernel(made.handle, true);
        let before = overlay.getattr(file.ino, None).unwrap();
        read(&mut reader);
        let change = SetAttr { atime, mtime: time, ..SetAttr::default() };
        let after = overlay.setattr(&ROOT, file.ino, None, &change).unwrap();
        overlay.release(made.handle);
        let told = read(&mut reader);
        let [Item::Change(change)] = &told[..] else { panic!("{atime:?}: {told:?}") };
        assert_eq!(change.what, What::Attributes);
        let set = Timestamp { seconds: 1_000_000_000, nanos: 5 };
        assert_eq!(after.mtime, set);
        assert_eq!(after.atime, if atime.is_some() { set } else { before.atime });
    }
}
