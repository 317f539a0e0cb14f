//! What a mount would do with an archive: open, list, walk and read it, each with nothing cached.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Scatter, Spread};
use crate::backup::{OpenArchive, SourceRequest};
use crate::failure::Failure;
use crate::squashfs::{DirCursor, Inode};
use crate::types::{FileKind, FileOffset};

/// How often opening and what follows at once is repeated.
const OPENINGS: usize = 5;
/// Bytes read of the largest file.
const SEQUENTIAL_BYTES: u64 = 64 << 20;
/// As `cat` and readahead ask.
const READ_BYTES: usize = 1 << 20;
/// Reads of 4 KiB at scattered places of the largest file.
const RANDOM_READS: u64 = 64;
/// Bytes of a file that counts as small.
const SMALL_BYTES: u64 = 32 << 10;
/// Most bytes of all of it: an opening's chunk and tail, whole blocks of 1 MiB for random reads,
/// and as much again read ahead as was asked for.
pub(super) const PLANNED_BYTES: u64 =
    OPENINGS as u64 * (4 << 20) + 2 * SEQUENTIAL_BYTES + RANDOM_READS * (1 << 20);

/// One kind of work.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reading {
    /// What was done.
    pub work: &'static str,
    /// How long it took.
    pub seconds: Spread,
    /// Bytes of files it gave, in all.
    pub bytes: u64,
}

/// Times the work on the source for at most about `time`. What the archive has no file for, or time
/// did not suffice for, is left out.
///
/// # Errors
/// When the archive cannot be read.
pub fn reading(source: &SourceRequest, time: Duration) -> Result<Vec<Reading>, Failure> {
    let end = Instant::now() + time;
    let mut rows = Rows::default();
    let files = openings(source, end, &mut rows)?;
    if let Some(largest) = &files.largest {
        sequential(&source.open()?, largest, end, &mut rows)?;
        random(&source.open()?, largest, end, &mut rows)?;
    }
    Ok(rows.0.into_iter().filter_map(Row::finish).collect())
}

/// Times and bytes by work, in the order they came.
#[derive(Default)]
struct Rows(Vec<Row>);

struct Row {
    work: &'static str,
    times: Vec<Duration>,
    bytes: u64,
}

impl Rows {
    fn note(&mut self, work: &'static str, since: Instant, bytes: u64) {
        let took = since.elapsed();
        match self.0.iter_mut().find(|row| row.work == work) {
            Some(row) => {
                row.times.push(took);
                row.bytes += bytes;
            }
            None => self.0.push(Row { work, times: vec![took], bytes }),
        }
    }
}

impl Row {
    fn finish(self) -> Option<Reading> {
        Some(Reading { work: self.work, seconds: Spread::new(self.times)?, bytes: self.bytes })
    }
}

/// Files to read later.
#[derive(Default)]
struct Files {
    small: Option<Inode>,
    largest: Option<Inode>,
}

/// Opens the archive again and again: nothing of the one before is known to the next.
fn openings(source: &SourceRequest, end: Instant, rows: &mut Rows) -> Result<Files, Failure> {
    let mut files = Files::default();
    for number in 0..OPENINGS {
        if number > 0 && Instant::now() >= end {
            break;
        }
        let began = Instant::now();
        let opened = source.open()?;
        rows.note("open", began, 0);
        let archive = &opened.archive;
        let began = Instant::now();
        let root = archive.inode(archive.root())?;
        for entry in archive.read_dir(&root, DirCursor::START)? {
            archive.inode(entry?.inode)?;
        }
        rows.note("first listing", began, 0);
        if let Some(small) = &files.small {
            let began = Instant::now();
            let bytes = archive.read(small, FileOffset(0), READ_BYTES)?;
            rows.note("first small read", began, bytes.len() as u64);
        }
        let began = Instant::now();
        for entry in archive.walk() {
            let inode = entry?.inode;
            let size = |known: &Option<Inode>| known.as_ref().map_or(0, |inode| inode.size);
            if inode.kind != FileKind::Regular || inode.size == 0 {
                continue;
            }
            if inode.size > size(&files.largest) {
                files.largest = Some(inode.clone());
            }
            if files.small.is_none() && inode.size <= SMALL_BYTES {
                files.small = Some(inode);
            }
        }
        rows.note("full walk", began, 0);
    }
    Ok(files)
}

fn sequential(
    opened: &OpenArchive,
    file: &Inode,
    end: Instant,
    rows: &mut Rows,
) -> Result<(), Failure> {
    let mut at = FileOffset(0);
    while at.0 < file.size.min(SEQUENTIAL_BYTES) && Instant::now() < end {
        let began = Instant::now();
        let bytes = opened.archive.read(file, at, READ_BYTES)?.len() as u64;
        rows.note("sequential read, 1 MiB", began, bytes);
        at.0 += bytes.max(1);
    }
    Ok(())
}

fn random(
    opened: &OpenArchive,
    file: &Inode,
    end: Instant,
    rows: &mut Rows,
) -> Result<(), Failure> {
    let mut scatter = Scatter(file.size);
    for _ in 0..RANDOM_READS {
        if Instant::now() >= end {
            break;
        }
        let at = FileOffset(scatter.below(file.size.div_ceil(4096)) * 4096);
        let began = Instant::now();
        let bytes = opened.archive.read(file, at, 4096)?.len() as u64;
        rows.note("random read, 4 KiB", began, bytes);
    }
    Ok(())
}
