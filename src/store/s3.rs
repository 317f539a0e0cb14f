//! A bucket of S3, R2, or whatever speaks their protocol.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Method};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::Url;

use super::credentials::Credentials;
use super::exchange::{Auth, Call, Exchange};
use super::profile::Profile;
use super::shown::host_of;
use super::{
    Access, Bucket, Copied, Counters, Depth, ETag, Error, GetRange, Pace, Page, Part, Ranged,
    Result, UnfinishedPage, Upload, WriteObjects, multipart, r2, ranged, s3_wire, tls,
};

/// What a signed path must not leave as it is: everything but AWS's unreserved characters and `/`.
const KEY: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// A bucket.
pub(super) struct S3Bucket {
    exchange: Exchange,
    bucket: String,
    /// URL of the bucket, without a slash at its end.
    base: String,
}

impl S3Bucket {
    /// For `bucket`, where the options, the environment and the profile say it is. Sends nothing.
    pub(super) async fn open(bucket: &str, access: &Access) -> Result<Self> {
        let profile = Profile::read(access)?;
        let endpoint = find_endpoint(access, &profile)?;
        let is_r2 = endpoint.is_some_and(r2::is_endpoint);
        let region = access
            .region
            .as_deref()
            .or_else(|| access.environment.get("AWS_REGION"))
            .or_else(|| access.environment.get("AWS_DEFAULT_REGION"))
            .or(access.defaults.region.as_deref())
            .or_else(|| profile.get("region"))
            .unwrap_or(if is_r2 { "auto" } else { "us-east-1" })
            .to_owned();
        let base = bucket_url(bucket, endpoint, &region, access.virtual_host_style)?;
        let client = tls::client(access, None)?;
        let place = format!("s3://{bucket}");
        let credentials = Credentials::find(access, &profile, &region, &client, &place).await?;
        let auth = Auth::Aws { credentials, region };
        let exchange = Exchange::new(client, auth, Some(bucket.to_owned()), access.clone());
        Ok(Self { exchange, bucket: bucket.to_owned(), base })
    }

    fn url(&self, key: &str) -> Result<Url> {
        let bad = |reason: &str| Error::UnsupportedSource {
            source_text: self.name(key),
            reason: reason.into(),
        };
        // The URL parser would resolve these and ask for another key.
        if key.is_empty() || key.split('/').any(|segment| matches!(segment, "." | "..")) {
            return Err(bad("it is not a key that a URL can carry"));
        }
        Url::parse(&format!("{}/{}", self.base, utf8_percent_encode(key, KEY)))
            .map_err(|error| bad(&error.to_string()))
    }

    /// What is not there, or another by now, is what was to be copied, unless it is the upload.
    fn of_source(&self, error: Error, from: &Copied) -> Error {
        let object = self.name(&from.key);
        match error {
            Error::Changed { .. } => Error::Changed { object },
            Error::NotFound { refusal, .. }
                if refusal.as_ref().is_none_or(|it| it.code != "NoSuchUpload") =>
            {
                Error::NotFound { object, refusal }
            }
            error => error,
        }
    }

    fn call(&self, method: Method, key: &str, query: &[(&str, &str)]) -> Result<Call> {
        let mut url = self.url(key)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(Call::new(method, url, self.name(key)))
    }

    /// A request for a listing of what starts with `prefix`, with those parameters that have a
    /// value.
    fn call_bucket(&self, prefix: &str, query: &[(&str, Option<&str>)]) -> Result<Call> {
        let mut url = Url::parse(&format!("{}/", self.base)).map_err(|error| {
            Error::UnsupportedSource { source_text: self.name(prefix), reason: error.to_string() }
        })?;
        let prefix_pair = ("prefix", Some(prefix).filter(|prefix| !prefix.is_empty()));
        let pairs = query.iter().chain([&prefix_pair]);
        url.query_pairs_mut()
            .extend_pairs(pairs.filter_map(|(name, value)| value.map(|value| (name, value))));
        Ok(Call::new(Method::GET, url, self.name(prefix)))
    }
}

#[async_trait]
impl WriteObjects for S3Bucket {
    fn name(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.bucket)
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        let mut call = self.call(Method::PUT, key, &[])?;
        call.body = body;
        self.exchange.send(&call).await.map(drop)
    }

    async fn start_upload(&self, key: &str, part_size: u64) -> Result<Upload> {
        let call = self.call(Method::POST, key, &[("uploads", "")])?;
        let (_, body) = self.exchange.send(&call).await?;
        let id = s3_wire::parse_upload_id(&call.object, &body)?;
        Ok(Upload { key: key.to_owned(), part_size, id })
    }

    async fn put_part(&self, upload: &Upload, index: u32, body: Bytes) -> Result<Part> {
        upload.check_part(index, body.len() as u64)?;
        let number = (index + 1).to_string();
        let query = [("partNumber", number.as_str()), ("uploadId", upload.id.as_str())];
        let call = self.call(Method::PUT, &upload.key, &query)?;
        multipart::put_part(&self.exchange, call, index, body).await
    }

    async fn copy_part(&self, upload: &Upload, index: u32, from: &Copied) -> Result<Part> {
        let size = from.range.end.saturating_sub(from.range.start);
        upload.check_part(index, size)?;
        let number = (index + 1).to_string();
        let query = [("partNumber", number.as_str()), ("uploadId", upload.id.as_str())];
        let mut call = self.call(Method::PUT, &upload.key, &query)?;
        let source = format!("/{}/{}", self.bucket, utf8_percent_encode(&from.key, KEY));
        let range = format!("bytes={}-{}", from.range.start, from.range.end.saturating_sub(1));
        let version = from.version.as_ref().map(|version| version.0.clone());
        for (name, value) in [
            ("x-amz-copy-source", Some(source)),
            ("x-amz-copy-source-range", Some(range)),
            ("x-amz-copy-source-if-match", version),
        ] {
            let Some(value) = value else { continue };
            let value = HeaderValue::from_str(&value).map_err(|_| Error::BadOption {
                what: self.name(&from.key),
                reason: format!("{name} cannot be {value:?}"),
            })?;
            call.headers.insert(name, value);
        }
        let copied = multipart::copy_part(&self.exchange, call, index, size).await;
        copied.map_err(|error| self.of_source(error, from))
    }

    async fn complete_upload(&self, upload: &Upload, parts: &[Part]) -> Result<()> {
        let query = [("uploadId", upload.id.as_str())];
        let call = self.call(Method::POST, &upload.key, &query)?;
        multipart::complete(&self.exchange, call, upload, parts).await
    }

    async fn abort_upload(&self, upload: &Upload) -> Result<()> {
        let query = [("uploadId", upload.id.as_str())];
        match self.exchange.send(&self.call(Method::DELETE, &upload.key, &query)?).await {
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn delete(&self, key: &str) -> Result<()> {
        match self.exchange.send(&self.call(Method::DELETE, key, &[])?).await {
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl Bucket for S3Bucket {
    fn place(&self, key: &str) -> String {
        format!("{}/{key}", self.base)
    }

    async fn get_range(
        &self,
        key: &str,
        range: GetRange,
        expect: Option<&ETag>,
        piece: usize,
    ) -> Result<Ranged> {
        let url = self.url(key)?;
        ranged::get_range(&self.exchange, &url, self.name(key), range, expect, piece).await
    }

    async fn get_whole(&self, key: &str, limit: u64) -> Result<Bytes> {
        ranged::get_whole(&self.exchange, &self.url(key)?, self.name(key), limit).await
    }

    async fn list(&self, prefix: &str, depth: Depth, page: Option<&str>) -> Result<Page> {
        let delimiter = (depth == Depth::Children).then_some("/");
        let call = self.call_bucket(
            prefix,
            &[("list-type", Some("2")), ("delimiter", delimiter), ("continuation-token", page)],
        )?;
        let (_, body) = self.exchange.send(&call).await?;
        s3_wire::parse_page(&call.object, &body)
    }

    async fn list_uploads(&self, prefix: &str, page: Option<&str>) -> Result<UnfinishedPage> {
        let markers = page.map(s3_wire::split_markers);
        let call = self.call_bucket(
            prefix,
            &[
                ("uploads", Some("")),
                ("key-marker", markers.map(|(key, _)| key)),
                ("upload-id-marker", markers.map(|(_, id)| id).filter(|id| !id.is_empty())),
            ],
        )?;
        let (_, body) = self.exchange.send(&call).await?;
        s3_wire::parse_uploads(&call.object, &body)
    }

    fn counters(&self) -> Counters {
        self.exchange.tally.snapshot()
    }

    fn pace(&self) -> Pace {
        self.exchange.pace()
    }
}

impl fmt::Debug for S3Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Bucket({} at {})", self.bucket, self.base)
    }
}

/// The endpoint in the order of AWS's tools. Those that are configured for all of them can be switched
/// off, which says nothing of ours.
fn find_endpoint<'a>(access: &'a Access, profile: &'a Profile) -> Result<Option<&'a str>> {
    let environment = &access.environment;
    let ignored = environment.flag("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS").unwrap_or_else(|| {
        let setting = profile.get("ignore_configured_endpoint_urls");
        setting.is_some_and(|value| value.eq_ignore_ascii_case("true"))
    });
    let of_environment = || {
        let service = environment.get("AWS_ENDPOINT_URL_S3");
        service.or_else(|| environment.get("AWS_ENDPOINT_URL")).filter(|_| !ignored)
    };
    let ours = access.endpoint.as_deref().or_else(of_environment);
    match ours.or(access.defaults.endpoint.as_deref()) {
        None if !ignored => profile.endpoint(),
        found => Ok(found),
    }
}

/// URL of a bucket, without a slash at its end.
///
/// AWS gets the bucket in the host name, as it wishes, unless a dot in it would break the
/// certificate. Other services get it in the path, which all of them understand.
fn bucket_url(
    bucket: &str,
    endpoint: Option<&str>,
    region: &str,
    virtual_host_style: bool,
) -> Result<String> {
    let bad = |reason: &str| Error::BadOption { what: "endpoint".into(), reason: reason.into() };
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if !region.bytes().all(legal) {
        return Err(Error::BadOption {
            what: "region".into(),
            reason: format!("{region:?} is not the name of one"),
        });
    }
    let Some(endpoint) = endpoint else {
        let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        return Ok(if bucket.contains('.') && !virtual_host_style {
            format!("https://s3.{region}.{domain}/{bucket}")
        } else {
            format!("https://{bucket}.s3.{region}.{domain}")
        });
    };
    let url = Url::parse(endpoint).map_err(|error| bad(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad("it is not an http(s):// URL"));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err(bad("it must hold no credentials and no query"));
    }
    let path = url.path().trim_end_matches('/');
    let host = host_of(&url);
    Ok(if !virtual_host_style {
        format!("{}://{host}{path}/{bucket}", url.scheme())
    } else if host.starts_with(&format!("{bucket}.")) {
        format!("{}://{host}{path}", url.scheme())
    } else {
        format!("{}://{bucket}.{host}{path}", url.scheme())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_goes_where_the_service_wants_it() {
        let r2 = Some("https://acc.eu.r2.cloudflarestorage.com/");
        let table = [
            (None, "us-east-1", false, "https://bk.s3.us-east-1.amazonaws.com"),
            (None, "cn-north-1", false, "https://bk.s3.cn-north-1.amazonaws.com.cn"),
            (r2, "auto", false, "https://acc.eu.r2.cloudflarestorage.com/bk"),
            (r2, "auto", true, "https://bk.acc.eu.r2.cloudflarestorage.com"),
            (Some("http://127.0.0.1:9000"), "x", false, "http://127.0.0.1:9000/bk"),
            (Some("https://h/base/"), "x", false, "https://h/base/bk"),
            (Some("https://bk.h"), "x", true, "https://bk.h"),
        ];
        for (endpoint, region, style, expected) in table {
            assert_eq!(bucket_url("bk", endpoint, region, style).unwrap(), expected);
        }
        assert_eq!(
            bucket_url("a.b", None, "eu-west-1", false).unwrap(),
            "https://s3.eu-west-1.amazonaws.com/a.b"
        );
        for endpoint in ["h", "ftp://h", "https://u:p@h", "https://h/?q"] {
            let error = bucket_url("bk", Some(endpoint), "x", false).unwrap_err();
            assert!(error.to_string().starts_with("endpoint: "), "{error}");
        }
        assert!(bucket_url("bk", None, "evil.example/", false).is_err());
    }
}
