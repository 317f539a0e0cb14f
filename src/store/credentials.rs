//! Where the keys to a bucket come from, and how they are renewed.
//!
//! Tried in the order of botocore and so of AWS's command line: keys in the environment, a web identity
//! of the environment, the profile, a container's credentials, the machine's metadata service. Where a
//! profile was asked for by name, keys and web identity of the environment do not count. The first that
//! is there is used; the rest is not looked at.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::RetryConfig;
use object_store::aws::{AmazonS3Builder, AwsCredential, AwsCredentialProvider};
use object_store::client::{ClientOptions, HttpClient, HttpConnector};
use tokio::time::{Instant, timeout_at};

use super::error::root_cause;
use super::profile::{Profile, check_ascii};
use super::renewal::FromProfile;
use super::{Access, Error, Result};
use crate::environment::Environment;

/// How long cloud services that hand out keys have. They are next door or not there at all.
const PROVIDER_DEADLINE: Duration = Duration::from_secs(4);

/// Gives keys for signing.
pub(super) struct Credentials(Kind);

enum Kind {
    Anonymous,
    Fixed(Arc<AwsCredential>),
    Profile(Arc<FromProfile>),
    Provider {
        provider: AwsCredentialProvider,
        /// What is asked, for messages.
        name: &'static str,
    },
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
            if has_web_identity(environment) {
                let provider = provider(environment.aws(), region, client)?;
                return Ok(Self(Kind::Provider { provider, name: "the web identity service" }));
            }
        }
        if let Some(keys) = profile.keys(access.deadline).await? {
            return Ok(Self(Kind::Profile(FromProfile::new(access, keys).await?)));
        }
        if let Some(name) = provider_name(environment) {
            // What was passed over above must not be found by other code.
            let of_machine = environment.aws().filter(|(name, _)| !OF_CALLER.contains(name));
            let provider = provider(of_machine, region, client)?;
            return Ok(Self(Kind::Provider { provider, name }));
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
            Kind::Provider { provider, name } => {
                let end = end.min(asked + PROVIDER_DEADLINE);
                let credential = timeout_at(end, provider.get_credential())
                    .await
                    .map_err(|_| silent(name))?
                    .map_err(|error| bad(format!("{name}: {}", root_cause(&error))))?;
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
            Kind::Provider { .. } => false,
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
            Kind::Provider { .. } => "Credentials(provider)",
        })
    }
}

fn check(credential: AwsCredential, place: &str) -> Result<AwsCredential> {
    check_ascii(&credential, place)?;
    Ok(credential)
}

/// The variables by which a caller says who it is.
const OF_CALLER: [&str; 5] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
];

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

fn has_web_identity(environment: &Environment) -> bool {
    ["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"].iter().all(|it| environment.get(it).is_some())
}

/// Where a machine's metadata service is, as AWS's own tools call it.
const METADATA_ENDPOINT: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";

/// Which cloud service is there to be asked. Asking a metadata service that is not there would take
/// seconds, so its machines are told by the vendor their firmware names.
fn provider_name(environment: &Environment) -> Option<&'static str> {
    let is_set = |key| environment.get(key).is_some();
    if is_set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        || (is_set("AWS_CONTAINER_CREDENTIALS_FULL_URI")
            && is_set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"))
    {
        return Some("the container's credentials service");
    }
    let disabled = environment.flag("AWS_EC2_METADATA_DISABLED");
    let is_there = is_set("AWS_METADATA_ENDPOINT")
        || (disabled != Some(true) && is_set(METADATA_ENDPOINT))
        || (disabled != Some(true) && is_ec2(Path::new("/sys/class/dmi/id/sys_vendor")));
    is_there.then_some("the machine's metadata service")
}

fn is_ec2(vendor: &Path) -> bool {
    std::fs::read_to_string(vendor).is_ok_and(|vendor| vendor.trim() == "Amazon EC2")
}

/// The provider object_store chooses by the same variables.
fn provider<'a>(
    variables: impl Iterator<Item = (&'a str, &'a str)>,
    region: &str,
    client: &HttpClient,
) -> Result<AwsCredentialProvider> {
    let mut builder = AmazonS3Builder::new()
        .with_http_connector(Ready(client.clone()))
        .with_client_options(ClientOptions::new().with_allow_http(true))
        .with_retry(RetryConfig {
            max_retries: 2,
            retry_timeout: PROVIDER_DEADLINE,
            ..RetryConfig::default()
        });
    for (key, value) in variables {
        // The library knows it by a name of its own alone.
        let (key, value) = match key {
            METADATA_ENDPOINT => ("AWS_METADATA_ENDPOINT", value.trim_end_matches('/')),
            _ => (key, value),
        };
        if let Ok(key) = key.to_ascii_lowercase().parse() {
            builder = builder.with_config(key, value);
        }
    }
    let store = builder.with_region(region).with_bucket_name("unused").build();
    let store = store.map_err(|error| Error::BadOption {
        what: "AWS credentials".into(),
        reason: root_cause(&error),
    })?;
    Ok(store.credentials().clone())
}

/// Hands out a client that exists already.
#[derive(Debug)]
struct Ready(HttpClient);

impl HttpConnector for Ready {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

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

    /// A service that answers requests as they come, one on each connection. Gives its URL, and then the
    /// requests without their bodies.
    fn serve(answers: &'static [&'static str]) -> (String, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let service = std::thread::spawn(move || {
            let answer = |body: &&str| {
                let (mut socket, _) = listener.accept().unwrap();
                let lines = BufReader::new(socket.try_clone().unwrap()).lines();
                let head = lines.map(Result::unwrap).take_while(|line| !line.is_empty());
                let head = head.collect::<Vec<_>>().join("\n");
                let length = body.len();
                let head_of_answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}");
                write!(socket, "{head_of_answer}\r\nConnection: close\r\n\r\n{body}").unwrap();
                head
            };
            answers.iter().map(answer).collect()
        });
        (url, service)
    }

    #[tokio::test]
    async fn each_service_of_a_cloud_is_asked_as_it_wants_to_be_and_once() {
        const KEYS: &str = r#"{"AccessKeyId":"key","SecretAccessKey":"hidden","Token":"token",
            "Expiration":"2099-01-01T00:00:00Z"}"#;
        const ASSUMED: &str = "<AssumeRoleWithWebIdentityResponse>\
            <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>key</AccessKeyId>\
            <SecretAccessKey>hidden</SecretAccessKey><SessionToken>token</SessionToken>\
            <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>\
            </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>";
        let home = tempfile::tempdir().unwrap();
        let token = home.path().join("token");
        std::fs::write(&token, "let-me-in").unwrap();
        let token = token.to_str().unwrap();
        type Case<'a> = (&'static [&'static str], Vec<(&'a str, &'a str)>, &'a [&'a str]);
        let cases: [Case<'_>; 4] = [
            (
                &[KEYS],
                vec![
                    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "URL/creds"),
                    ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token),
                ],
                &["GET /creds", "authorization: let-me-in"],
            ),
            (
                &["session", "role", KEYS],
                vec![("AWS_EC2_METADATA_SERVICE_ENDPOINT", "URL/")],
                &[
                    "PUT /latest/api/token",
                    "GET /latest/meta-data/iam/security-credentials/ ",
                    "x-aws-ec2-metadata-token: session",
                    "GET /latest/meta-data/iam/security-credentials/role",
                ],
            ),
            (
                &["session", "role", KEYS],
                vec![("AWS_METADATA_ENDPOINT", "URL")],
                &["PUT /latest/api/token"],
            ),
            (
                &[ASSUMED],
                vec![
                    ("AWS_WEB_IDENTITY_TOKEN_FILE", token),
                    ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"),
                    ("AWS_ENDPOINT_URL_STS", "URL"),
                ],
                &["POST /?Action=AssumeRoleWithWebIdentity", "WebIdentityToken=let-me-in"],
            ),
        ];
        for (answers, variables, asked) in cases {
            let (url, service) = serve(answers);
            let variables: Vec<_> =
                variables.iter().map(|(name, value)| (*name, value.replace("URL", &url))).collect();
            let variables: Vec<_> =
                variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let credentials = find(&variables, Access::default()).await.unwrap();
            for _ in 0..2 {
                let keys = credentials.get("o", soon()).await.unwrap().unwrap();
                assert_eq!((keys.key_id.as_str(), keys.token.as_deref()), ("key", Some("token")));
            }
            let heads = service.join().unwrap().join("\n");
            for asked in asked {
                assert!(heads.contains(asked), "{asked}: {heads}");
            }
        }
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
