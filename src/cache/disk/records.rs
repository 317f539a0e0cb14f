//! What an index file says: which chunks are in the data file, with what checksum, since when.
//!
//! One record a chunk, at the chunk's number times [`RECORD_LEN`]; a record of zeros, as every hole
//! has them, is a chunk that is not there. A record is written after its chunk and trusted for nothing:
//! whatever a crash, another process or a failing disk made of either, a chunk that is returned had
//! the checksum that its record says.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::SeekFrom;
use twox_hash::XxHash3_128;
use zerocopy::little_endian::{U64, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Size of a record in bytes.
pub(super) const RECORD_LEN: u64 = 24;

/// Records that are read at a time.
const BATCH: u64 = 2048;

/// One chunk's record.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Record {
    /// See [`checksum`]; never 0 where there is a chunk.
    sum: U128,
    /// Milliseconds since the epoch when the chunk was written.
    written: U64,
}

impl Record {
    /// For a chunk that is written now.
    pub(super) fn new(sum: u128) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let written = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        Self { sum: sum.into(), written: written.into() }
    }

    /// Whether it stands for a chunk.
    pub(super) fn is_present(&self) -> bool {
        self.sum.get() != 0
    }

    /// Whether a chunk of this checksum is the one it stands for.
    pub(super) fn fits(&self, sum: u128) -> bool {
        self.sum.get() == sum
    }

    /// Milliseconds since the epoch when the chunk was written.
    pub(super) fn written(&self) -> u64 {
        self.written.get()
    }
}

/// Checksum of a chunk, which fits at this place of this archive only. Never 0.
pub(super) fn checksum(seed: u64, chunk: u64, bytes: &[u8]) -> u128 {
    // The odd factor spreads the numbers of chunks over all bits.
    let seed = seed ^ chunk.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    XxHash3_128::oneshot_with_seed(seed, bytes).max(1)
}

/// Reads the records of some chunks, at most [`BATCH`]; those past the end of the file are absent.
pub(super) fn read(index: &File, chunks: std::ops::Range<u64>) -> io::Result<Vec<Record>> {
    let count = chunks.end.saturating_sub(chunks.start).min(BATCH);
    let mut records = vec![Record::new_zeroed(); usize::try_from(count).unwrap_or(0)];
    let bytes = records.as_mut_slice().as_mut_bytes();
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match index.read_at(rest, chunks.start * RECORD_LEN + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(records)
}

/// Writes one record; without it, that the chunk is not there.
pub(super) fn write(index: &File, chunk: u64, record: Option<Record>) -> io::Result<()> {
    let record = record.unwrap_or_else(Record::new_zeroed);
    index.write_all_at(record.as_bytes(), chunk * RECORD_LEN)
}

/// Goes through the records of the first `count` chunks that are present. Holes cost nothing.
pub(super) fn for_each(
    index: &File,
    count: u64,
    mut each: impl FnMut(u64, Record),
) -> io::Result<()> {
    let mut next = 0;
    while next < count {
        let data = match rustix::fs::seek(index, SeekFrom::Data(next * RECORD_LEN)) {
            Ok(offset) => offset / RECORD_LEN,
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let first = data.max(next);
        let end = first.saturating_add(BATCH).min(count);
        if first >= end {
            return Ok(());
        }
        for (chunk, record) in (first..end).zip(read(index, first..end)?) {
            if record.is_present() {
                each(chunk, record);
            }
        }
        next = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_where_they_were_written_and_nowhere_else() {
        let index = tempfile::tempfile().unwrap();
        let count = 1_000_000;
        let written = [0, 1, 2047, 2048, 70_000, 999_999];
        for chunk in written {
            write(&index, chunk, Some(Record::new(u128::from(chunk) + 1))).unwrap();
        }
        write(&index, 2047, None).unwrap();
        // Past the end of the blob: garbage that nobody may take for a chunk.
        index.write_all_at(&[7; 1000], count * RECORD_LEN).unwrap();
        let mut found = Vec::new();
        for_each(&index, count, |chunk, record| {
            assert!(record.fits(u128::from(chunk) + 1) && record.written() > 0);
            found.push(chunk);
        })
        .unwrap();
        assert_eq!(found, [0, 1, 2048, 70_000, 999_999]);
    }

    #[test]
    fn a_file_that_ends_within_a_record_has_no_such_record() {
        let index = tempfile::tempfile().unwrap();
        write(&index, 3, Some(Record::new(1 << 100))).unwrap();
        index.set_len(3 * RECORD_LEN + 2).unwrap();
        let present: Vec<bool> =
            read(&index, 0..9).unwrap().iter().map(Record::is_present).collect();
        assert_eq!(present, [false; 9]);
    }

    #[test]
    fn a_checksum_tells_places_and_archives_apart() {
        let sums = [(1, 1), (1, 2), (2, 1), (2, 2)].map(|(seed, n)| checksum(seed, n, b"chunk"));
        for (nth, sum) in sums.iter().enumerate() {
            assert!(!sums[..nth].contains(sum));
        }
    }
}
