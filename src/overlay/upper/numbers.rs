//! Numbers of directories, where the file system below does not keep them.
//!
//! An overlayfs whose layers lie on different file systems (without `xino`) gives a directory a number that
//! lasts while it remembers it, and that may be a file's at the same time. There each directory carries a
//! number of ours, with the time of its birth: a copy made behind our back carries both along, and was born
//! later.

use std::hash::{BuildHasher, Hasher, RandomState};

use parking_lot::Mutex;
use rustix::fs::{FileType, Statx};

use super::super::attr::generation_of;
use super::super::error::Result;
use super::marks::{Mark, Namespace};
use super::open::Upper;
use crate::inode_ops::Address;
use crate::types::FileKind;

/// Tells our numbers from those of files, which no file system counts so far.
const OURS: u64 = 1 << 61;

const RECORD_LEN: usize = 16;

/// The inode numbers of an upper's file system, and of its layers.
#[derive(Debug)]
pub(in super::super) struct Numbers {
    marks: Namespace,
    /// Whether directories can be known again by theirs.
    are_kept: bool,
    /// Taken while a directory is given a number.
    giving: Mutex<()>,
}

impl Default for Numbers {
    fn default() -> Self {
        Self { marks: Namespace::Trusted, are_kept: true, giving: Mutex::new(()) }
    }
}

impl Numbers {
    /// Those of `upper`. The file system gives directories numbers that last if they are on the same device as files.
    pub(super) fn of(upper: &Upper) -> Result<Self> {
        let file = upper.draft_file(rustix::fs::OFlags::WRONLY, 0o600)?.0.address().stat()?;
        let dir = Address::at(&upper.work, std::ffi::OsStr::new(".")).stat()?;
        let device = |stat: &Statx| (stat.stx_dev_major, stat.stx_dev_minor);
        let are_kept = device(&file) == device(&dir);
        Ok(Self { marks: upper.marks, are_kept, ..Self::default() })
    }

    /// Those of the layer whose root is at `root`, which has a number of ours where directories have no others.
    pub(in super::super) fn of_layer(root: &Address, marks: Namespace) -> Result<Self> {
        let are_kept = marks.get(root, Mark::Number)?.is_none();
        Ok(Self { marks, are_kept, ..Self::default() })
    }

    /// What `inode` is, as `stat` has it, with a number by which it can be known again.
    pub(in super::super) fn identify(&self, inode: &Address, mut stat: Statx) -> Result<Statx> {
        let kind = FileKind::from_mode(stat.stx_mode.into());
        if !self.are_kept && kind == Some(FileKind::Directory) {
            stat.stx_ino = self.number_of(inode, generation_of(&stat))?;
        }
        Ok(stat)
    }

    /// Whether what is listed as of `file_type` is listed with the number that it is known by.
    pub(in super::super) fn are_listed(&self, file_type: FileType) -> bool {
        self.are_kept || file_type != FileType::Directory
    }

    fn number_of(&self, inode: &Address, born: u64) -> Result<u64> {
        let _one_at_a_time = self.giving.lock();
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
