//! By which path something is reached in what is below a run: what a redirect of the merged layer says.
//!
//! A directory may have been renamed in one layer of the run, and what is in it in the next. So a path that a redirect of the
//! run says is one in what is below that layer, which is partly of the run, and is followed down layer by layer. What comes
//! of it is tried: a path that does not lead there is not used.

use std::sync::Arc;

use super::super::super::Overlay;
use super::super::super::error::Result;
use super::super::super::lower::LowerEntry;
use super::super::super::node::{Data, InLayer};
use super::super::super::upper::Mark;
use super::super::{Below, Part};
use super::{DataAt, Run, are_same};
use crate::inode_ops::Address;
use crate::types::{FileKind, LayerSerial};

/// Layers of one run may lead from one to the other so often.
const MAX_STEPS: usize = 64;

/// Looks for paths in what is below `run`.
pub(super) struct Paths<'a> {
    pub(super) overlay: &'a Overlay,
    pub(super) run: &'a Run,
}

impl Paths<'_> {
    /// The path from the root of `wanted`, which is what is below the run of the directory that `part`, the lowest of it in
    /// the run, is of.
    pub(super) fn of_directory(&self, part: &Part, wanted: &Below) -> Result<Option<Vec<u8>>> {
        let Some(path) = self.of_part(part, MAX_STEPS)? else { return Ok(None) };
        let found = self.resolve(&self.run.below, &path)?;
        Ok(Some(path).filter(|_| found.is_some_and(|found| are_same(&found, wanted))))
    }

    /// The path from the root of `wanted`, the data of the metacopy at `place` in a layer of the run.
    pub(super) fn of_data(&self, place: &InLayer, wanted: &DataAt) -> Result<Option<Vec<u8>>> {
        let mut place = place.clone();
        for _ in 0..MAX_STEPS {
            let layer = place.dir.layer;
            let address = self.overlay.in_layer(&place)?;
            let redirect = self.overlay.marks.get(&address, Mark::Redirect)?;
            let own = [&place.dir.path(), &b"/"[..], &place.name].concat();
            let path = match redirect {
                None => own,
                Some(path) if path.starts_with(b"/") => path,
                Some(name) => [&place.dir.path(), &b"/"[..], &name].concat(),
            };
            let (dir, name) = split(&path);
            let view = self.overlay.stack.root_below(layer, self.archive());
            if let Some(below) = self.below_run(layer, dir, MAX_STEPS)? {
                let path = [&below, &b"/"[..], name].concat();
                if self.leads_to(&path, wanted)? {
                    return Ok(Some(path));
                }
            }
            let Some(whole) = self.resolve(&view, dir)? else { return Ok(None) };
            match self.overlay.find_entry(&whole, name)? {
                Some(LowerEntry::Layer(_, next)) if self.run.has(next.dir.layer) => place = next,
                Some(_) | None => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Whether the data of the file at `path` in what is below the run is `wanted`.
    fn leads_to(&self, path: &[u8], wanted: &DataAt) -> Result<bool> {
        let (dir, name) = split(path);
        let Some(dir) = self.resolve(&self.run.below, dir)? else { return Ok(false) };
        let found = self.overlay.find_entry(&dir, name)?;
        Ok(found.is_some_and(|found| data_of(&found).is_some_and(|data| data == *wanted)))
    }

    /// The path, in what is below the run, of the directory at `path` in what is below `layer`, of which the run may have a
    /// part.
    fn below_run(&self, layer: LayerSerial, path: &[u8], steps: usize) -> Result<Option<Vec<u8>>> {
        let Some(steps) = steps.checked_sub(1) else { return Ok(None) };
        let mut whole = self.overlay.stack.root_below(layer, self.archive());
        let names: Vec<&[u8]> =
            path.split(|byte| *byte == b'/').filter(|it| !it.is_empty()).collect();
        let mut deepest: Option<(usize, Arc<Part>)> = None;
        for (at, name) in names.iter().enumerate() {
            let found = self.overlay.find_entry(&whole, name)?;
            let Some(found) = found.filter(|found| found.kind() == FileKind::Directory) else {
                return Ok(None);
            };
            whole = found.whole();
            if let Some(part) = whole.parts().iter().rev().find(|part| self.run.has(part.layer)) {
                deepest = Some((at + 1, Arc::clone(part)));
            }
        }
        let (known, mut mapped) = match deepest {
            None => (0, Vec::new()),
            Some((known, part)) => match self.of_part(&part, steps)? {
                Some(path) => (known, path),
                None => return Ok(None),
            },
        };
        for name in names.into_iter().skip(known) {
            mapped.push(b'/');
            mapped.extend_from_slice(name);
        }
        Ok(Some(mapped))
    }

    /// The path of what is below the run of a directory, of which `part` is the lowest in the run.
    fn of_part(&self, part: &Part, steps: usize) -> Result<Option<Vec<u8>>> {
        let Some(steps) = steps.checked_sub(1) else { return Ok(None) };
        let Some((above, name)) = part.above() else { return Ok(Some(Vec::new())) };
        let fd = self.overlay.part_fds.get(above)?;
        let address = Address::at(&fd, super::super::super::dirs::os_str(name));
        let redirect = self.overlay.marks.get(&address, Mark::Redirect)?;
        let name = match redirect {
            Some(path) if path.starts_with(b"/") => {
                return self.below_run(part.layer, &path, steps);
            }
            Some(name) => name,
            None => name.to_vec(),
        };
        let above = self.below_run(LayerSerial(part.layer.0 + 1), &above.path(), steps)?;
        Ok(above.map(|above| [&above, &b"/"[..], &name].concat()))
    }

    fn resolve(&self, root: &Below, path: &[u8]) -> Result<Option<Below>> {
        let mut whole = root.clone();
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            match self.overlay.find_entry(&whole, name)? {
                Some(found) if found.kind() == FileKind::Directory => whole = found.whole(),
                Some(_) | None => return Ok(None),
            }
        }
        Ok(Some(whole))
    }

    fn archive(&self) -> crate::types::InodeRef {
        self.overlay.lower.archive().root()
    }
}

/// Where the data of a regular file is.
pub(super) fn data_of(entry: &LowerEntry) -> Option<DataAt> {
    match entry {
        _ if entry.kind() != FileKind::Regular => None,
        LowerEntry::Archive(child) => Some(DataAt::Archive(child.inode)),
        LowerEntry::Layer(found, place) => Some(match found.upper.as_ref().map(|it| &it.data) {
            Some(Data::Lower(inode)) => DataAt::Archive(*inode),
            Some(Data::Layer(data)) => DataAt::of(data),
            Some(Data::Upper) | None => DataAt::of(place),
        }),
    }
}

/// The directory of a path, and the name in it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (b"", path),
    }
}
