//! Mounts whose store does not answer: what is on this machine goes on as if it did.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by a panic"
)]

mod support;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use support::mount::{Bench, can_mount};
use support::s3::{Config, Fault, S3Server};

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
    ("stat", |root| drop(root.join("small").metadata().unwrap())),
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
        chown(root.join("own"), Some(12), Some(34)).unwrap();
        File::open(root.join("own")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    }),
    ("chmod, chown and times of the archive's", |root| {
        let file = root.join("dir/changed");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
        chown(&file, Some(12), Some(34)).unwrap();
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
        stuck.mount(options);
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
                LOCAL.iter().map(|_| said.recv_timeout(Duration::from_secs(4))).collect();
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
