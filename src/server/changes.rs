//! What changes in a mount, over the control socket, for as long as anybody listens.
//!
//! What is asked is one line of JSON, and so is each thing that is told. Who has missed something is told what, and
//! then the difference from the moment of the last change that it got, which it may catch up with.

use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat};
use rustix::net::RecvFlags;
use serde::{Deserialize, Serialize};

use super::control;
use super::questions::Question;
use super::silence;
use crate::failure::{Code, Failure};
use crate::names;
use crate::overlay::{DifferenceEntry, Overlay};
use crate::types::Timestamp;
use crate::watch::{Change, Cursor, Item, Reader, Start, What};

/// Most who listen at a time: each takes a thread.
pub(super) const MAX_AT_A_TIME: usize = 256;

/// Changes that are read at a time.
const BATCH: usize = 512;

/// How long what comes after a change is gathered. A change that comes after silence is told at once; but a thread that
/// wakes for each of many takes a sixth of the server's time while an archive is unpacked.
const GATHER: Duration = Duration::from_millis(1);

/// How often it is looked whether whoever listens is still there, while nothing changes.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How much earlier than a cursor something may have changed that comes after it in the log: what was stored through a
/// mapping is seen so much later.
const SEEN_LATE: i64 = 5;

/// Which changes are asked for.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename = "changes")]
pub(crate) struct ChangesRequest {
    /// A path from the root of the mount: changes of what is there, and of what is in it.
    #[serde(flatten, with = "names::path")]
    pub(crate) below: PathBuf,
    /// Whether also of all that is further below.
    pub(crate) recursive: bool,
    /// From where on, as [`Cursor`] has it; else from now on.
    pub(crate) since: Option<String>,
}

impl ChangesRequest {
    /// Whether what differs is of what is at or in the path, or further below if that is asked for.
    fn reaches(&self, entry: &DifferenceEntry) -> bool {
        let below = self.below.as_os_str().as_bytes();
        let is_there = |path: &Path| {
            let path = path.as_os_str().as_bytes();
            let path = if path == b"." { b"" } else { path };
            below_of(path, below).is_none_or(|rest| !rest.contains(&b'/'))
        };
        self.recursive || is_there(&entry.path) || entry.from.as_deref().is_some_and(is_there)
    }
}

/// One change, as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// As [`Change`] has it.
    pub(crate) sequence: u64,
    /// When it was written down, by RFC 3339.
    pub(crate) time: String,
    /// What kind of file it is.
    pub(crate) kind: String,
    /// Its path from the root of the mount, which is `.`.
    #[serde(flatten, with = "names::path")]
    pub(crate) path: PathBuf,
    /// Its new path, or the path of what it has changed places with.
    #[serde(flatten, with = "names::to")]
    pub(crate) to: Option<PathBuf>,
    /// Its number, the same for all names of a file.
    pub(crate) ino: u64,
    /// The place behind it.
    pub(crate) cursor: String,
}

/// Something that is told: a line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Line {
    /// All that changes from `cursor` on is told.
    Start {
        /// Where it begins.
        cursor: String,
    },
    /// It was made.
    Create(Told),
    /// Its data changed.
    Write(Told),
    /// It is gone.
    Remove(Told),
    /// It has another path.
    Rename(Told),
    /// It and another have changed places.
    Exchange(Told),
    /// Its attributes changed.
    Attributes(Told),
    /// Changes `from` to `to`, both included, are forgotten; what differs follows.
    Missed {
        /// The first of them.
        from: u64,
        /// The last.
        to: u64,
    },
    /// What changed after the cursor is not written down; what differs follows.
    Reset {
        /// The moment of the cursor.
        since: String,
    },
    /// What differs from then.
    Changed(DifferenceEntry),
    /// All that differs is told, and changes go on from there.
    CaughtUp {
        /// Where they do.
        cursor: String,
    },
    /// The mount is gone.
    End,
    /// The question cannot be answered.
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

/// Tells what changes until the mount is gone, or who listens is. The tree is held only while it is needed: what it has
/// locked is free when the mount is gone.
///
/// # Errors
/// Where who listens went away while something was told.
pub(super) fn tell(
    tree: &Weak<Overlay>,
    request: &ChangesRequest,
    connection: UnixStream,
) -> io::Result<()> {
    let mut to = BufWriter::with_capacity(64 << 10, connection);
    let log = tree.upgrade().map(|tree| Arc::clone(tree.change_log()));
    let since = request.since.as_deref().map(str::parse::<Cursor>).transpose();
    let (mut reader, start) = match (log, since) {
        (Some(log), Ok(since)) => log.subscribe(since)?,
        (None, _) => return write_line(&mut to, &Line::End),
        (_, Err(error)) => {
            let failure = Failure::new(Code::Usage, error.to_string());
            return write_line(&mut to, &Line::Failed(failure));
        }
    };
    let Cursor { life, at: last, .. } = reader.cursor();
    let mut telling = Telling { tree, request, to, life, last };
    match start {
        Start::Exact => telling.line(&Line::Start { cursor: reader.cursor().to_string() })?,
        Start::Reset { since } => {
            telling.line(&Line::Reset { since: rfc3339(since) })?;
            telling.catch_up(since, &reader)?;
        }
    }
    loop {
        telling.to.flush()?;
        if !reader.wait(LOOK_EVERY) {
            telling.line(&Line::End)?;
            return telling.to.flush();
        }
        let items = reader.read(BATCH);
        if items.is_empty() && is_gone(telling.to.get_ref()) {
            return Ok(());
        }
        // A full batch has more behind it.
        let is_last = !items.is_empty() && items.len() < BATCH;
        for item in items {
            if telling.item(&item, &mut reader)?.is_break() {
                break;
            }
        }
        if is_last {
            telling.to.flush()?;
            std::thread::sleep(GATHER);
        }
    }
}

struct Telling<'a> {
    tree: &'a Weak<Overlay>,
    request: &'a ChangesRequest,
    to: BufWriter<UnixStream>,
    /// The log's, which goes on as long as anybody reads.
    life: u64,
    /// When the last change that was read was written down, or where it was caught up.
    last: Timestamp,
}

impl Telling<'_> {
    fn line(&mut self, line: &Line) -> io::Result<()> {
        write_line(&mut self.to, line)
    }

    /// Says whether those that were read with it are told still.
    fn item(&mut self, item: &Item, reader: &mut Reader) -> io::Result<ControlFlow<()>> {
        match item {
            Item::Change(change) => {
                self.last = change.at;
                let below = self.request.below.as_os_str().as_bytes();
                if concerns(change, below, self.request.recursive) {
                    self.line(&told(change, self.life))?;
                }
                Ok(ControlFlow::Continue(()))
            }
            Item::Missed { from, .. } => {
                // What comes after those is in the difference, too, and would be told again.
                reader.skip();
                let Cursor { sequence: to, at, .. } = reader.cursor();
                self.line(&Line::Missed { from: *from, to })?;
                self.catch_up(self.last, reader)?;
                self.last = at;
                Ok(ControlFlow::Break(()))
            }
        }
    }

    /// Tells what differs from moment `since`, and from where changes go on.
    fn catch_up(&mut self, since: Timestamp, reader: &Reader) -> io::Result<()> {
        let cursor = reader.cursor().to_string();
        let since = Timestamp { seconds: since.seconds - SEEN_LATE, ..since };
        let mut written = Ok(());
        let told = match self.tree.upgrade() {
            None => Ok(()),
            Some(tree) => tree.difference(Some(since), &self.request.below, &mut |entry| {
                if !self.request.reaches(&entry) {
                    return ControlFlow::Continue(());
                }
                written = write_line(&mut self.to, &Line::Changed(entry));
                if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            }),
        };
        written?;
        match told {
            Ok(()) => self.line(&Line::CaughtUp { cursor }),
            Err(error) => self.line(&Line::Failed(error.into())),
        }
    }
}

/// Whether `change` is one of what is at `below`, in it, or further below if `recursive`; or of a name on the way there.
fn concerns(change: &Change, below: &[u8], recursive: bool) -> bool {
    let is_of_names = !matches!(change.what, What::Write | What::Attributes);
    let is_there = |path: &[u8]| match below_of(path, below) {
        Some(rest) => recursive || !rest.contains(&b'/'),
        None => is_of_names && below_of(below, path).is_some(),
    };
    is_there(&change.path) || change.other().is_some_and(is_there)
}

/// The path of `path` from `directory`, which is at or above it.
fn below_of<'a>(path: &'a [u8], directory: &[u8]) -> Option<&'a [u8]> {
    if directory.is_empty() {
        return Some(path);
    }
    match path.strip_prefix(directory)? {
        [] => Some(b""),
        [b'/', rest @ ..] => Some(rest),
        _ => None,
    }
}

fn told(change: &Change, life: u64) -> Line {
    let cursor = Cursor { life, sequence: change.sequence, at: change.at };
    let told = Told {
        sequence: change.sequence,
        time: rfc3339(change.at),
        kind: change.kind.name().to_owned(),
        path: as_path(if change.path.is_empty() { b"." } else { &change.path }),
        to: change.other().map(as_path),
        ino: change.ino,
        cursor: cursor.to_string(),
    };
    match change.what {
        What::Create => Line::Create(told),
        What::Write => Line::Write(told),
        What::Remove => Line::Remove(told),
        What::Rename { .. } => Line::Rename(told),
        What::Exchange { .. } => Line::Exchange(told),
        What::Attributes => Line::Attributes(told),
    }
}

fn as_path(bytes: &[u8]) -> PathBuf {
    std::ffi::OsStr::from_bytes(bytes).into()
}

fn rfc3339(time: Timestamp) -> String {
    let time = DateTime::from_timestamp(time.seconds, time.nanos).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::Nanos, true)
}

/// Whether the other end is closed.
fn is_gone(connection: &UnixStream) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    matches!(rustix::net::recv(connection.as_fd(), &mut [0_u8; 1], flags), Ok((_, 0)))
}

/// The changes of a mount, as its server tells them.
pub(crate) struct Following {
    lines: BufReader<UnixStream>,
    line: Vec<u8>,
}

impl Following {
    /// Asks the server whose socket lies at `path`.
    ///
    /// # Errors
    /// Where no server answers there.
    pub(crate) fn begin(path: &Path, request: ChangesRequest) -> Result<Self, Failure> {
        let lines = control::ask(path, &Question::Changes(request))
            .map_err(|error| silence::silent(path, &error))?;
        Ok(Self { lines, line: Vec::new() })
    }

    /// The connection. Once it is shut down, nothing comes any more.
    ///
    /// # Errors
    /// Where there are no more descriptors.
    pub(crate) fn connection(&self) -> io::Result<UnixStream> {
        self.lines.get_ref().try_clone()
    }

    /// What is told next, once it is; `None` when the mount is gone.
    ///
    /// # Errors
    /// Where the server does not begin in time, or is killed; and what it fails with.
    pub(crate) fn next(&mut self) -> Result<Option<Line>, Failure> {
        self.line.clear();
        self.lines.read_until(b'\n', &mut self.line).map_err(silent)?;
        if self.line.last() != Some(&b'\n') {
            return Err(Failure::new(Code::Failed, "the server was killed, or has let go of us"));
        }
        self.lines.get_ref().set_read_timeout(None).map_err(silent)?;
        match serde_json::from_slice(&self.line).map_err(|error| silent(error.into()))? {
            Line::End => Ok(None),
            Line::Failed(failure) => Err(failure),
            line => Ok(Some(line)),
        }
    }

    /// Whether more has come already.
    pub(crate) fn has_more(&self) -> bool {
        self.lines.buffer().contains(&b'\n')
    }
}

fn silent(error: io::Error) -> Failure {
    Failure::new(Code::Failed, format!("the server does not answer: {error}"))
        .hint("thawfs status shows what it does")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::FileKind;

    fn change(what: What, path: &str) -> Change {
        let at = Timestamp { seconds: 1, nanos: 5 };
        let kind = FileKind::Regular;
        Change { sequence: 7, at, what, kind, ino: 3, path: path.into() }
    }

    #[test]
    fn a_change_is_told_to_whom_it_concerns() {
        let rename = |to: &str| What::Rename { to: to.into() };
        for (what, path, below, direct, all) in [
            (What::Create, "a", "", true, true),
            (What::Create, "a/b", "", false, true),
            (What::Attributes, "", "", true, true),
            (What::Write, "a/b", "a/b", true, true),
            (What::Write, "a/b", "a", true, true),
            (What::Write, "a/b/c", "a", false, true),
            (What::Write, "ab", "a", false, false),
            (What::Write, "a", "a/b", false, false),
            (What::Remove, "a", "a/b", true, true),
            (What::Attributes, "a", "a/b", false, false),
            (rename("x"), "a", "a/b", true, true),
            (rename("a"), "x", "a/b", true, true),
            (rename("a/y"), "x", "a", true, true),
            (rename("a/y/z"), "x", "a", false, true),
            (rename("y"), "x", "a", false, false),
            (What::Exchange { with: b"a".into() }, "x", "a/b", true, true),
        ] {
            let change = change(what, path);
            assert_eq!(concerns(&change, below.as_bytes(), false), direct, "{change:?} {below}");
            assert_eq!(concerns(&change, below.as_bytes(), true), all, "{change:?} {below}");
        }
    }

    #[test]
    fn what_is_told_is_read_as_it_was_written() {
        let odd = change(What::Exchange { with: b"\xff\n".into() }, "a\u{202e}");
        let line = told(&odd, 9);
        let text = serde_json::to_string(&line).unwrap();
        assert!(!text.contains('\n') && text.starts_with(r#"{"event":"exchange","#), "{text}");
        assert!(text.contains(r#""time":"1970-01-01T00:00:01.000000005Z""#), "{text}");
        assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line);
        let end = serde_json::to_string(&Line::End).unwrap();
        assert_eq!(end, r#"{"event":"end"}"#);
    }
}
