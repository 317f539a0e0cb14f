//! Collects a body into allocations of the size the caller will keep.

use bytes::Bytes;

use crate::buffers;

/// A body cut into pieces. Frames of the network are copied once, into memory that is as large as
/// the piece: a cached piece must not keep a whole response alive.
pub(super) struct Pieces {
    done: Vec<Bytes>,
    current: Vec<u8>,
    piece: usize,
    left: usize,
}

impl Pieces {
    /// For a body of `len` bytes in pieces of `piece`.
    pub(super) fn new(len: usize, piece: usize) -> Self {
        Self { done: Vec::new(), current: Vec::new(), piece: piece.max(1), left: len }
    }

    /// Bytes still missing.
    pub(super) const fn left(&self) -> usize {
        self.left
    }

    /// Takes the next bytes of the body; what is beyond its length is dropped.
    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        while self.left > 0 && !bytes.is_empty() {
            if self.current.capacity() == 0 {
                self.current = buffers::take(self.piece.min(self.left));
            }
            let room = (self.piece - self.current.len()).min(self.left);
            let (taken, rest) = bytes.split_at(room.min(bytes.len()));
            self.current.extend_from_slice(taken);
            self.left -= taken.len();
            bytes = rest;
            if self.current.len() == self.piece || self.left == 0 {
                self.done.push(buffers::share(std::mem::take(&mut self.current)));
            }
        }
    }

    /// The pieces, once nothing is missing.
    pub(super) fn finish(self) -> Vec<Bytes> {
        debug_assert_eq!(self.left, 0, "a body is only finished when it is complete");
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cut_of_a_body_gives_the_same_pieces() {
        let body: Vec<u8> = (0..100).collect();
        for frame in [1, 3, 10, 64, 100, 200] {
            let mut pieces = Pieces::new(100, 30);
            for bytes in body.chunks(frame) {
                pieces.push(bytes);
            }
            pieces.push(b"beyond");
            let pieces = pieces.finish();
            assert_eq!(pieces.iter().map(Bytes::len).collect::<Vec<_>>(), [30, 30, 30, 10]);
            assert_eq!(pieces.concat(), body);
        }
    }
}
