//! `checkpoint`, `checkpoints`, `rollback` and `forget`, on real mounts.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::mount::{Bench, Mounts, can_mount, can_mount_with};
use crate::support::surrounding::Need;
use crate::support::words::{eventually, said, text};

/// A mount of the small tree.
fn mounted(more: &[&str]) -> Mounts {
    let mounts = Mounts::new();
    mounts.mount_with(more);
    mounts
}

impl Mounts {
    fn mount_with(&self, more: &[&str]) {
        let mount = ["-q", "mount", text(&self.archive), text(&self.mountpoint)];
        self.bench.ok(&[&mount, more].concat());
    }

    /// What a command about this mount prints.
    fn does(&self, command: &str, more: &[&str]) -> String {
        self.bench.ok(&[&[command, text(&self.mountpoint)][..], more].concat())
    }

    fn json(&self, command: &str, more: &[&str]) -> Value {
        serde_json::from_str(&self.does(command, &[&["--json"], more].concat())).unwrap()
    }

    /// The id of a new checkpoint.
    fn checkpoint(&self, more: &[&str]) -> String {
        self.does("checkpoint", more).trim_end().to_owned()
    }

    /// One JSON object for each checkpoint.
    fn checkpoints(&self) -> Vec<Value> {
        let said = self.does("checkpoints", &["--json"]);
        said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn ids(&self) -> Vec<String> {
        let id = |point: &Value| point["id"].as_str().unwrap().to_owned();
        self.checkpoints().iter().map(id).collect()
    }

    /// Exit status and code of a command about this mount that fails, and what it says with `--json`.
    fn fails(&self, command: &str, more: &[&str]) -> (i32, Value) {
        let arguments = [&[command, text(&self.mountpoint), "--json"][..], more].concat();
        fails(&self.bench, &arguments)
    }

    fn write(&self, name: &str, contents: &str) {
        std::fs::write(self.mountpoint.join(name), contents).unwrap();
    }

    fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.mountpoint.join(name)).ok()
    }

    fn layers_of_status(&self) -> Value {
        let said = self.bench.ok(&["status", "--json", text(&self.mountpoint)]);
        serde_json::from_str::<Value>(&said).unwrap()[0]["layers"].clone()
    }

    /// The directory of the mount's own upper and work directory.
    fn base(&self) -> PathBuf {
        let mut uppers = std::fs::read_dir(self.bench.state_dir().join("uppers")).unwrap();
        uppers.next().unwrap().unwrap().path()
    }

    fn control_path(&self) -> PathBuf {
        let mut mounts = std::fs::read_dir(self.bench.state_dir().join("mounts")).unwrap();
        mounts.next().unwrap().unwrap().path().join("control")
    }

    fn kill_server_of_it(&self) {
        let pid = rustix::process::Pid::from_raw(self.bench.servers()[0] as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        eventually("the server has ended", || self.bench.servers().is_empty());
    }
}

fn fails(bench: &Bench, arguments: &[&str]) -> (i32, Value) {
    let output = bench.run(arguments);
    let status = output.status.code().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_ne!(status, 0, "{arguments:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
    (status, serde_json::from_str(&text).unwrap())
}

/// All that a work directory has of layers.
fn on_disk(work: &Path) -> Vec<String> {
    let mut names: Vec<_> = ["stack.json", "stack.new", "layers"]
        .into_iter()
        .filter(|name| work.join(name).exists())
        .map(str::to_owned)
        .collect();
    let layers = std::fs::read_dir(work.join("layers")).into_iter().flatten();
    names.extend(layers.map(|entry| entry.unwrap().file_name().into_string().unwrap()));
    names.sort();
    names
}

const UNKNOWN: &str = "0b7a5c1e-6f0d-4c43-9d0c-2f1f8f1a9e77";

#[test]
fn what_cannot_be_done_is_one_line_with_a_code_and_does_nothing() {
    if !can_mount("what_cannot_be_done_is_one_line_with_a_code_and_does_nothing") {
        return;
    }
    let mounts = mounted(&[]);
    // A character beyond the first plane counts twice.
    let (long, astral) = ("n".repeat(257), format!("{}n", "🦀".repeat(128)));
    let (huge, fork) = ("h".repeat(100_000), mounts.bench.path("fork"));
    for (command, more, status, code, message) in [
        ("checkpoint", &["--name", &long][..], 15, "INVALID_BACKUP_CONFIG", "at most 256"),
        ("checkpoint", &["--name", &astral], 15, "INVALID_BACKUP_CONFIG", "at most 256"),
        ("checkpoint", &["--name", ""], 2, "USAGE", "cannot be empty"),
        ("checkpoint", &["--name", "a\nb"], 15, "INVALID_BACKUP_CONFIG", "control characters"),
        ("checkpoint", &["--name", "\u{1f}"], 15, "INVALID_BACKUP_CONFIG", "control characters"),
        ("checkpoint", &["--name", "a\x7f"], 15, "INVALID_BACKUP_CONFIG", "control characters"),
        ("checkpoint", &["--name", "\u{80}"], 15, "INVALID_BACKUP_CONFIG", "control characters"),
        ("checkpoint", &["--name", "a\u{9f}"], 15, "INVALID_BACKUP_CONFIG", "control characters"),
        ("checkpoint", &["--name", &huge], 15, "INVALID_BACKUP_CONFIG", "at most 256"),
        ("checkpoint", &["--keep", "0"], 2, "USAGE", "--keep"),
        ("rollback", &[], 3, "NOT_FOUND", "no checkpoint to roll back to"),
        ("rollback", &[UNKNOWN], 3, "NOT_FOUND", UNKNOWN),
        ("rollback", &["before"], 3, "NOT_FOUND", "before"),
        ("rollback", &["--to-archive", "before"], 2, "USAGE", "--to-archive"),
        ("forget", &[], 2, "USAGE", "ID|NAME"),
        ("forget", &["before"], 3, "NOT_FOUND", "before"),
        ("forget", &["--keep", "0"], 2, "USAGE", "--keep"),
        ("rollback", &[&long], 3, "NOT_FOUND", "no checkpoint"),
        ("rollback", &[&huge], 3, "NOT_FOUND", "no checkpoint"),
        ("forget", &[&huge], 3, "NOT_FOUND", "no checkpoint"),
        ("diff", &[&huge], 3, "NOT_FOUND", "no checkpoint"),
        ("diff", &["archive", &huge], 3, "NOT_FOUND", "no checkpoint"),
        ("fork", &[text(&fork), "--at", &huge], 3, "NOT_FOUND", "no checkpoint"),
    ] {
        let (found, failure) = mounts.fails(command, more);
        assert_eq!(
            (found, failure["code"].as_str().unwrap()),
            (status, code),
            "{command} {more:?}"
        );
        let told = failure["message"].as_str().unwrap();
        assert!(told.contains(message), "{command} {more:?}: {told}");
    }
    assert!(!fork.exists());
    assert_eq!(mounts.does("checkpoints", &[]), "");
    assert_eq!(mounts.checkpoints(), Vec::<Value>::new());
    assert_eq!(on_disk(&mounts.base().join("work")), Vec::<String>::new());

    let (plain, sub) = (mounts.bench.directory("plain"), mounts.mountpoint.join("sub"));
    let missing = mounts.bench.path("missing");
    for command in ["checkpoint", "checkpoints", "rollback", "forget"] {
        for (dir, status, message) in [
            (&plain, 14, "is in no mount of thawfs"),
            (&sub, 14, "only a part of a mount"),
            (&missing, 3, "missing"),
        ] {
            let mut arguments = vec![command, text(dir), "--json"];
            arguments.extend((command == "forget").then_some(UNKNOWN));
            let (found, failure) = fails(&mounts.bench, &arguments);
            assert_eq!(found, status, "{command} {}", dir.display());
            assert!(failure["message"].as_str().unwrap().contains(message), "{failure}");
        }
    }
    mounts.does("unmount", &[]);
    mounts.bench.assert_nothing_left();
}

#[test]
fn a_mount_without_an_upper_has_no_checkpoints() {
    if !can_mount("a_mount_without_an_upper_has_no_checkpoints") {
        return;
    }
    let mounts = mounted(&["--read-only"]);
    for (command, more) in
        [("checkpoint", &[][..]), ("rollback", &[]), ("forget", &["x"]), ("checkpoints", &[])]
    {
        let (status, failure) = mounts.fails(command, more);
        assert_eq!((status, failure["code"].as_str().unwrap()), (11, "UPPER"), "{command}");
        assert!(failure["message"].as_str().unwrap().contains("without an upper"), "{failure}");
        assert!(failure["hint"].as_str().unwrap().contains("--read-only"), "{failure}");
    }
    mounts.does("unmount", &[]);
    mounts.bench.assert_nothing_left();
}

/// Listens in place of the server of `mounts`, and answers as an older one does: with its report, and no question. After
/// each of those it goes on if `goes_on` says so, and ends else; and where it is asked `x`. Gives how many they were.
fn in_place_of_the_server(
    mounts: &Mounts,
    mut goes_on: impl FnMut() -> bool + Send + 'static,
) -> std::thread::JoinHandle<usize> {
    let (control, real) = (mounts.control_path(), mounts.control_path().with_extension("real"));
    std::fs::rename(&control, &real).unwrap();
    // The path of a socket is short, as this one may not be.
    let dir = std::fs::File::open(control.parent().unwrap()).unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&dir);
    let listener = UnixListener::bind(format!("/proc/self/fd/{fd}/control")).unwrap();
    std::thread::spawn(move || {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&dir);
        let mut questions = 0;
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut first = [0];
            match connection.read(&mut first).unwrap() {
                1 if first == *b"{" => {
                    questions += 1;
                    if !goes_on() {
                        break;
                    }
                }
                1 => break,
                _ => {
                    let path = format!("/proc/self/fd/{fd}/control.real");
                    let mut server = UnixStream::connect(path).unwrap();
                    server.shutdown(std::net::Shutdown::Write).unwrap();
                    let mut report = Vec::new();
                    server.read_to_end(&mut report).unwrap();
                    connection.write_all(&report).unwrap();
                }
            }
        }
        questions
    })
}

#[test]
fn a_server_that_knows_no_checkpoints_is_told_from_one_that_was_killed() {
    let test = "a_server_that_knows_no_checkpoints_is_told_from_one_that_was_killed";
    if !can_mount_with(test, &[Need::Processes]) {
        return;
    }
    let mounts = mounted(&[]);
    let thread = in_place_of_the_server(&mounts, || true);
    for (command, more) in
        [("checkpoint", &[][..]), ("rollback", &[]), ("forget", &["x"]), ("checkpoints", &[])]
    {
        let (status, failure) = mounts.fails(command, more);
        assert_eq!((status, failure["code"].as_str().unwrap()), (7, "UNSUPPORTED"), "{command}");
        assert!(failure["message"].as_str().unwrap().contains("of a version"), "{failure}");
    }
    let dir = std::fs::File::open(mounts.control_path().parent().unwrap()).unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&dir);
    let path = format!("/proc/self/fd/{fd}/control");
    UnixStream::connect(path).unwrap().write_all(b"x").unwrap();
    // The first two ask before that what is open for writing.
    assert_eq!(thread.join().unwrap(), 6);
    mounts.kill_server_of_it();
    let (status, failure) = mounts.fails("checkpoint", &[]);
    assert_eq!((status, failure["code"].as_str().unwrap()), (1, "FAILED"));
    assert!(failure["message"].as_str().unwrap().contains("was killed"), "{failure}");
}

#[test]
fn a_server_that_is_killed_while_it_is_asked_is_told_as_that() {
    let test = "a_server_that_is_killed_while_it_is_asked_is_told_as_that";
    if !can_mount_with(test, &[Need::Processes]) {
        return;
    }
    let mounts = mounted(&[]);
    let elsewhere = mounts.bench.path("fork");
    let mut is_first = true;
    for (command, more) in [
        ("checkpoint", &["--local"][..]),
        ("rollback", &[]),
        ("forget", &["x"]),
        ("checkpoints", &[]),
        ("diff", &["x"]),
        ("diff", &[]),
        ("fork", &[text(&elsewhere), "--at", "x"]),
    ] {
        if !std::mem::take(&mut is_first) {
            mounts.mount_with(&[]);
        }
        let server = rustix::process::Pid::from_raw(mounts.bench.servers()[0] as i32).unwrap();
        let thread = in_place_of_the_server(&mounts, move || {
            rustix::process::kill_process(server, rustix::process::Signal::KILL).unwrap();
            false
        });
        let (status, failure) = mounts.fails(command, more);
        assert_eq!(thread.join().unwrap(), 1, "{command} {more:?}");
        assert_eq!((status, failure["code"].as_str().unwrap()), (1, "FAILED"), "{failure}");
        let message = failure["message"].as_str().unwrap();
        assert!(message.contains("was killed"), "{command} {more:?}: {message}");
        assert!(failure["hint"].as_str().unwrap().contains("unmount --dead"), "{failure}");
        assert!(!elsewhere.exists());
        eventually("the server has ended", || mounts.bench.servers().is_empty());
        mounts.does("unmount", &["--dead"]);
    }

    // One that was stopped before it has said that it lives.
    mounts.mount_with(&[]);
    let server = rustix::process::Pid::from_raw(mounts.bench.servers()[0] as i32).unwrap();
    rustix::process::kill_process(server, rustix::process::Signal::STOP).unwrap();
    let killer = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        rustix::process::kill_process(server, rustix::process::Signal::KILL).unwrap();
    });
    let (status, failure) = mounts.fails("checkpoints", &[]);
    killer.join().unwrap();
    assert_eq!((status, failure["code"].as_str().unwrap()), (1, "FAILED"), "{failure}");
    assert!(failure["message"].as_str().unwrap().contains("was killed"), "{failure}");
    mounts.does("unmount", &["--dead"]);
}

#[test]
fn a_mount_is_rolled_back_and_that_is_taken_back() {
    if !can_mount("a_mount_is_rolled_back_and_that_is_taken_back") {
        return;
    }
    let mounts = mounted(&[]);
    mounts.write("first", "1");
    let one = mounts.checkpoint(&["--name", "one"]);
    assert_eq!(one.len(), 36, "{one}");
    mounts.write("second", "2");
    std::fs::remove_file(mounts.mountpoint.join("hello")).unwrap();
    let made = mounts.json("checkpoint", &["--sync", "--local"]);
    let two = made["id"].as_str().unwrap().to_owned();
    assert_eq!(made["dir"], text(&mounts.mountpoint));
    assert_eq!((&made["fuzzy"], &made["durable"]), (&serde_json::json!([]), &true.into()));
    mounts.write("third", "3");
    std::fs::remove_dir_all(mounts.mountpoint.join("sub")).unwrap();

    let state = |mounts: &Mounts| {
        ["first", "second", "third", "hello", "sub/deeper/empty"]
            .map(|name| mounts.read(name).is_some())
    };
    assert_eq!(state(&mounts), [true, true, true, false, false]);
    let points = mounts.checkpoints();
    let told: Vec<_> = points
        .iter()
        .map(|point| (point["name"].as_str(), point["last"].as_bool().unwrap()))
        .collect();
    assert_eq!(told, [(Some("one"), false), (None, true)]);

    // To the last, by default.
    let rolled = mounts.json("rollback", &[]);
    assert_eq!((rolled["id"].as_str(), rolled["name"].as_str()), (Some(&*two), None));
    assert_eq!(state(&mounts), [true, true, false, false, true]);
    let away = rolled["rolledAway"].as_str().unwrap().to_owned();
    assert_eq!(mounts.checkpoints().last().unwrap()["rolledAway"], true);
    // Taken back.
    mounts.json("rollback", &[&away]);
    assert_eq!(state(&mounts), [true, true, true, false, false]);
    // By name, and by the first digits.
    let said = mounts.does("rollback", &["one"]);
    assert!(said.contains(&format!("{one} (one) again")), "{said}");
    assert_eq!(state(&mounts), [true, false, false, true, true]);
    mounts.json("rollback", &[&two[..8]]);
    assert_eq!(state(&mounts), [true, true, false, false, true]);
    // To the archive, for good.
    let rolled = mounts.json("rollback", &["--to-archive", "--discard"]);
    assert_eq!((&rolled["id"], &rolled["rolledAway"]), (&Value::Null, &Value::Null));
    assert_eq!(state(&mounts), [false, false, false, true, true]);
    assert_eq!(mounts.ids(), [one.clone(), two.clone()]);
    // What was rolled back to can be written to.
    mounts.json("rollback", &["one", "--discard"]);
    mounts.write("first", "again");
    mounts.checkpoint(&[]);
    assert_eq!(mounts.read("first").unwrap(), "again");
    mounts.json("rollback", &["one"]);
    assert_eq!(mounts.read("first").unwrap(), "1");
    mounts.does("forget", &["one"]);
    mounts.does("unmount", &[]);
    mounts.bench.assert_nothing_left();
}

#[test]
fn names_of_every_length_and_kind_that_may_be_are_found_again() {
    if !can_mount("names_of_every_length_and_kind_that_may_be_are_found_again") {
        return;
    }
    let mounts = mounted(&[]);
    let names = [
        "n".to_owned(),
        "n".repeat(255),
        "n".repeat(256),
        "🦀".repeat(128),
        "ö".repeat(256),
        " ".to_owned(),
        "--to-archive".to_owned(),
        "a\u{a0}b \"'\\".to_owned(),
    ];
    for (nth, name) in names.iter().enumerate() {
        mounts.write("file", &nth.to_string());
        mounts.checkpoint(&[&format!("--name={name}"), "--local"]);
    }
    for (nth, name) in names.iter().enumerate() {
        let rolled = mounts.json("rollback", &["--", name]);
        assert_eq!(rolled["name"].as_str(), Some(&**name));
        assert_eq!(mounts.read("file").unwrap(), nth.to_string());
    }
    names.iter().for_each(|name| drop(mounts.does("forget", &["--", name])));
    mounts.does("unmount", &[]);
    mounts.bench.assert_nothing_left();
}

#[test]
fn unmount_says_what_it_throws_away_and_a_name_keeps_it() {
    if !can_mount("unmount_says_what_it_throws_away_and_a_name_keeps_it") {
        return;
    }
    let mounts = mounted(&[]);
    mounts.write("file", "1");
    let unmount = || said(&mounts.bench.run(&["unmount", text(&mounts.mountpoint)]));
    for _ in 0..2 {
        mounts.checkpoint(&[]);
    }
    let told = unmount();
    assert!(told.contains("2 checkpoints without a name are thrown away"), "{told}");
    mounts.bench.assert_nothing_left();
    mounts.mount_with(&[]);
    assert_eq!(unmount(), "");
    mounts.bench.assert_nothing_left();

    mounts.mount_with(&[]);
    mounts.write("file", "1");
    mounts.checkpoint(&["--name", "kept one"]);
    mounts.write("file", "2");
    mounts.checkpoint(&[]);
    mounts.write("file", "3");
    let base = mounts.base();
    let upper = base.join("upper");
    let told = unmount();
    assert!(told.contains(text(&upper)) && told.contains("kept one"), "{told}");
    assert_eq!(mounts.bench.servers(), Vec::<u32>::new());
    // gc and status know what it is.
    let told = mounts.bench.ok(&["gc", "--yes"]);
    assert!(told.contains("kept the upper") && told.contains("2 checkpoints"), "{told}");
    assert!(mounts.bench.ok(&["status"]).contains("2 checkpoints"));
    // It is mounted again as any upper is.
    mounts.mount_with(&["--upper", text(&upper)]);
    assert_eq!(mounts.read("file").unwrap(), "3");
    let points = mounts.checkpoints();
    assert_eq!(points.len(), 2);
    assert!(points.iter().all(|point| point["durable"] == true), "{points:?}");
    mounts.json("rollback", &["kept one"]);
    assert_eq!(mounts.read("file").unwrap(), "1");
    assert_eq!(unmount(), "", "an upper that the user has named stays as ever");
    mounts.bench.ok(&["gc", "--yes", "--kept"]);
    mounts.bench.assert_nothing_left();
}

#[test]
fn an_upper_of_the_users_keeps_its_layers_and_is_not_mounted_without_them() {
    if !can_mount("an_upper_of_the_users_keeps_its_layers_and_is_not_mounted_without_them") {
        return;
    }
    let mounts = Mounts::new();
    let (upper, work) = (mounts.bench.directory("up"), mounts.bench.path(".up.work"));
    let other = mounts.bench.directory("other");
    let with = |more: &[&'static str]| {
        let upper = ["--upper".to_owned(), text(&upper).to_owned()];
        let more = more.iter().map(|word| (*word).to_owned());
        upper.into_iter().chain(more).collect::<Vec<_>>()
    };
    let mount = |more: &[&str]| {
        let upper = with(&[]);
        let words: Vec<_> = upper.iter().map(String::as_str).chain(more.iter().copied()).collect();
        mounts.mount_with(&words);
    };
    mount(&[]);
    mounts.write("file", "1");
    mounts.checkpoint(&[]);
    mounts.write("file", "2");
    mounts.does("unmount", &[]);
    assert_eq!(on_disk(&work), ["1", "layers", "stack.json"]);
    assert_eq!(std::fs::read_to_string(upper.join("file")).unwrap(), "1");
    // Neither alone, nor with layers of another.
    let arguments = ["mount", text(&mounts.archive), text(&mounts.mountpoint), "--json", "--upper"];
    let alone = [&arguments[..], &[text(&upper), "--workdir", text(&other)]].concat();
    let (status, failure) = fails(&mounts.bench, &alone);
    assert_eq!((status, failure["code"].as_str().unwrap()), (11, "UPPER"));
    assert!(failure["message"].as_str().unwrap().contains("one of several layers"), "{failure}");
    let another = mounts.bench.directory("another");
    let foreign = [&arguments[..], &[text(&another), "--workdir", text(&work)]].concat();
    let (status, failure) = fails(&mounts.bench, &foreign);
    assert_eq!((status, failure["code"].as_str().unwrap()), (11, "UPPER"));
    assert!(failure["message"].as_str().unwrap().contains("belong to another upper"), "{failure}");

    mount(&[]);
    assert_eq!(mounts.read("file").unwrap(), "2");
    mounts.json("rollback", &[]);
    assert_eq!(mounts.read("file").unwrap(), "1");
    let ids = mounts.ids();
    for id in &ids {
        mounts.does("forget", &[id]);
    }
    // The upper is live no more, but is still needed below.
    assert_eq!(mounts.ids(), Vec::<String>::new());
    mounts.does("unmount", &[]);
    assert_eq!(on_disk(&work), ["2", "layers", "stack.json"]);
    mount(&[]);
    assert_eq!(mounts.read("file").unwrap(), "1");
    mounts.does("rollback", &["--to-archive", "--discard"]);
    assert_eq!(mounts.read("file"), None);
    mounts.does("unmount", &[]);
    assert_eq!(std::fs::read_dir(&upper).unwrap().count(), 0, "nothing needs what was in it");
    mount(&[]);
    assert_eq!(mounts.read("file"), None);
    mounts.does("unmount", &[]);
}

#[test]
fn layers_go_with_an_upper_that_is_gone() {
    if !can_mount("layers_go_with_an_upper_that_is_gone") {
        return;
    }
    let mounts = Mounts::new();
    let (upper, work) = (mounts.bench.directory("up"), mounts.bench.path(".up.work"));
    for name in [None, Some("a name")] {
        std::fs::create_dir_all(&upper).unwrap();
        mounts.mount_with(&["--upper", text(&upper)]);
        mounts.checkpoint(&name.map_or(vec![], |name| vec!["--name", name]));
        mounts.write("file", "1");
        mounts.does("unmount", &[]);
        assert!(mounts.bench.ok(&["gc"]).starts_with("0 leftovers"));
        std::fs::remove_dir_all(&upper).unwrap();
        let told = mounts.bench.ok(&["gc", "--yes"]);
        assert!(told.contains("with a checkpoint"), "{told}");
        assert_eq!(work.exists(), name.is_some(), "{told}");
        mounts.bench.ok(&["gc", "--yes", "--kept"]);
        assert!(!work.exists());
    }
}

#[test]
fn checkpoints_outlive_a_server_that_is_killed() {
    if !can_mount_with("checkpoints_outlive_a_server_that_is_killed", &[Need::Processes]) {
        return;
    }
    let mounts = Mounts::new();
    let upper = mounts.bench.directory("up");
    mounts.mount_with(&["--upper", text(&upper)]);
    let mut ids = Vec::new();
    for count in 0..5 {
        mounts.write("file", &count.to_string());
        ids.push(mounts.checkpoint(&[]));
    }
    mounts.write("file", "live");
    mounts.kill_server_of_it();
    // Its threads may still be ending.
    eventually("it is dead", || {
        mounts.bench.run(&["unmount", "--dead", text(&mounts.mountpoint)]).status.success()
    });
    mounts.mount_with(&["--upper", text(&upper)]);
    assert_eq!(mounts.read("file").unwrap(), "live");
    assert_eq!(mounts.ids(), ids);
    for (count, id) in ids.iter().enumerate().rev() {
        mounts.json("rollback", &[id]);
        assert_eq!(mounts.read("file").unwrap(), count.to_string());
    }
    mounts.does("unmount", &[]);
}

#[test]
fn a_dead_mount_of_a_named_checkpoint_is_replaced_and_its_upper_stays() {
    let test = "a_dead_mount_of_a_named_checkpoint_is_replaced_and_its_upper_stays";
    if !can_mount_with(test, &[Need::Processes]) {
        return;
    }
    let mounts = Mounts::new();
    let bucket = format!("file://{}", mounts.bench.directory("box").display());
    let tree = mounts.bench.path("tree");
    let create = ["-q", "create", text(&tree), "--bucket", &bucket];
    let handle: Value = serde_json::from_str(&mounts.bench.ok(&create)).unwrap();
    let id = handle["id"].as_str().unwrap();
    let restore = || {
        let output =
            mounts.bench.run(&["restore", id, text(&mounts.mountpoint), "--bucket", &bucket]);
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    };
    for name in [None, Some("a name")] {
        for kill in [false, true] {
            restore();
            mounts.write("file", "1");
            mounts.checkpoint(&name.map_or(vec![], |name| vec!["--name", name]));
            let upper = mounts.base().join("upper");
            if kill {
                mounts.kill_server_of_it();
            }
            let told = restore();
            assert_eq!(upper.exists(), name.is_some(), "{name:?} {kill}");
            assert_eq!(told.contains(text(&upper)), name.is_some(), "{name:?} {kill}: {told}");
            assert_eq!(mounts.read("file"), None);
            mounts.does("unmount", &[]);
            mounts.bench.ok(&["gc", "--yes", "--kept"]);
            mounts.bench.assert_nothing_left();
        }
    }
}

#[test]
fn who_comes_second_waits_and_everybody_gets_a_checkpoint() {
    if !can_mount("who_comes_second_waits_and_everybody_gets_a_checkpoint") {
        return;
    }
    let mounts = mounted(&[]);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let mounts = &mounts;
            scope.spawn(move || {
                for count in 0..5 {
                    mounts.write(&format!("file{thread}"), &count.to_string());
                    mounts.checkpoint(&["--name", &format!("{thread}-{count}")]);
                }
            });
        }
    });
    assert_eq!(mounts.ids().len(), 20);
    for thread in 0..4 {
        for count in [3, 0, 4] {
            mounts.json("rollback", &[&format!("{thread}-{count}")]);
            assert_eq!(mounts.read(&format!("file{thread}")).unwrap(), count.to_string());
        }
    }
    eventually("all are durable", || {
        let layers = mounts.layers_of_status();
        layers["checkpoints"] == 20 && layers["durable"] == 20
    });
    mounts.json("forget", &["0-0"]);
    let names = |name: &str| mounts.checkpoints().iter().filter(|it| it["name"] == name).count();
    assert_eq!((names("0-0"), names("0-1")), (0, 1));
    // A name that several have is nobody's.
    let twice = [0, 1].map(|_| mounts.checkpoint(&["--name", "twice"]));
    for command in ["rollback", "forget"] {
        let (status, failure) = mounts.fails(command, &["twice"]);
        assert_eq!((status, failure["code"].as_str().unwrap()), (2, "USAGE"));
        assert_eq!(failure["list"], serde_json::json!(twice));
    }
}

#[test]
fn those_without_a_name_are_thinned_and_what_only_they_needed_goes() {
    if !can_mount("those_without_a_name_are_thinned_and_what_only_they_needed_goes") {
        return;
    }
    let mounts = mounted(&[]);
    let work = mounts.base().join("work");
    mounts.checkpoint(&["--name", "base"]);
    // Each of them on a branch of its own.
    for count in 0..5 {
        mounts.json("rollback", &["base", "--discard"]);
        mounts.write("file", &count.to_string());
        mounts.checkpoint(&[]);
    }
    let ids = mounts.ids();
    assert_eq!(ids.len(), 6);
    let forgotten = mounts.json("forget", &["--keep", "2"]);
    assert_eq!(forgotten["forgotten"], serde_json::json!(ids[1..4]));
    assert_eq!(forgotten["keep"], 2);
    // The live upper, the two that are kept, and the one prepared; layer 0 is the upper.
    eventually("three layers are gone", || on_disk(&work).len() == 2 + 4);
    mounts.checkpoint(&["--keep", "1"]);
    assert_eq!(mounts.checkpoints().len(), 2);
    let layers = mounts.layers_of_status();
    assert_eq!((&layers["checkpoints"], &layers["named"]), (&2.into(), &1.into()));
    let told = mounts.does("status", &[]);
    assert!(told.contains("2 checkpoints, 1 with a name"), "{told}");
    eventually("how large they are is known", || {
        mounts.checkpoints().iter().all(|point| point["bytes"].as_u64().is_some())
    });
    let table = mounts.does("checkpoints", &[]);
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].contains("ID") && lines[1].ends_with("base"), "{table}");
    assert!(lines[2].starts_with("* "), "{table}");
}

#[test]
fn a_rollback_is_refused_where_something_would_be_lost() {
    let test = "a_rollback_is_refused_where_something_would_be_lost";
    if !can_mount_with(test, &[Need::Root, Need::Processes]) {
        return;
    }
    let mounts = mounted(&[]);
    mounts.checkpoint(&[]);
    mounts.write("file", "1");
    let open = std::fs::File::options().append(true).open(mounts.mountpoint.join("file")).unwrap();
    let (status, failure) = mounts.fails("rollback", &["--strict"]);
    assert_eq!((status, failure["code"].as_str().unwrap()), (13, "BUSY"));
    let writer = failure["list"][0].as_str().unwrap();
    assert!(writer.contains(&std::process::id().to_string()), "{writer}");
    assert!(writer.ends_with(text(&mounts.mountpoint.join("file"))), "{writer}");
    drop(open);
    // What is mounted where nothing changes is in nobody's way.
    let [stays, goes] = ["sub", "new"].map(|name| mounts.mountpoint.join(name));
    std::fs::create_dir(&goes).unwrap();
    let plain = mounts.bench.directory("plain");
    for inner in [&stays, &goes] {
        rustix::mount::mount_bind(&plain, inner).unwrap();
    }
    let (status, failure) = mounts.fails("rollback", &[]);
    assert_eq!((status, failure["code"].as_str().unwrap()), (13, "BUSY"), "{failure}");
    assert!(failure["message"].as_str().unwrap().contains(text(&goes)), "{failure}");
    let unmount = |inner: &Path| {
        rustix::mount::unmount(inner, rustix::mount::UnmountFlags::empty()).unwrap();
    };
    unmount(&goes);
    assert_eq!(mounts.read("file").unwrap(), "1");
    mounts.json("rollback", &["--strict"]);
    assert_eq!((mounts.read("file"), goes.exists()), (None, false));
    unmount(&stays);
    assert!(stays.join("data").exists());
}

#[test]
fn without_room_nothing_is_half_made() {
    if !can_mount_with("without_room_nothing_is_half_made", &[Need::Root]) {
        return;
    }
    let mounts = Mounts::new();
    let small = mounts.bench.directory("small");
    let options = Some(c"size=1m,mode=700");
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", &small, "tmpfs", flags, options).unwrap();
    let upper = small.join("up");
    std::fs::create_dir(&upper).unwrap();
    mounts.mount_with(&["--upper", text(&upper)]);
    let one = mounts.checkpoint(&[]);
    mounts.write("file", "1");
    eventually("nothing is done in the background", || {
        let points = mounts.checkpoints();
        points.iter().all(|point| point["durable"] == true && point["bytes"].is_number())
    });
    let filler = small.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    drop(file);
    let (status, failure) = mounts.fails("checkpoint", &[]);
    assert_eq!((status, failure["code"].as_str().unwrap()), (11, "UPPER"), "{failure}");
    let told = failure["message"].as_str().unwrap();
    assert!(told.contains("No space left"), "{told}");
    assert_eq!(mounts.read("file").unwrap(), "1");
    assert_eq!(mounts.ids(), [one]);
    assert!(!small.join(".up.work/stack.new").exists());
    std::fs::remove_file(&filler).unwrap();
    mounts.checkpoint(&[]);
    mounts.json("rollback", &[]);
    assert_eq!(mounts.read("file").unwrap(), "1");
    mounts.does("unmount", &[]);
    rustix::mount::unmount(&small, rustix::mount::UnmountFlags::DETACH).unwrap();
}
