//! What an answer that is no success means: the error that it is, by the server's code before its status.

use std::time::Duration;

use chrono::{DateTime, Utc};
use http::{HeaderMap, Method, StatusCode};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use url::Url;

use super::Error;
use super::refusal::{Refusal, Right};
use super::shown::host_of;

/// The body of an S3 error. Only these two fields are taken: others repeat the string that was
/// signed and the key id.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Body {
    code: String,
    message: String,
    region: Option<String>,
}

/// Who was asked for what, and by which right.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) object: &'a str,
    pub(super) method: &'a Method,
    pub(super) url: &'a Url,
    pub(super) bucket: Option<&'a str>,
    pub(super) right: Right,
}

impl Asked<'_> {
    fn refusal(&self, status: StatusCode, code: &str, message: &str) -> Box<Refusal> {
        let asked = match self.right {
            // Its object is called by its URL, of which the rest may be a secret.
            Right::Url => String::new(),
            Right::Keys | Right::Anonymous => format!("{} {}", self.method, self.url),
        };
        let code = if code.is_empty() { status.to_string() } else { one_line(code) };
        let mut message = one_line(message);
        // Some servers repeat what they were asked.
        if self.url.query_pairs().any(|(_, value)| value.len() > 7 && message.contains(&*value)) {
            message.clear();
        }
        Box::new(Refusal {
            asked,
            status: status.as_u16(),
            code,
            message,
            right: self.right,
            bucket_twice: self.bucket_twice(),
        })
    }

    /// Whether the endpoint names the bucket that is in the path as well: as a host, or as a folder.
    fn bucket_twice(&self) -> bool {
        let Some(bucket) = self.bucket else { return false };
        let key = self.object.strip_prefix(&format!("s3://{bucket}/")).unwrap_or_default();
        let path = percent_decode_str(self.url.path()).decode_utf8_lossy();
        let base = path.strip_suffix(key).unwrap_or(&path);
        let of_host =
            self.url.host_str().is_some_and(|host| host.starts_with(&format!("{bucket}.")));
        let of_path = base.split('/').filter(|segment| *segment == bucket).count();
        usize::from(of_host) + of_path > 1
    }
}

/// Words of a server as a part of our one line, of a length that people read.
fn one_line(text: &str) -> String {
    const MOST: usize = 500;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

/// Turns status, headers and body of a failed request into an error.
pub(super) fn classify(
    asked: Asked<'_>,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
) -> Error {
    // A body that is no XML (a proxy's HTML, or none) leaves the status to speak.
    let text = String::from_utf8_lossy(body);
    let Body { code, message, region } = quick_xml::de::from_str(&text).unwrap_or_default();
    let object = asked.object.to_owned();
    let refusal = asked.refusal(status, &code, &message);
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let unavailable = |object, refusal| Error::Unavailable {
        object,
        refusal,
        retry_after: header("retry-after").and_then(parse_retry_after),
    };
    match code.as_str() {
        "NoSuchBucket" if asked.bucket.is_some() => {
            let bucket = asked.bucket.unwrap_or_default().to_owned();
            return Error::NoSuchBucket { bucket, host: host_of(asked.url), refusal };
        }
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" | "ExpiredRequest" => {
            return Error::ExpiredCredentials { object };
        }
        "SignatureDoesNotMatch"
        | "InvalidAccessKeyId"
        | "InvalidToken"
        | "InvalidSecurity"
        | "NotSignedUp" => {
            return Error::RefusedCredentials { object, refusal };
        }
        // Neither the keys nor their rights are to blame.
        "RequestTimeTooSkewed" | "InvalidObjectState" => return Error::Refused { object, refusal },
        // R2's answer to a key id of the wrong length.
        "InvalidArgument" if message.contains("Credential") => {
            return Error::RefusedCredentials { object, refusal };
        }
        "AuthorizationHeaderMalformed" if region.is_some() => {
            let to = region.unwrap_or_default();
            return Error::WrongEndpoint { object, to, refusal };
        }
        "SlowDown" | "InternalError" | "RequestTimeout" | "ServiceUnavailable" => {
            return unavailable(object, refusal);
        }
        _ => {}
    }
    match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => {
            Error::NotFound { object, refusal: Some(refusal) }
        }
        // S3's words for a presigned URL that is past its time.
        StatusCode::FORBIDDEN if message.contains("expired") => {
            Error::ExpiredCredentials { object }
        }
        StatusCode::FORBIDDEN => Error::AccessDenied { object, refusal },
        StatusCode::UNAUTHORIZED => Error::RefusedCredentials { object, refusal },
        StatusCode::PRECONDITION_FAILED => Error::Changed { object },
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => unavailable(object, refusal),
        // 501 and 505 will be said again however often we ask.
        status
            if status.is_server_error()
                && status != StatusCode::NOT_IMPLEMENTED
                && status != StatusCode::HTTP_VERSION_NOT_SUPPORTED =>
        {
            unavailable(object, refusal)
        }
        status if status.is_redirection() => {
            let host_of = |to: &str| {
                url::Url::parse(to).ok().and_then(|url| url.host_str().map(str::to_owned))
            };
            let to = header("x-amz-bucket-region")
                .map(str::to_owned)
                .or_else(|| header("location").and_then(host_of))
                .unwrap_or_default();
            Error::WrongEndpoint { object, to, refusal }
        }
        _ => Error::Refused { object, refusal },
    }
}

/// How long a `Retry-After` header asks to wait: seconds, or until a date.
fn parse_retry_after(value: &str) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = DateTime::parse_from_rfc2822(value).ok()?.to_utc();
    Some((until - Utc::now()).to_std().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://h/b/k";

    /// The error for an answer with this status, code and message.
    fn answered(url: &str, right: Right, answer: (u16, &str, &str)) -> Error {
        let (status, code, message) = answer;
        let body = format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message>\
             <StringToSign>secret</StringToSign></Error>"
        );
        let asked = Asked {
            object: "s3://b/k",
            method: &Method::GET,
            url: &url.parse().unwrap(),
            bucket: Some("b"),
            right,
        };
        let status = StatusCode::from_u16(status).unwrap();
        classify(asked, status, &HeaderMap::new(), body.as_bytes())
    }

    #[test]
    fn code_and_status_tell_the_kind() {
        let table: &[(u16, &str, &str, &str)] = &[
            (404, "NoSuchKey", "", "s3://b/k does not exist (NoSuchKey) (GET https://h/b/k)"),
            (
                404,
                "NoSuchBucket",
                "",
                "bucket b does not exist at h (NoSuchBucket) (GET https://h/b/k)",
            ),
            (
                403,
                "AccessDenied",
                "no",
                "access to s3://b/k was denied (AccessDenied): \"no\" (GET ",
            ),
            (403, "AccessDenied", "Request has expired", "credentials for s3://b/k have expired"),
            (400, "ExpiredToken", "", "credentials for s3://b/k have expired"),
            (
                403,
                "SignatureDoesNotMatch",
                "The\n  words",
                "credentials for s3://b/k are no good: SignatureDoesNotMatch: \"The words\" \
                 (GET https://h/b/k)",
            ),
            (401, "", "", "credentials for s3://b/k are no good: 401 Unauthorized (GET "),
            (412, "PreconditionFailed", "", "s3://b/k changed while it was in use"),
            (
                503,
                "SlowDown",
                "Please wait",
                "s3://b/k: the server answered 503 (SlowDown): \"Please wait\" (GET https://h/b/k)",
            ),
            (
                500,
                "",
                "",
                "s3://b/k: the server answered 500 Internal Server Error (GET https://h/b/k)",
            ),
            (
                301,
                "PermanentRedirect",
                "",
                "s3://b/k: the server sends us elsewhere: 301 (PermanentRedirect) (GET https://h/b/k)",
            ),
            (501, "NotImplemented", "", "s3://b/k: the server refused: 501 (NotImplemented) (GET "),
            (
                400,
                "EntityTooSmall",
                "too small",
                "s3://b/k: the server refused: 400 (EntityTooSmall too small) (GET https://h/b/k)",
            ),
        ];
        for (status, code, message, expected) in table {
            let error = answered(URL, Right::Keys, (*status, code, message)).to_string();
            assert!(error.starts_with(expected), "{error}\n{expected}");
            assert!(!error.contains("secret"), "{error}");
        }
        let url = &URL.parse().unwrap();
        let (method, bucket, right) = (&Method::GET, Some("b"), Right::Keys);
        let asked = Asked { object: "s3://b/k", method, url, bucket, right };
        let html = classify(asked, StatusCode::FORBIDDEN, &HeaderMap::new(), b"<html>no");
        assert!(matches!(html, Error::AccessDenied { .. }), "{html:?}");
    }

    #[test]
    fn a_server_says_in_two_ways_how_long_to_wait() {
        let date = |after: i64| {
            let time = Utc::now() + chrono::TimeDelta::seconds(after);
            time.format("%a, %d %b %Y %H:%M:%S GMT").to_string()
        };
        let table: &[(&str, Option<std::ops::RangeInclusive<u64>>)] = &[
            ("0", Some(0..=0)),
            (" 7 ", Some(7..=7)),
            ("18446744073709551615", Some(u64::MAX..=u64::MAX)),
            (&date(100), Some(98..=100)),
            (&date(-100), Some(0..=0)),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ];
        for (value, expected) in table {
            let found = parse_retry_after(value).map(|after| after.as_secs());
            match (found, expected) {
                (Some(found), Some(expected)) => assert!(expected.contains(&found), "{value}"),
                (found, expected) => assert_eq!(found.is_some(), expected.is_some(), "{value}"),
            }
        }
    }

    #[test]
    fn a_bucket_that_is_in_the_endpoint_too_is_noticed() {
        for (url, twice) in [
            ("https://h/b/k", false),
            ("https://b.h/k", false),
            ("https://b.h/b/k", true),
            ("https://h/b/b/k", true),
            // A key may begin as the bucket does.
            ("https://bb.h/b/k", false),
        ] {
            let error = answered(url, Right::Keys, (404, "NoSuchKey", ""));
            let Error::NotFound { refusal: Some(refusal), .. } = error else { panic!("{error}") };
            assert_eq!(refusal.bucket_twice, twice, "{url}");
        }
    }

    #[test]
    fn a_signature_is_shown_neither_by_us_nor_by_the_server() {
        let url = "https://h/b/k?X-Amz-Signature=0123456789";
        let error = answered(url, Right::Url, (403, "AccessDenied", "no, 0123456789 is wrong"));
        assert_eq!(error.to_string(), "access to s3://b/k was denied (AccessDenied)");
        let long = "long ".repeat(1000);
        let error = answered(URL, Right::Keys, (400, "Odd", &long)).to_string();
        assert!(error.len() < 700 && error.contains('…'), "{}", error.len());
    }

    #[test]
    fn a_redirect_names_the_region_or_the_host_but_no_query() {
        let url = &URL.parse().unwrap();
        let (method, bucket, right) = (&Method::GET, Some("b"), Right::Keys);
        let asked = Asked { object: "s3://b/k", method, url, bucket, right };
        for (name, value, to) in [
            ("x-amz-bucket-region", "eu-west-1", "eu-west-1"),
            ("location", "https://other/b?X-Amz-Signature=secret", "other"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            let error = classify(asked, StatusCode::MOVED_PERMANENTLY, &headers, b"");
            assert!(matches!(&error, Error::WrongEndpoint { to: found, .. } if found == to));
        }
    }
}
