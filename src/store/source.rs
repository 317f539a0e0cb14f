//! What a user types to say where an archive is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use url::Url;

use super::http_object::HttpObject;
use super::local::LocalBucket;
use super::s3::S3Bucket;
use super::shown::redacted;
use super::{Access, Error, Folder, Object, ReadRanges, Result};

/// A last segment that ends so is an archive; anything else is a prefix to look below. Asking the
/// bucket instead would cost a round trip before the first byte.
const ARCHIVE_ENDINGS: [&str; 4] = [".sqsh", ".squashfs", ".sfs", ".img"];

/// Where an archive is, or where backups are kept.
///
/// | written as | means |
/// | --- | --- |
/// | `s3://BUCKET/KEY.sqsh` | that object (also `.squashfs`, `.sfs`, `.img`) |
/// | `s3://BUCKET/PREFIX` or `s3://BUCKET` | `data.sqsh` below the prefix |
/// | `https://…`, `http://…` | that URL, with its query (a presigned URL has its signature there) |
/// | `file:///PATH` or a path | that file; `data.sqsh` in it for a directory |
///
/// `Display` and `Debug` never show a URL's query, user or password.
///
/// ```
/// use thawfs::store::Source;
///
/// let source: Source = "https://example.com/data.sqsh?signature=secret".parse()?;
/// assert!(!source.to_string().contains("secret"));
/// # Ok::<(), thawfs::store::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub enum Source {
    /// A key or prefix in a bucket.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// Key or prefix as written, without a slash at the start.
        key: String,
    },
    /// One object behind a URL.
    Http(Url),
    /// A file or directory.
    Local(PathBuf),
}

impl Source {
    /// Name of the archive below a prefix or in a directory.
    pub const ARCHIVE: &str = "data.sqsh";

    /// Opens the archive. Nothing is fetched yet.
    ///
    /// # Errors
    /// [`Error::BadCredentials`] or [`Error::BadOption`] if the options do not suffice.
    pub async fn archive(&self, access: &Access) -> Result<Arc<dyn ReadRanges>> {
        match self {
            Self::Http(url) => Ok(Arc::new(HttpObject::open(url, access)?)),
            Self::S3 { .. } | Self::Local(_) => Ok(Arc::new(self.object(access).await?)),
        }
    }

    /// Opens the place and names the archive in it. Nothing is fetched yet.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] for a URL, which is in no bucket that we know, and as for [`Source::archive`].
    pub async fn object(&self, access: &Access) -> Result<Object> {
        match self {
            Self::S3 { bucket, key } => {
                let bucket = Arc::new(S3Bucket::open(bucket, access).await?);
                let key = if ARCHIVE_ENDINGS.iter().any(|ending| key.ends_with(ending)) {
                    key.clone()
                } else {
                    below(key, Self::ARCHIVE)
                };
                Ok(Object { bucket, key })
            }
            Self::Http(_) => Err(Error::ReadOnly { place: self.to_string() }),
            Self::Local(path) => {
                let path = if path.is_dir() { path.join(Self::ARCHIVE) } else { path.clone() };
                let key = path.file_name().and_then(|name| name.to_str());
                let Some(key) = key.map(str::to_owned) else {
                    return Err(self.unsupported("it names no file"));
                };
                let parent = path.parent().unwrap_or(Path::new(""));
                Ok(Object { bucket: Arc::new(LocalBucket::open(parent)), key })
            }
        }
    }

    /// Opens the place as a prefix or directory to keep objects below.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] for a URL, and as for [`Source::archive`].
    pub async fn folder(&self, access: &Access) -> Result<Folder> {
        match self {
            Self::S3 { bucket, key } => {
                let bucket = Arc::new(S3Bucket::open(bucket, access).await?);
                Ok(Folder { bucket, prefix: below(key, "") })
            }
            Self::Http(_) => Err(Error::ReadOnly { place: self.to_string() }),
            Self::Local(path) => {
                Ok(Folder { bucket: Arc::new(LocalBucket::open(path)), prefix: String::new() })
            }
        }
    }

    fn unsupported(&self, reason: &str) -> Error {
        Error::UnsupportedSource { source_text: self.to_string(), reason: reason.into() }
    }

    fn check(self) -> Result<Self> {
        let name = match &self {
            Self::S3 { key, .. } => key.as_str(),
            Self::Http(url) => url.path(),
            Self::Local(path) => path.to_str().unwrap_or_default(),
        };
        if name.ends_with(".tar.zst") {
            return Err(Error::UnsupportedFormat { object: self.to_string() });
        }
        if let Self::S3 { bucket, key } = &self {
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            if bucket.is_empty() || bucket.len() > 255 || !bucket.bytes().all(legal) {
                return Err(self.unsupported("the bucket's name is not a legal one"));
            }
            if key.split('/').any(|segment| matches!(segment, "." | "..")) {
                return Err(self.unsupported("a segment of its key is . or .."));
            }
        }
        Ok(self)
    }
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((scheme, rest)) = text.split_once("://") else {
            if text.is_empty() {
                return Err(Error::UnsupportedSource {
                    source_text: "\"\"".into(),
                    reason: "it is empty".into(),
                });
            }
            return match without_slashes(text) {
                Some(slip) => Err(slip),
                None => Self::Local(PathBuf::from(text)).check(),
            };
        };
        // The rest may hold secrets; only the scheme is safe to repeat.
        let unsupported = |reason: &str| Error::UnsupportedSource {
            source_text: format!("{scheme}://…"),
            reason: reason.into(),
        };
        match scheme.to_ascii_lowercase().as_str() {
            "s3" => {
                let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
                let key = key.trim_start_matches('/').to_owned();
                Self::S3 { bucket: bucket.to_owned(), key }.check()
            }
            "http" | "https" => {
                let url = Url::parse(text).map_err(|error| unsupported(&error.to_string()))?;
                Self::Http(url).check()
            }
            "file" => {
                let url = Url::parse(text).map_err(|error| unsupported(&error.to_string()))?;
                let path = url.to_file_path().map_err(|()| unsupported("it is on another host"))?;
                Self::Local(path).check()
            }
            _ => Err(unsupported("its scheme is not one of s3, http, https and file")),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, key } => write!(f, "s3://{bucket}/{key}"),
            Self::Http(url) => f.write_str(&redacted(url)),
            Self::Local(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({self})")
    }
}

/// What is wrong with `s3:BUCKET/KEY` and the like, which as a path would be a file that is not there.
fn without_slashes(text: &str) -> Option<Error> {
    let (scheme, rest) = text.split_once(':')?;
    if !["s3", "http", "https", "file"].contains(&scheme.to_ascii_lowercase().as_str()) {
        return None;
    }
    let rest = rest.trim_start_matches('/');
    let (source_text, reason) = match scheme {
        "file" => (text.to_owned(), format!("write file:///{rest}, or ./{text} for a file")),
        "s3" | "S3" => (text.to_owned(), format!("write s3://{rest}, or ./{text} for a file")),
        // The rest may hold secrets.
        _ => (format!("{scheme}:…"), format!("write {scheme}://…")),
    };
    Some(Error::UnsupportedSource { source_text, reason })
}

/// `name` below a prefix that may or may not end in a slash.
fn below(prefix: &str, name: &str) -> String {
    let prefix = prefix.trim_end_matches('/');
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_mean_what_the_table_says() {
        let s3 = |bucket: &str, key: &str| Source::S3 { bucket: bucket.into(), key: key.into() };
        let table = [
            ("s3://b/k.sqsh", s3("b", "k.sqsh"), "s3://b/k.sqsh"),
            ("s3://b/backups/id/", s3("b", "backups/id/"), "s3://b/backups/id/"),
            ("S3://b", s3("b", ""), "s3://b/"),
            ("s3://b//k", s3("b", "k"), "s3://b/k"),
            ("s3://b/sp ace%20?#", s3("b", "sp ace%20?#"), "s3://b/sp ace%20?#"),
            ("file:///a/b%20c", Source::Local("/a/b c".into()), "/a/b c"),
            ("rel/ative.sqsh", Source::Local("rel/ative.sqsh".into()), "rel/ative.sqsh"),
            ("./s3:/x", Source::Local("./s3:/x".into()), "./s3:/x"),
        ];
        for (text, source, shown) in table {
            let parsed: Source = text.parse().unwrap();
            assert_eq!(parsed, source, "{text}");
            assert_eq!(parsed.to_string(), shown, "{text}");
        }
    }

    #[test]
    fn a_url_never_shows_its_secrets() {
        let text = "https://user:pass@host:8443/a/k.sqsh?X-Amz-Signature=secret#frag";
        let source: Source = text.parse().unwrap();
        assert_eq!(source.to_string(), "https://host:8443/a/k.sqsh");
        assert_eq!(format!("{source:?}"), "Source(https://host:8443/a/k.sqsh)");
        let error = "https://user:pass@:0/?secret".parse::<Source>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
    }

    #[test]
    fn what_cannot_be_opened_is_refused_with_its_reason() {
        for (text, reason) in [
            ("", "empty"),
            ("gs://b/k", "scheme"),
            ("s3://", "bucket"),
            ("s3://b@d/k", "bucket"),
            ("s3://b/a/../k", ".."),
            ("file://host/k", "another host"),
            ("s3:bk/x.sqsh", "write s3://bk/x.sqsh, or ./s3:bk/x.sqsh"),
            ("s3:/bk/x.sqsh", "write s3://bk/x.sqsh"),
            ("https:/h/x.sqsh?X-Amz-Signature=secret", "cannot use https:… as a source"),
            ("file:/x.sqsh", "write file:///x.sqsh"),
        ] {
            let error = text.parse::<Source>().unwrap_err();
            assert!(error.to_string().contains(reason), "{text:?}: {error}");
            assert!(matches!(error, Error::UnsupportedSource { .. }));
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_tar_archive_is_recognised_wherever_it_is() {
        for text in ["s3://b/backups/x/data.tar.zst", "https://h/x.tar.zst?sig", "x.tar.zst"] {
            let error = text.parse::<Source>().unwrap_err();
            assert!(matches!(error, Error::UnsupportedFormat { .. }), "{text:?}: {error}");
            assert!(!error.to_string().contains("sig"), "{error}");
        }
    }

    #[tokio::test]
    async fn the_archive_is_told_from_a_prefix_by_its_ending() {
        let access = Access { anonymous: true, ..Access::default() };
        for (text, name) in [
            ("s3://b/k.sqsh", "s3://b/k.sqsh"),
            ("s3://b/k.squashfs", "s3://b/k.squashfs"),
            ("s3://b/k.sfs", "s3://b/k.sfs"),
            ("s3://b/k.img", "s3://b/k.img"),
            ("s3://b/backups/id", "s3://b/backups/id/data.sqsh"),
            ("s3://b/backups/v1.2/", "s3://b/backups/v1.2/data.sqsh"),
            ("s3://b/k.sqsh/", "s3://b/k.sqsh/data.sqsh"),
            ("s3://b", "s3://b/data.sqsh"),
            ("/no/such/file", "/no/such/file"),
            ("/", "/data.sqsh"),
            ("file", "file"),
        ] {
            let object = text.parse::<Source>().unwrap().archive(&access).await.unwrap();
            assert_eq!(object.name(), name, "{text}");
        }
        let folder = "s3://b/p".parse::<Source>().unwrap().folder(&access).await.unwrap();
        assert_eq!(folder.object("x/meta.json").name(), "s3://b/p/x/meta.json");
    }
}
