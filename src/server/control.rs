//! The server's socket: one connection, one question, answered in JSON and closed.
//!
//! The question is a line. Who asks nothing, and says so by closing its half or by a moment's silence, gets the
//! report.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::checkpoints;
use super::report::Report;
use crate::failure::{Code, Failure};

/// How long either side waits for the other.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// How long the server waits for a question to begin.
const SILENCE: Duration = Duration::from_millis(50);

/// How often a question is asked that the server has not heard.
const ATTEMPTS: usize = 20;

/// What a report begins with, and no other answer.
const REPORT: &[u8] = b"{\"mountpoint\"";

/// Most bytes of a question: a path, in JSON and base64.
const MAX_QUESTION: u64 = 32 << 10;

/// A socket path holds 107 bytes at most, a state directory's path may be longer. Through the
/// directory's descriptor it always fits. The descriptor must outlive the path's use.
fn short_path(path: &Path) -> io::Result<(rustix::fd::OwnedFd, PathBuf)> {
    use rustix::fs::{Mode, OFlags};
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(parent, flags, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    Ok((directory, short))
}

/// Gives `hand_over` each connection to the socket at `path` that begins with HTTP, and `answer` every other, with the
/// line that was asked, which is empty where nothing was. On a thread that lasts as long as the process.
///
/// # Errors
/// When the socket cannot be made.
pub(super) fn listen(
    path: &Path,
    answer: impl Fn(&[u8], UnixStream) -> io::Result<()> + Send + 'static,
    hand_over: impl Fn(&UnixStream) -> io::Result<()> + Send + 'static,
) -> io::Result<()> {
    let (_directory, short) = short_path(path)?;
    let listener = UnixListener::bind(&short)?;
    std::fs::set_permissions(short, PermissionsExt::from_mode(0o600))?;
    std::thread::Builder::new().name("thawfs-control".into()).spawn(move || {
        for connection in listener.incoming() {
            // A client that went away is its own affair.
            let answered = connection.and_then(|connection| {
                if is_http(&connection)? {
                    return hand_over(&connection);
                }
                let asked = read_question(&connection)?;
                connection.set_write_timeout(Some(PATIENCE))?;
                if asked.len() as u64 >= MAX_QUESTION && !asked.ends_with(b"\n") {
                    let failure = Failure::new(Code::Usage, too_long().to_string());
                    return checkpoints::refuse(connection, failure);
                }
                answer(&asked, connection)
            });
            if let Err(error) = answered {
                tracing::debug!("a request was not answered: {error}");
            }
        }
    })?;
    Ok(())
}

/// Whether who is at the other end speaks HTTP: a question is JSON, and begins with no letter.
fn is_http(connection: &UnixStream) -> io::Result<bool> {
    connection.set_read_timeout(Some(SILENCE))?;
    let mut first = [0_u8];
    match rustix::net::recv(connection, &mut first, rustix::net::RecvFlags::PEEK) {
        Ok((_, count)) => Ok(count > 0 && first.first().is_some_and(u8::is_ascii_uppercase)),
        Err(rustix::io::Errno::AGAIN) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn read_question(connection: &UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut reader = BufReader::new(connection.take(MAX_QUESTION));
    connection.set_read_timeout(Some(SILENCE))?;
    match reader.fill_buf() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(line),
        begun => drop(begun?),
    }
    connection.set_read_timeout(Some(PATIENCE))?;
    reader.read_until(b'\n', &mut line)?;
    Ok(line)
}

fn too_long() -> io::Error {
    let message = format!("what is asked is longer than {MAX_QUESTION} bytes");
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

/// A connection to the server whose socket lies at `path`, which has [`PATIENCE`] with it.
///
/// # Errors
/// When no server listens there.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let (_directory, short) = short_path(path)?;
    let connection = UnixStream::connect(short)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    Ok(connection)
}

/// Asks the server whose socket lies at `path` a question, and gives what it answers, line by line. It has [`PATIENCE`] to
/// begin.
///
/// # Errors
/// When no server listens there, or it does not answer in time; `InvalidInput` of what is too long to be asked.
pub(super) fn ask(path: &Path, question: &impl Serialize) -> io::Result<BufReader<UnixStream>> {
    let mut question = serde_json::to_vec(question)?;
    question.push(b'\n');
    if question.len() as u64 > MAX_QUESTION {
        return Err(too_long());
    }
    for _ in 0..ATTEMPTS {
        if let Some(answer) = ask_once(path, &question)? {
            return Ok(answer);
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "it takes every question for none"))
}

/// As [`ask`]; `None` where the server has taken silence for a question: on a machine that is busy, that passes between
/// the connection and the first byte.
fn ask_once(path: &Path, question: &[u8]) -> io::Result<Option<BufReader<UnixStream>>> {
    let mut connection = connect(path)?;
    match connection.write_all(question) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(None),
        written => written?,
    }
    let mut answer = BufReader::new(connection);
    match answer.fill_buf() {
        Ok(begun) if begun.starts_with(REPORT) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
        _ => {}
    }
    Ok(Some(answer))
}

/// Asks the server whose socket lies at `path` for its report.
///
/// # Errors
/// When no server answers there in time.
pub fn fetch_report(path: &Path) -> io::Result<Report> {
    let mut connection = connect(path)?;
    connection.shutdown(Shutdown::Write)?;
    let mut text = Vec::new();
    connection.read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_that_was_not_heard_is_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut busy, _) = listener.accept().unwrap();
            busy.write_all(br#"{"mountpoint":"/x"}"#).unwrap();
            drop(busy);
            let (mut heard, _) = listener.accept().unwrap();
            let asked = read_question(&heard).unwrap();
            heard.write_all(b"\"begun\"\n").unwrap();
            asked
        });
        let mut line = String::new();
        ask(&path, &"why").unwrap().read_line(&mut line).unwrap();
        assert_eq!(
            (line.as_str(), server.join().unwrap().as_slice()),
            ("\"begun\"\n", &b"\"why\"\n"[..])
        );
    }
}
