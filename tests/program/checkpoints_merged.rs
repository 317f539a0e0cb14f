//! Layers of real mounts that become one: nothing is seen of it but that they are fewer.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, CWD, StatxFlags};

use crate::support::mount::{Mounts, can_mount_with};
use crate::support::surrounding::{Need, Surrounding};
use crate::support::words::{eventually, text};

/// How many checkpoints are made, and how many of them kept.
const CHECKPOINTS: usize = 300;
const KEEP: usize = 8;

/// What a file is, and what it holds or where it leads.
type Seen = (u32, u64, Vec<u8>);

fn look(at: &Path) -> BTreeMap<PathBuf, Seen> {
    let entries = walkdir::WalkDir::new(at).min_depth(1).into_iter().map(Result::unwrap);
    let seen = |entry: walkdir::DirEntry| {
        let meta = entry.path().symlink_metadata().unwrap();
        let contents = match meta.file_type() {
            it if it.is_file() => fs::read(entry.path()).unwrap(),
            it if it.is_symlink() => {
                fs::read_link(entry.path()).unwrap().into_os_string().into_encoded_bytes()
            }
            _ => Vec::new(),
        };
        let nlink = if meta.is_dir() { 0 } else { meta.nlink() };
        (entry.path().strip_prefix(at).unwrap().to_owned(), (meta.mode(), nlink, contents))
    };
    entries.map(seen).collect()
}

/// What the server says of a file, and not what the kernel remembers: number, links, and times.
fn asked(path: &Path) -> (u64, u32, i64, u32, i64, u32) {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
    let stat = rustix::fs::statx(CWD, path, flags, StatxFlags::BASIC_STATS).unwrap();
    let (mtime, ctime) = (stat.stx_mtime, stat.stx_ctime);
    let links = if stat.stx_mode & 0o170_000 == 0o040_000 { 0 } else { stat.stx_nlink };
    (stat.stx_ino, links, mtime.tv_sec, mtime.tv_nsec, ctime.tv_sec, ctime.tv_nsec)
}

/// What one step of work does: some of all that can be done to files.
fn work(dir: &Path, step: usize) {
    let own = dir.join(format!("d{}", step % 7));
    fs::create_dir_all(own.join("below")).unwrap();
    fs::write(own.join("below").join(format!("f{}", step % 11)), format!("{step}").repeat(step))
        .unwrap();
    let (file, other) = (own.join("file"), own.join("other"));
    match step % 6 {
        0 => fs::write(&file, format!("new {step}")).unwrap(),
        1 => drop(fs::rename(&own, dir.join(format!("e{}", step % 5)))),
        2 => drop(fs::remove_dir_all(dir.join(format!("e{}", step % 5)))),
        3 => {
            let _ = fs::remove_file(&other);
            drop(fs::hard_link(own.join("below").join(format!("f{}", step % 11)), &other));
        }
        4 => {
            use std::os::unix::fs::PermissionsExt;
            let mode = if step.is_multiple_of(4) { 0o600 } else { 0o644 };
            fs::set_permissions(own.join("below"), fs::Permissions::from_mode(mode | 0o100))
                .unwrap();
        }
        // Elsewhere they are not merged.
        _ if Surrounding::can_mark_all() => {
            let _ = fs::remove_file(own.join("link"));
            std::os::unix::fs::symlink(format!("{step}"), own.join("link")).unwrap();
        }
        _ => {}
    }
}

#[test]
fn layers_between_which_no_checkpoint_is_kept_become_one() {
    let test = "layers_between_which_no_checkpoint_is_kept_become_one";
    if !can_mount_with(test, &[Need::Processes]) {
        return;
    }
    let mounts = Mounts::new();
    let mountpoint = &mounts.mountpoint;
    let [upper, work_dir] = ["upper", "work"].map(|name| mounts.bench.directory(name));
    let mount = ["-q", "mount", text(&mounts.archive), text(mountpoint)];
    let mount = [&mount[..], &["--upper", text(&upper), "--workdir", text(&work_dir)]].concat();
    mounts.bench.ok(&mount);
    let layers = work_dir.join("layers");
    let count = || fs::read_dir(&layers).map_or(0, Iterator::count);

    let (kept, plain) = (mountpoint.join("kept"), mounts.bench.path("plain"));
    fs::create_dir(&kept).unwrap();
    fs::create_dir(&plain).unwrap();
    // What nobody changes, from the first layer on.
    let steady: Vec<PathBuf> = ["a", "a/b", "a/b/file", "a/b/alias", "a/link"]
        .iter()
        .map(|name| mountpoint.join("steady").join(name))
        .collect();
    fs::create_dir_all(&steady[1]).unwrap();
    fs::write(&steady[2], "steady").unwrap();
    fs::hard_link(&steady[2], &steady[3]).unwrap();
    if Surrounding::can_mark_all() {
        std::os::unix::fs::symlink("b/file", &steady[4]).unwrap();
    } else {
        fs::write(&steady[4], "no link").unwrap();
    }
    mounts.bench.ok(&["-q", "checkpoint", text(mountpoint), "--local"]);
    let before: Vec<_> = steady.iter().map(|path| asked(path)).collect();
    let mut open = fs::File::open(&steady[2]).unwrap();

    let ended = AtomicBool::new(false);
    let (mut copies, mut most) = (Vec::new(), 0);
    std::thread::scope(|scope| {
        for writer in 0..2 {
            let (ended, dir) = (&ended, mountpoint.join(format!("writer{writer}")));
            scope.spawn(move || {
                let mut step = 0;
                while !ended.load(Ordering::Relaxed) {
                    work(&dir, step % 400);
                    step += 1;
                }
            });
        }
        for step in 0..CHECKPOINTS {
            work(&kept, step);
            work(&plain, step);
            let keep = KEEP.to_string();
            let made = ["-q", "checkpoint", text(mountpoint), "--local", "--keep", &keep];
            let id = mounts.bench.ok(&made).trim_end().to_owned();
            copies.push((id, look(&plain)));
            most = most.max(count());
            let read = fs::read(&steady[2]).unwrap();
            assert_eq!(read, b"steady", "{step}");
        }
        ended.store(true, Ordering::Relaxed);
    });
    assert_eq!(look(&kept), look(&plain));
    eventually("most layers are merged", || count() < KEEP + 16);
    assert!(most < CHECKPOINTS / 2, "there were {most} names in the directory of layers");
    let after: Vec<_> = steady.iter().map(|path| asked(path)).collect();
    assert_eq!(after, before, "what nobody has changed");
    open.rewind().unwrap();
    let mut read = String::new();
    open.read_to_string(&mut read).unwrap();
    assert_eq!(read, "steady");
    // Who has it open sees what is written to it now.
    fs::OpenOptions::new().append(true).open(&steady[3]).unwrap().write_all(b" no more").unwrap();
    open.rewind().unwrap();
    read.clear();
    open.read_to_string(&mut read).unwrap();
    assert_eq!(read, "steady no more");
    drop(open);

    // Each checkpoint that is kept is what it was, also for a server that was not there.
    for kills in [false, true] {
        if kills {
            let pid = rustix::process::Pid::from_raw(mounts.bench.servers()[0] as i32).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            eventually("the server has ended", || mounts.bench.servers().is_empty());
            eventually("it is dead", || {
                mounts.bench.run(&["unmount", "--dead", text(mountpoint)]).status.success()
            });
            mounts.bench.ok(&mount);
        }
        for (id, copy) in copies.iter().rev().take(KEEP - 1) {
            mounts.bench.ok(&["-q", "rollback", text(mountpoint), id]);
            assert_eq!(&look(&kept), copy, "{id}");
        }
    }
}
