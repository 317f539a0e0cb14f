//! Starting a server that outlives the command, and telling the command when it is ready.
//!
//! The command runs its own program again with the hidden `serve` subcommand. Two lines of JSON go
//! through the server's standard input, so that a presigned URL shows in no process list: the source
//! to open, and what to mount, which the command may still be finding out. Each is answered with a
//! line on its standard output.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::{Deserialize, Serialize};

use super::heap;
use super::inherited;
use super::mounts::read_mounts;
use super::{MountRequest, Ready};
use crate::backup::SourceRequest;
use crate::failure::{Code, Failure};

/// The hidden subcommand that [`start_detached`] starts.
pub const SERVE_COMMAND: &str = "serve";

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
    server: Child,
    stdin: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    opened: bool,
}

impl Starting {
    /// Starts a server that opens `source`. `shown` is what process lists say of it.
    ///
    /// # Errors
    /// [`Code::Failed`] where it cannot be started.
    pub fn new(source: &SourceRequest, shown: &Path) -> Result<Self, Failure> {
        let mut source = source.clone();
        source.make_absolute();
        let mut server = Command::new("/proc/self/exe");
        heap::limit(&mut server);
        inherited::leave_directory(&mut server);
        let mut server = server
            .arg0("thawfs")
            .arg(SERVE_COMMAND)
            .arg(shown)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(cannot_start)?;
        let stdin = server.stdin.take();
        let answers = server.stdout.take().map(BufReader::new);
        let answers = answers.ok_or_else(|| cannot_start(io::ErrorKind::BrokenPipe.into()))?;
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
                check_answers(&ready.mountpoint)?;
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
        serde_json::from_str(&line).map_err(|_| self.ended_early())
    }

    fn ended_early(&mut self) -> Failure {
        self.stdin = None;
        let ended = self.server.wait().map_or_else(|error| error.to_string(), |s| s.to_string());
        let message = format!("the server for {} ended early: {ended}", self.shown.display());
        Failure::new(Code::Failed, message)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        // A server that waits for its second line ends when there is none. One that has mounted got
        // both, and goes on.
        if self.stdin.take().is_some() {
            let _ = self.server.wait();
        }
    }
}

/// The mount is real once its root can be listed through the kernel. Asked from here, as a server that
/// asks itself cannot be killed.
fn check_answers(mountpoint: &Path) -> Result<(), Failure> {
    let answer = std::fs::read_dir(mountpoint).and_then(|mut root| root.next().transpose());
    answer.map(drop).map_err(|error| {
        // Nobody is told of the mount: it goes.
        if let Err(failure) = super::unmount(mountpoint, true) {
            log::warn!("cleaning up: {failure}");
        }
        let shown = mountpoint.display();
        Failure::new(Code::Failed, format!("{shown} was mounted but does not answer: {error}"))
    })
}

fn cannot_start(error: io::Error) -> Failure {
    Failure::new(Code::Failed, format!("cannot start the server: {error}"))
}

/// Starts a server for `request` and waits until its mount answers.
///
/// # Errors
/// What the server said, or that it ended without a word.
pub fn start_detached(request: &MountRequest) -> Result<Ready, Failure> {
    Starting::new(&request.source, &request.mountpoint)?.mount(request)
}

/// The other end of [`Starting`]: opens and serves what standard input says, and reports on standard
/// output. Returns when the mount is gone.
///
/// # Errors
/// Those of [`super::serve()`]; the command has been told already.
pub fn run_detached() -> Result<(), Failure> {
    inherited::leave_caller();
    let mut detached = false;
    let served = open_and_serve(&mut detached);
    match &served {
        Err(failure) if detached => log::error!("{failure}"),
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
    let opened = source.open()?;
    if tell(&Answer::Opened).is_err() {
        return Ok(());
    }
    // The command has changed its mind if there is none.
    let Some(request) = read_message::<MountRequest>()? else { return Ok(()) };
    let _group = OwnGroup::enter();
    super::serve(&request, opened, |ready, log| {
        tell(&Answer::Ready(ready))?;
        *detached = true;
        leave_terminal(log)
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
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, answer)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Lets go of the three standard streams: whoever waits for their end shall not wait for the
/// unmount. Messages go to `log` from now on.
fn leave_terminal(log: &Path) -> io::Result<()> {
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    let log = File::options().create(true).append(true).open(log)?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&log)?;
    Ok(())
}

/// A control group of the server's own, so that ending the job that mounted does not end the
/// mount. Only where version 2 control groups are writable; elsewhere the server stays where it is.
struct OwnGroup {
    /// The top of the hierarchy, and the group below it.
    entered: Option<(PathBuf, PathBuf)>,
}

impl OwnGroup {
    fn enter() -> Self {
        let top = read_mounts()
            .unwrap_or_default()
            .into_iter()
            .find(|mount| mount.fs_type == "cgroup2")
            .map(|mount| mount.mountpoint);
        let Some(top) = top else {
            return Self { entered: None };
        };
        let group = top.join(format!("thawfs-{}", std::process::id()));
        if std::fs::create_dir(&group).is_err() {
            return Self { entered: None };
        }
        if let Err(error) = move_to(&group) {
            log::debug!("staying in the caller's control group: {error}");
        }
        Self { entered: Some((top, group)) }
    }
}

impl Drop for OwnGroup {
    fn drop(&mut self) {
        if let Some((top, group)) = &self.entered {
            // A group with a process in it cannot be removed, so step out first. Where either
            // fails the group stays behind empty and harmless.
            let _ = move_to(top);
            let _ = std::fs::remove_dir(group);
        }
    }
}

/// Moves this process, all its threads included.
fn move_to(group: &Path) -> io::Result<()> {
    std::fs::write(group.join("cgroup.procs"), "0")
}
