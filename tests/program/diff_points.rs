//! `diff` between checkpoints, on real mounts.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::mount::{Mounts, can_mount};
use crate::support::words::text;

fn mounted() -> Mounts {
    let mounts = Mounts::new();
    mounts.bench.ok(&["-q", "mount", text(&mounts.archive), text(&mounts.mountpoint)]);
    mounts
}

impl Mounts {
    fn asks(&self, command: &str, more: &[&str]) -> String {
        self.bench.ok(&[&[command, text(&self.mountpoint)][..], more].concat())
    }

    fn point(&self, name: &str) -> String {
        self.asks("checkpoint", &["--name", name]).trim_end().to_owned()
    }
}

#[test]
fn points_are_known_by_id_by_name_and_the_archive_by_its_own() {
    if !can_mount("points_are_known_by_id_by_name_and_the_archive_by_its_own") {
        return;
    }
    let mounts = mounted();
    let write =
        |name: &str, data: &str| std::fs::write(mounts.mountpoint.join(name), data).unwrap();
    write("new", "12345");
    let one = mounts.point("one");
    std::fs::rename(mounts.mountpoint.join("sub"), mounts.mountpoint.join("moved")).unwrap();
    write("script", "changed");
    let two = mounts.point("two");
    mounts.asks("rollback", &["one"]);
    std::fs::remove_file(mounts.mountpoint.join("new")).unwrap();
    write("other", "1");

    let (short, upper) = (&two[..8], one.to_uppercase());
    let to_two = "R sub/ -> moved/\nM script\n";
    for (points, expected) in [
        (&["one", "two"][..], to_two),
        (&[&one, short], to_two),
        (&[&upper, &two], to_two),
        (&["two", "one"], "M script\nR moved/ -> sub/\n"),
        (&["archive", "one"], "A new\n"),
        (&["archive", "two"], "R sub/ -> moved/\nA new\nM script\n"),
        (&["one", "archive"], "D new\n"),
        (&["one"], "D new\nA other\n"),
        (&["archive"], "A other\n"),
        // On a branch that was rolled away.
        (&["two"], "D new\nA other\nM script\nR moved/ -> sub/\n"),
        (&["two", "two"], ""),
    ] {
        assert_eq!(mounts.asks("diff", points), expected, "{points:?}");
    }
    assert_eq!(
        mounts.asks("diff", &["one", "two", "--stat"]),
        "1 modified\n1 renamed\n7 B that one does not have\n"
    );
    assert_eq!(mounts.asks("diff", &["one", "-0"]), "D new\0A other\0");
    let told = mounts.asks("diff", &["two", "one", "--json"]);
    let told: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&told[1]["path"], &told[1]["from"]), (&"sub".into(), &"moved".into()));
    let below = mounts.mountpoint.join("sub");
    let told = mounts.bench.ok(&["diff", text(&below), "two"]);
    assert_eq!(told, "R moved/ -> sub/\n");

    for (points, status, code, message) in [
        (&["none"][..], 3, "NOT_FOUND", "there is no checkpoint \"none\""),
        (&["one", "none"], 3, "NOT_FOUND", "there is no checkpoint \"none\""),
        (&["one", "two", "three"], 2, "USAGE", "three"),
        (&["one", "--since", "0-1.5"], 2, "USAGE", "--since"),
    ] {
        let command = [&["diff", text(&mounts.mountpoint), "--json"], points].concat();
        let output = mounts.bench.run(&command);
        let said = String::from_utf8(output.stdout).unwrap();
        let failure: Value =
            serde_json::from_str(said.trim_end()).unwrap_or_else(|_| panic!("{said}"));
        assert_eq!(output.status.code(), Some(status), "{failure}");
        assert_eq!(failure["code"], code, "{failure}");
        assert!(failure["message"].as_str().unwrap().contains(message), "{failure}");
    }
    mounts.asks("forget", &["one"]);
    assert_eq!(mounts.bench.run(&["diff", text(&mounts.mountpoint), "one"]).status.code(), Some(3));
}

#[test]
fn a_mount_without_an_upper_has_no_points_to_compare() {
    if !can_mount("a_mount_without_an_upper_has_no_points_to_compare") {
        return;
    }
    let mounts = Mounts::new();
    mounts.bench.ok(&["-q", "mount", "--ro", text(&mounts.archive), text(&mounts.mountpoint)]);
    let output = mounts.bench.run(&["diff", text(&mounts.mountpoint), "archive"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.lines().count()), (Some(11), 1), "{said}");
    assert!(said.contains("without an upper"), "{said}");
}

/// All of a directory, by path: what each is, and what is in it.
type Copy = BTreeMap<PathBuf, (u32, Vec<u8>)>;

fn copy(root: &Path) -> Copy {
    let entries = walkdir::WalkDir::new(root).into_iter().map(Result::unwrap);
    let seen = entries.map(|entry| {
        let meta = entry.path().symlink_metadata().unwrap();
        let data = match meta.file_type() {
            kind if kind.is_file() => std::fs::read(entry.path()).unwrap(),
            kind if kind.is_symlink() => {
                let target = std::fs::read_link(entry.path()).unwrap();
                target.into_os_string().into_encoded_bytes()
            }
            _ => Vec::new(),
        };
        (entry.path().strip_prefix(root).unwrap().to_owned(), (meta.mode(), data))
    });
    seen.collect()
}

/// What comes of `from` by what a difference says, which names everything in `to` that is new.
fn brought_up(from: &Copy, to: &Copy, told: &[Value]) -> Copy {
    let path = |entry: &Value, key: &str| {
        let path = PathBuf::from(entry[key].as_str()?);
        Some(if path == Path::new(".") { PathBuf::new() } else { path })
    };
    // Where each path has gone that is told of.
    let mut gone: BTreeMap<PathBuf, Option<PathBuf>> = BTreeMap::new();
    let mut fresh = Vec::new();
    for entry in told {
        let (here, there) = (path(entry, "path").unwrap(), path(entry, "from"));
        match entry["status"].as_str().unwrap() {
            "removed" => drop(gone.insert(there.unwrap_or(here), None)),
            "renamed" => drop(gone.insert(there.unwrap(), Some(here))),
            _ => fresh.push(here),
        }
    }
    let moved = |path: &PathBuf| -> Option<PathBuf> {
        for above in path.ancestors() {
            if let Some(to) = gone.get(above) {
                let rest = path.strip_prefix(above).unwrap();
                let to = to.as_ref()?;
                return Some(if rest == Path::new("") { to.clone() } else { to.join(rest) });
            }
        }
        Some(path.clone())
    };
    let kept = from.iter().filter_map(|(path, seen)| Some((moved(path)?, seen.clone())));
    let mut result: Copy = kept.collect();
    for path in fresh {
        result.insert(path.clone(), to[&path].clone());
    }
    result
}

/// Numbers that look like chance, the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % sides
    }

    fn path(&mut self, root: &Path) -> PathBuf {
        let depth = 1 + self.roll(3);
        (0..depth).fold(root.to_owned(), |path, _| {
            path.join(["a", "b", "sub", "hello", "data", "script"][self.roll(6) as usize])
        })
    }

    /// Does something, if it can be done.
    fn change(&mut self, root: &Path) {
        let (path, other) = (self.path(root), self.path(root));
        let _ = match self.roll(9) {
            0 | 1 => std::fs::write(&path, vec![self.roll(256) as u8; self.roll(9000) as usize]),
            2 => std::fs::create_dir(&path),
            3 | 4 => std::fs::rename(&path, &other),
            5 => std::fs::remove_file(&path),
            6 => std::fs::remove_dir_all(&path),
            7 => std::fs::set_permissions(
                &path,
                PermissionsExt::from_mode(0o700 | self.roll(64) as u32),
            ),
            _ if self.roll(2) == 0 => std::os::unix::fs::symlink("nowhere", &path),
            _ => std::fs::hard_link(&path, &other),
        };
    }
}

#[test]
fn a_difference_makes_one_copy_the_other() {
    if !can_mount("a_difference_makes_one_copy_the_other") {
        return;
    }
    let mounts = mounted();
    let mut dice = Dice(7);
    let mut points = vec![("archive".to_owned(), copy(&mounts.mountpoint))];
    for round in 0..12 {
        for _ in 0..60 {
            dice.change(&mounts.mountpoint);
        }
        let id = mounts.asks("checkpoint", &[]).trim_end().to_owned();
        points.push((id, copy(&mounts.mountpoint)));
        if round % 4 == 3 {
            let (id, _) = &points[1 + dice.roll(points.len() as u64 - 1) as usize];
            mounts.asks("rollback", &[id]);
        }
    }
    for _ in 0..60 {
        dice.change(&mounts.mountpoint);
    }
    let live = copy(&mounts.mountpoint);
    let told = |points: &[&str]| -> Vec<Value> {
        let told = mounts.asks("diff", &[points, &["--json"]].concat());
        told.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    for (one, from) in &points {
        assert_eq!(brought_up(from, &live, &told(&[one])), live, "{one}");
        for (other, to) in points.iter().skip(dice.roll(3) as usize).step_by(3) {
            assert_eq!(brought_up(from, to, &told(&[one, other])), *to, "{one} {other}");
        }
    }
}
