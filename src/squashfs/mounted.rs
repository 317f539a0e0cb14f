//! What a mount of an archive says of itself, by attributes that are listed nowhere and found in no other mount: which
//! archive it is, and what of a file is in it still.

use crate::types::InodeRef;

/// The attribute by which each file of a mount tells the archive: see [`MountedArchive`].
pub const ARCHIVE_XATTR: &str = "system.thawfs.archive";

/// The attribute by which a regular file of a mount tells the inode of the archive that has its data, as long as nothing
/// was written to it and nobody has it open for that: see [`DataInArchive`].
pub const DATA_XATTR: &str = "system.thawfs.data";

/// The archive of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedArchive {
    /// Which version of the object it is: an ETag, which has no blank in it.
    pub version: String,
    /// Where it is, as it may be shown.
    pub name: String,
}

impl MountedArchive {
    /// As the attribute holds it.
    pub fn to_text(&self) -> Vec<u8> {
        format!("{} {}", self.version, self.name).into_bytes()
    }

    /// What [`Self::to_text`] has written.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (version, name) = std::str::from_utf8(text).ok()?.split_once(' ')?;
        Some(Self { version: version.to_owned(), name: name.to_owned() })
    }
}

/// The inode of the archive that has the data of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataInArchive {
    /// The inode.
    pub inode: InodeRef,
    /// Whether its extended attributes are the file's, too.
    pub has_xattrs: bool,
}

impl DataInArchive {
    /// What follows the number where the attributes are the file's.
    const XATTRS: &str = " xattrs";

    /// As the attribute holds it: [`InodeRef::packed`] in hexadecimal, and a word.
    pub fn to_text(self) -> Vec<u8> {
        let word = if self.has_xattrs { Self::XATTRS } else { "" };
        format!("{:x}{word}", self.inode.packed()).into_bytes()
    }

    /// What [`Self::to_text`] has written.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (number, has_xattrs) = match text.strip_suffix(Self::XATTRS) {
            Some(number) => (number, true),
            None => (text, false),
        };
        let inode = InodeRef::from_packed(u64::from_str_radix(number, 16).ok()?);
        Some(Self { inode, has_xattrs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        for name in ["s3://b/backups/x/data.sqsh", "", "a path/with spaces"] {
            let archive = MountedArchive { version: "\"fe-1\"".into(), name: name.into() };
            assert_eq!(MountedArchive::parse(&archive.to_text()), Some(archive));
        }
        for packed in [0, 1 << 16 | 5, 0xffff_ffff_ffff] {
            for has_xattrs in [false, true] {
                let data = DataInArchive { inode: InodeRef::from_packed(packed), has_xattrs };
                assert_eq!(DataInArchive::parse(&data.to_text()), Some(data));
            }
        }
        for text in ["", "x", "12 ", "-1", " xattrs", "12 other"] {
            assert_eq!(DataInArchive::parse(text.as_bytes()), None, "{text}");
        }
        for text in ["", "12"] {
            assert_eq!(MountedArchive::parse(text.as_bytes()), None, "{text}");
        }
    }
}
