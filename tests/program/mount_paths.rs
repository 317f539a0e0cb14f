//! Where a mount is and what it is made of is for nobody else to say: symlinks of others lead nowhere, and what is
//! swapped meanwhile is not used.

use std::os::unix::fs::{chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::mount::{Bench, can_mount_with, open_fuse_to_users, write_tree};
use crate::support::place::Place;
use crate::support::s3::Fault;
use crate::support::surrounding::{Need, cannot_run};
use crate::support::words::{NOBODY, as_nobody, eventually, said, text};

/// A symlink that belongs to an ordinary user.
fn foreign_link(target: &Path, at: PathBuf) -> PathBuf {
    symlink(target, &at).unwrap();
    lchown(&at, Some(NOBODY), Some(NOBODY)).unwrap();
    at
}

#[test]
fn symlinks_of_others_lead_nowhere() {
    if !can_mount_with("symlinks_of_others_lead_nowhere", &[Need::Root]) {
        return;
    }
    let bench = Bench::new();
    write_tree(&bench.directory("tree"));
    let archive = bench.archive(&bench.path("tree"), "data.sqsh", &[]);
    let [mountpoint, there, upper] = ["mnt", "there", "upper"].map(|name| bench.directory(name));
    let theirs = foreign_link(&there, bench.path("theirs"));
    let dangling = foreign_link(&bench.path("nowhere"), bench.path("dangling"));
    let [slash, dot] = ["", "."].map(|end| theirs.join(end));
    // One's own, which leads to one of theirs.
    let chain = bench.path("chain");
    symlink(&theirs, &chain).unwrap();
    let (a, m, u) = (text(&archive), text(&mountpoint), text(&upper));
    let mounts: [(Vec<&str>, i32); 17] = [
        (vec!["mount", a, text(&theirs)], 10),
        (vec!["mount", a, text(&slash)], 10),
        (vec!["mount", a, text(&dot)], 10),
        (vec!["mount", a, text(&chain)], 10),
        (vec!["mount", a, text(&dangling)], 10),
        (vec!["mount", a, "theirs"], 10),
        (vec!["mount", a, "theirs/"], 10),
        (vec!["mount", a, m, "--upper", "theirs"], 11),
        (vec!["mount", "--foreground", a, text(&theirs)], 10),
        (vec!["mount", a, m, "--upper", text(&theirs)], 11),
        (vec!["mount", a, m, "--upper", text(&slash)], 11),
        (vec!["mount", a, m, "--upper", text(&chain)], 11),
        (vec!["mount", a, m, "--upper", text(&dangling)], 11),
        (vec!["mount", a, m, "--upper", u, "--workdir", text(&theirs)], 11),
        (vec!["mount", a, m, "--upper", u, "-o", "workdir=/proc/self/cwd/dangling"], 11),
        (vec!["unmount", text(&theirs)], 10),
        (vec!["unmount", text(&dot)], 10),
    ];
    for (arguments, status) in &mounts {
        let refused = bench.thawfs().current_dir(bench.path("")).args(arguments).output().unwrap();
        assert_eq!(refused.status.code(), Some(*status), "{arguments:?}: {}", said(&refused));
        assert!(said(&refused).contains("symlink of another user"), "{}", said(&refused));
        assert_eq!(said(&refused).lines().count(), 1, "{}", said(&refused));
    }
    // As mount(8) starts it.
    for (at, options) in [("theirs", "rw"), ("theirs/", "remount,ro"), (m, "upperdir=theirs")] {
        let mut helper = bench.thawfs_as("mount.fuse.thawfs");
        let helper = helper.current_dir(bench.path(""));
        let refused = helper.args([a, at, "-o", options]).output().unwrap();
        // mount(8)'s own code for a mount that failed.
        assert_eq!(refused.status.code(), Some(32), "{at} {options}: {}", said(&refused));
        assert!(said(&refused).contains("symlink of another user"), "{}", said(&refused));
    }
    assert!(std::fs::read_dir(&there).unwrap().next().is_none());
    assert!(!bench.path("nowhere").exists());
    bench.assert_nothing_left();

    // One's own are followed, and so are others' on the way.
    let own = bench.path("own");
    symlink("there", &own).unwrap();
    std::fs::create_dir(there.join("in")).unwrap();
    for at in [own.join("."), theirs.join("in")] {
        bench.ok(&["mount", a, text(&at), "--upper", u]);
        assert!(at.join("hello").exists());
        bench.ok(&["unmount", text(&at)]);
    }
    bench.assert_nothing_left();
    // What was put where we would make it is not taken.
    let waiting = bench.directory(".other.work");
    chown(&waiting, Some(NOBODY), None).unwrap();
    let refused = bench.run(&["mount", a, m, "--upper", text(&bench.path("other"))]);
    assert_eq!(refused.status.code(), Some(11), "{}", said(&refused));
    assert!(said(&refused).contains(".other.work: it belongs to another user"));
    bench.assert_nothing_left();
}

#[test]
fn a_directory_that_is_swapped_meanwhile_is_not_used() {
    if !can_mount_with("a_directory_that_is_swapped_meanwhile_is_not_used", &[Need::Root]) {
        return;
    }
    let place = Place::s3();
    let bench = &place.bench;
    write_tree(&bench.directory("tree"));
    bench.archive(&bench.path("tree"), "buckets/box/a.sqsh", &[]);
    let server = place.server.as_ref().unwrap();
    // While the archive is being opened; what is swapped, for what, and what the mount is told.
    let cases = [
        ("mnt", Swap::Link, 10),
        ("mnt", Swap::Directory, 10),
        ("upper", Swap::Link, 11),
        ("upper", Swap::Directory, 11),
        ("work", Swap::Link, 11),
        ("above", Swap::Link, 10),
    ];
    for (number, (what, swap, status)) in cases.into_iter().enumerate() {
        let at = bench.directory(&number.to_string());
        let [mountpoint, upper, work, there] =
            ["above/mnt", "upper", "work", "there/mnt"].map(|name| at.join(name));
        for directory in [&mountpoint, &upper, &work, &there] {
            std::fs::create_dir_all(directory).unwrap();
        }
        server.clear_log();
        server.inject(Fault::Delay(Duration::from_secs(3)), 2);
        let mut mount = place
            .thawfs()
            .args(["mount", "--disk-cache=off", "s3://box/a.sqsh", text(&mountpoint)])
            .args(["--upper", text(&upper), "--workdir", text(&work)])
            .stderr(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        eventually("the archive is asked for", || {
            server.gets() > 0 || mount.try_wait().unwrap().is_some()
        });
        let swapped = match what {
            "mnt" => at.join("above/mnt"),
            what => at.join(what),
        };
        std::fs::rename(&swapped, at.join("was")).unwrap();
        let target = if what == "above" { at.join("there") } else { there.clone() };
        match swap {
            Swap::Link => symlink(target, &swapped).unwrap(),
            Swap::Directory => std::fs::create_dir(&swapped).unwrap(),
        }
        let output = mount.wait_with_output().unwrap();
        server.heal();
        assert_eq!(output.status.code(), Some(status), "{what} {swap:?}: {}", said(&output));
        assert!(said(&output).contains("in its place"), "{what} {swap:?}: {}", said(&output));
        assert!(std::fs::read_dir(&there).unwrap().next().is_none());
        bench.assert_nothing_left();
    }
}

/// What comes to the place of a directory.
#[derive(Clone, Copy, Debug)]
enum Swap {
    Link,
    Directory,
}

#[test]
fn nothing_else_is_unmounted_where_a_path_leads_elsewhere() {
    let test = "nothing_else_is_unmounted_where_a_path_leads_elsewhere";
    if !can_mount_with(test, &[Need::Root, Need::Processes]) {
        return;
    }
    let bench = Bench::new();
    write_tree(&bench.directory("tree"));
    let archive = bench.archive(&bench.path("tree"), "data.sqsh", &[]);
    let [ours, other] = ["above/mnt", "there/mnt"].map(|name| bench.directory(name));
    for at in [&ours, &other] {
        bench.ok(&["mount", text(&archive), text(at)]);
    }
    let servers = bench.servers();
    std::fs::rename(bench.path("above"), bench.path("moved")).unwrap();
    foreign_link(&bench.path("there"), bench.path("above"));
    // By the name that is on record, which leads to the other now.
    let refused = thawfs::fuse::unmount(&ours).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::StaleNetworkFileHandle);
    let refused = thawfs::fuse::detach(&ours).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::StaleNetworkFileHandle);
    assert!(other.join("hello").exists() && bench.path("moved/mnt/hello").exists());
    assert_eq!(bench.servers(), servers);
    bench.ok(&["unmount", text(&other)]);
    let umount = Command::new("umount").arg(bench.path("moved/mnt")).status().unwrap();
    assert!(umount.success());
    eventually("the servers have ended", || bench.servers().is_empty());
    bench.assert_nothing_left();
}

#[test]
fn what_is_unpacked_goes_where_it_was_asked_to() {
    if cannot_run("what_is_unpacked_goes_where_it_was_asked_to", &[Need::Root]) {
        return;
    }
    let place = Place::s3();
    let bench = &place.bench;
    write_tree(&bench.directory("tree"));
    // More than opening it fetches.
    let noise: Vec<u8> = (0..6_000_000u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    std::fs::write(bench.path("tree/noise"), noise).unwrap();
    bench.archive(&bench.path("tree"), "buckets/box/a.sqsh", &["-noD"]);
    let there = bench.directory("there");
    let url = "s3://box/a.sqsh";

    let theirs = foreign_link(&there, bench.path("theirs"));
    let dangling = foreign_link(&bench.path("nowhere"), bench.path("dangling"));
    for target in [theirs.clone(), theirs.join(""), theirs.join("."), dangling] {
        let refused = place.run(&["extract", url, text(&target)]);
        assert_eq!(refused.status.code(), Some(1), "{}", target.display());
        assert!(said(&refused).contains("symlink of another user"), "{}", said(&refused));
    }
    assert_eq!(std::fs::read_dir(&there).unwrap().count(), 0);
    assert!(!bench.path("nowhere").exists());
    let own = bench.path("own");
    symlink("own-target", &own).unwrap();
    assert!(place.run(&["extract", url, text(&own)]).status.success());
    assert!(bench.path("own-target/hello").exists());

    // What is swapped while it goes on, and whether it comes to be where the directory is then.
    let server = place.server.as_ref().unwrap();
    for (number, (what, done)) in [("target", false), ("above", true)].into_iter().enumerate() {
        let at = bench.directory(&number.to_string());
        let target = at.join("above/target");
        std::fs::create_dir_all(&target).unwrap();
        server.inject(Fault::Delay(Duration::ZERO), 2);
        server.inject(Fault::Delay(Duration::from_secs(2)), 3);
        let unpacking = place
            .thawfs()
            .args(["extract", "--disk-cache=off", url, text(&target)])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        eventually("it is being unpacked", || at.join("above").read_dir().unwrap().count() > 1);
        let (swapped, leads) = match what {
            "target" => (target.clone(), there.clone()),
            _ => (at.join("above"), at.join("there")),
        };
        std::fs::create_dir_all(at.join("there/target")).unwrap();
        std::fs::rename(&swapped, at.join("was")).unwrap();
        foreign_link(&leads, swapped);
        let output = unpacking.wait_with_output().unwrap();
        server.heal();
        assert_eq!(output.status.success(), done, "{what}: {}", said(&output));
        for away in [&there, &at.join("there/target")] {
            assert_eq!(std::fs::read_dir(away).unwrap().count(), 0, "{what}");
        }
        match done {
            true => assert!(at.join("was/target/hello").exists()),
            false => assert_eq!(at.join("above").read_dir().unwrap().count(), 1, "{what}"),
        }
    }
}

#[test]
fn a_backup_is_restored_through_no_symlink_of_another_user() {
    if !can_mount_with("a_backup_is_restored_through_no_symlink_of_another_user", &[Need::Root]) {
        return;
    }
    let place = Place::local();
    let bench = &place.bench;
    write_tree(&bench.directory("tree"));
    let (code, made) = place.json(&["create", text(&bench.path("tree"))]);
    assert_eq!(code, 0);
    let id = made[0]["id"].as_str().unwrap();
    let there = bench.directory("there");
    let theirs = foreign_link(&there, bench.path("theirs"));
    for target in [text(&theirs), text(&theirs.join("")), "theirs"] {
        for extra in [&[][..], &["--foreground"], &["--extract"]] {
            let mut restore = place.thawfs();
            let restore = restore.args(["restore", id, target]).args(extra);
            let refused = restore.current_dir(bench.path("")).output().unwrap();
            assert!(!refused.status.success(), "{target} {extra:?}");
            assert!(said(&refused).contains("symlink of another user"), "{}", said(&refused));
        }
    }
    assert_eq!(std::fs::read_dir(&there).unwrap().count(), 0);
    bench.assert_nothing_left();
    // One's own.
    let own = bench.path("own");
    symlink("there", &own).unwrap();
    assert!(place.run(&["restore", id, text(&own)]).status.success());
    assert!(there.join("hello").exists());
    assert!(place.run(&["unmount", text(&own)]).status.success());
    bench.assert_nothing_left();
}

#[test]
fn an_ordinary_user_follows_own_links_and_roots_alone() {
    if !can_mount_with("an_ordinary_user_follows_own_links_and_roots_alone", &[Need::Root]) {
        return;
    }
    open_fuse_to_users();
    let bench = Bench::new();
    write_tree(&bench.directory("tree"));
    let archive = bench.archive(&bench.path("tree"), "data.sqsh", &[]);
    let program = bench.path("thawfs");
    std::fs::copy(env!("CARGO_BIN_EXE_thawfs"), &program).unwrap();
    let [home, state] = ["home", "state"].map(|name| bench.directory(name));
    for name in ["mnt", "upper", "work"] {
        std::fs::create_dir(home.join(name)).unwrap();
        chown(home.join(name), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    for path in [&home, &state] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let run = |arguments: &[&str]| {
        let mut command = as_nobody(&program);
        command.args(arguments).current_dir(&home);
        command.env("THAWFS_STATE_DIR", &state).env("THAWFS_CACHE_DIR", home.join("cache"));
        command.output().unwrap()
    };
    let a = text(&archive);
    for (owner, followed) in [(NOBODY, true), (0, true), (4242, false)] {
        for name in ["mnt", "upper", "work", "out"] {
            let link = home.join(format!("{name}-link"));
            let _ = std::fs::remove_file(&link);
            symlink(name, &link).unwrap();
            lchown(&link, Some(owner), Some(owner)).unwrap();
        }
        let mounts: [(&[&str], i32); 4] = [
            (&["mount", a, "mnt-link"], 10),
            (&["mount", a, "mnt-link/"], 10),
            (&["mount", a, "mnt", "--upper", "upper-link"], 11),
            (&["mount", a, "mnt", "--upper", "upper", "--workdir", "work-link"], 11),
        ];
        for (arguments, status) in mounts {
            let done = run(arguments);
            let expected = if followed { 0 } else { status };
            let shown = format!("{owner} {arguments:?}: {}", said(&done));
            assert_eq!(done.status.code(), Some(expected), "{shown}");
            if followed {
                let seen = as_nobody("cat").arg(home.join("mnt/hello")).output().unwrap();
                assert!(seen.status.success(), "{shown}");
                let done = run(&["unmount", arguments[2]]);
                assert!(done.status.success(), "{}", said(&done));
            }
            bench.assert_nothing_left();
        }
        let done = run(&["extract", a, "out-link"]);
        assert_eq!(done.status.success(), followed, "{owner}: {}", said(&done));
        assert_eq!(home.join("out/hello").exists(), followed);
        let _ = std::fs::remove_dir_all(home.join("out"));
    }
}
