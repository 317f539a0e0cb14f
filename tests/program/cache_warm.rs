//! What is fetched before it is asked for: what the last mount read, what `warm` names, everything.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::support::mount::{Bench, can_mount, can_mount_with};
use crate::support::s3::{ACCESS_KEY, Config, S3Server, SECRET_KEY, Seen};
use crate::support::surrounding::{Need, has};
use thawfs::cache::{Blob, CacheDir, DiskLimit, OpenOptions, RemoteBlob, Warm, Warming};
use thawfs::store::{Access, Source};
use thawfs::types::{ArchiveOffset, ByteRange};

const KIB: usize = 1 << 10;
const ID: &str = "0b7a5c1e-6f0d-4c43-9d0c-2f1f8f1a9e77";
/// How many files there are, and how many of them a program reads.
const FILES: u64 = 60;
const READ: [u64; 6] = [50, 3, 41, 17, 18, 9];

/// Bytes that no compressor makes smaller.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64 / 8)
        .flat_map(|n| {
            ((seed << 40) + n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17).to_le_bytes()
        })
        .collect()
}

/// A backup in a bucket, and machines that have nothing in common but that.
struct World {
    bench: Bench,
    server: S3Server,
    mountpoint: PathBuf,
}

impl World {
    fn new(latency: Duration) -> Self {
        let bench = Bench::new();
        let tree = bench.directory("tree");
        for dir in ["some", "other"] {
            std::fs::create_dir(tree.join(dir)).unwrap();
        }
        for n in 0..FILES {
            std::fs::write(Self::file(&tree, n), noise(n, 256 * KIB)).unwrap();
        }
        bench.directory(&format!("bucket/box/backups/{ID}"));
        let archive = format!("bucket/box/backups/{ID}/data.sqsh");
        let size = bench.archive(&tree, &archive, &["-comp", "lz4"]).metadata().unwrap().len();
        let metadata = serde_json::json!({
            "id": ID, "dir": "/work", "name": null, "sizeBytes": size, "ttl": 3_000_000,
            "createdAt": chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
        });
        let metadata_path = bench.path(&format!("bucket/box/backups/{ID}/meta.json"));
        std::fs::write(metadata_path, metadata.to_string()).unwrap();
        let config = Config { latency, ..Config::new(bench.path("bucket")) };
        let server = S3Server::start(config).unwrap();
        let mountpoint = bench.directory("mnt");
        Self { bench, server, mountpoint }
    }

    fn file(root: &Path, n: u64) -> PathBuf {
        root.join(if n.is_multiple_of(2) { "some" } else { "other" }).join(format!("{n}"))
    }

    /// Runs thawfs on the machine of that name.
    fn run(&self, machine: &str, arguments: &[&str]) -> Output {
        let mut command: Command = self.bench.thawfs();
        command
            .args(arguments)
            .env("THAWFS_CACHE_DIR", self.bench.path(machine))
            .env("THAWFS_BUCKET", "s3://box")
            .env("AWS_ENDPOINT_URL", self.server.url())
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        command.output().unwrap()
    }

    fn ok(&self, machine: &str, arguments: &[&str]) -> Vec<u8> {
        let output = self.run(machine, arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn restore(&self, machine: &str, options: &[&str]) {
        let at = self.mountpoint.to_str().unwrap();
        self.ok(machine, &[&["restore", ID, at], options].concat());
    }

    fn unmount(&self, machine: &str) {
        self.ok(machine, &["unmount", self.mountpoint.to_str().unwrap()]);
        self.bench.assert_nothing_left();
    }

    /// What a program does when it starts.
    fn start_program(&self) {
        for n in READ {
            assert!(std::fs::read(Self::file(&self.mountpoint, n)).unwrap() == noise(n, 256 * KIB));
        }
    }

    fn written(&self, machine: &str) -> u64 {
        let status: serde_json::Value =
            serde_json::from_slice(&self.ok(machine, &["status", "--json"])).unwrap();
        status[0]["disk"]["writtenBytes"].as_u64().unwrap()
    }

    /// Waits until the server has had no request for a while.
    fn settle(&self) {
        let (mut seen, mut since) = (self.server.log().len(), Instant::now());
        while since.elapsed() < Duration::from_millis(250) {
            std::thread::sleep(Duration::from_millis(10));
            if self.server.log().len() != seen {
                (seen, since) = (self.server.log().len(), Instant::now());
            }
        }
    }

    /// Insists that nothing that was asked for `before` has been asked for since the log was cleared; and
    /// that nothing else has been, either, where the kernel asks for a file at once. In requests that
    /// follow each other, as ordinary users' mounts get them, we see a reader who goes on to the next
    /// file, and read ahead for it.
    fn assert_found(&self, before: &[Seen]) {
        let log = self.server.log();
        let spans = |log: &[Seen]| -> Vec<_> {
            let gets = log.iter().filter(|seen| seen.path.ends_with("data.sqsh"));
            gets.filter_map(Seen::span).map(|(first, len)| first..first + len).collect()
        };
        let before = spans(before);
        for span in spans(&log) {
            let again = before.iter().find(|seen| seen.start < span.end && span.start < seen.end);
            assert_eq!(again, None, "of {span:?}");
        }
        assert!(!has(Need::Root) || self.server.gets() == 0, "{log:?}");
    }

    fn trace(&self) -> PathBuf {
        self.bench.path(&format!("bucket/box/backups/{ID}/trace.json"))
    }
}

#[test]
fn what_one_mount_read_the_next_fetches_ahead_on_any_machine() {
    if !can_mount_with(
        "what_one_mount_read_the_next_fetches_ahead_on_any_machine",
        &[Need::DiskCache],
    ) {
        return;
    }
    let world = World::new(Duration::ZERO);
    world.restore("first", &[]);
    world.start_program();
    world.unmount("first");
    assert!(!world.trace().exists(), "shared though nobody said so");

    // A visit that reads next to nothing changes nothing, but can share what is known.
    world.restore("first", &["--share-trace"]);
    std::fs::read(World::file(&world.mountpoint, 1)).unwrap();
    world.unmount("first");
    assert!(world.trace().exists());

    std::fs::remove_file(world.trace()).unwrap();
    world.restore("second", &["--share-trace"]);
    world.start_program();
    world.unmount("second");
    assert!(world.trace().exists());

    world.server.clear_log();
    world.restore("third", &[]);
    world.settle();
    let touched = READ.len() as u64 * 256 * KIB as u64;
    // The ends of the archive and what surrounds blocks come with it.
    let written = world.written("third");
    assert!((touched..touched * 12 / 10 + (3 << 20)).contains(&written), "{written} bytes");
    let before = world.server.log();
    world.server.clear_log();
    world.start_program();
    world.assert_found(&before);
    world.unmount("third");

    // A machine that keeps the trace, but not the data.
    std::fs::remove_dir_all(world.bench.path("third/archives")).unwrap();
    std::fs::remove_file(world.trace()).unwrap();
    world.server.clear_log();
    world.restore("third", &[]);
    world.settle();
    let before = world.server.log();
    world.server.clear_log();
    world.start_program();
    world.assert_found(&before);
    world.unmount("third");
}

#[test]
fn a_trace_that_makes_no_sense_changes_nothing() {
    if !can_mount("a_trace_that_makes_no_sense_changes_nothing") {
        return;
    }
    let world = World::new(Duration::ZERO);
    let size = world.bench.path(&format!("bucket/box/backups/{ID}/data.sqsh")).metadata().unwrap();
    let runs = [[0, size.len() / 65_536 + 9]];
    let foreign = serde_json::json!({
        "etag": "\"other\"", "size": size.len(), "offset": 0, "chunk": 65_536, "runs": [[0, 9]],
    });
    let too_long = serde_json::json!({
        "etag": "\"other\"", "size": size.len(), "offset": 0, "chunk": 65_536, "runs": runs,
    });
    for (machine, trace) in [
        ("garbage", "{\"etag\": 5".to_owned()),
        ("foreign", foreign.to_string()),
        ("too-long", too_long.to_string()),
        ("huge", " ".repeat(2 << 20)),
    ] {
        std::fs::write(world.trace(), trace).unwrap();
        world.restore(machine, &[]);
        world.settle();
        world.server.clear_log();
        world.start_program();
        assert!(world.server.gets() > 0, "{machine}: something was fetched ahead");
        world.unmount(machine);
    }
}

#[test]
fn warm_fetches_what_is_named_and_no_more() {
    if !can_mount_with("warm_fetches_what_is_named_and_no_more", &[Need::DiskCache]) {
        return;
    }
    let world = World::new(Duration::ZERO);
    let json = world.ok("a", &["warm", ID, "some", "/other/3", "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let named = (FILES / 2 + 1) * 256 * KIB as u64;
    let bytes = told["bytes"].as_u64().unwrap();
    assert!((named..named * 12 / 10 + (2 << 20)).contains(&bytes), "{told}");
    world.restore("a", &[]);
    world.settle();
    let before = world.server.log();
    world.server.clear_log();
    for n in (0..FILES).filter(|n| n.is_multiple_of(2) || *n == 3) {
        let read = std::fs::read(World::file(&world.mountpoint, n)).unwrap();
        assert!(read == noise(n, 256 * KIB));
    }
    world.assert_found(&before);
    // Not one beside what was named.
    std::fs::read(World::file(&world.mountpoint, 45)).unwrap();
    assert!(world.server.gets() > 0, "what was not named is there, too");
    world.unmount("a");

    // Everything; then there is nothing left to fetch.
    world.ok("a", &["warm", ID]);
    let told: serde_json::Value =
        serde_json::from_slice(&world.ok("a", &["warm", ID, "--json"])).unwrap();
    assert_eq!(told["fetchedBytes"], 0);
    let archive = world.bench.path(&format!("bucket/box/backups/{ID}/data.sqsh"));
    assert_eq!(told["bytes"], archive.metadata().unwrap().len());

    let missing = world.run("a", &["warm", ID, "not/there"]);
    assert!(String::from_utf8_lossy(&missing.stderr).contains("not/there"));
    let off = world.run("a", &["warm", ID, "--disk-cache=off"]);
    assert!(String::from_utf8_lossy(&off.stderr).contains("disk cache"));
    assert_ne!((missing.status.code(), off.status.code()), (Some(0), Some(0)));
}

#[test]
fn a_program_that_reads_files_all_over_finds_most_of_the_rest_on_disk() {
    if !can_mount_with(
        "a_program_that_reads_files_all_over_finds_most_of_the_rest_on_disk",
        &[Need::DiskCache],
    ) {
        return;
    }
    // What is brought depends on how long requests take; these take much longer than a busy machine
    // adds to them.
    let world = World::new(Duration::from_millis(40));
    // Every file once, in an order that has nothing to do with where they are.
    let scattered = |n: u64| n * 37 % FILES;
    let read = |numbers: std::ops::Range<u64>| {
        for n in numbers.map(scattered) {
            let read = std::fs::read(World::file(&world.mountpoint, n)).unwrap();
            assert!(read == noise(n, 256 * KIB));
        }
    };
    world.restore("a", &[]);
    read(0..7);
    world.settle();
    let few = world.written("a");
    assert!(few < (7 * 512 * KIB as u64) + (3 << 20), "{few} bytes for a handful of files");
    let rest = || {
        read(7..30);
        world.settle();
        world.server.clear_log();
        read(30..FILES);
        world.server.gets()
    };
    let found = rest();
    world.unmount("a");

    // Without a disk there is no place for it.
    world.restore("a", &["--disk-cache=off"]);
    read(0..7);
    let fetched = rest();
    world.unmount("a");
    assert!(found * 2 < fetched, "{found} GETs, and {fetched} without");
}

#[test]
fn a_mount_fills_the_cache_with_the_rest_and_can_be_ended_meanwhile() {
    if !can_mount_with(
        "a_mount_fills_the_cache_with_the_rest_and_can_be_ended_meanwhile",
        &[Need::DiskCache],
    ) {
        return;
    }
    let world = World::new(Duration::ZERO);
    world.restore("a", &["--fill"]);
    world.settle();
    world.server.clear_log();
    for n in 0..FILES {
        let read = std::fs::read(World::file(&world.mountpoint, n)).unwrap();
        assert!(read == noise(n, 256 * KIB));
    }
    assert_eq!(world.server.gets(), 0, "{:?}", world.server.log());
    world.unmount("a");

    // From a store that says nothing more, so that only who waits for nothing comes to an end.
    let slow = World::new(Duration::from_millis(20));
    slow.restore("b", &["--fill=64K"]);
    slow.server.hold();
    let deadline = Instant::now() + Duration::from_secs(20);
    while slow.server.held() == 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    slow.unmount("b");
}

#[test]
fn readers_and_warming_share_requests_and_get_the_right_bytes() {
    const SIZE: usize = 24 << 20;
    let dir = tempfile::tempdir().unwrap();
    let content = noise(7, SIZE);
    std::fs::create_dir(dir.path().join("bucket")).unwrap();
    std::fs::write(dir.path().join("bucket/a.sqsh"), &content).unwrap();
    let config = Config { latency: Duration::from_millis(3), ..Config::new(dir.path()) };
    let server = S3Server::start(config).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let options = Access {
        endpoint: Some(server.url()),
        environment: [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)]
            .into_iter()
            .collect(),
        ..Access::default()
    };
    let source: Source = "s3://bucket/a.sqsh".parse().unwrap();
    let object = runtime.block_on(source.archive(&options)).unwrap();
    let disk = CacheDir::open(&dir.path().join("cache"), DiskLimit::Bytes(1 << 30)).unwrap();
    let options = OpenOptions { disk, memory_bytes: 4 << 20, ..OpenOptions::default() };
    let blob = RemoteBlob::open(object, runtime.handle().clone(), options).unwrap();
    let warming = Warming::default();
    std::thread::scope(|scope| {
        let warm = scope.spawn(|| blob.warm(&Warm::All, &warming));
        for reader in 0..4_u64 {
            let (blob, content) = (&blob, &content);
            scope.spawn(move || {
                for n in 0..60_u64 {
                    let at = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 + 2 * reader) >> 40;
                    let at = at % (SIZE as u64 - 100_000);
                    let range = ByteRange::new(ArchiveOffset(at), 100_000).unwrap();
                    let read = blob.fetch(&[range]).unwrap().pop().unwrap();
                    let expected = &content[at as usize..at as usize + 100_000];
                    assert!(read == expected, "wrong bytes at {at}");
                }
            });
        }
        warm.join().unwrap().unwrap();
    });
    assert_eq!(warming.done.load(Ordering::Relaxed), SIZE as u64);
    // Each byte once, but for the ends that opening brings, and what both decided to fetch at once.
    assert!(server.get_bytes() < SIZE as u64 * 5 / 4, "{} bytes", server.get_bytes());
    server.clear_log();
    let again = Warming::default();
    blob.warm(&Warm::All, &again).unwrap();
    assert_eq!((server.gets(), again.fetched.load(Ordering::Relaxed)), (0, 0));
}
