//! Real directories, real events: what is told is replayed onto a model, which has to come out as the directory.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::*;
use crate::types::FileKind;
use crate::watch::{Change, Item, What};

fn shown(path: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(path))
}

struct Watched {
    dir: tempfile::TempDir,
    _tree: Arc<Tree>,
    reader: Reader,
}

impl Watched {
    /// A directory in which `make` has been at work before it is watched.
    fn after(recursive: bool, make: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path());
        let (tree, reader) = watch(dir.path(), recursive).unwrap();
        Self { dir, _tree: tree, reader }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What has been told, once nothing more comes.
    fn changes(&mut self) -> Vec<Arc<Change>> {
        let mut changes = Vec::new();
        let mut quiet = 0;
        while quiet < 10 {
            let items = self.reader.read(1000);
            quiet = if items.is_empty() { quiet + 1 } else { 0 };
            for item in items {
                let Item::Change(change) = item else { panic!("{item:?}") };
                changes.push(change);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        changes
    }

    fn told(&mut self) -> Vec<String> {
        let shown = |change: &Arc<Change>| {
            let path = String::from_utf8_lossy(&change.path).into_owned();
            match &change.what {
                What::Rename { to } => format!("rename {path} {}", String::from_utf8_lossy(to)),
                What::Exchange { with } => {
                    format!("exchange {path} {}", String::from_utf8_lossy(with))
                }
                what => format!("{what:?} {path}").to_lowercase(),
            }
        };
        let mut told: Vec<_> = self.changes().iter().map(shown).collect();
        // How often one write is told depends on how fast events are read.
        told.dedup();
        told
    }
}

#[test]
fn every_change_is_told() {
    let before = |dir: &Path| {
        fs::create_dir_all(dir.join("d/e")).unwrap();
        fs::write(dir.join("d/f"), "").unwrap();
    };
    let outside = tempfile::tempdir().unwrap();
    let outside = outside.path();
    type Step<'a> = Box<dyn Fn(&Path) + 'a>;
    let steps: Vec<(Step<'_>, &[&str], &[&str])> = vec![
        (
            Box::new(|dir| fs::write(dir.join("a"), "1").unwrap()),
            &["create a", "write a"],
            &["create a", "write a"],
        ),
        (Box::new(|dir| fs::write(dir.join("d/f"), "1").unwrap()), &["write d/f"], &[]),
        (
            Box::new(|dir| {
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
                fs::set_permissions(dir.join("d"), mode).unwrap();
            }),
            &["attributes d"],
            &["attributes d"],
        ),
        (
            Box::new(|dir| {
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
                fs::set_permissions(dir, mode).unwrap();
            }),
            &["attributes "],
            &["attributes "],
        ),
        (
            Box::new(|dir| fs::rename(dir.join("a"), dir.join("d/b")).unwrap()),
            &["rename a d/b"],
            &["remove a"],
        ),
        (
            Box::new(|dir| fs::rename(dir.join("d"), dir.join("x")).unwrap()),
            &["rename d x"],
            &["rename d x"],
        ),
        (Box::new(|dir| fs::remove_file(dir.join("x/b")).unwrap()), &["remove x/b"], &[]),
        (
            Box::new(|dir| fs::hard_link(dir.join("x/f"), dir.join("x/e/g")).unwrap()),
            &["create x/e/g", "attributes x/f"],
            &[],
        ),
        (
            Box::new(|dir| fs::rename(dir.join("x"), outside.join("x")).unwrap()),
            &["remove x"],
            &["remove x"],
        ),
        (Box::new(|_| fs::write(outside.join("x/e/g"), "unseen").unwrap()), &[], &[]),
        (
            Box::new(|dir| fs::rename(outside.join("x"), dir.join("y")).unwrap()),
            &["create y", "create y/e", "create y/f", "create y/e/g"],
            &["create y"],
        ),
        (Box::new(|dir| fs::write(dir.join("y/e/g"), "2").unwrap()), &["write y/e/g"], &[]),
        (
            Box::new(|dir| {
                fs::create_dir(dir.join("z")).unwrap();
                let (y, z) = (dir.join("y"), dir.join("z"));
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let cwd = rustix::fs::CWD;
                rustix::fs::renameat_with(cwd, y, cwd, z, flags).unwrap();
            }),
            &["create z", "exchange y z"],
            &["create z", "exchange y z"],
        ),
        (Box::new(|dir| fs::write(dir.join("z/e/g"), "3").unwrap()), &["write z/e/g"], &[]),
        (Box::new(|dir| fs::write(dir.join("y/n"), "").unwrap()), &["create y/n"], &[]),
    ];
    for recursive in [true, false] {
        let mut watched = Watched::after(recursive, before);
        for (at, (step, whole, one)) in steps.iter().enumerate() {
            step(watched.dir.path());
            let expected = if recursive { whole } else { one };
            let mut told = watched.told();
            // A link changes the inode's count, which some kernels tell; a listing has no order.
            told.retain(|line| line != "attributes x/f" || expected.contains(&&**line));
            let mut sorted: Vec<_> = expected.iter().map(|line| (*line).to_owned()).collect();
            if told.iter().any(|line| line.starts_with("create y/")) && told.len() == 4 {
                told.sort();
                sorted.sort();
            }
            if !told.iter().any(|line| line == "attributes x/f") {
                sorted.retain(|line| line != "attributes x/f");
            }
            assert_eq!(told, sorted, "step {at}, recursive: {recursive}");
        }
    }
}

#[test]
fn the_directory_itself_is_told_of_to_its_end() {
    let mut removed = Watched::after(true, |dir| fs::create_dir(dir.join("root")).unwrap());
    let root = removed.path("root");
    (removed._tree, removed.reader) = watch(&root, true).unwrap();
    fs::remove_dir(&root).unwrap();
    assert_eq!(removed.told(), ["remove "]);
    // Made again it is another one.
    fs::create_dir(&root).unwrap();
    fs::write(root.join("x"), "").unwrap();
    assert_eq!(removed.told(), Vec::<String>::new());
    let (tree, reader) = watch(&root, true).unwrap();
    (removed._tree, removed.reader) = (tree, reader);
    fs::write(root.join("y"), "").unwrap();
    assert_eq!(removed.told(), ["create y"]);
    fs::rename(&root, removed.path("moved")).unwrap();
    assert_eq!(removed.told(), ["rename  "]);
    fs::write(removed.path("moved/z"), "").unwrap();
    assert_eq!(removed.told(), Vec::<String>::new());
}

#[test]
fn a_symlink_is_an_entry_and_no_way_in() {
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(outside.path().join("sub")).unwrap();
    let link = |dir: &Path, name: &str| {
        std::os::unix::fs::symlink(outside.path(), dir.join(name)).unwrap();
    };
    let mut watched = Watched::after(true, |dir| link(dir, "before"));
    link(watched.dir.path(), "after");
    assert_eq!(watched.told(), ["create after"]);
    fs::write(outside.path().join("x"), "").unwrap();
    fs::write(outside.path().join("sub/x"), "").unwrap();
    assert_eq!(watched.told(), Vec::<String>::new());
}

#[test]
fn deep_wide_and_odd_names_are_watched() {
    let odd = OsString::from_vec(b"\xff\n ".to_vec());
    let deep = |dir: &Path| {
        // Deeper than one path can say.
        let mut here =
            rustix::fs::open(dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        for _ in 0..100 {
            let name = "n".repeat(100);
            rustix::fs::mkdirat(&here, &name, Mode::RWXU).unwrap();
            here = rustix::fs::openat(&here, &name, OFlags::PATH, Mode::empty()).unwrap();
        }
        here
    };
    let mut bottom = None;
    let mut watched = Watched::after(true, |dir| {
        bottom = Some(deep(dir));
        fs::create_dir(dir.join(&odd)).unwrap();
        for wide in 0..2000 {
            fs::create_dir(dir.join(format!("w{wide}"))).unwrap();
        }
    });
    rustix::fs::mkdirat(bottom.as_ref().unwrap(), "x", Mode::RWXU).unwrap();
    rustix::fs::mkdirat(bottom.as_ref().unwrap(), "x/y", Mode::RWXU).unwrap();
    fs::write(watched.dir.path().join(&odd).join("f"), "").unwrap();
    fs::write(watched.path("w1999/f"), "").unwrap();
    let paths: Vec<_> = watched.changes().iter().map(|change| change.path.clone()).collect();
    let below = |name: &str| [vec!["n".repeat(100); 100].join("/").as_str(), name].join("/");
    let odd = [odd.as_bytes(), b"/f"].concat();
    let expected = [below("x").into(), below("x/y").into(), odd, b"w1999/f".to_vec()];
    assert_eq!(paths, expected);
}

mod limits;
mod storm;
