//! The part of a log that has no room in memory, in a file without a name.
//!
//! The file is a circle of segments, each with many changes in a row. When all are in use, the oldest is written over.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::change::{Change, What};
use crate::types::{FileKind, Timestamp};

/// Where the segment lies that begins with a change, and how many bytes of it are used.
#[derive(Clone, Copy, Debug)]
struct Segment {
    first: u64,
    slot: u64,
    len: usize,
}

/// Changes on disk, those before the first in memory.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    segments: VecDeque<Segment>,
    /// Bytes from one segment's start to the next one's.
    pitch: usize,
    slots: u64,
    next_slot: u64,
}

impl Journal {
    /// In `file`, with room for `slots` segments of at most `pitch` bytes.
    pub(super) fn new(file: File, pitch: usize, slots: u64) -> Self {
        Self { file, segments: VecDeque::new(), pitch, slots: slots.max(1), next_slot: 0 }
    }

    /// The first change that is there still.
    pub(super) fn first(&self) -> Option<u64> {
        self.segments.front().map(|segment| segment.first)
    }

    /// Bytes of what is there still.
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len as u64).sum()
    }

    /// Adds `text`, which is [`encode`]d changes in a row, the first of them being `first`.
    ///
    /// # Errors
    /// What `pwrite` says.
    pub(super) fn push(&mut self, first: u64, text: &[u8]) -> io::Result<()> {
        debug_assert!(text.len() <= self.pitch, "a segment fits its slot");
        if self.segments.len() as u64 == self.slots {
            self.segments.pop_front();
        }
        let slot = self.next_slot;
        self.file.write_all_at(text, slot * self.pitch as u64)?;
        self.next_slot = (slot + 1) % self.slots;
        self.segments.push_back(Segment { first, slot, len: text.len() });
        Ok(())
    }

    /// Forgets the segments that end before change `wanted`; `end` is the first change that is not in the journal.
    pub(super) fn drop_before(&mut self, wanted: u64, end: u64) {
        while !self.segments.is_empty() {
            let behind = self.segments.get(1).map_or(end, |next| next.first);
            if behind > wanted {
                break;
            }
            self.segments.pop_front();
        }
    }

    /// The changes of the segment that `wanted` is in, from that on.
    ///
    /// # Errors
    /// What `pread` says, or `InvalidData` where it is not what was written.
    pub(super) fn read(&self, wanted: u64) -> io::Result<Vec<Change>> {
        let at = self.segments.partition_point(|segment| segment.first <= wanted);
        let Some(segment) = at.checked_sub(1).and_then(|at| self.segments.get(at)) else {
            return Ok(Vec::new());
        };
        let mut text = vec![0; segment.len];
        self.file.read_exact_at(&mut text, segment.slot * self.pitch as u64)?;
        let (mut rest, mut sequence) = (&*text, segment.first);
        let mut changes = Vec::new();
        while !rest.is_empty() {
            let change = decode(&mut rest, sequence).ok_or(io::ErrorKind::InvalidData)?;
            if sequence >= wanted {
                changes.push(change);
            }
            sequence += 1;
        }
        Ok(changes)
    }
}

/// Appends `change` to `text`: what, kind (2 bytes), ino (8), seconds (8), nanoseconds (4), length of the path (4), of
/// the other path (4), and both.
pub(super) fn encode(change: &Change, text: &mut Vec<u8>) {
    let what = match change.what {
        What::Create => 0,
        What::Write => 1,
        What::Remove => 2,
        What::Rename { .. } => 3,
        What::Exchange { .. } => 4,
        What::Attributes => 5,
    };
    text.push(what);
    text.push((change.kind.mode_bits() >> 12) as u8);
    text.extend(change.ino.to_le_bytes());
    text.extend(change.at.seconds.to_le_bytes());
    text.extend(change.at.nanos.to_le_bytes());
    let other = change.other().unwrap_or_default();
    // A path that the kernel cannot say whole is far below 4 GiB all the same.
    text.extend((change.path.len() as u32).to_le_bytes());
    text.extend((other.len() as u32).to_le_bytes());
    text.extend(&change.path);
    text.extend(other);
}

/// Takes one change off `text`.
fn decode(text: &mut &[u8], sequence: u64) -> Option<Change> {
    let [what, kind] = array(text)?;
    let ino = u64::from_le_bytes(array(text)?);
    let at = Timestamp {
        seconds: i64::from_le_bytes(array(text)?),
        nanos: u32::from_le_bytes(array(text)?),
    };
    let [path, other] = [u32::from_le_bytes(array(text)?), u32::from_le_bytes(array(text)?)];
    let path = text.split_off(..path as usize)?.to_vec();
    let other = text.split_off(..other as usize)?.to_vec();
    let what = match what {
        0 => What::Create,
        1 => What::Write,
        2 => What::Remove,
        3 => What::Rename { to: other },
        4 => What::Exchange { with: other },
        5 => What::Attributes,
        _ => return None,
    };
    let kind = FileKind::from_mode(u32::from(kind) << 12)?;
    Some(Change { sequence, at, what, kind, ino, path })
}

fn array<const N: usize>(text: &mut &[u8]) -> Option<[u8; N]> {
    text.split_off(..N)?.try_into().ok()
}
