//! Files over HTTP: `thawfs serve-files`, asked by the published clients and by hand.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::files::{Service, frame, read_until, request, watch_request};
use crate::support::mount::{Bench, can_mount_with, write_tree};
use crate::support::surrounding::{Need, cannot_run, skip};
use crate::support::words::{eventually, said, text};

/// Where the published clients are, which are installed once; `None` where they cannot be had.
fn clients(test: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let installed = Command::new(root.join("scripts/clients")).output().unwrap();
    if !installed.status.success() {
        skip(test, &format!("no clients: {}", String::from_utf8_lossy(&installed.stderr)));
        return None;
    }
    Some(root.join("target/clients"))
}

/// A control plane that has one answer: where to find the token.
fn control_plane(token: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let told = json!({
        "templateID": "t", "sandboxID": "x", "clientID": "c", "envdVersion": "0.6.13",
        "envdAccessToken": token, "domain": null,
    });
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut text = Vec::new();
            let mut some = [0; 4096];
            while !text.windows(4).any(|end| end == b"\r\n\r\n") {
                let len = stream.read(&mut some).unwrap();
                text.extend_from_slice(&some[..len]);
            }
            let body = told.to_string();
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close";
            write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        }
    });
    url
}

/// What a client tells, by what it tells of.
fn run_client(name: &str, service: &Service, dir: &Path, plane: Option<&str>, at: &Path) -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    let mut command = Command::new("timeout");
    command.args(["120"]);
    match name {
        "watch.mjs" => {
            // Packages are looked for from where the program is.
            let program = at.join(name);
            std::fs::copy(root.join(name), &program).unwrap();
            command.arg("node").arg(program).env("CLIENTS", &root);
        }
        name => {
            command.arg(at.join("python/bin/python")).arg(root.join(name));
        }
    }
    command.args([&service.url, text(dir)]).env("PYTHONDONTWRITEBYTECODE", "1");
    if let Some(plane) = plane {
        let key = format!("e2b_{}", "0".repeat(40));
        command.arg("token").env("E2B_API_URL", plane).env("E2B_API_KEY", key);
        command.env("E2B_SANDBOX_URL", &service.url);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {}: {said}", output.status);
    let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let told = lines.map(|line| serde_json::from_slice::<(String, Value)>(line).unwrap());
    Value::Object(told.collect())
}

#[test]
fn the_published_clients_work_unchanged() {
    // They are installed by root, once, and are the same everywhere.
    if cannot_run("the_published_clients_work_unchanged", &[Need::Root, Need::Processes]) {
        return;
    }
    let Some(at) = clients("the_published_clients_work_unchanged") else { return };
    let bench = Bench::new();
    let token = bench.path("token");
    std::fs::write(&token, "let-me-in\n").unwrap();
    let plane = control_plane("let-me-in");
    let open = Service::start(&bench, &[]);
    let guarded = Service::start(&bench, &["--token-file", text(&token)]);
    let mounted = mount("the_published_clients_work_unchanged", &bench);
    for (place, guards) in [("plain", false), ("plain", true), ("mnt", true), ("mnt", false)] {
        if place == "mnt" && !mounted {
            continue;
        }
        for (name, suffix) in
            [("sync.py", "Exception"), ("async.py", "Exception"), ("watch.mjs", "Error")]
        {
            let dir = bench.path(place).join(format!("{name}-{guards}"));
            std::fs::create_dir_all(dir.join("sub")).unwrap();
            std::fs::write(dir.join("file"), "abc").unwrap();
            std::fs::write(dir.join("sub/x"), "").unwrap();
            std::os::unix::fs::symlink("file", dir.join("link")).unwrap();
            let service = if guards { &guarded } else { &open };
            let told = run_client(name, service, &dir, guards.then_some(&plane), &at);
            let is = |what: &str, value: Value| {
                assert_eq!(told[what], value, "{what}, {name}, {place}, with a token: {guards}");
            };
            is("running", json!(true));
            is("exists", json!([true, false, true]));
            is("list 2", json!(["/file", "/link", "/sub", "/sub/x"]));
            let failures = ["FileNotFound", "InvalidArgument", "FileNotFound", "InvalidArgument"];
            let failures = failures.iter().chain(&["FileNotFound"]);
            is("failures", failures.map(|failure| format!("{failure}{suffix}")).collect());
            is(
                "recursive",
                json!([
                    "create new",
                    "create new/below",
                    "create new/below/file",
                    "write new/below/file",
                    "chmod new/below/file",
                    "rename new/below/file",
                    "create moved",
                    "rename new",
                    "create renamed",
                    "remove moved",
                    "remove renamed/below",
                ]),
            );
            is(
                "flat",
                json!([
                    "create new",
                    "create moved",
                    "rename new",
                    "create renamed",
                    "remove moved"
                ]),
            );
            // Of what is there by the time it is told.
            assert!(told["entry"].as_array().unwrap().contains(&json!("/renamed")), "{told}");
            if name == "watch.mjs" || name == "async.py" {
                is("timeout", json!(format!("Timeout{suffix}")));
            }
            if name == "sync.py" {
                is("again", json!(0));
                is("stopped", json!("SandboxException"));
                is("made", json!([true, false]));
                is("moved", json!("/other/y"));
                is("removed", json!(["file", "link", "renamed", "sub"]));
            }
            if name != "watch.mjs" {
                is(
                    "info",
                    json!([
                        ["file", "file", 3, "0o644", "-rw-r--r--", null],
                        ["link", "symlink", 4, "0o777", "Lrwxrwxrwx", "file"],
                    ]),
                );
            }
        }
    }
    // One that has no room on disk for what is yet to be asked for.
    let mut command = bench.thawfs();
    command.env("TMPDIR", bench.path("none"));
    let small = Service::spawn(command, &[]);
    for place in ["plain", "mnt"].iter().filter(|place| mounted || **place == "plain") {
        let dir = bench.path(place).join("sync.py-false");
        let told = run_client("overflow.py", &small, &dir, None, &at);
        assert_eq!(told["overflow"], json!(["SandboxException", true]), "{place}");
    }
    drop((open, guarded, small));
    if mounted {
        bench.ok(&["unmount", text(&bench.path("mnt"))]);
    }
}

/// Mounts something at `mnt`, if this surrounding can.
fn mount(test: &str, bench: &Bench) -> bool {
    if !can_mount_with(test, &[Need::Processes]) {
        return false;
    }
    write_tree(&bench.directory("tree"));
    let archive = bench.archive(&bench.path("tree"), "data.sqsh", &["-comp", "zstd"]);
    bench.ok(&["-q", "mount", text(&archive), text(&bench.directory("mnt"))]);
    true
}

#[test]
fn whoever_asks_wrongly_is_told_so() {
    let bench = Bench::new();
    let root = bench.directory("root");
    let token = bench.path("token");
    std::fs::write(&token, "let-me-in\n").unwrap();
    std::os::unix::fs::symlink("/etc", root.join("out")).unwrap();
    std::fs::write(root.join("file"), "").unwrap();
    let service = Service::start(&bench, &["--root", text(&root), "--token-file", text(&token)]);
    let good = "X-Access-Token: let-me-in";
    let stat = |path: &str, headers: &[&str]| {
        let (status, body) = service.call("Stat", &json!({ "path": path }), headers);
        (status, body["code"].clone())
    };
    let file = root.join("file");
    // Who it is.
    assert_eq!(stat(text(&file), &[good]).0, 200);
    for headers in [&[][..], &["X-Access-Token: let-me-i"], &["X-Access-Token: let-me-inn"]] {
        assert_eq!(stat(text(&file), headers), (401, json!(401)), "{headers:?}");
    }
    let basic = |name: &str| {
        use base64::Engine;
        let name = base64::prelude::BASE64_STANDARD.encode(format!("{name}:"));
        format!("Authorization: Basic {name}")
    };
    assert_eq!(stat(text(&file), &[good, &basic("root")]).0, 200);
    for header in
        [&basic("nobody-of-that-name"), "Authorization: Basic !", "Authorization: Bearer x"]
    {
        let answer = stat(text(&file), &[good, header]);
        assert_eq!(answer, (401, json!("unauthenticated")), "{header}");
    }
    // Where it leads.
    for (path, expected) in [
        (text(&root.join("none")), (404, json!("not_found"))),
        (text(&root.join("file/x")), (400, json!("invalid_argument"))),
        ("/etc/passwd", (400, json!("invalid_argument"))),
        ("../../etc/passwd", (400, json!("invalid_argument"))),
        (text(&root.join("../token")), (400, json!("invalid_argument"))),
        (text(&root.join("out/passwd")), (400, json!("invalid_argument"))),
        ("a\0b", (400, json!("invalid_argument"))),
    ] {
        assert_eq!(stat(path, &[good]), expected, "{path}");
    }
    for method in ["ListDir", "CreateWatcher", "MakeDir", "Remove"] {
        let (status, _) = service.call(method, &json!({ "path": "out/passwd" }), &[good]);
        assert_eq!(status, 400, "{method}");
    }
    let moved = json!({ "source": "file", "destination": "out/file" });
    assert_eq!(service.call("Move", &moved, &[good]).0, 400);
    assert_eq!(service.call("Remove", &json!({ "path": "." }), &[good]).0, 400);
    assert_eq!(service.call("Remove", &json!({ "path": "none" }), &[good]).0, 200);
    assert!(Path::new("/etc/passwd").exists() && file.exists());
    // How it is asked.
    let unary = "application/json";
    let status = |request: &[u8]| {
        let answer = service.send(request);
        answer.split(' ').nth(1).unwrap_or_else(|| panic!("{answer:?}")).to_owned()
    };
    for (request, expected) in [
        (request("Stat", "application/proto", "{}", &[good]), "415"),
        (request("Stat", "application/connect+json", "{}", &[good]), "415"),
        (request("WatchDir", unary, "{}", &[good]), "415"),
        (request("Stat", "application/json; charset=utf-8", "{\"path\":\"\"}", &[good]), "200"),
        (request("Stat", unary, "{}", &[good, "Content-Encoding: gzip"]), "501"),
        (request("Stat", unary, "{}", &[good, "Content-Encoding: identity"]), "200"),
        (request("Stat", unary, "{}", &[good, "Connect-Protocol-Version: 2"]), "400"),
        (request("Stat", unary, "{}", &[good, "Connect-Timeout-Ms: x"]), "400"),
        (request("Stat", unary, "{", &[good]), "400"),
        (request("Stat", unary, "[]", &[good]), "400"),
        (request("Stat", unary, r#"{"path":null,"more":1}"#, &[good]), "200"),
        (request("Stat", unary, &" ".repeat(300 << 10), &[good]), "429"),
        (request("Nothing", unary, "{}", &[good]), "404"),
        (b"GET /filesystem.Filesystem/Stat HTTP/1.1\r\nHost: localhost\r\nX-Access-Token: let-me-in\r\nConnection: close\r\n\r\n".to_vec(), "405"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_vec(), "204"),
        (b"\x16\x03\x01".repeat(100), "400"),
    ] {
        assert_eq!(status(&request), expected, "{}", String::from_utf8_lossy(&request[..60]));
    }
}

#[test]
fn without_a_token_no_browser_is_led_to_the_service() {
    let bench = Bench::new();
    let root = bench.directory("root");
    let service = Service::start(&bench, &["--root", text(&root)]);
    let kind = "application/json";
    for (old, new, expected) in [
        ("", "", "200"),
        ("Host: localhost", "Host: 127.0.0.1:1", "200"),
        ("Host: localhost", "Host: evil.example", "403"),
        ("Host: localhost", "Host: localhost\r\nOrigin: http://evil.example", "403"),
        ("Host: localhost", "Host: localhost\r\nOrigin: http://localhost:3000", "200"),
    ] {
        let sent = String::from_utf8(request("Stat", kind, "{\"path\":\"\"}", &[])).unwrap();
        let answer = service.send(sent.replacen(old, new, 1).as_bytes());
        assert_eq!(answer.split(' ').nth(1), Some(expected), "{new:?}: {answer}");
    }
}

#[test]
fn a_broken_stream_is_told_so_and_let_go_of() {
    let bench = Bench::new();
    let root = bench.directory("root");
    std::fs::write(root.join("file"), "").unwrap();
    let service = Service::start(&bench, &["--root", text(&root)]);
    // What it asks inotify with stays, and what interrupts the wait for that.
    let before = service.descriptors() + 2;
    let kind = "application/connect+json";
    let with_length = |frame: &[u8], length: usize| {
        let length = format!("Content-Length: {length}");
        [request("WatchDir", kind, "", &[&length]), frame.to_vec()].concat()
    };
    let good = frame(0, "{}");
    for (sent, expected) in [
        // A GiB that never comes.
        (with_length(&[0, 0x40, 0, 0, 0], (1 << 30) + 5), "resource_exhausted"),
        (with_length(&[0, 0x40, 0, 0, 0, b'{'], 6), "resource_exhausted"),
        (with_length(&good[..4], 4), "half a frame"),
        (with_length(&good[..6], 6), "half a frame"),
        (with_length(&frame(1, "{}"), 7), "invalid_argument"),
        (with_length(&frame(2, "{}"), 7), "invalid_argument"),
        (with_length(&frame(2, ""), 5), "invalid_argument"),
        (with_length(&frame(3, "{}"), 7), "invalid_argument"),
        (with_length(&frame(0x80, "{}"), 7), "invalid_argument"),
        (with_length(&[good.clone(), frame(2, "{}")].concat(), 14), "unimplemented"),
        (with_length(&[good.clone(), good.clone()].concat(), 14), "unimplemented"),
        (with_length(&frame(0, "x"), 6), "invalid_argument"),
        (watch_request(&json!({ "path": "none" }), &[]), "not_found"),
        (watch_request(&json!({ "path": "file" }), &[]), "invalid_argument"),
        (watch_request(&json!({ "path": "/" }), &[]), "invalid_argument"),
        (watch_request(&json!({}), &["Authorization: Basic bm9uZS1zdWNoOg=="]), "unauthenticated"),
        (watch_request(&json!({}), &["Connect-Content-Encoding: gzip"]), "unimplemented"),
        (watch_request(&json!({}), &["Connect-Timeout-Ms: 300"]), "deadline_exceeded"),
    ] {
        let answer = service.send(&sent);
        assert!(answer.contains(expected), "{expected}: {answer:?}");
    }
    // Clients that go in mid-stream leave nothing.
    eventually("those before are closed", || service.descriptors() <= before);
    let mut streams: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = service.connect();
            stream.write_all(&watch_request(&json!({ "recursive": true }), &[])).unwrap();
            read_until(&mut stream, "start");
            stream
        })
        .collect();
    eventually("all are taken", || service.descriptors() >= before + 20);
    std::fs::write(root.join("x"), "").unwrap();
    for stream in &mut streams {
        read_until(stream, "EVENT_TYPE_CREATE");
    }
    drop(streams);
    eventually("their connections are closed", || service.descriptors() <= before);
}

#[test]
fn a_quiet_stream_is_kept_alive() {
    let bench = Bench::new();
    let root = bench.directory("root");
    let service = Service::start(&bench, &["--root", text(&root)]);
    let mut stream = service.connect();
    let begun = Instant::now();
    stream.write_all(&watch_request(&json!({}), &["Keepalive-Ping-Interval: 1"])).unwrap();
    let told = read_until(&mut stream, "keepalive");
    assert!(told.contains(r#"{"start":{}}"#), "{told}");
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

#[test]
fn there_are_so_many_watchers_and_no_more() {
    let test = "there_are_so_many_watchers_and_no_more";
    if cannot_run(test, &[Need::Processes]) {
        return;
    }
    let bench = Bench::new();
    let mut roots = vec![bench.directory("root")];
    if mount(test, &bench) {
        roots.push(bench.path("mnt"));
    }
    for root in roots {
        so_many_watchers(&Service::start(&bench, &["--root", text(&root)]), &root);
    }
    if bench.path("mnt").exists() {
        bench.ok(&["unmount", text(&bench.path("mnt"))]);
    }
}

/// 1,024 of them, most of which are asked, and some streams.
fn so_many_watchers(service: &Service, root: &Path) {
    const STREAMS: usize = 40;
    let create = || service.call("CreateWatcher", &json!({}), &[]);
    let refused = |answer: &Value| {
        assert_eq!(answer["code"], "internal", "{answer}");
        let message = answer["message"].as_str().unwrap();
        assert_eq!(message, "1024 watchers are as many as there may be");
    };
    let stream = || {
        let mut stream = service.connect();
        stream.write_all(&watch_request(&json!({}), &[])).unwrap();
        read_until(&mut stream, "start");
        stream
    };
    let mut streams: Vec<_> = (0..STREAMS).map(|_| stream()).collect();
    // The last of them all at once, for fewer places than want one.
    let one_by_one = 1024 - STREAMS - 8;
    let mut ids: Vec<String> = Vec::new();
    let mut take = |(status, answer): (u16, Value)| match status {
        200 => ids.push(answer["watcherId"].as_str().unwrap().to_owned()),
        status => {
            assert_eq!(status, 500);
            refused(&answer);
        }
    };
    (0..one_by_one).for_each(|_| take(create()));
    std::thread::scope(|scope| {
        let racing: Vec<_> = (0..16).map(|_| scope.spawn(create)).collect();
        racing.into_iter().for_each(|it| take(it.join().unwrap()));
    });
    assert_eq!(ids.len() + STREAMS, 1024);
    for _ in 0..50 {
        let (status, answer) = create();
        assert_eq!(status, 500);
        refused(&answer);
    }
    let told = service.send(&watch_request(&json!({}), &[]));
    let (start, end) = (told.find("{\"code").unwrap(), told.rfind("}}").unwrap());
    refused(&serde_json::from_str(&told[start..=end]).unwrap());
    // All of them see what happens, and one that goes makes room for one.
    std::fs::write(root.join("x"), "").unwrap();
    let events = |id: &str| service.call("GetWatcherEvents", &json!({ "watcherId": id }), &[]);
    for id in &ids {
        eventually("it is told", || events(id).1["events"][0]["name"] == "x");
    }
    for stream in &mut streams {
        read_until(stream, r#""name":"x""#);
    }
    let remove = |id: &str| service.call("RemoveWatcher", &json!({ "watcher_id": id }), &[]).0;
    assert_eq!((remove(&ids[0]), remove(&ids[0])), (200, 404));
    assert_eq!(events(&ids[0]).0, 404);
    assert_eq!((create().0, create().0), (200, 500));
    drop(streams.pop());
    eventually("a stream's place is free", || create().0 == 200);
    assert_eq!(create().0, 500);
}

#[test]
fn a_mount_is_watched_by_its_own_stream() {
    let test = "a_mount_is_watched_by_its_own_stream";
    if !can_mount_with(test, &[Need::Processes]) {
        return;
    }
    let bench = Bench::new();
    assert!(mount(test, &bench));
    let mountpoint = bench.path("mnt");
    std::fs::create_dir_all(mountpoint.join("d/e")).unwrap();
    let service = Service::start(&bench, &[]);
    let create = |path: &Path| {
        let message = json!({ "path": path, "recursive": true });
        let (status, answer) = service.call("CreateWatcher", &message, &[]);
        assert_eq!(status, 200, "{answer}");
        answer["watcherId"].as_str().unwrap().to_owned()
    };
    let events = |id: &str| service.call("GetWatcherEvents", &json!({ "watcherId": id }), &[]);
    let (whole, part) = (create(&mountpoint), create(&mountpoint.join("d")));
    let is_inotify = |entry: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_link(entry.unwrap().path()).is_ok_and(|it| it.ends_with("anon_inode:inotify"))
    };
    let mut descriptors = std::fs::read_dir(format!("/proc/{}/fd", service.child.id())).unwrap();
    assert!(!descriptors.any(is_inotify));
    std::fs::write(mountpoint.join("d/e/x"), "1").unwrap();
    std::fs::rename(mountpoint.join("d"), mountpoint.join("dd")).unwrap();
    std::fs::write(mountpoint.join("dd/y"), "").unwrap();
    let told = |id: &str, last: &str| {
        let mut lines: Vec<String> = Vec::new();
        eventually("it is told", || {
            let answer = events(id).1;
            for event in answer["events"].as_array().into_iter().flatten() {
                let what = event["type"].as_str().unwrap().trim_start_matches("EVENT_TYPE_");
                let line = format!("{what} {}", event["name"].as_str().unwrap());
                if lines.last() != Some(&line) {
                    lines.push(line);
                }
            }
            lines.iter().any(|line| line == last)
        });
        lines
    };
    assert_eq!(
        told(&whole, "CREATE dd/y"),
        ["CREATE d/e/x", "WRITE d/e/x", "RENAME d", "CREATE dd", "CREATE dd/y"]
    );
    // It is followed.
    assert_eq!(told(&part, "CREATE y"), ["CREATE e/x", "WRITE e/x", "RENAME .", "CREATE y"]);
    // Watchers keep no mount, and are told of its end.
    bench.ok(&["unmount", text(&mountpoint)]);
    eventually("the end is told", || {
        let (status, answer) = events(&whole);
        status == 500 && answer["code"] == "internal"
    });
}

#[test]
fn who_may_be_reached_by_others_needs_a_token() {
    let bench = Bench::new();
    for (arguments, status) in [
        (&["--listen", "0.0.0.0:0"][..], 2),
        (&["--listen", "nowhere"], 2),
        (&["--root", "/none/such"], 3),
        (&["--token-file", "/none/such"], 3),
        (&["--token-file", "/dev/null"], 1),
        (&["--watchers", "0"], 2),
        (&["--watchers", "1000001"], 2),
        (&["--watchers", "18446744073709551615"], 2),
    ] {
        let output = bench.run(&[&["serve-files"], arguments].concat());
        assert_eq!(output.status.code(), Some(status), "{arguments:?}");
        assert!(!said(&output).contains("panicked"), "{arguments:?}: {}", said(&output));
    }
}

#[test]
fn a_watched_directory_that_leaves_the_root_is_told_of_no_longer() {
    let test = "a_watched_directory_that_leaves_the_root_is_told_of_no_longer";
    if !can_mount_with(test, &[Need::Processes]) {
        return;
    }
    let bench = Bench::new();
    let mountpoint = bench.directory("mnt");
    let tree = bench.directory("tree");
    for dir in ["served/sub", "beside"] {
        std::fs::create_dir_all(tree.join(dir)).unwrap();
    }
    let archive = bench.archive(&tree, "data.sqsh", &[]);
    bench.ok(&["mount", text(&archive), text(&mountpoint)]);
    let served = mountpoint.join("served");
    let service = Service::start(&bench, &["--root", text(&served)]);
    let message = json!({ "path": served.join("sub"), "recursive": true });
    let watcher = service.call("CreateWatcher", &message, &[]).1;
    let mut stream = service.connect();
    stream.write_all(&watch_request(&message, &[])).unwrap();
    read_until(&mut stream, "start");
    std::fs::rename(served.join("sub"), mountpoint.join("beside/sub")).unwrap();
    std::fs::write(mountpoint.join("beside/sub/secret"), "data").unwrap();
    let told = read_until(&mut stream, "it was moved");
    assert!(told.contains("RENAME") && told.contains("internal"), "{told}");
    assert!(!told.contains("secret"), "{told}");
    eventually("the other is told so", || {
        let (status, answer) = service.call("GetWatcherEvents", &watcher, &[]);
        assert!(!answer.to_string().contains("secret"), "{answer}");
        status == 500 && answer["code"] == "internal"
    });
    drop((stream, service));
    bench.ok(&["unmount", text(&mountpoint)]);
}
