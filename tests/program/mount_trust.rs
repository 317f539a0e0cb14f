//! What a mount gives nobody: rights that are in its archive.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::mount::{Bench, can_mount, can_mount_with, write_tree};
use crate::support::surrounding::Need;
use crate::support::words::{NOBODY, as_nobody, said, text};

/// An archive with a setuid program, one with a capability, and a device; and a mountpoint.
fn privileged() -> (Bench, PathBuf, PathBuf) {
    let bench = Bench::new();
    let tree = bench.directory("tree");
    write_tree(&tree);
    let made = Command::new("sh")
        .args(["-ec", "cd $0; cp $(command -v id) id; chmod 4755 id"])
        .arg(&tree)
        .status();
    assert!(made.unwrap().success());
    let made = Command::new("sh")
        .args(["-ec", "cd $0; cp $(command -v cat) cat; setcap cap_dac_override+ep cat"])
        .arg(&tree)
        .status();
    assert!(made.unwrap().success());
    let made = Command::new("sh")
        .args(["-ec", "cd $0; mknod zero c 1 5; chmod 666 zero"])
        .arg(&tree)
        .status();
    assert!(made.unwrap().success());
    let archive = bench.archive(&tree, "data.sqsh", &["-comp", "zstd"]);
    let mountpoint = bench.directory("mnt");
    (bench, archive, mountpoint)
}

/// Whether, in the mount, an ordinary user becomes root by a setuid program, gains by a capability, and
/// root may open a device. The files that tell are made in the mount as well as in the archive.
fn gains(bench: &Bench, mountpoint: &Path) -> [bool; 3] {
    let secret = bench.path("secret");
    std::fs::write(&secret, "secret").unwrap();
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
    let new = mountpoint.join("new");
    if !new.exists() {
        let copied = Command::new("cp").arg("-a").arg(bench.path("tree")).arg(&new).status();
        assert!(copied.unwrap().success());
    }
    let [archive, made] = [mountpoint, &new].map(|at| {
        let id = as_nobody(at.join("id")).arg("-u").output().unwrap();
        assert!(id.status.success(), "{}", said(&id));
        let cat = as_nobody(at.join("cat")).arg(&secret).output().unwrap();
        [id.stdout == b"0\n", cat.status.success(), std::fs::File::open(at.join("zero")).is_ok()]
    });
    assert_eq!(archive, made, "of the archive, and made in the mount");
    archive
}

#[test]
fn rights_and_devices_are_given_to_whoever_asks_for_them_alone() {
    if !can_mount_with("rights_and_devices_are_given_to_whoever_asks_for_them_alone", &[Need::Root])
    {
        return;
    }
    let (bench, archive, mountpoint) = privileged();
    // Options, whether programs get rights, and whether devices can be opened.
    let cases: [(&[&str], bool, bool); 10] = [
        (&[], false, false),
        (&["-o", "defaults"], false, false),
        (&["-o", "rw,exec,allow_other"], false, false),
        (&["-o", "suid"], true, false),
        (&["-o", "dev"], false, true),
        (&["-o", "suid,dev"], true, true),
        (&["-o", "suid,dev,nosuid"], false, true),
        (&["-o", "nodev,suid", "-o", "dev"], true, true),
        (&["-o", "allow_suid"], true, false),
        (&["-o", "allow_dev,no_passthrough"], false, true),
    ];
    for (options, suid, dev) in cases {
        bench.ok(&[&["mount", text(&archive), text(&mountpoint)], options].concat());
        assert_eq!(gains(&bench, &mountpoint), [suid, suid, dev], "{options:?}");
        bench.ok(&["unmount", text(&mountpoint)]);
    }
    bench.assert_nothing_left();
}

#[test]
fn a_remount_changes_what_it_names_alone() {
    if !can_mount_with("a_remount_changes_what_it_names_alone", &[Need::Root, Need::Processes]) {
        return;
    }
    let (bench, archive, mountpoint) = privileged();
    let options = || {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let line = mounts.lines().find(|line| line.contains(text(&mountpoint))).unwrap();
        let options = line.split(' ').nth(3).unwrap().split(',');
        let known = ["ro", "rw", "nosuid", "nodev", "noexec", "noatime", "sync"];
        options.filter(|option| known.contains(option)).collect::<Vec<_>>().join(",")
    };
    bench.ok(&["mount", text(&archive), text(&mountpoint)]);
    assert_eq!(options(), "rw,nosuid,nodev");
    // What mount(8) hands on, one after the other, and what the mount is then.
    for (asked, then) in [
        ("rw,remount", "rw,nosuid,nodev"),
        ("remount", "rw,nosuid,nodev"),
        ("remount,ro", "ro,nosuid,nodev"),
        ("remount,defaults", "ro,nosuid,nodev"),
        ("rw,suid,remount", "rw,nodev"),
        ("rw,remount", "rw,nodev"),
        ("remount,noexec", "rw,nodev,noexec"),
        ("remount,nosuid,allow_dev", "rw,nosuid,noexec"),
        ("remount,exec", "rw,nosuid"),
        ("remount,rw,nosuid,nodev,allow_suid,allow_dev", "rw"),
        ("remount,nodev,nosuid,sync", "rw,sync,nosuid,nodev"),
        ("remount,ro", "ro,sync,nosuid,nodev"),
        ("remount,rw,async", "rw,nosuid,nodev"),
    ] {
        let helper = bench
            .thawfs_as("mount.fuse.thawfs")
            .args([text(&archive), text(&mountpoint), "-o", asked])
            .output()
            .unwrap();
        assert!(helper.status.success(), "{asked}: {}", said(&helper));
        assert_eq!(options(), then, "{asked}");
    }
    assert_eq!(gains(&bench, &mountpoint), [false; 3]);
    bench.ok(&["unmount", text(&mountpoint)]);
    bench.assert_nothing_left();
}

/// The lines of `/proc/self/mounts` for what is mounted there.
fn lines(mountpoint: &Path) -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let lines = mounts.lines().filter(|line| line.contains(text(mountpoint)));
    lines.map(str::to_owned).collect()
}

#[test]
fn a_remount_refuses_by_name_what_it_cannot_change() {
    let test = "a_remount_refuses_by_name_what_it_cannot_change";
    if !can_mount_with(test, &[Need::Root, Need::Processes, Need::Passthrough]) {
        return;
    }
    let (bench, archive, mountpoint) = privileged();
    let helper = |options: &str, more: &[&str]| {
        let mut helper = bench.thawfs_as("mount.fuse.thawfs");
        helper.args([text(&archive), text(&mountpoint)]).args(more).args(["-o", options]);
        helper.output().unwrap()
    };
    let refused = |options: &str, more: &[&str], name: &str| {
        let before = lines(&mountpoint);
        let output = helper(options, more);
        assert_eq!(output.status.code(), Some(1), "{options}: {}", said(&output));
        assert!(said(&output).contains(name), "{options}: {}", said(&output));
        assert_eq!(lines(&mountpoint), before, "{options}");
    };
    let same = |options: &str, more: &[&str]| {
        let before = lines(&mountpoint);
        let output = helper(options, more);
        assert!(output.status.success(), "{options}: {}", said(&output));
        assert_eq!(said(&output), "", "{options}");
        assert_eq!(lines(&mountpoint), before, "{options}");
    };
    bench.ok(&["mount", text(&archive), text(&mountpoint)]);
    for option in [
        "upper=/x",
        "upperdir=/x",
        "workdir=/x",
        "keep_upper",
        "fsname=x",
        "uid=5",
        "gid=5",
        "squash_to_uid=5",
        "squash_to_gid=5",
        "squash_to_root",
        "uidmapping=0:5:1",
        "gidmapping=0:5:1",
        "no_passthrough",
        "entry_ttl=1",
        "attr_ttl=1",
        "max_nodes=1",
        "offset=1",
        "cache_memory=1M",
        "disk_cache=64M",
        "share_trace",
        "fill=1M",
        "endpoint=x",
        "region=x",
        "profile=x",
        "anonymous",
        "virtual_host_style",
        "timeout=1",
        "allow_redirects_to=x",
        "dirsync",
        "strictatime",
        "lazytime",
        "bogus",
        "bogus=1",
        "uid=x",
        "user_id=5",
    ] {
        let name = option.split('=').next().unwrap();
        refused(&format!("remount,{option}"), &[], name);
        refused(&format!("ro,{option},remount"), &[], name);
    }
    refused("remount,uid=5", &["-s"], "uid");
    // What speaks to others, what the kernel shows of the mount, and what it has by default.
    same("remount,defaults,nofail,_netdev,x-systemd.automount,comment=a,relatime", &[]);
    same("rw,user_id=0,group_id=0,default_permissions,allow_other,nosuid,nodev,remount", &[]);
    same("remount,timeout=30,max_nodes=160K,entry_ttl=365d,offset=0", &[]);
    same("remount,bogus", &["-s"]);
    bench.ok(&["unmount", text(&mountpoint)]);

    // A line of fstab, with an upper named through a symlink.
    let (upper, link) = (bench.directory("up,per"), bench.path("link"));
    std::os::unix::fs::symlink(&upper, &link).unwrap();
    let line = format!(
        "rw,nofail,_netdev,x-a,upper={},uid=6,uid=5,gidmapping=0:0:1000,no_passthrough,dirsync,fsname=a b,\
         allow_redirects_to=b,allow_redirects_to=a,attr_ttl=1h,timeout=5m",
        text(&link)
    );
    let output = helper(&line, &[]);
    assert!(output.status.success(), "{}", said(&output));
    same(&format!("{line},remount"), &[]);
    same(&format!("{line},remount,timeout=300,squash_to_uid=5,allow_redirects_to=a"), &[]);
    for (option, name) in [("uid=6", "uid"), ("upper=/x", "upper"), ("timeout=1", "timeout")] {
        refused(&format!("{line},remount,ro,{option}"), &[], &format!("{name} cannot be set"));
    }
    refused(&format!("{line},remount,allow_redirects_to=c"), &[], "allow_redirects_to");
    let output = helper(&format!("{line},remount,ro"), &[]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(std::fs::write(mountpoint.join("new"), "").is_err());
    let output = helper(&format!("{line},remount"), &[]);
    assert!(output.status.success(), "{}", said(&output));
    std::fs::write(mountpoint.join("new"), "").unwrap();

    // Of a server that wrote no options down: no change that somebody could believe in, nor a refusal.
    let mounts = std::fs::read_dir(bench.state_dir().join("mounts")).unwrap();
    for mount in mounts {
        std::fs::remove_file(mount.unwrap().path().join("options.json")).unwrap();
    }
    let output = helper("remount,ro,uid=7", &[]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("does not change uid"), "{}", said(&output));
    assert!(std::fs::write(mountpoint.join("newer"), "").is_err());
    refused("remount,bogus", &[], "bogus");
    bench.ok(&["unmount", text(&mountpoint)]);

    // Where there is no upper, there is nowhere to write to.
    bench.ok(&["mount", text(&archive), text(&mountpoint), "--read-only"]);
    same("remount,ro", &[]);
    same("remount", &[]);
    refused("remount,rw", &[], "rw cannot be set");
    bench.ok(&["unmount", text(&mountpoint)]);
    bench.assert_nothing_left();
}

#[test]
fn what_a_mount_was_asked_for_with_holds_no_secret() {
    if !can_mount("what_a_mount_was_asked_for_with_holds_no_secret") {
        return;
    }
    let bench = Bench::new();
    write_tree(&bench.directory("tree"));
    let archive = bench.archive(&bench.path("tree"), "data.sqsh", &[]);
    let mountpoint = bench.directory("mnt");
    bench.ok(&["mount", text(&archive), text(&mountpoint), "-o", "attr_ttl=1h,fsname=shown"]);
    let mount = std::fs::read_dir(bench.state_dir().join("mounts")).unwrap().next().unwrap();
    let options = std::fs::read_to_string(mount.unwrap().path().join("options.json")).unwrap();
    assert!(options.contains("3600") && options.contains("shown"), "{options}");
    assert!(!options.contains("data.sqsh"), "the source may be a URL with a signature: {options}");
    bench.ok(&["unmount", text(&mountpoint)]);
    bench.assert_nothing_left();
}

#[test]
fn an_ordinary_user_who_asks_for_rights_is_refused_by_name() {
    if !can_mount_with("an_ordinary_user_who_asks_for_rights_is_refused_by_name", &[Need::Root]) {
        return;
    }
    let (bench, archive, mountpoint) = privileged();
    let program = bench.path("thawfs");
    std::fs::copy(env!("CARGO_BIN_EXE_thawfs"), &program).unwrap();
    for path in [&mountpoint, &bench.directory("state")] {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    for (options, named) in [("suid", "suid"), ("dev,suid,nosuid", "dev"), ("allow_dev", "dev")] {
        let refused = as_nobody(&program)
            .args(["mount", text(&archive), text(&mountpoint), "-o", options])
            .env("THAWFS_STATE_DIR", bench.state_dir())
            .output()
            .unwrap();
        assert_eq!(refused.status.code(), Some(12), "{options}: {}", said(&refused));
        assert!(said(&refused).contains(&format!("option {named} ")), "{}", said(&refused));
        bench.assert_nothing_left();
    }
}

#[test]
fn root_is_told_of_an_upper_that_others_can_reach() {
    if !can_mount_with("root_is_told_of_an_upper_that_others_can_reach", &[Need::Root]) {
        return;
    }
    let bench = Bench::new();
    write_tree(&bench.directory("tree"));
    let archive = bench.archive(&bench.path("tree"), "data.sqsh", &[]);
    let mountpoint = bench.directory("mnt");
    std::fs::set_permissions(bench.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    let place = bench.directory("place");
    let mode = |mode| std::fs::set_permissions(&place, PermissionsExt::from_mode(mode)).unwrap();
    let told = |more: &[&str]| {
        let mut command = bench.thawfs();
        command.args(["mount", text(&archive), text(&mountpoint)]).args(more);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        bench.ok(&["unmount", text(&mountpoint)]);
        said(&output).contains("others can reach")
    };
    let upper = place.join("upper");
    let named = ["--upper", text(&upper)];
    for (bits, expected) in [(0o755, true), (0o711, true), (0o710, true), (0o700, false)] {
        mode(bits);
        assert_eq!(told(&named), expected, "{bits:o}");
    }
    mode(0o755);
    assert!(!told(&[]), "the one that is made is below the state directory");
    assert!(!told(&[&named[..], &["-o", "suid,dev"]].concat()), "asked for");
    assert!(told(&[&named[..], &["-o", "suid"]].concat()), "one is not both");
    chown(&place, Some(4242), None).unwrap();
    mode(0o700);
    assert!(told(&named), "whose it is, he opens it");
    bench.assert_nothing_left();
}
