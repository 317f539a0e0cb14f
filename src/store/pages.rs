//! The way through a listing, page after page.

use std::collections::HashSet;

use twox_hash::XxHash3_128;

use super::{Error, Result};

/// Most pages in a row with nothing on them. A store may send some, having looked at what it does not list.
const EMPTY: usize = 1000;

/// Where a listing goes on. It ends at the last page, and with an error where it does not advance: it
/// comes back to a page that was there before, to a name that is not behind those of the page before, or
/// to nothing again and again. It would never end, and who deletes by it would count things twice.
#[derive(Debug, Default)]
pub struct Pages {
    turned: bool,
    token: Option<String>,
    /// Hashes of the tokens so far: 16 bytes for each page of a thousand objects.
    seen: HashSet<u128>,
    /// The last name so far; listings have them in the order of their bytes.
    last: Option<String>,
    /// How many pages without a name came last.
    empty: usize,
}

impl Pages {
    /// What to ask for next, `None` behind the last page. The first page has no token.
    pub fn next(&self) -> Option<Option<&str>> {
        match (self.turned, self.token.as_deref()) {
            (true, None) => None,
            (_, token) => Some(token),
        }
    }

    /// Notes the names on a page of the listing of `object`, and what it says about the next one.
    ///
    /// # Errors
    /// [`Error::BadAnswer`] where that is a page that was asked for already, or the listing does not
    /// advance.
    pub fn turn<'a>(
        &mut self,
        object: &str,
        names: impl Iterator<Item = &'a str>,
        next: Option<String>,
    ) -> Result<()> {
        let advances = self.advance(names);
        self.turn_if(object, advances, next)
    }

    /// As [`Self::turn`] for a page of uploads, `first` being the first one's key and id, if there is one.
    /// A key may have several of them, whose order is not told.
    ///
    /// # Errors
    /// As [`Self::turn`].
    pub fn turn_uploads(
        &mut self,
        object: &str,
        first: Option<(&str, &str)>,
        next: Option<String>,
    ) -> Result<()> {
        self.empty = if first.is_some() { 0 } else { self.empty + 1 };
        // No token has a NUL.
        let is_new = first.is_none_or(|(key, id)| {
            self.seen.insert(XxHash3_128::oneshot(format!("{key}\0{id}").as_bytes()))
        });
        self.turn_if(object, is_new, next)
    }

    fn turn_if(&mut self, object: &str, advances: bool, next: Option<String>) -> Result<()> {
        let is_new = next.as_ref().is_none_or(|token| {
            !token.is_empty() && self.seen.insert(XxHash3_128::oneshot(token.as_bytes()))
        });
        (self.turned, self.token) = (true, next);
        let reason = match (is_new, advances) {
            (true, true) if self.empty <= EMPTY => return Ok(()),
            (true, true) => "a listing with nothing on page after page",
            (true, false) => "a listing that does not advance",
            (false, _) => "a listing that comes back to where it was",
        };
        // Whoever goes on in spite of the error comes to an end.
        self.token = None;
        Err(Error::BadAnswer { object: object.into(), reason: reason.into() })
    }

    /// Whether the names on a page are behind those before.
    fn advance<'a>(&mut self, names: impl Iterator<Item = &'a str>) -> bool {
        let Some((first, last)) = names.fold(None, |span, name| match span {
            None => Some((name, name)),
            Some((first, last)) => Some((name.min(first), name.max(last))),
        }) else {
            self.empty += 1;
            return true;
        };
        let advances = self.last.as_deref().is_none_or(|before| first > before);
        self.empty = 0;
        self.last = Some(last.to_owned());
        advances
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
            let name = format!("{:03}", asked.len());
            if pages.turn("s3://b/", [name.as_str()].into_iter(), next).is_err() {
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
    #[test]
    fn every_page_goes_on_behind_the_one_before() {
        let walk = |names: &[&[&str]]| {
            let mut pages = Pages::default();
            let ended = names.iter().enumerate().map(|(number, names)| {
                pages.turn("s3://b/", names.iter().copied(), Some(number.to_string())).is_ok()
            });
            ended.take_while(|went_on| *went_on).count()
        };
        for (pages, good) in [
            (&[&["a", "b"][..], &["c"], &["d"]][..], 3),
            (&[&["a", "b"], &["b", "c"]], 1),
            (&[&["a"], &["a"]], 1),
            (&[&["b"], &["a", "c"]], 1),
            // Objects and prefixes come apart.
            (&[&["b", "a"], &["c"]], 2),
            (&[&["a"], &[], &["b"]], 3),
            (&[&["a"], &[], &["a"]], 2),
            (&[&[""], &["a"], &["B"]], 2),
        ] {
            assert_eq!(walk(pages), good, "{pages:?}");
        }
        let empty: Vec<&[&str]> = vec![&[]; EMPTY + 2];
        assert_eq!(walk(&empty[..EMPTY - 1]), EMPTY - 1);
        assert_eq!(walk(&empty), EMPTY);
    }
}
