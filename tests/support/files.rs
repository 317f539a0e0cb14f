//! `thawfs serve-files`, and requests to it as they are sent.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::mount::Bench;

/// A running service.
pub(crate) struct Service {
    pub(crate) child: Child,
    pub(crate) url: String,
    address: String,
}

impl Service {
    pub(crate) fn start(bench: &Bench, arguments: &[&str]) -> Self {
        Self::spawn(bench.thawfs(), arguments)
    }

    /// The same by a command that runs thawfs with the arguments that it is given.
    pub(crate) fn spawn(mut command: Command, arguments: &[&str]) -> Self {
        command.args(["serve-files", "--json", "--listen", "127.0.0.1:0"]).args(arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        let word = |key: &str| ready[key].as_str().unwrap().to_owned();
        Self { child, url: word("url"), address: word("address") }
    }

    /// Sends `request` as it is, and gives all of the answer, or what has come when the service says no more.
    pub(crate) fn send(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        let mut answer = Vec::new();
        // Until it closes, or is silent.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// The status of the answer to `call`, and its JSON.
    pub(crate) fn call(&self, method: &str, message: &Value, headers: &[&str]) -> (u16, Value) {
        self.call_with(method, &message.to_string(), headers)
    }

    /// The same, of a message as it is written.
    pub(crate) fn call_with(&self, method: &str, body: &str, headers: &[&str]) -> (u16, Value) {
        let answer = self.send(&request(method, "application/json", body, headers));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = match head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            true => unchunked(body),
            false => body.to_owned(),
        };
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    /// Watchers, events and files that the process has open.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let ended = self.child.wait().unwrap();
        if !std::thread::panicking() {
            assert!(ended.success(), "{ended}");
        }
    }
}

pub(crate) fn request(method: &str, kind: &str, body: &str, headers: &[&str]) -> Vec<u8> {
    let more: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let says_it =
        |header: &&str| header.starts_with("Content-Length") || header.ends_with("chunked");
    let length = match headers.iter().any(says_it) {
        true => String::new(),
        false => format!("Content-Length: {}\r\n", body.len()),
    };
    format!(
        "POST /filesystem.Filesystem/{method} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: {kind}\r\n{length}{more}\r\n{body}"
    )
    .into_bytes()
}

pub(crate) fn unchunked(mut text: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = text.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        whole.push_str(&rest[..size]);
        text = rest[size..].trim_start_matches("\r\n");
    }
    whole
}

pub(crate) fn frame(flags: u8, message: &str) -> Vec<u8> {
    let mut frame = vec![flags];
    frame.extend((message.len() as u32).to_be_bytes());
    frame.extend(message.as_bytes());
    frame
}

/// A request for a stream, of one frame.
pub(crate) fn watch_request(message: &Value, headers: &[&str]) -> Vec<u8> {
    let frame = frame(0, &message.to_string());
    let length = format!("Content-Length: {}", frame.len());
    let headers = [headers, &[&length]].concat();
    [request("WatchDir", "application/connect+json", "", &headers), frame].concat()
}

/// Reads some more; says whether any has come in the time that there is.
pub(crate) fn read_some(stream: &mut TcpStream, text: &mut Vec<u8>) -> bool {
    let mut some = [0; 4096];
    let len = stream.read(&mut some).unwrap_or(0);
    text.extend_from_slice(&some[..len]);
    len > 0
}

/// As much of an answer as one reads.
fn last_of(answer: &[u8]) -> String {
    let last = &answer[answer.len().saturating_sub(500)..];
    format!("{} bytes that end in {:?}", answer.len(), String::from_utf8_lossy(last))
}

/// Reads until `wanted` has come.
pub(crate) fn read_until(stream: &mut TcpStream, wanted: &str) -> String {
    let mut answer = Vec::new();
    let mut some = [0; 4096];
    loop {
        let len = stream
            .read(&mut some)
            .unwrap_or_else(|error| panic!("{error}, for {wanted} after {}", last_of(&answer)));
        assert!(len > 0, "{wanted}: {}", last_of(&answer));
        answer.extend_from_slice(&some[..len]);
        let text = String::from_utf8_lossy(&answer);
        if text.contains(wanted) {
            return text.into_owned();
        }
    }
}
