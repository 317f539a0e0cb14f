//! Where what changes in a directory is known from.

use std::any::Any;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::watch::{Change, Item, Reader, What, watch_directory};

/// Finds who knows what changes in a directory.
pub(crate) trait Feeds: Send + Sync {
    /// What changes in `dir`, which has no symlinks in its path, from now on.
    ///
    /// # Errors
    /// Where nobody can tell, or not for another one.
    fn feed(&self, dir: &Path, recursive: bool) -> io::Result<Feed>;
}

/// What changes in a directory: a log, of which it may be a part.
pub(crate) struct Feed {
    /// Reads the log.
    pub(crate) reader: Reader,
    /// The directory's path in the tree that the log is of; empty for its root.
    pub(crate) at: Vec<u8>,
    /// Where that tree is mounted, which a directory that is followed does not leave.
    pub(crate) within: Option<PathBuf>,
    /// Whether it is told of where it is moved to, too.
    pub(crate) stays: Stays,
    /// What has to live as long, for the log to be written.
    pub(crate) _source: Arc<dyn Any + Send + Sync>,
}

/// Whether a directory is told of where it is moved to, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stays {
    /// It is.
    Followed,
    /// It is not, and is where it was.
    Here,
    /// It is not, and was moved.
    Left,
}

/// Every directory by inotify.
pub(crate) struct Inotify;

impl Feeds for Inotify {
    fn feed(&self, dir: &Path, recursive: bool) -> io::Result<Feed> {
        let (source, reader) = watch_directory(dir, recursive)?;
        Ok(Feed { reader, at: Vec::new(), within: None, stays: Stays::Followed, _source: source })
    }
}

/// What happened, and the name of what it happened to in the directory.
pub(super) type Named = (Event, Vec<u8>);

/// What happened in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Create,
    /// It was moved here from elsewhere. A directory has come with all in it.
    Arrival,
    Write,
    Remove,
    Rename,
    Attributes,
}

impl Feed {
    /// What is next, told of the directory; `recursive` of all that is below. Nothing if there is no more yet.
    ///
    /// # Errors
    /// Where something is missing from here on.
    pub(super) fn read(
        &mut self,
        recursive: bool,
        at_most: usize,
    ) -> Result<Option<Vec<Named>>, String> {
        if self.stays == Stays::Left {
            return Err("it was moved, and may be beyond the root".to_owned());
        }
        let items = self.reader.read(at_most);
        if items.is_empty() {
            return match self.reader.closed() {
                Some(why) => Err(why.to_string()),
                None => Ok(None),
            };
        }
        let mut events = Vec::new();
        for item in items {
            match item {
                Item::Change(change) => {
                    self.tell(&change, recursive, &mut events);
                    if self.stays == Stays::Left {
                        break;
                    }
                }
                Item::Missed { from, to } => {
                    let count = to - from + 1;
                    return Err(format!("overflow: {count} changes or more were not read in time"));
                }
            }
        }
        Ok(Some(events))
    }

    /// What `change` is to who watches the directory. It is followed where it is moved to, as inotify follows it.
    fn tell(&mut self, change: &Change, recursive: bool, events: &mut Vec<Named>) {
        let mut tell = |event: Event, path: &[u8]| {
            events.extend(below(&self.at, path, recursive).map(|name| (event, name.to_vec())));
        };
        let path = &change.path;
        match &change.what {
            What::Create => tell(Event::Create, path),
            What::Write => tell(Event::Write, path),
            What::Remove => tell(Event::Remove, path),
            What::Attributes => tell(Event::Attributes, path),
            What::Rename { to } => {
                tell(self.going(path, to), path);
                match [path, to].map(|path| is_at_or_above(path, &self.at)) {
                    [true, _] => {}
                    // Another has come to where it was, or to where one above it was.
                    [false, true] => tell(Event::Arrival, &self.at),
                    [false, false] => tell(self.coming(path), to),
                }
            }
            // As two renames, with no name taken before it is free.
            What::Exchange { with } => {
                tell(self.going(path, with), path);
                tell(self.going(with, path), with);
                if ![path, with].iter().any(|path| is_at_or_above(path, &self.at)) {
                    tell(self.coming(path), with);
                    tell(self.coming(with), path);
                }
            }
        }
        self.follow(change);
    }

    /// What it is to go from `path` to `to`. Who hears of a rename expects the new name.
    fn going(&self, path: &[u8], to: &[u8]) -> Event {
        match path != self.at && below(&self.at, to, true).is_none() {
            true => Event::Remove,
            false => Event::Rename,
        }
    }

    /// What it is to come from `path`.
    fn coming(&self, path: &[u8]) -> Event {
        match below(&self.at, path, true) {
            Some(_) => Event::Create,
            None => Event::Arrival,
        }
    }

    fn follow(&mut self, change: &Change) {
        let moved = |from: &[u8], to: &[u8]| {
            let rest = self.at.get(from.len()..).filter(|_| is_at_or_above(from, &self.at))?;
            (!from.is_empty()).then(|| [to, rest].concat())
        };
        let found = match &change.what {
            What::Rename { to } => moved(&change.path, to),
            What::Exchange { with } => {
                moved(&change.path, with).or_else(|| moved(with, &change.path))
            }
            _ => None,
        };
        if let Some(at) = found {
            self.at = at;
            if self.stays == Stays::Here {
                self.stays = Stays::Left;
            }
        }
    }
}

fn is_at_or_above(path: &[u8], of: &[u8]) -> bool {
    of.strip_prefix(path)
        .is_some_and(|rest| rest.is_empty() || path.is_empty() || rest.first() == Some(&b'/'))
}

/// What `path` is called in directory `dir`, where it is told of: `.` is the directory itself.
fn below<'a>(dir: &[u8], path: &'a [u8], recursive: bool) -> Option<&'a [u8]> {
    let name = match dir {
        _ if path == dir => return Some(b"."),
        [] => path,
        dir => path.strip_prefix(dir)?.strip_prefix(b"/")?,
    };
    (recursive || !name.contains(&b'/')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::FileKind;
    use crate::watch::{ChangeLog, Limits};

    fn told(at: &str, recursive: bool, changes: &[(What, &str)]) -> (String, String) {
        let log = Arc::new(ChangeLog::new(Limits::default(), Some(tempfile::tempfile)));
        let (reader, _) = log.subscribe(None).unwrap();
        let at = at.as_bytes().to_vec();
        let stays = Stays::Followed;
        let mut feed = Feed { reader, at, within: None, stays, _source: Arc::new(()) };
        for (what, path) in changes {
            log.write(what.clone(), FileKind::Regular, 0, path.as_bytes().to_vec());
        }
        let events = feed.read(recursive, 100).unwrap().unwrap();
        let shown = events
            .iter()
            .map(|(event, name)| format!("{event:?} {}", String::from_utf8_lossy(name)));
        (shown.collect::<Vec<_>>().join(", "), String::from_utf8(feed.at).unwrap())
    }

    #[test]
    fn a_change_is_told_by_its_name_in_the_directory() {
        let rename = |to: &str| What::Rename { to: to.into() };
        let exchange = |with: &str| What::Exchange { with: with.into() };
        for (at, recursive, what, path, expected, then) in [
            ("", true, What::Create, "a/b", "Create a/b", ""),
            ("", false, What::Create, "a/b", "", ""),
            ("", false, What::Create, "a", "Create a", ""),
            ("", false, What::Attributes, "", "Attributes .", ""),
            ("d", true, What::Write, "d/x", "Write x", "d"),
            ("d", true, What::Write, "dd/x", "", "d"),
            ("d", true, What::Remove, "d", "Remove .", "d"),
            ("d", true, What::Remove, "", "", "d"),
            ("d", false, rename("d/y"), "d/x", "Rename x, Create y", "d"),
            ("d", false, rename("e/y"), "d/x", "Remove x", "d"),
            ("d", true, rename("dd"), "d/e/x", "Remove e/x", "d"),
            ("d", false, rename("dd"), "d/e/x", "", "d"),
            ("d", false, rename("d/y"), "e/x", "Arrival y", "d"),
            ("d", true, rename("d/y"), "d/e/x", "Rename e/x, Create y", "d"),
            ("d", true, rename("d/y"), "dd/x", "Arrival y", "d"),
            ("d", false, rename("d/e/y"), "d/x", "Rename x", "d"),
            ("d", true, rename("e"), "d", "Rename .", "e"),
            ("d/e", true, rename("x/y"), "d", "", "x/y/e"),
            ("d/e", true, rename("x"), "dd", "", "d/e"),
            ("d", true, rename("d"), "x", "Arrival .", "d"),
            ("d/e", false, rename("d"), "x", "Arrival .", "d/e"),
            ("d/e", true, rename("d"), "x/y", "Arrival .", "d/e"),
            ("dd/e", true, rename("d"), "x", "", "dd/e"),
            ("", true, rename(""), "", "Rename .", ""),
            ("d", true, exchange("d/y"), "d/x", "Rename x, Rename y, Create y, Create x", "d"),
            ("d", true, exchange("d/y"), "x", "Remove y, Arrival y", "d"),
            ("d", true, exchange("x"), "d/y", "Remove y, Arrival y", "d"),
            ("d", true, exchange("d"), "e", "Rename .", "e"),
            ("d", false, exchange("d/e/y"), "d/x", "Rename x, Create x", "d"),
        ] {
            let found = told(at, recursive, &[(what.clone(), path)]);
            assert_eq!(found, (expected.into(), then.into()), "{at:?} {what:?} {path:?}");
        }
    }
}
