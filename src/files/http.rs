//! Connections, and one request after the other on each.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::body::Body;

/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of a connection that wait to be read or sent.
const BUFFER: usize = 64 << 10;

/// Answers what comes to `listener` with `answer`, on `connections` at a time, for ever.
pub(crate) async fn serve<F>(
    listener: TcpListener,
    connections: usize,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(connections));
    loop {
        // It is never closed.
        let place = Arc::clone(&places).acquire_owned().await;
        let accepted = listener.accept().await;
        // Events are small, and wait for nothing.
        let stream =
            match accepted.and_then(|(stream, _)| stream.set_nodelay(true).map(|()| stream)) {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!("a connection was not accepted: {error}");
                    // Out of descriptors, it would be tried again and again.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
        let answer = answer.clone();
        tokio::spawn(async move {
            let _place = place;
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
        });
    }
}
