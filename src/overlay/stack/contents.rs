//! Which layers have a name in a directory that many layers have. Only those are asked for it then: each costs a call.
//!
//! It is found out for a directory once that has been paid for in such calls. The names in a frozen layer do not change,
//! so what is known stays true; where there is a new layer, that is added, and once layers are merged, all is found out
//! anew. Names are known by a hash alone: of two that have the same, layers are asked that have only the other.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::OFlags;

use super::super::Overlay;
use super::super::error::Result;
use super::{Below, Part, Version};
use crate::inode_ops::list_with;
use crate::types::{Ino, LayerSerial};

/// Directories in fewer layers are not worth it.
const MIN_PARTS: usize = 4;

/// How many layers are asked for names of a directory before it is found out.
const PRICE: usize = 256;

/// Most names of all directories together, of 8 bytes each, and most directories.
const MAX_NAMES: usize = 1 << 19;
const MAX_DIRECTORIES: usize = 1 << 12;

/// The names in directories, by the directories' numbers.
#[derive(Debug)]
pub(super) struct Contents {
    known: Mutex<Known>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Known {
    /// Each with the number of its names.
    directories: LruCache<Ino, (Arc<Mutex<Directory>>, usize)>,
    /// Names in all of them.
    names: usize,
}

/// What is known of one.
#[derive(Debug, Default)]
struct Directory {
    /// How many layers were asked so far.
    paid: usize,
    /// The layers that are known, the topmost first.
    layers: Vec<LayerSerial>,
    /// Hashes of names, each with a layer, in order; of one hash the topmost layer is first.
    names: Vec<(u32, Reverse<LayerSerial>)>,
    /// It has more names than there is room for.
    is_too_large: bool,
    /// How often layers had been merged: one of the same number has other names then.
    merges: u64,
}

/// The layers that have a name, the topmost first.
pub(super) type Having = Arc<[LayerSerial]>;

impl Default for Contents {
    fn default() -> Self {
        let capacity = NonZeroUsize::new(MAX_DIRECTORIES).unwrap_or(NonZeroUsize::MIN);
        let known = Known { directories: LruCache::new(capacity), names: 0 };
        Self { known: Mutex::new(known), hasher: RandomState::new() }
    }
}

impl Contents {
    fn hash(&self, name: &[u8]) -> u32 {
        self.hasher.hash_one(name) as u32
    }

    fn directory(&self, dir: Ino) -> Arc<Mutex<Directory>> {
        let mut known = self.known.lock();
        if let Some((directory, _)) = known.directories.get(&dir) {
            return Arc::clone(directory);
        }
        let new = Arc::new(Mutex::default());
        if let Some((_, (_, names))) = known.directories.push(dir, (Arc::clone(&new), 0)) {
            known.names -= names;
        }
        new
    }

    /// Notes that `dir` has so many `names`, and forgets other directories where there are too many.
    fn count(&self, dir: Ino, names: usize) {
        let mut known = self.known.lock();
        let Some((_, own)) = known.directories.get_mut(&dir) else { return };
        let before = std::mem::replace(own, names);
        known.names = known.names - before + names;
        while known.names > MAX_NAMES
            && known.directories.len() > 1
            && let Some((_, (_, names))) = known.directories.pop_lru()
        {
            known.names -= names;
        }
    }
}

impl Directory {
    fn knows(&self, parts: &[Arc<Part>]) -> bool {
        let mut layers = self.layers.iter();
        parts.iter().all(|part| layers.any(|layer| *layer == part.layer))
    }

    fn having(&self, hash: u32) -> Having {
        let from = self.names.partition_point(|(other, _)| *other < hash);
        let of_it = self.names.iter().skip(from).take_while(|(other, _)| *other == hash);
        of_it.map(|(_, layer)| layer.0).collect()
    }
}

impl Overlay {
    /// Which layers of directory `dir`, that is `below`, have `name`: `None` where all are to be asked. `stack` is what
    /// state the stack was in before `below` was found out.
    pub(in super::super) fn layers_having(
        &self,
        (dir, stack): (Ino, Version),
        below: &Below,
        name: &[u8],
    ) -> Result<Option<Having>> {
        let parts = below.parts();
        if parts.len() < MIN_PARTS {
            return Ok(None);
        }
        if stack.merges != self.stack.merges() {
            return Ok(None);
        }
        let contents = &self.stack.contents;
        let directory = contents.directory(dir);
        // Who comes while it is found out asks them all.
        let Some(mut directory) = directory.try_lock() else { return Ok(None) };
        if directory.merges > stack.merges {
            return Ok(None);
        }
        if directory.merges < stack.merges {
            let (merges, paid) = (stack.merges, directory.paid);
            *directory = Directory { merges, paid, ..Directory::default() };
        }
        if !directory.knows(parts) {
            directory.paid = directory.paid.saturating_add(parts.len());
            if directory.is_too_large || directory.paid < PRICE {
                return Ok(None);
            }
            self.find_out(&mut directory, parts)?;
            contents.count(dir, directory.names.len());
            if directory.is_too_large {
                return Ok(None);
            }
        }
        Ok(Some(directory.having(contents.hash(name))))
    }

    /// Adds the names of those of `parts` that are not known, and takes those of layers out that are not there.
    fn find_out(&self, directory: &mut Directory, parts: &[Arc<Part>]) -> Result<()> {
        let contents = &self.stack.contents;
        let there: HashSet<LayerSerial> = parts.iter().map(|part| part.layer).collect();
        if directory.layers.iter().any(|layer| !there.contains(layer)) {
            directory.names.retain(|(_, layer)| there.contains(&layer.0));
        }
        let known: HashSet<LayerSerial> = directory.layers.iter().copied().collect();
        for part in parts.iter().filter(|part| !known.contains(&part.layer)) {
            for (name, ..) in list_with(&*self.part_fds.get(part)?, OFlags::NOATIME)? {
                let hash = contents.hash(name.as_bytes());
                directory.names.push((hash, Reverse(part.layer)));
            }
            if directory.names.len() > MAX_NAMES {
                let merges = directory.merges;
                *directory = Directory { is_too_large: true, merges, ..Directory::default() };
                return Ok(());
            }
        }
        directory.names.sort_unstable();
        directory.layers = parts.iter().map(|part| part.layer).collect();
        Ok(())
    }
}
