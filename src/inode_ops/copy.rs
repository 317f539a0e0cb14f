//! Copying the data of files.

use std::os::fd::OwnedFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::{Result, call, set_size, stat_fd, write_all};

/// How much is copied with one call, in bytes: a server has others to answer meanwhile, on the same disk.
const PIECE: u64 = 8 << 20;

/// How much is read at a time where the kernel does not copy by itself, in bytes.
const BUFFER: usize = 256 << 10;

/// Makes the empty file `to` hold what `from` does, with its holes. Blocks are shared where the file system can.
pub(crate) fn copy_data(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let size = call("statx", label, || stat_fd(from))?.stx_size;
    let mut at = 0;
    while at < size {
        let Some((start, end)) = next_data(from, at, size)? else { break };
        copy_range(from, to, start, end)?;
        at = end;
    }
    set_size(to, size)
}

/// The next stretch of data at or behind `at`; none where a hole follows to the end.
fn next_data(from: &OwnedFd, at: u64, size: u64) -> Result<Option<(u64, u64)>> {
    // Nobody else uses the descriptor's own position.
    let seek = |to| rustix::fs::seek(from, to);
    let start = match seek(SeekFrom::Data(at)) {
        Err(Errno::NXIO) => return Ok(None),
        // A file system that knows no holes.
        Err(Errno::INVAL) => return Ok(Some((at, size))),
        found => call("lseek", label, || found)?,
    };
    let end = call("lseek", label, || seek(SeekFrom::Hole(start)))?;
    // It may grow meanwhile.
    Ok((start < size).then_some((start, end.min(size))))
}

fn copy_range(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64) -> Result<()> {
    let mut at = start;
    while at < end {
        let len = usize::try_from((end - at).min(PIECE)).unwrap_or(BUFFER);
        let (mut from_at, mut to_at) = (at, at);
        match rustix::fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), len) {
            // It has been cut off meanwhile.
            Ok(0) => return Ok(()),
            Ok(copied) => at += copied as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                return read_and_write(from, to, at, end);
            }
            Err(errno) => return call("copy_file_range", label, || Err(errno)),
        }
    }
    Ok(())
}

fn read_and_write(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut at = start;
    while at < end {
        let len = usize::try_from((end - at).min(BUFFER as u64)).unwrap_or(BUFFER);
        let space = buffer.get_mut(..len).unwrap_or_default();
        let read = call("pread", label, || rustix::io::pread(from, &mut *space, at))?;
        if read == 0 {
            return Ok(());
        }
        write_all(to, buffer.get(..read).unwrap_or_default(), at)?;
        at += read as u64;
    }
    Ok(())
}

fn label() -> String {
    "a file".to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_copy_holds_the_same_and_has_the_same_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (from_path, to_path) = (dir.path().join("from"), dir.path().join("to"));
        const MIB: u64 = 1 << 20;
        for (size, data) in [
            (0, &[][..]),
            (1, &[(0, 1)]),
            (PIECE - 1, &[(0, PIECE - 1)]),
            (PIECE, &[(0, PIECE)]),
            (PIECE + 1, &[(0, PIECE + 1)]),
            (64 * MIB, &[]),
            (64 * MIB, &[(MIB, 4096), (32 * MIB, 2 * MIB), (64 * MIB - 1, 1)]),
        ] {
            for copy in [copy_data as fn(&OwnedFd, &OwnedFd) -> Result<()>, by_reading] {
                let from = File::create_new(&from_path).unwrap();
                from.set_len(size).unwrap();
                for (at, len) in data {
                    let bytes: Vec<u8> = (0..*len).map(|n| (n % 251) as u8 + 1).collect();
                    from.write_all_at(&bytes, *at).unwrap();
                }
                let to = File::create_new(&to_path).unwrap();
                let [readable, to] = [File::open(&from_path).unwrap(), to].map(OwnedFd::from);
                copy(&readable, &to).unwrap();
                assert!(fs::read(&from_path).unwrap() == fs::read(&to_path).unwrap(), "{size}");
                let [from, to] = [&from_path, &to_path].map(|path| fs::metadata(path).unwrap());
                assert!(to.blocks() <= from.blocks() + 16, "{size}: {} blocks", to.blocks());
                for path in [&from_path, &to_path] {
                    fs::remove_file(path).unwrap();
                }
            }
        }
    }

    /// As where the kernel does not copy.
    fn by_reading(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
        let size = stat_fd(from).unwrap().stx_size;
        let mut at = 0;
        while let Some((start, end)) = next_data(from, at, size)? {
            read_and_write(from, to, start, end)?;
            at = end;
        }
        set_size(to, size)
    }
}
