//! Programs that go on over checkpoints and rollbacks, in real mounts: with files open in every way, in directories that
//! move, and with what the kernel remembers.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, StatxFlags};
use serde_json::Value;

use crate::support::mount::{Mounts, can_mount};
use crate::support::words::text;

/// The ways in which files are read and written: by the kernel itself, where it may, or by the server.
const WAYS: [&[&str]; 2] = [&[], &["-o", "checkpoints=exact"]];

/// A mount with checkpoints.
pub(crate) struct Layers(pub(crate) Mounts);

impl Layers {
    pub(crate) fn new(more: &[&str]) -> Self {
        let mounts = Mounts::new();
        let words = ["-q", "mount", text(&mounts.archive), text(&mounts.mountpoint)];
        mounts.bench.ok(&[&words, more].concat());
        Self(mounts)
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.0.mountpoint.join(path)
    }

    /// Makes a checkpoint; gives its id, and how many files are of no one moment.
    pub(crate) fn checkpoint(&self) -> (String, usize) {
        let output = self.0.bench.run(&["checkpoint", "--json", text(&self.0.mountpoint)]);
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(output.status.success(), "{said}");
        let fuzzy = said["fuzzy"].as_array().unwrap().len();
        (said["id"].as_str().unwrap().to_owned(), fuzzy)
    }

    /// Keeps all that are made from now on.
    pub(crate) fn keep_all(&self) {
        self.0.bench.ok(&["-q", "forget", "--keep", "1000000", text(&self.0.mountpoint)]);
    }

    /// Rolls back; gives what takes that back.
    fn roll_back_from(&self, id: &str) -> String {
        let said = self.0.bench.run(&["rollback", "--json", text(&self.0.mountpoint), id]);
        let said: Value = serde_json::from_slice(&said.stdout).unwrap();
        said["rolledAway"].as_str().unwrap().to_owned()
    }

    pub(crate) fn roll_back(&self, id: &str) {
        self.0.bench.ok(&["rollback", "--json", text(&self.0.mountpoint), id]);
    }

    pub(crate) fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.at(path)).ok()
    }

    pub(crate) fn end(self) {
        self.0.bench.ok(&["unmount", text(&self.0.mountpoint)]);
        self.0.bench.assert_nothing_left();
    }
}

fn open(path: PathBuf) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[test]
fn what_is_open_for_writing_goes_on_and_the_checkpoint_has_the_moment() {
    if !can_mount("what_is_open_for_writing_goes_on_and_the_checkpoint_has_the_moment") {
        return;
    }
    for way in WAYS {
        let layers = Layers::new(way);
        fs::create_dir_all(layers.at("new/deep")).unwrap();
        fs::write(layers.at("new/deep/file"), "").unwrap();
        fs::write(layers.at("linked"), "").unwrap();
        fs::hard_link(layers.at("linked"), layers.at("new/other")).unwrap();
        // Of the archive, with two names there.
        let paths = ["new/deep/file", "linked", "sub/data", "hello", "unlinked"];
        fs::write(layers.at("unlinked"), "").unwrap();
        let mut files: Vec<File> = paths.iter().map(|path| open(layers.at(path))).collect();
        fs::remove_file(layers.at("unlinked")).unwrap();
        for file in &mut files {
            file.set_len(0).unwrap();
        }
        let mut points = Vec::new();
        for round in 0..4 {
            for file in &mut files {
                write!(file, "{round}").unwrap();
            }
            let (id, fuzzy) = layers.checkpoint();
            assert_eq!(fuzzy, 0, "{way:?}: nobody wrote meanwhile");
            points.push(id);
        }
        for file in &mut files {
            write!(file, "end").unwrap();
            file.seek(SeekFrom::Start(0)).unwrap();
            let mut read = String::new();
            file.read_to_string(&mut read).unwrap();
            assert_eq!(read, "0123end", "{way:?}");
        }
        for (path, as_well) in [("linked", "new/other"), ("hello", "sub/hello-too")] {
            assert_eq!(layers.read(path).unwrap(), "0123end", "{way:?} {path}");
            assert_eq!(layers.read(as_well).unwrap(), "0123end", "{way:?} {as_well}");
            let numbers = [path, as_well].map(|path| layers.at(path).metadata().unwrap().ino());
            assert_eq!(numbers[0], numbers[1]);
        }
        for (round, point) in points.iter().enumerate().rev() {
            layers.roll_back(point);
            let expected = &"0123"[..=round];
            let named =
                ["new/deep/file", "linked", "new/other", "sub/data", "hello", "sub/hello-too"];
            for path in named {
                assert_eq!(layers.read(path).as_deref(), Some(expected), "{way:?} {path}");
            }
            assert!(!layers.at("unlinked").exists());
        }
        // What is open is what it was.
        for file in &mut files {
            write!(file, ".").unwrap();
            let mut read = [0; 8];
            file.read_exact_at(&mut read, 0).unwrap();
            assert_eq!(&read, b"0123end.", "{way:?}");
        }
        assert_eq!(layers.read("hello").unwrap(), "0");
        drop(files);
        layers.end();
    }
}

#[test]
fn a_write_that_has_returned_is_in_the_checkpoint_that_is_made_next() {
    if !can_mount("a_write_that_has_returned_is_in_the_checkpoint_that_is_made_next") {
        return;
    }
    for way in WAYS {
        let layers = Layers::new(way);
        layers.keep_all();
        let names: Vec<String> = (0..24).map(|n| format!("file-{n}")).collect();
        let create = |name: &String| File::create(layers.at(name)).unwrap();
        let files: Vec<File> = names.iter().map(create).collect();
        let mut points = Vec::new();
        for round in 1..=8_u8 {
            for file in &files {
                file.write_all_at(&vec![round; 200_000], 0).unwrap();
            }
            points.push((layers.checkpoint().0, round));
        }
        drop(files);
        for (point, round) in points {
            layers.roll_back(&point);
            for name in &names {
                let contents = fs::read(layers.at(name)).unwrap();
                let same = contents.iter().filter(|byte| **byte == round).count();
                assert_eq!((same, contents.len()), (200_000, 200_000), "{way:?} {name} {round}");
            }
        }
        layers.end();
    }
}

#[test]
fn who_reads_sees_what_others_write_after_a_checkpoint_and_the_layer_does_not() {
    if !can_mount("who_reads_sees_what_others_write_after_a_checkpoint_and_the_layer_does_not") {
        return;
    }
    for way in WAYS {
        let layers = Layers::new(way);
        fs::create_dir(layers.at("d")).unwrap();
        for name in ["d/one", "d/two"] {
            fs::write(layers.at(name), "before").unwrap();
        }
        fs::hard_link(layers.at("d/two"), layers.at("two")).unwrap();
        let read = |file: &File| {
            let mut read = [0; 6];
            file.read_exact_at(&mut read, 0).unwrap();
            String::from_utf8(read.to_vec()).unwrap()
        };
        let readers = ["d/one", "d/two"].map(|name| File::open(layers.at(name)).unwrap());
        let (point, _) = layers.checkpoint();
        let late = File::open(layers.at("d/one")).unwrap();
        fs::write(layers.at("d/one"), "after!").unwrap();
        open(layers.at("two")).write_all_at(b"after?", 0).unwrap();
        assert_eq!(readers.each_ref().map(read), ["after!", "after?"], "{way:?}");
        assert_eq!(read(&late), "after!", "{way:?}");
        assert_eq!(layers.read("d/two").unwrap(), "after?", "{way:?}");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(layers.at("d/one"), mode).unwrap();
        layers.roll_back(&point);
        for name in ["d/one", "d/two", "two"] {
            assert_eq!(layers.read(name).unwrap(), "before", "{way:?} {name}");
            assert_eq!(layers.at(name).metadata().unwrap().mode() & 0o777, 0o644, "{way:?} {name}");
        }
        assert_eq!(readers.each_ref().map(read), ["after!", "after?"], "{way:?}");
        // The same file, although another is open.
        let [now, held] = [layers.at("d/one").metadata(), readers[0].metadata()];
        assert_eq!(now.unwrap().ino(), held.unwrap().ino());
        drop((readers, late));
        layers.end();
    }
}

#[test]
fn working_directories_stay_what_they_are_wherever_a_rollback_moves_them() {
    if !can_mount("working_directories_stay_what_they_are_wherever_a_rollback_moves_them") {
        return;
    }
    let layers = Layers::new(&[]);
    fs::create_dir_all(layers.at("made/in")).unwrap();
    let (point, _) = layers.checkpoint();
    fs::rename(layers.at("sub"), layers.at("renamed")).unwrap();
    fs::rename(layers.at("made"), layers.at("renamed/moved")).unwrap();
    fs::create_dir(layers.at("gone")).unwrap();
    let script = "read _; /bin/pwd -P; ls; echo new > new; cat new";
    let shells = ["renamed", "renamed/deeper", "renamed/moved/in", "gone", "."].map(|dir| {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).current_dir(layers.at(dir));
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        shell.spawn().unwrap()
    });
    std::thread::sleep(std::time::Duration::from_millis(200));
    layers.roll_back(&point);
    let said = shells.map(|mut shell| {
        writeln!(shell.stdin.take().unwrap(), "go").unwrap();
        String::from_utf8(shell.wait_with_output().unwrap().stdout).unwrap()
    });
    let root = text(&layers.0.mountpoint);
    assert_eq!(
        said[0],
        format!("{root}/sub\ndata\ndeeper\nhello-too\nlink\nnew\n").replace("new\n", "") + "new\n"
    );
    assert_eq!(said[1], format!("{root}/sub/deeper\nempty\nnew\n"));
    assert_eq!(said[2], format!("{root}/made/in\nnew\n"));
    assert!(!said[3].contains("new"), "{said:?}");
    assert!(said[4].ends_with("sub\nnew\n"), "{said:?}");
    for path in ["sub/new", "sub/deeper/new", "made/in/new", "new"] {
        assert_eq!(layers.read(path).as_deref(), Some("new\n"), "{path}");
    }
    layers.end();
}

#[test]
fn nothing_that_the_kernel_remembers_outlasts_a_rollback() {
    if !can_mount("nothing_that_the_kernel_remembers_outlasts_a_rollback") {
        return;
    }
    for way in WAYS {
        let layers = Layers::new(&[way, &["-o", "entry_ttl=1h,attr_ttl=1h"]].concat());
        let names: Vec<String> = (0..200).map(|number| format!("d/n{number}")).collect();
        fs::create_dir(layers.at("d")).unwrap();
        for name in names.iter().step_by(2) {
            fs::write(layers.at(name), "first").unwrap();
        }
        let (first, _) = layers.checkpoint();
        for (number, name) in names.iter().enumerate() {
            match number % 4 {
                0 => fs::write(layers.at(name), "second, longer").unwrap(),
                2 => fs::remove_file(layers.at(name)).unwrap(),
                1 => fs::create_dir(layers.at(name)).unwrap(),
                _ => {}
            }
        }
        let (second, _) = layers.checkpoint();
        let look = || {
            let see = |name: &String| {
                let path = layers.at(name);
                let size =
                    path.metadata().map(|about| if about.is_dir() { 0 } else { about.len() });
                (size.ok(), fs::read_to_string(&path).ok())
            };
            let mut listed: Vec<_> =
                fs::read_dir(layers.at("d")).unwrap().map(|e| e.unwrap().file_name()).collect();
            listed.sort();
            (names.iter().map(see).collect::<Vec<_>>(), listed)
        };
        let now = look();
        layers.roll_back(&first);
        let then = look();
        for (number, seen) in then.0.iter().enumerate() {
            let expected = (number % 2 == 0).then(|| "first".to_owned());
            assert_eq!(*seen, (expected.as_ref().map(|_| 5), expected), "{way:?} {number}");
        }
        for _ in 0..3 {
            layers.roll_back(&second);
            assert!(look() == now, "{way:?}");
            layers.roll_back(&first);
            assert!(look() == then, "{way:?}");
        }
        layers.end();
    }
}

#[test]
fn a_file_of_several_names_that_a_rollback_changed_is_written_to_in_the_live_upper_alone() {
    if !can_mount(
        "a_file_of_several_names_that_a_rollback_changed_is_written_to_in_the_live_upper_alone",
    ) {
        return;
    }
    for way in WAYS {
        let layers = Layers::new(way);
        let names = ["hello", "sub/hello-too"];
        let (first, _) = layers.checkpoint();
        let open = |name: &str| File::options().read(true).write(true).open(layers.at(name));
        let held = [File::open(layers.at(names[0])).unwrap(), open(names[1]).unwrap()];
        fs::write(layers.at(names[0]), "rolled away").unwrap();
        layers.roll_back(&first);
        fs::write(layers.at(names[0]), "then").unwrap();
        let reading = File::open(layers.at(names[0])).unwrap();
        let (then, _) = layers.checkpoint();
        let mut writing = open(names[1]).unwrap();
        std::io::Write::write_all(&mut writing, b"now!").unwrap();
        let seen =
            || names.map(|name| (layers.read(name), layers.at(name).metadata().unwrap().nlink()));
        assert_eq!(seen(), [(); 2].map(|()| (Some("now!".into()), 2)), "{way:?}");
        drop((held, reading, writing));
        layers.roll_back(&then);
        assert_eq!(seen(), [(); 2].map(|()| (Some("then".into()), 2)), "{way:?}");
        layers.end();
    }
}

#[test]
fn links_and_pipes_of_several_names_can_be_removed_after_a_checkpoint_name_by_name() {
    if !can_mount("links_and_pipes_of_several_names_can_be_removed_after_a_checkpoint_name_by_name")
    {
        return;
    }
    for ttl in ["1", "1h"] {
        let layers = Layers::new(&["-o", &format!("entry_ttl={ttl},attr_ttl={ttl}")]);
        for dir in ["plain", "renamed"] {
            let at = |name: &str| layers.at(&format!("{dir}/{name}"));
            fs::create_dir(layers.at(dir)).unwrap();
            std::os::unix::fs::symlink("hello", at("link")).unwrap();
            rustix::fs::mknodat(
                rustix::fs::CWD,
                at("pipe"),
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::RUSR,
                0,
            )
            .unwrap();
            for kind in ["link", "pipe"] {
                fs::hard_link(at(kind), at(&format!("{kind}-2"))).unwrap();
                fs::hard_link(at(kind), at(&format!("{kind}-3"))).unwrap();
            }
        }
        layers.checkpoint();
        for kind in ["link", "pipe"] {
            let renamed = layers.at(&format!("renamed/{kind}-0"));
            fs::rename(layers.at(&format!("renamed/{kind}")), &renamed).unwrap();
            fs::remove_file(renamed).unwrap();
            fs::remove_file(layers.at(&format!("plain/{kind}"))).unwrap();
            for dir in ["plain", "renamed"] {
                for name in ["2", "3"] {
                    let path = layers.at(&format!("{dir}/{kind}-{name}"));
                    assert!(path.symlink_metadata().is_ok(), "{path:?}");
                    fs::remove_file(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
                    assert!(path.symlink_metadata().is_err(), "{path:?}");
                }
            }
        }
        for dir in ["plain", "renamed"] {
            fs::remove_dir(layers.at(dir)).unwrap();
        }
        layers.end();
    }
}

#[test]
fn a_name_in_a_directory_that_comes_back_is_not_the_file_that_was_open() {
    if !can_mount("a_name_in_a_directory_that_comes_back_is_not_the_file_that_was_open") {
        return;
    }
    let layers = Layers::new(&[]);
    let names = ["sub/hello-too", "hello"];
    let links = || names.map(|name| layers.at(name).metadata().map(|about| about.nlink()).ok());
    let (both, _) = layers.checkpoint();
    assert_eq!(links(), [Some(2); 2]);
    fs::remove_dir_all(layers.at("sub")).unwrap();
    let (one, _) = layers.checkpoint();
    assert_eq!(links(), [None, Some(1)]);
    layers.roll_back(&both);
    let held = File::open(layers.at(names[0])).unwrap();
    for _ in 0..2 {
        layers.roll_back(&one);
        assert_eq!(links(), [None, Some(1)]);
        layers.roll_back(&both);
        assert_eq!(links(), [Some(2); 2]);
    }
    drop(held);
    layers.end();
}

#[test]
fn what_is_open_in_a_directory_that_a_rollback_takes_away_stays_what_it_was() {
    if !can_mount("what_is_open_in_a_directory_that_a_rollback_takes_away_stays_what_it_was") {
        return;
    }
    for way in WAYS {
        let layers = Layers::new(way);
        fs::create_dir(layers.at("made")).unwrap();
        fs::write(layers.at("made/born"), "born").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(layers.at("sub/data"), mode).unwrap();
        let (all, _) = layers.checkpoint();
        for dir in ["made", "sub"] {
            fs::remove_dir_all(layers.at(dir)).unwrap();
        }
        let (none, _) = layers.checkpoint();
        layers.roll_back(&all);
        for write in [false, true] {
            let paths = ["made/born", "sub/data", "sub/hello-too"];
            let open = |path| OpenOptions::new().read(true).write(write).open(layers.at(path));
            let held = paths.map(|path| (open(path).unwrap(), fs::read(layers.at(path)).unwrap()));
            for point in [&none, &all, &none, &all] {
                layers.roll_back(point);
                for ((file, expected), path) in held.iter().zip(paths) {
                    let mut read = vec![0; expected.len()];
                    file.read_exact_at(&mut read, 0).unwrap();
                    let len = file.metadata().unwrap().len();
                    assert!(read == *expected && len == read.len() as u64, "{way:?} {path}");
                    let found = fs::read(layers.at(path)).ok();
                    assert_eq!(found.is_some(), point == &all, "{way:?} {path}");
                    assert!(found.is_none_or(|found| found == *expected), "{way:?} {path}");
                }
            }
        }
        layers.end();
    }
}

#[test]
fn a_directory_comes_back_with_all_that_is_in_it_though_somebody_is_in_it() {
    if !can_mount("a_directory_comes_back_with_all_that_is_in_it_though_somebody_is_in_it") {
        return;
    }
    let layers = Layers::new(&[]);
    fs::write(layers.at("sub/deeper/file"), "file").unwrap();
    let (point, _) = layers.checkpoint();
    for (what, remove) in [("removed", true), ("rolled away", false)] {
        // Both the directory and one of which no layer has anything but the archive.
        let held = ["sub", "sub/deeper"].map(|path| File::open(layers.at(path)).unwrap());
        let point = match remove {
            true => {
                fs::remove_dir_all(layers.at("sub")).unwrap();
                point.clone()
            }
            false => {
                fs::remove_dir_all(layers.at("sub")).unwrap();
                let (without, _) = layers.checkpoint();
                layers.roll_back(&point);
                let held = ["sub", "sub/deeper"].map(|path| File::open(layers.at(path)).unwrap());
                layers.roll_back(&without);
                for dir in &held {
                    let here = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(dir));
                    // What is asked for in it now must not be remembered.
                    for name in ["hello-too", "deeper", "empty", "file"] {
                        assert!(!Path::new(&here).join(name).exists(), "{what}: {name}");
                    }
                    assert_eq!(fs::read_dir(&here).unwrap().count(), 0, "{what}");
                }
                layers.roll_back(&point);
                drop(held);
                point.clone()
            }
        };
        layers.roll_back(&point);
        assert_eq!(layers.read("sub/hello-too").unwrap(), "hello from the archive\n", "{what}");
        assert_eq!(layers.read("sub/deeper/file").unwrap(), "file", "{what}");
        assert_eq!(layers.read("sub/deeper/empty").unwrap(), "", "{what}");
        let names = fs::read_dir(layers.at("sub/deeper")).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["empty", "file"], "{what}");
        drop(held);
    }
    layers.end();
}

#[test]
fn directories_that_have_changed_places_are_rolled_back() {
    if !can_mount("directories_that_have_changed_places_are_rolled_back") {
        return;
    }
    let layers = Layers::new(&[]);
    fs::create_dir_all(layers.at("a/b/c")).unwrap();
    fs::write(layers.at("a/b/c/file"), "1").unwrap();
    let (before, _) = layers.checkpoint();
    // What was within the other has it within itself.
    fs::rename(layers.at("a/b"), layers.at("b")).unwrap();
    fs::rename(layers.at("a"), layers.at("b/a")).unwrap();
    let (after, _) = layers.checkpoint();
    let held = ["b", "b/a", "b/c"].map(|path| File::open(layers.at(path)).unwrap());
    for _ in 0..2 {
        layers.roll_back(&before);
        assert_eq!(layers.read("a/b/c/file").unwrap(), "1");
        assert!(!layers.at("b").exists());
        layers.roll_back(&after);
        assert_eq!(layers.read("b/c/file").unwrap(), "1");
        assert!(layers.at("b/a").exists() && !layers.at("a").exists());
    }
    drop(held);
    layers.end();
}

#[test]
fn what_is_written_to_what_was_rolled_away_is_in_no_checkpoint_that_is_made_after_that() {
    let name =
        "what_is_written_to_what_was_rolled_away_is_in_no_checkpoint_that_is_made_after_that";
    if !can_mount(name) {
        return;
    }
    for way in WAYS {
        for is_chmod in [false, true] {
            let layers = Layers::new(way);
            fs::write(layers.at("file"), "AAAAAAAA").unwrap();
            fs::write(layers.at("linked"), "AAAAAAAA").unwrap();
            fs::hard_link(layers.at("linked"), layers.at("sub/other")).unwrap();
            let files = ["file", "linked"].map(|path| open(layers.at(path)));
            let write = |byte: &[u8], at| {
                files.iter().for_each(|file| file.write_all_at(byte, at).unwrap());
            };
            write(b"1", 0);
            let (first, _) = layers.checkpoint();
            let changed = match is_chmod {
                true => {
                    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
                    fs::set_permissions(layers.at("file"), mode).unwrap();
                    ["1AAAAAAA", "1AAAAAAA"]
                }
                false => {
                    write(b"2", 1);
                    ["12AAAAAA", "12AAAAAA"]
                }
            };
            let away = layers.roll_back_from(&first);
            layers.roll_back(&away);
            write(b"3", 2);
            let now = || ["file", "linked"].map(|path| layers.read(path).unwrap());
            // Of what nobody has changed the handle goes on in the mount.
            let went_on = now().map(|contents| contents.as_bytes()[2] == b'3');
            let (second, _) = layers.checkpoint();
            let expected = now();
            for (n, contents) in expected.iter().enumerate() {
                let mut of_then = changed[n].to_owned();
                if went_on[n] {
                    of_then.replace_range(2..3, "3");
                }
                assert_eq!(*contents, of_then, "{way:?} {is_chmod}");
            }
            write(b"4", 3);
            layers.roll_back(&first);
            write(b"5", 4);
            layers.roll_back(&second);
            assert_eq!(now(), expected, "{way:?} {is_chmod}");
            assert_eq!(layers.read("sub/other").unwrap(), expected[1], "{way:?} {is_chmod}");
            drop(files);
            layers.end();
        }
    }
}

#[test]
fn a_file_that_was_removed_with_its_directory_and_is_open_comes_back_as_it_was() {
    if !can_mount("a_file_that_was_removed_with_its_directory_and_is_open_comes_back_as_it_was") {
        return;
    }
    for way in WAYS {
        let layers = Layers::new(way);
        fs::create_dir(layers.at("dir")).unwrap();
        fs::write(layers.at("dir/file"), "file").unwrap();
        let (point, _) = layers.checkpoint();
        for path in ["dir/file", "sub/deeper/empty", "sub/data"] {
            let expected = fs::read(layers.at(path)).unwrap();
            let held = open(layers.at(path));
            held.write_all_at(b"changed", 0).unwrap();
            let top = Path::new(path).components().next().unwrap();
            fs::remove_dir_all(layers.at(top.as_os_str().to_str().unwrap())).unwrap();
            layers.roll_back(&point);
            assert!(fs::read(layers.at(path)).unwrap() == expected, "{way:?} {path}");
            let mut read = [0; 7];
            held.read_exact_at(&mut read, 0).unwrap();
            assert_eq!(&read, b"changed", "{way:?} {path}");
        }
        layers.end();
    }
}

#[test]
fn an_open_file_of_a_layer_that_is_removed_has_no_links_and_is_changed_as_any_other() {
    let test = "an_open_file_of_a_layer_that_is_removed_has_no_links_and_is_changed_as_any_other";
    if !can_mount(test) {
        return;
    }
    let links = |file: &File| {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
        rustix::fs::statx(file, "", flags, StatxFlags::NLINK).unwrap().stx_nlink
    };
    for way in WAYS {
        for (write, replace) in [(false, false), (false, true), (true, false), (true, true)] {
            let layers = Layers::new(way);
            fs::write(layers.at("file"), "data").unwrap();
            let held = OpenOptions::new().read(true).write(write).open(layers.at("file")).unwrap();
            let (before, _) = layers.checkpoint();
            assert_eq!(links(&held), 1, "{way:?} {write} {replace}");
            if replace {
                fs::write(layers.at("other"), "other").unwrap();
                fs::rename(layers.at("other"), layers.at("file")).unwrap();
            } else {
                fs::remove_file(layers.at("file")).unwrap();
            }
            assert_eq!(links(&held), 0, "{way:?} {write} {replace}");
            held.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o604)).unwrap();
            held.set_modified(std::time::UNIX_EPOCH).unwrap();
            let about = held.metadata().unwrap();
            assert_eq!((about.mode() & 0o777, about.mtime(), links(&held)), (0o604, 0, 0));
            let mut read = [0; 4];
            held.read_exact_at(&mut read, 0).unwrap();
            assert_eq!(&read, b"data", "{way:?} {write} {replace}");
            layers.roll_back(&before);
            assert_eq!(layers.read("file").as_deref(), Some("data"));
            let about = layers.at("file").metadata().unwrap();
            assert_ne!(
                (about.mode() & 0o777, about.mtime()),
                (0o604, 0),
                "{way:?} {write} {replace}"
            );
            drop(held);
            layers.end();
        }
    }
}

#[test]
fn what_is_written_to_a_file_that_was_open_at_a_rollback_is_of_what_was_rolled_away() {
    let test = "what_is_written_to_a_file_that_was_open_at_a_rollback_is_of_what_was_rolled_away";
    if !can_mount(test) {
        return;
    }
    for way in WAYS {
        for checkpoints in 0..3 {
            let layers = Layers::new(way);
            fs::write(layers.at("file"), "before").unwrap();
            let (before, _) = layers.checkpoint();
            let held = OpenOptions::new().write(true).open(layers.at("file")).unwrap();
            held.write_all_at(b"change", 0).unwrap();
            let made: Vec<_> = (0..checkpoints).map(|_| layers.checkpoint().0).collect();
            fs::write(layers.at("other"), "other").unwrap();
            let away = layers.roll_back_from(&before);
            assert_eq!(layers.read("file").as_deref(), Some("before"));
            held.write_all_at(b"later!", 0).unwrap();
            assert_eq!(layers.read("file").as_deref(), Some("before"));
            layers.roll_back(&away);
            assert_eq!(layers.read("file").as_deref(), Some("later!"), "{way:?} {checkpoints}");
            drop(held);
            for point in made {
                layers.roll_back(&point);
                assert_eq!(layers.read("file").as_deref(), Some("change"), "{way:?}");
            }
            layers.end();
        }
    }
}

#[test]
fn what_is_open_outlasts_the_layer_that_it_was_in() {
    if !can_mount("what_is_open_outlasts_the_layer_that_it_was_in") {
        return;
    }
    for way in WAYS {
        for write in [false, true] {
            let layers = Layers::new(way);
            fs::write(layers.at("file"), "data of it").unwrap();
            layers.checkpoint();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            fs::set_permissions(layers.at("file"), mode).unwrap();
            let held = OpenOptions::new().read(true).write(write).open(layers.at("file")).unwrap();
            for name in ["one", "two"] {
                layers.0.bench.ok(&["-q", "rollback", "--to-archive", text(&layers.0.mountpoint)]);
                fs::write(layers.at(name), "changed").unwrap();
            }
            let mut read = [0; 10];
            held.read_exact_at(&mut read, 0).unwrap();
            assert_eq!(&read, b"data of it", "{way:?} {write}");
            assert_eq!(held.metadata().unwrap().mode() & 0o777, 0o600, "{way:?} {write}");
            if write {
                held.write_all_at(b"more", 0).unwrap();
                held.read_exact_at(&mut read, 0).unwrap();
                assert_eq!(&read, b"more of it", "{way:?}");
            }
            drop(held);
            layers.end();
        }
    }
}

/// Says that it is over once it is dropped.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Path to contents, of regular files, or nothing of what is none.
fn tree(root: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let entries = walkdir::WalkDir::new(root).into_iter().map(Result::unwrap);
    let see = |entry: walkdir::DirEntry| {
        let contents = entry.file_type().is_file().then(|| fs::read(entry.path()).unwrap());
        (entry.path().strip_prefix(root).unwrap().to_owned(), contents)
    };
    entries.map(see).collect()
}

#[test]
fn a_storm_goes_on_over_checkpoints_and_each_of_them_is_what_was_when_it_stood_still() {
    const PROGRAMS: usize = 6;
    let test = "a_storm_goes_on_over_checkpoints_and_each_of_them_is_what_was_when_it_stood_still";
    if !can_mount(test) {
        return;
    }
    for way in WAYS {
        let layers = Layers::new(way);
        let root = &layers.0.mountpoint;
        let (over, turn) = (AtomicBool::new(false), parking_lot::RwLock::new(()));
        let mut points = Vec::new();
        std::thread::scope(|scope| {
            // Also where an assertion fails: they are waited for.
            let _end = End(&over);
            for program in 0..PROGRAMS {
                let (over, turn) = (&over, &turn);
                scope.spawn(move || {
                    let own = root.join(format!("p{program}"));
                    fs::create_dir(&own).unwrap();
                    let mut log = File::create(own.join("log")).unwrap();
                    for step in 0.. {
                        if over.load(Ordering::Relaxed) {
                            break;
                        }
                        let _going = turn.read();
                        let at = |number: usize| own.join(format!("f{}", number % 17));
                        writeln!(log, "{step}").unwrap();
                        match step % 7 {
                            0 | 1 => fs::write(at(step), vec![b'x'; step % 5000]).unwrap(),
                            2 => drop(fs::remove_file(at(step / 2))),
                            3 => drop(fs::rename(at(step), at(step / 3))),
                            4 => drop(fs::hard_link(at(step / 2), at(step + 5))),
                            5 => {
                                let dir = own.join(format!("d{}", step % 3));
                                let _ = fs::create_dir(&dir);
                                let _ = fs::rename(&dir, own.join(format!("e{}", step % 5)));
                            }
                            _ => {
                                if let Ok(mut file) = OpenOptions::new().append(true).open(at(step))
                                {
                                    write!(file, "appended at {step}").unwrap();
                                }
                            }
                        }
                    }
                });
            }
            for round in 0..12 {
                std::thread::sleep(std::time::Duration::from_millis(60));
                if round % 3 == 2 {
                    let _still = turn.write();
                    let (point, fuzzy) = layers.checkpoint();
                    assert_eq!(fuzzy, 0, "{way:?}");
                    points.push((point, tree(root)));
                } else {
                    // In the middle of it.
                    layers.checkpoint();
                }
            }
        });
        for (point, expected) in points.iter().rev().chain(&points) {
            layers.roll_back(point);
            let found = tree(root);
            let differs = |path: &&PathBuf| found.get(*path) != expected.get(*path);
            let differ: Vec<_> = found.keys().chain(expected.keys()).filter(differs).collect();
            assert!(differ.is_empty(), "{way:?}: {differ:?}");
        }
        layers.end();
    }
}
