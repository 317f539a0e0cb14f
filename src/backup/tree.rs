//! What is packed: a directory that is walked, or a merged tree that tells what it holds.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::layout;
use super::select::Selection;
use crate::overlay::{Overlay, TreeSize};
use crate::squashfs::write::{self, Base};

/// Says that it is called off: the rest need not be gone through, as the next write to the store fails.
pub(super) type Over<'a> = dyn Fn() -> bool + Sync + 'a;

/// What is packed.
pub(super) trait Tree: Send + Sync {
    /// Packs it, onto `base` if there is one.
    fn pack(
        &self,
        how: (&write::Options, Option<&Base<'_>>),
        over: &Over<'_>,
        sink: &mut dyn write::Sink,
        progress: &write::Progress,
    ) -> Result<write::Summary, write::Error>;

    /// How much there is. What cannot be read is for the packing to report.
    fn measure(&self, over: &Over<'_>) -> TreeSize;

    /// What its maker should know, one line each.
    fn warnings(&self) -> Vec<String>;
}

/// What of a directory is the bucket `local`, which would grow while it is packed.
pub(super) fn own(local: Option<&Path>, dir: &Path) -> Option<PathBuf> {
    Some(local?.strip_prefix(dir).ok()?.join(layout::ALL))
}

fn is_left_out(own: &Path) -> String {
    format!("{} is the bucket itself, and left out", own.display())
}

/// A directory.
pub(super) struct Directory {
    pub(super) root: PathBuf,
    pub(super) selection: Selection,
    /// What of it is the bucket itself.
    pub(super) own: Option<PathBuf>,
}

impl Directory {
    fn excludes(&self, path: &Path, is_dir: bool) -> bool {
        self.own.as_deref().is_some_and(|own| own == path) || self.selection.excludes(path, is_dir)
    }
}

impl Tree for Directory {
    fn pack(
        &self,
        (options, base): (&write::Options, Option<&Base<'_>>),
        over: &Over<'_>,
        sink: &mut dyn write::Sink,
        progress: &write::Progress,
    ) -> Result<write::Summary, write::Error> {
        let exclude = |path: &Path, is_dir: bool| over() || self.excludes(path, is_dir);
        match base {
            None => write::archive(&self.root, options, &exclude, sink, progress),
            Some(base) => write::archive_onto(base, &self.root, options, &exclude, sink, progress),
        }
    }

    fn measure(&self, over: &Over<'_>) -> TreeSize {
        let mut size = TreeSize::default();
        let mut several_names = HashSet::new();
        let mut left = vec![PathBuf::new()];
        while let Some(dir) = left.pop()
            && !over()
        {
            let Ok(entries) = std::fs::read_dir(self.root.join(&dir)) else { continue };
            for entry in entries.flatten() {
                let path = dir.join(entry.file_name());
                let Ok(meta) = entry.metadata() else { continue };
                if self.excludes(&path, meta.is_dir()) {
                    continue;
                }
                if meta.is_dir() {
                    left.push(path);
                } else if meta.is_file()
                    && (meta.nlink() == 1 || several_names.insert((meta.dev(), meta.ino())))
                {
                    size.add(meta.len(), meta.blocks());
                }
            }
        }
        size
    }

    fn warnings(&self) -> Vec<String> {
        let own = self.own.as_deref().map(|own| is_left_out(&self.root.join(own)));
        self.selection.warnings().iter().cloned().chain(own).collect()
    }
}

/// A merged tree in this process.
pub(super) struct Merged {
    pub(super) tree: Arc<Overlay>,
    /// Where it is mounted, or might be.
    pub(super) dir: PathBuf,
    /// What of it is the bucket itself.
    pub(super) own: Option<PathBuf>,
}

impl Merged {
    fn is_own(&self, path: &Path) -> bool {
        self.own.as_deref().is_some_and(|own| own == path)
    }
}

impl Tree for Merged {
    fn pack(
        &self,
        how: (&write::Options, Option<&Base<'_>>),
        over: &Over<'_>,
        sink: &mut dyn write::Sink,
        progress: &write::Progress,
    ) -> Result<write::Summary, write::Error> {
        let exclude = |path: &Path, _: bool| over() || self.is_own(path);
        let reopen = |path: &Path| self.tree.reopen(path);
        write::told(how, &reopen, sink, progress, |entries| {
            self.tree.tell_entries(&self.dir, &exclude, entries)
        })
    }

    fn measure(&self, over: &Over<'_>) -> TreeSize {
        let measured = self.tree.measure(&|path: &Path, _| self.is_own(path), &|| over());
        measured.unwrap_or_default()
    }

    fn warnings(&self) -> Vec<String> {
        self.own.iter().map(|own| is_left_out(&self.dir.join(own))).collect()
    }
}
