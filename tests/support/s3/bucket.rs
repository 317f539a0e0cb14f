//! Objects as files: the S3 operations that thawfs and the peers it is measured against use.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use futures::StreamExt;
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

use super::{Config, Tags};

/// Bytes per read of a file.
const READ: usize = 256 << 10;

/// File systems that share blocks of files, as statfs(2) calls them: XFS, btrfs.
const SHARING: [u32; 2] = [0x5846_5342, 0x9123_683e];

/// Appends `length` bytes of a file, from where it is read, to another. The kernel does it where it shares blocks, as a
/// store copies what it has out of sight of clients; it would copy page by page where the file system is in memory, at half
/// a gigabyte a second.
fn append(from: &File, length: u64, to: &mut File) -> std::io::Result<()> {
    let mut from = from.take(length);
    if SHARING.contains(&(rustix::fs::fstatfs(&*to)?.f_type as u32)) {
        std::io::copy(&mut from, to)?;
    }
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer)? {
            0 if from.limit() == 0 => return Ok(()),
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            len => to.write_all(&buffer[..len])?,
        }
    }
}

/// Where unfinished uploads are kept, beside the buckets.
const UPLOADS: &str = ".uploads";

/// What an unfinished upload is for, kept beside its parts: bucket and key.
const TARGET: &str = "target";

/// The directory of buckets.
pub(super) struct Buckets {
    root: PathBuf,
    min_part: u64,
    page: usize,
    tags: Tags,
    forgets_pages: bool,
    copies: bool,
    serial: AtomicU64,
}

impl Buckets {
    pub(super) fn new(config: &Config) -> Self {
        let serial = AtomicU64::new(0);
        let Config { root, min_part, page, tags, forgets_pages, copies, .. } = config.clone();
        Self { root, min_part, page, tags, forgets_pages, copies, serial }
    }

    fn bucket(&self, bucket: &str) -> S3Result<PathBuf> {
        let path = self.root.join(bucket);
        if path.is_dir() { Ok(path) } else { Err(s3_error!(NoSuchBucket)) }
    }

    fn path(&self, bucket: &str, key: &str) -> S3Result<PathBuf> {
        if key.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return Err(s3_error!(InvalidArgument, "{key} is no path"));
        }
        Ok(self.bucket(bucket)?.join(key))
    }

    fn upload(&self, id: &str) -> S3Result<PathBuf> {
        let path = self.root.join(UPLOADS).join(id);
        if id.bytes().all(|byte| byte.is_ascii_digit()) && path.is_dir() {
            Ok(path)
        } else {
            Err(s3_error!(NoSuchUpload))
        }
    }
}

fn open(path: &Path) -> S3Result<(File, fs::Metadata)> {
    let file = File::open(path).map_err(|_| s3_error!(NoSuchKey))?;
    let meta = file.metadata().map_err(|error| s3_error!(error, InternalError))?;
    if meta.is_file() { Ok((file, meta)) } else { Err(s3_error!(NoSuchKey)) }
}

fn etag(meta: &fs::Metadata) -> ETag {
    let time = format!("{}{:09}", meta.mtime(), meta.mtime_nsec());
    ETag::Strong(format!("{:x}-{:x}-{time}", meta.ino(), meta.len()))
}

fn length(bytes: u64) -> i64 {
    bytes.try_into().expect("files are shorter than 8 EiB")
}

/// Writes a body to a file that appears under its name when it is complete. Returns its tag.
async fn write(path: &Path, body: Option<StreamingBlob>) -> S3Result<ETag> {
    let failed = |error: std::io::Error| s3_error!(error, InternalError);
    fs::create_dir_all(path.parent().expect("an object lies in a bucket")).map_err(failed)?;
    let partial = path.with_extension("partial");
    let mut file = File::create(&partial).map_err(failed)?;
    let mut hasher = DefaultHasher::new();
    if let Some(mut body) = body {
        while let Some(frame) = body.next().await {
            let frame = frame.map_err(|_| s3_error!(IncompleteBody))?;
            frame.hash(&mut hasher);
            file.write_all(&frame).map_err(failed)?;
        }
    }
    fs::rename(&partial, path).map_err(failed)?;
    Ok(ETag::Strong(format!("{:016x}", hasher.finish())))
}

/// Makes the file at `path` of a range of another.
fn copy(mut from: &File, range: std::ops::Range<u64>, path: &Path) -> std::io::Result<ETag> {
    from.seek(SeekFrom::Start(range.start))?;
    append(from, range.end - range.start, &mut File::create(path)?)?;
    let mut hasher = DefaultHasher::new();
    (range, from.metadata()?.ino()).hash(&mut hasher);
    Ok(ETag::Strong(format!("{:016x}", hasher.finish())))
}

/// Bytes of a file as a stream of large reads.
fn stream(file: File, range: std::ops::Range<u64>) -> StreamingBlob {
    let file = Arc::new(file);
    let frames = futures::stream::unfold(range, move |range| {
        let file = file.clone();
        async move {
            if range.is_empty() {
                return None;
            }
            let len = (range.end - range.start).min(READ as u64);
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = vec![0; usize::try_from(len).expect("a read fits memory")];
                file.read_exact_at(&mut bytes, range.start).map(|()| Bytes::from(bytes))
            });
            let bytes = read.await.expect("reading does not panic");
            Some((bytes, range.start + len..range.end))
        }
    });
    StreamingBlob::wrap(frames)
}

/// All files below a directory, with their keys.
fn walk(directory: &Path, prefix: &str, found: &mut BTreeMap<String, fs::Metadata>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Ok(meta) = entry.metadata() else { continue };
        let key = format!("{prefix}{name}");
        if meta.is_dir() {
            walk(&entry.path(), &format!("{key}/"), found);
        } else {
            found.insert(key, meta);
        }
    }
}

#[async_trait::async_trait]
impl S3 for Buckets {
    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let (file, meta) = open(&self.path(&input.bucket, &input.key)?)?;
        let tag = match self.tags {
            Tags::Strong => Some(etag(&meta)),
            Tags::Weak => Some(ETag::Weak(etag(&meta).into_value())),
            Tags::Absent => None,
            Tags::Same => Some(ETag::Strong("same".into())),
        };
        if let Some(ETagCondition::ETag(expected)) = input.if_match
            && !tag.as_ref().is_some_and(|tag| expected.strong_cmp(tag))
        {
            return Err(s3_error!(PreconditionFailed));
        }
        let (range, content_range) = match input.range {
            None => (0..meta.len(), None),
            Some(range) => {
                let range = range.check(meta.len())?;
                if range.is_empty() {
                    return Err(s3_error!(InvalidRange));
                }
                let (first, last) = (range.start, range.end - 1);
                (range, Some(format!("bytes {first}-{last}/{}", meta.len())))
            }
        };
        Ok(S3Response::new(GetObjectOutput {
            content_length: Some(length(range.end - range.start)),
            body: Some(stream(file, range)),
            content_range,
            e_tag: tag,
            last_modified: meta.modified().ok().map(Timestamp::from),
            accept_ranges: Some("bytes".into()),
            ..Default::default()
        }))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let (_, meta) = open(&self.path(&request.input.bucket, &request.input.key)?)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(length(meta.len())),
            e_tag: Some(etag(&meta)),
            last_modified: meta.modified().ok().map(Timestamp::from),
            accept_ranges: Some("bytes".into()),
            ..Default::default()
        }))
    }

    async fn head_bucket(
        &self,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        self.bucket(&request.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn get_bucket_location(
        &self,
        request: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.bucket(&request.input.bucket)?;
        Ok(S3Response::new(GetBucketLocationOutput::default()))
    }

    async fn put_object(
        &self,
        request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        let path = self.path(&input.bucket, &input.key)?;
        write(&path, input.body).await?;
        let (_, meta) = open(&path)?;
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(etag(&meta)), ..Default::default() }))
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let path = self.path(&request.input.bucket, &request.input.key)?;
        // S3 answers 204 whether or not there was an object.
        let _ = fs::remove_file(path);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = request.input;
        self.path(&input.bucket, &input.key)?;
        let id = self.serial.fetch_add(1, Relaxed).to_string();
        let directory = self.root.join(UPLOADS).join(&id);
        fs::create_dir_all(&directory)
            .and_then(|()| {
                fs::write(directory.join(TARGET), format!("{}\n{}", input.bucket, input.key))
            })
            .map_err(|error| s3_error!(error, InternalError))?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            ..Default::default()
        }))
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let input = request.input;
        let directory = self.upload(&input.upload_id)?;
        let path = directory.join(format!("{:05}", input.part_number));
        let tag = write(&path, input.body).await?;
        Ok(S3Response::new(UploadPartOutput { e_tag: Some(tag), ..Default::default() }))
    }

    async fn upload_part_copy(
        &self,
        request: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        if !self.copies {
            return Err(s3_error!(NotImplemented, "no part is copied here"));
        }
        let input = request.input;
        let directory = self.upload(&input.upload_id)?;
        let CopySource::Bucket { bucket, key, .. } = &input.copy_source else {
            return Err(s3_error!(NotImplemented));
        };
        let (from, meta) = open(&self.path(bucket, key)?)?;
        let is = |tag: &ETag| *tag == etag(&meta);
        if !input.copy_source_if_match.iter().all(|tag| tag.as_etag().is_some_and(is)) {
            return Err(s3_error!(PreconditionFailed));
        }
        let range = input.copy_source_range.as_deref().and_then(|range| {
            let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some(first.parse().ok()?..last.parse::<u64>().ok()? + 1)
        });
        let range = range.unwrap_or(0..meta.len());
        if range.is_empty() || range.end > meta.len() {
            return Err(s3_error!(InvalidRange));
        }
        let path = directory.join(format!("{:05}", input.part_number));
        let tag = copy(&from, range, &path).map_err(|error| s3_error!(error, InternalError))?;
        let result = CopyPartResult { e_tag: Some(tag), ..Default::default() };
        Ok(S3Response::new(UploadPartCopyOutput {
            copy_part_result: Some(result),
            ..Default::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let failed = |error: std::io::Error| s3_error!(error, InternalError);
        let input = request.input;
        let path = self.path(&input.bucket, &input.key)?;
        let directory = self.upload(&input.upload_id)?;
        let parts = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let part = |part: &CompletedPart| {
            directory.join(format!("{:05}", part.part_number.unwrap_or_default()))
        };
        let parts: Vec<PathBuf> = parts.iter().map(part).collect();
        let size = |part| fs::metadata(part).map(|meta| meta.len());
        let sizes: Vec<u64> =
            parts.iter().map(size).collect::<Result<_, _>>().map_err(|_| s3_error!(InvalidPart))?;
        let but_last = sizes.split_last().map_or(&[][..], |(_, rest)| rest);
        if but_last.iter().any(|size| *size < self.min_part) {
            return Err(s3_error!(EntityTooSmall));
        }
        // What S3 takes and R2 does not.
        if but_last.windows(2).any(|pair| pair[0] != pair[1]) || sizes.last() > sizes.first() {
            return Err(s3_error!(
                InvalidPart,
                "All non-trailing parts must have the same length."
            ));
        }
        let partial = path.with_extension("partial");
        fs::create_dir_all(path.parent().expect("an object lies in a bucket")).map_err(failed)?;
        let mut whole = File::create(&partial).map_err(failed)?;
        for (part, size) in parts.iter().zip(sizes) {
            append(&File::open(part).map_err(failed)?, size, &mut whole).map_err(failed)?;
            // At once: where files are in memory, there need not be room for two of each.
            fs::remove_file(part).map_err(failed)?;
        }
        fs::rename(&partial, &path).map_err(failed)?;
        fs::remove_dir_all(&directory).map_err(failed)?;
        let (_, meta) = open(&path)?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(etag(&meta)),
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let directory = self.upload(&request.input.upload_id)?;
        fs::remove_dir_all(directory).map_err(|error| s3_error!(error, InternalError))?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = request.input;
        let prefix = input.prefix.unwrap_or_default();
        let after = input.key_marker.zip(input.upload_id_marker).filter(|_| !self.forgets_pages);
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(self.root.join(UPLOADS)).into_iter().flatten().flatten() {
            let path = entry.path().join(TARGET);
            let Ok(target) = fs::read_to_string(&path) else { continue };
            let (bucket, key) = target.split_once('\n').expect("it was written so");
            let id = entry.file_name().into_string().expect("it is a number");
            if bucket == input.bucket && key.starts_with(&prefix) {
                let initiated = fs::metadata(path).and_then(|meta| meta.modified()).ok();
                found.insert((key.to_owned(), id), initiated);
            }
        }
        let mut left = found.into_iter().filter(|(at, _)| after.as_ref().is_none_or(|a| at > a));
        let uploads: Vec<MultipartUpload> = left
            .by_ref()
            .take(self.page)
            .map(|((key, id), initiated)| MultipartUpload {
                key: Some(key),
                upload_id: Some(id),
                initiated: initiated.map(Timestamp::from),
                ..Default::default()
            })
            .collect();
        let more = uploads.last().cloned().filter(|_| left.next().is_some());
        Ok(S3Response::new(ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            is_truncated: Some(more.is_some()),
            next_key_marker: more.as_ref().and_then(|last| last.key.clone()),
            next_upload_id_marker: more.and_then(|last| last.upload_id),
            uploads: Some(uploads),
            ..Default::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        let mut found = BTreeMap::new();
        walk(&self.bucket(&input.bucket)?, "", &mut found);
        let prefix = input.prefix.clone().unwrap_or_default();
        // A page's token is the last key or prefix of the page before.
        let token = input.continuation_token.clone().filter(|_| !self.forgets_pages);
        let after = token.or(input.start_after).unwrap_or_default();
        let mut output = ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix,
            delimiter: input.delimiter.clone(),
            continuation_token: input.continuation_token,
            is_truncated: Some(false),
            ..Default::default()
        };
        let (mut contents, mut prefixes, mut last) = (Vec::new(), Vec::new(), String::new());
        for (key, meta) in found {
            let Some(rest) = key.strip_prefix(&prefix) else { continue };
            let delimiter = input.delimiter.as_deref().unwrap_or("\0");
            let folded =
                rest.find(delimiter).map(|at| format!("{prefix}{}", &rest[..at + delimiter.len()]));
            let name = folded.clone().unwrap_or_else(|| key.clone());
            if name <= after || name == last {
                continue;
            }
            if contents.len() + prefixes.len() == self.page {
                output.is_truncated = Some(true);
                output.next_continuation_token = Some(last);
                break;
            }
            last = name;
            match folded {
                Some(prefix) => prefixes.push(CommonPrefix { prefix: Some(prefix) }),
                None => contents.push(Object {
                    e_tag: Some(etag(&meta)),
                    key: Some(key),
                    last_modified: meta.modified().ok().map(Timestamp::from),
                    size: Some(length(meta.len())),
                    ..Default::default()
                }),
            }
        }
        output.key_count = i32::try_from(contents.len() + prefixes.len()).ok();
        output.contents = Some(contents);
        output.common_prefixes = Some(prefixes);
        Ok(S3Response::new(output))
    }

    /// The first version of the same, which s3fs speaks: a page's token is a marker there.
    async fn list_objects(
        &self,
        request: S3Request<ListObjectsInput>,
    ) -> S3Result<S3Response<ListObjectsOutput>> {
        let marker = request.input.marker.clone();
        let request = request.map_input(|input| ListObjectsV2Input {
            bucket: input.bucket,
            delimiter: input.delimiter,
            prefix: input.prefix,
            start_after: input.marker,
            ..Default::default()
        });
        let listed = self.list_objects_v2(request).await?.output;
        Ok(S3Response::new(ListObjectsOutput {
            name: listed.name,
            prefix: listed.prefix,
            delimiter: listed.delimiter,
            marker,
            is_truncated: listed.is_truncated,
            next_marker: listed.next_continuation_token,
            contents: listed.contents,
            common_prefixes: listed.common_prefixes,
            ..Default::default()
        }))
    }
}
