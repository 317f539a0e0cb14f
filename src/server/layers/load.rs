//! What is on disk of a stack: the manifest, and what notes beside it say.

use std::io;
use std::path::Path;

use super::disk::{self, Disk, Note};
use super::forks::read_forks;
use super::manifest::Manifest;
use super::{NewPoint, failed};
use crate::backup::BackupId;
use crate::failure::{Code, Failure};
use crate::inode_ops::Directory;

/// The manifest of the work directory at `work`; `None` where there is none. As it is at this moment, as
/// nobody is kept from changing it.
///
/// # Errors
/// [`Code::Upper`] where it cannot be read, or is damaged.
pub(in super::super) fn read(work: &Path) -> Result<Option<Manifest>, Failure> {
    Ok(read_with_notes(work, &work.join(disk::MANIFEST))?.map(|(manifest, _)| manifest))
}

/// The manifest in `work`, with what notes say beside it, and whether there are any. `shown` is what to
/// call it.
fn read_with_notes(work: &Path, shown: &Path) -> Result<Option<(Manifest, bool)>, Failure> {
    let fail = |error: io::Error| failed("read", shown, &error);
    let path = work.join(disk::MANIFEST);
    loop {
        let bytes = disk::read_file(&path).map_err(fail)?;
        let notes = disk::read_notes(work).map_err(fail)?;
        let forks = read_forks(work, false).map_err(fail)?;
        let Some(mut written) = parse(shown, bytes.clone())? else { return Ok(None) };
        written.forks = forks;
        let is_new = |note: &&Note| note.serial >= written.next();
        let new: Vec<_> = notes.iter().filter(is_new).copied().collect();
        let read = with_notes(work, shown, written, &new)?;
        // Notes that had come into the manifest meanwhile were not there any more.
        if disk::read_file(&path).map_err(fail)? == bytes {
            return Ok(Some((read, !new.is_empty())));
        }
    }
}

fn with_notes(
    work: &Path,
    shown: &Path,
    written: Manifest,
    notes: &[Note],
) -> Result<Manifest, Failure> {
    let mut manifest = written;
    for (at, note) in notes.iter().enumerate().rev() {
        let bytes = disk::read_noted(work, note.serial);
        let bytes = bytes.map_err(|error| failed("read", shown, &error))?;
        let noted = bytes.and_then(|bytes| Manifest::parse(&bytes).ok()).filter(|noted| {
            noted.live() == note.serial
                && noted.parent_of_live() == note.parent
                && noted.stack() == manifest.stack()
        });
        if let Some(noted) = noted {
            let forks = std::mem::take(&mut manifest.forks);
            manifest = Manifest { forks, ..noted };
            let later = notes.get(at + 1..).unwrap_or_default();
            return without_manifests(shown, manifest, later);
        }
    }
    without_manifests(shown, manifest, notes)
}

/// What notes alone say: the disk did not have what was written with them.
fn without_manifests(
    shown: &Path,
    mut manifest: Manifest,
    notes: &[Note],
) -> Result<Manifest, Failure> {
    for note in notes {
        let id = BackupId::random()?;
        let away = NewPoint { id, name: None, created_ms: 0, publish: None, for_fork: false };
        manifest = manifest.noted(*note, away).ok_or_else(|| {
            let serial = note.serial.0;
            let problem = format!("is damaged: layer {serial} lies on none of its layers");
            damaged(shown, &problem)
        })?;
    }
    Ok(manifest)
}

/// Whether layers are in a work directory, or may be.
pub(in super::super) fn are_in(work: &Directory) -> bool {
    let is_there = |name| work.proc_path().join(name).symlink_metadata().is_ok();
    is_there(disk::MANIFEST) || is_there(disk::LAYERS)
}

fn parse(path: &Path, bytes: Option<Vec<u8>>) -> Result<Option<Manifest>, Failure> {
    let Some(bytes) = bytes else { return Ok(None) };
    Manifest::parse(&bytes).map(Some).map_err(|problem| damaged(path, &problem))
}

fn damaged(path: &Path, problem: &str) -> Failure {
    let message = format!("{}, which tells the layers of an upper, {problem}", path.display());
    Failure::new(Code::Upper, message)
        .hint("nothing was changed; put back the file as it was, or mount with another upper")
}

/// What is on disk for an upper.
pub(super) struct Paired {
    /// Whether there is a manifest of it; else `manifest` is a new one.
    pub(super) begun: bool,
    /// Whether notes say more than the manifest alone.
    pub(super) noted: bool,
    pub(super) manifest: Manifest,
}

/// What is on disk for the upper and the work directory of `disk`, which have to belong together.
///
/// # Errors
/// [`Code::Upper`] where they do not, or the manifest is damaged.
pub(super) fn read_paired(disk: &Disk) -> Result<Paired, Failure> {
    let mark = disk.read_mark().map_err(|error| failed("look at", disk.upper_path(), &error))?;
    let (upper, work) = (disk.upper_path().display(), disk.work_path().display());
    let new = || Ok(Paired { begun: false, noted: false, manifest: Manifest::new()? });
    let read = read_with_notes(&disk.work_proc_path(), &disk.manifest_path())?;
    let noted = read.as_ref().is_some_and(|(_, noted)| *noted);
    match (read.map(|(manifest, _)| manifest), mark) {
        (Some(manifest), Some(mark)) if *manifest.stack() == mark => {
            Ok(Paired { begun: true, noted, manifest })
        }
        // It was begun, and the server killed then.
        (Some(manifest), None) if manifest.is_trivial() => new(),
        (None, None) => new(),
        (Some(manifest), mark) => {
            let problem = format!("the layers in {work} belong to another upper than {upper}");
            let hint = match (mark.is_some(), manifest.is_trivial()) {
                (true, true) => "name the work directory that this one was mounted with before",
                _ => "name another work directory with --workdir",
            };
            Err(Failure::new(Code::Upper, problem).hint(hint))
        }
        (None, Some(_)) => {
            let problem = format!("{upper} is one of several layers, which are not in {work}");
            Err(Failure::new(Code::Upper, problem)
                .hint("name the work directory that it was mounted with before, by --workdir"))
        }
    }
}
