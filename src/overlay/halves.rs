//! What a listing is made of: what the upper half of a directory, and the frozen layers below it, had when reading
//! began, in the order in which names keep their positions.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use twox_hash::XxHash3_64;

use crate::types::{FileKind, Ino, InodeRef};

/// Positions from here on are in the lower half, the archive's cursor added.
pub(super) const LOWER_HALF: u64 = 1 << 62;
/// Positions of names of the upper alone begin here: `.` is 0, `..` is 1.
pub(super) const UPPER_HALF: u64 = 2;

/// Directories whose listing is under way, and how many names of theirs are kept.
const LISTINGS: NonZeroUsize = NonZeroUsize::new(64).unwrap();
const LISTED_NAMES: usize = 1 << 16;

/// Both halves of a directory, at the moment reading began.
#[derive(Debug)]
pub(super) struct Halves {
    /// [`super::Overlay::changes`] at that moment.
    pub(super) changes: u64,
    /// What the upper alone has, sorted by position.
    pub(super) added: Vec<(u64, UpperName)>,
    /// What the upper has under names of the lower half, sorted by name.
    covering: Vec<UpperName>,
    lower: Option<InodeRef>,
}

#[derive(Debug)]
pub(super) struct UpperName {
    pub(super) name: Box<[u8]>,
    /// `None` for a whiteout.
    pub(super) shown: Option<(Ino, FileKind)>,
}

impl Halves {
    pub(super) fn new(
        changes: u64,
        lower: Option<InodeRef>,
        added: Vec<UpperName>,
        mut covering: Vec<UpperName>,
    ) -> Self {
        covering.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let mut added: Vec<_> =
            added.into_iter().map(|entry| (position_of(&entry.name), entry)).collect();
        added.sort_unstable_by(|(a, one), (b, other)| (a, &one.name).cmp(&(b, &other.name)));
        // Should two names have one hash, the second is as good as behind it.
        let mut free = UPPER_HALF;
        for (position, _) in &mut added {
            *position = free.max(*position);
            free = *position + 1;
        }
        Self { changes, added, covering, lower }
    }

    /// What the upper has that is shown.
    pub(super) fn shown_in_upper(&self) -> impl Iterator<Item = (&[u8], Ino, FileKind)> {
        let added = self.added.iter().map(|(_, entry)| entry);
        added.chain(&self.covering).filter_map(|entry| {
            let (ino, kind) = entry.shown?;
            Some((&*entry.name, ino, kind))
        })
    }

    /// The half in the archive.
    pub(super) fn lower(&self) -> Option<InodeRef> {
        self.lower
    }

    /// What the upper has under `name` of the lower half.
    pub(super) fn covers(&self, name: &[u8]) -> Option<&UpperName> {
        let found = self.covering.binary_search_by(|entry| (*entry.name).cmp(name)).ok()?;
        self.covering.get(found)
    }

    fn len(&self) -> usize {
        self.added.len() + self.covering.len()
    }
}

/// Where a name that only the upper has comes in a listing, with room for collisions at the end.
fn position_of(name: &[u8]) -> u64 {
    // The same after an update, since clients of an export keep their place over a restart.
    (XxHash3_64::oneshot(name) >> 3).max(UPPER_HALF)
}

/// The listings that are under way: what is kept spares listing the upper half again for each part.
#[derive(Debug)]
pub(super) struct Listings(Mutex<LruCache<Ino, Arc<Halves>>>);

impl Default for Listings {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(LISTINGS)))
    }
}

impl Listings {
    pub(super) fn get(&self, ino: Ino) -> Option<Arc<Halves>> {
        self.0.lock().get(&ino).cloned()
    }

    pub(super) fn put(&self, ino: Ino, halves: &Arc<Halves>) {
        if halves.len() == 0 {
            // Nothing that would take time to list again.
            return self.remove(ino);
        }
        let mut listings = self.0.lock();
        listings.put(ino, Arc::clone(halves));
        let mut names: usize = listings.iter().map(|(_, halves)| halves.len()).sum();
        while names > LISTED_NAMES && listings.len() > 1 {
            names -= listings.pop_lru().map_or(0, |(_, halves)| halves.len());
        }
    }

    pub(super) fn remove(&self, ino: Ino) {
        self.0.lock().pop(&ino);
    }

    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }
}
