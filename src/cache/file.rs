//! Blobs that are already on this machine: a file, or a buffer.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::blob::{Blob, Error};
use crate::types::ByteRange;

/// A local file, or its tail from some offset on, read with `pread`. It keeps nothing: the
/// kernel's page cache is its memory, which is why [`Blob::get`] answers too, at the cost of one
/// system call and, where the page is not cached, of the disk.
#[derive(Debug)]
pub struct FileBlob {
    file: File,
    offset: u64,
    size: u64,
}

impl FileBlob {
    /// Opens `path`; byte 0 of the blob is byte `offset` of the file. An offset past the end of
    /// the file is an error, as is a file that cannot be opened.
    pub fn open(path: impl AsRef<Path>, offset: u64) -> std::io::Result<Self> {
        use std::io::{Seek, SeekFrom};
        let mut file = File::open(path)?;
        // Seeking, unlike `stat`, also tells the size of a block device.
        let end = file.seek(SeekFrom::End(0))?;
        let size = end.checked_sub(offset).ok_or_else(|| {
            std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                format!("offset {offset} is past the end of the file ({end} bytes)"),
            )
        })?;
        Ok(Self { file, offset, size })
    }

    /// What the system says of the file now.
    ///
    /// # Errors
    /// What fstat(2) says.
    pub fn metadata(&self) -> std::io::Result<std::fs::Metadata> {
        self.file.metadata()
    }

    fn pread(&self, range: ByteRange) -> Result<Bytes, Error> {
        let past_end = || Error::PastEnd { range, size: self.size };
        if range.end().0 > self.size {
            return Err(past_end());
        }
        let len = usize::try_from(range.len()).map_err(|_| past_end())?;
        let mut bytes = vec![0; len];
        self.file
            .read_exact_at(&mut bytes, self.offset + range.start().0)
            .map_err(|error| Error::Io(Arc::new(error)))?;
        Ok(Bytes::from(bytes))
    }
}

impl Blob for FileBlob {
    fn size(&self) -> u64 {
        self.size
    }

    fn get(&self, range: ByteRange) -> Option<Bytes> {
        self.pread(range).ok()
    }

    fn fetch(&self, ranges: &[ByteRange]) -> Result<Vec<Bytes>, Error> {
        ranges.iter().map(|&range| self.pread(range)).collect()
    }

    fn prefetch(&self, _: ByteRange) {}
}

/// A buffer.
#[derive(Clone, Debug)]
pub struct MemoryBlob(pub Bytes);

impl MemoryBlob {
    fn slice(&self, range: ByteRange) -> Result<Bytes, Error> {
        let size = self.0.len();
        match (usize::try_from(range.start().0), usize::try_from(range.end().0)) {
            (Ok(start), Ok(end)) if end <= size => Ok(self.0.slice(start..end)),
            _ => Err(Error::PastEnd { range, size: size as u64 }),
        }
    }
}

impl Blob for MemoryBlob {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn get(&self, range: ByteRange) -> Option<Bytes> {
        self.slice(range).ok()
    }

    fn fetch(&self, ranges: &[ByteRange]) -> Result<Vec<Bytes>, Error> {
        ranges.iter().map(|&range| self.slice(range)).collect()
    }

    fn prefetch(&self, _: ByteRange) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ArchiveOffset;

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::new(ArchiveOffset(start), len).unwrap()
    }

    #[test]
    fn a_file_and_a_buffer_answer_alike() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        std::fs::write(&path, b"..0123456789").unwrap();
        let file = FileBlob::open(&path, 2).unwrap();
        let memory = MemoryBlob(Bytes::from_static(b"0123456789"));
        for blob in [&file as &dyn Blob, &memory] {
            assert_eq!(blob.size(), 10);
            assert_eq!(blob.get(range(3, 4)).unwrap(), "3456");
            assert_eq!(blob.fetch(&[range(10, 0), range(0, 1)]).unwrap(), ["", "0"]);
            assert!(blob.get(range(8, 3)).is_none());
            assert!(matches!(blob.fetch(&[range(8, 3)]), Err(Error::PastEnd { size: 10, .. })));
        }
        assert!(FileBlob::open(&path, 13).is_err());
    }
}
