//! Starting a server that outlives the command, and telling the command when it is ready.
//!
//! The command runs a program of its choice, mostly its own again, with the hidden `serve` subcommand. Two lines
//! of JSON go to the server's standard input, so that a presigned URL shows in no process list: first the source
//! to open, then what to mount, which the command may find out meanwhile. The server answers each with a line on
//! its standard output.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, ExitCode, Stdio};

use serde::{Deserialize, Serialize};

use super::files_worker::run_files_worker;
use super::group::Groups;
use super::heap;
use super::inherited;
use super::privileges;
use super::program::{Role, ServerProgram, role};
use super::serve::serve_in;
use super::{Manner, MountRequest, Ready};
use crate::backup::SourceRequest;
use crate::failure::{Code, Failure};

/// What a server says: that it can read the archive, that its mount answers, or why it gave up.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Opened,
    Ready(Ready),
    Failed(Failure),
}

/// A server that has not mounted yet. Dropped, it ends without a trace.
pub struct Starting {
    shown: PathBuf,
    /// `None` once it has mounted.
    server: Option<Child>,
    stdin: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    opened: bool,
}

impl Starting {
    /// Has `program` open `source`. `shown` is what process lists say of it.
    ///
    /// # Errors
    /// [`Code::Usage`] for a program that is no server, [`Code::Failed`] where it cannot be started.
    pub fn new(
        program: &ServerProgram,
        source: &SourceRequest,
        shown: &Path,
    ) -> Result<Self, Failure> {
        let mut source = source.clone();
        source.make_absolute();
        let mut server = program.command()?;
        heap::limit(&mut server);
        inherited::leave_directory(&mut server);
        let mut server = server
            .arg(shown)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(cannot_start)?;
        let stdin = server.stdin.take();
        let answers = server.stdout.take().map(BufReader::new);
        let answers = answers.ok_or_else(|| cannot_start(io::ErrorKind::BrokenPipe.into()))?;
        let server = Some(server);
        let mut starting = Self { shown: shown.to_owned(), server, stdin, answers, opened: false };
        starting.send(&source)?;
        Ok(starting)
    }

    /// Waits until the server can read the archive.
    ///
    /// # Errors
    /// What the server said, or that it ended without a word.
    pub fn wait_opened(&mut self) -> Result<(), Failure> {
        if self.opened {
            return Ok(());
        }
        match self.read_answer()? {
            Answer::Opened => {
                self.opened = true;
                Ok(())
            }
            Answer::Failed(failure) => Err(failure),
            Answer::Ready(_) => Err(self.ended_early()),
        }
    }

    /// Has the server mount, and waits until the mount answers. The archive is the one that it has
    /// been told to open, whatever `request` says.
    ///
    /// # Errors
    /// As [`Self::wait_opened`].
    pub fn mount(mut self, request: &MountRequest) -> Result<Ready, Failure> {
        self.send(request)?;
        self.wait_opened()?;
        match self.read_answer()? {
            Answer::Ready(ready) => {
                self.stdin = None;
                if let Some(server) = self.server.take() {
                    wait_for_end(server);
                }
                check_answers(&ready.mountpoint, request.fork.is_some())?;
                Ok(ready)
            }
            // It has cleaned up by now or is about to; what comes next may rely on it, and so the drop
            // waits.
            Answer::Failed(failure) => Err(failure),
            Answer::Opened => Err(self.ended_early()),
        }
    }

    fn send(&mut self, message: &impl Serialize) -> Result<(), Failure> {
        let mut text = serde_json::to_vec(message).map_err(|error| cannot_start(error.into()))?;
        text.push(b'\n');
        if let Some(stdin) = &mut self.stdin {
            // A server that died already says why on its standard error, or in an answer.
            let _ = stdin.write_all(&text);
        }
        Ok(())
    }

    fn read_answer(&mut self) -> Result<Answer, Failure> {
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(cannot_start)?;
        serde_json::from_str(&line).map_err(|_| {
            // One that talks of something else may do so for ever.
            if !line.is_empty()
                && let Some(server) = &mut self.server
            {
                let _ = server.kill();
            }
            self.ended_early()
        })
    }

    fn ended_early(&mut self) -> Failure {
        self.stdin = None;
        let ended = self.server.as_mut().map(Child::wait);
        let ended = match ended {
            Some(Ok(status)) => status.to_string(),
            Some(Err(error)) => error.to_string(),
            None => String::new(),
        };
        let message = format!("the server for {} ended early: {ended}", self.shown.display());
        Failure::new(Code::Failed, message)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        // A server that waits for its second line ends when there is none. One that has mounted got
        // both, and goes on.
        if self.stdin.take().is_some()
            && let Some(server) = &mut self.server
        {
            let _ = server.wait();
        }
    }
}

/// Waits for the server's end beside whatever its starter does, which is no init and would keep a zombie of
/// every server for as long as it lives.
fn wait_for_end(mut server: Child) {
    let waiting =
        std::thread::Builder::new().name("thawfs-wait".into()).spawn(move || server.wait());
    if let Err(error) = waiting {
        tracing::debug!("the server's end will not be waited for: {error}");
    }
}

/// The mount is real once its root can be listed through the kernel. Asked from here, as a server that
/// asks itself cannot be killed. Of a fork it is enough that it answers: its root is listed already in what it was forked
/// from, and to list it anew may take as long as all the rest.
fn check_answers(mountpoint: &Path, is_fork: bool) -> Result<(), Failure> {
    let answer = match is_fork {
        true => rustix::fs::statvfs(mountpoint).map(drop).map_err(io::Error::from),
        false => {
            let first = std::fs::read_dir(mountpoint).and_then(|mut root| root.next().transpose());
            first.map(drop)
        }
    };
    answer.map_err(|error| {
        // Nobody is told of the mount: it goes.
        if let Err(failure) = super::unmount_locked(mountpoint, Manner::Lazy) {
            tracing::warn!("cleaning up: {failure}");
        }
        let shown = mountpoint.display();
        Failure::new(Code::Failed, format!("{shown} was mounted but does not answer: {error}"))
    })
}

fn cannot_start(error: io::Error) -> Failure {
    Failure::new(Code::Failed, format!("cannot start the server: {error}"))
}

/// Has `program` serve `request` and waits until its mount answers.
///
/// # Errors
/// As [`Starting::new`]; what the server said, or that it ended without a word.
pub fn start_detached(program: &ServerProgram, request: &MountRequest) -> Result<Ready, Failure> {
    Starting::new(program, &request.source, &request.mountpoint)?.mount(request)
}

/// To be called first in the `main` of a host that restores with its own program as the server: serves, and
/// gives the status to exit with, if that is what the process was started for.
///
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     if let Some(status) = thawfs::server::serve_if_asked() {
///         return status;
///     }
///     // …
///     std::process::ExitCode::SUCCESS
/// }
/// ```
#[must_use]
pub fn serve_if_asked() -> Option<ExitCode> {
    let ended = match role()? {
        Role::Server => run_detached(),
        Role::Files(mountpoint) => run_files_worker(&mountpoint),
    };
    Some(match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(failure.code.exit_status()),
    })
}

/// The other end of [`Starting`]: opens and serves what standard input says, and reports on standard
/// output. Returns when the mount is gone.
///
/// # Errors
/// Those of [`super::serve()`]; the command has been told already.
pub(crate) fn run_detached() -> Result<(), Failure> {
    inherited::leave_caller();
    // Before it is told of a secret.
    privileges::hide_memory();
    let mut detached = false;
    let served = open_and_serve(&mut detached);
    match &served {
        Err(failure) if detached => tracing::error!("{failure}"),
        // A command that has gone away needs no answer.
        Err(failure) => drop(tell(&Answer::Failed(failure.clone()))),
        Ok(()) => {}
    }
    served
}

fn open_and_serve(detached: &mut bool) -> Result<(), Failure> {
    let Some(source) = read_message::<SourceRequest>()? else {
        return Err(Failure::new(Code::Usage, "no mount request on standard input")
            .hint("this command is for thawfs itself; see thawfs mount"));
    };
    privileges::restrict(&source);
    let opened = source.open()?;
    if tell(&Answer::Opened).is_err() {
        return Ok(());
    }
    // The command has changed its mind if there is none.
    let Some(request) = read_message::<MountRequest>()? else { return Ok(()) };
    serve_in(&Groups::enter(), &request, opened, |ready, log| {
        // First, so that nothing of the caller's is held any more when the command returns.
        let command = leave_terminal(log)?;
        *detached = true;
        tell_on(command, &Answer::Ready(ready))
    })
}

/// The next line of standard input; `None` at its end.
fn read_message<T: serde::de::DeserializeOwned>() -> Result<Option<T>, Failure> {
    let bad = |error: io::Error| {
        Failure::new(Code::Usage, format!("no mount request on standard input: {error}"))
    };
    let mut line = String::new();
    if io::stdin().lock().read_line(&mut line).map_err(bad)? == 0 {
        return Ok(None);
    }
    serde_json::from_str(&line).map(Some).map_err(|error| bad(error.into()))
}

fn tell(answer: &Answer) -> io::Result<()> {
    tell_on(io::stdout().lock(), answer)
}

fn tell_on(mut out: impl Write, answer: &Answer) -> io::Result<()> {
    serde_json::to_writer(&mut out, answer)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Lets go of the three standard streams: whoever waits for their end shall not wait for the
/// unmount. Messages go to `log` from now on, answers to what is returned: the former standard output.
fn leave_terminal(log: &Path) -> io::Result<File> {
    let command = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    let log = File::options().create(true).append(true).mode(0o600).open(log)?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&log)?;
    Ok(command)
}
