//! The difference from the backup.

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::super::Overlay;
use super::super::error::Result;
use super::super::index::Entry;
use super::super::lower::Child;
use super::Sink;
use super::compare::{Change, compare};
use super::entry::{DifferenceEntry, Status};
use super::guide::Guide;
use super::step::{Here, InUpper, Step, as_path};
use super::walk::Walk;
use crate::types::{FileKind, InodeRef};

/// Tells what differs at or below the names `below`.
pub(super) fn tell(overlay: &Overlay, below: &[Box<[u8]>], sink: &mut Sink<'_>) -> Result<()> {
    let is_wanted = |entry: &Entry| is_changed(overlay, entry);
    let guide = Guide::of(overlay, &is_wanted)?;
    let (arrived, hidden) = (HashMap::new(), HashMap::new());
    let mut teller = Teller { overlay, guide: &guide, arrived, hidden, sink };
    // What is passed over on the way down to `below` counts all the same.
    let (looks_below_hidden, passes_over_new) = (true, false);
    let walk = Walk { overlay, guide: &guide, below, looks_below_hidden, passes_over_new };
    walk.run(&mut |step| teller.step(step))
}

/// Whether a file of the index is not as the backup has it.
fn is_changed(overlay: &Overlay, entry: &Entry) -> Result<bool> {
    let upper = {
        let _names = overlay.names.read();
        let Some(upper) = InUpper::indexed(overlay, entry)? else { return Ok(false) };
        upper
    };
    let Some(lower) = entry.lower else { return Ok(false) };
    Ok(compare(overlay, lower, &upper)? != Change::None)
}

struct Teller<'a, 's> {
    overlay: &'a Overlay,
    guide: &'a Guide,
    /// How many new names of a file of the backup have been told.
    arrived: HashMap<InodeRef, usize>,
    /// How many of the backup's names of it have been found hidden.
    hidden: HashMap<InodeRef, usize>,
    sink: &'a mut Sink<'s>,
}

impl Teller<'_, '_> {
    fn step(&mut self, step: &Step<'_, '_>) -> Result<ControlFlow<()>> {
        let mut entries = Vec::new();
        let upper = match &step.here {
            Here::Upper(upper) => Some(&**upper),
            Here::Nothing | Here::Whiteout(_) | Here::Lower(_) => None,
        };
        let mut is_replaced = false;
        if let Some(child) = step.hidden()
            && !self.is_told(child)
        {
            let replaces = |upper: &&InUpper<'_>| upper.lower.is_none() && upper.kind == child.kind;
            match upper.filter(replaces) {
                Some(upper) => {
                    is_replaced = true;
                    entries.extend(self.changed(step, upper, child.inode, step.backup_path)?);
                }
                None => entries.push(removed(self.overlay, step, child)?),
            }
        }
        match (upper, step.child) {
            (Some(upper), Some(child)) if upper.lower == Some(child.inode) => {
                entries.extend(self.changed(step, upper, child.inode, step.backup_path)?);
            }
            (Some(upper), _) if !is_replaced => self.come(step, upper, &mut entries)?,
            _ => {}
        }
        for entry in entries {
            if (self.sink)(entry).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Whether a name of the backup that is hidden is told as one that has another now.
    fn is_told(&mut self, child: Child) -> bool {
        if !self.guide.has_moved(child.inode) {
            return false;
        }
        let before = self.hidden.entry(child.inode).or_default();
        let nth = *before;
        *before += 1;
        child.kind == FileKind::Directory || self.guide.is_told(child.inode, nth)
    }

    /// What is told of an inode that is compared with `lower`, whose path in the backup is `from`.
    fn changed(
        &self,
        step: &Step<'_, '_>,
        upper: &InUpper<'_>,
        lower: InodeRef,
        from: &[u8],
    ) -> Result<Option<DifferenceEntry>> {
        let status = match compare(self.overlay, lower, upper)? {
            Change::None => return Ok(None),
            Change::Attributes => Status::Attributes,
            Change::Data => Status::Modified,
        };
        Ok(Some(upper.entry(status, step.path, Some(from))))
    }

    /// Tells what the backup does not have under its name.
    fn come(
        &mut self,
        step: &Step<'_, '_>,
        upper: &InUpper<'_>,
        entries: &mut Vec<DifferenceEntry>,
    ) -> Result<()> {
        let mut from = None;
        if let Some(lower) = upper.lower {
            let before = self.arrived.entry(lower).or_default();
            from = match upper.kind {
                FileKind::Directory => upper.lower_path.as_deref(),
                _ => self.guide.source(lower, *before),
            };
            *before += 1;
        }
        match (from, upper.lower) {
            (Some(from), Some(lower)) => {
                entries.push(upper.entry(Status::Renamed, step.path, Some(from)));
                entries.extend(self.changed(step, upper, lower, from)?);
            }
            _ => entries.push(upper.entry(Status::Added, step.path, None)),
        }
        Ok(())
    }
}

/// Tells of a name of the backup that the view has no more.
pub(super) fn removed(
    overlay: &Overlay,
    step: &Step<'_, '_>,
    child: Child,
) -> Result<DifferenceEntry> {
    let size = match child.kind {
        FileKind::Regular | FileKind::Symlink => overlay.lower.inode(child.inode)?.size,
        _ => 0,
    };
    let (status, kind, path) = (Status::Removed, child.kind, as_path(step.path));
    let from = (step.backup_path != step.path).then(|| as_path(step.backup_path));
    Ok(DifferenceEntry { status, kind, path, from, size, bytes: 0, ino: 0, nlink: 0 })
}
