//! What the file service says where the kernel has no room for what inotify needs: no watcher goes on as if nothing were
//! missing.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::files::{Service, read_until, watch_request};
use crate::support::mount::Bench;
use crate::support::surrounding::{Need, cannot_run, skip};
use crate::support::words::{eventually, text};

/// A watcher that is asked, and one that is a stream, of the same directory.
struct Both {
    id: String,
    stream: TcpStream,
}

impl Both {
    fn new(service: &Service, dir: &Path) -> Self {
        let message = json!({ "path": dir, "recursive": true });
        let (status, answer) = service.call("CreateWatcher", &message, &[]);
        assert_eq!(status, 200, "{answer}");
        let mut stream = service.connect();
        std::io::Write::write_all(&mut stream, &watch_request(&message, &[])).unwrap();
        read_until(&mut stream, "start");
        Self { id: answer["watcherId"].as_str().unwrap().to_owned(), stream }
    }

    /// Both end with `internal`, and say why.
    fn end(mut self, service: &Service, why: &str) {
        let told = read_until(&mut self.stream, why);
        assert!(told.contains(r#""code":"internal""#), "{told}");
        let ask = || service.call("GetWatcherEvents", &json!({ "watcherId": self.id }), &[]);
        let is_told = |(status, answer): (u16, Value)| {
            let message = answer["message"].as_str().unwrap_or_default();
            status == 500 && answer["code"] == "internal" && message.contains(why)
        };
        eventually("it is told", || is_told(ask()));
    }
}

/// Runs thawfs by unshare(1); none where that cannot be.
fn within(bench: &Bench, arguments: &[&str]) -> Option<Command> {
    let mut command = Command::new("unshare");
    command.args(arguments);
    if !command.arg("true").output().is_ok_and(|it| it.status.success()) {
        return None;
    }
    let program = bench.thawfs();
    let mut command = Command::new("unshare");
    command.args(arguments).arg(program.get_program());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Some(command)
}

#[test]
fn events_that_the_kernel_has_no_room_for_end_watchers_with_internal() {
    let test = "events_that_the_kernel_has_no_room_for_end_watchers_with_internal";
    if cannot_run(test, &[Need::Processes]) {
        return;
    }
    let bench = Bench::new();
    let root = bench.directory("root");
    fs::create_dir(root.join("d")).unwrap();
    let service = Service::start(&bench, &[]);
    let both = Both::new(&service, &root);
    let room = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let room: usize = room.trim().parse().unwrap();
    let server = Pid::from_child(&service.child);
    kill_process(server, Signal::STOP).unwrap();
    // More by far: it may stop a moment later.
    for _ in 0..room {
        fs::create_dir(root.join("d/x")).unwrap();
        fs::remove_dir(root.join("d/x")).unwrap();
    }
    kill_process(server, Signal::CONT).unwrap();
    both.end(&service, "max_queued_events");
    // Watchers that come then are none the worse.
    let mut both = Both::new(&service, &root);
    fs::write(root.join("d/y"), "").unwrap();
    read_until(&mut both.stream, r#""name":"d/y""#);
}

#[test]
fn watches_that_the_kernel_does_not_grant_are_an_error_or_end_a_watcher() {
    const LIMIT: usize = 40;
    let test = "watches_that_the_kernel_does_not_grant_are_an_error_or_end_a_watcher";
    if cannot_run(test, &[Need::Processes]) {
        return;
    }
    let bench = Bench::new();
    // The limit is that of a user namespace, and nobody else's.
    let set = format!("echo {LIMIT} > /proc/sys/user/max_inotify_watches && exec \"$0\" \"$@\"");
    let Some(command) = within(&bench, &["--user", "--map-root-user", "sh", "-c", &set]) else {
        return skip(test, "there are no user namespaces");
    };
    let root = bench.directory("root");
    let make = |dir: &str| {
        (0..LIMIT).for_each(|at| fs::create_dir_all(root.join(format!("{dir}/{at}"))).unwrap());
    };
    make("large");
    fs::create_dir(root.join("small")).unwrap();
    let service = Service::spawn(command, &[]);
    // Too many from the start.
    let large = json!({ "path": text(&root.join("large")), "recursive": true });
    let refused = service.call("CreateWatcher", &large, &[]).1.to_string();
    let ended = service.send(&watch_request(&large, &[]));
    for told in [refused, ended] {
        assert!(told.contains("max_user_watches"), "{told}");
    }
    // Too many later on. What was granted before is free again.
    let both = Both::new(&service, &root.join("small"));
    make("small");
    both.end(&service, "max_user_watches");
    fs::create_dir(root.join("other")).unwrap();
    let mut both = Both::new(&service, &root.join("other"));
    fs::write(root.join("other/x"), "").unwrap();
    read_until(&mut both.stream, r#""name":"x""#);
}

#[test]
fn a_directory_that_may_not_be_read_is_watched_once_it_may() {
    let test = "a_directory_that_may_not_be_read_is_watched_once_it_may";
    if cannot_run(test, &[Need::Processes]) {
        return;
    }
    let bench = Bench::new();
    // Whoever has no number in a namespace is as before, but may not read what is shut.
    let Some(command) = within(&bench, &["--user"]) else {
        return skip(test, "there are no user namespaces");
    };
    let root = bench.directory("root");
    let shut = root.join("shut");
    fs::create_dir(&shut).unwrap();
    fs::write(shut.join("before"), "").unwrap();
    let allow = |mode| fs::set_permissions(&shut, fs::Permissions::from_mode(mode)).unwrap();
    allow(0);
    let service = Service::spawn(command, &[]);
    let mut both = Both::new(&service, &root);
    allow(0o700);
    let told = read_until(&mut both.stream, r#""name":"shut/before""#);
    assert!(told.contains(r#"{"name":"shut","type":"EVENT_TYPE_CHMOD"}"#), "{told}");
    fs::write(shut.join("after"), "").unwrap();
    read_until(&mut both.stream, r#""name":"shut/after""#);
}
