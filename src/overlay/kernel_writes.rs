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
//! A mapping outlives the handle. So the last [`MAX_RETAINED`] such files are looked at for longer, each
//! [`CLEAN_EVERY`]. The end of a mapping is told by the mark. On tmpfs a store moves no time: there each end of an open
//! file that may have been mapped is taken for a write.
//!
//! Tried instead: looking at the times of all files, where two writes within a tick of the kernel's clock look the
//! same before Linux 6.13; leases, which tell whether anybody has a file open for writing, but make others wait.

use std::collections::{HashMap, VecDeque};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::inotify;
use rustix::io::Errno;

use super::handles::Handle;
use crate::types::{Ino, Timestamp};

/// How often the pages of a mapped file are made clean, and files are looked at whose handles are gone.
const CLEAN_EVERY: Duration = Duration::from_secs(1);

/// Most files that are looked at although no handle is open. Each takes a descriptor, of which they have a quarter at most.
const MAX_RETAINED: usize = 1024;

/// How much older than the beginning of a watch a change may look: what the kernel's clock lags behind, at most.
const CLOCK_LAG: Duration = Duration::from_millis(20);

/// The kernel's number of tmpfs.
const TMPFS: u32 = 0x0102_1994;

/// Files that the kernel writes to by itself, or may.
#[derive(Debug, Default)]
pub(super) struct KernelWrites {
    state: Arc<Mutex<State>>,
    /// Whether a thread writes pages to disk.
    cleans: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct State {
    files: HashMap<Ino, File>,
    watch: Option<Watch>,
}

/// What there is while somebody watches.
#[derive(Debug)]
struct Watch {
    /// Changes from then on are to be told.
    began: Timestamp,
    /// None where the kernel gives none.
    inotify: Option<OwnedFd>,
    marked: HashMap<i32, Ino>,
    /// Without a handle, the oldest first.
    retained: VecDeque<Ino>,
    max_retained: usize,
    cleaned: Instant,
}

#[derive(Debug)]
struct File {
    fd: Arc<OwnedFd>,
    handles: Vec<Handle>,
    /// Whether one of the handles was for reading, too.
    may_be_mapped: bool,
    /// Whether something was stored through a mapping.
    is_mapped: bool,
    /// Whether it was, and it has not been seen to since that its pages are clean.
    is_dirty: bool,
    /// `st_mtime` and size when it was last looked at.
    seen: Option<(Timestamp, u64)>,
    /// Whether it is known to be written to, and that is yet to be told.
    is_due: bool,
    /// Whether its times have moved, and no mark has told why yet.
    is_unexplained: bool,
    /// Whether what the mark will tell next is known already.
    is_expected: bool,
    mark: Option<i32>,
}

impl File {
    /// Whether it looks otherwise than when it was last looked at, or at the beginning of the watch.
    fn has_changed(&mut self, began: Timestamp) -> bool {
        let Ok(stat) = rustix::fs::fstat(&self.fd) else { return false };
        let mtime = Timestamp {
            seconds: stat.st_mtime,
            nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        };
        let now = (mtime, stat.st_size.cast_unsigned());
        match self.seen.replace(now) {
            Some(before) => before != now,
            None => mtime >= began,
        }
    }

    /// Looks at it. What has changed and no mark tells of until the next look was stored through a mapping: a
    /// write(2) moves the time first, and is told of when it is done.
    fn look(&mut self, began: Timestamp) {
        let is_unexplained = std::mem::take(&mut self.is_unexplained);
        self.is_mapped |= self.may_be_mapped && is_unexplained;
        self.is_dirty |= self.is_mapped && is_unexplained;
        if self.has_changed(began) {
            self.is_unexplained = true;
            self.is_dirty |= self.is_mapped;
            self.is_due = true;
        }
    }

    /// The mark has told of a write(2).
    fn wrote(&mut self, began: Timestamp) {
        let has_changed = self.has_changed(began);
        self.is_due |= has_changed || !self.is_expected;
        self.is_dirty |= has_changed && self.is_mapped;
        (self.is_expected, self.is_unexplained) = (false, false);
    }

    /// Whether there is something to be told, which is taken for told then.
    fn take_due(&mut self) -> bool {
        std::mem::take(&mut self.is_due)
    }

    fn is_removed(&self) -> bool {
        rustix::fs::fstat(&self.fd).is_ok_and(|stat| stat.st_nlink == 0)
    }
}

impl Watch {
    fn begin(began: Timestamp) -> Self {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let inotify = inotify::init(flags);
        if let Err(errno) = &inotify {
            tracing::info!("writes are told a moment later, as there is no inotify: {errno}");
        }
        let lag = i64::from(CLOCK_LAG.subsec_nanos());
        let nanos = i64::from(began.nanos) - lag;
        let began = Timestamp {
            seconds: began.seconds + nanos.div_euclid(1_000_000_000),
            nanos: u32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or(0),
        };
        Self {
            began,
            inotify: inotify.ok(),
            marked: HashMap::new(),
            retained: VecDeque::new(),
            max_retained: MAX_RETAINED.min(quarter_of_descriptors()),
            cleaned: Instant::now(),
        }
    }

    fn mark(&mut self, ino: Ino, file: &mut File) {
        let Some(inotify) = &self.inotify else { return };
        let path = format!("/proc/self/fd/{}", file.fd.as_raw_fd());
        let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CLOSE_WRITE;
        match inotify::add_watch(inotify, path, flags) {
            Ok(mark) => {
                self.marked.insert(mark, ino);
                file.mark = Some(mark);
            }
            Err(errno) => tracing::debug!("writes to inode {ino} are told a moment later: {errno}"),
        }
    }

    fn unmark(&mut self, file: &File) {
        if let (Some(inotify), Some(mark)) = (&self.inotify, file.mark) {
            self.marked.remove(&mark);
            // It goes by itself with the inode.
            let _ = inotify::remove_watch(inotify, mark);
        }
    }

    /// What the marks have told since it was last asked: files that were written to, and those that somebody who
    /// could write has closed.
    fn told(&self) -> (Vec<Ino>, Vec<Ino>) {
        let (mut written, mut closed) = (Vec::new(), Vec::new());
        let Some(inotify) = &self.inotify else { return (written, closed) };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(inotify, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::INTR) => continue,
                Err(_) => return (written, closed),
            };
            if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) {
                // Any of them may have been.
                written.extend(self.marked.values());
            }
            let Some(ino) = self.marked.get(&event.wd()) else { continue };
            if event.events().contains(inotify::ReadFlags::MODIFY) {
                written.push(*ino);
            }
            if event.events().contains(inotify::ReadFlags::CLOSE_WRITE) {
                closed.push(*ino);
            }
        }
    }
}

impl KernelWrites {
    /// The kernel is about to be given `fd`, that of `handle`, to write to `ino` by itself.
    pub(super) fn opened(&self, ino: Ino, handle: Handle, fd: Arc<OwnedFd>, may_be_mapped: bool) {
        let mut state = self.state.lock();
        let State { files, watch } = &mut *state;
        let file = files.entry(ino).or_insert_with(|| {
            let mut file = File {
                fd,
                handles: Vec::new(),
                may_be_mapped: false,
                is_mapped: false,
                is_dirty: false,
                seen: None,
                is_due: false,
                is_unexplained: false,
                is_expected: false,
                mark: None,
            };
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
        let State { files, watch } = &mut *state;
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
            if last {
                files.remove(&ino);
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
        let mut state = self.state.lock();
        let State { files, watch: Some(watch) } = &mut *state else { return false };
        if !files.contains_key(&ino) {
            return false;
        }
        absorb(files, watch);
        files.get_mut(&ino).is_some_and(|file| {
            file.look(watch.began);
            file.take_due()
        })
    }

    /// We have changed the data or the times of `ino`, and tell of it.
    pub(super) fn is_ours(&self, ino: Ino) {
        let mut state = self.state.lock();
        let State { files, watch: Some(watch) } = &mut *state else { return };
        if let Some(file) = files.get_mut(&ino) {
            file.is_expected |= file.has_changed(watch.began);
            file.take_due();
        }
    }

    /// That the times of `ino` had moved when it was looked at was our doing, and nobody's who stored something.
    pub(super) fn is_explained(&self, ino: Ino) {
        if let Some(file) = self.state.lock().files.get_mut(&ino) {
            file.is_unexplained = false;
        }
    }

    /// Begins to watch, if that has not begun and is to: `began` says the moment from which on writes are to be told.
    pub(super) fn begin(&self, began: impl FnOnce() -> Option<Timestamp>) {
        let mut state = self.state.lock();
        let State { files, watch } = &mut *state;
        if watch.is_none()
            && let Some(began) = began()
        {
            let watch = watch.insert(Watch::begin(began));
            for (ino, file) in files {
                watch.mark(*ino, file);
            }
        }
    }

    /// Ends that.
    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        state.watch = None;
        state.files.retain(|_, file| {
            (file.seen, file.mark) = (None, None);
            (file.is_dirty, file.is_due) = (false, false);
            (file.is_unexplained, file.is_expected) = (false, false);
            !file.handles.is_empty()
        });
    }

    /// Files that have been written to since they were last looked at: [`Self::check`] says so of each, until it is told.
    pub(super) fn look(&self) -> Vec<Ino> {
        let mut state = self.state.lock();
        let State { files, watch: Some(watch) } = &mut *state else { return Vec::new() };
        absorb(files, watch);
        let (mut due, mut dirty) = (Vec::new(), Vec::new());
        let is_time = watch.cleaned.elapsed() >= CLEAN_EVERY;
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
            watch.cleaned = Instant::now();
            let removed = |ino: &Ino| files.get(ino).is_none_or(File::is_removed);
            let gone: Vec<Ino> = watch.retained.iter().copied().filter(removed).collect();
            watch.retained.retain(|ino| !gone.contains(ino));
            for file in gone.into_iter().filter_map(|ino| files.remove(&ino)) {
                watch.unmark(&file);
            }
        }
        if !dirty.is_empty() && !self.cleans.swap(true, Ordering::AcqRel) {
            for (ino, _) in &dirty {
                // What is stored from here on shows, or is told once the pages are clean.
                files.entry(*ino).and_modify(|file| file.is_dirty = false);
            }
            self.clean(dirty);
        }
        due
    }

    /// Has the pages of files written to disk, and tells of them then.
    fn clean(&self, files: Vec<(Ino, Arc<OwnedFd>)>) {
        let (state, cleans) = (Arc::clone(&self.state), Arc::clone(&self.cleans));
        let started = std::thread::Builder::new().name("thawfs-clean".into()).spawn(move || {
            for (ino, fd) in files {
                let clean = rustix::fs::fdatasync(fd);
                if let Some(file) = state.lock().files.get_mut(&ino) {
                    file.is_due = true;
                    // Then it is told time and again.
                    file.is_dirty |= clean.is_err();
                }
            }
            cleans.store(false, Ordering::Release);
        });
        if let Err(error) = started {
            tracing::debug!("what is stored through mappings is told late: {error}");
            self.cleans.store(false, Ordering::Release);
        }
    }
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

fn quarter_of_descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit / 4).ok()).unwrap_or(usize::MAX)
}

/// Whether a store through a mapping of `fd` moves the file's times.
fn moves_times(fd: &OwnedFd) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|stat| stat.f_type as u32 != TMPFS)
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
}
