//! What an inode is that a name leads to: of the archive, born in the upper, or a copy. The marks of the upper, and of
//! each frozen layer, say.

use rustix::fs::Statx;

use super::Overlay;
use super::attr::{generation_of, kind_of};
use super::dirs::DirView;
use super::error::{Error, Result};
use super::index::Entry;
use super::ino;
use super::lower::LowerEntry;
use super::node::{Data, UpperState};
use super::stack::Below;
use super::upper::{Mark, Record};
use crate::inode_ops::Address;
use crate::types::{FileKind, Ino, LayerSerial, Owner};

/// What a name in the merged tree means.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Its number.
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

/// Finds what a directory has below a layer, where that is asked for.
pub(super) type FindEntry<'a> = dyn FnMut() -> Result<Option<LowerEntry>> + 'a;

impl Overlay {
    /// A lower name that nothing in the upper hides.
    pub(super) fn describe_lower(&self, entry: &LowerEntry) -> Result<Found> {
        let (ino, kind, in_layer) = match entry {
            LowerEntry::Archive(child) => (self.lower.ino(child.inode)?, child.kind, None),
            LowerEntry::Layer(found, _) => (found.ino, found.kind, found.upper.clone()),
        };
        let known = self.nodes.meant(ino).and_then(|node| node.upper);
        let upper = match (known, self.index.get(ino)) {
            (Some(upper), _) => Some(upper),
            (None, Some(entry)) => {
                let address = self.index_address(ino)?;
                let stat = address.stat()?;
                Some(self.read_marks_of_copy(&address, &stat, &entry)?)
            }
            (None, None) => in_layer,
        };
        Ok(Found { ino, kind, upper })
    }

    /// What the inode at `address` in the upper half of `dir` is; `None` for a whiteout in xattr form. `beneath` finds what
    /// the lower half has under its name.
    pub(super) fn describe(
        &self,
        dir: &DirView,
        address: &Address,
        stat: &Statx,
        beneath: &mut FindEntry<'_>,
    ) -> Result<Option<Found>> {
        let kind = kind_of(stat)?;
        let known =
            self.nodes.copied_as(stat.stx_ino).unwrap_or(ino::of_birth(dir.layer, stat.stx_ino));
        if let Some(upper) = self.nodes.meant(known).and_then(|node| node.upper)
            && (upper.layer, upper.st_ino) == (dir.layer, stat.stx_ino)
        {
            return Ok(Some(Found { ino: known, kind, upper: Some(upper) }));
        }
        self.describe_in(dir, address, stat, beneath)
    }

    /// As [`Self::describe`], by the marks alone, whatever is known of it.
    pub(super) fn describe_in(
        &self,
        dir: &DirView,
        address: &Address,
        stat: &Statx,
        beneath: &mut FindEntry<'_>,
    ) -> Result<Option<Found>> {
        let kind = kind_of(stat)?;
        let marks = self.marks;
        if !dir.below.is_some()
            && kind != FileKind::CharDevice
            && dir.fd.is_some()
            && !self.is_impure(dir)?
        {
            // All in here was born here.
            let mut found = self.found_in_upper(dir, stat, kind, None, Below::default());
            found.set_owner(self.recorded_owner(address)?);
            return Ok(Some(found));
        }
        if kind == FileKind::Regular
            && stat.stx_size == 0
            && marks.get(address, Mark::Whiteout)?.is_some()
        {
            return Ok(None);
        }
        let record = || self.read_record(dir.layer, address, kind, stat.stx_ino);
        if kind == FileKind::Directory {
            let record = record()?;
            let (ino, below) = self.merges_with(dir, address, record, beneath)?;
            let merges = below.is_some();
            let mut found = self.found_in_upper(dir, stat, kind, ino, below);
            found.set_owner(self.recorded_owner(address)?);
            let may_be_kept = merges || (dir.part.is_some() && record.is_some());
            if let (true, Some(upper)) = (may_be_kept, &mut found.upper) {
                upper.kept_ctime = self.kept_ctime(address)?;
            }
            return Ok(Some(found));
        }
        let entry = match self.index.ino_of(stat.stx_ino) {
            Some(ino) if dir.part.is_none() => self.index.get(ino).map(|entry| (ino, entry)),
            _ => None,
        };
        if let Some((ino, entry)) = entry {
            let upper = self.read_marks_of_copy(address, stat, &entry)?;
            return Ok(Some(Found { ino, kind, upper: Some(upper) }));
        }
        let record = record()?;
        let (ino, archive) = match record {
            Some(Record::Archive(inode)) => (Some((self.lower.ino(inode)?, 0)), Some(inode)),
            Some(Record::Number(ino, generation)) => (Some((ino, generation)), None),
            None => (None, None),
        };
        let mut found = self.found_in_upper(dir, stat, kind, ino, Below::archive(archive));
        found.set_owner(self.recorded_owner(address)?);
        if let Some(upper) = &mut found.upper {
            if self.is_metacopy(address, stat)? {
                upper.data = match archive {
                    Some(inode) if !self.stack.has_layers_below(dir.layer) => Data::Lower(inode),
                    _ => self.data_of(dir, address)?,
                };
            }
            upper.null_device = self.is_null_stand_in(address, kind)?;
            if dir.part.is_some() && record.is_some() {
                // Of one that layers were merged into, where all is anew.
                upper.kept_ctime = self.marks.for_kind(kind).kept_ctime(address)?;
            }
        }
        Ok(Some(found))
    }

    /// An inode of number and generation `kept`, or else of those that it was born with.
    fn found_in_upper(
        &self,
        dir: &DirView,
        stat: &Statx,
        kind: FileKind,
        kept: Option<(Ino, u64)>,
        below: Below,
    ) -> Found {
        let born = || (ino::of_birth(dir.layer, stat.stx_ino), generation_of(stat));
        let (ino, generation) = kept.unwrap_or_else(born);
        let upper = UpperState::new((dir.layer, stat.stx_ino), kind, generation, below);
        Found { ino, kind, upper: Some(upper) }
    }

    /// What is known of the copy of a lower inode that the index keeps as `entry`.
    pub(super) fn read_marks_of_copy(
        &self,
        address: &Address,
        stat: &Statx,
        entry: &Entry,
    ) -> Result<UpperState> {
        let kind = kind_of(stat)?;
        let below = Below::archive(entry.lower);
        let record = self.marks.for_kind(kind).get(address, Mark::Record)?;
        let generation = match record.and_then(|record| Record::parse(&record, stat.stx_ino)) {
            Some(Record::Number(_, generation)) => generation,
            Some(Record::Archive(_)) | None => 0,
        };
        let mut state = UpperState::new((self.live(), stat.stx_ino), kind, generation, below);
        state.owner = self.recorded_owner(address)?;
        if self.is_metacopy(address, stat)? {
            state.data = match entry.lower {
                Some(inode) if !self.stack.has_layers() => Data::Lower(inode),
                _ => self.data_at_redirect(address)?,
            };
        }
        state.extra_links = self.extra_links(address, kind, entry, stat.stx_nlink)?;
        state.null_device = self.is_null_stand_in(address, kind)?;
        Ok(state)
    }

    /// Whether a device stands for a 0/0 one.
    fn is_null_stand_in(&self, address: &Address, kind: FileKind) -> Result<bool> {
        let marks = self.marks.for_kind(kind);
        Ok(kind == FileKind::CharDevice && marks.get(address, Mark::NullDevice)?.is_some())
    }

    /// Whether the data of an inode is still in the lower. Empty files have no metacopies: one that
    /// is empty was being truncated when the server was killed, and loses its mark here.
    pub(super) fn is_metacopy(&self, address: &Address, stat: &Statx) -> Result<bool> {
        let marks = self.marks;
        if kind_of(stat)? != FileKind::Regular || marks.get(address, Mark::Metacopy)?.is_none() {
            return Ok(false);
        }
        if stat.stx_size == 0 {
            marks.clear(address, Mark::Metacopy)?;
        }
        Ok(stat.stx_size > 0)
    }

    /// Where the data of a metacopy is: where a redirect or else its own name leads.
    fn data_of(&self, dir: &DirView, address: &Address) -> Result<Data> {
        let name: &[u8] = match address {
            Address::Name(_, name) => name.as_encoded_bytes(),
            // It has a redirect, which begins at the root.
            Address::Pinned(_) | Address::Open(_) => b"",
        };
        let data = self.find_data(dir.layer, address.clone(), &dir.below, name)?;
        data.ok_or_else(|| no_data(address))
    }

    /// As [`Self::data_of`], of a metacopy of the upper that several names lead to.
    fn data_at_redirect(&self, address: &Address) -> Result<Data> {
        let data = self.find_data(self.live(), address.clone(), &Below::default(), b"")?;
        data.ok_or_else(|| no_data(address))
    }

    /// What an upper directory merges with, if it is not opaque, and the number and generation that it keeps.
    fn merges_with(
        &self,
        dir: &DirView,
        address: &Address,
        record: Option<Record>,
        beneath: &mut FindEntry<'_>,
    ) -> Result<(Option<(Ino, u64)>, Below)> {
        let number = match record {
            Some(Record::Number(ino, generation)) => Some((ino, generation)),
            Some(Record::Archive(_)) | None => None,
        };
        if self.marks.get(address, Mark::Opaque)?.as_deref() == Some(b"y") {
            return Ok((number, Below::default()));
        }
        if let Some(inode) = record.and_then(Record::archive)
            && !self.stack.has_layers_below(dir.layer)
        {
            return Ok((Some((self.lower.ino(inode)?, 0)), Below::archive(Some(inode))));
        }
        let entry = match self.marks.get(address, Mark::Redirect)? {
            Some(path) => self.follow(dir.layer, &dir.below, &path)?,
            None => beneath()?,
        };
        let Some(entry) = entry.filter(|entry| entry.kind() == FileKind::Directory) else {
            return Ok((number, Below::default()));
        };
        let own = match &entry {
            LowerEntry::Archive(child) => (self.lower.ino(child.inode)?, 0),
            LowerEntry::Layer(found, _) => {
                (found.ino, found.upper.as_ref().map_or(0, |upper| upper.generation))
            }
        };
        Ok((Some(number.unwrap_or(own)), entry.whole()))
    }

    /// Where a redirect of layer `layer` leads: from the root if it begins with a slash, else beside the name.
    ///
    /// Where there are no frozen layers, redirects with a record of ours are not followed by path. So what has to be
    /// fetched with `names` held are lower directories of an upper that kernel overlayfs wrote, once for each.
    fn follow(
        &self,
        layer: LayerSerial,
        beside: &Below,
        path: &[u8],
    ) -> Result<Option<LowerEntry>> {
        match path.strip_prefix(b"/") {
            Some(path) => {
                self.resolve(&self.stack.root_below(layer, self.lower.archive().root()), path)
            }
            None if path.contains(&b'/') => Ok(None),
            None => self.find_entry(beside, path),
        }
    }

    /// What lies at `path`, whose names are separated by `/`, counted from `root`. Symbolic links are not followed:
    /// redirects are made of directories.
    fn resolve(&self, root: &Below, path: &[u8]) -> Result<Option<LowerEntry>> {
        let mut at: Option<LowerEntry> = None;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            if name == b"." || name == b".." {
                return Ok(None);
            }
            let found = match &at {
                None => self.find_entry(root, name)?,
                Some(entry) if entry.kind() == FileKind::Directory => {
                    self.find_entry(&entry.whole(), name)?
                }
                Some(_) => None,
            };
            match found {
                Some(found) => at = Some(found),
                None => return Ok(None),
            }
        }
        Ok(at)
    }
}

fn no_data(address: &Address) -> Error {
    let name = address.label();
    Error::damaged(format_args!("{name} in the upper has its data in no file below it"))
}
