//! One change of a tree.

use crate::types::{FileKind, Timestamp};

/// What happened to a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It is there, and was not: made, linked, or brought from elsewhere.
    Create,
    /// Its data or its size changed.
    Write,
    /// It is gone.
    Remove,
    /// It is at `to` now; what was there is gone.
    Rename {
        /// Its new path.
        to: Vec<u8>,
    },
    /// It and what was at `with` have changed places.
    Exchange {
        /// The other path.
        with: Vec<u8>,
    },
    /// Its mode, owner, times or extended attributes changed.
    Attributes,
}

/// One change, as it took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its place in the order of all changes: each is one more than that before it.
    pub sequence: u64,
    /// When it was written down, at or shortly after it took effect.
    pub at: Timestamp,
    /// What happened.
    pub what: What,
    /// The kind of what it happened to.
    pub kind: FileKind,
    /// The `st_ino` of what it happened to, the same for all names of a file; 0 where it is not known.
    pub ino: u64,
    /// The path it happened at, from the tree's root without a slash before it; empty for the root. Of several names
    /// of a file, the one that was used last.
    pub path: Vec<u8>,
}

impl Change {
    /// The second path, of a rename or an exchange.
    pub fn other(&self) -> Option<&[u8]> {
        match &self.what {
            What::Rename { to: other } | What::Exchange { with: other } => Some(other),
            What::Create | What::Write | What::Remove | What::Attributes => None,
        }
    }

    /// Bytes of memory that it takes.
    pub(super) fn weight(&self) -> usize {
        size_of::<Self>() + self.path.capacity() + self.other().map_or(0, <[u8]>::len)
    }
}
