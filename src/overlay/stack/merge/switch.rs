//! The mount goes over to a merged layer.
//!
//! Nothing of that is seen: what is known of each file is said of the inode that stands for its old one. All of it is worked
//! out first. Where something is in use that cannot go over, nothing does, and who merges tries again later.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use super::super::super::Overlay;
use super::super::super::error::Result;
use super::super::super::handles::Source;
use super::super::super::node::{Data, UpperState};
use super::super::freeze::commit_by;
use super::super::{Below, Part};
use super::{MergedLayer, place_of};
use crate::inode_ops::stat_fd;
use crate::types::{FileKind, LayerSerial};

/// What becomes of what is known of one inode.
pub(in super::super::super) enum Becomes {
    /// It is as it was.
    Same,
    /// It is this.
    Other(Box<UpperState>),
    /// It cannot go over.
    Stays,
}

impl Overlay {
    /// Has `merged` take the place of the layers that it was made of. `commit` is called once, when nothing else can fail.
    /// Says whether it was: not where one of the layers is used so that it has to stay, or has changed. The layers are not
    /// to be removed before [`Self::has_retired_layers`] says that nobody is in the middle of using them.
    ///
    /// # Errors
    /// What `commit` does. Nothing has changed then.
    pub fn go_over(
        &self,
        merged: MergedLayer,
        commit: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<bool> {
        let _one_at_a_time = self.stack.freezing.lock();
        let _names = self.names.write();
        let is_as_it_was =
            merged.touched == self.stack.touched() && self.stack.has_run(&merged.run.parts);
        if !is_as_it_was || self.is_used_by_kernel(&merged) {
            return Ok(false);
        }
        let Some(mut names) = self.stack.names.known_in_layers() else { return Ok(false) };
        let changed = self.nodes.change_all(
            |state| merged.becomes(state),
            || {
                commit_by(commit)?;
                self.stack.replace_run(&merged.run.parts, Arc::clone(&merged.root));
                Ok(())
            },
        )?;
        if !changed {
            return Ok(false);
        }
        names.retain(|layer, _| !merged.run.has(*layer));
        for open in self.handles.all() {
            if matches!(open.source(), Source::File(layer, _) if merged.run.has(layer)) {
                open.leave_to_us();
            }
        }
        let mut layers = self._layers.lock();
        let at = layers.iter().position(|layer| merged.run.has(layer.serial)).unwrap_or_default();
        layers.retain(|layer| !merged.run.has(layer.serial));
        layers.insert(at, merged.layer);
        drop(layers);
        self.changed();
        self.part_fds.clear();
        Ok(true)
    }

    /// Whether the kernel reads a file of the run by itself: it will have that very inode.
    fn is_used_by_kernel(&self, merged: &MergedLayer) -> bool {
        self.layers_of_kernel().into_iter().any(|layer| merged.run.has(layer))
    }

    /// The layers of files that the kernel reads by itself.
    fn layers_of_kernel(&self) -> HashSet<LayerSerial> {
        let mut layers = HashSet::new();
        for open in self.handles.all().iter().filter(|open| open.is_kernel_s()) {
            if let Source::File(layer, _) = open.source() {
                layers.insert(layer);
            }
            layers.extend(self.nodes.upper(open.ino).ok().flatten().map(|state| state.layer));
        }
        layers
    }

    /// The frozen layers that are used so that they cannot be merged now. It may be others the next moment: this spares
    /// to try.
    pub fn layers_in_use(&self) -> HashSet<LayerSerial> {
        let mut layers = self.layers_of_kernel();
        self.nodes.each_upper(|state| {
            let of_pinned = matches!(&state.data, Data::Layer(_)) && state.pin.is_some();
            if state.place.is_none() && !state.is_apart && !of_pinned {
                return;
            }
            let parts = state.below.parts().iter().chain(state.whole.iter().flat_map(Below::parts));
            layers.extend(parts.map(|part| part.layer));
            layers.extend(state.place.iter().map(|place| place.dir.layer));
            if let Data::Layer(place) = &state.data {
                layers.insert(place.dir.layer);
            }
            layers.insert(state.layer);
        });
        layers
    }

    /// Whether somebody is still in the middle of using a layer that a merged one has taken the place of.
    pub fn has_retired_layers(&self) -> bool {
        let mut retired = self.stack.retired.lock();
        if !retired.is_empty() {
            self.part_fds.clear();
            retired.retain(|root| Arc::strong_count(root) > 1);
        }
        !retired.is_empty()
    }
}

impl MergedLayer {
    /// What an inode of which `state` is known is from now on.
    fn becomes(&self, state: &UpperState) -> Becomes {
        match self.is_of_run(state) {
            false => Becomes::Same,
            true => {
                self.other(state).map_or(Becomes::Stays, |state| Becomes::Other(Box::new(state)))
            }
        }
    }

    fn is_in_run(&self, whole: &Below) -> bool {
        whole.parts().iter().any(|part| self.run.has(part.layer))
    }

    /// Whether anything of it is in the run.
    fn is_of_run(&self, state: &UpperState) -> bool {
        let has = |part: &Arc<Part>| self.run.has(part.layer);
        self.run.has(state.layer)
            || self.is_in_run(&state.below)
            || state.whole.as_ref().is_some_and(|whole| self.is_in_run(whole))
            || matches!(&state.data, Data::Layer(place) if has(&place.dir))
            || state.place.as_ref().is_some_and(|place| has(&place.dir))
    }

    fn other(&self, state: &UpperState) -> Option<UpperState> {
        if state.place.is_some() || state.is_apart {
            return None;
        }
        let mut other = state.clone();
        let is_file = state.kind != FileKind::Directory;
        if let Some(pin) = &state.pin {
            // Reached by that alone, it needs no layer, unless there is another name by which it is found again.
            let has_names = || stat_fd(pin).is_ok_and(|stat| stat.stx_nlink > 1);
            let is_whole = matches!(&state.data, Data::Upper | Data::Lower(_));
            if !is_file {
                // It was removed, and has nothing in it.
                (other.below, other.whole) = (Below::default(), None);
            }
            return (is_whole && !(is_file && has_names())).then_some(other);
        }
        other.below = self.mapped(&state.below)?;
        other.whole = match &state.whole {
            Some(whole) => Some(self.mapped(whole)?),
            None => None,
        };
        if let Data::Layer(place) = &state.data
            && self.run.has(place.dir.layer)
        {
            other.data = Data::Layer(self.data.get(&place_of(place))?.clone());
        }
        if !self.run.has(state.layer) {
            return Some(other);
        }
        let stand = self.stands.get(&(state.layer, state.st_ino))?;
        other.layer = self.run.top();
        other.st_ino = stand.st_ino;
        other.kept_ctime = Some(stand.kept_ctime);
        other.impure = None;
        if stand.has_data {
            other.data = Data::Upper;
        }
        if let Some(part) = &stand.part {
            let below = match &other.whole {
                Some(whole) => whole.after(self.run.count(whole)),
                None => other.below.after(self.run.count(&other.below)),
            };
            other.whole = Some(below.with_top(Arc::clone(part)));
            other.below = below;
        }
        Some(other)
    }

    /// `whole` with the merged layer in the place of those of the run.
    fn mapped(&self, whole: &Below) -> Option<Below> {
        if !self.is_in_run(whole) {
            return Some(whole.clone());
        }
        let mut parts: Vec<Arc<Part>> = Vec::new();
        for part in whole.parts() {
            if !self.run.has(part.layer) {
                parts.push(Arc::clone(part));
                continue;
            }
            let merged = self.directories.get(&(part.layer, part.path()))?;
            match parts.last() {
                Some(last) if Arc::ptr_eq(last, merged) => {}
                // Of one directory there is one in the merged layer.
                Some(last) if last.layer == merged.layer => return None,
                _ => parts.push(Arc::clone(merged)),
            }
        }
        Some(Below::new(parts, whole.archive))
    }
}
