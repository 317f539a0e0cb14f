//! Runs the fuzz targets, on the stable toolchain, over the inputs that are kept.

use crate::targets;
use std::fs;
use std::path::Path;

/// Runs `target` over its seeds, which must end by themselves and without a panic.
fn replay(name: &str, target: fn(&[u8])) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
    let mut replayed = 0;
    for seed in fs::read_dir(&seeds).unwrap() {
        let path = seed.unwrap().path();
        println!("{path:?}");
        target(&fs::read(&path).unwrap());
        replayed += 1;
    }
    assert!(replayed > 0, "no seeds in {seeds:?}");
}

#[test]
fn superblock() {
    replay("superblock", targets::superblock);
}

#[test]
fn metadata() {
    replay("metadata", targets::metadata);
}

#[test]
fn archive() {
    replay("archive", targets::archive);
}
