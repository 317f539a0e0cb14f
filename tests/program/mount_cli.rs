//! `mount`, `unmount`, `status` and the mount(8) helper, on real mounts of a local archive.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::mount::{
    Bench, big_contents, can_mount, can_mount_with, open_fuse_to_users, write_tree,
};
use crate::support::surrounding::{Need, skip};

/// A bench with the small tree packed, and a mountpoint.
fn prepared() -> (Bench, PathBuf, PathBuf) {
    let bench = Bench::new();
    write_tree(&bench.directory("tree"));
    let archive = bench.archive(&bench.path("tree"), "data.sqsh", &["-comp", "zstd"]);
    let mountpoint = bench.directory("mnt");
    (bench, archive, mountpoint)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Waits for something another process is about to do.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_mounted_archive_reads_and_writes_and_leaves_nothing() {
    if !can_mount("a_mounted_archive_reads_and_writes_and_leaves_nothing") {
        return;
    }
    let (bench, archive, mountpoint) = prepared();
    let before = std::fs::read(&archive).unwrap();
    let said = bench.ok(&["mount", text(&archive), text(&mountpoint)]);
    assert!(said.contains(text(&mountpoint)), "{said}");

    let at = |name: &str| mountpoint.join(name);
    assert_eq!(std::fs::read_to_string(at("hello")).unwrap(), "hello from the archive\n");
    assert_eq!(std::fs::read(at("sub/data")).unwrap(), big_contents());
    assert_eq!(std::fs::read_link(at("sub/link")).unwrap(), Path::new("../hello"));
    let ran = Command::new(at("script")).output().unwrap();
    assert_eq!(ran.stdout, b"ran\n");

    std::fs::write(at("new"), "new").unwrap();
    std::fs::write(at("hello"), "changed").unwrap();
    std::fs::remove_file(at("sub/data")).unwrap();
    std::fs::rename(at("sub"), at("moved")).unwrap();
    assert_eq!(std::fs::read_to_string(at("hello")).unwrap(), "changed");
    let mut names: Vec<_> = std::fs::read_dir(&mountpoint)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["hello", "moved", "new", "script"]);
    assert!(!at("moved/data").exists());

    bench.ok(&["unmount", text(&mountpoint)]);
    bench.assert_nothing_left();
    assert!(std::fs::read_dir(&mountpoint).unwrap().next().is_none());
    assert_eq!(std::fs::read(&archive).unwrap(), before, "the archive was written to");
}

#[test]
fn changes_in_an_upper_outlive_the_mount() {
    if !can_mount("changes_in_an_upper_outlive_the_mount") {
        return;
    }
    let (bench, archive, mountpoint) = prepared();
    let upper = bench.path("upper");
    let mount = ["mount", text(&archive), text(&mountpoint), "--upper", text(&upper)];
    bench.ok(&mount);
    std::fs::write(mountpoint.join("kept"), "kept").unwrap();
    std::fs::remove_file(mountpoint.join("hello")).unwrap();
    let ino = std::fs::metadata(mountpoint.join("kept")).unwrap().ino();
    bench.ok(&["unmount", text(&mountpoint)]);
    bench.assert_nothing_left();

    bench.ok(&mount);
    assert_eq!(std::fs::read_to_string(mountpoint.join("kept")).unwrap(), "kept");
    assert!(!mountpoint.join("hello").exists());
    assert_eq!(std::fs::metadata(mountpoint.join("kept")).unwrap().ino(), ino);
    bench.ok(&["unmount", text(&mountpoint)]);
    assert!(upper.join("kept").exists());
}

#[test]
fn an_upper_is_kept_when_asked() {
    if !can_mount("an_upper_is_kept_when_asked") {
        return;
    }
    let (bench, archive, mountpoint) = prepared();
    let said = bench.ok(&["--json", "mount", text(&archive), text(&mountpoint), "--keep-upper"]);
    let ready: serde_json::Value = serde_json::from_str(&said).unwrap();
    let upper = PathBuf::from(ready["upper"].as_str().unwrap());
    std::fs::write(mountpoint.join("kept"), "kept").unwrap();
    bench.ok(&["unmount", text(&mountpoint)]);
    assert_eq!(std::fs::read_to_string(upper.join("kept")).unwrap(), "kept");
}

#[test]
fn a_read_only_mount_refuses_changes_and_has_no_upper() {
    if !can_mount("a_read_only_mount_refuses_changes_and_has_no_upper") {
        return;
    }
    let (bench, archive, mountpoint) = prepared();
    bench.ok(&["mount", "--read-only", text(&archive), text(&mountpoint)]);
    let refused = std::fs::write(mountpoint.join("new"), "").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    assert_eq!(std::fs::read(mountpoint.join("sub/data")).unwrap(), big_contents());
    assert!(!bench.state_dir().join("uppers").exists());
    bench.ok(&["unmount", text(&mountpoint)]);
    bench.assert_nothing_left();
}

#[test]
fn an_archive_is_found_at_an_offset() {
    if !can_mount("an_archive_is_found_at_an_offset") {
        return;
    }
    let (bench, archive, mountpoint) = prepared();
    let shifted = bench.path("app");
    let mut bytes = vec![0x7f; 12_345];
    bytes.extend(std::fs::read(&archive).unwrap());
    std::fs::write(&shifted, bytes).unwrap();
    bench.ok(&["mount", text(&shifted), text(&mountpoint), "--offset", "12345"]);
    assert_eq!(std::fs::read(mountpoint.join("sub/data")).unwrap(), big_contents());
    bench.ok(&["unmount", text(&mountpoint)]);
}

#[test]
fn status_tells_what_is_mounted() {
    if !can_mount("status_tells_what_is_mounted") {
        return;
    }
    let (bench, archive, mountpoint) = prepared();
    assert_eq!(bench.ok(&["status"]), "nothing is mounted\n");
    bench.ok(&["mount", text(&archive), text(&mountpoint)]);
    std::fs::read(mountpoint.join("sub/data")).unwrap();
    let said = bench.ok(&["status", text(&mountpoint), "--json"]);
    let status: serde_json::Value = serde_json::from_str(&said).unwrap();
    let mount = &status[0];
    assert_eq!(mount["state"], "live");
    assert_eq!(mount["mountpoint"], text(&mountpoint));
    assert_eq!(mount["source"], text(&archive));
    assert_eq!(mount["archive"]["compressor"], "zstd");
    assert_eq!(mount["faults"]["count"], 0);
    assert!(mount["blocks"]["decoded"].as_u64().unwrap() >= 9, "{said}");
    assert!(mount["residentBytes"].as_u64().unwrap() > 1 << 20);
    assert!(bench.ok(&["status"]).contains(text(&archive)));
    bench.ok(&["unmount", text(&mountpoint)]);
}

#[test]
fn a_foreground_server_ends_with_umount() {
    if !can_mount_with("a_foreground_server_ends_with_umount", &[Need::Processes]) {
        return;
    }
    let (bench, archive, mountpoint) = prepared();
    let mut server = bench
        .thawfs()
        .args(["mount", "--foreground", text(&archive), text(&mountpoint)])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it is mounted", || mountpoint.join("hello").exists());
    let environment = std::fs::read(format!("/proc/{}/environ", server.id())).unwrap();
    let arenas = environment.split(|byte| *byte == 0).any(|entry| entry == b"MALLOC_ARENA_MAX=2");
    assert!(arenas, "the server keeps its heap small, in the process that was started");
    // It may still be looking at the mount itself, which keeps it busy.
    eventually("it is unmounted", || {
        Command::new("umount").arg(&mountpoint).status().unwrap().success()
    });
    assert!(server.wait().unwrap().success());
    bench.assert_nothing_left();
}

#[test]
fn a_terminated_server_unmounts() {
    if !can_mount_with("a_terminated_server_unmounts", &[Need::Processes]) {
        return;
    }
    use rustix::process::{Pid, Signal, kill_process};
    let (bench, archive, mountpoint) = prepared();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        bench.ok(&["mount", text(&archive), text(&mountpoint)]);
        let pid = bench.servers()[0];
        kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
        eventually("the server has ended", || bench.servers().is_empty());
        bench.assert_nothing_left();
    }
}

#[test]
fn a_killed_server_is_reported_and_cleared() {
    if !can_mount("a_killed_server_is_reported_and_cleared") {
        return;
    }
    let (bench, archive, mountpoint) = prepared();
    let upper = bench.path("upper");
    bench.ok(&["mount", text(&archive), text(&mountpoint), "--upper", text(&upper)]);
    let pid = bench.servers()[0];
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid as i32).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    eventually("the server has ended", || bench.servers().is_empty());
    let status: serde_json::Value = serde_json::from_str(&bench.ok(&["status", "--json"])).unwrap();
    assert_eq!(status[0]["state"], "dead");
    let refused = bench.run(&["mount", text(&archive), text(&mountpoint)]);
    assert_eq!(refused.status.code(), Some(10));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("thawfs unmount"));
    bench.ok(&["unmount", text(&mountpoint)]);
    bench.assert_nothing_left();
}

#[test]
fn a_busy_mount_is_refused_then_detached() {
    if !can_mount("a_busy_mount_is_refused_then_detached") {
        return;
    }
    let (bench, archive, mountpoint) = prepared();
    bench.ok(&["mount", text(&archive), text(&mountpoint)]);
    let mut open = std::fs::File::open(mountpoint.join("sub/data")).unwrap();
    let refused = bench.run(&["unmount", text(&mountpoint)]);
    assert_eq!(refused.status.code(), Some(13));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--lazy"));
    bench.ok(&["unmount", "--lazy", text(&mountpoint)]);
    assert!(!mountpoint.join("hello").exists());
    // Whoever has the file open keeps it.
    let mut contents = Vec::new();
    std::io::Read::read_to_end(&mut open, &mut contents).unwrap();
    assert_eq!(contents, big_contents());
    drop(open);
    eventually("the server has ended", || bench.servers().is_empty());
    bench.assert_nothing_left();
}

#[test]
fn of_two_mounts_at_once_one_wins() {
    if !can_mount_with("of_two_mounts_at_once_one_wins", &[Need::Processes]) {
        return;
    }
    let (bench, archive, mountpoint) = prepared();
    let codes: Vec<_> = std::thread::scope(|scope| {
        let mounts: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| bench.run(&["mount", text(&archive), text(&mountpoint)])))
            .collect();
        mounts.into_iter().map(|mount| mount.join().unwrap().status.code()).collect()
    });
    assert_eq!(codes.iter().filter(|code| **code == Some(0)).count(), 1, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == Some(10)).count(), 3, "{codes:?}");
    bench.ok(&["unmount", text(&mountpoint)]);
    bench.assert_nothing_left();
}

#[test]
fn a_mount_has_a_name() {
    if !can_mount("a_mount_has_a_name") {
        return;
    }
    let (bench, archive, mountpoint) = prepared();
    bench.ok(&["mount", text(&archive), text(&mountpoint), "--fsname", "my backup,1"]);
    let mounts = thawfs::server::mounts::read_mount_at(&mountpoint).unwrap().unwrap();
    assert_eq!((&*mounts.fs_type, &*mounts.source), ("fuse.thawfs", "my backup,1"));
    bench.ok(&["unmount", text(&mountpoint)]);
}

#[test]
fn mount_8_knows_the_type_and_remounts() {
    if !can_mount_with("mount_8_knows_the_type_and_remounts", &[Need::Root]) {
        return;
    }
    let (bench, archive, mountpoint) = prepared();
    // mount(8) looks for helpers in /sbin alone.
    let helper = Path::new("/sbin/mount.fuse.thawfs");
    if helper.exists() {
        skip("mount_8_knows_the_type_and_remounts", &format!("{} exists", helper.display()));
        return;
    }
    struct Helper<'a>(&'a Path);
    impl Drop for Helper<'_> {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(self.0);
        }
    }
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_thawfs"), helper).unwrap();
    let _helper = Helper(helper);
    let upper = bench.path("up,per");
    let mount = |arguments: &[&str]| {
        let output = Command::new("mount")
            .args(arguments)
            .env("THAWFS_STATE_DIR", bench.state_dir())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let options = format!("upper={},noatime,nofail", text(&upper).replace(',', "\\,"));
    mount(&["-t", "fuse.thawfs", text(&archive), text(&mountpoint), "-o", &options]);
    std::fs::write(mountpoint.join("new"), "new").unwrap();
    assert!(upper.join("new").exists());

    mount(&["-o", "remount,ro", text(&mountpoint)]);
    let refused = std::fs::write(mountpoint.join("newer"), "").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    mount(&["-o", "remount,rw", text(&mountpoint)]);
    std::fs::write(mountpoint.join("newer"), "").unwrap();

    assert!(Command::new("umount").arg(&mountpoint).status().unwrap().success());
    eventually("the server has ended", || bench.servers().is_empty());
    bench.assert_nothing_left();
}

#[test]
fn an_ordinary_user_mounts_through_fusermount3() {
    if !can_mount_with("an_ordinary_user_mounts_through_fusermount3", &[Need::Root]) {
        return;
    }
    open_fuse_to_users();

    let (bench, _, mountpoint) = prepared();
    const NOBODY: u32 = 65_534;
    let owner = ["-force-uid", "65534", "-force-gid", "65534"];
    let archive = bench.archive(&bench.path("tree"), "mine.sqsh", &owner);
    // The program must be where the user can get at it.
    let program = bench.path("thawfs");
    std::fs::copy(env!("CARGO_BIN_EXE_thawfs"), &program).unwrap();
    for path in [&mountpoint, &bench.directory("state")] {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let script = format!(
        "set -e
         umask 022
         {0} mount {1} {2} >&2
         cat {2}/hello
         echo changed > {2}/hello; cat {2}/hello
         mkdir {2}/dir; mv {2}/sub/data {2}/dir/; rm -r {2}/sub; ls {2}
         head -c 1000000 /dev/zero > {2}/zeros; stat -c '%s %U' {2}/zeros
         {0} unmount {2}
         {0} --quiet mount {1} {2}
         fusermount3 -u {2}",
        text(&program),
        text(&archive),
        text(&mountpoint)
    );
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", &script])
        .env("THAWFS_STATE_DIR", bench.state_dir())
        .env("HOME", bench.path(""))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "hello from the archive\nchanged\ndir\nhello\nscript\n1000000 nobody\n"
    );
    eventually("the server has ended", || bench.servers().is_empty());
    bench.assert_nothing_left();
}

#[test]
fn bad_input_is_named_and_leaves_nothing() {
    if !can_mount("bad_input_is_named_and_leaves_nothing") {
        return;
    }
    let (bench, archive, mountpoint) = prepared();
    let good = std::fs::read(&archive).unwrap();
    let broken = |name: &str, bytes: &[u8]| {
        std::fs::write(bench.path(name), bytes).unwrap();
    };
    broken("text", b"this is no archive at all, only some text that goes on for a while, and on\n");
    broken("short", &good[..50]);
    broken("truncated", &good[..good.len() / 2]);
    let mut version = good.clone();
    version[28] = 3;
    broken("version", &version);
    let mut lzma = good.clone();
    lzma[20] = 2;
    broken("lzma", &lzma);
    broken("backup.tar.zst", &good);
    std::fs::create_dir(bench.path("directory")).unwrap();
    let (m, at) = (text(&mountpoint), |name: &str| text(&bench.path(name)).to_owned());

    // Arguments, exit status, and what the one line has to name.
    let cases: Vec<(Vec<String>, i32, &str)> = vec![
        (vec![at("nowhere.sqsh"), m.into()], 3, "nowhere.sqsh"),
        (vec![at("directory"), m.into()], 3, "directory/data.sqsh"),
        (vec![at("text"), m.into()], 5, "text"),
        (vec![at("short"), m.into()], 5, "short"),
        (vec![at("truncated"), m.into()], 6, "truncated"),
        (vec![at("version"), m.into()], 7, "3.0"),
        (vec![at("lzma"), m.into()], 7, "lzma"),
        (vec![at("backup.tar.zst"), m.into()], 7, "tar.zst"),
        (vec!["ftp://host/x".into(), m.into()], 2, "ftp"),
        (vec![at("data.sqsh"), at("missing")], 10, "missing"),
        (vec![at("data.sqsh"), at("text")], 10, "not a directory"),
        (vec![at("data.sqsh"), m.into(), "--upper".into(), m.into()], 11, "within each other"),
        (vec![at("data.sqsh"), m.into(), "--upper".into(), at("text")], 11, "text"),
        (vec![at("data.sqsh"), m.into(), "-o".into(), "sparkle".into()], 2, "sparkle"),
        (vec![at("data.sqsh"), m.into(), "--offset".into(), "77".into()], 5, "data.sqsh"),
        (
            vec![at("data.sqsh"), m.into(), "--read-only".into(), "--upper".into(), at("u")],
            2,
            "--upper",
        ),
    ];
    for (arguments, status, named) in cases {
        let output = bench.thawfs().arg("mount").args(&arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        assert!(said.contains(named), "{arguments:?}: {said}");
        if status != 2 {
            assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
        }
        bench.assert_nothing_left();
    }

    let output = bench.run(&["unmount", m]);
    assert_eq!(output.status.code(), Some(14));
    let output = bench.run(&["--json", "mount", &at("text"), m]);
    let failure: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(failure["code"], "NOT_AN_ARCHIVE");
    assert!(failure["message"].as_str().unwrap().contains("text"));
}

#[test]
fn a_mountpoint_with_files_is_hidden_with_a_warning() {
    if !can_mount("a_mountpoint_with_files_is_hidden_with_a_warning") {
        return;
    }
    let (bench, archive, mountpoint) = prepared();
    std::fs::write(mountpoint.join("mine"), "mine").unwrap();
    let output = bench.run(&["mount", text(&archive), text(&mountpoint)]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("not empty"));
    assert!(!mountpoint.join("mine").exists());
    bench.ok(&["unmount", text(&mountpoint)]);
    assert_eq!(std::fs::read_to_string(mountpoint.join("mine")).unwrap(), "mine");
}

#[test]
fn files_made_in_the_mount_belong_to_who_made_them() {
    if !can_mount_with("files_made_in_the_mount_belong_to_who_made_them", &[Need::Root]) {
        return;
    }
    let (bench, archive, mountpoint) = prepared();
    bench.ok(&["mount", text(&archive), text(&mountpoint)]);
    let shared = mountpoint.join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, PermissionsExt::from_mode(0o1777)).unwrap();
    let made = Command::new("setpriv")
        .args(["--reuid=1234", "--regid=4321", "--clear-groups", "sh", "-c"])
        .arg("umask 027; cd \"$0\" && echo x > file && mkdir dir")
        .arg(&shared)
        .status()
        .unwrap();
    assert!(made.success());
    for (name, mode) in [("file", 0o100640), ("dir", 0o040750)] {
        let stat = std::fs::metadata(shared.join(name)).unwrap();
        assert_eq!((stat.uid(), stat.gid(), stat.mode()), (1234, 4321, mode), "{name}");
    }
    bench.ok(&["unmount", text(&mountpoint)]);
}

#[test]
fn without_the_device_or_the_right_the_mount_says_so() {
    if !can_mount_with("without_the_device_or_the_right_the_mount_says_so", &[Need::Root]) {
        return;
    }
    let (bench, archive, mountpoint) = prepared();
    let program = bench.path("thawfs");
    std::fs::copy(env!("CARGO_BIN_EXE_thawfs"), &program).unwrap();
    let theirs = bench.directory("theirs");
    std::fs::set_permissions(&theirs, PermissionsExt::from_mode(0o777)).unwrap();
    let mount = format!("{} mount {} {}", text(&program), text(&archive), text(&mountpoint));
    let hidden = format!("mount -t tmpfs none /dev && exec {mount}");
    let mount = format!("THAWFS_STATE_DIR={} {mount}", text(&theirs));
    // A program that starts the mount, its arguments, and what the one line has to name.
    let cases: [(&str, &[&str], &str); 2] = [
        ("unshare", &["--mount", "sh", "-c", &hidden], "/dev/fuse does not exist"),
        // Somebody else's directory.
        (
            "setpriv",
            &["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", &mount],
            "mnt",
        ),
    ];
    for (starter, arguments, named) in cases {
        let output = Command::new(starter)
            .args(arguments)
            .env("THAWFS_STATE_DIR", bench.state_dir())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(12), "{starter}: {said}");
        assert_eq!(said.lines().count(), 1, "{starter}: {said}");
        assert!(said.contains(named), "{starter}: {said}");
        bench.assert_nothing_left();
    }
}

#[test]
fn a_write_takes_setuid_bits_away_as_a_local_disk_does() {
    if !can_mount_with("a_write_takes_setuid_bits_away_as_a_local_disk_does", &[Need::Root]) {
        return;
    }
    let (bench, archive, mountpoint) = prepared();
    bench.ok(&["mount", text(&archive), text(&mountpoint)]);
    let local = bench.directory("local");
    // Who writes, and how; each on a fresh file of mode 6777 with a capability.
    let ways = [
        "echo x >> $0",
        "echo x > $0",
        "truncate -s 1 $0",
        "fallocate -l 10000 $0",
        "dd if=/dev/zero of=$0 bs=1 count=1 conv=notrunc status=none",
        "python3 -c 'import os,sys; f=os.open(sys.argv[1],os.O_RDWR); os.pwrite(f,b\"x\",0)' $0",
        "chown 1 $0",
        "chmod 6755 $0",
        "cat $0",
        "touch $0",
    ];
    for (number, way) in ways.iter().enumerate() {
        for user in [0, 4242] {
            let result_in = |directory: &Path| {
                let file = directory.join(format!("file-{number}-{user}"));
                std::fs::write(&file, "contents").unwrap();
                std::fs::set_permissions(&file, PermissionsExt::from_mode(0o6777)).unwrap();
                let capable =
                    Command::new("setcap").arg("cap_net_raw+ep").arg(&file).status().unwrap();
                assert!(capable.success());
                // What it says and whether it may is compared, too.
                let output = Command::new("setpriv")
                    .args([&format!("--reuid={user}"), &format!("--regid={user}")])
                    .args(["--clear-groups", "sh", "-c", way])
                    .arg(&file)
                    .output()
                    .unwrap();
                let capability = Command::new("getcap").arg(&file).output().unwrap().stdout;
                let mode = std::fs::metadata(&file).unwrap().mode();
                (output.status.code(), mode, capability.is_empty())
            };
            assert_eq!(result_in(&mountpoint), result_in(&local), "{way} as {user}");
        }
    }
    bench.ok(&["unmount", text(&mountpoint)]);
}

#[test]
fn an_archive_of_an_empty_directory_is_mounted() {
    if !can_mount("an_archive_of_an_empty_directory_is_mounted") {
        return;
    }
    let (bench, _, mountpoint) = prepared();
    for flags in [&[][..], &["-no-exports"], &["-no-exports", "-no-xattrs", "-no-fragments"]] {
        let archive = bench.archive(&bench.directory("nothing"), "nothing.sqsh", flags);
        bench.ok(&["mount", text(&archive), text(&mountpoint)]);
        assert_eq!(std::fs::read_dir(&mountpoint).unwrap().count(), 0);
        std::fs::write(mountpoint.join("first"), "first").unwrap();
        bench.ok(&["unmount", text(&mountpoint)]);
    }
}

#[test]
fn a_listing_has_the_directory_itself_and_its_parent() {
    if !can_mount("a_listing_has_the_directory_itself_and_its_parent") {
        return;
    }
    let (bench, archive, mountpoint) = prepared();
    bench.ok(&["mount", text(&archive), text(&mountpoint)]);
    std::fs::create_dir_all(mountpoint.join("upper/inner")).unwrap();
    // The root (whose parent the kernel shows as itself to FUSE), one from the archive, one from the
    // upper, and one that is merged; twice, because the second may come from the kernel's memory.
    std::fs::write(mountpoint.join("sub/deeper/new"), "").unwrap();
    for name in ["", "sub", "sub/deeper", "upper", "upper/inner"] {
        let directory = mountpoint.join(name);
        for _ in 0..2 {
            let opened = std::fs::File::open(&directory).unwrap();
            let listed: std::collections::BTreeMap<Vec<u8>, u64> =
                rustix::fs::Dir::read_from(&opened)
                    .unwrap()
                    .map(|entry| entry.unwrap())
                    .map(|entry| (entry.file_name().to_bytes().to_vec(), entry.ino()))
                    .collect();
            let ino = |path: &Path| std::fs::symlink_metadata(path).unwrap().ino();
            assert_eq!(listed.get(&b"."[..]), Some(&ino(&directory)), "{name}");
            let parent = if name.is_empty() { &*directory } else { directory.parent().unwrap() };
            assert_eq!(listed.get(&b".."[..]), Some(&ino(parent)), "{name}");
            for (name, shown) in &listed {
                if name != b"." && name != b".." {
                    let name = std::ffi::OsStr::new(std::str::from_utf8(name).unwrap());
                    assert_eq!(*shown, ino(&directory.join(name)), "{}", name.display());
                }
            }
        }
    }
    bench.ok(&["unmount", text(&mountpoint)]);
}

#[test]
fn both_names_of_the_mount_helper_mount() {
    if !can_mount("both_names_of_the_mount_helper_mount") {
        return;
    }
    let (bench, archive, mountpoint) = prepared();
    for name in ["mount.thawfs", "mount.fuse.thawfs"] {
        let helper = |arguments: &[&str]| bench.thawfs_as(name).args(arguments).output().unwrap();
        let output = helper(&[text(&archive), text(&mountpoint), "-n", "-o", "ro,nofail"]);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(mountpoint.join("hello").exists(), "{name}");
        bench.ok(&["unmount", text(&mountpoint)]);
        // mount(8)'s own exit codes: wrong usage, and a mount that failed.
        assert_eq!(helper(&[text(&archive)]).status.code(), Some(1), "{name}");
        let missing = text(&bench.path("nowhere.sqsh")).to_owned();
        assert_eq!(helper(&[&missing, text(&mountpoint)]).status.code(), Some(32), "{name}");
    }
    bench.assert_nothing_left();
}
