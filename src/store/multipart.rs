//! Multipart uploads on the wire, however their requests are authorized.

use bytes::Bytes;
use http::header::ETAG;
use http::{HeaderMap, StatusCode};
use tracing::Instrument;

use super::classify::classify;
use super::exchange::{Call, Exchange};
use super::{Error, Part, Result, Upload, s3_wire};

/// Sends one part. `call` is the request without its body.
pub(super) async fn put_part(
    exchange: &Exchange,
    mut call: Call,
    index: u32,
    body: Bytes,
) -> Result<Part> {
    let size = body.len() as u64;
    call.body = body;
    let (parts, _) = exchange.send(&call).await?;
    let tag = parts.headers.get(ETAG).and_then(|value| value.to_str().ok());
    let Some(tag) = tag.map(str::to_owned) else {
        return Err(Error::BadAnswer {
            object: call.object,
            reason: "a part was taken without an ETag".into(),
        });
    };
    Ok(Part { index, size, tag })
}

/// Has the store fill a part of `size` bytes with what `call` names.
pub(super) async fn copy_part(
    exchange: &Exchange,
    call: Call,
    index: u32,
    size: u64,
) -> Result<Part> {
    // The store copies before it answers, and takes its time for as many bytes.
    let mut attempts = exchange.attempts(&call.object, size);
    loop {
        let attempt = async {
            let limits = attempts.limits();
            let (_, body) = exchange.once(&call, limits).await?;
            let body = exchange.small_body(&call, body, 64 << 10, limits).await?;
            // As above: an error may come behind headers of success.
            match s3_wire::is_error(&body) {
                false => s3_wire::parse_copied(&call.object, &body),
                true => {
                    let (status, headers) = (StatusCode::OK, HeaderMap::new());
                    Err(classify(exchange.asked(&call, true), status, &headers, &body))
                }
            }
        };
        match attempt.instrument(attempts.span(&call.method, None)).await {
            Ok(tag) => return Ok(Part { index, size, tag }),
            Err(error) => attempts.failed(error).await?,
        }
    }
}

/// Makes the object out of its parts. `call` is the request without its body.
pub(super) async fn complete(
    exchange: &Exchange,
    mut call: Call,
    upload: &Upload,
    parts: &[Part],
) -> Result<()> {
    let parts = upload.check_parts(parts)?;
    call.body = s3_wire::complete_request(&call.object, &parts)?.into();
    let mut attempts = exchange.attempts(&call.object, 0);
    loop {
        let attempt = async {
            let limits = attempts.limits();
            let (_, body) = exchange.once(&call, limits).await?;
            let body = exchange.small_body(&call, body, 64 << 10, limits).await?;
            if !s3_wire::is_error(&body) {
                return s3_wire::check_completed(&call.object, &body);
            }
            Err(classify(exchange.asked(&call, true), StatusCode::OK, &HeaderMap::new(), &body))
        };
        match attempt.instrument(attempts.span(&call.method, None)).await {
            // The first request did its work, and only its answer was lost.
            Err(Error::NotFound { .. }) if attempts.is_repeated() => return Ok(()),
            Err(error) => attempts.failed(error).await?,
            Ok(()) => return Ok(()),
        }
    }
}
