//! One HTTP request and its answer, tried again until it works or time is up.
//!
//! Time counts from the last sign of life, so that a slow link gets as long as it takes, within bounds. An attempt
//! after a stall has twice the patience: either the connection was dead, or the store is slow. A store that asks
//! for a pause gets it, cut short where one more attempt would else have no time.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue};
use http::{Method, response};
use object_store::aws::AwsAuthorizer;
use object_store::client::{HttpClient, HttpError, HttpErrorKind, HttpRequest, HttpResponseBody};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{Instrument, Span};
use url::Url;

use super::classify::{Asked, classify};
use super::counters::{Tally, add};
use super::credentials::Credentials;
use super::error::root_cause;
use super::redirect::{self, Refused};
use super::refusal::Right;
use super::shown::host_of;
use super::{Access, Error, GetRange, Pace, Result};

/// Slowest transfer that is given all the time it takes, in bytes per second: 1 Mbit/s.
const SLOWEST: u64 = 128 << 10;

/// A body that comes more slowly still, but comes, is given so many deadlines at least.
const DEADLINES: u32 = 4;

/// The last attempt begins a twentieth of the deadline before its end, but not earlier than this: time for
/// the first byte from slow storage.
const LAST_ATTEMPT: Duration = Duration::from_secs(1);

/// Largest answer that is not an object's body: a page of 1,000 keys of 1 KiB, XML around them.
const ANSWER_LIMIT: usize = 4 << 20;

/// Attempts at a server that never answered before; a mistyped host should not take a deadline.
const FIRST_ATTEMPTS: u32 = 3;

/// How requests are authorized.
pub(super) enum Auth {
    None,
    Basic(HeaderValue),
    Aws { credentials: Credentials, region: String },
}

/// A request that can be sent more than once.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Name of the object for messages.
    pub(super) object: String,
    /// Host that redirects of the last attempt led to.
    led_to: Mutex<Option<String>>,
}

impl Call {
    pub(super) fn new(method: Method, url: Url, object: String) -> Self {
        let (headers, body, led_to) = Default::default();
        Self { method, url, headers, body, object, led_to }
    }

    /// Host and port that are asked: by redirects, another than that of the URL.
    fn host(&self) -> String {
        self.led_to.lock().clone().unwrap_or_else(|| host_of(&self.url))
    }
}

/// The wire to one server.
pub(super) struct Exchange {
    client: HttpClient,
    auth: Auth,
    bucket: Option<String>,
    access: Access,
    /// Whether the server ever answered, or took a connection.
    reached: AtomicBool,
    pub(super) tally: Tally,
}

impl Exchange {
    pub(super) fn new(
        client: HttpClient,
        auth: Auth,
        bucket: Option<String>,
        access: Access,
    ) -> Self {
        let reached = AtomicBool::new(false);
        Self { client, auth, bucket, access, reached, tally: Tally::default() }
    }

    /// Sends a request whose answer is short, and returns that.
    pub(super) async fn send(&self, call: &Call) -> Result<(response::Parts, Bytes)> {
        let mut attempts = self.attempts(&call.object, call.body.len() as u64);
        attempts.sends(call.body.len() as u64);
        loop {
            let attempt = async {
                let limits = attempts.limits();
                let (parts, body) = self.once(call, limits).await?;
                Ok((parts, self.small_body(call, body, ANSWER_LIMIT, limits).await?))
            };
            match attempt.instrument(attempts.span(&call.method, None)).await {
                Ok(answer) => return Ok(answer),
                Err(error) => attempts.failed(error).await?,
            }
        }
    }

    /// The retries of one operation that moves `bytes` bytes.
    pub(super) fn attempts<'a>(&'a self, object: &'a str, bytes: u64) -> Attempts<'a> {
        let now = Instant::now();
        let deadline = self.access.deadline;
        let longest = deadline + Duration::from_secs(bytes / SLOWEST);
        Attempts {
            exchange: self,
            object,
            started: now,
            progress: now,
            sending: Duration::ZERO,
            longest: longest.max(deadline * DEADLINES),
            bytes,
            got: 0,
            tries: 0,
            stalls: 0,
            earlier: None,
        }
    }

    /// How this server answers.
    pub(super) fn pace(&self) -> Pace {
        Pace {
            deadline: Some(self.access.deadline),
            progress: self.tally.progress(),
            holds_off: self.tally.holding_off(),
        }
    }

    /// Sends a request once, twice where fresh credentials make the difference. Returns an answer
    /// only if its status is a success.
    pub(super) async fn once(
        &self,
        call: &Call,
        limits: Limits,
    ) -> Result<(response::Parts, HttpResponseBody)> {
        let mut renewed = false;
        loop {
            let mut request = HttpRequest::new(call.body.clone().into());
            *request.method_mut() = call.method.clone();
            *request.uri_mut() = call.url.as_str().parse().map_err(|_| Error::BadAnswer {
                object: call.object.clone(),
                reason: "its URL is not one that HTTP can carry".into(),
            })?;
            *request.headers_mut() = call.headers.clone();
            if call.method != Method::GET {
                request.headers_mut().insert(CONTENT_LENGTH, call.body.len().into());
            }
            let mut used = None;
            match &self.auth {
                Auth::None => {}
                Auth::Basic(value) => {
                    request.headers_mut().insert(AUTHORIZATION, value.clone());
                }
                Auth::Aws { credentials, region } => {
                    if let Some(credential) = credentials.get(&call.object, limits.end).await? {
                        // TLS protects the body as well as a signature would, at no extra cost.
                        AwsAuthorizer::new(&credential, "s3", region)
                            .with_sign_payload(call.url.scheme() != "https")
                            .try_authorize(&mut request, None)
                            .map_err(|error| Error::BadCredentials {
                                object: call.object.clone(),
                                reason: root_cause(&error),
                            })?;
                        used = Some((credentials, credential));
                    }
                }
            }
            let error = match self.execute(call, request, limits).await? {
                (parts, body) if parts.status.is_success() => return Ok((parts, body)),
                (parts, body) => {
                    // The status alone is enough to go by if its explanation does not arrive.
                    let body = self.small_body(call, body, 16 << 10, limits).await;
                    let body = body.unwrap_or_default();
                    let asked = self.asked(call, used.is_some());
                    classify(asked, parts.status, &parts.headers, &body)
                }
            };
            match (&error, used) {
                (Error::ExpiredCredentials { .. }, Some((credentials, used)))
                    if !renewed && credentials.renew(&used) =>
                {
                    tracing::info!("{error}, asking for new ones");
                    renewed = true;
                }
                _ => return Err(error),
            }
        }
    }

    /// Who was asked what, for words about the answer.
    pub(super) fn asked<'a>(&'a self, call: &'a Call, signed: bool) -> Asked<'a> {
        let Call { method, url, object, .. } = call;
        let right = match &self.auth {
            Auth::None | Auth::Basic(_) => Right::Url,
            Auth::Aws { .. } if signed => Right::Keys,
            Auth::Aws { .. } => Right::Anonymous,
        };
        Asked { object, method, url, bucket: self.bucket.as_deref(), right }
    }

    async fn execute(
        &self,
        call: &Call,
        request: HttpRequest,
        limits: Limits,
    ) -> Result<(response::Parts, HttpResponseBody)> {
        if call.method == Method::GET {
            add(&self.tally.gets, 1);
        } else {
            add(&self.tally.writes, 1);
            add(&self.tally.bytes_out, call.body.len() as u64);
        }
        let sending = Duration::from_secs(call.body.len() as u64 / SLOWEST);
        let sent = Instant::now();
        let (answer, led_to) = redirect::following(async {
            timeout_at(limits.until(sending), self.client.execute(request)).await
        })
        .await;
        *call.led_to.lock() = led_to.as_ref().map(host_of);
        match answer {
            Ok(Ok(response)) => {
                self.reached.store(true, Relaxed);
                tracing::debug!(status = response.status().as_u16(), "answered");
                Ok(response.into_parts())
            }
            Ok(Err(error)) => {
                // Somebody took the connection, and broke it: this is no name that was mistyped.
                if matches!(error.kind(), HttpErrorKind::Request | HttpErrorKind::Interrupted) {
                    self.reached.store(true, Relaxed);
                }
                Err(broken(call, &error))
            }
            Err(_) => Err(Error::Stalled { object: call.object.clone(), after: sent.elapsed() }),
        }
    }

    /// Next bytes of a body, `None` at its end.
    pub(super) async fn next_frame(
        &self,
        call: &Call,
        frames: &mut (impl futures::Stream<Item = Result<Bytes, HttpError>> + Unpin),
        limits: Limits,
    ) -> Result<Option<Bytes>> {
        let asked = Instant::now();
        match timeout_at(limits.until(Duration::ZERO), frames.next()).await {
            Ok(None) => Ok(None),
            Ok(Some(Ok(frame))) => {
                self.tally.arrived(frame.len() as u64);
                Ok(Some(frame))
            }
            Ok(Some(Err(error))) => Err(broken(call, &error)),
            Err(_) => Err(Error::Stalled { object: call.object.clone(), after: asked.elapsed() }),
        }
    }

    /// A body that must not have more than `limit` bytes.
    pub(super) async fn small_body(
        &self,
        call: &Call,
        body: HttpResponseBody,
        limit: usize,
        limits: Limits,
    ) -> Result<Bytes> {
        let mut frames = body.bytes_stream();
        let mut bytes = Vec::new();
        while let Some(frame) = self.next_frame(call, &mut frames, limits).await? {
            if bytes.len() + frame.len() > limit {
                return Err(Error::TooLarge { object: call.object.clone(), limit: limit as u64 });
            }
            bytes.extend_from_slice(&frame);
        }
        Ok(bytes.into())
    }
}

/// How long what one attempt waits for may take. Whatever comes before its request, a helper that is asked
/// for keys, a name that is looked up, a handshake, is within the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// For the next sign of life.
    patience: Duration,
    /// When all of it has to be over.
    pub(super) end: Instant,
}

impl Limits {
    /// Until when to wait for what begins now and takes `sending` to be asked for.
    fn until(self, sending: Duration) -> Instant {
        (Instant::now() + self.patience + sending).min(self.end)
    }
}

/// Decides whether and when an operation is tried again.
pub(super) struct Attempts<'a> {
    exchange: &'a Exchange,
    object: &'a str,
    started: Instant,
    progress: Instant,
    /// What the request's body may take to be sent, at each attempt.
    sending: Duration,
    longest: Duration,
    /// How many bytes are to come, and have.
    bytes: u64,
    got: u64,
    tries: u32,
    /// How many of them stalled since anything came.
    stalls: u32,
    /// Why the attempt before this one failed.
    earlier: Option<Error>,
}

impl Attempts<'_> {
    /// Whether this is not the first attempt.
    pub(super) const fn is_repeated(&self) -> bool {
        self.tries > 0
    }

    /// The span of the attempt that comes next: what its log lines are about.
    pub(super) fn span(&self, method: &Method, range: Option<&GetRange>) -> Span {
        let (range, attempt) = (range.map(tracing::field::display), self.tries + 1);
        tracing::debug_span!("store", %method, object = self.object, range, attempt)
    }

    /// Says that each request has a body of `bytes` bytes, of which nobody tells how far it has got.
    pub(super) fn sends(&mut self, bytes: u64) {
        self.sending = Duration::from_secs(bytes / SLOWEST);
    }

    /// Notes that bytes arrived, which gives the operation more time.
    pub(super) fn progressed(&mut self, bytes: u64) {
        self.progress = Instant::now();
        self.got += bytes;
        self.stalls = 0;
    }

    /// What the attempt that is under way may take from now on. One that follows a stall has twice the
    /// patience: the connection was dead, or the store is slow.
    pub(super) fn limits(&self) -> Limits {
        let patience = self.exchange.access.patience() * (1 << self.stalls.min(8));
        Limits { patience, end: self.end() }
    }

    /// When to stop: the deadline counts from the last progress, and slow progress has an end too.
    fn end(&self) -> Instant {
        let silent = self.progress + self.exchange.access.deadline + self.sending;
        silent.min(self.started + self.longest)
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// If there is no point in one, or no time.
    pub(super) async fn failed(&mut self, error: Error) -> Result<()> {
        let tally = &self.exchange.tally;
        if !error.is_transient() {
            add(&tally.errors, 1);
            return Err(error);
        }
        self.tries += 1;
        self.stalls += u32::from(matches!(error, Error::Stalled { .. }));
        let unreachable = matches!(error, Error::Connect { .. })
            && !self.exchange.reached.load(Relaxed)
            && self.tries >= FIRST_ATTEMPTS;
        let (now, end) = (Instant::now(), self.end());
        let asked_for = error.retry_after();
        // A pause that would last beyond the end is cut short, so that there is one more attempt.
        let last_attempt = end - LAST_ATTEMPT.min(self.exchange.access.deadline / 20);
        let pause = backoff(self.tries).max(asked_for.unwrap_or_default());
        let until = now.checked_add(pause).map_or(last_attempt, |until| until.min(last_attempt));
        if unreachable || until <= now {
            add(&tally.errors, 1);
            let last = self.last_words(error, now >= end);
            return Err(if unreachable {
                last
            } else {
                Error::Timeout {
                    object: self.object.to_owned(),
                    after: self.started.elapsed(),
                    last: Box::new(last),
                }
            });
        }
        add(&tally.retries, 1);
        tracing::info!("{error}; trying again");
        self.earlier = Some(error);
        let _held = asked_for.map(|_| tally.hold_off());
        sleep_until(until).await;
        Ok(())
    }

    /// What to say of an operation that ends with `error`, at its end or before.
    fn last_words(&mut self, error: Error, at_end: bool) -> Error {
        let was_cut = matches!(error, Error::Stalled { .. }) && at_end;
        if was_cut && self.got > 0 && self.started.elapsed() >= self.longest {
            return Error::Slow {
                object: self.object.to_owned(),
                got: self.got,
                expected: self.bytes,
                after: self.started.elapsed(),
            };
        }
        // An attempt that our own deadline cut short says less than the one before it.
        match self.earlier.take().filter(|_| was_cut) {
            Some(earlier) => earlier,
            None => error,
        }
    }
}

/// Pause before retry number `tries`: 50 ms, doubled up to 3.2 s, of which between half and all so
/// that clients that failed together do not come back together.
fn backoff(tries: u32) -> Duration {
    let full = Duration::from_millis(50 << tries.saturating_sub(1).min(6));
    // A fresh RandomState is seeded differently each time, which is random enough to spread load.
    let random = RandomState::new().build_hasher().finish() % 1024;
    full / 2 + (full / 2) * u32::try_from(random).unwrap_or(0) / 1024
}

fn broken(call: &Call, error: &HttpError) -> Error {
    let object = call.object.clone();
    if let Some(refused) = Refused::within(error) {
        return Error::BadRedirect { object, refused: refused.clone() };
    }
    match error.kind() {
        HttpErrorKind::Decode => Error::BadAnswer { object, reason: root_cause(error) },
        _ => Error::Connect { host: call.host(), reason: root_cause(error) },
    }
}
