//! Once things are quiet, a replica made of what was told is the tree, or the reader was told that it is not.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::*;

/// What replaying changes makes of a tree: its paths, and which of them are directories.
#[derive(Default)]
pub(super) struct Replica(pub(super) BTreeMap<PathBuf, bool>);

impl Replica {
    fn take(&mut self, path: &Path) -> Vec<(PathBuf, bool)> {
        // Component by component, what is below comes right after.
        let below = self.0.range(path.to_owned()..).map(|(it, _)| it);
        let below: Vec<_> = below.take_while(|it| it.starts_with(path)).cloned().collect();
        let name = |it: &Path| it.strip_prefix(path).unwrap().to_owned();
        below.into_iter().map(|it| (name(&it), self.0.remove(&it).unwrap())).collect()
    }

    fn put(&mut self, path: &Path, entries: Vec<(PathBuf, bool)>) {
        let above = path.parent().unwrap();
        assert!(above == Path::new("") || self.0.get(above) == Some(&true));
        for (name, is_dir) in entries {
            // Joined to nothing, a path would end with a slash.
            self.0.insert(path.join(name).components().collect(), is_dir);
        }
    }

    fn apply(&mut self, change: &Change) {
        let path = shown(&change.path).to_owned();
        let is_dir = change.kind == FileKind::Directory;
        match &change.what {
            What::Create => {
                // What comes from outside may replace a file; a directory is never made where one is.
                let before = self.take(&path);
                assert!(before.iter().all(|(_, is_dir)| !is_dir));
                self.put(&path, vec![(PathBuf::new(), is_dir)]);
            }
            What::Remove => drop(self.take(&path)),
            What::Rename { to } => {
                let moved = self.take(&path);
                assert_eq!(moved.first(), Some(&(PathBuf::new(), is_dir)));
                self.take(shown(to));
                self.put(shown(to), moved);
            }
            What::Exchange { with } => {
                let (one, other) = (self.take(&path), self.take(shown(with)));
                assert!(!one.is_empty() && !other.is_empty());
                self.put(shown(with), one);
                self.put(&path, other);
            }
            // The kernel may tell of a write that was on its way when the file was removed.
            What::Write | What::Attributes => {}
        }
    }

    /// Applies all that there is to read. Says why nothing more comes, if that is so.
    fn follow(&mut self, reader: &mut Reader, changes: &mut Vec<Arc<Change>>) -> Option<Arc<str>> {
        loop {
            let items = reader.read(1000);
            if items.is_empty() {
                return reader.closed();
            }
            for item in items {
                let Item::Change(change) = item else { panic!("{item:?}") };
                changes.push(Arc::clone(&change));
                let applied = catch_unwind(AssertUnwindSafe(|| self.apply(&change)));
                if applied.is_err() {
                    panic!("cannot be:\n{}", last(changes));
                }
            }
        }
    }

    /// Follows until this is the tree at `root`, and says why nothing more comes, if that is so.
    pub(super) fn meet(
        &mut self,
        root: &Path,
        reader: &mut Reader,
        changes: &mut Vec<Arc<Change>>,
    ) -> Option<Arc<str>> {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let closed = self.follow(reader, changes);
            let there = walk(root);
            if closed.is_some() || self.0 == there {
                return closed;
            }
            if Instant::now() > end {
                let missing: Vec<_> =
                    there.iter().filter(|it| self.0.get(it.0) != Some(it.1)).collect();
                let wrong: Vec<_> =
                    self.0.iter().filter(|it| there.get(it.0) != Some(it.1)).collect();
                panic!("missing: {missing:#?}\nwrong: {wrong:#?}\n{}", last(changes));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn last(changes: &[Arc<Change>]) -> String {
    let line = |change: &Arc<Change>| {
        let Change { what, kind, path, .. } = &**change;
        let other = change.other().unwrap_or_default();
        let what = format!("{what:?}").split(' ').next().unwrap().to_owned();
        format!("{what} {kind:?} {} {}\n", shown(path).display(), shown(other).display())
    };
    changes[changes.len().saturating_sub(60)..].iter().map(line).collect()
}

pub(super) fn walk(root: &Path) -> BTreeMap<PathBuf, bool> {
    let entries = walkdir::WalkDir::new(root).min_depth(1).into_iter();
    let name = |path: &Path| path.strip_prefix(root).unwrap().to_owned();
    entries.flatten().map(|it| (name(it.path()), it.file_type().is_dir())).collect()
}

/// What a storm does, and how often it could.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Deed {
    Make,
    Write,
    RemoveFile,
    RemoveDirectory,
    RemoveAll,
    Rename,
    RenameDirectory,
    Exchange,
    ExchangeDirectories,
    MoveOut,
    MoveIn,
}

/// Makes, moves and removes what few names there are, as fast as it can, in the way of all others who do.
fn storm(root: &Path, outside: &Path, seed: u64, count: usize) -> BTreeMap<Deed, usize> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let mut done = BTreeMap::new();
    for _ in 0..count {
        let mut path = |depth: u64| {
            let names = (0..=next(depth)).map(|_| ["a", "b", "c", "d"][next(4) as usize]);
            names.fold(root.join("t"), |path, name| path.join(name))
        };
        let (one, two) = (path(5), path(5));
        let aside = outside.join(format!("{}", next(4)));
        let (are_dirs, is_dir) = (one.is_dir() && two.is_dir(), one.is_dir());
        let exchange = || Ok(renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE)?);
        let (deed, did): (Deed, io::Result<()>) = match next(16) {
            0..=3 => (Deed::Make, fs::create_dir_all(&one)),
            4 | 5 => (Deed::Write, fs::write(&one, "x")),
            6 => (Deed::RemoveFile, fs::remove_file(&one)),
            7 => (Deed::RemoveDirectory, fs::remove_dir(&one)),
            8 if next(8) == 0 => (Deed::RemoveAll, fs::remove_dir_all(&one)),
            8..=11 if is_dir => (Deed::RenameDirectory, fs::rename(&one, &two)),
            8..=11 => (Deed::Rename, fs::rename(&one, &two)),
            12 | 13 if are_dirs => (Deed::ExchangeDirectories, exchange()),
            12 | 13 => (Deed::Exchange, exchange()),
            14 => (Deed::MoveOut, fs::rename(&one, &aside)),
            _ => (Deed::MoveIn, fs::rename(&aside, &one)),
        };
        // Much of it cannot be, which is as good.
        *done.entry(deed).or_default() += usize::from(did.is_ok());
    }
    done
}

/// A storm of several threads in one tree, and what its end must be. Says whether the watch has lasted.
fn weather(seed: u64, count: usize) -> bool {
    let mut watched = Watched::after(true, |dir| fs::create_dir_all(dir.join("t/a/b")).unwrap());
    let outside = tempfile::tempdir_in(watched.dir.path().parent().unwrap()).unwrap();
    let root = watched.dir.path().to_owned();
    let mut replica = Replica(walk(&root));
    let mut changes = Vec::new();
    let done: Vec<_> = std::thread::scope(|scope| {
        let storms = [0, 1, 2, 3].map(|thread| {
            let (root, outside) = (&root, outside.path());
            scope.spawn(move || storm(root, outside, seed * 10 + thread, count))
        });
        while !storms.iter().all(|storm| storm.is_finished()) {
            replica.follow(&mut watched.reader, &mut changes);
            std::thread::sleep(Duration::from_millis(5));
        }
        storms.into_iter().map(|storm| storm.join().unwrap()).collect()
    });
    for deed in [Deed::RenameDirectory, Deed::ExchangeDirectories, Deed::MoveOut, Deed::MoveIn] {
        assert!(done.iter().any(|done| done[&deed] > 0), "{done:?}");
    }
    if let Some(why) = replica.meet(&root, &mut watched.reader, &mut changes) {
        println!("seed {seed}: {why}");
        return false;
    }
    // And nothing goes on unwatched.
    for (name, _) in walk(&root).iter().filter(|(_, is_dir)| **is_dir) {
        fs::write(root.join(name).join("probe"), "").unwrap();
    }
    let closed = replica.meet(&root, &mut watched.reader, &mut changes);
    assert_eq!(closed, None);
    true
}

#[test]
fn after_a_storm_a_replica_of_what_was_told_is_the_tree() {
    let lasted = (1..6).filter(|seed| weather(*seed, 2500)).count();
    assert!(lasted > 0, "no watch has lasted");
}
