//! What has to be known of the whole upper before anything of it can be told: which files of the backup have other
//! names now, and which names of the backup lead to a file that was changed through another.
//!
//! What is in the upper says of a file of the backup which one it is, but not what it was called. That name is
//! hidden now, by a whiteout or by what else was made there: so the upper is walked for what came, and if anything
//! did, again for where it came from. Nothing is kept of anything else. Where neither is enough, as
//! for what was in a directory that is gone, that directory is looked through.
//!
//! A file with several names in the backup is one file in the upper, once it is copied up, with those of its names
//! that were touched. The others are found by a walk of the archive, the only one that a difference ever takes.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use super::super::Overlay;
use super::super::error::Result;
use super::super::index::Entry;
use super::guide::{Guide, Moved};
use super::step::{Here, Step, join};
use super::walk::Walk;
use crate::squashfs::DirCursor;
use crate::types::{FileKind, InodeRef};

impl Guide {
    /// Walks the upper. `is_wanted` says of a file with several names whether the others are to be found, too.
    pub(super) fn of(
        overlay: &Overlay,
        is_wanted: &dyn Fn(&Entry) -> Result<bool>,
    ) -> Result<Self> {
        let indexed: HashMap<InodeRef, Entry> = overlay
            .index
            .all()
            .into_iter()
            .filter_map(|entry| Some((entry.lower?, entry)))
            .collect();
        let mut guide = Self::default();
        let mut moved: HashMap<InodeRef, Moved> = HashMap::new();
        let mut files = 0;
        guide.walk(overlay, &mut |step| {
            let Some(inode) = step.arrived() else { return Ok(()) };
            // A directory that has moved must not be told as removed: what is in it is not told of its own. There are
            // no more of them than have been renamed one by one.
            let is_directory =
                matches!(&step.here, Here::Upper(upper) if upper.kind == FileKind::Directory);
            if !is_directory && !moved.contains_key(&inode) {
                if files >= overlay.options.renames {
                    return Ok(());
                }
                files += 1;
            }
            moved.entry(inode).or_default().arrived += 1;
            Ok(())
        })?;
        guide.moved = moved;
        // From here on it is known which directories have moved, and so what is hidden by one that was made there.
        let mut visited: HashMap<InodeRef, u32> = indexed.keys().map(|inode| (*inode, 0)).collect();
        if !guide.moved.is_empty() || !indexed.is_empty() {
            guide.find_sources(overlay, &mut visited)?;
        }
        let mut wanted = HashMap::new();
        for (inode, entry) in indexed {
            let known = visited.get(&inode).copied().unwrap_or(0);
            if known < entry.lower_nlink && is_wanted(&entry)? {
                wanted.insert(inode, entry.lower_nlink);
            }
        }
        guide.find_names(overlay, wanted)?;
        Ok(guide)
    }

    fn walk(
        &self,
        overlay: &Overlay,
        visit: &mut dyn FnMut(&Step<'_, '_>) -> Result<()>,
    ) -> Result<()> {
        let walk = Walk {
            overlay,
            guide: self,
            below: &[],
            looks_below_hidden: true,
            passes_over_new: true,
        };
        walk.run(&mut |step| visit(step).map(ControlFlow::Continue))
    }

    /// Finds what the backup calls the files that have other names now, and counts how many names are met that the
    /// backup has of those in `visited`.
    fn find_sources(
        &mut self,
        overlay: &Overlay,
        visited: &mut HashMap<InodeRef, u32>,
    ) -> Result<()> {
        let most = overlay.options.former_paths;
        let (mut found, mut own) = (Found::new(most), HashMap::<InodeRef, usize>::new());
        let mut gone = Found::new(most);
        self.walk(overlay, &mut |step| {
            if let Some(visited) = step.child.and_then(|child| visited.get_mut(&child.inode)) {
                *visited += 1;
            }
            match (step.hidden(), step.child, &step.here) {
                (Some(child), ..) if self.has_moved(child.inode) => {
                    found.add(child.inode, step.backup_path);
                }
                (Some(child), _, here) if child.kind == FileKind::Directory => {
                    // What hides a directory by another is gone through name by name.
                    let is_gone_through =
                        matches!(here, Here::Upper(upper) if upper.kind == FileKind::Directory && upper.lower.is_none());
                    if !is_gone_through {
                        gone.add(child.inode, step.backup_path);
                    }
                }
                (None, Some(child), _) if self.has_moved(child.inode) => {
                    *own.entry(child.inode).or_default() += 1;
                }
                _ => {}
            }
            Ok(())
        })?;
        for (inode, moved) in &mut self.moved {
            moved.own = own.get(inode).copied().unwrap_or(0);
        }
        self.take(&mut found);
        let mut sought = HashSet::new();
        for (inode, moved) in &self.moved {
            let names = overlay.lower.inode(*inode)?.nlink as usize;
            let of_directory = overlay.lower.inode(*inode)?.kind == FileKind::Directory;
            let known = moved.own + moved.hidden.len();
            if moved.hidden.len() < moved.arrived
                && (if of_directory { known == 0 } else { known < names })
            {
                sought.insert(*inode);
            }
        }
        if sought.is_empty() {
            return Ok(());
        }
        for (directory, path) in gone.paths {
            walk_lower(overlay, directory, path.into(), &mut |inode, _, _, path| {
                if sought.contains(&inode) {
                    found.add(inode, path);
                }
                // What has moved is elsewhere, with all in it.
                !self.has_moved(inode)
            })?;
        }
        self.take(&mut found);
        Ok(())
    }

    fn take(&mut self, found: &mut Found) {
        for (inode, path) in found.paths.drain(..) {
            if let Some(moved) = self.moved.get_mut(&inode) {
                moved.hidden.push(path);
            }
        }
    }

    /// Finds the names that the archive has of `wanted`, of each as many as it says.
    fn find_names(&mut self, overlay: &Overlay, wanted: HashMap<InodeRef, u32>) -> Result<()> {
        let mut left: u64 = wanted.values().map(|names| u64::from(*names)).sum();
        if left == 0 {
            return Ok(());
        }
        let names = &mut self.names;
        let root = overlay.lower.archive().root();
        walk_lower(overlay, root, Vec::new(), &mut |inode, kind, way, path| {
            if wanted.contains_key(&inode) {
                left = left.saturating_sub(1);
                for (directory, name) in way.iter().zip(path.split(|byte| *byte == b'/')) {
                    let names = names.entry(*directory).or_default();
                    if !names.iter().any(|known| **known == *name) {
                        names.push(name.into());
                    }
                }
            }
            kind == FileKind::Directory && left > 0
        })
    }
}

/// Paths that were found, with the inodes that they led to.
struct Found {
    paths: Vec<(InodeRef, Box<[u8]>)>,
    /// How many bytes more they may have.
    room: usize,
}

impl Found {
    fn new(room: usize) -> Self {
        Self { paths: Vec::new(), room }
    }

    fn add(&mut self, inode: InodeRef, path: &[u8]) {
        if let Some(room) = self.room.checked_sub(path.len()) {
            self.room = room;
            self.paths.push((inode, path.into()));
        }
    }
}

/// Gets an inode, its kind, the directories down to it and its path; says whether to go into it.
type Enter<'a> = dyn FnMut(InodeRef, FileKind, &[InodeRef], &[u8]) -> bool + 'a;

/// Goes through what is below `directory` in the archive, whose path is `path`.
fn walk_lower(
    overlay: &Overlay,
    directory: InodeRef,
    mut path: Vec<u8>,
    enter: &mut Enter<'_>,
) -> Result<()> {
    let archive = overlay.lower.archive();
    let read = |directory| {
        archive
            .read_dir(&overlay.lower.directory(directory)?, DirCursor::START)
            .map_err(super::super::Error::from)
    };
    // A damaged archive may lead in circles.
    let mut entered = HashSet::from([directory]);
    let mut way = vec![directory];
    let mut open = vec![(read(directory)?, path.len())];
    while let Some((entries, len)) = open.last_mut() {
        path.truncate(*len);
        let Some(entry) = entries.next().transpose()? else {
            open.pop();
            way.pop();
            continue;
        };
        join(&mut path, &entry.name);
        let (inode, kind) = (entry.inode, entry.kind);
        if enter(inode, kind, &way, &path) && kind == FileKind::Directory && entered.insert(inode) {
            open.push((read(inode)?, path.len()));
            way.push(inode);
        }
    }
    Ok(())
}
