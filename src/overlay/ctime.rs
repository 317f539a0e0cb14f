//! The `st_ctime` of directories that nobody has changed.
//!
//! Copying a child up writes to the upper's directory: a name, marks, times that are put back. That moves
//! its `st_ctime`, which no call sets, and on a plain file system nothing would have. So what was shown
//! before is kept in a mark, and shown for as long as the directory has the `st_mtime` beside it: any
//! change of its names moves that. What changes the directory itself takes the mark away first.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::Statx;

use super::Overlay;
use super::attr::Attr;
use super::error::Result;
use super::upper::{Mark, Namespace};
use crate::inode_ops::Address;
use crate::types::{FileKind, Ino, Timestamp};

/// An `st_ctime` to show, and the `st_mtime` with which it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeptCtime {
    pub(super) ctime: Timestamp,
    pub(super) mtime: Timestamp,
}

impl KeptCtime {
    /// Of a directory as it is in the archive, which has one time for both.
    pub(super) fn of_lower(mtime: Timestamp) -> Self {
        Self { ctime: mtime, mtime }
    }

    pub(super) fn to_text(self) -> Vec<u8> {
        let Self { ctime, mtime } = self;
        format!("{}.{:09} {}.{:09}", ctime.seconds, ctime.nanos, mtime.seconds, mtime.nanos).into()
    }

    fn parse(mark: &[u8]) -> Option<Self> {
        let time = |text: &str| {
            let (seconds, nanos) = text.split_once('.')?;
            let nanos = nanos.parse().ok().filter(|nanos| *nanos < 1_000_000_000)?;
            Some(Timestamp { seconds: seconds.parse().ok()?, nanos })
        };
        let (ctime, mtime) = std::str::from_utf8(mark).ok()?.split_once(' ')?;
        Some(Self { ctime: time(ctime)?, mtime: time(mtime)? })
    }
}

/// Puts the kept `st_ctime` in the place of the file system's, while it holds.
pub(super) fn show_ctime(attr: &mut Attr, kept: Option<KeptCtime>) {
    if let Some(kept) = kept.filter(|kept| kept.mtime == attr.mtime) {
        attr.ctime = kept.ctime;
    }
}

impl Namespace {
    /// As [`Overlay::kept_ctime`].
    pub(super) fn kept_ctime(self, address: &Address) -> Result<Option<KeptCtime>> {
        let mark = self.get(address, Mark::Ctime)?;
        Ok(mark.as_deref().and_then(KeptCtime::parse))
    }
}

impl Overlay {
    /// What is kept for the directory at `address`, if anything is.
    pub(super) fn kept_ctime(&self, address: &Address) -> Result<Option<KeptCtime>> {
        self.marks.kept_ctime(address)
    }

    /// Marks a directory with what is to be shown of it. Where there is no room for that, what is shown
    /// moves once its node is forgotten.
    pub(super) fn mark_ctime(&self, directory: &Address, kept: KeptCtime) -> Result<()> {
        let marks = self.upper()?.marks;
        marks.try_set(directory, FileKind::Directory, Mark::Ctime, &kept.to_text()).map(drop)
    }

    /// Keeps what directory `ino` shows, before its upper half `dir`, which `stat` describes, is written
    /// to by what is no change of it. Called with `names` held exclusively.
    pub(super) fn keep_ctime(&self, ino: Ino, dir: &Arc<OwnedFd>, stat: &Statx) -> Result<()> {
        let time =
            |t: rustix::fs::StatxTimestamp| Timestamp { seconds: t.tv_sec, nanos: t.tv_nsec };
        let now = KeptCtime { ctime: time(stat.stx_ctime), mtime: time(stat.stx_mtime) };
        let known = self.nodes.upper(ino)?.and_then(|upper| upper.kept_ctime);
        if known.is_none_or(|known| known.mtime != now.mtime) {
            self.mark_ctime(&Address::at(dir, OsStr::new(".")), now)?;
            self.nodes.update(ino, |upper| upper.kept_ctime = Some(now));
        }
        Ok(())
    }

    /// Lets the file system's `st_ctime` of `inode` be seen, before it is changed. Called with `names`
    /// held.
    pub(super) fn let_ctime_move(
        &self,
        ino: Ino,
        inode: &Address,
        kept: &mut Option<KeptCtime>,
    ) -> Result<()> {
        if kept.take().is_some() {
            self.upper()?.marks.clear(inode, Mark::Ctime)?;
            self.nodes.update(ino, |upper| upper.kept_ctime = None);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_as_they_were_written_and_nonsense_is_not() {
        let time = |seconds, nanos| Timestamp { seconds, nanos };
        for (ctime, mtime) in [
            (time(0, 0), time(0, 1)),
            (time(-1, 999_999_999), time(i64::MIN, 5)),
            (time(i64::MAX, 120), time(1_700_000_000, 0)),
        ] {
            let kept = KeptCtime { ctime, mtime };
            assert_eq!(KeptCtime::parse(&kept.to_text()), Some(kept));
        }
        for nonsense in ["", " ", "1.5", "1.5 ", "1 2", "1.5 2.1000000000", "a.5 2.5", "1.-5 2.5"] {
            assert_eq!(KeptCtime::parse(nonsense.as_bytes()), None, "{nonsense}");
        }
    }
}
