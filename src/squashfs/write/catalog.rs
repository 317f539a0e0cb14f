//! Notes of what the tree holds, taken while its data is written and read again for the tables,
//! which need what is only known at the end: how many names an inode has, and where all data went.

use std::collections::HashMap;

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::error::Error;
use super::spool::{Spool, SpoolReader};
use super::stat::{Stat, Version};
use crate::types::{FileKind, InodeRef, Timestamp};

/// The superblock counts owners in 16 bits.
const MAX_IDS: usize = u16::MAX as usize;
/// No other name leads to the same inode.
const NO_LINK: u32 = u32::MAX;
/// The directory of the root.
const NO_PARENT: u64 = u64::MAX;
/// Instead of a kind: the end of a directory, and one more name of an inode.
const LEAVE: u16 = 0;
const AGAIN: u16 = 100;

/// Where a note lies among the notes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoteAt(pub(super) u64);

/// Where the data of a file went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Data {
    /// The first of its blocks, counted over all blocks that were written.
    pub(super) first_block: u64,
    /// The inode of the base whose blocks it has instead.
    pub(super) kept: Option<InodeRef>,
    /// How many bytes of it are holes.
    pub(super) sparse: u64,
    /// The fragment that holds its end, and where in it.
    pub(super) fragment: Option<(u32, u32)>,
}

impl Data {
    pub(super) const NONE: Self = Self { first_block: 0, kept: None, sparse: 0, fragment: None };
}

/// An inode as it is noted.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) kind: FileKind,
    pub(super) permissions: u16,
    pub(super) uid_index: u16,
    pub(super) gid_index: u16,
    pub(super) rdev: u64,
    pub(super) xattrs: u32,
    pub(super) version: Version,
    pub(super) data: Data,
    pub(super) target: Vec<u8>,
    /// Its number among the inodes that may have several names.
    pub(super) link: Option<u32>,
}

/// A note, read back.
pub(super) enum Note {
    Enter { name: Vec<u8>, node: Node },
    Leave,
    Leaf { name: Vec<u8>, node: Node },
    Again { name: Vec<u8>, link: u32 },
}

/// A note as it is kept, followed by the name and the target. Never leaves this process.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct RawNote {
    parent: u64,
    size: u64,
    rdev: u64,
    first_block: u64,
    sparse: u64,
    mtime_seconds: i64,
    ctime_seconds: i64,
    mtime_nanos: u32,
    ctime_nanos: u32,
    fragment: u32,
    fragment_offset: u32,
    xattrs: u32,
    link: u32,
    what: u16,
    permissions: u16,
    uid_index: u16,
    gid_index: u16,
    name_len: u16,
    target_len: u16,
    /// Whether `first_block` is an inode of the base.
    is_kept: u32,
}

/// All notes of one tree.
pub(super) struct Catalog {
    notes: Spool,
    directory: Vec<NoteAt>,
    ids: HashMap<u32, u16>,
    id_list: Vec<u32>,
    links: HashMap<(u64, u64), Linked>,
    names_of: Vec<u32>,
    inodes: u32,
}

/// An inode of which other names are still to come.
struct Linked {
    number: u32,
    kind: FileKind,
    size: u64,
    mtime: Timestamp,
}

impl Linked {
    /// Whether `stat` is this inode's, and not that of one which got its number when it was
    /// deleted. Other names that come and go change its `ctime`, and nothing here.
    fn is(&self, stat: &Stat) -> bool {
        let Version { size, mtime, .. } = stat.version;
        (self.kind, self.size, self.mtime) == (stat.kind, size, mtime)
    }
}

impl Catalog {
    pub(super) fn new() -> Self {
        Self {
            notes: Spool::default(),
            directory: Vec::new(),
            ids: HashMap::new(),
            id_list: Vec::new(),
            links: HashMap::new(),
            names_of: Vec::new(),
            inodes: 0,
        }
    }

    /// The distinct owners and groups, in the order of their indexes.
    pub(super) fn ids(&self) -> &[u32] {
        &self.id_list
    }

    /// How many inodes there are.
    pub(super) fn inodes(&self) -> u32 {
        self.inodes
    }

    /// How many names of the tree lead to an inode that may have several.
    pub(super) fn names_of(&self, link: u32) -> u32 {
        self.names_of.get(link as usize).copied().unwrap_or(1)
    }

    /// How many inodes may have several names.
    pub(super) fn link_count(&self) -> usize {
        self.names_of.len()
    }

    /// A node from what the system says, with `xattrs` the index of its attributes.
    pub(super) fn node(&mut self, stat: &Stat, xattrs: u32) -> Result<Node, Error> {
        Ok(Node {
            kind: stat.kind,
            permissions: stat.permissions,
            uid_index: self.id(stat.uid)?,
            gid_index: self.id(stat.gid)?,
            rdev: stat.rdev,
            xattrs,
            version: stat.version,
            data: Data::NONE,
            target: Vec::new(),
            link: None,
        })
    }

    fn id(&mut self, id: u32) -> Result<u16, Error> {
        if let Some(&index) = self.ids.get(&id) {
            return Ok(index);
        }
        if self.id_list.len() == MAX_IDS {
            return Err(Error::limit(format!("more than {MAX_IDS} distinct owners and groups")));
        }
        let index = self.id_list.len() as u16;
        self.id_list.push(id);
        self.ids.insert(id, index);
        Ok(index)
    }

    /// Notes the start of a directory.
    pub(super) fn enter(&mut self, name: &[u8], node: &Node) -> Result<(), Error> {
        self.count()?;
        let at = self.append(kind_code(node.kind), name, node)?;
        self.directory.push(at);
        Ok(())
    }

    /// Notes the end of the directory entered last.
    pub(super) fn leave(&mut self) -> Result<(), Error> {
        self.directory.pop();
        let mut raw = RawNote::new_zeroed();
        raw.what = LEAVE;
        self.notes.append(raw.as_bytes())
    }

    /// Notes an inode that is no directory.
    pub(super) fn leaf(&mut self, name: &[u8], node: &Node) -> Result<NoteAt, Error> {
        self.count()?;
        self.append(kind_code(node.kind), name, node)
    }

    /// Whether `name` is one more name of an inode that was noted: then it is noted here. Otherwise,
    /// where other names may follow, a number for the inode's node.
    pub(super) fn again(&mut self, name: &[u8], stat: &Stat) -> Result<Again, Error> {
        if stat.nlink < 2 {
            return Ok(Again::No(None));
        }
        let found = self.links.get(&stat.identity).filter(|linked| linked.is(stat));
        if let Some(&Linked { number: link, .. }) = found {
            let names = self.names_of.get_mut(link as usize);
            let names = names.map_or(0, |names| {
                *names += 1;
                *names
            });
            // The last one: nobody will ask again.
            if u64::from(names) >= stat.nlink {
                self.links.remove(&stat.identity);
            }
            let mut raw = RawNote::new_zeroed();
            (raw.what, raw.link, raw.name_len) = (AGAIN, link, name.len() as u16);
            self.notes.append(raw.as_bytes())?;
            self.notes.append(name)?;
            return Ok(Again::Yes);
        }
        let link = u32::try_from(self.names_of.len()).ok().filter(|&link| link != NO_LINK);
        let link = link.ok_or_else(|| Error::limit("that many hard links"))?;
        self.names_of.push(1);
        let Version { size, mtime, .. } = stat.version;
        let linked = Linked { number: link, kind: stat.kind, size, mtime };
        self.links.insert(stat.identity, linked);
        Ok(Again::No(Some(link)))
    }

    fn count(&mut self) -> Result<(), Error> {
        // The kernel computes with the number of inodes plus one.
        self.inodes = (self.inodes.checked_add(1).filter(|&inodes| inodes < u32::MAX))
            .ok_or_else(|| Error::limit("more than 4294967294 inodes"))?;
        Ok(())
    }

    fn append(&mut self, what: u16, name: &[u8], node: &Node) -> Result<NoteAt, Error> {
        let at = NoteAt(self.notes.len());
        let (fragment, fragment_offset) = node.data.fragment.unwrap_or((u32::MAX, 0));
        let raw = RawNote {
            parent: self.directory.last().map_or(NO_PARENT, |parent| parent.0),
            size: node.version.size,
            rdev: node.rdev,
            first_block: node.data.kept.map_or(node.data.first_block, InodeRef::packed),
            sparse: node.data.sparse,
            mtime_seconds: node.version.mtime.seconds,
            ctime_seconds: node.version.ctime.seconds,
            mtime_nanos: node.version.mtime.nanos,
            ctime_nanos: node.version.ctime.nanos,
            fragment,
            fragment_offset,
            xattrs: node.xattrs,
            link: node.link.unwrap_or(NO_LINK),
            what,
            permissions: node.permissions,
            uid_index: node.uid_index,
            gid_index: node.gid_index,
            // Linux bounds names by 255 bytes and targets by 4095.
            name_len: name.len() as u16,
            target_len: node.target.len() as u16,
            is_kept: node.data.kept.is_some().into(),
        };
        self.notes.append(raw.as_bytes())?;
        self.notes.append(name)?;
        self.notes.append(&node.target)?;
        Ok(at)
    }

    /// The version and the data of a file noted earlier.
    pub(super) fn file(&self, at: NoteAt) -> Result<(Version, Data), Error> {
        let raw: RawNote = self.notes.read(at.0)?;
        Ok((raw.version(), raw.data()))
    }

    /// The path of something noted earlier, from the root of the tree.
    pub(super) fn path(&self, at: NoteAt) -> Result<Vec<u8>, Error> {
        let mut names = Vec::new();
        let mut at = at.0;
        loop {
            let raw: RawNote = self.notes.read(at)?;
            if raw.parent == NO_PARENT {
                break;
            }
            let mut name = vec![0; raw.name_len.into()];
            self.notes.read_at(at + size_of::<RawNote>() as u64, &mut name)?;
            names.push(name);
            at = raw.parent;
        }
        names.reverse();
        Ok(names.join(&b'/'))
    }

    /// Reads all notes from the first on.
    pub(super) fn read(&self) -> Notes<'_> {
        Notes(SpoolReader::new(&self.notes))
    }
}

/// What [`Catalog::again`] found.
pub(super) enum Again {
    /// The inode is there, and the name noted.
    Yes,
    /// The inode is new. With a number where it has other names.
    No(Option<u32>),
}

impl RawNote {
    fn version(&self) -> Version {
        Version {
            size: self.size,
            mtime: Timestamp { seconds: self.mtime_seconds, nanos: self.mtime_nanos },
            ctime: Timestamp { seconds: self.ctime_seconds, nanos: self.ctime_nanos },
        }
    }

    fn data(&self) -> Data {
        let fragment = (self.fragment != u32::MAX).then_some((self.fragment, self.fragment_offset));
        let data = Data { sparse: self.sparse, fragment, ..Data::NONE };
        match self.is_kept {
            0 => Data { first_block: self.first_block, ..data },
            _ => Data { kept: Some(InodeRef::from_packed(self.first_block)), ..data },
        }
    }
}

/// Reads notes in order.
pub(super) struct Notes<'a>(SpoolReader<'a>);

impl Notes<'_> {
    /// The next one, if there is one.
    pub(super) fn next(&mut self) -> Result<Option<Note>, Error> {
        if self.0.is_at_end() {
            return Ok(None);
        }
        let raw: RawNote = self.0.read()?;
        let name = self.0.read_vec(raw.name_len.into())?;
        let target = self.0.read_vec(raw.target_len.into())?;
        let kind = match raw.what {
            LEAVE => return Ok(Some(Note::Leave)),
            AGAIN => return Ok(Some(Note::Again { name, link: raw.link })),
            1 => FileKind::Directory,
            2 => FileKind::Regular,
            3 => FileKind::Symlink,
            4 => FileKind::BlockDevice,
            5 => FileKind::CharDevice,
            6 => FileKind::Fifo,
            _ => FileKind::Socket,
        };
        let node = Node {
            kind,
            permissions: raw.permissions,
            uid_index: raw.uid_index,
            gid_index: raw.gid_index,
            rdev: raw.rdev,
            xattrs: raw.xattrs,
            version: raw.version(),
            data: raw.data(),
            target,
            link: (raw.link != NO_LINK).then_some(raw.link),
        };
        Ok(Some(match kind {
            FileKind::Directory => Note::Enter { name, node },
            _ => Note::Leaf { name, node },
        }))
    }
}

/// The number that the format has for a kind in basic inodes and in listings.
pub(super) fn kind_code(kind: FileKind) -> u16 {
    match kind {
        FileKind::Directory => 1,
        FileKind::Regular => 2,
        FileKind::Symlink => 3,
        FileKind::BlockDevice => 4,
        FileKind::CharDevice => 5,
        FileKind::Fifo => 6,
        FileKind::Socket => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_number_used_again_is_not_one_more_name() {
        let time = |seconds| Timestamp { seconds, nanos: 0 };
        let version = Version { size: 10, mtime: time(1), ctime: time(1) };
        let file = Stat {
            kind: FileKind::Regular,
            permissions: 0o644,
            uid: 0,
            gid: 0,
            nlink: 3,
            identity: (1, 2),
            rdev: 0,
            version,
        };
        let with = |version| Stat { version, ..file.clone() };
        for (second, same) in [
            (file.clone(), true),
            (with(Version { ctime: time(5), ..version }), true),
            (Stat { permissions: 0o600, ..file.clone() }, true),
            (with(Version { mtime: time(5), ..version }), false),
            (with(Version { size: 11, ..version }), false),
            (Stat { kind: FileKind::Fifo, ..file.clone() }, false),
            (Stat { identity: (1, 3), ..file.clone() }, false),
        ] {
            let mut catalog = Catalog::new();
            assert!(matches!(catalog.again(b"a", &file).unwrap(), Again::No(Some(0))));
            match catalog.again(b"b", &second).unwrap() {
                Again::Yes => assert!(same, "{second:?}"),
                Again::No(link) => assert_eq!((link, same), (Some(1), false), "{second:?}"),
            }
            assert_eq!(catalog.names_of(0), if same { 2 } else { 1 });
        }
    }
}
