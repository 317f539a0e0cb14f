//! Room that is kept for what makes room. To forget a checkpoint, or to roll back and keep nothing, something has to be
//! written first; where a file system is full, that would fail just when it is needed.
//!
//! ```text
//! WORK/stack.spare/a, b   each becomes a manifest, by a rename: nobody else can take that room
//!                  0 … 7  each is removed for what else is made: a directory, a note, attributes
//! ```
//!
//! A checkpoint takes more room than there was, and so none of this.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::inode_ops::{Directory, remove_tree};

/// The directory of it, in a work directory.
const SPARE: &str = "stack.spare";

/// What becomes manifests: one with a note, and the one that follows it.
const LARGE: [&str; 2] = ["a", "b"];

/// How many there are besides. A rollback makes a directory, with a block of its own and another of attributes, a note
/// and up to two files; and directories may grow by a block.
const SMALL: u32 = 8;

/// A block of most file systems, in bytes.
const BLOCK: u64 = 4096;

/// How much larger the next manifest may be than the last, in bytes: it names a layer and a checkpoint more.
const MORE: u64 = 2 * BLOCK;

/// Whether what is written is room that is there, or also what is kept for what makes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// What there is.
    Free,
    /// That, and what was kept.
    Kept,
}

/// What is kept in a work directory.
pub(super) struct Spare<'a> {
    pub(super) work: &'a Directory,
}

impl Spare<'_> {
    /// Makes what there is not, for a manifest of `len` bytes.
    ///
    /// # Errors
    /// What the disk says; what could be made is there.
    pub(super) fn fill(&self, len: u64) -> io::Result<()> {
        match rustix::fs::mkdirat(self.work, SPARE, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let dir = self.open()?;
        let large = (len + MORE).next_multiple_of(BLOCK);
        let small = (0..SMALL).map(|number| (number.to_string(), BLOCK));
        for (name, bytes) in LARGE.map(|name| (name.to_owned(), large)).into_iter().chain(small) {
            if let Err(error) = allocate(&dir, &name, bytes) {
                // Whoever takes one counts on its room.
                let _ = rustix::fs::unlinkat(&dir, &*name, AtFlags::empty());
                return Err(error);
            }
        }
        Ok(())
    }

    /// Makes `name` in `dir`, on the same file system, a file of `bytes`, out of what was kept.
    ///
    /// # Errors
    /// `ENOSPC` where there is nothing left, and what the disk says.
    pub(super) fn write(&self, dir: impl AsFd, name: &str, bytes: &[u8]) -> io::Result<File> {
        let mut last = io::Error::from(Errno::NOSPC);
        for large in LARGE {
            match self.try_write(large, &dir, name, bytes) {
                Ok(file) => return Ok(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn try_write(&self, large: &str, dir: impl AsFd, name: &str, bytes: &[u8]) -> io::Result<File> {
        let spare = self.open()?;
        self.with(Room::Kept, || Ok(rustix::fs::renameat(&spare, large, &dir, name)?))?;
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&dir, name, flags, Mode::empty())?);
        file.write_all(bytes)?;
        file.set_len(bytes.len() as u64)?;
        Ok(file)
    }

    /// Does `step`, again and again with a bit less of what is kept, while there is no room for it.
    ///
    /// # Errors
    /// What `step` says at last.
    pub(super) fn with<T>(
        &self,
        room: Room,
        mut step: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match step() {
                Err(error) if is_no_room(&error) && room == Room::Kept && self.give_up_one() => {}
                done => return done,
            }
        }
    }

    /// Removes all that is there for small things; `false` where there was nothing.
    pub(super) fn give_up(&self) -> bool {
        let mut any = false;
        while self.give_up_one() {
            any = true;
        }
        any
    }

    fn give_up_one(&self) -> bool {
        let Ok(dir) = self.open() else { return false };
        (0..SMALL).any(|it| rustix::fs::unlinkat(&dir, it.to_string(), AtFlags::empty()).is_ok())
    }

    /// Removes all of it.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn remove(&self) -> io::Result<()> {
        remove_tree(self.work, SPARE)
    }

    fn open(&self) -> io::Result<std::os::fd::OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(self.work, SPARE, flags, Mode::empty())?)
    }
}

/// Whether there is no room, or a quota leaves none.
pub(super) fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Makes `name` a file whose `bytes` have their room on disk.
fn allocate(dir: impl AsFd, name: &str, bytes: u64) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
    if rustix::fs::fstat(&file)?.st_size.cast_unsigned() >= bytes {
        return Ok(());
    }
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            io::copy(&mut io::Read::take(io::repeat(0), bytes), &mut File::from(file)).map(drop)
        }
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use super::*;

    fn no_room() -> io::Error {
        Errno::NOSPC.into()
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        let mut names: Vec<_> =
            entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn room_for_two_manifests_of_any_size_is_kept_and_grows_with_them() {
        let dir = tempfile::tempdir().unwrap();
        let work = Directory::open(dir.path()).unwrap();
        let (spare, at) = (Spare { work: &work }, dir.path().join(SPARE));
        for len in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 1 << 20] {
            spare.fill(len).unwrap();
            assert_eq!(names(&at).len(), LARGE.len() + SMALL as usize);
            for large in LARGE {
                let meta = at.join(large).metadata().unwrap();
                assert!(meta.len() > len && meta.blocks() * 512 >= meta.len(), "{len}: {meta:?}");
            }
        }
        let open = work.open_to_read().unwrap();
        for bytes in [&b"first"[..], b"", b"third"] {
            let done = spare.write(&open, "file", bytes);
            match bytes {
                b"third" => assert!(is_no_room(&done.unwrap_err())),
                _ => drop(done.unwrap()),
            }
        }
        assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"");
        spare.fill(0).unwrap();
        assert_eq!(names(&at).len(), LARGE.len() + SMALL as usize, "it is made again");
        spare.remove().unwrap();
        assert_eq!(names(dir.path()), ["file"]);
    }

    #[test]
    fn it_is_given_up_bit_by_bit_and_for_want_of_room_alone() {
        let dir = tempfile::tempdir().unwrap();
        let work = Directory::open(dir.path()).unwrap();
        let spare = Spare { work: &work };
        assert!(is_no_room(&spare.with(Room::Kept, || Err::<(), _>(no_room())).unwrap_err()));
        for (error, room, needed, done, tried) in [
            (Errno::NOSPC, Room::Kept, 3, true, 4),
            (Errno::DQUOT, Room::Kept, SMALL, true, SMALL + 1),
            (Errno::NOSPC, Room::Kept, SMALL + 1, false, SMALL + 1),
            (Errno::NOSPC, Room::Free, 1, false, 1),
            (Errno::IO, Room::Kept, 1, false, 1),
        ] {
            spare.fill(0).unwrap();
            let mut count = 0;
            let step = || {
                count += 1;
                if count > needed { Ok(()) } else { Err(error.into()) }
            };
            assert_eq!(spare.with(room, step).is_ok(), done, "{error} {room:?} {needed}");
            assert_eq!(count, tried, "{error} {room:?} {needed}");
        }
        spare.fill(0).unwrap();
        assert!(spare.give_up());
        assert!(!spare.give_up());
        assert_eq!(names(&dir.path().join(SPARE)), LARGE);
    }
}
