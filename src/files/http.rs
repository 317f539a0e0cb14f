//! Connections, and one request after the other on each.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{Semaphore, mpsc};

use super::body::Body;

/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of a connection that wait to be read or sent.
const BUFFER: usize = 64 << 10;

/// Where connections come from.
pub(crate) enum Connections {
    /// Who connects to an address.
    Listener(TcpListener),
    /// Who connected to somebody else, that hands them over. They end with it.
    Handed(mpsc::Receiver<std::os::unix::net::UnixStream>),
}

/// A connection.
enum Connection {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Connections {
    /// The next one; `None` if there will be none.
    async fn next(&mut self) -> Option<Connection> {
        loop {
            let accepted = match self {
                Self::Handed(handed) => {
                    let stream = handed.recv().await?;
                    let ready = stream.set_nonblocking(true);
                    ready.and_then(|()| UnixStream::from_std(stream)).map(Connection::Unix)
                }
                // Events are small, and wait for nothing.
                Self::Listener(listener) => listener
                    .accept()
                    .await
                    .and_then(|(stream, _)| stream.set_nodelay(true).map(|()| stream))
                    .map(Connection::Tcp),
            };
            match accepted {
                Ok(connection) => return Some(connection),
                Err(error) => {
                    tracing::warn!("a connection was not accepted: {error}");
                    // Out of descriptors, it would be tried again and again.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Answers what comes with `answer`, on as many connections at a time as there are `places`, until there will be no
/// more of them.
pub(crate) async fn serve<F>(
    mut connections: Connections,
    places: Arc<Semaphore>,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    // It is never closed.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await
        && let Some(connection) = connections.next().await
    {
        let answer = answer.clone();
        tokio::spawn(async move {
            let _place = place;
            match connection {
                Connection::Tcp(stream) => serve_one(stream, answer).await,
                Connection::Unix(stream) => serve_one(stream, answer).await,
            }
        });
    }
}

async fn serve_one<F>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    answer: impl Fn(Request<Incoming>) -> F,
) where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let service = service_fn(move |request| {
        let answered = answer(request);
        async move { Ok::<_, Infallible>(answered.await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        // A client that goes away is its own affair.
        tracing::debug!("a connection ended: {error}");
    }
}
