//! Programs that watch files notice in a mount what they notice in a plain directory: `scripts/watchers`, with those
//! that are at hand in Debian.

use std::process::Command;

use crate::support::mount::{Bench, can_mount_with};
use crate::support::surrounding::{Need, skip};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/watchers");

#[test]
fn programs_that_watch_notice_in_a_mount_what_they_do_in_a_plain_directory() {
    let test = "programs_that_watch_notice_in_a_mount_what_they_do_in_a_plain_directory";
    // The script starts the program by itself.
    if !can_mount_with(test, &[Need::Processes]) {
        return;
    }
    let bench = Bench::new();
    let output = Command::new("python3")
        .args(["-B", SCRIPT, "--quick", "--json", "--within", "20", "--program"])
        .arg(env!("CARGO_BIN_EXE_thawfs"))
        .env("TMPDIR", bench.directory("work"))
        .output()
        .expect("python3 is installed");
    let told = String::from_utf8_lossy(&output.stdout);
    let why = String::from_utf8_lossy(&output.stderr);
    let report: serde_json::Value =
        serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}\n{why}"));
    if report["not_had"].as_array().is_some_and(|names| !names.is_empty()) {
        return skip(test, &format!("these are not installed: {}", report["not_had"]));
    }
    assert!(output.status.success(), "{told}\n{why}");
    let tools = report["tools"].as_array().unwrap();
    assert_eq!(tools.len(), 5, "{told}");
    for tool in tools {
        // What is noticed nowhere says nothing of the mount.
        let noticed = tool["results"]["mount"].as_object().unwrap().values();
        assert!(noticed.filter(|seconds| seconds.is_number()).count() >= 2, "{tool}");
    }
}
