//! What the threads do, and what can be seen of it.

use std::collections::BTreeMap;

use fastrand::Rng;
use rustix::io::Errno;

/// Directories of the tree, which calls have open from the start, wherever they are moved. One further down
/// is never moved into one further up.
pub(crate) const DIRS: [&str; 4] = ["", "e", "d", "e/s"];

/// Files of the tree, which calls have open from the start. The first two are one.
pub(crate) const FILES: [&str; 3] = ["d/f", "h", "e/s/x"];

/// What files have in the beginning.
pub(crate) const CONTENTS: [u8; 3000] = [b'.'; 3000];

/// Names that files have or get.
const FILE_NAMES: [&str; 4] = ["f", "h", "x", "n"];

/// Names that directories have or get.
const DIR_NAMES: [&str; 3] = ["d", "s", "m"];

/// One call. Directories and files are numbers in [`DIRS`] and [`FILES`].
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Create(usize, &'static str),
    Mkdir(usize, &'static str),
    Unlink(usize, &'static str),
    Rmdir(usize, &'static str),
    Rename(usize, &'static str, usize, &'static str),
    Link(usize, usize, &'static str),
    /// Writes one byte.
    Write(usize, u64, u8),
    Truncate(usize, u64),
    Chmod(usize, u32),
    Read(usize),
    Lookup(usize, &'static str),
    List(usize),
}

/// What a call says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Answer {
    Done,
    Refused(Number),
    Bytes(Vec<u8>),
    /// Whether it is a directory.
    Found(bool),
    Names(Vec<String>),
}

/// Of an error; unlike an `Errno` it has an order.
pub(crate) type Number = i32;

impl From<Result<Answer, Errno>> for Answer {
    fn from(result: Result<Answer, Errno>) -> Self {
        result.unwrap_or_else(|errno| Answer::Refused(errno.raw_os_error()))
    }
}

/// One entry of a tree.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Entry {
    Dir { mode: u32 },
    File { mode: u32, names: u64, contents: Vec<(u8, usize)> },
}

/// A tree, by path.
pub(crate) type Tree = BTreeMap<String, Entry>;

impl Call {
    pub(crate) fn by(chance: &mut Rng) -> Self {
        let dir = chance.usize(..DIRS.len());
        let file = chance.usize(..FILES.len());
        let name = FILE_NAMES[chance.usize(..FILE_NAMES.len())];
        let other = FILE_NAMES[chance.usize(..FILE_NAMES.len())];
        let dir_name = DIR_NAMES[chance.usize(..DIR_NAMES.len())];
        match chance.u32(..24) {
            0..2 => Call::Create(dir, name),
            2..4 => Call::Mkdir(dir, dir_name),
            4..7 => Call::Unlink(dir, name),
            7..9 => Call::Rmdir(dir, dir_name),
            9..12 => Call::Rename(dir, name, chance.usize(..DIRS.len()), other),
            12..14 => {
                let to = DIR_NAMES[chance.usize(..DIR_NAMES.len())];
                Call::Rename(chance.usize(..2), dir_name, chance.usize(..2), to)
            }
            14..16 => Call::Link(file, dir, name),
            16..18 => Call::Write(file, chance.u64(..4000), chance.u8(b'a'..=b'z')),
            18 => Call::Truncate(file, [0, 100, 5000][chance.usize(..3)]),
            19 => Call::Chmod(file, chance.u32(..0o1000)),
            20 => Call::Read(file),
            21..23 => Call::Lookup(dir, name),
            _ => Call::List(dir),
        }
    }
}

/// Contents as runs of equal bytes, which can be read when they differ.
pub(crate) fn runs(contents: &[u8]) -> Vec<(u8, usize)> {
    let mut runs: Vec<(u8, usize)> = Vec::new();
    for &byte in contents {
        match runs.last_mut() {
            Some((last, len)) if *last == byte => *len += 1,
            _ => runs.push((byte, 1)),
        }
    }
    runs
}
