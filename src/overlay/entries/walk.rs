//! The way through the merged tree: of each directory first what is no directory, and then its directories, by name.

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::super::Overlay;
use super::super::attr::Attr;
use super::super::dirs::os_str;
use super::super::error::{Error, Result};
use super::super::lookup::Held;
use super::super::node::Dentry;
use super::told;
use crate::squashfs::write::{self, Exclude};
use crate::types::{FileKind, Ino};

/// Names that are looked up together. A directory of the upper with more may be listed once for each batch.
const BATCH: usize = 1 << 12;

/// An entry of a directory, looked up.
pub(super) struct Entry<'o> {
    pub(super) directory: Ino,
    pub(super) name: OsString,
    /// As it is shown.
    pub(super) attr: Attr,
    pub(super) held: Held<'o>,
}

/// A directory on the way down.
struct Frame<'o> {
    directory: Held<'o>,
    /// How long its path is.
    len: usize,
    /// Names of directories yet to come, the last one first.
    children: Vec<OsString>,
}

/// What comes by on the way.
pub(super) trait Visitor {
    /// A directory: the root first, which has no name. What is in it is passed over if it is gone.
    fn enter(&mut self, name: &OsStr, directory: &Held<'_>) -> Result<bool, write::Error>;
    /// An entry that is no directory.
    fn leaf(&mut self, entry: &Entry<'_>) -> Result<(), write::Error>;
    /// The end of the directory that was entered last.
    fn leave(&mut self) -> Result<(), write::Error>;
}

impl Overlay {
    /// Shows `visitor` the tree. `root` is what errors call its root.
    pub(super) fn visit(
        &self,
        root: &Path,
        exclude: &Exclude<'_>,
        visitor: &mut dyn Visitor,
    ) -> Result<(), write::Error> {
        let mut path = PathBuf::new();
        let mut frames: Vec<Frame<'_>> = Vec::new();
        let whole = self.count(Ino::ROOT, FileKind::Directory).map_err(told)?;
        let mut next = Some((OsString::new(), whole));
        loop {
            if let Some((name, directory)) = next.take()
                && visitor.enter(&name, &directory)?
            {
                let children = self.leaves(directory.ino, &path, exclude, visitor)?;
                let len = path.as_os_str().len();
                frames.push(Frame { directory, len, children });
            }
            let Some(frame) = frames.last_mut() else { return Ok(()) };
            truncate(&mut path, frame.len);
            let Some(name) = frame.children.pop() else {
                visitor.leave()?;
                frames.pop();
                continue;
            };
            path.push(&name);
            match self.hold_if_there(frame.directory.ino, &name).map_err(told)? {
                Some(child) if child.kind == FileKind::Directory => next = Some((name, child)),
                // It comes too late for its place in the order.
                Some(_) => return Err(write::Error::Changed { path: root.join(path) }),
                None => {}
            }
        }
    }

    /// Gives `visitor` what is in a directory but for directories, of which it returns the names, the last one first.
    fn leaves(
        &self,
        directory: Ino,
        path: &Path,
        exclude: &Exclude<'_>,
        visitor: &mut dyn Visitor,
    ) -> Result<Vec<OsString>, write::Error> {
        let mut children = Vec::new();
        let mut cookie = Some(0);
        while let Some(from) = cookie {
            let (batch, next) = self.batch(directory, from).map_err(told)?;
            for entry in batch {
                let is_directory = entry.held.kind == FileKind::Directory;
                if exclude(&path.join(&entry.name), is_directory) {
                    continue;
                }
                match is_directory {
                    true => children.push(entry.name),
                    false => visitor.leaf(&entry)?,
                }
            }
            cookie = next;
        }
        children.sort_unstable_by(|a, b| b.cmp(a));
        Ok(children)
    }

    /// Entries of a directory from a cookie on, and the cookie of what comes behind them, if there may be more.
    fn batch(&self, directory: Ino, from: u64) -> Result<(Vec<Entry<'_>>, Option<u64>)> {
        let (mut entries, mut next) = (Vec::new(), from);
        let (mut failed, mut other, mut is_full) = (None, None, false);
        let read = self.readdir(directory, from, true, &mut |entry| {
            if entry.name == "." || entry.name == ".." {
                return ControlFlow::Continue(());
            }
            is_full = entries.len() == BATCH;
            if is_full {
                return ControlFlow::Break(());
            }
            let Some(attr) = entry.attr else {
                let name = entry.name.to_owned();
                match entry.problem {
                    Some(_) => failed = Some(name),
                    // Its node has another number than it is listed with.
                    None => other = Some((name, entry.next_cookie)),
                }
                return ControlFlow::Break(());
            };
            next = entry.next_cookie;
            let held = Held::counted(self, attr.ino, entry.kind);
            entries.push(Entry { directory, name: entry.name.to_owned(), attr, held });
            ControlFlow::Continue(())
        });
        let is_gone = || {
            let node = self.nodes.find(directory);
            directory != Ino::ROOT && node.is_none_or(|node| node.dentry == Dentry::Nowhere)
        };
        match read {
            // It was removed, and had been emptied before.
            Err(error) if is_gone() => tracing::debug!("a directory that is gone: {error}"),
            read => read?,
        }
        if let Some(name) = failed {
            // For the error that it has.
            let held = self.hold(directory, &name)?;
            self.getattr(held.ino, None)?;
            return Err(Error::damaged(format_args!("{} cannot be described", name.display())));
        }
        if let Some((name, behind)) = other {
            if let Some(held) = self.hold_if_there(directory, &name)? {
                let attr = self.getattr(held.ino, None)?;
                entries.push(Entry { directory, name, attr, held });
            }
            return Ok((entries, Some(behind)));
        }
        if !is_full {
            self.listings.remove(directory);
        }
        Ok((entries, is_full.then_some(next)))
    }

    /// Looks a name up. `None` where it is gone.
    pub(super) fn hold_if_there(&self, directory: Ino, name: &OsStr) -> Result<Option<Held<'_>>> {
        match self.hold(directory, name) {
            Err(error) if error.is(Errno::NOENT) => Ok(None),
            held => held.map(Some),
        }
    }
}

fn truncate(path: &mut PathBuf, len: usize) {
    let bytes = std::mem::take(path).into_os_string();
    let kept = bytes.as_bytes().get(..len).unwrap_or_default();
    *path = os_str(kept).into();
}
