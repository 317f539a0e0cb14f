//! Which chunks readers wanted first: recorded by one mount, fetched ahead of them by the next.

use std::collections::HashSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::policy::{Here, Policy, Read, Wish};
use crate::cache::grid::Grid;

/// How long after the opening a chunk still belongs to a trace: what programs read when they start,
/// and not all that they do later.
const RECORDED: Duration = Duration::from_secs(300);

/// Most chunks of a trace; at 64 KiB each that is 1 GiB.
const MOST_CHUNKS: u64 = 1 << 14;

/// The chunks of one version of an object that a mount read first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The object's version.
    pub etag: String,
    /// The object's size in bytes.
    pub size: u64,
    /// Where in it the archive begins, in bytes.
    pub offset: u64,
    /// Size of a chunk in bytes.
    pub chunk: u64,
    /// Runs of chunks in the order of their first use: the first chunk, and how many.
    pub runs: Vec<(u64, u64)>,
}

impl Trace {
    /// Most bytes of a trace as JSON.
    pub const LIMIT: u64 = 1 << 20;

    /// A trace from JSON; `None` for what is none, or claims chunks that the object has not.
    pub fn from_json(json: &[u8]) -> Option<Self> {
        let trace: Self = serde_json::from_slice(json).ok()?;
        let grid = trace.grid()?;
        let count = grid.size.div_ceil(grid.chunk);
        let fits = |(first, len): &(u64, u64)| {
            *len > 0 && first.checked_add(*len).is_some_and(|end| end <= count)
        };
        (trace.runs.iter().all(fits) && trace.chunks() <= MOST_CHUNKS).then_some(trace)
    }

    /// How many chunks it has.
    pub fn chunks(&self) -> u64 {
        self.runs.iter().fold(0, |sum, (_, len)| sum.saturating_add(*len))
    }

    fn grid(&self) -> Option<Grid> {
        let size = self.size.checked_sub(self.offset)?;
        (self.chunk > 0).then_some(Grid { chunk: self.chunk, size })
    }

    /// Its chunks, in the order of their first use.
    pub(super) fn in_order(&self) -> impl Iterator<Item = u64> + use<'_> {
        self.runs.iter().flat_map(|(first, len)| *first..first.saturating_add(*len))
    }
}

/// Notes which chunks are read, in order.
#[derive(Debug)]
pub(super) struct Recorder {
    seen: HashSet<u64>,
    runs: Vec<Range<u64>>,
    until: Instant,
}

impl Recorder {
    pub(super) fn new() -> Self {
        Self { seen: HashSet::new(), runs: Vec::new(), until: Instant::now() + RECORDED }
    }

    fn note(&mut self, chunk: u64) {
        let has_room = (self.seen.len() as u64) < MOST_CHUNKS;
        if !has_room || self.seen.contains(&chunk) || Instant::now() > self.until {
            return;
        }
        self.seen.insert(chunk);
        match self.runs.last_mut() {
            Some(run) if run.end == chunk => run.end += 1,
            _ => self.runs.push(chunk..chunk + 1),
        }
    }

    /// What was noted so far.
    pub(super) fn runs(&self) -> Vec<(u64, u64)> {
        self.runs.iter().map(|run| (run.start, run.end - run.start)).collect()
    }
}

impl Policy for Recorder {
    /// Wishes nothing: that is for the next mount to do ([`Warm::Trace`](super::Warm::Trace)).
    fn observe(&mut self, read: &Read<'_>, _: &Here<'_>) -> Vec<Wish> {
        match read {
            Read::Hit { chunks, .. } => chunks.clone().for_each(|chunk| self.note(chunk)),
            Read::Miss { chunks, .. } => chunks.iter().for_each(|chunk| self.note(*chunk)),
            Read::SmallFile(_) | Read::Announced(_) => {}
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_first_use_is_kept() {
        let mut recorder = Recorder::new();
        for chunk in [7, 8, 2, 7, 9, 3, 2] {
            recorder.note(chunk);
        }
        assert_eq!(recorder.runs(), [(7, 2), (2, 1), (9, 1), (3, 1)]);
        let trace = Trace {
            etag: "\"v\"".into(),
            size: 1000,
            offset: 0,
            chunk: 100,
            runs: recorder.runs(),
        };
        let chunks: Vec<_> = trace.in_order().collect();
        assert_eq!(chunks, [7, 8, 2, 9, 3]);
        assert_eq!(Trace::from_json(&serde_json::to_vec(&trace).unwrap()), Some(trace));
    }

    #[test]
    fn a_trace_of_another_shape_is_none() {
        let good = r#"{"etag":"e","size":1000,"offset":100,"chunk":100,"runs":[[0,9]]}"#;
        assert!(Trace::from_json(good.as_bytes()).is_some());
        for (from, to) in [
            ("[[0,9]]", "[[0,10]]"),
            ("[[0,9]]", "[[9,1]]"),
            ("[[0,9]]", "[[3,0]]"),
            ("[[0,9]]", "[[18446744073709551615,2]]"),
            ("\"offset\":100", "\"offset\":1001"),
            ("\"chunk\":100", "\"chunk\":0"),
            ("{", ""),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            assert_eq!(Trace::from_json(bad.as_bytes()), None, "{bad}");
        }
        let many = format!("[{}]", vec!["[0,9]"; 2000].join(","));
        assert_eq!(Trace::from_json(good.replace("[[0,9]]", &many).as_bytes()), None);
    }
}
