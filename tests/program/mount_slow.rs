//! Who reads what changes in a mount more slowly than it is written down and kept: nobody waits for it, it is told which
//! changes it has missed, and what it is told then makes the tree of a copy.

mod replica;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};

use crate::support::files::{Service, read_some, watch_request};
use crate::support::mount::{Mounts, can_mount_with};
use crate::support::surrounding::Need;
use crate::support::words::{eventually, text};
use replica::{Replica, differences, look};

/// How deep the file is that is renamed again and again, and how long each name on the way: it has a path that no call
/// takes, so that few changes fill what is kept of them.
const DEPTH: usize = 100;
const NAME: usize = 250;

/// What is kept of changes: in memory, and on disk.
const KEPT: usize = (2 << 20) + (256 << 20);

fn open(above: impl AsFd, name: &str) -> OwnedFd {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat(above, name, flags, Mode::empty()).unwrap()
}

/// Makes the directories on the way down, and gives the last of them.
fn make_deep(root: &Path) -> OwnedFd {
    let mut at: OwnedFd = fs::File::open(root).unwrap().into();
    for _ in 0..DEPTH {
        let name = "d".repeat(NAME);
        rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
        at = open(&at, &name);
    }
    at
}

/// One who is told lines of JSON, and reads them when the test wants it.
struct Reader<R> {
    lines: BufReader<R>,
    told: Vec<Value>,
}

impl<R: Read> Reader<R> {
    /// Reads the first line only.
    fn new(from: R) -> Self {
        // As little as can be is taken out of what the other side waits for.
        let mut reader = Self { lines: BufReader::with_capacity(64, from), told: Vec::new() };
        assert_eq!(reader.next()["event"], "start");
        reader.told.clear();
        reader
    }

    fn next(&mut self) -> Value {
        let mut line = Vec::new();
        self.lines.read_until(b'\n', &mut line).unwrap();
        let value: Value = serde_json::from_slice(&line).unwrap();
        self.told.push(value.clone());
        value
    }

    /// Reads on until something is told of a file.
    fn read_until(&mut self, event: &str, path: &str) {
        loop {
            let told = self.next();
            let is_of_path = path.is_empty() || told["path"] == path;
            if told["event"] == event && is_of_path {
                return;
            }
        }
    }

    /// Insists that each number is told, or that it is told that it was missed; gives how many were.
    fn missed(&self) -> u64 {
        let (mut next, mut missed) = (None, 0);
        for told in &self.told {
            if let Some(sequence) = told["sequence"].as_u64() {
                assert!(next.is_none_or(|next| next == sequence), "{next:?} and {told}");
                next = Some(sequence + 1);
            } else if told["event"] == "missed" {
                let (from, to) = (told["from"].as_u64().unwrap(), told["to"].as_u64().unwrap());
                assert!(next.is_none_or(|next| next == from) && from <= to, "{next:?} and {told}");
                (next, missed) = (Some(to + 1), missed + to + 1 - from);
            }
        }
        missed
    }
}

struct Watch(Child);

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks over the control socket, as the command does.
fn ask(mounts: &Mounts) -> UnixStream {
    let mut found = fs::read_dir(mounts.bench.state_dir().join("mounts")).unwrap();
    let directory = fs::File::open(found.next().unwrap().unwrap().path()).unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&directory);
    let mut connection = UnixStream::connect(format!("/proc/self/fd/{fd}/control")).unwrap();
    let question = json!({ "changes": { "path": "", "recursive": true, "since": null } });
    connection.write_all(format!("{question}\n").as_bytes()).unwrap();
    connection
}

/// Some of everything, which differs by `round`. What is made in one is changed in the next.
fn change(root: &Path, round: usize) {
    let at = |name: &str, round: usize| root.join(format!("{name}-{round}"));
    fs::create_dir_all(at("made", round).join("in/it")).unwrap();
    fs::write(at("made", round).join("in/file"), format!("{round}")).unwrap();
    fs::write(at("file", round), vec![b'x'; 100 * round]).unwrap();
    fs::write(at("gone", round), "").unwrap();
    fs::hard_link(at("file", round), at("link", round)).unwrap();
    std::os::unix::fs::symlink(format!("to-{round}"), at("symlink", round)).unwrap();
    if let Some(before) = round.checked_sub(1) {
        fs::rename(at("made", before).join("in"), at("made", round).join("moved")).unwrap();
        fs::rename(at("made", before), at("renamed", before)).unwrap();
        fs::remove_file(at("gone", before)).unwrap();
        fs::write(at("link", before), format!("through a link in round {round}")).unwrap();
        fs::set_permissions(at("file", before), PermissionsExt::from_mode(0o600)).unwrap();
        fs::remove_file(at("symlink", before)).unwrap();
        fs::create_dir(at("symlink", before)).unwrap();
    }
    if let Some(before) = round.checked_sub(2) {
        fs::remove_dir_all(at("renamed", before)).unwrap();
        fs::remove_file(at("file", before)).unwrap();
    }
    match round {
        1 => fs::rename(root.join("sub"), root.join("moved-sub")).unwrap(),
        2 => fs::write(root.join("moved-sub/data"), "short").unwrap(),
        3 => fs::remove_file(root.join("moved-sub/hello-too")).unwrap(),
        4 => fs::rename(root.join("moved-sub/deeper"), root.join("deeper")).unwrap(),
        5 => fs::remove_file(root.join("hello")).unwrap(),
        _ => {}
    }
}

#[test]
fn who_reads_too_slowly_is_told_what_it_missed_and_then_what_differs() {
    let test = "who_reads_too_slowly_is_told_what_it_missed_and_then_what_differs";
    if !can_mount_with(test, &[Need::Processes]) {
        return;
    }
    let mounts = Mounts::new();
    let (upper, root) = (mounts.bench.path("upper"), &mounts.mountpoint);
    let words = ["mount", text(&mounts.archive), text(root), "--upper", text(&upper)];
    mounts.bench.ok(&words);
    let deep = make_deep(root);
    fs::write(root.join("start"), "").unwrap();
    rustix::fs::renameat(fs::File::open(root).unwrap(), "start", &deep, "a").unwrap();
    fs::create_dir(root.join("probe")).unwrap();
    change(root, 0);
    // What is open or late is over.
    std::thread::sleep(Duration::from_secs(1));
    let before = look(root);

    let mut watch = mounts.bench.thawfs();
    watch.args(["watch", "--json", "--recursive", text(root)]).stdout(Stdio::piped());
    let mut watch = Watch(watch.spawn().unwrap());
    let mut command = Reader::new(watch.0.stdout.take().unwrap());
    let mut socket = Reader::new(ask(&mounts));
    let service = Service::start(&mounts.bench, &[]);
    let message = json!({ "path": root, "recursive": true });
    let (status, asked) = service.call("CreateWatcher", &message, &[]);
    assert_eq!(status, 200, "{asked}");
    let probe = service.call("CreateWatcher", &json!({ "path": root.join("probe") }), &[]).1;
    let mut stream = service.connect();
    stream.write_all(&watch_request(&message, &[])).unwrap();
    let mut streamed = Vec::new();
    while !String::from_utf8_lossy(&streamed).contains("start") {
        assert!(read_some(&mut stream, &mut streamed));
    }

    // Nobody reads from here on. Each of these has two paths. A stream that nobody reads holds some itself: what the
    // kernel keeps of it, which may be 36 MiB, and what was taken to be told next.
    let renames = (KEPT + KEPT / 2) / (2 * DEPTH * (NAME + 1));
    for number in 0..renames {
        let [from, to] = if number % 2 == 0 { ["a", "b"] } else { ["b", "a"] };
        rustix::fs::renameat(&deep, from, &deep, to).unwrap();
        if number % (renames / 4) == 1 {
            change(root, 1 + number / (renames / 4));
        }
    }
    fs::write(root.join("last-missed"), "").unwrap();
    // Told late, it would be told a second time.
    std::thread::sleep(Duration::from_millis(200));

    command.read_until("caught-up", "");
    socket.read_until("caught-up", "");
    let meanwhile = look(root);
    change(root, 6);
    fs::write(root.join("the-end"), "").unwrap();
    command.read_until("create", "the-end");
    socket.read_until("create", "the-end");
    let after = look(root);
    for (told, missed) in [(&command.told, command.missed()), (&socket.told, socket.missed())] {
        // All but what has been on its way.
        assert!(missed > renames as u64 * 3 / 4 && missed < renames as u64 + 200, "{missed}");
        assert_eq!(told.iter().filter(|told| told["event"] == "missed").count(), 1);
        let mut replica = Replica::new(before.clone());
        told.iter().for_each(|told| replica.apply(told, &meanwhile));
        if let Some(differences) = differences(&after, &replica.finish(&after)) {
            panic!("{differences}");
        }
    }

    // The file service has no numbers: a watcher of it ends, once the service has come so far.
    fs::write(root.join("probe/end"), "").unwrap();
    eventually("the service has read it all", || {
        let (status, answer) = service.call("GetWatcherEvents", &probe, &[]);
        status == 500 || !answer["events"].is_null()
    });
    for _ in 0..2 {
        let (status, answer) = service.call("GetWatcherEvents", &asked, &[]);
        assert_eq!((status, &answer["code"]), (500, &json!("internal")), "{answer}");
    }
    while read_some(&mut stream, &mut streamed) {}
    let end = String::from_utf8_lossy(&streamed[streamed.len() - 300..]).into_owned();
    assert!(end.contains(r#"{"error":{"code":"internal","message":"overflow"#), "{end}");
    drop((service, watch, socket, deep));
    mounts.bench.ok(&["unmount", text(root)]);
    mounts.bench.assert_nothing_left();
}
