//! The copies that a merged layer is made of.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{OFlags, Statx, Timestamps};

use super::super::super::Overlay;
use super::super::super::build::{FrozenInode, Original};
use super::super::super::ctime::KeptCtime;
use super::super::super::describe::Found;
use super::super::super::dirs::os_str;
use super::super::super::error::{Error, Result};
use super::super::super::lower::LowerEntry;
use super::super::super::node::{Data, InLayer, UpperState};
use super::super::super::upper::{Mark, Upper, Whiteouts};
use super::super::{Below, Layer, Part};
use super::below::{Paths, data_of};
use super::{DataAt, Inode, MergedLayer, Run, Stand, are_same, place_of, unmerged};
use crate::inode_ops::{
    Address, copy_data, list_with, make_directory, make_file, make_special, make_symlink, set_size,
    times_of,
};
use crate::types::{FileKind, Ino};

/// A directory whose contents are to be made.
struct Pending {
    /// Itself in the run, and what is below it.
    whole: Below,
    part: Arc<Part>,
}

/// A directory that was made: what is made in it moves its times.
struct Made {
    part: Arc<Part>,
    times: Timestamps,
}

/// Names of a file that has several.
struct Names {
    first: InLayer,
    made: u32,
    all: u32,
}

struct Builder<'a> {
    overlay: &'a Overlay,
    upper: &'a Upper,
    merged: MergedLayer,
    made: Vec<Made>,
    names: HashMap<Inode, Names>,
    /// For data, in bytes.
    room: u64,
}

/// Makes what the `run` shows in the empty layer `layer`, whose root is `root`.
pub(super) fn build(
    overlay: &Overlay,
    (run, touched): (Run, u64),
    (layer, root): (Layer, Arc<Part>),
    room: u64,
    goes_on: &dyn Fn() -> bool,
) -> Result<MergedLayer> {
    let upper = overlay.upper()?;
    let whole = run.whole.clone();
    let (stands, directories, data) = (HashMap::new(), HashMap::new(), HashMap::new());
    let merged =
        MergedLayer { run, layer, root: Arc::clone(&root), stands, directories, data, touched };
    let (made, names) = (Vec::new(), HashMap::new());
    let mut builder = Builder { overlay, upper, merged, made, names, room };
    builder.root(&whole)?;
    let mut pending = vec![Pending { whole, part: root }];
    while let Some(next) = pending.pop() {
        if !goes_on() {
            return Err(unmerged("the mount is ending"));
        }
        builder.contents(&next, &mut pending)?;
    }
    builder.end()
}

impl Builder<'_> {
    fn root(&mut self, whole: &Below) -> Result<()> {
        let Original::Layer(root) = self.overlay.root_of(whole)? else {
            return Err(unmerged("they have no root"));
        };
        let part = Arc::clone(&self.merged.root);
        let roots =
            self.merged.run.parts.iter().map(|of| ((of.layer, of.path()), Arc::clone(&part)));
        self.merged.directories.extend(roots);
        let address = part.address()?;
        if self.upper.whiteouts == Whiteouts::Files {
            self.upper.marks.set(&address, Mark::Opaque, b"x")?;
        }
        self.upper.marks.set(&address, Mark::Archive, &self.overlay.lower.identity())?;
        self.directory(Ino::ROOT, &address, *root, part)
    }

    /// Makes what is in a directory.
    fn contents(&mut self, dir: &Pending, pending: &mut Vec<Pending>) -> Result<()> {
        let overlay = self.overlay;
        let count = self.merged.run.count(&dir.whole);
        let rest = dir.whole.after(count);
        let mut names: BTreeSet<Box<[u8]>> = BTreeSet::new();
        for part in dir.whole.parts().iter().take(count) {
            let listed = list_with(&*overlay.part_fds.get(part)?, OFlags::NOATIME)?;
            names.extend(listed.into_iter().map(|(name, ..)| name.as_bytes().into()));
        }
        let fd = overlay.part_fds.get(&dir.part)?;
        let mut has_whiteouts = false;
        for name in names {
            match overlay.find_entry(&dir.whole, &name)? {
                None => {
                    if overlay.find_entry(&rest, &name)?.is_some() {
                        if !std::mem::replace(&mut has_whiteouts, true) {
                            self.upper.mark_whiteouts(&fd)?;
                        }
                        self.upper.link_whiteout(&fd, os_str(&name))?;
                    }
                }
                Some(LowerEntry::Layer(found, place)) if self.merged.run.has(place.dir.layer) => {
                    let Found { ino, kind, upper: Some(state) } = *found else {
                        return Err(unmerged("a file of a layer is not known to be in one"));
                    };
                    match kind {
                        FileKind::Directory => {
                            let (part, whole) = self.below_directory(
                                (&fd, &dir.part, &rest),
                                &name,
                                (ino, state, place),
                            )?;
                            pending.push(Pending { whole, part });
                        }
                        _ => self.file((&fd, &dir.part, &rest), &name, (ino, state, place))?,
                    }
                }
                Some(_) => return Err(unmerged("a name of a layer shows what is below it")),
            }
        }
        Ok(())
    }

    fn frozen(
        &self,
        (address, stat, state): (Address, Statx, UpperState),
        whole: Below,
    ) -> FrozenInode {
        FrozenInode {
            address,
            stat,
            state,
            whole,
            place: None,
            merges: self.overlay.stack.merges(),
        }
    }

    /// Makes a directory in another.
    fn below_directory(
        &mut self,
        (fd, above, rest): (&Arc<OwnedFd>, &Arc<Part>, &Below),
        name: &[u8],
        (ino, state, place): (Ino, UpperState, InLayer),
    ) -> Result<(Arc<Part>, Below)> {
        let overlay = self.overlay;
        let whole = state.whole.clone().unwrap_or_default();
        let count = self.merged.run.count(&whole);
        let below = whole.after(count);
        let natural = overlay.find_entry(rest, name)?;
        make_directory(fd, os_str(name), 0o700)?;
        let address = Address::at(fd, os_str(name));
        if !below.is_some() {
            if natural.is_some() {
                self.upper.marks.set(&address, Mark::Opaque, b"y")?;
            }
        } else if !natural.is_some_and(|natural| {
            natural.kind() == FileKind::Directory && are_same(&natural.whole(), &below)
        }) {
            let paths = Paths { overlay, run: &self.merged.run };
            let lowest = count.checked_sub(1).and_then(|last| whole.parts().get(last));
            let path = lowest.map(|part| paths.of_directory(part, &below)).transpose()?.flatten();
            let path = path.ok_or_else(|| unmerged("a directory that was moved is not found"))?;
            self.upper.marks.set(&address, Mark::Redirect, &path)?;
        }
        let frozen = overlay.in_layer(&place)?;
        let stat = overlay.numbers.identify(&frozen, frozen.stat()?)?;
        let frozen = self.frozen((frozen, stat, state), whole.clone());
        let part = Part::child(above, name);
        for of in whole.parts().iter().take(count) {
            self.merged.directories.insert((of.layer, of.path()), Arc::clone(&part));
        }
        self.directory(ino, &address, frozen, Arc::clone(&part))?;
        Ok((part, whole))
    }

    /// Makes the new directory at `address` what `frozen` is.
    fn directory(
        &mut self,
        ino: Ino,
        address: &Address,
        mut frozen: FrozenInode,
        part: Arc<Part>,
    ) -> Result<()> {
        self.upper.marks.set(address, Mark::Impure, b"y")?;
        // A record of the archive is one of what is merged with. What has another number keeps that.
        let archive = frozen.whole.archive;
        let is_of_archive = match archive {
            Some(archive) => self.overlay.lower.ino(archive)? == ino,
            None => false,
        };
        frozen.state.below.archive = archive.filter(|_| is_of_archive);
        let old = (frozen.state.layer, frozen.state.st_ino);
        let times = times_of(&frozen.stat);
        let stand = self.dress(ino, address, frozen)?;
        self.made.push(Made { part: Arc::clone(&part), times });
        self.merged.stands.insert(old, Stand { part: Some(part), ..stand });
        Ok(())
    }

    /// Gives a copy all that its original has, but for its data.
    fn dress(&self, ino: Ino, address: &Address, frozen: FrozenInode) -> Result<Stand> {
        let overlay = self.overlay;
        let kind = frozen.state.kind;
        let attr = overlay.attr_of_upper(ino, &frozen.state, &frozen.stat)?;
        let kept_ctime = KeptCtime { ctime: attr.ctime, mtime: attr.mtime };
        let null_device = frozen.state.null_device;
        let marks = self.upper.marks.for_kind(kind);
        marks.set(address, Mark::Ctime, &kept_ctime.to_text())?;
        if null_device {
            marks.set(address, Mark::NullDevice, b"")?;
        }
        let original = Original::Layer(Box::new(frozen));
        let (st_ino, _) = overlay.dress(address, ino, &original)?;
        Ok(Stand { st_ino, kept_ctime, part: None, has_data: true })
    }

    /// Makes a file that is no directory, or another name of one.
    fn file(
        &mut self,
        (fd, dir, rest): (&Arc<OwnedFd>, &Arc<Part>, &Below),
        name: &[u8],
        (ino, state, place): (Ino, UpperState, InLayer),
    ) -> Result<()> {
        let overlay = self.overlay;
        let inode = (state.layer, state.st_ino);
        let new = InLayer { dir: Arc::clone(dir), name: name.into() };
        if let Some(names) = self.names.get_mut(&inode) {
            names.made += 1;
            overlay.in_layer(&names.first)?.link_to(fd, os_str(name))?;
            self.merged.data.insert(place_of(&place), new);
            return Ok(());
        }
        let address = overlay.in_layer(&place)?;
        let stat = overlay.numbers.identify(&address, address.stat()?)?;
        if stat.stx_nlink > 1 {
            let names = Names { first: new.clone(), made: 1, all: stat.stx_nlink };
            self.names.insert(inode, names);
        }
        let kind = state.kind;
        let frozen = self.frozen((address, stat, state), Below::default());
        let stand = match kind {
            FileKind::Regular => {
                let data = self.regular((fd, name), rest, &place, (ino, frozen), &new)?;
                self.merged.data.insert(place_of(&place), new);
                data
            }
            FileKind::Symlink => {
                let target = frozen.address.read_link()?;
                make_symlink(fd, os_str(name), OsStr::from_bytes(&target))?;
                self.dress(ino, &Address::at(fd, os_str(name)), frozen)?
            }
            kind => {
                let Statx { stx_rdev_major, stx_rdev_minor, .. } = frozen.stat;
                let rdev = rustix::fs::makedev(stx_rdev_major, stx_rdev_minor);
                make_special(fd, os_str(name), kind, 0o600, rdev)?;
                self.dress(ino, &Address::at(fd, os_str(name)), frozen)?
            }
        };
        self.merged.stands.insert(inode, stand);
        Ok(())
    }

    fn regular(
        &mut self,
        (fd, name): (&Arc<OwnedFd>, &[u8]),
        rest: &Below,
        place: &InLayer,
        (ino, frozen): (Ino, FrozenInode),
        new: &InLayer,
    ) -> Result<Stand> {
        let overlay = self.overlay;
        let to = make_file(fd, os_str(name), OFlags::RDWR, 0o600)?;
        let below = match &frozen.state.data {
            Data::Lower(inode) => Some(DataAt::Archive(*inode)),
            Data::Layer(data) if !self.merged.run.has(data.dir.layer) => Some(DataAt::of(data)),
            Data::Layer(data) => {
                self.merged.data.insert(place_of(data), new.clone());
                self.copy(&overlay.in_layer(data)?, &to)?;
                None
            }
            Data::Upper => self.copy(&frozen.address, &to).map(|()| None)?,
        };
        let Some(below) = below else {
            return self.dress(ino, &Address::Open(Arc::new(to)), frozen);
        };
        set_size(&to, frozen.stat.stx_size)?;
        let address = Address::Open(Arc::new(to));
        let natural = overlay.find_entry(rest, name)?.and_then(|natural| data_of(&natural));
        if frozen.stat.stx_nlink > 1 || natural.is_none_or(|natural| natural != below) {
            let paths = Paths { overlay, run: &self.merged.run };
            let path = paths.of_data(place, &below)?;
            let path = path.ok_or_else(|| unmerged("the data of a file is not found"))?;
            self.upper.marks.set(&address, Mark::Redirect, &path)?;
        }
        self.upper.marks.set(&address, Mark::Metacopy, b"")?;
        let stand = self.dress(ino, &address, frozen)?;
        Ok(Stand { has_data: false, ..stand })
    }

    /// Copies the data of the file at `from`, which is not seen to be read.
    fn copy(&mut self, from: &Address, to: &OwnedFd) -> Result<()> {
        let bytes = from.stat()?.stx_blocks.saturating_mul(512);
        let room = self.room.checked_sub(bytes);
        self.room = room.ok_or_else(|| unmerged("there is not room for what they would be"))?;
        let opened = from.open(OFlags::RDONLY | OFlags::NOATIME);
        // That is for the owner and root.
        let opened = opened.or_else(|_| from.open(OFlags::RDONLY))?;
        Ok(copy_data(&opened, to)?)
    }

    /// Checks that no file has lost a name, and gives directories their times.
    fn end(self) -> Result<MergedLayer> {
        if self.names.values().any(|names| names.made != names.all) {
            return Err(unmerged("a file has names that are not found"));
        }
        for made in self.made.iter().rev() {
            let fd = self.overlay.part_fds.get(&made.part)?;
            Address::at(&fd, OsStr::new(".")).set_times(&made.times).map_err(Error::from)?;
        }
        Ok(self.merged)
    }
}
