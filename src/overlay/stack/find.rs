//! What is below a layer: a name is looked for from the topmost layer down.
//!
//! As kernel overlayfs has it: the first layer that has something under the name decides what it is. A directory merges
//! with those of the layers below it, until one is opaque, or a layer has a whiteout or a file there; and where one was
//! renamed, a redirect says by which path it is found below. There may be hundreds of layers, and so no call is made
//! within another for each of them.

use std::sync::Arc;

use rustix::fs::Statx;
use rustix::io::Errno;

use super::super::Overlay;
use super::super::attr::{generation_of, is_null_device, kind_of};
use super::super::describe::Found;
use super::super::dirs::{DirView, os_str};
use super::super::error::{Error, Result};
use super::super::ino;
use super::super::lower::{Child, LowerEntry};
use super::super::node::{Data, InLayer, UpperState};
use super::super::upper::{Mark, Record};
use super::contents::Having;
use super::{Below, Part};
use crate::inode_ops::{Address, stat_at};
use crate::types::{FileKind, InodeRef, LayerSerial};

/// Something in a frozen layer.
struct At {
    view: DirView,
    part: Arc<Part>,
    address: Address,
    stat: Statx,
    kind: FileKind,
}

/// A directory of a frozen layer, and what its marks say of those below it.
struct Directory {
    at: At,
    /// As what it is found from its layer's root.
    own: Arc<Part>,
    record: Option<Record>,
}

/// The way down: what is next.
struct Down {
    below: Below,
    name: Vec<u8>,
    /// The layers that have the name, from the one on that comes next; else all are asked.
    having: Option<(Having, usize)>,
}

impl Down {
    /// How many layers are passed over.
    fn next(&mut self) -> usize {
        let Some((having, at)) = &mut self.having else { return 0 };
        let parts = self.below.parts();
        let Some(layer) = having.get(*at) else { return parts.len() };
        *at += 1;
        parts.partition_point(|part| part.layer > *layer)
    }
}

impl Overlay {
    /// What is under `name` in `below`, the lower half of a directory.
    pub(in super::super) fn find_entry(
        &self,
        below: &Below,
        name: &[u8],
    ) -> Result<Option<LowerEntry>> {
        self.find_entry_in(below, name, None)
    }

    /// The same, of which only the layers `having`, if they are known, have the name.
    pub(in super::super) fn find_entry_in(
        &self,
        below: &Below,
        name: &[u8],
        having: Option<Having>,
    ) -> Result<Option<LowerEntry>> {
        let having = having.map(|having| (having, 0));
        let mut down = Down { below: below.clone(), name: name.to_vec(), having };
        let mut directories = Vec::new();
        let base = loop {
            let Some(at) = self.next_in_layers(&mut down)? else {
                let Some(archive) = down.below.archive else { break None };
                break self.lower.child(archive, &down.name)?;
            };
            // A whiteout hides what is below, and a file what is a directory there.
            let Some(at) = at.filter(|at| at.kind == FileKind::Directory || directories.is_empty())
            else {
                break None;
            };
            if at.kind != FileKind::Directory {
                return self.file(at, down);
            }
            let own = Part::child(&at.part, &down.name);
            let record = self.read_record(at.part.layer, &at.address, at.kind, at.stat.stx_ino)?;
            let (layer, address) = (at.part.layer, at.address.clone());
            directories.push(Directory { at, own, record });
            if self.marks.get(&address, Mark::Opaque)?.as_deref() == Some(b"y") {
                break None;
            }
            if let Some(inode) = record.and_then(Record::archive)
                && !self.stack.has_layers_below(layer)
            {
                break Some(Child { inode, kind: FileKind::Directory });
            }
            if !self.redirect(layer, &address, &mut down)? {
                break None;
            }
        };
        match directories.is_empty() {
            true => Ok(base.map(LowerEntry::Archive)),
            false => {
                let base = base.filter(|child| child.kind == FileKind::Directory);
                self.directory(directories, base.map(|child| child.inode)).map(Some)
            }
        }
    }

    /// Goes down to the next layer that has something; `Some(None)` is a whiteout, and `None` the archive.
    fn next_in_layers(&self, down: &mut Down) -> Result<Option<Option<At>>> {
        loop {
            let next = down.next();
            let Some(part) = down.below.parts().get(next).cloned() else {
                down.below = Below::archive(down.below.archive);
                return Ok(None);
            };
            down.below = down.below.after(next + 1);
            let view = self.part_view(&part, down.below.clone())?;
            let fd = view.fd()?;
            let stat = match stat_at(fd, os_str(&down.name)) {
                Ok(stat) if is_null_device(&stat) => return Ok(Some(None)),
                Ok(stat) => stat,
                Err(Errno::NOENT | Errno::NAMETOOLONG) => continue,
                Err(errno) => {
                    return Err(Error::sys("statx", os_str(&down.name).display())(errno));
                }
            };
            let address = Address::at(fd, os_str(&down.name));
            let stat = self.numbers.identify(&address, stat)?;
            let kind = kind_of(&stat)?;
            return Ok(Some(Some(At { view, part, address, stat, kind })));
        }
    }

    /// Follows the redirect of what is at `address` in `layer`, if there is one. Says whether it leads anywhere.
    fn redirect(&self, layer: LayerSerial, address: &Address, down: &mut Down) -> Result<bool> {
        let Some(path) = self.marks.get(address, Mark::Redirect)? else { return Ok(true) };
        down.having = None;
        let Some(path) = path.strip_prefix(b"/") else {
            down.name = path;
            return Ok(!down.name.contains(&b'/'));
        };
        let mut names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        let Some(name) = names.pop() else { return Ok(false) };
        down.name = name.to_vec();
        down.below = self.stack.root_below(layer, self.lower.archive().root());
        for name in names {
            match self.find_entry(&down.below, name)? {
                Some(entry) if entry.kind() == FileKind::Directory => down.below = entry.whole(),
                Some(_) | None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn file(&self, at: At, down: Down) -> Result<Option<LowerEntry>> {
        let At { view, part, address, stat, .. } = at;
        let rest = down.having.and_then(|(having, from)| Some(having.get(from..)?.into()));
        let mut beneath = || self.find_entry_in(&view.below, &down.name, Option::clone(&rest));
        let found = self.describe_in(&view, &address, &stat, &mut beneath)?;
        let place = InLayer { dir: part, name: (*down.name).into() };
        Ok(found.map(|found| LowerEntry::Layer(Box::new(found), place)))
    }

    /// What `directories` are together, over one of the archive.
    fn directory(
        &self,
        directories: Vec<Directory>,
        archive: Option<InodeRef>,
    ) -> Result<LowerEntry> {
        let kept = directories.iter().find_map(|directory| match directory.record {
            Some(Record::Number(ino, generation)) => Some((ino, generation)),
            Some(Record::Archive(_)) | None => None,
        });
        let (ino, generation) = match (kept, archive, directories.last()) {
            (Some(kept), ..) => kept,
            (None, Some(inode), _) => (self.lower.ino(inode)?, 0),
            (None, None, Some(Directory { at, .. })) => {
                (ino::of_birth(at.part.layer, at.stat.stx_ino), generation_of(&at.stat))
            }
            (None, None, None) => return Err(Errno::NOENT.into()),
        };
        let parts: Vec<_> =
            directories.iter().map(|directory| Arc::clone(&directory.own)).collect();
        let whole = Below::new(parts, archive);
        let Some(Directory { at, .. }) = directories.into_iter().next() else {
            return Err(Errno::NOENT.into());
        };
        let below = whole.after(1);
        let merges = below.is_some();
        let id = (at.part.layer, at.stat.stx_ino);
        let mut upper = UpperState::new(id, FileKind::Directory, generation, below);
        upper.owner = self.recorded_owner(&at.address)?;
        if merges || kept.is_some() {
            upper.kept_ctime = self.kept_ctime(&at.address)?;
        }
        upper.whole = Some(whole);
        let name = match &at.address {
            Address::Name(_, name) => name.as_encoded_bytes().into(),
            Address::Pinned(_) | Address::Open(_) => return Err(Errno::NOENT.into()),
        };
        let place = InLayer { dir: Arc::clone(&at.part), name };
        let found = Found { ino, kind: FileKind::Directory, upper: Some(upper) };
        Ok(LowerEntry::Layer(Box::new(found), place))
    }

    /// Where the data of a metacopy is, that lies at `address` in `layer`: under `name` in `below`, unless a redirect says
    /// otherwise. None where that is no file.
    pub(in super::super) fn find_data(
        &self,
        mut layer: LayerSerial,
        mut address: Address,
        below: &Below,
        name: &[u8],
    ) -> Result<Option<Data>> {
        let mut down = Down { below: below.clone(), name: name.to_vec(), having: None };
        loop {
            if !self.redirect(layer, &address, &mut down)? {
                return Ok(None);
            }
            let Some(at) = self.next_in_layers(&mut down)? else {
                let Some(archive) = down.below.archive else { return Ok(None) };
                let child = self.lower.child(archive, &down.name)?;
                let file = child.filter(|child| child.kind == FileKind::Regular);
                return Ok(file.map(|child| Data::Lower(child.inode)));
            };
            let Some(at) = at.filter(|at| at.kind == FileKind::Regular) else { return Ok(None) };
            if !self.is_metacopy(&at.address, &at.stat)? {
                let place = InLayer { dir: at.part, name: (*down.name).into() };
                return Ok(Some(Data::Layer(place)));
            }
            let record = self.read_record(at.part.layer, &at.address, at.kind, at.stat.stx_ino)?;
            if let Some(inode) = record.and_then(Record::archive)
                && !self.stack.has_layers_below(at.part.layer)
            {
                return Ok(Some(Data::Lower(inode)));
            }
            (layer, address) = (at.part.layer, at.address);
        }
    }
}
