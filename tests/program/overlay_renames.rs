//! How much a difference knows of files that have other names, and what it says of more.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::RenameFlags;
use thawfs::overlay::{Options, Overlay, Upper};
use thawfs::types::Ino;

use crate::overlay_difference::{difference, in_words};
use crate::overlay_support::{ROOT, open_archive, run};

/// Files and directories, of each so many.
const COUNT: usize = 6;

/// What is told once all have another name, with such limits.
fn told(archive: &Path, renames: usize, former_paths: usize) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    for name in ["upper", "work"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    let upper = Upper::open(&dir.path().join("upper"), &dir.path().join("work")).unwrap();
    let options = Options { renames, former_paths, ..Options::default() };
    let overlay = Overlay::new(open_archive(archive), Some(upper), options).unwrap();
    let overlay = Arc::new(overlay);
    for number in 0..COUNT {
        for [from, to] in [["f", "g"], ["d", "e"]] {
            let [from, to] = [from, to].map(|name| format!("{name}{number}"));
            let [from, to] = [&from, &to].map(|name| OsStr::from_bytes(name.as_bytes()));
            let flags = RenameFlags::empty();
            overlay.rename(&ROOT, Ino::ROOT, from, Ino::ROOT, to, flags).unwrap();
        }
    }
    in_words(&difference(&overlay, None, ""))
}

#[test]
fn of_more_renames_than_are_known_one_file_is_gone_and_another_is_there() {
    let tree = tempfile::tempdir().unwrap();
    for number in 0..COUNT {
        std::fs::write(tree.path().join(format!("f{number}")), "data").unwrap();
        std::fs::create_dir(tree.path().join(format!("d{number}"))).unwrap();
        std::fs::write(tree.path().join(format!("d{number}/in")), "data").unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("data.sqsh");
    let words = ["-noappend", "-quiet", "-no-progress"].map(OsStr::new);
    run("mksquashfs", &[&[tree.path().as_os_str(), archive.as_os_str()], &words[..]].concat());
    // Each path has two bytes, and those of directories come first.
    let all = 2 * 2 * COUNT;
    for (renames, bytes, known) in [
        (0, 99, 0),
        (1, 99, 1),
        (COUNT - 1, 99, COUNT - 1),
        (COUNT, 99, COUNT),
        (COUNT + 1, 99, COUNT),
        (99, 0, 0),
        (99, 1, 0),
        (99, 2 * COUNT + 1, 0),
        (99, 2 * COUNT + 2, 1),
        (99, all - 1, COUNT - 1),
        (99, all, COUNT),
        (99, all + 1, COUNT),
    ] {
        let case = format!("{renames} renames, {bytes} bytes");
        let told = told(&archive, renames, bytes);
        let count = |letter| told.iter().filter(|line| line.starts_with(letter)).count();
        // Directories, what is in which is not told of its own, are known all the same.
        assert_eq!(count('R'), COUNT + known, "{case}: {told:#?}");
        assert_eq!(told.len(), 3 * COUNT - known, "{case}: {told:#?}");
        for number in 0..COUNT {
            let has = |line: String| told.contains(&line);
            assert!(has(format!("R e{number}/ < d{number}")), "{case}: {told:#?}");
            let whole = has(format!("R g{number} < f{number}"));
            let halves = has(format!("D f{number}")) && has(format!("A g{number}"));
            assert!(whole != halves, "{case}, {number}: {told:#?}");
        }
    }
}
