//! Messages of the package `filesystem`, as protobuf's JSON has them: camel case, defaults left out, 64 bits as a
//! string. Requests are read in snake case, too, and their numbers however that may write them.

use std::collections::BTreeMap;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Number, Value};

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct WatchRequest {
    pub(super) path: String,
    pub(super) recursive: bool,
    #[serde(alias = "include_entry")]
    pub(super) include_entry: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct WatcherRequest {
    #[serde(alias = "watcher_id")]
    pub(super) watcher_id: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PathRequest {
    pub(super) path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ListRequest {
    pub(super) path: String,
    /// 0 is 1.
    #[serde(deserialize_with = "integer")]
    pub(super) depth: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct MoveRequest {
    pub(super) source: String,
    pub(super) destination: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Nothing {}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WatcherAnswer {
    pub(super) watcher_id: String,
}

#[derive(Debug, Serialize)]
pub(super) struct EventsAnswer {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) events: Vec<FilesystemEvent>,
}

#[derive(Debug, Serialize)]
pub(super) struct EntryAnswer {
    pub(super) entry: EntryInfo,
}

/// A message of a stream of events.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum WatchAnswer {
    Start(Nothing),
    Filesystem(Box<FilesystemEvent>),
    Keepalive(Nothing),
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct FilesystemEvent {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) what: EventType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) entry: Option<EntryInfo>,
}

impl FilesystemEvent {
    /// The bytes of the names in it, some of which stand in it twice.
    pub(super) fn bytes(&self) -> usize {
        self.name.len() + self.entry.as_ref().map_or(0, |entry| entry.path.len() + entry.name.len())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum EventType {
    #[serde(rename = "EVENT_TYPE_CREATE")]
    Create,
    #[serde(rename = "EVENT_TYPE_WRITE")]
    Write,
    #[serde(rename = "EVENT_TYPE_REMOVE")]
    Remove,
    #[serde(rename = "EVENT_TYPE_RENAME")]
    Rename,
    #[serde(rename = "EVENT_TYPE_CHMOD")]
    Chmod,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) enum FileType {
    /// None of the others: a device, a socket, a pipe.
    #[default]
    #[serde(rename = "FILE_TYPE_UNSPECIFIED")]
    Unspecified,
    #[serde(rename = "FILE_TYPE_FILE")]
    File,
    #[serde(rename = "FILE_TYPE_DIRECTORY")]
    Directory,
    #[serde(rename = "FILE_TYPE_SYMLINK")]
    Symlink,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EntryInfo {
    #[serde(skip_serializing_if = "is_default")]
    pub(super) name: String,
    #[serde(rename = "type", skip_serializing_if = "is_default")]
    pub(super) kind: FileType,
    #[serde(skip_serializing_if = "is_default")]
    pub(super) path: String,
    #[serde(skip_serializing_if = "is_default", serialize_with = "as_string")]
    pub(super) size: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub(super) mode: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub(super) permissions: String,
    #[serde(skip_serializing_if = "is_default")]
    pub(super) owner: String,
    #[serde(skip_serializing_if = "is_default")]
    pub(super) group: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) modified_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) symlink_target: Option<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub(super) metadata: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "is_default")]
    pub(super) is_symlink: bool,
}

/// A number of 32 bits, which may be a string, or have an exponent, or a fraction of nothing: `3`, `"3"`, `3.0`, `0.3e1`.
fn integer<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    let value = Value::deserialize(from)?;
    let number = match &value {
        Value::Number(number) => Some(number.clone()),
        Value::String(text) if !text.contains(char::is_whitespace) => {
            serde_json::from_str::<Number>(text).ok()
        }
        _ => None,
    };
    // Each number of 32 bits is one of these, too.
    let number = number.and_then(|number| number.as_f64());
    let whole = number.filter(|it| it.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(it));
    whole.map(|whole| whole as u32).ok_or_else(|| {
        Error::custom(format_args!("{value} is no whole number from 0 to {}", u32::MAX))
    })
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn as_string<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_may_be_written_as_protobuf_s_json_has_it() {
        let parsed = |text: &str| {
            let request: Result<ListRequest, _> =
                serde_json::from_str(&format!("{{\"depth\":{text}}}"));
            request.ok().map(|request| request.depth)
        };
        for (text, number) in [
            ("3", 3),
            ("\"3\"", 3),
            ("3.0", 3),
            ("\"3.0\"", 3),
            ("1e0", 1),
            ("0.3E+1", 3),
            ("\"30e-1\"", 3),
            ("0", 0),
            ("-0", 0),
            ("4294967295", u32::MAX),
            ("\"4294967295\"", u32::MAX),
            ("4294967295.0", u32::MAX),
        ] {
            assert_eq!(parsed(text), Some(number), "{text}");
        }
        for odd in [
            "-1",
            "\"-1\"",
            "4294967296",
            "\"4294967296\"",
            "1e10",
            "1e400",
            "0.5",
            "\"0.5\"",
            "\"\"",
            "\" 3\"",
            "\"3 \"",
            "\"3\\n\"",
            "\"0x3\"",
            "\"03\"",
            "\"+3\"",
            "\"x\"",
            "\"NaN\"",
            "\"Infinity\"",
            "true",
            "[]",
            "[3]",
            "{}",
        ] {
            assert_eq!(parsed(odd), None, "{odd}");
        }
    }

    #[test]
    fn defaults_are_left_out_and_64_bits_are_a_string() {
        let shown = |entry: &EntryInfo| serde_json::to_string(entry).unwrap();
        assert_eq!(shown(&EntryInfo::default()), "{}");
        let entry = EntryInfo {
            size: u64::MAX,
            kind: FileType::Symlink,
            symlink_target: Some(String::new()),
            is_symlink: true,
            ..EntryInfo::default()
        };
        assert_eq!(
            shown(&entry),
            r#"{"type":"FILE_TYPE_SYMLINK","size":"18446744073709551615","symlinkTarget":"","isSymlink":true}"#
        );
        let keepalive = serde_json::to_string(&WatchAnswer::Keepalive(Nothing {})).unwrap();
        assert_eq!(keepalive, r#"{"keepalive":{}}"#);
    }
}
