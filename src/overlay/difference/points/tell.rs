//! What is told of each name.

use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use super::super::super::error::Result;
use super::super::Sink;
use super::super::compare::Change;
use super::super::entry::{DifferenceEntry, Status};
use super::super::step::as_path;
use super::facts::Facts;
use super::files::Files;
use super::trees::{Entry, Pair, unless_gone};
use super::walk::Walk;
use crate::types::FileKind;

impl<'a> Walk<'_, 'a> {
    /// Tells what differs.
    pub(super) fn tell(&self, files: &Files, sink: &mut Sink<'_>) -> Result<()> {
        self.run(&mut |found| {
            let mut entries = Vec::new();
            self.tell_of(found, files, &mut entries)?;
            for entry in entries {
                if sink(entry).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    fn tell_of(
        &self,
        found: &Pair<'a>,
        files: &Files,
        entries: &mut Vec<DifferenceEntry>,
    ) -> Result<()> {
        let (from, to) = (&found.from, &found.to);
        if let (Some(from), Some(to), true) = (from, to, found.are_same) {
            return self.tell_change(from, to, true, entries);
        }
        let is_elsewhere = |from: &Entry<'_>| {
            let number = self.trees.number_from(from);
            match from.is_directory() {
                true => self.moved.contains_key(&number),
                false => files.is_told(number, &from.path),
            }
        };
        let from = from.as_ref().filter(|from| !is_elsewhere(from));
        let was_there = |to: &Entry<'_>| {
            let number = self.trees.number(to);
            self.moved.contains_key(&number) || files.was_there(number)
        };
        if let (Some(from), Some(to)) = (from, to)
            && from.held.kind == to.held.kind
            && !was_there(to)
        {
            return self.tell_change(from, to, false, entries);
        }
        if let Some(from) = from {
            let facts = Facts::of(self.trees.from, &from.held)?;
            let kind = from.held.kind;
            let old = (from.path != found.path).then(|| as_path(&from.path));
            entries.push(DifferenceEntry {
                status: Status::Removed,
                kind,
                path: as_path(&found.path),
                from: old,
                size: facts.shown_size(),
                bytes: 0,
                ino: 0,
                nlink: 0,
            });
        }
        let Some(to) = to else { return Ok(()) };
        match self.source(to, files)? {
            Some(from) => {
                if let Some(facts) = unless_gone(Facts::of(self.trees.to, &to.held))? {
                    entries.push(self.entry(Status::Renamed, to, Some(&from.path), &facts));
                }
                self.tell_change(&from, to, true, entries)
            }
            None => {
                if let Some(facts) = unless_gone(Facts::of(self.trees.to, &to.held))? {
                    entries.push(self.entry(Status::Added, to, None, &facts));
                }
                Ok(())
            }
        }
    }

    /// What it was that has another name now.
    fn source(&self, to: &Entry<'a>, files: &Files) -> Result<Option<Rc<Entry<'a>>>> {
        let number = self.trees.number(to);
        match to.held.kind {
            FileKind::Directory => Ok(self.moved.get(&number).cloned()),
            _ => match files.source(number, &to.path) {
                Some(path) => self.trees.find_from(path.as_os_str().as_bytes()),
                None => Ok(None),
            },
        }
    }

    fn tell_change(
        &self,
        from: &Entry<'a>,
        to: &Entry<'a>,
        are_same: bool,
        entries: &mut Vec<DifferenceEntry>,
    ) -> Result<()> {
        let before = Facts::of(self.trees.from, &from.held)?;
        let Some(after) = unless_gone(Facts::of(self.trees.to, &to.held))? else { return Ok(()) };
        let status = match before.compare(&after, are_same)? {
            Change::None => return Ok(()),
            Change::Attributes => Status::Attributes,
            Change::Data => Status::Modified,
        };
        entries.push(self.entry(status, to, Some(&from.path), &after));
        Ok(())
    }

    fn entry(
        &self,
        status: Status,
        to: &Entry<'a>,
        from: Option<&[u8]>,
        facts: &Facts,
    ) -> DifferenceEntry {
        let from = from.filter(|from| **from != *to.path).map(as_path);
        let is_new = matches!(status, Status::Added | Status::Modified);
        DifferenceEntry {
            status,
            kind: to.held.kind,
            path: as_path(&to.path),
            from,
            size: facts.shown_size(),
            bytes: if is_new { facts.bytes() } else { 0 },
            ino: self.trees.number(to).0,
            nlink: facts.nlink,
        }
    }
}
