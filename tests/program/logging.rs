//! The log of a mount: a request of the kernel is followed to the store and back.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::support::mount::{Bench, can_mount};
use crate::support::s3::{Config, S3Server};

/// The number that follows `before` in a line.
fn number(line: &str, before: &str) -> Option<u64> {
    let digits = line.split_once(before)?.1.trim_start();
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[test]
fn a_request_to_the_store_names_the_read_that_caused_it() {
    if !can_mount("a_request_to_the_store_names_the_read_that_caused_it") {
        return;
    }
    let bench = Bench::new();
    let tree = bench.directory("tree");
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(8 << 20)
    .collect();
    fs::write(tree.join("a \u{1b}[31mfile"), &noise).unwrap();
    bench.directory("buckets/box");
    bench.archive(&tree, "buckets/box/data.sqsh", &[]);
    let server =
        S3Server::start(Config { keys: None, ..Config::new(bench.path("buckets")) }).unwrap();
    let url = format!("{}/box/data.sqsh?X-Secret=hunter2", server.url());
    let mountpoint = bench.directory("mnt");
    let output = bench
        .thawfs()
        .args(["mount", &url, mountpoint.to_str().unwrap(), "--anonymous", "--read-only"])
        .env("THAWFS_LOG", "debug")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mount = fs::read_dir(bench.state_dir().join("mounts")).unwrap().next().unwrap().unwrap();
    let log = || fs::read_to_string(mount.path().join("log")).unwrap();

    let before = log().len();
    assert!(!mountpoint.join("no \u{1b}[31mfile").exists());
    let mut page = [0; 4096];
    let file = File::open(mountpoint.join("a \u{1b}[31mfile")).unwrap();
    file.read_exact_at(&mut page, 5 << 20).unwrap();
    assert_eq!(page[..], noise[5 << 20..][..4096]);

    // An answer is on its way before it is logged.
    let is_answered = |line: &str| line.contains(": read{") && line.ends_with("}: answered");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !log()[before..].lines().any(is_answered) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let log = log()[before..].to_owned();
    // The FUSE library says by itself which requests the kernel sent.
    let is_read = |line: &&str| line.contains("FUSE(") && line.contains(" READ ");
    let reads: Vec<u64> = log.lines().filter(is_read).filter_map(|l| number(l, "FUSE(")).collect();
    let of_store: Vec<&str> = log.lines().filter(|line| line.contains(": store{")).collect();
    assert!(!reads.is_empty() && !of_store.is_empty(), "{log}");
    for said in ["answered status=206", "received bytes="] {
        let line = of_store.iter().find(|line| line.contains(said));
        let line = line.unwrap_or_else(|| panic!("no {said} in {log}"));
        assert!(line.contains(" DEBUG: read{unique="), "{line}");
        assert!(line.contains("method=GET object=") && line.contains("range=bytes="), "{line}");
        assert!(line.contains("attempt=1}"), "{line}");
        assert!(reads.contains(&number(line, "read{unique=").unwrap()), "{line}: {reads:?}");
    }
    // And that it was answered, on the thread that waited for the store.
    let first = number(of_store[0], "read{unique=").unwrap();
    let of_first: Vec<&str> =
        log.lines().filter(|line| line.contains(&format!("read{{unique={first} "))).collect();
    let at = |said: &str| of_first.iter().position(|line| line.ends_with(said)).unwrap();
    assert!(at("}: asked") < at("}: waits for the store"), "{of_first:#?}");
    assert!(at("}: waits for the store") < at("}: answered"), "{of_first:#?}");

    // Nothing in a name, or in a URL, makes a log that may not be shown.
    assert!(
        log.contains("name=\"no ") && !log.contains('\u{1b}') && !log.contains("hunter2"),
        "{log}"
    );
    drop(file);
    bench.ok(&["unmount", mountpoint.to_str().unwrap()]);
}
