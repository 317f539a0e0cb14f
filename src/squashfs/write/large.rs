//! Reads files of more than a block, block by block, without reading their holes.

use std::hash::Hasher;

use twox_hash::XxHash3_64;

use super::source::{Source, Unread};

/// A block of a file.
pub(super) enum Block<'a> {
    /// Nothing but zeros: this many bytes.
    Zeros(usize),
    /// Its bytes.
    Data(&'a [u8]),
}

/// Reads the blocks of one file in order.
pub(super) struct BlockReader<'a> {
    source: &'a Source,
    size: u64,
    at: u64,
    /// No byte before this one is stored, from `at` on.
    data_at: u64,
    buffer: Vec<u8>,
}

impl<'a> BlockReader<'a> {
    /// For a file that has `size` bytes.
    pub(super) fn new(source: &'a Source, size: u64, block_size: u32) -> Self {
        Self { source, size, at: 0, data_at: 0, buffer: vec![0; block_size as usize] }
    }

    /// Whether all bytes were there. A file may turn out shorter than it says: one that is being
    /// written, or one whose size is only what its file system guesses.
    pub(super) fn is_complete(&self) -> bool {
        self.at == self.size
    }

    /// The next block; the last one may be short. `None` at the end, and where the file turns out
    /// to be shorter.
    pub(super) fn next(&mut self) -> Result<Option<Block<'_>>, Unread> {
        let len = (self.size - self.at).min(self.buffer.len() as u64) as usize;
        if len == 0 {
            return Ok(None);
        }
        let at = self.at;
        let end = at + len as u64;
        if self.data_at <= at {
            self.data_at = self.source.data_from(at, self.size)?;
        }
        if self.data_at >= end {
            self.at = end;
            return Ok(Some(Block::Zeros(len)));
        }
        let Some(buffer) = self.buffer.get_mut(..len) else { return Ok(None) };
        if self.source.read_full(buffer, at)? < len {
            return Ok(None);
        }
        self.at = end;
        Ok(Some(if is_zero(buffer) { Block::Zeros(len) } else { Block::Data(buffer) }))
    }
}

/// Hashes a large file block by block. Holes and stored zeros are the same.
pub(super) struct BlockHash(XxHash3_64);

impl BlockHash {
    pub(super) fn new() -> Self {
        Self(XxHash3_64::new())
    }

    pub(super) fn update(&mut self, block: &Block<'_>) {
        match block {
            Block::Zeros(_) => self.0.write(&[0]),
            Block::Data(bytes) => {
                self.0.write(&[1]);
                self.0.write(bytes);
            }
        }
    }

    pub(super) fn finish(&self) -> u64 {
        self.0.finish()
    }
}

pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<16>();
    chunks.iter().all(|&chunk| u128::from_ne_bytes(chunk) == 0) && rest.iter().all(|&b| b == 0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_shorter_than_it_says_is_not_complete() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 10_000]).unwrap();
        let source = Source::File(file.into());
        for (says, blocks, complete) in [
            (10_000, 3, true),
            (10_001, 2, false),
            (12_288, 2, false),
            (8192, 2, true),
            (0, 0, true),
        ] {
            let mut reader = BlockReader::new(&source, says, 4096);
            let mut read = 0;
            while reader.next().is_ok_and(|block| block.is_some()) {
                read += 1;
            }
            assert_eq!((read, reader.is_complete()), (blocks, complete), "{says} bytes");
        }
    }
}
