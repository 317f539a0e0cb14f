//! Readahead: recognizes sequential readers, and says what to fetch ahead of them.
//!
//! The kernel's own requests overtake each other. While such a reader was taken for several, each got a small
//! window: 2 GiB took 7.2 s, and 4.6 s once it was followed. A window ends where a chunk does: one that ended within a
//! chunk took 4.8 s where 3.5 were possible (`docs/BENCHMARKING.md`, "Where the time goes").

use std::ops::Range;
use std::slice;

use super::policy::{Here, Policy, Read, Wanted, Wish, most_ahead};
use crate::cache::grid::{Grid, LONGEST_REQUEST};

/// Largest window in bytes: 16 requests on their way, which at 20 ms and 100 MB/s a connection make
/// 550 MB/s.
const LARGEST_WINDOW: u64 = 16 << 20;

/// Readers followed at once. More would only divide the budget into windows too small to help.
const STREAMS: usize = 8;

/// First window, in bytes: two blocks of the usual size.
const SMALLEST: u64 = 256 << 10;

/// A reader may skip this far and still be sequential: a block that is in another cache, the
/// alignment of the next file.
pub(in crate::cache) const SKIP: u64 = 128 << 10;

/// A reader may come back this far. The kernel reads ahead with several requests at once, and
/// they arrive in any order.
const BACK: u64 = 1 << 20;

/// One sequential reader.
#[derive(Clone, Copy, Debug)]
struct Stream {
    /// Where it was first seen.
    began: u64,
    /// End of the furthest byte it read.
    position: u64,
    /// End of what was fetched for it in advance.
    ahead: u64,
    /// How far ahead it deserves; 0 until it proved to be sequential.
    window: u64,
}

/// The readers of one blob, the most recent first.
#[derive(Debug)]
pub(super) struct Sequential {
    streams: Vec<Stream>,
    largest: u64,
    request: u64,
    chunk: u64,
    size: u64,
}

impl Sequential {
    /// For a blob that is read through a memory of `budget` bytes.
    pub(super) fn new(grid: Grid, budget: u64) -> Self {
        let largest = LARGEST_WINDOW.min(most_ahead(budget));
        Self::with(largest, LONGEST_REQUEST, grid.chunk, grid.size)
    }

    /// For a blob of `size` bytes that is fetched in chunks of `chunk`. No window exceeds `largest`, and a
    /// large one is kept full by asking for multiples of `request` bytes.
    fn with(largest: u64, request: u64, chunk: u64, size: u64) -> Self {
        let largest = if largest > request { largest - largest % request } else { largest };
        Self { streams: Vec::with_capacity(STREAMS), largest, request, chunk, size }
    }

    /// Notes a read and returns what to fetch ahead, at most `allowed` bytes. That ends where a chunk does:
    /// one that counts as fetched and is not would hold its reader up for a round trip. A stream begins
    /// with a `missed` read, and proves itself by a second one: reads of what is in memory or on its way
    /// already say nothing about what comes next from elsewhere.
    fn access(&mut self, read: &Range<u64>, missed: bool, allowed: u64) -> Option<Range<u64>> {
        // What was fetched for a stream is read by it: of several requests of the kernel, the last
        // can come first.
        let near = |stream: &Stream| {
            read.start <= stream.position.saturating_add(SKIP).max(stream.ahead)
                && read.start.saturating_add(BACK) >= stream.position
        };
        let Some(found) = self.streams.iter().position(near) else {
            if missed {
                self.streams.truncate(STREAMS - 1);
                let stream = Stream { began: read.start, position: read.end, ahead: 0, window: 0 };
                self.streams.insert(0, stream);
            }
            return None;
        };
        let mut stream = self.streams.remove(found);
        let advanced = read.end > stream.position && (missed || stream.window > 0);
        stream.position = stream.position.max(read.end);
        let start = stream.ahead.max(stream.position);
        let mut fetch = None;
        // A small window is refilled when half of it is read, so that the answer comes before it
        // is needed; a large one with every request's worth, so that as many as it holds are on
        // their way all the time.
        let refill = (stream.window / 2).min(self.request);
        if advanced && start - stream.position <= stream.window - refill {
            // Nobody gets more ahead than it has read so far: where a file of some megabytes ends,
            // at most as much again was fetched for nothing.
            let deserved = (stream.position - stream.began).min(self.largest).max(SMALLEST);
            stream.window = (stream.window * 2).clamp(SMALLEST, deserved);
            let end = (stream.position + stream.window).min(start + allowed);
            let end = if end < self.size { end - end % self.chunk } else { self.size };
            let len = end.saturating_sub(start);
            // Whole requests, unless the blob ends; what is left would be one of a few bytes.
            let odd = if end < self.size && len > self.request { len % self.request } else { 0 };
            if len > 0 {
                stream.ahead = end - odd;
                fetch = Some(start..stream.ahead);
            }
        }
        self.streams.insert(0, stream);
        fetch
    }
}

impl Policy for Sequential {
    fn observe(&mut self, read: &Read<'_>, here: &Here<'_>) -> Vec<Wish> {
        let (spans, missed) = match read {
            Read::Hit { bytes, .. } => (slice::from_ref(bytes), false),
            Read::Miss { spans, missed, .. } => (*spans, *missed),
            Read::SmallFile(_) | Read::Announced(_) => return Vec::new(),
        };
        let mut room = here.room_ahead();
        let mut wishes = Vec::new();
        for span in spans {
            // All of it will be fetched: a stream counts on that.
            let Some(ahead) = self.access(span, missed, room) else { continue };
            let chunks = ahead.start / here.grid.chunk..ahead.end.div_ceil(here.grid.chunk);
            let chunks: Vec<u64> = chunks.filter(|chunk| here.is_absent(*chunk)).collect();
            room = room.saturating_sub(here.grid.len_of(&chunks));
            wishes.push(Wish { chunks, wanted: Wanted::Ahead });
        }
        wishes
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "one range is what is expected")]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const BLOCK: u64 = 128 << 10;
    const CHUNK: u64 = 64 << 10;

    fn read_on(sequential: &mut Sequential, blocks: Range<u64>) -> Vec<Range<u64>> {
        blocks
            .filter_map(|n| sequential.access(&(n * BLOCK..(n + 1) * BLOCK), true, u64::MAX / 4))
            .collect()
    }

    #[test]
    fn windows_grow_with_what_was_read_and_leave_no_hole() {
        let mut sequential = Sequential::with(4 * MIB, MIB, CHUNK, 1 << 40);
        let mut end = 0;
        let mut refills = Vec::new();
        for n in 0..200 {
            let position = (n + 1) * BLOCK;
            for fetched in read_on(&mut sequential, n..n + 1) {
                assert_eq!(fetched.start, if end == 0 { position } else { end });
                end = fetched.end;
                refills.push(end - position);
                assert!(end - position <= position.min(4 * MIB), "{refills:?}");
            }
        }
        assert_eq!(refills[..3], [256 << 10, 384 << 10, 640 << 10]);
        assert!(refills.is_sorted_by(|a, b| *b >= (*a).min(3 * MIB)), "{refills:?}");
        assert!(end - 200 * BLOCK >= 3 * MIB, "a full window in the end");
    }

    #[test]
    fn a_seek_starts_over() {
        let mut sequential = Sequential::with(8 * MIB, MIB, CHUNK, 1 << 40);
        read_on(&mut sequential, 0..100);
        let far = 10_000;
        let fetched = read_on(&mut sequential, far..far + 2);
        assert_eq!(fetched, [(far + 2) * BLOCK..(far + 4) * BLOCK]);
    }

    #[test]
    fn random_reads_and_reads_from_memory_fetch_nothing() {
        let mut sequential = Sequential::with(8 * MIB, MIB, CHUNK, 1 << 40);
        for n in 0..100 {
            let start = (n * 7919 % 1009) * 16 * MIB;
            assert_eq!(sequential.access(&(start..start + 4096), true, MIB), None);
        }
        let mut sequential = Sequential::with(8 * MIB, MIB, CHUNK, 1 << 40);
        for n in 0..10 {
            assert_eq!(sequential.access(&(n * 4096..(n + 1) * 4096), false, MIB), None);
        }
    }

    #[test]
    fn readers_of_what_one_miss_brought_prove_nothing() {
        let mut sequential = Sequential::with(8 * MIB, MIB, CHUNK, 1 << 40);
        for n in 0..100 {
            assert_eq!(sequential.access(&(n * 100..(n + 1) * 100), n == 0, MIB), None);
        }
        assert!(sequential.access(&(10_000..20_000), true, MIB).is_some());
    }

    #[test]
    fn several_readers_are_told_apart() {
        let mut sequential = Sequential::with(8 * MIB, MIB, CHUNK, 1 << 40);
        let mut fetched = [0_u64; 4];
        for n in 0..50 {
            for (reader, fetched) in (0..).zip(&mut fetched) {
                let start = reader * 1000 * MIB + n * BLOCK;
                if let Some(range) = sequential.access(&(start..start + BLOCK), true, MIB) {
                    assert!(range.start > start && range.end - start < 16 * MIB);
                    *fetched += range.end - range.start;
                }
            }
        }
        assert!(fetched.iter().all(|bytes| *bytes > 47 * BLOCK), "{fetched:?}");
    }

    #[test]
    fn the_end_and_the_allowance_limit_a_window() {
        let mut sequential = Sequential::with(8 * MIB, MIB, CHUNK, 3 * BLOCK);
        assert_eq!(read_on(&mut sequential, 0..3), [2 * BLOCK..3 * BLOCK]);
        let mut sequential = Sequential::with(8 * MIB, MIB, 1, 1 << 40);
        sequential.access(&(0..10), true, 5);
        assert_eq!(sequential.access(&(10..20), true, 5), Some(20..25));
        assert_eq!(sequential.access(&(20..25), true, 0), None);
    }

    #[test]
    fn whatever_is_allowed_what_is_fetched_ends_with_a_chunk_and_goes_on_there() {
        let largest = 10 * MIB - 1;
        let mut sequential = Sequential::with(largest, MIB, CHUNK, 1 << 40);
        let mut fetched = Vec::new();
        for n in 0..2000_u64 {
            // Blocks of compressed data begin and end anywhere.
            let read = n * 77_777..(n + 1) * 77_777;
            let allowed = n * 48_271 % largest;
            if let Some(range) = sequential.access(&read, true, allowed) {
                assert!(range.end - range.start <= allowed, "{range:?} of {allowed}");
                assert_eq!(range.end % CHUNK, 0);
                let next = fetched.last().map_or(read.end, |last: &Range<u64>| last.end);
                assert_eq!(range.start, next.max(read.end));
                fetched.push(range);
            }
        }
        assert!(fetched.len() > 100);
    }
}
