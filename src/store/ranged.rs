//! A ranged GET that survives a body cut short: what arrived is kept, the rest is asked again.

use std::ops::Range;

use bytes::Bytes;
use http::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH, RANGE};
use http::{Method, StatusCode, response};
use tracing::Instrument;
use url::Url;

use super::exchange::{Attempts, Call, Exchange};
use super::pieces::Pieces;
use super::{ETag, Error, GetRange, Ranged, Result};

/// What the first answer fixed about the object and the range; later ones must agree.
struct Known {
    range: Range<u64>,
    size: u64,
    etag: Option<ETag>,
    pieces: Pieces,
}

impl Known {
    /// Bytes that are still to come.
    fn missing(&self) -> Range<u64> {
        self.range.end - self.pieces.left() as u64..self.range.end
    }
}

/// Gets a range of the object at `url`.
pub(super) async fn get_range(
    exchange: &Exchange,
    url: &Url,
    object: String,
    range: GetRange,
    expect: Option<&ETag>,
    piece: usize,
) -> Result<Ranged> {
    let asked = match &range {
        GetRange::Between(range) => range.end.saturating_sub(range.start),
        GetRange::Last(count) => *count,
    };
    if asked == 0 {
        return Err(Error::OutOfRange { object, range: range.to_string() });
    }
    let mut attempts = exchange.attempts(&object, asked);
    let mut known: Option<Known> = None;
    loop {
        let missing = match &known {
            Some(known) => GetRange::Between(known.missing()),
            None => range.clone(),
        };
        let span = attempts.span(&Method::GET, Some(&missing));
        match attempt(exchange, url, &mut attempts, &object, missing, expect, piece, &mut known)
            .instrument(span)
            .await
        {
            Ok(()) => {}
            Err(error) => attempts.failed(error).await?,
        }
        match known {
            Some(known) if known.pieces.left() == 0 => {
                let Known { range, size, etag, pieces } = known;
                return Ok(Ranged { pieces: pieces.finish(), range, size, etag });
            }
            rest => known = rest,
        }
    }
}

/// One request for what is missing.
#[expect(clippy::too_many_arguments, reason = "the state of one loop, which has no other life")]
async fn attempt(
    exchange: &Exchange,
    url: &Url,
    attempts: &mut Attempts<'_>,
    object: &str,
    range: GetRange,
    expect: Option<&ETag>,
    piece: usize,
    known: &mut Option<Known>,
) -> Result<()> {
    let expect = known.as_ref().and_then(|known| known.etag.as_ref()).or(expect);
    let mut call = Call::new(Method::GET, url.clone(), object.to_owned());
    set(&mut call, RANGE, &range.to_string())?;
    // A weak tag never matches If-Match; it is compared below like any other.
    if let Some(etag) = expect.filter(|etag| !etag.is_weak()) {
        set(&mut call, IF_MATCH, &etag.0)?;
    }
    let (parts, body) = match exchange.once(&call, attempts.limits()).await {
        // 416 names no reason; a size that shrank to nothing is a change like any other.
        Err(Error::Refused { refusal, .. }) if refusal.status == 416 => {
            return Err(Error::OutOfRange { object: object.into(), range: range.to_string() });
        }
        other => other?,
    };
    let (found, size) = content_range(object, &parts)?;
    let etag = etag(&parts.headers);
    if expect.is_some_and(|expected| etag.as_ref() != Some(expected))
        || known.as_ref().is_some_and(|known| known.size != size)
    {
        return Err(Error::Changed { object: object.into() });
    }
    let due = match &range {
        GetRange::Between(range) => range.start..range.end.min(size),
        GetRange::Last(count) => size.saturating_sub(*count)..size,
    };
    // HTTP lets a server send less than was asked; the next request is for the rest.
    if found.start != due.start || found.end > due.end || found.is_empty() {
        let answer = format!("bytes {}-{}/{size} for {range}", found.start, found.end);
        return Err(Error::RangeIgnored { object: object.into(), answer });
    }
    let Ok(len) = usize::try_from(due.end - due.start) else {
        return Err(Error::OutOfRange { object: object.into(), range: range.to_string() });
    };
    let known = known.get_or_insert_with(|| Known {
        range: due,
        size,
        etag,
        pieces: Pieces::new(len, piece),
    });
    let before = known.pieces.left() as u64;
    let mut frames = body.bytes_stream();
    while let Some(frame) = exchange.next_frame(&call, &mut frames, attempts.limits()).await? {
        known.pieces.push(&frame);
        attempts.progressed(frame.len() as u64);
    }
    let (got, expected) = (before - known.pieces.left() as u64, found.end - found.start);
    if got < expected {
        return Err(Error::Truncated { object: object.into(), got, expected });
    }
    tracing::debug!(bytes = got, "received");
    Ok(())
}

/// Gets a whole object of at most `limit` bytes.
pub(super) async fn get_whole(
    exchange: &Exchange,
    url: &Url,
    object: String,
    limit: u64,
) -> Result<Bytes> {
    let call = Call::new(Method::GET, url.clone(), object);
    let limit_here = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut attempts = exchange.attempts(&call.object, limit);
    loop {
        let attempt = async {
            let limits = attempts.limits();
            let (_, body) = exchange.once(&call, limits).await?;
            exchange.small_body(&call, body, limit_here, limits).await
        };
        match attempt.instrument(attempts.span(&call.method, None)).await {
            Ok(bytes) => return Ok(bytes),
            // An answer, to who asks whether it is there; a store may not tell who may not list.
            Err(error @ (Error::NotFound { .. } | Error::AccessDenied { .. })) => {
                return Err(error);
            }
            Err(error) => attempts.failed(error).await?,
        }
    }
}

fn set(call: &mut Call, name: HeaderName, value: &str) -> Result<()> {
    let value = HeaderValue::from_str(value).map_err(|_| Error::BadAnswer {
        object: call.object.clone(),
        reason: format!("its {name} cannot be sent back"),
    })?;
    call.headers.insert(name, value);
    Ok(())
}

fn etag(headers: &HeaderMap) -> Option<ETag> {
    Some(ETag(headers.get(ETAG)?.to_str().ok()?.to_owned()))
}

/// Where the bytes of an answer lie, and the object's size.
fn content_range(object: &str, parts: &response::Parts) -> Result<(Range<u64>, u64)> {
    let ignored = |answer: String| Error::RangeIgnored { object: object.into(), answer };
    if parts.status != StatusCode::PARTIAL_CONTENT {
        return Err(ignored(parts.status.to_string()));
    }
    let value = parts.headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let Some(value) = value else { return Err(ignored("no Content-Range".into())) };
    parse_content_range(value).ok_or_else(|| ignored(format!("Content-Range {value:?}")))
}

/// Parses `bytes 0-99/1000`: the range, and the size that must lie beyond it.
fn parse_content_range(value: &str) -> Option<(Range<u64>, u64)> {
    let (range, size) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let size = size.trim().parse().ok()?;
    (first <= last && last < size).then(|| (first..last + 1, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sane_content_range_is_taken() {
        let table = [
            ("bytes 0-99/1000", Some((0..100, 1000))),
            ("bytes 999-999/1000", Some((999..1000, 1000))),
            ("bytes 0-1000/1000", None),
            ("bytes 5-4/1000", None),
            ("bytes 0-99/*", None),
            ("bytes */1000", None),
            ("bytes 0-18446744073709551615/18446744073709551615", None),
            ("items 0-99/1000", None),
            ("", None),
        ];
        for (value, expected) in table {
            assert_eq!(parse_content_range(value), expected, "{value:?}");
        }
    }
}
