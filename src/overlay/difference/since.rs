//! The difference from a moment, by the times of what is in the upper.
//!
//! No call sets an inode's `st_ctime`: what was written, renamed, linked or given other attributes has one since then.
//! A name that was removed leaves a whiteout, if the backup has it; else nothing but a younger directory, so
//! that is told. What is in a directory that was renamed keeps its times, and so all in it may be other than before:
//! that is told of each that may have been, which is one whose directory has changed as well. What
//! merges with a directory of the backup and was ever renamed has a redirect.
//!
//! Of a directory what counts is the time that it shows: the file system's own moves with each copy-up in it, which
//! counts only where it may have been renamed. Kernel overlayfs leaves the mark that keeps the time, so what that
//! changes of a directory alone, as its permissions, is not seen. To go by the file system's own was weighed: then
//! each edit of a file of the backup would tell of every directory above it.

use std::ops::ControlFlow;

use rustix::fs::{Statx, StatxFlags};

use super::super::Overlay;
use super::super::attr::from_upper;
use super::super::ctime::show_ctime;
use super::super::error::Result;
use super::super::index::Entry;
use super::Sink;
use super::entry::{DifferenceEntry, Status};
use super::guide::Guide;
use super::step::{Here, InUpper, Step, ctime_of};
use super::walk::Walk;
use crate::types::{FileKind, Timestamp};

/// Files are stamped by a clock of few ticks a second, a hundred at least, which is behind the one that is read.
const SLACK_NANOS: u32 = 20_000_000;

/// Tells what has changed since then at or below the names `below`.
pub(super) fn tell(
    overlay: &Overlay,
    since: Timestamp,
    below: &[Box<[u8]>],
    sink: &mut Sink<'_>,
) -> Result<()> {
    let since = before(since);
    let is_wanted = |entry: &Entry| {
        let _names = overlay.names.read();
        let upper = InUpper::indexed(overlay, entry)?;
        Ok(upper.is_some_and(|upper| has_changed(overlay, &upper, since)))
    };
    let guide = Guide::of(overlay, &is_wanted)?;
    let (looks_below_hidden, passes_over_new) = (false, false);
    let walk = Walk { overlay, guide: &guide, below, looks_below_hidden, passes_over_new };
    walk.run(&mut |step| {
        let entry = match &step.here {
            Here::Upper(upper) if upper.kind == FileKind::Directory => {
                directory(since, step, upper)?
            }
            Here::Upper(upper) if has_changed(overlay, upper, since) => {
                file(since, step, upper, &guide)
            }
            Here::Upper(_) => None,
            Here::Whiteout(ctime) => hidden(overlay, since, step, *ctime)?,
            Here::Nothing | Here::Lower(_) => None,
        };
        Ok(entry.map_or(ControlFlow::Continue(()), &mut *sink))
    })
}

/// The moment by [`SLACK_NANOS`] earlier.
fn before(since: Timestamp) -> Timestamp {
    match since.nanos.checked_sub(SLACK_NANOS) {
        Some(nanos) => Timestamp { nanos, ..since },
        None => Timestamp {
            seconds: since.seconds.saturating_sub(1),
            nanos: since.nanos.saturating_add(1_000_000_000 - SLACK_NANOS),
        },
    }
}

/// Whether a file has changed since then: also by what the kernel has stored without that its times have moved.
fn has_changed(overlay: &Overlay, upper: &InUpper<'_>, since: Timestamp) -> bool {
    let mtime = upper.stat.stx_mtime;
    let mtime = Timestamp { seconds: mtime.tv_sec, nanos: mtime.tv_nsec };
    // Of one in a layer that others were merged into, the file system's is of the copy.
    let kept = upper.state.kept_ctime.filter(|kept| kept.mtime == mtime);
    let ctime = kept.map_or(ctime_of(&upper.stat), |kept| kept.ctime);
    ctime >= since || overlay.kernel_writes.may_have_stored(upper.ino, ctime, since)
}

/// When an inode was born, if its file system knows.
fn born(stat: &Statx) -> Option<Timestamp> {
    let is_known = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
    let born = stat.stx_btime;
    is_known.then_some(Timestamp { seconds: born.tv_sec, nanos: born.tv_nsec })
}

fn file(
    since: Timestamp,
    step: &Step<'_, '_>,
    upper: &InUpper<'_>,
    guide: &Guide,
) -> Option<DifferenceEntry> {
    let is_metacopy = !upper.state.data.is_here();
    let is_own = upper.lower == step.child.map(|child| child.inode);
    let (status, from) = match upper.lower {
        Some(lower) if !is_own => match guide.source(lower, 0) {
            Some(from) => (Status::Renamed, Some(from)),
            None => (Status::Modified, None),
        },
        // Nothing else was ever here.
        Some(_) if is_metacopy && !upper.redirected => (Status::Attributes, Some(step.backup_path)),
        Some(_) => (Status::Modified, Some(step.backup_path)),
        None if born(&upper.stat).is_some_and(|born| born >= since) => (Status::Added, None),
        None => (Status::Modified, None),
    };
    Some(upper.entry(status, step.path, from))
}

fn directory(
    since: Timestamp,
    step: &Step<'_, '_>,
    upper: &InUpper<'_>,
) -> Result<Option<DifferenceEntry>> {
    if ctime_of(&upper.stat) < since {
        return Ok(None);
    }
    let mut attr = from_upper(upper.ino, 0, &upper.stat)?;
    show_ctime(&mut attr, upper.state.kept_ctime);
    let may_have_moved = step.above.is_some_and(|above| above >= since);
    let is_own = upper.lower.is_some() && upper.lower == step.child.map(|child| child.inode);
    let own_path = is_own.then_some(step.backup_path);
    let (status, from) = match upper.lower {
        Some(_) if may_have_moved && !is_own => (Status::Renamed, upper.lower_path.as_deref()),
        Some(_) if may_have_moved && upper.redirected => (Status::Subtree, own_path),
        Some(_) if attr.ctime < since => return Ok(None),
        Some(_) => (Status::Listing, own_path.or(upper.lower_path.as_deref())),
        None if born(&upper.stat).is_some_and(|born| born >= since) => (Status::Added, None),
        None if may_have_moved => (Status::Subtree, None),
        None => (Status::Listing, None),
    };
    Ok(Some(upper.entry(status, step.path, from)))
}

/// A whiteout that may have been made since: most are links to one, so that its time alone says little.
fn hidden(
    overlay: &Overlay,
    since: Timestamp,
    step: &Step<'_, '_>,
    ctime: Timestamp,
) -> Result<Option<DifferenceEntry>> {
    let is_new = ctime >= since && step.above.is_some_and(|above| above >= since);
    let Some(child) = step.child.filter(|_| is_new) else { return Ok(None) };
    super::against::removed(overlay, step, child).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_taken_for_a_little_earlier() {
        let time = |seconds, nanos| Timestamp { seconds, nanos };
        for (since, earlier) in [
            (time(5, SLACK_NANOS + 1), time(5, 1)),
            (time(5, SLACK_NANOS), time(5, 0)),
            (time(5, SLACK_NANOS - 1), time(4, 999_999_999)),
            (time(0, 0), time(-1, 980_000_000)),
            (time(i64::MIN, 0), time(i64::MIN, 980_000_000)),
        ] {
            assert_eq!(before(since), earlier);
        }
    }
}
