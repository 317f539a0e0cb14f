//! Requests and what answers them.

use std::path::PathBuf;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{HOST, HeaderMap, ORIGIN};
use hyper::{Method, Request, Response, StatusCode};
use subtle::ConstantTimeEq;

use super::body::{Body, pieces};
use super::connect::{Answer, Code, Error, Sender, json, stream, unary};
use super::entries::{Listing, stat};
use super::feed::Feeds;
use super::messages::{
    EntryAnswer, EventsAnswer, ListRequest, MoveRequest, Nothing, PathRequest, WatchAnswer,
    WatchRequest, WatcherAnswer, WatcherRequest,
};
use super::places::Tree;
use super::users::{Owners, User, asked_for};
use super::watchers::Watchers;
use super::{changes, connect};

/// What is served, and to whom.
pub(crate) struct Options {
    /// The directory that no path leads out of, without symlinks.
    pub(crate) root: PathBuf,
    /// Whether it is everybody's home.
    pub(crate) is_home: bool,
    /// What every request has to bring.
    pub(crate) token: Option<Vec<u8>>,
    /// How many watchers there may be at a time.
    pub(crate) watchers: usize,
    /// Whether everybody on this machine can connect, and so a browser that was led here by a name of another's.
    pub(crate) is_on_loopback: bool,
}

impl Options {
    /// As many watchers as there may be, unless one says otherwise.
    pub(crate) const WATCHERS: u32 = 1024;
}

/// The file service.
pub(crate) struct Service {
    tree: Tree,
    token: Option<Vec<u8>>,
    watchers: Watchers,
    is_on_loopback: bool,
    /// Who is served where a request does not say.
    user: User,
}

impl Service {
    pub(crate) fn new(options: Options, feeds: Arc<dyn Feeds>) -> Arc<Self> {
        let Options { root, is_home, token, watchers, is_on_loopback } = options;
        Arc::new(Self {
            tree: Tree::new(root, is_home),
            token,
            watchers: Watchers::new(feeds, watchers),
            is_on_loopback,
            user: User::of_process(),
        })
    }

    /// Whether nobody watches anything.
    pub(crate) fn has_no_watchers(&self) -> bool {
        self.watchers.are_none()
    }

    /// Answers one request.
    pub(crate) async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        if path == "/health" && matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = Response::new(Body::whole(""));
            *response.status_mut() = StatusCode::NO_CONTENT;
            return response;
        }
        if self.token.is_none() && self.is_on_loopback && !names_loopback(request.headers()) {
            let message = "without a token only requests to this machine's own name are answered";
            let told = serde_json::json!({ "code": 403, "message": message });
            return json(StatusCode::FORBIDDEN, &told);
        }
        if !self.lets_in(request.headers()) {
            let message = "X-Access-Token is missing or wrong";
            let told = serde_json::json!({ "code": 401, "message": message });
            return json(StatusCode::UNAUTHORIZED, &told);
        }
        let user = asked_for(request.headers());
        match path.strip_prefix("/filesystem.Filesystem/") {
            Some("WatchDir") => {
                stream(request, async move |asked, sender| self.stream(user?, asked, sender).await)
                    .await
            }
            Some("CreateWatcher") => {
                unary(request, async move |asked| self.create_watcher(user?, asked).await).await
            }
            Some("GetWatcherEvents") => {
                unary(request, async move |WatcherRequest { watcher_id }| {
                    let events = self.blocking(move |it| it.watchers.events(&watcher_id));
                    Answer::of(&EventsAnswer { events: events.await? })
                })
                .await
            }
            Some("RemoveWatcher") => {
                unary(request, async move |WatcherRequest { watcher_id }| {
                    self.blocking(move |it| it.watchers.remove(&watcher_id)).await?;
                    Answer::of(&Nothing {})
                })
                .await
            }
            Some("Stat") => {
                unary(request, async move |PathRequest { path }| {
                    let entry = self.as_user(user?, move |it, user| {
                        stat(&it.tree, &it.tree.absolute(&path, user)?, &mut Owners::default())
                    });
                    Answer::of(&EntryAnswer { entry: entry.await? })
                })
                .await
            }
            Some("ListDir") => {
                unary(request, async move |asked| self.list(user?, asked).await).await
            }
            Some("MakeDir") => {
                unary(request, async move |PathRequest { path }| {
                    let entry = self.as_user(user?, move |it, user| {
                        let path = it.tree.absolute(&path, user)?;
                        changes::make_directory(&it.tree, &path, user)
                    });
                    Answer::of(&EntryAnswer { entry: entry.await? })
                })
                .await
            }
            Some("Move") => {
                unary(request, async move |MoveRequest { source, destination }| {
                    let entry = self.as_user(user?, move |it, user| {
                        let from = it.tree.absolute(&source, user)?;
                        let to = it.tree.absolute(&destination, user)?;
                        changes::rename(&it.tree, &from, &to, user)
                    });
                    Answer::of(&EntryAnswer { entry: entry.await? })
                })
                .await
            }
            Some("Remove") => {
                unary(request, async move |PathRequest { path }| {
                    let removed = self.as_user(user?, move |it, user| {
                        changes::remove(&it.tree, &it.tree.absolute(&path, user)?)
                    });
                    removed.await?;
                    Answer::of(&Nothing {})
                })
                .await
            }
            _ => {
                let told =
                    serde_json::json!({ "code": "unimplemented", "message": "no such call" });
                json(StatusCode::NOT_FOUND, &told)
            }
        }
    }

    /// Whether a request brings the token, which is compared in a time that tells nothing of it.
    fn lets_in(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        // Of several each has to be right: whoever stands in between may look at another one than we do.
        let mut brought = headers.get_all("x-access-token").iter().peekable();
        brought.peek().is_some()
            && brought.all(|value| token.as_slice().ct_eq(value.as_bytes()).into())
    }

    /// Work that waits for a file system, on a thread for that.
    async fn blocking<T: Send + 'static>(
        self: Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let done = tokio::task::spawn_blocking(move || work(&self));
        done.await.unwrap_or_else(|error| Err(Error::new(Code::Internal, error.to_string())))
    }

    /// The same, for a user who may have been asked for.
    async fn as_user<T: Send + 'static>(
        self: Arc<Self>,
        user: Option<String>,
        work: impl FnOnce(&Self, &User) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.blocking(move |it| match user {
            Some(name) => work(it, &User::named(&name)?),
            None => work(it, &it.user),
        })
        .await
    }

    async fn list(
        self: Arc<Self>,
        user: Option<String>,
        ListRequest { path, depth }: ListRequest,
    ) -> Result<Answer, Error> {
        let listing = self.as_user(user, move |it, user| {
            Listing::open(&it.tree, it.tree.absolute(&path, user)?, depth)
        });
        let listing = listing.await?;
        let (sender, body) = pieces(2);
        tokio::task::spawn_blocking(move || listing.write(&sender));
        Ok(Answer::Pieces(body))
    }

    async fn create_watcher(
        self: Arc<Self>,
        user: Option<String>,
        WatchRequest { path, recursive, include_entry }: WatchRequest,
    ) -> Result<Answer, Error> {
        let service = Arc::clone(&self);
        let kept = self.as_user(user, move |it, user| {
            let path = it.tree.absolute(&path, user)?;
            let watcher = it.watchers.watch(&it.tree, &path, recursive, include_entry)?;
            let (watcher_id, is_first) = it.watchers.keep(watcher)?;
            // Here, as by now nobody may wait for the answer.
            if is_first {
                tokio::spawn(async move { service.watchers.see_to_leases().await });
            }
            Ok(watcher_id)
        });
        Answer::of(&WatcherAnswer { watcher_id: kept.await? })
    }

    async fn stream(
        self: Arc<Self>,
        user: Option<String>,
        WatchRequest { path, recursive, include_entry }: WatchRequest,
        mut sender: Sender,
    ) -> Result<(), Error> {
        let watcher = self.as_user(user, move |it, user| {
            let path = it.tree.absolute(&path, user)?;
            it.watchers.watch(&it.tree, &path, recursive, include_entry)
        });
        let mut watcher = watcher.await?;
        let gone = |_: connect::Gone| Error::new(Code::Internal, "the client is gone");
        sender.push(&WatchAnswer::Start(Nothing {})).await.map_err(gone)?;
        sender.flush().await.map_err(gone)?;
        loop {
            tokio::select! {
                () = watcher.changed() => {}
                () = tokio::time::sleep(sender.ping_interval) => {
                    sender.push(&WatchAnswer::Keepalive(Nothing {})).await.map_err(gone)?;
                    sender.flush().await.map_err(gone)?;
                    continue;
                }
            }
            let read = tokio::task::spawn_blocking(move || {
                let events = watcher.read();
                (watcher, events)
            });
            let (back, events) =
                read.await.map_err(|error| Error::new(Code::Internal, error.to_string()))?;
            watcher = back;
            for event in events?.unwrap_or_default() {
                sender.push(&WatchAnswer::Filesystem(Box::new(event))).await.map_err(gone)?;
            }
            sender.flush().await.map_err(gone)?;
        }
    }
}

/// Whether a request is to this machine by a name of its own, and from no web page of another.
fn names_loopback(headers: &HeaderMap) -> bool {
    let is_loopback = |host: &str| {
        let host =
            host.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map_or(host, |it| it.0);
        let address = host.trim_start_matches('[').trim_end_matches(']');
        let is_address =
            address.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback());
        // Of any case, and with the dot that ends a whole name.
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        is_address || host == "localhost" || host.ends_with(".localhost")
    };
    let mut values = [HOST, ORIGIN]
        .map(|name| headers.get_all(name).into_iter().map(|value| value.to_str().unwrap_or("?")));
    let [hosts, origins] = &mut values;
    let origin = |origin: &str| origin.split_once("://").is_some_and(|(_, host)| is_loopback(host));
    hosts.all(is_loopback) && origins.all(origin)
}

/// The token in a file, without white space around it.
///
/// # Errors
/// Where it cannot be read, or holds none that could be sent.
pub(crate) fn read_token(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    use std::io::{Error, Read};
    /// A header's size, with room.
    const LARGEST: u64 = 8 << 10;
    let mut text = Vec::new();
    std::fs::File::open(path)?.take(LARGEST + 1).read_to_end(&mut text)?;
    let token = text.trim_ascii();
    match token.is_empty() || text.len() as u64 > LARGEST || !token.iter().all(u8::is_ascii_graphic)
    {
        true => {
            Err(Error::other("it holds no token, which is one word of letters, digits and signs"))
        }
        false => Ok(token.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Inotify;

    #[tokio::test]
    async fn leases_are_seen_to_though_nobody_waits_for_the_answer_any_more() {
        let root = tempfile::tempdir().unwrap();
        let options = Options {
            root: root.path().canonicalize().unwrap(),
            is_home: true,
            token: None,
            watchers: 1,
            is_on_loopback: false,
        };
        let service = Service::new(options, Arc::new(Inotify));
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let before = tasks();
        let asked = serde_json::from_str(r#"{"path": "~"}"#).unwrap();
        let mut answer = Box::pin(Arc::clone(&service).create_watcher(None, asked));
        let begun = std::future::poll_fn(|context| answer.as_mut().poll(context).map(drop).into());
        let _: std::task::Poll<()> = begun.await;
        drop(answer);
        let begun = std::time::Instant::now();
        while tasks() == before {
            assert!(begun.elapsed().as_secs() < 30, "nobody does");
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        assert!(!service.has_no_watchers());
    }
    use hyper::header::HeaderValue;

    #[test]
    fn only_names_of_this_machine_are_loopback() {
        for (host, origin, expected) in [
            (None, None, true),
            (Some("127.0.0.1:49983"), None, true),
            (Some("127.9.9.9"), None, true),
            (Some("[::1]:1"), None, true),
            (Some("[::1]"), None, true),
            (Some("localhost:49983"), None, true),
            (Some("x.localhost"), None, true),
            (Some("LocalHost.:80"), None, true),
            (Some("."), None, false),
            (Some("evil.example"), None, false),
            (Some("localhost.evil.example:80"), None, false),
            (Some("10.0.0.1"), None, false),
            (Some(""), None, false),
            (Some("localhost"), Some("http://localhost:3000"), true),
            (Some("localhost"), Some("https://evil.example"), false),
            (Some("localhost"), Some("null"), false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [(HOST, host), (ORIGIN, origin)] {
                headers.extend(value.map(|value| (name, value.parse().unwrap())));
            }
            assert_eq!(names_loopback(&headers), expected, "{host:?} {origin:?}");
        }
        let mut twice = HeaderMap::new();
        twice.append(HOST, HeaderValue::from_static("localhost"));
        assert!(names_loopback(&twice));
        twice.append(HOST, HeaderValue::from_static("evil.example"));
        assert!(!names_loopback(&twice));
    }
}
