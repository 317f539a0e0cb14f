//! The end of an archive that is being written.

use bytes::Bytes;

use super::error::Error;
use super::metadata::TableWriter;
use super::options::{Progress, Sink};
use super::spool::Spool;

/// The end of the archive as it grows.
pub(super) struct Tail<'a> {
    sink: &'a mut dyn Sink,
    at: u64,
    progress: &'a Progress,
}

impl<'a> Tail<'a> {
    pub(super) fn new(sink: &'a mut dyn Sink, at: u64, progress: &'a Progress) -> Self {
        Self { sink, at, progress }
    }

    /// Where in the archive the next byte goes.
    pub(super) fn position(&self) -> u64 {
        self.at
    }

    pub(super) fn write_bytes(&mut self, bytes: Bytes) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        let len = bytes.len() as u64;
        self.sink.write(bytes).map_err(Error::Sink)?;
        self.at += len;
        self.progress.written(len);
        Ok(())
    }

    pub(super) fn write(&mut self, bytes: Vec<u8>) -> Result<(), Error> {
        self.write_bytes(bytes.into())
    }

    pub(super) fn write_spool(&mut self, spool: Spool) -> Result<(), Error> {
        spool.drain(|piece| self.write(piece))
    }

    /// Writes a table, and returns where its index starts.
    pub(super) fn write_table(&mut self, table: TableWriter) -> Result<u64, Error> {
        let (blocks, index) = table.finish(self.at)?;
        self.write_spool(blocks)?;
        let at = self.at;
        self.write(index)?;
        Ok(at)
    }
}
