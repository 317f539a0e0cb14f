//! The configuration file: the bucket named once, so that no command has to.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::environment::Environment;
use crate::failure::{Code, Failure};
use crate::store::r2::Jurisdiction;

/// Where the file is for everybody.
const SYSTEM: &str = "/etc/thawfs/config.toml";

/// What `config.toml` may say. A key that is none of these is an error: it would else be a setting
/// that quietly does nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// See [`super::BucketRequest::bucket`].
    pub bucket: Option<String>,
    /// See [`crate::store::Access::endpoint`].
    pub endpoint: Option<String>,
    /// See [`crate::store::Access::region`].
    pub region: Option<String>,
    /// See [`crate::store::Access::profile`].
    pub profile: Option<String>,
    /// See [`super::BucketRequest::account_id`].
    pub account_id: Option<String>,
    /// See [`super::BucketRequest::jurisdiction`].
    pub jurisdiction: Option<Jurisdiction>,
    /// See [`crate::store::Access::anonymous`].
    #[serde(default)]
    pub anonymous: bool,
    /// See [`crate::store::Access::virtual_host_style`].
    #[serde(default)]
    pub virtual_host_style: bool,
}

impl Config {
    /// Reads `$XDG_CONFIG_HOME/thawfs/config.toml` (`~/.config` by default) or, where there is
    /// none, `/etc/thawfs/config.toml`. Without either it is empty.
    ///
    /// # Errors
    /// [`Code::InvalidBackupConfig`] with file and line.
    pub fn read(environment: &Environment) -> Result<Self, Failure> {
        let own = environment
            .base_directory("XDG_CONFIG_HOME", ".config")
            .map(|directory| directory.join("thawfs/config.toml"));
        for path in own.into_iter().chain([PathBuf::from(SYSTEM)]) {
            match std::fs::read_to_string(&path) {
                Ok(text) => return Self::parse(&text, &path),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    let message = format!("cannot read {}: {error}", path.display());
                    return Err(Failure::new(Code::InvalidBackupConfig, message));
                }
            }
        }
        Ok(Self::default())
    }

    /// Parses the text of the file at `path`.
    fn parse(text: &str, path: &Path) -> Result<Self, Failure> {
        toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let reason = error.message().replace('\n', ", ");
            let message = format!("{}:{line}: {reason}", path.display());
            Failure::new(Code::InvalidBackupConfig, message)
                .hint("docs/CONFIGURATION.md lists the keys")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read() {
        let text = "bucket = \"s3://b/p\" # ours\nendpoint = \"https://e\"\nregion = \"r\"\n\
                    profile = \"p\"\naccount_id = \"a\"\njurisdiction = \"fedramp\"\n\
                    anonymous = true\nvirtual_host_style = true\n";
        let some = |text: &str| Some(text.to_owned());
        let expected = Config {
            bucket: some("s3://b/p"),
            endpoint: some("https://e"),
            region: some("r"),
            profile: some("p"),
            account_id: some("a"),
            jurisdiction: Some(Jurisdiction::Fedramp),
            anonymous: true,
            virtual_host_style: true,
        };
        assert_eq!(Config::parse(text, Path::new("c")).unwrap(), expected);
        assert_eq!(Config::parse("", Path::new("c")).unwrap(), Config::default());
    }

    #[test]
    fn errors_name_file_and_line() {
        for (text, start, reason) in [
            ("region = \"r\"\nbukcet = \"s3://b\"\n", "/c.toml:2: ", "bukcet"),
            ("\n\nregion = 7\n", "/c.toml:3: ", "string"),
            ("jurisdiction = \"mars\"\n", "/c.toml:1: ", "mars"),
            ("profile = \"p\"\nregion \"r\"\n", "/c.toml:2: ", "="),
        ] {
            let failure = Config::parse(text, Path::new("/c.toml")).unwrap_err();
            assert_eq!(failure.code, Code::InvalidBackupConfig);
            let message = failure.message;
            assert!(message.starts_with(start) && message.contains(reason), "{text}: {message}");
            assert_eq!(message.lines().count(), 1, "{message}");
        }
    }
}
