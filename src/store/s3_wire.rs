//! The XML of the S3 protocol, as far as it is spoken here.

use chrono::{DateTime, Utc};
use quick_xml::events::Event;
use quick_xml::{de, se};
use serde::{Deserialize, Serialize};

use super::{Error, Listed, Page, Part, Result, Unfinished, UnfinishedPage, Upload};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListBucketResult {
    #[serde(default)]
    contents: Vec<Contents>,
    #[serde(default)]
    common_prefixes: Vec<CommonPrefix>,
    #[serde(default)]
    is_truncated: bool,
    next_continuation_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Contents {
    key: String,
    size: u64,
    last_modified: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CommonPrefix {
    prefix: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListMultipartUploadsResult {
    #[serde(default, rename = "Upload")]
    uploads: Vec<UploadEntry>,
    #[serde(default)]
    is_truncated: bool,
    next_key_marker: Option<String>,
    next_upload_id_marker: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UploadEntry {
    key: String,
    upload_id: String,
    initiated: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InitiateMultipartUploadResult {
    upload_id: String,
}

#[derive(Deserialize)]
struct CopyPartResult {
    #[serde(rename = "ETag")]
    etag: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct CompleteMultipartUpload<'a> {
    part: Vec<PartEntry<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PartEntry<'a> {
    part_number: u32,
    #[serde(rename = "ETag")]
    etag: &'a str,
}

/// An answer, whose root is `root`. Serde alone would take any other for one with nothing in it: a page of
/// a captive portal for a bucket without objects.
fn parse<T: serde::de::DeserializeOwned>(object: &str, body: &[u8], root: &str) -> Result<T> {
    let text = String::from_utf8_lossy(body);
    check_root(object, &text, root)?;
    de::from_str(&text)
        .map_err(|error| Error::BadAnswer { object: object.into(), reason: error.to_string() })
}

/// Checks that an answer is XML with this root.
///
/// # Errors
/// [`Error::BadAnswer`] that shows what it is instead.
fn check_root(object: &str, text: &str, root: &str) -> Result<()> {
    let mut reader = quick_xml::Reader::from_str(text);
    let found = loop {
        match reader.read_event() {
            Ok(Event::Start(tag) | Event::Empty(tag)) => break tag.local_name().as_ref().to_vec(),
            Ok(Event::Eof) | Err(_) => break Vec::new(),
            Ok(_) => {}
        }
    };
    if found == root.as_bytes() {
        return Ok(());
    }
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let came = match words.char_indices().nth(SHOWN) {
        _ if words.is_empty() => "nothing".to_owned(),
        Some((end, _)) => format!("{:?}…", words.get(..end).unwrap_or_default()),
        None => format!("{words:?}"),
    };
    let reason = format!("it should be a {root}, and is {came}");
    Err(Error::BadAnswer { object: object.into(), reason })
}

/// How many characters are shown of an answer that is none.
const SHOWN: usize = 80;

/// The answer to a listing.
pub(super) fn parse_page(object: &str, body: &[u8]) -> Result<Page> {
    let parsed: ListBucketResult = parse(object, body, "ListBucketResult")?;
    let next = parsed.next_continuation_token.filter(|_| parsed.is_truncated);
    if parsed.is_truncated && next.is_none() {
        return Err(Error::BadAnswer {
            object: object.into(),
            reason: "a listing that goes on without saying where".into(),
        });
    }
    let objects = parsed.contents.into_iter();
    Ok(Page {
        objects: objects
            .map(|Contents { key, size, last_modified }| {
                let modified = last_modified.and_then(|text| parse_time(&text));
                Listed { key, size, modified }
            })
            .collect(),
        prefixes: parsed.common_prefixes.into_iter().map(|prefix| prefix.prefix).collect(),
        next,
    })
}

/// What separates the two markers of the next page. An upload's id never holds one.
const MARKERS: char = '\n';

/// The answer to a listing of unfinished uploads.
pub(super) fn parse_uploads(object: &str, body: &[u8]) -> Result<UnfinishedPage> {
    let parsed: ListMultipartUploadsResult = parse(object, body, "ListMultipartUploadsResult")?;
    let next = match (parsed.is_truncated, parsed.next_key_marker, parsed.next_upload_id_marker) {
        (false, ..) => None,
        (true, Some(key), upload_id) => {
            Some(format!("{}{MARKERS}{key}", upload_id.unwrap_or_default()))
        }
        (true, None, _) => {
            return Err(Error::BadAnswer {
                object: object.into(),
                reason: "a listing of uploads that goes on without saying where".into(),
            });
        }
    };
    let uploads = parsed.uploads.into_iter().map(|UploadEntry { key, upload_id, initiated }| {
        let since = initiated.and_then(|text| parse_time(&text));
        Unfinished { upload: Upload { key, part_size: 0, id: upload_id }, since }
    });
    Ok(UnfinishedPage { uploads: uploads.collect(), next })
}

/// The key marker and the upload id marker of a page that [`parse_uploads`] announced.
pub(super) fn split_markers(page: &str) -> (&str, &str) {
    let (upload_id, key) = page.split_once(MARKERS).unwrap_or(("", page));
    (key, upload_id)
}

fn parse_time(text: &str) -> Option<DateTime<Utc>> {
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc())
}

/// The answer to the start of an upload: its id.
pub(super) fn parse_upload_id(object: &str, body: &[u8]) -> Result<String> {
    let root = "InitiateMultipartUploadResult";
    Ok(parse::<InitiateMultipartUploadResult>(object, body, root)?.upload_id)
}

/// The answer to the copy of a part: its tag.
pub(super) fn parse_copied(object: &str, body: &[u8]) -> Result<String> {
    Ok(parse::<CopyPartResult>(object, body, "CopyPartResult")?.etag)
}

/// The request that completes an upload. Numbers start at 1 on the wire.
pub(super) fn complete_request(object: &str, parts: &[&Part]) -> Result<String> {
    let part = parts
        .iter()
        .map(|part| PartEntry { part_number: part.index + 1, etag: &part.tag })
        .collect();
    se::to_string(&CompleteMultipartUpload { part })
        .map_err(|error| Error::BadAnswer { object: object.into(), reason: error.to_string() })
}

/// Checks the answer to the completion of an upload. One without a word is left to the check of the
/// object's size that follows.
pub(super) fn check_completed(object: &str, body: &[u8]) -> Result<()> {
    match String::from_utf8_lossy(body).trim() {
        "" => Ok(()),
        text => check_root(object, text, "CompleteMultipartUploadResult"),
    }
}

/// Whether an answer with a status of success is an error all the same. S3 sends its headers
/// before it has put the parts together.
pub(super) fn is_error(body: &[u8]) -> bool {
    String::from_utf8_lossy(body).contains("<Error>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_read_with_its_prefixes_and_its_next_page() {
        let body = br#"<?xml version="1.0" encoding="UTF-8"?>
            <ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>
            <IsTruncated>true</IsTruncated><NextContinuationToken>t&amp;1</NextContinuationToken>
            <Contents><Key>a&lt;b</Key><LastModified>2026-01-02T03:04:05.678Z</LastModified><Size>7</Size><ETag>"x"</ETag></Contents>
            <CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes>
            <Contents><Key>c</Key><Size>0</Size></Contents></ListBucketResult>"#;
        let page = parse_page("o", body).unwrap();
        let listed = |key: &str, size, modified: Option<&str>| {
            let modified = modified.map(|time| time.parse().unwrap());
            Listed { key: key.into(), size, modified }
        };
        let written = Some("2026-01-02T03:04:05.678Z");
        assert_eq!(page.objects, [listed("a<b", 7, written), listed("c", 0, None)]);
        assert_eq!(page.prefixes, ["p/"]);
        assert_eq!(page.next.as_deref(), Some("t&1"));
        assert!(parse_page("o", b"<html>").is_err());
    }

    #[test]
    fn unfinished_uploads_are_read_and_their_markers_survive() {
        let page = |end: &str| {
            let body = format!(
                "<ListMultipartUploadsResult><Bucket>b</Bucket><KeyMarker/><Upload><Key>a\nb</Key>\
                 <UploadId>u1</UploadId><Initiated>2026-01-02T03:04:05.678Z</Initiated></Upload>\
                 {end}</ListMultipartUploadsResult>"
            );
            parse_uploads("o", body.as_bytes())
        };
        let last = page("<IsTruncated>false</IsTruncated>").unwrap();
        let upload = &last.uploads[0];
        assert_eq!((upload.upload.key.as_str(), upload.upload.id.as_str()), ("a\nb", "u1"));
        assert_eq!(upload.since, Some("2026-01-02T03:04:05.678Z".parse().unwrap()));
        assert_eq!(last.next, None);
        let more = "<IsTruncated>true</IsTruncated>";
        let marked = "<NextKeyMarker>a\nb</NextKeyMarker>";
        let both = "<NextUploadIdMarker>u1</NextUploadIdMarker>";
        let next = page(&format!("{more}{marked}{both}")).unwrap().next.unwrap();
        assert_eq!(split_markers(&next), ("a\nb", "u1"));
        assert_eq!(split_markers(&page(&format!("{more}{marked}")).unwrap().next.unwrap()).1, "");
        assert!(page(more).is_err());
    }

    #[test]
    fn parts_are_numbered_from_one() {
        let part = Part { index: 0, size: 1, tag: "\"x&y\"".into() };
        assert_eq!(
            complete_request("o", &[&part]).unwrap(),
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber>\
             <ETag>\"x&amp;y\"</ETag></Part></CompleteMultipartUpload>"
        );
    }
}
