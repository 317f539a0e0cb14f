//! Programs that never rest, in a mount whose checkpoints are published meanwhile: each is restored elsewhere, and is
//! what a copy is that was taken while the programs stood still, or else holds nothing that no program has written.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::checkpoints_publish::Live;
use crate::support::mount::can_mount;
use crate::support::place::Place;
use crate::support::trees::assert_same;
use crate::support::words::{eventually, text};

const PROGRAMS: usize = 8;

/// Each file is made of records of 64 bytes, each written by one call, which all name the program and the file's number.
const PROGRAM: &str = r#"
import os, random, sys
root, which = sys.argv[1], sys.argv[2]
chance = random.Random(which)
own = os.path.join(root, "p" + which)
common = os.path.join(root, "common")
for path in (own, common):
    os.makedirs(path, exist_ok=True)
def record(number, count):
    return ("%s %d %d " % (which, number, count)).ljust(63, ".").encode() + b"\n"
held, number = {}, 0
while True:
    number += 1
    def at(): return os.path.join(own, "f%d" % chance.randrange(25))
    try:
        what = chance.randrange(12)
        if what < 4:
            fd = os.open(at(), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 + chance.randrange(64))
            for count in range(chance.randrange(60)):
                os.write(fd, record(number, count))
            os.close(fd)
        elif what == 4:
            # One that stays open, and is written to time and again.
            name = "held%d" % chance.randrange(3)
            if name not in held:
                held[name] = os.open(os.path.join(own, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for count in range(10):
                os.write(held[name], record(0, count))
        elif what == 5: os.unlink(at())
        elif what == 6: os.rename(at(), at())
        elif what == 7: os.link(at(), at())
        elif what == 8: os.rename(at(), os.path.join(common, "c%d" % chance.randrange(20)))
        elif what == 9: os.unlink(os.path.join(common, "c%d" % chance.randrange(20)))
        elif what == 10:
            path = os.path.join(own, "d%d" % chance.randrange(3))
            os.makedirs(path, exist_ok=True)
            os.rename(at(), os.path.join(path, "moved"))
            os.rename(path, os.path.join(own, "e%d" % chance.randrange(3)))
        else:
            os.chmod(at(), 0o600 + chance.randrange(64))
            os.symlink("nowhere%d" % number, os.path.join(own, "s%d" % (number % 9)))
    except OSError:
        pass
"#;

/// Programs, which are killed in the end.
struct Storm(Vec<Child>);

impl Storm {
    fn new(root: &Path) -> Self {
        let start = |which: usize| {
            Command::new("python3")
                .args(["-c", PROGRAM, text(root), &which.to_string()])
                .stdin(Stdio::null())
                .spawn()
                .unwrap()
        };
        Self((0..PROGRAMS).map(start).collect())
    }

    fn signal(&self, signal: Signal) {
        for program in &self.0 {
            kill_process(Pid::from_raw(program.id() as i32).unwrap(), signal).unwrap();
        }
    }

    fn stop(&self) {
        self.signal(Signal::STOP);
        let state = |program: &Child| {
            let stat = fs::read_to_string(format!("/proc/{}/stat", program.id())).unwrap();
            stat.rsplit_once(") ").unwrap().1.chars().next()
        };
        eventually("they stand still", || self.0.iter().all(|it| state(it) == Some('T')));
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        for program in &mut self.0 {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

/// That each file is made of whole records of one program and one number.
fn assert_whole(root: &Path, what: &str) {
    let mut files = 0;
    for entry in walkdir::WalkDir::new(root).into_iter().map(Result::unwrap) {
        let is_theirs = entry.path().strip_prefix(root).unwrap().components().count() > 1
            && entry.file_type().is_file()
            && !entry.file_name().to_str().unwrap().starts_with("small");
        if !is_theirs {
            continue;
        }
        files += 1;
        let bytes = fs::read(entry.path()).unwrap();
        assert_eq!(bytes.len() % 64, 0, "{what}: {}", entry.path().display());
        let mut of = None;
        for (nth, record) in bytes.chunks(64).enumerate() {
            let shown = String::from_utf8_lossy(record).into_owned();
            let words: Vec<&str> = shown.split(' ').collect();
            let [program, number, count, rest] = words[..] else { panic!("{what}: {shown:?}") };
            assert!(rest.ends_with(".\n"), "{what}: {shown:?}");
            assert_eq!(
                *of.get_or_insert((program.to_owned(), number.to_owned())),
                (program.to_owned(), number.to_owned()),
                "{what}: {}",
                entry.path().display()
            );
            let due = if number == "0" { nth % 10 } else { nth };
            assert_eq!(count, due.to_string(), "{what}: {}", entry.path().display());
        }
    }
    assert!(files > 0, "{what}");
}

#[test]
fn each_published_checkpoint_of_a_storm_is_what_was_when_it_stood_still() {
    let test = "each_published_checkpoint_of_a_storm_is_what_was_when_it_stood_still";
    if !can_mount(test) {
        return;
    }
    let rounds: u64 =
        std::env::var("THAWFS_TEST_STORM").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    for (way, is_exact) in [(&[][..], false), (&["-o", "checkpoints=exact"], true)] {
        let live = Live::of(Place::local(), 1 << 20, way);
        let storm = Storm::new(&live.dir);
        eventually("all of them have begun", || live.dir.join("p7/f1").exists());
        let mut points = Vec::new();
        for round in 0..rounds {
            std::thread::sleep(Duration::from_millis(20 + 37 * (round * 7 % 5)));
            if round % 2 == 0 {
                storm.stop();
                let made = live.does("checkpoint", &[]);
                assert_eq!(made["fuzzy"].as_array().unwrap().len(), 0, "{made}");
                let id = made["id"].as_str().unwrap().to_owned();
                let copy = live.copy(&id);
                storm.signal(Signal::CONT);
                points.push((id, Some(copy)));
            } else {
                let made = live.does("checkpoint", &[]);
                let is_sharp = made["fuzzy"].as_array().unwrap().is_empty();
                assert!(is_sharp || !is_exact, "{made}");
                let id = made["id"].as_str().unwrap().to_owned();
                points.push((id, None));
            }
        }
        for (id, copy) in &points {
            live.until(id, "published");
            let found = live.extracted(id);
            match copy {
                Some(copy) => assert_same(&found, copy, &format!("{way:?}")),
                None if is_exact => assert_whole(&found, id),
                None => {}
            }
            let verified = live.place.run(&["-q", "verify", id]);
            assert!(verified.status.success(), "{way:?}: {verified:?}");
            fs::remove_dir_all(found.parent().unwrap()).unwrap();
        }
        drop(storm);
        live.unmount(&[]);
    }
}
