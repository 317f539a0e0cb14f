//! Cursors, for commands that ask what has changed since.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::failure::{Code, Failure};
use crate::watch::Cursor;

/// How far ahead of this machine's clock a cursor may be.
const CLOCK_SECONDS: u64 = 2;

/// Checks that a cursor is of a moment that has been.
pub(super) fn check_cursor(cursor: Option<&Cursor>) -> Result<(), Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let is_ahead = |cursor: &Cursor| {
        u64::try_from(cursor.at.seconds).is_ok_and(|seconds| seconds > now + CLOCK_SECONDS)
    };
    match cursor.is_some_and(is_ahead) {
        false => Ok(()),
        true => Err(Failure::new(Code::Usage, "the cursor is of a moment that is yet to come")
            .hint("take one that was printed on this machine")),
    }
}
