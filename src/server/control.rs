//! The server's socket: one connection, one report as JSON, closed.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::report::Report;

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(2);

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

/// Answers every connection to the socket at `path` with what `report` says then, on a thread that
/// lasts as long as the process.
///
/// # Errors
/// When the socket cannot be made.
pub(super) fn listen(path: &Path, report: impl Fn() -> Report + Send + 'static) -> io::Result<()> {
    let (_directory, short) = short_path(path)?;
    let listener = UnixListener::bind(&short)?;
    std::fs::set_permissions(short, PermissionsExt::from_mode(0o600))?;
    std::thread::Builder::new().name("thawfs-control".into()).spawn(move || {
        for connection in listener.incoming() {
            // A client that went away is its own affair.
            let answered = connection.and_then(|connection| answer(connection, &report()));
            if let Err(error) = answered {
                tracing::debug!("a status request was not answered: {error}");
            }
        }
    })?;
    Ok(())
}

fn answer(mut connection: UnixStream, report: &Report) -> io::Result<()> {
    connection.set_write_timeout(Some(PATIENCE))?;
    connection.write_all(&serde_json::to_vec(report)?)
}

/// Asks the server whose socket lies at `path` for its report.
///
/// # Errors
/// When no server answers there in time.
pub fn fetch_report(path: &Path) -> io::Result<Report> {
    let (_directory, short) = short_path(path)?;
    let mut connection = UnixStream::connect(short)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let mut text = Vec::new();
    connection.read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}
