//! The HTTP side: connections, the log of requests, delays and faults.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::Config;
use super::bucket::Buckets;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A paced body goes out in slices of this many bytes: a slow connection trickles, it does not
/// pause and then deliver a quarter of a megabyte.
const SLICE: usize = 16 << 10;

type Body = UnsyncBoxBody<Bytes, BoxError>;
type FrameStream = Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>>;

/// What can be wrong with an answer.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The connection breaks after this many bytes of the body.
    Truncate(usize),
    /// Nothing comes after this many bytes of the body, and the connection stays open.
    Stall(usize),
    /// Nothing comes at all.
    Silence,
    /// This status, and an S3 error with this code.
    Refuse(u16, &'static str),
    /// Status 503 with this `Retry-After`.
    HoldOff(&'static str),
    /// Status 302 with this `Location`.
    Redirect(String),
    /// Status 200 and no Content-Range, as from a server that knows no ranges.
    IgnoreRange,
    /// Status 200 and this body, whatever was asked.
    Answer(String),
    /// The answer comes this much later.
    Delay(Duration),
}

/// One request as the server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// HTTP method.
    pub(crate) method: Method,
    /// Path of its URL.
    pub(crate) path: String,
    /// Query of its URL.
    pub(crate) query: String,
    /// `Range` header.
    pub(crate) range: Option<String>,
    /// `If-Match` header.
    pub(crate) if_match: Option<String>,
    /// `Authorization`, `Expect` and so on: all headers.
    pub(crate) headers: http::HeaderMap,
    /// Status of the answer.
    pub(crate) status: u16,
    /// Bytes of the answer's body that were given to the connection.
    pub(crate) sent: u64,
}

impl Seen {
    /// Bytes of its body.
    pub(crate) fn received(&self) -> u64 {
        let length = self.headers.get(http::header::CONTENT_LENGTH);
        length.and_then(|length| length.to_str().ok()?.parse().ok()).unwrap_or(0)
    }

    /// Whether this asked for the bytes of an object.
    pub(crate) fn is_object_get(&self) -> bool {
        self.method == Method::GET
            && !self.query.contains("list-type")
            && !self.query.contains("uploads")
    }

    /// First byte and length of a range that was asked as `bytes=a-b`.
    pub(crate) fn span(&self) -> Option<(u64, u64)> {
        let (first, last) = self.range.as_deref()?.strip_prefix("bytes=")?.split_once('-')?;
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        Some((first, last - first + 1))
    }
}

/// One bit of one byte of an object, that flips so many times on its way.
#[derive(Clone, Copy)]
struct Flip {
    at: u64,
    bit: u8,
    times: usize,
}

/// Which requests are meant.
type Sort = fn(&Seen) -> bool;

struct Entry {
    seen: Seen,
    sent: Arc<AtomicU64>,
}

/// State shared by all connections.
pub(super) struct Wire {
    config: Config,
    service: S3Service,
    log: Mutex<Vec<Entry>>,
    faults: Mutex<VecDeque<(Fault, usize)>>,
    flips: Mutex<VecDeque<Flip>>,
    /// What requests of one sort meet, whenever.
    always: Mutex<Option<(Sort, Fault)>>,
    total: Option<Pacer>,
    /// Whether answers wait until they are released, and how many do.
    holding: AtomicBool,
    held: AtomicUsize,
    /// Requests without an answer so far, and the most there were at a time.
    unanswered: AtomicUsize,
    most: AtomicUsize,
}

/// Counts one more until it is dropped, with its request or before.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Relaxed);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Wire {
    pub(super) fn new(config: Config) -> Self {
        let mut builder = S3ServiceBuilder::new(Buckets::new(&config));
        if let Some((access, secret)) = &config.keys {
            builder.set_auth(SimpleAuth::from_single(access.clone(), secret.clone()));
        }
        let total = config.total_rate.map(Pacer::new);
        let service = builder.build();
        let (log, faults, flips, always) = Default::default();
        let (holding, held, unanswered, most) = Default::default();
        Self { config, service, log, faults, flips, always, total, holding, held, unanswered, most }
    }

    pub(super) fn hold(&self, holding: bool) {
        self.holding.store(holding, Relaxed);
    }

    pub(super) fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    pub(super) fn most_at_once(&self) -> usize {
        self.most.load(Relaxed)
    }

    async fn wait_until_released(&self) {
        let _counted = Counted::new(&self.held);
        while self.holding.load(Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) fn log(&self) -> Vec<Seen> {
        let with_sent = |entry: &Entry| {
            let sent = entry.sent.load(Relaxed);
            Seen { sent, ..entry.seen.clone() }
        };
        self.log.lock().iter().map(with_sent).collect()
    }

    pub(super) fn clear_log(&self) {
        self.log.lock().clear();
    }

    pub(super) fn inject(&self, fault: Fault, times: usize) {
        self.faults.lock().push_back((fault, times));
    }

    pub(super) fn inject_always(&self, is_meant: Sort, fault: Fault) {
        *self.always.lock() = Some((is_meant, fault));
    }

    pub(super) fn flip(&self, at: u64, bit: u8, times: usize) {
        self.flips.lock().push_back(Flip { at, bit, times });
    }

    pub(super) fn heal(&self) {
        self.faults.lock().clear();
        *self.always.lock() = None;
        self.flips.lock().clear();
    }

    /// The flip that is due in an answer, and where in its body: one that says which bytes it has.
    fn next_flip(&self, headers: &http::HeaderMap) -> Option<(u64, u8)> {
        let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
        let (first, last) = range.split_once('/')?.0.split_once('-')?;
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        let mut flips = self.flips.lock();
        let flip = flips.iter_mut().find(|flip| (first..=last).contains(&flip.at))?;
        flip.times -= 1;
        let found = (flip.at - first, flip.bit);
        flips.retain(|flip| flip.times > 0);
        Some(found)
    }

    fn next_fault(&self) -> Option<Fault> {
        let mut faults = self.faults.lock();
        let (fault, times) = faults.front_mut()?;
        let fault = fault.clone();
        *times -= 1;
        if *times == 0 {
            faults.pop_front();
        }
        Some(fault)
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        connection: Option<Arc<Pacer>>,
    ) -> Result<Response<Body>, BoxError> {
        let header = |name: header::HeaderName| {
            request.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        let mut seen = Seen {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            range: header(header::RANGE),
            if_match: header(header::IF_MATCH),
            headers: request.headers().clone(),
            status: 0,
            sent: 0,
        };
        let always = self.always.lock().clone().filter(|(is_meant, _)| is_meant(&seen));
        let fault = always.map(|(_, fault)| fault).or_else(|| self.next_fault());
        let sent = Arc::new(AtomicU64::new(0));
        // Entered before the answer is known, so that the log has the order of arrival.
        let position = {
            let mut log = self.log.lock();
            log.push(Entry { seen: seen.clone(), sent: sent.clone() });
            log.len() - 1
        };
        let _counted = Counted::new(&self.unanswered);
        self.most.fetch_max(self.unanswered.load(Relaxed), Relaxed);
        if self.holding.load(Relaxed) {
            self.wait_until_released().await;
        }
        if !self.config.latency.is_zero() {
            tokio::time::sleep(self.config.latency).await;
        }
        match fault {
            Some(Fault::Delay(delay)) => tokio::time::sleep(delay).await,
            Some(Fault::Silence) => std::future::pending().await,
            _ => {}
        }
        let refusal = match &fault {
            Some(Fault::Refuse(status, code)) => Some((*status, error(code), None)),
            Some(Fault::HoldOff(time)) => {
                let time = HeaderValue::from_str(time)?;
                Some((503, error("SlowDown"), Some((header::RETRY_AFTER, time))))
            }
            Some(Fault::Redirect(to)) => {
                let to = HeaderValue::from_str(to)?;
                Some((302, error("Found"), Some((header::LOCATION, to))))
            }
            Some(Fault::Answer(body)) => Some((200, body.clone(), None)),
            _ => None,
        };
        let (parts, body) = if let Some((status, text, more)) = refusal {
            let length = HeaderValue::from(text.len());
            let body: FrameStream =
                Box::pin(futures::stream::once(async { Ok(Bytes::from(text)) }));
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::from_u16(status)?;
            response.headers_mut().insert(header::CONTENT_LENGTH, length);
            response.headers_mut().extend(more);
            (response.into_parts().0, body)
        } else {
            let service = self.service.clone();
            let response = hyper::service::Service::call(&service, request).await?;
            let (mut parts, body) = response.into_parts();
            if matches!(fault, Some(Fault::IgnoreRange)) {
                parts.status = StatusCode::OK;
                parts.headers.remove(header::CONTENT_RANGE);
            }
            let body: FrameStream = Box::pin(body.into_data_stream());
            (parts, body)
        };
        seen.status = parts.status.as_u16();
        if let Some(entry) = self.log.lock().get_mut(position) {
            entry.seen.status = seen.status;
        }
        let wire = self.clone();
        let flip = wire.next_flip(&parts.headers);
        let body = flipped(body, flip);
        let slice = if connection.is_some() || self.total.is_some() { SLICE } else { usize::MAX };
        let body = sliced(faulty(body, fault), slice).then(move |frame| {
            let (connection, wire, sent) = (connection.clone(), wire.clone(), sent.clone());
            async move {
                let frame = frame?;
                for pacer in [connection.as_deref(), wire.total.as_ref()].into_iter().flatten() {
                    pacer.wait(frame.len() as u64).await;
                }
                sent.fetch_add(frame.len() as u64, Relaxed);
                Ok(Frame::data(frame))
            }
        });
        Ok(Response::from_parts(parts, StreamBody::new(body).boxed_unsync()))
    }
}

/// The body of an S3 error.
fn error(code: &str) -> String {
    format!("<Error><Code>{code}</Code><Message>as asked</Message></Error>")
}

/// A body with what is wrong with it.
fn faulty(body: FrameStream, fault: Option<Fault>) -> FrameStream {
    let (limit, stalls) = match fault {
        Some(Fault::Truncate(limit)) => (limit, false),
        Some(Fault::Stall(limit)) => (limit, true),
        _ => return body,
    };
    let cut = futures::stream::unfold((body, limit), move |(mut body, left)| async move {
        if left == 0 {
            if stalls {
                std::future::pending::<()>().await;
            }
            // What came before would be dropped with the connection, were it not sent by now.
            tokio::time::sleep(Duration::from_millis(20)).await;
            return Some((Err("the connection breaks, as asked".into()), (body, left)));
        }
        let frame = match body.next().await? {
            Ok(frame) => frame.slice(..frame.len().min(left)),
            Err(error) => return Some((Err(error), (body, left))),
        };
        let left = left - frame.len();
        Some((Ok(frame), (body, left)))
    });
    Box::pin(cut)
}

/// A body with one bit flipped.
fn flipped(body: FrameStream, flip: Option<(u64, u8)>) -> FrameStream {
    let Some((mut at, bit)) = flip else { return body };
    let mut done = false;
    Box::pin(body.map(move |frame| {
        let frame = frame?;
        let len = frame.len() as u64;
        if done || at >= len {
            at -= if done { 0 } else { len };
            return Ok(frame);
        }
        done = true;
        let mut bytes = frame.to_vec();
        bytes[at as usize] ^= 1 << bit;
        Ok(Bytes::from(bytes))
    }))
}

/// Cuts the frames of a body into slices.
fn sliced(
    body: FrameStream,
    len: usize,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
    body.flat_map(move |frame| {
        let slices: Vec<_> = match frame {
            Ok(frame) => (0..frame.len())
                .step_by(len)
                .map(|at| Ok(frame.slice(at..frame.len().min(at.saturating_add(len)))))
                .collect(),
            Err(error) => vec![Err(error)],
        };
        futures::stream::iter(slices)
    })
}

/// Spaces transfers so that they do not exceed a rate.
struct Pacer {
    /// Bytes per second.
    rate: u64,
    free: Mutex<Instant>,
}

impl Pacer {
    fn new(rate: u64) -> Self {
        Self { rate, free: Mutex::new(Instant::now()) }
    }

    async fn wait(&self, bytes: u64) {
        let until = {
            let mut free = self.free.lock();
            // Timers are late by up to a millisecond; what that loses is made up for.
            let started = (*free).max(Instant::now() - Duration::from_millis(5));
            *free = started + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
            *free
        };
        tokio::time::sleep_until(until).await;
    }
}

/// Accepts connections for ever.
pub(super) async fn serve(listener: TcpListener, wire: Arc<Wire>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        // An answer in small writes would wait for the client's delayed acknowledgements.
        socket.set_nodelay(true).expect("a TCP socket takes TCP_NODELAY");
        let wire = wire.clone();
        let pacer = wire.config.connection_rate.map(|rate| Arc::new(Pacer::new(rate)));
        connections.spawn(async move {
            let service = service_fn(|request| wire.clone().answer(request, pacer.clone()));
            // Broken connections are the client's to complain about, or the fault's purpose.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
        while connections.try_join_next().is_some() {}
    }
}
