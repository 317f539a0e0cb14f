//! What is mounted inside of a mount: no command takes it down with the mount that it is in, unless it is
//! as dead as that.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::mount::{Bench, can_mount_with, write_tree};
use crate::support::surrounding::Need;
use crate::support::words::{eventually, said, text};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Exit codes, as docs/CONFIGURATION.md lists them.
const MOUNTPOINT: i32 = 10;
const BUSY: i32 = 13;

struct Nest {
    bench: Bench,
    archive: PathBuf,
    /// Where the outer mount is, and a directory in it.
    outer: PathBuf,
    inner: PathBuf,
}

impl Nest {
    fn new() -> Self {
        let bench = Bench::new();
        write_tree(&bench.directory("tree"));
        let archive = bench.archive(&bench.path("tree"), "data.sqsh", &[]);
        let outer = bench.directory("mnt");
        let inner = outer.join("sub");
        Self { bench, archive, outer, inner }
    }

    /// Mounts, and gives the server.
    fn mount(&self, on: &Path) -> Pid {
        let ready = ["-q", "mount", "--json", text(&self.archive), text(on)];
        let ready: Value = serde_json::from_str(&self.bench.ok(&ready)).unwrap();
        Pid::from_raw(ready["pid"].as_i64().unwrap().try_into().unwrap()).unwrap()
    }

    fn kill(&self, servers: &[Pid]) {
        servers.iter().for_each(|pid| kill_process(*pid, Signal::KILL).unwrap());
        // Until nothing of it is open any more: its command line goes before that.
        let has_ended = |pid: &Pid| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid()));
            stat.map_or(true, |stat| stat.rsplit(')').next().unwrap().starts_with(" Z"))
        };
        eventually("the servers have ended", || servers.iter().all(has_ended));
    }

    /// Runs a command that has to refuse, and gives what it says.
    fn refused(&self, words: &[&str], code: i32) -> String {
        let output = self.bench.run(words);
        let told = said(&output);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {told}");
        told
    }

    /// What gc tells of records.
    fn records(&self, more: &[&str]) -> Vec<Value> {
        let told = self.bench.ok(&[&["gc", "--json"], more].concat());
        let lines = serde_json::Deserializer::from_str(&told).into_iter();
        let lines = lines.map(Result::<Value, _>::unwrap);
        lines.filter(|line| line["kind"] == "record").collect()
    }
}

fn mount_tmpfs(at: &Path) {
    mount("none", at, "tmpfs", MountFlags::empty(), None).unwrap();
}

#[test]
fn what_lives_inside_a_dead_mount_is_named_and_left_alone() {
    let test = "what_lives_inside_a_dead_mount_is_named_and_left_alone";
    if !can_mount_with(test, &[Need::Root, Need::Processes]) {
        return;
    }
    type Fill = fn(&Nest, &Path);
    let fills: [(&str, Fill); 4] = [
        ("a mount of thawfs", |nest, at| {
            let _ = nest.mount(at);
        }),
        ("another file system", |_, at| mount_tmpfs(at)),
        ("a directory", |nest, at| mount_bind(nest.bench.directory("plain"), at).unwrap()),
        ("a live mount by another name", |nest, at| {
            let other = nest.bench.directory("other");
            nest.mount(&other);
            mount_bind(&other, at).unwrap();
        }),
    ];
    for (what, fill) in fills {
        let nest = Nest::new();
        let (outer, inner) = (text(&nest.outer), text(&nest.inner));
        let server = nest.mount(&nest.outer);
        fill(&nest, &nest.inner);
        std::fs::write(nest.inner.join("mine"), "mine").unwrap();
        let open = File::open(&nest.inner).unwrap();
        nest.kill(&[server]);
        let before = (nest.bench.mounted(), nest.bench.servers());

        for words in
            [&["unmount", "--dead", outer][..], &["unmount", outer], &["unmount", "--lazy", outer]]
        {
            let told = nest.refused(words, BUSY);
            assert!(told.contains(inner) && !told.contains("--lazy"), "{what}: {told}");
        }
        nest.refused(&["mount", text(&nest.archive), outer], MOUNTPOINT);
        let shown = nest.bench.ok(&["status", outer]);
        assert!(shown.contains(inner), "{what}: {shown}");
        for more in [&[][..], &["--yes"]] {
            let [record] = &*nest.records(more) else { panic!("{what}: one is dead") };
            let because = record["because"].as_str().unwrap_or_default();
            assert!(because.contains(inner), "{what}: {record}");
            assert_eq!(record["removed"], false, "{what}");
            let told = nest.bench.ok(&[&["gc"], more].concat());
            let line = told.lines().find(|line| line.contains("the record")).unwrap();
            assert!(line.starts_with("left") && line.contains(inner), "{what}: {told}");
        }
        assert_eq!((nest.bench.mounted(), nest.bench.servers()), before, "{what}");
        let mine = format!("/proc/self/fd/{}/mine", open.as_raw_fd());
        assert_eq!(std::fs::read(mine).unwrap(), b"mine", "{what}");

        // Once that has been taken away, the advice can be followed.
        drop(open);
        unmount(&nest.inner, UnmountFlags::DETACH).unwrap();
        nest.bench.ok(&["unmount", "--dead", outer]);
        let other = nest.bench.path("other");
        if other.exists() {
            nest.bench.ok(&["unmount", text(&other)]);
        }
        eventually("the servers have ended", || nest.bench.servers().is_empty());
        nest.bench.ok(&["gc", "--yes"]);
        nest.bench.assert_nothing_left();
    }
}

#[test]
fn what_is_dead_inside_a_dead_mount_goes_with_it() {
    let test = "what_is_dead_inside_a_dead_mount_goes_with_it";
    if !can_mount_with(test, &[Need::Root, Need::Processes]) {
        return;
    }
    for words in [&["unmount", "--dead"][..], &["unmount"], &["gc", "--yes"]] {
        let nest = Nest::new();
        let places = [nest.outer.clone(), nest.inner.clone(), nest.inner.join("sub")];
        let servers: Vec<_> = places.iter().map(|place| nest.mount(place)).collect();
        // Its own files by another name in it are as dead, and so is what somebody still has open.
        mount_bind(nest.outer.join("hello"), nest.outer.join("script")).unwrap();
        let _open = File::open(nest.outer.join("hello")).unwrap();
        nest.kill(&servers);
        let mountpoint = [text(&nest.outer)];
        let names = if words[0] == "gc" { &[][..] } else { &mountpoint };
        nest.bench.ok(&[words, names].concat());
        assert_eq!(nest.bench.mounted(), Vec::<PathBuf>::new(), "{words:?}");
        assert_eq!(nest.records(&[]), Vec::<Value>::new(), "{words:?}");
        nest.bench.ok(&["gc", "--yes"]);
        nest.bench.assert_nothing_left();
    }
}

#[test]
fn what_is_mounted_inside_a_live_mount_is_named_and_left_alone() {
    let test = "what_is_mounted_inside_a_live_mount_is_named_and_left_alone";
    if !can_mount_with(test, &[Need::Root, Need::Processes]) {
        return;
    }
    let nest = Nest::new();
    let (outer, inner) = (text(&nest.outer), text(&nest.inner));
    // What the mount hides is not inside of it.
    let hidden = nest.bench.directory("mnt/hidden");
    mount_tmpfs(&hidden);
    let server = nest.mount(&nest.outer);
    mount_tmpfs(&nest.inner);
    std::fs::write(nest.inner.join("mine"), "mine").unwrap();
    let told = nest.refused(&["unmount", outer], BUSY);
    assert!(told.contains(inner) && !told.contains("--lazy"), "{told}");
    let told = nest.refused(&["unmount", "--lazy", outer], BUSY);
    assert!(told.contains(inner), "{told}");
    assert_eq!(std::fs::read(nest.inner.join("mine")).unwrap(), b"mine");

    // A server that is told to end does, once nothing is mounted there any more.
    kill_process(server, Signal::TERM).unwrap();
    let log = || {
        let dir = std::fs::read_dir(nest.bench.state_dir().join("mounts")).unwrap().next();
        std::fs::read_to_string(dir.unwrap().unwrap().path().join("log")).unwrap_or_default()
    };
    eventually("it says what it waits for", || log().contains(inner));
    assert_eq!(std::fs::read(nest.inner.join("mine")).unwrap(), b"mine");
    assert_eq!(std::fs::read(nest.outer.join("script")).unwrap().get(..2), Some(&b"#!"[..]));
    unmount(&nest.inner, UnmountFlags::empty()).unwrap();
    eventually("the server has ended", || nest.bench.servers().is_empty());
    assert_eq!(nest.bench.mounted(), std::slice::from_ref(&hidden));

    // Named from the innermost, all of them go.
    nest.mount(&nest.outer);
    nest.mount(&nest.inner);
    nest.refused(&["unmount", outer], BUSY);
    nest.bench.ok(&["unmount", "--lazy", inner, outer]);
    eventually("the servers have ended", || nest.bench.servers().is_empty());
    assert_eq!(nest.bench.mounted(), std::slice::from_ref(&hidden));
    unmount(&hidden, UnmountFlags::empty()).unwrap();
    nest.bench.assert_nothing_left();
}

#[test]
fn what_was_moved_into_a_mount_goes_before_it_in_a_restore() {
    let test = "what_was_moved_into_a_mount_goes_before_it_in_a_restore";
    if !can_mount_with(test, &[Need::Root, Need::Processes]) {
        return;
    }
    let nest = Nest::new();
    let bucket = format!("file://{}", nest.bench.directory("box").display());
    let tree = nest.bench.path("tree");
    let handle = nest.bench.ok(&["-q", "create", text(&tree), "--bucket", &bucket]);
    let handle: Value = serde_json::from_str(&handle).unwrap();
    let id = handle["id"].as_str().unwrap();
    // Mounted before what it lies in now.
    let place = nest.bench.directory("place");
    let private = ["--make-private", text(&place)];
    mount_tmpfs(&place);
    assert!(Command::new("mount").args(private).status().unwrap().success());
    let (first, outer) = (place.join("first"), place.join("outer"));
    std::fs::create_dir(&first).unwrap();
    std::fs::create_dir(&outer).unwrap();
    nest.mount(&first);
    nest.mount(&outer);
    let moved = outer.join("sub");
    let private = ["--make-private", text(&outer)];
    assert!(Command::new("mount").args(private).status().unwrap().success());
    rustix::mount::mount_move(&first, &moved).unwrap();
    nest.bench.ok(&["-q", "restore", id, text(&outer), "--bucket", &bucket]);
    assert_eq!(nest.bench.servers().len(), 1);
    nest.bench.ok(&["unmount", text(&outer)]);
    unmount(&place, UnmountFlags::empty()).unwrap();
    nest.bench.assert_nothing_left();
}
