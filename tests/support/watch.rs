//! What `thawfs watch` tells, as it comes.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::mount::Bench;

/// A running `thawfs watch --json`.
pub(crate) struct Watching {
    child: Child,
    lines: Receiver<(Instant, Value)>,
    /// The last cursor that came.
    pub(crate) cursor: String,
}

impl Watching {
    /// Watches all of `mountpoint`, with `options`, and waits until that has begun.
    pub(crate) fn new(bench: &Bench, mountpoint: &Path, options: &[&str]) -> Self {
        let mut child = bench
            .thawfs()
            .args(["watch", "--json", "--recursive"])
            .arg(mountpoint)
            .args(options.iter().map(OsStr::new))
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (told, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines() {
                let value = serde_json::from_str(&line.unwrap()).unwrap();
                if told.send((Instant::now(), value)).is_err() {
                    return;
                }
            }
        });
        let mut watching = Self { child, lines, cursor: String::new() };
        let first = watching.next(Duration::from_secs(60)).expect("it begins");
        assert!(first.1["event"] == "start" || first.1["event"] == "reset", "{first:?}");
        watching
    }

    /// What is told next, if it is in time, and when it came.
    pub(crate) fn next(&mut self, patience: Duration) -> Option<(Instant, Value)> {
        let (at, value) = self.lines.recv_timeout(patience).ok()?;
        if let Some(cursor) = value["cursor"].as_str() {
            self.cursor = cursor.to_owned();
        }
        Some((at, value))
    }

    /// All that is told until nothing has been for so long, as `EVENT PATH` or `EVENT PATH -> PATH`.
    pub(crate) fn words(&mut self, quiet: Duration) -> Vec<String> {
        let mut words = Vec::new();
        while let Some((_, told)) = self.next(quiet) {
            words.push(word(&told));
        }
        words
    }

    /// Waits for it to be told that `path` was written to, and says how long after `since` that was.
    pub(crate) fn written(&mut self, path: &str, since: Instant) -> Duration {
        loop {
            let (at, told) = self.next(Duration::from_secs(30)).expect(path);
            if told["event"] == "write" && told["path"] == path && at >= since {
                return at - since;
            }
        }
    }

    /// Ends it as a user does.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap()
    }

    /// Waits until it ends by itself.
    pub(crate) fn end(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

/// A line for people.
pub(crate) fn word(told: &Value) -> String {
    let (event, path) =
        (told["event"].as_str().unwrap(), told["path"].as_str().unwrap_or_default());
    match told["to"].as_str() {
        Some(to) => format!("{event} {path} -> {to}"),
        None => format!("{event} {path}").trim_end().to_owned(),
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
