//! What changes in a directory, from the server of the mount that it is in, or else by inotify.
//!
//! A mount's changes come over its control socket once for this process, whoever watches what in it, and are written
//! down here again for all who do.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, StatxFlags};

use super::changes::{ChangesRequest, Following, Line, Told};
use super::mounts::{MountInfo, read_mounts};
use super::state::StateDir;
use crate::failure::Failure;
use crate::files::{Feed, Feeds, Inotify, Stays};
use crate::types::FileKind;
use crate::watch::{ChangeLog, Limits, Reader, What};

/// Knows the mounts that are watched.
#[derive(Default)]
pub(super) struct MountedFeeds {
    /// By the path of the control socket.
    relays: Mutex<HashMap<PathBuf, Weak<Relay>>>,
}

/// The changes of one mount.
struct Relay {
    log: Arc<ChangeLog>,
    /// Ends what is read from the server when the relay goes.
    connection: UnixStream,
}

impl Drop for Relay {
    fn drop(&mut self) {
        // One that is closed already has ended.
        let _ = self.connection.shutdown(Shutdown::Both);
    }
}

impl Feeds for MountedFeeds {
    fn feed(&self, dir: &Path, recursive: bool) -> io::Result<Feed> {
        let Some((mount, below)) = mount_of(dir)? else { return Inotify.feed(dir, recursive) };
        let recorded = StateDir::locate().read_mount_of(&mount)?;
        let Some((server, _)) = recorded.filter(|(server, _)| server.is_alive()) else {
            // Another user's, or of another machine's state: inotify sees what is changed through the mount.
            return Inotify.feed(dir, recursive);
        };
        let (reader, relay) = self.relay(&server.control_path())?;
        let at = below.as_os_str().as_bytes().to_vec();
        let within = Some(mount.mountpoint);
        Ok(Feed { reader, at, within, stays: Stays::Followed, _source: relay })
    }
}

impl MountedFeeds {
    /// What changes in the mount whose server listens at `control`.
    fn relay(&self, control: &Path) -> io::Result<(Reader, Arc<Relay>)> {
        let mut relays = self.relays.lock();
        let known = relays.get(control).and_then(Weak::upgrade);
        if let Some(relay) = known.filter(|relay| !relay.log.is_closed()) {
            let (reader, _) = relay.log.subscribe(None)?;
            return Ok((reader, relay));
        }
        let log = Arc::new(ChangeLog::new(Limits::default(), Some(tempfile::tempfile)));
        // Before the first can come.
        let (reader, _) = log.subscribe(None)?;
        let connection = start(control, &log)?;
        let relay = Arc::new(Relay { log, connection });
        relays.retain(|_, relay| relay.strong_count() > 0);
        relays.insert(control.to_owned(), Arc::downgrade(&relay));
        Ok((reader, relay))
    }
}

/// Follows the server's changes on a thread, once that has begun.
fn start(control: &Path, log: &Arc<ChangeLog>) -> io::Result<UnixStream> {
    let failed = |failure: Failure| io::Error::other(failure.message);
    let request = ChangesRequest { below: PathBuf::new(), recursive: true, since: None };
    let mut following = Following::begin(control, request).map_err(failed)?;
    following.next().map_err(failed)?;
    let connection = following.connection()?;
    let log = Arc::downgrade(log);
    std::thread::Builder::new().name("thawfs-relay".into()).spawn(move || {
        loop {
            let told = following.next();
            let Some(log) = log.upgrade() else { return };
            match told {
                Ok(Some(line)) => relay(&line, &log),
                Ok(None) => return log.close("the mount is gone"),
                Err(failure) => return log.close(failure.message),
            }
        }
    })?;
    Ok(connection)
}

/// Writes down here what the server has told.
fn relay(line: &Line, log: &ChangeLog) {
    let (told, what) = match line {
        Line::Create(told) => (told, What::Create),
        Line::Write(told) => (told, What::Write),
        Line::Remove(told) => (told, What::Remove),
        Line::Rename(told) => (told, What::Rename { to: other(told) }),
        Line::Exchange(told) => (told, What::Exchange { with: other(told) }),
        Line::Attributes(told) => (told, What::Attributes),
        Line::Missed { .. } | Line::Reset { .. } => return log.lose(),
        // What differs, after that.
        _ => return,
    };
    let path = told.path.as_os_str().as_bytes();
    let path = if path == b"." { Vec::new() } else { path.to_vec() };
    let kind = FileKind::named(&told.kind).unwrap_or(FileKind::Regular);
    log.write(what, kind, told.ino, path);
}

fn other(told: &Told) -> Vec<u8> {
    told.to.as_deref().unwrap_or(Path::new("")).as_os_str().as_bytes().to_vec()
}

/// The mount of ours that `dir` is in, and where in its tree that is.
fn mount_of(dir: &Path) -> io::Result<Option<(MountInfo, PathBuf)>> {
    let stat = rustix::fs::statx(CWD, dir, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID)?;
    let mount = read_mounts()?.into_iter().find(|mount| mount.id == stat.stx_mnt_id);
    Ok(mount.filter(MountInfo::is_ours).map(|mount| {
        // Of a bind mount, that is not the root of the tree.
        let root = mount.root.strip_prefix("/").unwrap_or(&mount.root);
        let inside = dir.strip_prefix(&mount.mountpoint).unwrap_or(Path::new(""));
        let below = root.join(inside).components().collect();
        (mount, below)
    }))
}
