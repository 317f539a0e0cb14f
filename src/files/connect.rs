//! The Connect protocol with its JSON codec: calls with one answer, and calls answered by a stream.
//!
//! <https://connectrpc.com/docs/protocol>. Messages of a stream are framed: a byte of flags, four of length, the JSON;
//! the last one has a flag of its own and says how it ended.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::body::{Body, Pieces, pieces};

/// The largest message of a request in bytes: two paths and a few numbers.
const LARGEST_MESSAGE: usize = 256 << 10;

/// The bytes before a message of a stream: its flags and its length.
const FRAME_HEAD: usize = 5;

/// How long a client may take to send it.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long nothing may be sent, unless a client says otherwise.
const PING_INTERVAL: Duration = Duration::from_secs(90);

/// The flag of the last message of an answer.
const LAST: u8 = 2;

/// What kind of error a client is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    AlreadyExists,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unauthenticated,
    Unimplemented,
}

impl Code {
    /// What the protocol calls it, and the status of an answer with it.
    const fn told(self) -> (&'static str, StatusCode) {
        match self {
            Self::AlreadyExists => ("already_exists", StatusCode::CONFLICT),
            Self::DeadlineExceeded => ("deadline_exceeded", StatusCode::GATEWAY_TIMEOUT),
            Self::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR),
            Self::InvalidArgument => ("invalid_argument", StatusCode::BAD_REQUEST),
            Self::NotFound => ("not_found", StatusCode::NOT_FOUND),
            Self::ResourceExhausted => ("resource_exhausted", StatusCode::TOO_MANY_REQUESTS),
            Self::Unauthenticated => ("unauthenticated", StatusCode::UNAUTHORIZED),
            Self::Unimplemented => ("unimplemented", StatusCode::NOT_IMPLEMENTED),
        }
    }
}

/// Why a call failed.
#[derive(Clone, Debug)]
pub(crate) struct Error {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl Error {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    fn json(&self) -> Value {
        serde_json::json!({ "code": self.code.told().0, "message": self.message })
    }

    fn response(&self) -> Response<Body> {
        json(self.code.told().1, &self.json())
    }
}

/// An answer of plain JSON.
pub(crate) fn json(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::whole(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(UNARY));
    response
}

const UNARY: &str = "application/json";
const STREAM: &str = "application/connect+json";

/// What a unary call answers.
pub(crate) enum Answer {
    /// A message.
    Whole(Vec<u8>),
    /// One that is made as it is sent.
    Pieces(Pieces),
}

impl Answer {
    /// # Errors
    /// None for the messages that there are.
    pub(crate) fn of(message: &impl Serialize) -> Result<Self, Error> {
        let text = serde_json::to_vec(message);
        text.map(Self::Whole).map_err(|error| Error::new(Code::Internal, error.to_string()))
    }
}

/// Answers a call with one message, within the time that the client has.
pub(crate) async fn unary<Q: DeserializeOwned>(
    request: Request<Incoming>,
    call: impl AsyncFnOnce(Q) -> Result<Answer, Error>,
) -> Response<Body> {
    if let Some(refused) = refuse(&request, UNARY) {
        return refused;
    }
    let deadline = check(request.headers(), header::CONTENT_ENCODING.as_str());
    let answer = async {
        let answer = async {
            let text = read(request.into_body(), 0).await?;
            call(message(&text)?).await
        };
        within(deadline?, answer).await
    };
    match answer.await {
        Ok(answer) => {
            let body = match answer {
                Answer::Whole(text) => Body::whole(text),
                Answer::Pieces(pieces) => Body::Pieces(pieces),
            };
            let mut response = Response::new(body);
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(UNARY));
            response
        }
        Err(error) => error.response(),
    }
}

/// Where a stream's messages go. What is not taken by the client waits here, and the caller with it.
pub(crate) struct Sender {
    frames: mpsc::Sender<std::io::Result<Bytes>>,
    /// Frames that are not sent yet.
    text: Vec<u8>,
    /// How long nothing may be sent.
    pub(crate) ping_interval: Duration,
}

/// Nobody is there any more who wants more.
#[derive(Debug)]
pub(crate) struct Gone;

impl Sender {
    /// Frames are sent together up to this many bytes.
    const BATCH: usize = 64 << 10;

    /// Appends a message, and sends what there is if that is a lot.
    pub(crate) async fn push(&mut self, message: &impl Serialize) -> Result<(), Gone> {
        self.frame(0, message);
        if self.text.len() >= Self::BATCH { self.flush().await } else { Ok(()) }
    }

    /// Sends what there is.
    pub(crate) async fn flush(&mut self) -> Result<(), Gone> {
        let text = std::mem::take(&mut self.text);
        if text.is_empty() {
            return Ok(());
        }
        self.frames.send(Ok(Bytes::from(text))).await.map_err(|_| Gone)
    }

    fn frame(&mut self, flags: u8, message: &impl Serialize) {
        self.text.push(flags);
        let start = self.text.len();
        self.text.extend([0; 4]);
        // Messages are made of strings and numbers: nothing in them cannot be written.
        let _ = serde_json::to_writer(&mut self.text, message);
        let len = u32::try_from(self.text.len() - start - 4).unwrap_or(u32::MAX);
        if let Some(place) = self.text.get_mut(start..start + 4) {
            place.copy_from_slice(&len.to_be_bytes());
        }
    }
}

/// Answers a call with a stream, which `call` writes until it is done, the client is gone, or its time is over.
pub(crate) async fn stream<Q, F>(
    request: Request<Incoming>,
    call: impl FnOnce(Q, Sender) -> F + Send + 'static,
) -> Response<Body>
where
    Q: DeserializeOwned + Send + 'static,
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    if let Some(refused) = refuse(&request, STREAM) {
        return refused;
    }
    let (frames, body) = pieces(2);
    let deadline = check(request.headers(), "connect-content-encoding");
    let ping_interval = ping_interval(request.headers());
    let sender = Sender { frames: frames.clone(), text: Vec::new(), ping_interval };
    let first = async {
        let deadline = deadline?;
        let read = async { message::<Q>(unframe(&read(request.into_body(), FRAME_HEAD).await?)?) };
        Ok((deadline, within(deadline, read).await?))
    };
    let first = first.await;
    tokio::spawn(async move {
        let ended = match first {
            Ok((deadline, message)) => {
                tokio::select! {
                    ended = within(deadline, call(message, sender)) => ended,
                    () = frames.closed() => return,
                }
            }
            Err(error) => Err(error),
        };
        let end = match ended {
            Ok(()) => serde_json::json!({}),
            Err(error) => serde_json::json!({ "error": error.json() }),
        };
        let mut last = Sender { frames, text: Vec::new(), ping_interval };
        last.frame(LAST, &end);
        // To whom, if there is nobody?
        let _ = last.flush().await;
    });
    let mut response = Response::new(Body::Pieces(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(STREAM));
    response
}

async fn within<T>(
    deadline: Option<Duration>,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match deadline {
        None => call.await,
        Some(deadline) => tokio::time::timeout(deadline, call).await.unwrap_or_else(|_| {
            let message = format!("it took longer than the {} ms given", deadline.as_millis());
            Err(Error::new(Code::DeadlineExceeded, message))
        }),
    }
}

/// What is answered where something is no call of this `kind` at all.
fn refuse(request: &Request<Incoming>, kind: &str) -> Option<Response<Body>> {
    let plain = |status, name, value: &str| {
        let mut response = Response::new(Body::whole(""));
        *response.status_mut() = status;
        response.headers_mut().extend(HeaderValue::from_str(value).map(|value| (name, value)));
        Some(response)
    };
    if request.method() != Method::POST {
        return plain(StatusCode::METHOD_NOT_ALLOWED, header::ALLOW, "POST");
    }
    let is_of_kind = |asked: &HeaderValue| {
        let codec = asked.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
        codec.trim().eq_ignore_ascii_case(kind)
    };
    let asked = only(request.headers(), header::CONTENT_TYPE.as_str());
    if !asked.is_ok_and(|asked| asked.is_some_and(is_of_kind)) {
        let accept = header::HeaderName::from_static("accept-post");
        return plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, accept, kind);
    }
    None
}

/// Refuses what is not supported of a call, and says how long it may take.
fn check(headers: &HeaderMap, encoding: &str) -> Result<Option<Duration>, Error> {
    let text = |name: &str| {
        let value = only(headers, name)?;
        Ok::<_, Error>(value.map(|value| value.to_str().unwrap_or("?").trim().to_owned()))
    };
    if let Some(version) = text("connect-protocol-version")?.filter(|version| version != "1") {
        let message = format!("protocol version {version} is not 1");
        return Err(Error::new(Code::InvalidArgument, message));
    }
    if let Some(encoding) = text(encoding)?.filter(|encoding| encoding != "identity") {
        let message = format!("compression {encoding} is not supported; identity is");
        return Err(Error::new(Code::Unimplemented, message));
    }
    timeout(headers)
}

/// A header that means one thing, and cannot be given twice.
///
/// # Errors
/// `invalid_argument` where it is.
pub(super) fn only<'a>(
    headers: &'a HeaderMap,
    name: &str,
) -> Result<Option<&'a HeaderValue>, Error> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(Error::new(Code::InvalidArgument, format!("{name} is given more than once"))),
    }
}

/// How long the client waits for all of the answer; for ever where it says nothing, or 0.
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    let Some(value) = only(headers, "connect-timeout-ms")? else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    // No more than ten digits, says the protocol.
    let is_number = (1..=10).contains(&text.len()) && text.bytes().all(|it| it.is_ascii_digit());
    let parsed = text.parse().ok().filter(|_| is_number);
    let wrong = || Error::new(Code::InvalidArgument, "Connect-Timeout-Ms is no number");
    let ms = parsed.ok_or_else(wrong)?;
    Ok(Some(Duration::from_millis(ms)).filter(|timeout| !timeout.is_zero()))
}

fn ping_interval(headers: &HeaderMap) -> Duration {
    let value = headers.get("keepalive-ping-interval").and_then(|value| value.to_str().ok());
    let seconds = value.and_then(|value| value.trim().parse().ok()).filter(|seconds| *seconds > 0);
    seconds.map_or(PING_INTERVAL, |seconds: u32| Duration::from_secs(seconds.into()))
}

/// All of a request, whose message comes behind a head of so many bytes. One that says it is too large, in its framing,
/// too, is refused before it has been sent.
async fn read(mut body: Incoming, head: usize) -> Result<Vec<u8>, Error> {
    let wrong = |message: &str| Error::new(Code::InvalidArgument, message);
    let mut text = Vec::new();
    let read = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| wrong(&format!("the request ends: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            text.extend(data);
            let announced = match text.as_slice() {
                [_, a, b, c, d, ..] if head > 0 => u32::from_be_bytes([*a, *b, *c, *d]) as usize,
                _ => 0,
            };
            if text.len() > LARGEST_MESSAGE + head || announced > LARGEST_MESSAGE {
                let message = format!("a message of a request has at most {LARGEST_MESSAGE} bytes");
                return Err(Error::new(Code::ResourceExhausted, message));
            }
        }
        Ok(())
    };
    let read = tokio::time::timeout(PATIENCE, read).await;
    read.map_err(|_| wrong("the request does not come"))??;
    Ok(text)
}

/// The message in the one frame of a request that is answered by a stream.
fn unframe(text: &[u8]) -> Result<&[u8], Error> {
    let wrong = |message: String| Error::new(Code::InvalidArgument, message);
    let half = || wrong("half a frame".to_owned());
    let (head, message) = text.split_at_checked(FRAME_HEAD).ok_or_else(half)?;
    let [flags, len @ ..] = head else { return Err(half()) };
    // Compressed is none without a compression, and the last are answers' alone.
    if *flags != 0 {
        return Err(wrong(format!(
            "a message of a request has no flags, and this has {flags:#04x}"
        )));
    }
    let len = <[u8; 4]>::try_from(len).map_or(0, u32::from_be_bytes) as usize;
    let message = message.get(..len).ok_or_else(half)?;
    match text.len() == FRAME_HEAD + len {
        true => Ok(message),
        false => Err(Error::new(Code::Unimplemented, "more than one message in a request")),
    }
}

/// A message of JSON as protobuf has it: unknown fields are ignored, and null is as good as nothing.
fn message<Q: DeserializeOwned>(text: &[u8]) -> Result<Q, Error> {
    let parsed = serde_json::from_slice(text).and_then(|mut fields: Map<String, Value>| {
        fields.retain(|_, value| !value.is_null());
        serde_json::from_value(Value::Object(fields))
    });
    parsed.map_err(|error| Error::new(Code::InvalidArgument, format!("no message: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_whole_frame() {
        let frame = |flags: u8, len: u32, text: &str| {
            let mut frame = vec![flags];
            frame.extend(len.to_be_bytes());
            frame.extend(text.as_bytes());
            frame
        };
        assert_eq!(unframe(&frame(0, 2, "{}")).unwrap(), b"{}");
        assert_eq!(unframe(&frame(0, 0, "")).unwrap(), b"");
        for (text, code) in [
            (Vec::new(), Code::InvalidArgument),
            (vec![0; 4], Code::InvalidArgument),
            (frame(0, 3, "{}"), Code::InvalidArgument),
            (frame(0, u32::MAX, "{}"), Code::InvalidArgument),
            (frame(1, 2, "{}"), Code::InvalidArgument),
            (frame(2, 2, "{}"), Code::InvalidArgument),
            (frame(2, 0, ""), Code::InvalidArgument),
            (frame(0x80, 2, "{}"), Code::InvalidArgument),
            ([frame(0, 2, "{}"), frame(2, 2, "{}")].concat(), Code::Unimplemented),
            ([frame(0, 2, "{}"), frame(0, 2, "{}")].concat(), Code::Unimplemented),
        ] {
            assert_eq!(unframe(&text).unwrap_err().code, code, "{text:?}");
        }
    }

    #[test]
    fn a_timeout_has_ten_digits_at_most() {
        let parsed = |text: &str| {
            let headers = [(header::HeaderName::from_static("connect-timeout-ms"), text)];
            let headers = headers.map(|(name, text)| (name, HeaderValue::from_str(text).unwrap()));
            timeout(&HeaderMap::from_iter(headers)).ok()
        };
        assert_eq!(parsed("1"), Some(Some(Duration::from_millis(1))));
        assert_eq!(parsed("0"), Some(None));
        assert_eq!(parsed("9999999999"), Some(Some(Duration::from_millis(9_999_999_999))));
        for odd in ["10000000000", "", "-1", "+1", " 1", "1.5", "x"] {
            assert_eq!(parsed(odd), None, "{odd}");
        }
        assert_eq!(timeout(&HeaderMap::new()).unwrap(), None);
    }
}
