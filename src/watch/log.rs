//! The log itself, and its readers.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};
use slab::Slab;
use tokio::sync::Notify;

use super::change::{Change, What};
use super::cursor::Cursor;
use super::journal::{Journal, encode};
use crate::types::{FileKind, Timestamp};

/// How long changes are written down after the last reader has gone: so long may a client take to come back and miss
/// nothing.
pub const LINGER: Duration = Duration::from_secs(10);

/// How much of a log is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of changes in memory.
    pub memory: usize,
    /// Bytes of one segment of the journal; what is moved there at a time.
    pub segment: usize,
    /// Segments of the journal.
    pub segments: u64,
}

impl Default for Limits {
    /// 2 MiB in memory, some 10,000 changes, and 256 MiB on disk, some 4 million.
    fn default() -> Self {
        Self { memory: 2 << 20, segment: 512 << 10, segments: 512 }
    }
}

/// Makes the file for the journal, which nobody else sees and which is gone once it is closed.
type MakeFile = dyn Fn() -> io::Result<File> + Send + Sync;

/// What a reader gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// The next change.
    Change(Arc<Change>),
    /// Changes `from` to `to`, both included, are forgotten: the reader was too slow.
    Missed {
        /// The first of them.
        from: u64,
        /// The last.
        to: u64,
    },
}

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Where it asked to: nothing is left out.
    Exact,
    /// Now, as what it asked for is not written down: what has changed since `since` is to be found otherwise.
    Reset {
        /// The moment of the cursor that it came with.
        since: Timestamp,
    },
}

/// What a log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Those who read it.
    pub readers: usize,
    /// Changes that were written down in this life.
    pub written: u64,
    /// Bytes of changes in memory.
    pub memory_bytes: usize,
    /// Bytes of the journal that are in use.
    pub journal_bytes: u64,
}

/// An ordered log of the changes of one tree.
pub struct ChangeLog {
    /// Whether changes are to be written down.
    watched: AtomicBool,
    state: Mutex<State>,
    /// Told of each change, for those who wait in tasks and in threads.
    came: Notify,
    came_to_threads: Condvar,
    /// Told when a life begins.
    begun: Condvar,
    limits: Limits,
    make_file: Option<Box<MakeFile>>,
}

struct State {
    life: u64,
    began: Timestamp,
    /// The sequence number of the next change.
    next: u64,
    ring: VecDeque<Arc<Change>>,
    ring_bytes: usize,
    journal: Option<Journal>,
    /// The next change of each reader.
    readers: Slab<u64>,
    /// When the last reader went.
    left: Instant,
    /// Why nothing more will come.
    closed: Option<Arc<str>>,
}

impl State {
    /// The first change in the ring, or the next one.
    fn ring_first(&self) -> u64 {
        self.next - self.ring.len() as u64
    }

    /// The first change that is kept, or the next one.
    fn first(&self) -> u64 {
        self.journal.as_ref().and_then(Journal::first).unwrap_or_else(|| self.ring_first())
    }

    /// The first change that some reader has yet to get.
    fn slowest(&self) -> u64 {
        self.readers.iter().map(|(_, next)| *next).min().unwrap_or(self.next)
    }

    fn is_over(&self) -> bool {
        self.readers.is_empty() && self.left.elapsed() > LINGER
    }

    /// Forgets everything: what comes is of another life.
    fn begin(&mut self) -> io::Result<()> {
        let mut life = [0; 8];
        getrandom::fill(&mut life).map_err(io::Error::from)?;
        self.life = u64::from_le_bytes(life);
        self.began = now();
        self.next = 1;
        self.ring = VecDeque::new();
        self.ring_bytes = 0;
        self.journal = None;
        Ok(())
    }
}

impl ChangeLog {
    /// An empty log. `make_file` is called when the journal is first needed; without it there is none.
    pub fn new(
        limits: Limits,
        make_file: Option<impl Fn() -> io::Result<File> + Send + Sync + 'static>,
    ) -> Self {
        let state = State {
            life: 0,
            began: Timestamp::default(),
            next: 1,
            ring: VecDeque::new(),
            ring_bytes: 0,
            journal: None,
            readers: Slab::new(),
            left: Instant::now(),
            closed: None,
        };
        Self {
            watched: AtomicBool::new(false),
            state: Mutex::new(state),
            came: Notify::new(),
            came_to_threads: Condvar::new(),
            begun: Condvar::new(),
            limits,
            make_file: make_file.map(|make| Box::new(make) as Box<MakeFile>),
        }
    }

    /// Whether changes are to be written down. This is all that a change costs while nobody reads.
    pub fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Relaxed)
    }

    /// Ends a life in which nobody reads any more, and says whether one goes on.
    pub fn is_alive(&self) -> bool {
        let mut state = self.state.lock();
        self.is_watched() && state.closed.is_none() && !self.end_if_over(&mut state)
    }

    fn end_if_over(&self, state: &mut State) -> bool {
        let over = state.is_over();
        if over {
            self.watched.store(false, Ordering::Relaxed);
            (state.ring, state.ring_bytes, state.journal) = (VecDeque::new(), 0, None);
            state.life = 0;
        }
        over
    }

    /// Waits until changes are to be written down. Says when that began; `None` once nothing more will come.
    pub fn wait_for_reader(&self) -> Option<Timestamp> {
        let mut state = self.state.lock();
        while !self.is_watched() && state.closed.is_none() {
            self.begun.wait(&mut state);
        }
        (state.closed.is_none()).then_some(state.began)
    }

    /// When changes began to be written down, if they are.
    pub fn began(&self) -> Option<Timestamp> {
        let state = self.state.lock();
        (self.is_watched() && state.closed.is_none()).then_some(state.began)
    }

    /// Says that nothing more will come, and why: the tree is gone, or nobody can tell any more what changes in it.
    pub fn close(&self, why: impl Into<Arc<str>>) {
        self.state.lock().closed.get_or_insert(why.into());
        self.begun.notify_all();
        self.wake();
    }

    /// Whether nothing more will come.
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed.is_some()
    }

    /// Writes a change down, if anybody reads. Paths are as in [`Change`].
    pub fn write(&self, what: What, kind: FileKind, ino: u64, path: Vec<u8>) {
        if !self.is_watched() {
            return;
        }
        let mut state = self.state.lock();
        if state.readers.is_empty() && self.end_if_over(&mut state) {
            return;
        }
        let change = Change { sequence: state.next, at: now(), what, kind, ino, path };
        state.next += 1;
        state.ring_bytes += change.weight();
        state.ring.push_back(Arc::new(change));
        if state.ring_bytes > self.limits.memory {
            self.spill(&mut state);
        }
        drop(state);
        self.wake();
    }

    fn wake(&self) {
        self.came.notify_waiters();
        self.came_to_threads.notify_all();
    }

    /// Tells every reader that it missed changes that nobody knows: a number of their own is theirs, and what a reader
    /// has yet to get is forgotten with them.
    pub fn lose(&self) {
        let mut state = self.state.lock();
        if self.is_watched() {
            state.next += 1;
            (state.ring, state.ring_bytes, state.journal) = (VecDeque::new(), 0, None);
        }
        drop(state);
        self.wake();
    }

    /// What it holds now; nothing where nobody reads.
    pub fn kept(&self) -> Kept {
        let mut state = self.state.lock();
        if !self.is_watched() || self.end_if_over(&mut state) {
            return Kept::default();
        }
        Kept {
            readers: state.readers.len(),
            written: state.next - 1,
            memory_bytes: state.ring_bytes,
            journal_bytes: state.journal.as_ref().map_or(0, Journal::bytes),
        }
    }

    /// Makes room in the ring: half of it goes to the journal, if a reader has yet to get some of that.
    fn spill(&self, state: &mut State) {
        let needed = state.slowest();
        let mut text = Vec::new();
        let mut first = state.ring_first();
        while state.ring_bytes > self.limits.memory / 2
            && let Some(change) = state.ring.pop_front()
        {
            state.ring_bytes -= change.weight();
            if change.sequence < needed && state.journal.is_none() {
                first = change.sequence + 1;
                continue;
            }
            let whole = text.len();
            encode(&change, &mut text);
            if text.len() > self.limits.segment && whole > 0 {
                let begun = text.split_off(whole);
                self.keep(state, first, &text);
                (text, first) = (begun, change.sequence);
            }
        }
        if !text.is_empty() {
            self.keep(state, first, &text);
        }
    }

    /// Adds a segment to the journal. If that cannot be, what is before the ring is forgotten.
    fn keep(&self, state: &mut State, first: u64, text: &[u8]) {
        let Some(make) = &self.make_file else { return };
        let Limits { segment, segments, .. } = self.limits;
        if text.len() > segment {
            state.journal = None;
            return;
        }
        let journal = match &mut state.journal {
            Some(journal) => Ok(journal),
            none => make().map(|file| none.insert(Journal::new(file, segment, segments))),
        };
        if let Err(error) = journal.and_then(|journal| journal.push(first, text)) {
            tracing::warn!("changes that a slow reader has yet to get are forgotten: {error}");
            state.journal = None;
        }
    }

    /// A reader of what changes from now on or, given a cursor, from there on.
    ///
    /// # Errors
    /// Where there are no random numbers to be had.
    pub fn subscribe(self: &Arc<Self>, since: Option<Cursor>) -> io::Result<(Reader, Start)> {
        let mut state = self.state.lock();
        if !self.is_watched() || self.end_if_over(&mut state) {
            state.begin()?;
            self.watched.store(true, Ordering::Relaxed);
            self.begun.notify_all();
        }
        let (first, life) = (state.first(), state.life);
        let wanted = |cursor: Cursor| {
            let wanted = cursor.sequence.checked_add(1)?;
            (cursor.life == life && (first..=state.next).contains(&wanted)).then_some(wanted)
        };
        let (next, start) = match since {
            None => (state.next, Start::Exact),
            Some(cursor) => match wanted(cursor) {
                Some(wanted) => (wanted, Start::Exact),
                None => (state.next, Start::Reset { since: cursor.at }),
            },
        };
        let id = state.readers.insert(next);
        drop(state);
        Ok((Reader { log: Arc::clone(self), id }, start))
    }
}

/// Reads a log from some change on. While there is one, changes are written down.
pub struct Reader {
    log: Arc<ChangeLog>,
    id: usize,
}

impl Reader {
    /// The next changes, some `at_most` of them; none if there are no more yet.
    pub fn read(&mut self, at_most: usize) -> Vec<Item> {
        let mut state = self.log.state.lock();
        let Some(mut next) = state.readers.get(self.id).copied() else { return Vec::new() };
        let mut items = Vec::new();
        let first = state.first();
        if next < first {
            items.push(Item::Missed { from: next, to: first - 1 });
            next = first;
        }
        let ring_first = state.ring_first();
        if next < ring_first {
            match state.journal.as_ref().map(|journal| journal.read(next)) {
                Some(Ok(changes)) if !changes.is_empty() => {
                    next += changes.len() as u64;
                    items.extend(changes.into_iter().map(|change| Item::Change(Arc::new(change))));
                }
                unreadable => {
                    if let Some(Err(error)) = unreadable {
                        tracing::warn!("the journal of changes cannot be read: {error}");
                    }
                    items.push(Item::Missed { from: next, to: ring_first - 1 });
                    next = ring_first;
                }
            }
        } else {
            let skip = usize::try_from(next - ring_first).unwrap_or(usize::MAX);
            let before = items.len();
            items.extend(state.ring.iter().skip(skip).take(at_most).cloned().map(Item::Change));
            next += (items.len() - before) as u64;
        }
        if let Some(position) = state.readers.get_mut(self.id) {
            *position = next;
        }
        let (slowest, ring_first) = (state.slowest(), state.ring_first());
        if let Some(journal) = &mut state.journal {
            journal.drop_before(slowest, ring_first);
            if journal.first().is_none() {
                // The file goes, and with it its room on disk.
                state.journal = None;
            }
        }
        items
    }

    /// Leaves out what is yet to be read.
    pub fn skip(&mut self) {
        let mut state = self.log.state.lock();
        let next = state.next;
        if let Some(position) = state.readers.get_mut(self.id) {
            *position = next;
        }
    }

    /// Why nothing comes after what has been read, if that is so.
    pub fn closed(&self) -> Option<Arc<str>> {
        let state = self.log.state.lock();
        let at_end = state.readers.get(self.id).is_some_and(|next| *next == state.next);
        state.closed.clone().filter(|_| at_end)
    }

    /// Waits until there is more to read, and says whether there is: not once the log is closed.
    pub async fn changed(&self) -> bool {
        loop {
            let came = self.log.came.notified();
            tokio::pin!(came);
            came.as_mut().enable();
            if let Some(more) = self.has_more() {
                return more;
            }
            came.await;
        }
    }

    /// As [`Self::changed`] on a thread, at most for `patience`: also if there is nothing by then, more may come.
    pub fn wait(&self, patience: Duration) -> bool {
        if let Some(more) = self.has_more() {
            return more;
        }
        let mut state = self.log.state.lock();
        let has_come = |state: &State| {
            state.closed.is_some()
                || state.readers.get(self.id).is_some_and(|next| *next < state.next)
        };
        let (came, end) = (&self.log.came_to_threads, Instant::now() + patience);
        while !has_come(&state) && !came.wait_until(&mut state, end).timed_out() {}
        drop(state);
        self.has_more().unwrap_or(true)
    }

    /// Whether there is more to read, if that is known yet.
    fn has_more(&self) -> Option<bool> {
        let state = self.log.state.lock();
        let more = state.readers.get(self.id).is_some_and(|next| *next < state.next);
        (more || state.closed.is_some()).then_some(more)
    }

    /// The place behind the last change that was read, to go on from.
    pub fn cursor(&self) -> Cursor {
        let state = self.log.state.lock();
        let next = state.readers.get(self.id).copied().unwrap_or(state.next);
        // With changes yet to be read, now is too late.
        let at = match next.checked_sub(state.ring_first()) {
            Some(waiting) => {
                match usize::try_from(waiting).ok().and_then(|at| state.ring.get(at)) {
                    Some(change) => change.at,
                    None => now(),
                }
            }
            None => state.began,
        };
        Cursor { life: state.life, sequence: next - 1, at }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.log.state.lock();
        state.readers.try_remove(self.id);
        if state.readers.is_empty() {
            state.left = Instant::now();
        }
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(limits: Limits) -> Arc<ChangeLog> {
        Arc::new(ChangeLog::new(limits, Some(tempfile::tempfile)))
    }

    fn fill(log: &ChangeLog, names: std::ops::Range<u64>) {
        for name in names {
            log.write(What::Create, FileKind::Regular, name, name.to_string().into_bytes());
        }
    }

    /// Everything there is to read; changes by their ino, which [`fill`] makes their number.
    fn drain(reader: &mut Reader) -> (Vec<u64>, Vec<(u64, u64)>) {
        let (mut seen, mut missed) = (Vec::new(), Vec::new());
        loop {
            let items = reader.read(7);
            if items.is_empty() {
                return (seen, missed);
            }
            for item in items {
                match item {
                    Item::Missed { from, to } => missed.push((from, to)),
                    Item::Change(change) => {
                        assert_eq!(change.path, change.ino.to_string().into_bytes());
                        assert_eq!(change.sequence, change.ino);
                        seen.push(change.ino);
                    }
                }
            }
        }
    }

    fn small(memory: usize, segments: u64) -> Limits {
        Limits { memory, segment: 256, segments }
    }

    #[test]
    fn nothing_is_written_down_while_nobody_reads() {
        let log = log(Limits::default());
        fill(&log, 1..5);
        let (mut reader, start) = log.subscribe(None).unwrap();
        assert_eq!(start, Start::Exact);
        assert_eq!(drain(&mut reader), (vec![], vec![]));
        fill(&log, 1..5);
        assert_eq!(drain(&mut reader), (vec![1, 2, 3, 4], vec![]));
    }

    #[test]
    fn a_slow_reader_gets_all_that_the_journal_has_room_for_and_is_told_what_it_missed() {
        // A change takes some 150 bytes in memory and 32 on disk, 7 of them a segment.
        for count in [0, 1, 6, 7, 8, 20, 21, 22, 27, 28, 29, 50, 200, 1000] {
            let log = log(small(3000, 10_000));
            let (mut reader, _) = log.subscribe(None).unwrap();
            fill(&log, 1..count + 1);
            assert_eq!(drain(&mut reader), ((1..=count).collect(), vec![]), "{count}");
            assert!(log.state.lock().journal.is_none(), "read to its end, it goes");
        }
        for segments in [1, 2, 3] {
            let log = log(small(3000, segments));
            let (mut reader, _) = log.subscribe(None).unwrap();
            fill(&log, 1..1001);
            let (seen, missed) = drain(&mut reader);
            let [(1, last)] = *missed else { panic!("{missed:?}") };
            assert_eq!(seen, (last + 1..=1000).collect::<Vec<_>>());
            assert!(seen.len() > 10, "the ring and {segments} segments");
        }
    }

    #[test]
    fn a_fast_reader_beside_a_slow_one_misses_nothing_and_needs_no_journal() {
        let log = log(small(3000, 1));
        let (mut fast, _) = log.subscribe(None).unwrap();
        for at in 1..500 {
            fill(&log, at..at + 1);
            assert_eq!(drain(&mut fast), (vec![at], vec![]));
        }
        assert!(log.state.lock().journal.is_none());
        let (mut slow, _) = log.subscribe(None).unwrap();
        for at in 500..1000 {
            fill(&log, at..at + 1);
            assert_eq!(drain(&mut fast), (vec![at], vec![]));
        }
        assert_eq!(drain(&mut slow).0.last(), Some(&999));
    }

    #[test]
    fn without_a_file_for_the_journal_only_the_ring_is_kept() {
        for make in [None, Some(|| Err(io::ErrorKind::StorageFull.into()))] {
            let log = Arc::new(ChangeLog::new(small(3000, 9), make));
            let (mut reader, _) = log.subscribe(None).unwrap();
            fill(&log, 1..101);
            let (seen, missed) = drain(&mut reader);
            let [(1, last)] = *missed else { panic!("{missed:?}") };
            assert_eq!(seen, (last + 1..=100).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_cursor_leads_back_to_where_it_was_as_long_as_that_is_kept() {
        let log = log(small(3000, 100));
        let (mut reader, _) = log.subscribe(None).unwrap();
        fill(&log, 1..6);
        assert_eq!(reader.cursor().sequence, 0);
        assert_eq!(reader.read(3).len(), 3);
        let cursor = reader.cursor();
        assert_eq!(cursor.sequence, 3);
        drop(reader);
        fill(&log, 6..8);
        let (mut reader, start) = log.subscribe(Some(cursor)).unwrap();
        assert_eq!(start, Start::Exact);
        assert_eq!(drain(&mut reader), (vec![4, 5, 6, 7], vec![]));
        // Of the end, too.
        let end = reader.cursor();
        let (mut again, start) = log.subscribe(Some(end)).unwrap();
        assert_eq!((start, drain(&mut again).0.len()), (Start::Exact, 0));
        // But not of what is forgotten, of the future, or of another log.
        fill(&log, 8..200);
        drain(&mut reader);
        drain(&mut again);
        for odd in [
            cursor,
            Cursor { sequence: 200, ..end },
            Cursor { sequence: u64::MAX, ..end },
            Cursor { life: end.life ^ 1, ..reader.cursor() },
        ] {
            let (mut reader, start) = log.subscribe(Some(odd)).unwrap();
            assert_eq!(start, Start::Reset { since: odd.at });
            assert_eq!(drain(&mut reader).0.len(), 0);
        }
    }

    #[test]
    fn when_the_last_reader_has_been_gone_for_a_while_another_life_begins() {
        let log = log(Limits::default());
        let (mut reader, _) = log.subscribe(None).unwrap();
        fill(&log, 1..3);
        drain(&mut reader);
        let cursor = reader.cursor();
        drop(reader);
        assert!(log.is_alive());
        log.state.lock().left = Instant::now().checked_sub(LINGER).unwrap();
        fill(&log, 3..4);
        assert!(!log.is_watched() && !log.is_alive());
        let (mut reader, start) = log.subscribe(Some(cursor)).unwrap();
        assert_eq!(start, Start::Reset { since: cursor.at });
        fill(&log, 1..3);
        assert_eq!(drain(&mut reader).0, [1, 2]);
        assert_ne!(reader.cursor().life, cursor.life);
    }

    #[test]
    fn whoever_waits_is_woken_by_each_change() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let log = log(Limits::default());
        let (mut reader, _) = log.subscribe(None).unwrap();
        let writer = Arc::clone(&log);
        let writes = std::thread::spawn(move || {
            for at in 1..2001 {
                fill(&writer, at..at + 1);
            }
        });
        let mut seen = Vec::new();
        runtime.block_on(async {
            while seen.len() < 2000 {
                assert!(reader.changed().await);
                seen.extend(drain(&mut reader).0);
            }
        });
        writes.join().unwrap();
        assert_eq!(seen, (1..=2000).collect::<Vec<_>>());
        fill(&log, 2001..2002);
        log.close("gone");
        log.close("no matter");
        assert_eq!(reader.closed(), None);
        assert!(runtime.block_on(reader.changed()), "the last change is read all the same");
        drain(&mut reader);
        assert!(!runtime.block_on(reader.changed()));
    }

    #[test]
    fn what_nobody_knows_counts_as_missed() {
        let log = log(Limits::default());
        let (mut first, _) = log.subscribe(None).unwrap();
        fill(&log, 1..3);
        let (mut second, _) = log.subscribe(None).unwrap();
        log.lose();
        fill(&log, 4..6);
        assert_eq!(drain(&mut first), (vec![4, 5], vec![(1, 3)]));
        assert_eq!(drain(&mut second), (vec![4, 5], vec![(3, 3)]));
    }

    #[test]
    fn all_of_a_change_comes_back_from_the_journal() {
        let log = log(small(1, 100));
        let (mut reader, _) = log.subscribe(None).unwrap();
        let changes = [
            (What::Write, FileKind::Regular, 0, b"".to_vec()),
            (What::Rename { to: b"\xff/\n".to_vec() }, FileKind::Directory, u64::MAX, vec![0xfe]),
            (What::Exchange { with: vec![b'x'; 100] }, FileKind::Symlink, 1, vec![b'y'; 90]),
            (What::Remove, FileKind::Socket, 2, b"s".to_vec()),
            (What::Attributes, FileKind::BlockDevice, 3, b"b".to_vec()),
            (What::Create, FileKind::CharDevice, 4, b"c".to_vec()),
            (What::Create, FileKind::Fifo, 5, b"f".to_vec()),
        ];
        for (what, kind, ino, path) in changes.clone() {
            log.write(what, kind, ino, path);
        }
        let mut seen = Vec::new();
        loop {
            let items = reader.read(100);
            if items.is_empty() {
                break;
            }
            for item in items {
                let Item::Change(change) = item else { panic!("{item:?}") };
                let Change { what, kind, ino, path, at, .. } = Change::clone(&change);
                assert!(at.seconds > 1_700_000_000);
                seen.push((what, kind, ino, path));
            }
        }
        assert_eq!(seen, changes);
    }
}
