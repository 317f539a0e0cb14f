//! What an inode is that a name leads to: of the archive, born in the upper, or a copy. The upper's marks say.

use rustix::fs::Statx;

use super::Overlay;
use super::attr::{generation_of, kind_of};
use super::dirs::DirView;
use super::error::{Error, Result};
use super::ino;
use super::lower::Child;
use super::node::{Data, UpperState};
use super::upper::{Mark, parse_record};
use crate::inode_ops::Address;
use crate::types::{FileKind, Ino, InodeRef, Owner};

/// What a name in the merged tree means.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) ino: Ino,
    pub(super) kind: FileKind,
    pub(super) upper: Option<UpperState>,
}

impl Found {
    fn set_owner(&mut self, owner: Option<Owner>) {
        if let Some(upper) = &mut self.upper {
            upper.owner = owner;
        }
    }
}

impl Overlay {
    /// A lower name that nothing in the upper hides.
    pub(super) fn describe_lower(&self, child: Child) -> Result<Found> {
        let ino = self.lower.ino(child.inode)?;
        let upper = match self.nodes.find(ino) {
            Some(node) => node.upper,
            None => None,
        };
        let upper = match (upper, self.index.get(ino)) {
            (Some(upper), _) => Some(upper),
            (None, Some(entry)) => {
                let address = self.index_address(ino)?;
                let stat = address.stat()?;
                Some(self.read_marks_of_copy(&address, &stat, entry.lower)?)
            }
            (None, None) => None,
        };
        Ok(Found { ino, kind: child.kind, upper })
    }

    /// What the inode at `address` in the upper is; `None` for a whiteout in xattr form.
    pub(super) fn describe(
        &self,
        dir: &DirView,
        address: &Address,
        stat: &Statx,
        child: Option<Child>,
    ) -> Result<Option<Found>> {
        let kind = kind_of(stat)?;
        let known = self.nodes.copied_as(stat.stx_ino).unwrap_or(ino::of_upper(stat.stx_ino));
        if let Some(upper) = self.nodes.find(known).and_then(|node| node.upper)
            && upper.st_ino == stat.stx_ino
        {
            return Ok(Some(Found { ino: known, kind, upper: Some(upper) }));
        }
        let marks = self.upper()?.marks;
        if let (None, Some(fd), false) = (dir.lower, &dir.fd, kind == FileKind::CharDevice)
            && !self.is_impure(dir.ino, fd)?
        {
            // All in here was born here.
            let mut found = self.found_in_upper(stat, kind, None)?;
            found.set_owner(self.recorded_owner(address)?);
            return Ok(Some(found));
        }
        if kind == FileKind::Regular
            && stat.stx_size == 0
            && marks.get(address, Mark::Whiteout)?.is_some()
        {
            return Ok(None);
        }
        if kind == FileKind::Directory {
            let lower = self.merges_with(dir, address, stat, child)?;
            let mut found = self.found_in_upper(stat, kind, lower)?;
            found.set_owner(self.recorded_owner(address)?);
            if let (Some(_), Some(upper)) = (lower, &mut found.upper) {
                upper.kept_ctime = self.kept_ctime(address)?;
            }
            return Ok(Some(found));
        }
        let lower = match self.index.ino_of(stat.stx_ino).and_then(|ino| self.index.get(ino)) {
            Some(entry) => Some(entry.lower),
            None => marks
                .for_kind(kind)
                .get(address, Mark::Record)?
                .as_deref()
                .and_then(|record| parse_record(record, stat.stx_ino)),
        };
        if let Some(lower) = lower {
            let upper = self.read_marks_of_copy(address, stat, lower)?;
            let ino = self.lower.ino(lower)?;
            return Ok(Some(Found { ino, kind, upper: Some(upper) }));
        }
        let mut found = self.found_in_upper(stat, kind, None)?;
        found.set_owner(self.recorded_owner(address)?);
        if let Some(upper) = &mut found.upper {
            upper.data = self.data_of(address, stat, dir.lower, child)?;
            upper.null_device = self.is_null_stand_in(address, kind)?;
        }
        Ok(Some(found))
    }

    /// An inode that keeps the number of the lower directory it merges with, if it does.
    fn found_in_upper(
        &self,
        stat: &Statx,
        kind: FileKind,
        lower: Option<InodeRef>,
    ) -> Result<Found> {
        let (ino, generation) = match lower {
            Some(lower) => (self.lower.ino(lower)?, 0),
            None => (ino::of_upper(stat.stx_ino), generation_of(stat)),
        };
        let upper = UpperState::new(stat.stx_ino, kind, generation, lower);
        Ok(Found { ino, kind, upper: Some(upper) })
    }

    /// What is known of a copy of lower inode `lower`, which is not a directory.
    pub(super) fn read_marks_of_copy(
        &self,
        address: &Address,
        stat: &Statx,
        lower: InodeRef,
    ) -> Result<UpperState> {
        let kind = kind_of(stat)?;
        let mut state = UpperState::new(stat.stx_ino, kind, 0, Some(lower));
        state.owner = self.recorded_owner(address)?;
        if self.is_metacopy(address, stat)? {
            state.data = Data::Lower(lower);
        }
        if let Some(entry) = self.index.ino_of(stat.stx_ino).and_then(|ino| self.index.get(ino)) {
            state.extra_links = self.extra_links(address, kind, &entry, stat.stx_nlink)?;
        }
        state.null_device = self.is_null_stand_in(address, kind)?;
        Ok(state)
    }

    /// Whether a device stands for a 0/0 one.
    fn is_null_stand_in(&self, address: &Address, kind: FileKind) -> Result<bool> {
        let marks = self.upper()?.marks.for_kind(kind);
        Ok(kind == FileKind::CharDevice && marks.get(address, Mark::NullDevice)?.is_some())
    }

    /// Whether the data of an inode is still in the lower. Empty files have no metacopies: one that
    /// is empty was being truncated when the server was killed, and loses its mark here.
    fn is_metacopy(&self, address: &Address, stat: &Statx) -> Result<bool> {
        let marks = self.upper()?.marks;
        if kind_of(stat)? != FileKind::Regular || marks.get(address, Mark::Metacopy)?.is_none() {
            return Ok(false);
        }
        if stat.stx_size == 0 {
            marks.clear(address, Mark::Metacopy)?;
        }
        Ok(stat.stx_size > 0)
    }

    /// Where the data of an inode without a record of ours is: of a metacopy that kernel overlayfs
    /// made, where a redirect or else its own name leads.
    fn data_of(
        &self,
        address: &Address,
        stat: &Statx,
        dir: Option<InodeRef>,
        child: Option<Child>,
    ) -> Result<Data> {
        if !self.is_metacopy(address, stat)? {
            return Ok(Data::Upper);
        }
        let lower = match self.upper()?.marks.get(address, Mark::Redirect)? {
            Some(path) => self.follow(dir, &path)?,
            None => child,
        }
        .and_then(|child| (child.kind == FileKind::Regular).then_some(child.inode));
        lower.map(Data::Lower).ok_or_else(|| {
            let name = address.label();
            Error::damaged(format_args!(
                "{name} in the upper has its data in no file of the archive"
            ))
        })
    }

    /// The lower directory that an upper one merges with, if it is not opaque.
    fn merges_with(
        &self,
        dir: &DirView,
        address: &Address,
        stat: &Statx,
        child: Option<Child>,
    ) -> Result<Option<InodeRef>> {
        let marks = self.upper()?.marks;
        if marks.get(address, Mark::Opaque)?.as_deref() == Some(b"y") {
            return Ok(None);
        }
        let record = marks.get(address, Mark::Record)?;
        if let Some(lower) = record.and_then(|record| parse_record(&record, stat.stx_ino)) {
            return Ok(Some(lower));
        }
        let lower = match marks.get(address, Mark::Redirect)? {
            Some(path) => self.follow(dir.lower, &path)?,
            None => child,
        };
        Ok(lower.and_then(|child| (child.kind == FileKind::Directory).then_some(child.inode)))
    }

    /// Where a redirect leads: from the root if it begins with a slash, else beside the name.
    ///
    /// Redirects with a record of ours are not followed by path, so this meets only an upper that
    /// kernel overlayfs wrote; its lower directories may have to be fetched, here alone with
    /// `names` held, once for each.
    fn follow(&self, beside: Option<InodeRef>, path: &[u8]) -> Result<Option<Child>> {
        if path.first() == Some(&b'/') {
            return self.lower.resolve(self.lower.archive().root(), path);
        }
        match beside {
            Some(dir) if !path.contains(&b'/') => self.lower.child(dir, path),
            Some(_) | None => Ok(None),
        }
    }
}
