//! Large buffers that are used again.
//!
//! Chunks and decoded blocks come and go by the thousand, between allocations that stay. Left to a
//! general allocator they tear its heap into pieces: a server that read a tree of 60,000 files for 64
//! readers at once had 90 to 100 MiB resident, for 60 MiB in use. mimalloc instead of this took several times
//! as much (`docs/decisions/allocator.md`).

use bytes::Bytes;
use parking_lot::Mutex;

/// Capacities that are kept, in bytes. What is larger or smaller is the allocator's.
const CLASSES: [usize; 5] = [64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20];

/// Bytes that are kept while nobody uses them.
const KEPT: usize = 4 << 20;

struct Free {
    buffers: [Vec<Vec<u8>>; CLASSES.len()],
    bytes: usize,
}

static FREE: Mutex<Free> = Mutex::new(Free { buffers: [const { Vec::new() }; 5], bytes: 0 });

/// An empty buffer with room for `capacity` bytes.
pub(crate) fn take(capacity: usize) -> Vec<u8> {
    let (first, least) = (CLASSES[0] / 2, CLASSES.iter().position(|class| *class >= capacity));
    let Some((index, class)) = least.and_then(|index| Some((index, *CLASSES.get(index)?))) else {
        return Vec::with_capacity(capacity);
    };
    if capacity <= first {
        return Vec::with_capacity(capacity);
    }
    let mut free = FREE.lock();
    let found = free.buffers.get_mut(index).and_then(Vec::pop);
    if let Some(buffer) = found {
        free.bytes -= class;
        return buffer;
    }
    drop(free);
    Vec::with_capacity(class)
}

/// Keeps a buffer for the next who needs one.
pub(crate) fn give_back(mut buffer: Vec<u8>) {
    let capacity = buffer.capacity();
    let Some(index) = CLASSES.iter().position(|class| *class == capacity) else { return };
    buffer.clear();
    let mut free = FREE.lock();
    if free.bytes + capacity <= KEPT
        && let Some(buffers) = free.buffers.get_mut(index)
    {
        buffers.push(buffer);
        free.bytes += capacity;
    }
}

/// Shares what is in a buffer, which is kept for the next when the last is done with it.
pub(crate) fn share(buffer: Vec<u8>) -> Bytes {
    match CLASSES.contains(&buffer.capacity()) {
        true => Bytes::from_owner(Lent(buffer)),
        false => Bytes::from(buffer),
    }
}

struct Lent(Vec<u8>);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_empty_with_room_enough() {
        for len in [0, 1, 8192, 33_000, 64 << 10, (64 << 10) + 1, 700_000, 1 << 20, 3 << 20] {
            for round in 0..3 {
                let mut buffer = take(len);
                assert!(buffer.is_empty() && buffer.capacity() >= len, "{len}, round {round}");
                buffer.resize(len, 7);
                let shared = share(buffer);
                assert_eq!(shared, vec![7; len]);
                assert_eq!(shared.slice(len / 2..), vec![7; len - len / 2]);
            }
        }
    }

    #[test]
    fn no_more_is_kept_than_the_limit() {
        let many: Vec<Bytes> = (0..100).map(|_| share(take(128 << 10))).collect();
        drop(many);
        let free = FREE.lock();
        let held: usize = free.buffers.iter().flatten().map(Vec::capacity).sum();
        assert_eq!(held, free.bytes);
        assert!(held <= KEPT);
    }
}
