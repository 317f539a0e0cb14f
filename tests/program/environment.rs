//! Which variable, option and file counts, in the order of AWS's command line and botocore: as tables,
//! through the program, by what a server is asked and how that is signed.

use std::path::Path;
use std::process::{Command, Output};

use crate::support::mount::{Bench, write_tree};
use crate::support::s3::{Config, S3Server};

/// A server, and the files of a home in which profiles say how to reach it.
struct Setup {
    bench: Bench,
    server: S3Server,
}

/// A request as it tells where its settings came from.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    /// Which of the endpoints: the first segment of the path.
    endpoint: String,
    key: String,
    region: String,
    token: Option<String>,
}

impl Setup {
    fn new() -> Self {
        let bench = Bench::new();
        let config = Config { keys: None, ..Config::new(bench.directory("buckets")) };
        let server = S3Server::start(config).unwrap();
        let setup = Self { bench, server };
        setup.write(
            ".aws/config",
            "[default]\nregion = default-region\n\
             [profile plain]\nregion = plain-region\nendpoint_url = @/plain\n\
             [profile parts]\nservices = ours\nendpoint_url = @/all\n\
             [services ours]\ns3 =\n  endpoint_url = @/parts\n\
             [profile ignoring]\nignore_configured_endpoint_urls = true\nendpoint_url = @/no\n\
             [profile dangling]\nservices = nowhere\n\
             [profile role]\nrole_arn = arn:aws:iam::1:role/x\n\
             [profile process]\ncredential_process = echo '{\"Version\": 1, \
             \"AccessKeyId\": \"of-process\", \"SecretAccessKey\": \"s\"}'\n\
             aws_access_key_id = of-config\naws_secret_access_key = s\n",
        );
        setup.write(
            ".aws/credentials",
            "[default]\naws_access_key_id = of-default\naws_secret_access_key = s\n\
             [plain]\naws_access_key_id = of-plain\naws_secret_access_key = s\n\
             aws_session_token = plain-token\n\
             [parts]\naws_access_key_id = of-parts\naws_secret_access_key = s\n\
             [ignoring]\naws_access_key_id = of-ignoring\naws_secret_access_key = s\n\
             [dangling]\naws_access_key_id = of-dangling\naws_secret_access_key = s\n\
             [role]\naws_access_key_id = of-role\naws_secret_access_key = s\n\
             [half]\naws_secret_access_key = s\n",
        );
        setup
    }

    /// Writes a file below the home; `@` in it stands for the server.
    fn write(&self, name: &str, text: &str) {
        let path = self.bench.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text.replace('@', &self.server.url())).unwrap();
    }

    /// A command with these variables, `NAME=VALUE` each, and arguments, which words separate.
    fn command(&self, variables: &str, arguments: &str) -> Command {
        let mut command = self.bench.thawfs();
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        for variable in variables.replace('@', &self.server.url()).split_whitespace() {
            command.env(variable.split_once('=').unwrap().0, variable.split_once('=').unwrap().1);
        }
        command.args(arguments.replace('@', &self.server.url()).split_whitespace());
        command
    }

    /// Runs it, and gives what the server was asked first, if it was.
    fn ask(&self, variables: &str, arguments: &str) -> (Option<Asked>, Output) {
        self.server.clear_log();
        let output = self.command(variables, arguments).output().unwrap();
        let log = self.server.log();
        let asked = log.first().map(|seen| {
            let header = |name: &str| seen.headers.get(name).map(|it| it.to_str().unwrap());
            let signed = header("authorization").unwrap_or_default();
            let credential = signed.split("Credential=").nth(1).unwrap_or_default();
            let words: Vec<_> = credential.split('/').collect();
            let word = |at: usize| words.get(at).copied().unwrap_or_default().to_owned();
            Asked {
                endpoint: seen.path.split('/').nth(1).unwrap().to_owned(),
                key: word(0),
                region: word(2),
                token: header("x-amz-security-token").map(str::to_owned),
            }
        });
        (asked, output)
    }

    /// Checks a table of variables, more options, and `ENDPOINT KEY REGION` or the words of a failure.
    fn check(&self, command: &str, table: &[(&str, &str, &str)]) {
        for (variables, options, expected) in table {
            let case = format!("{variables} thawfs {command} {options}");
            let (asked, output) = self.ask(variables, &format!("{command} {options}"));
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            match asked {
                Some(Asked { endpoint, key, region, .. }) => {
                    assert_eq!(format!("{endpoint} {key} {region}"), *expected, "{case}: {said}");
                }
                None => assert!(said.contains(expected), "{case}: {said}"),
            }
        }
    }
}

const KEYS: &str = "AWS_ACCESS_KEY_ID=of-variable AWS_SECRET_ACCESS_KEY=s";

#[test]
fn credentials_are_taken_in_the_order_of_aws() {
    let setup = Setup::new();
    let keys = |more: &str| format!("AWS_ENDPOINT_URL=@/e AWS_REGION=r {KEYS} {more}");
    let bare = |more: &str| format!("AWS_ENDPOINT_URL=@/e AWS_REGION=r {more}");
    let half = "AWS_ENDPOINT_URL=@/e AWS_REGION=r AWS_ACCESS_KEY_ID=of-variable";
    let other = "AWS_ENDPOINT_URL=@/e AWS_REGION=r AWS_SECRET_ACCESS_KEY=s AWS_ACCESS_KEY_ID=";
    let no_secret = "AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not";
    let no_id = "AWS_SECRET_ACCESS_KEY is set, but AWS_ACCESS_KEY_ID is not";
    let identity = "AWS_WEB_IDENTITY_TOKEN_FILE=/no/such/token AWS_ROLE_ARN=arn:aws:iam::1:role/x";
    setup.check(
        "ls s3://b/k.sqsh --timeout 2",
        &[
            (&keys("AWS_PROFILE=plain"), "--profile parts", "e of-parts r"),
            (&keys("AWS_PROFILE=plain"), "", "e of-variable r"),
            (&bare("AWS_PROFILE=plain"), "", "e of-plain r"),
            (&bare(""), "", "e of-default r"),
            // One that is not there matters where it is asked for.
            (&keys("AWS_PROFILE=nope"), "", "e of-variable r"),
            (&bare("AWS_PROFILE=nope"), "", "profile nope: neither"),
            (&keys("AWS_PROFILE=plain"), "--profile nope", "profile nope: neither"),
            // Set to nothing is not set.
            (&keys("AWS_PROFILE="), "", "e of-variable r"),
            (&bare("AWS_PROFILE= AWS_ACCESS_KEY_ID= AWS_SECRET_ACCESS_KEY="), "", "e of-default r"),
            // Half a pair is a mistake, which does not matter where keys come from elsewhere.
            (half, "", no_secret),
            (other, "", no_id),
            (half, "--profile plain", "e of-plain r"),
            (half, "--anonymous", "e  "),
            (&bare(""), "--profile half", "it has aws_secret_access_key but no aws_access_key_id"),
            // A web identity of the environment goes before the profile that nobody asked for.
            (&bare(&format!("{identity} AWS_PROFILE=plain")), "", "/no/such/token"),
            (&bare(identity), "--profile plain", "e of-plain r"),
            (&keys(identity), "", "e of-variable r"),
            (&bare(identity), "--profile process", "e of-process r"),
            (&bare("AWS_PROFILE=role"), "", "role_arn is not supported"),
        ],
    );
    // Wherever the half of it is, it is credentials that are missing.
    for (variables, options) in [(half.to_owned(), ""), (bare(""), "--profile half")] {
        let (_, output) = setup.ask(&variables, &format!("ls s3://b/k.sqsh {options}"));
        assert_eq!(output.status.code(), Some(4), "{variables} {options}");
    }
    // A token belongs to its keys.
    let token = |variables: &str, options: &str| {
        setup.ask(variables, &format!("ls s3://b/k.sqsh {options}")).0.unwrap().token
    };
    let with_token = keys("AWS_SESSION_TOKEN=variable-token");
    assert_eq!(token(&with_token, "").as_deref(), Some("variable-token"));
    assert_eq!(token(&with_token, "--profile plain").as_deref(), Some("plain-token"));
    assert_eq!(token(&with_token, "--profile parts"), None);
    assert_eq!(token(&keys("AWS_SESSION_TOKEN="), ""), None);
}

#[test]
fn a_service_of_keys_that_cannot_be_asked_is_told_in_a_line() {
    let setup = Setup::new();
    setup.write("two-lines", "one\ntwo\n");
    let file = setup.bench.path("two-lines");
    let container = "AWS_CONTAINER_CREDENTIALS_FULL_URI=@/keys";
    let container =
        format!("{container} AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE={}", file.display());
    let line = |text: &str| text.replace('@', file.to_str().unwrap());
    let no_scheme = "it does not start with http:// or https://";
    for (variables, reason) in [
        (
            "AWS_EC2_METADATA_DISABLED=false AWS_EC2_METADATA_SERVICE_ENDPOINT=localhost:1338",
            format!("AWS_EC2_METADATA_SERVICE_ENDPOINT: {no_scheme}"),
        ),
        ("AWS_METADATA_ENDPOINT=/x", format!("AWS_METADATA_ENDPOINT: {no_scheme}")),
        (&container, line("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=@: it is not a single line")),
    ] {
        // No profile has keys here.
        let variables = format!("AWS_ENDPOINT_URL=@/e AWS_CONFIG_FILE=/dev/null {variables}");
        let variables = format!("AWS_SHARED_CREDENTIALS_FILE=/dev/null {variables}");
        let (_, output) = setup.ask(&variables, "ls s3://b/k.sqsh --timeout 3");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{variables}: {said}");
        assert!(said.contains(&reason) && !said.contains("panicked"), "{variables}: {said}");
    }
}

#[test]
fn endpoints_and_regions_are_taken_in_the_order_of_aws() {
    let setup = Setup::new();
    let both = "AWS_ENDPOINT_URL_S3=@/s3 AWS_ENDPOINT_URL=@/all AWS_REGION=r";
    let ignore = "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS";
    let elsewhere = "cannot talk to b.s3.r.amazonaws.com";
    // Where nothing says otherwise the request goes to AWS, which is nowhere behind this proxy.
    let aws = "HTTPS_PROXY=http://127.0.0.1:9 AWS_REGION=r";
    setup.check(
        "ls s3://b/k.sqsh --timeout 2",
        &[
            (&format!("{KEYS} {both}"), "--endpoint @/option", "option of-variable r"),
            (&format!("{KEYS} {both}"), "", "s3 of-variable r"),
            (&format!("{KEYS} AWS_ENDPOINT_URL=@/all"), "", "all of-variable default-region"),
            (
                &format!("{KEYS} AWS_ENDPOINT_URL_S3= AWS_ENDPOINT_URL=@/all AWS_REGION="),
                "",
                "all of-variable default-region",
            ),
            ("AWS_ENDPOINT_URL=@/all", "--profile parts", "all of-parts us-east-1"),
            (
                "AWS_ENDPOINT_URL= AWS_ENDPOINT_URL_S3=",
                "--profile parts",
                "parts of-parts us-east-1",
            ),
            ("", "--profile plain", "plain of-plain plain-region"),
            // Keys of the environment with all else that the profile says.
            (&format!("{KEYS} AWS_PROFILE=parts"), "", "parts of-variable us-east-1"),
            ("", "--profile dangling", "~/.aws/config has no [services nowhere]"),
            ("AWS_ENDPOINT_URL=@/all", "--profile dangling", "all of-dangling us-east-1"),
            // What is switched off, where, and how it is written.
            (&format!("{both} {aws} {ignore}=true"), "--profile parts", elsewhere),
            (&format!("{both} {aws} {ignore}=TRUE"), "", elsewhere),
            (&format!("{both} {aws} {ignore}=true"), "--endpoint @/option", "option of-default r"),
            (&format!("{both} {ignore}=false"), "", "s3 of-default r"),
            (&format!("{both} {ignore}="), "", "s3 of-default r"),
            (&format!("{both} {aws}"), "--profile ignoring", elsewhere),
            (&format!("{both} {ignore}=false"), "--profile ignoring", "s3 of-ignoring r"),
            // Regions.
            (
                &format!("{both} AWS_DEFAULT_REGION=d"),
                "--region option --profile plain",
                "s3 of-plain option",
            ),
            (&format!("{both} AWS_DEFAULT_REGION=d"), "--profile plain", "s3 of-plain r"),
            (
                "AWS_ENDPOINT_URL=@/all AWS_REGION= AWS_DEFAULT_REGION=d",
                "--profile plain",
                "all of-plain d",
            ),
        ],
    );
}

#[test]
fn the_configuration_file_goes_after_variables_and_before_the_profile() {
    let setup = Setup::new();
    setup.write(
        ".config/thawfs/config.toml",
        "bucket = \"s3://b/file\"\nendpoint = \"@/file\"\nregion = \"file-region\"\n\
         profile = \"plain\"\n",
    );
    let ignore = "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS=true AWS_ENDPOINT_URL=@/all";
    setup.check(
        "list --timeout 2",
        &[
            ("", "", "file of-plain file-region"),
            ("", "--profile parts", "file of-parts file-region"),
            ("AWS_PROFILE=parts", "", "file of-parts file-region"),
            ("AWS_PROFILE=", "", "file of-plain file-region"),
            (KEYS, "", "file of-variable file-region"),
            ("AWS_ENDPOINT_URL=@/all AWS_REGION=r", "", "all of-plain r"),
            ("AWS_ENDPOINT_URL_S3=@/s3 AWS_DEFAULT_REGION=r", "", "s3 of-plain r"),
            ("AWS_ENDPOINT_URL= AWS_REGION=", "", "file of-plain file-region"),
            // Ours is not one of those that are configured for all of AWS's tools.
            (ignore, "", "file of-plain file-region"),
            ("", "--endpoint @/option --region option", "option of-plain option"),
        ],
    );
}

#[test]
fn variables_of_our_own_count_as_unset_where_they_are_empty() {
    let bench = Bench::new();
    let home = bench.path("");
    let tree = bench.directory("tree");
    write_tree(&tree);
    let run = |variables: &[(&str, &str)], arguments: &[&str]| {
        let output = bench.thawfs().envs(variables.iter().copied()).args(arguments).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{variables:?} {arguments:?}: {said}");
        (String::from_utf8(output.stdout).unwrap(), said)
    };
    let (_, said) = run(&[("THAWFS_BUCKET", "")], &["list"]);
    assert!(said.contains(".local/share/thawfs"), "{said}");
    let named = format!("file://{}", bench.directory("named").display());
    let (_, said) = run(&[("THAWFS_BUCKET", &named)], &["list"]);
    assert!(said.contains("named"), "{said}");

    let limit = |variable: &str, arguments: &[&str]| {
        let arguments = [&["cache", "status", "--json"], arguments].concat();
        let (shown, _) = run(&[("THAWFS_DISK_CACHE", variable)], &arguments);
        serde_json::from_str::<serde_json::Value>(&shown).unwrap()["limit"].as_u64().unwrap()
    };
    let default = limit("auto", &[]);
    assert_eq!(limit("", &[]), default);
    assert_eq!(limit("32M", &[]), 32 << 20);
    assert_eq!(limit("32M", &["--disk-cache", "64M"]), 64 << 20);
    assert_eq!(limit("nonsense", &["--disk-cache", "64M"]), 64 << 20);
    let mut wrong = bench.thawfs();
    let wrong = wrong.env("THAWFS_DISK_CACHE", "32X").args(["cache", "status"]).output().unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr);
    assert!(wrong.status.code() == Some(2) && said.contains("THAWFS_DISK_CACHE: "), "{said}");

    // Root's directories are the system's, which a test leaves alone.
    if !rustix::process::geteuid().is_root() {
        for (name, below) in [("THAWFS_CACHE_DIR", ".cache"), ("XDG_CACHE_HOME", ".cache")] {
            let (shown, _) = run(&[("THAWFS_CACHE_DIR", ""), (name, "")], &["cache", "status"]);
            assert!(shown.contains(below) && shown.contains(home.to_str().unwrap()), "{shown}");
        }
    }

    let bucket = format!("file://{}", bench.path("bucket").display());
    let create = ["create", tree.to_str().unwrap(), "--bucket", &bucket, "-q"];
    run(&[("SOURCE_DATE_EPOCH", "")], &create);

    // Warnings are logged unless something else is asked for.
    let missing = Path::new("/dev/null/cache");
    let variables = |log| [("THAWFS_CACHE_DIR", missing.to_str().unwrap()), ("THAWFS_LOG", log)];
    let buckets = bench.directory("buckets");
    bench.directory("buckets/box");
    bench.archive(&tree, "buckets/box/data.sqsh", &[]);
    let server = S3Server::start(Config { keys: None, ..Config::new(buckets) }).unwrap();
    let url = format!("{}/box/data.sqsh", server.url());
    for (log, warned) in [("", true), ("warn", true), ("error", false)] {
        let (_, said) = run(&variables(log), &["ls", &url]);
        assert_eq!(said.contains("no disk cache"), warned, "THAWFS_LOG={log}: {said}");
    }
}

#[test]
fn help_tells_of_the_variables() {
    let bench = Bench::new();
    for (command, variables) in [
        ("mount", &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_PROFILE"][..]),
        ("mount", &["THAWFS_DISK_CACHE"]),
        ("list", &["THAWFS_BUCKET", "AWS_ENDPOINT_URL_S3"]),
    ] {
        let help = bench.ok(&[command, "--help"]);
        for name in variables {
            assert!(help.contains(name), "{command} --help has no {name}");
        }
        // A value of the environment may be a secret, and help shows none.
        let mut secret = bench.thawfs();
        let shown = secret.env("AWS_ENDPOINT_URL", "http://hidden").args([command, "-h"]).output();
        assert!(!String::from_utf8_lossy(&shown.unwrap().stdout).contains("hidden"));
    }
}
