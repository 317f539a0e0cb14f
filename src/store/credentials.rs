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

use chrono::Utc;
use object_store::RetryConfig;
use object_store::aws::{AmazonS3Builder, AwsCredential, AwsCredentialProvider};
use object_store::client::{ClientOptions, HttpClient, HttpConnector};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::error::root_cause;
use super::profile::{Keys, Profile};
use super::{Error, Result, StoreOptions};
use crate::environment::Environment;

/// Keys are renewed this long before they expire, so that none expires on its way.
const MARGIN: chrono::TimeDelta = chrono::TimeDelta::minutes(2);

/// How long cloud services that hand out keys have. They are next door or not there at all.
const PROVIDER_DEADLINE: Duration = Duration::from_secs(4);

/// Gives keys for signing.
pub(super) struct Credentials(Kind);

enum Kind {
    Anonymous,
    Fixed(Arc<AwsCredential>),
    Profile {
        /// Which profile, of whose files.
        options: Box<StoreOptions>,
        /// Replaced as a whole to renew, so that many requests share one reading and no lock is
        /// held while it goes on.
        current: Mutex<Arc<OnceCell<Current>>>,
    },
    Provider(AwsCredentialProvider),
}

struct Current {
    credential: Arc<AwsCredential>,
    expires: Option<chrono::DateTime<Utc>>,
}

impl Credentials {
    /// Chooses the source of keys.
    ///
    /// # Errors
    /// [`Error::BadCredentials`] if there is none.
    pub(super) async fn find(
        options: &StoreOptions,
        profile: &Profile,
        region: &str,
        client: &HttpClient,
        place: &str,
    ) -> Result<Self> {
        if options.anonymous {
            return Ok(Self(Kind::Anonymous));
        }
        let environment = &options.environment;
        let asked_by_name = options.profile.is_some();
        if !asked_by_name {
            if let Some(credential) = keys_of(environment, place)? {
                return Ok(Self(Kind::Fixed(Arc::new(check(credential, place)?))));
            }
            if has_web_identity(environment) {
                return Ok(Self(Kind::Provider(provider(environment.aws(), region, client)?)));
            }
        }
        if let Some(keys) = profile.keys().await? {
            return Ok(Self(Kind::Profile {
                options: Box::new(options.clone()),
                current: Mutex::new(Arc::new(OnceCell::new_with(Some(Current::new(keys, place)?)))),
            }));
        }
        if has_provider(environment) {
            // What was passed over above must not be found by other code.
            let of_machine = environment.aws().filter(|(name, _)| !OF_CALLER.contains(name));
            return Ok(Self(Kind::Provider(provider(of_machine, region, client)?)));
        }
        Err(Error::BadCredentials { object: place.to_owned(), reason: "there are none".into() })
    }

    /// The keys to sign with now; `None` for anonymous.
    pub(super) async fn get(&self, object: &str) -> Result<Option<Arc<AwsCredential>>> {
        match &self.0 {
            Kind::Anonymous => Ok(None),
            Kind::Fixed(credential) => Ok(Some(credential.clone())),
            Kind::Profile { options, current } => {
                let mut cell = current.lock().clone();
                if cell.get().is_some_and(Current::is_old) {
                    cell = replace(current, &cell);
                }
                let read = || async {
                    let profile = Profile::read(options)?;
                    match profile.keys().await? {
                        Some(keys) => Current::new(keys, object),
                        None => Err(Error::ExpiredCredentials { object: object.to_owned() }),
                    }
                };
                Ok(Some(cell.get_or_try_init(read).await?.credential.clone()))
            }
            Kind::Provider(provider) => {
                let bad = |reason| Error::BadCredentials { object: object.to_owned(), reason };
                let credential = tokio::time::timeout(PROVIDER_DEADLINE, provider.get_credential())
                    .await
                    .map_err(|_| bad("the service that hands them out is silent".into()))?
                    .map_err(|error| bad(root_cause(&error)))?;
                check_ascii(&credential, object)?;
                Ok(Some(credential))
            }
        }
    }

    /// Called when a server says that `used` has expired; whether newer keys may be had.
    pub(super) fn renew(&self, used: &Arc<AwsCredential>) -> bool {
        match &self.0 {
            Kind::Anonymous | Kind::Fixed(_) => false,
            Kind::Profile { current, .. } => {
                let cell = current.lock().clone();
                if cell.get().is_some_and(|current| Arc::ptr_eq(&current.credential, used)) {
                    replace(current, &cell);
                }
                true
            }
            // It renews by the clock; there is no way to hurry it.
            Kind::Provider(_) => false,
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Kind::Anonymous => "Credentials(anonymous)",
            Kind::Fixed(_) => "Credentials(environment)",
            Kind::Profile { .. } => "Credentials(profile)",
            Kind::Provider(_) => "Credentials(provider)",
        })
    }
}

impl Current {
    fn new(keys: Keys, place: &str) -> Result<Self> {
        let credential = Arc::new(check(keys.credential, place)?);
        Ok(Self { credential, expires: keys.expires })
    }

    fn is_old(&self) -> bool {
        self.expires.is_some_and(|expires| Utc::now() + MARGIN >= expires)
    }
}

/// Puts an empty cell in the place of `old`, unless somebody else did already.
fn replace(
    current: &Mutex<Arc<OnceCell<Current>>>,
    old: &Arc<OnceCell<Current>>,
) -> Arc<OnceCell<Current>> {
    let mut current = current.lock();
    if Arc::ptr_eq(&current, old) {
        *current = Arc::new(OnceCell::new());
    }
    current.clone()
}

fn check(credential: AwsCredential, place: &str) -> Result<AwsCredential> {
    check_ascii(&credential, place)?;
    Ok(credential)
}

/// The signer panics on keys and tokens that no header can carry.
fn check_ascii(credential: &AwsCredential, place: &str) -> Result<()> {
    let fits = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if fits(&credential.key_id) && credential.token.as_deref().is_none_or(fits) {
        return Ok(());
    }
    Err(Error::BadCredentials {
        object: place.to_owned(),
        reason: "the key id or session token has characters that are not ASCII".into(),
    })
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

/// Whether a cloud service is there to be asked. Asking a metadata service that is not there
/// would take seconds, so its machines are told by the vendor their firmware names.
fn has_provider(environment: &Environment) -> bool {
    let is_set = |key| environment.get(key).is_some();
    if is_set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        || (is_set("AWS_CONTAINER_CREDENTIALS_FULL_URI")
            && is_set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"))
        || is_set("AWS_METADATA_ENDPOINT")
    {
        return true;
    }
    let disabled = environment.flag("AWS_EC2_METADATA_DISABLED");
    disabled != Some(true) && is_ec2(Path::new("/sys/class/dmi/id/sys_vendor"))
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
    use super::*;

    async fn find(variables: &[(&str, &str)], options: StoreOptions) -> Result<Credentials> {
        let environment: Environment =
            variables.iter().map(|(key, value)| (*key, *value)).collect();
        let options = StoreOptions { environment, ..options };
        let client = super::super::tls::client(&options, false)?;
        let profile = Profile::read(&options)?;
        Credentials::find(&options, &profile, "auto", &client, "s3://b").await
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
            let error = find(&variables, StoreOptions::default()).await.err().unwrap().to_string();
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
        let options = StoreOptions { profile: Some("p".into()), ..StoreOptions::default() };
        let credentials = find(&variables, options).await.unwrap();
        write("two");
        let used = credentials.get("o").await.unwrap().unwrap();
        assert_eq!(used.key_id, "one", "a file is only read again for a reason");
        assert!(credentials.renew(&used));
        let renewed = credentials.get("o").await.unwrap().unwrap();
        assert_eq!(renewed.key_id, "two");
        assert!(credentials.renew(&used), "a late report of the old keys");
        assert!(Arc::ptr_eq(&credentials.get("o").await.unwrap().unwrap(), &renewed));
        assert!(!format!("{credentials:?}").contains("hidden"));
    }

    #[tokio::test]
    async fn a_container_service_is_asked_and_one_that_is_not_there_fails_soon() {
        use std::io::{BufRead, BufReader, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/creds", listener.local_addr().unwrap());
        let service = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let lines = BufReader::new(socket.try_clone().unwrap()).lines();
            let head: Vec<_> =
                lines.map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
            let body = r#"{"AccessKeyId":"key","SecretAccessKey":"hidden","Token":"token",
                "Expiration":"2099-01-01T00:00:00Z"}"#;
            write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
                .unwrap();
            head
        });
        let home = tempfile::tempdir().unwrap();
        let token = home.path().join("token");
        std::fs::write(&token, "let me in").unwrap();
        let variables = |url| {
            [
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.to_str().unwrap()),
            ]
        };
        let credentials = find(&variables(&url), StoreOptions::default()).await.unwrap();
        for _ in 0..2 {
            let keys = credentials.get("o").await.unwrap().unwrap();
            assert_eq!((keys.key_id.as_str(), keys.token.as_deref()), ("key", Some("token")));
        }
        let head = service.join().unwrap();
        assert!(head.iter().any(|line| line.eq_ignore_ascii_case("authorization: let me in")));

        let started = std::time::Instant::now();
        let variables = variables("http://127.0.0.1:1/creds");
        let credentials = find(&variables, StoreOptions::default()).await.unwrap();
        let error = credentials.get("s3://b/k").await.unwrap_err();
        assert!(matches!(error, Error::BadCredentials { .. }), "{error}");
        assert!(error.to_string().starts_with("credentials for s3://b/k are no good: "), "{error}");
        assert!(started.elapsed() < PROVIDER_DEADLINE + Duration::from_secs(1));
    }
}
