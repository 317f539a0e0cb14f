//! The files of a mount over its control socket, for who speaks HTTP there.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::support::mount::{Mounts, can_mount_with};
use crate::support::surrounding::Need;
use crate::support::words::{eventually, text};
use serde_json::{Value, json};

/// The control socket of the only mount.
fn control(mounts: &Mounts) -> PathBuf {
    let mut found = std::fs::read_dir(mounts.bench.state_dir().join("mounts")).unwrap();
    found.next().unwrap().unwrap().path().join("control")
}

fn connect(control: &Path) -> UnixStream {
    // Longer than a socket's path may be.
    let directory = std::fs::File::open(control.parent().unwrap()).unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&directory);
    UnixStream::connect(format!("/proc/self/fd/{fd}/control")).unwrap()
}

/// The status and the answer.
fn call(control: &Path, method: &str, body: &Value) -> (u16, Value) {
    let mut connection = connect(control);
    let body = body.to_string();
    let request = format!(
        "POST /filesystem.Filesystem/{method} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let (start, end) = (answer.find('{').unwrap(), answer.rfind('}').unwrap());
    (status, serde_json::from_str(&answer[start..=end]).unwrap())
}

/// Processes that serve the files of the mount.
fn workers(mounts: &Mounts) -> Vec<u32> {
    let ours = |pid: &u32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
        matches!(&*words, [_, b"serve-mount-files", mountpoint, ..]
            if *mountpoint == text(&mounts.mountpoint).as_bytes())
    };
    let processes = std::fs::read_dir("/proc").unwrap();
    let pids = processes.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(ours).collect()
}

#[test]
fn the_files_of_a_mount_are_served_over_its_control_socket() {
    if !can_mount_with(
        "the_files_of_a_mount_are_served_over_its_control_socket",
        &[Need::Processes],
    ) {
        return;
    }
    let mounts = Mounts::new();
    let words = ["mount", text(&mounts.archive), text(&mounts.mountpoint)];
    let mut mount = mounts.bench.thawfs();
    mount.args(words).env("AWS_SECRET_ACCESS_KEY", "the-secret").env("AWS_ACCESS_KEY_ID", "key");
    assert!(mount.status().unwrap().success());
    let control = control(&mounts);
    assert!(workers(&mounts).is_empty(), "it is started when it is first needed");

    let (status, listed) = call(&control, "ListDir", &json!({ "path": "sub" }));
    assert_eq!(status, 200, "{listed}");
    let names: Vec<_> = listed["entries"].as_array().unwrap().iter().map(|e| &e["name"]).collect();
    assert_eq!(names, ["data", "deeper", "hello-too", "link"]);
    let [worker] = *workers(&mounts) else { panic!("one worker") };
    let environment = std::fs::read(format!("/proc/{worker}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("the-secret"));
    let (status, told) = call(&control, "Stat", &json!({ "path": "/etc/passwd" }));
    assert_eq!((status, &told["code"]), (400, &json!("invalid_argument")));

    let watcher = call(&control, "CreateWatcher", &json!({ "path": "~", "recursive": true })).1;
    let changed = mounts.mountpoint.join("sub/new");
    std::fs::write(&changed, "data").unwrap();
    std::fs::rename(&changed, mounts.mountpoint.join("newer")).unwrap();
    let mut events = Vec::new();
    eventually("the events have come", || {
        let (status, told) = call(&control, "GetWatcherEvents", &watcher);
        assert_eq!(status, 200, "{told}");
        let more = told["events"].as_array().cloned().unwrap_or_default();
        events.extend(more.iter().map(|event| format!("{} {}", event["type"], event["name"])));
        events.len() >= 4
    });
    assert_eq!(
        events,
        [
            r#""EVENT_TYPE_CREATE" "sub/new""#,
            r#""EVENT_TYPE_WRITE" "sub/new""#,
            r#""EVENT_TYPE_RENAME" "sub/new""#,
            r#""EVENT_TYPE_CREATE" "newer""#,
        ]
    );
    // The server answers what it always did.
    mounts.bench.ok(&["status", text(&mounts.mountpoint)]);

    // A worker that is gone is replaced, and its watchers are unknown.
    let pid = rustix::process::Pid::from_raw(worker as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    // With its descriptors, which go after its name in the list of processes.
    eventually("it is gone", || !Path::new(&format!("/proc/{worker}")).exists());
    assert_eq!(call(&control, "GetWatcherEvents", &watcher).0, 404);
    assert_eq!(workers(&mounts).len(), 1);

    // It is no reason for the mount to stay, and does not outlive it.
    mounts.bench.ok(&["unmount", text(&mounts.mountpoint)]);
    eventually("it has ended", || workers(&mounts).is_empty());
    mounts.bench.assert_nothing_left();
}

#[test]
fn a_server_that_is_killed_leaves_no_process_that_serves_its_files() {
    if !can_mount_with(
        "a_server_that_is_killed_leaves_no_process_that_serves_its_files",
        &[Need::Processes],
    ) {
        return;
    }
    let mounts = Mounts::new();
    mounts.bench.ok(&["mount", text(&mounts.archive), text(&mounts.mountpoint)]);
    let control = control(&mounts);
    assert_eq!(call(&control, "Stat", &json!({ "path": "hello" })).0, 200);
    let [server] = *mounts.bench.servers() else { panic!("one server") };
    let pid = rustix::process::Pid::from_raw(server as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    eventually("it has ended", || workers(&mounts).is_empty());
    mounts.bench.ok(&["unmount", "--dead", text(&mounts.mountpoint)]);
    mounts.bench.ok(&["gc", "--yes"]);
    mounts.bench.assert_nothing_left();
}
