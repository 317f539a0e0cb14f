//! What is known of the whole upper, once it has been walked.

use std::collections::HashMap;

use crate::types::InodeRef;

/// What is known of the whole upper.
#[derive(Default)]
pub(super) struct Guide {
    pub(super) moved: HashMap<InodeRef, Moved>,
    /// Names of the archive to visit besides those of the upper, by directory.
    pub(super) names: HashMap<InodeRef, Vec<Box<[u8]>>>,
}

/// A file of the backup that has names which the backup does not have.
#[derive(Default)]
pub(super) struct Moved {
    /// How many.
    pub(super) arrived: usize,
    /// Which of the backup's are hidden, in order, and then those in directories that are gone.
    pub(super) hidden: Vec<Box<[u8]>>,
    /// How many of the backup's it has.
    pub(super) own: usize,
}

impl Guide {
    /// Whether an inode of the backup has a name that the backup does not have.
    pub(super) fn has_moved(&self, inode: InodeRef) -> bool {
        self.moved.contains_key(&inode)
    }

    /// What the backup calls the file whose `nth` new name this is; `None` where it has that name as well.
    pub(super) fn source(&self, inode: InodeRef, nth: usize) -> Option<&[u8]> {
        self.moved.get(&inode)?.hidden.get(nth).map(|path| &**path)
    }

    /// Whether the `nth` of a file's names that are hidden is told by one that is new.
    pub(super) fn is_told(&self, inode: InodeRef, nth: usize) -> bool {
        self.moved.get(&inode).is_some_and(|moved| nth < moved.arrived.min(moved.hidden.len()))
    }

    pub(super) fn has_names_in(&self, directory: InodeRef) -> bool {
        self.names.contains_key(&directory)
    }

    pub(super) fn names_in(&self, directory: InodeRef) -> impl Iterator<Item = &[u8]> {
        self.names.get(&directory).into_iter().flatten().map(|name| &**name)
    }
}
