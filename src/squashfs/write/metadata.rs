//! Metadata blocks: 8 KiB at a time, compressed as they fill.

use zerocopy::{Immutable, IntoBytes};

use super::super::format::{METADATA_LEN, METADATA_STORED};
use super::compress::Compressor;
use super::error::Error;
use super::spool::Spool;

/// Packs bytes into metadata blocks.
pub(super) struct MetaWriter {
    compressor: Compressor,
    /// What the current block holds so far: less than a block.
    block: Vec<u8>,
    stored: Spool,
}

/// A place in what a [`MetaWriter`] writes: where the metadata block starts, counted from the first
/// one, and the offset in it once decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) block: u64,
    pub(super) offset: u16,
}

impl Position {
    pub(super) fn packed(self) -> u64 {
        (self.block << 16) | u64::from(self.offset)
    }
}

impl MetaWriter {
    pub(super) fn new(compressor: Compressor) -> Self {
        Self { compressor, block: Vec::with_capacity(METADATA_LEN), stored: Spool::default() }
    }

    /// Where the next byte goes.
    pub(super) fn position(&self) -> Position {
        // Less than a block: it fits.
        Position { block: self.stored.len(), offset: self.block.len() as u16 }
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let room = METADATA_LEN - self.block.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.block.extend_from_slice(now);
            bytes = later;
            if self.block.len() == METADATA_LEN {
                self.flush()?;
            }
        }
        Ok(())
    }

    pub(super) fn write_struct<T: IntoBytes + Immutable>(
        &mut self,
        value: &T,
    ) -> Result<(), Error> {
        self.write(value.as_bytes())
    }

    /// The finished blocks.
    pub(super) fn finish(mut self) -> Result<Spool, Error> {
        if !self.block.is_empty() {
            self.flush()?;
        }
        Ok(self.stored)
    }

    fn flush(&mut self) -> Result<(), Error> {
        // At most 8192 bytes: the length fits beside the flag.
        match self.compressor.compress(&self.block)? {
            Some(compressed) => {
                self.stored.append(&(compressed.len() as u16).to_le_bytes())?;
                self.stored.append(compressed)?;
            }
            None => {
                self.stored.append(&(self.block.len() as u16 | METADATA_STORED).to_le_bytes())?;
                self.stored.append(&self.block)?;
            }
        }
        self.block.clear();
        Ok(())
    }
}

/// Writes a table that is found through an index of its blocks. Its entries' length divides that
/// of a block.
pub(super) struct TableWriter {
    entries: MetaWriter,
    starts: Vec<u64>,
}

impl TableWriter {
    pub(super) fn new(compressor: Compressor) -> Self {
        Self { entries: MetaWriter::new(compressor), starts: Vec::new() }
    }

    pub(super) fn push<T: IntoBytes + Immutable>(&mut self, entry: &T) -> Result<(), Error> {
        let position = self.entries.position();
        if position.offset == 0 {
            self.starts.push(position.block);
        }
        self.entries.write_struct(entry)
    }

    /// The blocks, and the index for when they lie at `at`.
    pub(super) fn finish(self, at: u64) -> Result<(Spool, Vec<u8>), Error> {
        let index = self.starts.iter().flat_map(|start| (at + start).to_le_bytes()).collect();
        Ok((self.entries.finish()?, index))
    }
}
