//! What a request to `thawfs serve-files` may look like: its headers, its size, its JSON.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::files::{Service, frame, request};
use crate::support::mount::Bench;
use crate::support::words::text;

const UNARY: &str = "application/json";
const STREAM: &str = "application/connect+json";

/// The largest message, in bytes.
const LARGEST: usize = 256 << 10;

/// A service for `root`, which has a file two levels down.
fn service(bench: &Bench, arguments: &[&str]) -> Service {
    let root = bench.directory("root");
    std::fs::create_dir_all(root.join("a/b")).unwrap();
    std::fs::write(root.join("a/b/c"), "").unwrap();
    Service::start(bench, &[&["--root", text(&root)], arguments].concat())
}

fn status(answer: &str) -> u16 {
    answer
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("{answer:?}"))
}

#[test]
fn what_the_json_of_protobuf_allows_is_understood() {
    let bench = Bench::new();
    let service = service(&bench, &[]);
    let listed = |body: &str| {
        let (status, answer) = service.call_with("ListDir", body, &[]);
        (status, answer["entries"].as_array().map_or(0, Vec::len))
    };
    for (body, expected) in [
        (r#"{}"#, (200, 1)),
        (r#"{"path":"","depth":2}"#, (200, 2)),
        (r#"{"depth":"2"}"#, (200, 2)),
        (r#"{"depth":3.0}"#, (200, 3)),
        (r#"{"depth":2e0}"#, (200, 2)),
        (r#"{"depth":"0.2e1"}"#, (200, 2)),
        (r#"{"depth":0}"#, (200, 1)),
        (r#"{"depth":null,"path":null}"#, (200, 1)),
        (r#"{"depth":4294967295}"#, (200, 3)),
        (r#"{"depth":4294967296}"#, (400, 0)),
        (r#"{"depth":-1}"#, (400, 0)),
        (r#"{"depth":1.5}"#, (400, 0)),
        (r#"{"depth":""}"#, (400, 0)),
        (r#"{"depth":true}"#, (400, 0)),
        (r#"{"path":1}"#, (400, 0)),
        (r#"{"\u0070ath":"\u0061"}"#, (200, 1)),
        (r#"{"unknown":{"depth":[1,null]},"depth":2}"#, (200, 2)),
        (r#"null"#, (400, 0)),
        (r#""#, (400, 0)),
        (r#"{} {}"#, (400, 0)),
    ] {
        assert_eq!(listed(body), expected, "{body}");
    }
    let watch = |body: &str| service.call_with("CreateWatcher", body, &[]);
    for (body, expected) in [
        (r#"{"recursive":true,"includeEntry":true,"allowNetworkMounts":true}"#, 200),
        (r#"{"recursive":false,"include_entry":false,"allow_network_mounts":false}"#, 200),
        (r#"{"recursive":null,"include_entry":null,"includeEntry":null}"#, 200),
        (r#"{"include_entry":null,"includeEntry":true}"#, 200),
        (r#"{"recursive":"true"}"#, 400),
        (r#"{"recursive":1}"#, 400),
        (r#"{"include_entry":true,"includeEntry":true}"#, 400),
    ] {
        assert_eq!(watch(body).0, expected, "{body}");
    }
    let id = watch("{}").1["watcherId"].clone();
    for body in [json!({ "watcherId": id }), json!({ "watcher_id": id, "watcherId": null })] {
        assert_eq!(service.call("GetWatcherEvents", &body, &[]), (200, json!({})), "{body}");
    }
    assert_eq!(service.call("RemoveWatcher", &json!({ "watcher_id": id }), &[]).0, 200);
}

/// A request whose body comes in pieces.
fn chunked(method: &str, kind: &str, body: &[u8]) -> Vec<u8> {
    let mut sent = request(method, kind, "", &["Transfer-Encoding: chunked"]);
    for piece in body.chunks(60_000) {
        sent.extend(format!("{:x}\r\n", piece.len()).as_bytes());
        sent.extend(piece);
        sent.extend(b"\r\n");
    }
    sent.extend(b"0\r\n\r\n");
    sent
}

fn with_length(method: &str, kind: &str, body: &[u8]) -> Vec<u8> {
    let length = format!("Content-Length: {}", body.len());
    [&request(method, kind, "", &[&length])[..], body].concat()
}

#[test]
fn a_message_has_a_quarter_of_a_mebibyte_and_no_more() {
    let bench = Bench::new();
    let service = service(&bench, &[]);
    // The stream's call fails by itself, so that it ends.
    let message = |len: usize| {
        let start = r#"{"path":"none","padding":""#;
        format!("{start}{}\"}}", "x".repeat(len - start.len() - 2))
    };
    for (len, unary, stream) in [
        (LARGEST - 1, (404, "not_found"), "not_found"),
        (LARGEST, (404, "not_found"), "not_found"),
        (LARGEST + 1, (429, "resource_exhausted"), "resource_exhausted"),
    ] {
        let message = message(len);
        assert_eq!(message.len(), len);
        let framed = frame(0, &message);
        for send in [chunked, with_length] {
            let answer = service.send(&send("Stat", UNARY, message.as_bytes()));
            assert!(answer.contains(&format!("\"{}\"", unary.1)), "{len}: {answer}");
            assert_eq!(status(&answer), unary.0, "{len}");
            let answer = service.send(&send("WatchDir", STREAM, &framed));
            assert!(answer.contains(&format!("\"{stream}\"")), "{len}: {answer}");
            assert_eq!(status(&answer), 200, "{len}");
        }
    }
}

#[test]
fn a_header_that_means_one_thing_is_given_once() {
    let bench = Bench::new();
    let token = bench.path("token");
    std::fs::write(&token, "let-me-in\n").unwrap();
    let service = service(&bench, &["--token-file", text(&token)]);
    let (good, wrong) = ("X-Access-Token: let-me-in", "X-Access-Token: other");
    let root = "Authorization: Basic cm9vdDo=";
    for (headers, expected) in [
        // Whoever stands in between may look at another one than the service does.
        (&[good, good][..], (200, Value::Null)),
        (&[good, wrong], (401, json!(401))),
        (&[wrong, good], (401, json!(401))),
        (&[good, "X-Access-Token:"], (401, json!(401))),
        (&[good, "X-Access-Token: let-me-in, let-me-in"], (401, json!(401))),
        (&["X-Access-Token: let-me-in, let-me-in"], (401, json!(401))),
        (&[good, root], (200, Value::Null)),
        (&[good, root, root], (400, json!("invalid_argument"))),
        (&[good, "Connect-Timeout-Ms: 9000"], (200, Value::Null)),
        (
            &[good, "Connect-Timeout-Ms: 9000", "Connect-Timeout-Ms: 9"],
            (400, json!("invalid_argument")),
        ),
        (
            &[good, "Connect-Protocol-Version: 1", "Connect-Protocol-Version: 2"],
            (400, json!("invalid_argument")),
        ),
        (
            &[good, "Content-Encoding: identity", "Content-Encoding: gzip"],
            (400, json!("invalid_argument")),
        ),
        (&[good, "Content-Type: application/proto"], (415, Value::Null)),
    ] {
        let (status, answer) = service.call("Stat", &json!({ "path": "" }), headers);
        assert_eq!((status, answer["code"].clone()), expected, "{headers:?}");
    }
    // In a stream it is said in its last message.
    for (header, code) in [
        ("Connect-Protocol-Version: 2", "invalid_argument"),
        ("Connect-Timeout-Ms: x", "invalid_argument"),
        ("Connect-Content-Encoding: gzip", "unimplemented"),
    ] {
        let body = frame(0, r#"{"path":"none"}"#);
        let length = format!("Content-Length: {}", body.len());
        let head = request("WatchDir", STREAM, "", &[good, header, &length]);
        let answer = service.send(&[head, body].concat());
        assert_eq!(status(&answer), 200, "{answer}");
        assert!(answer.contains(&format!("{{\"error\":{{\"code\":\"{code}\"")), "{answer}");
    }
}

/// What is answered to requests of which others might see the end elsewhere.
#[test]
fn it_is_clear_where_a_request_ends() {
    let bench = Bench::new();
    let service = service(&bench, &[]);
    let made = |name: &str| Path::new(&bench.path("root")).join(name).exists();
    let head = "POST /filesystem.Filesystem/Stat HTTP/1.1\r\nHost: localhost\r\n\
                Content-Type: application/json\r\n";
    // As if the first had ended earlier.
    let smuggled = |name: &str| {
        let body = format!("{{\"path\":\"{name}\"}}");
        format!(
            "POST /filesystem.Filesystem/MakeDir HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    for (name, lengths) in [
        ("two-lengths", "Content-Length: 2\r\nContent-Length: 400\r\n"),
        ("two-lengths-turned", "Content-Length: 400\r\nContent-Length: 2\r\n"),
        ("length-list", "Content-Length: 2, 400\r\n"),
        ("signed", "Content-Length: +2\r\n"),
        ("not-chunked", "Transfer-Encoding: identity\r\nContent-Length: 2\r\n"),
        ("chunked-twice-over", "Transfer-Encoding: chunked, gzip\r\nContent-Length: 2\r\n"),
        ("white-space", "Content-Length : 2\r\n"),
    ] {
        let answer = service.send(format!("{head}{lengths}\r\n{{}}{}", smuggled(name)).as_bytes());
        assert_eq!(status(&answer), 400, "{lengths:?}: {answer}");
        assert!(!made(name), "{lengths:?}: {answer}");
    }
    // Pieces count, and a length beside them is nothing.
    let rest = smuggled("after-pieces");
    let pieces = format!(
        "{head}Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n{rest}"
    );
    let answer = service.send(pieces.as_bytes());
    assert_eq!(status(&answer), 200, "{answer}");
    // Nothing is read after such a request.
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    assert!(!made("after-pieces"), "{answer}");
}
