//! The difference between a mount's view and its backup, over the control socket: the server has the archive's metadata
//! in memory and knows the tree, where a command would have to open both again.
//!
//! What is asked is one line of JSON, and so is each entry of the answer. A line that says how it ended comes last;
//! without it the server was killed meanwhile.

use std::io::{self, BufRead, BufWriter, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use serde::{Deserialize, Serialize};

use super::control;
use crate::failure::{Code, Failure};
use crate::names;
use crate::overlay::{DifferenceEntry, Overlay};
use crate::types::Timestamp;

/// Most differences that are told at a time: each takes a thread, and the names of directories.
const MAX_AT_A_TIME: usize = 8;

/// What of a difference is asked for.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename = "difference")]
pub(crate) struct DifferenceRequest {
    /// A path from the root of the mount: what is there, and what is below it.
    #[serde(flatten, with = "names::path")]
    pub(crate) below: PathBuf,
    /// Since when, in seconds and nanoseconds; else from the backup.
    pub(crate) since: Option<(i64, u32)>,
}

/// A question.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Question {
    Difference(DifferenceRequest),
}

/// A line of the answer.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    /// The question is understood, and from here on it may take any time.
    Begun,
    Entry(DifferenceEntry),
    End,
    Failed(Failure),
}

/// Tells differences of one tree.
pub(super) struct Differences {
    pub(super) tree: Weak<Overlay>,
    /// Held by each that is being told.
    pub(super) running: Arc<()>,
}

impl Differences {
    /// Answers `asked` on a thread of its own.
    pub(super) fn answer(&self, asked: &[u8], connection: UnixStream) -> io::Result<()> {
        let Question::Difference(request) = serde_json::from_slice(asked)?;
        let Some(tree) = self.tree.upgrade() else {
            return refuse(connection, Failure::new(Code::NotMounted, "the mount is ending"));
        };
        // One is our own.
        if Arc::strong_count(&self.running) > MAX_AT_A_TIME {
            let message = format!("the server tells {MAX_AT_A_TIME} differences already");
            return refuse(connection, Failure::new(Code::Busy, message));
        }
        let running = Arc::clone(&self.running);
        // Who reads slowly is in nobody's way.
        connection.set_write_timeout(None)?;
        std::thread::Builder::new().name("thawfs-difference".into()).spawn(move || {
            // A client that went away is its own affair.
            if let Err(error) = tell(&tree, &request, connection) {
                tracing::debug!("a difference was not told to its end: {error}");
            }
            drop(running);
        })?;
        Ok(())
    }
}

fn refuse(mut connection: UnixStream, failure: Failure) -> io::Result<()> {
    write_line(&mut connection, &Line::Failed(failure))
}

fn write_line(to: &mut impl Write, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *to, line)?;
    to.write_all(b"\n")
}

fn tell(tree: &Overlay, request: &DifferenceRequest, connection: UnixStream) -> io::Result<()> {
    let mut to = BufWriter::new(connection);
    write_line(&mut to, &Line::Begun)?;
    to.flush()?;
    let since = request.since.map(|(seconds, nanos)| Timestamp { seconds, nanos });
    let mut written = Ok(());
    let mut write = |entry| {
        written = write_line(&mut to, &Line::Entry(entry));
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let told = tree.difference(since, &request.below, &mut write);
    written?;
    let end = match told {
        Ok(()) => Line::End,
        Err(error) => Line::Failed(error.into()),
    };
    write_line(&mut to, &end)?;
    to.flush()
}

/// Asks the server whose socket lies at `path`, and gives `sink` the entries until it breaks.
///
/// # Errors
/// Where no server answers there in time, or it is killed meanwhile; and what it fails with.
pub(crate) fn fetch_difference(
    path: &Path,
    request: DifferenceRequest,
    sink: &mut dyn FnMut(DifferenceEntry) -> ControlFlow<()>,
) -> Result<(), Failure> {
    let silent = |error: io::Error| {
        Failure::new(Code::Failed, format!("the server does not answer: {error}"))
            .hint("thawfs status shows what it does")
    };
    let mut lines = control::ask(path, &Question::Difference(request)).map_err(silent)?;
    let mut line = Vec::new();
    loop {
        line.clear();
        lines.read_until(b'\n', &mut line).map_err(silent)?;
        if line.last() != Some(&b'\n') {
            return Err(Failure::new(
                Code::Failed,
                "the server ended before it had told everything",
            ));
        }
        match serde_json::from_slice(&line).map_err(|error| silent(error.into()))? {
            Line::Begun => lines.get_ref().set_read_timeout(None).map_err(silent)?,
            Line::Entry(entry) => {
                if sink(entry).is_break() {
                    return Ok(());
                }
            }
            Line::End => return Ok(()),
            Line::Failed(failure) => return Err(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_read_as_it_was_written() {
        use std::os::unix::ffi::OsStringExt;
        for (below, since) in [
            (PathBuf::from(""), None),
            (PathBuf::from(std::ffi::OsString::from_vec(b"a/\xff\n".to_vec())), Some((-1, 5))),
        ] {
            let request = DifferenceRequest { below, since };
            let text = serde_json::to_string(&Question::Difference(request)).unwrap();
            assert!(!text.contains('\n'), "{text}");
            let Question::Difference(read) = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_string(&Question::Difference(read)).unwrap(), text);
        }
    }
}
