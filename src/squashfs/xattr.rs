//! Extended attributes: entries of prefix, name and value, or of where the value is.

use zerocopy::little_endian::{U32, U64};

use super::error::Error;
use super::format::{OUT_OF_LINE, RawXattrEntry};
use super::inode::Inode;
use super::metadata::{MetaReader, MetadataBlocks};
use super::tables::{Tables, XattrList};

const STRUCTURE: &str = "xattr";
/// Longest value Linux knows.
const MAX_VALUE: u32 = 65_536;
/// Bytes of names Linux lists at most, each with its NUL. A name takes six at least, so this
/// bounds their number too.
const MAX_NAMES: usize = 65_536;
/// Entries passed over at most, those of unknown prefixes among them.
const MAX_ENTRIES: u32 = 65_536;
/// Bytes of values that are handed out at once. Values that many entries share would otherwise
/// let a small archive fill any memory.
const MAX_VALUES: usize = 16 << 20;

/// One extended attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xattr {
    /// Its full name with the prefix, as in `user.comment`.
    pub name: Vec<u8>,
    /// Its value, which may be empty: 64 KiB at most.
    pub value: Vec<u8>,
}

/// Reads the attributes of one inode.
pub(super) struct XattrReader<'a> {
    metadata: &'a MetadataBlocks,
    tables: &'a Tables,
    reader: MetaReader<'a>,
    left: u32,
    names: usize,
}

/// An attribute whose value comes next.
struct Entry {
    name: Vec<u8>,
    out_of_line: bool,
}

impl<'a> XattrReader<'a> {
    /// `None` where the inode has none.
    pub(super) fn new(
        metadata: &'a MetadataBlocks,
        tables: &'a Tables,
        inode: &Inode,
    ) -> Result<Option<Self>, Error> {
        inode.xattrs.map(|list| Self::of_list(metadata, tables, list)).transpose()
    }

    /// Of a list that may belong to many inodes.
    pub(super) fn of_list(
        metadata: &'a MetadataBlocks,
        tables: &'a Tables,
        list: XattrList,
    ) -> Result<Self, Error> {
        let reader = metadata.reader(STRUCTURE, list.position);
        if list.count > MAX_ENTRIES {
            return Err(reader.corrupt(format!("{} of them on one inode", list.count)));
        }
        Ok(Self { metadata, tables, reader, left: list.count, names: 0 })
    }

    pub(super) fn names(mut self) -> Result<Vec<Vec<u8>>, Error> {
        let mut names = Vec::new();
        while let Some(entry) = self.entry()? {
            self.skip_value()?;
            names.push(entry.name);
        }
        Ok(names)
    }

    pub(super) fn value(mut self, name: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        while let Some(entry) = self.entry()? {
            if entry.name == name {
                return self.read_value(&entry).map(Some);
            }
            self.skip_value()?;
        }
        Ok(None)
    }

    pub(super) fn all(mut self) -> Result<Vec<Xattr>, Error> {
        let mut xattrs = Vec::new();
        let mut bytes = 0;
        while let Some(entry) = self.entry()? {
            let value = self.read_value(&entry)?;
            self.skip_value()?;
            bytes += value.len();
            if bytes > MAX_VALUES {
                return Err(self.reader.corrupt(format!("more than {MAX_VALUES} bytes of values")));
            }
            xattrs.push(Xattr { name: entry.name, value });
        }
        Ok(xattrs)
    }

    /// Reads every name and value, and keeps none.
    pub(super) fn check(mut self) -> Result<(), Error> {
        while let Some(entry) = self.entry()? {
            self.read_value(&entry)?;
            self.skip_value()?;
        }
        Ok(())
    }

    /// The next attribute of a prefix that Linux knows; those of others are passed over, as the
    /// kernel does.
    fn entry(&mut self) -> Result<Option<Entry>, Error> {
        while let Some(left) = self.left.checked_sub(1) {
            self.left = left;
            let raw: RawXattrEntry = self.reader.read()?;
            let (kind, len) = (raw.kind.get(), usize::from(raw.size.get()));
            let prefix: &[u8] = match kind & !OUT_OF_LINE {
                0 => b"user.",
                1 => b"trusted.",
                2 => b"security.",
                _ => {
                    self.reader.skip(len)?;
                    self.skip_value()?;
                    continue;
                }
            };
            let mut name = prefix.to_vec();
            name.extend(self.reader.read_vec(len)?);
            self.names += name.len() + 1;
            if self.names > MAX_NAMES {
                return Err(self.reader.corrupt(format!("more than {MAX_NAMES} bytes of names")));
            }
            return Ok(Some(Entry { name, out_of_line: kind & OUT_OF_LINE != 0 }));
        }
        Ok(None)
    }

    /// The value of the entry just read, without moving on. A value out of line leaves a length
    /// behind that, like the kernel, only [`XattrReader::skip_value`] heeds.
    fn read_value(&self, entry: &Entry) -> Result<Vec<u8>, Error> {
        let mut reader = self.reader.clone();
        if !entry.out_of_line {
            return read_value(&mut reader);
        }
        let _len: U32 = reader.read()?;
        let packed: U64 = reader.read()?;
        match self.tables.xattr_value(packed.get()) {
            Some(position) => read_value(&mut self.metadata.reader(STRUCTURE, position)),
            None => Err(reader.corrupt("a value in a table that isn't there".into())),
        }
    }

    fn skip_value(&mut self) -> Result<(), Error> {
        let len = value_len(&mut self.reader)?;
        self.reader.skip(len)
    }
}

fn read_value(reader: &mut MetaReader<'_>) -> Result<Vec<u8>, Error> {
    let len = value_len(reader)?;
    reader.read_vec(len)
}

fn value_len(reader: &mut MetaReader<'_>) -> Result<usize, Error> {
    match reader.read::<U32>()?.get() {
        len @ 0..=MAX_VALUE => Ok(len as usize),
        len => Err(reader.corrupt(format!("a value of {len} bytes"))),
    }
}
