//! Watchers: those that are asked for events again and again, and those that are streams.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use uuid::Uuid;

use super::connect::{Code, Error};
use super::entries::{Most, is_nothing, names_below, stat};
use super::feed::{Event, Feed, Feeds, Named, Stays};
use super::messages::{EventType, FilesystemEvent};
use super::places::{Tree, failed};
use super::users::Owners;

/// How long a watcher that nobody asks lives.
const LEASE: Duration = Duration::from_secs(3600);

/// How many changes are looked at at a time.
const BATCH: usize = 512;

/// How many events one answer has, and how many bytes of names, some more at most. Who asks again gets the next. No more
/// than that may be moved in at once.
const MOST_EVENTS: usize = 1 << 16;
const MOST_BYTES: usize = 8 << 20;

/// How many batches are looked at for one answer: all may be of other directories, and more come meanwhile.
const MOST_BATCHES: usize = 1 << 10;

/// One directory that is watched.
pub(super) struct Watcher {
    /// Why it has ended, once it has.
    feed: Result<Feed, Error>,
    /// What has been read, and is yet to be told: all of it may have come with much in it.
    next: VecDeque<Named>,
    tree: Tree,
    /// A directory that does not move, without symlinks.
    top: PathBuf,
    /// What that is in the feed's tree.
    at_top: PathBuf,
    recursive: bool,
    include_entry: bool,
    /// Counts among the watchers that there may be.
    _place: OwnedSemaphorePermit,
}

impl Watcher {
    /// What came since the last call; `None` if there is no more yet.
    ///
    /// # Errors
    /// `internal` once something has been missed, or nothing can come any more: from then on each time.
    pub(super) fn read(&mut self) -> Result<Option<Vec<FilesystemEvent>>, Error> {
        let feed = self.feed.as_mut().map_err(|ended| ended.clone())?;
        if self.next.is_empty() {
            match feed.read(self.recursive, BATCH) {
                Ok(Some(events)) => self.next = events.into(),
                Ok(None) => return Ok(None),
                Err(why) => self.feed = Err(Error::new(Code::Internal, why)),
            }
        }
        let told = self.told();
        if let Err(ended) = &told {
            self.feed = Err(ended.clone());
        }
        told.map(Some)
    }

    /// Tells what is next, to the end of what was read or to something that came with all in it.
    fn told(&mut self) -> Result<Vec<FilesystemEvent>, Error> {
        let feed = self.feed.as_ref().map_err(Error::clone)?;
        let dir = self.dir(feed);
        let mut owners = Owners::default();
        let mut told = Vec::new();
        while let Some((event, name)) = self.next.pop_front() {
            let is_itself = name == b".";
            if event != Event::Arrival || !(self.recursive || is_itself) {
                told.push(self.event(event, &name, dir.as_deref(), &mut owners));
                continue;
            }
            let Some(dir) = &dir else {
                let why = "it was moved to where it has no path, and more was moved into it";
                return Err(Error::new(Code::Internal, why));
            };
            let came = path(dir, &name);
            // What came may have been a directory above, with no such one in it.
            if is_itself && is_nothing(&self.tree, &came) {
                continue;
            }
            told.push(self.event(event, &name, Some(dir), &mut owners));
            let most = Most { names: MOST_EVENTS, bytes: MOST_BYTES };
            let below = names_below(&self.tree, &came, self.recursive, most)?;
            let below = below.ok_or_else(|| {
                let why = format!(
                    "overflow: more than {MOST_EVENTS} files, or {MOST_BYTES} bytes of their names, \
                     were moved in at once"
                );
                Error::new(Code::Internal, why)
            })?;
            for below in below {
                let below = below.as_os_str().as_bytes();
                let name = match is_itself {
                    true => below.to_vec(),
                    false => [&name, &b"/"[..], below].concat(),
                };
                told.push(self.event(Event::Create, &name, Some(dir), &mut owners));
            }
            break;
        }
        Ok(told)
    }

    /// Where the directory is now, as far as has been read. None where it has been moved to what is not mounted there.
    fn dir(&self, feed: &Feed) -> Option<PathBuf> {
        let at = Path::new(OsStr::from_bytes(&feed.at)).strip_prefix(&self.at_top).ok()?;
        Some(self.top.components().chain(at.components()).collect())
    }

    fn event(
        &self,
        event: Event,
        name: &[u8],
        dir: Option<&Path>,
        owners: &mut Owners,
    ) -> FilesystemEvent {
        let (what, shows_entry) = match event {
            Event::Create | Event::Arrival => (EventType::Create, true),
            Event::Write => (EventType::Write, true),
            Event::Remove => (EventType::Remove, false),
            Event::Rename => (EventType::Rename, false),
            Event::Attributes => (EventType::Chmod, true),
        };
        // It may be something else by now, or gone.
        let dir = dir.filter(|_| self.include_entry && shows_entry);
        let entry = dir.map(|dir| stat(&self.tree, &path(dir, name), owners).ok());
        let name = String::from_utf8_lossy(name).into_owned();
        FilesystemEvent { name, what, entry: entry.flatten() }
    }

    /// Waits until there is something to read.
    pub(super) async fn changed(&self) {
        if let Ok(feed) = &self.feed
            && self.next.is_empty()
            // Of one that was moved the end is all there is to read.
            && feed.stays != Stays::Left
        {
            feed.reader.changed().await;
        }
    }
}

/// All watchers, with a limit on how many there may be.
pub(super) struct Watchers {
    feeds: Arc<dyn Feeds>,
    limit: usize,
    /// Each watcher has one.
    places: Arc<Semaphore>,
    leases: Mutex<Leases>,
}

#[derive(Default)]
struct Leases {
    leased: HashMap<Uuid, Leased>,
    /// Whether somebody comes round when they end.
    are_seen_to: bool,
}

struct Leased {
    watcher: Arc<Mutex<Watcher>>,
    until: Instant,
}

impl Watchers {
    pub(super) fn new(feeds: Arc<dyn Feeds>, limit: usize) -> Self {
        let places = Arc::new(Semaphore::new(limit));
        Self { feeds, limit, places, leases: Mutex::default() }
    }

    /// Whether there are none.
    pub(super) fn are_none(&self) -> bool {
        self.end_leases();
        self.places.available_permits() == self.limit
    }

    /// Watches the directory at `path` from now on.
    ///
    /// # Errors
    /// `not_found`, `invalid_argument`, or `internal` where there are too many.
    pub(super) fn watch(
        &self,
        tree: &Tree,
        path: &Path,
        recursive: bool,
        include_entry: bool,
    ) -> Result<Watcher, Error> {
        self.end_leases();
        let (_, dir) = tree.directory(path)?;
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let message = format!("{} watchers are as many as there may be", self.limit);
            Error::new(Code::Internal, message)
        })?;
        let feed = self.feeds.feed(&dir, recursive);
        let mut feed = feed.map_err(|error| failed("watch", path, &error))?;
        // Where all that it can be moved to is served, it is followed.
        if feed.within.as_deref().is_some_and(|within| !tree.holds(within)) {
            feed.stays = Stays::Here;
        }
        let at = Path::new(OsStr::from_bytes(&feed.at));
        let (top, at_top) = tops(&dir, at, feed.within.as_deref());
        let (top, at_top) = (top.to_owned(), at_top.to_owned());
        let (feed, next, tree) = (Ok(feed), VecDeque::new(), tree.clone());
        Ok(Watcher { feed, next, tree, top, at_top, recursive, include_entry, _place: place })
    }

    /// Keeps a watcher for who will ask for its events. Gives the id to ask with, and says whether nobody sees to the
    /// ends of leases yet, as from now on the caller does with [`Watchers::see_to_leases`].
    ///
    /// # Errors
    /// `internal` without random numbers.
    pub(super) fn keep(&self, watcher: Watcher) -> Result<(String, bool), Error> {
        let mut random = [0; 16];
        getrandom::fill(&mut random)
            .map_err(|error| Error::new(Code::Internal, error.to_string()))?;
        let id = uuid::Builder::from_random_bytes(random).into_uuid();
        let watcher = Arc::new(Mutex::new(watcher));
        let mut leases = self.leases.lock();
        leases.leased.insert(id, Leased { watcher, until: Instant::now() + LEASE });
        let is_first = !std::mem::replace(&mut leases.are_seen_to, true);
        Ok((id.to_string(), is_first))
    }

    /// The events that came since the last call.
    ///
    /// # Errors
    /// `not_found`, and those of [`Watcher::read`].
    pub(super) fn events(&self, id: &str) -> Result<Vec<FilesystemEvent>, Error> {
        let watcher = {
            let mut leases = self.leases.lock();
            let parsed = Uuid::parse_str(id).ok();
            let found = parsed.and_then(|id| leases.leased.get_mut(&id));
            let found = found.ok_or_else(|| unknown(id))?;
            found.until = Instant::now() + LEASE;
            Arc::clone(&found.watcher)
        };
        let mut watcher = watcher.lock();
        let (mut events, mut bytes) = (Vec::new(), 0);
        for _ in 0..MOST_BATCHES {
            if events.len() >= MOST_EVENTS || bytes >= MOST_BYTES {
                break;
            }
            match watcher.read() {
                Ok(Some(more)) => {
                    bytes += more.iter().map(FilesystemEvent::bytes).sum::<usize>();
                    events.extend(more);
                }
                Ok(None) => break,
                // First what there was before. It says so again.
                Err(_) if !events.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(events)
    }

    /// Forgets a watcher.
    ///
    /// # Errors
    /// `not_found`.
    pub(super) fn remove(&self, id: &str) -> Result<(), Error> {
        let parsed = Uuid::parse_str(id).ok();
        let removed = parsed.and_then(|id| self.leases.lock().leased.remove(&id));
        removed.map(drop).ok_or_else(|| unknown(id))
    }

    /// Forgets those that nobody has asked for an hour.
    fn end_leases(&self) {
        self.leases.lock().end();
    }

    /// Forgets each that nobody has asked for an hour when that is over, until there are none.
    pub(super) async fn see_to_leases(&self) {
        let end = || {
            let mut leases = self.leases.lock();
            let next = leases.end();
            leases.are_seen_to = next.is_some();
            next
        };
        while let Some(until) = end() {
            tokio::time::sleep_until(until).await;
        }
    }
}

impl Leases {
    /// Forgets those that are over. Says when the next one is.
    fn end(&mut self) -> Option<Instant> {
        let now = Instant::now();
        self.leased.retain(|_, leased| leased.until > now);
        self.leased.values().map(|leased| leased.until).min()
    }
}

/// What has a name in directory `dir`.
fn path(dir: &Path, name: &[u8]) -> PathBuf {
    match name {
        b"." => dir.to_owned(),
        name => dir.join(OsStr::from_bytes(name)),
    }
}

/// What of the directory `dir` and the place `at` that it has in a feed's tree leads to both alike is left out.
fn tops<'a>(mut dir: &'a Path, mut at: &'a Path, within: Option<&Path>) -> (&'a Path, &'a Path) {
    while let (Some(name), Some(above), Some(at_above)) =
        (dir.file_name(), dir.parent(), at.parent())
        && within.is_some_and(|within| within != dir)
        && at.file_name() == Some(name)
    {
        (dir, at) = (above, at_above);
    }
    (dir, at)
}

fn unknown(id: &str) -> Error {
    Error::new(Code::NotFound, format!("watcher {id} not found"))
}

#[cfg(test)]
mod tests;
