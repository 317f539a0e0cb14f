//! What the fuzz targets do with their input. `tests/fuzz_replay.rs` runs the same functions over
//! `fuzz/seeds` on the stable toolchain.

use std::sync::Arc;

use bytes::Bytes;
use thawfs::backup::{VerifyProgress, verify};
use thawfs::cache::MemoryBlob;
use thawfs::squashfs::{Archive, DirCursor, Error, Inode, OpenOptions};
use thawfs::types::{FileKind, FileOffset, InodeNumber};

/// Files looked at in one archive.
const MAX_FILES: usize = 5_000;
/// Bytes read from one archive.
const MAX_BYTES: u64 = 4 << 20;

fn open(archive: &[u8]) -> Result<Archive, Error> {
    let blob = MemoryBlob(Bytes::copy_from_slice(archive));
    let options =
        OpenOptions { decoded_bytes: 1 << 20, metadata_bytes: 1 << 20, resident_bytes: 1 << 20 };
    Archive::open(Arc::new(blob), options)
}

/// Opens the input, which checks the superblock, the compressor's options and the tables' indexes.
pub fn superblock(input: &[u8]) {
    if let Ok(archive) = open(input) {
        assert!(archive.superblock().bytes_used <= input.len() as u64);
    }
}

/// Reads all of the input as an archive, within limits.
pub fn archive(input: &[u8]) {
    if let Ok(archive) = open(input) {
        read_all(&archive);
        verify_all(&archive);
    }
}

/// Reads an archive with sound tables around the input's inodes, listings and attributes, which
/// are stored as they are: there is no compression for a mutation to stumble over. The input is
/// three parts, the first two after their length as a little-endian `u16`.
pub fn metadata(input: &[u8]) {
    if let Ok(archive) = open(&assemble(input)) {
        read_all(&archive);
        verify_all(&archive);
    }
}

/// Verifies it; what is found whole can be listed to its end.
fn verify_all(archive: &Archive) {
    if verify(archive, 2, &VerifyProgress::default()).is_ok() {
        assert!(archive.walk().all(|entry| entry.is_ok()));
    }
}

fn read_all(archive: &Archive) {
    let mut left = MAX_BYTES;
    for entry in archive.walk().take(MAX_FILES) {
        let Ok(entry) = entry else { continue };
        let inode = entry.inode;
        if archive.xattrs(&inode).is_ok() {
            for name in archive.xattr_names(&inode).expect("the list was read a moment ago") {
                let value = archive.xattr(&inode, &name);
                assert!(value.expect("it was read a moment ago").is_some());
            }
        }
        match inode.kind {
            FileKind::Directory => list(archive, &inode),
            FileKind::Regular => left -= read_file(archive, &inode, left),
            FileKind::Symlink => {
                if let Ok(target) = archive.read_link(&inode) {
                    assert!(target.len() <= 4095);
                }
            }
            _ => assert!(archive.read(&inode, FileOffset(0), 1).is_err()),
        }
    }
    for number in 0..10 {
        let _found_or_corrupt = archive.inode_by_number(InodeNumber(number));
    }
}

/// Checks that a listing can be gone on with from any place.
fn list(archive: &Archive, directory: &Inode) {
    let Ok(entries) = archive.read_dir(directory, DirCursor::START) else { return };
    let entries: Vec<_> = entries.map_while(Result::ok).take(50).collect();
    for pair in entries.windows(2) {
        let [first, second] = pair else { continue };
        assert!(first.next < second.next);
        let _found_or_corrupt = archive.lookup(directory, &first.name);
        let _next_or_corrupt =
            archive.read_dir(directory, first.next).map(|mut entries| entries.next());
    }
}

/// Checks that what is read fits the size, and is the same from memory. Returns how much that was.
fn read_file(archive: &Archive, file: &Inode, most: u64) -> u64 {
    let mut at = 0;
    while at < most {
        let _place_or_corrupt = archive.seek_data(file, FileOffset(at));
        let _place_or_corrupt = archive.seek_hole(file, FileOffset(at));
        let len = 100_000.min(most - at);
        match archive.read(file, FileOffset(at), len as usize) {
            Ok(bytes) => {
                assert_eq!(bytes.len() as u64, len.min(file.size - at));
                if let Some(cached) = archive.get(file, FileOffset(at), len as usize) {
                    assert_eq!(cached, bytes);
                }
                at += bytes.len() as u64;
                if bytes.is_empty() {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    // The last bytes of a file that claims to be huge.
    let _bytes_or_corrupt = archive.read(file, FileOffset(file.size.saturating_sub(10)), 100);
    at
}

/// An archive from its inodes, listings and attributes.
fn assemble(input: &[u8]) -> Vec<u8> {
    let (inodes, rest) = part(input);
    let (listings, attributes) = part(rest);
    let mut archive = vec![0; 96];
    // Data that block lists and the fragment point at.
    archive.extend([b'd'; 4096]);
    let inode_table = archive.len();
    stored(&mut archive, inodes);
    let directory_table = archive.len();
    stored(&mut archive, listings);
    let fragments = archive.len();
    stored(&mut archive, &[&96u64.to_le_bytes()[..], &4096u32.to_le_bytes(), &[0; 4]].concat());
    let fragment_table = archive.len();
    archive.extend((fragments as u64).to_le_bytes());
    let ids = archive.len();
    stored(&mut archive, &[0; 8]);
    let id_table = archive.len();
    archive.extend((ids as u64).to_le_bytes());
    let xattrs = archive.len();
    stored(&mut archive, attributes);
    let xattr_ids = archive.len();
    // Four inodes' lists, at the start of the attributes and 16, 32 and 48 bytes on.
    let lists = (0..4u64)
        .flat_map(|list| [list * 16, 4 | 100 << 32].into_iter().flat_map(u64::to_le_bytes));
    stored(&mut archive, &lists.collect::<Vec<_>>());
    let xattr_table = archive.len();
    archive.extend((xattrs as u64).to_le_bytes());
    archive.extend([4, 0, 0, 0, 0, 0, 0, 0]);
    archive.extend((xattr_ids as u64).to_le_bytes());

    let words = [0x7371_7368u32, 10, 0, 4096, 1].map(u32::to_le_bytes).concat();
    let halves = [1u16, 12, 0, 2, 4, 0].map(u16::to_le_bytes).concat();
    // The root is the inode at the table's start.
    let longs = [
        0,
        archive.len() as u64,
        id_table as u64,
        xattr_table as u64,
        inode_table as u64,
        directory_table as u64,
        fragment_table as u64,
        u64::MAX,
    ];
    let superblock = [words, halves, longs.map(u64::to_le_bytes).concat()].concat();
    archive.splice(..96, superblock);
    archive
}

/// The bytes that a length announces, and those behind them.
fn part(input: &[u8]) -> (&[u8], &[u8]) {
    match input.split_first_chunk() {
        Some((&len, rest)) => rest.split_at(rest.len().min(u16::from_le_bytes(len).into())),
        None => (&[], &[]),
    }
}

/// Appends metadata blocks that hold `bytes`, at least one.
fn stored(archive: &mut Vec<u8>, bytes: &[u8]) {
    let bytes = if bytes.is_empty() { &[0] } else { bytes };
    for block in bytes.chunks(8192) {
        archive.extend((block.len() as u16 | 0x8000).to_le_bytes());
        archive.extend(block);
    }
}
