//! Files of this machine over HTTP, until a signal comes.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::mounted_feeds::MountedFeeds;
use super::serve::raise_file_limit;
use crate::files::{Connections, Options, Service, serve};

/// Connections beside those of watchers.
const OTHERS: usize = 256;

/// What `thawfs serve-files` is asked for.
pub(crate) struct FileService {
    /// Where to listen; port 0 is any that is free.
    pub(crate) address: SocketAddr,
    /// The directory that no path leads out of, without symlinks.
    pub(crate) root: PathBuf,
    /// What every request has to bring.
    pub(crate) token: Option<Vec<u8>>,
    /// How many watchers there may be at a time.
    pub(crate) watchers: usize,
}

/// Serves until SIGINT, SIGTERM, SIGHUP or SIGQUIT. `ready` is called once connections are taken, with the address.
///
/// # Errors
/// Where the address cannot be listened on, and those of `ready`.
pub(crate) fn serve_files<E: From<io::Error>>(
    asked: FileService,
    ready: impl FnOnce(SocketAddr) -> Result<(), E>,
) -> Result<(), E> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    let FileService { address, root, token, watchers } = asked;
    raise_file_limit();
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT])?;
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let is_on_loopback = address.ip().is_loopback();
    let options = Options { root, is_home: false, token, watchers, is_on_loopback };
    let service = Service::new(options, Arc::<MountedFeeds>::default());
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    std::thread::Builder::new().name("thawfs-signals".into()).spawn(move || {
        signals.forever().next();
        drop(ended);
    })?;
    ready(listener.local_addr()?)?;
    runtime.block_on(async {
        let listener = Connections::Listener(tokio::net::TcpListener::from_std(listener)?);
        let places = Arc::new(Semaphore::new(watchers + OTHERS));
        let answer = move |request| Arc::clone(&service).answer(request);
        tokio::select! {
            () = serve(listener, places, answer) => {}
            // Dropped: there was one.
            _ = end => {}
        }
        Ok::<(), io::Error>(())
    })?;
    // A file system that does not answer keeps nobody.
    runtime.shutdown_background();
    Ok(())
}
