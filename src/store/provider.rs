//! The services of a cloud that hand out keys: which of them is there, and what it needs to be asked.
//!
//! object_store asks them, and keeps the keys for as long as they are good. It panics where a URL, a
//! token's file or an answer holds what a request cannot carry. So URLs are checked before it sees
//! them, and its requests go through [`Checked`], which reads the token's file itself and looks at
//! answers that become part of the next request. What panics all the same is an error of that service.

use std::io::Read;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use http::header::{AUTHORIZATION, HeaderValue};
use http::{Method, Uri};
use object_store::RetryConfig;
use object_store::aws::{AmazonS3Builder, AwsCredential, AwsCredentialProvider};
use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpService,
};
use url::Url;

use super::error::root_cause;
use super::{Error, Result};
use crate::environment::Environment;

/// How long cloud services that hand out keys have. They are next door or not there at all.
pub(super) const PROVIDER_DEADLINE: Duration = Duration::from_secs(4);

/// Where a machine's metadata service is, as AWS's own tools call it.
const METADATA: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
/// The same, as object_store calls it. It goes before the other.
const METADATA_OF_LIBRARY: &str = "AWS_METADATA_ENDPOINT";
const STS: &str = "AWS_ENDPOINT_URL_STS";
const RELATIVE_URI: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
const FULL_URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
const TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";

/// The largest file of a token, in bytes. Headers are a few KiB at most.
const LARGEST_TOKEN: usize = 64 << 10;

/// The variables by which a caller says who it is.
const OF_CALLER: [&str; 5] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
];

/// A service that hands out keys.
pub(super) struct Provider {
    inner: AwsCredentialProvider,
    /// What is asked, for messages.
    pub(super) name: &'static str,
}

impl Provider {
    /// The web identity service, where the environment names an identity.
    ///
    /// # Errors
    /// [`Error::BadCredentials`] for `place` if a variable is no good.
    pub(super) fn of_web_identity(
        environment: &Environment,
        region: &str,
        client: &HttpClient,
        place: &str,
    ) -> Result<Option<Self>> {
        if !has_web_identity(environment) {
            return Ok(None);
        }
        if let Some(url) = environment.get(STS) {
            check_url(STS, url, place)?;
        }
        let client = Checked { client: client.clone(), token: None };
        let inner = provider(environment.aws(), region, client)?;
        Ok(Some(Self { inner, name: "the web identity service" }))
    }

    /// The service of the container or of the machine, where there is one. Asking a metadata service
    /// that is not there would take seconds, so its machines are told by the vendor their firmware names.
    ///
    /// # Errors
    /// [`Error::BadCredentials`] for `place` if a variable is no good.
    pub(super) fn of_machine(
        environment: &Environment,
        region: &str,
        client: &HttpClient,
        place: &str,
    ) -> Result<Option<Self>> {
        let of_container = "the container's credentials service";
        let disabled = environment.flag("AWS_EC2_METADATA_DISABLED") == Some(true);
        let metadata = environment.get(METADATA).filter(|_| !disabled);
        let mut token = None;
        let name = if let Some(path) = environment.get(RELATIVE_URI) {
            if !path.starts_with('/') {
                return Err(bad(RELATIVE_URI, "it does not start with /", place));
            }
            check_url(RELATIVE_URI, &format!("http://169.254.170.2{path}"), place)?;
            of_container
        } else if let (Some(url), Some(file)) =
            (environment.get(FULL_URI), environment.get(TOKEN_FILE))
        {
            check_url(FULL_URI, url, place)?;
            token = Some(PathBuf::from(file));
            of_container
        } else if let Some((variable, url)) = environment
            .get(METADATA_OF_LIBRARY)
            .map(|url| (METADATA_OF_LIBRARY, url))
            .or(metadata.map(|url| (METADATA, url)))
        {
            check_url(variable, url, place)?;
            "the machine's metadata service"
        } else if !disabled && is_ec2(Path::new("/sys/class/dmi/id/sys_vendor")) {
            "the machine's metadata service"
        } else {
            return Ok(None);
        };
        // What was passed over before must not be found by other code.
        let variables = environment.aws().filter(|(name, _)| !OF_CALLER.contains(name));
        let inner = provider(variables, region, Checked { client: client.clone(), token })?;
        Ok(Some(Self { inner, name }))
    }

    /// The keys of now, or what is wrong with them.
    pub(super) async fn get(&self) -> std::result::Result<Arc<AwsCredential>, String> {
        match AssertUnwindSafe(self.inner.get_credential()).catch_unwind().await {
            Ok(Ok(credential)) => Ok(credential),
            Ok(Err(error)) => Err(format!("{}: {}", self.name, root_cause(&error))),
            Err(_) => Err(format!("{}: what it says makes no sense", self.name)),
        }
    }
}

pub(super) fn has_web_identity(environment: &Environment) -> bool {
    ["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"].iter().all(|it| environment.get(it).is_some())
}

fn is_ec2(vendor: &Path) -> bool {
    std::fs::read_to_string(vendor).is_ok_and(|vendor| vendor.trim() == "Amazon EC2")
}

fn bad(variable: &str, reason: &str, place: &str) -> Error {
    Error::BadCredentials { object: place.to_owned(), reason: format!("{variable}: {reason}") }
}

/// Whether a variable holds the URL of a service, which two libraries read, each in its own way. The
/// value may hold a secret and is not shown.
fn check_url(variable: &str, value: &str, place: &str) -> Result<()> {
    let no_scheme = || bad(variable, "it does not start with http:// or https://", place);
    match Url::parse(value) {
        Ok(url) if !matches!(url.scheme(), "http" | "https") => return Err(no_scheme()),
        Ok(_) => {}
        Err(url::ParseError::RelativeUrlWithoutBase) => return Err(no_scheme()),
        Err(error) => return Err(bad(variable, &error.to_string(), place)),
    }
    match value.parse::<Uri>() {
        Ok(uri) if uri.scheme().is_some() => Ok(()),
        Ok(_) => Err(no_scheme()),
        Err(error) => Err(bad(variable, &error.to_string(), place)),
    }
}

/// The provider object_store chooses by the same variables.
fn provider<'a>(
    variables: impl Iterator<Item = (&'a str, &'a str)>,
    region: &str,
    client: Checked,
) -> Result<AwsCredentialProvider> {
    let mut builder = AmazonS3Builder::new()
        .with_http_connector(Ready(HttpClient::new(client)))
        .with_client_options(ClientOptions::new().with_allow_http(true))
        .with_retry(RetryConfig {
            max_retries: 2,
            retry_timeout: PROVIDER_DEADLINE,
            ..RetryConfig::default()
        });
    for (key, value) in variables {
        let (key, value) = match key {
            // The library knows it by a name of its own alone, which comes later in the alphabet.
            METADATA | METADATA_OF_LIBRARY => (METADATA_OF_LIBRARY, value.trim_end_matches('/')),
            // It is `Checked` that reads the file: the library would send a newline at its end.
            TOKEN_FILE => (key, "/dev/null"),
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

/// A client that lets nothing through on which the library would panic.
#[derive(Debug)]
struct Checked {
    client: HttpClient,
    /// The file whose text opens the container's service. It changes, so it is read each time.
    token: Option<PathBuf>,
}

#[async_trait]
impl HttpService for Checked {
    async fn call(&self, mut request: HttpRequest) -> std::result::Result<HttpResponse, HttpError> {
        let path = request.uri().path().to_owned();
        let becomes = match *request.method() {
            Method::PUT if path.ends_with("/latest/api/token") => Some("session token"),
            Method::GET if path.ends_with("/meta-data/iam/security-credentials/") => {
                Some("name of a role")
            }
            _ => None,
        };
        if let Err(error) = Url::parse(&request.uri().to_string()) {
            return Err(wrong(format!("its URL is no good: {error}")));
        }
        if let Some(file) = &self.token {
            let file = file.clone();
            let token = tokio::task::spawn_blocking(move || read_token(&file)).await;
            let token = token.map_err(|error| wrong(error.to_string()))?.map_err(wrong)?;
            request.headers_mut().insert(AUTHORIZATION, token);
        }
        let response = self.client.execute(request).await?;
        let Some(what) = becomes.filter(|_| response.status().is_success()) else {
            return Ok(response);
        };
        let (parts, body) = response.into_parts();
        let body = body.bytes().await?;
        let text = body.trim_ascii();
        // One stands in a header and the other in a URL; what a URL can hold, a header can.
        let fits = !text.is_empty()
            && text.iter().all(u8::is_ascii_graphic)
            && Uri::try_from([b"/", text].concat()).is_ok();
        if fits {
            Ok(HttpResponse::from_parts(parts, text.to_vec().into()))
        } else {
            Err(wrong(format!("its answer to {path} is not the {what}")))
        }
    }
}

/// An error that is not tried again.
fn wrong(reason: String) -> HttpError {
    HttpError::new_boxed(HttpErrorKind::Unknown, reason.into())
}

/// The text of a token's file, without white space around it.
fn read_token(path: &Path) -> std::result::Result<HeaderValue, String> {
    let wrong = |reason: &str| format!("{TOKEN_FILE}={}: {reason}", path.display());
    let mut text = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(LARGEST_TOKEN as u64 + 1).read_to_end(&mut text))
        .map_err(|error| wrong(&error.to_string()))?;
    if text.len() > LARGEST_TOKEN {
        return Err(wrong("it is longer than 64 KiB"));
    }
    let text = text.trim_ascii();
    if text.is_empty() {
        return Err(wrong("it is empty"));
    }
    let mut value = HeaderValue::from_bytes(text)
        .map_err(|_| wrong("it is not a single line of plain text"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use object_store::CredentialProvider;

    use super::super::{Access, tls};
    use super::*;

    fn find(variables: &[(&str, &str)]) -> Result<Provider> {
        let environment: Environment =
            variables.iter().map(|(key, value)| (*key, *value)).collect();
        let client = tls::client(&Access::default(), None)?;
        let found = match Provider::of_web_identity(&environment, "auto", &client, "s3://b")? {
            Some(found) => Some(found),
            None => Provider::of_machine(&environment, "auto", &client, "s3://b")?,
        };
        Ok(found.unwrap())
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
        let lined = home.path().join("lined");
        std::fs::write(&lined, "\r\n let-me-in\n").unwrap();
        let lined = lined.to_str().unwrap();
        let token = token.to_str().unwrap();
        type Case<'a> = (&'static [&'static str], Vec<(&'a str, &'a str)>, &'a [&'a str]);
        let cases: [Case<'_>; 6] = [
            (
                &[KEYS],
                vec![
                    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "URL/creds"),
                    ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token),
                ],
                &["GET /creds", "authorization: let-me-in"],
            ),
            (
                &[KEYS],
                vec![
                    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "URL/creds"),
                    ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", lined),
                ],
                &["authorization: let-me-in\n"],
            ),
            (
                &["session\n", "role\n", KEYS],
                vec![("AWS_METADATA_ENDPOINT", "URL/")],
                &[
                    "PUT /latest/api/token",
                    "x-aws-ec2-metadata-token: session\n",
                    "GET /latest/meta-data/iam/security-credentials/role ",
                ],
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
            let provider = find(&variables).unwrap();
            for _ in 0..2 {
                let keys = provider.get().await.unwrap();
                assert_eq!((keys.key_id.as_str(), keys.token.as_deref()), ("key", Some("token")));
            }
            let heads = service.join().unwrap().join("\n") + "\n";
            for asked in asked {
                assert!(heads.contains(asked), "{asked}: {heads}");
            }
        }
    }

    #[test]
    fn a_variable_that_is_no_url_is_named_and_its_value_is_not_shown() {
        let no_scheme = "it does not start with http:// or https://";
        let urls = [
            ("localhost:1338", no_scheme),
            ("169.254.169.254", no_scheme),
            ("/x", no_scheme),
            ("ftp://h", no_scheme),
            ("http://", "empty host"),
            ("http://h ost", "invalid international domain name"),
            ("http://h:99999", "invalid port number"),
            ("http://h/a b", "invalid uri character"),
            ("http://h\n", "invalid uri character"),
        ];
        let token = ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/t");
        let identity = ("AWS_WEB_IDENTITY_TOKEN_FILE", "/t");
        let role = ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r");
        for (variable, more) in [
            (METADATA, vec![]),
            (METADATA_OF_LIBRARY, vec![(METADATA, "http://h")]),
            (FULL_URI, vec![token]),
            (STS, vec![identity, role]),
        ] {
            for (url, reason) in urls {
                let variables = [vec![(variable, url)], more.clone()].concat();
                let error = find(&variables).err().unwrap();
                assert!(matches!(error, Error::BadCredentials { .. }), "{error:?}");
                let expected = format!("credentials for s3://b are no good: {variable}: {reason}");
                assert_eq!(error.to_string(), expected, "{url:?}");
            }
        }
        for (path, reason) in [("x", "it does not start with /"), ("/a b", "invalid uri character")]
        {
            let error = find(&[(RELATIVE_URI, path)]).err().unwrap().to_string();
            assert!(error.ends_with(&format!(": {RELATIVE_URI}: {reason}")), "{error}");
        }
    }

    #[tokio::test]
    async fn what_a_request_cannot_carry_is_told_in_a_line() {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
        for (name, text) in [("two", "SECRET\nlines"), ("empty", " \n")] {
            std::fs::write(path(name), text).unwrap();
        }
        for (name, reason) in [
            ("two", "it is not a single line of plain text"),
            ("empty", "it is empty"),
            ("none", "No such file or directory (os error 2)"),
        ] {
            let variables = [(FULL_URI, "http://127.0.0.1:1/creds"), (TOKEN_FILE, &*path(name))];
            let error = find(&variables).unwrap().get().await.unwrap_err();
            let file = format!("{TOKEN_FILE}={}", path(name));
            assert_eq!(error, format!("the container's credentials service: {file}: {reason}"));
        }
        let roles =
            "its answer to /latest/meta-data/iam/security-credentials/ is not the name of a role";
        let session = "its answer to /latest/api/token is not the session token";
        let cases: [(&'static [&'static str], &str); 5] = [
            (&["session", "junk SECRETBODY"], roles),
            (&["session", ""], roles),
            (&["session", "<junk>"], roles),
            (&["a\nb"], session),
            (&["session", "role", "junk"], "expected value at line 1 column 1"),
        ];
        for (answers, reason) in cases {
            let (url, service) = serve(answers);
            let error = find(&[(METADATA, &*url)]).unwrap().get().await.unwrap_err();
            assert_eq!(error, format!("the machine's metadata service: {reason}"));
            service.join().unwrap();
        }
    }

    #[tokio::test]
    async fn a_panic_of_the_library_is_an_error_of_the_service() {
        #[derive(Debug)]
        struct Panics;
        #[async_trait]
        impl CredentialProvider for Panics {
            type Credential = AwsCredential;
            async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
                panic!("as asked")
            }
        }
        let provider = Provider { inner: Arc::new(Panics), name: "it" };
        assert_eq!(provider.get().await.unwrap_err(), "it: what it says makes no sense");
    }

    #[test]
    fn a_token_is_read_whole_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let read = |text: &[u8]| {
            std::fs::write(&file, text).unwrap();
            read_token(&file)
        };
        for len in [1, LARGEST_TOKEN - 1, LARGEST_TOKEN] {
            let text = vec![b'a'; len];
            assert_eq!(read(&text).unwrap().as_bytes(), text);
        }
        assert_eq!(read(b" a b\n\n").unwrap(), "a b");
        for (text, reason) in [
            (vec![b'a'; LARGEST_TOKEN + 1], "it is longer than 64 KiB"),
            (b"\n \n".to_vec(), "it is empty"),
            (b"a\nb".to_vec(), "it is not a single line of plain text"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.ends_with(reason) && error.contains("token"), "{error}");
        }
    }
}
