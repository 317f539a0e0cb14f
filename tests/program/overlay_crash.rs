//! A server that is killed at any moment leaves an upper that is as it was before the operation it
//! was in, or as it should be after.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::overlay_support::{
    self, Merged, Plain, Side, Stack, Tree, bytes, freeze, is_root, layer_dir, open_archive,
    open_layers, open_overlay, open_stack, run, source,
};
use crate::support::again::only;
use rustix::fs::RenameFlags;
use thawfs::overlay::{Options, Overlay};

/// Set in the child: the directory of its upper.
const CHILD: &str = "THAWFS_CRASH_DIR";
/// Set in the child: the archive.
const ARCHIVE: &str = "THAWFS_CRASH_ARCHIVE";

type Step = fn(&mut dyn Side);

/// Each step is one operation that moves, hides, replaces or copies something.
fn steps() -> Vec<Step> {
    const NONE: RenameFlags = RenameFlags::empty();
    fn path(path: &str) -> &Path {
        Path::new(path)
    }
    vec![
        |side| side.chmod(path("a/b/a"), 0o600).unwrap(),
        |side| side.rename(path("a/b/a"), path("big"), NONE).unwrap(),
        |side| side.rename(path("c/c"), path("moved"), NONE).unwrap(),
        |side| side.mkdir(path("c/c"), 0o755).unwrap(),
        |side| side.unlink(path("b")).unwrap(),
        |side| side.rename(path("a/c"), path("c/c/x"), NONE).unwrap(),
        |side| side.rename(path("c/b"), path("b"), NONE).unwrap(),
        |side| side.unlink(path("a/b/c")).unwrap(),
        |side| side.rmdir(path("a/b/b")).unwrap(),
        |side| side.rmdir(path("a/b")).unwrap(),
        |side| side.symlink(path("a/b"), OsStr::new("nowhere")).unwrap(),
        |side| side.rename(path("moved"), path("a/b"), RenameFlags::EXCHANGE).unwrap(),
        |side| side.truncate(path("big"), 0).unwrap(),
        |side| side.rename(path("c/c"), path("c/d"), NONE).unwrap(),
        |side| side.rename(path("c/a"), path("c/c"), NONE).unwrap(),
        |side| side.link(path("big"), path("c/big")).unwrap(),
        |side| side.rename(path("a/b/b"), path("big"), NONE).unwrap(),
        |side| side.write(path("big"), 0, &bytes(5, 0), libc::O_WRONLY).unwrap(),
        |side| side.unlink(path("a/b/a")).unwrap(),
        |side| side.unlink(path("a/b/c")).unwrap(),
        |side| side.mkdir(path("e"), 0o711).unwrap(),
        |side| side.rename(path("e"), path("a/b"), NONE).unwrap(),
        |side| side.rename(path("a"), path("c/a"), NONE).unwrap(),
        |side| side.rename(path("c"), path("f"), NONE).unwrap(),
    ]
}

/// What two trees must agree on: not times, which differ by when it was.
fn comparable(tree: Tree) -> Tree {
    let timeless = |seen| overlay_support::Seen { ino: 0, mtime: Default::default(), ..seen };
    tree.into_iter().map(|(path, seen)| (path, timeless(seen))).collect()
}

/// The child: does every step and says so.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    rustix::process::umask(rustix::fs::Mode::empty());
    let archive = std::env::var_os(ARCHIVE).unwrap();
    let overlay = open_overlay(Path::new(&dir), Path::new(&archive), Options::default());
    let mut side = Merged { overlay, plus: false };
    for step in steps() {
        std::io::stderr().write_all(b".").unwrap();
        step(&mut side);
    }
}

#[test]
fn a_killed_server_leaves_each_operation_done_or_not_done() {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    rustix::process::umask(rustix::fs::Mode::empty());
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    run("cp", &[OsStr::new("-a"), source().tree.as_os_str(), plain.as_os_str()]);
    let mut plain = Plain(plain);
    let mut states = vec![comparable(plain.tree())];
    for step in steps() {
        step(&mut plain);
        states.push(comparable(plain.tree()));
    }
    let mut cut_short = 0;
    for round in 0..60_u64 {
        let dir = dir.path().join(format!("round{round}"));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(only(module_path!(), "child"))
            .env(CHILD, &dir)
            .env(ARCHIVE, &source().archive)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let mut begun = 0;
        // Waits for some step to begin, then a little longer.
        while begun <= round as usize % steps().len() && stderr.read(&mut [0]).unwrap() == 1 {
            begun += 1;
        }
        std::thread::sleep(Duration::from_micros(round * 37 % 150));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut rest = Vec::new();
        stderr.read_to_end(&mut rest).unwrap();
        begun += rest.iter().take_while(|byte| **byte == b'.').count();
        assert!(rest.iter().all(|byte| *byte == b'.'), "{}", String::from_utf8_lossy(&rest));
        cut_short += usize::from(begun < steps().len());
        let overlay = open_overlay(&dir, &source().archive, Options::default());
        let seen = comparable(Merged { overlay, plus: false }.tree());
        let (before, after) = (&states[begun - 1], &states[begun]);
        if seen != *before && seen != *after {
            for (path, seen) in &seen {
                if before.get(path) != Some(seen) && after.get(path) != Some(seen) {
                    eprintln!("{path:?} is in neither state, or otherwise: {:?}", seen.kind);
                }
            }
            for path in before.keys().filter(|path| after.contains_key(*path)) {
                if !seen.contains_key(path) {
                    eprintln!("{path:?} is missing");
                }
            }
            panic!("killed in step {begun}: the tree is neither as before nor as after");
        }
    }
    assert!(cut_short > 20, "only {cut_short} of 60 were killed in the middle");
}

/// A server that is killed in the middle of a freeze leaves inodes that the layer and the upper both have.
#[test]
fn what_was_on_its_way_to_the_next_upper_when_the_server_was_killed_is_not_shared_with_the_layer() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, mut stack) = (&source().archive, Stack::default());
    let path = Path::new;
    {
        let overlay = open_overlay(dir.path(), archive, Options::default());
        let mut merged = Merged { overlay, plus: false };
        merged.mkdir(path("d"), 0o755).unwrap();
        merged.write(path("d/file"), 0, b"before", libc::O_CREAT | libc::O_WRONLY).unwrap();
        freeze(&merged.overlay, dir.path(), &mut stack, 1);
        merged.chmod(path("d/file"), 0o600).unwrap();
        merged.chmod(path("d/file"), 0o644).unwrap();
    }
    // As it is after the point of no return, before the layer has its copy.
    let [in_layer, live] = [0, 1].map(|serial| layer_dir(dir.path(), serial).join("d/file"));
    std::fs::remove_file(&live).unwrap();
    std::fs::hard_link(&in_layer, &live).unwrap();
    let root = layer_dir(dir.path(), 1);
    let prefix = if is_root() { "trusted" } else { "user" };
    let mark = format!("{prefix}.overlay.thawfs.carrying");
    rustix::fs::setxattr(&root, &mark, b"y", rustix::fs::XattrFlags::empty()).unwrap();

    let overlay = open_stack(dir.path(), archive, &stack, Options::default());
    let mut merged = Merged { overlay, plus: false };
    merged.write(path("d/file"), 0, b"after!", libc::O_WRONLY).unwrap();
    assert_eq!(merged.tree()[path("d/file")].contents, b"after!");
    assert_eq!(std::fs::read(&in_layer).unwrap(), b"before");
    let mut value = [0; 8];
    assert!(rustix::fs::getxattr(&root, &mark, &mut value[..]).is_err(), "it is done once");
    drop(merged);
    let layers = open_layers(dir.path(), &[0]);
    let then = Overlay::stacked(open_archive(archive), layers, None, Options::default()).unwrap();
    let mut then = Merged { overlay: then, plus: false };
    assert_eq!(then.tree()[path("d/file")].contents, b"before");
}
