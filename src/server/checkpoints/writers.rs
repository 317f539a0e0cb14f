//! Who has a file of a mount open for writing, or mapped so, as `/proc` tells it. Processes of others are
//! seen as far as this one may look at them.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::super::mounts::{MountInfo, read_mounts_of};
use crate::failure::{Code, Failure};

/// Most that are named.
const MOST: usize = 20;

/// Refuses where a file of `mounted` is open for writing, as far as this process may know.
///
/// # Errors
/// [`Code::Busy`], with the processes and the files.
pub(crate) fn check_nobody_writes(mounted: &MountInfo) -> Result<(), Failure> {
    let writers = of(&mounted.device);
    if writers.is_empty() {
        return Ok(());
    }
    let shown = |(pid, path): &(u32, PathBuf)| format!("process {pid}: {}", path.display());
    let list = writers.iter().map(shown).collect();
    let message = format!("files of {} are open for writing", mounted.mountpoint.display());
    let failure = Failure::new(Code::Busy, message);
    Err(Failure { list, ..failure.hint("close them, or roll back without --strict") })
}

/// Processes and files, of the file system with number `device` (`major:minor`).
fn of(device: &str) -> Vec<(u32, PathBuf)> {
    let mut found = BTreeSet::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        let path = process.path();
        let files = open_files(&path, device).chain(mapped_files(&path, device));
        found.extend(files.map(|path| (pid, path)));
        if found.len() >= MOST {
            break;
        }
    }
    found.into_iter().take(MOST).collect()
}

fn open_files(process: &Path, device: &str) -> impl Iterator<Item = PathBuf> {
    let process = process.to_owned();
    let pid = process.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // Each namespace has numbers of its own for what is mounted.
    let mounts = read_mounts_of(&pid).unwrap_or_default().into_iter();
    let ids: Vec<_> = mounts.filter(|it| it.device == device).map(|it| it.id).collect();
    let entries = match ids.is_empty() {
        true => None,
        false => std::fs::read_dir(process.join("fdinfo")).ok(),
    };
    entries.into_iter().flatten().flatten().filter_map(move |entry| {
        let about = std::fs::read_to_string(entry.path()).ok()?;
        let field = |name: &str| {
            let line = about.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim_matches([':', ' ', '\t']))
        };
        let id: u64 = field("mnt_id")?.parse().ok()?;
        let flags = i32::from_str_radix(field("flags")?, 8).ok()?;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY && flags & libc::O_PATH == 0;
        if !writes || !ids.contains(&id) {
            return None;
        }
        std::fs::read_link(process.join("fd").join(entry.file_name())).ok()
    })
}

/// `START-END PERMISSIONS OFFSET MAJOR:MINOR INODE PATH`, of which the device is in hexadecimal.
fn mapped_files(process: &Path, device: &str) -> impl Iterator<Item = PathBuf> {
    let maps = std::fs::read(process.join("maps")).unwrap_or_default();
    let wanted = device.split_once(':').and_then(|(major, minor)| {
        Some(format!("{:02x}:{:02x}", major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    });
    let files = maps.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.splitn(6, |byte| *byte == b' ');
        let permissions = fields.nth(1)?;
        let device = fields.nth(1)?;
        let path = fields.nth(1)?.trim_ascii_start();
        let writes = permissions.get(1) == Some(&b'w') && permissions.get(3) == Some(&b's');
        let is_there = wanted.as_deref().is_some_and(|wanted| wanted.as_bytes() == device);
        (writes && is_there).then(|| PathBuf::from(std::ffi::OsStr::from_bytes(path)))
    });
    files.collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn who_writes_is_found_and_who_reads_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let [read, written] = ["read", "written"].map(|name| dir.path().join(name));
        std::fs::write(&read, "x").unwrap();
        let _reader = std::fs::File::open(&read).unwrap();
        let writer = std::fs::File::create(&written).unwrap();
        let device = writer.metadata().unwrap().dev();
        let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        let process = Path::new("/proc").join(std::process::id().to_string());
        let found = || open_files(&process, &device).collect::<Vec<_>>();
        // On some file systems the number of a file is another than that of the mount.
        if read_mounts_of("self").unwrap().iter().all(|mount| mount.device != device) {
            eprintln!("SKIPPED: the temporary directory's mount has another device number");
            return;
        }
        assert!(found().contains(&written) && !found().contains(&read), "{:?}", found());
        drop(writer);
        assert!(!found().contains(&written));
    }
}
