//! Checkpoints, rollbacks and forks where there is no room: what takes some fails as a whole, what makes some goes well.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::mount::{Bench, Mounts, can_mount_with};
use crate::support::surrounding::Need;
use crate::support::words::{eventually, text};

const MIB: u64 = 1 << 20;

/// A small file system, which can be filled.
pub(crate) struct Small {
    at: PathBuf,
    /// What takes all of its room.
    fillers: PathBuf,
}

impl Small {
    pub(crate) fn new(bench: &Bench, kind: &str, name: &str) -> Self {
        let at = bench.directory(name);
        let mut mount = Command::new("mount");
        match kind {
            "tmpfs" => mount.args(["-t", "tmpfs", "-o", "size=12m", "none"]),
            kind => {
                // It is not a file of a file system that is full.
                let image = bench.plain_directory("images").join(name);
                File::create(&image).unwrap().set_len(24 * MIB).unwrap();
                let make = format!("mkfs.{kind}");
                assert!(Command::new(make).arg("-q").arg(&image).status().unwrap().success());
                mount.args(["-t", kind, "-o", "loop"]).arg(image)
            }
        };
        assert!(mount.arg(&at).status().unwrap().success());
        let fillers = at.join("fillers");
        std::fs::create_dir(&fillers).unwrap();
        Self { at, fillers }
    }

    /// Takes the last byte, and the last name.
    pub(crate) fn fill(&self) {
        for round in 0..3 {
            let mut options = File::options();
            let file = options.append(true).create(true).open(self.fillers.join("large"));
            let mut file = file.unwrap();
            for size in [64 << 10, 4096, 1] {
                while file.write_all(&vec![1; size]).is_ok() {}
            }
            // What is written has its place by then.
            rustix::fs::syncfs(&file).unwrap();
            let dir = self.fillers.join(round.to_string());
            let _ = std::fs::create_dir(&dir);
            let is_made = |nth: &u32| std::fs::write(dir.join(nth.to_string()), "x").is_ok();
            let _ = (0..100_000_u32).take_while(is_made).count();
        }
        assert!(std::fs::write(self.at.join("more"), [1; 4096]).is_err());
        let _ = std::fs::remove_file(self.at.join("more"));
    }

    pub(crate) fn make_room(&self) {
        std::fs::remove_dir_all(&self.fillers).unwrap();
        std::fs::create_dir(&self.fillers).unwrap();
    }

    /// Bytes that root may write.
    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.at).unwrap();
        stat.f_bfree * stat.f_frsize
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH);
    }
}

/// A mount whose upper is on a small file system.
struct Full {
    mounts: Mounts,
    small: Small,
}

impl Full {
    fn new(kind: &str) -> Self {
        let mounts = Mounts::new();
        let small = Small::new(&mounts.bench, kind, "small");
        let (upper, archive) = (small.at.join("up"), text(&mounts.archive));
        let mount = ["-q", "mount", archive, text(&mounts.mountpoint), "--upper", text(&upper)];
        mounts.bench.ok(&mount);
        Self { mounts, small }
    }

    fn does(&self, command: &str, more: &[&str]) -> String {
        self.mounts.bench.ok(&[&[command, text(&self.mounts.mountpoint)][..], more].concat())
    }

    /// That a command fails for want of room, in one line.
    fn fails(&self, command: &str, more: &[&str]) {
        let arguments = [&[command, text(&self.mounts.mountpoint), "--json"][..], more].concat();
        let output = self.mounts.bench.run(&arguments);
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(11), 1), "{command} {said}");
        let failure: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(failure["code"], "UPPER", "{failure}");
        let told = failure["message"].as_str().unwrap();
        assert!(told.contains("No space left"), "{told}");
        assert!(failure["hint"].is_string(), "{failure}");
    }

    fn points(&self) -> Vec<Value> {
        let said = self.does("checkpoints", &["--json"]);
        said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn write(&self, name: &str, bytes: u64) {
        std::fs::write(self.mounts.mountpoint.join(name), vec![7; bytes as usize]).unwrap();
    }

    fn has(&self, name: &str) -> bool {
        self.mounts.mountpoint.join(name).exists()
    }

    fn work(&self) -> PathBuf {
        self.small.at.join(".up.work")
    }

    fn is_settled(&self) -> bool {
        let points = self.points();
        let is_known = |point: &Value| point["durable"] == true || point["rolledAway"] == true;
        let spare = std::fs::read_dir(self.work().join("stack.spare")).into_iter().flatten();
        let layers = std::fs::read_dir(self.work().join("layers")).unwrap();
        let mut names = layers.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        points.iter().all(is_known)
            && spare.count() == 10
            && names.all(|name| name.parse::<u32>().is_ok())
    }

    /// Nothing is done in the background any more, and all is there that is kept.
    fn settle(&self) {
        eventually("all is tidied", || self.is_settled());
    }

    fn unmount(self) {
        self.does("unmount", &[]);
        let Self { mounts, small } = self;
        drop(small);
        mounts.bench.assert_nothing_left();
    }
}

/// File systems that are filled.
pub(crate) const KINDS: [&str; 2] = ["tmpfs", "ext4"];

#[test]
fn what_makes_room_goes_well_where_there_is_none() {
    if !can_mount_with("what_makes_room_goes_well_where_there_is_none", &[Need::Root]) {
        return;
    }
    type Prepare = fn(&Full);
    let cases: [(&str, &[&str], Prepare, u64); 4] = [
        ("forget", &["one"], |full| drop(full.does("rollback", &["--to-archive", "--discard"])), 3),
        (
            "forget",
            &["--keep", "1"],
            |full| {
                full.does("rollback", &["--to-archive", "--discard"]);
                full.does("forget", &["one"]);
                // Layers that a checkpoint of no name has alone.
                full.write("large", 3 * MIB);
                full.does("checkpoint", &[]);
                full.does("rollback", &["--to-archive", "--discard"]);
                full.does("checkpoint", &[]);
            },
            3,
        ),
        ("rollback", &["--discard"], |full| full.write("more", 3 * MIB), 3),
        // What is rolled away is kept.
        ("rollback", &[], |full| full.write("more", 3 * MIB), 0),
    ];
    for kind in KINDS {
        for (command, more, prepare, freed) in &cases {
            let full = Full::new(kind);
            full.write("large", 3 * MIB);
            full.does("checkpoint", &["--name", "one"]);
            prepare(&full);
            full.settle();
            full.small.fill();
            let before = full.points().len();
            full.fails("checkpoint", &[]);
            assert_eq!(full.points().len(), before, "{kind} {command}: nothing is half made");
            full.does(command, more);
            assert!(!full.has("more"), "{kind} {command}");
            if *freed > 0 {
                let is_back = || full.small.free() >= freed * MIB - MIB / 2;
                eventually(&format!("there is room after {kind} {command} {more:?}"), is_back);
            } else {
                // And it can be taken back, or thrown away at last.
                full.does("rollback", &["--to-archive", "--discard"]);
                eventually("there is room then", || full.small.free() > 2 * MIB);
            }
            full.settle();
            full.write("again", 10);
            full.does("checkpoint", &[]);
            full.settle();
            // Whatever had room to be made by then, all of it can be had once more.
            full.small.fill();
            full.fails("checkpoint", &[]);
            full.does("rollback", &["--to-archive", "--discard"]);
            full.small.make_room();
            full.does("checkpoint", &[]);
            full.settle();
            full.unmount();
        }
    }
}

#[test]
fn a_fork_for_which_there_is_no_room_leaves_nothing() {
    let needs = [Need::Root, Need::KernelUpper];
    if !can_mount_with("a_fork_for_which_there_is_no_room_leaves_nothing", &needs) {
        return;
    }
    for kind in KINDS {
        let full = Full::new(kind);
        let bench = &full.mounts.bench;
        full.write("large", MIB);
        full.does("checkpoint", &["--name", "one"]);
        full.settle();
        full.small.fill();
        let new = bench.path("new");
        let uppers = || {
            let uppers = std::fs::read_dir(bench.state_dir().join("uppers"));
            uppers.into_iter().flatten().count()
        };
        for more in [&[][..], &["--at", "one"]] {
            full.fails("fork", &[&[text(&new)], more].concat());
            assert!(!new.exists(), "{kind} {more:?}");
            assert_eq!((uppers(), bench.servers().len(), full.points().len()), (0, 1, 1));
        }
        full.small.make_room();
        full.does("fork", &[text(&new), "--at", "one"]);
        assert!(new.join("large").exists());
        // The room of a fork is that of the state directory.
        full.small.fill();
        std::fs::write(new.join("own"), "1").unwrap();
        bench.ok(&["checkpoint", text(&new)]);
        bench.ok(&["unmount", text(&new)]);
        full.small.make_room();
        full.unmount();
    }
}

#[test]
fn a_state_directory_without_room_is_one_line_and_nothing_is_half_made() {
    let test = "a_state_directory_without_room_is_one_line_and_nothing_is_half_made";
    if !can_mount_with(test, &[Need::Root]) {
        return;
    }
    for kind in KINDS {
        let mounts = Mounts::new();
        let state = Small::new(&mounts.bench, kind, "state");
        let bench = &mounts.bench;
        bench.ok(&["-q", "mount", text(&mounts.archive), text(&mounts.mountpoint)]);
        std::fs::write(mounts.mountpoint.join("file"), "1").unwrap();
        bench.ok(&["checkpoint", text(&mounts.mountpoint), "--name", "one", "--sync"]);
        let new = bench.path("new");
        let entries = |name: &str| {
            let entries = std::fs::read_dir(state.at.join(name)).into_iter().flatten();
            entries.count()
        };
        state.fill();
        let run = |arguments: &[&str]| {
            let output = bench.run(&[arguments, &["--json"]].concat());
            let said = String::from_utf8(output.stdout).unwrap();
            assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
            let failure: Value = serde_json::from_str(&said).unwrap();
            assert!(failure["message"].as_str().unwrap().contains("No space left"), "{failure}");
            (output.status.code().unwrap(), failure["code"].as_str().unwrap().to_owned())
        };
        let mount = text(&mounts.mountpoint);
        assert_eq!(run(&["checkpoint", mount]), (11, "UPPER".to_owned()));
        let forked = run(&["fork", mount, text(&new), "--at", "one"]);
        assert!([1, 11].contains(&forked.0), "{kind}: {forked:?}");
        assert!(!new.exists());
        assert_eq!((entries("mounts"), entries("uppers"), bench.servers().len()), (1, 1, 1));
        state.make_room();
        bench.ok(&["checkpoint", mount]);
        bench.ok(&["fork", mount, text(&new), "--at", "one"]);
        assert_eq!(std::fs::read(new.join("file")).unwrap(), b"1");
        for mount in [text(&new), mount] {
            bench.ok(&["unmount", mount]);
        }
        let left = |at: &Path| std::fs::read_dir(at).into_iter().flatten().count();
        let named = left(&state.at.join("uppers"));
        assert_eq!((left(&state.at.join("mounts")), named), (0, 1), "one has a name");
    }
}

#[test]
fn layers_of_which_little_is_left_make_room_where_it_is_short() {
    let test = "layers_of_which_little_is_left_make_room_where_it_is_short";
    if !can_mount_with(test, &[Need::Root]) {
        return;
    }
    for kind in KINDS {
        let full = Full::new(kind);
        // Each is much larger than those above it together once all of it is removed.
        for round in 0..3 {
            for name in ["a", "b", "c"] {
                full.write(name, MIB - (round << 10));
                full.does("checkpoint", &[]);
            }
        }
        ["a", "b", "c"].iter().for_each(|name| {
            std::fs::remove_file(full.mounts.mountpoint.join(name)).unwrap();
        });
        full.does("checkpoint", &[]);
        let is_durable = || full.points().iter().all(|point| point["durable"] == true);
        eventually("all is durable", is_durable);
        let before = full.small.free();
        // Less room than these layers take.
        let taken = before.saturating_sub(2 * MIB) as usize;
        std::fs::write(full.small.fillers.join("taken"), vec![1; taken]).unwrap();
        full.does("forget", &["--keep", "1"]);
        let free = || full.small.free() + taken as u64;
        eventually(&format!("{kind}: there is room again"), || free() >= before + 8 * MIB);
        assert!(!full.has("a") && !full.has("b") && !full.has("c"));
        full.unmount();
    }
}
