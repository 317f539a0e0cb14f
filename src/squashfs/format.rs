//! The format's structures as they lie in an archive, to be held beside a hexdump. All numbers
//! are little-endian; nothing here is checked. The format is described in the kernel's
//! `Documentation/filesystems/squashfs.rst` and at <https://dr-emann.github.io/squashfs/>.

use zerocopy::little_endian::{I16, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `hsqs`, read as a little-endian number.
pub(super) const MAGIC: u32 = 0x7371_7368;
/// Size of the superblock in bytes; the compressor's options, where present, follow it.
pub(super) const SUPERBLOCK_LEN: u64 = 96;
/// Most bytes that one metadata block decodes to.
pub(super) const METADATA_LEN: usize = 8192;
/// Length of the header in front of each metadata block.
pub(super) const METADATA_HEADER_LEN: u64 = 2;
/// Set in a metadata block's header when the block is stored as it is.
pub(super) const METADATA_STORED: u16 = 0x8000;
/// Set in a data block's size when the block is stored as it is.
pub(super) const BLOCK_STORED: u32 = 1 << 24;
/// A table that is not there.
pub(super) const NO_TABLE: u64 = u64::MAX;
/// A file without a fragment.
pub(super) const NO_FRAGMENT: u32 = u32::MAX;
/// An inode without extended attributes.
pub(super) const NO_XATTRS: u32 = u32::MAX;
/// Longest name in a directory, in bytes.
pub(super) const NAME_LEN: usize = 256;
/// Most entries that follow one directory header.
pub(super) const DIR_GROUP_LEN: u32 = 256;
/// The kernel counts three bytes of every listing for `.` and `..`, which are not stored.
pub(super) const DIR_SIZE_BIAS: u64 = 3;
/// Set in the type of an extended attribute whose value is stored elsewhere.
pub(super) const OUT_OF_LINE: u16 = 0x100;
/// Flag: files with the same contents share them.
pub(super) const FLAG_DUPLICATES: u16 = 1 << 6;
/// Flag: there is a table from inode numbers to inodes.
pub(super) const FLAG_EXPORT: u16 = 1 << 7;
/// Flag: the compressor's options follow the superblock.
pub(super) const FLAG_OPTIONS: u16 = 1 << 10;

macro_rules! on_disk {
    ($($(#[$doc:meta])* struct $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub(super) struct $name { $($(#[$field_doc])* pub(super) $field: $type,)* }
    )*};
}

on_disk! {
    struct RawSuperblock {
        magic: U32,
        inodes: U32,
        mkfs_time: U32,
        block_size: U32,
        fragments: U32,
        compressor: U16,
        block_log: U16,
        flags: U16,
        ids: U16,
        major: U16,
        minor: U16,
        root_inode: U64,
        bytes_used: U64,
        id_table: U64,
        xattr_id_table: U64,
        inode_table: U64,
        directory_table: U64,
        fragment_table: U64,
        export_table: U64,
    }

    /// What every inode starts with; one of the `Raw…Inode` below follows, told by `type`.
    struct RawInode {
        kind: U16,
        mode: U16,
        uid_index: U16,
        gid_index: U16,
        mtime: U32,
        number: U32,
    }
    /// Followed by the block list.
    struct RawFile {
        start: U32,
        fragment: U32,
        fragment_offset: U32,
        size: U32,
    }
    /// Followed by the block list.
    struct RawExtendedFile {
        start: U64,
        size: U64,
        sparse: U64,
        nlink: U32,
        fragment: U32,
        fragment_offset: U32,
        xattr: U32,
    }
    struct RawDirectory {
        block: U32,
        nlink: U32,
        size: U16,
        offset: U16,
        parent: U32,
    }
    /// Followed by the directory index.
    struct RawExtendedDirectory {
        nlink: U32,
        size: U32,
        block: U32,
        parent: U32,
        index_count: U16,
        offset: U16,
        xattr: U32,
    }
    /// Followed by the target and, in an extended inode, by the xattr index.
    struct RawSymlink {
        nlink: U32,
        size: U32,
    }
    struct RawDevice {
        nlink: U32,
        rdev: U32,
    }
    struct RawIpc {
        nlink: U32,
    }

    /// Followed by `count + 1` entries.
    struct RawDirHeader {
        count: U32,
        inode_block: U32,
        inode_number: U32,
    }
    /// Followed by `size + 1` bytes of name.
    struct RawDirEntry {
        inode_offset: U16,
        inode_number_delta: I16,
        kind: U16,
        size: U16,
    }
    /// Followed by `size + 1` bytes of name.
    struct RawDirIndex {
        position: U32,
        block: U32,
        size: U32,
    }

    struct RawFragment {
        start: U64,
        size: U32,
        unused: U32,
    }

    /// Heads the index of the xattr id table.
    struct RawXattrTable {
        xattrs: U64,
        ids: U32,
        unused: U32,
    }
    struct RawXattrId {
        xattrs: U64,
        count: U32,
        size: U32,
    }
    /// Followed by `size` bytes of name, without its prefix.
    struct RawXattrEntry {
        kind: U16,
        size: U16,
    }
}

const _: () = assert!(size_of::<RawSuperblock>() as u64 == SUPERBLOCK_LEN);
