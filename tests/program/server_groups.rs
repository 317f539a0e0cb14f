//! The server's control groups, with real ones of this machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::mount::{Mounts, can_mount_with};
use crate::support::surrounding::{Need, skip};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Groups for one test, removed with it.
struct Groups {
    top: PathBuf,
    made: Vec<PathBuf>,
}

impl Groups {
    /// Below the top of the hierarchy of version 2, if it can be written.
    fn new(test: &str) -> Option<Self> {
        let mounts = thawfs::server::mounts::read_mounts().unwrap();
        let top = mounts.into_iter().find(|mount| mount.fs_type == "cgroup2");
        let top = top.map(|mount| mount.mountpoint);
        let top = top.filter(|top| {
            let probe = top.join(format!("test-{}", std::process::id()));
            std::fs::create_dir(&probe).is_ok() && std::fs::remove_dir(&probe).is_ok()
        });
        if top.is_none() {
            skip(test, "no control groups of version 2 can be made");
        }
        Some(Self { top: top?, made: Vec::new() })
    }

    fn make(&mut self, name: &str) -> PathBuf {
        let path = self.top.join(format!("test-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        self.made.push(path.clone());
        path
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for group in self.made.iter().rev() {
            let _ = std::fs::remove_dir(group);
        }
    }
}

impl Mounts {
    /// Mounts from within a group, and gives the server's group in the hierarchy at `top`, as the kernel
    /// has it and as `status` has it.
    fn mount_in(&self, top: &Path, group: &Path, controller: &str) -> (PathBuf, Value) {
        let script = "echo 0 > \"$0/cgroup.procs\" && exec \"$@\"";
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).arg(group).arg(env!("CARGO_BIN_EXE_thawfs"));
        shell.args(["-q", "mount"]).args([&self.archive, &self.mountpoint]);
        shell.env("THAWFS_STATE_DIR", self.bench.state_dir()).stdin(Stdio::null());
        assert!(shell.status().unwrap().success());
        let pid = self.bench.servers()[0];
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let line = groups.lines().find(|line| line.split(':').nth(1) == Some(controller)).unwrap();
        let path = line.splitn(3, ':').nth(2).unwrap();
        let actual = top.join(path.trim_start_matches('/'));
        let status: Value = serde_json::from_str(&self.bench.ok(&["status", "--json"])).unwrap();
        let told = status[0]["groups"].as_array().unwrap().iter();
        let mut told = told.filter(|it| Path::new(it["path"].as_str().unwrap()).starts_with(top));
        (actual, told.next().cloned().unwrap_or_default())
    }

    fn unmount(&self) {
        self.bench.ok(&["unmount", text(&self.mountpoint)]);
        self.bench.assert_nothing_left();
    }
}

#[test]
fn a_server_leaves_a_group_without_limits_and_removes_its_own() {
    let test = "a_server_leaves_a_group_without_limits_and_removes_its_own";
    let Some(mut groups) =
        can_mount_with(test, &[Need::Root, Need::Processes]).then(|| Groups::new(test)).flatten()
    else {
        return;
    };
    let mounts = Mounts::new();
    let top = groups.top.clone();
    let outer = groups.make("outer");
    let inner = outer.join("inner");
    std::fs::create_dir(&inner).unwrap();
    groups.made.push(inner.clone());
    for (caller, parent) in [(&outer, &top), (&inner, &outer)] {
        let (actual, told) = mounts.mount_in(&top, caller, "");
        let pid = mounts.bench.servers()[0];
        assert_eq!(actual, parent.join(format!("thawfs-{pid}")));
        assert_eq!((told["path"].as_str(), &told["because"]), (actual.to_str(), &Value::Null));
        let shown = mounts.bench.ok(&["status"]);
        assert!(shown.contains(&format!("{}, its own", actual.display())), "{shown}");
        // Ending the job, that is every process in its group, does not end the mount.
        std::fs::write(caller.join("cgroup.kill"), "1").unwrap();
        assert!(mounts.mountpoint.join("hello").exists());
        mounts.unmount();
        assert!(!actual.exists());
    }
    // With the caller's group gone, it still removes its own.
    let job = groups.make("job");
    let (actual, _) = mounts.mount_in(&top, &job, "");
    // The kernel takes its time to let go of a process that has ended.
    while std::fs::remove_dir(&job).is_err() {
        assert_eq!(std::fs::read_to_string(job.join("cgroup.procs")).unwrap(), "");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    mounts.unmount();
    assert!(!actual.exists());
}

#[test]
fn a_group_that_cannot_be_found_is_told_with_the_reason() {
    let test = "a_group_that_cannot_be_found_is_told_with_the_reason";
    let Some(mut groups) =
        can_mount_with(test, &[Need::Root, Need::Processes]).then(|| Groups::new(test)).flatten()
    else {
        return;
    };
    let mounts = Mounts::new();
    let job = groups.make("job");
    let top = groups.top.components().collect::<PathBuf>();
    let name = format!("/{}", job.file_name().unwrap().to_str().unwrap());
    let life = "echo 0 >\"$0/cgroup.procs\" && exec unshare $1 sh -ec '
        umount -a -l -t \"$0\" || true; \"$1\" -q mount \"$2\" \"$3\"; \"$1\" status --json
        \"$1\" status >&2; \"$1\" unmount \"$3\" >&2' \"$2\" \"$3\" \"$4\" \"$5\"";
    // How it is run, and what is taken away there first: mounts of other tests, which would wait for it.
    for (namespaces, gone, path, because) in [
        ("--cgroup --mount", "fuse.thawfs", text(&top), "as in a cgroup namespace"),
        ("--mount", "cgroup2,fuse.thawfs", &name, "version 2 are not mounted here"),
    ] {
        let mut command = Command::new("sh");
        command.env("THAWFS_STATE_DIR", mounts.bench.state_dir());
        command.args(["-c", life]).arg(&job).args([namespaces, gone, env!("CARGO_BIN_EXE_thawfs")]);
        command.args([&mounts.archive, &mounts.mountpoint]).stdin(Stdio::null());
        let output = command.output().unwrap();
        let shown = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{namespaces}: {shown}");
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        let told = status[0]["groups"].as_array().unwrap().iter();
        let told = told.filter(|group| group["path"] == *path).collect::<Vec<_>>();
        assert_eq!(told.len(), 1, "{namespaces}: {status}");
        assert!(told[0]["because"].as_str().unwrap().contains(because), "{status}");
        let line = shown.lines().find(|line| line.contains(because)).unwrap_or_default();
        assert!(line.contains(&format!("{path}, its caller's: ")), "{shown}");
    }
    mounts.bench.assert_nothing_left();
}

/// A limit that is far away from anything a mount needs, for each controller that has some.
const LIMITS: [(&str, &str, &str); 8] = [
    ("memory", "memory.max", "8589934592"),
    ("memory", "memory.high", "8589934592"),
    ("cpu", "cpu.max", "900000 1000000"),
    ("pids", "pids.max", "4000"),
    ("io", "io.max", ""),
    ("hugetlb", "hugetlb.2MB.max", "2097152"),
    ("hugetlb", "hugetlb.2MB.rsvd.max", "0"),
    ("misc", "misc.max", ""),
];

#[test]
fn a_server_never_leaves_a_limit() {
    let test = "a_server_never_leaves_a_limit";
    let Some(mut groups) =
        can_mount_with(test, &[Need::Root, Need::Processes]).then(|| Groups::new(test)).flatten()
    else {
        return;
    };
    let mounts = Mounts::new();
    let top = groups.top.clone();
    let there = std::fs::read_to_string(top.join("cgroup.controllers")).unwrap();
    let mut tried = 0;
    for (controller, file, value) in LIMITS {
        let enable = format!("+{controller}");
        let is_there = there.split_whitespace().any(|name| name == controller);
        if !is_there || std::fs::write(top.join("cgroup.subtree_control"), &enable).is_err() {
            continue;
        }
        // The devices of io.max differ from machine to machine.
        let value = match (file, value) {
            ("io.max", _) => match first_disk() {
                Some(device) => format!("{device} wbps=1073741824"),
                None => continue,
            },
            ("misc.max", _) => continue,
            _ => value.to_owned(),
        };
        let job = groups.make(&format!("{file}-job"));
        if !job.join(file).exists() {
            continue;
        }
        std::fs::write(job.join(file), &value).unwrap();
        let (actual, told) = mounts.mount_in(&top, &job, "");
        assert_eq!(actual, job, "{file}: it has left");
        assert_eq!(told["path"].as_str(), job.to_str(), "{file}");
        assert!(told["because"].as_str().unwrap().contains(file), "{file}: {told}");
        let shown = mounts.bench.ok(&["status"]);
        assert!(shown.contains(&format!("its caller's: {file} of")), "{shown}");
        mounts.unmount();

        // Beside it is a limit as well where a group above both has it, and not beside that.
        std::fs::write(job.join("cgroup.subtree_control"), &enable).unwrap();
        let inner = job.join("inner");
        std::fs::create_dir(&inner).unwrap();
        groups.made.push(inner.clone());
        let (actual, _) = mounts.mount_in(&top, &inner, "");
        assert_eq!(actual.parent(), Some(&*job), "{file}: out of a limit, or not beside");
        assert_ne!(actual, inner, "{file}");
        mounts.unmount();
        std::fs::write(inner.join(file), &value).unwrap();
        let (actual, _) = mounts.mount_in(&top, &inner, "");
        assert_eq!(actual.parent(), Some(&*job), "{file}: the same limit is above");
        assert_ne!(actual, inner, "{file}");
        mounts.unmount();
        tried += 1;
    }
    if tried == 0 {
        skip(test, "no controller can be had in version 2");
    }
}

fn first_disk() -> Option<String> {
    let disks = std::fs::read_dir("/sys/block").ok()?.flatten();
    let mut devices = disks.filter_map(|disk| {
        let size = std::fs::read_to_string(disk.path().join("size")).ok()?;
        if size.trim() == "0" {
            return None;
        }
        Some(std::fs::read_to_string(disk.path().join("dev")).ok()?.trim().to_owned())
    });
    devices.next()
}

#[test]
fn at_the_top_a_server_stays() {
    let test = "at_the_top_a_server_stays";
    let Some(groups) =
        can_mount_with(test, &[Need::Root, Need::Processes]).then(|| Groups::new(test)).flatten()
    else {
        return;
    };
    let mounts = Mounts::new();
    let (actual, told) = mounts.mount_in(&groups.top, &groups.top, "");
    assert_eq!(actual, groups.top.components().collect::<PathBuf>());
    assert!(told["because"].as_str().unwrap().contains("top"), "{told}");
    mounts.unmount();
}

#[test]
fn limits_of_version_1_are_never_left() {
    let test = "limits_of_version_1_are_never_left";
    if !can_mount_with(test, &[Need::Root, Need::Processes]) {
        return;
    }
    let mounts = Mounts::new();
    let mut tried = 0;
    for (controller, file, value) in [
        ("pids", "pids.max", "4000"),
        ("memory", "memory.limit_in_bytes", "8589934592"),
        ("cpu", "cpu.shares", "512"),
        ("blkio", "blkio.throttle.write_bps_device", ""),
    ] {
        let all = thawfs::server::mounts::read_mounts().unwrap();
        let mount =
            all.into_iter().find(|mount| mount.fs_type == "cgroup" && mount.has_option(controller));
        let Some(top) = mount.map(|mount| mount.mountpoint) else { continue };
        let job = top.join(format!("test-{}", std::process::id()));
        if std::fs::create_dir(&job).is_err() {
            continue;
        }
        let groups = Groups { top: top.clone(), made: vec![job.clone()] };
        if job.join(file).exists() && !value.is_empty() {
            std::fs::write(job.join(file), value).unwrap();
        }
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().filter_map(|line| line.split(':').nth(1));
        let named = own.into_iter().find(|names| names.split(',').any(|name| name == controller));
        let (actual, told) = mounts.mount_in(&top, &job, named.unwrap());
        assert_eq!((actual, told), (job, Value::Null), "{controller}");
        mounts.unmount();
        drop(groups);
        tried += 1;
    }
    if tried == 0 {
        eprintln!("{test} does not apply: no control groups of version 1 can be made");
    }
}

#[test]
fn groups_of_servers_that_were_killed_are_removed() {
    let test = "groups_of_servers_that_were_killed_are_removed";
    let Some(mut groups) =
        can_mount_with(test, &[Need::Root, Need::Processes]).then(|| Groups::new(test)).flatten()
    else {
        return;
    };
    let mounts = Mounts::new();
    let top = groups.top.clone();
    let outer = groups.make("outer");
    let job = outer.join("job");
    std::fs::create_dir(&job).unwrap();
    groups.made.push(job.clone());
    let kill = || {
        let pid = rustix::process::Pid::from_raw(mounts.bench.servers()[0] as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        while !mounts.bench.servers().is_empty() {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    };
    // Known from the record.
    let (own, _) = mounts.mount_in(&top, &job, "");
    kill();
    assert!(own.exists());
    mounts.bench.ok(&["unmount", text(&mounts.mountpoint)]);
    assert!(!own.exists());
    // Known to nobody: by its name, unless somebody is in it.
    let (empty, full) = (outer.join("thawfs-4194304"), outer.join("thawfs-4194305"));
    for group in [&empty, &full] {
        std::fs::create_dir(group).unwrap();
        groups.made.push(group.clone());
    }
    let mut sleeper = Command::new("sleep").arg("600").spawn().unwrap();
    std::fs::write(full.join("cgroup.procs"), sleeper.id().to_string()).unwrap();
    let listed = mounts.bench.ok(&["gc"]);
    assert!(listed.contains(text(&empty)) && !listed.contains(text(&full)), "{listed}");
    mounts.bench.ok(&["gc", "--yes"]);
    assert_eq!((empty.exists(), full.exists()), (false, true));
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}
