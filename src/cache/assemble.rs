//! Assembles ranges of bytes from chunks, and cuts chunks out of an answer.

use std::ops::Range;

use bytes::Bytes;

use super::grid::Grid;
use crate::buffers;
use crate::types::ByteRange;

/// The bytes of one range, from chunks that come in ascending order.
pub(super) struct Assembly {
    range: ByteRange,
    whole: Bytes,
    parts: Vec<u8>,
}

impl Assembly {
    /// For the bytes of `range`.
    pub(super) fn new(range: ByteRange) -> Self {
        Self { range, whole: Bytes::new(), parts: Vec::new() }
    }

    /// Takes what a chunk has of the range: a slice if that is all, a copy if more must follow.
    pub(super) fn add(&mut self, grid: Grid, chunk: u64, bytes: &Bytes) {
        let overlap = grid.overlap(chunk, self.range);
        if overlap.is_empty() || overlap.end > bytes.len() {
            return;
        }
        let bytes = bytes.slice(overlap);
        if bytes.len() as u64 == self.range.len() {
            self.whole = bytes;
            return;
        }
        if self.parts.is_empty() {
            self.parts = buffers::take(usize::try_from(self.range.len()).unwrap_or(0));
        }
        self.parts.extend_from_slice(&bytes);
    }

    /// The bytes, once every chunk was added.
    pub(super) fn finish(self) -> Bytes {
        if self.parts.is_empty() { self.whole } else { buffers::share(self.parts) }
    }
}

/// A copy of bytes `at` of a body in pieces; `None` if it has not got all of them.
pub(super) fn copy_out(pieces: &[Bytes], at: Range<u64>) -> Option<Bytes> {
    let mut start = 0_u64;
    for piece in pieces {
        let end = start + piece.len() as u64;
        if (start..=end).contains(&at.start) && at.end <= end {
            let from = usize::try_from(at.start - start).ok()?;
            let to = usize::try_from(at.end - start).ok()?;
            return piece.get(from..to).map(Bytes::copy_from_slice);
        }
        start = end;
    }
    None
}
