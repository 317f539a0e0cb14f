//! What an answer that is no success means.

use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use super::Error;

/// The body of an S3 error. Only these two fields are taken: others repeat the string that was
/// signed and the key id.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Body {
    code: String,
    message: String,
    region: Option<String>,
}

/// Who was asked for what.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) object: &'a str,
    pub(super) host: &'a str,
    pub(super) bucket: Option<&'a str>,
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
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match code.as_str() {
        "NoSuchBucket" => {
            return Error::NoSuchBucket {
                bucket: asked.bucket.unwrap_or_default().to_owned(),
                host: asked.host.to_owned(),
            };
        }
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" | "ExpiredRequest" => {
            return Error::ExpiredCredentials { object };
        }
        "SignatureDoesNotMatch"
        | "InvalidAccessKeyId"
        | "InvalidToken"
        | "InvalidSecurity"
        | "RequestTimeTooSkewed"
        | "NotSignedUp" => {
            return Error::BadCredentials { object, reason: code };
        }
        // R2's answer to a key id of the wrong length.
        "InvalidArgument" if message.contains("Credential") => {
            return Error::BadCredentials { object, reason: message };
        }
        "AuthorizationHeaderMalformed" if region.is_some() => {
            return Error::WrongEndpoint { object, to: region.unwrap_or_default() };
        }
        "SlowDown" | "InternalError" | "RequestTimeout" | "ServiceUnavailable" => {
            return Error::Unavailable { object, status: status.as_u16(), code };
        }
        _ => {}
    }
    match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => Error::NotFound { object },
        // S3's words for a presigned URL that is past its time.
        StatusCode::FORBIDDEN if message.contains("expired") => {
            Error::ExpiredCredentials { object }
        }
        StatusCode::FORBIDDEN => Error::AccessDenied { object, code },
        StatusCode::UNAUTHORIZED => Error::BadCredentials {
            object,
            reason: if code.is_empty() { status.to_string() } else { code },
        },
        StatusCode::PRECONDITION_FAILED => Error::Changed { object },
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            Error::Unavailable { object, status: status.as_u16(), code }
        }
        // 501 and 505 will be said again however often we ask.
        status
            if status.is_server_error()
                && status != StatusCode::NOT_IMPLEMENTED
                && status != StatusCode::HTTP_VERSION_NOT_SUPPORTED =>
        {
            Error::Unavailable { object, status: status.as_u16(), code }
        }
        status if status.is_redirection() => {
            let host_of = |to: &str| {
                url::Url::parse(to).ok().and_then(|url| url.host_str().map(str::to_owned))
            };
            let to = header("x-amz-bucket-region")
                .map(str::to_owned)
                .or_else(|| header("location").and_then(host_of))
                .unwrap_or_default();
            Error::WrongEndpoint { object, to }
        }
        status => Error::Refused {
            object,
            status: status.as_u16(),
            reason: [code, message].join(" ").trim().to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_status_tell_the_kind() {
        let asked = Asked { object: "s3://b/k", host: "h", bucket: Some("b") };
        let table: &[(u16, &str, &str, &str)] = &[
            (404, "NoSuchKey", "", "s3://b/k does not exist"),
            (404, "NoSuchBucket", "", "bucket b does not exist at h"),
            (403, "AccessDenied", "", "access to s3://b/k was denied (AccessDenied)"),
            (403, "AccessDenied", "Request has expired", "credentials for s3://b/k have expired"),
            (400, "ExpiredToken", "", "credentials for s3://b/k have expired"),
            (
                403,
                "SignatureDoesNotMatch",
                "",
                "credentials for s3://b/k are no good: SignatureDoesNotMatch",
            ),
            (401, "", "", "credentials for s3://b/k are no good: 401 Unauthorized"),
            (412, "PreconditionFailed", "", "s3://b/k changed while it was in use"),
            (503, "SlowDown", "", "s3://b/k: the server answered 503 (SlowDown)"),
            (500, "", "", "s3://b/k: the server answered 500"),
            (501, "NotImplemented", "", "s3://b/k: the server refused: 501 (NotImplemented)"),
            (
                400,
                "EntityTooSmall",
                "too small",
                "s3://b/k: the server refused: 400 (EntityTooSmall too small)",
            ),
        ];
        for (status, code, message, expected) in table {
            let body = format!(
                "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message>\
                 <StringToSign>secret</StringToSign></Error>"
            );
            let status = StatusCode::from_u16(*status).unwrap();
            let error = classify(asked, status, &HeaderMap::new(), body.as_bytes());
            assert_eq!(error.to_string(), *expected);
        }
        let html = classify(asked, StatusCode::FORBIDDEN, &HeaderMap::new(), b"<html>no");
        assert!(matches!(html, Error::AccessDenied { .. }), "{html:?}");
    }

    #[test]
    fn a_redirect_names_the_region_or_the_host_but_no_query() {
        let asked = Asked { object: "s3://b/k", host: "h", bucket: Some("b") };
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
