//! `thawfs ls`, `cat`, `extract` and `inspect`: an archive without a mount.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{BufWriter, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::args::{CatArgs, ExtractArgs, InspectArgs, LsArgs};
use super::mount::{check_not_source, source_request};
use super::output::{Output, Watcher, human_bytes, human_time, stdout_failed};
use crate::backup::{self, ExtractOptions, ExtractProgress, OpenArchive, Staging, find};
use crate::failure::{Code, Failure};
use crate::names::{self, printable};
use crate::server::leftovers;
use crate::server::state::{Note, StateDir};
use crate::squashfs::{self, Archive, DirCursor, Inode};
use crate::types::{FileKind, FileOffset};

/// How much `cat` reads at a time.
const READ_BYTES: usize = 1 << 20;

/// One file as `ls` shows it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    #[serde(flatten, with = "names::path")]
    path: PathBuf,
    kind: &'static str,
    mode: u16,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: i64,
    nlink: u32,
    #[serde(flatten)]
    target: Option<Target>,
}

/// One that cannot be described.
#[derive(Serialize)]
struct Unreadable {
    #[serde(flatten, with = "names::path")]
    path: PathBuf,
    error: String,
}

/// Where a symbolic link leads.
#[derive(Serialize)]
struct Target {
    #[serde(flatten, with = "names::target")]
    target: PathBuf,
}

impl Listed {
    fn new(archive: &Archive, path: &[u8], inode: &Inode) -> Result<Self, Failure> {
        let target = match inode.kind {
            FileKind::Symlink => Some(Target { target: as_path(&archive.read_link(inode)?) }),
            _ => None,
        };
        Ok(Self {
            path: as_path(path),
            kind: kind_name(inode.kind),
            mode: inode.permissions,
            uid: inode.uid,
            gid: inode.gid,
            size: inode.size,
            mtime: inode.mtime.seconds,
            nlink: inode.nlink,
            target,
        })
    }

    /// Like `ls -l`, with numbers for owners: the names on this machine are not the archive's.
    fn long(&self, kind: FileKind) -> Vec<u8> {
        let mut line = format!(
            "{}{} {:>2} {:>5} {:>5} {:>10} {} ",
            kind_letter(kind),
            mode_letters(self.mode),
            self.nlink,
            self.uid,
            self.gid,
            self.size,
            human_time(self.mtime),
        )
        .into_bytes();
        line.extend(self.path.as_os_str().as_bytes());
        if let Some(Target { target }) = &self.target {
            line.extend(b" -> ");
            line.extend(target.as_os_str().as_bytes());
        }
        line
    }
}

pub(super) fn ls(args: &LsArgs, output: &Output) -> Result<(), Failure> {
    let opened = source_request(&args.source)?.open()?;
    let archive = &opened.archive;
    let path = args.path.as_bytes();
    let start = find(archive, path)?;
    let escaped = !args.null && std::io::stdout().is_terminal();
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut listed = Vec::new();
    let mut show = |path: &[u8], inode: Result<&Inode, &Failure>| -> Result<(), Failure> {
        if output.json {
            listed.push(match inode {
                Ok(inode) => serde_json::json!(Listed::new(archive, path, inode)?),
                Err(problem) => {
                    let (path, error) = (as_path(path), problem.message.clone());
                    serde_json::json!(Unreadable { path, error })
                }
            });
            return Ok(());
        }
        let mut line = match (args.long, inode) {
            (true, Ok(inode)) => Listed::new(archive, path, inode)?.long(inode.kind),
            // As ls(1) has it where stat(2) fails.
            (true, Err(_)) => [b"?????????? ".as_slice(), path].concat(),
            (false, _) => path.to_owned(),
        };
        if escaped {
            line = printable(&line).into_bytes();
        }
        line.push(if args.null { 0 } else { b'\n' });
        out.write_all(&line).map_err(|error| stdout_failed(&error))
    };
    let mut problems = Problems::default();
    if start.kind != FileKind::Directory {
        show(path, Ok(&start))?;
    } else {
        list(archive, start, args.recursive, &mut show, &mut problems)?;
    }
    out.flush().map_err(|error| stdout_failed(&error))?;
    drop(out);
    if output.json {
        output.print_json(&listed)?;
    }
    problems.into_result()
}

/// Shows one file under its path, or that it cannot be read what it is.
type Show<'a> = dyn FnMut(&[u8], Result<&Inode, &Failure>) -> Result<(), Failure> + 'a;

/// What could not be read while the rest was listed.
#[derive(Default)]
struct Problems {
    first: Option<Failure>,
    others: usize,
}

impl Problems {
    /// Keeps a failure that the archive itself is to blame for, and gives it to be shown. Others would
    /// be met again with the next file.
    fn keep(&mut self, path: &[u8], error: squashfs::Error) -> Result<Failure, Failure> {
        let of_the_archive = !matches!(error, squashfs::Error::Blob(_));
        let failure = Failure::from(error);
        let shown = failure.clone();
        let failure = Failure {
            message: format!("{}: {}", as_path(path).display(), failure.message),
            ..failure
        };
        if !of_the_archive {
            return Err(failure);
        }
        match self.first {
            Some(_) => self.others += 1,
            None => self.first = Some(failure),
        }
        Ok(shown)
    }

    fn into_result(self) -> Result<(), Failure> {
        let Some(mut failure) = self.first else { return Ok(()) };
        if self.others > 0 {
            failure.message.push_str(&format!(" (and {} more)", self.others));
        }
        Err(failure)
    }
}

/// Shows what is in a directory, and below it if `recursive`, with paths relative to it. What cannot be
/// read hides nothing else.
fn list(
    archive: &Archive,
    directory: Inode,
    recursive: bool,
    show: &mut Show<'_>,
    problems: &mut Problems,
) -> Result<(), Failure> {
    // A damaged archive may have a second name for a directory, and so cycles.
    let mut entered = HashSet::from([directory.reference]);
    let mut open = vec![(archive.read_dir(&directory, DirCursor::START)?, 0)];
    let mut path = Vec::new();
    while let Some((entries, above)) = open.last_mut() {
        path.truncate(*above);
        let entry = match entries.next() {
            Some(Ok(entry)) => entry,
            Some(Err(error)) => {
                problems.keep(&path, error)?;
                continue;
            }
            None => {
                open.pop();
                continue;
            }
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&entry.name);
        let listing = archive.inode(entry.inode).and_then(|inode| {
            if !recursive || inode.kind != FileKind::Directory {
                return Ok((inode, None));
            }
            if !entered.insert(inode.reference) {
                let at = archive.superblock().directory_table;
                let detail = format!("inode {} is a directory with a second name", inode.reference);
                return Err(squashfs::Error::corrupt("directory", at, detail));
            }
            let entries = archive.read_dir(&inode, DirCursor::START)?;
            Ok((inode, Some(entries)))
        });
        match listing {
            Ok((inode, entries)) => {
                show(&path, Ok(&inode))?;
                open.extend(entries.map(|entries| (entries, path.len())));
            }
            Err(error) => show(&path, Err(&problems.keep(&path, error)?))?,
        }
    }
    Ok(())
}

pub(super) fn cat(args: &CatArgs) -> Result<(), Failure> {
    let opened = source_request(&args.source)?.open()?;
    let archive = &opened.archive;
    let mut out = std::io::stdout().lock();
    for path in &args.paths {
        let inode = find(archive, path.as_bytes())?;
        if inode.kind != FileKind::Regular {
            let shown = path.to_string_lossy();
            return Err(Failure::new(
                Code::Usage,
                format!("{shown} is a {}, not a regular file", kind_name(inode.kind)),
            ));
        }
        let mut at = FileOffset(0);
        while at.0 < inode.size {
            let bytes = archive.read(&inode, at, READ_BYTES)?;
            if bytes.is_empty() {
                break;
            }
            out.write_all(&bytes).map_err(|error| stdout_failed(&error))?;
            at.0 += bytes.len() as u64;
        }
    }
    out.flush().map_err(|error| stdout_failed(&error))
}

pub(super) fn extract(args: &ExtractArgs, output: &Output) -> Result<(), Failure> {
    check_not_source(&args.into, Code::Usage)?;
    let opened = source_request(&args.source)?.open()?;
    let options = ExtractOptions {
        path: args.path.as_bytes().to_vec(),
        jobs: args.jobs,
        preserve_privileged: args.preserve_privileged,
    };
    extract_opened(&opened, &args.into, &options, output)
}

/// Makes the directory in which `target` is unpacked, and writes down which one that is, for the next one or
/// `thawfs gc` to find should this process be killed. Nothing else depends on that.
fn stage(target: &Path, state: &StateDir) -> Result<(Staging, Option<Note>), Failure> {
    let note = |id| {
        let (target, path) = backup::staging_path(target).ok()?;
        leftovers::clear_staging(state, &target);
        let note = Note::Staging { path, target, id };
        let noted = state.note(&note);
        noted.inspect_err(|error| log::debug!("the extract is not noted: {error}")).ok()?;
        Some(note)
    };
    let before = note(None);
    let staging = Staging::create(target).inspect_err(|_| {
        before.iter().for_each(|note| state.forget(note));
    })?;
    let id = staging.id().ok();
    Ok((staging, id.and_then(|id| note(Some(id))).or(before)))
}

/// Unpacks into `target`, and shows how far it is and what it came to.
pub(super) fn extract_opened(
    opened: &OpenArchive,
    target: &Path,
    options: &ExtractOptions,
    output: &Output,
) -> Result<(), Failure> {
    /// What was unpacked.
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Extracted {
        files: u64,
        bytes: u64,
        withheld: u64,
        left_out: LeftOut,
    }

    /// What was left out because nobody asked for it.
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct LeftOut {
        set_ids: u64,
        capabilities: u64,
        devices: u64,
    }
    let progress = Arc::new(ExtractProgress::default());
    let bar = output.progress(total_bytes(&opened.archive, &options.path)?, "unpacking");
    let watcher = Watcher::start(bar, {
        let progress = Arc::clone(&progress);
        move |bar| bar.set_position(progress.bytes.load(Ordering::Relaxed))
    });
    // What is not in the archive is said before anything is made.
    find(&opened.archive, &options.path)?;
    let state = StateDir::locate();
    let (staging, noted) = stage(target, &state)?;
    let extracted = backup::extract_staged(&opened.archive, staging, options, &progress);
    if let Some(note) = noted {
        state.forget(&note);
    }
    drop(watcher);
    extracted?;
    let done = Extracted {
        files: progress.files.load(Ordering::Relaxed),
        bytes: progress.bytes.load(Ordering::Relaxed),
        withheld: progress.withheld.load(Ordering::Relaxed),
        left_out: LeftOut {
            set_ids: progress.left_out.set_ids.load(Ordering::Relaxed),
            capabilities: progress.left_out.capabilities.load(Ordering::Relaxed),
            devices: progress.left_out.devices.load(Ordering::Relaxed),
        },
    };
    let LeftOut { set_ids, capabilities, devices } = done.left_out;
    if set_ids + capabilities + devices > 0 {
        output.warn(&format!(
            "left out: setuid or setgid bits of {set_ids} files, capabilities of {capabilities}, \
             {devices} devices; --preserve-privileged keeps them"
        ));
    }
    if done.withheld > 0 {
        output.warn(&format!(
            "{} owners, devices or attributes that only root may set were left out",
            done.withheld
        ));
    }
    if output.json {
        return output.print_json(&done);
    }
    if output.quiet {
        return Ok(());
    }
    output.print_line(&format!(
        "{} files, {} into {}",
        done.files,
        human_bytes(done.bytes),
        target.display()
    ))
}

/// Bytes of all regular files to be unpacked, each hard link counted once.
fn total_bytes(archive: &Archive, path: &[u8]) -> Result<u64, Failure> {
    let start = find(archive, path)?;
    if start.kind != FileKind::Directory {
        return Ok(start.size);
    }
    let mut seen = HashSet::new();
    let mut total = 0u64;
    // What cannot be read is for the unpacking to say, which knows its path.
    for entry in archive.walk_from(&start).flatten() {
        let inode = entry.inode;
        if inode.kind == FileKind::Regular && (inode.nlink < 2 || seen.insert(inode.reference)) {
            total = total.saturating_add(inode.size);
        }
    }
    Ok(total)
}

pub(super) fn inspect(args: &InspectArgs, output: &Output) -> Result<(), Failure> {
    let opened = source_request(&args.source)?.open()?;
    if output.json {
        return output.print_json(&describe_json(&opened));
    }
    describe_lines(&opened, output)
}

/// What the superblock says, for programs.
pub(super) fn describe_json(opened: &OpenArchive) -> serde_json::Value {
    let superblock = opened.archive.superblock();
    serde_json::json!({
        "source": opened.name,
        "bytes": superblock.bytes_used,
        "compressor": superblock.compressor.name(),
        "blockSize": superblock.block_size,
        "created": superblock.created.seconds,
        "inodes": superblock.inodes,
        "fragments": superblock.fragments,
        "ids": superblock.ids,
        "flags": superblock.flags,
        "flagNames": superblock.flag_names(),
        "root": superblock.root.packed(),
        "tables": superblock
            .tables()
            .into_iter()
            .map(|(name, start)| (name.to_owned(), start.map(|start| start.0).into()))
            .collect::<serde_json::Map<String, serde_json::Value>>(),
    })
}

/// What the superblock says, for people.
pub(super) fn describe_lines(opened: &OpenArchive, output: &Output) -> Result<(), Failure> {
    let superblock = opened.archive.superblock();
    let line = |name: &str, value: String| output.print_line(&format!("{name:<18}{value}"));
    line("source", opened.name.clone())?;
    line("size", format!("{} ({})", superblock.bytes_used, human_bytes(superblock.bytes_used)))?;
    line("created", human_time(superblock.created.seconds))?;
    line("compressor", superblock.compressor.name().to_owned())?;
    line("block size", human_bytes(superblock.block_size.into()))?;
    line("inodes", superblock.inodes.to_string())?;
    line("fragments", superblock.fragments.to_string())?;
    line("owners", superblock.ids.to_string())?;
    line("flags", superblock.flag_names().join(", "))?;
    line("root inode", superblock.root.to_string())?;
    for (name, start) in superblock.tables() {
        let start = start.map_or("none".to_owned(), |start| format!("at byte {start}"));
        line(&format!("{name} table"), start)?;
    }
    Ok(())
}

fn as_path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Directory => "directory",
        FileKind::Regular => "file",
        FileKind::Symlink => "symlink",
        FileKind::BlockDevice => "block device",
        FileKind::CharDevice => "character device",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
    }
}

fn kind_letter(kind: FileKind) -> char {
    match kind {
        FileKind::Directory => 'd',
        FileKind::Regular => '-',
        FileKind::Symlink => 'l',
        FileKind::BlockDevice => 'b',
        FileKind::CharDevice => 'c',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
    }
}

/// `rwxr-sr-t`, as ls(1) writes the twelve permission bits.
fn mode_letters(mode: u16) -> String {
    let mut letters = String::with_capacity(9);
    for (shift, special, set, bare) in
        [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')]
    {
        let bits = mode >> shift;
        letters.push(if bits & 4 != 0 { 'r' } else { '-' });
        letters.push(if bits & 2 != 0 { 'w' } else { '-' });
        letters.push(match (mode & special != 0, bits & 1 != 0) {
            (false, true) => 'x',
            (false, false) => '-',
            (true, true) => set,
            (true, false) => bare,
        });
    }
    letters
}

#[cfg(test)]
mod tests {
    use super::mode_letters;

    #[test]
    fn modes_are_written_as_ls_does() {
        for (mode, letters) in [
            (0o755, "rwxr-xr-x"),
            (0o4755, "rwsr-xr-x"),
            (0o2710, "rwx--s---"),
            (0o1777, "rwxrwxrwt"),
            (0o7000, "--S--S--T"),
        ] {
            assert_eq!(mode_letters(mode), letters);
        }
    }
}
