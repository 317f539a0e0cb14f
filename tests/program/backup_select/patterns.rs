//! Patterns, beside mksquashfs with the arguments that the SDK gives it.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use proptest::prelude::*;
use tempfile::TempDir;
use thawfs::backup::Selection;
use thawfs::failure::{Code, Failure};

use super::{add, all, kept, tree};

fn select(root: &Path, pattern: &str) -> Result<BTreeSet<PathBuf>, Failure> {
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
    // None: mksquashfs refuses the pattern.
    let shown = theirs.as_deref().map(text);
    let same = theirs.as_ref() == Some(&ours);
    assert!(same, "{pattern:?}\nours:\n{}\ntheirs:\n{shown:?}", text(&ours));
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
        (&("@(".repeat(5) + &")".repeat(5)), "groups within", false),
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
