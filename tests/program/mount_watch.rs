//! What `thawfs watch` tells: of writes that the kernel makes by itself, of what was missed, and until when.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::mount::{Mounts, can_mount_with};
use crate::support::surrounding::{Need, has};
use crate::support::watch::{Watching, word};
use crate::support::words::{eventually, said, text};

/// Long enough for everything that comes by itself.
const QUIET: Duration = Duration::from_millis(500);

fn mount(mounts: &Mounts, options: &[&str]) {
    let upper = mounts.bench.path("upper");
    let mut words = vec!["mount", text(&mounts.archive), text(&mounts.mountpoint)];
    words.extend(["--upper", text(&upper)]);
    words.extend(options);
    mounts.bench.ok(&words);
}

fn unmount(mounts: &Mounts) {
    mounts.bench.ok(&["unmount", text(&mounts.mountpoint)]);
}

/// Maps the file that it is given, closes it if it is told to, and stores a byte through the mapping for each line it
/// reads; `end` ends the mapping.
const MAPPER: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
file = os.open(sys.argv[1], os.O_RDWR)
at = libc.mmap(None, 4096, 3, 1, file, 0)
if sys.argv[2] == "closed":
    os.close(file)
for number, line in enumerate(sys.stdin):
    if line.strip() == "end":
        libc.munmap(at, 4096)
    else:
        ctypes.memset(at + number, 65, 1)
    print(".", flush=True)
"#;

struct Mapper {
    child: std::process::Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Mapper {
    fn new(path: &Path, how: &str) -> Self {
        let mut child = Command::new("python3")
            .args(["-c", MAPPER])
            .args([path, Path::new(how)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, answers }
    }

    /// Stores, or ends the mapping, and says when.
    fn tell(&mut self, word: &str) -> Instant {
        let now = Instant::now();
        writeln!(self.child.stdin.as_mut().unwrap(), "{word}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, ".\n");
        now
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[test]
fn each_write_is_told_also_if_the_kernel_makes_it_by_itself() {
    if !can_mount_with(
        "each_write_is_told_also_if_the_kernel_makes_it_by_itself",
        &[Need::Processes],
    ) {
        return;
    }
    for options in [&["-o", "rw"], &["-o", "no_passthrough"]] {
        let mounts = Mounts::new();
        mount(&mounts, options);
        // One is open before anybody watches.
        let early = File::create(mounts.mountpoint.join("early")).unwrap();
        early.write_all_at(b"before", 0).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let mut watching = Watching::new(&mounts.bench, &mounts.mountpoint, &[]);
        let late = File::create(mounts.mountpoint.join("late")).unwrap();
        // By a handle that reads, too, and one of a file of the archive.
        let path = mounts.mountpoint.join("both");
        let both = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        let lower = File::options().append(true).open(mounts.mountpoint.join("hello")).unwrap();
        for round in 0..5 {
            for (name, file) in
                [("early", &early), ("late", &late), ("both", &both), ("hello", &lower)]
            {
                let since = Instant::now();
                file.write_all_at(b"more", 4 * round).unwrap();
                watching.written(name, since);
            }
        }
        // What is done to a name comes behind what was written to it.
        watching.words(QUIET);
        let mut expected = Vec::new();
        for number in 0..100 {
            let (from, to) = (format!("a{number}"), format!("b{number}"));
            let file = File::create(mounts.mountpoint.join(&from)).unwrap();
            file.write_all_at(b"data", 0).unwrap();
            fs::rename(mounts.mountpoint.join(&from), mounts.mountpoint.join(&to)).unwrap();
            file.write_all_at(b"other", 0).unwrap();
            fs::remove_file(mounts.mountpoint.join(&to)).unwrap();
            expected.extend([
                format!("create {from}"),
                format!("write {from}"),
                format!("rename {from} -> {to}"),
                format!("write {to}"),
                format!("remove {to}"),
            ]);
        }
        assert_eq!(watching.words(QUIET), expected, "{options:?}");
        assert!(watching.stop().success());
        drop((early, late, both, lower));
        unmount(&mounts);
        mounts.bench.assert_nothing_left();
    }
}

#[test]
fn what_is_done_to_a_file_that_was_written_and_closed_is_told_behind_the_write() {
    let test = "what_is_done_to_a_file_that_was_written_and_closed_is_told_behind_the_write";
    if !can_mount_with(test, &[Need::Processes]) {
        return;
    }
    const THREADS: usize = 6;
    const ROUNDS: usize = 400;
    let mounts = Mounts::new();
    mount(&mounts, &[]);
    let mut watching = Watching::new(&mounts.bench, &mounts.mountpoint, &[]);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let at = |name: String| mounts.mountpoint.join(name);
            scope.spawn(move || {
                for number in 0..ROUNDS {
                    let [from, to] = ["a", "b"].map(|name| at(format!("{name}{thread}-{number}")));
                    // The kernel tells us of the end of an open file when it has told the program.
                    fs::write(&from, "data").unwrap();
                    match number % 4 {
                        0 | 1 => fs::rename(from, to).unwrap(),
                        2 => fs::hard_link(from, to).unwrap(),
                        _ => fs::set_permissions(from, fs::Permissions::from_mode(0o600)).unwrap(),
                    }
                }
            });
        }
    });
    let mut told = HashMap::<String, Vec<String>>::new();
    while let Some((_, line)) = watching.next(QUIET) {
        let path = line["path"].as_str().unwrap();
        told.entry(path[1..].to_owned()).or_default().push(word(&line));
    }
    let mut wrong = Vec::new();
    for (thread, number) in (0..THREADS * ROUNDS).map(|count| (count / ROUNDS, count % ROUNDS)) {
        let key = format!("{thread}-{number}");
        let [from, to] = ["a", "b"].map(|name| format!("{name}{key}"));
        let next = match number % 4 {
            0 | 1 => format!("rename {from} -> {to}"),
            2 => format!("create {to}"),
            _ => format!("attributes {from}"),
        };
        let expected = [format!("create {from}"), format!("write {from}"), next];
        let told = &told[&key];
        if *told != expected {
            wrong.push(told);
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {wrong:?}", wrong.len(), THREADS * ROUNDS);
    watching.stop();
    unmount(&mounts);
    mounts.bench.assert_nothing_left();
}

#[test]
fn what_is_stored_through_a_mapping_is_told_while_it_lasts_and_when_it_ends() {
    let test = "what_is_stored_through_a_mapping_is_told_while_it_lasts_and_when_it_ends";
    if !can_mount_with(test, &[Need::Processes]) {
        return;
    }
    for options in [&["-o", "rw"], &["-o", "no_passthrough"]] {
        for how in ["open", "closed"] {
            let mounts = Mounts::new();
            mount(&mounts, options);
            let path = mounts.mountpoint.join("mapped");
            fs::write(&path, vec![b'x'; 4096]).unwrap();
            let mut watching = Watching::new(&mounts.bench, &mounts.mountpoint, &[]);
            let mut mapper = Mapper::new(&path, how);
            // tmpfs moves no time then: only the end of the mapping shows.
            if has(Need::Disk) {
                for round in 0..3 {
                    println!("{options:?} {how} {round}");
                    let since = mapper.tell("store");
                    let after = watching.written("mapped", since);
                    assert!(after < Duration::from_secs(20), "{after:?} {options:?} {how}");
                    std::thread::sleep(Duration::from_millis(1500));
                    // Also of a page that was stored to just now.
                    mapper.tell("store");
                    let since = mapper.tell("store");
                    watching.written("mapped", since);
                    watching.words(Duration::from_millis(1500));
                }
            }
            let since = mapper.tell("store");
            mapper.tell("end");
            drop(mapper);
            watching.written("mapped", since);
            watching.stop();
            unmount(&mounts);
        }
    }
}

/// A mapping of a file whose page was stored to.
fn dirty_mapping(mounts: &Mounts, name: &str, how: &str) -> Mapper {
    let path = mounts.mountpoint.join(name);
    fs::write(&path, vec![b'x'; 4096]).unwrap();
    let mut mapper = Mapper::new(&path, how);
    mapper.tell("store");
    mapper
}

#[test]
fn what_is_stored_to_a_page_that_was_dirty_before_anybody_watched_is_told() {
    let test = "what_is_stored_to_a_page_that_was_dirty_before_anybody_watched_is_told";
    if !can_mount_with(test, &[Need::Processes]) {
        return;
    }
    for options in [&["-o", "rw"], &["-o", "no_passthrough"]] {
        for how in ["open", "closed"] {
            let mounts = Mounts::new();
            mount(&mounts, options);
            let mut mapper = dirty_mapping(&mounts, "mapped", how);
            let mut watching = Watching::new(&mounts.bench, &mounts.mountpoint, &[]);
            if has(Need::Disk) {
                for round in 0..2 {
                    println!("{options:?} {how} {round}");
                    let since = mapper.tell("store");
                    let after = watching.written("mapped", since);
                    assert!(after < Duration::from_secs(20), "{after:?} {options:?} {how}");
                    watching.words(Duration::from_millis(2500));
                }
            }
            let since = mapper.tell("store");
            mapper.tell("end");
            drop(mapper);
            watching.written("mapped", since);
            watching.stop();
            unmount(&mounts);
        }
    }
}

#[test]
fn what_is_stored_to_a_page_that_was_dirty_at_a_cursor_is_in_the_difference_since() {
    let test = "what_is_stored_to_a_page_that_was_dirty_at_a_cursor_is_in_the_difference_since";
    if !can_mount_with(test, &[Need::Processes, Need::Disk]) {
        return;
    }
    let mounts = Mounts::new();
    mount(&mounts, &[]);
    let store = |mappers: &mut [Mapper]| {
        for mapper in mappers {
            mapper.tell("store");
        }
    };
    let names = ["open", "closed"];
    let mut mappers = names.map(|name| dirty_mapping(&mounts, name, name));
    std::thread::sleep(Duration::from_millis(200));
    let mut watching = Watching::new(&mounts.bench, &mounts.mountpoint, &[]);
    let stored = |since: &str| {
        let told = mounts.bench.ok(&["diff", text(&mounts.mountpoint), "--since", since]);
        told.lines().filter(|line| line.starts_with('M')).collect::<Vec<_>>().join(", ")
    };
    // A cursor of the beginning, and one of the end behind stores to pages that are dirty then.
    let first = watching.cursor.clone();
    store(&mut mappers);
    assert_eq!(stored(&first), "M closed, M open", "at once");
    watching.words(Duration::from_millis(2500));
    store(&mut mappers);
    std::thread::sleep(Duration::from_millis(100));
    fs::create_dir(mounts.mountpoint.join("made")).unwrap();
    watching.words(QUIET);
    let last = watching.cursor.clone();
    watching.stop();
    assert_eq!(stored(&first), "M closed, M open", "later");
    // For so long somebody may come back to the stream.
    std::thread::sleep(Duration::from_secs(12));
    store(&mut mappers);
    assert_eq!(stored(&last), "M closed, M open", "when nobody watches");
    drop(mappers);
    unmount(&mounts);
}

#[test]
fn a_watch_goes_on_where_another_was_also_after_the_server_s_death() {
    let test = "a_watch_goes_on_where_another_was_also_after_the_server_s_death";
    if !can_mount_with(test, &[Need::Processes]) {
        return;
    }
    let mounts = Mounts::new();
    let at = |name: &str| mounts.mountpoint.join(name);
    mount(&mounts, &[]);
    let mut first = Watching::new(&mounts.bench, &mounts.mountpoint, &[]);
    fs::write(at("one"), "1").unwrap();
    assert_eq!(first.words(QUIET), ["create one", "write one"]);
    let cursor = first.cursor.clone();
    first.stop();
    fs::write(at("two"), "2").unwrap();
    fs::remove_file(at("hello")).unwrap();
    // The log goes on for ten seconds.
    let mut second = Watching::new(&mounts.bench, &mounts.mountpoint, &["--since", &cursor]);
    assert_eq!(second.words(QUIET), ["create two", "write two", "remove hello"]);
    let cursor = second.cursor.clone();
    second.stop();
    std::thread::sleep(Duration::from_secs(1));
    for again in ["after an unmount", "after a kill"] {
        if again == "after an unmount" {
            unmount(&mounts);
        } else {
            let [server] = *mounts.bench.servers() else { panic!("one server") };
            let pid = rustix::process::Pid::from_raw(server as i32).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            // Its name goes from the list of processes before it does.
            eventually("it is gone", || !Path::new(&format!("/proc/{server}")).exists());
            mounts.bench.ok(&["unmount", "--dead", text(&mounts.mountpoint)]);
        }
        mount(&mounts, &[]);
        let name = again.replace(' ', "-");
        fs::write(at(&name), "3").unwrap();
        fs::remove_file(at("sub/hello-too")).ok();
        let mut third = Watching::new(&mounts.bench, &mounts.mountpoint, &["--since", &cursor]);
        let words = third.words(QUIET);
        assert_eq!(words.last().unwrap(), "caught-up", "{words:?}");
        for changed in [format!("changed {name}"), "changed sub/hello-too".to_owned()] {
            assert!(words.contains(&changed), "{again}: {words:?}");
        }
        // And from there on it goes on.
        fs::write(at("later"), again).unwrap();
        assert!(third.words(QUIET).contains(&"write later".to_owned()));
        third.stop();
    }
    unmount(&mounts);
    mounts.bench.assert_nothing_left();
}

#[test]
fn status_says_who_watches_and_what_is_held_for_them() {
    let test = "status_says_who_watches_and_what_is_held_for_them";
    if !can_mount_with(test, &[Need::Processes]) {
        return;
    }
    let mounts = Mounts::new();
    mount(&mounts, &[]);
    let changes = || {
        let words = ["status", "--json", text(&mounts.mountpoint)];
        let status: serde_json::Value = serde_json::from_str(&mounts.bench.ok(&words)).unwrap();
        status[0]["changes"].clone()
    };
    let none = serde_json::json!({
        "readers": 0, "written": 0, "memoryBytes": 0, "journalBytes": 0
    });
    assert_eq!(changes(), none);
    fs::write(mounts.mountpoint.join("before"), "").unwrap();
    assert_eq!(changes(), none, "nothing is written down while nobody watches");
    let mut one = Watching::new(&mounts.bench, &mounts.mountpoint, &[]);
    let two = Watching::new(&mounts.bench, &mounts.mountpoint, &[]);
    fs::create_dir(mounts.mountpoint.join("made")).unwrap();
    assert_eq!(one.words(QUIET), ["create made"]);
    let now = changes();
    assert_eq!((&now["readers"], &now["written"]), (&2.into(), &1.into()), "{now}");
    assert!(now["memoryBytes"].as_u64().unwrap() > 0 && now["journalBytes"] == 0, "{now}");
    let shown = mounts.bench.ok(&["status", text(&mounts.mountpoint)]);
    assert!(shown.contains("  watched   by 2, 1 changes, "), "{shown}");
    drop((one, two));
    eventually("nobody watches", || changes()["readers"] == 0);
    unmount(&mounts);
}

#[test]
fn changes_that_come_one_by_one_or_all_at_once_are_told_whole_and_in_order() {
    let test = "changes_that_come_one_by_one_or_all_at_once_are_told_whole_and_in_order";
    if !can_mount_with(test, &[Need::Processes]) {
        return;
    }
    let mounts = Mounts::new();
    mount(&mounts, &[]);
    let at = |name: String| mounts.mountpoint.join(name);
    let mut watching = Watching::new(&mounts.bench, &mounts.mountpoint, &[]);
    let mut sequences = Vec::new();
    // Each when the one before is told: what is gathered then must not keep it, nor lose it.
    for number in 0..300 {
        File::create(at(format!("one-{number}"))).unwrap();
        let (_, told) = watching.next(Duration::from_secs(30)).expect("it is told");
        assert_eq!(word(&told), format!("create one-{number}"));
        sequences.push(told["sequence"].as_u64().unwrap());
    }
    // More at once than are read at a time, with silences in between.
    const THREADS: usize = 4;
    const RENAMES: usize = 400;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                for number in 0..RENAMES {
                    let [from, to] = [number, number + 1].map(|number| match number {
                        0 => at(format!("one-{thread}")),
                        number => at(format!("thread-{thread}-{number}")),
                    });
                    fs::rename(from, to).unwrap();
                    if number % 100 == thread {
                        std::thread::sleep(Duration::from_millis(number as u64 % 7));
                    }
                }
            });
        }
    });
    let mut next = [0; THREADS];
    for _ in 0..THREADS * RENAMES {
        let (_, told) = watching.next(Duration::from_secs(30)).expect("it is told");
        sequences.push(told["sequence"].as_u64().unwrap());
        let to = told["to"].as_str().unwrap();
        let thread: usize = to.split('-').nth(1).unwrap().parse().unwrap();
        next[thread] += 1;
        assert_eq!(to, format!("thread-{thread}-{}", next[thread]));
        assert_eq!(told["event"], "rename");
    }
    assert_eq!(next, [RENAMES; THREADS]);
    assert!(sequences.is_sorted_by(|one, next| next - one == 1), "{sequences:?}");
    assert_eq!(watching.words(QUIET), [""; 0]);
    watching.stop();
    unmount(&mounts);
    mounts.bench.assert_nothing_left();
}

#[test]
fn a_watch_ends_with_its_mount_and_is_no_reason_for_it_to_stay() {
    if !can_mount_with(
        "a_watch_ends_with_its_mount_and_is_no_reason_for_it_to_stay",
        &[Need::Processes],
    ) {
        return;
    }
    let mounts = Mounts::new();
    mount(&mounts, &[]);
    let mut watching = Watching::new(&mounts.bench, &mounts.mountpoint, &[]);
    unmount(&mounts);
    assert_eq!(watching.end().code(), Some(14));
    // The upper is free at once.
    mount(&mounts, &[]);
    let mut killed = Watching::new(&mounts.bench, &mounts.mountpoint, &[]);
    let [server] = *mounts.bench.servers() else { panic!("one server") };
    let pid = rustix::process::Pid::from_raw(server as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(killed.end().code(), Some(1));
    // Its connections go before it does, and so does its name in the list of processes.
    eventually("it is gone", || !Path::new(&format!("/proc/{server}")).exists());
    mounts.bench.ok(&["unmount", "--dead", text(&mounts.mountpoint)]);
    mounts.bench.assert_nothing_left();
}

#[test]
fn a_path_is_watched_alone_or_with_all_below() {
    if !can_mount_with("a_path_is_watched_alone_or_with_all_below", &[Need::Processes]) {
        return;
    }
    let mounts = Mounts::new();
    mount(&mounts, &[]);
    let at = |name: &str| mounts.mountpoint.join(name);
    let watch = |words: &[&str]| {
        let mut child = mounts.bench.thawfs();
        child.arg("watch").arg(&mounts.mountpoint).args(words).stdout(Stdio::piped());
        child.stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut watches = [&["sub"][..], &["sub", "-r"], &["new/er"], &[], &["-r"]].map(watch);
    // The last of them has begun when it tells of this.
    let begun = |child: &mut std::process::Child| {
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        for number in 0.. {
            fs::write(at("probe"), "").unwrap();
            fs::create_dir_all(at("new")).unwrap();
            fs::write(at("new/er"), "").unwrap();
            fs::write(at("sub/probe"), "").unwrap();
            std::thread::sleep(Duration::from_millis(20));
            assert!(number < 1000);
            if number > 20 {
                break;
            }
        }
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(!line.is_empty());
        lines
    };
    let mut lines = watches.each_mut().map(begun);
    fs::write(at("sub/deeper/empty"), "1").unwrap();
    fs::write(at("sub/direct"), "1").unwrap();
    fs::rename(at("new"), at("old")).unwrap();
    fs::rename(at("sub"), at("gone")).unwrap();
    fs::write(at("end"), "").unwrap();
    std::thread::sleep(QUIET);
    for child in &watches {
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }
    let told = lines.each_mut().map(|lines| {
        let lines = lines.lines().map(Result::unwrap);
        // Whoever has begun by then is told of what was made to see that, too.
        let is_probe = |line: &String| {
            line.contains("probe") || line.contains("new/er") || line == "create new/"
        };
        lines.filter(|line| !is_probe(line)).collect()
    });
    let [direct, all, coming, root, whole]: [Vec<String>; 5] = told;
    assert_eq!(direct, ["create sub/direct", "write sub/direct", "rename sub/ -> gone/"]);
    let deeper = ["write sub/deeper/empty", "write sub/deeper/empty"];
    assert_eq!(
        all,
        [&deeper[..], &["create sub/direct", "write sub/direct"], &["rename sub/ -> gone/"]]
            .concat()
    );
    assert_eq!(coming, ["rename new/ -> old/"]);
    assert_eq!(root, ["rename new/ -> old/", "rename sub/ -> gone/", "create end"]);
    assert!(whole.contains(&"write sub/deeper/empty".to_owned()), "{whole:?}");
    for child in watches {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(said(&output).contains("--since "), "{}", said(&output));
    }
    unmount(&mounts);
}

#[test]
fn a_command_is_run_for_each_batch_and_never_twice_at_once() {
    if !can_mount_with(
        "a_command_is_run_for_each_batch_and_never_twice_at_once",
        &[Need::Processes],
    ) {
        return;
    }
    let mounts = Mounts::new();
    mount(&mounts, &[]);
    let told = mounts.bench.directory("told");
    let command = format!(
        "mkdir {0}/busy && cat >> {0}/lines && echo \"$THAWFS_CURSOR\" >> {0}/cursors; sleep 0.2; \
         rmdir {0}/busy; exit 3",
        text(&told)
    );
    let words = ["watch", "-r", text(&mounts.mountpoint), "--exec", &command];
    let child = mounts.bench.thawfs().args(words).stderr(Stdio::piped()).spawn().unwrap();
    eventually("it runs", || {
        fs::write(mounts.mountpoint.join("probe"), "").unwrap();
        std::thread::sleep(Duration::from_millis(20));
        told.join("lines").exists()
    });
    for number in 0..50 {
        fs::write(mounts.mountpoint.join(format!("f{number}")), "data").unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    fs::write(mounts.mountpoint.join("last"), "").unwrap();
    let lines = || fs::read_to_string(told.join("lines")).unwrap();
    eventually("the last comes", || lines().contains("\"last\""));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // mkdir would have said so.
    assert!(!said(&output).contains("File exists"), "{}", said(&output));
    assert!(said(&output).contains("exit status: 3"), "{}", said(&output));
    let told_of: Vec<serde_json::Value> =
        lines().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sequences: Vec<u64> =
        told_of.iter().map(|line| line["sequence"].as_u64().unwrap()).collect();
    assert!(sequences.is_sorted_by(|one, next| next - one == 1), "{sequences:?}");
    for number in 0..50 {
        let create = format!("create f{number}");
        assert_eq!(told_of.iter().filter(|line| word(line) == create).count(), 1, "{create}");
    }
    let runs = fs::read_to_string(told.join("cursors")).unwrap();
    assert!(runs.lines().count() < 50, "{runs}");
    unmount(&mounts);
}

#[test]
fn an_entry_is_the_file_after_the_change() {
    if !can_mount_with("an_entry_is_the_file_after_the_change", &[Need::Processes]) {
        return;
    }
    let mounts = Mounts::new();
    mount(&mounts, &[]);
    let mut watching = Watching::new(&mounts.bench, &mounts.mountpoint, &["--include-entry"]);
    let at = |number: u32| mounts.mountpoint.join(format!("f{number}"));
    for number in 0..100 {
        let file = File::create(at(number)).unwrap();
        file.set_len(u64::from(number)).unwrap();
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }
    let (mut sized, mut moded) = (0, 0);
    while let Some((_, told)) = watching.next(QUIET) {
        let number: u64 = told["path"].as_str().unwrap()[1..].parse().unwrap();
        if told["event"] == "write" {
            assert_eq!(told["entry"]["size"], number, "{told}");
            sized += 1;
        }
        if told["event"] == "attributes" {
            assert_eq!(told["entry"]["mode"], 0o600, "{told}");
            moded += 1;
        }
    }
    // A write may be told once more.
    assert!(sized >= 100 && moded == 100, "{sized} {moded}");
    watching.stop();
    unmount(&mounts);
}

#[test]
fn a_name_is_no_line_of_its_own() {
    if !can_mount_with("a_name_is_no_line_of_its_own", &[Need::Processes]) {
        return;
    }
    let mounts = Mounts::new();
    mount(&mounts, &[]);
    let mut watch = mounts.bench.thawfs();
    watch.arg("watch").arg(&mounts.mountpoint).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = watch.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let evil = mounts.mountpoint.join("evil\nremove sub\u{1b}[31m");
    let (told, telling) = std::sync::mpsc::channel();
    std::thread::spawn(move || told.send(lines.next().unwrap().unwrap()).unwrap());
    let mut first = None;
    eventually("it is told", || {
        // It may have yet to begin.
        fs::remove_file(&evil).ok();
        fs::write(&evil, "").unwrap();
        first = telling.recv_timeout(Duration::from_millis(100)).ok();
        first.is_some()
    });
    let first = first.unwrap();
    assert!(first.ends_with("evil\\nremove sub\\u{1b}[31m"), "{first}");
    child.kill().unwrap();
    child.wait().unwrap();
    let difference = mounts.bench.ok(&["diff", text(&mounts.mountpoint)]);
    assert_eq!(difference, "A evil\\nremove sub\\u{1b}[31m\n");
    unmount(&mounts);
}

#[test]
fn what_cannot_be_watched_is_named() {
    if !can_mount_with("what_cannot_be_watched_is_named", &[Need::Processes]) {
        return;
    }
    let mounts = Mounts::new();
    mount(&mounts, &[]);
    let mountpoint = text(&mounts.mountpoint);
    let missing = mounts.bench.path("missing");
    for (words, code, message) in [
        (&["watch", text(&missing)][..], 3, "missing"),
        (&["watch", mountpoint, "../x"], 2, "no path within"),
        (&["watch", mountpoint, "/x"], 2, "no path within"),
        (&["watch", mountpoint, "--since", "x"], 2, "not a cursor"),
        (
            &["watch", mountpoint, "--since", "0123456789abcdef-2-4102444800.000000000"],
            2,
            "a moment that is yet to come",
        ),
    ] {
        let output = mounts.bench.run(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", said(&output));
        assert!(said(&output).contains(message), "{words:?}: {}", said(&output));
    }
    unmount(&mounts);
}

#[test]
fn a_part_of_a_mount_that_is_bound_elsewhere_is_watched_there() {
    let test = "a_part_of_a_mount_that_is_bound_elsewhere_is_watched_there";
    if !can_mount_with(test, &[Need::Root]) {
        return;
    }
    let mounts = Mounts::new();
    mount(&mounts, &[]);
    for (part, told) in
        [("", "create new"), ("sub", "create sub/new"), ("sub/deeper", "create sub/deeper/new")]
    {
        let bound = mounts.bench.directory("bound");
        let source = mounts.mountpoint.join(part);
        let bind = Command::new("mount").arg("--bind").args([&source, &bound]).status().unwrap();
        assert!(bind.success());
        let mut watching = Watching::new(&mounts.bench, &bound, &[]);
        fs::create_dir(source.join("new")).unwrap();
        assert_eq!(watching.words(QUIET), [told]);
        fs::remove_dir(bound.join("new")).unwrap();
        assert_eq!(watching.words(QUIET), [told.replace("create", "remove")]);
        drop(watching);
        assert!(Command::new("umount").arg(&bound).status().unwrap().success());
    }
    unmount(&mounts);
}

#[test]
fn what_differs_is_told_of_what_is_watched_alone() {
    let test = "what_differs_is_told_of_what_is_watched_alone";
    if !can_mount_with(test, &[Need::Processes]) {
        return;
    }
    let mounts = Mounts::new();
    mount(&mounts, &[]);
    let mut first = Watching::new(&mounts.bench, &mounts.mountpoint, &[]);
    fs::write(mounts.mountpoint.join("one"), "").unwrap();
    first.words(QUIET);
    let cursor = first.cursor.clone();
    first.stop();
    unmount(&mounts);
    mount(&mounts, &[]);
    for path in ["sub/here", "sub/deeper/there", "elsewhere"] {
        fs::write(mounts.mountpoint.join(path), "").unwrap();
    }
    let mut child = mounts.bench.thawfs();
    child.args(["watch", text(&mounts.mountpoint), "sub", "--since", &cursor]);
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let lines: Vec<String> = lines.take_while(|line| line != "caught-up").collect();
    assert!(lines.contains(&"changed added sub/here".to_owned()), "{lines:?}");
    let beyond = |line: &&String| line.contains("there") || line.contains("elsewhere");
    assert_eq!(lines.iter().find(beyond), None, "{lines:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    unmount(&mounts);
}

#[test]
fn who_watches_leaves_descriptors_to_who_uses_the_mount() {
    let test = "who_watches_leaves_descriptors_to_who_uses_the_mount";
    if !can_mount_with(test, &[Need::Processes]) {
        return;
    }
    let mounts = Mounts::new();
    let words = [text(&mounts.archive), text(&mounts.mountpoint)].map(str::to_owned);
    let mut limited = Command::new("prlimit");
    limited.arg("--nofile=100").arg(mounts.bench.thawfs().get_program());
    for (name, value) in mounts.bench.thawfs().get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    assert!(limited.arg("mount").args(words).stdin(Stdio::null()).status().unwrap().success());
    let watch = || {
        let mut child = mounts.bench.thawfs();
        child.arg("watch").arg(&mounts.mountpoint).stdout(Stdio::null()).stderr(Stdio::null());
        child.spawn().unwrap()
    };
    let mut watches: Vec<_> = std::iter::repeat_with(watch).take(40).collect();
    let codes = |watches: &mut Vec<std::process::Child>| {
        let ended = watches.iter_mut().filter_map(|child| child.try_wait().unwrap());
        ended.map(|status| status.code()).collect::<Vec<_>>()
    };
    eventually("a quarter of them listen", || codes(&mut watches).len() == 15);
    assert!(codes(&mut watches).iter().all(|code| *code == Some(13)), "{:?}", codes(&mut watches));
    fs::write(mounts.mountpoint.join("new"), "data").unwrap();
    assert!(fs::read_dir(&mounts.mountpoint).unwrap().count() > 3);
    mounts.bench.ok(&["status", text(&mounts.mountpoint)]);
    for child in &mut watches {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    unmount(&mounts);
}
