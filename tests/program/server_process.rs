//! What a server keeps and leaves of the process that started it, by every command that starts one.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::mount::{Bench, can_mount_with, write_tree};
use crate::support::surrounding::Need;
use crate::support::words::{eventually, text};

/// The commands that start a server, each as a line of shell with the program's own words.
struct Starters {
    bench: Bench,
    mountpoint: PathBuf,
    lines: Vec<(&'static str, String)>,
}

impl Starters {
    fn new() -> Self {
        let bench = Bench::new();
        write_tree(&bench.directory("tree"));
        let archive = bench.archive(&bench.path("tree"), "data.sqsh", &["-comp", "zstd"]);
        let mountpoint = bench.directory("mnt");
        let bucket = format!("file://{}", bench.directory("box").display());
        let tree = bench.path("tree");
        let create = ["-q", "create", text(&tree), "--bucket", &bucket];
        let handle: serde_json::Value = serde_json::from_str(&bench.ok(&create)).unwrap();
        let helper = bench.path("mount.thawfs");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_thawfs"), &helper).unwrap();
        let (thawfs, id) = (env!("CARGO_BIN_EXE_thawfs"), handle["id"].as_str().unwrap());
        let (archive, dir) = (text(&archive), text(&mountpoint));
        let lines = vec![
            ("mount", format!("{thawfs} -q mount {archive} {dir}")),
            ("restore", format!("{thawfs} -q restore {id} {dir} --bucket {bucket}")),
            ("helper", format!("{} {archive} {dir} -o rw", text(&helper))),
        ];
        Self { bench, mountpoint, lines }
    }

    /// Runs `script` in a shell, in which `$MOUNT` is a program that mounts.
    fn shell(&self, line: &str, script: &str) -> Output {
        let starter = self.bench.path("starter");
        std::fs::write(&starter, format!("#!/bin/sh\nexec {line}\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&starter, mode).unwrap();
        let own = self.bench.thawfs();
        let mut shell = Command::new("timeout");
        shell.args(["60", "bash", "-c", script]).env("MOUNT", &starter).stdin(Stdio::null());
        for (name, value) in own.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell.current_dir(self.bench.path("")).output().unwrap()
    }

    /// Runs `script` with each of the commands, looks at the server, and unmounts.
    fn each(&self, script: &str, look: impl Fn(&str, u32)) {
        for (name, line) in &self.lines {
            let output = self.shell(line, script);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name}: {}: {said}", output.status);
            let servers = self.bench.servers();
            assert_eq!(servers.len(), 1, "{name}");
            assert!(self.mountpoint.join("hello").exists(), "{name}");
            look(name, servers[0]);
            self.bench.ok(&["unmount", text(&self.mountpoint)]);
            self.bench.assert_nothing_left();
        }
    }
}

/// A field of `/proc/PID/status`.
fn status(pid: u32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_once(':').unwrap().1.trim().to_owned()
}

#[test]
fn a_lock_of_the_caller_ends_with_the_command() {
    if !can_mount_with("a_lock_of_the_caller_ends_with_the_command", &[Need::Processes]) {
        return;
    }
    let starters = Starters::new();
    // A lock, taken as flock(1) does, which leaves it to its child.
    starters.each("flock lk $MOUNT", |name, _| {
        let mut free = Command::new("flock");
        let free = free.args(["-n", "lk", "true"]).current_dir(starters.bench.path(""));
        let free = free.status().unwrap();
        assert!(free.success(), "{name}: the lock is held");
    });
}

#[test]
fn a_pipe_of_the_caller_ends_with_the_command() {
    if !can_mount_with("a_pipe_of_the_caller_ends_with_the_command", &[Need::Processes]) {
        return;
    }
    // Each standard stream, and a descriptor below and above ten, of which dash knows none.
    let script = "( $MOUNT 3>&1 9>&1 37>&1 200>&1 ) 2>&1 | cat";
    Starters::new().each(script, |name, pid| {
        let mut open: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap())
            .filter(|target| text(target).starts_with("pipe:"))
            .collect();
        open.sort();
        open.dedup();
        assert_eq!(open, Vec::<PathBuf>::new(), "{name}");
    });
}

#[test]
fn a_file_system_of_the_caller_is_not_kept_busy() {
    if !can_mount_with(
        "a_file_system_of_the_caller_is_not_kept_busy",
        &[Need::Root, Need::Processes],
    ) {
        return;
    }
    let starters = Starters::new();
    let theirs = starters.bench.directory("theirs");
    // By a descriptor, and by the working directory.
    let script = "set -e
        mount -t tmpfs none theirs; touch theirs/x
        (cd theirs; $MOUNT 7<x)
        umount theirs";
    starters.each(script, |name, pid| {
        assert_eq!(
            std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap(),
            Path::new("/"),
            "{name}"
        );
    });
    let _ = Command::new("umount").arg(&theirs).stderr(Stdio::null()).status();
}

#[test]
fn relative_paths_of_the_caller_mean_what_they_mean_there() {
    if !can_mount_with("relative_paths_of_the_caller_mean_what_they_mean_there", &[Need::Processes])
    {
        return;
    }
    let starters = Starters::new();
    let script = "export THAWFS_STATE_DIR=./state THAWFS_CACHE_DIR=cache; $MOUNT";
    starters.each(script, |name, _| {
        let mounts = std::fs::read_dir(starters.bench.state_dir().join("mounts")).unwrap();
        assert_eq!(mounts.count(), 1, "{name}");
    });
}

#[test]
fn session_umask_signals_and_priority_are_a_server_s_own() {
    if !can_mount_with(
        "session_umask_signals_and_priority_are_a_server_s_own",
        &[Need::Root, Need::Processes],
    ) {
        return;
    }
    let script = "umask 077
        exec chrt --idle 0 nice -n 7 ionice --class idle \
            env --ignore-signal=CHLD --ignore-signal=XFSZ --ignore-signal=HUP --block-signal=TERM \
                --block-signal=USR1 $MOUNT";
    let starters = Starters::new();
    starters.each(script, |name, pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        assert_eq!(fields[3], pid.to_string(), "{name}: a session of its own");
        assert_eq!(fields[4], "0", "{name}: no terminal");
        assert_eq!(status(pid, "Umask"), "0000", "{name}");
        for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let thread = thread.unwrap().path();
            let stat = std::fs::read_to_string(thread.join("stat")).unwrap();
            let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
            assert_eq!((fields[16], fields[38]), ("0", "0"), "{name}: nice and class: {stat}");
            let thread = thread.file_name().unwrap().to_str().unwrap().to_owned();
            let io = Command::new("ionice").args(["-p", &thread]).output().unwrap();
            let io = String::from_utf8(io.stdout).unwrap();
            assert!(io.starts_with("none"), "{name}: {io}");
        }
        let ignored = u64::from_str_radix(&status(pid, "SigIgn"), 16).unwrap();
        for signal in [libc::SIGCHLD, libc::SIGXFSZ, libc::SIGHUP] {
            assert_eq!(ignored >> (signal - 1) & 1, 0, "{name}: {signal} is ignored");
        }
        let blocked = u64::from_str_radix(&status(pid, "SigBlk"), 16).unwrap();
        assert_eq!(blocked, 0, "{name}");
    });

    // One that the caller had blocked ends it.
    let output = starters.shell(&starters.lines[0].1, script);
    assert!(output.status.success());
    let pid = rustix::process::Pid::from_raw(starters.bench.servers()[0] as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    eventually("the server has ended", || starters.bench.servers().is_empty());
    starters.bench.assert_nothing_left();
}

#[test]
fn a_limit_on_file_sizes_is_an_error_of_the_write_and_not_the_end_of_the_mount() {
    if !can_mount_with(
        "a_limit_on_file_sizes_is_an_error_of_the_write_and_not_the_end_of_the_mount",
        &[Need::Processes],
    ) {
        return;
    }
    let starters = Starters::new();
    // In units of 1024 bytes. The kernel would write by itself, under the limit of who writes.
    let (_, line) = &starters.lines[0];
    let output = starters.shell(&format!("{line} -o no_passthrough"), "ulimit -f 64; $MOUNT");
    assert!(output.status.success());
    let write = |len: usize| {
        use std::io::Write;
        let mut file = std::fs::File::create(starters.mountpoint.join("large"))?;
        // Told by fsync(2) where data is held back.
        file.write_all(&vec![1; len]).and_then(|()| file.sync_all())
    };
    write(64 << 10).unwrap();
    assert_eq!(write((64 << 10) + 1).unwrap_err().raw_os_error(), Some(libc::EFBIG));
    write(64 << 10).unwrap();
    assert_eq!(starters.bench.servers().len(), 1, "it lives");
    starters.bench.ok(&["unmount", text(&starters.mountpoint)]);
    starters.bench.assert_nothing_left();
}

#[test]
fn a_server_whose_starter_was_given_no_streams_mounts() {
    if !can_mount_with("a_server_whose_starter_was_given_no_streams_mounts", &[Need::Processes]) {
        return;
    }
    Starters::new().each("$MOUNT 0<&- 1>&- 2>&-", |name, pid| {
        let streams: Vec<_> =
            (0..3).map(|n| std::fs::read_link(format!("/proc/{pid}/fd/{n}")).unwrap()).collect();
        assert_eq!((text(&streams[0]), text(&streams[1])), ("/dev/null", "/dev/null"), "{name}");
        assert!(text(&streams[2]).ends_with("/log"), "{name}");
    });
}

#[test]
fn data_that_fits_in_part_is_an_error_and_never_half_a_write() {
    let test = "data_that_fits_in_part_is_an_error_and_never_half_a_write";
    if !can_mount_with(test, &[Need::Root, Need::Processes]) {
        return;
    }
    const PAGE: usize = 4096;
    let starters = Starters::new();
    let disk = starters.bench.directory("disk");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k,nr_inodes=1k", "none", text(&disk)])
        .status();
    assert!(mounted.unwrap().success());
    let (_, line) = &starters.lines[0];
    for option in ["no_passthrough", "rw"] {
        let upper = disk.join(option);
        let line = format!("{line} -o {option} --upper {}", text(&upper));
        assert!(starters.shell(&line, "$MOUNT").status.success());
        // From what fits to what does not by a byte, a page, and several of the kernel's requests.
        let free = rustix::fs::statvfs(&disk).unwrap().f_bavail as usize * PAGE;
        for (len, fits) in
            [(free - PAGE, true), (free, true), (free + 1, false), (free + 40 * PAGE, false)]
        {
            use std::io::Write;
            // What the case before had written goes once nobody has it open.
            let room = || rustix::fs::statvfs(&disk).unwrap().f_bavail as usize * PAGE;
            eventually("there is room", || room() == free);
            let path = starters.mountpoint.join("data");
            let mut file = std::fs::File::create(&path).unwrap();
            let told = file.write_all(&vec![7; len]).and_then(|()| file.sync_all());
            assert_eq!(told.is_ok(), fits, "{option}: {len} of {free} bytes: {told:?}");
            if fits {
                assert_eq!(std::fs::read(upper.join("data")).unwrap(), vec![7; len], "{option}");
            }
            drop(file);
            std::fs::remove_file(&path).unwrap();
        }
        starters.bench.ok(&["unmount", text(&starters.mountpoint)]);
        std::fs::remove_dir_all(&upper).unwrap();
    }
    assert!(Command::new("umount").arg(&disk).status().unwrap().success());
}
