//! Which directories are elsewhere in the other tree.
//!
//! A directory that is under a name in one tree and not in the other may have moved: then it is gone through as one that
//! has not. So what was found is brought together until nothing more comes of it. Directories that are new are gone
//! through, too, and those that are gone only if one is missed that may come from there.

use std::collections::HashMap;
use std::rc::Rc;

use super::super::super::error::Result;
use super::trees::{Entry, Pair, Trees};
use crate::types::Ino;

/// Directories that are elsewhere, by number: as they were.
pub(super) type Moved<'a> = HashMap<Ino, Rc<Entry<'a>>>;

/// A directory that only one of the trees has under its name.
struct Alone<'a> {
    pair: Pair<'a>,
    is_explored: bool,
}

/// Such, by number.
type AllAlone<'a> = HashMap<Ino, Alone<'a>>;

struct Search<'t, 'a> {
    trees: &'t Trees<'a>,
    pairs: Vec<Pair<'a>>,
    /// Those that are not where they were.
    left: AllAlone<'a>,
    /// Those that were not where they are.
    come: AllAlone<'a>,
    moved: Moved<'a>,
}

impl<'a> Trees<'a> {
    /// Finds directories that have moved.
    pub(super) fn moved_directories(&self) -> Result<Moved<'a>> {
        let (left, come) = (HashMap::new(), HashMap::new());
        let pairs = vec![self.roots()?];
        let mut search = Search { trees: self, pairs, left, come, moved: Moved::new() };
        loop {
            while let Some(pair) = search.pairs.pop() {
                search.visit(&pair)?;
            }
            search.bring_together();
            if search.pairs.is_empty() {
                let next = search.unexplored();
                search.pairs.extend(next);
            }
            if search.pairs.is_empty() {
                return Ok(search.moved);
            }
        }
    }
}

impl<'a> Search<'_, 'a> {
    fn visit(&mut self, pair: &Pair<'a>) -> Result<()> {
        for name in self.trees.names(pair)? {
            let found = self.trees.look(pair, &name)?;
            let alone = |from, to| Alone {
                pair: Pair { from, to, are_same: false, path: found.path.clone() },
                is_explored: false,
            };
            if found.are_same {
                if found.to.as_ref().is_some_and(|to| to.is_directory()) {
                    self.pairs.push(found);
                }
                continue;
            }
            if let Some(from) = found.from.as_ref().filter(|from| from.is_directory()) {
                let number = self.trees.number_from(from);
                self.left.entry(number).or_insert_with(|| alone(found.from.clone(), None));
            }
            if let Some(to) = found.to.as_ref().filter(|to| to.is_directory()) {
                let number = self.trees.number(to);
                self.come.entry(number).or_insert_with(|| alone(None, found.to.clone()));
            }
        }
        Ok(())
    }

    fn bring_together(&mut self) {
        let both = self.come.keys().filter(|number| self.left.contains_key(number));
        for number in both.copied().collect::<Vec<_>>() {
            if let (Some(left), Some(come)) = (self.left.remove(&number), self.come.remove(&number))
                && let Some(from) = left.pair.from
            {
                self.moved.insert(number, Rc::clone(&from));
                self.pairs.push(Pair { from: Some(from), are_same: true, ..come.pair });
            }
        }
    }

    /// One that is to be gone through alone.
    fn unexplored(&mut self) -> Option<Pair<'a>> {
        let is_missed = self.come.keys().any(|number| self.trees.may_be_in_from(*number));
        let left = self.left.values_mut().filter(|_| is_missed);
        let alone = self.come.values_mut().chain(left).find(|alone| !alone.is_explored)?;
        alone.is_explored = true;
        Some(alone.pair.clone())
    }
}
