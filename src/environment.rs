//! The environment variables that the program looks at, read in this one place.
//!
//! A variable that is set to nothing counts as one that is not set, as `NAME= thawfs …` is how a shell
//! takes one back for a single command.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

/// Environment variables, taken once so that tests can bring their own.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// Those of this process.
    #[allow(clippy::disallowed_methods, reason = "this is the place")]
    pub fn of_process() -> Self {
        std::env::vars_os().collect()
    }

    /// Value of a variable as text; one that is not UTF-8 is left out.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.bytes(name)?.to_str()
    }

    /// Value of a variable as a path.
    pub fn path(&self, name: &str) -> Option<&Path> {
        self.bytes(name).map(Path::new)
    }

    fn bytes(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// Whether a variable says `true`, in any case, as AWS's tools read theirs; `None` if it is not set.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.get(name).map(|value| value.eq_ignore_ascii_case("true"))
    }

    /// A directory of the XDG base directory specification, which says that a relative one does not
    /// count. `None` without a home.
    pub fn base_directory(&self, name: &str, below_home: &str) -> Option<PathBuf> {
        let absolute = |path: &&Path| path.is_absolute();
        let named = self.path(name).filter(absolute).map(Path::to_owned);
        named.or_else(|| Some(self.path("HOME").filter(absolute)?.join(below_home)))
    }

    /// All variables with a value that start with `AWS_`.
    pub fn aws(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .keys()
            .filter_map(|name| name.to_str())
            .filter(|name| name.starts_with("AWS_"))
            .filter_map(|name| Some((name, self.get(name)?)))
    }
}

impl<N: Into<OsString>, V: Into<OsString>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// Names only: the values hold secrets.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn what_is_set_to_nothing_is_not_set() {
        let odd = OsStr::from_bytes(b"/a\xff");
        let environment: Environment =
            [("AWS_A", OsStr::new("")), ("AWS_B", OsStr::new("b")), ("C", odd)]
                .into_iter()
                .collect();
        assert_eq!(environment.get("AWS_A"), None);
        assert_eq!(environment.path("AWS_A"), None);
        assert_eq!(environment.flag("AWS_A"), None);
        assert_eq!(environment.aws().collect::<Vec<_>>(), [("AWS_B", "b")]);
        assert_eq!((environment.get("C"), environment.path("C")), (None, Some(Path::new(odd))));
    }

    #[test]
    fn a_base_directory_is_absolute_or_below_home() {
        for (variables, expected) in [
            (vec![("X", "/x"), ("HOME", "/h")], Some("/x")),
            (vec![("X", ""), ("HOME", "/h")], Some("/h/.x")),
            (vec![("X", "x"), ("HOME", "/h")], Some("/h/.x")),
            (vec![("HOME", "h")], None),
            (vec![], None),
        ] {
            let environment: Environment = variables.iter().copied().collect();
            let found = environment.base_directory("X", ".x");
            assert_eq!(found.as_deref(), expected.map(Path::new), "{variables:?}");
        }
    }
}
