//! Numbers of directories, where the file system below does not keep them.
//!
//! An overlayfs whose layers lie on different file systems (without `xino`) gives a directory a number that
//! lasts while it remembers it, and that may be a file's at the same time. There each directory carries a
//! number of ours, with the time of its birth: a copy made behind our back carries both along, and was born
//! later.

use std::hash::{BuildHasher, Hasher, RandomState};

use rustix::fs::{FileType, Statx};

use super::super::attr::generation_of;
use super::super::error::Result;
use super::marks::Mark;
use super::open::Upper;
use crate::inode_ops::Address;
use crate::types::FileKind;

/// Tells our numbers from those of files, which no file system counts so far.
const OURS: u64 = 1 << 61;

const RECORD_LEN: usize = 16;

impl Upper {
    /// Whether the file system gives directories numbers that last: then they are on the same device as
    /// files.
    pub(super) fn keeps_numbers(&self) -> Result<bool> {
        let file = self.draft_file(rustix::fs::OFlags::WRONLY, 0o600)?.0.address().stat()?;
        let dir = Address::at(&self.work, std::ffi::OsStr::new(".")).stat()?;
        let device = |stat: &Statx| (stat.stx_dev_major, stat.stx_dev_minor);
        Ok(device(&file) == device(&dir))
    }

    /// What `inode` is, as `stat` has it, with a number by which it can be known again.
    pub(in super::super) fn identify(&self, inode: &Address, mut stat: Statx) -> Result<Statx> {
        let kind = FileKind::from_mode(stat.stx_mode.into());
        if !self.keeps_numbers && kind == Some(FileKind::Directory) {
            stat.stx_ino = self.number_of(inode, generation_of(&stat))?;
        }
        Ok(stat)
    }

    /// Whether what is listed as of `file_type` is listed with the number that it is known by.
    pub(in super::super) fn numbers(&self, file_type: FileType) -> bool {
        self.keeps_numbers || file_type != FileType::Directory
    }

    fn number_of(&self, inode: &Address, born: u64) -> Result<u64> {
        let _one_at_a_time = self.numbering.lock();
        let record = self.marks.get(inode, Mark::Number)?;
        if let Some(number) = record.and_then(|record| parse(&record, born)) {
            return Ok(number);
        }
        // A fresh RandomState is seeded differently each time.
        let random = RandomState::new().build_hasher().finish();
        let number = random & (OURS - 1) | OURS;
        let record = [number.to_le_bytes(), born.to_le_bytes()].concat();
        self.marks.set(inode, Mark::Number, &record)?;
        Ok(number)
    }
}

/// The number in a record that was written for a directory born at `born`.
fn parse(record: &[u8], born: u64) -> Option<u64> {
    let (number, birth) = record.split_first_chunk::<8>()?;
    let number = u64::from_le_bytes(*number);
    let fits = record.len() == RECORD_LEN && birth == born.to_le_bytes();
    (fits && number & OURS != 0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_holds_only_for_the_directory_it_was_written_for() {
        let record = [(OURS | 7).to_le_bytes(), 99u64.to_le_bytes()].concat();
        assert_eq!(parse(&record, 99), Some(OURS | 7));
        assert_eq!(parse(&record, 98), None);
        assert_eq!(parse(&record[..15], 99), None);
        assert_eq!(parse(&[7u64.to_le_bytes(), 99u64.to_le_bytes()].concat(), 99), None);
    }
}
