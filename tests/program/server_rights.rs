//! What a server may do, and what of it shows: no more rights than it needs, and none of what it knows.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use crate::support::mount::{can_mount_with, open_fuse_to_users, write_tree};
use crate::support::place::Place;
use crate::support::s3::{ACCESS_KEY, SECRET_KEY};
use crate::support::surrounding::{Need, skip};
use crate::support::words::{NOBODY, as_nobody, eventually, said, text};

/// The capabilities that CONFIGURATION.md lists, as /proc shows them.
const KEPT: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 21 | 1 << 27 | 1 << 31;

/// What it keeps besides where a program gives it keys.
const KILL: u64 = 1 << 5;

/// The lines of `/proc/PID/task/TID/status` of each thread that say what it may.
fn rights(pid: u32) -> Vec<BTreeMap<String, u64>> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let statuses = threads.filter_map(|thread| {
        // One that has ended meanwhile may nothing.
        std::fs::read_to_string(thread.unwrap().path().join("status")).ok()
    });
    statuses
        .map(|status| {
            let line = |line: &str| {
                let (name, value) = line.split_once(":\t")?;
                let value = u64::from_str_radix(value, 16).ok()?;
                (name.starts_with("Cap") || name == "NoNewPrivs").then(|| (name.to_owned(), value))
            };
            status.lines().filter_map(line).collect()
        })
        .collect()
}

/// Uses every right that a server of root has.
fn use_all_rights(mountpoint: &Path) {
    let done = Command::new("sh")
        .arg("-ec")
        .arg(
            "cd $0
             echo x > new; chown 12:34 new; chown 56 hello; chmod 2770 new
             mkdir shut; chown 12 shut; chmod 0 shut; echo y > shut/file; cat shut/file
             mknod null c 1 3; setcap cap_net_raw+ep new; getcap new
             setfattr -n trusted.x -v y hello; touch -d 2001-02-03 hello
             echo more >> sub/data; mv sub moved; rm -r moved/deeper
             chown 0:77 shut; chmod 2777 shut; setpriv --reuid=9 --regid=9 --clear-groups sh -c \
               'mkdir shut/d; echo x > shut/f'; stat -c '%g %a' shut/d",
        )
        .arg(mountpoint)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", said(&done));
    let shown = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!(shown, "y\nnew cap_net_raw=ep\n77 2755\n");
}

/// An archive in a bucket of an S3 server, and its URL.
fn in_a_bucket() -> (Place, &'static str) {
    let place = Place::s3();
    write_tree(&place.bench.directory("tree"));
    place.bench.archive(&place.bench.path("tree"), "buckets/box/a.sqsh", &[]);
    (place, "s3://box/a.sqsh")
}

#[test]
fn a_server_of_root_may_what_it_needs_and_no_more() {
    let test = "a_server_of_root_may_what_it_needs_and_no_more";
    if !can_mount_with(test, &[Need::Root, Need::Processes]) {
        return;
    }
    let (place, url) = in_a_bucket();
    let bench = &place.bench;
    let (mountpoint, upper) = (bench.directory("mnt"), bench.path("upper"));
    let all: u64 = rights(std::process::id())[0]["CapBnd"];
    let profile = bench.path("profile");
    let helper = format!(
        "[default]\ncredential_process = echo '{}'\n",
        serde_json::json!({"Version": 1, "AccessKeyId": ACCESS_KEY, "SecretAccessKey": SECRET_KEY})
    );
    std::fs::write(&profile, helper).unwrap();
    // In the background, in the foreground, and with a program that gives the keys.
    for way in ["detached", "foreground", "helper"] {
        let mut mount = place.thawfs();
        mount.args(["mount", url, text(&mountpoint), "--upper", text(&upper)]);
        if way == "helper" {
            mount.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
            mount.env("AWS_SHARED_CREDENTIALS_FILE", &profile);
        }
        let mut foreground = None;
        let pid = if way == "foreground" {
            let server = mount.arg("--foreground").stdout(std::process::Stdio::null());
            let server = foreground.insert(server.spawn().unwrap());
            eventually("it is mounted", || mountpoint.join("hello").exists());
            server.id()
        } else {
            let mounted = mount.output().unwrap();
            assert!(mounted.status.success(), "{way}: {}", said(&mounted));
            bench.servers()[0]
        };
        use_all_rights(&mountpoint);
        let threads = rights(pid);
        assert!(threads.len() > 4, "{way}: {threads:?}");
        for thread in threads {
            let mut expected = BTreeMap::from(
                [("CapInh", 0), ("CapPrm", KEPT), ("CapEff", KEPT), ("CapBnd", KEPT & all)]
                    .map(|(name, value)| (name.to_owned(), value)),
            );
            expected.insert("CapAmb".into(), 0);
            expected.insert("NoNewPrivs".into(), 1);
            if way == "helper" {
                // It is to find what it would find without us.
                expected.extend(["CapPrm", "CapEff"].map(|name| (name.into(), KEPT | KILL)));
                expected.insert("CapBnd".into(), all);
                expected.insert("NoNewPrivs".into(), 0);
            }
            assert_eq!(thread, expected, "{way}");
        }
        let status: serde_json::Value =
            serde_json::from_str(&bench.ok(&["status", "--json"])).unwrap();
        assert_eq!((&status[0]["state"], &status[0]["pid"]), (&"live".into(), &pid.into()));
        bench.ok(&["unmount", text(&mountpoint)]);
        if let Some(mut server) = foreground {
            assert!(server.wait().unwrap().success());
        }
        bench.assert_nothing_left();
        std::fs::remove_dir_all(&upper).unwrap();
    }
}

#[test]
fn what_a_server_knows_is_hidden_from_its_own_user() {
    let test = "what_a_server_knows_is_hidden_from_its_own_user";
    if !can_mount_with(test, &[Need::Root, Need::Processes]) {
        return;
    }
    open_fuse_to_users();
    let (place, url) = in_a_bucket();
    let bench = &place.bench;
    let program = bench.path("thawfs");
    std::fs::copy(env!("CARGO_BIN_EXE_thawfs"), &program).unwrap();
    let archive = bench.path("buckets/box/a.sqsh");
    let mountpoint = bench.directory("mnt");
    for path in [&mountpoint, &bench.directory("state")] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let bare = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    // What is mounted, with keys in the environment or not, `THAWFS_DEBUGGABLE`, and whether the user may
    // read the server's memory then.
    for (source, keys, debuggable, open) in [
        (url, true, "", false),
        (url, true, "0", false),
        (url, true, "1", true),
        (text(&archive), false, "", true),
        (text(&archive), true, "", false),
    ] {
        let run = |arguments: &[&str]| {
            let mut command = as_nobody(&program);
            command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
            for (name, value) in place.thawfs().get_envs() {
                if let Some(value) = value.filter(|_| keys || bare.iter().all(|key| name != *key)) {
                    command.env(name, value);
                }
            }
            command.env("THAWFS_DEBUGGABLE", debuggable).output().unwrap()
        };
        let case = format!("{source} {keys} {debuggable}");
        let mounted = run(&["mount", source, text(&mountpoint)]);
        assert!(mounted.status.success(), "{case}: {}", said(&mounted));
        let pid = bench.servers()[0];
        for name in ["environ", "maps", "fd/0"] {
            let read = as_nobody("head").arg("-c0").arg(format!("/proc/{pid}/{name}")).output();
            assert_eq!(read.unwrap().status.success(), open, "{case}: {name}");
        }
        // It answers and ends as ever: to its user, to root, and by a signal of its user.
        let status = run(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        assert_eq!(status[0]["state"], "live", "{case}");
        assert!(status[0]["residentBytes"].as_u64().unwrap() > 1 << 20, "{case}");
        assert!(bench.ok(&["status"]).contains(text(&mountpoint)), "{case}");
        // Nobody takes it for dead.
        for gc in [run(&["gc", "--yes"]), bench.run(&["gc", "--yes"])] {
            assert!(gc.status.success(), "{case}: {}", said(&gc));
        }
        let refused = run(&["unmount", "--dead", text(&mountpoint)]);
        assert_eq!(refused.status.code(), Some(13), "{case}: {}", said(&refused));
        let hello = as_nobody("cat").arg(mountpoint.join("hello")).output().unwrap();
        assert!(hello.status.success(), "{case}: {}", said(&hello));
        let upper = status[0]["upper"].as_str().unwrap();
        assert!(Path::new(upper).exists(), "{case}");
        if debuggable == "0" {
            let told = as_nobody("kill").arg(pid.to_string()).status().unwrap();
            assert!(told.success());
            eventually("the server has ended", || bench.servers().is_empty());
        } else {
            let unmounted = run(&["unmount", text(&mountpoint)]);
            assert!(unmounted.status.success(), "{case}: {}", said(&unmounted));
        }
        bench.assert_nothing_left();
    }
}

#[test]
fn what_a_server_of_root_knows_stays_hidden_whatever_it_does() {
    let test = "what_a_server_of_root_knows_stays_hidden_whatever_it_does";
    if !can_mount_with(test, &[Need::Root, Need::Processes]) {
        return;
    }
    let (place, url) = in_a_bucket();
    let bench = &place.bench;
    let archive = bench.path("buckets/box/a.sqsh");
    let mountpoint = bench.directory("mnt");
    // Whether root may look into it without the right to look into everything.
    let is_open = |pid: u32| {
        let mut look = Command::new("setpriv");
        look.args(["--bounding-set=-sys_ptrace", "readlink"]).arg(format!("/proc/{pid}/exe"));
        look.output().unwrap().status.success()
    };
    for (source, debuggable, open) in
        [(url, "", false), (url, "1", true), (text(&archive), "", true)]
    {
        let mut mount = place.thawfs();
        if source != url {
            mount.env_remove("AWS_SECRET_ACCESS_KEY").env_remove("AWS_ACCESS_KEY_ID");
        }
        mount.args(["mount", source, text(&mountpoint)]).env("THAWFS_DEBUGGABLE", debuggable);
        let mounted = mount.output().unwrap();
        assert!(mounted.status.success(), "{source}: {}", said(&mounted));
        let pid = bench.servers()[0];
        assert_eq!(is_open(pid), open, "{source} {debuggable}");
        // Its threads change their rights for a moment when an ordinary user opens a file that the kernel
        // then writes to by itself.
        let shared = mountpoint.join("shared");
        std::fs::create_dir(&shared).unwrap();
        chown(&shared, Some(NOBODY), Some(NOBODY)).unwrap();
        let script =
            "for n in 1 2 3 4 5 6 7 8; do (for m in 1 2 3 4 5; do echo x > $0/$n.$m; done) &
            done; wait";
        let written = as_nobody("sh").args(["-c", script]).arg(&shared).output().unwrap();
        assert!(written.status.success(), "{source}: {}", said(&written));
        assert_eq!(std::fs::read_dir(&shared).unwrap().count(), 40);
        assert_eq!(is_open(pid), open, "{source} {debuggable}, after writes");
        bench.ok(&["unmount", text(&mountpoint)]);
        bench.assert_nothing_left();
    }
}

#[test]
fn root_of_a_user_namespace_keeps_no_set_ids() {
    let test = "root_of_a_user_namespace_keeps_no_set_ids";
    if !can_mount_with(test, &[Need::Root]) {
        return;
    }
    let (place, _) = in_a_bucket();
    let bench = &place.bench;
    let mountpoint = bench.directory("mnt");
    bench.ok(&["mount", text(&bench.path("buckets/box/a.sqsh")), text(&mountpoint)]);
    let file = mountpoint.join("of-nobody");
    std::fs::write(&file, "x").unwrap();
    chown(&file, Some(NOBODY), Some(NOBODY)).unwrap();
    let mode_after = |mut writer: Command| {
        assert!(Command::new("chmod").arg("6755").arg(&file).status().unwrap().success());
        let written = writer.args(["sh", "-c", "echo y >> $0"]).arg(&file).output().unwrap();
        let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777;
        (written.status.success(), mode)
    };
    assert_eq!(mode_after(Command::new("env")), (true, 0o6755));
    assert_eq!(mode_after(as_nobody("env")), (true, 0o755));
    // Which has every right there, over its own user.
    let mut inside = as_nobody("unshare");
    inside.arg("--map-root-user");
    match mode_after(inside) {
        (false, _) => skip(test, "ordinary users may make no user namespace"),
        done => assert_eq!(done, (true, 0o755)),
    }
    bench.ok(&["unmount", text(&mountpoint)]);
    bench.assert_nothing_left();
}
