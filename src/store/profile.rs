//! Profiles of `~/.aws/config` and `~/.aws/credentials`.

use std::collections::BTreeMap;
use std::path::Path;

use chrono::{DateTime, Utc};
use object_store::aws::AwsCredential;
use serde::Deserialize;

use super::{Environment, Error, Result};

/// One profile: its settings from both files, those of `credentials` winning.
#[derive(Default)]
pub(super) struct Profile {
    name: String,
    settings: BTreeMap<String, String>,
}

/// Keys, and when they stop working if that is known.
pub(super) struct Keys {
    pub(super) credential: AwsCredential,
    pub(super) expires: Option<DateTime<Utc>>,
}

/// What a `credential_process` prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ProcessOutput {
    version: u32,
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
    expiration: Option<String>,
}

impl Profile {
    /// Reads the profile called `wanted`, or the one of `AWS_PROFILE`, or `default`.
    ///
    /// # Errors
    /// If a profile was named and no file has it. A missing `default` is an empty profile, and so
    /// is one of `AWS_PROFILE` where keys in the environment make it needless.
    pub(super) fn read(environment: &Environment, wanted: Option<&str>) -> Result<Self> {
        let named = wanted.or_else(|| environment.get("AWS_PROFILE"));
        let name = named.unwrap_or("default").to_owned();
        let mut settings = BTreeMap::new();
        let mut found = false;
        for (variable, file, prefix) in [
            ("AWS_CONFIG_FILE", "config", "profile "),
            ("AWS_SHARED_CREDENTIALS_FILE", "credentials", ""),
        ] {
            let Some(path) = environment.aws_file(variable, file) else { continue };
            let Some(text) = read_optional(&path)? else { continue };
            // `config` says `[profile x]`, but plain `[default]`.
            let section = if name == "default" { name.clone() } else { format!("{prefix}{name}") };
            if let Some(section) = section_of(&text, &section) {
                found = true;
                settings.extend(section);
            }
        }
        let needless = wanted.is_none() && environment.get("AWS_ACCESS_KEY_ID").is_some();
        if named.is_some() && !found && !needless {
            return Err(Error::BadOption {
                what: format!("profile {name}"),
                reason: "neither ~/.aws/config nor ~/.aws/credentials has it".into(),
            });
        }
        Ok(Self { name, settings })
    }

    /// A setting, such as `region`.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.settings.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The profile's keys; `None` if it says nothing of any.
    ///
    /// # Errors
    /// If it wants them by a way we do not know, or its `credential_process` fails.
    pub(super) async fn keys(&self) -> Result<Option<Keys>> {
        if let (Some(key_id), Some(secret_key)) =
            (self.get("aws_access_key_id"), self.get("aws_secret_access_key"))
        {
            let credential = AwsCredential {
                key_id: key_id.to_owned(),
                secret_key: secret_key.to_owned(),
                token: self.get("aws_session_token").map(str::to_owned),
            };
            return Ok(Some(Keys { credential, expires: None }));
        }
        if let Some(command) = self.get("credential_process") {
            return self.run(command.to_owned()).await.map(Some);
        }
        for unknown in ["role_arn", "sso_session", "sso_start_url", "credential_source"] {
            if self.get(unknown).is_some() {
                return Err(self.bad(format!(
                    "{unknown} is not supported; use credential_process = \
                     aws configure export-credentials --profile {} --format process",
                    self.name
                )));
            }
        }
        Ok(None)
    }

    async fn run(&self, command: String) -> Result<Keys> {
        let mut process = std::process::Command::new("/bin/sh");
        process.arg("-c").arg(command).stdin(std::process::Stdio::null());
        let output = tokio::task::spawn_blocking(move || process.output()).await;
        let failed = |reason: String| self.bad(format!("credential_process {reason}"));
        // Neither its output nor its command line is shown: both can hold secrets.
        let output = output
            .map_err(|_| failed("was abandoned".into()))?
            .map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(format!("failed: {}", output.status)));
        }
        let parsed: ProcessOutput = serde_json::from_slice(&output.stdout)
            .map_err(|_| failed("did not print the JSON that is due".into()))?;
        if parsed.version != 1 {
            return Err(failed(format!("printed version {}, not 1", parsed.version)));
        }
        let expires = match parsed.expiration {
            None => None,
            Some(text) => Some(
                DateTime::parse_from_rfc3339(&text)
                    .map_err(|_| failed(format!("printed an odd Expiration: {text}")))?
                    .to_utc(),
            ),
        };
        let credential = AwsCredential {
            key_id: parsed.access_key_id,
            secret_key: parsed.secret_access_key,
            token: parsed.session_token,
        };
        Ok(Keys { credential, expires })
    }

    fn bad(&self, reason: String) -> Error {
        Error::BadOption { what: format!("profile {}", self.name), reason }
    }
}

fn read_optional(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(Error::Io { call: "read", path: path.to_owned(), error }),
    }
}

/// The `key = value` lines below `[name]`. Indented lines belong to a nested setting and are left
/// out.
fn section_of(text: &str, name: &str) -> Option<BTreeMap<String, String>> {
    let mut section = None;
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with([' ', '\t', '#', ';']) {
            continue;
        }
        let line = line.trim_end();
        if let Some(header) = line.strip_prefix('[').and_then(|line| line.split(']').next()) {
            let header = header.split_whitespace().collect::<Vec<_>>().join(" ");
            inside = header == name;
            if inside {
                section.get_or_insert_with(BTreeMap::new);
            }
        } else if let (true, Some((key, value)), Some(section)) =
            (inside, line.split_once('='), &mut section)
        {
            section.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    section
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(config: &str, credentials: &str) -> (tempfile::TempDir, Environment) {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        std::fs::write(home.path().join(".aws/config"), config).unwrap();
        std::fs::write(home.path().join(".aws/credentials"), credentials).unwrap();
        let environment = [("HOME", home.path().to_str().unwrap())].into_iter().collect();
        (home, environment)
    }

    #[tokio::test]
    async fn credentials_win_over_config_and_nested_settings_are_left_out() {
        let (_home, environment) = environment(
            "[default]\nregion=us-west-2\n[profile  dev]\nregion = auto # not a comment\n\
             s3 =\n  region = nested\naws_access_key_id = old\n",
            "# comment\n[dev]\naws_access_key_id = new\naws_secret_access_key = a=b\n\
             aws_session_token = t\n[other]\naws_access_key_id = no\n",
        );
        let profile = Profile::read(&environment, Some("dev")).unwrap();
        assert_eq!(profile.get("region"), Some("auto # not a comment"));
        let keys = profile.keys().await.unwrap().unwrap();
        assert_eq!(keys.credential.key_id, "new");
        assert_eq!(keys.credential.secret_key, "a=b");
        assert_eq!(keys.credential.token.as_deref(), Some("t"));
        assert_eq!(Profile::read(&environment, None).unwrap().get("region"), Some("us-west-2"));
        assert!(Profile::read(&environment, None).unwrap().keys().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_process_gives_keys_and_its_failure_shows_no_secret() {
        let run = |command: &str| {
            let settings = [("credential_process".to_owned(), command.to_owned())];
            Profile { name: "p".into(), settings: settings.into() }
        };
        let good = run(
            r#"echo '{"Version":1,"AccessKeyId":"k","SecretAccessKey":"s","Expiration":"2030-01-01T00:00:00Z"}'"#,
        );
        let keys = good.keys().await.unwrap().unwrap();
        assert_eq!(keys.credential.secret_key, "s");
        assert_eq!(keys.expires.unwrap().timestamp(), 1_893_456_000);
        for (command, message) in [
            ("echo secret; exit 3", "profile p: credential_process failed: exit status: 3"),
            ("echo secret", "profile p: credential_process did not print the JSON that is due"),
        ] {
            let error = run(command).keys().await.err().unwrap().to_string();
            assert_eq!(error, message);
        }
    }

    #[tokio::test]
    async fn what_is_not_supported_is_said() {
        let (_home, environment) = environment("[profile sso]\nsso_session = x\n", "");
        let profile = Profile::read(&environment, Some("sso")).unwrap();
        let error = profile.keys().await.err().unwrap().to_string();
        assert!(error.starts_with("profile sso: sso_session is not supported"), "{error}");
        let missing = Profile::read(&environment, Some("nope")).err().unwrap().to_string();
        assert!(missing.starts_with("profile nope: neither"), "{missing}");
        let variables = |keys: &[(&'static str, &'static str)]| -> Environment {
            [("AWS_PROFILE", "nope")].into_iter().chain(keys.iter().copied()).collect()
        };
        assert!(Profile::read(&variables(&[]), None).is_err());
        assert!(Profile::read(&variables(&[("AWS_ACCESS_KEY_ID", "k")]), None).is_ok());
    }
}
