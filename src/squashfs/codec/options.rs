//! The compressor's options, which may follow the superblock.

use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32};

use super::super::Error;
use super::super::format::{METADATA_HEADER_LEN, METADATA_LEN, METADATA_STORED, SUPERBLOCK_LEN};
use super::super::superblock::{Compressor, Superblock};
use crate::types::ArchiveOffset;

/// The kernel reads options into one page.
const PAGE: u64 = 4096;

/// Checks the options in `bytes` (none where the superblock says so; else their header and what
/// follows, of which eight bytes can matter) as the kernel does: gzip's, lzo's and zstd's it reads
/// without looking at them. Returns the dictionary size that bounds xz streams.
pub(super) fn check(superblock: &Superblock, bytes: Option<&[u8]>) -> Result<u32, Error> {
    let at = ArchiveOffset(SUPERBLOCK_LEN);
    let corrupt = |detail: String| Error::corrupt("compressor options", at, detail);
    let options = match bytes.map(U16::read_from_prefix) {
        None => None,
        Some(Err(_)) => return Err(corrupt("they are cut short".into())),
        Some(Ok((header, options))) => {
            let len = u64::from(header.get() & !METADATA_STORED);
            if header.get() & METADATA_STORED == 0 {
                return Err(corrupt("they are compressed".into()));
            }
            let end = SUPERBLOCK_LEN + METADATA_HEADER_LEN + len;
            if len == 0 || len > PAGE || end > superblock.bytes_used {
                return Err(corrupt(format!("they are {len} bytes long")));
            }
            Some(options.get(..len as usize).unwrap_or(options))
        }
    };
    let number = |position: usize| {
        options
            .and_then(|options| options.get(position * 4..))
            .and_then(|rest| U32::read_from_prefix(rest).ok())
            .map(|(number, _)| number.get())
    };
    let mut dictionary = superblock.block_size;
    match superblock.compressor {
        Compressor::Lz4 => match (number(0), number(1)) {
            (Some(1), Some(_)) => {}
            (Some(version), Some(_)) => {
                return Err(Error::Unsupported { what: format!("lz4 format {version}").into() });
            }
            _ => return Err(corrupt("lz4 needs eight bytes of them".into())),
        },
        Compressor::Xz if options.is_some() => match (number(0), number(1)) {
            (Some(size), Some(_)) if is_dictionary_size(size) => dictionary = size,
            (Some(size), Some(_)) => return Err(corrupt(format!("xz dictionary of {size} bytes"))),
            _ => return Err(corrupt("xz needs eight bytes of them".into())),
        },
        _ => {}
    }
    Ok(dictionary.max(METADATA_LEN as u32))
}

/// Whether `size` is 2^n or 2^n + 2^(n+1).
fn is_dictionary_size(size: u32) -> bool {
    size != 0 && matches!(size >> size.trailing_zeros(), 1 | 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xz_dictionaries_have_one_bit_or_two_neighbours() {
        for size in [8192, 12_288, 131_072, 98_304, 1, 3, 1 << 31, 3 << 30] {
            assert!(is_dictionary_size(size), "{size}");
        }
        for size in [0, 5, 8193, 131_072 + 32_768, u32::MAX] {
            assert!(!is_dictionary_size(size), "{size}");
        }
    }
}
