//! Which objects share an entry of the disk cache, and which have none.

use std::path::Path;
use std::time::Duration;

use crate::support::s3::{ACCESS_KEY, Config, S3Server, SECRET_KEY, Tags};
use rusty_s3::S3Action;
use tempfile::TempDir;
use thawfs::cache::{Blob, CacheDir, DiskLimit, OpenOptions, RemoteBlob};
use thawfs::store::{Access, Source};
use thawfs::types::{ArchiveOffset, ByteRange};
use tokio::runtime::Runtime;

const SIZE: u64 = 400_000;

/// Bytes that all versions begin with, and then tell themselves apart by.
fn content(version: u8) -> Vec<u8> {
    let mut bytes = vec![0; 1000];
    bytes.resize(SIZE as usize, version);
    bytes
}

/// A cache, and servers that have one object each.
struct Setup {
    root: TempDir,
    runtime: Runtime,
}

impl Setup {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        Self { root: tempfile::tempdir().unwrap(), runtime }
    }

    fn server(&self, version: u8, tags: Tags) -> S3Server {
        let root = self.root.path().join(format!("server-{version}"));
        std::fs::create_dir_all(root.join("bucket")).unwrap();
        std::fs::write(root.join("bucket/a.sqsh"), content(version)).unwrap();
        S3Server::start(Config { tags, ..Config::new(root) }).unwrap()
    }

    fn cache_path(&self) -> std::path::PathBuf {
        self.root.path().join("cache")
    }

    /// Reads all of an object through the cache, and gives how many bytes its server sent.
    fn read(&self, server: &S3Server, source: &str, version: u8) -> u64 {
        let store_options = Access {
            endpoint: source.starts_with("s3:").then(|| server.url()),
            environment: [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)]
                .into_iter()
                .collect(),
            ..Access::default()
        };
        server.clear_log();
        let source: Source = source.parse().unwrap();
        let object = self.runtime.block_on(source.archive(&store_options)).unwrap();
        let disk = CacheDir::open(&self.cache_path(), DiskLimit::Bytes(64 << 20)).unwrap();
        let options = OpenOptions { tail_bytes: 64 << 10, disk, ..OpenOptions::default() };
        let blob = RemoteBlob::open(object, self.runtime.handle().clone(), options).unwrap();
        let all = ByteRange::new(ArchiveOffset(0), SIZE).unwrap();
        let bytes = blob.fetch(&[all]).unwrap().pop().unwrap();
        assert!(bytes == content(version), "bytes of another object");
        drop(blob);
        server.get_bytes()
    }

    fn archives(&self) -> usize {
        let cache = CacheDir::open(&self.cache_path(), DiskLimit::Bytes(64 << 20)).unwrap();
        cache.unwrap().usage().unwrap().archives.len()
    }
}

const SOURCE: &str = "s3://bucket/a.sqsh";

/// A URL of the object that is good for some seconds.
fn presigned(server: &S3Server, seconds: u64) -> String {
    let style = rusty_s3::UrlStyle::Path;
    let bucket =
        rusty_s3::Bucket::new(server.url().parse().unwrap(), style, "bucket", "auto").unwrap();
    let keys = rusty_s3::Credentials::new(ACCESS_KEY, SECRET_KEY);
    bucket.get_object(Some(&keys), "a.sqsh").sign(Duration::from_secs(seconds)).into()
}

#[test]
fn what_has_no_strong_tag_is_not_kept() {
    for tags in [Tags::Weak, Tags::Absent] {
        let setup = Setup::new();
        let server = setup.server(1, tags.clone());
        for _ in 0..2 {
            assert!(setup.read(&server, SOURCE, 1) >= SIZE, "{tags:?}");
        }
        assert_eq!(setup.archives(), 0, "{tags:?}");
    }
}

#[test]
fn servers_do_not_share_whatever_their_tags_say() {
    let setup = Setup::new();
    let servers = [1, 2].map(|version| setup.server(version, Tags::Same));
    for round in 0..2 {
        for (server, version) in servers.iter().zip([1, 2]) {
            let sent = setup.read(server, SOURCE, version);
            assert_eq!(sent == 96, round == 1, "{sent} bytes in round {round}");
        }
    }
    assert_eq!(setup.archives(), 2);
}

#[test]
fn another_signature_is_the_same_object_and_none_is_kept() {
    let setup = Setup::new();
    let server = setup.server(1, Tags::Strong);
    let [first, second] = [presigned(&server, 100), presigned(&server, 200)];
    assert!(first != second && first.contains("X-Amz-Signature"), "{first}");
    assert!(setup.read(&server, &first, 1) >= SIZE);
    assert_eq!(setup.read(&server, &second, 1), 96);
    assert_eq!(setup.archives(), 1);
    assert!(!is_in(&setup.cache_path(), "Signature") && !is_in(&setup.cache_path(), "Credential"));
    assert!(is_in(&setup.cache_path(), "a.sqsh"), "the object itself is named");
}

/// Whether a file below `directory` has this text in it or in its name.
fn is_in(directory: &Path, text: &str) -> bool {
    std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).any(|path| {
        path.to_string_lossy().contains(text)
            || match path.is_dir() {
                true => is_in(&path, text),
                false => {
                    let bytes = std::fs::read(&path).unwrap();
                    bytes.windows(text.len()).any(|window| window == text.as_bytes())
                }
            }
    })
}
