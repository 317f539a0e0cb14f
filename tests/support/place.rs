//! A bucket for backups, of either sort, and the program run against it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use super::mount::Bench;
use super::s3::{ACCESS_KEY, Config, S3Server, SECRET_KEY};

/// A bucket, whose objects are files below `root` whichever sort it is.
pub(crate) struct Place {
    pub(crate) name: &'static str,
    pub(crate) bench: Bench,
    pub(crate) root: PathBuf,
    pub(crate) url: String,
    pub(crate) server: Option<S3Server>,
}

impl Place {
    pub(crate) fn s3() -> Self {
        Self::s3_as(|_| ())
    }

    /// With a server that is configured otherwise.
    pub(crate) fn s3_as(configure: impl FnOnce(&mut Config)) -> Self {
        let bench = Bench::new();
        let root = bench.directory("buckets/box/pre");
        let mut config = Config::new(bench.path("buckets"));
        configure(&mut config);
        let server = S3Server::start(config).unwrap();
        Self { name: "s3", bench, root, url: "s3://box/pre".into(), server: Some(server) }
    }

    pub(crate) fn local() -> Self {
        let bench = Bench::new();
        let root = bench.directory("box");
        let url = format!("file://{}", root.display());
        Self { name: "local", bench, root, url, server: None }
    }

    pub(crate) fn both() -> [Self; 2] {
        [Self::s3(), Self::local()]
    }

    /// A command line of the program for this bucket.
    pub(crate) fn thawfs(&self) -> Command {
        let mut command = self.bench.thawfs();
        if let Some(server) = &self.server {
            command
                .env("AWS_ENDPOINT_URL", server.url())
                .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
                .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        }
        command.env("THAWFS_BUCKET", &self.url);
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.thawfs().args(arguments).output().unwrap()
    }

    /// Exit code and JSON documents.
    pub(crate) fn json(&self, arguments: &[&str]) -> (i32, Vec<serde_json::Value>) {
        let output = self.run(&[arguments, &["--json"]].concat());
        let documents = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
        (output.status.code().unwrap(), documents.map(Result::unwrap).collect())
    }

    pub(crate) fn object(&self, path: &str) -> PathBuf {
        self.root.join("backups").join(path)
    }

    pub(crate) fn put(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let path = self.object(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// Makes an object or upload look as if it was written so long ago.
    pub(crate) fn age(path: &Path, age: Duration) {
        std::fs::File::open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
    }

    /// Keys below `backups/`, sorted.
    pub(crate) fn keys(&self) -> Vec<String> {
        let root = self.object("");
        let files = walkdir::WalkDir::new(&root).sort_by_file_name().into_iter().flatten();
        files
            .filter(|entry| entry.file_type().is_file())
            .map(|entry| entry.path().strip_prefix(&root).unwrap().display().to_string())
            .collect()
    }
}
