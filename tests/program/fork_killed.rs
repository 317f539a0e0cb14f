//! Forks in the middle of which somebody is killed: there is nothing of them then, or all, and a second try goes well.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::mount::{Mounts, can_mount_with};
use crate::support::surrounding::Need;
use crate::support::words::{eventually, text};

/// How often each is killed, at times that are spread over a fork; `THAWFS_TEST_KILLS` asks for more.
fn kills() -> u32 {
    std::env::var("THAWFS_TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(6)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whom {
    Command,
    Origin,
    Fork,
}

struct Killed {
    mounts: Mounts,
    new: PathBuf,
}

impl Killed {
    fn new() -> Self {
        let mounts = Mounts::new();
        let new = mounts.bench.path("new");
        let killed = Self { mounts, new };
        killed.mount();
        killed
    }

    fn origin(&self) -> &Path {
        &self.mounts.mountpoint
    }

    fn mount(&self) {
        let upper = self.mounts.bench.path("up");
        let (archive, origin) = (text(&self.mounts.archive), text(self.origin()));
        self.mounts.bench.ok(&["-q", "mount", archive, origin, "--upper", text(&upper)]);
    }

    fn server_of(&self, mountpoint: &Path) -> Option<u32> {
        let mountpoint = format!("\0{}\0", text(mountpoint));
        self.mounts.bench.servers().into_iter().find(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).ends_with(&mountpoint)
        })
    }

    /// Forks, and kills one of those that have to do with it after a while. Says whether the command says that all is
    /// well.
    fn fork_and_kill(&self, whom: Whom, after: Duration) -> bool {
        let mut command = self.mounts.bench.thawfs();
        command.args(["fork", text(self.origin()), text(&self.new), "--json"]);
        let began = Instant::now();
        let mut command = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = match whom {
            Whom::Command => None,
            Whom::Origin => self.server_of(self.origin()),
            // It comes to be in the middle.
            Whom::Fork => loop {
                let pid = self.server_of(&self.new);
                if pid.is_some() || command.try_wait().unwrap().is_some() {
                    break pid;
                }
            },
        };
        let since = if whom == Whom::Fork { Instant::now() } else { began };
        std::thread::sleep(after.saturating_sub(since.elapsed()));
        match pid {
            None => drop(command.kill()),
            Some(pid) => {
                let _ = kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL);
                let servers = || self.mounts.bench.servers();
                eventually("who was killed has ended", || !servers().contains(&pid));
            }
        }
        let output = command.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        if whom != Whom::Command {
            assert_eq!(said.lines().count(), 1, "{whom:?} after {after:?}: {said}");
            let said: Value = serde_json::from_str(&said).unwrap();
            assert_eq!(said["message"].is_string(), !output.status.success(), "{said}");
        }
        output.status.success()
    }

    /// That the fork is there as a whole, or nothing of it. Takes it down.
    fn check_new(&self) {
        let bench = &self.mounts.bench;
        let is_there = || bench.mounted().contains(&self.new);
        // Where the command alone was killed, its servers go on.
        let now = || (is_there(), self.server_of(&self.new));
        let mut before = now();
        eventually("nothing comes to be any more", || {
            std::thread::sleep(Duration::from_millis(700));
            std::mem::replace(&mut before, now()) == before
        });
        match self.server_of(&self.new) {
            Some(_) => {
                let read = std::fs::read_to_string(self.new.join("file"));
                if is_there() {
                    assert_eq!(read.unwrap(), "from the origin");
                }
                if !bench.run(&["unmount", text(&self.new)]).status.success() {
                    eventually("the fork that did not come to be is gone", || !is_there());
                }
            }
            None if is_there() => {
                bench.ok(&["unmount", text(&self.new)]);
            }
            None => assert!(!self.new.join("file").exists()),
        }
        eventually("nothing is mounted", || !is_there() && self.server_of(&self.new).is_none());
    }

    fn check_origin(&self) {
        if self.server_of(self.origin()).is_none() {
            self.mounts.bench.ok(&["unmount", text(self.origin())]);
            self.mount();
        }
        let read = std::fs::read_to_string(self.origin().join("file"));
        assert_eq!(read.unwrap(), "from the origin");
    }

    fn points(&self) -> Vec<Value> {
        let said = self.mounts.bench.ok(&["checkpoints", text(self.origin()), "--json"]);
        said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn kill_in_the_middle(whom: Whom) {
    let test = "nothing of a fork is left, or all of it, whoever is killed in the middle";
    if !can_mount_with(test, &[Need::Processes]) {
        return;
    }
    let killed = Killed::new();
    let bench = &killed.mounts.bench;
    std::fs::write(killed.origin().join("file"), "from the origin").unwrap();
    let fork = ["-q", "fork", text(killed.origin()), text(&killed.new)];
    // As long as it takes, by the second: the first makes what there has to be.
    let mut whole = Duration::ZERO;
    for _ in 0..2 {
        let began = Instant::now();
        bench.ok(&fork);
        whole = began.elapsed();
        bench.ok(&["unmount", text(&killed.new)]);
    }
    let mut done = 0;
    for nth in 0..kills() {
        let after = whole * nth / kills();
        let said_so = killed.fork_and_kill(whom, after);
        done += u32::from(said_so);
        killed.check_new();
        killed.check_origin();
        bench.ok(&fork);
        let read = std::fs::read_to_string(killed.new.join("file"));
        assert_eq!(read.unwrap(), "from the origin", "{whom:?} after {after:?}");
        std::fs::write(killed.new.join("file"), "by the fork").unwrap();
        bench.ok(&["unmount", text(&killed.new)]);
    }
    println!("{whom:?}: {done} of {} forks were done by then", kills());
    // What a server that was killed has left is cleared away as of any other mount.
    bench.ok(&["gc", "--yes"]);
    let uppers = walkdir::WalkDir::new(bench.state_dir().join("uppers")).min_depth(1);
    let uppers: Vec<_> = uppers.into_iter().map(|it| it.unwrap().into_path()).collect();
    assert_eq!(uppers, Vec::<PathBuf>::new(), "what was killed has left something");
    eventually("no fork is known any more", || {
        let is_forked = |point: &Value| !point["forks"].as_array().unwrap().is_empty();
        !killed.points().iter().any(is_forked)
    });
    // One that was just being written is nothing to anybody, and goes some time.
    let notes = std::fs::read_dir(bench.path(".up.work/forks")).into_iter().flatten();
    let notes = notes.map(|note| note.unwrap().file_name().into_string().unwrap());
    let notes: Vec<_> = notes.filter(|name| !name.ends_with(".new")).collect();
    assert_eq!(notes, Vec::<String>::new(), "a note is left");
    bench.ok(&["rollback", text(killed.origin()), "--to-archive", "--discard"]);
    killed.points().iter().for_each(|point| {
        bench.ok(&["forget", text(killed.origin()), point["id"].as_str().unwrap()]);
    });
    let layers = || std::fs::read_dir(bench.path(".up.work/layers")).unwrap().count();
    // The live one, and the one that comes next.
    eventually("no layer is held by a fork", || layers() == 2);
    bench.ok(&["unmount", text(killed.origin())]);
    bench.assert_nothing_left();
}

#[test]
fn a_fork_whose_command_is_killed_is_there_or_is_not() {
    kill_in_the_middle(Whom::Command);
}

#[test]
fn a_fork_whose_origin_is_killed_is_there_or_is_not() {
    kill_in_the_middle(Whom::Origin);
}

#[test]
fn a_fork_that_is_killed_while_it_comes_to_be_leaves_nothing() {
    kill_in_the_middle(Whom::Fork);
}
