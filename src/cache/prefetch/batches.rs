//! What is brought to the disk without a read: everything, some bytes, or what an earlier mount read.

use super::trace::Trace;
use crate::cache::grid::Grid;
use crate::types::ByteRange;

/// How many chunks are looked at together, in order of their place: 8 MiB at 64 KiB. A larger batch of a
/// trace makes longer requests, a smaller one keeps closer to the order of use.
const BATCH: u64 = 128;

/// What to bring.
#[derive(Clone, Debug)]
pub enum Warm {
    /// Everything.
    All,
    /// These bytes, in any order.
    Ranges(Vec<ByteRange>),
    /// What a trace has, in its order.
    Trace(Trace),
}

/// Chunks to look at together, sorted.
pub(in crate::cache) type Batches = Box<dyn Iterator<Item = Vec<u64>> + Send>;

impl Warm {
    /// The chunks to look at, and how many bytes they have. A trace has to be of this blob.
    pub(in crate::cache) fn batches(&self, grid: Grid) -> (u64, Batches) {
        let chunks: Vec<u64> = match self {
            Self::All => {
                let count = grid.count();
                let batch = move |start| (start..count.min(start + BATCH)).collect();
                return (grid.size, Box::new((0..count).step_by(BATCH as usize).map(batch)));
            }
            Self::Ranges(ranges) => {
                let within = ranges.iter().filter(|range| range.end().0 <= grid.size);
                let mut chunks: Vec<u64> = within.flat_map(|range| grid.chunks(*range)).collect();
                chunks.sort_unstable();
                chunks.dedup();
                chunks
            }
            Self::Trace(trace) => trace.in_order().collect(),
        };
        let sorted = |batch: &[u64]| {
            let mut batch = batch.to_vec();
            batch.sort_unstable();
            batch
        };
        let batches: Vec<_> = chunks.chunks(BATCH as usize).map(sorted).collect();
        (grid.len_of(&chunks), Box::new(batches.into_iter()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ArchiveOffset;

    const GRID: Grid = Grid { chunk: 10, size: 2565 };

    fn batches(warm: &Warm) -> (u64, Vec<Vec<u64>>) {
        let (bytes, batches) = warm.batches(GRID);
        (bytes, batches.collect())
    }

    #[test]
    fn everything_comes_from_the_front() {
        let all: Vec<Vec<u64>> =
            vec![(0..128).collect(), (128..256).collect(), (256..257).collect()];
        assert_eq!(batches(&Warm::All), (2565, all));
    }

    #[test]
    fn chunks_of_ranges_come_once_each_and_none_that_the_blob_has_not() {
        let ranges = [(2560, 5), (0, 11), (5, 5), (2560, 6)]
            .map(|(start, len)| ByteRange::new(ArchiveOffset(start), len).unwrap());
        assert_eq!(batches(&Warm::Ranges(ranges.to_vec())), (25, vec![vec![0, 1, 256]]));
        assert_eq!(batches(&Warm::Ranges(Vec::new())), (0, vec![]));
    }

    #[test]
    fn a_trace_keeps_its_order_but_for_that_within_a_batch() {
        let (etag, runs) = ("\"v\"".into(), vec![(100, 127), (3, 1), (250, 7), (0, 1)]);
        let trace = Trace { etag, size: 2565, offset: 0, chunk: 10, runs };
        let first = [3].into_iter().chain(100..227).collect();
        let second = [0].into_iter().chain(250..257).collect();
        assert_eq!(batches(&Warm::Trace(trace)), (1355, vec![first, second]));
    }
}
