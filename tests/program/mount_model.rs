//! Random operations through a real mount and on a plain directory of this machine, which is the
//! model: each must succeed or fail alike, and the trees must be the same, also after a remount. With
//! checkpoints, of which the model is a copy of the directory, that holds after each rollback as well,
//! whatever is open meanwhile.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::mount::{Bench, can_mount, write_tree};
use crate::support::surrounding::owners_share;
use crate::support::words::eventually;
use proptest::prelude::*;
use rustix::process::{Pid, Signal, kill_process};

/// A path of one to three of a few names, so that operations meet.
#[derive(Clone, Debug)]
struct Name(Vec<usize>);

impl Name {
    /// The first ones are in the archive.
    const NAMES: [&str; 7] = ["sub", "hello", "deeper", "data", "link", "new", ".wh.new"];

    fn under(&self, root: &Path) -> PathBuf {
        self.0.iter().fold(root.to_owned(), |path, name| path.join(Self::NAMES[*name]))
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(Name, u32),
    WriteAt(Name, u64, u16),
    Append(Name),
    Truncate(Name, u64),
    Mkdir(Name),
    Rmdir(Name),
    Unlink(Name),
    RemoveAll(Name),
    Rename(Name, Name),
    Exchange(Name, Name),
    Link(Name, Name),
    Symlink(Name),
    Fifo(Name),
    Chmod(Name, u32),
    Chown(Name, u32),
    Xattr(Name, u8),
    Read(Name),
    List(Name),
}

fn name() -> impl Strategy<Value = Name> {
    prop::collection::vec(0..Name::NAMES.len(), 1..=3).prop_map(Name)
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (name(), any::<u32>()).prop_map(|(n, data)| Op::Write(n, data)),
        (name(), 0u64..1_200_000, any::<u16>()).prop_map(|(n, at, len)| Op::WriteAt(n, at, len)),
        name().prop_map(Op::Append),
        (name(), 0u64..1_500_000).prop_map(|(n, size)| Op::Truncate(n, size)),
        name().prop_map(Op::Mkdir),
        name().prop_map(Op::Rmdir),
        name().prop_map(Op::Unlink),
        name().prop_map(Op::RemoveAll),
        (name(), name()).prop_map(|(a, b)| Op::Rename(a, b)),
        (name(), name()).prop_map(|(a, b)| Op::Rename(a, b)),
        (name(), name()).prop_map(|(a, b)| Op::Exchange(a, b)),
        (name(), name()).prop_map(|(a, b)| Op::Link(a, b)),
        name().prop_map(Op::Symlink),
        name().prop_map(Op::Fifo),
        (name(), 0u32..0o10000).prop_map(|(n, mode)| Op::Chmod(n, mode | 0o600 | owners_share())),
        (name(), 0u32..3).prop_map(|(n, id)| Op::Chown(n, id)),
        (name(), any::<u8>()).prop_map(|(n, value)| Op::Xattr(n, value)),
        name().prop_map(Op::Read),
        name().prop_map(Op::List),
    ]
}

/// Does `op` below `root`, and says what a program would see of it.
fn apply(root: &Path, op: &Op) -> Result<Vec<u8>, i32> {
    let done = |result: io::Result<()>| result.map(|()| Vec::new());
    // A path may lead through a symlink; none of these waits on a fifo.
    let open = |name: &Name, options: &mut OpenOptions| {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_NONBLOCK).open(name.under(root))
    };
    let result = match op {
        Op::Write(name, data) => done(
            open(name, OpenOptions::new().write(true).create(true).truncate(true))
                .and_then(|mut file| file.write_all(&data.to_le_bytes())),
        ),
        Op::WriteAt(name, at, len) => {
            done(open(name, OpenOptions::new().write(true)).and_then(|mut file| {
                file.seek(SeekFrom::Start(*at))?;
                file.write_all(&vec![0xa5; usize::from(*len)])
            }))
        }
        Op::Append(name) => done(
            open(name, OpenOptions::new().append(true))
                .and_then(|mut file| file.write_all(b"appended")),
        ),
        Op::Truncate(name, size) => {
            done(open(name, OpenOptions::new().write(true)).and_then(|file| file.set_len(*size)))
        }
        Op::Mkdir(name) => done(fs::create_dir(name.under(root))),
        Op::Rmdir(name) => done(fs::remove_dir(name.under(root))),
        Op::Unlink(name) => done(fs::remove_file(name.under(root))),
        Op::RemoveAll(name) => done(fs::remove_dir_all(name.under(root))),
        Op::Rename(from, to) => done(fs::rename(from.under(root), to.under(root))),
        Op::Exchange(from, to) => done(
            rustix::fs::renameat_with(
                rustix::fs::CWD,
                from.under(root),
                rustix::fs::CWD,
                to.under(root),
                rustix::fs::RenameFlags::EXCHANGE,
            )
            .map_err(Into::into),
        ),
        Op::Link(from, to) => done(fs::hard_link(from.under(root), to.under(root))),
        Op::Symlink(name) => done(symlink("../sub/data", name.under(root))),
        Op::Fifo(name) => done(
            rustix::fs::mknodat(
                rustix::fs::CWD,
                name.under(root),
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::from_raw_mode(0o640),
                0,
            )
            .map_err(Into::into),
        ),
        Op::Chmod(name, mode) => {
            done(fs::set_permissions(name.under(root), PermissionsExt::from_mode(*mode)))
        }
        Op::Chown(name, id) => {
            done(std::os::unix::fs::lchown(name.under(root), Some(*id), Some(*id)))
        }
        Op::Xattr(name, value) => done(
            rustix::fs::setxattr(
                name.under(root),
                "user.model",
                &[*value],
                rustix::fs::XattrFlags::empty(),
            )
            .map_err(Into::into),
        ),
        Op::Read(name) => open(name, OpenOptions::new().read(true)).and_then(|mut file| {
            let mut contents = Vec::new();
            file.read_to_end(&mut contents)?;
            Ok(contents)
        }),
        Op::List(name) => fs::read_dir(name.under(root)).map(|entries| {
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_encoded_bytes()).collect();
            names.sort();
            names.join(&b'\n')
        }),
    };
    result.map_err(|error| error.raw_os_error().unwrap_or(0))
}

/// All that a program can see of one file. Which names are one file shows in the first of them.
#[derive(Debug, PartialEq)]
struct Seen {
    mode: u32,
    uid: u32,
    gid: u32,
    names: u64,
    same_as: PathBuf,
    contents: Vec<u8>,
    xattr: Option<Vec<u8>>,
}

fn look(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut first_names = BTreeMap::new();
    let mut seen = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root).sort_by_file_name() {
        let entry = entry.unwrap();
        let stat = fs::symlink_metadata(entry.path()).unwrap();
        let path = entry.path().strip_prefix(root).unwrap().to_owned();
        let kind = stat.file_type();
        let contents = if kind.is_file() {
            fs::read(entry.path()).unwrap()
        } else if kind.is_symlink() {
            fs::read_link(entry.path()).unwrap().into_os_string().into_encoded_bytes()
        } else {
            Vec::new()
        };
        let mut value = [0; 16];
        let xattr = rustix::fs::lgetxattr(entry.path(), "user.model", &mut value[..])
            .ok()
            .map(|len| value[..len].to_vec());
        let same_as = first_names.entry(stat.ino()).or_insert_with(|| path.clone()).clone();
        let names = if kind.is_dir() { 0 } else { stat.nlink() };
        let (mode, uid, gid) = (stat.mode(), stat.uid(), stat.gid());
        seen.insert(path, Seen { mode, uid, gid, names, same_as, contents, xattr });
    }
    seen
}

/// The archive and the tree it was packed from are the same for all cases.
struct Prepared {
    bench: Bench,
    archive: PathBuf,
}

impl Prepared {
    fn new() -> Self {
        let bench = Bench::new();
        let tree = bench.directory("tree");
        write_tree(&tree);
        fs::create_dir_all(tree.join("deeper/sub")).unwrap();
        fs::write(tree.join("deeper/sub/hello"), "hello again\n").unwrap();
        fs::hard_link(tree.join("deeper/sub/hello"), tree.join("sub/deeper/hello")).unwrap();
        fs::write(tree.join("deeper/data"), "some").unwrap();
        let archive = bench.archive(&bench.path("tree"), "data.sqsh", &["-comp", "zstd"]);
        Self { bench, archive }
    }

    fn check(&self, ops: &[Op]) -> Result<(), TestCaseError> {
        let Self { bench, archive } = self;
        let (model, mountpoint) = (bench.path("model"), bench.directory("mnt"));
        let upper = bench.path("upper");
        for directory in [&model, &upper, &bench.path(".upper.work")] {
            let _ = fs::remove_dir_all(directory);
        }
        let copied =
            Command::new("cp").arg("-a").args([&bench.path("tree"), &model]).status().unwrap();
        prop_assert!(copied.success());
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let mount =
            ["mount".to_owned(), text(archive), text(&mountpoint), "--upper".into(), text(&upper)];
        let unmount = ["unmount".to_owned(), text(&mountpoint)];
        bench.ok(&mount);
        let outcome = (|| {
            for (number, op) in ops.iter().enumerate() {
                prop_assert_eq!(apply(&mountpoint, op), apply(&model, op), "{}: {:?}", number, op);
            }
            prop_assert_eq!(look(&mountpoint), look(&model));
            bench.ok(&unmount);
            bench.ok(&mount);
            prop_assert_eq!(look(&mountpoint), look(&model), "after a remount");
            Ok(())
        })();
        bench.ok(&unmount);
        outcome
    }
}

#[test]
fn a_mount_behaves_as_a_plain_directory() {
    if !can_mount("a_mount_behaves_as_a_plain_directory") {
        return;
    }
    let prepared = Prepared::new();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(ops in prop::collection::vec(op(), 1..80))| {
        prepared.check(&ops)?;
    });
    prepared.bench.assert_nothing_left();
}

/// What is done with a stack.
#[derive(Clone, Debug)]
enum Step {
    Change(Op),
    Checkpoint,
    /// To one of the checkpoints. Before that all files and directories are opened; they are closed after it, or at
    /// the end.
    RollBack {
        to: usize,
        closes: bool,
    },
    /// Takes the last rollback back, and that back again.
    Undo,
    Forget(usize),
    Remount {
        kills: bool,
    },
    /// At one of the checkpoints, or at what is now; also of a fork.
    Fork {
        of: usize,
        at: Option<usize>,
    },
    InFork(usize, Op),
    EndFork(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        14 => op().prop_map(Step::Change),
        2 => Just(Step::Checkpoint),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(to, closes)| Step::RollBack { to, closes }),
        1 => Just(Step::Undo),
        1 => any::<usize>().prop_map(Step::Forget),
        1 => any::<bool>().prop_map(|kills| Step::Remount { kills }),
        1 => (any::<usize>(), any::<Option<usize>>()).prop_map(|(of, at)| Step::Fork { of, at }),
        5 => (any::<usize>(), op()).prop_map(|(which, op)| Step::InFork(which, op)),
        1 => any::<usize>().prop_map(Step::EndFork),
    ]
}

/// What is open in the mount.
struct Held {
    files: Vec<(PathBuf, fs::File, Vec<u8>)>,
    directories: Vec<(PathBuf, fs::File)>,
}

impl Held {
    /// Opens all there is, every other file for writing, too.
    fn all(root: &Path) -> Self {
        use std::os::unix::fs::OpenOptionsExt;
        let mut held = Self { files: Vec::new(), directories: Vec::new() };
        for entry in walkdir::WalkDir::new(root).sort_by_file_name() {
            let entry = entry.unwrap();
            let path = entry.path();
            let relative = path.strip_prefix(root).unwrap().to_owned();
            if entry.file_type().is_dir() {
                held.directories.push((relative, fs::File::open(path).unwrap()));
            } else if entry.file_type().is_file() {
                let mut options = OpenOptions::new();
                options.read(true).write(held.files.len() % 2 == 1).custom_flags(libc::O_NOFOLLOW);
                held.files.push((relative, options.open(path).unwrap(), fs::read(path).unwrap()));
            }
        }
        held
    }

    /// Checks that files are what they were, and that directories that are still there are what they are now.
    fn check(&self, root: &Path) -> Result<(), TestCaseError> {
        use std::os::fd::AsRawFd;
        use std::os::unix::fs::FileExt;
        for (path, file, contents) in &self.files {
            let mut read = vec![0; contents.len() + 1];
            let len = file.read_at(&mut read, 0).unwrap();
            prop_assert!(read[..len] == contents[..], "{:?}, which is open, is another", path);
            prop_assert_eq!(file.metadata().unwrap().len(), contents.len() as u64, "{:?}", path);
        }
        let paths = walkdir::WalkDir::new(root).into_iter().map(Result::unwrap);
        let paths = paths.filter(|entry| entry.file_type().is_dir());
        let paths: BTreeMap<u64, PathBuf> =
            paths.map(|entry| (entry.metadata().unwrap().ino(), entry.into_path())).collect();
        let names = |path: &Path| {
            let names = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        for (was, directory) in &self.directories {
            if let Some(path) = paths.get(&directory.metadata().unwrap().ino()) {
                let here = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
                prop_assert_eq!(names(&here), names(path), "{:?}, now {:?}", was, path);
            }
        }
        Ok(())
    }
}

/// A fork, and a plain directory.
struct Forked {
    mountpoint: PathBuf,
    model: PathBuf,
}

/// How many there are at once.
const FORKS: usize = 3;

/// A mount with checkpoints, and a plain directory with copies.
struct Copied<'a> {
    prepared: &'a Prepared,
    model: PathBuf,
    mountpoint: PathBuf,
    mount: Vec<String>,
    /// By their ids.
    points: Vec<(String, PathBuf)>,
    /// To which checkpoint the last rollback was, and what it has rolled away.
    rolled_back: Option<(String, PathBuf)>,
    made: usize,
    held: Vec<Held>,
    forks: Vec<Forked>,
}

impl<'a> Copied<'a> {
    fn new(prepared: &'a Prepared, more: &[&str]) -> Self {
        let bench = &prepared.bench;
        let (model, mountpoint) = (bench.path("model"), bench.directory("mnt"));
        let upper = bench.path("upper");
        for entry in fs::read_dir(bench.path("")).unwrap().map(Result::unwrap) {
            let name = entry.file_name();
            let is_old = [&b"point-"[..], b"model", b"upper", b".upper", b"fork-"]
                .iter()
                .any(|old| name.as_encoded_bytes().starts_with(old));
            if is_old {
                fs::remove_dir_all(entry.path()).unwrap();
            }
        }
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let mut mount = vec!["mount".to_owned(), text(&prepared.archive), text(&mountpoint)];
        mount.extend(["--upper".into(), text(&upper)]);
        mount.extend(more.iter().map(|word| (*word).to_owned()));
        bench.ok(&mount);
        let (points, held, forks) = (Vec::new(), Vec::new(), Vec::new());
        let (rolled_back, made) = (None, 0);
        let new =
            Self { prepared, model, mountpoint, mount, points, rolled_back, made, held, forks };
        copy(&bench.path("tree"), &new.model);
        new
    }

    /// What `words` print, said of the mount.
    fn say(&self, words: &[&str]) -> String {
        self.say_of(&self.mountpoint, words)
    }

    fn say_of(&self, mountpoint: &Path, words: &[&str]) -> String {
        let [verb, more @ ..] = words else { unreachable!("a verb") };
        let mountpoint = mountpoint.to_str().unwrap();
        let output = self.prepared.bench.run(&[&["-q", verb, mountpoint], more].concat());
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn copy_of_model(&mut self) -> PathBuf {
        self.made += 1;
        let to = self.prepared.bench.path(&format!("point-{}", self.made));
        copy(&self.model, &to);
        to
    }

    /// The mount is what `copy` is, and so is the model from now on.
    fn is_now(&self, copy_of: &Path) -> Result<(), TestCaseError> {
        compare(&self.mountpoint, copy_of)?;
        fs::remove_dir_all(&self.model).unwrap();
        copy(copy_of, &self.model);
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Change(op) => {
                prop_assert_eq!(apply(&self.mountpoint, op), apply(&self.model, op));
            }
            Step::Checkpoint => {
                let id = self.say(&["checkpoint", "--local"]);
                let copy = self.copy_of_model();
                self.points.push((id, copy));
            }
            Step::RollBack { to, closes } if !self.points.is_empty() => {
                let (id, copy) = self.points[to % self.points.len()].clone();
                compare(&self.mountpoint, &self.model)?;
                let held = Held::all(&self.mountpoint);
                let was = self.copy_of_model();
                self.say(&["rollback", &id]);
                held.check(&self.mountpoint)?;
                if !closes {
                    self.held.push(held);
                }
                self.rolled_back = Some((id, was));
                self.is_now(&copy)?;
            }
            Step::Undo => {
                let Some((id, was)) = self.rolled_back.clone() else { return Ok(()) };
                let copy = self.copy_of_model();
                for (to, expected) in [(None, &was), (Some(&id), &copy)] {
                    let listed = self.say(&["checkpoints", "--json"]);
                    let mut lines = listed
                        .lines()
                        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
                    let away = lines.find(|line| line["rolledAway"] == true);
                    let Some(to) =
                        to.cloned().or(away.map(|line| line["id"].as_str().unwrap().to_owned()))
                    else {
                        return Ok(());
                    };
                    let held = Held::all(&self.mountpoint);
                    self.say(&["rollback", &to]);
                    held.check(&self.mountpoint)?;
                    if let Some((_, copy)) = self.points.iter().find(|(id, _)| *id == to) {
                        self.is_now(&copy.clone())?;
                    } else {
                        self.is_now(expected)?;
                    }
                }
            }
            Step::Forget(which) if !self.points.is_empty() => {
                let (id, copy) = self.points.remove(which % self.points.len());
                let mountpoint = self.mountpoint.to_str().unwrap();
                let done = self.prepared.bench.run(&["forget", mountpoint, &id]);
                // One that a fork was made at stays while that is there.
                let is_held = done.status.code() == Some(13) && !self.forks.is_empty();
                prop_assert!(done.status.success() || is_held, "{:?}", done);
                if is_held {
                    self.points.push((id, copy));
                    return Ok(());
                }
                fs::remove_dir_all(copy).unwrap();
                self.rolled_back = self.rolled_back.take().filter(|(to, _)| *to != id);
            }
            Step::Remount { kills } => {
                self.held.clear();
                if *kills {
                    // What the kernel alone has of an ordinary user's writes is lost with the server.
                    rustix::fs::syncfs(fs::File::open(&self.mountpoint).unwrap()).unwrap();
                    let bench = &self.prepared.bench;
                    let pid = bench.server_of(&self.mountpoint);
                    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
                    eventually("the server has ended", || !bench.servers().contains(&pid));
                }
                self.say(&["unmount"]);
                self.prepared.bench.ok(&self.mount);
            }
            Step::Fork { of, at } if self.forks.len() < FORKS => self.fork(*of, *at)?,
            Step::InFork(which, op) if !self.forks.is_empty() => {
                let fork = &self.forks[which % self.forks.len()];
                prop_assert_eq!(apply(&fork.mountpoint, op), apply(&fork.model, op), "in a fork");
            }
            Step::EndFork(which) if !self.forks.is_empty() => {
                let fork = self.forks.remove(which % self.forks.len());
                self.end_fork(&fork)?;
            }
            Step::RollBack { .. } | Step::Forget(_) => {}
            Step::Fork { .. } | Step::InFork(..) | Step::EndFork(_) => {}
        }
        Ok(())
    }

    fn fork(&mut self, of: usize, at: Option<usize>) -> Result<(), TestCaseError> {
        self.made += 1;
        let [mountpoint, model] = ["fork-", "fork-model-"]
            .map(|name| self.prepared.bench.path(&format!("{name}{}", self.made)));
        let others = self.forks.iter().map(|fork| (&fork.mountpoint, &fork.model));
        let all: Vec<_> = [(&self.mountpoint, &self.model)].into_iter().chain(others).collect();
        let (origin, expected) = all[of % all.len()];
        let at = at.filter(|_| origin == &self.mountpoint && !self.points.is_empty());
        let at = at.map(|at| &self.points[at % self.points.len()]);
        let expected = at.map_or(expected, |(_, copy)| copy);
        let mut words = vec!["fork", origin.to_str().unwrap(), mountpoint.to_str().unwrap()];
        words.extend(at.iter().flat_map(|(id, _)| ["--at", id]));
        let done = self.prepared.bench.run(&words);
        // A file that is open for writing may be of what was rolled away, and come back since.
        if done.status.code() == Some(13) && !self.held.is_empty() {
            prop_assert!(!mountpoint.exists());
            return Ok(());
        }
        prop_assert!(done.status.success(), "{:?}", done);
        compare(&mountpoint, expected)?;
        copy(expected, &model);
        self.forks.push(Forked { mountpoint, model });
        Ok(())
    }

    fn end_fork(&self, fork: &Forked) -> Result<(), TestCaseError> {
        let same = compare(&fork.mountpoint, &fork.model);
        self.say_of(&fork.mountpoint, &["unmount"]);
        fs::remove_dir_all(&fork.model).unwrap();
        same
    }

    fn end(&mut self) -> Result<(), TestCaseError> {
        self.held.clear();
        let forks = std::mem::take(&mut self.forks);
        let ended: Vec<_> = forks.iter().map(|fork| self.end_fork(fork)).collect();
        self.say(&["unmount"]);
        ended.into_iter().collect()
    }

    fn play(&mut self, steps: &[Step]) -> Result<(), TestCaseError> {
        for (number, step) in steps.iter().enumerate() {
            self.step(step).map_err(|error| TestCaseError::fail(format!("{number}: {error}")))?;
        }
        compare(&self.mountpoint, &self.model)
    }
}

/// Tells only what differs.
fn compare(mountpoint: &Path, expected: &Path) -> Result<(), TestCaseError> {
    let (mut seen, mut expected) = (look(mountpoint), look(expected));
    let same: Vec<_> = seen.iter().filter(|(path, it)| expected.get(*path) == Some(it)).collect();
    let same: Vec<PathBuf> = same.into_iter().map(|(path, _)| path.clone()).collect();
    for path in &same {
        seen.remove(path);
        expected.remove(path);
    }
    for it in seen.values_mut().chain(expected.values_mut()) {
        it.contents.truncate(20);
    }
    prop_assert_eq!(seen, expected);
    Ok(())
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(copied.success());
}

#[test]
fn each_checkpoint_of_a_mount_is_what_a_copy_of_a_plain_directory_is() {
    if !can_mount("each_checkpoint_of_a_mount_is_what_a_copy_of_a_plain_directory_is") {
        return;
    }
    let prepared = Prepared::new();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in prop::collection::vec(step(), 1..90))| {
        for more in [&[][..], &["-o", "checkpoints=exact"]] {
            let mut copied = Copied::new(&prepared, more);
            let outcome = copied.play(&steps);
            let ended = copied.end();
            outcome.and(ended)?;
        }
    });
    prepared.bench.assert_nothing_left();
}
