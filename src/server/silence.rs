//! Why a server has not answered: it was killed, its mount has ended, it is stuck, or of a version that knows no such
//! question.

use std::io;
use std::path::Path;

use super::control::{PATIENCE, fetch_report};
use super::mount_dir::MountDir;
use crate::failure::{Code, Failure};

/// What to say of the server whose socket lies at `control`, which has failed with `error` rather than answer.
pub(super) fn silent(control: &Path, error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::InvalidInput {
        return Failure::new(Code::Usage, error.to_string());
    }
    ended(&server_at(control), error).unwrap_or_else(|| {
        Failure::new(Code::Failed, format!("the server does not answer: {error}"))
            .hint("thawfs status shows what it does")
    })
}

/// What to say of a server that has closed a connection without a word: that it is `old`, if it lives. Only its answer
/// says that it does.
pub(super) fn wordless(control: &Path, old: Failure) -> Failure {
    match fetch_report(control) {
        Ok(_) => old,
        Err(error) => silent(control, &error),
    }
}

/// That the server is no more, if that is why it has failed with `error`.
pub(super) fn ended(server: &MountDir, error: &io::Error) -> Option<Failure> {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, NotConnected, NotFound,
        UnexpectedEof,
    };
    let is_closed = matches!(
        error.kind(),
        BrokenPipe
            | ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | NotConnected
            | NotFound
            | UnexpectedEof
    );
    // Its sockets are closed before its lock is let go of.
    let has_ended = || server.watch().is_none_or(|watch| watch.wait(PATIENCE));
    if !is_closed || !has_ended() {
        return None;
    }
    Some(match server.read_record() {
        Some(record) => killed(&record.mountpoint),
        // Who ends as it should takes that away first.
        None => Failure::new(Code::NotMounted, "the mount has ended meanwhile"),
    })
}

/// Of a server that has left its mount behind.
pub(super) fn killed(mountpoint: &Path) -> Failure {
    let shown = mountpoint.display();
    let hint = format!("its upper has what was changed; thawfs unmount --dead {shown} clears it");
    Failure::new(Code::Failed, format!("the server of {shown} was killed")).hint(hint)
}

fn server_at(control: &Path) -> MountDir {
    MountDir { path: control.parent().unwrap_or(control).to_owned() }
}
