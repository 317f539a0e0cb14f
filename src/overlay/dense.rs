//! A map by inode number that costs little beyond what is in it, for the node table.
//!
//! Values lie side by side in a slab, and are found by a hash table of their slots, five bytes each. A hash
//! table of the values themselves would be half empty on average, and copied whole whenever it grows; a
//! B-tree that is filled in order is half empty always.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use hashbrown::HashTable;
use slab::Slab;

use crate::types::Ino;

/// Slots that are worth giving back.
const WORTH: usize = 4096;

/// A map from [`Ino`] to `V`, for at most 2^32 of them.
#[derive(Debug)]
pub(super) struct Dense<V> {
    slots: Slab<(Ino, V)>,
    index: HashTable<u32>,
    hasher: RandomState,
}

impl<V> Dense<V> {
    pub(super) fn new() -> Self {
        Self { slots: Slab::new(), index: HashTable::new(), hasher: RandomState::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn get(&self, ino: Ino) -> Option<&V> {
        Some(&self.slots.get(self.slot(ino)?)?.1)
    }

    pub(super) fn get_mut(&mut self, ino: Ino) -> Option<&mut V> {
        let slot = self.slot(ino)?;
        Some(&mut self.slots.get_mut(slot)?.1)
    }

    pub(super) fn contains(&self, ino: Ino) -> bool {
        self.slot(ino).is_some()
    }

    /// Puts `value` at `ino`, which must not be in the map. Gives it back where the map is full.
    pub(super) fn insert(&mut self, ino: Ino, value: V) -> Result<(), V> {
        let Ok(slot) = u32::try_from(self.slots.vacant_key()) else { return Err(value) };
        self.slots.insert((ino, value));
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.index.insert_unique(hasher.hash_one(ino), slot, |slot| hash_of(slots, hasher, *slot));
        Ok(())
    }

    pub(super) fn remove(&mut self, ino: Ino) -> Option<V> {
        let slots = &self.slots;
        let is_it = |slot: &u32| ino_in(slots, *slot) == Some(ino);
        let entry = self.index.find_entry(self.hasher.hash_one(ino), is_it).ok()?;
        let (slot, _) = entry.remove();
        let (_, value) = self.slots.try_remove(slot as usize)?;
        if self.slots.capacity() >= WORTH && self.slots.len() < self.slots.capacity() / 8 {
            self.shrink();
        }
        Some(value)
    }

    /// All there is, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Ino, &V)> {
        self.slots.iter().map(|(_, (ino, value))| (*ino, value))
    }

    fn slot(&self, ino: Ino) -> Option<usize> {
        let is_it = |slot: &u32| ino_in(&self.slots, *slot) == Some(ino);
        self.index.find(self.hasher.hash_one(ino), is_it).map(|slot| *slot as usize)
    }

    /// Gives memory back after most of what was in the map has left it.
    fn shrink(&mut self) {
        self.slots.compact(|_, _, _| true);
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.index.clear();
        self.index.shrink_to(slots.len(), |slot| hash_of(slots, hasher, *slot));
        for (slot, (ino, _)) in slots {
            // A slot's number fitted when it was filled, and only got smaller.
            let slot = slot as u32;
            let hash = hasher.hash_one(ino);
            self.index.insert_unique(hash, slot, |slot| hash_of(slots, hasher, *slot));
        }
    }
}

fn ino_in<V>(slots: &Slab<(Ino, V)>, slot: u32) -> Option<Ino> {
    slots.get(slot as usize).map(|(ino, _)| *ino)
}

/// Every slot in the index is in use, so that none is without a number.
fn hash_of<V>(slots: &Slab<(Ino, V)>, hasher: &RandomState, slot: u32) -> u64 {
    ino_in(slots, slot).map_or(0, |ino| hasher.hash_one(ino))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn it_holds_what_a_map_of_the_standard_library_holds() {
        let (mut dense, mut map) = (Dense::new(), BTreeMap::new());
        // Grows past what is worth giving back, shrinks to almost nothing, and grows again.
        for round in 0..3u64 {
            for n in 0..20_000u64 {
                let ino = Ino(n * 977 % 20_011);
                if map.insert(ino, n + round).is_some() {
                    assert!(dense.remove(ino).is_some());
                }
                dense.insert(ino, n + round).unwrap();
            }
            for n in 0..20_000u64 {
                let ino = Ino(n * 31 % 20_011);
                if n % 200 != round {
                    assert_eq!(dense.remove(ino), map.remove(&ino), "{ino}");
                }
            }
            assert_eq!(dense.len(), map.len());
            for n in 0..20_011 {
                assert_eq!(dense.get(Ino(n)), map.get(&Ino(n)));
                assert_eq!(dense.contains(Ino(n)), map.contains_key(&Ino(n)));
            }
            let listed: BTreeMap<Ino, u64> =
                dense.iter().map(|(ino, value)| (ino, *value)).collect();
            assert_eq!(listed, map);
        }
        assert!(dense.slots.capacity() < WORTH, "it gave nothing back");
    }
}
