//! Where in what is below the upper the names of a file are that has several: its number alone does not say.
//!
//! The names that the archive has are found by one walk of it, when they are first asked for; those that a layer has by
//! one of that. Nothing is kept of files with one name.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::OFlags;

use super::super::Overlay;
use super::super::error::Result;
use super::super::index::Entry;
use super::super::name::Name;
use super::super::node::InLayer;
use super::{Below, Part};
use crate::inode_ops::{list_with, stat_at};
use crate::squashfs::DirCursor;
use crate::types::{FileKind, Ino, LayerSerial};

/// A name of a file in a directory of a layer.
#[derive(Clone, Debug)]
pub(in super::super) struct LayerName {
    /// The directory.
    pub(in super::super) dir: Ino,
    pub(in super::super) place: InLayer,
}

/// Names by the number of the file.
type NamesOf<N> = Arc<HashMap<Ino, Vec<N>>>;

/// All names of files that have several.
#[derive(Debug, Default)]
pub(in super::super) struct Names {
    archive: Mutex<Option<NamesOf<(Ino, Name)>>>,
    layers: Mutex<HashMap<LayerSerial, NamesOf<LayerName>>>,
}

impl Names {
    /// What it knows of layers, unless somebody is finding out more.
    pub(super) fn known_in_layers(
        &self,
    ) -> Option<MutexGuard<'_, HashMap<LayerSerial, NamesOf<LayerName>>>> {
        self.layers.try_lock()
    }

    /// Forgets what it knows of layers but for those that `are_there`.
    pub(super) fn retain(&self, are_there: impl Fn(LayerSerial) -> bool) {
        self.layers.lock().retain(|layer, _| are_there(*layer));
    }
}

impl Overlay {
    /// The names of the file of number `number`, which the index has as `entry`, in the lower: each with the number of its
    /// directory.
    pub(in super::super) fn lower_names(
        &self,
        number: Ino,
        entry: &Entry,
    ) -> Result<Vec<(Ino, Name)>> {
        // A layer has all names of what it has.
        for part in self.stack.roots_below(self.live()) {
            if let Some(names) = self.layer_names(&part)?.get(&number) {
                return Ok(names.iter().map(|name| (name.dir, name.place.name.clone())).collect());
            }
        }
        match entry.lower {
            Some(_) => Ok(self.archive_names()?.get(&number).cloned().unwrap_or_default()),
            None => Ok(Vec::new()),
        }
    }

    /// The names in `layer` of the file of number `number`, which has several there.
    pub(super) fn names_in_layer(&self, number: Ino, layer: LayerSerial) -> Result<Vec<LayerName>> {
        for part in self.stack.roots_below(self.live()) {
            if part.layer == layer {
                return Ok(self.layer_names(&part)?.get(&number).cloned().unwrap_or_default());
            }
        }
        Ok(Vec::new())
    }

    fn archive_names(&self) -> Result<NamesOf<(Ino, Name)>> {
        let mut known = self.stack.names.archive.lock();
        if let Some(names) = &*known {
            return Ok(Arc::clone(names));
        }
        let archive = self.lower.archive();
        let mut names: HashMap<Ino, Vec<(Ino, Name)>> = HashMap::new();
        let mut pending = vec![archive.root()];
        // A damaged archive may lead in circles.
        let mut entered = HashSet::new();
        while let Some(directory) = pending.pop() {
            let dir = self.lower.ino(directory)?;
            for entry in archive.read_dir(&self.lower.directory(directory)?, DirCursor::START)? {
                let entry = entry?;
                if entry.kind == FileKind::Directory {
                    if entered.insert(entry.inode) {
                        pending.push(entry.inode);
                    }
                } else if self.lower.inode(entry.inode)?.nlink > 1 {
                    let ino = self.lower.ino(entry.inode)?;
                    names.entry(ino).or_default().push((dir, entry.name[..].into()));
                }
            }
        }
        Ok(Arc::clone(known.insert(Arc::new(names))))
    }

    fn layer_names(&self, root: &Arc<Part>) -> Result<NamesOf<LayerName>> {
        let mut known = self.stack.names.layers.lock();
        if let Some(names) = known.get(&root.layer) {
            return Ok(Arc::clone(names));
        }
        let mut names: HashMap<Ino, Vec<LayerName>> = HashMap::new();
        let whole = self.stack.root_from(root.layer, self.lower.archive().root());
        let mut pending: Vec<(Ino, Below)> = vec![(Ino::ROOT, whole)];
        while let Some((dir, whole)) = pending.pop() {
            let Some(part) = whole.part_in(root.layer) else { continue };
            let fd = self.part_fds.get(part)?;
            for (name, _, _) in list_with(&fd, OFlags::NOATIME)? {
                let stat = stat_at(&fd, &name)?;
                let kind = FileKind::from_mode(stat.stx_mode.into());
                if kind != Some(FileKind::Directory) && stat.stx_nlink < 2 {
                    continue;
                }
                // Whiteouts are names of one file, too, and show nothing.
                let Some(found) = self.find_entry(&whole, name.as_bytes())? else { continue };
                let ino = found.ino(self)?;
                if found.kind() == FileKind::Directory {
                    pending.push((ino, found.whole()));
                } else {
                    let place = InLayer { dir: Arc::clone(part), name: name_of(&name) };
                    names.entry(ino).or_default().push(LayerName { dir, place });
                }
            }
        }
        let names = Arc::new(names);
        known.insert(root.layer, Arc::clone(&names));
        Ok(names)
    }
}

fn name_of(name: &OsStr) -> Name {
    name.as_bytes().into()
}
