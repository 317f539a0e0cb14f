//! What a backup leaves out is what mksquashfs leaves out for the same patterns, and what git
//! ignores.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use proptest::prelude::*;
use tempfile::TempDir;
use thawfs::backup::Selection;
use thawfs::failure::Code;

/// Paths of files. Directories are made as they are needed; a path that ends in / is an empty one.
fn tree<P: AsRef<OsStr>>(paths: impl IntoIterator<Item = P>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for path in paths {
        add(dir.path(), path);
    }
    dir
}

fn add(root: &Path, path: impl AsRef<OsStr>) {
    let file = root.join(path.as_ref());
    if path.as_ref().as_bytes().ends_with(b"/") {
        fs::create_dir_all(file).unwrap();
    } else {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, b"").unwrap();
    }
}

/// What is packed of a tree: paths below it.
fn kept(root: &Path, selection: &Selection) -> BTreeSet<PathBuf> {
    let mut kept = BTreeSet::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(root.join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let path = directory.join(entry.file_name());
            let is_dir = entry.file_type().unwrap().is_dir();
            if !selection.excludes(&path, is_dir) {
                kept.insert(path.clone());
                directories.extend(is_dir.then_some(path));
            }
        }
    }
    kept
}

fn all(root: &Path) -> BTreeSet<PathBuf> {
    kept(root, &Selection::default())
}

fn select(root: &Path, pattern: &str) -> Result<BTreeSet<PathBuf>, thawfs::failure::Failure> {
    Ok(kept(root, &Selection::new(root, &[pattern.into()], false)?))
}

/// The lines `unsquashfs -l` prints for such paths. A name with a newline makes two.
fn lines(paths: &BTreeSet<PathBuf>) -> Vec<Vec<u8>> {
    let mut text = b"squashfs-root".to_vec();
    for path in paths {
        text.extend([b"\nsquashfs-root/", path.as_os_str().as_bytes()].concat());
    }
    sorted_lines(&text)
}

fn sorted_lines(text: &[u8]) -> Vec<Vec<u8>> {
    let mut lines: Vec<_> = text.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
    lines.sort();
    lines
}

/// What mksquashfs packs with these excludes, as lines. `None` if it refuses them.
fn packed(root: &Path, excludes: &[OsString]) -> Option<Vec<Vec<u8>>> {
    let out = tempfile::tempdir().unwrap();
    let archive = out.path().join("archive");
    let status = Command::new("mksquashfs")
        .args([root, &archive])
        .args(["-noappend", "-quiet", "-no-progress", "-processors", "1", "-mem", "16M"])
        .args(["-noI", "-noD", "-noF", "-no-xattrs", "-wildcards", "-e"])
        .args(excludes)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    if !status.success() {
        return None;
    }
    let listed = Command::new("unsquashfs").arg("-l").arg(&archive).output().unwrap();
    assert!(listed.status.success());
    Some(sorted_lines(listed.stdout.trim_ascii_end()))
}

/// As the SDK does it: at the top, and at any depth.
fn packed_by_the_sdk(root: &Path, pattern: &str) -> Option<Vec<Vec<u8>>> {
    packed(root, &[pattern.into(), format!("... {pattern}").into()])
}

/// The same without `... `, of which mksquashfs before 4.6 takes the first component for all: the
/// pattern at the top and in directories of every depth that these tests have.
fn packed_at_any_depth(root: &Path, pattern: &str) -> Option<Vec<Vec<u8>>> {
    let depths = (0..5).map(|depth| format!("{}{pattern}", "@(*|.*)/".repeat(depth)).into());
    packed(root, &depths.collect::<Vec<_>>())
}

/// Whether `... a/b` leaves out a/b and not all of a, as it does from 4.6 on.
static STICKY_PATHS: LazyLock<bool> = LazyLock::new(|| {
    let dir = tree(["a/b", "a/c"]);
    packed(dir.path(), &["... a/b".into()]).unwrap().contains(&b"squashfs-root/a/c".to_vec())
});

fn assert_as_mksquashfs(root: &Path, pattern: &str, ours: &BTreeSet<PathBuf>) {
    let ours = lines(ours);
    let text = |lines: &[Vec<u8>]| String::from_utf8_lossy(&lines.join(&b'\n')).into_owned();
    let one_component = !pattern.trim_end_matches('/').contains('/');
    let theirs = if one_component || *STICKY_PATHS {
        packed_by_the_sdk(root, pattern)
    } else {
        packed_at_any_depth(root, pattern)
    };
    let theirs = theirs.unwrap_or_else(|| panic!("mksquashfs refuses {pattern:?}"));
    assert!(ours == theirs, "{pattern:?}\nours:\n{}\ntheirs:\n{}", text(&ours), text(&theirs));
}

fn crafted() -> TempDir {
    let dir = tree([
        "a",
        "b",
        "c",
        "ab",
        "abc",
        "aab",
        "AB",
        "aB",
        "0",
        "9",
        "a.log",
        "b.log.gz",
        ".log",
        ".a",
        ".env",
        ".env.local",
        "..b",
        "...",
        "sp ace",
        " lead",
        "trail ",
        "tab\t",
        "ünï",
        "日本",
        "[x]",
        "x",
        "a[b",
        "new\nline",
        "-dash",
        "#hash",
        "!bang",
        "a!b",
        "x*y",
        "xzy",
        "x?y",
        "back\\slash",
        "a(b)",
        "(a|b)",
        "a|b",
        "@(a|b)",
        "+x",
        "a+b",
        "a]b",
        "]",
        "^",
        "~",
        "node_modules/.cache/f",
        "node_modules/.cache/node_modules/g",
        "node_modules/x/y",
        "src/node_modules/.cache/f",
        "src/node_modules/z",
        "src/a.log",
        "src/.a",
        "src/a/a/a",
        "src/b/a",
        "dist/dist/a.log",
        "dist/keep",
        ".git/config",
        ".git/x.log",
        "empty/",
        "target/debug/build/out",
        "target/release/a",
        "build/target/debug/o",
        "a.d/b.d/c.d/e",
    ]);
    add(dir.path(), OsStr::from_bytes(b"lat\xefn"));
    dir
}

#[test]
fn patterns_leave_out_what_mksquashfs_leaves_out() {
    let dir = crafted();
    // The pattern, and how many paths go, if that is worth saying.
    let cases: &[(&str, Option<usize>)] = &[
        // Plain names and paths.
        ("a", None),
        ("nothing", Some(0)),
        ("node_modules", Some(11)),
        ("src/a", Some(3)),
        ("node_modules/.cache", Some(6)),
        ("a/a", Some(2)),
        ("dist/dist", Some(2)),
        ("dist/", Some(4)),
        ("dist//dist", Some(2)),
        ("src//", None),
        ("...", Some(1)),
        ("..b", Some(1)),
        ("sp ace", Some(1)),
        (" lead", Some(1)),
        ("trail ", Some(1)),
        ("new\nline", Some(1)),
        ("#hash", Some(1)),
        ("-dash", Some(1)),
        ("!bang", Some(1)),
        ("ünï", Some(1)),
        ("日本", Some(1)),
        ("empty", Some(1)),
        ("a|b", Some(1)),
        ("target/debug", None),
        ("a.d/b.d/c.d/e", Some(1)),
        ("keep/x", Some(0)),
        // Stars and question marks; none matches a leading dot.
        ("*", None),
        ("*.log", Some(4)),
        (".*", None),
        ("*.a", Some(0)),
        ("?a", Some(0)),
        ("?", None),
        ("??", None),
        ("???", None),
        ("a*", None),
        ("*b*", None),
        ("a*b*c", Some(1)),
        ("**", None),
        ("a**b", None),
        ("*/a", None),
        ("*/*", None),
        ("*/.a", Some(1)),
        ("*/*.log", None),
        (".*/*.log", Some(1)),
        ("src/*/a", None),
        ("*?*?*", None),
        ("t*/d*/b*", None),
        (".env*", Some(2)),
        ("lat?n", Some(1)),
        ("?n?", Some(0)),
        ("日??", None),
        ("*\n*", Some(1)),
        ("x\\*y", Some(1)),
        ("x*y", Some(3)),
        ("x?y", Some(3)),
        // Backslashes.
        ("\\a", None),
        ("\\#hash", Some(1)),
        ("back\\\\slash", Some(1)),
        ("back\\slash", Some(0)),
        ("\\[x\\]", Some(1)),
        ("\\.env", Some(1)),
        ("a\\(b\\)", Some(1)),
        ("\\@(a|b)", Some(1)),
        // Brackets.
        ("[ab]", None),
        ("[!ab]", None),
        ("[^ab]", None),
        ("[a-c]", None),
        ("[c-a]", Some(0)),
        ("[]x]", None),
        ("[!]x]", None),
        ("[x]", Some(3)),
        ("[[x]", Some(3)),
        ("[a", Some(0)),
        ("a[b", Some(1)),
        ("[.]a", Some(0)),
        ("[.a]*", None),
        ("a[]b]b", Some(1)),
        ("a[!a-z]b", None),
        ("[0-9]", Some(2)),
        ("[[:digit:]]", Some(2)),
        ("[[:upper:]]*", None),
        ("[![:alnum:]]*", None),
        ("*[[:space:]]*", None),
        ("[[:punct:]]", None),
        ("[a[:digit:]]", None),
        ("[[:digit:]-9]", None),
        ("[a-]*", None),
        ("[\\]]", Some(1)),
        ("[\\!a]", None),
        ("[a-\\c]", None),
        ("lat[\u{80}-\u{10ffff}]n", None),
        ("[[:x]", None),
        ("[a/b]", Some(0)),
        ("*[]", None),
        // Groups.
        ("@(a|b)", None),
        ("?(a)b", None),
        ("*(a|b)", None),
        ("+(a|b)c", None),
        ("!(a)", None),
        ("!(a|b|*.log)", None),
        ("!(*)", None),
        ("+(a)b", Some(2)),
        ("@(a", None),
        ("a(b)", Some(1)),
        ("(a|b)", Some(1)),
        ("@(.env|.git)", Some(4)),
        ("!(.*)", None),
        (".!(env)", None),
        ("*.@(log|gz)", None),
        ("!(src)/a", None),
        ("@(src|dist)/@(a|dist)", None),
        ("?(.)a", None),
        ("*(.)a", None),
        ("+(?)", None),
        ("+([a-c])", None),
        ("@([]a]|b)", None),
        ("*@(b)*", None),
        ("@(a|@(b|c))", None),
        ("a?(+)b", None),
        ("!(!(a))", None),
        ("*(*).log", None),
        ("+(*).log", None),
        ("@(*).log", None),
        ("@(a\\b)", None),
        ("a!(b)", None),
        ("@()a", None),
        // The SDK's own mark.
        ("... a.log", None),
        ("... x", None),
    ];
    let everything = all(dir.path()).len();
    for &(pattern, gone) in cases {
        // These come to nothing for the SDK; mksquashfs knows them as a star.
        if pattern == "**" {
            continue;
        }
        let ours = select(dir.path(), pattern).unwrap();
        assert_as_mksquashfs(dir.path(), pattern, &ours);
        if let Some(gone) = gone {
            assert_eq!(everything - ours.len(), gone, "paths that {pattern:?} leaves out");
        }
    }
}

#[test]
fn several_patterns_leave_out_what_each_does() {
    let dir = crafted();
    let patterns = ["node_modules/.cache", "node_modules/.cache/f", "*.log", "src/a", "src", "**"];
    let selection = Selection::new(dir.path(), &patterns.map(String::from), false).unwrap();
    let together = kept(dir.path(), &selection);
    let each = patterns.map(|pattern| select(dir.path(), pattern).unwrap());
    let common = each.iter().fold(all(dir.path()), |paths, other| &paths & other);
    assert_eq!(together, common);
    assert_eq!(selection.warnings().len(), 1, "{:?}", selection.warnings());
    assert!(selection.warnings()[0].contains("\"**\""));
}

#[test]
fn globstars_mean_what_the_sdk_makes_of_them() {
    let dir = crafted();
    let cases = [
        ("**/node_modules/.cache", "node_modules/.cache"),
        ("**/.git", ".git"),
        ("dist/**", "dist"),
        ("src/**/a", "src/a"),
        ("**/**/*.log", "*.log"),
    ];
    for (globstar, plain) in cases {
        let ours = select(dir.path(), globstar).unwrap();
        assert_eq!(ours, select(dir.path(), plain).unwrap(), "{globstar}");
        assert_as_mksquashfs(dir.path(), plain, &ours);
    }
}

/// Before 4.6, what the SDK's own command leaves out is more than what it was asked for. Ours is
/// never more than that.
#[test]
fn nothing_is_left_out_that_the_sdk_would_keep() {
    let dir = crafted();
    for pattern in ["node_modules/.cache", "src/*/a", "@(src|dist)/*", "target/debug", ".*/*.log"] {
        let ours: BTreeSet<_> = lines(&select(dir.path(), pattern).unwrap()).into_iter().collect();
        let theirs = packed_by_the_sdk(dir.path(), pattern).unwrap();
        assert!(theirs.iter().all(|line| ours.contains(line)), "{pattern}");
    }
}

#[test]
fn patterns_that_cannot_be_meant_are_refused() {
    let dir = tree(["a", "b"]);
    // What the message names, and whether mksquashfs refuses it, too. If not, it matches nothing or
    // what no one would expect.
    let cases = [
        ("/a", "begins with /", true),
        ("./a", "begins with /", true),
        ("../a", "begins with /", true),
        ("/**/a", "begins with /", true),
        ("**/../a", "begins with /", true),
        (".", "component . or ..", false),
        ("a/../b", "component . or ..", false),
        ("a/.", "component . or ..", false),
        ("... ", "names nothing", false),
        ("a\\", "backslash", false),
        ("[[:digits:]]", "[:digits:]", false),
        ("[[=a=]]", "[=", false),
        ("[[.a.]]", "[.", false),
        ("@(a\\|b)", "backslash", false),
        ("@(?|b)(c)", "start of another", false),
        ("*!(a)", "behind a *", false),
        ("*?(+(a))", "behind a *", false),
        ("*?[!a]", "write ?*", false),
        ("*?(a", "not closed", false),
        ("@(\\[@(]|b)", "not closed", false),
        (&"a".repeat(5000), "4096", false),
        (&("@(".repeat(500) + &")".repeat(500)), "groups within", false),
    ];
    for (pattern, named, by_mksquashfs) in cases {
        let failure = select(dir.path(), pattern).unwrap_err();
        assert_eq!(failure.code, Code::Usage, "{pattern}");
        assert!(failure.message.contains(named), "{named} in {failure}");
        assert!(failure.hint.is_some());
        if by_mksquashfs {
            let normal = pattern.replace("/**/", "/").replace("**/", "");
            assert_eq!(packed_by_the_sdk(dir.path(), &normal), None, "{pattern}");
        }
    }
    let failure = select(dir.path(), "a\0b").unwrap_err();
    assert_eq!((failure.code, failure.message.contains("NUL")), (Code::Usage, true));
    for pattern in ["", "**", "**/", "/**"] {
        let selection = Selection::new(dir.path(), &[pattern.into()], false).unwrap();
        assert_eq!(kept(dir.path(), &selection), all(dir.path()));
        assert_eq!(selection.warnings().len(), 1, "{pattern}");
    }
}

/// Every name of one to three of these characters, some of them in a directory of each depth.
static SMALL: LazyLock<TempDir> = LazyLock::new(|| {
    let letters = ["a", "b", ".", "x"];
    let two = letters.iter().flat_map(|one| letters.map(|two| format!("{one}{two}")));
    let three = ["a.b", ".ab", "...", "bab", "a[b", "a!b", "b-a", "a\\b", "(a)", "a|b", "+(a"];
    let flat = letters.map(String::from).into_iter().chain(two);
    let names: Vec<_> =
        flat.chain(three.map(String::from)).filter(|name| name != "." && name != "..").collect();
    let nested = names.iter().flat_map(|name| [format!("d/{name}"), format!(".d/ab/{name}")]);
    tree(names.iter().cloned().chain(nested))
});

fn patterns() -> impl Strategy<Value = String> {
    let bracket = prop::collection::vec(
        prop::sample::select(vec!["a", "b", ".", "-", "a-b", "\\]", "!", "[:alpha:]", "[", "]"]),
        1..4,
    )
    .prop_flat_map(|members| {
        prop::sample::select(vec!["[", "[!", "[^"])
            .prop_map(move |open| open.to_owned() + &members.concat() + "]")
    });
    let plain =
        prop::sample::select(vec!["a", "b", ".", "x", "\\a", "\\[", "-", "(", ")", "|", "d"]);
    let leaf = prop_oneof![
        4 => plain.prop_map(String::from),
        2 => prop::sample::select(vec!["*", "?"]).prop_map(String::from),
        1 => bracket,
    ];
    let sequence = leaf.prop_recursive(3, 16, 3, |inner| {
        let alternative = prop::collection::vec(inner, 0..3).prop_map(|parts| parts.concat());
        let open = prop::sample::select(vec!["@(", "?(", "*(", "+(", "!("]);
        (open, prop::collection::vec(alternative, 1..3))
            .prop_map(|(open, parts)| format!("{open}{})", parts.join("|")))
    });
    let component = prop::collection::vec(sequence, 1..4).prop_map(|parts| parts.concat());
    let structured = prop::collection::vec(component, 1..3).prop_map(|parts| parts.join("/"));
    prop_oneof![3 => structured, 1 => "[ab.x*?!\\[\\]()|@+\\\\^/-]{1,7}"]
}

#[test]
fn random_patterns_leave_out_what_mksquashfs_leaves_out() {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(64);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(pattern in patterns())| {
        let root = SMALL.path();
        // What is refused is in a table of its own, and so is `**`.
        if let Ok(ours) = select(root, &pattern)
            && !pattern.contains("**")
        {
            assert_as_mksquashfs(root, &pattern, &ours);
        }
    });
}

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
        .args(["--exact", test, "--ignored", "--nocapture"])
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
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
    let root = PathBuf::from(std::env::var_os("SELECT_ROOT").unwrap());
    let selection = Selection::new(&root, &[], true).unwrap();
    assert_eq!(kept(&root, &selection), all(&root));
    assert!(selection.warnings()[0].contains("no git program"), "{:?}", selection.warnings());
}

#[test]
fn a_work_tree_of_somebody_else_is_a_failure() {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "a_work_tree_of_somebody_else_is_a_failure: SKIPPED, needs root to give one away"
        );
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
    let root = PathBuf::from(std::env::var_os("SELECT_ROOT").unwrap());
    let failure = Selection::new(&root, &[], true).unwrap_err();
    assert_eq!(failure.code, Code::Failed);
    assert!(failure.message.contains("dubious ownership"), "{failure}");
    assert!(failure.hint.unwrap().contains("safe.directory"));
}
