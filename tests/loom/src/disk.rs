//! The disk cache's index, and the room that its writers share.

use std::io;
use std::ops::Range;

use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;
use parking_lot::Mutex;

#[path = "../../../src/cache/disk/index.rs"]
mod index;
#[path = "../../../src/cache/disk/room.rs"]
#[allow(dead_code, reason = "nobody prints it")]
mod room;

use index::{Damaged, Files, Index, evict};
use room::Room;

/// A chunk of two bytes, which are written one after the other; zeros are a hole.
type Chunk = [u8; 2];

const RIGHT: Chunk = [7, 7];

/// Files of which every access is a step that others can come between. A record has the chunk's bytes for
/// a checksum.
#[derive(Clone)]
struct Steps {
    records: Arc<Mutex<[Option<Chunk>; 2]>>,
    chunks: Arc<Mutex<[Chunk; 2]>>,
}

impl Steps {
    fn new(record: Option<Chunk>, chunk: Chunk) -> Self {
        let records = Arc::new(Mutex::new([record, None]));
        Self { records, chunks: Arc::new(Mutex::new([chunk, [0; 2]])) }
    }
}

impl Files for Steps {
    type Record = Chunk;
    type Chunk = Chunk;

    fn are_present(&self, chunks: Range<u64>) -> io::Result<Vec<bool>> {
        let records = self.records.lock();
        Ok(chunks.map(|chunk| records[chunk as usize].is_some()).collect())
    }

    fn record(&self, chunk: u64) -> Option<Chunk> {
        self.records.lock()[chunk as usize]
    }

    fn set_record(&self, chunk: u64, record: Option<Chunk>) -> io::Result<()> {
        self.records.lock()[chunk as usize] = record;
        Ok(())
    }

    fn chunk(&self, chunk: u64, record: &Chunk) -> Option<Chunk> {
        let found = self.chunks.lock()[chunk as usize];
        (found == *record).then_some(found)
    }

    fn set_chunk(&self, chunk: u64, bytes: &[u8]) -> io::Result<Chunk> {
        for (at, byte) in bytes.iter().enumerate() {
            self.chunks.lock()[chunk as usize][at] = *byte;
        }
        Ok([bytes[0], bytes[1]])
    }

    fn punch(&self, chunk: u64) -> io::Result<()> {
        assert_eq!(self.record(chunk), None, "a record stands for a hole");
        self.chunks.lock()[chunk as usize] = [0; 2];
        Ok(())
    }
}

#[test]
fn who_is_told_of_a_chunk_finds_it_and_it_stays_known() {
    loom::model(|| {
        let index = Arc::new(Index::new(Steps::new(None, [0; 2]), 2, []));
        let writer = Arc::clone(&index);
        let writer = thread::spawn(move || writer.write(0, &RIGHT).unwrap());
        if index.holds(0) || index.refresh(&(0..1)) {
            assert_eq!(index.read(0), Ok(Some(RIGHT)));
        }
        writer.join().unwrap();
        assert!(index.holds(0));
        assert_eq!(index.read(0), Ok(Some(RIGHT)));
    });
}

#[test]
fn neighbours_are_written_and_forgotten_at_once_and_both_are_known() {
    loom::model(|| {
        let index = Arc::new(Index::new(Steps::new(Some(RIGHT), RIGHT), 2, [0]));
        let other = Arc::clone(&index);
        let other = thread::spawn(move || other.write(1, &RIGHT).unwrap());
        index.forget(0);
        other.join().unwrap();
        assert_eq!([index.holds(0), index.holds(1)], [false, true]);
        assert_eq!([index.read(0), index.read(1)], [Ok(None), Ok(Some(RIGHT))]);
    });
}

#[test]
fn what_is_evicted_under_a_reader_is_there_or_not_and_no_record_stands_for_a_hole() {
    loom::model(|| {
        let files = Steps::new(Some(RIGHT), RIGHT);
        let index = Arc::new(Index::new(files.clone(), 2, [0]));
        let other = thread::spawn(move || evict(&files, 0).unwrap());
        // Damaged is what it looks like to who had its record before.
        let read = index.read(0);
        assert!(matches!(read, Ok(None) | Ok(Some(RIGHT)) | Err(Damaged)));
        other.join().unwrap();
        assert_eq!(index.read(0), Ok(None));
        assert!(!index.holds(0));
    });
}

#[test]
fn nobody_reads_what_is_damaged_and_it_is_gone_once_it_is_written_again() {
    let mut builder = loom::model::Builder::new();
    // Without a bound it takes a minute.
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let index = Arc::new(Index::new(Steps::new(Some(RIGHT), [7, 9]), 2, [0]));
        let read = |index: &Index<Steps>| match index.read(0) {
            Ok(Some(bytes)) => assert_eq!(bytes, RIGHT),
            // Whoever misses it fetches it, and has it written.
            Ok(None) | Err(Damaged) => index.write(0, &RIGHT).unwrap(),
        };
        let other = Arc::clone(&index);
        let other = thread::spawn(move || read(&other));
        read(&index);
        other.join().unwrap();
        assert!(matches!(index.read(0), Ok(None) | Ok(Some(RIGHT))));
    });
}

#[test]
fn two_writers_take_no_more_room_than_was_measured() {
    loom::model(|| {
        let room = Arc::new(Room::new());
        // Enough for three; nothing more once that is handed out.
        let left = Arc::new(Mutex::new(30));
        let take = |room: Arc<Room>, left: Arc<Mutex<u64>>| {
            let measure = || Ok(std::mem::take(&mut *left.lock()));
            (0..2).filter(|_| room.take(10, measure).unwrap()).count()
        };
        let other = (Arc::clone(&room), Arc::clone(&left));
        let other = thread::spawn(move || take(other.0, other.1));
        let taken = take(room, left) + other.join().unwrap();
        assert_eq!(taken, 3);
    });
}
