//! A growing run of bytes that stays in memory while it is short, and goes to an unnamed
//! temporary file beyond.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::error::Error;

/// Bytes kept in memory before they go to the file. Trees of some 50,000 files stay below it.
const MEMORY: usize = 6 << 20;

/// Appended to at its end, read anywhere.
#[derive(Default)]
pub(super) struct Spool {
    file: Option<File>,
    /// How many bytes are in the file; what follows them is in `memory`.
    spilled: u64,
    memory: Vec<u8>,
}

impl Spool {
    pub(super) fn len(&self) -> u64 {
        self.spilled + self.memory.len() as u64
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.memory.extend_from_slice(bytes);
        if self.memory.len() < MEMORY {
            return Ok(());
        }
        let spill = |file: &mut Option<File>, memory: &[u8]| {
            let file = match file {
                Some(file) => file,
                None => file.insert(tempfile::tempfile()?),
            };
            file.write_all(memory)
        };
        spill(&mut self.file, &self.memory).map_err(scratch)?;
        self.spilled += self.memory.len() as u64;
        self.memory.clear();
        Ok(())
    }

    /// Fills `out` with what lies from `at` on. Reading past the end is an error.
    pub(super) fn read_at(&self, at: u64, out: &mut [u8]) -> Result<(), Error> {
        let in_file = self.spilled.saturating_sub(at).min(out.len() as u64) as usize;
        let (from_file, from_memory) = out.split_at_mut(in_file);
        if let (Some(file), false) = (&self.file, from_file.is_empty()) {
            file.read_exact_at(from_file, at).map_err(scratch)?;
        }
        if from_memory.is_empty() {
            return Ok(());
        }
        let start = (at + in_file as u64 - self.spilled) as usize;
        let found = self.memory.get(start..).and_then(|rest| rest.get(..from_memory.len()));
        let found = found.ok_or_else(|| scratch(io::ErrorKind::UnexpectedEof.into()))?;
        from_memory.copy_from_slice(found);
        Ok(())
    }

    /// One struct from `at` on.
    pub(super) fn read<T: FromBytes + IntoBytes + Immutable>(&self, at: u64) -> Result<T, Error> {
        let mut value = T::new_zeroed();
        self.read_at(at, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Hands all bytes to `take`, in order and in pieces of at most 256 KiB.
    pub(super) fn drain(
        self,
        mut take: impl FnMut(Vec<u8>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        const PIECE: u64 = 256 << 10;
        let mut at = 0;
        while at < self.len() {
            let mut piece = vec![0; (self.len() - at).min(PIECE) as usize];
            self.read_at(at, &mut piece)?;
            at += piece.len() as u64;
            take(piece)?;
        }
        Ok(())
    }
}

/// Reads a spool from its start to its end, a struct or a string at a time.
pub(super) struct SpoolReader<'a> {
    spool: &'a Spool,
    at: u64,
    /// Bytes that lie from `at` on, read ahead.
    ahead: Vec<u8>,
    used: usize,
}

impl<'a> SpoolReader<'a> {
    pub(super) fn new(spool: &'a Spool) -> Self {
        Self { spool, at: 0, ahead: Vec::new(), used: 0 }
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at == self.spool.len()
    }

    pub(super) fn read_exact(&mut self, out: &mut [u8]) -> Result<(), Error> {
        const AHEAD: u64 = 64 << 10;
        if self.ahead.len() - self.used < out.len() {
            let left = self.spool.len() - self.at;
            self.ahead.resize(left.min(AHEAD.max(out.len() as u64)) as usize, 0);
            self.used = 0;
            self.spool.read_at(self.at, &mut self.ahead)?;
        }
        let found = self.ahead.get(self.used..).and_then(|rest| rest.get(..out.len()));
        let found = found.ok_or_else(|| scratch(io::ErrorKind::UnexpectedEof.into()))?;
        out.copy_from_slice(found);
        self.used += out.len();
        self.at += out.len() as u64;
        Ok(())
    }

    pub(super) fn read<T: FromBytes + IntoBytes + Immutable>(&mut self) -> Result<T, Error> {
        let mut value = T::new_zeroed();
        self.read_exact(value.as_mut_bytes())?;
        Ok(value)
    }

    pub(super) fn read_vec(&mut self, len: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; len];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn scratch(source: io::Error) -> Error {
    Error::Scratch { source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_on_both_sides_of_the_spill_are_read_back() {
        let mut spool = Spool::default();
        for number in 0..2_000_000u64 {
            spool.append(&number.to_le_bytes()).unwrap();
        }
        assert!(spool.file.is_some() && !spool.memory.is_empty(), "it has both sides");
        for number in [0, 1, spool.spilled / 8 - 1, spool.spilled / 8, 1_999_999] {
            assert_eq!(spool.read::<u64>(number * 8).unwrap(), number);
        }
        let mut across = [0; 16];
        spool.read_at(spool.spilled - 8, &mut across).unwrap();
        assert_eq!(across[8..], (spool.spilled / 8).to_le_bytes());
        assert!(spool.read::<u64>(spool.len() - 4).is_err());

        let mut reader = SpoolReader::new(&spool);
        for number in 0..2_000_000u64 {
            assert_eq!(reader.read::<u64>().unwrap(), number);
        }
        assert!(reader.is_at_end());
        let mut drained = 0;
        spool
            .drain(|piece| {
                drained += piece.len();
                Ok(())
            })
            .unwrap();
        assert_eq!(drained, 16_000_000);
    }
}
