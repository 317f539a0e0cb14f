//! Traces of archives, kept beside them: they outlive what is evicted, and are small.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::dir::CacheDir;
use crate::cache::prefetch::Trace;

/// Most traces; beyond, the one that was used least recently goes.
const MOST: usize = 256;

/// The directory of traces.
#[derive(Debug)]
pub(super) struct Traces(PathBuf);

impl Traces {
    /// That of a cache.
    pub(super) fn beside(cache: &CacheDir) -> Self {
        Self(cache.path().with_file_name("traces"))
    }

    fn path(&self, stem: &str) -> PathBuf {
        self.0.join(format!("{stem}.json"))
    }

    /// Removes traces that were last used before a time in seconds since the epoch.
    pub(super) fn remove(&self, before: u64) -> io::Result<()> {
        for (used, path) in listed(&self.0)? {
            if used <= before {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// What was read first of an archive the last time, if that is known.
    pub(super) fn load(&self, stem: &str) -> Option<Trace> {
        let mut json = Vec::new();
        let file = File::open(self.path(stem)).ok()?;
        (&file).take(Trace::LIMIT).read_to_end(&mut json).ok()?;
        // It would only be removed a little earlier.
        let _ = file.set_modified(SystemTime::now());
        Trace::from_json(&json)
    }

    /// Keeps a trace for the next time.
    pub(super) fn save(&self, stem: &str, trace: &Trace) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.0)?;
        serde_json::to_writer(&mut file, trace)?;
        file.persist(self.path(stem))?;
        let mut all = listed(&self.0)?;
        all.sort();
        let excess = all.len().saturating_sub(MOST);
        for (_, path) in all.into_iter().take(excess) {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

/// All files of a directory that need not exist, with the time of their last use.
fn listed(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        // Another process may have removed it.
        let Ok(stat) = entry.metadata() else { continue };
        files.push((u64::try_from(stat.mtime()).unwrap_or(0), entry.path()));
    }
    Ok(files)
}
