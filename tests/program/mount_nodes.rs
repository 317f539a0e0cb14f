//! How many files a mount has the kernel remember, and what becomes of those that it forgets.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::mount::{Bench, can_mount};
use crate::support::surrounding::skip;

const DIRECTORIES: usize = 40;
const FILES: usize = 100;

/// A bench with an archive of 4,000 files, and a mountpoint.
fn prepared() -> (Bench, PathBuf, PathBuf) {
    let bench = Bench::new();
    let tree = bench.directory("tree");
    for directory in 0..DIRECTORIES {
        let directory = tree.join(format!("directory-{directory}"));
        fs::create_dir(&directory).unwrap();
        for file in 0..FILES {
            let name = format!("a file with a name that is not short {file}");
            let name = if file % 2 == 0 { format!("{file}") } else { name };
            fs::write(directory.join(&name), format!("{name} in {}", directory.display())).unwrap();
        }
        fs::hard_link(directory.join("0"), directory.join("another name")).unwrap();
    }
    let archive = bench.archive(&tree, "data.sqsh", &["-comp", "zstd"]);
    let mountpoint = bench.directory("mnt");
    (bench, archive, mountpoint)
}

/// Inode number, links and contents of every file.
fn walk(root: &Path) -> BTreeMap<PathBuf, (u64, u64, String)> {
    let mut found = BTreeMap::new();
    for directory in fs::read_dir(root).unwrap() {
        for file in fs::read_dir(directory.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let about = fs::symlink_metadata(&path).unwrap();
            let contents = fs::read_to_string(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().to_owned();
            found.insert(name, (about.ino(), about.nlink(), contents));
        }
    }
    found
}

fn nodes(bench: &Bench, mountpoint: &Path) -> u64 {
    let said = bench.ok(&["status", mountpoint.to_str().unwrap(), "--json"]);
    let status: serde_json::Value = serde_json::from_str(&said).unwrap();
    status[0]["nodes"].as_u64().unwrap()
}

/// Whether the kernel can be asked to forget files, which it can since 6.18.
fn can_prune(test: &str) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-', '\n']).map_while(|number| number.parse().ok());
    let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
    if version < (6, 18) {
        skip(test, &format!("Linux {} cannot be asked to forget files", release.trim()));
    }
    version >= (6, 18)
}

#[test]
fn the_kernel_forgets_files_beyond_the_limit_and_none_is_lost() {
    const TEST: &str = "the_kernel_forgets_files_beyond_the_limit_and_none_is_lost";
    if !can_mount(TEST) || !can_prune(TEST) {
        return;
    }
    let (bench, archive, mountpoint) = prepared();
    let (archive, mount) = (archive.to_str().unwrap(), mountpoint.to_str().unwrap());
    bench.ok(&["mount", "-o", "max_nodes=500", archive, mount]);

    let at = |name: &str| mountpoint.join(name);
    // In use: open to be read, open to be written, and a directory.
    let mut read = File::open(at("directory-1/2")).unwrap();
    let mut written = File::options().append(true).open(at("directory-2/2")).unwrap();
    let directory = File::open(at("directory-3")).unwrap();
    // Changed: in every way that leaves a mark in the upper.
    fs::write(at("directory-4/2"), "changed").unwrap();
    fs::write(at("directory-4/new"), "new").unwrap();
    fs::rename(at("directory-5"), at("moved")).unwrap();
    fs::remove_file(at("directory-6/2")).unwrap();
    fs::write(at("directory-7/0"), "changed through one of its names").unwrap();

    let first = walk(&mountpoint);
    assert_eq!(first.len(), DIRECTORIES * (FILES + 1));
    for round in 0..3 {
        let again = walk(&mountpoint);
        assert!(again == first, "walk {round} differs");
    }
    // The kernel tells of what it forgot when it has time to.
    let deadline = Instant::now() + Duration::from_secs(20);
    while nodes(&bench, &mountpoint) > 1000 {
        assert!(Instant::now() < deadline, "{} nodes are left", nodes(&bench, &mountpoint));
        std::thread::sleep(Duration::from_millis(20));
    }

    let mut contents = String::new();
    read.read_to_string(&mut contents).unwrap();
    assert_eq!(contents, first[Path::new("directory-1/2")].2);
    std::io::Write::write_all(&mut written, b", and more").unwrap();
    let more = format!("{}, and more", first[Path::new("directory-2/2")].2);
    assert_eq!(fs::read_to_string(at("directory-2/2")).unwrap(), more);
    let way = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    assert_eq!(fs::read_link(&way).unwrap(), at("directory-3"), "its name is lost");
    assert_eq!(fs::read_dir(&way).unwrap().count(), FILES + 1);
    for (name, contents) in [
        ("directory-4/2", "changed"),
        ("directory-4/new", "new"),
        ("directory-7/another name", "changed through one of its names"),
    ] {
        assert_eq!(first[Path::new(name)].2, contents);
    }
    assert!(first.contains_key(Path::new("moved/2")));
    assert!(!first.contains_key(Path::new("directory-6/2")));

    drop((read, written, directory));
    bench.ok(&["unmount", mount]);
    bench.assert_nothing_left();
}

/// How often somebody has had the kernel drop what it remembers.
fn drops() -> String {
    let counters = fs::read_to_string("/proc/vmstat").unwrap();
    counters.lines().filter(|line| line.starts_with("drop_")).collect()
}

#[test]
fn below_the_limit_the_kernel_remembers_all() {
    if !can_mount("below_the_limit_the_kernel_remembers_all") {
        return;
    }
    let (bench, archive, mountpoint) = prepared();
    bench.ok(&["mount", archive.to_str().unwrap(), mountpoint.to_str().unwrap()]);
    // Other tests drop what the kernel remembers of everybody's: then it is looked at again.
    let mut looks = 0..20;
    let (known, all) = loop {
        if looks.next().is_none() {
            skip("below_the_limit_the_kernel_remembers_all", "somebody drops what it remembers");
            return;
        }
        let before = drops();
        let inodes: std::collections::BTreeSet<u64> =
            walk(&mountpoint).values().map(|about| about.0).collect();
        let known = nodes(&bench, &mountpoint);
        if drops() == before {
            // The root, and the directories.
            break (known, (1 + DIRECTORIES + inodes.len()) as u64);
        }
    };
    assert_eq!(known, all);
    bench.ok(&["unmount", mountpoint.to_str().unwrap()]);
    bench.assert_nothing_left();
}
