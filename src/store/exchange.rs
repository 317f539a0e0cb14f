//! One HTTP request and its answer, tried again until it works or time is up.

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue};
use http::{Method, response};
use object_store::aws::AwsAuthorizer;
use object_store::client::{HttpClient, HttpError, HttpErrorKind, HttpRequest, HttpResponseBody};
use tokio::time::Instant;
use url::Url;

use super::counters::{Tally, add};
use super::credentials::Credentials;
use super::error::root_cause;
use super::refusal::{Asked, Right, classify};
use super::{Error, Result, StoreOptions};

/// Slowest transfer that counts as working, in bytes per second: 1 Mbit/s.
const SLOWEST: u64 = 128 << 10;

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
}

impl Call {
    pub(super) fn new(method: Method, url: Url, object: String) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: Bytes::new(), object }
    }
}

/// The wire to one server.
pub(super) struct Exchange {
    client: HttpClient,
    auth: Auth,
    bucket: Option<String>,
    options: StoreOptions,
    /// Whether the server ever answered.
    reached: AtomicBool,
    pub(super) tally: Tally,
}

impl Exchange {
    pub(super) fn new(
        client: HttpClient,
        auth: Auth,
        bucket: Option<String>,
        options: StoreOptions,
    ) -> Self {
        let reached = AtomicBool::new(false);
        Self { client, auth, bucket, options, reached, tally: Tally::default() }
    }

    /// Sends a request whose answer is short, and returns that.
    pub(super) async fn send(&self, call: &Call) -> Result<(response::Parts, Bytes)> {
        let mut attempts = self.attempts(&call.object, call.body.len() as u64);
        loop {
            let attempt = async {
                let (parts, body) = self.once(call).await?;
                Ok((parts, self.small_body(call, body, ANSWER_LIMIT).await?))
            };
            match attempts.within(attempt).await {
                Ok(answer) => return Ok(answer),
                Err(error) => attempts.failed(error).await?,
            }
        }
    }

    /// The retries of one operation that moves `bytes` bytes.
    pub(super) fn attempts<'a>(&'a self, object: &'a str, bytes: u64) -> Attempts<'a> {
        let now = Instant::now();
        let longest = self.options.deadline + Duration::from_secs(bytes / SLOWEST);
        Attempts {
            exchange: self,
            object,
            started: now,
            progress: now,
            longest,
            tries: 0,
            earlier: None,
        }
    }

    /// Sends a request once, twice where fresh credentials make the difference. Returns an answer
    /// only if its status is a success.
    pub(super) async fn once(&self, call: &Call) -> Result<(response::Parts, HttpResponseBody)> {
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
                    if let Some(credential) = credentials.get(&call.object).await? {
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
            let error = match self.execute(call, request).await? {
                (parts, body) if parts.status.is_success() => return Ok((parts, body)),
                (parts, body) => {
                    // The status alone is enough to go by if its explanation does not arrive.
                    let body = self.small_body(call, body, 16 << 10).await.unwrap_or_default();
                    let asked = self.asked(call, used.is_some());
                    classify(asked, parts.status, &parts.headers, &body)
                }
            };
            match (&error, used) {
                (Error::ExpiredCredentials { .. }, Some((credentials, used)))
                    if !renewed && credentials.renew(&used) =>
                {
                    log::info!("{error}, asking for new ones");
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
    ) -> Result<(response::Parts, HttpResponseBody)> {
        if call.method == Method::GET {
            add(&self.tally.gets, 1);
        } else {
            add(&self.tally.writes, 1);
            add(&self.tally.bytes_out, call.body.len() as u64);
        }
        let sending = Duration::from_secs(call.body.len() as u64 / SLOWEST);
        let patience = self.options.connect_timeout + self.options.read_timeout + sending;
        match tokio::time::timeout(patience, self.client.execute(request)).await {
            Ok(Ok(response)) => {
                self.reached.store(true, Relaxed);
                Ok(response.into_parts())
            }
            Ok(Err(error)) => Err(broken(call, &error)),
            Err(_) => Err(Error::Stalled { object: call.object.clone(), after: patience }),
        }
    }

    /// Next bytes of a body, `None` at its end. Waits no longer than the read timeout.
    pub(super) async fn next_frame(
        &self,
        call: &Call,
        frames: &mut (impl futures::Stream<Item = Result<Bytes, HttpError>> + Unpin),
    ) -> Result<Option<Bytes>> {
        let patience = self.options.read_timeout;
        match tokio::time::timeout(patience, frames.next()).await {
            Ok(None) => Ok(None),
            Ok(Some(Ok(frame))) => {
                add(&self.tally.bytes_in, frame.len() as u64);
                Ok(Some(frame))
            }
            Ok(Some(Err(error))) => Err(broken(call, &error)),
            Err(_) => Err(Error::Stalled { object: call.object.clone(), after: patience }),
        }
    }

    /// A body that must not have more than `limit` bytes.
    pub(super) async fn small_body(
        &self,
        call: &Call,
        body: HttpResponseBody,
        limit: usize,
    ) -> Result<Bytes> {
        let mut frames = body.bytes_stream();
        let mut bytes = Vec::new();
        while let Some(frame) = self.next_frame(call, &mut frames).await? {
            if bytes.len() + frame.len() > limit {
                return Err(Error::TooLarge { object: call.object.clone(), limit: limit as u64 });
            }
            bytes.extend_from_slice(&frame);
        }
        Ok(bytes.into())
    }
}

/// Decides whether and when an operation is tried again.
pub(super) struct Attempts<'a> {
    exchange: &'a Exchange,
    object: &'a str,
    started: Instant,
    progress: Instant,
    longest: Duration,
    tries: u32,
    /// Why the attempt before this one failed.
    earlier: Option<Error>,
}

impl Attempts<'_> {
    /// Whether this is not the first attempt.
    pub(super) const fn is_repeated(&self) -> bool {
        self.tries > 0
    }

    /// Notes that bytes arrived, which gives the operation more time.
    pub(super) fn progressed(&mut self) {
        self.progress = Instant::now();
    }

    /// When to stop: the deadline counts from the last progress, and slow progress has an end too.
    fn end(&self) -> Instant {
        (self.progress + self.exchange.options.deadline).min(self.started + self.longest)
    }

    /// Runs one attempt, cut off at the deadline.
    pub(super) async fn within<T>(&self, attempt: impl Future<Output = Result<T>>) -> Result<T> {
        match tokio::time::timeout_at(self.end(), attempt).await {
            Ok(result) => result,
            Err(_) => Err(Error::Stalled {
                object: self.object.to_owned(),
                after: self.started.elapsed(),
            }),
        }
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
        let unreachable = matches!(error, Error::Connect { .. })
            && !self.exchange.reached.load(Relaxed)
            && self.tries >= FIRST_ATTEMPTS;
        let pause = backoff(self.tries);
        if unreachable || Instant::now() + pause >= self.end() {
            add(&tally.errors, 1);
            // An attempt that our own deadline cut short says less than the one before it.
            let was_cut = matches!(error, Error::Stalled { .. }) && Instant::now() >= self.end();
            let last = match self.earlier.take().filter(|_| was_cut) {
                Some(earlier) => earlier,
                None => error,
            };
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
        log::info!("{error}; trying again");
        self.earlier = Some(error);
        tokio::time::sleep(pause).await;
        Ok(())
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
    match error.kind() {
        HttpErrorKind::Decode => Error::BadAnswer { object, reason: root_cause(error) },
        _ => Error::Connect { host: host_of(&call.url), reason: root_cause(error) },
    }
}

/// Host and port of a URL, for messages.
pub(super) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}
