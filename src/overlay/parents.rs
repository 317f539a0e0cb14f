//! For very many files, each one's directory, in little memory.
//!
//! Files of a directory tend to have numbers in a row, in archives by how they are written and on disks
//! by how inodes are given away. So what is kept is where in the row of all numbers the directory
//! changes: some 30 bytes for a directory, whatever is in it. The answer for a number that is not there is
//! that for its neighbour, so every answer is to be checked.

use std::collections::HashMap;

use crate::types::Ino;

/// Most runs that are kept, 4 MiB of them: an archive of a million files has fewer.
const MAX_RUNS: usize = 256 << 10;

/// Most files whose directory is noted since the upper was walked; with more it is walked again.
const MAX_NOTED: usize = 64 << 10;

/// Directories of files by the files' numbers.
#[derive(Debug, Default)]
pub(super) struct Parents {
    /// Number of the first file, and its directory, which is also that of the next ones. Sorted once
    /// [`Self::finish`] was called.
    runs: Vec<(u64, u64)>,
    overflown: bool,
}

impl Parents {
    /// Adds what is in `directory`.
    pub(super) fn add(&mut self, directory: u64, files: &mut [u64]) {
        files.sort_unstable();
        let mut last = None;
        for file in files.iter().copied() {
            if last.replace(file).is_none_or(|last: u64| last.checked_add(1) != Some(file)) {
                if self.runs.len() >= MAX_RUNS {
                    self.join();
                }
                if self.runs.len() >= MAX_RUNS {
                    self.overflown = true;
                    return;
                }
                self.runs.push((file, directory));
            }
        }
    }

    /// Makes it ready for questions.
    pub(super) fn finish(&mut self) {
        self.join();
        self.runs.shrink_to_fit();
    }

    /// Neighbours with one directory become one run.
    fn join(&mut self) {
        self.runs.sort_unstable();
        self.runs.dedup_by_key(|(_, directory)| *directory);
    }

    /// The directory of file `number`, if there is such a file.
    pub(super) fn get(&self, number: u64) -> Option<u64> {
        let behind = self.runs.partition_point(|(first, _)| *first <= number);
        self.runs.get(behind.checked_sub(1)?).map(|(_, directory)| *directory)
    }

    /// Whether something had no room.
    pub(super) fn is_partial(&self) -> bool {
        self.overflown
    }
}

/// The directories of what is in the upper.
#[derive(Debug, Default)]
pub(super) struct UpperParents {
    walked: Parents,
    /// What the kernel has forgotten since, where that is elsewhere than the walk has it.
    noted: HashMap<Ino, Ino>,
    /// How often something was lost sight of: `noted` was full, or a name went and others are not known.
    lost: u64,
    /// `lost` when the last walk began.
    walked_at: Option<u64>,
}

impl UpperParents {
    /// Notes that `ino` was last in `parent`.
    pub(super) fn note(&mut self, ino: Ino, parent: Ino) {
        if self.walked.get(ino.0) == Some(parent.0) {
            self.noted.remove(&ino);
            return;
        }
        if self.noted.len() >= MAX_NOTED {
            self.noted.clear();
            self.lost += 1;
        }
        self.noted.insert(ino, parent);
    }

    /// A name of a file is gone that has others, and we know none of them.
    pub(super) fn lose_track(&mut self) {
        self.lost += 1;
    }

    pub(super) fn get(&self, ino: Ino) -> Option<Ino> {
        self.noted.get(&ino).copied().or_else(|| self.walked.get(ino.0).map(Ino))
    }

    /// Whether something was lost sight of since the last walk began.
    pub(super) fn is_stale(&self) -> bool {
        self.walked_at != Some(self.lost)
    }

    /// How often something was lost sight of.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// Takes what a walk has found, `lost` being [`Self::lost`] when that began.
    pub(super) fn take(&mut self, walked: Parents, lost: u64) {
        (self.walked, self.walked_at) = (walked, Some(lost));
    }

    /// Whether the last walk found more than there is room for.
    pub(super) fn is_partial(&self) -> bool {
        self.walked.is_partial()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_found_whatever_the_order_and_the_gaps() {
        let mut parents = Parents::default();
        parents.add(7, &mut [12, 10, 11, 40]);
        parents.add(8, &mut [13, u64::MAX, 14]);
        parents.add(9, &mut []);
        parents.add(7, &mut [15]);
        parents.finish();
        for (file, directory) in
            [(10, 7), (11, 7), (12, 7), (13, 8), (14, 8), (15, 7), (40, 7), (u64::MAX, 8)]
        {
            assert_eq!(parents.get(file), Some(directory), "{file}");
        }
        assert_eq!(parents.get(9), None);
        assert_eq!(parents.runs, [(10, 7), (13, 8), (15, 7), (u64::MAX, 8)]);
        assert!(!parents.is_partial());
    }

    #[test]
    fn what_has_no_room_is_said_to() {
        for (runs, partial) in [(MAX_RUNS - 1, false), (MAX_RUNS, false), (MAX_RUNS + 1, true)] {
            let mut parents = Parents::default();
            for number in 0..runs as u64 {
                parents.add(number, &mut [2 * number]);
            }
            parents.finish();
            assert_eq!((parents.runs.len(), parents.is_partial()), (runs.min(MAX_RUNS), partial));
            assert_eq!(parents.get(2), Some(1));
        }
        // Room is made by joining.
        let mut parents = Parents::default();
        for number in 0..2 * MAX_RUNS as u64 {
            parents.add(1, &mut [2 * number]);
        }
        parents.finish();
        assert_eq!((parents.runs.len(), parents.is_partial()), (1, false));
    }
}
