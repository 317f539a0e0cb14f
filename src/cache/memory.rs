//! Chunks held in memory, within a budget of bytes.
//!
//! Two lists, of what was read and of what is ahead: with one, a reader in sequence pushes out what was fetched
//! for it by what it has just read.

use bytes::Bytes;
use lru::LruCache;

/// A chunk that was fetched ahead, and that nobody has read so far.
struct Ahead {
    bytes: Bytes,
    /// How many bytes had come before it.
    since: u64,
}

/// Chunks by number. When the budget is exceeded, those that were read go first, the least recently
/// used before the others: what was fetched ahead is about to be read, and what was read is decoded. A
/// quarter of the budget is theirs even so, and what was fetched ahead and is not read while four
/// budgets pass by goes before them. Where a disk cache has them all, those that were read get no more
/// than that quarter: the disk's are a copy away. Room for chunks on their way can be taken from it in
/// advance.
pub(super) struct Memory {
    read: LruCache<u64, Bytes>,
    ahead: LruCache<u64, Ahead>,
    budget: u64,
    /// Most of it for chunks that were read.
    most_read: u64,
    /// Bytes in `read` and in `ahead`.
    used: u64,
    unused: u64,
    /// Taken for chunks on their way.
    reserved: u64,
    /// Bytes that ever came.
    came: u64,
    /// Fetched ahead, and dropped before anybody read it.
    wasted: u64,
}

impl Memory {
    /// `on_disk` says whether chunks are on disk besides.
    pub(super) fn new(budget: u64, on_disk: bool) -> Self {
        Self {
            read: LruCache::unbounded(),
            ahead: LruCache::unbounded(),
            budget,
            most_read: if on_disk { budget / 4 } else { budget },
            used: 0,
            unused: 0,
            reserved: 0,
            came: 0,
            wasted: 0,
        }
    }

    /// A chunk for somebody who reads it. The flag says whether it was fetched ahead and this is
    /// its first use.
    pub(super) fn get(&mut self, chunk: u64) -> Option<(Bytes, bool)> {
        if let Some(bytes) = self.read.get(&chunk) {
            return Some((bytes.clone(), false));
        }
        let Ahead { bytes, .. } = self.ahead.pop(&chunk)?;
        self.unused -= bytes.len() as u64;
        self.used += bytes.len() as u64;
        self.read.put(chunk, bytes.clone());
        Some((bytes, true))
    }

    /// Whether a chunk is held; does not count as using it.
    pub(super) fn contains(&self, chunk: u64) -> bool {
        self.read.contains(&chunk) || self.ahead.contains(&chunk)
    }

    /// Takes room for `bytes` bytes that are on their way. They may exceed the budget alone: a
    /// reader who waits for them cannot be refused.
    pub(super) fn reserve(&mut self, bytes: u64) {
        self.reserved += bytes;
        self.shrink();
    }

    /// Gives back room taken by [`Memory::reserve`].
    pub(super) fn release(&mut self, bytes: u64) {
        self.reserved = self.reserved.saturating_sub(bytes);
    }

    /// Keeps a chunk, as long as there is room.
    pub(super) fn insert(&mut self, chunk: u64, bytes: Bytes, unused: bool) {
        let len = bytes.len() as u64;
        self.came += len;
        // Nobody enters a chunk twice, but if so, the later one counts.
        self.remove(chunk);
        if unused {
            self.unused += len;
            self.ahead.put(chunk, Ahead { bytes, since: self.came });
        } else {
            self.used += len;
            self.read.put(chunk, bytes);
        }
        self.shrink();
    }

    /// Drops a chunk.
    pub(super) fn remove(&mut self, chunk: u64) {
        if let Some(old) = self.read.pop(&chunk) {
            self.used -= old.len() as u64;
        } else if let Some(old) = self.ahead.pop(&chunk) {
            self.unused -= old.bytes.len() as u64;
        }
    }

    /// Bytes held and on their way.
    pub(super) fn total(&self) -> u64 {
        self.used + self.unused + self.reserved
    }

    /// Bytes on their way.
    pub(super) fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Bytes fetched ahead that wait for their reader.
    pub(super) fn unused(&self) -> u64 {
        self.unused
    }

    /// Bytes fetched ahead for nothing, ever.
    pub(super) fn wasted(&self) -> u64 {
        self.wasted
    }

    fn shrink(&mut self) {
        while self.used > self.most_read && self.drop_read() {}
        while self.total() > self.budget {
            let stale = self.came.saturating_sub(self.budget.saturating_mul(4));
            let is_stale = self.ahead.peek_lru().is_some_and(|(_, oldest)| oldest.since < stale);
            let ahead_first = is_stale || self.used <= self.budget / 4;
            let dropped = ahead_first && self.drop_ahead() || self.drop_read() || self.drop_ahead();
            if !dropped {
                break;
            }
        }
    }

    fn drop_read(&mut self) -> bool {
        let dropped = self.read.pop_lru();
        self.used -= dropped.as_ref().map_or(0, |(_, bytes)| bytes.len() as u64);
        dropped.is_some()
    }

    fn drop_ahead(&mut self) -> bool {
        let dropped = self.ahead.pop_lru();
        let len = dropped.as_ref().map_or(0, |(_, ahead)| ahead.bytes.len() as u64);
        self.unused -= len;
        self.wasted += len;
        dropped.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk() -> Bytes {
        Bytes::from_static(&[0; 10])
    }

    #[test]
    fn the_budget_counts_what_is_held_and_what_is_coming() {
        let mut memory = Memory::new(40, false);
        for n in 0..4 {
            memory.insert(n, chunk(), false);
        }
        assert_eq!(memory.total(), 40);
        memory.get(0);
        memory.reserve(15);
        assert_eq!(memory.total(), 35);
        let held: Vec<bool> = (0..4).map(|n| memory.contains(n)).collect();
        assert_eq!(held, [true, false, false, true], "the least recently used went");
        memory.release(15);
        memory.insert(9, chunk(), false);
        assert_eq!(memory.total(), 30);
        memory.reserve(1000);
        assert_eq!(memory.total(), 1000, "a reader who waits is served all the same");
    }

    #[test]
    fn chunks_fetched_ahead_are_used_once_or_wasted() {
        let mut memory = Memory::new(20, false);
        memory.insert(0, chunk(), true);
        memory.insert(1, chunk(), true);
        assert_eq!(memory.unused(), 20);
        assert_eq!(memory.get(0).map(|(_, first)| first), Some(true));
        assert_eq!(memory.get(0).map(|(_, first)| first), Some(false));
        memory.insert(2, chunk(), false);
        assert_eq!((memory.total(), memory.unused(), memory.wasted()), (20, 10, 0));
        memory.insert(2, chunk(), true);
        assert_eq!((memory.total(), memory.unused(), memory.wasted()), (20, 20, 0));
        memory.insert(3, chunk(), true);
        assert_eq!((memory.total(), memory.unused(), memory.wasted()), (20, 20, 10));
    }

    #[test]
    fn what_is_ahead_outlives_what_was_read_until_it_is_stale() {
        let mut memory = Memory::new(80, false);
        for n in 0..6 {
            memory.insert(n, chunk(), true);
        }
        for n in 100..127 {
            memory.insert(n, chunk(), false);
            let held = (0..6).filter(|n| memory.contains(*n)).count();
            assert_eq!(held, 6, "after {n}");
            assert_eq!(memory.total(), 80.min(60 + (n - 99) * 10));
        }
        for n in 127..140 {
            memory.insert(n, chunk(), false);
        }
        assert_eq!((memory.unused(), memory.wasted(), memory.total()), (0, 60, 80));
    }

    #[test]
    fn what_was_read_has_a_quarter_where_a_disk_has_it_too() {
        let mut memory = Memory::new(80, true);
        (0..4).for_each(|n| memory.insert(n, chunk(), false));
        assert_eq!(memory.total(), 20);
        (10..16).for_each(|n| memory.insert(n, chunk(), true));
        assert_eq!((memory.total(), memory.unused()), (80, 60));
        (10..16).for_each(|n| assert!(memory.get(n).is_some()));
        memory.insert(20, chunk(), true);
        assert_eq!((memory.total(), memory.unused()), (30, 10));
        assert!(memory.contains(14) && memory.contains(15));
    }

    #[test]
    fn a_quarter_is_left_to_what_was_read() {
        let mut memory = Memory::new(80, false);
        (0..8).for_each(|n| memory.insert(n, chunk(), false));
        (10..30).for_each(|n| memory.insert(n, chunk(), true));
        assert_eq!((memory.total(), memory.unused()), (80, 60));
        assert!(memory.contains(6) && memory.contains(7) && !memory.contains(5));
    }
}
