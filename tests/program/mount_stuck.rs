//! Mounts whose store does not answer: what is on this machine goes on as if it did.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::support::mount::{Bench, can_mount, can_mount_with};
use crate::support::s3::{ACCESS_KEY, Config, Fault, S3Server, SECRET_KEY};
use crate::support::surrounding::Need;
use crate::support::words::eventually;

/// Far more than the server has threads for any one thing.
const STUCK: usize = 200;

/// An archive of many files of noise behind a plain URL, and a mountpoint.
struct Stuck {
    bench: Bench,
    server: S3Server,
    mountpoint: PathBuf,
}

impl Stuck {
    fn new() -> Self {
        let bench = Bench::new();
        let tree = bench.directory("tree");
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        // The last of them are at the archive's end, which a mount fetches.
        for name in 0..2 * STUCK + 40 {
            let noise: Vec<u8> = (0..17_500)
                .flat_map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state.to_le_bytes()
                })
                .collect();
            std::fs::write(tree.join(format!("noise{name:03}")), noise).unwrap();
        }
        std::fs::write(tree.join("small"), "small\n").unwrap();
        std::fs::create_dir(tree.join("dir")).unwrap();
        for name in ["renamed", "removed", "changed", "emptied"] {
            std::fs::write(tree.join("dir").join(name), vec![b'x'; 5000]).unwrap();
        }
        bench.directory("bucket/box");
        bench.archive(&tree, "bucket/box/data.sqsh", &["-comp", "lz4"]);
        let config = Config { keys: None, ..Config::new(bench.path("bucket")) };
        let server = S3Server::start(config).unwrap();
        Self { server, mountpoint: bench.directory("mnt"), bench }
    }

    fn mount(&self, more: &[&str]) {
        let url = format!("{}/box/data.sqsh", self.server.url());
        let output = self
            .bench
            .thawfs()
            .args(["mount", &url, self.mountpoint.to_str().unwrap(), "--disk-cache", "off"])
            .args(more)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn noise(&self, name: usize) -> PathBuf {
        self.mountpoint.join(format!("noise{name:03}"))
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.bench.ok(&["status", "--json"])).unwrap()
    }

    fn unmount(&self) {
        self.bench.ok(&["unmount", self.mountpoint.to_str().unwrap()]);
        self.bench.assert_nothing_left();
    }
}

type Operation = (&'static str, fn(&Path));

/// What a mount does without its store, its metadata being in memory. `own` is a file of the upper.
const LOCAL: &[Operation] = &[
    ("stat", |root| assert_eq!(root.join("small").metadata().unwrap().len(), 6)),
    ("stat of what is not there", |root| assert!(root.join("nothing").metadata().is_err())),
    ("readdir", |root| assert!(root.read_dir().unwrap().count() > STUCK)),
    ("open of the archive's", |root| drop(File::open(root.join("small")).unwrap())),
    ("read of the upper's", |root| {
        assert_eq!(std::fs::read(root.join("own")).unwrap(), b"own");
    }),
    ("create and write", |root| std::fs::write(root.join("new"), "new").unwrap()),
    ("fsync", |root| {
        let mut file = File::options().append(true).open(root.join("new")).unwrap();
        file.write_all(b"er").unwrap();
        file.sync_all().unwrap();
        file.write_all(b"!").unwrap();
        file.sync_data().unwrap();
    }),
    ("large write and fsync", |root| {
        let mut file = File::create(root.join("large")).unwrap();
        file.write_all(&vec![7; 8 << 20]).unwrap();
        file.sync_all().unwrap();
    }),
    ("fsync of a directory", |root| File::open(root.join("dir")).unwrap().sync_all().unwrap()),
    ("direct write", |root| {
        let direct = OpenOptions::new().write(true).custom_flags(libc::O_DSYNC).clone();
        direct.open(root.join("new")).unwrap().write_at(b"x", 9).unwrap();
    }),
    ("rename of the upper's", |root| {
        std::fs::rename(root.join("new"), root.join("new2")).unwrap();
    }),
    ("rename over another", |root| {
        std::fs::rename(root.join("large"), root.join("new2")).unwrap();
    }),
    ("rename of the archive's", |root| {
        std::fs::rename(root.join("dir/renamed"), root.join("dir/renamed2")).unwrap();
    }),
    ("link", |root| std::fs::hard_link(root.join("own"), root.join("own-too")).unwrap()),
    ("symlink and readlink", |root| {
        symlink("own", root.join("link")).unwrap();
        assert_eq!(root.join("link").read_link().unwrap(), Path::new("own"));
    }),
    ("mkdir and rmdir", |root| {
        std::fs::create_dir(root.join("made")).unwrap();
        std::fs::remove_dir(root.join("made")).unwrap();
    }),
    ("unlink of the upper's", |root| std::fs::remove_file(root.join("own-too")).unwrap()),
    ("unlink of the archive's", |root| std::fs::remove_file(root.join("dir/removed")).unwrap()),
    ("chmod, chown and times of the upper's", |root| {
        std::fs::set_permissions(root.join("own"), PermissionsExt::from_mode(0o640)).unwrap();
        chown(root.join("own"), None, Some(rustix::process::getgid().as_raw())).unwrap();
        File::open(root.join("own")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    }),
    ("chmod, chown and times of the archive's", |root| {
        let file = root.join("dir/changed");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
        chown(&file, None, Some(rustix::process::getgid().as_raw())).unwrap();
        File::open(&file).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    }),
    ("attributes", |root| {
        use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
        for file in [root.join("own"), root.join("dir/changed")] {
            setxattr(&file, "user.name", b"value", XattrFlags::empty()).unwrap();
            let mut value = [0; 32];
            assert_eq!(getxattr(&file, "user.name", &mut value[..]).unwrap(), 5);
            assert!(listxattr(&file, &mut value[..]).unwrap() >= 10);
            removexattr(&file, "user.name").unwrap();
        }
    }),
    ("truncation of the upper's", |root| {
        let file = File::options().write(true).open(root.join("new2")).unwrap();
        file.set_len(70_000).unwrap();
        file.set_len(0).unwrap();
    }),
    ("truncation of the archive's to nothing", |root| {
        drop(File::create(root.join("dir/emptied")).unwrap());
    }),
    ("fallocate", |root| {
        use rustix::fs::{FallocateFlags, fallocate};
        let file = File::options().write(true).open(root.join("new2")).unwrap();
        fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).unwrap();
    }),
    ("copy_file_range", |root| {
        let from = File::open(root.join("new2")).unwrap();
        let to = File::create(root.join("copy")).unwrap();
        assert!(rustix::fs::copy_file_range(&from, None, &to, None, 1 << 20).unwrap() > 0);
    }),
    ("SEEK_DATA", |root| {
        use rustix::fs::{SeekFrom, seek};
        assert_eq!(seek(File::open(root.join("small")).unwrap(), SeekFrom::Hole(0)).unwrap(), 6);
        assert_eq!(seek(File::open(root.join("own")).unwrap(), SeekFrom::Hole(0)).unwrap(), 3);
    }),
    ("statfs", |root| assert_eq!(rustix::fs::statvfs(root).unwrap().f_namemax, 255)),
    ("mknod", |root| {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    }),
];

#[test]
fn readers_who_are_stuck_hold_up_nothing_local() {
    if !can_mount("readers_who_are_stuck_hold_up_nothing_local") {
        return;
    }
    let stuck = Stuck::new();
    // With the second, written pages and pages read ahead share a queue in the kernel.
    for options in [&[][..], &["-o", "no_passthrough"]] {
        stuck.mount(&[options, &["--timeout", "60"]].concat());
        std::fs::write(stuck.mountpoint.join("own"), "own").unwrap();
        stuck.server.inject(Fault::Silence, 10_000);
        std::thread::scope(|scope| {
            let users: Vec<_> = (0..2 * STUCK)
                .map(|name| {
                    let path = stuck.noise(name);
                    scope.spawn(move || {
                        if name % 2 == 0 {
                            let file = File::open(path).unwrap();
                            file.read_exact_at(&mut [0; 4096], 0).unwrap();
                        } else {
                            let mut file = File::options().append(true).open(path).unwrap();
                            file.write_all(b"a copy first").unwrap();
                        }
                    })
                })
                .collect();
            std::thread::sleep(Duration::from_secs(1));
            let (done, said) = mpsc::channel();
            let root = stuck.mountpoint.clone();
            std::thread::spawn(move || {
                for (_, operation) in LOCAL {
                    operation(&root);
                    done.send(()).unwrap();
                }
            });
            // Behind one who is stuck, it would take until the store answers.
            let results: Vec<_> =
                LOCAL.iter().map(|_| said.recv_timeout(Duration::from_secs(20))).collect();
            assert_eq!(stuck.status()[0]["state"], "live");
            let waiting = users.iter().filter(|user| !user.is_finished()).count();
            // Before anything is said of it: the users end.
            stuck.server.heal();
            for ((name, _), result) in LOCAL.iter().zip(&results) {
                assert!(result.is_ok(), "{name} is held up with {options:?}");
            }
            assert_eq!(waiting, users.len(), "not all were stuck with {options:?}");
            users.into_iter().for_each(|user| user.join().unwrap());
        });
        assert_eq!(stuck.status()[0]["faults"]["count"], 0);
        stuck.unmount();
    }
}

#[test]
fn the_time_is_up_once_for_a_chunk_whoever_asks_again() {
    if !can_mount("the_time_is_up_once_for_a_chunk_whoever_asks_again") {
        return;
    }
    let stuck = Stuck::new();
    stuck.mount(&["--timeout", "20"]);
    stuck.server.inject(Fault::Silence, 10_000);
    // The kernel reads ahead, in vain, and asks again for the page. Most of them wait in a queue besides.
    std::thread::scope(|scope| {
        for name in 0..STUCK {
            let path = stuck.noise(name);
            scope.spawn(move || {
                let asked = Instant::now();
                let file = File::open(path).unwrap();
                let error = file.read_exact_at(&mut [0; 4096], 0).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EIO));
                assert!(asked.elapsed() >= Duration::from_secs(19), "{:?}", asked.elapsed());
            });
        }
    });
    let status = stuck.status();
    // Asked twice it would be twice as many; on a machine that is busy with other things, it is for some.
    let timeouts = status[0]["chunks"]["timeouts"].as_u64().unwrap();
    let most = u64::try_from(STUCK + STUCK / 4 * 3).unwrap();
    assert!((1..=most).contains(&timeouts), "{timeouts}");
    let reason = status[0]["faults"]["last"].as_str().unwrap();
    assert!(reason.contains("gave up after") && reason.contains("sent nothing"), "{reason}");
    // Once the store answers, it comes: with the next request, for those before it may still wait.
    stuck.server.heal();
    let healed = Instant::now();
    let file = File::open(stuck.noise(0)).unwrap();
    while let Err(error) = file.read_exact_at(&mut [0; 4096], 0) {
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        assert!(healed.elapsed() < Duration::from_secs(60), "it never came");
    }
    drop(file);
    stuck.unmount();
}

#[test]
fn a_reader_who_waits_can_be_killed() {
    if !can_mount("a_reader_who_waits_can_be_killed") {
        return;
    }
    let stuck = Stuck::new();
    stuck.mount(&["--timeout", "600"]);
    stuck.server.inject(Fault::Silence, 10_000);
    let before = stuck.server.log().len();
    let started = Instant::now();
    let mut readers: Vec<_> = (0..20)
        .map(|name| {
            Command::new("cat").arg(stuck.noise(name)).stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    // Some for the store, and the others in the queue behind them.
    eventually("some wait", || stuck.server.log().len() > before);
    std::thread::sleep(Duration::from_secs(1));
    for reader in &mut readers {
        assert!(reader.try_wait().unwrap().is_none(), "it did not wait");
        reader.kill().unwrap();
    }
    for reader in &mut readers {
        reader.wait().unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(300), "unkilled, they would stay for 600");
    stuck.server.heal();
    stuck.unmount();
}

/// Whether a process is alive, and no zombie.
fn is_alive(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().starts_with(" Z"))
}

#[test]
fn a_credential_helper_that_hangs_is_within_the_time_and_named() {
    let name = "a_credential_helper_that_hangs_is_within_the_time_and_named";
    if !can_mount_with(name, &[Need::Processes]) {
        return;
    }
    let stuck = Stuck::new();
    let server = S3Server::start(Config::new(stuck.bench.path("bucket"))).unwrap();
    let (config, pids) = (stuck.bench.path("config"), stuck.bench.path("pids"));
    // Keys that are old at once, so that each request asks for new ones.
    let keys = format!(
        r#"{{"Version":1,"AccessKeyId":"{ACCESS_KEY}","SecretAccessKey":"{SECRET_KEY}","Expiration":"2000-01-01T00:00:00Z"}}"#
    );
    let helper = |rest: &str| {
        let shown = pids.display();
        let text = format!("[profile p]\ncredential_process = echo $$ >> {shown}; {rest}\n");
        std::fs::write(&config, text).unwrap();
    };
    let ran = || -> Vec<String> {
        let text = std::fs::read_to_string(&pids).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    };
    let mount = || {
        stuck
            .bench
            .thawfs()
            .env("AWS_ENDPOINT_URL", server.url())
            .env("AWS_CONFIG_FILE", &config)
            .args(["mount", "s3://box/data.sqsh", stuck.mountpoint.to_str().unwrap()])
            .args(["--profile", "p", "--timeout", "4", "--disk-cache", "off"])
            .output()
            .unwrap()
    };
    helper("sleep 1000 & echo $! >> PIDS; wait".replace("PIDS", pids.to_str().unwrap()).as_str());
    let started = Instant::now();
    let failed = mount();
    assert_eq!(failed.status.code(), Some(4));
    let said = String::from_utf8_lossy(&failed.stderr);
    let expected = "profile p are no good: credential_process gave no answer for 4.0 s";
    assert!(said.contains(expected), "{said}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert_eq!(ran().len(), 2, "the helper and its child");
    assert!(ran().iter().all(|pid| !is_alive(pid)), "{:?}", ran());
    stuck.bench.assert_nothing_left();

    helper(&format!("echo '{keys}'"));
    let mounted = mount();
    assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
    std::fs::remove_file(&pids).unwrap();
    helper("sleep 1000 & echo $! >> PIDS; wait".replace("PIDS", pids.to_str().unwrap()).as_str());
    let gets = server.gets();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..20)
            .map(|name| {
                let path = stuck.noise(name);
                scope.spawn(move || {
                    let file = File::open(path).unwrap();
                    let error = file.read_exact_at(&mut [0; 4096], 0).unwrap_err();
                    assert_eq!(error.raw_os_error(), Some(libc::EIO));
                })
            })
            .collect();
        // All the while, one at a time.
        while readers.iter().any(|reader| !reader.is_finished()) {
            let alive = ran().iter().filter(|pid| is_alive(pid)).count();
            assert!(alive <= 2, "{alive} helpers and children");
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    assert_eq!(server.gets(), gets, "a request without keys");
    let status = stuck.status();
    let reason = status[0]["faults"]["last"].as_str().unwrap();
    assert!(reason.contains("credential_process gave no answer for"), "{reason}");
    let timeouts = status[0]["chunks"]["timeouts"].as_u64().unwrap();
    assert!((1..=35).contains(&timeouts), "{timeouts} of 20 readers");
    // One that runs at the end goes with the server.
    stuck.unmount();
    assert!(ran().iter().all(|pid| !is_alive(pid)), "{:?}", ran());
}

#[test]
fn a_redirect_to_another_host_is_named_and_followed_when_it_is_allowed() {
    if !can_mount("a_redirect_to_another_host_is_named_and_followed_when_it_is_allowed") {
        return;
    }
    let stuck = Stuck::new();
    let from = S3Server::start(Config { keys: None, ..Config::new(stuck.bench.path("bucket")) });
    let from = from.unwrap();
    let port = stuck.server.url().rsplit(':').next().unwrap().to_owned();
    from.inject(Fault::Redirect(format!("http://localhost:{port}/box/data.sqsh")), usize::MAX);
    let source = format!("{}/box/data.sqsh", from.url());
    let mount = |more: &[&str]| {
        let target = stuck.mountpoint.to_str().unwrap();
        stuck.bench.thawfs().args(["mount", &source, target]).args(more).output().unwrap()
    };
    let refused = mount(&[]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(8), "{said}");
    assert!(said.contains("; --allow-redirects-to=localhost ") && !said.contains("-o "), "{said}");
    assert!(stuck.server.log().is_empty());
    // mount(8)'s helper takes the same in another spelling, and names that.
    let mut helper = stuck.bench.thawfs_as("mount.fuse.thawfs");
    let refused = helper.arg(&source).arg(&stuck.mountpoint).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("; -o allow_redirects_to=localhost ") && !said.contains("--"), "{said}");
    for allowed in
        [&["--allow-redirects-to", "localhost"][..], &["-o", "allow_redirects_to=localhost"]]
    {
        let mounted = mount(allowed);
        assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
        let noise = std::fs::read(stuck.noise(1)).unwrap();
        assert_eq!(noise, std::fs::read(stuck.bench.path("tree/noise001")).unwrap());
        stuck.unmount();
    }
}

#[test]
fn a_failure_behind_a_redirect_names_who_was_asked() {
    if !can_mount("a_failure_behind_a_redirect_names_who_was_asked") {
        return;
    }
    let stuck = Stuck::new();
    let from = S3Server::start(Config { keys: None, ..Config::new(stuck.bench.path("bucket")) });
    let from = from.unwrap();
    let to = S3Server::start(Config { keys: None, ..Config::new(stuck.bench.path("bucket")) });
    let port = to.as_ref().unwrap().url().rsplit(':').next().unwrap().to_owned();
    // Plain HTTP there, where TLS is asked for.
    let tls = format!("https://localhost:{port}/box/data.sqsh");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed_port = closed.local_addr().unwrap().port();
    drop(closed);
    for (location, said) in [
        (format!("http://localhost:{closed_port}/x"), format!("talk to localhost:{closed_port}: ")),
        (tls, format!("cannot talk to localhost:{port}: ")),
        ("http://no.such.host.invalid/x".into(), "cannot talk to no.such.host.invalid: ".into()),
        ("ftp://localhost/x".into(), "redirects to ftp://, which is not HTTP".into()),
    ] {
        from.inject(Fault::Redirect(location.clone()), usize::MAX);
        let source = format!("{}/box/data.sqsh", from.url());
        let allow = ["--allow-redirects-to=localhost", "--allow-redirects-to=no.such.host.invalid"];
        let words = ["mount", &source, stuck.mountpoint.to_str().unwrap(), "--timeout", "3"];
        let output = stuck.bench.thawfs().args(words).args(allow).output().unwrap();
        from.heal();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(8), "{location}: {told}");
        assert!(told.contains(&said), "{location}: {told}");
        let named = from.url().replace("http://", "cannot talk to ");
        assert!(!told.contains(&named), "{location}: {told}");
    }
}

#[test]
fn what_is_no_host_to_redirect_to_is_a_usage_error_and_every_spelling_of_one_is_taken() {
    if !can_mount(
        "what_is_no_host_to_redirect_to_is_a_usage_error_and_every_spelling_of_one_is_taken",
    ) {
        return;
    }
    let stuck = Stuck::new();
    let from = S3Server::start(Config { keys: None, ..Config::new(stuck.bench.path("bucket")) });
    let from = from.unwrap();
    let target = stuck.mountpoint.to_str().unwrap();
    let source = format!("{}/box/data.sqsh", from.url());
    let mount = |host: &str, as_option: bool| {
        let words = match as_option {
            true => ["-o".into(), format!("allow_redirects_to={host}")],
            false => ["--allow-redirects-to".into(), host.into()],
        };
        let mut command = stuck.bench.thawfs();
        command.args(["mount", &source, target, "--timeout", "8"]).args(words).output().unwrap()
    };
    for host in ["b.test:8000", "http://b.test", "b.test/x", "*", "", "168364290", "0x7f.1", "[b]"]
    {
        for as_option in [false, true] {
            let output = mount(host, as_option);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{host:?}: {said}");
            assert!(said.contains(&format!("{host:?} is ")) || host.is_empty(), "{host:?}: {said}");
        }
    }
    assert!(from.log().is_empty());
    let port = stuck.server.url().rsplit(':').next().unwrap().to_owned();
    let redirect = |host: &str| Fault::Redirect(format!("http://{host}:{port}/box/data.sqsh"));
    from.inject(redirect("localhost"), usize::MAX);
    for host in ["LocalHost", "localhost.", "LOCALHOST."] {
        for as_option in [false, true] {
            let output = mount(host, as_option);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{host}: {said}");
            stuck.unmount();
        }
    }
    // Nobody listens there; but it is asked.
    from.heal();
    from.inject(redirect("[fd09::1]"), usize::MAX);
    for host in ["fd09::1", "[fd09::1]", "FD09:0:0::0001", "[fd09:0:0:0:0:0:0:1]"] {
        let output = mount(host, host.len() % 2 == 0);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("fd09::1]") && !said.contains("another host"), "{host}: {said}");
    }
}

#[test]
fn writes_that_wait_for_a_copy_take_no_memory_and_lose_nothing() {
    if !can_mount("writes_that_wait_for_a_copy_take_no_memory_and_lose_nothing") {
        return;
    }
    let stuck = Stuck::new();
    stuck.mount(&[]);
    stuck.server.inject(Fault::Silence, 10_000);
    let contents = |name: usize| -> Vec<u8> {
        (0..1u32 << 18).flat_map(|n| (n ^ name as u32).to_le_bytes()).collect()
    };
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..STUCK)
            .map(|name| {
                let path = stuck.noise(name);
                scope.spawn(move || {
                    let mut file = File::options().append(true).open(path).unwrap();
                    file.write_all(&contents(name)).unwrap();
                })
            })
            .collect();
        std::thread::sleep(Duration::from_secs(4));
        let resident = stuck.status()[0]["residentBytes"].as_u64().unwrap();
        let waiting = writers.iter().filter(|writer| !writer.is_finished()).count();
        stuck.server.heal();
        assert_eq!(waiting, STUCK);
        // Of a program that is not optimized; what is written alone is 200.
        assert!(resident < 80 << 20, "{resident}");
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    });
    for name in 0..STUCK {
        let mut expected =
            std::fs::read(stuck.bench.path(&format!("tree/noise{name:03}"))).unwrap();
        expected.extend(contents(name));
        assert!(std::fs::read(stuck.noise(name)).unwrap() == expected, "{name}");
    }
    stuck.unmount();
}
