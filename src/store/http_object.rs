//! One object behind an HTTP(S) URL, plain or presigned. It can be read, and nothing else.

use std::fmt;

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::HeaderValue;
use percent_encoding::percent_decode_str;
use url::Url;

use super::exchange::{Auth, Exchange};
use super::redirect::Guard;
use super::shown::redacted;
use super::{
    Access, Counters, ETag, Error, GetRange, Pace, Ranged, ReadRanges, Result, ranged, tls,
};

/// The object behind a URL.
pub(super) struct HttpObject {
    exchange: Exchange,
    /// Without user and password, with its query.
    url: Url,
}

impl HttpObject {
    /// For the object at `url`.
    pub(super) fn open(url: &Url, access: &Access) -> Result<Self> {
        let mut url = url.clone();
        let auth = match basic(&url)? {
            Some(value) => Auth::Basic(value),
            None => Auth::None,
        };
        // Neither can fail for a URL that has a host, and http URLs do.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        url.set_fragment(None);
        let guard = Guard::new(&url, &access.allow_redirects_to, &access.environment);
        let client = tls::client(access, Some(&guard))?;
        Ok(Self { exchange: Exchange::new(client, auth, None, access.clone()), url })
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
impl ReadRanges for HttpObject {
    fn name(&self) -> String {
        redacted(&self.url)
    }

    /// With what the query says of which object is meant, and without who may read it for how long.
    fn place(&self) -> String {
        let meant: Vec<_> =
            self.url.query_pairs().filter(|(name, _)| !is_signature(name)).collect();
        format!("{} {meant:?}", self.name())
    }

    async fn get_range(
        &self,
        range: GetRange,
        expect: Option<&ETag>,
        piece: usize,
    ) -> Result<Ranged> {
        ranged::get_range(&self.exchange, &self.url, self.name(), range, expect, piece).await
    }

    fn counters(&self) -> Counters {
        self.exchange.tally.snapshot()
    }

    fn pace(&self) -> Pace {
        self.exchange.pace()
    }
}

impl fmt::Debug for HttpObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpObject({})", redacted(&self.url))
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
            HttpObject::open(&url, &Access::default()).unwrap().place()
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
