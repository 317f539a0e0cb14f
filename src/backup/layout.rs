//! What lies where in a bucket: `backups/{id}/data.sqsh`, and beside it what belongs to that archive.
//!
//! The keys are shared with Cloudflare's sandbox SDK. Whatever else we put beside them is an object of
//! our own, which the SDK passes over.

use super::id::BackupId;
use crate::store::Source;

/// Name of a backup's archive.
pub const ARCHIVE: &str = Source::ARCHIVE;
/// Name of a backup's metadata.
pub const METADATA: &str = "meta.json";
/// What was read first of a backup, for those who will read it next: an object of ours.
pub const TRACE: &str = "trace.json";

/// The directory of all backups, within the bucket's folder.
pub(super) const ALL: &str = "backups";

/// What the keys of backups whose id begins with `start` begin with.
pub(super) fn starting_with(start: &str) -> String {
    format!("{ALL}/{start}")
}

/// What the keys of a backup begin with.
pub(super) fn prefix(id: &BackupId) -> String {
    format!("{ALL}/{id}/")
}

/// Key of an object of a backup.
pub(super) fn key(id: &BackupId, name: &str) -> String {
    prefix(id) + name
}

/// Key of the trace that belongs to the archive of this key, if that is a backup's.
pub(super) fn trace_beside(archive: &str) -> Option<String> {
    let folder = archive.strip_suffix(ARCHIVE)?;
    let id = folder.strip_suffix('/')?.rsplit('/').next()?;
    id.parse::<BackupId>().is_ok().then(|| format!("{folder}{TRACE}"))
}

/// The backup whose archive has this name, which ends as its key does.
pub(crate) fn id_of_archive(name: &str) -> Option<BackupId> {
    name.strip_suffix(ARCHIVE)?.strip_suffix('/')?.rsplit('/').next()?.parse().ok()
}

/// What comes before the key of a backup's archive in its name: where its bucket is.
pub(super) fn folder_of_archive(name: &str) -> Option<&str> {
    let id = id_of_archive(name)?;
    let folder = name.strip_suffix(&key(&id, ARCHIVE))?;
    folder.strip_suffix('/')
}

/// The backup that a key within the folder belongs to, and what is behind its id: `/` and a name, or
/// `.tar.zst` for a backup of the SDK's newer kind.
pub(super) fn split(key: &str) -> Option<(BackupId, &str)> {
    let (id, rest) = key.strip_prefix(ALL)?.strip_prefix('/')?.split_at_checked(BackupId::LEN)?;
    let parsed: BackupId = id.parse().ok()?;
    // Keys are case-sensitive, and those of backups in lowercase.
    let is_ours = parsed.as_str() == id && (rest.starts_with('/') || rest == ".tar.zst");
    is_ours.then_some((parsed, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0b7a5c1e-6f0d-4c43-9d0c-2f1f8f1a9e77";

    #[test]
    fn only_keys_of_backups_count() {
        let id = ID;
        for (key, rest) in [
            (key(&id.parse().unwrap(), ARCHIVE), Some("/data.sqsh")),
            (format!("backups/{id}/a/b"), Some("/a/b")),
            (format!("backups/{id}.tar.zst"), Some(".tar.zst")),
            (format!("backups/{id}"), None),
            (format!("backups/{id}x/data.sqsh"), None),
            (format!("backups/{}/data.sqsh", id.to_uppercase()), None),
            (format!("other/{id}/data.sqsh"), None),
            (format!("backups{id}/data.sqsh"), None),
            ("backups/é".repeat(9), None),
            ("backups/readme".into(), None),
        ] {
            assert_eq!(split(&key).map(|(_, rest)| rest), rest, "{key}");
        }
    }

    #[test]
    fn the_bucket_of_an_archive_is_known_by_its_name() {
        for (archive, folder) in [
            (format!("s3://b/backups/{ID}/data.sqsh"), Some("s3://b")),
            (format!("s3://b/p/q/backups/{ID}/data.sqsh"), Some("s3://b/p/q")),
            (format!("/backups/{ID}/data.sqsh"), Some("")),
            (format!("/x/backups/{ID}/data.sqsh"), Some("/x")),
            (format!("s3://b/other/{ID}/data.sqsh"), None),
            (format!("s3://b/xbackups/{ID}/data.sqsh"), None),
            (format!("s3://b/backups/{}/data.sqsh", ID.to_uppercase()), None),
            ("s3://b/data.sqsh".into(), None),
        ] {
            assert_eq!(folder_of_archive(&archive), folder, "{archive}");
        }
    }

    #[test]
    fn a_trace_lies_beside_the_archive_of_a_backup_alone() {
        for (archive, trace) in [
            (format!("backups/{ID}/data.sqsh"), Some(format!("backups/{ID}/trace.json"))),
            (format!("p/q/{ID}/data.sqsh"), Some(format!("p/q/{ID}/trace.json"))),
            ("other/data.sqsh".into(), None),
            ("data.sqsh".into(), None),
            (format!("{ID}/other.sqsh"), None),
        ] {
            assert_eq!(trace_beside(&archive), trace, "{archive}");
        }
    }
}
