//! The other names of files that have several, as far as the kernel has looked them up: for the path of a file whose
//! node has another name, or none. Only changes are told by them, so a name that is not known here does no harm
//! elsewhere.

use std::collections::HashMap;

use super::name::Name;
use crate::types::Ino;

/// Most names that are known of one file beside the one used last; the latest count.
const MAX_NAMES: usize = 32;

/// Names by the number of the file, each in its directory, the last used behind the others.
#[derive(Debug, Default)]
pub(super) struct Aliases(HashMap<Ino, Vec<(Ino, Name)>>);

impl Aliases {
    /// Notes that `ino` was used by `name` in `parent`.
    pub(super) fn note(&mut self, ino: Ino, parent: Ino, name: Name) {
        let names = self.0.entry(ino).or_default();
        names.retain(|known| *known != (parent, name.clone()));
        if names.len() >= MAX_NAMES {
            names.remove(0);
        }
        names.push((parent, name));
    }

    /// Takes a name back that is gone.
    pub(super) fn gone(&mut self, ino: Ino, parent: Ino, name: &[u8]) {
        if let Some(names) = self.0.get_mut(&ino) {
            names.retain(|(dir, own)| *dir != parent || **own != *name);
            if names.is_empty() {
                self.0.remove(&ino);
            }
        }
    }

    /// Forgets a file.
    pub(super) fn forget(&mut self, ino: Ino) {
        if !self.0.is_empty() {
            self.0.remove(&ino);
        }
    }

    /// All names, each with its file and its directory.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Ino, Ino, &Name)> {
        let names = self.0.iter().flat_map(|(ino, names)| names.iter().map(move |it| (*ino, it)));
        names.map(|(ino, (dir, name))| (ino, *dir, name))
    }

    /// The names of `ino`, the last used first.
    pub(super) fn of(&self, ino: Ino) -> impl Iterator<Item = (Ino, &[u8])> {
        let names = self.0.get(&ino).into_iter().flatten().rev();
        names.map(|(parent, name)| (*parent, &**name))
    }
}
