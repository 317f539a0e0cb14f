//! Ranged GETs of one object, by size and by how many are on their way at a time.

use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream;
use serde::Serialize;

use super::{Scatter, Spread};
use crate::backup::SourceRequest;
use crate::failure::Failure;
use crate::store::{GetRange, ReadRanges, Source};

/// Sizes of GETs in bytes.
const SIZES: [u64; 4] = [4 << 10, 128 << 10, 1 << 20, 8 << 20];
/// How many GETs are on their way at a time.
const CONCURRENCIES: [usize; 3] = [1, 4, 16];
/// What one row moves if its requests are large, in bytes, unless that is less than two rounds.
const ROW_BYTES: u64 = 32 << 20;
/// Requests of one row if they are small: enough that p90 is not the longest.
const ROW_REQUESTS: u64 = 32;

/// What GETs of one size and concurrency took.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Requests {
    /// Size of each in bytes.
    pub bytes: u64,
    /// How many were on their way at a time.
    pub concurrency: usize,
    /// From asking to the last byte. Of 4 KiB that is little else than the first byte's time.
    pub seconds: Spread,
    /// All of them together, in bytes per second.
    pub throughput: f64,
}

/// How many GETs a row makes.
fn planned(bytes: u64, concurrency: usize) -> u64 {
    (ROW_BYTES / bytes).min(ROW_REQUESTS).max(2 * concurrency as u64)
}

/// Most bytes of all rows.
pub(super) fn planned_bytes() -> u64 {
    let row = |bytes| CONCURRENCIES.iter().map(move |count| planned(bytes, *count) * bytes);
    SIZES.into_iter().flat_map(row).sum()
}

/// Times GETs at scattered places of the source for at most about `time`; a request that is on its
/// way by then is waited for. Sizes beyond the object's are left out.
///
/// # Errors
/// When the object cannot be read.
pub fn requests(source: &SourceRequest, time: Duration) -> Result<Vec<Requests>, Failure> {
    let runtime = crate::backup::start_runtime()?;
    let parsed: Source = source.source.parse()?;
    runtime.block_on(async {
        let object = parsed.archive(&source.access).await?;
        // Not measured: it looks up the name and opens the first connection.
        let size = object.get_range(GetRange::Last(1), None, 1).await?.size;
        let share = time / u32::try_from(SIZES.len() * CONCURRENCIES.len()).unwrap_or(u32::MAX);
        let mut rows = Vec::new();
        for bytes in SIZES.into_iter().filter(|bytes| *bytes <= size) {
            for concurrency in CONCURRENCIES {
                rows.extend(row(&*object, size, bytes, concurrency, share).await?);
            }
        }
        Ok(rows)
    })
}

async fn row(
    object: &dyn ReadRanges,
    size: u64,
    bytes: u64,
    concurrency: usize,
    time: Duration,
) -> Result<Option<Requests>, Failure> {
    let mut scatter = Scatter(bytes ^ concurrency as u64);
    let starts = (0..planned(bytes, concurrency)).map(|_| scatter.below(size - bytes + 1));
    let began = Instant::now();
    let times: Vec<_> = stream::iter(starts.take_while(|_| began.elapsed() < time))
        .map(|start| async move {
            let asked = Instant::now();
            let range = GetRange::Between(start..start + bytes);
            let piece = usize::try_from(bytes).unwrap_or(usize::MAX);
            let got = object.get_range(range, None, piece).await?;
            drop(got);
            Ok::<_, crate::store::Error>(asked.elapsed())
        })
        .buffer_unordered(concurrency)
        .collect()
        .await;
    let seconds = began.elapsed().as_secs_f64();
    let times: Vec<Duration> = times.into_iter().collect::<Result<_, _>>()?;
    Ok(Spread::new(times).map(|spread| Requests {
        bytes,
        concurrency,
        seconds: spread,
        throughput: (spread.count as u64 * bytes) as f64 / seconds,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_bounded_and_give_every_connection_work() {
        for (bytes, concurrency, count) in [
            (4 << 10, 1, 32),
            (4 << 10, 16, 32),
            (1 << 20, 4, 32),
            (8 << 20, 1, 4),
            (8 << 20, 16, 32),
        ] {
            assert_eq!(planned(bytes, concurrency), count, "{bytes} {concurrency}");
        }
        assert!(planned_bytes() < 512 << 20, "{}", planned_bytes());
    }
}
