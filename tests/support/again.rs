//! Tests that run once more in a process of their own: as another user, in another environment, to be killed.

use std::process::Output;

/// The words by which a test program runs one test: `test` of the module that `module_path!()` gives.
pub(crate) fn only(module: &str, test: &str) -> [String; 3] {
    // Without the program's own name, as the harness has it.
    let within = module.split_once("::").map_or("", |(_, within)| within);
    ["--exact".into(), format!("{within}::{test}"), "--nocapture".into()]
}

/// Insists that the one test ran there, and passed.
pub(crate) fn assert_passed(output: &Output) {
    let [printed, said] =
        [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}{said}");
}
