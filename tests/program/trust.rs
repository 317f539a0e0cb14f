//! Whose certificates are trusted, by which way requests go, and how it is told where that fails.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::support::mount::{Bench, can_mount, write_tree};
use crate::support::s3::{Config, S3Server};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn openssl(arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).output().expect("openssl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Makes a certificate of its own for `name`, or one that `issuer` signs for 127.0.0.1.
fn certificate(bench: &Bench, name: &str, issuer: Option<&str>) -> PathBuf {
    let file = |name: &str, ending: &str| bench.path(&format!("{name}.{ending}"));
    let (key, pem, subject) = (file(name, "key"), file(name, "pem"), format!("/CN={name}"));
    let mut arguments = vec!["req", "-x509", "-nodes", "-days", "2", "-newkey", "ec"];
    arguments.extend(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", &subject]);
    arguments.extend(["-keyout", text(&key), "-out", text(&pem)]);
    let (ca, ca_key) = (file(issuer.unwrap_or(name), "pem"), file(issuer.unwrap_or(name), "key"));
    if issuer.is_some() {
        arguments.extend(["-CA", text(&ca), "-CAkey", text(&ca_key)]);
        arguments.extend(["-addext", "subjectAltName=IP:127.0.0.1"]);
        arguments.extend(["-addext", "basicConstraints=critical,CA:FALSE"]);
    }
    openssl(&arguments);
    pem
}

/// Serves TLS with this certificate until the test ends, and answers everything with 404. Gives its URL.
fn serve(certificate: &Path) -> String {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
    let key = PrivateKeyDer::from_pem_file(certificate.with_extension("key")).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
    let config = Arc::new(config.unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = BufReader::new(StreamOwned::new(connection, socket.unwrap()));
            let mut line = String::new();
            // A client that does not trust us hangs up.
            while stream.read_line(&mut line).is_ok_and(|read| read > 2) {
                line.clear();
            }
            let answer =
                b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
            let _ = stream.get_mut().write_all(answer);
        }
    });
    url
}

/// A command that trusts what the machine does, whatever the caller's variables say.
fn thawfs(bench: &Bench, variables: &[(&str, &str)]) -> Command {
    let mut command = bench.thawfs();
    for name in ["SSL_CERT_FILE", "SSL_CERT_DIR", "NO_PROXY", "no_proxy"] {
        command.env_remove(name);
    }
    for scheme in ["http", "https", "all"] {
        command.env_remove(format!("{scheme}_proxy"));
        command.env_remove(format!("{scheme}_proxy").to_uppercase());
    }
    command.envs(variables.iter().copied());
    command
}

#[test]
fn an_unknown_issuer_is_one_line() {
    let bench = Bench::new();
    certificate(&bench, "ca", None);
    let url = serve(&certificate(&bench, "leaf", Some("ca")));
    let source = format!("{url}/x.sqsh");
    let mountpoint = bench.directory("mnt");
    let mut commands = vec![
        vec!["ls", &source],
        vec!["ls", "-q", &source],
        vec!["ls", "s3://box/x.sqsh", "--anonymous", "--endpoint", &url],
        vec!["list", "-q", "--bucket", "s3://box/p", "--anonymous", "--endpoint", &url],
    ];
    if can_mount("an_unknown_issuer_is_one_line") {
        commands.push(vec!["mount", "-q", &source, text(&mountpoint)]);
        commands.push(vec!["mount", &source, text(&mountpoint)]);
    }
    for arguments in commands {
        let output = thawfs(&bench, &[]).args(&arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(8), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
        assert!(said.contains("UnknownIssuer"), "{arguments:?}: {said}");
        assert!(said.contains("AWS_CA_BUNDLE"), "{arguments:?}: {said}");
    }
}

#[test]
fn what_else_is_wrong_with_a_certificate_is_told_apart() {
    let bench = Bench::new();
    let ca = certificate(&bench, "ca", None);
    let leaf = serve(&certificate(&bench, "leaf", Some("ca")));
    // As one that a server made for itself often is.
    let own = serve(&ca);
    let elsewhere = leaf.replace("127.0.0.1", "localhost");
    for (url, expected) in [(own, "give it one that the issuer signed"), (elsewhere, "this host")] {
        let source = format!("{url}/x.sqsh");
        let variables = [("AWS_CA_BUNDLE", text(&ca))];
        let output = thawfs(&bench, &variables).args(["ls", &source]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), said.lines().count()), (Some(8), 1), "{said}");
        assert!(said.contains("invalid peer certificate"), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn certificates_are_those_of_the_bundle_else_of_the_system_s_variables() {
    let bench = Bench::new();
    let ca = certificate(&bench, "ca", None);
    let other = certificate(&bench, "other", None);
    let url = serve(&certificate(&bench, "leaf", Some("ca")));
    let hash = openssl(&["x509", "-subject_hash", "-noout", "-in", text(&ca)]);
    let directory = bench.directory("certificates");
    std::fs::copy(&ca, directory.join(format!("{}.0", hash.trim()))).unwrap();
    let key = ca.with_extension("key");
    let [ca, other, directory, key] = [&ca, &other, &directory, &key].map(|path| text(path));
    // What the server answers, then what its certificate, a missing bundle and a wrong one come to.
    const TRUSTED: i32 = 3;
    const UNKNOWN: i32 = 8;
    const USAGE: i32 = 2;
    for (variables, expected, words) in [
        (&[("AWS_CA_BUNDLE", ca)][..], TRUSTED, ""),
        (&[("SSL_CERT_FILE", ca)], TRUSTED, ""),
        (&[("SSL_CERT_DIR", directory)], TRUSTED, ""),
        (&[("AWS_CA_BUNDLE", ""), ("SSL_CERT_FILE", ca)], TRUSTED, ""),
        (&[("AWS_CA_BUNDLE", ca), ("SSL_CERT_FILE", other)], TRUSTED, ""),
        (&[("AWS_CA_BUNDLE", other), ("SSL_CERT_FILE", ca)], UNKNOWN, "UnknownIssuer"),
        (&[], UNKNOWN, "UnknownIssuer"),
        (&[("AWS_CA_BUNDLE", "/no/such.pem")], USAGE, "AWS_CA_BUNDLE=/no/such.pem: No such file"),
        (&[("AWS_CA_BUNDLE", key)], USAGE, "it holds no certificate"),
    ] {
        for arguments in [
            vec!["ls".to_owned(), format!("{url}/x.sqsh")],
            vec![
                "ls".into(),
                "s3://b/x.sqsh".into(),
                "--anonymous".into(),
                "--endpoint".into(),
                url.clone(),
            ],
        ] {
            let output = thawfs(&bench, variables).args(&arguments).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            let case = format!("{variables:?} {arguments:?}: {said}");
            assert_eq!(output.status.code(), Some(expected), "{case}");
            assert!(said.contains(words), "{case}");
        }
    }
}

#[test]
fn an_asterisk_exempts_every_host_from_the_proxy_an_address_too() {
    let bench = Bench::new();
    write_tree(&bench.directory("tree"));
    bench.directory("buckets/box");
    bench.archive(&bench.path("tree"), "buckets/box/data.sqsh", &[]);
    let config = Config { keys: None, ..Config::new(bench.path("buckets")) };
    let server = S3Server::start(config).unwrap();
    let url = format!("{}/box/data.sqsh", server.url());
    let proxy = ("HTTP_PROXY", "http://127.0.0.1:9");
    for (variables, reached) in [
        (&[proxy][..], false),
        (&[proxy, ("NO_PROXY", "*")], true),
        (&[proxy, ("no_proxy", "*")], true),
        (&[proxy, ("NO_PROXY", "example.com, *")], true),
        (&[proxy, ("NO_PROXY", "127.0.0.1")], true),
        (&[proxy, ("NO_PROXY", "example.com,*.com")], false),
        (&[proxy, ("NO_PROXY", "")], false),
    ] {
        for source in [vec![url.as_str()], vec!["s3://box", "--endpoint"]] {
            let mut command = thawfs(&bench, variables);
            command
                .args(["ls", "--anonymous", "--timeout", "2", "--disk-cache", "off"])
                .args(&source);
            if source.len() > 1 {
                command.arg(server.url());
            }
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.success(), reached, "{variables:?} {source:?}: {said}");
        }
    }
}
