//! The latest of many files, at little cost for each.

use std::collections::HashMap;

use crate::types::Ino;

/// When something happened to files, of those to which it did last: once there are twice [`Self::MAX`], the earlier half
/// is forgotten. Of those of one moment, the ones with the lower numbers count as the earlier.
#[derive(Debug)]
pub(super) struct Latest<V>(HashMap<Ino, V>);

impl<V> Default for Latest<V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<V: Copy + Ord> Latest<V> {
    /// So many are known for certain, and fewer than twice as many in all.
    pub(super) const MAX: usize = super::MAX_CLOSED;

    /// Notes `when` of `ino`.
    pub(super) fn note(&mut self, ino: Ino, when: V) {
        self.0.insert(ino, when);
        if self.0.len() >= 2 * Self::MAX {
            let mut all: Vec<(V, Ino)> = self.0.iter().map(|(ino, when)| (*when, *ino)).collect();
            let (_, earliest, _) = all.select_nth_unstable(Self::MAX);
            let earliest = *earliest;
            self.0.retain(|ino, when| (*when, *ino) >= earliest);
        }
    }

    /// What is noted of `ino`.
    pub(super) fn get(&self, ino: Ino) -> Option<V> {
        self.0.get(&ino).copied()
    }

    /// Takes all that are known, the latest first.
    pub(super) fn take(&mut self) -> Vec<Ino> {
        let mut all: Vec<_> = std::mem::take(&mut self.0).into_iter().collect();
        all.sort_unstable_by(|(_, one), (_, other)| other.cmp(one));
        all.into_iter().map(|(ino, _)| ino).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_known_and_no_more_than_twice_as_many() {
        const MAX: u64 = Latest::<u64>::MAX as u64;
        for count in [1, MAX - 1, MAX, MAX + 1, 2 * MAX - 1, 2 * MAX, 2 * MAX + 1, 9 * MAX + 5] {
            let mut latest = Latest::default();
            for number in 0..count {
                latest.note(Ino(number), number);
                // One that comes again and again counts once.
                latest.note(Ino(u64::MAX), number);
            }
            assert_eq!(latest.get(Ino(count - 1)), Some(count - 1));
            let taken = latest.take();
            assert!(taken.len() < 2 * Latest::<u64>::MAX, "{count}");
            assert_eq!(latest.get(Ino(count - 1)), None);
            let mut numbers: Vec<_> = taken.iter().filter(|ino| ino.0 != u64::MAX).collect();
            assert!(numbers.len() as u64 >= count.min(MAX - 1), "{count}: {}", numbers.len());
            assert!(numbers.is_sorted_by(|one, next| one.0 > next.0));
            assert!(numbers.remove(0).0 == count - 1 && taken.contains(&Ino(u64::MAX)));
        }
    }

    #[test]
    fn of_one_moment_no_more_are_known_either() {
        const MAX: u64 = Latest::<u64>::MAX as u64;
        let mut latest = Latest::default();
        for number in 0..9 * MAX {
            latest.note(Ino(number), 7);
            assert!(latest.0.len() < 2 * Latest::<u64>::MAX, "{number}");
            assert_eq!(latest.get(Ino(number)), Some(7));
        }
        assert!(latest.take().len() >= Latest::<u64>::MAX);
    }
}
