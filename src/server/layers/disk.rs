//! The single steps on disk. After each of them the server may be killed.

use std::ffi::CStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::super::inherited;
use super::forks::Base;
use super::manifest::{LayerDir, MAX_BYTES, Manifest, StackId};
use super::spare::{Room, Spare, is_no_room};
use crate::inode_ops::{Directory, remove_tree};
use crate::types::LayerSerial;

/// The manifest.
pub(super) const MANIFEST: &str = "stack.json";
/// The next one.
const NEW: &str = "stack.new";
/// The next one, written while there may be others.
const LATER: &str = "stack.later";
/// The directory of layers.
pub(super) const LAYERS: &str = "layers";
/// What the names of layers begin with that nothing needs any more.
const DISCARDED: &str = "#";
/// What ends the name of a note that a layer is live now: a symbolic link to what it lies on. A link, as
/// what it says is no data, which the disk would have at another time than its name.
const NOTE: &str = ".on";
/// What ends the name of the manifest as it is with that note.
const NOTED: &str = ".json";
/// What a layer lies on that lies on no other.
const ARCHIVE: &str = "archive";
/// What ends a note of a rollback that keeps what it rolls away.
const KEPT: &str = "+kept";

/// The mark of an upper that has a manifest: root's, or else everybody's.
const MARKS: [&CStr; 2] = [c"trusted.overlay.thawfs.stack", c"user.overlay.thawfs.stack"];

/// That a layer was made the live one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) serial: LayerSerial,
    /// What it lies on.
    pub(super) parent: Option<LayerSerial>,
    /// Whether what was live before was rolled away, and is kept.
    pub(super) kept: bool,
}

impl Note {
    fn to_text(self) -> String {
        let parent = self.parent.map_or_else(|| ARCHIVE.to_owned(), |it| it.0.to_string());
        format!("{parent}{}", if self.kept { KEPT } else { "" })
    }

    fn parse(serial: LayerSerial, text: &str) -> Option<Self> {
        let parent = text.strip_suffix(KEPT).unwrap_or(text);
        let kept = parent.len() < text.len();
        let parent = match parent {
            ARCHIVE => None,
            parent => Some(LayerSerial(parent.parse().ok()?)),
        };
        Some(Self { serial, parent, kept })
    }
}

/// Which of those who write a manifest.
#[derive(Clone, Copy, Debug)]
pub(super) enum When {
    /// Who keeps all others from it.
    Now,
    /// Who does not.
    Later,
}

impl When {
    const fn name(self) -> &'static str {
        match self {
            Self::Now => NEW,
            Self::Later => LATER,
        }
    }
}

/// Layers that are another mount's: those, its upper and its work directory.
type OpenBase = (Vec<LayerSerial>, Directory, Directory);

/// An upper and its work directory.
#[derive(Debug)]
pub(super) struct Disk {
    upper: Directory,
    work: Directory,
    /// Where the layers are that are others'.
    bases: OnceLock<Vec<OpenBase>>,
    /// How many more steps are done, and all that come then fail.
    #[cfg(test)]
    pub(super) steps: std::sync::atomic::AtomicU32,
}

impl Disk {
    pub(super) fn open(upper: &Directory, work: &Directory) -> io::Result<Self> {
        let again = |dir: &Directory| Directory::open_again(dir.path(), Some(dir.id()?));
        Ok(Self {
            upper: again(upper)?,
            work: again(work)?,
            bases: OnceLock::new(),
            #[cfg(test)]
            steps: u32::MAX.into(),
        })
    }

    /// Before each change on disk.
    #[cfg(not(test))]
    #[allow(clippy::unused_self, reason = "tests count steps")]
    fn step(&self) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn step(&self) -> io::Result<()> {
        use std::sync::atomic::Ordering::Relaxed;
        let left = self.steps.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
        left.map(|_| ()).map_err(|_| io::Error::other("killed"))
    }

    pub(super) fn upper_path(&self) -> &Path {
        self.upper.path()
    }

    pub(super) fn work_path(&self) -> &Path {
        self.work.path()
    }

    /// For messages.
    pub(super) fn manifest_path(&self) -> PathBuf {
        self.work.path().join(MANIFEST)
    }

    /// Opens where the layers are that are others'.
    pub(super) fn open_bases(&self, bases: &[Base]) -> io::Result<()> {
        let open = |base: &Base| {
            let (upper, work) = (Directory::open(&base.upper)?, Directory::open(&base.work)?);
            Ok((base.layers.clone(), upper, work))
        };
        let opened = bases.iter().map(open).collect::<io::Result<Vec<_>>>()?;
        self.bases.get_or_init(|| opened);
        Ok(())
    }

    /// Where a layer is. Of this process alone, but for layer 0.
    pub(super) fn layer_path(&self, dir: impl Into<LayerDir>) -> PathBuf {
        let dir = dir.into();
        let bases = self.bases.get().map(Vec::as_slice).unwrap_or_default();
        let base = bases.iter().find(|(layers, ..)| layers.contains(&dir.serial));
        let (upper, work) =
            base.map_or((&self.upper, &self.work), |(_, upper, work)| (upper, work));
        match dir == LayerSerial::default().into() {
            true => upper.path().to_owned(),
            false => work.proc_path().join(LAYERS).join(dir.name()),
        }
    }

    /// Makes an empty upper and work directory those of `manifest`, whose live upper is empty, too. The disk need not have
    /// it yet.
    pub(super) fn begin(&self, manifest: &Manifest) -> io::Result<()> {
        self.make_layer(manifest.live(), Room::Free)?;
        self.stage(&manifest.to_json()?, When::Later, Room::Free)?;
        self.commit(When::Later)?;
        self.set_mark(manifest.stack())
    }

    /// What is kept for when there is no room.
    pub(super) fn spare(&self) -> Spare<'_> {
        Spare { work: &self.work }
    }

    /// Makes `name` in `dir` a file of `bytes`.
    fn write(
        &self,
        dir: impl AsFd,
        name: &str,
        bytes: &[u8],
        room: Room,
    ) -> io::Result<std::fs::File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o600);
        let made = rustix::fs::openat(&dir, name, flags | OFlags::CLOEXEC, mode);
        let written = made.map_err(io::Error::from).and_then(|file| {
            self.step()?;
            let mut file = std::fs::File::from(file);
            file.write_all(bytes)?;
            Ok(file)
        });
        match written {
            Err(error) if is_no_room(&error) && room == Room::Kept => {
                self.spare().write(dir, name, bytes)
            }
            written => written,
        }
    }

    fn in_work(&self, name: &str) -> PathBuf {
        self.work.proc_path().join(name)
    }

    fn in_layers(&self, name: &str) -> PathBuf {
        self.in_work(LAYERS).join(name)
    }

    /// For what reads in it.
    pub(super) fn work_proc_path(&self) -> PathBuf {
        self.work.proc_path()
    }

    /// Writes what the manifest is to be with a note, without waiting for the disk.
    pub(super) fn stage_noted(
        &self,
        serial: LayerSerial,
        bytes: &[u8],
        room: Room,
    ) -> io::Result<()> {
        self.step()?;
        self.write(self.open_layers()?, &format!("{}{NOTED}", serial.0), bytes, room).map(drop)
    }

    /// Makes a note, which is what makes a layer the live one.
    pub(super) fn note(&self, note: Note, room: Room) -> io::Result<()> {
        self.step()?;
        let name = format!("{LAYERS}/{}{NOTE}", note.serial.0);
        let make = || Ok(rustix::fs::symlinkat(note.to_text(), &self.work, &name)?);
        self.spare().with(room, make)
    }

    /// Removes what was written for a note that was not made.
    pub(super) fn unstage_noted(&self, serial: LayerSerial) -> io::Result<()> {
        self.step()?;
        unless_missing(std::fs::remove_file(self.in_layers(&format!("{}{NOTED}", serial.0))))
    }

    /// Removes notes of layers before `next`: the manifest says what they said. With those that were not
    /// made, if there is no `next`.
    pub(super) fn remove_notes(&self, next: Option<LayerSerial>) -> io::Result<()> {
        for name in self.names()?.into_iter().filter(|name| is_note(name)) {
            let serial = name.split('.').next().and_then(|serial| serial.parse().ok());
            let is_old =
                serial.is_none_or(|serial| next.is_none_or(|next| LayerSerial(serial) < next));
            if is_old {
                self.step()?;
                unless_missing(std::fs::remove_file(self.in_layers(&name)))?;
            }
        }
        Ok(())
    }

    /// Writes the next manifest. Now, it waits until the disk has it; later, that is for who writes it.
    pub(super) fn stage(&self, bytes: &[u8], when: When, room: Room) -> io::Result<()> {
        self.step()?;
        let file = self.write(&self.work, when.name(), bytes, room)?;
        match when {
            // Tests kill the server, and not the machine.
            When::Now if !cfg!(test) => file.sync_data(),
            _ => Ok(()),
        }
    }

    pub(super) fn commit(&self, when: When) -> io::Result<()> {
        self.step()?;
        let rename = || Ok(rustix::fs::renameat(&self.work, when.name(), &self.work, MANIFEST)?);
        self.spare().with(Room::Kept, rename)
    }

    /// Removes a manifest that did not come to be.
    pub(super) fn unstage(&self, when: When) -> io::Result<()> {
        self.step()?;
        unless_missing(std::fs::remove_file(self.in_work(when.name())))
    }

    pub(super) fn remove_manifest(&self) -> io::Result<()> {
        self.step()?;
        unless_missing(std::fs::remove_file(self.in_work(MANIFEST)))
    }

    pub(super) fn remove_spare(&self) -> io::Result<()> {
        self.step()?;
        unless_missing(self.spare().remove())
    }

    /// Makes an empty directory for a layer.
    pub(super) fn make_layer(&self, dir: impl Into<LayerDir>, room: Room) -> io::Result<()> {
        let dir = dir.into();
        let make = |name: &str| {
            let mode = Mode::from_raw_mode(0o700);
            self.spare().with(room, || Ok(rustix::fs::mkdirat(&self.work, name, mode)?))
        };
        let is_there = |error: &io::Error| error.kind() == io::ErrorKind::AlreadyExists;
        self.step()?;
        match make(LAYERS) {
            Err(error) if !is_there(&error) => return Err(error),
            _ => {}
        }
        self.step()?;
        let name = format!("{LAYERS}/{}", dir.name());
        match make(&name) {
            Err(error) if is_there(&error) => {
                // Of a change that was given up, and could not be put aside.
                self.discard(dir)?;
                make(&name)
            }
            made => made,
        }
    }

    /// Removes a directory that was made and not used.
    pub(super) fn unmake_layer(&self, serial: LayerSerial) -> io::Result<()> {
        self.step()?;
        unless_missing(std::fs::remove_dir(self.layer_path(serial)))
    }

    /// Removes the directory of layers, if none is left in it.
    pub(super) fn unmake_layers(&self) -> io::Result<()> {
        self.step()?;
        match std::fs::remove_dir(self.in_work(LAYERS)) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => unless_missing(removed),
        }
    }

    /// Puts a layer aside, by a name that is none of a layer.
    pub(super) fn discard(&self, dir: impl Into<LayerDir>) -> io::Result<()> {
        self.discard_named(&dir.into().name())
    }

    fn discard_named(&self, name: &str) -> io::Result<()> {
        let mut count = 0_u32;
        loop {
            self.step()?;
            let aside = match count {
                0 => format!("{LAYERS}/{DISCARDED}{name}"),
                count => format!("{LAYERS}/{DISCARDED}{name}.{count}"),
            };
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            let name = format!("{LAYERS}/{name}");
            let rename = || {
                let (from, to) = (&self.work, &self.work);
                Ok(rustix::fs::renameat_with(from, &*name, to, &*aside, flags)?)
            };
            match self.spare().with(Room::Kept, rename) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => count += 1,
                done => return unless_missing(done),
            }
        }
    }

    /// Puts aside what is in the directory of layers and none of `listed`.
    pub(super) fn discard_unlisted(&self, listed: &[LayerDir]) -> io::Result<()> {
        for name in self.names()? {
            let is_listed = listed.iter().any(|dir| dir.name() == name);
            if !is_listed && !name.starts_with(DISCARDED) && !is_note(&name) {
                self.discard_named(&name)?;
            }
        }
        Ok(())
    }

    /// Removes what was put aside, but for layers that are not free.
    pub(super) fn remove_discarded(&self, is_free: &dyn Fn(LayerSerial) -> bool) -> io::Result<()> {
        let mut done = Ok(());
        for name in self.names()? {
            let Some(layer) = name.strip_prefix(DISCARDED) else { continue };
            let serial = layer.split('.').next().and_then(LayerDir::layer_of);
            if serial.is_some_and(|serial| !is_free(serial)) {
                continue;
            }
            self.step()?;
            let layers = self.open_layers()?;
            done = done.and(unless_missing(remove_tree(layers, name.as_str())));
        }
        done
    }

    pub(super) fn has_discarded(&self) -> bool {
        self.names().is_ok_and(|names| names.iter().any(|name| name.starts_with(DISCARDED)))
    }

    /// Removes all that is in the upper, which is no layer any more.
    pub(super) fn empty_upper(&self) -> io::Result<()> {
        let mut done = Ok(());
        for entry in std::fs::read_dir(self.upper.proc_path())? {
            self.step()?;
            done = done.and(unless_missing(remove_tree(&self.upper, entry?.file_name())));
        }
        done
    }

    fn open_layers(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.work, LAYERS, flags, Mode::empty())?)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        names_in(&self.in_work(LAYERS))
    }

    /// The stack that the upper says it is of.
    pub(super) fn read_mark(&self) -> io::Result<Option<StackId>> {
        let upper = self.upper.open_to_read()?;
        for name in MARKS {
            let mut value = [0; StackId::LEN * 2];
            match rustix::fs::fgetxattr(&upper, name, &mut value) {
                Ok(len) => {
                    return Ok(Some(StackId::from_mark(value.get(..len).unwrap_or_default())));
                }
                Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(None)
    }

    pub(super) fn set_mark(&self, stack: &StackId) -> io::Result<()> {
        self.step()?;
        let upper = self.upper.open_to_read()?;
        let flags = XattrFlags::empty();
        for name in MARKS {
            let set = || rustix::fs::fsetxattr(&upper, name, stack.as_mark(), flags);
            match with_access(&upper, set) {
                // It may not be ours to give.
                Err(Errno::PERM | Errno::OPNOTSUPP) => {}
                set => return Ok(set?),
            }
        }
        Err(Errno::OPNOTSUPP.into())
    }

    pub(super) fn clear_mark(&self) -> io::Result<()> {
        self.step()?;
        let upper = self.upper.open_to_read()?;
        for name in MARKS {
            match with_access(&upper, || rustix::fs::fremovexattr(&upper, name)) {
                Err(Errno::NODATA | Errno::PERM | Errno::OPNOTSUPP) => {}
                removed => removed?,
            }
        }
        Ok(())
    }

    /// Waits until the disk has all that it was given.
    pub(super) fn sync(&self) -> io::Result<()> {
        match self.sync_elsewhere(&["-f"]) {
            true => Ok(()),
            false => Ok(rustix::fs::syncfs(self.work.open_to_read()?)?),
        }
    }

    /// Waits until the disk has the names in the work directory.
    pub(super) fn sync_names(&self) -> io::Result<()> {
        match self.sync_elsewhere(&[]) {
            true => Ok(()),
            false => Ok(rustix::fs::fsync(self.work.open_to_read()?)?),
        }
    }

    /// Has coreutils' sync(1) wait for the work directory: a process that is killed while it waits for a disk does not
    /// end, nor does its mount. `false` where there is none, or it knows no such `options`.
    fn sync_elsewhere(&self, options: &[&str]) -> bool {
        let mut sync = Command::new("sync");
        sync.args(options).arg("--").arg(self.work.path()).current_dir("/");
        inherited::leave_secrets(&mut sync);
        let quiet = sync.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        quiet.status().is_ok_and(|status| status.success())
    }
}

/// What is in a directory of layers; names that are no text are not ours.
fn names_in(layers: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(layers) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().into_string().ok()));
    Ok(names.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
}

fn is_note(name: &str) -> bool {
    name.ends_with(NOTE) || name.ends_with(NOTED)
}

/// The notes in the work directory at `work`, the oldest first.
pub(super) fn read_notes(work: &Path) -> io::Result<Vec<Note>> {
    let layers = work.join(LAYERS);
    let mut notes = Vec::new();
    for name in names_in(&layers)? {
        let serial = name.strip_suffix(NOTE).and_then(|serial| serial.parse().ok());
        let Some(serial) = serial.map(LayerSerial) else { continue };
        let text = match std::fs::read_link(layers.join(&name)) {
            // It was in the manifest by then.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            text => text?,
        };
        let note = text.to_str().and_then(|text| Note::parse(serial, text));
        notes.push(note.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{name} says {}", text.display()))
        })?);
    }
    notes.sort_by_key(|note| note.serial);
    Ok(notes)
}

/// The manifest as it was written with the note of `serial`, if it is there.
pub(super) fn read_noted(work: &Path, serial: LayerSerial) -> io::Result<Option<Vec<u8>>> {
    read_file(&work.join(LAYERS).join(format!("{}{NOTED}", serial.0)))
}

/// What is in the file at `path`, if it is there; no more than a manifest may have, and a byte.
pub(super) fn read_file(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        file => std::fs::File::from(file?),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Does `call` on an attribute of `upper`, which may be closed to its own owner, as it has the mode of the
/// archive's root.
fn with_access(
    upper: &OwnedFd,
    call: impl Fn() -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    match call() {
        Err(Errno::ACCESS) => {}
        done => return done,
    }
    let mode = Mode::from_raw_mode(rustix::fs::fstat(upper)?.st_mode & 0o7777);
    rustix::fs::fchmod(upper, mode | Mode::RWXU)?;
    let done = call();
    rustix::fs::fchmod(upper, mode)?;
    done
}

fn unless_missing(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
