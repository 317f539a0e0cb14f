//! Every archive here must look to us as it looks through the kernel's own mount, and be found whole.

use std::path::Path;
use std::sync::Arc;

use crate::corpus_compare::assert_same;
use crate::support::corpus::{self, KernelMount, Packed, is_root, pack};
use thawfs::backup::{VerifyProgress, verify};
use thawfs::cache::FileBlob;
use thawfs::squashfs::{Archive, OpenOptions};

const BLOCKS: &[&str] = &["4K", "128K", "1M"];

fn open(archive: &Path, offset: u64, options: OpenOptions) -> Archive {
    let blob = FileBlob::open(archive, offset).unwrap();
    Archive::open(Arc::new(blob), options).unwrap()
}

fn assert_kernel_agrees(packed: &Packed, offset: u64) -> usize {
    let archive = open(&packed.path(), offset, OpenOptions::default());
    let mount = KernelMount::new(&packed.path(), offset).unwrap();
    verify(&archive, 2, &VerifyProgress::default()).unwrap();
    assert_same(&archive, mount.path())
}

fn check_compressor(compressor: &str, blocks: &[&str], options: &[&[&str]]) {
    if !is_root(compressor) {
        return;
    }
    let tree = corpus::varied_tree();
    for block in blocks {
        for options in options {
            let args = [&["-comp", compressor, "-b", *block], *options].concat();
            let files = assert_kernel_agrees(&pack(tree.path(), &args), 0);
            assert!(files > 800, "{args:?}: only {files} files");
        }
    }
}

#[test]
fn gzip_at_every_block_size() {
    check_compressor("gzip", BLOCKS, &[&[]]);
}

#[test]
fn lzo_at_every_block_size() {
    check_compressor("lzo", BLOCKS, &[&["-Xalgorithm", "lzo1x_1"], &["-Xcompression-level", "3"]]);
}

#[test]
fn lz4_at_every_block_size() {
    check_compressor("lz4", BLOCKS, &[&[], &["-Xhc"]]);
}

#[test]
fn xz_at_every_block_size() {
    check_compressor("xz", &["4K"], &[&[]]);
    // The kernel refuses what mksquashfs makes of a filter at 4 KiB: it takes the block size for
    // the dictionary's, which metadata then exceeds.
    check_compressor("xz", &["8K", "128K", "1M"], &[&["-Xbcj", "x86"]]);
}

#[test]
fn zstd_at_every_block_size() {
    check_compressor("zstd", BLOCKS, &[&["-Xcompression-level", "1"]]);
}

#[test]
fn every_flag_that_shapes_an_archive() {
    if !is_root("every_flag_that_shapes_an_archive") {
        return;
    }
    let tree = corpus::varied_tree();
    let cases: &[&[&str]] = &[
        &["-comp", "zstd", "-Xcompression-level", "1", "-noI"],
        &["-comp", "lz4", "-noD"],
        &["-comp", "lz4", "-noF"],
        &["-comp", "lz4", "-noX", "-noId"],
        &["-comp", "lz4", "-noI", "-noD", "-noF", "-noX"],
        &["-comp", "lz4", "-no-fragments"],
        &["-comp", "lz4", "-always-use-fragments"],
        &["-comp", "lz4", "-no-duplicates"],
        &["-comp", "lz4", "-no-exports"],
        &["-comp", "lz4", "-no-xattrs"],
        &["-comp", "lz4", "-no-sparse"],
        &["-comp", "lz4", "-all-root"],
        &["-comp", "xz", "-b", "256K", "-Xdict-size", "75%"],
        &[
            "-comp",
            "gzip",
            "-Xcompression-level",
            "2",
            "-Xwindow-size",
            "10",
            "-Xstrategy",
            "huffman_only",
        ],
    ];
    for args in cases {
        let files = assert_kernel_agrees(&pack(tree.path(), args), 0);
        assert!(files > 800, "{args:?}: only {files} files");
    }
}

#[test]
fn an_archive_at_an_offset_in_a_file() {
    if !is_root("an_archive_at_an_offset_in_a_file") {
        return;
    }
    let packed = pack(corpus::varied_tree().path(), &["-comp", "lz4", "-offset", "4096"]);
    assert!(assert_kernel_agrees(&packed, 4096) > 800);
}

#[test]
fn an_archive_without_padding() {
    if !is_root("an_archive_without_padding") {
        return;
    }
    let packed = pack(corpus::varied_tree().path(), &["-comp", "lz4", "-nopad"]);
    let archive = open(&packed.path(), 0, OpenOptions::default());
    let size = std::fs::metadata(packed.path()).unwrap().len();
    assert_eq!(size, archive.superblock().bytes_used);
    // A loop device has whole sectors only, so what the kernel mounts is padded.
    let file = std::fs::File::options().write(true).open(packed.path()).unwrap();
    file.set_len(size.next_multiple_of(4096)).unwrap();
    let mount = KernelMount::new(&packed.path(), 0).unwrap();
    assert!(assert_same(&archive, mount.path()) > 800);
}

#[test]
fn caches_of_one_block_and_no_resident_metadata_change_nothing() {
    if !is_root("caches_of_one_block_and_no_resident_metadata_change_nothing") {
        return;
    }
    let packed = pack(corpus::varied_tree().path(), &["-comp", "lz4", "-b", "16K"]);
    let archive = open(
        &packed.path(),
        0,
        OpenOptions { decoded_bytes: 0, metadata_bytes: 0, resident_bytes: 0 },
    );
    let mount = KernelMount::new(&packed.path(), 0).unwrap();
    assert!(assert_same(&archive, mount.path()) > 800);
}

#[test]
fn a_file_of_more_than_four_gigabytes() {
    if !is_root("a_file_of_more_than_four_gigabytes") {
        return;
    }
    // Blocks of 4 KiB make block lists as long as those of 200 GiB at the usual 128 KiB.
    let packed = pack(corpus::huge_tree().path(), &["-comp", "lz4", "-b", "4K"]);
    assert_eq!(assert_kernel_agrees(&packed, 0), 3);
}

#[test]
fn seventy_thousand_entries_and_subdirectories() {
    if !is_root("seventy_thousand_entries_and_subdirectories") {
        return;
    }
    let packed = pack(corpus::wide_tree().path(), &["-comp", "lz4"]);
    assert_eq!(assert_kernel_agrees(&packed, 0), 140_003);
}

#[test]
fn sixty_four_thousand_owners() {
    if !is_root("sixty_four_thousand_owners") {
        return;
    }
    let packed = pack(corpus::many_owners_tree().path(), &["-comp", "lz4"]);
    assert_eq!(assert_kernel_agrees(&packed, 0), 64_001);
}

#[test]
fn every_inode_is_found_by_its_number() {
    let packed = pack(corpus::varied_tree().path(), &["-comp", "lz4"]);
    let archive = open(&packed.path(), 0, OpenOptions::default());
    for entry in archive.walk() {
        let inode = entry.unwrap().inode;
        assert_eq!(archive.inode_by_number(inode.number).unwrap(), Some(inode.reference));
    }
    let inodes = archive.superblock().inodes;
    for number in [0, inodes + 1, u32::MAX] {
        assert_eq!(archive.inode_by_number(thawfs::types::InodeNumber(number)).unwrap(), None);
    }
}
