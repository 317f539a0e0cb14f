//! Bits that flip: on their way, where one more request mends them, and in the bucket, where none does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::mount::{Bench, can_mount};
use crate::support::s3::{ACCESS_KEY, Config, S3Server, SECRET_KEY};
use crate::support::surrounding::{Need, cannot_run};
use thawfs::cache::{Blob, CacheDir, DiskLimit, MemoryBlob, OpenOptions, RemoteBlob};
use thawfs::squashfs::{Archive, Error, WalkEntry};
use thawfs::store::{Access, Source};
use thawfs::types::{FileKind, FileOffset, InodeRef};
use tokio::runtime::Runtime;

/// Where the archive lies in its bucket.
const KEY: &str = "box/data.sqsh";

/// Every file's path and contents, and what else can be read of it.
type Tree = BTreeMap<Vec<u8>, Vec<u8>>;

/// Reads all there is.
fn read_all(archive: &Archive) -> Result<Tree, Error> {
    let mut tree = Tree::new();
    for entry in archive.walk() {
        let entry = entry?;
        let inode = archive.inode(entry.inode.reference)?;
        let mut what = match inode.kind {
            FileKind::Regular => archive.read(&inode, FileOffset(0), inode.size as usize)?.to_vec(),
            FileKind::Symlink => archive.read_link(&inode)?,
            _ => Vec::new(),
        };
        for xattr in archive.xattrs(&inode)? {
            what.extend(format!("{xattr:?}").into_bytes());
        }
        tree.insert(entry.path, what);
    }
    Ok(tree)
}

fn open_memory(bytes: &[u8]) -> Result<Archive, Error> {
    let blob = MemoryBlob(bytes::Bytes::copy_from_slice(bytes));
    Archive::open(Arc::new(blob), thawfs::squashfs::OpenOptions::default())
}

/// A byte of which no bit may flip unnoticed.
#[derive(Debug)]
struct Spot {
    region: &'static str,
    at: u64,
    /// Two of its bits.
    bits: [u8; 2],
    /// Whose contents it is in, if those of a file.
    file: Option<InodeRef>,
}

/// Bytes of a superblock.
const SUPERBLOCK: u64 = 96;

/// A tree of text in an archive in a bucket, and places for caches of it.
struct Setup {
    bench: Bench,
    server: S3Server,
    runtime: Runtime,
    bytes: Vec<u8>,
    tree: Tree,
}

impl Setup {
    fn new(flags: &[&str]) -> Self {
        let bench = Bench::new();
        let tree = bench.directory("tree");
        let mut state = 1u64;
        for n in 0..40 {
            // Lines that every compressor makes shorter, and none by much.
            let lines = std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(n + 1);
                format!("{state:016x}{:016x} and so on\n", state.wrapping_mul(3))
            });
            let len = if n % 10 == 0 { 8000 } else { 60 };
            let text: String = lines.take(len).collect();
            std::fs::create_dir_all(tree.join(format!("d{}", n % 7))).unwrap();
            let path = tree.join(format!("d{}/file-{}", n % 7, &text[..20]));
            std::fs::write(&path, &text).unwrap();
            std::os::unix::fs::symlink(&text[..32], path.with_extension("link")).unwrap();
        }
        bench.directory("buckets/box");
        let archive = bench.archive(&tree, &format!("buckets/{KEY}"), flags);
        let bytes = std::fs::read(archive).unwrap();
        let tree = read_all(&open_memory(&bytes).unwrap()).unwrap();
        let server = S3Server::start(Config::new(bench.path("buckets"))).unwrap();
        Self { bench, server, runtime: Runtime::new().unwrap(), bytes, tree }
    }

    fn object(&self) -> PathBuf {
        self.bench.path("buckets").join(KEY)
    }

    /// What opening and reading all of it says, with a blob of its own and the disk cache of `name`.
    fn open(&self, name: &str) -> (Arc<RemoteBlob>, Result<Archive, Error>) {
        let environment =
            [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)];
        let store_options = Access {
            endpoint: Some(self.server.url()),
            environment: environment.into_iter().collect(),
            ..Access::default()
        };
        let source: Source = format!("s3://{KEY}").parse().unwrap();
        let object = self.runtime.block_on(source.archive(&store_options)).unwrap();
        let path = self.bench.path(name);
        let disk = CacheDir::open(&path, DiskLimit::Bytes(64 << 20)).unwrap();
        assert!(disk.is_some());
        let options = OpenOptions { tail_bytes: 16 << 10, disk, ..OpenOptions::default() };
        let blob = RemoteBlob::open(object, self.runtime.handle().clone(), options).unwrap();
        let blob = Arc::new(blob);
        let as_blob = Arc::clone(&blob) as Arc<dyn Blob>;
        (blob, Archive::open(as_blob, thawfs::squashfs::OpenOptions::default()))
    }

    fn check(&self, archive: Result<Archive, Error>, case: &str) {
        let tree = archive.and_then(|archive| read_all(&archive));
        let tree = tree.unwrap_or_else(|error| panic!("{case}: {error}"));
        assert!(tree == self.tree, "{case}: wrong bytes");
    }

    /// Whether it is noticed on reading `file`, or without one everything, that this bit flipped.
    fn is_noticed(&self, at: u64, bit: u8, file: Option<InodeRef>) -> bool {
        let mut bytes = self.bytes.clone();
        bytes[at as usize] ^= 1 << bit;
        let read = |archive: Archive| match file {
            None => read_all(&archive).map(drop),
            Some(file) => {
                let inode = archive.inode(file)?;
                archive.read(&inode, FileOffset(0), inode.size as usize).map(drop)
            }
        };
        match open_memory(&bytes) {
            Ok(archive) => read(archive).is_err() && at >= SUPERBLOCK,
            // Of the superblock only what is noticed on opening.
            Err(_) => true,
        }
    }

    /// Some bytes in each part of the archive, of which two bits matter: where they lie, and these. The
    /// first bytes of a block say how to decode the rest, and so are the least likely to go unnoticed.
    fn weak_spots(&self) -> Vec<Spot> {
        let archive = open_memory(&self.bytes).unwrap();
        let superblock = archive.superblock();
        let large = archive.walk().map(Result::unwrap).filter(|entry| entry.inode.size > 200_000);
        let mut candidates = vec![("superblock", 0, None), ("superblock", 64, None)];
        for WalkEntry { inode, .. } in large.take(2) {
            let mut blocks = Vec::new();
            archive.data_blocks(&inode, |block| blocks.push(block.at().0)).unwrap();
            candidates.push(("data", blocks[0], Some(inode.reference)));
        }
        candidates.push(("inodes", superblock.inode_table.0, None));
        candidates.push(("directories", superblock.directory_table.0, None));
        let mut spots = Vec::new();
        for (region, start, file) in candidates {
            for at in start..start + 24 {
                let noticed = (0..8).filter(|bit| self.is_noticed(at, *bit, file));
                if let [one, other] = noticed.take(2).collect::<Vec<u8>>()[..] {
                    spots.push(Spot { region, at, bits: [one, other], file });
                    break;
                }
            }
        }
        let regions: BTreeSet<_> = spots.iter().map(|spot| spot.region).collect();
        assert_eq!(regions.len(), 4, "{spots:?}");
        spots
    }
}

/// Each compressor; the metadata of some is not compressed.
const ARCHIVES: [&[&str]; 7] = [
    &["-comp", "gzip"],
    &["-comp", "lzo"],
    &["-comp", "lz4"],
    &["-comp", "xz"],
    &["-comp", "zstd"],
    &["-comp", "zstd", "-noI", "-b", "16K"],
    &["-comp", "gzip", "-b", "1M"],
];

#[test]
fn a_bit_that_flips_once_on_the_way_costs_a_request_and_nothing_else() {
    for flags in ARCHIVES {
        let setup = Setup::new(flags);
        for (index, Spot { region, at, bits, .. }) in setup.weak_spots().into_iter().enumerate() {
            let case = format!("{flags:?}: {region}, byte {at}, bit {}", bits[0]);
            let cache = format!("cache{index}");
            setup.server.flip(at, bits[0], 1);
            let (blob, archive) = setup.open(&cache);
            setup.check(archive, &case);
            let again = blob.counters().fetched_again;
            assert!((1..=20).contains(&again), "{case}: {again} chunks again");
            drop(blob);
            // What is on disk is right, too.
            let (blob, archive) = setup.open(&cache);
            setup.check(archive, &format!("{case}, the next time"));
            assert_eq!(blob.counters().fetched_again, 0, "{case}, the next time");
        }
    }
}

#[test]
fn damage_ends_with_the_fault() {
    for flags in ARCHIVES {
        let setup = Setup::new(flags);
        for (index, Spot { region, at, bits, .. }) in setup.weak_spots().into_iter().enumerate() {
            // It takes a second until what came twice alike is asked for again.
            let twice = flags == ["-comp", "zstd"] && matches!(region, "data" | "inodes");
            for &alike in if twice { &[false, true][..] } else { &[false] } {
                let case = format!("{flags:?}: {region}, byte {at}, alike {alike}");
                let cache = format!("cache{index}{alike}");
                for round in 0..500 {
                    setup.server.flip(at, bits[if alike { 0 } else { round % 2 }], 1);
                }
                let (blob, opened) = setup.open(&cache);
                let archive = match opened {
                    Ok(archive) => {
                        assert!(read_all(&archive).is_err(), "{case}");
                        Some(archive)
                    }
                    Err(_) => None,
                };
                setup.server.heal();
                if let Some(archive) = &archive {
                    // Where it came twice alike, it is not asked for again at once.
                    let healed = Instant::now();
                    let tree = loop {
                        match read_all(archive) {
                            Ok(tree) => break tree,
                            Err(error) => {
                                let within = Duration::from_secs(if alike { 60 } else { 0 });
                                assert!(healed.elapsed() < within, "{case}: {error}");
                                std::thread::sleep(Duration::from_millis(100));
                            }
                        }
                    };
                    assert!(tree == setup.tree, "{case}: wrong bytes");
                }
                drop((blob, archive));
                let (_, archive) = setup.open(&cache);
                setup.check(archive, &format!("{case}, the next time"));
            }
        }
    }
}

#[test]
fn an_archive_that_is_damaged_in_its_bucket_costs_one_more_request_and_no_storm() {
    for flags in ARCHIVES {
        let setup = Setup::new(flags);
        let (at, bits, _) = setup.weak_file();
        let mut bytes = setup.bytes.clone();
        bytes[at as usize] ^= 1 << bits[0];
        std::fs::write(setup.object(), &bytes).unwrap();
        let (blob, archive) = setup.open("cache");
        let archive = archive.unwrap();
        let entries: Vec<_> = archive.walk().map(Result::unwrap).collect();
        let files = entries.iter().filter(|entry| entry.inode.kind == FileKind::Regular);
        let read = |entry: &WalkEntry| {
            archive.read(&entry.inode, FileOffset(0), entry.inode.size as usize)
        };
        let bad: Vec<_> = files.filter(|entry| read(entry).is_err()).collect();
        assert!(!bad.is_empty(), "{flags:?}");
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        for entry in &bad {
                            let error = read(entry).unwrap_err();
                            assert!(matches!(error, Error::Corrupt { .. }), "{flags:?}: {error}");
                        }
                    }
                });
            }
        });
        // Looked at again after one second, two, four and so on, should the machine be slow.
        let looks = 2 + (started.elapsed().as_secs() + 1).ilog2() as usize;
        let log = setup.server.log();
        let has_it = |seen: &&crate::support::s3::Seen| {
            seen.span().is_some_and(|(first, len)| (first..first + len).contains(&at))
        };
        let asked = log.iter().filter(has_it).count();
        assert!((2..=1 + looks).contains(&asked), "{flags:?}: asked {asked} times");
        drop((archive, blob));
        // The next mount asks twice again: what cannot be decoded is not kept.
        setup.server.clear_log();
        let (_, archive) = setup.open("cache");
        read_all(&archive.unwrap()).unwrap_err();
        let asked = setup.server.log().iter().filter(has_it).count();
        assert!((1..=2).contains(&asked), "{flags:?}: asked {asked} times in the next mount");
    }
}

/// The program run against the setup's bucket.
impl Setup {
    fn thawfs(&self, arguments: &[&str]) -> Command {
        let mut command = self.bench.thawfs();
        command
            .args(arguments)
            .env("AWS_ENDPOINT_URL", self.server.url())
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.thawfs(arguments).output().unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> Vec<u8> {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        output.stdout
    }

    /// A spot in a file's contents, and that file.
    fn weak_file(&self) -> (u64, [u8; 2], String) {
        let spots = self.weak_spots();
        let Spot { at, bits, file, .. } = *spots.iter().find(|spot| spot.file.is_some()).unwrap();
        let archive = open_memory(&self.bytes).unwrap();
        let mut entries = archive.walk().map(Result::unwrap);
        let path = entries.find(|entry| Some(entry.inode.reference) == file).unwrap().path;
        (at, bits, String::from_utf8(path).unwrap())
    }
}

#[test]
fn a_mount_reads_on_after_bits_have_flipped() {
    if !can_mount("a_mount_reads_on_after_bits_have_flipped") {
        return;
    }
    let setup = Setup::new(&["-comp", "zstd"]);
    let (at, bits, path) = setup.weak_file();
    let expected = &setup.tree[path.as_bytes()];
    let mountpoint = setup.bench.directory("mnt");
    let mount = mountpoint.to_str().unwrap();
    let file = mountpoint.join(&path);
    let read = |file: &Path| std::fs::read(file);

    // Once, with and without a disk cache.
    for disk in ["--disk-cache=64M", "--disk-cache=off"] {
        setup.server.flip(at, bits[0], 1);
        setup.ok(&["-q", "mount", disk, "s3://box", mount]);
        assert!(read(&file).unwrap() == *expected, "{disk}");
        setup.ok(&["unmount", mount]);
        setup.server.heal();
    }
    // For a while: an error, and none once it is over.
    setup.ok(&["cache", "clear"]);
    for round in 0..500 {
        setup.server.flip(at, bits[round % 2], 1);
    }
    setup.ok(&["-q", "mount", "s3://box", mount]);
    assert_eq!(read(&file).unwrap_err().raw_os_error(), Some(libc::EIO));
    setup.server.heal();
    // At once, unless it came twice alike: one answer of two overlapping ones is as good as another.
    let healed = Instant::now();
    let bytes = loop {
        match read(&file) {
            Ok(bytes) => break bytes,
            Err(error) => assert!(healed.elapsed() < Duration::from_secs(60), "{error}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(bytes == *expected);
    setup.ok(&["unmount", mount]);
    // What was kept is right.
    setup.ok(&["-q", "mount", "s3://box", mount]);
    assert!(read(&file).unwrap() == *expected);
    setup.ok(&["unmount", mount]);
    setup.bench.assert_nothing_left();
}

#[test]
fn cat_extract_and_verify_are_not_misled_by_a_bit_that_flipped() {
    let setup = Setup::new(&["-comp", "xz"]);
    let (at, bits, path) = setup.weak_file();
    let expected = &setup.tree[path.as_bytes()];
    let out = setup.bench.path("out");
    for round in 0..2 {
        setup.server.flip(at, bits[0], 1);
        assert!(setup.ok(&["-q", "cat", "s3://box", &path]) == *expected, "round {round}");
        setup.server.heal();
        setup.ok(&["cache", "clear"]);

        setup.server.flip(at, bits[0], 1);
        setup.ok(&["-q", "extract", "s3://box", out.to_str().unwrap()]);
        assert!(std::fs::read(out.join(&path)).unwrap() == *expected);
        std::fs::remove_dir_all(&out).unwrap();
        setup.server.heal();
        setup.ok(&["cache", "clear"]);

        setup.server.flip(at, bits[0], 1);
        let told = String::from_utf8(setup.ok(&["verify", "s3://box"])).unwrap();
        assert!(told.contains("is whole"), "{told}");
        setup.server.heal();
    }
    // On disk it is right, and in the bucket it is not any more: that is what verify tells of.
    let on_disk = !cannot_run("what is right on disk and wrong in the bucket", &[Need::DiskCache]);
    setup.ok(&["-q", "cat", "s3://box", &path]);
    let modified = std::fs::metadata(setup.object()).unwrap().modified().unwrap();
    let object = std::fs::OpenOptions::new().write(true).open(setup.object()).unwrap();
    let byte = setup.bytes[at as usize] ^ (1 << bits[0]);
    std::os::unix::fs::FileExt::write_all_at(&object, &[byte], at).unwrap();
    object.set_modified(modified).unwrap();
    if on_disk {
        assert!(setup.ok(&["-q", "cat", "s3://box", &path]) == *expected, "it is on disk");
    } else {
        assert_eq!(setup.run(&["-q", "cat", "s3://box", &path]).status.code(), Some(6));
    }
    let verified = setup.run(&["verify", "s3://box"]);
    let told = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert_eq!(verified.status.code(), Some(6), "{told}");
    assert!(told.contains(&path), "{told}");
}
