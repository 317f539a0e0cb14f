//! What a server makes is its user's alone, and what others made is not used for it.

use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::mount::{Bench, can_mount_with, write_tree};
use crate::support::place::Place;
use crate::support::surrounding::Need;
use crate::support::words::{NOBODY, as_nobody, said, text};

/// What below `path` is open for others to write.
fn open_to_others(path: &Path) -> (Vec<PathBuf>, Vec<String>) {
    let mut open = Vec::new();
    let mut names = Vec::new();
    for entry in walkdir::WalkDir::new(path) {
        let entry = entry.unwrap();
        names.push(entry.file_name().to_str().unwrap().to_owned());
        if entry.path().symlink_metadata().unwrap().permissions().mode() & 0o022 != 0 {
            open.push(entry.path().to_owned());
        }
    }
    (open, names)
}

#[test]
fn nothing_that_a_server_makes_is_open_for_others_to_write() {
    let test = "nothing_that_a_server_makes_is_open_for_others_to_write";
    if !can_mount_with(test, &[Need::DiskCache]) {
        return;
    }
    let place = Place::s3();
    let bench = &place.bench;
    write_tree(&bench.directory("tree"));
    bench.archive(&bench.path("tree"), "buckets/box/a.sqsh", &[]);
    let mountpoint = bench.directory("mnt");
    let shown = std::fs::metadata(bench.path("tree")).unwrap().permissions().mode();
    for upper in [None, Some(bench.path("own/upper"))] {
        // The server has an empty umask whatever its caller has; so has this caller.
        let mut mount = Command::new("sh");
        let own = place.thawfs();
        mount.args(["-c", "umask 0; exec \"$@\"", "sh"]).arg(own.get_program());
        mount.args(["mount", "s3://box/a.sqsh", text(&mountpoint), "-o", "no_passthrough"]);
        for (name, value) in own.get_envs() {
            match value {
                Some(value) => mount.env(name, value),
                None => mount.env_remove(name),
            };
        }
        if let Some(upper) = &upper {
            std::fs::create_dir_all(upper.parent().unwrap()).unwrap();
            mount.arg("--upper").arg(upper);
        }
        let mounted = mount.output().unwrap();
        assert!(mounted.status.success(), "{}", said(&mounted));
        std::fs::read(mountpoint.join("sub/data")).unwrap();
        assert_eq!(std::fs::metadata(&mountpoint).unwrap().permissions().mode(), shown);
        let (open, mut names) = open_to_others(&bench.state_dir());
        assert_eq!(open, Vec::<PathBuf>::new());
        let (open, more) = open_to_others(&bench.cache_dir());
        assert_eq!(open, Vec::<PathBuf>::new());
        names.extend(more);
        let mut expected = vec!["mount.json", "options.json", "log", "control", "lock", "archives"];
        match &upper {
            None => expected.extend(["origin.json", "upper", "work"]),
            Some(upper) => {
                let (open, more) = open_to_others(&upper.with_file_name(".upper.work"));
                assert_eq!(open, Vec::<PathBuf>::new());
                names.extend(more);
                expected.extend([".upper.work", "work", "notes"]);
            }
        }
        for name in expected {
            assert!(names.iter().any(|found| found == name), "{name} is not in {names:?}");
        }
        let status: serde_json::Value =
            serde_json::from_str(&bench.ok(&["status", "--json"])).unwrap();
        for group in status[0]["groups"].as_array().into_iter().flatten() {
            let path = Path::new(group["path"].as_str().unwrap());
            if group["because"].is_null() && path.exists() {
                let mode = std::fs::metadata(path).unwrap().permissions().mode();
                assert_eq!(mode & 0o022, 0, "{}", path.display());
            }
        }
        bench.ok(&["unmount", text(&mountpoint)]);
        // What was read first is kept for the next time.
        assert_eq!(open_to_others(&bench.cache_dir()).0, Vec::<PathBuf>::new());
        bench.assert_nothing_left();
    }
}

#[test]
fn a_state_directory_in_the_hands_of_another_user_is_not_used() {
    let test = "a_state_directory_in_the_hands_of_another_user_is_not_used";
    if !can_mount_with(test, &[Need::Root]) {
        return;
    }
    const OTHER: u32 = 4242;
    let bench = Bench::new();
    write_tree(&bench.directory("tree"));
    let archive = bench.archive(&bench.path("tree"), "data.sqsh", &[]);
    let program = bench.path("thawfs");
    std::fs::copy(env!("CARGO_BIN_EXE_thawfs"), &program).unwrap();
    let owned = |name: &str, owner: u32| {
        let path = bench.directory(name);
        chown(&path, Some(owner), Some(owner)).unwrap();
        path
    };
    let mountpoint = owned("mnt", NOBODY);
    // As `/tmp/thawfs-UID` may be, before that user comes.
    let theirs = owned("theirs", OTHER);
    std::fs::set_permissions(&theirs, PermissionsExt::from_mode(0o777)).unwrap();
    let home = owned("home", NOBODY);
    let link = bench.path("link");
    symlink(&home, &link).unwrap();
    lchown(&link, Some(OTHER), Some(OTHER)).unwrap();
    let inside = owned("inside", NOBODY);
    let precious = home.join("precious");
    std::fs::write(&precious, "precious").unwrap();
    for name in ["mounts", "uppers", "locks"] {
        symlink(&home, inside.join(name)).unwrap();
        lchown(inside.join(name), Some(OTHER), Some(OTHER)).unwrap();
    }
    for state in [&theirs, &link, &inside] {
        for arguments in [
            &["mount", text(&archive), text(&mountpoint)][..],
            &["unmount", text(&mountpoint)],
            &["status"],
        ] {
            let refused = as_nobody(&program)
                .args(arguments)
                .env("THAWFS_STATE_DIR", state)
                .output()
                .unwrap();
            let shown = said(&refused);
            assert_eq!(
                refused.status.code(),
                Some(1),
                "{} {arguments:?}: {shown}",
                state.display()
            );
            assert!(shown.contains(text(state)), "{shown}");
        }
    }
    // Root may look at what another user's says, but puts nothing into the hands of one.
    let mount = |state: &Path| {
        let mut command = bench.thawfs();
        command.args(["mount", text(&archive), text(&mountpoint)]).env("THAWFS_STATE_DIR", state);
        command.output().unwrap()
    };
    for state in [&theirs, &owned("new", OTHER)] {
        let refused = mount(state);
        assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
        assert!(said(&refused).contains("it belongs to another user"), "{}", said(&refused));
        assert_eq!(std::fs::read_dir(state).unwrap().count(), 0);
    }
    assert_eq!(std::fs::read_dir(&home).unwrap().count(), 1);
    assert_eq!(std::fs::read_to_string(precious).unwrap(), "precious");
}
