//! Node ids that are no numbers. A file that a rollback has changed while somebody had it open is another node under the
//! same number: the kernel keeps what is open apart by its node.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::ino;
use crate::types::Ino;

/// Which nodes have other numbers than their own, and which numbers other nodes.
#[derive(Debug, Default)]
pub(super) struct Ids {
    known: RwLock<Known>,
    given: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    numbers: HashMap<Ino, Ino>,
    ids: HashMap<Ino, Ino>,
}

impl Ids {
    /// The number of node `id`.
    pub(super) fn number_of(&self, id: Ino) -> Ino {
        match ino::is_id(id) {
            true => self.known.read().numbers.get(&id).copied().unwrap_or(id),
            false => id,
        }
    }

    /// Whether it is known which number node `id` has.
    pub(super) fn has(&self, id: Ino) -> bool {
        !ino::is_id(id) || self.known.read().numbers.contains_key(&id)
    }

    /// The node that stands for `number` now.
    pub(super) fn id_of(&self, number: Ino) -> Ino {
        match self.given.load(Ordering::Acquire) {
            0 => number,
            _ => self.known.read().ids.get(&number).copied().unwrap_or(number),
        }
    }

    /// A new node for `number` in the place of `from`, if that is still the one that stands for it.
    pub(super) fn split(&self, number: Ino, from: Ino) -> Ino {
        let mut known = self.known.write();
        let now = known.ids.get(&number).copied().unwrap_or(number);
        if now != from {
            return now;
        }
        let id = ino::of_id(self.given.fetch_add(1, Ordering::AcqRel));
        known.numbers.insert(id, number);
        known.ids.insert(number, id);
        id
    }

    /// Node `id` does not stand for its number any more, though it has it.
    pub(super) fn take(&self, id: Ino) {
        if ino::is_id(id) {
            let mut known = self.known.write();
            let number = known.numbers.get(&id).copied().unwrap_or(id);
            if known.ids.get(&number) == Some(&id) {
                known.ids.remove(&number);
            }
        }
    }

    /// Node `id` is no more.
    pub(super) fn forget(&self, id: Ino) {
        if ino::is_id(id) {
            self.take(id);
            self.known.write().numbers.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_node_of_a_number_stands_for_it_until_it_is_taken_or_forgotten() {
        let ids = Ids::default();
        let number = Ino(7);
        assert_eq!((ids.number_of(number), ids.id_of(number)), (number, number));
        let one = ids.split(number, number);
        assert_eq!(ids.split(number, number), one, "who comes second has the same");
        let two = ids.split(number, one);
        assert_ne!(one, two);
        assert_eq!([one, two].map(|id| ids.number_of(id)), [number; 2]);
        assert_eq!(ids.id_of(number), two);
        ids.take(one);
        assert_eq!(ids.id_of(number), two);
        ids.take(two);
        assert_eq!((ids.id_of(number), ids.number_of(two)), (number, number));
        assert!(ids.has(two) && ids.has(number));
        ids.forget(two);
        assert!(!ids.has(two));
        assert_eq!((ids.number_of(two), ids.number_of(one)), (two, number));
    }
}
