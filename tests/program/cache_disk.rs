//! The disk cache over a real server and real files: what it saves, what it survives, what it leaves.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use crate::support::mount::{Bench, can_mount_with, write_tree};
use crate::support::s3::{ACCESS_KEY, Config, S3Server, SECRET_KEY};
use crate::support::surrounding::{Need, cannot_run};
use tempfile::TempDir;
use thawfs::cache::{Blob, CacheDir, DiskLimit, OpenOptions, RemoteBlob};
use thawfs::store::{Access, Source};
use thawfs::types::{ArchiveOffset, ByteRange};
use tokio::runtime::Runtime;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const CHUNK: u64 = 64 * KIB;
const TAIL: u64 = 128 * KIB;

/// Bytes that tell every offset and every version apart.
fn content(size: u64, version: u64) -> Vec<u8> {
    (0..size.div_ceil(8))
        .flat_map(|n| {
            (n + (version << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17).to_le_bytes()
        })
        .take(size as usize)
        .collect()
}

/// A server with objects, and a place for a cache.
struct Setup {
    root: TempDir,
    server: S3Server,
    runtime: Runtime,
}

impl Setup {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("bucket")).unwrap();
        let server = S3Server::start(Config::new(root.path())).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        Self { root, server, runtime }
    }

    /// Puts an object, in place of an older version of it.
    fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.root.path().join("bucket").join(format!("{name}.sqsh"));
        let partial = path.with_extension("new");
        std::fs::write(&partial, bytes).unwrap();
        std::fs::rename(partial, path).unwrap();
    }

    fn cache_path(&self) -> PathBuf {
        self.root.path().join("cache")
    }

    fn cache(&self, limit: u64) -> CacheDir {
        CacheDir::open(&self.cache_path(), DiskLimit::Bytes(limit)).unwrap().unwrap()
    }

    fn open(&self, name: &str, disk: &CacheDir) -> RemoteBlob {
        let store_options = Access {
            endpoint: Some(self.server.url()),
            environment: [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)]
                .into_iter()
                .collect(),
            ..Access::default()
        };
        let source: Source = format!("s3://bucket/{name}.sqsh").parse().unwrap();
        let object = self.runtime.block_on(source.archive(&store_options)).unwrap();
        let options = OpenOptions {
            tail_bytes: TAIL,
            memory_bytes: MIB,
            disk: Some(disk.clone()),
            ..OpenOptions::default()
        };
        RemoteBlob::open(object, self.runtime.handle().clone(), options).unwrap()
    }

    /// The only file of this ending in the cache.
    fn file(&self, ending: &str) -> PathBuf {
        let files = std::fs::read_dir(self.cache_path().join("archives")).unwrap();
        let mut files = files.map(|entry| entry.unwrap().path());
        let mut of_ending = files.by_ref().filter(|path| path.extension().unwrap() == ending);
        let found = of_ending.next().unwrap();
        assert!(of_ending.next().is_none());
        found
    }
}

/// Reads some of a blob, and checks what it gets.
fn check(blob: &RemoteBlob, content: &[u8], start: u64, len: u64) {
    let range = ByteRange::new(ArchiveOffset(start), len).unwrap();
    let bytes = blob.fetch(&[range]).unwrap().pop().unwrap();
    let expected = &content[start as usize..(start + len) as usize];
    assert!(bytes == expected, "wrong bytes at {start}");
}

/// Reads all of a blob, in pieces that fit no chunk. The writer gets the time to keep up.
fn check_all(blob: &RemoteBlob, content: &[u8]) {
    let size = content.len() as u64;
    for start in (0..size).step_by(300_000) {
        check(blob, content, start, 300_000.min(size - start));
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// Bytes on disk of all files in a cache.
fn used(cache: &Path) -> u64 {
    let files = std::fs::read_dir(cache.join("archives")).unwrap();
    files.map(|file| file.unwrap().metadata().map_or(0, |stat| stat.blocks() * 512)).sum()
}

#[test]
fn what_was_read_once_is_not_fetched_again() {
    let setup = Setup::new();
    let content = content(8 * MIB + 12_345, 0);
    setup.put("a", &content);
    let cache = setup.cache(64 * MIB);
    let reads = [(MIB + 5, 100_000), (3 * MIB, 1), (3 * MIB + 2 * CHUNK, 1), (5 * MIB, 700_000)];
    let blob = setup.open("a", &cache);
    for (start, len) in reads {
        check(&blob, &content, start, len);
    }
    assert!(blob.counters().disk_hits == 0 && blob.counters().misses > 0);
    drop(blob);

    setup.server.clear_log();
    let blob = setup.open("a", &cache);
    assert_eq!(setup.server.get_bytes(), 96, "only the version is asked for");
    for (start, len) in reads.into_iter().chain([(8 * MIB, 12_345), (0, 96)]) {
        check(&blob, &content, start, len);
    }
    // Two chunks with one between them that nobody has: it is not fetched for their sake.
    let both =
        [3 * MIB, 3 * MIB + 2 * CHUNK].map(|at| ByteRange::new(ArchiveOffset(at), 9).unwrap());
    blob.fetch(&both).unwrap();
    assert_eq!(setup.server.gets(), 1, "{:?}", setup.server.log());
    let counters = blob.counters();
    assert_eq!((counters.misses, counters.fetched_bytes, counters.disk_damaged), (0, 0, 0));
    assert!(counters.disk_hits > 0 && counters.disk_bytes >= 800_000);
}

#[test]
fn no_damage_gets_through() {
    type Damage = fn(&Setup);
    fn overwrite(path: &Path, stride: usize, byte: u8) {
        let len = std::fs::metadata(path).unwrap().len() as usize;
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        for at in (stride / 2..len).step_by(stride) {
            file.write_all_at(&[byte], at as u64).unwrap();
        }
    }
    fn cut(path: &Path, part: u64) {
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() / 4 * part).unwrap();
    }
    let table: [(&str, Damage); 12] = [
        ("no damage", |_| ()),
        ("a byte in many chunks", |setup| overwrite(&setup.file("data"), 200_001, 0x5a)),
        ("a byte in every chunk", |setup| overwrite(&setup.file("data"), 65_536, 0x5a)),
        ("data cut short", |setup| cut(&setup.file("data"), 1)),
        ("data lost", |setup| cut(&setup.file("data"), 0)),
        ("data gone", |setup| std::fs::remove_file(setup.file("data")).unwrap()),
        ("a byte in many records", |setup| overwrite(&setup.file("index"), 100, 0xa5)),
        ("garbage for records", |setup| overwrite(&setup.file("index"), 1, 0xff)),
        ("index cut short", |setup| cut(&setup.file("index"), 3)),
        ("index lost", |setup| cut(&setup.file("index"), 0)),
        ("description lost", |setup| cut(&setup.file("about"), 0)),
        ("garbage for a description", |setup| overwrite(&setup.file("about"), 3, 0)),
    ];
    let setup = Setup::new();
    let content = content(3 * MIB + 777, 0);
    setup.put("a", &content);
    let cache = setup.cache(64 * MIB);
    check_all(&setup.open("a", &cache), &content);
    for (what, damage) in table {
        damage(&setup);
        setup.server.clear_log();
        check_all(&setup.open("a", &cache), &content);
        assert_eq!(setup.server.get_bytes() > 96, what != "no damage", "{what}");
        // What was damaged has been fetched and written again.
        setup.server.clear_log();
        check_all(&setup.open("a", &cache), &content);
        assert_eq!(setup.server.get_bytes(), 96, "after {what}");
    }
}

#[test]
fn what_one_mount_fetches_another_finds() {
    let setup = Setup::new();
    let content = content(8 * MIB, 0);
    setup.put("a", &content);
    let cache = setup.cache(64 * MIB);
    let [one, two] = [setup.open("a", &cache), setup.open("a", &cache)];
    check(&one, &content, 4 * MIB, 200_000);
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while one.counters().disk_written_bytes < TAIL + 5 * CHUNK {
        assert!(std::time::Instant::now() < deadline, "{:?}", one.counters());
        std::thread::sleep(Duration::from_millis(5));
    }
    setup.server.clear_log();
    check(&two, &content, 4 * MIB, 200_000);
    assert_eq!(setup.server.gets(), 0, "{:?}", setup.server.log());
    std::thread::scope(|scope| {
        for blob in [&one, &two, &one, &two] {
            let content = &content;
            scope.spawn(move || check_all(blob, content));
        }
    });
}

#[test]
fn another_version_is_another_archive_and_the_old_one_leaves_first() {
    let setup = Setup::new();
    let [old, new, other] = [1, 2, 3].map(|version| content(3 * MIB, version));
    let cache = setup.cache(8 * MIB);
    setup.put("a", &old);
    check_all(&setup.open("a", &cache), &old);
    setup.put("b", &other);
    check_all(&setup.open("b", &cache), &other);
    setup.put("a", &new);
    // Not the one used last, but the one that nobody can use any more.
    let about = |name: &str, etag: Option<&str>| {
        let usage = cache.usage().unwrap();
        usage.archives.into_iter().find(|archive| {
            archive.name.as_deref() == Some(&format!("s3://bucket/{name}.sqsh"))
                && etag.is_none_or(|etag| archive.etag.as_deref() != Some(etag))
        })
    };
    let old_etag = about("a", None).unwrap().etag.unwrap();
    let blob = setup.open("a", &cache);
    check_all(&blob, &new);
    drop(blob);
    check_all(&setup.open("a", &cache), &new);
    let usage = cache.usage().unwrap();
    assert!(usage.bytes <= 8 * MIB, "{usage:?}");
    assert!(about("a", Some(&old_etag)).is_some() && about("b", None).is_some(), "{usage:?}");
    let is_old = |archive: &thawfs::cache::CachedArchive| archive.etag.as_ref() == Some(&old_etag);
    assert!(!usage.archives.iter().any(is_old), "{usage:?}");
}

#[test]
fn the_limit_holds_while_one_archive_alone_exceeds_it() {
    let setup = Setup::new();
    let content = content(16 * MIB, 0);
    setup.put("a", &content);
    let limit = 4 * MIB;
    let cache = setup.cache(limit);
    let blob = setup.open("a", &cache);
    for round in 0..2 {
        check_all(&blob, &content);
        let used = used(&setup.cache_path());
        assert!(used <= limit && used > limit / 2, "{used} in round {round}");
    }
    assert!(blob.counters().disk_written_bytes > limit, "chunks made room for others");
    assert_eq!(blob.counters().disk_damaged, 0, "what is evicted is not taken for damage");
}

#[test]
fn archives_leave_in_the_order_of_their_last_use_but_not_those_in_use() {
    let setup = Setup::new();
    let contents: Vec<_> = (0..5).map(|n| content(2 * MIB, n)).collect();
    let cache = setup.cache(9 * MIB);
    let mut held = None;
    for (n, content) in contents.iter().enumerate().take(4) {
        setup.put(&n.to_string(), content);
        let blob = setup.open(&n.to_string(), &cache);
        check_all(&blob, content);
        if n == 0 {
            held = Some(blob);
        }
    }
    for (entry, age) in std::fs::read_dir(setup.cache_path().join("archives"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter_map(|path| {
            let text = (path.extension()? == "about").then(|| std::fs::read_to_string(&path))?;
            let name = (0..4).find(|n| text.as_ref().unwrap().contains(&format!("/{n}.sqsh")))?;
            Some((path, 1000 - 100 * name))
        })
    {
        let file = std::fs::File::open(entry).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    }
    setup.put("4", &contents[4]);
    check_all(&setup.open("4", &cache), &contents[4]);
    let usage = cache.usage().unwrap();
    let mut names: Vec<_> = usage.archives.iter().map(|it| it.name.clone().unwrap()).collect();
    names.sort();
    let expected = [0, 2, 3, 4].map(|n| format!("s3://bucket/{n}.sqsh"));
    assert_eq!(names, expected, "{usage:?}");
    assert!(usage.archives.iter().all(|it| it.in_use == it.name.as_ref().unwrap().contains("/0.")));

    let cleared = cache.clear(Duration::from_secs(3600)).unwrap();
    assert_eq!((cleared.archives, cleared.in_use), (0, 0), "nothing is that old");
    let cleared = cache.clear(Duration::ZERO).unwrap();
    assert_eq!((cleared.archives, cleared.in_use), (3, 1));
    check_all(held.as_ref().unwrap(), &contents[0]);
}

/// A file system of `mib` MiB in memory; unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, mib: u64) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let size = format!("size={mib}m,mode=700");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(at).status();
        assert!(mount.unwrap().success());
        Self(at.to_owned())
    }

    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_is_full_or_almost_full_is_left_alone() {
    if cannot_run("a_disk_that_is_full_or_almost_full_is_left_alone", &[Need::Root]) {
        return;
    }
    let setup = Setup::new();
    let small = Small::mount(&setup.cache_path(), 8);
    let content = content(12 * MIB, 0);
    setup.put("a", &content);
    let cache = setup.cache(1 << 30);
    // What comes faster than a busy machine writes it is left for another time.
    for _ in 0..20 {
        check_all(&setup.open("a", &cache), &content);
        assert!(small.free() >= 8 * MIB / 20, "{}", small.free());
        if small.free() < 4 * MIB {
            break;
        }
    }
    assert!(small.free() < 4 * MIB, "{}", small.free());
    cache.clear(Duration::ZERO).unwrap();

    // Somebody else takes all of it while the cache believes that there is room.
    let blob = setup.open("a", &cache);
    check(&blob, &content, 0, MIB);
    let other = std::fs::File::create(setup.cache_path().join("other")).unwrap();
    while other.write_at(&[1; 65_536], other.metadata().unwrap().len()).is_ok_and(|n| n > 0) {}
    assert_eq!(small.free(), 0);
    check_all(&blob, &content);
    drop(blob);
    check_all(&setup.open("a", &cache), &content);
}

/// Commands and mounts of one archive in a bucket.
struct Remote {
    bench: Bench,
    server: S3Server,
}

impl Remote {
    fn new(files: u64) -> Self {
        let bench = Bench::new();
        let tree = bench.directory("tree");
        write_tree(&tree);
        for n in 0..files {
            std::fs::write(tree.join(format!("noise{n:02}")), content(256 * KIB, n)).unwrap();
        }
        bench.directory("bucket/box");
        bench.archive(&tree, "bucket/box/data.sqsh", &["-comp", "lz4"]);
        let server = S3Server::start(Config::new(bench.path("bucket"))).unwrap();
        Self { bench, server }
    }

    fn thawfs(&self, arguments: &[&str]) -> Command {
        let mut command = self.bench.thawfs();
        command
            .args(arguments)
            .env("AWS_ENDPOINT_URL", self.server.url())
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        command
    }

    fn ok(&self, arguments: &[&str]) -> Vec<u8> {
        let output = self.thawfs(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_slice(&self.ok(&[arguments, &["--json"]].concat())).unwrap()
    }
}

#[test]
fn readers_killed_at_any_moment_leave_nothing_wrong() {
    if cannot_run("readers_killed_at_any_moment_leave_nothing_wrong", &[Need::DiskCache]) {
        return;
    }
    const FILES: u64 = 24;
    let remote = Remote::new(FILES);
    let names: Vec<String> = (0..FILES).map(|n| format!("noise{n:02}")).collect();
    let mut arguments = vec!["cat", "s3://box"];
    arguments.extend(names.iter().map(String::as_str));
    let expected: Vec<u8> = (0..FILES).flat_map(|n| content(256 * KIB, n)).collect();
    for n in 0..12 {
        let spawn = || remote.thawfs(&arguments).stdout(Stdio::null()).spawn().unwrap();
        let mut readers = [spawn(), spawn()];
        std::thread::sleep(Duration::from_millis(15 + 9 * n));
        for reader in &mut readers {
            reader.kill().unwrap();
            reader.wait().unwrap();
        }
        if n % 4 == 3 {
            assert!(remote.ok(&arguments) == expected, "after {n}");
        }
    }
    remote.server.clear_log();
    assert!(remote.ok(&arguments) == expected);
    assert_eq!(remote.server.get_bytes(), 96, "by now all of it is on disk");
    // The switch, too.
    remote.server.clear_log();
    arguments.push("--disk-cache=off");
    assert!(remote.ok(&arguments) == expected);
    assert!(remote.server.get_bytes() >= FILES * 256 * KIB);
}

#[test]
fn a_second_mount_reads_from_disk_and_shows_it() {
    if !can_mount_with("a_second_mount_reads_from_disk_and_shows_it", &[Need::DiskCache]) {
        return;
    }
    let remote = Remote::new(24);
    let mountpoint = remote.bench.directory("mnt");
    let at = mountpoint.to_str().unwrap();
    for round in 0..2 {
        remote.server.clear_log();
        // Memory for all of it: what is read from disk was there when it was mounted.
        remote.ok(&["mount", "--cache-memory", "64M", "s3://box", at]);
        for n in 0..24 {
            let read = std::fs::read(mountpoint.join(format!("noise{n:02}"))).unwrap();
            assert!(read == content(256 * KIB, n));
        }
        let disk = &remote.json(&["status"])[0]["disk"];
        let cached = remote.json(&["cache", "status"]);
        assert_eq!(cached["archives"][0]["name"], "s3://box/data.sqsh");
        assert_eq!(cached["archives"][0]["inUse"], true);
        assert_eq!(remote.json(&["cache", "clear"])["inUse"], 1);
        if round == 0 {
            assert!(disk["hits"] == 0 && disk["writtenBytes"].as_u64().unwrap() > 0, "{disk}");
        } else {
            assert_eq!(remote.server.get_bytes(), 96, "{:?}", remote.server.log());
            assert!(disk["bytes"].as_u64().unwrap() >= 6 * MIB, "{disk}");
            assert!(cached["bytes"].as_u64().unwrap() >= 6 * MIB, "{cached}");
        }
        remote.ok(&["unmount", at]);
        remote.bench.assert_nothing_left();
    }
    // Verifying is of what the bucket has.
    remote.server.clear_log();
    remote.ok(&["verify", "s3://box"]);
    assert!(remote.server.get_bytes() >= 6 * MIB);
    assert_eq!(remote.json(&["cache", "clear", "--older-than", "1h"])["archives"], 0);
    assert_eq!(remote.json(&["cache", "clear"])["archives"], 1);
    assert_eq!(remote.json(&["cache", "status"])["bytes"], 0);
}
