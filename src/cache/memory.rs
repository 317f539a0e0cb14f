//! Chunks held in memory, within a budget of bytes.

use bytes::Bytes;
use lru::LruCache;

/// A chunk, and whether it was fetched ahead and nobody has read it so far.
struct Held {
    bytes: Bytes,
    unused: bool,
}

/// Chunks by number. The least recently used go first when the budget is exceeded; room for
/// chunks on their way can be taken from it in advance.
pub(super) struct Memory {
    chunks: LruCache<u64, Held>,
    budget: u64,
    held: u64,
    /// Taken for chunks on their way.
    reserved: u64,
    /// Of `held`, fetched ahead and not read so far.
    unused: u64,
    /// Fetched ahead, and dropped before anybody read it.
    wasted: u64,
}

impl Memory {
    pub(super) fn new(budget: u64) -> Self {
        let chunks = LruCache::unbounded();
        Self { chunks, budget, held: 0, reserved: 0, unused: 0, wasted: 0 }
    }

    /// A chunk for somebody who reads it. The flag says whether it was fetched ahead and this is
    /// its first use.
    pub(super) fn get(&mut self, chunk: u64) -> Option<(Bytes, bool)> {
        let held = self.chunks.get_mut(&chunk)?;
        let first_use = std::mem::take(&mut held.unused);
        let bytes = held.bytes.clone();
        if first_use {
            self.unused -= bytes.len() as u64;
        }
        Some((bytes, first_use))
    }

    /// Whether a chunk is held; does not count as using it.
    pub(super) fn contains(&self, chunk: u64) -> bool {
        self.chunks.contains(&chunk)
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
        self.held += len;
        self.unused += if unused { len } else { 0 };
        if let Some(old) = self.chunks.put(chunk, Held { bytes, unused }) {
            self.forget(&old);
        }
        self.shrink();
    }

    /// Bytes held and on their way.
    pub(super) fn total(&self) -> u64 {
        self.held + self.reserved
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
        while self.total() > self.budget {
            let Some((_, dropped)) = self.chunks.pop_lru() else { break };
            self.forget(&dropped);
        }
    }

    fn forget(&mut self, dropped: &Held) {
        let len = dropped.bytes.len() as u64;
        self.held -= len;
        if dropped.unused {
            self.unused -= len;
            self.wasted += len;
        }
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
        let mut memory = Memory::new(40);
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
        let mut memory = Memory::new(20);
        memory.insert(0, chunk(), true);
        memory.insert(1, chunk(), true);
        assert_eq!(memory.unused(), 20);
        assert_eq!(memory.get(0).map(|(_, first)| first), Some(true));
        assert_eq!(memory.get(0).map(|(_, first)| first), Some(false));
        memory.insert(2, chunk(), false);
        assert_eq!((memory.unused(), memory.wasted()), (0, 10));
        memory.insert(2, chunk(), true);
        assert_eq!((memory.total(), memory.unused()), (20, 10));
    }
}
