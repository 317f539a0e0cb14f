//! What follows from the numbers, by the rules of `docs/BENCHMARKING.md`.

use serde::Serialize;

use super::Requests;

/// First bytes that take longer than this, in seconds, come from another region.
const FAR: f64 = 0.1;
/// p99 beyond so many p50 is a tail that users notice.
const LONG_TAIL: f64 = 5.0;
/// No tail below this, in seconds, is worth a word.
const NOTICEABLE: f64 = 0.05;
/// A concurrency is enough if it reaches this share of the best throughput.
const ENOUGH: f64 = 0.9;
/// Half of the cache's memory may be on its way at a time: two thirds of it hold chunks, and three
/// quarters of those are the readahead's. Its requests last half as long again as their first byte.
const MEMORY_PER_FLIGHT: f64 = 3.0;
/// Most memory that is ever advised, in bytes.
const MOST_MEMORY: u64 = 256 << 20;

/// One piece of advice.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Advice {
    /// What it is about: `region`, `tail`, `cacheMemory`, `concurrency`.
    pub about: &'static str,
    /// For people.
    pub text: String,
}

/// Advice on `rows`, for a mount with `cache_memory` bytes. None if all is as it should be.
pub fn advise(rows: &[Requests], cache_memory: u64) -> Vec<Advice> {
    let mut advice = Vec::new();
    let mut say = |about, text| advice.push(Advice { about, text });
    let Some(first) = rows.iter().find(|row| row.concurrency == 1) else { return advice };
    if first.seconds.p50 > FAR {
        say(
            "region",
            format!(
                "a first byte takes {:.0} ms: run in the bucket's region, or make a copy of the bucket nearby",
                first.seconds.p50 * 1e3
            ),
        );
    }
    if first.seconds.p99 > NOTICEABLE.max(LONG_TAIL * first.seconds.p50) {
        say(
            "tail",
            format!(
                "one small GET in a hundred takes {:.0} ms, where half take {:.0} ms: look for a proxy or a lossy network on the way",
                first.seconds.p99 * 1e3,
                first.seconds.p50 * 1e3
            ),
        );
    }
    let best = rows.iter().map(|row| row.throughput).fold(0.0, f64::max);
    let flight = best * first.seconds.p50;
    let memory = ((flight * MEMORY_PER_FLIGHT) as u64).next_multiple_of(8 << 20).min(MOST_MEMORY);
    if memory > cache_memory {
        say(
            "cacheMemory",
            format!(
                "{:.0} MB/s at {:.0} ms needs {:.1} MB on its way: --cache-memory {}M",
                best / 1e6,
                first.seconds.p50 * 1e3,
                flight / 1e6,
                memory >> 20
            ),
        );
    }
    let whole = rows.iter().filter(|row| row.bytes == 1 << 20);
    let most = whole.clone().map(|row| row.throughput).fold(0.0, f64::max);
    if let Some(enough) = whole.clone().find(|row| row.throughput >= ENOUGH * most) {
        say(
            "concurrency",
            format!(
                "{} GETs at a time reach {:.0} MB/s, and more do not help: extract --jobs {0}",
                enough.concurrency,
                enough.throughput / 1e6
            ),
        );
    }
    advice
}

#[cfg(test)]
mod tests {
    use super::super::Spread;
    use super::*;

    fn row(bytes: u64, concurrency: usize, p50: f64, p99: f64, throughput: f64) -> Requests {
        let seconds = Spread { count: 32, p50, p90: p50, p99 };
        Requests { bytes, concurrency, seconds, throughput }
    }

    #[test]
    fn each_rule_speaks_only_where_it_applies() {
        for (p50, p99, throughput, expected) in [
            (0.001, 0.002, 100e6, &["concurrency"][..]),
            (0.2, 0.3, 10e6, &["region", "concurrency"]),
            (0.02, 0.3, 10e6, &["tail", "concurrency"]),
            (0.02, 0.03, 800e6, &["cacheMemory", "concurrency"]),
        ] {
            let rows = [
                row(4096, 1, p50, p99, 1e3),
                row(1 << 20, 1, p50, p99, throughput / 4.0),
                row(1 << 20, 4, p50, p99, throughput),
            ];
            let advice = advise(&rows, 24 << 20);
            let about: Vec<_> = advice.iter().map(|advice| advice.about).collect();
            assert_eq!(about, expected, "{advice:?}");
            assert!(advice.last().is_some_and(|last| last.text.contains("--jobs 4")), "{advice:?}");
        }
        assert_eq!(advise(&[], 24 << 20), []);
    }

    #[test]
    fn memory_covers_what_is_on_its_way() {
        let rows = [row(4096, 1, 0.02, 0.02, 800e6)];
        let text = &advise(&rows, 24 << 20)[0].text;
        // 800 MB/s × 20 ms = 16 MB on its way, a third of 48 MB.
        assert!(text.ends_with("--cache-memory 48M"), "{text}");
    }
}
