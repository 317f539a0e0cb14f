//! `thawfs bench`: what a bucket and an archive in it cost from here.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::groups::SourceArgs;
use super::mount::source_request;
use super::output::{Output, human_bytes, say};
use super::progress::At;
use crate::bench::{self, Advice, Reading, Requests, Spread};
use crate::failure::Failure;
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,

    /// How long to measure, about.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) seconds: u64,
}

/// Columns of the longest bar.
const BAR: f64 = 24.0;

#[derive(Serialize)]
struct Measured {
    requests: Vec<Requests>,
    reading: Vec<Reading>,
    advice: Vec<Advice>,
}

pub(super) fn bench(args: &BenchArgs, output: &Output) -> Result<(), Failure> {
    let source = source_request(&args.source)?;
    let time = Duration::from_secs(args.seconds);
    if !output.quiet {
        let bytes = human_bytes(bench::planned_bytes());
        say(&format!("reads at most {bytes} in about {} s, and writes nothing", args.seconds));
    }
    let (started, whole) = (Instant::now(), args.seconds);
    let shown = output.progress(move || match started.elapsed().as_secs() {
        // What is under way is waited for.
        passed if passed >= whole => At::unknown("measuring"),
        passed => At::seconds("measuring", passed, whole),
    });
    let requests = bench::requests(&source, time * 2 / 3)?;
    let reading = bench::reading(&source, time / 3)?;
    drop(shown);
    let advice = bench::advise(&requests, source.cache_memory);
    let measured = Measured { requests, reading, advice };
    if output.json { output.print_json(&measured) } else { print(&measured, output) }
}

fn print(measured: &Measured, output: &Output) -> Result<(), Failure> {
    let bars = std::io::stdout().is_terminal();
    let longest = |spreads: &mut dyn Iterator<Item = Spread>| {
        spreads.map(|spread| spread.p99).fold(f64::MIN_POSITIVE, f64::max)
    };
    let scale = longest(&mut measured.requests.iter().map(|row| row.seconds));
    output.print_line(&format!("{:<26}{:>10}{HEADING}{:>12}", "GETs", "at a time", "MB/s"))?;
    for row in &measured.requests {
        let name = human_bytes(row.bytes);
        let (at_a_time, rate) = (row.concurrency, row.throughput / 1e6);
        let times = times(&row.seconds);
        let bar = if bars { bar(&row.seconds, scale) } else { String::new() };
        output.print_line(&format!("{name:<26}{at_a_time:>10}{times}{rate:>12.1}{bar}"))?;
    }
    let scale = longest(&mut measured.reading.iter().map(|row| row.seconds));
    output.print_line("")?;
    output.print_line(&format!("{:<26}{:>10}{HEADING}", "reading", "times"))?;
    for row in &measured.reading {
        let times = times(&row.seconds);
        let bar = if bars { bar(&row.seconds, scale) } else { String::new() };
        output.print_line(&format!("{:<26}{:>10}{times}{bar}", row.work, row.seconds.count))?;
    }
    for advice in &measured.advice {
        output.print_line("")?;
        output.print_line(&advice.text)?;
    }
    Ok(())
}

const HEADING: &str = "      p50 ms      p90 ms      p99 ms";

fn times(spread: &Spread) -> String {
    let millis = |seconds: f64| format!("{:>12.2}", seconds * 1e3);
    millis(spread.p50) + &millis(spread.p90) + &millis(spread.p99)
}

/// Full up to p50, shaded up to p99; `scale` seconds are the whole width.
fn bar(spread: &Spread, scale: f64) -> String {
    let columns = |seconds: f64| (seconds / scale * BAR).round() as usize;
    let full = columns(spread.p50);
    format!("  {}{}", "█".repeat(full), "░".repeat(columns(spread.p99).saturating_sub(full)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_full_up_to_the_median() {
        let spread = Spread { count: 9, p50: 0.5, p90: 0.6, p99: 1.0 };
        assert_eq!(bar(&spread, 1.0), format!("  {}{}", "█".repeat(12), "░".repeat(12)));
        assert_eq!(bar(&spread, 1e9), "  ");
    }
}
