//! Starting a server that outlives the command, and telling the command when it is ready.
//!
//! The command runs its own program again with the hidden `serve` subcommand. What to mount goes
//! through the server's standard input, so that a presigned URL shows in no process list; the
//! answer, one line of JSON, comes back through its standard output.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::heap;
use super::mounts::read_mounts;
use super::{MountRequest, Ready};
use crate::failure::{Code, Failure};

/// The hidden subcommand that [`start_detached`] starts.
pub const SERVE_COMMAND: &str = "serve";

/// What a server says once: that its mount answers, or why it gave up.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Ready(Ready),
    Failed(Failure),
}

/// Starts a server for `request` and waits until its mount answers.
///
/// # Errors
/// What the server said, or that it ended without a word.
pub fn start_detached(request: &MountRequest) -> Result<Ready, Failure> {
    let failed =
        |error: io::Error| Failure::new(Code::Failed, format!("cannot start the server: {error}"));
    let mut server = Command::new("/proc/self/exe");
    heap::limit(&mut server);
    let mut server = server
        .arg0("thawfs")
        .arg(SERVE_COMMAND)
        .arg(&request.mountpoint)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = server.stdin.take() {
        let text = serde_json::to_vec(request).map_err(|error| failed(error.into()))?;
        // A server that died already says why on its standard error, or below.
        let _ = stdin.write_all(&text);
    }
    let mut line = String::new();
    if let Some(stdout) = server.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).map_err(failed)?;
    }
    match serde_json::from_str(&line) {
        Ok(Answer::Ready(ready)) => Ok(ready),
        Ok(Answer::Failed(failure)) => {
            // It has cleaned up by now or is about to; what comes next may rely on it.
            let _ = server.wait();
            Err(failure)
        }
        Err(_) => {
            let ended = server.wait().map_or_else(|error| error.to_string(), |s| s.to_string());
            Err(Failure::new(
                Code::Failed,
                format!("the server for {} ended early: {ended}", request.mountpoint.display()),
            ))
        }
    }
}

/// The other end of [`start_detached`]: reads the request from standard input, serves it, and
/// reports on standard output. Returns when the mount is gone.
///
/// # Errors
/// Those of [`super::serve()`]; the command has been told already.
pub fn run_detached() -> Result<(), Failure> {
    // A session of its own: no signal of the terminal, or of the job that mounted, reaches it. It
    // fails for a process that leads one already, which is as good.
    let _ = rustix::process::setsid();
    let request: MountRequest = serde_json::from_reader(io::stdin().lock()).map_err(|error| {
        Failure::new(Code::Usage, format!("no mount request on standard input: {error}"))
    })?;
    let group = OwnGroup::enter();
    let mut detached = false;
    let served = super::serve(&request, |ready, log| {
        tell(&Answer::Ready(ready))?;
        detached = true;
        let _ = std::env::set_current_dir("/");
        leave_terminal(log)
    });
    match &served {
        Err(failure) if detached => log::error!("{failure}"),
        // A command that has gone away needs no answer.
        Err(failure) => drop(tell(&Answer::Failed(failure.clone()))),
        Ok(()) => {}
    }
    drop(group);
    served
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
