//! `thawfs ls`: what is in an archive.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::{BufWriter, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::archive::as_path;
use super::groups::SourceArgs;
use super::mount::source_request;
use super::output::{Output, human_time, stdout_failed};
use crate::backup::find;
use crate::failure::Failure;
use crate::names::{self, printable};
use crate::squashfs::{self, Archive, DirCursor, Inode};
use crate::types::FileKind;

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,

    /// A path inside the archive.
    #[arg(value_name = "PATH", default_value = "/")]
    pub(crate) path: OsString,

    /// Type, mode, owner, size and time of each file.
    #[arg(long, short)]
    pub(crate) long: bool,

    /// Directories below as well, with whole paths.
    #[arg(long, short = 'R')]
    pub(crate) recursive: bool,

    /// End each line with a NUL instead, and write names as they are; a terminal is else spared what it
    /// would obey.
    #[arg(long, short = '0')]
    pub(crate) null: bool,
}

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
            kind: inode.kind.name(),
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
