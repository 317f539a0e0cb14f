//! Which mount of ours a path is in, and since when, for commands that ask its server.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, StatxFlags};

use crate::failure::{Code, Failure};
use crate::server::fetch_report;
use crate::server::mounts::{MountInfo, read_mounts};
use crate::server::state::{MountDir, StateDir};
use crate::watch::Cursor;

/// How far ahead of this machine's clock a cursor may be.
const CLOCK_SECONDS: u64 = 2;

/// Checks that a cursor is of a moment that has been.
pub(super) fn check_cursor(cursor: Option<&Cursor>) -> Result<(), Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let is_ahead = |cursor: &Cursor| {
        u64::try_from(cursor.at.seconds).is_ok_and(|seconds| seconds > now + CLOCK_SECONDS)
    };
    match cursor.is_some_and(is_ahead) {
        false => Ok(()),
        true => Err(Failure::new(Code::Usage, "the cursor is of a moment that is yet to come")
            .hint("take one that was printed on this machine")),
    }
}

/// The mount of ours that `dir` is in, its server, and where in it that is.
pub(super) fn find(dir: &Path) -> Result<(MountInfo, MountDir, PathBuf), Failure> {
    let failed = |error: io::Error| {
        let code = match error.kind() {
            io::ErrorKind::NotFound => Code::NotFound,
            _ => Code::Failed,
        };
        Failure { code, ..Failure::io("open", dir, &error) }
    };
    let mounts = read_mounts().map_err(failed)?;
    // A server that does not answer is asked before its mount, where nobody would say so.
    let named = std::path::absolute(dir).map_err(failed)?;
    let around = mounts.iter().filter(|mount| named.starts_with(&mount.mountpoint));
    let innermost = around.max_by_key(|mount| mount.mountpoint.components().count());
    if let Some(mount) = innermost.filter(|mount| mount.is_ours()) {
        server_of(mount)?;
    }
    let path = dir.canonicalize().map_err(failed)?;
    let stat = rustix::fs::statx(CWD, &path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID)
        .map_err(|errno| failed(errno.into()))?;
    let mount = mounts.into_iter().find(|mount| mount.id == stat.stx_mnt_id);
    let Some(mount) = mount.filter(MountInfo::is_ours) else {
        let message = format!("{} is in no mount of thawfs", dir.display());
        return Err(
            Failure::new(Code::NotMounted, message).hint("thawfs status shows what is mounted")
        );
    };
    let server = server_of(&mount)?;
    let inside = path.strip_prefix(&mount.mountpoint).unwrap_or(Path::new(""));
    // Of a bind mount, that is not the root of the tree.
    let root = mount.root.strip_prefix("/").unwrap_or(&mount.root);
    // Without a slash at its end, where nothing is joined.
    let below = root.join(inside).components().collect();
    Ok((mount, server, below))
}

/// The server of `mount`, which answers.
fn server_of(mount: &MountInfo) -> Result<MountDir, Failure> {
    let (shown, state) = (mount.mountpoint.display(), StateDir::locate());
    let recorded =
        state.read_mount_of(mount).map_err(|error| Failure::io("read", state.path(), &error))?;
    let Some((server, _)) = recorded else {
        let place = state.path().display();
        let message = format!("the server of {shown} is not on record in {place}");
        return Err(Failure::new(Code::NotMounted, message)
            .hint("ask as the user who mounted it, with the same THAWFS_STATE_DIR"));
    };
    if !server.is_alive() {
        let hint =
            format!("its upper has what was changed; thawfs unmount --dead {shown} clears it");
        let message = format!("the server of {shown} was killed");
        return Err(Failure::new(Code::Failed, message).hint(hint));
    }
    fetch_report(&server.control_path()).map_err(|error| {
        Failure::new(Code::Failed, format!("the server of {shown} does not answer: {error}"))
            .hint("thawfs status shows which it is; its log may say why")
    })?;
    Ok(server)
}
