//! The directories of one mount: its own below the state directory, its upper, and the work directory
//! beside that.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;
use rustix::mount::MountFlags;

use super::MountRequest;
use super::checkpoints::Held;
use super::dead::remove_own_upper;
use super::layers::{self, Layers};
use super::state::{HostId, Lock, MountDir, Note, Origin, StateDir};
use crate::failure::{Code, Failure};
use crate::inode_ops::remove_tree;
use crate::inode_ops::{Directory, DirectoryId, Location};
use crate::overlay::{self, Layer, Upper};
use crate::types::LayerSerial;

/// The directories of a mount, removed at the end.
pub(super) struct Directories {
    pub(super) state: StateDir,
    pub(super) mount: MountDir,
    keep_upper: bool,
    /// The upper and its work directory, where those are the mount's own.
    own: Option<(PathBuf, PathBuf)>,
    /// The work directory that was made beside an upper of the user's.
    work: Option<(Note, Location)>,
}

/// Where changes go.
pub(super) struct UpperDirectory {
    /// That of layer 0, which is what a user knows it by.
    pub(super) path: PathBuf,
    pub(super) upper: Upper,
    /// The frozen layers below, the bottom one first.
    pub(super) below: Vec<Layer>,
    pub(super) layers: Layers,
    work: PathBuf,
    /// How many stacked file systems it is on, in the kernel's count.
    pub(super) stack_depth: Option<u32>,
}

impl Directories {
    pub(super) fn new(state: StateDir, mount: MountDir, request: &MountRequest) -> Self {
        Self { state, mount, keep_upper: request.keep_upper, own: None, work: None }
    }

    /// The upper that `request` names, or one of the mount's own, of which `source` and `since` are
    /// written down.
    pub(super) fn open_upper(
        &mut self,
        request: &MountRequest,
        source: &str,
        since: u64,
    ) -> Result<Option<UpperDirectory>, Failure> {
        let (path, work) = match (&request.upper, request.read_only) {
            (_, true) => return Ok(None),
            (Some(upper), false) => (upper.clone(), work_beside(&self.state, upper, request)),
            (None, false) => {
                let of = Origin {
                    mountpoint: request.mountpoint.clone(),
                    source: source.to_owned(),
                    since,
                    kept: request.keep_upper,
                    ended: false,
                };
                let own = self.state.create_upper(&self.mount, &of).map_err(state_failed)?;
                self.own = Some(own.clone());
                own
            }
        };
        let upper = find(&path, request.found.upper)
            .map_err(|error| cannot_use(Code::Upper, "upper directory", &path, &error))?;
        let work = self.open_work(&path, &work, request)?;
        if request.upper.is_some() {
            self.state.keep_named(&path);
        }
        if let Some(fork) = &request.fork {
            layers::plant(&upper, &work, fork)?;
        }
        open_stack(path, &upper, &work, request).map(Some)
    }

    /// Whether the upper and its layers outlive the mount.
    pub(super) fn stay(&self) -> bool {
        self.keep_upper || self.own.as_ref().is_none_or(|(_, work)| Held::at(work).keeps())
    }

    /// The work directory, made where nobody has looked for it. One that nobody named goes with the mount.
    fn open_work(
        &mut self,
        upper: &Path,
        path: &Path,
        request: &MountRequest,
    ) -> Result<Directory, Failure> {
        let failed = |error| cannot_use(Code::Upper, "work directory", path, &error);
        if request.found.workdir.is_some() {
            return find(path, request.found.workdir).map_err(failed);
        }
        let place = Location::find(path).map_err(failed)?;
        if request.upper.is_none() || request.workdir.is_some() {
            return place.open_or_make(0o700).map_err(failed);
        }
        let note = Note::Work { path: place.path(), upper: upper.to_owned() };
        self.state.note(&note).map_err(state_failed)?;
        let work = place.open_or_make(0o700).map_err(failed)?;
        if !work.is_trusted().map_err(failed)? {
            // It was put there for us to find.
            self.state.forget(&note);
            let message = "it belongs to another user; name one with --workdir";
            return Err(failed(io::Error::new(io::ErrorKind::PermissionDenied, message)));
        }
        self.work = Some((note, place));
        Ok(work)
    }
}

impl Drop for Directories {
    fn drop(&mut self) {
        if let Some((upper, work)) = self.own.as_ref().filter(|_| !self.keep_upper && self.stay()) {
            let named = Held::at(work).named.join(", ");
            tracing::warn!("{} is kept for its checkpoints: {named}", upper.display());
            self.state.keep_named(upper);
        } else if !self.keep_upper
            && let Err(error) = remove_own_upper(&self.state, &self.mount)
        {
            tracing::error!("the upper directory was not removed whole: {error}");
        }
        if let Err(error) = self.mount.remove() {
            tracing::error!("the mount's record was not removed: {error}");
        }
        if let Some((note, work)) = &self.work {
            match remove_work(work) {
                Ok(()) => self.state.forget(note),
                Err(error) => tracing::debug!("{} stays: {error}", note.path().display()),
            }
        }
    }
}

/// Opens what is in the upper at `path` and its work directory, so that nobody else does.
fn open_stack(
    path: PathBuf,
    upper: &Directory,
    work: &Directory,
    request: &MountRequest,
) -> Result<UpperDirectory, Failure> {
    let stack_depth = stack_depth(upper);
    let boot = HostId::here().map(|here| here.boot).unwrap_or_default();
    let mut layers = Layers::open(upper, work, boot)?;
    let serial = layers.manifest().live();
    let opened = match serial == LayerSerial::default() {
        true => None,
        false => Some(
            Directory::open(&layers.live_dir())
                .map_err(|error| cannot_use(Code::Upper, "layer", &layers.live_dir(), &error))?,
        ),
    };
    let live = opened.as_ref().unwrap_or(upper);
    let refused = |error| upper_refused(request, error);
    let upper = Upper::open_in(live, work).map_err(refused)?.with_serial(serial);
    // Nobody else has the work directory from here on.
    layers.recover()?;
    layers.note_bases(&request.mountpoint)?;
    let below = layers.open_below()?;
    let work = work.path().to_owned();
    Ok(UpperDirectory { path, upper, below, layers, work, stack_depth })
}

/// Where a stack is that was closed to be opened once more.
pub(super) struct Closed {
    path: PathBuf,
    work: PathBuf,
}

impl UpperDirectory {
    /// Lets go of it, but for what is given.
    pub(super) fn close(self) -> (Closed, Upper, Vec<Layer>, Layers) {
        let Self { path, upper, below, layers, work, .. } = self;
        (Closed { path, work }, upper, below, layers)
    }
}

impl Closed {
    /// Opens it as it is by now.
    pub(super) fn open(self, request: &MountRequest) -> Result<UpperDirectory, Failure> {
        let Self { path, work } = self;
        let upper = find(&path, request.found.upper)
            .map_err(|error| cannot_use(Code::Upper, "upper directory", &path, &error))?;
        let opened = find(&work, request.found.workdir)
            .map_err(|error| cannot_use(Code::Upper, "work directory", &work, &error))?;
        open_stack(path, &upper, &opened, request)
    }
}

/// Removes a work directory, unless another mount has it, or it holds what the next mount of its upper
/// needs: its layers, or the index of hard links.
fn remove_work(place: &Location) -> io::Result<()> {
    let work = place.open()?;
    if layers::are_in(&work) {
        return Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, "it has layers"));
    }
    let inside = work.proc_path();
    let _lock = Lock::on_directory(&inside.join("."))?.ok_or(io::ErrorKind::ResourceBusy)?;
    std::fs::remove_dir(inside.join("index"))?;
    remove_tree(&work, "work")?;
    std::fs::remove_dir(place.proc_path())
}

/// Says so where others can reach an upper that root named: what the mount's `nosuid` and `nodev` keep from
/// them works there, since the upper has to hold it as it is.
pub(super) fn open_upper_warning(request: &MountRequest, upper: &Path) -> Option<String> {
    let kept = request.flags.bits().intersects(MountFlags::NOSUID | MountFlags::NODEV);
    let is_root = rustix::process::geteuid().is_root();
    if request.upper.is_none() || !is_root || !kept {
        return None;
    }
    let real = upper.canonicalize().ok()?;
    let harmless = StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV;
    if rustix::fs::statvfs(&real).ok()?.f_flag.contains(harmless) {
        return None;
    }
    let is_shut = |above: &Path| {
        above.metadata().is_ok_and(|about| about.uid() == 0 && about.mode() & 0o011 == 0)
    };
    // Its own mode is that of the archive's root directory.
    if real.ancestors().skip(1).any(is_shut) {
        return None;
    }
    Some(format!(
        "others can reach {}, where set-id programs and devices of the archive work as they do not in the \
         mount: --upper is best below a directory of mode 700",
        upper.display()
    ))
}

/// What to do about an upper that will not do.
fn upper_refused(request: &MountRequest, error: overlay::Error) -> Failure {
    Failure::from(error).hint(match request.upper {
        Some(_) => "name another directory with --upper",
        None => "changes are kept in the state directory: set THAWFS_STATE_DIR to one elsewhere",
    })
}

/// The work directory for `upper` where none was named: `.NAME.work` beside it; or that which it has in the
/// state directory.
fn work_beside(state: &StateDir, upper: &Path, request: &MountRequest) -> PathBuf {
    request.workdir.clone().unwrap_or_else(|| {
        let mut name = std::ffi::OsString::from(".");
        name.push(upper.file_name().unwrap_or_default());
        name.push(".work");
        let beside = upper.with_file_name(name);
        // Earlier programs made one beside it in any case.
        let own = state.work_of(upper).filter(|own| own.is_dir() && !beside.is_dir());
        own.unwrap_or(beside)
    })
}

/// The directory at `path`: that which `id` says, where somebody has looked before.
pub(super) fn find(path: &Path, id: Option<DirectoryId>) -> io::Result<Directory> {
    match id {
        Some(_) => Directory::open_again(path, id),
        None => Directory::open(path),
    }
}

pub(super) fn cannot_use(code: Code, what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(code, format!("the {what} {}: {error}", path.display()))
}

pub(super) fn state_failed(error: io::Error) -> Failure {
    Failure::new(Code::Failed, format!("cannot write the state directory: {error}"))
        .hint("set THAWFS_STATE_DIR to a directory of yours")
}

/// How many stacked file systems `upper` itself is, in the kernel's count.
fn stack_depth(upper: &Directory) -> Option<u32> {
    /// `OVERLAYFS_SUPER_MAGIC` of `linux/magic.h`.
    const OVERLAYFS: u64 = 0x794c_7630;
    let stat = rustix::fs::fstatfs(upper).ok()?;
    Some(u32::from(stat.f_type as u64 == OVERLAYFS))
}
