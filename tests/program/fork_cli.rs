//! `fork`, on real mounts.

use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::mount::{Bench, Mounts, can_mount, can_mount_with};
use crate::support::surrounding::Need;
use crate::support::words::{eventually, text};

/// A mount that may be forked.
struct Place {
    root: PathBuf,
}

impl Place {
    fn write(&self, name: &str, contents: &str) {
        std::fs::write(self.root.join(name), contents).unwrap();
    }

    fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.root.join(name)).ok()
    }

    fn open(&self, name: &str) -> std::fs::File {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).open(self.root.join(name)).unwrap()
    }
}

struct Forks {
    bench: Bench,
    origin: Place,
}

/// A mount of the small tree, in which something was changed.
fn mounted(more: &[&str]) -> Forks {
    let Mounts { bench, archive, mountpoint } = Mounts::new();
    bench.ok(&[&["-q", "mount", text(&archive), text(&mountpoint)], more].concat());
    let origin = Place { root: mountpoint };
    origin.write("new", "from the origin");
    origin.write("script", "changed");
    Forks { bench, origin }
}

impl Forks {
    fn place(&self, name: &str) -> Place {
        Place { root: self.bench.path(name) }
    }

    fn does(&self, command: &str, place: &Place, more: &[&str]) -> String {
        self.bench.ok(&[&[command, text(&place.root)][..], more].concat())
    }

    /// A fork of `of`.
    fn fork(&self, of: &Place, name: &str, more: &[&str]) -> Place {
        let new = self.place(name);
        self.does("fork", of, &[&[text(&new.root), "--quiet"], more].concat());
        new
    }

    fn fails(&self, command: &str, place: &Place, more: &[&str]) -> (i32, Value) {
        let arguments = [&[command, text(&place.root), "--json"][..], more].concat();
        let output = self.bench.run(&arguments);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(!output.status.success() && said.lines().count() == 1, "{arguments:?}: {said}");
        (output.status.code().unwrap(), serde_json::from_str(&said).unwrap())
    }

    fn points(&self, place: &Place) -> Vec<Value> {
        let said = self.does("checkpoints", place, &["--json"]);
        said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn status(&self, place: &Place) -> Value {
        let said = self.bench.ok(&["status", "--json", text(&place.root)]);
        serde_json::from_str::<Value>(&said).unwrap()[0].clone()
    }

    /// The server's process, as it is called here.
    fn pid(&self, place: &Place) -> u32 {
        self.bench.server_of(&place.root)
    }

    fn kill(&self, place: &Place) {
        let pid = self.pid(place);
        kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
        eventually("the server has ended", || !self.bench.servers().contains(&pid));
    }

    fn uppers(&self) -> usize {
        std::fs::read_dir(self.bench.state_dir().join("uppers")).unwrap().count()
    }
}

#[test]
fn a_fork_has_all_that_there_was_and_each_goes_its_own_way() {
    if !can_mount("a_fork_has_all_that_there_was_and_each_goes_its_own_way") {
        return;
    }
    let forks = mounted(&[]);
    let origin = &forks.origin;
    std::fs::rename(origin.root.join("sub"), origin.root.join("moved")).unwrap();
    std::fs::set_permissions(&origin.root, PermissionsExt::from_mode(0o711)).unwrap();
    let said =
        forks.bench.ok(&["fork", text(&origin.root), text(&forks.bench.path("b")), "--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    let fork = forks.place("b");
    assert_eq!(said["mountpoint"], text(&fork.root));
    let points = forks.points(origin);
    assert_eq!((points.len(), &points[0]["id"]), (1, &said["id"]));
    assert_eq!(points[0]["forks"][0], text(&fork.root));
    let look = |place: &Place, name: &str| {
        let meta = place.root.join(name).symlink_metadata().unwrap();
        (meta.ino(), meta.mode(), meta.mtime(), meta.mtime_nsec(), meta.nlink())
    };
    for name in ["", "new", "script", "moved", "moved/data", "hello", "moved/hello-too"] {
        assert_eq!(look(origin, name), look(&fork, name), "{name}");
    }
    // A name of several, one of which lies in a directory that has moved.
    fork.write("moved/hello-too", "by the fork");
    assert_eq!(fork.read("hello").unwrap(), "by the fork");
    assert_eq!(origin.read("hello").unwrap(), "hello from the archive\n");
    origin.write("hello", "by the origin");
    assert_eq!(fork.read("moved/hello-too").unwrap(), "by the fork");
    std::fs::remove_file(origin.root.join("new")).unwrap();
    std::fs::remove_dir_all(fork.root.join("moved")).unwrap();
    origin.write("script", "once more");
    assert_eq!(fork.read("new").unwrap(), "from the origin");
    assert_eq!(fork.read("script").unwrap(), "changed");
    assert!(origin.root.join("moved/data").exists());

    let (of, by) = (forks.status(origin), forks.status(&fork));
    assert_eq!(of["layers"]["forks"][0], text(&fork.root));
    assert_eq!(by["layers"]["forkedFrom"], text(&origin.root));
    // A point that both have.
    assert_eq!(
        forks.does("diff", &fork, &["archive", &said["id"].as_str().unwrap()[..8]]).lines().count(),
        4
    );
    forks.does("rollback", &fork, &[said["id"].as_str().unwrap()]);
    assert_eq!(fork.read("moved/hello-too").unwrap(), "hello from the archive\n");
    forks.does("unmount", &fork, &[]);
    assert_eq!(forks.points(origin)[0]["forks"], Value::Array(Vec::new()));
    forks.does("unmount", origin, &[]);
    forks.bench.assert_nothing_left();
}

#[test]
fn a_fork_is_made_at_any_point_and_holds_it() {
    if !can_mount("a_fork_is_made_at_any_point_and_holds_it") {
        return;
    }
    let forks = mounted(&[]);
    let origin = &forks.origin;
    forks.does("checkpoint", origin, &["--name", "one"]);
    origin.write("new", "2");
    let two = forks.does("checkpoint", origin, &[]).trim_end().to_owned();
    origin.write("new", "3");
    let [one, second] = [("one", "b"), (&two[..8], "c")].map(|(at, name)| {
        let fork = forks.fork(origin, name, &["--at", at]);
        (fork.read("new").unwrap(), fork)
    });
    assert_eq!((one.0.as_str(), second.0.as_str()), ("from the origin", "2"));
    assert_eq!(forks.points(origin).len(), 2, "none is made for it");
    for which in ["one", &two] {
        let (status, failure) = forks.fails("forget", origin, &[which]);
        assert_eq!((status, failure["code"].as_str().unwrap()), (13, "BUSY"), "{failure}");
    }
    // What was rolled away can be forked, too. That of a fork goes with the next rollback, but not its layers.
    let away = forks.does("rollback", origin, &["one", "--json"]);
    let away: Value = serde_json::from_str(&away).unwrap();
    let third = forks.fork(origin, "d", &["--at", away["rolledAway"].as_str().unwrap()]);
    forks.does("rollback", origin, &["--to-archive", "--discard"]);
    for _ in 0..3 {
        forks.does("checkpoint", origin, &["--keep", "1"]);
    }
    assert_eq!(third.read("new").unwrap(), "3");
    assert_eq!(second.1.read("new").unwrap(), "2");
    let held = forks.status(origin)["layers"]["layers"].as_u64().unwrap();
    second.1.write("mine", "1");
    // A fork has the points that it lies on, and those of its own.
    forks.does("checkpoint", &second.1, &["--name", "own"]);
    let names: Vec<_> = forks.points(&second.1).iter().map(|it| it["name"].clone()).collect();
    assert_eq!(names, [Value::from("one"), Value::Null, Value::from("own")]);
    forks.does("rollback", &second.1, &["one"]);
    assert_eq!(second.1.read("new").unwrap(), "from the origin");
    forks.does("rollback", &second.1, &["--to-archive"]);
    assert_eq!(second.1.read("new"), None);
    forks.does("rollback", &second.1, &["own"]);
    assert_eq!(second.1.read("mine").unwrap(), "1");
    forks.does("forget", &second.1, &["own"]);
    for fork in [&one.1, &second.1, &third] {
        forks.does("unmount", fork, &[]);
    }
    forks.does("forget", origin, &["one"]);
    eventually("what nothing needs is gone", || {
        forks.does("checkpoint", origin, &[]);
        forks.status(origin)["layers"]["layers"].as_u64().unwrap() < held
    });
}

#[test]
fn either_is_unmounted_first_and_the_last_takes_all_with_it() {
    if !can_mount("either_is_unmounted_first_and_the_last_takes_all_with_it") {
        return;
    }
    let forks = mounted(&[]);
    let origin = &forks.origin;
    let fork = forks.fork(origin, "b", &[]);
    fork.write("own", "1");
    let inner = forks.fork(&fork, "c", &[]);
    inner.write("own", "2");
    origin.write("big", &"x".repeat(1 << 20));
    let said = forks.bench.run(&["unmount", text(&origin.root)]);
    assert!(said.status.success());
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.contains(text(&fork.root)) && said.lines().count() == 1, "{said}");
    assert_eq!(forks.uppers(), 3);
    let left = forks.bench.state_dir().join("uppers");
    let left = std::process::Command::new("du").args(["-sk", text(&left)]).output().unwrap();
    let kib = String::from_utf8(left.stdout).unwrap();
    let kib: u64 = kib.split_whitespace().next().unwrap().parse().unwrap();
    assert!(kib < 1000, "what no fork lies on is gone: {kib} KiB are left");
    forks.bench.ok(&["gc", "--yes", "--kept"]);
    assert_eq!(fork.read("new").unwrap(), "from the origin");
    forks.does("unmount", &fork, &[]);
    assert_eq!(
        (inner.read("own").unwrap(), inner.read("new").unwrap()),
        ("2".into(), "from the origin".into())
    );
    forks.does("rollback", &inner, &[]);
    assert_eq!(inner.read("own").unwrap(), "1");
    let last = forks.fork(&inner, "d", &[]);
    forks.does("unmount", &inner, &[]);
    assert_eq!(last.read("own").unwrap(), "1");
    forks.does("unmount", &last, &[]);
    forks.bench.assert_nothing_left();
}

#[test]
fn a_fork_and_its_origin_may_be_on_different_file_systems() {
    // Both have to take marks of one kind.
    let needs = [Need::Root, Need::KernelUpper];
    if !can_mount_with("a_fork_and_its_origin_may_be_on_different_file_systems", &needs) {
        return;
    }
    let Mounts { bench, archive, mountpoint } = Mounts::new();
    let other = bench.directory("other");
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", &other, "tmpfs", flags, Some(c"mode=700")).unwrap();
    let upper = other.join("upper");
    bench.ok(&["-q", "mount", text(&archive), text(&mountpoint), "--upper", text(&upper)]);
    let forks = Forks { bench, origin: Place { root: mountpoint } };
    let origin = &forks.origin;
    origin.write("new", "from the origin");
    std::fs::hard_link(origin.root.join("new"), origin.root.join("other-name")).unwrap();
    std::fs::rename(origin.root.join("sub"), origin.root.join("moved")).unwrap();
    let fork = forks.fork(origin, "b", &[]);
    let device = |place: &Place| {
        let upper = forks.status(place)["upper"].as_str().unwrap().to_owned();
        Path::new(&upper).metadata().unwrap().dev()
    };
    assert_ne!(device(origin), device(&fork));
    // Copies, of data and of attributes, from one to the other.
    fork.open("other-name").write_all_at(b"by", 0).unwrap();
    assert_eq!(fork.read("new").unwrap(), "byom the origin");
    let data = fork.root.join("moved/data");
    std::fs::set_permissions(&data, PermissionsExt::from_mode(0o604)).unwrap();
    std::fs::rename(&data, fork.root.join("data")).unwrap();
    std::fs::rename(fork.root.join("moved"), fork.root.join("sub")).unwrap();
    let inner = forks.fork(&fork, "c", &[]);
    forks.does("unmount", &fork, &[]);
    assert_eq!(inner.read("new").unwrap(), "byom the origin");
    let meta = inner.root.join("data").metadata().unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o604);
    assert_eq!(
        std::fs::read(inner.root.join("data")).unwrap(),
        std::fs::read(origin.root.join("moved/data")).unwrap()
    );
    assert_eq!(inner.read("sub/hello-too").unwrap(), "hello from the archive\n");
    inner.write("data", "1");
    forks.does("checkpoint", &inner, &[]);
    inner.write("data", "2");
    forks.does("rollback", &inner, &[]);
    assert_eq!(inner.read("data").unwrap(), "1");
    assert_eq!(origin.read("new").unwrap(), "from the origin");
    for place in [&inner, origin] {
        forks.does("unmount", place, &[]);
    }
    rustix::mount::unmount(&other, rustix::mount::UnmountFlags::DETACH).unwrap();
    forks.bench.assert_nothing_left();
}

#[test]
fn a_fork_that_is_kept_is_mounted_again() {
    if !can_mount("a_fork_that_is_kept_is_mounted_again") {
        return;
    }
    let forks = mounted(&[]);
    let origin = &forks.origin;
    let fork = forks.fork(origin, "b", &["--keep-upper"]);
    fork.write("own", "1");
    forks.does("checkpoint", &fork, &["--name", "own"]);
    let upper = forks.status(&fork)["upper"].as_str().unwrap().to_owned();
    forks.does("unmount", &fork, &[]);
    forks.does("unmount", origin, &[]);
    forks.bench.ok(&["gc", "--yes"]);
    assert_eq!(forks.uppers(), 2);
    let archive = forks.bench.path("data.sqsh");
    let again = ["-q", "mount", text(&archive), text(&origin.root), "--upper", &upper];
    forks.bench.ok(&again);
    assert_eq!(origin.read("own").unwrap(), "1");
    assert_eq!(origin.read("new").unwrap(), "from the origin");
    origin.write("own", "2");
    forks.does("rollback", origin, &[]);
    assert_eq!(origin.read("own").unwrap(), "1");
    forks.does("unmount", origin, &[]);
    // Without what it was forked from it is nothing.
    let own = Path::new(&upper).parent().unwrap().to_owned();
    let base = std::fs::read_dir(own.parent().unwrap()).unwrap().map(|it| it.unwrap().path());
    let base = base.into_iter().find(|base| *base != own).unwrap();
    let aside = forks.bench.path("aside");
    std::fs::rename(&base, &aside).unwrap();
    let output = forks.bench.run(&again);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.lines().count()), (Some(11), 1), "{said}");
    assert!(said.contains("forked"), "{said}");
    std::fs::rename(&aside, &base).unwrap();
    forks.bench.ok(&again);
    assert_eq!(origin.read("new").unwrap(), "from the origin");
    forks.does("unmount", origin, &[]);
    forks.bench.ok(&["gc", "--yes", "--kept"]);
    forks.bench.assert_nothing_left();
}

#[test]
fn forks_go_on_when_a_server_is_killed() {
    if !can_mount("forks_go_on_when_a_server_is_killed") {
        return;
    }
    let forks = mounted(&[]);
    let origin = &forks.origin;
    let fork = forks.fork(origin, "b", &[]);
    let other = forks.fork(origin, "c", &[]);
    let upper = forks.status(origin)["upper"].as_str().unwrap().to_owned();
    origin.write("late", "1");
    forks.kill(origin);
    forks.bench.ok(&["gc", "--yes", "--kept"]);
    assert_eq!(fork.read("new").unwrap(), "from the origin");
    fork.write("own", "1");
    forks.does("checkpoint", &fork, &[]);
    // What was killed is mounted again.
    forks.bench.run(&["unmount", "--dead", text(&origin.root)]);
    let archive = forks.bench.path("data.sqsh");
    forks.bench.ok(&["-q", "mount", text(&archive), text(&origin.root), "--upper", &upper]);
    assert_eq!(origin.read("late").unwrap(), "1");
    let point = forks.points(origin)[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(forks.fails("forget", origin, &[&point]).0, 13);
    forks.does("rollback", origin, &["--to-archive", "--discard"]);
    assert_eq!((origin.read("new"), fork.read("new").unwrap()), (None, "from the origin".into()));
    // A fork that was killed keeps what it lies on, until it is cleared away.
    forks.kill(&fork);
    forks.bench.run(&["unmount", "--dead", text(&fork.root)]);
    assert_eq!(forks.fails("forget", origin, &[&point]).0, 13);
    forks.bench.ok(&["gc", "--yes"]);
    forks.does("checkpoint", origin, &[]);
    eventually("the origin knows", || {
        let forgotten = forks.bench.run(&["forget", text(&origin.root), &point]);
        forgotten.status.success()
    });
    assert_eq!(other.read("new").unwrap(), "from the origin");
    forks.does("unmount", &other, &[]);
    forks.does("unmount", origin, &[]);
}

#[test]
fn twenty_forks_at_once_are_made_and_differ() {
    if !can_mount("twenty_forks_at_once_are_made_and_differ") {
        return;
    }
    let forks = mounted(&[]);
    let names: Vec<String> = (0..20).map(|nth| format!("fork{nth}")).collect();
    std::thread::scope(|scope| {
        for name in &names {
            let forks = &forks;
            scope.spawn(move || {
                let fork = forks.fork(&forks.origin, name, &[]);
                fork.write("new", name);
                fork.write(name, "own");
                std::fs::remove_file(fork.root.join("hello")).unwrap();
            });
        }
    });
    let mut memory = Vec::new();
    for name in &names {
        let fork = forks.place(name);
        assert_eq!(fork.read("new").as_ref(), Some(name));
        assert_eq!(fork.read("script").unwrap(), "changed");
        let others = names.iter().filter(|other| fork.root.join(other).exists());
        assert_eq!(others.collect::<Vec<_>>(), [name]);
        let status = std::fs::read_to_string(format!("/proc/{}/status", forks.pid(&fork)));
        let anonymous = status.unwrap().lines().find_map(|line| {
            line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        });
        memory.push(anonymous.unwrap());
    }
    assert!(memory.iter().all(|kib| *kib < 8 << 10), "{memory:?} KiB");
    assert_eq!(forks.origin.read("new").unwrap(), "from the origin");
    assert!(forks.origin.root.join("hello").exists());
    forks.does("unmount", &forks.origin, &[]);
    for name in &names {
        forks.does("unmount", &forks.place(name), &[]);
    }
    forks.bench.assert_nothing_left();
}

/// A file of the live upper, and one that is in a layer already, each open in the origin for reading, and for writing,
/// and mapped.
#[test]
fn what_is_open_in_one_is_nothing_to_the_other() {
    if !can_mount("what_is_open_in_one_is_nothing_to_the_other") {
        return;
    }
    let forks = mounted(&[]);
    let origin = &forks.origin;
    let old = |name: &str| format!("{name}: as it was");
    let names = ["read", "written", "mapped", "read-in-layer", "written-in-layer", "linked"];
    let readers = names.map(|name| {
        origin.write(name, &old(name));
        if name == "linked" {
            std::fs::hard_link(origin.root.join(name), origin.root.join("link")).unwrap();
        }
        if name.ends_with("in-layer") {
            let file = std::fs::File::open(origin.root.join(name)).unwrap();
            forks.does("checkpoint", origin, &[]);
            return file;
        }
        std::fs::File::open(origin.root.join(name)).unwrap()
    });
    let read = |mut file: &std::fs::File| {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    };
    let writer = origin.open("written");
    let map = memmap(&origin.root.join("mapped"));
    let fork = forks.fork(origin, "b", &[]);
    let their = names.map(|name| std::fs::File::open(fork.root.join(name)).unwrap());
    // The origin writes: through what was open, and anew.
    writer.write_all_at(b"WRITTEN", 0).unwrap();
    for name in names.iter().filter(|name| **name != "written") {
        origin.open(name).write_all_at(b"ORIGIN", 0).unwrap();
    }
    for ((name, ours), theirs) in names.iter().zip(&readers).zip(&their) {
        assert_eq!(read(theirs), old(name), "{name} in the fork");
        assert_eq!(fork.read(name).unwrap(), old(name), "{name} in the fork, anew");
        let now = origin.read(name).unwrap();
        assert!(now.starts_with("ORIGIN") || now.starts_with("WRITTEN"), "{name}: {now}");
        assert_eq!(read(ours), now, "{name} in the origin");
    }
    assert_eq!(origin.read("link"), origin.read("linked"));
    assert_eq!(fork.read("link").unwrap(), old("linked"));
    map.check(b"ORIGIN");
    // And so does the fork.
    for name in names {
        let (before, file) = (origin.read(name).unwrap(), fork.open(name));
        let map = memmap(&fork.root.join(name));
        file.write_all_at(b"FORKED", 0).unwrap();
        assert!(fork.read(name).unwrap().starts_with("FORKED"), "{name}");
        map.check(b"FORKED");
        assert_eq!(origin.read(name).unwrap(), before, "{name} in the origin");
    }
    for ((name, ours), theirs) in names.iter().zip(&readers).zip(&their) {
        assert_eq!(read(ours), origin.read(name).unwrap(), "{name}");
        assert_eq!(read(theirs), fork.read(name).unwrap(), "{name}");
    }
    // A second fork of the same, in which nothing was changed since.
    let point = forks.points(origin).last().unwrap()["id"].as_str().unwrap().to_owned();
    let second = forks.fork(origin, "c", &["--at", &point]);
    for name in names {
        assert_eq!(second.read(name).unwrap(), old(name), "{name}");
    }
    drop((readers, their, writer));
    for place in [origin, &fork, &second] {
        forks.does("unmount", place, &[]);
    }
}

/// A process that has mapped a file for reading.
struct Mapped {
    child: std::process::Child,
}

fn memmap(path: &Path) -> Mapped {
    let script = "import mmap, sys\n\
                  f = open(sys.argv[1], 'rb')\n\
                  m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\n\
                  m[0]\nprint('mapped', flush=True)\nsys.stdin.readline()\nprint(m[:6].hex(), flush=True)\n";
    let mut child = std::process::Command::new("python3")
        .args(["-c", script, text(path)])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 7];
    child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    Mapped { child }
}

impl Mapped {
    /// What it sees now at the beginning.
    fn check(mut self, expected: &[u8]) {
        self.child.stdin.take().unwrap().write_all(b"\n").unwrap();
        let output = self.child.wait_with_output().unwrap();
        let seen = String::from_utf8(output.stdout).unwrap();
        let expected: String = expected.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(seen.trim_end(), expected);
    }
}

#[test]
fn what_cannot_be_forked_is_refused_in_a_line_and_nothing_is_made() {
    if !can_mount("what_cannot_be_forked_is_refused_in_a_line_and_nothing_is_made") {
        return;
    }
    let forks = mounted(&[]);
    let origin = &forks.origin;
    let full = forks.bench.directory("full");
    std::fs::write(full.join("file"), "").unwrap();
    let [new, inside, file] =
        ["none", "mnt/inside", "data.sqsh"].map(|name| forks.bench.path(name));
    for (more, status, code, message) in [
        (&[text(&full)][..], 10, "MOUNTPOINT", "is not empty"),
        (&[text(&inside)], 10, "MOUNTPOINT", "lie within each other"),
        (&[text(&origin.root)], 10, "MOUNTPOINT", "lie within each other"),
        (&[text(&file)], 10, "MOUNTPOINT", "data.sqsh"),
        (&[text(&new), "--at", "before"], 3, "NOT_FOUND", "there is no checkpoint \"before\""),
        (&[text(&new), "-o", "ro"], 2, "USAGE", "read-only"),
        (&[text(&new), "-o", "upper=/tmp"], 2, "USAGE", "takes no upper"),
        (&[text(&new), "-o", "such"], 2, "USAGE", "such"),
    ] {
        let (exit, failure) = forks.fails("fork", origin, more);
        assert_eq!((exit, failure["code"].as_str().unwrap()), (status, code), "{failure}");
        assert!(failure["message"].as_str().unwrap().contains(message), "{failure}");
        assert!(!new.exists() && !origin.root.join("inside").exists());
    }
    let (status, failure) = forks.fails("fork", &forks.place("full"), &[text(&new)]);
    assert_eq!((status, failure["code"].as_str().unwrap()), (14, "NOT_MOUNTED"), "{failure}");
    assert_eq!(forks.points(origin).len(), 0);
    let fork = forks.fork(origin, "b", &[]);
    let (status, failure) = forks.fails("fork", origin, &[text(&fork.root)]);
    assert_eq!((status, failure["code"].as_str().unwrap()), (10, "MOUNTPOINT"), "{failure}");
    assert_eq!(forks.points(origin).len(), 1);
    for place in [origin, &fork] {
        forks.does("unmount", place, &[]);
    }
    forks.bench.ok(&["-q", "mount", "--ro", text(&file), text(&origin.root)]);
    let (status, failure) = forks.fails("fork", origin, &[text(&new)]);
    assert_eq!((status, failure["code"].as_str().unwrap()), (11, "UPPER"), "{failure}");
    assert!(!new.exists());
    forks.does("unmount", origin, &[]);
    forks.bench.assert_nothing_left();
}

#[test]
fn a_fork_is_mounted_as_what_it_was_forked_from() {
    if !can_mount_with("a_fork_is_mounted_as_what_it_was_forked_from", &[Need::Root]) {
        return;
    }
    let forks = mounted(&["-o", "uid=7,noexec", "--fsname", "some"]);
    let fork = forks.fork(&forks.origin, "b", &[]);
    let other = forks.fork(&forks.origin, "c", &["-o", "uid=9,exec"]);
    let owner = |place: &Place| place.root.join("new").metadata().unwrap().uid();
    assert_eq!([&forks.origin, &fork, &other].map(owner), [7, 7, 9]);
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let line =
        |place: &Place| mounts.lines().find(|line| line.contains(text(&place.root))).unwrap();
    assert!(line(&fork).starts_with("some ") && line(&fork).contains("noexec"), "{mounts}");
    assert!(!line(&other).contains("noexec"), "{mounts}");
    for place in [&forks.origin, &fork, &other] {
        forks.does("unmount", place, &[]);
    }
}
