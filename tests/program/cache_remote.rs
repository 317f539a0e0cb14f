//! The cache of chunks over a real server: what it answers, and with how many requests.

use std::path::PathBuf;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use crate::support::s3::{ACCESS_KEY, Config, Fault, S3Server, SECRET_KEY, Seen};
use crate::support::words::eventually;
use proptest::prelude::*;
use tempfile::TempDir;
use thawfs::cache::{Blob, Error, OpenOptions, RemoteBlob};
use thawfs::store::{self, Access, Source};
use thawfs::types::{ArchiveOffset, ByteRange};
use tokio::runtime::Runtime;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const CHUNK: u64 = 64 * KIB;
/// Small enough to leave a middle that only requests bring.
const TAIL: u64 = 128 * KIB;

fn content(size: u64) -> Vec<u8> {
    (0..size.div_ceil(8))
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17).to_le_bytes())
        .take(size as usize)
        .collect()
}

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(ArchiveOffset(start), len).unwrap()
}

struct Setup {
    content: Vec<u8>,
    root: TempDir,
    server: S3Server,
    runtime: Runtime,
}

impl Setup {
    fn new(size: u64) -> Self {
        Self::with(size, |config| config)
    }

    fn with(size: u64, change: impl FnOnce(Config) -> Config) -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("bucket")).unwrap();
        let content = content(size);
        std::fs::write(root.path().join("bucket/data.sqsh"), &content).unwrap();
        let server = S3Server::start(change(Config::new(root.path()))).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        Self { content, root, server, runtime }
    }

    fn object_path(&self) -> PathBuf {
        self.root.path().join("bucket/data.sqsh")
    }

    fn open(&self, options: OpenOptions) -> Result<RemoteBlob, Error> {
        let store_options = Access {
            endpoint: Some(self.server.url()),
            deadline: Duration::from_millis(3000),
            environment: [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)]
                .into_iter()
                .collect(),
            ..Access::default()
        };
        let source: Source = "s3://bucket".parse().unwrap();
        let object = self.runtime.block_on(source.archive(&store_options)).unwrap();
        RemoteBlob::open(object, self.runtime.handle().clone(), options)
    }

    /// Opens with a small tail, and forgets the requests that took.
    fn opened(&self) -> RemoteBlob {
        let blob = self.open(OpenOptions { tail_bytes: TAIL, ..OpenOptions::default() }).unwrap();
        self.server.clear_log();
        blob
    }

    /// What `ask` gives, whose requests are answered only once there are `requests` of them at once.
    fn when_held<T: Send>(&self, requests: usize, ask: impl FnOnce() -> T + Send) -> T {
        self.server.hold();
        std::thread::scope(|scope| {
            let asking = scope.spawn(ask);
            eventually("they are sent in parallel", || self.server.held() >= requests);
            self.server.release();
            asking.join().unwrap()
        })
    }

    fn check(&self, start: u64, bytes: &[u8]) {
        let expected = &self.content[start as usize..start as usize + bytes.len()];
        assert!(bytes == expected, "wrong bytes at {start}");
    }

    /// Fetches one range and checks its bytes.
    fn fetch(&self, blob: &RemoteBlob, start: u64, len: u64) {
        let bytes = blob.fetch(&[range(start, len)]).unwrap();
        assert_eq!(bytes[0].len() as u64, len);
        self.check(start, &bytes[0]);
    }

    /// Waits until nothing is on its way any more, and returns the requests so far by offset.
    fn settled(&self) -> Vec<(u64, u64)> {
        let mut last = 0;
        loop {
            std::thread::sleep(Duration::from_millis(25));
            let log = self.server.log();
            let sent = log.iter().map(|seen| seen.sent).sum();
            if sent == last {
                let mut spans: Vec<_> = log.iter().filter_map(Seen::span).collect();
                spans.sort_unstable();
                return spans;
            }
            last = sent;
        }
    }
}

#[test]
fn opening_takes_two_requests_at_once_and_leaves_both_ends_in_memory() {
    let size = 10 * MIB + 12_345;
    let latency = Duration::from_millis(100);
    let setup = Setup::with(size, |config| Config { latency, ..config });
    let blob = setup.when_held(2, || setup.open(OpenOptions::default()).unwrap());
    assert_eq!(blob.size(), size);
    let log = setup.server.log();
    assert_eq!(log.len(), 2);
    assert!(log.iter().all(|seen| seen.if_match.is_none() && seen.status == 206));
    for (start, len) in [(0, 96), (0, CHUNK), (size - 2 * MIB, 2 * MIB), (size - 1, 1)] {
        let bytes = blob.get(range(start, len)).expect("it came with opening");
        setup.check(start, &bytes);
    }
    assert!(blob.get(range(5 * MIB, 1)).is_none());
    assert_eq!(setup.server.gets(), 2, "nothing more was fetched");
}

#[test]
fn every_size_and_offset_opens() {
    for size in [1, 95, 511, 512, 65_535, 65_536, 65_537, 200_000, 400_000] {
        let setup = Setup::new(size);
        for offset in [0, 1, 300, 65_536, 199_999, size - 1] {
            if offset >= size {
                continue;
            }
            let options = OpenOptions { offset, tail_bytes: TAIL, ..OpenOptions::default() };
            let blob = setup.open(options).unwrap();
            assert_eq!(blob.size(), size - offset);
            let whole = blob.fetch(&[range(0, size - offset)]).unwrap();
            assert!(whole[0] == setup.content[offset as usize..], "{size} from {offset}");
            let error = blob.fetch(&[range(size - offset, 1)]).unwrap_err();
            assert!(matches!(error, Error::PastEnd { .. }), "{error}");
            assert!(blob.get(range(size - offset, 1)).is_none());
        }
        let past = OpenOptions { offset: size, ..OpenOptions::default() };
        let error = setup.open(past).err().unwrap();
        assert!(error.to_string().starts_with("s3://bucket/data.sqsh has no bytes"), "{error}");
    }
}

#[test]
fn a_small_read_is_one_request_of_the_chunks_it_touches() {
    let setup = Setup::new(8 * MIB);
    let blob = setup.opened();
    setup.fetch(&blob, 3 * MIB + 100, 100_000);
    assert_eq!(setup.settled(), [(3 * MIB, 2 * CHUNK)]);
    let seen = &setup.server.log()[0];
    assert_eq!(seen.if_match.as_deref(), blob.etag().map(|etag| etag.0.as_str()));
    setup.fetch(&blob, 3 * MIB + 5, 2 * CHUNK - 10);
    assert_eq!(setup.server.gets(), 1, "it is in memory now");
    assert!(blob.get(range(3 * MIB, 2 * CHUNK)).is_some());
}

#[test]
fn readers_of_one_chunk_share_one_request() {
    let setup =
        Setup::with(4 * MIB, |config| Config { latency: Duration::from_millis(50), ..config });
    let blob = setup.opened();
    let barrier = Barrier::new(64);
    std::thread::scope(|scope| {
        for n in 0..64 {
            let (setup, blob, barrier) = (&setup, &blob, &barrier);
            scope.spawn(move || {
                barrier.wait();
                setup.fetch(blob, MIB + n * 1000, 1000);
            });
        }
    });
    assert_eq!(setup.server.gets(), 1);
    let counters = blob.counters();
    assert_eq!(counters.misses, 1);
    assert_eq!(counters.misses + counters.joined + counters.hits, 64);
}

#[test]
fn neighbours_merge_and_strangers_go_in_parallel() {
    let latency = Duration::from_millis(100);
    let setup = Setup::with(32 * MIB, |config| Config { latency, ..config });
    let blob = setup.opened();
    let wanted = [
        range(20 * MIB, 10),
        range(4 * MIB, 10),
        range(4 * MIB + CHUNK, 10),
        range(4 * MIB + 3 * CHUNK, 10),
        range(10 * MIB, 10),
        range(4 * MIB + 6 * CHUNK, 0),
    ];
    let found = setup.when_held(3, || blob.fetch(&wanted).unwrap());
    for (range, bytes) in wanted.iter().zip(&found) {
        assert_eq!(bytes.len() as u64, range.len());
        setup.check(range.start().0, bytes);
    }
    let expected = [(4 * MIB, 4 * CHUNK), (10 * MIB, CHUNK), (20 * MIB, CHUNK)];
    assert_eq!(setup.settled(), expected, "a gap of one chunk is worth no request");
}

#[test]
fn a_long_read_is_split_into_parallel_requests_and_may_exceed_the_budget() {
    let setup = Setup::new(24 * MIB);
    let options = OpenOptions { tail_bytes: TAIL, memory_bytes: 2 * MIB, ..OpenOptions::default() };
    let blob = setup.open(options).unwrap();
    setup.server.clear_log();
    setup.fetch(&blob, 10, 20 * MIB);
    let spans = setup.settled();
    assert!(spans.iter().all(|(_, len)| *len <= MIB), "{spans:?}");
    assert!(spans.iter().map(|(_, len)| len).sum::<u64>() <= 21 * MIB, "nothing twice");
    assert!(blob.counters().memory_bytes <= 2 * MIB);
}

#[test]
fn windows_grow_while_reading_on_and_a_seek_starts_over() {
    let setup = Setup::new(64 * MIB);
    let options =
        OpenOptions { tail_bytes: TAIL, memory_bytes: 16 * MIB, ..OpenOptions::default() };
    let blob = setup.open(options).unwrap();
    setup.server.clear_log();
    let block = 256 * KIB;
    let start = 16 * MIB;
    let mut ahead = Vec::new();
    for n in 0..32 {
        let at = start + n * block;
        setup.fetch(&blob, at, block);
        let end = setup.settled().iter().map(|(start, len)| start + len).max().unwrap();
        ahead.push(end.saturating_sub(at + block));
        let read = (n + 1) * block;
        assert!(ahead.last().unwrap() <= &read.min(8 * MIB), "more ahead than read: {ahead:?}");
    }
    assert_eq!(ahead[..2], [0, 256 * KIB], "one read proves nothing, two do");
    let reached = |window: u64| ahead.iter().position(|ahead| *ahead >= window).unwrap();
    let order = [256 * KIB, MIB, 2 * MIB, 4 * MIB, 7 * MIB].map(reached);
    assert!(order.is_sorted_by(|a, b| a < b), "step by step to half of the budget: {order:?}");
    let spans = setup.settled();
    let sum: u64 = spans.iter().map(|(_, len)| len).sum();
    let last = spans.last().map(|(start, len)| start + len).unwrap();
    assert_eq!(sum, last - start, "no byte twice, no hole");

    setup.server.clear_log();
    setup.fetch(&blob, 50 * MIB, block);
    assert_eq!(setup.settled(), [(50 * MIB, block)], "after a seek only what is asked");
}

#[test]
fn reads_from_memory_keep_the_window_moving() {
    let setup = Setup::new(32 * MIB);
    let blob = setup.opened();
    let block = 128 * KIB;
    for n in 0..120 {
        let at = 4 * MIB + n * block;
        match blob.get(range(at, block)) {
            Some(bytes) => setup.check(at, &bytes),
            None => setup.fetch(&blob, at, block),
        }
    }
    let counters = blob.counters();
    assert!(counters.misses <= 4, "after two blocks the rest was fetched ahead: {counters:?}");
    assert!(counters.prefetched_used_bytes > 110 * block);
}

#[test]
fn random_reads_fetch_nothing_ahead() {
    let setup = Setup::new(64 * MIB);
    let blob = setup.opened();
    for n in 0..60 {
        setup.fetch(&blob, (n * 7919 % 60) * MIB, 4 * KIB);
    }
    let spans = setup.settled();
    assert_eq!(spans.len(), 59, "the first chunk came with opening");
    assert!(spans.iter().all(|(_, len)| *len == CHUNK));
    assert_eq!(blob.counters().prefetched_bytes, 0);
}

#[test]
fn what_is_fetched_ahead_stays_within_its_share_and_spares_what_was_asked() {
    let setup = Setup::new(64 * MIB);
    let memory_bytes = 4 * MIB;
    let options = OpenOptions { tail_bytes: TAIL, memory_bytes, ..OpenOptions::default() };
    let blob = setup.open(options).unwrap();
    setup.server.clear_log();
    setup.fetch(&blob, 40 * MIB, MIB);
    setup.server.clear_log();
    blob.prefetch(range(8 * MIB, 30 * MIB));
    let spans = setup.settled();
    let sum: u64 = spans.iter().map(|(_, len)| len).sum();
    assert_eq!(
        (spans[0].0, sum),
        (8 * MIB, 3 * MIB),
        "three quarters of the budget, from the start"
    );
    assert!(blob.get(range(40 * MIB, MIB)).is_some(), "what was demanded is still there");
    assert!(blob.counters().memory_bytes <= memory_bytes);
    blob.prefetch(range(8 * MIB, 30 * MIB));
    assert_eq!(setup.settled().len(), spans.len(), "no more before that is used");
    setup.fetch(&blob, 8 * MIB, 3 * MIB);
    let counters = blob.counters();
    assert_eq!(counters.prefetched_used_bytes, 3 * MIB);
    blob.prefetch(range(u64::MAX - 5, 5));
}

#[test]
fn a_reader_joins_what_is_being_fetched_ahead() {
    let latency = Duration::from_millis(100);
    let setup = Setup::with(8 * MIB, |config| Config { latency, ..config });
    let blob = setup.opened();
    blob.prefetch(range(2 * MIB, CHUNK));
    setup.fetch(&blob, 2 * MIB + 5, 100);
    assert_eq!(setup.server.gets(), 1);
    let counters = blob.counters();
    assert_eq!((counters.joined, counters.misses), (1, 0));
    assert_eq!(counters.prefetched_used_bytes, CHUNK);
}

#[test]
fn a_failure_reaches_every_waiter_and_the_next_read_tries_again() {
    let setup = Setup::new(8 * MIB);
    let blob = setup.opened();
    let barrier = Barrier::new(8);
    setup.server.inject(Fault::Refuse(403, "AccessDenied"), 1);
    setup.server.inject(Fault::Delay(Duration::ZERO), 1);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    blob.fetch(&[range(MIB, 100)])
                })
            })
            .collect();
        let results: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        let failed = results.iter().filter(|result| {
            matches!(result, Err(Error::Store(error))
                if matches!(**error, store::Error::AccessDenied { .. }))
        });
        // Of these bytes: what lies around a second miss is fetched besides.
        let covers = |(start, len): (u64, u64)| (start..start + len).contains(&MIB);
        let log = setup.server.log();
        let asked = log.iter().filter(|seen| seen.span().is_some_and(covers)).count();
        assert!(failed.count() >= 1 && asked <= 2, "{asked} requests, {results:?}");
    });
    setup.fetch(&blob, MIB, 100);
    assert_eq!(blob.counters().failures, 1);

    setup.server.inject(Fault::Truncate(10), 2);
    setup.server.inject(Fault::Stall(0), 1);
    setup.fetch(&blob, 3 * MIB, 100_000);
    assert_eq!(blob.counters().failures, 1, "what passes is no failure");
}

#[test]
fn a_changed_object_is_an_error_of_its_own() {
    let setup = Setup::new(8 * MIB);
    let blob = setup.opened();
    std::fs::write(setup.object_path(), content(8 * MIB)).unwrap();
    let error = blob.fetch(&[range(MIB, 100)]).unwrap_err();
    assert_eq!(error.to_string(), "s3://bucket/data.sqsh changed while it was in use");
    assert!(matches!(error, Error::Store(error)
        if matches!(*error, store::Error::Changed { .. })));
    setup.fetch(&blob, 0, 96);
    assert_eq!(setup.server.log().last().unwrap().status, 412, "memory is still good");
}

#[test]
fn an_object_that_changes_during_opening_is_not_opened() {
    let latency = Duration::from_secs(1);
    let setup = Setup::new(8 * MIB);
    setup.server.inject(Fault::Delay(latency), 1);
    let path = setup.object_path();
    let change = std::thread::spawn(move || {
        std::thread::sleep(latency / 2);
        std::fs::write(path, b"another, smaller one, but with a tail of its own").unwrap();
    });
    let error = setup.open(OpenOptions::default()).err().unwrap();
    change.join().unwrap();
    assert!(error.to_string().ends_with("changed while it was in use"), "{error}");
}

#[test]
fn nobody_waits_for_ever_when_the_runtime_is_gone() {
    let mut setup = Setup::new(8 * MIB);
    let blob = Arc::new(setup.opened());
    setup.server.inject(Fault::Silence, 1);
    let waiting = blob.clone();
    let reader = std::thread::spawn(move || waiting.fetch(&[range(MIB, 100)]));
    std::thread::sleep(Duration::from_millis(50));
    let spare = tokio::runtime::Builder::new_current_thread().build().unwrap();
    std::mem::replace(&mut setup.runtime, spare).shutdown_background();
    for error in [reader.join().unwrap(), blob.fetch(&[range(2 * MIB, 100)])] {
        let error = error.unwrap_err().to_string();
        assert_eq!(error, "s3://bucket/data.sqsh: abandoned, the process is shutting down");
    }
}

/// A local file and everything small, so that chunks are evicted and ranges cross many of them.
#[derive(Clone, Debug)]
enum Op {
    Get(u64, u64),
    Fetch(Vec<(u64, u64)>),
    Prefetch(u64, u64),
}

fn ops(size: u64) -> impl Strategy<Value = Vec<Op>> {
    let span = (0..size, 0..5000_u64).prop_map(move |(start, len)| (start, len.min(size - start)));
    prop::collection::vec(
        prop_oneof![
            span.clone().prop_map(|(start, len)| Op::Get(start, len)),
            prop::collection::vec(span.clone(), 0..6).prop_map(Op::Fetch),
            span.prop_map(|(start, len)| Op::Prefetch(start, len)),
        ],
        1..60,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn any_reads_give_the_bytes_of_the_file(
        ops in ops(60_000), offset in 0..3000_u64, tail_bytes in 1..5000_u64,
        memory_bytes in 0..30_000_u64,
    ) {
        let root = tempfile::tempdir().unwrap();
        let content = content(60_000 + offset);
        std::fs::write(root.path().join("data.sqsh"), &content).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let source: Source = root.path().to_str().unwrap().parse().unwrap();
        let object = runtime.block_on(source.archive(&Access::default())).unwrap();
        let options =
            OpenOptions { offset, memory_bytes, chunk_size: 512, tail_bytes, disk: None, current: None };
        let blob = RemoteBlob::open(object, runtime.handle().clone(), options).unwrap();
        let expected = |start: u64, len: u64| {
            let start = (start + offset) as usize;
            &content[start..start + len as usize]
        };
        for op in ops {
            match op {
                Op::Get(start, len) => {
                    if let Some(bytes) = blob.get(range(start, len)) {
                        prop_assert!(bytes == expected(start, len));
                    }
                }
                Op::Fetch(spans) => {
                    let ranges: Vec<_> = spans.iter().map(|(start, len)| range(*start, *len)).collect();
                    let found = blob.fetch(&ranges).unwrap();
                    prop_assert_eq!(found.len(), spans.len());
                    for ((start, len), bytes) in spans.into_iter().zip(found) {
                        prop_assert!(bytes == expected(start, len));
                    }
                }
                Op::Prefetch(start, len) => blob.prefetch(range(start, len)),
            }
            let budget = memory_bytes.max(tail_bytes + 3 * 512);
            // A demand for more than there is room goes through in halves of the budget.
            prop_assert!(blob.counters().memory_bytes <= budget + budget / 2 + 512);
        }
    }
}
