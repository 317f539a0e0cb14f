//! `thawfs diff`: what a mount's view, or a checkpoint, has that its backup or another checkpoint has not.

use std::collections::HashSet;
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::{Args, ValueHint};
use serde::Serialize;

use super::cursor::check_cursor;
use super::output::{Output, human_bytes, stdout_failed};
use crate::failure::Failure;
use crate::names::{printable, printable_json};
use crate::overlay::{DifferenceEntry, Status};
use crate::server::checkpoints::{PointsRequest, write_back};
use crate::server::questions::Question;
use crate::server::{DifferenceRequest, fetch_difference, find_around};
use crate::types::FileKind;
use crate::watch::Cursor;

#[derive(Debug, Args)]
#[command(after_help = "\
One line for each difference, in the order of paths, directories before what is in them:
  A added       D removed (a directory with all in it)    R renamed: OLD -> NEW
  M modified    T permissions, owner, attributes or time
With --since also:
  L a directory in which names may be gone    S one that may be another, with all in it
Paths are from the root of the mount. The status is 0 whether or not there are differences.
  thawfs diff ~/work                      what the mount has that its backup has not
  thawfs diff ~/work before-upgrade       what has changed since that checkpoint
  thawfs diff ~/work before-upgrade 3f2a91c0   and until that one; also the other way round
It takes as long as there are changes between the two, whatever the size of the tree.")]
pub(crate) struct DiffArgs {
    /// A mount, or a directory or file in one.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,

    /// Compare with a checkpoint, by its id, the first eight digits of that or more, or its name; or with
    /// what was mounted (archive) [default: archive].
    #[arg(value_name = "FROM")]
    pub(crate) from: Option<String>,

    /// What is compared: a checkpoint, or archive [default: what is mounted now].
    #[arg(value_name = "TO")]
    pub(crate) to: Option<String>,

    /// What has changed since then, rather than from the backup; nothing is left out, but more may be named.
    #[arg(long, value_name = "CURSOR", conflicts_with = "from")]
    pub(crate) since: Option<Cursor>,

    /// Count the differences, and the bytes that what is compared with does not have.
    #[arg(long)]
    pub(crate) stat: bool,

    /// End each line with a NUL instead, and write names as they are; the old name of what is renamed comes
    /// behind the new one, ended so as well.
    #[arg(long, short = '0', conflicts_with = "stat")]
    pub(crate) null: bool,
}

/// The counts of a difference.
#[derive(Default, Serialize)]
struct Counts {
    added: u64,
    modified: u64,
    attributes: u64,
    removed: u64,
    renamed: u64,
    listing: u64,
    subtree: u64,
    bytes: u64,
    /// Files with several names that were counted.
    #[serde(skip)]
    counted: HashSet<u64>,
}

pub(super) fn diff(args: &DiffArgs, output: &Output) -> Result<(), Failure> {
    let since = args.since.map(|cursor| (cursor.at.seconds, cursor.at.nanos));
    check_cursor(args.since.as_ref())?;
    let (mount, server, below) = find_around(&args.dir)?;
    let shown = mount.mountpoint.display().to_string();
    write_back(&mount.mountpoint, &server.control_path());
    let question = match args.from.clone() {
        Some(from) => Question::Points(PointsRequest { below, from, to: args.to.clone() }),
        None => Question::Difference(DifferenceRequest { below, since }),
    };
    // A name shall not end its line, or be taken for another.
    let escaped = !args.null;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut counts = Counts::default();
    let mut written = Ok(());
    let told = fetch_difference(&server.control_path(), &question, &mut |entry| {
        if args.stat {
            counts.count(&entry);
            return ControlFlow::Continue(());
        }
        let line = match output.json {
            true => serde_json::to_string(&entry)
                .map(|json| printable_json(&json).into_bytes())
                .map_err(io::Error::from),
            false if escaped => Ok(printable(line(&entry, args.null)).into_bytes()),
            false => Ok(line(&entry, args.null)),
        };
        let end = if args.null { 0 } else { b'\n' };
        written = line.and_then(|line| out.write_all(&[&line[..], &[end]].concat()));
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    written.and_then(|()| out.flush()).map_err(|error| stdout_failed(&error))?;
    drop(out);
    told.map_err(|failure| match failure.message.contains(&shown) {
        true => failure,
        false => Failure { message: format!("{shown}: {}", failure.message), ..failure },
    })?;
    match (args.stat, output.json) {
        (false, _) => Ok(()),
        (true, true) => output.print_json(&counts),
        (true, false) => {
            counts.lines(args.from.as_deref()).iter().try_for_each(|line| output.print_line(line))
        }
    }
}

fn letter(status: Status) -> u8 {
    match status {
        Status::Added => b'A',
        Status::Modified => b'M',
        Status::Attributes => b'T',
        Status::Removed => b'D',
        Status::Renamed => b'R',
        Status::Listing => b'L',
        Status::Subtree => b'S',
    }
}

/// A letter and a path, for people or, with NULs, for scripts.
fn line(entry: &DifferenceEntry, null: bool) -> Vec<u8> {
    let slash: &[u8] = if entry.kind == FileKind::Directory { b"/" } else { b"" };
    let is_renamed = entry.status == Status::Renamed;
    let from = entry.from.as_deref().filter(|_| is_renamed).map(|from| from.as_os_str().as_bytes());
    let path = entry.path.as_os_str().as_bytes();
    let mut line = vec![letter(entry.status), b' '];
    match (from, null) {
        (from, true) => {
            line.extend([path, slash].concat());
            if is_renamed {
                line.push(0);
                line.extend(from.map(|from| [from, slash].concat()).unwrap_or_default());
            }
        }
        (Some(from), false) => line.extend([from, slash, b" -> ", path, slash].concat()),
        (None, false) => line.extend([path, slash].concat()),
    }
    line
}

impl Counts {
    fn count(&mut self, entry: &DifferenceEntry) {
        let count = match entry.status {
            Status::Added => &mut self.added,
            Status::Modified => &mut self.modified,
            Status::Attributes => &mut self.attributes,
            Status::Removed => &mut self.removed,
            Status::Renamed => &mut self.renamed,
            Status::Listing => &mut self.listing,
            Status::Subtree => &mut self.subtree,
        };
        *count += 1;
        if entry.bytes > 0 && (entry.nlink <= 1 || self.counted.insert(entry.ino)) {
            self.bytes += entry.bytes;
        }
    }

    fn lines(&self, from: Option<&str>) -> Vec<String> {
        let counts = [
            (self.added, "added"),
            (self.modified, "modified"),
            (self.attributes, "with other attributes"),
            (self.removed, "removed"),
            (self.renamed, "renamed"),
            (self.listing, "directories in which names may be gone"),
            (self.subtree, "directories that may be others"),
        ];
        let counts = counts.iter().filter(|(count, _)| *count > 0);
        let mut lines: Vec<_> = counts.map(|(count, words)| format!("{count} {words}")).collect();
        lines.push(match lines.is_empty() {
            true => "no differences".to_owned(),
            false => {
                let from = printable(from.unwrap_or("the backup").as_bytes());
                format!("{} that {from} does not have", human_bytes(self.bytes))
            }
        });
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(status: Status, kind: FileKind, path: &str, from: Option<&str>) -> DifferenceEntry {
        let (path, from) = (path.into(), from.map(PathBuf::from));
        DifferenceEntry { status, kind, path, from, size: 5, bytes: 5, ino: 7, nlink: 1 }
    }

    #[test]
    fn a_difference_is_a_letter_and_a_path() {
        use FileKind::{Directory, Regular};
        for (status, kind, path, from, people, scripts) in [
            (Status::Added, Regular, "a", None, "A a", "A a"),
            (Status::Modified, Regular, "b/a", Some("a/a"), "M b/a", "M b/a"),
            (Status::Attributes, Directory, ".", None, "T ./", "T ./"),
            (Status::Removed, Directory, "d", None, "D d/", "D d/"),
            (Status::Renamed, Regular, "b", Some("a"), "R a -> b", "R b\0a"),
            (Status::Renamed, Directory, "b", Some("a"), "R a/ -> b/", "R b/\0a/"),
            (Status::Renamed, Directory, "b", None, "R b/", "R b/\0"),
            (Status::Listing, Directory, "b", None, "L b/", "L b/"),
            (Status::Subtree, Directory, "b", Some("a"), "S b/", "S b/"),
        ] {
            let entry = entry(status, kind, path, from);
            assert_eq!(line(&entry, false), people.as_bytes());
            assert_eq!(line(&entry, true), scripts.as_bytes());
        }
    }

    #[test]
    fn the_names_of_one_file_count_its_bytes_once() {
        let mut counts = Counts::default();
        assert_eq!(counts.lines(None), ["no differences"]);
        for (ino, nlink) in [(1, 1), (1, 1), (2, 2), (2, 2), (3, 2)] {
            counts.count(&DifferenceEntry {
                ino,
                nlink,
                ..entry(Status::Added, FileKind::Regular, "a", None)
            });
        }
        assert_eq!((counts.added, counts.bytes), (5, 20));
        assert_eq!(counts.lines(None), ["5 added", "20 B that the backup does not have"]);
        assert_eq!(counts.lines(Some("x\n"))[1], "20 B that x\\n does not have");
    }
}
