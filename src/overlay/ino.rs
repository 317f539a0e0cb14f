//! How merged files get their numbers, without a table that would have to be kept.
//!
//! - The root is 1.
//! - A lower inode's number is its place in the archive: `block << 13 | offset`, plus 2. The names of
//!   a hard link share it, and inode numbers that repeat in a hostile archive do no harm.
//! - A file that was copied up keeps the lower number, by the record on the upper inode.
//! - A file born in the upper has the upper's own inode number, with the serial of the layer that the upper was then in
//!   front and the top bit set. It keeps that, by a record, when another layer gets a copy of it: an inode number is used
//!   again once an inode is gone, a serial never.
//! - A name of a damaged archive that leads to no inode has a number that leads nowhere, to be listed with.

use twox_hash::XxHash3_64;

use crate::types::{Ino, InodeRef, LayerSerial};

/// Marks numbers of files born in the upper.
const UPPER_BORN: u64 = 1 << 63;

/// Marks those of them that are made of more than there is room for.
const MIXED: u64 = 1 << 62;

/// Marks, with the two above, node ids that are no numbers.
const ID: u64 = 1 << 61;

/// How many bits an inode number of the upper has, usually, and how many are left for the serial of its layer.
const ST_INO_BITS: u32 = 44;
const SERIAL_BITS: u32 = 18;

/// Marks numbers that lead nowhere. Those of lower inodes do not reach it: 48 bits and 13.
const NOWHERE: u64 = 1 << 62;

/// Metadata blocks hold 8 KiB, so an offset in one has 13 bits.
const OFFSET_BITS: u32 = 13;

/// The number of the inode at `inode`, where the archive's root is at `root`. `None` where
/// `inode` cannot be the place of an inode.
pub(super) fn of_lower(inode: InodeRef, root: InodeRef) -> Option<Ino> {
    if inode == root {
        return Some(Ino::ROOT);
    }
    let offset = u64::from(inode.offset());
    if offset >> OFFSET_BITS != 0 {
        return None;
    }
    Some(Ino(((inode.block() << OFFSET_BITS) | offset) + 2))
}

/// The place in the archive that `ino` stands for; `None` for files born in the upper.
pub(super) fn to_lower(ino: Ino, root: InodeRef) -> Option<InodeRef> {
    if ino == Ino::ROOT {
        return Some(root);
    }
    let packed =
        if ino.0 & (UPPER_BORN | NOWHERE) == 0 { ino.0.checked_sub(2)? } else { return None };
    let offset = (packed & ((1 << OFFSET_BITS) - 1)) as u16;
    Some(InodeRef::new(packed >> OFFSET_BITS, offset))
}

/// The number of a file born in layer `layer` as inode `st_ino`.
pub(super) fn of_birth(layer: LayerSerial, st_ino: u64) -> Ino {
    let serial = u64::from(layer.0);
    if st_ino >> ST_INO_BITS == 0 && serial >> SERIAL_BITS == 0 {
        return Ino(UPPER_BORN | serial << ST_INO_BITS | st_ino);
    }
    // There is not room for both. Two files with one number would need 2^30 of them.
    let mut bytes = [0; 12];
    for (to, from) in
        bytes.iter_mut().zip(serial.to_le_bytes().into_iter().take(4).chain(st_ino.to_le_bytes()))
    {
        *to = from;
    }
    Ino(UPPER_BORN | MIXED | (XxHash3_64::oneshot(&bytes) & (ID - 1)))
}

/// The number of a copy of the inode at `inode` in another archive than the one below, which `identity` tells from
/// others. One of this archive may be at that place, too.
pub(super) fn of_other(identity: &[u8], inode: InodeRef) -> Ino {
    let mut bytes = identity.to_vec();
    bytes.extend_from_slice(&inode.packed().to_le_bytes());
    Ino(UPPER_BORN | MIXED | (XxHash3_64::oneshot(&bytes) & (ID - 1)))
}

/// The layer that a file was born in, if its number says so.
pub(super) fn layer_of_birth(ino: Ino) -> Option<LayerSerial> {
    let says = ino.0 & UPPER_BORN != 0 && ino.0 & MIXED == 0;
    says.then_some(LayerSerial(((ino.0 & !UPPER_BORN) >> ST_INO_BITS) as u32))
}

/// Whether `ino` is a node id that is no number: see [`super::ids`].
pub(super) fn is_id(ino: Ino) -> bool {
    ino.0 & (UPPER_BORN | MIXED | ID) == UPPER_BORN | MIXED | ID
}

/// The `nth` such id.
pub(super) fn of_id(nth: u64) -> Ino {
    Ino(UPPER_BORN | MIXED | ID | (nth & (ID - 1)))
}

/// The number of a name that leads to `inode`, where none can be.
pub(super) fn of_nothing(inode: InodeRef) -> Ino {
    Ino(inode.packed() & (NOWHERE - 1) | NOWHERE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_numbers_are_unique_and_lead_back() {
        let root = InodeRef::new(77, 5);
        let mut seen = std::collections::HashSet::new();
        for (block, offset) in
            [(0, 0), (0, 1), (0, 8191), (1, 0), (77, 4), (77, 5), (77, 6), (0xffff_ffff_ffff, 8191)]
        {
            let inode = InodeRef::new(block, offset);
            let ino = of_lower(inode, root).unwrap();
            assert!(seen.insert(ino), "{ino} twice");
            assert_eq!(to_lower(ino, root), Some(inode));
        }
        assert_eq!(of_lower(root, root), Some(Ino::ROOT));
    }

    #[test]
    fn an_offset_past_a_metadata_block_has_no_number() {
        assert_eq!(of_lower(InodeRef::new(0, 8192), InodeRef::new(0, 0)), None);
    }

    #[test]
    fn upper_born_numbers_and_those_of_nothing_do_not_lead_to_the_archive() {
        assert_eq!(to_lower(of_birth(LayerSerial(0), 12), InodeRef::new(0, 0)), None);
        for offset in [8192, u16::MAX] {
            let number = of_nothing(InodeRef::new(0xffff_ffff, offset));
            assert_eq!(to_lower(number, InodeRef::new(0, 0)), None);
            assert_ne!(number, of_birth(LayerSerial(0), number.0));
        }
    }

    #[test]
    fn numbers_of_the_upper_are_unique_over_its_layers_and_none_of_the_archive() {
        let mut seen = std::collections::HashSet::new();
        for serial in [0, 1, (1 << SERIAL_BITS) - 1, 1 << SERIAL_BITS, u32::MAX] {
            for st_ino in [0, 1, (1 << ST_INO_BITS) - 1, 1 << ST_INO_BITS, 1 << 61, u64::MAX] {
                let ino = of_birth(LayerSerial(serial), st_ino);
                assert!(seen.insert(ino), "{ino} twice");
                assert_eq!(to_lower(ino, InodeRef::new(0, 0)), None);
                assert!(!is_id(ino));
                let born = layer_of_birth(ino);
                assert!(born.is_none_or(|born| born == LayerSerial(serial)), "{ino}");
                assert!(born.is_some() || serial > 1 << 17 || st_ino >> ST_INO_BITS > 0);
            }
        }
        for identity in [&b"one"[..], b"other"] {
            for inode in [InodeRef::new(0, 0), InodeRef::new(7, 5)] {
                let ino = of_other(identity, inode);
                assert!(seen.insert(ino), "{ino} twice");
                assert_eq!((to_lower(ino, InodeRef::new(0, 0)), layer_of_birth(ino)), (None, None));
                assert!(!is_id(ino));
            }
        }
        assert!(is_id(of_id(0)) && is_id(of_id(u64::MAX)) && of_id(0) != of_id(1));
        assert_eq!(
            layer_of_birth(of_lower(InodeRef::new(7, 5), InodeRef::new(0, 0)).unwrap()),
            None
        );
        // As they were before there were layers.
        assert_eq!(of_birth(LayerSerial(0), 12), Ino(UPPER_BORN | 12));
    }
}
