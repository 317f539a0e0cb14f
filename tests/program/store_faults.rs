//! What goes wrong on the way to an object, against a real server: the right error in words that
//! name the object, or no error at all.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::s3::{ACCESS_KEY, Config, Fault, S3Server, SECRET_KEY};
use tempfile::TempDir;
use thawfs::environment::Environment;
use thawfs::store::{Access, ETag, Error, GetRange, Hedged, Ranged, ReadRanges, Source};

const SIZE: usize = 300_000;
const NAME: &str = "s3://bucket/dir/data.sqsh";

fn content() -> Vec<u8> {
    (0..SIZE as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

struct Setup {
    root: TempDir,
    server: S3Server,
}

impl Setup {
    fn new() -> Self {
        Self::with(|config| config)
    }

    fn with(change: impl FnOnce(Config) -> Config) -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("bucket/dir")).unwrap();
        std::fs::write(root.path().join("bucket/dir/data.sqsh"), content()).unwrap();
        let server = S3Server::start(change(Config::new(root.path()))).unwrap();
        Self { root, server }
    }

    fn options(&self, variables: &[(&str, &str)]) -> Access {
        Access {
            endpoint: Some(self.server.url()),
            deadline: Duration::from_millis(1500),
            environment: variables.iter().copied().collect(),
            ..Access::default()
        }
    }

    fn good(&self) -> Access {
        self.options(&[("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)])
    }
}

async fn open(source: &str, options: &Access) -> Arc<dyn ReadRanges> {
    source.parse::<Source>().unwrap().archive(options).await.unwrap()
}

async fn get(object: &dyn ReadRanges, range: GetRange) -> Result<Ranged, Error> {
    object.get_range(range, None, 64 << 10).await
}

fn bytes(ranged: &Ranged) -> Vec<u8> {
    ranged.pieces.concat()
}

#[tokio::test]
async fn ranges_are_cut_at_the_end_and_tell_the_size() {
    let setup = Setup::new();
    let object = open(NAME, &setup.good()).await;
    let (content, size) = (content(), SIZE as u64);
    for (range, expected) in [
        (GetRange::Between(0..96), 0..96),
        (GetRange::Between(size - 10..size + 50), size - 10..size),
        (GetRange::Last(1000), size - 1000..size),
        (GetRange::Last(1 << 40), 0..size),
    ] {
        let ranged = get(&*object, range).await.unwrap();
        let span = expected.start as usize..expected.end as usize;
        assert_eq!((ranged.range.clone(), ranged.size), (expected, size));
        assert!(bytes(&ranged) == content[span]);
        assert!(ranged.etag.is_some());
        assert!(ranged.pieces.iter().rev().skip(1).all(|piece| piece.len() == 64 << 10));
    }
    assert!(setup.server.log().iter().all(|seen| seen.method == "GET"), "no HEAD is needed");
}

#[tokio::test]
async fn every_refusal_has_its_error_and_names_the_object() {
    let setup = Setup::new();
    let keys = |key, secret| [("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", secret)];
    let good = setup.good();
    let refused = Some("http://127.0.0.1:1".to_owned());
    let table: Vec<(&str, Access, Option<Fault>, &str)> = vec![
        ("s3://bucket/no.sqsh", good.clone(), None, "s3://bucket/no.sqsh does not exist"),
        (
            "s3://nobucket/no.sqsh",
            good.clone(),
            None,
            "bucket nobucket does not exist at 127.0.0.1:",
        ),
        (
            NAME,
            setup.options(&keys(ACCESS_KEY, "wrong")),
            None,
            "credentials for s3://bucket/dir/data.sqsh are no good: SignatureDoesNotMatch",
        ),
        (
            NAME,
            setup.options(&keys("nobody", SECRET_KEY)),
            None,
            "credentials for s3://bucket/dir/data.sqsh are no good: NotSignedUp",
        ),
        (
            NAME,
            Access { anonymous: true, ..good.clone() },
            None,
            "access to s3://bucket/dir/data.sqsh was denied (AccessDenied)",
        ),
        (
            NAME,
            good.clone(),
            Some(Fault::Refuse(403, "ExpiredToken")),
            "credentials for s3://bucket/dir/data.sqsh have expired",
        ),
        (
            NAME,
            good.clone(),
            Some(Fault::IgnoreRange),
            "s3://bucket/dir/data.sqsh: asked for a range of bytes, the server answered with 200 OK",
        ),
        (
            NAME,
            good.clone(),
            Some(Fault::Refuse(301, "PermanentRedirect")),
            "s3://bucket/dir/data.sqsh: the server sends us elsewhere",
        ),
        (
            NAME,
            good.clone(),
            Some(Fault::Refuse(400, "Odd")),
            "s3://bucket/dir/data.sqsh: the server refused: 400 (Odd as asked)",
        ),
        (
            NAME,
            Access { endpoint: refused, ..good.clone() },
            None,
            "cannot talk to 127.0.0.1:1: Connection refused (os error 111)",
        ),
    ];
    for (source, options, fault, expected) in table {
        if let Some(fault) = fault {
            setup.server.inject(fault, 1);
        }
        let object = open(source, &options).await;
        let error = get(&*object, GetRange::Between(0..100)).await.unwrap_err();
        assert!(error.to_string().starts_with(expected), "{error}\nexpected {expected}");
        let counters = object.counters();
        // Not tried until the deadline, but for a server that may be about to start.
        assert!(counters.errors == 1 && counters.retries <= 2, "{error}: {counters:?}");
    }
    let empty = setup.root.path().join("bucket/empty.sqsh");
    std::fs::write(empty, "").unwrap();
    let object = open("s3://bucket/empty.sqsh", &good).await;
    for (range, expected) in [
        (GetRange::Between(0..96), "s3://bucket/empty.sqsh has no bytes at bytes=0-95"),
        (GetRange::Last(96), "s3://bucket/empty.sqsh has no bytes at bytes=-96"),
    ] {
        assert_eq!(get(&*object, range).await.unwrap_err().to_string(), expected);
    }
}

#[tokio::test]
async fn what_passes_is_tried_again_and_only_the_rest_is_fetched() {
    let setup = Setup::new();
    let content = content();
    type Faults = Vec<(Fault, usize)>;
    let table: Vec<(Faults, &[&str])> = vec![
        (vec![(Fault::Truncate(1000), 1)], &["bytes=10-200009", "bytes=1010-200009"]),
        (
            vec![(Fault::Truncate(1000), 2)],
            &["bytes=10-200009", "bytes=1010-200009", "bytes=2010-200009"],
        ),
        (vec![(Fault::Truncate(0), 1)], &["bytes=10-200009", "bytes=10-200009"]),
        (vec![(Fault::Stall(5), 1)], &["bytes=10-200009", "bytes=15-200009"]),
        (vec![(Fault::Silence, 1)], &["bytes=10-200009", "bytes=10-200009"]),
        (
            vec![(Fault::Refuse(500, ""), 1), (Fault::Refuse(503, "SlowDown"), 1)],
            &["bytes=10-200009", "bytes=10-200009", "bytes=10-200009"],
        ),
    ];
    let object = open(NAME, &setup.good()).await;
    for (faults, requests) in table {
        setup.server.clear_log();
        let retries = object.counters().retries;
        for (fault, times) in &faults {
            setup.server.inject(fault.clone(), *times);
        }
        let ranged = get(&*object, GetRange::Between(10..200_010)).await.unwrap();
        assert!(bytes(&ranged) == content[10..200_010], "{faults:?}");
        let asked: Vec<String> =
            setup.server.log().into_iter().filter_map(|seen| seen.range).collect();
        assert_eq!(asked, requests, "{faults:?}");
        let resumed = object.counters().retries - retries;
        assert_eq!(resumed as usize, requests.len() - 1, "{faults:?}");
    }
    setup.server.clear_log();
    setup.server.inject(Fault::Truncate(1000), 1);
    let ranged = get(&*object, GetRange::Last(5000)).await.unwrap();
    assert!(bytes(&ranged) == content[SIZE - 5000..], "a range from the end resumes too");
    let log = setup.server.log();
    assert_eq!(log[1].range.as_deref(), Some("bytes=296000-299999"));
    assert_eq!(log[1].if_match, ranged.etag.map(|etag| etag.0), "the rest of the same version");
}

#[tokio::test]
async fn time_is_up_at_the_deadline_and_the_last_cause_is_told() {
    let setup = Setup::new();
    for (fault, cause) in [
        (Fault::Refuse(503, "SlowDown"), "the server answered 503 (SlowDown)"),
        (Fault::Silence, "the server sent nothing for"),
        (Fault::Stall(0), "the server sent nothing for"),
        (Fault::Truncate(0), "cannot talk to 127.0.0.1:"),
    ] {
        setup.server.heal();
        setup.server.inject(fault.clone(), usize::MAX);
        let options = Access { deadline: Duration::from_millis(800), ..setup.good() };
        let object = open(NAME, &options).await;
        let started = Instant::now();
        let error = get(&*object, GetRange::Between(0..100)).await.unwrap_err();
        let text = error.to_string();
        let expected = "s3://bucket/dir/data.sqsh: gave up after ";
        assert!(text.starts_with(expected) && text.contains(cause), "{fault:?}: {text}");
        assert!(matches!(error, Error::Timeout { .. }));
        let took = started.elapsed();
        // All of it is used, but for what the last attempt had.
        assert!(took.as_millis() >= 700, "{fault:?} took {took:?}");
    }
}

#[tokio::test]
async fn a_slow_transfer_may_take_longer_than_the_deadline() {
    let setup = Setup::with(|config| Config { connection_rate: Some(150_000), ..config });
    let options = setup.good();
    let object = open(NAME, &options).await;
    let started = Instant::now();
    let ranged = get(&*object, GetRange::Between(0..SIZE as u64)).await.unwrap();
    assert!(bytes(&ranged) == content());
    assert!(started.elapsed() > options.deadline);
    assert_eq!(object.counters().retries, 0);
}

#[tokio::test]
async fn a_trickle_is_progress_for_four_deadlines_and_then_has_its_reason() {
    let setup = Setup::with(|config| Config { connection_rate: Some(30_000), ..config });
    let options = setup.good();
    let object = open(NAME, &options).await;
    let started = Instant::now();
    let ranged = get(&*object, GetRange::Between(0..100_000)).await.unwrap();
    assert!(bytes(&ranged) == content()[..100_000]);
    assert!(started.elapsed() > options.deadline * 2);
    assert_eq!(object.counters().retries, 0);

    let started = Instant::now();
    let error = get(&*object, GetRange::Between(0..SIZE as u64)).await.unwrap_err().to_string();
    assert!(started.elapsed() >= options.deadline * 4);
    assert!(error.contains(" of 300000 bytes came in 6."), "{error}");
    assert!(!error.contains("sent nothing"), "{error}");
}

#[tokio::test]
async fn a_stall_is_retried_however_short_the_deadline_is() {
    let setup = Setup::new();
    for fault in [Fault::Silence, Fault::Stall(0), Fault::Stall(5)] {
        for deadline in [1, 2, 5] {
            let options = Access { deadline: Duration::from_secs(deadline), ..setup.good() };
            let object = open(NAME, &options).await;
            setup.server.inject(fault.clone(), 1);
            let ranged = get(&*object, GetRange::Between(0..100)).await.unwrap();
            assert!(bytes(&ranged) == content()[..100]);
            assert_eq!(object.counters().retries, 1, "{fault:?} within {deadline} s");
        }
    }
}

#[tokio::test]
async fn a_server_that_asks_for_a_pause_gets_it_up_to_the_deadline() {
    let setup = Setup::new();
    let options = Access { deadline: Duration::from_secs(4), ..setup.good() };
    // The last attempt begins after 3.8 s.
    for (asked, least) in [("0", 0), ("1", 1000), ("3", 3000), ("4", 3700), ("99999999", 3700)] {
        let object = open(NAME, &options).await;
        setup.server.clear_log();
        setup.server.inject(Fault::HoldOff(asked), 1);
        let started = Instant::now();
        let got = get(&*object, GetRange::Between(0..100)).await;
        // A busy machine may not get through the last attempt in its fifth of a second.
        assert!(got.is_ok() || least > 3000, "Retry-After: {asked}: {got:?}");
        assert!(started.elapsed() >= Duration::from_millis(least), "Retry-After: {asked}");
        assert_eq!(setup.server.log().len(), 2, "Retry-After: {asked}");
    }
    let object = open(NAME, &options).await;
    setup.server.clear_log();
    setup.server.inject(Fault::HoldOff("3"), usize::MAX);
    let started = Instant::now();
    let error = get(&*object, GetRange::Between(0..100)).await.unwrap_err().to_string();
    assert!(error.contains("gave up after") && error.contains("503"), "{error}");
    assert!(started.elapsed() >= Duration::from_millis(3700), "{error}");
    assert_eq!(setup.server.log().len(), 3, "at once, after 3 s, and before the end");

    // Nor is it asked a second time meanwhile.
    setup.server.heal();
    let hedged = Hedged::new(object);
    let range = || GetRange::Between(0..1000);
    for _ in 0..100 {
        hedged.get_range(range(), None, 1000).await.unwrap();
    }
    setup.server.clear_log();
    setup.server.inject(Fault::HoldOff("2"), 1);
    hedged.get_range(range(), None, 1000).await.unwrap();
    assert_eq!(setup.server.log().len(), 2);
}

#[tokio::test]
async fn a_redirect_is_followed_on_the_host_and_to_those_that_are_allowed() {
    let setup = Setup::with(|config| Config { keys: None, ..config });
    let other = S3Server::start(Config { keys: None, ..Config::new(setup.root.path()) }).unwrap();
    let path = "/bucket/dir/data.sqsh?sig=topsecret";
    let source = format!("{}{path}", setup.server.url());
    let port = other.url().rsplit(':').next().unwrap().to_owned();
    let to = |host: &str| format!("http://{host}:{port}{path}");
    let allowing = |hosts: &[&str]| Access {
        allow_redirects_to: hosts.iter().map(|host| host.to_string()).collect(),
        ..setup.options(&[])
    };
    let get = async |options: Access, to: String| {
        let object = open(&source, &options).await;
        setup.server.inject(Fault::Redirect(to), 1);
        let ranged = get(&*object, GetRange::Between(0..100)).await;
        ranged.map(|ranged| assert!(bytes(&ranged) == content()[..100]))
    };
    get(allowing(&[]), to("127.0.0.1")).await.unwrap();
    get(allowing(&["elsewhere", "localhost"]), to("localhost")).await.unwrap();
    assert_eq!(other.log().len(), 2);
    for (allowed, host, expected) in [
        (&["elsewhere"][..], "localhost", "another host, localhost"),
        (&["169.254.1.1"], "169.254.1.1", "169.254.1.1, which is at 169.254.1.1, an address of"),
    ] {
        let error = get(allowing(allowed), to(host)).await.unwrap_err();
        assert!(matches!(error, Error::BadRedirect { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&format!(": the server redirects to {expected}")), "{text}");
        assert!(!text.contains("topsecret"), "{text}");
    }
    assert_eq!(other.log().len(), 2);
}

#[tokio::test]
async fn another_version_is_refused_by_the_server_and_by_us() {
    let setup = Setup::new();
    let object = open(NAME, &setup.good()).await;
    let range = GetRange::Between(0..100);
    let old = get(&*object, range.clone()).await.unwrap().etag.unwrap();
    let same = object.get_range(range.clone(), Some(&old), 100).await;
    assert_eq!(same.unwrap().etag.as_ref(), Some(&old));
    std::fs::write(setup.root.path().join("bucket/dir/data.sqsh"), vec![7; SIZE]).unwrap();
    for (tag, by) in [(old.clone(), 412), (ETag(format!("W/{}", old.0)), 206)] {
        let error = object.get_range(range.clone(), Some(&tag), 100).await;
        let error = error.unwrap_err();
        assert_eq!(error.to_string(), "s3://bucket/dir/data.sqsh changed while it was in use");
        assert_eq!(setup.server.log().last().unwrap().status, by);
    }
}

#[tokio::test]
async fn expired_keys_of_a_profile_are_read_again_once() {
    let setup = Setup::new();
    let file = setup.root.path().join("credentials");
    let profile = |secret: &str| {
        std::fs::write(
            &file,
            format!("[p]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={secret}\n"),
        )
        .unwrap();
    };
    profile("old");
    let options = Access {
        profile: Some("p".into()),
        ..setup.options(&[("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap())])
    };
    let object = open(NAME, &options).await;
    profile(SECRET_KEY);
    setup.server.inject(Fault::Refuse(403, "ExpiredToken"), 1);
    let ranged = get(&*object, GetRange::Between(0..100)).await.unwrap();
    assert!(bytes(&ranged) == content()[..100]);
    assert_eq!(setup.server.gets(), 2);
    setup.server.inject(Fault::Refuse(400, "ExpiredToken"), 2);
    let error = get(&*object, GetRange::Between(0..100)).await.unwrap_err();
    assert!(matches!(error, Error::ExpiredCredentials { .. }), "{error}");
}

#[tokio::test]
async fn a_session_token_is_sent_and_nothing_odd_is() {
    let setup = Setup::new();
    let options = setup.options(&[
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ("AWS_SESSION_TOKEN", "token/+=="),
    ]);
    let object = open(NAME, &options).await;
    get(&*object, GetRange::Between(0..100)).await.unwrap();
    let bucket = NAME.parse::<Source>().unwrap().object(&options).await.unwrap().bucket;
    bucket.put("x", vec![1; 1 << 20].into()).await.unwrap();
    for seen in setup.server.log() {
        assert_eq!(seen.headers["x-amz-security-token"], "token/+==");
        for odd in ["expect", "transfer-encoding", "x-amz-trailer", "content-encoding", "referer"] {
            assert!(!seen.headers.contains_key(odd), "{odd} on {} {}", seen.method, seen.path);
        }
    }
}

#[tokio::test]
async fn a_plain_url_is_a_source_whose_query_stays_secret() {
    let setup = Setup::with(|config| Config { keys: None, ..config });
    let host = setup.server.url().replace("http://", "");
    let url = format!("http://{host}/bucket/dir/data.sqsh?sig=topsecret");
    let object = open(&url, &setup.options(&[])).await;
    assert_eq!(object.name(), format!("http://{host}/bucket/dir/data.sqsh"));
    let ranged = get(&*object, GetRange::Last(100)).await.unwrap();
    assert!(bytes(&ranged) == content()[SIZE - 100..]);
    let seen = setup.server.log().pop().unwrap();
    assert_eq!(seen.query, "sig=topsecret");
    assert!(!seen.headers.contains_key("authorization"));
    let error = url.parse::<Source>().unwrap().folder(&setup.options(&[])).await.unwrap_err();
    assert_eq!(error.to_string(), format!("http://{host}/bucket/dir/data.sqsh can only be read"));
    setup.server.inject(Fault::IgnoreRange, 1);
    let error = get(&*object, GetRange::Last(100)).await.unwrap_err();
    assert!(matches!(error, Error::RangeIgnored { .. }), "{error}");

    let url = format!("http://user:pa%3Ass@{host}/bucket/dir/data.sqsh?sig=topsecret");
    let object = open(&url, &setup.options(&[])).await;
    setup.server.inject(Fault::Refuse(403, "AccessDenied"), 1);
    let error = get(&*object, GetRange::Last(100)).await.unwrap_err();
    let seen = setup.server.log().pop().unwrap();
    assert_eq!(seen.headers["authorization"], "Basic dXNlcjpwYTpzcw==");
    assert!(matches!(error, Error::AccessDenied { .. }), "{error}");
    let shown = format!("{error} {error:?} {object:?}");
    assert!(!shown.contains("topsecret") && !shown.contains("user"), "{shown}");
}

#[tokio::test]
async fn debug_output_shows_no_key() {
    let setup = Setup::new();
    let options = setup.good();
    let object = open(NAME, &options).await;
    let shown = format!("{options:?} {object:?} {:?}", Environment::of_process());
    assert!(!shown.contains(SECRET_KEY) && !shown.contains(ACCESS_KEY), "{shown}");
}

#[tokio::test]
async fn what_takes_longer_than_usual_is_asked_again_but_not_often() {
    let setup = Setup::new();
    let object = open(NAME, &setup.good()).await;
    let hedged = Hedged::new(object);
    let content = content();
    let get = async |at: usize| {
        let range = GetRange::Between(at as u64..at as u64 + 1000);
        let ranged = hedged.get_range(range, None, 1000).await.unwrap();
        assert!(ranged.pieces.concat() == content[at..at + 1000]);
    };
    for at in 0..100 {
        get(at).await;
    }
    // None, unless this machine stalls.
    let before = hedged.counters();
    assert!(before.hedges < 5, "{before:?}");

    // Longer than any answer takes here, and shorter than what would be tried again.
    setup.server.inject(Fault::Delay(Duration::from_millis(250)), 1);
    get(1000).await;
    let after = hedged.counters();
    assert_eq!(after.hedges, before.hedges + 1, "{after:?}");
    assert_eq!(after.hedges_won, before.hedges_won + 1, "{after:?}");
    assert_eq!(after.retries, 0, "{after:?}");

    // A store that is slow altogether is not asked twice for everything.
    setup.server.inject(Fault::Delay(Duration::from_millis(60)), 40);
    for at in 0..20 {
        get(at).await;
    }
    let hedges = hedged.counters().hedges;
    assert!((1..=6).contains(&hedges), "{hedges} of 121");
}
