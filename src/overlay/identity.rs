//! Whose a file is: the owner that the archive or the upper has stored, and the one that is shown.
//!
//! The names and meanings of the options are fuse-overlayfs's. They change what is shown, and so what
//! the kernel checks; what is stored stays. A mount in a user namespace can show none but the numbers
//! that the namespace has: the kernel refuses to change a file of any other owner (`EOVERFLOW`), even to
//! remove it.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::Result;
use crate::types::Owner;

/// A stretch of numbers that are shown as others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The first as it is stored.
    pub stored: u32,
    /// The first as it is shown.
    pub shown: u32,
    /// How many they are.
    pub count: u32,
}

/// How users or groups are to be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdOptions {
    /// All as this one.
    pub all: Option<u32>,
    /// Those in these ranges as others, and what is in none as the overflow id. Empty: as they are.
    pub ranges: Vec<IdRange>,
}

/// The numbers that a user namespace has of one sort.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdNamespace {
    /// First number and how many, as in `/proc/self/uid_map`; empty where it has all there are.
    pub known: Vec<(u32, u32)>,
    /// Our own.
    pub own: u32,
    /// What Linux shows of a number that a namespace has not: `/proc/sys/kernel/overflowuid`.
    pub overflow: u32,
}

impl Default for IdNamespace {
    fn default() -> Self {
        Self { known: Vec::new(), own: 0, overflow: 65_534 }
    }
}

impl IdNamespace {
    /// Whether it has `id`.
    pub fn has(&self, id: u32) -> bool {
        self.known.is_empty()
            || self.known.iter().any(|(first, count)| is_within(id, *first, *count))
    }
}

fn is_within(id: u32, first: u32, count: u32) -> bool {
    id.checked_sub(first).is_some_and(|distance| distance < count)
}

/// How the numbers of one sort are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdView {
    options: IdOptions,
    namespace: IdNamespace,
}

impl IdView {
    /// As `options` say, in `namespace`.
    pub fn new(options: IdOptions, namespace: IdNamespace) -> Self {
        Self { options, namespace }
    }

    /// What `stored` is shown as, were it for the options alone.
    fn asked(&self, stored: u32) -> u32 {
        if let Some(all) = self.options.all {
            return all;
        }
        if self.options.ranges.is_empty() {
            return stored;
        }
        let range = self.options.ranges.iter().find(|r| is_within(stored, r.stored, r.count));
        range.map_or(self.namespace.overflow, |range| range.shown + (stored - range.stored))
    }

    /// Whether `stored` is shown as what it is mapped to, rather than for want of that number in the
    /// namespace as something else.
    pub fn can_show(&self, stored: u32) -> bool {
        self.namespace.has(self.asked(stored))
    }

    /// What `stored` is shown as. What the namespace has no number for is shown as the overflow id or,
    /// where it has not even that, as ourselves: then all of it is ours.
    pub fn shown(&self, stored: u32) -> u32 {
        let asked = self.asked(stored);
        match (self.namespace.has(asked), self.namespace.has(self.namespace.overflow)) {
            (true, _) => asked,
            (false, true) => self.namespace.overflow,
            (false, false) => self.namespace.own,
        }
    }

    /// What a new file of the one shown as `shown` is stored as: through the ranges, if there are any.
    fn stored(&self, shown: u32) -> Result<u32> {
        if self.options.ranges.is_empty() {
            return Ok(shown);
        }
        let range = self.options.ranges.iter().find(|r| is_within(shown, r.shown, r.count));
        // As for a mount of the kernel's with mapped ids.
        let range = range.ok_or(Errno::OVERFLOW)?;
        Ok(range.stored + (shown - range.shown))
    }

    /// What is stored for `shown` where `current` is stored now: the same if that is how it is shown.
    fn changed(&self, current: u32, shown: u32) -> Result<u32> {
        if self.shown(current) == shown {
            return Ok(current);
        }
        if self.options.all.is_some() {
            // As vfat and others with an owner for all files.
            return Err(Errno::PERM.into());
        }
        self.stored(shown)
    }

    fn is_plain(&self) -> bool {
        self.options == IdOptions::default() && self.namespace.known.is_empty()
    }
}

/// Whose files are shown to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Users.
    pub uids: IdView,
    /// Groups.
    pub gids: IdView,
}

impl Identity {
    /// Whether all owners are shown as they are stored.
    pub fn is_plain(&self) -> bool {
        self.uids.is_plain() && self.gids.is_plain()
    }

    /// What `stored` is shown as.
    pub fn shown(&self, stored: Owner) -> Owner {
        Owner { uid: self.uids.shown(stored.uid), gid: self.gids.shown(stored.gid) }
    }

    /// What is stored of a new file that is to be shown as `shown`'s.
    pub(super) fn stored(&self, shown: Owner) -> Result<Owner> {
        Ok(Owner { uid: self.uids.stored(shown.uid)?, gid: self.gids.stored(shown.gid)? })
    }

    /// What is stored after a chown(2) to `uid` and `gid`, as they are shown.
    pub(super) fn changed(
        &self,
        current: Owner,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<Owner> {
        let uid = uid.map_or(Ok(current.uid), |uid| self.uids.changed(current.uid, uid))?;
        let gid = gid.map_or(Ok(current.gid), |gid| self.gids.changed(current.gid, gid))?;
        Ok(Owner { uid, gid })
    }

    /// An ACL as it is shown, of one as it is stored. Of entries that would be shown alike there is one:
    /// the first, which is the one that counts.
    pub(super) fn shown_acl(&self, stored: Vec<u8>) -> Vec<u8> {
        let Some(entries) = parse_acl(&stored) else {
            // What is none is not ours to judge.
            return stored;
        };
        let mut shown: Vec<AclEntry> = Vec::new();
        for entry in entries {
            let entry = self.shown_entry(entry);
            if !shown.iter().any(|other| (other.tag, other.id) == (entry.tag, entry.id)) {
                shown.push(entry);
            }
        }
        write_acl(&shown)
    }

    /// An ACL as it is stored, of one as it is shown that replaces `current`. An entry that is there
    /// already stays whose it is, and so do those that are shown as one with it.
    pub(super) fn stored_acl(&self, current: &[u8], shown: &[u8]) -> Result<Vec<u8>> {
        let current = parse_acl(current).unwrap_or_default();
        let mut stored = Vec::new();
        for entry in parse_acl(shown).ok_or(Errno::INVAL)? {
            let is_same = |one: &&AclEntry| {
                let one = self.shown_entry(**one);
                (one.tag, one.id) == (entry.tag, entry.id)
            };
            let mut same = current.iter().filter(is_same).copied();
            let id = match (same.next(), self.ids_of(entry.tag)) {
                (Some(first), _) => first.id,
                (None, None) => entry.id,
                (None, Some(ids)) if ids.options.all.is_some() => return Err(Errno::PERM.into()),
                (None, Some(ids)) => ids.stored(entry.id)?,
            };
            stored.push(AclEntry { id, ..entry });
            stored.extend(same);
        }
        Ok(write_acl(&stored))
    }

    fn shown_entry(&self, entry: AclEntry) -> AclEntry {
        let id = self.ids_of(entry.tag).map_or(entry.id, |ids| ids.shown(entry.id));
        AclEntry { id, ..entry }
    }

    /// Whose id an ACL's entry has, if any.
    fn ids_of(&self, tag: u16) -> Option<&IdView> {
        match tag {
            ACL_USER => Some(&self.uids),
            ACL_GROUP => Some(&self.gids),
            _ => None,
        }
    }
}

/// An ACL's entry: `struct posix_acl_xattr_entry` (`linux/posix_acl_xattr.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AclEntry {
    tag: u16,
    rights: u16,
    id: u32,
}

/// What an ACL begins with.
const ACL_VERSION: [u8; 4] = 2u32.to_le_bytes();
/// An entry for a user by number.
const ACL_USER: u16 = 0x02;
/// An entry for a group by number.
const ACL_GROUP: u16 = 0x08;

/// The entries of an ACL, as its attribute has them; all is little-endian.
fn parse_acl(acl: &[u8]) -> Option<Vec<AclEntry>> {
    let (entries, []) = acl.strip_prefix(&ACL_VERSION)?.as_chunks::<8>() else { return None };
    let entry = |&[t0, t1, r0, r1, ref id @ ..]: &[u8; 8]| AclEntry {
        tag: u16::from_le_bytes([t0, t1]),
        rights: u16::from_le_bytes([r0, r1]),
        id: u32::from_le_bytes(*id),
    };
    Some(entries.iter().map(entry).collect())
}

fn write_acl(entries: &[AclEntry]) -> Vec<u8> {
    let mut acl = ACL_VERSION.to_vec();
    for entry in entries {
        acl.extend_from_slice(&entry.tag.to_le_bytes());
        acl.extend_from_slice(&entry.rights.to_le_bytes());
        acl.extend_from_slice(&entry.id.to_le_bytes());
    }
    acl
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(ranges: &[(u32, u32, u32)]) -> IdOptions {
        let range = |&(stored, shown, count)| IdRange { stored, shown, count };
        IdOptions { all: None, ranges: ranges.iter().map(range).collect() }
    }

    #[test]
    fn ranges_map_both_ways_to_their_last_number() {
        let view = IdView::new(ranges(&[(1000, 0, 1), (2000, 1, 10)]), IdNamespace::default());
        for (stored, shown) in
            [(999, 65_534), (1000, 0), (1001, 65_534), (2000, 1), (2009, 10), (2010, 65_534)]
        {
            assert_eq!(view.shown(stored), shown, "{stored}");
        }
        for (shown, stored) in [(0, Some(1000)), (1, Some(2000)), (10, Some(2009)), (11, None)] {
            assert_eq!(view.stored(shown).ok(), stored, "{shown}");
        }
        // What has no number is not changed by being given the one it is shown with.
        assert_eq!(view.changed(999, 65_534).unwrap(), 999);
        assert!(view.changed(999, 65_533).unwrap_err().is(Errno::OVERFLOW));
        let last = IdView::new(ranges(&[(u32::MAX - 1, 5, 1)]), IdNamespace::default());
        assert_eq!((last.shown(u32::MAX - 1), last.shown(u32::MAX)), (5, 65_534));
    }

    #[test]
    fn one_owner_for_all_can_be_given_and_no_other() {
        let all = IdOptions { all: Some(7), ..ranges(&[(1000, 0, 1)]) };
        let view = IdView::new(all, IdNamespace::default());
        assert_eq!((view.shown(1000), view.shown(3)), (7, 7));
        assert_eq!(view.changed(3, 7).unwrap(), 3);
        assert!(view.changed(3, 8).unwrap_err().is(Errno::PERM));
        assert_eq!(view.stored(0).unwrap(), 1000, "new files are mapped back");
    }

    #[test]
    fn only_numbers_of_the_namespace_are_shown() {
        let namespace =
            |known: &[(u32, u32)]| IdNamespace { known: known.to_vec(), own: 0, overflow: 65_534 };
        let root_only = IdView::new(IdOptions::default(), namespace(&[(0, 1)]));
        assert_eq!((root_only.shown(0), root_only.shown(1000)), (0, 0));
        assert_eq!((root_only.can_show(0), root_only.can_show(1)), (true, false));
        let most = IdView::new(IdOptions::default(), namespace(&[(0, 1), (1, 65_536)]));
        assert_eq!((most.shown(65_536), most.shown(65_537)), (65_536, 65_534));
        // Given back what it is shown with, a file keeps its owner.
        assert_eq!(root_only.changed(1000, 0).unwrap(), 1000);
        assert!(!root_only.is_plain());
        assert!(IdView::new(IdOptions::default(), namespace(&[])).is_plain());
    }

    #[test]
    fn entries_of_an_acl_that_stay_keep_whom_they_were_for() {
        let acl = |entries: &[(u16, u16, u32)]| {
            let entry = |&(tag, rights, id): &_| AclEntry { tag, rights, id };
            write_acl(&entries.iter().map(entry).collect::<Vec<_>>())
        };
        let all = IdOptions { all: Some(7), ranges: Vec::new() };
        let uids = IdView::new(all, IdNamespace::default());
        let squashed = Identity { uids, ..Identity::default() };
        let owner = (0x01, 6, u32::MAX);
        let stored = acl(&[owner, (0x02, 5, 1000), (0x02, 4, 1001), (0x08, 1, 5)]);
        let shown = squashed.shown_acl(stored.clone());
        assert_eq!(shown, acl(&[owner, (0x02, 5, 7), (0x08, 1, 5)]));
        assert_eq!(squashed.stored_acl(&stored, &shown).unwrap(), stored);
        let changed = acl(&[owner, (0x02, 2, 7), (0x08, 1, 5), (0x08, 1, 6)]);
        assert_eq!(
            squashed.stored_acl(&stored, &changed).unwrap(),
            acl(&[owner, (0x02, 2, 1000), (0x02, 4, 1001), (0x08, 1, 5), (0x08, 1, 6)])
        );
        assert!(squashed.stored_acl(&[], &shown).unwrap_err().is(Errno::PERM));

        let uids = IdView::new(ranges(&[(1000, 0, 10)]), IdNamespace::default());
        let mapped = Identity { uids, ..Identity::default() };
        assert_eq!(
            mapped.shown_acl(stored.clone()),
            acl(&[owner, (0x02, 5, 0), (0x02, 4, 1), (0x08, 1, 5)])
        );
        assert_eq!(mapped.stored_acl(&[], &acl(&[(0x02, 1, 3)])).unwrap(), acl(&[(0x02, 1, 1003)]));
        assert!(mapped.stored_acl(&[], &acl(&[(0x02, 1, 10)])).unwrap_err().is(Errno::OVERFLOW));
        for bad in [&b""[..], b"abc", &stored[..stored.len() - 1], &stored[1..]] {
            assert!(mapped.stored_acl(&[], bad).unwrap_err().is(Errno::INVAL));
            assert_eq!(mapped.shown_acl(bad.to_vec()), bad);
        }
    }
}
