//! What a name means in one of the stacks, where a layer has it that only this one has. The listing of the directory and
//! what is known of the inode say so for most names; only for the others the disk is asked.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{FileType, OFlags};

use super::super::super::Overlay;
use super::super::super::describe::Found;
use super::super::super::dirs::os_str;
use super::super::super::error::Result;
use super::super::super::ino;
use super::super::super::lower::{Child, LowerEntry};
use super::super::super::node::InLayer;
use super::super::super::upper::Record;
use super::super::{Below, Part};
use super::Switch;
use crate::inode_ops::{Address, list_at, list_with, stat_at};
use crate::types::{FileKind, Ino};

/// An entry of a directory, in the topmost of the layers that have one under its name.
pub(super) struct Listed {
    part: Arc<Part>,
    st_ino: u64,
    file_type: FileType,
}

impl Listed {
    /// As the listing has it, if it does.
    pub(super) fn kind(&self) -> Option<FileKind> {
        FileKind::from_mode(self.file_type.as_raw_mode())
    }
}

/// The entries of one directory in layers that only one stack has, by their names.
pub(super) type Listing = BTreeMap<Box<[u8]>, Listed>;

/// What a name means in one of the stacks.
pub(super) enum Means {
    Entry(Option<LowerEntry>),
    /// A file of a layer that the other stack has not, by its number.
    File(Ino),
}

/// What a directory is below the layers that only one stack has.
pub(super) struct Rest {
    below: Below,
    /// What is in it, if that was found out.
    children: Option<HashMap<Box<[u8]>, Child>>,
}

impl Rest {
    /// `below`, in which `count` names are looked for.
    pub(super) fn new(overlay: &Overlay, below: Below, count: usize) -> Result<Self> {
        let archive = below.archive.filter(|_| !below.has_parts());
        let children = archive.map(|dir| overlay.lower.children(dir, count)).transpose()?;
        Ok(Self { below, children: children.flatten() })
    }

    pub(super) fn find(&self, overlay: &Overlay, name: &[u8]) -> Result<Option<LowerEntry>> {
        match &self.children {
            Some(children) => Ok(children.get(name).copied().map(LowerEntry::Archive)),
            None => overlay.find_entry(&self.below, name),
        }
    }
}

impl Means {
    pub(super) fn is_directory(&self) -> bool {
        matches!(self, Self::Entry(Some(entry)) if entry.kind() == FileKind::Directory)
    }

    pub(super) fn is_file(&self) -> bool {
        !self.is_directory() && !matches!(self, Self::Entry(None))
    }
}

impl Switch<'_> {
    /// What is in the first `count` of the parts of `whole`.
    pub(super) fn list(&self, whole: &Below, count: usize) -> Result<Listing> {
        let mut all = Listing::new();
        for part in whole.parts().iter().take(count) {
            let fds = &self.overlay.part_fds;
            let names = match part.above() {
                Some((above, name)) => list_at(&*fds.get(above)?, os_str(name), OFlags::NOATIME)?,
                None => list_with(&*fds.get(part)?, OFlags::NOATIME)?,
            };
            for (name, st_ino, file_type) in names {
                let listed = || Listed { part: Arc::clone(part), st_ino, file_type };
                all.entry(name.as_bytes().into()).or_insert_with(listed);
            }
        }
        Ok(all)
    }

    /// What `name` means in the stack that is left, which `listed` is of.
    pub(super) fn means_now(&self, whole: &Below, name: &[u8], listed: &Listed) -> Result<Means> {
        if let Some(known) = self.known(name, listed) {
            return Ok(Means::Entry(Some(known)));
        }
        self.means(whole, name, listed)
    }

    /// What `name`, which `listed` is of, means in a stack, by what is on the disk.
    pub(super) fn means(&self, whole: &Below, name: &[u8], listed: &Listed) -> Result<Means> {
        let overlay = self.overlay;
        let Some(kind) = self.file_kind(name, listed)? else {
            return Ok(Means::Entry(overlay.find_entry(whole, name)?));
        };
        let (layer, st_ino) = (listed.part.layer, listed.st_ino);
        let address = Address::at(&overlay.part_fds.get(&listed.part)?, os_str(name));
        Ok(Means::File(match overlay.read_record(layer, &address, kind, st_ino)? {
            Some(Record::Archive(inode)) => overlay.lower.ino(inode)?,
            Some(Record::Number(ino, _)) => ino,
            None => ino::of_birth(layer, st_ino),
        }))
    }

    /// What a node stands for is what it knows.
    fn known(&self, name: &[u8], listed: &Listed) -> Option<LowerEntry> {
        let overlay = self.overlay;
        let id = (listed.part.layer, listed.st_ino);
        if !overlay.numbers.are_listed(listed.file_type) {
            return None;
        }
        let ino = overlay.nodes.copied_as(id.1).unwrap_or(ino::of_birth(id.0, id.1));
        let mut upper = overlay.nodes.meant(ino)?.upper?;
        if (upper.layer, upper.st_ino) != id || listed.kind() != Some(upper.kind) {
            return None;
        }
        if upper.kind == FileKind::Directory && upper.whole.is_none() {
            if !overlay.is_live(&upper) {
                return None;
            }
            upper.whole = Some(upper.below.with_top(Part::child(&listed.part, name)));
        }
        let place = InLayer { dir: Arc::clone(&listed.part), name: name.into() };
        let found = Found { ino, kind: upper.kind, upper: Some(upper) };
        Some(LowerEntry::Layer(Box::new(found), place))
    }

    /// The kind of what is neither a directory nor a whiteout for sure.
    fn file_kind(&self, name: &[u8], listed: &Listed) -> Result<Option<FileKind>> {
        Ok(match listed.kind() {
            Some(FileKind::Directory | FileKind::CharDevice) | None => None,
            Some(FileKind::Regular) => {
                let dir = self.overlay.part_fds.get(&listed.part)?;
                let stat = stat_at(&dir, os_str(name));
                // A whiteout may be a file, but that is empty.
                stat.is_ok_and(|stat| stat.stx_size > 0).then_some(FileKind::Regular)
            }
            kind => kind,
        })
    }
}
