//! `thawfs bench` on a bucket and on a file: what it reports, what it asks for, that it is bounded.

use std::process::Command;
use std::time::Duration;

use crate::support::mount::{Bench, write_tree};
use crate::support::s3::{ACCESS_KEY, Config, S3Server, SECRET_KEY};

/// What is measured within a few seconds, or, on a machine that has not come to everything in these, in more; and how
/// many there were in all.
fn measure(command: impl Fn() -> Command, source: &str) -> (serde_json::Value, usize) {
    let mut all = 0;
    for seconds in [2, 8, 32] {
        let mut command = command();
        let args = ["bench", source, "--json", "--seconds", &seconds.to_string()];
        let output = command.args(args).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        assert!(errors.contains("reads at most"), "{errors}");
        let measured = serde_json::from_slice(&output.stdout).unwrap();
        all += seconds;
        if work(&measured) == ALL_WORK || seconds == 32 {
            return (measured, all);
        }
    }
    unreachable!("the last one returns")
}

fn work(measured: &serde_json::Value) -> Vec<&str> {
    measured["reading"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["work"].as_str().unwrap())
        .collect()
}

/// The program, with what it needs to reach a server.
fn asking(bench: &Bench, server: &S3Server) -> Command {
    let mut command = bench.thawfs();
    command
        .env("AWS_ENDPOINT_URL", server.url())
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    command
}

const ALL_WORK: [&str; 6] = [
    "open",
    "first listing",
    "full walk",
    "first small read",
    "sequential read, 1 MiB",
    "random read, 4 KiB",
];

#[test]
fn a_bucket_is_measured_with_ranged_gets_alone() {
    let bench = Bench::new();
    write_tree(&bench.directory("tree"));
    bench.directory("bucket/box");
    bench.archive(&bench.path("tree"), "bucket/box/data.sqsh", &["-noD", "-noF"]);
    let config = Config { latency: Duration::from_millis(20), ..Config::new(bench.path("bucket")) };
    let server = S3Server::start(config).unwrap();
    let (measured, seconds) = measure(|| asking(&bench, &server), "s3://box");
    for row in measured["requests"].as_array().unwrap() {
        let seconds = &row["seconds"];
        let [p50, p90, p99] = ["p50", "p90", "p99"].map(|name| seconds[name].as_f64().unwrap());
        assert!(0.02 <= p50 && p50 <= p90 && p90 <= p99, "{row}");
    }
    let asked = |bytes: u64, at_a_time: u64| {
        let rows = measured["requests"].as_array().unwrap();
        rows.iter().any(|row| row["bytes"] == bytes && row["concurrency"] == at_a_time)
    };
    assert!(asked(4096, 1) && asked(4096, 16) && asked(128 << 10, 4), "{measured}");
    assert_eq!(work(&measured), ALL_WORK);
    let log = server.log();
    assert!(log.iter().all(|seen| seen.method == "GET" && seen.range.is_some()), "{log:?}");
    // Of 20 ms each, and never more at a time than it says: no more fit into these seconds.
    let most = server.most_at_once();
    assert!(most <= 16 && log.len() <= most * seconds * 1000 / 20 + 100, "{} by {most}", log.len());
}

#[test]
fn a_file_is_measured_too_and_a_missing_object_is_a_failure() {
    let bench = Bench::new();
    write_tree(&bench.directory("tree"));
    let archive = bench.archive(&bench.path("tree"), "data.sqsh", &[]);
    let (measured, _) = measure(|| bench.thawfs(), archive.to_str().unwrap());
    assert_eq!(work(&measured), ALL_WORK);
    assert!(measured["requests"].as_array().is_some_and(|rows| !rows.is_empty()), "{measured}");
    let missing = bench.path("none.sqsh");
    let output =
        bench.thawfs().args(["bench", missing.to_str().unwrap(), "--json"]).output().unwrap();
    let failure: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(failure["code"], "NOT_FOUND", "{failure}");
}

#[test]
fn slow_networks_are_told_from_fast_ones() {
    let bench = Bench::new();
    write_tree(&bench.directory("tree"));
    bench.directory("bucket/box");
    bench.archive(&bench.path("tree"), "bucket/box/data.sqsh", &[]);
    let config =
        Config { latency: Duration::from_millis(150), ..Config::new(bench.path("bucket")) };
    let server = S3Server::start(config).unwrap();
    let (measured, _) = measure(|| asking(&bench, &server), "s3://box");
    let advice = measured["advice"].as_array().unwrap();
    assert!(advice.iter().any(|one| one["about"] == "region"), "{measured}");
}
