//! What inotify and fanotify tell inside a mount, beside what they tell of the same done to a plain directory.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use crate::support::mount::{Bench, can_mount, can_mount_with};
use crate::support::surrounding::Need;
use crate::support::watch::Watching;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, RenameFlags, Timespec, Timestamps, XattrFlags, inotify,
};

/// What is watched, before anything is done: directories and files of the archive.
const WATCHED: [&str; 6] = ["", "dir", "dir/sub", "dir/file", "link-1", "other"];

/// Something that programs do in a directory which holds what [`make_tree`] makes.
struct Case {
    name: &'static str,
    run: fn(&Path),
    /// What the stream tells of it.
    told: &'static [&'static str],
}

fn make_tree(root: &Path) {
    std::fs::create_dir_all(root.join("dir/sub")).unwrap();
    for (name, data) in [("dir/file", "0123456789"), ("dir/sub/deep", "deep"), ("other", "other")] {
        std::fs::write(root.join(name), data).unwrap();
    }
    std::fs::write(root.join("link-1"), "linked").unwrap();
    std::fs::hard_link(root.join("link-1"), root.join("dir/link-2")).unwrap();
    symlink("dir/file", root.join("symlink")).unwrap();
    std::fs::create_dir(root.join("empty")).unwrap();
}

fn open_to_write(path: &Path) -> File {
    File::options().write(true).open(path).unwrap()
}

fn rename(root: &Path, from: &str, to: &str, flags: RenameFlags) {
    rustix::fs::renameat_with(CWD, root.join(from), CWD, root.join(to), flags).unwrap();
}

const CASES: &[Case] = &[
    Case {
        name: "read a file",
        run: |root| drop(std::fs::read(root.join("dir/file")).unwrap()),
        told: &[],
    },
    Case {
        name: "list a directory",
        run: |root| assert!(std::fs::read_dir(root.join("dir")).unwrap().count() > 0),
        told: &[],
    },
    Case {
        name: "make a file",
        run: |root| std::fs::write(root.join("dir/new"), "data").unwrap(),
        told: &["create dir/new", "write dir/new"],
    },
    Case {
        name: "make a file exclusively",
        run: |root| {
            // Not to read, too: on tmpfs the end of what may have been mapped is told as a write.
            drop(File::options().write(true).create_new(true).open(root.join("new")).unwrap());
        },
        told: &["create new"],
    },
    Case {
        name: "write to a file of the archive",
        run: |root| open_to_write(&root.join("dir/file")).write_all_at(b"new", 3).unwrap(),
        told: &["write dir/file"],
    },
    Case {
        name: "write to it twice, by two opens",
        run: |root| {
            open_to_write(&root.join("dir/file")).write_all_at(b"new", 3).unwrap();
            open_to_write(&root.join("dir/file")).write_all_at(b"more", 7).unwrap();
        },
        told: &["write dir/file", "write dir/file"],
    },
    Case {
        name: "append to a file of the archive",
        run: |root| {
            let mut file = File::options().append(true).open(root.join("dir/file")).unwrap();
            file.write_all(b"more").unwrap();
        },
        told: &["write dir/file"],
    },
    Case {
        name: "open a file of the archive to write, and do not",
        run: |root| drop(open_to_write(&root.join("dir/file"))),
        told: &[],
    },
    Case {
        name: "replace a file's contents",
        run: |root| std::fs::write(root.join("dir/file"), "x").unwrap(),
        told: &["write dir/file", "write dir/file"],
    },
    Case {
        name: "set its length",
        run: |root| open_to_write(&root.join("dir/file")).set_len(3).unwrap(),
        told: &["write dir/file"],
    },
    Case {
        name: "allocate",
        run: |root| {
            let file = open_to_write(&root.join("dir/file"));
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 100).unwrap();
        },
        told: &["write dir/file"],
    },
    Case {
        name: "copy a range",
        run: |root| {
            let (from, to) =
                (File::open(root.join("other")).unwrap(), open_to_write(&root.join("dir/file")));
            rustix::fs::copy_file_range(&from, Some(&mut 0), &to, Some(&mut 2), 4).unwrap();
        },
        told: &["write dir/file"],
    },
    Case {
        name: "write to a name of a hard link",
        run: |root| open_to_write(&root.join("dir/link-2")).write_all_at(b"L", 0).unwrap(),
        // By each name, the one used last first.
        told: &["write dir/link-2", "write link-1"],
    },
    Case {
        name: "change a mode",
        run: |root| {
            let mode = std::fs::Permissions::from_mode(0o640);
            std::fs::set_permissions(root.join("dir/file"), mode).unwrap();
        },
        told: &["attributes dir/file"],
    },
    Case {
        name: "change times",
        run: |root| {
            let file = open_to_write(&root.join("dir/file"));
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
        },
        told: &["attributes dir/file"],
    },
    Case {
        name: "set and remove an attribute",
        run: |root| {
            let path = root.join("dir/file");
            rustix::fs::setxattr(&path, "user.one", b"1", XattrFlags::empty()).unwrap();
            rustix::fs::removexattr(&path, "user.one").unwrap();
        },
        told: &["attributes dir/file", "attributes dir/file"],
    },
    Case {
        name: "change a directory's mode",
        run: |root| {
            std::fs::set_permissions(root.join("dir/sub"), std::fs::Permissions::from_mode(0o711))
                .unwrap();
        },
        told: &["attributes dir/sub"],
    },
    Case {
        name: "link",
        run: |root| std::fs::hard_link(root.join("dir/file"), root.join("new")).unwrap(),
        told: &["create new"],
    },
    Case {
        name: "make a symbolic link",
        run: |root| symlink("x", root.join("dir/new")).unwrap(),
        told: &["create dir/new"],
    },
    Case {
        name: "make a pipe",
        run: |root| {
            let path = root.join("dir/new");
            rustix::fs::mknodat(CWD, path, rustix::fs::FileType::Fifo, Mode::from(0o600), 0)
                .unwrap();
        },
        told: &["create dir/new"],
    },
    Case {
        name: "make a directory",
        run: |root| std::fs::create_dir(root.join("dir/new")).unwrap(),
        told: &["create dir/new"],
    },
    Case {
        name: "remove a directory",
        run: |root| std::fs::remove_dir(root.join("empty")).unwrap(),
        told: &["remove empty"],
    },
    Case {
        name: "remove a file",
        run: |root| std::fs::remove_file(root.join("dir/file")).unwrap(),
        told: &["remove dir/file"],
    },
    Case {
        name: "remove a name of a hard link",
        run: |root| std::fs::remove_file(root.join("link-1")).unwrap(),
        told: &["remove link-1"],
    },
    Case {
        name: "remove a tree",
        run: |root| {
            std::fs::remove_dir_all(root.join("dir/sub")).unwrap();
            std::fs::remove_file(root.join("dir/file")).unwrap();
            std::fs::remove_file(root.join("dir/link-2")).unwrap();
            std::fs::remove_dir(root.join("dir")).unwrap();
        },
        told: &[
            "remove dir/sub/deep",
            "remove dir/sub",
            "remove dir/file",
            "remove dir/link-2",
            "remove dir",
        ],
    },
    Case {
        name: "remove an open file, and write on",
        run: |root| {
            let file = open_to_write(&root.join("dir/file"));
            std::fs::remove_file(root.join("dir/file")).unwrap();
            file.write_all_at(b"late", 0).unwrap();
        },
        told: &["remove dir/file"],
    },
    Case {
        name: "rename a file",
        run: |root| rename(root, "dir/file", "dir/renamed", RenameFlags::empty()),
        told: &["rename dir/file -> dir/renamed"],
    },
    Case {
        name: "move a file",
        run: |root| rename(root, "dir/file", "moved", RenameFlags::empty()),
        told: &["rename dir/file -> moved"],
    },
    Case {
        name: "rename over a file",
        run: |root| rename(root, "other", "dir/file", RenameFlags::empty()),
        told: &["rename other -> dir/file"],
    },
    Case {
        name: "replace as editors do",
        run: |root| {
            std::fs::write(root.join("dir/.tmp"), "new").unwrap();
            rename(root, "dir/.tmp", "dir/file", RenameFlags::empty());
        },
        told: &["create dir/.tmp", "write dir/.tmp", "rename dir/.tmp -> dir/file"],
    },
    Case {
        name: "exchange two",
        run: |root| rename(root, "other", "dir/file", RenameFlags::EXCHANGE),
        told: &["exchange other -> dir/file"],
    },
    Case {
        name: "rename a directory",
        run: |root| rename(root, "dir/sub", "dir/named", RenameFlags::empty()),
        told: &["rename dir/sub -> dir/named"],
    },
    Case {
        name: "move a directory, and change what is in it",
        run: |root| {
            rename(root, "dir/sub", "moved", RenameFlags::empty());
            std::fs::write(root.join("moved/deep"), "deeper").unwrap();
            std::fs::write(root.join("moved/new"), "new").unwrap();
        },
        told: &[
            "rename dir/sub -> moved",
            "write moved/deep",
            "write moved/deep",
            "create moved/new",
            "write moved/new",
        ],
    },
    Case {
        name: "write to what was renamed",
        run: |root| {
            rename(root, "dir/file", "dir/renamed", RenameFlags::empty());
            open_to_write(&root.join("dir/renamed")).write_all_at(b"new", 3).unwrap();
        },
        told: &["rename dir/file -> dir/renamed", "write dir/renamed"],
    },
    Case {
        name: "write nothing",
        run: |root| {
            let file = open_to_write(&root.join("dir/file"));
            assert_eq!(rustix::io::pwrite(&file, &[], 3).unwrap(), 0);
        },
        told: &[],
    },
    Case {
        name: "set a length by path, to a larger one",
        run: |root| {
            let path = CString::new(root.join("dir/file").as_os_str().as_bytes()).unwrap();
            nix::unistd::truncate(&*path, 5000).unwrap();
        },
        told: &["write dir/file"],
    },
    Case {
        name: "punch a hole",
        run: |root| {
            let file = open_to_write(&root.join("dir/file"));
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, flags, 0, 5).unwrap();
        },
        told: &["write dir/file"],
    },
    Case {
        name: "send from another file",
        run: |root| {
            let from = File::open(root.join("other")).unwrap();
            let to = open_to_write(&root.join("dir/file"));
            assert_eq!(rustix::fs::sendfile(&to, &from, None, 5).unwrap(), 5);
        },
        told: &["write dir/file"],
    },
    Case {
        name: "change an owner to what it is",
        run: |root| {
            let path = root.join("dir/file");
            let owner = std::fs::metadata(&path).unwrap();
            std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid())).unwrap();
        },
        told: &["attributes dir/file"],
    },
    Case {
        name: "change times of a symbolic link",
        run: |root| {
            let then = Timespec { tv_sec: 5, tv_nsec: 0 };
            let times = Timestamps { last_access: then, last_modification: then };
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(CWD, root.join("symlink"), &times, flags).unwrap();
        },
        told: &["attributes symlink"],
    },
    Case {
        name: "remove a symbolic link",
        run: |root| std::fs::remove_file(root.join("symlink")).unwrap(),
        told: &["remove symlink"],
    },
    Case {
        name: "rename a directory over an empty one",
        run: |root| rename(root, "dir/sub", "empty", RenameFlags::empty()),
        told: &["rename dir/sub -> empty"],
    },
    Case {
        name: "rename a file to what it is called",
        run: |root| rename(root, "dir/file", "dir/file", RenameFlags::empty()),
        told: &[],
    },
    Case {
        name: "rename a name over another of the same file",
        run: |root| rename(root, "link-1", "dir/link-2", RenameFlags::empty()),
        told: &[],
    },
    Case {
        name: "exchange a file and a directory",
        run: |root| rename(root, "other", "dir/sub", RenameFlags::EXCHANGE),
        told: &["exchange other -> dir/sub"],
    },
    Case {
        name: "fail in all manners",
        run: |root| {
            std::fs::create_dir(root.join("dir")).unwrap_err();
            std::fs::remove_dir(root.join("dir")).unwrap_err();
            std::fs::remove_file(root.join("dir/none")).unwrap_err();
            std::fs::rename(root.join("dir"), root.join("dir/sub/in")).unwrap_err();
            std::fs::rename(root.join("empty"), root.join("dir")).unwrap_err();
            std::fs::hard_link(root.join("other"), root.join("dir/file")).unwrap_err();
            rustix::fs::removexattr(root.join("other"), "user.none").unwrap_err();
            File::options().write(true).create_new(true).open(root.join("other")).unwrap_err();
        },
        told: &[],
    },
    Case {
        name: "a copy-up between two writes",
        run: |root| {
            let path = root.join("dir/file");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            open_to_write(&path).write_all_at(b"new", 3).unwrap();
            std::fs::remove_file(path).unwrap();
        },
        told: &["attributes dir/file", "write dir/file", "remove dir/file"],
    },
];

/// What is told while `case` runs in `root`, a line for each event.
fn told(root: &Path, case: &Case) -> Vec<String> {
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let queue = inotify::init(flags).unwrap();
    let watches = WATCHED.map(|name| {
        // With a slash at the end nothing but a directory is found.
        let path = if name.is_empty() { root.to_owned() } else { root.join(name) };
        (inotify::add_watch(&queue, path, inotify::WatchFlags::ALL_EVENTS).unwrap(), name)
    });
    (case.run)(root);
    read(&queue, &watches)
}

fn read(queue: &OwnedFd, watches: &[(i32, &str)]) -> Vec<String> {
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut reader = inotify::Reader::new(queue, &mut buffer);
    let (mut lines, mut cookies) = (Vec::new(), Vec::new());
    while let Ok(event) = reader.next() {
        let watched = watches.iter().find(|(watch, _)| *watch == event.wd()).map(|(_, name)| *name);
        let cookie = match event.cookie() {
            0 => String::new(),
            cookie => {
                if !cookies.contains(&cookie) {
                    cookies.push(cookie);
                }
                format!(" rename {}", cookies.iter().position(|known| *known == cookie).unwrap())
            }
        };
        let name = event.file_name().map_or(CString::default(), ToOwned::to_owned);
        let events = format!("{:?}", event.events()).replace("ReadFlags", "");
        lines.push(format!("{watched:?} {events} {name:?}{cookie}"));
    }
    lines
}

/// Does each case in a mount of its own, with passthrough and without. `look` gives what is wrong with it, if anything.
fn try_each(test: &str, look: impl Fn(&Bench, &Path, &Case) -> Option<String>) {
    if !can_mount(test) {
        return;
    }
    let bench = Bench::new();
    let tree = bench.directory("tree");
    make_tree(&tree);
    let archive = bench.archive(&tree, "data.sqsh", &[]);
    let mut wrong = Vec::new();
    for options in ["rw", "no_passthrough"] {
        for (number, case) in CASES.iter().enumerate() {
            let mountpoint = bench.directory(&format!("{options}-{number}"));
            let words = ["mount".as_ref(), "-o".as_ref(), OsStr::new(options)];
            bench.ok(&[&words[..], &[archive.as_os_str(), mountpoint.as_os_str()]].concat());
            let found = look(&bench, &mountpoint, case);
            bench.ok(&["unmount".as_ref(), mountpoint.as_os_str()]);
            wrong.extend(found.map(|found| format!("{options}, {}: {found}", case.name)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    bench.assert_nothing_left();
}

#[test]
fn inotify_tells_in_a_mount_what_it_tells_of_a_plain_directory() {
    let test = "inotify_tells_in_a_mount_what_it_tells_of_a_plain_directory";
    try_each(test, |_, mountpoint, case| {
        let plain = tempfile::tempdir().unwrap();
        make_tree(plain.path());
        let (here, there) = (told(mountpoint, case), told(plain.path(), case));
        assert!(!there.is_empty() || case.told.is_empty(), "{}", case.name);
        (here != there).then(|| format!("\n  mount {here:#?}\n  plain {there:#?}"))
    });
}

/// `FAN_REPORT_DFID_NAME`: events name files and directories.
const BY_NAME: InitFlags = InitFlags::from_bits_retain(0x400 | 0x800);

/// What fanotify tells of a file that is made, written, renamed and removed, with such a mark on `root`.
fn told_by_fanotify(root: &Path, init: InitFlags, mark: MarkFlags, mask: MaskFlags) -> String {
    let init = init | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK;
    let group = Fanotify::init(init, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC).unwrap();
    if let Err(errno) = group.mark(MarkFlags::FAN_MARK_ADD | mark, mask, CWD, Some(root)) {
        return errno.to_string();
    }
    std::fs::write(root.join("new"), "data").unwrap();
    rename(root, "new", "renamed", RenameFlags::empty());
    std::fs::remove_file(root.join("renamed")).unwrap();
    if init.contains(BY_NAME) {
        // Its events hold file handles instead of descriptors, which is nothing that this library reads.
        return "marked".to_owned();
    }
    let masks = group.read_events().unwrap();
    let masks: Vec<MaskFlags> = masks.iter().map(|event| event.mask()).collect();
    format!("{masks:?}")
}

#[test]
fn fanotify_tells_of_a_mount_all_that_needs_no_number_of_the_file_system() {
    let test = "fanotify_tells_of_a_mount_all_that_needs_no_number_of_the_file_system";
    if !can_mount_with(test, &[Need::Root]) {
        return;
    }
    let bench = Bench::new();
    let tree = bench.directory("tree");
    make_tree(&tree);
    let (mountpoint, plain) = (bench.directory("mnt"), bench.directory("plain"));
    let archive = bench.archive(&tree, "data.sqsh", &[]);
    bench.ok(&["mount".as_ref(), archive.as_os_str(), mountpoint.as_os_str()]);
    let data = MaskFlags::FAN_MODIFY | MaskFlags::FAN_CLOSE_WRITE | MaskFlags::FAN_OPEN;
    let inside = MaskFlags::FAN_ONDIR | MaskFlags::FAN_EVENT_ON_CHILD;
    let names = MaskFlags::FAN_CREATE
        | MaskFlags::FAN_DELETE
        | MaskFlags::FAN_MOVED_FROM
        | MaskFlags::FAN_MOVED_TO;
    let (on_all, on_mount) = (MarkFlags::FAN_MARK_FILESYSTEM, MarkFlags::FAN_MARK_MOUNT);
    let by_descriptor = InitFlags::FAN_CLASS_NOTIF;
    for (init, mark, mask) in [
        (by_descriptor, MarkFlags::empty(), data | MaskFlags::FAN_EVENT_ON_CHILD),
        (BY_NAME, MarkFlags::empty(), data | names | inside),
    ] {
        let told = told_by_fanotify(&mountpoint, init, mark, mask);
        assert_eq!(told, told_by_fanotify(&plain, init, mark, mask), "{init:?} {mark:?}");
        assert!(told.contains("FAN_MODIFY") || init == BY_NAME && told == "marked", "{told}");
    }
    // A plain directory's file system is everybody's here.
    for mark in [on_all, on_mount] {
        let told = told_by_fanotify(&mountpoint, by_descriptor, mark, data);
        assert!(told.contains("FAN_MODIFY") && told.contains("FAN_CLOSE_WRITE"), "{told}");
    }
    // The kernel has a number (f_fsid) for each file system but those of FUSE, and names no file without.
    let told = told_by_fanotify(&mountpoint, BY_NAME, on_all, data | names | MaskFlags::FAN_ONDIR);
    assert!(told.starts_with("ENODEV"), "{told}");
    bench.ok(&["unmount".as_ref(), mountpoint.as_os_str()]);
    bench.assert_nothing_left();
}

#[test]
fn the_stream_tells_of_each_operation_what_it_did() {
    try_each("the_stream_tells_of_each_operation_what_it_did", |bench, mountpoint, case| {
        let mut watching = Watching::new(bench, mountpoint, &[]);
        (case.run)(mountpoint);
        let told = watching.words(Duration::from_millis(150));
        watching.stop();
        (told != case.told).then(|| format!("{told:#?}"))
    });
}
