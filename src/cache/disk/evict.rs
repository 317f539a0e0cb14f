//! What is in the cache, and what has to leave it.
//!
//! In this order: versions of which there is a newer one; archives that nobody has open, those first that were not
//! used for longest; chunks of archives in use, those first that were written first. The last leave holes, and
//! whoever reads them fetches them again.

use std::collections::BinaryHeap;
use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::AtFlags;
use serde::Serialize;

use super::dir::CacheDir;
use super::entry::{About, ArchiveFiles, ENDINGS, open_file};
use super::index;
use super::traces::Traces;

/// Most bytes that are written before the room is measured again. Several processes can exceed the
/// limit by this much each, until the next of them looks.
const STEP: u64 = 16 << 20;

/// Most chunks that are evicted one by one at a time; bounds the memory that finding them takes.
const MOST_HOLES: u64 = 1 << 16;

/// One archive in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CachedArchive {
    /// The object's name, without query string. `None` if what is left of it does not say.
    pub name: Option<String>,
    /// The object's version.
    pub etag: Option<String>,
    /// The object's size in bytes.
    pub size: Option<u64>,
    /// Bytes of it on disk.
    pub bytes: u64,
    /// Seconds since the epoch when it was last used.
    pub last_used: u64,
    /// Whether a process has it open.
    pub in_use: bool,
    /// Time since the epoch when it was last used.
    #[serde(skip)]
    used: Duration,
    #[serde(skip)]
    stem: String,
}

/// What a cache holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Bytes of all archives on disk.
    pub bytes: u64,
    /// Most bytes that it may hold.
    pub limit: u64,
    /// Its archives, the one used last first.
    pub archives: Vec<CachedArchive>,
}

/// What clearing a cache did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cleared {
    /// Archives removed.
    pub archives: u64,
    /// Bytes freed.
    pub bytes: u64,
    /// Archives left because a process has them open.
    pub in_use: u64,
}

impl CacheDir {
    /// What is cached.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn usage(&self) -> io::Result<Usage> {
        let mut archives: Vec<_> =
            self.stems()?.into_iter().map(|stem| self.look_at(stem)).collect();
        archives.sort_by_key(|archive| std::cmp::Reverse(archive.used));
        let bytes = archives.iter().map(|archive| archive.bytes).sum();
        Ok(Usage { bytes, limit: self.limit(), archives })
    }

    /// Removes the archives that were not used for so long, except those in use, and traces.
    ///
    /// # Errors
    /// When the directory cannot be read, or a file not be removed.
    pub fn clear(&self, older_than: Duration) -> io::Result<Cleared> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let before = now.saturating_sub(older_than).as_secs();
        let mut cleared = Cleared::default();
        for archive in self.usage()?.archives {
            if archive.last_used > before {
                continue;
            }
            if self.remove(&archive.stem)? {
                cleared.archives += 1;
                cleared.bytes += archive.bytes;
            } else {
                cleared.in_use += 1;
            }
        }
        Traces::beside(self).remove(before)?;
        Ok(cleared)
    }

    /// Evicts what is needed so that something can be written, and says how many bytes may be until
    /// the next call; 0 if there is no room and none can be made.
    ///
    /// # Errors
    /// When the directory cannot be read, or what has to leave cannot be removed.
    pub(super) fn make_room(&self) -> io::Result<u64> {
        let step = STEP.min(self.limit() / 16);
        let usage = self.usage()?;
        let room = self.room(&usage)?;
        if room >= step {
            return Ok(step);
        }
        // Some more than is needed now, so that this does not happen for every step.
        let mut excess = (usage.bytes + step.max(self.limit() / 10)).saturating_sub(self.limit());
        excess = excess.max(step.saturating_sub(self.free()?));
        for archive in removable(&usage.archives) {
            if excess == 0 {
                break;
            }
            if self.remove(&archive.stem)? {
                excess = excess.saturating_sub(archive.bytes);
            }
        }
        if excess > 0 {
            self.punch(&usage.archives, excess)?;
        }
        Ok(self.room(&self.usage()?)?.min(step))
    }

    fn room(&self, usage: &Usage) -> io::Result<u64> {
        Ok(self.limit().saturating_sub(usage.bytes).min(self.free()?))
    }

    fn look_at(&self, stem: String) -> CachedArchive {
        let stat = |ending| open_file(self.dir(), &stem, ending, false)?.metadata();
        let bytes =
            ENDINGS.iter().filter_map(|ending| Some(stat(ending).ok()?.blocks() * 512)).sum();
        let lock = open_file(self.dir(), &stem, "about", false).ok();
        let about = lock.as_ref().and_then(About::read);
        let used = lock.as_ref().and_then(|lock| lock.metadata().ok()?.modified().ok());
        let used = used.and_then(|used| used.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        let in_use = lock.as_ref().is_some_and(is_locked);
        let (name, etag, size) = match about {
            Some(about) => (Some(about.name), Some(about.etag), Some(about.size)),
            None => (None, None, None),
        };
        CachedArchive { name, etag, size, bytes, last_used: used.as_secs(), in_use, used, stem }
    }

    /// Removes an archive, unless it is in use.
    fn remove(&self, stem: &str) -> io::Result<bool> {
        // Made if it is missing: what a killed process left is locked, too, before it goes.
        let lock = open_file(self.dir(), stem, "about", true)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        for ending in ENDINGS {
            let name = format!("{stem}.{ending}");
            match rustix::fs::unlinkat(self.dir().as_fd(), name, AtFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(true)
    }

    /// Takes the chunks that were written first out of archives in use, until `excess` bytes are
    /// free. Their readers find out, and fetch them again.
    fn punch(&self, archives: &[CachedArchive], excess: u64) -> io::Result<()> {
        let open = |archive: &CachedArchive| {
            let lock = open_file(self.dir(), &archive.stem, "about", false).ok()?;
            ArchiveFiles::open(self.dir(), &archive.stem, About::read(&lock)?.grid()?, false).ok()
        };
        let in_use = archives.iter().filter(|archive| archive.in_use);
        let in_use: Vec<ArchiveFiles> = in_use.filter_map(open).collect();
        let mut oldest = BinaryHeap::new();
        let mut bytes = 0;
        for (nth, files) in in_use.iter().enumerate() {
            files.for_each(|chunk, record| {
                let len = files.grid.len(&(chunk..chunk + 1));
                oldest.push((record.written(), nth, chunk, len));
                bytes += len;
                // The youngest goes back as soon as the rest is enough.
                while let Some((.., len)) = oldest.peek() {
                    if bytes - len < excess && oldest.len() as u64 <= MOST_HOLES {
                        break;
                    }
                    bytes -= len;
                    oldest.pop();
                }
            })?;
        }
        for (_, nth, chunk, _) in oldest {
            in_use.get(nth).map_or(Ok(()), |files| index::evict(files, chunk))?;
        }
        Ok(())
    }
}

/// The archives that can leave as a whole, in that order: those of which there is a newer version,
/// then those that were not used for the longest time.
fn removable(archives: &[CachedArchive]) -> Vec<&CachedArchive> {
    let place = |archive: &CachedArchive| archive.stem.split('-').next().map(str::to_owned);
    let mut removable: Vec<_> = archives
        .iter()
        .enumerate()
        .filter(|(_, archive)| !archive.in_use)
        .map(|(nth, archive)| {
            // The list begins with what was used last.
            let mut newer = archives.iter().take(nth);
            (!newer.any(|newer| place(newer) == place(archive)), archive)
        })
        .collect();
    removable.sort_by_key(|(is_newest, archive)| (*is_newest, archive.used));
    removable.into_iter().map(|(_, archive)| archive).collect()
}

/// Whether another process, or another blob of this one, holds the lock.
fn is_locked(lock: &File) -> bool {
    // The lock, if it was free, goes with the descriptor.
    matches!(lock.try_lock(), Err(TryLockError::WouldBlock))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_versions_leave_first_and_then_what_was_not_used_for_long() {
        let archive = |stem: &str, last_used, in_use| CachedArchive {
            name: None,
            etag: None,
            size: None,
            bytes: 1,
            last_used,
            in_use,
            used: Duration::from_secs(last_used),
            stem: stem.into(),
        };
        let archives = [
            archive("a-2", 90, true),
            archive("b-1", 80, false),
            archive("a-1", 70, false),
            archive("c-1", 60, true),
            archive("d-1", 50, false),
            archive("e-1", 40, false),
        ];
        let order: Vec<&str> = removable(&archives).iter().map(|it| it.stem.as_str()).collect();
        assert_eq!(order, ["a-1", "e-1", "d-1", "b-1"]);
    }
}
