//! Which program a server is started from.
//!
//! A host of this library is a program of its own. Started with arguments that it does not know it would do
//! what it always does, which may be to restore a backup, and so start itself over and over. So a program is
//! started as a server only where it is another one, or has shown that its `main` goes through
//! [`serve_if_asked`](super::serve_if_asked) (or the command line, [`crate::cli`]).

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::{Code, Failure};

/// The hidden subcommand that a server is started with.
pub(crate) const SERVE_COMMAND: &str = "serve";

/// The one that the process is started with which serves the files of a mount over its control socket.
pub(crate) const FILES_COMMAND: &str = "serve-mount-files";

/// The name that a server has in process lists, by which it is told what it is started for, too.
const NAME: &str = "thawfs";

/// This program, whatever becomes of its file.
const THIS: &str = "/proc/self/exe";

/// Whether this process went through where a server would have been told apart.
static PASSED_THROUGH: AtomicBool = AtomicBool::new(false);

/// A program that serves mounts when it is started with the command `serve`.
#[derive(Clone, Debug)]
pub struct ServerProgram {
    path: PathBuf,
}

impl ServerProgram {
    /// The `thawfs` program at `path`, or another one that begins with [`serve_if_asked`](super::serve_if_asked).
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// This very program.
    ///
    /// # Errors
    /// [`Code::Usage`] unless it has called [`serve_if_asked`](super::serve_if_asked).
    pub fn this() -> Result<Self, Failure> {
        let this = Self::at(THIS);
        this.check()?;
        Ok(this)
    }

    /// Its command line as a server, but for what is shown.
    pub(super) fn command(&self) -> Result<Command, Failure> {
        self.check()?;
        let mut command = Command::new(&self.path);
        command.arg0(NAME).arg(SERVE_COMMAND);
        Ok(command)
    }

    /// Its command line as the process that serves the files of a mount, but for the mountpoint.
    pub(super) fn files_command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.arg0(NAME).arg(FILES_COMMAND);
        command
    }

    fn check(&self) -> Result<(), Failure> {
        if PASSED_THROUGH.load(Ordering::Relaxed) || !is_same(&self.path, Path::new(THIS)) {
            return Ok(());
        }
        Err(Failure::new(Code::Usage, "this program is not one that serves mounts")
            .hint("name the thawfs program, or call thawfs::server::serve_if_asked first in main"))
    }
}

/// Whether two paths are one file. Unknown paths are not: starting them fails.
fn is_same(left: &Path, right: &Path) -> bool {
    let number = |path: &Path| path.metadata().map(|meta| (meta.dev(), meta.ino()));
    matches!((number(left), number(right)), (Ok(left), Ok(right)) if left == right)
}

/// What this process was started for.
pub(super) enum Role {
    /// To serve a mount.
    Server,
    /// To serve the files of the mount at a mountpoint.
    Files(PathBuf),
}

/// What this process was started for; if it was for neither, what it does next is its own.
pub(super) fn role() -> Option<Role> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let role = match arguments.as_slice() {
        [name, command, shown] if *name == NAME => match command.to_str() {
            Some(SERVE_COMMAND) => Some(Role::Server),
            Some(FILES_COMMAND) => Some(Role::Files(shown.into())),
            _ => None,
        },
        _ => None,
    };
    PASSED_THROUGH.store(true, Ordering::Relaxed);
    role
}

/// Told by the command line: `arguments` would have been a server's, had this process been started as one,
/// provided that they are the process's own.
pub(crate) fn passes_through(arguments: &[OsString]) {
    if std::env::args_os().eq(arguments.iter().cloned()) {
        PASSED_THROUGH.store(true, Ordering::Relaxed);
    }
}
