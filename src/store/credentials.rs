//! Where the keys to a bucket come from, and how they are renewed.
//!
//! Tried in the order of botocore and so of AWS's command line: keys in the environment, a web identity
//! of the environment, the profile, a container's credentials, the machine's metadata service. Where a
//! profile was asked for by name, keys and web identity of the environment do not count. The first that
//! is there is used; the rest is not looked at.

use std::fmt;
use std::sync::Arc;

use object_store::aws::AwsCredential;
use object_store::client::HttpClient;
use tokio::time::{Instant, timeout_at};

use super::profile::{Profile, check_ascii};
use super::provider::{PROVIDER_DEADLINE, Provider, has_web_identity};
use super::renewal::FromProfile;
use super::{Access, Error, Result};
use crate::environment::Environment;

/// Gives keys for signing.
pub(super) struct Credentials(Kind);

enum Kind {
    Anonymous,
    Fixed(Arc<AwsCredential>),
    Profile(Arc<FromProfile>),
    Provider(Provider),
}

impl Credentials {
    /// Chooses the source of keys.
    ///
    /// # Errors
    /// [`Error::BadCredentials`] if there is none.
    pub(super) async fn find(
        access: &Access,
        profile: &Profile,
        region: &str,
        client: &HttpClient,
        place: &str,
    ) -> Result<Self> {
        if access.anonymous {
            return Ok(Self(Kind::Anonymous));
        }
        let environment = &access.environment;
        let asked_by_name = access.profile.is_some();
        if !asked_by_name {
            if let Some(credential) = keys_of(environment, place)? {
                return Ok(Self(Kind::Fixed(Arc::new(check(credential, place)?))));
            }
            if let Some(it) = Provider::of_web_identity(environment, region, client, place)? {
                return Ok(Self(Kind::Provider(it)));
            }
        }
        if let Some(keys) = profile.keys(access.deadline).await? {
            return Ok(Self(Kind::Profile(FromProfile::new(access, keys).await?)));
        }
        if let Some(provider) = Provider::of_machine(environment, region, client, place)? {
            return Ok(Self(Kind::Provider(provider)));
        }
        Err(Error::BadCredentials { object: place.to_owned(), reason: "there are none".into() })
    }

    /// The keys to sign with now; `None` for anonymous. Waits for them until `end` at most.
    pub(super) async fn get(
        &self,
        object: &str,
        end: Instant,
    ) -> Result<Option<Arc<AwsCredential>>> {
        let asked = Instant::now();
        let bad = |reason| Error::BadCredentials { object: object.to_owned(), reason };
        let silent = |who: &str| {
            bad(format!("{who} gave no answer for {:.1} s", asked.elapsed().as_secs_f64()))
        };
        match &self.0 {
            Kind::Anonymous => Ok(None),
            Kind::Fixed(credential) => Ok(Some(credential.clone())),
            Kind::Profile(profile) => match timeout_at(end, profile.read()).await {
                Ok(Ok(current)) => Ok(Some(current.credential)),
                Ok(Err(error)) => Err(match &*error {
                    Error::ExpiredCredentials { .. } => {
                        Error::ExpiredCredentials { object: object.to_owned() }
                    }
                    error => bad(error.to_string()),
                }),
                Err(_) => Err(silent("credential_process")),
            },
            Kind::Provider(provider) => {
                let end = end.min(asked + PROVIDER_DEADLINE);
                let credential = timeout_at(end, provider.get())
                    .await
                    .map_err(|_| silent(provider.name))?
                    .map_err(bad)?;
                check_ascii(&credential, object)?;
                Ok(Some(credential))
            }
        }
    }

    /// Called when a server says that `used` has expired; whether newer keys may be had.
    pub(super) fn renew(&self, used: &Arc<AwsCredential>) -> bool {
        match &self.0 {
            Kind::Anonymous | Kind::Fixed(_) => false,
            Kind::Profile(profile) => {
                profile.forget(used);
                true
            }
            // It renews by the clock; there is no way to hurry it.
            Kind::Provider(_) => false,
        }
    }
}

/// Whether keys may come from a program that the profile names.
pub(crate) fn has_credential_process(access: &Access) -> bool {
    let environment = &access.environment;
    let by_environment =
        keys_of(environment, "").is_ok_and(|keys| keys.is_some()) || has_web_identity(environment);
    if access.anonymous || (by_environment && access.profile.is_none()) {
        return false;
    }
    // One that cannot be read runs nothing, and is told of where it is needed.
    Profile::read(access).is_ok_and(|profile| profile.get("credential_process").is_some())
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Kind::Anonymous => "Credentials(anonymous)",
            Kind::Fixed(_) => "Credentials(environment)",
            Kind::Profile(_) => "Credentials(profile)",
            Kind::Provider(_) => "Credentials(provider)",
        })
    }
}

fn check(credential: AwsCredential, place: &str) -> Result<AwsCredential> {
    check_ascii(&credential, place)?;
    Ok(credential)
}

/// The keys in the environment.
///
/// # Errors
/// [`Error::BadCredentials`] if one half of a pair is missing.
fn keys_of(environment: &Environment, place: &str) -> Result<Option<AwsCredential>> {
    let [id, secret] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    let half = |set: &str, missing: &str| {
        let reason = format!("{set} is set, but {missing} is not");
        Err(Error::BadCredentials { object: place.to_owned(), reason })
    };
    match (environment.get(id), environment.get(secret)) {
        (Some(key_id), Some(secret_key)) => Ok(Some(AwsCredential {
            key_id: key_id.to_owned(),
            secret_key: secret_key.to_owned(),
            token: environment.get("AWS_SESSION_TOKEN").map(str::to_owned),
        })),
        (None, None) => Ok(None),
        (Some(_), None) => half(id, secret),
        (None, Some(_)) => half(secret, id),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    async fn find(variables: &[(&str, &str)], access: Access) -> Result<Credentials> {
        let environment: Environment =
            variables.iter().map(|(key, value)| (*key, *value)).collect();
        let access = Access { environment, ..access };
        let client = super::super::tls::client(&access, None)?;
        let profile = Profile::read(&access)?;
        Credentials::find(&access, &profile, "auto", &client, "s3://b").await
    }

    #[tokio::test]
    async fn no_credentials_fail_at_once_and_in_clear_words() {
        let started = std::time::Instant::now();
        for (variables, reason) in [
            (vec![("AWS_EC2_METADATA_DISABLED", "true")], "there are none"),
            (
                vec![("AWS_ACCESS_KEY_ID", "k")],
                "AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not",
            ),
            (
                vec![("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_ACCESS_KEY_ID", "")],
                "AWS_SECRET_ACCESS_KEY is set, but AWS_ACCESS_KEY_ID is not",
            ),
            (
                vec![("AWS_ACCESS_KEY_ID", "k\n"), ("AWS_SECRET_ACCESS_KEY", "s")],
                "the key id or session token has",
            ),
        ] {
            let error = find(&variables, Access::default()).await.err().unwrap().to_string();
            let expected = format!("credentials for s3://b are no good: {reason}");
            assert!(error.starts_with(&expected), "{error}");
        }
        assert!(started.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test]
    async fn a_profile_is_read_again_when_its_keys_expired() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("credentials");
        let write = |key: &str| {
            std::fs::write(
                &file,
                format!("[p]\naws_access_key_id={key}\naws_secret_access_key=hidden\n"),
            )
            .unwrap();
        };
        write("one");
        let variables = [("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap())];
        let access = Access { profile: Some("p".into()), ..Access::default() };
        let credentials = find(&variables, access).await.unwrap();
        write("two");
        let used = credentials.get("o", soon()).await.unwrap().unwrap();
        assert_eq!(used.key_id, "one", "a file is only read again for a reason");
        assert!(credentials.renew(&used));
        let renewed = credentials.get("o", soon()).await.unwrap().unwrap();
        assert_eq!(renewed.key_id, "two");
        assert!(credentials.renew(&used), "a late report of the old keys");
        assert!(Arc::ptr_eq(&credentials.get("o", soon()).await.unwrap().unwrap(), &renewed));
        assert!(!format!("{credentials:?}").contains("hidden"));
    }

    #[tokio::test]
    async fn a_helper_that_hangs_runs_once_and_is_named() {
        let home = tempfile::tempdir().unwrap();
        let (file, log) = (home.path().join("config"), home.path().join("log"));
        let helper = |rest: &str| {
            let shown = log.display();
            let text = format!("[profile p]\ncredential_process = echo x >> {shown}; {rest}\n");
            std::fs::write(&file, text).unwrap();
        };
        let runs = || std::fs::read_to_string(&log).unwrap().lines().count();
        let keys = r#"echo '{"Version":1,"AccessKeyId":"k","SecretAccessKey":"s","Expiration":"2000-01-01T00:00:00Z"}'"#;
        helper(keys);
        let variables = [("AWS_CONFIG_FILE", file.to_str().unwrap())];
        let access = Access {
            profile: Some("p".into()),
            deadline: Duration::from_secs(3),
            ..Access::default()
        };
        let credentials = Arc::new(find(&variables, access).await.unwrap());
        assert_eq!(runs(), 1);
        // These keys are old from the beginning; whoever asks meanwhile waits for the same helper.
        helper("sleep 1000");
        let impatient = credentials.get("o", Instant::now() + Duration::from_millis(100)).await;
        let impatient = impatient.unwrap_err().to_string();
        let expected = "credentials for o are no good: credential_process gave no answer for 0.";
        assert!(impatient.starts_with(expected), "{impatient}");
        let ask = || {
            let credentials = Arc::clone(&credentials);
            tokio::spawn(async move { credentials.get("o", soon()).await.unwrap_err().to_string() })
        };
        for asked in [ask(), ask(), ask()] {
            let error = asked.await.unwrap();
            assert!(error.contains("gave no answer for 3.0 s, and was killed"), "{error}");
        }
        assert_eq!(runs(), 2);
        helper(keys);
        assert_eq!(credentials.get("o", soon()).await.unwrap().unwrap().key_id, "k");
        assert_eq!(runs(), 3);
    }

    #[tokio::test]
    async fn a_service_that_is_not_there_fails_soon() {
        let home = tempfile::tempdir().unwrap();
        let token = home.path().join("token");
        std::fs::write(&token, "let me in").unwrap();
        let variables = [
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/creds"),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.to_str().unwrap()),
        ];
        let started = std::time::Instant::now();
        let credentials = find(&variables, Access::default()).await.unwrap();
        let error = credentials.get("s3://b/k", soon()).await.unwrap_err();
        assert!(matches!(error, Error::BadCredentials { .. }), "{error}");
        assert!(error.to_string().starts_with("credentials for s3://b/k are no good: "), "{error}");
        assert!(started.elapsed() < PROVIDER_DEADLINE + Duration::from_secs(1));
    }
}
