//! The HTTP client under every remote store.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use object_store::client::HttpClient;

use super::error::root_cause;
use super::redirect::{Guard, Lookup};
use super::{Access, Error, Result};
use crate::environment::Environment;

/// Builds a client. Redirects are followed where `guard` lets them, which is for plain URLs only: a
/// signature covers its host.
///
/// Trust comes from the file of `AWS_CA_BUNDLE` alone, if that is set, else from the system, which
/// honours `SSL_CERT_FILE`, `SSL_CERT_DIR` and company roots. Mozilla's roots stand in where the system
/// has none, as in a minimal container; building a client would fail there, even one that only speaks to
/// an `http://` endpoint.
pub(super) fn client(access: &Access, guard: Option<&Arc<Guard>>) -> Result<HttpClient> {
    // Another part of the process may have installed a provider first, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = || {
        let builder = reqwest::Client::builder();
        let builder = match guard {
            Some(guard) => builder.redirect(guard.policy()).dns_resolver(Lookup(Arc::clone(guard))),
            None => builder.redirect(reqwest::redirect::Policy::none()),
        };
        let builder = if no_proxy(&access.environment) { builder.no_proxy() } else { builder };
        builder
            .user_agent(concat!("thawfs/", env!("CARGO_PKG_VERSION")))
            // Shorter than what is waited for an answer at first, so that it is told which of both it was:
            // 4.8 s with the default deadline, for looking up the name, TCP and TLS.
            .connect_timeout(access.patience() * 4 / 5)
            // Parallel GETs want connections of their own: over one HTTP/2 connection they share
            // its congestion window, and one lost packet stalls all of them.
            .http1_only()
            // A presigned URL would leak to the target of a redirect as its referrer.
            .referer(false)
            .tcp_nodelay(true)
    };
    let only = |certificates: &[reqwest::Certificate]| {
        let client = builder().tls_certs_only(certificates.iter().cloned()).build();
        client.map_err(|error| Error::BadOption { what: "TLS".into(), reason: root_cause(&error) })
    };
    let client = match access.environment.path("AWS_CA_BUNDLE") {
        Some(path) => only(&read_bundle(path)?)?,
        None => match builder().build() {
            Ok(client) => client,
            Err(_) => only(mozilla_roots())?,
        },
    };
    Ok(HttpClient::new(client))
}

/// The certificates of `AWS_CA_BUNDLE`.
fn read_bundle(path: &Path) -> Result<Vec<reqwest::Certificate>> {
    let bad = |reason: String| Error::BadOption {
        what: format!("AWS_CA_BUNDLE={}", path.display()),
        reason,
    };
    let pem = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
    let certificates = reqwest::Certificate::from_pem_bundle(&pem);
    let certificates = certificates.map_err(|error| bad(root_cause(&error)))?;
    if certificates.is_empty() {
        Err(bad("it holds no certificate".into()))
    } else {
        Ok(certificates)
    }
}

/// Whether no request is to go through a proxy. The library takes `*` for every name and no address.
fn no_proxy(environment: &Environment) -> bool {
    let exempt = environment.get("NO_PROXY").or_else(|| environment.get("no_proxy"));
    exempt.is_some_and(|list| list.split(',').any(|entry| entry.trim() == "*"))
}

fn mozilla_roots() -> &'static [reqwest::Certificate] {
    static ROOTS: OnceLock<Vec<reqwest::Certificate>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        webpki_root_certs::TLS_SERVER_ROOT_CERTS
            .iter()
            .filter_map(|der| reqwest::Certificate::from_der(der).ok())
            .collect()
    })
}
