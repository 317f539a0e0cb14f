//! The way through a listing, page after page.

use std::collections::HashSet;

use twox_hash::XxHash3_128;

use super::{Error, Result};

/// Where a listing goes on. It ends at the last page, and with an error where it comes back to a page
/// that was there before: it would never end, and who deletes by it would count things twice.
#[derive(Debug, Default)]
pub struct Pages {
    turned: bool,
    token: Option<String>,
    /// Hashes of the tokens so far: 16 bytes for each page of a thousand objects.
    seen: HashSet<u128>,
}

impl Pages {
    /// What to ask for next, `None` behind the last page. The first page has no token.
    pub fn next(&self) -> Option<Option<&str>> {
        match (self.turned, self.token.as_deref()) {
            (true, None) => None,
            (_, token) => Some(token),
        }
    }

    /// Notes what a page of the listing of `object` says about the next one.
    ///
    /// # Errors
    /// [`Error::BadAnswer`] where that is a page that was asked for already.
    pub fn turn(&mut self, object: &str, next: Option<String>) -> Result<()> {
        let is_new = next.as_ref().is_none_or(|token| {
            !token.is_empty() && self.seen.insert(XxHash3_128::oneshot(token.as_bytes()))
        });
        (self.turned, self.token) = (true, next);
        match is_new {
            true => Ok(()),
            false => {
                // Whoever goes on in spite of the error comes to an end.
                self.token = None;
                let reason = "a listing that comes back to where it was".into();
                Err(Error::BadAnswer { object: object.into(), reason })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tokens that are asked for, and whether the listing ended well.
    fn walk(mut answers: impl FnMut(Option<&str>) -> Option<&'static str>) -> (Vec<String>, bool) {
        let (mut pages, mut asked) = (Pages::default(), Vec::new());
        while let Some(token) = pages.next() {
            asked.push(token.unwrap_or("-").to_owned());
            let next = answers(token).map(str::to_owned);
            if pages.turn("s3://b/", next).is_err() {
                assert_eq!(pages.next(), None);
                return (asked, false);
            }
        }
        (asked, true)
    }

    #[test]
    fn no_page_is_asked_for_twice() {
        for (name, steps, asked, ends) in [
            ("one page", &[("-", None)][..], &["-"][..], true),
            ("three", &[("-", Some("a")), ("a", Some("b")), ("b", None)], &["-", "a", "b"], true),
            ("the second again", &[("-", Some("a")), ("a", Some("a"))], &["-", "a"], false),
            (
                "a circle",
                &[("-", Some("a")), ("a", Some("b")), ("b", Some("c")), ("c", Some("a"))],
                &["-", "a", "b", "c"],
                false,
            ),
            // To a server this is the first page.
            ("an empty token", &[("-", Some(""))], &["-"], false),
        ] {
            let next = |token: Option<&str>| {
                let token = token.unwrap_or("-");
                steps.iter().find(|(from, _)| *from == token).and_then(|(_, to)| *to)
            };
            let (found, ended) = walk(next);
            assert_eq!(
                (found, ended),
                (asked.iter().map(|&t| t.to_owned()).collect(), ends),
                "{name}"
            );
        }
    }
}
