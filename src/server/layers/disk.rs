//! The single steps on disk. After each of them the server may be killed.

use std::ffi::CStr;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::Serials;
use super::manifest::{MAX_BYTES, StackId};
use crate::inode_ops::{Directory, remove_tree};
use crate::types::LayerSerial;

/// The manifest.
pub(super) const MANIFEST: &str = "stack.json";
/// The next one.
const NEW: &str = "stack.new";
/// The directory of layers.
pub(super) const LAYERS: &str = "layers";
/// What the names of layers begin with that nothing needs any more.
const DISCARDED: &str = "#";

/// The mark of an upper that has a manifest: root's, or else everybody's.
const MARKS: [&CStr; 2] = [c"trusted.overlay.thawfs.stack", c"user.overlay.thawfs.stack"];

/// An upper and its work directory.
#[derive(Debug)]
pub(super) struct Disk {
    upper: Directory,
    work: Directory,
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

    /// Where a layer is. Of this process alone, but for layer 0.
    pub(super) fn layer_path(&self, serial: LayerSerial) -> PathBuf {
        match serial.0 {
            0 => self.upper.path().to_owned(),
            serial => self.in_layers(&serial.to_string()),
        }
    }

    fn in_work(&self, name: &str) -> PathBuf {
        self.work.proc_path().join(name)
    }

    fn in_layers(&self, name: &str) -> PathBuf {
        self.in_work(LAYERS).join(name)
    }

    pub(super) fn read(&self) -> io::Result<Option<Vec<u8>>> {
        read_file(&self.in_work(MANIFEST))
    }

    /// Writes the next manifest, and waits until the disk has it.
    pub(super) fn stage(&self, bytes: &[u8]) -> io::Result<()> {
        self.step()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o600);
        let file = rustix::fs::openat(&self.work, NEW, flags | OFlags::CLOEXEC, mode)?;
        self.step()?;
        let mut file = std::fs::File::from(file);
        file.write_all(bytes)?;
        file.sync_data()
    }

    pub(super) fn commit(&self) -> io::Result<()> {
        self.step()?;
        Ok(rustix::fs::renameat(&self.work, NEW, &self.work, MANIFEST)?)
    }

    /// Removes a manifest that did not come to be.
    pub(super) fn unstage(&self) -> io::Result<()> {
        self.step()?;
        unless_missing(std::fs::remove_file(self.in_work(NEW)))
    }

    pub(super) fn remove_manifest(&self) -> io::Result<()> {
        self.step()?;
        unless_missing(std::fs::remove_file(self.in_work(MANIFEST)))
    }

    /// Makes an empty directory for a layer.
    pub(super) fn make_layer(&self, serial: LayerSerial) -> io::Result<()> {
        let mode = Mode::from_raw_mode(0o700);
        self.step()?;
        match rustix::fs::mkdirat(&self.work, LAYERS, mode) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        self.step()?;
        let make = || rustix::fs::mkdirat(&self.work, format!("{LAYERS}/{}", serial.0), mode);
        match make() {
            Err(Errno::EXIST) => {
                // Of a change that was given up, and could not be put aside.
                self.discard(serial)?;
                Ok(make()?)
            }
            made => Ok(made?),
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
    pub(super) fn discard(&self, serial: LayerSerial) -> io::Result<()> {
        self.discard_named(&serial.0.to_string())
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
            match rustix::fs::renameat_with(&self.work, name, &self.work, aside, flags) {
                Err(Errno::EXIST) => count += 1,
                Err(Errno::NOENT) => return Ok(()),
                done => return Ok(done?),
            }
        }
    }

    /// Puts aside what is in the directory of layers and none of `listed`.
    pub(super) fn discard_unlisted(&self, listed: &Serials) -> io::Result<()> {
        for name in self.names()? {
            let is_listed = listed.iter().any(|serial| serial.0.to_string() == name);
            if !is_listed && !name.starts_with(DISCARDED) {
                self.discard_named(&name)?;
            }
        }
        Ok(())
    }

    /// Removes what was put aside, and the directory that it was in, if nothing else is.
    pub(super) fn remove_discarded(&self) -> io::Result<()> {
        let mut done = Ok(());
        for name in self.names()?.into_iter().filter(|name| name.starts_with(DISCARDED)) {
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

    /// What is in the directory of layers; names that are no text are not ours.
    fn names(&self) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(self.in_work(LAYERS)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let names = entries.map(|entry| Ok(entry?.file_name().into_string().ok()));
        Ok(names.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
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
        Ok(rustix::fs::syncfs(self.work.open_to_read()?)?)
    }
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
