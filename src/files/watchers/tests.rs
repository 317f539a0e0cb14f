//! Leases of watchers, by a clock that stands still but for what a test moves it, over the connections that there are.

use std::any::Any;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Weak;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::advance;

use super::*;
use crate::files::{Connections, Inotify, Options, Service, serve};
use crate::types::FileKind;
use crate::watch::{ChangeLog, Limits, What};

/// Every directory by inotify; knows which are watched still.
#[derive(Default)]
struct Observed(Mutex<Vec<(PathBuf, Weak<dyn Any + Send + Sync>)>>);

impl Feeds for Observed {
    fn feed(&self, dir: &Path, recursive: bool) -> io::Result<Feed> {
        let feed = Inotify.feed(dir, recursive)?;
        self.0.lock().push((dir.to_owned(), Arc::downgrade(&feed._source)));
        Ok(feed)
    }
}

impl Observed {
    /// The names of directories that are watched.
    fn watched(&self) -> Vec<String> {
        let feeds = self.0.lock();
        let alive = feeds.iter().filter(|(_, source)| source.strong_count() > 0);
        alive.map(|(dir, _)| dir.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }
}

struct Served {
    root: tempfile::TempDir,
    observed: Arc<Observed>,
    hand: mpsc::Sender<UnixStream>,
}

impl Served {
    /// Serves a directory with `a`, `b` and `c` in it.
    fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            std::fs::create_dir(root.path().join(name)).unwrap();
        }
        let options = Options {
            root: root.path().canonicalize().unwrap(),
            is_home: true,
            token: None,
            watchers: 3,
            is_on_loopback: false,
        };
        let observed = Arc::<Observed>::default();
        let service = Service::new(options, Arc::clone(&observed) as Arc<dyn Feeds>);
        let (hand, handed) = mpsc::channel(1);
        tokio::spawn(serve(Connections::Handed(handed), Arc::new(Semaphore::new(9)), move |it| {
            Arc::clone(&service).answer(it)
        }));
        Self { root, observed, hand }
    }

    async fn call(&self, method: &str, message: &Value) -> (u16, Value) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.hand.send(theirs).await.unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut connection = tokio::net::UnixStream::from_std(ours).unwrap();
        let body = message.to_string();
        let head = format!(
            "POST /filesystem.Filesystem/{method} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        connection.write_all((head + &body).as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        (status, serde_json::from_str(body).unwrap())
    }

    /// Watches a directory; gives what to ask with.
    async fn create(&self, dir: &str) -> Value {
        let (status, watcher) = self.call("CreateWatcher", &json!({ "path": dir })).await;
        assert_eq!(status, 200, "{watcher}");
        watcher
    }

    async fn ask(&self, watcher: &Value) -> u16 {
        self.call("GetWatcherEvents", watcher).await.0
    }
}

/// Every directory by one log, which has it at the place of that name.
struct Logged(Arc<ChangeLog>, &'static str);

impl Feeds for Logged {
    fn feed(&self, dir: &Path, _: bool) -> io::Result<Feed> {
        let (reader, _) = self.0.subscribe(None)?;
        Ok(Feed {
            reader,
            at: self.1.into(),
            within: dir.ancestors().nth(Path::new(self.1).components().count()).map(Into::into),
            stays: Stays::Followed,
            _source: Arc::new(()),
        })
    }
}

#[test]
fn a_watcher_that_has_missed_something_ends_and_says_so_each_time() {
    let (journal, root) = (tempfile::tempfile().unwrap(), tempfile::tempdir().unwrap());
    let file = journal.try_clone().unwrap();
    let limits = Limits { memory: 4000, segment: 1000, segments: 100 };
    let log = Arc::new(ChangeLog::new(limits, Some(move || file.try_clone())));
    let watchers = Watchers::new(Arc::new(Logged(Arc::clone(&log), "")), 9);
    let tree = Tree::new(root.path().canonicalize().unwrap(), true);
    let watch = || watchers.watch(&tree, root.path(), true, false).unwrap();
    let (asked, mut stream) = (watchers.keep(watch()).unwrap().0, watch());
    for number in 0..200 {
        let path = format!("{number:050}").into_bytes();
        log.write(What::Create, FileKind::Regular, number, path);
    }
    // Its first part is there still.
    journal.set_len(1500).unwrap();
    let before = watchers.events(&asked).unwrap();
    assert!((2..50).contains(&before.len()), "{}", before.len());
    assert_eq!(before[1].name, format!("{:050}", 1));
    for _ in 0..3 {
        let error = watchers.events(&asked).unwrap_err();
        assert!(error.code == Code::Internal && error.message.contains("overflow"), "{error:?}");
        log.write(What::Create, FileKind::Regular, 0, b"later".to_vec());
    }
    let mut told = Vec::new();
    while let Ok(events) = stream.read() {
        told.extend(events.unwrap());
    }
    assert_eq!(told, before);
    assert!(stream.read().is_err());
    watchers.remove(&asked).unwrap();
}

#[test]
fn an_answer_has_so_many_events_and_bytes_and_the_next_has_the_rest() {
    let root = tempfile::tempdir().unwrap();
    let limits = Limits { memory: usize::MAX, ..Limits::default() };
    let log = Arc::new(ChangeLog::new(limits, Some(tempfile::tempfile)));
    let watchers = Watchers::new(Arc::new(Logged(Arc::clone(&log), "")), 9);
    let tree = Tree::new(root.path().canonicalize().unwrap(), true);
    for (len, count, most) in [
        (10, MOST_EVENTS - 1, MOST_EVENTS),
        (10, MOST_EVENTS, MOST_EVENTS),
        (10, MOST_EVENTS + 1, MOST_EVENTS),
        (4000, MOST_BYTES / 4000 + 2000, MOST_BYTES.div_ceil(4000 * BATCH) * BATCH),
    ] {
        let watcher = watchers.watch(&tree, root.path(), true, false).unwrap();
        let id = watchers.keep(watcher).unwrap().0;
        for number in 0..count {
            log.write(What::Create, FileKind::Regular, 0, format!("{number:0len$}").into_bytes());
        }
        let mut told = Vec::new();
        loop {
            let events = watchers.events(&id).unwrap();
            assert_eq!(events.len(), most.min(count - told.len()), "{len} {count}");
            if events.is_empty() {
                break;
            }
            told.extend(events.into_iter().map(|event| event.name.parse::<usize>().unwrap()));
        }
        assert!(told.into_iter().eq(0..count), "{len} {count}");
        watchers.remove(&id).unwrap();
    }
}

#[test]
fn what_is_moved_in_is_looked_for_where_the_directory_is_now() {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    std::fs::create_dir_all(at("d/e")).unwrap();
    let log = Arc::new(ChangeLog::new(Limits::default(), Some(tempfile::tempfile)));
    let watchers = Watchers::new(Arc::new(Logged(Arc::clone(&log), "d/e")), 9);
    let tree = Tree::new(root.path().canonicalize().unwrap(), true);
    let mut watcher = watchers.watch(&tree, &at("d/e"), true, true).unwrap();
    std::fs::rename(at("d"), at("moved")).unwrap();
    std::fs::create_dir(at("moved/e/came")).unwrap();
    std::fs::write(at("moved/e/came/x"), "").unwrap();
    let write = |from: &str, to: &str| {
        let what = What::Rename { to: to.into() };
        log.write(what, FileKind::Directory, 0, from.into());
    };
    write("d", "moved");
    write("elsewhere", "moved/e/came");
    // Another comes to where it was.
    std::fs::create_dir_all(at("d/e")).unwrap();
    let told = watcher.read().unwrap().unwrap();
    let names: Vec<_> = told.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["came", "came/x"]);
    let entry = told[1].entry.as_ref().unwrap();
    assert!(entry.path.ends_with("/moved/e/came/x"), "{}", entry.path);
    // What came to where one above it would be has no such directory in it.
    write("moved", "d");
    std::fs::remove_dir_all(at("d")).unwrap();
    write("another", "d");
    assert_eq!(watcher.read().unwrap(), Some(Vec::new()));
}

#[test]
fn a_directory_is_where_its_place_in_the_tree_is_mounted() {
    for (dir, at, within, expected) in [
        ("/m/d/e", "d/e", Some("/m"), ("/m", "")),
        ("/m", "", Some("/m"), ("/m", "")),
        // A part of the tree.
        ("/m/d/e", "part/d/e", Some("/m"), ("/m", "part")),
        ("/m", "part", Some("/m"), ("/m", "part")),
        ("/m", "a/m", Some("/m"), ("/m", "a/m")),
        ("/", "", Some("/"), ("/", "")),
        // What is no mount of ours is not followed.
        ("/p/d", "", None, ("/p/d", "")),
    ] {
        let (top, at_top) = tops(Path::new(dir), Path::new(at), within.map(Path::new));
        assert_eq!((top, at_top), (Path::new(expected.0), Path::new(expected.1)), "{dir} {at}");
    }
}

#[test]
fn many_that_are_moved_in_at_once_are_told_one_after_another() {
    const FILES: usize = 5000;
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("d");
    std::fs::create_dir_all(dir.join("came")).unwrap();
    for number in 0..FILES {
        std::fs::write(dir.join(format!("came/{number}")), "").unwrap();
    }
    let log = Arc::new(ChangeLog::new(Limits::default(), Some(tempfile::tempfile)));
    let watchers = Watchers::new(Arc::new(Logged(Arc::clone(&log), "d")), 9);
    let tree = Tree::new(root.path().canonicalize().unwrap(), true);
    let mut watcher = watchers.watch(&tree, &dir, true, false).unwrap();
    let asked = watchers.keep(watchers.watch(&tree, &dir, true, false).unwrap()).unwrap().0;
    for _ in 0..20 {
        let what = What::Rename { to: b"d/came".to_vec() };
        log.write(what, FileKind::Directory, 0, b"elsewhere".to_vec());
    }
    let mut counts = Vec::new();
    while let Some(events) = watcher.read().unwrap() {
        counts.push(events.iter().filter(|event| event.name != "came").count());
    }
    assert_eq!(counts, [FILES; 20]);
    let all = 20 * (FILES + 1);
    let first = watchers.events(&asked).unwrap().len();
    assert!((MOST_EVENTS..MOST_EVENTS + FILES + 1).contains(&first), "{first}");
    assert_eq!(watchers.events(&asked).unwrap().len(), all - first);
    watchers.remove(&asked).unwrap();
}

/// The tasks that there are, once those that have something to do have done it.
async fn tasks() -> usize {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

#[tokio::test(start_paused = true)]
async fn a_watcher_lives_for_an_hour_after_it_was_last_asked() {
    let served = Served::start();
    let before = tasks().await;
    let (a, b) = (served.create("a").await, served.create("b").await);
    advance(LEASE - Duration::from_secs(1)).await;
    assert_eq!((served.ask(&a).await, tasks().await), (200, before + 1));
    let c = served.create("c").await;
    assert_eq!(served.observed.watched(), ["a", "b", "c"]);
    let (status, refused) = served.call("CreateWatcher", &json!({ "path": "a" })).await;
    assert_eq!((status, &refused["code"]), (500, &json!("internal")));
    // Nobody has to come for it to end.
    advance(Duration::from_secs(1)).await;
    assert_eq!(tasks().await, before + 1);
    assert_eq!(served.observed.watched(), ["a", "c"]);
    assert_eq!((served.ask(&a).await, served.ask(&b).await), (200, 404));
    assert_eq!(served.call("RemoveWatcher", &b).await.0, 404);
    // What has been asked is as good as new, and misses nothing of what comes in the second hour.
    advance(LEASE - Duration::from_secs(1)).await;
    std::fs::write(served.root.path().join("a/x"), "").unwrap();
    let mut told = json!([]);
    while told.as_array().is_none_or(Vec::is_empty) {
        let (status, answer) = served.call("GetWatcherEvents", &a).await;
        assert_eq!(status, 200, "{answer}");
        told = answer["events"].clone();
    }
    assert_eq!(told[0], json!({ "name": "x", "type": "EVENT_TYPE_CREATE" }));
    assert_eq!(served.observed.watched(), ["a"], "nobody has asked the third");
    assert_eq!(served.ask(&c).await, 404);
    advance(LEASE).await;
    assert_eq!(tasks().await, before, "nothing is left to be seen to");
    assert_eq!(served.observed.watched(), [""; 0]);
    assert_eq!(served.ask(&a).await, 404);
    // And again.
    let a = served.create("a").await;
    assert_eq!((served.ask(&a).await, tasks().await), (200, before + 1));
    advance(LEASE).await;
    assert_eq!((tasks().await, served.ask(&a).await), (before, 404));
}

#[tokio::test(start_paused = true)]
async fn leases_are_seen_to_by_one_task_however_many_come_and_go() {
    let served = Served::start();
    let before = tasks().await;
    let stays = served.create("a").await;
    for _ in 0..50 {
        let goes = served.create("b").await;
        assert_eq!(served.call("RemoveWatcher", &goes).await.0, 200);
        advance(Duration::from_secs(600)).await;
        assert_eq!(served.ask(&stays).await, 200);
    }
    assert_eq!(tasks().await, before + 1);
    assert_eq!(served.observed.watched(), ["a"]);
}
