//! What is said of a file: `Stat`, `ListDir`, and the entries of events.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat};
use hyper::body::Bytes;
use rustix::fs::{AtFlags, FileType as Kind, Statx, StatxFlags};
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::connect::Error;
use super::messages::{EntryInfo, FileType};
use super::places::{Place, Tree, failed};
use super::users::Owners;
use crate::inode_ops::{Address, list, open_directory};

/// The start of the names of attributes that are shown.
const METADATA: &[u8] = b"user.e2b.";

/// How many levels are listed at most: each on the way down takes a descriptor.
const DEEPEST: u32 = 512;

/// What is at `path`.
///
/// # Errors
/// `not_found`, and those of [`Tree::place`].
pub(super) fn stat(tree: &Tree, path: &Path, owners: &mut Owners) -> Result<EntryInfo, Error> {
    let Place { above, name } = tree.place(path)?;
    // Who has just changed it may have yet to be told that this is done, and until then the kernel remembers what was
    // before.
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
    let stat = rustix::fs::statx(&above, &name, flags, StatxFlags::BASIC_STATS);
    let described =
        stat.map_err(Into::into).and_then(|stat| describe(&above, &name, &stat, path, owners));
    described.map_err(|error| failed("look at", path, &error))
}

/// What the entry `name` of directory `above` is, shown as `path`.
fn describe(
    above: &Arc<OwnedFd>,
    name: &OsStr,
    stat: &Statx,
    path: &Path,
    owners: &mut Owners,
) -> io::Result<EntryInfo> {
    let address = Address::at(above, name);
    let kind = Kind::from_raw_mode(stat.stx_mode.into());
    let target = match kind {
        Kind::Symlink => {
            Some(String::from_utf8_lossy(&address.read_link().map_err(os)?).into_owned())
        }
        _ => None,
    };
    Ok(EntryInfo {
        name: path.file_name().unwrap_or("/".as_ref()).to_string_lossy().into_owned(),
        kind: match kind {
            Kind::RegularFile => FileType::File,
            Kind::Directory => FileType::Directory,
            Kind::Symlink => FileType::Symlink,
            _ => FileType::Unspecified,
        },
        path: path.to_string_lossy().into_owned(),
        size: stat.stx_size,
        mode: u32::from(stat.stx_mode & 0o777),
        permissions: permissions(kind, stat.stx_mode),
        owner: owners.user(stat.stx_uid),
        group: owners.group(stat.stx_gid),
        modified_time: modified(stat),
        is_symlink: target.is_some(),
        symlink_target: target,
        metadata: if matches!(kind, Kind::RegularFile | Kind::Directory) {
            metadata(&address)
        } else {
            BTreeMap::new()
        },
    })
}

/// As Go shows a mode, which is what clients know: `-rw-r--r--`, `drwxr-xr-x`, `dtrwxrwxrwx`.
fn permissions(kind: Kind, mode: u16) -> String {
    let mut shown = String::from(match kind {
        Kind::Directory => "d",
        Kind::Symlink => "L",
        Kind::BlockDevice => "D",
        Kind::CharacterDevice => "Dc",
        Kind::Fifo => "p",
        Kind::Socket => "S",
        _ => "",
    });
    let special = [(0o4000, 'u'), (0o2000, 'g'), (0o1000, 't')];
    shown.extend(special.iter().filter(|(bit, _)| mode & bit != 0).map(|(_, letter)| letter));
    if shown.is_empty() {
        shown.push('-');
    }
    let bits = (0..9).rev().zip("rwxrwxrwx".chars());
    shown.extend(bits.map(|(bit, letter)| if mode & (1 << bit) != 0 { letter } else { '-' }));
    shown
}

/// RFC 3339, in UTC; none for what that cannot write.
fn modified(stat: &Statx) -> Option<String> {
    let time = DateTime::from_timestamp(stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec)?;
    // From the year 1 to the end of 9999.
    let known = (-62_135_596_800..=253_402_300_799).contains(&time.timestamp());
    known.then(|| time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

/// Attributes that users of the service have given a file; best effort.
fn metadata(address: &Address) -> BTreeMap<String, String> {
    let names = address.list_xattrs().unwrap_or_default();
    let ours = names.split(|byte| *byte == 0).filter_map(|name| {
        let key = String::from_utf8(name.strip_prefix(METADATA)?.to_vec()).ok()?;
        let value = address.get_xattr(&CString::new(name).ok()?).ok()?;
        Some((key, String::from_utf8_lossy(&value).into_owned()))
    });
    ours.collect()
}

/// A directory that is to be listed.
pub(super) struct Listing {
    above: Arc<OwnedFd>,
    path: PathBuf,
    depth: u32,
}

impl Listing {
    /// The directory at `path`, `depth` levels of it.
    ///
    /// # Errors
    /// Those of [`Tree::directory`].
    pub(super) fn open(tree: &Tree, path: PathBuf, depth: u32) -> Result<Self, Error> {
        let (above, _) = tree.directory(&path)?;
        // Whether it may be read is to be said before the answer begins.
        let read = open_directory(&above, ".".as_ref());
        read.map_err(|error| failed("read", &path, &os(error)))?;
        Ok(Self { above: Arc::new(above), path, depth: depth.clamp(1, DEEPEST) })
    }

    /// Writes the answer, sorted by path, as it goes through the directories: what is in memory is the names of
    /// those on the way down.
    pub(super) fn write(self, to: &mpsc::Sender<io::Result<Bytes>>) {
        let mut writer = Writer { to, text: Vec::new(), is_first: true, owners: Owners::default() };
        let written = writer.put(b"{\"entries\":[").and_then(|()| {
            writer.directory(&self.above, &self.path, self.depth)?;
            writer.put(b"]}")?;
            writer.flush()
        });
        if let Err(error) = written {
            // It breaks off, or there is nobody to tell.
            let _ = to.blocking_send(Err(error));
        }
    }
}

/// How many names are looked for, and how many bytes of them.
#[derive(Clone, Copy)]
pub(super) struct Most {
    pub(super) names: usize,
    pub(super) bytes: usize,
}

/// The paths of all that is in the directory at `path`, from there, and `recursive` of all that is below; none where it
/// is no directory, or gone. `None` where there are more than `most`.
///
/// # Errors
/// Where they cannot be told, other than as nobody may look.
pub(super) fn names_below(
    tree: &Tree,
    path: &Path,
    recursive: bool,
    most: Most,
) -> Result<Option<Vec<PathBuf>>, Error> {
    let failed = |error: io::Error| match Errno::from_io_error(&error) {
        Some(errno) if may_pass(errno) => None,
        _ => Some(failed("list", path, &error)),
    };
    let (mut names, mut bytes) = (Vec::new(), 0);
    let place = match tree.find_place(path) {
        Ok(Some(place)) => place,
        Ok(None) => return Ok(Some(names)),
        Err(error) => return failed(error).map_or(Ok(Some(names)), Err),
    };
    wait_for_rename(&place.above);
    let mut left = vec![(place.above, place.name, PathBuf::new())];
    while let Some((above, name, path)) = left.pop() {
        let listed = open_directory(&above, &name).map(Arc::new);
        let listed = listed.and_then(|dir| list(&dir).map(|entries| (dir, entries)));
        let (dir, entries) = match listed.map_err(|error| failed(os(error))) {
            Ok(listed) => listed,
            Err(None) => continue,
            Err(Some(error)) => return Err(error),
        };
        for (name, _, kind) in entries {
            let path = path.join(&name);
            bytes += path.as_os_str().len();
            if names.len() == most.names || bytes > most.bytes {
                return Ok(None);
            }
            if kind == Kind::Directory && recursive {
                left.push((Arc::clone(&dir), name, path.clone()));
            }
            names.push(path);
        }
    }
    Ok(Some(names))
}

/// What is answered for a directory that is gone by now, or another's, or that may not be read.
fn may_pass(errno: Errno) -> bool {
    use Errno as E;
    matches!(errno, E::NOENT | E::NOTDIR | E::LOOP | E::ACCESS | E::PERM)
}

/// Whether there is nothing at `path`.
pub(super) fn is_nothing(tree: &Tree, path: &Path) -> bool {
    let Ok(place) = tree.place(path) else { return true };
    wait_for_rename(&place.above);
    rustix::fs::statat(&place.above, &place.name, AtFlags::SYMLINK_NOFOLLOW).is_err()
}

/// Waits until a rename to `dir` that is told of already is done. By then the kernel may know the new name as one that is
/// not there; but who reads the directory waits for who renames in it.
fn wait_for_rename(dir: &OwnedFd) {
    let Ok(opened) = open_directory(dir, ".".as_ref()) else { return };
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    // Whatever it says: it has waited.
    let _ = rustix::fs::RawDir::new(opened, &mut buffer).next();
}

struct Writer<'a> {
    to: &'a mpsc::Sender<io::Result<Bytes>>,
    text: Vec<u8>,
    is_first: bool,
    owners: Owners,
}

impl Writer<'_> {
    /// How much is sent at a time.
    const PIECE: usize = 64 << 10;

    fn put(&mut self, text: &[u8]) -> io::Result<()> {
        self.text.extend(text);
        if self.text.len() < Self::PIECE { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> io::Result<()> {
        let text = Bytes::from(std::mem::take(&mut self.text));
        self.to.blocking_send(Ok(text)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// The entries of one directory, and `depth` levels of them.
    fn directory(&mut self, dir: &Arc<OwnedFd>, path: &Path, depth: u32) -> io::Result<()> {
        let mut entries = list(dir).map_err(os)?;
        entries.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        for (name, _, _) in entries {
            let path = path.join(&name);
            // Gone by now, or not to be looked at.
            let stat = Address::at(dir, &name).stat().map_err(os);
            let described =
                stat.and_then(|stat| describe(dir, &name, &stat, &path, &mut self.owners));
            let Ok(entry) = described else { continue };
            if !std::mem::take(&mut self.is_first) {
                self.put(b",")?;
            }
            self.put(&serde_json::to_vec(&entry)?)?;
            if entry.kind == FileType::Directory && depth > 1 {
                let listed = open_directory(dir, &name)
                    .map_err(os)
                    .and_then(|below| self.directory(&Arc::new(below), &path, depth - 1));
                match listed {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn os(error: crate::inode_ops::Error) -> io::Error {
    error.errno.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_shown_as_go_shows_them() {
        for (kind, mode, shown) in [
            (Kind::RegularFile, 0o644, "-rw-r--r--"),
            (Kind::RegularFile, 0o4755, "urwxr-xr-x"),
            (Kind::Directory, 0o1777, "dtrwxrwxrwx"),
            (Kind::Directory, 0, "d---------"),
            (Kind::Symlink, 0o777, "Lrwxrwxrwx"),
            (Kind::CharacterDevice, 0o620, "Dcrw--w----"),
        ] {
            assert_eq!(permissions(kind, mode), shown);
        }
    }

    #[test]
    fn names_below_are_all_told_or_it_is_said_that_they_are_not() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("d/e")).unwrap();
        std::fs::write(root.join("d/e/f"), "").unwrap();
        std::os::unix::fs::symlink("d", root.join("link")).unwrap();
        let tree = Tree::new(root.clone(), false);
        let count = |path: &str, recursive, names, bytes| {
            let found = names_below(&tree, &root.join(path), recursive, Most { names, bytes });
            found.map(|found| found.map(|names| names.len())).map_err(|error| error.code)
        };
        assert_eq!(count("d", true, 2, 4), Ok(Some(2)));
        assert_eq!(count("d", true, 1, 4), Ok(None));
        assert_eq!(count("d", true, 2, 3), Ok(None));
        assert_eq!(count("d", false, 1, 1), Ok(Some(1)));
        for gone in ["none", "none/none", "d/e/f", "d/e/f/none", "link", "../none"] {
            assert_eq!(count(gone, true, 9, 9), Ok(Some(0)), "{gone}");
        }
        // What there may be is not known.
        let long = "x".repeat(300);
        for failing in [long.clone(), long + "/d"] {
            assert!(count(&failing, true, 9, 9).is_err());
        }
        for (errno, expected) in [
            (Errno::NOENT, true),
            (Errno::ACCESS, true),
            (Errno::MFILE, false),
            (Errno::IO, false),
            (Errno::STALE, false),
        ] {
            assert_eq!(may_pass(errno), expected, "{errno}");
        }
    }
}
