//! The index: where the upper keeps lower inodes that have several names, once copied up.
//!
//! Each is a hard link in the work directory's `index` directory, named as kernel overlayfs names it (with
//! `index=on`). Through it every lower name of the inode leads to the one copy, though only the
//! names that were written through exist in the upper. How many names the merged tree has is kept
//! with it, relative to the links that the upper has.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use parking_lot::RwLock;
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::Overlay;
use super::attr::kind_of;
use super::dirs::DirView;
use super::error::{Error, Result};
use super::ids::Ids;
use super::lookup::Physical;
use super::lower::Lower;
use super::upper::{Mark, Record, Upper, parse_index_name};
use crate::inode_ops::{Address, list};
use crate::types::{FileKind, Ino, InodeRef};

/// What is in the index directory.
#[derive(Debug, Default)]
pub(super) struct Index(RwLock<Entries>, Arc<Ids>);

#[derive(Debug, Default)]
struct Entries {
    by_ino: HashMap<Ino, Entry>,
    by_st_ino: HashMap<u64, Ino>,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: OsString,
    pub(super) st_ino: u64,
    /// The inode of the archive that it is a copy of; none of what was born in a layer.
    pub(super) lower: Option<InodeRef>,
    /// How many names the lower has of it.
    pub(super) lower_nlink: u32,
}

impl Index {
    /// Reads the index of `upper`. Entries that do not lead to a lower inode are left alone.
    pub(super) fn load(upper: &Upper, lower: &Lower, ids: Arc<Ids>) -> Result<Self> {
        let mut entries = Entries::default();
        for (name, st_ino, _) in list(&upper.index)? {
            let layers = parse_layer_index_name(name.as_encoded_bytes());
            let number = parse_index_name(name.as_encoded_bytes());
            if layers.is_none() && number.is_none() {
                tracing::warn!("index: {} is not ours", name.display());
                continue;
            }
            let address = Address::at(&upper.index, &name);
            let stat = address.stat()?;
            let kind = kind_of(&stat)?;
            let record = upper.marks.for_kind(kind).get(&address, Mark::Record)?;
            let record = record.as_deref().and_then(|record| Record::parse(record, st_ino));
            let inode = match (record.and_then(Record::archive), number) {
                (Some(inode), _) => Some(inode),
                (None, Some(number)) => lower.archive().inode_by_number(number)?,
                (None, None) => None,
            };
            let (ino, lower_nlink) = match (layers, inode) {
                (Some((ino, nlink)), _) => (ino, nlink),
                (None, Some(inode)) => (lower.ino(inode)?, lower.inode(inode)?.nlink),
                (None, None) => continue,
            };
            let entry = Entry { name, st_ino, lower: inode, lower_nlink };
            let links = stat.stx_nlink;
            if i64::from(links) + extra_links(upper, &address, kind, &entry, links)? <= 0 {
                // Its last name went, and the server with it before this did.
                rustix::fs::unlinkat(&upper.index, entry.name.as_os_str(), AtFlags::empty())
                    .map_err(Error::sys("unlink", entry.name.display()))?;
            } else {
                entries.add(ino, entry);
            }
        }
        Ok(Self(RwLock::new(entries), ids))
    }

    /// The entry of `ino`.
    pub(super) fn get(&self, ino: Ino) -> Option<Entry> {
        self.0.read().by_ino.get(&self.1.number_of(ino)).cloned()
    }

    /// All entries.
    pub(super) fn all(&self) -> Vec<Entry> {
        self.0.read().by_ino.values().cloned().collect()
    }

    /// All entries, with what they are of.
    pub(super) fn all_by_ino(&self) -> Vec<(Ino, Entry)> {
        self.0.read().by_ino.iter().map(|(ino, entry)| (*ino, entry.clone())).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.read().by_ino.is_empty()
    }

    /// The lower number of inode `st_ino` of the upper.
    pub(super) fn ino_of(&self, st_ino: u64) -> Option<Ino> {
        self.0.read().by_st_ino.get(&st_ino).copied()
    }

    /// Notes that `ino` is in the index directory as `entry` says.
    pub(super) fn add(&self, ino: Ino, entry: Entry) {
        self.0.write().add(self.1.number_of(ino), entry);
    }

    fn remove(&self, ino: Ino) {
        let mut entries = self.0.write();
        if let Some(entry) = entries.by_ino.remove(&self.1.number_of(ino)) {
            entries.by_st_ino.remove(&entry.st_ino);
        }
    }
}

/// Makes sure that what is in the index belongs to this upper, `is_new` or not: another's would show its changes in this
/// one. What no other upper has is removed; what one has may be all that is left of its changes.
pub(super) fn claim(upper: &Upper, is_new: bool) -> Result<()> {
    let (root, index) = (upper.root_address(), Address::at(&upper.index, OsStr::new(".")));
    let [of_upper, of_index] = [&root, &index].map(|dir| upper.marks.get(dir, Mark::Index));
    let (of_upper, of_index) = (of_upper?, of_index?);
    if of_upper.is_some() && of_upper == of_index {
        return Ok(());
    }
    // Until there was such a mark, neither had one.
    let may_be_ours = !is_new && of_index.is_none();
    if !may_be_ours {
        let others = list(&upper.index)?;
        for (name, ..) in &others {
            if Address::at(&upper.index, name).stat()?.stx_nlink > 1 {
                let problem = "the index in its work directory belongs to another upper; use \
                               another work directory, or remove that one if the other is gone";
                let (path, problem) = (upper.path.clone(), problem.to_owned());
                return Err(Error::Unusable { path, problem });
            }
        }
        for (name, ..) in &others {
            rustix::fs::unlinkat(&upper.index, name.as_os_str(), AtFlags::empty())
                .map_err(Error::sys("unlink", name.display()))?;
        }
    }
    let id = match of_upper {
        Some(id) => id,
        None => {
            let mut id = vec![0; 16];
            getrandom::fill(&mut id).map_err(|_| Errno::IO)?;
            upper.marks.set(&root, Mark::Index, &id)?;
            id
        }
    };
    upper.marks.set(&index, Mark::Index, &id)
}

impl Entries {
    fn add(&mut self, ino: Ino, entry: Entry) {
        self.by_st_ino.insert(entry.st_ino, ino);
        self.by_ino.insert(ino, entry);
    }
}

impl Overlay {
    /// Where the index keeps `ino`.
    pub(super) fn index_address(&self, ino: Ino) -> Result<Address> {
        let entry = self.index.get(ino).ok_or_else(|| not_indexed(ino))?;
        Ok(Address::at(&self.upper()?.index, &entry.name))
    }

    /// How many more names (or fewer) the merged tree has of the inode that `entry` leads to than the
    /// upper has links. `links` is the upper's count.
    pub(super) fn extra_links(
        &self,
        inode: &Address,
        kind: FileKind,
        entry: &Entry,
        links: u32,
    ) -> Result<i64> {
        extra_links(self.upper()?, inode, kind, entry, links)
    }

    /// Keeps `extra`, as [`Self::extra_links`] reads it.
    fn set_extra_links(&self, ino: Ino, inode: &Address, kind: FileKind, extra: i64) -> Result<()> {
        let marks = self.upper()?.marks.for_kind(kind);
        marks.set(inode, Mark::Nlink, &nlink_mark(b'U', extra))?;
        self.nodes.update(ino, |upper| upper.extra_links = extra);
        Ok(())
    }

    /// Removes the entry of `ino`, the last of its names being gone.
    pub(super) fn unindex(&self, ino: Ino) -> Result<()> {
        if let Some(entry) = self.index.get(ino) {
            self.index.remove(ino);
            let index = &self.upper()?.index;
            rustix::fs::unlinkat(index, entry.name.as_os_str(), AtFlags::empty())
                .map_err(Error::sys("unlink", entry.name.display()))?;
        }
        Ok(())
    }

    /// Makes sure that `name` in `dir`, which means `ino`, is in the upper itself: a lower name of an
    /// inode that was copied up through another one may not be. The merged tree has as many names
    /// as before, at any moment. Called with `names` held exclusively.
    pub(super) fn link_alias(
        &self,
        ino: Ino,
        dir: &DirView,
        name: &OsStr,
        physical: Physical,
    ) -> Result<Physical> {
        let Some(entry) = self.index.get(ino).filter(|_| physical == Physical::Absent) else {
            return Ok(physical);
        };
        let state = self.nodes.upper(ino)?.ok_or_else(|| not_indexed(ino))?;
        let inode = self.index_address(ino)?;
        let fd = dir.fd()?;
        self.set_impure(dir.ino, fd)?;
        // While the upper's count changes and the merged one does not, it is kept relative to the
        // lower's.
        let names = i64::from(inode.stat()?.stx_nlink) + state.extra_links;
        let lower = i64::from(entry.lower_nlink);
        let marks = self.upper()?.marks.for_kind(state.kind);
        marks.set(&inode, Mark::Nlink, &nlink_mark(b'L', names - lower))?;
        inode.link_to(fd, name)?;
        self.set_extra_links(ino, &inode, state.kind, state.extra_links - 1)?;
        Ok(Physical::Entry)
    }
}

fn not_indexed(ino: Ino) -> Error {
    Error::stale(format_args!("inode {ino} is not in the index any more"))
}

fn extra_links(
    upper: &Upper,
    inode: &Address,
    kind: FileKind,
    entry: &Entry,
    links: u32,
) -> Result<i64> {
    let mark = upper.marks.for_kind(kind).get(inode, Mark::Nlink)?;
    Ok(match mark.as_deref().and_then(parse_nlink) {
        Some((b'U', difference)) => difference,
        Some((_, difference)) => i64::from(entry.lower_nlink) + difference - i64::from(links),
        // Without a mark, all that is not a name is the link in the index itself.
        None => -1,
    })
}

/// The name in the index of `ino`, which has `nlink` names in the frozen layer that it is copied from. It is no name of
/// kernel overlayfs's, which knows no numbers of ours.
pub(super) fn layer_index_name(ino: Ino, nlink: u32) -> String {
    format!("thawfs-{:016x}-{nlink}", ino.0)
}

/// What [`layer_index_name`] was made of.
fn parse_layer_index_name(name: &[u8]) -> Option<(Ino, u32)> {
    let (ino, nlink) = std::str::from_utf8(name).ok()?.strip_prefix("thawfs-")?.split_once('-')?;
    let found = (Ino(u64::from_str_radix(ino, 16).ok()?), nlink.parse().ok()?);
    (layer_index_name(found.0, found.1).as_bytes() == name).then_some(found)
}

/// How an nlink mark says `difference` to the count of the upper (`U`) or lower (`L`).
pub(super) fn nlink_mark(base: u8, difference: i64) -> Vec<u8> {
    format!("{}{difference:+}", char::from(base)).into_bytes()
}

/// The letter and the number of an nlink mark.
fn parse_nlink(mark: &[u8]) -> Option<(u8, i64)> {
    let (letter, number) = mark.split_first()?;
    let number = std::str::from_utf8(number).ok()?.parse::<i32>().ok()?;
    matches!(letter, b'U' | b'L').then_some((*letter, i64::from(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nlink_marks_of_either_base_are_read_and_nonsense_is_not() {
        for (mark, expected) in [
            ("U+1", Some((b'U', 1))),
            ("L-2", Some((b'L', -2))),
            ("U+0", Some((b'U', 0))),
            ("X+1", None),
            ("U", None),
            ("", None),
            ("U+99999999999", None),
        ] {
            assert_eq!(parse_nlink(mark.as_bytes()), expected, "{mark}");
        }
        assert_eq!(parse_nlink(&nlink_mark(b'L', -3)), Some((b'L', -3)));
        assert_eq!(nlink_mark(b'U', 0), b"U+0");
    }

    #[test]
    fn names_in_the_index_of_what_a_layer_has_are_read_as_written_and_others_are_not() {
        let name = layer_index_name(Ino(u64::MAX - 5), 12);
        assert_eq!(parse_layer_index_name(name.as_bytes()), Some((Ino(u64::MAX - 5), 12)));
        for bad in ["thawfs-", "thawfs-1-2", &name[1..], &name.to_uppercase(), &format!("{name}0x")]
        {
            assert_eq!(parse_layer_index_name(bad.as_bytes()), None, "{bad}");
        }
    }
}
