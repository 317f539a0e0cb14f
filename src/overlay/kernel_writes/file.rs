//! One file that the kernel writes to by itself, and what can be seen of that.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::super::handles::Handle;
use crate::types::Timestamp;

/// The kernel's number of tmpfs.
const TMPFS: u32 = 0x0102_1994;

/// What has not changed for so long is taken for clean: unless it is told otherwise, the kernel writes a page half a
/// minute after it was stored to.
const LONG_CLEAN: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(super) struct File {
    pub(super) fd: Arc<OwnedFd>,
    pub(super) handles: Vec<Handle>,
    /// Whether one of the handles was for reading, too.
    pub(super) may_be_mapped: bool,
    /// Whether something was stored through a mapping.
    pub(super) is_mapped: bool,
    /// Whether it was, and it has not been seen to since that its pages are clean.
    pub(super) is_dirty: bool,
    /// `st_mtime` and size when it was last looked at.
    pub(super) seen: Option<(Timestamp, u64)>,
    /// Whether it is known to be written to, and that is yet to be told.
    pub(super) is_due: bool,
    /// Whether it is a mark that says so.
    pub(super) is_due_by_mark: bool,
    /// Whether its times have moved, and no mark has told why yet.
    pub(super) is_unexplained: bool,
    /// Whether what the mark will tell next is known already.
    pub(super) is_expected: bool,
    pub(super) mark: Option<i32>,
}

impl File {
    pub(super) fn new(fd: Arc<OwnedFd>) -> Self {
        Self {
            fd,
            handles: Vec::new(),
            may_be_mapped: false,
            is_mapped: false,
            is_dirty: false,
            seen: None,
            is_due: false,
            is_due_by_mark: false,
            is_unexplained: false,
            is_expected: false,
            mark: None,
        }
    }

    /// Whether it may have dirty pages that were stored to through a mapping.
    pub(super) fn may_be_dirty(&self) -> bool {
        let is_recent = |seconds: i64| {
            let age = super::now().seconds.saturating_sub(seconds);
            // The future of a clock that was set is recent, too.
            age <= LONG_CLEAN.as_secs().cast_signed()
        };
        let changed = rustix::fs::fstat(&self.fd).map(|stat| stat.st_ctime);
        self.may_be_mapped && changed.is_ok_and(is_recent) && moves_times(&self.fd)
    }

    /// Whether it looks otherwise than when it was last looked at, or at the beginning of the watch.
    pub(super) fn has_changed(&mut self, began: Timestamp) -> bool {
        let Ok(stat) = rustix::fs::fstat(&self.fd) else { return false };
        let mtime = Timestamp {
            seconds: stat.st_mtime,
            nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        };
        let now = (mtime, stat.st_size.cast_unsigned());
        match self.seen.replace(now) {
            Some(before) => before != now,
            None => mtime >= began,
        }
    }

    /// Looks at it. What has changed and no mark tells of until the next look was stored through a mapping: a
    /// write(2) moves the time first, and is told of when it is done.
    pub(super) fn look(&mut self, began: Timestamp) {
        let is_unexplained = std::mem::take(&mut self.is_unexplained);
        self.is_mapped |= self.may_be_mapped && is_unexplained;
        self.is_dirty |= self.is_mapped && is_unexplained;
        if self.has_changed(began) {
            self.is_unexplained = true;
            self.is_dirty |= self.is_mapped;
            self.is_due = true;
        }
    }

    /// The mark has told of a write(2).
    pub(super) fn wrote(&mut self, began: Timestamp) {
        let has_changed = self.has_changed(began);
        let is_news = has_changed || !self.is_expected;
        self.is_due |= is_news;
        self.is_due_by_mark |= is_news;
        self.is_dirty |= has_changed && self.is_mapped;
        (self.is_expected, self.is_unexplained) = (false, false);
    }

    /// Whether there is something to be told, which is taken for told then.
    pub(super) fn take_due(&mut self) -> bool {
        self.is_due_by_mark = false;
        std::mem::take(&mut self.is_due)
    }

    pub(super) fn is_removed(&self) -> bool {
        rustix::fs::fstat(&self.fd).is_ok_and(|stat| stat.st_nlink == 0)
    }
}

/// Whether a store through a mapping of `fd` moves the file's times.
pub(super) fn moves_times(fd: &OwnedFd) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|stat| stat.f_type as u32 != TMPFS)
}
