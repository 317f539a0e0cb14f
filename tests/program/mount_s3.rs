//! Mounts of archives in a bucket: a real S3 server over HTTP, a real kernel mount, and faults.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::mount::{Bench, big_contents, can_mount, write_tree};
use crate::support::s3::{ACCESS_KEY, Config, Fault, S3Server, SECRET_KEY};
use crate::support::surrounding::Surrounding;

const ID: &str = "0f0f0f0f-1111-4222-8333-444444444444";

/// A bench with an archive in the bucket `box`, a server for it and a mountpoint.
struct Remote {
    bench: Bench,
    server: S3Server,
    mountpoint: PathBuf,
}

impl Remote {
    /// `flags` are mksquashfs's.
    /// How many requests there were for bytes of the archive.
    fn archive_gets(&self) -> usize {
        let is_archive = |seen: &&crate::support::s3::Seen| {
            seen.is_object_get() && seen.path.ends_with("data.sqsh")
        };
        self.server.log().iter().filter(is_archive).count()
    }

    fn new(flags: &[&str]) -> Self {
        let bench = Bench::new();
        write_tree(&bench.directory("tree"));
        bench.directory(&format!("bucket/box/backups/{ID}"));
        let remote = Self {
            server: S3Server::start(Config::new(bench.path("bucket"))).unwrap(),
            mountpoint: bench.directory("mnt"),
            bench,
        };
        remote.pack(flags);
        remote
    }

    fn pack(&self, flags: &[&str]) {
        let key = format!("bucket/box/backups/{ID}/data.sqsh");
        self.bench.archive(&self.bench.path("tree"), &key, flags);
    }

    fn thawfs(&self) -> Command {
        let mut command = self.bench.thawfs();
        command
            .env("AWS_ENDPOINT_URL", self.server.url())
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        command
    }

    fn mount(&self, more: &[&str]) {
        let source = format!("s3://box/backups/{ID}");
        let output = self
            .thawfs()
            .args(["mount", &source, self.mountpoint.to_str().unwrap()])
            .args(more)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn status(&self) -> serde_json::Value {
        let output = self.thawfs().args(["status", "--json"]).output().unwrap();
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        status[0].clone()
    }

    fn unmount(&self) {
        self.bench.ok(&["unmount", self.mountpoint.to_str().unwrap()]);
        self.bench.assert_nothing_left();
    }
}

/// More than a tail GET brings, so that data lies outside it, in many files.
fn write_large(remote: &Remote) {
    for name in 0..64 {
        let noise: Vec<u8> = {
            let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ name;
            (0..32_768)
                .flat_map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state.to_le_bytes()
                })
                .collect()
        };
        std::fs::write(remote.bench.path(&format!("tree/noise{name:02}")), noise).unwrap();
    }
    remote.pack(&["-comp", "zstd"]);
}

#[test]
fn mounting_and_listing_takes_two_gets() {
    if !can_mount("mounting_and_listing_takes_two_gets") {
        return;
    }
    let remote = Remote::new(&[]);
    write_large(&remote);
    remote.mount(&[]);
    let entries = std::fs::read_dir(&remote.mountpoint).unwrap().count();
    assert_eq!(entries, 67);
    let walked = Command::new("find").arg(&remote.mountpoint).arg("-ls").output().unwrap();
    assert!(walked.status.success());
    assert_eq!(remote.archive_gets(), 2, "{:?}", remote.server.log());
    let moved = remote.server.get_bytes();
    assert!(moved <= (2 << 20) + (132 << 10), "{moved}");

    // One small file that is not in memory: one GET of at most half a MiB.
    remote.server.clear_log();
    let file = File::open(remote.mountpoint.join("noise00")).unwrap();
    let mut start = [0; 4096];
    file.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(start[..], std::fs::read(remote.bench.path("tree/noise00")).unwrap()[..4096]);
    assert_eq!(remote.archive_gets(), 1, "{:?}", remote.server.log());
    assert!(remote.server.get_bytes() <= 512 << 10, "{}", remote.server.get_bytes());
    drop(file);
    // With the one for a trace, which nobody waits for, if that has been sent by now.
    let gets = remote.status()["store"]["gets"].as_u64().unwrap();
    assert!((3..=4).contains(&gets), "{gets}");
    remote.unmount();
}

#[test]
fn every_byte_is_the_archive_s() {
    if !can_mount("every_byte_is_the_archive_s") {
        return;
    }
    let remote = Remote::new(&[]);
    write_large(&remote);
    remote.mount(&["--read-only", "--cache-memory", "1M"]);
    let compared = Command::new("diff")
        .args(["-r", "--no-dereference"])
        .arg(remote.bench.path("tree"))
        .arg(&remote.mountpoint)
        .output()
        .unwrap();
    assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stdout));
    // If-Match goes with every GET but the two that open.
    let log = remote.server.log();
    let of_archive = log.iter().filter(|seen| seen.path.ends_with("data.sqsh"));
    let unconditional = of_archive.filter(|seen| seen.if_match.is_none()).count();
    assert_eq!(unconditional, 2, "{log:?}");
    remote.unmount();
}

#[test]
fn a_presigned_url_is_mounted_and_shown_nowhere() {
    if !can_mount("a_presigned_url_is_mounted_and_shown_nowhere") {
        return;
    }
    let remote = Remote::new(&[]);
    // The server of this test lets a query pass that carries no signature; what matters here is
    // that it arrives whole and is not shown.
    let open =
        S3Server::start(Config { keys: None, ..Config::new(remote.bench.path("bucket")) }).unwrap();
    let url = format!("{}/box/backups/{ID}/data.sqsh?X-Secret=hunter2", open.url());
    let output =
        remote.bench.run(&["mount", &url, remote.mountpoint.to_str().unwrap(), "--anonymous"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read(remote.mountpoint.join("sub/data")).unwrap(), big_contents());
    assert!(open.log().iter().all(|seen| seen.query.contains("hunter2")));

    let mut shown = output.stdout;
    shown.extend(remote.bench.ok(&["status", "--json"]).into_bytes());
    shown.extend(std::fs::read("/proc/self/mountinfo").unwrap());
    for pid in remote.bench.servers() {
        shown.extend(std::fs::read(format!("/proc/{pid}/cmdline")).unwrap());
    }
    let records = remote.bench.state_dir().join("mounts");
    for file in
        std::fs::read_dir(std::fs::read_dir(records).unwrap().next().unwrap().unwrap().path())
            .unwrap()
    {
        // The socket among them cannot be read.
        shown.extend(std::fs::read(file.unwrap().path()).unwrap_or_default());
    }
    assert!(!String::from_utf8_lossy(&shown).contains("hunter2"));
    remote.unmount();
}

#[test]
fn a_hiccup_of_the_network_is_not_noticed() {
    if !can_mount("a_hiccup_of_the_network_is_not_noticed") {
        return;
    }
    let remote = Remote::new(&[]);
    write_large(&remote);
    remote.mount(&[]);
    // Far from each other and from the end: what was fetched already would not be asked for again.
    for (name, fault) in [
        ("noise01", Fault::Truncate(1000)),
        ("noise18", Fault::Refuse(503, "SlowDown")),
        ("noise35", Fault::Refuse(500, "InternalError")),
        ("noise50", Fault::Truncate(0)),
    ] {
        remote.server.inject(fault, 1);
        assert_eq!(
            std::fs::read(remote.mountpoint.join(name)).unwrap(),
            std::fs::read(remote.bench.path(&format!("tree/{name}"))).unwrap(),
            "{name}"
        );
    }
    let status = remote.status();
    // A file that came along with another is not asked for, and its fault is left for the next.
    assert!(status["store"]["retries"].as_u64().unwrap() >= 2, "{status}");
    assert_eq!(status["faults"]["count"], 0);
    remote.unmount();
}

#[test]
fn a_dead_network_is_eio_in_time_with_a_reason() {
    if !can_mount("a_dead_network_is_eio_in_time_with_a_reason") {
        return;
    }
    let remote = Remote::new(&[]);
    write_large(&remote);
    remote.mount(&["--timeout", "2"]);
    remote.server.inject(Fault::Refuse(503, "SlowDown"), 1000);
    let asked = Instant::now();
    let error = std::fs::read(remote.mountpoint.join("noise00")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    // On a busy machine, too; without an end the server would have been asked until it has no more faults.
    assert!(asked.elapsed() < Duration::from_secs(60), "{:?}", asked.elapsed());
    // What is in memory still answers.
    assert!(std::fs::metadata(remote.mountpoint.join("sub/deeper/empty")).is_ok());
    let status = remote.status();
    assert!(status["faults"]["count"].as_u64().unwrap() >= 1, "{status}");
    let reason = status["faults"]["last"].as_str().unwrap();
    assert!(reason.contains("503") && reason.contains(ID), "{reason}");
    // And when it comes back, so does the file.
    remote.server.heal();
    // For a moment it is given less time than a busy machine may need.
    let back = Instant::now();
    let bytes = loop {
        match std::fs::read(remote.mountpoint.join("noise00")) {
            Ok(bytes) => break bytes,
            Err(error) => assert!(back.elapsed() < Duration::from_secs(60), "{error}"),
        }
    };
    assert_eq!(bytes.len(), 262_144);
    remote.unmount();
}

#[test]
fn another_object_in_its_place_is_estale() {
    if !can_mount("another_object_in_its_place_is_estale") {
        return;
    }
    let remote = Remote::new(&[]);
    write_large(&remote);
    remote.mount(&[]);
    std::fs::write(remote.bench.path("tree/hello"), "another archive").unwrap();
    remote.pack(&["-comp", "gzip"]);
    let error = std::fs::read(remote.mountpoint.join("noise00")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
    remote.unmount();
}

#[test]
fn a_waiting_read_holds_up_nobody() {
    if !can_mount("a_waiting_read_holds_up_nobody") {
        return;
    }
    let remote = Remote::new(&[]);
    write_large(&remote);
    remote.mount(&[]);
    // Far more waiting readers than the server has FUSE threads.
    remote.server.hold();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..40)
            .map(|name| {
                let path = remote.mountpoint.join(format!("noise{name:02}"));
                scope.spawn(move || std::fs::read(path).unwrap().len())
            })
            .collect();
        let deadline = Instant::now() + Duration::from_secs(20);
        while remote.server.held() == 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::fs::write(remote.mountpoint.join("new"), "new").unwrap();
        assert_eq!(std::fs::read(remote.mountpoint.join("new")).unwrap(), b"new");
        assert!(std::fs::metadata(remote.mountpoint.join("script")).is_ok());
        // They still wait for what the server has not said yet.
        assert!(readers.iter().all(|reader| !reader.is_finished()), "nobody waited");
        assert!(remote.server.held() > 0, "nothing was asked for");
        remote.server.release();
        for reader in readers {
            assert_eq!(reader.join().unwrap(), 262_144);
        }
    });
    remote.unmount();
}

#[test]
fn a_source_that_cannot_be_opened_is_named_and_leaves_nothing() {
    if !can_mount("a_source_that_cannot_be_opened_is_named_and_leaves_nothing") {
        return;
    }
    let remote = Remote::new(&[]);
    std::fs::write(remote.bench.path("bucket/box/text.sqsh"), vec![b'x'; 5000]).unwrap();
    let good = format!("s3://box/backups/{ID}");
    let bad_key = ("AWS_SECRET_ACCESS_KEY", "wrong".to_owned());
    let no_server = ("AWS_ENDPOINT_URL", "http://127.0.0.1:9".to_owned());
    /// Source, environment, fault, exit status, what the line has to name.
    type Case<'a> = (&'a str, Option<(&'a str, String)>, Option<Fault>, i32, &'a str);
    let cases: Vec<Case<'_>> = vec![
        ("s3://box/nowhere", None, None, 3, "nowhere/data.sqsh"),
        ("s3://no-such-bucket/x", None, None, 3, "no-such-bucket"),
        ("s3://box/text.sqsh", None, None, 5, "text.sqsh"),
        ("s3://box/backup.tar.zst", None, None, 7, "tar"),
        (&good, Some(bad_key), None, 4, "box"),
        (&good, None, Some(Fault::Refuse(403, "AccessDenied")), 4, ID),
        (&good, None, Some(Fault::Refuse(403, "ExpiredToken")), 4, "expired"),
        (&good, None, Some(Fault::IgnoreRange), 8, "range"),
        (&good, None, Some(Fault::Refuse(503, "SlowDown")), 8, "503"),
        (&good, Some(no_server), None, 8, "127.0.0.1:9"),
    ];
    for (source, environment, fault, status, named) in cases {
        if let Some(fault) = fault.clone() {
            remote.server.inject(fault, 1000);
        }
        let output = remote
            .thawfs()
            .envs(environment.clone())
            .args(["mount", source, remote.mountpoint.to_str().unwrap(), "--timeout", "1"])
            .output()
            .unwrap();
        remote.server.heal();
        let said = String::from_utf8_lossy(&output.stderr);
        let case = format!("{source} {environment:?} {fault:?}: {said}");
        assert_eq!(output.status.code(), Some(status), "{case}");
        assert_eq!(said.lines().count(), 1, "{case}");
        assert!(said.contains(named), "{case}");
        remote.bench.assert_nothing_left();
    }
}

#[test]
fn a_difference_fetches_nothing() {
    if !can_mount("a_difference_fetches_nothing") {
        return;
    }
    let remote = Remote::new(&["-comp", "zstd"]);
    remote.mount(&[]);
    std::fs::write(remote.mountpoint.join("new"), "new").unwrap();
    std::fs::remove_file(remote.mountpoint.join("sub/data")).unwrap();
    std::fs::rename(remote.mountpoint.join("sub"), remote.mountpoint.join("moved")).unwrap();
    let before = remote.server.log().len();
    let told = remote.bench.ok(&["diff", remote.mountpoint.to_str().unwrap()]);
    assert_eq!(told, "R sub/ -> moved/\nD moved/data\nA new\n");
    assert_eq!(remote.server.log().len(), before, "requests of the bucket");
    remote.unmount();
}

#[test]
fn a_fork_asks_the_store_for_nothing_that_is_on_disk() {
    if !can_mount("a_fork_asks_the_store_for_nothing_that_is_on_disk") {
        return;
    }
    let remote = Remote::new(&["-comp", "zstd"]);
    remote.mount(&[]);
    let data = std::fs::read(remote.mountpoint.join("sub/data")).unwrap();
    remote.unmount();
    remote.mount(&[]);
    std::fs::write(remote.mountpoint.join("new"), "new").unwrap();
    let fork = remote.bench.path("fork");
    let before = remote.server.log().len();
    // Without keys: the server of the mount has them.
    let [of, at] = [&remote.mountpoint, &fork].map(|path| path.to_str().unwrap());
    remote.bench.ok(&["fork", of, at]);
    assert_eq!(std::fs::read_to_string(fork.join("new")).unwrap(), "new");
    std::fs::read_dir(fork.join("sub/deeper")).unwrap();
    if Surrounding::current() != Surrounding::DiskCacheOff {
        assert_eq!(remote.server.log().len(), before, "requests of the bucket");
    }
    assert_eq!(std::fs::read(fork.join("sub/data")).unwrap(), data);
    remote.bench.ok(&["unmount", at]);
    remote.unmount();
}
