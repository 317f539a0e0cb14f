//! Programs work on a mount as on a plain directory: each case of `tests/posix/cases.py` prints what
//! it sees of the same files in both, and must print the same; then both must hold the same files,
//! at once, with nothing remembered, and after a remount.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by a panic")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use support::mount::{Bench, can_mount};

const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/posix/cases.py");

/// What the cases print, a line each, by case.
fn run(command: &str, root: &Path) -> BTreeMap<String, Vec<String>> {
    let output = Command::new("python3").args(["-B", CASES, command]).arg(root).output();
    let output = output.expect("python3 is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut cases = BTreeMap::<_, Vec<_>>::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let (case, what) = line.split_once(": ").unwrap();
        cases.entry(case.to_owned()).or_default().push(what.to_owned());
    }
    cases
}

fn assert_same(
    when: &str,
    expected: &BTreeMap<String, Vec<String>>,
    seen: &BTreeMap<String, Vec<String>>,
) {
    let mut differences = String::new();
    for (case, lines) in expected {
        let others = seen.get(case).map_or(&[][..], Vec::as_slice);
        for at in 0..lines.len().max(others.len()) {
            let (line, other) = (lines.get(at), others.get(at));
            if line != other {
                differences.push_str(&format!("{case}:\n  {line:?}\n  {other:?}\n"));
            }
        }
    }
    assert!(differences.is_empty(), "{when}, expected and seen:\n{differences}");
    assert_eq!(expected.len(), seen.len());
}

#[test]
fn programs_see_on_a_mount_what_they_see_on_a_plain_directory() {
    if !can_mount("programs_see_on_a_mount_what_they_see_on_a_plain_directory") {
        return;
    }
    let bench = Bench::new();
    let (tree, mountpoint) = (bench.directory("tree"), bench.directory("mnt"));
    run("make", &tree);
    let archive = bench.archive(&tree, "data.sqsh", &["-comp", "zstd"]);
    let upper = bench.path("upper");
    let mount = || {
        let upper = ["--upper".as_ref(), upper.as_os_str()];
        bench.ok(&[
            "mount".as_ref(),
            archive.as_os_str(),
            mountpoint.as_os_str(),
            upper[0],
            upper[1],
        ]);
    };
    mount();
    let local = run("run", &tree);
    let failed = local.values().flatten().find(|line| line.starts_with("'failed:'"));
    assert_eq!(failed, None, "a case does not even run on a plain directory");
    assert_same("while files change", &local, &run("run", &mountpoint));

    let (local, numbers) = (run("look", &tree), run("numbers", &mountpoint));
    let check = |when: &str| {
        assert_same(when, &local, &run("look", &mountpoint));
        assert_same(when, &numbers, &run("numbers", &mountpoint));
    };
    check("afterwards");
    std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    check("with nothing remembered");
    bench.ok(&["unmount".as_ref(), mountpoint.as_os_str()]);
    mount();
    check("after a remount");
    bench.ok(&["unmount".as_ref(), mountpoint.as_os_str()]);
    bench.assert_nothing_left();
}
