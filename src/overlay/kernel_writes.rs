//! Writes that the kernel makes by itself, to files of the upper that it was given for that (passthrough): they are no
//! requests, and have to be seen in the upper.
//!
//! While somebody watches, each such file has an inotify mark, which tells of each `write(2)`. What is stored through
//! a mapping it does not tell; that shows in `st_mtime`, which the kernel moves when a page that is clean is first
//! stored to. So files that may be mapped, those opened for reading and writing, are looked at each time; and once
//! one has been stored to, its pages are written to disk each [`CLEAN_EVERY`], for the next store to show. Once they
//! are, it is told, too, as there may have been stores before. A thread of its own waits for the disk. (It does not do
//! to begin that and not to wait: a page that is on its way to a busy disk already is left out.)
//!
//! A mapping outlives the handle. So the last [`MAX_CLOSED`] such files are looked at for longer, each
//! [`CLEAN_EVERY`]. The end of a mapping is told by the mark. On tmpfs a store moves no time: there each end of an open
//! file that may have been mapped is taken for a write.
//!
//! What is dirty when a watch begins would hide what is stored from then on. So what may be is made clean at once, also
//! of the last [`MAX_CLOSED`] files that were closed before, of which nothing was kept but the number; and once more
//! when the watch ends, so that what is stored later shows in the times that a difference goes by. Of what was stored
//! to a dirty page all the same, it is kept by when that had an end.
//!
//! Tried instead: looking at the times of all files, where two writes within a tick of the kernel's clock look the
//! same before Linux 6.13; leases, which tell whether anybody has a file open for writing, but make others wait.

mod file;
mod latest;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use self::file::{File, moves_times};
use self::latest::Latest;
use self::watch::Watch;
use super::handles::Handle;
use crate::types::{Ino, Timestamp};

/// How often the pages of a mapped file are made clean, and files are looked at whose handles are gone.
const CLEAN_EVERY: Duration = Duration::from_secs(1);

/// Most files that are looked at although no handle is open. Each takes a descriptor, of which they have a quarter at most.
const MAX_CLOSED: usize = 1024;

/// How much later than the times say something may have been stored, while somebody watches: so long a page is dirty at
/// most, on a disk that keeps up.
const DIRTY_SECONDS: i64 = 5;

/// Files that the kernel writes to by itself, or may.
#[derive(Debug, Default)]
pub(super) struct KernelWrites {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    files: HashMap<Ino, File>,
    watch: Option<Watch>,
    /// Files that were closed while nobody watched and may still be mapped, and in which order.
    closed: Latest<u64>,
    closings: u64,
    /// Files that are to be made clean.
    to_clean: BTreeMap<Ino, Arc<OwnedFd>>,
    /// The one that is being made clean.
    cleaning: Option<Ino>,
    /// Whether there is a thread that makes files clean. There is one at most.
    has_cleaner: bool,
    /// By when nothing more was stored to files that did not move their times, of those that were made clean last.
    hidden: Latest<Timestamp>,
}

impl State {
    fn note_closed(&mut self, ino: Ino) {
        self.closings += 1;
        self.closed.note(ino, self.closings);
    }

    /// Has the pages of the next file written to disk, and tells of it then. False if there is none.
    fn clean_next(state: &Mutex<Self>) -> bool {
        let (ino, fd) = {
            let mut state = state.lock();
            let Some((ino, fd)) = state.to_clean.pop_first() else {
                state.has_cleaner = false;
                return false;
            };
            state.cleaning = Some(ino);
            (ino, fd)
        };
        let clean = rustix::fs::fdatasync(fd);
        let mut state = state.lock();
        state.cleaning = None;
        state.hidden.note(ino, now());
        let is_watched = state.watch.is_some();
        if let Some(file) = state.files.get_mut(&ino).filter(|_| is_watched) {
            file.is_due = true;
            // Then it is told time and again.
            file.is_dirty |= clean.is_err();
        }
        true
    }
}

impl KernelWrites {
    /// The kernel is about to be given `fd`, that of `handle`, to write to `ino` by itself.
    pub(super) fn opened(&self, ino: Ino, handle: Handle, fd: Arc<OwnedFd>, may_be_mapped: bool) {
        let mut state = self.state.lock();
        let State { files, watch, .. } = &mut *state;
        let file = files.entry(ino).or_insert_with(|| {
            let mut file = File::new(fd);
            if let Some(watch) = watch {
                watch.mark(ino, &mut file);
                // As it is now. Of what was written before it was requested of us, or by another handle.
                file.has_changed(watch.began);
            }
            file
        });
        file.may_be_mapped |= may_be_mapped;
        file.handles.push(handle);
        if let Some(watch) = watch {
            watch.retained.retain(|retained| *retained != ino);
        }
    }

    /// `handle` of `ino` is closed. Says whether there are writes that were not told.
    pub(super) fn closed(&self, ino: Ino, handle: Handle) -> bool {
        let mut state = self.state.lock();
        let State { files, watch, .. } = &mut *state;
        if !files.contains_key(&ino) {
            return false;
        }
        if let Some(watch) = watch {
            absorb(files, watch);
        }
        let Some(file) = files.get_mut(&ino) else { return false };
        file.handles.retain(|open| *open != handle);
        let last = file.handles.is_empty();
        let Some(watch) = watch else {
            if last && files.remove(&ino).is_some_and(|file| file.may_be_mapped) {
                state.note_closed(ino);
            }
            return false;
        };
        file.look(watch.began);
        let changed = file.take_due();
        if last && file.may_be_mapped && !file.is_removed() {
            watch.retained.push_back(ino);
        } else if last && let Some(file) = files.remove(&ino) {
            watch.unmark(&file);
        }
        if watch.retained.len() > watch.max_retained
            && let Some(oldest) = watch.retained.pop_front()
            && let Some(file) = files.remove(&oldest)
        {
            watch.unmark(&file);
        }
        changed
    }

    /// Whether a write to `ino` is yet to be told; whoever asks tells it.
    pub(super) fn check(&self, ino: Ino) -> bool {
        self.look_at(ino, File::take_due)
    }

    /// Whether `is_due` says so of `ino`, once all is known of it that marks and times tell.
    fn look_at(&self, ino: Ino, is_due: impl FnOnce(&mut File) -> bool) -> bool {
        let mut state = self.state.lock();
        let State { files, watch: Some(watch), .. } = &mut *state else { return false };
        if !files.contains_key(&ino) {
            return false;
        }
        absorb(files, watch);
        files.get_mut(&ino).is_some_and(|file| {
            file.look(watch.began);
            is_due(file)
        })
    }

    /// We have changed the data or the times of `ino`, and tell of it.
    pub(super) fn is_ours(&self, ino: Ino) {
        let mut state = self.state.lock();
        let State { files, watch: Some(watch), .. } = &mut *state else { return };
        if let Some(file) = files.get_mut(&ino) {
            file.is_expected |= file.has_changed(watch.began);
            file.take_due();
        }
    }

    /// As [`Self::check`], once we have set the times of `ino`: that those have moved says nothing, but what a mark
    /// has told does. (Without marks, a write that came at the same time is not told.)
    pub(super) fn check_times_set(&self, ino: Ino) -> bool {
        self.look_at(ino, |file| {
            file.is_unexplained = false;
            let is_written = file.is_due_by_mark;
            file.take_due();
            is_written
        })
    }

    /// Whether a mark tells of writes to `ino`.
    pub(super) fn is_marked(&self, ino: Ino) -> bool {
        self.state.lock().files.get(&ino).is_some_and(|file| file.mark.is_some())
    }

    /// Begins to watch, if that has not begun and is to: `began` says the moment from which on writes are to be told.
    pub(super) fn begin(&self, began: impl FnOnce() -> Option<Timestamp>) {
        let mut state = self.state.lock();
        let State { files, watch, .. } = &mut *state;
        if watch.is_none()
            && let Some(began) = began()
        {
            let watch = watch.insert(Watch::begin(began));
            for (ino, file) in files {
                watch.mark(*ino, file);
                file.is_dirty = file.may_be_dirty();
            }
        }
    }

    /// Looks at files, too, that were closed before the watch began and may still be mapped. `open` opens one, if it is
    /// still there.
    pub(super) fn open_closed(&self, open: impl Fn(Ino) -> Option<OwnedFd>) {
        let closed = {
            let mut state = self.state.lock();
            let State { watch: Some(watch), closed, .. } = &mut *state else { return };
            let room = watch.max_retained.saturating_sub(watch.retained.len());
            let mut closed = closed.take();
            closed.truncate(room);
            closed
        };
        for ino in closed {
            let Some(fd) = open(ino) else { continue };
            let mut state = self.state.lock();
            let State { files, watch: Some(watch), .. } = &mut *state else { return };
            if !files.contains_key(&ino) && watch.retained.len() < watch.max_retained {
                let mut file = File::new(Arc::new(fd));
                file.may_be_mapped = true;
                if file.is_removed() {
                    continue;
                }
                watch.mark(ino, &mut file);
                file.is_dirty = file.may_be_dirty();
                // Before those that were closed since.
                watch.retained.push_front(ino);
                files.insert(ino, file);
            }
        }
    }

    /// Ends that. What may be dirty is made clean, if the tree `goes_on`.
    pub(super) fn end(&self, goes_on: bool) {
        let mut state = self.state.lock();
        let retained = state.watch.take().map(|watch| watch.retained).unwrap_or_default();
        for ino in retained {
            state.note_closed(ino);
        }
        let State { files, to_clean, .. } = &mut *state;
        files.retain(|ino, file| {
            if goes_on && file.may_be_dirty() {
                to_clean.insert(*ino, Arc::clone(&file.fd));
            }
            (file.seen, file.mark) = (None, None);
            file.is_dirty = false;
            file.take_due();
            (file.is_unexplained, file.is_expected) = (false, false);
            !file.handles.is_empty()
        });
        self.clean(&mut state);
    }

    /// Whether something may have been stored through a mapping of `ino` after moment `since` that has not moved its
    /// `ctime`.
    pub(super) fn may_have_stored(&self, ino: Ino, ctime: Timestamp, since: Timestamp) -> bool {
        let state = self.state.lock();
        let is_recent = || {
            let since = Timestamp { seconds: since.seconds.saturating_sub(DIRTY_SECONDS), ..since };
            state.watch.is_some() && ctime >= since
        };
        let is_mapped = |file: &File| file.may_be_mapped && (file.is_dirty || is_recent());
        state.to_clean.contains_key(&ino)
            || state.cleaning == Some(ino)
            || state.hidden.get(ino).is_some_and(|hidden| hidden >= since)
            || state.files.get(&ino).is_some_and(is_mapped)
    }

    /// Files that have been written to since they were last looked at: [`Self::check`] says so of each, until it is told.
    pub(super) fn look(&self) -> Vec<Ino> {
        let mut state = self.state.lock();
        let State { files, watch: Some(watch), .. } = &mut *state else { return Vec::new() };
        absorb(files, watch);
        let (mut due, mut dirty) = (Vec::new(), Vec::new());
        let is_time = watch.cleaned.is_none_or(|cleaned| cleaned.elapsed() >= CLEAN_EVERY);
        for (ino, file) in files.iter_mut() {
            let is_open = !file.handles.is_empty();
            let is_to_be_seen = file.mark.is_none() || file.may_be_mapped && is_open;
            if is_to_be_seen || is_time {
                file.look(watch.began);
            }
            if is_time && file.is_dirty {
                dirty.push((*ino, Arc::clone(&file.fd)));
            }
            if file.is_due {
                due.push(*ino);
            }
        }
        if is_time {
            watch.cleaned = Some(Instant::now());
            let removed = |ino: &Ino| files.get(ino).is_none_or(File::is_removed);
            let gone: Vec<Ino> = watch.retained.iter().copied().filter(removed).collect();
            watch.retained.retain(|ino| !gone.contains(ino));
            for file in gone.into_iter().filter_map(|ino| files.remove(&ino)) {
                watch.unmark(&file);
            }
        }
        if is_time && !state.has_cleaner {
            for (ino, fd) in dirty {
                // What is stored from here on shows, or is told once the pages are clean.
                state.files.entry(ino).and_modify(|file| file.is_dirty = false);
                state.to_clean.insert(ino, fd);
            }
            self.clean(&mut state);
        }
        due
    }

    /// Has the files that are to be made clean made so. Where no thread can be had they remain to be.
    fn clean(&self, state: &mut State) {
        if state.to_clean.is_empty() || state.has_cleaner {
            return;
        }
        let shared = Arc::clone(&self.state);
        let cleaner = std::thread::Builder::new().name("thawfs-clean".into());
        match cleaner.spawn(move || while State::clean_next(&shared) {}) {
            Ok(_) => state.has_cleaner = true,
            Err(error) => tracing::debug!("what is stored through mappings is told late: {error}"),
        }
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Timestamp { seconds, nanos: since.subsec_nanos() }
}

/// Takes note of what the marks have told.
fn absorb(files: &mut HashMap<Ino, File>, watch: &Watch) {
    let (written, closed) = watch.told();
    for ino in written {
        if let Some(file) = files.get_mut(&ino) {
            file.wrote(watch.began);
        }
    }
    for ino in closed {
        if let Some(file) = files.get_mut(&ino).filter(|file| file.may_be_mapped) {
            file.look(watch.began);
            file.is_due |= file.is_dirty || !moves_times(&file.fd);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::OFlags;

    const FIRST: Ino = Ino(100);

    fn open(path: &std::path::Path) -> Arc<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        Arc::new(rustix::fs::open(path, flags, rustix::fs::Mode::RWXU).unwrap())
    }

    /// Files that may be mapped, opened and closed one after the other while so many are looked at that are closed.
    fn open_and_close(dir: &std::path::Path, most: usize, count: u64) -> KernelWrites {
        let writes = KernelWrites::default();
        writes.begin(|| Some(Timestamp::default()));
        writes.state.lock().watch.as_mut().unwrap().max_retained = most;
        for number in 0..count {
            let (ino, handle) = (Ino(FIRST.0 + number), Handle(number));
            writes.opened(ino, handle, open(&dir.join(number.to_string())), true);
            assert!(!writes.closed(ino, handle), "it was not written to");
        }
        writes
    }

    #[test]
    fn so_many_files_are_looked_at_without_a_handle_and_then_the_oldest_is_not() {
        const MOST: usize = 8;
        for count in [MOST as u64 - 1, MOST as u64, MOST as u64 + 1] {
            let dir = tempfile::tempdir().unwrap();
            let writes = open_and_close(dir.path(), MOST, count);
            let first = count.saturating_sub(MOST as u64);
            {
                let state = writes.state.lock();
                let watch = state.watch.as_ref().unwrap();
                let expected: Vec<_> = (first..count).map(|number| Ino(FIRST.0 + number)).collect();
                assert_eq!(Vec::from_iter(watch.retained.iter().copied()), expected, "{count}");
                // With a descriptor and a mark each, and no more.
                assert_eq!(
                    (state.files.len(), watch.marked.len()),
                    (expected.len(), expected.len())
                );
            }
            // What is written to them is seen, as through a mapping that has outlived the handle.
            for number in 0..count {
                std::fs::write(dir.path().join(number.to_string()), "data").unwrap();
            }
            let mut due = writes.look();
            due.sort_unstable_by_key(|ino| ino.0);
            assert_eq!(due, Vec::from_iter((first..count).map(|number| Ino(FIRST.0 + number))));
        }
    }

    #[test]
    fn a_file_that_is_opened_again_counts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let writes = open_and_close(dir.path(), 3, 3);
        let again = Handle(9);
        writes.opened(FIRST, again, open(&dir.path().join("0")), true);
        writes.closed(FIRST, again);
        let (ino, handle) = (Ino(FIRST.0 + 7), Handle(7));
        writes.opened(ino, handle, open(&dir.path().join("7")), true);
        writes.closed(ino, handle);
        let retained = writes.state.lock().watch.as_ref().unwrap().retained.clone();
        assert_eq!(retained, [Ino(FIRST.0 + 2), FIRST, ino]);
    }

    #[test]
    fn there_are_a_thousand_or_a_quarter_of_the_descriptors() {
        let writes = KernelWrites::default();
        writes.begin(|| Some(Timestamp::default()));
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let expected = limit.map_or(1024, |limit| 1024.min(limit as usize / 4));
        assert_eq!(writes.state.lock().watch.as_ref().unwrap().max_retained, expected);
    }
    fn wait_for_cleaner(writes: &KernelWrites) {
        let began = Instant::now();
        while writes.state.lock().has_cleaner {
            assert!(began.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn of_more_files_than_are_kept_those_made_clean_last_may_have_been_stored_to_until_then() {
        const COUNT: u64 = 2 * MAX_CLOSED as u64 + 1;
        let dir = tempfile::tempdir().unwrap();
        let fd = open(&dir.path().join("file"));
        let writes = KernelWrites::default();
        writes.state.lock().to_clean =
            (0..COUNT).map(|number| (Ino(number), Arc::clone(&fd))).collect();
        let began = now();
        let may_have_stored = |since| {
            (0..COUNT).map(move |number| (number, since)).filter(|(number, since)| {
                writes.may_have_stored(Ino(*number), Timestamp::default(), *since)
            })
        };
        let far = Timestamp { seconds: i64::MAX, nanos: 0 };
        assert_eq!(may_have_stored(far).count() as u64, COUNT);
        writes.clean(&mut writes.state.lock());
        wait_for_cleaner(&writes);
        assert_eq!(may_have_stored(far).count(), 0);
        let known: Vec<u64> = may_have_stored(began).map(|(number, _)| number).collect();
        assert!((MAX_CLOSED..2 * MAX_CLOSED).contains(&known.len()), "{}", known.len());
        assert_eq!(known.last(), Some(&(COUNT - 1)));
    }

    #[test]
    fn one_thread_makes_files_clean_and_what_it_was_not_started_for_is_made_so_later() {
        let dir = tempfile::tempdir().unwrap();
        let writes = KernelWrites::default();
        let far = Timestamp { seconds: i64::MAX, nanos: 0 };
        let may_have_stored = || writes.may_have_stored(FIRST, Timestamp::default(), far);
        writes.begin(|| Some(Timestamp::default()));
        writes.opened(FIRST, Handle(1), open(&dir.path().join("file")), true);
        // As if one were at work elsewhere.
        writes.state.lock().has_cleaner = true;
        writes.end(true);
        assert!(may_have_stored());
        assert_eq!(Vec::from_iter(writes.state.lock().to_clean.keys().copied()), [FIRST]);
        // As if that had not come to be.
        writes.state.lock().has_cleaner = false;
        writes.begin(|| Some(now()));
        writes.state.lock().files.get_mut(&FIRST).unwrap().is_dirty = false;
        writes.look();
        wait_for_cleaner(&writes);
        assert!(!may_have_stored());
        assert!(writes.check(FIRST), "it is told once it is clean");
    }
    #[test]
    fn that_times_were_set_hides_no_write() {
        let dir = tempfile::tempdir().unwrap();
        let fd = open(&dir.path().join("file"));
        let writes = KernelWrites::default();
        writes.begin(|| Some(now()));
        writes.opened(FIRST, Handle(1), Arc::clone(&fd), true);
        writes.check(FIRST);
        assert!(writes.is_marked(FIRST));
        let file = std::fs::File::from(fd.try_clone().unwrap());
        let set_times = |seconds| {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            file.set_times(std::fs::FileTimes::new().set_accessed(time).set_modified(time))
                .unwrap();
        };
        set_times(1);
        assert!(!writes.check_times_set(FIRST), "nobody has written");
        set_times(2);
        // Somebody else has looked meanwhile.
        assert_eq!(writes.look(), [FIRST]);
        assert!(!writes.check_times_set(FIRST));
        for looks_before in [false, true] {
            rustix::io::write(&fd, b"data").unwrap();
            set_times(3);
            if looks_before {
                writes.look();
            }
            assert!(writes.check_times_set(FIRST), "{looks_before}");
            assert!(!writes.check(FIRST), "it is told once");
        }
    }
}
