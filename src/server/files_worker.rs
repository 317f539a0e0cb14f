//! Files of a mount over its control socket, for whoever speaks HTTP there.
//!
//! The server must not use its own mount: killed meanwhile, a thread that waits for the mount keeps the device open, and
//! both wait for ever. So another process answers, which is started when it is first needed, gets each connection
//! whole, and ends when nobody has needed it for a while, or when the server does.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::sync::{Semaphore, mpsc};

use super::inherited;
use super::mounted_feeds::MountedFeeds;
use super::program::ServerProgram;
use crate::failure::{Code, Failure};
use crate::files::{Connections, Options, Service, serve};

/// How long a worker waits for more to do.
const IDLE: Duration = Duration::from_secs(60);

/// Most connections at a time.
const PLACES: usize = 1280;

/// The worker of one mount, which may be running.
pub(super) struct FilesWorker {
    mountpoint: PathBuf,
    /// The other end is its standard input.
    link: Mutex<Option<UnixStream>>,
}

impl FilesWorker {
    pub(super) fn new(mountpoint: PathBuf) -> Self {
        Self { mountpoint, link: Mutex::new(None) }
    }

    /// Has the worker answer what comes over `connection`.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub(super) fn hand_over(&self, connection: &UnixStream) -> io::Result<()> {
        connection.set_read_timeout(None)?;
        connection.set_write_timeout(None)?;
        let mut link = self.link.lock();
        if let Some(link) = &*link
            && send(link, connection).is_ok()
        {
            return Ok(());
        }
        let fresh = self.start()?;
        send(&fresh, connection)?;
        *link = Some(fresh);
        Ok(())
    }

    fn start(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let program = ServerProgram::this().map_err(|failure| io::Error::other(failure.message))?;
        let mut worker = program.files_command();
        inherited::leave_directory(&mut worker);
        inherited::leave_secrets(&mut worker);
        worker.arg(&self.mountpoint).stdin(OwnedFd::from(theirs));
        let mut worker: Child = worker.stdout(Stdio::null()).spawn()?;
        std::thread::Builder::new().name("thawfs-worker".into()).spawn(move || {
            if let Err(error) = worker.wait() {
                tracing::debug!("the process that serves files cannot be waited for: {error}");
            }
        })?;
        Ok(ours)
    }
}

fn send(link: &UnixStream, connection: &UnixStream) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [connection.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    rustix::net::sendmsg(link, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The next connection; `None` where there will be none.
fn receive(link: &UnixStream) -> Result<Option<UnixStream>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    rustix::io::retry_on_intr(|| rustix::net::recvmsg(link, &mut parts, &mut ancillary, flags))?;
    let connection = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(connection.map(UnixStream::from))
}

/// A worker's life: answers what comes over the connections that standard input gives, for the mount at `mountpoint`.
///
/// # Errors
/// Where it cannot begin.
pub(crate) fn run_files_worker(mountpoint: &Path) -> Result<(), Failure> {
    inherited::leave_caller();
    let failed = |error: io::Error| {
        Failure::new(Code::Failed, format!("files of the mount cannot be served: {error}"))
    };
    let link = rustix::stdio::stdin().try_clone_to_owned().map_err(failed)?;
    let link = UnixStream::from(link);
    link.set_read_timeout(Some(IDLE)).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed)?;
    let options = Options {
        root: mountpoint.to_owned(),
        is_home: true,
        token: None,
        watchers: Options::WATCHERS as usize,
        // It is connected to by who may.
        is_on_loopback: false,
    };
    let service = Service::new(options, Arc::<MountedFeeds>::default());
    let places = Arc::new(Semaphore::new(PLACES));
    let (hand, handed) = mpsc::channel(1);
    let ending = Arc::new(AtomicBool::new(false));
    let receiving = {
        let (service, places) = (Arc::clone(&service), Arc::clone(&places));
        let ending = Arc::clone(&ending);
        let is_idle = move || service.has_no_watchers() && places.available_permits() + 1 >= PLACES;
        std::thread::Builder::new()
            .name("thawfs-receive".into())
            .spawn(move || receive_all(&link, &hand, is_idle, &ending))
    };
    receiving.map_err(failed)?;
    runtime.block_on(async {
        let answer = move |request| Arc::clone(&service).answer(request);
        serve(Connections::Handed(handed), Arc::clone(&places), answer).await;
        // With the server goes the mount, and all is over. Else what came at the last moment is answered.
        if ending.load(Ordering::Relaxed) {
            drop(places.acquire_many(PLACES as u32).await);
        }
    });
    runtime.shutdown_background();
    Ok(())
}

/// Hands on connections until the server is gone, or has sent none for a while and nobody is served.
fn receive_all(
    link: &UnixStream,
    hand: &mpsc::Sender<UnixStream>,
    is_idle: impl Fn() -> bool,
    ending: &AtomicBool,
) {
    loop {
        match receive(link) {
            Ok(Some(connection)) => {
                if hand.blocking_send(connection).is_err() {
                    return;
                }
            }
            Err(Errno::AGAIN) if !ending.load(Ordering::Relaxed) && is_idle() => {
                // From here on the server starts another one; what it has sent already is answered.
                ending.store(link.shutdown(Shutdown::Read).is_ok(), Ordering::Relaxed);
            }
            Err(Errno::AGAIN) => {}
            Ok(None) | Err(_) => return,
        }
    }
}
