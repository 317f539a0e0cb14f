//! An answer that is no success, as the server put it.

use std::fmt;

/// By which right something was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// The request was signed with keys.
    Keys,
    /// By nobody's, as the user wished.
    Anonymous,
    /// What the URL holds: a signature, a user and password, or nothing.
    Url,
}

/// An answer that is no success, in the server's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Method and URL that were asked, without a signature; empty where the URL is the object's name.
    pub asked: String,
    /// HTTP status.
    pub status: u16,
    /// The server's error code, or the status with its name if it gave none.
    pub code: String,
    /// The server's explanation, empty if it gave none.
    pub message: String,
    /// By which right it was asked.
    pub right: Right,
    /// Whether the bucket's name is in the endpoint, too.
    pub bucket_twice: bool,
}

/// `CODE: "WORDS" (GET URL)`, the latter two if there are any.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.code, self.details())
    }
}

impl Refusal {
    /// What follows the code: the server's words, and what was asked.
    pub(super) fn details(&self) -> String {
        let Self { message, asked, .. } = self;
        let words = if message.is_empty() { String::new() } else { format!(": \"{message}\"") };
        let asked = if asked.is_empty() { String::new() } else { format!(" ({asked})") };
        words + &asked
    }
}
