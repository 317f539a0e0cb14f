//! A small S3 server over a directory, for tests and benchmarks: `ROOT/BUCKET/KEY` is an object.
//!
//! It checks signatures, keeps R2's rules for multipart uploads, adds delay and bandwidth limits,
//! fails on demand, and remembers every request.

#![allow(dead_code, unreachable_pub, reason = "every crate that includes this uses a part of it")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test server fails by a panic")]

mod bucket;
mod wire;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;

pub(crate) use wire::{Fault, Seen};

/// Key pair of test servers.
pub(crate) const ACCESS_KEY: &str = "thawfs-test";
/// Its secret half.
pub(crate) const SECRET_KEY: &str = "thawfs-test-secret";

/// How a server behaves.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Directory of buckets.
    pub(crate) root: PathBuf,
    /// Where to listen; port 0 chooses one.
    pub(crate) addr: SocketAddr,
    /// Access key and secret; `None` lets everybody in.
    pub(crate) keys: Option<(String, String)>,
    /// Added before the first byte of every answer.
    pub(crate) latency: Duration,
    /// Bytes per second of one connection's answers.
    pub(crate) connection_rate: Option<u64>,
    /// Bytes per second of all answers together.
    pub(crate) total_rate: Option<u64>,
    /// Smallest part of an upload but the last, in bytes.
    pub(crate) min_part: u64,
    /// Most keys in a page of a listing.
    pub(crate) page: usize,
    /// What versions are told apart by.
    pub(crate) tags: Tags,
    /// Listings start at their first page whatever page is asked for.
    pub(crate) forgets_pages: bool,
    /// Parts of uploads are copied of objects that are there.
    pub(crate) copies: bool,
}

/// The ETags of objects that are read.
#[derive(Clone, Debug)]
pub(crate) enum Tags {
    /// Another one for every version of every object.
    Strong,
    /// Weak ones, as some proxies make them.
    Weak,
    /// None at all.
    Absent,
    /// The same strong one for everything.
    Same,
}

impl Config {
    /// For the buckets in `root`, on a free port of the loopback interface.
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            addr: (Ipv4Addr::LOCALHOST, 0).into(),
            keys: Some((ACCESS_KEY.into(), SECRET_KEY.into())),
            latency: Duration::ZERO,
            connection_rate: None,
            total_rate: None,
            min_part: 5 << 20,
            page: 1000,
            tags: Tags::Strong,
            forgets_pages: false,
            copies: true,
        }
    }
}

/// A running server. Dropping it stops it and closes its connections.
pub(crate) struct S3Server {
    addr: SocketAddr,
    wire: Arc<wire::Wire>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl S3Server {
    /// Starts a server on a thread and an async runtime of its own.
    pub(crate) fn start(config: Config) -> io::Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        // Bound outside of the runtime, so that a test inside of one can start a server.
        let listener = std::net::TcpListener::bind(config.addr)?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let wire = Arc::new(wire::Wire::new(config));
        let (stop, stopped) = oneshot::channel();
        let serving = wire.clone();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("the socket does not block");
                tokio::select! {
                    () = wire::serve(listener, serving) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_timeout(Duration::from_secs(1));
        });
        Ok(Self { addr, wire, stop: Some(stop), thread: Some(thread) })
    }

    /// Base URL, without a slash at its end.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Every request so far.
    pub(crate) fn log(&self) -> Vec<Seen> {
        self.wire.log()
    }

    /// Forgets the requests so far.
    pub(crate) fn clear_log(&self) {
        self.wire.clear_log();
    }

    /// Object GETs so far.
    pub(crate) fn gets(&self) -> usize {
        self.log().iter().filter(|seen| seen.is_object_get()).count()
    }

    /// Bytes of bodies of object GETs so far.
    pub(crate) fn get_bytes(&self) -> u64 {
        self.log().iter().filter(|seen| seen.is_object_get()).map(|seen| seen.sent).sum()
    }

    /// Makes the next `times` requests fail like this; faults given before come first.
    pub(crate) fn inject(&self, fault: Fault, times: usize) {
        self.wire.inject(fault, times);
    }

    /// Makes all requests of one sort fail like this from now on, until [`S3Server::heal`].
    pub(crate) fn inject_always(&self, is_meant: fn(&Seen) -> bool, fault: Fault) {
        self.wire.inject_always(is_meant, fault);
    }

    /// Makes all answers wait from now on, until [`S3Server::release`].
    pub(crate) fn hold(&self) {
        self.wire.hold(true);
    }

    /// Lets the answers go that wait.
    pub(crate) fn release(&self) {
        self.wire.hold(false);
    }

    /// How many answers wait to be released.
    pub(crate) fn held(&self) -> usize {
        self.wire.held()
    }

    /// The most requests that have waited for their answers at the same time.
    pub(crate) fn most_at_once(&self) -> usize {
        self.wire.most_at_once()
    }

    /// Flips one bit of byte `at` of whatever object is read, in the next `times` answers that have it.
    /// Flips given before come first.
    pub(crate) fn flip(&self, at: u64, bit: u8, times: usize) {
        self.wire.flip(at, bit, times);
    }

    /// Forgets faults that have not happened yet.
    pub(crate) fn heal(&self) {
        self.wire.heal();
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // A server that died already need not be told.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server's thread does not panic");
        }
    }
}
