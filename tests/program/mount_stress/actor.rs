//! One of several programs that work on a tree at once: operations from a seeded generator, each on
//! names that are this actor's alone, or on shared files in ways whose order leaves no trace.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{
    DirBuilderExt, DirEntryExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt,
    symlink,
};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps,
    XattrFlags,
};

use super::tree::{digest, time_if_set};
use crate::support::surrounding::{Need, has, owners_share};

/// How many actors there are.
pub(crate) const ACTORS: usize = 8;
/// A stripe of `shared/big` belongs to each actor.
const STRIPE: u64 = 64 << 10;
/// A record in `shared/appended`, in bytes.
const RECORD: usize = 16;

/// SplitMix64: the same numbers from the same seed, everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// What an operation said: what a program sees of its success, or its errno.
type Outcome = io::Result<String>;

pub(crate) struct Actor {
    /// Whose names it uses: its own, or everybody's.
    id: usize,
    /// Whether nobody else uses these names.
    alone: bool,
    root: PathBuf,
    random: Random,
    /// Open files, with the `st_ino` each had at first.
    slots: [Option<(File, u64)>; 4],
    /// Whether `O_TMPFILE` is used, or what programs do without it.
    tmpfile: bool,
    /// Operations so far, with their outcomes.
    log: Vec<String>,
}

impl Actor {
    /// An actor among those that `seed` makes of `root`. `tmpfile` says whether `O_TMPFILE` is used.
    pub(crate) fn new(number: usize, root: &Path, seed: u64, alone: bool, tmpfile: bool) -> Self {
        let random = Random(seed.wrapping_mul(ACTORS as u64).wrapping_add(number as u64));
        let (id, root) = (if alone { number } else { 0 }, root.to_owned());
        Self { id, alone, root, random, slots: Default::default(), tmpfile, log: Vec::new() }
    }

    /// Does `count` operations, then closes its files.
    pub(crate) fn run(mut self, count: usize) -> Vec<String> {
        for _ in 0..count {
            let (what, outcome) = self.step();
            let said = match outcome {
                Ok(said) => said,
                Err(error) => match error.raw_os_error() {
                    Some(code) => rustix::io::Errno::from_raw_os_error(code).to_string(),
                    None => error.to_string(),
                },
            };
            self.log.push(format!("{what} -> {said}"));
        }
        for slot in 0..self.slots.len() {
            let said = self.look_at(slot);
            self.log.push(format!("at last {slot} -> {said:?}"));
        }
        self.log
    }

    fn name(&mut self) -> String {
        format!("{}{}", self.id, self.random.pick(&["a", "b", "c", "d", "e", "f"]))
    }

    /// A path of this actor's own, below the root.
    fn path(&mut self) -> String {
        let mut path = match self.random.below(4) {
            0 => "shared/many".to_owned(),
            _ => format!("w{}", self.id),
        };
        for _ in 0..*self.random.pick(&[1, 1, 2, 2, 2, 3]) {
            path = format!("{path}/{}", self.name());
        }
        path
    }

    /// A name of this actor's own in a directory of all.
    fn shared_name(&mut self) -> String {
        format!("shared/many/{}{}", self.id, self.random.below(6))
    }

    fn mode(&mut self) -> u32 {
        owners_share() | self.random.below(0o10000) as u32
    }

    fn full(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn step(&mut self) -> (String, Outcome) {
        let path = self.path();
        let full = self.full(&path);
        let slot = self.random.below(4) as usize;
        match self.random.below(40) {
            0..=2 => self.write_new(&path),
            3..=4 => self.write_at(&path),
            5 => {
                let outcome = opening(OpenOptions::new().append(true))
                    .open(&full)
                    .and_then(|mut file| file.write_all(b"appended"));
                (format!("append {path}"), done(outcome))
            }
            6 => {
                let size = self.random.below(400_000);
                let outcome = opening(OpenOptions::new().write(true))
                    .open(&full)
                    .and_then(|file| file.set_len(size));
                (format!("truncate {path} {size}"), done(outcome))
            }
            7 => self.allocate(&path),
            8..=9 => {
                let to = self.path();
                (format!("link {path} {to}"), done(fs::hard_link(&full, self.full(&to))))
            }
            10 => {
                let target = format!("{}/{}", self.name(), self.name());
                (format!("symlink {path} {target}"), done(symlink(&target, &full)))
            }
            11..=15 => self.rename(&path),
            16 => (format!("unlink {path}"), done(fs::remove_file(&full))),
            17 => (format!("rmdir {path}"), done(fs::remove_dir(&full))),
            18 if self.random.below(3) == 0 => (format!("rm -r {path}"), remove_all(&full)),
            18..=19 => {
                let mode = 0o700 | self.random.below(0o10000) as u32;
                let outcome = fs::DirBuilder::new().mode(mode).create(&full);
                (format!("mkdir {path} {mode:o}"), done(outcome))
            }
            20 => self.make_special(&path),
            21 => {
                let mode = self.mode();
                let outcome = fs::set_permissions(&full, PermissionsExt::from_mode(mode));
                (format!("chmod {path} {mode:o}"), done(outcome))
            }
            22 => {
                let (uid, gid) = (self.random.below(3) as u32, self.random.below(3) as u32);
                let outcome = std::os::unix::fs::lchown(&full, Some(uid), Some(gid));
                (format!("chown {path} {uid}:{gid}"), done(outcome))
            }
            23..=24 => self.set_times(&path),
            25 => self.set_attribute(&path),
            26 => {
                let key = format!("user.{}", self.random.below(4));
                let outcome = rustix::fs::lremovexattr(&full, key.as_str());
                (format!("removexattr {path} {key}"), done(outcome.map_err(Into::into)))
            }
            27 => self.make_unnamed(&path),
            28..=29 => (format!("list {path}"), list(&full, self.alone)),
            30 => (format!("stat {path}"), fs::symlink_metadata(&full).map(|stat| shape(&stat))),
            31 => self.read(&path),
            32..=33 => self.open(&path, slot),
            34..=37 => self.use_open(slot),
            _ => self.share(),
        }
    }

    fn data(&mut self, len: usize) -> Vec<u8> {
        let mark = self.random.next().to_le_bytes();
        (0..len).map(|at| mark[at % 8] ^ (at >> 8) as u8).collect()
    }

    fn write_new(&mut self, path: &str) -> (String, Outcome) {
        let len = *self.random.pick(&[0, 10, 5_000, 70_000]);
        let data = self.data(len);
        let outcome = opening(OpenOptions::new().write(true).create(true).truncate(true))
            .open(self.full(path))
            .and_then(|mut file| file.write_all(&data));
        (format!("write {path} {len}"), done(outcome))
    }

    fn write_at(&mut self, path: &str) -> (String, Outcome) {
        let (at, len) = (self.random.below(300_000), self.random.below(20_000) as usize);
        let data = self.data(len);
        let outcome = opening(OpenOptions::new().write(true))
            .open(self.full(path))
            .and_then(|file| file.write_all_at(&data, at));
        (format!("write {path} {len} at {at}"), done(outcome))
    }

    fn allocate(&mut self, path: &str) -> (String, Outcome) {
        let keep = FallocateFlags::KEEP_SIZE;
        let modes = [
            FallocateFlags::empty(),
            keep,
            FallocateFlags::PUNCH_HOLE | keep,
            FallocateFlags::ZERO_RANGE,
            FallocateFlags::ZERO_RANGE | keep,
        ];
        let mode = *self.random.pick(if has(Need::Disk) { &modes } else { &modes[..3] });
        let (at, len) = (self.random.below(300_000), 1 + self.random.below(100_000));
        let outcome = opening(OpenOptions::new().write(true))
            .open(self.full(path))
            .and_then(|file| Ok(rustix::fs::fallocate(&file, mode, at, len)?));
        (format!("fallocate {path} {mode:?} {at} {len}"), done(outcome))
    }

    fn rename(&mut self, path: &str) -> (String, Outcome) {
        let flags = *self.random.pick(&[
            RenameFlags::empty(),
            RenameFlags::empty(),
            RenameFlags::empty(),
            RenameFlags::NOREPLACE,
            RenameFlags::EXCHANGE,
        ]);
        let to = self.path();
        let outcome = rustix::fs::renameat_with(CWD, self.full(path), CWD, self.full(&to), flags);
        (format!("rename {path} {to} {flags:?}"), done(outcome.map_err(Into::into)))
    }

    fn make_special(&mut self, path: &str) -> (String, Outcome) {
        let (kind, device) = *self.random.pick(&[
            (FileType::Fifo, 0),
            (FileType::Socket, 0),
            // An ordinary user may make this one alone, but not in a mount of its own.
            (if has(Need::Root) { FileType::CharacterDevice } else { FileType::Fifo }, 0),
            (FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
            (FileType::BlockDevice, rustix::fs::makedev(240, 700)),
            (FileType::RegularFile, 0),
        ]);
        let mode = Mode::from_raw_mode(self.mode());
        let outcome = rustix::fs::mknodat(CWD, self.full(path), kind, mode, device);
        (format!("mknod {path} {kind:?} {device:x} {mode:?}"), done(outcome.map_err(Into::into)))
    }

    fn set_times(&mut self, path: &str) -> (String, Outcome) {
        // Times that are set lie before all that "now" gives.
        let time = Timespec {
            tv_sec: 1_000_000_000 + self.random.below(100_000_000) as i64,
            tv_nsec: self.random.below(1_000_000_000) as _,
        };
        let times = Timestamps { last_access: time, last_modification: time };
        let full = self.full(path);
        let outcome = rustix::fs::utimensat(CWD, &full, &times, AtFlags::SYMLINK_NOFOLLOW);
        (format!("utimens {path} {}", time.tv_sec), done(outcome.map_err(Into::into)))
    }

    fn set_attribute(&mut self, path: &str) -> (String, Outcome) {
        let space = *self.random.pick(&["user", "user", "trusted"]);
        let key = format!("{space}.{}", self.random.below(4));
        let len = self.random.below(100) as usize;
        let value = self.data(len);
        let flags = *self.random.pick(&[
            XattrFlags::empty(),
            XattrFlags::empty(),
            XattrFlags::CREATE,
            XattrFlags::REPLACE,
        ]);
        let outcome = rustix::fs::lsetxattr(self.full(path), key.as_str(), &value, flags);
        (format!("setxattr {path} {key} {flags:?}"), done(outcome.map_err(Into::into)))
    }

    /// A file that gets its name when it is whole.
    fn make_unnamed(&mut self, path: &str) -> (String, Outcome) {
        let full = self.full(path);
        let dir = full.parent().unwrap();
        let data = self.data(3_000);
        let outcome = (|| {
            if self.tmpfile {
                let flags = OFlags::TMPFILE | OFlags::RDWR;
                let mut file =
                    File::from(rustix::fs::open(dir, flags, Mode::from_raw_mode(0o640))?);
                file.write_all(&data)?;
                let name = format!("/proc/self/fd/{}", file.as_raw_fd());
                return Ok(rustix::fs::linkat(CWD, name, CWD, &full, AtFlags::SYMLINK_FOLLOW)?);
            }
            let draft = dir.join(format!("{}draft", self.id));
            let mut file = OpenOptions::new().write(true).create_new(true).open(&draft)?;
            file.write_all(&data)?;
            let linked = fs::hard_link(&draft, &full);
            fs::remove_file(&draft)?;
            linked
        })();
        (format!("make unnamed {path}"), done(outcome))
    }

    fn read(&mut self, path: &str) -> (String, Outcome) {
        let outcome =
            opening(OpenOptions::new().read(true)).open(self.full(path)).and_then(|mut file| {
                let mut contents = Vec::new();
                file.read_to_end(&mut contents)?;
                Ok(format!("{:x}", digest(&contents)))
            });
        (format!("read {path}"), outcome)
    }

    fn open(&mut self, path: &str, slot: usize) -> (String, Outcome) {
        let mut options = OpenOptions::new();
        let how = *self.random.pick(&["r", "r", "rw", "rw", "w", "ra", "create"]);
        options.read(how.starts_with('r') || how == "create");
        options.write(how.contains('w') || how == "create").create(how == "create");
        options.append(how == "ra");
        let before = self.slots[slot].take();
        drop(before);
        let outcome = opening(&mut options).open(self.full(path)).and_then(|file| {
            let stat = file.metadata()?;
            self.slots[slot] = Some((file, stat.ino()));
            Ok(shape(&stat))
        });
        (format!("open {path} {how} as {slot}"), outcome)
    }

    /// Something with an open file, whatever has become of its name.
    fn use_open(&mut self, slot: usize) -> (String, Outcome) {
        let (at, len) = (self.random.below(300_000), self.random.below(20_000) as usize);
        let what = self.random.below(8);
        let (other, data) = (self.random.below(4) as usize, self.data(len));
        let Some((file, _)) = &self.slots[slot] else {
            return (format!("nothing with {slot}"), Ok(String::new()));
        };
        match what {
            0..=1 => (format!("pwrite {slot} {len} at {at}"), done(file.write_all_at(&data, at))),
            2 => {
                let mut read = vec![0; len];
                let outcome =
                    file.read_at(&mut read, at).map(|count| format!("{count} {:x}", digest(&read)));
                (format!("pread {slot} {len} at {at}"), outcome)
            }
            3 => (format!("ftruncate {slot} {at}"), done(file.set_len(at))),
            4 => {
                let mode = PermissionsExt::from_mode(at as u32 & 0o7777 | owners_share());
                (format!("fchmod {slot} {mode:?}"), done(file.set_permissions(mode)))
            }
            5 => {
                let outcome = match &self.slots[other] {
                    Some((target, _)) => copy_range(file, at / 2, target, at, len),
                    None => Ok(String::new()),
                };
                (format!("copy_file_range {slot} {other} {len} at {at}"), outcome)
            }
            _ => (format!("fstat {slot}"), Ok(self.look_at(slot))),
        }
    }

    /// What is seen of an open file.
    fn look_at(&self, slot: usize) -> String {
        let Some((file, ino)) = &self.slots[slot] else { return "closed".to_owned() };
        let stat = file.metadata().unwrap();
        assert_eq!(stat.ino(), *ino, "st_ino of an open file has changed");
        shape(&stat)
    }

    /// Something with what all actors use.
    fn share(&mut self) -> (String, Outcome) {
        let number = self.log.len();
        let (mine, to) = (self.shared_name(), self.shared_name());
        match self.random.below(8) {
            0..=1 => {
                let record = format!("{}-{number:0width$}\n", self.id, width = RECORD - 3);
                let outcome = OpenOptions::new()
                    .append(true)
                    .open(self.full("shared/appended"))
                    .and_then(|mut file| file.write_all(record.as_bytes()));
                (format!("record {record:?}"), done(outcome))
            }
            2..=3 => {
                let at = self.random.below(STRIPE - 2_000);
                let data = self.data(2_000);
                let path = *self.random.pick(&["shared/big", "shared/linked"]);
                let at = at + STRIPE * self.id as u64;
                let outcome =
                    OpenOptions::new().read(true).write(true).open(self.full(path)).and_then(
                        |file| {
                            file.write_all_at(&data, at)?;
                            let mut back = vec![0; data.len()];
                            file.read_exact_at(&mut back, at)?;
                            Ok(format!("{}", back == data))
                        },
                    );
                (format!("stripe of {path} at {at}"), outcome)
            }
            4 => {
                let from = self
                    .random
                    .pick(&["shared/linked".to_owned(), format!("w{}/linked", self.id)])
                    .clone();
                (
                    format!("link {from} {mine}"),
                    done(fs::hard_link(self.full(&from), self.full(&mine))),
                )
            }
            5 => (format!("unlink {mine}"), done(fs::remove_file(self.full(&mine)))),
            6 => {
                let key = format!("user.{}", self.id);
                let value = number.to_le_bytes();
                let outcome = rustix::fs::setxattr(
                    self.full("shared/linked"),
                    key.as_str(),
                    &value,
                    XattrFlags::empty(),
                );
                (format!("setxattr shared/linked {key}"), done(outcome.map_err(Into::into)))
            }
            _ => {
                (format!("rename {mine} {to}"), done(fs::rename(self.full(&mine), self.full(&to))))
            }
        }
    }
}

/// Opens nothing that waits.
fn opening(options: &mut OpenOptions) -> &mut OpenOptions {
    options.custom_flags(libc::O_NONBLOCK)
}

fn done(outcome: io::Result<()>) -> Outcome {
    outcome.map(|()| "done".to_owned())
}

/// What stat(2) says that is the same wherever the file lies.
fn shape(stat: &fs::Metadata) -> String {
    let kind = stat.file_type();
    let counted = if kind.is_dir() { (0, 0) } else { (stat.nlink(), stat.size()) };
    let device = if kind.is_char_device() || kind.is_block_device() { stat.rdev() } else { 0 };
    format!(
        "{:o} {}:{} {counted:?} {device:x} {:?}",
        stat.mode(),
        stat.uid(),
        stat.gid(),
        time_if_set(stat),
    )
}

/// Removes what there is, files and whole directories. Where this fails depends on the order of a
/// listing, so that it says only whether it does.
fn remove_all(path: &Path) -> Outcome {
    if fs::symlink_metadata(path)?.is_dir() {
        fs::remove_dir_all(path)?;
    } else {
        fs::remove_file(path)?;
    }
    Ok("removed".to_owned())
}

/// A listing, in order, of names with types; where nobody else changes it, each with the number that
/// stat(2) gives.
fn list(path: &Path, alone: bool) -> Outcome {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if alone {
            let stat = entry.metadata()?;
            assert_eq!(entry.ino(), stat.ino(), "d_ino and st_ino of {:?}", entry.path());
            assert_eq!(entry.file_type()?, stat.file_type(), "d_type of {:?}", entry.path());
        }
        names.push(format!("{:?} {:?}", entry.file_name(), entry.file_type()?));
    }
    names.sort();
    Ok(names.join(", "))
}

fn copy_range(from: &File, at: u64, to: &File, to_at: u64, len: usize) -> Outcome {
    let (mut from_at, mut to_at, mut copied) = (at, to_at, 0);
    while copied < len {
        match rustix::fs::copy_file_range(
            from,
            Some(&mut from_at),
            to,
            Some(&mut to_at),
            len - copied,
        ) {
            Ok(0) => break,
            Ok(count) => copied += count,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(format!("{copied}"))
}
