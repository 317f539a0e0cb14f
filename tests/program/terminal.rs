//! What others named or wrote, on a real terminal: shown, and never obeyed. And raw, where that is wanted.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::mount::{Bench, can_mount};
use crate::support::surrounding::{Need, cannot_run};
use crate::support::words::{NOBODY, as_nobody, said, text};

/// Clears a screen, rings, ends a line, in both sets of controls; turns the direction; is not UTF-8.
const EVIL: &[u8] = b"e\x1b[2J\x07\n\r\xc2\x9b31m\xe2\x80\xae\xd8\x9c\xe2\x81\xa6\xff\x9bend";

/// How a terminal is shown it.
const SHOWN: &str = "e\\u{1b}[2J\\u{7}\\n\\r\\u{9b}31m\\u{202e}\\u{61c}\\u{2066}\\xff\\x9bend";

fn evil() -> OsString {
    OsString::from_vec(EVIL.to_vec())
}

/// A bench with an archive whose file and link have evil names; and that archive.
fn prepared() -> (Bench, PathBuf) {
    let bench = Bench::new();
    let tree = bench.directory("tree");
    std::fs::create_dir(tree.join(evil())).unwrap();
    std::fs::write(tree.join(evil()).join(evil()), "contents").unwrap();
    std::os::unix::fs::symlink(evil(), tree.join("link")).unwrap();
    let archive = bench.archive(&tree, "data.sqsh", &[]);
    (bench, archive)
}

/// Quotes for the shell that script(1) has run a command.
fn quoted(argument: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for byte in argument.as_bytes() {
        match byte {
            b'\'' => quoted.extend(b"'\\''"),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

/// Runs thawfs on a terminal of its own, standard output and error alike, and gives what came to it.
fn on_terminal(bench: &Bench, variables: &[(&str, &OsStr)], arguments: &[&OsStr]) -> Vec<u8> {
    let thawfs = bench.thawfs();
    let mut line = b"exec ".to_vec();
    for word in std::iter::once(thawfs.get_program()).chain(arguments.iter().copied()) {
        line.extend(quoted(word));
        line.push(b' ');
    }
    let mut script = Command::new("script");
    for (name, value) in thawfs.get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    script.args(["--quiet", "--command"]).arg(OsString::from_vec(line)).arg("/dev/null");
    script.envs(variables.iter().copied()).env("SHELL", "/bin/sh").stdin(Stdio::null());
    script.output().expect("script(1) is installed").stdout
}

/// Insists that a terminal shows this, and obeys none of it but the ends of lines.
fn check_harmless(case: &str, shown: &[u8], expected: &[&str]) {
    let text = std::str::from_utf8(shown);
    assert!(text.is_ok(), "{case}: not UTF-8: {}", shown.escape_ascii());
    let text = text.unwrap();
    for c in text.replace("\r\n", "").chars() {
        let turns = matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
            || matches!(c, '\u{2066}'..='\u{2069}');
        assert!(!c.is_control() && !turns, "{case}: {c:?} in {}", shown.escape_ascii());
    }
    for expected in expected {
        assert!(text.contains(expected), "{case}: no {expected} in {text}");
    }
}

#[test]
fn a_listing_is_shown_on_a_terminal_and_raw_elsewhere() {
    let (bench, archive) = prepared();
    let archive = archive.as_os_str();
    let [ls, long, all, null, json] = ["ls", "-l", "-R", "-0", "--json"].map(OsStr::new);
    let below = format!("{SHOWN}/{SHOWN}");
    for (arguments, expected) in [
        (&[ls, archive][..], SHOWN),
        (&[ls, long, archive], &format!("link -> {SHOWN}")),
        (&[ls, all, archive], &below),
        (&[ls, json, archive], "\"pathBase64\""),
        // A name that is not there comes back in the failure.
        (&[ls, archive, OsStr::new("no\u{9b}\u{202e}\x1b[2J")], "no\\u{9b}\\u{202e}\\u{1b}[2J"),
        (&[OsStr::new("cat"), archive, &evil()], "is a directory"),
        (&[ls, OsStr::new("no\u{9b}\x1b[2J.sqsh")], "no\\u{9b}\\u{1b}[2J.sqsh does not exist"),
        (&[ls, archive, OsStr::new("--no\x1b[2J\u{9b}")], "--no\\u{9b}"),
    ] {
        let shown = on_terminal(&bench, &[], arguments);
        check_harmless(&format!("{arguments:?}"), &shown, &[expected]);
    }
    // Raw to a pipe, and with -0 wherever.
    let piped = bench.thawfs().args([ls, archive]).output().unwrap().stdout;
    assert_eq!(piped, [EVIL, b"\nlink\n"].concat());
    let piped = bench.thawfs().args([ls, long, archive]).output().unwrap().stdout;
    assert!(piped.ends_with(&[b"link -> ", EVIL, b"\n"].concat()), "{}", piped.escape_ascii());
    let piped = bench.thawfs().args([ls, null, archive]).output().unwrap().stdout;
    assert_eq!(piped, [EVIL, b"\0link\0"].concat());
    let raw = on_terminal(&bench, &[], &[ls, null, archive]);
    assert!(raw.windows(4).any(|bytes| bytes == b"\x1b[2J"), "{}", raw.escape_ascii());

    // As JSON: what can be shown, and the bytes beside it.
    let listed = bench.thawfs().args([ls, json, archive]).output().unwrap().stdout;
    let listed: serde_json::Value = serde_json::from_slice(&listed).unwrap();
    let base64 = |bytes| base64::Engine::encode(&base64::prelude::BASE64_STANDARD, bytes);
    let lossy = String::from_utf8_lossy(EVIL);
    assert_eq!(
        (&listed[0]["path"], &listed[0]["pathBase64"]),
        (&lossy[..].into(), &base64(EVIL).into())
    );
    assert_eq!(listed[1]["target"], lossy[..]);
    assert_eq!(listed[1]["targetBase64"], base64(EVIL));
    assert_eq!((&listed[1]["path"], listed[1].get("pathBase64")), (&"link".into(), None));
}

#[test]
fn what_a_bucket_says_of_its_backups_is_shown() {
    let bench = Bench::new();
    let id = "0f0f0f0f-1111-4222-8333-444444444444";
    let place = bench.directory(&format!("bucket/backups/{id}"));
    let meta = serde_json::json!({
        "id": id, "dir": "/d\u{1b}[2J\u{202e}", "name": "n\u{9b}31m\u{2066}", "sizeBytes": 1,
        "ttl": 259_200, "createdAt": "2026-01-01T00:00:00.000Z",
    });
    std::fs::write(place.join("meta.json"), meta.to_string()).unwrap();
    std::fs::write(place.join("data.sqsh"), "x").unwrap();
    let bucket = format!("file://{}", bench.path("bucket").display());
    let (dir, name) = ("/d\\u{1b}[2J\\u{202e}", "n\\u{9b}31m\\u{2066}");
    for (arguments, expected) in [
        (&["list"][..], &[dir, name][..]),
        (&["show", id], &[dir, name]),
        (&["list", "--json"], &["/d\\u001b[2J\\u202e", "n\\u009b31m\\u2066"]),
        (&["show", id, "--json"], &["/d\\u001b[2J\\u202e", "n\\u009b31m\\u2066"]),
        (&["prune", "--older-than", "1d", "--dry-run"], &[id, dir]),
    ] {
        let mut words: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        words.extend([OsStr::new("--bucket"), OsStr::new(&bucket)]);
        check_harmless(&format!("{arguments:?}"), &on_terminal(&bench, &[], &words), expected);
    }
    let listed = bench.ok(&["list", "--json", "--bucket", &bucket]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["dir"], "/d\u{1b}[2J\u{202e}");
}

#[test]
fn what_create_may_not_read_is_listed_line_by_line() {
    if cannot_run("what_create_may_not_read_is_listed_line_by_line", &[Need::Root]) {
        return;
    }
    let bench = Bench::new();
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    open(&bench.path(""), 0o755);
    let tree = bench.directory("tree");
    std::fs::create_dir(tree.join("d\u{1b}[31m\nroot")).unwrap();
    for name in ["may", "d\u{1b}[31m\nroot/x", "may-not"] {
        std::fs::write(tree.join(name), "contents").unwrap();
        open(&tree.join(name), if name == "may" { 0o644 } else { 0 });
    }
    let bucket = bench.directory("bucket");
    let program = bench.path("thawfs");
    std::fs::copy(env!("CARGO_BIN_EXE_thawfs"), &program).unwrap();
    for path in [&bucket, &bench.directory("state")] {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let create = |more: &[&str]| {
        as_nobody(&program)
            .args(["create", text(&tree), "--bucket", &format!("file://{}", bucket.display())])
            .args(more)
            .env("THAWFS_STATE_DIR", bench.state_dir())
            .env("HOME", bench.path(""))
            .env_remove("XDG_CONFIG_HOME")
            .output()
            .unwrap()
    };
    let shown = tree.display();
    let output = create(&["-q"]);
    assert_eq!(output.status.code(), Some(18), "{}", said(&output));
    let lines = said(&output);
    let (first, list) = lines.split_once('\n').unwrap();
    assert!(first.contains("permission denied") && first.contains("chmod -R a+rX"), "{lines}");
    assert!(first.ends_with(':'), "{lines}");
    assert_eq!(list, format!("  {shown}/d\\u{{1b}}[31m\\nroot/x\n  {shown}/may-not\n"));
    let output = create(&["--json"]);
    assert_eq!(output.status.code(), Some(18), "{}", said(&output));
    let failure: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let files = ["d\u{1b}[31m\nroot/x", "may-not"].map(|name| format!("{shown}/{name}"));
    assert_eq!(failure["list"], serde_json::json!(files));
    assert!(!failure["message"].as_str().unwrap().contains("may-not"), "{failure}");
}

#[test]
fn a_log_on_a_terminal_is_shown() {
    let (bench, archive) = prepared();
    let bucket = bench.directory("buckets/box");
    std::fs::copy(&archive, bucket.join("data.sqsh")).unwrap();
    let config = crate::support::s3::Config {
        keys: None,
        ..crate::support::s3::Config::new(bench.path("buckets"))
    };
    let server = crate::support::s3::S3Server::start(config).unwrap();
    let url = format!("{}/box/data.sqsh", server.url());
    let cache = OsStr::new("/dev/null/\u{9b}31m\u{202e}\x1b[2J");
    let arguments = [OsStr::new("ls"), OsStr::new(&url)];
    let settings = [("THAWFS_CACHE_DIR", cache), ("THAWFS_DISK_CACHE", OsStr::new("64M"))];
    let shown = on_terminal(&bench, &settings, &arguments);
    check_harmless(
        "log",
        &shown,
        &["no disk cache in /dev/null/\\u{9b}31m\\u{202e}\\u{1b}[2J", SHOWN],
    );
}

#[test]
fn a_mountpoint_of_any_bytes_is_mounted_shown_and_told() {
    if !can_mount("a_mountpoint_of_any_bytes_is_mounted_shown_and_told") {
        return;
    }
    let (bench, archive) = prepared();
    let mountpoint = bench.path("").join(evil());
    std::fs::create_dir(&mountpoint).unwrap();
    let (archive, at) = (archive.as_os_str(), mountpoint.as_os_str());
    let [mount, status, unmount, json] = ["mount", "status", "unmount", "--json"].map(OsStr::new);
    // Paths are text in a message, where what is no text has a sign of its own.
    let shown = "e\\u{1b}[2J\\u{7}\\n\\r\\u{9b}31m\\u{202e}\\u{61c}\\u{2066}\u{fffd}\u{fffd}end";
    let quiet = OsStr::new("--read-only");
    check_harmless("mount", &on_terminal(&bench, &[], &[mount, quiet, archive, at]), &[shown]);
    assert_eq!(std::fs::read_link(mountpoint.join("link")).unwrap(), Path::new(&evil()));
    check_harmless("mount again", &on_terminal(&bench, &[], &[mount, archive, at]), &[shown]);
    check_harmless("status", &on_terminal(&bench, &[], &[status]), &[shown]);
    let told = on_terminal(&bench, &[], &[status, json]);
    check_harmless("status --json", &told, &["mountpointBase64"]);
    let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
    let bytes = told[0]["mountpointBase64"].as_str().unwrap();
    let bytes = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, bytes).unwrap();
    assert_eq!(bytes, at.as_bytes());
    assert_eq!(told[0]["mountpoint"], mountpoint.to_string_lossy()[..]);
    assert_eq!(told[0]["upper"], serde_json::Value::Null);
    check_harmless("unmount", &on_terminal(&bench, &[], &[unmount, at]), &[]);
    check_harmless("unmount again", &on_terminal(&bench, &[], &[unmount, at]), &[shown]);
    bench.assert_nothing_left();
}
