//! What packing costs, beside mksquashfs on the same tree. Run with `--release -- --ignored`, with
//! `THAWFS_TREE` naming the tree, and `THAWFS_ROUNDS` how often each is run (5).

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::writer_support::{options, write_to};
use thawfs::squashfs::write::Compression;

fn mksquashfs(tree: &Path, archive: &Path, compressor: &str) {
    let status = Command::new("mksquashfs")
        .args([tree, archive])
        .args(["-comp", compressor, "-noappend", "-quiet", "-no-progress"])
        .stdout(Stdio::null())
        .status();
    assert!(status.expect("mksquashfs is installed").success());
}

/// The size that an archive's superblock states: padding would hide small differences.
fn bytes_used(archive: &Path) -> u64 {
    let mut bytes = [0; 8];
    fs::File::open(archive).unwrap().read_exact_at(&mut bytes, 40).unwrap();
    u64::from_le_bytes(bytes)
}

/// Processor seconds that this process, and the children it waited for, took so far.
fn processor_time() -> (f64, f64) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // Counted in hundredths, whatever the kernel's own clock.
    let ticks = |field: usize| fields[field].parse::<f64>().unwrap() / 100.0;
    (ticks(11) + ticks(12), ticks(13) + ticks(14))
}

/// Most memory that this process had resident since it was asked for last, in KiB.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    let peak = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    fs::write("/proc/self/clear_refs", "5").unwrap();
    peak
}

#[test]
#[ignore = "a measurement: it takes minutes"]
fn no_slower_and_no_larger_than_mksquashfs() {
    let tree = PathBuf::from(std::env::var_os("THAWFS_TREE").expect("THAWFS_TREE names a tree"));
    let rounds = std::env::var("THAWFS_ROUNDS").map_or(5, |rounds| rounds.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("data.sqsh");
    let mut too_much = Vec::new();
    for (compression, name) in [(Compression::Lz4, "lz4"), (Compression::Zstd(15), "zstd")] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let (mut our_size, mut their_size) = (0, 0);
        peak_memory();
        let before = processor_time();
        for _ in 0..rounds {
            let start = Instant::now();
            mksquashfs(&tree, &archive, name);
            theirs.push(start.elapsed());
            their_size = bytes_used(&archive);
            fs::remove_file(&archive).unwrap();
            let start = Instant::now();
            let summary = write_to(&tree, &options(compression), &archive).unwrap();
            our_size = summary.bytes_used;
            assert_eq!(our_size, bytes_used(&archive));
            ours.push(start.elapsed());
            fs::remove_file(&archive).unwrap();
        }
        let after = processor_time();
        let processor =
            [after.0 - before.0, after.1 - before.1].map(|time| time / f64::from(rounds));
        let best = |times: &[Duration]| times.iter().min().unwrap().as_secs_f64();
        let (time, size) = (best(&ours) / best(&theirs), our_size as f64 / their_size as f64);
        println!("{name}: {ours:.2?} {our_size}, mksquashfs {theirs:.2?} {their_size}");
        println!(
            "{name}: time ratio {time:.2}, size ratio {size:.4}; processor {:.2} s and {:.2} s, \
             ratio {:.2}; {} MiB",
            processor[0],
            processor[1],
            processor[0] / processor[1],
            peak_memory() >> 10
        );
        if time > 1.0 || size > 1.02 {
            too_much.push(name);
        }
    }
    assert!(too_much.is_empty(), "{too_much:?}");
}
