//! Many programs at once on a mount leave what they leave on ext4. Eight actors, each a thread with
//! a generator of its own, do the same on a plain directory and on the mount of an archive of it:
//! each of their calls must say the same, and the trees must be the same at once, with nothing
//! remembered, after a remount, and under kernel overlayfs. `THAWFS_STRESS_SEED` and
//! `THAWFS_STRESS_OPS` (per actor) choose other runs.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by a panic"
)]

#[path = "stress/actor.rs"]
mod actor;
mod support;
#[path = "stress/tree.rs"]
mod tree;

use std::path::{Path, PathBuf};
use std::process::Command;

use actor::{ACTORS, Actor};
use support::mount::{Bench, can_mount};
use tree::{differences, look, write_start};

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().unwrap())
}

/// Lets all actors loose on `root`; gives what each of them saw.
fn stress(root: &Path, seed: u64, count: usize, tmpfile: bool) -> Vec<Vec<String>> {
    std::thread::scope(|scope| {
        let actors: Vec<_> = (0..ACTORS)
            .map(|id| scope.spawn(move || Actor::new(id, root, seed, tmpfile).run(count)))
            .collect();
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

#[test]
fn many_programs_at_once_leave_what_they_leave_on_ext4() {
    if !can_mount("many_programs_at_once_leave_what_they_leave_on_ext4") {
        return;
    }
    let seed = from_environment("THAWFS_STRESS_SEED", 1);
    let count = from_environment("THAWFS_STRESS_OPS", 400) as usize;
    let bench = Bench::new();
    let (plain, mountpoint, upper) =
        (bench.directory("plain"), bench.directory("mnt"), bench.path("upper"));
    write_start(&plain);
    let archive = bench.archive(&plain, "data.sqsh", &["-comp", "zstd"]);
    let mount = || {
        let (mount, option) = (Path::new("mount"), Path::new("--upper"));
        bench.ok(&[mount, &archive, &mountpoint, option, &upper]);
    };
    mount();
    let tmpfile = rustix::fs::open(
        &mountpoint,
        rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR,
        rustix::fs::Mode::RWXU,
    )
    .is_ok();
    let said = stress(&plain, seed, count, tmpfile);
    assert_same_calls(seed, &said, &stress(&mountpoint, seed, count, tmpfile));

    let (mut expected, _) = look(&plain, true);
    let check = |when: &str| {
        let (seen, numbers) = look(&mountpoint, true);
        if let Some(differences) = differences(&expected, &seen) {
            panic!("seed {seed}, {when}: {differences}");
        }
        numbers
    };
    let numbers = check("at once");
    let check_numbers = |when: &str| {
        if let Some(differences) = differences(&numbers, &check(when)) {
            panic!("seed {seed}, st_ino {when}: {differences}");
        }
    };
    std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    check_numbers("with nothing remembered");
    bench.ok(&[Path::new("unmount"), &mountpoint]);
    mount();
    check_numbers("after a remount");
    bench.ok(&[Path::new("unmount"), &mountpoint]);
    bench.assert_nothing_left();

    let kernel = Kernel::new(&bench, &archive, &upper, &bench.path(".upper.work"));
    let (mut seen, _) = look(&kernel.mounted[1], false);
    seen.retain(|path, _| expected.get(path).is_none_or(|seen| !seen.is_null_device()));
    expected.retain(|_, seen| !seen.is_null_device());
    if let Some(differences) = differences(&expected, &seen) {
        panic!("seed {seed}, under kernel overlayfs: {differences}");
    }
}
