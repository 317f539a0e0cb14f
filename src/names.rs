//! Names and words of others, on their way to a person or a program.
//!
//! What comes from an archive, a bucket, a server or a mount can hold bytes that a terminal obeys
//! instead of showing. [`printable`] is how all of it is shown, wherever a line ends up; only `ls` gives
//! names as they are, to a pipe or a file. In JSON a name that is not UTF-8 is a string with U+FFFD in it,
//! and beside it stands the name's bytes, in base64.

use std::fmt::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::de::Error as _;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serializer};

/// Whether a terminal may do something other than show this character: controls of both sets, what
/// turns the direction of writing, what ends a line in Unicode's eyes, and what is not to be seen at all
/// (but for the joiners, which some scripts cannot do without).
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{ad}' | '\u{180e}' | '\u{200b}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        || matches!(c, '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Bytes as a terminal shows them, on one line: `\n`, `\u{1b}`, `\u{202e}` for characters that it would
/// obey, `\xff` for what is not UTF-8.
pub(crate) fn printable(text: impl AsRef<[u8]>) -> String {
    let text = text.as_ref();
    let mut shown = String::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            match is_obeyed(c) {
                true => shown.extend(c.escape_default()),
                false => shown.push(c),
            }
        }
        for byte in chunk.invalid() {
            // Writing to a string does not fail.
            let _ = write!(shown, "\\x{byte:02x}");
        }
    }
    shown
}

/// A JSON document in which such characters are escaped, too: they stand in strings alone. JSON itself
/// asks for that in the first of the control sets only, which also holds the line ends between values.
pub(crate) fn printable_json(document: &str) -> String {
    let mut shown = String::with_capacity(document.len());
    for c in document.chars() {
        if is_obeyed(c) && c >= '\u{7f}' {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string does not fail.
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(c);
        }
    }
    shown
}

/// A path that is there, or one that may be.
pub(crate) trait MaybePath: Sized {
    /// The path, if there is one.
    fn path(&self) -> Option<&Path>;
    /// From what was read; `None` where there must be a path.
    fn read(path: Option<PathBuf>) -> Option<Self>;
}

impl MaybePath for PathBuf {
    fn path(&self) -> Option<&Path> {
        Some(self)
    }

    fn read(path: Option<PathBuf>) -> Option<Self> {
        path
    }
}

impl MaybePath for Option<PathBuf> {
    fn path(&self) -> Option<&Path> {
        self.as_deref()
    }

    fn read(path: Option<PathBuf>) -> Option<Self> {
        Some(path)
    }
}

fn serialize<S: Serializer>(
    keys: [&str; 2],
    path: Option<&Path>,
    to: S,
) -> Result<S::Ok, S::Error> {
    let [key, key_of_bytes] = keys;
    let mut map = to.serialize_map(None)?;
    map.serialize_entry(key, &path.map(Path::to_string_lossy))?;
    if let Some(path) = path.filter(|path| path.to_str().is_none()) {
        let bytes = BASE64_STANDARD.encode(path.as_os_str().as_bytes());
        map.serialize_entry(key_of_bytes, &bytes)?;
    }
    map.end()
}

/// Makes the module for the key `$key`, to be named in `#[serde(flatten, with = …)]`.
macro_rules! key {
    ($module:ident, $key:literal, $bytes:literal) => {
        #[doc = concat!("A path under `", $key, "`, and `", $bytes, "` where that does not tell all.")]
        pub(crate) mod $module {
            use super::*;

            /// Writes one or two entries.
            ///
            /// # Errors
            /// Those of the serializer.
            pub(crate) fn serialize<P: MaybePath, S: Serializer>(
                path: &P,
                to: S,
            ) -> Result<S::Ok, S::Error> {
                super::serialize([$key, $bytes], path.path(), to)
            }

            /// Reads them.
            ///
            /// # Errors
            /// Where there is no path and must be one, or its bytes are no base64.
            pub(crate) fn deserialize<'de, P: MaybePath, D: Deserializer<'de>>(
                from: D,
            ) -> Result<P, D::Error> {
                #[derive(Deserialize)]
                struct Pair {
                    #[serde(rename = $key, default)]
                    shown: Option<String>,
                    #[serde(rename = $bytes, default)]
                    bytes: Option<String>,
                }
                let Pair { shown, bytes } = Pair::deserialize(from)?;
                let path = match bytes {
                    None => shown.map(PathBuf::from),
                    Some(bytes) => {
                        let bytes = BASE64_STANDARD.decode(bytes).map_err(D::Error::custom)?;
                        Some(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
                    }
                };
                P::read(path).ok_or_else(|| D::Error::missing_field($key))
            }
        }
    };
}

key!(path, "path", "pathBase64");
key!(from, "from", "fromBase64");
key!(to, "to", "toBase64");
key!(target, "target", "targetBase64");
key!(mountpoint, "mountpoint", "mountpointBase64");
key!(upper, "upper", "upperBase64");
key!(workdir, "workdir", "workdirBase64");

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        for (text, shown) in [
            (&b"plain \xc3\xbc \\ ~"[..], "plain ü \\ ~"),
            (b"a\x1b[2J\r\n\t\x07\x7f\x00", "a\\u{1b}[2J\\r\\n\\t\\u{7}\\u{7f}\\u{0}"),
            ("\u{80}\u{9b}\u{9f}\u{a0}".as_bytes(), "\\u{80}\\u{9b}\\u{9f}\u{a0}"),
            (b"\xff\x9bx\xe2\x80", "\\xff\\x9bx\\xe2\\x80"),
        ] {
            assert_eq!(printable(text), shown);
        }
        // The boundaries of each range, and all that turns the direction of writing.
        let turning = "\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2066}\u{2069}";
        let unseen = "\u{ad}\u{180e}\u{200b}\u{2060}\u{206f}\u{feff}\u{fff9}\u{fffb}";
        for c in turning.chars().chain(unseen.chars()) {
            let text = c.to_string();
            assert_eq!(printable(&text), format!("\\u{{{:x}}}", u32::from(c)));
            assert_eq!(printable_json(&text), format!("\\u{:04x}", u32::from(c)));
        }
        assert_eq!(printable("\u{e0000}\u{e007f}"), "\\u{e0000}\\u{e007f}");
        assert_eq!(printable_json("\u{e0041}"), "\\udb40\\udc41");
        let shown = "\u{61b}\u{61d}\u{200c}\u{200d}\u{2010}\u{2027}\u{202f}\u{205f}\u{2070} \u{ac}\u{ae}\
                     \u{fefe}\u{ff01}\u{fff8}\u{fffc}\u{e0080}";
        assert_eq!(printable(shown), shown);
    }

    #[test]
    fn json_stays_the_same_document() {
        let value = serde_json::json!({"k\u{9b}": ["\u{202e}\u{7f}\u{1b}ü", 1]});
        let text = printable_json(&serde_json::to_string_pretty(&value).unwrap());
        assert_eq!(printable(text.replace('\n', "")), text.replace('\n', ""));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Both {
        #[serde(flatten, with = "mountpoint")]
        mountpoint: PathBuf,
        pid: u32,
        #[serde(flatten, with = "upper")]
        upper: Option<PathBuf>,
    }

    #[test]
    fn a_path_survives_json_whatever_its_bytes() {
        let odd = PathBuf::from(std::ffi::OsString::from_vec(b"/m\xff".to_vec()));
        for (mountpoint, upper, json) in [
            ("/m".into(), None, r#"{"mountpoint":"/m","pid":1,"upper":null}"#),
            (
                odd.clone(),
                Some(odd),
                "{\"mountpoint\":\"/m\u{fffd}\",\"mountpointBase64\":\"L23/\",\"pid\":1,\
                 \"upper\":\"/m\u{fffd}\",\"upperBase64\":\"L23/\"}",
            ),
        ] {
            let both = Both { mountpoint, pid: 1, upper };
            assert_eq!(serde_json::to_string(&both).unwrap(), json);
            assert_eq!(serde_json::from_str::<Both>(json).unwrap(), both);
        }
        let missing = serde_json::from_str::<Both>("{\"pid\": 1}").unwrap_err().to_string();
        assert!(missing.contains("mountpoint"), "{missing}");
    }
}
