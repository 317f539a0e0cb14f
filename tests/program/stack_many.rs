//! Many checkpoints, rollbacks and open files: what is found then is whole, and what the server takes stays what it was.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::mount_layers::Layers;
use crate::support::mount::{can_mount, can_mount_with};
use crate::support::surrounding::Need;
use crate::support::words::{eventually, text};

/// How many checkpoints are made, unless `default` is too few: `THAWFS_TEST_CHECKPOINTS` asks for more.
fn checkpoints(default: usize) -> usize {
    let asked = std::env::var("THAWFS_TEST_CHECKPOINTS").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Commits numbered rows, says each number once the commit has returned, and has a second table that shrinks, too.
const WRITER: &str = r#"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("pragma journal_mode=wal")
db.execute("pragma wal_autocheckpoint=200")
db.execute("create table t(n integer, part integer, b blob)")
db.execute("create table other(a integer primary key, b blob)")
n = 0
while True:
    n += 1
    db.execute("begin immediate")
    for part in range(3):
        db.execute("insert into t values (?, ?, ?)", (n, part, b"%d" % n * 100))
    db.execute("insert into other(b) values (?)", (b"o" * (n % 3000),))
    if n % 100 == 0:
        db.execute("delete from other where a % 3 = 0")
    db.execute("commit")
    print(n, flush=True)
"#;

/// For each line: whether the database is whole, how many commits it has, and whether these are the first ones, each
/// of them whole.
const CHECKER: &str = r#"
import sqlite3, sys
for line in sys.stdin:
    db = sqlite3.connect(sys.argv[1])
    whole = db.execute("pragma integrity_check").fetchone()[0]
    last, count = db.execute("select coalesce(max(n), 0), count(*) from t").fetchone()
    odd = db.execute("select count(*) from (select n from t group by n having count(distinct part) != 3 or "
                     "max(b != cast(printf('%s', replace(hex(zeroblob(100)), '00', n)) as blob)))").fetchone()[0]
    db.close()
    print(whole, last, int(count == 3 * last and odd == 0), flush=True)
"#;

fn python(script: &str, file: &std::path::Path) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new("python3")
        .args(["-c", script, text(file)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(child.stdout.take().unwrap());
    (child, said)
}

#[test]
fn each_checkpoint_of_a_database_that_commits_is_whole_and_has_all_that_had_returned() {
    let test = "each_checkpoint_of_a_database_that_commits_is_whole_and_has_all_that_had_returned";
    if !can_mount(test) {
        return;
    }
    let layers = Layers::new(&["-o", "checkpoints=exact"]);
    layers.keep_all();
    fs::create_dir(layers.at("db")).unwrap();
    let file = layers.at("db/file");
    let (mut writer, said) = python(WRITER, &file);
    let returned = AtomicUsize::new(0);
    let mut points = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for line in said.lines().map_while(Result::ok) {
                returned.store(line.parse().unwrap(), Ordering::Release);
            }
        });
        eventually("the first commit", || returned.load(Ordering::Acquire) > 0);
        for _ in 0..checkpoints(25) {
            let before = returned.load(Ordering::Acquire);
            let (point, fuzzy) = layers.checkpoint();
            assert_eq!(fuzzy, 0);
            points.push((point, before));
        }
        writer.kill().unwrap();
        writer.wait().unwrap();
    });
    let (mut checker, mut said) = python(CHECKER, &file);
    let mut ask = checker.stdin.take().unwrap();
    let mut last = 0;
    for (point, before) in &points {
        layers.roll_back(point);
        writeln!(ask, "check").unwrap();
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        let [whole, commits, is_prefix] = words[..] else { panic!("{point}: {line}") };
        assert_eq!((whole, is_prefix), ("ok", "1"), "{point}: {line}");
        let commits: usize = commits.parse().unwrap();
        assert!(commits >= *before, "{point} has {commits} commits, and {before} had returned");
        assert!(commits >= last, "{point} has {commits} commits, and the one before it {last}");
        last = commits;
    }
    println!("{} checkpoints, {last} commits in the last", points.len());
    drop(ask);
    checker.wait().unwrap();
    layers.end();
}

/// What the server's process takes: KiB of memory of its own, and descriptors.
fn takes(layers: &Layers) -> (u64, usize) {
    let pid = layers.0.bench.servers()[0];
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = anonymous.unwrap().trim().strip_suffix(" kB").unwrap().parse().unwrap();
    (kib, fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count())
}

#[test]
fn checkpoints_and_rollbacks_in_a_row_take_no_more_memory_and_descriptors_than_ten() {
    let test = "checkpoints_and_rollbacks_in_a_row_take_no_more_memory_and_descriptors_than_ten";
    if !can_mount_with(test, &[Need::Processes]) {
        return;
    }
    const KEPT: usize = 4;
    let layers = Layers::new(&[]);
    let bench = &layers.0.bench;
    bench.ok(&["-q", "checkpoint", text(&layers.0.mountpoint), "--name", "base", "--local"]);
    bench.ok(&["-q", "forget", "--keep", &KEPT.to_string(), text(&layers.0.mountpoint)]);
    // Nothing is on its way out any more, and nothing but the points has a layer, with what is live and what is next.
    let settle = || {
        let work = fs::read_dir(bench.state_dir().join("uppers")).unwrap().next().unwrap().unwrap();
        let held = || fs::read_dir(work.path().join("work/layers")).unwrap().count();
        eventually("what nobody needs is gone", || held() <= KEPT + 3);
        let mut before = takes(&layers);
        eventually("nothing is done any more", || {
            std::thread::sleep(std::time::Duration::from_millis(300));
            std::mem::replace(&mut before, takes(&layers)) == before
        });
        before
    };
    let mut at_ten = (0, 0);
    let rounds = checkpoints(30);
    for round in 1..=rounds {
        fs::create_dir_all(layers.at(&format!("dir-{}", round % 5))).unwrap();
        for nth in 0..5 {
            fs::write(layers.at(&format!("dir-{}/{nth}", round % 5)), round.to_string()).unwrap();
        }
        fs::write(layers.at("hello"), round.to_string()).unwrap();
        let reader = File::open(layers.at("hello")).unwrap();
        let writer = OpenOptions::new().write(true).open(layers.at("script")).unwrap();
        layers.checkpoint();
        writer.write_all_at(b"more", 0).unwrap();
        fs::remove_dir_all(layers.at("sub")).unwrap();
        layers.roll_back("base");
        drop((reader, writer));
        assert_eq!(layers.read("hello").unwrap(), "hello from the archive\n");
        if round == 10 {
            at_ten = settle();
        }
    }
    let at_last = settle();
    println!("KiB and descriptors: {at_ten:?} after 10, {at_last:?} after {rounds}");
    assert!(at_last.0 <= at_ten.0 + 1024, "KiB, descriptors: {at_ten:?}, then {at_last:?}");
    assert!(at_last.1 <= at_ten.1, "KiB, descriptors: {at_ten:?}, then {at_last:?}");
    bench.ok(&["-q", "forget", text(&layers.0.mountpoint), "base"]);
    layers.end();
}

/// Files that are open in every way, in many directories, while the tree is checkpointed, forked and rolled back.
#[test]
fn a_tree_of_which_very_much_is_open_is_checkpointed_forked_and_rolled_back() {
    let test = "a_tree_of_which_very_much_is_open_is_checkpointed_forked_and_rolled_back";
    if !can_mount(test) {
        return;
    }
    const FILES: usize = 600;
    let layers = Layers::new(&[]);
    let path = |nth: usize| layers.at(&format!("d{}/f{nth}", nth % 40));
    let was = |nth: usize| format!("file {nth} as it was");
    for nth in 0..FILES {
        fs::create_dir_all(path(nth).parent().unwrap()).unwrap();
        fs::write(path(nth), was(nth)).unwrap();
    }
    let directories: Vec<_> =
        (0..40).map(|nth| File::open(layers.at(&format!("d{nth}"))).unwrap()).collect();
    let open: Vec<File> = (0..FILES)
        .map(|nth| {
            let mut options = OpenOptions::new();
            options.read(nth % 3 != 1).write(nth % 3 != 0).open(path(nth)).unwrap()
        })
        .collect();
    let (point, fuzzy) = layers.checkpoint();
    assert_eq!(fuzzy, 0);
    let new = layers.0.bench.path("new");
    let fork = ["-q", "fork", text(&layers.0.mountpoint), text(&new), "--at", &point];
    layers.0.bench.ok(&fork);
    // Through what was open, and anew; or under another name.
    for (nth, file) in open.iter().enumerate() {
        match nth % 6 {
            0 => fs::write(path(nth), "anew").unwrap(),
            1 | 2 => file.write_all_at(b"FILE", 0).unwrap(),
            3 => fs::remove_file(path(nth)).unwrap(),
            4 => fs::rename(path(nth), layers.at(&format!("moved-{nth}"))).unwrap(),
            _ => {}
        }
    }
    let see = |nth: usize| match nth % 6 {
        0 => Some("anew".to_owned()),
        1 | 2 => Some(was(nth).replace("file", "FILE")),
        3 | 4 => None,
        _ => Some(was(nth)),
    };
    let tree = |root: &std::path::Path| -> BTreeMap<usize, Option<String>> {
        let at = |nth: usize| root.join(format!("d{}/f{nth}", nth % 40));
        (0..FILES).map(|nth| (nth, fs::read_to_string(at(nth)).ok())).collect()
    };
    let before: BTreeMap<_, _> = (0..FILES).map(|nth| (nth, Some(was(nth)))).collect();
    let after: BTreeMap<_, _> = (0..FILES).map(|nth| (nth, see(nth))).collect();
    assert!(tree(&layers.0.mountpoint) == after);
    assert!(tree(&new) == before);
    layers.roll_back(&point);
    assert!(tree(&layers.0.mountpoint) == before);
    for (nth, file) in open.iter().enumerate().filter(|(nth, _)| nth % 3 != 1) {
        let expected = match nth % 6 {
            // One inode with what it was until it was written anew.
            0 => "anew".to_owned(),
            2 => was(nth).replace("file", "FILE"),
            _ => was(nth),
        };
        let mut read = vec![0; expected.len()];
        file.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(String::from_utf8(read).unwrap(), expected, "{nth}");
    }
    for directory in &directories {
        let stat = rustix::fs::fstat(directory).unwrap();
        assert!(stat.st_nlink > 0);
    }
    drop((open, directories));
    assert!(tree(&new) == before);
    layers.0.bench.ok(&["unmount", text(&new)]);
    layers.end();
}
