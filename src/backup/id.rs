//! What names a backup: its id, and the handle that create prints and restore takes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::fields::{check_dir, invalid};
use crate::failure::{Code, Failure};

/// Id of a backup: a UUID in lowercase, 36 bytes long. Made by [`BackupId::random`]; read from any
/// case.
///
/// ```
/// use thawfs::backup::BackupId;
///
/// let id: BackupId = "0B7A5C1E-6F0D-4C43-9D0C-2F1F8F1A9E77".parse()?;
/// assert_eq!(id.as_str(), "0b7a5c1e-6f0d-4c43-9d0c-2f1f8f1a9e77");
/// assert!("data".parse::<BackupId>().is_err());
/// # Ok::<(), thawfs::failure::Failure>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId(String);

impl BackupId {
    /// Length of an id in bytes.
    pub const LEN: usize = uuid::fmt::Hyphenated::LENGTH;

    /// A new one: a UUID of version 4.
    ///
    /// # Errors
    /// [`Code::Failed`] where the machine has no random numbers.
    pub fn random() -> Result<Self, Failure> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)
            .map_err(|error| Failure::new(Code::Failed, format!("no random numbers: {error}")))?;
        Ok(Self(uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()))
    }

    /// The id as it stands in keys.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BackupId {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        // Other forms of a UUID, in braces or without dashes, are of another length.
        if let (Self::LEN, Ok(id)) = (text.len(), Uuid::try_parse(text)) {
            return Ok(Self(id.to_string()));
        }
        Err(Failure::new(Code::InvalidBackupConfig, format!("{text:?} is not the id of a backup"))
            .hint("an id looks like 0b7a5c1e-6f0d-4c43-9d0c-2f1f8f1a9e77; see thawfs list"))
    }
}

impl TryFrom<String> for BackupId {
    type Error = Failure;

    fn try_from(text: String) -> Result<Self, Failure> {
        text.parse()
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> Self {
        id.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What it takes to restore a backup: `{"id": …, "dir": …}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handle {
    /// Which backup.
    pub id: BackupId,
    /// Absolute path of the directory that was backed up.
    pub dir: String,
}

impl Handle {
    /// Checks the directory; the id has been checked on reading.
    ///
    /// # Errors
    /// [`Code::InvalidBackupConfig`] where it is not absolute, has a `..` segment or a NUL, or is over
    /// 4096 bytes.
    pub fn check(&self) -> Result<(), Failure> {
        check_dir(&self.dir).map_err(|reason| invalid("directory", &self.dir, reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_uuids_of_any_case_and_come_out_in_lowercase() {
        let id: BackupId = "0B7A5C1E-6f0d-1c43-0d0c-2f1f8f1a9E77".parse().unwrap();
        assert_eq!(id.as_str(), "0b7a5c1e-6f0d-1c43-0d0c-2f1f8f1a9e77");
        for text in [
            "",
            "0b7a5c1e-6f0d-4c43-9d0c-2f1f8f1a9e7",
            "0b7a5c1e-6f0d-4c43-9d0c-2f1f8f1a9e777",
            "0b7a5c1e+6f0d-4c43-9d0c-2f1f8f1a9e77",
            "0b7a5c1e-6f0d-4c43-9d0c-2f1f8f1a9e7g",
            "../a5c1e-6f0d-4c43-9d0c-2f1f8f1a9e77",
            "0b7a5c1e-6f0d-4c43-9d0c-2f1f8f1a9e7\n",
            "0b7a5c1e6f0d4c439d0c2f1f8f1a9e77",
            "{0b7a5c1e-6f0d-4c43-9d0c-2f1f8f1a9e77}",
            "urn:uuid:0b7a5c1e-6f0d-4c43-9d0c-2f1f8f1a9e77",
            "0b7a5c1e-6f0d-4c439-d0c-2f1f8f1a9e77",
        ] {
            let failure = text.parse::<BackupId>().unwrap_err();
            assert_eq!(failure.code, Code::InvalidBackupConfig, "{text:?}");
        }
    }

    #[test]
    fn random_ids_are_of_version_4_and_differ() {
        let ids = [BackupId::random().unwrap(), BackupId::random().unwrap()];
        assert_ne!(ids[0], ids[1]);
        for id in ids {
            assert_eq!(id.as_str().parse::<BackupId>().unwrap(), id);
            assert_eq!(&id.as_str()[14..15], "4");
            assert!("89ab".contains(&id.as_str()[19..20]), "{id}");
        }
    }

    #[test]
    fn a_handle_is_two_keys_and_its_id_is_checked() {
        let text = r#"{"id":"0b7a5c1e-6f0d-4c43-9d0c-2f1f8f1a9e77","dir":"/w"}"#;
        let handle: Handle = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&handle).unwrap(), text);
        assert!(serde_json::from_str::<Handle>(r#"{"id":"../x","dir":"/w"}"#).is_err());
    }
}
