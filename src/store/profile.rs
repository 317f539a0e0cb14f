//! Profiles of `~/.aws/config` and `~/.aws/credentials`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use object_store::aws::AwsCredential;
use serde::Deserialize;

use super::{Access, Error, Result, helper};
use crate::environment::Environment;

/// The settings below one `[header]`. One that is nested, as `endpoint_url` below `s3 =`, is called
/// `s3.endpoint_url`.
type Section = BTreeMap<String, String>;

/// One profile: what both files say of it.
#[derive(Default)]
pub(super) struct Profile {
    name: String,
    config: Section,
    /// Wins over `config`.
    credentials: Section,
    /// The section of `config` that the setting `services` names, if there is one.
    services: Option<Section>,
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
    /// Reads the profile that the options name, or `AWS_PROFILE`, or the defaults, or `default`.
    ///
    /// # Errors
    /// If a profile was named and no file has it. A missing `default` is an empty profile, and so
    /// is one that no option names where keys in the environment make it needless.
    pub(super) fn read(access: &Access) -> Result<Self> {
        let environment = &access.environment;
        let asked = access.profile.as_deref();
        let named =
            asked.or_else(|| environment.get("AWS_PROFILE")).or(access.defaults.profile.as_deref());
        let mut profile = Self { name: named.unwrap_or("default").to_owned(), ..Self::default() };
        let sections = |variable, file| match aws_file(environment, variable, file) {
            Some(path) => Ok(read_optional(&path)?.map(|text| parse(&text)).unwrap_or_default()),
            None => Ok(BTreeMap::new()),
        };
        let mut config = sections("AWS_CONFIG_FILE", "config")?;
        let mut credentials = sections("AWS_SHARED_CREDENTIALS_FILE", "credentials")?;
        // `config` says `[profile x]`, but may say plain `[default]`.
        let plain = if profile.name == "default" { config.remove("default") } else { None };
        let config_section = config.remove(&format!("profile {}", profile.name)).or(plain);
        let credentials_section = credentials.remove(&profile.name);
        let found = config_section.is_some() || credentials_section.is_some();
        let needless = asked.is_none() && environment.get("AWS_ACCESS_KEY_ID").is_some();
        if named.is_some() && !found && !needless {
            return Err(profile.bad("neither ~/.aws/config nor ~/.aws/credentials has it".into()));
        }
        profile.config = config_section.unwrap_or_default();
        profile.credentials = credentials_section.unwrap_or_default();
        profile.services =
            profile.get("services").and_then(|name| config.remove(&format!("services {name}")));
        Ok(profile)
    }

    /// A setting, such as `region`.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        value(&self.credentials, key).or_else(|| value(&self.config, key))
    }

    /// The endpoint of S3: the one of the services section before the one for everything.
    ///
    /// # Errors
    /// If the profile names a services section that is not there.
    pub(super) fn endpoint(&self) -> Result<Option<&str>> {
        if let (Some(name), None) = (self.get("services"), &self.services) {
            return Err(self.bad(format!("~/.aws/config has no [services {name}]")));
        }
        let of_service = self.services.as_ref().and_then(|it| value(it, "s3.endpoint_url"));
        Ok(of_service.or_else(|| self.get("endpoint_url")))
    }

    /// The profile's keys; `None` if it says nothing of any. Ways to get them are tried in botocore's
    /// order: roles and SSO, the credentials file, `credential_process`, the config file.
    ///
    /// # Errors
    /// If it wants them by a way we do not know, has only half a pair, or its `credential_process`
    /// fails or takes longer than `deadline`.
    pub(super) async fn keys(&self, deadline: Duration) -> Result<Option<Keys>> {
        for unknown in ["role_arn", "sso_session", "sso_start_url", "credential_source"] {
            if self.get(unknown).is_some() {
                let profile = self.name.clone();
                return Err(Error::UnsupportedProfile { profile, setting: unknown });
            }
        }
        if let Some(keys) = self.pair(&self.credentials)? {
            return Ok(Some(keys));
        }
        if let Some(command) = self.get("credential_process") {
            return self.run(command, deadline).await.map(Some);
        }
        self.pair(&self.config)
    }

    /// The keys that one file has of this profile.
    fn pair(&self, section: &Section) -> Result<Option<Keys>> {
        let [id, secret] = ["aws_access_key_id", "aws_secret_access_key"];
        let (key_id, secret_key) = match (value(section, id), value(section, secret)) {
            (Some(key_id), Some(secret_key)) => (key_id.to_owned(), secret_key.to_owned()),
            (None, None) => return Ok(None),
            (Some(_), None) => return Err(self.half(id, secret)),
            (None, Some(_)) => return Err(self.half(secret, id)),
        };
        let token = value(section, "aws_session_token").map(str::to_owned);
        let credential = AwsCredential { key_id, secret_key, token };
        Ok(Some(Keys { credential, expires: None }))
    }

    fn half(&self, set: &str, missing: &str) -> Error {
        let object = format!("profile {}", self.name);
        Error::BadCredentials { object, reason: format!("it has {set} but no {missing}") }
    }

    async fn run(&self, command: &str, deadline: Duration) -> Result<Keys> {
        // Neither its output nor its command line is shown: both can hold secrets.
        let failed = |reason: String| Error::BadCredentials {
            object: format!("profile {}", self.name),
            reason: format!("credential_process {reason}"),
        };
        let printed = helper::output(command, deadline).await.map_err(failed)?;
        let parsed: ProcessOutput = serde_json::from_slice(&printed)
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

/// The signer panics on keys and tokens that no header can carry.
pub(super) fn check_ascii(credential: &AwsCredential, place: &str) -> Result<()> {
    let fits = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if fits(&credential.key_id) && credential.token.as_deref().is_none_or(fits) {
        return Ok(());
    }
    Err(Error::BadCredentials {
        object: place.to_owned(),
        reason: "the key id or session token has blanks, or characters that are not ASCII".into(),
    })
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

/// A file of `~/.aws`, or where `variable` says it is.
fn aws_file(environment: &Environment, variable: &str, name: &str) -> Option<PathBuf> {
    let home = environment.path("HOME");
    match environment.path(variable) {
        Some(path) => match (path.strip_prefix("~"), home) {
            (Ok(below), Some(home)) => Some(home.join(below)),
            _ => Some(path.to_owned()),
        },
        None => Some(home?.join(".aws").join(name)),
    }
}

/// A setting with a value.
fn value<'a>(section: &'a Section, key: &str) -> Option<&'a str> {
    section.get(key).map(String::as_str).filter(|value| !value.is_empty())
}

/// The sections of a file by their headers, which are words: `profile dev`. Quotes around a word go.
fn parse(text: &str) -> BTreeMap<String, Section> {
    let mut sections = BTreeMap::<String, Section>::new();
    // Where lines go now: the section, and the setting that indented lines are nested in.
    let mut header: Option<String> = None;
    let mut outer = String::new();
    for line in text.lines() {
        let indented = line.starts_with([' ', '\t']);
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let title = line.strip_prefix('[').filter(|_| !indented);
        if let Some(title) = title.and_then(|line| line.split(']').next()) {
            let words = title.replace(['"', '\''], " ");
            let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
            sections.entry(words.clone()).or_default();
            header = Some(words);
            outer.clear();
            continue;
        }
        let (Some(header), Some((key, value))) = (&header, line.split_once('=')) else { continue };
        let Some(section) = sections.get_mut(header) else { continue };
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim().to_owned());
        if !indented {
            outer.clone_from(&key);
            section.insert(key, value);
        } else if !outer.is_empty() {
            section.insert(format!("{outer}.{key}"), value);
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    /// Options with a home whose `~/.aws` holds these files, which lasts as long as the directory.
    fn home(config: &str, credentials: &str) -> (tempfile::TempDir, Access) {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        std::fs::write(home.path().join(".aws/config"), config).unwrap();
        std::fs::write(home.path().join(".aws/credentials"), credentials).unwrap();
        let environment = [("HOME", home.path())].into_iter().collect();
        (home, Access { environment, ..Access::default() })
    }

    fn asked(access: &Access, profile: &str) -> Access {
        Access { profile: Some(profile.into()), ..access.clone() }
    }

    #[tokio::test]
    async fn credentials_win_over_config_and_nested_settings_are_apart() {
        let (_home, access) = home(
            "[default]\nregion=us-west-2\n[profile  dev]\nregion = auto # not a comment\n\
             s3 =\n  region = nested\naws_access_key_id = old\n[profile \"two words\"]\nregion=r\n",
            "# comment\n[dev]\naws_access_key_id = new\naws_secret_access_key = a=b\n\
             aws_session_token = t\n[other]\naws_access_key_id = no\n",
        );
        let profile = Profile::read(&asked(&access, "dev")).unwrap();
        assert_eq!(profile.get("region"), Some("auto # not a comment"));
        let keys = profile.keys(SOON).await.unwrap().unwrap();
        assert_eq!(keys.credential.key_id, "new");
        assert_eq!(keys.credential.secret_key, "a=b");
        assert_eq!(keys.credential.token.as_deref(), Some("t"));
        assert_eq!(Profile::read(&access).unwrap().get("region"), Some("us-west-2"));
        assert!(Profile::read(&access).unwrap().keys(SOON).await.unwrap().is_none());
        let quoted = Profile::read(&asked(&access, "two words")).unwrap();
        assert_eq!(quoted.get("region"), Some("r"));
        let half = Profile::read(&asked(&access, "other")).unwrap().keys(SOON).await.err().unwrap();
        let expected = "credentials for profile other are no good: it has aws_access_key_id but no aws_secret_access_key";
        assert_eq!(half.to_string(), expected);
    }

    #[test]
    fn a_services_section_says_where_s3_is() {
        let (_home, access) = home(
            "[profile a]\nservices = one\nendpoint_url = http://all\n\
             [services one]\ndynamodb =\n  endpoint_url = http://dynamo\n\
             s3 = \n\tendpoint_url = http://s3\n\n\
             [profile b]\nservices = two\nendpoint_url = http://all\n\
             [services two]\nsqs =\n  endpoint_url = http://sqs\n\
             [profile c]\nservices = none\n",
            "",
        );
        let endpoint = |name: &str| {
            let profile = Profile::read(&asked(&access, name)).unwrap();
            profile.endpoint().map(|found| found.map(str::to_owned))
        };
        assert_eq!(endpoint("a").unwrap().as_deref(), Some("http://s3"));
        assert_eq!(endpoint("b").unwrap().as_deref(), Some("http://all"));
        let missing = endpoint("c").unwrap_err().to_string();
        assert_eq!(missing, "profile c: ~/.aws/config has no [services none]");
    }

    #[test]
    fn files_may_lie_elsewhere() {
        let (home, access) = home("", "");
        std::fs::write(home.path().join("mine"), "[default]\nregion = r\n").unwrap();
        for path in ["~/mine".into(), home.path().join("mine")] {
            let variables = [("HOME", home.path()), ("AWS_CONFIG_FILE", path.as_path())];
            let environment = variables.into_iter().collect();
            let access = Access { environment, ..access.clone() };
            assert_eq!(Profile::read(&access).unwrap().get("region"), Some("r"), "{path:?}");
        }
    }

    #[tokio::test]
    async fn a_process_gives_keys_and_its_failure_shows_no_secret() {
        let run = |command: &str| {
            let config = [("credential_process".to_owned(), command.to_owned())].into();
            Profile { name: "p".into(), config, ..Profile::default() }
        };
        let good = run(
            r#"echo '{"Version":1,"AccessKeyId":"k","SecretAccessKey":"s","Expiration":"2030-01-01T00:00:00Z"}'"#,
        );
        let keys = good.keys(SOON).await.unwrap().unwrap();
        assert_eq!(keys.credential.secret_key, "s");
        assert_eq!(keys.expires.unwrap().timestamp(), 1_893_456_000);
        for (command, message) in [
            (
                "echo secret; exit 3",
                "credentials for profile p are no good: credential_process failed: exit status: 3",
            ),
            (
                "echo secret",
                "credentials for profile p are no good: credential_process did not print the JSON that is due",
            ),
        ] {
            let error = run(command).keys(SOON).await.err().unwrap().to_string();
            assert_eq!(error, message);
        }
    }

    #[tokio::test]
    async fn what_is_not_supported_is_said() {
        let (_home, access) = home("[profile sso]\nsso_session = x\n", "");
        let profile = Profile::read(&asked(&access, "sso")).unwrap();
        let error = profile.keys(SOON).await.err().unwrap().to_string();
        assert!(error.starts_with("profile sso: sso_session is not supported"), "{error}");
        let missing = Profile::read(&asked(&access, "nope")).err().unwrap().to_string();
        assert!(missing.starts_with("profile nope: neither"), "{missing}");
    }
}
