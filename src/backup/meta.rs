//! `meta.json`: what is known of a backup beside its archive.

use chrono::{DateTime, SecondsFormat, SubsecRound, TimeDelta, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::fields::{check_dir, invalid};
use super::id::{BackupId, Handle};
use crate::failure::{Code, Failure};

/// Longest name, in UTF-16 units, as the SDK counts.
const MAX_NAME: usize = 256;

/// The contents of `meta.json`, with exactly its keys in their order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Which backup.
    pub id: BackupId,
    /// Absolute path of the directory that was backed up.
    pub dir: String,
    /// What it is called, if anything.
    #[serde(default, deserialize_with = "empty_is_none")]
    pub name: Option<String>,
    /// Size of the archive in bytes; 0 where it does not say.
    #[serde(default, deserialize_with = "read_size")]
    pub size_bytes: u64,
    /// Lifetime in seconds. Of a fraction the whole second counts.
    #[serde(deserialize_with = "read_ttl")]
    pub ttl: u64,
    /// When it was made.
    #[serde(serialize_with = "write_time", deserialize_with = "read_time")]
    pub created_at: DateTime<Utc>,
}

impl Metadata {
    /// Lifetime of a backup for which none was asked, in seconds: three days.
    pub const DEFAULT_TTL: u64 = 259_200;

    /// Most bytes a `meta.json` may have. Ours have 9 KiB at most; others may have keys besides.
    pub const MAX_BYTES: u64 = 64 << 10;

    /// How long before its end a backup counts as expired, in seconds: a restore that starts now
    /// must be able to read for a while.
    const MARGIN: i64 = 60;

    /// For a new backup. An empty name counts as none.
    ///
    /// # Errors
    /// [`Code::InvalidBackupConfig`] for a directory that is not absolute, has a `..` segment or a
    /// NUL or is over 4096 bytes, a name of over 256 UTF-16 units or with control characters, and a
    /// lifetime of 0.
    pub fn new(
        id: BackupId,
        dir: &str,
        name: Option<&str>,
        size_bytes: u64,
        ttl: u64,
        created_at: DateTime<Utc>,
    ) -> Result<Self, Failure> {
        check_dir(dir).map_err(|reason| invalid("directory", dir, reason))?;
        let name = name.filter(|name| !name.is_empty());
        if let Some(name) = name {
            check_name(name).map_err(|reason| invalid("name", name, reason))?;
        }
        if ttl == 0 {
            return Err(invalid("lifetime", "0", "must be at least one second"));
        }
        let (dir, name) = (dir.to_owned(), name.map(str::to_owned));
        // As it is stored.
        let created_at = created_at.trunc_subsecs(3);
        Ok(Self { id, dir, name, size_bytes, ttl, created_at })
    }

    /// Reads a `meta.json` that lies beside the archive of backup `id`. Unknown keys, a missing name or
    /// size, a lifetime of any length and any form of RFC 3339 are accepted: the SDK looks at lifetime and
    /// time alone.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(json: &[u8], id: &BackupId) -> Result<Self, String> {
        let metadata: Self = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if metadata.id != *id {
            return Err(format!("it is that of backup {}", metadata.id));
        }
        check_dir(&metadata.dir).map_err(|reason| format!("its dir {reason}"))?;
        Ok(metadata)
    }

    /// As it is stored.
    ///
    /// # Errors
    /// None that is known: [`Code::Failed`] should serialising fail.
    pub fn to_json(&self) -> Result<Vec<u8>, Failure> {
        serde_json::to_vec(self).map_err(|error| {
            Failure::new(Code::Failed, format!("metadata of {}: {error}", self.id))
        })
    }

    /// What a restore takes.
    pub fn handle(&self) -> Handle {
        Handle { id: self.id.clone(), dir: self.dir.clone() }
    }

    /// When its lifetime ends; `None` where no calendar reaches that far.
    pub fn expires_at(&self) -> Option<DateTime<Utc>> {
        let ttl = TimeDelta::try_seconds(i64::try_from(self.ttl).ok()?)?;
        self.created_at.checked_add_signed(ttl)
    }

    /// Whether `now` is less than a minute before the end of its lifetime, or past it.
    pub fn is_expired(&self, now: DateTime<Utc>) -> bool {
        let Some(margin) = now.checked_add_signed(TimeDelta::seconds(Self::MARGIN)) else {
            return true;
        };
        self.expires_at().is_some_and(|end| margin > end)
    }
}

/// Whether a name may be a backup's, and else what it has to be.
pub(crate) fn check_name(name: &str) -> Result<(), &'static str> {
    check_name_length(name)?;
    if name.chars().any(char::is_control) {
        return Err("must hold no control characters");
    }
    Ok(())
}

/// Whether a name is as short as one has to be.
pub(crate) fn check_name_length(name: &str) -> Result<(), &'static str> {
    match name.encode_utf16().count() > MAX_NAME {
        true => Err("must have at most 256 characters"),
        false => Ok(()),
    }
}

fn empty_is_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.filter(|name| !name.is_empty()))
}

/// A size that can be one; anything else says none.
fn read_size<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let size = serde_json::Value::deserialize(from)?;
    let whole = |size: &f64| size.fract() == 0.0 && (0.0..MOST_EXACT).contains(size);
    Ok(size.as_u64().or_else(|| size.as_f64().filter(whole).map(|size| size as u64)).unwrap_or(0))
}

/// Below this, a JSON number of JavaScript's is exact.
const MOST_EXACT: f64 = (1_u64 << 53) as f64;

/// A number of seconds: with a fraction, or beyond all integers.
fn read_ttl<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let ttl = serde_json::Number::deserialize(from)?;
    match (ttl.as_u64(), ttl.as_f64()) {
        (Some(ttl), _) => Ok(ttl),
        // Casting stops at the largest there is.
        (None, Some(ttl)) if ttl >= 0.0 => Ok(ttl.ceil() as u64),
        (None, _) => Err(serde::de::Error::custom(format!("invalid value: a ttl of {ttl}"))),
    }
}

fn write_time<S: Serializer>(time: &DateTime<Utc>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Millis, true))
}

fn read_time<'de, D: Deserializer<'de>>(from: D) -> Result<DateTime<Utc>, D::Error> {
    let text = String::deserialize(from)?;
    let parsed = DateTime::parse_from_rfc3339(&text)
        .map_err(|_| serde::de::Error::custom(format!("{text:?} is no ISO 8601 time")))?;
    Ok(parsed.to_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0b7a5c1e-6f0d-4c43-9d0c-2f1f8f1a9e77";

    fn time(text: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(text).unwrap().to_utc()
    }

    fn made(dir: &str, name: Option<&str>, ttl: u64) -> Result<Metadata, Failure> {
        Metadata::new(ID.parse().unwrap(), dir, name, 77, ttl, time("2026-01-02T03:04:05.678Z"))
    }

    #[test]
    fn it_is_written_with_exactly_the_keys_of_the_contract() {
        let text =
            |name| String::from_utf8(made("/w/x", name, 60).unwrap().to_json().unwrap()).unwrap();
        let rest = r#""sizeBytes":77,"ttl":60,"createdAt":"2026-01-02T03:04:05.678Z"}"#;
        let start = format!(r#"{{"id":"{ID}","dir":"/w/x","name":"#);
        assert_eq!(text(Some("nightly")), format!(r#"{start}"nightly",{rest}"#));
        assert_eq!(text(None), format!("{start}null,{rest}"));
        assert_eq!(text(Some("")), format!("{start}null,{rest}"));
    }

    #[test]
    fn reading_tolerates_what_others_write_and_refuses_what_misleads() {
        let id: BackupId = ID.parse().unwrap();
        let json = |dir: &str, rest: &str| {
            format!(
                r#"{{"more":[1],"id":"{}","dir":"{dir}","sizeBytes":77,"ttl":60{rest}}}"#,
                ID.to_ascii_uppercase()
            )
        };
        let created = r#","createdAt":"2026-01-02T05:04:05.678+02:00""#;
        for name in ["", r#","name":null"#, r#","name":"""#] {
            let read = Metadata::parse(json("/w/x", &format!("{created}{name}")).as_bytes(), &id);
            assert_eq!(read.unwrap(), made("/w/x", None, 60).unwrap(), "{name}");
        }
        let other: BackupId = ID.replace('0', "1").parse().unwrap();
        for (json, id, reason) in [
            (json("/w/x", created), &other, "that of backup 0b7a"),
            (json("/w/../x", created), &id, "its dir must have no .."),
            (json("w", created), &id, "its dir must be an absolute path"),
            (json("/w", ""), &id, "missing field `createdAt`"),
            (json("/w", r#","createdAt":"yesterday""#), &id, "no ISO 8601 time"),
            (json("/w", created).replace("60", "-60"), &id, "invalid value"),
            ("[".into(), &id, "EOF"),
        ] {
            let error = Metadata::parse(json.as_bytes(), id).unwrap_err();
            assert!(error.contains(reason), "{json}: {error}");
        }
    }

    #[test]
    fn what_a_backup_may_be_called_is_bounded() {
        let (long_dir, long_name) = (format!("/{}", "d".repeat(4096)), "n".repeat(257));
        let surrogates = "😀".repeat(129);
        for (dir, name, ttl, reason) in [
            ("w", None, 1, "directory must be an absolute path"),
            ("", None, 1, "directory must be an absolute path"),
            ("/w/..", None, 1, "directory must have no .."),
            ("/w\0", None, 1, "directory must not hold a NUL"),
            (&long_dir, None, 1, "directory must have at most"),
            ("/w", Some(long_name.as_str()), 1, "name must have at most"),
            ("/w", Some(&surrogates), 1, "name must have at most"),
            ("/w", Some("a\nb"), 1, "name must hold no control"),
            ("/w", Some("a\x7fb"), 1, "name must hold no control"),
            ("/w", Some("a\u{80}b"), 1, "name must hold no control"),
            ("/w", Some("\u{9f}"), 1, "name must hold no control"),
            ("/w", None, 0, "lifetime must be at least"),
        ] {
            let failure = made(dir, name, ttl).unwrap_err();
            assert_eq!(failure.code, Code::InvalidBackupConfig);
            assert!(failure.message.contains(reason), "{}", failure.message);
        }
        made(&long_dir[..4096], Some(&surrogates[..512]), u64::MAX).unwrap();
        made("/..w/...", Some("ü: ok"), 1).unwrap();
    }

    #[test]
    fn it_expires_a_minute_early() {
        // Made at 03:04:05.678 for an hour.
        let metadata = made("/w", None, 3600).unwrap();
        for (now, expired) in [
            ("2026-01-02T03:04:05.678Z", false),
            ("2026-01-02T04:03:05.678Z", false),
            ("2026-01-02T04:03:05.679Z", true),
            ("2026-01-02T04:04:06Z", true),
        ] {
            assert_eq!(metadata.is_expired(time(now)), expired, "{now}");
        }
        let forever = made("/w", None, u64::MAX).unwrap();
        assert_eq!(forever.expires_at(), None);
        assert!(!forever.is_expired(time("2126-01-01T00:00:00Z")));
    }
}
