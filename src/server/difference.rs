//! The difference between a mount's view and its backup, over the control socket: the server has the archive's metadata
//! in memory and knows the tree, where a command would have to open both again.
//!
//! What is asked is one line of JSON, and so is each entry of the answer. A line that says how it ended comes last;
//! without it the server was killed meanwhile.

use std::io::{self, BufRead, BufWriter, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::control;
use super::questions::Question;
use super::silence;
use crate::failure::{Code, Failure};
use crate::names;
use crate::overlay::DifferenceEntry;
use crate::types::Timestamp;

/// Most differences that are told at a time: each takes a thread, and the names of directories.
pub(super) const MAX_AT_A_TIME: usize = 8;

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

impl DifferenceRequest {
    pub(super) fn since(&self) -> Option<Timestamp> {
        self.since.map(|(seconds, nanos)| Timestamp { seconds, nanos })
    }
}

/// Gets the entries of a difference until it breaks.
type Sink<'a> = dyn FnMut(DifferenceEntry) -> ControlFlow<()> + 'a;

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

/// Says why nothing is told.
pub(super) fn refuse(mut connection: UnixStream, failure: Failure) -> io::Result<()> {
    write_line(&mut connection, &Line::Failed(failure))
}

fn write_line(to: &mut impl Write, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *to, line)?;
    to.write_all(b"\n")
}

/// Tells the difference that `tell` gives.
///
/// # Errors
/// Where who listens went away meanwhile.
pub(super) fn tell(
    connection: UnixStream,
    tell: impl FnOnce(&mut Sink<'_>) -> Result<(), Failure>,
) -> io::Result<()> {
    let mut to = BufWriter::new(connection);
    write_line(&mut to, &Line::Begun)?;
    to.flush()?;
    let mut written = Ok(());
    let mut write = |entry| {
        written = write_line(&mut to, &Line::Entry(entry));
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let told = tell(&mut write);
    written?;
    let end = match told {
        Ok(()) => Line::End,
        Err(failure) => Line::Failed(failure),
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
    question: &Question,
    sink: &mut Sink<'_>,
) -> Result<(), Failure> {
    question.check()?;
    let silent = |error: io::Error| silence::silent(path, &error);
    let mut lines = control::ask(path, question).map_err(silent)?;
    let mut line = Vec::new();
    let mut has_begun = false;
    loop {
        line.clear();
        match lines.read_until(b'\n', &mut line) {
            // It may close the connection before it has read all.
            Err(error) if has_begun || error.kind() != io::ErrorKind::ConnectionReset => {
                return Err(silent(error));
            }
            _ => {}
        }
        if line.last() != Some(&b'\n') {
            let message = "the server ended before it had told everything";
            let early = Failure::new(Code::Failed, message);
            return Err(match (has_begun, question) {
                (true, _) => early,
                (false, Question::Points(_)) => silence::wordless(path, unknown()),
                (false, _) => silence::wordless(path, early),
            });
        }
        match serde_json::from_slice(&line).map_err(|error| silent(error.into()))? {
            Line::Begun => {
                has_begun = true;
                lines.get_ref().set_read_timeout(None).map_err(silent)?;
            }
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

/// Of a question that is not even begun to be answered.
fn unknown() -> Failure {
    let message = "the server is of a version of thawfs that does not compare checkpoints";
    Failure::new(Code::Unsupported, message)
        .hint("it is that with which it was mounted: unmount, and mount again with --keep-upper")
}
