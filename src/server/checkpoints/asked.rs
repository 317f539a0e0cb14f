//! What is asked about checkpoints over the control socket, and what is answered: a line that says that the
//! question is understood, and one with the answer. Who is not sent the first asks a server that knows no
//! checkpoints.

use std::io::{self, BufRead, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::control;
use super::super::layers::FuzzyFile;
use super::super::questions::Question;
use super::super::silence;
use super::Checkpoints;
use super::published::{PublishAsked, Publishing};
use crate::backup::BackupId;
use crate::failure::{Code, Failure};

/// Make a checkpoint.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CheckpointRequest {
    /// What to call it.
    pub(crate) name: Option<String>,
    /// Answer only when the disk has it.
    pub(crate) sync: bool,
    /// How many checkpoints without a name to keep from now on.
    pub(crate) keep: Option<u32>,
    /// Make a backup of it, which is not waited for.
    #[serde(default)]
    pub(crate) publish: Option<PublishAsked>,
}

/// Tell which there are.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ListRequest {}

/// Tell which files are open for writing, of which the kernel may hold something back.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldBackRequest {}

/// Their paths from the root, as bytes.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldBack {
    pub(crate) paths: Vec<Vec<u8>>,
}

/// Where to roll back to.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Target {
    /// The last checkpoint.
    Last,
    /// One by its id, the first digits of that, or its name.
    Point(String),
    /// What was mounted.
    Archive,
}

/// Roll back.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RollbackRequest {
    /// Where to.
    pub(crate) to: Target,
    /// Do not keep what is rolled away.
    pub(crate) discard: bool,
    /// Not while somebody writes.
    pub(crate) strict: bool,
}

/// Forget checkpoints.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ForgetRequest {
    /// One by its id, the first digits of that, or its name.
    pub(crate) which: Option<String>,
    /// All but so many without a name, now and from now on.
    pub(crate) keep: Option<u32>,
}

/// What was made.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Made {
    pub(crate) id: BackupId,
    /// Files of it that are of no one moment.
    pub(crate) fuzzy: Vec<FuzzyFile>,
    /// Whether the disk is known to have it.
    pub(crate) durable: bool,
    /// Whether it is to be published.
    #[serde(default)]
    pub(crate) publishes: bool,
    /// Why not, where that was asked for.
    #[serde(default)]
    pub(crate) local_because: Option<String>,
}

/// Which there are.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listed {
    /// The oldest first.
    pub(crate) checkpoints: Vec<ListedPoint>,
    /// How many without a name are kept.
    pub(crate) keep: u32,
}

/// One of them.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListedPoint {
    pub(crate) id: BackupId,
    pub(crate) name: Option<String>,
    /// Milliseconds since the epoch.
    pub(crate) created_ms: u64,
    /// Whether the disk is known to have it.
    pub(crate) durable: bool,
    /// Room that what changed before it takes on disk, if that is known yet.
    pub(crate) bytes: Option<u64>,
    /// Files of it that are of no one moment.
    pub(crate) fuzzy: Vec<FuzzyFile>,
    /// Whether it is what the last rollback has rolled away.
    pub(crate) rolled_away: bool,
    /// Whether it is the one that a rollback goes to.
    pub(crate) last: bool,
    /// How far its publishing is, if it is to be published.
    #[serde(default)]
    pub(crate) published: Option<Publishing>,
    /// Where it is mounted besides, or was: such a mount lies on it.
    #[serde(default)]
    pub(crate) forks: Vec<PathBuf>,
}

/// What was rolled back.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RolledBack {
    /// To which; none for what was mounted.
    pub(crate) id: Option<BackupId>,
    pub(crate) name: Option<String>,
    /// How many names mean something else than before.
    pub(crate) names: u64,
    /// By which it can be taken back.
    pub(crate) rolled_away: Option<BackupId>,
    /// The bytes of the paths that directories have come to which somebody knows by other ones.
    #[serde(default)]
    pub(crate) moved: Vec<Vec<u8>>,
}

/// What was forgotten.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Forgotten {
    pub(crate) forgotten: Vec<BackupId>,
    /// How many without a name are kept.
    pub(crate) keep: u32,
}

/// A line of the answer.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line<T> {
    Begun,
    Done(T),
    Failed(Failure),
}

fn write_line<T: Serialize>(to: &mut UnixStream, line: &Line<T>) -> io::Result<()> {
    let mut json = serde_json::to_vec(line)?;
    json.push(b'\n');
    to.write_all(&json)
}

/// Says why nothing is done.
pub(in super::super) fn refuse(mut connection: UnixStream, failure: Failure) -> io::Result<()> {
    write_line(&mut connection, &Line::<()>::Failed(failure))
}

/// Does what is asked, and tells.
///
/// # Errors
/// Where who listens went away meanwhile.
pub(in super::super) fn tell(
    checkpoints: &Checkpoints,
    question: &Question,
    mut connection: UnixStream,
) -> io::Result<()> {
    // Who is gone by now changed their mind.
    write_line(&mut connection, &Line::<()>::Begun)?;
    let to = &mut connection;
    match question {
        Question::Checkpoint(request) => answer(to, checkpoints.checkpoint(request)),
        Question::Checkpoints(_) => answer(to, checkpoints.list()),
        Question::HeldBack(_) => answer(to, checkpoints.held_back()),
        Question::Rollback(request) => answer(to, checkpoints.roll_back(request)),
        Question::Forget(request) => answer(to, checkpoints.forget(request)),
        Question::Publishing(request) => answer(to, checkpoints.publishing(request)),
        Question::Fork(request) => answer(to, checkpoints.fork(request)),
        Question::Difference(_) | Question::Points(_) | Question::Changes(_) => {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }
}

fn answer<T: Serialize>(to: &mut UnixStream, done: Result<T, Failure>) -> io::Result<()> {
    write_line(to, &done.map_or_else(Line::Failed, Line::Done))
}

/// Asks the server whose socket lies at `path`, and waits for the answer.
///
/// # Errors
/// Where no server answers there, or it is of a version that knows no checkpoints; what it fails with, and what
/// [`Question::check`] refuses.
pub(crate) fn ask<T: DeserializeOwned>(path: &Path, question: &Question) -> Result<T, Failure> {
    question.check()?;
    let silent = |error: io::Error| silence::silent(path, &error);
    let mut lines = control::ask(path, question).map_err(silent)?;
    let mut has_begun = false;
    loop {
        let mut line = Vec::new();
        match lines.read_until(b'\n', &mut line) {
            // It may close the connection before it has read all.
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => {
                return Err(silent(error));
            }
            _ => {}
        }
        if line.last() != Some(&b'\n') {
            return Err(match has_begun {
                true => {
                    let message = "the server ended before it had answered";
                    Failure::new(Code::Failed, message)
                        .hint("where it is mounted, thawfs checkpoints shows what was done")
                }
                false => {
                    let message = "the server is of a version of thawfs that knows no checkpoints";
                    let hint = "it is that with which it was mounted: unmount, and mount again; \
                                --keep-upper keeps what was changed";
                    let old = Failure::new(Code::Unsupported, message).hint(hint);
                    silence::wordless(path, old)
                }
            });
        }
        match serde_json::from_slice(&line).map_err(|error| silent(error.into()))? {
            Line::Begun => {
                has_begun = true;
                lines.get_ref().set_read_timeout(None).map_err(silent)?;
            }
            Line::Done(answer) => return Ok(answer),
            Line::Failed(failure) => return Err(failure),
        }
    }
}

/// Has the kernel hand on what was written into the mount on `mountpoint` and lies with it: what an ordinary user's
/// programs have written, or stored through a mapping. Asks the server, whose socket lies at `control`, which files that
/// may be. To be called in another process than the server, which has to answer meanwhile.
pub(crate) fn write_back(mountpoint: &Path, control: &Path) {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let root = match rustix::fs::open(mountpoint, flags | OFlags::DIRECTORY, Mode::empty()) {
        Ok(root) => root,
        Err(errno) => return tracing::debug!("what was just written may not be told: {errno}"),
    };
    if let Err(errno) = rustix::fs::syncfs(&root) {
        tracing::debug!("what was just written may not be told: {errno}");
    }
    // That only begins it, of a FUSE mount. Whoever closes a file waits for what is on its way.
    let held: HeldBack = match ask(control, &Question::HeldBack(HeldBackRequest {})) {
        Ok(held) => held,
        Err(failure) => return tracing::debug!("what is open for writing is not told: {failure}"),
    };
    for path in held.paths {
        let open =
            |how| rustix::fs::openat(&root, &path[..], how | OFlags::NOFOLLOW, Mode::empty());
        let writing = (flags - OFlags::RDONLY) | OFlags::WRONLY;
        // One that was removed meanwhile is in no checkpoint.
        drop(open(flags).or_else(|_| open(writing)));
    }
}
