//! Which files have other names in the other tree. What is in directories that are gone is looked through only if
//! something is missed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::super::super::dirs::os_str;
use super::super::super::error::Result;
use super::trees::{Entry, Pair};
use super::walk::Walk;
use crate::types::Ino;

/// Files with other names than before.
#[derive(Default)]
pub(super) struct Files {
    /// New names of files that may have been there before, in order.
    arrived: HashMap<Ino, BTreeSet<PathBuf>>,
    /// Names that are gone, in order; those in directories that are gone come last.
    hidden: HashMap<Ino, Vec<PathBuf>>,
    /// Files that have kept a name.
    own: HashSet<Ino>,
}

impl Files {
    /// The former name of the file whose new name is `path`; `None` where it has that as well.
    pub(super) fn source(&self, file: Ino, path: &[u8]) -> Option<&Path> {
        let path = path_of(path);
        let nth = self.arrived.get(&file)?.iter().position(|arrived| *arrived == path)?;
        self.hidden.get(&file)?.get(nth).map(|path| &**path)
    }

    /// Whether former name `path` of a file is told by a new one.
    pub(super) fn is_told(&self, file: Ino, path: &[u8]) -> bool {
        let (Some(arrived), Some(hidden)) = (self.arrived.get(&file), self.hidden.get(&file))
        else {
            return false;
        };
        let path = path_of(path);
        hidden.iter().take(arrived.len()).any(|hidden| *hidden == path)
    }

    /// Whether a file that has come to a name was there before, by any name.
    pub(super) fn was_there(&self, file: Ino) -> bool {
        self.own.contains(&file) || self.hidden.contains_key(&file)
    }
}

/// A name that is gone, and where it would be.
type Hidden = (bool, PathBuf, PathBuf);

impl<'a> Walk<'_, 'a> {
    /// Finds files that have moved.
    pub(super) fn moved_files(&self) -> Result<Files> {
        let mut files = Files::default();
        let mut hidden: HashMap<Ino, Vec<Hidden>> = HashMap::new();
        let mut gone = Vec::new();
        self.run(&mut |found| {
            if found.are_same {
                files.own.extend(found.to.as_ref().map(|to| self.trees.number(to)));
                return Ok(ControlFlow::Continue(()));
            }
            if let Some(from) = found.from.as_ref().filter(|from| !from.is_directory()) {
                let name = (false, path_of(&found.path), path_of(&from.path));
                hidden.entry(self.trees.number_from(from)).or_default().push(name);
            } else if found.from.as_ref().is_some_and(|from| self.is_gone(from))
                && !self.is_replaced(found)
            {
                gone.push(Pair { to: None, ..found.clone() });
            }
            if let Some(to) = found.to.as_ref().filter(|to| !to.is_directory()) {
                let number = self.trees.number(to);
                if self.trees.may_be_in_from(number) {
                    files.arrived.entry(number).or_default().insert(path_of(&to.path));
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        let known = |file| hidden.get(file).map_or(0, Vec::len);
        if files.arrived.iter().any(|(file, names)| known(file) < names.len()) {
            self.look_through(gone, &files, &mut hidden)?;
        }
        for (file, mut names) in hidden {
            names.sort_unstable();
            files.hidden.insert(file, names.into_iter().map(|(.., path)| path).collect());
        }
        Ok(files)
    }

    /// Whether a directory that is not where it was is nowhere.
    fn is_gone(&self, from: &Entry<'a>) -> bool {
        !self.moved.contains_key(&self.trees.number_from(from))
    }

    /// Looks for files that have arrived in directories that are gone.
    fn look_through(
        &self,
        mut gone: Vec<Pair<'a>>,
        files: &Files,
        hidden: &mut HashMap<Ino, Vec<Hidden>>,
    ) -> Result<()> {
        while let Some(directory) = gone.pop() {
            for name in self.trees.names(&directory)? {
                let found = self.trees.look(&directory, &name)?;
                let Some(from) = &found.from else { continue };
                let number = self.trees.number_from(from);
                if from.is_directory() {
                    if self.is_gone(from) {
                        gone.push(found);
                    }
                } else if files.arrived.contains_key(&number) {
                    let path = path_of(&from.path);
                    let place = path_of(&directory.path).join("~").join(&path);
                    hidden.entry(number).or_default().push((true, place, path));
                }
            }
        }
        Ok(())
    }
}

fn path_of(path: &[u8]) -> PathBuf {
    os_str(path).into()
}
