//! The contents of a file from beginning to end, as somebody copies them.

use bytes::Bytes;

use super::Archive;
use super::error::Error;
use super::inode::Inode;
use crate::types::FileOffset;

/// Largest piece in bytes: eight blocks of the usual 128 KiB, enough for one request to the store to pay.
const PIECE: usize = 1 << 20;

impl Archive {
    /// The contents of a regular file in pieces, each with its place; holes are left out. What
    /// comes after an error is the same piece once more.
    pub fn pieces<'a>(
        &'a self,
        file: &'a Inode,
    ) -> impl Iterator<Item = Result<(FileOffset, Bytes), Error>> + 'a {
        let (mut at, mut end) = (FileOffset(0), FileOffset(0));
        let mut next = move || -> Result<Option<(FileOffset, Bytes)>, Error> {
            if at == end {
                let Some(data) = self.seek_data(file, at)? else { return Ok(None) };
                (at, end) = (data, self.seek_hole(file, data)?.unwrap_or(FileOffset(file.size)));
            }
            let len = usize::try_from(end.0 - at.0).unwrap_or(PIECE).min(PIECE);
            let piece = (at, self.read(file, at, len)?);
            at.0 += len as u64;
            Ok(Some(piece))
        };
        std::iter::from_fn(move || next().transpose())
    }
}
