//! Random operations through a real mount and on a plain directory of this machine, which is the
//! model: each must succeed or fail alike, and the trees must be the same, also after a remount.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::mount::{Bench, can_mount, write_tree};
use crate::support::surrounding::owners_share;
use proptest::prelude::*;

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
        write_tree(&bench.directory("tree"));
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
