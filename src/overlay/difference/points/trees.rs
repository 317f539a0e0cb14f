//! Two trees of one stack, and the directories that are gone through side by side.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::super::super::Overlay;
use super::super::super::dirs::os_str;
use super::super::super::error::Result;
use super::super::super::ino;
use super::super::super::lookup::Held;
use super::super::step::join;
use crate::inode_ops::list_with;
use crate::types::{FileKind, Ino, LayerSerial};

/// Names in a directory, in order.
pub(super) type Names = BTreeSet<Box<[u8]>>;

/// The two trees.
pub(super) struct Trees<'a> {
    /// What is compared with.
    pub(super) from: &'a Overlay,
    /// What is told of.
    pub(super) to: &'a Overlay,
    /// The layers that both have.
    shared: HashSet<LayerSerial>,
    /// The topmost layer of `from`.
    top_of_from: Option<LayerSerial>,
    /// Names of files that were changed by another of their names, and are in no layer by these, by directory.
    aliases: HashMap<Ino, Names>,
}

/// Something in one of the trees.
pub(super) struct Entry<'a> {
    pub(super) held: Held<'a>,
    pub(super) path: Box<[u8]>,
}

impl Entry<'_> {
    pub(super) fn is_directory(&self) -> bool {
        self.held.kind == FileKind::Directory
    }
}

/// What two trees have under a name, or one has that the other has not.
#[derive(Clone)]
pub(super) struct Pair<'a> {
    pub(super) from: Option<Rc<Entry<'a>>>,
    pub(super) to: Option<Rc<Entry<'a>>>,
    /// Whether it is the same file or directory. Of a directory, what no layer has a name for is then the same, too.
    pub(super) are_same: bool,
    /// The path in the tree that is told of, or where it would be.
    pub(super) path: Box<[u8]>,
}

impl<'a> Trees<'a> {
    pub(super) fn new(from: &'a Overlay, to: &'a Overlay) -> Result<Self> {
        let [before, after] = [from, to].map(|tree| tree.stack.serials());
        let both = before.iter().zip(&after).take_while(|(one, other)| one == other);
        let shared = both.map(|(serial, _)| *serial).collect();
        let top_of_from = before.last().copied();
        let aliases = aliases(to)?;
        Ok(Self { from, to, shared, top_of_from, aliases })
    }

    /// The roots of both.
    pub(super) fn roots(&self) -> Result<Pair<'a>> {
        let root = |tree: &'a Overlay| -> Result<_> {
            let held = tree.count(Ino::ROOT, FileKind::Directory)?;
            Ok(Some(Rc::new(Entry { held, path: Box::default() })))
        };
        let (from, to) = (root(self.from)?, root(self.to)?);
        Ok(Pair { from, to, are_same: true, path: Box::default() })
    }

    /// What has `name` in the directories of `pair`.
    pub(super) fn look(&self, pair: &Pair<'a>, name: &[u8]) -> Result<Pair<'a>> {
        let entry = |tree: &'a Overlay, dir: &Option<Rc<Entry<'a>>>| -> Result<_> {
            let Some(dir) = dir else { return Ok(None) };
            let held = tree.across_freezes(|| tree.hold(dir.held.ino, os_str(name)));
            let path = joined(&dir.path, name);
            Ok(unless_gone(held)?.map(|held| Rc::new(Entry { held, path })))
        };
        let (from, to) = (entry(self.from, &pair.from)?, entry(self.to, &pair.to)?);
        let are_same = match (&from, &to) {
            (Some(from), Some(to)) => {
                from.held.kind == to.held.kind && self.number_from(from) == self.number(to)
            }
            _ => false,
        };
        Ok(Pair { from, to, are_same, path: joined(&pair.path, name) })
    }

    /// What has the path `path` in what is compared with.
    pub(super) fn find_from(&self, path: &[u8]) -> Result<Option<Rc<Entry<'a>>>> {
        let mut at = Pair { to: None, ..self.roots()? };
        for name in path.split(|byte| *byte == b'/') {
            at = self.look(&at, name)?;
        }
        Ok(at.from)
    }

    /// Names in the directories of `pair` that may differ.
    pub(super) fn names(&self, pair: &Pair<'a>) -> Result<Names> {
        let mut names = Names::new();
        for (tree, dir) in [(self.from, &pair.from), (self.to, &pair.to)] {
            let Some(dir) = dir else { continue };
            let ino = dir.held.ino;
            let listed = match pair.are_same {
                true => self.list_layers(tree, ino, &mut names),
                false => list_all(tree, ino, &mut names),
            };
            unless_gone(listed)?;
        }
        if let Some(to) = pair.to.as_ref().filter(|_| pair.are_same) {
            let aliases = self.aliases.get(&self.number(to));
            names.extend(aliases.into_iter().flatten().cloned());
        }
        Ok(names)
    }

    /// Names that the layers have which only one of the trees has, the live upper being one.
    fn list_layers(&self, tree: &Overlay, ino: Ino, names: &mut Names) -> Result<()> {
        let view = {
            let _names = tree.names.read();
            tree.dir_view(ino)?
        };
        let parts = view.below.parts().iter();
        let parts = parts.filter(|part| !self.shared.contains(&part.layer));
        let parts = parts.map(|part| tree.part_fds.get(part));
        for fd in view.fd.into_iter().map(Ok).chain(parts) {
            for (name, ..) in list_with(&*fd?, OFlags::NOATIME)? {
                names.insert(name.as_bytes().into());
            }
        }
        Ok(())
    }

    /// The number of something in the tree that is told of.
    pub(super) fn number(&self, to: &Entry<'_>) -> Ino {
        self.to.number(to.held.ino)
    }

    /// The number of something in what is compared with.
    pub(super) fn number_from(&self, from: &Entry<'_>) -> Ino {
        self.from.number(from.held.ino)
    }

    /// Whether `from` may have something of this number.
    pub(super) fn may_be_in_from(&self, number: Ino) -> bool {
        // One that is none of its layers may have been merged into one that is.
        ino::layer_of_birth(number).is_none_or(|layer| Some(layer) <= self.top_of_from)
    }
}

fn joined(path: &[u8], name: &[u8]) -> Box<[u8]> {
    let mut path = path.to_vec();
    join(&mut path, name);
    path.into()
}

fn list_all(tree: &Overlay, ino: Ino, names: &mut Names) -> Result<()> {
    let mut from = 0;
    loop {
        let before = from;
        tree.readdir(ino, from, false, &mut |entry| {
            from = entry.next_cookie;
            if entry.name != OsStr::new(".") && entry.name != OsStr::new("..") {
                names.insert(entry.name.as_bytes().into());
            }
            ControlFlow::Continue(())
        })?;
        if from == before {
            return Ok(());
        }
    }
}

/// Names of files of the index that only the lower has: files with several names, of which another was touched.
fn aliases(tree: &Overlay) -> Result<HashMap<Ino, Names>> {
    let mut aliases: HashMap<Ino, Names> = HashMap::new();
    for (number, entry) in tree.index.all_by_ino() {
        for (dir, name) in tree.lower_names(number, &entry)? {
            let Some(dir) = unless_gone(tree.hold_again(dir))? else { continue };
            let (mut at, mut name) = (dir.ino, (*name).into());
            // On the way to it, too.
            while aliases.entry(tree.number(at)).or_default().insert(name) {
                let Some((parent, own)) = unless_gone(tree.nodes.name_of(at))?.flatten() else {
                    break;
                };
                (at, name) = (parent, own.as_bytes().into());
            }
        }
    }
    Ok(aliases)
}

/// Nothing, of what is not there, or was removed while it was looked at.
pub(super) fn unless_gone<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(error) if [Errno::NOENT, Errno::STALE].iter().any(|errno| error.is(*errno)) => Ok(None),
        other => other.map(Some),
    }
}
