//! What to bring before anybody asks for it.
//!
//! A [`Prefetcher`] is told of every read ([`Prefetcher::observe`]) and answers with a plan: chunks that are
//! worth fetching now, and for whom. It sends nothing, locks nothing and knows no store, so all of it is
//! tested with numbers.
//!
//! Each policy recognizes one way of reading, by itself:
//!
//! | file | who reads | what would be worth it |
//! | --- | --- | --- |
//! | `sequential` | from front to back | the next bytes (readahead) |
//! | `cluster` | many things that lie together | the region around a read |
//! | `scatter` | small files all over | regions farther off, for the disk alone |
//! | `trace` | as the last mount did | nothing at a read: `batches` has what is brought at once |
//!
//! None of them counts bytes of memory or knows what the others wish. Their wishes are weighed here, in the
//! order above: what is here or planned already is left out, and so is what there is no room for.

mod batches;
mod cluster;
mod policy;
mod scatter;
mod sequential;
mod trace;

use std::ops::Range;
use std::time::Duration;

pub use batches::Warm;
pub use trace::Trace;

pub(super) use batches::Batches;
pub(super) use policy::{Here, Read, Wanted, Where, Wish};
pub(super) use sequential::SKIP;

use super::grid::Grid;
use cluster::Cluster;
use policy::Policy;
use scatter::Scatter;
use sequential::Sequential;
use trace::Recorder;

/// Watches the readers of one blob.
#[derive(Debug)]
pub(super) struct Prefetcher {
    sequential: Sequential,
    cluster: Cluster,
    /// These two are of use only with a disk.
    scatter: Option<Scatter>,
    recorder: Option<Recorder>,
}

/// What came of a request, as far as it says something about the link.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    /// Somebody waited so long for one.
    Awaited(Duration),
    /// What was for the disk alone came, after so long.
    ForDisk(Duration),
    /// That could not be had.
    Failed,
    /// The disk takes no more.
    DiskFull,
}

impl Prefetcher {
    /// For a blob that is read through a memory of `budget` bytes, and by way of a disk or not.
    pub(super) fn new(grid: Grid, budget: u64, has_disk: bool) -> Self {
        Self {
            sequential: Sequential::new(grid, budget),
            cluster: Cluster::new(grid),
            scatter: has_disk.then(|| Scatter::new(grid)),
            recorder: has_disk.then(Recorder::new),
        }
    }

    /// Notes a read, and says what to fetch now: chunks that are not here and that there is room for, the
    /// most urgent first, each of them once.
    pub(super) fn observe(&mut self, read: &Read<'_>, here: &Here<'_>) -> Vec<Wish> {
        let Self { sequential, cluster, scatter, recorder } = self;
        let recorder = recorder.as_mut().map(|policy| policy as &mut dyn Policy);
        let scatter = scatter.as_mut().map(|policy| policy as &mut dyn Policy);
        let policies = [recorder, Some(sequential), Some(cluster), scatter];
        let mut plan = Vec::new();
        if let Read::Announced(chunks) = read {
            plan.extend(weigh(announced(chunks, here), &plan, here));
        }
        for policy in policies.into_iter().flatten() {
            for wish in policy.observe(read, here) {
                plan.extend(weigh(wish, &plan, here));
            }
        }
        plan
    }

    /// Notes what came of a request.
    pub(super) fn learn(&mut self, outcome: Outcome) {
        let Some(scatter) = &mut self.scatter else { return };
        match outcome {
            Outcome::Awaited(took) => scatter.waited(took),
            Outcome::ForDisk(took) => scatter.landed(took),
            Outcome::Failed => scatter.failed(),
            Outcome::DiskFull => scatter.end(),
        }
    }

    /// What has been read first, as in [`Trace::runs`].
    pub(super) fn recorded(&self) -> Vec<(u64, u64)> {
        self.recorder.as_ref().map(Recorder::runs).unwrap_or_default()
    }
}

/// As many of the chunks that somebody will read as there is room for.
fn announced(chunks: &Range<u64>, here: &Here<'_>) -> Wish {
    let chunks = chunks.start..chunks.end.min(here.grid.count());
    let most = usize::try_from(here.room_ahead() / here.grid.chunk).unwrap_or(usize::MAX);
    let absent = chunks.filter(|chunk| here.is_absent(*chunk)).take(most);
    Wish { chunks: absent.collect(), wanted: Wanted::Ahead }
}

/// What of a wish is not here yet, if there is room for that beside what is planned.
fn weigh(mut wish: Wish, planned: &[Wish], here: &Here<'_>) -> Option<Wish> {
    let is_perhaps = matches!(wish.wanted, Wanted::Nearby | Wanted::OnDisk);
    wish.chunks.retain(|chunk| {
        let is_missing = if is_perhaps { here.is_nowhere(*chunk) } else { here.is_absent(*chunk) };
        is_missing && !planned.iter().any(|other| other.chunks.contains(chunk))
    });
    let planned: u64 = planned.iter().map(|other| here.grid.len_of(&other.chunks)).sum();
    // Who wishes what is ahead of a reader has asked for no more than there is room for.
    let has_room = !is_perhaps || planned + here.grid.len_of(&wish.chunks) <= here.room_beside();
    (has_room && !wish.chunks.is_empty()).then_some(wish)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    const CHUNK: u64 = 64 << 10;
    const MIB: u64 = 1 << 20;
    const GRID: Grid = Grid { chunk: CHUNK, size: 1000 * CHUNK - 10 };

    /// A cache that has what was planned as soon as it is asked again.
    struct Cache {
        prefetcher: Prefetcher,
        places: BTreeMap<u64, Where>,
        budget: u64,
        unread: u64,
        flying: u64,
    }

    impl Cache {
        fn new(budget: u64, has_disk: bool) -> Self {
            let prefetcher = Prefetcher::new(GRID, budget, has_disk);
            Self { prefetcher, places: BTreeMap::new(), budget, unread: 0, flying: 0 }
        }

        fn observe(&mut self, read: &Read<'_>) -> Vec<Wish> {
            let place = |chunk| self.places.get(&chunk).copied().unwrap_or(Where::Nowhere);
            let (budget, unread, flying) = (self.budget, self.unread, self.flying);
            let here = Here { grid: GRID, budget, unread, flying, place: &place };
            let plan = self.prefetcher.observe(read, &here);
            let (mut wished, mut ahead) = (BTreeSet::new(), 0);
            for wish in &plan {
                for chunk in &wish.chunks {
                    assert!(wished.insert(*chunk), "{chunk} twice");
                    assert_ne!(place(*chunk), Where::Here, "{chunk}");
                    assert!(*chunk < GRID.count());
                }
                assert!(wish.chunks.is_sorted() && !wish.chunks.is_empty());
                if wish.wanted == Wanted::Ahead {
                    ahead += GRID.len_of(&wish.chunks);
                }
            }
            assert!(ahead <= here.room_ahead(), "{ahead}");
            for wish in &plan {
                let to = if wish.wanted == Wanted::OnDisk { Where::OnDisk } else { Where::Here };
                self.places.extend(wish.chunks.iter().map(|chunk| (*chunk, to)));
            }
            plan
        }

        /// Reads some chunks; what is nowhere has to be fetched.
        fn read(&mut self, chunks: Range<u64>) -> Vec<Wish> {
            let bytes = chunks.start * CHUNK..chunks.end * CHUNK;
            let place = |chunk: &u64| self.places.get(chunk).copied().unwrap_or(Where::Nowhere);
            let requested: Vec<u64> =
                chunks.clone().filter(|chunk| place(chunk) == Where::Nowhere).collect();
            let missed = chunks.clone().any(|chunk| place(&chunk) != Where::Here);
            if !missed {
                return self.observe(&Read::Hit { bytes, chunks });
            }
            self.places.extend(chunks.clone().map(|chunk| (chunk, Where::Here)));
            let chunks: Vec<u64> = chunks.collect();
            let (spans, requested) = (&[bytes][..], &requested[..]);
            self.observe(&Read::Miss { spans, chunks: &chunks, missed, requested })
        }
    }

    fn wish(chunks: impl IntoIterator<Item = u64>, wanted: Wanted) -> Wish {
        Wish { chunks: chunks.into_iter().collect(), wanted }
    }

    #[test]
    fn who_reads_on_gets_what_follows_wherever_it_is_but_for_what_is_here() {
        let mut cache = Cache::new(24 * MIB, true);
        cache.places.extend([(5, Where::OnDisk), (6, Where::Here)]);
        assert_eq!(cache.read(0..2), []);
        let ahead = wish([4, 5, 7], Wanted::Ahead);
        assert_eq!(cache.read(2..4), [ahead]);
        assert_eq!(cache.prefetcher.recorded(), [(0, 4)]);
    }

    #[test]
    fn many_small_reads_bring_their_region_unless_half_of_the_budget_is_on_its_way() {
        for (flying, has_room) in [(12 * MIB - 5 * CHUNK, true), (12 * MIB - 5 * CHUNK + 1, false)]
        {
            let mut cache = Cache::new(24 * MIB, false);
            cache.flying = flying;
            cache.places.extend([(401, Where::Here)]);
            assert_eq!(cache.read(400..401), []);
            let region = wish([402, 403, 404, 406, 407], Wanted::Nearby);
            assert_eq!(cache.read(405..406), if has_room { vec![region] } else { vec![] });
        }
    }

    #[test]
    fn small_files_all_over_bring_what_is_near_them_to_the_disk_if_there_is_one() {
        for has_disk in [true, false] {
            let mut cache = Cache::new(24 * MIB, has_disk);
            for file in 0..8 {
                assert_eq!(cache.observe(&Read::SmallFile(file * 100..file * 100 + 1)), []);
            }
            let plan = cache.observe(&Read::SmallFile(803..804));
            let region = [800, 801, 802, 804, 805, 806, 807];
            let expected = if has_disk { vec![wish(region, Wanted::OnDisk)] } else { vec![] };
            assert_eq!(plan, expected);
            cache.prefetcher.learn(Outcome::DiskFull);
            assert_eq!(cache.observe(&Read::SmallFile(900..901)), []);
        }
    }

    #[test]
    fn what_is_announced_comes_as_far_as_there_is_room() {
        let mut cache = Cache::new(16 * CHUNK, true);
        (cache.unread, cache.flying) = (4 * CHUNK, 5 * CHUNK);
        cache.places.extend([(10, Where::Here), (11, Where::OnDisk)]);
        let ahead = wish([11, 12, 13], Wanted::Ahead);
        assert_eq!(cache.observe(&Read::Announced(10..100)), [ahead]);
        cache.flying = 0;
        let last = wish([998, 999], Wanted::Ahead);
        assert_eq!(cache.observe(&Read::Announced(998..2000)), [last]);
    }

    #[test]
    fn policies_do_not_wish_the_same_twice_whatever_is_read() {
        let mut cache = Cache::new(8 * MIB, true);
        let mut wishes = 0;
        for n in 0..2000_u64 {
            let random = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
            // A reader from front to back, one of one directory, and one of files all over.
            let start = [n / 3 % 900, 300 + random % 40, random % 1000][n as usize % 3];
            (cache.unread, cache.flying) = (random % (4 * MIB), random % (3 * MIB));
            cache.places.retain(|chunk, _| chunk.wrapping_mul(random) % 64 != 0);
            wishes += cache.observe(&Read::SmallFile(start..start + 1)).len();
            wishes += cache.read(start..(start + 1 + random % 3).min(1000)).len();
        }
        assert!(wishes > 100, "{wishes}");
    }
}
