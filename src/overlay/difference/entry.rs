//! What a difference is told in.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::names;
use crate::types::FileKind;

/// How something differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The backup has no such file. Since a moment: made since, and whatever had the name before is gone.
    Added,
    /// A file whose data is another, or a link that leads elsewhere. So is what was put in its place, if it is of the
    /// same kind.
    Modified,
    /// Permissions, owner, extended attributes or, but for directories, the time of modification.
    Attributes,
    /// The backup has it, the view has not: a directory with all that was in it.
    Removed,
    /// It is in the backup under another name: a directory with all that is in it, but for what is told of its own.
    /// Since a moment: of a directory, all in it may be other than before.
    Renamed,
    /// Since a moment only: a directory whose attributes may be others, and in which names may be gone.
    Listing,
    /// Since a moment only: a directory that may have come here as a whole, with all that is in it.
    Subtree,
}

/// One entry of a difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifferenceEntry {
    /// How it differs.
    pub status: Status,
    /// What kind of file it is, or was if it is removed.
    #[serde(with = "kind_word")]
    pub kind: FileKind,
    /// Its path in the view, or where it would be. Relative to the root, which is `.`.
    #[serde(flatten, with = "names::path")]
    pub path: PathBuf,
    /// Its path in the backup, where that is another.
    #[serde(flatten, with = "names::from")]
    pub from: Option<PathBuf>,
    /// Its size in bytes, of what is neither a file nor a link 0; of what is removed, the size it had.
    pub size: u64,
    /// How many bytes of that the backup does not have: all of a file that was added or modified, if they are in the
    /// upper. The names of one file say the same.
    pub bytes: u64,
    /// Its number in the view, by which the names of one file are known; 0 of what is removed.
    pub ino: u64,
    /// How many names it has.
    pub nlink: u32,
}

/// Kinds as words.
mod kind_word {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::types::FileKind;

    pub(super) fn serialize<S: Serializer>(kind: &FileKind, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(kind.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<FileKind, D::Error> {
        let word = String::deserialize(from)?;
        FileKind::named(&word).ok_or_else(|| D::Error::custom(format!("no kind of file: {word}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_as_it_was_written() {
        use std::os::unix::ffi::OsStringExt;
        let odd = PathBuf::from(std::ffi::OsString::from_vec(b"a/\xff".to_vec()));
        let (status, kind) = (Status::Renamed, FileKind::CharDevice);
        let entry = DifferenceEntry {
            status,
            kind,
            path: odd.clone(),
            from: Some(odd),
            size: 1,
            bytes: 1,
            ino: 2,
            nlink: 3,
        };
        let text = serde_json::to_string(&entry).unwrap();
        assert!(
            text.starts_with(r#"{"status":"renamed","kind":"character device","path":"#),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<DifferenceEntry>(&text).unwrap(), entry);
        let plain = DifferenceEntry { path: "a".into(), from: None, ..entry };
        let text = serde_json::to_string(&plain).unwrap();
        assert_eq!(serde_json::from_str::<DifferenceEntry>(&text).unwrap(), plain);
    }
}
