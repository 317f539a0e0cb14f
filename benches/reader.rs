//! Micro-benchmarks of the reader on archives in memory: a lookup, a listing, decoding a block with
//! each compressor, and a read of what is cached, which is planning and a copy.
//!
//! `cargo bench`; archives are made with mksquashfs, and compressors it lacks are left out aloud.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark fails by a panic")]

use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use thawfs::cache::MemoryBlob;
use thawfs::squashfs::{Archive, DirCursor, Inode, OpenOptions};
use thawfs::types::FileOffset;

/// Entries of the directory that is listed.
const ENTRIES: usize = 1000;
/// mksquashfs's block size, in bytes.
const BLOCK: usize = 128 << 10;
/// Blocks of the file that is read.
const BLOCKS: usize = 16;

/// A directory `many` of small files, and `text` of several blocks that compress like source code.
fn write_tree(tree: &Path) {
    std::fs::create_dir_all(tree.join("many")).unwrap();
    for number in 0..ENTRIES {
        std::fs::write(tree.join(format!("many/file{number:04}")), format!("{number}\n")).unwrap();
    }
    let mut text = Vec::with_capacity(BLOCKS * BLOCK);
    let mut number = 1u32;
    while text.len() < BLOCKS * BLOCK {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        text.extend_from_slice(format!("let value{} = call({number});\n", number >> 28).as_bytes());
    }
    text.truncate(BLOCKS * BLOCK);
    std::fs::write(tree.join("text"), text).unwrap();
}

/// The tree as an archive in memory; none where mksquashfs lacks the compressor.
fn pack(tree: &Path, compressor: &str) -> Option<Arc<MemoryBlob>> {
    let packed = tree.with_extension(compressor);
    let done = Command::new("mksquashfs")
        .args([tree, &packed])
        .args(["-comp", compressor, "-quiet", "-no-progress", "-noappend"])
        .status()
        .unwrap();
    done.success().then(|| Arc::new(MemoryBlob(std::fs::read(packed).unwrap().into())))
}

fn open(blob: &Arc<MemoryBlob>, options: OpenOptions) -> Archive {
    Archive::open(Arc::<MemoryBlob>::clone(blob), options).unwrap()
}

fn find(archive: &Archive, name: &[u8]) -> Inode {
    let root = archive.inode(archive.root()).unwrap();
    archive.inode(archive.lookup(&root, name).unwrap().unwrap().inode).unwrap()
}

fn metadata(criterion: &mut Criterion, blob: &Arc<MemoryBlob>) {
    let archive = open(blob, OpenOptions::default());
    let many = find(&archive, b"many");
    criterion.bench_function("lookup among 1,000", |bencher| {
        bencher.iter(|| archive.lookup(&many, black_box(b"file0777")).unwrap().unwrap());
    });
    let mut group = criterion.benchmark_group("readdir");
    group.throughput(Throughput::Elements(ENTRIES as u64));
    group.bench_function("1,000 entries", |bencher| {
        bencher.iter(|| {
            let entries = archive.read_dir(&many, DirCursor::START).unwrap();
            entries.map(|entry| entry.unwrap().name.len()).sum::<usize>()
        });
    });
    group.finish();
}

fn cached(criterion: &mut Criterion, blob: &Arc<MemoryBlob>) {
    let archive = open(blob, OpenOptions::default());
    let text = find(&archive, b"text");
    for (name, len) in [("4 KiB", 4096), ("128 KiB", BLOCK)] {
        archive.read(&text, FileOffset(0), len).unwrap();
        let mut group = criterion.benchmark_group("cached read");
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| archive.get(&text, black_box(FileOffset(0)), len).unwrap());
        });
        group.finish();
    }
}

/// With room for one decoded block, every block of a round is decoded anew.
fn decoding(criterion: &mut Criterion, name: &str, blob: &Arc<MemoryBlob>) {
    let archive = open(blob, OpenOptions { decoded_bytes: 0, ..OpenOptions::default() });
    let text = find(&archive, b"text");
    let mut group = criterion.benchmark_group("decode 128 KiB");
    group.throughput(Throughput::Bytes(BLOCK as u64));
    group.bench_function(name, |bencher| {
        let mut block = 0;
        bencher.iter(|| {
            block = (block + 1) % BLOCKS;
            archive.read(&text, FileOffset((block * BLOCK) as u64), BLOCK).unwrap()
        });
    });
    group.finish();
}

fn all(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    write_tree(&tree);
    for compressor in ["zstd", "lz4", "gzip", "lzo", "xz"] {
        let Some(blob) = pack(&tree, compressor) else {
            eprintln!("skipped: this mksquashfs has no {compressor}");
            continue;
        };
        if compressor == "zstd" {
            metadata(criterion, &blob);
            cached(criterion, &blob);
        }
        decoding(criterion, compressor, &blob);
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
