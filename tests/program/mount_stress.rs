//! Many programs at once on a mount leave what they leave on ext4. Eight actors, each a thread with
//! a generator of its own, do the same on a plain directory and on the mount of an archive of it:
//! each of their calls must say the same, and the trees must be the same at once, with nothing
//! remembered, after a remount, and under kernel overlayfs. Then they fight over the same names.
//! `THAWFS_STRESS_SEED` and `THAWFS_STRESS_OPS` (per actor) choose other runs; of two seeds in a row,
//! one goes with the kernel doing the upper's I/O by itself, one without.

mod actor;
mod replay;
mod tree;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::mount::{Bench, can_mount, can_mount_with};
use crate::support::surrounding::{Need, cannot_run, has};
use crate::support::watch::Watching;
use actor::{ACTORS, Actor, Random};
use replay::Replay;
use tree::{Numbers, Tree, differences, look, write_start};

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().unwrap())
}

/// Lets all actors loose on `root`, each on names of its own or all on the same; gives what each saw.
fn stress(root: &Path, seed: u64, alone: bool, tmpfile: bool) -> Vec<Vec<String>> {
    let count = from_environment("THAWFS_STRESS_OPS", 300) as usize;
    std::thread::scope(|scope| {
        let actor = |id| move || Actor::new(id, root, seed, alone, tmpfile).run(count);
        let actors: Vec<_> = (0..ACTORS).map(|id| scope.spawn(actor(id))).collect();
        actors.into_iter().map(|actor| actor.join().unwrap()).collect()
    })
}

/// Insists that every call said the same in both.
fn assert_same_calls(seed: u64, plain: &[Vec<String>], mounted: &[Vec<String>]) {
    for (id, (expected, seen)) in plain.iter().zip(mounted).enumerate() {
        if let Some(at) = (0..expected.len()).find(|at| expected[*at] != seen[*at]) {
            let before = expected[at.saturating_sub(300)..at].join("\n");
            panic!(
                "seed {seed}, actor {id}:\n{before}\nexpected {}\nseen     {}",
                expected[at], seen[at]
            );
        }
    }
}

fn run(program: &str, arguments: &[&Path]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

/// The archive and the upper, merged by the kernel.
struct Kernel {
    mounted: Vec<PathBuf>,
}

impl Kernel {
    fn new(bench: &Bench, archive: &Path, upper: &Path, workdir: &Path) -> Self {
        let (lower, merged) = (bench.directory("kernel-lower"), bench.directory("kernel-merged"));
        let mut kernel = Self { mounted: Vec::new() };
        run("mount", &["-o".as_ref(), "loop,ro".as_ref(), archive, &lower]);
        kernel.mounted.push(lower.clone());
        let options = format!(
            "redirect_dir=on,metacopy=on,index=on,lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            workdir.display()
        );
        let head = ["-t", "overlay", "overlay", "-o", &options].map(Path::new);
        run("mount", &[&head[..], &[&*merged]].concat());
        kernel.mounted.push(merged);
        kernel
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        for path in self.mounted.iter().rev() {
            run("umount", &[path]);
        }
    }
}

/// A start tree, its archive, and the archive's mount.
struct Stage {
    bench: Bench,
    seed: u64,
    plain: PathBuf,
    archive: PathBuf,
    mountpoint: PathBuf,
    upper: PathBuf,
    /// Whether the kernel does the upper's I/O by itself.
    passthrough: bool,
}

impl Stage {
    /// With passthrough if the seed plus `turn` is odd, so that runs of any test go both ways.
    fn new(turn: u64) -> Self {
        let bench = Bench::new();
        let (plain, mountpoint) = (bench.plain_directory("plain"), bench.directory("mnt"));
        write_start(&plain);
        let archive = bench.archive(&plain, "data.sqsh", &["-comp", "zstd"]);
        let (seed, upper) = (from_environment("THAWFS_STRESS_SEED", 1), bench.path("upper"));
        let passthrough = (seed + turn) % 2 == 1;
        let stage = Self { bench, seed, plain, archive, mountpoint, upper, passthrough };
        stage.mount();
        stage
    }

    fn mount(&self) {
        let (mount, option) = (Path::new("mount"), Path::new("--upper"));
        let command = [mount, &self.archive, &self.mountpoint, option, &self.upper];
        // Devices are opened, as on the plain directory, by whom can make them.
        let devices = if has(Need::Root) { "dev" } else { "rw" };
        let passthrough = if self.passthrough { "rw" } else { "no_passthrough" };
        let options = ["-o", devices, "-o", passthrough];
        self.bench.ok(&[&command[..], &options.map(Path::new)].concat());
    }

    fn unmount(&self) {
        self.bench.ok(&[Path::new("unmount"), &self.mountpoint]);
    }

    /// Whether the mount has `O_TMPFILE`.
    fn has_tmpfile(&self) -> bool {
        let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR;
        rustix::fs::open(&self.mountpoint, flags, rustix::fs::Mode::RWXU).is_ok()
    }

    /// Insists that the mount shows `expected`; gives the number of each path.
    fn check(&self, when: &str, expected: &Tree) -> Numbers {
        let (seen, numbers) = look(&self.mountpoint, true);
        if let Some(differences) = differences(expected, &seen) {
            panic!("seed {}, {when}: {differences}", self.seed);
        }
        numbers
    }

    /// Insists that the mount shows `expected` however it is looked at, always under the same
    /// numbers, and that the kernel shows it of the upper; unmounts.
    fn check_all(self, mut expected: Tree) {
        let numbers = self.check("at once", &expected);
        if has(Need::Root) {
            fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
            let again = self.check("with nothing remembered", &expected);
            if let Some(differences) = differences(&numbers, &again) {
                panic!("seed {}, st_ino with nothing remembered: {differences}", self.seed);
            }
        }
        self.unmount();
        self.mount();
        let kept = |numbers: &Numbers| -> Numbers {
            let kept = numbers.iter().filter(|(path, _)| expected[*path].keeps_its_number());
            kept.map(|(path, number)| (path.clone(), *number)).collect()
        };
        let again = self.check("after a remount", &expected);
        if let Some(differences) = differences(&kept(&numbers), &kept(&again)) {
            panic!("seed {}, st_ino after a remount: {differences}", self.seed);
        }
        self.unmount();
        self.bench.assert_nothing_left();

        if cannot_run("what kernel overlayfs makes of the upper", &[Need::KernelUpper]) {
            return;
        }
        let workdir = self.bench.path(".upper.work");
        let kernel = Kernel::new(&self.bench, &self.archive, &self.upper, &workdir);
        let (mut seen, _) = look(&kernel.mounted[1], false);
        seen.retain(|path, _| expected.get(path).is_none_or(|seen| !seen.is_null_device()));
        expected.retain(|_, seen| !seen.is_null_device());
        if let Some(differences) = differences(&expected, &seen) {
            panic!("seed {}, under kernel overlayfs: {differences}", self.seed);
        }
    }
}

#[test]
fn many_programs_at_once_leave_what_they_leave_on_ext4() {
    if !can_mount("many_programs_at_once_leave_what_they_leave_on_ext4") {
        return;
    }
    let stage = Stage::new(0);
    let tmpfile = stage.has_tmpfile();
    let said = stress(&stage.plain, stage.seed, true, tmpfile);
    let seen = stress(&stage.mountpoint, stage.seed, true, tmpfile);
    assert_same_calls(stage.seed, &said, &seen);
    let (expected, _) = look(&stage.plain, true);
    stage.check_all(expected);
}

/// Which call wins is anybody's guess; but what is left is one tree, however it is looked at.
#[test]
fn programs_that_fight_over_names_leave_one_tree() {
    if !can_mount("programs_that_fight_over_names_leave_one_tree") {
        return;
    }
    let stage = Stage::new(1);
    let said = stress(&stage.mountpoint, stage.seed, false, stage.has_tmpfile());
    for line in said.iter().flatten() {
        let broken = ["Input/output error", "Stale file handle", "Cross-device"];
        assert!(!broken.iter().any(|error| line.contains(error)), "seed {}: {line}", stage.seed);
    }
    let (left, _) = look(&stage.mountpoint, true);
    stage.check_all(left);
}

/// The copy is made of nothing but the start tree, what is told, and the contents of files that were told of.
#[test]
fn what_is_told_of_a_storm_makes_the_tree_of_a_copy() {
    if !can_mount_with("what_is_told_of_a_storm_makes_the_tree_of_a_copy", &[Need::Root]) {
        return;
    }
    for (turn, alone) in [(0, false), (1, true)] {
        let stage = Stage::new(turn);
        let copy = stage.bench.plain_directory("copy");
        let mut replay = Replay::new(&stage.mountpoint, &copy);
        let mut watching = Watching::new(&stage.bench, &stage.mountpoint, &[]);
        stress(&stage.mountpoint, stage.seed, alone, stage.has_tmpfile());
        let mut changes = 0;
        // Longer than anything is told late.
        while let Some((_, told)) = watching.next(Duration::from_secs(4)) {
            replay.apply(&told);
            changes += 1;
        }
        assert!(changes > 200, "{changes}");
        replay.finish();
        watching.stop();
        let (expected, _) = look(&stage.mountpoint, true);
        if let Some(differences) = differences(&expected, &look(&copy, true).0) {
            panic!("seed {}, turn {turn}, alone {alone}: {differences}", stage.seed);
        }
        stage.unmount();
        stage.bench.assert_nothing_left();
    }
}

/// Opens `path` as `>` and `dd` and editors do, over and over.
fn overwrite(path: &Path, random: &mut Random) {
    for _ in 0..40 {
        match random.below(3) {
            0 => fs::write(path, vec![b'x'; random.below(70_000) as usize]).unwrap(),
            1 => {
                let file = File::options().write(true).open(path).unwrap();
                file.write_all_at(b"far", random.below(300_000)).unwrap();
            }
            _ => fs::set_permissions(path, PermissionsExt::from_mode(0o644)).unwrap(),
        }
    }
}

/// The kernel remembers sizes for as long as the mount lives, so it must never get a wrong one.
#[test]
fn a_file_that_programs_overwrite_at_once_has_the_size_it_has_on_the_disk() {
    if !can_mount("a_file_that_programs_overwrite_at_once_has_the_size_it_has_on_the_disk") {
        return;
    }
    for turn in [0, 1] {
        let stage = Stage::new(turn);
        for round in 0..40 {
            // One of the archive's at first, a new one later.
            let name = if round == 0 { "shared/big" } else { "made" };
            let path = stage.mountpoint.join(name);
            fs::write(&path, "start").unwrap();
            std::thread::scope(|scope| {
                for actor in 0..6 {
                    let (path, mut random) = (&path, Random(stage.seed * 1000 + round * 6 + actor));
                    scope.spawn(move || overwrite(path, &mut random));
                }
            });
            let [seen, on_disk] =
                [&path, &stage.upper.join(name)].map(|path| fs::metadata(path).unwrap().len());
            assert_eq!(seen, on_disk, "turn {turn}, round {round}");
            assert!(fs::read(&path).unwrap() == fs::read(stage.upper.join(name)).unwrap());
            fs::remove_file(&path).unwrap();
        }
        stage.unmount();
    }
}
