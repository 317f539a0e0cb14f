//! What a machine with credentials prepares for one without.

use std::io::{BufRead, BufReader, Write};
use std::time::Duration;

use rusty_s3::S3Action;
use rusty_s3::actions::{AbortMultipartUpload, CreateMultipartUpload};
use serde_json::{Value, json};

use super::place::Place;
use super::s3::{ACCESS_KEY, SECRET_KEY};

/// A file of presigned URLs for one backup, as an orchestrator with credentials makes it.
pub(crate) fn presign(place: &Place, id: &str, parts: u16, part_size: u64) -> Value {
    let server = place.server.as_ref().unwrap().url();
    let style = rusty_s3::UrlStyle::Path;
    let bucket = rusty_s3::Bucket::new(server.parse().unwrap(), style, "box", "auto").unwrap();
    let keys = rusty_s3::Credentials::new(ACCESS_KEY, SECRET_KEY);
    let hour = Duration::from_secs(3600);
    let (archive, meta) =
        (format!("pre/backups/{id}/data.sqsh"), format!("pre/backups/{id}/meta.json"));
    let start = CreateMultipartUpload::new(&bucket, Some(&keys), &archive).sign(hour);
    let started = post(start.as_str());
    let upload = started.split("<UploadId>").nth(1).unwrap().split('<').next().unwrap().to_owned();
    let part =
        |n: u16| bucket.upload_part(Some(&keys), &archive, n, &upload).sign(hour).to_string();
    json!({
        "id": id,
        "partSize": part_size,
        "parts": (1..=parts).map(part).collect::<Vec<_>>(),
        "complete": bucket
            .complete_multipart_upload(Some(&keys), &archive, &upload, [].into_iter())
            .sign(hour),
        "abort": AbortMultipartUpload::new(&bucket, Some(&keys), &archive, &upload).sign(hour),
        "archive": bucket.get_object(Some(&keys), &archive).sign(hour),
        "metadata": bucket.put_object(Some(&keys), &meta).sign(hour),
    })
}

/// The body that an empty POST to `url` brings.
fn post(url: &str) -> String {
    let url: http::Uri = url.parse().unwrap();
    let mut stream = std::net::TcpStream::connect(url.authority().unwrap().as_str()).unwrap();
    let (path, host) = (url.path_and_query().unwrap(), url.authority().unwrap());
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    BufReader::new(stream).lines().map(|line| line.unwrap()).collect()
}
