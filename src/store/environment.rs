//! The environment variables a store looks at.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// The `AWS_*` variables and `HOME`, taken once so that tests can bring their own.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Those of this process. Values that are not UTF-8 are left out.
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// Value of a variable; an empty one counts as unset.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// All variables that start with `AWS_`.
    pub(super) fn aws(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .filter(|(key, _)| key.starts_with("AWS_"))
    }

    /// A file of `~/.aws`, or where `variable` says it is.
    pub(super) fn aws_file(&self, variable: &str, name: &str) -> Option<PathBuf> {
        match self.get(variable) {
            Some(path) => Some(PathBuf::from(path)),
            None => Some(PathBuf::from(self.get("HOME")?).join(".aws").join(name)),
        }
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        Self(
            variables
                .into_iter()
                .map(|(key, value)| (key.into(), value.into()))
                .filter(|(key, _)| key == "HOME" || key.starts_with("AWS_"))
                .collect(),
        )
    }
}

/// Names only: the values hold secrets.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
