//! An upper is the same on whatever file system it lies: on overlayfs, as in a container, on tmpfs, and on
//! those of disks. Where there can be no 0/0 devices, its whiteouts are files.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::overlay_support::{
    self, Merged, Plain, Seen, Side, assert_same, bytes, change, open_overlay, run, source,
};
use crate::support::mount::Bench;
use crate::support::surrounding::{Need, cannot_run, skip};
use rustix::fs::{CWD, FileType, Mode, RenameFlags};
use thawfs::overlay::{Error, Options, Upper};
use thawfs::types::Ino;

/// A file system of its own. Dropping it unmounts it.
struct Ground {
    name: &'static str,
    dir: tempfile::TempDir,
    mounts: Vec<PathBuf>,
}

impl Ground {
    fn new(name: &'static str) -> Self {
        Self { name, dir: tempfile::tempdir().unwrap(), mounts: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn mount(&mut self, kind: &str, what: &OsStr, options: &OsStr, name: &str) {
        let to = self.path(name);
        let args = [OsStr::new("-t"), kind.as_ref(), what, to.as_os_str(), "-o".as_ref(), options];
        run("mount", &args);
        self.mounts.push(to);
    }

    /// Overlayfs whose upper layer is on a tmpfs, and the lower one, too, or on another.
    fn overlayfs(name: &'static str, lower: &str) -> Self {
        let mut ground = Self::new(name);
        for layer in ["upper", "lower"] {
            ground.mount("tmpfs", "tmpfs".as_ref(), "mode=755".as_ref(), layer);
        }
        let mut options = OsString::from("redirect_dir=off");
        for (key, name) in [("lowerdir", lower), ("upperdir", "upper/u"), ("workdir", "upper/w")] {
            options.push(format!(",{key}="));
            options.push(ground.path(name));
        }
        ground.mount("overlay", "overlay".as_ref(), &options, "ground");
        ground
    }

    /// A disk's file system, in an image.
    fn disk(name: &'static str) -> Option<Self> {
        let mut ground = Self::new(name);
        let image = ground.dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(400 << 20).unwrap();
        let make = format!("mkfs.{name}");
        let made = Command::new(&make).arg("-q").arg(&image).output();
        match made {
            Ok(output) => assert!(output.status.success(), "{output:?}"),
            Err(error) => {
                skip(name, &format!("{make}: {error}"));
                return None;
            }
        }
        ground.mount(name, image.as_os_str(), "loop".as_ref(), "ground");
        Some(ground)
    }

    fn plain(name: &'static str) -> Self {
        let mut ground = Self::new(name);
        ground.mount(name, name.as_ref(), "mode=755".as_ref(), "ground");
        ground
    }

    fn overlays() -> [Self; 2] {
        [
            Self::overlayfs("overlayfs", "upper/l"),
            Self::overlayfs("overlayfs of two file systems", "lower/l"),
        ]
    }

    fn all() -> Vec<Self> {
        let disks = ["ext4", "xfs", "btrfs"].into_iter().filter_map(Self::disk);
        Self::overlays().into_iter().chain([Self::plain("tmpfs")]).chain(disks).collect()
    }

    /// Where the upper and its workdir go.
    fn ground(&self) -> PathBuf {
        self.dir.path().join("ground")
    }

    fn upper(&self, name: &str) -> PathBuf {
        self.ground().join("upper").join(name)
    }

    fn open(&self) -> Merged {
        open(&self.ground())
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        for mount in self.mounts.iter().rev() {
            let status = Command::new("umount").arg(mount).status().unwrap();
            if !status.success() {
                eprintln!("cannot unmount {mount:?}");
            }
        }
    }
}

fn open(dir: &Path) -> Merged {
    Merged { overlay: open_overlay(dir, &source().archive, Options::default()), plus: true }
}

fn path(path: &str) -> &Path {
    Path::new(path)
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn xattr(file: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let len = rustix::fs::lgetxattr(file, name, &mut value[..]).ok()?;
    value.truncate(len);
    Some(value)
}

fn is_whiteout_file(file: &Path) -> bool {
    let about = file.symlink_metadata().unwrap();
    about.is_file() && about.len() == 0 && xattr(file, "user.overlay.whiteout").is_some()
}

fn is_whiteout_device(file: &Path) -> bool {
    let about = file.symlink_metadata().unwrap();
    about.file_type().is_char_device() && about.rdev() == 0
}

/// A plain copy of the tree.
fn copied(to: &Path) -> Plain {
    run("cp", &[OsStr::new("-a"), source().tree.as_os_str(), to.as_os_str()]);
    Plain(to.to_owned())
}

fn needs_root(test: &str) -> bool {
    cannot_run(test, &[Need::Root])
}

#[test]
fn an_upper_is_the_same_on_every_file_system() {
    if needs_root("an_upper_is_the_same_on_every_file_system") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut plain = copied(&dir.path().join("plain"));
    change(&mut plain);
    let expected = plain.tree();
    for ground in Ground::all() {
        let name = ground.name;
        let mut ours = ground.open();
        change(&mut ours);
        // One that a program makes is a device, whatever whiteouts are.
        let made = ours.overlay.mknod(
            &overlay_support::ROOT,
            Ino::ROOT,
            OsStr::new("null"),
            libc::S_IFCHR | 0o600,
            0,
        );
        ours.overlay.forget(made.unwrap().ino, 1);
        let mut seen = ours.tree();
        drop(ours);
        let again = ground.open().tree();
        assert_eq!(seen.keys().collect::<Vec<_>>(), again.keys().collect::<Vec<_>>(), "{name}");
        for (path, seen) in &seen {
            // Numbers, too.
            assert!(again[path] == *seen, "{name}, {path:?} after a remount");
        }
        let null = seen.remove(path("null")).unwrap();
        assert_eq!((null.kind, null.rdev), (thawfs::types::FileKind::CharDevice, 0), "{name}");
        assert_same(seen, expected.clone(), name);
        let whiteout = ground.upper("a/b/c");
        let whiteout = if is_there(&whiteout) { whiteout } else { ground.upper("a/moved/c") };
        if name.starts_with("overlayfs") {
            assert!(is_whiteout_file(&whiteout), "{name}: {whiteout:?}");
            for marked in [whiteout.parent().unwrap(), &ground.upper("")] {
                let mark = xattr(marked, "user.overlay.opaque");
                assert_eq!(mark.as_deref(), Some(&b"x"[..]), "{name}: {marked:?}");
            }
        } else {
            assert!(is_whiteout_device(&whiteout), "{name}: {whiteout:?}");
        }
    }
}

/// What the kernel reads of an upper in a lower layer, with `userxattr`: it follows no redirect there, and no
/// metacopy.
fn change_simply(side: &mut dyn Side) {
    let create = libc::O_CREAT | libc::O_WRONLY;
    side.write(path("new"), 0, &bytes(9, 10_000), create).unwrap();
    side.unlink(path("a/a")).unwrap();
    side.unlink(path("a/b/c")).unwrap();
    side.rmdir(path("c/a")).unwrap();
    side.write(path("a/b/a"), 5, b"appended", libc::O_WRONLY).unwrap();
    side.rename(path("a/b/a"), path("renamed"), RenameFlags::empty()).unwrap();
    for gone in ["c/c/a", "c/c/b", "c/c/c"] {
        side.unlink(path(gone)).unwrap();
    }
    side.rmdir(path("c/c")).unwrap();
    side.mkdir(path("c/c"), 0o751).unwrap();
    side.write(path("c/c/only"), 0, b"in a directory made anew", create).unwrap();
    // In the root, and over an existing file.
    side.unlink(path("b")).unwrap();
    side.write(path("c/new"), 0, b"over", create).unwrap();
    side.rename(path("c/new"), path("c/b"), RenameFlags::empty()).unwrap();
}

#[test]
fn the_kernel_reads_an_upper_with_whiteout_files_as_a_lower_layer() {
    if needs_root("the_kernel_reads_an_upper_with_whiteout_files_as_a_lower_layer") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut plain = copied(&dir.path().join("plain"));
    change_simply(&mut plain);
    let mut expected = plain.tree();
    let mut ground = Ground::overlayfs("overlayfs", "upper/l");
    let options = Options { metacopy: false, ..Options::default() };
    let overlay = open_overlay(&ground.ground(), &source().archive, options);
    let mut ours = Merged { overlay, plus: false };
    change_simply(&mut ours);
    let seen = ours.tree();
    drop(ours);
    assert_same(seen, expected.clone(), "ours and a plain directory");

    ground.mount("squashfs", source().archive.as_os_str(), "loop,ro".as_ref(), "archive");
    let mut options = OsString::from("userxattr,lowerdir=");
    options.push(ground.ground().join("upper"));
    options.push(":");
    options.push(ground.path("archive"));
    ground.mount("overlay", "overlay".as_ref(), &options, "kernel");
    let mut seen = Plain(ground.path("kernel")).tree();
    // Links of the archive are broken by the kernel, which has no index here.
    for tree in [&mut seen, &mut expected] {
        for about in tree.values_mut() {
            about.nlink = 0;
        }
    }
    assert_same(seen, expected, "the kernel and a plain directory");
}

#[test]
fn an_upper_keeps_the_form_it_began_with() {
    if needs_root("an_upper_keeps_the_form_it_began_with") {
        return;
    }
    let ground = Ground::overlayfs("overlayfs", "upper/l");
    let mut ours = ground.open();
    change(&mut ours);
    let before = ours.tree();
    drop(ours);
    // Carried to a file system that could do otherwise. Numbers of what is new are that one's.
    let disk = Ground::plain("tmpfs");
    for name in ["upper", "work"] {
        let args =
            [OsStr::new("-a"), ground.ground().join(name).as_os_str(), disk.ground().as_os_str()]
                .map(OsStr::to_owned);
        run("cp", &args.iter().map(OsString::as_os_str).collect::<Vec<_>>());
    }
    let numberless = |tree: overlay_support::Tree| -> BTreeMap<PathBuf, Seen> {
        tree.into_iter().map(|(path, seen)| (path, Seen { ino: 0, nlink: 0, ..seen })).collect()
    };
    let mut ours = disk.open();
    assert!(numberless(ours.tree()) == numberless(before), "carried");
    ours.unlink(path("a/a")).unwrap();
    drop(ours);
    assert!(is_whiteout_file(&disk.upper("a/a")));
    // Whiteouts of the other form hide as well: one that another program made, or an older kernel.
    std::fs::remove_file(disk.upper("a/a")).unwrap();
    let device = FileType::CharacterDevice;
    rustix::fs::mknodat(CWD, disk.upper("a/a"), device, Mode::empty(), 0).unwrap();
    let mut ours = disk.open();
    assert!(!ours.tree().contains_key(path("a/a")));
    ours.write(path("a/a"), 0, b"back", libc::O_CREAT | libc::O_WRONLY).unwrap();
    assert_eq!(ours.tree()[path("a/a")].contents, b"back");
    drop(ours);

    // One made with attributes of a user's, as by an ordinary user, keeps them in root's hands.
    let users = tempfile::tempdir().unwrap();
    std::fs::create_dir(users.path().join("upper")).unwrap();
    let none = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(users.path().join("upper"), "user.overlay.impure", b"y", none).unwrap();
    let mut ours = open(users.path());
    ours.rename(path("c"), path("moved"), RenameFlags::empty()).unwrap();
    drop(ours);
    let moved = users.path().join("upper/moved");
    assert_eq!(xattr(&moved, "user.overlay.redirect").as_deref(), Some(&b"/c"[..]));
    assert_eq!(xattr(&moved, "trusted.overlay.redirect"), None);
    assert!(open(users.path()).tree().contains_key(path("moved/c/a")));
}

#[test]
fn a_rename_that_was_cut_short_is_finished_by_the_next_mount() {
    if needs_root("a_rename_that_was_cut_short_is_finished_by_the_next_mount") {
        return;
    }
    for ground in Ground::overlays() {
        let mut ours = ground.open();
        // Over an existing file, and so not to be taken back.
        ours.rename(path("a/b/a"), path("a/a"), RenameFlags::empty()).unwrap();
        let names = |mut side: Merged| side.tree().into_keys().collect::<Vec<_>>();
        let expected = names(ours);
        let note = ground.ground().join("work/work/renaming");
        assert!(!is_there(&note), "{}: the note of a rename that is done", ground.name);
        // As it is between the rename and the whiteout.
        std::fs::remove_file(ground.upper("a/b/a")).unwrap();
        std::os::unix::fs::symlink("a/b/a", &note).unwrap();
        assert_eq!(names(ground.open()), expected, "{}", ground.name);
        assert!(!is_there(&note) && is_whiteout_file(&ground.upper("a/b/a")));
        // As it is before the rename, and where somebody took the directory away: nothing is to be done.
        for path in ["a/a", "not/there"] {
            std::os::unix::fs::symlink(path, &note).unwrap();
            assert_eq!(names(ground.open()), expected, "{}, {path}", ground.name);
            assert!(!is_there(&note), "{}, {path}", ground.name);
        }
    }
}

#[test]
fn directories_are_known_again_where_they_have_no_number_that_lasts() {
    if needs_root("directories_are_known_again_where_they_have_no_number_that_lasts") {
        return;
    }
    const COUNT: usize = 100;
    for ground in Ground::overlays() {
        let options = Options { directory_fds: 4, ..Options::default() };
        let mut ours = Merged {
            overlay: open_overlay(&ground.ground(), &source().archive, options),
            plus: true,
        };
        for n in 0..COUNT {
            ours.mkdir(path(&format!("new{n}")), 0o755).unwrap();
            let create = libc::O_CREAT | libc::O_WRONLY;
            ours.write(path(&format!("new{n}/file")), 0, b"", create).unwrap();
        }
        let seen = ours.tree();
        let inos: std::collections::BTreeSet<_> = seen.values().map(|seen| seen.ino).collect();
        // The archive's hard link of three names is one file.
        assert_eq!(inos.len(), seen.len() - 2, "{}: numbers that are not unique", ground.name);
        // In use all the while.
        let held = ours.resolve(path("new7")).unwrap();
        std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        assert_eq!(ours.overlay.getattr(held.last(), None).unwrap().ino, held.last());
        let file = ours.overlay.lookup(held.last(), OsStr::new("file")).unwrap();
        ours.overlay.forget(file.ino, 1);
        drop(held);
        assert!(ours.tree() == seen, "{}: with nothing remembered", ground.name);
        drop(ours);
        std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        assert!(ground.open().tree() == seen, "{}: after a remount", ground.name);
        // A copy made behind our back is another directory.
        let copy = ground.upper("copy");
        run("cp", &["-a".as_ref(), ground.upper("new7").as_os_str(), copy.as_os_str()]);
        let again = ground.open().tree();
        assert_ne!(again[path("copy")].ino, again[path("new7")].ino, "{}", ground.name);
        assert_eq!(again[path("new7")].ino, seen[path("new7")].ino, "{}", ground.name);
    }
}

#[test]
fn a_file_system_without_attributes_is_refused_with_what_to_do() {
    if needs_root("a_file_system_without_attributes_is_refused_with_what_to_do") {
        return;
    }
    let ground = Ground::plain("ramfs");
    let (upper, work) = (ground.path("ground/upper"), ground.path("ground/work"));
    let refused = Upper::open(&upper, &work).unwrap_err();
    let said = refused.to_string();
    assert!(matches!(refused, Error::Unusable { .. }), "{said}");
    assert!(
        said.contains("no extended attributes") && said.contains("use a directory on"),
        "{said}"
    );
    let left = std::fs::read_dir(work.join("work")).unwrap().count();
    assert_eq!(left, 0, "something is left in the workdir");
}

/// A bucket with a backup of one file, and the backup's id.
fn backed_up(bench: &Bench) -> (String, String) {
    let tree = bench.directory("tree");
    std::fs::write(tree.join("file"), "of the backup").unwrap();
    std::fs::write(tree.join("gone"), "removed").unwrap();
    let bucket = format!("file://{}", bench.directory("box").display());
    let made = bench.ok(&["create", tree.to_str().unwrap(), "--bucket", &bucket]);
    let handle: serde_json::Value = serde_json::from_str(&made).unwrap();
    (bucket, handle["id"].as_str().unwrap().to_owned())
}

#[test]
fn a_backup_is_restored_with_all_state_on_overlayfs() {
    let test = "a_backup_is_restored_with_all_state_on_overlayfs";
    if cannot_run(test, &[Need::Mount, Need::Root]) {
        return;
    }
    let bench = Bench::new();
    let (bucket, id) = backed_up(&bench);
    for ground in Ground::overlays() {
        let (state, dir) = (ground.path("ground/state"), ground.path("ground/work"));
        let run = |arguments: &[&str]| {
            let mut command = bench.thawfs();
            let output = command.env("THAWFS_STATE_DIR", &state).args(arguments).output().unwrap();
            assert!(output.status.success(), "{arguments:?}: {output:?}");
        };
        run(&["restore", &id, dir.to_str().unwrap(), "--bucket", &bucket]);
        std::fs::remove_file(dir.join("gone")).unwrap();
        std::fs::rename(dir.join("file"), dir.join("renamed")).unwrap();
        std::fs::write(dir.join("new"), "new").unwrap();
        let names = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name());
        let names: std::collections::BTreeSet<_> = names.collect();
        assert_eq!(names, ["new", "renamed"].map(OsString::from).into(), "{}", ground.name);
        let read = std::fs::read_to_string(dir.join("renamed")).unwrap();
        assert_eq!(read, "of the backup", "{}", ground.name);
        run(&["unmount", dir.to_str().unwrap()]);
        assert_eq!(std::fs::read_dir(state.join("uppers")).unwrap().count(), 0, "{}", ground.name);
    }
}

#[test]
fn what_refuses_an_upper_names_the_way_to_another() {
    if cannot_run("what_refuses_an_upper_names_the_way_to_another", &[Need::Mount, Need::Root]) {
        return;
    }
    let bench = Bench::new();
    let (bucket, id) = backed_up(&bench);
    let archive = bench.path("box").join("backups").join(&id).join("data.sqsh");
    let ground = Ground::plain("ramfs");
    let (state, upper) = (ground.path("ground/state"), ground.path("ground/up"));
    let dir = bench.directory("mnt");
    let (dir, archive) = (dir.to_str().unwrap(), archive.to_str().unwrap());
    let refused = |arguments: &[&str], names: &str| {
        let mut command = bench.thawfs();
        if names == "THAWFS_STATE_DIR" {
            command.env("THAWFS_STATE_DIR", &state);
        }
        let output = command.args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{arguments:?}");
        assert!(said.contains("no extended attributes") && said.contains(names), "{said}");
    };
    refused(&["restore", &id, dir, "--bucket", &bucket], "THAWFS_STATE_DIR");
    refused(&["mount", archive, dir], "THAWFS_STATE_DIR");
    refused(&["mount", archive, dir, "--upper", upper.to_str().unwrap()], "--upper");
    assert_eq!(bench.mounted(), Vec::<PathBuf>::new());
}
