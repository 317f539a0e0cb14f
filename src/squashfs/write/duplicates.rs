//! Finds files that are in the archive already. A hash proposes one, and its bytes decide: the
//! earlier file is read again, since what was written is out of reach.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::base::LayoutKey;
use super::catalog::{Catalog, Data, NoteAt};
use super::error::Error;
use super::large::{Block, BlockReader};
use super::options::Reopen;
use super::source::Source;
use super::stat::Version;

/// How many files are remembered: as many as a table of 2^21 slots holds, 36 MB.
const REMEMBERED: usize = (1 << 21) / 8 * 7;

/// How many files of an archive that is read are: their keys are twice as long.
const REMEMBERED_LAYOUTS: usize = (1 << 20) / 8 * 7;

/// The files seen so far.
pub(super) struct Duplicates<'a> {
    reopen: &'a Reopen<'a>,
    block_size: u32,
    by_hash: HashMap<u64, NoteAt>,
    /// Files of an archive, by where their bytes are in that. They are not compared with others.
    by_layout: HashMap<LayoutKey, NoteAt>,
    /// Sizes of files of more than a block. One of another size need not be read to know that it
    /// is new.
    large_sizes: HashSet<u64>,
}

impl<'a> Duplicates<'a> {
    /// Of files that `reopen` opens by their paths.
    pub(super) fn new(reopen: &'a Reopen<'a>, block_size: u32) -> Self {
        Self {
            reopen,
            block_size,
            by_hash: HashMap::new(),
            by_layout: HashMap::new(),
            large_sizes: HashSet::new(),
        }
    }

    /// Notes a file of an archive that is read, whose data is in the new one.
    pub(super) fn remember_layout(&mut self, layout: LayoutKey, at: NoteAt) {
        if self.by_layout.len() < REMEMBERED_LAYOUTS {
            self.by_layout.entry(layout).or_insert(at);
        }
    }

    /// The data of an earlier file that has its bytes in the same place of the archive.
    pub(super) fn find_layout(
        &self,
        catalog: &Catalog,
        layout: LayoutKey,
    ) -> Result<Option<Data>, Error> {
        let Some(&at) = self.by_layout.get(&layout) else { return Ok(None) };
        Ok(Some(catalog.file(at)?.1))
    }

    /// Notes a file whose data is in the archive.
    pub(super) fn remember(&mut self, hash: u64, size: u64, at: NoteAt) {
        if self.by_hash.len() < REMEMBERED {
            self.by_hash.entry(hash).or_insert(at);
            if size > self.block_size.into() {
                self.large_sizes.insert(size);
            }
        }
    }

    /// Whether a large file of this size was noted.
    pub(super) fn has_size(&self, size: u64) -> bool {
        self.large_sizes.contains(&size)
    }

    /// The data of an earlier file with these bytes.
    pub(super) fn find_small(
        &self,
        catalog: &Catalog,
        hash: u64,
        bytes: &[u8],
    ) -> Result<Option<Data>, Error> {
        let Some(earlier) = self.candidate(catalog, hash, bytes.len() as u64)? else {
            return Ok(None);
        };
        let mut theirs = vec![0; bytes.len()];
        let read = earlier.file.read_full(&mut theirs, 0);
        let same = read.is_ok_and(|len| len == bytes.len()) && theirs == bytes;
        Ok(earlier.data_if(same))
    }

    /// The data of an earlier file with the same bytes as `source`, which has `size` of them.
    pub(super) fn find_large(
        &self,
        catalog: &Catalog,
        hash: u64,
        source: &Source,
        size: u64,
    ) -> Result<Option<Data>, Error> {
        let Some(earlier) = self.candidate(catalog, hash, size)? else { return Ok(None) };
        let mut ours = BlockReader::new(source, size, self.block_size);
        let mut theirs = BlockReader::new(&earlier.file, size, self.block_size);
        let mut left = size;
        let same = loop {
            let len = match (ours.next(), theirs.next()) {
                (Ok(Some(Block::Zeros(len))), Ok(Some(Block::Zeros(_)))) => len,
                (Ok(Some(Block::Data(ours))), Ok(Some(Block::Data(theirs)))) if ours == theirs => {
                    ours.len()
                }
                (Ok(None), Ok(None)) => break left == 0,
                _ => break false,
            };
            left = left.saturating_sub(len as u64);
        };
        Ok(earlier.data_if(same))
    }

    /// The file that was remembered for this hash, if it is still what was packed. Whatever keeps
    /// us from opening it only costs room in the archive.
    fn candidate(&self, catalog: &Catalog, hash: u64, size: u64) -> Result<Option<Earlier>, Error> {
        let Some(&at) = self.by_hash.get(&hash) else { return Ok(None) };
        let (version, data) = catalog.file(at)?;
        if version.size != size {
            return Ok(None);
        }
        let path = catalog.path(at)?;
        let fd = (self.reopen)(Path::new(OsStr::from_bytes(&path)));
        let earlier = fd.map(|fd| Earlier { file: Source::File(fd), version, data });
        Ok(earlier.filter(Earlier::is_unchanged))
    }
}

/// An earlier file, opened again.
struct Earlier {
    file: Source,
    version: Version,
    data: Data,
}

impl Earlier {
    fn is_unchanged(&self) -> bool {
        self.file.version().is_ok_and(|version| version == self.version)
    }

    /// Its data, if it was the same bytes and they are still what is in the archive.
    fn data_if(&self, same: bool) -> Option<Data> {
        (same && self.is_unchanged()).then_some(self.data)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::{AsFd, OwnedFd};
    use std::path::PathBuf;
    use std::time::UNIX_EPOCH;

    use super::super::catalog::Node;
    use super::super::stat::Stat;
    use super::*;

    const BLOCK: usize = 4096;
    /// All files of these tests collide.
    const HASH: u64 = 42;

    /// Opens what is below a directory.
    fn below(root: &Path) -> impl Fn(&Path) -> Option<OwnedFd> + Sync + use<> {
        let root = PathBuf::from(root);
        move |path| {
            let path = root.join(path);
            let is_file = path.symlink_metadata().ok()?.is_file();
            Some(File::open(path).ok().filter(|_| is_file)?.into())
        }
    }

    /// A catalog and its duplicates that know the file `name` in `root`, and its data there.
    fn knowing<'a>(
        (root, reopen): (&Path, &'a Reopen<'a>),
        name: &str,
    ) -> (Catalog, Duplicates<'a>, Data) {
        let file = File::open(root.join(name)).unwrap();
        let stat = Stat::of(file.as_fd()).unwrap();
        let mut catalog = Catalog::new();
        let directory = File::open(root).unwrap();
        let above = catalog.node(&Stat::of(directory.as_fd()).unwrap(), 0).unwrap();
        catalog.enter(b"", &above).unwrap();
        let data = Data { first_block: 5, fragment: Some((3, 17)), ..Data::NONE };
        let node = Node { data, ..catalog.node(&stat, 0).unwrap() };
        let at = catalog.leaf(name.as_bytes(), &node).unwrap();
        let mut duplicates = Duplicates::new(reopen, BLOCK as u32);
        duplicates.remember(HASH, stat.version.size, at);
        (catalog, duplicates, data)
    }

    #[test]
    fn the_bytes_decide_where_hashes_collide() {
        let tree = tempfile::tempdir().unwrap();
        let (root, reopen) = (tree.path(), below(tree.path()));
        for len in [1, 1000, BLOCK, BLOCK + 1, 3 * BLOCK] {
            let bytes = vec![7; len];
            let mut last_differs = bytes.clone();
            last_differs[len - 1] = 8;
            fs::write(root.join("earlier"), &bytes).unwrap();
            let (catalog, duplicates, data) = knowing((root, &reopen), "earlier");
            let cases = [(bytes.clone(), Some(data)), (last_differs, None), (vec![0; len], None)];
            for (ours, expected) in cases {
                let found = if len <= BLOCK {
                    duplicates.find_small(&catalog, HASH, &ours).unwrap()
                } else {
                    fs::write(root.join("ours"), &ours).unwrap();
                    let fd = Source::File(File::open(root.join("ours")).unwrap().into());
                    duplicates.find_large(&catalog, HASH, &fd, len as u64).unwrap()
                };
                assert_eq!(found, expected, "{len} bytes that end in {:?}", ours.last());
            }
            assert_eq!(duplicates.find_small(&catalog, HASH, &vec![7; len + 1]).unwrap(), None);
            assert_eq!(duplicates.find_small(&catalog, HASH + 1, &bytes).unwrap(), None);
        }
    }

    #[test]
    fn a_file_that_changed_since_is_not_what_was_packed() {
        let tree = tempfile::tempdir().unwrap();
        let (root, reopen) = (tree.path(), below(tree.path()));
        let bytes = [7; 100];
        let changes: [fn(&Path); 4] = [
            |path| fs::write(path, [7; 101]).unwrap(),
            |path| fs::remove_file(path).unwrap(),
            |path| {
                fs::remove_file(path).unwrap();
                std::os::unix::fs::symlink("other", path).unwrap();
            },
            // The same bytes, written later: what they were between is not known.
            |path| {
                File::options().write(true).open(path).unwrap().set_modified(UNIX_EPOCH).unwrap();
            },
        ];
        fs::write(root.join("other"), bytes).unwrap();
        for (number, change) in changes.into_iter().enumerate() {
            let path = root.join("earlier");
            let _ = fs::remove_file(&path);
            fs::write(&path, bytes).unwrap();
            let (catalog, duplicates, data) = knowing((root, &reopen), "earlier");
            assert_eq!(duplicates.find_small(&catalog, HASH, &bytes).unwrap(), Some(data));
            change(&path);
            let found = duplicates.find_small(&catalog, HASH, &bytes).unwrap();
            assert_eq!(found, None, "change {number}");
        }
    }
}
