//! Recognizes programs that read small files all over an archive, and says what else to bring.
//!
//! Such a program waits for one round trip after another, while the link has nothing to do. So each miss also
//! brings what lies nearest to it and is not here yet, to the disk. The longer that goes well, the more it brings:
//! after some dozens of misses an archive of common size is all there.
//!
//! It has to be worth it: if next to nothing that was brought is read, it ends. And it has to be in nobody's way:
//! if a region takes much longer than readers wait for a request, the link is narrow or full, and fewer are
//! brought, or none. It was tried whatever the link: at 10 MB/s that costs more than it brings.

use std::time::Duration;

use lru::LruCache;

use super::cluster::{REGION, REMEMBERED};
use super::policy::{Here, Policy, Read, Wanted, Wish};
use crate::cache::grid::Grid;

/// Misses before anything is brought: who reads a handful of files wants no more.
const FIRST_MISSES: u32 = 8;

/// Most regions that one miss brings.
const MOST: u64 = 12;

/// What a region may take longer than twice what readers wait: nobody notices.
const UNNOTICED: Duration = Duration::from_millis(5);

/// Where none are brought, every so many misses bring one, to see whether the link is still narrow.
const PROBE: u32 = 16;

/// How many regions on either side are looked at.
const FARTHEST: u64 = 1024;

/// After how many regions it has to be worth it, and how many misses there may be for each file that
/// was found in one.
const TRIAL: u64 = 128;
const WORTH: u32 = 16;

/// After how many reads the older ones count half.
const FORGET_AFTER: u32 = 1024;

/// What is known of the small files of one blob.
#[derive(Debug)]
pub(super) struct Scatter {
    /// Regions that were brought, each by a request of its own: many connections are faster than one.
    brought: LruCache<u64, ()>,
    regions_brought: u64,
    /// Chunks of a region.
    chunks: u64,
    /// How many regions the next miss brings.
    reach: u64,
    /// Reads that had to wait for the store, and that would have, were it not for a region brought.
    /// The older count less.
    missed: u32,
    found: u32,
    /// How long readers wait for a request at the least. Grows slowly, since networks change.
    wait: Duration,
    /// Misses since one brought anything.
    idle: u32,
    /// Whether a region has been slow since then: what was sent together is slow together.
    slowed: bool,
    ended: bool,
}

impl Scatter {
    pub(super) fn new(grid: Grid) -> Self {
        Self {
            brought: LruCache::new(REMEMBERED),
            regions_brought: 0,
            chunks: (REGION / grid.chunk).max(1),
            reach: 1,
            missed: 0,
            found: 0,
            wait: Duration::ZERO,
            idle: 0,
            slowed: false,
            ended: false,
        }
    }

    /// Notes that a small file is read that begins in `chunk`, and whether that is nowhere here. Gives
    /// the regions to bring, the nearest first, at most `room`: those of the blob's `count` that `lacks`
    /// says have something to bring.
    fn read(
        &mut self,
        chunk: u64,
        missed: bool,
        room: u64,
        count: u64,
        lacks: impl Fn(u64) -> bool,
    ) -> Vec<u64> {
        let here = chunk / self.chunks;
        if missed {
            self.missed += 1;
        } else if self.brought.contains(&here) {
            self.found += 1;
        }
        if self.missed + self.found > FORGET_AFTER {
            (self.missed, self.found) = (self.missed / 2, self.found / 2);
        }
        let is_worth = self.regions_brought < TRIAL || (self.found + 1) * WORTH >= self.missed;
        self.ended |= !is_worth;
        if !missed || self.missed <= FIRST_MISSES || self.ended {
            return Vec::new();
        }
        self.idle += 1;
        let reach = if self.idle >= PROBE { self.reach.max(1) } else { self.reach };
        if reach == 0 {
            return Vec::new();
        }
        let around = (1..FARTHEST).flat_map(|far| [here.checked_sub(far), here.checked_add(far)]);
        let regions: Vec<u64> = [Some(here)]
            .into_iter()
            .chain(around)
            .flatten()
            .filter(|region| *region < count && !self.brought.contains(region) && lacks(*region))
            .take(usize::try_from(reach.min(room)).unwrap_or(usize::MAX))
            .collect();
        for region in &regions {
            self.brought.put(*region, ());
        }
        if !regions.is_empty() {
            (self.idle, self.slowed) = (0, false);
        }
        self.regions_brought += regions.len() as u64;
        regions
    }

    /// Notes how long a reader waited for a request of its own.
    pub(super) fn waited(&mut self, took: Duration) {
        let longest = if self.wait.is_zero() { took } else { self.wait + self.wait / 16 };
        self.wait = took.min(longest);
    }

    /// Notes how long a region was on its way.
    pub(super) fn landed(&mut self, took: Duration) {
        if self.slowed {
            return;
        }
        self.slowed = took > 2 * self.wait + UNNOTICED;
        self.reach = if self.slowed { self.reach / 2 } else { (self.reach + 1).min(MOST) };
    }

    /// Notes that a region could not be had: now and then one is enough until others can.
    pub(super) fn failed(&mut self) {
        self.reach = 0;
    }

    /// Ends it: the disk takes no more.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }
}

impl Policy for Scatter {
    fn observe(&mut self, read: &Read<'_>, here: &Here<'_>) -> Vec<Wish> {
        let Read::SmallFile(read) = read else { return Vec::new() };
        let (count, chunks) = (here.grid.count(), self.chunks);
        // What is read is fetched by its reader.
        let missing = |region: u64| {
            let region = region * chunks..((region + 1) * chunks).min(count);
            region.filter(|chunk| !read.contains(chunk) && here.is_nowhere(*chunk))
        };
        let missed = read.clone().any(|chunk| here.is_nowhere(chunk));
        let lacks = |region| missing(region).next().is_some();
        let room = here.room_beside() / (chunks * here.grid.chunk);
        let regions = self.read(read.start, missed, room, count.div_ceil(chunks), lacks);
        let wish = |region| Wish { chunks: missing(region).collect(), wanted: Wanted::OnDisk };
        regions.into_iter().map(wish).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hasher};

    use super::*;

    const GRID: Grid = Grid { chunk: 64 << 10, size: 1 << 40 };
    const MS: Duration = Duration::from_millis(1);

    /// Reads a file in each of `regions` that is missed unless it was brought; all that is brought
    /// arrives after `took`. Gives how many regions were brought in all.
    fn program(
        scatter: &mut Scatter,
        regions: impl Iterator<Item = u64>,
        count: u64,
        took: impl Fn(usize) -> Duration,
    ) -> usize {
        let mut brought = 0;
        for region in regions {
            let missed = !scatter.brought.contains(&region);
            if missed {
                scatter.waited(23 * MS);
            }
            let fetched = scatter.read(region * 8 + 3, missed, u64::MAX, count, |_| true);
            fetched.iter().for_each(|_| scatter.landed(took(fetched.len())));
            brought += fetched.len();
        }
        brought
    }

    /// Numbers without an order.
    fn scattered(n: u64) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(n);
        hasher.finish()
    }

    #[test]
    fn a_few_files_bring_nothing_and_many_bring_almost_all() {
        let mut scatter = Scatter::new(GRID);
        let scattered = |n| scattered(n) % 1000;
        assert_eq!(program(&mut scatter, (0..8).map(scattered), 1000, |_| 25 * MS), 0);
        let brought = program(&mut scatter, (8..400).map(scattered), 1000, |_| 25 * MS);
        assert!(brought > 900, "{brought}");
    }

    #[test]
    fn the_nearest_come_first() {
        let mut scatter = Scatter::new(GRID);
        program(&mut scatter, (0..8).map(|n| n * 100), 1000, |_| 25 * MS);
        let all = u64::MAX;
        assert_eq!(scatter.read(500 * 8, true, 0, 1000, |_| true), [0; 0]);
        assert_eq!(scatter.read(500 * 8, true, all, 1000, |_| true), [500]);
        scatter.landed(25 * MS);
        scatter.landed(25 * MS);
        assert_eq!(scatter.read(500 * 8, true, all, 1000, |at| at != 501), [499, 498, 502]);
        assert_eq!(scatter.read(0, true, all, 2, |_| true), [0, 1]);
    }

    #[test]
    fn a_full_link_gets_fewer_and_a_narrow_one_next_to_none() {
        let regions = || (0..100).map(|n| n * 50);
        let mut scatter = Scatter::new(GRID);
        // Each of those on their way takes 10 ms of the others' time.
        program(&mut scatter, regions(), 5000, |at_once| 20 * MS + at_once as u32 * 10 * MS);
        assert!((1..=6).contains(&scatter.reach), "{scatter:?}");

        // One alone takes the link for longer than a reader waits.
        let mut scatter = Scatter::new(GRID);
        let brought = program(&mut scatter, regions(), 5000, |_| 90 * MS);
        assert!((2..10).contains(&brought), "{brought}");
    }

    #[test]
    fn what_is_not_read_is_not_brought_for_long() {
        let mut scatter = Scatter::new(GRID);
        let scattered = (0..10_000).map(|n| scattered(n) % 10_000_000);
        let brought = program(&mut scatter, scattered, 10_000_000, |_| 25 * MS);
        assert!(brought < 300, "{brought}");
    }
}
