//! How a blob is cut into chunks: which of them a read needs, and which requests bring the missing ones. Pure
//! arithmetic.

use std::ops::Range;

use crate::types::ByteRange;

/// Longest request for chunks in bytes. Longer reads become several that run in parallel: one
/// connection to S3 or R2 gives 50 to 100 MB/s, which a request of this size takes 10 to 20 ms
/// of, about as long as its first byte.
pub(super) const LONGEST_REQUEST: u64 = 1 << 20;

/// How a blob is cut into chunks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    /// Size of every chunk but the last, in bytes.
    pub(super) chunk: u64,
    /// Size of the blob in bytes.
    pub(super) size: u64,
}

impl Grid {
    /// How many chunks there are.
    pub(super) fn count(self) -> u64 {
        self.size.div_ceil(self.chunk)
    }

    /// Numbers of the chunks that hold a byte of `range`, which lies in the blob.
    pub(super) fn chunks(self, range: ByteRange) -> Range<u64> {
        if range.is_empty() {
            return 0..0;
        }
        range.start().0 / self.chunk..range.end().0.div_ceil(self.chunk)
    }

    /// Bytes of a run of chunks.
    pub(super) fn bytes(self, chunks: &Range<u64>) -> Range<u64> {
        let end = chunks.end.saturating_mul(self.chunk).min(self.size);
        (chunks.start * self.chunk).min(end)..end
    }

    /// Length of a run of chunks in bytes.
    pub(super) fn len(self, chunks: &Range<u64>) -> u64 {
        let bytes = self.bytes(chunks);
        bytes.end - bytes.start
    }

    /// Length of some chunks in bytes.
    pub(super) fn len_of<'a>(self, chunks: impl IntoIterator<Item = &'a u64>) -> u64 {
        chunks.into_iter().map(|chunk| self.len(&(*chunk..chunk + 1))).sum()
    }

    /// Chunks of the longest request.
    pub(super) fn longest(self) -> u64 {
        (LONGEST_REQUEST / self.chunk).max(1)
    }

    /// Where a chunk and a range overlap, counted from the chunk's start.
    pub(super) fn overlap(self, chunk: u64, range: ByteRange) -> Range<usize> {
        let bytes = self.bytes(&(chunk..chunk + 1));
        let within = |at: u64| {
            usize::try_from(at.clamp(bytes.start, bytes.end) - bytes.start).unwrap_or(usize::MAX)
        };
        within(range.start().0)..within(range.end().0)
    }
}

/// Coalesces missing chunks, which are sorted, into runs of at most `longest` chunks, each worth one
/// request. A single chunk between two missing ones is fetched along if `absent` says nobody has
/// it: at 64 KiB it takes less time on the wire than another request's headers and signature cost
/// both sides.
pub(super) fn runs(missing: &[u64], longest: u64, absent: impl Fn(u64) -> bool) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for &chunk in missing {
        match runs.last_mut() {
            Some(run) if chunk < run.end => {}
            Some(run)
                if chunk - run.start < longest
                    && (chunk == run.end || (chunk == run.end + 1 && absent(run.end))) =>
            {
                run.end = chunk + 1;
            }
            _ => runs.push(chunk..chunk + 1),
        }
    }
    runs
}

/// Joins ranges that are at most `gap` bytes apart.
pub(super) fn spans(ranges: &[ByteRange], gap: u64) -> Vec<Range<u64>> {
    let mut sorted: Vec<Range<u64>> = ranges
        .iter()
        .filter(|range| !range.is_empty())
        .map(|range| range.start().0..range.end().0)
        .collect();
    sorted.sort_unstable_by_key(|range| range.start);
    let mut spans: Vec<Range<u64>> = Vec::new();
    for range in sorted {
        match spans.last_mut() {
            Some(span) if range.start <= span.end.saturating_add(gap) => {
                span.end = span.end.max(range.end);
            }
            _ => spans.push(range),
        }
    }
    spans
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "one range is what is expected")]
mod tests {
    use super::*;
    use crate::types::ArchiveOffset;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::between(ArchiveOffset(start), ArchiveOffset(end)).unwrap()
    }

    #[test]
    fn chunks_cover_a_range_and_no_more() {
        let grid = Grid { chunk: 10, size: 95 };
        let table = [
            (range(0, 0), 0..0),
            (range(5, 5), 0..0),
            (range(0, 1), 0..1),
            (range(9, 10), 0..1),
            (range(9, 11), 0..2),
            (range(10, 20), 1..2),
            (range(0, 95), 0..10),
        ];
        for (range, expected) in table {
            assert_eq!(grid.chunks(range), expected, "{range:?}");
        }
        assert_eq!(grid.bytes(&(8..10)), 80..95);
        assert_eq!(grid.overlap(9, range(85, 93)), 0..3);
        assert_eq!(grid.overlap(8, range(85, 93)), 5..10);
    }

    #[test]
    fn misses_merge_over_one_absent_chunk_and_split_at_the_longest_run() {
        let nobody = |_| true;
        assert_eq!(runs(&[], 4, nobody), []);
        assert_eq!(runs(&[1, 2, 3], 4, nobody), [1..4]);
        assert_eq!(runs(&[1, 3], 4, nobody), [1..4]);
        assert_eq!(runs(&[1, 3], 4, |chunk| chunk != 2), [1..2, 3..4]);
        assert_eq!(runs(&[1, 4], 9, nobody), [1..2, 4..5]);
        assert_eq!(runs(&[0, 1, 2, 3, 4, 5], 4, nobody), [0..4, 4..6]);
        assert_eq!(runs(&[7, 7], 4, nobody), [7..8]);
    }

    #[test]
    fn ranges_join_over_a_gap() {
        let ranges = [range(50, 60), range(0, 10), range(5, 8), range(15, 20), range(30, 30)];
        assert_eq!(spans(&ranges, 5), [0..20, 50..60]);
        assert_eq!(spans(&ranges, 30), [0..60]);
        assert_eq!(spans(&[], 5), []);
    }
}
