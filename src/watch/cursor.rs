//! A place in a log, as text that outlives the program.

use std::fmt;
use std::str::FromStr;

use crate::types::Timestamp;

/// A place in a log of changes: behind one change and before the next. Its text is
/// `LIFE-SEQUENCE-SECONDS.NANOSECONDS`, the first in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Which life of which log it is of.
    pub life: u64,
    /// The sequence number of the last change before it; 0 where there was none.
    pub sequence: u64,
    /// A moment by which nothing had happened that comes after it in the log.
    pub at: Timestamp,
}

/// A text that is no cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor: those that are printed look like 6f1c0a3b9d2e4f58-42-1767225600.123456789")]
pub struct NotACursor;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { life, sequence, at } = self;
        write!(f, "{life:016x}-{sequence}-{}.{:09}", at.seconds, at.nanos)
    }
}

impl FromStr for Cursor {
    type Err = NotACursor;

    fn from_str(text: &str) -> Result<Self, NotACursor> {
        let parse = || {
            let mut parts = text.splitn(3, '-');
            let life = parts.next().filter(|life| life.len() == 16)?;
            let (sequence, at) = (parts.next()?, parts.next()?);
            let (seconds, nanos) = at.split_once('.').filter(|(_, nanos)| nanos.len() == 9)?;
            // `from_str_radix` and `parse` take a sign, too.
            let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
            if ![life, sequence, nanos, seconds.trim_start_matches('-')].into_iter().all(digits) {
                return None;
            }
            let at = Timestamp { seconds: seconds.parse().ok()?, nanos: nanos.parse().ok()? };
            let life = u64::from_str_radix(life, 16).ok()?;
            Some(Self { life, sequence: sequence.parse().ok()?, at })
        };
        parse().ok_or(NotACursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_is_written() {
        for (life, sequence, seconds, nanos) in [
            (0, 0, 0, 0),
            (1, 1, 1, 1),
            (u64::MAX, u64::MAX, i64::MAX, 999_999_999),
            (0x6f1c, 42, -5, 7),
        ] {
            let cursor = Cursor { life, sequence, at: Timestamp { seconds, nanos } };
            assert_eq!(cursor.to_string().parse(), Ok(cursor), "{cursor}");
        }
    }

    #[test]
    fn other_texts_are_none() {
        for text in [
            "",
            "0",
            "-",
            "--",
            "1-2-3.000000000",
            "0000000000000001-2-3",
            "0000000000000001-2-3.5",
            "0000000000000001--3.000000000",
            "0000000000000001-2-.000000000",
            "0000000000000001-+2-3.000000000",
            "0000000000000001-2-3.+00000000",
            "+000000000000001-2-3.000000000",
            "0000000000000001-18446744073709551616-3.000000000",
            "0000000000000001-2-3.000000000-",
            "000000000000000g-2-3.000000000",
        ] {
            assert_eq!(text.parse::<Cursor>(), Err(NotACursor), "{text}");
        }
    }
}
