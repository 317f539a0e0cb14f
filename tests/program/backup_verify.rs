//! Verifying archives: whole ones pass, damage is found where it lies first, and what passes can be
//! unpacked by unsquashfs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;

use crate::support::corpus::{Numbers, varied_tree};
use crate::support::mount::{Bench, big_contents};
use crate::support::s3::{ACCESS_KEY, Config, S3Server, SECRET_KEY};
use serde_json::{Value, json};
use thawfs::backup::{SourceRequest, Verified, VerifyProgress, verify};
use thawfs::failure::{Code, Failure};

const ID: &str = "0f0f0f0f-1111-4222-8333-444444444444";

fn verified(archive: &Path) -> Result<Verified, Failure> {
    let opened = SourceRequest::new(archive.to_str().unwrap()).open()?;
    let progress = VerifyProgress::default();
    let verified = verify(&opened.archive, 4, &progress)?;
    assert_eq!(progress.bytes.load(Ordering::Relaxed), verified.bytes);
    assert_eq!(progress.total.load(Ordering::Relaxed), verified.bytes);
    Ok(verified)
}

/// Data blocks, a fragment, a long directory, symlinks and hard links. All of it compresses, so
/// that gzip's checksums cover it.
fn small_tree(bench: &Bench) -> PathBuf {
    let tree = bench.directory("tree");
    fs::write(tree.join("big"), &big_contents()[..250_000]).unwrap();
    fs::write(tree.join("later"), &big_contents()[700_000..1_000_000]).unwrap();
    fs::write(tree.join("tail"), &big_contents()[500_000..510_000]).unwrap();
    fs::hard_link(tree.join("tail"), tree.join("tail-too")).unwrap();
    std::os::unix::fs::symlink("tail", tree.join("link")).unwrap();
    let long = bench.directory("tree/long");
    for n in 0..400 {
        fs::write(long.join(format!("a-rather-long-name-for-a-file-{n:05}")), "").unwrap();
    }
    tree
}

/// Contents of all files below a directory.
fn contents(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    walkdir::WalkDir::new(root)
        .into_iter()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| {
            let path = entry.path().strip_prefix(root).unwrap().to_owned();
            (path, fs::read(entry.path()).unwrap())
        })
        .collect()
}

#[test]
fn whole_archives_pass_and_their_inodes_are_counted() {
    let (bench, tree) = (Bench::new(), varied_tree());
    for flags in [
        &["-comp", "gzip", "-b", "4096"][..],
        &["-comp", "zstd"],
        &["-comp", "lz4", "-no-exports", "-no-fragments", "-no-xattrs"],
        &["-comp", "xz", "-noI", "-noX", "-noId", "-always-use-fragments"],
        &["-comp", "lzo", "-no-duplicates", "-b", "1M", "-nopad"],
    ] {
        let archive = bench.archive(tree.path(), "data.sqsh", flags);
        let verified = verified(&archive).unwrap();
        let theirs = Command::new("unsquashfs").arg("-s").arg(&archive).output().unwrap();
        let theirs = String::from_utf8(theirs.stdout).unwrap();
        let inodes = format!("Number of inodes {}\n", verified.inodes);
        assert!(theirs.contains(&inodes), "{flags:?}: {inodes} {theirs}");
        let fragments = theirs.split_once("Number of fragments ").unwrap().1;
        let fragments: u64 = fragments.lines().next().unwrap().parse().unwrap();
        assert!(verified.blocks > fragments, "{flags:?}: {verified:?}");
        assert!(verified.bytes < fs::metadata(&archive).unwrap().len(), "{flags:?}");
    }
}

#[test]
fn damage_is_found_where_it_lies_first_with_a_file_it_concerns() {
    let bench = Bench::new();
    let tree = small_tree(&bench);
    let archive = bench.archive(&tree, "data.sqsh", &["-comp", "gzip", "-b", "64K"]);
    let whole = fs::read(&archive).unwrap();
    let opened = SourceRequest::new(archive.to_str().unwrap()).open().unwrap();
    let superblock = *opened.archive.superblock();
    let find = |path: &[u8]| thawfs::backup::find(&opened.archive, path).unwrap();
    let blocks = |path: &[u8]| {
        let mut blocks = Vec::new();
        opened.archive.data_blocks(&find(path), |block| blocks.push(block.at().0)).unwrap();
        blocks
    };
    let (big, later, tail) = (blocks(b"big"), blocks(b"later"), blocks(b"tail"));
    // Which bytes are flipped, and what is said of them. Metadata blocks have a header of two bytes.
    let second = |at: u64| at + 20;
    let inodes = superblock.inode_table.0;
    let directories = superblock.directory_table.0;
    for (flips, words) in [
        (vec![second(big[0])], format!("data block at byte {}: ", big[0])),
        (vec![second(big[0])], "/big".to_owned()),
        (vec![second(later[2]), second(later[1])], format!("data block at byte {}", later[1])),
        (vec![second(later[2]), second(later[1])], "/later".to_owned()),
        (vec![second(big[3]), second(later[0])], format!("at byte {}", big[3].min(later[0]))),
        (vec![second(tail[0])], format!("data block at byte {}", tail[0])),
        (vec![second(tail[0]), second(inodes)], "/tail".to_owned()),
        (vec![second(inodes)], format!("inode at byte {inodes}")),
        (vec![second(directories)], format!("directory at byte {directories}")),
        (vec![second(directories)], "/long".to_owned()),
    ] {
        let mut bytes = whole.clone();
        for &at in &flips {
            bytes[at as usize] ^= 0xff;
        }
        let damaged = bench.path("damaged.sqsh");
        fs::write(&damaged, bytes).unwrap();
        let failure = verified(&damaged).unwrap_err();
        assert_eq!(failure.code, Code::Corrupt, "{failure}");
        assert!(failure.message.contains(&words), "{words}: {failure}");
    }
}

#[test]
fn what_passes_can_be_unpacked_whatever_byte_is_flipped() {
    let bench = Bench::new();
    let tree = small_tree(&bench);
    let archive = bench.archive(&tree, "data.sqsh", &["-comp", "gzip", "-b", "64K", "-nopad"]);
    let (whole, packed) = (fs::read(&archive).unwrap(), contents(&tree));
    let mut numbers = Numbers(7);
    // The superblock, then places all over, then the tables at the end, which are not compressed.
    let places = (0..96).step_by(3);
    let places = places.chain((0..60).map(|_| numbers.below(whole.len() as u64) as usize));
    let places: Vec<usize> = places.chain(whole.len() - 30..whole.len()).collect();
    let (mut found, mut passed) = (0, 0);
    for at in places {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        let damaged = bench.path("damaged.sqsh");
        fs::write(&damaged, bytes).unwrap();
        match verified(&damaged) {
            Err(failure) => {
                let code = failure.code;
                let told = [Code::Corrupt, Code::NotAnArchive, Code::Unsupported].contains(&code);
                assert!(told, "byte {at}: {failure}");
                found += 1;
            }
            Ok(_) => {
                let into = bench.path("into");
                let unpacked = Command::new("unsquashfs")
                    .args(["-quiet", "-no-progress", "-no-xattrs", "-strict-errors", "-d"])
                    .args([&into, &damaged])
                    .output()
                    .unwrap();
                let text = String::from_utf8_lossy(&unpacked.stderr);
                assert!(unpacked.status.success(), "byte {at} passed: {text}");
                assert_eq!(contents(&into), packed, "byte {at} passed");
                fs::remove_dir_all(&into).unwrap();
                passed += 1;
            }
        }
    }
    assert!(found > 60 && passed > 0, "{found} found, {passed} passed");
}

#[test]
fn metadata_that_contradicts_itself_is_damage() {
    let bench = Bench::new();
    let tree = small_tree(&bench);
    let archive = bench.archive(&tree, "data.sqsh", &["-comp", "gzip", "-noI", "-nopad"]);
    let whole = fs::read(&archive).unwrap();
    let opened = SourceRequest::new(archive.to_str().unwrap()).open().unwrap();
    let superblock = *opened.archive.superblock();
    // All stored as they are, so a place in them is a place in the file.
    let inode = |path: &[u8]| {
        let at = thawfs::backup::find(&opened.archive, path).unwrap().reference;
        let table = superblock.inode_table.0 + at.block() + 2;
        (table + u64::from(at.offset())) as usize
    };
    let word = |at: usize| u64::from_le_bytes(whole[at..at + 8].try_into().unwrap()) as usize;
    let export = word(superblock.export_table.unwrap().0 as usize) + 2;
    let inodes = superblock.inode_table.0 as usize;
    let name = |from: usize, name: &[u8]| {
        from + whole[from..].windows(name.len()).position(|found| found == name).unwrap()
    };
    let directories = superblock.directory_table.0 as usize;
    let entry = name(directories, b"a-rather-long-name-for-a-file-00101");
    let index = name(inodes, b"a-rather-long-name-for-a-file");
    assert!(index < directories, "the directory has no index");
    for (what, at, words) in [
        ("number of an inode", inode(b"link") + 12, "/link"),
        ("number of an inode", inode(b"link") + 12, "its inode is"),
        ("parent of a directory", inode(b"long") + 28, "in another directory than it says"),
        ("name in a directory", entry, "comes too late, or twice"),
        ("start in an index", index - 8, "/long"),
        ("entry of the export table", export + 8, "export table at byte"),
        ("count of inodes", 4, "inodes where 406 are in the tree"),
    ] {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        let damaged = bench.path("damaged.sqsh");
        fs::write(&damaged, bytes).unwrap();
        let failure = verified(&damaged).unwrap_err();
        assert_eq!(failure.code, Code::Corrupt, "{what}: {failure}");
        assert!(failure.message.contains(words), "{what}: {failure}");
    }
}

#[test]
fn an_archive_cut_short_anywhere_fails() {
    let bench = Bench::new();
    let tree = small_tree(&bench);
    let archive = bench.archive(&tree, "data.sqsh", &["-comp", "zstd", "-nopad"]);
    let whole = fs::read(&archive).unwrap();
    for len in [0, 50, 96, 97, 5000, whole.len() / 2, whole.len() - 1] {
        fs::write(&archive, &whole[..len]).unwrap();
        let failure = verified(&archive).unwrap_err();
        let told = matches!(failure.code, Code::Corrupt | Code::NotAnArchive);
        assert!(told, "{len} bytes: {failure}");
    }
}

#[test]
fn backups_and_archives_are_verified_from_the_command_line() {
    let bench = Bench::new();
    let tree = small_tree(&bench);
    let packed = fs::read(bench.archive(&tree, "packed.sqsh", &["-comp", "zstd"])).unwrap();
    let backup = bench.directory(&format!("buckets/box/backups/{ID}"));
    let write = |archive: &[u8], size: usize| {
        let metadata = json!({
            "id": ID, "dir": "/w", "name": null, "sizeBytes": size, "ttl": 1,
            "createdAt": "2026-01-02T03:04:05.678Z",
        });
        fs::write(backup.join("data.sqsh"), archive).unwrap();
        fs::write(backup.join("meta.json"), metadata.to_string()).unwrap();
    };
    let server = S3Server::start(Config::new(bench.path("buckets"))).unwrap();
    let local = format!("file://{}", bench.path("buckets/box").display());
    let run = |bucket: &str, targets: &[&str]| {
        let output = bench
            .thawfs()
            .env("AWS_ENDPOINT_URL", server.url())
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .args(["verify", "--json", "--bucket", bucket])
            .args(targets)
            .output()
            .unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Value> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (output.status.code().unwrap(), lines)
    };
    let missing = ID.replace('0', "1");
    let mut flipped = packed.clone();
    flipped[100] ^= 0xff;
    for bucket in ["s3://box", &local] {
        write(&packed, packed.len());
        let source = format!("{bucket}/backups/{ID}");
        let (code, told) = run(bucket, &[ID, &source]);
        assert_eq!(code, 0, "{told:?}");
        assert_eq!(told[0]["target"], ID);
        assert_eq!(told[0]["inodes"], 406);
        assert_eq!(told[1]["bytes"], told[0]["bytes"]);

        // The others are verified all the same.
        let (code, told) = run(bucket, &[&missing, ID]);
        assert_eq!((code, told.len()), (16, 2), "{told:?}");
        assert_eq!(
            (&told[0]["inodes"], &told[1]["code"]),
            (&json!(406), &json!("BACKUP_NOT_FOUND"))
        );

        for (archive, size, words) in [
            (&packed[..], packed.len() + 1, "bytes, not"),
            (&packed[..packed.len() - 5000], packed.len(), "bytes, not"),
            (&flipped, packed.len(), "data block at byte 96"),
        ] {
            write(archive, size);
            let (code, told) = run(bucket, &[ID]);
            assert_eq!((code, &told[0]["code"]), (6, &json!("CORRUPT")), "{told:?}");
            let message = told[0]["message"].as_str().unwrap();
            assert!(message.contains(words) && message.contains(ID), "{message}");
        }
        fs::remove_file(backup.join("meta.json")).unwrap();
        let (code, told) = run(bucket, &[ID]);
        assert_eq!(code, 16, "{told:?}");
        assert!(told[0]["message"].as_str().unwrap().contains("metadata of backup"), "{told:?}");
    }
}
