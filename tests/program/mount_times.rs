//! Which times move when a mount is only read.

use std::ffi::OsStr;
use std::fs::FileTimes;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::support::mount::{Bench, can_mount, can_mount_with, write_tree};
use crate::support::surrounding::{Need, has};

/// So long ago that a read moves it under relatime, too.
fn long_ago() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)
}

fn set_atime(path: &Path) {
    let file = std::fs::File::open(path).unwrap();
    file.set_times(FileTimes::new().set_accessed(long_ago())).unwrap();
}

/// Whether the upper's `st_atime` is another than the one that was set.
fn has_moved(upper: &Path) -> bool {
    upper.metadata().unwrap().atime() != 1_000_000_000
}

fn forget() {
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

/// Reads files and directories in every way on a mount with `options`, and says whether it moved
/// `st_atime` of files, of directories.
fn moved(bench: &Bench, archive: &Path, name: &str, options: &str) -> (bool, bool) {
    let (mountpoint, upper) = (bench.directory(name), bench.path(&format!("{name}-upper")));
    let mut words = vec![OsStr::new("mount"), archive.as_os_str(), mountpoint.as_os_str()];
    words.extend([OsStr::new("--upper"), upper.as_os_str()]);
    words.extend(
        (!options.is_empty()).then_some(["-o", options]).into_iter().flatten().map(OsStr::new),
    );
    bench.ok(&words);
    std::fs::write(mountpoint.join("made"), "a new file\n").unwrap();
    std::fs::create_dir(mountpoint.join("dir")).unwrap();
    std::fs::write(mountpoint.join("dir/inside"), "another\n").unwrap();
    // Copied up.
    let held = std::fs::File::options().append(true).open(mountpoint.join("hello")).unwrap();
    std::io::Write::write_all(&mut &held, b"more\n").unwrap();
    let (files, dirs) = (["made", "hello", "dir/inside"], ["dir", "."]);
    for name in files.iter().chain(&dirs) {
        set_atime(&mountpoint.join(name));
    }
    forget();
    for file in files {
        for command in ["cat", "grep -c a", "sha256sum"] {
            let read = format!("{command} {file} >/dev/null");
            Command::new("sh").args(["-c", &read]).current_dir(&mountpoint).status().unwrap();
        }
    }
    for dir in dirs {
        assert!(std::fs::read_dir(mountpoint.join(dir)).unwrap().count() > 0);
    }
    let any = |names: &[&str]| names.iter().any(|name| has_moved(&upper.join(name)));
    let moved = (any(&files), any(&dirs));
    let shown = mountpoint.join("made").metadata().unwrap().atime();
    assert_eq!(shown, upper.join("made").metadata().unwrap().atime(), "{name}");
    drop(held);
    bench.ok(&["unmount".as_ref(), mountpoint.as_os_str()]);
    moved
}

#[test]
fn noatime_keeps_the_access_times_of_what_is_read() {
    if !can_mount_with("noatime_keeps_the_access_times_of_what_is_read", &[Need::Root]) {
        return;
    }
    let bench = Bench::new();
    let tree = bench.directory("tree");
    write_tree(&tree);
    let archive = bench.archive(&tree, "data.sqsh", &[]);
    for (name, options, expected) in [
        ("default", "", (true, true)),
        ("cached", "no_passthrough", (true, true)),
        ("noatime", "noatime", (false, false)),
        ("cached-noatime", "noatime,no_passthrough,relatime", (false, false)),
        ("nodiratime", "nodiratime", (true, false)),
        ("taken-back", "noatime,nodiratime,atime,diratime", (true, true)),
    ] {
        assert_eq!(moved(&bench, &archive, name, options), expected, "{name}: files, directories");
    }
    bench.assert_nothing_left();
}

#[test]
fn what_cannot_be_kept_of_access_times_is_refused_by_name() {
    if !can_mount("what_cannot_be_kept_of_access_times_is_refused_by_name") {
        return;
    }
    let bench = Bench::new();
    let tree = bench.directory("tree");
    write_tree(&tree);
    let archive = bench.archive(&tree, "data.sqsh", &[]);
    let mountpoint = bench.directory("mnt");
    for option in ["strictatime", "lazytime"] {
        let place = [archive.as_os_str(), mountpoint.as_os_str()];
        let words = [&["mount".as_ref()], &place[..], &["-o".as_ref(), option.as_ref()]].concat();
        let output = bench.run(&words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{option}");
        assert!(said.contains(option), "{said}");
        assert_eq!(bench.mounted(), Vec::<std::path::PathBuf>::new());
    }
    bench.assert_nothing_left();
}

#[test]
fn a_remount_keeps_access_times_as_they_are_kept() {
    if !can_mount_with("a_remount_keeps_access_times_as_they_are_kept", &[Need::Root]) {
        return;
    }
    let bench = Bench::new();
    let tree = bench.directory("tree");
    write_tree(&tree);
    let archive = bench.archive(&tree, "data.sqsh", &[]);
    let mountpoint = bench.directory("mnt");
    let place = [archive.as_os_str(), mountpoint.as_os_str()];
    for (given, remounts) in [
        (
            "rw",
            [("ro", true), ("rw,atime,diratime", true), ("noatime", false), ("nodiratime", false)],
        ),
        ("noatime", [("ro", true), ("rw,noatime", true), ("atime", false), ("strictatime", false)]),
    ] {
        bench.ok(&[&["mount".as_ref()], &place[..], &["-o".as_ref(), given.as_ref()]].concat());
        for (words, kept) in remounts {
            let options = format!("remount,{words}");
            let mut helper = bench.thawfs_as("mount.fuse.thawfs");
            let output = helper.args(place).args(["-o", &options]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.success(), kept, "{given}, {options}: {said}");
            assert!(kept || said.contains(words), "{said}");
            let flags = rustix::fs::statvfs(&mountpoint).unwrap().f_flag;
            let noatime = flags.contains(rustix::fs::StatVfsMountFlags::NOATIME);
            assert_eq!(noatime, given == "noatime", "{given}, {options}");
        }
        bench.ok(&["unmount".as_ref(), mountpoint.as_os_str()]);
    }
    bench.assert_nothing_left();
}

/// `st_ctime` of directories in `root`, to the nanosecond.
fn ctimes(root: &Path) -> Vec<(i64, i64)> {
    ["", "sub", "sub/deeper"]
        .map(|name| root.join(name).metadata().unwrap())
        .map(|found| (found.ctime(), found.ctime_nsec()))
        .into()
}

/// Looks at all of `root` in every way.
fn look(root: &Path) {
    for command in ["ls -lR", "find . -exec stat {} +", "cat hello sub/hello-too"] {
        let looking = format!("{command} >/dev/null");
        assert!(sh(root, &looking), "{command}");
    }
    if has(Need::Root) {
        forget();
    }
}

fn sh(dir: &Path, line: &str) -> bool {
    Command::new("sh").args(["-c", line]).current_dir(dir).status().unwrap().success()
}

#[test]
fn a_directory_changes_when_a_plain_one_would_and_else_never() {
    if !can_mount("a_directory_changes_when_a_plain_one_would_and_else_never") {
        return;
    }
    let bench = Bench::new();
    let tree = bench.directory("tree");
    write_tree(&tree);
    let archive = bench.archive(&tree, "data.sqsh", &[]);
    for (number, steps) in [
        &["chmod 600 sub/data"][..],
        &["echo more >>sub/data"],
        &["touch sub/deeper/empty"],
        &["setfattr -n user.a -v b sub/data"],
        // Two names, of which one is copied up and the other looked at.
        &["chmod 600 hello", "echo more >>sub/hello-too", "rm hello; echo hello >hello"],
        &["ln sub/data sub/deeper/again"],
        &["mv sub/data sub/other", "chmod 600 sub/link script; chmod 600 sub/deeper/empty"],
        &["mv sub/deeper/empty empty", "chmod 600 empty"],
        // A change of the directory before, between and after copies.
        &["touch sub/new", "chmod 600 sub/data", "rm sub/new", "chmod 600 sub/hello-too"],
        &["chmod 600 sub/data", "chmod 700 sub", "chmod 640 sub/hello-too", "chmod 711 sub ."],
        &["chmod 600 sub/data", "setfattr -n user.a -v b sub", "touch sub/hello-too"],
        &["chmod 600 sub/data", "touch -r sub sub", "touch sub/hello-too"],
        &["chmod 600 sub/deeper/empty", "mv sub/deeper other && mv other sub/deeper"],
        &["chmod 600 sub/deeper/empty", "mkdir sub/deeper/made", "rmdir sub/deeper/made"],
        &["cat <>hello", "true"],
    ]
    .into_iter()
    .enumerate()
    {
        let (mountpoint, upper) = (bench.directory("mnt"), bench.path(&format!("upper-{number}")));
        let plain = bench.plain_directory(&format!("plain-{number}"));
        write_tree(&plain);
        let mount = [archive.as_os_str(), mountpoint.as_os_str()];
        let mount = [&["mount".as_ref()], &mount[..], &["--upper".as_ref(), upper.as_os_str()]];
        bench.ok(&mount.concat());
        let (mut shown, mut expected) = (ctimes(&mountpoint), ctimes(&plain));
        for step in steps {
            std::thread::sleep(Duration::from_millis(20));
            assert!(sh(&mountpoint, step) && sh(&plain, step), "{step}");
            let (now, plain) = (ctimes(&mountpoint), ctimes(&plain));
            let changed = |one: &[(i64, i64)], other: &[(i64, i64)]| -> Vec<bool> {
                one.iter().zip(other).map(|(one, other)| one != other).collect()
            };
            let which = "of the root, sub and sub/deeper";
            assert_eq!(changed(&now, &shown), changed(&plain, &expected), "{step}: {which}");
            look(&mountpoint);
            assert_eq!(ctimes(&mountpoint), now, "{step}: looked at, {which}");
            (shown, expected) = (now, plain);
        }
        let packed = bench.path("packed.tar");
        let tar = format!("tar -cf {} .", packed.display());
        assert!(sh(&mountpoint, &tar), "{steps:?}: tar");
        for _ in 0..2 {
            bench.ok(&["unmount".as_ref(), mountpoint.as_os_str()]);
            bench.ok(&mount.concat());
            assert_eq!(ctimes(&mountpoint), shown, "{steps:?}: mounted again");
            look(&mountpoint);
            assert_eq!(ctimes(&mountpoint), shown, "{steps:?}: mounted again and looked at");
        }
        bench.ok(&["unmount".as_ref(), mountpoint.as_os_str()]);
    }
    bench.assert_nothing_left();
}
