//! `--gitignore`, beside what git itself answers.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;
use thawfs::backup::Selection;
use thawfs::failure::Code;

use super::{add, all, kept, tree};
use crate::support::again::{assert_passed, only};
use crate::support::surrounding::{Need, cannot_run};

fn git(root: &Path, arguments: &[&str]) -> Vec<u8> {
    let identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"];
    let output =
        Command::new("git").arg("-C").arg(root).args(identity).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {arguments:?}: {said}");
    output.stdout
}

/// A work tree with these paths, of which the `tracked` are.
fn work_tree(paths: &[&str], ignores: &[(&str, &str)], tracked: &[&str]) -> TempDir {
    let dir = tree(paths);
    let root = dir.path();
    git(root, &["init", "-q", "."]);
    for (file, rules) in ignores {
        add(root, file);
        fs::write(root.join(file), rules).unwrap();
    }
    git(root, &[&["add", "-f", "--"], tracked].concat());
    dir
}

fn ignored(root: &Path) -> BTreeSet<PathBuf> {
    let selection = Selection::new(root, &[], true).unwrap();
    &all(root) - &kept(root, &selection)
}

/// The files that the SDK's list names, and what is below the directories it names.
fn listed_for_the_sdk(root: &Path) -> BTreeSet<PathBuf> {
    let listed = git(root, &["ls-files", "-z", "--others", "-i", "--exclude-standard", "--", "."]);
    let listed: Vec<PathBuf> = (listed.split(|&byte| byte == 0))
        .filter(|path| !path.is_empty())
        .map(|path| PathBuf::from(OsString::from_vec(path.to_vec())))
        .collect();
    let mut paths = all(root);
    paths.retain(|path| listed.iter().any(|listed| path.starts_with(listed)));
    paths
}

/// Which of these match git's rules, whether or not they are in the index.
fn check_ignore(root: &Path, paths: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
    let list = tempfile::NamedTempFile::new().unwrap();
    let text: Vec<_> = paths.iter().flat_map(|path| [path.as_os_str().as_bytes(), b"\0"]).collect();
    fs::write(&list, text.concat()).unwrap();
    let output = Command::new("git")
        .arg("-C")
        .arg(root)
        .args(["check-ignore", "-z", "--no-index", "--stdin"])
        .stdin(list.reopen().unwrap())
        .output()
        .unwrap();
    // 1: none of them.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    let matched = output.stdout.split(|&byte| byte == 0).filter(|path| !path.is_empty());
    matched.map(|path| PathBuf::from(OsString::from_vec(path.to_vec()))).collect()
}

/// Files go as in the SDK's list, directories if git ignores them and nothing in them stays.
fn assert_as_git(root: &Path) {
    let ours = ignored(root);
    let paths = all(root);
    let is_dir = |path: &&PathBuf| root.join(path).symlink_metadata().unwrap().is_dir();
    let files = |paths: &BTreeSet<PathBuf>| -> BTreeSet<_> {
        paths.iter().filter(|path| !is_dir(path)).cloned().collect()
    };
    assert_eq!(files(&ours), files(&listed_for_the_sdk(root)), "files");
    let kept = &paths - &ours;
    let directories: BTreeSet<_> = paths
        .iter()
        .filter(is_dir)
        .filter(|path| !path.starts_with(".git"))
        .filter(|path| !kept.iter().any(|kept| kept != *path && kept.starts_with(path)))
        .cloned()
        .collect();
    let expected = check_ignore(root, &directories);
    assert_eq!(&ours & &directories, expected, "directories");
}

#[test]
fn what_git_ignores_is_left_out_and_nothing_else() {
    let dir = work_tree(
        &[
            "node_modules/a/b.js",
            "node_modules/.bin/x",
            "app/node_modules/c.js",
            "app/src/main.js",
            "app/debug.log",
            "app/keep.log",
            "app/tracked.log",
            "top.log",
            "build/out",
            "app/build/out",
            "logs/x.log",
            "logs/deep/y.log",
            "half/x.log",
            "half/y",
            "cache/keep/me",
            "cache/drop/it",
            "vendor/lib/tracked.c",
            "vendor/lib/other.c",
            "secret.env",
            "local.txt",
            "global~",
            "docs/a/b/c/draft.md",
            "docs/draft.md",
            "with space.tmp",
            " lead.tmp",
            "trail.tmp ",
            "quo\"te.tmp",
            "new\nline.tmp",
            "star*.tmp",
            "ünï.tmp",
            "empty-ignored/",
            "empty/",
            "copy/top.log/no",
            "other/secret.env",
        ],
        &[
            (
                ".gitignore",
                "node_modules/\n*.log\n/build\nlogs/deep/\n*.tmp\n*.tmp \\\n\ncache/*\n!cache/keep\nvendor/\ndocs/**/draft.md\nempty-ignored/\n/secret.env\n",
            ),
            ("app/.gitignore", "!keep.log\n"),
            (".git/info/exclude", "local.txt\n"),
            (".git/global", "*~\n"),
        ],
        &["app/tracked.log", "vendor/lib/tracked.c", ".gitignore", "app/src/main.js"],
    );
    let root = dir.path();
    add(root, OsStr::from_bytes(b"lat\xefn.tmp"));
    git(root, &["config", "core.excludesFile", root.join(".git/global").to_str().unwrap()]);
    std::os::unix::fs::symlink("app", root.join("link.tmp")).unwrap();
    assert_as_git(root);
    let gone = ignored(root);
    let goes = [
        "node_modules",
        "app/node_modules/c.js",
        "top.log",
        "build",
        "logs/x.log",
        "cache/drop",
        "vendor/lib/other.c",
        "secret.env",
        "local.txt",
        "global~",
        "docs/a/b/c/draft.md",
        "quo\"te.tmp",
        "new\nline.tmp",
        " lead.tmp",
        "link.tmp",
        "empty-ignored",
    ];
    let stays = [
        "app/keep.log",
        "app/tracked.log",
        "app/build/out",
        "cache/keep/me",
        "logs",
        "empty",
        "vendor/lib/tracked.c",
        "vendor",
        ".git/info/exclude",
        ".git/global",
        "other/secret.env",
        "half/y",
    ];
    for path in goes {
        assert!(gone.contains(Path::new(path)), "{path} stays");
    }
    for path in stays {
        assert!(!gone.contains(Path::new(path)), "{path} goes");
    }
    // Rules from above hold below, and paths are relative to what is packed.
    assert_as_git(&root.join("app"));
    assert!(ignored(&root.join("app")).contains(Path::new("debug.log")));
    // Patterns come on top.
    let both = Selection::new(root, &["half".into(), "*.js".into()], true).unwrap();
    let both = &all(root) - &kept(root, &both);
    assert!(both.contains(Path::new("half")) && both.contains(Path::new("app/src/main.js")));
    assert!(both.is_superset(&gone));
}

#[test]
fn repositories_within_a_work_tree_are_taken_as_git_takes_them() {
    let dir = work_tree(
        &["own/x.log", "own/y", "ignored/x", "ignored/y.log", "module/x.log", "vendor/deep/z.log"],
        &[(".gitignore", "*.log\nignored/\nvendor/\n"), ("own/.gitignore", "y\n")],
        &[".gitignore"],
    );
    let root = dir.path();
    for nested in ["own", "ignored", "module", "vendor/deep"] {
        git(&root.join(nested), &["init", "-q", "."]);
    }
    git(&root.join("module"), &["commit", "-q", "--allow-empty", "-m", "x"]);
    git(root, &["-c", "advice.addEmbeddedRepo=false", "add", "module"]);
    assert_as_git(root);
    let gone = ignored(root);
    for (path, goes) in [
        ("own/x.log", false),
        ("own/y", false),
        ("module/x.log", false),
        ("ignored", true),
        ("vendor/deep/z.log", true),
    ] {
        assert_eq!(gone.contains(Path::new(path)), goes, "{path}");
    }
}

#[test]
fn an_ignored_directory_is_packed_empty_and_says_so() {
    let dir = work_tree(&["dist/a", "dist/b/c"], &[(".gitignore", "dist\n")], &[]);
    let root = dir.path().join("dist");
    let selection = Selection::new(&root, &[], true).unwrap();
    assert_eq!(kept(&root, &selection), BTreeSet::new());
    assert!(selection.warnings()[0].contains("git ignores all of"), "{:?}", selection.warnings());
}

#[test]
fn outside_of_a_work_tree_nothing_is_left_out() {
    let plain = tree(["x.log"]);
    fs::write(plain.path().join(".gitignore"), "*.log\n").unwrap();
    let bare = tempfile::tempdir().unwrap();
    git(bare.path(), &["init", "-q", "--bare", "."]);
    for dir in [plain.path(), bare.path()] {
        let selection = Selection::new(dir, &[], true).unwrap();
        assert_eq!(kept(dir, &selection), all(dir));
        assert!(selection.warnings()[0].contains("no git work tree"), "{:?}", selection.warnings());
    }
}

fn rules() -> impl Strategy<Value = String> {
    let rule = ("!?", "/?", "[abx*]{1,2}|\\*\\*/[ab]|[ab]/\\*\\*|[ab]/[ab*]", "/?")
        .prop_map(|(not, top, name, dir)| format!("{not}{top}{name}{dir}\n"));
    prop::collection::vec(rule, 0..4).prop_map(|rules| rules.concat())
}

#[test]
fn random_rules_leave_out_what_git_ignores() {
    let files: Vec<_> = ["a", "b", "x"]
        .iter()
        .flat_map(|one| ["a/a", "a/x", "b", "x/"].map(|two| format!("{one}/{two}")))
        .chain(["c".to_owned(), "a/y/a".into(), "b/x/a".into(), "ab".into()])
        .collect();
    let files: Vec<_> = files.iter().map(String::as_str).collect();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let tracked = prop::sample::subsequence(vec!["a/a/a", "a/b", "b/a/x", "b/b", "x/b", "c"], 0..3);
    proptest!(config, |(top in rules(), below in rules(), mut tracked in tracked)| {
        tracked.push(".gitignore");
        let dir = work_tree(&files, &[(".gitignore", &top), ("a/.gitignore", &below)], &tracked);
        assert_as_git(dir.path());
    });
}

/// Runs an ignored test of this program by itself, with another environment.
fn run_by_itself(test: &str, environment: &[(&str, &str)]) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(only(module_path!(), test))
        .arg("--ignored")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    assert_passed(&output);
}

#[test]
fn without_git_nothing_is_left_out() {
    let dir = work_tree(&["x.log"], &[(".gitignore", "*.log\n")], &[]);
    let environment = [("PATH", "/nowhere"), ("SELECT_ROOT", dir.path().to_str().unwrap())];
    run_by_itself("with_no_git_on_the_path", &environment);
}

#[test]
#[ignore = "without_git_nothing_is_left_out runs it, with a PATH of nothing"]
fn with_no_git_on_the_path() {
    let Some(root) = std::env::var_os("SELECT_ROOT").map(PathBuf::from) else {
        eprintln!("another test runs this one, and SELECT_ROOT then says where");
        return;
    };
    let selection = Selection::new(&root, &[], true).unwrap();
    assert_eq!(kept(&root, &selection), all(&root));
    assert!(selection.warnings()[0].contains("no git program"), "{:?}", selection.warnings());
}

#[test]
fn a_work_tree_of_somebody_else_is_a_failure() {
    if cannot_run("a_work_tree_of_somebody_else_is_a_failure", &[Need::Root]) {
        return;
    }
    let dir = work_tree(&["x.log"], &[(".gitignore", "*.log\n")], &[]);
    let root = dir.path();
    for path in [root.to_owned(), root.join(".git")] {
        std::os::unix::fs::chown(path, Some(12345), Some(12345)).unwrap();
    }
    let nowhere = root.join("no-config");
    let nowhere = nowhere.to_str().unwrap();
    let environment = [
        ("SELECT_ROOT", root.to_str().unwrap()),
        ("GIT_CONFIG_GLOBAL", nowhere),
        ("GIT_CONFIG_SYSTEM", nowhere),
        // As hooks have it: it is not what is packed.
        ("GIT_DIR", nowhere),
    ];
    run_by_itself("in_a_work_tree_of_somebody_else", &environment);
}

#[test]
#[ignore = "a_work_tree_of_somebody_else_is_a_failure runs it, with a configuration of nothing"]
fn in_a_work_tree_of_somebody_else() {
    let Some(root) = std::env::var_os("SELECT_ROOT").map(PathBuf::from) else {
        eprintln!("another test runs this one, and SELECT_ROOT then says where");
        return;
    };
    let failure = Selection::new(&root, &[], true).unwrap_err();
    assert_eq!(failure.code, Code::Failed);
    assert!(failure.message.contains("dubious ownership"), "{failure}");
    assert!(failure.hint.unwrap().contains("safe.directory"));
}
