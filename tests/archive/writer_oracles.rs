//! Archives of ours must be read by unsquashfs, squashfs-tools-ng and backhand, and hold what the
//! tree did.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::process::Command;

use crate::support::corpus::{self, Numbers, is_root, varied_tree};
use crate::support::surrounding::skip;
use crate::writer_support::{Compare, assert_same_trees, memory_dir, options, pack};
use thawfs::squashfs::write::Compression;

const LZ4: Compression = Compression::Lz4;
const ZSTD: Compression = Compression::Zstd(3);

#[test]
fn unsquashfs_extracts_the_same_tree() {
    if !is_root("unsquashfs_extracts_the_same_tree") {
        return;
    }
    let tree = varied_tree();
    let run = |command: &mut Command| {
        let output = command.output().expect("unsquashfs is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let written = pack(tree.path(), &options(Compression::Zstd(15)));
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("tree");
    let mut extract = Command::new("unsquashfs");
    extract.args(["-no-progress", "-quiet", "-strict-errors", "-dest"]);
    run(extract.args([&target, &written.path()]));
    assert_same_trees(tree.path(), &target, Compare::Extracted);
    // Of the other compressors, blocks and a fragment.
    for compression in [LZ4, Compression::Gzip(6), Compression::Xz] {
        let written = pack(tree.path(), &options(compression));
        for file in ["file-1048577", "small-39"] {
            let mut print = Command::new("unsquashfs");
            let printed = run(print.arg("-cat").arg(written.path()).arg(file));
            assert!(
                printed == fs::read(tree.path().join(file)).unwrap(),
                "{compression:?}: {file}"
            );
        }
    }
}

/// What `unsquashfs -lln` says of an archive, but for the lengths of listings: these differ with
/// the order of the inodes.
fn listed(archive: &Path) -> Vec<Vec<String>> {
    let output = Command::new("unsquashfs").arg("-lln").arg(archive).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = output.stdout.split(|&byte| byte == b'\n');
    lines
        .map(|line| String::from_utf8_lossy(line).split_whitespace().map(str::to_owned).collect())
        .map(|mut words: Vec<String>| {
            if words.first().is_some_and(|mode| mode.starts_with('d')) {
                words.remove(2);
            }
            words
        })
        .collect()
}

#[test]
fn other_tools_see_what_they_see_in_archives_of_mksquashfs() {
    if !is_root("other_tools_see_what_they_see_in_archives_of_mksquashfs") {
        return;
    }
    let tree = varied_tree();
    let ours = pack(tree.path(), &options(ZSTD));
    let theirs = corpus::pack(tree.path(), &["-comp", "zstd"]);
    let (listing, expected) = (listed(&ours.path()), listed(&theirs.path()));
    assert!(listing.len() > 800, "{} lines", listing.len());
    assert_eq!(listing, expected);
    let mut differ = Command::new("sqfsdiff");
    differ.arg("-T").arg("-a").arg(ours.path()).arg("-b").arg(theirs.path());
    match differ.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            skip("comparing with sqfsdiff", "squashfs-tools-ng is not installed");
        }
        output => {
            let output = output.unwrap();
            assert!(output.status.code().unwrap() < 2, "{:?}", output.stderr);
            let said = String::from_utf8_lossy(&output.stdout);
            // mksquashfs has basic inodes for some files that are nothing but zeros.
            let different: Vec<&str> =
                said.lines().filter(|line| !line.ends_with(" has a basic type")).collect();
            assert_eq!(different, Vec::<&str>::new());
        }
    }
}

#[test]
fn backhand_reads_every_file() {
    let tree = memory_dir();
    let mut numbers = Numbers(5);
    let mut contents = BTreeMap::new();
    for len in [0, 1, 4095, 4096, 131_072, 131_073, 300_000] {
        let bytes = numbers.bytes(len);
        fs::create_dir_all(tree.path().join(format!("d/{len}"))).unwrap();
        fs::write(tree.path().join(format!("d/{len}/file")), &bytes).unwrap();
        contents.insert(format!("/d/{len}/file"), bytes);
    }
    for compression in [LZ4, ZSTD, Compression::Gzip(9), Compression::Xz] {
        let written = pack(tree.path(), &options(compression));
        let file = BufReader::new(File::open(written.path()).unwrap());
        let reader = backhand::FilesystemReader::from_reader(file).unwrap();
        let mut found = BTreeMap::new();
        for node in reader.files() {
            if let backhand::InnerNode::File(file) = &node.inner {
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut reader.file(file).reader(), &mut bytes).unwrap();
                found.insert(node.fullpath.to_str().unwrap().to_owned(), bytes);
            }
        }
        assert!(found == contents, "{compression:?}");
    }
}
