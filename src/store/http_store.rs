//! One object behind an HTTP(S) URL, plain or presigned. It can be read and nothing else.

use std::fmt;

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::HeaderValue;
use percent_encoding::percent_decode_str;
use url::Url;

use super::exchange::{Auth, Exchange};
use super::redirect::Guard;
use super::source::redacted;
use super::{
    Counters, Depth, ETag, Error, GetRange, Pace, Page, Part, Ranged, Result, Store, StoreOptions,
    UnfinishedPage, Upload, ranged, tls,
};

/// A URL as a store with a single object, whose key is the URL's last segment.
pub(super) struct HttpStore {
    exchange: Exchange,
    /// Without user and password, with its query.
    url: Url,
    key: String,
}

impl HttpStore {
    /// For the object at `url`.
    pub(super) fn open(url: &Url, options: &StoreOptions) -> Result<Self> {
        let mut url = url.clone();
        let auth = match basic(&url)? {
            Some(value) => Auth::Basic(value),
            None => Auth::None,
        };
        // Neither can fail for a URL that has a host, and http URLs do.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        url.set_fragment(None);
        let key = url.path().rsplit('/').next().unwrap_or_default().to_owned();
        let guard = Guard::new(&url, &options.allow_redirects_to, &options.environment);
        let client = tls::client(options, Some(&guard))?;
        Ok(Self { exchange: Exchange::new(client, auth, None, options.clone()), url, key })
    }

    /// Key of the only object.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    fn read_only<T>(&self) -> Result<T> {
        Err(Error::ReadOnly { place: redacted(&self.url) })
    }

    fn unlistable<T>(&self) -> Result<T> {
        Err(Error::UnsupportedSource {
            source_text: redacted(&self.url),
            reason: "a URL cannot be listed".into(),
        })
    }

    fn check(&self, key: &str) -> Result<()> {
        match key == self.key {
            true => Ok(()),
            false => Err(Error::NotFound { object: self.name(key), refusal: None }),
        }
    }
}

/// Whether a parameter of a presigned URL belongs to its signature, and so differs from one signing to
/// the next: those of S3 in both versions, CloudFront and Google.
fn is_signature(name: &str) -> bool {
    const NAMES: [&str; 6] =
        ["signature", "expires", "awsaccesskeyid", "googleaccessid", "key-pair-id", "policy"];
    let name = name.to_ascii_lowercase();
    name.starts_with("x-amz-") || name.starts_with("x-goog-") || NAMES.contains(&name.as_str())
}

#[async_trait]
impl Store for HttpStore {
    fn name(&self, key: &str) -> String {
        let url = redacted(&self.url);
        match url.strip_suffix(&self.key) {
            Some(directory) => format!("{directory}{key}"),
            None => url,
        }
    }

    /// With what the query says of which object is meant, and without who may read it for how long.
    fn place(&self, key: &str) -> String {
        let meant: Vec<_> =
            self.url.query_pairs().filter(|(name, _)| !is_signature(name)).collect();
        format!("{} {meant:?}", self.name(key))
    }

    async fn get_range(
        &self,
        key: &str,
        range: GetRange,
        expect: Option<&ETag>,
        piece: usize,
    ) -> Result<Ranged> {
        self.check(key)?;
        let object = self.name(key);
        ranged::get_range(&self.exchange, &self.url, object, range, expect, piece).await
    }

    async fn get_whole(&self, key: &str, limit: u64) -> Result<Bytes> {
        self.check(key)?;
        ranged::get_whole(&self.exchange, &self.url, self.name(key), limit).await
    }

    async fn put(&self, _: &str, _: Bytes) -> Result<()> {
        self.read_only()
    }

    async fn start_upload(&self, _: &str, _: u64) -> Result<Upload> {
        self.read_only()
    }

    async fn put_part(&self, _: &Upload, _: u32, _: Bytes) -> Result<Part> {
        self.read_only()
    }

    async fn complete_upload(&self, _: &Upload, _: &[Part]) -> Result<()> {
        self.read_only()
    }

    async fn abort_upload(&self, _: &Upload) -> Result<()> {
        self.read_only()
    }

    async fn list_uploads(&self, _: &str, _: Option<&str>) -> Result<UnfinishedPage> {
        self.unlistable()
    }

    async fn list(&self, _: &str, _: Depth, _: Option<&str>) -> Result<Page> {
        self.unlistable()
    }

    async fn delete(&self, _: &str) -> Result<()> {
        self.read_only()
    }

    fn counters(&self) -> Counters {
        self.exchange.tally.snapshot()
    }

    fn pace(&self) -> Pace {
        self.exchange.pace()
    }
}

impl fmt::Debug for HttpStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpStore({})", redacted(&self.url))
    }
}

/// The `Authorization` header for the user and password in a URL.
fn basic(url: &Url) -> Result<Option<HeaderValue>> {
    if url.username().is_empty() && url.password().is_none() {
        return Ok(None);
    }
    let mut pair: Vec<u8> = percent_decode_str(url.username()).collect();
    pair.push(b':');
    pair.extend(percent_decode_str(url.password().unwrap_or_default()));
    let text = format!("Basic {}", BASE64_STANDARD.encode(&pair));
    let mut value = HeaderValue::from_str(&text).map_err(|_| Error::UnsupportedSource {
        source_text: redacted(url),
        reason: "its user and password cannot be sent".into(),
    })?;
    value.set_sensitive(true);
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_the_same_for_every_signature_and_another_for_every_object() {
        let place = |query: &str| {
            let url = format!("https://user:secret@host/dir/a.sqsh{query}").parse().unwrap();
            let store = HttpStore::open(&url, &StoreOptions::default()).unwrap();
            store.place(store.key())
        };
        let plain = place("");
        for signed in
            ["?X-Amz-Signature=1&X-Amz-Date=2&X-Amz-Security-Token=3", "?Expires=1&Signature=2"]
        {
            assert_eq!(place(signed), plain);
        }
        let others =
            [plain, place("?id=1"), place("?id=2&X-Amz-Signature=1"), place("?versionId=1")];
        for (n, other) in others.iter().enumerate() {
            assert!(!others[..n].contains(other), "{other}");
        }
        assert_eq!(place("?id=2"), others[2]);
    }
}
