//! The records on a copied-up inode that say which lower inode it came from.
//!
//! Two are kept. The kernel's, an `ovl_fh` file handle, is for kernel overlayfs and names the
//! inode by its number; it is also, in hexadecimal, the name of the inode's entry in the index.
//! Ours holds the place of the inode in the archive, or else the number that the copy of a layer's
//! inode keeps with its generation, and the upper inode it was written for: a
//! copy made behind our back (`cp -a` of the upper) carries the record along, and two files must
//! not end up with one number.

use crate::types::{Ino, InodeNumber, InodeRef};

/// `struct ovl_fb` (fs/overlayfs/overlayfs.h): version, magic, length, flags, type, uuid, handle.
/// Flags are 0: little-endian, of a lower inode.
const FH_VERSION: u8 = 0;
const FH_MAGIC: u8 = 0xfb;
const FH_LEN: usize = 29;
/// `FILEID_INO32_GEN`: the handle is a 32-bit inode number and a generation, always 0 in squashfs.
const FH_TYPE: u8 = 1;
/// Where the inode number lies; the uuid before it is 16 zeros, as squashfs has none.
const FH_NUMBER: usize = 21;

/// What a record holds.
const OF_ARCHIVE: u8 = 1;
const OF_NUMBER: u8 = 2;
/// How long the longest is.
const LONGEST: usize = 25;

/// The kernel's handle of lower inode `number`.
pub(in super::super) fn handle_of(number: InodeNumber) -> [u8; FH_LEN] {
    let mut handle = [0; FH_LEN];
    let head = [FH_VERSION, FH_MAGIC, FH_LEN as u8, 0, FH_TYPE];
    for (to, from) in handle.iter_mut().zip(head) {
        *to = from;
    }
    for (to, from) in handle.iter_mut().skip(FH_NUMBER).zip(number.0.to_le_bytes()) {
        *to = from;
    }
    handle
}

/// The name of lower inode `number` in the index.
pub(in super::super) fn index_name(number: InodeNumber) -> String {
    use std::fmt::Write as _;
    let mut name = String::with_capacity(2 * FH_LEN);
    for byte in handle_of(number) {
        // Writing to a String cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// The number in a name that [`index_name`] or the kernel made.
pub(in super::super) fn parse_index_name(name: &[u8]) -> Option<InodeNumber> {
    let digits = name.get(2 * FH_NUMBER..2 * FH_NUMBER + 8)?;
    let digits = std::str::from_utf8(digits).ok()?;
    let number = InodeNumber(u32::from_str_radix(digits, 16).ok()?.swap_bytes());
    (index_name(number).as_bytes() == name).then_some(number)
}

/// The number in a handle that [`handle_of`] or the kernel made.
pub(in super::super) fn parse_handle(handle: &[u8]) -> Option<InodeNumber> {
    let number = handle.get(FH_NUMBER..)?.first_chunk::<4>()?;
    let number = InodeNumber(u32::from_le_bytes(*number));
    (handle_of(number) == handle).then_some(number)
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Record {
    /// It was copied from this inode of the archive.
    Archive(InodeRef),
    /// It has this number, and this generation.
    Number(Ino, u64),
}

impl Record {
    /// As it is written for upper inode `st_ino`.
    pub(in super::super) fn to_bytes(self, st_ino: u64) -> Vec<u8> {
        let (version, value, generation) = match self {
            Self::Archive(lower) => (OF_ARCHIVE, lower.packed(), None),
            Self::Number(ino, generation) => (OF_NUMBER, ino.0, Some(generation)),
        };
        let mut record = Vec::with_capacity(LONGEST);
        record.push(version);
        record.extend_from_slice(&value.to_le_bytes());
        record.extend_from_slice(&st_ino.to_le_bytes());
        record.extend(generation.iter().flat_map(|generation| generation.to_le_bytes()));
        record
    }

    /// What a record says that was written for upper inode `st_ino`.
    pub(in super::super) fn parse(record: &[u8], st_ino: u64) -> Option<Self> {
        let (version, rest) = record.split_first()?;
        let (value, rest) = rest.split_first_chunk::<8>()?;
        let (of, rest) = rest.split_first_chunk::<8>()?;
        if u64::from_le_bytes(*of) != st_ino {
            return None;
        }
        let value = u64::from_le_bytes(*value);
        match (*version, <&[u8; 8]>::try_from(rest).ok()) {
            (OF_ARCHIVE, None) if rest.is_empty() => {
                Some(Self::Archive(InodeRef::from_packed(value)))
            }
            (OF_NUMBER, Some(generation)) => {
                Some(Self::Number(Ino(value), u64::from_le_bytes(*generation)))
            }
            _ => None,
        }
    }

    /// The inode of the archive, if it says one.
    pub(in super::super) fn archive(self) -> Option<InodeRef> {
        match self {
            Self::Archive(inode) => Some(inode),
            Self::Number(..) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_names_lead_back_and_others_do_not() {
        for number in [1, 0x0102_0304, u32::MAX] {
            let name = index_name(InodeNumber(number));
            assert_eq!(parse_index_name(name.as_bytes()), Some(InodeNumber(number)));
            let handle = handle_of(InodeNumber(number));
            assert_eq!(parse_handle(&handle), Some(InodeNumber(number)));
            assert_eq!(parse_handle(&handle[..FH_LEN - 1]), None);
        }
        let name = index_name(InodeNumber(7));
        for bad in ["", "#7", &name[1..], &name.replace("fb", "fa"), &name.to_uppercase()] {
            assert_eq!(parse_index_name(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_record_holds_only_for_the_inode_it_was_written_for() {
        let number = Record::Number(Ino(u64::MAX - 1), 1 << 40);
        for said in [Record::Archive(InodeRef::new(4096, 17)), number] {
            let record = said.to_bytes(99);
            assert_eq!(Record::parse(&record, 99), Some(said));
            assert_eq!(Record::parse(&record, 98), None);
            assert_eq!(Record::parse(&record[..record.len() - 1], 99), None);
            assert_eq!(Record::parse(&[&*record, b"x"].concat(), 99), None);
            assert_eq!(Record::parse(&[&[3], &record[1..]].concat(), 99), None);
        }
        assert_eq!(Record::parse(&[], 99), None);
    }
}
