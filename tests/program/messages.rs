//! What the program says where something is wrong: whose fault it is, in whose words, and what to do.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::mount::{Bench, can_mount_with, write_tree};
use crate::support::place::Place;
use crate::support::s3::{Config, Fault, S3Server};
use crate::support::surrounding::Need;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The status of a command that failed, and its one line.
fn said(output: &Output) -> (i32, String) {
    let said = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    assert_eq!(said.lines().count(), 1, "{said}");
    (output.status.code().unwrap(), said)
}

#[test]
fn a_refusal_is_told_by_its_code_in_the_server_s_words_with_the_url() {
    let place = Place::s3();
    let url = format!("(GET {}/box/k.sqsh)", place.server.as_ref().unwrap().url());
    // Status and code of the answer; exit status, what is said, and what is not.
    let table = [
        (403, "AccessDenied", 4, "needs s3:GetObject", "AWS_ACCESS_KEY_ID"),
        (403, "RequestTimeTooSkewed", 4, "the clock of this machine", "AWS_ACCESS_KEY_ID"),
        (403, "InvalidObjectState", 4, "the object is archived", "s3:GetObject"),
        (403, "KMS.AccessDeniedException", 4, "kms:Decrypt", "s3:GetObject"),
        (400, "KMS.DisabledException", 8, "kms:Decrypt", "s3:GetObject"),
        (403, "InvalidAccessKeyId", 4, "does not know the key id", "s3:GetObject"),
        (403, "SignatureDoesNotMatch", 4, "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
        (403, "InvalidToken", 4, "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"),
        (400, "SomethingNew", 8, "400 (SomethingNew as asked)", "AWS_"),
        (501, "NotImplemented", 8, "501 (NotImplemented as asked)", "AWS_"),
        (301, "PermanentRedirect", 8, "set --region or --endpoint", "AWS_"),
        (404, "NoSuchKey", 3, "check the bucket and key", "AWS_"),
        (404, "NoSuchBucket", 3, "bucket box does not exist", "AWS_"),
    ];
    for (status, code, exit, expected, other) in table {
        place.server.as_ref().unwrap().heal();
        place.server.as_ref().unwrap().inject(Fault::Refuse(status, code), 1000);
        let (found, said) = said(&place.run(&["ls", "s3://box/k.sqsh"]));
        assert_eq!(found, exit, "{code}: {said}");
        for words in [expected, code, "as asked", &url] {
            assert!(said.contains(words), "{code}: {words:?} is not in {said}");
        }
        assert!(!said.contains(other), "{code}: {said}");
    }
}

#[test]
fn a_bucket_that_is_in_the_endpoint_too_is_told_with_the_url_that_was_asked() {
    let place = Place::s3();
    let endpoint = format!("{}/box", place.server.as_ref().unwrap().url());
    let source = "s3://box/pre/k.sqsh";
    let (status, said) = said(&place.run(&["ls", source, "--endpoint", &endpoint]));
    assert_eq!(status, 3, "{said}");
    assert!(said.contains(&format!("(GET {endpoint}/box/pre/k.sqsh)")), "{said}");
    assert!(said.contains("the endpoint names the bucket, too"), "{said}");
}

#[test]
fn a_presigned_url_is_blamed_for_itself_and_never_shown_whole() {
    let bench = Bench::new();
    let config = Config { keys: None, ..Config::new(bench.directory("buckets/box")) };
    let server = S3Server::start(config).unwrap();
    let url = format!("{}/box/k.sqsh?X-Amz-Signature=0123456789abcdef", server.url());
    for (status, code, expected) in [
        (403, "AccessDenied", "a presigned URL is good for one method"),
        (403, "SignatureDoesNotMatch", "quote it for the shell"),
        (403, "ExpiredToken", "get another"),
        (401, "", "USER:PASSWORD"),
    ] {
        server.heal();
        server.inject(Fault::Refuse(status, code), 1000);
        let (exit, said) = said(&bench.run(&["ls", &url]));
        assert_eq!(exit, 4, "{said}");
        assert!(said.contains(expected) && said.contains("/box/k.sqsh"), "{code}: {said}");
        assert!(!said.contains("0123456789") && !said.contains("AWS_"), "{code}: {said}");
    }
}

#[test]
fn new_users_slips_are_named() {
    let bench = Bench::new();
    let tree = bench.directory("tree");
    write_tree(&tree);
    let archive = bench.archive(&tree, "a.sqsh", &[]);
    let bucket = format!("file://{}", bench.directory("bucket").display());
    let (archive, tree) = (text(&archive), text(&tree));
    let noise = bench.path("noise");
    std::fs::write(&noise, [0xff, 0xfe, 0]).unwrap();
    let missing = bench.path("missing.sqsh");
    let id = "0f0f0f0f-1111-4222-8333-444444444444";
    let handle = format!("{{\"id\": \"{id}\", \"dir\": \"/w\"}}");
    let swapped = "the source comes first";
    let backup_first = "the backup comes first";
    let mount_it = "thawfs mount SOURCE DIR";
    let table: &[(&[&str], i32, &[&str])] = &[
        // Swapped.
        (&["mount", tree, archive], 10, &["a.sqsh is a source", swapped]),
        (&["mount", tree, "s3://bk/x.sqsh"], 10, &["s3://bk/x.sqsh is a source", swapped]),
        (&["mount", tree, "https://h/x.sqsh?sig=hidden"], 10, &["https://h/x.sqsh is", swapped]),
        (&["extract", tree, archive], 2, &["a.sqsh is a source", swapped]),
        (&["extract", tree, "s3://bk/x.sqsh"], 2, &["s3://bk/x.sqsh is a source", swapped]),
        (&["restore", tree, id], 15, &[id, backup_first]),
        (&["restore", tree, &handle], 15, &[id, backup_first]),
        (&["restore", tree], 15, &["is a directory", backup_first]),
        (&["create", "s3://bk/x", "--bucket", &bucket], 15, &["no URL", "--bucket"]),
        // A scheme with a slash too few.
        (&["ls", "s3:bk/x.sqsh"], 2, &["write s3://bk/x.sqsh"]),
        (&["ls", "s3:/bk/x.sqsh"], 2, &["write s3://bk/x.sqsh"]),
        (&["ls", "https:/h/x?sig=hidden"], 2, &["https:…"]),
        (&["list", "--bucket", "s3:bk"], 15, &["write s3://bk"]),
        (&["list", "--bucket", "bk"], 15, &["write s3://bk"]),
        // A directory, or nothing, as a source.
        (&["ls", tree], 3, &["tree/data.sqsh does not exist", "thawfs create"]),
        (&["ls", "bk/x.sqsh"], 3, &["bk/x.sqsh does not exist", "s3://BUCKET/KEY"]),
        // An archive where a backup is due.
        (&["restore", archive, "--bucket", &bucket], 15, &["a.sqsh is an archive", mount_it]),
        (&["restore", text(&missing)], 15, &["missing.sqsh is an archive", mount_it]),
        (&["restore", "s3://bk/x.sqsh"], 15, &["s3://bk/x.sqsh is an archive", mount_it]),
        (&["restore", text(&noise)], 15, &["noise: it is not text", "what create prints"]),
    ];
    for (arguments, status, words) in table {
        let (found, said) = said(&bench.run(arguments));
        assert_eq!(found, *status, "{arguments:?}: {said}");
        for words in *words {
            assert!(said.contains(words), "{arguments:?}: {words:?} is not in {said}");
        }
        assert!(!said.contains("hidden"), "{arguments:?}: {said}");
    }
    let mut left: Vec<_> = std::fs::read_dir(bench.path("")).unwrap().collect();
    left.retain(|entry| entry.as_ref().unwrap().file_name() == "s3:");
    assert!(left.is_empty(), "a slip made a directory");
}

#[test]
fn a_usage_error_in_json_names_what_is_missing() {
    let bench = Bench::new();
    for (arguments, message, hint) in [
        (&["mount", "a.sqsh"][..], "arguments were not provided: <DIR>", "thawfs mount"),
        (&["mount"], "arguments were not provided: <SOURCE> <DIR>", "thawfs mount"),
        (&["prune"], "<--expired|--older-than", "thawfs prune"),
        (&["ls", "a", "--recursiv"], "unexpected argument '--recursiv' found", "'--recursive'"),
        (&["completions", "fishy"], "invalid value 'fishy' for '<SHELL>' [possible", "'fish'"),
        (&["mount", "a", "b", "--offset", "x"], "invalid value 'x' for '--offset", "--help"),
        (&["frobnicate"], "unrecognized subcommand 'frobnicate'", "thawfs"),
        (&[], "a command is missing", "--help"),
    ] {
        let output = bench.run(&[arguments, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let failure: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(failure["code"], "USAGE", "{failure}");
        assert!(failure["message"].as_str().unwrap().contains(message), "{failure}");
        assert!(failure["hint"].as_str().unwrap().contains(hint), "{failure}");
    }
}

#[test]
fn a_device_that_may_not_be_opened_is_named_in_a_root_mapped_namespace() {
    // It goes into a surrounding of its own.
    if !can_mount_with(
        "a_device_that_may_not_be_opened_is_named_in_a_root_mapped_namespace",
        &[Need::Root],
    ) {
        return;
    }
    let bench = Bench::new();
    write_tree(&bench.directory("tree"));
    let archive = bench.archive(&bench.path("tree"), "data.sqsh", &[]);
    let (mountpoint, state) = (bench.directory("mnt"), bench.directory("state"));
    let program = bench.path("thawfs");
    std::fs::copy(env!("CARGO_BIN_EXE_thawfs"), &program).unwrap();
    for path in [&mountpoint, &state] {
        std::os::unix::fs::chown(path, Some(65_534), Some(65_534)).unwrap();
    }
    // As the device is where its mode is 0600: root's, and root of a namespace is not root.
    let closed = bench.path("closed");
    std::fs::write(&closed, "").unwrap();
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o600)).unwrap();
    let script = format!(
        "mount --bind {} /dev/fuse && exec {} mount {} {}",
        text(&closed),
        text(&program),
        text(&archive),
        text(&mountpoint)
    );
    let namespace = ["unshare", "--map-root-user", "--mount", "sh", "-c", &script];
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(namespace)
        .env("THAWFS_STATE_DIR", &state)
        .env("HOME", bench.path(""))
        .output()
        .unwrap();
    let (status, said) = said(&output);
    assert_eq!(status, 12, "{said}");
    assert!(said.contains("cannot open /dev/fuse: Permission denied"), "{said}");
    assert!(said.contains("its mode") && !said.contains("CAP_SYS_ADMIN"), "{said}");
}

#[test]
fn a_bucket_that_was_named_is_there_and_the_default_one_may_be_empty() {
    let bench = Bench::new();
    let tree = bench.directory("tree");
    write_tree(&tree);
    let typo = format!("file://{}", bench.path("typo").display());
    let id = "0f0f0f0f-1111-4222-8333-444444444444";
    let commands: [&[&str]; 6] = [
        &["list"],
        &["prune", "--expired"],
        &["prune", "--uploads"],
        &["show", id],
        &["delete", id],
        &["verify", id],
    ];
    let config = bench.directory(".config/thawfs").join("config.toml");
    for command in commands {
        let named = bench.thawfs().args(command).args(["--bucket", &typo]).output().unwrap();
        let variable = bench.thawfs().args(command).env("THAWFS_BUCKET", &typo).output().unwrap();
        std::fs::write(&config, format!("bucket = \"{typo}\"\n")).unwrap();
        let configured = bench.run(command);
        std::fs::remove_file(&config).unwrap();
        for output in [named, variable, configured] {
            let (status, said) = said(&output);
            assert_eq!(status, 3, "{command:?}: {said}");
            assert!(said.contains("typo does not exist"), "{command:?}: {said}");
        }
        // Nobody named this one, and it is not made yet.
        let expected = if command.contains(&id) { 16 } else { 0 };
        assert_eq!(bench.run(command).status.code(), Some(expected), "{command:?}");
    }
    let file = format!("file://{}", bench.path("tree/hello").display());
    let (status, said) = said(&bench.run(&["list", "--bucket", &file]));
    assert!(status == 3 && said.contains("hello is not a directory"), "{said}");
    // To back up into it makes it, and one that is empty is there.
    bench.ok(&["create", text(&tree), "--bucket", &typo, "-q"]);
    assert!(bench.ok(&["list", "--bucket", &typo]).contains("ok"));
    let empty = format!("file://{}", bench.directory("empty").display());
    bench.ok(&["list", "--bucket", &empty]);
}

#[test]
fn nothing_is_left_in_a_bucket_that_is_not_there() {
    let place = Place::s3();
    let tree = place.bench.directory("tree");
    write_tree(&tree);
    let output = place.run(&["create", tree.to_str().unwrap(), "--bucket", "s3://no-such-bucket"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("no-such-bucket does not exist"), "{told}");
    assert!(!told.contains("may be left"), "{told}");
}

#[test]
fn a_server_that_breaks_connections_is_tried_until_the_deadline_and_one_that_is_not_there_is_not() {
    let bench = Bench::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let taken = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&taken);
    std::thread::spawn(move || {
        // A connection that is dropped with what it has been sent unread is reset.
        for connection in listener.incoming() {
            count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(20));
            drop(connection);
        }
    });
    let ls = |port: u16| {
        let url = format!("http://127.0.0.1:{port}/a.sqsh");
        said(&bench.run(&["ls", &url, "--timeout", "4", "--disk-cache", "off"])).1
    };
    let told = ls(port);
    assert!(told.contains("gave up after") && told.contains("cannot talk to"), "{told}");
    assert!(taken.load(std::sync::atomic::Ordering::SeqCst) > 4, "{taken:?}");
    // Nobody listens at port 1.
    let told = ls(1);
    assert!(told.contains("refused") && !told.contains("gave up"), "{told}");
}
