//! A local directory as a bucket: keys are paths below it.
//!
//! An object is written under a name of its own beside its place, synced and renamed, so that it is there whole or
//! not at all. Parts of an upload are written where they belong in that one file. What is unfinished is left out of
//! listings, and is what an upload is in a bucket.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use rustix::io::Errno;
use tempfile::NamedTempFile;

use super::counters::{Tally, add};
use super::{
    Bucket, Copied, Counters, Depth, ETag, Error, GetRange, Listed, Page, Part, Ranged, Result,
    Unfinished, UnfinishedPage, Upload, WriteObjects,
};

/// What names of files still being written start with. Listings leave them out.
const UNFINISHED: &str = ".thawfs-unfinished-";

/// A directory.
#[derive(Debug)]
pub(super) struct LocalBucket {
    root: PathBuf,
    tally: Arc<Tally>,
}

impl LocalBucket {
    /// For the files below `root`, which need not exist yet. Empty means the working directory.
    pub(super) fn open(root: &Path) -> Self {
        Self { root: root.to_owned(), tally: Arc::default() }
    }

    fn path(&self, key: &str) -> Result<PathBuf> {
        let is_plain = |segment: &str| !matches!(segment, "" | "." | "..");
        if key.contains('\0') || !key.split('/').all(is_plain) {
            return Err(Error::UnsupportedSource {
                source_text: self.name(key),
                reason: "it is not a path below the store's directory".into(),
            });
        }
        Ok(self.root.join(key))
    }

    /// Runs file system calls where they may block.
    async fn blocking<T: Send + 'static>(
        &self,
        object: String,
        work: impl FnOnce(&Tally) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let tally = self.tally.clone();
        let result = tokio::task::spawn_blocking(move || work(&tally))
            .await
            .unwrap_or(Err(Error::ShutDown { object }));
        if result.is_err() {
            add(&self.tally.errors, 1);
        }
        result
    }
}

#[async_trait]
impl WriteObjects for LocalBucket {
    fn name(&self, key: &str) -> String {
        self.root.join(key).display().to_string()
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        let path = self.path(key)?;
        self.blocking(self.name(key), move |tally| {
            add(&tally.writes, 1);
            add(&tally.bytes_out, body.len() as u64);
            let unfinished = unfinished(&path)?;
            let file = unfinished.as_file();
            file.write_all_at(&body, 0)
                .and_then(|()| file.sync_all())
                .map_err(failed("write", unfinished.path()))?;
            unfinished.persist(&path).map_err(|kept| failed("rename", &path)(kept.error))?;
            sync_parent(&path)
        })
        .await
    }

    async fn start_upload(&self, key: &str, part_size: u64) -> Result<Upload> {
        let path = self.path(key)?;
        let key = key.to_owned();
        self.blocking(self.name(&key), move |_| {
            let unfinished = unfinished(&path)?.into_temp_path();
            let unfinished =
                unfinished.keep().map_err(|kept| failed("create", &path)(kept.error))?;
            let name = unfinished.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            Ok(Upload { key, part_size, id: name.to_owned() })
        })
        .await
    }

    async fn put_part(&self, upload: &Upload, index: u32, body: Bytes) -> Result<Part> {
        upload.check_part(index, body.len() as u64)?;
        let path = self.path(&upload.key)?.with_file_name(&upload.id);
        let at = u64::from(index) * upload.part_size;
        self.blocking(self.name(&upload.key), move |tally| {
            add(&tally.writes, 1);
            add(&tally.bytes_out, body.len() as u64);
            let file = OpenOptions::new().write(true).open(&path).map_err(failed("open", &path))?;
            file.write_all_at(&body, at).map_err(failed("pwrite", &path))?;
            Ok(Part { index, size: body.len() as u64, tag: String::new() })
        })
        .await
    }

    /// By reflink where the file system has that, else within the kernel.
    async fn copy_part(&self, upload: &Upload, index: u32, from: &Copied) -> Result<Part> {
        let size = from.range.end.saturating_sub(from.range.start);
        upload.check_part(index, size)?;
        let path = self.path(&upload.key)?.with_file_name(&upload.id);
        let (source, from, object) = (self.path(&from.key)?, from.clone(), self.name(&from.key));
        let at = u64::from(index) * upload.part_size;
        self.blocking(self.name(&upload.key), move |tally| {
            add(&tally.writes, 1);
            let file = File::open(&source).map_err(not_found("open", &source))?;
            let meta = file.metadata().map_err(failed("fstat", &source))?;
            if from.version.is_some_and(|version| version != ETag::of_file(&meta)) {
                return Err(Error::Changed { object });
            }
            if from.range.end > meta.len() {
                let range = format!("{:?}", from.range);
                return Err(Error::OutOfRange { object, range });
            }
            let to = OpenOptions::new().write(true).open(&path).map_err(failed("open", &path))?;
            copy_range(&file, from.range.start, &to, at, size).map_err(failed("copy", &path))?;
            Ok(Part { index, size, tag: String::new() })
        })
        .await
    }

    async fn complete_upload(&self, upload: &Upload, parts: &[Part]) -> Result<()> {
        let size: u64 = upload.check_parts(parts)?.iter().map(|part| part.size).sum();
        let path = self.path(&upload.key)?;
        let unfinished = path.with_file_name(&upload.id);
        self.blocking(self.name(&upload.key), move |_| {
            let file = OpenOptions::new().write(true).open(&unfinished);
            // A part that was sent and then left out of the list must not stay at the end.
            file.and_then(|file| file.set_len(size).and_then(|()| file.sync_all()))
                .map_err(failed("fsync", &unfinished))?;
            // What cannot get its name is the caller's to abort.
            fs::rename(&unfinished, &path).map_err(failed("rename", &path))?;
            sync_parent(&path)
        })
        .await
    }

    async fn abort_upload(&self, upload: &Upload) -> Result<()> {
        let path = self.path(&upload.key)?.with_file_name(&upload.id);
        let root = self.root.clone();
        self.blocking(self.name(&upload.key), move |_| remove(&path, &root)).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let (path, root) = (self.path(key)?, self.root.clone());
        self.blocking(self.name(key), move |tally| {
            add(&tally.writes, 1);
            remove(&path, &root)
        })
        .await
    }
}

#[async_trait]
impl Bucket for LocalBucket {
    async fn get_range(
        &self,
        key: &str,
        range: GetRange,
        expect: Option<&ETag>,
        piece: usize,
    ) -> Result<Ranged> {
        let (path, object, expect) = (self.path(key)?, self.name(key), expect.cloned());
        self.blocking(self.name(key), move |tally| {
            add(&tally.gets, 1);
            let file = File::open(&path).map_err(not_found("open", &path))?;
            let meta = file.metadata().map_err(failed("fstat", &path))?;
            if !meta.is_file() {
                return Err(Error::UnsupportedSource {
                    source_text: object,
                    reason: "it is not a regular file".into(),
                });
            }
            let (size, etag) = (meta.len(), ETag::of_file(&meta));
            if expect.is_some_and(|expect| expect != etag) {
                return Err(Error::Changed { object });
            }
            let found = match &range {
                GetRange::Between(range) => range.start..range.end.min(size),
                GetRange::Last(count) => size.saturating_sub(*count)..size,
            };
            if found.is_empty() {
                return Err(Error::OutOfRange { object, range: range.to_string() });
            }
            let mut pieces = Vec::new();
            let mut at = found.start;
            while at < found.end {
                let len = (piece.max(1) as u64).min(found.end - at);
                let mut bytes = vec![0; usize::try_from(len).unwrap_or(piece)];
                file.read_exact_at(&mut bytes, at).map_err(failed("pread", &path))?;
                at += bytes.len() as u64;
                add(&tally.bytes_in, bytes.len() as u64);
                pieces.push(Bytes::from(bytes));
            }
            Ok(Ranged { pieces, range: found, size, etag: Some(etag) })
        })
        .await
    }

    async fn get_whole(&self, key: &str, limit: u64) -> Result<Bytes> {
        let (path, object) = (self.path(key)?, self.name(key));
        self.blocking(self.name(key), move |tally| {
            add(&tally.gets, 1);
            let file = File::open(&path).map_err(not_found("open", &path))?;
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(file, limit.saturating_add(1)), &mut bytes)
                .map_err(failed("read", &path))?;
            if bytes.len() as u64 > limit {
                return Err(Error::TooLarge { object, limit });
            }
            add(&tally.bytes_in, bytes.len() as u64);
            Ok(bytes.into())
        })
        .await
    }

    async fn list(&self, prefix: &str, depth: Depth, _: Option<&str>) -> Result<Page> {
        let (root, prefix) = (self.root.clone(), prefix.to_owned());
        self.blocking(self.name(&prefix), move |_| {
            let mut page = Page::default();
            walk(&root, &prefix, depth, |found| match found {
                Found::Object(object) => page.objects.push(object),
                Found::Prefix(prefix) => page.prefixes.push(prefix),
                Found::Unfinished { .. } => {}
            })?;
            page.objects.sort_by(|a, b| a.key.cmp(&b.key));
            page.prefixes.sort();
            Ok(page)
        })
        .await
    }

    /// All unfinished files, those of interrupted [`WriteObjects::put`]s among them, on one page. Their
    /// keys are not known any more, only the directory, so the key is the file's own.
    async fn list_uploads(&self, prefix: &str, _: Option<&str>) -> Result<UnfinishedPage> {
        let (root, prefix) = (self.root.clone(), prefix.to_owned());
        self.blocking(self.name(&prefix), move |_| {
            let mut uploads = Vec::new();
            walk(&root, &prefix, Depth::All, |found| {
                if let Found::Unfinished { key, id, modified } = found {
                    let upload = Upload { key, part_size: 0, id };
                    uploads.push(Unfinished { upload, since: modified });
                }
            })?;
            uploads.sort_by(|a, b| a.upload.key.cmp(&b.upload.key));
            Ok(UnfinishedPage { uploads, next: None })
        })
        .await
    }

    fn counters(&self) -> Counters {
        self.tally.snapshot()
    }
}

/// What a walk comes across.
enum Found {
    Object(Listed),
    /// A directory below the depth that was asked for.
    Prefix(String),
    /// A file that was not given its name.
    Unfinished {
        key: String,
        id: String,
        modified: Option<DateTime<Utc>>,
    },
}

/// Shows `see` every file whose key starts with `prefix`, in no order.
fn walk(root: &Path, prefix: &str, depth: Depth, mut see: impl FnMut(Found)) -> Result<()> {
    let directory = prefix.rfind('/').map_or("", |slash| prefix.split_at(slash + 1).0);
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        walk_directory(root, &directory, prefix, depth, &mut see, &mut left)?;
    }
    Ok(())
}

/// Shows what is in one directory, and adds the directories in it to those still to walk.
fn walk_directory(
    root: &Path,
    directory: &str,
    prefix: &str,
    depth: Depth,
    see: &mut impl FnMut(Found),
    left: &mut Vec<String>,
) -> Result<()> {
    let path = root.join(directory);
    let entries = match fs::read_dir(if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        &path
    }) {
        Ok(entries) => entries,
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(());
        }
        Err(error) => return Err(failed("opendir", &path)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed("readdir", &path))?;
        // A name that is not UTF-8 cannot be a key.
        let Ok(name) = entry.file_name().into_string() else { continue };
        let key = format!("{directory}{name}");
        // A link to a file is followed, as on reading; one to a directory could lead in a circle.
        let Ok(meta) = fs::metadata(entry.path()) else { continue };
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        if meta.is_dir() {
            if is_link {
                continue;
            }
            let key = format!("{key}/");
            // Above the prefix only the directory that leads to it can hold a match.
            if !key.starts_with(prefix) {
                continue;
            }
            match depth {
                Depth::All => left.push(key),
                Depth::Children => see(Found::Prefix(key)),
            }
        } else if meta.is_file() && key.starts_with(prefix) {
            let modified = meta.modified().ok().map(DateTime::from);
            see(match name.starts_with(UNFINISHED) {
                true => Found::Unfinished { key, id: name, modified },
                false => Found::Object(Listed { key, size: meta.len(), modified }),
            });
        }
    }
    Ok(())
}

/// Copies `left` bytes between two files.
fn copy_range(from: &File, mut at: u64, to: &File, mut onto: u64, mut left: u64) -> io::Result<()> {
    let mut buffer = Vec::new();
    while left > 0 {
        // It moves both places on.
        let len = usize::try_from(left.min(1 << 30)).unwrap_or(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut onto), len) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(copied) => left -= copied as u64,
            Err(Errno::INTR) => {}
            // Not between these two.
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM) => {
                buffer.resize(len.min(1 << 20), 0);
                from.read_exact_at(&mut buffer, at)?;
                to.write_all_at(&buffer, onto)?;
                let copied = buffer.len() as u64;
                (at, onto, left) = (at + copied, onto + copied, left - copied);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn create_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => {
            fs::create_dir_all(parent).map_err(failed("mkdir", parent))
        }
        _ => Ok(()),
    }
}

/// An empty file in the directory of `path`, made if need be, to become that.
fn unfinished(path: &Path) -> Result<NamedTempFile> {
    create_parent(path)?;
    let parent = path.parent().unwrap_or(Path::new(""));
    tempfile::Builder::new()
        .prefix(UNFINISHED)
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(parent)
        .map_err(failed("create", path))
}

/// Makes the name `path` last.
fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed("fsync", parent))
}

fn remove(path: &Path, root: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("unlink", path)(error));
        }
        _ => {}
    }
    // In a bucket a prefix is gone with its last object, so here its directory goes too, if it is
    // empty. Not those above: somebody may be about to write below them.
    if let Some(parent) = path.parent().filter(|parent| *parent != root) {
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

fn failed(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |error| Error::Io { call, path, error }
}

fn not_found(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            Error::NotFound { object: path.display().to_string(), refusal: None }
        }
        _ => Error::Io { call, path, error },
    }
}
