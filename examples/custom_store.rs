//! Reads an archive from a store of one's own: here a file whose every answer takes a while, to see what reading
//! it costs from afar.
//!
//! ```text
//! cargo run --example custom_store -- ARCHIVE MILLISECONDS
//! ```

use std::error::Error;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use thawfs::cache::{OpenOptions, RemoteBlob};
use thawfs::squashfs::{self, Archive};
use thawfs::store::{self, Counters, ETag, GetRange, Ranged, ReadRanges};
use thawfs::types::{FileKind, FileOffset};

/// A file on this machine that answers late.
#[derive(Debug)]
struct Late {
    name: String,
    file: std::fs::File,
    size: u64,
    delay: Duration,
    gets: AtomicU64,
    bytes: AtomicU64,
}

impl Late {
    fn open(name: &str, delay: Duration) -> std::io::Result<Self> {
        let file = std::fs::File::open(name)?;
        let size = file.metadata()?.len();
        let (gets, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { name: name.to_owned(), file, size, delay, gets, bytes })
    }
}

#[async_trait::async_trait]
impl ReadRanges for Late {
    fn name(&self) -> String {
        self.name.clone()
    }

    async fn get_range(
        &self,
        range: GetRange,
        expect: Option<&ETag>,
        piece: usize,
    ) -> store::Result<Ranged> {
        self.gets.fetch_add(1, Relaxed);
        tokio::time::sleep(self.delay).await;
        let asked = range.to_string();
        let (start, end) = match range {
            GetRange::Between(range) => (range.start, range.end.min(self.size)),
            GetRange::Last(count) => (self.size.saturating_sub(count), self.size),
        };
        if start >= end {
            return Err(store::Error::OutOfRange { object: self.name(), range: asked });
        }
        let failed =
            |error| store::Error::Io { call: "read", path: self.name.clone().into(), error };
        let mut bytes = vec![0; (end - start) as usize];
        self.file.read_exact_at(&mut bytes, start).map_err(failed)?;
        self.bytes.fetch_add(end - start, Relaxed);
        // Nobody writes this file, so that whatever version is expected is the one there is.
        let etag = expect.cloned();
        let pieces = bytes.chunks(piece).map(Bytes::copy_from_slice).collect();
        Ok(Ranged { pieces, range: start..end, size: self.size, etag })
    }

    fn counters(&self) -> Counters {
        let (gets, bytes_in) = (self.gets.load(Relaxed), self.bytes.load(Relaxed));
        Counters { gets, bytes_in, ..Counters::default() }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [archive, delay] = arguments.as_slice() else {
        eprintln!("usage: custom_store ARCHIVE MILLISECONDS");
        return ExitCode::from(2);
    };
    match delay.parse().map_err(Into::into).and_then(|delay| read_all(archive, delay)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("custom_store: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Reads every file, and says after each step what was asked of the store until then.
fn read_all(archive: &str, delay: u64) -> Result<(), Box<dyn Error>> {
    // Stores are asynchronous; everything above them blocks, on threads outside the runtime.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let store = Arc::new(Late::open(archive, Duration::from_millis(delay))?);
    let started = Instant::now();
    let say = |what: &str| {
        let Counters { gets, bytes_in, .. } = store.counters();
        println!("{what}: {gets} requests, {bytes_in} bytes, {:?}", started.elapsed());
    };

    let object: Arc<dyn ReadRanges> = Arc::clone(&store) as _;
    let blob = RemoteBlob::open(object, runtime.handle().clone(), OpenOptions::default())?;
    let archive = Archive::open(Arc::new(blob), squashfs::OpenOptions::default())?;
    say("opened");
    let entries = archive.walk().collect::<Result<Vec<_>, _>>()?;
    say(&format!("listed {} files", entries.len()));
    let mut read = 0;
    for entry in entries.iter().filter(|entry| entry.inode.kind == FileKind::Regular) {
        let mut at = 0;
        while at < entry.inode.size {
            at += archive.read(&entry.inode, FileOffset(at), squashfs::MAX_READ)?.len() as u64;
        }
        read += at;
    }
    say(&format!("read {read} bytes of them"));
    Ok(())
}
