//! What a mount gives nobody: rights that are in its archive.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::mount::{Bench, can_mount_with, write_tree};
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
