//! The first 96 bytes of an archive.

use std::borrow::Cow;
use std::fmt;

use zerocopy::FromBytes;

use super::error::Error;
use super::format::{
    FLAG_OPTIONS, MAGIC, METADATA_HEADER_LEN, METADATA_LEN, NO_TABLE, RawSuperblock, SUPERBLOCK_LEN,
};
use crate::types::{ArchiveOffset, ByteRange, InodeRef, Timestamp};

/// The compressors of squashfs 4.0 that can be read. Its sixth, lzma, is refused by the kernel and
/// so here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compressor {
    /// zlib streams.
    Gzip,
    /// LZO1X.
    Lzo,
    /// xz streams, with or without a branch filter.
    Xz,
    /// LZ4 blocks.
    Lz4,
    /// Zstandard frames.
    Zstd,
}

impl Compressor {
    /// The name mksquashfs has for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Lzo => "lzo",
            Self::Xz => "xz",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An archive's superblock, checked as the kernel checks it. Where its tables lie is checked when
/// they are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// How many inodes the archive says it holds.
    pub inodes: u32,
    /// When it was written.
    pub created: Timestamp,
    /// Size of a data block in bytes: a power of two, 4 KiB to 1 MiB.
    pub block_size: u32,
    /// How many fragment blocks there are.
    pub fragments: u32,
    /// What its blocks are compressed with.
    pub compressor: Compressor,
    /// Flags as stored. They say how the archive was written; reading heeds only bit 10.
    pub flags: u16,
    /// How many distinct owners and groups there are, at least one.
    pub ids: u16,
    /// Where the root directory's inode lies.
    pub root: InodeRef,
    /// Size of the archive without its padding, in bytes.
    pub bytes_used: u64,
    /// Start of the index of the table of owners and groups.
    pub id_table: ArchiveOffset,
    /// Start of the index of the extended attributes, if there are any.
    pub xattr_id_table: Option<ArchiveOffset>,
    /// Start of the inodes.
    pub inode_table: ArchiveOffset,
    /// Start of the directory listings.
    pub directory_table: ArchiveOffset,
    /// Start of the index of the fragment table; means nothing where `fragments` is zero.
    pub fragment_table: ArchiveOffset,
    /// Start of the index of the table from inode numbers to inodes, if there is one.
    pub export_table: Option<ArchiveOffset>,
}

impl Superblock {
    /// The names of the flags that are set, after mksquashfs's options.
    pub fn flag_names(&self) -> Vec<&'static str> {
        const NAMES: [(u16, &str); 11] = [
            (0x0001, "noI"),
            (0x0002, "noD"),
            (0x0008, "noF"),
            (0x0010, "no-fragments"),
            (0x0020, "always-use-fragments"),
            (0x0040, "duplicates"),
            (0x0080, "exports"),
            (0x0100, "noX"),
            (0x0200, "no-xattrs"),
            (0x0400, "compressor-options"),
            (0x0800, "noId"),
        ];
        NAMES.iter().filter(|(bit, _)| self.flags & bit != 0).map(|(_, name)| *name).collect()
    }

    /// The tables by name, with where each starts; `None` for one that the archive lacks.
    pub fn tables(&self) -> [(&'static str, Option<ArchiveOffset>); 6] {
        [
            ("inodes", Some(self.inode_table)),
            ("directories", Some(self.directory_table)),
            ("fragments", (self.fragments > 0).then_some(self.fragment_table)),
            ("exports", self.export_table),
            ("ids", Some(self.id_table)),
            ("xattrs", self.xattr_id_table),
        ]
    }

    /// Parses and checks `bytes`, the first 96 of an object of `size` bytes.
    pub(super) fn parse(bytes: &[u8], size: u64) -> Result<Self, Error> {
        let Ok((raw, _)) = RawSuperblock::read_from_prefix(bytes) else {
            let found = match bytes {
                [] => "it is empty".into(),
                _ => format!("{} bytes are shorter than a superblock", bytes.len()).into(),
            };
            return Err(Error::NotSquashfs { found });
        };
        if raw.magic.get() != MAGIC {
            return Err(Error::NotSquashfs { found: describe(bytes) });
        }
        let (major, minor) = (raw.major.get(), raw.minor.get());
        // The kernel compares the minor version as a signed number.
        if major != 4 || minor.cast_signed() > 0 {
            return Err(unsupported(format!("version {major}.{minor}, where 4.0 is read")));
        }
        let compressor = match raw.compressor.get() {
            1 => Compressor::Gzip,
            2 => return Err(unsupported("lzma compression".into())),
            3 => Compressor::Lzo,
            4 => Compressor::Xz,
            5 => Compressor::Lz4,
            6 => Compressor::Zstd,
            other => return Err(unsupported(format!("compressor number {other}"))),
        };
        let block_size = raw.block_size.get();
        let block_log = raw.block_log.get();
        if !(4096..=1 << 20).contains(&block_size)
            || 1u32.checked_shl(block_log.into()) != Some(block_size)
        {
            return Err(corrupt(format!("block size {block_size} with logarithm {block_log}")));
        }
        let bytes_used = raw.bytes_used.get();
        if bytes_used > size {
            return Err(corrupt(format!("it counts {bytes_used} bytes and {size} are there")));
        }
        if bytes_used < SUPERBLOCK_LEN {
            return Err(corrupt(format!("it counts only {bytes_used} bytes")));
        }
        let root = InodeRef::from_packed(raw.root_inode.get());
        if usize::from(root.offset()) > METADATA_LEN {
            return Err(corrupt(format!("root inode {root} is outside its metadata block")));
        }
        let table = |start: u64| (start != NO_TABLE).then_some(ArchiveOffset(start));
        Ok(Self {
            inodes: raw.inodes.get(),
            created: Timestamp { seconds: raw.mkfs_time.get().into(), nanos: 0 },
            block_size,
            fragments: raw.fragments.get(),
            compressor,
            flags: raw.flags.get(),
            ids: raw.ids.get(),
            root,
            bytes_used,
            id_table: ArchiveOffset(raw.id_table.get()),
            xattr_id_table: table(raw.xattr_id_table.get()),
            inode_table: ArchiveOffset(raw.inode_table.get()),
            directory_table: ArchiveOffset(raw.directory_table.get()),
            fragment_table: ArchiveOffset(raw.fragment_table.get()),
            export_table: table(raw.export_table.get()),
        })
    }

    /// What may matter of the compressor's options, which follow the superblock if it says so: a
    /// metadata header and two numbers.
    pub(super) fn compressor_options(&self) -> Option<ByteRange> {
        let end = self.bytes_used.min(SUPERBLOCK_LEN + METADATA_HEADER_LEN + 8);
        let has_options = self.flags & FLAG_OPTIONS != 0;
        ByteRange::between(ArchiveOffset(SUPERBLOCK_LEN), ArchiveOffset(end))
            .filter(|_| has_options)
    }

    /// One past the archive's last byte.
    pub(super) fn end(&self) -> ArchiveOffset {
        ArchiveOffset(self.bytes_used)
    }
}

fn unsupported(what: String) -> Error {
    Error::Unsupported { what: what.into() }
}

fn corrupt(detail: String) -> Error {
    Error::corrupt("superblock", ArchiveOffset(0), detail)
}

/// What an object that is no squashfs archive seems to be, for the person who named it.
fn describe(bytes: &[u8]) -> Cow<'static, str> {
    match bytes {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "it is a zstd stream, perhaps a .tar.zst backup".into(),
        [0x1f, 0x8b, ..] => "it is a gzip stream".into(),
        [b's', b'q', b's', b'h', ..] => "it is a big-endian squashfs of before version 4".into(),
        [0x7f, b'E', b'L', b'F', ..] => {
            "it is a program; the archive in an AppImage starts at an offset".into()
        }
        [b'<', ..] => "it is text that looks like HTML or XML".into(),
        [0, 0, 0, 0, ..] => "it starts with zeros".into(),
        _ => {
            let magic = bytes.iter().take(4).map(|byte| format!("{byte:02x}")).collect::<String>();
            format!("it starts with {magic}, not 68737173").into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;
    use zerocopy::little_endian::{U16, U32, U64};

    fn valid() -> RawSuperblock {
        let mut raw = RawSuperblock::read_from_bytes(&[0; 96]).unwrap();
        raw.magic = U32::new(MAGIC);
        raw.block_size = U32::new(131_072);
        raw.block_log = U16::new(17);
        raw.compressor = U16::new(6);
        raw.major = U16::new(4);
        raw.ids = U16::new(1);
        raw.bytes_used = U64::new(4000);
        raw.xattr_id_table = U64::new(NO_TABLE);
        raw.mkfs_time = U32::new(u32::MAX);
        raw
    }

    #[test]
    fn a_valid_superblock_is_read() {
        let superblock = Superblock::parse(valid().as_bytes(), 4096).unwrap();
        assert_eq!(superblock.compressor, Compressor::Zstd);
        assert_eq!(superblock.created.seconds, 4_294_967_295);
        assert_eq!(superblock.xattr_id_table, None);
        assert_eq!(superblock.export_table, Some(ArchiveOffset(0)));
    }

    #[test]
    fn what_the_kernel_refuses_is_refused_by_name() {
        type Damage = fn(&mut RawSuperblock);
        let cases: &[(Damage, &str)] = &[
            (|raw| raw.magic = U32::new(0xfd2f_b528), "zstd stream"),
            (|raw| raw.magic = U32::new(0x0102_0304), "it starts with 04030201"),
            (|raw| raw.major = U16::new(3), "version 3.0"),
            (|raw| raw.minor = U16::new(1), "version 4.1"),
            (|raw| raw.compressor = U16::new(2), "lzma"),
            (|raw| raw.compressor = U16::new(7), "compressor number 7"),
            (|raw| raw.block_size = U32::new(131_073), "block size 131073"),
            (|raw| raw.block_log = U16::new(16), "logarithm 16"),
            (|raw| raw.block_log = U16::new(17 + 32), "logarithm 49"),
            (|raw| (raw.block_size, raw.block_log) = (U32::new(1 << 21), U16::new(21)), "2097152"),
            (|raw| (raw.block_size, raw.block_log) = (U32::new(2048), U16::new(11)), "2048"),
            (|raw| raw.bytes_used = U64::new(4097), "counts 4097 bytes and 4096"),
            (|raw| raw.bytes_used = U64::new(95), "only 95 bytes"),
            (|raw| raw.root_inode = U64::new(8193), "root inode 0+8193"),
        ];
        for (damage, expected) in cases {
            let mut raw = valid();
            damage(&mut raw);
            let error = Superblock::parse(raw.as_bytes(), 4096).unwrap_err().to_string();
            assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        }
    }

    #[test]
    fn an_object_shorter_than_a_superblock_is_no_archive() {
        for len in [0, 1, 95] {
            let error = Superblock::parse(&valid().as_bytes()[..len], len as u64).unwrap_err();
            assert!(matches!(error, Error::NotSquashfs { .. }), "{error}");
        }
    }
}
