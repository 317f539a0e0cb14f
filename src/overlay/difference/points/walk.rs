//! The way through both trees, in the order of paths: each name that may differ, with what both have there.

use std::collections::btree_set::IntoIter;
use std::ops::ControlFlow;
use std::rc::Rc;

use super::super::super::error::Result;
use super::directories::Moved;
use super::trees::{Pair, Trees};

/// Where to go.
pub(super) struct Walk<'w, 'a> {
    pub(super) trees: &'w Trees<'a>,
    pub(super) moved: &'w Moved<'a>,
    /// Names of directories from the root: only what is below the last is visited, and it itself.
    pub(super) below: &'w [Box<[u8]>],
}

/// Directories on the way, and names yet to come.
type Frame<'a> = (Pair<'a>, IntoIter<Box<[u8]>>);

impl<'a> Walk<'_, 'a> {
    /// Gives `visit` all names until it breaks.
    pub(super) fn run(
        &self,
        visit: &mut dyn FnMut(&Pair<'a>) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let roots = self.trees.roots()?;
        if self.below.is_empty() && visit(&roots)?.is_break() {
            return Ok(());
        }
        let mut frames = vec![self.enter(roots, 0)?];
        loop {
            let depth = frames.len();
            let Some((pair, names)) = frames.last_mut() else { return Ok(()) };
            let Some(name) = names.next() else {
                frames.pop();
                continue;
            };
            let found = self.trees.look(pair, &name)?;
            if depth >= self.below.len() && visit(&found)?.is_break() {
                return Ok(());
            }
            if let Some(inner) = self.inner(found) {
                frames.push(self.enter(inner, depth)?);
            }
        }
    }

    fn enter(&self, pair: Pair<'a>, depth: usize) -> Result<Frame<'a>> {
        let mut names = self.trees.names(&pair)?;
        if let Some(only) = self.below.get(depth) {
            names.retain(|name| name == only);
        }
        Ok((pair, names.into_iter()))
    }

    /// What is compared in a directory of the tree that is told of.
    fn inner(&self, found: Pair<'a>) -> Option<Pair<'a>> {
        let to = found.to.as_ref().filter(|to| to.is_directory())?;
        if found.are_same {
            return Some(found);
        }
        match self.moved.get(&self.trees.number(to)) {
            Some(from) => Some(Pair { from: Some(Rc::clone(from)), are_same: true, ..found }),
            None if self.is_replaced(&found) => Some(found),
            None => Some(Pair { from: None, ..found }),
        }
    }

    /// Whether a directory that is gone was replaced by a new one, which is then compared with it name by name.
    pub(super) fn is_replaced(&self, found: &Pair<'a>) -> bool {
        let (Some(from), Some(to)) = (&found.from, &found.to) else { return false };
        from.is_directory()
            && to.is_directory()
            && !self.moved.contains_key(&self.trees.number_from(from))
            && !self.moved.contains_key(&self.trees.number(to))
    }
}
